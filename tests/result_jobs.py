"""Job functions whose result or exception a test waits for."""

from __future__ import annotations

import subprocess
from json import JSONDecodeError  # has a constructor of its own
from zipfile import BadZipFile

import rq.exceptions
import sample_jobs

import rqjobs
from rqjobs import Discard, Retry, backoff, job


class CardRefused(Exception):
    """Has the constructor of `Exception`."""


class Declined(CardRefused):
    """Has a constructor of its own, and what it is made of is not its argument."""

    def __init__(self, code: int, then: str = "") -> None:
        super().__init__(f"code {code}")
        if then:
            subprocess.run(then, shell=True, check=True)


class Odd(Exception):
    def __str__(self):
        raise RuntimeError("no text")


RAISED = {
    "defined": lambda: CardRefused("card", 42, None),
    "imported": lambda: BadZipFile("not a zip"),
    "builtin": lambda: KeyError("key"),
    "file": lambda: FileNotFoundError(2, "no such file", "name"),
    "unplain": lambda: ValueError(["a", "list"]),
    "long": lambda: ValueError("x" * 100_000),
    "own constructor": lambda: Declined(7),
    "not imported by that name": lambda: rq.exceptions.NoSuchJobError("gone"),
    "json": lambda: JSONDecodeError("bad", "{", 1),
    "exit": lambda: SystemExit(3),
    "stop": lambda: StopIteration("stop"),
    "odd": lambda: Odd(),
    "faked": lambda: ValueError("a\n\nTraceback (most recent call last):\nPermissionError: b"),
}


def fail(name: str):
    raise RAISED[name]()


@job(retry=backoff(3, base=1, cap=0))
def flaky(name: str, failures: int):
    return sample_jobs.flaky(name, failures)


@job(retry=backoff(1, base=1, cap=0))
def fail_at_last():
    raise CardRefused("at last")


def ask_too_often():
    return Retry(max=1)


def discard():
    raise Discard("no longer needed")


def ok(value=None):
    return value


def as_object():
    return object()


def repeat_by_number(name: str):
    return rqjobs.get_current_job().connection.incr(name)


def hang(gate: str):
    return sample_jobs.hang(gate)


def wait_for(function: str, *args):
    """Enqueue another job in the queue `high`, and wait for it."""
    return rqjobs.queue("high").enqueue(f"{__name__}.{function}", *args).wait(60)


def wait_for_myself():
    return rqjobs.get_current_job().wait(60)
