"""How `make chaos` counts: what was accepted, what ran, and what Redis says became of it."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import redis
from chaos_stage import QUEUES, Load, Server, Team

from rqjobs.broker import keys, places, recovery
from rqjobs.broker.keys import decode
from rqjobs.maintenance import audit as maintenance_audit

ENDED = ("finished", "failed")
# kind -> how it ends, the types of its results (1 success, 2 failure, 4 retried), and how often it runs
KINDS = {
    "plain": ("finished", [1], 1),
    "scheduled": ("finished", [1], 1),
    "unique": ("finished", [1], 1),
    "dependent": ("finished", [1], 1),
    "failing": ("failed", [2], 1),
    "failing after a retry": ("failed", [2], 2),
    "retried": ("finished", [1], 3),
    "retried later": ("finished", [1], 2),
    "retried by value": ("finished", [4, 1], 2),
    "repeated": ("finished", [1, 1, 1], 3),
    "poison": ("failed", [2], 3),
}
CHUNK = 1000


@dataclass
class Row:
    """One line of the table, and what is wrong with it."""

    name: str
    accepted: int = 0
    outcomes: int = 0
    lost: int = 0
    twice: int = 0
    reran: int = 0
    buried: int = 0
    missed: int | None = None
    recoveries: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: str = ""

    HEAD = (
        "scenario",
        "accepted",
        "outcomes",
        "lost",
        "twice",
        "ran more",
        "buried",
        "missed",
        "median s",
        "worst s",
        "verdict",
    )

    def cells(self) -> tuple[str, ...]:
        times = self.recoveries
        return (
            self.name,
            f"{self.accepted:,}",
            f"{self.outcomes:,}",
            str(self.lost),
            str(self.twice),
            str(self.reran),
            str(self.buried),
            "-" if self.missed is None else str(self.missed),
            f"{statistics.median(times):.2f}" if times else "-",
            f"{max(times):.2f}" if times else "-",
            f"{'FAILED' if self.faults else 'ok'}{', ' + self.notes if self.notes else ''}",
        )


@dataclass
class Job:
    """What Redis has of one job."""

    status: str
    deaths: int
    results: list[int]


def read(client: redis.Redis, ids: list[str]) -> dict[str, Job]:
    jobs = {}
    for start in range(0, len(ids), CHUNK):
        part = ids[start : start + CHUNK]
        with client.pipeline(transaction=False) as pipe:
            for job_id in part:
                pipe.hmget(f"rq:job:{job_id}", "status", "rqjobs_crashes")
                pipe.xrange(f"rq:results:{job_id}")
            replies = pipe.execute()
        for at, job_id in enumerate(part):
            (status, deaths), entries = replies[2 * at], replies[2 * at + 1]
            results = [int(fields[b"type"]) for _, fields in entries]
            jobs[job_id] = Job(
                decode(status or b""), decode(deaths or b"").count(",") + bool(deaths), results
            )
    return jobs


def is_buried(job: Job) -> bool:
    return job.status == "failed" and job.deaths >= recovery.MAX_CRASHES


def has_ended(job: Job, kind: str) -> bool:
    _, results, _ = KINDS[kind]
    return is_buried(job) or (job.status in ENDED and len(job.results) >= len(results))


def drain(server: Server, load: Load, team: Team, patience: float = 90.0) -> set[str]:
    """Wait until every accepted job has ended, as long as something still moves; returns those that have not.

    A job that is deferred behind a buried one is where RQ leaves it.
    """
    left, buried = set(load.accepted), set()
    moved = time.monotonic()
    while left and time.monotonic() - moved < patience:
        team.look()
        before = len(left)
        for job_id, job in read(server.client, sorted(left)).items():
            kind, *parents = (
                load.accepted[job_id].split(" ")
                if (load.accepted[job_id].startswith("dependent"))
                else [load.accepted[job_id]]
            )
            if is_buried(job):
                buried.add(job_id)
            stuck = job.status == "deferred" and buried & set(parents)
            if has_ended(job, kind) or stuck:
                left.discard(job_id)
                buried |= {job_id} if stuck else set()
        if len(left) < before:
            moved = time.monotonic()
        time.sleep(0.1 if len(left) < 500 else 0.5)
    return left


def runs(file: Path) -> dict[str, list[float]]:
    """When each job began to run, from the file outside of Redis."""
    found: dict[str, list[float]] = defaultdict(list)
    for line in file.read_text().splitlines() if file.exists() else []:
        job_id, _, moment = line.split(" ")
        found[job_id].append(float(moment))
    return found


def count(row: Row, server: Server, load: Load, team: Team, unfinished: set[str]) -> Row:
    """Fill `row` from what is in Redis and in the file of runs, when all workers have left."""
    client = server.client
    ran, jobs = runs(team.runs), read(client, [*load.accepted, *load.unsure])
    active = Counter(job_id for queue in QUEUES for job_id in places.ids_in_places(client, queue))
    active.update(Counter(places.claimed_ids(client)))
    finished, failed = (
        {
            decode(member)
            for queue in QUEUES
            for member in client.zrange(f"rq:{name}:{queue}", 0, -1)
        }
        for name in ENDED
    )
    row.accepted = len(load.accepted)
    for job_id, kind in [*load.accepted.items(), *load.unsure.items()]:
        kind = "dependent" if kind.startswith("dependent") else kind
        job, moments = jobs[job_id], ran.get(job_id, [])
        if job_id in load.unsure and not job.status:
            continue
        status, results, times = KINDS[kind]
        if is_buried(job):
            status, results, times = "failed", [*results[: len(job.results) - 1], 2], len(moments)
            row.buried += kind != "poison"
        elif job.status == "deferred" and active[job_id] == 1:  # behind one that was buried
            continue
        twice = (
            len(job.results) > len(results)
            or (job_id in finished and job_id in failed and kind != "repeated")
            or (job.status in ENDED and active[job_id])
        )
        row.twice += bool(twice)
        row.reran += len(moments) > times
        ended = job.status in ENDED and job_id in finished | failed
        right = ended and (job.status, job.results) == (status, results) and len(moments) >= times
        row.outcomes += right and job_id in load.accepted
        if not ended or len(moments) < times or not (right or twice):
            row.lost += 1
        if twice or not right:
            row.faults.append(
                f"{job_id} ({kind}): {job}, ran {len(moments)} of {times} times, in {active[job_id]} "
                f"active places{', unfinished' if job_id in unfinished else ''}"
            )
    for job_id, moment, _ in team.hits:
        later = [again for again in ran.get(job_id, []) if again > moment]
        if later:
            row.recoveries.append(min(later) - moment)
    moments = sorted(moment for times in ran.values() for moment in times)
    for back in team.returns:
        row.recoveries += [moment - back for moment in moments if moment > back][:1]
    if load.trouble:
        row.faults.append(f"the load stopped: {load.trouble!r}")
    if load.doubled and not row.missed:
        row.faults.append(f"{load.doubled} unique jobs were accepted twice")
    row.faults[:0] = team.quitters
    check_audit(row, client)
    return row


def check_audit(row: Row, client: redis.Redis) -> None:
    """`rqjobs audit` must be clean; a job that waits for a failed one is where RQ leaves it."""
    audit = maintenance_audit.audit(client, settle=0.5)
    row.faults += [f"audit: {job_id}: {reason}" for job_id, reason in audit.breaches.items()]
    row.faults += [
        f"audit: {remark}" for remark in audit.remarks if not remark.startswith("deferred:")
    ]
    left = [
        *client.scan_iter("rqjobs:claims:*"),
        *(client.keys("rq:wip:*")),
        *client.keys("rq:queue:*"),
    ]
    row.faults += [f"left in Redis: {decode(key)}" for key in left]
    if client.zcard(keys.LEASES) or client.scard("rq:workers"):
        row.faults.append("workers that have left are still registered")
