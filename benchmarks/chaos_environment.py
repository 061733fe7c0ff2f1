"""The environment of `make chaos`: a Redis and workers that can be killed, and a load of jobs."""

from __future__ import annotations

import contextlib
import enum
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chaos_jobs
import psutil
import redis
from rq import Repeat, Retry
from rq.exceptions import DuplicateJobError

from rqjobs import config, connection, queues
from rqjobs.broker import keys
from rqjobs.dev import redis_server

HERE = Path(__file__).parent
MODULES = ("chaos_jobs", "chaos_policy_jobs", "chaos_loop_jobs", "chaos_flow_jobs")
QUEUE_NAMES = ("high", "default", "low")
KEEP_SECONDS = 24 * 3600  # how long RQ keeps a job's outcome, so that none expires uncounted
BACKLOG_MAX_JOBS = 300
LOG_TAIL_CHARACTERS = 2000
LONG_JOB_SHARE = 0.02


class Server:
    """A Redis with an append-only file in `home`."""

    def __init__(self, home: Path, appendfsync: str = "everysec"):
        self.home = home
        self.options = ("--appendfsync", appendfsync, "--auto-aof-rewrite-percentage", "0")
        self.running: Any = None
        self.sizes: list[tuple[float, int]] = []  # times, and sizes of the append-only file
        self.start()

    def start(self) -> None:
        self.running = redis_server.server(self.home, *self.options)
        self.url = self.running.__enter__()
        config.use(config.Config(redis_url=self.url, modules=MODULES, queues=QUEUE_NAMES))
        self.client = connection.client()
        self.pid = self.client.info("server")["process_id"]

    def kill(self, lost_seconds: float = 0.0) -> None:
        """Kill Redis, and cut the last `lost_seconds` from its file, as after a power failure."""
        os.kill(self.pid, signal.SIGKILL)
        cut_at = time.monotonic() - lost_seconds
        sizes = [size for moment, size in self.sizes if moment <= cut_at]
        self.stop()
        if lost_seconds and sizes:
            os.truncate(self.file(), sizes[-1])
        self.sizes.clear()

    def file(self) -> Path:
        return max([*self.home.glob("appendonlydir/*.incr.aof"), *self.home.glob("appendonly.aof")])

    def record_size(self) -> None:
        self.sizes.append((time.monotonic(), self.file().stat().st_size))

    def stop(self) -> None:
        if self.running:
            self.running.__exit__(None, None, None)
            self.running = None


class Target(enum.Enum):
    """The process of a worker that `WorkerGroup.kill` kills."""

    PARENT = "parent"
    HORSE = "horse"
    SCHEDULER = "scheduler"


@dataclass(eq=False)
class Worker:
    """A worker process. `name` is empty if RQ chose the worker's name."""

    process: subprocess.Popen[bytes]
    log: Path
    name: str

    @property
    def pid(self) -> int:
        return self.process.pid

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace").strip()[-LOG_TAIL_CHARACTERS:]


