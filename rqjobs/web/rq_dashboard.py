"""rq-dashboard at `<prefix>/rq/`, repaired: its pages, scripts and addresses, over views of our own.

Upstream's blueprint is not registered itself, because nearly all of its views and its connection maker would have to
be replaced; ours has its name, its files and its addresses. What is repaired, and why:

- Scripts. Upstream writes description, result, meta, traceback, worker and queue names into the page as HTML, and the
  queue's name from the address into a script. Its templates are read through `Repaired`, which makes every value
  escape; no template folder of the host application is asked, so none can undo that. As a second line, a
  Content-Security-Policy admits the page's own script by a nonce, and no other inline script.
- Payloads. What the configured serializer cannot read is said to be unreadable; it is never unpickled, never a 500.
- Workers come from `stats`: upstream answers 500 while a job with JSON data runs.
- Requeue is the ledger's script, so `meta` survives and no crash loses the job; and it is POST only.
- Delete and *Empty* take a job from every place in one step, and refuse one that is running: its worker would go on,
  and write the remains of the job back. *Compact* is our queue's, which moves no id.
- A job, page, registry or Redis instance that does not exist is a 404. Reading changes nothing and cleans nothing up.
- Connections are the pooled client's: upstream opens one for each poll.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Any

import redis
import rq
import rq_dashboard.web as upstream
from flask import Blueprint, Flask, Response, jsonify, make_response, request, url_for
from jinja2 import Environment, FileSystemLoader
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.utils import get_call_string
from werkzeug.exceptions import default_exceptions

from rqjobs import config, connection, rq_patches, serializers, stats
from rqjobs.broker import scripts, transitions
from rqjobs.broker.keys import decode
from rqjobs.broker.places import queue_names
from rqjobs.jobs import Job
from rqjobs.queues import Queue

FILES = Path(upstream.__file__).parent
POLL_INTERVAL = 2500  # milliseconds
OUTAGE = (redis.ConnectionError, redis.TimeoutError)
REGISTRIES = {
    "queued": "queue",
    "scheduled": "scheduled",
    "deferred": "deferred",
    "started": "wip",
    "finished": "finished",
    "failed": "failed",
    "canceled": "canceled",
}
MOMENTS = ("created_at", "enqueued_at", "started_at", "ended_at")
REGISTRY = f"<path:queue_name>/<any({','.join(REGISTRIES)}):registry_name>"
LIST = f"{REGISTRY}/<int(min=1,max=1000):per_page>/<any(asc,dsc):order>/<int(min=1,max=1000000000):page>"
CSP = (
    "default-src 'none'; script-src 'self' 'nonce-{}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Repaired(FileSystemLoader):
    """Upstream's templates, with these patterns replaced."""

    REPAIRS = (
        (
            r"\$\('<div/>'\)\.text\(([\w.]+)\)\.html\(\)",
            r"\1",
        ),  # escaped by the next one; twice would show entities
        (r"<%=", "<%-"),
        (r"'{{ ([\w.]+) }}'", r"{{ \1|tojson }}"),
        (r'<script type="text/javascript">', '<script nonce="{{ nonce }}">'),
        (
            r"url_for\('static'",
            "url_for('rq_dashboard.static'",
        ),  # the host application may have no such folder
        (
            r"(var AUTOREFRESH_FLAG = 1;)",
            r"\1 $(document).ajaxError((event, reply, sent) => { "
            r"if (sent.type === 'POST') alert(reply.responseJSON?.message || 'Refused'); "
            r"});",
        ),  # upstream ignores that a button was refused
    )

    def get_source(self, environment: Environment, template: str) -> Any:
        source, *rest = super().get_source(environment, template)
        for pattern, replacement in self.REPAIRS:
            source = re.sub(pattern, replacement, source)
        return source, *rest


TEMPLATES = Environment(loader=Repaired(FILES / "templates"), autoescape=True)
TEMPLATES.globals["url_for"] = url_for
dashboard = Blueprint("rq_dashboard", __name__, static_folder=str(FILES / "static"))
dashboard.add_url_rule("/favicon.ico", view_func=upstream.favicon)


