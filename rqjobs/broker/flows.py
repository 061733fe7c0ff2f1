"""Flows in Redis: their jobs are held back until all of them are stored, or dropped.

A flow is stored in several steps. Its first jobs are deferred until then, so no job of it runs. The
release is the step that accepts it. If the process that stores it dies before, the sweep drops it;
if the process dies later, the sweep goes on with the release.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import redis
from rq.utils import now, utcformat

from rqjobs.broker import enqueueing, keys
from rqjobs.broker.enqueueing import Placement, RowOutcome
from rqjobs.broker.keys import FLOWS, HELD_FLOWS, decode
from rqjobs.broker.scripts import (
    CANCEL_FLOW,
    DROP_FLOW,
    FORGET_FLOWS,
    RELEASE_FLOW,
    is_wrong_type,
)

log = logging.getLogger("rqjobs")
FORGET_MAX_CALLS = 20  # of one sweep
JOBS_PER_SCRIPT = 200  # jobs of a flow that one script moves, cancels or deletes
CANCEL_MIN_JOBS = 10  # the same, if Redis is slow because a long queue has to be searched for them
CANCEL_STEP_SECONDS = 0.01


class FlowDropped(Exception):
    """A flow was dropped while it was stored. Nothing of it is left."""


def release_some(
    connection: redis.Redis, flow_id: str, default_timeout: int, row: tuple[str, str] | None = None
) -> tuple[int, int]:
    """Let some of the first jobs of a flow run; the first call accepts the flow.

    Args:
        row: the id of the flow's row in the outbox, and when its mark is dropped.

    Returns the number of jobs that were moved, and of those that are left.

    Raises:
        FlowDropped: the sweep has dropped the flow.
    """
    script_keys = [HELD_FLOWS, keys.flow_held(flow_id)]
    args: list[Any] = [flow_id, utcformat(now()), default_timeout, JOBS_PER_SCRIPT]
    if row:
        script_keys.append(keys.OUTBOX)
        args += row
    moved, left = RELEASE_FLOW.run(connection, script_keys, args)
    if moved < 0:
        raise FlowDropped(
            f"the flow {flow_id} was dropped, because storing it took too long; enqueue it again"
        )
    return int(moved), int(left)


def move_row(
    connection: redis.Redis,
    row_id: str,
    flow_id: str,
    placements: list[Placement],
    read_at: float,
    default_timeout: int,
) -> RowOutcome:
    """Store the flow of a row of the outbox, and let it run. It goes on where a mover has stopped.

    `read_at`: as in `enqueueing.enqueue_rows`.

    Raises:
        FlowDropped: storing it was interrupted for too long; the next call starts it again.
        redis.RedisError: Redis does not answer, or refuses a job.
    """
    while (stored := connection.llen(keys.flow_jobs(flow_id))) < len(placements):
        step = placements[stored : stored + JOBS_PER_SCRIPT]
        outcome = enqueueing.enqueue_jobs_of_row(connection, row_id, step, read_at)
        if outcome not in (RowOutcome.MOVED, RowOutcome.NOT_NEXT):
            return outcome
    if connection.zscore(keys.OUTBOX, row_id) is not None:
        return RowOutcome.ALREADY_MOVED
    row = (row_id, enqueueing.mark_end(read_at))
    try:
        _, left = release_some(connection, flow_id, default_timeout, row)
    except FlowDropped:
        drop(connection, flow_id, may_be_storing=True)
        raise
    if left:
        release(connection, flow_id, default_timeout)  # else the sweep does it
    return RowOutcome.MOVED


def release(
    connection: redis.Redis,
    flow_id: str,
    default_timeout: int,
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Let all first jobs of an accepted flow run. Several processes may do so at once."""
    moved = left = 1
    with contextlib.suppress(FlowDropped):  # another process has released the rest
        while moved and left:
            moved, left = release_some(connection, flow_id, default_timeout)
            on_progress()


def drop(
    connection: redis.Redis,
    flow_id: str,
    may_be_storing: bool = False,
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Delete all jobs of a flow that was not released. Several processes may do so at once.

    `may_be_storing`: leave a flow alone to which jobs were added in the last minute.
    """
    script_keys = [
        HELD_FLOWS,
        keys.flow(flow_id),
        keys.flow_jobs(flow_id),
        keys.flow_held(flow_id),
    ]
    while DROP_FLOW.run(connection, script_keys, [flow_id, int(may_be_storing), JOBS_PER_SCRIPT]):
        on_progress()


def cancel(connection: redis.Redis, flow_id: str, job_ids: list[str]) -> int:
    """Cancel the given jobs of a flow that have not ended, the last one first; returns their number.

    A job that ends in between then enqueues none of those after it, which are canceled already. A
    step takes about `CANCEL_STEP_SECONDS`.
    """
    ids = job_ids[::-1]
    canceled = start = 0
    count = CANCEL_MIN_JOBS
    while start < len(ids):
        began = time.monotonic()
        step = ids[start : start + count]
        canceled += int(CANCEL_FLOW.run(connection, [], [flow_id, *step]))
        start += len(step)
        seconds = max(time.monotonic() - began, 1e-6)
        count = int(count * min(2.0, CANCEL_STEP_SECONDS / seconds))
        count = min(max(count, CANCEL_MIN_JOBS), JOBS_PER_SCRIPT)
    return canceled


def sweep(
    connection: redis.Redis, default_timeout: int, on_progress: Callable[[], None] = lambda: None
) -> None:
    """Go on with the release of accepted flows, and drop those whose process has died."""
    entries: Any = connection.zrange(HELD_FLOWS, 0, -1, withscores=True)
    for member, score in entries:
        flow_id = decode(member)
        if score != float("inf"):
            drop(connection, flow_id, may_be_storing=True, on_progress=on_progress)
            continue
        try:
            release(connection, flow_id, default_timeout, on_progress)
        except redis.ResponseError as error:
            if not is_wrong_type(error):
                raise
            log.error("the flow %s cannot be released: %s", flow_id, error)
    forget_some(connection)


def forget_some(connection: redis.Redis) -> None:
    """Remove flows that are gone from the list, as long as a quarter of those looked at are gone."""
    for _ in range(FORGET_MAX_CALLS):
        looked_at, removed = FORGET_FLOWS.run(connection, [FLOWS], [JOBS_PER_SCRIPT])
        if not looked_at or removed < looked_at / 4:
            return
