"""The page of activity: who did what when, the newest first."""

from __future__ import annotations

from typing import Any

from flask import abort, request

from rqjobs import connection
from rqjobs.broker import activity
from rqjobs.broker.activity import Entry
from rqjobs.web.job_view import is_job_id
from rqjobs.web.rendering import cut, page, pages

ENTRIES_PER_PAGE = 50
FILTER_CHARACTERS = 100


@pages.get("/activity", endpoint="activity")
def list_activity() -> Any:
    return page("activity.html", **_part())


@pages.get("/live/activity")
def live_activity() -> Any:
    """The list of that page, as it is now."""
    return page("_entries.html", **_part())


def _part() -> dict[str, Any]:
    chosen = {
        name: request.args.get(name, "").strip()[:FILTER_CHARACTERS] for name in ("user", "action")
    }
    before = request.args.get("before", "")
    try:
        found = activity.read(connection.client(), before, ENTRIES_PER_PAGE, **chosen)
    except ValueError:
        abort(404)
    return {
        "entries": [_view(entry) for entry in found.entries],
        "chosen": chosen,
        "before": before,
        "next": found.next,
        "searched": found.searched,
    }


def _view(entry: Entry) -> dict[str, Any]:
    """An entry as texts. A target that may be a job's id is a link."""
    is_about_job = entry.action.endswith(" job") or entry.action.endswith(" jobs")
    return {
        "id": entry.id,
        "began": entry.began,
        "user": entry.user,
        "via": entry.via,
        "address": entry.address,
        "action": entry.action,
        "count": entry.count,
        "target": cut(entry.target, 200),
        "linked": is_about_job and " " not in entry.target and is_job_id(entry.target),
        "note": cut(entry.note, 300),
        "outcome": entry.outcome.value,
    }
