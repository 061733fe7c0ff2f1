"""The runs of a job in their order, each with its log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from itertools import groupby
from typing import Any

from rqjobs.attempts import MAX_ATTEMPTS
from rqjobs.job_logs import LogLine
from rqjobs.job_record import JobRecord
from rqjobs.times import utc
from rqjobs.web.rendering import cut, pages

LOG_MAX_LINES = 2000
LIVE_LOG_LINES = 200  # of a job that has not ended
SLACK = timedelta(milliseconds=50)  # lines have the time in milliseconds
CRASH_SLACK = timedelta(seconds=1)  # the clocks of Redis and of the worker differ
MAX_SHOWN_CRASHES = 20
CRASHED = "its process died"


@dataclass(frozen=True)
class LogRow:
    """A line of the log. `missing`: the number of lines before it that are not shown."""

    line: LogLine
    text: str
    time: str  # ISO 8601, with milliseconds
    missing: int


@dataclass(frozen=True)
class Run:
    """A run of the job. Unknown facts are None. `waited` and `ran` are in seconds.

    `outcome` is "finished", "failed", "stopped", "retried", "canceled", "crashed", "started" (it
    goes on), or "" if none is recorded.
    """

    outcome: str
    started: datetime | None = None
    ended: datetime | None = None
    worker: str = ""
    error: str = ""
    ran: float | None = None
    waited: float | None = None
    number: int = 0
    rows: list[LogRow] = field(default_factory=list)


def runs_of(record: JobRecord, has_ended: bool) -> list[Run]:
    """The runs of a job, the oldest first.

    The page of a job that has not ended is read each second, so its log is shorter.
    """
    runs = _add_waits(record, _recorded(record))
    return _add_log(runs, record, LOG_MAX_LINES if has_ended else LIVE_LOG_LINES)


def _recorded(record: JobRecord) -> list[Run]:
    """The runs that have left a record, and the one that goes on."""
    runs = [
        Run(one.outcome, one.started, one.ended, cut(one.worker, 260), one.error, one.seconds)
        for one in record.attempts
    ]
    runs += [Run("crashed", None, moment, "", CRASHED) for moment in _crashes(record, runs)]
    runs.sort(key=lambda run: (run.ended is None, run.ended))
    job = record.job
    if job.get_status(refresh=False).value == "started":
        runs.append(Run("started", aware(job.started_at), None, cut(job.worker_name, 260)))
    return runs


def aware(moment: Any) -> datetime | None:
    """A date of a job's record with its time zone; None if it is not a date."""
    if not isinstance(moment, datetime):
        return None
    return moment.replace(tzinfo=moment.tzinfo or timezone.utc)


def _crashes(record: JobRecord, runs: list[Run]) -> Iterator[datetime]:
    """The times at which processes died under the job, without the one that has failed it."""
    times = re.findall(r"\d+(?:\.\d+)?", record.fields.get("rqjobs_crashes", ""))
    for text in times[-MAX_SHOWN_CRASHES:]:
        try:
            moment = utc(float(text))
        except (ValueError, OverflowError, OSError):
            continue
        if not any(run.ended and abs(run.ended - moment) < CRASH_SLACK for run in runs):
            yield moment


def _add_waits(record: JobRecord, runs: list[Run]) -> list[Run]:
    """The runs with the time from the end of the one before, or from the creation, to the start."""
    before = aware(record.job.created_at)
    if len(record.attempts) >= MAX_ATTEMPTS:  # earlier runs are not kept
        before = None
    found = []
    for run in runs:
        waited = None
        if before and run.started:
            waited = max(0.0, (run.started - before).total_seconds())
        found.append(replace(run, waited=waited))
        before = run.ended
    return found


def _add_log(runs: list[Run], record: JobRecord, max_lines: int) -> list[Run]:
    """The runs with their numbers and their lines. Lines of no recorded run are a run of their own.

    The lines of a run are between its start and its end.
    """
    left = list(runs)
    found: list[Run] = []
    for number, group in groupby(_rows(record.log, max_lines), lambda row: row.line.attempt):
        rows = list(group)
        first = rows[0].line.time
        while left and _ends_before(left[0], first):
            found.append(left.pop(0))
        if left and not _begins_after(left[0], first):
            found.append(replace(left.pop(0), rows=rows, number=number))
        else:
            found.append(Run("", rows=rows, number=number))
    return _number([*found, *left])


def _ends_before(run: Run, moment: datetime) -> bool:
    return run.ended is not None and moment - run.ended > SLACK


def _begins_after(run: Run, moment: datetime) -> bool:
    return run.started is not None and run.started - moment > SLACK


def _number(runs: list[Run]) -> list[Run]:
    """The runs with numbers from 1, unless their lines have larger ones."""
    found = []
    number = 0
    for run in runs:
        number = max(number + 1, run.number)
        found.append(replace(run, number=number))
    return found


def _rows(lines: list[LogLine], max_lines: int) -> list[LogRow]:
    rows: list[LogRow] = []
    for line in lines[-max_lines:]:
        missing = line.dropped if rows else line.number
        moment = line.time.isoformat(timespec="milliseconds")
        rows.append(LogRow(line, cut(line.text), moment, missing))
    return rows


@pages.app_template_filter("rqjobs_seconds")
def seconds_text(seconds: float | None) -> str:
    """A length of time in two units at most: "350 ms", "1.2 s", "3 min 5 s", "2 h 10 min"."""
    if seconds is None:
        return ""
    if seconds < 0.00995:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= length:
            return f"{whole // length:,} {unit} {whole % length // part} {smaller}"
    return f"{whole // 60} min {whole % 60} s"
