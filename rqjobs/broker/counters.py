"""Counts of what happens to jobs, by minute and queue. The scripts count, in Redis's clock.

`rqjobs:counts:<minute>` has a field `<kind>:<queue>` for each kind of event (`Kind`); `<minute>` is
the Unix time divided by 60. It is kept for two hours. A sweep adds the totals of each minute to
`rqjobs:counts:day`, which has a field for each minute of the last day.

A job is counted as enqueued when it enters its queue: at its enqueue, when it is due, when the jobs
that it waited for have ended, and when it is requeued or runs again. It is not counted again if it
returns to its queue because its worker stopped or died, or waited for a limit or a pause. A run is
counted when its outcome is recorded. So a queue grows by the jobs enqueued, less the runs that end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import redis

from rqjobs.broker import keys
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import ROLL_UP_COUNTS

MINUTES_KEPT = 115  # the key of a minute expires after 120
DAY_MINUTES = 1440
ROLL_UP_MINUTES = 10  # minutes of one call of the script
COUNT_PATTERN = re.compile(rb"-?[0-9]{1,15}")

Counts = dict[str, dict["Kind", int]]  # queue -> kind -> number


class Kind(str, Enum):
    """An event. In a minute with very many queues, the queue "" stands for those beyond a limit."""

    ENQUEUED = "enqueued"  # a job has entered its queue
    FINISHED = "finished"  # a run has succeeded
    FAILED = "failed"  # a job has failed for good
    RETRIED = "retried"  # a run has failed, and the job will run again
    STOPPED = "stopped"  # a run was stopped by a command
    CANCELED = "canceled"  # a job was canceled while it ran, or was discarded
    EXPIRED = "expired"  # a job has not begun in time
    RECOVERED = "recovered"  # a job of a dead process was put back
    POISON = "poison"  # a job has failed because processes died under it; also counted as failed


# The kinds by which a job leaves its queue.
ENDS = (
    Kind.FINISHED,
    Kind.FAILED,
    Kind.RETRIED,
    Kind.STOPPED,
    Kind.CANCELED,
    Kind.EXPIRED,
)


def minute_of(seconds: float) -> int:
    """The minute of a Unix time."""
    return int(seconds // 60)


def minutes_commands(minutes: Iterable[int]) -> list[tuple[Any, ...]]:
    """The commands that read the counts of these minutes. `read_counts` reads each reply."""
    return [("HGETALL", keys.counts(minute)) for minute in minutes]


def read_counts(reply: Any) -> Counts:
    """The counts of a minute, without the fields that another program has written."""
    counts: Counts = {}
    if not isinstance(reply, Mapping):  # the key has the wrong type
        return counts
    for field, value in reply.items():
        word, _, queue = decode(field).partition(":")
        if word in KINDS_BY_VALUE and isinstance(value, bytes) and COUNT_PATTERN.fullmatch(value):
            counts.setdefault(queue, {})[KINDS_BY_VALUE[word]] = int(value)
    return counts


def read_day(reply: Any) -> dict[int, dict[Kind, int]]:
    """The totals of the last day by minute, from a reply to `HGETALL rqjobs:counts:day`.

    The last minutes may be missing: a sweep adds a minute when it is over.
    """
    totals: dict[int, dict[Kind, int]] = {}
    if not isinstance(reply, Mapping):
        return totals
    for field, value in reply.items():
        if COUNT_PATTERN.fullmatch(field) and isinstance(value, bytes):
            totals[int(field)] = _read_total(value)
    return totals


def _read_total(value: bytes) -> dict[Kind, int]:
    words = value.split()
    return {
        KINDS_BY_VALUE[decode(word)]: int(number)
        for word, number in zip(words[::2], words[1::2], strict=False)
        if decode(word) in KINDS_BY_VALUE and COUNT_PATTERN.fullmatch(number)
    }


KINDS_BY_VALUE = {kind.value: kind for kind in Kind}


def roll_up(connection: redis.Redis) -> int:
    """Add ended minutes to the totals of the last day. Returns how many are left for another call."""
    arguments = [ROLL_UP_MINUTES, DAY_MINUTES, MINUTES_KEPT]
    return int(ROLL_UP_COUNTS.run(connection, [keys.COUNTS_DAY], arguments))
