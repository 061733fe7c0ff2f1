"""The page of delayed jobs: cancel one, run it now, or give it another time."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flask import request
from redis.exceptions import ResponseError
from rq.exceptions import InvalidJobOperation, NoSuchJobError

from rqjobs import connection, delayed, stats
from rqjobs.web.forms.options import FormReader, time_inputs
from rqjobs.web.job_page import shown_job
from rqjobs.web.job_view import ROW_LABEL_CHARACTERS
from rqjobs.web.rendering import cut, flash, page, pages, paging, queue_filter, redirect_back

DELAYED_PER_PAGE = 25


@pages.get("/delayed")
def delayed_jobs() -> Any:
    return page("delayed.html", **_table())


@pages.get("/live/delayed")
def live_delayed() -> Any:
    """The table of the page, as it is now."""
    return page("_delayed.html", **_table())


def _table() -> dict[str, Any]:
    queues = stats.snapshot(connection.client()).queues
    shown = queue_filter({queue.name: queue.scheduled for queue in queues})
    part = paging(shown.total, DELAYED_PER_PAGE)
    jobs = delayed.jobs(shown.chosen or None, part.start, part.size)
    return {
        "jobs": [
            {
                "id": job.job_id,
                "queue": job.queue,
                "due": job.due,
                "label": cut(job.description or job.job_id, ROW_LABEL_CHARACTERS),
            }
            for job in jobs
        ],
        "queue": shown,
        "paging": part,
    }


@pages.post("/jobs/<job_id>/reschedule")
def reschedule(job_id: str) -> Any:
    """Give a delayed job the time in the form. `when=now` makes it due at once."""
    form = FormReader(request.form)
    due = form.due()
    if form.errors:
        return page("job.html", 422, **shown_job(job_id), **reschedule_form(form.errors))
    try:
        moment = delayed.reschedule(job_id, due or 0)
        note = "The job is due now."
        if due:
            note = f"The job is due at {moment:%Y-%m-%d %H:%M:%S} UTC."
        flash(note)
    except (InvalidJobOperation, NoSuchJobError, ResponseError) as error:
        flash(f"Nothing was done: {error}")
    return redirect_back("rqjobs.job", job_id=job_id)


def reschedule_form(errors: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """The values for the reschedule form on a job's page."""
    return {"given": request.form, "errors": errors, **time_inputs()}
