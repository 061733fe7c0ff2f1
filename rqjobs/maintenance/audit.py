"""The audit: the place of every job, and which jobs are lost or in two places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from time import sleep
from typing import Any, NamedTuple

import redis

from rqjobs.broker import keys, odd_keys, scripts
from rqjobs.broker.blockers import REMEDIES
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
from rqjobs.maintenance.liveness import Liveness, WorkerLiveness
from rqjobs.maintenance.strays import has_ended
from rqjobs.maintenance.waiting import unlisted_jobs
from rqjobs.results import STORED_UNENDED_STATUSES

RECHECKED_TOGETHER_JOBS = 1000  # suspects that are looked at again in one round trip
AUDITED_DEFERRED_JOBS = 10_000  # deferred jobs of a queue whose parents an audit looks at


@dataclass
class Audit:
    """The result of an audit.

    `places` has the number of jobs by queue and place. `breaches` has the jobs that are lost or in
    two places, with the reason. `remarks` names what a sweep or a user has to put right.
    """

    places: dict[str, dict[str, int]]
    breaches: dict[str, str]
    remarks: list[str]


def audit(connection: redis.Redis, settle: float = 2.0) -> Audit:
    """Check the place of every job.

    A breach is a job that has not ended and is in no active place, or a job in two places (or twice
    in one). Remarks name the jobs of dead workers, which the next sweep puts back, the jobs that
    are deferred behind a failed or deleted parent, and odd keys.

    Args:
        settle: seconds after which a suspect is checked again, because a job may just be moving.
    """
    queues = queue_names(connection)
    suspects = _suspects(connection, queues)
    if suspects:
        sleep(settle)
        suspects = _again_suspect(connection, queues, suspects)
    breaches = {}
    counts = count_places(connection, queues)
    for job_id in sorted(suspects):
        try:
            reason = _breach(connection, job_id, queues)
        except redis.ResponseError as error:
            reason = f"its place cannot be read: {error}"
        if reason:
            breaches[job_id] = reason
    empty = dict.fromkeys(PLACES, 0)
    places = {queue: counts.get(queue, empty) for queue in queues}
    return Audit(places, breaches, list(_remarks(connection, counts)))


def _suspects(connection: redis.Redis, queues: list[str]) -> set[str]:
    """The ids that seem to be in a wrong number of places. They are read in several steps."""
    places = _number_of_places(connection, queues)
    suspects = {job_id for job_id, count in places.items() if count > 1}
    cursor = b"0"
    while True:
        args = [cursor, SCAN_BATCH_KEYS]
        cursor, unended, ended = scripts.SCAN_STATUSES.run(connection, [], args)
        suspects.update(job_id for job_id in map(_job_id, unended) if job_id not in places)
        suspects.update(job_id for job_id in map(_job_id, ended) if job_id in places)
        if cursor == b"0":
            return suspects


def _job_id(key: bytes) -> str:
    return decode(key[len(keys.JOB_PREFIX) :])


def _again_suspect(connection: redis.Redis, queues: list[str], suspects: set[str]) -> set[str]:
    """Those suspects that still seem to be in a wrong number of places."""
    places = _number_of_places(connection, queues, suspects)
    found = {job_id for job_id, count in places.items() if count > 1}
    rest = iter(suspects - found)
    while ids := list(islice(rest, RECHECKED_TOGETHER_JOBS)):
        commands = []
        for job_id in ids:
            commands.append(("HGET", keys.job(job_id), "status"))
            commands.append(("HSTRLEN", keys.job(job_id), "data"))
        replies = scripts.read_together(connection, commands)
        for job_id, status, size in zip(ids, replies[::2], replies[1::2], strict=True):
            # A record without data is what is left of a deleted job.
            has_data = isinstance(size, int) and size > 0  # otherwise the key has the wrong type
            if has_data and (status in STORED_UNENDED_STATUSES) is not (job_id in places):
                found.add(job_id)
    return found


def _number_of_places(
    connection: redis.Redis, queues: list[str], among: set[str] | None = None
) -> Counter[str]:
    """The number of places of each job that is in any, or of these jobs."""

    def chosen(ids: Iterable[str]) -> Iterable[str]:
        return ids if among is None else filter(among.__contains__, ids)

    counts = count_places(connection, queues)
    places: Counter[str] = Counter()
    running: Counter[str] = Counter()
    for queue in counts:
        places.update(chosen(ids_in_places(connection, queue, counts[queue])))
        if counts[queue]["running"]:
            running.update(job_id for job_id, _ in started_jobs(connection, queue))
    claimed = Counter(chosen(claimed_ids(connection)))
    for job_id in claimed:  # a claimed job that runs is in RQ's registry too, and counted there
        places[job_id] += max(0, claimed[job_id] - running[job_id])
    return places


def _breach(connection: redis.Redis, job_id: str, queues: list[str]) -> str:
    """Why one job breaks the rule, by its places at one instant; "" if it does not."""
    origin = decode(connection.hget(keys.job(job_id), "origin") or b"")
    with connection.pipeline() as pipe:
        pipe.hget(keys.job(job_id), "status")
        pipe.hstrlen(keys.job(job_id), "data")
        for queue in queues:
            pipe.execute_command("LPOS", keys.queue(queue), job_id, "COUNT", 0)
            pipe.lpos(keys.intermediate(queue), job_id)
            pipe.zscore(keys.scheduled(queue), job_id)
            pipe.zscore(keys.deferred(queue), job_id)
            pipe.zrange(keys.running(queue), 0, -1)
        status, size, *replies = pipe.execute()
    found: list[str] = []
    for number, queue in enumerate(queues):
        places = _places_in_queue(job_id, *replies[5 * number : 5 * number + 5])
        if queue != origin:
            places = [f"{place} in {queue}" for place in places]
        found += places
    number_of_runs = sum(place.startswith("running") for place in found)
    number_of_claims = list(claimed_ids(connection)).count(job_id)
    found += ["claimed"] * (number_of_claims - number_of_runs)
    if not size and len(found) < 2:
        return ""  # what is left of a deleted job
    if status not in STORED_UNENDED_STATUSES:
        return _breach_of_ended(status, found)
    if len(found) > 1:
        return f"in more than one place: {', '.join(found)}"
    if found or has_ended(connection, job_id, origin):
        return ""
    return f"{decode(status)}, but in no place (a stray; the sweep puts it back)"


def _breach_of_ended(status: bytes | None, found: list[str]) -> str:
    if status is None or not found:
        return ""
    if status == b"canceled" and set(found) <= {"running", "claimed"}:
        return ""  # canceled while it runs; its worker drops it at its end
    return f"{decode(status)}, yet in: {', '.join(found)}"


def _places_in_queue(
    job_id: str, queued: list[int], intermediate: Any, scheduled: Any, deferred: Any, wip: list[Any]
) -> list[str]:
    """The places of one queue in which a job is, by the replies of `_breach`'s commands."""
    runs = [member for member in wip if decode(member).startswith(f"{job_id}:")]
    found = ["queued"] * len(queued) + ["running"] * len(runs)
    if scheduled is not None:
        found.append("scheduled")
    if deferred is not None:
        found.append("deferred")
    if intermediate is not None and not runs:  # RQ leaves the id there until the horse has started
        found.append("intermediate")
    return found


