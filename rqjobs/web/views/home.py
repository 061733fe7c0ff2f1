"""The pages: home with the enqueue form, a job, the failed jobs, the workers. All behind the guard."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import uuid4

import redis
from flask import abort, redirect, render_template, request, session, url_for
from redis.exceptions import WatchError
from rq.command import send_stop_job_command
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from werkzeug.exceptions import HTTPException

from rqjobs import catalog, config, connection, delayed, queues, stats
from rqjobs.broker import transitions
from rqjobs.broker.keys import decode
from rqjobs.jobs import Job
from rqjobs.web.auth import back, page, pages
from rqjobs.web.forms import fields as forms
from rqjobs.web.job_view import (
    ACTIONS,
    actions_in,
    cut,
    describe,
    failed_in,
    fetch,
    label,
    part,
    row,
)
from rqjobs.web.views.delayed import reschedule_form

PER_PAGE = 25
AT_ONCE = 1000  # failed jobs that one click puts back: it must end within a web server's time-out


@pages.get("/")
def home() -> Any:
    return _home(request.args.get("function", ""), {}, {})


def _home(name: str, given: Mapping[str, str], errors: dict[str, str], status: int = 200) -> Any:
    jobs = catalog.current()
    function = jobs.functions.get(name)
    modules: dict[str, list[str]] = {}
    for known, _ in jobs:
        modules.setdefault(known.rpartition(".")[0], []).append(known)
    form: dict[str, Any] = {
        "modules": modules,
        "broken": jobs.errors,
        "name": name,
        "known": function is not None,
    }
    if function:
        own = catalog.options(function)
        form |= {
            "summary": forms.documentation(function)[0],
            "fields": forms.fields(function),
            "queues": forms.queue_choices(),
            "own_queue": queues.queue_for(function).name,
            "units": forms.UNITS,
            "own_retry": getattr(own.get("retry"), "max", 0),
            "own_repeat": getattr(own.get("repeat"), "times", 0),
            "job_id": given.get("job_id") or str(uuid4()),
            "zone": datetime.now().astimezone().tzname(),
        }
    return page("home.html", status, form=form, given=given, errors=errors, **_activity())


@pages.get("/live")
def live() -> Any:
    """The tables of the home page, as they are now."""
    return page("_activity.html", **_activity())


def _activity() -> dict[str, Any]:
    now, jobs = stats.overview(
        connection.client(), {"running": 8, "queued": 4, "scheduled": 4, "finished": 8, "failed": 5}
    )
    failed = jobs.pop("failed")
    rows = {job.id: row(job) for recent in jobs.values() for job in recent}
    now.queues.sort(key=lambda queue: [*config.current().queues, queue.name].index(queue.name))
    return {
        "now": now,
        "failed": [row(job) for job in failed],
        "recent": sorted(rows.values(), key=lambda job: job["when"], reverse=True)[:15],
    }


@pages.post("/jobs")
def enqueue() -> Any:
    name = request.form.get("function", "")
    function = catalog.current().functions.get(name)
    if function is None:
        return _home(name, {}, {"function": "There is no such job function; choose one."}, 422)
    args, kwargs, errors = forms.read(function, request.form)
    options, due, more = forms.read_options(request.form)
    errors |= more
    if not errors and not Job.exists(options["job_id"], connection.client()):
        try:
            queue = queues.queue(request.form["queue"])
            if due:
                queue.enqueue_at(due, function, args=args, kwargs=kwargs, **options)
            else:
                queue.enqueue(function, args=args, kwargs=kwargs, unique=True, **options)
        except DuplicateJobError:
            pass  # the same form, sent twice
        except (
            TypeError,
            ValueError,
        ) as error:  # everything that create_job refuses is one of these
            errors[""] = str(error)
    if errors:
        return _home(name, request.form, errors, 422)
    return redirect(url_for("rqjobs.job", job_id=options["job_id"]), 303)


@pages.get("/jobs/<job_id>")
def job(job_id: str) -> Any:
    return page("job.html", job=describe(job_id), **reschedule_form())


@pages.get("/jobs/<job_id>/state")
def state(job_id: str) -> Any:
    """The job's status, whether it has ended, and what its page shows below."""
    shown = describe(job_id)
    return {
        "id": job_id,
        "status": shown["status"],
        "ended": shown["ended"],
        "html": render_template("rqjobs/_job.html", job=shown),
    }


@pages.post("/jobs/<job_id>/<action>")
def act(job_id: str, action: str) -> Any:
    if action not in ACTIONS:
        abort(404)
    target, note = job_id, ACTIONS[action][1]
    try:
        found = fetch(job_id)
        note += f" ({label(found, job_id)})"
        if isinstance(found, Exception):
            delayed.cancel(job_id) if action == "cancel" else _bury(job_id, action)
        else:
            target = _act(found, action)
    except (redis.ConnectionError, redis.TimeoutError, HTTPException):
        raise
    except (
        Exception
    ) as error:  # the job's state forbids it; or whatever a hostile or damaged hash makes RQ raise
        if connection.refusal_code(error):
            raise
        note = f"Nothing was done: {cut(str(error), 500)}"
        action = ""
    session["rqjobs_note"] = note
    return back("rqjobs.home") if action == "delete" else back("rqjobs.job", job_id=target)


