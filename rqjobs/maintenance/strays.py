"""Strays: jobs that have not ended and are in no place.

A plain RQ worker of several queues pops an id with `BLPOP`; until it has noted the job, the job is in
no place. A job that a plain RQ client enqueues or runs synchronously looks the same for a while. So a
stray must have been idle for longer than its own timeout, and must be seen twice.
"""

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

STRAY_SECONDS = 30  # seconds between the two sightings of a stray
STRAY_SCAN_SECONDS = 30  # seconds between two parts of the search
STRAY_SCAN_KEYS = 20_000  # keys that one part of the search scans
UNLIMITED_JOB_IDLE_SECONDS = 24 * 3600  # seconds for which a job without a timeout may be idle


def is_time_for_strays(connection: redis.Redis) -> bool:
    """Take the turn to run the next part of the search, if it is due."""
    lock = keys.STRAYS_LOCK
    if connection.set(lock, 1, nx=True, ex=STRAY_SCAN_SECONDS):
        return True
    if 0 <= connection.ttl(lock) <= STRAY_SCAN_SECONDS:
        return False
    # The lock has no end, or a later one than ours: another program has written it.
    return bool(connection.set(lock, 1, ex=STRAY_SCAN_SECONDS))


def sweep_strays(connection: redis.Redis, moment: float, result: SweepResult) -> None:
    """Run the next part of the search, and requeue the strays that are seen for the second time.

    Those that were seen before are looked at in each part: among millions of keys the search comes
    back to them after hours.

    `moment`: the time now, in Unix seconds by Redis's clock.
    """
    cursor, seen = _where_it_ended(connection)
    found = dict(_idle_and_nowhere(connection, _next_candidates(connection, cursor, seen)))
    over = [job_id for job_id in seen if decode(job_id) not in found]
    if over:
        connection.hdel(keys.STRAYS_SEEN, *over)
    for job_id, queue in found.items():
        with skip_wrong_types(f"the stray {job_id} of queue {queue}"):
            if seen_for(connection, keys.STRAYS_SEEN, job_id, moment, STRAY_SECONDS):
                again = not has_ended(connection, job_id, queue)
                outcome = recovery.recover(connection, job_id, queue, "stray", again=again)
                result.note(outcome, job_id, queue, "in no place")
                connection.hdel(keys.STRAYS_SEEN, job_id)


class Candidate(NamedTuple):
    """A job that waits or runs, with its timeout and its times as they are stored."""

    job_id: str
    queue: str
    timeout: bytes | None
    last_heartbeat: bytes | None
    started_at: bytes | None
    enqueued_at: bytes | None
    created_at: bytes | None


def _where_it_ended(connection: redis.Redis) -> tuple[bytes, list[bytes]]:
    """The cursor of the last part of the search, and the ids that have been seen as strays: all,
    unless they are very many.
    """
    commands = [
        ("GET", keys.STRAYS_CURSOR),
        ("HRANDFIELD", keys.STRAYS_SEEN, SCAN_BATCH_KEYS),
    ]
    cursor, ids = scripts.read_together(connection, commands)
    return cursor if isinstance(cursor, bytes) else b"0", ids if isinstance(ids, list) else []


def _next_candidates(
    connection: redis.Redis, cursor: bytes, seen: list[bytes]
) -> Iterator[Candidate]:
    """Jobs that wait or run: those `seen`, and from the key on at which the last part has ended.

    Logs without a job, which are found on the way, are dropped.
    """
    for _ in range(STRAY_SCAN_KEYS // SCAN_BATCH_KEYS):
        args = [cursor, SCAN_BATCH_KEYS, *seen]
        cursor, rows, logs = scripts.SCAN_JOBS.run(connection, [], args)
        seen = []
        if logs:
            scripts.DROP_LOGS.run(connection, [], logs)
        for job_id, queue, *times in rows:
            yield Candidate(decode(job_id), decode(queue), *times)
        if cursor == b"0":
            break
    connection.set(keys.STRAYS_CURSOR, cursor)


def _idle_and_nowhere(
    connection: redis.Redis, candidates: Iterable[Candidate]
) -> Iterator[tuple[str, str]]:
    """(job id, queue) of the candidates that are idle for too long and in no place."""
    placed_ids: dict[str, set[str]] = {}
    for job in candidates:
        if not _is_idle(job):
            continue
        if job.queue not in placed_ids:
            in_places = ids_in_places(connection, job.queue)
            placed_ids[job.queue] = {*in_places, *claimed_ids(connection)}
        if job.job_id not in placed_ids[job.queue]:
            yield job.job_id, job.queue


def _is_idle(job: Candidate) -> bool:
    """Whether a job's last sign of life is longer ago than its timeout; true without readable
    times.
    """
    times = (job.last_heartbeat, job.started_at, job.enqueued_at, job.created_at)
    written = [time for time in times if time]
    if not written:
        return True
    try:
        latest = parse_date(max(written))  # in RQ's format, later times sort higher
        timeout = float(job.timeout or Queue.DEFAULT_TIMEOUT)
    except (ValueError, OverflowError):
        return True
    if timeout < 0:
        timeout = UNLIMITED_JOB_IDLE_SECONDS
    return (now() - latest).total_seconds() > timeout + STRAY_SECONDS


def has_ended(connection: redis.Redis, job_id: str, queue: str) -> bool:
    """Whether a job in no place has ended, although its status is another.

    It is among the ended jobs of `queue` and was not enqueued since. A stale save() has overwritten
    its status. A job with a `Repeat` is there too, but was enqueued again.
    """
    with connection.pipeline(transaction=False) as pipe:
        for registry in keys.ENDED_REGISTRIES:
            pipe.zscore(keys.registry(registry, queue), job_id)
        pipe.hget(keys.job(job_id), "enqueued_at")
        pipe.xrevrange(keys.results(job_id), count=1)
        *scores, enqueued_at, results = pipe.execute(raise_on_error=False)
    finished, failed, canceled = (isinstance(score, float) for score in scores)
    if canceled:
        return True
    if not finished and not failed:
        return False
    try:
        return parse_date(enqueued_at).timestamp() <= _end_of(results)
    except (AttributeError, LookupError, TypeError, ValueError):  # no readable times
        return True


def _end_of(results: list[tuple[bytes, dict[bytes, bytes]]]) -> float:
    """The end of a job's last run in Unix seconds, by the newest entry of its results."""
    entry_id, fields = results[0]
    ended_at = fields.get(b"execution_ended_at")
    if ended_at:
        return float(ended_at)
    return int(entry_id.split(b"-")[0]) / 1000
