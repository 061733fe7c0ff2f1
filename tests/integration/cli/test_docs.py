"""README and docs: their code blocks run as they are, and their lists and tables are complete."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import fields
from pathlib import Path

import click
import pytest
from ports import free_port

import rqjobs
from rqjobs import cli, config, connection, flows

ROOT = Path(__file__).parents[3]
PAGES = {
    path.name: path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
EXAMPLE = ROOT / "examples" / "shop"
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", flags=re.M | re.S)
# Their packages are not installed here. `make test-clients` runs the same lines.
NOT_RUN = {"clients.md"}


def blocks(page, language):
    """The code blocks of a page in this language, without their indentation."""
    return [
        "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))
        for indent, found, code in BLOCK.findall(PAGES[page])
        if found == language
    ]


def block(page, language, word):
    """The only block of a page that contains this word."""
    (found,) = [code for code in blocks(page, language) if word in code]
    return found


def delayed_longer(code):
    """The same program, but on a busy machine its delayed jobs are not due within the test."""
    return code.replace("enqueue_in(60,", "enqueue_in(6000,")


def file_name(code):
    """The name in the first line of a block that is a file, else None."""
    match = re.match(r"# (\w+\.py)\b", code)
    return match and match[1]


def shell_lines():
    """(page, line) of every command in the shell blocks, without its comment."""
    for page in PAGES:
        for code in blocks(page, "sh"):
            for line in code.splitlines():
                yield page, shlex.split(line, comments=True)


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def folder(environ, tmp_path, port):
    """A project folder with a `.env` that has no last newline, and the environment of a user."""
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
def write(folder):
    """Write the files of a page into the folder."""

    def files(page):
        for code in blocks(page, "python"):
            if name := file_name(code):
                (folder / name).write_text(code, encoding="utf-8")

    return files


@pytest.fixture
def run(folder, environ):
    """Run a text by `sh`, or by the given command, and return the output."""

    def go(text, *command):
        done = subprocess.run(
            [*(command or ("sh", "-ec")), text],
            cwd=folder,
            env=environ,
            capture_output=True,
            encoding="utf-8",
            timeout=240,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    return go


def test_the_steps_of_the_readme_and_docs_work_in_their_order(
    folder, write, run, spawn, eventually
):
    # Given: README's files, and `rqjobs dev` running.
    write("README.md")
    prepare, dev = block("README.md", "sh", "RQJOBS_MODULES=jobs\\n").splitlines()
    run(prepare)
    assert (folder / ".env").read_text() == "SHOP=mine\nRQJOBS_MODULES=jobs\n"
    process = spawn("sh", "-c", f"exec {dev}")
    eventually(lambda: "Ctrl-C stops" in process.output() or process.poll() is not None, timeout=60)
    config.use(redis_url=(folder / ".rqjobs" / "redis.url").read_text().strip())
    redis = connection.client()

    # When a Flask app enqueues, then the job runs and the output is README's.
    job_id = enqueue_from_flask(spawn, eventually)
    assert [*json.loads(block("README.md", "", '{"job"'))] == ["job"]
    eventually(lambda: redis.zscore("rq:finished:default", job_id) is not None, timeout=60)
    for line in block("README.md", "", "greet").splitlines():
        text = re.sub(r"^\S+ Worker \S+: | \(\S+\)$| in \S+ s$", "", line)
        eventually(lambda text=text: text in process.output(), what=text)

    # When the schedules of README and then of docs/schedules.md are declared, they are stored.
    prepare, *lines = block("README.md", "sh", "rqjobs schedules").splitlines()
    run(prepare)
    eventually(lambda: "RQJOBS_MODULES); restarting" in process.output(), timeout=60)
    names = [f"rqjobs:schedule:{name}" for name in ("tasks-report", "tasks-refresh", "monthly")]
    eventually(lambda: redis.exists(*names) == 2, timeout=60)
    assert "tasks-report" in run("\n".join(lines))
    write("schedules.md")
    eventually(lambda: redis.exists(*names) == 3, timeout=60)
    assert blocks("schedules.md", "sh")[0].startswith(f"{prepare}\n{dev}")
    assert "tasks-report" in run("\n".join(blocks("schedules.md", "sh")[0].splitlines()[2:]))
    eventually(lambda: redis.zcard("rq:finished:low") >= 2, timeout=60)

    # When a program adds schedules, twice, and the command line adds one, all three exist.
    program = block("schedules.md", "python", "from tasks import send_digest")
    for _ in range(2):
        run(program, sys.executable, "-c")
    run(block("schedules.md", "sh", "rqjobs schedules add"))
    added = [f"rqjobs:schedule:digest-{number}" for number in (41, 42, 43)]
    assert redis.exists(*added) == 3

    # When the programs of docs/jobs.md and docs/guarantees.md run, their jobs do too.
    write("jobs.md")
    run("printf '\nRQJOBS_MODULES=jobs,tasks,emails\n' >> .env")

    def workers_know_the_new_module():
        restarts = process.output().split("RQJOBS_MODULES); restarting")
        return len(restarts) == 3 and restarts[-1].count("Listening on") >= 2

    eventually(workers_know_the_new_module, timeout=60)
    before = redis.zcard("rq:finished:default")
    programs = [
        delayed_longer(code)
        for page in ("jobs.md", "guarantees.md")
        for code in blocks(page, "python")
        if not file_name(code)
    ]
    assert len(programs) == 3
    outputs = [run(code, sys.executable, "-c") for code in programs]
    assert outputs[-1] == "0 replicas have the job\n"
    assert redis.zcard("rq:scheduled:default") == 1 and redis.zcard("rq:scheduled:low") >= 1
    eventually(lambda: redis.zcard("rq:finished:default") >= before + 3, timeout=60)
    assert redis.zcard("rq:canceled:default") == 1
    assert "clean" in run("rqjobs audit\nrqjobs doctor")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, process.output()


def enqueue_from_flask(spawn, eventually):
    """Do with README's app what its shell block does; returns the id of the job."""
    serve, request = block("README.md", "sh", "flask").splitlines()
    port = free_port()
    app = spawn("sh", "-c", f"exec {serve.removesuffix(' &')}", env={"FLASK_RUN_PORT": str(port)})
    eventually(lambda: "Running on" in app.output() or app.poll() is not None, timeout=60)
    command, _, method, address = shlex.split(request)
    assert command == "curl"
    asked = urllib.request.Request(address.replace("5000", str(port)), method=method)
    with urllib.request.urlopen(asked, timeout=60) as reply:
        job_id = json.load(reply)["job"]
    app.kill()
    return job_id


