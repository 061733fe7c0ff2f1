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
from rqjobs.schedules.store import (
    DueRange,
    RunStatus,
    Schedule,
    due_time,
    enqueue_ticks,
    jitter,
    read,
    write,
)
from rqjobs.times import utc

log = logging.getLogger("rqjobs")
CATCH_UP_MAX_TICKS = 1000  # ticks that missed="all" makes up for
# With missed="skip" a later tick is missed. Another scheduler takes over within this time.
SKIP_AFTER_SECONDS = 10
TICK_BATCH_SCHEDULES = 25  # schedules that `run_due` reads at once
TICK_RETRY_SECONDS = 5  # after which a tick that Redis refused is tried again


def run_due(connection: redis.Redis, seconds: float = 60) -> float | None:
    """Enqueue the jobs of due ticks, for at most `TICK_BATCH_SCHEDULES` schedules and about
    `seconds`.

    Returns:
        The time of the next due tick in Unix seconds by Redis's clock; None if there is none.
    """
    began = time.monotonic()
    now = scripts.redis_time(connection)
    due: Any = connection.zrangebyscore(keys.SCHEDULES, "-inf", now, 0, TICK_BATCH_SCHEDULES)
    found = read(connection, map(decode, due))
    for member in due:
        name = decode(member)
        if name not in found or name.encode() != member:
            log.error("schedule %s in Redis cannot be read and makes no jobs", name)
            connection.zadd(keys.SCHEDULES, {member: "+inf"}, xx=True)
        elif not _run_or_log(connection, found[name], now):
            connection.zadd(keys.SCHEDULES, {name: now + TICK_RETRY_SECONDS}, xx=True)
        if time.monotonic() > began + seconds:
            return now
    if len(due) == TICK_BATCH_SCHEDULES:
        return now
    later: Any = connection.zrangebyscore(keys.SCHEDULES, f"({now}", "(+inf", 0, 1, withscores=True)
    if not later:
        return None
    return float(later[0][1])


def _run_or_log(connection: redis.Redis, schedule: Schedule, now: float) -> bool:
    """Run one schedule; False if it failed. Foreign data in one does not stop the others."""
    try:
        return _run_schedule(connection, schedule, now)
    except (redis.ConnectionError, redis.TimeoutError):
        raise
    except Exception as error:
        log.error("schedule %s: %s: %s", schedule.name, type(error).__name__, error)
        return False


def _run_schedule(connection: redis.Redis, schedule: Schedule, now: float) -> bool:
    assert schedule.next
    rule, name, revision = schedule.rule, schedule.name, schedule.revision
    first = int(schedule.next.timestamp())
    due = due_ticks(rule, name, first, now)
    if due.last is None and first + jitter(rule, name, first) > now:
        # The schedule's score is not the due time of its next tick.
        write(connection, name, revision, due_time(rule, name, first), "same", {})
        return True
    last = first if due.last is None else due.last
    following = rule.after(last)
    following_due = 0.0
    if following is not None:
        following_due = following + jitter(rule, name, following)
    result = enqueue_ticks(
        connection,
        schedule,
        [(tick, job_id(name, revision, tick)) for tick in due.jobs],
        DueRange(first, last, following, following_due, due.missed),
    )
    if result.status is RunStatus.WRONG_TYPE:
        log.error(
            "schedule %s makes no jobs: rq:queues, or the key of its queue %s, its runs or their "
            "outcomes, has the wrong type; rename or delete that key",
            name,
            schedule.queue,
        )
        return False
    if result.status is RunStatus.DONE and (due.missed or result.skipped):
        log.warning(
            "schedule %s: %s runs missed, %d runs skipped because the previous job has not ended",
            name,
            describe_missed(due.missed),
            result.skipped,
        )
    return True


def job_id(name: str, revision: int, tick: int) -> str:
    """The id of the one job of this tick."""
    return f"{name}-r{revision}-{utc(tick):%Y%m%dT%H%M%S}"


class DueTicks(NamedTuple):
    """The ticks of a schedule that are due."""

    jobs: list[int]  # the ticks that make a job, in order
    last: int | None  # the last due tick; None if no tick is due
    missed: int  # number of due ticks that make no job; counting stops at `MISSED_MAX_TICKS`


def due_ticks(rule: Rule, name: str, first: int, now: float) -> DueTicks:
    """The ticks of the schedule `name` from `first`, a tick, that are due at `now`.

    Both are Unix seconds.
    """
    skips = rule.missed == "skip"
    max_jobs = 1 if rule.missed == "once" else CATCH_UP_MAX_TICKS
    # Older ticks are due, and too late for "skip". Younger ticks may have to wait for their jitter.
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
