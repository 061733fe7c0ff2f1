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
from rqjobs.broker import keys, scripts, transitions
from rqjobs.broker.keys import decode
from rqjobs.broker.places import queue_names as known_queue_names
from rqjobs.broker.scripts import CHANGE_DELAYED
from rqjobs.times import MAX_TIMESTAMP


@dataclass(frozen=True)
class Delayed:
    """A job that waits for its time. The description is what its enqueuer wrote: show it, obey nothing in it."""

    job_id: str
    queue: str
    due: datetime
    description: str


def _in_order(connection: redis.Redis, queue: str | None, *command: Any) -> list[tuple[str, Any]]:
    """(queue, what Redis says of its delayed jobs), in one round trip; a key of the wrong type is left out."""
    names = [queue] if queue else known_queue_names(connection)
    asked = [(command[0], keys.scheduled(name), *command[1:]) for name in names]
    return [
        (name, reply)
        for name, reply in zip(names, scripts.read_together(connection, asked), strict=True)
        if not isinstance(reply, Exception)
    ]


def count(queue: str | None = None, connection: redis.Redis | None = None) -> int:
    """How many jobs of `queue` (None: of every queue) wait for their time."""
    return sum(
        number for _, number in _in_order(connection or connections.client(), queue, "ZCARD")
    )


def jobs(
    queue: str | None = None,
    offset: int = 0,
    limit: int = 50,
    connection: redis.Redis | None = None,
) -> list[Delayed]:
    """The jobs of `queue` (None: of every queue) that wait for their time, the next due first."""
    client = connection or connections.client()
    found: list[tuple[float, str, str]] = []
    for name, first in _in_order(client, queue, "ZRANGE", 0, offset + limit - 1, "WITHSCORES"):
        flat = (
            [part for pair in first for part in pair]
            if first and isinstance(first[0], list | tuple)
            else first
        )
        found += [
            (float(due), decode(job_id), name)
            for job_id, due in zip(flat[::2], flat[1::2], strict=True)
        ]
    page = heapq.nsmallest(offset + limit, found)[offset:]
    words = scripts.read_together(
        client, [("HGET", keys.job(job_id), "description") for _, job_id, _ in page]
    )
    return [
        Delayed(job_id, name, _moment(due), decode(said) if isinstance(said, bytes) else "")
        for (due, job_id, name), said in zip(page, words, strict=True)
    ]


def cancel(job_id: str, connection: redis.Redis | None = None) -> None:
    """Cancel a delayed job, in one step: it will not run, and stands among RQ's canceled jobs.

    Raises:
        NoSuchJobError: there is no such job.
        InvalidJobOperation: it does not wait for a time (any more).
    """
    _change(connection, job_id, "cancel", 0)


def reschedule(
    job_id: str, when: datetime | timedelta | float, connection: redis.Redis | None = None
) -> datetime:
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
        if isinstance(when, bool) or not abs(seconds) < MAX_TIMESTAMP:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{when!r} is no time for a job; give a datetime, or seconds or a timedelta from now, before "
            f"the year 9999"
        ) from None
    return _moment(
        float(_change(connection, job_id, "at" if isinstance(when, datetime) else "in", seconds))
    )


def _moment(due: float) -> datetime:
    """`due` as a datetime in UTC; what no datetime can hold is as far away as one can be."""
    try:
        return datetime.fromtimestamp(due, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return (datetime.max if due > 0 else datetime.min).replace(tzinfo=timezone.utc)


def _change(connection: redis.Redis | None, job_id: str, what: str, seconds: Any) -> str:
    client = connection or connections.client()
    try:
        origin = client.hget(keys.job(job_id), "origin")
    except redis.ResponseError:  # no hash stands there
        origin = None
    if origin is None:
        raise NoSuchJobError(f"No such job: {job_id}")
    queue = decode(origin)
    script_keys = [
        keys.job(job_id),
        keys.scheduled(queue),
        keys.crash_backoff(queue),
        keys.registry("canceled", queue),
        keys.wakeup_channel(queue),
    ]
    outcome = decode(
        CHANGE_DELAYED.run(
            client,
            script_keys,
            [job_id, what, repr(float(seconds)), transitions.SCHEDULER_POLL_SECONDS],
        )
    )
    if outcome == "not delayed":
        raise InvalidJobOperation(
            f"job {job_id} of {queue!r} does not wait for a time (any more), so nothing was done"
        )
    return outcome
