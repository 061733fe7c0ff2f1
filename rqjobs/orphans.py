"""Orphans: jobs whose process is gone, found and put back; and the audit of where every job is.

An orphan is a job in the hands of a worker that is dead, never one that merely takes long. Three kinds:
- claimed by a worker whose lease ended, or whose process is provably gone from this host (or, in `rq:wip:*` only, by a
  stock worker whose heartbeat key has expired);
- in a queue's `:intermediate` list, where RQ puts an id for an instant and which names no owner;
- strays: jobs that have not ended and are in no place at all (RQ pops an id from several queues before anybody
  holds it). What looks like a stray may be a job that is being written or run at this instant by a stock RQ
  client, so it must have been idle for longer than its own time limit, and be seen twice.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from time import sleep
from typing import Any, NamedTuple

import redis
from rq.utils import now

from rqjobs import config, ledger, odd_keys, processes
from rqjobs.jobs import Job, read_date
from rqjobs.ledger import text
from rqjobs.queues import Queue

log = logging.getLogger("rqjobs")
INTERMEDIATE_GRACE = 60  # seconds, while a live worker may be about to take the id out
STRAY_GRACE = 30  # seconds between the two looks
STRAY_PERIOD = 30  # seconds between two parts of the hunt
STRAY_KEYS = 20_000  # keys that one part of the hunt scans
ENDLESS = 24 * 3600  # seconds for which a job without a time limit may be idle
CHUNK = 1000
ACTIVE = ("queued", "started", "scheduled")


@dataclass
class Sweep:
    """What a sweep did: the job ids put back, and those sent to the dead letters."""

    pulse: Callable[[], None] = lambda: None
    requeued: list[str] = field(default_factory=list)
    buried: list[str] = field(default_factory=list)

    def note(self, outcome: str, job_id: str, queue: str, found: str, owner: str = "") -> None:
        self.pulse()
        if outcome == "requeued":
            self.requeued.append(job_id)
            log.warning(
                "orphan: job %s of %s (%s%s) is back at the front of its queue",
                job_id,
                queue,
                found,
                f", of the dead worker {owner}" if owner else "",
            )
        elif outcome == "buried":
            self.buried.append(job_id)
            log.error(
                "poison: job %s of %s killed its process %d times and is among the failed jobs now",
                job_id,
                queue,
                ledger.MAX_DEATHS,
            )


class Owners:
    """Judges workers for the length of one sweep."""

    def __init__(self, connection: redis.Redis, leases_count: bool):
        self.connection, self.leases_count = connection, leases_count
        self.host = processes.host()
        seconds, micro = connection.time()
        self.now = seconds + micro / 1e6
        self._verdicts: dict[str, str] = {}
        self.horses: dict[
            str, list[bytes | None]
        ] = {}  # where the processes of those that were judged live, or lived
        self.processes: dict[str, str] = {}  # that were judged, as `ledger.reclaim` takes them

    def verdict(self, name: str) -> str:
        """ "alive"; "gone" (provably: its process is not there); or "dead" (its lease or RQ's key has expired)."""
        if name not in self._verdicts:
            self.judge([name])
        return self._verdicts[name]

    def judge(self, names: list[str]) -> None:
        """Find the verdicts on all of them, in one round trip."""
        where = "host", "pid", "started", "horse", "horse_started", "session"
        facts = ledger.together(
            self.connection,
            [
                command
                for name in names
                for command in (
                    ("HMGET", f"rqjobs:worker:{name}", *where),
                    ("ZSCORE", ledger.WORKERS, name),
                    ("EXISTS", f"rq:worker:{name}"),
                )
            ],
        )
        facts = [[None] * len(where) if isinstance(fact, Exception) else fact for fact in facts]
        for index, name in enumerate(names):
            self._verdicts[name] = self._judge(*facts[3 * index : 3 * index + 3])
            self.horses[name] = facts[3 * index]
            self.processes[name] = ":".join(text(word or b"") for word in facts[3 * index][1:3])

    def end_horse(self, name: str) -> None:
        """End what the jobs of a dead worker of this host had started, before they run again."""
        host, _, _, horse, started, session = self.horses[name]
        if host and self.host == text(host) and horse and _gone(horse, started):
            processes.end_abandoned_group(int(horse), text(started or b""), text(session or b""))

    def _judge(self, where: list[bytes | None], lease: float | None, known: int) -> str:
        host, pid, started, horse, horse_started, _ = where
        ours = host and self.host == text(host)
        if ours and _gone(pid, started) and (not horse or _gone(horse, horse_started)):
            return "gone"
        if lease is not None:
            return "dead" if lease < self.now and self.leases_count else "alive"
        return (
            "alive" if known else "dead"
        )  # a stock worker, judged by the key that its heartbeat keeps


def _gone(pid: bytes | None, started: bytes | None) -> bool:
    """Whether a process of this host is provably not there; one whose pid is not known may be."""
    return text(pid or b"").isdigit() and processes.gone(int(pid or 0), text(started or b""))


def sweep(
    connection: redis.Redis, force: bool = False, pulse: Callable[[], None] = lambda: None
) -> Sweep | None:
    """Put every orphan back, in order, at the front of its queue; forget the workers that are dead.

    `pulse` is called between the moves: after a great fire a sweep may take longer than a lease.

    Any number of sweeps may run at once: each move is one atomic step that checks again. None if somebody else has
    just done it, unless `force`.
    """
    permission = ledger.may_sweep(connection, force)
    if permission < 0:
        return None
    odd_keys.set_aside(connection, odd_keys.SINGLE)
    odd_keys.set_aside(connection, odd_keys.OF_WORKERS, odd_keys.workers(connection))
    thorough = force or _is_time_for_strays(connection)
    if thorough:
        odd_keys.set_aside(connection, odd_keys.OF_QUEUES, queue_names(connection))
    result, owners = Sweep(pulse), Owners(connection, leases_count=permission == 1)
    ours = _with_a_lease(connection)
    owners.judge(ours)
    for worker in ours:
        with _passing_over(f"the sweep of worker {worker}"):
            if owners.verdict(worker) != "alive":
                owners.end_horse(worker)
            _sweep_claims(
                connection, worker, owners.verdict(worker), owners.processes[worker], result
            )
    for queue in _busy_queues(connection, result):
        pulse()
        with _passing_over(f"the sweep of queue {queue}"):
            _sweep_started(connection, queue, owners, set(ours), result)
            _sweep_intermediate(connection, queue, owners, result)
            ledger.promote(connection, queue, Queue.DEFAULT_TIMEOUT, crashed_only=True)
    if thorough:
        for worker in ledger.workers(
            connection
        ):  # something may have come into the hands of one that has gone
            if worker not in ours and connection.exists(f"rqjobs:claims:{worker}"):
                with _passing_over(f"the sweep of worker {worker}"):
                    _sweep_claims(connection, worker, "dead", "", result)
        _sweep_strays(connection, owners.now, result)
    wake(connection, pulse)
    return result


@contextlib.contextmanager
def _passing_over(what: str) -> Iterator[None]:
    """A key of the wrong type must not stop the rest."""
    try:
        yield
    except redis.ResponseError as error:
        if not ledger.wrong_type(error):
            raise
        log.error("%s: %s", what, error)


def _is_time_for_strays(connection: redis.Redis) -> bool:
    lock = "rqjobs:strays:lock"
    if connection.set(lock, 1, nx=True, ex=STRAY_PERIOD):
        return True
    is_ours = (
        0 <= connection.ttl(lock) <= STRAY_PERIOD
    )  # without an end, or with a later one, it is nobody's
    return not is_ours and bool(connection.set(lock, 1, ex=STRAY_PERIOD))


def _with_a_lease(connection: redis.Redis) -> list[str]:
    """Our workers, dead or alive; what is no name is removed from among them."""
    members: Any = connection.zrange(ledger.WORKERS, 0, -1)
    names = [name for member in members if (name := text(member)).encode() == member]
    if odd := [member for member in members if text(member).encode() != member]:
        log.error(
            "%d members of rqjobs:workers are no names, and are removed: somebody else wrote them",
            len(odd),
        )
        connection.zrem(ledger.WORKERS, *odd)
    return names


def wake(connection: redis.Redis, pulse: Callable[[], None] = lambda: None) -> None:
    """Let jobs run that waited for one which has ended, and were not woken with its end."""
    for member in map(text, connection.smembers(ledger.WAKING)):
        with _passing_over(f"what waits for job {member}"):
            ledger.wake(connection, member, Queue.DEFAULT_TIMEOUT, pulse)


def _sweep_claims(
    connection: redis.Redis, worker: str, verdict: str, process: str, result: Sweep
) -> None:
    if verdict == "alive":
        return
    outcomes = ledger.reclaim(connection, worker, queue_names(connection), verdict, process=process)
    if connection.zscore(ledger.WORKERS, worker) is None:
        log.warning("worker %s died without a word and is forgotten", worker)
    for job_id, outcome in outcomes.items():
        queue = text(connection.hget(f"rq:job:{job_id}", "origin") or b"?")
        result.note(outcome, job_id, queue, "claimed", worker)


def names_in(members: Any) -> list[str]:
    """Every queue that Redis knows of, by what it said of `rq:queues`, and the configured ones."""
    known = members if isinstance(members, set | list) else []  # an error: no set stands there
    return sorted(
        {text(key).removeprefix("rq:queue:") for key in known} | set(config.current().queues)
    )


def queue_names(connection: redis.Redis) -> list[str]:
    """Every queue that Redis knows of, and the configured ones."""
    return names_in(ledger.together(connection, [("SMEMBERS", ledger.QUEUES)])[0])


def _busy_queues(connection: redis.Redis, result: Sweep) -> list[str]:
    """Those at which there is something to sweep: of thousands of queues a few, found in a round trip a thousand."""
    cursor, besides, found = b"0", list(config.current().queues), dict[str, None]()
    while True:
        cursor, *names = ledger.BUSY.run(connection, [ledger.QUEUES], [cursor, CHUNK, *besides])
        found.update(dict.fromkeys(map(text, names)))
        result.pulse()
        besides = []
        if cursor == b"0":
            return sorted(found)


def forget_listeners(connection: redis.Redis, queues: list[str]) -> None:
    """Remove workers that RQ does not know any more from its lists of who listens to these queues."""
    replies = ledger.together(connection, [("SMEMBERS", f"rq:workers:{queue}") for queue in queues])
    listed = {
        queue: reply
        for queue, reply in zip(queues, replies, strict=True)
        if isinstance(reply, set | list)
    }
    keys = sorted({key for members in listed.values() for key in members})
    there = dict(
        zip(keys, ledger.together(connection, [("EXISTS", key) for key in keys]), strict=True)
    )
    for queue, members in listed.items():
        if gone := [key for key in members if there[key] == 0]:
            connection.srem(f"rq:workers:{queue}", *gone)
            connection.srem("rq:workers", *gone)


def _started(connection: redis.Redis, queue: str) -> list[tuple[str, str]]:
    """(job id, execution id) of what stands in `rq:wip:<queue>`."""
    pairs = (text(member).partition(":") for member in connection.zrange(f"rq:wip:{queue}", 0, -1))
    return [(job_id, execution) for job_id, _, execution in pairs]


def owners_of(connection: redis.Redis, started: list[tuple[str, str]]) -> list[str]:
    """The worker that holds each of these executions; "" where RQ has forgotten it (its own heartbeat ended)."""
    replies = ledger.together(
        connection,
        [
            ("HGET", key, "worker_name")
            for job_id, execution in started
            for key in (f"rq:execution:{job_id}:{execution}", f"rq:job:{job_id}")
        ],
    )
    names = [None if isinstance(reply, Exception) else reply for reply in replies]
    return [text(names[i] or names[i + 1] or b"") for i in range(0, len(names), 2)]


def _sweep_started(
    connection: redis.Redis, queue: str, owners: Owners, ours: set[str], result: Sweep
) -> None:
    """The claims of stock workers, which stand only in RQ's registry."""
    started = _started(connection, queue)
    dead = []
    for (job_id, execution), owner in zip(started, owners_of(connection, started), strict=True):
        if owner not in ours and owners.verdict(owner) != "alive":
            since = ledger.together(connection, [("HGET", f"rq:job:{job_id}", "enqueued_at")])[0]
            dead.append((since if isinstance(since, bytes) else b"", job_id, execution, owner))
    for _, job_id, execution, owner in sorted(
        dead, reverse=True
    ):  # each goes in front of the one before
        outcome = ledger.recover(connection, job_id, queue, "wip", execution, owner)
        result.note(outcome, job_id, queue, "running", owner)


def _sweep_intermediate(connection: redis.Redis, queue: str, owners: Owners, result: Sweep) -> None:
    ids = [text(job_id) for job_id in connection.lrange(f"rq:queue:{queue}:intermediate", 0, -1)]
    seen = f"rqjobs:seen:{queue}"
    left = {text(field) for field in connection.hkeys(seen)} - set(ids)
    if left:  # what a worker took out in the meantime must not look old when it comes by again
        connection.hdel(seen, *left)
    if not ids:
        return
    listeners = connection.smembers(f"rq:workers:{queue}")
    served = any(
        owners.verdict(text(key).removeprefix("rq:worker:")) == "alive" for key in listeners
    )
    for job_id in ids:  # LMOVE put the newest first, so the oldest ends up in front
        if not served or _seen_for(connection, seen, job_id, owners.now, INTERMEDIATE_GRACE):
            outcome = ledger.recover(connection, job_id, queue, "intermediate")
            result.note(outcome, job_id, queue, "popped by nobody who lives")


def _seen_for(
    connection: redis.Redis, seen: str, job_id: str, moment: float, seconds: float
) -> bool:
    """Whether the hash `seen` has known `job_id` for `seconds`; now it does. More than an hour was another time."""
    try:
        since = float(connection.hget(seen, job_id) or 0)
    except ValueError:  # somebody else wrote that
        since = 0.0
    if not -3600 <= moment - since <= 3600:
        connection.hset(seen, job_id, moment)
        connection.expire(seen, 3600)
        return False
    return moment - since >= seconds


# Strays


def _sweep_strays(connection: redis.Redis, moment: float, result: Sweep) -> None:
    for job_id, queue in _idle_and_nowhere(connection, _next_part(connection)):
        with _passing_over(f"the stray {job_id} of queue {queue}"):
            if _seen_for(connection, "rqjobs:strays:seen", job_id, moment, STRAY_GRACE):
                again = not has_ended(connection, job_id, queue)
                outcome = ledger.recover(connection, job_id, queue, "stray", again=again)
                result.note(outcome, job_id, queue, "in no place")
                connection.hdel("rqjobs:strays:seen", job_id)


def _next_part(connection: redis.Redis) -> Iterator[Stray]:
    """Jobs that wait or run, from where the last part of the hunt ended; after the last key it begins anew."""
    cursor = connection.get("rqjobs:strays:cursor") or b"0"
    for _ in range(STRAY_KEYS // CHUNK):
        cursor, found, _others = ledger.HUNT.run(connection, [], [cursor, CHUNK, "active"])
        yield from (Stray(text(job_id), text(queue), *rest) for job_id, queue, *rest in found)
        if cursor == b"0":
            break
    connection.set("rqjobs:strays:cursor", cursor)


class Stray(NamedTuple):
    """What may be one: a job that waits or runs, with its time limit and its moments as they are written."""

    job_id: str
    queue: str
    timeout: bytes | None
    last_heartbeat: bytes | None
    started_at: bytes | None
    enqueued_at: bytes | None
    created_at: bytes | None


def _idle_and_nowhere(connection: redis.Redis, jobs: Iterable[Stray]) -> Iterator[tuple[str, str]]:
    """Those that have been idle for longer than their time limit, and are in no place."""
    places: dict[str, set[str]] = {}
    for job in jobs:
        if _idle(job):
            if job.queue not in places:
                places[job.queue] = {*_places(connection, job.queue), *_claimed(connection)}
            if job.job_id not in places[job.queue]:
                yield job.job_id, job.queue


def _idle(job: Stray) -> bool:
    """Whether nothing was heard of a job for longer than it may run; nothing to go by counts as long ago."""
    try:
        latest = max(
            (moment for moment in job[3:] if moment), default=None
        )  # as written, they sort
        moment = read_date(latest) if latest else None
        limit = float(job.timeout or Queue.DEFAULT_TIMEOUT)
    except (ValueError, OverflowError):
        return True
    limit = ENDLESS if limit < 0 else limit
    return not moment or (now() - moment).total_seconds() > limit + STRAY_GRACE


def _places(
    connection: redis.Redis, queue: str, counts: dict[str, int] | None = None
) -> Iterator[str]:
    """Every id in an active place of `queue`, as often as it stands there; read in pieces, not in one instant.

    `counts`: how many stand where, as `census` says it; what is empty is not looked at.
    """
    counts = counts or census(connection, [queue]).get(queue, {})
    for place, key in (
        ("queued", f"rq:queue:{queue}"),
        ("intermediate", f"rq:queue:{queue}:intermediate"),
    ):
        start = 0
        while counts.get(place) and (ids := connection.lrange(key, start, start + 9999)):
            yield from map(text, ids)
            start += len(ids)
    for registry in ("scheduled", "deferred"):
        if counts.get(registry):
            for member, _ in connection.zscan_iter(f"rq:{registry}:{queue}", count=CHUNK):
                yield text(member)
    if counts.get("running"):
        yield from (job_id for job_id, _ in _started(connection, queue))


def _claimed(connection: redis.Redis) -> Iterator[str]:
    """Every id in a worker's claims."""
    yield from _claims_of(connection, ledger.workers(connection))


def _claims_of(connection: redis.Redis, workers: list[str]) -> Iterator[str]:
    commands = [("LRANGE", f"rqjobs:claims:{worker}", 0, -1) for worker in workers]
    for ids in ledger.together(connection, commands):
        yield from map(text, ids if isinstance(ids, list) else [])  # an error: no list stands there


def has_ended(connection: redis.Redis, job_id: str, queue: str) -> bool:
    """Whether a job that is in no place is among the ended ones of `queue`, and was not enqueued after its last end (a
    Repeat stands there too): then its status was overwritten by a stale save()."""
    with connection.pipeline(transaction=False) as pipe:
        for place in ("finished", "failed", "canceled"):
            pipe.zscore(f"rq:{place}:{queue}", job_id)
        pipe.hget(f"rq:job:{job_id}", "enqueued_at")
        pipe.xrevrange(f"rq:results:{job_id}", count=1)
        *ended, enqueued, results = pipe.execute(raise_on_error=False)
    try:
        moment = read_date(enqueued).timestamp()
        last = float(
            results[0][1].get(b"execution_ended_at") or int(results[0][0].split(b"-")[0]) / 1000
        )
    except (AttributeError, LookupError, TypeError, ValueError):  # nothing to go by
        moment = last = 0.0
    finished, failed, canceled = (isinstance(score, float) for score in ended)
    return canceled or (moment <= last and (finished or failed))


# The audit

PLACES = (
    "queued",
    "intermediate",
    "scheduled",
    "deferred",
    "running",
    "finished",
    "failed",
    "canceled",
    "stopped",
)


def census(connection: redis.Redis, queues: list[str]) -> dict[str, dict[str, int]]:
    """How many jobs stand in each place of each queue that has any, some queues at a time."""
    commands = [ledger.CENSUS.call([], portion) for portion in ledger.chunks(queues)]
    found = {}
    for reply in ledger.together(connection, commands, ledger.CENSUS):
        found.update(
            {text(name): dict(zip(PLACES, counts, strict=True)) for name, _, *counts in reply}
        )
    return found


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
    counts = census(connection, queues)
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
    counts = census(connection, queues)
    places = Counter(
        job_id for queue in counts for job_id in _places(connection, queue, counts[queue])
    )
    claimed = Counter(_claimed(connection))
    busy = [queue for queue in counts if counts[queue]["running"]]
    running = Counter(job_id for queue in busy for job_id, _ in _started(connection, queue))
    for job_id in claimed:  # what has begun stands in RQ's registry too
        places[job_id] += max(0, claimed[job_id] - running[job_id])
    suspects = {job_id for job_id, count in places.items() if count > 1}
    cursor = b"0"
    while True:
        cursor, waiting, ended = ledger.HUNT.run(connection, [], [cursor, CHUNK, "all"])
        suspects.update(job_id for job_id in map(text, waiting) if job_id not in places)
        suspects.update(job_id for job_id in map(text, ended) if job_id in places)
        if cursor == b"0":
            return suspects


def _breach(connection: redis.Redis, job_id: str, queues: list[str]) -> str:
    """Where one job is, in one instant, if that breaks P1; else ""."""
    origin = text(connection.hget(f"rq:job:{job_id}", "origin") or b"")
    with connection.pipeline() as pipe:
        pipe.hget(f"rq:job:{job_id}", "status")
        for queue in queues:
            pipe.execute_command("LPOS", f"rq:queue:{queue}", job_id, "COUNT", 0)
            pipe.lpos(f"rq:queue:{queue}:intermediate", job_id)
            pipe.zscore(f"rq:scheduled:{queue}", job_id)
            pipe.zscore(f"rq:deferred:{queue}", job_id)
            pipe.zrange(f"rq:wip:{queue}", 0, -1)
        status, *replies = pipe.execute()
    found = []
    for number, queue in enumerate(queues):
        here = _found(job_id, *replies[5 * number : 5 * number + 5])
        found += here if queue == origin else [f"{place} in {queue}" for place in here]
    runs = sum(place.startswith("running") for place in found)
    claimed = sum(1 for one in _claimed(connection) if one == job_id)
    found += ["claimed"] * (claimed - runs)
    if status is None or text(status) not in (*ACTIVE, "deferred"):
        if status == b"canceled" and set(found) <= {"running", "claimed"}:
            return ""  # its worker will find that out when it is done
        return (
            f"{text(status or b'expired')}, yet in: {', '.join(found)}" if status and found else ""
        )
    if not found and has_ended(connection, job_id, origin):
        return ""
    if not found:
        return f"{text(status)}, but in no place (a stray; the sweep puts it back)"
    return f"in more than one place: {', '.join(found)}" if len(found) > 1 else ""


def _found(
    job_id: str, queued: list[int], intermediate: Any, scheduled: Any, deferred: Any, wip: list[Any]
) -> list[str]:
    """The places of one queue in which a job was found."""
    runs = [member for member in wip if text(member).startswith(f"{job_id}:")]
    found = ["queued"] * len(queued) + ["running"] * len(runs)
    found += ["scheduled"] * (scheduled is not None) + ["deferred"] * (deferred is not None)
    if intermediate is not None and not runs:  # RQ leaves the id there until the horse has begun
        found.append("intermediate")
    return found


def _remarks(connection: redis.Redis, counts: dict[str, dict[str, int]]) -> Iterator[str]:
    for key, found, wanted in odd_keys.all_of(connection, queue_names(connection)):
        yield f"odd: {key} is a {found}, and no {wanted} (the sweep of a worker sets it aside as rqjobs:odd:{key})"
    owners = Owners(connection, leases_count=True)
    ours = odd_keys.workers(connection, ledger.WORKERS)
    owners.judge(ours)
    for worker in ours:
        if owners.verdict(worker) != "alive":
            for job_id in _claims_of(connection, [worker]):
                yield f"orphan: {job_id} of the dead worker {worker} (rqjobs recover puts it back)"
    for queue, places in sorted(counts.items()):
        started = _started(connection, queue) if places["running"] else []
        for (job_id, _), owner in zip(started, owners_of(connection, started), strict=True):
            if owner not in ours and owners.verdict(owner) != "alive":
                yield f"orphan: {job_id} of the dead worker {owner or '?'} (rqjobs recover puts it back)"
        if places["deferred"]:
            deferred = islice(connection.zscan_iter(f"rq:deferred:{queue}", count=CHUNK), 10_000)
            for job_id, parent, status in deferred_for_ever(
                connection, [text(member) for member, _ in deferred]
            ):
                yield f"deferred: {job_id} waits for {parent}, which is {status}"


def deferred_for_ever(connection: redis.Redis, ids: list[str]) -> Iterator[tuple[str, str, str]]:
    """(job, parent, its status, a key of `REMEDIES`) for each parent of these deferred jobs that does not let them run.
    A job that is gone counts as finished when another one ends, but nobody asks if there is no other."""
    commands = [
        command
        for job_id in ids
        for command in (
            ("SMEMBERS", f"{Job.redis_job_namespace_prefix}:{job_id}:dependencies"),
            ("HGET", f"rq:job:{job_id}", "allow_dependency_failures"),
        )
    ]
    replies = ledger.together(connection, commands)
    waits = [
        (job_id, text(parent), may_fail == b"1")
        for job_id, parents, may_fail in zip(ids, replies[::2], replies[1::2], strict=True)
        if isinstance(parents, set | list)
        for parent in parents
    ]
    found = ledger.together(
        connection, [("HGET", f"rq:job:{parent}", "status") for _, parent, _ in waits]
    )
    states = [text((not isinstance(reply, Exception) and reply) or b"gone") for reply in found]
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
    yield from _overlooked(
        connection, {job_id: parent for job_id, parent, _ in waits if job_id not in blocked}
    )


def _overlooked(connection: redis.Redis, ended: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Of these jobs, each with a parent, which have nothing to wait for: those that are deferred all the same."""
    if not ended:
        return
    waking, *states = ledger.together(
        connection,
        [
            ("SMEMBERS", ledger.WAKING),
            *(("HGET", f"rq:job:{job_id}", "status") for job_id in ended),
        ],
    )
    for (job_id, parent), state in zip(ended.items(), states, strict=True):
        if state == b"deferred" and not waking:
            yield job_id, parent, "over"
