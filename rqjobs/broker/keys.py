"""The names of the keys in Redis, RQ's and ours."""

from __future__ import annotations

from typing import Any

from rqjobs import config

WAKEUP_CHANNEL = "rqjobs:clock:"  # ...on this channel, with the queue's name behind it, and the due time as the message
LEASES = "rqjobs:workers"
RETIRED_WORKERS = "rqjobs:departed"
ENDED_PARENTS = "rqjobs:waking"
STOPPED = "rqjobs:stopped"
QUEUES = "rq:queues"


def decode(reply: Any) -> str:
    return reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply)


def queue_names_in(members: Any) -> list[str]:
    """Every queue that Redis knows of, by what it said of `rq:queues`, and the configured ones."""
    known = members if isinstance(members, set | list) else []  # an error: no set stands there
    return sorted(
        {decode(key).removeprefix("rq:queue:") for key in known} | set(config.current().queues)
    )
