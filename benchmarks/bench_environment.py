"""The environment of `make bench`: the systems, a Redis, warm workers, and hidden backlogs."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import redis
from peers import work

from rqjobs.dev import redis_server
from rqjobs.processes import die_with_parent

HERE = Path(__file__).parent
PEERS = HERE / "peers"
VENVS = HERE.parent / ".venv-bench"
# redis-server options for each persistence setting. A rewrite of the append-only file during a
# run would slow down only the system that runs at that time, so it is off.
PERSISTENCE_OPTIONS = {
    "off": ("--appendonly", "no"),
    "everysec": (
        "--appendonly",
        "yes",
        "--appendfsync",
        "everysec",
        "--auto-aof-rewrite-percentage",
        "0",
    ),
}
STALL_SECONDS = 60  # a run fails when no job has ended for this long
IDLE_TIMEOUT_SECONDS = 120
LOG_TAIL_CHARACTERS = 2000
COPY_VALUES_SCRIPT = """
-- Copies one page of the hashes and strings of a database to database 0.
-- ARGV: the cursor, the database. Returns the next cursor.
redis.call('SELECT', ARGV[2])
local page = redis.call('SCAN', ARGV[1], 'COUNT', 2000)
for _, key in ipairs(page[2]) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'hash' or kind == 'string' then redis.call('COPY', key, key, 'DB', 0, 'REPLACE') end
end
return page[1]"""
COPY_QUEUES_SCRIPT = """
-- Copies the other keys of a database to database 0 in one step. A stream in database 0 keeps its
-- consumer groups.
-- KEYS: the keys to copy. ARGV: the database.
redis.call('SELECT', ARGV[1])
for _, key in ipairs(KEYS) do
  if redis.call('TYPE', key).ok == 'stream' then
    for _, entry in ipairs(redis.call('XRANGE', key, '-', '+')) do
      redis.call('SELECT', 0)
      redis.call('XADD', key, '*', unpack(entry[2]))
    end
    redis.call('SELECT', ARGV[1])
  else
    redis.call('COPY', key, key, 'DB', 0, 'REPLACE')
  end
end"""


class Failed(Exception):
    """A system could not be measured. The message has the reason and the end of a worker's log."""


