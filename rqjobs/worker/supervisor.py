"""The supervisor: how the worker's parent spawns, watches, kills and reaps its horse.

The parent is one thread, because a fork in a process with threads can deadlock. It reads the
horse's progress from shared memory (shared_state.py), which outlives the horse.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import redis
from rq.worker import WorkerStatus

from rqjobs import config, job_logs, processes
from rqjobs.broker import keys, leases, recovery, scripts, transitions
from rqjobs.broker.keys import decode
from rqjobs.broker.transitions import Claim
from rqjobs.inherited_resources import InheritedResources
from rqjobs.job_metrics import CountsSender, JobCounts
from rqjobs.maintenance import sweep
from rqjobs.worker import job_processes
from rqjobs.worker.finisher import Finisher, HorseDeath, failure_message
from rqjobs.worker.horse import MAX_PREFETCH_WAIT_SECONDS, Limits, begin_child, run_horse_process
from rqjobs.worker.log_buffer import LogBuffer
from rqjobs.worker.prefetch import PrefetchPipe
from rqjobs.worker.settlement import SettlementMixin, is_job
from rqjobs.worker.shared_state import (
    NO_KILL_AFTER,
    ExitReason,
    FunctionOutcome,
    HorsePhase,
    HorseSnapshot,
    HorseState,
)

# A job that crashed its horse waits this long, doubled with each crash.
CRASH_DELAY_SECONDS = 1.0
# Delay before the next horse when the last one lived for less than a second; doubled each time,
# up to the maximum.
MIN_RESPAWN_DELAY_SECONDS = 0.1
MAX_RESPAWN_DELAY_SECONDS = 5.0
# An idle horse that reports nothing for this long is replaced. One wait for Redis may take 16 s.
UNRESPONSIVE_SECONDS = 4 * leases.HEARTBEAT_SECONDS
# The same for a horse that settles: it may wait for Redis several times before it reports again.
UNRESPONSIVE_SETTLING_SECONDS = 3 * UNRESPONSIVE_SECONDS
# How much a horse may grow without RQJOBS_MAX_MEMORY_PER_CHILD.
GROWTH_BYTES = 2**30
# A horse that reaches its growth limit within fewer jobs loads libraries, and does not leak. The
# limit is doubled.
GROWTH_MIN_JOBS = 100
# No horse is spawned while this many finishers run: handlers that hang would fill the machine.
MAX_FINISHERS = 4
# A job that runs for less time is not asked for whether it was canceled.
CANCEL_CHECK_MIN_SECONDS = 1.0
READ_ATTEMPTS = 100  # a millisecond apart, of a state that the horse is writing; it takes 2 us
# Fields of a job that is settled in the place of its finisher.
FINISHED_FIELDS = ("failure_ttl", "data", "rqjobs_on_failed")

# In these phases the horse runs code of the user, within a deadline.
PHASES_WITH_DEADLINE = (HorsePhase.RUNNING, HorsePhase.AFTER)
STATUS_OF_PHASE = {
    HorsePhase.RUNNING: WorkerStatus.BUSY,
    HorsePhase.SETTLING: WorkerStatus.BUSY,
    HorsePhase.AFTER: WorkerStatus.BUSY,
    HorsePhase.SUSPENDED: WorkerStatus.SUSPENDED,
    HorsePhase.QUIET: WorkerStatus.SUSPENDED,  # RQ's word for a worker that takes no jobs
}


@dataclass
class HorseWatch:
    """The parent's observations of its horse, with times of the monotonic clock."""

    spawned_at: float = 0.0
    readable_at: float = field(default_factory=time.monotonic)  # last complete read of its state
    batch_seen_at: float = 0.0  # last sight of claimed jobs in the prefetch pipe
    token: str = ""  # of the claim that runs
    token_since: float = 0.0
    canceled_token: str = ""  # of the claim whose job was canceled while it ran
    canceled_at: float = 0.0  # when that was noticed


