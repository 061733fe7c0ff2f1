"""`make chaos`: real servers and processes, killed in every way; then everything is counted.

Each scenario has a Redis and workers of its own. A job's runs are counted in a file outside of Redis; what was
accepted, by the process that enqueued it. Exits 1 if a job was lost, an outcome was recorded twice, a worker quit, or
the audit is not clean.
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

import chaos_jobs
import click
from chaos_clock import Ticking
from chaos_count import Row, count, drain
from chaos_stage import FOREVER, HERE, Load, Server, Team

from rqjobs import queues
from rqjobs.maintenance import sweep as maintenance_sweep

PACE = 0.02  # seconds that a job takes, in the mean


@dataclass
class Scene:
    """What a scenario plays on."""

    row: Row
    server: Server
    team: Team
    home: Path
    short: bool

    def size(self, full: int, short: int) -> int:
        return short if self.short else full

    @contextmanager
    def load(
        self, at_least: int, pace: float = PACE, mixed: bool = True, long: float = 0.0
    ) -> Iterator[Load]:
        """Enqueue while the block runs and until `at_least` jobs are accepted; then wait for all, and count."""
        load = Load(self.server, at_least, pace, mixed, long)
        load.start()
        try:
            yield load
            load.enough.set()
            load.stopped.wait()
            self.finish(load)
        finally:
            load.enough.set()
            load.at_least = 0

    def finish(self, load: Load) -> None:
        unfinished = drain(self.server, load, self.team)
        self.team.end()
        count(self.row, self.server, load, self.team, unfinished)

    def steps(self, number: int, unit: str) -> Iterator[int]:
        """1…`number`, with a progress bar; it stays where it is until the next is asked for."""
        with click.progressbar(
            range(number), label=f"{self.row.name:42} {number:4} {unit:8}", file=sys.stderr
        ) as bar:
            yield from bar


def storm(scene: Scene) -> None:
    """SIGKILL at random, on parents, horses and schedulers, while schedules tick; half of the workers have a fixed
    name."""
    team, wanted = scene.team, scene.size(300, 25)
    ticking = Ticking(scene.server)
    for number in range(4):
        team.hire(name=f"fixed-{number}" if number % 2 else "")
    with scene.load(scene.size(20_000, 1_500)) as load:
        for _ in scene.steps(wanted, "kills"):
            hit = False
            while not hit and not load.trouble:
                time.sleep(random.uniform(0.05, 0.5))
                team.look()
                process = random.choice(team.alive)
                hit = team.strike(
                    process, random.choices(("parent", "horse", "scheduler"), (45, 45, 10))[0]
                )
                if process not in team.alive:
                    team.hire(name=process.title)  # type: ignore[attr-defined]
        scene.row.faults += ticking.stop(load)
    scene.row.notes = f"{team.kills} kills"


def redis_killed(scene: Scene, forget: float = 0.0) -> None:
    """Redis is killed under load and started again from its file, which may have missed what came last."""
    server, team = scene.server, scene.team
    for _ in range(3):
        team.hire()
    wait_for(lambda: len(team.ready()) == 3, 30)
    with scene.load(scene.size(3_000, 600)) as load:
        for _ in scene.steps(scene.size(10, 3), "restarts"):
            wait_for(lambda: len(load.accepted) > 50 or load.trouble, 30)
            end = time.monotonic() + random.uniform(1.5, 3)
            while time.monotonic() < end:
                server.note_size()
                time.sleep(0.02)
            server.kill(forget)
            time.sleep(random.uniform(0.1, 2))
            known = [*load.accepted]  # with the last reply that was read
            server.start()
            team.returns.append(time.monotonic())
            gone = [job_id for job_id in known if not server.client.exists(f"rq:job:{job_id}")]
            scene.row.missed = (scene.row.missed or 0) + len(gone)
            for job_id in gone:
                load.accepted.pop(job_id)
            team.look()
    if not forget and scene.row.missed:
        scene.row.faults.append(f"{scene.row.missed} acknowledged writes are not in the file")


def last_second_lost(scene: Scene) -> None:
    """`everysec`, and the machine's power failed: the file is cut back to what it held a second before."""
    redis_killed(scene, forget=1.0)


def redis_frozen(scene: Scene) -> None:
    """Redis is stopped for longer than a lease: nobody could renew one, and nobody may be robbed for it."""
    team = scene.team
    for _ in range(3):
        team.hire()
    wait_for(lambda: len(team.ready()) == 3, 30)
    with scene.load(300, pace=0.3, mixed=False, long=8.0) as load:
        wait_for(lambda: len(load.accepted) > 100 or load.trouble, 30)
        time.sleep(2)  # now each of them runs a job
        os.kill(scene.server.pid, signal.SIGSTOP)
        try:
            for _ in scene.steps(25, "seconds"):
                time.sleep(1)
        finally:
            os.kill(scene.server.pid, signal.SIGCONT)
    if scene.row.reran:
        scene.row.faults.append("jobs of live workers were taken")


