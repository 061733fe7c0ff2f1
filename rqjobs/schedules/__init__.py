"""Schedules: rules that make jobs. List, add, change, pause, run and remove them.

`store.py` reads and writes them in Redis. The scheduler runs them with `ticker.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any
from uuid import uuid4

from rq.utils import str_to_date

from rqjobs import call_options, queues, transactions
from rqjobs import connection as connections
from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.jobs import Job
from rqjobs.policies import With
from rqjobs.schedules import rows
from rqjobs.schedules.cron import ScheduleError
from rqjobs.schedules.rows import Change
from rqjobs.schedules.rules import Rule
from rqjobs.schedules.store import (
    OPTION_FIELDS,
    JobTemplate,
    RunStatus,
    Schedule,
    build_template,
    check_name,
    enqueue_ticks,
    first_tick,
    is_stored,
    names_of_all,
    preview,
    read,
    save,
    write,
)
from rqjobs.times import utc
from rqjobs.transactions import takes_after_commit

ENDED_OUTCOMES = ("finished", "failed", "stopped", "canceled", "unknown")


class NoSuchSchedule(ScheduleError):
    """There is no schedule of that name."""


@dataclass(frozen=True)
class Run:
    """A job that a schedule has made.

    `tick` is None if the job was requested with `run_now`. `outcome` is the job's status, or
    "unknown" if the job was deleted before its outcome was noted.
    """

    job_id: str
    tick: datetime | None
    enqueued: datetime
    outcome: str
    ended: datetime | None


@takes_after_commit
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

    Arguments are given as to `rqjobs.enqueue`, with RQ's keyword options (`job_timeout`, `retry`,
    …) and policies (`limit`, `expires`, …) among them; `args=(…), kwargs={…}` keeps the function's
    arguments apart. An existing schedule of that name is changed as by `edit`; one with this rule
    and this call stays as it is. So a program can add its schedules at each start, and several
    processes can do so at once.

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
    given = call_options.split_options(
        function, args, kwargs | own, call_options.CALL_OPTIONS | {"queue", "replace"}
    )
    template = _build_template(function, given)
    return _add(check_name(name), rule, template, replace)


def _add(name: str, rule: Rule, template: JobTemplate, replace: bool) -> Schedule:
    client = connections.client()
    while True:
        found = read(client, [name]).get(name)
        if found and not replace:
            raise ScheduleError(
                f"there is a schedule {name!r} already; edit, replace or remove it, or choose "
                f"another name"
            )
        if found and found.state != "undeclared":
            _check_not_declared(name, "change")
        row = partial(rows.encode_call, name, Change.ADD, rule, template, replace)
        if _wait_for_commit(name, partial(_add, name, rule, template, replace), row):
            return preview(client, name, rule, template, "added", found)
        if found and found.state != "undeclared" and _is_same(found, rule, template):
            return found
        if save(client, name, rule, template, "added", found):
            return get(name)
        if found is None:
            get(name)  # raises if the schedule exists by now and cannot be read


def _is_same(found: Schedule, rule: Rule, template: JobTemplate) -> bool:
    return (found.digest, found.rule.to_json()) == (template.digest, rule.to_json())


def _wait_for_commit(name: str, change: Callable[[], Any], encode_row: Callable[[], str]) -> bool:
    """Let a change of a schedule wait for the commit of a `rqjobs.transaction`; False without one.

    `encode_row`: makes the row that it is in an outbox.
    """
    transaction = transactions.current()
    if transaction is None:
        return False
    what = f"a change of the schedule {name!r}"
    transaction.call(what, change, encode_row=encode_row)
    return True


def _build_template(function: Any, given: dict[str, Any]) -> JobTemplate:
    """The template of a call and its options, as `call_options.split_options` gives them."""
    queue = given.pop("queue", None)
    given.pop("replace", None)
    function, given = call_options.split_policies(function, given)
    policies: dict[str, Any] = {}
    if isinstance(function, With):
        function, policies = function
    options = queues.Queue.parse_args(function, **given)._asdict()
    refused = [
        option for option in ("depends_on", "job_id", "pipeline", "unique") if options.pop(option)
    ]
    if refused:
        raise ScheduleError(
            f"a schedule takes no {', '.join(refused)}: it makes many jobs, each with its own id"
        )
    del options["func"]
    args = options.pop("args")
    kwargs = options.pop("kwargs")
    return build_template(function, args, kwargs, options | policies | {"queue": queue})


@takes_after_commit
def edit(
    name: str,
    *,
    rule: Rule | None = None,
    function: Any = None,
    args: Iterable[Any] | None = None,
    kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> Schedule:
    """Change the given parts of a schedule and keep the others.

    The options of one policy are given together: `limit=5` alone ends the schedule's own `rate`.
    If the edit changes the ticks, the schedule starts again now; else it keeps its next tick.
    Another `function` starts with its own queue and without the options of the old one.

    Raises:
        NoSuchSchedule: there is no such schedule.
        ScheduleError: the schedule is declared in the code, or the change is wrong.
        NotAJob, TypeError, PayloadError, PayloadTooLarge, RefusedWebhook: as for enqueue.
    """
    client = connections.client()
    while True:
        _check_not_declared(name, "change")
        found = get(name)
        template = JobTemplate(found.function, found.queue, found.fields, found.digest)
        if function is not None:
            call_args = found.args if args is None else args
            call_kwargs = found.kwargs if kwargs is None else kwargs
            template = build_template(function, call_args, call_kwargs, options)
        elif args is not None or kwargs is not None or options:
            template = _changed_template(found, args, kwargs, options)
        change = partial(
            edit, name, rule=rule, function=function, args=args, kwargs=kwargs, **options
        )
        row = partial(rows.encode_call, name, Change.EDIT, rule or found.rule, template)
        if _wait_for_commit(name, change, row):
            return preview(client, name, rule or found.rule, template, found.source, found)
        if save(client, name, rule or found.rule, template, found.source, found):
            return get(name)


def _changed_template(
    found: Schedule,
    args: Iterable[Any] | None,
    kwargs: dict[str, Any] | None,
    options: dict[str, Any],
) -> JobTemplate:
    """The call of `found` with other arguments or options; an option that is not given is kept."""
    template = build_template(
        found.function,
        found.args if args is None else args,
        found.kwargs if kwargs is None else kwargs,
        {"queue": found.queue} | options,
    )
    kept = {field for fields in OPTION_FIELDS.values() for field in fields}
    for option in options.keys() & OPTION_FIELDS.keys():
        kept.difference_update(OPTION_FIELDS[option])
    if args is None and kwargs is None and "description" not in options:
        kept.add("description")
    stored = {decode(field): value for field, value in found.fields.items()}
    if args is not None or kwargs is not None:
        kept -= _made_of_arguments(found, stored, kept)
    fields = {field: value for field, value in template.fields.items() if field not in kept}
    fields |= {field: value for field, value in stored.items() if field in kept}
    return JobTemplate(template.function, template.queue, fields, template.digest)


def _made_of_arguments(found: Schedule, stored: dict[str, Any], kept: set[str]) -> set[str]:
    """Those of the kept fields whose value the options of `@job` make of the arguments.

    Raises:
        ScheduleError: the schedule has such an option of its own, which has to be given again.
    """
    by_function = build_template(found.function, found.args, found.kwargs, {"queue": found.queue})
    made = set()
    for field, option in (("rqjobs_unique", "unique"), ("rqjobs_limit", "limit_by")):
        own = decode(stored.get(field, b""))
        if own == by_function.fields.get(field, ""):
            made.add(field)
        elif field in kept and not own.endswith(f" {found.function}"):  # a key without limit_by
            raise ScheduleError(
                f"the schedule {found.name!r} has {option} of its own, whose key is made of the "
                f"arguments; give {option} again, with its other options"
            )
    return made


@takes_after_commit
def pause(name: str) -> None:
    """Pause a schedule: its ticks make no jobs until it is resumed. Its earlier jobs are not
    affected.

    Raises:
        NoSuchSchedule: there is no such schedule.
        ScheduleError: the schedule has ended or is undeclared.
    """
    _change_state(name, "paused", lambda found: ("never", {"next": ""}))


@takes_after_commit
def resume(name: str) -> None:
    """Resume a paused schedule at its next tick from now. The ticks in between do not count as
    missed.

    Raises:
        NoSuchSchedule: there is no such schedule.
        ScheduleError: the schedule has ended or is undeclared.
    """
    _change_state(
        name, "active", lambda found: first_tick(connections.client(), found.name, found.rule)
    )


@takes_after_commit
def run_now(name: str) -> Job:
    """Enqueue one job of a schedule now, outside its rule and in any state; returns the job.

    Raises:
        NoSuchSchedule: there is no such schedule.
        ScheduleError: a key in Redis that the run needs has the wrong type, or another job has
            the unique key of the schedule's jobs.
    """
    job_id = f"{name}-now-{uuid4().hex[:12]}"
    transaction = transactions.current()
    if transaction is None:
        return _run_now(name, job_id)
    job = Job(job_id, connection=connections.client())
    job.restore(get(name).fields)
    row = partial(rows.encode, name, Change.RUN, job_id=job_id)
    run = partial(_run_now, name, job_id)
    transaction.call(f"job {job_id}", run, [job], row)
    return job


def _run_now(name: str, job_id: str) -> Job:
    client = connections.client()
    while True:
        found = get(name)
        result = enqueue_ticks(client, found, [("", job_id)])
        if result.status is RunStatus.WRONG_TYPE:
            raise ScheduleError(
                f"the schedule {name!r} makes no job: the key of its queue {found.queue!r}, of its "
                f"runs or of their outcomes, or rq:queues, is of the wrong type; delete that key"
            )
        if result.skipped:
            raise ScheduleError(
                f"the schedule {name!r} makes no job: another job has its unique key; wait for its "
                f"end"
            )
        if result.made == 1:
            job: Any = Job.fetch(job_id, connection=client)
            return job


@takes_after_commit
def remove(name: str) -> None:
    """Remove a schedule and its history. The jobs that it has made stay.

    Raises:
        NoSuchSchedule: there is no such schedule.
        ScheduleError: the schedule is declared in the code; remove its declaration.
    """
    _check_not_declared(name, "remove")
    _revision(name)
    row = partial(rows.encode, name, Change.REMOVE)
    if _wait_for_commit(name, partial(remove, name), row):
        return
    while not write(connections.client(), name, _revision(name), "", "remove", {}):
        pass


def get(name: str) -> Schedule:
    """The schedule called `name`.

    Raises:
        NoSuchSchedule: there is no such schedule.
        ScheduleError: the schedule in Redis cannot be read.
    """
    found = read(connections.client(), [name])
    if name in found:
        return found[name]
    _revision(name)
    raise ScheduleError(
        f"the schedule {name!r} in Redis cannot be read; remove it and add it again"
    )


def names() -> list[str]:
    """The names of all schedules, sorted; also of those that cannot be read."""
    return names_of_all(connections.client())


def search(found: list[str], text: str) -> list[str]:
    """Those of these schedules with `text` in the name, function or queue, in any case."""
    words = text.casefold()
    replies = scripts.read_together(
        connections.client(),
        [("HMGET", keys.schedule(name), "function", "queue") for name in found],
    )
    return [
        name
        for name, reply in zip(found, replies, strict=True)
        if words in name.casefold() or words in _searched(reply)
    ]


def _searched(reply: Any) -> str:
    if not isinstance(reply, list):
        return ""
    return "\n".join(decode(value or b"") for value in reply).casefold()


def exists(name: str) -> bool:
    """Whether there is a schedule with this name, readable or not."""
    return is_stored(connections.client(), name)


def all() -> list[Schedule]:
    """Every schedule that can be read, by name."""
    client = connections.client()
    return list(read(client, names_of_all(client)).values())


def runs(name: str, count: int = 10) -> list[Run]:
    """The last runs of a schedule, the newest first; Redis keeps `store.HISTORY_RUNS`."""
    return runs_of([name], count)[name]


def runs_of(names: list[str], count: int = 10) -> dict[str, list[Run]]:
    """The last runs of each of these schedules, as `runs` gives them. Two round trips in all."""
    client = connections.client()
    lists = scripts.read_together(
        client, [("LRANGE", keys.schedule_runs(name), 0, count - 1) for name in names]
    )
    entries = {name: _entries(members) for name, members in zip(names, lists, strict=True)}
    commands: list[tuple[Any, ...]] = []
    for name, some in entries.items():
        for _tick, _enqueued, job_id in some:
            commands.append(("HMGET", keys.job(job_id), "status", "ended_at"))
            commands.append(("HGET", keys.schedule_outcomes(name), job_id))
    replies = iter(scripts.read_together(client, commands))
    return {
        name: list(_runs(some, list(islice(replies, 2 * len(some)))))
        for name, some in entries.items()
    }


def _entries(members: Any) -> list[list[str]]:
    """Tick, time and job id of each run in a reply; none if the key has the wrong type."""
    if not isinstance(members, list):
        return []
    entries = [decode(member).split(" ") for member in members]
    return [entry for entry in entries if len(entry) == 3]  # others are foreign data


def _runs(entries: list[list[str]], replies: list[Any]) -> Iterator[Run]:
    for entry, job, noted in zip(entries, replies[::2], replies[1::2], strict=True):
        tick, enqueued, job_id = entry
        if isinstance(job, list) and job[0]:
            status, ended = job
        else:
            status, ended = _noted_outcome(noted)
        outcome = decode(status) or "unknown"
        if outcome not in ENDED_OUTCOMES:
            ended = None
        with contextlib.suppress(ValueError, OverflowError, OSError):  # foreign data is left out
            yield Run(
                job_id=job_id,
                tick=None if tick == "now" else utc(int(tick)),
                enqueued=utc(float(enqueued)),
                outcome=outcome,
                ended=str_to_date(ended) if ended else None,
            )


def _noted_outcome(noted: Any) -> tuple[bytes, bytes]:
    if not isinstance(noted, bytes):
        return b"", b""
    status, _, ended = noted.partition(b" ")
    return status, ended


def _revision(name: str) -> bytes:
    """The revision of a schedule as it is stored, even if the schedule cannot be read.

    Raises:
        NoSuchSchedule: there is no such schedule.
    """
    revision: Any = connections.client().hget(keys.schedule(name), "revision")
    if revision is None:
        raise NoSuchSchedule(f"there is no schedule {name!r}; rqjobs schedules lists them")
    return bytes(revision)


def _check_not_declared(name: str, action: str) -> None:
    fields = ("source", "undeclared_since")
    source, undeclared_since = connections.client().hmget(keys.schedule(name), *fields)
    if source == b"code" and not (undeclared_since and action == "remove"):
        raise ScheduleError(
            f"the schedule {name!r} is declared in the code: {action} it there, or pause it here"
        )


def _change_state(
    name: str, state: str, start: Callable[[Schedule], tuple[str, dict[str, str]]]
) -> None:
    """Set a schedule's state. `start` gives the due time and the fields that go with the state."""
    client = connections.client()
    while True:
        found = get(name)
        if found.state not in ("active", "paused"):
            raise ScheduleError(
                f"the schedule {name!r} is {found.state}, so it cannot be paused or resumed; run "
                f"it now, or add it again"
            )
        row = partial(rows.encode, name, Change.PAUSE if state == "paused" else Change.RESUME)
        if _wait_for_commit(name, partial(_change_state, name, state, start), row):
            return
        if found.state == state:
            return
        due, fields = start(found)
        if write(client, name, found.revision, due, "same", {"state": state} | fields):
            return
