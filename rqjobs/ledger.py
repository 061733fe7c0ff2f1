"""The ledger: the scripts through which a job changes hands, and the keys that they work on.

Keys of ours, beside RQ's:
    rqjobs:workers          sorted set, worker name -> when its lease ends, in Redis's clock
    rqjobs:worker:<name>    hash, where the processes of that worker live: boot and pid namespace, pids, start times
    rqjobs:claims:<name>    list, the ids of the jobs in that worker's hands, in the order in which it runs them
    rqjobs:departed         sorted set, worker name -> when it left or was forgotten; for an hour
    rqjobs:crashed:<queue>  sorted set, those of the scheduled jobs that wait because they crashed a horse, by due time
    rqjobs:stopped:<queue>  sorted set, those of RQ's failed jobs that somebody has stopped, with their score there
    rqjobs:missing:<queue>  hash, due id without a job -> since when (Unix seconds)
    rqjobs:waking           set, jobs that have ended and whose dependents are to be woken: an id, or `<id>:finished`
    rqjobs:result           stream, a result inside finish.lua; never seen from outside
    rqjobs:sweep, :swept    the sweep's lock, and when the last one was
    rqjobs:seen:<queue>     hash, job id -> since when it stands in the queue's intermediate list
    rqjobs:strays:*         the stray hunt's lock, its cursor, and what it saw once
    rqjobs:odd:<key>        what was of the wrong type under that key, set aside (odd_keys.py)
    rqjobs:login*           counters of wrong passwords (web/guard.py)
    rqjobs:sessions         sorted set, login to the pages -> when it ends (web/guard.py)
and in a job's hash `rqjobs_token` (its claim's, which is RQ's execution id), `rqjobs_settled` (the token that settled
it last), `rqjobs_due` (of a job that waits for others, when it is due), `rqjobs_deaths` (when processes died under it,
comma-separated Unix times), `rqjobs_chain` (of a job with an `rq.Repeat`: the repeats and the retries that it had when
it began) and `rqjobs_schedule` (which schedule made it). The keys of schedules are in `timetable.py`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import redis
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError
from rq.defaults import DEFAULT_FAILURE_TTL
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.utils import now, utcformat

from rqjobs import config
from rqjobs.texts import encodable

LEASE = 20  # seconds that a worker is believed alive without a heartbeat
BEAT = 5  # seconds between heartbeats, and between sweeps
MAX_DEATHS = 3  # a job under which the process died so often...
DEATHS_WINDOW = 72 * 3600  # ...within so many seconds fails
AT_ONCE = 1000  # jobs; a script holds up everybody else in Redis
QUEUES_AT_ONCE = 500  # names of queues that one script looks at
WAKE_STEP_JOBS = 500  # about so many dependents are looked at in one script
TOKEN = 32  # letters of a claim's token
MISSING_JOB_GRACE = 60  # seconds
LOOK = 1.0  # seconds after which the clock looks by itself; whoever makes something due earlier than that tells it
BELL = "rqjobs:clock:"  # ...on this channel, with the queue's name behind it, and the due time as the message
DEPARTED_FOR = 3600  # seconds for which the claims of a worker that has gone are looked at again
WORKERS = "rqjobs:workers"
DEPARTED = "rqjobs:departed"
WAKING = "rqjobs:waking"
STOPPED = "rqjobs:stopped"
QUEUES = "rq:queues"


class Script:
    """A script of ours by its name, sent whole only when Redis does not know it yet."""

    def __init__(self, name: str, common: bool = True):
        parts = ["common", name] if common else [name]
        folder = Path(__file__).parent / "lua"
        self.source = "\n".join(
            (folder / f"{part}.lua").read_text(encoding="utf-8") for part in parts
        )
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def call(self, keys: list[str], args: list[Any]) -> tuple[Any, ...]:
        """The command that runs it, for a pipeline; `load` it first."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)

    def run(self, connection: redis.Redis, keys: list[str], args: list[Any]) -> Any:
        try:
            return connection.execute_command(*self.call(keys, args))
        except NoScriptError:  # nothing was run, so this is no second try
            return connection.execute_command("EVAL", self.source, len(keys), *keys, *args)


