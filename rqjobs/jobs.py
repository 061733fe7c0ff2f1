"""`rq.Job` that runs only functions of the catalog, and carries only data."""

from __future__ import annotations

import inspect
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
)
from contextlib import nullcontext
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import redis
import rq
import rq.job
import rq.registry
from rq.exceptions import DeserializationError
from rq.job import UNSERIALIZABLE_RETURN_VALUE_PAYLOAD
from rq.results import Result
from rq.serializers import resolve_serializer
from rq.timeouts import BaseTimeoutException
from rq.utils import as_text, get_call_string, now

from rqjobs import (
    catalog,
    config,
    hiding,
    hooks,
    job_logs,
    passed_results,
    plain_jobs,
    policies,
    raised,
    results,
    texts,
)
from rqjobs.broker import keys, transitions
from rqjobs.broker.scripts import SAVE_FIELDS
from rqjobs.coroutines import run_coroutine
from rqjobs.instrumentation import ClaimedConnection, is_wrapped
from rqjobs.job_fields import (
    PayloadTooLarge,
    ResultTooLarge,
    check_description,
    check_size,
    compress,
    decompress,
    read_description,
    read_traceback,
)
from rqjobs.job_logs import LogLine
from rqjobs.loops import PROGRESS_FIELD, Progress, read_progress
from rqjobs.policies import retries
from rqjobs.retrying import RetryingJob
from rqjobs.serializers import (
    JSON_TYPES,
    ConfiguredSerializer,
    PayloadError,
    ValueTooLarge,
    encode,
)
from rqjobs.stored_results import BoundedResult, FailureResult
from rqjobs.webhooks import RefusedWebhook, is_allowed

JSON_FIELDS = (b"dependency_ids", b"webhooks", b"retry_intervals", b"repeat_intervals")
JSON_FIELD_MAX_BYTES = 4 * 1024 * 1024
CALL_ARGUMENT_CHARACTERS = 75  # of an argument in a call string, as in RQ
UNREADABLE_META_MAX_BYTES = 1000  # of a meta that cannot be read, to be shown
PLAIN_RESULT_TYPES = JSON_TYPES | {list, dict, tuple, set}  # no code of theirs is left to run
UNRUN_RESULT_TYPES = (Generator, AsyncGenerator, Awaitable, map, filter)
POLICY_FIELDS = policies.FIELDS | {passed_results.FLOW_FIELD}
WORKER_FIELDS = ("status", "started_at", "ended_at", "last_heartbeat", "worker_name")

signature = lru_cache(maxsize=1024)(inspect.signature)


class StartedJobRegistry(rq.registry.StartedJobRegistry):
    """RQ's registry of started jobs, with entries that do not expire.

    RQ fails the jobs of expired entries; the sweep puts them back instead.
    """

    def add_execution(self, execution: Any, pipeline: Any, ttl: int = 0, xx: bool = False) -> int:
        """Add an entry that never expires."""
        return super().add_execution(execution, pipeline, ttl=-1, xx=xx)


class RepeatState(NamedTuple):
    """The repeats and retries that a job with an `rq.Repeat` had before its first run."""

    times: int
    retries: int | None


