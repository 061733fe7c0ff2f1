"""What the pages show of a job: texts of bounded length, whatever the job carries.

Arguments, result, meta, traceback and names are untrusted text: cut here, escaped by every template.
"""

from __future__ import annotations

import inspect
import json
import re
from datetime import datetime, timezone
from itertools import islice
from pprint import pformat
from typing import Any, cast

import redis
from flask import abort, request
from redis.exceptions import ResponseError
from rq.results import Result

from rqjobs import catalog, connection, queues, stats
from rqjobs.broker import scripts
from rqjobs.broker.keys import decode
from rqjobs.jobs import Job
from rqjobs.maintenance import audit
from rqjobs.web.auth import pages

CUT = 20_000  # characters of one text that a page shows
ENDED = ("finished", "failed", "stopped", "canceled")
ACTIONS = {  # what can be done to a job: in which states, and what is said when it was done
    "cancel": (("queued", "scheduled", "deferred"), "The job is canceled and will not run."),
    "stop": (("started",), "The worker was told to stop the job."),
    "requeue": (("failed", "stopped"), "The job is back in its queue."),
    "again": (("finished", "canceled"), "This is a new job with the same function and arguments."),
    "delete": (ENDED, "The job is deleted."),
}


def is_id(job_id: str) -> bool:
    """Whether a job may be called so; others have no page."""
    return len(job_id) <= queues.LONGEST_ID and bool(re.fullmatch(r"[\w-]+", job_id, re.ASCII))


def failed_in(job_id: str) -> str | None:
    """The queue among whose failed jobs it is."""
    names = stats.queue_names(connection.client())
    scores = scripts.read_together(
        connection.client(), [("ZSCORE", f"rq:failed:{name}", job_id) for name in names]
    )
    return next(
        (name for name, score in zip(names, scores, strict=True) if isinstance(score, float)), None
    )


def row(job: Job) -> dict[str, Any]:
    """A job as a line of a table."""
    moments = [job.ended_at, job.started_at, job.enqueued_at, job.created_at]
    when = next(moment for moment in [*moments, datetime.fromtimestamp(0, timezone.utc)] if moment)
    status = job.get_status(refresh=False).value
    return {
        "id": job.id,
        "status": status,
        "queue": cut(job.origin, 260),
        "when": when,
        "actions": actions_in(status),
        "label": cut(job.description or _try(lambda: job.func_name), 160),
    }


