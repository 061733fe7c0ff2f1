"""The runs of a job that Redis keeps, and the state of its retries in one line."""

from __future__ import annotations

import contextlib
import re
from base64 import b64decode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rq.job import JobStatus
from rq.results import Result

from rqjobs.broker import keys
from rqjobs.broker.keys import decode
from rqjobs.job_fields import read_traceback
from rqjobs.jobs import Job
from rqjobs.times import utc

MAX_ATTEMPTS = 10  # RQ keeps about as many results of a job
ATTEMPT_MAX_CHARACTERS = 300
MODULE = re.compile(r"^(?:\w+\.)+(?=\w+(?::|$))")
OUTCOMES = {
    Result.Type.SUCCESSFUL.value: "finished",
    Result.Type.FAILED.value: "failed",
    Result.Type.STOPPED.value: "canceled",
    Result.Type.RETRIED.value: "retried",
    Result.Type.MAX_RETRIES_EXCEEDED.value: "failed",
}
STOPPED_MESSAGE = "Job stopped by user, work-horse terminated."  # RQ records it as a failure
WAITING = (JobStatus.SCHEDULED, JobStatus.QUEUED, JobStatus.DEFERRED)


@dataclass(frozen=True)
class Attempt:
    """One run of a job. Unknown facts are None; `error` is one line, or ""."""

    outcome: str  # "finished", "failed", "stopped", "retried" or "canceled" (discarded)
    ended: datetime
    worker: str
    seconds: float | None
    error: str
    started: datetime | None = None


def read_attempts(job: Job) -> list[Attempt]:
    """The last runs of a job, newest first. Entries that cannot be read are left out.

    Raises:
        redis.RedisError: Redis does not answer, or the key is not a stream.
    """
    entries: Any = job.connection.xrevrange(keys.results(job.id), count=MAX_ATTEMPTS)
    return read_entries([(decode(entry_id), fields) for entry_id, fields in entries])


def read_entries(entries: Iterable[tuple[str, Mapping[bytes, bytes]]]) -> list[Attempt]:
    """The runs of entries of a job's results. Those that cannot be read are left out."""
    found = []
    for entry_id, fields in entries:
        with contextlib.suppress(Exception):  # anything: the entry may be damaged or forged
            found.append(_read(entry_id, fields))
    return found


def _read(entry_id: str, fields: Mapping[bytes, bytes]) -> Attempt:
    seconds = began = None
    recorded = utc(int(entry_id.partition("-")[0]) / 1000)
    started, ended = (
        fields.get(b"execution_started_at"),
        fields.get(b"execution_ended_at"),
    )
    if started and ended:
        seconds = max(0.0, float(ended) - float(started))
        began, recorded = utc(float(started)), utc(float(ended))
    outcome = OUTCOMES.get(int(fields[b"type"]), "?")
    trace = read_traceback(b64decode(fields.get(b"exc_string") or b"") or b" ")
    if trace.strip() == STOPPED_MESSAGE:
        outcome = "stopped"
    return Attempt(
        outcome,
        recorded,
        decode(fields.get(b"worker_name") or b"")[:ATTEMPT_MAX_CHARACTERS],
        seconds,
        last_line(trace),
        began,
    )


def last_line(traceback: str) -> str:
    """The exception of a traceback, without its module."""
    lines = traceback.strip().splitlines() or [""]
    return MODULE.sub("", lines[-1].strip())[:ATTEMPT_MAX_CHARACTERS]


def describe_retries(job: Job, attempts: list[Attempt], due: Any, now: float) -> str:
    """A line such as "attempt 3 of 6, next in 40 s, after RateLimited: slow down".

    "" if the job has not been retried by a rule, or has ended. `due`: Unix seconds of a delayed job.
    """
    status = job.get_status(refresh=False)
    count = job.history.retries
    if not count or status not in (*WAITING, JobStatus.STARTED):
        return ""
    line = f"attempt {count + 1:,}"
    if job.retries_left is not None:
        line += f" of {count + job.retries_left + 1:,}"
    if status == JobStatus.STARTED:
        line += ", running"
    elif isinstance(due, int | float) and status == JobStatus.SCHEDULED:
        line += f", next in {max(0, due - now):,.0f} s"
    else:
        line += ", waiting"
    if attempts and attempts[0].error:
        line += f", after {attempts[0].error}"
    return line
