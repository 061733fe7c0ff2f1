"""Schedules: rules that make jobs, stored in Redis; to list, add, change, pause, run and remove them.

`timetable.py` says how they are stored, `ticker.py` is the clock's side of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from rq.utils import str_to_date

from rqjobs import connection as connections
from rqjobs import queues
from rqjobs.broker import keys
from rqjobs.broker.keys import decode
from rqjobs.jobs import Job
from rqjobs.schedules.cron import ScheduleError
from rqjobs.schedules.rules import Rule
from rqjobs.schedules.store import (
    OPTION_FIELDS,
    JobTemplate,
    Schedule,
    build_template,
    check_name,
    enqueue_ticks,
    first_tick,
    names_of_all,
    read,
    save,
    write,
)
from rqjobs.times import utc


class NoSuchSchedule(ScheduleError):
    """There is no schedule of that name."""


@dataclass(frozen=True)
class Run:
    """A job that a schedule made: for a tick, or (None) because somebody wanted one now.

    `outcome` is the job's status; "unknown" if it is gone and nobody saw how it ended (it was deleted).
    """

    job_id: str
    tick: datetime | None
    enqueued: datetime
    outcome: str
    ended: datetime | None


def add(
    name: str,
    rule: Rule,
    function: Any,
    /,
    *args: Any,
    queue: str | None = None,
    replace: bool = True,
    **kwargs: Any,
) -> Schedule:
    """Store a schedule that calls `function(*args, **kwargs)` by `rule` until it is removed.

    Arguments are given as to `rqjobs.enqueue`, with RQ's keyword options (`job_timeout`, `retry`, …)
    among them; `args=(…), kwargs={…}` keeps the function's arguments apart. An existing schedule of
    that name is changed as by `edit`; one with this rule and this call stays as it is. So a program
    can add its schedules at each start, and several processes can do so at once.

    Args:
        function: a job function, or its "module.name".
        queue: the name of a queue; None is the function's own.
        replace: False refuses a name that exists.

    Raises:
        ScheduleError: the code declares a schedule of that name, or the schedule is wrong.
        NotAJob, TypeError, PayloadError, PayloadTooLarge, RefusedWebhook: as for enqueue.
    """
    if not isinstance(rule, Rule):
        raise ScheduleError(
            f"a schedule needs a rule, like every(minutes=5) or cron('0 6 * * *'), not {rule!r}"
        )
    own: dict[str, Any] = {}
    if queue is not None:
        own["queue"] = queue
    if not replace:
        own["replace"] = replace
    given = queues.split_options(
        function, args, kwargs | own, queues.RQ_OPTIONS | {"queue", "replace"}
    )
    template = _build_template(function, given)
    client = connections.client()
    while True:
        found = read(client, [check_name(name)]).get(name)
        if found and not replace:
            raise ScheduleError(
                f"there is a schedule {name!r} already; edit, replace or remove it, or choose another "
                f"name"
            )
        if found and found.state != "withdrawn":
            _not_declared(name, "change")
            if (found.digest, found.rule.to_json()) == (template.digest, rule.to_json()):
                return found
        if save(client, name, rule, template, "added", found):
            return get(name)
        if found is None:
            get(name)  # raises if the schedule exists by now and cannot be read


def _build_template(function: Any, given: dict[str, Any]) -> JobTemplate:
    """The template of a call and its options, as `queues.split_options` gives them."""
    queue = given.pop("queue", None)
    given.pop("replace", None)
    options = queues.Queue.parse_args(function, **given)._asdict()
    refused = [
        option for option in ("depends_on", "job_id", "pipeline", "unique") if options.pop(option)
    ]
    if refused:
        raise ScheduleError(
            f"a schedule takes no {', '.join(refused)}: it makes many jobs, each with an id of its own"
        )
    del options["func"]
    args = options.pop("args")
    kwargs = options.pop("kwargs")
    return build_template(function, args, kwargs, options | {"queue": queue})


def edit(
    name: str,
    *,
    rule: Rule | None = None,
    function: Any = None,
    args: Iterable[Any] | None = None,
    kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> Schedule:
    """Change what is given and leave the rest; with other times it begins now, with the same ones it goes on.

    Raises:
        NoSuchSchedule: there is none.
        ScheduleError: it is declared in the code, and is changed there.
        NotAJob, TypeError, PayloadError, PayloadTooLarge, RefusedWebhook: as for enqueue.
    """
    client = connections.client()
    while True:
        _not_declared(name, "change")
        found = get(name)
        made = JobTemplate(found.function, found.queue, found.fields, found.digest)
        if function is not None or args is not None or kwargs is not None or options:
            options.setdefault("queue", found.queue if function is None else None)
            made = build_template(
                function or found.function,
                found.args if args is None else args,
                found.kwargs if kwargs is None else kwargs,
                options,
            )
            if function is None:
                kept = {
                    field
                    for option, names in OPTION_FIELDS.items()
                    if option not in options
                    for field in names
                }
                if args is None and kwargs is None and "description" not in options:
                    kept.add("description")
                fields = {key: value for key, value in made.fields.items() if key not in kept}
                fields |= {
                    decode(key): value for key, value in found.fields.items() if decode(key) in kept
                }
                made = JobTemplate(made.function, made.queue, fields, made.digest)
        if save(client, name, rule or found.rule, made, found.source, found):
            return get(name)


def pause(name: str) -> None:
    """Let it rest: its ticks come to nothing until it is resumed. What it has made goes on."""
    _change(name, "paused", lambda found: ("never", {"next": ""}))


def resume(name: str) -> None:
    """Let a paused schedule go on, with its next tick from now; those in between were not missed."""
    _change(name, "active", lambda found: first_tick(connections.client(), found.name, found.rule))


def run_now(name: str) -> Job:
    """Make one of its jobs now, beside all ticks, whatever its state; returns the job.

    Raises:
        NoSuchSchedule: there is none.
        ScheduleError: it cannot make one, for a key in Redis is of the wrong type.
    """
    client = connections.client()
    while True:
        found = get(name)
        job_id = f"{name}-now-{uuid4().hex[:12]}"
        made = enqueue_ticks(client, found.name, found.revision, found.queue, jobs=[("", job_id)])[
            0
        ]
        if made == -2:
            raise ScheduleError(
                f"the schedule {name!r} makes no job: the key of its queue {found.queue!r}, of its "
                f"runs or of their outcomes, or rq:queues, is of the wrong type; delete that key"
            )
        if made == 1:
            job: Any = Job.fetch(job_id, connection=client)
            return job


def remove(name: str) -> None:
    """Remove it with its history. The jobs that it has made stay.

    Raises:
        NoSuchSchedule: there is none.
        ScheduleError: it is declared in the code, and goes when it is gone there.
    """
    _not_declared(name, "remove")
    while not write(connections.client(), name, _revision(name), "", "remove", {}):
        pass


def get(name: str) -> Schedule:
    """The schedule called `name`.

    Raises:
        NoSuchSchedule: there is none.
        ScheduleError: what is stored cannot be read.
    """
    found = read(connections.client(), [name])
    if name in found:
        return found[name]
    _revision(name)
    raise ScheduleError(
        f"the schedule {name!r} in Redis cannot be read; remove it and add it again"
    )


def all() -> list[Schedule]:
    """Every schedule that can be read, by name."""
    client = connections.client()
    return list(read(client, names_of_all(client)).values())


def runs(name: str, count: int = 10) -> list[Run]:
    """Its last runs, the newest first; at most 20 are remembered."""
    client, key = connections.client(), keys.schedule(name)
    if client.type(f"{key}:runs") != b"list":
        return []
    lines = [decode(line).split(" ") for line in client.lrange(f"{key}:runs", 0, count - 1)]
    lines = [line for line in lines if len(line) == 3]  # another one somebody else wrote
    with client.pipeline(transaction=False) as pipe:
        for *_, job_id in lines:
            pipe.hmget(keys.job(job_id), "status", "ended_at")
            pipe.hget(f"{key}:outcomes", job_id)
        replies = pipe.execute(raise_on_error=False)
    return list(_runs(lines, replies))


def _runs(lines: list[list[str]], replies: list[Any]) -> Iterator[Run]:
    for (tick, enqueued, job_id), live, noted in zip(
        lines, replies[::2], replies[1::2], strict=True
    ):
        status, ended = live if isinstance(live, list) and live[0] else _noted(noted)
        outcome = decode(status) or "unknown"
        over = outcome in ("finished", "failed", "stopped", "canceled", "unknown")
        with contextlib.suppress(ValueError, OverflowError, OSError):  # of what somebody else wrote
            yield Run(
                job_id,
                None if tick == "now" else utc(int(tick)),
                utc(float(enqueued)),
                outcome,
                str_to_date(ended) if ended and over else None,
            )


def _noted(words: Any) -> tuple[bytes, bytes]:
    status, _, ended = (words if isinstance(words, bytes) else b"").partition(b" ")
    return status, ended


def _revision(name: str) -> bytes:
    """The revision that a schedule has, as it is written: it may not be readable. Raises NoSuchSchedule."""
    revision: Any = connections.client().hget(keys.schedule(name), "revision")
    if revision is None:
        raise NoSuchSchedule(f"there is no schedule {name!r}; rqjobs schedules lists them")
    return bytes(revision)


def _not_declared(name: str, action: str) -> None:
    source, state = connections.client().hmget(keys.schedule(name), "source", "state")
    if source == b"code" and (state, action) != (b"withdrawn", "remove"):
        raise ScheduleError(
            f"the schedule {name!r} is declared in the code: {action} it there, or pause it here"
        )


def _change(name: str, state: str, how: Any) -> None:
    client = connections.client()
    while True:
        found = get(name)
        if found.state == state:
            return
        if found.state not in ("active", "paused"):
            raise ScheduleError(
                f"the schedule {name!r} is {found.state}, so it can neither rest nor go on"
            )
        due, fields = how(found)
        if write(client, name, found.revision, due, "same", {"state": state} | fields):
            return
