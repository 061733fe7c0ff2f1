"""Waiting for jobs: `job.wait` and `gather`.

A job has ended when its status says so, which is written in one step with the entry in RQ's stream
of its results. So a new entry is a reason to read the job's state, and nothing else: the entry of a
retry, or of an earlier life of the job's id, ends no wait. Cancellation, deletion and a
`result_ttl` of 0 write no entry. A look at all states every `STATE_CHECK_SECONDS` finds these.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from base64 import b64decode
from collections.abc import Iterable
from datetime import timedelta
from enum import Enum
from itertools import islice
from typing import Any, NamedTuple

import redis
import rq.job
from rq.job import UNSERIALIZABLE_RETURN_VALUE_PAYLOAD, JobStatus
from rq.results import Result

from rqjobs import connection, raised, texts
from rqjobs.broker import blockers, keys
from rqjobs.broker.blockers import REMEDIES, Blocker
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import read_together, redis_time
from rqjobs.job_fields import read_traceback
from rqjobs.policies import failures
from rqjobs.raised import JobFailed

log = logging.getLogger("rqjobs")
STATE_CHECK_SECONDS = 2.0  # between two looks at jobs whose results have no new entry
CHECKED_JOBS_PER_SECOND = 500  # with more jobs the looks are rarer
# The jobs whose streams are waited on together, and the states that are read in one step.
WATCHED_MAX_JOBS = 100
BLOCKER_SEARCH_RATIO = 50  # the pause after a search for blockers, in multiples of its time
REPLY_SECONDS = 3.0  # for the reply to a wait that has ended
RECONNECT_MAX_SECONDS = 1.0  # between two attempts
ENDED_STATUSES = ("finished", "failed", "stopped", "canceled")
STORED_ENDED_STATUSES = frozenset(status.encode() for status in ENDED_STATUSES)
STORED_UNENDED_STATUSES = frozenset((b"queued", b"started", b"scheduled", b"deferred"))
FAILURES = frozenset((Result.Type.FAILED.value, Result.Type.MAX_RETRIES_EXCEEDED.value))


class Ending(str, Enum):
    """Why a job that has ended has no result."""

    CANCELED = "canceled"
    DISCARDED = "discarded"  # by `Discard`, by `discard_on`, or as a duplicate
    EXPIRED = "expired"  # it had not begun in time
    STOPPED = "stopped"
    GONE = "gone"  # the job is not in Redis
    NOT_KEPT = "not kept"  # the job has finished, and its result is not in Redis
    UNREADABLE = "unreadable"  # the result in Redis cannot be read
    UNSERIALIZABLE = "unserializable"  # the serializer of the worker could not store the result
    BLOCKED = "blocked"  # the job has not begun, and waits for one that ended otherwise


class NoResult(Exception):
    """A job has ended without a result, and has not failed; or it waits for one that has ended so.

    The cause is the exception of the job that it waits for, if that one has failed.

    Attributes:
        job_id, function: the job and the name of its function.
        reason: an `Ending`.
        detail: more about it, in one line; or "".
    """

    def __init__(self, job_id: str, function: str, reason: Ending, detail: str = ""):
        super().__init__(job_id, function, reason, detail)
        self.job_id = job_id
        self.function = function
        self.reason = Ending(reason)
        self.detail = detail

    def __str__(self) -> str:
        line = f"job {self.job_id} ({self.function}) {MEANINGS[self.reason]}"
        return f"{line}: {self.detail}" if self.detail else line


MEANINGS = {
    Ending.CANCELED: "was canceled",
    Ending.DISCARDED: "was discarded",
    Ending.EXPIRED: "expired: it had not begun in time",
    Ending.STOPPED: "was stopped while it ran; requeue it to run it again",
    Ending.GONE: (
        "is not in Redis: it was deleted, it has ended and was not kept (result_ttl, failure_ttl), "
        "or it is not stored yet (first execute the pipeline, or commit)"
    ),
    Ending.NOT_KEPT: "has finished, and its result is no longer kept; raise its result_ttl",
    Ending.UNREADABLE: "has a result that this process cannot read",
    Ending.UNSERIALIZABLE: (
        "has finished, and its result could not be kept: the serializer cannot carry it; return a "
        "value that JSON has, or a dataclass; the worker's log names what it could not carry"
    ),
    Ending.BLOCKED: "cannot run",
}


class WaitTimeout(TimeoutError):
    """A job has not ended in time. The message says where it is, and what it may wait for.

    A job that itself raises `TimeoutError` raises that class, and not this one.
    """


class State(NamedTuple):
    """The state of a job that has ended, as it is in Redis.

    `status`: None if there is no such job. `entry`: the newest one of its results, or nothing.
    """

    status: bytes | None
    ending: bytes | None
    entry: dict[bytes, bytes]


class Outcome(NamedTuple):
    """The value that a wait returns, or the error that it raises."""

    value: Any = None
    error: Exception | None = None


def wait(
    job: Any, timeout: float | timedelta | None = None, stop: threading.Event | None = None
) -> Any:
    """See `Job.wait`. If `stop` is set, it ends within some seconds."""
    with Waiting([job], timeout, stop) as waiting:
        (outcome,) = waiting.next_outcomes().values()
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


async def wait_async(job: Any, timeout: float | timedelta | None = None) -> Any:
    """See `Job.wait_async`."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(wait, job, timeout, stop)
    finally:
        stop.set()


