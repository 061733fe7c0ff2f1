"""The page of failed jobs."""

from __future__ import annotations

from typing import Any

from flask import redirect, request, url_for

from rqjobs import connection, stats
from rqjobs.broker import places, transitions
from rqjobs.web.job_view import row
from rqjobs.web.rendering import flash, page, pages, paging, queue_filter

FAILED_PER_PAGE = 25
REQUEUE_MAX_JOBS = 1000  # of one click: it must end within the time-out of a web server


@pages.get("/failed")
def failed() -> Any:
    """The failed jobs of all queues or of `?queue=`, the newest first."""
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
