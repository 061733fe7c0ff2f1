"""`make chaos`: kills real servers and processes in every way, then counts every job.

Each scenario has a Redis and workers of its own. The runs of a job are counted in a file outside of
Redis. The thread that enqueues counts the accepted jobs. Exits 1 if a job was lost, an outcome was
recorded twice, a worker ended unexpectedly, or the audit is not clean.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import chaos_flows
import chaos_jobs
import chaos_loop_jobs
import chaos_loops
import chaos_policy_jobs
import chaos_policy_load
import click
import psutil
from chaos_count import Row, check_audit, count, count_recoveries, drain
from chaos_environment import HERE, KEEP_SECONDS, Load, Server, Target, Worker, WorkerGroup
from chaos_schedules import TickingSchedules

from rqjobs import queues
from rqjobs.maintenance import sweep as maintenance_sweep

MEAN_JOB_SECONDS = 0.02
FREEZE_SECONDS = 25  # longer than a lease
FAULTS_SHOWN = 40


@dataclass
class Scenario:
    """A running scenario: its row of the table, its Redis and workers, and its folder."""

    row: Row
    server: Server
    group: WorkerGroup
    home: Path
    short: bool

    def size(self, full: int, short: int) -> int:
        if self.short:
            return short
        return full

    @contextmanager
    def load(
        self,
        at_least: int,
        pace_seconds: float = MEAN_JOB_SECONDS,
        mixed: bool = True,
        long_seconds: float = 0.0,
    ) -> Iterator[Load]:
        """Enqueue jobs while the block runs, and until `at_least` jobs are accepted.

        Afterwards wait until the jobs have ended, end the workers, and count.
        """
        load = Load(self.server, at_least, pace_seconds, mixed, long_seconds)
        load.start()
        try:
            yield load
            load.enough.set()
            load.stopped.wait()
            unfinished = drain(self.server, load, self.group)
            self.group.terminate_all()
            count(self.row, self.server, load, self.group, unfinished)
        finally:
            load.enough.set()
            load.at_least = 0

    def steps(self, number: int, unit: str) -> Iterator[int]:
        """Count to `number` with a progress bar."""
        label = f"{self.row.name:42} {number:4} {unit:8}"
        with click.progressbar(range(number), label=label, file=sys.stderr) as bar:
            yield from bar

    def start_workers(self, number: int) -> None:
        """Start workers, and wait until they are registered."""
        for _ in range(number):
            self.group.start()
        wait_for(lambda: len(self.group.registered()) == number, 30)

    def random_worker(self) -> Worker:
        """A live worker: in four of five cases a registered one."""
        if random.random() < 0.8:
            return random.choice(self.group.registered())
        return random.choice(self.group.alive)


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    """Wait until the condition holds, or the time is over."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def kill_workers(scenario: Scenario) -> None:
    """Kill parents, horses and schedulers at random times, while schedules run.

    Half of the workers have a fixed name.
    """
    group = scenario.group
    ticking = TickingSchedules(scenario.server)
    for number in range(4):
        group.start(name=f"fixed-{number}" if number % 2 else "")
    targets = (Target.PARENT, Target.HORSE, Target.SCHEDULER)
    with scenario.load(scenario.size(20_000, 1_500)) as load:
        for _ in scenario.steps(scenario.size(300, 25), "kills"):
            lost_claim = False
            while not lost_claim and not load.error:
                time.sleep(random.uniform(0.05, 0.5))
                group.check_exits()
                worker = random.choice(group.alive)
                lost_claim = group.kill(worker, random.choices(targets, (45, 45, 10))[0])
                if worker not in group.alive:
                    group.start(name=worker.name)
        scenario.row.faults += ticking.stop(load)
    scenario.row.notes = f"{group.kills} kills"


def kill_redis(scenario: Scenario, lost_seconds: float = 0.0) -> None:
    """Kill Redis under load, and restart it from its file.

    With `lost_seconds`, the end of the file is cut; jobs that were accepted in that time may be
    gone. Otherwise each missing job is a fault.
    """
    server = scenario.server
    scenario.start_workers(3)
    with scenario.load(scenario.size(3_000, 600)) as load:
        for _ in scenario.steps(scenario.size(10, 3), "restarts"):
            wait_for(lambda: len(load.accepted) > 50 or load.error, 30)
            end = time.monotonic() + random.uniform(1.5, 3)
            while time.monotonic() < end:
                server.record_size()
                time.sleep(0.02)
            server.kill(lost_seconds)
            time.sleep(random.uniform(0.1, 2))
            accepted = [*load.accepted]  # before the restart: Redis has replied to all of these
            server.start()
            scenario.group.redis_restarts.append(time.monotonic())
            missing = [
                job_id for job_id in accepted if not server.client.exists(f"rq:job:{job_id}")
            ]
            scenario.row.unsaved = (scenario.row.unsaved or 0) + len(missing)
            for job_id in missing:
                load.accepted.pop(job_id)
            scenario.group.check_exits()
    if not lost_seconds and scenario.row.unsaved:
        scenario.row.faults.append(
            f"{scenario.row.unsaved} acknowledged writes are not in the file"
        )


