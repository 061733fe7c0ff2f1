"""Enqueue: jobs are written and put into their places, each call in one atomic step.

Rows of the outbox, and requests of the API with an Idempotency-Key, have marks in sorted sets. A
script stores a job only if its mark is not there, and adds the mark in the same step.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any, NamedTuple

import redis
from redis.exceptions import NoScriptError

from rqjobs.broker import keys
from rqjobs.broker.keys import QUEUES, decode
from rqjobs.broker.scripts import ENQUEUE, ENQUEUE_PLAIN, read_together, redis_time
from rqjobs.policies.unique import DuplicateJob

# The scheduler looks for due jobs this often. A job that is due earlier is published to it.
SCHEDULER_POLL_SECONDS = 1.0
# The job of an outbox row is stored within this time after the row was read, or not at all.
ROW_MOVE_SECONDS = 60
ONCE_SECONDS = 24 * 3600  # for which a request with an Idempotency-Key is remembered
ROW_MARK_SECONDS = 365 * 86_400  # for which a row is marked that is never deleted


class Placement(NamedTuple):
    """A job, and the place into which `enqueue` puts it.

    `place` is "back" or "front" of the queue, a due time in Unix seconds, or "nowhere" if the
    caller runs the job. `ttl` is in seconds. `new` is True if the id is certainly unused. `parents`
    is "1" if the jobs that it depends on may fail, else "", followed by their ids; "!" behind the
    first word says that they must exist. `must_be_new`: no job may have the id.
    """

    queue: str
    job_id: str
    place: str
    ttl: int | None
    new: bool
    fields: dict[str, Any]
    parents: tuple[str, ...] = ()
    must_be_new: bool = False


class RefusedJob(Exception):
    """Redis has a job with an id that must be new, or has no job on which another one depends.

    `position` is that of the placement. Nothing of the call is stored.
    """

    def __init__(self, position: int, message: str):
        super().__init__(message)
        self.position = position


class TakenId(RefusedJob):
    """The id must be new, and a job has it."""

    def __init__(self, position: int, job_id: str):
        super().__init__(position, f"There is a job {job_id} already.")


class MissingParent(RefusedJob):
    """The job depends on one that does not exist."""

    def __init__(self, position: int, job_id: str):
        super().__init__(
            position,
            f"There is no job {job_id}, or it has ended and is not kept any more; leave it out if "
            f"it has finished, else enqueue it first.",
        )


REFUSALS = {"taken": TakenId, "missing": MissingParent}


def demand_parents(placement: Placement) -> Placement:
    """The placement of a job that is refused if one of its parents does not exist."""
    if not placement.parents:
        return placement
    return placement._replace(parents=(f"{placement.parents[0]}!", *placement.parents[1:]))


class UniqueOutcome(NamedTuple):
    """The outcome for a job with a unique key. `position`: of its placement, from 0.

    `job_id` is the job that has the key now. `status` is the status in which the job is stored
    under that id; "" if it is not stored.
    """

    position: int
    job_id: str
    status: str


class Enqueued(NamedTuple):
    """The ids of the jobs that wait for other jobs, and the outcomes of some unique jobs: those
    that are not stored, have replaced another job, or are debounced.
    """

    deferred: set[str]
    unique: list[UniqueOutcome]


def enqueue(connection: redis.Redis, placements: Iterable[Placement]) -> Enqueued:
    """Write jobs and put each into its place, all in one step.

    Raises:
        DuplicateJob: a job has `on_conflict="raise"` and its key is taken. Nothing is stored.
        RefusedJob: an id that must be new is taken, or a parent that must exist does not.
    """
    placements = list(placements)
    script = ENQUEUE_PLAIN if all(map(_is_plain, placements)) else ENQUEUE
    return _enqueued(script.run(connection, [QUEUES], _enqueue_arguments(placements)), placements)


def _enqueued(reply: Any, placements: list[Placement]) -> Enqueued:
    """The outcomes in a reply of the script for these placements.

    Raises:
        DuplicateJob, RefusedJob: one of them was refused, so none is stored.
    """
    enqueued = Enqueued(set(), [])
    for entry in reply:
        if not isinstance(entry, list):
            enqueued.deferred.add(decode(entry))
            continue
        position, job_id, outcome = entry[0], decode(entry[1]), decode(entry[2])
        if outcome == "refused":
            raise DuplicateJob(placements[position].fields["rqjobs_unique"], job_id)
        if outcome in REFUSALS:
            raise REFUSALS[outcome](position, job_id)
        status = "" if outcome == "exists" else outcome
        enqueued.unique.append(UniqueOutcome(position, job_id, status))
    return enqueued


class RowOutcome(Enum):
    """The outcome of moving the job of a row of the outbox."""

    MOVED = "moved"
    ALREADY_MOVED = "already moved"
    READ_TOO_LONG_AGO = "read too long ago"
    REFUSED = "refused"  # by `on_conflict="raise"`, which no row should have
    NOT_NEXT = "not next"  # another mover has stored these jobs of a flow


def enqueue_rows(
    connection: redis.Redis, rows: dict[str, Placement], read_at: float
) -> dict[str, RowOutcome | Exception]:
    """Store the jobs of rows of the outbox, in order, each in a step with the mark of its row.

    Args:
        rows: the placement of each, by the row's id.
        read_at: a time before the rows were read, by Redis's clock.

    Returns:
        The outcome of each row, or the error with which Redis refused it.
    """
    commands = {
        row_id: _marked_command([keys.OUTBOX], row_id, placement, read_at, ROW_MARK_SECONDS)
        for row_id, placement in rows.items()
    }
    replies = _run_all(connection, commands)
    return {row_id: _row_outcome(reply) for row_id, reply in replies.items()}


def _marked_command(
    marks: list[str], mark: str, placement: Placement, read_at: float, mark_seconds: float
) -> tuple[Any, ...]:
    """The command that stores a job in a step with its mark in the sorted set `marks[0]`."""
    words = _enqueue_arguments([placement])
    words[1:1] = [mark, repr(read_at), ROW_MOVE_SECONDS, repr(read_at + mark_seconds)]
    return ENQUEUE.call([QUEUES, *marks], words)


def _run_all(connection: redis.Redis, commands: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Send these commands of `ENQUEUE` in one round trip; returns the replies, also errors."""
    with connection.pipeline(transaction=False) as pipe:
        for command in commands.values():
            pipe.execute_command(*command)
        replies = pipe.execute(raise_on_error=False)
    if any(isinstance(reply, NoScriptError) for reply in replies):
        connection.script_load(ENQUEUE.source)
        return _run_all(connection, commands)
    return dict(zip(commands, replies, strict=True))


