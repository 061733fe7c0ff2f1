"""The counts of `make chaos`: accepted jobs, their runs, and their outcomes in Redis."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import redis
from chaos_environment import QUEUE_NAMES, Load, Server, WorkerGroup

from rqjobs.broker import keys, places, recovery
from rqjobs.broker.keys import decode
from rqjobs.maintenance import audit as maintenance_audit

ENDED_STATUSES = ("finished", "failed")
READ_BATCH_JOBS = 1000
DRAIN_TIMEOUT_SECONDS = 90.0
AUDIT_SETTLE_SECONDS = 0.5
# The types of RQ's results.
SUCCESSFUL = 1
FAILED = 2
RETRIED = 4


@dataclass
class Expected:
    """The expected end of a job: its status, the types of its results, its number of runs."""

    status: str
    results: list[int]
    runs: int


EXPECTED = {
    "plain": Expected("finished", [SUCCESSFUL], 1),
    "scheduled": Expected("finished", [SUCCESSFUL], 1),
    "unique": Expected("finished", [SUCCESSFUL], 1),
    "dependent": Expected("finished", [SUCCESSFUL], 1),
    "failing": Expected("failed", [FAILED], 1),
    "failing after a retry": Expected("failed", [RETRIED, FAILED], 2),
    "retried": Expected("finished", [RETRIED, RETRIED, SUCCESSFUL], 3),
    "retried later": Expected("finished", [RETRIED, SUCCESSFUL], 2),
    "retried by value": Expected("finished", [RETRIED, SUCCESSFUL], 2),
    "repeated": Expected("finished", [SUCCESSFUL, SUCCESSFUL, SUCCESSFUL], 3),
    "poison": Expected("failed", [FAILED], 3),
}


@dataclass
class Row:
    """The counts of a scenario, and its faults."""

    name: str
    accepted: int = 0
    outcomes: int = 0
    lost: int = 0
    twice: int = 0
    rerun: int = 0
    poisoned: int = 0  # jobs that failed as poison and are not poison jobs
    unsaved: int | None = None  # jobs that a restarted Redis no longer has
    recoveries: list[float] = field(default_factory=list)  # seconds
    faults: list[str] = field(default_factory=list)
    notes: str = ""

    HEADER = (
        "scenario",
        "accepted",
        "outcomes",
        "lost",
        "twice",
        "re-run",
        "poisoned",
        "unsaved",
        "median s",
        "worst s",
        "result",
    )

    def cells(self) -> tuple[str, ...]:
        unsaved = "-" if self.unsaved is None else str(self.unsaved)
        median = worst = "-"
        if self.recoveries:
            median = f"{statistics.median(self.recoveries):.2f}"
            worst = f"{max(self.recoveries):.2f}"
        result = "FAILED" if self.faults else "ok"
        if self.notes:
            result += f", {self.notes}"
        return (
            self.name,
            f"{self.accepted:,}",
            f"{self.outcomes:,}",
            str(self.lost),
            str(self.twice),
            str(self.rerun),
            str(self.poisoned),
            unsaved,
            median,
            worst,
            result,
        )


@dataclass
class Job:
    """A job in Redis: its status, the number of crashes under it, the types of its results."""

    status: str
    crashes: int
    results: list[int]

    def has_ended(self) -> bool:
        return self.status in ENDED_STATUSES

    def is_poisoned(self) -> bool:
        return self.status == "failed" and self.crashes >= recovery.MAX_CRASHES


def read_jobs(client: redis.Redis, job_ids: list[str]) -> dict[str, Job]:
    """Read these jobs; a job that is not in Redis has an empty status."""
    jobs = {}
    for start in range(0, len(job_ids), READ_BATCH_JOBS):
        batch = job_ids[start : start + READ_BATCH_JOBS]
        with client.pipeline(transaction=False) as pipe:
            for job_id in batch:
                pipe.hmget(f"rq:job:{job_id}", "status", "rqjobs_crashes")
                pipe.xrange(f"rq:results:{job_id}")
            replies = pipe.execute()
        for job_id, fields, entries in zip(batch, replies[::2], replies[1::2], strict=True):
            status, crashes = fields
            times = decode(crashes or b"").split(",") if crashes else []
            results = [int(entry[b"type"]) for _, entry in entries]
            jobs[job_id] = Job(decode(status or b""), len(times), results)
    return jobs


def kind_and_parents(description: str) -> tuple[str, list[str]]:
    """Split the load's description of a job, "kind" or "dependent PARENT…"."""
    if not description.startswith("dependent"):
        return description, []
    kind, *parents = description.split(" ")
    return kind, parents


def drain(server: Server, load: Load, group: WorkerGroup) -> set[str]:
    """Wait until every accepted job has ended; returns the jobs that have not.

    The wait ends early if no job has ended for `DRAIN_TIMEOUT_SECONDS`. RQ leaves a job deferred
    if a job that it depends on has failed as poison; such a job counts as ended.
    """
    unfinished = set(load.accepted)
    poisoned: set[str] = set()
    progressed_at = time.monotonic()
    while unfinished and time.monotonic() - progressed_at < DRAIN_TIMEOUT_SECONDS:
        group.check_exits()
        before = len(unfinished)
        for job_id, job in read_jobs(server.client, sorted(unfinished)).items():
            kind, parents = kind_and_parents(load.accepted[job_id])
            if job.is_poisoned():
                poisoned.add(job_id)
            if job.status == "deferred" and poisoned & set(parents):
                poisoned.add(job_id)
                unfinished.discard(job_id)
            elif job.is_poisoned() or (
                job.has_ended() and len(job.results) >= len(EXPECTED[kind].results)
            ):
                unfinished.discard(job_id)
        if len(unfinished) < before:
            progressed_at = time.monotonic()
        time.sleep(0.1 if len(unfinished) < 500 else 0.5)
    return unfinished


