"""What `make chaos` runs on: a Redis that can be killed, workers that can be killed, and a load of mixed jobs."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
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
QUEUES = ("high", "default", "low")
FOREVER = 24 * 3600  # seconds that results are kept: nothing may expire before it was counted
BACKLOG = 300  # jobs that wait at most


class Server:
    """A Redis with an append-only file, in a folder of its own."""

    def __init__(self, home: Path, appendfsync: str = "everysec"):
        self.home = home
        self.options = ("--appendfsync", appendfsync, "--auto-aof-rewrite-percentage", "0")
        self.running: Any = None
        self.sizes: list[tuple[float, int]] = []  # of the append-only file, with the time
        self.start()

    def start(self) -> None:
        self.running = redis_server.server(self.home, *self.options)
        self.url = self.running.__enter__()
        config.use(config.Config(redis_url=self.url, modules=("chaos_jobs",), queues=QUEUES))
        self.client = connection.client()
        self.pid = self.client.info("server")["process_id"]

    def kill(self, forget: float = 0.0) -> None:
        """SIGKILL it; then cut from its file what came in the last `forget` seconds, as if the power had failed."""
        os.kill(self.pid, signal.SIGKILL)
        before = [size for moment, size in self.sizes if moment <= time.monotonic() - forget]
        self.stop()
        if forget and before:
            os.truncate(self.file(), before[-1])
        self.sizes.clear()

    def file(self) -> Path:
        return max([*self.home.glob("appendonlydir/*.incr.aof"), *self.home.glob("appendonly.aof")])

    def note_size(self) -> None:
        self.sizes.append((time.monotonic(), self.file().stat().st_size))

    def stop(self) -> None:
        if self.running:
            self.running.__exit__(None, None, None)
            self.running = None


class Team:
    """Real workers, started with the one true command. Any that ends without having been told to is a `quitter`."""

    def __init__(self, server: Server, home: Path, grace: int = 20):
        self.server, self.home = server, home
        self.runs = home / "runs"
        keep = {name: value for name, value in os.environ.items() if not name.startswith("RQJOBS_")}
        self.environ = {
            **keep,
            "REDIS_URL": server.url,
            "RQJOBS_MODULES": "chaos_jobs",
            "RQJOBS_SHUTDOWN_TIMEOUT": str(grace),
            "CHAOS_RUNS": str(self.runs),
            "PYTHONPATH": f"{HERE.parent}:{HERE}",
            "PYTHONWARNINGS": "default",
        }
        self.alive: list[subprocess.Popen[bytes]] = []
        self.leaving: list[subprocess.Popen[bytes]] = []
        self.quitters: list[str] = []
        self.hits: list[
            tuple[str, float, str]
        ] = []  # job id, time and target of each kill that hit a claim
        self.returns: list[float] = []  # when Redis was there again
        self.kills = self._count = 0

    def hire(self, scheduler: bool = True, name: str = "") -> subprocess.Popen[bytes]:
        self._count += 1
        log = self.home / f"worker-{self._count}.log"
        command = [
            sys.executable,
            "-m",
            "rq.cli",
            "worker",
            "--worker-class",
            "rqjobs.Worker",
            "--results-ttl",
            str(FOREVER),
            "--quiet",
            *(["--with-scheduler"] if scheduler else []),
            *(["--name", name] if name else []),
            *QUEUES,
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=self.environ,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process.log, process.title = log, name  # type: ignore[attr-defined]
        self.alive.append(process)
        return process

    def look(self) -> None:
        """Note who left without being told, and who was told and has left."""
        for process in [*self.alive]:
            if process.poll() is not None:
                self.alive.remove(process)
                words = process.log.read_text(errors="replace").strip()[-2000:]  # type: ignore[attr-defined]
                self.quitters.append(
                    f"worker {process.pid} quit with {process.returncode}: {words}"
                )
        for process in [*self.leaving]:
            if process.poll() is not None:
                self.leaving.remove(process)
                if process.returncode not in (
                    0,
                    -signal.SIGTERM,
                ):  # the latter while it is still being started
                    self.quitters.append(f"worker {process.pid} left with {process.returncode}")

    def ready(self) -> list[subprocess.Popen[bytes]]:
        """Those that are registered, and so about to work."""
        self.look()
        pids = {
            self.server.client.hget(key, "pid") for key in self.server.client.smembers("rq:workers")
        }
        return [process for process in self.alive if b"%d" % process.pid in pids]

    def name_of(self, process: subprocess.Popen[bytes]) -> str:
        for key in self.server.client.smembers("rq:workers"):
            if self.server.client.hget(key, "pid") == str(process.pid).encode():
                return keys.decode(key).removeprefix("rq:worker:")
        return ""

    def strike(self, process: subprocess.Popen[bytes], what: str) -> bool:
        """SIGKILL a worker, its horse or its scheduler ("parent", "horse", "scheduler"); whether it held a claim.

        It is frozen for the instant in which we look, so that it cannot settle between the look and the blow.
        """
        name = self.name_of(process)
        children = psutil.Process(process.pid).children()
        horses = [child for child in children if os.getpgid(child.pid) == child.pid]
        others = [child for child in children if child not in horses]
        targets = {"parent": [psutil.Process(process.pid)], "horse": horses, "scheduler": others}[
            what
        ]
        if not targets or not (name or what == "parent"):
            return False
        frozen = targets if what == "scheduler" else [*horses, *targets]
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in frozen:
                one.suspend()
        held = (
            [] if what == "scheduler" else self.server.client.lrange(f"rqjobs:claims:{name}", 0, -1)
        )
        now = time.monotonic()
        if what == "parent":
            self.alive.remove(process)
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in targets:
                one.kill()
        if what == "parent":
            process.wait()
        self.kills += 1
        self.hits += [(keys.decode(job_id), now, what) for job_id in held]
        return bool(held)

    def dismiss(self, process: subprocess.Popen[bytes]) -> None:
        """SIGTERM."""
        self.alive.remove(process)
        self.leaving.append(process)
        process.terminate()

    def end(self, seconds: float = 60.0) -> None:
        """All leave in good order; who does not is killed, and is a quitter."""
        deadline = time.monotonic() + seconds
        while len(self.ready()) < len(self.alive) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in [*self.alive]:
            self.dismiss(process)
        while self.leaving and time.monotonic() < deadline:
            self.look()
            time.sleep(0.05)
        for process in self.leaving:
            self.quitters.append(f"worker {process.pid} did not leave within {seconds:.0f} s")
        self.kill_all()

    def kill_all(self) -> None:
        for process in [*self.alive, *self.leaving]:
            family = []
            with contextlib.suppress(psutil.NoSuchProcess):
                family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            for child in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        self.alive, self.leaving = [], []


class Load(threading.Thread):
    """Enqueues mixed jobs, never more than `BACKLOG` waiting, until it is told `enough`. Knows what was accepted.

    `pace` is the mean length of a job in seconds. A job whose enqueue raised may or may not have been accepted; it is
    in `unsure`.
    """

    def __init__(
        self, server: Server, at_least: int, pace: float, mixed: bool = True, long: float = 0.0
    ):
        super().__init__(daemon=True)
        self.server, self.at_least, self.pace, self.mixed, self.long = (
            server,
            at_least,
            pace,
            mixed,
            long,
        )
        self.accepted: dict[str, str] = {}  # job id -> kind
        self.unsure: dict[str, str] = {}
        self.refused = self.doubled = 0  # second enqueues of unique jobs
        self.enough, self.stopped = threading.Event(), threading.Event()
        self.trouble: Exception | None = None

    def run(self) -> None:
        makers: list[Callable[[str], None]] = [
            self._plain,
            self._plain,
            self._plain,
            self._failing,
            self._flaky,
            self._later,
            self._retry_later,
            self._again,
            self._repeat,
            self._repeat_later,
            self._family,
            self._unique,
            self._failing_retry,
        ]
        number = 0
        while not (self.enough.is_set() and len(self.accepted) >= self.at_least):
            number += 1
            try:
                if number % 20 == 0:
                    while (
                        sum(self.server.client.llen(f"rq:queue:{name}") for name in QUEUES)
                        > BACKLOG
                    ):
                        time.sleep(0.05)
                (random.choice(makers) if self.mixed else self._plain)(f"{number:06d}")
            except redis.RedisError:
                time.sleep(0.05)
            except Exception as error:
                self.trouble = error
                break
        self.stopped.set()

    def _send(
        self, kind: str, job_id: str, send: Callable[..., Any], *args: Any, **options: Any
    ) -> None:
        self.unsure[job_id] = kind
        send(*args, job_id=job_id, result_ttl=FOREVER, failure_ttl=FOREVER, **options)
        del self.unsure[job_id]
        self.accepted[job_id] = kind

    def _enqueue(self, kind: str, job_id: str, function: Any, **options: Any) -> None:
        queue = queues.Queue(random.choice(QUEUES), connection=self.server.client)
        self._send(kind, job_id, queue.enqueue, function, self._seconds(), **options)

    def _seconds(self) -> float:
        return (
            self.long if self.long and random.random() < 0.02 else random.expovariate(1 / self.pace)
        )

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

    def _later(self, job_id: str) -> None:
        queue = queues.Queue(random.choice(QUEUES), connection=self.server.client)
        self._send(
            "scheduled",
            job_id,
            queue.enqueue_in,
            queues.timedelta(seconds=random.random() * 3),
            chaos_jobs.work,
            self._seconds(),
        )

    def _family(self, job_id: str) -> None:
        """A parent, two children, and a grandchild of both."""
        self._enqueue("plain", job_id, chaos_jobs.work)
        for letter in "ab":
            self._enqueue(
                f"dependent {job_id}", job_id + letter, chaos_jobs.work, depends_on=job_id
            )
        both = [job_id + "a", job_id + "b"]
        self._enqueue("dependent " + " ".join(both), job_id + "c", chaos_jobs.work, depends_on=both)

    def _unique(self, job_id: str) -> None:
        self._enqueue("unique", job_id, chaos_jobs.work, unique=True)
        try:
            queues.Queue("default", connection=self.server.client).enqueue(
                chaos_jobs.work, job_id=job_id, unique=True, result_ttl=FOREVER
            )
            self.doubled += 1
        except DuplicateJobError:
            self.refused += 1
