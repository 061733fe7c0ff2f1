"""The operations on jobs."""

from __future__ import annotations

import threading
from typing import Any

from flask import Response, url_for
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError

from rqjobs import config, connection, delayed, job_logs, stats
from rqjobs.broker import transitions
from rqjobs.broker.transitions import DeleteOutcome
from rqjobs.jobs import Job
from rqjobs.web import deadlines
from rqjobs.web.access import Role
from rqjobs.web.api import enqueueing, job_values
from rqjobs.web.api.enqueueing import Call, Stored
from rqjobs.web.api.job_options import JOB_CALL
from rqjobs.web.api.job_values import (
    JOB_ID,
    MOMENT,
    STATUS,
    TEXT,
    an_object,
    find,
    no_such_job,
)
from rqjobs.web.api.operations import (
    PATH_PARAMETERS,
    REQUEST_MAX_JOBS,
    Given,
    answer,
    no_content,
    operation,
    schema,
)
from rqjobs.web.api.problems import Problem
from rqjobs.web.job_view import actions_in
from rqjobs.web.rendering import cut

WAIT_MAX_SECONDS = 60
WAIT_SECONDS = 20  # without a timeout
# Waits of one process at a time, each of which occupies a thread. Gunicorn has 32 by default.
MAX_WAITS = 16
WAIT_RETRY_SECONDS = 1  # after which a client may ask again when there are too many waits
IDEMPOTENCY_KEY = {
    "type": "string",
    "pattern": "^[!-~]{1,255}$",
    "description": (
        "Makes the request safe to send again: within 24 hours the same key with the same body "
        "gives the same jobs."
    ),
}
STORED_JOB = schema(
    "StoredJob",
    an_object(
        id=TEXT,
        status=STATUS,
        created={
            "type": "boolean",
            "description": "false if an earlier request, or the job's unique key, has made it",
        },
    ),
)
BATCH = schema(
    "Batch",
    {
        **an_object(
            jobs={"type": "array", "items": JOB_CALL, "minItems": 1, "maxItems": REQUEST_MAX_JOBS}
        )
    },
)
JOB_STATE = schema("JobState", an_object(id=TEXT, status=STATUS))
LOG_LINE = schema(
    "LogLine",
    an_object(
        time=MOMENT,
        level=TEXT,
        logger=TEXT,
        text=TEXT,
        attempt={"type": "integer"},
        number={"type": "integer"},
        dropped={"type": "integer", "description": "lines before this one that are not kept"},
    ),
)
PATH_PARAMETERS["job_id"] = JOB_ID

_waits = threading.BoundedSemaphore(MAX_WAITS)


# Enqueue


@operation(
    "POST",
    "/jobs",
    tag="jobs",
    summary="Enqueue a job",
    body=JOB_CALL,
    headers={"Idempotency-Key": IDEMPOTENCY_KEY},
    answers={201: STORED_JOB, 200: STORED_JOB},
    problems=(409,),
)
def enqueue_job(given: Given) -> Response:
    """The arguments are checked against the function's signature and annotations. 200 instead of
    201 means that the job existed already.
    """
    (stored,) = _enqueue([Call(given.body)], given)
    headers = {"Location": url_for("rqjobs_api.get_job", job_id=stored.job_id)}
    return answer(_stored_body(stored), 201 if stored.is_new else 200, headers)


@operation(
    "POST",
    "/jobs/batch",
    tag="jobs",
    summary=f"Enqueue up to {REQUEST_MAX_JOBS:,} jobs",
    body=BATCH,
    headers={"Idempotency-Key": IDEMPOTENCY_KEY},
    answers={201: an_object(jobs={"type": "array", "items": STORED_JOB})},
    problems=(409,),
)
def enqueue_batch(given: Given) -> Response:
    """All of them are checked before the first is stored. They are stored in steps of 200."""
    calls = [Call(one, f"jobs[{number}]") for number, one in enumerate(given.body["jobs"])]
    stored = _enqueue(calls, given)
    return answer({"jobs": [_stored_body(one) for one in stored]}, 201)


def _enqueue(calls: list[Call], given: Given) -> list[Stored]:
    key = given.headers.get("Idempotency-Key")
    if key is None:
        return enqueueing.enqueue(calls)
    return enqueueing.enqueue_once(calls, key, given.body)


def _stored_body(stored: Stored) -> dict[str, Any]:
    return {"id": stored.job_id, "status": stored.status, "created": stored.is_new}


# One job


@operation(
    "GET",
    "/jobs/{job_id}",
    tag="jobs",
    summary="A job: status, times, arguments, attempts, progress and outcome",
    answers={200: job_values.JOB},
)
def get_job(given: Given, job_id: str) -> dict[str, Any]:
    """Hidden arguments are hidden here too."""
    return job_values.describe(job_id)


@operation(
    "GET",
    "/jobs/{job_id}/result",
    tag="jobs",
    summary="The result or the error of a job",
    answers={200: job_values.OUTCOME, 202: job_values.OUTCOME},
)
def get_result(given: Given, job_id: str) -> Response:
    """202 if the job has not ended."""
    return _outcome(_readable(job_id), 0)


