"""The options of a worker: RQ's classes and clients are replaced by ours, others are refused."""

from __future__ import annotations

from typing import Any

import click
import redis
import rq
import rq.cli.workers
import rq.job
from rq.defaults import DEFAULT_SERIALIZER_CLASS
from rq.serializers import DefaultSerializer, JSONSerializer
from rq.utils import import_attribute

from rqjobs import catalog, config, connection, rq_patches, serializers
from rqjobs.jobs import Job
from rqjobs.queues import Queue
from rqjobs.worker import foreign_clients


def prepare(worker: Any, given: Any, options: dict[str, Any]) -> redis.Redis:
    """Check the options of a worker, replace RQ's own values in them, and return its Redis client.

    `given`: the client that the worker was made with, or None. An object that only looks at a
    worker of another process (RQ's `prepare_for_work=False`) imports no job modules.

    Raises:
        SystemExit: an option cannot be used; the message names it. `rq` would show a traceback.
    """
    works = options.get("prepare_for_work", True)
    rq_patches.install(shared=not works)
    try:
        if works:
            catalog.must_load()
            client = _choose_client(given)
            if issubclass(worker, rq.Worker):
                # Its processes need a server: a fake Redis is in this process's memory only.
                client = foreign_clients.adopt(client)
        else:
            client = foreign_clients.adopt(given or connection.client())
        for option, own, stock, base in (
            ("job_class", worker.job_class, rq.job.Job, Job),
            ("queue_class", worker.queue_class, rq.Queue, Queue),
        ):
            options[option] = _choose_class(option, options.get(option), own, stock, base)
        _check_serializer(options.get("serializer"))
        options["serializer"] = serializers.ConfiguredSerializer
        return client
    except config.ConfigError as error:
        raise SystemExit(f"rqjobs: {error}") from None


def queue_names(queues: Any) -> list[Any]:
    """The names of the queues that a worker was made with, each once, in order.

    `queues`: one queue or several, each an `rq.Queue` or a name.
    """
    if isinstance(queues, str | rq.Queue):
        queues = [queues]
    names = [queue if isinstance(queue, str) else queue.name for queue in queues]
    return list(dict.fromkeys(names))


def _choose_client(given: Any) -> redis.Redis:
    """The client to use for the one that `rq`, or a program, has passed.

    Raises:
        ConfigError: it is for another Redis than REDIS_URL.
    """
    if given is None:
        return connection.client()
    adopted = foreign_clients.adopt(given)
    is_explicit = _is_redis_explicit()
    if is_explicit is False and foreign_clients.is_default(given):
        return connection.client()
    if not config.current().redis_url:
        connection.use(adopted)
        return adopted
    configured = connection.client()
    if not foreign_clients.is_same_server(adopted, configured):
        raise config.ConfigError(
            f"this worker was given the Redis at {foreign_clients.describe(adopted)}, but "
            f"REDIS_URL names {foreign_clients.describe(configured)}; set REDIS_URL, and leave out "
            f"--url"
        )
    return configured if is_explicit is False else adopted


def _is_redis_explicit() -> bool | None:
    """Whether an option of RQ's command line names the Redis. None outside RQ's command line."""
    context = click.get_current_context(silent=True)
    commands = (rq.cli.workers.worker, rq.cli.workers.worker_pool)
    if context is None or context.command not in commands:
        return None
    return bool(context.params.get("url") or context.params.get("config"))


def _choose_class(option: str, given: Any, own: Any, stock: type, base: type) -> Any:
    """The class to use: `own` instead of RQ's `stock` class, or the given subclass of `base`.

    Raises:
        ConfigError: the class is neither.
    """
    chosen = import_attribute(given) if isinstance(given, str) else given
    if chosen is None or chosen is stock:
        chosen = own
    if not (isinstance(chosen, type) and issubclass(chosen, base)):
        raise config.ConfigError(
            f"the {option} {catalog.name_of(chosen)} is not derived from rqjobs.{base.__name__}, "
            f"so jobs could get lost; derive it from that, or leave it out"
        )
    return chosen


def _check_serializer(given: Any) -> None:
    """Accept RQ's default and the configured serializer, under any of their names.

    Raises:
        ConfigError: the option names another serializer.
    """
    configured = config.current().serializer
    accepted: list[Any] = [
        None,
        DEFAULT_SERIALIZER_CLASS,
        DefaultSerializer,
        serializers.ConfiguredSerializer,
    ]
    if configured == "json":
        accepted += ["json", "rq.serializers.JSONSerializer"]
        accepted += [JSONSerializer, serializers.JSONSerializer]
    else:
        accepted.append(serializers.SignedPickleSerializer)
    if given not in accepted:
        name = given if isinstance(given, str) else catalog.name_of(given)
        raise config.ConfigError(
            f"the serializer {name!r} is not the configured one, RQJOBS_SERIALIZER={configured!r}; "
            f"set that, and leave out --serializer"
        )