class Job(RetryingJob):
    """An `rq.Job` that runs only if every name in it is in the catalog.

    The docstring of each method that replaces one of RQ's says why.
    """

    existing: Any = None  # the job that has its unique key, if this one was not stored
    is_new = False  # the id is new, so nothing can be stored under it
    hash_as_read: Any = None  # the hash from which `restore` filled this object
    fields_as_stored: dict[str, Any] | None = None  # the fields of the last write
    repeat_state: RepeatState | None = None
    serialized_result: bytes | None = None  # of a run that has returned
    claim_token = ""  # of the run in progress, in a worker  # nosec B105
    hides_result = False  # see `hide_result`
    hidden_result: Any = None
    passed_on_count = 0  # the arguments from other jobs that a job of a new flow will get
    passed_on: list[Any] | None = (
        None  # the results of others that the job takes, if they were fetched before
    )
    unreadable_meta: Any = None  # what RQ puts in the place of such a meta; it is not stored

    def __init__(
        self, id: str | None = None, connection: redis.Redis | None = None, serializer: Any = None
    ):
        super().__init__(id, connection)
        self.serializer = serializer_for(serializer)

    @classmethod
    def from_hash(cls, job_id: str, fields: dict[bytes, bytes], connection: redis.Redis) -> Job:
        """The job of a hash in Redis.

        The fast path for plain jobs is taken unless a subclass has a constructor or a `restore` of
        its own. Raises whatever `restore` raises if a field cannot be read.
        """
        if cls.__init__ is not Job.__init__ or cls.restore is not Job.restore:
            job = cls(job_id, connection=connection)
            job.restore(fields)
            return job
        job = cls.__new__(cls)
        if plain_jobs.restore(job, job_id, fields, connection):
            job.hash_as_read = fields
            job.fields_as_stored = None
        else:
            job.restore(fields)
        return job

    # Storing

    @property
    def data(self) -> bytes:
        """RQ writes the function and its arguments as a tuple; lists are JSON's own sequence.

        A plain RQ worker with `-S json` can then run the job.
        """
        if self._data is rq.job.UNEVALUATED and isinstance(self._args, list | tuple):
            self._data = self.serializer.dumps(
                [self._func_name, self._instance, list(self._args), self._kwargs]
            )
        return super().data

    @data.setter
    def data(self, value: bytes) -> None:
        rq.job.Job.data.fset(self, value)  # type: ignore[attr-defined]

    def get_call_string(self) -> str | None:
        """RQ's call string, which is the default description, with RQJOBS_HIDE applied."""
        if not config.current().hide:
            return super().get_call_string()
        args, kwargs = self.shown_arguments()
        return get_call_string(self.func_name, args, kwargs, max_length=CALL_ARGUMENT_CHARACTERS)

    def shown_arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """The arguments with `hidden` for those of RQJOBS_HIDE. It raises what `args` raises."""
        return hiding.hide_arguments(config.current().hide, *self._call())

    def secrets(self) -> list[str]:
        """The texts among the arguments that RQJOBS_HIDE hides, for `hiding.mask`."""
        names = config.current().hide
        if not names:
            return []
        try:
            return hiding.secrets_of(names, *self._call())
        except Exception:  # the payload cannot be read, and nothing of it is in a text
            return []

    def _call(self) -> tuple[Any, list[Any], dict[str, Any], int]:
        """The function if it is in the catalog, its arguments, and how many come before them."""
        place = passed_results.place_of(self.policy_fields)
        passed_on = int(place is not None and place.takes != "nothing") or self.passed_on_count
        function = catalog.current().functions.get(self.func_name or "")
        return function, list(self.args), dict(self.kwargs), passed_on

    def check_payload(self, function: Callable[..., Any], passed_on: int = 0) -> None:
        """Check that the arguments and the description can be stored.

        `passed_on`: the number of arguments that come first, from other jobs.

        Raises:
            PayloadError: an argument cannot be; the message names the argument.
            PayloadTooLarge: they are more than RQJOBS_MAX_PAYLOAD_BYTES bytes.
            TypeError: the description is not a string.
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
            args = tuple(self.args)
            for where, value in _named_arguments(function, args, self.kwargs, passed_on):
                encode(value, where)
            raise
        limit = config.current().max_payload_bytes
        if size > limit:
            raise PayloadTooLarge(
                f"the arguments of {self.func_name} are {size:,} bytes, more than "
                f"RQJOBS_MAX_PAYLOAD_BYTES ({limit:,}); pass an id, fetch the data inside the job"
            )

    def to_dict(self, include_meta: bool = True, include_result: bool = True) -> dict[str, Any]:
        """RQ compresses data of any size, and stores its own replacement of an unreadable meta.

        The state of a `Repeat` is stored as well: a run may have changed the counters of the job.
        """
        include_meta = include_meta and self.meta is not self.unreadable_meta
        fields = super().to_dict(include_meta, include_result)
        fields["data"] = compress(self.data)
        check_size("meta", fields.get("meta", b""))
        if self.repeat_state and self.repeats_left is not None:
            times, retries = self.repeat_state
            fields["rqjobs_repeat"] = f"{times},{'' if retries is None else retries}"
        fields.update(self.policy_fields)
        return fields

    def to_hash(self) -> tuple[bool, dict[str, Any]]:
        """Whether the id is new, and the hash with which the job is enqueued.

        The hash of a new job has no empty fields, which RQ reads as missing ones. The object counts
        as stored afterwards.
        """
        is_new = self.is_new
        self.is_new = False
        if self.policy_fields:
            self.policy_fields = {
                name: value
                for name, value in self.policy_fields.items()
                if name not in retries.RUN_FIELDS
            }
        if not is_new:
            self.fields_as_stored = self.to_dict()
        elif self._is_plain():
            self.fields_as_stored = plain_jobs.to_hash(self)
        else:
            fields = self.to_dict()
            self.fields_as_stored = {name: value for name, value in fields.items() if value != ""}
        return is_new, self.fields_as_stored

    def _is_plain(self) -> bool:
        has_own_hash = type(self).to_dict is not Job.to_dict
        return not has_own_hash and not self.policy_fields and plain_jobs.is_plain(self)

    def save(
        self, pipeline: Any = None, include_meta: bool = True, include_result: bool = True
    ) -> None:
        """RQ's `save` writes all fields, and undoes changes made since this object was read.

        This one writes the fields that were changed in this object, if the job still exists. So a
        program that saves the meta of a job that has just ended does not make it a queued one.
        """
        before = self._stored_fields()
        if before is None:
            return super().save(
                pipeline=pipeline, include_meta=include_meta, include_result=include_result
            )
        fields = self.to_dict(include_meta=include_meta, include_result=include_result)
        changed = {name: value for name, value in fields.items() if value != before.get(name, "")}
        if rq.job._job_stack.top is self:  # the job runs, and these fields are its worker's
            changed = {name: value for name, value in changed.items() if name not in WORKER_FIELDS}
        self.fields_as_stored = {**before, **changed}
        self._save_fields(changed, pipeline)

    def _stored_fields(self) -> dict[str, Any] | None:
        """The stored fields, as this object has read or written them; None if it has not."""
        if is_recording(self.connection):
            return None
        if self.fields_as_stored is None and self.hash_as_read is not None:
            copy = type(self)(self.id, connection=self.connection, serializer=self.serializer)
            copy.restore(self.hash_as_read)
            self.fields_as_stored = copy.to_dict()
        return self.fields_as_stored

    def _save_fields(self, fields: dict[str, Any], pipeline: Any) -> None:
        arguments = [word for pair in fields.items() for word in pair]
        if arguments and pipeline is None:
            SAVE_FIELDS.run(self.connection, [self.key], arguments)
        elif arguments:
            pipeline.execute_command("EVAL", SAVE_FIELDS.source, 1, self.key, *arguments)

    def save_meta(self) -> None:
        """RQ's `save_meta` leaves the meta of a deleted job in Redis.

        This one stores the meta if the job still exists.

        Raises:
            ResultTooLarge: it is more than RQJOBS_MAX_RESULT_BYTES bytes.
        """
        meta = self.serializer.dumps(self.meta)
        check_size("meta", meta)
        transitions.save_meta(self.connection, self.id, meta)

    # Reading

    def restore(self, raw_data: Any) -> Any:
        """RQ's `restore` unpacks and parses values of any size; this one reads within limits.

        Raises:
            PayloadTooLarge: the data, or a field that holds JSON, are too large.
        """
        self.hash_as_read = raw_data
        self.fields_as_stored = None
        fields = dict(raw_data)
        data = fields.get(b"data")
        trace = fields.pop(b"exc_info", None)
        if data:
            data = decompress(data)
            fields[b"data"] = b""  # RQ would decompress it again, without a limit
        for name in JSON_FIELDS:
            if len(fields.get(name) or b"") > JSON_FIELD_MAX_BYTES:
                raise PayloadTooLarge(
                    f"the job's {name.decode()} are more than {JSON_FIELD_MAX_BYTES:,} bytes"
                )
        if fields.get(b"description"):
            fields[b"description"] = read_description(fields[b"description"])
        super().restore(fields)
        self._restore_policies(fields)
        self._cut_unreadable_meta(fields.get(b"meta"))
        if data:
            self.data = data
        if trace:
            self._exc_info = read_traceback(trace)
        if self.repeats_left is not None:
            self._restore_repeat(as_text(fields.get(b"rqjobs_repeat") or b""))

    def _restore_policies(self, fields: Any) -> None:
        names = [name for name in POLICY_FIELDS if name.encode() in fields]
        found = {name: as_text(fields[name.encode()]) for name in names}
        if found or self.policy_fields:
            self.policy_fields = found

    def _cut_unreadable_meta(self, stored: bytes | None) -> None:
        is_unreadable = isinstance(self.meta, dict) and self.meta.get("unserialized") is stored
        if stored and is_unreadable:
            self.unreadable_meta = {"unserialized": stored[:UNREADABLE_META_MAX_BYTES]}
            self.meta = self.unreadable_meta

    def _restore_repeat(self, stored: str) -> None:
        times, _, retries = stored.partition(",")
        if times.isdigit() and int(times):
            self.repeat_state = RepeatState(int(times), _digits_or_none(retries))
        else:  # the job has not run yet
            self.repeat_state = RepeatState(self.repeats_left or 0, self.retries_left)

    def _deserialize_data(self) -> None:
        """RQ unpacks data of any shape; this one checks the shape first.

        Raises:
            DeserializationError: the data are not readable, or do not have the shape of a job's.
        """
        try:
            payload = self.serializer.loads(self.data)
        except Exception as error:
            raise DeserializationError(str(error)) from error
        name = instance = args = kwargs = None
        if isinstance(payload, list | tuple) and len(payload) == 4:
            name, instance, args, kwargs = payload
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

    def latest_result(self, timeout: int = 0) -> Result | None:
        """RQ unpacks a result's traceback without a limit, and does not wait after a retry.

        This one waits up to `timeout` seconds for a result that is not a retry.
        """
        end = time.monotonic() + timeout
        result = BoundedResult.fetch_latest(self, serializer=self.serializer, timeout=timeout)
        while timeout and result and result.type is Result.Type.RETRIED:
            left = int(1000 * (end - time.monotonic()))
            after: dict[Any, Any] = {keys.results(self.id): result.id}
            if left <= 0 or not self.connection.xread(after, block=left):
                break
            result = BoundedResult.fetch_latest(self, serializer=self.serializer)
        return result

    def results(self) -> list[Result]:
        """RQ unpacks the tracebacks of results without a limit."""
        return BoundedResult.all(self, serializer=self.serializer)

    def wait(self, timeout: float | timedelta | None = None) -> Any:
        """Wait until the job has ended; returns its result.

        A job that is retried, snoozed or repeated has ended after its last run. Nothing is polled:
        the result arrives when it is stored. Cancellation and deletion are noticed within 2 s. The
        wait goes on after the death of a worker, and after a restart of Redis. With `timeout` 0
        Redis is asked once; None has no limit.

        Raises:
            Exception: that of the job, if its class is one of Python's own or of a module of
                RQJOBS_MODULES, and has no constructor of its own.
            JobFailed: the job has failed otherwise. It has the traceback of the worker.
            NoResult: the job was canceled, stopped, discarded or deleted, has expired, or its
                result is not kept.
            WaitTimeout: it has not ended within `timeout` (seconds, or a timedelta). This is a
                TimeoutError, and says where the job is.
            RuntimeError: a job waits for itself.
        """
        return results.wait(self, timeout)

    async def wait_async(self, timeout: float | timedelta | None = None) -> Any:
        """`wait` for asyncio, without blocking the event loop.

        It waits in a thread. If it is canceled, that thread ends within some seconds.
        """
        return await results.wait_async(self, timeout)

    def log_lines(self, level: str | int = 0) -> list[LogLine]:
        """The kept lines that the job has logged, the oldest first, from this level on.

        Raises:
            ValueError: there is no such level.
        """
        least = job_logs.level_number(level)
        return [one for one in job_logs.read(self.connection, self.id) if one.levelno >= least]

    def follow_log(self, level: str | int = 0) -> Iterator[LogLine]:
        """The same, and further lines as they come, until the job has ended."""
        least = job_logs.level_number(level)
        return (one for one in job_logs.follow(self.connection, self.id) if one.levelno >= least)

    # Running

    def check(self) -> None:
        """Check that the job would run functions of the catalog only.

        Raises:
            NotAJob: the function or a callback is not in the catalog, a callback is a coroutine
                function, or the data have an `instance`.
            RefusedWebhook: the host of a webhook is not allowed.
        """
        functions = catalog.current()
        if self.instance is not None:
            raise catalog.NotAJob(
                "the job's data have an instance; jobs are plain functions, not methods"
            )
        functions.lookup(self.func_name)
        for name in (
            self._success_callback_name,
            self._failure_callback_name,
            self._stopped_callback_name,
        ):
            if name and inspect.iscoroutinefunction(functions.lookup(name)):
                raise catalog.NotAJob(
                    f"{name!r} cannot be a callback: it is an async function, whose call runs "
                    f"nothing; make a plain function that runs it with asyncio.run"
                )
        for webhook in self.webhooks:
            if not is_allowed(webhook.url):
                raise RefusedWebhook(
                    f"the webhook {webhook.url!r} is refused: its host is not in "
                    f"RQJOBS_WEBHOOK_HOSTS"
                )

    def perform(self) -> Any:
        """RQ's `perform` begins with a PERSIST, which the claim has done already.

        RQ's method is called only if a tracing library has wrapped it.
        """
        if is_wrapped(rq.job.Job, "perform"):
            connection = self.connection
            self.connection = ClaimedConnection(connection)
            try:
                return super().perform()
            finally:
                self.connection = connection
        rq.job._job_stack.push(self)
        try:
            self._result = self._execute()
        finally:
            rq.job._job_stack.pop()
        return self._result

    def hide_result(self) -> None:
        """Let the next `perform` return None, and keep the result in `hidden_result`.

        RQ's worker makes a string of a result, and a result may be any object. `perform` also
        serializes it into `serialized_result`, within the job's time limit. Subclasses and tracing
        libraries that replace `perform` get the result itself.
        """
        self.hides_result = True
        perform = self.perform

        def perform_and_hide() -> Any:
            del self.perform  # otherwise the job and this function refer to each other
            result = perform()
            if result is not None and not issubclass(type(result), rq.job.Retry):
                self.serialized_result = self.serialize_result(result)
                self.hidden_result = result
                result = None
            self._result = result
            return result

        self.perform = perform_and_hide  # type: ignore[method-assign]

    def _execute(self) -> Any:
        """RQ's `_execute` runs any function that it can import.

        This one checks every name first, and runs the function in a context of the Flask app.
        A coroutine gets an event loop of its own.

        Raises:
            NotAJob, RefusedWebhook: see `check`.
            TypeError: the function returned a generator or another object that has not run.
        """
        if type(self.connection) is ClaimedConnection:  # isinstance would take a microsecond here
            self.connection = self.connection.own
        self.check()
        if hooks.has_run_hooks:
            return hooks.run(self, self._call_function)
        return self._call_function()

    def _call_function(self) -> Any:
        app = catalog.flask_app()
        args = self.args
        if passed_results.FLOW_FIELD in self.policy_fields:
            args = (*passed_results.values(self), *args)
        try:
            with app.app_context() if app else _NO_CONTEXT:
                result = self.func(*args, **self.kwargs)
                if type(result) not in PLAIN_RESULT_TYPES and issubclass(type(result), Coroutine):
                    result = run_coroutine(result)
            if self.run_state is not None:
                self.run_state.raise_interruption()
        except BaseException as error:
            if not self.hides_result:  # no worker runs the job
                raise
            decided = self.decide_in_function(self._interruption(error))
            if decided is None:
                raise
            return decided
        if type(result) not in PLAIN_RESULT_TYPES and issubclass(type(result), UNRUN_RESULT_TYPES):
            raise TypeError(
                f"{self.func_name} returned a {texts.class_name(type(result))}, of which nothing "
                f"has run; loop over it, or await it, inside the job"
            )
        return result

    def _interruption(self, error: BaseException) -> BaseException:
        """The interruption of a loop, if the function has turned it into another error."""
        interruption = None
        if self.run_state is not None and not isinstance(error, BaseTimeoutException):
            interruption = self.run_state.interruption
        if interruption is None or interruption is error:
            return error
        self.log.warning(
            "Job %s: raised while it was interrupted: %s", self.id, texts.describe_error(error)
        )
        return interruption

    def stop_reason(self) -> str:
        """Why the run is to end between two rows of a loop, or "". Its worker replaces it."""
        return ""

    @property
    def progress(self) -> Progress | None:
        """How far the job is, as Redis has it now; None if it has said nothing yet.

        Raises:
            redis.RedisError: Redis does not answer, or the key is not a job's.
        """
        return read_progress(self.connection.hget(self.key, PROGRESS_FIELD))

    def serialize_result(self, result: Any) -> bytes | None:
        """A result as it is stored; None for the results None and `Retry`, which are not.

        Raises:
            ResultTooLarge: it is more than RQJOBS_MAX_RESULT_BYTES bytes.
            PayloadError: the next job of a flow takes it, and it cannot be stored.
        """
        if result is None or isinstance(result, rq.job.Retry):
            return None
        try:
            data: bytes = self.serializer.dumps(result)
        except BaseTimeoutException:
            raise
        except ValueTooLarge as error:
            raise ResultTooLarge(f"the job's result is too large: {error}") from None
        except Exception as error:
            reason = texts.describe_error(error)
            place = passed_results.place_of(self.policy_fields)
            if place is not None and not place.is_end:
                raise PayloadError(f"the job's result cannot be passed on: {reason}") from None
            self.log.warning("Job %s: its result is not kept: %s", self.id, reason)
            # RQ stores the same text.
            return self.serializer.dumps(UNSERIALIZABLE_RETURN_VALUE_PAYLOAD)
        check_size("result", data)
        return data

    def execute_success_callback(self, death_penalty_class: Any, result: Any) -> None:
        """RQ's worker passes the result that `perform` returned, which may be hidden."""
        if not self._success_callback_name:
            return
        if self.hides_result:
            result = self.hidden_result
        with app_context():
            super().execute_success_callback(death_penalty_class, result)

    def execute_failure_callback(self, death_penalty_class: Any, *exc_info: Any) -> None:
        """RQ knows no Flask app."""
        with app_context():
            super().execute_failure_callback(death_penalty_class, *exc_info)

    def execute_stopped_callback(self, death_penalty_class: Any) -> None:
        """RQ knows no Flask app."""
        with app_context():
            super().execute_stopped_callback(death_penalty_class)

    @property
    def stopped_callback(self) -> Any:
        """RQ's worker reads it outside any `try`; a name that is not a job would end the worker."""
        try:
            return super().stopped_callback
        except catalog.NotAJob as error:
            self.log.error("Job %s: stopped callback refused: %s", self.id, error)
            return None

    def send_webhooks(self, status: Any, *, exc_string: str | None = None) -> None:
        """RQ calls any URL; this one calls the hosts of RQJOBS_WEBHOOK_HOSTS only."""
        if self.webhooks:
            self.webhooks = [webhook for webhook in self.webhooks if is_allowed(webhook.url)]
            super().send_webhooks(status, exc_string=exc_string)

    # Afterwards

    def delete(
        self,
        pipeline: Any = None,
        remove_from_queue: bool = True,
        delete_dependents: bool = False,
    ) -> None:
        """RQ does not know of the job's log. The script of an outcome deletes it itself."""
        super().delete(pipeline, remove_from_queue, delete_dependents)
        if not is_recording(self.connection):
            connection = self.connection if pipeline is None else pipeline
            connection.delete(keys.log(self.id))

    def _handle_failure(  # type: ignore[override]
        self, exc_string: str, pipeline: Any, worker_name: str = "", **execution: Any
    ) -> None:
        """RQ stores the traceback; this one stores the exception too, for those who wait."""
        self.failed_job_registry.add(
            self, ttl=self.failure_ttl, exc_string=exc_string, pipeline=pipeline
        )
        result = FailureResult(
            self.id,
            Result.Type.FAILED,
            self.connection,
            exc_string=exc_string,
            worker_name=worker_name,
            serializer=self.serializer,
            **execution,
        )
        result.raised = raised.pack_current(exc_string, self.secrets())
        result.save(self.failure_ttl, pipeline=pipeline)

    @property
    def should_retry(self) -> bool:
        """RQ ends a `Repeat` at the first run that fails for good; ours goes on."""
        return self.wants_retry() or bool(self.repeats_left)

    def retry(self, queue: Any, pipeline: Any) -> None:
        """RQ calls it after a failure if `should_retry`: enqueue a retry, else the next repeat."""
        if not self.wants_retry():
            self.record_attempt(Result.Type.FAILED, pipeline)
            repeat(self, queue, pipeline)
            return
        self.record_attempt(Result.Type.RETRIED, pipeline)
        if self.decision is None:
            super().retry(queue, pipeline)
        else:
            self.run_again(self.decision, queue, pipeline)

    def requeue(self, at_front: bool = False) -> Job:
        """RQ's `requeue` takes three steps, and a crash between two of them loses the job.

        This one moves the failed job back into its queue in one step, and raises as
        `transitions.requeue` does.
        """
        transitions.requeue(self.connection, self.id, at_front)
        self.refresh()
        return self

    @property
    def started_job_registry(self) -> StartedJobRegistry:
        """RQ's property names its own registry class."""
        return StartedJobRegistry(
            self.origin,
            connection=self.connection,
            job_class=type(self),
            serializer=self.serializer,
        )

    def __eq__(self, other: object) -> bool:
        """RQ's `__eq__` takes a plain RQ job of the same id for another one."""
        return isinstance(other, rq.job.Job) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)