ENQUEUE, CLAIM, FINISH, SETTLE, RELEASE, RECLAIM, RECOVER, REQUEUE, PROMOTE, WAKE, DELAYED, TICK = (
    map(
        Script,
        (
            "enqueue",
            "claim",
            "finish",
            "settle",
            "release",
            "reclaim",
            "recover",
            "requeue",
            "promote",
            "wake",
            "delayed",
            "tick",
        ),
    )
)
CENSUS, NEWEST, HUNT, OUTCOMES, DUE = map(
    Script, ("census", "newest", "hunt", "outcomes", "due")
)  # these only read,
SWEEP, DELETE, SCHEDULE, BUSY, SAVE, ASIDE = (
    Script(name, common=False)  # as does BUSY
    for name in ("sweep", "delete", "schedule", "busy", "save", "aside")
)
RENEW, ANNOUNCE, DROP, NOTE, LOCK, TRY_LOGIN, LOG_IN = (
    Script(name, common=False)
    for name in ("renew", "announce", "drop", "note", "lock", "try_login", "log_in")
)
FAILED = Script("failed")  # this only reads, too


class NoLease(Exception):
    """The worker's lease has ended; whatever it had may be somebody else's now."""


class Suspended(Exception):
    """RQ is suspended."""


class NameTaken(Exception):
    """Another worker of that name has a lease."""


class Claim(NamedTuple):
    """A job in a worker's hands: the token that settles it, and the job's hash as it was."""

    job_id: str
    queue: str
    token: str
    fields: dict[bytes, bytes]


def text(reply: Any) -> str:
    return reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply)


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


def traceback_field(message: str) -> str:
    """A traceback as RQ keeps it in a result."""
    return base64.b64encode(zlib.compress(encodable(message).encode())).decode()


UNREADABLE = traceback_field(
    "The job in Redis cannot be read: its hash has no data, or is no hash, or its id is none that RQ gives."
)
NO_QUEUE = traceback_field(
    "The job cannot go back into its queue: the queue's key in Redis is no list. Delete that key, and requeue the job."
)
POISON = traceback_field(
    f"The process died {MAX_DEATHS} times within {DEATHS_WINDOW // 3600} hours while it ran this job, so it is not run "
    f"again. Requeue it when the cause is mended."
)


class Entry(NamedTuple):
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


def enqueue(connection: redis.Redis, entries: Iterable[Entry]) -> set[str]:
    """Write jobs and put each into its place, all in one step; returns the ids of those that wait for other jobs."""
    return set(map(text, ENQUEUE.run(connection, [QUEUES], _words(entries))))


def enqueue_with(pipeline: Any, entries: Iterable[Entry]) -> None:
    """The same as a command of a pipeline: the script whole, because one that Redis did not know would be an error in
    the middle of the transaction."""
    if pipeline.watching and not pipeline.explicit_transaction:
        pipeline.multi()
    pipeline.execute_command("EVAL", ENQUEUE.source, 1, QUEUES, *_words(entries))


def _words(entries: Iterable[Entry]) -> list[Any]:
    words: list[Any] = [LOOK]
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


def beat(connection: redis.Redis, worker: str, where: dict[str, Any], first: bool = False) -> bool:
    """Renew the lease of `worker`: it is believed alive for `LEASE` seconds from now. `where` says where it lives.

    True if it had none: this is its first, or it was believed dead and everything of it was forgotten.

    Raises:
        NameTaken: the name is another process's. It is to be the `first`, and that one has a lease; or this one was
            believed dead, and that one started in its place.
    """
    fields = {"process": process_of(where), **where}
    args = [worker, LEASE, int(first), *(part for pair in fields.items() for part in pair)]
    new = RENEW.run(connection, [WORKERS, f"rqjobs:worker:{worker}"], args)
    if new < 0:
        raise NameTaken(f"a worker called {worker!r} runs already; choose another --name")
    return bool(new)


def process_of(where: dict[str, Any]) -> str:
    """What tells a worker from any other of its name."""
    return ":".join(str(where.get(field, "")) for field in ("host", "pid", "started"))


def announcement(worker: str, process: str, horse: int, started: str) -> tuple[Any, ...]:
    """The command with which a horse says that it is there, before it claims anything: only when neither it nor its
    parent lives any more is the worker provably gone."""
    return (
        "EVAL",
        ANNOUNCE.source,
        2,
        WORKERS,
        f"rqjobs:worker:{worker}",
        worker,
        process,
        horse,
        started,
    )