def show_progress(line: str = "") -> None:
    """Replace the progress line, if stderr is a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{line}")
        sys.stderr.flush()


@dataclass
class System:
    """A way to run jobs: its packages, the command of its workers, and facts for the report."""

    name: str
    module: str
    version: str  # the distribution whose version is reported
    requires: str  # the arguments of `pip install`; empty: the environment of rqjobs is used
    run: str
    acks: str  # "before" or "after" the run of a job
    results: str
    log: str
    start: int = 1  # how many processes are started with the command `run`
    jobs: int = 20_000  # the maximum of one run
    env: dict[str, str] = field(default_factory=dict)

    @property
    def bin(self) -> Path:
        if self.requires:
            return VENVS / self.module / "bin"
        return Path(sys.executable).parent

    def install(self) -> str:
        """Create the system's virtual environment if it is missing; returns the system's version.

        Raises:
            Failed: pip could not install the system.
        """
        installed = VENVS / self.module / "requires"
        if self.requires and not (installed.exists() and installed.read_text() == self.requires):
            show_progress(f"{self.name}: installing {self.requires}")
            subprocess.run(
                [sys.executable, "-m", "venv", "--clear", VENVS / self.module], check=True
            )
            self._pip_install()
            installed.write_text(self.requires)
        code = f"import importlib.metadata as m; print(m.version({self.version!r}))"
        return subprocess.run(
            [self.bin / "python", "-c", code], capture_output=True, text=True
        ).stdout.strip()

    def _pip_install(self) -> None:
        pip = [
            self.bin / "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *self.requires.split(),
        ]
        done = subprocess.run(pip, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise Failed(f"pip: {(done.stderr.strip().splitlines() or ['?'])[-1]}")


def systems() -> list[System]:
    """The systems that the files in peers/ describe, rqjobs first.

    The files are parsed and not imported, because each needs its own virtual environment.
    """
    found = []
    for file in sorted(
        PEERS.glob("*_jobs.py"), key=lambda file: (file.name != "rq_jobs.py", file.name)
    ):
        about = next(
            ast.literal_eval(node.value)
            for node in ast.parse(file.read_text()).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ABOUT"
        )
        for name, own in about.pop("systems").items():
            found.append(System(name=name, module=file.stem, **{**about, **own}))
    return found


class Environment:
    """An empty Redis with a temporary folder, for one scenario.

    The workers use database 0. Backlogs are prepared in the other databases.
    """

    def __init__(self, home: Path, url: str, setting: str):
        self.home = home
        self.url = url
        self.setting = setting
        self.redis = redis.Redis.from_url(url)
        self.pid = self.redis.info("server")["process_id"]
        self.marks = home / "marks"

    def environ(self, system: System, database: int = 0) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RQJOBS_", "VIRTUAL_ENV", "PYTHONPATH"))
        }
        return {
            **inherited,
            "PATH": f"{system.bin}:{os.environ['PATH']}",
            "REDIS_URL": f"{self.url}?db={database}",
            "BENCH_MARKS": str(self.marks),
            "PYTHONPATH": str(PEERS),
            **system.env,
        }

    def run_client(self, system: System, *arguments: str, database: int = 0) -> Any:
        """Run peers/work.py for the system; returns the JSON that it printed, or None.

        Raises:
            Failed: the program exited with an error.
        """
        done = subprocess.run(
            [system.bin / "python", PEERS / "work.py", system.module, *arguments],
            text=True,
            env=self.environ(system, database),
            cwd=self.home,
            capture_output=True,
        )
        if done.returncode:
            raise Failed(f"{system.name}: {arguments} failed: {done.stderr[-LOG_TAIL_CHARACTERS:]}")
        if not done.stdout.strip():
            return None
        return json.loads(done.stdout)

    def prepare_backlog(
        self, system: System, number: int, kind: str = "noop", database: int = 1
    ) -> None:
        """Let the system's own client enqueue a backlog in a database that no worker reads."""
        show_progress(f"{system.name}: preparing a backlog of {number:,}")
        with redis.Redis.from_url(f"{self.url}?db={database}") as hidden:
            hidden.flushdb()
        arguments = ["fill", str(number)]
        if system.module == "rq_jobs" or kind != "noop":
            arguments.append(kind)
        self.run_client(system, *arguments, database=database)

    def publish(self, database: int = 1) -> int:
        """Copy the backlog to database 0 in one step; returns the time of that, in nanoseconds."""
        with redis.Redis.from_url(f"{self.url}?db={database}") as hidden:
            kinds = ("list", "set", "zset", "stream")
            queue_keys = [key for kind in kinds for key in hidden.scan_iter(_type=kind, count=2000)]
        cursor: Any = 0
        while (cursor := int(self.redis.eval(COPY_VALUES_SCRIPT, 0, cursor, database))) != 0:
            pass
        if self.setting != "off":
            time.sleep(1.5)  # until the next fsync: the workers must not wait for our own writes
        begun = time.monotonic_ns()
        self.redis.eval(COPY_QUEUES_SCRIPT, len(queue_keys), *queue_keys, database)
        return begun

    def used_bytes(self) -> int:
        """Bytes that Redis uses, without its clients' buffers."""
        stats = self.redis.memory_stats()
        return int(stats["total.allocated"] - stats["clients.normal"])


@contextlib.contextmanager
def new_environment(setting: str = "off") -> Iterator[Environment]:
    """Start a Redis with this persistence, a key of `PERSISTENCE_OPTIONS`; stop it at the end."""
    options = ("--databases", "64", *PERSISTENCE_OPTIONS[setting])
    with (
        tempfile.TemporaryDirectory(prefix="rqjobs-bench-") as folder,
        redis_server.server(Path(folder), *options) as url,
    ):
        environment = Environment(Path(folder), url, setting)
        with environment.redis:
            yield environment


