"""`rq.Queue` with the catalog's options, checks, and enqueueing in one step; and `enqueue`."""

from __future__ import annotations

import copy
import logging
import re
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from functools import cached_property, partial
from typing import Any

import redis
import rq
import rq.job
from rq.job import JobStatus
from rq.queue import EnqueueData
from rq.utils import now

from rqjobs import catalog, config, connection, hooks, policies, storing, transactions
from rqjobs.broker import enqueueing, keys, scripts, transitions
from rqjobs.broker.enqueueing import Placement
from rqjobs.call_options import (
    check_numbers,
    check_on_failed,
    check_signature,
    split_options,
    split_policies,
    take_policies,
)
from rqjobs.instrumentation import ObservedQueue, WrappedQueue, is_wrapped
from rqjobs.jobs import Job, StartedJobRegistry, is_recording, serializer_for
from rqjobs.policies import time_limits
from rqjobs.serializers import PayloadError
from rqjobs.transactions import takes_after_commit

log = logging.getLogger("rqjobs")
# The jobs of one script, during which Redis runs nothing else.
ENQUEUE_BATCH_MAX_JOBS = 200
UNSERVED_CHECK_SECONDS = 60  # between two checks whether a worker serves a queue
QUEUE_NAME_PATTERN = re.compile(r"[A-Za-z0-9_.-]{1,100}")

# Fields that the job of an `on_failed` does not have: it is not enqueued by `enqueue.lua`.
NOT_OF_A_CALL = frozenset(
    {"rqjobs_on_failed", "rqjobs_unique", "rqjobs_until", "rqjobs_keep", "rqjobs_debounce"}
)

_unserved_checked_at: dict[str, float] = {}  # a queue's key -> monotonic time


