"""The inbox of failures: search, page and ignore the groups of failed jobs.

Nothing here reads more than the names of the groups, and the counts of those on one page. Lists
are paged by the last entry that was shown, so none is left out while others arrive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis

from rqjobs import connection, failed
from rqjobs.broker import keys, places, scripts
from rqjobs.broker.keys import decode
from rqjobs.failed import FailedJob, Group
from rqjobs.texts import escape_surrogates

MAX_GROUPS = 5000  # of which the names are read; the scripts make no more than 1,001
MAX_WHO_CHARACTERS = 100  # of the person who ignores a group
SCAN_JOBS = 1000  # failed jobs that one step of the search for those without a group looks at
MAX_SCANS = 3  # such steps of one page
NAME_FIELDS = ("function", "error", "message", "ignored", "total")
CURSOR = re.compile(r"(-?\d{1,12}(?:\.\d{1,17})?):(.{1,300})", re.ASCII | re.DOTALL)


@dataclass(frozen=True)
class Inbox:
    """One page of groups, the one that failed last first.

    `next`: the cursor of the page after this one, "" for none. `matched`: the groups on all pages.
    `watched` and `ignored`: all groups, by whether they count as trouble.
    """

    groups: list[Group]
    next: str
    matched: int
    watched: int
    ignored: int


@dataclass(frozen=True)
class JobsPage:
    """Ids of the jobs of a group, the last failure first, and the cursor of the next page or ""."""

    ids: list[str]
    next: str


@dataclass(frozen=True)
class Ungrouped:
    """Some failed jobs without a group, and the cursor from which to look further, "" for none."""

    jobs: list[FailedJob]
    next: str


@dataclass(frozen=True)
class _Entry:
    """A group by its names alone."""

    score: str
    id: str
    text: str
    is_ignored: bool

    @property
    def place(self) -> tuple[float, str]:
        return float(self.score), self.id


# Groups


def page(text: str = "", ignored: bool = False, after: str = "", limit: int = 25) -> Inbox:
    """A page of the groups whose function, error or message contains `text`, in any case.

    Args:
        ignored: those that are ignored, in place of the others.
        after: the cursor of the page before; one that is none begins at the start.
    """
    client = connection.client()
    entries = _entries(client)
    words = text.casefold()
    wanted = [one for one in entries if one.is_ignored == ignored and words in one.text]
    ahead = wanted
    if place := _read_cursor(after):
        ahead = [one for one in wanted if one.place < place]
    shown = ahead[:limit]
    number = sum(one.is_ignored for one in entries)
    return Inbox(
        groups=failed.read_groups(client, [one.id for one in shown]),
        next=f"{shown[-1].score}:{shown[-1].id}" if len(ahead) > limit else "",
        matched=len(wanted),
        watched=len(entries) - number,
        ignored=number,
    )


def _read_cursor(text: str) -> tuple[float, str] | None:
    found = CURSOR.fullmatch(text)
    return (float(found[1]), found[2]) if found else None


def _entries(client: redis.Redis) -> list[_Entry]:
    command = ("ZREVRANGE", keys.FAILURE_GROUPS, 0, MAX_GROUPS - 1, "WITHSCORES")
    (members,) = scripts.read_together(client, [command])
    if isinstance(members, Exception):  # the key has the wrong type
        return []
    pairs = _pairs(members)
    commands = [("HMGET", keys.failure_group(name), *NAME_FIELDS) for name, _ in pairs]
    found = []
    for (name, score), reply in zip(pairs, scripts.read_together(client, commands), strict=True):
        if isinstance(reply, list) and any(reply):
            texts = [decode(field or b"") for field in reply]
            ignored = failed.read_ignored(*texts[3:])
            is_ignored = ignored.since is not None and not ignored.has_come_back
            words = "\n".join(texts[:3]).casefold()
            found.append(_Entry(repr(score), name, words, is_ignored))
    return found


def _pairs(members: list[Any]) -> list[tuple[str, float]]:
    """(member, score) in a reply `WITHSCORES`, which may be flat."""
    if members and not isinstance(members[0], list | tuple):
        members = list(zip(members[::2], members[1::2], strict=True))
    return [(decode(name), float(score)) for name, score in members]


def ignore(group_id: str, by: str = "") -> bool:
    """Let a group count as no trouble until it fails again. False if there is none."""
    who = " ".join(escape_surrogates(by).split())[:MAX_WHO_CHARACTERS]
    return _mark(group_id, "ignore", who)


def watch(group_id: str) -> bool:
    """End `ignore`. False if there is no such group."""
    return _mark(group_id, "watch", "")


def _mark(group_id: str, action: str, who: str) -> bool:
    script_keys = [keys.failure_group(group_id)]
    return bool(scripts.IGNORE_GROUP.run(connection.client(), script_keys, [action, who]))


# The jobs of a group


def jobs_of(group_id: str, after: str = "", limit: int = 25) -> JobsPage:
    """A page of the jobs of a group. A cursor that is none begins at the start."""
    client = connection.client()
    found = CURSOR.fullmatch(after)
    highest = found[1] if found else "+inf"
    key = keys.failure_group_jobs(group_id)
    entries: list[tuple[str, float]] = []
    offset = 0
    while len(entries) <= limit:
        step = ("ZREVRANGEBYSCORE", key, highest, "-inf", "WITHSCORES", "LIMIT", offset, 2 * limit)
        (reply,) = scripts.read_together(client, [step])
        if isinstance(reply, Exception) or not reply:
            break
        pairs = _pairs(reply)
        offset += len(pairs)
        place = _read_cursor(after)
        entries += [(name, score) for name, score in pairs if not place or (score, name) < place]
    shown = entries[:limit]
    last = f"{shown[-1][1]!r}:{shown[-1][0]}" if len(entries) > limit else ""
    return JobsPage([job_id for job_id, _ in shown], last)


# Failed jobs without a group: plain RQ has recorded the failure.


def count_ungrouped() -> int:
    """About how many failed jobs are in no group: their number by the sizes of all places."""
    client = connection.client()
    names, groups = scripts.read_together(
        client, [("SMEMBERS", keys.QUEUES), ("ZREVRANGE", keys.FAILURE_GROUPS, 0, MAX_GROUPS - 1)]
    )
    queues = keys.queue_names_in(names)
    ids = [] if isinstance(groups, Exception) else [decode(group) for group in groups]
    portions = [
        (sign, prefix, portion)
        for sign, prefix, rest in (
            (1, keys.failed(""), queues),
            (-1, keys.stopped(""), queues),
            (-1, keys.failure_group_jobs(""), ids),
        )
        for portion in scripts.in_chunks(rest)
    ]
    commands = [scripts.COUNT_MEMBERS.call([], [prefix, *rest]) for _, prefix, rest in portions]
    replies = scripts.read_together(client, commands, scripts.COUNT_MEMBERS)
    return max(0, sum(sign * reply for (sign, _, _), reply in zip(portions, replies, strict=True)))


def ungrouped(after: str = "", limit: int = 25) -> Ungrouped:
    """Some failed jobs without a group, by a search of up to `MAX_SCANS` steps.

    Their order is Redis's own. A job that is there throughout is found, perhaps more than once.
    """
    client = connection.client()
    place = _Place.read(after)
    found: list[FailedJob] = []
    scans = 0
    queues = [name for name in places.queue_names(client) if name >= place.queue]
    for queue in _with_failures(client, queues):
        if queue != place.queue:
            place = _Place(queue=queue)
        while True:
            if scans == MAX_SCANS or len(found) >= limit:
                return Ungrouped(found, place.text)
            reply = scripts.UNGROUPED_FAILURES.run(client, [], [queue, place.cursor, SCAN_JOBS])
            scans += 1
            ids = [job_id for job_id in sorted(map(decode, reply[1:])) if job_id > place.after]
            shown = ids[: limit - len(found)]
            found += failed.describe(client, queue, shown)
            if len(shown) < len(ids):
                return Ungrouped(found, _Place(place.cursor, shown[-1], queue).text)
            place = _Place(decode(reply[0]), queue=queue)
            if place.cursor == "0":
                break
    return Ungrouped(found, "")


@dataclass(frozen=True)
class _Place:
    """Where a search in the failed jobs of `queue` is: the last id of the step at a cursor."""

    cursor: str = "0"
    after: str = ""
    queue: str = ""

    @property
    def text(self) -> str:
        return f"{self.cursor}:{self.after if ':' not in self.after else ''}:{self.queue}"

    @classmethod
    def read(cls, text: str) -> _Place:
        """The place of a cursor; the start for a text that is none."""
        found = re.fullmatch(r"(\d{1,20}):([^:]*):(.*)", text, re.ASCII | re.DOTALL)
        return cls(*found.groups()) if found else cls()


def _with_failures(client: redis.Redis, queues: Iterable[str]) -> list[str]:
    names = list(queues)
    replies = scripts.read_together(client, [("EXISTS", keys.failed(name)) for name in names])
    return [name for name, reply in zip(names, replies, strict=True) if reply == 1]
