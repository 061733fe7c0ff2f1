"""`make bench`: rqjobs and other job systems, measured on one Redis in one run.

A slow system is not a failure. A job that did not run, or whose outcome is not recorded, is. The
figures are written to benchmarks/results/ as Markdown, SVG and JSON.
"""

from __future__ import annotations

import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import bench_delays
import bench_policies
import bench_report
import click
import psutil
from bench_environment import (
    HERE,
    Environment,
    Failed,
    System,
    WorkerGroup,
    elapsed_seconds,
    new_environment,
    p99,
    show_progress,
    systems,
)

from rqjobs.dev import redis_server

# kind of job -> for each job that is asked for: finished jobs, failed jobs, runs
OUTCOMES = {"failing": (0, 1, 1), "retried": (1, 0, 2), "dependent": (2, 0, 2)}
REGISTRY_TIMEOUT_SECONDS = 30
TESTED_SYSTEMS = ("rqjobs", "rq")  # a failure of one of these fails the whole run
# Systems that drain their backlog in less time get a second run with more jobs.
SHORT_DRAIN_SECONDS = 5
MANY_JOBS = 200_000


@dataclass
class Bench:
    """The options of a run, and the rows that it has measured."""

    systems: list[System]
    runs: int
    quick: bool
    brief: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)

    def size(self, full: int, quick: int) -> int:
        if self.quick:
            return quick
        return full

    @property
    def compared(self) -> list[System]:
        """rqjobs and RQ's own worker, which every scenario compares."""
        return [system for system in self.systems if system.name in TESTED_SYSTEMS]

    @property
    def workers(self) -> int:
        return self.size(10, 3)

    @property
    def settings(self) -> tuple[str, ...]:
        if self.quick or self.brief:
            return ("off",)
        return ("off", "everysec")

    def record(
        self, what: str, system: System, values: list[float], unit: str, **details: Any
    ) -> None:
        """Add a row, and print its median."""
        self.rows.append(
            {
                "what": what,
                "system": system.name,
                "unit": unit,
                "values": values,
                "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                **details,
            }
        )
        parts = []
        for name, value in details.items():
            text = f"{value:,}" if isinstance(value, int) else str(value)
            parts.append(f"{name} {text}")
        show_progress()
        median = statistics.median(values)
        click.echo(
            f"{what:10} {system.name:26} {' '.join(parts):44} {median:12,.2f} {unit}", err=True
        )

    def record_failure(self, what: str, system: System, error: Failed) -> None:
        """Add a row without values, and print the reason."""
        show_progress()
        click.echo(f"{what:10} {system.name:26} FAILED: {error}", err=True)
        self.rows.append({"what": what, "system": system.name, "failed": str(error), "values": []})


def drain_rate(
    group: WorkerGroup, runs: int, finished: int, failed: int = 0, database: int = 1
) -> float:
    """Publish the backlog of a database and wait for its `runs` of jobs; returns runs per second.

    Raises:
        Failed: Redis does not have `finished` and `failed` jobs afterwards.
    """
    clear_registries(group)
    rate = runs / elapsed_seconds(group.drain(runs, database))
    check_registries(group, finished, failed)
    return rate


def clear_registries(group: WorkerGroup) -> None:
    for kind in ("finished", "failed"):
        keys = (f"rq:{kind}:{queue}" for queue in ("high", "default", "low"))
        group.environment.redis.delete(*keys)


def check_registries(group: WorkerGroup, finished: int, failed: int) -> None:
    """Check that RQ's registries have these numbers of jobs and that no job is left elsewhere.

    Only rqjobs and RQ have such registries; other systems are not checked.

    Raises:
        Failed: the numbers differ for half a minute.
    """
    if group.system.module != "rq_jobs":
        return
    expected = {"finished": finished, "failed": failed, "wip": 0, "queue": 0, "claims": 0}
    deadline = time.monotonic() + REGISTRY_TIMEOUT_SECONDS
    while (counted := count_jobs(group)) != expected:
        group.check()
        if time.monotonic() > deadline:
            raise Failed(f"{group.system.name}: Redis has {counted} instead of {expected}")
        time.sleep(0.1)


def count_jobs(group: WorkerGroup) -> dict[str, int]:
    """The number of jobs in each place of the default queue, and in all claims."""
    client = group.environment.redis
    counted = {kind: client.zcard(f"rq:{kind}:default") for kind in ("finished", "failed", "wip")}
    counted["queue"] = client.llen("rq:queue:default")
    counted["claims"] = sum(client.llen(key) for key in client.keys("rqjobs:claims:*"))
    return counted


