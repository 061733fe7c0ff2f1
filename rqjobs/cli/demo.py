"""`rqjobs demo`: run the jobs of `rqjobs.demo` and print their results."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import click

from rqjobs import Job, dev, enqueue, stats
from rqjobs.cli.output import echo_text
from rqjobs.connection import client
from rqjobs.demo import book_room, greet, slow, statistics, unreliable
from rqjobs.results import ENDED_STATUSES

RESULT_POLL_SECONDS = 0.1


@click.command("demo")
@click.argument("path", type=click.Path(exists=True, dir_okay=False))
def command(path: str) -> None:
    """Run the demo jobs and print their results.

    They have a temporary Redis and worker. One of the jobs counts the words in PATH.
    """
    sys.exit(dev.with_worker("rqjobs.demo", lambda: run(path, echo_text)))


def run(path: str, echo: Callable[[str], Any], limit: float = 120) -> int:
    """Enqueue the demo jobs, and `echo` each result as it arrives.

    Returns 0 when all jobs have ended (`unreliable` may fail six times in a row). Returns 1 when
    the file cannot be read or is too large, another job failed, or `limit` seconds have passed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
        jobs = [
            enqueue(statistics, text),
            enqueue(greet, "Ada"),
            enqueue(book_room, "Ada", date(2030, 12, 31), nights=2),
            enqueue(unreliable),
            enqueue(slow),
        ]
    except (OSError, ValueError) as error:
        echo(f"{path}: {error}")
        return 1
    echo(f"{len(jobs)} jobs enqueued on {path} ({len(text):,} characters)")
    code = _print_results(jobs, echo, time.monotonic() + limit)
    for job in jobs:
        if not _has_ended(job):
            echo(f"{_name(job)}: not done after {limit:.0f} s{_hint(job)}")
            code = 1
    return code


def _print_results(jobs: list[Job], echo: Callable[[str], Any], deadline: float) -> int:
    """Print each result until `deadline`. Returns 1 if a job other than `unreliable` failed."""
    pending = list(jobs)
    code = 0
    done = 0.0
    while pending and time.monotonic() < deadline:
        ended = [job for job in pending if _has_ended(job)]
        progress = jobs[-1].progress  # of `slow`
        if progress and progress.done > done:
            done = progress.done
            echo(f"slow … {progress.describe()}")
        for job in ended:
            pending.remove(job)
            echo(_result_line(job))
            if not job.is_finished and _name(job) != "unreliable":
                code = 1
        time.sleep(RESULT_POLL_SECONDS)
    return code


def _name(job: Job) -> str:
    return str(job.func_name).rpartition(".")[2]


def _has_ended(job: Job) -> bool:
    return job.get_status() in ENDED_STATUSES


def _result_line(job: Job) -> str:
    result = job.latest_result()
    if result is None or result.type != result.Type.SUCCESSFUL:
        reason = result.exc_string if result else ""
        return f"{_name(job)} failed: {(reason or '').strip()[-200:]}"
    value = result.return_value
    if isinstance(value, dict):
        value = ", ".join(f"{key} {part}" for key, part in value.items())
    return f"{_name(job)}: {value}"


def _hint(job: Job) -> str:
    """The command that starts a missing worker; "" if there is a worker."""
    for queue in stats.snapshot(client()).queues:
        if queue.name == job.origin and not queue.workers:
            return (
                f"; no worker serves the queue {job.origin!r}, start one with: "
                f"rqjobs worker {job.origin}"
            )
    return ""
