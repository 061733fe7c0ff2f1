"""Strays: jobs that have not ended and are in no place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import redis
from rq.utils import now

from rqjobs.broker import keys, recovery, scripts
from rqjobs.broker.keys import decode
from rqjobs.broker.places import SCAN_BATCH_KEYS, claimed_ids, ids_in_places
from rqjobs.maintenance.sweep_result import SweepResult, seen_for, skip_wrong_types
from rqjobs.queues import Queue
from rqjobs.times import parse_date

STRAY_SECONDS = 30  # seconds between the two looks
STRAY_SCAN_SECONDS = 30  # seconds between two parts of the hunt
STRAY_SCAN_KEYS = 20_000  # keys that one part of the hunt scans
UNLIMITED_JOB_IDLE_SECONDS = 24 * 3600  # seconds for which a job without a time limit may be idle


def is_time_for_strays(connection: redis.Redis) -> bool:
    lock = keys.STRAYS_LOCK
    if connection.set(lock, 1, nx=True, ex=STRAY_SCAN_SECONDS):
        return True
    is_ours = (
        0 <= connection.ttl(lock) <= STRAY_SCAN_SECONDS
    )  # without an end, or with a later one, it is nobody's
    return not is_ours and bool(connection.set(lock, 1, ex=STRAY_SCAN_SECONDS))


# Strays


def sweep_strays(connection: redis.Redis, moment: float, result: SweepResult) -> None:
    for job_id, queue in _idle_and_nowhere(connection, _next_stray_candidates(connection)):
        with skip_wrong_types(f"the stray {job_id} of queue {queue}"):
            if seen_for(connection, keys.STRAYS_SEEN, job_id, moment, STRAY_SECONDS):
                again = not has_ended(connection, job_id, queue)
                outcome = recovery.recover(connection, job_id, queue, "stray", again=again)
                result.note(outcome, job_id, queue, "in no place")
                connection.hdel(keys.STRAYS_SEEN, job_id)


def _next_stray_candidates(connection: redis.Redis) -> Iterator[Stray]:
    """Jobs that wait or run, from where the last part of the hunt ended; after the last key it begins anew."""
    cursor = connection.get(keys.STRAYS_CURSOR) or b"0"
    for _ in range(STRAY_SCAN_KEYS // SCAN_BATCH_KEYS):
        cursor, found, _others = scripts.SCAN_JOBS.run(
            connection, [], [cursor, SCAN_BATCH_KEYS, "active"]
        )
        yield from (Stray(decode(job_id), decode(queue), *rest) for job_id, queue, *rest in found)
        if cursor == b"0":
            break
    connection.set(keys.STRAYS_CURSOR, cursor)


class Stray(NamedTuple):
    """What may be one: a job that waits or runs, with its time limit and its moments as they are written."""

    job_id: str
    queue: str
    timeout: bytes | None
    last_heartbeat: bytes | None
    started_at: bytes | None
    enqueued_at: bytes | None
    created_at: bytes | None


def _idle_and_nowhere(connection: redis.Redis, jobs: Iterable[Stray]) -> Iterator[tuple[str, str]]:
    """Those that have been idle for longer than their time limit, and are in no place."""
    places: dict[str, set[str]] = {}
    for job in jobs:
        if _is_idle(job):
            if job.queue not in places:
                places[job.queue] = {
                    *ids_in_places(connection, job.queue),
                    *claimed_ids(connection),
                }
            if job.job_id not in places[job.queue]:
                yield job.job_id, job.queue


def _is_idle(job: Stray) -> bool:
    """Whether nothing was heard of a job for longer than it may run; nothing to go by counts as long ago."""
    try:
        latest = max(
            (moment for moment in job[3:] if moment), default=None
        )  # as written, they sort
        moment = parse_date(latest) if latest else None
        limit = float(job.timeout or Queue.DEFAULT_TIMEOUT)
    except (ValueError, OverflowError):
        return True
    limit = UNLIMITED_JOB_IDLE_SECONDS if limit < 0 else limit
    return not moment or (now() - moment).total_seconds() > limit + STRAY_SECONDS


def has_ended(connection: redis.Redis, job_id: str, queue: str) -> bool:
    """Whether a job that is in no place is among the ended ones of `queue`, and was not enqueued after its last end (a
    Repeat stands there too): then its status was overwritten by a stale save()."""
    with connection.pipeline(transaction=False) as pipe:
        for place in ("finished", "failed", "canceled"):
            pipe.zscore(keys.registry(place, queue), job_id)
        pipe.hget(keys.job(job_id), "enqueued_at")
        pipe.xrevrange(keys.results(job_id), count=1)
        *ended, enqueued, results = pipe.execute(raise_on_error=False)
    try:
        moment = parse_date(enqueued).timestamp()
        last = float(
            results[0][1].get(b"execution_ended_at") or int(results[0][0].split(b"-")[0]) / 1000
        )
    except (AttributeError, LookupError, TypeError, ValueError):  # nothing to go by
        moment = last = 0.0
    finished, failed, canceled = (isinstance(score, float) for score in ended)
    return canceled or (moment <= last and (finished or failed))
