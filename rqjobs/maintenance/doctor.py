"""The doctor: what in Redis, the settings or the workers could lose a job or let it wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import redis
from redis.exceptions import NoScriptError
from rq.command import PUBSUB_CHANNEL_TEMPLATE

from rqjobs import catalog, config, connection, outbox, stats, texts
from rqjobs.broker import keys, odd_keys, scripts


class Level(Enum):
    """How serious a finding is."""

    OK = "ok"
    NOTE = "note"  # a job may have to wait
    LOSS = "LOSS"  # a job would be lost, or fail

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Finding:
    level: Level
    message: str


CLOCK_DIFFERENCE_SECONDS = 1.0  # seconds by which Redis's clock and this machine's may differ
FULL_MEMORY_SHARE = 0.9  # share of maxmemory above which Redis counts as nearly full
OVERDUE_SECONDS = 10  # longer than another scheduler needs to take over
NOTHING_WORKS = "no job can be enqueued, and no outcome recorded"
# Commands that change nothing, because their keys do not exist. Redis refuses them all the same.
PROBES: tuple[tuple[Level, str, tuple[Any, ...]], ...] = (
    (Level.LOSS, NOTHING_WORKS, ("LMOVE", keys.DOCTOR, keys.DOCTOR, "LEFT", "RIGHT")),
    (Level.LOSS, NOTHING_WORKS, ("EXISTS", keys.job("doctor"))),
    (Level.LOSS, NOTHING_WORKS, ("SCRIPT LOAD", "return 1")),
    (Level.LOSS, NOTHING_WORKS, ("EVALSHA", "0" * 40, 0)),
    (Level.LOSS, NOTHING_WORKS, ("TIME",)),  # the scripts call it
    (Level.NOTE, "delayed jobs may begin a second late", ("PUBLISH", keys.DOCTOR, "")),
    (
        Level.NOTE,
        "commands such as stop-job do not reach the workers",
        ("PUBLISH", PUBSUB_CHANNEL_TEMPLATE % "doctor", ""),
    ),
)


def examine() -> Iterator[Finding]:
    """Every finding, as it is made. If Redis does not answer, that is the last one."""
    yield from _modules()
    try:
        address = connection.mask_password(connection.url())
        client = connection.client()
        client.ping()
    except redis.RedisError as error:
        message = connection.explain(error)
        if not connection.refusal_code(error):
            message = f"Redis does not answer: {message}"
        yield Finding(Level.LOSS, message)
        return
    yield Finding(Level.OK, f"Redis answers at {address}")
    yield from check(client)


def check(client: redis.Redis) -> Iterator[Finding]:
    """The findings about Redis, the workers, the queues and the outbox."""
    for what, examine_part in DOCTOR_CHECKS.items():
        try:
            yield from examine_part(client)
        except redis.ResponseError as error:
            message = f"{what} cannot be checked: {connection.explain(error)}"
            yield Finding(Level.NOTE, message)


def _modules() -> Iterator[Finding]:
    try:
        catalog.flask_app()  # first, because its config may have RQJOBS_MODULES
    except config.ConfigError as error:
        yield Finding(Level.LOSS, f"{error}; every job would fail")
    current = catalog.current()
    for module in current.modules:
        if module in current.import_errors:
            yield Finding(
                Level.LOSS,
                f"RQJOBS_MODULES: {module} does not import, its jobs fail: "
                f"{current.import_errors[module]}",
            )
            continue
        count = sum(function.__module__ == module for _, function in current)
        level = Level.OK if count else Level.NOTE
        yield Finding(level, f"{module} has {_counted(count, 'job function')}")


def _counted(count: int, noun: str) -> str:
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun}s"


def _server(client: redis.Redis) -> Iterator[Finding]:
    before = time.time()
    moment, info = scripts.read_together(client, [("TIME",), ("INFO",)])
    yield from _clock(moment[0] + moment[1] / 1e6, before, time.time())
    if isinstance(info, redis.ResponseError):  # the Redis user may not call it
        raise info
    yield from server_findings(info)


def server_findings(info: dict[str, Any]) -> Iterator[Finding]:
    """Findings about the version, the memory and persistence, from a reply to INFO.

    `info` may have only the sections "memory" and "persistence".
    """
    if "redis_version" in info:
        yield from _version(str(info["redis_version"]))
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        yield Finding(Level.OK, "maxmemory-policy is noeviction")
    else:
        yield Finding(
            Level.LOSS,
            f"maxmemory-policy is {policy}: Redis would throw jobs away when memory runs short; "
            f"set it to noeviction",
        )
    yield from _append_only_file(info)
    yield from _snapshot(info)
    used, limit = info.get("used_memory", 0), info.get("maxmemory", 0)
    if limit and used >= FULL_MEMORY_SHARE * limit:
        yield Finding(
            Level.NOTE,
            f"Redis uses {used / limit:.0%} of its maxmemory ({limit:,} bytes); when it is full it "
            f"refuses new jobs: give it more, or delete what is not needed",
        )


def _version(version: str) -> Iterator[Finding]:
    yield Finding(Level.OK, f"Redis's version is {version}")
    if tuple(int(part) for part in version.split(".")[:2]) < connection.MIN_REDIS_VERSION:
        yield Finding(Level.LOSS, f"Redis {version} is too old; rqjobs needs 6.2 or newer")


def _append_only_file(info: dict[str, Any]) -> Iterator[Finding]:
    if not info.get("aof_enabled"):
        yield Finding(
            Level.LOSS,
            "the append-only file is off: a crash of Redis loses all jobs since its last snapshot; "
            "set appendonly yes",
        )
    elif info.get("aof_last_write_status", "ok") != "ok":
        yield Finding(
            Level.LOSS, "Redis could not write its append-only file; free space on its disk"
        )
    else:
        yield Finding(
            Level.OK,
            "the append-only file is on (with appendfsync everysec a power cut loses at most a "
            "second)",
        )
    if info.get("aof_enabled") and info.get("aof_last_bgrewrite_status", "ok") != "ok":
        yield Finding(
            Level.NOTE,
            "the last rewrite of the append-only file failed, so the file grows until the disk is "
            "full; free space on that disk, and memory for Redis's child process: its log gives the "
            "reason",
        )


def _snapshot(info: dict[str, Any]) -> Iterator[Finding]:
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield Finding(
            Level.LOSS,
            "the last snapshot of Redis (RDB) failed. With stop-writes-on-bgsave-error yes, its "
            "default, Redis refuses new jobs and outcomes then; free space on its disk, and memory "
            "for its child process: its log gives the reason",
        )


def _rights(client: redis.Redis) -> Iterator[Finding]:
    with client.pipeline(transaction=False) as pipe:
        for _, _, command in PROBES:
            pipe.execute_command(*command)
        replies = pipe.execute(raise_on_error=False)
    for (level, consequence, _), reply in zip(PROBES, replies, strict=True):
        if isinstance(reply, NoScriptError):
            continue  # the user may call scripts; this one does not exist
        if isinstance(reply, redis.ResponseError):
            yield Finding(level, f"{consequence}: {connection.explain(reply)}")


def _clock(redis_time: float, before: float, after: float) -> Iterator[Finding]:
    """A finding about Redis's clock, which was read between these moments of this machine's."""
    difference = redis_time - (before + after) / 2
    if abs(difference) > CLOCK_DIFFERENCE_SECONDS + (after - before):
        yield Finding(
            Level.NOTE,
            f"Redis's clock is {difference:+.1f} s from this machine's: delayed jobs come that "
            f"much early or late; run NTP on both",
        )
    else:
        yield Finding(Level.OK, f"the clocks agree within {max(abs(difference), 0.001):.3f} s")


def _workers(client: redis.Redis) -> Iterator[Finding]:
    snapshot = stats.snapshot(client)
    if snapshot.suspended:
        yield Finding(Level.NOTE, stats.SUSPENDED)
    for pause in snapshot.paused:
        yield Finding(Level.NOTE, pause.describe())
    alive = [worker for worker in snapshot.workers if worker.alive]
    if alive:
        yield Finding(Level.OK, _counted(len(alive), "live worker"))
    else:
        yield Finding(Level.NOTE, "0 live workers; start one with: rqjobs worker")
    for worker in alive:
        if not worker.ours:
            yield Finding(
                Level.LOSS,
                f"worker {worker.name} is a plain rq worker, which loses its job when it is "
                f"killed; start it with --worker-class rqjobs.Worker",
            )
    for queue in snapshot.queues:
        if alive and not queue.workers:
            waiting = texts.jobs(queue.queued + queue.scheduled, "waits", "wait")
            yield Finding(
                Level.NOTE,
                f"no worker listens to the queue {queue.name!r} ({waiting}); "
                f"start: rqjobs worker {queue.name}",
            )
    yield from _delayed(client, snapshot)


def _delayed(client: redis.Redis, snapshot: stats.Snapshot) -> Iterator[Finding]:
    queues = [queue for queue in snapshot.queues if queue.scheduled]
    overdue = snapshot.read_at - OVERDUE_SECONDS
    with client.pipeline(transaction=False) as pipe:
        for queue in queues:
            pipe.exists(keys.scheduler_lock(queue.name))
            pipe.zcount(keys.scheduled(queue.name), "-inf", overdue)
        replies = pipe.execute(raise_on_error=False)
    for queue, is_served, late in zip(queues, replies[::2], replies[1::2], strict=True):
        if is_served == 0:
            yield Finding(
                Level.NOTE,
                f"no scheduler serves the queue {queue.name!r}, whose {queue.scheduled} delayed "
                f"jobs stay where they are; start: rqjobs worker {queue.name}",
            )
        elif isinstance(late, int) and late:
            yield Finding(
                Level.NOTE,
                f"{late} delayed jobs of the queue {queue.name!r} are overdue by more than "
                f"{OVERDUE_SECONDS} s; its scheduler's log gives the reason",
            )


def _outbox(client: redis.Redis) -> Iterator[Finding]:
    if not outbox.is_used():
        return
    try:
        found = outbox.status()
    except Exception as error:  # of any driver
        message = f"no job of the outbox can be moved: {outbox.explain(error)}"
        yield Finding(Level.LOSS, message)
        return
    for row in found.damaged:
        yield Finding(
            Level.LOSS,
            f"the row {row.row_id} of {outbox.TABLE_NAME} cannot be moved: {row.error}; correct its "
            f"payload and set its error to NULL, or delete it",
        )
    if found.oldest_seconds > OVERDUE_SECONDS:
        waiting = texts.jobs(found.waiting, "waits", "wait")
        yield Finding(
            Level.NOTE,
            f"{waiting} in the outbox, the oldest for {found.oldest_seconds:.0f} s; "
            f"a worker with the scheduler moves them, and its log gives the reason",
        )
    elif not found.damaged:
        yield Finding(Level.OK, "the outbox is up to date")


def _odd_keys(client: redis.Redis) -> Iterator[Finding]:
    for key, type_found, right in odd_keys.all_of(client):
        yield Finding(
            Level.NOTE,
            f"Redis key {key} is a {type_found} instead of a {right} (written by another program); "
            f"the next sweep of a worker renames it, and so does rqjobs recover",
        )


DOCTOR_CHECKS: dict[str, Callable[[redis.Redis], Iterator[Finding]]] = {
    "version, memory and persistence": _server,
    "rights": _rights,
    "workers and queues": _workers,
    "the outbox": _outbox,
    "the types of keys": _odd_keys,
}
