"""Delayed jobs: give one another time."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flask import redirect, request, url_for
from redis.exceptions import ResponseError
from rq.exceptions import InvalidJobOperation, NoSuchJobError

from rqjobs import delayed
from rqjobs.web.forms.options import FormReader, time_inputs
from rqjobs.web.job_page import shown_job
from rqjobs.web.rendering import flash, page, pages, redirect_back


@pages.get("/delayed")
def delayed_jobs() -> Any:
    """The former page of delayed jobs, which are in the list of all jobs now."""
    queue = request.args.get("queue") or None
    return redirect(url_for("rqjobs.jobs", state="scheduled", queue=queue))


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
