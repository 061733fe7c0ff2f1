"""What `make bench` runs on: the systems, a Redis, workers that are warm, and backlogs that appear at once."""

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
SETTINGS = {
    "off": (
        "--appendonly",
        "no",
    ),  # and the file is not written anew in the middle of somebody's run
    "everysec": (
        "--appendonly",
        "yes",
        "--appendfsync",
        "everysec",
        "--auto-aof-rewrite-percentage",
        "0",
    ),
}
STALLED = 60  # seconds without a job ending, after which a run has failed
COPY_VALUES = """
-- ARGV: a cursor, a database. Copies a page of its hashes and strings to database 0; returns the next cursor.
redis.call('SELECT', ARGV[2])
local page = redis.call('SCAN', ARGV[1], 'COUNT', 2000)
for _, key in ipairs(page[2]) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'hash' or kind == 'string' then redis.call('COPY', key, key, 'DB', 0, 'REPLACE') end
end
return page[1]"""
COPY_QUEUES = """
-- KEYS: the other keys of the database ARGV[1]. Copies them to database 0, all at the same instant. A stream that is
-- there keeps its groups.
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
    """A system did not do what it was asked to; the message says what, and the workers' last words."""


def status(words: str = "") -> None:
    """Say on a terminal what goes on now; the next words take its place."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{words}")
        sys.stderr.flush()


@dataclass
class System:
    """A way to run jobs: what to install, how to start its workers, and what the reader must know about it."""

    name: str
    module: str
    version: str  # of the distribution that is called so
    requires: str  # for pip; empty: what rqjobs has installed
    run: str
    acks: str  # "before" or "after" running a job
    results: str
    log: str
    start: int = 1  # processes started with that command
    jobs: int = 20_000  # at most, in one run
    env: dict[str, str] = field(default_factory=dict)

    @property
    def bin(self) -> Path:
        return VENVS / self.module / "bin" if self.requires else Path(sys.executable).parent

    def install(self) -> str:
        """Make its virtual environment if it is not there; returns the system's version.

        Raises:
            Failed: pip could not install it.
        """
        note = VENVS / self.module / "requires"
        if self.requires and not (note.exists() and note.read_text() == self.requires):
            status(f"{self.name}: installing {self.requires}")
            subprocess.run(
                [sys.executable, "-m", "venv", "--clear", VENVS / self.module], check=True
            )
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
            note.write_text(self.requires)
        code = f"import importlib.metadata as m; print(m.version({self.version!r}))"
        return subprocess.run(
            [self.bin / "python", "-c", code], capture_output=True, text=True
        ).stdout.strip()


def systems() -> list[System]:
    """All that the files in peers/ tell of, ours first. The files are read, not imported: each needs its own venv."""
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


class Stage:
    """A Redis of our own, empty, in a temporary folder; database 0 is the workers', backlogs are made in the others."""

    def __init__(self, home: Path, url: str, setting: str):
        self.home, self.url, self.setting = home, url, setting
        self.redis = redis.Redis.from_url(url)
        self.pid = self.redis.info("server")["process_id"]
        self.marks = home / "marks"

    def environ(self, system: System, database: int = 0) -> dict[str, str]:
        keep = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RQJOBS_", "VIRTUAL_ENV", "PYTHONPATH"))
        }
        return {
            **keep,
            "PATH": f"{system.bin}:{os.environ['PATH']}",
            "REDIS_URL": f"{self.url}?db={database}",
            "BENCH_MARKS": str(self.marks),
            "PYTHONPATH": str(PEERS),
            **system.env,
        }

    def ask(self, system: System, *arguments: str, database: int = 0) -> Any:
        """Run the system's module (see peers/work.py); returns what it printed."""
        done = subprocess.run(
            [system.bin / "python", PEERS / "work.py", system.module, *arguments],
            text=True,
            env=self.environ(system, database),
            cwd=self.home,
            capture_output=True,
        )
        if done.returncode:
            raise Failed(f"{system.name}: {arguments} failed: {done.stderr[-2000:]}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def fill(self, system: System, number: int, kind: str = "noop", database: int = 1) -> None:
        """Have the system itself send a backlog, into a database where no worker sees it."""
        status(f"{system.name}: making a backlog of {number:,}")
        with redis.Redis.from_url(f"{self.url}?db={database}") as hidden:
            hidden.flushdb()
        self.ask(
            system,
            "fill",
            str(number),
            *([kind] if system.module == "rq_jobs" else []),
            database=database,
        )

    def publish(self, database: int = 1) -> int:
        """Make a copy of the backlog visible to the workers at one instant; returns that, in nanoseconds."""
        with redis.Redis.from_url(f"{self.url}?db={database}") as hidden:
            kinds = ("list", "set", "zset", "stream")
            others = [key for kind in kinds for key in hidden.scan_iter(_type=kind, count=2000)]
        cursor: Any = 0
        while (cursor := int(self.redis.eval(COPY_VALUES, 0, cursor, database))) != 0:
            pass
        if self.setting != "off":
            time.sleep(1.5)  # the file's next fsync: what we wrote is not the workers' to pay for
        begun = time.monotonic_ns()
        self.redis.eval(COPY_QUEUES, len(others), *others, database)
        return begun

    def used(self) -> int:
        """Bytes that Redis uses, without its clients' buffers."""
        found = self.redis.memory_stats()
        return int(found["total.allocated"] - found["clients.normal"])


@contextlib.contextmanager
def stage(setting: str = "off") -> Iterator[Stage]:
    with (
        tempfile.TemporaryDirectory(prefix="rqjobs-bench-") as folder,
        redis_server.server(Path(folder), "--databases", "64", *SETTINGS[setting]) as url,
    ):
        one = Stage(Path(folder), url, setting)
        with one.redis:
            yield one


class Team:
    """A system's workers, started and warm for the length of a `with` block."""

    def __init__(self, stage: Stage, system: System, workers: int = 10, warm: int = 100):
        self.stage, self.system, self.workers, self.warm = stage, system, workers, warm
        self.starts = workers if system.start > 1 else 1
        self.processes: list[subprocess.Popen[bytes]] = []
        self.before = self.since = 0

    def __enter__(self) -> Team:
        status(f"{self.system.name}: starting the workers")
        self.stage.redis.flushdb()
        os.environ["BENCH_MARKS"] = str(self.stage.marks)
        self.stage.marks.write_bytes(b"")
        for number in range(self.starts):
            with (self.stage.home / f"worker-{number}.log").open("wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        shlex.split(self.system.run),
                        env=self.stage.environ(self.system),
                        cwd=self.stage.home,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        preexec_fn=lambda: die_with_parent(signal.SIGTERM),
                    )
                )
        try:
            self.calm()
            if self.warm:
                self.stage.ask(self.system, "fill", str(self.warm))
                self.wait(self.warm)
                self.calm()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        family = self.family()
        for process in self.processes:
            process.terminate()
        psutil.wait_procs(family, 3)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        for process in self.processes:
            process.wait()

    def family(self) -> list[psutil.Process]:
        found = []
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [parent := psutil.Process(process.pid), *parent.children(recursive=True)]
        return found

    def cpu(self) -> float:
        """Seconds that the workers have used so far."""
        total = 0.0
        for one in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.cpu_times().user + one.cpu_times().system
        return total

    def pss(self) -> int:
        """Bytes that the workers hold now; what they share counts once (Linux only)."""
        total = 0
        for one in self.family():
            with contextlib.suppress(OSError):  # an RQ horse has ended
                found = re.search(
                    r"^Pss: +(\d+) kB", Path(f"/proc/{one.pid}/smaps_rollup").read_text(), re.M
                )
                total += int(found[1]) * 1024 if found else 0
        return total

    def calm(self) -> None:
        """Wait until the workers have started: for half a second they use less than a fifth of a core."""
        deadline = time.monotonic() + 120
        last = -1.0
        while (now := self.cpu()) - last > 0.1 or last < 0:
            self.check()
            if time.monotonic() > deadline:
                raise Failed(f"{self.system.name}: the idle workers do not come to rest")
            last = now
            time.sleep(0.5)

    def check(self) -> None:
        for number, process in enumerate(self.processes):
            if process.poll() is not None:
                words = (self.stage.home / f"worker-{number}.log").read_text(errors="replace")[
                    -2000:
                ]
                raise Failed(
                    f"{self.system.name}: a worker ended with {process.returncode}: {words}"
                )

    def publish(self, database: int = 1) -> None:
        """Show the workers the backlog."""
        self.before = work.count()
        self.since = self.stage.publish(database)

    def wait(self, number: int) -> list[tuple[int, int]]:
        """Until so many of the jobs that were published last have run; returns when each began and ended, sorted."""
        done, moved = 0, time.monotonic()
        while (found := work.count() - self.before) < number:
            self.check()
            status(f"{self.system.name}: {found:,} of {number:,} jobs")
            if found > done:
                done, moved = found, time.monotonic()
            elif time.monotonic() - moved > STALLED:
                words = (self.stage.home / "worker-0.log").read_text(errors="replace")[-2000:]
                raise Failed(
                    f"{self.system.name}: {done} of {number} jobs done, no more in {STALLED} s; {words}"
                )
            time.sleep(0.3)
        return work.marks(self.since)

    def drain(self, number: int, database: int = 1) -> list[tuple[int, int]]:
        """Show the workers the backlog and wait until `number` jobs have run."""
        self.publish(database)
        return self.wait(number)


def seconds(times: list[tuple[int, int]]) -> float:
    """From the begin of the first job to the end of the last."""
    return (max(ended for _, ended in times) - times[0][0]) / 1e9


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]
