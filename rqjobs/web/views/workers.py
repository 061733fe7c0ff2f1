"""The pages of workers: all of them, and one; quiet, resume and stop."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import rq
from flask import abort, redirect, request, url_for
from rq.utils import now

from rqjobs import connection, stats, worker_commands
from rqjobs.maintenance import attention
from rqjobs.stats import WorkerStats
from rqjobs.version import VERSION
from rqjobs.web.access import Role, requires
from rqjobs.web.job_view import is_job_id, row
from rqjobs.web.rendering import NOT_CONFIRMED, cut, flash, page, pages
from rqjobs.web.views.queues import span

WORKERS_PER_PAGE = 100
PLAIN_STATES = ("idle", "busy", "suspended", "started", "quiet", "dead")


@dataclass(frozen=True)
class WorkerAction:
    """A button of a worker, and the note after it."""

    send: Callable[[str], bool]
    note: str
    must_confirm: bool = False


WORKER_ACTIONS = {
    "quiet": WorkerAction(
        worker_commands.quiet, "The worker finishes its jobs, and takes no more."
    ),
    "resume": WorkerAction(worker_commands.resume, "The worker takes jobs again."),
    "stop": WorkerAction(
        worker_commands.stop, "The worker ends after its job, or at its shutdown timeout.", True
    ),
}


# The list


@pages.get("/workers")
def workers() -> Any:
    """The workers by name, those whose name, host or queues contain `?q=`."""
    return page("workers.html", **_list())


@pages.get("/live/workers")
def live_workers() -> Any:
    """The table of that page, as it is now."""
    return page("_workers.html", **_list())


def _list() -> dict[str, Any]:
    client = connection.client()
    text, after = request.args.get("q", "")[:200], request.args.get("after", "")
    found = stats.snapshot(client, lambda names: []).workers
    words = text.casefold()
    matched = [one for one in found if words in _words(one)]
    ahead = [one for one in matched if one.name > after]
    shown = ahead[:WORKERS_PER_PAGE]
    jobs = _current_jobs(client, shown)
    return {
        "workers": [_shown(one, jobs) for one in shown],
        "total": len(found),
        "alive": sum(one.alive for one in found),
        "versions": _versions(found),
        "own_versions": _own_version(),
        "next": shown[-1].name if len(ahead) > len(shown) else "",
        "q": text,
        "after": after,
    }


def _words(worker: WorkerStats) -> str:
    return "\n".join((worker.name, worker.host, *worker.queues)).casefold()


def _own_version() -> str:
    return _version_text(VERSION, rq.VERSION, platform.python_version())


def _version_text(ours: str, theirs: str, python: str) -> str:
    parts = (("rqjobs", ours), ("RQ", theirs), ("Python", python.split()[0] if python else ""))
    return ", ".join(f"{name} {cut(number, 40)}" for name, number in parts if number)


def _version_of(worker: WorkerStats) -> str:
    return _version_text(worker.rqjobs_version, worker.version, worker.python_version)


def _versions(workers: list[WorkerStats]) -> list[tuple[str, int]]:
    """The versions of the live workers, the most frequent first, if not all are this process's."""
    counted = Counter(_version_of(worker) for worker in workers if worker.alive)
    if set(counted) <= {_own_version()}:
        return []
    return counted.most_common(10)


def _current_jobs(client: Any, workers: list[WorkerStats]) -> dict[str, Any]:
    ids = [one.job_id for one in workers if one.job_id]
    return dict(stats.listed_jobs(client, ids))


def _shown(worker: WorkerStats, jobs: dict[str, Any]) -> dict[str, Any]:
    """A worker as texts of bounded length. Its fields come from Redis."""
    job = jobs.get(worker.job_id or "")
    elapsed = None
    if job and job.started_at:
        elapsed = span(max(1.0, (now() - job.started_at).total_seconds()))
    state = worker.shown_state
    return {
        "name": worker.name,
        "shown": cut(worker.name, 60),
        "state": state if state in PLAIN_STATES else cut(state, 20),
        "alive": worker.alive,
        "has_ended": worker.has_ended,
        "ours": worker.ours,
        "queues": [cut(name, 60) for name in worker.queues[:50]],
        "more_queues": max(0, len(worker.queues) - 50),
        "job_id": worker.job_id if worker.job_id and is_job_id(worker.job_id) else None,
        "job": row(job) if job else None,
        "elapsed": elapsed,
        "host": cut(worker.host, 60),
        "pid": worker.pid,
        "horse_pid": worker.horse_pid,
        "memory": megabytes(worker.memory + worker.horse_memory),
        "parent_memory": megabytes(worker.memory),
        "horse_memory": megabytes(worker.horse_memory),
        "heartbeat": attention.duration(worker.heartbeat),
        "lease": worker.lease,
        "succeeded": worker.succeeded,
        "failed": worker.failed,
        "done": worker.done,
        "per_minute": attention.per_minute(worker.per_minute),
        "version": _version_of(worker),
        "drifts": worker.alive and _version_of(worker) != _own_version(),
        "quiet_since": worker.quiet_since,
        "actions": _actions(worker),
    }


def megabytes(size: int) -> str:
    """A number of bytes in MB; "" for 0, which is not known."""
    return f"{size / 1e6:,.0f} MB" if size else ""


def _actions(worker: WorkerStats) -> list[str]:
    if not worker.alive:
        return []
    if not worker.ours:
        return ["stop"]
    return ["resume" if worker.quiet_since else "quiet", "stop"]


# One worker


@pages.get("/workers/<path:name>")
def worker(name: str) -> Any:
    return page("worker.html", **_one(name))


@pages.get("/live/workers/<path:name>")
def live_worker(name: str) -> Any:
    """The part of that page that changes, as it is now."""
    return page("_worker.html", **_one(name))


def _one(name: str) -> dict[str, Any]:
    """The worker. Aborts with 404 if RQ knows none of this name."""
    client = connection.client()
    found = stats.worker(client, name)
    if found is None:
        abort(404)
    return {
        "worker": _shown(found, _current_jobs(client, [found])),
        "claims": stats.claimed_jobs(client, name),
        "own_version": _own_version(),
        "section": "rqjobs.workers",
    }


@pages.post("/workers/<path:name>/<action>")
@requires(Role.OPERATE, stop=Role.ADMIN)
def act_on_worker(name: str, action: str) -> Any:
    """Send one of `WORKER_ACTIONS` to the worker. A note shows the outcome."""
    if action not in WORKER_ACTIONS:
        abort(404)
    chosen = WORKER_ACTIONS[action]
    if chosen.must_confirm and request.form.get("sure") != "yes":
        return page("worker.html", 422, error=NOT_CONFIRMED, **_one(name))
    if stats.worker(connection.client(), name) is None:
        abort(404)
    note = chosen.note
    if not chosen.send(name):
        note = "Nothing was done: the worker does not listen for commands now."
    flash(f"{note} ({cut(name, 60)})")
    return redirect(url_for("rqjobs.worker", name=name), 303)
