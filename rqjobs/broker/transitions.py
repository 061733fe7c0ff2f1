"""The transitions of a stored job. Each is one atomic script in `lua/`. `enqueueing` stores jobs.

A job enters its queue again for several reasons, and each has its own function:

    claimed, but not started   release_all, release_tokens, release_unknown   release.lua
    interrupted in a loop      interrupt                                      interrupt.lua
    worker or horse died       recovery.reclaim                               reclaim.lua
    lost by plain RQ           recovery.recover                               recover.lua
    failed, and requeued       requeue                                        requeue.lua
    delayed, and due now       promote                                        promote_due.lua
    waited for other jobs      recovery.enqueue_dependents             enqueue_dependents.lua
    waited for its limit       wake_due, or the script that frees a slot      policies.lua
    retried or repeated        RQ's own code, recorded by settlement          settle.lua

Released, interrupted, reclaimed and recovered jobs return to the front, because they had been first.
A job that crashed its process waits in the scheduled set first. If a claim finds more jobs in the
worker's claims than it may take, it puts the rest back itself (claim.lua).
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import redis
from redis.exceptions import NoPermissionError, ResponseError, WatchError
from rq.defaults import DEFAULT_FAILURE_TTL
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.utils import now, utcformat

from rqjobs import config
from rqjobs.broker import keys
from rqjobs.broker.enqueueing import Placement
from rqjobs.broker.keys import LEASES, QUEUES, decode
from rqjobs.broker.leases import NoLease
from rqjobs.broker.scripts import (
    DELETE,
    DELETE_FAILED,
    EMPTY_QUEUE,
    FAILED_JOBS,
    FIRST_DUE,
    FOLLOW_FAILURE,
    INTERRUPT,
    PROMOTE_DUE,
    RELEASE,
    REQUEUE,
    SAVE_FIELDS,
    TRIM_FAILED,
    Script,
    in_chunks,
    read_together,
)
from rqjobs.connection import refusal_code
from rqjobs.texts import escape_surrogates

BATCH_MAX_JOBS = 1000  # jobs that one script moves; a longer one would hold up other clients
FAILED_BATCH_JOBS = 500  # failed jobs that one script deletes
EMPTY_BATCH_JOBS = 200  # waiting jobs that one script deletes
TTL = re.compile(r"-?[0-9]{1,9}", re.ASCII)  # a time to live that Redis takes
TOKEN_CHARACTERS = 32  # characters of a claim's token
MISSING_JOB_SECONDS = 60  # seconds for which a due id without a job is kept
TRACEBACK_CUT_MARK = "[{:,} bytes are left out here: more than RQJOBS_MAX_TRACEBACK_BYTES]"


class Suspended(Exception):
    """RQ is suspended, so no job can be claimed."""


class Claim(NamedTuple):
    """A claimed job: the token that settles it, and the job's hash when it was claimed."""

    job_id: str
    queue: str
    token: str
    fields: dict[bytes, bytes]


