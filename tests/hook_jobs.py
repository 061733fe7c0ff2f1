"""Job functions, and hooks that note their calls in Redis. A test registers the hooks."""

from __future__ import annotations

import contextlib
import os
import time

from rq import Retry

import rqjobs
from rqjobs import Discard, RetryIn, Snooze, backoff, job

EVENTS = "events"
HOOKS = ("before_enqueue", "after_enqueue", "before_run", "around_run", "after_run")
HOOKS += ("on_retry", "on_failure")


def _note(name, job, error=None):
    connection = rqjobs.client()
    connection.rpush(EVENTS, f"{name} {job.id} {type(error).__name__}")
    connection.sadd("pids", os.getpid())


def _before_enqueue(job):
    job.meta["stamp"] = job.id


def _after_enqueue(job):
    assert rqjobs.client().hget(job.key, "meta")
    _note("after_enqueue", job)


def _before_run(job):
    _note("before_run", job)


def _around_run(job):
    _note("enter", job)
    error = None
    try:
        yield
    except BaseException as raised:
        error = raised  # it is not raised again, which must not hide it
    _note("leave", job, error)


def _after_run(job, error):
    _note("after_run", job, error)


def _on_retry(job, error):
    _note("on_retry", job, error)


def _on_failure(job, error):
    _note("on_failure", job, error)
    if job.func_name == "hook_jobs.ignore_limit":
        raise SystemExit("an exit in a hook")


def register_all():
    for name in HOOKS:
        getattr(rqjobs.hooks, name)(globals()[f"_{name}"])


@contextlib.contextmanager
def registered():
    """Register the hooks of this module."""
    register_all()
    try:
        yield
    finally:
        for name in HOOKS:
            getattr(rqjobs.hooks, name).remove(globals()[f"_{name}"])


if "HOOK_JOBS" in os.environ:
    register_all()


def ok():
    return "ok"


@job(retry=backoff(1, base=1, cap=0))
def fail():
    raise ValueError("why")


@job(retry=Retry(max=1))
def ask(name):
    """Ask once for what `name` says."""
    if rqjobs.client().incr(f"runs:{name}") > 1:
        return name
    if name == "return":
        return Retry(max=1)
    raise {"retry": RetryIn, "snooze": Snooze, "discard": Discard}[name](0)


def ignore_limit():
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)
