"""The horse: the long-lived child that claims jobs, runs them, and settles them."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis
import rq
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import NoScriptError
from rq.executions import Execution
from rq.logutils import blue, green
from rq.worker import DequeueStrategy

from rqjobs import children, config, ledger, processes, texts, waits
from rqjobs.board import Board
from rqjobs.inherited import Inherited
from rqjobs.instrumented import isolate
from rqjobs.ledger import CLAIM, RELEASE, Claim, text
from rqjobs.leftovers import Leftovers
from rqjobs.outbox import Outbox, Outcome
from rqjobs.queues import Queue
from rqjobs.settling import Settling, load_scripts, passes

SPAN = 0.005  # seconds that the jobs which are claimed at once may take, by their pace so far
AT_ONCE = 32  # jobs
HOLD = 0.04  # seconds that a job may wait behind others with which it was claimed, before it is given back
MEMORY_LOOK_SECONDS = 0.1  # between two looks at how large the horse is


@dataclass
class Terms:
    """When a horse, and with it its worker, has done enough. Seconds and jobs; None is no end. And by how many bytes
    the horse may grow; 0 is no limit."""

    burst: bool = False
    max_jobs: int | None = None
    max_idle_time: int | None = None
    max_growth: int = 0


class Horse:
    """Claims, runs and settles job after job, until its terms, its parent, or its size say enough."""

    def __init__(
        self,
        worker: Settling,
        board: Board,
        control: socket.socket,
        terms: Terms,
        handover: Handover,
        inherited: Inherited,
    ):
        self.worker, self.board, self.control, self.terms, self.handover = (
            worker,
            board,
            control,
            terms,
            handover,
        )
        self.inherited = inherited
        self.client = worker.connection.plain  # type: ignore[attr-defined]
        self.waits = waits.Waits(self.client, f"rqjobs:claims:{worker.name}")
        self.outbox = worker.outbox = Outbox(self.client)
        worker.horse = os.getpid()
        rq.job._job_stack.push(
            None
        )  # under all jobs: RQ's `pop` throws an empty stack away, to be built again
        self.some_execution = Execution(
            "", "", self.client
        )  # RQ asks for one; `record` makes the right one
        self.settings = config.current()
        self.queues: dict[str, Queue] = {}
        self.pace = SPAN  # seconds that a job takes, by a running mean
        self.reaper, self.leftovers = children.Reaper(), Leftovers()
        self.memory, self.measured = (
            processes.memory(),
            time.monotonic(),
        )  # bytes that it began with; the last look

    def run(self) -> str:
        """Returns why it ended: "stopped", "drained", "idle", "enough", "replaced" or "grown"."""
        me = os.getpid()
        self._ask(
            *ledger.announcement(self.worker.name, self.worker.process, me, processes.started(me))
        )
        idle_since = time.monotonic()
        while True:
            claims = self._claim()
            if self.board.stop:
                return self._leave("stopped")
            if claims:
                self._perform_all(claims)
                if self.terms.max_jobs is not None and self.board.done >= self.terms.max_jobs:
                    return self._leave("enough")
                if spent := self._spent():
                    return self._leave(spent)
                self.reaper.reap()
                idle_since = time.monotonic()
            elif self.terms.burst:
                return self._leave("drained")
            elif claims is None:  # suspended
                self._pause(1.0)
            else:
                left = (
                    waits.BLOCK
                    if self.terms.max_idle_time is None
                    else (self.terms.max_idle_time - (time.monotonic() - idle_since))
                )
                if left <= 0:
                    return self._leave("idle")
                self.reaper.reap()
                keys = [queue.key for queue in self.worker._ordered_queues]
                keys.sort(
                    key=lambda key: key.removeprefix("rq:queue:") not in self.queues
                )  # first those that had jobs
                self.waits.wait(keys, min(left, waits.BLOCK), self.control)

    def _claim(self) -> list[Claim] | None:
        """Claim as many jobs as will not take long. None while RQ is suspended."""
        while not self.board.stop:
            held = [
                outcome.claim.job_id for outcome in self.outbox.outcomes
            ]  # should they not settle
            queues = [queue.name for queue in self.worker._ordered_queues]
            reply = self._ask(
                *CLAIM.call(
                    *ledger.claim_arguments(
                        self.worker.name, queues, self._room(), held, self.worker.process
                    )
                )
            )
            try:
                return ledger.read_claims(reply) if reply else []
            except ledger.NoLease:
                self._pause(0.2)
            except ledger.Suspended:
                with contextlib.suppress(redis.RedisError):  # it is asked for again
                    ledger.release(self.client, self.worker.name, process=self.worker.process)
                self.board.post(Board.SUSPENDED)
                return None
        return []

    def _room(self) -> int:
        """How many jobs to claim at once: those of the next few milliseconds."""
        if self.worker._dequeue_strategy != DequeueStrategy.DEFAULT:
            return 1
        limits = (self.settings.max_jobs_per_child or None, self.terms.max_jobs)
        left = [limit - self.board.done for limit in limits if limit is not None]
        return max(1, min(AT_ONCE, int(SPAN / self.pace), *left))

    def _ask(self, *command: Any) -> Any:
        """Bring all outcomes to Redis, end all waits, and ask `command`, in one round trip; until Redis has answered,
        or, once nothing is left to be settled, until it is time to stop. Returns its reply."""
        backoff, failures = ExponentialWithJitterBackoff(cap=3, base=0.05), 0
        while True:
            self.board.post(Board.IDLE)  # at each try: who waits for Redis is not stuck
            try:
                ends = self.waits.ends()
                answered, replies = self.outbox.exchange(*ends, *[command] if command else [])
                trouble = [self._told(*one) for one in answered]
                for error in [*trouble, *replies[len(ends) :]]:
                    if isinstance(error, Exception):
                        raise error
                self.board.away = 0.0
                if self.waits.ended(replies[: len(ends)]):
                    return replies[-1] if command else None
                continue
            except NoScriptError:
                load_scripts(self.client)
            except Exception as error:
                if not passes(error):
                    if (
                        self.outbox.outcomes
                    ):  # what cannot be recorded counts as a death, or it would go on for ever
                        self.worker.claim = self.outbox.outcomes[-1].claim
                        self.worker.post(Board.SETTLING)
                    raise
                self.outbox.close()  # who refuses may be a master no more; the next connection asks who is
                self.worker.patience(error, failures, backoff.compute(failures))
                failures += 1
            if self.board.stop and not self.outbox.outcomes:
                return None

    def _told(self, outcome: Outcome, reply: Any) -> Exception | None:
        """Take in the reply to an outcome; returns the error for which it has to be sent again, if there is one."""
        if isinstance(reply, Exception) and passes(reply):
            self.outbox.outcomes.append(outcome)
            return reply
        if isinstance(
            reply, Exception
        ):  # a key of the wrong type; RQ's own way says so, and the job is buried
            self.worker.claim = outcome.claim
            outcome.longhand()
            self.board.post(Board.IDLE)
            return None
        if text(reply) in ("settled", "waking"):
            self.board.succeeded += 1
            self.board.worked += outcome.took
        self.worker.told(outcome.claim.job_id, text(reply))
        return None

    def _perform_all(self, claims: list[Claim]) -> None:
        """Run the first at once, and each of the others if the parent did not give it back meanwhile.

        The parent looks how long one job takes; here is seen how long all of them do.
        """
        first, waiting = time.monotonic(), {claim.token: claim for claim in claims[1:]}
        if waiting:
            self.handover.offer(waiting)
        claim: Claim | None = claims[0]
        while claim and not self.board.stop and not self.leftovers.are_final:
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
            if waiting and time.monotonic() - first > HOLD:
                rest = iter(self.handover.take, "")
                self._ask(
                    *RELEASE.call(
                        [f"rqjobs:claims:{self.worker.name}", f"rqjobs:worker:{self.worker.name}"],
                        ["these", "", *rest],
                    )
                )
                return
            own = waiting and self.handover.take()
            claim = waiting.pop(own) if own else None

    def _perform(self, claim: Claim) -> None:
        worker = self.worker
        worker.claim = claim
        if claim.queue not in self.queues:
            self.queues[claim.queue] = worker.queue_class(claim.queue, connection=worker.connection)
            self.queues[claim.queue].redis_server_version = worker.get_redis_server_version()
        queue = self.queues[claim.queue]
        worker.post(
            Board.RUNNING, _deadline(claim)
        )  # from here on a death counts; its hash may be what kills us
        try:
            job = worker.job_class.found(claim.job_id, claim.fields, worker.connection)
            job.origin = claim.queue
            os.environ["RQ_JOB_ID"] = job.id
        except Exception as error:
            message = f"The job's hash in Redis cannot be read: {texts.describe(error)}"
            worker.log.error("Worker %s: job %s: %s", worker.name, claim.job_id, message)
            worker.told(claim.job_id, worker.bury(claim, message))
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
        self.inherited.tidy()
        isolate(worker.perform_job, job, queue)
        self.leftovers.undo()
        self.inherited.tidy()
        if worker.handed_over != claim.token:
            self._fail_unsettled(claim)
        self.board.done += 1

    def _fail_unsettled(self, claim: Claim) -> None:
        worker = self.worker
        message = (
            f"{type(worker).__name__}.perform_job returned without recording an outcome; let it call "
            f"super().perform_job"
        )
        worker.log.error("Worker %s: job %s: %s", worker.name, claim.job_id, message)
        worker.told(claim.job_id, worker.bury(claim, message))

    def _spent(self) -> str:
        """Why a fresh horse is wanted, if it is: it ran as many jobs as it may, a job has left what cannot be
        undone, or it grew by more than it may."""
        if self.leftovers.are_final:
            return "replaced"
        if self.settings.max_jobs_per_child and self.board.done >= self.settings.max_jobs_per_child:
            return "replaced"
        limit, now = self.terms.max_growth, time.monotonic()
        if not limit or now - self.measured < MEMORY_LOOK_SECONDS:
            return ""
        self.measured = now
        if processes.memory() - self.memory <= limit:
            return ""
        processes.trim()  # what is free, and not given back yet, is no growth
        return "grown" if processes.memory() - self.memory > limit else ""

    def _leave(self, why: str) -> str:
        """Settle what is unsettled, end the waits, and say why. What else is in the claims, the parent or the next
        horse sees to."""
        if self.outbox.outcomes or self.waits.open:
            self._ask()
        self.board.post(Board.LEAVING, why)
        return why

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


class Handover:
    """Claimed jobs that have not begun, by their tokens: each belongs to whoever reads it, the horse or its parent,
    never to both.

    A pipe whose reading end both hold. The kernel lets one of them read at a time, and whole tokens go in and out.
    """

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def offer(self, tokens: Iterable[str]) -> None:
        os.write(self.writer, "".join(tokens).encode())

    def take(self) -> str:
        """The token of the next one, which is the caller's now; "" if there is none."""
        try:
            return os.read(self.reader, ledger.TOKEN).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


def begin_child(worker: Settling, board: Board, parent: int, inherited: Inherited) -> None:
    """In a child that the worker's parent has just forked: it dies with the parent, and shares nothing else with it."""
    processes.die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    os.setpgrp()
    children.begin()
    inherited.renew()
    random.seed()
    worker._is_horse = True
    worker.board = board


def saddle(
    worker: Settling,
    board: Board,
    control: socket.socket,
    terms: Terms,
    handover: Handover,
    parent: int,
    inherited: Inherited,
) -> None:
    """The life of the forked child: never returns."""
    code = 1
    try:
        begin_child(worker, board, parent, inherited)
        gc.freeze()  # what was loaded before never becomes garbage; looking at it would copy its pages
        Horse(worker, board, control, terms, handover, inherited).run()
        code = 0
        children.end()
    except BaseException:
        worker.log.error("Worker %s: its horse failed", worker.name, exc_info=True)
    finally:
        children.flush()
        os._exit(code)
