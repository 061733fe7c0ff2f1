"""What the jobs of every system do, and how they are counted: alike for all, and outside of their bookkeeping.

A job leaves two times, of its begin and its end, in a file that all processes map into their memory. That costs less
than a microsecond and no system call (which would hand the interpreter's lock to another thread, and so cost systems
with threads more than others); a process reserves room for some hundred jobs at a time.

usage: work.py MODULE fill NUMBER KIND      have the module send so many jobs
       work.py MODULE latency NUMBER        send one job at a time; print how long each took to begin, in nanoseconds
       work.py MODULE enqueue NUMBER        what sending costs (rq_jobs only)
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
from array import array

BLOCK = mmap.ALLOCATIONGRANULARITY  # bytes that are reserved at a time
TIMES = struct.Struct("qq")  # nanoseconds of the monotonic clock, which is the same in all processes
EACH = BLOCK // TIMES.size
_blocks: dict[int, mmap.mmap] = {}
_numbers = itertools.count()
_lock = threading.Lock()


def noop() -> None:
    mark(time.monotonic_ns())


def mark(begun: int) -> None:
    """Note that a job ran from `begun` until now."""
    number = next(_numbers)
    block = _blocks.get(number // EACH) or _reserve(number // EACH)
    TIMES.pack_into(block, number % EACH * TIMES.size, begun, time.monotonic_ns())


def _reserve(index: int) -> mmap.mmap:
    with _lock:
        if index not in _blocks:
            file = os.open(os.environ["BENCH_MARKS"], os.O_RDWR | os.O_APPEND)
            os.write(file, bytes(BLOCK))
            _blocks[index] = mmap.mmap(file, BLOCK, offset=os.lseek(file, 0, os.SEEK_CUR) - BLOCK)
            os.close(file)
            _blocks.pop(index - 4, None)  # full long ago
        return _blocks[index]


def _forget() -> None:
    """A forked process must not write where its parent does."""
    global _numbers
    _numbers = itertools.count()
    _blocks.clear()


os.register_at_fork(after_in_child=_forget)


def marks(since: int = 0) -> list[tuple[int, int]]:
    """Begin and end of the jobs that have begun after `since`, in nanoseconds."""
    with open(os.environ["BENCH_MARKS"], "rb") as file:
        times = array("q", file.read())
    return [(begun, ended) for begun, ended in zip(times[::2], times[1::2], strict=True) if ended and begun >= since]


def latency(send, number: int) -> list[int]:
    """From just before a job is sent, by a process that does nothing else, to its first line."""
    delays = []
    for _ in range(number):
        time.sleep(random.uniform(0.01, 0.05))
        sent = time.monotonic_ns()
        send(1)
        while not (begun := marks(sent)):
            time.sleep(0.001)
        delays.append(begun[0][0] - sent)
    return delays


if __name__ == "__main__":
    name, verb, number, *kind = sys.argv[1:]
    jobs = importlib.import_module(name)
    if verb == "fill":
        jobs.send(int(number), *kind)
    elif verb == "latency":
        print(json.dumps(latency(jobs.send, int(number))))
    elif verb == "enqueue":
        print(json.dumps(jobs.costs(int(number))))
