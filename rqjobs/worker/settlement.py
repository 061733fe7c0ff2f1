"""Settling: how an outcome is recorded, all of its writes or none, whatever Redis does meanwhile."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import base64
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import redis
import rq
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    ConnectionError,
    NoScriptError,
    ResponseError,
    TimeoutError,
    WatchError,
)
from rq.defaults import DEFAULT_FAILURE_TTL
from rq.executions import Execution
from rq.job import JobStatus, Retry
from rq.timeouts import UnixSignalDeathPenalty
from rq.utils import now

from rqjobs import config, texts
from rqjobs.broker import keys, transitions
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import SETTLE, SETTLE_SUCCESS, load_scripts
from rqjobs.broker.transitions import Claim
from rqjobs.connection import is_transient
from rqjobs.instrumentation import is_wrapped
from rqjobs.job_fields import check_size
from rqjobs.jobs import Job
from rqjobs.maintenance import sweep
from rqjobs.queues import Queue
from rqjobs.times import format_date
from rqjobs.worker import job_processes
from rqjobs.worker.ack_pipeline import Ack, AckPipeline
from rqjobs.worker.recording import RecordingClient
from rqjobs.worker.shared_state import HANDLER_SECONDS, FunctionOutcome, HorsePhase, HorseState

SMALL_OUTCOME_BYTES = (
    512 * 1024
)  # bytes; a Redis that refuses no more than that cannot be used at all
TRACE_MAX_BYTES = 64 * 1024  # of the traceback of a job whose outcome cannot be recorded
MAX_REFUSALS = (
    4  # times that Redis answers, but closes the connection at a larger outcome; then it is refused
)


class OutcomeTooLarge(Exception):
    """Redis does not take the job's outcome."""


class DeathPenalty(UnixSignalDeathPenalty):
    """RQ's time limit, which leaves its signal handler where the next job puts it again.

    `signal.signal` looks for the handler in an Enum, which takes longer than all the rest; what it
    calls does not.
    """

    def setup_death_penalty(self) -> None:
        _signal.signal(signal.SIGALRM, self.handle_death_penalty)
        signal.alarm(self._timeout)

    def cancel_death_penalty(self) -> None:
        signal.alarm(0)


