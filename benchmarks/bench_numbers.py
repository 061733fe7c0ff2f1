"""The cost of large numbers: thousands of schedules, queues and jobs.

usage: bench_numbers.py [schedules] [names] [queues] [audit]    (default: all of them)

Each part has a Redis of its own and prints its targets. A slow result is not a failure.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import redis
from bench_environment import Environment, new_environment

import rqjobs
from rqjobs import config, connection, every, stats
from rqjobs.maintenance import audit as maintenance_audit
from rqjobs.web import create_app

HERE = Path(__file__).parent
IDLE_SECONDS = 30
SETTLING_SECONDS = 5  # after a worker's start, before its CPU use is measured
SCHEDULE_COUNT = 10_000
DELAYED_JOB_COUNT = 100
QUEUE_NAME_COUNT = 5_000
WORKER_QUEUE_COUNT = 2_000
AUDITED_JOB_COUNT = 100_000
ENQUEUE_BATCH_JOBS = 5_000
ADMIN_PASSWORD = "a password of this run"


def nothing() -> None:
    pass


@contextlib.contextmanager
def running_worker(
    environment: Environment, *queues: str, options: tuple[str, ...] = ()
) -> Iterator[psutil.Process]:
    """Start a worker, and wait until it is idle."""
    env = {
        **os.environ,
        "REDIS_URL": environment.url,
        "RQJOBS_MODULES": "bench_numbers",
        "PYTHONPATH": str(HERE),
    }
    command = [
        sys.executable,
        "-m",
        "rq.cli",
        "worker",
        "--worker-class",
        "rqjobs.Worker",
        *options,
        *queues,
    ]
    log_file = environment.home / "worker.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, env=env, cwd=environment.home, stdout=log, stderr=log)
    try:
        while not has_idle_worker(environment):
            assert process.poll() is None, log_file.read_text()[-2000:]
            time.sleep(0.1)
        time.sleep(SETTLING_SECONDS)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def has_idle_worker(environment: Environment) -> bool:
    workers = stats.snapshot(environment.redis).workers
    return any(worker.alive and worker.state == "idle" for worker in workers)


def cpu_seconds(process: psutil.Process) -> float:
    """CPU seconds that a process and its descendants have used so far."""
    family = [process, *process.children(recursive=True)]
    return sum(sum(member.cpu_times()[:2]) for member in family)


def report(figure: str, measured: str, target: str) -> None:
    print(f"{figure:52} {measured:>34}   (target: {target})", flush=True)


def report_idle_cpu(environment: Environment, process: psutil.Process, setup: str) -> None:
    """Measure the CPU use of an idle worker and of Redis, in percent of one core."""
    server = psutil.Process(environment.pid)
    worker_before = cpu_seconds(process)
    server_before = cpu_seconds(server)
    time.sleep(IDLE_SECONDS)
    worker_share = 100 * (cpu_seconds(process) - worker_before) / IDLE_SECONDS
    server_share = 100 * (cpu_seconds(server) - server_before) / IDLE_SECONDS
    report(
        f"{setup}: an idle worker",
        f"{worker_share:.1f} % of a core, Redis {server_share:.1f} %",
        "under 3 %",
    )


def start_delays(jobs: list[Any], since: Callable[[Any], float]) -> str:
    """Wait for these jobs; returns their delays from `since` (a Unix time) to their start."""
    while not all(job.is_finished for job in jobs):
        time.sleep(0.1)
    for job in jobs:
        job.refresh()
    delays = sorted(1000 * (job.started_at.timestamp() - since(job)) for job in jobs)
    return f"{statistics.median(delays):.1f} ms, at most {delays[-1]:.1f} ms"


def schedules(environment: Environment) -> None:
    """10,000 schedules, none of them due."""
    for number in range(SCHEDULE_COUNT):
        rqjobs.schedules.add(f"customer-{number}", every(days=365), nothing)
    with running_worker(environment, "default", options=("--with-scheduler",)) as process:
        report_idle_cpu(environment, process, f"{SCHEDULE_COUNT:,} schedules")
        jobs = []
        due_times = {}
        for number in range(DELAYED_JOB_COUNT):
            job = rqjobs.enqueue_in(1 + number / 10, nothing)
            jobs.append(job)
            due_times[job.id] = environment.redis.zscore("rq:scheduled:default", job.id)
        delays = start_delays(jobs, lambda job: due_times[job.id])
        report(f"{SCHEDULE_COUNT:,} schedules: lateness of delayed jobs", delays, "50 ms")


def names(environment: Environment) -> None:
    """5,000 queues in Redis's set of queues, most of them empty."""
    keys = (f"rq:queue:customer-{number}" for number in range(QUEUE_NAME_COUNT))
    environment.redis.sadd("rq:queues", *keys)
    for number in range(0, QUEUE_NAME_COUNT, QUEUE_NAME_COUNT // 50):
        rqjobs.queue(f"customer-{number}").enqueue(nothing)
    with running_worker(environment, "default") as process:
        report_idle_cpu(environment, process, f"{QUEUE_NAME_COUNT:,} queue names")
        measure_home_page()


def measure_home_page() -> None:
    """Report the time of the home page and of its data, and its round trips."""
    config.use(admin_password=ADMIN_PASSWORD, secret_key="k" * 32)
    client = create_app().test_client()
    client.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
    client.post("/login", data={"user": "admin", "password": ADMIN_PASSWORD})
    setup = f"{QUEUE_NAME_COUNT:,} queue names"
    page_seconds = statistics.median(seconds_of(lambda: client.get("/")) for _ in range(5))
    report(f"{setup}: the home page", f"{1000 * page_seconds:.0f} ms", "300 ms")
    with counted_round_trips() as trips:
        client.get("/")
    report(f"{setup}: round trips of the home page", str(len(trips)), "8")


@contextlib.contextmanager
def counted_round_trips() -> Iterator[list[Any]]:
    """A list that gets an entry for every command or pipeline that is sent to Redis."""
    trips: list[Any] = []
    command = redis.Redis.execute_command
    pipeline = redis.client.Pipeline.execute

    def counted(original: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            trips.append(args)
            return original(*args, **options)

        return call

    redis.Redis.execute_command = counted(command)  # type: ignore[method-assign]
    redis.client.Pipeline.execute = counted(pipeline)  # type: ignore[method-assign]
    try:
        yield trips
    finally:
        redis.Redis.execute_command = command  # type: ignore[method-assign]
        redis.client.Pipeline.execute = pipeline  # type: ignore[method-assign]


def queues(environment: Environment) -> None:
    """One worker that listens to 2,000 queues."""
    setup = f"{WORKER_QUEUE_COUNT:,} queues of one worker"
    with running_worker(
        environment, *(f"customer-{number}" for number in range(WORKER_QUEUE_COUNT))
    ) as process:
        report_idle_cpu(environment, process, setup)
        first_queues = range(20)
        other_queues = range(50, WORKER_QUEUE_COUNT, WORKER_QUEUE_COUNT // 20)
        for position, numbers in (("the first", first_queues), ("any", other_queues)):
            jobs = []
            for number in numbers:
                jobs.append(rqjobs.queue(f"customer-{number}").enqueue(nothing))
                time.sleep(0.23)
            delays = start_delays(jobs, lambda job: job.enqueued_at.timestamp())
            report(f"{setup}: latency of {position}", delays, "none")


def audit(environment: Environment) -> None:
    """100,000 jobs, half of them waiting and half finished."""
    enqueue_half()
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    enqueue_half()
    seconds = statistics.median(
        seconds_of(lambda: maintenance_audit.audit(environment.redis)) for _ in range(3)
    )
    report(f"audit of {AUDITED_JOB_COUNT:,} jobs", f"{seconds:.2f} s", "3 s")


def enqueue_half() -> None:
    for _ in range(AUDITED_JOB_COUNT // 2 // ENQUEUE_BATCH_JOBS):
        rqjobs.enqueue_many([(nothing,)] * ENQUEUE_BATCH_JOBS)


def seconds_of(action: Callable[[], Any]) -> float:
    begun = time.monotonic()
    action()
    return time.monotonic() - begun


def main() -> None:
    for part in (schedules, names, queues, audit):
        if sys.argv[1:] and part.__name__ not in sys.argv[1:]:
            continue
        with new_environment() as environment:
            config.use(config.Config(redis_url=environment.url, modules=("bench_numbers",)))
            environment.redis = connection.client()
            part(environment)


if __name__ == "__main__":
    # Jobs must be stored as functions of `bench_numbers`, the module that the worker imports.
    sys.modules["bench_numbers"] = sys.modules["__main__"]
    nothing.__module__ = "bench_numbers"
    main()
