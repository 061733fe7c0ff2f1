"""rq-dashboard at `<prefix>/rq/`, repaired: its pages, scripts and addresses, with our own views.

Upstream's blueprint is not registered, because nearly all of its views and its connection would
have to be replaced. Ours has its name, its files and its addresses. The repairs, and the reasons:

- Scripts: upstream writes description, result, meta, traceback and the names of workers and queues
  into the page as HTML, and the queue's name from the address into a script. `RepairedLoader` makes
  its templates escape every value. It looks in no template folder of the host application, so none
  can replace a template. As a second line of defence, a Content-Security-Policy allows only scripts
  with a nonce.
- Payloads: a payload that the configured serializer cannot read is shown as unreadable. It is never
  unpickled, and never a 500.
- Workers come from `stats`: upstream answers 500 while a job with JSON data runs.
- Requeue is our script, so `meta` survives and no crash loses the job. It is POST only.
- Delete and *Empty* take a job from every place in one step, and refuse a running job: its worker
  would continue, and write the remains of the job back. *Compact* is our queue's: it moves no id.
- A job, page, registry or Redis instance that does not exist is a 404. Reading changes nothing.
- Connections are those of the pool: upstream opens one for each poll.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Iterator
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Any

import redis
import rq
import rq_dashboard.web as upstream
from flask import Blueprint, Flask, Response, current_app, jsonify, make_response, request, url_for
from jinja2 import Environment, FileSystemLoader
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.utils import get_call_string
from werkzeug.exceptions import default_exceptions

from rqjobs import config, connection, hiding, rq_patches, serializers, stats
from rqjobs.broker import transitions
from rqjobs.broker.places import queue_names
from rqjobs.broker.transitions import DeleteOutcome
from rqjobs.jobs import Job
from rqjobs.queues import Queue
from rqjobs.web.access import Role, can, requires
from rqjobs.web.rendering import CONNECTION_ERRORS, TRACEBACK_MAX_BYTES

UPSTREAM_FOLDER = Path(upstream.__file__).parent
POLL_MILLISECONDS = 2500
UPSTREAM_PLACES = {  # upstream's name of a registry -> the place in `stats`
    "queued": "queued",
    "scheduled": "scheduled",
    "deferred": "deferred",
    "started": "running",
    "finished": "finished",
    "failed": "failed",
    "canceled": "canceled",
}
DATE_FIELDS = ("created_at", "enqueued_at", "started_at", "ended_at")
MAX_PARENTS = 100  # of a job that are shown
LISTED_JOB_FIELDS = ("id", "description", "exc_info", *DATE_FIELDS)
REGISTRY_RULE = f"<path:queue_name>/<any({','.join(UPSTREAM_PLACES)}):registry_name>"
LIST_RULE = (
    f"{REGISTRY_RULE}/<int(min=1,max=1000):per_page>/<any(asc,dsc):order>"
    "/<int(min=1,max=1000000000):page>"
)
DASHBOARD_CONTENT_POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{}' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class RepairedLoader(FileSystemLoader):
    """Loads upstream's templates, with these patterns replaced."""

    REPAIRS = (
        # The next repair escapes this value. Escaped twice, it would show entities.
        (r"\$\('<div/>'\)\.text\(([\w.]+)\)\.html\(\)", r"\1"),
        (r"<%=", "<%-"),
        (r"'{{ ([\w.]+) }}'", r"{{ \1|tojson }}"),
        (r'<script type="text/javascript">', '<script nonce="{{ nonce }}">'),
        # The host application may have no static folder.
        (r"url_for\('static'", "url_for('rq_dashboard.static'"),
        # Dark colours, a way back to our pages, and no button that the viewer may not use.
        (
            r"(</head>)",
            r"""{% if has_pages %}<link rel="stylesheet" """
            r"""href="{{ url_for('rqjobs.static', filename='dashboard.css') }}">{% endif %}\1""",
        ),
        (
            r"<body>",
            r"""<body{% if has_pages and not can('admin') %} class="only-reads"{% endif %}>""",
        ),
        (
            r"""(<div class="collapse navbar-collapse")""",
            r"""{% if has_pages %}<a class="nav-link rqjobs-back" """
            r"""href="{{ url_for('rqjobs.home') }}">Back to rqjobs</a>{% endif %}\1""",
        ),
        # Upstream ignores that the server refused an action.
        (
            r"(var AUTOREFRESH_FLAG = 1;)",
            r"\1 $(document).ajaxError((event, reply, sent) => { "
            r"if (sent.type === 'POST') alert(reply.responseJSON?.message || 'Refused'); "
            r"});",
        ),
    )

    def get_source(self, environment: Environment, template: str) -> Any:
        """Overridden to repair the source."""
        source, *others = super().get_source(environment, template)
        for pattern, replacement in self.REPAIRS:
            source = re.sub(pattern, replacement, source)
        return source, *others


