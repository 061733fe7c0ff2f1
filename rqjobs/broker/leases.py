"""Leases: which workers are alive, and which processes they are."""

from __future__ import annotations

from enum import Enum
from typing import Any

import redis
from rq.utils import now

from rqjobs.broker import keys
from rqjobs.broker.keys import LEASES, RETIRED_WORKERS, decode
from rqjobs.broker.scripts import BEGIN_SWEEP, REGISTER_HORSE, RENEW_LEASE, read_together

LEASE_SECONDS = 20  # seconds that a worker is believed alive without a heartbeat
HEARTBEAT_SECONDS = 5  # seconds between heartbeats, and between sweeps
RETIRED_SECONDS = 3600  # seconds for which the claims of a worker that has gone are looked at again


class NoLease(Exception):
    """The worker's lease has ended; whatever it had may be somebody else's now."""


class NameTaken(Exception):
    """Another worker of that name has a lease."""


def renew_lease(
    connection: redis.Redis, worker: str, where: dict[str, Any], first: bool = False
) -> bool:
    """Renew the lease of `worker`: it is believed alive for `LEASE` seconds from now. `where` says where it lives.

    True if it had none: this is its first, or it was believed dead and everything of it was forgotten.

    Raises:
        NameTaken: the name is another process's. It is to be the `first`, and that one has a lease; or this one was
            believed dead, and that one started in its place.
    """
    fields = {"process": process_id(where), **where}
    args = [worker, LEASE_SECONDS, int(first), *(part for pair in fields.items() for part in pair)]
    reply = decode(RENEW_LEASE.run(connection, [LEASES, keys.process(worker)], args))
    if reply == "name taken":
        raise NameTaken(f"a worker called {worker!r} runs already; choose another --name")
    return reply == "new"


def process_id(where: dict[str, Any]) -> str:
    """What tells a worker from any other of its name."""
    return ":".join(str(where.get(field, "")) for field in ("host", "pid", "started"))


def horse_registration(worker: str, process: str, horse: int, started: str) -> tuple[Any, ...]:
    """The command with which a horse says that it is there, before it claims anything: only when neither it nor its
    parent lives any more is the worker provably gone."""
    return (
        "EVAL",
        REGISTER_HORSE.source,
        2,
        LEASES,
        keys.process(worker),
        worker,
        process,
        horse,
        started,
    )


def end_lease(connection: redis.Redis, worker: str) -> None:
    """End the lease of a worker that goes in good order, holding no job."""
    with connection.pipeline() as pipe:
        pipe.zadd(RETIRED_WORKERS, {worker: now().timestamp()})
        pipe.zrem(LEASES, worker)
        pipe.delete(keys.process(worker))
        pipe.execute()


def workers_with_claims(connection: redis.Redis) -> list[str]:
    """The names of all workers in whose claims a job may be: those with a lease, and those that have gone lately."""
    _, *replies = read_together(
        connection,
        [
            ("ZREMRANGEBYSCORE", RETIRED_WORKERS, 0, now().timestamp() - RETIRED_SECONDS),
            ("ZRANGE", LEASES, 0, -1),
            ("ZRANGE", RETIRED_WORKERS, 0, -1),
        ],
    )
    return sorted(
        {decode(name) for names in replies if not isinstance(names, Exception) for name in names}
    )


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
        [HEARTBEAT_SECONDS * 1000 - 500, LEASE_SECONDS, int(force)],
    )
    return SweepPermission(decode(reply))
