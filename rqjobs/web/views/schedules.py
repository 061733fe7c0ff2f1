"""The pages of schedules: the list, one schedule with its next times and runs, and the form.

The record of a schedule is untrusted text. A record that cannot be read must not hide the others.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flask import abort, redirect, request, url_for
from redis.exceptions import ResponseError

from rqjobs import ScheduleError, catalog, config, connection, hiding, queues, schedules, stats
from rqjobs.schedules.describe import describe, describe_missed
from rqjobs.schedules.rules import Rule
from rqjobs.schedules.store import HISTORY_RUNS, RECORD_ERRORS, Schedule, is_name, read
from rqjobs.web.access import Role, can, requires
from rqjobs.web.forms import arguments, fields
from rqjobs.web.forms.options import FormReader
from rqjobs.web.forms.rule import DAYS, MISSED_LABELS, NEW_RULE, fill_in_rule, read_rule, time_zones
from rqjobs.web.job_view import is_job_id
from rqjobs.web.rendering import (
    CONNECTION_ERRORS,
    cut,
    flash,
    page,
    pages,
    paging,
    redirect_back,
)

SCHEDULES_PER_PAGE = 50
ROW_RUNS = 10  # of a schedule in the list
PAGE_RUNS = 10
RUNS_PER_PAGE = 25
PAGE_TIMES = 5
PREVIEW_TIMES = 3
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class ScheduleAction:
    """A button of a schedule, and the note after it."""

    do: Callable[[str], Any]
    note: str


SCHEDULE_ACTIONS = {
    "run": ScheduleAction(schedules.run_now, "One job of this schedule is in the queue."),
    "pause": ScheduleAction(schedules.pause, "The schedule is paused until it is resumed."),
    "resume": ScheduleAction(schedules.resume, "The schedule continues with its next time."),
    "remove": ScheduleAction(schedules.remove, "The schedule is removed. Its jobs stay."),
}


# The list


@pages.get("/schedules", endpoint="schedules")
def list_schedules() -> Any:
    name = request.args.get("function", "")
    return _list(name, _new_schedule(name), {})


@pages.get("/live/schedules")
def live_schedules() -> Any:
    """The table of the list, as it is now."""
    return page("_schedules.html", **_table())


def _list(
    function: str, given: Mapping[str, str], errors: dict[str, str], status: int = 200
) -> Any:
    form = _form(function)
    return page("schedules.html", status, form=form, given=given, errors=errors, **_table())


def _table() -> dict[str, Any]:
    text = request.args.get("q", "")[:200]
    every = schedules.names()
    names = schedules.search(every, text) if text else every
    part = paging(len(names), SCHEDULES_PER_PAGE)
    shown = names[part.start : part.end]
    found = _read(shown)
    runs = schedules.runs_of(list(found), ROW_RUNS)
    return {
        "schedules": [_view(name, found.get(name), runs.get(name, []), 0) for name in shown],
        "total": len(every),
        "q": text,
        "paging": part,
        "scheduler_is_running": stats.scheduler_is_running(connection.client()),
    }


# One schedule


@pages.get("/schedules/<name>")
def schedule(name: str) -> Any:
    found = _find(name)
    if found is None or found.source == "code":
        return _one(name, found, "", {}, {})
    chosen = request.args.get("function", found.function)
    inputs: dict[str, str] | None
    if chosen == found.function:
        inputs = _argument_inputs(found)
    else:
        inputs = arguments.default_inputs(catalog.current().functions.get(chosen))
    given = (inputs or {}) | fill_in_rule(found.rule) | {"queue": found.queue}
    return _one(name, found, chosen, given, {}, keep=inputs is None)


@pages.get("/live/schedules/<name>")
def live_schedule(name: str) -> Any:
    """The part of that page above the form, as it is now."""
    return page("_schedule.html", **_detail(name, _find(name)))


@pages.get("/live/rule")
def look_ahead() -> Any:
    """The rule in the form in plain English and its next times, or the error in the form."""
    form = FormReader(request.args)
    rule = read_rule(form)
    ahead = {}
    if rule:
        # The next time may be in no year that a date can have.
        with contextlib.suppress(ValueError, OverflowError):
            ahead = {
                "rule_text": describe(rule),
                "times": _local_times(rule.upcoming(PREVIEW_TIMES)),
            }
    return page("_rule.html", ahead=ahead, wrong=next(iter(form.errors.values()), ""))


def _one(
    name: str,
    found: Schedule | None,
    function: str,
    given: Mapping[str, str],
    errors: dict[str, str],
    keep: bool = False,
    status: int = 200,
) -> Any:
    """The page of a schedule, with the form if the schedule can be edited.

    `keep` leaves the arguments out of the form: they stay as they are.
    """
    detail = _detail(name, found)
    form = None
    editable = found is not None and found.source != "code" and can("admin")
    if found and editable and detail["schedule"]["state"] != UNREADABLE:
        form = _form(function) | {"keep": keep, "revision": found.revision}
        if not errors:  # then the browser converts the dates to its own time zone
            form["moments"] = {"start": found.rule.start, "end": found.rule.end}
        if found.queue not in form["queues"]:
            form["queues"] = [*form["queues"], found.queue]
    return page("schedule.html", status, form=form, given=given, errors=errors, **detail)


def _detail(name: str, found: Schedule | None) -> dict[str, Any]:
    return {
        "schedule": _view(name, found, schedules.runs(name, PAGE_RUNS), PAGE_TIMES),
        "scheduler_is_running": stats.scheduler_is_running(connection.client()),
    }


@pages.get("/schedules/<name>/runs")
def schedule_runs(name: str) -> Any:
    """The kept runs of a schedule, in parts: `?after=` is the last job of the part before."""
    found = _find(name)
    runs = schedules.runs(name, HISTORY_RUNS)
    after = request.args.get("after", "")
    ids = [run.job_id for run in runs]
    start = ids.index(after) + 1 if after in ids else 0
    shown = runs[start : start + RUNS_PER_PAGE]
    return page(
        "schedule_runs.html",
        schedule=_view(name, found, shown, 0),
        counts=Counter(run.outcome for run in runs).most_common(),
        kept=HISTORY_RUNS,
        start=start,
        next=shown[-1].job_id if start + RUNS_PER_PAGE < len(runs) else "",
    )


def _find(name: str) -> Schedule | None:
    """The schedule, or None if it cannot be read. Aborts with 404 if there is none."""
    if not is_name(name):
        abort(404)
    found = _read([name]).get(name)
    if found is None and not schedules.exists(name):
        abort(404)
    return found


def _read(names: list[str]) -> dict[str, Schedule]:
    """The schedules that can be read."""
    try:
        return read(connection.client(), names)
    except RECORD_ERRORS:
        if len(names) == 1:
            return {}
    # One of them cannot be read: read them one by one.
    found: dict[str, Schedule] = {}
    for name in names:
        found |= _read([name])
    return found


# A schedule as texts


def _view(
    name: str, found: Schedule | None, runs: list[schedules.Run], times: int
) -> dict[str, Any]:
    """A schedule as texts of bounded length, with these runs and its next `times`."""
    view: dict[str, Any] = {
        "name": cut(name, 100),
        "linked": is_name(name),
        "state": UNREADABLE,
        "runs": [],
        "actions": ["remove"],
    }
    if found is None:
        return view
    try:
        return view | {
            "rule_text": cut(describe(found.rule), 300),
            "upcoming": _local_times(found.upcoming(times)) if times else [],
            "runs": [_run_view(run) for run in runs],
            **_facts(found),
        }
    except CONNECTION_ERRORS:
        raise
    except Exception:  # a damaged record may raise anything
        return view


def _facts(found: Schedule) -> dict[str, Any]:
    rule = ""
    if found.rule.expression:
        rule = cut(f"{found.rule.expression} ({found.rule.tz})", 300)
    missed = ""
    if found.missed:
        missed = describe_missed(found.missed)
    return {
        "state": cut(found.state, 40),
        "call": cut(found.description, 300),
        "function": cut(found.function, 200),
        "known": found.function in catalog.current().functions,
        "queue": cut(found.queue, 100),
        "declared": found.source == "code",
        "rule": rule,
        "zone": found.rule.tz,
        "next": found.next,
        "due": found.due,
        "last": found.last,
        "jitter": found.rule.jitter,
        "left": found.runs_left,
        "made": found.made,
        "missed": missed,
        "overlapped": found.overlapped,
        "created": found.created,
        "changed": found.changed,
        "actions": _actions(found),
    }


def _actions(found: Schedule) -> list[str]:
    actions = ["run"]
    if found.state == "active":
        actions.append("pause")
    elif found.state == "paused":
        actions.append("resume")
    if found.source != "code" or found.state == "undeclared":
        actions.append("remove")
    return actions


def _run_view(run: schedules.Run) -> dict[str, Any]:
    return {
        "id": cut(run.job_id, 260),
        "outcome": cut(run.outcome, 40),
        "tick": run.tick,
        "ended": run.ended,
        "enqueued": run.enqueued,
        "linked": is_job_id(run.job_id),
    }


def _local_times(ticks: list[Any]) -> list[Any]:
    """Each tick, with its text in the rule's time zone."""
    return [(tick, f"{tick:%a %Y-%m-%d %H:%M:%S %Z}") for tick in ticks]


