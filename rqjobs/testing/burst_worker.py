"""A real worker in a process of its own, which ends when its queues are empty."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import redis

from rqjobs import config, processes
from rqjobs.broker.places import queue_names
from rqjobs.queues import check_queue_name

COMMAND = (
    *(sys.executable, "-m", "rq.cli", "worker", "--worker-class", "rqjobs.Worker"),
    *("--with-scheduler", "--burst"),
)
TIMEOUT_SECONDS = 60.0
OUTPUT_MAX_CHARACTERS = 4000  # of a worker's output, in the message of an error


def run(client: redis.Redis, queues: Sequence[str], timeout: float) -> str:
    """Run a worker on `queues` until they are empty; returns its output.

    Raises:
        RuntimeError: the worker could not work, or had not ended after `timeout` seconds.
        ValueError: a queue has no valid name, or the timeout is not a number of seconds.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise ValueError(f"timeout={timeout!r} is not a number of seconds above 0")
    names = [*map(check_queue_name, queues)]
    if not names:
        first = config.current().queues
        names = [*first, *sorted(set(queue_names(client)) - set(first))]
    worker = subprocess.Popen(
        [*COMMAND, *names],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches the test only, which then ends the worker
        preexec_fn=lambda: processes.die_with_parent(signal.SIGKILL),
    )
    try:
        output = worker.communicate(timeout=timeout)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        output = _end(worker)
        raise RuntimeError(
            f"the worker had not ended after {timeout:g} s, and was killed; its output:\n"
            f"{output[-OUTPUT_MAX_CHARACTERS:]}"
        ) from None
    finally:
        _end(worker)
    if worker.returncode:
        raise RuntimeError(
            f"the worker ended with code {worker.returncode}; its output:\n"
            f"{output[-OUTPUT_MAX_CHARACTERS:]}"
        )
    return output


def _environment() -> dict[str, str]:
    """The environment of a worker that imports what the test imports."""
    paths = [path or os.getcwd() for path in sys.path]
    return config.environment(
        PYTHONPATH=os.pathsep.join(paths),
        PYTHONUNBUFFERED="1",
        RQJOBS_MODULES=",".join(config.current().modules),
    )


def _end(worker: subprocess.Popen[bytes]) -> str:
    """Kill the worker, and so its horse, if it still runs; returns the rest of its output."""
    if worker.poll() is None:
        worker.kill()
    if worker.stdout is None or worker.stdout.closed:
        return ""
    return worker.communicate()[0].decode(errors="replace")