def drain(bench: Bench) -> None:
    """Throughput on a backlog of empty jobs.

    Without persistence, fast systems drain a second backlog of 200,000 jobs.
    """
    for setting in bench.settings:
        with new_environment(setting) as environment:
            entries = []
            for system in bench.systems:
                quick_jobs = 2000 if system.name == "rqjobs" else 50
                entries.append((system, bench.size(system.jobs, quick_jobs), bench.workers))
            rates = alternate(bench, "drain", environment, entries)
            if setting == "off" and not bench.quick and not bench.brief:
                fast = [
                    (system, MANY_JOBS, bench.workers)
                    for system in bench.systems
                    if system.jobs == 20_000
                    and rates.get(system.name, 0) > 20_000 / SHORT_DRAIN_SECONDS
                ]
                alternate(bench, "drain", environment, fast)


def workers(bench: Bench) -> None:
    """Throughput of rqjobs with 2, 10 and 50 workers."""
    counts = (2, 10, 50)[: bench.size(3, 1)]
    for setting in bench.settings:
        with new_environment(setting) as environment:
            entries = [
                (system, bench.size(system.jobs, 1000), count)
                for system in bench.systems
                if system.name == "rqjobs"
                for count in counts
            ]
            alternate(bench, "workers", environment, entries)


def alternate(
    bench: Bench, what: str, environment: Environment, entries: list[tuple[System, int, int]]
) -> dict[str, float]:
    """Drain the backlogs of these (system, jobs, workers) in turns, `bench.runs` times each.

    The speed of the machine changes with time; turns spread that over all systems. Each entry has
    its backlog in a database of its own. Returns the median rates by the names of the systems.
    """
    rates_of: dict[int, list[float]] = {database: [] for database in range(1, len(entries) + 1)}
    for _ in range(bench.runs):
        for database, rates in list(rates_of.items()):
            system, number, count = entries[database - 1]
            with attempt(bench, what, system):
                if not rates:
                    environment.prepare_backlog(system, number, database=database)
                with WorkerGroup(environment, system, count) as group:
                    rates.append(drain_rate(group, number, number, database=database))
                continue
            del rates_of[database]  # a system that failed once has no median
    medians = {}
    for database, rates in rates_of.items():
        system, number, count = entries[database - 1]
        bench.record(
            what,
            system,
            rates,
            "jobs/s",
            setting=environment.setting,
            workers=count,
            jobs=number,
        )
        medians[system.name] = statistics.median(rates)
    return medians


def backlog(bench: Bench) -> None:
    """The effect of the queue's length: throughput of the first jobs of a backlog."""
    lengths = (3_000,) if bench.quick else (10_000, 100_000, 1_000_000)
    with new_environment() as environment:
        for system in bench.compared:
            for waiting in lengths:
                first = min(waiting, 10_000 if system.name == "rqjobs" else 500)
                environment.prepare_backlog(system, waiting)
                rates = []
                for _ in range(bench.runs):
                    with (
                        attempt(bench, "backlog", system),
                        WorkerGroup(environment, system, bench.workers, warm_up_jobs=0) as group,
                    ):
                        rates.append(first / elapsed_seconds(group.drain(first)[:first]))
                if rates:
                    bench.record("backlog", system, rates, "jobs/s", backlog=waiting, jobs=first)


def sleeping(bench: Bench) -> None:
    """Jobs that sleep: the overhead per job, and the share of the ideal rate.

    The overhead is measured with two workers, so that each of them has a processor.
    """
    cases = [(2, 0.001, 5_000), (2, 0.01, 1_000), (2, 0.1, 100), (bench.workers, 0.1, 1_000)]
    with new_environment() as environment:
        for system in bench.compared:
            for count, sleep_seconds, jobs in cases:
                number = bench.size(jobs, 20)
                if system.name != "rqjobs":
                    number = min(number, 300)
                with (
                    attempt(bench, "sleeping", system),
                    WorkerGroup(environment, system, count) as group,
                ):
                    environment.prepare_backlog(system, number, str(sleep_seconds))
                    measured = measure_sleeping(bench.runs, group, number, sleep_seconds)
                    details = {"sleep": sleep_seconds, "jobs": number}
                    if count == 2:
                        overheads = [milliseconds for milliseconds, _ in measured]
                        bench.record("overhead", system, overheads, "ms/job", **details)
                    else:
                        shares = [share for _, share in measured]
                        bench.record("ideal", system, shares, "%", **details)


