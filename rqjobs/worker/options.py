"""What a worker is made with: RQ's own classes and clients give way to ours, and what is neither is refused."""

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
    """Check what a worker is made with, and put ours in the place of RQ's own; returns its Redis client.

    Raises:
        SystemExit: something cannot be used; the message says what.
    """
    works = options.get("prepare_for_work", True)
    rq_patches.install(shared=not works)
    try:
        if works:
            catalog.must_load()
            catalog.flask_app()
            client = _ours(given)
            if issubclass(
                worker, rq.Worker
            ):  # its processes need a server, and not a fake in this one's memory
                client = foreign_clients.adopt(client)
        else:  # a look at a worker that runs elsewhere
            client = foreign_clients.adopt(given or connection.client())
        for option, own, stock, base in (
            ("job_class", worker.job_class, rq.job.Job, Job),
            ("queue_class", worker.queue_class, rq.Queue, Queue),
        ):
            options[option] = _class(option, options.get(option), own, stock, base)
        _check_serializer(options.get("serializer"))
        options["serializer"] = serializers.ConfiguredSerializer
        return client
    except config.ConfigError as error:
        raise SystemExit(f"rqjobs: {error}") from None  # `rq` would show a traceback


def names(queues: Any) -> list[Any]:
    """The names of the queues that a worker is given, each once."""
    given = [queues] if isinstance(queues, str | rq.Queue) else list(queues)
    return list(dict.fromkeys(queue if isinstance(queue, str) else queue.name for queue in given))


def _ours(given: Any) -> redis.Redis:
    """The client to use for the one that `rq`, or a program, passes.

    Raises:
        ConfigError: it is for another Redis than REDIS_URL.
    """
    if given is None:
        return connection.client()
    adopted, configured = foreign_clients.adopt(given), config.current().redis_url
    told = _told_by_option()
    if told is False and foreign_clients.is_default(given):
        return connection.client()
    if not configured:
        connection.use(adopted)
        return adopted
    if not foreign_clients.is_same_server(adopted, connection.client()):
        raise config.ConfigError(
            f"told to use the Redis at {foreign_clients.described(adopted)}, but REDIS_URL names "
            f"{foreign_clients.described(connection.client())}; set REDIS_URL, and leave out --url"
        )
    return connection.client() if told is False else adopted


def _told_by_option() -> bool | None:
    """Whether RQ's command line was told a Redis by an option; None if it is not RQ's command line that starts us."""
    context = click.get_current_context(silent=True)
    if context is None or context.command not in (
        rq.cli.workers.worker,
        rq.cli.workers.worker_pool,
    ):
        return None
    return bool(context.params.get("url") or context.params.get("config"))


def _class(option: str, given: Any, own: Any, stock: type, base: type) -> Any:
    """The class to use where `given` is asked for: `own` stands for RQ's `stock` one, a subclass of `base` for itself.

    Raises:
        ConfigError: it is neither.
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
    """Raises ConfigError if the serializer asked for is not the one that the settings name."""
    named = config.current().serializer
    same: tuple[Any, ...] = (
        None,
        DEFAULT_SERIALIZER_CLASS,
        DefaultSerializer,
        serializers.ConfiguredSerializer,
    )
    if named == "json":
        same = (
            *same,
            "json",
            "rq.serializers.JSONSerializer",
            JSONSerializer,
            serializers.JSONSerializer,
        )
    else:
        same = (*same, serializers.SignedPickleSerializer)
    if given not in same:
        shown = given if isinstance(given, str) else catalog.name_of(given)
        raise config.ConfigError(
            f"the serializer {shown!r} is not the one in force, RQJOBS_SERIALIZER={named!r}; set "
            f"that, and leave out --serializer"
        )