_NO_CONTEXT = nullcontext()


def app_context() -> Any:
    """A new context of the Flask app of this process, if it has one. A job and its callbacks run in it.

    Raises:
        ConfigError: see `catalog.flask_app`.
    """
    app = catalog.flask_app()
    if app is None:
        return _NO_CONTEXT
    return app.app_context()


def is_recording(connection: Any) -> bool:
    """Whether this is a worker's client that keeps the writes of an outcome instead of sending."""
    return getattr(connection, "recording", None) is not None


def serializer_for(given: Any) -> Any:
    """The serializer that a job or a queue is made with: the configured one by default."""
    if given in (None, ConfiguredSerializer):
        return ConfiguredSerializer
    return resolve_serializer(given)


def function_name(data: bytes | None) -> str:
    """The name of the function in a job's stored data; "?" if they cannot be read."""
    try:
        name = ConfiguredSerializer.loads(decompress(data or b""))[0]
    except Exception:  # of a damaged or forged record
        return "?"
    return name if isinstance(name, str) else "?"


def _digits_or_none(text: str) -> int | None:
    if text.isdigit():
        return int(text)
    return None


def repeat(job: Any, queue: Any, pipeline: Any = None) -> None:
    """Enqueue the next run of a job that has an `rq.Repeat`, in the place of `Repeat.schedule`.

    RQ takes the intervals from the end, and counts them in this machine's local time. Each run has
    all of the job's retries.

    Raises:
        ValueError: the job has no repeats left.
    """
    if not job.repeats_left:
        raise ValueError(f"Cannot schedule job {job.id}: no repeats left")
    state = getattr(job, "repeat_state", None) or RepeatState(job.repeats_left, job.retries_left)
    intervals = job.repeat_intervals or [0]
    runs = max(state.times - job.repeats_left, 0)
    interval = intervals[min(runs, len(intervals) - 1)]
    job.repeats_left -= 1
    job.retries_left = state.retries
    if getattr(job, "policy_fields", None):
        job.policy_fields = {**job.policy_fields, "rqjobs_retries": ""}
    pipe = job.connection.pipeline() if pipeline is None else pipeline
    if interval:
        queue.schedule_job(job, now() + timedelta(seconds=interval), pipeline=pipe)
    else:
        queue._enqueue_job(job, pipeline=pipe)
    if pipeline is None:
        pipe.execute()


def _named_arguments(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    passed_on: int = 0,
) -> Iterable[tuple[str, Any]]:
    """The arguments with the names that an error message gives them."""
    parameters = list(signature(function).parameters)
    names = parameters[passed_on:] or parameters
    for index, value in enumerate(args):
        yield f"argument {names[min(index, len(names) - 1)]!r}", value
    for name, value in kwargs.items():
        yield f"argument {name!r}", value
