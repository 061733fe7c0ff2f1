"""The job functions of `make chaos`. Each run is noted in a file outside of Redis, so that runs are counted by nobody
who is under test: `CHAOS_RUNS`, opened with O_APPEND, a line a run with job id, process id and monotonic time."""

from __future__ import annotations

import os
import signal
import time

from rq import Retry, get_current_job


def _note() -> None:
    job = get_current_job()
    line = f"{job.id} {os.getpid()} {time.monotonic():.4f}\n"
    file = os.open(os.environ["CHAOS_RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line.encode())
    os.close(file)


def work(seconds: float = 0.0) -> float:
    """Take so long, and succeed."""
    _note()
    time.sleep(seconds)
    return seconds


def fail(seconds: float = 0.0) -> None:
    """Take so long, and fail; with a `Retry` until that is spent."""
    _note()
    time.sleep(seconds)
    raise ValueError("as it should")


def flaky(seconds: float = 0.0) -> float:
    """Fail until the last retry, and succeed then. A run that is killed spends none."""
    _note()
    time.sleep(seconds)
    if get_current_job().retries_left:
        raise RuntimeError("again, please")
    return seconds


def again(seconds: float = 0.0) -> object:
    """Ask for one more run by the value that is returned."""
    _note()
    time.sleep(seconds)
    return seconds if get_current_job().number_of_retries else Retry(max=3)


def poison(parent: bool = False) -> None:
    """Kill the horse, or the worker with it."""
    _note()
    os.kill(os.getppid() if parent else os.getpid(), signal.SIGKILL)
    time.sleep(60)
