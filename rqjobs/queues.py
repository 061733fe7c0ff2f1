"""`rq.Queue` and `rq.Job` with the catalog's options, the payload guard and atomic moves; and `enqueue`."""

from __future__ import annotations

import inspect
import logging
import re
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from uuid import uuid4

import redis
import rq
import rq.job
import rq.queue
import rq.registry
import rq.repeat
import rq.webhook
from rq.exceptions import DeserializationError
from rq.job import JobStatus
from rq.queue import EnqueueData
from rq.results import Result
from rq.serializers import resolve_serializer
from rq.utils import as_text, now

from rqjobs import catalog, config, connection, ledger, serializers
from rqjobs.serializers import Configured, PayloadError, encode

log = logging.getLogger("rqjobs")
INFLATED = 64 * 1024 * 1024  # bytes that a job's data may have when they are unpacked; a bomb has more
SMALL = 512  # bytes of a job's data that are not worth compressing
CHUNK = 200  # jobs that `enqueue_many` sends in one script, which holds up everybody else
UNSERVED_PAUSE = 60  # seconds between two looks at whether anybody serves a queue
_looked: dict[str, float] = {}


class PayloadTooLarge(ValueError):
    """A job's arguments are more than RQJOBS_MAX_PAYLOAD bytes."""


class RefusedWebhook(ValueError):
    """A webhook's host is not in RQJOBS_WEBHOOK_HOSTS."""


class StartedJobRegistry(rq.registry.StartedJobRegistry):
    """RQ's, but its entries do not expire: RQ fails what it finds expired, and our sweep puts it back instead."""

    def add_execution(self, execution: Any, pipeline: Any, ttl: int = 0, xx: bool = False) -> int:
        return super().add_execution(execution, pipeline, ttl=-1, xx=xx)