# Actions


@pages.post("/schedules/<name>/<action>")
@requires(Role.OPERATE, remove=Role.ADMIN)
def act_on_schedule(name: str, action: str) -> Any:
    """Do one of `SCHEDULE_ACTIONS`. A note shows the outcome."""
    if action not in SCHEDULE_ACTIONS or not is_name(name):
        abort(404)
    note = SCHEDULE_ACTIONS[action].note
    try:
        SCHEDULE_ACTIONS[action].do(name)
    except (ScheduleError, TypeError, ResponseError, *RECORD_ERRORS) as error:
        note = f"Nothing was done: {cut(str(error), 500)}"
    flash(f"{note} ({name})")
    if not schedules.exists(name):
        return redirect_back("rqjobs.schedules")
    return redirect_back("rqjobs.schedule", name=name)


@pages.post("/schedules")
@requires(Role.ADMIN)
def add_schedule() -> Any:
    """Store the schedule in the form. A form that is sent twice makes one schedule."""
    chosen = request.form.get("function", "")
    name = request.form.get("name", "").strip()
    function = catalog.current().functions.get(chosen)
    if function is None:
        return _list(chosen, request.form, {"function": fields.NO_SUCH_FUNCTION}, 422)
    args, kwargs, errors = arguments.read_arguments(function, request.form)
    form = FormReader(request.form)
    rule = read_rule(form)
    queue = form.queue()
    if not name:
        form.errors["name"] = "Give it a name, such as nightly-report."
    errors |= form.errors
    if rule and not errors:
        try:
            schedules.add(
                name, rule, function, args=args, kwargs=kwargs, replace=False, queue=queue
            )
        except ScheduleError as error:  # the rule is right, so the error is about the name
            if not _is_stored(name, rule, chosen, queue, args, kwargs):
                errors["name"] = str(error)
        except (TypeError, ValueError) as error:  # enqueue refuses with one of these
            errors[""] = str(error)
    if errors:
        return _list(chosen, request.form, errors, 422)
    flash(f"The schedule {name} is stored.")
    return redirect(url_for("rqjobs.schedule", name=name), 303)


