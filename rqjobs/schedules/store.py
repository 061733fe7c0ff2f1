"""The timetable: schedules as they stand in Redis, read, written and made to make jobs.

Keys, beside those in `ledger.py`:
    rqjobs:schedules              sorted set, every schedule's name -> when its next tick is due; +inf: it does not tick
    rqjobs:schedules:revision     counter, the last revision that was given out; every change of a rule or a job has one
    rqjobs:schedules:unfinished         hash, job id -> schedule, of remembered runs whose outcome is not known yet
    rqjobs:schedules:declared     hash, worker -> when it started and what its code declares (JSON)
    rqjobs:schedules:announced    counter of announcements and of removals: whether there is something to compare
    rqjobs:schedules:lock        the lock of the clock that ticks
    rqjobs:schedule:<name>        hash, the schedule; `next` and `last` are ticks, in Unix seconds
    rqjobs:schedule:<name>:job    hash, the fields of the jobs that it makes, as RQ writes them
    rqjobs:schedule:<name>:runs   list, newest first: "<tick or now> <Unix time> <job id>"
    rqjobs:schedule:<name>:outcomes   hash, job id -> "<status> <when it ended, as RQ writes it>"
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b, sha1
from itertools import islice
from typing import Any

import redis
from rq.utils import now, utcformat

from rqjobs import connection as connections
from rqjobs import queues
from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import RUN_SCHEDULE, STORE_SCHEDULE
from rqjobs.jobs import Job
from rqjobs.schedules.cron import ScheduleError
from rqjobs.schedules.rules import Rule
from rqjobs.times import MAX_TIMESTAMP, utc

HISTORY_RUNS = 20  # runs
PER_RUN_FIELDS = (
    "created_at",
    "enqueued_at",
    "status",
)  # fields of a job that each run has of its own
OPTION_FIELDS = {
    "timeout": ("timeout",),
    "ttl": ("ttl",),
    "result_ttl": ("result_ttl",),
    "failure_ttl": ("failure_ttl",),
    "retry": ("retries_left", "retry_intervals", "enqueue_at_front_on_retry"),
    "meta": ("meta",),
    "repeat": ("repeats_left", "repeat_intervals"),
    "at_front": ("enqueue_at_front",),
    "webhooks": ("webhooks",),
    "on_success": ("success_callback_name", "success_callback_timeout"),
    "on_failure": ("failure_callback_name", "failure_callback_timeout"),
    "on_stopped": ("stopped_callback_name", "stopped_callback_timeout"),
}


@dataclass(frozen=True)
class JobTemplate:
    """What a schedule calls: the queue, the fields of its jobs, and what tells this call from another."""

    function: str
    queue: str
    fields: dict[Any, Any]
    digest: str


@dataclass(frozen=True)
class Schedule:
    """One schedule as it is in Redis.

    `state` is "active"; "paused"; "ended" (its end or its number of times has come); or "withdrawn" (no running worker
    declares it any more: it does not tick, goes on if one does, and is forgotten after a day). `source` is "code" or
    "added". `made`, `missed` and `overlapped` count ticks: that made a job, that nobody was there for and that make
    none, and that were skipped while a job before had not ended.
    """

    name: str
    rule: Rule
    function: str
    queue: str
    source: str
    description: str
    state: str
    revision: int
    next: datetime | None
    due: datetime | None
    last: datetime | None
    made: int
    missed: int
    overlapped: int
    created: datetime
    changed: datetime
    left: int | None  # ticks until its `times` are over
    before: str  # its state before it was withdrawn
    digest: str
    fields: dict[bytes, bytes]

    @property
    def args(self) -> list[Any]:
        return list(self._job().args)

    @property
    def kwargs(self) -> dict[str, Any]:
        return dict(self._job().kwargs)

    def _job(self) -> Job:
        job = Job(self.name, connection=connections.client())
        job.restore(self.fields)
        return job

    def upcoming(self, count: int = 5) -> list[datetime]:
        """The next ticks, without jitter, in the rule's zone; none unless it is active."""
        if self.next is None or self.state != "active":
            return []
        if self.left is not None:
            count = min(count, self.left)
        ticks = islice(self.rule.ticks(self.next.timestamp()), count)
        return [self.rule.localize(tick) for tick in ticks]


