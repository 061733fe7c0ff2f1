"""The inbox of failures: search, page and ignore the groups of failed jobs.

A search reads only the names of the groups, and the counts of those on one page. The cursor of a
list is the last entry that was shown, so no entry is left out while others arrive.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import redis

from rqjobs import connection, failed
from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.failed import FailedJob, Group
from rqjobs.texts import escape_surrogates

MAX_GROUPS = 5000  # of which the names are read; the scripts make no more than 1,001
MAX_WHO_CHARACTERS = 100  # of the person who ignores a group
UNGROUPED_SCAN_JOBS = 1000  # failed jobs that one step of the search for ungrouped ones reads
MAX_SCANS = 2  # such steps of one page
FAILURE_CURSOR = re.compile(r"(-?\d{1,12}(?:\.\d{1,17})?):(.{1,300})", re.ASCII | re.DOTALL)


@dataclass(frozen=True)
class Inbox:
    """One page of groups, the one that failed last first.

    `next`: the cursor of the page after this one, "" for none. `matched`: the groups on all pages.
    `watched` and `ignored`: all groups, by whether they count as trouble. `ungrouped`: the
    approximate number of failed jobs without a group.
    """

    groups: list[Group]
    next: str
    matched: int
    watched: int
    ignored: int
    ungrouped: int


@dataclass(frozen=True)
class JobsPage:
    """Ids of the jobs of a group, the last failure first, and the cursor of the next page or ""."""

    ids: list[str]
    next: str


@dataclass(frozen=True)
class Ungrouped:
    """Some failed jobs without a group, and the cursor from which to look further, "" for none.

    `total`: their number, approximately.
    """

    jobs: list[FailedJob]
    next: str
    total: int


# Groups


def page(text: str = "", ignored: bool = False, after: str = "", limit: int = 25) -> Inbox:
    """A page of the groups whose function, error or message contains `text`, in two round trips.

    Upper and lower case of the letters a to z count as the same.

    Args:
        ignored: list the ignored groups instead of the others.
        after: the cursor of the page before; an invalid one begins at the start.
    """
    client = connection.client()
    place = _read_cursor(after)
    last = [repr(place[0]), place[1]] if place else ["", ""]
    args = [_lower(text), "1" if ignored else "", *last, limit, MAX_GROUPS]
    commands = [scripts.FIND_GROUPS.call([keys.FAILURE_GROUPS], args), *NAMES_COMMANDS]
    reply, *names = scripts.read_together(client, commands, scripts.FIND_GROUPS)
    watched, number, matched, more, *found = reply
    ids = [decode(one) for one in found[::2]]
    counting = _Counting(*names)
    commands = [*counting.commands, *(part for one in ids for part in failed.group_commands(one))]
    replies = scripts.read_together(client, commands, scripts.COUNT_MEMBERS)
    return Inbox(
        groups=failed.groups_in(ids, replies[len(counting.commands) :]),
        next=f"{decode(found[-1])}:{ids[-1]}" if more else "",
        matched=matched,
        watched=watched,
        ignored=number,
        ungrouped=counting.read(replies).ungrouped,
    )


def _lower(text: str) -> bytes:
    """`text` with the letters of ASCII in lower case, as the script lowers those of a group."""
    return escape_surrogates(text).encode().lower()


def _read_cursor(text: str) -> tuple[float, str] | None:
    found = FAILURE_CURSOR.fullmatch(text)
    return (float(found[1]), found[2]) if found else None


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
    """A page of the jobs of a group. An invalid cursor begins at the start."""
    client = connection.client()
    found = FAILURE_CURSOR.fullmatch(after)
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


@dataclass(frozen=True)
class _Census:
    """The approximate number of failed jobs without a group, and the queues with failed jobs."""

    ungrouped: int
    queues: list[str]


NAMES_COMMANDS = (
    ("SMEMBERS", keys.QUEUES),
    ("ZREVRANGE", keys.FAILURE_GROUPS, 0, MAX_GROUPS - 1),
)


class _Counting:
    """Counts the failed jobs without a group, by the sizes of all places.

    It takes the replies to `NAMES_COMMANDS`.
    """

    def __init__(self, names: Any, groups: Any):
        queues = scripts.in_chunks(keys.queue_names_in(names))
        # In the order of their names, so that a further failure does not change the commands.
        ids = [] if isinstance(groups, Exception) else sorted(decode(group) for group in groups)
        failures = [(keys.failed(""), "names", *portion) for portion in queues]
        others = [(keys.stopped(""), "", *portion) for portion in queues]
        others += [(keys.failure_group_jobs(""), "", *part) for part in scripts.in_chunks(ids)]
        self._failures = len(failures)
        self.commands = [scripts.COUNT_MEMBERS.call([], [*args]) for args in failures + others]

    def read(self, replies: list[Any]) -> _Census:
        """The result, from the replies to `commands`, which may be followed by others."""
        found = replies[: self._failures]
        others = replies[self._failures : len(self.commands)]
        number = sum(reply[0] for reply in found) - sum(reply[0] for reply in others)
        return _Census(
            max(0, number), sorted(decode(name) for reply in found for name in reply[1:])
        )


def _count(client: redis.Redis) -> _Census:
    counting = _Counting(*scripts.read_together(client, NAMES_COMMANDS))
    return counting.read(scripts.read_together(client, counting.commands, scripts.COUNT_MEMBERS))


def ungrouped(after: str = "", limit: int = 25) -> Ungrouped:
    """Some failed jobs without a group, by a search of up to `MAX_SCANS` steps.

    Their order is Redis's own. A job that is there throughout is found, perhaps more than once.
    """
    client = connection.client()
    census = _count(client)
    place = _Place.read(after)
    found: dict[str, list[str]] = {}
    left, scans, following = limit, 0, ""
    for queue in [name for name in census.queues if name >= place.queue]:
        if queue != place.queue:
            place = _Place(queue=queue)
        while not following:
            if scans == MAX_SCANS or not left:
                following = place.text
                break
            scans += 1
            reply = scripts.UNGROUPED_FAILURES.run(
                client, [], [queue, place.cursor, UNGROUPED_SCAN_JOBS]
            )
            ids = [job_id for job_id in sorted(map(decode, reply[1:])) if job_id > place.after]
            found[queue] = found.get(queue, []) + ids[:left]
            if len(ids) > left:
                following = _Place(place.cursor, ids[left - 1], queue).text
            left -= len(ids[:left])
            place = _Place(decode(reply[0]), queue=queue)
            if place.cursor == "0":
                break
    return Ungrouped(failed.describe(client, found), following, census.ungrouped)


@dataclass(frozen=True)
class _Place:
    """A place in a search of failed jobs: the queue, the cursor, and the last id shown of its step."""

    cursor: str = "0"
    after: str = ""
    queue: str = ""

    @property
    def text(self) -> str:
        return f"{self.cursor}:{self.after if ':' not in self.after else ''}:{self.queue}"

    @classmethod
    def read(cls, text: str) -> _Place:
        """The place of a cursor; the start for an invalid text."""
        found = re.fullmatch(r"(\d{1,20}):([^:]*):(.*)", text, re.ASCII | re.DOTALL)
        return cls(*found.groups()) if found else cls()
