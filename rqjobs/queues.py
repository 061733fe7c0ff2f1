"""`rq.Queue` with the catalog's options, the payload guard and atomic moves; and `enqueue`."""

from __future__ import annotations

import copy
import inspect
import logging
import re
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from functools import cached_property, partial
from typing import Any
from uuid import uuid4

import redis
import rq
import rq.job
import rq.queue
import rq.registry
import rq.repeat
import rq.webhook
from rq.job import JobStatus
from rq.queue import EnqueueArgs, EnqueueData
from rq.serializers import resolve_serializer
from rq.utils import now

from rqjobs import catalog, config, connection
from rqjobs.broker import keys, scripts, transitions
from rqjobs.broker.transitions import Placement
from rqjobs.instrumentation import ObservedQueue, WrappedQueue, is_wrapped
from rqjobs.job_fields import compress
from rqjobs.jobs import Job, StartedJobRegistry, is_recording, signature
from rqjobs.serializers import ConfiguredSerializer, PayloadError

log = logging.getLogger("rqjobs")
CHUNK = 200  # jobs that `enqueue_many` sends in one script, which holds up everybody else
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
LONGEST_ID = 255  # letters of a job's id; so many the horse can tell its parent
UNSERVED_PAUSE = 60  # seconds between two looks at whether anybody serves a queue
_looked: dict[str, float] = {}


Prepared = tuple[Job, bool, bool, dict[str, Any]]  # at the front?, a new id?, its hash


