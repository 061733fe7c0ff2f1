"""Transitions of many jobs at once. Each script takes a few hundred of them."""

from __future__ import annotations

from collections.abc import Sequence

import redis

from rqjobs.broker import keys
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import CANCEL_QUEUED, DELETE_ENDED

BATCH_JOBS = 500  # read, requeued or deleted in one round trip
CANCEL_WINDOW_JOBS = 10_000  # that one call walks through
DRIFT_JOBS = 500  # by which jobs may have moved towards the end since their depth was read


def cancel_queued(
    connection: redis.Redis, queue: str, depth: int, job_ids: Sequence[str]
) -> set[str]:
    """Cancel the given jobs that still wait in `queue`, near a depth; returns their ids.

    Args:
        depth: of the first one, counted from the newest job of the queue.
    """
    done: set[str] = set()
    script_keys = [keys.queue(queue), keys.registry("canceled", queue)]
    for start in range(0, len(job_ids), BATCH_JOBS):
        part = job_ids[start : start + BATCH_JOBS]
        # Each job that was canceled before has moved the others towards the end.
        begin = max(0, depth - len(done) - DRIFT_JOBS)
        args = [begin, CANCEL_WINDOW_JOBS, *part]
        done.update(decode(job_id) for job_id in CANCEL_QUEUED.run(connection, script_keys, args))
    return done


def delete_ended(
    connection: redis.Redis, registry: str, status: str, queue: str, job_ids: Sequence[str]
) -> int:
    """Delete the given jobs that are in a registry of `queue` with a status; returns their number.

    Args:
        registry: "finished", "canceled", or "failed" for stopped jobs.
    """
    deleted = 0
    for start in range(0, len(job_ids), BATCH_JOBS):
        args = [registry, status, queue, *job_ids[start : start + BATCH_JOBS]]
        deleted += int(DELETE_ENDED.run(connection, [], args))
    return deleted