def rolling_restarts(scene: Scene) -> None:
    """SIGTERM, then a new worker, over and over; some jobs take longer than the grace of one second."""
    team = scene.team
    for _ in range(3):
        team.hire()
    with scene.load(scene.size(3_000, 300), long=3.0):
        for _ in scene.steps(scene.size(100, 8), "restarts"):
            time.sleep(random.uniform(0.3, 1.0))
            wait_for(team.ready, 30)
            team.dismiss(random.choice(team.ready() if random.random() < 0.8 else team.alive))
            team.hire()
            wait_for(lambda: len(team.leaving) < 3, 30)
    counted = [
        key
        for key in scene.server.client.scan_iter("rq:job:*")
        if scene.server.client.type(key) == b"hash"
        and scene.server.client.hexists(key, "rqjobs_crashes")
    ]
    if counted:
        scene.row.faults.append(f"a restart was counted as a death of {len(counted)} jobs")


def poison(scene: Scene) -> None:
    """Two jobs that kill their horse and their worker, among healthy ones."""
    team = scene.team
    for _ in range(2):
        team.hire(scheduler=False)
    with scene.load(scene.size(200, 60), mixed=False) as load:
        for number in range(2):
            job_id = f"poison-{number}"
            queue = queues.Queue("default", connection=scene.server.client)
            queue.enqueue(chaos_jobs.poison, bool(number), job_id=job_id, failure_ttl=FOREVER)
            load.accepted[job_id] = "poison"
        for _ in scene.steps(3, "deaths"):
            wait_for(lambda: any(process.poll() is not None for process in team.alive), 60)
            for process in [*team.alive]:
                if process.poll() is not None:
                    team.alive.remove(process)
                    team.hire(scheduler=False)
    if scene.row.buried:
        scene.row.faults.append("healthy jobs are among the dead letters")


def coming_and_going(scene: Scene) -> None:
    """Workers come and go, by SIGTERM and SIGKILL, while other processes sweep without a pause."""
    team, crowd = scene.team, scene.size(50, 8)
    sweeps = [
        subprocess.Popen(
            [sys.executable, str(HERE / "chaos.py"), "--sweep"],
            env=team.environ,
            start_new_session=True,
        )
        for _ in range(scene.size(10, 4))
    ]
    try:
        for _ in range(crowd):
            team.hire()
        with scene.load(scene.size(3_000, 400)):
            wait_for(lambda: len(team.ready()) == crowd, 120)
            for _ in scene.steps(scene.size(100, 12), "changes"):
                time.sleep(random.uniform(0.2, 0.6))
                wait_for(team.ready, 30)
                process = random.choice(team.ready() if random.random() < 0.8 else team.alive)
                if random.random() < 0.5:
                    team.strike(process, "parent")
                else:
                    team.dismiss(process)
                team.hire()
                wait_for(lambda: len(team.ready()) > crowd // 2, 60)
    finally:
        for process in sweeps:
            process.kill()
            process.wait()


SCENARIOS: tuple[tuple[str, Callable[[Scene], None], str, int], ...] = (
    ("SIGKILL on workers", storm, "everysec", 20),
    ("SIGKILL on Redis, appendfsync always", redis_killed, "always", 20),
    ("SIGKILL on Redis, its last second lost", last_second_lost, "everysec", 20),
    ("Redis frozen for 25 s", redis_frozen, "everysec", 20),
    ("rolling restarts, grace 1 s", rolling_restarts, "everysec", 1),
    ("poison among healthy jobs", poison, "everysec", 20),
    ("workers come and go, sweeps race", coming_and_going, "everysec", 5),
)


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def play(
    name: str, act: Callable[[Scene], None], appendfsync: str, grace: int, short: bool, keep: bool
) -> Row:
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    server = Server(home, appendfsync)
    team = Team(server, home, grace)
    scene = Scene(Row(name), server, team, home, short)
    try:
        act(scene)
    finally:
        team.kill_all()
        server.stop()
        if not keep and not scene.row.faults:
            shutil.rmtree(home, ignore_errors=True)
    if scene.row.faults:
        scene.row.faults.append(
            f"the file of runs, Redis's file and the workers' logs are in {home}"
        )
    return scene.row


def table(rows: list[Row]) -> str:
    cells = [Row.HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(Row.HEAD))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in (0, len(widths) - 1) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


@click.command()
@click.option("--short", is_flag=True, help="A smaller run, some two minutes.")
@click.option(
    "--only",
    type=click.IntRange(1, len(SCENARIOS)),
    multiple=True,
    help="Only this scenario; repeatable.",
)
@click.option(
    "--seed", type=int, help="For the instants of the kills; processes are as random as ever."
)
@click.option("--keep", is_flag=True, help="Keep the files of every scenario.")
@click.option("--sweep", is_flag=True, hidden=True)
def main(short: bool, only: tuple[int, ...], seed: int | None, keep: bool, sweep: bool) -> None:
    """Kill everything that rqjobs runs on, and count."""
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit(f"ended by signal {number}")
    )  # leaving nobody behind
    logging.getLogger("rqjobs").setLevel(logging.CRITICAL)
    if sweep:
        while True:
            maintenance_sweep.sweep(queues.connection.client(), force=True)
    seed = seed if seed is not None else random.randrange(10**6)
    random.seed(seed)
    began, rows = time.monotonic(), []
    for number, (name, act, appendfsync, grace) in enumerate(SCENARIOS, 1):
        if (only and number not in only) or (short and act is redis_frozen and number not in only):
            continue
        rows.append(play(name, act, appendfsync, grace, short, keep))
        for fault in rows[-1].faults[:40]:
            click.echo(f"  {fault}", err=True)
    click.echo(f"\n{table(rows)}\n\nseed {seed}, {time.monotonic() - began:.0f} s", color=False)
    if any(row.lost or row.twice or row.faults for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
