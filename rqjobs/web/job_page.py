"""The page of one job: texts and values of bounded length, for any content of the job."""

from __future__ import annotations

import contextlib
import inspect
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urljoin

from flask import abort
from rq.exceptions import NoSuchJobError

from rqjobs import attempts, catalog, config, connection, hiding, job_record, passed_results, stats
from rqjobs.broker import transitions
from rqjobs.broker.blockers import REMEDIES
from rqjobs.flows import NoSuchFlow, picture
from rqjobs.job_record import JobRecord, Relative
from rqjobs.jobs import Job
from rqjobs.loops import PROGRESS_FIELD, Progress, read_progress
from rqjobs.policies import limits, record_url, time_limits, unique
from rqjobs.results import ENDED_STATUSES
from rqjobs.web import notation, timeline, tracebacks
from rqjobs.web.job_view import (
    NAME_CHARACTERS,
    NO_DATE,
    ROW_LABEL_CHARACTERS,
    actions_in,
    function_name,
    is_job_id,
)
from rqjobs.web.rendering import TRACEBACK_MAX_BYTES, cut, unreadable

MAX_ARGUMENTS = 100
MAX_BLOCKING_PARENTS = 10
HOW_WORDS = {  # of a job that keeps another one from running, by its state
    "failed": "has failed",
    "stopped": "was stopped",
    "canceled": "was canceled",
    "gone": "is gone",
    "over": "has ended",
}
ENDING_WORDS = {"expired": "has expired", "discarded": "was discarded"}
PASSED_ON_TEXTS = {  # the first argument of a job that takes results
    "result": "the result of the job before it",
    "results": "the list of the results of the jobs before it",
}


def shown_job(job_id: str) -> dict[str, Any]:
    """The values of the template job.html: the job, and its flow. Aborts with 404 as `describe`."""
    job = describe(job_id)
    place = job.get("flow")
    flow = None
    if place:
        with contextlib.suppress(NoSuchFlow):
            flow = picture.read(place.flow_id, place.position)
    return {"job": job, "flow": flow}


def describe(job_id: str) -> dict[str, Any]:
    """Everything that the job's page shows. Aborts with 404 if there is no such job."""
    if not is_job_id(job_id):
        abort(404)
    try:
        record = job_record.read(connection.client(), job_id)
    except NoSuchJobError as error:
        if stats.failed_queue_of(connection.client(), job_id) is None:
            abort(404)
        record = error
    if isinstance(record, Exception):
        return _describe_unreadable(job_id, record)
    job = record.job
    status = job.get_status(refresh=False).value
    has_ended = status in ENDED_STATUSES
    return {
        "id": job.id,
        "status": status,
        "ended": has_ended,
        "actions": _actions(job, status),
        "function": cut(function_name(job), 300),
        "description": cut(job.description, 1000),
        "url": _record_url(job),
        "can_edit": function_name(job) in catalog.current().functions,
        "schedule": cut(record.fields.get("rqjobs_schedule"), 100),
        "has_schedule": record.has_schedule,
        "queue": cut(job.origin, NAME_CHARACTERS),
        "worker": cut(job.worker_name, NAME_CHARACTERS),
        "timeout": job.timeout,
        "arguments": _arguments(job),
        "crashes": len(list(filter(None, record.fields.get("rqjobs_crashes", "").split(",")))),
        "ending": cut(record.fields.get("rqjobs_ending"), 100) if status == "canceled" else "",
        "runs": timeline.runs_of(record, has_ended),
        "retrying": attempts.describe_retries(job, record.attempts, record.due, time.time()),
        **_policies(job, record, status),
        **_times(job, status, record.due),
        **_waiting(job, record, status),
        **_relatives(job, record),
        **_meta(job, record),
        **_outcome(record),
    }


