"""The supervisor: how the worker's parent process keeps one horse at work, and what it does when that dies.

The parent is one thread: forking beside threads can deadlock. What the horse is at it reads from the board.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from functools import partial
from typing import Any

import redis
from rq.worker import WorkerStatus

from rqjobs import config, processes
from rqjobs.broker import keys, leases, recovery, scripts, transitions
from rqjobs.broker.keys import decode
from rqjobs.broker.transitions import Claim
from rqjobs.inherited_resources import InheritedResources
from rqjobs.maintenance import sweep
from rqjobs.worker import job_processes
from rqjobs.worker.finisher import Finisher, reason
from rqjobs.worker.horse import MAX_PREFETCH_WAIT_SECONDS, Limits, begin_child, run_horse_process
from rqjobs.worker.prefetch import PrefetchPipe
from rqjobs.worker.settlement import SettlementMixin
from rqjobs.worker.shared_state import FunctionOutcome, HorsePhase, HorseSnapshot, HorseState

CRASH_DELAY_SECONDS = (
    1.0  # seconds that a job which crashed its horse waits, doubled with each death
)
RESPAWN_BACKOFF_SECONDS = (
    0.1,
    5.0,
)  # seconds before the next horse when one did not live for a second: at first, at most
UNRESPONSIVE_SECONDS = (
    4 * leases.HEARTBEAT_SECONDS
)  # seconds without a word after which an idle horse is no use; one wait for Redis may take 16
UNRESPONSIVE_SETTLING_SECONDS = (
    3 * UNRESPONSIVE_SECONDS
)  # the same of one that settles; it may wait for Redis a few times before it has a word
GROWTH_BYTES = 2**30  # by which a horse may grow, where RQJOBS_MAX_MEMORY_PER_CHILD says nothing
# A horse that grew by that within fewer jobs has loaded what they need; the next may be twice as large.
GROWTH_MIN_JOBS = 100
UNREGISTER_SECONDS = 4  # beyond RQJOBS_SHUTDOWN_TIMEOUT, to release the claims and to unregister
# A second signal within this time is the same one: worker-pool and the terminal both send it.
DUPLICATE_SIGNAL_SECONDS = 1.0

MAX_FINISHERS = 4  # so many handlers may hang before no more horses are started
PHASES_WITH_DEADLINE = (
    HorsePhase.RUNNING,
    HorsePhase.AFTER,
)  # phases of a horse that have a deadline of their own

STATES = {
    HorsePhase.RUNNING: WorkerStatus.BUSY,
    HorsePhase.SETTLING: WorkerStatus.BUSY,
    HorsePhase.AFTER: WorkerStatus.BUSY,
    HorsePhase.SUSPENDED: WorkerStatus.SUSPENDED,
}


class Supervisor(SettlementMixin):
    """The half of the worker that deals with its horse. Overrides, beside those of `Settling`: get_current_job_id and
    kill_horse know what the horse runs, and never kill it for another job.
    """

    _verdict = "crashed"

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._pid_of_parent = os.getpid()
        self._signals: list[tuple[float, int]] = []
        self._overdue = False  # it was told to go, and Redis does not answer
        self.where: dict[str, Any] = {}  # this process lives
        self._horse_started = ""
        self._hired = 0.0
        self._readable = time.monotonic()  # when the board was
        self._lost_at = time.monotonic()  # when this process did not reach Redis
        self._rehire_pause = RESPAWN_BACKOFF_SECONDS[0]
        self._growth_bytes = GROWTH_BYTES
        self.inherited: InheritedResources | None = None
        self._told: tuple[Any, Any, int, float] = (None, None, 0, 0.0)  # of RQ's worker key
        self._told_at = 0.0
        self._finishers: list[Finisher] = []
        self._ending = ""  # why the worker is done, when only finishers are left
        self._done_before = 0  # jobs of earlier horses
        self.horse_state: HorseState | None = None
        self.control: socket.socket | None = None
        self.prefetch: PrefetchPipe | None = None
        self._given_back: set[str] = (
            set()
        )  # their tokens; taken from the horse, not yet in their queues again
        self._behind = ("", 0.0)  # the claim that runs, and since when

    def _time_to_go(self) -> bool:
        """Whether the first signal is longer ago than RQJOBS_SHUTDOWN_TIMEOUT, or there was a second one."""
        if not self._signals:
            return False
        asked, again = self._signals[0][0], self._signals[-1][0]
        return (
            time.monotonic() - asked > config.current().shutdown_timeout
            or again - asked > DUPLICATE_SIGNAL_SECONDS
        )

    def _disown(self) -> None:
        """Put back what is in our claims without the horse's knowledge while that runs a job, perhaps for hours: a wait
        whose connection broke on our side only can bring one."""
        post = self._posting()
        if post and post.phase in PHASES_WITH_DEADLINE:
            for job_id in transitions.release_unknown(self.client, self.name, self.process):
                self.log.warning(
                    "Worker %s: job %s came without a word, and is back in its queue",
                    self.name,
                    job_id,
                )

    def _give_back(self) -> None:
        """Put back what was claimed along with a job that turns out to take long, or before we leave."""
        post = self._posting()
        if post and post.token != self._behind[0]:
            self._behind = post.token, post.since
        if (
            self.prefetch
            and post
            and (self._signals or time.monotonic() - self._behind[1] >= MAX_PREFETCH_WAIT_SECONDS)
        ):
            while one := self.prefetch.get():
                self._given_back.add(one)
        if (
            self._given_back
        ):  # should this fail, and the horse claim them again, their tokens are others
            transitions.release_tokens(self.client, self.name, self._given_back)
            self._given_back.clear()

    def _hire(self, limits: Limits) -> None:
        left = None if limits.max_jobs is None else limits.max_jobs - self._done_before
        limit = config.current().max_memory_per_child
        growth = self._growth_bytes if limit is None else limit
        self.inherited = self.inherited or InheritedResources()
        processes.trim_memory()  # or both would write on those pages, each on a copy of its own
        job_processes.flush()  # or both would write it
        with contextlib.ExitStack() as undo:
            try:
                board, prefetch = HorseState(), PrefetchPipe()
                undo.callback(prefetch.close)
                ours, theirs = socket.socketpair()
                self.function_outcome = self.function_outcome or FunctionOutcome()
                pid = os.fork()
            except (
                OSError
            ) as error:  # no memory, too many processes or open files; there may be some in a while
                self.log.error("Worker %s: cannot start a horse: %s", self.name, error)
                self._hired, self._rehire_pause = time.monotonic(), RESPAWN_BACKOFF_SECONDS[1]
                return
            if pid == 0:
                ours.close()
                own = Limits(limits.burst, left, limits.max_idle_time, growth)
                run_horse_process(
                    self, board, theirs, own, prefetch, self._pid_of_parent, self.inherited
                )
            undo.pop_all()
        theirs.close()
        self._horse_pid, self.horse_state, self.control, self.prefetch = pid, board, ours, prefetch
        self._horse_started = processes.start_time(pid)
        self._given_back.clear()
        self._told = (None, None, 0, 0.0)
        self._hired = time.monotonic()

    def _tell_state(self) -> None:
        """Keep RQ's worker key true, about once a tick: state, current job, and what was done."""
        post = self._posting()
        if post is None:
            return
        self._told_at = time.monotonic()
        state, job_id = (
            STATES.get(post.phase, WorkerStatus.IDLE),
            post.job_id if post.running else None,
        )
        told = state, job_id, post.succeeded, post.worked
        if told != self._told:
            with self.client.pipeline() as pipe:
                self.set_state(state, pipeline=pipe)
                self.set_current_job_id(job_id, pipeline=pipe)
                if post.succeeded > self._told[2]:
                    pipe.hincrby(self.key, "successful_job_count", post.succeeded - self._told[2])
                    pipe.hincrbyfloat(self.key, "total_working_time", post.worked - self._told[3])
                pipe.execute()
            self._told = told

    def _posting(self) -> HorseSnapshot | None:
        return self.horse_state.read() if self.horse_state else None

    def get_current_job_id(self, pipeline: Any = None) -> str | None:
        if self.horse_state is None:  # this object is a look at a worker that runs elsewhere
            return super().get_current_job_id(pipeline)
        post = self._posting()
        return post.job_id if post and post.running else None

    def _frozen(self) -> HorseSnapshot | None:
        """What the horse runs, with the horse stopped so that it cannot go on meanwhile."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.horse_pid, signal.SIGSTOP)
        for _ in range(1000):
            if processes.state(self.horse_pid) in ("T", "t", "Z", ""):
                break
            time.sleep(0.001)
        return self._posting()

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Kill the horse; after a stop-job command only if it still runs that very job."""
        if not self.horse_pid:
            return
        post = self._frozen()
        while post is None and processes.state(self.horse_pid) in (
            "T",
            "t",
        ):  # stopped in the middle of a posting
            os.kill(self.horse_pid, signal.SIGCONT)
            post = self._frozen()
        wanted = self._stopped_job_id
        if wanted is None or (post is not None and post.running and post.job_id == wanted):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.horse_pid, signal.SIGKILL)
        else:
            self._stopped_job_id = None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.horse_pid, signal.SIGCONT)

    def _police(self) -> None:
        """Kill a horse that ignores its job's time limit or does nothing at all; end it when it is time to leave."""
        post = self._posting()
        if post or not self.horse_pid:
            self._readable = time.monotonic()
        elif (
            time.monotonic() - self._readable > UNRESPONSIVE_SECONDS
        ):  # it was stopped in the middle of a posting
            self._put_down("stuck")
        if not self.horse_pid or post is None:
            return
        age, timeout = time.monotonic() - post.since, config.current().shutdown_timeout
        if self._signals:
            assert self.horse_state and self.control
            if not self.horse_state.stop:
                self.handle_warm_shutdown_request()
                self.horse_state.ask_to_stop()
                with contextlib.suppress(OSError):
                    self.control.send(b"!")
                if self.scheduler:
                    self.stop_scheduler()
            if self._time_to_go():
                self.log.warning(
                    "Worker %s: its job is put back, to run again elsewhere", self.name
                )
                self._put_down("")
        elif (
            post.phase in PHASES_WITH_DEADLINE
            and post.deadline
            and time.monotonic() > post.deadline + timeout
        ):
            frozen = self._frozen()
            if frozen and frozen.job_id == post.job_id and frozen.deadline == post.deadline:
                self._put_down("late")
            else:
                os.kill(self.horse_pid, signal.SIGCONT)
        elif post.phase == HorsePhase.LEAVING:
            if age > job_processes.EXIT_SECONDS:
                self._put_down("")
        elif (
            post.phase not in PHASES_WITH_DEADLINE
            and post.away
            and time.monotonic() - max(post.away, self._lost_at) > UNRESPONSIVE_SECONDS
        ):
            self.log.error(
                "Worker %s: its horse does not reach Redis, this process does; it is replaced",
                self.name,
            )
            self._put_down("crashed")
        elif post.phase not in PHASES_WITH_DEADLINE and age > (
            UNRESPONSIVE_SETTLING_SECONDS
            if post.phase == HorsePhase.SETTLING
            else UNRESPONSIVE_SECONDS
        ):
            self.log.error(
                "Worker %s: its horse has not been heard of for %.0f s and is replaced",
                self.name,
                age,
            )
            self._put_down("stuck")

    def _put_down(self, verdict: str) -> None:
        self._verdict = verdict
        for kill in (
            os.killpg,
            os.kill,
        ):  # a horse that has just been forked has no group of its own yet
            with contextlib.suppress(ProcessLookupError):
                kill(self.horse_pid, signal.SIGKILL)

    def _reap(self, limits: Limits) -> str:
        """See whether the horse has ended, and take back what it had. Returns why the worker is done, or ""."""
        if not self.horse_pid:
            return ""
        if not os.waitid(os.P_PID, self.horse_pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return ""
        status = self._end_horse()
        with contextlib.suppress(redis.RedisError, OSError):
            self._tell_state()
        post, self._horse_pid = self._posting(), 0
        verdict, self._verdict = self._verdict, "crashed"
        done = post.done if post else 0
        self._done_before += done
        assert self.control and self.prefetch is not None
        self.control.close()
        self.prefetch.close()
        self.prefetch = None
        has_lived = done or time.monotonic() - self._hired > 1
        self._rehire_pause = (
            RESPAWN_BACKOFF_SECONDS[0]
            if has_lived
            else min(
                max(self._rehire_pause * 2, RESPAWN_BACKOFF_SECONDS[0]), RESPAWN_BACKOFF_SECONDS[1]
            )
        )  # after one that was replaced it is 0
        if post and post.phase == HorsePhase.LEAVING:
            return self._left(post, status)
        running = post if post and post.running else None
        if running and (verdict == "late" or self._stopped_job_id == running.job_id):
            self._start_finisher(
                Finisher(running, "late" if verdict == "late" else "stopped", status)
            )
        else:
            counted = running.job_id if running and verdict == "crashed" else ""
            self._take_back(counted, status)
            if counted and running and self._work_horse_killed_handler:
                self._start_finisher(Finisher(running, "crashed", status, settled=True))
        self._stopped_job_id = None
        return ""

    def _start_finisher(self, finisher: Finisher) -> None:
        finisher.start(self, self._begin_child)
        self._finishers.append(finisher)

    def _look_after_finishers(self) -> None:
        """What a finisher could not record in its time, we do; then the next horse may begin."""
        for finisher in list(self._finishers):
            recorded, ended, late = (
                finisher.has_recorded(),
                finisher.has_ended(),
                finisher.is_late(),
            )
            if late and not ended:
                self.log.error(
                    "Worker %s: what was called after the end of job %s ignored its time limit, and is "
                    "killed",
                    self.name,
                    finisher.post.job_id,
                )
                finisher.end()
            if not finisher.settled and (recorded or ended or late):
                if not recorded:
                    self.retry_until_answered(partial(self._settle_plainly, finisher))
                self._take_back("", finisher.status)
                finisher.settled = True
            if ended:
                self._finishers.remove(finisher)

    def _settle_plainly(self, finisher: Finisher) -> str:
        """End the job of a dead horse without a look into it, for whoever looked died or hung."""
        post = finisher.post
        try:
            origin, ttl, timeout = self.client.hmget(
                keys.job(post.job_id), "origin", "failure_ttl", "timeout"
            )
        except redis.ResponseError as error:
            if not scripts.is_wrong_type(error):
                raise
            origin = None  # somebody else wrote there
        if origin is None:
            return "gone"
        fields: Any = {b"failure_ttl": ttl or b""}
        claim = Claim(post.job_id, decode(origin), post.token, fields)
        message = reason(finisher.kind, decode(timeout or b"?"))
        return self.fail_job(claim, message, "stopped" if finisher.kind == "stopped" else "failed")

    def _end_horse(self) -> int:
        """Wait for a horse that has ended or was killed, and for what its jobs had started. Returns its status."""
        os.waitid(os.P_PID, self.horse_pid, os.WEXITED | os.WNOWAIT)
        processes.end_group(
            self.horse_pid
        )  # as long as it is a zombie its group cannot be another's
        return os.waitpid(self.horse_pid, 0)[1]

    def _left(self, post: HorseSnapshot, status: int) -> str:
        """The horse settled all that it had, and left. Returns why the worker is done, or ""."""
        if status:
            self.log.warning(
                "Worker %s: the exit functions of its jobs' modules took longer than %d s (%s)",
                self.name,
                job_processes.EXIT_SECONDS,
                _how(status),
            )
        if post.job_id == "grown" and post.done < GROWTH_MIN_JOBS:
            self._growth_bytes *= 2
        if post.job_id in ("replaced", "grown"):
            self._rehire_pause = 0.0
            return ""
        return "" if post.job_id == "stopped" else post.job_id

    def _take_back(self, counted: str, status: int) -> None:
        """Give back what the dead horse had, and count the death of the job that it ran, if there is one."""

        def attempt() -> str:
            queues = [queue.name for queue in self.queues]
            outcomes = recovery.reclaim(
                self.client,
                self.name,
                queues,
                recovery.DeathCause.HORSE_DIED,
                counted,
                CRASH_DELAY_SECONDS,
                self.process,
            )
            for job_id, outcome in outcomes.items():
                is_failed = outcome is recovery.Outcome.FAILED
                level = self.log.error if is_failed else self.log.warning
                level(
                    "Worker %s: its horse died (%s); job %s%s is %s",
                    self.name,
                    _how(status),
                    job_id,
                    ", which it ran," if job_id == counted else "",
                    outcome.value,
                )
            return "done"

        self.retry_until_answered(attempt)
        with contextlib.suppress(redis.RedisError, OSError):  # the next sweep does it
            sweep.enqueue_waiting_dependents(self.client, self._pulse)

    def _begin_child(self, board: HorseState) -> None:
        assert self.inherited
        begin_child(self, board, self._pid_of_parent, self.inherited)

    def _pulse(self) -> None:
        """Renew the lease, if it is time, in the midst of something long."""

    def _dismiss(self) -> None:
        """Leave no horse behind, and nothing in its hands."""
        for finisher in self._finishers:
            finisher.end()
        if self.function_outcome:
            self.function_outcome.close()
            self.function_outcome = None
        if self.horse_pid:
            self._put_down("")
            self._end_horse()
            self._horse_pid = 0
            if not self._overdue:
                with contextlib.suppress(redis.RedisError):
                    queues = [queue.name for queue in self.queues]
                    recovery.reclaim(
                        self.client,
                        self.name,
                        queues,
                        recovery.DeathCause.HORSE_DIED,
                        "",
                        process=self.process,
                    )
        if not self._overdue:
            with contextlib.suppress(redis.RedisError, OSError, SystemExit):
                self._look_after_finishers()

    def handle_job_failure(
        self, job: Any, queue: Any, started_job_registry: Any = None, exc_string: str = ""
    ) -> None:
        job.traceback = exc_string  # for a job that goes on to its next repeat
        super().handle_job_failure(
            job=job, queue=queue, started_job_registry=started_job_registry, exc_string=exc_string
        )


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
