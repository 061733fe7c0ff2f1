"""The store: schedules in Redis are read, written, and made to enqueue their jobs.

`broker/keys.py` lists the keys. Three of them have a content of their own:

    rqjobs:schedule:<name>            hash; `next` and `last` are ticks, in Unix seconds
    rqjobs:schedule:<name>:runs       list, newest first: "<tick or now> <Unix time> <job id>"
    rqjobs:schedule:<name>:outcomes   hash, job id -> "<status> <end, as RQ writes it>"
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from hashlib import blake2b, sha1
from itertools import islice
from typing import Any, NamedTuple

import redis
from rq.utils import now, utcformat

from rqjobs import connection as connections
from rqjobs import queues
from rqjobs.broker import keys, scripts
from rqjobs.broker.enqueueing import Row
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import RUN_SCHEDULE, STORE_SCHEDULE
from rqjobs.job_fields import read_description
from rqjobs.jobs import Job
from rqjobs.policies import limits, retries, time_limits
from rqjobs.schedules.cron import ScheduleError
from rqjobs.schedules.rules import Rule
from rqjobs.times import MAX_TIMESTAMP, utc

HISTORY_RUNS = 100  # runs that Redis keeps of each schedule
PER_RUN_FIELDS = ("created_at", "enqueued_at", "status")  # a schedule's jobs do not share these
# A record may have numbers that are too large, or lists inside one another without end.
RECORD_ERRORS = (ValueError, OverflowError, RecursionError)
NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
OPTION_FIELDS = {
    "timeout": ("timeout",),
    "ttl": ("ttl",),
    "result_ttl": ("result_ttl",),
    "failure_ttl": ("failure_ttl",),
    "retry": ("retries_left", "retry_intervals", "enqueue_at_front_on_retry", "rqjobs_retry"),
    **dict.fromkeys(retries.OPTIONS - {"retry"}, ("rqjobs_retry",)),
    **dict.fromkeys(limits.OPTIONS, ("rqjobs_limit",)),
    **dict.fromkeys(("unique", "until", "keep"), ("rqjobs_unique", "rqjobs_until", "rqjobs_keep")),
    "on_failed": ("rqjobs_on_failed",),
    "meta": ("meta",),
    "repeat": ("repeats_left", "repeat_intervals"),
    "at_front": ("enqueue_at_front",),
    "webhooks": ("webhooks",),
    "on_success": ("success_callback_name", "success_callback_timeout"),
    "on_failure": ("failure_callback_name", "failure_callback_timeout"),
    "expires": ("rqjobs_expires",),
    "kill_after": ("rqjobs_kill_after",),
    "on_stopped": ("stopped_callback_name", "stopped_callback_timeout"),
}


@dataclass(frozen=True)
class JobTemplate:
    """The call that a schedule makes: its queue, and the fields of its jobs.

    `digest` is the same for equal calls.
    """

    function: str
    queue: str
    fields: dict[Any, Any]
    digest: str


@dataclass(frozen=True)
class Schedule:
    """One schedule as Redis has it.

    `source` is "code" or "added". `next` is the next tick, and `due` the time of its job, which
    jitter can make later. `made`, `missed` and `overlapped` count ticks: those that made a job,
    those that no scheduler was running for and that made none, and those that were skipped while
    an earlier job had not ended.
    """

    name: str
    rule: Rule
    function: str
    queue: str
    source: str
    description: str
    stored_state: str
    undeclared_since: datetime | None
    revision: int
    next: datetime | None
    due: datetime | None
    last: datetime | None
    made: int
    missed: int
    overlapped: int
    created: datetime
    changed: datetime
    runs_left: int | None  # jobs until the rule's `times` are used up
    digest: str
    fields: dict[bytes, bytes]

    @property
    def state(self) -> str:
        """The state: "active", "paused", "ended" or "undeclared".

        A schedule has ended after its end or its number of times. It is undeclared if its
        declaration is in no running worker's code: it makes no jobs, continues in its stored state
        if a worker declares it, and is deleted after a day.
        """
        if self.undeclared_since:
            return "undeclared"
        return self.stored_state

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
        if self.runs_left is not None:
            count = min(count, self.runs_left)
        ticks = islice(self.rule.ticks(self.next.timestamp()), count)
        return [self.rule.localize(tick) for tick in ticks]


def is_name(text: Any) -> bool:
    """Whether a schedule may have this name: the ids of its jobs begin with it."""
    return isinstance(text, str) and bool(NAME_PATTERN.fullmatch(text))


def check_name(name: str) -> str:
    """Return `name`. The ids of the schedule's jobs begin with it.

    Raises:
        ScheduleError: it cannot be the name of a schedule.
    """
    if not is_name(name):
        raise ScheduleError(
            f"{name!r} cannot be the name of a schedule; use up to 80 letters, digits, '_' and '-'"
        )
    return name


def build_template(
    function: Any,
    args: Iterable[Any] = (),
    kwargs: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> JobTemplate:
    """The call of a schedule, checked as at enqueue."""
    given = {option: value for option, value in (options or {}).items() if value is not None}
    _check_options(given)
    unknown = given.keys() - OPTION_FIELDS.keys() - {"queue", "description"}
    if unknown:
        raise ScheduleError(
            f"a schedule's jobs have no option {', '.join(sorted(unknown))}; they take queue, "
            f"description, {', '.join(sorted(OPTION_FIELDS))}"
        )
    queue_name = given.pop("queue", None)
    at_front = given.pop("at_front", None)
    queue = queues.queue(queue_name) if queue_name else queues.queue_for(function)
    job = queue.create_job(function, args, kwargs, **given)
    if not time_limits.is_relative(job.policy_fields.get("rqjobs_expires", "+")):
        raise ScheduleError(
            "expires of a schedule's jobs is a number of seconds or a timedelta from each run, not a "
            "date: no job would run after it"
        )
    if "rqjobs_debounce" in job.policy_fields:
        raise ScheduleError(
            f"{job.func_name} has debounce, which counts from a call and cannot go with a schedule; "
            f"use another job function"
        )
    if at_front:
        job.enqueue_at_front = True
    fields = {
        field: value for field, value in job.to_hash()[1].items() if field not in PER_RUN_FIELDS
    }
    digest = _digest(job, queue.name, fields, "description" in given)
    return JobTemplate(str(job.func_name), queue.name, fields, digest)


def _check_options(given: dict[str, Any]) -> None:
    """Raises ScheduleError if an option has no meaning for a tick."""
    if "on_conflict" in given:
        raise ScheduleError(
            f"on_conflict={given['on_conflict']!r} has no effect in a schedule: a tick whose unique "
            f"key is taken is skipped; leave on_conflict out"
        )
    for name in ("debounce", "debounce_max"):
        if name in given:
            raise ScheduleError(
                f"{name} counts from a call and cannot go with a schedule; use overlap=False, or "
                f"unique='args'"
            )


def _digest(job: Job, queue: str, fields: dict[Any, Any], has_description: bool) -> str:
    excluded = {"data"}  # job.data is compared, because the field is compressed
    if not has_description:
        excluded.add("description")  # RQ makes it from the call
    compared = sorted(
        (field, str(value)) for field, value in fields.items() if field not in excluded
    )
    text = repr((job.func_name, queue, job.data, compared))
    return sha1(text.encode(), usedforsecurity=False).hexdigest()


def save(
    client: redis.Redis,
    name: str,
    rule: Rule,
    template: JobTemplate,
    source: str,
    found: Schedule | None,
) -> bool:
    """Write a schedule in the place of `found`; False if `found` has changed since it was read.

    A schedule whose rule has the same ticks continues where it was, and catches up on the ticks
    that it has missed. With other ticks it starts now.
    """
    return bool(save_row(client, name, rule, template, source, found, None))


def save_row(
    client: redis.Redis,
    name: str,
    rule: Rule,
    template: JobTemplate,
    source: str,
    found: Schedule | None,
    row: Row | None,
) -> str:
    """`save`, for a row of the outbox; returns the reply of `store_schedule.lua`."""
    due, fields = _changes(client, name, rule, template, source, found)
    revision = found.revision if found else None
    return write_row(client, name, revision, due, "new", fields, template.fields, row)


def preview(
    client: redis.Redis,
    name: str,
    rule: Rule,
    template: JobTemplate,
    source: str,
    found: Schedule | None,
) -> Schedule:
    """The schedule that `save` would store now."""
    due, changed = _changes(client, name, rule, template, source, found)
    own = {"revision": "0"}
    own |= {
        decode(key): decode(value) for key, value in client.hgetall(keys.schedule(name)).items()
    }
    job = {decode(field).encode(): _as_bytes(value) for field, value in template.fields.items()}
    score: Any = due
    if due == "" and found is not None and found.due:
        score = found.due.timestamp()
    elif due in ("", "never"):
        score = "inf"
    return _schedule(name, own | changed, job, score)


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return str(value).encode(errors="backslashreplace")


def _changes(
    client: redis.Redis,
    name: str,
    rule: Rule,
    template: JobTemplate,
    source: str,
    found: Schedule | None,
) -> tuple[str, dict[str, str]]:
    """The due time, as `write` takes it, and the fields with which a schedule replaces `found`."""
    fields = {
        "rule": rule.to_json(),
        "function": template.function,
        "queue": template.queue,
        "source": source,
        "digest": template.digest,
        "changed": repr(scripts.redis_time(client)),
        "undeclared_since": "",
    }
    due = ""
    if found is None:
        fields["created"] = fields["changed"]
    has_other_ticks = found is None or rule.ticks_key != found.rule.ticks_key
    if has_other_ticks:
        fields["runs_left"] = "" if rule.times is None else str(rule.times)
    if (
        found is None
        or found.state == "undeclared"
        or (has_other_ticks and found.state in ("active", "ended"))
    ):
        due, start = first_tick(client, name, rule)
        fields |= start
    elif found.state == "active" and found.next and rule.jitter != found.rule.jitter:
        due = due_time(rule, name, int(found.next.timestamp()))
    return due, fields


def first_tick(client: redis.Redis, name: str, rule: Rule) -> tuple[str, dict[str, str]]:
    """The due time of a schedule that starts now, as `write` takes it; its state and next tick."""
    tick = rule.after(scripts.redis_time(client))
    if tick is None:
        return "never", {"state": "ended", "next": ""}
    return due_time(rule, name, tick), {"state": "active", "next": str(tick)}


def due_time(rule: Rule, name: str, tick: int) -> str:
    """The time of a tick's job in Unix seconds, jitter included, as `write` takes it."""
    return repr(tick + jitter(rule, name, tick))


