"""Leases: which workers are alive, and which processes they are."""

from __future__ import annotations

from enum import Enum
from typing import Any

import redis
from rq.utils import now

from rqjobs.broker import keys
from rqjobs.broker.keys import LEASES, RETIRED_WORKERS, decode
from rqjobs.broker.scripts import BEGIN_SWEEP, REGISTER_HORSE, RENEW_LEASE, read_together

LEASE_SECONDS = 20  # seconds for which a worker counts as alive without a heartbeat
HEARTBEAT_SECONDS = 5  # seconds between two heartbeats, and between two sweeps
RETIRED_SECONDS = 3600  # seconds for which sweeps look at the claims of a worker that has ended
# Other workers wait this long after a sweep. It is shorter than a heartbeat, so that no turn is
# lost.
SWEEP_LOCK_MILLISECONDS = HEARTBEAT_SECONDS * 1000 - 500


class NoLease(Exception):
    """The worker's lease has expired, so other workers may have taken back its claims."""


class NameTaken(Exception):
    """Another process has the worker's name and a lease."""


def renew_lease(
    connection: redis.Redis, worker: str, where: dict[str, Any], first: bool = False
) -> bool:
    """Renew the lease of `worker` for `LEASE_SECONDS` from now.

    Args:
        where: the host, pids and start times of the worker's processes.
        first: whether this is the worker's first lease.

    Returns:
        True if the worker had no lease: it is the first, or the worker was declared dead and its
        registration was removed.

    Raises:
        NameTaken: the name belongs to another process, which started first, or while this worker
            counted as dead.
    """
    fields = {"process": process_id(where), **where}
    words = [word for pair in fields.items() for word in pair]
    args = [worker, LEASE_SECONDS, int(first), *words]
    reply = decode(RENEW_LEASE.run(connection, [LEASES, keys.process(worker)], args))
    if reply == "name taken":
        raise NameTaken(f"a worker called {worker!r} runs already; choose another --name")
    return reply == "new"


def process_id(where: dict[str, Any]) -> str:
    """A text that differs for any two workers of the same name."""
    return ":".join(str(where.get(field, "")) for field in ("host", "pid", "started"))


def horse_registration(worker: str, process: str, horse: int, started: str) -> tuple[Any, ...]:
    """The command by which a horse registers before its first claim.

    A worker counts as gone only when its parent and its registered horse have ended.
    """
    script_keys = (LEASES, keys.process(worker))
    return ("EVAL", REGISTER_HORSE.source, 2, *script_keys, worker, process, horse, started)


def end_lease(connection: redis.Redis, worker: str) -> None:
    """End the lease of a worker that shuts down and has no claims."""
    with connection.pipeline() as pipe:
        pipe.zadd(RETIRED_WORKERS, {worker: now().timestamp()})
        pipe.zrem(LEASES, worker)
        pipe.delete(keys.process(worker))
        pipe.execute()


def workers_with_claims(connection: redis.Redis) -> list[str]:
    """The workers that may have claims: those with a lease, and those that ended recently."""
    oldest = now().timestamp() - RETIRED_SECONDS
    _, *replies = read_together(
        connection,
        [
            ("ZREMRANGEBYSCORE", RETIRED_WORKERS, 0, oldest),
            ("ZRANGE", LEASES, 0, -1),
            ("ZRANGE", RETIRED_WORKERS, 0, -1),
        ],
    )
    names: set[str] = set()
    for reply in replies:
        if not isinstance(reply, Exception):
            names.update(map(decode, reply))
    return sorted(names)


class SweepPermission(Enum):
    """Whether a worker may sweep now, and whether an expired lease proves a worker dead."""

    TOO_SOON = "too soon"  # another worker has just swept
    LEASES_EXTENDED = "leases extended"  # sweep, but no lease counts as expired
    SWEEP = "sweep"


def begin_sweep(connection: redis.Redis, force: bool = False) -> SweepPermission:
    """Ask Redis for the turn to sweep. `force` asks even if another worker has just swept."""
    reply = BEGIN_SWEEP.run(
        connection,
        [keys.SWEEP_LOCK, keys.LAST_SWEEP, LEASES],
        [SWEEP_LOCK_MILLISECONDS, LEASE_SECONDS, int(force)],
    )
    return SweepPermission(decode(reply))
