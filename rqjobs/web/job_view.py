"""A job as the pages show it: texts of bounded length, for any content of the job."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from flask import abort
from rq.exceptions import NoSuchJobError

from rqjobs import call_options, connection, stats
from rqjobs.jobs import Job
from rqjobs.results import ENDED_STATUSES
from rqjobs.web.rendering import cut, unreadable

JOBS_PER_PAGE = 50
ROW_LABEL_CHARACTERS = 160
NAME_CHARACTERS = 260
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
        "label": cut(job.description or function_name(job), ROW_LABEL_CHARACTERS),
        "progress": stats.listed_progress(job) if status == "started" else None,
    }


def function_name(job: Job) -> str:
    try:
        return job.func_name or ""
    except Exception as error:  # the payload cannot be read
        return unreadable(error)