def after_limits(output, redis):
    assert output == ""
    assert redis.zcard("rq:finished:default") == 6  # a job that ended woke the next one


def after_pause(output, redis):
    assert output.count("is paused since") == 2 and "by ada" in output


def after_time(output, redis):
    assert output == "JobStatus.CANCELED\n" and redis.zcard("rq:finished:default") == 1


def after_retries(output, redis):
    assert redis.zcard("rq:finished:default") == 2 and redis.zcard("rq:canceled:default") == 1
    waiting = redis.zrange("rq:scheduled:default", 0, -1, withscores=True)
    delays = [due - time.time() for _, due in waiting]
    assert 20 < delays[0] <= 40 and 40 < delays[1] <= 60


def after_unique(output, redis):
    first, existing_id = output.splitlines()
    assert first == "True" and redis.exists(f"rq:job:{existing_id}")
    assert redis.zcard("rq:finished:default") == 2 and redis.hlen("rqjobs:unique") == 1  # is kept


def after_debounce(output, redis):
    assert output == "1 1\n" and redis.zcard("rq:finished:default") <= 1


def after_failures(output, redis):
    assert output.splitlines() == [
        "shop_payments.charge CardRefused 2 2",
        *["default CardRefused"] * 2,
    ]
    assert redis.zcard("rq:finished:default") == 2  # the calls of on_failed


POLICIES = {
    "Retries": after_retries,
    "Limits": after_limits,
    "Pause": after_pause,
    "Time": after_time,
    "Unique": after_unique,
    "Debounce": after_debounce,
    "Failed jobs": after_failures,
}


