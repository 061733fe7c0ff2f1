"""What could lose a job or keep one waiting, checked on the Redis and the settings in force."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import redis

from rqjobs import catalog, config, connection, embedded, stats

CLOCK = 1.0  # seconds that two clocks may differ


@dataclass(frozen=True)
class Finding:
    """`level` is "ok", "note" (a job may have to wait) or "LOSS" (a job would be lost or fail)."""

    level: str
    message: str


def examine() -> Iterator[Finding]:
    """Every finding, as it is made. A Redis that does not answer ends the list."""
    yield from _modules()
    try:
        address = connection.without_password(connection.url())
        client = connection.client()
        info = client.info()
    except redis.RedisError as error:
        yield Finding("LOSS", f"Redis does not answer: {error}")
        return
    yield Finding("ok", f"Redis {info['redis_version']} answers at {address}")
    yield from _server(info)
    yield from _clock(client)
    yield from _workers(stats.snapshot(client))


def _modules() -> Iterator[Finding]:
    jobs = catalog.current()
    for module in jobs.modules:
        if module in jobs.errors:
            yield Finding("LOSS", f"RQJOBS_MODULES: {module} does not import, its jobs fail: {jobs.errors[module]}")
        else:
            count = sum(function.__module__ == module for _, function in jobs)
            yield Finding("ok" if count else "note", f"{module} has {count} job function{'s' * (count != 1)}")
    try:
        catalog.flask_app()
    except config.ConfigError as error:
        yield Finding("LOSS", f"{error}; every job would fail")


def _server(info: dict[str, Any]) -> Iterator[Finding]:
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if version < embedded.MINIMUM:
        yield Finding("LOSS", f"Redis {info['redis_version']} is too old; rqjobs needs 6.2 or newer")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        yield Finding("ok", "maxmemory-policy is noeviction")
    else:
        yield Finding("LOSS", f"maxmemory-policy is {policy}: Redis would throw jobs away when memory runs short; "
                              f"set it to noeviction")
    if not info.get("aof_enabled"):
        yield Finding("LOSS", "the append-only file is off: a crash of Redis loses all jobs since its last snapshot; "
                              "set appendonly yes")
    elif info.get("aof_last_write_status", "ok") != "ok":
        yield Finding("LOSS", "Redis could not write its append-only file; is the disk full?")
    else:
        yield Finding("ok", "the append-only file is on (with appendfsync everysec a power cut loses at most a second)")
    if info.get("loading"):
        yield Finding("note", "Redis is still loading its data")


def _clock(client: redis.Redis) -> Iterator[Finding]:
    before = time.time()
    seconds, micro = client.time()
    after = time.time()
    difference = seconds + micro / 1e6 - (before + after) / 2
    if abs(difference) > CLOCK + (after - before):
        yield Finding("note", f"Redis's clock is {difference:+.1f} s from this machine's: delayed jobs come that much "
                              f"early or late; run NTP on both")
    else:
        yield Finding("ok", f"the clocks agree within {max(abs(difference), 0.001):.3f} s")


def _workers(snapshot: stats.Snapshot) -> Iterator[Finding]:
    if snapshot.suspended:
        yield Finding("note", stats.SUSPENDED)
    alive = [worker for worker in snapshot.workers if worker.alive]
    stock = [worker.name for worker in alive if not worker.ours]
    yield Finding("ok" if alive else "note", f"{len(alive)} live worker{'s' * (len(alive) != 1)}"
                  + ("" if alive else "; start one with: rqjobs worker"))
    for name in stock:
        yield Finding("LOSS", f"worker {name} is a stock rq worker, which loses its job when it is killed; start it "
                              f"with --worker-class rqjobs.Worker")
    for queue in snapshot.queues:
        if alive and not queue.workers:
            waiting = queue.queued + queue.scheduled
            yield Finding("note", f"nobody listens to the queue {queue.name!r} ({waiting} jobs wait); "
                                  f"start: rqjobs worker {queue.name}")
