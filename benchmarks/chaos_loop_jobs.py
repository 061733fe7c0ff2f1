"""The job functions of the scenario *long loops* of `make chaos`.

Each row that is done has a line in the file `CHAOS_RUNS`, outside of Redis: the job's id, the row,
and the monotonic time, which all processes share.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from rq import get_current_job

import rqjobs

ROW_SECONDS = 0.01


class Done(NamedTuple):
    """A row that is done, and when."""

    row: int
    at: float


def read_rows(file: Path) -> dict[str, list[Done]]:
    """The rows of each job, in the order in which they were done."""
    found: dict[str, list[Done]] = defaultdict(list)
    if file.exists():
        for line in file.read_text().splitlines():
            job_id, row, at = line.split()
            found[job_id].append(Done(int(row), float(at)))
    return found


def rows_of(kind: str, path: str) -> Any:
    """The rows of a range, of a text file, or of a table."""
    if kind == "range":
        return range(int(path))
    if kind == "file":
        return open(path, encoding="utf-8")
    database = sqlite3.connect(path)

    def fetch(after: Any) -> list[tuple[int, int]]:
        query = "select id, number from numbers where id > ? order by id limit 7"
        return database.execute(query, [after or 0]).fetchall()

    return fetch


def loop(kind: str, path: str, every: float) -> None:
    """Do each row."""
    job_id = get_current_job().id
    appending = os.open(os.environ["CHAOS_RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for row in rqjobs.resumable(rows_of(kind, path), every=every):
        time.sleep(ROW_SECONDS)
        os.write(appending, f"{job_id} {int(row)} {time.monotonic():.6f}\n".encode())
    os.close(appending)