def _act(job: Job, action: str) -> str:
    """Do `action` if the job's state allows it now; returns the id of the job to look at afterwards."""
    status = job.get_status(refresh=False).value
    if action not in actions_in(status):
        raise InvalidJobOperation(f"the job is {status} by now")
    if action == "requeue":
        job.requeue()
    elif action == "cancel" and status == "scheduled":
        delayed.cancel(job.id)
    elif action == "stop":
        send_stop_job_command(job.connection, job.id, serializer=job.serializer)
    elif action == "again":
        return str(
            queues.queue(job.origin)
            .enqueue(
                str(job.func_name),
                args=job.args,
                kwargs=job.kwargs,
                job_timeout=job.timeout,
                result_ttl=job.result_ttl,
                failure_ttl=job.failure_ttl,
            )
            .id
        )
    elif action == "delete":
        if transitions.delete(job.connection, [job.id], job.origin) != ["deleted"]:
            raise InvalidJobOperation("the job is running or gone by now")
    else:
        with job.connection.pipeline() as pipe:
            pipe.watch(job.key)
            if decode(pipe.hget(job.key, "status") or b"gone") != status:
                raise InvalidJobOperation("the job went on meanwhile")
            pipe.multi()
            job.cancel(pipeline=pipe)
            try:
                pipe.execute()
            except WatchError:
                raise InvalidJobOperation("the job went on meanwhile") from None
    return job.id


def _bury(job_id: str, action: str) -> None:
    """Delete a job that cannot be read from the failed jobs."""
    queue = failed_in(job_id)
    if action != "delete" or queue is None:
        raise InvalidJobOperation(
            "the job's hash cannot be read, and it is not among the failed jobs"
        )
    transitions.delete(connection.client(), [job_id], queue)
    connection.client().delete(
        Job.key_for(job_id)
    )  # what it says of its queue may be unreadable too


@pages.get("/failed")
def failed() -> Any:
    """The dead letters of all queues or of `?queue=`, the newest first."""
    chosen = request.args.get("queue", "")
    client = connection.client()
    queues = stats.snapshot(client).queues
    counts = {queue.name: queue.failed for queue in queues}
    stopped = [
        job_id
        for queue in queues
        if queue.stopped and chosen in ("", queue.name)
        for _, job_id in transitions.failed_jobs(client, queue.name, which="stopped")
    ]
    total = sum(count for name, count in counts.items() if chosen in ("", name))
    number, pages = part(total, PER_PAGE)
    newest: list[tuple[float, str]] = []
    for name in [name for name, count in counts.items() if count and chosen in ("", name)]:
        newest += transitions.failed_jobs(client, name, number * PER_PAGE, "newest")
    ids = [
        job_id
        for _, job_id in sorted(newest, reverse=True)[(number - 1) * PER_PAGE : number * PER_PAGE]
    ]
    jobs = [
        row(job) if job else {"id": job_id}
        for job_id in ids
        for job in [stats.fetch(client, job_id)]
    ]
    return page(
        "failed.html",
        jobs=jobs,
        counts=counts,
        chosen=chosen,
        total=total,
        number=number,
        at_once=AT_ONCE,
        pages=pages,
        stopped=stopped[-PER_PAGE:],
        stopped_total=len(stopped),
    )


@pages.post("/failed/requeue")
def requeue_all() -> Any:
    """Put back the failed jobs of all queues or of one, the oldest first, each in one atomic step."""
    chosen, client, done = request.form.get("queue", ""), connection.client(), 0
    names = stats.queue_names(client)
    found = [
        (name, job_id)
        for name in names
        if chosen in ("", name)
        for _, job_id in transitions.failed_jobs(client, name, AT_ONCE)
    ][:AT_ONCE]
    for name, job_id in found:
        try:
            transitions.requeue(client, job_id)
            done += 1
        except NoSuchJobError:
            client.zrem(f"rq:failed:{name}", job_id)  # its hash has expired
        except InvalidJobOperation:
            continue  # somebody else was faster
        except redis.ResponseError as error:
            if connection.refusal_code(error):
                raise
            continue  # its queue's key, for example, is no list
    left = sum(
        queue.failed for queue in stats.snapshot(client).queues if chosen in ("", queue.name)
    )
    session["rqjobs_note"] = f"{done:,} jobs are back in their queues." + (
        f" {left:,} are left." if left else ""
    )
    return redirect(url_for("rqjobs.failed", queue=chosen or None), 303)


@pages.get("/workers")
def workers() -> Any:
    return page("workers.html", workers=stats.snapshot(connection.client()).workers)
