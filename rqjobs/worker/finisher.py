"""The finisher: a forked child that ends a job for a dead horse.

The worker's parent keeps the lease, so it runs nothing of the user's and waits for nobody. What has to be done for a
job whose horse was killed (the job was stopped, or ignored its time limit) or has died is done here: the outcome is
recorded by RQ's own code, and then, within limits, come the callback, the webhooks or the handler.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rq.job import JobStatus
from rq.utils import now

from rqjobs import config, processes
from rqjobs.broker import keys, leases
from rqjobs.broker.keys import decode
from rqjobs.broker.transitions import Claim
from rqjobs.times import parse_date
from rqjobs.worker import job_processes
from rqjobs.worker.settlement import SettlementMixin
from rqjobs.worker.shared_state import HANDLER_SECONDS, HorsePhase, HorseSnapshot, HorseState

SILENT_SECONDS = (
    4 * leases.HEARTBEAT_SECONDS
)  # after which a finisher that has recorded nothing is killed, and its parent does it


@dataclass
class Finisher:
    """One such child, as its parent sees it. `kind` says why the horse is dead: "stopped" or "late" (the job is to be
    settled), or "crashed" (only the handler is to be called)."""

    post: HorseSnapshot
    kind: str
    status: int  # of the horse
    state: HorseState = field(default_factory=HorseState)
    pid: int = 0
    began: float = field(default_factory=time.monotonic)
    settled: bool = False  # and what else the horse had was taken back

    def start(self, worker: SettlementMixin, begin_child: Callable[[HorseState], None]) -> None:
        """Fork. If that is not possible, it is as if the child had died at once."""
        job_processes.flush()
        try:
            self.pid = os.fork()
        except OSError as error:
            worker.log.error(
                "Worker %s: cannot start a process for the callbacks of job %s: %s",
                worker.name,
                self.post.job_id,
                error,
            )
            return
        if self.pid == 0:
            _live(worker, self, begin_child)

    def has_recorded(self) -> bool:
        read = self.state.read()
        return read is not None and read.phase == HorsePhase.AFTER

    def has_ended(self) -> bool:
        """Whether it is gone; what it had started is ended then."""
        with contextlib.suppress(ChildProcessError):
            if self.pid and not os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return False
        self.end()
        return True

    def is_late(self) -> bool:
        read = self.state.read()
        if read is None:
            return time.monotonic() - self.began > SILENT_SECONDS
        if read.phase == HorsePhase.AFTER:
            return (
                bool(read.deadline)
                and time.monotonic() > read.deadline + config.current().shutdown_timeout
            )
        return time.monotonic() - read.since > SILENT_SECONDS

    def end(self) -> None:
        """Kill it, if it lives, and what it has started."""
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


def _live(
    worker: SettlementMixin, finisher: Finisher, begin_child: Callable[[HorseState], None]
) -> None:
    """The life of the forked child: never returns."""
    code = 1
    try:
        begin_child(finisher.state)
        if finisher.kind == "crashed":
            _call_killed_handler(worker, finisher)
        else:
            _settle(worker, finisher.post, finisher.kind)
        code = 0
    except BaseException:
        worker.log.error(
            "Worker %s: job %s could not be ended", worker.name, finisher.post.job_id, exc_info=True
        )
    finally:
        job_processes.flush()
        os._exit(code)


def _call_killed_handler(worker: SettlementMixin, finisher: Finisher) -> None:
    post = finisher.post
    finisher.state.write(
        HorsePhase.AFTER, post.job_id, post.token, time.monotonic() + HANDLER_SECONDS
    )
    job: Any = worker.job_class.fetch(post.job_id, connection=worker.client)
    assert worker._work_horse_killed_handler
    worker._work_horse_killed_handler(job, 0, finisher.status, None)  # type: ignore[arg-type]


def _settle(worker: SettlementMixin, post: HorseSnapshot, kind: str) -> None:
    """Record what the dead horse could not, and call what is to be called then."""
    fields = worker.client.hgetall(keys.job(post.job_id))
    if decode(fields.get(b"rqjobs_token") or b"") != post.token:
        return  # it was settled, or is somebody else's
    job: Any = worker.job_class(post.job_id, connection=worker.connection)
    job.restore(fields)
    worker.claim = Claim(post.job_id, job.origin, post.token, fields)  # type: ignore[arg-type]
    worker.report(HorsePhase.SETTLING)
    job.ended_at, job._status = now(), JobStatus.STARTED
    queue = worker.queue_class(job.origin, connection=worker.connection)
    queue.redis_server_version = worker.redis_server_version
    ended = (
        worker.function_outcome.read(post.token)
        if worker.function_outcome and kind == "late"
        else None
    )
    if ended is None:
        message = reason(kind, job.timeout)
        worker.log.warning("Worker %s: job %s: %s", worker.name, job.id, message)
        worker.handle_job_failure(job, queue, exc_string=message)
    else:
        _settle_as_it_ended(worker, job, queue, *ended)
    if kind == "stopped" and worker.has_settled and job.stopped_callback:
        worker.report(HorsePhase.AFTER, time.monotonic() + job.stopped_callback_timeout)
        job.execute_stopped_callback(worker.death_penalty_class)


def _settle_as_it_ended(
    worker: SettlementMixin,
    job: Any,
    queue: Any,
    failed: bool,
    started: str,
    ended: str,
    data: bytes | None,
) -> None:
    """The function had ended; what ignored its limit was a callback or an exception handler."""
    worker.log.error(
        "Worker %s: job %s: a callback or handler ignored its time limit, and was killed",
        worker.name,
        job.id,
    )
    job.started_at, job.ended_at = parse_date(started), parse_date(ended)
    if failed:
        return worker.handle_job_failure(
            job, queue, exc_string=(data or b"").decode(errors="replace")
        )
    job.serialized_result, job._status = data, JobStatus.FINISHED
    job.hidden_result = job._result = None if data is None else job.serializer.loads(data)
    worker.record_success(job, queue, queue.started_job_registry)
    if worker.has_settled:
        job.send_webhooks(JobStatus.FINISHED)


def reason(kind: str, timeout: Any) -> str:
    if kind == "stopped":
        return "Job stopped by user, work-horse terminated."
    return f"The job ignored its time limit of {timeout} s, and was killed."