def check_name(name: str) -> str:
    """Raises ScheduleError unless a schedule can be called so: its jobs' ids begin with that."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name):
        raise ScheduleError(
            f"{name!r} is no name for a schedule; use letters, digits, '_' and '-', at most 80"
        )
    return name


def build_template(
    function: Any,
    args: Iterable[Any] = (),
    kwargs: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> JobTemplate:
    """What a schedule calls, checked as at enqueue."""
    given = {option: value for option, value in (options or {}).items() if value is not None}
    unknown = given.keys() - OPTION_FIELDS.keys() - {"queue", "description"}
    if unknown:
        raise ScheduleError(
            f"a schedule's jobs have no option {', '.join(sorted(unknown))}; they take queue, "
            f"description, {', '.join(sorted(OPTION_FIELDS))}"
        )
    name, at_front = given.pop("queue", None), given.pop("at_front", None)
    queue = queues.queue(name) if name else queues.queue_for(function)
    job = queue.create_job(function, args, kwargs, **given)
    job.enqueue_at_front = True if at_front else None
    fields = {
        field: value for field, value in job.fields()[1].items() if field not in PER_RUN_FIELDS
    }
    apart = (
        {"data"} if "description" in given else {"data", "description"}
    )  # which else follows from the call
    seen = sorted((field, str(value)) for field, value in fields.items() if field not in apart)
    digest = sha1(
        repr((job.func_name, queue.name, job.data, seen)).encode(), usedforsecurity=False
    ).hexdigest()
    return JobTemplate(str(job.func_name), queue.name, fields, digest)


def save(
    client: redis.Redis,
    name: str,
    rule: Rule,
    made: JobTemplate,
    source: str,
    found: Schedule | None,
) -> bool:
    """Write a schedule in the place of `found`; False if that was changed in between.

    With the same times it goes on where it stands, so that what it has missed is made up for; with other times it
    begins now.
    """
    fields = {
        "rule": rule.to_json(),
        "function": made.function,
        "queue": made.queue,
        "source": source,
        "digest": made.digest,
        "changed": repr(scripts.redis_time(client)),
    }
    due = ""
    if found is None:
        fields["created"] = fields["changed"]
    other_times = found is None or rule.ticks_key != found.rule.ticks_key
    if other_times:
        fields["left"] = "" if rule.times is None else str(rule.times)
    if (
        found is None
        or found.state == "withdrawn"
        or (other_times and found.state in ("active", "ended"))
    ):
        due, new = first_tick(client, name, rule)
        fields |= new
    elif found.state == "active" and found.next and rule.jitter != found.rule.jitter:
        tick = int(found.next.timestamp())
        due = repr(tick + jitter(rule, name, tick))
    return write(client, name, found.revision if found else None, due, "new", fields, made.fields)


def first_tick(client: redis.Redis, name: str, rule: Rule) -> tuple[str, dict[str, str]]:
    """When a schedule that begins now is due, and the fields that say so."""
    tick = rule.after(scripts.redis_time(client))
    state = {
        "state": "ended" if tick is None else "active",
        "next": "" if tick is None else str(tick),
    }
    return ("never" if tick is None else repr(tick + jitter(rule, name, tick))), state


def write(
    client: redis.Redis,
    name: str,
    revision: Any,
    due: str,
    what: str,
    own: dict[str, str],
    job: dict[Any, Any] | None = None,
) -> bool:
    key = keys.schedule(name)
    script_keys = [
        keys.SCHEDULES,
        key,
        f"{key}:job",
        keys.SCHEDULES_REVISION,
        keys.WAKEUP_CHANNEL,
        f"{key}:runs",
        f"{key}:outcomes",
        keys.SCHEDULES_UNFINISHED,
        keys.SCHEDULES_ANNOUNCED,
    ]
    words = [[part for pair in fields.items() for part in pair] for fields in (own, job or {})]
    args = [
        name,
        "" if revision is None else revision,
        due,
        what,
        len(words[0]),
        *words[0],
        *words[1],
    ]
    return bool(STORE_SCHEDULE.run(client, script_keys, args))


def enqueue_ticks(
    client: redis.Redis,
    name: str,
    revision: int,
    queue: str,
    tick: str = "",
    following: int | None = None,
    due: float = 0,
    overlap: bool = True,
    missed: int = 0,
    last: int = 0,
    jobs: Iterable[tuple[Any, str]] = (),
) -> list[int]:
    """Run `run_schedule.lua`, which says what comes back."""
    key = keys.schedule(name)
    script_keys = [
        keys.SCHEDULES,
        key,
        f"{key}:job",
        f"{key}:runs",
        f"{key}:outcomes",
        keys.SCHEDULES_UNFINISHED,
        keys.queue(queue),
        keys.QUEUES,
    ]
    args = [
        name,
        revision,
        tick,
        "" if following is None else following,
        repr(due),
        utcformat(now()),
        "1" if overlap else "",
        missed,
        last,
        HISTORY_RUNS,
        *(word for job in jobs for word in job),
    ]
    return [int(count) for count in RUN_SCHEDULE.run(client, script_keys, args)]


def jitter(rule: Rule, name: str, tick: int) -> float:
    """By how many seconds this tick's job comes later: the same whoever asks, in milliseconds."""
    if not rule.jitter:
        return 0.0
    chance = (
        int.from_bytes(blake2b(f"{name} {tick}".encode(), digest_size=8).digest(), "big") / 2**64
    )
    return int(chance * rule.jitter * 1000) / 1000


