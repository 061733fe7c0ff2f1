"""The horse: the long-lived child that claims jobs, runs them, and settles them.

1. A claim takes the jobs of the next few milliseconds, in one round trip.
2. The horse runs the first one. It writes the tokens of the others into the prefetch pipe.
3. Each outcome is sent at once. Its reply is read with the reply to the next claim.
4. Before the next job the horse takes its token from the pipe, unless the parent has released it.
5. Without a job, the horse waits on all of its queues (`QueueListener`).
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import socket
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis
import rq
from rq.executions import Execution
from rq.logutils import blue, green
from rq.worker import DequeueStrategy

from rqjobs import config, passed_results, processes, texts
from rqjobs.broker import keys, leases, pauses, recovery, transitions
from rqjobs.broker.scripts import CLAIM, RELEASE
from rqjobs.broker.transitions import Claim
from rqjobs.connection import is_transient
from rqjobs.inherited_resources import InheritedResources
from rqjobs.instrumentation import run_isolated
from rqjobs.job_metrics import Outcome
from rqjobs.maintenance import sweep
from rqjobs.queues import Queue
from rqjobs.worker import job_processes
from rqjobs.worker.ack_pipeline import Ack, AckPipeline
from rqjobs.worker.leftovers import Leftovers
from rqjobs.worker.listener import BLOCK_SECONDS, QueueListener
from rqjobs.worker.log_capture import LogCapture
from rqjobs.worker.prefetch import PrefetchPipe
from rqjobs.worker.retry import retry_until_answered
from rqjobs.worker.settle_reply import SettleReply
from rqjobs.worker.settlement import SettlementMixin
from rqjobs.worker.shared_state import NO_KILL_AFTER, ExitReason, HorsePhase, HorseState

# The jobs of one claim take about this long, at the present pace.
BATCH_SECONDS = 0.005
CLAIM_BATCH_MAX_JOBS = 32
# A job that waits longer behind others of its batch is released.
MAX_PREFETCH_WAIT_SECONDS = 0.04
MEMORY_CHECK_SECONDS = 0.1  # between two measurements of the horse's memory
GROWN_LOOP_MIN_SECONDS = 60.0  # a younger job is not interrupted because its horse has grown
LEASE_WAIT_SECONDS = 0.2  # before the next claim of a worker whose lease has expired
SUSPENDED_WAIT_SECONDS = 1.0  # between two claims while RQ is suspended, or the worker is quiet
PAUSED_WAIT_SECONDS = 1.0  # the longest wait for a job while anything is paused


@dataclass
class Limits:
    """When a horse has done enough, and its worker with it. None is no limit."""

    burst: bool = False  # end when the queues are empty
    max_jobs: int | None = None
    max_idle_time: int | None = None  # seconds
    max_growth: int = 0  # bytes by which the horse may grow; 0 is no limit


class _StopRequested(Exception):
    """The parent has asked the horse to stop while Redis does not answer."""


class Horse:
    """Claims, runs and settles jobs until a limit is reached or the parent asks it to stop."""

    def __init__(
        self,
        worker: SettlementMixin,
        state: HorseState,
        control: socket.socket,
        limits: Limits,
        prefetch: PrefetchPipe,
        inherited: InheritedResources,
    ):
        self.worker = worker
        self.state = state
        self.control = control
        self.limits = limits
        self.prefetch = prefetch
        self.inherited = inherited
        self.client = worker.client
        self.listener = QueueListener(self.client, keys.claims(worker.name))
        self.acks = worker.acks = AckPipeline(self.client)
        worker.own_pid = os.getpid()
        # RQ's `pop` deletes an empty stack, and the next job would build it again.
        rq.job._job_stack.push(None)
        # RQ's methods take an execution; `SettlementMixin.record` makes the real one.
        self.placeholder_execution = Execution("", "", self.client)
        self.settings = config.current()
        self.queues: dict[str, Queue] = {}
        self.paused: frozenset[str] = frozenset()  # queues and functions, by the last claim
        self.seconds_per_job = BATCH_SECONDS  # a running mean
        self.reaper = job_processes.Reaper()
        self.leftovers = Leftovers()
        self.memory_at_start = processes.memory_bytes()
        self.measured_at = time.monotonic()
        self.job_began = 0.0  # monotonic
        self.has_outgrown = False  # which has ended a loop
        self.has_new_jobs = False  # jobs may have been enqueued since the last claim
        self.job_log = worker.job_log = self._capture_logs()

    def _capture_logs(self) -> LogCapture | None:
        buffer = self.worker.log_buffer
        if buffer is None:
            return None
        capture = LogCapture(self.client, buffer)
        capture.install()
        return capture

    def run(self) -> ExitReason:
        """Work until there is a reason to end; returns it."""
        self._register()
        idle_since = time.monotonic()
        has_woken = False
        while True:
            claims = self._claim()
            if self.state.stop:
                return self._exit(ExitReason.STOPPED)
            if claims:
                self._run_batch(claims)
                if reason := self._reached_limit():
                    return self._exit(reason)
                self.reaper.reap()
                idle_since = time.monotonic()
                has_woken = False
            elif self.has_new_jobs:
                self.has_new_jobs = False
            elif self.limits.burst:
                if has_woken or not self._wake_waiting():
                    return self._exit(ExitReason.DRAINED)
                has_woken = True  # if they are not for this worker, it ends
            elif claims is None:
                self._pause(SUSPENDED_WAIT_SECONDS)
            elif not self._wait_for_job(idle_since):
                return self._exit(ExitReason.IDLE)

    def _register(self) -> None:
        """Store where this process runs: a worker is provably gone if it and its parent are."""
        pid = os.getpid()
        worker = self.worker
        self._call(
            *leases.horse_registration(worker.name, worker.process, pid, processes.start_time(pid))
        )

    def _claim(self) -> list[Claim] | None:
        """Claim a batch of jobs; none if the parent asks to stop. None while RQ is suspended, or
        the worker is quiet.
        """
        worker = self.worker
        while not self.state.stop:
            if self.state.quiet:
                self._take_none()
                return None
            # Their outcomes are not confirmed, so they are in the claims still. The claim would
            # return them as unknown jobs.
            held = [ack.claim.job_id for ack in self.acks.pending]
            arguments = transitions.claim_arguments(
                worker.name, self._queue_names(), self._batch_size(), held, worker.process
            )
            reply = self._call(*CLAIM.call(*arguments))
            try:
                claims = transitions.read_claims(reply) if reply else []
                self.paused = transitions.read_paused(reply) if reply else frozenset()
                if claims or not reply or not transitions.is_cut_short(reply):
                    return claims
            except leases.NoLease:
                self._pause(LEASE_WAIT_SECONDS)
            except transitions.Suspended:
                with contextlib.suppress(redis.RedisError):  # the next claim tries it again
                    transitions.release_all(self.client, worker.name, worker.process)
                self.state.write(HorsePhase.SUSPENDED)
                return None
        return []

    def _take_none(self) -> None:
        """Settle all outcomes, and give back what a blocking pop has delivered meanwhile."""
        if self.acks.pending or self.listener.blocking():
            self._flush_acks()
        with contextlib.suppress(redis.RedisError):  # the next claim tries it again
            transitions.release_all(self.client, self.worker.name, self.worker.process)
        self.state.write(HorsePhase.QUIET)

    def _queue_names(self) -> list[str]:
        return [queue.name for queue in self.worker._ordered_queues]

    def _batch_size(self) -> int:
        """The number of jobs to claim at once: those of the next few milliseconds."""
        if self.worker._dequeue_strategy != DequeueStrategy.DEFAULT:
            return 1
        limits = (self.settings.max_jobs_per_child or None, self.limits.max_jobs)
        left = [limit - self.state.done for limit in limits if limit is not None]
        at_present_pace = int(BATCH_SECONDS / self.seconds_per_job)
        return max(1, min(CLAIM_BATCH_MAX_JOBS, at_present_pace, *left))

    def _wait_for_job(self, idle_since: float) -> bool:
        """Wait until a job may have arrived. False if the horse has been idle for too long."""
        seconds: float = BLOCK_SECONDS
        if self.limits.max_idle_time is not None:
            seconds = self.limits.max_idle_time - (time.monotonic() - idle_since)
            if seconds <= 0:
                return False
        self.reaper.reap()
        names = self._queue_names()
        open_names = names
        if self.paused:
            open_names = [name for name in names if keys.paused_queue(name) not in self.paused]
        if open_names != names:  # a resumed queue is noticed by the next claim only
            names = open_names
            seconds = min(seconds, PAUSED_WAIT_SECONDS)
        if not names:
            self._pause(seconds)
            return True
        names.sort(key=lambda name: name not in self.queues)  # queues that had jobs come first
        queue_keys = [keys.queue(name) for name in names]
        self.listener.wait(queue_keys, min(seconds, BLOCK_SECONDS), self.control)
        return True

    def _wake_waiting(self) -> bool:
        """Wake the jobs that wait for a token of their rate which they can have now, and enqueue
        those behind jobs that have expired. Returns whether there are any.

        There may be no scheduler, and the next sweep is later than the end of a burst.
        """
        try:
            enqueued = sweep.enqueue_waiting_dependents(self.client)
            return recovery.wake_due(self.client).jobs + enqueued > 0
        except redis.RedisError:  # they wait for another worker
            return False

    # Redis

    def _flush_acks(self) -> None:
        """Return when Redis has answered all acks."""
        self._call()

    def _call(self, *command: Any) -> Any:
        """Flush the acks, end the blocking pops and run `command`, until Redis answers all of it.

        Returns the reply. If the parent asks to stop while Redis does not answer, and no ack is
        pending, returns None. Permanent errors are raised.
        """
        try:
            return retry_until_answered(
                partial(self._call_once, command), self.client, self._wait_before_retry
            )
        except _StopRequested:
            return None
        except Exception:
            if self.acks.pending:
                # The horse ends here. This counts as a crash of the job, so that a job whose
                # outcome cannot be stored fails at last.
                self.worker.claim = self.acks.pending[-1].claim
                self.worker.report(HorsePhase.SETTLING)
            raise

    def _call_once(self, command: tuple[Any, ...]) -> Any:
        while True:
            self.state.write(HorsePhase.IDLE)  # each try shows that the horse is responsive
            unblock = self.listener.unblock_commands()
            commands = [command] if command else []
            acks, replies = self.acks.flush(*unblock, *commands)
            errors = [self._handle_ack(ack, reply) for ack, reply in acks]
            if self.worker.counts:
                self.worker.counts.write()
            for error in [*errors, *replies[len(unblock) :]]:
                if isinstance(error, Exception):
                    raise error
            self.state.away = 0.0
            if self.listener.all_unblocked(replies[: len(unblock)]):
                return replies[-1] if command else None
            # A pop that had not ended may have delivered a job after the command, so ask again.

    def _wait_before_retry(self, error: Exception, failures: int, seconds: float) -> None:
        # A master that refuses writes may have become a replica; a new connection finds the master.
        self.acks.close()
        self.worker.wait_before_retry(error, failures, seconds)
        if self.state.stop and not self.acks.pending:
            raise _StopRequested

    def _handle_ack(self, ack: Ack, reply: Any) -> Exception | None:
        """Take in the reply to an ack; returns the error after which it has to be sent again."""
        if isinstance(reply, Exception):
            if is_transient(reply):
                self.acks.pending.append(ack)
                return reply
            self.worker.claim = ack.claim  # a key has the wrong type; RQ's code fails the job
            ack.fallback()
            self.state.write(HorsePhase.IDLE)
            return None
        settled = SettleReply.read(reply)
        if settled.is_recorded:  # now, or by an ack whose reply was lost
            self.state.succeeded += 1
            self.state.worked += ack.seconds
            if self.worker.counts:
                self.worker.counts.collect(
                    ack.function, ack.claim.queue, Outcome.FINISHED, ack.waited, ack.seconds
                )
        self.worker.log_settlement(ack.claim.job_id, settled)
        if settled is SettleReply.DEPENDENTS_LEFT:  # they were enqueued after the claim
            self.has_new_jobs = True
        return None

    # Jobs

    def _run_batch(self, claims: list[Claim]) -> None:
        """Run the first job, and each of the others unless the parent has released it.

        The parent watches the time of the running job; this method watches that of the batch.
        """
        began = time.monotonic()
        prefetched = {claim.token: claim for claim in claims[1:]}
        if prefetched:
            self.prefetch.put(prefetched)
        claim = claims[0]
        while not self.state.stop and not self.leftovers.are_final:
            self._run_and_time(claim)
            if not prefetched:
                return
            # Else a slow next job would delay this outcome; if the horse died, the job would repeat.
            if self.acks.has_unsent:
                self._flush_acks()
            if time.monotonic() - began > MAX_PREFETCH_WAIT_SECONDS:
                self._release_prefetched()
                return
            token = self.prefetch.get()
            if not token:
                return
            claim = prefetched.pop(token)

    def _release_prefetched(self) -> None:
        """Put the jobs of this batch that have not begun back into their queues."""
        tokens = iter(self.prefetch.get, "")
        self._call(*RELEASE.call(*transitions.release_tokens_arguments(self.worker.name, tokens)))

    def _run_and_time(self, claim: Claim) -> None:
        self.job_began = time.monotonic()
        self._run_job(claim)
        seconds = time.monotonic() - self.job_began
        # A single slow measurement may be a wait for a processor.
        seconds = min(seconds, 4 * self.seconds_per_job)
        self.seconds_per_job += (seconds - self.seconds_per_job) / 5

    def _run_job(self, claim: Claim) -> None:
        """Run and settle a job. Its exceptions end here."""
        worker = self.worker
        if claim.queue not in self.queues:
            self._add_queue(claim.queue)
        queue = self.queues[claim.queue]
        worker.claim = claim
        # A crash counts from here on: the job's hash may be the cause.
        worker.report(HorsePhase.RUNNING, _deadline(claim), _kill_after(claim))
        job = self._read_job(claim)
        if job is None or (self.paused and self._park_if_paused(claim, job)):
            return
        if passed_results.FLOW_FIELD in job.policy_fields and not self._fetch_passed(claim, job):
            return
        if worker._dequeue_strategy != DequeueStrategy.DEFAULT:
            self._reorder_queues(queue)
        worker.execution = self.placeholder_execution
        job.worker_name = worker.name
        job.claim_token = claim.token
        job.stop_reason = self._stop_reason
        job._status = rq.job.JobStatus.STARTED
        job.redis_server_version = queue.redis_server_version
        if worker.log.isEnabledFor(logging.INFO):
            self._log_start(job, queue)
        self.inherited.reset()
        if self.job_log:
            self.job_log.begin(claim, job.secrets() if self.settings.hide else [])
        run_isolated(worker.perform_job, job, queue)
        if self.job_log and self.job_log.claim:  # no outcome has ended it
            self.job_log.end()
        self.leftovers.undo()
        self.inherited.reset()
        if worker.last_settled_token != claim.token:
            name = type(worker).__name__
            self._fail(
                claim,
                f"{name}.perform_job returned without recording an outcome; let it call "
                f"super().perform_job",
            )
        self.state.done += 1

    def _stop_reason(self) -> str:
        """Why a loop of the running job is to end between two rows; "" if it is to go on.

        A horse that has grown is replaced. The job continues in the next one, so it must have made
        some way in this one.
        """
        if self.state.stop:
            return "its worker stops"
        if not self.limits.max_growth:
            return ""
        if time.monotonic() - self.job_began < GROWN_LOOP_MIN_SECONDS or not self._has_grown():
            return ""
        self.has_outgrown = True
        return "its process has grown, and is replaced"

    def _add_queue(self, name: str) -> None:
        queue = self.worker.queue_class(name, connection=self.worker.connection)
        queue.redis_server_version = self.worker.get_redis_server_version()
        self.queues[name] = queue

    def _read_job(self, claim: Claim) -> Any:
        """The claimed job; None if its hash cannot be read, which fails the job."""
        try:
            job = self.worker.job_class.from_hash(
                claim.job_id, claim.fields, self.worker.connection
            )
            job.origin = claim.queue
            self.leftovers.set_job_id(job.id)
        except Exception as error:
            reason = texts.describe_error(error)
            self._fail(claim, f"The job's hash in Redis cannot be read: {reason}")
            return None
        return job

    def _park_if_paused(self, claim: Claim, job: Any) -> bool:
        """Let the job wait if its function is paused. Returns whether the job left the claims."""
        try:
            function = str(job.func_name)
        except Exception:  # the run will fail the job with this error
            return False
        if keys.paused_function(function) not in self.paused:
            return False
        reply = self._call(*pauses.park_command(self.worker.name, claim, function))
        if reply is None:  # the parent asks to stop, and releases the job
            return True
        if reply == b"not paused":
            self.worker.report(HorsePhase.RUNNING, _deadline(claim), _kill_after(claim))
            return False
        if reply != b"parked":
            self.worker.log_settlement(claim.job_id, SettleReply.read(reply))
        return True

    def _fetch_passed(self, claim: Claim, job: Any) -> bool:
        """Fetch what a job takes from other jobs. False if the parent asks to stop meanwhile; then
        it releases the job.
        """
        fetch = partial(passed_results.fetch, self.client, job)
        try:
            job.passed_on = retry_until_answered(fetch, self.client, self._wait_before_retry)
        except _StopRequested:
            return False
        except Exception:  # the run will fail the job with this error
            pass
        self.worker.report(HorsePhase.RUNNING, _deadline(claim), _kill_after(claim))
        return True

    def _reorder_queues(self, queue: Queue) -> None:
        """Let RQ's dequeue strategy (random, round robin) put the queues into their next order."""
        same_name = (own for own in self.worker.queues if own.name == queue.name)
        self.worker.reorder_queues(reference_queue=next(same_name, queue))

    def _log_start(self, job: Any, queue: Queue) -> None:
        shown = job.id
        if self.worker.log_job_description:
            shown = f"{blue(str(job.description))} ({job.id})"
        self.worker.log.info("Worker %s: %s: %s", self.worker.name, green(queue.name), shown)

    def _fail(self, claim: Claim, message: str) -> None:
        """Fail a job for a reason that is not its function's."""
        worker = self.worker
        worker.log.error("Worker %s: job %s: %s", worker.name, claim.job_id, message)
        worker.log_settlement(claim.job_id, worker.fail_job(claim, message))

    # The end

    def _reached_limit(self) -> ExitReason | None:
        """The limit that the horse has reached. After some of them the parent spawns another."""
        done = self.state.done
        if self.limits.max_jobs is not None and done >= self.limits.max_jobs:
            return ExitReason.MAX_JOBS
        if self.leftovers.are_final:  # a job has left something that cannot be undone
            return ExitReason.REPLACED
        if self.settings.max_jobs_per_child and done >= self.settings.max_jobs_per_child:
            return ExitReason.REPLACED
        if self.has_outgrown or (self.limits.max_growth and self._has_grown()):
            return ExitReason.GROWN
        return None

    def _has_grown(self) -> bool:
        """Whether the horse has grown by more than it may; measured every tenth of a second."""
        now = time.monotonic()
        if now - self.measured_at < MEMORY_CHECK_SECONDS:
            return False
        self.measured_at = now
        allowed = self.memory_at_start + self.limits.max_growth
        if processes.memory_bytes() <= allowed:
            return False
        processes.trim_memory()  # free memory that the allocator keeps is not growth
        return processes.memory_bytes() > allowed

    def _exit(self, reason: ExitReason) -> ExitReason:
        """Settle all outcomes, end the pops, and report the reason.

        The parent releases the other claims, or the next horse adopts them.
        """
        if self.acks.pending or self.listener.blocking():
            self._flush_acks()
        self.state.write(HorsePhase.LEAVING, reason)
        return reason

    def _pause(self, seconds: float) -> None:
        """Wait, or return early at a signal of the parent."""
        processes.readable([self.control], seconds)
        self.listener.drain_control(self.control)


