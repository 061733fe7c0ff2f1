"""`rqjobs top`: queues, workers and findings that need attention, live in the terminal."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

import click
import redis
from rq.utils import now

from rqjobs import connection, stats
from rqjobs.cli.output import echo, short_line
from rqjobs.cli.terminal import Line, Screen, fit, is_terminal
from rqjobs.jobs import Job
from rqjobs.maintenance import attention
from rqjobs.maintenance.attention import Finding
from rqjobs.maintenance.doctor import Level
from rqjobs.overview import Overview, Reader
from rqjobs.stats import QueueStats, Snapshot, WorkerStats

REFRESH_SECONDS = 2.0
MIN_QUEUE_LINES = 5  # that are left for the queues if there are many workers
SNAPSHOT_ROWS = 100_000  # of a snapshot that is printed once
KEYS = "q quit   p pause   s sort   r refresh"


class Order(Enum):
    """An order of the queues."""

    WAITING = "waiting"
    OLDEST = "oldest"
    FAILED = "failed"
    NAME = "name"

    @property
    def next(self) -> Order:
        orders = list(Order)
        return orders[(orders.index(self) + 1) % len(orders)]


SORT_KEYS: dict[Order, Callable[[QueueStats], Any]] = {
    Order.WAITING: lambda queue: (-queue.queued, -(queue.oldest or 0), queue.name),
    Order.OLDEST: lambda queue: (-(queue.oldest or 0), queue.name),
    Order.FAILED: lambda queue: (-queue.failed, queue.name),
    Order.NAME: lambda queue: queue.name,
}


@dataclass(frozen=True)
class View:
    """The content of one refresh. `jobs` are the current ones of the workers, by id."""

    overview: Overview
    findings: list[Finding]
    jobs: dict[str, Job | None]
    at: datetime

    @property
    def now(self) -> Snapshot:
        return self.overview.snapshot


def read(reader: Reader) -> View:
    """Read all that is shown, in three round trips at most; the first time one more."""
    client = connection.client()
    overview = reader.read(client)
    ids = [worker.job_id for worker in overview.snapshot.workers if worker.job_id]
    jobs = dict(stats.listed_jobs(client, ids)) if ids else {}
    return View(overview, attention.findings(overview), jobs, datetime.now().astimezone())


@click.command("top")
@click.option("--json", "as_json", is_flag=True, help="Print one snapshot as JSON.")
def top(as_json: bool) -> None:
    """Show queues and workers live; without a terminal, print one snapshot.

    Keys: q quits, p pauses the refresh, s changes the order of the queues, r refreshes at once.
    """
    if as_json:
        click.echo(json.dumps(_as_json(read(Reader())), indent=2))
        return
    if not is_terminal():
        for line in _lines(read(Reader()), Order.WAITING, 200, SNAPSHOT_ROWS):
            echo(line.text.rstrip())
        return
    with Screen() as screen:
        _Top(screen).run()
    sys.exit(screen.exit_code)


class _Top:
    """The loop: refresh, draw, wait for a key."""

    def __init__(self, screen: Screen):
        self.screen = screen
        self.order = Order.WAITING
        self.is_paused = False
        self.reader = Reader()
        self.view: View | None = None
        self.error = ""
        self.due = 0.0  # monotonic time of the next refresh
        self.keys: dict[str, Callable[[], None]] = {
            "p": self._pause,
            " ": self._pause,
            "s": self._sort,
            "r": self._refresh_soon,
        }

    def run(self) -> None:
        while not self.screen.is_ending:
            if not self.is_paused and time.monotonic() >= self.due:
                self._refresh()
                self.screen.has_changed = True
            if self.screen.has_changed:
                self.screen.has_changed = False  # before the size is read, which may change again
                self.screen.draw(self._screenful())
            wait = REFRESH_SECONDS
            if not self.is_paused:
                wait = max(0.0, self.due - time.monotonic())
            for key in self.screen.read_keys(wait):
                if key in ("q", "Q", "\x03"):
                    return
                if key in self.keys:
                    self.keys[key]()
                    self.screen.has_changed = True

    def _pause(self) -> None:
        self.is_paused = not self.is_paused
        self.due = 0.0

    def _sort(self) -> None:
        self.order = self.order.next

    def _refresh_soon(self) -> None:
        self._refresh()

    def _refresh(self) -> None:
        try:
            self.view = read(self.reader)
            self.error = ""
        except redis.RedisError as error:
            self.error = short_line(connection.explain(error))
        self.due = time.monotonic() + REFRESH_SECONDS

    def _screenful(self) -> list[Line]:
        columns, rows = self.screen.size()
        top_lines = [Line(f"rqjobs top   {self._state()}", "bold")]
        if self.error:
            top_lines.append(Line(self.error, "red"))
        body: list[Line] = []
        if self.view:
            body = _lines(self.view, self.order, columns, rows - len(top_lines) - 1)
        filling = [Line()] * (rows - len(top_lines) - len(body) - 1)
        foot = Line(f"{KEYS}   queues by {self.order.value}", "reverse")
        return [*top_lines, *body, *filling, foot]

    def _state(self) -> str:
        moment = f"{self.view.at:%H:%M:%S}" if self.view else "…"
        if self.error:
            return f"stale since {moment}"
        return f"{moment}   paused" if self.is_paused else moment


# The lines


def _lines(view: View, order: Order, columns: int, rows: int) -> list[Line]:
    """Everything in at most `rows` lines: findings, then queues, then workers."""
    found = [_finding_line(one) for one in view.findings[: max(rows // 3, 1)]]
    workers = _worker_lines(view)
    queues = _queue_lines(view, order)
    left = max(rows - len(found) - 2, 0)
    number = max(left - len(workers), min(MIN_QUEUE_LINES, left))
    lines = [*found, *_cut(queues, number, "queues"), Line()]
    return [*lines, *_cut(workers, rows - len(lines), "workers")][:rows]


def _cut(lines: list[Line], number: int, what: str) -> list[Line]:
    """At most `number` lines; the last one says how many are left out."""
    if len(lines) <= number or number < 2:
        return lines[: max(number, 0)]
    return [*lines[: number - 1], Line(f"… {len(lines) - number + 1:,} more {what}", "dim")]


def _finding_line(finding: Finding) -> Line:
    """A finding in one line, with the command that mends it."""
    about = "   ".join(filter(None, (finding.action.command, finding.detail)))
    text = f"! {finding.title}: {about}" if about else f"! {finding.title}"
    return Line(short_line(text), "red" if finding.level is Level.LOSS else "yellow")


def _queue_lines(view: View, order: Order) -> list[Line]:
    snapshot = view.now
    paused = {pause.name for pause in snapshot.paused if pause.kind == "queue"}
    heads = ("WAITING", "OLDEST", "IN/MIN", "OUT/MIN", "RUNNING", "SCHED", "FAILED", "WORKERS")
    lines = [Line(_row("QUEUE", heads, 20, 8), "bold")]
    for queue in sorted(snapshot.queues, key=SORT_KEYS[order]):
        counts = (queue.running, queue.scheduled + queue.deferred, queue.failed, queue.workers)
        rate = view.overview.window.rate(queue.name)
        cells = (
            f"{queue.queued:,}",
            span(queue.oldest),
            attention.per_minute(rate.incoming),
            attention.per_minute(rate.outgoing),
            *(f"{count:,}" for count in counts),
        )
        name = queue.name + (" (paused)" if queue.name in paused else "")
        needs_worker = not queue.workers and (queue.queued or queue.scheduled)
        lines.append(Line(_row(name, cells, 20, 8), "red" if needs_worker else ""))
    return lines


def _worker_lines(view: View) -> list[Line]:
    lines = [Line(f"{_row('WORKER', ('STATE', 'DONE', '/MIN', 'MEMORY'), 16, 9)}  JOB", "bold")]
    for worker in sorted(view.now.workers, key=lambda one: (not one.job_id, one.name)):
        memory = worker.memory + worker.horse_memory
        cells = (
            worker.shown_state[:9],
            f"{worker.done:,}",
            attention.per_minute(worker.per_minute) if worker.ours else "",
            f"{memory / 1e6:,.0f} MB" if memory else "",
        )
        text = f"{_row(worker.name, cells, 16, 9)}  {_job_text(view, worker)}"
        lines.append(Line(text, "" if worker.alive else "red"))
    return lines


def _job_text(view: View, worker: WorkerStats) -> str:
    """The current job of a worker: how long it has run, and its call."""
    if not worker.job_id:
        return ""
    job = view.jobs.get(worker.job_id)
    if job is None:
        return short_line(worker.job_id)
    text = short_line(job.description or job.id)
    if job.started_at:
        text = f"{span((now() - job.started_at).total_seconds()):>7}  {text}"
    progress = stats.listed_progress(job)
    return f"{text}  {short_line(progress.describe())}" if progress else text


def _row(name: str, cells: Sequence[str], name_columns: int, columns: int) -> str:
    shown = [short_line(cell)[:columns].rjust(columns) for cell in cells]
    return " ".join([fit(short_line(name), name_columns), *shown])


def span(seconds: float | None) -> str:
    """A duration in one unit, like `90 s` or `3 h`; "" for None or less than a second."""
    if seconds is None or seconds < 1:
        return ""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s"


# JSON


def _as_json(view: View) -> dict[str, Any]:
    return {
        "time": view.at.isoformat(timespec="seconds"),
        "attention": [_finding_json(one) for one in view.findings],
        "queues": [_queue_json(view, queue) for queue in view.now.queues],
        "workers": [
            dataclasses.asdict(worker)
            | {"state": worker.shown_state, "job": _job_json(view, worker)}
            for worker in view.now.workers
        ],
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "key": finding.key,
        "level": finding.level.value.lower(),
        "title": finding.title,
        "detail": finding.detail,
        "command": finding.action.command,
    }


def _queue_json(view: View, queue: QueueStats) -> dict[str, Any]:
    rate = view.overview.window.rate(queue.name)
    return dataclasses.asdict(queue) | {
        "incoming_per_minute": round(rate.incoming, 3),
        "outgoing_per_minute": round(rate.outgoing, 3),
        "seconds_to_empty": rate.seconds_to_empty(queue.queued),
    }


def _job_json(view: View, worker: WorkerStats) -> dict[str, Any] | None:
    if not worker.job_id:
        return None
    job = view.jobs.get(worker.job_id)
    elapsed = None
    if job and job.started_at:
        elapsed = round(max(0.0, (now() - job.started_at).total_seconds()), 3)
    return {
        "id": worker.job_id,
        "description": job.description if job else None,
        "elapsed": elapsed,
    }