class OnceState(NamedTuple):
    """The state of a request with an Idempotency-Key in Redis.

    `owner`: the digest of the request that has the key, "" if none has. `job_ids`: the ids of its
    jobs that are stored, by their marks; "" for the id that the mark itself stands for.
    """

    owner: str
    job_ids: dict[str, str]


def read_once(connection: redis.Redis, key: str, marks: list[str]) -> OnceState:
    """The state of a request with this key, and of the jobs of these marks."""
    commands: list[tuple[Any, ...]] = [("TIME",), ("GET", keys.once(key))]
    commands += [("ZSCORE", keys.ONCE, mark) for mark in marks]
    commands += [("GET", keys.once_job(mark)) for mark in marks]
    (seconds, _), owner, *replies = read_together(connection, commands)
    scores, notes = replies[: len(marks)], replies[len(marks) :]
    job_ids = {
        mark: decode(note or b"")
        for mark, score, note in zip(marks, scores, notes, strict=True)
        if isinstance(score, float) and score > seconds
    }
    return OnceState(decode(owner or b""), job_ids)


def begin_once(connection: redis.Redis, key: str, digest: str) -> tuple[str, float]:
    """Reserve an Idempotency-Key for a request.

    Returns the digest of the request that has the key, and the time. A key is free
    again `ONCE_SECONDS` after the last request with it, or later.
    """
    with connection.pipeline() as pipe:
        pipe.time()
        pipe.set(keys.once(key), digest, ex=2 * ONCE_SECONDS, nx=True)
        pipe.get(keys.once(key))
        pipe.expire(keys.once(key), 2 * ONCE_SECONDS)
        (seconds, microseconds), _, owner, _ = pipe.execute()
    now = seconds + microseconds / 1_000_000
    connection.zremrangebyscore(keys.ONCE, "-inf", now)
    return decode(owner or b""), now


def enqueue_once(
    connection: redis.Redis, jobs: dict[str, Placement], read_at: float
) -> dict[str, Enqueued | Exception | None]:
    """Store jobs of requests with an Idempotency-Key, each by its own mark and at most once.

    If a job is stored under the id of another one, or is that one by its unique key, the id is kept
    with the mark, in the same step: `read_once` gives it.

    Returns:
        The outcome of each; None if it has been stored before, or the error that refuses it.
    """
    commands = {
        mark: _marked_command(
            [keys.ONCE, keys.once_job(mark)], mark, placement, read_at, ONCE_SECONDS
        )
        for mark, placement in jobs.items()
    }
    replies = _run_all(connection, commands)
    return {mark: _once_outcome(reply, jobs[mark]) for mark, reply in replies.items()}