class WorkerGroup:
    """Real workers, started with the documented command.

    `unexpected_exits` describes each worker that ended without a signal from us, ended with an
    error, or did not end in time.
    """

    def __init__(self, server: Server, home: Path, shutdown_timeout_seconds: int = 20):
        self.server = server
        self.home = home
        self.runs_file = home / "runs"
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("RQJOBS_")
        }
        self.environ = {
            **inherited,
            "REDIS_URL": server.url,
            "RQJOBS_MODULES": ",".join(MODULES),
            "RQJOBS_SHUTDOWN_TIMEOUT": str(shutdown_timeout_seconds),
            "CHAOS_RUNS": str(self.runs_file),
            "PYTHONPATH": f"{HERE.parent}:{HERE}",
            "PYTHONWARNINGS": "default",
        }
        self.alive: list[Worker] = []
        self.ending: list[Worker] = []  # after SIGTERM
        self.unexpected_exits: list[str] = []
        # The job and the time of each kill that hit a claim.
        self.killed_claims: list[tuple[str, float]] = []
        self.redis_restarts: list[float] = []  # times
        self.kills = 0
        self._started = 0

    def start(self, scheduler: bool = True, name: str = "") -> Worker:
        self._started += 1
        log_file = self.home / f"worker-{self._started}.log"
        options = ["--worker-class", "rqjobs.Worker", "--results-ttl", str(KEEP_SECONDS), "--quiet"]
        if scheduler:
            options.append("--with-scheduler")
        if name:
            options += ["--name", name]
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "rq.cli", "worker", *options, *QUEUE_NAMES],
                env=self.environ,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = Worker(process, log_file, name)
        self.alive.append(worker)
        return worker

    def check_exits(self) -> None:
        """Remove the workers that have ended, and record unexpected exits."""
        for worker in [*self.alive]:
            if worker.has_ended():
                self.alive.remove(worker)
                self.unexpected_exits.append(
                    f"worker {worker.pid} ended with {worker.process.returncode}: "
                    f"{worker.log_tail()}"
                )
        for worker in [*self.ending]:
            if worker.has_ended():
                self.ending.remove(worker)
                # SIGTERM ends a worker that has not installed its signal handler yet.
                if worker.process.returncode not in (0, -signal.SIGTERM):
                    self.unexpected_exits.append(
                        f"worker {worker.pid} ended after SIGTERM with {worker.process.returncode}"
                    )

    def registered(self) -> list[Worker]:
        """The live workers that are registered with RQ."""
        self.check_exits()
        client = self.server.client
        pids = {client.hget(key, "pid") for key in client.smembers("rq:workers")}
        return [worker for worker in self.alive if b"%d" % worker.pid in pids]

    def registered_name(self, worker: Worker) -> str:
        """RQ's name of a worker; empty if the worker is not registered."""
        client = self.server.client
        for key in client.smembers("rq:workers"):
            if client.hget(key, "pid") == str(worker.pid).encode():
                return keys.decode(key).removeprefix("rq:worker:")
        return ""

    def kill(self, worker: Worker, target: Target) -> bool:
        """Send SIGKILL to a process of a worker; returns whether the worker lost a claim.

        The processes are stopped before the claims are read, so that no claim can be settled
        between the reading and the kill.
        """
        name = self.registered_name(worker)
        children = psutil.Process(worker.pid).children()
        horses = [child for child in children if os.getpgid(child.pid) == child.pid]
        schedulers = [child for child in children if child not in horses]
        victims = {
            Target.PARENT: [psutil.Process(worker.pid)],
            Target.HORSE: horses,
            Target.SCHEDULER: schedulers,
        }[target]
        if not victims or not (name or target is Target.PARENT):
            return False
        claimed: list[bytes] = []
        if target is Target.SCHEDULER:
            _for_each(victims, psutil.Process.suspend)
        else:
            _for_each([*horses, *victims], psutil.Process.suspend)
            claimed = self.server.client.lrange(f"rqjobs:claims:{name}", 0, -1)
        now = time.monotonic()
        if target is Target.PARENT:
            self.alive.remove(worker)
        _for_each(victims, psutil.Process.kill)
        if target is Target.PARENT:
            worker.process.wait()
        self.kills += 1
        self.killed_claims += [(keys.decode(job_id), now) for job_id in claimed]
        return bool(claimed)

    def terminate(self, worker: Worker) -> None:
        """Send SIGTERM."""
        self.alive.remove(worker)
        self.ending.append(worker)
        worker.process.terminate()

    def terminate_all(self, seconds: float = 60.0) -> None:
        """Send SIGTERM to all workers; kill and record those that have not ended in time."""
        deadline = time.monotonic() + seconds
        while len(self.registered()) < len(self.alive) and time.monotonic() < deadline:
            time.sleep(0.05)
        for worker in [*self.alive]:
            self.terminate(worker)
        while self.ending and time.monotonic() < deadline:
            self.check_exits()
            time.sleep(0.05)
        for worker in self.ending:
            self.unexpected_exits.append(
                f"worker {worker.pid} did not end within {seconds:.0f} s after SIGTERM"
            )
        self.kill_all()

    def kill_all(self) -> None:
        for worker in [*self.alive, *self.ending]:
            descendants = []
            with contextlib.suppress(psutil.NoSuchProcess):
                descendants = psutil.Process(worker.pid).children(recursive=True)
            worker.process.kill()
            worker.process.wait()
            for descendant in descendants:
                with contextlib.suppress(psutil.NoSuchProcess):
                    descendant.kill()
        self.alive.clear()
        self.ending.clear()


