"""Job functions that log, for the tests of kept log lines."""

from __future__ import annotations

import logging
import logging.config
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

from rq import get_current_job

import rqjobs
from rqjobs.broker import scripts

log = logging.getLogger(__name__)


class Unprintable:
    def __str__(self):
        raise OSError("no text")


def quiet():
    log.debug("below the level")


def speak(*words: str):
    for word in words:
        log.info("said %s", word)


def levels():
    log.debug("a debug line")
    log.info("an info line")
    log.warning("a warning line")
    try:
        raise ValueError("the cause")
    except ValueError:
        log.exception("an error line")


def hostile():
    log.info("\x1b[31mred\x1b[0m and \x00 and \ud800")
    log.info("two\nlines")
    log.info("%d items", "seven")
    log.info(Unprintable())
    log.info("x" * 1_000_000 + " the end")
    log.info("done")


def flood(lines: int):
    for number in range(lines):
        log.info("line %d of the flood", number)


def leave_a_thread():
    """Return, and log from a thread as long as the process lives."""

    def talk():
        while True:
            log.info("of an earlier job")
            time.sleep(0.001)

    log.info("first")
    threading.Thread(target=talk, daemon=True).start()


def use_threads():
    def talk():
        log.info("in a thread")

    thread = threading.Thread(target=talk)
    thread.start()
    thread.join()
    time.sleep(0.05)  # the other job's thread logs meanwhile
    log.info("second")


def crash_once(name: str):
    """Log and die at once in the first run; log in the second."""
    runs = get_current_job().connection.incr(name)
    log.info("run %d", runs)
    if runs == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def end_in_a_full_redis(way: str):
    """Log a last line that Redis refuses, and end: by a crash, or between two rows of a loop."""
    connection = get_current_job().connection
    if connection.incr("rq:runs") > 1:
        return
    for row in rqjobs.resumable(range(10**9), every=60):
        if row == 0:
            connection.config_set("maxmemory", 1)
            log.info("the last line of run 1")
            os.kill(os.getpid() if way == "crash" else os.getppid(), WAYS[way])


WAYS = {"crash": signal.SIGKILL, "stop": signal.SIGTERM}


def fail_until(name: str, runs: int):
    number = get_current_job().connection.incr(name)
    log.info("run %d", number)
    if number < runs:
        raise RuntimeError("not yet")


def hold(gate: str):
    """Log, and wait until the test opens the gate."""
    connection = get_current_job().connection
    log.info("waits")
    connection.rpush(f"{gate}:reached", os.getpid())
    connection.blpop([f"{gate}:open"], timeout=60)
    log.info("goes on")


def print_lines():
    print("a printed line")
    print("10 %\r20 %\r", end="")
    print("100 %")
    sys.stdout.write("no end")
    log.info("a logged line")


def wait_for_file(folder: str):
    """Log, and wait without Redis until the test has made the file `open`."""
    log.info("waits")
    while not Path(folder, "open").exists():
        time.sleep(0.02)
    for _ in range(3):
        log.info("goes on")
        time.sleep(0.2)  # the lines are sent one by one, if they can be
    Path(folder, "over").touch()


def log_forever():
    while True:
        log.info("goes on")


def fork():
    """Log in a child, whose lines are not kept, and then here."""
    log.info("before")
    child = multiprocessing.get_context("fork").Process(target=flood, args=(1000,))
    child.start()
    child.join()
    log.info("after %d", child.exitcode)


def configure():
    """Set `logging` up in two ways, which must work as without a worker."""
    root = logging.getLogger()
    nothing = {"level": "WARNING", "handlers": []}
    logging.config.dictConfig({"version": 1, "root": nothing, "disable_existing_loggers": False})
    log.info("dropped by the root logger")
    log.warning("after dictConfig")
    assert not root.handlers
    logging.basicConfig(level="INFO", format="basic: %(message)s")
    assert len(root.handlers) == 1
    log.info("after basicConfig")


def speak_after_a_restart_of_redis(loaded: int, fails: bool):
    """Log after Redis has lost its scripts, and has only the first of a worker's again."""
    connection = get_current_job().connection
    connection.script_flush()
    for script in scripts.WORKER_SCRIPTS[:loaded]:
        connection.script_load(script.source)
    log.info("said before the outcome")
    if fails:
        raise ValueError("so that the outcome is a failure")
