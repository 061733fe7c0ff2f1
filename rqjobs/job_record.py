"""All that Redis keeps about one job, read in one round trip. Nothing is changed."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis
from rq.exceptions import NoSuchJobError
from rq.results import Result

from rqjobs import attempts, config, hiding, job_logs
from rqjobs.attempts import Attempt
from rqjobs.broker import scripts
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import INSPECT_JOB
from rqjobs.job_fields import read_description, read_traceback
from rqjobs.job_logs import LogLine
from rqjobs.jobs import Job

RUN_VALUE_MAX_BYTES = 192 * 1024  # of a result or a traceback as it is stored; a multiple of 4
MAX_RELATIVES = 50  # parents, or children, that are read
MAX_CHECKED_PARENTS = 20_000  # as many as a flow may have


@dataclass(frozen=True)
class Relative:
    """A job before or after another one. `status` is "gone" if its record is.

    `ending`: why a canceled one ended ("expired", "discarded"), or "".
    """

    job_id: str
    status: str
    ending: str
    description: str = ""


@dataclass(frozen=True)
class RunResult:
    """The result of the last run of a job.

    `value` is its result if it `has_value`. If the result is too large to be read, `beginning` has
    its first bytes, and if it cannot be read, `error` says why.
    """

    has_value: bool = False
    value: Any = None
    beginning: str = ""
    error: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class JobRecord:
    """A job with all that the pages show of it. `fields` are those of its hash.

    `due`: Unix seconds of a delayed job, or None. `place_in_line`: its place in its queue, or in the
    line for its limit, from 1; 0 if it is not among the first 10,000. `checked_parents`: the number
    of parents that were looked at for `blocking`, those that do not let it run.
    """

    job: Job
    fields: Mapping[str, str]
    attempts: list[Attempt]  # the newest first
    result: RunResult
    log: list[LogLine]
    due: float | None
    place_in_line: int
    has_schedule: bool
    parents: list[Relative]
    number_of_children: int
    children: list[Relative]
    blocking: list[Relative]
    checked_parents: int
    listeners: int  # workers that listen to its queue

    @property
    def number_of_parents(self) -> int:
        """The number of jobs before this one."""
        ids = self.job._dependency_ids
        return len(ids) if isinstance(ids, list) else 0


def read(connection: redis.Redis, job_id: str) -> JobRecord | Exception:
    """A job with all that is known of it, or the error if its record cannot be read.

    Raises:
        NoSuchJobError: there is no such job.
        redis.RedisError: Redis does not answer.
    """
    arguments = [
        job_id,
        attempts.MAX_ATTEMPTS,
        RUN_VALUE_MAX_BYTES,
        MAX_RELATIVES,
        MAX_CHECKED_PARENTS,
    ]
    (reply,) = scripts.read_together(connection, [INSPECT_JOB.call([], arguments)], INSPECT_JOB)
    if isinstance(reply, Exception):
        return reply
    stored, *rest = reply
    if isinstance(stored, Exception):
        return stored
    if not stored:
        raise NoSuchJobError(f"No such job: {job_id}")
    fields = dict(zip(stored[::2], stored[1::2], strict=True))
    try:
        job = Job.from_hash(job_id, fields, connection)
        return _record(job, fields, *rest)
    except redis.ConnectionError:
        raise
    except Exception as error:  # RQ may raise anything for a damaged record
        return error


def _record(
    job: Job,
    fields: Mapping[bytes, bytes],
    runs: list[Any],
    log: Any,
    due: bytes,
    place_in_line: int,
    has_schedule: int,
    parents: list[Any],
    number_of_children: int,
    children: list[Any],
    blocking: list[Any],
    checked_parents: int,
    listeners: int,
) -> JobRecord:
    entries = [(decode(run_id), _pairs(words)) for run_id, words in runs]
    return JobRecord(
        job=job,
        fields={
            decode(name): decode(value)
            for name, value in fields.items()
            if name.startswith(b"rqjobs_")
        },
        attempts=attempts.read_entries(entries),
        result=_result(job, entries),
        log=job_logs.lines_of(log),
        due=_number(due),
        place_in_line=place_in_line,
        has_schedule=bool(has_schedule),
        parents=_relatives(parents),
        number_of_children=number_of_children,
        children=sorted(_relatives(children), key=lambda one: one.job_id),
        blocking=_relatives(blocking),
        checked_parents=checked_parents,
        listeners=listeners,
    )


def _pairs(words: Any) -> dict[bytes, bytes]:
    return dict(zip(words[::2], words[1::2], strict=False))


def _number(text: bytes) -> float | None:
    with contextlib.suppress(ValueError):
        return float(text)
    return None


def _relatives(found: Iterable[Any]) -> list[Relative]:
    relatives = []
    for job_id, status, ending, *description in found:
        text = read_description(description[0]) if description else ""
        relatives.append(
            Relative(decode(job_id), decode(status) or "gone", decode(ending)[:100], text)
        )
    return relatives


def _result(job: Job, entries: list[tuple[str, dict[bytes, bytes]]]) -> RunResult:
    """The result and the traceback of the last run. Older versions of RQ keep it with the job."""
    if not entries:
        return RunResult(traceback=job._exc_info or "")
    fields = entries[0][1]
    try:
        kind = Result.Type(int(fields[b"type"]))
        trace = read_traceback(base64.b64decode(fields.get(b"exc_string", b"")) or b" ")
        if kind is not Result.Type.SUCCESSFUL:
            return RunResult(traceback=trace if trace.strip() else "")
        stored = fields.get(b"return_value", b"")
        if not stored:
            return RunResult(has_value=True)
        if len(stored) >= RUN_VALUE_MAX_BYTES:
            beginning = base64.b64decode(stored).decode(errors="replace")
            return RunResult(beginning=hiding.hide_text(config.current().hide, beginning))
        return RunResult(True, job.serializer.loads(base64.b64decode(stored)))
    except Exception as error:  # a damaged record, or one of another serializer
        return RunResult(error=f"cannot be read: {error}", traceback=job._exc_info or "")
