"""Recovery: takes jobs back from dead workers, fails poison jobs, and enqueues dependents.

`transitions` lists all ways in which a job enters its queue again.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import redis
from rq.defaults import DEFAULT_FAILURE_TTL
from rq.utils import now, utcformat

from rqjobs.broker import keys
from rqjobs.broker.keys import ENDED_PARENTS, LEASES, decode
from rqjobs.broker.scripts import (
    CHECK_WAITING,
    DROP_UNIQUE_KEYS,
    ENQUEUE_DEPENDENTS,
    RECLAIM,
    RECOVER,
    WAKE_DUE,
)
from rqjobs.broker.transitions import NO_QUEUE_TRACEBACK, pack_traceback

MAX_CRASHES = 3  # a job fails when its process has died this often...
CRASH_WINDOW_SECONDS = 72 * 3600  # ...within this time
WAITING_KEYS_PER_SCRIPT = 100  # limits that one script looks at
UNIQUE_KEYS_PER_SCRIPT = 500  # unique keys that one script looks at
UNIQUE_KEYS_PER_SWEEP = 50_000
WOKEN_JOBS_PER_KEY = 50  # jobs of one limit that one script wakes
DEPENDENTS_PER_SCRIPT = 500  # dependents that one script looks at
POISON_TRACEBACK = pack_traceback(
    f"The process died {MAX_CRASHES} times within {CRASH_WINDOW_SECONDS // 3600} hours while it "
    f"ran this job, so the job is not run again. Fix the cause, then requeue the job."
)


class DeathCause(str, Enum):
    """How a worker or its horse is known to be dead."""

    LEASE_EXPIRED = "lease expired"
    PROCESS_GONE = "process gone"  # parent and horse have provably ended on this host
    HORSE_DIED = "horse died"  # reported by the worker itself


class Outcome(str, Enum):
    """The result of recovering one job."""

    REQUEUED = "requeued"
    DELAYED = "delayed"  # in the scheduled set for a while, after a crash
    FAILED = "failed"  # its process died `MAX_CRASHES` times, or its queue is unusable
    ENDED = "ended"  # the job had ended, or was enqueued again elsewhere
    # Nothing was done:
    MOVED = "moved"  # the job is no longer where it was found
    ALIVE = "alive"  # its worker is alive after all
    GONE = "gone"  # the job was deleted
    PLACED = "placed"  # the job is in another place


def reclaim(
    connection: redis.Redis,
    worker: str,
    queues: list[str],
    cause: DeathCause,
    running: str = "?",
    delay: float = 0,
    process: str = "",
) -> dict[str, Outcome]:
    """Take back all claims of a dead worker, or of the worker's own dead horse (`HORSE_DIED`).

    Args:
        running: id of the job that was running, whose crash is counted; "?" is the first claim, ""
            none.
        delay: seconds for which that job is delayed, doubled with each crash; 0 puts it at the
        front.
        process: for `PROCESS_GONE`, the process that has ended, "<pid>:<started>"; for
            `HORSE_DIED`, the process to which the name must belong, as in `release_all`.

    Returns:
        job id -> `REQUEUED`, `DELAYED`, `FAILED` or `ENDED`; empty if the worker is alive.
    """
    script_keys = [
        keys.claims(worker),
        LEASES,
        keys.process(worker),
        keys.worker(worker),
        keys.WORKERS,
        *map(keys.listeners, queues),
    ]
    args = [
        worker,
        cause.value,
        running,
        MAX_CRASHES,
        CRASH_WINDOW_SECONDS,
        POISON_TRACEBACK,
        DEFAULT_FAILURE_TTL,
        utcformat(now()),
        delay,
        process,
        NO_QUEUE_TRACEBACK,
    ]
    reply = [decode(part) for part in RECLAIM.run(connection, script_keys, args)]
    if reply == ["alive"]:
        return {}
    return dict(zip(reply[::2], map(Outcome, reply[1::2]), strict=True))


def recover(
    connection: redis.Redis,
    job_id: str,
    queue: str,
    found: str,
    execution: str = "",
    owner: str = "",
    again: bool = False,
) -> Outcome:
    """Put a job that plain RQ has lost back at the front of `queue`, in one step.

    Args:
        found: the place where it was: "wip", "intermediate", or "stray" (in no place).
        execution, owner: for "wip", RQ's execution id and the worker's name.
        again: for "stray", whether it was enqueued after its last end.

    Returns:
        The outcome. Only `REQUEUED` and `FAILED` have moved the job.
    """
    script_keys = [
        keys.intermediate(queue),
        keys.scheduled(queue),
        keys.deferred(queue),
        keys.running(queue),
        keys.queue(queue),
        keys.executions(job_id),
        keys.execution(job_id, execution),
        LEASES,
        keys.worker(owner),
    ]
    args = [
        found,
        job_id,
        f"{job_id}:{execution}",
        owner,
        queue,
        MAX_CRASHES,
        CRASH_WINDOW_SECONDS,
        POISON_TRACEBACK,
        DEFAULT_FAILURE_TTL,
        utcformat(now()),
        int(again),
    ]
    return Outcome(decode(RECOVER.run(connection, script_keys, args)))


def enqueue_dependents(
    connection: redis.Redis,
    member: str,
    default_timeout: int,
    on_progress: Callable[[], None] = lambda: None,
) -> list[str]:
    """Enqueue the jobs that depend on an ended job. Several processes may do so at once.

    Args:
        member: the ended job's member of `rqjobs:ended-parents`.
        default_timeout: seconds, for jobs that have no timeout.
        on_progress: called after each step.

    Returns:
        The ids of the enqueued jobs.
    """
    enqueued: list[str] = []
    cursor = "0"
    while True:
        args = [member, utcformat(now()), default_timeout, cursor, DEPENDENTS_PER_SCRIPT]
        reply = ENQUEUE_DEPENDENTS.run(connection, [ENDED_PARENTS], args)
        cursor, *job_ids = map(decode, reply)
        enqueued += job_ids
        if cursor == "0":
            return enqueued
        on_progress()


class Woken(NamedTuple):
    """Now and the next time at which a job can start by its rate (None: no job waits for that),
    both in Unix seconds by Redis's clock; and the number of jobs that can start now.
    """

    now: float
    next_due: float | None
    jobs: int


def wake_due(connection: redis.Redis) -> Woken:
    """Wake the jobs whose rate lets them start now."""
    arguments = [WAITING_KEYS_PER_SCRIPT, WOKEN_JOBS_PER_KEY]
    now_text, due, jobs = WAKE_DUE.run(connection, [keys.RATE_DUE], arguments)
    return Woken(float(now_text), float(due) if due else None, int(jobs))


def drop_unique_keys(
    connection: redis.Redis, on_progress: Callable[[], None] = lambda: None
) -> None:
    """Drop unique keys whose job has ended or is gone: the next part of them, in small steps.

    They are free already; this keeps their number small.
    """
    cursor = decode(connection.get(keys.UNIQUE_CURSOR) or b"0")
    for _ in range(UNIQUE_KEYS_PER_SWEEP // UNIQUE_KEYS_PER_SCRIPT):
        reply = DROP_UNIQUE_KEYS.run(connection, [keys.UNIQUE], [cursor, UNIQUE_KEYS_PER_SCRIPT])
        cursor = decode(reply)
        on_progress()
        if cursor == "0":
            break
    connection.set(keys.UNIQUE_CURSOR, cursor)


def check_waiting(connection: redis.Redis, on_progress: Callable[[], None] = lambda: None) -> None:
    """Free the slots that no claimed job holds, and wake a job of each limit that has room.

    Slots are freed with their claims, so this finds something only if a job that was woken has been
    canceled, or a foreign program has changed keys.
    """
    cursor = b"0"
    while True:
        arguments = [cursor, WAITING_KEYS_PER_SCRIPT]
        cursor, _found = CHECK_WAITING.run(connection, [keys.WAITING_KEYS], arguments)
        on_progress()
        if cursor == b"0":
            return
