"""Commands to running workers, sent as RQ sends its own: a message on the worker's channel."""

from __future__ import annotations

import json

from rq.command import PUBSUB_CHANNEL_TEMPLATE

from rqjobs import connection


def quiet(worker: str) -> bool:
    """Let a worker finish its jobs and take no more, until `resume` or its end.

    Returns:
        Whether a worker of this name listens. Plain RQ workers ignore this command.
    """
    return _send(worker, "quiet")


def resume(worker: str) -> bool:
    """Let a quiet worker take jobs again. Returns whether a worker of this name listens."""
    return _send(worker, "resume")


def stop(worker: str) -> bool:
    """Let a worker shut down as at SIGINT: its job may end within RQJOBS_SHUTDOWN_TIMEOUT.

    Returns:
        Whether a worker of this name listens.
    """
    return _send(worker, "shutdown")


def _send(worker: str, command: str) -> bool:
    channel = PUBSUB_CHANNEL_TEMPLATE % worker
    return bool(connection.client().publish(channel, json.dumps({"command": command})))
