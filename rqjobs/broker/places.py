"""Places: where jobs are, and how many are in each place."""

from __future__ import annotations

from collections.abc import Iterator

import redis

from rqjobs.broker import keys, leases, scripts
from rqjobs.broker.keys import decode, queue_names_in

SCAN_BATCH_KEYS = 1000  # keys that one step of a scan looks at
LIST_BATCH_IDS = 10_000  # ids that one command reads from a list
# The places of a queue's jobs, in the order of count_places.lua. Running jobs are in RQ's wip
# registry.
PLACES = (
    "queued",
    "intermediate",
    "scheduled",
    "deferred",
    "running",
    "finished",
    "failed",
    "canceled",
    "stopped",
)


def queue_names(connection: redis.Redis) -> list[str]:
    """Every queue in Redis, and the configured ones."""
    return queue_names_in(scripts.read_together(connection, [("SMEMBERS", keys.QUEUES)])[0])


def started_jobs(connection: redis.Redis, queue: str) -> list[tuple[str, str]]:
    """(job id, execution id) of the running jobs of `queue`."""
    pairs = []
    for member in connection.zrange(keys.running(queue), 0, -1):
        job_id, _, execution = decode(member).partition(":")
        pairs.append((job_id, execution))
    return pairs


def owners_of(connection: redis.Redis, started: list[tuple[str, str]]) -> list[str]:
    """The worker of each of these running jobs; "" if RQ's record of it has expired."""
    commands = []
    for job_id, execution in started:
        commands.append(("HGET", keys.execution(job_id, execution), "worker_name"))
        commands.append(("HGET", keys.job(job_id), "worker_name"))
    replies = scripts.read_together(connection, commands)
    names = [b"" if isinstance(reply, Exception) else reply for reply in replies]
    by_execution, by_job = names[::2], names[1::2]
    pairs = zip(by_execution, by_job, strict=True)
    return [decode(of_execution or of_job or b"") for of_execution, of_job in pairs]


def ids_in_places(
    connection: redis.Redis, queue: str, counts: dict[str, int] | None = None
) -> Iterator[str]:
    """The ids in the active places of `queue`, read in several steps.

    An id in several places comes several times. `counts`: the numbers of `count_places`, by which
    empty places are skipped.
    """
    if not counts:
        counts = count_places(connection, [queue]).get(queue, {})
    if counts.get("queued"):
        yield from _ids_in_list(connection, keys.queue(queue))
    if counts.get("intermediate"):
        yield from _ids_in_list(connection, keys.intermediate(queue))
    for registry in ("scheduled", "deferred"):
        if counts.get(registry):
            key = keys.registry(registry, queue)
            for member, _score in connection.zscan_iter(key, count=SCAN_BATCH_KEYS):
                yield decode(member)
    if counts.get("running"):
        for job_id, _execution in started_jobs(connection, queue):
            yield job_id


def _ids_in_list(connection: redis.Redis, key: str) -> Iterator[str]:
    start = 0
    while ids := connection.lrange(key, start, start + LIST_BATCH_IDS - 1):
        yield from map(decode, ids)
        start += len(ids)


def claimed_ids(connection: redis.Redis) -> Iterator[str]:
    """The ids in the claims of all workers."""
    yield from claims_of(connection, leases.workers_with_claims(connection))


def claims_of(connection: redis.Redis, workers: list[str]) -> Iterator[str]:
    """The ids in the claims of these workers."""
    commands = [("LRANGE", keys.claims(worker), 0, -1) for worker in workers]
    for reply in scripts.read_together(connection, commands):
        if isinstance(reply, list):  # otherwise the key has the wrong type
            yield from map(decode, reply)


def count_places(connection: redis.Redis, queues: list[str]) -> dict[str, dict[str, int]]:
    """The number of jobs in each place of each queue that has any job."""
    commands = [scripts.COUNT_PLACES.call([], portion) for portion in scripts.in_chunks(queues)]
    found = {}
    for reply in scripts.read_together(connection, commands, scripts.COUNT_PLACES):
        for name, _first_enqueued_at, *counts in reply:
            found[decode(name)] = dict(zip(PLACES, counts, strict=True))
    return found
