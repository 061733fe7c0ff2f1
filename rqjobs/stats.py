"""One snapshot of what is going on, for the pages and the command line. Reading it changes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import redis
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import now, str_to_date

from rqjobs.broker import keys, scripts, transitions
from rqjobs.broker.keys import decode, queue_names_in
from rqjobs.broker.places import PLACES, queue_names
from rqjobs.jobs import Job

REGISTRIES = {
    "running": "wip",
    "scheduled": "scheduled",
    "deferred": "deferred",
    "failed": "failed",
    "finished": "finished",
    "canceled": "canceled",
}
SUSPENDED = "RQ is suspended: no worker begins a job until `rq resume`"


@dataclass(frozen=True)
class QueueStats:
    """One queue: how many jobs are where, how long the first has been waiting (seconds), how many workers listen."""

    name: str
    queued: int
    running: int
    scheduled: int
    deferred: int
    failed: int
    finished: int
    canceled: int
    stopped: int
    oldest: float | None
    workers: int


@dataclass(frozen=True)
class WorkerStats:
    """One worker that RQ knows of. `alive` is by its lease, or for a stock worker by RQ's key."""

    name: str
    state: str
    queues: tuple[str, ...]
    job_id: str | None
    host: str
    pid: int
    heartbeat: float | None  # seconds since the last one
    succeeded: int
    failed: int
    alive: bool
    ours: bool


@dataclass(frozen=True)
class Snapshot:
    queues: list[QueueStats]
    workers: list[WorkerStats]
    suspended: bool = False  # by `rq suspend`: the workers begin no job until `rq resume`

    @property
    def unserved(self) -> list[str]:
        """Queues with waiting jobs that no live worker listens to."""
        return [
            queue.name
            for queue in self.queues
            if not queue.workers and (queue.queued or queue.scheduled)
        ]


def snapshot(connection: redis.Redis) -> Snapshot:
    """Every queue and every worker, as they are now."""
    return overview(connection, {})[0]


def overview(
    connection: redis.Redis, newest: dict[str, int]
) -> tuple[Snapshot, dict[str, list[Job]]]:
    """A snapshot, and of each registry (a key of `REGISTRIES`, or "queued") so many jobs, the newest first.

    Three round trips, however many queues, workers and jobs there are.
    """
    first = scripts.read_together(
        connection,
        [
            ("SMEMBERS", keys.QUEUES),
            ("SMEMBERS", keys.WORKERS),
            ("TIME",),
            ("EXISTS", WORKERS_SUSPENDED),
        ],
    )
    names, (seconds, _), suspended = queue_names_in(first[0]), first[2], bool(first[3])
    script_keys = sorted(map(decode, first[1])) if isinstance(first[1], set | list) else []
    portions = scripts.in_chunks(names)
    facts = [
        fact
        for key in script_keys
        for fact in (
            ("HGETALL", key),
            ("ZSCORE", keys.LEASES, key.removeprefix(keys.WORKER_PREFIX)),
        )
    ]
    counts = [scripts.COUNT_PLACES.call([], portion) for portion in portions]
    asked = [
        (registry, _newest(registry, limit, portion))
        for registry, limit in newest.items()
        for portion in portions
    ]
    second = scripts.read_together(
        connection,
        [*facts, *counts, *(command for _, command in asked)],
        scripts.COUNT_PLACES,
        scripts.NEWEST_JOBS,
    )
    workers = _workers(script_keys, second[: len(facts)], seconds)
    census = [one for reply in second[len(facts) : len(facts) + len(counts)] for one in reply]
    found: dict[str, list[Any]] = {registry: [] for registry in newest}
    for (registry, _), reply in zip(asked, second[len(facts) + len(counts) :], strict=True):
        found[registry] += reply
    return Snapshot(_queues(names, census, workers), workers, suspended), _read(
        connection, found, newest
    )


def _queues(names: list[str], census: list[Any], workers: list[WorkerStats]) -> list[QueueStats]:
    listening = Counter(name for worker in workers if worker.alive for name in set(worker.queues))
    found = {decode(name): (_age(since), counts) for name, since, *counts in census}
    nothing = (None, [0] * len(PLACES))
    queues = []
    for name in names:
        oldest, counts = found.get(name, nothing)
        by_place = dict(zip(PLACES, counts, strict=True))
        by_place.pop("intermediate")
        queues.append(QueueStats(name=name, oldest=oldest, workers=listening[name], **by_place))
    return queues


