"""`rq.Job` that runs only what the catalog lists, and carries only data."""

from __future__ import annotations

import asyncio
import inspect
import zlib
from base64 import b64decode
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable
from contextlib import nullcontext
from datetime import timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any

import redis
import rq
import rq.job
import rq.registry
from rq.exceptions import DeserializationError
from rq.job import UNSERIALIZABLE_RETURN_VALUE_PAYLOAD
from rq.results import Result
from rq.serializers import resolve_serializer
from rq.timeouts import BaseTimeoutException
from rq.utils import as_text, now

from rqjobs import catalog, config, inherited_resources, texts
from rqjobs.broker import transitions
from rqjobs.broker.scripts import SAVE_FIELDS
from rqjobs.instrumentation import ClaimedConnection, is_wrapped
from rqjobs.serializers import JSON_TYPES, ConfiguredSerializer, PayloadError, ValueTooLarge, encode
from rqjobs.times import format_date, parse_date
from rqjobs.webhooks import RefusedWebhook, is_allowed

DESCRIPTION_MAX_CHARACTERS = 10_000
JSON_FIELD_MAX_BYTES = (
    4 * 1024 * 1024
)  # of a job's hash: what it depends on, its webhooks and intervals
UNREAD_META_MAX_BYTES = 1000  # that are shown of a meta which cannot be read
JSON_FIELDS = (b"dependency_ids", b"webhooks", b"retry_intervals", b"repeat_intervals")
PLAIN_RESULT_TYPES = JSON_TYPES | {
    list,
    dict,
    tuple,
    set,
}  # types of results of which nothing is left to be run
UNRUN_RESULT_TYPES = (Generator, AsyncGenerator, Awaitable, map, filter)
WORKER_FIELDS = ("status", "started_at", "ended_at", "last_heartbeat", "worker_name")  # fields
UNCOMPRESSED_MAX_BYTES = 512  # bytes of a job's data that are not worth compressing

signature = lru_cache(maxsize=1024)(inspect.signature)


class PayloadTooLarge(ValueError):
    """A job's arguments are more than RQJOBS_MAX_PAYLOAD_BYTES bytes."""


class ResultTooLarge(ValueError):
    """A job's result, or its meta, is more than RQJOBS_MAX_RESULT_BYTES bytes."""


class StartedJobRegistry(rq.registry.StartedJobRegistry):
    """RQ's, but its entries do not expire: RQ fails what it finds expired, and our sweep puts it
    back instead.
    """

    def add_execution(self, execution: Any, pipeline: Any, ttl: int = 0, xx: bool = False) -> int:
        return super().add_execution(execution, pipeline, ttl=-1, xx=xx)


