"""The sweep: every few seconds one worker takes back the jobs of dead workers, and finds lost ones.

Any number of sweeps may run at once. Each move is one atomic script that checks the facts again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis

from rqjobs import config
from rqjobs.broker import (
    counters,
    flows,
    keys,
    leases,
    odd_keys,
    pauses,
    recovery,
    scripts,
    transitions,
)
from rqjobs.broker.keys import decode
from rqjobs.broker.places import SCAN_BATCH_KEYS, owners_of, queue_names, started_jobs
from rqjobs.maintenance import failure_groups, new_failures, waiting
from rqjobs.maintenance.liveness import Liveness, WorkerLiveness, death_cause
from rqjobs.maintenance.strays import is_time_for_strays, sweep_strays
from rqjobs.maintenance.sweep_result import SweepResult, log, seen_for, skip_wrong_types
from rqjobs.queues import Queue

# A worker that pops a job from a queue leaves its id in the intermediate list for less than this.
INTERMEDIATE_SECONDS = 60
TRIM_STEPS = 10  # steps of one sweep that bound the failed jobs of a queue


def sweep(
    connection: redis.Redis, force: bool = False, on_progress: Callable[[], None] = lambda: None
) -> SweepResult | None:
    """Return every orphan to the front of its queue, in order, and unregister dead workers.

    Args:
        force: sweep even if another worker has just done so, and search for strays now.
        on_progress: called after each job, so that the caller can renew its lease during a long
            sweep.

    Returns:
        None if another worker has just swept.
    """
    permission = leases.begin_sweep(connection, force)
    if permission is leases.SweepPermission.TOO_SOON:
        return None
    odd_keys.set_aside(connection, odd_keys.SINGLE_KEYS)
    odd_keys.set_aside(connection, odd_keys.WORKER_KEYS, odd_keys.workers(connection))
    search_strays = force or is_time_for_strays(connection)
    all_queues = queue_names(connection) if search_strays else []
    if search_strays:
        odd_keys.set_aside(connection, odd_keys.QUEUE_KEYS, all_queues)
    leases_count = permission is leases.SweepPermission.SWEEP
    current = _Sweep(connection, leases_count, SweepResult(on_progress))
    current.run(search_strays, all_queues)
    return current.result


class _Sweep:
    """One sweep. `own_workers` are the rqjobs workers with a lease, alive or dead."""

    def __init__(self, connection: redis.Redis, leases_count: bool, result: SweepResult):
        self.connection = connection
        self.result = result
        self.liveness = WorkerLiveness(connection, leases_count)
        self.own_workers = _workers_with_lease(connection)

    def run(self, search_strays: bool, all_queues: list[str]) -> None:
        self.liveness.check(self.own_workers)
        for worker in self.own_workers:
            with skip_wrong_types(f"the sweep of worker {worker}"):
                self._sweep_worker(worker)
        for queue in _busy_queues(self.connection, self.result):
            self.result.on_progress()
            with skip_wrong_types(f"the sweep of queue {queue}"):
                self._sweep_started(queue)
                self._sweep_intermediate(queue)
                transitions.promote(
                    self.connection, queue, Queue.DEFAULT_TIMEOUT, crashed_only=True
                )
                self._trim_failed(queue)
        if search_strays:
            self._sweep_retired_workers()
            sweep_strays(self.connection, self.liveness.now, self.result)
            waiting.check(self.connection, all_queues, self.result.on_progress)
            if self.connection.exists(keys.UNIQUE):
                recovery.drop_unique_keys(self.connection, self.result.on_progress)
            failure_groups.check(self.connection, self.liveness.now, self.result.on_progress)
        enqueue_waiting_dependents(self.connection, self.result.on_progress)
        flows.sweep(self.connection, Queue.DEFAULT_TIMEOUT, self.result.on_progress)
        pauses.unpark_all(self.connection, self.result.on_progress)
        if self.connection.exists(keys.WAITING_KEYS):
            recovery.wake_due(self.connection)  # there may be no scheduler
            recovery.check_waiting(self.connection, self.result.on_progress)
        new_failures.follow_all(self.connection, self.result.on_progress)
        counters.roll_up(self.connection)  # the next sweep adds the rest

    def _sweep_worker(self, worker: str) -> None:
        state = self.liveness.state(worker)
        if state is Liveness.ALIVE:
            return
        self.liveness.end_horse(worker)
        self._reclaim(worker, death_cause(state), self.liveness.processes[worker])

    def _sweep_retired_workers(self) -> None:
        """Take back jobs that a blocking pop delivered to a worker after its end."""
        for worker in leases.workers_with_claims(self.connection):
            if worker not in self.own_workers and self.connection.exists(keys.claims(worker)):
                with skip_wrong_types(f"the sweep of worker {worker}"):
                    self._reclaim(worker, recovery.DeathCause.LEASE_EXPIRED)

    def _reclaim(self, worker: str, cause: recovery.DeathCause, process: str = "") -> None:
        queues = queue_names(self.connection)
        outcomes = recovery.reclaim(self.connection, worker, queues, cause, process=process)
        if self.connection.zscore(keys.LEASES, worker) is None:
            log.warning("worker %s is gone; removed its registration", worker)
        for job_id, outcome in outcomes.items():
            queue = decode(self.connection.hget(keys.job(job_id), "origin") or b"?")
            self.result.note(outcome, job_id, queue, "claimed", worker)

    def _sweep_started(self, queue: str) -> None:
        """Recover the jobs of dead plain RQ workers, which are only in RQ's registry of running jobs."""
        started = started_jobs(self.connection, queue)
        owners = owners_of(self.connection, started)
        orphans = []
        for (job_id, execution), owner in zip(started, owners, strict=True):
            if owner in self.own_workers or self.liveness.state(owner) is Liveness.ALIVE:
                continue
            command = ("HGET", keys.job(job_id), "enqueued_at")
            (enqueued_at,) = scripts.read_together(self.connection, [command])
            if not isinstance(enqueued_at, bytes):
                enqueued_at = b""
            orphans.append((enqueued_at, job_id, execution, owner))
        # Each returns to the front of the queue, so the oldest must be the last.
        for _enqueued_at, job_id, execution, owner in sorted(orphans, reverse=True):
            outcome = recovery.recover(self.connection, job_id, queue, "wip", execution, owner)
            self.result.note(outcome, job_id, queue, "running", owner)

    def _sweep_intermediate(self, queue: str) -> None:
        """Recover ids that a plain RQ worker has left in the intermediate list.

        RQ does not note the worker. An id is recovered at once if no live worker serves the queue,
        else after `INTERMEDIATE_SECONDS`.
        """
        members = self.connection.lrange(keys.intermediate(queue), 0, -1)
        ids = [decode(member) for member in members]
        sightings = keys.seen_intermediate(queue)
        outdated = {decode(field) for field in self.connection.hkeys(sightings)} - set(ids)
        if outdated:  # an id that comes back later must not look old then
            self.connection.hdel(sightings, *outdated)
        if not ids:
            return
        is_served = self._is_served(queue)
        for job_id in ids:  # the newest is the first, so the oldest ends at the front
            if not is_served or seen_for(
                self.connection, sightings, job_id, self.liveness.now, INTERMEDIATE_SECONDS
            ):
                outcome = recovery.recover(self.connection, job_id, queue, "intermediate")
                self.result.note(outcome, job_id, queue, "popped by a dead worker")

    def _trim_failed(self, queue: str) -> None:
        """Take some steps to bound the failed jobs of a queue. The next sweep goes on."""
        settings = config.current()
        deleted = 0
        for _ in range(TRIM_STEPS):
            step, is_over = transitions.trim_failed(
                self.connection, queue, settings.max_failed_jobs, settings.max_failed_age_seconds
            )
            deleted += step
            self.result.on_progress()
            if not is_over:
                break
        if deleted:
            log.warning(
                "deleted %d failed jobs of %s: more than RQJOBS_MAX_FAILED_JOBS (%d)",
                deleted,
                queue,
                settings.max_failed_jobs,
            )

    def _is_served(self, queue: str) -> bool:
        for key in self.connection.smembers(keys.listeners(queue)):
            worker = decode(key).removeprefix(keys.WORKER_PREFIX)
            if self.liveness.state(worker) is Liveness.ALIVE:
                return True
        return False


