"""What could lose a job or keep one waiting, checked on the Redis and the settings in force."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import redis
from redis.exceptions import NoScriptError
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.scheduler import RQScheduler

from rqjobs import catalog, config, connection, stats
from rqjobs.broker import keys, odd_keys

CLOCK = 1.0  # seconds that two clocks may differ
FULL = 0.9  # of maxmemory
OVERDUE_SECONDS = 10  # longer than another scheduler takes to step in
NOTHING_GOES = "no job can be enqueued, and no outcome recorded"
PROBES: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("LOSS", NOTHING_GOES, ("LMOVE", keys.DOCTOR, keys.DOCTOR, "LEFT", "RIGHT")),
    ("LOSS", NOTHING_GOES, ("EXISTS", keys.job("doctor"))),
    ("LOSS", NOTHING_GOES, ("SCRIPT LOAD", "return 1")),
    ("LOSS", NOTHING_GOES, ("EVALSHA", "0" * 40, 0)),
    ("note", "delayed jobs may begin a second late", ("PUBLISH", keys.DOCTOR, "")),
    (
        "note",
        "commands such as stop-job do not reach the workers",
        ("PUBLISH", PUBSUB_CHANNEL_TEMPLATE % "doctor", ""),
    ),
)


@dataclass(frozen=True)
class Finding:
    """`level` is "ok", "note" (a job may have to wait) or "LOSS" (a job would be lost or fail)."""

    level: str
    message: str


def examine() -> Iterator[Finding]:
    """Every finding, as it is made. A Redis that does not answer ends the list."""
    yield from _modules()
    try:
        address = connection.mask_password(connection.url())
        client = connection.client()
        client.ping()
    except redis.RedisError as error:
        refused = connection.refusal_code(error)
        yield Finding(
            "LOSS", f"{'' if refused else 'Redis does not answer: '}{connection.explain(error)}"
        )
        return
    yield Finding("ok", f"Redis answers at {address}")
    for what, check in CHECKS.items():
        try:
            yield from check(client)
        except redis.ResponseError as error:
            yield Finding("note", f"{what} cannot be checked: {connection.explain(error)}")


def _modules() -> Iterator[Finding]:
    jobs = catalog.current()
    for module in jobs.modules:
        if module in jobs.import_errors:
            yield Finding(
                "LOSS",
                f"RQJOBS_MODULES: {module} does not import, its jobs fail: {jobs.import_errors[module]}",
            )
        else:
            count = sum(function.__module__ == module for _, function in jobs)
            yield Finding(
                "ok" if count else "note", f"{module} has {count} job function{'s' * (count != 1)}"
            )
    try:
        catalog.flask_app()
    except config.ConfigError as error:
        yield Finding("LOSS", f"{error}; every job would fail")


def _server(client: redis.Redis) -> Iterator[Finding]:
    info = client.info()
    yield Finding("ok", f"it is Redis {info['redis_version']}")
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if version < connection.MIN_REDIS_VERSION:
        yield Finding(
            "LOSS", f"Redis {info['redis_version']} is too old; rqjobs needs 6.2 or newer"
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        yield Finding("ok", "maxmemory-policy is noeviction")
    else:
        yield Finding(
            "LOSS",
            f"maxmemory-policy is {policy}: Redis would throw jobs away when memory runs short; "
            f"set it to noeviction",
        )
    if not info.get("aof_enabled"):
        yield Finding(
            "LOSS",
            "the append-only file is off: a crash of Redis loses all jobs since its last snapshot; "
            "set appendonly yes",
        )
    elif info.get("aof_last_write_status", "ok") != "ok":
        yield Finding("LOSS", "Redis could not write its append-only file; is the disk full?")
    else:
        yield Finding(
            "ok",
            "the append-only file is on (with appendfsync everysec a power cut loses at most a second)",
        )
    used, most = info.get("used_memory", 0), info.get("maxmemory", 0)
    if most and used >= FULL * most:
        yield Finding(
            "note",
            f"Redis uses {used / most:.0%} of its maxmemory ({most:,} bytes); when it is full it "
            f"refuses new jobs: give it more, or delete what is not needed",
        )


def _rights(client: redis.Redis) -> Iterator[Finding]:
    """By commands that change nothing, as their keys do not exist; Redis refuses them all the same."""
    for level, consequence, command in PROBES:
        try:
            client.execute_command(*command)
        except NoScriptError:
            continue  # so it may run one that there is
        except redis.ResponseError as error:
            yield Finding(level, f"{consequence}: {connection.explain(error)}")


def _clock(client: redis.Redis) -> Iterator[Finding]:
    before = time.time()
    seconds, micro = client.time()
    after = time.time()
    difference = seconds + micro / 1e6 - (before + after) / 2
    if abs(difference) > CLOCK + (after - before):
        yield Finding(
            "note",
            f"Redis's clock is {difference:+.1f} s from this machine's: delayed jobs come that much "
            f"early or late; run NTP on both",
        )
    else:
        yield Finding("ok", f"the clocks agree within {max(abs(difference), 0.001):.3f} s")


def _workers(client: redis.Redis) -> Iterator[Finding]:
    snapshot = stats.snapshot(client)
    if snapshot.suspended:
        yield Finding("note", stats.SUSPENDED)
    alive = [worker for worker in snapshot.workers if worker.alive]
    stock = [worker.name for worker in alive if not worker.ours]
    yield Finding(
        "ok" if alive else "note",
        f"{len(alive)} live worker{'s' * (len(alive) != 1)}"
        + ("" if alive else "; start one with: rqjobs worker"),
    )
    for name in stock:
        yield Finding(
            "LOSS",
            f"worker {name} is a stock rq worker, which loses its job when it is killed; start it "
            f"with --worker-class rqjobs.Worker",
        )
    for queue in snapshot.queues:
        if alive and not queue.workers:
            waiting = queue.queued + queue.scheduled
            yield Finding(
                "note",
                f"nobody listens to the queue {queue.name!r} ({waiting} jobs wait); "
                f"start: rqjobs worker {queue.name}",
            )
    yield from _delayed(client, [queue for queue in snapshot.queues if queue.scheduled])


def _delayed(client: redis.Redis, queues: list[stats.QueueStats]) -> Iterator[Finding]:
    overdue = client.time()[0] - OVERDUE_SECONDS
    with client.pipeline(transaction=False) as pipe:
        for queue in queues:
            pipe.exists(RQScheduler.get_locking_key(queue.name))
            pipe.zcount(keys.scheduled(queue.name), "-inf", overdue)
        replies = pipe.execute(raise_on_error=False)
    for queue, served, late in zip(queues, replies[::2], replies[1::2], strict=True):
        if served == 0:
            yield Finding(
                "note",
                f"no scheduler serves the queue {queue.name!r}, whose {queue.scheduled} delayed jobs "
                f"stay where they are; start: rqjobs worker {queue.name}",
            )
        elif isinstance(late, int) and late:
            yield Finding(
                "note",
                f"{late} delayed jobs of the queue {queue.name!r} are overdue by more than "
                f"{OVERDUE_SECONDS} s; its scheduler's log says why",
            )


def _odd_keys(client: redis.Redis) -> Iterator[Finding]:
    for key, found, wanted in odd_keys.all_of(client, stats.queue_names(client)):
        yield Finding(
            "note",
            f"the key {key} in Redis is a {found}, and no {wanted}: somebody else wrote there; the "
            f"next sweep of a worker sets it aside, and so does rqjobs recover",
        )


CHECKS: dict[str, Callable[[redis.Redis], Iterator[Finding]]] = {
    "version, memory and append-only file": _server,
    "rights": _rights,
    "clocks": _clock,
    "workers and queues": _workers,
    "the types of keys": _odd_keys,
}