def _actions(job: Job, status: str) -> list[str]:
    """The buttons of the job. A job of rqjobs itself is not run again."""
    found = actions_in(status)
    if function_name(job) in catalog.BUILT_IN_FUNCTIONS:
        found = [one for one in found if one != "again"]
    return found


def _describe_unreadable(job_id: str, error: Exception) -> dict[str, Any]:
    actions = []
    if stats.failed_queue_of(connection.client(), job_id) is not None:
        actions = ["delete"]
    return {
        "id": job_id,
        "status": "unreadable",
        "ended": True,
        "unreadable": cut(f"{type(error).__name__}: {error}", 500),
        "actions": actions,
    }


def _record_url(job: Job) -> str | None:
    """The address of the record that the job is about, by `job_url` of its function.

    A path is one of the application, which `RQJOBS_APP_URL` names if it has a host of its own.
    """
    try:
        function = catalog.current().functions.get(job.func_name or "")
        template = catalog.options(function).get("job_url") if function else None
        if not function or not template:
            return None
        place = passed_results.place_of(job.policy_fields)
        args, kwargs = job.shown_arguments()
        if place and place.takes != "nothing":
            args = [None, *args]
        if hiding.HIDDEN in (*args, *kwargs.values()):
            args = [None if one is hiding.HIDDEN else one for one in args]
            kwargs = {name: None if one is hiding.HIDDEN else one for name, one in kwargs.items()}
        address = record_url.render(template, function, args, kwargs)
        return urljoin(config.current().app_url, address) if address else None
    except Exception:  # the payload cannot be read
        return None


def _policies(job: Job, record: JobRecord, status: str) -> dict[str, Any]:
    """The policies of the job, from `@job` or from the call of enqueue."""
    paused = ""
    if status == "deferred":
        paused = cut(record.fields.get("rqjobs_paused"), NAME_CHARACTERS)
    return {
        "unique": cut(unique.describe(job.policy_fields), 300),
        "kill_after": cut(job.policy_fields.get("rqjobs_kill_after"), 20),
        "retries_left": job.retries_left,
        "repeats_left": job.repeats_left,
        "on_failed": cut(job.policy_fields.get("rqjobs_on_failed"), NAME_CHARACTERS),
        "failure_group": cut(record.fields.get("rqjobs_failure_group"), 100),
        "limit": cut(limits.describe(job.policy_fields), 300),
        "paused": paused,
    }


def _times(job: Job, status: str, due: Any) -> dict[str, Any]:
    times = [
        ("Created", job.created_at),
        ("Enqueued", job.enqueued_at),
        ("Due", _moment(due)),
        ("Expires", _moment(time_limits.expiry(job.policy_fields.get("rqjobs_expires", "")))),
        ("Started", job.started_at),
        ("Ended", job.ended_at),
    ]
    running = None
    if status == "started":
        running = job.started_at
    took = None
    if job.ended_at and job.started_at:
        took = (job.ended_at - job.started_at).total_seconds()
    return {
        "times": [(name, moment) for name, moment in times if isinstance(moment, datetime)],
        "running": running,
        "took": took,
    }