class Queue(rq.Queue):
    """An `rq.Queue` with RQ's whole API, that stores nothing which no worker would run.

    Overrides: `enqueue`, `enqueue_at` (a parameter called like one of RQ's options is not taken for
    that), `create_job` (options of `@job`, the guard), `enqueue_job`, `_enqueue_job`,
    `enqueue_many` and `schedule_job` (one script puts a job into its place, whoever asks, and takes
    it out of the one where it was), `enqueue_in` (by Redis's clock), `_persist_job` (works while an
    outcome is recorded), `enqueue_dependents` (left to the script that records the outcome),
    `compact` (RQ's loses jobs if it is interrupted).
    """

    job_class = Job

    def __init__(
        self,
        name: str = "default",
        connection: redis.Redis | None = None,
        default_timeout: int | None = None,
        is_async: bool = True,
        job_class: Any = None,
        serializer: Any = None,
        **options: Any,
    ):
        job_class = (
            None if job_class is rq.job.Job else job_class
        )  # which is what RQ passes when it was told nothing
        super().__init__(name, connection, default_timeout, is_async, job_class, **options)
        self.serializer = (
            ConfiguredSerializer
            if serializer in (None, ConfiguredSerializer)
            else resolve_serializer(serializer)
        )

    @cached_property
    def started_job_registry(self) -> StartedJobRegistry:
        return StartedJobRegistry(queue=self, job_class=self.job_class, serializer=self.serializer)

    def create_job(  # type: ignore[override]
        self, func: Any, args: Any = None, kwargs: Any = None, **given: Any
    ) -> Job:
        """A job for `func(*args, **kwargs)`, not yet enqueued.

        Raises:
            NotAJob: `func` or a callback is not in the catalog.
            TypeError: the arguments do not fit the function's signature.
            PayloadError: an argument cannot be carried; it is named.
            PayloadTooLarge: they are more than RQJOBS_MAX_PAYLOAD_BYTES bytes.
            RefusedWebhook: a webhook goes to a host that is not allowed.
        """
        args, kwargs = tuple(args or ()), dict(kwargs or {})
        function = catalog.current().check(func)
        _fit(function, args, kwargs)
        for option, value in catalog.options(function).items():
            if option != "queue" and given.get(option) is None:
                given[option] = value
        if given.get("meta"):
            given["meta"] = copy.copy(
                given["meta"]
            )  # the job's own, since trace headers are written into it
        self._warn_if_unserved()
        try:
            # By name: RQ takes a callable that is no plain function for an object whose `__call__`
            # is the job.
            job: Job = super().create_job(catalog.name_of(function), args, kwargs, **given)  # type: ignore[assignment]
        except RecursionError:
            raise PayloadError(
                "an argument contains itself, or is nested too deeply for JSON"
            ) from None
        _check_numbers(job)
        job.check()
        job.check_payload(function)
        job.is_new = given.get("job_id") is None
        return job

    def _warn_if_unserved(self) -> None:
        if time.monotonic() - _looked.get(self.key, -UNSERVED_PAUSE) < UNSERVED_PAUSE:
            return
        _looked[self.key] = time.monotonic()
        try:
            served = self.connection.scard(keys.listeners(self.name))
        except redis.ResponseError:  # somebody else wrote there
            return
        if not served:
            log.warning(
                "no worker serves the queue %r now; jobs wait until one is started with: rqjobs worker %s",
                self.name,
                self.name,
            )

    def schedule_job(
        self, job: Any, datetime: datetime, pipeline: Any = None, unique: bool = False
    ) -> Any:
        if not self._is_recording():
            self.show(job)
        if unique:
            return super().schedule_job(job, datetime, pipeline=pipeline, unique=unique)
        write = partial(self._schedule, job, datetime.timestamp(), pipeline)
        if is_wrapped(rq.Queue, "schedule_job"):
            WrappedQueue(self, write).schedule_job(job, datetime)
        else:
            write()
        return job

    def _schedule(self, job: Job, due: float, pipeline: Any) -> None:
        job.origin = self.name
        if self._is_recording():
            self._record_schedule(job, due, pipeline)
        else:
            job._status = JobStatus.SCHEDULED
            self._enter(job, repr(due), pipeline, job._dependency_ids)

    def _record_schedule(self, job: Job, due: float, pipeline: Any) -> None:
        """The job goes on, a retry or a repeat, so long from now: its move is a part of its
        outcome.
        """
        pipe = pipeline if pipeline is not None else self.connection
        pipe.sadd(self.redis_queues_keys, self.key)
        self._persist_job(job, pipe, status=JobStatus.SCHEDULED)
        here = time.time()
        due += scripts.redis_time(self.connection) - here
        pipe.zadd(keys.scheduled(self.name), {job.id: due})
        if due < here + transitions.SCHEDULER_POLL_SECONDS:
            transitions.publish_due(self.connection, self.name, due)

    def enqueue(self, f: Any, *args: Any, **kwargs: Any) -> Any:
        return super().enqueue(f, **split_options(f, args, kwargs))

    def enqueue_at(self, datetime: datetime, f: Any, *args: Any, **kwargs: Any) -> Any:
        return super().enqueue_at(datetime, f, **split_options(f, args, kwargs))

    def enqueue_in(self, time_delta: timedelta, func: Any, *args: Any, **kwargs: Any) -> Any:
        moment = datetime.fromtimestamp(scripts.redis_time(self.connection), timezone.utc)
        return self.enqueue_at(moment + time_delta, func, *args, **kwargs)

    def enqueue_job(
        self, job: Any, pipeline: Any = None, at_front: bool = False, unique: bool = False
    ) -> Any:
        if unique or self._is_recording():
            return super().enqueue_job(job, pipeline=pipeline, at_front=at_front, unique=unique)
        write = partial(self._enqueue, job, pipeline, at_front, job._dependency_ids)
        if not is_wrapped(rq.Queue, "enqueue_job", "_enqueue_job"):
            write()
        else:
            self._stamp(job)
            WrappedQueue(self, write).enqueue_job(job, at_front=at_front)
        return job

    def _enqueue_job(
        self, job: Any, pipeline: Any = None, at_front: bool = False, unique: bool = False
    ) -> Any:
        if unique or self._is_recording():
            return super()._enqueue_job(job, pipeline=pipeline, at_front=at_front, unique=unique)
        self._enqueue(job, pipeline, at_front)
        return job

    def _enqueue(
        self, job: Job, pipeline: Any, at_front: bool, parents: Iterable[str] = ()
    ) -> None:
        self._stamp(job)
        if self._is_async:
            self._enter(job, "front" if at_front else "back", pipeline, parents)
            return
        job.redis_server_version = self.get_redis_server_version()
        self._enter(job, "nowhere", None, parents)
        if job.get_status(refresh=False) != JobStatus.DEFERRED:
            self.run_sync(job)

    def enqueue_many(
        self, job_datas: Iterable[EnqueueData], pipeline: Any = None, group_id: str | None = None
    ) -> list[Any]:
        calls = [data._asdict() for data in job_datas]
        calls.sort(
            key=lambda call: bool(call["depends_on"])
        )  # as RQ does: those that may be waited for come first
        places = ["front" if call.pop("at_front") else "back" for call in calls]
        jobs = [
            self.create_job(**call, status=JobStatus.QUEUED, group_id=group_id) for call in calls
        ]
        for job in jobs if is_wrapped(rq.Queue, "enqueue_job", "_enqueue_job") else ():
            shown = ObservedQueue(self) if job._dependency_ids else WrappedQueue(self, lambda: None)
            shown.enqueue_job(job)
        if not self._is_async:
            return [self._enqueue_job(job) for job in jobs]
        for start in range(0, len(jobs), CHUNK):
            chunk = jobs[start : start + CHUNK]
            for job in chunk:
                self._stamp(job)
            self._enter_all(
                [
                    self._entry(job, place, job._dependency_ids)
                    for job, place in zip(chunk, places[start:], strict=False)
                ],
                chunk,
                pipeline,
            )
        return jobs

    def show(self, job: Job) -> Job:
        """Let what wraps RQ's `enqueue_job` see a job that is about to be stored: it puts trace
        headers into `meta`.
        """
        if is_wrapped(rq.Queue, "enqueue_job"):
            ObservedQueue(self).enqueue_job(job)
        return job

    def _entry(self, job: Job, place: str, parents: Iterable[str] = ()) -> Placement:
        waits_for = ("1" if job.allow_dependency_failures else "", *parents) if parents else ()
        return Placement(self.name, job.id, place, job.ttl, *job.to_hash(), waits_for)

    def _enter(
        self, job: Job, place: str, pipeline: Any = None, parents: Iterable[str] = ()
    ) -> None:
        """Put the job into its place, unless it waits for one of its parents."""
        self._enter_all([self._entry(job, place, parents)], [job], pipeline)

    def _enter_all(self, entries: list[Placement], jobs: list[Job], pipeline: Any) -> None:
        if pipeline is not None:
            transitions.enqueue_in_pipeline(pipeline, entries)
            return
        deferred = transitions.enqueue(self.connection, entries)
        for job in jobs if deferred else ():
            if job.id in deferred:
                job._status = JobStatus.DEFERRED

    def _persist_job(self, job: Any, pipeline: Any, status: JobStatus = JobStatus.QUEUED) -> None:
        pipeline.persist(job.key)  # an ended job of this id may be about to expire
        super()._persist_job(job, pipeline, status=status)

    def _stamp(self, job: Job) -> None:
        job.origin, job.enqueued_at, job._status = self.name, now(), JobStatus.QUEUED
        job.timeout = job.timeout or self._default_timeout

    def _is_recording(self) -> bool:
        return is_recording(self.connection)

    def enqueue_dependents(
        self,
        job: Any,
        pipeline: Any = None,
        exclude_job_id: str | None = None,
        refresh_job_status: bool = True,
    ) -> None:
        if not self._is_recording():
            super().enqueue_dependents(
                job,
                pipeline=pipeline,
                exclude_job_id=exclude_job_id,
                refresh_job_status=refresh_job_status,
            )
        elif job.get_status(refresh=False) in (
            JobStatus.FINISHED,
            JobStatus.FAILED,
        ):  # `settle.lua` does it
            recording: Any = self.connection.recording  # type: ignore[attr-defined]
            recording.counts_as = job.get_status(refresh=False).value

    def compact(self) -> None:
        """Remove ids whose job is gone. Every other id stays where it is, at every instant."""
        job_prefix = keys.JOB_PREFIX.encode()
        for start in range(0, self.count, CHUNK):
            ids: Any = self.connection.lrange(
                self.key, start, start + CHUNK - 1
            )  # bytes, which may be no text
            with self.connection.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.exists(job_prefix + job_id)
                exist = pipe.execute()
            for job_id in (job_id for job_id, there in zip(ids, exist, strict=True) if not there):
                scripts.REMOVE_DANGLING.run(
                    self.connection, [self.key, job_prefix + job_id], [job_id]
                )


