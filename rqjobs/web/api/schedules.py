"""The operations on schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Response
from redis.exceptions import ResponseError

from rqjobs import ScheduleError, connection, schedules
from rqjobs.broker import scripts
from rqjobs.schedules.describe import describe
from rqjobs.schedules.rules import MISSED_POLICIES, TICK_DISTANCE_MAX_SECONDS, Rule, cron, every
from rqjobs.schedules.store import RECORD_ERRORS, Schedule, read
from rqjobs.web.access import Role
from rqjobs.web.api import job_values
from rqjobs.web.api.enqueueing import read_call
from rqjobs.web.api.job_options import CALL, WrongCall, read_moment
from rqjobs.web.api.job_values import COUNT, MOMENT, NUMBER_OR_NULL, TEXT, an_object
from rqjobs.web.api.operations import (
    PATH_PARAMETERS,
    Given,
    answer,
    no_content,
    operation,
    schema,
)
from rqjobs.web.api.problems import Problem, invalid
from rqjobs.web.rendering import CONNECTION_ERRORS

LISTED_RUNS = 20  # the newest ones of a schedule
UPCOMING_TIMES = 5
LIST_MAX = 1000
NAME = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,80}$"}
RULE_CHANGE = {
    "cron": {"type": "string", "minLength": 1, "maxLength": 500},
    "every": {
        "type": "integer",
        "minimum": 1,
        "maximum": TICK_DISTANCE_MAX_SECONDS - 1,
        "description": "seconds",
    },
    "tz": {"type": "string", "maxLength": 100, "description": "of a cron rule; UTC if not given"},
    "missed": {"type": "string", "enum": list(MISSED_POLICIES)},
    "overlap": {"type": "boolean"},
    "jitter": {"type": "number", "minimum": 0, "maximum": TICK_DISTANCE_MAX_SECONDS},
    "start": {"type": "string", "format": "date-time"},
    "end": {"type": "string", "format": "date-time"},
    "times": {"type": "integer", "minimum": 1, "maximum": TICK_DISTANCE_MAX_SECONDS - 1},
}
SCHEDULE_CHANGE = schema(
    "ScheduleChange",
    {
        "type": "object",
        "properties": {
            **CALL,
            **RULE_CHANGE,
        },
        "required": ["function"],
        "additionalProperties": False,
        "anyOf": [{"required": ["cron"]}, {"required": ["every"]}],
        "not": {"required": ["cron", "every"]},
    },
)
RUN = schema(
    "ScheduleRun",
    an_object(job_id=TEXT, due_at=MOMENT, enqueued_at=MOMENT, ended_at=MOMENT, outcome=TEXT),
)
SCHEDULE_PROPERTIES: dict[str, Any] = {
    "name": TEXT,
    "state": {
        "type": "string",
        "description": "active, paused, ended, undeclared; or unreadable, if its record is damaged",
    },
    "function": TEXT,
    "queue": TEXT,
    "call": TEXT,
    "rule": {"type": "string", "description": "in plain English"},
    "cron": {"type": ["string", "null"]},
    "every": {**NUMBER_OR_NULL, "description": "seconds"},
    "tz": TEXT,
    "declared": {"type": "boolean", "description": "whether the code declares it"},
    "next_at": MOMENT,
    "last_at": MOMENT,
    "made": COUNT,
    "missed": COUNT,
    "overlapped": COUNT,
}
SCHEDULE = schema("Schedule", an_object(**SCHEDULE_PROPERTIES))
SCHEDULE_DETAIL = schema(
    "ScheduleDetail",
    an_object(
        **SCHEDULE_PROPERTIES,
        upcoming={"type": "array", "items": MOMENT},
        runs={"type": "array", "items": RUN, "description": "the newest first"},
    ),
)
PATH_PARAMETERS["schedule"] = NAME


# Reading


@operation(
    "GET",
    "/schedules",
    tag="schedules",
    summary="The schedules, by name",
    query={
        "after": {**NAME, "description": "the last name of the part before"},
        "limit": {"type": "integer", "minimum": 1, "maximum": LIST_MAX, "default": 100},
    },
    answers={
        200: an_object(
            schedules={"type": "array", "items": SCHEDULE},
            next={"type": ["string", "null"], "description": "`after` of the next part"},
        )
    },
)
def list_schedules(given: Given) -> dict[str, Any]:
    after = given.query.get("after", "")
    names = [name for name in schedules.names() if name > after]
    shown = names[: given.query["limit"]]
    found = _read(shown)
    more = len(names) > len(shown)
    return {
        "schedules": [_view(name, found.get(name)) for name in shown],
        "next": job_values.name(shown[-1]) if more else None,
    }


@operation(
    "GET",
    "/schedules/{schedule}",
    tag="schedules",
    summary="A schedule, its next times and its last runs",
    answers={200: SCHEDULE_DETAIL},
)
def get_schedule(given: Given, schedule: str) -> dict[str, Any]:
    return _detail(schedule)


def _detail(name: str) -> dict[str, Any]:
    _must_exist(name)
    found = _read([name]).get(name)
    upcoming: list[Any] = []
    runs: list[Any] = []
    try:
        upcoming = found.upcoming(UPCOMING_TIMES) if found else []
        runs = schedules.runs(name, LISTED_RUNS)
    except CONNECTION_ERRORS:
        raise
    except Exception:  # a damaged record may raise anything
        pass
    return {
        **_view(name, found),
        "upcoming": [job_values.moment(tick) for tick in upcoming],
        "runs": [_run(run) for run in runs],
    }


def _must_exist(name: str) -> None:
    if not schedules.exists(name):
        raise Problem(404, "not-found", f"There is no schedule {name}.")


def _read(names: list[str]) -> dict[str, Schedule]:
    """The schedules that can be read."""
    try:
        return read(connection.client(), names)
    except (*RECORD_ERRORS, ResponseError) as error:
        if isinstance(error, ResponseError) and not scripts.is_wrong_type(error):
            raise
        if len(names) == 1:
            return {}
    found: dict[str, Schedule] = {}  # one of them cannot be read: read them one by one
    for name in names:
        found |= _read([name])
    return found


def _view(name: str, found: Schedule | None) -> dict[str, Any]:
    nothing = {
        "name": job_values.name(name),
        "state": "unreadable",
        **dict.fromkeys(("function", "queue", "call", "rule", "tz"), ""),
        **dict.fromkeys(("cron", "every", "next_at", "last_at"), None),
        "declared": False,
        **dict.fromkeys(("made", "missed", "overlapped"), 0),
    }
    if found is None:
        return nothing
    try:
        return nothing | _facts(found)
    except CONNECTION_ERRORS:
        raise
    except Exception:  # a damaged record may raise anything
        return nothing


def _facts(found: Schedule) -> dict[str, Any]:
    rule = found.rule
    return {
        "state": job_values.name(found.state),
        "function": job_values.name(found.function),
        "queue": job_values.name(found.queue),
        "call": job_values.name(found.description),
        "rule": job_values.name(describe(rule)),
        "cron": job_values.name(rule.expression) or None,
        "every": None if rule.expression else rule.seconds,
        "tz": job_values.name(rule.tz),
        "declared": found.source == "code",
        "next_at": job_values.moment(found.next),
        "last_at": job_values.moment(found.last),
        "made": max(0, found.made),
        "missed": max(0, found.missed),
        "overlapped": max(0, found.overlapped),
    }


def _run(run: schedules.Run) -> dict[str, Any]:
    return {
        "job_id": job_values.name(run.job_id),
        "due_at": job_values.moment(run.tick),
        "enqueued_at": job_values.moment(run.enqueued),
        "ended_at": job_values.moment(run.ended),
        "outcome": job_values.name(run.outcome),
    }


# Changing


@operation(
    "PUT",
    "/schedules/{schedule}",
    tag="schedules",
    summary="Add a schedule, or change it to this",
    role=Role.ADMIN,
    body=SCHEDULE_CHANGE,
    answers={200: SCHEDULE_DETAIL, 201: SCHEDULE_DETAIL},
    problems=(409,),
)
def put_schedule(given: Given, schedule: str) -> Response:
    """Fields that the body leaves out get their defaults. A schedule declared in code is refused."""
    is_new = not schedules.exists(schedule)
    try:
        _, args, kwargs = read_call(given.body)
        rule = _rule(given.body)
    except WrongCall as error:
        raise invalid(error.errors) from None
    except (TypeError, ValueError) as error:  # ScheduleError names the part
        raise invalid({"": str(error)}) from None
    try:
        name, queue = given.body["function"], given.body.get("queue")
        schedules.add(schedule, rule, name, args=args, kwargs=kwargs, queue=queue)
    except ScheduleError as error:  # the rule is right, so the code declares the schedule
        raise Problem(409, "conflict", str(error)) from None
    except (TypeError, ValueError) as error:  # enqueue refuses with one of these
        raise invalid({"": str(error)}) from None
    return answer(_detail(schedule), 201 if is_new else 200)


def _rule(body: dict[str, Any]) -> Rule:
    options: dict[str, Any] = {name: body[name] for name in ("missed", "overlap") if name in body}
    if "jitter" in body:
        options["jitter"] = float(body["jitter"])
    if "times" in body:
        options["times"] = int(body["times"])
    for name in ("start", "end"):
        if name in body:
            options[name] = read_moment(name, body[name])
    if "cron" in body:
        return cron(body["cron"], tz=body.get("tz", "UTC"), **options)
    if "tz" in body:
        raise WrongCall({"tz": "goes with cron; a rule with every counts seconds"})
    return every(seconds=int(body["every"]), **options)


@operation(
    "DELETE",
    "/schedules/{schedule}",
    tag="schedules",
    summary="Remove a schedule and its history",
    role=Role.ADMIN,
    answers={204: None},
    problems=(409,),
)
def delete_schedule(given: Given, schedule: str) -> Response:
    """The jobs that it has made stay."""
    _do(schedule, schedules.remove)
    return no_content()


@operation(
    "POST",
    "/schedules/{schedule}/run",
    tag="schedules",
    summary="Enqueue one job of a schedule now",
    answers={201: schema("ScheduleJob", an_object(job_id=TEXT))},
    problems=(409,),
)
def run_schedule(given: Given, schedule: str) -> Response:
    job = _do(schedule, schedules.run_now)
    return answer({"job_id": job.id}, 201)


@operation(
    "POST",
    "/schedules/{schedule}/pause",
    tag="schedules",
    summary="Pause a schedule",
    answers={200: SCHEDULE_DETAIL},
    problems=(409,),
)
def pause_schedule(given: Given, schedule: str) -> dict[str, Any]:
    _do(schedule, schedules.pause)
    return _detail(schedule)


@operation(
    "POST",
    "/schedules/{schedule}/resume",
    tag="schedules",
    summary="Resume a paused schedule",
    answers={200: SCHEDULE_DETAIL},
    problems=(409,),
)
def resume_schedule(given: Given, schedule: str) -> dict[str, Any]:
    """It goes on with its next time."""
    _do(schedule, schedules.resume)
    return _detail(schedule)


def _do(name: str, action: Callable[[str], Any]) -> Any:
    _must_exist(name)
    try:
        return action(name)
    except schedules.NoSuchSchedule:
        raise Problem(404, "not-found", f"There is no schedule {name}.") from None
    except (ScheduleError, TypeError, *RECORD_ERRORS) as error:
        raise Problem(409, "conflict", str(error)) from None
