"""Data from Redis are printed and logged without control characters, in any encoding."""

from __future__ import annotations

import ast
import logging
import re
import sys
from pathlib import Path

import pytest
import sample_jobs
from click.testing import CliRunner

import rqjobs
from rqjobs import cli, every, logs, processes, schedules
from rqjobs.broker import recovery
from rqjobs.maintenance import sweep_result

EVIL = "x\x1b]0;pwned\x07\x1b[8m\u202ey\nforged\x9b2J"
OURS = re.compile(r"\x1b\[(3[123]|0)m")  # the doctor's colors


@pytest.fixture
def run(redis):
    """Run `rqjobs …` in this process as in a terminal with colors; returns (exit code, output)."""

    def go(*arguments):
        result = CliRunner().invoke(cli.main, arguments, color=True)
        assert result.exception is None or isinstance(result.exception, SystemExit), (
            result.exception
        )
        return result.exit_code, OURS.sub("", result.output)

    return go


@pytest.fixture
def hostile(redis):
    """A Redis with control characters in every name."""
    job = rqjobs.enqueue_in(600, sample_jobs.ok)
    redis.hset(job.key, "description", EVIL)
    schedules.add("one", every(hours=1), sample_jobs.note, "a")
    redis.hset("rqjobs:schedule:one", mapping={"state": EVIL, "queue": EVIL})
    redis.hset("rqjobs:schedule:one:job", "description", EVIL)
    redis.lpush("rqjobs:schedule:one:runs", f"now 1700000000.0 {EVIL.splitlines()[0]}")
    redis.sadd("rq:queues", f"rq:queue:{EVIL}")
    redis.rpush(f"rq:queue:{EVIL}", EVIL, EVIL)
    failed = rqjobs.enqueue(sample_jobs.ok)
    redis.lrem("rq:queue:default", 0, failed.id)
    redis.hset(failed.key, mapping={"origin": EVIL, "description": EVIL, "status": "failed"})
    redis.zadd("rq:failed:default", {failed.id: 9e9})
    redis.sadd("rq:workers", f"rq:worker:{EVIL}")
    redis.hset(
        f"rq:worker:{EVIL}",
        mapping={"state": EVIL, "queues": EVIL, "current_job": EVIL, "hostname": EVIL},
    )
    return failed.id


@pytest.mark.parametrize(
    "command",
    [
        "stats",
        "audit",
        "failed",
        "failed show",
        "schedules",
        "schedules show one",
        "delayed",
        "doctor",
        "recover",
        "schedules run one",
        "failed requeue --all",
    ],
)
def test_no_command_prints_control_characters(run, hostile, command):
    words = [*command.split(), *([hostile] if command == "failed show" else [])]
    _, output = run(*words)
    assert output and [line for line in output.split("\n") if not line.isprintable()] == []
    assert "forged" not in output.split("\n"), "a name must not look like a line of ours"


def test_no_log_line_has_control_characters(redis, caplog, monkeypatch):
    rqjobs.Worker(["default"])
    sweep_result.SweepResult().note(recovery.Outcome.REQUEUED, EVIL, EVIL, "claimed", EVIL)
    log = logging.getLogger("rq.worker")
    caplog.set_level(logging.WARNING, log.name)
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(log, "disabled", False)
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        log.warning("Worker %s, %d: %s", EVIL, 3, error, exc_info=True)
    formatter = logging.Formatter("%(message)s")
    for record in caplog.records:
        for line in formatter.format(record).splitlines():
            assert (line.isprintable() and line != "forged") or line.startswith("ValueError: ")
            assert "\x1b" not in line and "\x9b" not in line and "\u202e" not in line
    assert len(caplog.records) == 2
    blue = "\x1b[34mRQ's blue\x1b[39;49;00m"
    assert logs.replace_control_characters(blue) == blue


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("latin-1", r"\u65e5\u672c"),
        ("iso8859-5", r"caf\xe9"),
        ("ascii", "日本"),  # click takes ascii for a mistake
    ],
)
def test_failed_jobs_are_printed_in_any_encoding(spawn, redis, encoding, shown):
    for word in ("café", "日本", "…\x1b"):
        rqjobs.enqueue(sample_jobs.boom, word)
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    process = spawn(sys.executable, "-m", "rqjobs", "failed", env={"PYTHONIOENCODING": encoding})
    assert process.wait(60) == 0, process.output()
    assert "3 failed" in process.output() and shown in process.output()


def test_a_worker_started_by_rq_logs_in_any_encoding(spawn, redis):
    """Earlier such a log line was lost, and logging printed a traceback instead."""
    rqjobs.enqueue(sample_jobs.note, "日本")
    process = spawn(
        sys.executable,
        "-m",
        "rq.cli",
        "worker",
        "--worker-class",
        "rqjobs.Worker",
        "--burst",
        "default",
        env={"PYTHONIOENCODING": "latin-1"},
    )
    assert process.wait(60) == 0
    assert (
        r"sample_jobs.note('\u65e5\u672c')" in process.output()
        and "Logging error" not in process.output()
    )


PROGRAM = """
import rqjobs.cli, rqjobs.web, rqjobs.maintenance.doctor, sample_jobs
rqjobs.web.create_app()
rqjobs.enqueue(sample_jobs.ok)
rqjobs.Worker(["default"]).work(burst=True)
"""


def test_everything_works_in_the_c_locale(spawn, redis):
    none = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = spawn(sys.executable, "-c", PROGRAM, env=none)
    assert process.wait(60) == 0, process.output()
    process = spawn(sys.executable, "-m", "rqjobs", "stats", env=none)
    assert process.wait(60) == 0, process.output()


def reads_text(call):
    """Whether a call opens a file, or a process's output, as text."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    mode = next((str(one.value) for one in call.args if isinstance(one, ast.Constant)), "")
    # rqjobs.conversion's read_text converts a string; opener.open opens a URL.
    if ast.unparse(call.func) in ("os.open", "opener.open", "read_text", "conversion.read_text"):
        return False
    decoded = any(
        keyword.arg == "text" and ast.unparse(keyword.value) == "True" for keyword in call.keywords
    )
    return (
        decoded
        or name in ("read_text", "write_text")
        or (name in ("open", "fdopen") and "b" not in mode)
    )


def test_every_text_file_is_opened_with_an_encoding():
    wrong = []
    for path in Path(rqjobs.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(call, ast.Call)
                and reads_text(call)
                and "encoding" not in {key.arg for key in call.keywords}
            ):
                wrong.append(f"{path.name}:{call.lineno}")
    assert not wrong


def test_a_process_name_cut_within_a_character_is_read(spawn, eventually):
    """The kernel cuts process names after 15 bytes; setproctitle sets them to names of jobs."""
    code = "import ctypes, sys; ctypes.CDLL(None).prctl(15, 'abcdefghijklmné'.encode()); print(1, flush=True); input()"
    process = spawn(
        sys.executable,
        "-c",
        f"import threading; {code.replace('input()', 'threading.Event().wait()')}",
    )
    eventually(lambda: process.output())
    eventually(lambda: processes.state(process.pid) == "S", what="the wait of the process")
    assert processes.start_time(process.pid)
