"""Recovery: what happens to the claims of a dead worker, to poison jobs, and to jobs that depend on an ended one."""

from __future__ import annotations

from collections.abc import Callable

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


def reclaim(
    connection: redis.Redis,
    worker: str,
    queues: list[str],
    kind: str,
    running: str = "?",
    delay: float = 0,
    process: str = "",
) -> dict[str, str]:
    """Take back all claims of a dead worker (`kind` "dead" or "gone") or of the worker's own dead horse ("horse").

    Args:
        running: the job that was being run, whose death counts; "?" for the first claim, "" for none.
        delay: seconds that it waits before it runs again, doubled with each death; 0 puts it at the front.
        process: for "gone", which one is not there any more, "<pid>:<started>"; for "horse", whose the name must be, as
            in `release`. The name may be another's now.

    Returns:
        job id -> "requeued", "delayed", "buried" or "ended"; nothing if the worker lives.
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
        kind,
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
    return dict(zip(reply[::2], reply[1::2], strict=True)) if reply != ["alive"] else {}


def recover(
    connection: redis.Redis,
    job_id: str,
    queue: str,
    found: str,
    execution: str = "",
    owner: str = "",
    again: bool = False,
) -> str:
    """Put a job that stock RQ left behind, or lost, back at the front of `queue`, in one atomic step.

    Args:
        found: where it was: "wip", "intermediate" or "stray".
        execution, owner: for "wip", RQ's execution id and the name of the worker.
        again: for "stray", that it was enqueued after its last end.

    Returns:
        "requeued"; "buried" (it died `MAX_DEATHS` times); or, nothing having been done, "moved", "alive", "gone",
        "ended" or "placed".
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
    return decode(RECOVER.run(connection, script_keys, args))


def enqueue_dependents(
    connection: redis.Redis,
    member: str,
    default_timeout: int,
    pulse: Callable[[], None] = lambda: None,
) -> list[str]:
    """Enqueue the jobs that waited for one which has ended; says which. Any number may do it at once.

    Args:
        member: how it stands in `rqjobs:ended-parents`.
        pulse: called between two steps.
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
        pulse()
