"""`rqjobs dev` as a process; .ci/drive.py tests it over HTTP."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import psutil
import pytest
from ports import free_port

import rqjobs
from rqjobs import config, connection
from rqjobs.dev import RQJOBS, Dev, redis_server
from rqjobs.dev.source_files import modification_times


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def dev(spawn, environ, tmp_path, port, eventually):
    """Start `rqjobs dev` with an embedded Redis in an empty folder.

    Wait for its address and for its workers, which may be later.
    """
    environ.pop("REDIS_URL")
    environ.pop("RQJOBS_MODULES")
    (tmp_path / "mine.py").write_text("def version() -> int:\n    return 1\n")

    def start(**env):
        process = spawn(
            sys.executable,
            "-m",
            "rqjobs",
            "dev",
            env={"PORT": str(port), "RQJOBS_MODULES": "mine", **env},
        )
        eventually(
            lambda: (
                ("Ctrl-C stops" in process.output() and listened(process) >= 2)
                or process.poll() is not None
            ),
            timeout=60,
            what="the address and two workers",
        )
        url = re.search(r"REDIS_URL='?([^'\s]+)", process.output())
        if url:
            config.use(redis_url=url[1])
        return process

    return start


def listened(process):
    """How many workers have been ready for jobs so far."""
    return process.output().count("Listening on")


def family(process):
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


def gone(pids):
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return False
    return True


def save(path, text):
    """Write a file in one step, as editors do: it may be looked at any time."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def result(name, eventually):
    """The result of a job of a module that only the workers of `rqjobs dev` can import."""
    job = rqjobs.Job(connection=connection.client())
    job._func_name, job._instance, job._args, job._kwargs = name, None, (), {}
    rqjobs.Queue("default", connection=connection.client()).enqueue_job(job)
    eventually(lambda: job.get_status() in ("finished", "failed"), timeout=30)
    return job.return_value()


def test_ctrl_c_ends_all_processes_and_keeps_queued_jobs(dev, eventually):
    process = dev()
    eventually(
        lambda: len(family(process)) >= 6,
        what="redis, gunicorn with a worker, two workers, a scheduler",
    )
    pids = family(process)
    redis = connection.client()
    redis.rpush("rq:queue:elsewhere", "kept")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0, process.output()
    eventually(lambda: gone(pids))
    process = dev()
    assert connection.client().lrange("rq:queue:elsewhere", 0, -1) == [b"kept"]
    process.terminate()
    assert process.wait(30) == 0, process.output()


def test_a_changed_source_file_or_env_file_restarts_the_children(dev, eventually, tmp_path):
    """The files are the jobs module, its imports and `.env`. A wrong `.env` is reported."""
    helper = "import os\ndef answer() -> str:\n    return os.environ['SHOP'] + ': NUMBER'\n"
    (tmp_path / "helper.py").write_text(helper.replace("NUMBER", "one"))
    (tmp_path / ".env").write_text("SHOP=old\n")
    process = dev()
    assert result("mine.version", eventually) == 1
    save(tmp_path / "mine.py", "import helper\ndef version() -> str:\n    return helper.answer()\n")
    eventually(lambda: "mine.py changed; restarting" in process.output(), timeout=60)
    eventually(lambda: listened(process) == 4, timeout=60)
    assert result("mine.version", eventually) == "old: one"
    save(tmp_path / "helper.py", helper.replace("NUMBER", "two"))
    eventually(lambda: "helper.py changed; restarting" in process.output(), timeout=60)
    eventually(lambda: listened(process) == 6, timeout=60)
    save(tmp_path / ".env", "SHOP=new\nRQJOBS_SHUTDOWN_TIMEOUT=lots\n")
    eventually(
        lambda: (
            "rqjobs: .env: RQJOBS_SHUTDOWN_TIMEOUT='lots' is not a number of seconds"
            in process.output()
        ),
        timeout=60,
    )
    assert result("mine.version", eventually) == "old: two"
    save(tmp_path / ".env", "SHOP=new\nRQJOBS_SHUTDOWN_TIMEOUT=3\n")
    eventually(
        lambda: (
            "rqjobs: .env changed (RQJOBS_SHUTDOWN_TIMEOUT, SHOP); restarting" in process.output()
        ),
        timeout=60,
    )
    eventually(lambda: listened(process) == 8, timeout=60)
    assert result("mine.version", eventually) == "new: two"


def test_watched_files_are_those_of_the_folder_the_modules_and_the_app(tmp_path, monkeypatch):
    for name in (
        "own.py",
        "lib/deep/part.py",
        ".git/hook.py",
        "venv/lib/theirs.py",
        "node_modules/a.py",
        "notes.txt",
    ):
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).touch()
    (tmp_path / "here" / "venv" / "pyvenv.cfg").touch()
    for name in ("shop/__init__.py", "shop/views.py", "single.py", "other.py"):
        (tmp_path / "elsewhere" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "elsewhere" / name).touch()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    seen = modification_times(
        config.Config(modules=("single", "nowhere"), flask_app="shop.views:app")
    )
    assert sorted(os.path.relpath(path, tmp_path) for path in seen) == [
        "elsewhere/shop/__init__.py",
        "elsewhere/shop/views.py",
        "elsewhere/single.py",
        "here/lib/deep/part.py",
        "here/own.py",
    ]
    (tmp_path / "here" / ".env").touch()
    assert ".env" in modification_times(config.Config())


