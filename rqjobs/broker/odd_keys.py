"""Odd keys: keys of the wrong type, which another program has written.

An odd key holds no data of RQ or rqjobs, and blocks what they would write. A sweep renames it to
`rqjobs:odd:<key>` and logs that once. Before that, scripts and commands skip it. Keys of single
jobs and schedules are not renamed, because each blocks only itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import redis

from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode

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
KeyTypes = dict[str, tuple[str, ...]]
OddKey = tuple[str, str, str]  # a key, its type, and the right type


def find(
    connection: redis.Redis, types: KeyTypes, names: Iterable[str] = ("",), aside: bool = False
) -> list[OddKey]:
    """The odd keys of these types. Each name is put in the place of the asterisk.

    `aside`: also rename them.
    """
    kinds: list[str] = []
    for right_type, patterns in types.items():
        for pattern in patterns:
            beginning, _, end = pattern.partition("*")
            kinds += (beginning, end, right_type)
    mode = "1" if aside else ""
    commands = [
        scripts.SET_ASIDE.call([], [mode, len(kinds) // 3, *kinds, *portion])
        for portion in scripts.in_chunks(list(names))
    ]
    found = []
    for reply in scripts.read_together(connection, commands, scripts.SET_ASIDE):
        for key, type_found, right in reply:
            found.append((decode(key), decode(type_found), decode(right)))
    return found


def workers(connection: redis.Redis, *sources: str) -> list[str]:
    """The workers that may have keys: those with a lease, retired ones, and RQ's.

    `sources`: read only these keys.
    """
    commands: list[tuple[str | int, ...]] = []
    for key in sources or (keys.LEASES, keys.RETIRED_WORKERS, keys.WORKERS):
        if key == keys.WORKERS:
            commands.append(("SMEMBERS", key))
        else:
            commands.append(("ZRANGE", key, 0, -1))
    names: set[str] = set()
    for reply in scripts.read_together(connection, commands):
        if not isinstance(reply, Exception):
            names.update(decode(member).removeprefix(keys.WORKER_PREFIX) for member in reply)
    return sorted(names)


def all_of(connection: redis.Redis, queues: list[str]) -> list[OddKey]:
    """All odd keys. Nothing is changed."""
    return [
        *find(connection, SINGLE_KEYS),
        *find(connection, WORKER_KEYS, workers(connection)),
        *find(connection, QUEUE_KEYS, queues),
    ]


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