def write(
    client: redis.Redis,
    name: str,
    revision: Any,
    due: str,
    change: str,
    fields: dict[str, str],
    job_fields: dict[Any, Any] | None = None,
) -> bool:
    """Store, change or remove a schedule in one step; False if it has another revision by now.
    Arguments as `write_row`.
    """
    return bool(write_row(client, name, revision, due, change, fields, job_fields, None))


def write_row(
    client: redis.Redis,
    name: str,
    revision: Any,
    due: str,
    change: str,
    fields: dict[str, str],
    job_fields: dict[Any, Any] | None,
    row: Row | None,
) -> str:
    """`write`, for a row of the outbox; returns the reply of `store_schedule.lua`.

    Args:
        revision: the revision that the caller has read; None if there was no such schedule.
        due: the due time of the next job in Unix seconds, "never", or "" to leave it as it is.
        change: "new" for another rule or call, which gets a new revision; "same"; or "remove".
        fields: the schedule's own fields that change.
        job_fields: for "new", all fields of its jobs.
    """
    script_keys = [
        keys.SCHEDULES,
        keys.schedule(name),
        keys.schedule_job(name),
        keys.SCHEDULES_REVISION,
        keys.SCHEDULES_WAKEUP_CHANNEL,
        keys.schedule_runs(name),
        keys.schedule_outcomes(name),
        keys.SCHEDULES_UNFINISHED,
        keys.SCHEDULES_ANNOUNCED,
    ]
    own_words = [word for pair in fields.items() for word in pair]
    job_words = [word for pair in (job_fields or {}).items() for word in pair]
    known_revision = "" if revision is None else revision
    args = [name, known_revision, due, change, len(own_words), *own_words, *job_words]
    if row:
        script_keys.append(keys.OUTBOX)
        args += row.words()
    return decode(STORE_SCHEDULE.run(client, script_keys, args))