@pytest.mark.parametrize(
    "changed, expected", [("rqjobs/web/rendering.py", "restart"), ("mine.py", "reload")]
)
def test_a_change_of_rqjobs_itself_starts_the_web_process_again(
    tmp_path, monkeypatch, changed, expected
):
    """Gunicorn's first process keeps the package, so a reload showed the pages of the old code."""
    monkeypatch.chdir(tmp_path)
    calls = []

    class Recorder:
        def signal(self, number):
            calls.append("reload" if number == signal.SIGHUP else number)

        def request_restart(self):
            calls.append("restart")

    program = Dev(RQJOBS, config.Config(one_time_password="correct horse"), "", [], calls.append)
    program.children = [Recorder(), Recorder()]
    program._restart({str(Path(rqjobs.__file__).parents[1] / changed)})
    assert calls == [f"rqjobs: {Path(changed).name} changed; restarting", expected, "restart"]


def test_a_second_ctrl_c_requeues_the_running_job_and_ends(dev, eventually, tmp_path):
    """Earlier Ctrl-C waited for the whole shutdown timeout, and a second one had no effect."""
    (tmp_path / "mine.py").write_text(
        "import time\ndef long() -> None:\n    open('begun', 'w').close()\n    time.sleep(300)\n"
    )
    process = dev(RQJOBS_SHUTDOWN_TIMEOUT="300")
    job = rqjobs.Job(connection=connection.client())
    job._func_name, job._instance, job._args, job._kwargs = "mine.long", None, (), {}
    rqjobs.Queue("default", connection=connection.client()).enqueue_job(job)
    eventually((tmp_path / "begun").exists, timeout=60)
    process.send_signal(signal.SIGINT)
    waits = "waits for running jobs, 305 s at most; a second Ctrl-C requeues them"
    eventually(lambda: waits in process.output(), timeout=60)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, process.output()
    assert process.output().count("second signal, requeueing the current job") == 1
    with redis_server.server(tmp_path / ".rqjobs") as url:
        redis = connection.connect(url)
        assert redis.lrange("rq:queue:default", 0, -1) == [job.id.encode()]
        assert not redis.keys("rqjobs:claims:*") and b"rqjobs_crashes" not in redis.hgetall(job.key)


def test_a_killed_dev_ends_its_children_and_the_next_one_starts(dev, eventually):
    process = dev()
    pids = family(process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    eventually(lambda: gone(pids), timeout=30)
    assert dev().poll() is None


def test_a_killed_worker_is_restarted(dev, eventually):
    process = dev()
    worker = next(
        child for child in psutil.Process(process.pid).children() if "worker" in child.cmdline()
    )
    worker.kill()
    eventually(lambda: listened(process) == 3, timeout=60)
    assert "ended with -9; starting it again" in process.output()


def test_a_second_dev_in_the_folder_and_a_used_port_are_refused(dev, spawn, port, tmp_path):
    first = dev()
    second = spawn(sys.executable, "-m", "rqjobs", "dev")
    assert second.wait(30) == 2
    assert (
        second.output() == "rqjobs: rqjobs dev runs in this folder already; stop that one first\n"
    )
    (tmp_path / "other").mkdir()
    third = spawn(
        sys.executable, "-m", "rqjobs", "dev", cwd=tmp_path / "other", env={"PORT": str(port)}
    )
    assert third.wait(30) == 2 and "set PORT to a free one" in third.output()
    assert first.poll() is None


def test_other_commands_find_the_redis_that_runs_here(dev, spawn):
    dev()
    doctor = spawn(sys.executable, "-m", "rqjobs", "doctor", env={"RQJOBS_MODULES": "mine"})
    assert doctor.wait(30) == 0, doctor.output()
    assert "2 live workers" in doctor.output()


def test_a_web_app_that_cannot_start_is_reported(dev, tmp_path):
    process = dev(HOST="192.0.2.1", RQJOBS_ADMIN_PASSWORD="long enough")
    assert process.wait(60) == 2
    assert "cannot serve at HOST='192.0.2.1'" in process.output()


def test_the_console_script_restarts_for_changes(dev, spawn, environ, port, eventually, tmp_path):
    """Its path lacks the working directory; earlier it did not find the modules' files.

    A change after a child has read the file is noticed, even before the web app answers.
    """
    script = os.path.join(os.path.dirname(sys.executable), "rqjobs")
    environ.pop("PYTHONPATH")
    save(tmp_path / "mine.py", "open('read', 'w').close()\ndef version() -> int:\n    return 1\n")
    process = spawn(script, "dev", env={"PORT": str(port), "RQJOBS_MODULES": "mine"})
    eventually((tmp_path / "read").exists, timeout=60)
    save(tmp_path / "mine.py", "def version() -> int:\n    return 3  # changed\n")
    eventually(lambda: "mine.py changed; restarting" in process.output(), timeout=60)
    process.terminate()
    assert process.wait(30) == 0, process.output()


def test_a_public_host_without_a_password_is_refused(dev):
    process = dev(HOST="0.0.0.0")
    assert process.wait(60) == 2
    assert "exposes the admin pages. Set RQJOBS_ADMIN_PASSWORD" in process.output()


def test_the_redis_of_a_copied_folder_keeps_running(dev, spawn, tmp_path, eventually):
    process = dev()
    redis = connection.client()
    shutil.copytree(
        tmp_path / ".rqjobs", tmp_path / "copy" / ".rqjobs", ignore=shutil.ignore_patterns("*.sock")
    )
    with redis_server.server(tmp_path / "copy" / ".rqjobs") as other:
        assert redis.ping() and other != config.current().redis_url
    assert redis.ping() and process.poll() is None


def test_a_dead_embedded_redis_is_reported(dev, eventually):
    process = dev()
    os.kill(connection.client().info()["process_id"], signal.SIGKILL)
    assert process.wait(60) == 1
    assert "the embedded Redis has ended" in process.output()