def cut_middle(message: str, limit: int) -> str:
    """`message` in about `limit` bytes at most. A longer one loses its middle."""
    data = message.encode(errors="backslashreplace")
    if len(data) <= limit:
        return message
    head = data[: limit // 2].decode(errors="ignore")
    tail = data[-(limit // 2) :].decode(errors="ignore")
    return f"{head}\n{TRACEBACK_CUT_MARK.format(len(data) - limit)}\n{tail}"


def pack_traceback(message: str) -> str:
    """A traceback in the form in which RQ stores it in a result."""
    return base64.b64encode(zlib.compress(escape_surrogates(message).encode())).decode()


UNREADABLE_TRACEBACK = pack_traceback(
    "The job in Redis cannot be read: its key is not a hash with data, or its id is not one that "
    "RQ accepts. Delete the job."
)
EXPIRED_TRACEBACK = pack_traceback(
    "The job expired: it had not begun by the time that its option `expires` allows, so it was not "
    "run."
)
DUPLICATE_TRACEBACK = pack_traceback(
    "The job was discarded: another job with its unique key waits or runs, so it was not run. A "
    "plain RQ client had enqueued it again, which does not check unique keys."
)
NO_QUEUE_TRACEBACK = pack_traceback(
    "The job cannot return to its queue: the queue's key in Redis is not a list. Delete that key, "
    "and requeue the job."
)


# Claim


def claim_arguments(
    worker: str, queues: list[str], max_jobs: int, held: Iterable[str] = (), process: str = ""
) -> tuple[list[str], list[Any]]:
    """The keys and arguments of `CLAIM`, for up to `max_jobs` jobs from `queues` in their order.

    Args:
        held: ids of the claimed jobs that the worker is aware of. Others in its claims come first:
            the reply to an earlier claim was lost, or a blocking pop delivered them.
        process: the process to which the worker's name must belong; "" accepts any.
    """
    script_keys = [keys.claims(worker), LEASES, *map(keys.queue, queues)]
    return script_keys, [
        worker,
        max_jobs,
        utcformat(now()),
        UNREADABLE_TRACEBACK,
        DEFAULT_FAILURE_TTL,
        os.urandom(15).hex(),
        process,
        EXPIRED_TRACEBACK,
        DUPLICATE_TRACEBACK,
        *held,
    ]


def read_paused(reply: list[Any]) -> frozenset[str]:
    """The paused queues and functions, by a reply of `CLAIM`: members of `keys.PAUSED`."""
    if not reply[0].startswith(b"paused"):
        return frozenset()
    return frozenset(map(decode, reply[1]))


def is_cut_short(reply: list[Any]) -> bool:
    """Whether a reply of `CLAIM` says that it has not looked at all jobs."""
    return bool(reply[0].endswith(b"more"))


def read_claims(reply: list[Any]) -> list[Claim]:
    """The claims in a reply of `CLAIM`.

    Raises:
        NoLease: the worker has no live lease; it must renew its lease first.
        Suspended: `rq suspend` is in force.
    """
    if reply[0] == b"no lease":
        raise NoLease("this worker has no live lease, so it may not claim")
    if reply[0] == b"suspended":
        raise Suspended("rq suspend is in force")
    jobs = reply[2:] if reply[0].startswith(b"paused") else reply[1:]
    return [
        Claim(
            decode(job_id),
            decode(queue),
            decode(token),
            dict(zip(fields[::2], fields[1::2], strict=True)),
        )
        for job_id, queue, token, fields in jobs
    ]


# Settle


def settle_arguments(
    worker: str,
    claim: Claim,
    writes: list[tuple[Any, ...]],
    counts_as: str = "",
    default_timeout: int = 180,
    failure_group: str = "",
    on_failed: str = "",
) -> tuple[list[str], list[Any]]:
    """The keys and arguments of `SETTLE`, which records an outcome by these `writes`.

    `counts_as`: the outcome for the jobs that depend on this one, "finished" or "failed"; "" if
    they continue to wait. `failure_group`, `on_failed`: as in `settle.lua`.
    """
    words = [word for write in writes for word in (len(write), *write)]
    return [keys.claims(worker)], [
        claim.job_id,
        claim.queue,
        claim.token,
        counts_as,
        utcformat(now()),
        default_timeout,
        failure_group,
        on_failed,
        *words,
    ]


def failure_writes(
    claim: Claim, worker: str, message: str, status: str = "failed"
) -> list[tuple[Any, ...]]:
    """The writes that mark a job as failed (or stopped) for a reason of our own. The last one
    stores the message.
    """
    failure_ttl = decode(claim.fields.get(b"failure_ttl") or b"")
    ttl = DEFAULT_FAILURE_TTL
    if TTL.fullmatch(failure_ttl):
        ttl = int(failure_ttl)
    job = keys.job(claim.job_id)
    expiry: tuple[Any, ...] = ("PERSIST", job)
    score: float | str = "+inf"
    if ttl >= 0:
        expiry = ("EXPIRE", job, ttl)
        score = int(now().timestamp()) + ttl
    registries = [keys.failed(claim.queue)]
    if status == "stopped":
        registries.append(keys.stopped(claim.queue))
    trace = pack_traceback(cut_middle(message, config.current().max_traceback_bytes))
    result = ("type", 2, "worker_name", worker, "exc_string", trace)
    return [
        ("HSET", job, "status", status, "ended_at", utcformat(now())),
        *(("ZADD", registry, score, claim.job_id) for registry in registries),
        expiry,
        ("XADD", keys.results(claim.job_id), "MAXLEN", "~", 10, "*", *result),
    ]


def save_meta(connection: redis.Redis, job_id: str, meta: bytes) -> None:
    """Write a job's meta into its hash, if the job exists."""
    SAVE_FIELDS.run(connection, [keys.job(job_id)], ["meta", meta])


# Release


def release_all(connection: redis.Redis, worker: str, process: str = "") -> list[str]:
    """Put every job in the worker's claims back at the front of its queue; the worker runs none.

    Args:
        process: the process to which the worker's name must belong; "" accepts any.

    Returns:
        The ids of the jobs that were put back, the last claimed job first.
    """
    return _release(connection, worker, ["all", process])


def release_unknown(connection: redis.Redis, worker: str, process: str = "") -> list[str]:
    """Put back the jobs that a blocking pop delivered and no claim adopted; as `release_all`."""
    return _release(connection, worker, ["unknown", process])


def release_tokens(connection: redis.Redis, worker: str, tokens: Iterable[str]) -> list[str]:
    """Put back the claimed jobs that carry these tokens and have not begun; as `release_all`."""
    _, args = release_tokens_arguments(worker, tokens)
    return _release(connection, worker, args)


def release_tokens_arguments(worker: str, tokens: Iterable[str]) -> tuple[list[str], list[Any]]:
    """The keys and arguments of `RELEASE` for `release_tokens`."""
    return [keys.claims(worker), keys.process(worker)], ["tokens", "", *tokens]


def _release(connection: redis.Redis, worker: str, args: list[Any]) -> list[str]:
    reply = RELEASE.run(connection, [keys.claims(worker), keys.process(worker)], args)
    return [decode(job_id) for job_id in reply]


def interrupt(
    connection: redis.Redis, worker: str, claim: Claim, fields: Mapping[str, Any]
) -> bytes:
    """Put a running job back at the front of its queue, with these fields of its hash.

    Returns the reply of `interrupt.lua`.
    """
    words = [word for name in fields for word in (name, fields[name])]
    arguments = [claim.job_id, claim.queue, claim.token, *words]
    reply: bytes = INTERRUPT.run(connection, [keys.claims(worker)], arguments)
    return reply


# Failed jobs


def failed_jobs(
    connection: redis.Redis, queue: str, limit: int = -1, which: str = "failed"
) -> list[tuple[float, str]]:
    """(score, job id) of failed jobs of a queue, the oldest first, up to `limit`; -1 gives all.

    `which`: "failed", without stopped jobs; or "stopped", which gives all stopped ones.
    """
    reply = FAILED_JOBS.run(connection, [], [queue, limit, which])
    pairs = zip(reply[::2], reply[1::2], strict=True)
    return [(float(score), decode(job_id)) for job_id, score in pairs]


def requeue(connection: redis.Redis, job_id: str, at_front: bool = False) -> None:
    """Move a failed job back into its queue, in one step.

    Raises:
        NoSuchJobError: there is no such job.
        InvalidJobOperation: the job has not failed, or another job has its unique key.
    """
    try:
        origin = connection.hget(keys.job(job_id), "origin")
    except ResponseError:  # the key is not a hash
        origin = None
    if origin is None:  # the job has expired; its entries are useless
        _remove_from_failed(connection, job_id)
        raise NoSuchJobError(f"No such job: {job_id}")
    queue = decode(origin)
    place = "front" if at_front else "back"
    reply = REQUEUE.run(
        connection,
        [keys.job(job_id), keys.queue(queue), QUEUES, keys.failed(queue)],
        [job_id, place, utcformat(now())],
    )
    outcome = decode(reply)
    if outcome == "gone":
        raise NoSuchJobError(f"No such job: {job_id}")
    if outcome.startswith("unique "):
        holder = outcome.removeprefix("unique ")
        raise InvalidJobOperation(
            f"job {job_id} was not requeued: the job {holder} has its unique key; requeue it when "
            f"that one has ended, or delete it"
        )
    if outcome != "requeued":
        # Plain RQ has enqueued the job in another queue, and left its old entry.
        _remove_from_failed(connection, job_id, except_queue=queue)
        raise InvalidJobOperation(
            f"job {job_id} is not among the failed jobs of {queue!r}, so it was not requeued"
        )


def _remove_from_failed(connection: redis.Redis, job_id: str, except_queue: str = "") -> None:
    for key in connection.smembers(QUEUES):
        queue = decode(key).removeprefix(keys.QUEUE_PREFIX)
        if queue != except_queue:
            connection.zrem(keys.failed(queue), job_id)


def requeue_all(connection: redis.Redis, queues: Iterable[str], limit: int = -1) -> int:
    """Requeue the oldest failed jobs of these queues, up to `limit` in all; returns how many.

    Each job is requeued in one atomic step. A job that has been requeued or deleted since is
    skipped, and so is a job whose queue's key is of the wrong type.

    Raises:
        redis.ResponseError: Redis refuses the write.
    """
    failed = [
        (name, job_id) for name in queues for _, job_id in failed_jobs(connection, name, limit)
    ]
    if limit >= 0:
        failed = failed[:limit]
    count = 0
    for name, job_id in failed:
        try:
            requeue(connection, job_id)
            count += 1
        except NoSuchJobError:
            connection.zrem(keys.failed(name), job_id)
        except InvalidJobOperation:
            continue
        except ResponseError as error:
            if refusal_code(error):
                raise
    return count


def requeue_failed(
    connection: redis.Redis, jobs: Sequence[tuple[str, str]], stopped: bool = False
) -> int:
    """Requeue those of these (job id, queue) that are failed jobs; returns how many.

    Each job moves in one atomic step. Jobs that have left the failed ones are left alone, and so are
    jobs whose queue's key is of the wrong type, or whose unique key another has.

    Args:
        stopped: requeue stopped jobs too.

    Raises:
        redis.ResponseError: Redis refuses the write.
    """
    moment = utcformat(now())
    leaves_stopped = "" if stopped else "1"
    commands = [
        REQUEUE.call(
            [keys.job(job_id), keys.queue(queue), QUEUES, keys.failed(queue)],
            [job_id, "back", moment, leaves_stopped],
        )
        for job_id, queue in jobs
    ]
    return sum(reply == b"requeued" for reply in run_commands(connection, commands, REQUEUE))


def delete_failed_jobs(connection: redis.Redis, jobs: Sequence[tuple[str, str]]) -> int:
    """Delete those of these (job id, queue) that are failed jobs, with all that belongs to them.

    Returns how many. Stopped jobs, and jobs that have left the failed ones, are left alone.
    """
    by_queue: dict[str, list[str]] = {}
    for job_id, queue in jobs:
        by_queue.setdefault(queue, []).append(job_id)
    commands = [
        DELETE_FAILED.call([], [queue, *ids[start : start + FAILED_BATCH_JOBS]])
        for queue, ids in by_queue.items()
        for start in range(0, len(ids), FAILED_BATCH_JOBS)
    ]
    replies = run_commands(connection, commands, DELETE_FAILED)
    return sum(reply for reply in replies if isinstance(reply, int))


def run_commands(
    connection: redis.Redis, commands: list[tuple[Any, ...]], script: Script
) -> list[Any]:
    """The replies to calls of one script. A key of the wrong type gives its error as the reply."""
    connection.script_load(script.source)
    with connection.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        replies = pipe.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, Exception) and (
            not isinstance(reply, ResponseError) or refusal_code(reply)
        ):
            raise reply
    return replies


def trim_failed(
    connection: redis.Redis, queue: str, max_jobs: int, max_age: int
) -> tuple[int, bool]:
    """Take one step to bound the failed jobs of `queue`; 0 is no limit.

    Returns the number of deleted jobs, and whether more are over a limit.
    """
    args = [queue, max_jobs, max_age, FAILED_BATCH_JOBS]
    deleted, more = TRIM_FAILED.run(connection, [], args)
    return int(deleted), bool(more)


def follow_failure(
    connection: redis.Redis, field: bytes, job_id: bytes, group: str, call: Placement | None
) -> None:
    """Count a failure in its group, and put the job of its on_failed into its queue, both once.

    Args:
        field: of `rqjobs:new-failures`.
        group: "" if the failure was counted when it was recorded.
        call: the job of on_failed; None if there is none.

    Raises:
        redis.ResponseError: the queue's key has the wrong type, or Redis refuses the write.
    """
    words: list[Any] = ["", "", ""]
    if call:
        words = [call.queue, call.job_id, call.ttl or ""]
        for pair in call.fields.items():
            words += pair
    FOLLOW_FAILURE.run(connection, [keys.NEW_FAILURES, QUEUES], [field, job_id, group, *words])


def cancel(job: Any, status: str) -> None:
    """Cancel an `rq.job.Job` by RQ's own code, in one step, if its status is still `status`.

    Raises:
        InvalidJobOperation: the job has another status by now.
    """
    with job.connection.pipeline() as pipe:
        pipe.watch(job.key)
        if decode(pipe.hget(job.key, "status") or b"gone") != status:
            raise InvalidJobOperation("the job's status has changed")
        pipe.multi()
        job.cancel(pipeline=pipe)
        if job.policy_fields.get("rqjobs_flow", "").endswith(" continue"):
            pipe.sadd(keys.ENDED_PARENTS, job.id)  # the next sweep enqueues the jobs behind it
        try:
            pipe.execute()
        except WatchError:
            raise InvalidJobOperation("the job's status has changed") from None


def delete_unreadable(connection: redis.Redis, job_id: str, queue: str) -> None:
    """Delete a job that cannot be read from the failed jobs of `queue`, and its record."""
    delete(connection, [job_id], queue)
    connection.delete(keys.job(job_id))  # the queue in the record may be unreadable too


class DeleteOutcome(str, Enum):
    """The outcome of a delete. A running job is left alone."""

    DELETED = "deleted"
    RUNNING = "running"
    GONE = "gone"


def delete(connection: redis.Redis, job_ids: list[str], queue: str) -> list[DeleteOutcome]:
    """Delete these jobs of `queue`; returns the outcome for each."""
    places = [keys.queue(queue), keys.intermediate(queue), keys.running(queue)]
    for registry in ("scheduled", "deferred", "finished", "failed", "canceled"):
        places.append(keys.registry(registry, queue))
    connection.script_load(DELETE.source)
    outcomes: list[DeleteOutcome] = []
    for start in range(0, len(job_ids), BATCH_MAX_JOBS):
        with connection.pipeline(transaction=False) as pipe:
            for job_id in job_ids[start : start + BATCH_MAX_JOBS]:
                of_job = [
                    keys.job(job_id),
                    keys.dependents(job_id),
                    keys.dependencies(job_id),
                    keys.results(job_id),
                ]
                pipe.execute_command(*DELETE.call(of_job + places, [job_id, queue]))
            outcomes += [DeleteOutcome(decode(reply)) for reply in pipe.execute()]
    return outcomes


def delete_job(connection: redis.Redis, job_id: str) -> DeleteOutcome:
    """Delete a job from every place of its queue."""
    origin = connection.hget(keys.job(job_id), "origin")
    if origin is None:
        return DeleteOutcome.GONE
    return delete(connection, [job_id], decode(origin))[0]


def delete_failed(connection: redis.Redis, job_id: str) -> None:
    """Delete a failed or stopped job permanently.

    Raises:
        NoSuchJobError: there is no such job.
        InvalidJobOperation: the job has not failed.
    """
    status, origin = connection.hmget(keys.job(job_id), "status", "origin")
    if status and status not in (b"failed", b"stopped"):
        raise InvalidJobOperation(f"job {job_id} has not failed, so it was not deleted")
    if not origin or delete(connection, [job_id], decode(origin)) != [DeleteOutcome.DELETED]:
        raise NoSuchJobError(f"No such job: {job_id}")


def empty_queue(connection: redis.Redis, queue: str) -> Iterator[int]:
    """Delete the jobs that wait in a queue now, in steps of a few milliseconds.

    Gives the number of jobs that each step has deleted. Jobs that are enqueued after the call stay,
    except at the front. Between two steps the queue is as it would be if it had been shorter.
    """
    (length,) = read_together(connection, [("LLEN", keys.queue(queue))])
    left = length if isinstance(length, int) else 0
    while left > 0:
        args = [queue, min(left, EMPTY_BATCH_JOBS)]
        removed, deleted = EMPTY_QUEUE.run(connection, [keys.queue(queue)], args)
        if not removed:
            return
        left -= removed
        yield deleted


# Delayed jobs


class Promotion(NamedTuple):
    """The result of one promotion step. Times are Unix seconds by Redis's clock.

    `moved` counts jobs; `kept` counts due ids that have no job yet, which stay in the set. `full` is
    True if more jobs may be due. `next` is the next due time.
    """

    moved: int
    kept: int
    full: bool
    now: float
    next: float | None


def first_due(connection: redis.Redis, queues: list[str]) -> tuple[float, dict[str, float]]:
    """The time now, and the first due time of each of these queues that has scheduled jobs.

    Both are Unix seconds by Redis's clock.
    """
    commands = [FIRST_DUE.call([], portion) for portion in in_chunks(queues)]
    replies = read_together(connection, commands, FIRST_DUE)
    due_times = [due for _, *dues in replies for due in dues]
    by_queue = {queue: float(due) for queue, due in zip(queues, due_times, strict=True) if due}
    return float(replies[-1][0]), by_queue


def promote_batch(
    connection: redis.Redis,
    queue: str,
    default_timeout: int,
    crashed_only: bool = False,
    skip: int = 0,
    holder: str = "",
) -> Promotion:
    """Move up to `BATCH_MAX_JOBS` due jobs of `queue` from the scheduled set into the queue.

    Args:
        crashed_only: move only jobs that are delayed after a crash.
        skip: number of due ids to pass over, because earlier steps found no job for them.
        holder: the scheduler that must hold RQ's lock of this queue; "" accepts any. Without the
            lock nothing is moved.
    """
    script_keys = [
        keys.scheduled(queue),
        keys.queue(queue),
        QUEUES,
        keys.crash_backoff(queue),
        keys.failed(queue),
        keys.scheduled_without_job(queue),
        keys.scheduler_lock(queue),
    ]
    args = [
        BATCH_MAX_JOBS,
        utcformat(now()),
        default_timeout,
        MISSING_JOB_SECONDS,
        int(crashed_only),
        skip,
        holder,
    ]
    moved, kept, full, moment, later = PROMOTE_DUE.run(connection, script_keys, args)
    next_due = float(later) if later else None
    return Promotion(int(moved), int(kept), full == b"1", float(moment), next_due)


def promote(
    connection: redis.Redis, queue: str, default_timeout: int, crashed_only: bool = False
) -> int:
    """Move every due job of `queue` from the scheduled set into the queue; returns how many.

    `crashed_only`: move only jobs that are delayed after a crash. Every live worker does that,
    because there may be no scheduler.
    """
    total = 0
    kept = 0
    while True:
        step = promote_batch(connection, queue, default_timeout, crashed_only, kept)
        total += step.moved
        kept += step.kept
        if not step.full:
            return total


def publish_due(connection: redis.Redis, queue: str, due: Any) -> None:
    """Wake the scheduler of `queue` at `due` (Unix seconds)."""
    publish_wakeup(connection, keys.wakeup_channel(queue), due)


def publish_wakeup(connection: redis.Redis, channel: str, message: Any) -> None:
    """Send a message to the schedulers.

    It only saves time: a scheduler also looks every `SCHEDULER_POLL_SECONDS`. So a Redis user
    without the right to the channel is accepted.
    """
    with contextlib.suppress(NoPermissionError):
        connection.publish(channel, message)
