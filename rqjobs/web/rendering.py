"""How the pages are made: the blueprint, templates, texts of bounded length, and error pages.

A job's arguments, result, traceback and names are untrusted text: cut here, and escaped by every
template.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from math import ceil
from pprint import pformat
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import redis
from flask import Blueprint, Response, current_app, g, redirect, request, session, url_for
from jinja2 import Environment
from werkzeug.exceptions import HTTPException, NotFound

from rqjobs import config, connection, stats
from rqjobs.broker.logins import SessionCheck
from rqjobs.broker.pauses import read_pauses
from rqjobs.job_filters import FILTER_NAMES
from rqjobs.maintenance import attention
from rqjobs.web import access, live

MAX_TEXT_CHARACTERS = 20_000  # of one text on a page
NOTE_MAX_CHARACTERS = 1000  # of a note; it is kept in the cookie of the session
ERROR_MAX_CHARACTERS = 500  # of an error whose text has data from Redis
TRACEBACK_MAX_BYTES = 70_000  # more than RQJOBS_MAX_TRACEBACK_BYTES is by default
MAX_PAGE_NUMBER = 1000
VIEW_MAX_CHARACTERS = 8000  # of the query of an address
VIEW_MAX_FIELDS = 50
CONNECTION_ERRORS = (redis.ConnectionError, redis.TimeoutError)
NOT_CONFIRMED = "Nothing was done: tick the box to confirm it."
LIST_ENDPOINTS = {
    "delayed": "rqjobs.delayed_jobs",
    "schedules": "rqjobs.schedules",
    "queues": "rqjobs.queues",
}

pages = Blueprint(
    "rqjobs",
    __name__,
    template_folder="templates",
    static_folder="static",
    static_url_path="/assets",
)
SECTIONS = (  # the navigation: an entry is shown if its page exists and the viewer may see it
    ("Home", "rqjobs.home"),
    ("Jobs", "rqjobs.jobs"),
    ("Failures", "rqjobs.failed"),
    ("Queues", "rqjobs.queues"),
    ("Workers", "rqjobs.workers"),
    ("Schedules", "rqjobs.schedules"),
    ("Flows", "rqjobs.flows"),
    ("Alerts", "rqjobs.alerts"),
    ("Activity", "rqjobs.activity"),
    ("Redis", "rqjobs.redis_page"),
    ("Settings", "rqjobs.settings_page"),
)
PARENTS = {  # a page that is not in the navigation -> the page above it
    "rqjobs.job": "rqjobs.jobs",
    "rqjobs.confirm_change": "rqjobs.jobs",
    "rqjobs.change_jobs": "rqjobs.jobs",
    "rqjobs.failed_group": "rqjobs.failed",
    "rqjobs.queue": "rqjobs.queues",
    "rqjobs.worker": "rqjobs.workers",
    "rqjobs.schedule": "rqjobs.schedules",
    "rqjobs.flow": "rqjobs.flows",
}
TEMPLATES = "rqjobs.templates"  # the name of our template environment in app.extensions


# Pages


def render(template: str, **values: Any) -> str:
    """One of our templates as a text. `can` is a global of it, also in imported macros."""
    context = values
    current_app.update_template_context(context)
    return _environment().get_template(f"rqjobs/{template}").render(context)


def _environment() -> Environment:
    """The app's template environment with our globals, which the app's own templates do not get."""
    found: Environment | None = current_app.extensions.get(TEMPLATES)
    if found is None:
        found = current_app.jinja_env.overlay()
        found.globals = {**current_app.jinja_env.globals, "can": access.can}
        current_app.extensions[TEMPLATES] = found
    return found


def sections() -> list[tuple[str, str]]:
    """The entries of the navigation: label and endpoint."""
    found = []
    for label, endpoint in SECTIONS:
        view = current_app.view_functions.get(endpoint)
        if view is None:
            continue
        needed, _ = getattr(view, "rqjobs_roles", (access.Role.READ, {}))
        if access.current_access().role >= needed:
            found.append((label, endpoint))
    return found


def page(template: str, status: int = 200, **values: Any) -> Response:
    """One of our templates, with the values that every page shows.

    A template whose name begins with "_" is a live part of a page: see live.py.
    """
    is_part = template.startswith("_")
    note, note_job = None, None
    if not is_part and "rqjobs_note" in session:
        note = session.pop("rqjobs_note")
        note_job = session.pop("rqjobs_note_job", None)
    values |= {"note": note, "note_job": note_job, "warnings": g.get("rqjobs_warnings", [])}
    if not is_part:
        values |= _frame()
    html = render(template, **values)
    # A lone surrogate (half an emoji) has no UTF-8 bytes.
    content = html.encode(errors="backslashreplace")
    response = Response(content, status, mimetype="text/html")
    if is_part:
        live.mark_live()
        response.headers[live.TROUBLE_HEADER] = str(live.trouble())
    return response


def _frame() -> dict[str, Any]:
    """The values of base.html."""
    settings = config.current()
    return {
        "nav": g.get("rqjobs_nav", False),
        "sections": sections(),
        "own_login": current_app.extensions["rqjobs"].authorize is None,
        "here": PARENTS.get(request.endpoint or "", request.endpoint),
        "trouble": live.trouble(),
        "environment": settings.environment,
        "app_url": settings.app_url,
        "viewer": access.current_access(),
        "can_enqueue": "rqjobs.enqueue_form" in current_app.view_functions,
    }


def message(status: int, title: str, text: str) -> Response:
    """A page with a title and a sentence, for an error."""
    return page("message.html", status, title=title, text=text)


def flash(note: str, job_id: str = "") -> None:
    """Show `note` once, on the next page that this browser opens, and keep it as activity.

    With `job_id` it has a link to that job.
    """
    session["rqjobs_note"] = g.rqjobs_entry_note = cut(note, NOTE_MAX_CHARACTERS)
    if job_id:
        session["rqjobs_note_job"] = job_id


def redirect_back(endpoint: str, **values: Any) -> Any:
    """After an action, redirect to the list where its button was, else to `endpoint`.

    A list is opened at the queue and the page that it showed, and the list of all jobs with its
    filter.
    """
    wanted = request.form.get("back", "")
    if wanted == "jobs":
        endpoint, values = "rqjobs.jobs", view_params(request.form.get("view", ""))
    elif wanted in LIST_ENDPOINTS:
        endpoint = LIST_ENDPOINTS[wanted]
        values = {name: request.form.get(name) or None for name in ("queue", "page")}
    return redirect(url_for(endpoint, **values), 303)


def view_params(view: str) -> dict[str, Any]:
    """The filter and the position in the query of the address of the list of all jobs.

    Other parameters are left out.
    """
    if len(view) > VIEW_MAX_CHARACTERS:
        return {}
    try:
        pairs = dict(parse_qsl(view, max_num_fields=VIEW_MAX_FIELDS))
    except ValueError:
        return {}
    return {name: pairs[name] for name in (*FILTER_NAMES, "after") if pairs.get(name)}


def redis_warnings(check: SessionCheck) -> list[str]:
    """The warnings about Redis that every page shows."""
    found = []
    if isinstance(check.suspended, int) and check.suspended:
        found.append(stats.SUSPENDED)
    found += [pause.describe() for pause in read_pauses(check.paused)]
    if isinstance(check.memory, dict) and attention.is_full(check.memory):
        found.append(connection.REFUSAL_MEANINGS["OOM"])
    return found


# Lists in parts


class Paging(NamedTuple):
    """One part of a long list. Pages are counted from 1."""

    number: int
    pages: int
    size: int

    @property
    def start(self) -> int:
        return (self.number - 1) * self.size

    @property
    def end(self) -> int:
        return self.number * self.size


def paging(total: int, size: int) -> Paging:
    """The part of a list of `total` entries that `?page=` asks for, within the pages there are."""
    pages = ceil(total / size)
    wanted = max(request.args.get("page", 1, type=int), 1)
    return Paging(min(wanted, max(pages, 1), MAX_PAGE_NUMBER), pages, size)


# Texts


def cut(value: str | None, length: int = MAX_TEXT_CHARACTERS) -> str:
    """`value` in at most `length` characters, and the number of characters that were cut off."""
    value = value or ""
    if len(value) <= length:
        return value
    return f"{value[:length]}… ({len(value) - length:,} more characters)"


def pretty(value: Any) -> str:
    """`value` for people: a text as it is, else as JSON, else as Python writes it."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, indent=2, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return pformat(value, width=100)
    except Exception as error:  # a `__repr__` of the user's may raise
        return unreadable(error)


