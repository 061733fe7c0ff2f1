"""The finisher: a forked child that ends a job for a dead horse.

The worker's parent keeps the lease, so it runs no code of the user and waits for no other program.
The finisher does that for a job whose horse was killed (the job was stopped, or ignored its time
limit) or crashed. It has RQ's own code record the outcome. Then it calls the callback, the webhooks
or the handler, within limits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import redis
from rq.job import JobStatus
from rq.timeouts import JobTimeoutException
from rq.utils import now

from rqjobs import attempts, config, processes
from rqjobs.broker import keys, leases
from rqjobs.broker.keys import decode
from rqjobs.broker.transitions import Claim
from rqjobs.job_metrics import CountsSender, JobCounts
from rqjobs.times import parse_date
from rqjobs.worker import job_processes
from rqjobs.worker.settlement import SettlementMixin, is_job
from rqjobs.worker.shared_state import (
    HANDLER_SECONDS,
    FunctionEnd,
    HorsePhase,
    HorseSnapshot,
    HorseState,
)

# A finisher that reports nothing for this long is killed, and the parent settles the job.
FINISHER_SILENT_SECONDS = 4 * leases.HEARTBEAT_SECONDS


class HorseDeath(Enum):
    """The cause of a horse's death. It decides what happens to the job that the horse ran."""

    CRASHED = auto()  # without being killed, or unable to reach Redis: the job's crash counts
    TIMED_OUT = auto()  # killed because the job ignored its time limit: the job fails
    JOB_STOPPED = auto()  # killed by RQ's stop-job command: the job is stopped
    CANCELED = auto()  # killed because it went on after the job was canceled: the job stays so
    UNRESPONSIVE = auto()  # killed because it reported nothing: the job runs again
    ENDED = auto()  # killed because it was to end, or had ended its jobs: the job runs again


@dataclass
class Finisher:
    """A finisher process as the parent sees it.

    After TIMED_OUT and JOB_STOPPED it settles the job, after CRASHED it only calls the handler.
    """

    snapshot: HorseSnapshot  # the horse's last
    death: HorseDeath
    status: int  # the horse's exit status
    state: HorseState = field(default_factory=HorseState)
    pid: int = 0
    started_at: float = field(default_factory=time.monotonic)
    has_settled: bool = False  # the job is settled, and the horse's other claims are requeued

    def start(self, worker: SettlementMixin, begin_child: Callable[[HorseState], None]) -> None:
        """Fork. A failed fork counts as a child that died at once."""
        job_processes.flush_output()
        try:
            self.pid = os.fork()
        except OSError as error:
            worker.log.error(
                "Worker %s: cannot start a process for the callbacks of job %s: %s",
                worker.name,
                self.snapshot.job_id,
                error,
            )
            return
        if self.pid == 0:
            _run_finisher_process(worker, self, begin_child)

    def has_recorded(self) -> bool:
        """Whether the job's outcome is in Redis."""
        state = self.state.read()
        return state is not None and state.phase == HorsePhase.AFTER

    def has_ended(self) -> bool:
        """Whether the process is gone. If so, the processes that it had started are killed."""
        with contextlib.suppress(ChildProcessError):
            if self.pid and not os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return False
        self.kill()
        return True

    def is_late(self) -> bool:
        """Whether the process has exceeded its limits, and is to be killed."""
        state = self.state.read()
        if state is None:
            return time.monotonic() - self.started_at > FINISHER_SILENT_SECONDS
        if state.phase != HorsePhase.AFTER:
            return time.monotonic() - state.since > FINISHER_SILENT_SECONDS
        limit = state.deadline + config.current().shutdown_timeout
        return state.deadline > 0 and time.monotonic() > limit

    def kill(self) -> None:
        """Kill the process, if it lives, and the processes that it has started."""
        if not self.pid:
            return
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            processes.end_group(self.pid)
            os.waitpid(self.pid, 0)
        self.pid = 0