templates = Environment(loader=RepairedLoader(UPSTREAM_FOLDER / "templates"), autoescape=True)
templates.globals["url_for"] = url_for
templates.globals["can"] = can
dashboard = Blueprint("rq_dashboard", __name__, static_folder=str(UPSTREAM_FOLDER / "static"))
dashboard.add_url_rule("/favicon.ico", view_func=upstream.favicon)


def mount(app: Flask, url_prefix: str) -> None:
    """Serve the dashboard at `<url_prefix>/rq/`. The caller must protect it.

    Redis is needed for requests only.

    Afterwards this process does not unpickle by RQ's default, and imports no name from Redis.

    Raises:
        ConfigError: the app has a dashboard already.
    """
    if dashboard.name in app.blueprints:
        raise config.ConfigError(
            "this app has rq-dashboard already; do not register it yourself: rqjobs serves it, "
            "repaired and behind its login, at /rq/"
        )
    rq_patches.install(shared=True)
    upstream.config.serializer = serializers.ConfiguredSerializer
    app.register_blueprint(dashboard, url_prefix=f"{url_prefix.rstrip('/')}/rq")


def json_response(content: dict[str, Any], status: int = 200) -> Response:
    response = jsonify(content)
    response.status_code = status
    response.headers["Cache-Control"] = "no-store"
    return response


@dashboard.errorhandler(redis.ConnectionError)
@dashboard.errorhandler(redis.TimeoutError)
@dashboard.errorhandler(redis.ResponseError)
@dashboard.errorhandler(NoSuchJobError)
@dashboard.errorhandler(InvalidJobOperation)
def error_response(error: Exception) -> Response:
    """404 for no such job, 409 for a refused action, 503 if Redis does not answer or refuses."""
    status, message = _explain(error)
    if request.method == "POST" or request.path.endswith(".json"):
        return json_response({"status": "ERROR", "message": message}, status)
    return make_response(default_exceptions[status](message).get_response())


def _explain(error: Exception) -> tuple[int, str]:
    if isinstance(error, NoSuchJobError):
        return 404, "There is no such job."
    if connection.refusal_code(error):
        return 503, connection.explain(error)
    if isinstance(error, InvalidJobOperation | redis.ResponseError):
        return 409, str(error)
    return 503, "Redis does not answer."


# Pages


def render(template: str, **context: Any) -> Response:
    """A page of upstream's. Its scripts carry a nonce.

    Raises:
        redis.RedisError: Redis does not answer, so there would be nothing to show.
    """
    connection.client().ping()
    nonce = secrets.token_urlsafe(16)
    html = templates.get_template(f"rq_dashboard/{template}.html").render(
        nonce=nonce,
        has_pages="rqjobs.home" in current_app.view_functions,
        current_instance=0,
        instance_list=[connection.mask_password(connection.url())],
        rq_url_prefix=url_for(".queues_overview"),
        rq_dashboard_version=upstream.rq_dashboard_version,
        rq_version=rq.VERSION,
        poll_interval=POLL_MILLISECONDS,
        active_tab=template,
        **context,
    )
    response = make_response(html)
    response.headers["Content-Security-Policy"] = DASHBOARD_CONTENT_POLICY.format(nonce)
    response.headers["Cache-Control"] = "no-store"
    return response


@dashboard.get("/0/view/queues")
@dashboard.get("/0/view")
@dashboard.get("/0/")
@dashboard.get("/")  # the decorator that is applied first: url_for gives this address
def queues_overview() -> Response:
    return render("queues")


@dashboard.get("/0/view/workers")
def workers_overview() -> Response:
    return render("workers")


@dashboard.get("/0/view/jobs")
@dashboard.get(f"/0/view/jobs/{LIST_RULE}")
def jobs_overview(
    queue_name: str = "",
    registry_name: str = "queued",
    per_page: int = 8,
    order: str = "asc",
    page: int = 1,
) -> Response:
    names = config.current().queues
    if not queue_name:
        queue_name = "default" if "default" in names else names[0]
    return render(
        "jobs",
        queue={"name": queue_name},
        queues=[{"name": name} for name in queue_names(connection.client())],
        registry_name=registry_name,
        per_page=per_page,
        order=order,
        page=page,
        enable_delete=registry_name != "started",
    )


