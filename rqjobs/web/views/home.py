"""The home page: whether all is well, what needs attention, and what happens in the queues."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from flask import current_app, redirect, request, url_for

from rqjobs import config, connection
from rqjobs.broker.counters import Kind
from rqjobs.jobs import Job
from rqjobs.maintenance import attention
from rqjobs.maintenance.attention import Do, Finding
from rqjobs.maintenance.doctor import Level
from rqjobs.overview import Overview, Reader
from rqjobs.rates import Rate, Series
from rqjobs.stats import QueueStats
from rqjobs.web import charts, live
from rqjobs.web.job_view import row
from rqjobs.web.rendering import cut, page, pages

MAX_QUEUES = 20  # of the table; the busiest
MAX_NAME_CHARACTERS = 200
RECENT_JOBS = 12
SHARED_SECONDS = 1.0  # for which viewers of one process share a rendering
SHARED = "rqjobs.home"  # the name of the state below in app.extensions
LINKS = {
    Do.OPEN_FAILURES: ("rqjobs.failed", ""),
    Do.OPEN_GROUP: ("rqjobs.failed_group", "group_id"),
    Do.OPEN_QUEUE: ("rqjobs.queue", "name"),
    Do.OPEN_WORKERS: ("rqjobs.workers", ""),
    Do.OPEN_SCHEDULES: ("rqjobs.schedules", ""),
    Do.OPEN_REDIS: ("rqjobs.redis_page", ""),
    Do.OPEN_ALERTS: ("rqjobs.alerts", ""),
}
LINKED_PAGES = ("queues", "jobs", "workers", "schedules")  # from the home page
INDEX_OF = {"rqjobs.queue": "rqjobs.queues"}  # the page to open where there is no name
RESUMES = {
    Do.RESUME_QUEUE: "queue",
    Do.RESUME_FUNCTION: "function",
    Do.RESUME_WORKERS: "workers",
}
FINISHED = ("finished", "good", (Kind.FINISHED,))
FAILED = ("failed", "bad", (Kind.FAILED,))
OTHER = (
    "retried or canceled",
    "wait",
    (Kind.RETRIED, Kind.STOPPED, Kind.CANCELED, Kind.EXPIRED),
)


@dataclass
class Shared:
    """What the viewers of this process share. One thread at a time reads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    reader: Reader = field(default_factory=Reader)


@pages.get("/")
def home() -> Any:
    if "function" in request.args:  # an old link to the form
        return redirect(url_for("rqjobs.enqueue_form", function=request.args["function"]))
    return page("home.html", **_read(is_first=True))


@pages.get("/live")
def live_home() -> Any:
    """The changing part of the home page, as it was at most a second ago."""
    return live.cached("home", SHARED_SECONDS, lambda: page("_activity.html", **_read()))


def _read(is_first: bool = False) -> dict[str, Any]:
    shared: Shared = current_app.extensions.setdefault(SHARED, Shared())
    with shared.lock:
        values = _values(shared.reader.read(connection.client(), is_first))
    live.set_trouble(len(values["findings"]))
    return values


def _values(overview: Overview) -> dict[str, Any]:
    """What the templates of the page show."""
    found = attention.findings(overview)
    snapshot, jobs = overview.snapshot, overview.jobs
    paused = {pause.name for pause in snapshot.paused if pause.kind == "queue"}
    queues = sorted(snapshot.queues, key=_by_activity(overview))
    recent = {job.id: row(job) for place in jobs if place != "failed" for job in jobs[place]}
    alive = [worker for worker in snapshot.workers if worker.alive]
    return {
        "verdict": attention.verdict(found),
        "level": _level(found),
        "findings": [_finding(one) for one in found],
        "queues": [_queue(queue, overview, paused) for queue in queues[:MAX_QUEUES]],
        "more_queues": max(len(queues) - MAX_QUEUES, 0),
        "links": {name: _link(f"rqjobs.{name}") for name in LINKED_PAGES},
        "running": [_running(job) for job in jobs["running"]],
        "running_total": sum(queue.running for queue in queues),
        "waiting_total": sum(queue.queued for queue in queues),
        "busy": sum(worker.state == "busy" for worker in alive),
        "workers": len(alive),
        "schedules": overview.schedules,
        "recent": sorted(recent.values(), key=lambda job: job["when"], reverse=True)[:RECENT_JOBS],
        "failed": [row(job) for job in jobs["failed"]],
        "hour": _chart(overview.window.hour(), "last hour by minute"),
        "day": _chart(overview.window.last_day(), "last day by quarter of an hour"),
    }