class Job(rq.job.Job):
    """An `rq.Job` that runs only if every name in it is in the catalog.

    Overrides: `data` (written as lists, so that a stock `-S json` worker can read it), `to_dict`
    (small data are not compressed), `_deserialize_data` (checks the shape), `restore`,
    `latest_result`, `results` (unpack so much and no more), `perform` (leaves the PERSIST to the
    claim), `_execute` (checks every name first, runs inside RQJOBS_FLASK_APP's context, closes the
    loop of a coroutine, refuses what has not run), `execute_success_callback` (see `hides_result`),
    `stopped_callback` (read by the worker outside any `try`), `send_webhooks` (allow-list),
    `started_job_registry` (see above), `requeue` (RQ's is three steps, and a crash between them
    loses the job), `should_retry` and `retry` (a run that fails for good does not end RQ's
    `Repeat`), `save` and `save_meta` (RQ's undo what became of the job since it was read), `__eq__`
    and `__hash__` (a stock job of the same id is equal).
    """

    unheard_of = False  # nothing can be stored under its id yet
    as_read: Any = None  # the hash that it was read from
    as_written: dict[str, Any] | None = None  # the fields as they were written last
    chain: tuple[int, int | None] | None = None  # repeats and retries that it had when it began
    serialized_result: bytes | None = (
        None  # its result as it is stored, once the function has returned one
    )
    traceback = ""  # the traceback of the run that has just failed
    execution: Any = None  # RQ's record of that run
    hides_result = (
        False  # in a horse: RQ's worker would make a text of the result, which may be anything
    )
    hidden_result: Any = None  # the result of a job that hides it
    unread_meta: Any = (
        None  # what RQ puts in the place of a meta that cannot be read; it is not stored
    )

    def __init__(
        self, id: str | None = None, connection: redis.Redis | None = None, serializer: Any = None
    ):
        super().__init__(id, connection)
        self.serializer = (
            ConfiguredSerializer
            if serializer in (None, ConfiguredSerializer)
            else resolve_serializer(serializer)
        )

    @classmethod
    def found(cls, job_id: str, fields: dict[bytes, bytes], connection: redis.Redis) -> Job:
        """The job of this hash. The fields of a plain job are read here, because RQ's constructor
        and `restore` take as long as all the rest of a run; a hash that says more is left to RQ.
        """
        if cls.__init__ is not Job.__init__ or cls.restore is not Job.restore:
            job = cls(job_id, connection=connection)
            job.restore(fields)
            return job
        job = cls.__new__(cls)
        state = vars(job)
        state.update(
            _BLANK,
            _id=job_id,
            connection=connection,
            webhooks=[],
            meta={},
            _dependency_ids=[],
            as_read=fields,
            as_written=None,
        )
        plain = _PLAIN if fields.get(b"created_at") else {}
        try:
            for field, value in fields.items():
                if value:
                    name, read = plain[field]
                    state[name] = read(value)
        except KeyError:
            job.restore(fields)
        return job

    def __eq__(self, other: object) -> bool:
        return isinstance(other, rq.job.Job) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def data(self) -> bytes:
        if self._data is rq.job.UNEVALUATED and isinstance(self._args, list | tuple):
            self._data = self.serializer.dumps(
                [self._func_name, self._instance, list(self._args), self._kwargs]
            )
        return super().data

    @data.setter
    def data(self, value: bytes) -> None:
        rq.job.Job.data.fset(self, value)  # type: ignore[attr-defined]

    def carry(self, function: Callable[..., Any]) -> None:
        """Make sure that the arguments and the description can travel.

        Raises:
            PayloadError: an argument cannot; it is named.
            PayloadTooLarge: they are more than RQJOBS_MAX_PAYLOAD_BYTES bytes.
            TypeError: the description is no text.
        """
        self.description = check_description(self.description)
        try:
            size = len(self.data)
        except RecursionError:
            raise PayloadError(
                "an argument contains itself, or is nested too deeply for JSON"
            ) from None
        except ValueTooLarge as error:
            raise PayloadTooLarge(
                f"the arguments of {self.func_name} are too large: {error}"
            ) from None
        except PayloadError:
            for where, value in _named(function, tuple(self.args), self.kwargs):
                encode(value, where)
            raise
        limit = config.current().max_payload_bytes
        if size > limit:
            raise PayloadTooLarge(
                f"the arguments of {self.func_name} are {size:,} bytes, more than RQJOBS_MAX_PAYLOAD_BYTES "
                f"({limit:,}); pass an id, fetch the data inside the job"
            )

    def stored(self) -> bytes:
        """The data as they are written: compressed, as RQ does, if that is worth the time. RQ reads
        both.
        """
        return self.data if len(self.data) < UNCOMPRESSED_MAX_BYTES else zlib.compress(self.data, 1)

    def to_dict(self, include_meta: bool = True, include_result: bool = True) -> dict[str, Any]:
        meta = include_meta and self.meta is not self.unread_meta
        fields = {**super().to_dict(meta, include_result), "data": self.stored()}
        check_size("meta", fields.get("meta", b""))
        if self.chain and self.repeats_left is not None:
            fields["rqjobs_repeat"] = (
                f"{self.chain[0]},{'' if self.chain[1] is None else self.chain[1]}"
            )
        return fields

    def fields(self) -> tuple[bool, dict[str, Any]]:
        """Whether nothing can be stored under its id, and the hash with which the job is enqueued;
        in that case without empty fields, which are the same to RQ.
        """
        new, self.unheard_of = self.unheard_of, False
        self.as_written = self._new_fields() if new else self.to_dict()
        return new, self.as_written

    def _new_fields(self) -> dict[str, Any]:
        if (
            type(self).to_dict is not Job.to_dict
            or _more(self) != _NO_MORE
            or not self.created_at
            or self.ttl == 0
        ):
            return {name: value for name, value in self.to_dict().items() if value != ""}
        state = vars(self)  # RQ's way compresses the data, whatever they are
        fields = {field: state[name] for field, name in _OF_PLAIN if state[name] not in (None, "")}
        dates = {
            field: format_date(state[field])
            for field in ("created_at", "enqueued_at")
            if state[field]
        }
        return {**fields, **dates, "data": self.stored()}

    def save(
        self, pipeline: Any = None, include_meta: bool = True, include_result: bool = True
    ) -> None:
        """Write what was changed in this object since it was read or written, if the job is still
        there.

        A view that adds to the meta of a job which ends meanwhile does not make it a queued one
        again.
        """
        before = self._as_stored()
        if before is None:
            return super().save(
                pipeline=pipeline, include_meta=include_meta, include_result=include_result
            )
        fields = self.to_dict(include_meta=include_meta, include_result=include_result)
        changed = {name: value for name, value in fields.items() if value != before.get(name, "")}
        if rq.job._job_stack.top is self:  # while it runs, these are its worker's to write
            changed = {name: value for name, value in changed.items() if name not in WORKER_FIELDS}
        self.as_written = {**before, **changed}
        self._save(changed, pipeline)

    def _as_stored(self) -> dict[str, Any] | None:
        """Its fields as this object knows that they were stored; None if all of them are to be
        written.
        """
        if getattr(self.connection, "writes", None) is not None:  # its outcome is recorded
            return None
        if self.as_written is None and self.as_read is not None:
            twin = type(self)(self.id, connection=self.connection, serializer=self.serializer)
            twin.restore(self.as_read)
            self.as_written = twin.to_dict()
        return self.as_written

    def _save(self, fields: dict[str, Any], pipeline: Any = None) -> None:
        words = [word for pair in fields.items() for word in pair]
        if words and pipeline is None:
            SAVE_FIELDS.run(self.connection, [self.key], words)
        elif words:
            pipeline.execute_command("EVAL", SAVE_FIELDS.source, 1, self.key, *words)

    def restore(self, raw_data: Any) -> Any:
        self.as_read, self.as_written = raw_data, None
        found = dict(raw_data)
        data, trace = found.get(b"data"), found.pop(b"exc_info", None)
        if data:
            data = _inflate(data)
            found[b"data"] = b""  # RQ would unpack it once more, and without a limit
        for field in JSON_FIELDS:
            if len(found.get(field) or b"") > JSON_FIELD_MAX_BYTES:
                raise PayloadTooLarge(
                    f"the job's {field.decode()} are more than {JSON_FIELD_MAX_BYTES:,} bytes"
                )
        if found.get(b"description"):
            found[b"description"] = read_description(found[b"description"])
        super().restore(found)
        stored = found.get(b"meta")
        is_unread = isinstance(self.meta, dict) and self.meta.get("unserialized") is stored
        if stored and is_unread:
            self.meta = self.unread_meta = {"unserialized": stored[:UNREAD_META_MAX_BYTES]}
        if data:
            self.data = data
        if trace:
            self._exc_info = read_traceback(trace)
        if self.repeats_left is not None:
            words = as_text(found.get(b"rqjobs_repeat") or b"").partition(",")[::2]
            times, retries = (int(word) if word.isdigit() else None for word in words)
            self.chain = (times, retries) if times else (self.repeats_left, self.retries_left)

    @property
    def should_retry(self) -> bool:
        return super().should_retry or bool(self.repeats_left)

    def retry(self, queue: Any, pipeline: Any) -> None:
        if super().should_retry:
            super().retry(queue, pipeline)
            return
        Result.create_failure(
            self,
            self.failure_ttl,
            self.traceback,
            self.worker_name or "",
            pipeline,
            execution_id=self.execution and self.execution.id,
        )
        repeat(self, queue, pipeline)

    def _deserialize_data(self) -> None:
        try:
            payload = self.serializer.loads(self.data)
        except Exception as error:
            raise DeserializationError(str(error)) from error
        shaped = isinstance(payload, list | tuple) and len(payload) == 4
        name, instance, args, kwargs = payload if shaped else [None] * 4
        if not (
            isinstance(name, str)
            and isinstance(args, list | tuple)
            and isinstance(kwargs, dict)
            and all(isinstance(key, str) for key in kwargs)
        ):
            raise DeserializationError(
                "the job's data are not [function name, null, [arguments], {arguments}]"
            )
        self._func_name, self._instance, self._args, self._kwargs = name, instance, args, kwargs

    def check(self) -> None:
        """Make sure that nothing but the catalog would run.

        Raises:
            NotAJob: the function or a callback is not in the catalog, a callback is a coroutine
                function, or there is an `instance`.
            RefusedWebhook: a webhook goes to a host that is not allowed.
        """
        jobs = catalog.current()
        if self.instance is not None:
            raise catalog.NotAJob(
                "the job's data have an instance; jobs are plain functions, not methods"
            )
        jobs.lookup(self.func_name)
        for name in (
            self._success_callback_name,
            self._failure_callback_name,
            self._stopped_callback_name,
        ):
            if name and inspect.iscoroutinefunction(jobs.lookup(name)):
                raise catalog.NotAJob(
                    f"{name!r} cannot be a callback: it is an async function, whose call runs nothing; "
                    f"make a plain function that calls asyncio.run the callback"
                )
        for webhook in self.webhooks:
            if not is_allowed(webhook.url):
                raise RefusedWebhook(
                    f"the webhook {webhook.url!r} is refused: its host is not in RQJOBS_WEBHOOK_HOSTS"
                )

    def perform(self) -> Any:
        if is_wrapped(rq.job.Job, "perform"):
            own, self.connection = self.connection, ClaimedConnection(self.connection)
            try:
                return super().perform()
            finally:
                self.connection = own
        rq.job._job_stack.push(self)
        try:
            self._result = self._execute()
        finally:
            rq.job._job_stack.pop()
        return self._result

    def hide_result(self) -> None:
        """Have the next `perform`, whoever overrides or wraps it, put its result into
        `hidden_result` and `serialized_result`, and return None.
        """
        self.hides_result, perform = True, self.perform

        def hidden() -> Any:
            del self.perform  # or the job and this function would hold each other in memory
            result = perform()
            if result is not None and not issubclass(type(result), rq.job.Retry):
                self.serialized_result = self.pack(result)
                self.hidden_result, result = result, None
            self._result = result
            return result

        self.perform = hidden  # type: ignore[method-assign]

    def _execute(self) -> Any:
        if (
            type(self.connection) is ClaimedConnection
        ):  # isinstance takes a microsecond with the protocols of redis-py's clients
            self.connection = self.connection.own
        self.check()
        app = catalog.flask_app()
        with app.app_context() if app else _NO_APP:
            result = self.func(*self.args, **self.kwargs)
            if type(result) not in PLAIN_RESULT_TYPES and issubclass(type(result), Coroutine):
                result = run_coroutine(result)
        if type(result) not in PLAIN_RESULT_TYPES and issubclass(type(result), UNRUN_RESULT_TYPES):
            raise TypeError(
                f"{self.func_name} returned a {texts.class_name(type(result))}, of which nothing has run; "
                f"loop over it, or await it, inside the job"
            )
        return result

    def execute_success_callback(self, death_penalty_class: Any, result: Any) -> None:
        if self._success_callback_name:
            super().execute_success_callback(
                death_penalty_class, self.hidden_result if self.hides_result else result
            )

    def latest_result(self, timeout: int = 0) -> Result | None:
        return BoundedResult.fetch_latest(self, serializer=self.serializer, timeout=timeout)

    def results(self) -> list[Result]:
        return BoundedResult.all(self, serializer=self.serializer)

    def pack(self, result: Any) -> bytes | None:
        """A result as it is stored; within the job's time limit, for it may take long.

        Raises:
            ResultTooLarge: it is more than RQJOBS_MAX_RESULT_BYTES bytes.
        """
        if result is None or isinstance(result, rq.job.Retry):
            return None
        try:
            data: bytes = self.serializer.dumps(result)
        except BaseTimeoutException:
            raise
        except ValueTooLarge as error:
            raise ResultTooLarge(f"the job's result is too large: {error}") from None
        except Exception:  # as RQ does
            return self.serializer.dumps(UNSERIALIZABLE_RETURN_VALUE_PAYLOAD)
        check_size("result", data)
        return data

    def save_meta(self) -> None:
        """Store the meta, if the job is still there: that of a deleted one would be left behind for
        ever.

        Raises:
            ResultTooLarge: it is more than RQJOBS_MAX_RESULT_BYTES bytes.
        """
        meta = self.serializer.dumps(self.meta)
        check_size("meta", meta)
        transitions.save_meta(self.connection, self.id, meta)

    @property
    def stopped_callback(self) -> Any:
        try:
            return super().stopped_callback
        except catalog.NotAJob as error:
            self.log.error("Job %s: stopped callback refused: %s", self.id, error)
            return None

    def send_webhooks(self, status: Any, *, exc_string: str | None = None) -> None:
        if self.webhooks:
            self.webhooks = [webhook for webhook in self.webhooks if is_allowed(webhook.url)]
            super().send_webhooks(status, exc_string=exc_string)

    @property
    def started_job_registry(self) -> StartedJobRegistry:
        return StartedJobRegistry(
            self.origin,
            connection=self.connection,
            job_class=type(self),
            serializer=self.serializer,
        )

    def requeue(self, at_front: bool = False) -> Job:
        """Bring the job back from the dead letters in one atomic step; raises as `ledger.requeue`
        does.
        """
        transitions.requeue(self.connection, self.id, at_front)
        self.refresh()
        return self


