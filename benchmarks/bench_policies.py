"""The limits, rates and unique keys of `make bench`, beside the means that other systems have."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from bench_delays import with_scheduler
from bench_environment import Environment, Failed, System, WorkerGroup, elapsed_seconds
from peers import work

# Systems with limits, one way to run each.
LIMITING_SYSTEMS = ("rqjobs", "Dramatiq 2x5", "Huey processes")
RATE_PER_SECOND = 200
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


def drain(
    environment: Environment, system: System, case: Case, workers: int, number: int, database: int
) -> Measured:
    """Drain the prepared backlog of a case.

    Raises:
        Failed: more jobs than the limit ran at once, or began within a second.
    """
    if system.module == "rq_jobs":
        system = with_scheduler(system)
    with WorkerGroup(environment, system, workers) as group:
        times = group.drain(number, database)
    measured = Measured(number / elapsed_seconds(times), at_once(times), in_a_second(times))
    if case.kind in ("limited", "crowded") and measured.at_once > LIMITS[system.name]:
        raise Failed(f"{system.name}: {measured.at_once} {case.kind} jobs of a key ran at once")
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