class RunStatus(Enum):
    """Whether `enqueue_ticks` did anything, and why not."""

    DONE = "done"
    CHANGED = "changed"  # changed, paused, not due, or run by another scheduler
    WRONG_TYPE = "wrong type"  # a key that the run needs has the wrong type
    # Of the row of an outbox:
    ALREADY_MOVED = "already moved"
    READ_TOO_LONG_AGO = "read too long ago"


class RunResult(NamedTuple):
    """`made`: the number of jobs; `skipped`: the number of ticks skipped because of an overlap."""

    status: RunStatus
    made: int
    skipped: int


class DueRange(NamedTuple):
    """The ticks from `first` to `last` that a run deals with, and the tick that follows them.

    `missed` is the number of ticks that make no job. Ticks are Unix seconds; `following` is None if
    no tick follows, and `following_due` is the due time of its job.
    """

    first: int
    last: int
    following: int | None
    following_due: float
    missed: int


def enqueue_ticks(
    client: redis.Redis,
    schedule: Schedule,
    jobs: Iterable[tuple[Any, str]],
    ticks: DueRange | None = None,
    row: Row | None = None,
) -> RunResult:
    """Enqueue the jobs of due ticks and move the schedule to its next tick, in one step.

    Args:
        jobs: (tick, job id) of each; the tick is "" for a job outside the rule.
        ticks: None for a job outside the rule, which leaves the schedule as it is.
        row: the row of the outbox that asks for that job.
    """
    name = schedule.name
    script_keys = [
        keys.SCHEDULES,
        keys.schedule(name),
        keys.schedule_job(name),
        keys.schedule_runs(name),
        keys.schedule_outcomes(name),
        keys.SCHEDULES_UNFINISHED,
        keys.queue(schedule.queue),
        keys.QUEUES,
    ]
    first, last, following, following_due, missed = ticks or ("", 0, None, 0.0, 0)
    args = [
        name,
        schedule.revision,
        first,
        "" if following is None else following,
        repr(following_due),
        utcformat(now()),
        int(schedule.rule.overlap),
        missed,
        last,
        HISTORY_RUNS,
        *(word for job in jobs for word in job),
    ]
    if row:
        script_keys.append(keys.OUTBOX)
        args += row.words()
    status, made, skipped = RUN_SCHEDULE.run(client, script_keys, args)
    return RunResult(RunStatus(decode(status)), int(made), int(skipped))


