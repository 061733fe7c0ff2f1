"""`make bench`: rqjobs beside RQ and its other peers, on one Redis, in one run.

Nothing here fails for being slow; a job that is not done, or not recorded, does. What is measured is written to
benchmarks/results/, as Markdown, SVG and JSON.
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

import bench_clock
import bench_report
import click
import psutil
from bench_stage import HERE, Failed, Stage, System, Team, p99, seconds, stage, status, systems

from rqjobs.dev import redis_server

KINDS = {
    "failing": (0, 1, 1),
    "retried": (1, 0, 2),
    "dependent": (2, 0, 2),
}  # of each: finished, failed, runs


@dataclass
class Bench:
    """What is to be measured, and what was."""

    systems: list[System]
    runs: int
    quick: bool
    brief: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    @property
    def family(self) -> list[System]:
        """Ours and RQ's own worker, which every scenario compares."""
        return [system for system in self.systems if system.name in ("rqjobs", "rq")]

    @property
    def workers(self) -> int:
        return self.size(10, 3)

    @property
    def settings(self) -> tuple[str, ...]:
        return ("off",) if self.quick or self.brief else ("off", "everysec")

    def note(self, what: str, system: System, values: list[float], unit: str, **more: Any) -> None:
        self.rows.append(
            {
                "what": what,
                "system": system.name,
                "unit": unit,
                "values": values,
                "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                **more,
            }
        )
        about = " ".join(
            f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"
            for name, value in more.items()
        )
        status()
        click.echo(
            f"{what:10} {system.name:26} {about:44} {statistics.median(values):12,.2f} {unit}",
            err=True,
        )

    def drain(
        self, what: str, team: Team, number: int, finished: int, failed: int, per_job: int
    ) -> None:
        """The rate at which a backlog that is ready is worked off."""
        rates = [drained(team, number * per_job, finished, failed) for _ in range(self.runs)]
        self.note(
            what,
            team.system,
            rates,
            "jobs/s",
            setting=team.stage.setting,
            workers=team.workers,
            jobs=number,
        )


def drained(team: Team, runs: int, finished: int, failed: int = 0, database: int = 1) -> float:
    """Have the backlog of that database, which is so many runs of jobs, worked off, and check it; the rate."""
    forget(team)
    rate = runs / seconds(team.drain(runs, database))
    check(team, finished, failed)
    return rate


def forget(team: Team) -> None:
    for kind in ("finished", "failed"):
        team.stage.redis.delete(*(f"rq:{kind}:{queue}" for queue in ("high", "default", "low")))


def check(team: Team, finished: int, failed: int) -> None:
    """Make sure that RQ's registries say what we have seen, and that nothing is left over (RQ's family only).

    Raises:
        Failed: they do not, half a minute later.
    """
    if team.system.module != "rq_jobs":
        return
    client, wanted = (
        team.stage.redis,
        {"finished": finished, "failed": failed, "wip": 0, "queue": 0, "claims": 0},
    )
    deadline = time.monotonic() + 30
    while (
        found := {
            **{kind: client.zcard(f"rq:{kind}:default") for kind in ("finished", "failed", "wip")},
            "queue": client.llen("rq:queue:default"),
            "claims": sum(client.llen(key) for key in client.keys("rqjobs:claims:*")),
        }
    ) != wanted:
        team.check()
        if time.monotonic() > deadline:
            raise Failed(f"{team.system.name}: Redis should say {wanted}, and says {found}")
        time.sleep(0.1)


def drain(bench: Bench) -> None:
    """A backlog of jobs that do nothing; persistence off, ten times as many, too, for those that need less than 5 s."""
    for setting in bench.settings:
        with stage(setting) as here:
            rates = take_turns(
                bench,
                "drain",
                here,
                [
                    (
                        system,
                        bench.size(system.jobs, 2000 if system.name == "rqjobs" else 50),
                        bench.workers,
                    )
                    for system in bench.systems
                ],
            )
            if setting == "off" and not bench.quick and not bench.brief:
                take_turns(
                    bench,
                    "drain",
                    here,
                    [
                        (system, 200_000, bench.workers)
                        for system in bench.systems
                        if system.jobs == 20_000 and rates.get(system.name, 0) > 20_000 / 5
                    ],
                )


