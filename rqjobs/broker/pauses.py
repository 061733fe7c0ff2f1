"""Pauses in Redis: the queues and job functions of which no job begins until they are resumed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import redis
from rq.suspension import WORKERS_SUSPENDED

from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import PARK_PAUSED, UNPARK_PAUSED
from rqjobs.broker.transitions import BATCH_MAX_JOBS, Claim
from rqjobs.texts import escape_surrogates

PAUSE_FIELDS = {"queue": keys.paused_queue, "function": keys.paused_function}
WHO_MAX_CHARACTERS = 100  # of the person who has paused it


@dataclass(frozen=True)
class Pause:
    """A paused queue or function.

    `since`: Unix seconds by Redis's clock; 0 if that cannot be read. `by`: who, if known.
    """

    kind: str  # of `PAUSE_FIELDS`
    name: str
    since: float
    by: str = ""

    def describe(self) -> str:
        """The pause in one line, with the command that ends it."""
        option = "--function " if self.kind == "function" else ""
        since = ""
        if self.since:
            moment = datetime.fromtimestamp(self.since, timezone.utc)
            since = f" since {moment:%Y-%m-%d %H:%M} UTC"
        who = f" by {self.by}" if self.by else ""
        return (
            f"The {self.kind} `{self.name}` is paused{since}{who}: none of its jobs begins until "
            f"`rqjobs resume {option}{self.name}`"
        )


def read_pauses(reply: Any) -> list[Pause]:
    """The pauses in a reply to `HGETALL rqjobs:paused`; none if the reply is an error."""
    if not isinstance(reply, dict):
        return []
    found = []
    for field, value in reply.items():
        kind, _, name = decode(field).partition(":")
        since, _, by = decode(value).partition(" ")
        if kind in PAUSE_FIELDS:
            seconds = float(since) if re.fullmatch(r"\d{1,11}(\.\d+)?", since, re.ASCII) else 0.0
            found.append(Pause(kind, name, seconds, by))
    return sorted(found, key=lambda pause: (pause.kind != "queue", pause.name))


def paused(connection: redis.Redis) -> list[Pause]:
    """Every pause: queues, then functions, each by name."""
    (reply,) = scripts.read_together(connection, [("HGETALL", keys.PAUSED)])
    return read_pauses(reply)


def pause(connection: redis.Redis, kind: str, name: str, by: str = "") -> bool:
    """Pause a queue or a function. False, with nothing changed, if it is paused already."""
    since = f"{scripts.redis_time(connection):.3f}"
    who = " ".join(escape_surrogates(by).split())[:WHO_MAX_CHARACTERS]
    return bool(connection.hsetnx(keys.PAUSED, PAUSE_FIELDS[kind](name), f"{since} {who}".rstrip()))


def resume(connection: redis.Redis, kind: str, name: str) -> bool:
    """End a pause, and put the jobs that wait for a function back into their queues.

    If this process dies in between, the next sweep goes on. False if there is no such pause.
    """
    is_resumed = bool(connection.hdel(keys.PAUSED, PAUSE_FIELDS[kind](name)))
    if kind == "function":
        unpark(connection, name)
    return is_resumed


def end_suspension(connection: redis.Redis) -> bool:
    """Let all workers begin jobs again, as `rq resume` does. False if RQ is not suspended."""
    return bool(connection.delete(WORKERS_SUSPENDED))


def park_command(worker: str, claim: Claim, function: str) -> tuple[Any, ...]:
    """The command that lets a claimed job wait until its function is resumed."""
    script_keys = [keys.claims(worker), keys.PAUSED, keys.paused_jobs(function), keys.PAUSED_JOBS]
    arguments = [claim.job_id, claim.queue, claim.token, function]
    return PARK_PAUSED.call(script_keys, arguments)


def unpark(
    connection: redis.Redis, function: str, on_progress: Callable[[], None] = lambda: None
) -> None:
    """Put the jobs that wait for this function back into their queues, unless it is paused."""
    script_keys = [keys.PAUSED, keys.paused_jobs(function), keys.PAUSED_JOBS]
    while True:
        _, more = UNPARK_PAUSED.run(connection, script_keys, [function, BATCH_MAX_JOBS])
        on_progress()
        if more != b"1":
            return


def unpark_all(connection: redis.Redis, on_progress: Callable[[], None] = lambda: None) -> None:
    """`unpark` for every function for which jobs wait."""
    (functions,) = scripts.read_together(connection, [("SMEMBERS", keys.PAUSED_JOBS)])
    if isinstance(functions, set | list):  # otherwise the key has the wrong type
        for function in functions:
            unpark(connection, decode(function), on_progress)
