"""The workers that RQ knows, by their records, leases and heartbeats."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import redis

from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.times import seconds_since

PROCESS_FIELDS = ("pid", "horse", "rqjobs", "memory", "horse_memory", "per_minute", "quiet")


@dataclass(frozen=True)
class WorkerStats:
    """One worker that RQ knows. `alive` is by its lease, or for a plain RQ worker by RQ's key.

    The fields below `python_version` are those of our own workers: the version of rqjobs, the
    horse's pid (0: none), memory in bytes (0: not known), jobs done in the last minute, and the
    seconds left of the lease, below 0 if it has expired.
    """

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
    version: str = ""  # of RQ
    python_version: str = ""
    seconds_worked: float = 0.0  # on all jobs
    has_ended: bool = False  # it has unregistered
    rqjobs_version: str = ""
    horse_pid: int = 0
    memory: int = 0  # of the parent
    horse_memory: int = 0
    per_minute: float = 0.0
    quiet_since: float = 0.0  # Unix seconds; 0 if it takes jobs
    lease: float | None = None

    @property
    def done(self) -> int:
        return self.succeeded + self.failed

    @property
    def shown_state(self) -> str:
        """The state in one word: RQ's, or "dead", or "quiet" for a worker that takes no jobs."""
        if not self.alive:
            return "dead"
        return "quiet" if self.quiet_since else self.state


def worker(connection: redis.Redis, name: str) -> WorkerStats | None:
    """One worker by its record; None if RQ has none of this name that can be read."""
    (seconds, _), *replies = scripts.read_together(connection, [("TIME",), *record_commands(name)])
    found = read_workers([name], replies, seconds)
    return found[0] if found else None


def claimed_jobs(connection: redis.Redis, worker: str) -> int:
    """The number of jobs that a worker has claimed and not settled."""
    (number,) = scripts.read_together(connection, [("LLEN", keys.claims(worker))])
    return number if isinstance(number, int) else 0


def record_commands(name: str) -> list[tuple[Any, ...]]:
    """The commands that read a worker. `read_workers` takes their replies."""
    return [
        ("HGETALL", keys.worker(name)),
        ("ZSCORE", keys.LEASES, name),
        ("HMGET", keys.process(name), *PROCESS_FIELDS),
    ]


def read_workers(names: list[str], replies: list[Any], seconds: float) -> list[WorkerStats]:
    """The workers whose record can be read. `replies` are those to `record_commands`."""
    found = []
    for name, record, lease, process in zip(
        names, replies[::3], replies[1::3], replies[2::3], strict=True
    ):
        if not isinstance(record, dict) or isinstance(lease, Exception):
            continue  # a key of the wrong type
        fields = {decode(field): decode(value) for field, value in record.items()}
        if "state" in fields and fields["state"] != "?":
            found.append(_worker(name, fields, lease, seconds, _process_facts(process)))
    return found


def _process_facts(reply: Any) -> dict[str, Any]:
    """The facts that a worker of ours writes with its heartbeat; none for another one."""
    if not isinstance(reply, list) or not any(reply):
        return {}
    _pid, horse, version, memory, horse_memory, per_minute, quiet = (
        decode(value or b"") for value in reply
    )
    return {
        "horse_pid": _number(horse),
        "rqjobs_version": version,
        "memory": _number(memory),
        "horse_memory": _number(horse_memory),
        "per_minute": _decimal(per_minute),
        "quiet_since": _decimal(quiet),
    }


def _worker(
    name: str, fields: dict[str, str], lease: float | None, seconds: float, facts: dict[str, Any]
) -> WorkerStats:
    is_alive = "death" not in fields
    if lease is not None:
        is_alive = lease > seconds
    return WorkerStats(
        name=name,
        state=fields["state"],
        job_id=fields.get("current_job"),
        queues=tuple(filter(None, fields.get("queues", "").split(","))),
        host=fields.get("hostname", "?"),
        pid=_number(fields.get("pid")),
        heartbeat=seconds_since(fields.get("last_heartbeat")),
        succeeded=_number(fields.get("successful_job_count")),
        failed=_number(fields.get("failed_job_count")),
        alive=is_alive,
        ours=lease is not None,
        version=fields.get("version", ""),
        python_version=fields.get("python_version", ""),
        seconds_worked=_seconds(fields.get("total_working_time")),
        has_ended="death" in fields,
        lease=None if lease is None else lease - seconds,
        **facts,
    )


def _decimal(value: str) -> float:
    """A number as our workers write it; 0 for other text."""
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?(e\+[0-9]{2})?", value, re.ASCII):
        return float(value)
    return 0.0


def _number(value: str | None) -> int:
    if value and re.fullmatch("[0-9]{1,18}", value):
        return int(value)
    return 0


def _seconds(value: str | None) -> float:
    if value and re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,20})?(e-?[0-9]{1,2})?", value):
        return float(value)
    return 0.0
