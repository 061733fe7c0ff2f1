"""Settlement: an outcome is recorded with all of its writes or none, even if Redis goes away."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import redis
import rq
from redis.client import Pipeline
from redis.exceptions import ConnectionError, ResponseError, TimeoutError
from rq.defaults import DEFAULT_FAILURE_TTL
from rq.executions import Execution
from rq.job import JobStatus, Retry
from rq.results import Result
from rq.timeouts import JobTimeoutException
from rq.utils import now

from rqjobs import catalog, config, hiding, hooks, loops, raised, texts
from rqjobs.broker import keys, transitions
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import SETTLE, SETTLE_POLICY_SUCCESS, SETTLE_SUCCESS
from rqjobs.broker.transitions import Claim
from rqjobs.connection import is_transient
from rqjobs.hooks import Hook
from rqjobs.instrumentation import is_wrapped
from rqjobs.job_fields import check_size
from rqjobs.job_metrics import JobCounts, Outcome
from rqjobs.jobs import Job, function_name
from rqjobs.maintenance import new_failures, sweep
from rqjobs.policies import failures
from rqjobs.policies.failures import Failure
from rqjobs.policies.retries import Action, Decided, Decision
from rqjobs.queues import Queue
from rqjobs.raised import JobFailed
from rqjobs.times import format_date
from rqjobs.worker import job_processes, retry
from rqjobs.worker.ack_pipeline import Ack, AckPipeline
from rqjobs.worker.death_penalty import DeathPenalty
from rqjobs.worker.log_buffer import LogBuffer
from rqjobs.worker.log_capture import LogCapture
from rqjobs.worker.recording import JobSnapshot, Recording, RecordingClient, captured_webhooks
from rqjobs.worker.settle_reply import LOST_JOBS, SettleReply
from rqjobs.worker.shared_state import (
    HANDLER_SECONDS,
    NO_KILL_AFTER,
    FunctionOutcome,
    HorsePhase,
    HorseState,
)

# A Redis that refuses smaller outcomes cannot be used at all.
SMALL_OUTCOME_BYTES = 512 * 1024
UNRECORDABLE_TRACEBACK_MAX_BYTES = 64 * 1024
# A larger outcome is given up if Redis closes the connection at it this many times, and answers.
MAX_REFUSALS = 4
PROCESS_TITLE_SECONDS = 1  # between two changes of the process title

Reply = TypeVar("Reply")


class OutcomeTooLarge(Exception):
    """Redis does not take the job's outcome."""


# How a run counts that has ended as the rules of its job, or its function, have decided.
OUTCOMES_OF_ACTIONS = {
    Action.FAIL: Outcome.FAILED,
    Action.RETRY: Outcome.RETRIED,
    Action.DISCARD: Outcome.DISCARDED,
    Action.SNOOZE: Outcome.SNOOZED,
}


