"""What the jobs of every system do, and how they are counted: alike for all, and outside of their bookkeeping.

A job leaves two times, of its begin and its end, in a file that all processes map into their memory. That costs a
microsecond or two and no system call (which would hand the interpreter's lock to another thread, and so cost systems
with threads more than others); a thread reserves room for some hundred jobs at a time.

usage: work.py MODULE fill NUMBER KIND      have the module send so many jobs
       work.py MODULE latency NUMBER        send one job at a time; print how long each took to begin, in nanoseconds
       work.py MODULE enqueue NUMBER        what sending costs (rq_jobs only)
       work.py MODULE crowd NUMBER          send so many jobs that are due at once; print when (rq_jobs only)
       work.py MODULE later NUMBER          send so many delayed jobs, one due each 10 ms; print when, in nanoseconds
"""

from __future__ import annotations

import importlib
import itertools
import json
import mmap
import os
import random
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

BLOCK = mmap.ALLOCATIONGRANULARITY  # bytes that are reserved at a time
TIMES = struct.Struct(
    "qq"
)  # nanoseconds of the monotonic clock, which is the same in all processes
EACH = BLOCK // TIMES.size


class Mine(threading.local):
    """A thread's own block, and how many marks it has room for."""

    block: mmap.mmap
    room = 0


mine = Mine()
os.register_at_fork(
    after_in_child=lambda: setattr(mine, "room", 0)
)  # a child must not write where its parent does


def noop() -> None:
    mark(time.monotonic_ns())


def mark(begun: int) -> None:
    """Note that a job ran from `begun` until now."""
    if not mine.room:
        file = os.open(os.environ["BENCH_MARKS"], os.O_RDWR | os.O_APPEND)
        os.write(file, bytes(BLOCK))  # at the end of the file, whoever else does so now
        mine.block = mmap.mmap(file, BLOCK, offset=os.lseek(file, 0, os.SEEK_CUR) - BLOCK)
        mine.room = EACH
        os.close(file)
    TIMES.pack_into(mine.block, BLOCK - mine.room * TIMES.size, begun, time.monotonic_ns())
    mine.room -= 1


def _written() -> Iterator[tuple[int, bytes]]:
    """Each block that is in use: how many marks it holds (cheap for a full one), and the block."""
    with open(os.environ["BENCH_MARKS"], "rb") as file:
        while block := file.read(BLOCK):
            full = any(block[-8:])
            yield EACH if full else sum(1 for _ in _until_empty(block)), block


def _until_empty(block: bytes) -> Iterator[tuple[int, int]]:
    return itertools.takewhile(lambda times: times[1], TIMES.iter_unpack(block))


def count() -> int:
    """How many jobs have ended so far."""
    return sum(number for number, _ in _written())


def marks(since: int = 0) -> list[tuple[int, int]]:
    """Begin and end, in nanoseconds, of the jobs that have begun after `since`; sorted."""
    return sorted(
        times for _, block in _written() for times in _until_empty(block) if times[0] >= since
    )


def latency(send: Callable[[int], Any], number: int) -> list[int]:
    """From just before a job is sent, by a process that does nothing else, to its first line."""
    delays = []
    for _ in range(number):
        time.sleep(random.uniform(0.01, 0.05))
        ended, sent = count(), time.monotonic_ns()
        send(1)
        while count() == ended:
            if time.monotonic_ns() - sent > 60e9:
                raise TimeoutError("a job did not begin within a minute")
            time.sleep(0.005)
        delays.append(marks(sent)[0][0] - sent)
    return delays


def later(send: Callable[[float], Any], number: int) -> list[int]:
    """When each of the delayed jobs is due, by the monotonic clock; the first in three seconds."""
    begun, dues = time.monotonic_ns() + 3_000_000_000, []
    for index in range(number):
        dues.append(begun + index * 10_000_000)
        send((dues[-1] - time.monotonic_ns()) / 1e9)
    return dues


if __name__ == "__main__":
    name, verb, number, *kind = sys.argv[1:]
    jobs = importlib.import_module(name)
    if verb == "fill":
        jobs.send(int(number), *kind)
    elif verb == "latency":
        print(json.dumps(latency(jobs.send, int(number))))
    elif verb == "enqueue":
        print(json.dumps(jobs.costs(int(number))))
    elif verb == "later":
        print(json.dumps(later(jobs.later, int(number))))
    elif verb == "crowd":
        print(json.dumps(jobs.crowd(int(number))))