def workers(bench: Bench) -> None:
    """The same with 2 and with 50 workers."""
    for setting in bench.settings:
        with stage(setting) as here:
            take_turns(
                bench,
                "workers",
                here,
                [
                    (system, bench.size(system.jobs, 1000), count)
                    for system in bench.family
                    if system.name == "rqjobs"
                    for count in (2, 10, 50)[: bench.size(3, 1)]
                ],
            )


def take_turns(
    bench: Bench, what: str, here: Stage, entries: list[tuple[System, int, int]]
) -> dict[str, float]:
    """Drain the backlogs of these (system, jobs, workers), one after the other and then all of them again, because the
    machine is not equally fast at all times. Returns the median rates."""
    found: dict[int, list[float]] = {place: [] for place in range(1, len(entries) + 1)}
    for _ in range(bench.runs):
        for place, rates in list(found.items()):
            system, number, count = entries[place - 1]
            with attempt(bench, what, system):
                if not rates:
                    here.fill(system, number, database=place)
                with Team(here, system, count) as team:
                    rates.append(drained(team, number, number, database=place))
                continue
            del found[place]  # what fails once has no median
    for place, rates in found.items():
        system, number, count = entries[place - 1]
        bench.note(what, system, rates, "jobs/s", setting=here.setting, workers=count, jobs=number)
    return {entries[place - 1][0].name: statistics.median(rates) for place, rates in found.items()}


def backlog(bench: Bench) -> None:
    """How much the length of the queue costs: the first jobs of a backlog are timed."""
    with stage() as here:
        for system in bench.family:
            for waiting in bench.size((10_000, 100_000, 1_000_000), (3_000,)):
                first = min(waiting, 10_000 if system.name == "rqjobs" else 500)
                here.fill(system, waiting)
                rates = []
                for _ in range(bench.runs):
                    with (
                        attempt(bench, "backlog", system),
                        Team(here, system, bench.workers, warm=0) as team,
                    ):
                        rates.append(first / seconds(team.drain(first)[:first]))
                bench.note("backlog", system, rates, "jobs/s", backlog=waiting, jobs=first)


def naps(bench: Bench) -> None:
    """Jobs that take a while: what of a worker's time is overhead (two workers, so none waits for a processor), and
    how near ten workers come to what is possible."""
    kinds = [(2, 0.001, 5_000), (2, 0.01, 1_000), (2, 0.1, 100), (bench.workers, 0.1, 1_000)]
    with stage() as here:
        for system in bench.family:
            for count, nap, most in kinds:
                number = min(bench.size(most, 20), most if system.name == "rqjobs" else 300)
                with attempt(bench, "naps", system), Team(here, system, count) as team:
                    here.fill(system, number, str(nap))
                    found = []
                    for _ in range(bench.runs):
                        forget(team)
                        found.append(overhead(team.drain(number), count, nap))
                        check(team, number, 0)
                    if count == 2:
                        bench.note(
                            "overhead",
                            system,
                            [each for each, _ in found],
                            "ms/job",
                            nap=nap,
                            jobs=number,
                        )
                    else:
                        bench.note(
                            "ideal",
                            system,
                            [share for _, share in found],
                            "%",
                            nap=nap,
                            jobs=number,
                        )


