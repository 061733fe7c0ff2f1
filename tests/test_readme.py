"""README's lines, run as they stand in an empty folder, with the Redis that comes along."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from rqjobs import cli, config, connection

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    """The code of README in this language."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", README, flags=re.M | re.S)
    return [
        "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))
        for indent, code in found
    ]


def block(language, word):
    """The one that has this in it."""
    (found,) = [code for code in blocks(language) if word in code]
    return found


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def folder(spawn, environ, tmp_path, port):
    """A project's folder with README's modules, and a `.env` that somebody had already, without a last newline."""
    for code in blocks("python"):
        if name := re.match(r"# (\w+\.py)\n", code):
            (tmp_path / name[1]).write_text(code, encoding="utf-8")
    (tmp_path / ".env").write_text("SHOP=mine")
    for name in ("REDIS_URL", "RQJOBS_MODULES"):
        environ.pop(name)
    environ.update(
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        PORT=str(port),
        PYTHONPATH=str(ROOT),
    )
    return tmp_path


@pytest.fixture
def run(folder, environ):
    """Run a shell line or a Python text to its end in that folder; returns its output."""

    def go(text, *command):
        done = subprocess.run(
            [*(command or ("sh", "-ec")), text],
            cwd=folder,
            env=environ,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    return go


def test_the_first_hour(folder, run, spawn, eventually):
    """Everything from the first module to the last schedule; what README calls another terminal is one here."""
    prepare, dev = block("sh", "RQJOBS_MODULES=jobs\\n").splitlines()
    run(prepare)
    assert (folder / ".env").read_text() == "SHOP=mine\nRQJOBS_MODULES=jobs\n"
    process = spawn("sh", "-c", f"exec {dev}")
    eventually(lambda: "Ctrl-C stops" in process.output() or process.poll() is not None, timeout=60)
    config.use(redis_url=(folder / ".rqjobs" / "redis.url").read_text().strip())
    redis = connection.client()
    client = block("python", "from jobs import ask, greet")
    run(client, sys.executable, "-c")
    eventually(lambda: redis.zcard("rq:finished:default") == 3, timeout=60)
    assert redis.zcard("rq:scheduled:default") == 2 and not redis.zcard("rq:failed:default")
    prepare, again, *lines = block("sh", "rqjobs schedules run").splitlines()
    assert again.startswith("rqjobs dev ")
    run(prepare)
    eventually(lambda: "RQJOBS_MODULES); restarting" in process.output(), timeout=60)
    eventually(
        lambda: (
            redis.exists(
                "rqjobs:schedule:tasks-report",
                "rqjobs:schedule:tasks-refresh",
                "rqjobs:schedule:monthly",
            )
            == 3
        ),
        timeout=60,
    )
    assert "tasks-report" in run("\n".join(lines))
    program = block("python", "from tasks import send_digest")
    for _ in range(2):  # a program starts more than once
        run(program, sys.executable, "-c")
    run(block("sh", "rqjobs schedules add"))
    assert {"digest-41", "digest-42", "digest-43"} <= {
        name.decode().removeprefix("rqjobs:schedule:")
        for name in redis.scan_iter("rqjobs:schedule:*")
    }
    eventually(lambda: redis.zcard("rq:finished:low") >= 2, timeout=60)
    careful = block("python", "one.wait").replace("assert one", "one")  # there is no replica
    run(f"import rqjobs\nfrom jobs import ask\n{careful}", sys.executable, "-c")
    assert "clean" in run("rqjobs audit\nrqjobs doctor")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, process.output()


def test_the_pages_go_into_an_app_as_it_says(run):
    run(
        "import shop\napp = shop.create_app()\nassert app.test_client().get('/jobs/').status_code in (303, 401)",
        sys.executable,
        "-c",
    )
    run("import rqjobs\nrqjobs.web.create_app()", sys.executable, "-c")
    assert (
        run("import sys, rqjobs; print('flask' in sys.modules)", sys.executable, "-c") == "False\n"
    )


def test_the_two_lines_of_the_procfile(folder, spawn, redis, server, port, eventually):
    """honcho runs them; the web app says where, which honcho may have chosen."""
    lines = block("sh", "gunicorn --config")
    assert [line.split() for line in lines.splitlines()] == [
        line.split() for line in (ROOT / "Procfile").read_text(encoding="utf-8").splitlines()
    ]
    (folder / "Procfile").write_text(lines)
    process = spawn("honcho", "start", env={"REDIS_URL": server, "RQJOBS_MODULES": "jobs"})
    eventually(
        lambda: f"rqjobs: serving at http://127.0.0.1:{port}/" in process.output(), timeout=60
    )
    eventually(lambda: "Listening on" in process.output(), timeout=60)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=20) as reply:
        assert reply.read() == b"ok\n"
    process.terminate()
    process.wait(60)


def test_it_names_every_command_and_no_other():
    table = README[README.index("| command | what it does |") : README.index("## What is promised")]
    assert sorted(re.findall(r"^\| `rqjobs (\w+)", table, flags=re.M)) == sorted(
        set(cli.main.commands) - {"demo"}
    )
    targets = set(
        re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    )
    used = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, flags=re.M))
    assert used and used <= targets
