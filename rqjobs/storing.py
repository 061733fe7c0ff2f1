"""Storing jobs: the one step in which the jobs of an `enqueue` reach Redis."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol

import redis
from rq.job import JobStatus

from rqjobs import hooks
from rqjobs.broker import enqueueing, scripts
from rqjobs.broker.enqueueing import Enqueued, Placement

# (connection, placements, their jobs in the same order)
Store = Callable[[redis.Redis, list[Placement], list[Any]], None]
Clock = Callable[[], float]  # Unix seconds


class Postponer(Protocol):
    """Keeps jobs, and stores them later. `is_over`: it takes no more."""

    is_over: bool

    def store(
        self, connection: redis.Redis, placements: list[Placement], jobs: list[Any]
    ) -> None: ...


# The first to get the jobs that are enqueued in this context. It may keep them.
postponer: ContextVar[Postponer | None] = ContextVar("rqjobs_postponer", default=None)


def current_postponer() -> Postponer | None:
    """The postponer of this context, if there is one.

    A task or a thread has a copy of its creator's context, and may outlast the creator's block.
    """
    found = postponer.get()
    return None if found is None or found.is_over else found


def store(connection: redis.Redis, placements: list[Placement], jobs: list[Any]) -> None:
    """Store jobs in one step, or give them to the replacement of Redis (`replaced_by`).

    Within a `rqjobs.transaction` they wait for its commit first.

    Raises:
        DuplicateJob: a job has `on_conflict="raise"` and its key is taken. Nothing is stored.
    """
    keeper = current_postponer()
    if keeper is None:
        _stores[-1][0](connection, placements, jobs)
    else:
        keeper.store(connection, placements, jobs)


def store_in_redis(connection: redis.Redis, placements: list[Placement], jobs: list[Any]) -> None:
    """Store jobs in Redis, and let them know how they are stored."""
    _take_outcomes(enqueueing.enqueue(connection, placements), jobs)
    call_hooks(jobs)


def call_hooks(jobs: list[Any]) -> None:
    """Call the hooks `after_enqueue` for the jobs that are stored."""
    if hooks.after_enqueue.functions:
        for job in jobs:
            if getattr(job, "existing", None) is None:
                hooks.after_enqueue.call(job)


_stores: list[tuple[Store, Clock | None]] = [(store_in_redis, None)]  # the last one is in use


@contextlib.contextmanager
def replaced_by(replacement: Store, clock: Clock | None = None) -> Iterator[None]:
    """Give the jobs of this process to `replacement` instead of Redis.

    `clock`: the time from which delays count, for a replacement without a Redis; None: Redis's.
    """
    entry = (replacement, clock)
    _stores.append(entry)
    try:
        yield
    finally:
        for position in reversed(range(len(_stores))):
            if _stores[position] is entry:
                del _stores[position]
                break


def is_replaced() -> bool:
    """Whether jobs go to something else than Redis."""
    return _stores[-1][0] is not store_in_redis


def time_now(connection: redis.Redis) -> float:
    """The Unix time from which the delays of jobs count."""
    clock = _stores[-1][1]
    if clock is None:
        return scripts.redis_time(connection)
    return clock()


def _take_outcomes(enqueued: Enqueued, jobs: list[Any]) -> None:
    for job in jobs:
        if job.id in enqueued.deferred:
            job._status = JobStatus.DEFERRED
    others: dict[str, list[Any]] = {}  # the ids of jobs that have the keys of these
    for position, job_id, status in enqueued.unique:
        job = jobs[position]
        if status:  # also if it has replaced the job of this id
            job._id = job_id
            job._status = JobStatus(status)
        else:
            others.setdefault(job_id, []).append(job)
    if not others:
        return
    first = next(iter(others.values()))[0]
    found = _read_jobs(list(others), first)
    for existing, (job_id, duplicates) in zip(found, others.items(), strict=True):
        for job in duplicates:
            if existing is None:  # it has ended since, and is not kept
                job._id = job_id
            job.existing = existing or job


def _read_jobs(job_ids: list[str], like: Any) -> list[Any]:
    """The jobs with these ids, of the class and the connection of `like`; None for one that is gone
    or cannot be read.
    """
    options = {"connection": like.connection, "serializer": like.serializer}
    try:
        found: list[Any] = type(like).fetch_many(job_ids, **options)
        return found
    except redis.RedisError:
        raise
    except Exception:  # anything: a hash holds foreign data
        if len(job_ids) == 1:
            return [None]
        return [job for job_id in job_ids for job in _read_jobs([job_id], like)]