def _deadline(claim: Claim) -> float:
    """The monotonic time at which the job's time limit expires; 0 if it has none."""
    try:
        timeout = int(claim.fields[b"timeout"]) or Queue.DEFAULT_TIMEOUT
    except (KeyError, ValueError):
        timeout = Queue.DEFAULT_TIMEOUT
    if timeout < 0:
        return 0.0
    return time.monotonic() + timeout


def _kill_after(claim: Claim) -> float:
    """Seconds after the job's time limit at which it is killed; `NO_KILL_AFTER` if it has none."""
    stored = claim.fields.get(b"rqjobs_kill_after")
    if not stored:
        return NO_KILL_AFTER
    try:
        return float(stored)
    except ValueError:
        return NO_KILL_AFTER


def begin_child(
    worker: SettlementMixin, state: HorseState, parent: int, inherited: InheritedResources
) -> None:
    """Make a child of the parent a process that ends with the parent and shares nothing with it.

    Args:
        state: where the child reports its progress.
        parent: the process id of the parent. If it has died already, the child exits.
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
    """Run a horse in a child that was just forked. Never returns."""
    code = 1
    try:
        begin_child(worker, state, parent, inherited)
        gc.freeze()  # garbage collection would write on, and so copy, the parent's pages
        Horse(worker, state, control, limits, prefetch, inherited).run()
        code = 0
        job_processes.run_exit_functions()
    except BaseException:
        worker.log.error("Worker %s: its horse failed", worker.name, exc_info=True)
    finally:
        job_processes.flush_output()
        os._exit(code)
