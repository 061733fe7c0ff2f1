"""The fixtures `jobs_recorded`, `jobs_inline` and `jobs_redis`, as context managers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import redis

from rqjobs import connection, storing
from rqjobs.broker import enqueueing
from rqjobs.broker.enqueueing import Placement
from rqjobs.testing import burst_worker
from rqjobs.testing.job_log import JobLog
from rqjobs.testing.job_runner import JobRunner
from rqjobs.testing.private_redis import PrivateRedis, Use


class RecordedJobs(JobLog):
    """The fixture `jobs_recorded`: jobs are kept, and do not run.

    Plain jobs are kept in this process. A call that needs a Redis (a unique key, a dependency, a
    schedule, the status of a job) starts the private one, which then has all the jobs.
    """

    def __init__(self) -> None:
        super().__init__(time.time, lambda: self._use.has_begun)
        self._use: Use
        self._runner = JobRunner(connection.client)
        self._kept: list[list[Placement]] = []

    @contextlib.contextmanager
    def active(self, server: PrivateRedis) -> Iterator[RecordedJobs]:
        """Record the jobs of the block."""
        self._use = Use(server, self._store_kept)
        with server.in_use(self._use), storing.replaced_by(self._store, time.time):
            yield self

    def _store(self, client: redis.Redis, placements: list[Placement], jobs: list[Any]) -> None:
        enqueued = self._get_time()  # before Redis is started, which may take a second
        if self._use.has_begun or not all(map(_is_plain, placements)):
            self._use.begin()
            storing.store_in_redis(connection.client(), placements, jobs)
        else:
            self._kept.append(placements)
            storing.call_hooks(jobs)
        self.record(placements, jobs, enqueued)

    def _store_kept(self) -> None:
        with self._use.server.client() as client:
            for placements in self._kept:
                enqueueing.enqueue(client, placements)
        self._kept.clear()

    def run(self) -> int:
        """Run the jobs that wait, in their order, in this process; returns the number of runs.

        Jobs that these enqueue run too. Delayed jobs do not.

        Raises:
            Exception: what a job has raised, after all have run.
        """
        self._use.begin()
        waiting = [entry.queue for entry in self._all() if entry.due is None]
        runs = self._runner.run_all(waiting)
        raise_first(self._runner)
        return runs


class InlineJobs(JobLog):
    """The fixture `jobs_inline`: each job runs in this process while it is enqueued.

    `raises`: whether an enqueue raises what its job has raised. `errors` has all such exceptions.
    """

    def __init__(self) -> None:
        super().__init__(time.time, lambda: True)
        self.raises = True
        self.errors: list[BaseException] = []
        self._runner = JobRunner(connection.client)

    @contextlib.contextmanager
    def active(self, server: PrivateRedis) -> Iterator[InlineJobs]:
        """Run the jobs of the block at once."""
        with server.in_use(Use(server), at_once=True), storing.replaced_by(self._store):
            yield self

    def _store(self, client: redis.Redis, placements: list[Placement], jobs: list[Any]) -> None:
        storing.store_in_redis(connection.client(), placements, jobs)
        self.record(placements, jobs)
        errors = self._runner.run(jobs)
        self.errors += errors
        if errors and self.raises:
            raise errors[0]


class RedisJobs(JobLog):
    """The fixture `jobs_redis`: a private Redis, and a real worker when the test asks for one."""

    def __init__(self) -> None:
        super().__init__(time.time, lambda: True)
        self.url = ""

    @contextlib.contextmanager
    def active(self, server: PrivateRedis) -> Iterator[RedisJobs]:
        """Let the jobs of the block go to the private Redis."""
        self.url = server.url
        store = storing.store_in_redis
        with server.in_use(Use(server), at_once=True), storing.replaced_by(store):
            yield self

    @property
    def client(self) -> redis.Redis:
        """The client of the private Redis."""
        return connection.client()

    def work(self, *queues: str, timeout: float = burst_worker.TIMEOUT_SECONDS) -> str:
        """Run a worker process until its queues are empty; returns its output.

        Args:
            queues: names in order of priority; the default is RQJOBS_QUEUES, and then all others.
            timeout: seconds after which the worker is killed.

        Raises:
            RuntimeError: the worker could not work, or was killed. The message has its output.
        """
        return burst_worker.run(connection.client(), queues, timeout)


def raise_first(runner: JobRunner) -> None:
    """Raise the first error of the jobs that have run, and forget the others."""
    errors = list(runner.errors.values())
    runner.errors.clear()
    if errors:
        raise errors[0]


def _is_plain(placement: Placement) -> bool:
    """Whether Redis does not decide how the job is stored."""
    is_free = placement.new and not placement.parents
    return is_free and not any(field.startswith("rqjobs_") for field in placement.fields)
