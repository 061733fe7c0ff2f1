"""A job as the pages show it: texts of bounded length, for any content of the job."""

from __future__ import annotations

import contextlib
import inspect
import re
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from typing import Any

import redis
from flask import abort
from rq.exceptions import NoSuchJobError
from rq.results import Result

from rqjobs import attempts, call_options, catalog, connection, passed_results, stats
from rqjobs.attempts import Attempt
from rqjobs.job_logs import LogLine
from rqjobs.jobs import Job
from rqjobs.loops import Progress
from rqjobs.maintenance import audit
from rqjobs.policies import limits, time_limits, unique
from rqjobs.web.rendering import CONNECTION_ERRORS, cut, pretty, unreadable

ENDED_STATUSES = ("finished", "failed", "stopped", "canceled")
LOG_MAX_LINES = 2000
LIVE_LOG_LINES = 200  # of a job that has not ended
ROW_LABEL_CHARACTERS = 160
NAME_CHARACTERS = 260
MAX_ARGUMENTS = 100
MAX_PARENTS = 50
MAX_BLOCKING_PARENTS = 10
PASSED_ON_TEXTS = {  # the first argument of a job that takes results
    "result": "the result of the job before it",
    "results": "the list of the results of the jobs before it",
}
NO_DATE = datetime.fromtimestamp(0, timezone.utc)  # of a job without any date


@dataclass(frozen=True)
class JobAction:
    """A button of a job: the statuses in which it is there, and the note after it."""

    statuses: tuple[str, ...]
    note: str


JOB_ACTIONS = {
    "cancel": JobAction(
        ("queued", "scheduled", "deferred", "started"), "The job is canceled and will not run."
    ),
    "stop": JobAction(("started",), "The stop command was sent to the worker."),
    "requeue": JobAction(("failed", "stopped"), "The job is back in its queue."),
    "again": JobAction(
        ("finished", "canceled"), "This is a new job with the same function and arguments."
    ),
    "delete": JobAction(ENDED_STATUSES, "The job is deleted."),
}


def actions_in(status: str) -> list[str]:
    """The actions that a job with this status allows."""
    return [name for name, action in JOB_ACTIONS.items() if status in action.statuses]


def is_job_id(text: str) -> bool:
    """Whether `text` is a valid job id. Other ids have no page."""
    if len(text) > call_options.JOB_ID_MAX_CHARACTERS:
        return False
    return re.fullmatch(r"[\w-]+", text, re.ASCII) is not None


def fetch(job_id: str) -> Job | Exception:
    """The job, or the error if it cannot be read. Aborts with 404 if there is none.

    An id among the failed jobs whose record is gone is an unreadable job: it can be deleted.
    """
    if not is_job_id(job_id):
        abort(404)
    try:
        return stats.read_job(connection.client(), job_id)
    except NoSuchJobError as error:
        if stats.failed_queue_of(connection.client(), job_id) is None:
            abort(404)
        return error


def label(job: Job | Exception, job_id: str) -> str:
    """The description of the job in a note; its id if there is no description."""
    if isinstance(job, Job) and job.description:
        return cut(job.description, 80)
    return cut(job_id, 80)


def row(job: Job) -> dict[str, Any]:
    """A job as a row of a table."""
    status = job.get_status(refresh=False).value
    when = job.ended_at or job.started_at or job.enqueued_at or job.created_at or NO_DATE
    return {
        "id": job.id,
        "status": status,
        "queue": cut(job.origin, NAME_CHARACTERS),
        "when": when,
        "actions": actions_in(status),
        "label": cut(job.description or _function_name(job), ROW_LABEL_CHARACTERS),
        "progress": stats.listed_progress(job) if status == "started" else None,
    }


def describe(job_id: str) -> dict[str, Any]:
    """Everything that the job's page shows. Aborts with 404 if there is no such job."""
    job = fetch(job_id)
    if isinstance(job, Exception):
        return _describe_unreadable(job_id, job)
    status = job.get_status(refresh=False).value
    details = stats.job_details(job)
    return {
        "id": job.id,
        "status": status,
        "ended": status in ENDED_STATUSES,
        "actions": actions_in(status),
        "function": cut(_function_name(job), 300),
        "description": cut(job.description, 1000),
        "schedule": cut(details.schedule, 100),
        "queue": cut(job.origin, NAME_CHARACTERS),
        "worker": cut(job.worker_name, NAME_CHARACTERS),
        "timeout": job.timeout,
        "arguments": _arguments(job),
        "crashes": details.crashes,
        "ending": cut(details.ending, 100) if status == "canceled" else "",
        "paused": cut(details.paused, NAME_CHARACTERS) if status == "deferred" else "",
        "unique": cut(unique.describe(job.policy_fields), 300),
        "kill_after": cut(job.policy_fields.get("rqjobs_kill_after"), 20),
        "retries_left": job.retries_left,
        "repeats_left": job.repeats_left,
        "on_failed": cut(job.policy_fields.get("rqjobs_on_failed"), NAME_CHARACTERS),
        "failure_group": details.failure_group,
        "limit": cut(limits.describe(job.policy_fields), 300),
        "waits_for": _waits_for(job, status),
        **_attempts(job, details.due),
        "log": _log(job, status),
        **_times(job, status, details.due),
        **_parents(job, status),
        **_meta(job, details.progress),
        **_result(job),
    }


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