class Queue(rq.Queue):
    """An `rq.Queue` with RQ's whole API that checks each job before it stores it.

    One script puts a job into its place, however it is enqueued, and removes it from the place
    where it was. The docstring of each method that replaces one of RQ's says why.
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
        if job_class is rq.job.Job:  # RQ passes its own class where the caller has named none
            job_class = None
        super().__init__(name, connection, default_timeout, is_async, job_class, **options)
        self.serializer = serializer_for(serializer)

    @cached_property
    def started_job_registry(self) -> StartedJobRegistry:
        """RQ's property names its own registry class."""
        return StartedJobRegistry(queue=self, job_class=self.job_class, serializer=self.serializer)

    # Making a job

    def create_job(  # type: ignore[override]
        self, func: Any, args: Any = None, kwargs: Any = None, **given: Any
    ) -> Job:
        """A job for `func(*args, **kwargs)`, not yet enqueued.

        RQ's method takes any function. This one takes those of the catalog, adds the options of
        `@job`, and checks everything that a worker would check. `passed_on` stands for the
        arguments that the job gets from others, before `args`.

        Raises:
            NotAJob: `func` or a callback is not in the catalog.
            TypeError: the arguments do not fit the function's signature.
            PayloadError: an argument cannot be stored; the message names the argument.
            PayloadTooLarge: they are more than RQJOBS_MAX_PAYLOAD_BYTES bytes.
            RefusedWebhook: the host of a webhook is not allowed.
            ValueError: the id is too long, or a number of seconds too large.
            TypeError, ValueError: a policy is wrong, or cannot go together with another.
        """
        args = tuple(args or ())
        kwargs = dict(kwargs or {})
        if isinstance(func, policies.With):
            func, of_call = func
            given.update(of_call)
        function = catalog.current().check(func)
        passed_on = given.pop("passed_on", ())
        all_args = (*passed_on, *args)
        check_signature(function, all_args, kwargs)
        for option, value in catalog.options(function).items():
            if option not in catalog.FUNCTION_OPTIONS and given.get(option) is None:
                given[option] = value
        if given.get("meta"):  # a copy for this job: tracing libraries write headers into it
            given["meta"] = copy.copy(given["meta"])
        if transactions.needs_redis():
            self._warn_if_unserved()
        # RQ takes a callable that is not a plain function for an object whose `__call__` is the
        # job, so it gets the name.
        name = catalog.name_of(function)
        policy_fields = take_policies(policies.Call(function, name, all_args, kwargs), given)
        try:
            job: Job = super().create_job(name, args, kwargs, **given)  # type: ignore[assignment]
        except RecursionError:
            raise PayloadError(
                "an argument contains itself, or is nested too deeply for JSON"
            ) from None
        job.policy_fields = policy_fields
        job.passed_on_count = len(passed_on)
        if passed_on and config.current().hide and not given.get("description"):
            job.description = job.get_call_string()
        check_on_failed(policy_fields.get("rqjobs_on_failed"))
        check_numbers(job)
        job.check()
        job.check_payload(function, len(passed_on))
        job.is_new = given.get("job_id") is None
        return job

    def _warn_if_unserved(self) -> None:
        """Log a warning, at most once a minute, if no worker serves this queue."""
        if storing.is_replaced():  # no worker gets the job
            return
        checked_at = _unserved_checked_at.get(self.key, -UNSERVED_CHECK_SECONDS)
        if time.monotonic() - checked_at < UNSERVED_CHECK_SECONDS:
            return
        _unserved_checked_at[self.key] = time.monotonic()
        try:
            workers = self.connection.scard(keys.listeners(self.name))
        except redis.ResponseError:  # the key has another type
            return
        if not workers:
            log.warning(
                "no worker serves the queue %r now; jobs wait until one is started with: "
                "rqjobs worker %s",
                self.name,
                self.name,
            )

    # Enqueueing

    @takes_after_commit
    def enqueue(self, f: Any, *args: Any, **kwargs: Any) -> Any:
        """RQ takes a function's argument for an option of the same name; this one refuses it."""
        f, options = split_policies(f, split_options(f, args, kwargs))
        return super().enqueue(f, **options)

    @takes_after_commit
    def enqueue_at(self, datetime: datetime, f: Any, *args: Any, **kwargs: Any) -> Any:
        """RQ takes a function's argument for an option of the same name; this one refuses it."""
        f, options = split_policies(f, split_options(f, args, kwargs))
        return super().enqueue_at(datetime, f, **options)

    @classmethod
    def prepare_data(cls, func: Any, *args: Any, **options: Any) -> EnqueueData:
        """RQ's takes its own options only; this one takes policies as well."""
        func, options = split_policies(func, options)
        return super().prepare_data(func, *args, **options)

    @takes_after_commit
    def enqueue_in(self, time_delta: timedelta, func: Any, *args: Any, **kwargs: Any) -> Any:
        """RQ counts from this machine's clock; this one counts from Redis's, as the scheduler."""
        seconds = time.time()
        if transactions.needs_redis():
            seconds = storing.time_now(self.connection)
        moment = datetime.fromtimestamp(seconds, timezone.utc)
        return self.enqueue_at(moment + time_delta, func, *args, **kwargs)

    def enqueue_job(
        self, job: Any, pipeline: Any = None, at_front: bool = False, unique: bool = False
    ) -> Any:
        """RQ takes several steps; this one takes one, which checks the job's parents as well."""
        if unique:
            transactions.refuse("unique=True")
            _refuse_unique_key(job)
            self._start_expiry(job)
            hooks.check_enqueue(job)
        if unique or is_recording(self.connection):
            job = super().enqueue_job(job, pipeline=pipeline, at_front=at_front, unique=unique)
            if unique:  # RQ's script has stored it, also if there is a pipeline
                hooks.after_enqueue.call(job)
            return job
        enqueue = partial(self._enqueue_in_one_step, job, pipeline, at_front, job._dependency_ids)
        if not is_wrapped(rq.Queue, "enqueue_job", "_enqueue_job"):
            enqueue()
        else:
            self._prepare(job)
            WrappedQueue(self, enqueue).enqueue_job(job, at_front=at_front)
        return stored_job(job)

    def _enqueue_job(
        self, job: Any, pipeline: Any = None, at_front: bool = False, unique: bool = False
    ) -> Any:
        """RQ's step after the dependencies; RQ calls it for repeats and retries as well."""
        if unique or is_recording(self.connection):
            return super()._enqueue_job(job, pipeline=pipeline, at_front=at_front, unique=unique)
        self._enqueue_in_one_step(job, pipeline, at_front)
        return stored_job(job)

    def _enqueue_in_one_step(
        self, job: Job, pipeline: Any, at_front: bool, parents: Iterable[str] = ()
    ) -> None:
        self._prepare(job)
        if self._is_async or storing.is_replaced():  # the replacement may run the job
            self._place(job, end_of_queue(at_front), pipeline, parents)
            return
        if transaction := transactions.current():
            run = partial(self._enqueue_in_one_step, job, None, at_front, parents)
            transaction.call(f"job {job.id}", run, [job])
            return
        job.redis_server_version = self.get_redis_server_version()
        self._place(job, "front" if at_front and _is_debounced(job) else "nowhere", None, parents)
        if job.get_status(refresh=False) == JobStatus.QUEUED and stored_job(job) is job:
            self.run_sync(job)

    @takes_after_commit
    def enqueue_many(
        self, job_datas: Iterable[EnqueueData], pipeline: Any = None, group_id: str | None = None
    ) -> list[Any]:
        """RQ sends several commands for each job; this one sends a script for each 200 jobs.

        All jobs are checked before the first is stored.
        """
        calls = [data._asdict() for data in job_datas]
        # Jobs without parents come first, as in RQ: the others may wait for them.
        calls.sort(key=lambda call: bool(call["depends_on"]))
        places = [end_of_queue(call.pop("at_front")) for call in calls]
        jobs = [
            self.create_job(**call, status=JobStatus.QUEUED, group_id=group_id) for call in calls
        ]
        for job, place in zip(jobs, places, strict=True):
            check_place(job, place)
        if is_wrapped(rq.Queue, "enqueue_job", "_enqueue_job"):
            for job in jobs:
                self._show_to_wrappers(job)
        if not self._is_async and not storing.is_replaced():
            return [self._enqueue_job(job) for job in jobs]
        if transactions.current():
            transactions.check_jobs(jobs)
        for job in jobs:
            hooks.check_enqueue(job)
        for start in range(0, len(jobs), ENQUEUE_BATCH_MAX_JOBS):
            batch = jobs[start : start + ENQUEUE_BATCH_MAX_JOBS]
            for job in batch:
                self._prepare(job)
            placements = [
                self._placement(job, place, job._dependency_ids)
                for job, place in zip(batch, places[start:], strict=False)
            ]
            self._store(placements, batch, pipeline)
        return [stored_job(job) for job in jobs]

    def _show_to_wrappers(self, job: Job) -> None:
        if job._dependency_ids:
            ObservedQueue(self).enqueue_job(job)
        else:
            WrappedQueue(self, lambda: None).enqueue_job(job)

    def _show_to_observer(self, job: Job) -> None:
        """Let a tracing library that wraps RQ's `enqueue_job` write its headers into the meta."""
        if is_wrapped(rq.Queue, "enqueue_job"):
            ObservedQueue(self).enqueue_job(job)

    def schedule_job(
        self, job: Any, datetime: datetime, pipeline: Any = None, unique: bool = False
    ) -> Any:
        """RQ takes several steps, and rounds to seconds; this one takes one, and does not round."""
        if not is_recording(self.connection):
            self._show_to_observer(job)
        if unique:
            transactions.refuse("unique=True")
            _refuse_unique_key(job)
            self._start_expiry(job, datetime.timestamp())
            hooks.check_enqueue(job)
            job = super().schedule_job(job, datetime, pipeline=pipeline, unique=unique)
            hooks.after_enqueue.call(job)
            return job
        schedule = partial(self._schedule, job, datetime.timestamp(), pipeline)
        if is_wrapped(rq.Queue, "schedule_job"):
            WrappedQueue(self, schedule).schedule_job(job, datetime)
        else:
            schedule()
        return stored_job(job)

    def _schedule(self, job: Job, due: float, pipeline: Any) -> None:
        job.origin = self.name
        if is_recording(self.connection):
            self._record_schedule(job, due, pipeline)
        else:
            job._status = JobStatus.SCHEDULED
            if job.policy_fields:
                time_limits.check_due(job.policy_fields.get("rqjobs_expires", "+"), due)
            self._place(job, repr(due), pipeline, job._dependency_ids)

    def _record_schedule(self, job: Job, due: float, pipeline: Any) -> None:
        """Schedule the retry or the repeat of a job whose outcome is recorded.

        RQ has taken `due` from this machine's clock.
        """
        pipe = self.connection if pipeline is None else pipeline
        pipe.sadd(self.redis_queues_keys, self.key)
        self._persist_job(job, pipe, status=JobStatus.SCHEDULED)
        local_time = time.time()
        due += scripts.redis_time(self.connection) - local_time
        pipe.zadd(keys.scheduled(self.name), {job.id: due})
        if due < local_time + enqueueing.SCHEDULER_POLL_SECONDS:
            transitions.publish_due(self.connection, self.name, due)

    def _persist_job(self, job: Any, pipeline: Any, status: JobStatus = JobStatus.QUEUED) -> None:
        """RQ writes into the hash of an ended job of the same id, which then expires."""
        pipeline.persist(job.key)
        super()._persist_job(job, pipeline, status=status)

    def _start_expiry(self, job: Any, due: float = 0.0) -> None:
        """Count a job's `expires` from now, or from `due`. RQ's own script, for `unique`, does not."""
        stored = getattr(job, "policy_fields", {}).get("rqjobs_expires")
        if stored:
            time_limits.check_due(stored, due)
            moment = max(due, scripts.redis_time(self.connection))
            job.policy_fields = {
                **job.policy_fields,
                "rqjobs_expires": time_limits.count_from(stored, moment),
            }

    def _prepare(self, job: Job) -> None:
        """Give a job the attributes of a queued one."""
        job.origin = self.name
        job.enqueued_at = now()
        job._status = JobStatus.QUEUED
        job.timeout = job.timeout or self._default_timeout

    def _placement(self, job: rq.job.Job, place: str, parents: Iterable[str] = ()) -> Placement:
        check_place(job, place)
        dependencies: tuple[str, ...] = ()
        if parents:
            dependencies = ("1" if job.allow_dependency_failures else "", *parents)
        if isinstance(job, Job):
            is_new, fields = job.to_hash()
        else:  # RQ's own
            is_new, fields = False, job.to_dict()
        return Placement(self.name, job.id, place, job.ttl, is_new, fields, dependencies)

    def _place(
        self, job: Job, place: str, pipeline: Any = None, parents: Iterable[str] = ()
    ) -> None:
        """Store a job in its place, or as deferred if it waits for one of its parents."""
        hooks.check_enqueue(job)
        self._store([self._placement(job, place, parents)], [job], pipeline)

    def _store(self, placements: list[Placement], jobs: list[Job], pipeline: Any) -> None:
        connection.check_use()  # the queue may be older than the rule that forbids it
        if pipeline is not None:
            transactions.refuse("pipeline=")
        if pipeline is not None and not storing.is_replaced():
            for job in jobs:
                _check_pipeline(job)
            enqueueing.enqueue_in_pipeline(pipeline, placements)
            # The script decides when the pipeline runs. Until then this is a forecast.
            for job, placement in zip(jobs, placements, strict=True):
                if placement.parents and enqueueing.must_wait(self.connection, placement):
                    job._status = JobStatus.DEFERRED
            return
        storing.store(self.connection, placements, jobs)

    # Afterwards

    def enqueue_dependents(
        self,
        job: Any,
        pipeline: Any = None,
        exclude_job_id: str | None = None,
        refresh_job_status: bool = True,
    ) -> None:
        """RQ takes a step for each dependent; `settle.lua` enqueues them with the outcome."""
        if not is_recording(self.connection):
            super().enqueue_dependents(
                job,
                pipeline=pipeline,
                exclude_job_id=exclude_job_id,
                refresh_job_status=refresh_job_status,
            )
            return
        status = job.get_status(refresh=False)
        if status in (JobStatus.FINISHED, JobStatus.FAILED):
            recording: Any = self.connection.recording  # type: ignore[attr-defined]
            recording.counts_as = status.value

    def compact(self) -> None:
        """Remove ids whose job is gone. Every other id stays where it is at every instant.

        RQ moves all ids through another list, and loses them if it is interrupted.
        """
        job_prefix = keys.JOB_PREFIX.encode()
        for start in range(0, self.count, ENQUEUE_BATCH_MAX_JOBS):
            end = start + ENQUEUE_BATCH_MAX_JOBS - 1
            ids: Any = self.connection.lrange(self.key, start, end)  # bytes, of any encoding
            with self.connection.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.exists(job_prefix + job_id)
                exist = pipe.execute()
            for job_id, exists in zip(ids, exist, strict=True):
                if not exists:
                    scripts.REMOVE_DANGLING.run(
                        self.connection, [self.key, job_prefix + job_id], [job_id]
                    )


