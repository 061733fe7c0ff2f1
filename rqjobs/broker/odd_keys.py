"""Odd keys: keys of the wrong type, which another program has written.

An odd key holds no data of RQ or rqjobs, and blocks what they would write. A sweep renames it to
`rqjobs:odd:<key>` and logs that once. Before that, scripts and commands skip it. Keys of single
jobs and schedules are not renamed, because each blocks only itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import redis

from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode, queue_names_in

log = logging.getLogger("rqjobs")
# The right types of keys. "*" stands for a worker or a queue.
SINGLE_KEYS = {
    "string": (
        keys.SWEEP_LOCK,
        keys.LAST_SWEEP,
        keys.STRAYS_LOCK,
        keys.STRAYS_CURSOR,
        keys.UNIQUE_CURSOR,
        keys.SCHEDULES_REVISION,
        keys.SCHEDULES_ANNOUNCED,
        keys.SCHEDULES_LOCK,
    ),
    "zset": (
        keys.LEASES,
        keys.RETIRED_WORKERS,
        keys.SCHEDULES,
        keys.RATE_DUE,
        keys.FAILURE_GROUPS,
        keys.FLOWS,
        keys.HELD_FLOWS,
    ),
    "set": (keys.ENDED_PARENTS, keys.PAUSED_JOBS, keys.QUEUES, keys.WORKERS, keys.WAITING_KEYS),
    "hash": (
        keys.PAUSED,
        keys.NEW_FAILURES,
        keys.STRAYS_SEEN,
        keys.SCHEDULES_UNFINISHED,
        keys.SCHEDULES_DECLARED,
        keys.LAST_WOKEN,
        keys.DEFERRED_CURSORS,
        keys.UNIQUE,
        keys.COUNTS_DAY,
        keys.ALERTS,
        keys.ALERT_TRIES,
        keys.METRICS,
        keys.TOTALS,
    ),
    "none": (keys.RESULT,),  # exists only inside a script
}
WORKER_KEYS = {
    "hash": (keys.process("*"), keys.worker("*"), keys.slots_of("*")),
    "list": (keys.claims("*"),),
}
QUEUE_KEYS = {
    "list": (keys.queue("*"), keys.intermediate("*")),
    "zset": (
        *(keys.registry(kind, "*") for kind in keys.REGISTRIES),
        keys.crash_backoff("*"),
        keys.stopped("*"),
        keys.canceled_expiry("*"),
    ),
    "set": (keys.listeners("*"),),
    "hash": (keys.scheduled_without_job("*"), keys.seen_intermediate("*")),
    "string": (keys.scheduler_lock("*"),),
}
WORKER_SOURCES = (keys.LEASES, keys.RETIRED_WORKERS, keys.WORKERS)  # the keys with their names
KeyTypes = dict[str, tuple[str, ...]]
OddKey = tuple[str, str, str]  # a key, its type, and the right type


def find(
    connection: redis.Redis, types: KeyTypes, names: Iterable[str] = ("",), aside: bool = False
) -> list[OddKey]:
    """The odd keys of these types. Each name is put in the place of the asterisk.

    `aside`: also rename them.
    """
    return _run(connection, _commands(types, names, aside))


def all_of(connection: redis.Redis) -> list[OddKey]:
    """All odd keys, in two round trips. Nothing is changed."""
    reads = [("SMEMBERS", keys.QUEUES), *_names_commands(WORKER_SOURCES)]
    queues, *workers_read = scripts.read_together(connection, reads)
    commands = [
        *_commands(SINGLE_KEYS),
        *_commands(WORKER_KEYS, _worker_names(workers_read)),
        *_commands(QUEUE_KEYS, queue_names_in(queues)),
    ]
    return _run(connection, commands)


def _commands(
    types: KeyTypes, names: Iterable[str] = ("",), aside: bool = False
) -> list[tuple[Any, ...]]:
    kinds: list[str] = []
    for right_type, patterns in types.items():
        for pattern in patterns:
            beginning, _, end = pattern.partition("*")
            kinds += (beginning, end, right_type)
    mode = "1" if aside else ""
    return [
        scripts.SET_ASIDE.call([], [mode, len(kinds) // 3, *kinds, *portion])
        for portion in scripts.in_chunks(list(names))
    ]


def _run(connection: redis.Redis, commands: list[tuple[Any, ...]]) -> list[OddKey]:
    replies = scripts.read_together(connection, commands, scripts.SET_ASIDE)
    return [
        (decode(key), decode(type_found), decode(right))
        for reply in replies
        for key, type_found, right in reply
    ]


def workers(connection: redis.Redis, *sources: str) -> list[str]:
    """The workers that may have keys: those with a lease, retired ones, and RQ's.

    `sources`: read only these keys.
    """
    commands = _names_commands(sources or WORKER_SOURCES)
    return _worker_names(scripts.read_together(connection, commands))


def _names_commands(sources: Iterable[str]) -> list[tuple[Any, ...]]:
    return [("SMEMBERS", key) if key == keys.WORKERS else ("ZRANGE", key, 0, -1) for key in sources]


def _worker_names(replies: list[Any]) -> list[str]:
    names: set[str] = set()
    for reply in replies:
        if not isinstance(reply, Exception):
            names.update(decode(member).removeprefix(keys.WORKER_PREFIX) for member in reply)
    return sorted(names)


def set_aside(connection: redis.Redis, types: KeyTypes, names: Iterable[str] = ("",)) -> bool:
    """Rename the odd keys of these types and log each. Returns whether there were any."""
    found = find(connection, types, names, aside=True)
    for key, type_found, right in found:
        log.error(
            "Redis key %s was a %s instead of a %s (written by another program); renamed to %s",
            key,
            type_found,
            right,
            keys.odd(key),
        )
    return bool(found)