RQ_OPTIONS = frozenset(
    {*EnqueueArgs._fields, "job_timeout"} - {"func", "timeout", "args", "kwargs"}
)


def split_options(
    function: Any,
    args: tuple[Any, ...],
    given: dict[str, Any],
    option_names: frozenset[str] = RQ_OPTIONS,
) -> dict[str, Any]:
    """The options of `enqueue`, and the function's arguments apart as `args` and `kwargs`.

    Raises:
        TypeError: a name is both a parameter of the function and an option.
    """
    explicit = given.keys() & {"args", "kwargs"}
    words = (
        given.keys() & option_names if not explicit else explicit if len(explicit) == 1 else set()
    )
    if words:
        target = catalog.current().check(function)
        plain = {
            name
            for name, parameter in signature(target).parameters.items()
            if parameter.kind not in VARIADIC
        }
        for word in sorted(words & plain):
            raise TypeError(
                f"{catalog.name_of(target)} has a parameter {word!r}, and so has enqueue itself; give the "
                f"function's arguments apart: enqueue({target.__name__}, args=(…), kwargs={{…}})"
            )
    if explicit:
        if args:
            raise TypeError(
                "give the function's arguments either one by one or as args=(…), kwargs={…}, not both"
            )
        return given
    options = {word: given[word] for word in words}
    return {**options, "args": args, "kwargs": {name: given[name] for name in given.keys() - words}}


def _check_numbers(job: Job) -> None:
    if len(job.id) > LONGEST_ID:
        raise ValueError(f"the job_id is {len(job.id):,} letters long; use at most {LONGEST_ID}")
    for name in ("timeout", "ttl", "result_ttl", "failure_ttl"):
        value = getattr(job, name)
        if value is not None and not -(2**31) < value < 2**31:
            raise ValueError(
                f"{name}={str(value)[:40]} is more seconds than Redis takes; use at most {2**31 - 1}"
            )