@operation(
    "GET",
    "/jobs/{job_id}/wait",
    tag="jobs",
    summary="Wait until a job has ended",
    query={
        "timeout": {
            "type": "number",
            "minimum": 0,
            "maximum": WAIT_MAX_SECONDS,
            "default": WAIT_SECONDS,
            "description": "seconds",
        }
    },
    answers={200: job_values.OUTCOME, 202: job_values.OUTCOME},
)
def wait_for_job(given: Given, job_id: str) -> Response:
    """202 if the job has not ended in time: ask again. When too many requests wait, the answer
    comes at once, and its Retry-After says when to ask again.
    """
    job = _readable(job_id)
    if not _waits.acquire(blocking=False):
        response = _outcome(job, 0)
        if response.status_code == 202:
            response.headers["Retry-After"] = str(WAIT_RETRY_SECONDS)
        return response
    deadlines.extend(given.query["timeout"])
    try:
        return _outcome(job, given.query["timeout"])
    finally:
        _waits.release()


def _outcome(job: Job, timeout: float) -> Response:
    body = job_values.outcome(job, timeout)
    return answer(body, 200 if body["ended"] else 202)


def _readable(job_id: str) -> Job:
    """The job.

    Raises:
        Problem: there is no such job, or it cannot be read.
    """
    job = find(job_id)
    if isinstance(job, Exception):
        raise Problem(409, "conflict", f"The job in Redis cannot be read: {cut(str(job), 300)}")
    return job


@operation(
    "GET",
    "/jobs/{job_id}/log",
    tag="jobs",
    summary="The lines that a job has logged",
    query={
        "level": {
            "type": "string",
            "enum": list(config.LOG_LEVELS),
            "description": "the lowest level",
        }
    },
    answers={200: an_object(lines={"type": "array", "items": LOG_LINE})},
)
def get_log(given: Given, job_id: str) -> dict[str, Any]:
    """The last lines, which are kept with the job, the oldest first."""
    find(job_id)
    least = job_logs.level_number(given.query.get("level", 0))
    lines = job_logs.read(connection.client(), job_id)
    return {"lines": [_line(one) for one in lines if one.levelno >= least]}


def _line(line: job_logs.LogLine) -> dict[str, Any]:
    return {
        "time": job_values.moment(line.time),
        "level": line.level,
        "logger": line.logger,
        "text": line.text,
        "attempt": line.attempt,
        "number": line.number,
        "dropped": line.dropped,
    }


# Actions


@operation(
    "POST",
    "/jobs/{job_id}/cancel",
    tag="jobs",
    summary="Cancel a job that has not ended",
    answers={200: JOB_STATE},
    problems=(409,),
)
def cancel_job(given: Given, job_id: str) -> dict[str, Any]:
    """A running job may go on for a while, but its outcome is dropped."""
    return _act(job_id, "cancel")


@operation(
    "POST",
    "/jobs/{job_id}/requeue",
    tag="jobs",
    summary="Put a failed or stopped job back into its queue",
    answers={200: JOB_STATE},
    problems=(409,),
)
def requeue_job(given: Given, job_id: str) -> dict[str, Any]:
    return _act(job_id, "requeue")


@operation(
    "POST",
    "/jobs/{job_id}/stop",
    tag="jobs",
    summary="Send the stop command to the worker of a running job",
    answers={202: JOB_STATE},
    problems=(409,),
)
def stop_job(given: Given, job_id: str) -> Response:
    return answer(_act(job_id, "stop"), 202)


@operation(
    "DELETE",
    "/jobs/{job_id}",
    tag="jobs",
    summary="Delete a job that has ended",
    role=Role.ADMIN,
    answers={204: None},
    problems=(409,),
)
def delete_job(given: Given, job_id: str) -> Response:
    """Its result, its traceback and its log are deleted with it."""
    _act(job_id, "delete")
    return no_content()


def _act(job_id: str, action: str) -> dict[str, Any]:
    """Do an action if the job's status allows it; returns the job's new state.

    Raises:
        Problem: there is no such job, or its status does not allow the action.
    """
    job = find(job_id)
    try:
        if isinstance(job, Exception):
            _act_on_unreadable(job_id, action)
        else:
            _act_on(job, action)
    except NoSuchJobError:
        raise no_such_job(job_id) from None
    except (InvalidJobOperation, ValueError) as error:
        raise Problem(409, "conflict", str(error)) from None
    status = stats.statuses(connection.client(), [job_id])[job_id]
    return {"id": job_id, "status": job_values.name(status)}


def _act_on(job: Job, action: str) -> None:
    status = job.get_status(refresh=False).value
    if action not in actions_in(status):
        raise InvalidJobOperation(f"The job is {status} now, so nothing was done.")
    if action == "requeue":
        job.requeue()
    elif action == "stop":
        send_stop_job_command(job.connection, job.id, serializer=job.serializer)
    elif action == "delete":
        (outcome,) = transitions.delete(job.connection, [job.id], job.origin)
        if outcome is not DeleteOutcome.DELETED:
            raise InvalidJobOperation("The job is running now, or gone.")
    elif status == "scheduled":
        delayed.cancel(job.id)
    else:
        transitions.cancel(job, status)


def _act_on_unreadable(job_id: str, action: str) -> None:
    queue = stats.failed_queue_of(connection.client(), job_id)
    if action != "delete" or queue is None:
        raise InvalidJobOperation("The job's record in Redis cannot be read, so nothing was done.")
    transitions.delete_unreadable(connection.client(), job_id, queue)