class SettlementMixin(rq.Worker):
    """An `rq.Worker` whose outcomes are settled through the ledger, all of their writes or none.

    RQ's own `perform_job` and `handle_exception` run a job, behind a guard. Overridden is what they
    write:
    `prepare_job_execution` (the claim did it), `handle_execution_ended` (the outcome has it),
    `handle_job_success`, `handle_job_retry` and `handle_job_failure` (recorded, and settled in one
    step; a plain success has a script of its own, and leaves without waiting for the reply).
    """

    job_class: type[Job] = Job
    queue_class: type[Queue] = Queue
    death_penalty_class = DeathPenalty
    claim: Claim | None = None
    shared_state: HorseState | None = None  # in the horse, like the following
    outbox: AckPipeline
    horse = 0  # its process
    handed_over = ""  # the token of the claim whose outcome is in the outbox, or recorded
    has_settled = False  # whether the last outcome that was recorded in RQ's way is
    function_outcome: FunctionOutcome | None = None
    outcome_bytes = 0  # of the last outcome that was sent and waited for
    process = ""  # the worker's, as `ledger.process_of` names it
    _titled = 0.0

    def prepare_job_execution(self, job: Any, remove_from_intermediate_queue: bool = False) -> None:
        if time.monotonic() - self._titled > 1:  # for people; it takes longer than a short job
            self._titled = time.monotonic()
            self.procline(f"Processing {job.func_name} from {job.origin} since {time.time()}")

    def perform_job(self, job: Any, queue: Any) -> bool:
        """What is raised beside the job's function ends neither the horse nor another job: a
        callback's or a handler's error, an exception or a result that raises when it is looked at.
        """
        claim, self.handed_over = self.claim, ""
        assert claim
        job.hide_result()
        try:
            return super().perform_job(job, queue)
        except BaseException as error:
            trace = "".join(texts.format_exception(type(error), error, error.__traceback__))
            self.log.error(
                "Worker %s: job %s: raised beside its function:\n%s", self.name, claim.job_id, trace
            )
            if self.handed_over != claim.token:
                self.log_settlement(
                    claim.job_id,
                    self.fail_job(claim, f"The outcome could not be recorded:\n{trace}"),
                )
            return False

    def handle_exception(self, job: Any, *exc_info: Any) -> None:
        try:
            super().handle_exception(job, *exc_info)
        except BaseException as error:
            trace = "".join(texts.format_exception(type(error), error, error.__traceback__))
            self.log.error(
                "Worker %s: job %s: its exception handler failed:\n%s", self.name, job.id, trace
            )

    def handle_execution_ended(self, job: Any, queue: Any, heartbeat_ttl: int) -> None:
        if (
            self.horse and os.getpid() != self.horse
        ):  # the job forked, and this is its child: there is one horse
            job_processes.flush_output()
            os._exit(0)
        job.ended_at = now()
        failed = job._status == JobStatus.FAILED
        handled = failed and bool(self._exc_handlers)
        called = job._failure_callback_name if failed else job._success_callback_name
        if not called and not handled:
            return
        if self.claim and self.function_outcome:
            trace = "".join(texts.format_exception(*sys.exc_info())) if failed else ""
            trace = transitions.cut_middle(trace, config.current().max_traceback_bytes)
            data = trace.encode(errors="backslashreplace") if failed else job.serialized_result
            self.function_outcome.write(self.claim.token, failed, job, data)
        seconds = (heartbeat_ttl if called else 0) + (HANDLER_SECONDS if handled else 0)
        self.report(
            HorsePhase.RUNNING, time.monotonic() + seconds
        )  # they have a time limit of their own

    def report(self, phase: HorsePhase, deadline: float = 0.0) -> None:
        if self.shared_state and self.claim:
            if phase == HorsePhase.RUNNING:
                self.shared_state.away = 0.0
            self.shared_state.write(phase, self.claim.job_id, self.claim.token, deadline)

    def handle_job_success(self, job: Any, queue: Any, started_job_registry: Any) -> None:
        def longhand() -> None:
            self.record_success(job, queue, started_job_registry)

        job._result = job.hidden_result
        ttl = job.get_result_ttl(self.default_result_ttl)
        assert self.claim
        large = (
            len(job.serialized_result or b"") > SMALL_OUTCOME_BYTES
        )  # it is not sent before somebody waits for the reply
        if (
            large
            or job.webhooks
            or job.repeats_left
            or ttl == 0
            or is_wrapped(rq.Worker, "handle_job_success")
        ):
            return longhand()
        took = (job.ended_at - job.started_at).total_seconds()
        self.outbox.send(Ack(self.claim, self.plain_success(job, ttl), longhand, took))
        self.handed_over = self.claim.token
        if self.log.isEnabledFor(logging.INFO):
            self.log.info(
                "Worker %s: successfully completed %s in %s s",
                self.name,
                job.description if self.log_job_description else job.id,
                took,
            )

    def record_success(self, job: Any, queue: Any, started_job_registry: Any) -> None:
        """Record a success in RQ's own way."""
        self.record(
            job,
            lambda: super(SettlementMixin, self).handle_job_success(
                job=job, queue=queue, started_job_registry=started_job_registry
            ),
        )

    @property
    def client(self) -> redis.Redis:
        return self.connection.plain  # type: ignore[attr-defined]

    def plain_success(self, job: Any, ttl: int) -> tuple[Any, ...]:
        """The command that records a plain success: what RQ's `handle_job_success` comes to."""
        claim, started, ended = self.claim, job.started_at, job.ended_at
        assert claim
        result = () if job.serialized_result is None else (base64.b64encode(job.serialized_result),)
        return SETTLE_SUCCESS.call(
            [keys.claims(self.name)],
            [
                claim.job_id,
                claim.queue,
                claim.token,
                self.name,
                format_date(started),
                format_date(ended),
                started.timestamp(),
                ended.timestamp(),
                ttl,
                int(ended.timestamp()) + ttl if ttl > 0 else "+inf",
                int(bool(job._dependency_ids)),
                rq.Queue.DEFAULT_TIMEOUT,
                *result,
            ],
        )

    def handle_job_retry(
        self, job: Any, queue: Any, retry: Retry, started_job_registry: Any, execution: Any
    ) -> None:
        # The execution that RQ passes is an empty one; `record` makes that of this claim.
        self.record(
            job,
            lambda: super(SettlementMixin, self).handle_job_retry(
                job=job,
                queue=queue,
                retry=retry,
                started_job_registry=started_job_registry,
                execution=self.execution or execution,
            ),
        )

    def handle_job_failure(
        self, job: Any, queue: Any, started_job_registry: Any = None, exc_string: str = ""
    ) -> None:
        job.traceback = exc_string  # for a job that goes on to its next repeat
        exc_string = transitions.cut_middle(exc_string, config.current().max_traceback_bytes)

        stopped = self._stopped_job_id == job.id

        def method() -> None:
            if stopped:  # RQ keeps it among the failed jobs
                self._note_stopped(job)
            super(SettlementMixin, self).handle_job_failure(
                job=job,
                queue=queue,
                started_job_registry=started_job_registry,
                exc_string=exc_string,
            )

        self.record(job, method, exc_string)

    def _note_stopped(self, job: Any) -> None:
        ttl = DEFAULT_FAILURE_TTL if job.failure_ttl is None else job.failure_ttl
        moment = now().timestamp()
        key = keys.stopped(job.origin)
        self.connection.zremrangebyscore(key, 0, moment)
        self.connection.zadd(key, {job.id: "+inf" if ttl < 0 else moment + ttl})
        self.connection.hincrby(self.key, "failed_job_count", -1)  # RQ counts it there too

    def record(self, job: Any, method: Callable[[], None], trace: str = "") -> None:
        """Run RQ's `method` on a recording connection, and settle the job with what it writes.

        Tried until a reply has been read. If what RQ read has changed by then (WATCH) its method
        runs again, with the job's counters as they were. Webhooks are sent when the outcome is
        recorded, and only then. `trace` is that of the job, to be kept should all this fail.
        """
        assert self.claim
        self.report(HorsePhase.SETTLING)
        self._check_meta(job)
        claim, recorder = self.claim, self.connection
        assert isinstance(recorder, RecordingClient)
        before, stopped = dict(job.__dict__), self._stopped_job_id
        client = recorder.plain
        hooks: list[tuple[Any, Any]] = []

        def attempt() -> str:
            job.__dict__.clear()
            job.__dict__.update(before)
            self._stopped_job_id = stopped
            self.execution = job.execution = execution_of(job, claim, self.name)
            hooks.clear()
            job.send_webhooks = lambda status, *, exc_string=None: hooks.append(
                (status, exc_string)
            )
            with client.pipeline() as guard:
                recorder.guard, recorder.writes, recorder.trouble, recorder.counts_as = (
                    guard,
                    [],
                    None,
                    "",
                )
                try:
                    method()
                    writes, counts_as = recorder.writes, recorder.counts_as
                finally:
                    recorder.guard = recorder.writes = None
                    del job.send_webhooks
                if recorder.trouble:
                    raise recorder.trouble
                if counts_as:  # the script sees to the set of those that wait, which may not end before all were woken
                    writes = [
                        _without(job.dependents_key, write)
                        for write in writes
                        if write[1] != job.dependents_key
                    ]
                guard.multi()
                self.outcome_bytes = sum(
                    len(word) for some in writes for word in some if isinstance(word, bytes | str)
                )
                guard.execute_command(
                    *SETTLE.call(*self.settle_arguments(claim, writes, counts_as))
                )
                return decode(guard.execute()[0])

        outcome = self.settle(claim, attempt, trace)
        self.handed_over = claim.token
        self.log_settlement(claim.job_id, outcome)
        self.has_settled = outcome in ("settled", "dependents left", "already")
        self._send_webhooks(job, hooks)

    def _send_webhooks(self, job: Any, hooks: list[tuple[Any, Any]]) -> None:
        """Send those of an outcome that was recorded; of no other."""
        seconds = HANDLER_SECONDS + sum(webhook.timeout for webhook in job.webhooks)
        self.report(HorsePhase.AFTER, time.monotonic() + seconds)
        if self.has_settled:
            for status, exc_string in hooks:
                job.send_webhooks(status, exc_string=exc_string)
        else:
            job.webhooks = []

    def settle_arguments(
        self, claim: Claim, writes: list[tuple[Any, ...]], counts_as: str
    ) -> tuple[list[str], list[Any]]:
        return transitions.settle_arguments(
            self.name, claim, writes, counts_as, rq.Queue.DEFAULT_TIMEOUT
        )

    def _check_meta(self, job: Any) -> None:
        """Leave what is stored of a job's meta as it is, if the job has put something there that
        cannot be stored.
        """
        try:
            check_size("meta", job.serializer.dumps(job.meta))
        except BaseException as error:
            self.log.error(
                "Worker %s: job %s: its meta is not stored: %s",
                self.name,
                job.id,
                texts.describe_error(error),
            )
            job.meta = {}

    def retry_until_answered(self, attempt: Callable[[], str]) -> str:
        """Do `attempt` until Redis has answered it; it must do nothing twice. Raises what will not
        pass by itself.
        """
        backoff, failures, refusals = ExponentialWithJitterBackoff(cap=3, base=0.05), 0, 0
        self.outcome_bytes = 0
        while True:
            try:
                reply = attempt()
                if self.shared_state:
                    self.shared_state.away = 0.0
                return reply
            except NoScriptError:
                load_scripts(self.client)
            except Exception as error:
                broken = error.__context__ if isinstance(error, WatchError) else error
                if broken is None:
                    continue  # what was read has changed
                if not isinstance(broken, Exception) or not is_transient(broken):
                    raise
                self.wait_before_retry(broken, failures, backoff.compute(failures))
                failures += 1
                refusals += self._is_refused_for_size(broken)
                if refusals == MAX_REFUSALS:
                    raise OutcomeTooLarge(
                        f"Redis closed the connection {refusals} times at an outcome of {self.outcome_bytes:,} bytes; "
                        f"let the job return and save less, or raise proto-max-bulk-len of Redis"
                    ) from error

    def _is_refused_for_size(self, error: Exception) -> bool:
        """Whether Redis answers, but closes the connection at our outcome, which is a large one.
        With a limit of its own (proto-max-bulk-len, that of a hosted Redis) it does no more than
        that; the outcome would be sent for ever.
        """
        if self.outcome_bytes < SMALL_OUTCOME_BYTES or not isinstance(
            error, ConnectionError | TimeoutError | OSError
        ):
            return False
        with contextlib.suppress(redis.RedisError, OSError):
            return bool(self.client.ping())
        return False

    def settle(self, claim: Claim, attempt: Callable[[], str], trace: str = "") -> str:
        """Like `retry_until_answered`, but a job whose outcome can never be recorded goes to the
        dead letters instead.
        """
        try:
            return self.retry_until_answered(attempt)
        except Exception as error:  # a key of the wrong type, a failure of RQ's own code
            message = f"The outcome could not be recorded: {texts.describe_error(error)}"
            self.log.error("Worker %s: job %s: %s", self.name, claim.job_id, message, exc_info=True)
            trace = transitions.cut_middle(
                trace, TRACE_MAX_BYTES
            )  # it may be what Redis does not take
            return self.fail_job(claim, f"{trace}\n{message}" if trace else message)

    def fail_job(self, claim: Claim, message: str, status: str = "failed") -> str:
        """Send a job to the dead letters for a reason of our own; without the traceback if Redis
        cannot hold that.
        """
        writes = transitions.failure_writes(claim, self.name, message, status)
        try:
            return self.retry_until_answered(partial(self.send, claim, writes))
        except ResponseError:
            return self.retry_until_answered(partial(self.send, claim, writes[:-1]))

    def send(self, claim: Claim, writes: list[tuple[Any, ...]]) -> str:
        counts_as = "failed" if "failed" in writes[0] else ""
        arguments = self.settle_arguments(claim, writes, counts_as)
        return decode(SETTLE.run(self.client, *arguments))

    def wait_before_retry(self, error: Exception, failures: int, seconds: float) -> None:
        """Wait until Redis may be back; its outcome stays in memory."""
        if failures == 0:
            self.log.error(
                "Worker %s: waits for Redis, and keeps what it has: %s", self.name, error
            )
        if self.shared_state:
            self.shared_state.away = self.shared_state.away or time.monotonic()
            self.shared_state.touch()
        self.connection.connection_pool.disconnect()
        time.sleep(seconds)

    def log_settlement(self, job_id: str, outcome: str) -> None:
        """Log what became of an outcome, unless it was simply recorded, and wake the many that
        waited for it.
        """
        if outcome == "dependents left":  # should it fail, or we die, the next sweep goes on
            with contextlib.suppress(redis.RedisError, OSError):
                client = self.client
                sweep.enqueue_waiting_dependents(
                    client, self.shared_state.touch if self.shared_state else lambda: None
                )
        if outcome == "refused":
            self.log.warning(
                "Worker %s: the outcome of job %s is refused: this worker was believed dead, and the job "
                "was given to another, or it was enqueued again meanwhile",
                self.name,
                job_id,
            )
        elif outcome in ("canceled", "gone"):
            self.log.warning(
                "Worker %s: job %s was %s while it ran; its outcome is dropped",
                self.name,
                job_id,
                "deleted" if outcome == "gone" else outcome,
            )


def _without(key: str, write: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(word for word in write if word != key) if write[0] == "DEL" else write


def execution_of(job: Any, claim: Claim, worker: str) -> Execution:
    execution = Execution(claim.token, job.id, job.connection, worker_name=worker)
    execution.created_at = job.started_at or execution.created_at
    return execution
