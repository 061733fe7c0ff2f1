"""How long jobs waited and ran, and how they ended, by function and queue.

A horse counts in memory that it shares with its worker (`JobCounts`), which outlives it. The worker
adds the new counts to one hash in Redis once a second while jobs run (`CountsSender`). All readers
see the same numbers, because they read them from Redis. A killed horse loses no count; a killed
worker loses those of its last second, or of the last five if it was idle.
"""

from __future__ import annotations

import mmap
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import redis

from rqjobs.broker import keys
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import ADD_METRICS
from rqjobs.connection import is_transient

# Upper bounds of the buckets of both histograms, in seconds. There is one more, without a bound.
BUCKETS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0),
)
BOUNDS = (*(f"{bound:g}" for bound in BUCKETS), "+Inf")
MAX_SERIES = 300  # pairs of a function and a queue; the jobs of further ones count as `OTHER_NAME`
OTHER_NAME = "(other)"  # no function and no queue can have this name
NAME_MAX_BYTES = 320  # of a function and its queue


class Outcome(IntEnum):
    """How a run has ended. The number is its place among the counts."""

    FINISHED = 0
    FAILED = 1  # for good
    RETRIED = 2  # it failed, and the job runs again
    DISCARDED = 3
    STOPPED = 4
    SNOOZED = 5  # the job asked for a later run
    INTERRUPTED = 6  # between two rows of a loop; the job continues at its cursor


# The names of the counts of one series in Redis, in the order in which they stand in memory. Sums
# are in microseconds.
SERIES_COUNTS = (
    *(f"wait:{bound}" for bound in BOUNDS),
    *(f"run:{bound}" for bound in BOUNDS),
    "wait:sum",
    "run:sum",
    *(f"outcome:{outcome.name.lower()}" for outcome in Outcome),
)
RUN_AT = SERIES_COUNTS.index(f"run:{BOUNDS[0]}")
WAIT_SUM_AT = SERIES_COUNTS.index("wait:sum")
RUN_SUM_AT = SERIES_COUNTS.index("run:sum")
OUTCOMES_AT = SERIES_COUNTS.index("outcome:finished")
NOTHING = [0] * len(SERIES_COUNTS)
NAME_NUMBERS = NAME_MAX_BYTES // 8
SERIES_NUMBERS = NAME_NUMBERS + len(SERIES_COUNTS)


class JobCounts:
    """The counts of the jobs of one worker since its start, in memory shared with its children.

    One process at a time adds to them. `is_job` says whether a name is that of a job function; the
    jobs of all others count together.
    """

    def __init__(self, is_job: Callable[[str], bool]):
        self.is_job = is_job
        # The first series counts the jobs of all others.
        self.memory = mmap.mmap(-1, (MAX_SERIES + 1) * SERIES_NUMBERS * 8)
        self.numbers = memoryview(self.memory).cast("Q")
        self._places: dict[tuple[str, str], int] = {}  # where the counts of a series begin
        self._collected: dict[int, list[int]] = {}  # such a place -> the numbers to be added there
        self._write_name(0, f"{OTHER_NAME} {OTHER_NAME}".encode())

    def note(self, function: str, queue: str, outcome: int, wait: float, run: float) -> None:
        """Count a run that has ended. `wait`, `run`: seconds, from 0."""
        self.collect(function, queue, outcome, wait, run)
        self.write()

    def collect(self, function: str, queue: str, outcome: int, wait: float, run: float) -> None:
        """`note` for several runs: the next `write` counts them. To add in shared memory takes
        longer than the rest.
        """
        at = self._places.get((function, queue))
        if at is None:
            at = self._place(function, queue)
        numbers = self._collected.get(at)
        if numbers is None:
            numbers = self._collected[at] = NOTHING.copy()
        numbers[bisect_left(BUCKETS, wait)] += 1
        numbers[RUN_AT + bisect_left(BUCKETS, run)] += 1
        numbers[WAIT_SUM_AT] += int(wait * 1e6)
        numbers[RUN_SUM_AT] += int(run * 1e6)
        numbers[OUTCOMES_AT + outcome] += 1

    def write(self) -> None:
        """Count what was collected."""
        for at, numbers in self._collected.items():
            for place, number in enumerate(numbers, at):
                if number:
                    self.numbers[place] += number
        self._collected.clear()

    def note_outcome(self, function: str, queue: str, outcome: int) -> None:
        """Count the end of a run whose times are not known."""
        self.numbers[self._place(function, queue) + OUTCOMES_AT + outcome] += 1

    def _place(self, function: str, queue: str) -> int:
        """Where the counts of a series begin. It is found by its name, which another process may
        have written.
        """
        name = f"{function} {queue}".encode(errors="replace")
        number = 0
        if len(name) <= NAME_MAX_BYTES and b"\0" not in name and self.is_job(function):
            number = self._numbered(name)
        at = number * SERIES_NUMBERS + NAME_NUMBERS
        if len(self._places) <= MAX_SERIES:
            self._places[function, queue] = at
        return at

    def _numbered(self, name: bytes) -> int:
        """The number of the series of this name; 0 if there is no room for another."""
        for number in range(1, MAX_SERIES + 1):
            found = self._name(number)
            if not found:
                self._write_name(number, name)
            if found in (name, b""):
                return number
        return 0

    def _write_name(self, number: int, name: bytes) -> None:
        begin = number * SERIES_NUMBERS * 8
        self.memory[begin : begin + len(name)] = name

    def _name(self, number: int) -> bytes:
        begin = number * SERIES_NUMBERS * 8
        return self.memory[begin : begin + NAME_MAX_BYTES].rstrip(b"\0")

    def series(self) -> Iterator[tuple[str, list[int]]]:
        """The name of each series, its function and its queue, and its counts."""
        for number in range(MAX_SERIES + 1):
            name = self._name(number)
            if not name:
                return
            begin = number * SERIES_NUMBERS
            counts = self.numbers[begin + NAME_NUMBERS : begin + SERIES_NUMBERS]
            yield name.decode(), counts.tolist()