def stored_job(job: Any) -> Any:
    """The job for which `enqueue` was called, or the one that has its unique key."""
    return getattr(job, "existing", None) or job


def _is_debounced(job: Any) -> bool:
    return "rqjobs_debounce" in getattr(job, "policy_fields", ())


def check_place(job: Any, place: str) -> None:
    """Raises ValueError if a debounced job has another place than the end of its queue."""
    if place not in ("back", "nowhere") and _is_debounced(job):
        option = "at_front" if place == "front" else "enqueue_in and enqueue_at"
        raise ValueError(
            f"{job.func_name} has debounce, which decides when it runs and cannot go with "
            f"{option}; use enqueue without at_front, or another job function"
        )


def _check_pipeline(job: Any) -> None:
    """Raises ValueError if a job in a pipeline has `on_conflict="raise"`."""
    if getattr(job, "policy_fields", {}).get("rqjobs_conflict") == "raise":
        raise ValueError(
            f"{job.func_name} has on_conflict='raise', which cannot go with pipeline=: only its "
            f"execution shows a conflict; enqueue it without a pipeline, or use 'return'"
        )


def _refuse_unique_key(job: Any) -> None:
    """Raises ValueError if a job has a unique key and is enqueued with RQ's `unique=True`."""
    if "rqjobs_unique" in getattr(job, "policy_fields", ()):
        raise ValueError(
            f"{job.func_name} is unique by a key of its own, so RQ's unique=True cannot be used; "
            f"leave it out"
        )