def _level(found: list[Finding]) -> str:
    if any(finding.level is Level.LOSS for finding in found):
        return "bad"
    return "wait" if found else "good"


# What needs attention


def _finding(finding: Finding) -> dict[str, Any]:
    action = finding.action
    shown = {
        "key": finding.key,
        "is_serious": finding.level is Level.LOSS,
        "title": cut(finding.title, MAX_NAME_CHARACTERS),
        "detail": cut(finding.detail, 400),
        "label": action.label,
        "href": "",
        "command": "",
        "resume": "",
        "name": "" if action.command else action.name,
    }
    if action.do in RESUMES:
        shown["resume"] = RESUMES[action.do]
    elif action.do in LINKS:
        endpoint, argument = LINKS[action.do]
        if argument and not action.name:
            endpoint, argument = INDEX_OF.get(endpoint, endpoint), ""
        values = {argument: action.name} if argument else {}
        shown["href"] = _link(endpoint, **values)
    if not shown["href"] and not shown["resume"] and action.name.startswith(("rq ", "rqjobs ")):
        shown["command"] = action.name
    return shown


def _link(endpoint: str, **values: Any) -> str:
    """The address of a page; "" if there is no such page."""
    if endpoint not in current_app.view_functions:
        return ""
    return url_for(endpoint, **values)


# Queues and jobs


def _by_activity(overview: Overview) -> Callable[[QueueStats], Any]:
    """The order of queues: the configured ones as they are, then the busiest first."""
    order = {name: number for number, name in enumerate(config.current().queues)}

    def key(queue: QueueStats) -> tuple[int, float, str]:
        rate = overview.window.rate(queue.name)
        busy = queue.queued + queue.running + rate.incoming + rate.outgoing
        return order.get(queue.name, len(order)), -busy, queue.name

    return key


def _queue(queue: QueueStats, overview: Overview, paused: set[str]) -> dict[str, Any]:
    rate = overview.window.rate(queue.name)
    is_paused = queue.name in paused
    done = overview.window.hour(queue.name).of(Kind.FINISHED, Kind.FAILED, Kind.RETRIED)
    return {
        "name": queue.name,
        "shown": cut(queue.name, MAX_NAME_CHARACTERS),
        "href": _link("rqjobs.queue", name=queue.name),
        "is_paused": is_paused,
        "stats": queue,
        "oldest": attention.duration(queue.oldest) if queue.queued else "",
        "incoming": attention.per_minute(rate.incoming),
        "outgoing": attention.per_minute(rate.outgoing),
        "to_empty": _to_empty(queue, rate, is_paused),
        "grows": attention.is_growing(queue, overview.window),
        "spark": charts.sparkline(done, f"{sum(done):,} runs in the last hour")
        if any(done)
        else "",
    }


def _to_empty(queue: QueueStats, rate: Rate, is_paused: bool) -> str:
    if not queue.queued:
        return ""
    if is_paused:
        return "paused"
    seconds = rate.seconds_to_empty(queue.queued)
    if seconds is not None:
        return attention.duration(seconds)
    return "growing" if rate.grows else "steady"


def _running(job: Job) -> dict[str, Any]:
    started = job.started_at
    elapsed = None
    if started:
        elapsed = attention.duration(max((datetime.now(timezone.utc) - started).total_seconds(), 0))
    return {**row(job), "started": started, "elapsed": elapsed, "worker": cut(job.worker_name, 100)}


# Charts


def _chart(series: Series, period: str) -> dict[str, Any]:
    layers = [
        charts.Bars(name, series.of(*kinds), colour)
        for name, colour, kinds in (FINISHED, FAILED, OTHER)
    ]
    entered = series.of(Kind.ENQUEUED)
    totals = [(layer.name, layer.colour, sum(layer.numbers)) for layer in layers]
    texts = [f"{sum(entered):,} enqueued", *(f"{total:,} {name}" for name, _, total in totals)]
    names = [
        f"{datetime.fromtimestamp(series.end - series.step * back, timezone.utc):%H:%M} UTC"
        for back in range(len(entered) - 1, -1, -1)
    ]
    return {
        "svg": charts.chart(layers, f"Jobs of the {period}: {', '.join(texts)}", names, entered),
        "totals": [one for one in totals if one[2]],
        "enqueued": sum(entered),
        "top": max(
            entered + [sum(step) for step in zip(*(one.numbers for one in layers), strict=True)]
        ),
    }
