"""Runs jobs in the process of a test, as a worker does: with its claim and its settlement."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis
import rq.job
from rq.executions import Execution
from rq.timeouts import BaseDeathPenalty

from rqjobs import catalog, config, rq_patches, texts
from rqjobs.broker import keys, leases, transitions
from rqjobs.broker.places import queue_names
from rqjobs.broker.scripts import CLAIM
from rqjobs.broker.transitions import Claim
from rqjobs.instrumentation import run_isolated
from rqjobs.jobs import Job
from rqjobs.queues import Queue
from rqjobs.serializers import ConfiguredSerializer
from rqjobs.testing.private_redis import variables_set
from rqjobs.worker.recording import RecordingClient
from rqjobs.worker.settle_reply import SettleReply
from rqjobs.worker.settlement import SettlementMixin

MAX_JOB_RUNS = 10_000  # of one enqueue: more come from a job that enqueues itself for ever
MAX_DEPTH = 20  # of jobs that run while another one enqueues them; deeper ones run after it
NAME_OF_ID_VARIABLE = "RQ_JOB_ID"
_numbers = itertools.count(1)
_depth = contextvars.ContextVar("rqjobs_depth", default=0)  # of the job that runs


class NoTimeLimit(BaseDeathPenalty):
    """RQ's time limit uses a signal, which the test and its other plugins need themselves."""

    def setup_death_penalty(self) -> None:
        """Start no time limit."""

    def cancel_death_penalty(self) -> None:
        """End no time limit."""


class TestWorker(SettlementMixin):
    """Runs one job in the calling thread.

    It claims and settles the job by the scripts of a real worker, and is not registered with RQ.
    """

    __test__ = False  # for pytest, which collects classes by their names
    death_penalty_class = NoTimeLimit  # type: ignore[assignment]
    error: BaseException | None = None  # of the last run

    def __init__(self, client: redis.Redis):
        super().__init__(
            ["default"],
            f"test-{os.getpid()}-{next(_numbers)}",
            connection=RecordingClient(client),
            job_class=Job,
            queue_class=Queue,
            serializer=ConfiguredSerializer,
            prepare_for_work=False,
        )
        self.own_pid = os.getpid()

    def _set_connection(self, connection: Any) -> Any:
        """RQ sets a time-out of seven minutes."""
        return connection

    def take(self, names: list[str]) -> Claim | None:
        """Claim a job of these queues; None if none of them may run now."""
        where = {"host": "", "pid": os.getpid(), "started": ""}
        leases.renew_lease(self.client, self.name, where)
        while True:
            arguments = transitions.claim_arguments(self.name, names, 1)
            reply = CLAIM.run(self.client, *arguments)
            try:
                claims = transitions.read_claims(reply)
            except transitions.Suspended:
                return None
            if claims or not transitions.is_cut_short(reply):
                return claims[0] if claims else None

    def run(self, claim: Claim) -> None:
        """Run and settle a claimed job, in a context of its own. `error` is what it raised."""
        self.claim = claim
        self.error = None
        self.execution = Execution("", "", self.client)
        try:
            job = self.job_class.from_hash(claim.job_id, claim.fields, self.connection)
        except Exception as error:
            reason = texts.describe_error(error)
            self.fail_job(claim, f"The job's hash in Redis cannot be read: {reason}")
            return
        job.origin = claim.queue
        job.worker_name = self.name
        job.claim_token = claim.token
        job._status = rq.job.JobStatus.STARTED
        queue = self.queue_class(claim.queue, connection=self.connection)
        job.redis_server_version = queue.redis_server_version = self.get_redis_server_version()
        run_isolated(self.perform_job, job, queue)

    def prepare_job_execution(self, job: Any, remove_from_intermediate_queue: bool = False) -> None:
        """The claim has marked the job as started. The title of the process is the test's."""

    def _is_plain_success(self, job: Any, ttl: int) -> bool:
        """Every outcome is recorded before `run` returns."""
        return False

    def handle_exception(self, job: Any, *exc_info: Any) -> None:
        """Keep the exception for the test."""
        self.error = exc_info[1]
        super().handle_exception(job, *exc_info)

    def fail_job(self, claim: Claim, message: str, status: str = "failed") -> SettleReply:
        """Keep a failure that is not the function's for the test."""
        if self.error is None:
            self.error = RuntimeError(f"job {claim.job_id}: {message}")
        return super().fail_job(claim, message, status)