class SettlementMixin(rq.Worker):
    """An `rq.Worker` whose outcomes the broker's scripts record, with all of their writes or none.

    RQ's `perform_job` and `handle_exception` run a job. The methods here that replace RQ's say why
    in their docstrings. `claim` and the attributes after it are used in the horse only.
    """

    job_class: type[Job] = Job
    queue_class: type[Queue] = Queue
    death_penalty_class = DeathPenalty
    process = ""  # the worker's process, as `leases.process_id` names it
    function_outcome: FunctionOutcome | None = None  # memory shared with the horse
    log_buffer: LogBuffer | None = None  # the same, with the lines of its job that are not sent yet
    outcome_bytes = 0  # of the last outcome that was sent and waited for
    claim: Claim | None = None
    shared_state: HorseState | None = None
    acks: AckPipeline
    counts: JobCounts | None = None  # for the metrics; memory shared with the horse
    job_log: LogCapture | None = None  # None if nothing is kept
    own_pid = 0
    last_settled_token = ""  # of the last recorded outcome, or ack  # nosec B105
    has_settled = False  # whether the last outcome of `record` is in Redis
    _title_set_at = 0.0

    @property
    def client(self) -> redis.Redis:
        """The client that sends everything, also while an outcome is recorded."""
        return self.connection.real_client  # type: ignore[attr-defined]

    # Running a job

    def prepare_job_execution(self, job: Any, remove_from_intermediate_queue: bool = False) -> None:
        """RQ marks the job as started, which the claim has done. The process title is left.

        The title takes longer than a short job, so it is set once a second.
        """
        if time.monotonic() - self._title_set_at > PROCESS_TITLE_SECONDS:
            self._title_set_at = time.monotonic()
            self.procline(f"Processing {job.func_name} from {job.origin} since {time.time()}")

    def perform_job(self, job: Any, queue: Any) -> bool:
        """RQ's `perform_job`, with the result hidden from RQ, which makes a string of it.

        An exception outside the job's function ends neither the horse nor another job: it comes
        from a callback, a handler, or from an object of the job's that raises when it is printed.
        """
        claim = self.claim
        assert claim
        self.last_settled_token = ""  # none yet  # nosec B105
        job.hide_result()
        try:
            return super().perform_job(job, queue)
        except BaseException as error:
            trace = _format(error)
            self.log.error(
                "Worker %s: job %s: raised outside its function:\n%s",
                self.name,
                claim.job_id,
                trace,
            )
            if self.last_settled_token != claim.token:
                message = f"The outcome could not be recorded:\n{trace}"
                self.log_settlement(claim.job_id, self.fail_job(claim, message))
            return False

    def handle_exception(self, job: Any, *exc_info: Any) -> None:
        """RQ's method ends the worker if one of the user's exception handlers raises."""
        try:
            super().handle_exception(job, *exc_info)
        except BaseException as error:
            self.log.error(
                "Worker %s: job %s: its exception handler failed:\n%s",
                self.name,
                job.id,
                _format(error),
            )

    def handle_execution_ended(self, job: Any, queue: Any, heartbeat_ttl: int) -> None:
        """RQ writes the job's end, which the outcome does here. Callbacks and handlers come next.

        They may hang until the horse is killed, so the function's end is kept in shared memory. A
        child that the job has forked ends here: it must not settle the job.
        """
        if self.own_pid and os.getpid() != self.own_pid:
            job_processes.flush_output()
            os._exit(0)
        job.ended_at = now()
        failed = job._status == JobStatus.FAILED
        if failed and job.decision is None:  # not raised by the job's function, but after it
            error = sys.exc_info()[1]
            if error is not None:
                job.decide(error)
        if isinstance(job._result, Decided) and not failed:
            return
        has_callback = job._failure_callback_name if failed else job._success_callback_name
        has_handler = failed and self._exc_handlers
        if not has_callback and not has_handler:
            return
        seconds = heartbeat_ttl if has_callback else 0
        if has_handler:
            seconds += HANDLER_SECONDS
        if self.claim and self.function_outcome:
            data = _traceback_of_now() if failed else job.serialized_result
            self.function_outcome.write(self.claim.token, failed, job, data)
        self.report(HorsePhase.RUNNING, time.monotonic() + seconds)

    def report(
        self, phase: HorsePhase, deadline: float = 0.0, kill_after: float = NO_KILL_AFTER
    ) -> None:
        """Publish the phase of the claimed job, its monotonic deadline, and the seconds after which
        it is killed then, to the parent.
        """
        if self.shared_state and self.claim:
            if phase == HorsePhase.RUNNING:
                self.shared_state.away = 0.0
            self.shared_state.write(
                phase, self.claim.job_id, self.claim.token, deadline, kill_after
            )

    # Outcomes

    def handle_job_success(self, job: Any, queue: Any, started_job_registry: Any) -> None:
        """RQ records a success in several steps; a plain one is one script here.

        Its ack is sent at once, and its reply is read with the next claim.
        """
        claim = self.claim
        assert claim
        job._result = job.hidden_result
        ttl = job.get_result_ttl(self.default_result_ttl)
        if not self._is_plain_success(job, ttl):
            self.record_success(job, queue, started_job_registry)
            return
        started, ended = job.started_at.timestamp(), job.ended_at.timestamp()
        seconds = ended - started
        waited = max(0.0, started - job.enqueued_at.timestamp()) if job.enqueued_at else 0.0
        fallback = partial(self.record_success, job, queue, started_job_registry)
        command = self._success_command(claim, job, ttl, started, ended)
        log_commands = self._last_log_commands(claim)
        self.acks.send(Ack(claim, command, fallback, seconds, log_commands, job.func_name, waited))
        self.last_settled_token = claim.token
        if self.log.isEnabledFor(logging.INFO):
            self.log.info(
                "Worker %s: successfully completed %s in %s s",
                self.name,
                job.description if self.log_job_description else job.id,
                round(seconds, 6),
            )

    def _is_plain_success(self, job: Any, ttl: int) -> bool:
        """Whether `settle_success.lua` can record it.

        A large result is waited for, because Redis may refuse it. With `ttl` 0 RQ deletes the job.
        """
        return not (
            len(job.serialized_result or b"") > SMALL_OUTCOME_BYTES
            or job.webhooks
            or job.repeats_left
            or ttl == 0
            or loops.has_state(job)
            or is_wrapped(rq.Worker, "handle_job_success")
        )

    def _success_command(
        self, claim: Claim, job: Any, ttl: int, started: float, ended: float
    ) -> tuple[Any, ...]:
        """The command that makes the writes of RQ's `handle_job_success` for a plain success.

        `started`, `ended`: the times of the run, Unix seconds.
        """
        expires: float | str = "+inf"
        if ttl > 0:
            expires = int(ended) + ttl
        arguments = [
            claim.job_id,
            claim.queue,
            claim.token,
            self.name,
            format_date(job.started_at),
            format_date(job.ended_at),
            started,
            ended,
            ttl,
            expires,
            int(bool(job._dependency_ids)),
            rq.Queue.DEFAULT_TIMEOUT,
        ]
        if job.serialized_result is not None:
            arguments.append(base64.b64encode(job.serialized_result))
        script = SETTLE_POLICY_SUCCESS if job.policy_fields else SETTLE_SUCCESS
        return script.call([keys.claims(self.name)], arguments)

    def record_success(self, job: Any, queue: Any, started_job_registry: Any) -> None:
        """Record a success with RQ's own code, and wait until Redis has answered."""
        method = super().handle_job_success

        def record_success() -> None:
            if loops.has_state(job):
                self.connection.hdel(job.key, *loops.ended_fields(job))
            method(job=job, queue=queue, started_job_registry=started_job_registry)

        self.record(job, record_success, Outcome.FINISHED)

    def handle_job_retry(
        self, job: Any, queue: Any, retry: Retry, started_job_registry: Any, execution: Any
    ) -> None:
        """RQ records a retry in several steps; here they are one.

        RQ passes the horse's placeholder of an execution; `record` makes that of this claim.
        """
        if isinstance(retry, Decided):
            decision = retry.decision
            if decision.action is Action.INTERRUPT:
                self.interrupt(job, decision.reason)
                return
            limit = config.current().max_traceback_bytes
            reason = hiding.mask(decision.reason, job.secrets())
            job.traceback = transitions.cut_middle(reason, limit)
            outcome = OUTCOMES_OF_ACTIONS[decision.action]
            self.record(job, lambda: self._record_decision(job, queue, decision), outcome)
            if decision.action is Action.RETRY:
                self._call_hook(hooks.on_retry, job, retry.error)
            return
        method = super().handle_job_retry
        self.record(
            job,
            lambda: method(
                job=job,
                queue=queue,
                retry=retry,
                started_job_registry=started_job_registry,
                execution=self.execution or execution,
            ),
            Outcome.RETRIED,
        )
        if job.get_status(refresh=False) != JobStatus.FAILED:
            self._call_hook(hooks.on_retry, job, None)
        elif hooks.on_failure.functions:
            self._call_hook(hooks.on_failure, job, raised.one_retry_too_many(job))

    def interrupt(self, job: Any, reason: str) -> None:
        """Put a job that ended between two rows of a loop back at the front of its queue."""
        claim = self.claim
        assert claim
        self.report(HorsePhase.SETTLING)
        fields = {**job.run_state.last_fields(), **job.run_state.changed_meta()}
        log_commands = self._last_log_commands(claim)

        def attempt() -> SettleReply:
            self._keep_log(log_commands)
            return SettleReply.read(transitions.interrupt(self.client, self.name, claim, fields))

        reply = self._settle(claim, attempt)
        self.last_settled_token = claim.token
        self.log_settlement(claim.job_id, reply)
        if reply.is_recorded:
            self._count_run(job, claim, Outcome.INTERRUPTED)
            self.log.info(
                "Worker %s: job %s is interrupted (%s); it continues at its cursor",
                self.name,
                claim.job_id,
                reason,
            )

    def _record_decision(self, job: Any, queue: Any, decision: Decision) -> None:
        """Make the writes for a job that asked for another run, or that is discarded."""
        with self.connection.pipeline() as pipeline:
            if decision.action is Action.RETRY:
                self.increment_failed_job_count(pipeline)  # as RQ counts a returned Retry
            self.increment_total_working_time(job.ended_at - job.started_at, pipeline)
            self.cleanup_execution(job, pipeline=pipeline)
            if decision.action is Action.DISCARD:
                self.log.info("Worker %s: job %s is discarded", self.name, job.id)
                job.discard(pipeline)
            else:
                job.record_attempt(Result.Type.RETRIED, pipeline)
                job.run_again(decision, queue, pipeline)
            pipeline.execute()

    def handle_job_failure(
        self, job: Any, queue: Any, started_job_registry: Any = None, exc_string: str = ""
    ) -> None:
        """RQ records a failure in several steps, and counts a stopped job among the failed ones."""
        secrets = job.secrets()
        failure = _failure_of(job, exc_string)
        failure = failure._replace(message=hiding.mask(failure.message, secrets))
        exc_string = hiding.mask(exc_string, secrets)
        exc_string = transitions.cut_middle(exc_string, config.current().max_traceback_bytes)
        job.traceback = exc_string  # for a job that is retried or repeated
        error = sys.exc_info()[1]
        stopped = self._stopped_job_id == job.id
        hook, outcome = hooks.on_failure, Outcome.FAILED
        if job.wants_retry():
            hook, outcome = hooks.on_retry, Outcome.RETRIED
        if stopped:
            outcome = Outcome.STOPPED
        method = super().handle_job_failure

        def record_failure() -> None:
            if stopped:
                self._add_to_stopped_jobs(job)
            method(
                job=job,
                queue=queue,
                started_job_registry=started_job_registry,
                exc_string=exc_string,
            )

        self.record(job, record_failure, outcome, exc_string, failure)
        if not stopped and hook.functions:
            # A horse that was killed has left no exception.
            self._call_hook(hook, job, error or JobFailed(job.id, *failure, exc_string))

    def _call_hook(self, hook: Hook, job: Any, error: BaseException | None) -> None:
        """Call the functions of a hook for an outcome that was recorded, within a time limit."""
        if not hook.functions or not self.has_settled:
            return
        self.report(HorsePhase.AFTER, time.monotonic() + HANDLER_SECONDS)
        try:
            with self.death_penalty_class(HANDLER_SECONDS, JobTimeoutException, job_id=job.id):
                hook.call(job, error)
        except BaseException:
            self.log.error(
                "Worker %s: job %s: the hook %s failed",
                self.name,
                job.id,
                hook.name,
                exc_info=True,
            )

    def _add_to_stopped_jobs(self, job: Any) -> None:
        moment = now().timestamp()
        ttl = job.failure_ttl
        if ttl is None:
            ttl = DEFAULT_FAILURE_TTL
        expires: float | str = "+inf"
        if ttl >= 0:
            expires = moment + ttl
        key = keys.stopped(job.origin)
        self.connection.zremrangebyscore(key, 0, moment)
        self.connection.zadd(key, {job.id: expires})
        self.connection.hincrby(self.key, "failed_job_count", -1)  # RQ counts it as failed

    def record(
        self,
        job: Any,
        method: Callable[[], None],
        outcome: Outcome,
        trace: str = "",
        failure: Failure | None = None,
    ) -> None:
        """Run RQ's `method` on a recording client, and settle the job with the writes it makes.

        It is tried until Redis has answered. If a key that RQ read has changed by then, `method`
        runs again, with the job's attributes as they were. Webhooks are sent once the outcome is
        recorded. `trace` is the traceback of the job; it is kept if the outcome cannot be recorded.
        `failure` is counted if the job fails for good, and `outcome` in any case.
        """
        claim = self.claim
        assert claim
        self.report(HorsePhase.SETTLING)
        self._drop_unstorable_meta(job)
        snapshot = JobSnapshot(job)
        stopped = self._stopped_job_id
        log_commands = self._last_log_commands(claim)
        webhook_calls: list[tuple[Any, Any]] = []

        def attempt() -> SettleReply:
            snapshot.restore()
            self._stopped_job_id = stopped
            self.execution = job.execution = _execution_of(job, claim, self.name)
            recorder = self.connection
            assert isinstance(recorder, RecordingClient)
            with self.client.pipeline() as guard:
                with recorder.record(guard) as recording, captured_webhooks(job) as calls:
                    self._write_run_state(job)
                    method()
                webhook_calls[:] = calls
                guard.multi()
                for command in log_commands:
                    guard.execute_command(*command)
                return self._settle_recorded(guard, claim, recording, job, failure)

        reply = self._settle(claim, attempt, trace)
        self.last_settled_token = claim.token
        self.log_settlement(claim.job_id, reply)
        self.has_settled = reply.is_recorded
        if self.has_settled:
            self._count_run(job, claim, outcome)
        if failure and "rqjobs_on_failed" in job.policy_fields:
            self._call_on_failed(claim, reply)
        self._send_webhooks(job, webhook_calls)

    def _count_run(self, job: Any, claim: Claim, outcome: Outcome) -> None:
        """Count a run whose outcome was recorded, for the metrics."""
        if self.counts is None:
            return
        if outcome is Outcome.RETRIED and job.get_status(refresh=False) == JobStatus.FAILED:
            outcome = Outcome.FAILED  # it asked for one retry too many
        seconds = 0.0
        with contextlib.suppress(TypeError):  # a date is missing
            seconds = max(0.0, ((job.ended_at or now()) - job.started_at).total_seconds())
        name = function_name(claim.fields.get(b"data"))
        self.counts.note(name, claim.queue, outcome, seconds_waited(job), seconds)

    def _write_run_state(self, job: Any) -> None:
        """Write cursors and progress. It comes before RQ's writes, which may delete the job."""
        fields = job.run_state.last_fields() if job.run_state else {}
        if fields:
            self.connection.hset(job.key, mapping=fields)

    def _settle_recorded(
        self,
        guard: Pipeline,
        claim: Claim,
        recording: Recording,
        job: Any,
        failure: Failure | None,
    ) -> SettleReply:
        """Settle a job with recorded writes, unless a key that RQ has read has changed.

        `guard` is a transaction, and may begin with commands whose replies do not matter.
        """
        writes = recording.writes
        if recording.counts_as:
            # The script removes the dependents, and only after all of them are enqueued.
            writes = recording.writes_without(job.dependents_key)
        self.outcome_bytes = sum(
            len(word) for write in writes for word in write if isinstance(word, bytes | str)
        )
        group = call = ""
        if failure and recording.counts_as == "failed":
            group = failure.group
            call = failure.call(job.policy_fields.get("rqjobs_on_failed"))
        arguments = transitions.settle_arguments(
            self.name, claim, writes, recording.counts_as, rq.Queue.DEFAULT_TIMEOUT, group, call
        )
        guard.execute_command(*SETTLE.call(*arguments))
        reply = guard.execute(raise_on_error=False)[-1]
        if isinstance(reply, Exception):
            raise reply
        return SettleReply.read(reply)

    def _last_log_commands(self, claim: Claim) -> tuple[tuple[Any, ...], ...]:
        if self.job_log is None:
            return ()
        return self.job_log.last_commands(claim)

    def _keep_log(self, commands: Iterable[tuple[Any, ...]]) -> None:
        """Send the last lines of a run. Those that Redis refuses for good are given up."""
        for command in commands:
            try:
                self.client.execute_command(*command)
            except ResponseError as error:
                if is_transient(error):
                    raise

    def _send_webhooks(self, job: Any, calls: list[tuple[Any, Any]]) -> None:
        """Send the webhooks of an outcome that was recorded. Those of any other are dropped."""
        seconds = HANDLER_SECONDS + sum(webhook.timeout for webhook in job.webhooks)
        self.report(HorsePhase.AFTER, time.monotonic() + seconds)
        if not self.has_settled:
            job.webhooks = []
            return
        for status, exc_string in calls:
            job.send_webhooks(status, exc_string=exc_string)

    def _drop_unstorable_meta(self, job: Any) -> None:
        """Leave the stored meta as it is if the job's meta cannot be stored."""
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

    def _settle(
        self, claim: Claim, attempt: Callable[[], SettleReply], trace: str = ""
    ) -> SettleReply:
        """Call `attempt` until Redis answers; fail the job if its outcome can never be recorded.

        That happens if a key has the wrong type, or if RQ's own code fails.
        """
        try:
            return self.retry_until_answered(attempt)
        except Exception as error:
            message = f"The outcome could not be recorded: {texts.describe_error(error)}"
            self.log.error("Worker %s: job %s: %s", self.name, claim.job_id, message, exc_info=True)
            if trace:  # its size may be the cause
                trace = transitions.cut_middle(trace, UNRECORDABLE_TRACEBACK_MAX_BYTES)
                message = f"{trace}\n{message}"
            return self.fail_job(claim, message)

    def fail_job(self, claim: Claim, message: str, status: str = "failed") -> SettleReply:
        """Fail a job for a reason that is not its function's; `message` is stored as its traceback.

        It is stored without a traceback if Redis cannot hold one. `status`: "failed" or "stopped".
        """
        writes = transitions.failure_writes(claim, self.name, message, status)
        counts_as = group = call = ""  # the dependents of a stopped job wait for its requeue
        if status == "failed":
            counts_as = status
            name = function_name(claim.fields.get(b"data"))
            failure = failures.of_traceback(name, message)
            group = failure.group
            call = failure.call(decode(claim.fields.get(b"rqjobs_on_failed") or b""))
        log_commands = self._last_log_commands(claim)

        def send(writes: list[tuple[Any, ...]]) -> SettleReply:
            arguments = transitions.settle_arguments(
                self.name, claim, writes, counts_as, rq.Queue.DEFAULT_TIMEOUT, group, call
            )
            self._keep_log(log_commands)
            return SettleReply.read(self.client.execute_command(*SETTLE.call(*arguments)))

        try:
            reply = self.retry_until_answered(partial(send, writes))
        except ResponseError:
            reply = self.retry_until_answered(partial(send, writes[:-1]))
        if reply.is_recorded and self.counts:
            outcome = Outcome.FAILED if status == "failed" else Outcome.STOPPED
            name = function_name(claim.fields.get(b"data"))
            self.counts.note_outcome(name, claim.queue, outcome)
        if call:
            self._call_on_failed(claim, reply)
        return reply

    def _call_on_failed(self, claim: Claim, reply: SettleReply) -> None:
        """Enqueue the job of `on_failed`, which was noted with the outcome. The sweep does it too."""
        if reply.is_recorded:
            with contextlib.suppress(redis.RedisError, OSError):
                new_failures.follow(self.client, f"{claim.job_id}:{claim.token}".encode())

    def log_settlement(self, job_id: str, reply: SettleReply) -> None:
        """Log an outcome that was not recorded, and enqueue the dependents that are left."""
        if reply is SettleReply.DEPENDENTS_LEFT:
            with contextlib.suppress(redis.RedisError, OSError):  # the next sweep goes on
                sweep.enqueue_waiting_dependents(self.client, self._touch)
        elif reply is SettleReply.REFUSED:
            self.log.warning(
                "Worker %s: the outcome of job %s is refused: the lease of this worker had expired "
                "and the job was requeued, or the job was enqueued again",
                self.name,
                job_id,
            )
        elif reply in LOST_JOBS:
            self.log.warning(
                "Worker %s: job %s was %s while it ran; its outcome is dropped",
                self.name,
                job_id,
                LOST_JOBS[reply],
            )

    def _touch(self) -> None:
        """Show the parent that the horse is responsive."""
        if self.shared_state:
            self.shared_state.touch()

    # Redis

    def retry_until_answered(self, operation: Callable[[], Reply]) -> Reply:
        """Call `operation`, which must be idempotent, until Redis answers.

        Permanent errors are raised.

        Raises:
            OutcomeTooLarge: Redis answers, but closes the connection at this outcome each time.
        """
        refusals = 0
        self.outcome_bytes = 0

        def wait(error: Exception, failures: int, seconds: float) -> None:
            nonlocal refusals
            self.wait_before_retry(error, failures, seconds)
            if not self._is_refused_for_size(error):
                return
            refusals += 1
            if refusals == MAX_REFUSALS:
                raise OutcomeTooLarge(
                    f"Redis closed the connection {refusals} times at an outcome of "
                    f"{self.outcome_bytes:,} bytes; let the job return and save less, or raise "
                    f"proto-max-bulk-len of Redis"
                ) from error

        reply = retry.retry_until_answered(operation, self.client, wait)
        if self.shared_state:
            self.shared_state.away = 0.0
        return reply

    def wait_before_retry(self, error: Exception, failures: int, seconds: float) -> None:
        """Wait until Redis may answer again. Outcomes stay in memory."""
        if failures == 0:
            self.log.error(
                "Worker %s: waits for Redis, and keeps what it has: %s", self.name, error
            )
        if self.shared_state:
            self.shared_state.away = self.shared_state.away or time.monotonic()
            self._touch()
        self.connection.connection_pool.disconnect()
        time.sleep(seconds)

    def _is_refused_for_size(self, error: Exception) -> bool:
        """Whether Redis answers, but has closed the connection at a large outcome.

        A Redis whose own limit is smaller (proto-max-bulk-len) does so without an error message.
        """
        if self.outcome_bytes < SMALL_OUTCOME_BYTES:
            return False
        if not isinstance(error, ConnectionError | TimeoutError | OSError):
            return False
        with contextlib.suppress(redis.RedisError, OSError):
            return bool(self.client.ping())
        return False


