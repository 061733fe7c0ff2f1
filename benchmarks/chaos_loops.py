"""The scenario *long loops* of `make chaos`: its jobs, and what their rows must not show."""

from __future__ import annotations

import itertools
import random
import sqlite3
from pathlib import Path

import chaos_loop_jobs
import redis
from chaos_count import Row
from chaos_environment import KEEP_SECONDS, QUEUE_NAMES
from chaos_loop_jobs import Done
from chaos_policy_load import read_ended

from rqjobs import queues

ROWS = 150
EVERY_SECONDS = (0.0, 0.2, 1.0)
TOLERANCE_SECONDS = 0.5  # a busy machine: from a row's end to the write of the cursor


def enqueue(home: Path, number: int) -> dict[str, float]:
    """Enqueue so many jobs of all kinds of rows; returns the seconds between two cursors of each."""
    (home / "numbers.txt").write_text("".join(f"{row}\n" for row in range(ROWS)))
    with sqlite3.connect(home / "numbers.db") as database:
        database.execute("create table numbers (id integer primary key, number integer)")
        pairs = [(5 * row + 1, row) for row in range(ROWS)]
        database.executemany("insert into numbers values (?, ?)", pairs)
    database.close()
    paths = {"range": ROWS, "file": home / "numbers.txt", "query": home / "numbers.db"}
    kinds = itertools.islice(itertools.cycle(paths), number)
    found = {}
    for kind in kinds:
        every = random.choice(EVERY_SECONDS)
        job = queues.queue(random.choice(QUEUE_NAMES)).enqueue(
            chaos_loop_jobs.loop,
            args=(kind, str(paths[kind]), every),
            result_ttl=KEEP_SECONDS,
            failure_ttl=KEEP_SECONDS,
        )
        found[job.id] = every
    return found


def repeats(rows: list[Done]) -> list[tuple[Done, Done]]:
    """Each place where a row does not follow the one before: these two rows."""
    return [
        (before, after) for before, after in itertools.pairwise(rows) if after.row != before.row + 1
    ]


def check_rows(rows: list[Done], every: float, kills: int) -> list[str]:
    """The faults of a job's rows. `kills`: of its claims."""
    faults = []
    if not rows or rows[0].row != 0:
        faults.append("does not begin with the first row")
    breaks = repeats(rows)
    if len(breaks) > kills:
        faults.append(f"has repeated rows {len(breaks)} times after {kills} kills")
    for before, after in breaks:
        if after.row > before.row + 1:
            faults.append(f"goes from row {before.row} to {after.row}")
            continue
        first = max(done for done in rows if done.at < after.at and done.row == after.row)
        if before.at - first.at > every + TOLERANCE_SECONDS:
            faults.append(f"repeats the rows of {before.at - first.at:.3f} s, of {every:g} s")
    return faults


def check(
    row: Row,
    client: redis.Redis,
    jobs: dict[str, float],
    rows_of: dict[str, list[Done]],
    killed_claims: list[tuple[str, float]],
) -> None:
    """Fill the row of the table, after all workers have ended."""
    row.accepted = len(jobs)
    ended = read_ended(client, list(jobs))
    for job_id, every in jobs.items():
        rows, end = rows_of[job_id], ended[job_id]
        kills = sum(job_id == killed for killed, _ in killed_claims)
        faults = check_rows(rows, every, kills)
        row.rerun += bool(kills)
        row.poisoned += end.is_poisoned
        if len(end.results) != 1 or end.outcome not in ("finished", "failed"):
            row.lost += 1
            faults.append(f"has ended as {end}")
        elif end.outcome == "failed" and not end.is_poisoned:
            faults.append(f"has failed: {end}")
        elif end.outcome == "finished" and {done.row for done in rows} != set(range(ROWS)):
            faults.append("is finished without all rows")
        else:
            row.outcomes += 1
        if client.hexists(f"rq:job:{job_id}", "rqjobs_cursors") and end.outcome == "finished":
            faults.append("has a cursor left")
        row.faults += [f"{job_id} {fault}" for fault in faults]
