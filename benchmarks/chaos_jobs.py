"""The job functions of `make chaos`.

Each run is recorded outside of Redis and rqjobs, in the file `CHAOS_RUNS`: a line with the job id,
the process id and the monotonic time of the start in seconds.
"""

from __future__ import annotations

import os
import signal
import time

from rq import Retry, get_current_job


def _record_run() -> None:
    job = get_current_job()
    line = f"{job.id} {os.getpid()} {time.monotonic():.4f}\n"
    # O_APPEND: lines of several processes do not overwrite each other.
    file = os.open(os.environ["CHAOS_RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line.encode())
    os.close(file)


def work(seconds: float = 0.0) -> float:
    """Sleep, and succeed."""
    _record_run()
    time.sleep(seconds)
    return seconds


def fail(seconds: float = 0.0) -> None:
    """Sleep, and fail. A job with a `Retry` fails each time."""
    _record_run()
    time.sleep(seconds)
    raise ValueError("a failing job of the chaos test")


def flaky(seconds: float = 0.0) -> float:
    """Fail until the last retry, then succeed. A killed run uses no retry."""
    _record_run()
    time.sleep(seconds)
    if get_current_job().retries_left:
        raise RuntimeError("a flaky job of the chaos test")
    return seconds


def again(seconds: float = 0.0) -> object:
    """Return a `Retry` at first, and succeed in the next run."""
    _record_run()
    time.sleep(seconds)
    if get_current_job().number_of_retries:
        return seconds
    return Retry(max=3)


def poison(parent: bool = False) -> None:
    """Kill the horse, or the parent and with it the horse."""
    _record_run()
    pid = os.getppid() if parent else os.getpid()
    os.kill(pid, signal.SIGKILL)
    time.sleep(60)