def seconds_waited(job: Any) -> float:
    """How long a job has waited in its queue; 0 if that is not known."""
    try:
        return max(0.0, (job.started_at - job.enqueued_at).total_seconds())
    except TypeError:  # a date is missing
        return 0.0


def is_job(name: str) -> bool:
    """Whether the catalog of this process has a job function of this name."""
    return name in catalog.current().functions


def _format(error: BaseException) -> str:
    return "".join(texts.format_exception(type(error), error, error.__traceback__))


def _failure_of(job: Any, exc_string: str) -> Failure:
    """The failure of a job, by the exception that is being handled, else by its traceback."""
    try:
        name = job.func_name or failures.UNKNOWN_FUNCTION
    except Exception:  # its data cannot be read
        name = failures.UNKNOWN_FUNCTION
    error = sys.exc_info()[1]
    if error is not None:
        return failures.of_exception(name, error)
    return failures.of_traceback(name, exc_string)


def _traceback_of_now() -> bytes:
    """The traceback of the exception that is being handled, as it is stored."""
    trace = "".join(texts.format_exception(*sys.exc_info()))
    trace = transitions.cut_middle(trace, config.current().max_traceback_bytes)
    return trace.encode(errors="backslashreplace")


def _execution_of(job: Any, claim: Claim, worker: str) -> Execution:
    """RQ's record of this run; its id is the claim's token."""
    execution = Execution(claim.token, job.id, job.connection, worker_name=worker)
    execution.created_at = job.started_at or execution.created_at
    return execution
