"""TODO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis

from rqjobs import config
from rqjobs.broker import keys, leases, odd_keys, recovery, scripts, transitions
from rqjobs.broker.keys import decode
from rqjobs.broker.places import SCAN_BATCH_KEYS, owners_of, queue_names, started_jobs
from rqjobs.maintenance.liveness import Liveness, WorkerLiveness, death_cause
from rqjobs.maintenance.strays import is_time_for_strays, sweep_strays
from rqjobs.maintenance.sweep_result import SweepResult, log, seen_for, skip_wrong_types
from rqjobs.queues import Queue

INTERMEDIATE_SECONDS = 60  # seconds, while a live worker may be about to take the id out


def sweep(
    connection: redis.Redis, force: bool = False, on_progress: Callable[[], None] = lambda: None
) -> SweepResult | None:
    """Put every orphan back, in order, at the front of its queue; forget the workers that are dead.

    `on_progress` is called between the moves: after a great fire a sweep may take longer than a lease.

    Any number of sweeps may run at once: each move is one atomic step that checks again. None if somebody else has
    just done it, unless `force`.
    """
    permission = leases.begin_sweep(connection, force)
    if permission is leases.SweepPermission.TOO_SOON:
        return None
    odd_keys.set_aside(connection, odd_keys.SINGLE_KEYS)
    odd_keys.set_aside(connection, odd_keys.WORKER_KEYS, odd_keys.workers(connection))
    thorough = force or is_time_for_strays(connection)
    if thorough:
        odd_keys.set_aside(connection, odd_keys.QUEUE_KEYS, queue_names(connection))
    result, owners = (
        SweepResult(on_progress),
        WorkerLiveness(connection, leases_count=permission is leases.SweepPermission.SWEEP),
    )
    ours = _workers_with_lease(connection)
    owners.check(ours)
    for worker in ours:
        with skip_wrong_types(f"the sweep of worker {worker}"):
            if owners.state(worker) is not Liveness.ALIVE:
                owners.end_horse(worker)
            _sweep_claims(
                connection, worker, owners.state(worker), owners.processes[worker], result
            )
    for queue in _busy_queues(connection, result):
        on_progress()
        with skip_wrong_types(f"the sweep of queue {queue}"):
            _sweep_started(connection, queue, owners, set(ours), result)
            _sweep_intermediate(connection, queue, owners, result)
            transitions.promote(connection, queue, Queue.DEFAULT_TIMEOUT, crashed_only=True)
    if thorough:
        for worker in leases.workers_with_claims(
            connection
        ):  # something may have come into the hands of one that has gone
            if worker not in ours and connection.exists(keys.claims(worker)):
                with skip_wrong_types(f"the sweep of worker {worker}"):
                    _sweep_claims(connection, worker, Liveness.EXPIRED, "", result)
        sweep_strays(connection, owners.now, result)
    enqueue_waiting_dependents(connection, on_progress)
    return result


def _workers_with_lease(connection: redis.Redis) -> list[str]:
    """Our workers, dead or alive; what is no name is removed from among them."""
    members: Any = connection.zrange(keys.LEASES, 0, -1)
    names = [name for member in members if (name := decode(member)).encode() == member]
    if odd := [member for member in members if decode(member).encode() != member]:
        log.error(
            "%d members of rqjobs:leases are no names, and are removed: somebody else wrote them",
            len(odd),
        )
        connection.zrem(keys.LEASES, *odd)
    return names


def enqueue_waiting_dependents(
    connection: redis.Redis, on_progress: Callable[[], None] = lambda: None
) -> None:
    """Let jobs run that waited for one which has ended, and were not woken with its end."""
    for member in map(decode, connection.smembers(keys.ENDED_PARENTS)):
        with skip_wrong_types(f"what waits for job {member}"):
            recovery.enqueue_dependents(connection, member, Queue.DEFAULT_TIMEOUT, on_progress)


def _sweep_claims(
    connection: redis.Redis, worker: str, state: Liveness, process: str, result: SweepResult
) -> None:
    if state is Liveness.ALIVE:
        return
    outcomes = recovery.reclaim(
        connection, worker, queue_names(connection), death_cause(state), process=process
    )
    if connection.zscore(keys.LEASES, worker) is None:
        log.warning("worker %s died without a word and is forgotten", worker)
    for job_id, outcome in outcomes.items():
        queue = decode(connection.hget(keys.job(job_id), "origin") or b"?")
        result.note(outcome, job_id, queue, "claimed", worker)


def _busy_queues(connection: redis.Redis, result: SweepResult) -> list[str]:
    """Those at which there is something to sweep: of thousands of queues a few, found in a round trip a thousand."""
    cursor, besides, found = b"0", list(config.current().queues), dict[str, None]()
    while True:
        cursor, *names = scripts.BUSY_QUEUES.run(
            connection, [keys.QUEUES], [cursor, SCAN_BATCH_KEYS, *besides]
        )
        found.update(dict.fromkeys(map(decode, names)))
        result.on_progress()
        besides = []
        if cursor == b"0":
            return sorted(found)


def remove_dead_listeners(connection: redis.Redis, queues: list[str]) -> None:
    """Remove workers that RQ does not know any more from its lists of who listens to these queues."""
    replies = scripts.read_together(
        connection, [("SMEMBERS", keys.listeners(queue)) for queue in queues]
    )
    listed = {
        queue: reply
        for queue, reply in zip(queues, replies, strict=True)
        if isinstance(reply, set | list)
    }
    script_keys = sorted({key for members in listed.values() for key in members})
    there = dict(
        zip(
            script_keys,
            scripts.read_together(connection, [("EXISTS", key) for key in script_keys]),
            strict=True,
        )
    )
    for queue, members in listed.items():
        if gone := [key for key in members if there[key] == 0]:
            connection.srem(keys.listeners(queue), *gone)
            connection.srem(keys.WORKERS, *gone)


def _sweep_started(
    connection: redis.Redis, queue: str, owners: WorkerLiveness, ours: set[str], result: SweepResult
) -> None:
    """The claims of stock workers, which stand only in RQ's registry."""
    started = started_jobs(connection, queue)
    dead = []
    for (job_id, execution), owner in zip(started, owners_of(connection, started), strict=True):
        if owner not in ours and owners.state(owner) is not Liveness.ALIVE:
            since = scripts.read_together(connection, [("HGET", keys.job(job_id), "enqueued_at")])[
                0
            ]
            dead.append((since if isinstance(since, bytes) else b"", job_id, execution, owner))
    for _, job_id, execution, owner in sorted(
        dead, reverse=True
    ):  # each goes in front of the one before
        outcome = recovery.recover(connection, job_id, queue, "wip", execution, owner)
        result.note(outcome, job_id, queue, "running", owner)


def _sweep_intermediate(
    connection: redis.Redis, queue: str, owners: WorkerLiveness, result: SweepResult
) -> None:
    ids = [decode(job_id) for job_id in connection.lrange(keys.intermediate(queue), 0, -1)]
    seen = keys.seen_intermediate(queue)
    left = {decode(field) for field in connection.hkeys(seen)} - set(ids)
    if left:  # what a worker took out in the meantime must not look old when it comes by again
        connection.hdel(seen, *left)
    if not ids:
        return
    listeners = connection.smembers(keys.listeners(queue))
    served = any(
        owners.state(decode(key).removeprefix(keys.WORKER_PREFIX)) is Liveness.ALIVE
        for key in listeners
    )
    for job_id in ids:  # LMOVE put the newest first, so the oldest ends up in front
        if not served or seen_for(connection, seen, job_id, owners.now, INTERMEDIATE_SECONDS):
            outcome = recovery.recover(connection, job_id, queue, "intermediate")
            result.note(outcome, job_id, queue, "popped by nobody who lives")