def read_runs(file: Path) -> dict[str, list[float]]:
    """The times at which each job started to run, from the file that the jobs write."""
    runs: dict[str, list[float]] = defaultdict(list)
    if file.exists():
        for line in file.read_text().splitlines():
            job_id, _, moment = line.split(" ")
            runs[job_id].append(float(moment))
    return runs


@dataclass
class Counted:
    """A job at the end of a scenario, with the places and runs that were counted."""

    kind: str
    job: Job
    accepted: bool  # False: its enqueue raised an error
    runs: int
    active_places: int
    registries: int  # how many of the registries of finished and failed jobs have it


def count(row: Row, server: Server, load: Load, group: WorkerGroup, unfinished: set[str]) -> None:
    """Fill `row` from Redis and the file of runs, after all workers have ended."""
    client = server.client
    runs = read_runs(group.runs_file)
    jobs = read_jobs(client, [*load.accepted, *load.unsure])
    active: Counter[str] = Counter(places.claimed_ids(client))
    for name in QUEUE_NAMES:
        active.update(places.ids_in_places(client, name))
    registries: Counter[str] = Counter()
    for status in ENDED_STATUSES:
        registries.update(read_registry(client, status))
    row.accepted = len(load.accepted)
    for job_id, description in [*load.accepted.items(), *load.unsure.items()]:
        kind, _ = kind_and_parents(description)
        job = jobs[job_id]
        if job_id in load.unsure and not job.status:
            continue  # the enqueue had no effect
        if job.status == "deferred" and active[job_id] == 1:
            continue  # it depends on a job that failed as poison
        counted = Counted(
            kind,
            job,
            job_id in load.accepted,
            len(runs.get(job_id, [])),
            active[job_id],
            registries[job_id],
        )
        if not count_job(row, counted):
            suffix = ", unfinished" if job_id in unfinished else ""
            row.faults.append(f"{job_id}: {counted}, expected {EXPECTED[kind]}{suffix}")
    count_recoveries(row, group, runs)
    if load.error:
        row.faults.append(f"the load stopped: {load.error!r}")
    if load.duplicates_accepted and not row.unsaved:
        row.faults.append(f"{load.duplicates_accepted} unique jobs were accepted twice")
    row.faults[:0] = group.unexpected_exits
    check_audit(row, client)


def read_registry(client: redis.Redis, status: str) -> set[str]:
    """The ids in RQ's registry of this status, of all queues."""
    return {
        decode(member)
        for name in QUEUE_NAMES
        for member in client.zrange(f"rq:{status}:{name}", 0, -1)
    }


def count_job(row: Row, counted: Counted) -> bool:
    """Count a job in the row; returns whether its outcome is as expected and was recorded once."""
    job = counted.job
    expected = EXPECTED[counted.kind]
    if job.is_poisoned():
        results = [*expected.results[: len(job.results) - 1], FAILED]
        expected = Expected("failed", results, counted.runs)
        if counted.kind != "poison":
            row.poisoned += 1
    twice = (
        len(job.results) > len(expected.results)
        or (counted.registries == len(ENDED_STATUSES) and counted.kind != "repeated")
        or (job.has_ended() and counted.active_places > 0)
    )
    ended = job.has_ended() and counted.registries > 0
    same_outcome = job.status == expected.status and job.results == expected.results
    right = ended and same_outcome and counted.runs >= expected.runs
    if right and counted.accepted:
        row.outcomes += 1
    if twice:
        row.twice += 1
    if counted.runs > expected.runs:
        row.rerun += 1
    if not ended or counted.runs < expected.runs or not (right or twice):
        row.lost += 1
    return right and not twice


def count_recoveries(row: Row, group: WorkerGroup, runs: dict[str, list[float]]) -> None:
    """Record how many seconds each recovery took.

    A killed claim is recovered when its job runs again, and Redis when any job starts.
    """
    for job_id, moment in group.killed_claims:
        later = [start for start in runs.get(job_id, []) if start > moment]
        if later:
            row.recoveries.append(min(later) - moment)
    starts = sorted(start for job_starts in runs.values() for start in job_starts)
    for moment in group.redis_restarts:
        row.recoveries += [start - moment for start in starts if start > moment][:1]


def check_audit(row: Row, client: redis.Redis) -> None:
    """Add a fault for each finding of `rqjobs audit`, and for each key that should be gone.

    A job that waits for a failed job is not a fault: RQ leaves it deferred.
    """
    audit = maintenance_audit.audit(client, settle=AUDIT_SETTLE_SECONDS)
    row.faults += [f"audit: {job_id}: {reason}" for job_id, reason in audit.breaches.items()]
    row.faults += [
        f"audit: {remark}" for remark in audit.remarks if not remark.startswith("deferred:")
    ]
    leftovers = [
        *client.scan_iter("rqjobs:claims:*"),
        *client.keys("rq:wip:*"),
        *client.keys("rq:queue:*"),
    ]
    row.faults += [f"left in Redis: {decode(key)}" for key in leftovers]
    if client.zcard(keys.LEASES) or client.scard("rq:workers"):
        row.faults.append("workers that have ended are still registered")
