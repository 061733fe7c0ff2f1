"""Jobs as JSON. A value that JSON cannot carry is given as a text, as Python writes it."""

from __future__ import annotations

import math
from datetime import timezone
from typing import Any

import redis
from rq.exceptions import NoSuchJobError
from rq.job import JobStatus

from rqjobs import attempts, config, connection, hiding, results, stats, texts
from rqjobs.attempts import Attempt
from rqjobs.call_options import JOB_ID_MAX_CHARACTERS
from rqjobs.jobs import Job
from rqjobs.loops import Progress
from rqjobs.raised import JobFailed
from rqjobs.results import ENDED_STATUSES, NoResult, Outcome, WaitTimeout
from rqjobs.times import utc
from rqjobs.web.access import Role, current_access
from rqjobs.web.api.operations import schema
from rqjobs.web.api.problems import Problem
from rqjobs.web.job_view import is_job_id
from rqjobs.web.rendering import CONNECTION_ERRORS, cut, pretty

JSON_MAX_LEVELS = 100  # of a value; json.dumps takes some more
LINE_CHARACTERS = 300
TEXT_CHARACTERS = 20_000
MAX_PARENTS = 100

JOB_ID = {"type": "string", "pattern": f"^[A-Za-z0-9_-]{{1,{JOB_ID_MAX_CHARACTERS}}}$"}
MOMENT = {"type": ["string", "null"], "format": "date-time"}
TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
NUMBER_OR_NULL = {"type": ["number", "null"]}
STATUS = {
    "type": "string",
    "description": (
        "queued, started, scheduled, deferred, finished, failed, stopped or canceled; unreadable "
        "if the record in Redis is damaged; gone if the job is not in Redis any more"
    ),
}


def an_object(**properties: Any) -> dict[str, Any]:
    """The schema of an object with these properties, all of which are there."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


JOB_ERROR = schema(
    "JobError",
    an_object(
        type={"type": "string", "description": "the class of the exception, or a reason"},
        message=TEXT,
        traceback=TEXT,
    ),
)
OUTCOME = schema(
    "Outcome",
    an_object(
        id=TEXT,
        status=STATUS,
        ended={"type": "boolean"},
        has_result={"type": "boolean", "description": "whether `result` is the job's result"},
        result={"description": "any JSON; null if there is none, or JSON cannot carry it"},
        result_text={
            "type": ["string", "null"],
            "description": "a result that JSON cannot carry, as Python writes it",
        },
        reason={"type": ["string", "null"], "description": "why there is no result"},
        error={"anyOf": [JOB_ERROR, {"type": "null"}]},
    ),
)
PROGRESS = schema(
    "Progress", an_object(done={"type": "number"}, total=NUMBER_OR_NULL, note=TEXT, at=MOMENT)
)
ATTEMPT = schema(
    "Attempt",
    an_object(outcome=TEXT, ended_at=MOMENT, worker=TEXT, seconds=NUMBER_OR_NULL, error=TEXT),
)
JOB_PROPERTIES: dict[str, Any] = {
    "id": TEXT,
    "status": STATUS,
    "queue": TEXT,
    "description": TEXT,
    "function": TEXT,
    "created_at": MOMENT,
    "enqueued_at": MOMENT,
    "due_at": MOMENT,
    "started_at": MOMENT,
    "ended_at": MOMENT,
    "worker": TEXT,
    "progress": {"anyOf": [PROGRESS, {"type": "null"}]},
    "args": {"type": ["array", "null"]},
    "kwargs": {"type": ["object", "null"]},
    "arguments_text": {
        "type": ["string", "null"],
        "description": "arguments that JSON cannot carry, as Python writes them",
    },
    "meta": {"description": "any JSON; null if JSON cannot carry it"},
    "timeout": NUMBER_OR_NULL,
    "result_ttl": NUMBER_OR_NULL,
    "failure_ttl": NUMBER_OR_NULL,
    "schedule": TEXT,
    "failure_group": TEXT,
    "retries_left": NUMBER_OR_NULL,
    "attempts": {"type": "array", "items": ATTEMPT},
    "depends_on": {"type": "array", "items": TEXT},
    "unreadable": {
        "type": ["string", "null"],
        "description": "what is wrong with the job's record in Redis",
    },
    "outcome": {"anyOf": [OUTCOME, {"type": "null"}]},
}
JOB = schema("Job", an_object(**JOB_PROPERTIES))


# Values


def find_unfit(value: Any, place: str, level: int = 0) -> str:
    """The part of `value` that JSON cannot carry; "" if it can carry all of it.

    Tuples count as lists.
    """
    kind = type(value)
    if kind in (str, hiding.Hidden, int, bool, type(None)):
        return ""
    if kind is float:
        return "" if math.isfinite(value) else f"{place} is {value}"
    if level > JSON_MAX_LEVELS:
        return f"{place[:100]}… is nested too deeply"
    if kind in (list, tuple):
        parts = ((f"{place}[{index}]", item) for index, item in enumerate(value))
    elif kind is dict and all(type(key) is str for key in value):
        parts = ((f"{place}.{key}", item) for key, item in value.items())
    else:
        return f"{place} is a {texts.class_name(kind)}"
    return next(filter(None, (find_unfit(item, at, level + 1) for at, item in parts)), "")


def moment(value: Any) -> str | None:
    """A date in ISO 8601 and UTC; None if it is not a date, or out of range."""
    try:
        return value.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    except (AttributeError, ValueError, OverflowError):
        return None


def moment_of(seconds: Any) -> str | None:
    """The date of a Unix time; None if it is not one."""
    try:
        return moment(utc(seconds))
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def number(value: Any) -> float | int | None:
    """A finite number, else None: a record in Redis may have anything in its place."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def name(value: Any) -> str:
    return cut(str(value or ""), LINE_CHARACTERS)


