"""The ticker: enqueues the jobs of schedules that are due."""

from __future__ import annotations

import logging
import math
import time
from typing import Any, NamedTuple

import redis

from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.schedules.describe import describe_missed
from rqjobs.schedules.rules import MISSED_MAX_TICKS, Rule
from rqjobs.schedules.store import Schedule, enqueue_ticks, jitter, read, write
from rqjobs.times import utc

log = logging.getLogger("rqjobs")
CATCH_UP_MAX_TICKS = 1000  # ticks that missed="all" makes up for
# With missed="skip" a later tick is missed. Another scheduler takes over within this time.
SKIP_AFTER_SECONDS = 10
TICK_BATCH_SCHEDULES = 25  # schedules
RETRY_SECONDS = 5  # seconds after which a tick that Redis refused is tried again


def run_due(connection: redis.Redis, seconds: float = 60) -> float | None:
    """Make the jobs of ticks that are due, of up to `AT_ONCE` schedules and for about so many seconds; returns when
    (Unix seconds, by Redis's clock) it is worth while again, None if never."""
    began, now = time.monotonic(), scripts.redis_time(connection)
    due: Any = connection.zrangebyscore(keys.SCHEDULES, "-inf", now, 0, TICK_BATCH_SCHEDULES)
    found = read(connection, map(decode, due))
    for member in due:
        name = decode(member)
        if name not in found or name.encode() != member:
            log.error("the schedule %s in Redis cannot be read, and does not tick", name)
            connection.zadd(keys.SCHEDULES, {member: "+inf"}, xx=True)
            continue
        try:
            done = _run_schedule(connection, found[name], now)
        except (redis.ConnectionError, redis.TimeoutError):
            raise
        except Exception as error:  # of what a stranger wrote; one must not stop the others
            log.error("the schedule %s: %s: %s", name, type(error).__name__, error)
            done = False
        if not done:
            connection.zadd(keys.SCHEDULES, {name: now + RETRY_SECONDS}, xx=True)
        if time.monotonic() > began + seconds:
            return now
    later: Any = connection.zrangebyscore(keys.SCHEDULES, f"({now}", "(+inf", 0, 1, withscores=True)
    return now if len(due) == TICK_BATCH_SCHEDULES else later[0][1] if later else None


def _run_schedule(connection: redis.Redis, schedule: Schedule, now: float) -> bool:
    assert schedule.next
    rule, name, first = schedule.rule, schedule.name, int(schedule.next.timestamp())
    due = due_ticks(rule, name, first, now)
    if (
        due.last is None and first + jitter(rule, name, first) > now
    ):  # its score is not that of its rule
        write(
            connection, name, schedule.revision, repr(first + jitter(rule, name, first)), "same", {}
        )
        return True
    last = first if due.last is None else due.last
    following = rule.after(last)
    made, skipped = enqueue_ticks(
        connection,
        name,
        schedule.revision,
        schedule.queue,
        str(first),
        following,
        0.0 if following is None else following + jitter(rule, name, following),
        rule.overlap,
        due.missed,
        last,
        [(tick, job_id(name, schedule.revision, tick)) for tick in due.jobs],
    )
    if made == -2:
        log.error(
            "the schedule %s waits: the key of its queue %s, of its runs or of their outcomes, or rq:queues, is "
            "of the wrong type",
            name,
            schedule.queue,
        )
    elif made >= 0 and (due.missed or skipped):
        log.warning(
            "schedule %s: %s runs missed, %d runs skipped because the previous job has not ended",
            name,
            describe_missed(due.missed),
            skipped,
        )
    return made != -2


def job_id(name: str, revision: int, tick: int) -> str:
    """The id of the one job of this tick."""
    return f"{name}-r{revision}-{utc(tick):%Y%m%dT%H%M%S}"


class DueTicks(NamedTuple):
    """The due ticks of a schedule: those that make a job (in order), the last one, the rest's number.

    `last` is None if no tick is due. `missed` counts the due ticks that make no job, up to
    `MISSED_MAX_TICKS`.
    """

    jobs: list[int]
    last: int | None
    missed: int


def due_ticks(rule: Rule, name: str, first: int, now: float) -> DueTicks:
    """The ticks of schedule `name` from the tick `first` on that are due at `now` (Unix seconds)."""
    skips = rule.missed == "skip"
    max_jobs = 1 if rule.missed == "once" else CATCH_UP_MAX_TICKS
    # Older ticks are certainly due, and too late for "skip". Younger ones may wait for their jitter.
    undecided = max(first, math.ceil(now - rule.jitter - SKIP_AFTER_SECONDS))
    ticks = rule.last_ticks(first, undecided - 1, max_jobs + MISSED_MAX_TICKS)
    jobs = [] if skips else ticks[-max_jobs:]
    due_at = 0.0
    for tick in rule.ticks(undecided, now):
        due_at = max(due_at, tick + jitter(rule, name, tick))  # jitter keeps the order
        if due_at > now:
            break
        ticks.append(tick)
        if not skips or now - due_at <= SKIP_AFTER_SECONDS:
            jobs.append(tick)
    jobs = jobs[-max_jobs:]
    last = ticks[-1] if ticks else None
    return DueTicks(jobs, last, min(len(ticks) - len(jobs), MISSED_MAX_TICKS))