def jitter(rule: Rule, name: str, tick: int) -> float:
    """The delay of this tick's job in seconds, a multiple of a millisecond.

    It is computed from the name and the tick, so every process finds the same.
    """
    if not rule.jitter:
        return 0.0
    digest = blake2b(f"{name} {tick}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    return int(share * rule.jitter * 1000) / 1000


def names_of_all(client: redis.Redis) -> list[str]:
    """The names of all schedules, sorted."""
    (members,) = scripts.read_together(client, [("ZRANGE", keys.SCHEDULES, 0, -1)])
    if not isinstance(members, list):
        return []  # the key is of the wrong type
    return sorted(map(decode, members))


def is_stored(client: redis.Redis, name: str) -> bool:
    """Whether there is a schedule with this name, readable or not."""
    (due,) = scripts.read_together(client, [("ZSCORE", keys.SCHEDULES, name)])
    return isinstance(due, float)


def read(client: redis.Redis, names: Iterable[str]) -> dict[str, Schedule]:
    """Those of these schedules that exist and can be read."""
    names = list(names)
    commands: list[tuple[Any, ...]] = []
    for name in names:
        commands += [
            ("HGETALL", keys.schedule(name)),
            ("HGETALL", keys.schedule_job(name)),
            ("ZSCORE", keys.SCHEDULES, name),
        ]
    replies = scripts.replies_together(client, commands)
    found = {}
    for name, own, job, due in zip(names, replies[::3], replies[1::3], replies[2::3], strict=True):
        try:
            fields = {decode(key): decode(value) for key, value in own.items()}
            found[name] = _schedule(name, fields, job, due)
        except Exception:  # missing, or foreign data, which can raise anything
            continue
    return found


def _schedule(name: str, own: dict[str, str], job: dict[bytes, bytes], due: Any) -> Schedule:
    if not job.get(b"data"):
        raise LookupError("its jobs have no data")
    if own["revision"] != str(int(own["revision"])):  # the scripts compare its spelling
        raise ValueError("its revision is not a number in our spelling")
    next_tick = _tick(own, "next")
    next_due = None
    if next_tick and float(due) < float("inf"):
        next_due = utc(float(due))
    return Schedule(
        name=name,
        rule=Rule.from_json(own["rule"]),
        function=own["function"],
        queue=own["queue"],
        source=own["source"],
        description=read_description(job.get(b"description") or b""),
        stored_state=own["state"],
        undeclared_since=_moment(own, "undeclared_since"),
        revision=int(own["revision"]),
        next=next_tick,
        due=next_due,
        last=_tick(own, "last"),
        made=int(own.get("made") or 0),
        missed=int(own.get("missed") or 0),
        overlapped=int(own.get("overlapped") or 0),
        created=utc(float(own["created"])),
        changed=utc(float(own["changed"])),
        runs_left=int(own["runs_left"]) if own.get("runs_left") else None,
        digest=own["digest"],
        fields=job,
    )


def _tick(own: dict[str, str], field: str) -> datetime | None:
    if not own.get(field):
        return None
    tick = utc(int(own[field]))
    if not 0 <= tick.timestamp() <= MAX_TIMESTAMP:
        raise ValueError(f"its {field} tick is out of range")
    return tick


def _moment(own: dict[str, str], field: str) -> datetime | None:
    if not own.get(field):
        return None
    return utc(float(own[field]))