def test_each_section_of_the_policies_page_is_tested():
    assert re.findall("^## (.+)$", PAGES["policies.md"], flags=re.M) == list(POLICIES)


def test_the_program_of_the_flows_page_runs(folder, run, environ, redis):
    module, program = blocks("flows.md", "python")
    (folder / file_name(module)).write_text(module, encoding="utf-8")
    environ.update(REDIS_URL=config.current().redis_url, RQJOBS_MODULES="shop_reports")
    assert run(program, sys.executable, "-c") == "5 running\n"
    run("rqjobs worker --burst")
    config.use(modules=("shop_reports",))
    found = [flows.fetch(key.decode().split(":")[2]) for key in redis.keys("rqjobs:flow:*")]
    assert sorted(str(flow.result) for flow in found) == [
        "6 words",
        "['ValueError: the page is empty']",
    ]


@pytest.mark.parametrize("heading", POLICIES)
def test_the_program_of_a_policy_runs(heading, folder, run, environ, redis):
    """Each program is followed by a worker that runs what it has enqueued."""
    section = PAGES["policies.md"].split(f"\n## {heading}\n")[1].split("\n## ")[0]
    codes = [code for _, language, code in BLOCK.findall(section) if language == "python"]
    names = [name for code in codes if (name := file_name(code))]
    for name, code in zip(names, codes, strict=False):
        (folder / name).write_text(code, encoding="utf-8")
    modules = ",".join(name.removesuffix(".py") for name in names)
    environ.update(REDIS_URL=config.current().redis_url, RQJOBS_MODULES=modules)
    outputs = []
    for code in codes[len(names) :]:
        outputs.append(run(code, sys.executable, "-c"))
        run("rqjobs worker --burst")
    POLICIES[heading]("".join(outputs), redis)
    assert not redis.zcard("rq:failed:default") and not redis.zcard("rq:failed:low")


def test_the_program_of_the_results_page_runs(folder, write, run, worker, environ):
    write("results.md")
    environ.update(REDIS_URL=config.current().redis_url, RQJOBS_MODULES="prices")
    environ["PYTHONPATH"] += f":{folder}"
    worker("default")
    (program,) = [code for code in blocks("results.md", "python") if not file_name(code)]
    assert run(program, sys.executable, "-c") == "3\n[3, 4]\nno price for salt\n"


LOOP_FILES = ("mailings.py", "shop_sums.py", "reports.py")


def test_the_program_of_the_loops_page_runs(folder, write, run, environ, redis):
    write("loops.md")
    names = [name.removesuffix(".py") for name in LOOP_FILES]
    environ.update(REDIS_URL=config.current().redis_url, RQJOBS_MODULES=",".join(names))
    (folder / "orders.csv").write_text("1;chair\n2;table\n")
    with contextlib.closing(sqlite3.connect(folder / "shop.db")) as database, database:
        database.execute("create table users (id integer primary key, email text)")
        database.executemany("insert into users (email) values (?)", [["a@x"], ["b@x"]])
    (program,) = [code for code in blocks("loops.md", "python") if not file_name(code)]
    assert run(program, sys.executable, "-c") == "None\n"
    others = "import rqjobs, shop_sums, reports\nrqjobs.enqueue(reports.build_report, 2026)\n"
    run(f"{others}rqjobs.enqueue(shop_sums.revenue, [1, 2, 3])", sys.executable, "-c")
    output = run("rqjobs worker --burst 2>&1")
    lines = ["edition 7 to a@x", "edition 7 to b@x", "order 1;chair", "order 2;table"]
    assert [line for line in output.splitlines() if line in lines] == lines
    assert output.count("resize ") == 2
    ids = redis.zrange("rq:finished:default", 0, -1)
    jobs = [rqjobs.Job.fetch(job_id.decode(), connection=redis) for job_id in ids]
    found = {(job.return_value(), *job.progress[:3]) for job in jobs}
    assert found == {
        (None, 2, 2, ""),
        (None, 16, 16, "bytes"),
        ("report 2026", 12, 12, ""),
        (6, 3, 3, ""),
    }