def lose_last_second(scenario: Scenario) -> None:
    """A power failure with `appendfsync everysec`: the last second of the file is lost."""
    kill_redis(scenario, lost_seconds=1.0)


def freeze_redis(scenario: Scenario) -> None:
    """Stop Redis for longer than a lease. No worker can renew its lease; none may lose its jobs."""
    scenario.start_workers(3)
    with scenario.load(300, pace_seconds=0.3, mixed=False, long_seconds=8.0) as load:
        wait_for(lambda: len(load.accepted) > 100 or load.error, 30)
        time.sleep(2)  # until each worker runs a job
        os.kill(scenario.server.pid, signal.SIGSTOP)
        try:
            for _ in scenario.steps(FREEZE_SECONDS, "seconds"):
                time.sleep(1)
        finally:
            os.kill(scenario.server.pid, signal.SIGCONT)
    if scenario.row.rerun:
        scenario.row.faults.append("jobs of live workers were recovered")


def restart_workers(scenario: Scenario) -> None:
    """Send SIGTERM to a worker and start another, many times.

    Some jobs take longer than the shutdown timeout of one second.
    """
    group = scenario.group
    for _ in range(3):
        group.start()
    with scenario.load(scenario.size(3_000, 300), long_seconds=3.0):
        for _ in scenario.steps(scenario.size(100, 8), "restarts"):
            time.sleep(random.uniform(0.3, 1.0))
            wait_for(group.registered, 30)
            group.terminate(scenario.random_worker())
            group.start()
            wait_for(lambda: len(group.ending) < 3, 30)
    client = scenario.server.client
    crashed = [
        key
        for key in client.scan_iter("rq:job:*")
        if client.type(key) == b"hash" and client.hexists(key, "rqjobs_crashes")
    ]
    if crashed:
        scenario.row.faults.append(f"a restart was counted as a crash of {len(crashed)} jobs")


def enqueue_poison(scenario: Scenario) -> None:
    """Two poison jobs among plain jobs: one kills its horse, one its worker."""
    group = scenario.group
    for _ in range(2):
        group.start(scheduler=False)
    with scenario.load(scenario.size(200, 60), mixed=False) as load:
        for number, kills_parent in enumerate((False, True)):
            job_id = f"poison-{number}"
            queue = queues.Queue("default", connection=scenario.server.client)
            queue.enqueue(chaos_jobs.poison, kills_parent, job_id=job_id, failure_ttl=KEEP_SECONDS)
            load.accepted[job_id] = "poison"
        for _ in scenario.steps(3, "crashes"):
            wait_for(lambda: any(worker.has_ended() for worker in group.alive), 60)
            for worker in [*group.alive]:
                if worker.has_ended():
                    group.alive.remove(worker)
                    group.start(scheduler=False)
    if scenario.row.poisoned:
        scenario.row.faults.append("plain jobs failed as poison")


