"""Activity: who did what when, by a page, the API, rq-dashboard or the command line.

An action has an entry from its beginning, which its final entry replaces. If a process dies in
between, the first entry stays, with the outcome `UNKNOWN`. The newest `MAX_ENTRIES` are kept. Wrong
passwords have a stream of their own, so that they do not push out the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Any

import redis

from rqjobs.broker import keys
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import COUNT_REFUSED_LOGIN, RECORD_ACTIVITY, is_wrong_type
from rqjobs.texts import escape_surrogates
from rqjobs.times import utc

MAX_ENTRIES = 10_000
MAX_REFUSED_ENTRIES = 1_000  # minutes with wrong passwords
SEARCH_MAX_ENTRIES = 2_000  # that one call of `read` looks at
FIRST_STEP_ENTRIES = 200
MAX_CHARACTERS = {
    "user": 100,
    "via": 20,
    "address": 60,
    "action": 80,
    "target": 300,
    "note": 500,
}
WRONG_PASSWORD = "wrong password"  # the name of an action  # nosec B105


class Outcome(Enum):
    """How an action ended. UNKNOWN: it is still running, or its process died."""

    UNKNOWN = "unknown"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Entry:
    """One action: the user, the way (`page`, `api`, `dashboard`, `cli`), and what was done.

    `id`: its place in the list, given by Redis. `began`: when the action began. `count`: of wrong
    passwords in that minute, else 1.
    """

    action: str
    target: str = ""
    user: str = ""
    via: str = ""
    address: str = ""
    note: str = ""
    outcome: Outcome = Outcome.UNKNOWN
    count: int = 1
    id: str = ""
    began: datetime | None = None

    def fields(self) -> list[Any]:
        """The fields that are stored, with texts of bounded length."""
        found: list[Any] = ["outcome", self.outcome.value]
        for name, length in MAX_CHARACTERS.items():
            text = escape_surrogates(getattr(self, name))[:length]
            if text:
                found += [name, text]
        if self.began:
            found += ["began", int(self.began.timestamp() * 1000)]
        return found


@dataclass(frozen=True)
class Found:
    """A part of the list, the newest entry first.

    `next`: the id for `before` that continues it, "" at its end. `searched`: how many entries were
    looked at.
    """

    entries: list[Entry]
    next: str
    searched: int


def begin(connection: redis.Redis, entry: Entry) -> Entry:
    """Store the entry of an action that begins now; returns it for `finish` or `drop`."""
    entry_id = decode(
        RECORD_ACTIVITY.run(connection, [keys.ACTIVITY], ["", MAX_ENTRIES, *entry.fields()])
    )
    return replace(entry, id=entry_id, began=_moment(entry_id))


def finish(
    connection: redis.Redis, entry: Entry, note: str = "", outcome: Outcome = Outcome.DONE
) -> None:
    """Replace the entry of `begin` by its final one."""
    final = replace(entry, note=note, outcome=outcome)
    RECORD_ACTIVITY.run(connection, [keys.ACTIVITY], [entry.id, MAX_ENTRIES, *final.fields()])


def drop(connection: redis.Redis, entry: Entry) -> None:
    """Remove the entry of `begin`: nothing was done."""
    RECORD_ACTIVITY.run(connection, [keys.ACTIVITY], [entry.id, MAX_ENTRIES])


def record(connection: redis.Redis, entry: Entry, outcome: Outcome = Outcome.DONE) -> None:
    """Store an action that has ended."""
    finish(connection, entry, entry.note, outcome)


def count_refused_login(connection: redis.Redis, address: str) -> None:
    """Count a wrong password of the client `address`. The name that was tried is not kept."""
    text = escape_surrogates(address)[: MAX_CHARACTERS["address"]]
    COUNT_REFUSED_LOGIN.run(connection, [keys.REFUSED_LOGINS], [MAX_REFUSED_ENTRIES, text])


def is_entry_id(text: str) -> bool:
    """Whether `text` is an id of `Found.next`."""
    seconds, separator, number = text.partition("-")
    parts = (seconds, number)
    return bool(separator) and all(
        part.isascii() and part.isdigit() and len(part) < 19 for part in parts
    )


def read(
    connection: redis.Redis, before: str = "", limit: int = 50, user: str = "", action: str = ""
) -> Found:
    """The newest entries before the id `before`, by a user, and of actions that contain a text.

    At most `SEARCH_MAX_ENTRIES` are looked at; `next` continues the search.

    Raises:
        ValueError: `before` is not an id.
    """
    if before and not is_entry_id(before):
        raise ValueError(f"{before!r} is not a place in the list of activity")
    found: list[Entry] = []
    searched, step = 0, FIRST_STEP_ENTRIES
    while searched < SEARCH_MAX_ENTRIES:
        entries = _read_part(connection, before, step)
        for entry in entries:
            # Entries of both streams may have the same id: they stay on one page.
            if len(found) >= limit and entry.id != before:
                return Found(found, before, searched)
            searched += 1
            before = entry.id
            if _matches(entry, user, action):
                found.append(entry)
        if len(entries) < step:
            return Found(found, "", searched)
        step = SEARCH_MAX_ENTRIES - searched
    return Found(found, before, searched)


def _read_part(connection: redis.Redis, before: str, count: int) -> list[Entry]:
    """The newest `count` entries of both streams before an id."""
    end = f"({before}" if before else "+"
    with connection.pipeline(transaction=False) as pipe:
        for key in (keys.ACTIVITY, keys.REFUSED_LOGINS):
            pipe.xrevrange(key, end, "-", count)
        replies = pipe.execute(raise_on_error=False)
    entries = []
    for reply, default in zip(replies, ("", WRONG_PASSWORD), strict=True):
        if isinstance(reply, Exception):
            if is_wrong_type(reply):
                continue
            raise reply
        entries += [_parse(decode(entry_id), values, default) for entry_id, values in reply]
    entries.sort(key=lambda entry: _order(entry.id), reverse=True)
    if len(entries) > count and entries[count].id == entries[count - 1].id:
        count += 1
    return entries[:count]


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number)


def _parse(entry_id: str, values: Any, default_action: str) -> Entry:
    """An entry from a stream. A value that cannot be read counts as missing."""
    texts = {decode(name): decode(value) for name, value in (values or {}).items()}
    facts = {name: texts.get(name, "")[:length] for name, length in MAX_CHARACTERS.items()}
    if not facts["action"]:
        facts["action"] = default_action
    outcome = Outcome.UNKNOWN
    if texts.get("outcome") in {each.value for each in Outcome}:
        outcome = Outcome(texts["outcome"])
    if default_action:
        outcome = Outcome.FAILED
    return Entry(
        **facts,
        outcome=outcome,
        count=_whole_number(texts.get("count", ""), 1),
        id=entry_id,
        began=_moment(texts.get("began", "")) or _moment(entry_id),
    )


def _matches(entry: Entry, user: str, action: str) -> bool:
    return user in ("", entry.user) and action.lower() in entry.action.lower()


def _whole_number(text: str, default: int) -> int:
    if text.isascii() and text.isdigit() and len(text) < 16:
        return int(text)
    return default


def _moment(text: str) -> datetime | None:
    """The time in milliseconds at the start of an id or a field."""
    milliseconds = _whole_number(text.partition("-")[0], -1)
    try:
        return utc(milliseconds / 1000) if milliseconds >= 0 else None
    except (ValueError, OverflowError, OSError):
        return None
