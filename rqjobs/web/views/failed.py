"""The pages of failed jobs: their groups, and the jobs of one group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flask import abort, redirect, request, url_for

from rqjobs import connection, stats
from rqjobs import failed as failed_jobs
from rqjobs.broker import places, transitions
from rqjobs.failed import Filter, Target
from rqjobs.web.access import Role, requires
from rqjobs.web.job_view import row
from rqjobs.web.rendering import cut, flash, page, pages, paging, queue_filter

FAILED_PER_PAGE = 25
REQUEUE_MAX_JOBS = 1000  # of one click: it must end within the time-out of a web server
GROUP_MAX_JOBS = 10_000  # of one click on the page of a group, which moves them in larger steps
SHOWN_GROUPS = 50


@pages.get("/failed")
def failed() -> Any:
    """The groups, and the failed jobs of all queues or of `?queue=`, the newest first."""
    client = connection.client()
    queues = stats.snapshot(client).queues
    shown = queue_filter({queue.name: queue.failed for queue in queues})
    part = paging(shown.total, FAILED_PER_PAGE)
    jobs = stats.failed_jobs(
        client, [name for name in shown.names if shown.counts[name]], part.start, part.end
    )
    with_stopped = [queue.name for queue in queues if queue.stopped and queue.name in shown.names]
    stopped = stats.stopped_jobs(client, with_stopped)
    return page(
        "failed.html",
        groups=[_shown(group) for group in failed_jobs.groups(SHOWN_GROUPS)],
        jobs=[row(job) if job else {"id": job_id} for job_id, job in jobs],
        queue=shown,
        paging=part,
        max_requeued=REQUEUE_MAX_JOBS,
        stopped=stopped[-FAILED_PER_PAGE:],
        stopped_total=len(stopped),
    )


@pages.post("/failed/requeue")
def requeue_all() -> Any:
    """Requeue the failed jobs of all queues or of one, the oldest first."""
    client = connection.client()
    chosen = request.form.get("queue", "")
    names = [name for name in places.queue_names(client) if chosen in ("", name)]
    count = transitions.requeue_all(client, names, REQUEUE_MAX_JOBS)
    queues = stats.snapshot(client).queues
    left = sum(queue.failed for queue in queues if chosen in ("", queue.name))
    note = f"{count:,} jobs are back in their queues."
    if left:
        note += f" {left:,} are left."
    flash(note)
    return redirect(url_for("rqjobs.failed", queue=chosen or None), 303)


@pages.get("/failed/<group_id>")
def failed_group(group_id: str) -> Any:
    """One group, with its jobs, the last failure first."""
    group = failed_jobs.group(group_id)
    if group is None:
        abort(404)
    client = connection.client()
    part = paging(group.jobs, FAILED_PER_PAGE)
    ids = failed_jobs.page_of_group(group_id, part.start, part.end)
    jobs = [(job_id, stats.fetch(client, job_id)) for job_id in ids]
    return page(
        "failed_group.html",
        group=_shown(group),
        jobs=[row(job) if job else {"id": job_id} for job_id, job in jobs],
        paging=part,
        max_jobs=GROUP_MAX_JOBS,
        section="rqjobs.failed",
    )


@pages.post("/failed/<group_id>/requeue")
def requeue_group(group_id: str) -> Any:
    """Requeue the jobs of a group, the oldest failures first, up to `GROUP_MAX_JOBS`."""
    return _change(group_id, failed_jobs.requeue_steps, "{:,} jobs are back in their queues.")


@pages.post("/failed/<group_id>/delete")
@requires(Role.ADMIN)
def delete_group(group_id: str) -> Any:
    """Delete the jobs of a group, the oldest failures first, up to `GROUP_MAX_JOBS`."""
    return _change(group_id, failed_jobs.delete_steps, "{:,} jobs are deleted.")


def _change(group_id: str, steps: Callable[[Sequence[Target]], Iterator[int]], text: str) -> Any:
    targets = failed_jobs.select(Filter(group=group_id), GROUP_MAX_JOBS)
    note = text.format(sum(steps(targets)))
    group = failed_jobs.group(group_id)
    if group is None or not group.jobs:
        flash(note)
        return redirect(url_for("rqjobs.failed"), 303)
    flash(f"{note} {group.jobs:,} are left.")
    return redirect(url_for("rqjobs.failed_group", group_id=group_id), 303)


def _shown(group: failed_jobs.Group) -> dict[str, Any]:
    """A group with texts of bounded length."""
    return {
        "id": group.id,
        "function": cut(group.function, 200),
        "error": cut(group.error, 200),
        "message": cut(group.message, 300),
        "first_seen": group.first_seen,
        "last_seen": group.last_seen,
        "counts": (group.last_hour, group.last_day, group.last_week),
        "jobs": group.jobs,
    }