_NO_APP = nullcontext()
_BLANK = vars(Job("blank", connection=object()))  # type: ignore[arg-type]


def run_coroutine(coroutine: Any) -> Any:
    """Run it in a loop of its own, and end that as `asyncio.Runner` does: what still runs in it is
    canceled, and can do its `finally`, within this job. (`asyncio.run` would leave the thread
    without a loop for the next job.)
    """
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        try:
            _cancel_tasks(loop)
            inherited_resources.close_async_engines(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()


def _cancel_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))
    for task in tasks:
        if not task.cancelled() and task.exception():
            loop.call_exception_handler(
                {
                    "message": "a task of the job failed while it ended",
                    "exception": task.exception(),
                    "task": task,
                }
            )


def restore_result(
    cls: Any, job_id: str, result_id: str, payload: Any, *args: Any, **options: Any
) -> Result:
    """RQ's `Result.restore`, which unpacks a traceback without a limit."""
    found = dict(payload)
    trace = found.pop(b"exc_string", None)
    result: Result = _restore_result(cls, job_id, result_id, found, *args, **options)
    if trace:
        result.exc_string = read_traceback(b64decode(trace))
    return result


_restore_result = Result.restore.__func__  # type: ignore[attr-defined]


class BoundedResult(Result):
    """RQ's result, read within limits in processes too in which nothing is installed."""

    restore = classmethod(restore_result)


