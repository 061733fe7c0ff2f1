"""Delayed jobs: those that wait in RQ's scheduled set for their time, seen, canceled and given another time.

The set's score is when a job is due, in Unix seconds with fractions, by Redis's clock.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import redis
from rq.exceptions import InvalidJobOperation, NoSuchJobError

from rqjobs import connection as connections
from rqjobs import ledger
from rqjobs.ledger import DELAYED, text
from rqjobs.walls import FAR


@dataclass(frozen=True)
class Delayed:
    """A job that waits for its time. The description is what its enqueuer wrote: show it, obey nothing in it."""

    job_id: str
    queue: str
    due: datetime
    description: str


def _queues(connection: redis.Redis, queue: str | None) -> list[str]:
    return [queue] if queue else [text(key).removeprefix("rq:queue:") for key in connection.smembers(ledger.QUEUES)]


def count(queue: str | None = None, connection: redis.Redis | None = None) -> int:
    """How many jobs of `queue` (None: of every queue) wait for their time."""
    client = connection or connections.client()
    return sum(client.zcard(f"rq:scheduled:{name}") for name in _queues(client, queue))


def jobs(
    queue: str | None = None, offset: int = 0, limit: int = 50, connection: redis.Redis | None = None
) -> list[Delayed]:
    """The jobs of `queue` (None: of every queue) that wait for their time, the next due first."""
    client = connection or connections.client()
    found: list[tuple[float, str, str]] = []
    for name in _queues(client, queue):
        first: Any = client.zrange(f"rq:scheduled:{name}", 0, offset + limit - 1, withscores=True)
        found += [(due, text(job_id), name) for job_id, due in first]
    page = heapq.nsmallest(offset + limit, found)[offset:]
    with client.pipeline(transaction=False) as pipe:
        for _, job_id, _ in page:
            pipe.hget(f"rq:job:{job_id}", "description")
        words = pipe.execute(raise_on_error=False)
    return [Delayed(job_id, name, _moment(due), text(said) if isinstance(said, bytes) else "")
            for (due, job_id, name), said in zip(page, words, strict=True)]


def cancel(job_id: str, connection: redis.Redis | None = None) -> None:
    """Cancel a delayed job, in one step: it will not run, and stands among RQ's canceled jobs.

    Raises:
        NoSuchJobError: there is no such job.
        InvalidJobOperation: it does not wait for a time (any more).
    """
    _change(connection, job_id, "cancel", 0)


def reschedule(job_id: str, when: datetime | timedelta | float, connection: redis.Redis | None = None) -> datetime:
    """Give a delayed job another time, in one step; returns that.

    Args:
        when: a moment (without a time zone it is in this machine's), or so long from now, in seconds or as a timedelta.

    Raises:
        NoSuchJobError: there is no such job.
        InvalidJobOperation: it does not wait for a time (any more).
        ValueError: `when` is no time, or too far away.
    """
    seconds: Any = when
    try:
        if isinstance(when, datetime):
            seconds = when.timestamp()
        elif isinstance(when, timedelta):
            seconds = when.total_seconds()
        if isinstance(when, bool) or not abs(seconds) < FAR:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{when!r} is no time for a job; give a datetime, or seconds or a timedelta from now, before "
                         f"the year 9999") from None
    return _moment(float(_change(connection, job_id, "at" if isinstance(when, datetime) else "in", seconds)))


def _moment(due: float) -> datetime:
    """`due` as a datetime in UTC; what no datetime can hold is as far away as one can be."""
    try:
        return datetime.fromtimestamp(due, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return (datetime.max if due > 0 else datetime.min).replace(tzinfo=timezone.utc)


def _change(connection: redis.Redis | None, job_id: str, what: str, seconds: Any) -> str:
    client = connection or connections.client()
    try:
        origin = client.hget(f"rq:job:{job_id}", "origin")
    except redis.ResponseError:  # no hash stands there
        origin = None
    if origin is None:
        raise NoSuchJobError(f"No such job: {job_id}")
    queue = text(origin)
    keys = [f"rq:job:{job_id}", f"rq:scheduled:{queue}", f"rqjobs:crashed:{queue}", f"rq:canceled:{queue}",
            ledger.BELL + queue]
    outcome = text(DELAYED.run(client, keys, [job_id, what, repr(float(seconds)), ledger.LOOK]))
    if outcome == "not delayed":
        raise InvalidJobOperation(f"job {job_id} of {queue!r} does not wait for a time (any more), so nothing was done")
    return outcome