# Jobs


def find(job_id: str) -> Job | Exception:
    """The job, or the error if its record cannot be read.

    Raises:
        Problem: there is no such job.
    """
    if not is_job_id(job_id):
        raise no_such_job(job_id)
    try:
        return stats.read_job(connection.client(), job_id)
    except NoSuchJobError as error:
        if stats.failed_queue_of(connection.client(), job_id) is None:
            raise no_such_job(job_id) from None
        return error


def no_such_job(job_id: str) -> Problem:
    text = f"There is no job {cut(job_id, 80)}, or it has ended and is not kept any more."
    return Problem(404, "not-found", text)


def progress(progress: Progress | None) -> dict[str, Any] | None:
    if progress is None or number(progress.done) is None:
        return None
    return {
        "done": progress.done,
        "total": number(progress.total),
        "note": name(progress.note),
        "at": moment(progress.when),
    }


def describe(job_id: str) -> dict[str, Any]:
    """A job with all its values.

    Raises:
        Problem: there is no such job.
    """
    job = find(job_id)
    if isinstance(job, Exception):
        return _unreadable(job_id, job)
    try:
        return _describe(job)
    except CONNECTION_ERRORS:
        raise
    except Exception as error:  # a damaged record may raise anything
        if connection.refusal_code(error):
            raise
        return _unreadable(job_id, error)


def _describe(job: Job) -> dict[str, Any]:
    details = stats.job_details(job)
    status = job.get_status(refresh=False).value
    parents = job._dependency_ids if isinstance(job._dependency_ids, list) else []
    meta = hiding.hide(config.current().hide, job.meta)
    return {
        "id": job.id,
        "status": status,
        "queue": name(job.origin),
        "description": cut(job.description, TEXT_CHARACTERS),
        "function": name(results.function_of(job)),
        "created_at": moment(job.created_at),
        "enqueued_at": moment(job.enqueued_at),
        "due_at": moment_of(details.due),
        "started_at": moment(job.started_at),
        "ended_at": moment(job.ended_at),
        "worker": name(job.worker_name),
        "progress": progress(details.progress),
        **_arguments(job),
        "meta": None if find_unfit(meta, "meta") else meta,
        "timeout": number(job.timeout),
        "result_ttl": number(job.result_ttl),
        "failure_ttl": number(job.failure_ttl),
        "schedule": name(details.schedule),
        "failure_group": name(details.failure_group),
        "retries_left": number(job.retries_left),
        "attempts": [_attempt(one) for one in _attempts(job)],
        "depends_on": [name(parent) for parent in parents[:MAX_PARENTS]],
        "unreadable": None,
        "outcome": outcome(job) if status in ENDED_STATUSES else None,
    }