def replace_workers(scenario: Scenario) -> None:
    """Replace workers after SIGTERM and SIGKILL, while other processes sweep in a loop."""
    group = scenario.group
    workers = scenario.size(50, 8)
    command = [sys.executable, str(HERE / "chaos.py"), "--sweep"]
    sweeps = [
        subprocess.Popen(command, env=group.environ, start_new_session=True)
        for _ in range(scenario.size(10, 4))
    ]
    try:
        for _ in range(workers):
            group.start()
        with scenario.load(scenario.size(3_000, 400)):
            wait_for(lambda: len(group.registered()) == workers, 120)
            for _ in scenario.steps(scenario.size(100, 12), "changes"):
                time.sleep(random.uniform(0.2, 0.6))
                wait_for(group.registered, 30)
                worker = scenario.random_worker()
                if random.random() < 0.5:
                    group.kill(worker, Target.PARENT)
                else:
                    group.terminate(worker)
                group.start()
                wait_for(lambda: len(group.registered()) > workers // 2, 60)
    finally:
        for process in sweeps:
            process.kill()
            process.wait()


@contextmanager
def policy_load(scenario: Scenario) -> Iterator[chaos_policy_load.PolicyLoad]:
    """Enqueue jobs of every policy while the block runs; then check what each policy promises."""
    group = scenario.group
    scenario.start_workers(6)
    load = chaos_policy_load.PolicyLoad(scenario.server)
    load.start()
    try:
        yield load
    finally:
        load.stop()
    chaos_policy_load.drain(scenario.server.client, group.check_exits)
    group.terminate_all()
    runs = chaos_policy_jobs.read_runs(group.runs_file)
    chaos_policy_load.check(scenario.row, load, runs)
    starts: dict[str, list[float]] = {}
    for run in runs:
        starts.setdefault(run.job_id, []).append(run.began)
    count_recoveries(scenario.row, group, starts)
    scenario.row.faults[:0] = group.unexpected_exits
    check_audit(scenario.row, scenario.server.client)
    scenario.row.notes = f"{group.kills} kills, {len(load.pauses.pauses)} pauses"


def kill_with_policies(scenario: Scenario) -> None:
    """Kill and restart workers, and sometimes Redis, while jobs of every policy run."""
    group = scenario.group
    targets = (Target.PARENT, Target.HORSE, Target.SCHEDULER)
    with policy_load(scenario) as load:
        for number in scenario.steps(scenario.size(400, 50), "faults"):
            time.sleep(random.uniform(0.1, 0.8))
            group.check_exits()
            if number % 25 == 20:
                restart_redis(scenario, load)
            worker = random.choice(group.alive)
            if random.random() < 0.2:
                group.terminate(worker)
            else:
                group.kill(worker, random.choices(targets, (40, 50, 10))[0])
            if worker not in group.alive:
                group.start()
            wait_for(lambda: group.check_exits() or len(group.ending) < 2, 30)


def restart_redis(scenario: Scenario, load: chaos_policy_load.PolicyLoad) -> None:
    """Kill Redis, and start it from its file. No call is on its way; the workers go on."""
    with load.held():
        scenario.server.kill()
        time.sleep(random.uniform(0.1, 1.0))
        scenario.server.start()
    scenario.group.redis_restarts.append(time.monotonic())


def freeze_with_policies(scenario: Scenario) -> None:
    """Stop all processes of a worker for longer than a lease, while jobs of every policy run."""
    group = scenario.group
    with policy_load(scenario) as load:
        for _ in scenario.steps(scenario.size(6, 1), "freezes"):
            time.sleep(random.uniform(1.0, 2.0))
            worker = psutil.Process(random.choice(group.registered()).pid)
            frozen = [worker, *worker.children()]
            for process in frozen:
                process.suspend()
            load.freezes += [
                chaos_policy_jobs.Freeze(process.pid, time.monotonic()) for process in frozen
            ]
            time.sleep(FREEZE_SECONDS)
            for process in frozen:
                process.resume()


def interrupt_loops(scenario: Scenario) -> None:
    """Restart and kill workers while long loops run; then check the rows of each."""
    group = scenario.group
    scenario.start_workers(3)
    jobs = chaos_loops.enqueue(scenario.home, scenario.size(250, 20))
    stops = 0
    for _ in scenario.steps(scenario.size(150, 12), "faults"):
        time.sleep(random.uniform(0.2, 0.8))
        wait_for(group.registered, 30)
        worker = random.choice(group.alive)
        if random.random() < 0.6:
            group.terminate(worker)
            stops += 1
        else:
            group.kill(worker, random.choice((Target.PARENT, Target.HORSE)))
        if worker not in group.alive:
            group.start()
        wait_for(lambda: group.check_exits() or len(group.ending) < 2, 30)
    chaos_policy_load.drain(scenario.server.client, group.check_exits)
    group.terminate_all()
    rows = chaos_loop_jobs.read_rows(group.runs_file)
    chaos_loops.check(scenario.row, scenario.server.client, jobs, rows, group.killed_claims)
    scenario.row.faults[:0] = group.unexpected_exits
    check_audit(scenario.row, scenario.server.client)
    scenario.row.notes = f"{group.kills} kills, {stops} stops"


def kill_with_flows(scenario: Scenario) -> None:
    """Kill workers, the application and Redis, while flows go through the outbox, and log lines."""
    group = scenario.group
    url = f"sqlite:///{scenario.home}/shop.sqlite"
    group.environ["RQJOBS_OUTBOX_URL"] = url
    chaos_flows.create(url)
    scenario.start_workers(2)
    wait_for(group.registered, 30)
    application = chaos_flows.start_application(url, group.environ)
    application_kills = ordered = 0
    try:
        for number in scenario.steps(scenario.size(200, 7), "faults"):
            time.sleep(random.uniform(0.1, 0.6))
            if number % 3 == 1:
                ordered = chaos_flows.wait_for_more(url, ordered + 3)
                application.kill()
                application.wait()
                application = chaos_flows.start_application(url, group.environ)
                application_kills += 1
            if number % 50 == 5:
                scenario.server.kill()
                time.sleep(random.uniform(0.1, 1.0))
                scenario.server.start()
            group.check_exits()
            worker = random.choice(group.alive)
            group.kill(worker, random.choice([*Target]))
            if worker not in group.alive:
                group.start()
    finally:
        application.kill()
        application.wait()
    unfinished = chaos_flows.drain(url, group.check_exits)
    group.terminate_all()
    scenario.row.faults += group.unexpected_exits
    chaos_flows.check(scenario.row, scenario.server.client, url, unfinished)
    check_audit(scenario.row, scenario.server.client)
    scenario.row.notes = f"{group.kills} kills, {application_kills} of the application"


def sweep_forever() -> None:
    while True:
        maintenance_sweep.sweep(queues.connection.client(), force=True)


@dataclass(frozen=True)
class Plan:
    """A scenario that can be run: its name in the table, its function, and its settings."""

    name: str
    run: Callable[[Scenario], None]
    appendfsync: str = "everysec"
    shutdown_timeout_seconds: int = 20
    in_short_run: bool = True


PLANS = (
    Plan("SIGKILL on workers", kill_workers),
    Plan("SIGKILL on Redis, appendfsync always", kill_redis, appendfsync="always"),
    Plan("SIGKILL on Redis, its last second lost", lose_last_second),
    Plan(f"Redis frozen for {FREEZE_SECONDS} s", freeze_redis, in_short_run=False),
    Plan("rolling restarts, shutdown timeout 1 s", restart_workers, shutdown_timeout_seconds=1),
    Plan("poison among plain jobs", enqueue_poison),
    Plan("replaced workers, concurrent sweeps", replace_workers, shutdown_timeout_seconds=5),
    Plan("policies", kill_with_policies, appendfsync="always", shutdown_timeout_seconds=2),
    Plan("long loops", interrupt_loops),
    Plan("flows, logs, outbox", kill_with_flows, appendfsync="always"),
    Plan(
        f"policies, workers frozen for {FREEZE_SECONDS} s",
        freeze_with_policies,
        shutdown_timeout_seconds=2,
        in_short_run=False,
    ),
)


def run(plan: Plan, short: bool, keep: bool) -> Row:
    """Run a scenario in a new folder; the folder is kept if there are faults, or with `keep`."""
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    server = Server(home, plan.appendfsync)
    group = WorkerGroup(server, home, plan.shutdown_timeout_seconds)
    scenario = Scenario(Row(plan.name), server, group, home, short)
    try:
        plan.run(scenario)
    finally:
        group.kill_all()
        server.stop()
        if not keep and not scenario.row.faults:
            shutil.rmtree(home, ignore_errors=True)
    if scenario.row.faults:
        scenario.row.faults.append(
            f"the file of runs, Redis's file and the workers' logs are in {home}"
        )
    return scenario.row


def text_table(rows: list[Row]) -> str:
    """The rows with a header. The first and the last column are left-aligned."""
    lines = [Row.HEADER, *(row.cells() for row in rows)]
    last = len(Row.HEADER) - 1
    widths = [max(len(line[column]) for line in lines) for column in range(last + 1)]

    def padded(column: int, cell: str) -> str:
        if column in (0, last):
            return cell.ljust(widths[column])
        return cell.rjust(widths[column])

    return "\n".join(
        "  ".join(padded(column, cell) for column, cell in enumerate(line)) for line in lines
    )


@click.command()
@click.option("--short", is_flag=True, help="Run smaller scenarios, for some minutes.")
@click.option(
    "--only",
    type=click.IntRange(1, len(PLANS)),
    multiple=True,
    help="Run only the scenario with this number; repeatable.",
)
@click.option(
    "--seed", type=int, help="Seed for the times of the kills. The processes stay random."
)
@click.option("--keep", is_flag=True, help="Keep the files of every scenario.")
@click.option("--sweep", is_flag=True, hidden=True)
def main(short: bool, only: tuple[int, ...], seed: int | None, keep: bool, sweep: bool) -> None:
    """Kill Redis and the workers in every way, and count the jobs."""
    # An exit by exception runs the clean-up, which ends the workers and Redis.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(f"ended by signal {number}"))
    logging.getLogger("rqjobs").setLevel(logging.CRITICAL)
    if sweep:
        sweep_forever()
    if seed is None:
        seed = random.randrange(10**6)
    random.seed(seed)
    began = time.monotonic()
    rows = []
    for number, plan in enumerate(PLANS, 1):
        if only and number not in only:
            continue
        if short and not plan.in_short_run and number not in only:
            continue
        row = run(plan, short, keep)
        rows.append(row)
        for fault in row.faults[:FAULTS_SHOWN]:
            click.echo(f"  {fault}", err=True)
    seconds = time.monotonic() - began
    click.echo(f"\n{text_table(rows)}\n\nseed {seed}, {seconds:.0f} s", color=False)
    if any(row.lost or row.twice or row.faults for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