def measure_sleeping(
    runs: int, group: WorkerGroup, number: int, sleep_seconds: float
) -> list[tuple[float, float]]:
    """The `overhead` of each of several runs of the backlog."""
    measured = []
    for _ in range(runs):
        clear_registries(group)
        measured.append(overhead(group.drain(number), group.workers, sleep_seconds))
        check_registries(group, number, 0)
    return measured


def overhead(
    times: list[tuple[int, int]], workers: int, sleep_seconds: float
) -> tuple[float, float]:
    """Milliseconds of worker time per job outside of the job, and the percentage of the ideal rate.

    `times` are the starts and ends of the jobs in nanoseconds, sorted. Both figures count from the
    time when every worker has a job until the last job starts.
    """
    begun = times[workers - 1][0]
    ended = times[-1][0]
    busy = sum(max(0, min(end, ended) - max(begin, begun)) for begin, end in times)
    jobs = len(times) - workers
    milliseconds = ((ended - begun) * workers - busy) / jobs / 1e6
    share = 100 * jobs * sleep_seconds * 1e9 / workers / (ended - begun)
    return milliseconds, share


def latency(bench: Bench) -> None:
    """Milliseconds from the call that enqueues a job to the job's first line, with 10 idle workers.

    The workers of rqjobs and RQ listen to three queues.
    """
    with new_environment() as environment:
        for system in bench.systems:
            with (
                attempt(bench, "latency", system),
                WorkerGroup(environment, system, bench.workers),
            ):
                number = bench.size(200, 20)
                delays = environment.run_client(system, "latency", str(number))
                values = [nanoseconds / 1e6 for nanoseconds in delays]
                bench.record("latency", system, values, "ms")
                bench.record("p99", system, [p99(values)], "ms")


def idle(bench: Bench) -> None:
    """CPU use of 10 idle workers and their Redis, in percent of one core."""
    seconds = bench.size(30, 2)
    with new_environment() as environment:
        server = psutil.Process(environment.pid)
        for system in bench.compared:
            with (
                attempt(bench, "idle", system),
                WorkerGroup(environment, system, bench.workers) as group,
            ):
                workers_before = group.cpu_seconds()
                server_before = sum(server.cpu_times()[:2])
                time.sleep(seconds)
                workers_share = 100 * (group.cpu_seconds() - workers_before) / seconds
                server_share = 100 * (sum(server.cpu_times()[:2]) - server_before) / seconds
                total = workers_share + server_share
                bench.record("idle", system, [total], "% of a core", redis=round(server_share, 2))


def enqueue(bench: Bench) -> None:
    """The cost of one enqueue, and of each job of `enqueue_many`. The systems alternate."""
    with new_environment() as environment:
        number = bench.size(2000, 100)
        costs: dict[str, list[Any]] = {system.name: [] for system in bench.compared}
        for _ in range(bench.runs):
            for system in bench.compared:
                environment.redis.flushall()
                costs[system.name].append(environment.run_client(system, "enqueue", str(number)))
        for system in bench.compared:
            runs = costs[system.name]
            medians = [statistics.median(run["one"]) for run in runs]
            bench.record("enqueue", system, medians, "us/job")
            bench.record("trips", system, [run["trips"] for run in runs], "round trips")
            bench.record("many", system, [run["many"] for run in runs], "us/job", jobs=number)


def outcomes(bench: Bench) -> None:
    """Throughput of jobs that fail, of jobs that fail once and are retried, and of dependents."""
    with new_environment() as environment:
        for system in bench.compared:
            with (
                attempt(bench, "outcomes", system),
                WorkerGroup(environment, system, bench.workers) as group,
            ):
                number = bench.size(4_000 if system.name == "rqjobs" else 300, 30)
                for kind, (finished, failed, runs_per_job) in OUTCOMES.items():
                    environment.prepare_backlog(system, number, kind)
                    rates = [
                        drain_rate(group, number * runs_per_job, finished * number, failed * number)
                        for _ in range(bench.runs)
                    ]
                    bench.record(
                        kind,
                        system,
                        rates,
                        "jobs/s",
                        setting=environment.setting,
                        workers=bench.workers,
                        jobs=number,
                    )