class JobRunner:
    """Runs the jobs that wait in the test's Redis.

    `errors` has what the last run of a job raised, by the job's id. A job that is run again, and
    succeeds, leaves none.
    """

    def __init__(self, get_client: Callable[[], redis.Redis]):
        self._get_client = get_client
        self.errors: dict[str, BaseException] = {}
        self._runs = 0  # since the test called

    def run(self, jobs: list[Job]) -> list[BaseException]:
        """Run these jobs now, and unless a job calls this, all other waiting jobs; returns errors.

        Raises:
            RuntimeError: more than `MAX_JOB_RUNS` jobs have run.
        """
        depth = _depth.get()
        if depth == 0:
            self._runs = 0
        for job in jobs:
            if job.existing is None and depth < MAX_DEPTH:
                self._run_while_queued(job.id, job.origin)
        if depth == 0:
            self._run_others()
            errors = list(self.errors.values())
            self.errors.clear()
            return errors
        found = [self.errors.pop(job.id, None) for job in jobs]
        return [error for error in found if error is not None]

    def run_all(self, first_queues: Iterable[str] = ()) -> int:
        """Run jobs until none waits that may run; returns the number of runs.

        `first_queues`: run the first job of each of these, in this order, before the others.

        Raises:
            RuntimeError: more than `MAX_JOB_RUNS` jobs have run.
        """
        self._runs = 0
        for queue in first_queues:
            self._run_next([queue])
        self._run_others()
        return self._runs

    def _run_others(self) -> None:
        while self._run_next(self._queue_names()):
            pass

    def _queue_names(self) -> list[str]:
        first = config.current().queues
        others = sorted(set(queue_names(self._get_client())) - set(first))
        return [*first, *others]

    def _run_while_queued(self, job_id: str, queue: str) -> None:
        """Run a job before the others of its queue, also its retries and repeats without a delay."""
        client = self._get_client()
        while client.lrem(keys.queue(queue), 1, job_id):
            client.lpush(keys.queue(queue), job_id)
            if not self._run_next([queue]):
                return

    def _run_next(self, names: list[str]) -> bool:
        """Run the first job of these queues that may run; False if there is none."""
        worker = TestWorker(self._get_client())
        claim = worker.take(names)
        if claim is None:
            return False
        self._runs += 1
        if self._runs > MAX_JOB_RUNS:
            raise RuntimeError(
                f"{MAX_JOB_RUNS:,} jobs have run, and others wait: does a job enqueue itself, or "
                f"another one, for ever?"
            )
        app = _app_of_test()
        arguments = (worker, claim, app, _depth.get() + 1)
        in_thread_without_loop(contextvars.Context().run, _run_in_job, *arguments)
        self.errors.pop(claim.job_id, None)
        error = worker.error
        if error is not None and not isinstance(error, Exception | SystemExit):
            raise error  # Ctrl-C, or pytest.fail
        if error is not None:
            self.errors[claim.job_id] = error
        return True


def _run_in_job(worker: TestWorker, claim: Claim, app: Any, depth: int) -> None:
    _depth.set(depth)
    with (
        variables_set({NAME_OF_ID_VARIABLE: claim.job_id}),
        rq_patches.installed_for_now(),
        catalog.flask_app_for_now(app),
    ):
        worker.run(claim)


def _app_of_test() -> Any:
    """The app whose context the test, or the request, has entered; None if jobs have no app."""
    flask = sys.modules.get("flask")
    if flask is None or not flask.has_app_context():
        return None
    if catalog.flask_app_in_use() is None and not config.current().flask_app:
        return None
    return flask.current_app._get_current_object()


def in_thread_without_loop(function: Callable[..., Any], *args: Any) -> None:
    """Call a function in this thread; in another one, and wait for it, if an event loop runs here.

    A worker has no running event loop, so a job may start one.
    """
    if not _is_loop_running():
        function(*args)
        return
    with ThreadPoolExecutor(1) as executor:
        executor.submit(function, *args).result()


def _is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