def _once_outcome(reply: Any, placement: Placement) -> Enqueued | Exception | None:
    if isinstance(reply, Exception):
        return reply
    if isinstance(reply, list):
        try:
            return _enqueued(reply, [placement])
        except (DuplicateJob, RefusedJob) as error:
            return error
    if RowOutcome(decode(reply)) is RowOutcome.ALREADY_MOVED:
        return None
    return redis.TimeoutError("storing the job took too long; send the request again")


def enqueue_jobs_of_row(
    connection: redis.Redis, row_id: str, placements: list[Placement], read_at: float
) -> RowOutcome:
    """Store some jobs of a flow that is a row of the outbox. They are held until its release.

    Raises:
        redis.ResponseError: the flow was dropped, or a job exists already.
    """
    words = _row_arguments(row_id, placements, read_at)
    outcome = _row_outcome(ENQUEUE.run(connection, [QUEUES, keys.OUTBOX], words))
    assert isinstance(outcome, RowOutcome)
    return outcome


def mark_end(read_at: float) -> str:
    """The end of the mark of a row, if the row is never deleted, in Unix seconds."""
    return repr(read_at + ROW_MARK_SECONDS)


class Row(NamedTuple):
    """A row of the outbox whose change is being made. `read_at`: before it was read, by Redis's
    clock.
    """

    row_id: str
    read_at: float

    def words(self) -> list[Any]:
        """The last arguments of a script that makes the change, as `take_row` reads them."""
        return [self.row_id, repr(self.read_at), ROW_MOVE_SECONDS, mark_end(self.read_at)]

    def mark(self, connection: redis.Redis) -> None:
        """Mark the row: there is nothing to change."""
        connection.zadd(keys.OUTBOX, {self.row_id: mark_end(self.read_at)})


def _row_arguments(row_id: str, placements: Iterable[Placement], read_at: float) -> list[Any]:
    words = _enqueue_arguments(placements)
    words[1:1] = [row_id, repr(read_at), ROW_MOVE_SECONDS, mark_end(read_at)]
    return words


def _row_outcome(reply: Any) -> RowOutcome | Exception:
    if isinstance(reply, Exception):
        return reply
    if not isinstance(reply, list):
        return RowOutcome(decode(reply))
    if any(isinstance(entry, list) and decode(entry[2]) == "refused" for entry in reply):
        return RowOutcome.REFUSED
    return RowOutcome.MOVED


def forget_rows(connection: redis.Redis, row_ids: Iterable[str]) -> None:
    """Drop the marks of rows that are deleted, as soon as no mover can still store their jobs."""
    now = redis_time(connection)
    dropped_at = repr(now + ROW_MOVE_SECONDS)
    pairs = [word for row_id in row_ids for word in (dropped_at, row_id)]
    with connection.pipeline(transaction=False) as pipe:
        if pairs:
            pipe.execute_command("ZADD", keys.OUTBOX, "XX", *pairs)
        pipe.zremrangebyscore(keys.OUTBOX, "-inf", now)
        pipe.execute()


def publish_rows(connection: redis.Redis) -> None:
    """Tell the scheduler that there are new rows in the outbox."""
    connection.publish(keys.OUTBOX_WAKEUP_CHANNEL, "")


def enqueue_in_pipeline(pipeline: Any, placements: Iterable[Placement]) -> None:
    """`enqueue` as a command of a pipeline.

    The whole script is sent, because a script that Redis does not have would fail the transaction
    in the middle.
    """
    if pipeline.watching and not pipeline.explicit_transaction:
        pipeline.multi()
    pipeline.execute_command("EVAL", ENQUEUE.source, 1, QUEUES, *_enqueue_arguments(placements))


def must_wait(connection: redis.Redis, placement: Placement) -> bool:
    """Whether a job in a pipeline will have to wait for a parent, as far as can be told now."""
    first_word, *parents = placement.parents
    ended = {b"finished", b"failed"} if first_word.startswith("1") else {b"finished"}
    commands = [("HGET", keys.job(parent), "status") for parent in parents]
    statuses = read_together(connection, commands)
    # A parent without a status may be enqueued by the same pipeline.
    return any(status not in ended for status in statuses)


def _is_plain(placement: Placement) -> bool:
    """Whether the job is new and has no policies. Their fields are the last ones of a hash."""
    return placement.new and not next(reversed(placement.fields), "").startswith("rqjobs_")


def _enqueue_arguments(placements: Iterable[Placement]) -> list[Any]:
    words: list[Any] = [SCHEDULER_POLL_SECONDS]
    for queue, job_id, place, ttl, new, fields, parents, must_be_new in placements:
        is_new = 2 if must_be_new else int(new)
        words += (queue, job_id, place, ttl or "", is_new, len(parents), 2 * len(fields))
        words += parents
        for pair in fields.items():
            words += pair
    return words