async def gather_async(
    jobs: Iterable[Any],
    timeout: float | timedelta | None = None,
    return_exceptions: bool = False,
) -> list[Any]:
    """`gather` for asyncio. It waits in one thread, whatever the number of jobs."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(gather, jobs, timeout, return_exceptions, stop)
    finally:
        stop.set()


def gather(
    jobs: Iterable[Any],
    timeout: float | timedelta | None = None,
    return_exceptions: bool = False,
    stop: threading.Event | None = None,
) -> list[Any]:
    """Wait until all jobs have ended; returns their results in the order of the jobs.

    If a job has failed, or has ended without a result, its exception is raised at once; the other
    jobs go on. With `return_exceptions` nothing is raised: exceptions stand in the list, and a
    `WaitTimeout` for each job that has not ended in time. The jobs may be any number. If `stop` is
    set by another thread, gather ends within some seconds, as after its `timeout`.

    Raises:
        WaitTimeout, JobFailed, NoResult: as `Job.wait`.
        TypeError: one of them is not a job of rqjobs.
        ValueError: the jobs are not all in the same Redis.
    """
    if isinstance(jobs, rq.job.Job):
        raise TypeError("gather takes a list of jobs; for one job there is job.wait()")
    jobs = list(jobs)
    found: dict[str, Outcome] = {}
    with Waiting(jobs, timeout, stop) as waiting:
        while waiting.pending:
            try:
                ended = waiting.next_outcomes()
            except WaitTimeout as error:
                if not return_exceptions:
                    raise
                ended = {job_id: Outcome(error=error) for job_id in waiting.pending}
                waiting.pending.clear()
            for outcome in ended.values():
                if outcome.error is not None and not return_exceptions:
                    raise outcome.error
            found.update(ended)
    outcomes = [found[job.id] for job in jobs]
    return [each.value if each.error is None else each.error for each in outcomes]


class Waiting:
    """A wait for jobs.

    Their states are read with the client of the jobs. A second connection, which exists only while
    this waits, blocks on the streams of their results.
    """

    def __init__(
        self,
        jobs: list[Any],
        timeout: float | timedelta | None,
        stop: threading.Event | None = None,
    ):
        self.stop = stop
        self.deadline = None
        if timeout is not None:
            self.deadline = time.monotonic() + _seconds(timeout)
        self.timeout = timeout
        _check_jobs(jobs)
        self.pending = {job.id: job for job in jobs}
        # Job -> its newest entry when its state was read; None if the key is not a stream.
        self.seen: dict[str, bytes | None] = {}
        self.woken: set[str] = set()  # jobs that have a newer entry
        self.deferred: set[str] = set()  # those that were deferred when their state was read
        # Job for which a deferred one waits -> its newest entry, or None.
        self.ancestors: dict[str, bytes | None] = {}
        self.check_at = 0.0  # the monotonic time of the next look at all of them
        self.failures = 0  # of Redis, one after the other
        self.connection: Any = None

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._close()

    def next_outcomes(self) -> dict[str, Outcome]:
        """Wait until some of the pending jobs have ended; returns their outcomes.

        Raises:
            WaitTimeout: the time is over.
            redis.RedisError: Redis refuses, and not just for now.
        """
        while True:
            problem = None
            try:
                outcomes = self._read_outcomes()
                if not outcomes and self._seconds_left() > 0:
                    self._block()
                    self.failures = 0
                    continue
            except (redis.RedisError, OSError) as error:
                if not can_recover(error):
                    raise
                outcomes = {}
                problem = error
            if outcomes:
                for job_id in outcomes:
                    del self.pending[job_id]
                return outcomes
            self._go_on_or_time_out(problem)

    def _read_outcomes(self) -> dict[str, Outcome]:
        """The outcomes of the jobs that have ended, or else of those that can never run."""
        if not self.woken.isdisjoint(self.ancestors):
            self._check_ancestors()
        looks_at_all = self._is_time_for_all()
        ended = self._read(self._ids_to_read(looks_at_all))
        if ended:
            return {
                job_id: outcome_of(self.pending[job_id], state) for job_id, state in ended.items()
            }
        if not looks_at_all or not self.deferred:
            return {}
        began = time.monotonic()
        found = blockers.find(self.client, [*self.deferred])
        self.ancestors = dict.fromkeys(islice(found.running, WATCHED_MAX_JOBS))
        self._check_ancestors()
        pause = BLOCKER_SEARCH_RATIO * (time.monotonic() - began)
        self.check_at = max(self.check_at, time.monotonic() + pause)
        return {
            job_id: Outcome(error=_blocked(self.pending[job_id], blocker))
            for job_id, blocker in found.blocked.items()
        }

    def _check_ancestors(self) -> None:
        """Look at the jobs for which deferred ones wait. If one has not succeeded, look at all."""
        ids = [*self.ancestors]
        commands: list[tuple[Any, ...]] = []
        commands += [("HGET", keys.job(job_id), "status") for job_id in ids]
        commands += [("XREVRANGE", keys.results(job_id), "+", "-", "COUNT", 1) for job_id in ids]
        replies = read_together(self.client, commands)
        for job_id, status, entries in zip(ids, replies, replies[len(ids) :], strict=False):
            if status in STORED_UNENDED_STATUSES and isinstance(entries, list):
                self.ancestors[job_id] = entries[0][0] if entries else b"0-0"
            else:
                del self.ancestors[job_id]
            if status in STORED_ENDED_STATUSES and status != b"finished":
                self.check_at = 0.0
        self.woken.difference_update(ids)

    @property
    def client(self) -> redis.Redis:
        """The client of the jobs."""
        client: redis.Redis = next(iter(self.pending.values())).connection
        return client

    def _is_time_for_all(self) -> bool:
        """Whether to look at all jobs now."""
        now = time.monotonic()
        if now < self.check_at and self._seconds_left() > 0:
            return False
        pause = max(STATE_CHECK_SECONDS, len(self.pending) / CHECKED_JOBS_PER_SECOND)
        self.check_at = now + pause
        return True

    def _ids_to_read(self, looks_at_all: bool) -> list[str]:
        """The jobs that may have ended: all of them at times, else those with a new entry."""
        if looks_at_all:
            return list(self.pending)
        watched = islice(self.pending, WATCHED_MAX_JOBS)
        return [job_id for job_id in watched if job_id in self.woken]

    def _read(self, ids: list[str]) -> dict[str, State]:
        """The states of those of the jobs that have ended."""
        ended = {}
        self.deferred.difference_update(ids)
        for start in range(0, len(ids), WATCHED_MAX_JOBS):
            batch = ids[start : start + WATCHED_MAX_JOBS]
            with self.client.pipeline() as pipe:  # a transaction: status and entry belong together
                for job_id in batch:
                    pipe.hmget(keys.job(job_id), "status", "rqjobs_ending", "created_at")
                    pipe.xrevrange(keys.results(job_id), count=1)
                replies = iter(pipe.execute(raise_on_error=False))
            for job_id, fields, entries in zip(batch, replies, replies, strict=True):
                status, ending, created_at = _or_nothing(fields, [None] * 3)
                ((self.seen[job_id], entry),) = _or_nothing(entries, [(None, {})]) or [(b"0-0", {})]
                if status in STORED_ENDED_STATUSES or (not status and not created_at):
                    ended[job_id] = State(status, ending, entry)
                elif status == b"deferred":
                    self.deferred.add(job_id)
        self.woken.difference_update(ids)
        return ended

    def _block(self) -> None:
        """Wait for an entry of the first jobs, until the next look or the deadline."""
        entries = {job_id: self.seen[job_id] for job_id in islice(self.pending, WATCHED_MAX_JOBS)}
        entries = {**self.ancestors, **entries}
        watched = {
            keys.results(job_id).encode(): job_id for job_id, entry in entries.items() if entry
        }
        until_check = self.check_at - time.monotonic()
        seconds = min(STATE_CHECK_SECONDS, until_check, self._seconds_left())
        if not watched:
            time.sleep(max(0.0, seconds))
            return
        if self.connection is None:
            self.connection = connection.dedicated_connection(
                self.client, STATE_CHECK_SECONDS + REPLY_SECONDS
            )
        after = [entries[job_id] for job_id in watched.values()]
        milliseconds = max(1, int(1000 * seconds))
        self.connection.send_command(
            "XREAD", "COUNT", 1, "BLOCK", milliseconds, "STREAMS", *watched, *after
        )
        for name, _ in self.connection.read_response() or ():
            self.woken.add(watched[name])

    def _seconds_left(self) -> float:
        if self.stop is not None and self.stop.is_set():
            return 0.0
        if self.deadline is None:
            return float("inf")
        return self.deadline - time.monotonic()

    def _go_on_or_time_out(self, problem: Exception | None) -> None:
        """Wait a moment before Redis is asked again, if there is time left.

        Raises:
            WaitTimeout: there is none.
        """
        left = self._seconds_left()
        if problem is None or left <= 0:
            raise WaitTimeout(self._why_late(problem)) from problem
        self._close()
        if not self.failures:
            log.warning("waiting for a job: Redis does not answer: %s", connection.explain(problem))
        pause = min(RECONNECT_MAX_SECONDS, 0.05 * 2 ** min(self.failures, 10), left)
        self.failures += 1
        self.check_at = 0.0
        time.sleep(pause)

    def _why_late(self, problem: Exception | None) -> str:
        first = next(iter(self.pending.values()))
        line = f"job {first.id} ({function_of(first)}) has not ended within {self.timeout} s"
        if isinstance(self.timeout, timedelta):
            line = line.removesuffix(" s")
        if len(self.pending) > 1:
            line = f"{len(self.pending):,} jobs have not ended; the first, {line}"
        if problem is not None:
            return f"{line}; Redis does not answer: {connection.explain(problem)}"
        with contextlib.suppress(redis.RedisError, OSError):
            return f"{line}; it is {describe_place(first)}"
        return line

    def _close(self) -> None:
        if self.connection is not None:
            with contextlib.suppress(Exception):
                self.connection.disconnect()
        self.connection = None


def _or_nothing(reply: Any, nothing: list[Any]) -> Any:
    """A reply; or, of a key that is not what RQ makes it, that of a missing key."""
    if not isinstance(reply, Exception):
        return reply
    if str(reply).startswith("WRONGTYPE"):
        return nothing
    raise reply


def can_recover(error: Exception) -> bool:
    """Whether Redis may answer later."""
    return connection.is_transient(error) and not isinstance(error, redis.AuthenticationError)


def _seconds(timeout: Any) -> float:
    seconds = timeout
    if isinstance(timeout, timedelta):
        seconds = timeout.total_seconds()
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(
            f"timeout is a number of seconds, a timedelta, or None for no limit, not {timeout!r:.80}"
        )
    if not seconds >= 0:  # also for "not a number"
        raise ValueError(f"timeout={timeout!r:.80} is negative; 0 asks once, None has no limit")
    return float(seconds)


def _check_jobs(jobs: list[Any]) -> None:
    """Check that these are jobs of rqjobs, of one Redis, and that none of them waits for itself."""
    running = rq.job.get_current_job()
    for job in jobs:
        if not isinstance(job, rq.job.Job) or not hasattr(job, "wait"):
            raise TypeError(
                f"only jobs of rqjobs can be waited for, not {job!r:.80}; for a flow there is "
                f"flow.wait(), and for an id rqjobs.Job.fetch(id, connection=rqjobs.client())"
            )
        if running is not None and running.id == job.id:
            raise RuntimeError(f"job {job.id} waits for itself, and would never end")
    if len({_server_of(job.connection) for job in jobs}) > 1:
        raise ValueError("the jobs are in different Redis servers; call gather for each of them")


def _server_of(client: redis.Redis) -> tuple[Any, ...]:
    pool = client.connection_pool
    options = pool.connection_kwargs
    address = tuple(options.get(name) for name in ("host", "port", "path", "db"))
    return (*address, getattr(pool, "service_name", None))


# Outcomes


def outcome_of(job: Any, state: State) -> Outcome:
    """The result of a job that has ended, or the exception that says why there is none."""
    if state.status == JobStatus.FAILED.value.encode():
        return Outcome(error=_error_of(job, state.entry))
    reason = _ending_of(state)
    detail = ""
    if reason is None:
        try:
            value = _value_of(job, state.entry)
            if not (isinstance(value, str) and value == UNSERIALIZABLE_RETURN_VALUE_PAYLOAD):
                return Outcome(value)
            reason = Ending.UNSERIALIZABLE
        except Exception as error:  # of a damaged entry, or another SECRET_KEY
            reason = Ending.UNREADABLE
            detail = str(error)
    elif reason is Ending.DISCARDED:
        detail = failures.of_traceback("", _traceback_in(state.entry)).line
    return Outcome(error=NoResult(job.id, function_of(job), reason, detail))


def _blocked(job: Any, blocker: Blocker) -> NoResult:
    """The exception for a job that is deferred behind one that has ended."""
    cause, function = _read_blocker(job, blocker)
    other = f"the job {blocker.job_id}"
    if function:
        other = f"{other} ({function})"
    state = f"is {blocker.state}"
    if blocker.state == "failed":
        state = f"has failed: {_line_of(cause)}"
    remedy = REMEDIES[blocker.state]
    flow_id = job.policy_fields.get("rqjobs_flow", "").partition(" ")[0]
    if flow_id and blocker.state in ("failed", "stopped"):
        remedy = f"retry the flow with: rqjobs flows retry {flow_id}"
    detail = f"it waits for {other}, which {state}; {remedy}"
    error = NoResult(job.id, function_of(job), Ending.BLOCKED, detail)
    error.__cause__ = cause
    return error


def _read_blocker(job: Any, blocker: Blocker) -> tuple[Exception | None, str]:
    """The exception of a blocker, and the name of its function; None and "" without its record."""
    try:
        found = type(job).fetch(blocker.job_id, connection=job.connection)
        status, ending = job.connection.hmget(found.key, "status", "rqjobs_ending")
        entries: Any = job.connection.xrevrange(keys.results(found.id), count=1)
        entry = entries[0][1] if entries else {}
        return outcome_of(found, State(status, ending, entry)).error, function_of(found)
    except Exception:  # it is deleted, or cannot be read
        return None, ""


def _line_of(error: Exception | None) -> str:
    """The class and the message of a job's exception in one line."""
    if isinstance(error, JobFailed):
        return failures.Failure("", error.error, error.message).line
    if error is None:
        return "its record is gone"
    return failures.of_exception("", error).line


