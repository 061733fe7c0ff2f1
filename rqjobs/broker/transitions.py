"""The transitions of a job: enqueue, claim, settle, release, requeue, promote, delete. Each is one script."""

from __future__ import annotations

import base64
import contextlib
import os
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import redis
from redis.exceptions import NoPermissionError, ResponseError, WatchError
from rq.defaults import DEFAULT_FAILURE_TTL
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.utils import now, utcformat

from rqjobs import config
from rqjobs.broker import keys
from rqjobs.broker.keys import LEASES, QUEUES, decode
from rqjobs.broker.leases import NoLease
from rqjobs.broker.scripts import (
    CLAIM,
    DELETE,
    ENQUEUE,
    FAILED_JOBS,
    FIRST_DUE,
    PROMOTE_DUE,
    RELEASE,
    REQUEUE,
    SAVE_FIELDS,
    in_chunks,
    read_together,
)
from rqjobs.connection import refusal_code
from rqjobs.texts import escape_surrogates

BATCH_MAX_JOBS = 1000  # jobs; a script holds up everybody else in Redis
TOKEN_CHARACTERS = 32  # letters of a claim's token
MISSING_JOB_SECONDS = 60  # seconds
# The scheduler looks for due jobs this often. A job that is due earlier is published to it.
SCHEDULER_POLL_SECONDS = 1.0


class Suspended(Exception):
    """RQ is suspended."""


class Claim(NamedTuple):
    """A job in a worker's hands: the token that settles it, and the job's hash as it was."""

    job_id: str
    queue: str
    token: str
    fields: dict[bytes, bytes]


