"""The pages of schedules: all of them, one with its next times and last runs, and the form that makes or changes one.

What stands in a schedule's hash is untrusted text, and one that cannot be read must not hide the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import redis
from flask import abort, redirect, request, session, url_for
from redis.exceptions import ResponseError

from rqjobs import ScheduleError, catalog, connection, queues
from rqjobs import schedules as stored
from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.scheduler import SCHEDULES_LOCK
from rqjobs.schedules.describe import describe, describe_missed
from rqjobs.schedules.rules import Rule
from rqjobs.schedules.store import Schedule, read
from rqjobs.web.auth import back, page, pages
from rqjobs.web.forms import fields as forms
from rqjobs.web.forms import rule as ruleform
from rqjobs.web.job_view import cut, is_id, part

PER_PAGE = 50
NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")
ODD = (
    ValueError,
    OverflowError,
    RecursionError,
)  # what foreign numbers and JSON in a hash may raise
UNREADABLE = "unreadable"
DECLARED = "it is declared in the code, so it is changed and removed there."
MISSED = {"once": "run once for all of them", "all": "run once for each", "skip": "skip them"}
ACTIONS: dict[
    str, tuple[Callable[[str], Any], str]
] = {  # what can be done, by what, and what is said then
    "run": (stored.run_now, "One of its jobs is in the queue."),
    "pause": (stored.pause, "The schedule rests until it is resumed."),
    "resume": (stored.resume, "The schedule goes on with its next time."),
    "remove": (stored.remove, "The schedule is removed; the jobs that it made stay."),
}


# What is shown


@pages.get("/schedules")
def schedules() -> Any:
    name = request.args.get("function", "")
    return _list(name, _fresh(name), {})


@pages.get("/live/schedules")
def live_schedules() -> Any:
    """The table of that page, as it is now."""
    return page("_schedules.html", **_table())


def _list(
    function: str, given: Mapping[str, str], errors: dict[str, str], status: int = 200
) -> Any:
    return page(
        "schedules.html", status, form=_form(function), given=given, errors=errors, **_table()
    )


def _table() -> dict[str, Any]:
    client = connection.client()
    known = scripts.read_together(client, [("ZRANGE", keys.SCHEDULES, 0, -1)])[0]
    names = sorted(map(decode, known)) if isinstance(known, list) else []
    number, pages = part(len(names), PER_PAGE)
    shown = names[(number - 1) * PER_PAGE : number * PER_PAGE]
    found = _read(shown)
    return {
        "schedules": [_describe(name, found.get(name), 5, 0) for name in shown],
        "total": len(names),
        "number": number,
        "pages": pages,
        "clock": bool(client.exists(SCHEDULES_LOCK)),
    }


@pages.get("/schedules/<name>")
def schedule(name: str) -> Any:
    found = _find(name)
    if found is None or found.source == "code":
        return _one(name, found, "", {}, {})
    chosen = request.args.get("function", found.function)
    function = catalog.current().functions.get(chosen)
    arguments = _arguments(found) if chosen == found.function else _defaults(function)
    given = (arguments or {}) | ruleform.given(found.rule) | {"queue": found.queue}
    return _one(name, found, chosen, given, {}, keep=arguments is None)


@pages.get("/live/schedules/<name>")
def live_schedule(name: str) -> Any:
    """What that page shows above the form, as it is now."""
    return page("_schedule.html", schedule=_describe(name, _find(name), 10, 5), clock=_clock())


def _one(
    name: str,
    found: Schedule | None,
    function: str,
    given: Mapping[str, str],
    errors: dict[str, str],
    keep: bool = False,
    status: int = 200,
) -> Any:
    form, shown = None, _describe(name, found, 10, 5)
    if found and found.source != "code" and shown["state"] != UNREADABLE:
        moments = {} if errors else {"start": found.rule.start, "end": found.rule.end}
        form = _form(function) | {"keep": keep, "revision": found.revision, "moments": moments}
        if found.queue not in form["queues"]:
            form["queues"] = [*form["queues"], found.queue]
    return page(
        "schedule.html",
        status,
        schedule=shown,
        form=form,
        given=given,
        errors=errors,
        clock=_clock(),
    )


def _clock() -> bool:
    """Whether somebody ticks at the moment."""
    return bool(connection.client().exists(SCHEDULES_LOCK))


def _find(name: str) -> Schedule | None:
    """The schedule, or None if it cannot be read. Aborts with 404 if there is none."""
    found = _read([name]).get(name) if NAME.fullmatch(name) else None
    if found is None and (not NAME.fullmatch(name) or not _is_known(name)):
        abort(404)
    return found


def _is_known(name: str) -> bool:
    return isinstance(
        scripts.read_together(connection.client(), [("ZSCORE", keys.SCHEDULES, name)])[0], float
    )


def _read(names: list[str]) -> dict[str, Schedule]:
    """Those of these schedules that can be read."""
    client = connection.client()
    try:
        return read(client, names)
    except ODD:
        if len(names) == 1:
            return {}
        return {name: schedule for each in names for name, schedule in _read([each]).items()}


def _describe(name: str, found: Schedule | None, runs: int, times: int) -> dict[str, Any]:
    """A schedule as texts of bounded length, with so many of its last runs and next times."""
    shown: dict[str, Any] = {
        "name": cut(name, 100),
        "linked": bool(NAME.fullmatch(name)),
        "state": UNREADABLE,
        "runs": [],
        "actions": ["remove"],
    }
    if found is None:
        return shown
    try:
        upcoming = found.upcoming(times) if times else []
        last = stored.runs(name, runs)
        rule_text = describe(found.rule)
    except (redis.ConnectionError, redis.TimeoutError):
        raise
    except Exception:  # whatever a hostile hash makes of it
        return shown
    rests = {"active": ["pause"], "paused": ["resume"]}.get(found.state, [])
    removable = found.source != "code" or found.state == "undeclared"
    return shown | {
        "state": cut(found.state, 40),
        "rule_text": cut(rule_text, 300),
        "call": cut(found.description, 300),
        "function": cut(found.function, 200),
        "known": found.function in catalog.current().functions,
        "queue": cut(found.queue, 100),
        "declared": found.source == "code",
        "rule": cut(
            f"{found.rule.expression} ({found.rule.tz})" if found.rule.expression else "", 300
        ),
        "zone": found.rule.tz,
        "upcoming": ruleform.times(upcoming),
        "next": found.next,
        "due": found.due,
        "last": found.last,
        "jitter": found.rule.jitter,
        "left": found.runs_left,
        "made": found.made,
        "missed": describe_missed(found.missed) if found.missed else "",
        "overlapped": found.overlapped,
        "created": found.created,
        "changed": found.changed,
        "actions": ["run", *rests, *["remove"] * removable],
        "runs": [
            {
                "id": cut(run.job_id, 260),
                "outcome": cut(run.outcome, 40),
                "tick": run.tick,
                "ended": run.ended,
                "enqueued": run.enqueued,
                "linked": is_id(run.job_id),
            }
            for run in last
        ],
    }


# What is done


@pages.post("/schedules/<name>/<action>")
def act_on_schedule(name: str, action: str) -> Any:
    if action not in ACTIONS or not NAME.fullmatch(name):
        abort(404)
    do, note = ACTIONS[action]
    try:
        do(name)
    except (ScheduleError, TypeError, ResponseError, *ODD) as error:
        note = f"Nothing was done: {cut(str(error), 500)}"
    session["rqjobs_note"] = f"{note} ({name})"
    if not _is_known(name):
        return back("rqjobs.schedules")
    return back("rqjobs.schedule", name=name)


@pages.post("/schedules")
def add_schedule() -> Any:
    chosen, name = request.form.get("function", ""), request.form.get("name", "").strip()
    function = catalog.current().functions.get(chosen)
    if function is None:
        return _list(
            chosen, request.form, {"function": "There is no such job function; choose one."}, 422
        )
    args, kwargs, errors = forms.read(function, request.form)
    reader = forms.Reader(request.form)
    rule, queue = ruleform.read(reader), reader.queue()
    if not name:
        reader.errors["name"] = "Give it a name, such as nightly-report."
    errors |= reader.errors
    if rule and not errors:
        try:
            stored.add(name, rule, function, args=args, kwargs=kwargs, replace=False, queue=queue)
        except ScheduleError as error:  # the rule is right, so it is the name
            if not _same(name, rule, chosen, queue, args, kwargs):
                errors["name"] = str(error)
        except (TypeError, ValueError) as error:  # everything that enqueue refuses is one of these
            errors[""] = str(error)
    if errors:
        return _list(chosen, request.form, errors, 422)
    session["rqjobs_note"] = "The schedule is stored."
    return redirect(url_for("rqjobs.schedule", name=name), 303)


def _same(name: str, rule: Rule, function: str, queue: str, args: Any, kwargs: Any) -> bool:
    """Whether there is such a schedule already: the same form was sent twice."""
    found = _read([name]).get(name)
    return found is not None and (
        found.rule,
        found.function,
        found.queue,
        found.args,
        found.kwargs,
    ) == (rule, function, queue, list(args), kwargs)


@pages.post("/schedules/<name>")
def edit_schedule(name: str) -> Any:
    found = _find(name)
    if found is None or found.source == "code":
        session["rqjobs_note"] = f"Nothing was done: {DECLARED if found else 'it cannot be read'}"
        return redirect(url_for("rqjobs.schedule", name=name), 303)
    chosen, keep = request.form.get("function", ""), "keep" in request.form
    reader = forms.Reader(request.form)
    rule, change = ruleform.read(reader, found.rule), dict[str, Any]()
    if request.form.get("queue") != found.queue or chosen != found.function:
        change["queue"] = (
            found.queue if request.form.get("queue") == found.queue else reader.queue()
        )
    if request.form.get("revision") != str(found.revision):
        reader.errors[""] = (
            "It was changed meanwhile, so nothing was done. Save again to write this over it."
        )
    function = catalog.current().functions.get(chosen)
    errors = reader.errors
    if function is None and not keep:
        errors["function"] = "There is no such job function; choose one."
    elif function and not keep:
        args, kwargs, more = forms.read(function, request.form)
        errors |= more
        if chosen != found.function:
            change |= {"function": function, "args": args, "kwargs": kwargs}
        elif not more and forms.shown(function, args, kwargs) != _arguments(found):
            change |= {"args": args, "kwargs": kwargs}
    if rule and not errors:
        try:
            stored.edit(name, rule=rule, **change)
        except (TypeError, ValueError) as error:
            errors[""] = str(error)
    if errors:
        return _one(name, found, chosen, request.form, errors, keep, 422)
    session["rqjobs_note"] = "The schedule is changed."
    return redirect(url_for("rqjobs.schedule", name=name), 303)


# The form


def _form(chosen: str) -> dict[str, Any]:
    """What the form needs to call the function of that name."""
    jobs = catalog.current()
    function = jobs.functions.get(chosen)
    modules: dict[str, list[str]] = {}
    for known, _ in jobs:
        modules.setdefault(known.rpartition(".")[0], []).append(known)
    return {
        "modules": modules,
        "name": chosen,
        "known": function is not None,
        "queues": forms.queue_choices(),
        "summary": forms.documentation(function)[0] if function else "",
        "units": forms.UNITS,
        "fields": forms.fields(function) if function else [],
        "missed": MISSED,
        "zone": datetime.now().astimezone().tzname(),
        "zones": ruleform.zones(),
        "moments": {},
        "keep": False,
    }


def _defaults(function: Callable[..., Any] | None) -> dict[str, str]:
    return {field.input: field.default for field in forms.fields(function)} if function else {}


def _fresh(chosen: str) -> dict[str, str]:
    """The form for a new schedule, filled in."""
    function = catalog.current().functions.get(chosen)
    if function is None:
        return {}
    name = chosen.rpartition(".")[2]
    free = NAME.fullmatch(name) and not _is_known(name)
    return _defaults(function) | {
        "name": name if free else "",
        "kind": "every",
        "interval": "5",
        "unit": "minutes",
        "missed": "once",
        "overlap": "on",
        "queue": queues.queue_for(function).name,
    }


def _arguments(found: Schedule) -> dict[str, str] | None:
    """The inputs for what it calls; None if they cannot say that."""
    function = catalog.current().functions.get(found.function)
    try:
        return forms.shown(function, found.args, found.kwargs) if function else None
    except (redis.ConnectionError, redis.TimeoutError):
        raise
    except Exception:  # somebody else wrote them
        return None