def repeat(job: Any, queue: Any, pipeline: Any = None) -> None:
    """Enqueue a job that has an `rq.Repeat` for its next run, in the place of RQ's
    `Repeat.schedule`.

    RQ takes the intervals from the end, and counts them from now in this machine's local time. Each
    run has all of the job's retries.
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


def check_size(what: str, data: bytes) -> None:
    limit = config.current().max_result_bytes
    if len(data) > limit:
        raise ResultTooLarge(
            f"the job's {what} is {len(data):,} bytes, more than RQJOBS_MAX_RESULT_BYTES ({limit:,}); store "
            f"it elsewhere, and keep its name or its key"
        )


def _unpack(value: bytes) -> tuple[bytes, bool]:
    """What RQ compressed, and whether there is more of it than a value may have; what is not
    compressed, as it is.
    """
    if value[0] & 0x0F != 8:  # RFC 1950: the compression method, and 8 is the only one
        return value, False
    unpacker = zlib.decompressobj()
    try:
        return unpacker.decompress(value, config.current().max_value_bytes), bool(
            unpacker.unconsumed_tail
        )
    except zlib.error:
        return value, False


def _inflate(value: bytes) -> bytes:
    data, more = _unpack(value)
    if more:
        raise PayloadTooLarge(
            f"the job's data are more than {len(data):,} bytes when they are unpacked (twice the "
            f"larger of RQJOBS_MAX_PAYLOAD_BYTES and RQJOBS_MAX_RESULT_BYTES, which must be the same everywhere)"
        )
    return data


def read_traceback(value: bytes) -> str:
    """A traceback as RQ keeps it: the first part of one that is longer than any of ours."""
    trace, more = _unpack(value)
    return trace.decode(errors="replace") + (
        "\n… (the rest of this traceback is not read)" if more else ""
    )


def read_description(value: bytes) -> str:
    return value[: 4 * DESCRIPTION_MAX_CHARACTERS].decode(errors="replace")[
        :DESCRIPTION_MAX_CHARACTERS
    ]


def check_description(description: Any) -> str:
    """A job's description as it is stored.

    Raises:
        TypeError: it is no text.
    """
    if not isinstance(description, str):
        raise TypeError(f"a job's description is a text, not a {type(description).__name__}")
    short = len(description) <= DESCRIPTION_MAX_CHARACTERS
    return texts.escape_surrogates(
        description if short else f"{description[: DESCRIPTION_MAX_CHARACTERS - 1]}…"
    )


_PLAIN: dict[bytes, tuple[str, Callable[[bytes], Any]]] = {
    b"data": ("_data", _inflate),
    b"created_at": ("created_at", parse_date),
    b"enqueued_at": ("enqueued_at", parse_date),
    b"origin": ("origin", bytes.decode),
    b"description": ("description", read_description),
    b"timeout": ("timeout", int),
    b"result_ttl": ("result_ttl", int),
    b"failure_ttl": ("failure_ttl", int),
    b"ttl": ("ttl", int),
    b"status": (
        "_status",
        {status.value.encode(): status for status in rq.job.JobStatus}.__getitem__,
    ),
}
_OF_PLAIN = [
    (field.decode(), name)
    for field, (name, read) in _PLAIN.items()
    if read not in (_inflate, parse_date)
]
# What a job may have besides, of that which is written: all attributes but those and these.
_more = attrgetter(
    *_BLANK.keys()
    - {name for name, _ in _PLAIN.values()}
    - {
        "_id",
        "connection",
        "serializer",
        "redis_server_version",
        "log",
        "_func_name",
        "_instance",
        "_args",
        "_kwargs",
    }
)
_NO_MORE = _more(Job("blank", connection=object()))  # type: ignore[arg-type]


def _named(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterable[tuple[str, Any]]:
    names = list(signature(function).parameters)
    for index, value in enumerate(args):
        yield f"argument {names[min(index, len(names) - 1)]!r}", value
    for name, value in kwargs.items():
        yield f"argument {name!r}", value