def _run_finisher_process(
    worker: SettlementMixin, finisher: Finisher, begin_child: Callable[[HorseState], None]
) -> None:
    """The forked child from begin to end: never returns."""
    code = 1
    counts = worker.counts = JobCounts(is_job)  # the next horse has those of the worker
    try:
        begin_child(finisher.state)
        if finisher.death == HorseDeath.CRASHED:
            _call_killed_handler(worker, finisher)
        else:
            _settle(worker, finisher.snapshot, finisher.death)
        code = 0
    except BaseException:
        worker.log.error(
            "Worker %s: cannot settle job %s", worker.name, finisher.snapshot.job_id, exc_info=True
        )
    finally:
        job_processes.flush_output()
        with contextlib.suppress(redis.RedisError, OSError):
            CountsSender(counts).send(worker.client)
        os._exit(code)


def _call_killed_handler(worker: SettlementMixin, finisher: Finisher) -> None:
    snapshot = finisher.snapshot
    deadline = time.monotonic() + HANDLER_SECONDS
    finisher.state.write(HorsePhase.AFTER, snapshot.job_id, snapshot.token, deadline)
    job: Any = worker.job_class.fetch(snapshot.job_id, connection=worker.client)
    assert worker._work_horse_killed_handler
    worker._work_horse_killed_handler(job, 0, finisher.status, None)  # type: ignore[arg-type]


def _settle(worker: SettlementMixin, snapshot: HorseSnapshot, death: HorseDeath) -> None:
    """Record the outcome that the dead horse could not record, and call the callbacks that follow
    from it.
    """
    fields: Any = worker.client.hgetall(keys.job(snapshot.job_id))
    if decode(fields.get(b"rqjobs_token") or b"") != snapshot.token:
        return  # the job was settled, or is claimed by another worker
    job: Any = worker.job_class(snapshot.job_id, connection=worker.connection)
    job.restore(fields)
    worker.claim = Claim(snapshot.job_id, job.origin, snapshot.token, fields)
    worker.report(HorsePhase.SETTLING)
    job.ended_at = now()
    job._status = JobStatus.STARTED
    queue = worker.queue_class(job.origin, connection=worker.connection)
    queue.redis_server_version = worker.redis_server_version
    end = None
    if worker.function_outcome and death == HorseDeath.TIMED_OUT:
        end = worker.function_outcome.read(snapshot.token)
    if end is None:
        message = failure_message(death, job.timeout)
        worker.log.warning("Worker %s: job %s: %s", worker.name, job.id, message)
        if death == HorseDeath.TIMED_OUT:
            job.decide(JobTimeoutException(message))
        worker.handle_job_failure(job, queue, exc_string=message)
    else:
        _settle_as_function_ended(worker, job, queue, end)
    if death == HorseDeath.JOB_STOPPED and worker.has_settled and job.stopped_callback:
        worker.report(HorsePhase.AFTER, time.monotonic() + job.stopped_callback_timeout)
        job.execute_stopped_callback(worker.death_penalty_class)


def _settle_as_function_ended(
    worker: SettlementMixin, job: Any, queue: Any, end: FunctionEnd
) -> None:
    """Record how the job's function ended: a callback or an exception handler ignored the limit,
    not the function.
    """
    worker.log.error(
        "Worker %s: job %s: a callback or handler ignored its time limit, and was killed",
        worker.name,
        job.id,
    )
    job.started_at = parse_date(end.started)
    job.ended_at = parse_date(end.ended)
    if end.failed:
        job.decision = end.decision
        trace = (end.data or b"").decode(errors="replace")
        worker.handle_job_failure(job, queue, exc_string=trace)
        return
    job.serialized_result = end.data
    job._status = JobStatus.FINISHED
    job.hidden_result = None
    if end.data is not None:
        job.hidden_result = job.serializer.loads(end.data)
    job._result = job.hidden_result
    worker.record_success(job, queue, queue.started_job_registry)
    if worker.has_settled:
        job.send_webhooks(JobStatus.FINISHED)


def failure_message(death: HorseDeath, timeout: Any) -> str:
    """The traceback of a job that was stopped, or was killed after `timeout` (seconds) and the time
    to spare.
    """
    if death == HorseDeath.JOB_STOPPED:
        return attempts.STOPPED_MESSAGE
    return f"The job ignored its time limit of {timeout} s, and was killed."
