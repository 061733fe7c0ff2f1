"""`rqjobs top`, in a real terminal and without one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
import redis as redis_py
import sample_jobs
from click.testing import CliRunner

import rqjobs
from rqjobs.broker import keys, leases
from rqjobs.cli import main, terminal
from rqjobs.cli import top as command
from rqjobs.maintenance.attention import Action, Do, Finding, Level
from rqjobs.overview import Reader

TOP = [sys.executable, "-m", "rqjobs", "top"]
ENTERED, LEFT = b"\x1b[?1049h", b"\x1b[?1049l"
# What a shell with job control does: a group of its own in the foreground, and wait for its stop.
SHELL = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
child = subprocess.Popen(sys.argv[1:], process_group=0) if sys.version_info >= (3, 11) else (
    subprocess.Popen(sys.argv[1:], preexec_fn=os.setpgrp))
os.tcsetpgrp(0, child.pid)
_, status = os.waitpid(child.pid, os.WUNTRACED)
assert os.WIFSTOPPED(status), status
os.tcsetpgrp(0, os.getpgrp())
print("stopped", flush=True)
sys.stdin.readline()
os.tcsetpgrp(0, child.pid)
os.kill(child.pid, signal.SIGCONT)
_, status = os.waitpid(child.pid, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


class Terminal:
    """A program in a terminal of its own, and all that it has written there."""

    def __init__(self, arguments, environ, columns=100, lines=30):
        self.master, self.slave = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(self.slave)
        self.written = b""
        self.process = subprocess.Popen(
            arguments,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=environ | {"TERM": "xterm"},
            preexec_fn=self._take_terminal,
        )

    @staticmethod
    def _take_terminal():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def resize(self, columns, lines):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys):
        self.written = b""
        os.write(self.master, keys)

    def read(self, seconds=0.05):
        while select.select([self.master], [], [], seconds)[0]:
            try:
                self.written += os.read(self.master, 65536)
            except OSError:
                return self.written
            seconds = 0
        return self.written

    def wait_for(self, text, timeout=120):
        deadline = time.monotonic() + timeout
        while text not in self.read():
            assert time.monotonic() < deadline, (text, self.written)

    def wait_for_frame(self, is_right, timeout=120):
        """Wait until the last screenful that has come whole is right; returns it."""
        deadline = time.monotonic() + timeout
        while True:
            frames = re.findall(rb"\x1b\[H(.*?)\x1b\[J", self.read(), re.S)
            if frames and is_right(frames[-1]):
                return frames[-1]
            assert time.monotonic() < deadline, self.written

    def is_as_before(self):
        return termios.tcgetattr(self.slave) == self.before and LEFT in self.read()

    def end(self):
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminals(environ):
    opened = []

    def open_one(arguments, **options):
        opened.append(Terminal(arguments, environ, **options))
        return opened[-1]

    yield open_one
    for one in opened:
        one.end()


@pytest.fixture
def busy(redis):
    """A queue with a job, and a worker with another one."""
    job = rqjobs.enqueue(sample_jobs.say, "\x1b[2Jhello")
    rqjobs.queue("low").enqueue(sample_jobs.ok)
    redis.hset(job.key, mapping={"status": "started", "started_at": "2020-01-01T00:00:00.000000Z"})
    redis.delete("rq:queue:default")
    redis.sadd("rq:workers", "rq:worker:w1")
    record = {"state": "busy", "queues": "default", "current_job": job.id, "hostname": "h"}
    redis.hset("rq:worker:w1", mapping=record)
    leases.renew_lease(redis, "w1", {"pid": 1, "memory": 50_000_000, "per_minute": "7.5"})
    redis.zadd(keys.LEASES, {"w1": time.time() + 600})  # a busy machine may take long
    return job


def test_the_screen_follows_keys_and_size_and_is_left_as_it_was(terminals, busy):
    screen = terminals(TOP)
    screen.wait_for(b"queues by waiting")
    assert ENTERED in screen.written and b"\x1b[2Jhello" not in screen.written
    for text in (b"low", b"w1", b"say(", b"7.5", b"50 MB", b"No worker for low"):
        assert text in screen.written, (text, screen.written)
    screen.press(b"s")
    screen.wait_for(b"queues by oldest")
    screen.press(b"p")
    screen.wait_for(b"paused")
    screen.press(b"p")
    rqjobs.queue("brand-new").enqueue(sample_jobs.ok)
    screen.wait_for(b"brand-new")
    screen.resize(40, 12)
    screen.press(b"s")
    last = screen.wait_for_frame(lambda frame: frame.count(b"\r\n") == 11)
    assert "…".encode() in last
    assert all(terminal.width_of(text) <= 40 for text in plain(last).split("\n"))
    screen.press(b"q")
    assert screen.process.wait(120) == 0 and screen.is_as_before()


def plain(data):
    text = data.decode().replace("\r", "")
    for code in ("K", "J", "0m", "1m", "2m", "7m", "31m", "33m", "H"):
        text = text.replace(f"\x1b[{code}", "")
    return text.partition("\x1b")[0]


def test_sigterm_leaves_the_screen(terminals, redis):
    screen = terminals(TOP)
    screen.wait_for(b"QUEUE")
    screen.process.terminate()
    assert screen.process.wait(120) == 143 and screen.is_as_before()


def test_an_exception_leaves_the_screen(terminals, redis):
    code = "from rqjobs.cli.terminal import Screen\nwith Screen():\n  raise OSError('the reason')"
    screen = terminals([sys.executable, "-c", code])
    screen.wait_for(b"the reason")
    assert screen.process.wait(120) == 1 and screen.is_as_before()
    assert screen.written.index(LEFT) < screen.written.index(b"the reason")


def test_ctrl_z_gives_the_terminal_back_until_it_is_continued(terminals, redis):
    screen = terminals([sys.executable, "-c", SHELL, *TOP])
    screen.wait_for(b"QUEUE")
    screen.press(b"\x1a")
    screen.wait_for(b"stopped")
    assert screen.is_as_before()
    screen.press(b"\n")
    screen.wait_for(ENTERED)
    screen.wait_for(b"QUEUE")
    screen.press(b"q")
    assert screen.process.wait(120) == 0 and screen.is_as_before()


def test_an_outage_of_redis_is_shown_and_keys_still_work(terminals, environ):
    environ["REDIS_URL"] = "redis://127.0.0.1:1/0"
    screen = terminals(TOP)
    screen.wait_for("stale since …".encode())
    screen.press(b"q")
    assert screen.process.wait(120) == 0 and screen.is_as_before()


def test_without_a_terminal_one_snapshot_is_printed(busy):
    done = CliRunner().invoke(main, ["top"])
    assert done.exit_code == 0 and "\x1b" not in done.output
    lines = done.output.splitlines()
    assert any(line.startswith("low ") for line in lines)
    (worker,) = [line for line in lines if line.startswith("w1 ")]
    assert "busy" in worker and "say(" in worker and " d  " in worker


def test_a_snapshot_as_json(busy):
    found = json.loads(CliRunner().invoke(main, ["top", "--json"]).output)
    (worker,) = found["workers"]
    assert worker["job"]["id"] == busy.id and worker["job"]["elapsed"] > 1e6
    assert {queue["name"]: queue["queued"] for queue in found["queues"]}["low"] == 1
    (unserved,) = [one for one in found["attention"] if one["key"] == "unserved low"]
    assert unserved["command"] == "rqjobs worker low" and unserved["level"] == "loss"
    assert all(queue["incoming_per_minute"] >= 0 for queue in found["queues"])


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        ("abc", 5, "abc  "),
        ("abcdef", 4, "abc…"),
        ("日本語", 4, "日… "),
        ("é", 2, "é "),
        ("a", 0, ""),
    ],
)
def test_a_text_fits_its_columns(text, columns, shown):
    assert terminal.fit(text, columns) == shown and terminal.width_of(shown) == columns


@pytest.mark.parametrize(
    ("do", "name", "detail", "shown"),
    [
        (Do.OPEN_ALERTS, "", "", "! 2 more"),
        (Do.OPEN_ALERTS, "", "of today", "! 2 more: of today"),
        (Do.RUN, "rqjobs worker", "", "! 2 more: rqjobs worker"),
        (Do.RUN, "rqjobs worker", "of today", "! 2 more: rqjobs worker   of today"),
    ],
)
def test_a_finding_is_one_line(do, name, detail, shown):
    finding = Finding("key", Level.LOSS, "2 more", detail, Action(do, "See", name))
    assert command._finding_line(finding).text == shown


def test_many_queues_leave_room_for_workers(busy, redis, monkeypatch):
    redis.sadd("rq:queues", *(f"rq:queue:c{number}" for number in range(500)))
    reader = Reader()
    view = command.read(reader)
    trips = []
    execute = redis_py.client.Pipeline.execute
    monkeypatch.setattr(
        redis_py.client.Pipeline,
        "execute",
        lambda *args, **kw: (trips.append(1), execute(*args, **kw))[1],
    )
    view = command.read(reader)
    assert len(trips) <= 3
    for rows in (0, 1, 2, 5, 20, 600):
        lines = command._lines(view, command.Order.NAME, 80, rows)
        assert len(lines) <= rows
    texts = [line.text for line in command._lines(view, command.Order.NAME, 80, 20)]
    assert any(text.startswith("w1") for text in texts)
    assert any("more queues" in text for text in texts)
