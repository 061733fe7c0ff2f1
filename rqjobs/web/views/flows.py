"""The list of flows, and the page of a flow: its tree and its buttons."""

from __future__ import annotations

from typing import Any

from flask import abort, redirect, request, url_for

from rqjobs import bulk_actions, flows
from rqjobs.bulk_actions import Action
from rqjobs.flows import listing, picture
from rqjobs.flows.flow import Flow
from rqjobs.flows.plan import FLOW_MAX_JOBS
from rqjobs.web.job_view import is_job_id
from rqjobs.web.live import LIVE_SECONDS, cached
from rqjobs.web.rendering import flash, page, pages

FLOWS_PER_PAGE = 25


@pages.get("/flows", endpoint="flows")
def list_flows() -> Any:
    """The newest flows, or those after the cursor of `?after=`."""
    return page("flows.html", **_list())


@pages.get("/live/flows")
def live_flows() -> Any:
    """The table of the list, as it is now."""
    after = request.args.get("after", "")
    return cached(f"flows {after[:100]}", LIVE_SECONDS, lambda: page("_flows.html", **_list()))


def _list() -> dict[str, Any]:
    after = request.args.get("after", "")
    return {"found": listing.newest(after, FLOWS_PER_PAGE), "after": after}


@pages.get("/flows/<flow_id>")
def flow(flow_id: str) -> Any:
    """The progress of a flow, and its jobs. The record of a finished job may be gone."""
    return page("flow.html", **_one(flow_id))


@pages.get("/live/flows/<flow_id>")
def live_flow(flow_id: str) -> Any:
    """The part of that page that changes."""
    return cached(
        f"flow {flow_id}", LIVE_SECONDS, lambda: page("_flow_state.html", **_one(flow_id))
    )


@pages.get("/live/flows/<flow_id>/<int:position>")
def live_flow_card(flow_id: str, position: int) -> Any:
    """The flow on the page of its job at this position."""
    return cached(
        f"flow {flow_id} {position}",
        LIVE_SECONDS,
        lambda: page("_flow_card.html", **_one(flow_id, position)),
    )


def _one(flow_id: str, position: int | None = None) -> dict[str, Any]:
    if not is_job_id(flow_id) or (position or 0) >= FLOW_MAX_JOBS:
        abort(404)
    try:
        found = picture.read(flow_id, position)
    except flows.NoSuchFlow:
        abort(404)
    return {"flow": found, "own": position}


@pages.post("/flows/<flow_id>/<action>")
def act_on_flow(flow_id: str, action: str) -> Any:
    """Cancel or retry a flow. A note says how many jobs were changed."""
    if action not in ("cancel", "retry"):
        abort(404)
    found = _fetch(flow_id)
    if action == "cancel":
        flash(f"{bulk_actions.describe(Action.CANCEL, found.cancel(), 'of the flow')}.")
    else:
        flash(f"{bulk_actions.describe(Action.REQUEUE, found.retry(), 'of the flow')}.")
    return redirect(url_for("rqjobs.flow", flow_id=flow_id), 303)


def _fetch(flow_id: str) -> Flow:
    if not is_job_id(flow_id):
        abort(404)
    try:
        return flows.fetch(flow_id)
    except flows.NoSuchFlow:
        abort(404)