def _moment(seconds: Any) -> datetime | None:
    """`seconds` after 1970, or None if that is not a date: not a number, or a year out of range."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _waiting(job: Job, record: JobRecord, status: str) -> dict[str, Any]:
    """The reason why a job has not begun."""
    waits_for = cut(record.fields.get("rqjobs_waits_for"), 300) if status == "deferred" else ""
    if waits_for and record.place_in_line:
        waits_for += f", number {record.place_in_line:,} in line"
    return {
        "waits_for": waits_for,
        "place_in_queue": record.place_in_line if status == "queued" else 0,
        "unserved": status in ("queued", "scheduled") and not record.listeners,
    }


@dataclass(frozen=True)
class Blocker:
    """A job that keeps another one from running: its state, and the remedy."""

    job_id: str
    has_page: bool
    how: str
    remedy: str


def _blocker(one: Relative) -> Blocker:
    how = HOW_WORDS[one.status]
    if one.status == "canceled":
        how = ENDING_WORDS.get(one.ending, how)
    return Blocker(
        cut(one.job_id, NAME_CHARACTERS), is_job_id(one.job_id), how, REMEDIES[one.status]
    )


def _relatives(job: Job, record: JobRecord) -> dict[str, Any]:
    """The jobs before and after this one, and those that keep it from running."""
    waiting = sum(child.status == "deferred" for child in record.children)
    return {
        "parents": [_relative(one) for one in record.parents],
        "children": [_relative(one) for one in record.children],
        "number_of_parents": record.number_of_parents,
        "number_of_children": record.number_of_children,
        "waiting_children": waiting,
        "blocked": [_blocker(one) for one in record.blocking[:MAX_BLOCKING_PARENTS]],
        "more_blockers": max(0, len(record.blocking) - MAX_BLOCKING_PARENTS),
        "flow": passed_results.place_of(job.policy_fields),
    }


def _relative(one: Relative) -> dict[str, Any]:
    return {
        "id": cut(one.job_id, NAME_CHARACTERS),
        "has_page": is_job_id(one.job_id),
        "status": one.ending or one.status,
        "label": cut(one.description or one.job_id, ROW_LABEL_CHARACTERS),
    }


def _meta(job: Job, record: JobRecord) -> dict[str, Any]:
    """The job's meta, and its progress, also if it is only numbers `done` and `total` of the meta."""
    progress = read_progress((job.hash_as_read or {}).get(PROGRESS_FIELD.encode()))
    shown = None
    if job.meta:
        shown = notation.show(job.meta)
    return {"meta": shown, "progress": progress or _progress_in(job.meta)}


def _progress_in(meta: Any) -> Progress | None:
    if not isinstance(meta, dict):
        return None
    done = meta.get("done")
    total = meta.get("total")
    if done is None or total is None or {type(done), type(total)} - {int, float}:
        return None
    if not total or not 0 <= done <= total:
        return None
    return Progress(done, total, "", NO_DATE)


def _outcome(record: JobRecord) -> dict[str, Any]:
    """The last result or traceback, and the reason if it cannot be read."""
    found = record.result
    trace = transitions.cut_middle(found.traceback, TRACEBACK_MAX_BYTES)
    return {
        "has_result": found.has_value or bool(found.beginning),
        "result": notation.show(found.value) if found.has_value else None,
        "result_beginning": cut(found.beginning),
        "result_error": cut(found.error, 500),
        "traceback": trace,
        "raised": tracebacks.parse(trace) if trace else None,
    }


@dataclass(frozen=True)
class Argument:
    """An argument of the job. `note`: a text for an argument without a value of its own."""

    name: str
    value: notation.Part | None
    note: str = ""


def _arguments(job: Job) -> list[Argument]:
    """The arguments; by position if the function is not in the catalog, or does not take them."""
    try:
        args, kwargs = job.shown_arguments()
    except Exception as error:  # the payload cannot be read
        return [Argument("", None, cut(unreadable(error), 500))]
    place = passed_results.place_of(job.policy_fields)
    if place and place.takes != "nothing":
        args = [Note(PASSED_ON_TEXTS[place.takes]), *args]
    named = [(str(number), value) for number, value in enumerate(args, 1)] + list(kwargs.items())
    function = catalog.current().functions.get(job.func_name or "")
    if function:
        # A job for an older version of the function may not fit its signature.
        with contextlib.suppress(TypeError):
            named = list(inspect.signature(function).bind(*args, **kwargs).arguments.items())
    return [_argument(cut(name, 100), value) for name, value in named[:MAX_ARGUMENTS]]


class Note(str):
    """The place of an argument that a job gets from the jobs before it."""


def _argument(name: str, value: Any) -> Argument:
    if type(value) is Note:
        return Argument(name, None, value)
    return Argument(name, notation.show(value))
