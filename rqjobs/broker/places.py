"""Where jobs are: how many stand in each place, and which."""

from __future__ import annotations

from collections.abc import Iterator

import redis

from rqjobs.broker import keys, leases, scripts
from rqjobs.broker.keys import decode, queue_names_in

SCAN_BATCH_KEYS = 1000  # keys that one step of a scan looks at


def queue_names(connection: redis.Redis) -> list[str]:
    """Every queue that Redis knows of, and the configured ones."""
    return queue_names_in(scripts.read_together(connection, [("SMEMBERS", keys.QUEUES)])[0])


def started_jobs(connection: redis.Redis, queue: str) -> list[tuple[str, str]]:
    """(job id, execution id) of what stands in `rq:wip:<queue>`."""
    pairs = (
        decode(member).partition(":") for member in connection.zrange(keys.running(queue), 0, -1)
    )
    return [(job_id, execution) for job_id, _, execution in pairs]


def owners_of(connection: redis.Redis, started: list[tuple[str, str]]) -> list[str]:
    """The worker that holds each of these executions; "" where RQ has forgotten it (its own heartbeat ended)."""
    replies = scripts.read_together(
        connection,
        [
            ("HGET", key, "worker_name")
            for job_id, execution in started
            for key in (keys.execution(job_id, execution), keys.job(job_id))
        ],
    )
    names = [None if isinstance(reply, Exception) else reply for reply in replies]
    return [decode(names[i] or names[i + 1] or b"") for i in range(0, len(names), 2)]


def ids_in_places(
    connection: redis.Redis, queue: str, counts: dict[str, int] | None = None
) -> Iterator[str]:
    """Every id in an active place of `queue`, as often as it stands there; read in pieces, not in one instant.

    `counts`: how many stand where, as `census` says it; what is empty is not looked at.
    """
    counts = counts or count_places(connection, [queue]).get(queue, {})
    for place, key in (
        ("queued", keys.queue(queue)),
        ("intermediate", keys.intermediate(queue)),
    ):
        start = 0
        while counts.get(place) and (ids := connection.lrange(key, start, start + 9999)):
            yield from map(decode, ids)
            start += len(ids)
    for registry in ("scheduled", "deferred"):
        if counts.get(registry):
            for member, _ in connection.zscan_iter(
                keys.registry(registry, queue), count=SCAN_BATCH_KEYS
            ):
                yield decode(member)
    if counts.get("running"):
        yield from (job_id for job_id, _ in started_jobs(connection, queue))


def claimed_ids(connection: redis.Redis) -> Iterator[str]:
    """Every id in a worker's claims."""
    yield from claims_of(connection, leases.workers_with_claims(connection))


def claims_of(connection: redis.Redis, workers: list[str]) -> Iterator[str]:
    commands = [("LRANGE", keys.claims(worker), 0, -1) for worker in workers]
    for ids in scripts.read_together(connection, commands):
        yield from map(
            decode, ids if isinstance(ids, list) else []
        )  # an error: no list stands there


# The audit

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


def count_places(connection: redis.Redis, queues: list[str]) -> dict[str, dict[str, int]]:
    """How many jobs stand in each place of each queue that has any, some queues at a time."""
    commands = [scripts.COUNT_PLACES.call([], portion) for portion in scripts.in_chunks(queues)]
    found = {}
    for reply in scripts.read_together(connection, commands, scripts.COUNT_PLACES):
        found.update(
            {decode(name): dict(zip(PLACES, counts, strict=True)) for name, _, *counts in reply}
        )
    return found