def delays(bench: Bench) -> None:
    """Lateness of delayed jobs, and the rate at which due jobs enter their queue."""
    with new_environment() as environment:
        for system in bench.systems:
            if system.name not in bench_delays.DELAYING_SYSTEMS:
                continue
            with attempt(bench, "lateness", system):
                values = bench_delays.lateness(
                    environment, system, bench.workers, bench.size(1000, 50)
                )
                bench.record("lateness", system, values, "ms")
                bench.record("lateness p99", system, [p99(values)], "ms")
                bench.record("earliest", system, [min(values)], "ms")
        for system in bench.compared:
            with attempt(bench, "promotion", system):
                number = bench.size(100_000 if system.name == "rqjobs" else 10_000, 1_000)
                seconds = bench_delays.promotion(environment, system, number)
                bench.record("promotion", system, [number / seconds], "jobs/s", jobs=number)


def memory(bench: Bench) -> None:
    """Memory of 10 busy workers (PSS), and Redis's memory for a queued and a finished job."""
    for system in bench.compared:
        # Each system has a Redis of its own, because the first jobs in a Redis use extra memory.
        with attempt(bench, "memory", system), new_environment() as environment:
            measure_memory(bench, environment, system)


def measure_memory(bench: Bench, environment: Environment, system: System) -> None:
    queued = bench.size(20_000, 100)
    before = environment.used_bytes()
    environment.prepare_backlog(system, queued)
    per_job = (environment.used_bytes() - before) / queued
    bench.record("queued", system, [per_job], "bytes/job", jobs=queued)
    with WorkerGroup(environment, system, bench.workers) as group:
        number = bench.size(2_000, 20)
        environment.prepare_backlog(system, number)
        before = environment.used_bytes()
        clear_registries(group)
        group.drain(number)
        check_registries(group, number, 0)
        per_job = (environment.used_bytes() - before) / number
        bench.record("finished", system, [per_job], "bytes/job", jobs=number)
        sleeping_jobs = bench.size(200, 30)
        environment.prepare_backlog(system, sleeping_jobs, "0.1")
        group.publish()
        group.wait(20)
        if sys.platform == "linux":
            bench.record("pss", system, [group.pss_bytes() / 2**20], "MiB")
        group.wait(sleeping_jobs)


def policies(bench: Bench) -> None:
    """Throughput of jobs with limits and rates, and the rate of unique enqueues. Systems alternate."""
    with new_environment() as environment:
        entries = [
            bench_policies.Entry(system, case, bench.size(case.jobs_of(system), case.quick_jobs))
            for case in bench_policies.CASES
            for system in bench.systems
            if system.name in case.systems
        ]
        for database, entry in enumerate(entries, 1):
            entry.database = database
        for run in range(bench.runs):
            for system in bench.systems:
                own = [entry for entry in entries if entry.system is system]
                if own:
                    measure_policies(bench, environment, system, own, is_first=run == 0)
        for entry in entries:
            if entry.measured:
                bench.record(
                    f"policy {entry.case.kind}",
                    entry.system,
                    [run.rate for run in entry.measured],
                    "jobs/s",
                    jobs=entry.jobs,
                    at_once=max(run.at_once for run in entry.measured),
                    in_a_second=max(run.in_a_second for run in entry.measured),
                )
        unique_enqueues(bench, environment)


def measure_policies(
    bench: Bench,
    environment: Environment,
    system: System,
    entries: list[bench_policies.Entry],
    is_first: bool,
) -> None:
    """Drain the backlog of each entry once, with the same workers."""
    if is_first:
        for entry in entries:
            environment.prepare_backlog(system, entry.jobs, entry.case.kind, entry.database)
    runner = bench_delays.with_scheduler(system) if system.module == "rq_jobs" else system
    with (
        attempt(bench, "policies", system),
        WorkerGroup(environment, runner, bench.workers) as group,
    ):
        for entry in entries:
            with attempt(bench, f"policy {entry.case.kind}", system):
                entry.measured.append(bench_policies.drain(group, entry))


def unique_enqueues(bench: Bench, environment: Environment) -> None:
    """The rates of plain enqueues, and of unique ones of which half are duplicates.

    RQ's are unique by their job ids.
    """
    number = bench.size(20_000, 200)
    rates: dict[tuple[str, str], list[float]] = {}
    for _ in range(bench.runs):
        for system in bench.compared:
            environment.redis.flushall()
            costs = environment.run_client(system, "duplicates", str(number))
            for kind, microseconds in costs.items():
                rates.setdefault((kind, system.name), []).append(number * 1e6 / sum(microseconds))
    for kind in ("plain", "unique"):
        for system in bench.compared:
            name = f"enqueue {kind}"
            bench.record(name, system, rates[kind, system.name], "enqueues/s", jobs=number)