def cut_middle(message: str, limit: int) -> str:
    """`message` in at most about `limit` bytes; of a longer one the beginning and the end are kept."""
    data = message.encode(errors="backslashreplace")
    if len(data) <= limit:
        return message
    head, tail = (
        data[: limit // 2].decode(errors="ignore"),
        data[-(limit // 2) :].decode(errors="ignore"),
    )
    return f"{head}\n[{len(data) - limit:,} bytes are left out here: more than RQJOBS_MAX_TRACEBACK_BYTES]\n{tail}"


def pack_traceback(message: str) -> str:
    """A traceback as RQ keeps it in a result."""
    return base64.b64encode(zlib.compress(escape_surrogates(message).encode())).decode()


UNREADABLE_TRACEBACK = pack_traceback(
    "The job in Redis cannot be read: its hash has no data, or is no hash, or its id is none that RQ gives."
)
NO_QUEUE_TRACEBACK = pack_traceback(
    "The job cannot go back into its queue: the queue's key in Redis is no list. Delete that key, and requeue the job."
)


class Placement(NamedTuple):
    """A job on its way into its place."""

    queue: str
    job_id: str
    place: str  # "back" or "front" of the queue; when it is due, in Unix seconds; "nowhere": the caller runs it
    ttl: int | None  # seconds to live
    new: bool  # there was surely never a job of this id
    fields: dict[str, Any]  # its hash
    parents: tuple[
        str, ...
    ] = ()  # "1" if those that it waits for may fail, else ""; then their ids


def enqueue(connection: redis.Redis, entries: Iterable[Placement]) -> set[str]:
    """Write jobs and put each into its place, all in one step; returns the ids of those that wait for other jobs."""
    return set(map(decode, ENQUEUE.run(connection, [QUEUES], _script_arguments(entries))))


def enqueue_in_pipeline(pipeline: Any, entries: Iterable[Placement]) -> None:
    """The same as a command of a pipeline: the script whole, because one that Redis did not know would be an error in
    the middle of the transaction."""
    if pipeline.watching and not pipeline.explicit_transaction:
        pipeline.multi()
    pipeline.execute_command("EVAL", ENQUEUE.source, 1, QUEUES, *_script_arguments(entries))


def _script_arguments(entries: Iterable[Placement]) -> list[Any]:
    words: list[Any] = [SCHEDULER_POLL_SECONDS]
    for queue, job_id, place, ttl, new, fields, parents in entries:
        words += (
            queue,
            job_id,
            place,
            ttl or "",
            int(new),
            len(parents),
            2 * len(fields),
            *parents,
        )
        for pair in fields.items():
            words += pair
    return words


def claim(
    connection: redis.Redis, worker: str, queues: list[str], room: int = 1, held: Iterable[str] = ()
) -> list[Claim]:
    """Take up to `room` jobs, beside those `held`, for `worker` from the `queues`, in their order.

    First come jobs that stand in the worker's claims and are not `held`: the reply that told of them was lost, or a
    wake-up brought them.

    Raises:
        NoLease: the worker is not believed alive now; it must beat first.
        Suspended: `rq suspend` is in force.
    """
    return read_claims(CLAIM.run(connection, *claim_arguments(worker, queues, room, held)))


def claim_arguments(
    worker: str, queues: list[str], room: int = 1, held: Iterable[str] = (), process: str = ""
) -> tuple[list[str], list[Any]]:
    """What `CLAIM` takes. `process`: whose the name must be; "" if that does not matter."""
    script_keys = [keys.claims(worker), LEASES, *(keys.queue(queue) for queue in queues)]
    return script_keys, [
        worker,
        room,
        utcformat(now()),
        UNREADABLE_TRACEBACK,
        DEFAULT_FAILURE_TTL,
        os.urandom(15).hex(),
        process,
        *held,
    ]


def read_claims(reply: list[Any]) -> list[Claim]:
    if reply[0] == b"no lease":
        raise NoLease("this worker has no live lease, so it may not claim")
    if reply[0] == b"suspended":
        raise Suspended("rq suspend is in force")
    return [
        Claim(
            decode(job_id),
            decode(queue),
            decode(token),
            dict(zip(fields[::2], fields[1::2], strict=True)),
        )
        for job_id, queue, token, fields in reply[1:]
    ]


def settle_arguments(
    worker: str,
    claim: Claim,
    writes: list[tuple[Any, ...]],
    counts_as: str = "",
    default_timeout: int = 180,
) -> tuple[list[str], list[Any]]:
    """What `SETTLE` takes to record an outcome.

    `counts_as`: what the job is to those that wait for it, "finished", "failed", or "" if they go on waiting.
    """
    words = [word for write in writes for word in (len(write), *write)]
    return [keys.claims(worker)], [
        claim.job_id,
        claim.queue,
        claim.token,
        counts_as,
        utcformat(now()),
        default_timeout,
        *words,
    ]


def failure_writes(
    claim: Claim, worker: str, message: str, status: str = "failed"
) -> list[tuple[Any, ...]]:
    """The writes that send a job to the dead letters for a reason of our own; the last says the reason."""
    own = decode(claim.fields.get(b"failure_ttl") or b"")
    ttl = int(own) if own.lstrip("-").isdigit() else DEFAULT_FAILURE_TTL
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
    """Write a job's meta into its hash, if there is one."""
    SAVE_FIELDS.run(connection, [keys.job(job_id)], ["meta", meta])


def release_all(connection: redis.Redis, worker: str, process: str = "") -> list[str]:
    """Put every job in the worker's claims back at the front of its queue; the worker runs none.

    Args:
        process: the process to which the worker's name must belong; "" accepts any.

    Returns:
        The ids of the jobs that were put back, the last claimed job first.
    """
    return _release(connection, worker, ["all", process])


def release_unknown(connection: redis.Redis, worker: str, process: str = "") -> list[str]:
    """Put back the jobs that a blocking pop delivered and no claim has adopted; as `release_all`."""
    return _release(connection, worker, ["unknown", process])


def release_tokens(connection: redis.Redis, worker: str, tokens: Iterable[str]) -> list[str]:
    """Put back the claimed jobs that carry these tokens and have not begun; as `release_all`."""
    return [
        decode(job_id)
        for job_id in RELEASE.run(connection, *release_tokens_arguments(worker, tokens))
    ]


def release_tokens_arguments(worker: str, tokens: Iterable[str]) -> tuple[list[str], list[Any]]:
    """The keys and arguments of `RELEASE` for `release_tokens`."""
    return [keys.claims(worker), keys.process(worker)], ["tokens", "", *tokens]


def _release(connection: redis.Redis, worker: str, args: list[Any]) -> list[str]:
    reply = RELEASE.run(connection, [keys.claims(worker), keys.process(worker)], args)
    return [decode(job_id) for job_id in reply]


def failed_jobs(
    connection: redis.Redis, queue: str, limit: int = -1, which: str = "oldest"
) -> list[tuple[float, str]]:
    """Failed jobs of a queue and their scores, the "oldest" or the "newest" first; those that somebody has stopped are
    none, and "stopped" gives only them."""
    reply = FAILED_JOBS.run(connection, [], [queue, limit, which])
    return [
        (float(score), decode(job_id))
        for job_id, score in zip(reply[::2], reply[1::2], strict=True)
    ]


def requeue(connection: redis.Redis, job_id: str, at_front: bool = False) -> None:
    """Bring a job back from the dead letters into its queue, in one atomic step.

    Raises:
        NoSuchJobError: there is no such job (any more).
        InvalidJobOperation: the job is not among the dead letters.
    """
    try:
        origin = connection.hget(keys.job(job_id), "origin")
    except ResponseError:  # no hash stands there
        origin = None
    if origin is None:  # expired; its entry is of no use to anybody
        _remove_failed(connection, job_id)
        raise NoSuchJobError(f"No such job: {job_id}")
    queue = decode(origin)
    script_keys = [keys.job(job_id), keys.queue(queue), QUEUES, keys.failed(queue)]
    outcome = decode(
        REQUEUE.run(
            connection, script_keys, [job_id, "front" if at_front else "back", utcformat(now())]
        )
    )
    if outcome == "gone":
        raise NoSuchJobError(f"No such job: {job_id}")
    if outcome != "requeued":
        _remove_failed(
            connection, job_id, queue
        )  # stock RQ has enqueued it again elsewhere, and left its old entry
        raise InvalidJobOperation(
            f"job {job_id} is not among the failed jobs of {queue!r}, so it was not requeued"
        )


def _remove_failed(connection: redis.Redis, job_id: str, but_of: str = "") -> None:
    """Remove the entries of a job among the failed jobs of all queues `but_of` one."""
    for name in (
        decode(key).removeprefix(keys.QUEUE_PREFIX) for key in connection.smembers(QUEUES)
    ):
        if name != but_of:
            connection.zrem(keys.failed(name), job_id)


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
        try:
            pipe.execute()
        except WatchError:
            raise InvalidJobOperation("the job's status has changed") from None


def delete_unreadable(connection: redis.Redis, job_id: str, queue: str) -> None:
    """Delete a job that cannot be read from the failed jobs of `queue`, and its record."""
    delete(connection, [job_id], queue)
    connection.delete(keys.job(job_id))  # the queue in the record may be unreadable too


def delete(connection: redis.Redis, job_ids: list[str], queue: str) -> list[str]:
    """Delete these jobs of `queue`; says of each whether it is "deleted", "running" (and left alone), or "gone"."""
    registries = ("scheduled", "deferred", "finished", "failed", "canceled")
    places = [
        keys.queue(queue),
        keys.intermediate(queue),
        keys.running(queue),
        *(keys.registry(registry, queue) for registry in registries),
    ]
    connection.script_load(DELETE.source)
    outcomes: list[str] = []
    for start in range(0, len(job_ids), BATCH_MAX_JOBS):
        with connection.pipeline(transaction=False) as pipe:
            for job_id in job_ids[start : start + BATCH_MAX_JOBS]:
                own = [
                    keys.job(job_id),
                    keys.dependents(job_id),
                    keys.dependencies(job_id),
                    keys.results(job_id),
                ]
                pipe.execute_command(*DELETE.call(own + places, [job_id, queue]))
            outcomes += map(decode, pipe.execute())
    return outcomes


def delete_job(connection: redis.Redis, job_id: str) -> str:
    """Delete a job from every place; returns "deleted", "running" (and left alone), or "gone"."""
    origin = connection.hget(keys.job(job_id), "origin")
    if origin is None:
        return "gone"
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
    if not origin or delete(connection, [job_id], decode(origin)) != ["deleted"]:
        raise NoSuchJobError(f"No such job: {job_id}")


class Promotion(NamedTuple):
    """What one step of promotion did, and when (Unix seconds, by Redis's clock) the next is worth while."""

    moved: int
    kept: int  # due ids for which there is no job yet
    full: bool  # there may be more that are due
    now: float
    next: float | None


def first_due(connection: redis.Redis, queues: list[str]) -> tuple[float, dict[str, float]]:
    """Now, and when the first scheduled job of each of these queues that has any is due; both by Redis's clock."""
    replies = read_together(
        connection, [FIRST_DUE.call([], portion) for portion in in_chunks(queues)], FIRST_DUE
    )
    dues = [due for _, *dues in replies for due in dues]
    return float(replies[-1][0]), {
        name: float(due) for name, due in zip(queues, dues, strict=True) if due
    }


def promote_batch(
    connection: redis.Redis,
    queue: str,
    default_timeout: int,
    crashed_only: bool = False,
    skip: int = 0,
    holder: str = "",
) -> Promotion:
    """Move up to `AT_ONCE` due jobs of `queue` into it, less the first `skip`, for which there was no job yet.

    `holder`: the scheduler that must hold RQ's lock of this queue, else nothing is done; "" if that does not matter.
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
    return Promotion(
        int(moved), int(kept), full == b"1", float(moment), float(later) if later else None
    )


def promote(
    connection: redis.Redis, queue: str, default_timeout: int, crashed_only: bool = False
) -> int:
    """Move every due job of `queue` from the scheduled set into the queue; returns how many.

    `crashed_only`: only those that wait because they crashed a horse; any live worker does that, for there may be no
    scheduler.
    """
    total = kept = 0
    while True:
        some = promote_batch(connection, queue, default_timeout, crashed_only, kept)
        total, kept = total + some.moved, kept + some.kept
        if not some.full:
            return total


def publish_due(connection: redis.Redis, queue: str, due: Any) -> None:
    """Wake the scheduler of `queue` at `due` (Unix seconds)."""
    publish_wakeup(connection, keys.wakeup_channel(queue), due)


def publish_wakeup(connection: redis.Redis, channel: str, message: Any) -> None:
    """Send a message to the schedulers.

    It only saves time: a scheduler also looks every `SCHEDULER_POLL_SECONDS`. So a Redis user without the
    right to the channel is accepted.
    """
    with contextlib.suppress(NoPermissionError):
        connection.publish(channel, message)
