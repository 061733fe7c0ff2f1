"""The operations on groups of failed jobs."""

from __future__ import annotations

from typing import Any

from rqjobs import failed, failure_inbox
from rqjobs.failed import Filter, Group
from rqjobs.job_cursors import CURSOR_MAX_CHARACTERS
from rqjobs.web import recording
from rqjobs.web.access import Role, current_access
from rqjobs.web.api import job_values
from rqjobs.web.api.job_values import COUNT, MOMENT, TEXT, an_object
from rqjobs.web.api.operations import PATH_PARAMETERS, Given, operation, schema
from rqjobs.web.api.problems import Problem, invalid
from rqjobs.web.deadlines import GROUP_MAX_JOBS
from rqjobs.web.rendering import cut

GROUP = schema(
    "FailureGroup",
    an_object(
        id=TEXT,
        function=TEXT,
        error=TEXT,
        message=TEXT,
        first_seen_at=MOMENT,
        last_seen_at=MOMENT,
        total=COUNT,
        last_hour=COUNT,
        last_day=COUNT,
        last_week=COUNT,
        jobs={**COUNT, "description": "the jobs of the group that are failed now"},
        ignored={"type": "boolean", "description": "until it comes back"},
    ),
)
LIMIT = {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
GROUP_ACTION = schema(
    "GroupAction",
    {
        "type": "object",
        "properties": {
            "limit": {
                "type": "integer",
                "minimum": 1,
                "maximum": GROUP_MAX_JOBS,
                "description": "the number of jobs, the oldest failures first",
            }
        },
        "additionalProperties": False,
    },
)
GROUP_ACTION_DONE = schema(
    "GroupActionDone",
    an_object(jobs=COUNT, left={**COUNT, "description": "jobs that the group still has"}),
)
PATH_PARAMETERS["group"] = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,100}$"}


@operation(
    "GET",
    "/failures",
    tag="failures",
    summary="The groups of failed jobs, the one that failed last first",
    query={"limit": LIMIT},
    answers={200: an_object(groups={"type": "array", "items": GROUP})},
)
def list_failures(given: Given) -> dict[str, Any]:
    """A group has the jobs of one function with one error."""
    return {"groups": [_group(one) for one in failed.groups(given.query["limit"])]}


@operation(
    "GET",
    "/failures/{group}",
    tag="failures",
    summary="A group of failed jobs",
    answers={200: GROUP},
)
def get_failure(given: Given, group: str) -> dict[str, Any]:
    return _group(_find(group))


@operation(
    "GET",
    "/failures/{group}/jobs",
    tag="failures",
    summary="The ids of a group's jobs, the last failure first",
    query={
        "limit": LIMIT,
        "after": {
            "type": "string",
            "maxLength": CURSOR_MAX_CHARACTERS,
            "description": "`next` of the part before",
        },
    },
    answers={
        200: an_object(
            jobs={"type": "array", "items": TEXT},
            next={"type": ["string", "null"], "description": "`after` of the next part"},
        )
    },
)
def list_failure_jobs(given: Given, group: str) -> dict[str, Any]:
    """Jobs that leave the group between two requests do not hide others."""
    _find(group)
    try:
        part = failed.part_of_group(group, given.query.get("after", ""), given.query["limit"])
    except ValueError as error:
        raise invalid({"after": str(error)}) from None
    return {
        "jobs": [job_values.name(job_id) for job_id in part.job_ids],
        "next": part.next or None,
    }


@operation(
    "POST",
    "/failures/{group}/requeue",
    tag="failures",
    summary="Requeue the jobs of a group",
    body=GROUP_ACTION,
    body_is_required=False,
    answers={200: GROUP_ACTION_DONE},
)
def requeue_failures(given: Given, group: str) -> dict[str, Any]:
    """With `limit` 1, one job is requeued as a try."""
    return _change(given, group, failed.requeue_steps)


@operation(
    "POST",
    "/failures/{group}/delete",
    tag="failures",
    summary="Delete the jobs of a group",
    role=Role.ADMIN,
    body=GROUP_ACTION,
    body_is_required=False,
    answers={200: GROUP_ACTION_DONE},
)
def delete_failures(given: Given, group: str) -> dict[str, Any]:
    """They cannot be brought back."""
    return _change(given, group, failed.delete_steps)


@operation(
    "POST",
    "/failures/{group}/ignore",
    tag="failures",
    summary="Ignore a group until it comes back",
    answers={200: GROUP},
)
def ignore_failure(given: Given, group: str) -> dict[str, Any]:
    """It counts as trouble again with its next failure."""
    _find(group)
    failure_inbox.ignore(group, current_access().user)
    return _group(_find(group))


@operation(
    "POST",
    "/failures/{group}/watch",
    tag="failures",
    summary="Ignore a group no longer",
    answers={200: GROUP},
)
def watch_failure(given: Given, group: str) -> dict[str, Any]:
    _find(group)
    failure_inbox.watch(group)
    return _group(_find(group))


def _change(given: Given, group: str, steps: Any) -> dict[str, Any]:
    _find(group)
    limit = int(given.body.get("limit", GROUP_MAX_JOBS))
    done = sum(steps(failed.select(Filter(group=group), limit)))
    recording.add_note(f"{done:,} jobs")
    found = failed.group(group)
    return {"jobs": done, "left": found.jobs if found else 0}


def _find(group: str) -> Group:
    found = failed.group(group)
    if found is None:
        raise Problem(404, "not-found", "There is no such group; its failures are forgotten.")
    return found


def _group(one: Group) -> dict[str, Any]:
    return {
        "id": job_values.name(one.id),
        "function": job_values.name(one.function),
        "error": job_values.name(one.error),
        "message": cut(one.message, 1000),
        "first_seen_at": job_values.moment(one.first_seen),
        "last_seen_at": job_values.moment(one.last_seen),
        "total": one.total,
        "last_hour": one.last_hour,
        "last_day": one.last_day,
        "last_week": one.last_week,
        "jobs": one.jobs,
        "ignored": one.is_ignored,
    }