def test_the_tracer_of_the_hooks_page_traces(folder, write, run, environ):
    write("hooks.md")
    environ.update(REDIS_URL=config.current().redis_url, RQJOBS_MODULES="orders,tracing")
    environ["PYTHONPATH"] += f":{folder}"
    (program,) = [code for code in blocks("hooks.md", "python") if not file_name(code)]
    assert run(program, sys.executable, "-c") == ""
    lines = run("rqjobs worker --burst").splitlines()
    times = [
        line for line in lines if re.fullmatch(r"request-7: orders.place took \d+\.\d+ s", line)
    ]
    assert len(times) == 2
    assert "request-7: orders.place has failed: there is no order 0" in lines


def test_the_programs_of_the_transactions_page(folder, write, run, environ, redis):
    write("transactions.md")
    environ.update(REDIS_URL=config.current().redis_url, RQJOBS_MODULES="orders")
    first, second, migration = [
        delayed_longer(code) for code in blocks("transactions.md", "python") if not file_name(code)
    ]
    assert run(first, sys.executable, "-c") == "JobStatus.CREATED\nJobStatus.QUEUED\n"
    run(second, sys.executable, "-c")
    assert redis.llen("rq:queue:default") == 2 and redis.zcard("rq:scheduled:default") == 1

    # With the outbox the same program writes rows, which a worker moves.
    (setup,) = blocks("transactions.md", "sh")
    assert run(setup) == "the table rqjobs_outbox is created\n0 jobs wait\n"
    run("import dotenv\ndotenv.load_dotenv()\n" + second, sys.executable, "-c")
    assert redis.llen("rq:queue:default") == 2
    assert run("rqjobs outbox status").startswith("2 jobs wait")
    run("rqjobs worker --burst")
    assert redis.zcard("rq:finished:default") == 3 and redis.zcard("rq:scheduled:default") == 2
    assert "op.create_table" in migration  # test_outbox.py runs it


def test_the_tests_of_the_testing_page_pass(folder, write, run, environ):
    """On two processes, and with a setting that names a Redis that must not be used."""
    write("testing.md")
    (folder / "pytest.ini").write_text(block("testing.md", "ini", "pythonpath"))
    _, prepare, command = block("testing.md", "sh", "pytest").splitlines()
    environ.update(REDIS_URL="redis://127.0.0.1:1/0")
    run(prepare)
    assert "5 passed" in run(f"{command} -n 2 -p pytest_rqjobs --basetemp=temporary")


def test_the_program_of_the_logs_page_prints_its_output(
    folder, write, run, spawn, environ, redis, eventually
):
    write("logs.md")
    environ.update(REDIS_URL=config.current().redis_url, RQJOBS_MODULES="mailing")
    environ["PYTHONPATH"] += f":{folder}"
    program = spawn(sys.executable, "-c", block("logs.md", "python", "follow_log"))
    eventually(lambda: redis.llen("rq:queue:default"), what=program.output())
    run("rqjobs worker --burst")
    assert program.wait(20) == 0
    lines = [line for line in program.output().splitlines() if "no worker serves" not in line]
    assert lines == block("logs.md", "", "INFO").splitlines()


API_TOKEN = "docs-api-token-0123456789"


def test_the_requests_of_the_api_page(folder, spawn, environ, redis, port, eventually):
    """A browser-less client sends each line; the JSON below a line is like its answer."""
    environ.update(
        REDIS_URL=config.current().redis_url,
        RQJOBS_API_TOKEN=f"docs:admin:{API_TOKEN}",
        RQJOBS_MODULES="rqjobs.demo",
    )
    server = "rqjobs.web.gunicorn_config"
    web = spawn("gunicorn", "--config", f"python:{server}", "rqjobs.web:create_app()")
    eventually(lambda: "serving at" in web.output(), what=web.output())
    worker = spawn("rqjobs", "worker")
    eventually(lambda: "Listening on" in worker.output(), timeout=60)
    answers = []
    for line in [line for code in blocks("api.md", "sh") for line in code.splitlines()][1:]:
        line = line.replace("$TOKEN", API_TOKEN).replace("$API", f"http://127.0.0.1:{port}/api")
        if "$JOB" in line:
            line = line.replace("$JOB", answers[-1]["id"])
        answers.append(answer_of(shlex.split(line)))
    assert not [one for one in answers[:-1] if "urn:rqjobs:" in str(one)]
    shown = [json.loads(code) for code in blocks("api.md", "json")]
    similar = [answers[0], answers[1], answers[-1]]
    for example, found in zip(shown, similar, strict=True):
        for answer in (example, found):
            answer.pop("id", None)
        assert example == found


