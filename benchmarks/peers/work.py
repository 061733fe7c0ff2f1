"""The work of a job, the same for every system, and the count of the jobs that have run.

A job writes its start and its end into a file that all processes map into memory. This takes a
microsecond or two and no system call. A system call could pass the interpreter lock to another
thread, which would slow down systems with threads more than others. Each thread reserves room for
some hundred jobs in advance.

usage: work.py MODULE fill NUMBER [KIND]    enqueue this number of jobs
       work.py MODULE latency NUMBER        enqueue one job at a time; print each job's delay in ns
       work.py MODULE enqueue NUMBER        print the cost of enqueueing (rq_jobs only)
       work.py MODULE duplicates NUMBER     print the microseconds of each plain enqueue, and of each
                                            unique one of which half are duplicates (rq_jobs only)
       work.py MODULE crowd NUMBER          enqueue jobs that are due together; print the Unix time
                                            at which they are due (rq_jobs only)
       work.py MODULE later NUMBER          enqueue delayed jobs, one due every 10 ms; print their
                                            due times in ns of the monotonic clock
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

BLOCK_BYTES = mmap.ALLOCATIONGRANULARITY  # how much a thread reserves at a time
# Start and end of a job, in nanoseconds of the monotonic clock, which all processes share.
MARK = struct.Struct("qq")
MARKS_PER_BLOCK = BLOCK_BYTES // MARK.size
KEYS = 8  # of the limits
LATENCY_TIMEOUT_NANOSECONDS = 60e9
DELAY_NANOSECONDS = 3_000_000_000  # from the call until the first delayed job is due
INTERVAL_NANOSECONDS = 10_000_000  # between the due times of delayed jobs


class ThreadBlock(threading.local):
    """A thread's own block, and the number of marks that still fit into it."""

    block: mmap.mmap
    free_marks = 0


own = ThreadBlock()
# A forked child must not write into its parent's block.
os.register_at_fork(after_in_child=lambda: setattr(own, "free_marks", 0))


def noop() -> None:
    mark(time.monotonic_ns())


def mark(begun: int) -> None:
    """Record that a job ran from `begun` until now."""
    if not own.free_marks:
        file = os.open(os.environ["BENCH_MARKS"], os.O_RDWR | os.O_APPEND)
        os.write(file, bytes(BLOCK_BYTES))  # O_APPEND: no other thread gets the same block
        offset = os.lseek(file, 0, os.SEEK_CUR) - BLOCK_BYTES
        own.block = mmap.mmap(file, BLOCK_BYTES, offset=offset)
        own.free_marks = MARKS_PER_BLOCK
        os.close(file)
    position = BLOCK_BYTES - own.free_marks * MARK.size
    MARK.pack_into(own.block, position, begun, time.monotonic_ns())
    own.free_marks -= 1


def run_of_key(key: int, seconds: float = 0.0) -> None:
    """The work of a job with a limit. Its key is in the last digits of its start."""
    begun = time.monotonic_ns()
    if seconds:
        time.sleep(seconds)
    mark(begun - begun % KEYS + key)


def _blocks() -> Iterator[tuple[int, bytes]]:
    """The number of marks in each block, and the block. The last mark of a full one is not 0."""
    with open(os.environ["BENCH_MARKS"], "rb") as file:
        while block := file.read(BLOCK_BYTES):
            if any(block[-8:]):
                yield MARKS_PER_BLOCK, block
            else:
                yield sum(1 for _ in _marks_of(block)), block


def _marks_of(block: bytes) -> Iterator[tuple[int, int]]:
    return itertools.takewhile(lambda times: times[1], MARK.iter_unpack(block))


def count() -> int:
    """The number of jobs that have ended so far."""
    return sum(number for number, _ in _blocks())


def marks(since: int = 0) -> list[tuple[int, int]]:
    """Start and end of each job that began at `since` or later, in nanoseconds, sorted."""
    return sorted(
        times for _, block in _blocks() for times in _marks_of(block) if times[0] >= since
    )


def latency(send: Callable[[int], Any], number: int) -> list[int]:
    """Nanoseconds from just before a job is enqueued to its first line, one job at a time.

    Raises:
        TimeoutError: a job did not start within a minute.
    """
    delays = []
    for _ in range(number):
        time.sleep(random.uniform(0.01, 0.05))
        ended = count()
        sent = time.monotonic_ns()
        send(1)
        while count() == ended:
            if time.monotonic_ns() - sent > LATENCY_TIMEOUT_NANOSECONDS:
                raise TimeoutError("a job did not start within a minute")
            time.sleep(0.005)
        delays.append(marks(sent)[0][0] - sent)
    return delays


def later(send: Callable[[float], Any], number: int) -> list[int]:
    """Enqueue delayed jobs; returns their due times in nanoseconds of the monotonic clock."""
    first = time.monotonic_ns() + DELAY_NANOSECONDS
    due_times = [first + index * INTERVAL_NANOSECONDS for index in range(number)]
    for due in due_times:
        send((due - time.monotonic_ns()) / 1e9)
    return due_times


def main(module: str, command: str, number: str, *kind: str) -> None:
    jobs = importlib.import_module(module)
    if command == "fill":
        jobs.send(int(number), *kind)
    elif command == "latency":
        print(json.dumps(latency(jobs.send, int(number))))
    elif command == "enqueue":
        print(json.dumps(jobs.costs(int(number))))
    elif command == "duplicates":
        print(json.dumps(jobs.duplicates(int(number))))
    elif command == "later":
        print(json.dumps(later(jobs.later, int(number))))
    elif command == "crowd":
        print(json.dumps(jobs.crowd(int(number))))


if __name__ == "__main__":
    main(*sys.argv[1:])
