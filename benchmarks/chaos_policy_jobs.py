"""The job functions of the scenario *policies* of `make chaos`.

Each run has a line in the file `CHAOS_RUNS`, outside of Redis and rqjobs. The run updates its line
every few milliseconds, so that a killed run counts up to its last sign of life, and no longer. The
times are seconds of the monotonic clock, which all processes share.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import redis
from rq import get_current_job

from rqjobs import Discard, Snooze, backoff, job

SIGN_OF_LIFE_SECONDS = 0.004
LIMIT = 2
RATE_PER_SECOND, BURST = 20, 4
EXPIRES_SECONDS = 1.0
FAILURES = 2  # of a flaky job, before it succeeds
FLAKY_DELAY_SECONDS = 0.5
SNOOZE_SECONDS = 0.3
KEEP_SECONDS = 0.8
DEBOUNCE_SECONDS, DEBOUNCE_MAX_SECONDS = 0.3, 1.0
ON_FAILED = "chaos_policy_jobs:report_failure"
REPORT = (
    "failed:"  # the beginning of the note of a run of that function, before the failed job's id
)
# A run's last sign of life and its state: "running", "returned" or "raised".
END_OF_LINE = "{:18.6f} {:8}\n"


class Run(NamedTuple):
    """One run of a job. `last`: its end, or the last sign of life of a run that was killed."""

    job_id: str
    pid: int
    note: str
    claimed: float  # when its worker began to claim it; 0 if the function does not record it
    began: float
    last: float
    state: str

    def __str__(self) -> str:
        return f"{self.job_id} (pid {self.pid}, {self.began:.3f} to {self.last:.3f}, {self.state})"


class Freeze(NamedTuple):
    """A process that was stopped for longer than a lease, and when that began."""

    pid: int
    began: float


def until_frozen(run: Run, freezes: list[Freeze]) -> Run:
    """A run of a process that was stopped counts up to that time.

    Its worker was believed dead then, so its slot and its unique key were given to others. This is
    what limits and unique keys do not promise.
    """
    for freeze in freezes:
        if run.pid == freeze.pid and run.began < freeze.began < run.last:
            return run._replace(last=freeze.began)
    return run


def read_runs(file: Path) -> list[Run]:
    """All runs, by their starts."""
    runs = []
    if file.exists():
        for line in file.read_text().splitlines():
            job_id, pid, note, claimed, began, last, state = line.split()
            times = map(float, (claimed, began, last))
            runs.append(Run(job_id, int(pid), note.removeprefix("="), *times, state))
    return sorted(runs, key=lambda run: run.began)


@contextmanager
def recorded_run(note: object = "", claimed: float = 0.0) -> Iterator[Callable[[float], None]]:
    """Record this run; gives a function that sleeps and updates the run's last sign of life."""
    path = os.environ["CHAOS_RUNS"]
    began = time.monotonic()
    head = f"{get_current_job().id} {os.getpid()} ={note} {claimed:.6f} {began:.6f} "
    line = (head + END_OF_LINE.format(began, "running")).encode()
    # O_APPEND: lines of several processes do not overwrite each other.
    appending = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(appending, line)
    position = os.lseek(appending, 0, os.SEEK_CUR) - len(line) + len(head)
    os.close(appending)
    file = os.open(path, os.O_WRONLY)

    def update(state: str) -> None:
        os.pwrite(file, END_OF_LINE.format(time.monotonic(), state).encode(), position)

    def live(seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, SIGN_OF_LIFE_SECONDS))
            update("running")

    state = "raised"
    try:
        yield live
        state = "returned"
    finally:
        update(state)
        os.close(file)


def _claimed_at() -> float:
    """The time before the claim of the current job, which the claim writes into the job's hash."""
    current = get_current_job()
    while True:
        try:
            text = current.connection.hget(current.key, "started_at").decode()
            break
        except redis.ConnectionError:  # the scenario has killed Redis, and starts it again
            time.sleep(0.05)
    moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    before = time.monotonic()  # an interruption here makes the time earlier, never later
    return before - (time.time() - moment.timestamp())


def plain(seconds: float) -> None:
    """A job without policies."""
    with recorded_run() as live:
        live(seconds)


