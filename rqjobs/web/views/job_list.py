"""The page of all jobs: filters, one list for all states, and changes of many jobs."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from flask import Response, abort, current_app, redirect, request, url_for

from rqjobs import bulk_actions, catalog, connection, job_search
from rqjobs.broker import places
from rqjobs.bulk_actions import ACTION_STATES, DONE_WORDS, Action
from rqjobs.job_filters import Filter, FilterError, State, read_filter
from rqjobs.job_search import Found, FoundJob
from rqjobs.schedules.store import HISTORY_RUNS
from rqjobs.web.access import Role, current_access, require
from rqjobs.web.job_view import JOBS_PER_PAGE, NO_DATE, ROW_LABEL_CHARACTERS, actions_in, is_job_id
from rqjobs.web.live import LIVE_SECONDS, cached
from rqjobs.web.rendering import cut, flash, page, pages, view_params

COUNTS_EXTENSION = "rqjobs.job_counts"  # the name of the last counts in app.extensions
COUNTS_SECONDS = 5.0
MAX_CHOSEN_JOBS = 500  # of one click; more are chosen by a filter
LISTED_QUEUES = 100
CONFIRM_COUNT_CAP = 10_000
TIMES = {"1h": "1 hour", "24h": "24 hours", "7d": "7 days"}
ROLES = {Action.REQUEUE: Role.OPERATE, Action.CANCEL: Role.OPERATE, Action.DELETE: Role.ADMIN}
FILTER_LABELS = {
    "state": "state",
    "queue": "queue",
    "function": "function",
    "job_id": "id",
    "text": "text",
    "error": "exception",
    "since": "since",
    "until": "until",
    "schedule": "schedule",
    "group": "group of failures",
}


@dataclass(frozen=True)
class Counts:
    """The jobs of each queue by state, and until when they are used, in monotonic seconds."""

    by_queue: dict[str, dict[str, int]]
    expires: float


@pages.get("/jobs", endpoint="jobs")
def list_jobs() -> Any:
    """The jobs that a filter in the address takes, the newest first.

    A form sends its empty fields too. They are dropped, since the address is a link to share.
    """
    if "" in request.args.values():
        filled = urlencode([pair for pair in request.args.items(multi=True) if pair[1]])
        return redirect(url_for("rqjobs.jobs") + ("?" + filled if filled else ""))
    try:
        chosen = read_filter(request.args)
    except FilterError as error:
        return _page(Filter(), 422, {error.field: str(error)})
    return _page(chosen)


@pages.get("/live/jobs")
def live_jobs() -> Any:
    """The table of the first page, as it is now."""
    try:
        chosen = read_filter(request.args)
    except FilterError:
        abort(422)
    key = json.dumps(sorted(chosen.params().items()))

    def table() -> Response:
        found = job_search.search(chosen, "", JOBS_PER_PAGE, _recent_counts())
        return page("_jobs.html", **_table(chosen, found))

    return cached(f"jobs {key}", LIVE_SECONDS, table)


def _page(chosen: Filter, status: int = 200, errors: dict[str, str] | None = None) -> Any:
    errors = errors or {}
    counts = _counts()
    found = Found([], "", 0, 0)
    if not errors:
        try:
            found = job_search.search(chosen, _after(), JOBS_PER_PAGE, counts)
        except FilterError as error:
            status = 422
            errors[error.field] = str(error)
    return page(
        "jobs.html",
        status,
        errors=errors,
        given=request.args,
        times=TIMES,
        queues=sorted(counts)[:LISTED_QUEUES],
        functions=sorted(catalog.current().functions),
        kept_runs=HISTORY_RUNS,
        tabs=_tabs(chosen, counts),
        # A search through the texts of many jobs is not repeated each second.
        is_live=not errors and not _after() and not chosen.looks_inside,
        **_table(chosen, found),
    )


def _after() -> str:
    return request.args.get("after", "")


def _counts() -> dict[str, dict[str, int]]:
    client = connection.client()
    return places.count_places(client, places.queue_names(client))


def _recent_counts() -> dict[str, dict[str, int]]:
    """The counts of the last seconds: a live part needs from them only the queues that have jobs."""
    kept: Counts | None = current_app.extensions.get(COUNTS_EXTENSION)
    if kept is None or time.monotonic() >= kept.expires:
        kept = Counts(_counts(), time.monotonic() + COUNTS_SECONDS)
        current_app.extensions[COUNTS_EXTENSION] = kept
    return kept.by_queue


def _tabs(chosen: Filter, counts: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """All states, with the number of jobs in each: of the chosen queue, or of all."""
    if chosen.queue:
        counts = {name: of_queue for name, of_queue in counts.items() if name == chosen.queue}
    numbers = job_search.sum_states(counts)
    params = {name: text for name, text in _given().items() if name != "state"}
    tabs = [{"state": "", "label": "all", "number": sum(numbers.values()), "params": params}]
    for state in State:
        tab = {"state": state.value, "label": state.value, "number": numbers[state]}
        tabs.append({**tab, "params": {**params, "state": state.value}})
    return tabs


def _given() -> dict[str, str]:
    """The filter in the address, as it was written, without empty fields."""
    return {name: request.args[name] for name in FILTER_LABELS if request.args.get(name)}


def _table(chosen: Filter, found: Found) -> dict[str, Any]:
    given = _given()
    view = dict(given)
    if _after():
        view["after"] = _after()
    states = chosen.states
    return {
        "chosen": chosen,
        "filters": given,
        "view": view,
        "found": found,
        "jobs": [_row(job) for job in found.jobs],
        "number": _number(chosen, found),
        "actions": [
            action.value
            for action in Action
            if set(ACTION_STATES[action]) & set(states) and current_access().role >= ROLES[action]
        ],
        "is_first": not _after(),
    }


def _number(chosen: Filter, found: Found) -> int | None:
    """The number of all jobs that match, if it is known."""
    if not chosen.looks_inside:
        return found.total
    if found.is_complete and not _after():
        return len(found.jobs)
    return None


def _row(job: FoundJob) -> dict[str, Any]:
    status = job.status or "gone"
    return {
        "id": cut(job.id, 260),
        "linked": is_job_id(job.id),
        "status": status,
        "queue": cut(job.queue, 100),
        "label": cut(job.description or job.id, ROW_LABEL_CHARACTERS),
        "when": job.moment or NO_DATE,
        "has_date": job.moment is not None,
        "due": job.due,
        "error": cut(job.error, 120),
        "schedule": cut(job.schedule, 80),
        "worker": cut(job.worker, 40),
        "progress": job.progress if job.state is State.RUNNING else None,
        "actions": _row_actions(job),
    }


def _row_actions(job: FoundJob) -> list[str]:
    if job.status == "unreadable" and job.state is State.SCHEDULED:
        return ["cancel"]
    return [action for action in actions_in(job.status) if action in ("requeue", "cancel")]


# Changes


@pages.get("/change-jobs")
def confirm_change() -> Any:
    """The question before a change that cannot be undone."""
    return _ask(request.args)


def _ask(given: Any, status: int = 200) -> Any:
    action, chosen, job_ids = _read_change(given)
    require(ROLES[action])
    number = job_search.Count(len(job_ids), True)
    if not job_ids:
        number = job_search.count(chosen, CONFIRM_COUNT_CAP)
    return page(
        "change_jobs.html",
        status,
        action=action.value,
        job_ids=job_ids,
        number=number,
        filters=[(FILTER_LABELS[name], cut(text, 200)) for name, text in chosen.params().items()],
        view=given.get("view", ""),
        back=url_for("rqjobs.jobs", **view_params(given.get("view", ""))),
    )


@pages.post("/change-jobs")
def change_jobs() -> Any:
    """Requeue, cancel or delete the chosen jobs, or with `all` those of the filter in `view`.

    Without a confirmation that is needed, the response asks for it: 50 long ids fit no address.
    """
    action, chosen, job_ids = _read_change(request.form)
    require(ROLES[action])
    if "confirmed" not in request.form and (action is Action.DELETE or not job_ids):
        return _ask(request.form, 422)
    if job_ids:
        changed = bulk_actions.change(action, job_ids)
        flash(_note(action, changed, len(job_ids), job_ids[0]))
    else:
        outcome = bulk_actions.change_matching(action, chosen)
        if outcome.job_id:
            flash(f"These are many jobs. The job {outcome.job_id} changes them.", outcome.job_id)
        else:
            flash(f"{bulk_actions.describe(action, outcome.changed)}.")
    return redirect(url_for("rqjobs.jobs", **view_params(request.form.get("view", ""))), 303)


def _note(action: Action, changed: int, asked: int, job_id: str) -> str:
    if asked == 1 and changed:
        words = DONE_WORDS[action].replace("their queues", "its queue")
        return f"The job {job_id} is {words}."
    note = f"{bulk_actions.describe(action, changed)}."
    if changed < asked:
        note += f" {asked - changed:,} left alone: the state does not allow it."
    return note


def _read_change(given: Any) -> tuple[Action, Filter, list[str]]:
    """The action, the filter, and the ids of a change; no ids mean all jobs of the filter."""
    try:
        action = Action(given.get("action", ""))
        chosen = read_filter(view_params(given.get("view", "")))
    except ValueError as error:
        abort(422, cut(str(error), 300))
    if "all" in given:
        return action, chosen, []
    job_ids = list(dict.fromkeys(given.getlist("ids")))
    if not job_ids:
        abort(422, "No job is chosen. Tick some, or all that match.")
    if len(job_ids) > MAX_CHOSEN_JOBS or not all(map(is_job_id, job_ids)):
        abort(422, f"Choose up to {MAX_CHOSEN_JOBS} jobs by their ids.")
    return action, chosen, job_ids
