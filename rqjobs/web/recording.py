"""Every action by a person on the pages, the dashboard or the API is kept: see broker/activity.py.

`auth.py` calls `begin` for each request that may change something, and `finish` with its response.
A view only needs `flash`, whose text becomes the note of the entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis
from flask import Response, current_app, g, request

from rqjobs import connection
from rqjobs.broker import activity
from rqjobs.broker.activity import Entry, Outcome
from rqjobs.web.access import current_access
from rqjobs.web.request_origin import client_network

WAYS = {"rqjobs": "page", "rqjobs_api": "api", "rq_dashboard": "dashboard"}
MOUNTS = ("rq", "api")  # the first parts of addresses that are prefixes only
THINGS = {  # the first part of an address -> the thing that an action is about
    "jobs": "job",
    "failed": "failed jobs",
    "failures": "failed jobs",
    "schedules": "schedule",
    "flows": "flow",
    "queues": "queue",
    "workers": "worker",
    "pauses": "",
}
# Programs enqueue thousands of jobs an hour. Their entries would push out those of people.
NOT_KEPT = ("rqjobs_api.enqueue_job", "rqjobs_api.enqueue_batch")
ACTION_NAMES = {  # actions whose address does not name them
    "rqjobs.logout": "log out",
    "rqjobs.change_jobs": "change jobs",
    "rqjobs_api.act_on_jobs": "change jobs",
}
TARGET_FIELDS = ("kind", "name", "function", "queue", "job_id")  # of a form; never its arguments


def begin() -> None:
    """Store the entry of the current request. One that is only redirected does nothing."""
    if request.endpoint in NOT_KEPT or request.routing_exception is not None:
        return
    g.rqjobs_entry = activity.begin(connection.client(), _entry(action_of_request()))


def finish(response: Response) -> None:
    """Store how the request ended. A refused one is dropped: nothing was done."""
    entry: Entry | None = g.pop("rqjobs_entry", None)
    if entry is None:
        return
    note = g.pop("rqjobs_entry_note", "")
    if response.status_code >= 500:
        _try(activity.finish, entry, note, Outcome.FAILED)
    elif response.status_code >= 400:
        _try(activity.drop, entry)
    else:
        _try(activity.finish, entry, note)


def add_note(text: str) -> None:
    """Keep `text` with the entry of the current request. `flash` does that too."""
    g.rqjobs_entry_note = text


def record_login(user: str, note: str = "") -> None:
    entry = Entry("log in", user=user, via="page", address=address(), note=note)
    activity.record(connection.client(), entry)


def count_refused_login() -> None:
    activity.count_refused_login(connection.client(), address())


def address() -> str:
    """The client's address, as it is counted for wrong passwords."""
    return client_network(request.remote_addr)


def _entry(action: str) -> Entry:
    return Entry(
        action,
        target=_target(),
        user=current_access().user,
        via=WAYS.get(request.blueprint or "", "page"),
        address=address(),
    )


def action_of_request() -> str:
    """The action in words, from the address of its route: `/jobs/<job_id>/cancel` is "cancel job".

    The last part names the action if it is fixed, or if it is `<action>`.
    """
    endpoint = request.endpoint or ""
    if endpoint in ACTION_NAMES:
        return ACTION_NAMES[endpoint]
    rule = request.url_rule.rule if request.url_rule else request.path
    prefix = current_app.extensions["rqjobs"].prefix
    parts = [part for part in rule.removeprefix(prefix).split("/") if part]
    if parts and parts[0] in MOUNTS:
        parts = parts[1:]
    if not parts:
        return request.method.lower()
    thing = THINGS.get(parts[0], parts[0])
    if not thing:
        thing = request.form.get("kind", "")
    return f"{_verb(parts)} {thing}".strip()


def _verb(parts: list[str]) -> str:
    verbs = {"DELETE": "delete", "PATCH": "edit", "PUT": "edit"}
    if request.method in verbs:
        return verbs[request.method]
    last = parts[-1]
    if len(parts) > 1 and last == "<action>":
        return str((request.view_args or {}).get("action", ""))
    if len(parts) > 1 and not last.startswith("<"):
        return last
    if len(parts) > 1:
        return "edit"
    return "enqueue" if last == "jobs" else "add"


def _target() -> str:
    """The object of the action: the names in the address, else those in the form."""
    values = request.view_args or {}
    found = [str(value) for name, value in values.items() if name != "action"]
    if not found and request.mimetype in (
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    ):
        given = [request.form.get(name, "") for name in TARGET_FIELDS]
        found = [text[:100] for text in given if text]
    return " ".join(found)


def _try(store: Callable[..., Any], *args: Any) -> None:
    """Store the end of an action. Without Redis its first entry stays, with an unknown outcome."""
    try:
        store(connection.client(), *args)
    except redis.RedisError as error:
        current_app.logger.warning(
            "rqjobs: the list of activity does not have the end of an action: %s",
            connection.explain(error),
        )