def _remarks(connection: redis.Redis, counts: dict[str, dict[str, int]]) -> Iterator[str]:
    for key, type_found, right in odd_keys.all_of(connection):
        yield (
            f"odd: {key} is a {type_found} instead of a {right} (a worker's sweep renames it to "
            f"{keys.odd(key)})"
        )
    yield from _orphans(connection, counts)
    for queue, places in sorted(counts.items()):
        if places["deferred"]:
            entries = connection.zscan_iter(keys.deferred(queue), count=SCAN_BATCH_KEYS)
            ids = [decode(member) for member, _ in islice(entries, AUDITED_DEFERRED_JOBS)]
            for job_id, parent, state in blocked_jobs(connection, ids):
                yield f"deferred: {job_id} waits for {parent}, which is {state}"
            for job_id, line in unlisted_jobs(connection, ids):
                yield (
                    f"deferred: {job_id} waits for {line}, but is not in {line.list_key} (a "
                    f"worker's sweep puts it back)"
                )


def _orphans(connection: redis.Redis, counts: dict[str, dict[str, int]]) -> Iterator[str]:
    liveness = WorkerLiveness(connection, leases_count=True)
    own_workers = odd_keys.workers(connection, keys.LEASES)
    liveness.check(own_workers)
    for worker in own_workers:
        if liveness.state(worker) is not Liveness.ALIVE:
            for job_id in claims_of(connection, [worker]):
                yield _orphan_remark(job_id, worker)
    for queue, places in sorted(counts.items()):
        if not places["running"]:
            continue
        started = started_jobs(connection, queue)
        owners = owners_of(connection, started)
        for (job_id, _execution), owner in zip(started, owners, strict=True):
            if owner not in own_workers and liveness.state(owner) is not Liveness.ALIVE:
                yield _orphan_remark(job_id, owner or "?")


