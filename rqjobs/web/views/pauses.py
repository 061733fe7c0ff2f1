"""The buttons that pause and resume queues and job functions, and that end `rq suspend`."""

from __future__ import annotations

from typing import Any

from flask import abort, redirect, request, url_for

from rqjobs import connection, pauses
from rqjobs.broker.pauses import end_suspension
from rqjobs.web.access import current_access
from rqjobs.web.rendering import cut, flash, pages, redirect_back


@pages.post("/pauses/<action>")
def change_pause(action: str) -> Any:
    """Pause or resume the queue or the function of the form. A note shows the outcome.

    The kind "workers" ends `rq suspend`.
    """
    kind = request.form.get("kind", "")
    name = request.form.get("name", "")
    if (action, kind) == ("resume", "workers"):
        is_changed = end_suspension(connection.client())
        flash("RQ is resumed: workers begin jobs." if is_changed else "RQ was not suspended.")
        return redirect_back("rqjobs.home")
    if action not in ("pause", "resume") or kind not in ("queue", "function"):
        abort(404)
    try:
        is_changed = _change(action, {kind: name})
    except ValueError as error:  # no such function, or no name for a queue
        flash(f"Nothing was done: {cut(str(error), 500)}")
    else:
        shown = cut(name, 100)
        outcome = f"is {action}d" if is_changed else f"was {action}d already"
        flash(f"The {kind} {shown} {outcome}.")
    back = request.form.get("back")
    if kind == "queue" and back == "queue" and name:
        return redirect(url_for("rqjobs.queue", name=name), 303)
    return redirect_back("rqjobs.home")


def _change(action: str, target: dict[str, str]) -> bool:
    if action == "resume":
        return pauses.resume(**target)
    return pauses.pause(**target, by=current_access().user)