def answer_of(words):
    """The JSON that `curl` with these words would print; None if it would print nothing."""
    assert words[:2] == ["curl", "-s"]
    options = dict(zip(words[2:-1:2], words[3:-1:2], strict=True))
    names = words[2:-1:2]
    assert set(names) <= {"-H", "-X", "-d"}
    headers = [value for name, value in zip(names, words[3:-1:2], strict=True) if name == "-H"]
    data = options.get("-d", "").encode() or None
    asked = urllib.request.Request(words[-1], data=data, method=options.get("-X"))
    for name, _, value in (header.partition(": ") for header in headers):
        asked.add_header(name, value)
    try:
        with urllib.request.urlopen(asked, timeout=60) as reply:
            body = reply.read()
    except urllib.error.HTTPError as error:
        body = error.read()
    return json.loads(body) if body else None


def test_the_pages_go_into_an_app(write, run):
    write("jobs.md")
    run(
        "import shop\napp = shop.create_app()\n"
        "assert app.test_client().get('/jobs/').status_code in (303, 401)",
        sys.executable,
        "-c",
    )
    run("import rqjobs\nrqjobs.web.create_app()", sys.executable, "-c")
    assert (
        run("import sys, rqjobs; print('flask' in sys.modules)", sys.executable, "-c") == "False\n"
    )


def test_the_two_lines_of_the_procfile(folder, spawn, redis, server, port, write, eventually):
    """honcho runs the lines. The web process logs its address, because honcho may choose the port."""
    write("README.md")
    (lines,) = blocks("README.md", "procfile")
    assert blocks("deploying.md", "procfile") == [lines]
    assert lines == (ROOT / "Procfile").read_text(encoding="utf-8")
    (folder / "Procfile").write_text(lines)
    process = spawn("honcho", "start", env={"REDIS_URL": server, "RQJOBS_MODULES": "jobs"})
    eventually(
        lambda: f"rqjobs: serving at http://127.0.0.1:{port}/" in process.output(), timeout=60
    )
    eventually(lambda: "Listening on" in process.output(), timeout=60)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60) as reply:
        assert reply.read() == b"ok\n"
    process.terminate()
    process.wait(60)


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_is_a_program_and_runs_somewhere(page):
    run_by_others = {"wsgi.py"}  # test_serving.py
    run_here = {
        "jobs.py",
        "app.py",
        "tasks.py",
        "emails.py",
        "shop.py",
        "mailing.py",
        "prices.py",
        "orders.py",
        "tracing.py",
        "signups.py",
        "test_signups.py",
        "test_with_unittest.py",
        *LOOP_FILES,
    }
    programs = {
        "README.md": 0,
        "jobs.md": 2,
        "schedules.md": 1,
        "guarantees.md": 1,
        "results.md": 1,
        "hooks.md": 1,
        "loops.md": 1,
        "logs.md": 1,
    }
    for code in blocks(page, "python"):
        compile(code, page, "exec")
    own_tests = {"access.md", "policies.md", "flask.md", "flows.md", "transactions.md"}
    if page not in {*NOT_RUN, *own_tests}:
        names = [file_name(code) for code in blocks(page, "python")]
        assert set(filter(None, names)) <= run_here | run_by_others
        assert names.count(None) == programs.get(page, 0), "a block that no test runs"


def test_the_flask_page_shows_the_files_of_the_example():
    """`make example` runs these files."""
    shown = set()
    for code in blocks("flask.md", "python") + blocks("flask.md", "procfile"):
        name, _, excerpt = code.partition("\n")
        path = EXAMPLE / name.removeprefix("# ")
        assert excerpt in path.read_text(encoding="utf-8"), name
        shown.add(path)
    code = {path for path in (EXAMPLE / "shop").glob("*.py") if "jobs" in path.read_text()}
    assert code <= shown


