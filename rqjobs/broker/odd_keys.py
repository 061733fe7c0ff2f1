"""Odd records: keys_ that somebody else wrote, of a type that neither RQ nor we write there.

A key of the wrong type holds nothing of ours, and it is in the way of what we would write. So whoever sweeps renames it
to `rqjobs:odd:<key>`, once, and says so; whoever meets it before that passes over it. Keys of single jobs and schedules
are left where they are: they are in nobody's way but their own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import redis

from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode

log = logging.getLogger("rqjobs")
SINGLE = {
    "string": (
        keys.SWEEP_LOCK,
        keys.LAST_SWEEP,
        keys.STRAYS_LOCK,
        keys.STRAYS_CURSOR,
        keys.SCHEDULES_REVISION,
        keys.SCHEDULES_ANNOUNCED,
        keys.SCHEDULES_LOCK,
    ),
    "zset": (keys.LEASES, keys.RETIRED_WORKERS, keys.SCHEDULES),
    "set": (keys.ENDED_PARENTS, keys.QUEUES, keys.WORKERS),
    "hash": (keys.STRAYS_SEEN, keys.SCHEDULES_UNFINISHED, keys.SCHEDULES_DECLARED),
    "none": (keys.RESULT,),  # it exists only inside a script
}
OF_WORKERS = {"hash": (keys.process("*"), keys.worker("*")), "list": (keys.claims("*"),)}
OF_QUEUES = {
    "list": (keys.queue("*"), keys.intermediate("*")),
    "zset": (
        *(keys.registry(kind, "*") for kind in keys.REGISTRIES),
        keys.crash_backoff("*"),
        keys.stopped("*"),
    ),
    "set": (keys.listeners("*"),),
    "hash": (keys.scheduled_without_job("*"), keys.seen_intermediate("*")),
    "string": (keys.scheduler_lock("*"),),
}
Kinds = dict[str, tuple[str, ...]]
Odd = tuple[str, str, str]  # a key, the type that it is of, and the one that it should be of


def find(
    connection: redis.Redis, kinds: Kinds, names: Iterable[str] = ("",), aside: bool = False
) -> list[Odd]:
    """The odd keys of these kinds, with each name in the place of the asterisk; `aside`: renamed, too."""
    words = [
        word
        for kind, patterns in kinds.items()
        for key in patterns
        for word in (*key.partition("*")[::2], kind)
    ]
    commands = [
        scripts.SET_ASIDE.call([], ["1" if aside else "", len(words) // 3, *words, *portion])
        for portion in scripts.in_chunks(list(names))
    ]
    return [
        (decode(key), decode(found), decode(wanted))
        for reply in scripts.read_together(connection, commands, scripts.SET_ASIDE)
        for key, found, wanted in reply
    ]


def workers(connection: redis.Redis, *sources: str) -> list[str]:
    """The workers that may have keys: those with a lease, retired ones, and RQ's; or those in
    `sources`."""
    replies = scripts.read_together(
        connection,
        [
            ("SMEMBERS", key) if key == keys.WORKERS else ("ZRANGE", key, 0, -1)
            for key in sources or (keys.LEASES, keys.RETIRED_WORKERS, keys.WORKERS)
        ],
    )
    names = {
        decode(name).removeprefix(keys.WORKER_PREFIX)
        for reply in replies
        if not isinstance(reply, Exception)
        for name in reply
    }
    return sorted(names)


def all_of(connection: redis.Redis, queues: list[str]) -> list[Odd]:
    """The odd keys of every kind; nothing is changed."""
    return [
        *find(connection, SINGLE),
        *find(connection, OF_WORKERS, workers(connection)),
        *find(connection, OF_QUEUES, queues),
    ]


def set_aside(connection: redis.Redis, kinds: Kinds, names: Iterable[str] = ("",)) -> bool:
    """Rename the odd keys of these kinds, and log each; whether there were any."""
    odd = find(connection, kinds, names, aside=True)
    for key, found, wanted in odd:
        log.error(
            "the key %s in Redis was a %s, and no %s: somebody else wrote there; it is now rqjobs:odd:%s",
            key,
            found,
            wanted,
            key,
        )
    return bool(odd)
