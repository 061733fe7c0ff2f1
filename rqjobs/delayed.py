"""Delayed jobs: list, cancel and reschedule the jobs in RQ's scheduled set.

The set's score is the due time in Unix seconds with fractions, by Redis's clock.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import redis
from rq.exceptions import InvalidJobOperation, NoSuchJobError

from rqjobs import connection
from rqjobs.broker import enqueueing, keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.broker.places import queue_names as known_queue_names
from rqjobs.broker.scripts import CHANGE_DELAYED
from rqjobs.job_fields import read_description
from rqjobs.times import MAX_TIMESTAMP


@dataclass(frozen=True)
class Delayed:
    """A delayed job. The description comes from its enqueuer: show it, but do not trust it."""

    job_id: str
    queue: str
    due: datetime
    description: str


def count(queue: str | None = None) -> int:
    """The number of delayed jobs of `queue`; of every queue if it is None."""
    return sum(number for _, number in _read_scheduled(queue, "ZCARD"))


def jobs(queue: str | None = None, offset: int = 0, limit: int = 50) -> list[Delayed]:
    """The delayed jobs of `queue` (None: of every queue), the next due first."""
    end = offset + limit
    found: list[tuple[float, str, str]] = []
    for name, entries in _read_scheduled(queue, "ZRANGE", 0, end - 1, "WITHSCORES"):
        found += [(due, job_id, name) for job_id, due in _pairs(entries)]
    page = heapq.nsmallest(end, found)[offset:]
    commands = [("HGET", keys.job(job_id), "description") for _, job_id, _ in page]
    descriptions = scripts.read_together(connection.client(), commands)
    delayed = []
    for (due, job_id, name), description in zip(page, descriptions, strict=True):
        if not isinstance(description, bytes):  # the job has none, or the key has the wrong type
            description = b""
        delayed.append(Delayed(job_id, name, _moment(due), read_description(description)))
    return delayed


def cancel(job_id: str) -> None:
    """Cancel a delayed job, in one step. It does not run, and is among RQ's canceled jobs.

    Raises:
        NoSuchJobError: there is no such job.
        InvalidJobOperation: the job is not delayed, or no longer.
    """
    _change(job_id, "cancel", 0)


def reschedule(job_id: str, when: datetime | timedelta | float) -> datetime:
    """Change the due time of a delayed job, in one step; returns the new due time.

    Args:
        when: a datetime (without a time zone it is in this machine's); or a delay from now, in
            seconds or as a timedelta.

    Raises:
        NoSuchJobError: there is no such job.
        InvalidJobOperation: the job is not delayed, or no longer.
        ValueError: `when` is not a time, or is too far away.
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
            f"{when!r} is not a time for a job; give a datetime, or seconds or a timedelta from now, "
            f"before the year 9999"
        ) from None
    change = "at" if isinstance(when, datetime) else "in"
    return _moment(float(_change(job_id, change, seconds)))


def _read_scheduled(queue: str | None, command: str, *args: Any) -> list[tuple[str, Any]]:
    """(queue, the command's reply on its scheduled set), in one round trip.

    A key of the wrong type is left out.
    """
    client = connection.client()
    queues = [queue] if queue else known_queue_names(client)
    commands = [(command, keys.scheduled(name), *args) for name in queues]
    pairs = zip(queues, scripts.read_together(client, commands), strict=True)
    return [(name, reply) for name, reply in pairs if not isinstance(reply, Exception)]


def _pairs(entries: list[Any]) -> list[tuple[str, float]]:
    """(job id, due time) of a reply with scores: pairs in RESP3, a flat list in RESP2."""
    if entries and isinstance(entries[0], list | tuple):
        pairs = [tuple(entry) for entry in entries]
    else:
        pairs = list(zip(entries[::2], entries[1::2], strict=True))
    return [(decode(job_id), float(due)) for job_id, due in pairs]


def _moment(due: float) -> datetime:
    """`due` as a datetime in UTC. A time that no datetime can hold becomes the first or last one."""
    try:
        return datetime.fromtimestamp(due, timezone.utc)
    except (ValueError, OverflowError, OSError):
        last = datetime.max if due > 0 else datetime.min
        return last.replace(tzinfo=timezone.utc)


def _change(job_id: str, change: str, seconds: Any) -> str:
    client = connection.client()
    try:
        origin = client.hget(keys.job(job_id), "origin")
    except redis.ResponseError:  # the key is not a hash
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
    args = [job_id, change, repr(float(seconds)), enqueueing.SCHEDULER_POLL_SECONDS]
    outcome = decode(CHANGE_DELAYED.run(client, script_keys, args))
    if outcome == "not delayed":
        raise InvalidJobOperation(f"job {job_id} of {queue!r} is not delayed, so nothing was done")
    return outcome