class Job(rq.job.Job):
    """An `rq.Job` that runs only if every name in it is in the catalog.

    Overrides: `data` (written as lists, so that a stock `-S json` worker can read it), `to_dict` (small data are not
    compressed), `_deserialize_data` (checks the
    shape), `restore` (unpacks so much and
    no more), `perform` (checks every name first, runs inside RQJOBS_APP's context, leaves the PERSIST to the claim),
    `stopped_callback` (read by the worker outside any `try`), `send_webhooks` (allow-list), `started_job_registry`
    (see above), `requeue` (RQ's is three steps, and a crash between them loses the job), `should_retry` and `retry` (a
    run that fails for good does not end RQ's `Repeat`).
    """

    unheard_of = False  # nothing can be stored under its id yet
    chain: tuple[int, int | None] | None = None  # repeats and retries that it had when it began
    failure = ""  # the traceback of the run that has just failed

    def __init__(self, id: str | None = None, connection: redis.Redis | None = None, serializer: Any = None):
        super().__init__(id, connection)
        self.serializer = Configured if serializer in (None, Configured) else resolve_serializer(serializer)

    @classmethod
    def found(cls, job_id: str, fields: dict[bytes, bytes], connection: redis.Redis) -> Job:
        """The job of this hash. RQ's constructor takes as long as all the rest."""
        job = cls.__new__(cls)
        vars(job).update(_blank(), _id=job_id, connection=connection, webhooks=[], meta={}, _dependency_ids=[])
        job.restore(fields)
        return job

    @property
    def data(self) -> bytes:
        if self._data is rq.job.UNEVALUATED and isinstance(self._args, list | tuple):
            self._data = self.serializer.dumps([self._func_name, self._instance, list(self._args), self._kwargs])
        return super().data

    @data.setter
    def data(self, value: bytes) -> None:
        rq.job.Job.data.fset(self, value)  # type: ignore[attr-defined]

    def carry(self, function: Callable[..., Any]) -> None:
        """Make sure that the arguments can travel.

        Raises:
            PayloadError: one cannot; it is named.
            PayloadTooLarge: they are more than RQJOBS_MAX_PAYLOAD bytes.
        """
        try:
            size = len(self.data)
        except RecursionError:
            raise PayloadError("an argument contains itself, or is nested too deeply for JSON") from None
        except PayloadError:
            for where, value in _named(function, tuple(self.args), self.kwargs):
                encode(value, where)
            raise
        limit = config.current().max_payload
        if size > limit:
            raise PayloadTooLarge(f"the arguments of {self.func_name} are {size:,} bytes, more than RQJOBS_MAX_PAYLOAD "
                                  f"({limit:,}); pass an id, fetch the data inside the job")

    def stored(self) -> bytes:
        """The data as they are written: compressed, as RQ does, if that is worth the time. RQ reads both."""
        return self.data if len(self.data) < SMALL else zlib.compress(self.data, 1)

    def to_dict(self, include_meta: bool = True, include_result: bool = True) -> dict[str, Any]:
        fields = {**super().to_dict(include_meta, include_result), "data": self.stored()}
        if self.chain and self.repeats_left is not None:
            fields["rqjobs_chain"] = f"{self.chain[0]},{'' if self.chain[1] is None else self.chain[1]}"
        return fields

    def fields(self) -> dict[str, Any]:
        """The hash with which the job is enqueued; RQ takes a field that is not there for an empty one."""
        fields, new, self.unheard_of = self.to_dict(), self.unheard_of, False
        return {name: value for name, value in fields.items() if value != ""} if new else fields

    def restore(self, raw_data: Any) -> Any:
        found = dict(raw_data)
        for name in (b"data", b"exc_info"):
            if found.get(name):
                found[name] = _inflate(found[name])
        super().restore(found)
        if self.repeats_left is not None:
            words = as_text(found.get(b"rqjobs_chain") or b"").partition(",")[::2]
            times, retries = (int(word) if word.isdigit() else None for word in words)
            self.chain = (times, retries) if times else (self.repeats_left, self.retries_left)

    @property
    def should_retry(self) -> bool:
        return super().should_retry or bool(self.repeats_left)

    def retry(self, queue: Any, pipeline: Any) -> None:
        if super().should_retry:
            super().retry(queue, pipeline)
            return
        Result.create_failure(self, self.failure_ttl, self.failure, self.worker_name or "", pipeline)
        repeat(self, queue, pipeline)

    def _deserialize_data(self) -> None:
        try:
            payload = self.serializer.loads(self.data)
        except Exception as error:
            raise DeserializationError(str(error)) from error
        shaped = isinstance(payload, list | tuple) and len(payload) == 4
        name, instance, args, kwargs = payload if shaped else [None] * 4
        if not (isinstance(name, str) and isinstance(args, list | tuple) and isinstance(kwargs, dict)
                and all(isinstance(key, str) for key in kwargs)):
            raise DeserializationError("the job's data are not [function name, null, [arguments], {arguments}]")
        self._func_name, self._instance, self._args, self._kwargs = name, instance, args, kwargs

    def check(self) -> None:
        """Make sure that nothing but the catalog would run.

        Raises:
            NotAJob: the function or a callback is not in the catalog, or there is an `instance`.
            RefusedWebhook: a webhook goes to a host that is not allowed.
        """
        jobs = catalog.current()
        if self.instance is not None:
            raise catalog.NotAJob("the job's data have an instance; jobs are plain functions, not methods")
        jobs.lookup(self.func_name)
        for name in (self._success_callback_name, self._failure_callback_name, self._stopped_callback_name):
            if name:
                jobs.lookup(name)
        for webhook in self.webhooks:
            if not _allowed(webhook.url):
                raise RefusedWebhook(f"the webhook {webhook.url!r} is refused: its host is not in RQJOBS_WEBHOOK_HOSTS")

    def perform(self) -> Any:
        self.check()
        app = catalog.flask_app()
        rq.job._job_stack.push(self)
        try:
            with app.app_context() if app else nullcontext():
                self._result = self._execute()
        finally:
            rq.job._job_stack.pop()
        return self._result

    @property
    def stopped_callback(self) -> Any:
        try:
            return super().stopped_callback
        except catalog.NotAJob as error:
            self.log.error("Job %s: stopped callback refused: %s", self.id, error)
            return None

    def send_webhooks(self, status: Any, *, exc_string: str | None = None) -> None:
        self.webhooks = [webhook for webhook in self.webhooks if _allowed(webhook.url)]
        super().send_webhooks(status, exc_string=exc_string)

    @property
    def started_job_registry(self) -> StartedJobRegistry:
        return StartedJobRegistry(self.origin, connection=self.connection, job_class=type(self),
                                  serializer=self.serializer)

    def requeue(self, at_front: bool = False) -> Job:
        """Bring the job back from the dead letters in one atomic step; raises as `ledger.requeue` does."""
        ledger.requeue(self.connection, self.id, at_front)
        self.refresh()
        return self


@lru_cache(maxsize=1)
def _blank() -> dict[str, Any]:
    return vars(Job("blank", connection=redis.Redis()))