def _orphan_remark(job_id: str, worker: str) -> str:
    return f"orphan: {job_id} of the dead worker {worker} (rqjobs recover puts it back)"


class Wait(NamedTuple):
    """A deferred job, one of its parents, that parent's state, and whether it may fail.

    `goes_on`: the job belongs to a part of a flow that goes on, however its parents end.
    """

    job_id: str
    parent: str
    state: str
    may_fail: bool
    goes_on: bool

    def is_over(self) -> bool:
        if self.goes_on:
            return self.state in ("finished", *REMEDIES)
        return self.state == "finished" or (self.state == "failed" and self.may_fail)


def blocked_jobs(connection: redis.Redis, ids: list[str]) -> Iterator[tuple[str, str, str]]:
    """(job, parent, the parent's state as in `REMEDIES`) for each parent that blocks a deferred
    job.

    A deleted parent counts as finished when another parent ends; without another parent it blocks.
    A job that waits for its limit, or for a paused function, is not blocked.
    """
    waits = _waits_of(connection, _without_parked(connection, ids))
    unfinished = {wait.job_id for wait in waits if wait.state not in ("finished", "gone")}
    blocked = {wait.job_id for wait in waits if not wait.is_over()}
    for wait in waits:
        ends_with_another = wait.state == "gone" and wait.job_id in unfinished
        if wait.state in REMEDIES and not wait.is_over() and not ends_with_another:
            yield wait.job_id, wait.parent, wait.state
    unblocked = {
        wait.job_id: wait.parent
        for wait in waits
        if wait.job_id not in blocked and not wait.goes_on  # a sweep enqueues those
    }
    yield from _never_enqueued(connection, unblocked)


def _without_parked(connection: redis.Redis, ids: list[str]) -> list[str]:
    commands = [("HMGET", keys.job(job_id), "rqjobs_waits_for", "rqjobs_paused") for job_id in ids]
    replies = scripts.read_together(connection, commands)
    return [
        job_id
        for job_id, reply in zip(ids, replies, strict=True)
        if isinstance(reply, Exception) or not any(reply)
    ]


def _waits_of(connection: redis.Redis, ids: list[str]) -> list[Wait]:
    commands: list[tuple[Any, ...]] = []
    for job_id in ids:
        commands.append(("SMEMBERS", keys.dependencies(job_id)))
        commands.append(("HMGET", keys.job(job_id), "allow_dependency_failures", "rqjobs_flow"))
    replies = scripts.read_together(connection, commands)
    pairs = []
    for job_id, parents, fields in zip(ids, replies[::2], replies[1::2], strict=True):
        # Otherwise a key has the wrong type.
        if isinstance(parents, set | list) and isinstance(fields, list):
            may_fail = fields[0] == b"1"
            goes_on = may_fail and bool(fields[1])
            pairs += [(job_id, decode(parent), may_fail, goes_on) for parent in parents]
    commands = [("HGET", keys.job(parent), "status") for _, parent, _, _ in pairs]
    statuses = scripts.read_together(connection, commands)
    waits = []
    for (job_id, parent, may_fail, goes_on), status in zip(pairs, statuses, strict=True):
        if not status or isinstance(status, Exception):
            status = b"gone"
        waits.append(Wait(job_id, parent, decode(status), may_fail, goes_on))
    return waits


def _never_enqueued(
    connection: redis.Redis, ended: dict[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Those of these jobs that are still deferred, although all their parents have ended.

    `ended`: job -> one of its parents.
    """
    if not ended:
        return
    commands: list[tuple[Any, ...]] = [("SMEMBERS", keys.ENDED_PARENTS)]
    commands += [("HGET", keys.job(job_id), "status") for job_id in ended]
    to_be_enqueued, *statuses = scripts.read_together(connection, commands)
    for (job_id, parent), status in zip(ended.items(), statuses, strict=True):
        if status == b"deferred" and not to_be_enqueued:
            yield job_id, parent, "over"