@dataclass(frozen=True)
class WorkerState:
    """The part of RQ's worker key that follows the horse, as it was last written.

    `status` None: the key may have lost it, so it is written again.
    """

    status: WorkerStatus | None = None
    job_id: str | None = None
    succeeded: int = 0  # jobs of this horse whose statistics have been added
    seconds_worked: float = 0.0  # by these jobs


class Supervisor(SettlementMixin):
    """The part of the worker's parent that deals with the horse.

    Overrides of RQ, besides those of `SettlementMixin`: get_current_job_id, kill_horse.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._parent_pid = os.getpid()
        self.horse_state: HorseState | None = None
        self.control: socket.socket | None = None  # wakes an idle horse
        self.prefetch: PrefetchPipe | None = None
        self.inherited: InheritedResources | None = None
        self._horse_start_time = ""
        self._horse_death = HorseDeath.CRASHED  # the cause, if the current horse dies
        self._watch = HorseWatch()
        self._respawn_at = 0.0
        self._respawn_delay = MIN_RESPAWN_DELAY_SECONDS  # seconds
        self._growth_bytes = GROWTH_BYTES
        self._finishers: list[Finisher] = []
        self._done_reason: ExitReason | None = None  # set when only finishers are left
        self._jobs_done = 0  # by earlier horses
        self._quiet_since = 0.0  # Unix seconds since when the worker takes no jobs; 0 if it does
        self._to_release: set[str] = set()  # tokens taken from the horse, not yet released in Redis
        self._published = WorkerState()
        self._published_at = 0.0
        self._disconnected_at = time.monotonic()  # when this process last failed to reach Redis
        counts = JobCounts(is_job)
        self.counts = counts
        self._counts_sender = CountsSender(counts)

    # Spawn

    def _horse_is_due(self) -> bool:
        """Whether a horse is to be spawned now."""
        if self.horse_pid or self._stop_requested or self._done_reason:
            return False
        if len(self._finishers) >= MAX_FINISHERS:
            return False
        if not all(finisher.has_settled for finisher in self._finishers):
            return False
        return time.monotonic() >= self._respawn_at

    def _spawn_horse(self, limits: Limits) -> None:
        """Fork a horse.

        If the system has no memory, process or descriptor for it, wait before the next attempt.
        """
        horse_limits = self._horse_limits(limits)
        self.inherited = self.inherited or InheritedResources()
        # Before the fork: else both processes copy the free pages, and write the buffered output.
        processes.trim_memory()
        job_processes.flush_output()
        with contextlib.ExitStack() as undo:
            try:
                state = HorseState()
                state.set_quiet(bool(self._quiet_since))
                prefetch = PrefetchPipe()
                undo.callback(prefetch.close)
                ours, theirs = socket.socketpair()
                self.function_outcome = self.function_outcome or FunctionOutcome()
                if config.current().job_log_level != "off":
                    self.log_buffer = self.log_buffer or LogBuffer()
                pid = os.fork()
            except OSError as error:
                self.log.error("Worker %s: cannot start a horse: %s", self.name, error)
                self._respawn_delay = MAX_RESPAWN_DELAY_SECONDS
                self._respawn_at = time.monotonic() + self._respawn_delay
                return
            if pid == 0:
                ours.close()
                run_horse_process(
                    self, state, theirs, horse_limits, prefetch, self._parent_pid, self.inherited
                )
            undo.pop_all()
        theirs.close()
        self._horse_pid = pid
        self._horse_start_time = processes.start_time(pid)
        self._horse_death = HorseDeath.CRASHED
        self.horse_state = state
        self.control = ours
        self.prefetch = prefetch
        self._to_release.clear()
        self._published = WorkerState()
        self._watch = HorseWatch(spawned_at=time.monotonic())

    def _horse_limits(self, limits: Limits) -> Limits:
        """The part of the worker's limits that is left for the next horse."""
        jobs_left = None
        if limits.max_jobs is not None:
            jobs_left = limits.max_jobs - self._jobs_done
        growth = config.current().max_memory_per_child
        if growth is None:
            growth = self._growth_bytes
        return Limits(limits.burst, jobs_left, limits.max_idle_time, growth)

    def _begin_child(self, state: HorseState) -> None:
        assert self.inherited
        begin_child(self, state, self._parent_pid, self.inherited)

    # Watch

    def _read_horse(self) -> HorseSnapshot | None:
        """The horse's progress.

        None if there was no horse yet, or if the horse is writing at this moment.
        """
        return self.horse_state.read() if self.horse_state else None

    def get_current_job_id(self, pipeline: Any = None) -> str | None:
        """The id of the running job, read from the shared state: RQ's worker key follows a second
        later.

        An object that only looks at a worker of another process reads RQ's worker key.
        """
        if self.horse_state is None:
            return super().get_current_job_id(pipeline)
        snapshot = self._read_horse()
        attempts = 1
        while snapshot is None and attempts < READ_ATTEMPTS:  # RQ drops a command for another job
            time.sleep(0.001)
            snapshot = self._read_horse()
            attempts += 1
        return snapshot.job_id if snapshot and snapshot.running else None

    def _publish_state(self) -> None:
        """Write status, current job and statistics into RQ's worker key, if they have changed."""
        snapshot = self._read_horse()
        if snapshot is None:
            return
        self._published_at = time.monotonic()
        self._counts_sender.send(self.client)
        before = self._published
        state = WorkerState(
            STATUS_OF_PHASE.get(snapshot.phase, WorkerStatus.IDLE),
            snapshot.job_id if snapshot.running else None,
            snapshot.succeeded,
            snapshot.worked,
        )
        if state == before:
            return
        with self.client.pipeline() as pipe:
            self.set_state(state.status, pipeline=pipe)  # type: ignore[arg-type]
            self.set_current_job_id(state.job_id, pipeline=pipe)
            if state.succeeded > before.succeeded:
                worked = state.seconds_worked - before.seconds_worked
                pipe.hincrby(self.key, "successful_job_count", state.succeeded - before.succeeded)
                pipe.hincrbyfloat(self.key, "total_working_time", worked)
            pipe.execute()
        self._published = state

    def _publish_again(self) -> None:
        """Have status and current job written again: the worker key may have lost them."""
        self._published = replace(self._published, status=None, job_id=None)

    def _release_prefetched(self) -> None:
        """Release the jobs that wait behind a slow job of their batch, and all of them when the
        worker stops.
        """
        snapshot = self._read_horse()
        if snapshot and snapshot.token != self._watch.token:
            self._watch.token = snapshot.token
            self._watch.token_since = snapshot.since
        is_slow = time.monotonic() - self._watch.token_since >= MAX_PREFETCH_WAIT_SECONDS
        if self.prefetch and snapshot and (self._stop_requested or is_slow):
            while token := self.prefetch.get():
                self._to_release.add(token)
        if self._to_release:
            # A failure is tried again. A job that the horse has claimed again by then has another
            # token.
            transitions.release_tokens(self.client, self.name, self._to_release)
            self._to_release.clear()

    def _release_unknown_claims(self) -> None:
        """Release claimed jobs that the horse does not know about, while it runs a job.

        A blocking pop whose connection has dropped on our side can still deliver a job, and the
        horse may be busy for hours.
        """
        snapshot = self._read_horse()
        if snapshot and snapshot.phase in PHASES_WITH_DEADLINE:
            for job_id in transitions.release_unknown(self.client, self.name, self.process):
                self.log.warning(
                    "Worker %s: released job %s, which was claimed but never started",
                    self.name,
                    job_id,
                )

    def _wake_horse(self) -> None:
        """End the horse's wait for jobs, so that it looks at the parent's requests."""
        if self.control:
            with contextlib.suppress(OSError):
                self.control.send(b"!")

    # Limits

    def _check_readable(self) -> HorseSnapshot | None:
        """The horse's progress, if there is a horse.

        Kills a horse that was frozen in the middle of a write.
        """
        snapshot = self._read_horse()
        if snapshot or not self.horse_pid:
            self._watch.readable_at = time.monotonic()
        elif time.monotonic() - self._watch.readable_at > UNRESPONSIVE_SECONDS:
            self._kill_horse(HorseDeath.UNRESPONSIVE)
        return snapshot if self.horse_pid else None

    def _check_timeout(self, snapshot: HorseSnapshot) -> None:
        """Kill a horse whose job runs on beyond its time limit, or after it was canceled, for
        `kill_after` seconds.
        """
        grace = snapshot.kill_after
        if grace == NO_KILL_AFTER:
            grace = config.current().shutdown_timeout
        now = time.monotonic()
        is_canceled = bool(snapshot.token) and snapshot.token == self._watch.canceled_token
        if is_canceled and now > self._watch.canceled_at + grace:
            death = HorseDeath.CANCELED
        elif snapshot.deadline and now > snapshot.deadline + grace:
            death = HorseDeath.TIMED_OUT
        else:
            return
        paused = self._pause_and_read()  # the job may have ended in this moment
        if paused and paused.token == snapshot.token and paused.deadline == snapshot.deadline:
            if death is HorseDeath.CANCELED:
                self.log.warning(
                    "Worker %s: killing the horse: job %s was canceled, and went on for %g s",
                    self.name,
                    snapshot.job_id,
                    grace,
                )
            self._kill_horse(death)
        else:
            os.kill(self.horse_pid, signal.SIGCONT)

    def _check_canceled(self) -> None:
        """Note when the running job was canceled. Short jobs are not asked for."""
        snapshot = self._read_horse()
        if snapshot is None or snapshot.phase is not HorsePhase.RUNNING:
            return
        if time.monotonic() - self._watch.token_since < CANCEL_CHECK_MIN_SECONDS:
            return
        if snapshot.token == self._watch.canceled_token:
            return
        command = ("HGET", keys.job(snapshot.job_id), "status")
        (status,) = scripts.read_together(self.client, [command])
        if status == b"canceled":
            self._watch.canceled_token = snapshot.token
            self._watch.canceled_at = time.monotonic()

    def _check_responsive(self, snapshot: HorseSnapshot) -> None:
        """Kill a horse that is unresponsive outside a job, cannot reach Redis, or does not end."""
        now = time.monotonic()
        silent_seconds = now - snapshot.since
        if snapshot.phase == HorsePhase.LEAVING:
            if silent_seconds > job_processes.EXIT_SECONDS:
                self._kill_horse(HorseDeath.ENDED)
            return
        if snapshot.away:
            since_both_failed = max(snapshot.away, self._disconnected_at)
            if now - since_both_failed > UNRESPONSIVE_SECONDS:
                self.log.error(
                    "Worker %s: replacing the horse, which cannot reach Redis; this process can",
                    self.name,
                )
                self._kill_horse(HorseDeath.CRASHED)
                return
        limit = UNRESPONSIVE_SECONDS
        if snapshot.phase == HorsePhase.SETTLING:
            limit = UNRESPONSIVE_SETTLING_SECONDS
        if silent_seconds > limit:
            self.log.error(
                "Worker %s: replacing the horse, which has been unresponsive for %.0f s",
                self.name,
                silent_seconds,
            )
            self._kill_horse(HorseDeath.UNRESPONSIVE)

    # Stop

    def _pause_and_read(self) -> HorseSnapshot | None:
        """Send SIGSTOP to the horse, wait until it has stopped, and return its progress."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.horse_pid, signal.SIGSTOP)
        for _ in range(1000):
            if processes.state(self.horse_pid) in ("T", "t", "Z", ""):
                break
            time.sleep(0.001)
        return self._read_horse()

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Kill the horse. After RQ's stop-job command: only if the horse still runs that job.

        RQ's own method would kill the next job, if the horse has gone on to it.
        """
        if not self.horse_pid:
            return
        snapshot = self._pause_and_read()
        # A snapshot is None if the horse was stopped in the middle of a write.
        while snapshot is None and processes.state(self.horse_pid) in ("T", "t"):
            os.kill(self.horse_pid, signal.SIGCONT)
            snapshot = self._pause_and_read()
        job_id = self._stopped_job_id
        runs_that_job = snapshot is not None and snapshot.running and snapshot.job_id == job_id
        if job_id is None or runs_that_job:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.horse_pid, signal.SIGKILL)
        else:
            self._stopped_job_id = None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.horse_pid, signal.SIGCONT)

    def _kill_horse(self, death: HorseDeath) -> None:
        self._horse_death = death
        # A horse that has just been forked has no process group of its own yet.
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(self.horse_pid, signal.SIGKILL)

    # Reap

    def _reap_horse(self) -> ExitReason | None:
        """Once the horse has ended, release or settle its claims.

        Returns the reason to end the worker, if the horse has ended for one.
        """
        if not self.horse_pid:
            return None
        if not os.waitid(os.P_PID, self.horse_pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return None
        status = self._wait_for_horse_and_group()
        with contextlib.suppress(redis.RedisError, OSError):
            self._publish_state()
        snapshot = self._read_horse()
        self._horse_pid = 0
        self._close_pipes()
        jobs_done = snapshot.done if snapshot else 0
        self._jobs_done += jobs_done
        lifetime = time.monotonic() - self._watch.spawned_at
        self._set_respawn_delay(has_lived=bool(jobs_done) or lifetime > 1)
        if snapshot and snapshot.phase == HorsePhase.LEAVING:
            return self._handle_horse_exit(snapshot, status)
        self._handle_horse_death(snapshot, status)
        return None

    def _wait_for_horse_and_group(self) -> int:
        """Wait for a horse that ends, and kill what its jobs have started.

        Returns the horse's exit status.
        """
        os.waitid(os.P_PID, self.horse_pid, os.WEXITED | os.WNOWAIT)
        processes.end_group(self.horse_pid)  # a zombie keeps its process group's number in use
        return os.waitpid(self.horse_pid, 0)[1]

    def _close_pipes(self) -> None:
        assert self.control and self.prefetch is not None
        self.control.close()
        self.prefetch.close()
        self.prefetch = None

    def _set_respawn_delay(self, has_lived: bool) -> None:
        """Double the delay with each horse that dies at once.

        It is 0 after a horse that was replaced.
        """
        delay = MIN_RESPAWN_DELAY_SECONDS
        if not has_lived:
            delay = min(max(2 * self._respawn_delay, delay), MAX_RESPAWN_DELAY_SECONDS)
        self._respawn_delay = delay
        self._respawn_at = self._watch.spawned_at + delay

    def _handle_horse_exit(self, snapshot: HorseSnapshot, status: int) -> ExitReason | None:
        """The horse has settled all of its jobs and exited.

        Returns the reason to end the worker; None if the next horse is to go on.
        """
        reason = ExitReason(snapshot.job_id)
        if status:
            self.log.warning(
                "Worker %s: the exit functions of the jobs' modules took longer than %d s (%s)",
                self.name,
                job_processes.EXIT_SECONDS,
                _describe_status(status),
            )
        if reason == ExitReason.GROWN and snapshot.done < GROWTH_MIN_JOBS:
            self._growth_bytes *= 2
        if reason in (ExitReason.REPLACED, ExitReason.GROWN):
            self._respawn_delay = 0.0
            self._respawn_at = 0.0
            return None
        if reason == ExitReason.STOPPED:
            return None  # the shutdown, or RQ's kill-horse command
        return reason

    def _handle_horse_death(self, snapshot: HorseSnapshot | None, status: int) -> None:
        """Requeue the claims of a horse that died; start a finisher for a job that has to end."""
        running = snapshot if snapshot and snapshot.running else None
        if running:
            self.retry_until_answered(partial(self._keep_log_of, running))
        death = self._horse_death
        if running and self._stopped_job_id == running.job_id and death != HorseDeath.TIMED_OUT:
            death = HorseDeath.JOB_STOPPED
        if running and death in (HorseDeath.TIMED_OUT, HorseDeath.JOB_STOPPED):
            self._start_finisher(Finisher(running, death, status))
        elif running and death == HorseDeath.CRASHED:
            self._requeue_claims(running.job_id, status)
            if self._work_horse_killed_handler:
                self._start_finisher(Finisher(running, death, status, has_settled=True))
        else:
            self._requeue_claims("", status)
        self._stopped_job_id = None  # not before: the finisher's fork has a copy of it

    def _keep_log_of(self, snapshot: HorseSnapshot) -> None:
        """Keep the lines that the dead horse has not sent: the last ones before a crash."""
        if self.log_buffer is None:
            return
        attempt, batches = self.log_buffer.left_by(snapshot.token)
        self._keep_log(
            job_logs.keep_command(snapshot.job_id, snapshot.token, attempt, batch)
            for batch in batches
        )

    def _requeue_claims(self, crashed_job_id: str, status: int) -> None:
        """Requeue the dead horse's claims. `crashed_job_id`: the job whose crash counts; or ""."""

        def attempt() -> str:
            outcomes = recovery.reclaim(
                self.client,
                self.name,
                self.queue_names(),
                recovery.DeathCause.HORSE_DIED,
                crashed_job_id,
                CRASH_DELAY_SECONDS,
                self.process,
            )
            for job_id, outcome in outcomes.items():
                log = self.log.warning
                if outcome is recovery.Outcome.FAILED:
                    log = self.log.error
                note = ", which it ran," if job_id == crashed_job_id else ""
                how = _describe_status(status)
                log(
                    "Worker %s: the horse died (%s); job %s%s is %s",
                    self.name,
                    how,
                    job_id,
                    note,
                    outcome.value,
                )
            return "done"

        self.retry_until_answered(attempt)
        with contextlib.suppress(redis.RedisError, OSError):  # the next sweep tries again
            sweep.enqueue_waiting_dependents(self.client, self._renew_lease_if_due)

    # The lease (worker.py)

    def _renew_lease(self) -> None:
        raise NotImplementedError

    def _renew_lease_if_due(self) -> None:
        raise NotImplementedError

    # Finishers

    def _start_finisher(self, finisher: Finisher) -> None:
        finisher.start(self, self._begin_child)
        self._finishers.append(finisher)

    def _check_finishers(self) -> None:
        """Settle the jobs whose finishers have died or hang. Then the next horse may start."""
        for finisher in list(self._finishers):
            has_recorded = finisher.has_recorded()
            has_ended = finisher.has_ended()
            is_late = finisher.is_late()
            if is_late and not has_ended:
                self.log.error(
                    "Worker %s: killing the process for the callbacks of job %s, which ignored its "
                    "time limit",
                    self.name,
                    finisher.snapshot.job_id,
                )
                finisher.kill()
            if not finisher.has_settled and (has_recorded or has_ended or is_late):
                if not has_recorded:
                    self.retry_until_answered(partial(self._settle_for_finisher, finisher))
                self._requeue_claims("", finisher.status)
                finisher.has_settled = True
            if has_ended:
                self._finishers.remove(finisher)

    def _settle_for_finisher(self, finisher: Finisher) -> str:
        """Settle the job of a dead horse from a few fields of its hash.

        The finisher, which read the whole job, has died or hangs.
        """
        snapshot = finisher.snapshot
        try:
            origin, timeout, *of_claim = self.client.hmget(
                keys.job(snapshot.job_id), "origin", "timeout", *FINISHED_FIELDS
            )
        except redis.ResponseError as error:
            if not scripts.is_wrong_type(error):
                raise
            origin = None  # another program has overwritten the job's hash
        if origin is None:
            return "gone"
        fields: Any = {
            name.encode(): value
            for name, value in zip(FINISHED_FIELDS, of_claim, strict=True)
            if value
        }
        claim = Claim(snapshot.job_id, decode(origin), snapshot.token, fields)
        message = failure_message(finisher.death, decode(timeout or b"?"))
        job_status = "stopped" if finisher.death == HorseDeath.JOB_STOPPED else "failed"
        return self.fail_job(claim, message, job_status)


def _describe_status(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # most real-time signals have no name
        return f"signal {-code}"
