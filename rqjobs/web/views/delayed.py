"""The page of delayed jobs: what waits for its time, to be canceled or given another one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from flask import request, session
from redis.exceptions import ResponseError
from rq.exceptions import InvalidJobOperation, NoSuchJobError

from rqjobs import connection, delayed, stats
from rqjobs.web.auth import back, page, pages
from rqjobs.web.forms import fields as forms
from rqjobs.web.job_view import cut, describe, part

PER_PAGE = 25


@pages.get("/delayed")
def delayed_jobs() -> Any:
    return page("delayed.html", **_waiting())


@pages.get("/live/delayed")
def live_delayed() -> Any:
    """The table of that page, as it is now."""
    return page("_delayed.html", **_waiting())


def _waiting() -> dict[str, Any]:
    chosen = request.args.get("queue", "")
    client = connection.client()
    counts = {queue.name: queue.scheduled for queue in stats.snapshot(client).queues}
    total = sum(count for name, count in counts.items() if chosen in ("", name))
    number, pages = part(total, PER_PAGE)
    jobs = delayed.jobs(chosen or None, (number - 1) * PER_PAGE, PER_PAGE)
    return {
        "jobs": [
            {
                "id": job.job_id,
                "queue": job.queue,
                "due": job.due,
                "label": cut(job.description or job.job_id, 160),
            }
            for job in jobs
        ],
        "counts": counts,
        "chosen": chosen,
        "total": total,
        "number": number,
        "pages": pages,
    }


@pages.post("/jobs/<job_id>/reschedule")
def reschedule(job_id: str) -> Any:
    """Give a delayed job the time that the form says; `when=now` lets it run as soon as it can."""
    reader = forms.Reader(request.form)
    due = reader.due()
    if reader.errors:
        return page("job.html", 422, job=describe(job_id), **reschedule_form(reader.errors))
    try:
        moment = delayed.reschedule(job_id, 0 if due is None else due)
        note = (
            f"The job is due at {moment:%Y-%m-%d %H:%M:%S} UTC." if due else "The job is due now."
        )
    except (InvalidJobOperation, NoSuchJobError, ResponseError) as error:
        note = f"Nothing was done: {error}"
    session["rqjobs_note"] = note
    return back("rqjobs.job", job_id=job_id)


def reschedule_form(errors: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """What the form on a job's page needs."""
    return {
        "given": request.form,
        "errors": errors,
        "units": forms.UNITS,
        "zone": datetime.now().astimezone().tzname(),
    }
