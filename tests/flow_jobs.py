"""Job functions of the tests of flows."""

from __future__ import annotations

import os
import signal
import time

from rq import get_current_job

from rqjobs import Discard, Snooze, job
from rqjobs.flows import Failed


@job
def add(value: int, more: int = 0) -> int:
    return value + more


def double(value: int) -> int:
    return 2 * value


@job
def total(values: list[int]) -> int:
    get_current_job().connection.incr("totals")
    return sum(values)


def nothing(value=None) -> None:
    return None


def as_object(value) -> object:
    return object()


def describe(value) -> str:
    if isinstance(value, Failed):
        return f"failed: {value.error}"
    if isinstance(value, list):
        return ", ".join(map(describe, value))
    return repr(value)


def fail_until(name: str, value=None):
    """Fail until a test sets `name` in Redis."""
    if not get_current_job().connection.exists(name):
        raise ValueError(f"{name} is not set")
    return value


def discard_it(value=None):
    raise Discard("no longer needed")


def slow(value: int) -> int:
    time.sleep(0.01)
    return value


def die_once(name: str, value: int) -> int:
    """Kill the process at the first run."""
    if get_current_job().connection.incr(f"died:{name}") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def snooze_once(value: int) -> int:
    if get_current_job().connection.incr("snoozed") == 1:
        raise Snooze(0)
    return value


@job(unique="args")
def only_one(value: int) -> int:
    return value


@job(limit=1)
def one_at_a_time(value: int) -> int:
    return value


def no_arguments():
    return 1


def size(text: str) -> int:
    return len(text)
