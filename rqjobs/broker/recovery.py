"""Recovery: what happens to the claims of a dead worker, to poison jobs, and to jobs that depend on an ended one."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import redis
from rq.defaults import DEFAULT_FAILURE_TTL
from rq.utils import now, utcformat

from rqjobs.broker import keys
from rqjobs.broker.keys import ENDED_PARENTS, LEASES, decode
from rqjobs.broker.scripts import ENQUEUE_DEPENDENTS, RECLAIM, RECOVER
from rqjobs.broker.transitions import NO_QUEUE_TRACEBACK, pack_traceback

MAX_CRASHES = 3  # a job under which the process died so often...
CRASH_WINDOW_SECONDS = 72 * 3600  # ...within so many seconds fails
DEPENDENTS_PER_SCRIPT = 500
POISON_TRACEBACK = pack_traceback(
    f"The process died {MAX_CRASHES} times within {CRASH_WINDOW_SECONDS // 3600} hours while it ran this job, "
    f"so it is not run again. Requeue it when the cause is mended."
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
        running: the job that was being run, whose death counts; "?" for the first claim, "" for none.
        delay: seconds that it waits before it runs again, doubled with each death; 0 puts it at the front.
        process: for `PROCESS_GONE`, the process that has ended, "<pid>:<started>"; for `HORSE_DIED`,
            the process to which the name must belong, as in `release_all`.

    Returns:
        job id -> `REQUEUED`, `DELAYED`, `FAILED` or `ENDED`; nothing if the worker lives.
    """
    script_keys = [
        keys.claims(worker),
        LEASES,
        keys.process(worker),
        keys.worker(worker),
        keys.WORKERS,
    ]
    script_keys += [keys.listeners(queue) for queue in queues]
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
    """Put a job that stock RQ left behind, or lost, back at the front of `queue`, in one atomic step.

    Args:
        found: where it was: "wip", "intermediate" or "stray".
        execution, owner: for "wip", RQ's execution id and the name of the worker.
        again: for "stray", that it was enqueued after its last end.

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
    """Enqueue the jobs that waited for one which has ended; says which. Any number may do it at once.

    Args:
        member: how it stands in `rqjobs:ended-parents`.
        on_progress: called between two steps.
    """
    woken: list[str] = []
    cursor = "0"
    while True:
        arguments = [member, utcformat(now()), default_timeout, cursor, DEPENDENTS_PER_SCRIPT]
        cursor, *children = map(
            decode, ENQUEUE_DEPENDENTS.run(connection, [ENDED_PARENTS], arguments)
        )
        woken += children
        if cursor == "0":
            return woken
        on_progress()
