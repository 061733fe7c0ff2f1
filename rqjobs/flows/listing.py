"""All flows, the newest first."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rqjobs import connection
from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import LIST_FLOWS
from rqjobs.flows.flow import FlowProgress, FlowStatus
from rqjobs.job_fields import read_description
from rqjobs.times import utc

MAX_FLOWS = 1000  # of one call
MAX_COUNTED_JOBS = 5000  # of all flows of a call: the script holds up other clients
MAX_TIES = 20  # flows that may have been enqueued in the same microsecond
FLOW_CURSOR = re.compile(r"(\d{1,12}(?:\.\d{1,9})?):([\w-]{1,64})", re.ASCII)


@dataclass(frozen=True)
class FlowSummary:
    """A flow in a list. `first` and `last` describe its first and its last job, if they exist.

    A flow that is so large that its jobs were not counted has `status` None until it has finished,
    and its failed jobs are not in `progress`.
    """

    flow_id: str
    enqueued: datetime
    jobs: int
    first: str
    last: str
    status: FlowStatus | None
    progress: FlowProgress


@dataclass(frozen=True)
class FlowsFound:
    """A part of the list. `next` is the `after` of the part behind it, or "" if there is none."""

    flows: list[FlowSummary]
    next: str


def newest(after: str = "", limit: int = 25) -> FlowsFound:
    """Up to `limit` flows, the newest first. Flows that are gone are left out.

    `after`: the `next` of the part before this one; a text of another form counts as "".
    """
    limit = max(1, min(limit, MAX_FLOWS))
    match = FLOW_CURSOR.fullmatch(after)
    before = (float(match[1]), match[2]) if match else None
    wanted = 2 * limit + MAX_TIES  # some of them may be gone
    arguments = [match[1] if match else "+inf", wanted, MAX_COUNTED_JOBS]
    command = LIST_FLOWS.call([keys.FLOWS], arguments)
    (reply,) = scripts.read_together(connection.client(), [command], LIST_FLOWS)
    rows = [row for row in reply if before is None or _cursor(row) < before]
    shown: list[Any] = []
    for number, row in enumerate(rows):
        if len(shown) == limit:
            return FlowsFound(list(map(_summary, shown)), _write(rows[number - 1]))
        if row[2]:
            shown.append(row)
    end = _write(reply[-1]) if len(reply) == wanted else ""
    return FlowsFound(list(map(_summary, shown)), end)


def _cursor(row: Any) -> tuple[float, str]:
    return float(row[1]), decode(row[0])


def _write(row: Any) -> str:
    moment, flow_id = _cursor(row)
    return f"{moment:.6f}:{flow_id}"


def descriptions(job_ids: list[str]) -> list[str]:
    """The description of each job, which begins with its function; "" for one that is gone."""
    commands = [("HGET", keys.job(job_id), "description") for job_id in job_ids]
    replies = scripts.read_together(connection.client(), commands)
    return [read_description(reply) if isinstance(reply, bytes) else "" for reply in replies]


def _summary(row: Any) -> FlowSummary:
    flow_id, moment, _, jobs, results, first, last, words = row
    counts = Counter(
        {decode(status): number for status, number in zip(words[::2], words[1::2], strict=True)}
    )
    failed = counts["failed"] + counts["continue"] + counts["stopped"]
    done = counts["finished"] if counts else min(results, jobs)
    return FlowSummary(
        decode(flow_id),
        utc(float(moment)),
        jobs,
        read_description(first),
        read_description(last),
        _status(counts, done, jobs),
        FlowProgress(done, failed, jobs),
    )


def _status(counts: Counter[str], done: int, jobs: int) -> FlowStatus | None:
    """The status by the numbers of jobs; None if they were not counted."""
    if done == jobs or (counts and not counts["open ends"]):
        return FlowStatus.FINISHED
    if not counts:
        return None
    if counts["canceled"]:
        return FlowStatus.CANCELED
    if counts["failed"] or counts["stopped"] or counts["gone"]:
        return FlowStatus.FAILED
    return FlowStatus.RUNNING
