"""What large numbers cost: thousands of schedules, of queues and of jobs, on a Redis of its own.

usage: python benchmarks/bench_numbers.py [schedules] [names] [queues] [audit]    (nothing said: all of them)

Each part says what was to be reached. Nothing fails for being slow.
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
from bench_stage import Stage, stage

import rqjobs
from rqjobs import config, connection, every, stats
from rqjobs.maintenance import audit as maintenance_audit
from rqjobs.web import create_app

HERE = Path(__file__).parent
IDLE_SECONDS = 30
SCHEDULES, NAMES, QUEUES, JOBS = 10_000, 5_000, 2_000, 100_000


def nothing() -> None:
    pass


@contextlib.contextmanager
def worker(here: Stage, *queues: str, options: tuple[str, ...] = ()) -> Iterator[psutil.Process]:
    """A worker that has come to rest."""
    env = {
        **os.environ,
        "REDIS_URL": here.url,
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
    with (here.home / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, cwd=here.home, stdout=log, stderr=log)
    try:
        while not any(
            one.alive and one.state == "idle" for one in stats.snapshot(here.redis).workers
        ):
            assert process.poll() is None, (here.home / "worker.log").read_text()[-2000:]
            time.sleep(0.1)
        time.sleep(5)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def cpu(process: psutil.Process) -> float:
    """Seconds that a process and its children have used so far."""
    return sum(sum(one.cpu_times()[:2]) for one in [process, *process.children(recursive=True)])


def say(what: str, measured: str, wanted: str) -> None:
    print(f"{what:52} {measured:>34}   (to reach: {wanted})", flush=True)


def idle(here: Stage, process: psutil.Process, what: str) -> None:
    server = psutil.Process(here.pid)
    before = cpu(process), cpu(server)
    time.sleep(IDLE_SECONDS)
    shares = [
        100 * (after - early) / IDLE_SECONDS
        for early, after in zip(before, (cpu(process), cpu(server)), strict=True)
    ]
    say(
        f"{what}: an idle worker",
        f"{shares[0]:.1f} % of a core, Redis {shares[1]:.1f} %",
        "under 3 %",
    )


def waited(here: Stage, jobs: list[Any], since: Callable[[Any], float]) -> str:
    """Milliseconds from `since` until each of these jobs began, as text."""
    while not all(job.is_finished for job in jobs):
        time.sleep(0.1)
    for job in jobs:
        job.refresh()
    late = sorted(1000 * (job.started_at.timestamp() - since(job)) for job in jobs)
    return f"{statistics.median(late):.1f} ms, at most {late[-1]:.1f} ms"


def schedules(here: Stage) -> None:
    """10,000 schedules, none due."""
    for number in range(SCHEDULES):
        rqjobs.schedules.add(f"customer-{number}", every(days=365), nothing)
    with worker(here, "default", options=("--with-scheduler",)) as process:
        idle(here, process, f"{SCHEDULES:,} schedules")
        jobs, dues = [], {}
        for number in range(100):
            jobs.append(rqjobs.enqueue_in(1 + number / 10, nothing))
            dues[jobs[-1].id] = here.redis.zscore("rq:scheduled:default", jobs[-1].id)
        late = waited(here, jobs, lambda job: dues[job.id])
        say(f"{SCHEDULES:,} schedules: delayed jobs late by", late, "50 ms")


def names(here: Stage) -> None:
    """5,000 queues that Redis knows of, most of them empty."""
    here.redis.sadd("rq:queues", *(f"rq:queue:customer-{number}" for number in range(NAMES)))
    for number in range(0, NAMES, NAMES // 50):
        rqjobs.queue(f"customer-{number}").enqueue(nothing)
    with worker(here, "default") as process:
        idle(here, process, f"{NAMES:,} queue names")
        home(here)


def home(here: Stage) -> None:
    """The home page: its data, its round trips, and all of it."""
    from rqjobs.web.views.home import activity

    asked: list[Any] = []
    command, batch = redis.Redis.execute_command, redis.client.Pipeline.execute

    def counted(original: Any) -> Any:
        return lambda *args, **options: (asked.append(args), original(*args, **options))[1]

    config.use(admin_password="a password of this run", secret_key="k" * 32)
    client = create_app().test_client()
    client.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
    client.post("/login", data={"user": "admin", "password": "a password of this run"})
    took = [timed(activity) for _ in range(5)]
    say(
        f"{NAMES:,} queue names: the home page's data",
        f"{1000 * statistics.median(took):.0f} ms",
        "300 ms",
    )
    say(
        f"{NAMES:,} queue names: the home page",
        f"{1000 * timed(lambda: client.get('/')):.0f} ms",
        "no figure",
    )
    redis.Redis.execute_command = counted(command)  # type: ignore[method-assign]
    redis.client.Pipeline.execute = counted(batch)  # type: ignore[method-assign]
    client.get("/")
    redis.Redis.execute_command, redis.client.Pipeline.execute = command, batch  # type: ignore[method-assign]
    say(f"{NAMES:,} queue names: the home page asks Redis", f"{len(asked)} times", "8 round trips")


def queues(here: Stage) -> None:
    """One worker that listens to 2,000 queues."""
    with worker(here, *(f"customer-{number}" for number in range(QUEUES))) as process:
        idle(here, process, f"{QUEUES:,} queues of one worker")
        for what, places in (("its first", range(20)), ("any", range(50, QUEUES, QUEUES // 20))):
            jobs = []
            for number in places:
                jobs.append(rqjobs.queue(f"customer-{number}").enqueue(nothing))
                time.sleep(0.23)
            late = waited(here, jobs, lambda job: job.enqueued_at.timestamp())
            say(f"{QUEUES:,} queues of one worker: {what} picked up in", late, "no figure")


def audit(here: Stage) -> None:
    """100,000 jobs: half of them wait, half have finished."""
    for _ in range(JOBS // 2 // 5_000):
        rqjobs.enqueue_many([(nothing,)] * 5_000)
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    for _ in range(JOBS // 2 // 5_000):
        rqjobs.enqueue_many([(nothing,)] * 5_000)
    took = [timed(lambda: maintenance_audit.audit(here.redis)) for _ in range(3)]
    say(f"audit of {JOBS:,} jobs", f"{statistics.median(took):.2f} s", "3 s")


def timed(action: Callable[[], Any]) -> float:
    begun = time.monotonic()
    action()
    return time.monotonic() - begun


def main() -> None:
    for part in (schedules, names, queues, audit):
        if sys.argv[1:] and part.__name__ not in sys.argv[1:]:
            continue
        with stage() as here:
            config.use(config.Config(redis_url=here.url, modules=("bench_numbers",)))
            here.redis = connection.client()
            part(here)


if __name__ == "__main__":
    sys.modules["bench_numbers"] = sys.modules["__main__"]
    nothing.__module__ = "bench_numbers"
    main()
