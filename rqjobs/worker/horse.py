"""The horse: the long-lived child that claims jobs, runs them, and settles them."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import socket
import time
from dataclasses import dataclass
from typing import Any

import redis
import rq
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import NoScriptError
from rq.executions import Execution
from rq.logutils import blue, green
from rq.worker import DequeueStrategy

from rqjobs import config, processes, texts
from rqjobs.broker import keys, leases, transitions
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import CLAIM, RELEASE, load_scripts
from rqjobs.broker.transitions import Claim
from rqjobs.connection import is_transient
from rqjobs.inherited_resources import InheritedResources
from rqjobs.instrumentation import run_isolated
from rqjobs.queues import Queue
from rqjobs.worker import job_processes, listener
from rqjobs.worker.ack_pipeline import Ack, AckPipeline
from rqjobs.worker.leftovers import Leftovers
from rqjobs.worker.prefetch import PrefetchPipe
from rqjobs.worker.settlement import SettlementMixin
from rqjobs.worker.shared_state import ExitReason, HorsePhase, HorseState

BATCH_SECONDS = (
    0.005  # seconds that the jobs which are claimed at once may take, by their pace so far
)
CLAIM_BATCH_MAX_JOBS = 32  # jobs
# A job that waits longer behind others of its batch is released.
MAX_PREFETCH_WAIT_SECONDS = 0.04
MEMORY_CHECK_SECONDS = 0.1  # between two looks at how large the horse is


@dataclass
class Limits:
    """When a horse, and with it its worker, has done enough. Seconds and jobs; None is no end. And
    by how many bytes the horse may grow; 0 is no limit.
    """

    burst: bool = False
    max_jobs: int | None = None
    max_idle_time: int | None = None
    max_growth: int = 0


class Horse:
    """Claims, runs and settles job after job, until its limits, its parent, or its size say enough."""

    def __init__(
        self,
        worker: SettlementMixin,
        state: HorseState,
        control: socket.socket,
        limits: Limits,
        prefetch: PrefetchPipe,
        inherited: InheritedResources,
    ):
        self.worker, self.state, self.control, self.limits, self.prefetch = (
            worker,
            state,
            control,
            limits,
            prefetch,
        )
        self.inherited = inherited
        self.client = worker.client
        self.waits = listener.QueueListener(self.client, keys.claims(worker.name))
        self.outbox = worker.outbox = AckPipeline(self.client)
        worker.horse = os.getpid()
        rq.job._job_stack.push(
            None
        )  # under all jobs: RQ's `pop` throws an empty stack away, to be built again
        self.some_execution = Execution(
            "", "", self.client
        )  # RQ asks for one; `record` makes the right one
        self.settings = config.current()
        self.queues: dict[str, Queue] = {}
        self.pace = BATCH_SECONDS  # seconds that a job takes, by a running mean
        self.reaper, self.leftovers = job_processes.Reaper(), Leftovers()
        self.memory, self.measured = (
            processes.memory_bytes(),
            time.monotonic(),
        )  # bytes that it began with; the last look

    def run(self) -> ExitReason:
        """Claim and run jobs until there is a reason to end. Returns the reason."""
        me = os.getpid()
        self._ask(
            *leases.horse_registration(
                self.worker.name, self.worker.process, me, processes.start_time(me)
            )
        )
        idle_since = time.monotonic()
        while True:
            claims = self._claim()
            if self.state.stop:
                return self._exit(ExitReason.STOPPED)
            if claims:
                self._perform_all(claims)
                if self.limits.max_jobs is not None and self.state.done >= self.limits.max_jobs:
                    return self._exit(ExitReason.MAX_JOBS)
                if spent := self._spent():
                    return self._exit(spent)
                self.reaper.reap()
                idle_since = time.monotonic()
            elif self.limits.burst:
                return self._exit(ExitReason.DRAINED)
            elif claims is None:  # suspended
                self._pause(1.0)
            else:
                left = (
                    listener.BLOCK_SECONDS
                    if self.limits.max_idle_time is None
                    else (self.limits.max_idle_time - (time.monotonic() - idle_since))
                )
                if left <= 0:
                    return self._exit(ExitReason.IDLE)
                self.reaper.reap()
                queues = [queue.name for queue in self.worker._ordered_queues]
                queues.sort(key=lambda name: name not in self.queues)  # first those that had jobs
                self.waits.wait(
                    [keys.queue(name) for name in queues],
                    min(left, listener.BLOCK_SECONDS),
                    self.control,
                )

    def _claim(self) -> list[Claim] | None:
        """Claim as many jobs as will not take long. None while RQ is suspended."""
        while not self.state.stop:
            held = [
                outcome.claim.job_id for outcome in self.outbox.outcomes
            ]  # should they not settle
            queues = [queue.name for queue in self.worker._ordered_queues]
            reply = self._ask(
                *CLAIM.call(
                    *transitions.claim_arguments(
                        self.worker.name, queues, self._room(), held, self.worker.process
                    )
                )
            )
            try:
                return transitions.read_claims(reply) if reply else []
            except leases.NoLease:
                self._pause(0.2)
            except transitions.Suspended:
                with contextlib.suppress(redis.RedisError):  # it is asked for again
                    transitions.release_all(self.client, self.worker.name, self.worker.process)
                self.state.write(HorsePhase.SUSPENDED)
                return None
        return []

    def _room(self) -> int:
        """How many jobs to claim at once: those of the next few milliseconds."""
        if self.worker._dequeue_strategy != DequeueStrategy.DEFAULT:
            return 1
        limits = (self.settings.max_jobs_per_child or None, self.limits.max_jobs)
        left = [limit - self.state.done for limit in limits if limit is not None]
        return max(1, min(CLAIM_BATCH_MAX_JOBS, int(BATCH_SECONDS / self.pace), *left))

    def _ask(self, *command: Any) -> Any:
        """Bring all outcomes to Redis, end all waits, and ask `command`, in one round trip; until
        Redis has answered, or, once nothing is left to be settled, until it is time to stop.
        Returns its reply.
        """
        backoff, failures = ExponentialWithJitterBackoff(cap=3, base=0.05), 0
        while True:
            self.state.write(HorsePhase.IDLE)  # at each try: who waits for Redis is not stuck
            try:
                ends = self.waits.ends()
                answered, replies = self.outbox.exchange(*ends, *[command] if command else [])
                trouble = [self._told(*one) for one in answered]
                for error in [*trouble, *replies[len(ends) :]]:
                    if isinstance(error, Exception):
                        raise error
                self.state.away = 0.0
                if self.waits.ended(replies[: len(ends)]):
                    return replies[-1] if command else None
                continue
            except NoScriptError:
                load_scripts(self.client)
            except Exception as error:
                if not is_transient(error):
                    if (
                        self.outbox.outcomes
                    ):  # what cannot be recorded counts as a death, or it would go on for ever
                        self.worker.claim = self.outbox.outcomes[-1].claim
                        self.worker.report(HorsePhase.SETTLING)
                    raise
                self.outbox.close()  # who refuses may be a master no more; the next connection asks who is
                self.worker.wait_before_retry(error, failures, backoff.compute(failures))
                failures += 1
            if self.state.stop and not self.outbox.outcomes:
                return None

    def _told(self, outcome: Ack, reply: Any) -> Exception | None:
        """Take in the reply to an outcome; returns the error for which it has to be sent again, if
        there is one.
        """
        if isinstance(reply, Exception) and is_transient(reply):
            self.outbox.outcomes.append(outcome)
            return reply
        if isinstance(
            reply, Exception
        ):  # a key of the wrong type; RQ's own way says so, and the job is buried
            self.worker.claim = outcome.claim
            outcome.longhand()
            self.state.write(HorsePhase.IDLE)
            return None
        if decode(reply) in ("settled", "dependents left"):
            self.state.succeeded += 1
            self.state.worked += outcome.took
        self.worker.log_settlement(outcome.claim.job_id, decode(reply))
        return None

    def _perform_all(self, claims: list[Claim]) -> None:
        """Run the first at once, and each of the others if the parent did not give it back
        meanwhile.

        The parent looks how long one job takes; here is seen how long all of them do.
        """
        first, waiting = time.monotonic(), {claim.token: claim for claim in claims[1:]}
        if waiting:
            self.prefetch.put(waiting)
        claim: Claim | None = claims[0]
        while claim and not self.state.stop and not self.leftovers.are_final:
            began = time.monotonic()
            self._perform(claim)
            took = min(
                time.monotonic() - began, 4 * self.pace
            )  # who waits for a processor once is not slow
            self.pace += (took - self.pace) / 5
            if (
                waiting and self.outbox.behind
            ):  # or it would wait behind a slow job, and be repeated with it
                self._ask()
            if waiting and time.monotonic() - first > MAX_PREFETCH_WAIT_SECONDS:
                rest = iter(self.prefetch.get, "")
                self._ask(
                    *RELEASE.call(*transitions.release_tokens_arguments(self.worker.name, rest))
                )
                return
            own = waiting and self.prefetch.get()
            claim = waiting.pop(own) if own else None

    def _perform(self, claim: Claim) -> None:
        worker = self.worker
        worker.claim = claim
        if claim.queue not in self.queues:
            self.queues[claim.queue] = worker.queue_class(claim.queue, connection=worker.connection)
            self.queues[claim.queue].redis_server_version = worker.get_redis_server_version()
        queue = self.queues[claim.queue]
        worker.report(
            HorsePhase.RUNNING, _deadline(claim)
        )  # from here on a death counts; its hash may be what kills us
        try:
            job = worker.job_class.from_hash(claim.job_id, claim.fields, worker.connection)
            job.origin = claim.queue
            os.environ["RQ_JOB_ID"] = job.id
        except Exception as error:
            message = f"The job's hash in Redis cannot be read: {texts.describe_error(error)}"
            worker.log.error("Worker %s: job %s: %s", worker.name, claim.job_id, message)
            worker.log_settlement(claim.job_id, worker.fail_job(claim, message))
            return
        if worker._dequeue_strategy != DequeueStrategy.DEFAULT:
            worker.reorder_queues(
                reference_queue=next((q for q in worker.queues if q.name == claim.queue), queue)
            )
        worker.execution = self.some_execution
        job.worker_name, job._status = worker.name, rq.job.JobStatus.STARTED
        job.redis_server_version = queue.redis_server_version
        if worker.log.isEnabledFor(logging.INFO):
            what = (
                f"{blue(str(job.description))} ({job.id})" if worker.log_job_description else job.id
            )
            worker.log.info("Worker %s: %s: %s", worker.name, green(queue.name), what)
        self.inherited.reset()
        run_isolated(worker.perform_job, job, queue)
        self.leftovers.undo()
        self.inherited.reset()
        if worker.handed_over != claim.token:
            self._fail_unsettled(claim)
        self.state.done += 1

    def _fail_unsettled(self, claim: Claim) -> None:
        worker = self.worker
        message = (
            f"{type(worker).__name__}.perform_job returned without recording an outcome; let it call "
            f"super().perform_job"
        )
        worker.log.error("Worker %s: job %s: %s", worker.name, claim.job_id, message)
        worker.log_settlement(claim.job_id, worker.fail_job(claim, message))

    def _spent(self) -> ExitReason | None:
        """Why a fresh horse is wanted, if it is: it ran as many jobs as it may, a job has left what
        cannot be undone, or it grew by more than it may.
        """
        if self.leftovers.are_final:
            return ExitReason.REPLACED
        if self.settings.max_jobs_per_child and self.state.done >= self.settings.max_jobs_per_child:
            return ExitReason.REPLACED
        limit, now = self.limits.max_growth, time.monotonic()
        if not limit or now - self.measured < MEMORY_CHECK_SECONDS:
            return None
        self.measured = now
        if processes.memory_bytes() - self.memory <= limit:
            return None
        processes.trim_memory()  # what is free, and not given back yet, is no growth
        if processes.memory_bytes() - self.memory > limit:
            return ExitReason.GROWN
        return None

    def _exit(self, reason: ExitReason) -> ExitReason:
        """Settle the jobs that ran, end the waits, and report the reason to the parent.

        Other jobs in the claims are released by the parent, or claimed by the next horse.
        """
        if self.outbox.outcomes or self.waits.open:
            self._ask()
        self.state.write(HorsePhase.LEAVING, reason)
        return reason

    def _pause(self, seconds: float) -> None:
        processes.readable([self.control], seconds)
        self.waits.hear(self.control)


def _deadline(claim: Claim) -> float:
    """When the job is to have ended, by the monotonic clock; 0 if it has no time limit."""
    try:
        timeout = int(claim.fields[b"timeout"]) or Queue.DEFAULT_TIMEOUT
    except (KeyError, ValueError):
        timeout = Queue.DEFAULT_TIMEOUT
    return time.monotonic() + timeout if timeout > 0 else 0.0


def begin_child(
    worker: SettlementMixin, state: HorseState, parent: int, inherited: InheritedResources
) -> None:
    """In a child that the worker's parent has just forked: it dies with the parent, and shares
    nothing else with it.
    """
    processes.die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    os.setpgrp()
    job_processes.detach_from_parent()
    inherited.renew()
    random.seed()
    worker._is_horse = True
    worker.shared_state = state


def run_horse_process(
    worker: SettlementMixin,
    state: HorseState,
    control: socket.socket,
    limits: Limits,
    prefetch: PrefetchPipe,
    parent: int,
    inherited: InheritedResources,
) -> None:
    """The life of the forked child: never returns."""
    code = 1
    try:
        begin_child(worker, state, parent, inherited)
        gc.freeze()  # what was loaded before never becomes garbage; looking at it would copy its pages
        Horse(worker, state, control, limits, prefetch, inherited).run()
        code = 0
        job_processes.run_exit_functions()
    except BaseException:
        worker.log.error("Worker %s: its horse failed", worker.name, exc_info=True)
    finally:
        job_processes.flush_output()
        os._exit(code)
