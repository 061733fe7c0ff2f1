"""The page that enqueues a job: choose a function, fill in its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from flask import redirect, request, url_for
from rq.exceptions import DuplicateJobError

from rqjobs import catalog, connection, pauses, queues
from rqjobs.jobs import Job
from rqjobs.policies import retries, unique
from rqjobs.web.access import Role, requires
from rqjobs.web.forms import arguments, fields, from_job, options
from rqjobs.web.job_view import fetch
from rqjobs.web.rendering import flash, page, pages, unreadable


@pages.get("/enqueue")
@requires(Role.OPERATE)
def enqueue_form() -> Any:
    """The form of a function, filled with the job of `?from=` if there is one."""
    name = request.args.get("function", "")
    function = catalog.current().functions.get(name)
    job_id = request.args.get("from", "")
    if function is None or not job_id:
        return _form(name, {}, {})
    job = fetch(job_id)
    if isinstance(job, Exception):
        return _form(name, {}, {"": f"The job {unreadable(job)}"}, 422)
    filled = from_job.fill_in(job, function)
    return _form(name, filled.given, {}, note=filled.note)


def _form(
    name: str,
    given: Mapping[str, str],
    errors: dict[str, str],
    status: int = 200,
    note: str = "",
) -> Any:
    form = fields.function_form(name)
    function = catalog.current().functions.get(name)
    if function:
        own = catalog.options(function)
        form |= {
            "own_queue": queues.queue_for(function).name,
            "own_retry": retries.describe(own),
            "own_repeat": getattr(own.get("repeat"), "times", 0),
            "job_id": given.get("job_id") or str(uuid4()),
        }
    paused = [pause.name for pause in pauses.paused() if pause.kind == "function"]
    values = {"form": form, "given": given, "errors": errors, "form_note": note}
    return page("enqueue.html", status, paused_functions=paused, **values)


@pages.post("/jobs")
def enqueue() -> Any:
    """Enqueue the job that the form describes. A form that is sent twice makes one job."""
    name = request.form.get("function", "")
    function = catalog.current().functions.get(name)
    if function is None:
        return _form(name, {}, {"function": fields.NO_SUCH_FUNCTION}, 422)
    args, kwargs, errors = arguments.read_arguments(function, request.form)
    form = options.FormReader(request.form)
    chosen = options.read_options(form)
    errors |= form.errors
    job_id = chosen.job_id
    if not errors and not Job.exists(job_id, connection.client()):
        try:
            job_id = _enqueue(function, args, kwargs, chosen)
            if job_id != chosen.job_id:
                flash("This job has the same unique key. No other job was made.")
        except unique.DuplicateJob as error:
            errors[""] = str(error)
        except DuplicateJobError:
            pass  # the same form, sent twice at once
        except (TypeError, ValueError) as error:  # `create_job` refuses with one of these
            errors[""] = str(error)
    if errors:
        return _form(name, request.form, errors, 422)
    return redirect(url_for("rqjobs.job", job_id=job_id), 303)


def _enqueue(function: Any, args: Any, kwargs: Any, chosen: options.EnqueueOptions) -> str:
    """Enqueue the job; returns its id, or that of the job that has its unique key."""
    queue = queues.queue(chosen.queue)
    given = {"args": args, "kwargs": kwargs, "job_id": chosen.job_id, **chosen.job_options}
    if chosen.due:
        return str(queue.enqueue_at(chosen.due, function, **given).id)
    has_key = catalog.options(function).keys() & {"unique", "debounce"}
    if not has_key:  # a form that is sent twice
        given["unique"] = True
    return str(queue.enqueue(function, **given).id)