@dashboard.get("/0/view/job/<job_id>")
def job_view(job_id: str) -> Response:
    return render("job", id=job_json(job_id)["id"], enable_delete=True)


# Data that the pages poll


def list_url(
    queue: str, registry: str, per_page: int = 8, order: str = "asc", page: int = 1
) -> str:
    return url_for(
        ".jobs_overview",
        queue_name=queue,
        registry_name=registry,
        per_page=per_page,
        order=order,
        page=page,
    )


@dashboard.get("/0/data/queues.json")
def list_queues() -> Response:
    names = queue_names(connection.client())
    places = [(name, place) for name in names for place in UPSTREAM_PLACES.values()]
    counts = iter(stats.count_jobs(connection.client(), places))
    return json_response({"queues": [_queue_json(name, counts) for name in names]})


def _queue_json(name: str, counts: Iterator[int]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name}
    for registry in UPSTREAM_PLACES:
        field = f"{registry}_job_registry_count"
        if registry == "queued":
            field = "count"
        row[field] = next(counts)
        row[f"{registry}_url"] = list_url(name, registry)
    return row


@dashboard.get(f"/0/data/jobs/{LIST_RULE}.json")
def list_jobs(
    queue_name: str, registry_name: str, per_page: int, order: str, page: int
) -> Response:
    client = connection.client()
    place = UPSTREAM_PLACES[registry_name]
    (total,) = stats.count_jobs(client, [(queue_name, place)])
    start = (page - 1) * per_page
    ids = stats.job_ids(
        client, queue_name, place, start, start + per_page - 1, backwards=order == "dsc"
    )
    jobs = []
    for job_id in ids:
        with contextlib.suppress(NoSuchJobError):
            job = job_json(job_id, in_list=True)
            jobs.append({name: job[name] for name in LISTED_JOB_FIELDS})

    def link(number: int) -> dict[str, Any]:
        return {
            "number": number,
            "url": list_url(queue_name, registry_name, per_page, order, number),
        }

    pages = ceil(total / per_page)
    pagination = {
        "current_page": page,
        "num_pages": pages,
        "first_page": link(1),
        "last_page": link(pages or 1),
        "pages_in_window": [
            link(number) for number in upstream.pagination_window(total, page, per_page)
        ],
    }
    if page > 1:
        pagination["prev_page"] = link(page - 1)
    if page < pages:
        pagination["next_page"] = link(page + 1)
    return json_response(
        {"name": queue_name, "registry_name": registry_name, "jobs": jobs, "pagination": pagination}
    )


@dashboard.get("/0/data/job/<job_id>.json")
def job_info(job_id: str) -> Response:
    job = job_json(job_id)
    return json_response({**job, "description": job["call"]})


@dashboard.get("/0/data/workers.json")
def list_workers() -> Response:
    workers = [_worker_json(worker) for worker in stats.snapshot(connection.client()).workers]
    workers.sort(key=lambda row: (row["state"], row["queues"], row["name"]))
    return json_response({"workers": workers})


def _worker_json(worker: stats.WorkerStats) -> dict[str, Any]:
    row = {
        "name": worker.name,
        "pid": worker.pid,
        "queues": worker.queues,
        "state": worker.state,
        "successful_job_count": worker.succeeded,
        "failed_job_count": worker.failed,
        "version": worker.version,
        "python_version": worker.python_version,
        "current_job": "idle",
    }
    if worker.job_id:
        with contextlib.suppress(NoSuchJobError):
            row["current_job"] = job_json(worker.job_id)
    return row


def job_json(job_id: str, in_list: bool = False) -> dict[str, Any]:
    """The facts about a job that upstream's scripts show, or those that they show `in_list`.

    A fact that cannot be read is replaced by a text with the reason.

    Raises:
        NoSuchJobError: there is no such job.
    """
    facts: dict[str, Any] = {
        "id": job_id,
        "job_id": job_id,
        "origin": "",
        "status": "unreadable",
        "result": None,
        "exc_info": None,
        "metadata": "{}",
        **dict.fromkeys(DATE_FIELDS),
        "created_at": "unknown",
    }
    job = stats.read_job(connection.client(), job_id)
    if isinstance(job, Exception):
        texts = ("description", "call_string", "call")
        return facts | dict.fromkeys(texts, unreadable(job))
    facts |= {name: date_text(getattr(job, name)) for name in DATE_FIELDS}
    status = job.get_status(refresh=False)
    if not in_list or status == "failed":
        facts |= _result_json(job)
    if in_list and job.description:
        return facts | {"description": job.description}
    return (
        facts
        | _call_json(job)
        | _parents_json(job)
        | {
            "origin": (job.origin or "")[:260],
            "status": status,
            "metadata": json.dumps(to_json(_shown(job.meta)), ensure_ascii=False),
        }
    )