def _workers_with_lease(connection: redis.Redis) -> list[str]:
    """The rqjobs workers with a lease. Members that are not names are removed."""
    members: Any = connection.zrange(keys.LEASES, 0, -1)
    names = [decode(member) for member in members if _is_name(member)]
    odd = [member for member in members if not _is_name(member)]
    if odd:
        log.error(
            "removed %d members of rqjobs:leases that are not names (written by another program)",
            len(odd),
        )
        connection.zrem(keys.LEASES, *odd)
    return names


def _is_name(member: bytes) -> bool:
    return decode(member).encode() == member


def _busy_queues(connection: redis.Redis, result: SweepResult) -> list[str]:
    """The queues that a sweep has to look at, found in one round trip for each thousand."""
    cursor = b"0"
    configured = list(config.current().queues)
    found: set[str] = set()
    limits = config.current().max_failed_jobs, config.current().max_failed_age_seconds
    while True:
        cursor, *names = scripts.BUSY_QUEUES.run(
            connection, [keys.QUEUES], [cursor, SCAN_BATCH_KEYS, *limits, *configured]
        )
        configured = []  # the first call has looked at them
        found.update(map(decode, names))
        result.on_progress()
        if cursor == b"0":
            return sorted(found)


def enqueue_waiting_dependents(
    connection: redis.Redis, on_progress: Callable[[], None] = lambda: None
) -> int:
    """Enqueue the dependents of ended jobs that were not enqueued when the job ended.

    Returns how many.
    """
    count = 0
    for member in map(decode, connection.smembers(keys.ENDED_PARENTS)):
        with skip_wrong_types(f"the dependents of job {member}"):
            enqueued = recovery.enqueue_dependents(
                connection, member, Queue.DEFAULT_TIMEOUT, on_progress
            )
            count += len(enqueued)
    return count


def remove_dead_listeners(connection: redis.Redis, queues: list[str]) -> None:
    """Remove workers that no longer exist from RQ's lists of the workers of these queues."""
    commands = [("SMEMBERS", keys.listeners(queue)) for queue in queues]
    listed: dict[str, Any] = {}
    for queue, members in zip(queues, scripts.read_together(connection, commands), strict=True):
        if isinstance(members, set | list):  # otherwise the key has the wrong type
            listed[queue] = members
    worker_keys = sorted({key for members in listed.values() for key in members})
    exist = scripts.read_together(connection, [("EXISTS", key) for key in worker_keys])
    gone = {key for key, exists in zip(worker_keys, exist, strict=True) if exists == 0}
    for queue, members in listed.items():
        dead = gone.intersection(members)
        if dead:
            connection.srem(keys.listeners(queue), *dead)
            connection.srem(keys.WORKERS, *dead)