def end_of_queue(at_front: bool) -> str:
    """The place of a job in `Placement`."""
    return "front" if at_front else "back"


def on_failed_call(name: str, args: tuple[str, ...], connection: redis.Redis) -> Placement:
    """The job of an `on_failed`, ready to be stored. It has no `on_failed` of its own.

    Raises:
        NotAJob: `name` is not in the catalog.
        Exception: see `Queue.create_job`.
    """
    target = Queue(queue_for(name).name, connection=connection)
    job = target.create_job(name, args, status=JobStatus.QUEUED)
    job.policy_fields = {
        field: value for field, value in job.policy_fields.items() if field not in NOT_OF_A_CALL
    }
    target._prepare(job)
    return target._placement(job, "back")


def queue(name: str) -> Queue:
    """The queue `name` on the configured Redis: an `rq.Queue`, with all of RQ's API.

    Raises:
        ValueError: the name has other characters than letters, digits, '.', '_' and '-'.
        NoRedis: no Redis is configured.
    """
    return Queue(check_queue_name(name), connection=connection.client())


def check_queue_name(name: str) -> str:
    """Return `name`.

    Raises:
        ValueError: the name has other characters than letters, digits, '.', '_' and '-'.
    """
    if not isinstance(name, str) or not QUEUE_NAME_PATTERN.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a name for a queue; use letters, digits, '.', '_' and '-'"
        )
    return name


