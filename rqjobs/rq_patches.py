"""Every attribute of RQ that rqjobs replaces, each with its reason.

A subclass cannot do this: RQ's classes, its command line and rq-dashboard read these attributes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import redis
import rq.cli.workers
import rq.job
import rq.queue
import rq.repeat
import rq.results
import rq.serializers
import rq.suspension
import rq.webhook
import rq.worker.base

from rqjobs import catalog, config, jobs, logs, serializers, stored_results, texts, times, webhooks
from rqjobs.connection import client, is_transient

LOGGERS = (
    "rqjobs",
    "rqjobs.web",  # the Flask app's
    "rq.worker",
    "rq.job",
    "rq.queue",
    "rq.registry",
    "rq.scheduler",
    "rq.webhook",
    "rq.utils",
)
# The attributes that `install` replaces, besides `SERIALIZER_ALIASES["pickle"]`.
ATTRIBUTES: tuple[tuple[Any, str], ...] = (
    (rq.serializers, "PickleSerializer"),
    (rq.job, "import_attribute"),
    (rq.results.Result, "restore"),
    (rq.job, "str_to_date"),
    (rq.worker.base, "traceback"),
    (rq.queue, "traceback"),
    (rq.repeat.Repeat, "schedule"),
    (rq.webhook, "urlopen"),
)


def install(shared: bool = False) -> None:
    """Let this process neither unpickle, nor import, nor call a foreign host for data from Redis.

    For the processes of rqjobs: the worker, the web server, the command line. In a process that is
    `shared` with a program of the user's, RQ's queues go on writing pickle. May be called again.
    """
    replace_pickle(shared)
    look_names_up()
    limit_what_is_read()
    parse_dates_faster()
    make_tracebacks_of_any_exception()
    repeat_in_order()
    limit_webhooks()
    clean_log_lines()


@contextlib.contextmanager
def installed_for_now() -> Iterator[None]:
    """Replace the attributes for a `with` block: in a test, while a job runs as in a worker."""
    before = [(owner, name, vars(owner)[name]) for owner, name in ATTRIBUTES]
    alias = rq.serializers.SERIALIZER_ALIASES["pickle"]
    install()
    try:
        yield
    finally:
        rq.serializers.SERIALIZER_ALIASES["pickle"] = alias
        for owner, name, value in before:
            setattr(owner, name, value)


def replace_pickle(shared: bool = False) -> None:
    """RQ unpickles `meta` and results if a caller has passed no serializer.

    `Job.fetch`, groups, the stop-job command and the dashboard pass none. All of them call
    `resolve_serializer(None)`, which returns this attribute of RQ's module.
    """
    if shared and rq.serializers.PickleSerializer is serializers.ConfiguredSerializer:
        return  # a worker or `create_app` of this process has installed the stricter one
    default: Any = serializers.ConfiguredSerializer
    if shared:
        default = serializers.SharedSerializer
    rq.serializers.PickleSerializer = default
    rq.serializers.SERIALIZER_ALIASES["pickle"] = default


def look_names_up() -> None:
    """RQ imports the function or callback that a job names; the catalog only looks the name up."""
    rq.job.import_attribute = lambda name: catalog.current().lookup(name)


def limit_what_is_read() -> None:
    """RQ unpacks a traceback from Redis of any size; a small compressed one can fill the memory."""
    rq.results.Result.restore = stored_results.BoundedResult.restore  # type: ignore[method-assign]


def parse_dates_faster() -> None:
    """RQ reads dates with `strptime`, which takes thirty times as long as `parse_date`."""
    rq.job.str_to_date = times.parse_date  # type: ignore[assignment]


def make_tracebacks_of_any_exception() -> None:
    """RQ makes tracebacks with Python's `traceback`, which raises if code of the exception does."""
    rq.worker.base.traceback = rq.queue.traceback = texts


def repeat_in_order() -> None:
    """RQ takes the intervals of a `Repeat` from the end, and counts in the machine's local time."""
    rq.repeat.Repeat.schedule = staticmethod(jobs.repeat)  # type: ignore[method-assign]


def limit_webhooks() -> None:
    """RQ follows a webhook's redirect to any host; ours follows it to an allowed host only.

    RQ's time limit is for each read, so a slow receiver kept a worker from its next job.
    """
    rq.webhook.urlopen = webhooks.open_within_limit  # type: ignore[assignment]


def clean_log_lines() -> None:
    """RQ logs names and descriptions from Redis, which can hold characters that a terminal obeys.

    A handler or filter of the user's that raises would end the worker in the middle of a log line.
    """
    for name in LOGGERS:
        logs.protect(logging.getLogger(name))


def wait_for_redis_at_start() -> None:
    """RQ's command line asks for the suspension before it makes a worker, and ends without Redis.

    The worker waits for Redis, and checks the suspension itself. This one is installed when the
    worker's module is imported, because RQ's command line calls nothing else of ours before.
    """
    rq.cli.workers.is_suspended = _is_suspended


def _is_suspended(connection: redis.Redis, worker: Any = None) -> bool:
    logs.tolerate_any_encoding()
    if config.test_socket() is not None:  # this is RQ's client, which may be for the real Redis
        return False
    try:
        return bool(rq.suspension.is_suspended(connection, worker))
    except Exception as error:
        refused = isinstance(error, redis.AuthenticationError)
        if is_transient(error) and not refused:
            return False
        if isinstance(error, TypeError):  # the URL has an option that redis-py does not have
            _check_url()
        raise


def _check_url() -> None:
    """Exit with one line instead of RQ's traceback if REDIS_URL cannot be used."""
    try:
        client()
    except config.ConfigError as error:
        raise SystemExit(f"rqjobs: {error}") from None