def overhead(times: list[tuple[int, int]], workers: int, nap: float) -> tuple[float, float]:
    """Milliseconds for each job that its worker did not nap, and the share of the possible rate, in percent; both from
    when all workers were at work until the last job began."""
    begun, ended = times[workers - 1][0], times[-1][0]
    busy = sum(max(0, min(end, ended) - max(begin, begun)) for begin, end in times)
    jobs = len(times) - workers
    return ((ended - begun) * workers - busy) / jobs / 1e6, 100 * jobs * nap * 1e9 / workers / (
        ended - begun
    )


def latency(bench: Bench) -> None:
    """From before one job is sent until its first line, with 10 idle workers on three queues (RQ's family)."""
    with stage() as here:
        for system in bench.systems:
            with attempt(bench, "latency", system), Team(here, system, bench.workers):
                number = bench.size(200, 20)
                values = [value / 1e6 for value in here.ask(system, "latency", str(number))]
                bench.note("latency", system, values, "ms")
                bench.note("p99", system, [p99(values)], "ms")


def idle(bench: Bench) -> None:
    """What 10 idle workers and their Redis use of one core."""
    with stage() as here:
        for system in bench.family:
            with attempt(bench, "idle", system), Team(here, system, bench.workers) as team:
                server, pause = psutil.Process(here.pid), bench.size(30, 2)
                before = team.cpu(), sum(server.cpu_times()[:2])
                time.sleep(pause)
                after = team.cpu(), sum(server.cpu_times()[:2])
                shares = [
                    100 * (late - early) / pause for early, late in zip(before, after, strict=True)
                ]
                bench.note("idle", system, [sum(shares)], "% of a core", redis=round(shares[1], 2))


def enqueue(bench: Bench) -> None:
    """What it costs to enqueue one job, and each of many; ours and RQ's take turns."""
    with stage() as here:
        number = bench.size(2000, 100)
        costs: dict[str, list[Any]] = {system.name: [] for system in bench.family}
        for _ in range(bench.runs):
            for system in bench.family:
                here.redis.flushall()
                costs[system.name].append(here.ask(system, "enqueue", str(number)))
        for system in bench.family:
            found = costs[system.name]
            bench.note(
                "enqueue", system, [statistics.median(one["one"]) for one in found], "us/job"
            )
            bench.note("trips", system, [one["trips"] for one in found], "round trips")
            bench.note("many", system, [one["many"] for one in found], "us/job", jobs=number)


def unhappy(bench: Bench) -> None:
    """Jobs that fail, that fail once and are retried, and pairs of which one depends on the other."""
    with stage() as here:
        for system in bench.family:
            with attempt(bench, "unhappy", system), Team(here, system, bench.workers) as team:
                for kind, (finished, failed, per_job) in KINDS.items():
                    number = bench.size(4_000 if system.name == "rqjobs" else 300, 30)
                    here.fill(system, number, kind)
                    bench.drain(kind, team, number, finished * number, failed * number, per_job)


def delays(bench: Bench) -> None:
    """How late delayed jobs begin, one due each 10 ms; and how long a crowd that is due at once takes (RQ's family)."""
    with stage() as here:
        for system in bench.systems:
            if system.name in bench_clock.CAN:
                with attempt(bench, "lateness", system):
                    values = bench_clock.lateness(here, system, bench.workers, bench.size(1000, 50))
                    bench.note("lateness", system, values, "ms")
                    bench.note("lateness p99", system, [p99(values)], "ms")
                    bench.note("earliest", system, [min(values)], "ms")
        for system in bench.family:
            with attempt(bench, "promotion", system):
                number = bench.size(100_000 if system.name == "rqjobs" else 10_000, 1_000)
                took = bench_clock.promotion(here, system, number)
                bench.note("promotion", system, [number / took], "jobs/s", jobs=number)