@job(limit=LIMIT, limit_by="user:{user}")
def limited(user: int, seconds: float) -> None:
    with recorded_run() as live:
        live(seconds)


@job(rate=f"{RATE_PER_SECOND}/s", burst=BURST)
def rated(seconds: float) -> None:
    with recorded_run(claimed=_claimed_at()) as live:
        live(seconds)


@job(limit=LIMIT, rate=f"{RATE_PER_SECOND}/s", burst=BURST, limit_by="both:{user}")
def limited_and_rated(user: int, seconds: float) -> None:
    with recorded_run(claimed=_claimed_at()) as live:
        live(seconds)


def pausable(seconds: float) -> None:
    """A job of the function that is paused and resumed."""
    with recorded_run() as live:
        live(seconds)


@job(expires=EXPIRES_SECONDS, on_failed=ON_FAILED)
def expiring(seconds: float) -> None:
    with recorded_run(claimed=_claimed_at()) as live:
        live(seconds)


class Busy(Exception):
    """The exception of a flaky job."""


class Hopeless(Exception):
    """The exception with which a job is discarded."""


@job(
    retry={Busy: backoff(FAILURES + 1, base=1, cap=FLAKY_DELAY_SECONDS)},
    discard_on=(Hopeless,),
    on_failed=ON_FAILED,
)
def flaky(seconds: float) -> None:
    """Fail until the job has used its retries but one. A run that is killed uses none."""
    retries = get_current_job().history.retries
    with recorded_run(note=retries) as live:
        live(seconds)
        if retries < FAILURES:
            raise Busy


@job(retry=backoff(1, base=1, cap=0.2), on_failed=ON_FAILED)
def failing(seconds: float) -> None:
    """Fail for good, after one retry."""
    with recorded_run() as live:
        live(seconds)
        raise Busy


def report_failure(job_id: str, function: str, error: str) -> None:
    """The job of `on_failed`."""
    with recorded_run(note=REPORT + job_id) as live:
        live(0.01)


@job(discard_on=(Hopeless,), retry=backoff(2), on_failed=ON_FAILED)
def discarded(seconds: float, by_exception: bool) -> None:
    """End without a retry."""
    with recorded_run() as live:
        live(seconds)
        if by_exception:
            raise Hopeless
        raise Discard("in the chaos test")


@job(retry=backoff(1, base=1, cap=0.2))
def snoozing(seconds: float, until: float) -> None:
    """Snooze until this monotonic time."""
    with recorded_run() as live:
        live(seconds)
        if time.monotonic() < until:
            raise Snooze(SNOOZE_SECONDS)


def _unique_job_seconds() -> float:
    """The length of a unique job. It is not an argument, because equal calls have equal ones."""
    return random.expovariate(1 / 0.05)


@job(unique="args", retry=backoff(3, base=1, cap=0.2))
def unique_by_args(number: int) -> None:
    """Fail sometimes: the key stays taken until the last retry."""
    with recorded_run() as live:
        live(_unique_job_seconds())
        if get_current_job().history.retries == 0 and number % 2:
            raise Busy


@job(unique="kept:{number}", keep=KEEP_SECONDS)
def kept(number: int) -> None:
    with recorded_run() as live:
        live(_unique_job_seconds())


@job(unique="{number}", until="started")
def unique_until_started(number: int) -> None:
    with recorded_run() as live:
        live(_unique_job_seconds())


@job(unique="{number}", on_conflict="replace")
def replaced(number: int, value: int) -> None:
    with recorded_run(note=value, claimed=_claimed_at()) as live:
        live(_unique_job_seconds())


@job(unique="{number}", debounce=DEBOUNCE_SECONDS, debounce_max=DEBOUNCE_MAX_SECONDS)
def debounced(number: int, value: int) -> None:
    with recorded_run(note=value) as live:
        live(_unique_job_seconds())


@job(
    unique="args",
    limit=1,
    limit_by="combined",
    rate=f"{RATE_PER_SECOND}/s",
    burst=BURST,
    retry=backoff(3, base=1, cap=0.2),
)
def combined(number: int) -> None:
    """A unique job with a limit, a rate and retries."""
    with recorded_run(claimed=_claimed_at()) as live:
        live(random.expovariate(1 / 0.02))
        if get_current_job().history.retries < number % 3:
            raise Busy
