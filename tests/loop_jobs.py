"""Job functions with long loops, for the tests. Each row is noted in a list in Redis when it is
done, and a run may be ended at a row.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time

import rqjobs
from rqjobs import Repeat, backoff, get_current_job, job, loops

AT_ONCE = {"base": 1, "cap": 0}


def note(name, row):
    get_current_job().connection.rpush(f"rows:{name}", row)


def runs(name):
    """The number of this run of the job with this name, from 1."""
    return get_current_job().connection.incr(f"runs:{name}")


def stop():
    """Let the worker begin its shutdown, as SIGTERM does at a deploy."""
    os.kill(os.getppid(), signal.SIGTERM)
    while not get_current_job().stop_reason():
        time.sleep(0.005)
    time.sleep(2 * loops.STOP_CHECK_SECONDS)


def boom():
    raise ValueError("boom")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


ENDS = {"stop": stop, "boom": boom, "kill": kill}


def open_rows(kind, path):
    """The numbers 0 to 9 as rows of a kind."""
    if kind == "list":
        return [str(number) for number in range(10)]
    if kind == "range":
        return range(10)
    if kind == "text":
        return open(path, encoding="utf-8")
    if kind == "binary":
        return open(path, "rb")
    database = sqlite3.connect(path)

    def fetch(after):
        query = "select id, name from rows where id > ? order by id limit 3"
        return database.execute(query, [after or 0]).fetchall()

    return fetch


def visit(name, kind, path="", at=(), how="stop", every=1.0):
    """Note each row. Run number i ends at row at[i - 1] in the way `how`."""
    ends = dict(enumerate(at, 1))
    end = ends.get(runs(name))
    for row in rqjobs.resumable(open_rows(kind, path), every=every):
        number = int(row)
        if number == end and how != "stop":
            ENDS[how]()
        note(name, number)
        if number == end and how == "stop":
            stop()
    return "done"


@job(retry=backoff(1, **AT_ONCE))
def retried(name, at):
    visit(name, "list", at=at, how="boom")


def slow(name, kind, path="", every=1.0):
    for row in rqjobs.resumable(open_rows(kind, path), every=every):
        time.sleep(0.05)
        note(name, int(row))


@job(limit=1, unique="args", retry=backoff(3))
def limited(name):
    for row in rqjobs.resumable(range(4)):
        note(name, row)
        if row == 1 and runs(name) == 1:
            stop()


def catches(name, how):
    """Catch what ends the loop, and return, or raise something else."""
    try:
        for row in rqjobs.resumable(range(3)):
            note(name, row)
            if row == 0 and runs(name) == 1:
                stop()
    except Exception:
        note(name, "caught")
    except BaseException:
        if how == "raise":
            raise KeyError("another") from None
    finally:
        note(name, "finally")
    return "returned"


async def coroutine(name):
    for row in rqjobs.resumable(range(3)):
        note(name, row)
        if row == 0 and runs(name) == 1:
            stop()


def two(name):
    run = runs(name)
    for row in rqjobs.resumable(["a", "b"]):
        note(name, row)
        if row == "a" and run == 1:
            stop()
    for row in rqjobs.resumable(["c", "d"], name="second"):
        note(name, row)
        if row == "c" and run == 2:
            stop()
    note(name, "end")


def nested(name):
    for row in rqjobs.resumable(range(2)):
        for inner in rqjobs.resumable(range(2)):
            note(name, row * 2 + inner)


def broken_off(name):
    """Break the first loop, then go on with the file behind it."""
    with open(name) as file:
        for line in rqjobs.resumable(file):
            if line == "\n":
                break
        rest = file.read()
    for _ in rqjobs.resumable([0]):
        pass
    return rest


def keyed(keys):
    """Loop over these keys, in batches of two."""
    found = []
    pairs = [(key, number) for number, key in enumerate(keys)]

    def fetch(after):
        start = [key for key, _ in pairs].index(after) + 1 if after is not None else 0
        return pairs[start : start + 2]

    for number in rqjobs.resumable(fetch, every=0):
        found.append(number)
        if number == 0 and runs("keyed") == 1:
            stop()
    return found


def sums(name):
    """Keep a sum in the meta, with the cursor."""
    meta = get_current_job().meta
    run = runs(name)
    for row in rqjobs.resumable(range(5), every=0):
        if row == 3 and run == 1:
            kill()
        meta["sum"] = meta.get("sum", 0) + row
        if row == 1 and run == 2:
            boom()
    return meta["sum"]


def canceled(name):
    for row in rqjobs.resumable(range(100), every=0):
        note(name, row)
        if row == 1:
            job = get_current_job()
            if name == "deleted":
                job.connection.delete(job.key)
            elif name == "again":
                rqjobs.queue("other").enqueue("loop_jobs.note", name, "new", job_id=job.id)
            else:
                job.cancel()


def says(steps, note_text=""):
    """Say how far it is, and return what Redis has then."""
    current = get_current_job()
    seen = []
    for step in range(1, steps + 1):
        rqjobs.progress(step, steps, note_text)
        seen.append(current.progress.done)
    return seen


def says_in_a_loop(name):
    for row in rqjobs.resumable(range(3), total=5):
        if name == "own":
            rqjobs.progress(row, 100, "own")


def refused(what):
    """Return the error of a bad call, and whether the job has anything to store then."""
    bad = {
        "cursor": lambda: list(rqjobs.resumable(lambda after: [(object(), 1)])),
        "large": lambda: list(rqjobs.resumable(lambda after: [("x" * 3000, 1)])),
        "again": lambda: list(rqjobs.resumable(lambda after: [(1, 1)])),
        "done": lambda: rqjobs.progress(float("nan")),
    }
    with contextlib.suppress(ZeroDivisionError):
        bad[what]()


@job(repeat=Repeat(times=1))
def repeated(name):
    for row in rqjobs.resumable(range(2)):
        note(name, row)


def grows(name):
    run = runs(name)
    for row in rqjobs.resumable(range(3)):
        note(name, row)
        if run == 1:
            time.sleep(0.05)