def names_of_all(client: redis.Redis) -> list[str]:
    """The names of all schedules, sorted."""
    (members,) = scripts.read_together(client, [("ZRANGE", keys.SCHEDULES, 0, -1)])
    return (
        sorted(map(decode, members)) if isinstance(members, list) else []
    )  # an error: no sorted set stands there


def read(client: redis.Redis, names: Iterable[str]) -> dict[str, Schedule]:
    """Those of these schedules that are there and can be read."""
    names = list(names)
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hgetall(keys.schedule(name))
            pipe.hgetall(keys.schedule_job(name))
            pipe.zscore(keys.SCHEDULES, name)
        replies = pipe.execute(raise_on_error=False)
    found = {}
    for name, own, job, due in zip(names, replies[::3], replies[1::3], replies[2::3], strict=True):
        try:
            found[name] = _schedule(
                name, {decode(key): decode(value) for key, value in own.items()}, job, due
            )
        except (
            Exception
        ):  # none is there, or somebody else wrote it: numbers without end, lists in lists in lists
            continue
    return found


def _schedule(name: str, own: dict[str, str], job: dict[bytes, bytes], due: Any) -> Schedule:
    if not job.get(b"data"):
        raise LookupError("its jobs have no data")
    if own["revision"] != str(int(own["revision"])):  # the scripts compare it as it is written
        raise ValueError("its revision is no number as we write one")
    counts = {
        field: int(own.get(field) or 0) for field in ("revision", "made", "missed", "overlapped")
    }
    ticks = {field: utc(int(own[field])) if own.get(field) else None for field in ("next", "last")}
    if any(tick and not 0 <= tick.timestamp() <= MAX_TIMESTAMP for tick in ticks.values()):
        raise ValueError("its ticks are of another age")
    return Schedule(
        name,
        Rule.from_json(own["rule"]),
        own["function"],
        own["queue"],
        own["source"],
        decode(job.get(b"description") or b""),
        own["state"],
        counts["revision"],
        ticks["next"],
        utc(float(due)) if ticks["next"] and float(due) < float("inf") else None,
        ticks["last"],
        counts["made"],
        counts["missed"],
        counts["overlapped"],
        created=utc(float(own["created"])),
        changed=utc(float(own["changed"])),
        left=int(own["left"]) if own.get("left") else None,
        before=own.get("before", ""),
        digest=own["digest"],
        fields=job,
    )
