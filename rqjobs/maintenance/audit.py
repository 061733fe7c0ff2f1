"""The audit: where every job is, and which are lost or in two places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from time import sleep
from typing import Any

import redis

from rqjobs.broker import keys, odd_keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.broker.places import (
    PLACES,
    SCAN_BATCH_KEYS,
    claimed_ids,
    claims_of,
    count_places,
    ids_in_places,
    owners_of,
    queue_names,
    started_jobs,
)
from rqjobs.jobs import Job
from rqjobs.maintenance.liveness import Liveness, WorkerLiveness
from rqjobs.maintenance.strays import has_ended

ACTIVE_STATUSES = ("queued", "started", "scheduled")


# What helps a job that is deferred behind one in this state: nothing enqueues it by itself, as in RQ, because only a
# person knows whether it may run without a canceled or deleted one.
REMEDIES = {
    "failed": "requeue that one, or cancel this job",
    "stopped": "requeue that one, or cancel this job",
    "canceled": "enqueue that one again under its id, or cancel this job",
    "over": "stock RQ enqueued this job when that one had ended; let it run: queue.enqueue_job(job)",
    "gone": "it was deleted or has expired; cancel this job, or let it run without: queue.enqueue_job(job)",
}


@dataclass
class Audit:
    """Counts of every place by queue, the jobs that break P1 with the reason, and remarks that do not."""

    places: dict[str, dict[str, int]]
    breaches: dict[str, str]
    remarks: list[str]


def audit(connection: redis.Redis, settle: float = 2.0) -> Audit:
    """Look at every job. What seems wrong is looked at again after `settle` seconds, because a job may be moving.

    Finds: a job in no active place that has not ended, and one that is in two (or twice in one). Remarks on: jobs of
    dead workers (the next sweep puts them back) and jobs deferred behind one that failed or is gone.
    """
    queues = queue_names(connection)
    suspects = _suspects(connection, queues)
    if suspects:
        sleep(settle)
        suspects &= _suspects(connection, queues)
    counts = count_places(connection, queues)
    empty = dict.fromkeys(PLACES, 0)
    breaches = {}
    for job_id in sorted(suspects):
        try:
            reason = _breach(connection, job_id, queues)
        except redis.ResponseError as error:
            reason = f"it cannot be said where it is: {error}"
        if reason:
            breaches[job_id] = reason
    return Audit(
        {queue: counts.get(queue, empty) for queue in queues},
        breaches,
        list(_remarks(connection, counts)),
    )


def _suspects(connection: redis.Redis, queues: list[str]) -> set[str]:
    counts = count_places(connection, queues)
    places = Counter(
        job_id for queue in counts for job_id in ids_in_places(connection, queue, counts[queue])
    )
    claimed = Counter(claimed_ids(connection))
    busy = [queue for queue in counts if counts[queue]["running"]]
    running = Counter(job_id for queue in busy for job_id, _ in started_jobs(connection, queue))
    for job_id in claimed:  # what has begun stands in RQ's registry too
        places[job_id] += max(0, claimed[job_id] - running[job_id])
    suspects = {job_id for job_id, count in places.items() if count > 1}
    cursor = b"0"
    while True:
        cursor, waiting, ended = scripts.SCAN_JOBS.run(
            connection, [], [cursor, SCAN_BATCH_KEYS, "all"]
        )
        suspects.update(job_id for job_id in map(decode, waiting) if job_id not in places)
        suspects.update(job_id for job_id in map(decode, ended) if job_id in places)
        if cursor == b"0":
            return suspects


def _breach(connection: redis.Redis, job_id: str, queues: list[str]) -> str:
    """Where one job is, in one instant, if that breaks P1; else ""."""
    origin = decode(connection.hget(keys.job(job_id), "origin") or b"")
    with connection.pipeline() as pipe:
        pipe.hget(keys.job(job_id), "status")
        for queue in queues:
            pipe.execute_command("LPOS", keys.queue(queue), job_id, "COUNT", 0)
            pipe.lpos(keys.intermediate(queue), job_id)
            pipe.zscore(keys.scheduled(queue), job_id)
            pipe.zscore(keys.deferred(queue), job_id)
            pipe.zrange(keys.running(queue), 0, -1)
        status, *replies = pipe.execute()
    found = []
    for number, queue in enumerate(queues):
        here = _places_found(job_id, *replies[5 * number : 5 * number + 5])
        found += here if queue == origin else [f"{place} in {queue}" for place in here]
    runs = sum(place.startswith("running") for place in found)
    claimed = sum(1 for one in claimed_ids(connection) if one == job_id)
    found += ["claimed"] * (claimed - runs)
    if status is None or decode(status) not in (*ACTIVE_STATUSES, "deferred"):
        if status == b"canceled" and set(found) <= {"running", "claimed"}:
            return ""  # its worker will find that out when it is done
        return (
            f"{decode(status or b'expired')}, yet in: {', '.join(found)}"
            if status and found
            else ""
        )
    if not found and has_ended(connection, job_id, origin):
        return ""
    if not found:
        return f"{decode(status)}, but in no place (a stray; the sweep puts it back)"
    return f"in more than one place: {', '.join(found)}" if len(found) > 1 else ""


def _places_found(
    job_id: str, queued: list[int], intermediate: Any, scheduled: Any, deferred: Any, wip: list[Any]
) -> list[str]:
    """The places of one queue in which a job was found."""
    runs = [member for member in wip if decode(member).startswith(f"{job_id}:")]
    found = ["queued"] * len(queued) + ["running"] * len(runs)
    found += ["scheduled"] * (scheduled is not None) + ["deferred"] * (deferred is not None)
    if intermediate is not None and not runs:  # RQ leaves the id there until the horse has begun
        found.append("intermediate")
    return found


def _remarks(connection: redis.Redis, counts: dict[str, dict[str, int]]) -> Iterator[str]:
    for key, found, wanted in odd_keys.all_of(connection, queue_names(connection)):
        yield f"odd: {key} is a {found}, and no {wanted} (the sweep of a worker sets it aside as rqjobs:odd:{key})"
    owners = WorkerLiveness(connection, leases_count=True)
    ours = odd_keys.workers(connection, keys.LEASES)
    owners.check(ours)
    for worker in ours:
        if owners.state(worker) is not Liveness.ALIVE:
            for job_id in claims_of(connection, [worker]):
                yield f"orphan: {job_id} of the dead worker {worker} (rqjobs recover puts it back)"
    for queue, places in sorted(counts.items()):
        started = started_jobs(connection, queue) if places["running"] else []
        for (job_id, _), owner in zip(started, owners_of(connection, started), strict=True):
            if owner not in ours and owners.state(owner) is not Liveness.ALIVE:
                yield f"orphan: {job_id} of the dead worker {owner or '?'} (rqjobs recover puts it back)"
        if places["deferred"]:
            deferred = islice(
                connection.zscan_iter(keys.deferred(queue), count=SCAN_BATCH_KEYS), 10_000
            )
            for job_id, parent, status in blocked_jobs(
                connection, [decode(member) for member, _ in deferred]
            ):
                yield f"deferred: {job_id} waits for {parent}, which is {status}"


def blocked_jobs(connection: redis.Redis, ids: list[str]) -> Iterator[tuple[str, str, str]]:
    """(job, parent, its status, a key of `REMEDIES`) for each parent of these deferred jobs that does not let them run.
    A job that is gone counts as finished when another one ends, but nobody asks if there is no other."""
    commands = [
        command
        for job_id in ids
        for command in (
            ("SMEMBERS", f"{Job.redis_job_namespace_prefix}:{job_id}:dependencies"),
            ("HGET", keys.job(job_id), "allow_dependency_failures"),
        )
    ]
    replies = scripts.read_together(connection, commands)
    waits = [
        (job_id, decode(parent), may_fail == b"1")
        for job_id, parents, may_fail in zip(ids, replies[::2], replies[1::2], strict=True)
        if isinstance(parents, set | list)
        for parent in parents
    ]
    found = scripts.read_together(
        connection, [("HGET", keys.job(parent), "status") for _, parent, _ in waits]
    )
    states = [decode((not isinstance(reply, Exception) and reply) or b"gone") for reply in found]
    others = {
        job_id
        for (job_id, _, _), state in zip(waits, states, strict=True)
        if state not in ("finished", "gone")
    }
    blocked = set()
    for (job_id, parent, may_fail), state in zip(waits, states, strict=True):
        ends = (state == "failed" and may_fail) or (state == "gone" and job_id in others)
        if state != "finished" and not (state == "failed" and may_fail):
            blocked.add(job_id)
        if state in REMEDIES and not ends:
            yield job_id, parent, state
    yield from _never_enqueued(
        connection, {job_id: parent for job_id, parent, _ in waits if job_id not in blocked}
    )


def _never_enqueued(
    connection: redis.Redis, ended: dict[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Of these jobs, each with a parent, which have nothing to wait for: those that are deferred all the same."""
    if not ended:
        return
    waking, *states = scripts.read_together(
        connection,
        [
            ("SMEMBERS", keys.ENDED_PARENTS),
            *(("HGET", keys.job(job_id), "status") for job_id in ended),
        ],
    )
    for (job_id, parent), state in zip(ended.items(), states, strict=True):
        if state == b"deferred" and not waking:
            yield job_id, parent, "over"