def queue_for(function: Callable[..., Any] | str) -> Queue:
    """The queue of `@job(queue=…)`; without one `default`, or else the first configured queue."""
    if isinstance(function, policies.With):
        function = function.function
    name = catalog.options(catalog.current().check(function)).get("queue")
    if not name:
        names = config.current().queues
        name = "default" if "default" in names else names[0]
    return queue(name)


@takes_after_commit
def enqueue(function: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Enqueue the call `function(*args, **kwargs)`; returns the `rq.Job`.

    Takes RQ's keyword options too (`job_timeout`, `retry`, `depends_on`, `job_id`, …). When it
    returns, the job is in Redis. If it raises, nothing is stored. If another job has its unique key,
    that one is returned. With `after_commit=session` the job is stored when an SQLAlchemy session
    commits: see `rqjobs.transaction`.

    Raises:
        DuplicateJob: another job has its unique key, and it has `on_conflict="raise"`.
        NotAJob, PayloadError, PayloadTooLarge, RefusedWebhook, ValueError: see `Queue.create_job`.
        TypeError: the arguments do not fit the function, or an option is called like a parameter
            of the function; then pass the arguments as `args=(…), kwargs={…}`.
    """
    return queue_for(function).enqueue(function, **split_options(function, args, kwargs))


@takes_after_commit
def enqueue_in(delay: timedelta | float, function: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Like `enqueue`, but the job is due after `delay`, a timedelta or a number of seconds."""
    if not isinstance(delay, timedelta):
        delay = timedelta(seconds=delay)
    return queue_for(function).enqueue_in(delay, function, **split_options(function, args, kwargs))


@takes_after_commit
def enqueue_at(moment: datetime, function: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Like `enqueue`, but the job is due at `moment`.

    A datetime without a time zone is in this machine's time zone.
    """
    if not isinstance(moment, datetime):
        raise TypeError(
            f"enqueue_at takes a datetime first, not {moment!r}; for a delay there is enqueue_in"
        )
    return queue_for(function).enqueue_at(moment, function, **split_options(function, args, kwargs))