class _NoStrangers(urllib.request.HTTPRedirectHandler):
    """Follows a webhook's redirect only to a host that is allowed itself."""

    def redirect_request(self, request: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not _allowed(newurl):
            raise HTTPError(newurl, code, "redirected to a host that is not in RQJOBS_WEBHOOK_HOSTS", headers, fp)
        return super().redirect_request(request, fp, code, msg, headers, newurl)


def repeat(job: Any, queue: Any, pipeline: Any = None) -> None:
    """Enqueue a job that has an `rq.Repeat` for its next run, in the place of RQ's `Repeat.schedule`.

    RQ takes the intervals from the end, and counts them from now in this machine's local time. Each run has all of the
    job's retries.
    """
    if not job.repeats_left:
        raise ValueError(f"Cannot schedule job {job.id}: no repeats left")
    times, retries = getattr(job, "chain", None) or (job.repeats_left, job.retries_left)
    intervals = job.repeat_intervals or [0]
    interval = intervals[min(max(times - job.repeats_left, 0), len(intervals) - 1)]
    job.repeats_left -= 1
    job.retries_left = retries
    pipe = pipeline if pipeline is not None else job.connection.pipeline()
    if interval:
        queue.schedule_job(job, now() + timedelta(seconds=interval), pipeline=pipe)
    else:
        queue._enqueue_job(job, pipeline=pipe)
    if pipeline is None:
        pipe.execute()


def install() -> None:
    """Make this process unable to unpickle, import, or call a strange host for what it found in Redis.

    For the processes that are ours (worker, web, command line); it replaces some attributes of RQ's modules, one
    of them for speed: RQ reads dates with strptime, which takes thirty times as long; and one so that `Repeat` takes
    its intervals in order.
    """
    serializers.install()
    catalog.install()
    rq.job.str_to_date = _date  # type: ignore[assignment]
    rq.repeat.Repeat.schedule = staticmethod(repeat)  # type: ignore[method-assign]
    rq.webhook.urlopen = urllib.request.build_opener(_NoStrangers).open  # type: ignore[assignment]


def _date(written: bytes | str) -> datetime:
    """A moment as RQ writes it."""
    try:
        moment = datetime.fromisoformat(as_text(written).replace("Z", "+00:00", 1))
        return moment if moment.tzinfo else _str_to_date(written)
    except (ValueError, TypeError):
        return _str_to_date(written)  # which says what is wrong with it


_str_to_date = rq.job.str_to_date


def _allowed(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and parts.hostname in config.current().webhook_hosts


def _inflate(value: bytes) -> bytes:
    """What RQ compressed, up to `INFLATED` bytes; what is not compressed, as it is (RQ then takes it so, too)."""
    if value[0] & 0x0F != 8:  # RFC 1950: the compression method, and 8 is the only one
        return value
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(value, INFLATED)
    except zlib.error:
        return value
    if unpacker.unconsumed_tail:
        raise PayloadTooLarge(f"the job's data are more than {INFLATED:,} bytes when they are unpacked")
    return data


class Queue(rq.Queue):
    """An `rq.Queue` with RQ's whole API, that stores nothing which no worker would run.

    Overrides: `create_job` (options of `@job`, the guard), `schedule_job` (RQ writes the due time first and the job
    later: a scheduler's tick in between loses it), `enqueue_in` (by Redis's clock), `enqueue_job` (RQ's is two round
    trips), `setup_dependencies` (a lost reply is an error, not a reason to enqueue again), `enqueue_dependents` (works
    while an outcome is recorded), `compact` (RQ's loses jobs if it is interrupted).
    """

    job_class = Job

    def __init__(self, name: str = "default", connection: redis.Redis | None = None, **options: Any):
        serializer = options.pop("serializer", None)
        super().__init__(name, connection, **options)
        self.serializer = Configured if serializer in (None, Configured) else resolve_serializer(serializer)

    def create_job(  # type: ignore[override]
        self, func: Any, args: Any = None, kwargs: Any = None, **given: Any
    ) -> Job:
        """A job for `func(*args, **kwargs)`, not yet enqueued.

        Raises:
            NotAJob: `func` or a callback is not in the catalog.
            TypeError: the arguments do not fit the function's signature.
            PayloadError: an argument cannot be carried; it is named.
            PayloadTooLarge: they are more than RQJOBS_MAX_PAYLOAD bytes.
            RefusedWebhook: a webhook goes to a host that is not allowed.
        """
        args, kwargs = tuple(args or ()), dict(kwargs or {})
        function = catalog.current().check(func)
        _fit(function, args, kwargs)
        for option, value in catalog.options(function).items():
            if option != "queue" and given.get(option) is None:
                given[option] = value
        self._warn_if_unserved()
        try:
            job: Job = super().create_job(function, args, kwargs, **given)  # type: ignore[assignment]
        except RecursionError:
            raise PayloadError("an argument contains itself, or is nested too deeply for JSON") from None
        job.check()
        job.carry(function)
        job.unheard_of = given.get("job_id") is None
        return job

    def _warn_if_unserved(self) -> None:
        if time.monotonic() - _looked.get(self.key, -UNSERVED_PAUSE) < UNSERVED_PAUSE:
            return
        _looked[self.key] = time.monotonic()
        if not self.connection.scard(f"rq:workers:{self.name}"):
            log.warning("no worker serves the queue %r now; jobs wait until one is started with: rqjobs worker %s",
                        self.name, self.name)

    def schedule_job(self, job: Any, datetime: datetime, pipeline: Any = None, unique: bool = False) -> Any:
        if unique:
            return super().schedule_job(job, datetime, pipeline, unique)
        pipe = pipeline if pipeline is not None else self.connection.pipeline()
        pipe.sadd(self.redis_queues_keys, self.key)
        job.origin = self.name
        self._persist_job(job, pipe, status=JobStatus.SCHEDULED)
        due, here = datetime.timestamp(), time.time()
        if self._is_recording():  # a retry or a repeat: so long from now
            due += ledger.clock(self.connection) - here
        pipe.zadd(f"rq:scheduled:{self.name}", {job.id: due})
        if due < here + ledger.LOOK:
            pipe.publish(ledger.BELL + self.name, due)
        if pipeline is None:
            pipe.execute()
        return job

    def enqueue_in(self, time_delta: timedelta, func: Any, *args: Any, **kwargs: Any) -> Any:
        moment = datetime.fromtimestamp(ledger.clock(self.connection), timezone.utc)
        return self.enqueue_at(moment + time_delta, func, *args, **kwargs)

    def enqueue_job(self, job: Any, pipeline: Any = None, at_front: bool = False, unique: bool = False) -> Any:
        if pipeline is not None or unique or job._dependency_ids or not self._is_async or self._is_recording():
            return super().enqueue_job(job, pipeline, at_front, unique)
        self._stamp(job)
        ledger.enqueue(self.connection, [(self.name, job.id, at_front, job.ttl, job.fields())])
        return job

    def _stamp(self, job: Job) -> None:
        job.origin, job.enqueued_at, job._status = self.name, now(), JobStatus.QUEUED
        job.timeout = job.timeout or self._default_timeout

    def _is_recording(self) -> bool:
        return getattr(self.connection, "writes", None) is not None

    def setup_dependencies(self, job: Any, pipeline: Any = None) -> Any:
        if pipeline is not None or not job._dependency_ids:
            return super().setup_dependencies(job, pipeline)
        status = job.get_status(refresh=False)
        while True:
            with self.connection.pipeline() as pipe:
                try:
                    job = super().setup_dependencies(job, pipe)
                    if job.get_status(refresh=False) == JobStatus.DEFERRED:
                        pipe.execute()
                    return job
                except redis.WatchError as error:
                    # redis-py says the same when the connection broke, after which the job may be deferred, and may
                    # even have been enqueued by the end of what it depends on: once more would be a second job.
                    if isinstance(error.__context__, redis.ConnectionError | redis.TimeoutError):
                        raise error.__context__ from None
                    job._status = status

    def enqueue_dependents(
        self, job: Any, pipeline: Any = None, exclude_job_id: str | None = None, refresh_job_status: bool = True
    ) -> None:
        # While an outcome is being recorded, Redis does not know the job's new status yet; the job does.
        super().enqueue_dependents(job, pipeline, exclude_job_id, refresh_job_status and not self._is_recording())

    def compact(self) -> None:
        """Remove ids whose job is gone. Every other id stays where it is, at every instant."""
        for start in range(0, self.count, CHUNK):
            ids = self.get_job_ids(start, CHUNK)
            with self.connection.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.exists(f"rq:job:{job_id}")
                exist = pipe.execute()
            for job_id in (job_id for job_id, there in zip(ids, exist, strict=True) if not there):
                self.connection.register_script(_DROP_IF_GONE)(keys=[self.key, f"rq:job:{job_id}"], args=[job_id])


_DROP_IF_GONE = "if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('LREM', KEYS[1], 0, ARGV[1]) end"


def _fit(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        _signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{catalog.name_of(function)}{_signature(function)}: {error}") from None


_signature = lru_cache(maxsize=1024)(inspect.signature)


def _named(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    names = list(_signature(function).parameters)
    for index, value in enumerate(args):
        yield f"argument {names[min(index, len(names) - 1)]!r}", value
    for name, value in kwargs.items():
        yield f"argument {name!r}", value


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
    """The queue that `@job(queue=…)` names for this function, else `default`, else the first configured one."""
    named = catalog.options(catalog.current().check(function)).get("queue")
    names = config.current().queues
    return queue(named or ("default" if "default" in names else names[0]))


def enqueue(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Have a worker call `function(*args, **kwargs)`; returns the `rq.Job`.

    Takes RQ's keyword options too (`job_timeout`, `retry`, `depends_on`, `job_id`, …). When it returns, the job is
    in Redis. Raises as `Queue.create_job` does, and then nothing was stored.
    """
    return queue_for(function).enqueue(function, *args, **kwargs)


def enqueue_in(delay: timedelta | float, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Like `enqueue`, but not before `delay` (a timedelta, or seconds) has passed."""
    if not isinstance(delay, timedelta):
        delay = timedelta(seconds=delay)
    return queue_for(function).enqueue_in(delay, function, *args, **kwargs)


def enqueue_at(moment: datetime, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Like `enqueue`, but not before `moment`. A datetime without a time zone is in this machine's."""
    if not isinstance(moment, datetime):
        raise TypeError(f"enqueue_at takes a datetime first, not {moment!r}; for a delay there is enqueue_in")
    return queue_for(function).enqueue_at(moment, function, *args, **kwargs)


def enqueue_many(calls: Iterable[tuple[Any, ...] | EnqueueData]) -> list[Any]:
    """Enqueue many calls in few round trips; returns their jobs in the same order.

    Each call is a tuple `(function, argument, …)`, or what RQ's `Queue.prepare_data(function, …)` returns. All are
    checked before the first is stored; they are stored in steps of 200.

    Raises:
        ValueError: a call has `depends_on` (use `queue(…).enqueue_many`).
    """
    prepared: list[tuple[Job, bool, dict[str, Any]]] = []
    models: dict[Any, tuple[Job, bool, dict[str, Any]]] = {}  # of a function called without options
    for call in calls:
        if not isinstance(call, tuple) or not call:
            raise TypeError(f"enqueue_many takes tuples (function, argument, …), not {call!r}")
        model = None if isinstance(call, EnqueueData) else models.get(call[0])
        if model:
            prepared.append(_like(model, call[1:]))
            continue
        data = call if isinstance(call, EnqueueData) else Queue.prepare_data(call[0], args=call[1:])
        if data.depends_on:
            raise ValueError("rqjobs.enqueue_many takes no depends_on; use rqjobs.queue(name).enqueue_many")
        target, given = queue_for(data.func), data._asdict()
        at_front, _ = given.pop("at_front"), given.pop("depends_on")
        job = target.create_job(status=JobStatus.QUEUED, **given)
        target._stamp(job)
        prepared.append((job, at_front, job.fields()))
        if not isinstance(call, EnqueueData):
            models[call[0]] = prepared[-1]
    for start in range(0, len(prepared), CHUNK):
        ledger.enqueue(connection.client(), [(job.origin, job.id, at_front, job.ttl, fields)
                                             for job, at_front, fields in prepared[start:start + CHUNK]])
    return [job for job, _, _ in prepared]


def _like(model: tuple[Job, bool, dict[str, Any]], args: tuple[Any, ...]) -> tuple[Job, bool, dict[str, Any]]:
    """Another call of the same function, with the same checks."""
    first, at_front, fields = model
    function = catalog.current().lookup(first.func_name)
    _fit(function, args, {})
    job = Job.__new__(Job)
    vars(job).update(vars(first), _id=str(uuid4()), _args=args, _data=rq.job.UNEVALUATED, meta=dict(first.meta),
                     webhooks=list(first.webhooks))
    if "description" not in catalog.options(function):
        job.description = job.get_call_string()
    job.carry(function)
    return job, at_front, {**fields, "data": job.stored(), "description": job.description}