def _ending_of(state: State) -> Ending | None:
    """Why there is no result; None if there is one."""
    if not state.status:
        return Ending.GONE
    if state.status == JobStatus.STOPPED.value.encode():
        return Ending.STOPPED
    if state.status == JobStatus.CANCELED.value.encode():
        for ending in (Ending.DISCARDED, Ending.EXPIRED):
            if state.ending == ending.value.encode():
                return ending
        return Ending.CANCELED
    if _type_of(state.entry) != Result.Type.SUCCESSFUL.value:
        return Ending.NOT_KEPT
    return None


def _type_of(entry: dict[bytes, bytes]) -> int:
    with contextlib.suppress(ValueError):
        return int(entry.get(b"type", 0))
    return 0


def _value_of(job: Any, entry: dict[bytes, bytes]) -> Any:
    stored = entry.get(b"return_value")
    if stored is None:
        return None
    return job.serializer.loads(b64decode(stored))


def _error_of(job: Any, entry: dict[bytes, bytes]) -> Exception:
    """The exception of the job if its class is known here, else a `JobFailed`.

    A `JobFailed` is the cause of the same exception.
    """
    trace = ""
    exception = None
    if _type_of(entry) in FAILURES:  # otherwise it is of an earlier run
        trace = _traceback_in(entry)
        exception = raised.unpack(entry.get(b"rqjobs_error", b""))
    function = function_of(job)
    if exception is None:
        found = failures.of_traceback(function, trace)
        if _type_of(entry) == Result.Type.MAX_RETRIES_EXCEEDED.value:
            found = found._replace(error=raised.RETRY_TOO_MANY)
        return JobFailed(job.id, function, found.error, found.message, trace)
    name = exception.name.removeprefix("builtins.")
    failed = JobFailed(job.id, function, name, exception.message, trace)
    error = raised.rebuild(exception)
    if error is None:
        return failed
    error.__cause__ = failed
    return error