def _age(moment: Any) -> float | None:
    try:
        return max(0.0, (now() - str_to_date(moment)).total_seconds()) if moment else None
    except ValueError:
        return None


def _workers(script_keys: list[str], facts: list[Any], seconds: float) -> list[WorkerStats]:
    found = []
    for key, raw, lease in zip(script_keys, facts[::2], facts[1::2], strict=True):
        if not isinstance(raw, dict) or isinstance(lease, Exception):
            continue  # somebody else wrote there
        data = {decode(name): decode(value) for name, value in raw.items()}
        found.append(
            WorkerStats(
                name=key.removeprefix(keys.WORKER_PREFIX),
                state=data.get("state", "?"),
                job_id=data.get("current_job"),
                queues=tuple(filter(None, data.get("queues", "").split(","))),
                host=data.get("hostname", "?"),
                pid=_number(data.get("pid")),
                heartbeat=_age(raw.get(b"last_heartbeat")),
                succeeded=_number(data.get("successful_job_count")),
                failed=_number(data.get("failed_job_count")),
                alive=lease > seconds if lease is not None else bool(data) and "death" not in data,
                ours=lease is not None,
            )
        )
    return [worker for worker in found if worker.state != "?"]


def _number(value: str | None) -> int:
    return int(value) if value and value.isdigit() else 0


def recent(
    connection: redis.Redis, registry: str, limit: int = 10, queues: list[str] | None = None
) -> list[Job]:
    """The newest jobs of a registry (a key of `REGISTRIES`, or "queued") over all queues, newest first.

    A job whose hash cannot be read is left out.
    """
    commands = [
        _newest(registry, limit, portion)
        for portion in scripts.in_chunks(queues or queue_names(connection))
    ]
    found = [
        one
        for reply in scripts.read_together(connection, commands, scripts.NEWEST_JOBS)
        for one in reply
    ]
    return _read(connection, {registry: found}, {registry: limit})[registry]


def failed_job_ids(connection: redis.Redis) -> list[str]:
    """Every failed job of every queue, the oldest first in each queue. Stopped jobs are not included."""
    return [
        job_id
        for queue in queue_names(connection)
        for _, job_id in transitions.failed_jobs(connection, queue)
    ]


def _newest(registry: str, limit: int, portion: list[str]) -> tuple[Any, ...]:
    return scripts.NEWEST_JOBS.call(
        [], [{"queued": "queue", **REGISTRIES}[registry], limit, *portion]
    )


SHOWN = (
    "status",
    "origin",
    "description",
    "created_at",
    "enqueued_at",
    "started_at",
    "ended_at",
    "worker_name",
    "timeout",
)  # fields of a job's hash that lists show


def _read(
    connection: redis.Redis, found: dict[str, list[Any]], limits: dict[str, int]
) -> dict[str, list[Job]]:
    """The newest of the jobs that were `found` ([moment, id]), by registry; without what lists do not show of them."""
    ids = {
        registry: [
            decode(job_id) for _, job_id in sorted(pairs, key=lambda pair: pair[0], reverse=True)
        ][: limits[registry]]
        for registry, pairs in found.items()
    }
    flat = list(dict.fromkeys(job_id for some in ids.values() for job_id in some))
    replies = scripts.read_together(
        connection, [("HMGET", keys.job(job_id), *SHOWN) for job_id in flat]
    )
    jobs = {
        job_id: _job(connection, job_id, reply) for job_id, reply in zip(flat, replies, strict=True)
    }
    return {
        registry: [job for job_id in some if (job := jobs[job_id])]
        for registry, some in ids.items()
    }


def _job(connection: redis.Redis, job_id: str, values: Any) -> Job | None:
    if not isinstance(values, list) or not any(values):
        return None
    fields = {name.encode(): value for name, value in zip(SHOWN, values, strict=True) if value}
    try:
        job = Job(job_id, connection=connection)
        job.restore({**fields, b"data": b""})
        return job
    except Exception:  # whatever a hostile or damaged hash makes RQ raise
        return None


def fetch(connection: redis.Redis, job_id: str) -> Job | None:
    """The job, or None if there is none, or none that can be read."""
    try:
        return Job.fetch(job_id, connection=connection)  # type: ignore[return-value]
    except Exception:  # whatever a hostile or damaged hash makes RQ raise
        return None