class WorkerGroup:
    """The workers of a system, running and warm for the length of a `with` block."""

    def __init__(
        self, environment: Environment, system: System, workers: int = 10, warm_up_jobs: int = 100
    ):
        self.environment = environment
        self.system = system
        self.workers = workers
        self.warm_up_jobs = warm_up_jobs
        self.processes: list[subprocess.Popen[bytes]] = []
        self.counted_before = 0  # jobs that had ended before the backlog was published
        self.published_at = 0  # nanoseconds

    def __enter__(self) -> WorkerGroup:
        show_progress(f"{self.system.name}: starting the workers")
        self.environment.redis.flushdb()
        os.environ["BENCH_MARKS"] = str(self.environment.marks)
        self.environment.marks.write_bytes(b"")
        starts = self.workers if self.system.start > 1 else 1
        for number in range(starts):
            self._start_process(number)
        try:
            self.wait_until_idle()
            if self.warm_up_jobs:
                self.environment.run_client(self.system, "fill", str(self.warm_up_jobs))
                self.wait(self.warm_up_jobs)
                self.wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_process(self, number: int) -> None:
        with self._log(number).open("wb") as log:
            process = subprocess.Popen(
                shlex.split(self.system.run),
                env=self.environment.environ(self.system),
                cwd=self.environment.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(signal.SIGTERM),
            )
        self.processes.append(process)

    def __exit__(self, *_: Any) -> None:
        family = self.family()
        for process in self.processes:
            process.terminate()
        psutil.wait_procs(family, 3)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        for process in self.processes:
            process.wait()

    def family(self) -> list[psutil.Process]:
        """The started processes and all their descendants."""
        found = []
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [parent := psutil.Process(process.pid), *parent.children(recursive=True)]
        return found

    def cpu_seconds(self) -> float:
        """CPU seconds that the workers have used so far."""
        total = 0.0
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.cpu_times().user + process.cpu_times().system
        return total

    def pss_bytes(self) -> int:
        """The workers' proportional set size: each shared page is counted once (Linux only)."""
        total = 0
        for process in self.family():
            with contextlib.suppress(OSError):  # an RQ horse has ended
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                pss = re.search(r"^Pss: +(\d+) kB", text, re.M)
                total += int(pss[1]) * 1024 if pss else 0
        return total

    def wait_until_idle(self) -> None:
        """Wait until all workers have started: they use less than 0.1 CPU seconds in half a second.

        Raises:
            Failed: the workers are still busy after two minutes.
        """
        deadline = time.monotonic() + IDLE_TIMEOUT_SECONDS
        last = -1.0
        while (now := self.cpu_seconds()) - last > 0.1 or last < 0:
            self.check()
            if time.monotonic() > deadline:
                raise Failed(
                    f"{self.system.name}: the workers do not become idle "
                    f"within {IDLE_TIMEOUT_SECONDS} s"
                )
            last = now
            time.sleep(0.5)

    def check(self) -> None:
        """Raise `Failed` if a worker has ended."""
        for number, process in enumerate(self.processes):
            if process.poll() is not None:
                raise Failed(
                    f"{self.system.name}: a worker ended with {process.returncode}: "
                    f"{self._log_tail(number)}"
                )

    def _log(self, number: int) -> Path:
        return self.environment.home / f"worker-{number}.log"

    def _log_tail(self, number: int) -> str:
        return self._log(number).read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]

    def publish(self, database: int = 1) -> None:
        """Make the backlog visible to the workers."""
        self.counted_before = work.count()
        self.published_at = self.environment.publish(database)

    def wait(self, number: int) -> list[tuple[int, int]]:
        """Wait until `number` of the jobs that were published last have run.

        Returns the start and the end of each job, in nanoseconds, sorted.

        Raises:
            Failed: a worker ended, or no job ended for `STALL_SECONDS`.
        """
        done = 0
        progressed_at = time.monotonic()
        while (ended := work.count() - self.counted_before) < number:
            self.check()
            show_progress(f"{self.system.name}: {ended:,} of {number:,} jobs")
            if ended > done:
                done = ended
                progressed_at = time.monotonic()
            elif time.monotonic() - progressed_at > STALL_SECONDS:
                raise Failed(
                    f"{self.system.name}: {done} of {number} jobs done, no more in "
                    f"{STALL_SECONDS} s; {self._log_tail(0)}"
                )
            time.sleep(0.3)
        return work.marks(self.published_at)

    def drain(self, number: int, database: int = 1) -> list[tuple[int, int]]:
        """Publish the backlog and `wait` until `number` jobs have run."""
        self.publish(database)
        return self.wait(number)


def elapsed_seconds(times: list[tuple[int, int]]) -> float:
    """Seconds from the start of the first job to the end of the last."""
    return (max(ended for _, ended in times) - times[0][0]) / 1e9


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]
