"""Odd records: keys that somebody else wrote, of a type that neither RQ nor we write there.

A key of the wrong type holds nothing of ours, and it is in the way of what we would write. So whoever sweeps renames it
to `rqjobs:odd:<key>`, once, and says so; whoever meets it before that passes over it. Keys of single jobs and schedules
are left where they are: they are in nobody's way but their own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import redis

from rqjobs.broker import keys as broker_keys
from rqjobs.broker import scripts
from rqjobs.broker.keys import decode

log = logging.getLogger("rqjobs")
SINGLE = {
    "string": (
        "rqjobs:sweep",
        "rqjobs:swept",
        "rqjobs:strays:lock",
        "rqjobs:strays:cursor",
        "rqjobs:schedules:revision",
        "rqjobs:schedules:announced",
        "rqjobs:schedules:clock",
    ),
    "zset": ("rqjobs:workers", "rqjobs:departed", "rqjobs:schedules"),
    "set": ("rqjobs:waking", "rq:queues", "rq:workers"),
    "hash": ("rqjobs:strays:seen", "rqjobs:schedules:open", "rqjobs:schedules:declared"),
    "none": ("rqjobs:result",),  # it is only there inside a script
}
OF_WORKERS = {"hash": ("rqjobs:worker:*", "rq:worker:*"), "list": ("rqjobs:claims:*",)}
OF_QUEUES = {
    "list": ("rq:queue:*", "rq:queue:*:intermediate"),
    "zset": (
        "rq:scheduled:*",
        "rq:deferred:*",
        "rq:wip:*",
        "rq:finished:*",
        "rq:failed:*",
        "rq:canceled:*",
        "rqjobs:crashed:*",
        "rqjobs:stopped:*",
    ),
    "set": ("rq:workers:*",),
    "hash": ("rqjobs:missing:*", "rqjobs:seen:*"),
    "string": ("rq:scheduler-lock:*",),
}
Kinds = dict[str, tuple[str, ...]]
Odd = tuple[str, str, str]  # a key, the type that it is of, and the one that it should be of


def find(
    connection: redis.Redis, kinds: Kinds, names: Iterable[str] = ("",), aside: bool = False
) -> list[Odd]:
    """The odd keys of these kinds, with each name in the place of the asterisk; `aside`: renamed, too."""
    words = [
        word
        for kind, keys in kinds.items()
        for key in keys
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


def workers(connection: redis.Redis, *keys: str) -> list[str]:
    """The names under which keys of workers may stand: those with a lease, those that have gone, and RQ's; or those in
    these `keys`."""
    replies = scripts.read_together(
        connection,
        [
            ("SMEMBERS", key) if key == "rq:workers" else ("ZRANGE", key, 0, -1)
            for key in keys or (broker_keys.LEASES, broker_keys.RETIRED_WORKERS, "rq:workers")
        ],
    )
    names = {
        decode(name).removeprefix("rq:worker:")
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
