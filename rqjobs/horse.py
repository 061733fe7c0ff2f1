"""The horse: the long-lived child that claims jobs, runs them, and settles them."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import select
import signal
import socket
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis
import rq
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import NoScriptError
from rq.logutils import blue, green

from rqjobs import config, connection, ledger, processes
from rqjobs.board import Board
from rqjobs.ledger import CLAIM, SETTLE, Claim, text
from rqjobs.queues import Job, Queue
from rqjobs.settling import Settling, execution_of, load_scripts, passes

ANSWER = 2  # seconds in which a wait that is to end does end, or its connection is given up
BLOCK = 5  # seconds that Redis holds a wait; well under a lease, so that nothing arrives after it was swept


@dataclass
class Terms:
    """When a horse, and with it its worker, has done enough. Seconds and jobs; None is no end."""

    burst: bool = False
    max_jobs: int | None = None
    max_idle_time: int | None = None


class Horse:
    """Claims, runs and settles job after job, until its terms, its parent, or its size say enough."""

    def __init__(self, worker: Settling, board: Board, control: socket.socket, terms: Terms):
        self.worker, self.board, self.control, self.terms = worker, board, control, terms
        self.client = worker.connection.plain  # type: ignore[attr-defined]
        self.claims_key = f"rqjobs:claims:{worker.name}"
        self.waits = Waits(self.client, self.claims_key)
        self.settings = config.current()

    def run(self) -> str:
        """Returns why it ended: "stopped", "drained", "idle", "enough" or "replaced"."""
        idle_since = time.monotonic()
        while True:
            if self.board.stop:
                return self._leave("stopped")
            claims = self._claim()
            if claims is None:  # suspended
                if self.terms.burst:
                    return self._leave("drained")
                self._pause(1.0)
            elif claims:
                for claim in claims:
                    self._perform(claim)
                if self.terms.max_jobs is not None and self.board.done >= self.terms.max_jobs:
                    return self._leave("enough")
                if self._is_spent():
                    return self._leave("replaced")
                idle_since = time.monotonic()
            elif self.terms.burst:
                return self._leave("drained")
            else:
                left = BLOCK if self.terms.max_idle_time is None else (
                    self.terms.max_idle_time - (time.monotonic() - idle_since))
                if left <= 0:
                    return self._leave("idle")
                self.waits.wait([queue.key for queue in self.worker._ordered_queues], min(left, BLOCK), self.control)

    def _claim(self) -> list[Claim] | None:
        """Settle what is unsent, and claim, in one round trip. None while RQ is suspended."""
        worker = self.worker
        backoff, failures = ExponentialWithJitterBackoff(cap=3, base=0.05), 0
        while True:
            self.board.post(Board.IDLE)  # at each try: who waits for Redis is not stuck
            try:
                with self.client.pipeline(transaction=False) as pipe:
                    sent = worker.unsent
                    if sent:
                        claim, writes, _ = sent
                        pipe.execute_command(*SETTLE.call(
                            *ledger.settle_arguments(worker.name, claim, writes, alone=True)))
                    held = [sent[0].job_id] if sent else []  # not to be adopted, if this did not settle it
                    pipe.execute_command(*CLAIM.call(
                        *ledger.claim_arguments(worker.name, self._queues(), 1 + len(held), held)))
                    replies = pipe.execute(raise_on_error=False)
                anew = self._settled(replies[0]) if sent else False
                if isinstance(replies[-1], Exception):
                    raise replies[-1]
                claims = ledger.read_claims(replies[-1])
                if claims or not anew:
                    return claims
            except ledger.NoLease:
                self._pause(0.2)
            except ledger.Suspended:
                with contextlib.suppress(redis.RedisError):  # it is asked for again
                    ledger.release(self.client, worker.name)
                self.board.post(Board.SUSPENDED)
                return None
            except NoScriptError:
                load_scripts(self.client)
            except Exception as error:
                if not passes(error):
                    raise
                worker.patience(error, failures, backoff.compute(failures))
                failures += 1
            if self.board.stop and not worker.unsent:
                return []

    def _settled(self, reply: Any) -> bool:
        """Take in the reply to the outcome that was sent along with a claim. True if that did not settle the job, RQ's
        own way did, and there may be new jobs since the claim."""
        assert self.worker.unsent
        claim, _, longhand = self.worker.unsent
        if isinstance(reply, Exception) and passes(reply):
            raise reply
        self.worker.unsent = None
        if not isinstance(reply, Exception) and text(reply) != "dependents":
            self.worker.told(claim.job_id, text(reply))
            return False
        longhand()
        self.board.post(Board.IDLE)
        return True

    def _queues(self) -> list[str]:
        return [queue.name for queue in self.worker._ordered_queues]

    def _perform(self, claim: Claim) -> None:
        worker = self.worker
        worker.claim = claim
        worker.post(Board.SETTLING)  # from here on a death of ours counts against this job
        queue = Queue(claim.queue, connection=worker.connection)
        job = Job(claim.job_id, connection=worker.connection)
        try:
            job.restore(claim.fields)
            timeout = job.timeout or Queue.DEFAULT_TIMEOUT
        except Exception as error:
            message = f"The job's hash in Redis cannot be read: {type(error).__name__}: {error}"
            worker.log.error("Worker %s: job %s: %s", worker.name, claim.job_id, message)
            worker.told(claim.job_id, worker.bury(claim, message))
            return
        worker.reorder_queues(reference_queue=next((q for q in worker.queues if q.name == claim.queue), queue))
        worker.execution = execution_of(job, claim, worker.name)
        job.worker_name, job._status = worker.name, rq.job.JobStatus.STARTED
        job.redis_server_version = queue.redis_server_version = worker.get_redis_server_version()
        os.environ["RQ_JOB_ID"] = job.id
        if worker.log_job_description:
            worker.log.info("Worker %s: %s: %s (%s)", worker.name, green(queue.name), blue(job.description), job.id)
        else:
            worker.log.info("Worker %s: %s: %s", worker.name, green(queue.name), job.id)
        worker.post(Board.RUNNING, time.monotonic() + timeout if timeout > 0 else 0.0)
        worker.perform_job(job, queue)
        self.board.done += 1
        worker.post(Board.SETTLING)

    def _is_spent(self) -> bool:
        settings = self.settings
        if self.board.done >= settings.max_jobs_per_horse:
            return True
        limit = settings.max_memory_per_horse
        return bool(limit) and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * processes.MAXRSS_UNIT > limit

    def _leave(self, why: str) -> str:
        """Settle what is unsent, give back what has not begun, and say why."""
        if self.worker.unsent:
            claim, writes, longhand = self.worker.unsent
            outcome = self.worker.settle(claim, partial(self.worker.send, claim, writes, alone=True))
            self.worker.unsent = None
            if outcome == "dependents":
                longhand()
            else:
                self.worker.told(claim.job_id, outcome)
        with contextlib.suppress(redis.RedisError):  # the parent does it again
            ledger.release(self.client, self.worker.name)
        self.board.post(Board.LEAVING, why)
        return why

    def _pause(self, seconds: float) -> None:
        select.select([self.control], [], [], seconds)
        self.waits.hear(self.control)


class Waits:
    """Waiting for work on several queues without polling and without losing a job.

    `BLMOVE <queue> <claims>` on a connection for each queue: Redis wakes one worker for a job, and the job is in its
    claims before anybody reads the reply. The other waits are ended then, and the next claim adopts what came.
    """

    def __init__(self, client: redis.Redis, claims_key: str):
        self.client, self.claims_key = client, claims_key
        self.lines: dict[str, Any] = {}
        self.ids: dict[str, int] = {}

    def wait(self, queues: list[str], seconds: float, control: socket.socket) -> None:
        """Return when a job may have come, the parent has a word, or `seconds` have passed; soon after, at least."""
        try:
            for queue in queues:
                line, block = self._line(queue), round(max(seconds, 0.1), 3)
                line.send_command("BLMOVE", queue, self.claims_key, "LEFT", "RIGHT", block)
            sockets = [self._line(queue)._sock for queue in queues]
            ready, _, _ = select.select([*sockets, control], [], [], seconds + 1)
            if control in ready:
                self.hear(control)
            waiting = {self._line(queue)._sock: queue for queue in queues}
            deadline = time.monotonic() + ANSWER
            while waiting:  # an UNBLOCK may overtake the BLMOVE that it is to end: ask again
                if time.monotonic() > deadline:
                    raise TimeoutError("the end of a wait was asked for, and is not answered: its connection is dead")
                with self.client.pipeline(transaction=False) as pipe:
                    for queue in waiting.values():
                        pipe.execute_command("CLIENT", "UNBLOCK", self.ids[queue])
                    pipe.execute(raise_on_error=False)
                for answered in select.select(list(waiting), [], [], 0.05)[0]:
                    self._line(waiting.pop(answered)).read_response()
        except (redis.RedisError, OSError, ValueError):
            self.close()
            select.select([control], [], [], 0.2)

    def hear(self, control: socket.socket) -> None:
        """Read the parent's wake-ups; a parent that is gone takes us with it."""
        control.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            if control.recv(64) == b"":
                os._exit(1)

    def _line(self, queue: str) -> Any:
        line = self.lines.get(queue)
        if line is None:
            line = self.client.connection_pool.connection_class(**connection.blocking_options(self.client, BLOCK))
            line.connect()
            line.send_command("CLIENT", "ID")
            self.ids[queue] = line.read_response()
            self.lines[queue] = line
        return line

    def close(self) -> None:
        for line in self.lines.values():
            with contextlib.suppress(Exception):
                line.disconnect()
        self.lines.clear()


def saddle(worker: Settling, board: Board, control: socket.socket, terms: Terms, parent: int) -> None:
    """The life of the forked child: never returns."""
    code = 1
    try:
        processes.die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        os.setpgrp()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # The parent decides when to end. Not SIG_IGN: what a job starts would inherit that.
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        random.seed()
        worker._is_horse = True
        worker.board = board
        Horse(worker, board, control, terms).run()
        code = 0
    except BaseException:
        worker.log.error("Worker %s: its horse failed", worker.name, exc_info=True)
    finally:
        os._exit(code)
