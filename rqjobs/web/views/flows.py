"""The page of a flow: its jobs in their order, and its buttons."""

from __future__ import annotations

from typing import Any

from flask import abort, redirect, url_for

from rqjobs import connection, flows, stats
from rqjobs.flows.flow import Flow, progress_of, status_of
from rqjobs.web.job_view import is_job_id, row
from rqjobs.web.rendering import flash, page, pages, paging

JOBS_PER_PAGE = 50
ENDED_FLOWS = (flows.FlowStatus.FINISHED, flows.FlowStatus.CANCELED)


@pages.get("/flows/<flow_id>")
def flow(flow_id: str) -> Any:
    """The progress of a flow, and its jobs. The record of a finished job may be gone."""
    found = _fetch(flow_id)
    states = found.states()
    status = status_of(states)
    part = paging(len(states), JOBS_PER_PAGE)
    client = connection.client()
    jobs = []
    for state in states[part.start : part.end]:
        job = stats.fetch(client, state.job_id)
        shown = row(job) if job else {"id": state.job_id}
        jobs.append({**shown, "status": state.status})
    progress = progress_of(states)
    return page(
        "flow.html",
        flow_id=found.id,
        flow_status=status.value,
        ended=status in ENDED_FLOWS,
        progress=progress,
        jobs=jobs,
        paging=part,
    )


@pages.post("/flows/<flow_id>/<action>")
def act_on_flow(flow_id: str, action: str) -> Any:
    """Cancel or retry a flow. A note says how many jobs were changed."""
    if action not in ("cancel", "retry"):
        abort(404)
    found = _fetch(flow_id)
    if action == "cancel":
        flash(f"{found.cancel():,} jobs of the flow are canceled.")
    else:
        flash(f"{found.retry():,} jobs of the flow are back in their queues.")
    return redirect(url_for("rqjobs.flow", flow_id=flow_id), 303)


def _fetch(flow_id: str) -> Flow:
    if not is_job_id(flow_id):
        abort(404)
    try:
        return flows.fetch(flow_id)
    except flows.NoSuchFlow:
        abort(404)