def mount(app: Flask, url_prefix: str) -> None:
    """Serve the dashboard at `<url_prefix>/rq/`. Who calls this guards it. Redis is asked when a request comes.

    Afterwards this process does not unpickle by RQ's default, nor import a name that it found in Redis.

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


def reply(content: dict[str, Any], status: int = 200) -> Response:
    response = jsonify(content)
    response.status_code, response.headers["Cache-Control"] = status, "no-store"
    return response


@dashboard.errorhandler(redis.ConnectionError)
@dashboard.errorhandler(redis.TimeoutError)
@dashboard.errorhandler(redis.ResponseError)
@dashboard.errorhandler(NoSuchJobError)
@dashboard.errorhandler(InvalidJobOperation)
def refused(error: Exception) -> Response:
    status, message = 503, "Redis does not answer."
    if isinstance(error, NoSuchJobError):
        status, message = 404, "There is no such job (any more)."
    elif connection.refusal_code(error):
        message = connection.explain(error)
    elif isinstance(error, InvalidJobOperation | redis.ResponseError):
        status, message = 409, str(error)
    if request.method == "POST" or request.path.endswith(".json"):
        return reply({"status": "ERROR", "message": message}, status)
    return make_response(default_exceptions[status](message).get_response())


# Pages


def show(template: str, **context: Any) -> Response:
    connection.client().ping()  # without Redis there is nothing to show
    nonce = secrets.token_urlsafe(16)
    response = make_response(
        TEMPLATES.get_template(f"rq_dashboard/{template}.html").render(
            nonce=nonce,
            current_instance=0,
            instance_list=[connection.mask_password(connection.url())],
            rq_url_prefix=url_for(".queues_overview"),
            rq_dashboard_version=upstream.rq_dashboard_version,
            rq_version=rq.VERSION,
            poll_interval=POLL_INTERVAL,
            active_tab=template,
            **context,
        )
    )
    response.headers["Content-Security-Policy"] = CSP.format(nonce)
    response.headers["Cache-Control"] = "no-store"
    return response


@dashboard.get("/0/view/queues")
@dashboard.get("/0/view")
@dashboard.get("/0/")
@dashboard.get("/")  # the first to be applied, so this is what url_for gives
def queues_overview() -> Response:
    return show("queues")


@dashboard.get("/0/view/workers")
def workers_overview() -> Response:
    return show("workers")


@dashboard.get("/0/view/jobs")
@dashboard.get(f"/0/view/jobs/{LIST}")
def jobs_overview(
    queue_name: str = "",
    registry_name: str = "queued",
    per_page: int = 8,
    order: str = "asc",
    page: int = 1,
) -> Response:
    names = config.current().queues
    queue = {"name": queue_name or ("default" if "default" in names else names[0])}
    return show(
        "jobs",
        queue=queue,
        queues=[{"name": name} for name in queue_names(connection.client())],
        registry_name=registry_name,
        per_page=per_page,
        order=order,
        page=page,
        enable_delete=registry_name != "started",
    )


@dashboard.get("/0/view/job/<job_id>")
def job_view(job_id: str) -> Response:
    return show("job", id=facts(job_id)["id"], enable_delete=True)


# What the pages poll


def key(registry: str, queue: str) -> str:
    return f"rq:{REGISTRIES[registry]}:{queue}"


def link(queue: str, registry: str, per_page: int = 8, order: str = "asc", page: int = 1) -> str:
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
    counts = iter(sizes([(name, registry) for name in names for registry in REGISTRIES]))
    rows: list[dict[str, Any]] = [{"name": name} for name in names]
    for row in rows:
        for registry in REGISTRIES:
            row["count" if registry == "queued" else f"{registry}_job_registry_count"] = next(
                counts
            )
            row[f"{registry}_url"] = link(row["name"], registry)
    return reply({"queues": rows})


def sizes(places: list[tuple[str, str]]) -> list[int]:
    """How many jobs each (queue, registry) has; where something else stands, none."""
    commands = [
        ("LLEN" if registry == "queued" else "ZCARD", key(registry, name))
        for name, registry in places
    ]
    return [
        size if isinstance(size, int) else 0
        for size in scripts.read_together(connection.client(), commands)
    ]


def job_ids(
    queue: str, registry: str, first: int = 0, last: int = -1, backwards: bool = False
) -> list[str]:
    """The ids from `first` to `last` in the order of the registry, or backwards."""
    command: tuple[Any, ...] = ("ZRANGE", first, last, *["REV"] * backwards)
    if registry == "queued":
        command = ("LRANGE", -1 - last, -1 - first) if backwards else ("LRANGE", first, last)
    (members,) = scripts.read_together(
        connection.client(), [(command[0], key(registry, queue), *command[1:])]
    )
    if isinstance(members, Exception):
        return []
    if registry == "queued" and backwards:
        members = members[::-1]
    return [member.decode(errors="replace").partition(":")[0] for member in members]


@dashboard.get(f"/0/data/jobs/{LIST}.json")
def list_jobs(
    queue_name: str, registry_name: str, per_page: int, order: str, page: int
) -> Response:
    (total,), jobs = sizes([(queue_name, registry_name)]), []
    for job_id in job_ids(
        queue_name, registry_name, (page - 1) * per_page, page * per_page - 1, order == "dsc"
    ):
        with contextlib.suppress(NoSuchJobError):
            job = facts(job_id, whole=False)
            jobs.append({name: job[name] for name in ("id", "description", "exc_info", *MOMENTS)})
    pages = ceil(total / per_page)

    def to(number: int) -> dict[str, Any]:
        return {"number": number, "url": link(queue_name, registry_name, per_page, order, number)}

    pagination = {
        "current_page": page,
        "num_pages": pages,
        "first_page": to(1),
        "last_page": to(pages or 1),
        "pages_in_window": [
            to(number) for number in upstream.pagination_window(total, page, per_page)
        ],
        **({"prev_page": to(page - 1)} if page > 1 else {}),
        **({"next_page": to(page + 1)} if page < pages else {}),
    }
    return reply(
        {"name": queue_name, "registry_name": registry_name, "jobs": jobs, "pagination": pagination}
    )


@dashboard.get("/0/data/job/<job_id>.json")
def job_info(job_id: str) -> Response:
    job = facts(job_id)
    return reply({**job, "description": job["call"]})


@dashboard.get("/0/data/workers.json")
def list_workers() -> Response:
    rows = []
    for worker in stats.snapshot(connection.client()).workers:
        row = {
            "name": worker.name,
            "pid": worker.pid,
            "queues": worker.queues,
            "state": worker.state,
            "successful_job_count": worker.succeeded,
            "failed_job_count": worker.failed,
            "current_job": "idle",
        }
        for name in ("version", "python_version"):
            row[name] = decode(connection.client().hget(f"rq:worker:{worker.name}", name) or b"")
        if worker.job_id:
            with contextlib.suppress(NoSuchJobError):
                row["current_job"] = facts(worker.job_id)
        rows.append(row)
    return reply(
        {"workers": sorted(rows, key=lambda row: (row["state"], row["queues"], row["name"]))}
    )


def facts(job_id: str, whole: bool = True) -> dict[str, Any]:
    """What upstream's scripts show of a job, or only what they show of it in a list; what of it cannot be read, is said
    to be so.

    Raises:
        NoSuchJobError: it is gone.
    """
    found: dict[str, Any] = {
        "id": job_id,
        "job_id": job_id,
        "origin": "",
        "status": "unreadable",
        "result": None,
        "exc_info": None,
        "metadata": "{}",
        **dict.fromkeys(MOMENTS),
        "created_at": "unknown",
    }
    try:
        job = Job.fetch(job_id, connection=connection.client())
    except (NoSuchJobError, *OUTAGE):
        raise
    except Exception as error:
        if not connection.client().exists(
            f"rq:job:{job_id}"
        ):  # RQ refuses some ids before it looks
            raise NoSuchJobError from None
        return found | dict.fromkeys(("description", "call_string", "call"), unreadable(error))
    found |= {name: moment(getattr(job, name)) for name in MOMENTS}
    status = job.get_status(refresh=False)
    try:
        latest = job.latest_result() if whole or status == "failed" else None
        if latest:
            found |= {"result": plain(latest.return_value), "exc_info": latest.exc_string}
    except OUTAGE:
        raise
    except Exception as error:
        found["result"] = unreadable(error)
    if not whole and job.description:
        return found | {"description": job.description}
    try:
        short = job.get_call_string()
        call = get_call_string(job.func_name, job.args, job.kwargs)
        if job.description not in (None, short):
            call = f"{job.description}: {call}"
    except Exception as error:
        short, call = job.description, f"{job.description} {unreadable(error)}"
    found |= {
        "origin": (job.origin or "")[:260],
        "status": status,
        "description": job.description or short,
        "call_string": short,
        "call": call,
        "metadata": json.dumps(plain(job.meta), ensure_ascii=False),
    }
    if isinstance(job._dependency_ids, list) and job._dependency_ids:
        parents = [str(parent) for parent in job._dependency_ids]
        there = [connection.client().exists(f"rq:job:{parent}") for parent in parents]
        found |= {
            "depends_on": parents,
            "depends_on_status": ["active" if one else "expired" for one in there],
        }
    return found


def moment(value: datetime | None) -> str | None:
    """As upstream's scripts read it; None for what is in no year that there is."""
    try:
        written: str | None = upstream.serialize_date(value)
        return written
    except (OverflowError, ValueError):
        return None