def unreadable(error: Exception) -> str:
    return f"cannot be read: {cut(str(error), ERROR_MAX_CHARACTERS)}"


@pages.app_template_filter("rqjobs_time")
def iso(moment: datetime) -> str:
    """`moment` in ISO 8601 and in UTC, unless its year in UTC is out of range."""
    try:
        return moment.astimezone(timezone.utc).isoformat(timespec="seconds")
    except OverflowError:
        return moment.isoformat(timespec="seconds")


@pages.app_template_filter("rqjobs_time_text")
def time_text(moment: datetime) -> str:
    """`moment` for a browser that runs no script: "2026-11-27 17:00:00 UTC"."""
    return iso(moment).replace("T", " ").replace("+00:00", " UTC")


@pages.app_template_global("rqjobs_has_page")
def has_page(endpoint: str) -> bool:
    """Whether this app has a page."""
    return endpoint in current_app.view_functions


# Errors


@pages.errorhandler(redis.RedisError)
def redis_error(error: redis.RedisError) -> Any:
    """An error of Redis as a page: 409 for unexpected data, else 503."""
    explanation = connection.explain(error)
    if connection.refusal_code(error):
        return message(503, "Redis refuses this", explanation)
    if isinstance(error, redis.ResponseError):
        return message(409, "Unexpected data in Redis", explanation)
    return message(503, "Redis does not answer", explanation)


@pages.errorhandler(HTTPException)
def http_error(error: HTTPException) -> Any:
    """An HTTP error as a page."""
    if isinstance(error, NotFound):
        return message(
            404,
            "Not found",
            "There is no such page, or the job has expired. Ended jobs are kept for some time.",
        )
    return message(error.code or 500, error.name, error.description or "")