def _function_name(job: Job) -> str:
    try:
        return job.func_name or ""
    except Exception as error:  # the payload cannot be read
        return unreadable(error)


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


def _waits_for(job: Job, status: str) -> str:
    """The limit for which a deferred job waits; "" if it waits for another job."""
    if status != "deferred":
        return ""
    return cut(stats.waits_for(job), 300)


def _attempts(job: Job, due: Any) -> dict[str, Any]:
    """The job's runs, if there was more than one, and the state of its retries."""
    found: list[Attempt] = []
    with contextlib.suppress(redis.ResponseError):  # the key is not a stream
        found = attempts.read_attempts(job)
    shown: list[Attempt] = []
    if len(found) > 1 or any(attempt.outcome == "retried" for attempt in found):
        shown = found
    return {
        "retrying": attempts.describe_retries(job, found, due, time.time()),
        "attempts": shown,
    }


@dataclass(frozen=True)
class LogRow:
    """A line of the log. `missing`: the number of lines before it that are not shown.

    `attempt`: the number of an attempt that begins with this line, if there are several; else 0.
    """

    line: LogLine
    text: str
    time: str  # ISO 8601, with milliseconds
    missing: int
    attempt: int


def _log(job: Job, status: str) -> list[LogRow]:
    """The lines that the job has logged. While it runs, the page is read each second: the last ones."""
    if not (job.hash_as_read or {}).get(b"rqjobs_log"):
        return []
    lines = job.log_lines()
    lines = lines[-(LOG_MAX_LINES if status in ENDED_STATUSES else LIVE_LOG_LINES) :]
    has_attempts = bool(lines) and lines[0].attempt != lines[-1].attempt
    rows: list[LogRow] = []
    for line in lines:
        missing = line.dropped if rows else line.number
        begins = has_attempts and (not rows or rows[-1].line.attempt != line.attempt)
        moment = line.time.isoformat(timespec="milliseconds")
        rows.append(LogRow(line, cut(line.text), moment, missing, line.attempt if begins else 0))
    return rows


def _moment(seconds: Any) -> datetime | None:
    """`seconds` after 1970, or None if that is no date: no number, or a year out of range."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _parents(job: Job, status: str) -> dict[str, Any]:
    """The jobs before and after this one, and those that will not let it run."""
    parents: list[str] = []
    if isinstance(job._dependency_ids, list):
        parents = [str(parent) for parent in job._dependency_ids[: MAX_PARENTS + 1]]
    children = stats.dependents(job, MAX_PARENTS + 1)
    statuses = stats.statuses(job.connection, [*parents, *children])
    blocking: list[tuple[tuple[str, bool], str, str]] = []
    if status == "deferred":
        blocked = audit.blocked_jobs(job.connection, [job.id])
        blocking = [
            (_linked(parent), state, audit.REMEDIES[state])
            for _, parent, state in islice(blocked, MAX_BLOCKING_PARENTS)
        ]
    return {
        "depends_on": [(_linked(one), statuses[one]) for one in parents[:MAX_PARENTS]],
        "before_it": [(_linked(one), statuses[one]) for one in children[:MAX_PARENTS]],
        "more_parents": len(parents) > MAX_PARENTS,
        "more_children": len(children) > MAX_PARENTS,
        "blocked": blocking,
        "flow": passed_results.place_of(job.policy_fields),
    }


def _linked(job_id: str) -> tuple[str, bool]:
    """An id as it is shown, and whether it has a page."""
    return cut(job_id, NAME_CHARACTERS), is_job_id(job_id)


def _meta(job: Job, progress: Progress | None) -> dict[str, Any]:
    """The job's meta, and its progress, also if it is only numbers `done` and `total` of the meta."""
    text = ""
    if job.meta:
        text = cut(pretty(job.meta))
    return {"meta": text, "progress": progress or _progress_in(job.meta)}


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


def _result(job: Job) -> dict[str, Any]:
    """The latest result, its traceback, and the reason if the result cannot be read."""
    try:
        result = job.latest_result()
    except CONNECTION_ERRORS:
        raise
    except Exception as error:  # RQ may raise anything for a damaged record
        return {
            "result": None,
            "traceback": cut(job._exc_info),
            "result_error": cut(unreadable(error), 500),
        }
    value = None
    traceback = job._exc_info  # older versions of RQ write it into the job
    if result:
        traceback = result.exc_string
        if result.type is Result.Type.SUCCESSFUL:
            value = cut(pretty(result.return_value))
    return {"result": value, "traceback": cut(traceback), "result_error": ""}


def _arguments(job: Job) -> list[tuple[str, str]]:
    """The name and value of each argument; its position if the function is not in the catalog."""
    try:
        args, kwargs = job.args, job.kwargs
    except Exception as error:  # the payload cannot be read
        return [("", cut(unreadable(error), 500))]
    place = passed_results.place_of(job.policy_fields)
    if place and place.takes != "nothing":
        args = [PASSED_ON_TEXTS[place.takes], *args]
    named = [(str(number), value) for number, value in enumerate(args, 1)] + list(kwargs.items())
    function = catalog.current().functions.get(job.func_name or "")
    if function:
        # A job for an older version of the function may not fit its signature.
        with contextlib.suppress(TypeError):
            named = list(inspect.signature(function).bind(*args, **kwargs).arguments.items())
    return [(cut(name, 100), cut(pretty(value))) for name, value in named[:MAX_ARGUMENTS]]
