"""The pages of queues: all of them, and one with its jobs in the order in which they run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import redis
from flask import abort, current_app, redirect, request, url_for

from rqjobs import bulk_actions, connection, stats, texts
from rqjobs.broker import scripts
from rqjobs.maintenance import attention
from rqjobs.rates import Rate, Window
from rqjobs.stats import QueueStats, Snapshot
from rqjobs.web.access import Role, requires
from rqjobs.web.deadlines import EMPTY_SECONDS
from rqjobs.web.job_view import JOBS_PER_PAGE, row
from rqjobs.web.rendering import NOT_CONFIRMED, cut, flash, page, pages, paging

QUEUES_PER_PAGE = 50
MAX_POSITION = 100_000_000
MAX_WORKERS = 100  # that the page of a queue names


ORDERS: dict[str, Callable[[QueueStats], Any]] = {  # of the list, besides that by name
    "waiting": lambda queue: (-queue.queued, queue.name),
    "oldest": lambda queue: (-(queue.oldest or 0), queue.name),
}

# The list


@pages.get("/queues", endpoint="queues")
def list_queues() -> Any:
    """The queues that contain `?q=` in their name, by name or in the order of `?sort=`."""
    return page("queues.html", **_list())


@pages.get("/live/queues")
def live_queues() -> Any:
    """The table of that page, as it is now."""
    return page("_queues.html", **_list())


class _Choice:
    """Chooses the queues whose name contains a text: those of the wanted page, or all of them."""

    def __init__(self, text: str, takes_all: bool):
        self.words, self.takes_all = text.casefold(), takes_all
        self.part = paging(0, QUEUES_PER_PAGE)
        self.matched = 0

    def __call__(self, names: list[str]) -> list[str]:
        matched = [name for name in names if self.words in name.casefold()]
        self.matched = len(matched)
        self.part = paging(len(matched), QUEUES_PER_PAGE)
        return matched if self.takes_all else matched[self.part.start : self.part.end]


def _list() -> dict[str, Any]:
    text, sort = request.args.get("q", "")[:200], request.args.get("sort", "")
    order = ORDERS.get(sort)
    choice = _Choice(text, takes_all=order is not None)
    client = connection.client()
    now = stats.snapshot(client, choice)
    found, rate_of = now.queues, _rates(client, now.read_at)
    if order:
        found = sorted(found, key=order)[choice.part.start : choice.part.end]
    return {
        "queues": [_shown(queue, rate_of) for queue in found],
        "paused": _paused(now),
        "matched": choice.matched,
        "paging": choice.part,
        "q": text,
        "sort": sort if order else "",
        "orders": ["", *ORDERS],
    }


def _paused(now: Snapshot) -> set[str]:
    return {pause.name for pause in now.paused if pause.kind == "queue"}


@dataclass
class SharedRates:
    """The counts of the last hour, which the viewers of this process share. One thread reads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    window: Window = field(default_factory=Window)


def _rates(client: redis.Redis, seconds: float) -> Callable[[str], Rate]:
    """The rate of each queue at this moment of Redis's clock, in one round trip."""
    shared: SharedRates = current_app.extensions.setdefault("rqjobs.rates", SharedRates())
    with shared.lock:
        window = shared.window
        window.forget_current()
        window.take(scripts.read_together(client, window.commands(seconds)))
        return replace(window, minutes=dict(window.minutes)).rate


def _shown(queue: QueueStats, rate_of: Callable[[str], Rate]) -> dict[str, Any]:
    rate = rate_of(queue.name)
    return {
        "incoming": attention.per_minute(rate.incoming),
        "outgoing": attention.per_minute(rate.outgoing),
        "to_empty": span(rate.seconds_to_empty(queue.queued)),
        "name": queue.name,
        "shown": cut(queue.name, 100),
        "queued": queue.queued,
        "oldest": span(queue.oldest),
        "running": queue.running,
        "scheduled": queue.scheduled,
        "deferred": queue.deferred,
        "failed": queue.failed,
        "finished": queue.finished,
        "canceled": queue.canceled,
        "workers": queue.workers,
        "is_unserved": not queue.workers and bool(queue.queued or queue.scheduled),
    }


def span(seconds: float | None) -> str:
    """A duration in its two largest units; "" for None, or less than a second."""
    if seconds is None or seconds < 1:
        return ""
    left = int(seconds)
    parts = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number:,} {unit}")
    return " ".join(parts[:2])


# One queue


@pages.get("/queues/<path:name>")
def queue(name: str) -> Any:
    """One queue, with its jobs from the one that runs next. Aborts with 404 if there is none."""
    return page("queue.html", **_one(name))


@pages.get("/live/queues/<path:name>")
def live_queue(name: str) -> Any:
    """The part of that page that changes, as it is now."""
    return page("_queue.html", **_one(name))


def _one(name: str) -> dict[str, Any]:
    client = connection.client()
    now = stats.snapshot(client, lambda names: [one for one in names if one == name])
    if not now.queues:
        abort(404)
    after = request.args.get("after", "")
    position = min(max(request.args.get("position", 0, type=int), 0), MAX_POSITION)
    contents = stats.queue_contents(client, name, position, after, JOBS_PER_PAGE)
    found = contents.queued
    last = found.jobs[-1][0] if found.jobs else ""
    pauses = [pause for pause in now.paused if (pause.kind, pause.name) == ("queue", name)]
    return {
        "queue": _shown(now.queues[0], _rates(client, now.read_at)),
        "pause": pauses[0] if pauses else None,
        "workers": [one.name for one in now.workers if one.alive and name in one.queues][
            :MAX_WORKERS
        ],
        "jobs": [_job_row(*pair, found.first + n) for n, pair in enumerate(found.jobs, 1)],
        "limits": contents.limits,
        "first": found.first,
        "after": after,
        "position": position,
        "next": last if found.has_more else "",
        "next_position": found.first + len(found.jobs),
        "section": "rqjobs.queues",
    }


def _job_row(job_id: str, job: Any, position: int) -> dict[str, Any]:
    fields = row(job) if job else {"id": cut(job_id, 260), "status": "unreadable"}
    return fields | {"position": position}


@pages.post("/queues/<path:name>/empty")
@requires(Role.ADMIN)
def empty_queue(name: str) -> Any:
    """Delete the jobs that wait in the queue, for up to `EMPTY_SECONDS`."""
    if request.form.get("sure") != "yes":
        return page("queue.html", 422, error=NOT_CONFIRMED, **_one(name))
    client = connection.client()
    if not stats.snapshot(client, lambda names: [one for one in names if one == name]).queues:
        abort(404)
    deleted, left = bulk_actions.empty_queue(client, name, EMPTY_SECONDS)
    number = "1 waiting job" if deleted == 1 else f"{deleted:,} waiting jobs"
    note = f"{number} of {cut(name, 100)} {'is' if deleted == 1 else 'are'} deleted."
    if left:
        note += f" {texts.jobs(left, 'is', 'are')} left."
    flash(note)
    return redirect(url_for("rqjobs.queue", name=name), 303)