def unreadable(error: Exception) -> str:
    return f"(cannot be read: {type(error).__name__}: {str(error)[:500]})"


def plain(value: Any) -> Any:
    """`value` as JSON has it; what JSON lacks, as its repr."""
    try:
        return json.loads(json.dumps(value, default=repr, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return repr(value)
    except Exception as error:  # of a `__repr__` of the user's
        return unreadable(error)


# What the buttons do


@dashboard.post("/job/<job_id>/delete")
def delete_job_view(job_id: str) -> Response:
    origin = connection.client().hget(f"rq:job:{job_id}", "origin")
    outcome = (
        transitions.delete(connection.client(), [job_id], decode(origin))[0]
        if origin is not None
        else "gone"
    )
    if outcome == "gone":
        raise NoSuchJobError
    if outcome == "running":
        raise InvalidJobOperation("This job is running, so it was not deleted. Stop it first.")
    return reply({"status": "OK"})


@dashboard.post("/job/<job_id>/requeue")
def requeue_job_view(job_id: str) -> Response:
    transitions.requeue(connection.client(), job_id)
    return reply({"status": "OK"})


@dashboard.post("/requeue/<path:queue_name>")
def requeue_all(queue_name: str) -> Response:
    count = 0
    for _, job_id in transitions.failed_jobs(connection.client(), queue_name):
        with contextlib.suppress(NoSuchJobError, InvalidJobOperation):
            transitions.requeue(connection.client(), job_id)
            count += 1
    return reply({"status": "OK", "count": count})


@dashboard.post(f"/queue/{REGISTRY}/empty")
def empty_queue(queue_name: str, registry_name: str) -> Response:
    if registry_name == "started":
        raise InvalidJobOperation(
            "These jobs are running, so they were not deleted. Stop them instead."
        )
    outcomes = transitions.delete(
        connection.client(), job_ids(queue_name, registry_name), queue_name
    )
    return reply({"status": "OK", "count": outcomes.count("deleted")})


@dashboard.post("/queue/<path:queue_name>/compact")
def compact_queue(queue_name: str) -> Response:
    Queue(queue_name, connection=connection.client()).compact()
    return reply({"status": "OK"})
