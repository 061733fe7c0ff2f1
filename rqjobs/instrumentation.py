"""Whether somebody wraps RQ's methods (sentry-sdk, OpenTelemetry, ddtrace and the like do), and where ours let them in.

Several of our methods do in one step what RQ's do in many, and do not call them. Where RQ's were replaced, ours run
inside of whatever replaced them, so that it sees each job and may write into its `meta`. Nothing is paid otherwise.
"""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

import redis
import rq
from rq.job import JobStatus


def is_wrapped(owner: type, *names: str) -> bool:
    """Whether one of these methods of an RQ class is not RQ's own function, whoever was imported first."""
    for name in names:
        function = getattr(owner, name)
        if function not in _rq_functions:
            if type(function) is not FunctionType or not function.__globals__[
                "__name__"
            ].startswith("rq."):
                return True
            _rq_functions.add(function)
    return False


_rq_functions: set[FunctionType] = set()  # those that were found to be RQ's own


class WrappedQueue(rq.Queue):
    """RQ's methods, called for the sake of what wraps them: where they would write to Redis, `write` is called."""

    is_written = False

    def __init__(self, queue: rq.Queue, write: Callable[[], None]):
        vars(self).update(vars(queue), connection=_NullConnection(), write=write)

    def setup_dependencies(self, job: Any, pipeline: Any = None) -> Any:
        job = super().setup_dependencies(job)
        if (
            job.get_status(refresh=False) == JobStatus.DEFERRED
        ):  # as RQ has read it; `write` decides
            self._enqueue_async_job(job)
        return job

    def _enqueue_async_job(self, job: Any, *args: Any, **options: Any) -> Any:
        if not self.is_written:
            self.write()  # type: ignore[attr-defined]
        self.is_written = True
        return job

    _enqueue_sync_job = _enqueue_async_job

    def _persist_job(self, job: Any, *args: Any, **options: Any) -> None:
        self.write()  # type: ignore[attr-defined]


class ObservedQueue(WrappedQueue):
    """The same for a job that is not enqueued now, or not alone: only what wraps `enqueue_job` itself sees it."""

    def __init__(self, queue: rq.Queue):
        super().__init__(queue, lambda: None)

    def _enqueue_job(self, job: Any, *args: Any, **options: Any) -> Any:
        return job


class _NullConnection:
    """A client and its pipeline, for what RQ writes before or behind `write`."""

    def pipeline(self) -> _NullConnection:
        return self

    def sadd(self, *args: Any, **options: Any) -> None:
        pass

    execute = execute_command = expire = hset = multi = watch = zadd = sadd


class ClaimedConnection(redis.Redis):
    """The connection of a claimed job while RQ's `perform` begins with a PERSIST, which the claim has done: Redis being
    away in that moment is no reason for the job to fail."""

    def __init__(self, own: redis.Redis):
        super().__init__(connection_pool=own.connection_pool)
        self.own = own

    def persist(self, name: Any) -> Any:
        return True


def run_isolated(run: Callable[..., Any], *args: Any) -> None:
    """Run one job in a context of its own: what it sets in context variables, or gives to sentry-sdk (tags,
    breadcrumbs, user), does not reach the next one."""
    sentry: Any = sys.modules.get("sentry_sdk")
    if sentry is not None and hasattr(sentry, "isolation_scope"):
        contextvars.copy_context().run(_in_scope, sentry, run, *args)
    else:
        contextvars.copy_context().run(run, *args)


def _in_scope(sentry: Any, run: Callable[..., Any], *args: Any) -> None:
    with sentry.isolation_scope():
        run(*args)
