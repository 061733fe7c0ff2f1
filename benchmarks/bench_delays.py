"""The delayed jobs of `make bench`: their lateness, and the rate of jobs that are due together."""

from __future__ import annotations

import dataclasses
import time

from bench_environment import Environment, Failed, System, WorkerGroup
from peers import work

# Systems with delayed jobs, one way to run each.
DELAYING_SYSTEMS = ("rqjobs", "rq", "arq 2x5", "Huey threads", "Celery prefork")
PROMOTION_TIMEOUT_SECONDS = 120


def with_scheduler(system: System) -> System:
    """The same system, with the option that RQ's workers need for delayed jobs."""
    return dataclasses.replace(
        system, run=system.run.replace("rq worker", "rq worker --with-scheduler", 1)
    )


def lateness(environment: Environment, system: System, workers: int, number: int) -> list[float]:
    """Milliseconds from each job's due time to its start, with idle workers.

    A negative value is a job that started too early.
    """
    with WorkerGroup(environment, with_scheduler(system), workers) as group:
        group.counted_before = work.count()
        group.published_at = time.monotonic_ns()
        due_times = environment.run_client(system, "later", str(number))
        marks = group.wait(number)
        return [(begun - due) / 1e6 for (begun, _), due in zip(marks, due_times, strict=True)]


def promotion(environment: Environment, system: System, number: int) -> float:
    """Seconds from the due time of `number` jobs until the last job is in its queue.

    RQ is suspended, so that no worker runs these jobs.
    """
    one_queue = dataclasses.replace(system, run=system.run.replace("high default low", "default"))
    with WorkerGroup(environment, with_scheduler(one_queue), 1, warm_up_jobs=0) as group:
        # A worker that starts while RQ is suspended exits at once.
        while not environment.redis.scard("rq:workers"):
            group.check()
            time.sleep(0.1)
        environment.redis.set("rq:suspended", 1)
        due = environment.run_client(system, "crowd", str(number))
        while left := environment.redis.zcard("rq:scheduled:default"):
            group.check()
            if time.time() - due > PROMOTION_TIMEOUT_SECONDS:
                raise Failed(
                    f"{system.name}: {left:,} of {number:,} jobs are not in the queue "
                    f"{PROMOTION_TIMEOUT_SECONDS} s after their due time"
                )
            time.sleep(0.01)
        return time.time() - due