def test_every_shell_line_is_a_command():
    """`rqjobs …` with known options, or a `make` target; the few others are run above."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", text, flags=re.M))
    others = {"pip", "printf", "flask", "curl", "pytest", ".venv/bin/python", "python3"}
    example = {"cd", ".venv/bin/pip", ".venv/bin/flask"}  # as `make example`
    for page, words in shell_lines():
        if words[:1] == ["rqjobs"]:
            parse(cli.main, words[1:])
        elif words[:1] == ["make"]:
            assert len(words) == 1 or words[1] in targets, (page, words)
        else:
            assert words[0] in others | example, (page, words)


def parse(command, words):
    """Read a command line as click does, without running it."""
    context = command.make_context(command.name, words, resilient_parsing=False)
    rest = [*context._protected_args, *context.args] if isinstance(command, click.Group) else []
    if rest:
        name, found, words = command.resolve_command(context, rest)
        assert found, name
        parse(found, words)


def test_every_command_is_in_the_table():
    table = re.findall(r"^\| `rqjobs (\w+)", PAGES["deploying.md"], flags=re.M)
    assert sorted(table) == sorted(set(cli.main.commands) - {"demo"})
    for group, names in re.findall(
        r"^\| `rqjobs (failed|schedules|delayed)` \|[^;]*; (.*?) \|$", PAGES["deploying.md"], re.M
    ):
        assert set(re.findall(r"`(\w+)`", names)) == set(cli.main.commands[group].commands)


SETTINGS_ROW = re.compile(r"^\| `([A-Z_]+)` \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", re.M)


def test_every_setting_is_in_the_table_with_its_default():
    rows = {row[0]: row[1:] for row in SETTINGS_ROW.findall(PAGES["settings.md"])}
    assert list(rows) and set(rows) == set(config.SETTINGS)
    for name, (kind, default, meaning) in rows.items():
        assert meaning.endswith(".")
        value = as_text(default_of(name))
        assert default == f"`{value}`" if value else not re.fullmatch("`[^`]*`", default), name
        if isinstance(default_of(name), int):
            assert kind in ("seconds", "bytes", "number of jobs", "port"), name


def test_the_example_env_file_has_every_setting_with_its_default():
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    lines = dict(re.findall(r"^#([A-Z_]+)=(.*)$", example, flags=re.M))
    assert set(lines) == set(config.SETTINGS)
    for name, value in lines.items():
        default = as_text(default_of(name))
        assert not default or value == default, name
    config.Config.from_env(lines)


def default_of(name):
    (default,) = [f.default for f in fields(config.Config) if f.name == config.SETTINGS[name][0]]
    return default


def as_text(default):
    """A default as a user writes it; "" if there is none."""
    if isinstance(default, tuple):
        return ",".join(default)
    return "" if default is None else str(default)


def test_every_lua_script_is_in_the_list():
    listed = re.findall(r"^\| `(\w+\.lua)` \| [A-Z].*\. \|$", PAGES["internals.md"], flags=re.M)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "rqjobs").rglob("*.lua"))


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_link_exists(page):
    text, base = PAGES[page], ROOT if page == "README.md" else ROOT / "docs"
    outside_code = BLOCK.sub("", text)
    links = re.findall(r"\]\(([^)\s]+)\)|src(?:set)?=\"([^\"]+)\"", outside_code)
    for link in filter(None, (first or second for first, second in links)):
        path, _, anchor = link.partition("#")
        if "//" in link:
            continue
        assert (base / path).exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", PAGES[Path(path).name], flags=re.M)
            assert anchor in {re.sub(r"[^\w-]", "", t.lower().replace(" ", "-")) for t in titles}
    for name in re.findall(r"`([\w./-]+\.(?:py|lua))`", outside_code):
        if "/" in name:
            assert (ROOT / name).exists() or (ROOT / "rqjobs" / name).exists(), name
        else:
            mentioned = [*(ROOT / "rqjobs").rglob(name)]
            assert mentioned or any(file_name(code) == name for code in python_blocks()), name


def python_blocks():
    return [code for page in PAGES for code in blocks(page, "python")]
