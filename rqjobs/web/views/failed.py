"""The inbox of failures: the groups of failed jobs, and the jobs of one group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flask import abort, redirect, request, url_for
from rq.exceptions import InvalidJobOperation, NoSuchJobError

from rqjobs import bulk_actions, catalog, connection, failure_inbox, job_filters, stats, texts
from rqjobs import failed as failed_jobs
from rqjobs.broker import transitions
from rqjobs.bulk_actions import Action
from rqjobs.failed import FailedJob, Filter, Target
from rqjobs.web import charts
from rqjobs.web.access import Role, current_access, requires
from rqjobs.web.deadlines import GROUP_MAX_JOBS
from rqjobs.web.job_view import row
from rqjobs.web.rendering import NOT_CONFIRMED, cut, flash, page, pages

FAILED_PER_PAGE = 25
GROUPS_PER_PAGE = 25
REQUEUE_MAX_JOBS = 1000  # of one click: it must end within the time-out of a web server
TRIED_MAX_JOBS = 5  # of the newest jobs of a group, until one can be requeued
UNGROUPED = "ungrouped"  # in the place of a group's id: the failed jobs without a group


# The inbox


@pages.get("/failed")
def failed() -> Any:
    """The groups, the one that failed last first: those that count as trouble, or the ignored."""
    return page("failed.html", **_inbox())


@pages.get("/live/failed")
def live_failed() -> Any:
    """The list of that page, as it is now."""
    return page("_failed.html", **_inbox())


def _inbox() -> dict[str, Any]:
    text = request.args.get("q", "")[:200]
    ignored = request.args.get("show") == "ignored"
    after = request.args.get("after", "")
    inbox = failure_inbox.page(text, ignored, after, GROUPS_PER_PAGE)
    return {
        "inbox": inbox,
        "groups": [_shown(group) for group in inbox.groups],
        "ungrouped": inbox.ungrouped,
        "q": text,
        "show": "ignored" if ignored else None,
        "after": after,
    }


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
        "trend": charts.sparkline(group.hours, "Failures in each of the last 24 hours"),
        "jobs": group.jobs,
        "ignored_since": group.ignored_since,
        "ignored_by": cut(group.ignored_by, 100),
        "is_ignored": group.is_ignored,
        "has_come_back": group.has_come_back,
    }


# One group


@pages.get("/failed/<group_id>")
def failed_group(group_id: str) -> Any:
    """One group, with its jobs, the last failure first."""
    if group_id == UNGROUPED:
        return _show_ungrouped()
    return _show_group(group_id)


def _show_group(group_id: str, status: int = 200, error: str = "") -> Any:
    group = failed_jobs.group(group_id)
    if group is None:
        abort(404)
    after = request.args.get("after", "")
    found = failure_inbox.jobs_of(group_id, after, FAILED_PER_PAGE)
    jobs = stats.listed_jobs(connection.client(), found.ids)
    can_edit = not after and group.function in catalog.current().functions
    return page(
        "failed_group.html",
        status,
        group=_shown(group),
        jobs=[row(job) if job else {"id": job_id} for job_id, job in jobs],
        editable=next((job_id for job_id, job in jobs if job and can_edit), ""),
        after=after,
        next=found.next,
        error=error,
        section="rqjobs.failed",
    )


def _show_ungrouped() -> Any:
    after = request.args.get("after", "")
    found = failure_inbox.ungrouped(after, FAILED_PER_PAGE)
    return page(
        "failed_ungrouped.html",
        jobs=[_ungrouped_row(job) for job in found.jobs],
        total=found.total,
        after=after,
        next=found.next,
        max_jobs=REQUEUE_MAX_JOBS,
        section="rqjobs.failed",
    )


def _ungrouped_row(job: FailedJob) -> dict[str, Any]:
    return {
        "id": cut(job.job_id, 260),
        "queue": cut(job.queue, 100),
        "function": cut(job.function, 200),
        "error": cut(job.error, 200),
        "failed_at": job.failed_at,
    }


# Actions


@pages.post("/failed/<group_id>/try")
def try_one(group_id: str) -> Any:
    """Requeue the newest failed job of a group alone, and show its page."""
    client = connection.client()
    for job_id in failure_inbox.jobs_of(group_id, limit=TRIED_MAX_JOBS).ids:
        try:
            transitions.requeue(client, job_id)
        except (NoSuchJobError, InvalidJobOperation):  # it is gone, or has been requeued
            continue
        flash("The newest job of the group is back in its queue. The others stay failed.")
        return redirect(url_for("rqjobs.job", job_id=job_id), 303)
    if failed_jobs.group(group_id) is None:
        abort(404)
    flash("Nothing was done: no job of this group can be requeued now.")
    return redirect(url_for("rqjobs.failed_group", group_id=group_id), 303)


@pages.post("/failed/<group_id>/requeue")
def requeue_group(group_id: str) -> Any:
    """Requeue the jobs of a group, the oldest failures first."""
    if group_id == UNGROUPED:
        return _requeue_ungrouped()
    return _change(group_id, Action.REQUEUE, failed_jobs.requeue_steps)


@pages.post("/failed/<group_id>/delete")
@requires(Role.ADMIN)
def delete_group(group_id: str) -> Any:
    """Delete the jobs of a group, if the form says that it is meant."""
    if request.form.get("sure") != "yes":
        return _show_group(group_id, 422, NOT_CONFIRMED)
    return _change(group_id, Action.DELETE, failed_jobs.delete_steps)


def _change(
    group_id: str,
    action: Action,
    steps: Callable[[Sequence[Target]], Iterator[int]],
) -> Any:
    """Change the jobs of a group: up to `GROUP_MAX_JOBS` at once, more by a job of its own."""
    group = failed_jobs.group(group_id)
    if group is not None and group.jobs > GROUP_MAX_JOBS:
        chosen = bulk_actions.until_now(job_filters.Filter(group=group_id))
        flash(f"This job does it for all {group.jobs:,} jobs. A worker has to run.")
        job_id = bulk_actions.enqueue_change(action, chosen)
        return redirect(url_for("rqjobs.job", job_id=job_id), 303)
    targets = failed_jobs.select(Filter(group=group_id), GROUP_MAX_JOBS)
    whose = f"of {group.function}" if group else ""
    note = f"{bulk_actions.describe(action, sum(steps(targets)), whose)}."
    group = failed_jobs.group(group_id)
    if group is None or not group.jobs:
        flash(note)
        return redirect(url_for("rqjobs.failed"), 303)
    flash(f"{note} {texts.jobs(group.jobs, 'is', 'are')} left.")
    return redirect(url_for("rqjobs.failed_group", group_id=group_id), 303)


def _requeue_ungrouped() -> Any:
    targets: list[Target] = []
    after = ""
    while len(targets) < REQUEUE_MAX_JOBS:
        found = failure_inbox.ungrouped(after, REQUEUE_MAX_JOBS)
        targets += [(job.job_id, job.queue) for job in found.jobs]
        after = found.next
        if not after:
            break
    changed = sum(failed_jobs.requeue_steps(targets[:REQUEUE_MAX_JOBS]))
    flash(f"{bulk_actions.describe(Action.REQUEUE, changed)}.")
    return redirect(url_for("rqjobs.failed"), 303)


@pages.post("/failed/<group_id>/ignore")
def ignore_group(group_id: str) -> Any:
    """Let the group count as no trouble until it fails again."""
    if not failure_inbox.ignore(group_id, current_access().user):
        abort(404)
    flash("The group is ignored until it fails again.")
    return redirect(url_for("rqjobs.failed"), 303)


@pages.post("/failed/<group_id>/watch")
def watch_group(group_id: str) -> Any:
    """End that."""
    if not failure_inbox.watch(group_id):
        abort(404)
    flash("The group counts as trouble again.")
    return redirect(url_for("rqjobs.failed_group", group_id=group_id), 303)
