"""The page of one job, and its buttons."""

from __future__ import annotations

from typing import Any

from flask import abort
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation
from werkzeug.exceptions import HTTPException

from rqjobs import catalog, connection, delayed, passed_results, queues, stats
from rqjobs.broker import transitions
from rqjobs.broker.transitions import DeleteOutcome
from rqjobs.jobs import Job
from rqjobs.web.access import Role, requires
from rqjobs.web.job_page import describe, shown_job
from rqjobs.web.job_view import JOB_ACTIONS, actions_in, fetch, label
from rqjobs.web.rendering import CONNECTION_ERRORS, cut, flash, page, pages, redirect_back, render
from rqjobs.web.views.delayed import reschedule_form

CANCELED_WHILE_RUNNING = (
    "The job is canceled. It may go on for a while, but its outcome will be dropped."
)


@pages.get("/jobs/<job_id>")
def job(job_id: str) -> Any:
    return page("job.html", **shown_job(job_id), **reschedule_form())


@pages.get("/jobs/<job_id>/state")
def state(job_id: str) -> Any:
    """The job's status, whether it has ended, and the part of its page that changes."""
    view = describe(job_id)
    return {
        "id": job_id,
        "status": view["status"],
        "ended": view["ended"],
        "html": render("_job.html", job=view),
    }


@pages.post("/jobs/<job_id>/<action>")
@requires(Role.OPERATE, delete=Role.ADMIN)
def act(job_id: str, action: str) -> Any:
    """Do one of `JOB_ACTIONS` if the job's status allows it now. A note shows the outcome."""
    if action not in JOB_ACTIONS:
        abort(404)
    target = job_id
    try:
        found = fetch(job_id)
        note = f"{_note(found, action)} ({label(found, job_id)})"
        if isinstance(found, Exception):
            _act_on_unreadable(job_id, action)
        else:
            target = _act(found, action)
    except (*CONNECTION_ERRORS, HTTPException):
        raise
    except Exception as error:  # the status forbids it, or RQ cannot handle a damaged record
        if connection.refusal_code(error):
            raise
        flash(f"Nothing was done: {cut(str(error), 500)}")
        return redirect_back("rqjobs.job", job_id=job_id)
    flash(note)
    if action == "delete":
        return redirect_back("rqjobs.home")
    return redirect_back("rqjobs.job", job_id=target)


def _note(job: Job | Exception, action: str) -> str:
    if action == "cancel" and isinstance(job, Job) and job.get_status(refresh=False) == "started":
        return CANCELED_WHILE_RUNNING
    return JOB_ACTIONS[action].note


def _act(job: Job, action: str) -> str:
    """Do `action`; returns the id of the job to show afterwards.

    Raises:
        InvalidJobOperation: the job's status does not allow the action.
    """
    status = job.get_status(refresh=False).value
    if action not in actions_in(status):
        raise InvalidJobOperation(f"the job is {status} now")
    if action == "again":
        return _run_again(job)
    if action == "requeue":
        job.requeue()
    elif action == "stop":
        send_stop_job_command(job.connection, job.id, serializer=job.serializer)
    elif action == "delete":
        (outcome,) = transitions.delete(job.connection, [job.id], job.origin)
        if outcome is not DeleteOutcome.DELETED:
            raise InvalidJobOperation("the job is running now, or gone")
    elif action == "cancel" and status == "scheduled":
        delayed.cancel(job.id)
    else:
        transitions.cancel(job, status)
    return job.id


def _run_again(job: Job) -> str:
    """Enqueue a new job with the same function, arguments and limits; returns its id.

    Raises:
        InvalidJobOperation: the job is one of rqjobs itself, or got arguments from others.
    """
    if job.func_name in catalog.BUILT_IN_FUNCTIONS:
        raise InvalidJobOperation("this job changes many jobs; choose them again on the page Jobs")
    place = passed_results.place_of(job.policy_fields)
    if place and place.takes != "nothing":
        raise InvalidJobOperation(
            "the job got its first argument from the jobs before it; enqueue its flow again"
        )
    again = queues.queue(job.origin).enqueue(
        str(job.func_name),
        args=job.args,
        kwargs=job.kwargs,
        job_timeout=job.timeout,
        result_ttl=job.result_ttl,
        failure_ttl=job.failure_ttl,
    )
    return str(again.id)


def _act_on_unreadable(job_id: str, action: str) -> None:
    """Cancel a delayed job, or delete a failed job, that cannot be read.

    Raises:
        InvalidJobOperation: another action, or the job is not among the failed jobs.
    """
    if action == "cancel":
        delayed.cancel(job_id)
        return
    queue = stats.failed_queue_of(connection.client(), job_id)
    if action != "delete" or queue is None:
        raise InvalidJobOperation("the job cannot be read, and it is not among the failed jobs")
    transitions.delete_unreadable(connection.client(), job_id, queue)
