"""The part of `Job` that applies the retry rules after the function has raised."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import rq.job
from rq.defaults import DEFAULT_FAILURE_TTL
from rq.job import JobStatus
from rq.results import Result
from rq.utils import now

from rqjobs import catalog, texts
from rqjobs.broker import keys
from rqjobs.loops import RunState
from rqjobs.policies import exceptions, retries
from rqjobs.policies.exceptions import Discard, NoRetryLeft, RetryIn, Snooze
from rqjobs.policies.retries import Action, Decided, Decision, History, Rules

NO_POLICIES: Mapping[str, str] = {}
EXPIRED_MAX_JOBS = 10  # discarded jobs whose entries one outcome removes


class RetryingJob(rq.job.Job):
    """An `rq.Job` that retries by the rules of its function."""

    policy_fields: Mapping[str, str] = NO_POLICIES  # those fields of its hash
    traceback = ""  # of a run that has just failed
    execution: Any = None  # RQ's record of the run
    decision: Decision | None = None  # of the rules, about a run that has just failed
    run_state: RunState | None = None  # the loops and the progress of a run, if it has any

    @property
    def history(self) -> History:
        """The counted retries of the job so far."""
        return History.read(self.policy_fields.get("rqjobs_retries", ""))

    def retry_rules(self) -> Rules | None:
        """The job's retry rules now; None if its retries are RQ's.

        Raises:
            ValueError: those of its own cannot be read.
        """
        try:
            function = catalog.current().functions.get(self.func_name or "")
        except Exception:  # the job's data cannot be read
            function = None
        options = catalog.options(function) if function else {}
        return retries.rules_of_job(options, self.policy_fields.get("rqjobs_retry", ""))

    def decide(self, error: BaseException) -> None:
        """Keep in `decision` what the rules say of this error; None if the job has no rules.

        `retries_left` is 0 from now on if the job fails for good, as exception handlers and
        libraries like sentry-sdk expect of a job with an `rq.Retry`.
        """
        try:
            rules = self.retry_rules()
        except ValueError as problem:
            self.log.error("Job %s is not retried: %s", self.id, problem)
            self._set_decision(Decision(Action.FAIL, retries_left=0))
            return
        if rules is not None:
            moment = time.time()
            failure = exceptions.failure_of(error, moment)
            self._set_decision(retries.decide(rules, self.history, failure, moment))

    def _set_decision(self, decision: Decision) -> None:
        self.decision = decision
        self.retries_left = 0
        if decision.action is Action.RETRY:
            self.retries_left = (decision.retries_left or 0) + 1

    def decide_in_function(self, error: BaseException) -> Decided | None:
        """The value that the job's function returns instead of raising this error; None if it fails.

        A job that asks for another run, or is discarded, has not failed: callbacks, handlers and
        tracing libraries see no error.

        Raises:
            NoRetryLeft: the job has asked for a retry, and has none left.
        """
        if self.run_state is not None and error is self.run_state.interruption:
            return Decided(Decision(Action.INTERRUPT, reason=str(error)))
        if isinstance(error, Snooze):
            decision = Decision(Action.SNOOZE, error.seconds, retries_left=self.retries_left)
            return Decided(decision._replace(reason=texts.describe_error(error)))
        if isinstance(error, Discard):
            decision = Decision(Action.DISCARD)
        elif isinstance(error, RetryIn):
            decision = self._decide_retry_in(error)
        else:
            self.decide(error)
            if self.decision is None or self.decision.action is not Action.DISCARD:
                return None
            decision = self.decision
        trace = "".join(texts.format_exception(type(error), error, error.__traceback__))
        return Decided(decision._replace(reason=trace), error)

    def _decide_retry_in(self, error: RetryIn) -> Decision:
        rules = None
        reason = ""
        decision = Decision(Action.FAIL, retries_left=0)
        try:
            rules = self.retry_rules()
        except ValueError as problem:
            reason = str(problem)
        if rules is not None:
            moment = time.time()
            names = exceptions.failure_of(error, moment).names
            decision = retries.decide_retry_in(rules, self.history, names, error.seconds, moment)
        elif (left := self.retries_left or 0) > 0 and not reason:
            at_front = self.enqueue_at_front_on_retry
            decision = Decision(Action.RETRY, error.seconds, at_front, "", left - 1)
        if decision.action is Action.FAIL:
            self._set_decision(decision)
            raise NoRetryLeft(reason or retries.why_no_retry(rules, self.history)) from error
        return decision

    def wants_retry(self) -> bool:
        """Whether the failed job is retried."""
        if self.decision is None:
            return (self.retries_left or 0) > 0
        return self.decision.action is Action.RETRY

    # Writing

    def record_attempt(self, kind: Result.Type, pipeline: Any) -> None:
        """Add this run to the job's results."""
        Result.create(
            self,
            kind,
            self.failure_ttl,
            exc_string=self.traceback,
            worker_name=self.worker_name or "",
            pipeline=pipeline,
            execution_id=self.execution and self.execution.id,
            execution_started_at=self.started_at,
            execution_ended_at=self.ended_at,
        )

    def run_again(self, decision: Decision, queue: Any, pipeline: Any) -> None:
        """Enqueue the next run of a decision to retry or to snooze."""
        if decision.history:
            self.policy_fields = {**self.policy_fields, "rqjobs_retries": decision.history}
        self.retries_left = decision.retries_left
        if decision.delay:
            self.set_status(JobStatus.SCHEDULED)
            moment = now() + timedelta(seconds=decision.delay)
            queue.schedule_job(self, moment, pipeline=pipeline)
        else:
            queue._enqueue_job(self, pipeline=pipeline, at_front=decision.at_front)
        self.log.info(
            "Job %s: runs again in %.1f s (%s)", self.id, decision.delay, decision.action.value
        )

    def discard(self, pipeline: Any) -> None:
        """End the job as a canceled one that was discarded, kept as long as a failed one."""
        ttl = self.failure_ttl
        if ttl is None:
            ttl = DEFAULT_FAILURE_TTL
        self.policy_fields = {**self.policy_fields, "rqjobs_ending": "discarded"}
        self.set_status(JobStatus.CANCELED, pipeline=pipeline)
        self.save(pipeline=pipeline)
        self.cleanup(ttl, pipeline=pipeline, remove_from_queue=False)
        if ttl == 0:  # RQ has deleted the job
            return
        moment = now().timestamp()
        canceled = keys.registry("canceled", self.origin)
        expiry = keys.canceled_expiry(self.origin)
        pipeline.zadd(canceled, {self.id: int(moment)})
        if ttl > 0:
            pipeline.zadd(expiry, {self.id: moment + ttl})
        self._remove_expired(canceled, expiry, moment, pipeline)
        self.record_attempt(Result.Type.STOPPED, pipeline)

    def _remove_expired(self, canceled: str, expiry: str, moment: float, pipeline: Any) -> None:
        """Remove some discarded jobs that are gone: RQ never removes its canceled jobs."""
        over = self.connection.zrangebyscore(expiry, "-inf", moment, start=0, num=EXPIRED_MAX_JOBS)
        for job_id in over:
            if not self.connection.exists(keys.job(keys.decode(job_id))):
                pipeline.zrem(canceled, job_id)
            pipeline.zrem(expiry, job_id)
