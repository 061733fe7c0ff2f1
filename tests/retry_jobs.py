"""Job functions with retry rules, for the tests."""

from __future__ import annotations

import time
from datetime import timedelta

from rq import get_current_job

from rqjobs import Discard, Retry, RetryIn, Snooze, backoff, job

AT_ONCE = {"base": 1, "cap": 0}


class RateLimited(Exception):
    def __init__(self, retry_after=None):
        super().__init__("slow down")
        self.retry_after = retry_after


class AuthError(Exception):
    pass


def count(name):
    """The number of this run of all jobs with this name, from 1."""
    return get_current_job().connection.incr(f"runs:{name}")


def fail(name, times):
    if count(name) <= times:
        raise RateLimited
    return name


@job(retry=backoff(3, **AT_ONCE))
def thrice(name, times):
    return fail(name, times)


@job(retry=backoff(3, **AT_ONCE), retry_on=(RateLimited, TimeoutError), discard_on=(AuthError,))
def picky(name, error, times=1):
    if count(name) <= times:
        raise {
            "rate": RateLimited,
            "auth": AuthError,
            "timeout": TimeoutError,
            "value": ValueError,
        }[error]("no")
    return name


@job(retry={TimeoutError: backoff(1, **AT_ONCE), Exception: Retry(max=3)})
def by_exception(name, *errors):
    run = count(name)
    if run <= len(errors):
        raise {"timeout": TimeoutError, "value": ValueError}[errors[run - 1]]
    return name


@job(retry_for=timedelta(hours=2))
def for_hours(name, times):
    return fail(name, times)


@job(retry=backoff(3, base=60, jitter=False))
def slowly(name, retry_after=None):
    count(name)
    raise RateLimited(retry_after)


@job(retry=backoff(1, **AT_ONCE))
def snooze(name, times, seconds=0.01):
    if count(name) <= times:
        raise Snooze(seconds)
    return name


@job(retry=backoff(3, **AT_ONCE))
def discard(name="discard"):
    count(name)
    raise Discard("nothing to do")


@job(retry=backoff(2, **AT_ONCE))
def retry_in(name, times=99, seconds=0):
    if count(name) <= times:
        raise RetryIn(seconds)
    return name


def retry_in_without_rules(name):
    count(name)
    raise RetryIn(0)


async def snooze_later(name):
    if count(name) == 1:
        raise Snooze(0)
    return name


@job(retry=backoff(1, **AT_ONCE), timeout=2)
def stubborn(name, seconds=30):
    """Work on after the time limit, on the first run only."""
    if count(name) > 1:
        return name
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(0.05)
        except BaseException:
            continue


@job(retry=backoff(4, base=1, cap=0.05))
def storm(name):
    """Fail three times for each job, then succeed, however often."""
    current = get_current_job()
    if current.connection.hincrby(f"storm:{name}", current.id, 1) < 4:
        raise RateLimited
    return name


class HostileError(Exception):
    @property
    def retry_after(self):
        raise SystemExit

    def __str__(self):
        raise SystemExit


@job(retry=backoff(1, **AT_ONCE))
def hostile(name):
    count(name)
    raise HostileError


def boom_once(job, connection, result):
    if connection.incr("booms") == 1:
        raise ValueError("in the callback")


def hang_in_callback(job, connection, kind, error, trace):
    """Hang beyond the time limit."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            time.sleep(0.05)
        except BaseException:
            continue


def note_failure(job, connection, kind, error, trace):
    connection.rpush("failures", f"{job.id}:{kind.__name__}:{job.retries_left}")


def note_success(job, connection, result):
    connection.rpush("successes", job.id)


def handle_exception(job, kind, error, trace):
    job.connection.rpush("handled", f"{job.id}:{kind.__name__}")