def _fit(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{catalog.name_of(function)}{signature(function)}: {error}") from None


def queue(name: str) -> Queue:
    """The queue `name` on the configured Redis: an `rq.Queue`, with all of RQ's API.

    Raises:
        ValueError: no queue can be called so.
        NoRedis: there is no Redis.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", name):
        raise ValueError(f"{name!r} is no name for a queue; use letters, digits, '.', '_' and '-'")
    return Queue(name, connection=connection.client())


def queue_for(function: Callable[..., Any] | str) -> Queue:
    """The queue that `@job(queue=…)` names for this function, else `default`, else the first
    configured one.
    """
    named = catalog.options(catalog.current().check(function)).get("queue")
    names = config.current().queues
    return queue(named or ("default" if "default" in names else names[0]))


def enqueue(function: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Have a worker call `function(*args, **kwargs)`; returns the `rq.Job`.

    Takes RQ's keyword options too (`job_timeout`, `retry`, `depends_on`, `job_id`, …). When it
    returns, the job is in Redis. Raises as `Queue.create_job` does, and then nothing was stored; a
    TypeError also if an option is called like a parameter of the function (pass those as `args=(…),
    kwargs={…}`).
    """
    return queue_for(function).enqueue(function, **split_options(function, args, kwargs))


def enqueue_in(delay: timedelta | float, function: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Like `enqueue`, but not before `delay` (a timedelta, or seconds) has passed."""
    if not isinstance(delay, timedelta):
        delay = timedelta(seconds=delay)
    return queue_for(function).enqueue_in(delay, function, **split_options(function, args, kwargs))


def enqueue_at(moment: datetime, function: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Like `enqueue`, but not before `moment`. A datetime without a time zone is in this machine's."""
    if not isinstance(moment, datetime):
        raise TypeError(
            f"enqueue_at takes a datetime first, not {moment!r}; for a delay there is enqueue_in"
        )
    return queue_for(function).enqueue_at(moment, function, **split_options(function, args, kwargs))


def enqueue_many(calls: Iterable[tuple[Any, ...] | EnqueueData]) -> list[Any]:
    """Enqueue many calls in few round trips; returns their jobs in the same order.

    Each call is a tuple `(function, argument, …)`, or what RQ's `Queue.prepare_data(function, …)`
    returns. All are checked before the first is stored; they are stored in steps of 200.

    Raises:
        ValueError: a call has `depends_on` (use `queue(…).enqueue_many`).
    """
    prepared: list[Prepared] = []
    models: dict[Any, Prepared] = {}  # of a function called without options
    wrapped = is_wrapped(
        rq.Queue, "enqueue_job", "_enqueue_job"
    )  # each job gets headers of its own
    for call in calls:
        if not isinstance(call, tuple) or not call:
            raise TypeError(f"enqueue_many takes tuples (function, argument, …), not {call!r}")
        model = None if isinstance(call, EnqueueData) else models.get(call[0])
        if model:
            prepared.append(_like(model, call[1:]))
            continue
        data = call if isinstance(call, EnqueueData) else Queue.prepare_data(call[0], args=call[1:])
        if data.depends_on:
            raise ValueError(
                "rqjobs.enqueue_many takes no depends_on; use rqjobs.queue(name).enqueue_many"
            )
        target, given = queue_for(data.func), data._asdict()
        at_front, _ = given.pop("at_front"), given.pop("depends_on")
        job = target.create_job(status=JobStatus.QUEUED, **given)
        target._stamp(job)
        if wrapped:
            WrappedQueue(target, lambda: None).enqueue_job(job)
        prepared.append((job, at_front, *job.to_hash()))
        if not wrapped and not isinstance(call, EnqueueData):
            models[call[0]] = prepared[-1]
    for start in range(0, len(prepared), CHUNK):
        transitions.enqueue(
            connection.client(),
            [
                Placement(job.origin, job.id, "front" if at_front else "back", job.ttl, new, fields)
                for job, at_front, new, fields in prepared[start : start + CHUNK]
            ],
        )
    return [job for job, *_ in prepared]


def _like(model: Prepared, args: tuple[Any, ...]) -> Prepared:
    """Another call of the same function, with the same checks."""
    first, at_front, new, fields = model
    function = catalog.current().lookup(first.func_name)
    _fit(function, args, {})
    job = Job.__new__(Job)
    vars(job).update(
        vars(first),
        _id=str(uuid4()),
        _args=args,
        _data=rq.job.UNEVALUATED,
        meta=dict(first.meta),
        webhooks=list(first.webhooks),
    )
    if "description" not in catalog.options(function):
        job.description = job.get_call_string()
    job.check_payload(function)
    return (
        job,
        at_front,
        new,
        {**fields, "data": compress(job.data), "description": job.description},
    )