def _traceback_in(entry: dict[bytes, bytes]) -> str:
    """The traceback of an entry; "" if it has none that can be read."""
    with contextlib.suppress(Exception):
        return read_traceback(b64decode(entry[b"exc_string"]))
    return ""


def function_of(job: Any) -> str:
    """The name of a job's function; "?" if its data cannot be read."""
    with contextlib.suppress(Exception):
        return str(job.func_name)
    return failures.UNKNOWN_FUNCTION


# Where a job is that has not ended

PLACE_FIELDS = (
    "status",
    "origin",
    "worker_name",
    "rqjobs_paused",
    "rqjobs_waits_for",
)


def describe_place(job: Any) -> str:
    """Where a job is, and what it waits for, as the end of a sentence."""
    client = job.connection
    values = client.hmget(keys.job(job.id), PLACE_FIELDS)
    status, queue, worker, paused, limit = (decode(value or b"") for value in values)
    if status == JobStatus.QUEUED.value:
        return _describe_queue(client, queue)
    if status == JobStatus.STARTED.value:
        return f"running on the worker {worker}"
    if status == JobStatus.SCHEDULED.value:
        due = client.zscore(keys.scheduled(queue), job.id)
        if due is not None:
            left = max(0, due - redis_time(client))
            return f"delayed, and due in {left:,.0f} s; `rqjobs delayed` lists it"
    if paused:
        return f"deferred until {paused} is resumed with: rqjobs resume --function {paused}"
    if limit:
        return f"deferred until the limit {limit} has room"
    if status == JobStatus.DEFERRED.value:
        return "deferred behind the jobs that it depends on; `rqjobs audit` says if one has failed"
    return status or "not in Redis any more"


def _describe_queue(client: redis.Redis, queue: str) -> str:
    line = f"queued in {queue!r}"
    workers = client.scard(keys.listeners(queue))
    if client.hexists(keys.PAUSED, keys.paused_queue(queue)):
        return f"{line}, which is paused; resume it with: rqjobs resume {queue}"
    if not workers:
        return f"{line}; no worker serves that queue; start one with: rqjobs worker {queue}"
    serve = "1 worker serves it" if workers == 1 else f"{workers} workers serve it"
    return f"{line} with {texts.jobs(client.llen(keys.queue(queue)))}; {serve}"
