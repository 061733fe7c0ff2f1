"""The page of activity: who did what when, the newest first."""

from __future__ import annotations

import re
from typing import Any

from flask import abort, request, url_for

from rqjobs import connection
from rqjobs.broker import activity
from rqjobs.broker.activity import Entry
from rqjobs.web.job_view import is_job_id
from rqjobs.web.rendering import cut, page, pages

ENTRIES_PER_PAGE = 50
FILTER_CHARACTERS = 100
GROUP_ID = re.compile("[0-9a-f]{16}|ungrouped")


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
    """An entry as texts."""
    return {
        "id": entry.id,
        "began": entry.began,
        "user": entry.user,
        "via": entry.via,
        "address": entry.address,
        "action": entry.action,
        "count": entry.count,
        "target": cut(entry.target, 200),
        "link": _link(entry),
        "note": cut(entry.note, 300),
        "outcome": entry.outcome.value,
    }


def _link(entry: Entry) -> str:
    """The page of the target, if it may be a job's id or a group of failed jobs; or ""."""
    if entry.action.endswith(" failed jobs") and GROUP_ID.fullmatch(entry.target):
        return url_for("rqjobs.failed_group", group_id=entry.target)
    is_about_job = entry.action.endswith((" job", " jobs"))
    if is_about_job and " " not in entry.target and is_job_id(entry.target):
        return url_for("rqjobs.job", job_id=entry.target)
    return ""
