"""One snapshot of what is going on, for the pages and the command line. Reading it changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import redis
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import now, str_to_date

from rqjobs import ledger
from rqjobs.jobs import Job
from rqjobs.ledger import text
from rqjobs.orphans import queue_names

REGISTRIES = {"running": "wip", "scheduled": "scheduled", "deferred": "deferred", "failed": "failed",
              "finished": "finished", "canceled": "canceled"}
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
        return [queue.name for queue in self.queues if not queue.workers and (queue.queued or queue.scheduled)]


def snapshot(connection: redis.Redis) -> Snapshot:
    """Every queue and every worker, as they are now."""
    workers = _workers(connection)
    suspended = bool(connection.exists(WORKERS_SUSPENDED))
    return Snapshot([_queue(connection, name, workers) for name in queue_names(connection)], workers, suspended)


def _queue(connection: redis.Redis, name: str, workers: list[WorkerStats]) -> QueueStats:
    with connection.pipeline(transaction=False) as pipe:
        pipe.llen(f"rq:queue:{name}")
        pipe.lindex(f"rq:queue:{name}", 0)
        for registry in REGISTRIES.values():
            pipe.zcard(f"rq:{registry}:{name}")
        queued, first, *counts = pipe.execute()
    since = connection.hget(f"rq:job:{text(first)}", "enqueued_at") if first else None
    listening = sum(worker.alive and name in worker.queues for worker in workers)
    return QueueStats(name=name, queued=queued, oldest=_age(since), workers=listening,
                      **dict(zip(REGISTRIES, counts, strict=True)))


def _age(moment: Any) -> float | None:
    try:
        return max(0.0, (now() - str_to_date(moment)).total_seconds()) if moment else None
    except ValueError:
        return None


def _workers(connection: redis.Redis) -> list[WorkerStats]:
    keys = sorted(text(key) for key in connection.smembers("rq:workers"))
    with connection.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hgetall(key)
            pipe.zscore(ledger.WORKERS, key.removeprefix("rq:worker:"))
        rows = pipe.execute()
    seconds, _ = connection.time()
    found = []
    for index, key in enumerate(keys):
        raw, lease = rows[2 * index], rows[2 * index + 1]
        data = {text(name): text(value) for name, value in raw.items()}
        found.append(WorkerStats(
            name=key.removeprefix("rq:worker:"), state=data.get("state", "?"), job_id=data.get("current_job"),
            queues=tuple(filter(None, data.get("queues", "").split(","))), host=data.get("hostname", "?"),
            pid=_number(data.get("pid")), heartbeat=_age(raw.get(b"last_heartbeat")),
            succeeded=_number(data.get("successful_job_count")), failed=_number(data.get("failed_job_count")),
            alive=lease > seconds if lease is not None else bool(data) and "death" not in data, ours=lease is not None,
        ))
    return [worker for worker in found if worker.state != "?"]


def _number(value: str | None) -> int:
    return int(value) if value and value.isdigit() else 0


def recent(connection: redis.Redis, registry: str, limit: int = 10, queues: list[str] | None = None) -> list[Job]:
    """The newest jobs of a registry (a key of `REGISTRIES`, or "queued") over all queues, newest first.

    A job whose hash cannot be read is left out.
    """
    ids: list[str] = []
    for queue in queues or queue_names(connection):
        if registry == "queued":
            members: Any = connection.lrange(f"rq:queue:{queue}", -limit, -1)
        else:
            members = connection.zrange(f"rq:{REGISTRIES[registry]}:{queue}", 0, limit - 1, desc=True)
        ids += [text(member).partition(":")[0] for member in members]
    jobs = [job for job in (fetch(connection, job_id) for job_id in ids) if job]
    oldest = datetime.min.replace(tzinfo=timezone.utc)
    jobs.sort(key=lambda job: job.ended_at or job.enqueued_at or job.created_at or oldest, reverse=True)
    return jobs[:limit]


def fetch(connection: redis.Redis, job_id: str) -> Job | None:
    """The job, or None if there is none, or none that can be read."""
    try:
        return Job.fetch(job_id, connection=connection)  # type: ignore[return-value]
    except Exception:  # whatever a hostile or damaged hash makes RQ raise
        return None