def _is_stored(name: str, rule: Rule, function: str, queue: str, args: Any, kwargs: Any) -> bool:
    """Whether this very schedule is stored already: the form was sent twice."""
    found = _read([name]).get(name)
    if found is None:
        return False
    stored = (found.rule, found.function, found.queue, found.args, found.kwargs)
    return stored == (rule, function, queue, list(args), kwargs)


@pages.post("/schedules/<name>")
@requires(Role.ADMIN)
def edit_schedule(name: str) -> Any:
    """Change a schedule to the form, unless it has changed since the form was opened."""
    found = _find(name)
    if found is None or found.source == "code":
        reason = "it cannot be read"
        if found:
            reason = "it is declared in the code, so change and remove it there."
        flash(f"Nothing was done: {reason}")
        return redirect(url_for("rqjobs.schedule", name=name), 303)
    form = FormReader(request.form)
    rule = read_rule(form, found.rule)
    change = _read_change(form, found)
    if rule and not form.errors:
        try:
            schedules.edit(name, rule=rule, **change)
        except (TypeError, ValueError) as error:
            form.errors[""] = str(error)
    if form.errors:
        chosen = request.form.get("function", "")
        keep = "keep" in request.form
        return _one(name, found, chosen, request.form, form.errors, keep, 422)
    flash("The schedule is changed.")
    return redirect(url_for("rqjobs.schedule", name=name), 303)


def _read_change(form: FormReader, found: Schedule) -> dict[str, Any]:
    """The changes to the call in a form, for `schedules.edit`; wrong inputs are in its errors."""
    change: dict[str, Any] = {}
    chosen = form.form.get("function", "")
    if form.form.get("queue") != found.queue:
        change["queue"] = form.queue()
    elif chosen != found.function:
        change["queue"] = found.queue  # not the queue of the new function
    if form.form.get("revision") != str(found.revision):
        form.errors[""] = (
            "The schedule has changed since this form was opened, so nothing was stored. "
            "Save again to overwrite that change."
        )
    if "keep" in form.form:
        return change
    function = catalog.current().functions.get(chosen)
    if function is None:
        form.errors["function"] = fields.NO_SUCH_FUNCTION
        return change
    args, kwargs, errors = arguments.read_arguments(function, form.form)
    form.errors |= errors
    if chosen != found.function:
        change |= {"function": function, "args": args, "kwargs": kwargs}
    elif not errors and arguments.fill_in(function, args, kwargs) != _argument_inputs(found):
        change |= {"args": args, "kwargs": kwargs}
    return change


# The form


def _form(chosen: str) -> dict[str, Any]:
    """The values for the form of a schedule that calls the function `chosen`."""
    return fields.function_form(chosen) | {
        "missed": MISSED_LABELS,
        "days": DAYS,
        "zones": time_zones(),
        "moments": {},
        "keep": False,
    }


def _new_schedule(chosen: str) -> dict[str, str]:
    """The inputs of a new schedule. Its name is the function's, if that name is free."""
    function = catalog.current().functions.get(chosen)
    if function is None:
        return {}
    name = chosen.rpartition(".")[2]
    if not is_name(name) or schedules.exists(name):
        name = ""
    queue = queues.queue_for(function).name
    return arguments.default_inputs(function) | NEW_RULE | {"name": name, "queue": queue}


def _argument_inputs(found: Schedule) -> dict[str, str] | None:
    """The inputs of the schedule's arguments, or None if no inputs can show them."""
    function = catalog.current().functions.get(found.function)
    if function is None:
        return None
    try:
        if hiding.hides_any(config.current().hide, function, found.args, found.kwargs):
            return None
        return arguments.fill_in(function, found.args, found.kwargs)
    except CONNECTION_ERRORS:
        raise
    except Exception:  # a damaged record may raise anything
        return None