def _result_json(job: Job) -> dict[str, Any]:
    try:
        latest = job.latest_result()
        if not latest:
            return {}
        trace = transitions.cut_middle(latest.exc_string or "", TRACEBACK_MAX_BYTES)
        return {"result": to_json(_shown(latest.return_value)), "exc_info": trace or None}
    except CONNECTION_ERRORS:
        raise
    except Exception as error:  # RQ may raise anything for a damaged result
        return {"result": unreadable(error)}


def _shown(value: Any) -> Any:
    """`value` with RQJOBS_HIDE applied."""
    return hiding.hide(config.current().hide, value)


def _call_json(job: Job) -> dict[str, Any]:
    """The call in short and in full, the latter after a description of the enqueuer's own."""
    try:
        short = job.get_call_string()
        call = get_call_string(job.func_name, *job.shown_arguments())
        if job.description not in (None, short):
            call = f"{job.description}: {call}"
    except Exception as error:  # the payload cannot be read
        short = job.description
        call = f"{job.description} {unreadable(error)}"
    return {"description": job.description or short, "call_string": short, "call": call}


def _parents_json(job: Job) -> dict[str, Any]:
    if not isinstance(job._dependency_ids, list) or not job._dependency_ids:
        return {}
    parents = [str(parent)[:260] for parent in job._dependency_ids[:MAX_PARENTS]]
    statuses = []
    for parent in parents:
        is_there = stats.job_exists(connection.client(), parent)
        statuses.append("active" if is_there else "expired")
    return {"depends_on": parents, "depends_on_status": statuses}


def date_text(value: datetime | None) -> str | None:
    """A date as upstream's scripts read it; None if its year is out of range."""
    try:
        text: str | None = upstream.serialize_date(value)
    except (OverflowError, ValueError):
        return None
    return text


def unreadable(error: Exception) -> str:
    return f"(cannot be read: {type(error).__name__}: {str(error)[:500]})"


def to_json(value: Any) -> Any:
    """`value` as JSON has it. A value that JSON lacks becomes its repr."""
    try:
        return json.loads(json.dumps(value, default=repr, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return repr(value)
    except Exception as error:  # a `__repr__` of the user's may raise
        return unreadable(error)


# Actions


@dashboard.post("/job/<job_id>/delete")
@requires(Role.ADMIN)
def delete_job_view(job_id: str) -> Response:
    """Delete a job from every place.

    Raises:
        NoSuchJobError: there is no such job.
        InvalidJobOperation: the job is running.
    """
    outcome = transitions.delete_job(connection.client(), job_id)
    if outcome is DeleteOutcome.GONE:
        raise NoSuchJobError
    if outcome is DeleteOutcome.RUNNING:
        raise InvalidJobOperation("This job is running, so it was not deleted. Stop it first.")
    return json_response({"status": "OK"})


@dashboard.post("/job/<job_id>/requeue")
@requires(Role.ADMIN)
def requeue_job_view(job_id: str) -> Response:
    transitions.requeue(connection.client(), job_id)
    return json_response({"status": "OK"})


@dashboard.post("/requeue/<path:queue_name>")
@requires(Role.ADMIN)
def requeue_all(queue_name: str) -> Response:
    count = transitions.requeue_all(connection.client(), [queue_name])
    return json_response({"status": "OK", "count": count})


@dashboard.post(f"/queue/{REGISTRY_RULE}/empty")
@requires(Role.ADMIN)
def empty_queue(queue_name: str, registry_name: str) -> Response:
    """Delete the jobs of a registry.

    Raises:
        InvalidJobOperation: the registry is that of running jobs.
    """
    if registry_name == "started":
        raise InvalidJobOperation(
            "These jobs are running, so they were not deleted. Stop them instead."
        )
    client = connection.client()
    ids = stats.job_ids(client, queue_name, UPSTREAM_PLACES[registry_name])
    outcomes = transitions.delete(client, ids, queue_name)
    return json_response({"status": "OK", "count": outcomes.count(DeleteOutcome.DELETED)})


@dashboard.post("/queue/<path:queue_name>/compact")
@requires(Role.ADMIN)
def compact_queue(queue_name: str) -> Response:
    Queue(queue_name, connection=connection.client()).compact()
    return json_response({"status": "OK"})
