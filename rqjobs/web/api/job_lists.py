"""The operations on many jobs: search, and actions on all that match."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response

from rqjobs import bulk_actions, job_search
from rqjobs.bulk_actions import Action, Outcome
from rqjobs.job_cursors import CURSOR_MAX_CHARACTERS
from rqjobs.job_search import (
    PAGE_JOBS,
    PAGE_MAX_JOBS,
    Filter,
    FilterError,
    FoundJob,
    State,
)
from rqjobs.web import recording
from rqjobs.web.access import Role, require
from rqjobs.web.api import job_values
from rqjobs.web.api.job_values import COUNT, JOB_ID, MOMENT, PROGRESS, STATUS, TEXT, an_object
from rqjobs.web.api.operations import REQUEST_MAX_JOBS, Given, answer, operation, schema
from rqjobs.web.api.problems import invalid

FILTER: dict[str, Any] = {
    "state": {"type": "string", "enum": [state.value for state in State]},
    "queue": {"type": "string", "minLength": 1, "maxLength": 200},
    "function": {
        "type": "string",
        "minLength": 1,
        "maxLength": 200,
        "description": "module.function, or the name alone",
    },
    "job_id": JOB_ID,
    "text": {
        "type": "string",
        "minLength": 1,
        "maxLength": 200,
        "description": "in the id, the description, or the call with its arguments as it is shown",
    },
    "error": {
        "type": "string",
        "minLength": 1,
        "maxLength": 200,
        "description": "the class of the exception of a failed job",
    },
    "since": {
        "type": "string",
        "minLength": 1,
        "maxLength": 40,
        "description": "the last date of the job: 2h, 7d, or 2030-01-31T06:00 (UTC)",
    },
    "until": {"type": "string", "minLength": 1, "maxLength": 40},
    "schedule": {"type": "string", "minLength": 1, "maxLength": 200},
    "group": {"type": "string", "minLength": 1, "maxLength": 200},
}
FOUND_JOB = schema(
    "FoundJob",
    an_object(
        id=TEXT,
        status=STATUS,
        queue=TEXT,
        description=TEXT,
        created_at=MOMENT,
        enqueued_at=MOMENT,
        started_at=MOMENT,
        ended_at=MOMENT,
        due_at=MOMENT,
        worker=TEXT,
        schedule=TEXT,
        failure_group=TEXT,
        error=TEXT,
        progress={"anyOf": [PROGRESS, {"type": "null"}]},
    ),
)
JOBS_ACTION = schema(
    "JobsAction",
    {
        "type": "object",
        "properties": {
            "action": {"type": "string", "enum": [action.value for action in Action]},
            "jobs": {"type": "array", "items": JOB_ID, "minItems": 1, "maxItems": REQUEST_MAX_JOBS},
            "filter": {
                "type": "object",
                "properties": FILTER,
                "minProperties": 1,
                "additionalProperties": False,
            },
        },
        "required": ["action"],
        "additionalProperties": False,
        "anyOf": [{"required": ["jobs"]}, {"required": ["filter"]}],
        "not": {"required": ["jobs", "filter"]},
    },
)
JOBS_ACTION_DONE = schema(
    "JobsActionDone",
    an_object(
        jobs={**COUNT, "description": "the jobs that were changed"},
        job_id={
            "type": ["string", "null"],
            "description": "the job that changes them, if there are many",
        },
    ),
)


@operation(
    "GET",
    "/jobs",
    tag="jobs",
    summary="Find jobs, the newest first",
    query={
        **FILTER,
        "after": {
            "type": "string",
            "maxLength": CURSOR_MAX_CHARACTERS,
            "description": "`next` of the part before",
        },
        "limit": {
            "type": "integer",
            "minimum": 1,
            "maximum": PAGE_MAX_JOBS,
            "default": PAGE_JOBS,
        },
    },
    answers={
        200: an_object(
            jobs={"type": "array", "items": FOUND_JOB},
            next={"type": ["string", "null"], "description": "`after` of the next part"},
            searched={**COUNT, "description": "the jobs that were looked at so far"},
            total={**COUNT, "description": "the jobs that there are to look at"},
            is_complete={"type": "boolean", "description": "whether all were looked at"},
            reason={"type": ["string", "null"], "description": "why the search ends before"},
        )
    },
)
def list_jobs(given: Given) -> dict[str, Any]:
    """A request looks at some 25,000 jobs at most, for a text at 100,000. A part can be empty
    although there are more: go on until `next` is null.
    """
    try:
        found = job_search.search(
            _filter(given.query), given.query.get("after", ""), given.query["limit"]
        )
    except FilterError as error:
        raise invalid({error.field: str(error)}) from None
    return {
        "jobs": [_row(job) for job in found.jobs],
        "next": found.next or None,
        "searched": found.searched,
        "total": found.total,
        "is_complete": found.is_complete,
        "reason": found.error or None,
    }


@operation(
    "POST",
    "/jobs/actions",
    tag="jobs",
    summary="Requeue, cancel or delete some jobs, or all that match a filter",
    body=JOBS_ACTION,
    answers={200: JOBS_ACTION_DONE, 202: JOBS_ACTION_DONE},
)
def act_on_jobs(given: Given) -> Response:
    """A job whose state does not allow the action is left alone. 202 says that there are more than
    1,000 jobs: another job, whose id is in the answer, changes them. To delete needs the role admin.
    """
    action = Action(given.body["action"])
    if action is Action.DELETE:
        require(Role.ADMIN)
    if "jobs" in given.body:
        outcome = Outcome(bulk_actions.change(action, given.body["jobs"]))
    else:
        outcome = _change_matching(action, given.body["filter"])
    recording.add_note(f"{action.value}: {_describe(outcome)}")
    body = {"jobs": outcome.changed, "job_id": outcome.job_id or None}
    return answer(body, 202 if outcome.job_id else 200)


def _change_matching(action: Action, chosen: Mapping[str, Any]) -> Outcome:
    try:
        return bulk_actions.change_matching(action, _filter(chosen))
    except FilterError as error:
        raise invalid({f"filter.{error.field}": str(error)}) from None


def _describe(outcome: Outcome) -> str:
    if outcome.job_id:
        return f"the job {outcome.job_id} does it"
    return f"{outcome.changed:,} jobs"


def _filter(values: Mapping[str, Any]) -> Filter:
    return job_search.read_filter({name: values[name] for name in FILTER if name in values})


def _row(job: FoundJob) -> dict[str, Any]:
    return {
        "id": job_values.name(job.id),
        "status": job_values.name(job.status or "gone"),
        "queue": job_values.name(job.queue),
        "description": job_values.name(job.description),
        "created_at": job_values.moment(job.created_at),
        "enqueued_at": job_values.moment(job.enqueued_at),
        "started_at": job_values.moment(job.started_at),
        "ended_at": job_values.moment(job.ended_at),
        "due_at": job_values.moment(job.due),
        "worker": job_values.name(job.worker),
        "schedule": job_values.name(job.schedule),
        "failure_group": job_values.name(job.group),
        "error": job_values.name(job.error),
        "progress": job_values.progress(job.progress),
    }