def part(total: int, size: int) -> tuple[int, int]:
    """Which part of a list of `total` the address asks for, of those that there are, and how many these are."""
    parts = -(-total // size)
    return min(max(request.args.get("page", 1, type=int), 1), max(parts, 1), 1000), parts


def label(job: Job | Exception, job_id: str) -> str:
    """What people call this job: its description, cut; else its id."""
    return (cut(job.description, 80) if isinstance(job, Job) else "") or cut(job_id, 80)


def actions_in(status: str) -> list[str]:
    return [action for action, (states, _) in ACTIONS.items() if status in states]


def fetch(job_id: str) -> Job | Exception:
    """The job; or, if there is one that cannot be read, why. Aborts with 404 if there is none."""
    if not is_id(job_id):
        abort(404)
    try:
        return cast(Job, Job.fetch(job_id, connection=connection.client()))
    except redis.RedisError as error:
        if not isinstance(error, ResponseError):
            raise
        return error
    except Exception as error:  # whatever a hostile or damaged hash makes RQ raise
        if not connection.client().exists(Job.key_for(job_id)) and failed_in(job_id) is None:
            abort(404)
        return error


def describe(job_id: str) -> dict[str, Any]:
    """Everything that the job's page shows, as texts of bounded length."""
    job = fetch(job_id)
    if isinstance(job, Exception):
        why = cut(f"{type(job).__name__}: {job}", 500)
        return {
            "id": job_id,
            "status": "unreadable",
            "ended": True,
            "unreadable": why,
            "actions": ["delete"] if failed_in(job_id) is not None else [],
        }
    with job.connection.pipeline(transaction=False) as pipe:
        pipe.hget(job.key, "rqjobs_crashes")
        pipe.zscore(f"rq:scheduled:{job.origin}", job.id)
        pipe.hget(job.key, "rqjobs_schedule")
        deaths, due, schedule = pipe.execute(raise_on_error=False)
    status = job.get_status(refresh=False).value
    result = _try(job.latest_result)
    trouble = result if isinstance(result, str) else ""
    result = None if isinstance(result, str) else result
    times = [
        ("Created", job.created_at),
        ("Enqueued", job.enqueued_at),
        ("Due", _try(lambda: datetime.fromtimestamp(due, timezone.utc))),
        ("Started", job.started_at),
        ("Ended", job.ended_at),
    ]
    blocked = audit.blocked_jobs(job.connection, [job.id]) if status == "deferred" else ()
    parents = job._dependency_ids if isinstance(job._dependency_ids, list) else []
    meta = job.meta if isinstance(job.meta, dict) else {}
    done, total = (
        meta.get(key) if type(meta.get(key)) in (int, float) else None for key in ("done", "total")
    )
    return {
        "id": job.id,
        "status": status,
        "ended": status in ENDED,
        "actions": actions_in(status),
        "function": cut(_try(lambda: job.func_name), 300),
        "description": cut(job.description, 1000),
        "schedule": cut(decode(schedule or b""), 100),
        "queue": cut(job.origin, 260),
        "worker": cut(job.worker_name, 260),
        "timeout": job.timeout,
        "arguments": _arguments(job),
        "times": [(label, moment) for label, moment in times if isinstance(moment, datetime)],
        "running": job.started_at if status == "started" else None,
        "took": (job.ended_at - job.started_at).total_seconds()
        if job.ended_at and job.started_at
        else None,
        "deaths": len(decode(deaths).split(",")) if deaths else 0,
        "retries_left": job.retries_left,
        "repeats_left": job.repeats_left,
        "depends_on": [(cut(str(parent), 260), is_id(str(parent))) for parent in parents[:50]],
        "blocked": [
            (cut(parent, 260), how, audit.REMEDIES[how]) for _, parent, how in islice(blocked, 10)
        ],
        "meta": cut(pretty(job.meta)) if job.meta else "",
        "progress": (done, total) if done is not None and total and 0 <= done <= total else None,
        "result": cut(pretty(result.return_value))
        if result and result.type is Result.Type.SUCCESSFUL
        else None,
        "traceback": cut(
            (result.exc_string if result else "") or ("" if result else job._exc_info) or ""
        ),
        "trouble": cut(trouble, 500),
    }


def _arguments(job: Job) -> list[tuple[str, str]]:
    """(name, value) of each argument; by position where the function is not known here."""
    try:
        args, kwargs = job.args, job.kwargs
    except Exception as error:
        return [("", cut(f"cannot be read: {error}", 500))]
    named = [(str(number), value) for number, value in enumerate(args, 1)] + list(kwargs.items())
    function = catalog.current().functions.get(job.func_name or "")
    if function:
        try:
            bound = inspect.signature(function).bind(*args, **kwargs)
            named = list(bound.arguments.items())
        except TypeError:
            pass  # enqueued for an older version of the function
    return [(cut(name, 100), cut(pretty(value))) for name, value in named[:100]]


def _try(read: Any) -> Any:
    """What `read` returns, or as a text why it cannot."""
    try:
        return read()
    except redis.ConnectionError:
        raise
    except Exception as error:
        return f"cannot be read: {error}"


def pretty(value: Any) -> str:
    """`value` for people: a text as it is, else as JSON, else as Python writes it."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, indent=2, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return _try(
            lambda: pformat(value, width=100)
        )  # a dataclass of the user's may have a `__repr__` that raises


def cut(value: str | None, length: int = CUT) -> str:
    value = value or ""
    return (
        value
        if len(value) <= length
        else f"{value[:length]}… ({len(value) - length:,} more characters)"
    )


@pages.app_template_filter("rqjobs_time")
def iso(moment: datetime) -> str:
    try:
        return moment.astimezone(timezone.utc).isoformat(timespec="seconds")
    except OverflowError:  # in UTC it is in no year that there is
        return moment.isoformat(timespec="seconds")