def memory(bench: Bench) -> None:
    """What 10 busy workers hold in memory (PSS: what is shared counts once), and Redis for each job."""
    number, many = bench.size(2_000, 20), bench.size(20_000, 100)
    for system in bench.family:
        with (
            attempt(bench, "memory", system),
            stage() as here,
        ):  # a Redis each, for the first use of one costs extra
            before = here.used()
            here.fill(system, many)
            bench.note("queued", system, [(here.used() - before) / many], "bytes/job", jobs=many)
            with Team(here, system, bench.workers) as team:
                here.fill(system, number)
                before = here.used()
                forget(team)
                team.drain(number)
                check(team, number, 0)
                bench.note(
                    "finished", system, [(here.used() - before) / number], "bytes/job", jobs=number
                )
                here.fill(system, bench.size(200, 30), "0.1")
                team.publish()
                team.wait(20)
                if sys.platform == "linux":
                    bench.note("pss", system, [team.pss() / 2**20], "MiB")
                team.wait(bench.size(200, 30))


SCENARIOS: dict[str, Callable[[Bench], None]] = {
    scenario.__name__: scenario
    for scenario in (drain, workers, backlog, naps, latency, idle, enqueue, unhappy, memory, delays)
}
QUICK = ("drain", "latency", "enqueue", "unhappy", "memory", "delays")


@contextmanager
def attempt(bench: Bench, what: str, system: System) -> Iterator[None]:
    """What fails is said, in the table too, and the rest goes on; in the end we exit with 1 if it was ours or RQ."""
    try:
        yield
    except Failed as error:
        status()
        click.echo(f"{what:10} {system.name:26} FAILED: {error}", err=True)
        bench.rows.append({"what": what, "system": system.name, "failed": str(error), "values": []})


def machine() -> dict[str, str]:
    model = platform.processor()
    if sys.platform == "linux":
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "machine": f"{os.cpu_count()} cores ({model}), {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "redis": ".".join(map(str, redis_server.version(redis_server.binary()))),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


@click.command()
@click.option(
    "--only",
    "scenarios",
    multiple=True,
    type=click.Choice([*SCENARIOS]),
    help="Measure only this (again).",
)
@click.option(
    "--system",
    "names",
    multiple=True,
    help="Only systems whose name begins so; case does not matter.",
)
@click.option("--runs", default=3, show_default=True, help="Medians of so many runs.")
@click.option("--quick", is_flag=True, help="Few jobs, one run, ours and RQ: does everything work?")
@click.option(
    "--brief", is_flag=True, help="Persistence off only, and no longer runs for the fast ones."
)
@click.option("--add", is_flag=True, help="Keep what else an earlier run has measured.")
@click.option(
    "--results", default=HERE / "results", type=click.Path(path_type=Path), show_default=True
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
    """Measure, and write what was found into the folder --results."""
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that our workers and our Redis end with us
    names = names or (("rqjobs", "rq") if quick else ())
    exact = {system.name for system in systems()}
    chosen = [
        system
        for system in systems()
        if not names
        or any(
            system.name == name
            or (name not in exact and system.name.lower().startswith(name.lower()))
            for name in names
        )
    ]
    bench = Bench([], 1 if quick else runs, quick, brief)
    about = []
    for system in chosen:
        about.append(vars(system) | {"found": "not installed"})
        with attempt(bench, "install", system):
            about[-1]["found"] = system.install()
            bench.systems.append(system)
    begun = time.monotonic()
    for scenario in scenarios or (QUICK if quick else SCENARIOS):
        click.echo(
            f"\n== {time.monotonic() - begun:5.0f} s: {scenario}. {SCENARIOS[scenario].__doc__}",
            err=True,
        )
        SCENARIOS[scenario](bench)
        bench_report.write(
            results,
            {
                **machine(),
                "seconds": round(time.monotonic() - begun),
                "runs": bench.runs,
                "systems": about,
                "rows": bench.rows,
            },
            add,
        )
        add = True  # the next ones add to what this one has written
    click.echo(f"\n{time.monotonic() - begun:.0f} s; written to {results}", err=True)
    broken = [row for row in bench.rows if "failed" in row and row["system"] in ("rqjobs", "rq")]
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
