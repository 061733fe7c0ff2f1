"""The jobs of a queue in their order, and the limits for which jobs wait."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import redis

from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.jobs import Job
from rqjobs.stats.job_rows import LISTED_FIELDS, read_row

QUEUE_WINDOW_JOBS = 2000  # within which a page of a queue looks for the last job of the page before
DEFERRED_SAMPLE_JOBS = 200  # deferred jobs of a queue that its page looks at
WAIT_FIELDS = ("rqjobs_waits_for", "rqjobs_paused")
MAX_QUEUE_LIMITS = 20  # for which jobs of a queue wait, on its page


@dataclass(frozen=True)
class QueuedJobs:
    """Jobs of a queue in the order in which they run, from the position `first` (0: the next)."""

    first: int
    jobs: list[tuple[str, Job | None]]
    has_more: bool


@dataclass(frozen=True)
class QueueLimit:
    """A limit, or a paused function, for which jobs of a queue wait; `seen` of those looked at."""

    key: str
    is_pause: bool
    seen: int
    running: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class QueueContents:
    """A page of a queue's jobs, and what its deferred jobs wait for."""

    queued: QueuedJobs
    limits: list[QueueLimit]


def queue_contents(
    connection: redis.Redis, queue: str, position: int, after: str, limit: int
) -> QueueContents:
    """A page of a queue, behind the job `after`, which was at `position` - 1 a moment ago.

    Jobs leave a queue at its front, so `after` is looked for in front of that, within
    `QUEUE_WINDOW_JOBS`. The limits are those for which the first `DEFERRED_SAMPLE_JOBS` deferred
    jobs wait, the most first; those that wait for other jobs are left out. Three round trips.
    """
    window_start = max(0, position - QUEUE_WINDOW_JOBS) if after else position
    members, deferred = scripts.read_together(
        connection,
        [
            ("LRANGE", keys.queue(queue), window_start, position + limit),
            ("ZRANGE", keys.deferred(queue), 0, DEFERRED_SAMPLE_JOBS - 1),
        ],
    )
    ids = _ids(members)
    first = position - window_start
    if after in ids:
        first = len(ids) - ids[::-1].index(after)
    shown, waiting = ids[first : first + limit], _ids(deferred)
    replies = scripts.read_together(
        connection,
        [
            *(("HMGET", keys.job(job_id), *LISTED_FIELDS) for job_id in shown),
            *(("HMGET", keys.job(job_id), *WAIT_FIELDS) for job_id in waiting),
        ],
    )
    jobs = [
        (job_id, read_row(connection, job_id, reply))
        for job_id, reply in zip(shown, replies, strict=False)
    ]
    queued = QueuedJobs(window_start + first, jobs, len(ids) > first + limit)
    return QueueContents(queued, _limits(connection, replies[len(shown) :]))


def _ids(members: Any) -> list[str]:
    """The ids in a reply; none if the key has the wrong type."""
    return [decode(member) for member in members] if isinstance(members, list) else []


def _limits(connection: redis.Redis, replies: list[Any]) -> list[QueueLimit]:
    """The limits in replies with `WAIT_FIELDS`, with the jobs that run and wait for each."""
    seen: Counter[tuple[str, bool]] = Counter()
    for reply in replies:
        if isinstance(reply, list) and any(reply):
            seen[decode(reply[0] or reply[1]), not reply[0]] += 1
    found = [QueueLimit(*pair, number) for pair, number in seen.most_common(MAX_QUEUE_LIMITS)]
    commands: list[tuple[Any, ...]] = []
    for one in found:
        waiting = keys.paused_jobs(one.key) if one.is_pause else keys.waiting(one.key)
        commands += [("HLEN", keys.slots(one.key)), ("LLEN", waiting)]
    replies = scripts.read_together(connection, commands) if commands else []
    counts = [reply if isinstance(reply, int) else 0 for reply in replies]
    return [
        replace(one, running=running, waiting=waiting)
        for one, running, waiting in zip(found, counts[::2], counts[1::2], strict=True)
    ]


@dataclass(frozen=True)
class WaitingKey:
    """A limit for which jobs wait: its key, and how many jobs of it run and wait."""

    key: str
    running: int
    waiting: int


def waiting_keys(connection: redis.Redis, limit: int = 50) -> list[WaitingKey]:
    """The keys for which jobs wait, those with the most waiting jobs first."""
    (members,) = scripts.read_together(connection, [("SRANDMEMBER", keys.WAITING_KEYS, 1000)])
    if not isinstance(members, list):
        return []
    commands: list[tuple[Any, ...]] = []
    for member in members:
        commands += [("HLEN", keys.slots(decode(member))), ("LLEN", keys.waiting(decode(member)))]
    replies = scripts.read_together(connection, commands)
    counts = [reply if isinstance(reply, int) else 0 for reply in replies]
    found = [
        WaitingKey(decode(member), running, waiting)
        for member, running, waiting in zip(members, counts[::2], counts[1::2], strict=True)
        if waiting
    ]
    return sorted(found, key=lambda one: (-one.waiting, one.key))[:limit]
