"""`make bench`: how late delayed jobs are, and how long it takes until a crowd that is due at once is in its queue."""

from __future__ import annotations

import dataclasses
import time

from bench_stage import Failed, Stage, System, Team
from peers import work

CAN = (
    "rqjobs",
    "rq",
    "arq 2x5",
    "Huey threads",
    "Celery prefork",
)  # delay a job, one way of running each
PATIENCE = 120  # seconds


def with_clock(system: System) -> System:
    """The same with whatever it needs for delayed jobs: RQ's workers want to be told."""
    return dataclasses.replace(
        system, run=system.run.replace("rq worker", "rq worker --with-scheduler", 1)
    )


def lateness(here: Stage, system: System, workers: int, number: int) -> list[float]:
    """Milliseconds from when each job was due until it began, with idle workers; below zero if one was early."""
    with Team(here, with_clock(system), workers) as team:
        team.before, team.since = work.count(), time.monotonic_ns()
        dues = here.ask(system, "later", str(number))
        marks = team.wait(number)
        return [(begun - due) / 1e6 for (begun, _), due in zip(marks, dues, strict=True)]


def promotion(here: Stage, system: System, number: int) -> float:
    """Seconds from when `number` jobs were due until the last was in its queue; nobody works them off."""
    idle = with_clock(
        dataclasses.replace(system, run=system.run.replace("high default low", "default"))
    )
    with Team(here, idle, 1, warm=0) as team:
        here.redis.set("rq:suspended", 1)
        due = here.ask(system, "crowd", str(number))
        while left := here.redis.zcard("rq:scheduled:default"):
            team.check()
            if time.time() - due > PATIENCE:
                raise Failed(
                    f"{system.name}: {left:,} of {number:,} jobs are not in the queue {PATIENCE} s after they "
                    f"were due"
                )
            time.sleep(0.01)
        return time.time() - due