def leave(connection: redis.Redis, worker: str) -> None:
    """End the lease of a worker that goes in good order, holding no job."""
    with connection.pipeline() as pipe:
        pipe.zadd(DEPARTED, {worker: now().timestamp()})
        pipe.zrem(WORKERS, worker)
        pipe.delete(f"rqjobs:worker:{worker}")
        pipe.execute()


def workers(connection: redis.Redis) -> list[str]:
    """The names of all workers in whose claims a job may be: those with a lease, and those that have gone lately."""
    _, *replies = together(
        connection,
        [
            ("ZREMRANGEBYSCORE", DEPARTED, 0, now().timestamp() - DEPARTED_FOR),
            ("ZRANGE", WORKERS, 0, -1),
            ("ZRANGE", DEPARTED, 0, -1),
        ],
    )
    return sorted(
        {text(name) for names in replies if not isinstance(names, Exception) for name in names}
    )


def may_sweep(connection: redis.Redis, force: bool = False) -> int:
    """-1: somebody else just swept. 0: sweep, but hold no lease to have expired. 1: sweep."""
    keys = ["rqjobs:sweep", "rqjobs:swept", WORKERS]
    return int(SWEEP.run(connection, keys, [BEAT * 1000 - 500, LEASE, int(force)]))


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
    keys = [f"rqjobs:claims:{worker}", WORKERS, *(f"rq:queue:{queue}" for queue in queues)]
    return keys, [
        worker,
        room,
        utcformat(now()),
        UNREADABLE,
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
            text(job_id),
            text(queue),
            text(token),
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
    return [f"rqjobs:claims:{worker}"], [
        claim.job_id,
        claim.queue,
        claim.token,
        counts_as,
        utcformat(now()),
        default_timeout,
        *words,
    ]


def failure(
    claim: Claim, worker: str, message: str, status: str = "failed"
) -> list[tuple[Any, ...]]:
    """The writes that send a job to the dead letters for a reason of our own; the last says the reason."""
    own = text(claim.fields.get(b"failure_ttl") or b"")
    ttl = int(own) if own.lstrip("-").isdigit() else DEFAULT_FAILURE_TTL
    job = f"rq:job:{claim.job_id}"
    message = cut_middle(message, config.current().max_traceback_bytes)
    return [
        ("HSET", job, "status", status, "ended_at", utcformat(now())),
        *(
            (
                "ZADD",
                f"{registry}:{claim.queue}",
                "+inf" if ttl < 0 else int(now().timestamp()) + ttl,
                claim.job_id,
            )
            for registry in (["rq:failed", STOPPED] if status == "stopped" else ["rq:failed"])
        ),
        ("PERSIST", job) if ttl < 0 else ("EXPIRE", job, ttl),
        (
            "XADD",
            f"rq:results:{claim.job_id}",
            "MAXLEN",
            "~",
            10,
            "*",
            "type",
            2,
            "worker_name",
            worker,
            "exc_string",
            traceback_field(message),
        ),
    ]


def save_meta(connection: redis.Redis, job_id: str, meta: bytes) -> None:
    """Write a job's meta into its hash, if there is one."""
    SAVE.run(connection, [f"rq:job:{job_id}"], ["meta", meta])


def release(
    connection: redis.Redis, worker: str, these: Iterable[str] | str = "all", process: str = ""
) -> list[str]:
    """Put claimed jobs that have not begun back at the front of their queues, in order; returns their ids.

    `these`: tokens; or "all", or "unknown" (those that came with a wake-up, and were not claimed yet).
    `process`: whose the name must be; "" if that does not matter.
    """
    given = [these, process] if isinstance(these, str) else ["these", process, *these]
    keys = [f"rqjobs:claims:{worker}", f"rqjobs:worker:{worker}"]
    return [text(job_id) for job_id in RELEASE.run(connection, keys, given)]


def reclaim(
    connection: redis.Redis,
    worker: str,
    queues: list[str],
    kind: str,
    running: str = "?",
    delay: float = 0,
    process: str = "",
) -> dict[str, str]:
    """Take back all claims of a dead worker (`kind` "dead" or "gone") or of the worker's own dead horse ("horse").

    Args:
        running: the job that was being run, whose death counts; "?" for the first claim, "" for none.
        delay: seconds that it waits before it runs again, doubled with each death; 0 puts it at the front.
        process: for "gone", which one is not there any more, "<pid>:<started>"; for "horse", whose the name must be, as
            in `release`. The name may be another's now.

    Returns:
        job id -> "requeued", "delayed", "buried" or "ended"; nothing if the worker lives.
    """
    keys = [
        f"rqjobs:claims:{worker}",
        WORKERS,
        f"rqjobs:worker:{worker}",
        f"rq:worker:{worker}",
        "rq:workers",
    ]
    keys += [f"rq:workers:{queue}" for queue in queues]
    args = [
        worker,
        kind,
        running,
        MAX_DEATHS,
        DEATHS_WINDOW,
        POISON,
        DEFAULT_FAILURE_TTL,
        utcformat(now()),
        delay,
        process,
        NO_QUEUE,
    ]
    reply = [text(part) for part in RECLAIM.run(connection, keys, args)]
    return dict(zip(reply[::2], reply[1::2], strict=True)) if reply != ["alive"] else {}


def recover(
    connection: redis.Redis,
    job_id: str,
    queue: str,
    found: str,
    execution: str = "",
    owner: str = "",
    again: bool = False,
) -> str:
    """Put a job that stock RQ left behind, or lost, back at the front of `queue`, in one atomic step.

    Args:
        found: where it was: "wip", "intermediate" or "stray".
        execution, owner: for "wip", RQ's execution id and the name of the worker.
        again: for "stray", that it was enqueued after its last end.

    Returns:
        "requeued"; "buried" (it died `MAX_DEATHS` times); or, nothing having been done, "moved", "alive", "gone",
        "ended" or "placed".
    """
    keys = [
        f"rq:queue:{queue}:intermediate",
        f"rq:scheduled:{queue}",
        f"rq:deferred:{queue}",
        f"rq:wip:{queue}",
        f"rq:queue:{queue}",
        f"rq:executions:{job_id}",
        f"rq:execution:{job_id}:{execution}",
        WORKERS,
        f"rq:worker:{owner}",
    ]
    args = [
        found,
        job_id,
        f"{job_id}:{execution}",
        owner,
        queue,
        MAX_DEATHS,
        DEATHS_WINDOW,
        POISON,
        DEFAULT_FAILURE_TTL,
        utcformat(now()),
        int(again),
    ]
    return text(RECOVER.run(connection, keys, args))


def wake(
    connection: redis.Redis,
    member: str,
    default_timeout: int,
    pulse: Callable[[], None] = lambda: None,
) -> list[str]:
    """Enqueue the jobs that waited for one which has ended; says which. Any number may do it at once.

    Args:
        member: how it stands in `rqjobs:waking`.
        pulse: called between two steps.
    """
    woken: list[str] = []
    cursor = "0"
    while True:
        arguments = [member, utcformat(now()), default_timeout, cursor, WAKE_STEP_JOBS]
        cursor, *children = map(text, WAKE.run(connection, [WAKING], arguments))
        woken += children
        if cursor == "0":
            return woken
        pulse()


def failed(
    connection: redis.Redis, queue: str, limit: int = -1, which: str = "oldest"
) -> list[tuple[float, str]]:
    """Failed jobs of a queue and their scores, the "oldest" or the "newest" first; those that somebody has stopped are
    none, and "stopped" gives only them."""
    reply = FAILED.run(connection, [], [queue, limit, which])
    return [
        (float(score), text(job_id)) for job_id, score in zip(reply[::2], reply[1::2], strict=True)
    ]


def requeue(connection: redis.Redis, job_id: str, at_front: bool = False) -> None:
    """Bring a job back from the dead letters into its queue, in one atomic step.

    Raises:
        NoSuchJobError: there is no such job (any more).
        InvalidJobOperation: the job is not among the dead letters.
    """
    try:
        origin = connection.hget(f"rq:job:{job_id}", "origin")
    except ResponseError:  # no hash stands there
        origin = None
    if origin is None:  # expired; its entry is of no use to anybody
        _remove_failed(connection, job_id)
        raise NoSuchJobError(f"No such job: {job_id}")
    queue = text(origin)
    keys = [f"rq:job:{job_id}", f"rq:queue:{queue}", QUEUES, f"rq:failed:{queue}"]
    outcome = text(
        REQUEUE.run(connection, keys, [job_id, "front" if at_front else "back", utcformat(now())])
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
    for name in (text(key).removeprefix("rq:queue:") for key in connection.smembers(QUEUES)):
        if name != but_of:
            connection.zrem(f"rq:failed:{name}", job_id)


def delete(connection: redis.Redis, job_ids: list[str], queue: str) -> list[str]:
    """Delete these jobs of `queue`; says of each whether it is "deleted", "running" (and left alone), or "gone"."""
    registries = ("scheduled", "deferred", "finished", "failed", "canceled")
    places = [
        f"rq:queue:{queue}",
        f"rq:queue:{queue}:intermediate",
        f"rq:wip:{queue}",
        *(f"rq:{registry}:{queue}" for registry in registries),
    ]
    connection.script_load(DELETE.source)
    outcomes: list[str] = []
    for start in range(0, len(job_ids), AT_ONCE):
        with connection.pipeline(transaction=False) as pipe:
            for job_id in job_ids[start : start + AT_ONCE]:
                own = [
                    f"rq:job:{job_id}",
                    f"rq:job:{job_id}:dependents",
                    f"rq:job::{job_id}:dependencies",
                    f"rq:results:{job_id}",
                ]
                pipe.execute_command(*DELETE.call(own + places, [job_id, queue]))
            outcomes += map(text, pipe.execute())
    return outcomes


class Promoted(NamedTuple):
    """What one step of promotion did, and when (Unix seconds, by Redis's clock) the next is worth while."""

    moved: int
    kept: int  # due ids for which there is no job yet
    full: bool  # there may be more that are due
    now: float
    next: float | None


def first_due(connection: redis.Redis, queues: list[str]) -> tuple[float, dict[str, float]]:
    """Now, and when the first scheduled job of each of these queues that has any is due; both by Redis's clock."""
    replies = together(connection, [DUE.call([], portion) for portion in chunks(queues)], DUE)
    dues = [due for _, *dues in replies for due in dues]
    return float(replies[-1][0]), {
        name: float(due) for name, due in zip(queues, dues, strict=True) if due
    }


def promote_some(
    connection: redis.Redis,
    queue: str,
    default_timeout: int,
    crashed_only: bool = False,
    skip: int = 0,
    holder: str = "",
) -> Promoted:
    """Move up to `AT_ONCE` due jobs of `queue` into it, less the first `skip`, for which there was no job yet.

    `holder`: the scheduler that must hold RQ's lock of this queue, else nothing is done; "" if that does not matter.
    """
    keys = [
        f"rq:scheduled:{queue}",
        f"rq:queue:{queue}",
        QUEUES,
        f"rqjobs:crashed:{queue}",
        f"rq:failed:{queue}",
        f"rqjobs:missing:{queue}",
        f"rq:scheduler-lock:{queue}",
    ]
    args = [
        AT_ONCE,
        utcformat(now()),
        default_timeout,
        MISSING_JOB_GRACE,
        int(crashed_only),
        skip,
        holder,
    ]
    moved, kept, full, moment, later = PROMOTE.run(connection, keys, args)
    return Promoted(
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
        some = promote_some(connection, queue, default_timeout, crashed_only, kept)
        total, kept = total + some.moved, kept + some.kept
        if not some.full:
            return total


def announce_due(connection: redis.Redis, queue: str, due: Any) -> None:
    """Tell the schedulers that something of `queue` is due at `due`. They find it by themselves within `LOOK`, so a
    Redis user without the right to the channel may do without."""
    with contextlib.suppress(NoPermissionError):
        connection.publish(BELL + queue, due)


def together(
    connection: redis.Redis, commands: Iterable[tuple[Any, ...]], *scripts: Script
) -> list[Any]:
    """The replies to `commands`, which only read, in one round trip; where a key is of the wrong type, that error.

    `scripts`: those that they call, to be loaded if Redis does not know them.
    """
    commands = list(commands)
    with connection.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        replies = pipe.execute(raise_on_error=False)
    if scripts and any(isinstance(reply, NoScriptError) for reply in replies):
        for script in scripts:
            connection.script_load(script.source)
        return together(connection, commands)
    for reply in replies:
        if isinstance(reply, Exception) and not wrong_type(reply):
            raise reply
    return replies


def wrong_type(error: Exception) -> bool:
    """Whether a key is of another type than it should: somebody else wrote there."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def chunks(names: list[str]) -> list[list[str]]:
    """Names of queues in portions for one script each: it holds up everybody else in Redis."""
    return [names[start : start + QUEUES_AT_ONCE] for start in range(0, len(names), QUEUES_AT_ONCE)]


def clock(connection: redis.Redis) -> float:
    """Redis's clock, in Unix seconds: the one by which everything is due."""
    seconds, micro = connection.time()
    return float(seconds + micro / 1e6)