def _for_each(processes: list[psutil.Process], action: Callable[[psutil.Process], object]) -> None:
    """Apply the action in order, up to the first process that has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in processes:
            action(process)


class Load(threading.Thread):
    """A thread that enqueues mixed jobs, with at most `BACKLOG_MAX_JOBS` waiting.

    It stops when `enough` is set and at least `at_least` jobs are accepted. `pace_seconds` is the
    mean length of a job; if `long_seconds` is set, 2 % of the jobs take that long. `accepted` has
    the kind of each job whose enqueue returned. A job whose enqueue raised an error may or may not
    be in Redis; it stays in `unsure`.
    """

    def __init__(
        self,
        server: Server,
        at_least: int,
        pace_seconds: float,
        mixed: bool = True,
        long_seconds: float = 0.0,
    ):
        super().__init__(daemon=True)
        self.server = server
        self.at_least = at_least
        self.pace_seconds = pace_seconds
        self.mixed = mixed
        self.long_seconds = long_seconds
        self.accepted: dict[str, str] = {}  # job id -> kind
        self.unsure: dict[str, str] = {}
        self.duplicates_refused = 0  # second enqueues of unique jobs
        self.duplicates_accepted = 0
        self.enough = threading.Event()
        self.stopped = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        # A method that is listed several times is chosen more often.
        methods: list[Callable[[str], None]] = [
            self._plain,
            self._plain,
            self._plain,
            self._failing,
            self._flaky,
            self._scheduled,
            self._retry_later,
            self._again,
            self._repeat,
            self._repeat_later,
            self._dependents,
            self._unique,
            self._failing_retry,
        ]
        if not self.mixed:
            methods = [self._plain]
        number = 0
        while not (self.enough.is_set() and len(self.accepted) >= self.at_least):
            number += 1
            try:
                if number % 20 == 0:
                    self._wait_for_workers()
                random.choice(methods)(f"{number:06d}")
            except redis.RedisError:
                time.sleep(0.05)
            except Exception as error:
                self.error = error
                break
        self.stopped.set()

    def _wait_for_workers(self) -> None:
        client = self.server.client
        while sum(client.llen(f"rq:queue:{name}") for name in QUEUE_NAMES) > BACKLOG_MAX_JOBS:
            time.sleep(0.05)

    def _send(
        self, kind: str, job_id: str, send: Callable[..., Any], *args: Any, **options: Any
    ) -> None:
        self.unsure[job_id] = kind
        send(*args, job_id=job_id, result_ttl=KEEP_SECONDS, failure_ttl=KEEP_SECONDS, **options)
        del self.unsure[job_id]
        self.accepted[job_id] = kind

    def _enqueue(self, kind: str, job_id: str, function: Any, **options: Any) -> None:
        queue = self._random_queue()
        self._send(kind, job_id, queue.enqueue, function, self._job_seconds(), **options)

    def _random_queue(self) -> queues.Queue:
        return queues.Queue(random.choice(QUEUE_NAMES), connection=self.server.client)

    def _job_seconds(self) -> float:
        if self.long_seconds and random.random() < LONG_JOB_SHARE:
            return self.long_seconds
        return random.expovariate(1 / self.pace_seconds)

    def _plain(self, job_id: str) -> None:
        self._enqueue("plain", job_id, chaos_jobs.work)

    def _failing(self, job_id: str) -> None:
        self._enqueue("failing", job_id, chaos_jobs.fail)

    def _failing_retry(self, job_id: str) -> None:
        self._enqueue("failing after a retry", job_id, chaos_jobs.fail, retry=Retry(max=1))

    def _flaky(self, job_id: str) -> None:
        self._enqueue("retried", job_id, chaos_jobs.flaky, retry=Retry(max=2))

    def _retry_later(self, job_id: str) -> None:
        self._enqueue("retried later", job_id, chaos_jobs.flaky, retry=Retry(max=1, interval=1))

    def _again(self, job_id: str) -> None:
        self._enqueue("retried by value", job_id, chaos_jobs.again)

    def _repeat(self, job_id: str) -> None:
        self._enqueue("repeated", job_id, chaos_jobs.work, repeat=Repeat(times=2))

    def _repeat_later(self, job_id: str) -> None:
        self._enqueue("repeated", job_id, chaos_jobs.work, repeat=Repeat(times=2, interval=1))

    def _scheduled(self, job_id: str) -> None:
        self._send(
            "scheduled",
            job_id,
            self._random_queue().enqueue_in,
            queues.timedelta(seconds=random.random() * 3),
            chaos_jobs.work,
            self._job_seconds(),
        )

    def _dependents(self, job_id: str) -> None:
        """A job, two jobs that depend on it, and a job that depends on those two."""
        self._enqueue("plain", job_id, chaos_jobs.work)
        both = [job_id + "a", job_id + "b"]
        for child_id in both:
            self._enqueue(f"dependent {job_id}", child_id, chaos_jobs.work, depends_on=job_id)
        self._enqueue("dependent " + " ".join(both), job_id + "c", chaos_jobs.work, depends_on=both)

    def _unique(self, job_id: str) -> None:
        self._enqueue("unique", job_id, chaos_jobs.work, unique=True)
        try:
            queues.Queue("default", connection=self.server.client).enqueue(
                chaos_jobs.work, job_id=job_id, unique=True, result_ttl=KEEP_SECONDS
            )
            self.duplicates_accepted += 1
        except DuplicateJobError:
            self.duplicates_refused += 1