class CountsSender:
    """Adds the new counts of a worker to the metrics in Redis."""

    def __init__(self, counts: JobCounts):
        self.counts = counts
        self.process = os.urandom(9).hex()
        self._number = 0  # of the last sending
        self._sent: dict[str, list[int]] = {}
        self._words: list[Any] = []  # of a sending without a reply so far

    def send(self, connection: redis.Redis) -> None:
        """Send new counts, if there are any, in one round trip. A repetition is not counted twice.

        Raises:
            redis.RedisError: Redis does not answer; the next call sends it again.
        """
        words = self._words or self._new_words()
        if not words:
            return
        self._words = words
        try:
            ADD_METRICS.run(connection, [keys.METRICS, keys.last_sending(self.process)], words)
        except redis.ResponseError as error:  # a key of the wrong type, or no right to write it
            if is_transient(error):
                raise
        self._words = []

    def _new_words(self) -> list[Any]:
        words: list[Any] = []
        for name, counts in self.counts.series():
            before = self._sent.get(name, NOTHING)
            if counts == before:
                continue
            self._sent[name] = counts
            pairs = zip(SERIES_COUNTS, counts, before, strict=True)
            new = [word for count, now, old in pairs if now != old for word in (count, now - old)]
            words += [name, len(new), *new]
        if not words:
            return []
        self._number += 1
        return [self._number, MAX_SERIES, *words]


# Reading


@dataclass
class Histogram:
    """The counts of the buckets in the order of `BOUNDS`, and the sum of all values in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * len(BOUNDS))
    seconds: float = 0.0

    def cumulative(self) -> list[tuple[str, int]]:
        """Each upper bound, with the number of values up to it."""
        pairs, total = [], 0
        for bound, count in zip(BOUNDS, self.counts, strict=True):
            total += count
            pairs.append((bound, total))
        return pairs


@dataclass
class FunctionMetrics:
    """The metrics of the jobs of one function on one queue."""

    function: str
    queue: str
    wait: Histogram = field(default_factory=Histogram)
    run: Histogram = field(default_factory=Histogram)
    outcomes: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, number: int) -> None:
        """Take in one count, by its name in Redis. An unknown name is ignored."""
        kind, _, part = name.partition(":")
        if kind == "outcome" and re.fullmatch("[a-z]{1,20}", part):
            self.outcomes[part] = number
        elif kind in ("wait", "run"):
            histogram = self.wait if kind == "wait" else self.run
            if part == "sum":
                histogram.seconds = number / 1e6
            elif part in BOUNDS:
                histogram.counts[BOUNDS.index(part)] = number


def read_function_metrics(reply: Any) -> list[FunctionMetrics]:
    """The metrics in a reply to `HGETALL rqjobs:metrics`; none if the reply is an error."""
    found: dict[tuple[str, str], FunctionMetrics] = {}
    for name, number in numbers(reply).items():
        words = name.split(" ", 2)
        if len(words) != 3:
            continue
        count, function, queue = words
        one = found.get((function, queue))
        if one is None:
            one = found[function, queue] = FunctionMetrics(function, queue)
        one.add(count, number)
    return [found[key] for key in sorted(found)]


def numbers(reply: Any) -> dict[str, int]:
    """The fields of a hash in a reply that are whole numbers from 0; none if it is an error."""
    if not isinstance(reply, dict):
        return {}
    return {
        decode(name): int(number)
        for name, number in reply.items()
        if isinstance(number, bytes) and number.isdigit() and len(number) <= 18
    }
