"""Support for libraries that wrap RQ's methods: sentry-sdk, OpenTelemetry, ddtrace and others.

Several methods of rqjobs do in one step what RQ's do in many, and do not call RQ's. Where RQ's
method is wrapped, rqjobs calls the wrapper, so that it sees each job and can write into its `meta`.
There is no cost if nothing is wrapped.
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
    """Whether one of these methods of an RQ class is not RQ's own, in any order of imports."""
    for name in names:
        function = getattr(owner, name)
        if function not in _rq_functions:
            if type(function) is not FunctionType:
                return True
            if not function.__globals__["__name__"].startswith("rq."):
                return True
            _rq_functions.add(function)
    return False


_rq_functions: set[FunctionType] = set()  # checked, and RQ's own


class WrappedQueue(rq.Queue):
    """RQ's methods, called for their wrappers. In place of writing to Redis they call `write`."""

    is_written = False

    def __init__(self, queue: rq.Queue, write: Callable[[], None]):
        vars(self).update(vars(queue), connection=_NullConnection(), write=write)

    def setup_dependencies(self, job: Any, pipeline: Any = None) -> Any:
        job = super().setup_dependencies(job)
        # This is the status that RQ has read. `write` decides whether the job is deferred.
        if job.get_status(refresh=False) == JobStatus.DEFERRED:
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
    """The same for a job that is enqueued later, or with others: only `enqueue_job` is called."""

    def __init__(self, queue: rq.Queue):
        super().__init__(queue, lambda: None)

    def _enqueue_job(self, job: Any, *args: Any, **options: Any) -> Any:
        return job


class _NullConnection:
    """A client and pipeline that do nothing, for RQ's commands before and after `write`."""

    def pipeline(self) -> _NullConnection:
        return self

    def sadd(self, *args: Any, **options: Any) -> None:
        pass

    execute = execute_command = expire = hset = multi = watch = zadd = sadd


class ClaimedConnection(redis.Redis):
    """The connection of a claimed job at the start of RQ's `perform`, without its PERSIST.

    The claim has persisted the job. An outage of Redis at this moment must not fail the job.
    """

    def __init__(self, own: redis.Redis):
        super().__init__(connection_pool=own.connection_pool)
        self.own = own

    def persist(self, name: Any) -> Any:
        return True


def run_isolated(run: Callable[..., Any], *args: Any) -> None:
    """Run one job in its own context.

    Its context variables, and the tags, breadcrumbs and user that it gives to sentry-sdk, do not
    reach the next job.
    """
    sentry: Any = sys.modules.get("sentry_sdk")
    if sentry is not None and hasattr(sentry, "isolation_scope"):
        contextvars.copy_context().run(_in_scope, sentry, run, *args)
    else:
        contextvars.copy_context().run(run, *args)


def _in_scope(sentry: Any, run: Callable[..., Any], *args: Any) -> None:
    with sentry.isolation_scope():
        run(*args)
