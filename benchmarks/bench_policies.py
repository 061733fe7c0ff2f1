"""The limits, rates and unique keys of `make bench`, beside the means that other systems have."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

from bench_environment import Failed, System, WorkerGroup, elapsed_seconds
from peers import work

# Systems with limits, one way to run each.
LIMITING_SYSTEMS = ("rqjobs", "Dramatiq 2x5", "Huey processes")
RATE_MAX_STARTS = 230  # within a second: the rate of 200, the burst of 10, and 0.1 s
LIMITS = {"rqjobs": 4, "Dramatiq 2x5": 4, "Huey processes": 1}


@dataclass
class Case:
    """One kind of job, with the numbers of jobs in a full and in a quick run.

    `slow_jobs`: of systems whose jobs try again and again until they are below their limit.
    """

    kind: str
    jobs: int
    slow_jobs: int
    quick_jobs: int
    systems: tuple[str, ...] = LIMITING_SYSTEMS

    def jobs_of(self, system: System) -> int:
        return self.jobs if system.name == "rqjobs" else self.slow_jobs


CASES = (
    Case("noop", 20_000, 20_000, 500),
    Case("limited", 20_000, 20_000, 500),
    Case("crowded", 2_000, 500, 100),
    Case("rated", 2_000, 2_000, 200, LIMITING_SYSTEMS[:2]),
)


@dataclass
class Measured:
    """Jobs per second; the most jobs of a key at once, and the most starts within a second."""

    rate: float
    at_once: int
    in_a_second: int


@dataclass
class Entry:
    """The backlog of a system and a case in a database of its own, and what was measured."""

    system: System
    case: Case
    jobs: int
    database: int = 0
    measured: list[Measured] = field(default_factory=list)


def drain(group: WorkerGroup, entry: Entry) -> Measured:
    """Drain the backlog of an entry.

    Raises:
        Failed: more jobs of a key ran at once than its limit, or more began within a second.
    """
    times = group.drain(entry.jobs, entry.database)
    measured = Measured(entry.jobs / elapsed_seconds(times), at_once(times), in_a_second(times))
    name, kind = entry.system.name, entry.case.kind
    if kind in ("limited", "crowded") and measured.at_once > LIMITS[name]:
        raise Failed(f"{name}: {measured.at_once} {kind} jobs of a key ran at once")
    # Jobs that are claimed within a second may begin within less.
    if name == "rqjobs" and kind == "rated" and measured.in_a_second > RATE_MAX_STARTS:
        raise Failed(f"{name}: {measured.in_a_second} {kind} jobs began within a second")
    return measured


def at_once(times: list[tuple[int, int]]) -> int:
    """The most jobs of one key that ran at once. The key is in the last digits of the start."""
    most = 0
    for key in range(work.KEYS):
        ends: list[int] = []
        for begun, ended in times:
            if begun % work.KEYS == key:
                ends = [end for end in ends if end > begun]
                ends.append(ended)
                most = max(most, len(ends))
    return most


def in_a_second(times: list[tuple[int, int]]) -> int:
    """The most jobs that began within any second."""
    starts = [begun for begun, _ in times]
    return max(
        bisect.bisect_left(starts, begun + 10**9) - first for first, begun in enumerate(starts)
    )