SCENARIOS: dict[str, Callable[[Bench], None]] = {
    scenario.__name__: scenario
    for scenario in (
        drain,
        workers,
        backlog,
        sleeping,
        latency,
        idle,
        enqueue,
        outcomes,
        memory,
        delays,
        policies,
    )
}
QUICK_SCENARIOS = ("drain", "latency", "enqueue", "outcomes", "memory", "delays", "policies")


@contextmanager
def attempt(bench: Bench, what: str, system: System) -> Iterator[None]:
    """Record a `Failed` of the block as a row, and continue with the next measurement."""
    try:
        yield
    except Failed as error:
        bench.record_failure(what, system, error)


def machine_facts() -> dict[str, str]:
    """The machine, the versions and the date, for the head of the report."""
    memory_gib = psutil.virtual_memory().total / 2**30
    return {
        "machine": f"{os.cpu_count()} cores ({processor_model()}), {memory_gib:.0f} GiB, "
        f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "redis": ".".join(map(str, redis_server.version(redis_server.binary()))),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def processor_model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor()


def choose_systems(names: tuple[str, ...]) -> list[System]:
    """The systems with these names. A name that no system has exactly is a prefix."""
    if not names:
        return systems()
    exact = {system.name for system in systems()}
    prefixes = tuple(name.lower() for name in names if name not in exact)
    return [
        system
        for system in systems()
        if system.name in names or system.name.lower().startswith(prefixes)
    ]


def install_systems(bench: Bench, chosen: list[System]) -> list[dict[str, Any]]:
    """Install each system and add it to the run; returns the facts and versions for the report."""
    facts = []
    for system in chosen:
        facts.append(vars(system) | {"found": "not installed"})
        with attempt(bench, "install", system):
            facts[-1]["found"] = system.install()
            bench.systems.append(system)
    return facts


def measure(
    bench: Bench, scenarios: tuple[str, ...], facts: list[dict[str, Any]], results: Path, add: bool
) -> None:
    """Run the scenarios; write the report after each, so that an interrupted run is not lost."""
    begun = time.monotonic()
    for scenario in scenarios:
        summary = (SCENARIOS[scenario].__doc__ or "").splitlines()[0]
        click.echo(f"\n== {time.monotonic() - begun:5.0f} s: {scenario}. {summary}", err=True)
        SCENARIOS[scenario](bench)
        report = {
            **machine_facts(),
            "seconds": round(time.monotonic() - begun),
            "runs": bench.runs,
            "systems": facts,
            "rows": bench.rows,
        }
        bench_report.write(results, report, add)
        add = True  # later scenarios must not remove the rows of this one
    click.echo(f"\n{time.monotonic() - begun:.0f} s; results are in {results}", err=True)


@click.command()
@click.option(
    "--only",
    "scenarios",
    multiple=True,
    type=click.Choice([*SCENARIOS]),
    help="Measure only this scenario; repeatable.",
)
@click.option(
    "--system",
    "names",
    multiple=True,
    help="Measure only systems with this name or prefix, in any case; repeatable.",
)
@click.option("--runs", default=3, show_default=True, help="Number of runs; medians are reported.")
@click.option(
    "--quick",
    is_flag=True,
    help="Check that the benchmark works: few jobs, one run, rqjobs and RQ.",
)
@click.option("--brief", is_flag=True, help="Skip persistence and the runs with 200,000 jobs.")
@click.option("--add", is_flag=True, help="Keep the other figures of an earlier run.")
@click.option(
    "--results",
    default=HERE / "results",
    type=click.Path(path_type=Path),
    show_default=True,
    help="Folder for the report.",
)
def main(
    scenarios: tuple[str, ...],
    names: tuple[str, ...],
    runs: int,
    quick: bool,
    brief: bool,
    add: bool,
    results: Path,
) -> None:
    """Measure the systems, and write a report. Exits 1 if rqjobs or RQ failed."""
    # An exit by exception runs the clean-up, which ends the workers and Redis.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if quick:
        runs = 1
        names = names or TESTED_SYSTEMS
        scenarios = scenarios or QUICK_SCENARIOS
    bench = Bench([], runs, quick, brief)
    facts = install_systems(bench, choose_systems(names))
    measure(bench, scenarios or tuple(SCENARIOS), facts, results, add)
    if any("failed" in row and row["system"] in TESTED_SYSTEMS for row in bench.rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