def _unreadable(job_id: str, error: Exception) -> dict[str, Any]:
    nothing = {key: "" if one is TEXT else None for key, one in JOB_PROPERTIES.items()}
    return {
        **nothing,
        "id": job_id,
        "status": "unreadable",
        "attempts": [],
        "depends_on": [],
        "unreadable": cut(texts.describe_error(error), 500),
    }


def _attempts(job: Job) -> list[Attempt]:
    try:
        return attempts.read_attempts(job)
    except redis.ResponseError:  # the key is not a stream
        return []


def _attempt(one: Attempt) -> dict[str, Any]:
    return {
        "outcome": one.outcome,
        "ended_at": moment(one.ended),
        "worker": name(one.worker),
        "seconds": number(one.seconds),
        "error": one.error,
    }


def _arguments(job: Job) -> dict[str, Any]:
    """The arguments as JSON, or a text with the reason why they are not JSON."""
    try:
        args, kwargs = job.shown_arguments()
    except Exception as error:  # the payload cannot be read
        text = f"cannot be read: {error}"
        return {"args": None, "kwargs": None, "arguments_text": cut(text, 500)}
    unfit = find_unfit(args, "args") or find_unfit(kwargs, "kwargs")
    if not unfit:
        return {"args": args, "kwargs": kwargs, "arguments_text": None}
    shown = ", ".join([*map(_repr, args), *(f"{key}={_repr(one)}" for key, one in kwargs.items())])
    text = cut(f"{unfit}: {shown}", TEXT_CHARACTERS)
    return {"args": None, "kwargs": None, "arguments_text": text}


def _repr(value: Any) -> str:
    if isinstance(value, str):
        return repr(value)
    return pretty(value)


# Outcomes


def outcome(job: Job, timeout: float = 0) -> dict[str, Any]:
    """How a job has ended, after up to `timeout` seconds; or that it has not ended.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    try:
        with results.Waiting([job], timeout) as waiting:
            (found,) = waiting.next_outcomes().values()
    except WaitTimeout:
        return _not_ended(job)
    return _outcome(job, found)


def _not_ended(job: Job) -> dict[str, Any]:
    status = stats.statuses(connection.client(), [job.id])[job.id]
    return _outcome_body(job, name(status), ended=False)


def _outcome(job: Job, found: Outcome) -> dict[str, Any]:
    error = found.error
    if error is None:
        return _result(job, found.value)
    if isinstance(error, NoResult):
        status = {"not kept": "finished", "unreadable": "finished"}.get(error.reason.value, "")
        if error.reason.value in ("discarded", "expired"):
            status = "canceled"
        return _outcome_body(
            job, status or error.reason.value, reason=cut(f"{error}", LINE_CHARACTERS)
        )
    failed = error if isinstance(error, JobFailed) else error.__cause__
    assert isinstance(failed, JobFailed)
    return _outcome_body(
        job,
        JobStatus.FAILED.value,
        error={
            "type": name(failed.error),
            "message": cut(str(failed.message), TEXT_CHARACTERS),
            "traceback": cut(failed.traceback, config.current().max_traceback_bytes),
        },
    )


def _result(job: Job, value: Any) -> dict[str, Any]:
    """A result as it is. With the role READ, it has its hidden values replaced, as on the pages."""
    if current_access().role < Role.OPERATE:
        value = hiding.hide(config.current().hide, value)
    unfit = find_unfit(value, "result")
    if not unfit:
        return _outcome_body(job, JobStatus.FINISHED.value, has_result=True, result=value)
    return _outcome_body(
        job,
        JobStatus.FINISHED.value,
        reason=f"JSON cannot carry it: {cut(unfit, LINE_CHARACTERS)}",
        result_text=cut(pretty(value), TEXT_CHARACTERS),
    )


def _outcome_body(job: Job, status: str, ended: bool = True, **parts: Any) -> dict[str, Any]:
    return {
        "id": job.id,
        "status": status,
        "ended": ended,
        "has_result": False,
        "result": None,
        "result_text": None,
        "reason": None,
        "error": None,
        **parts,
    }
