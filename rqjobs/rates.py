"""Rates: how many jobs come in and go out, from the counts of the last hour and day."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from rqjobs.broker import counters, keys, scripts
from rqjobs.broker.counters import Counts, Kind

RATE_MINUTES = 5  # over which rates are measured, besides the current minute
HOUR_MINUTES = 60
DAY_SECONDS_BETWEEN_READS = 30
DAY_STEP_MINUTES = 15
GROWTH = 1.05  # more comes in than goes out by this factor, if a queue grows


@dataclass(frozen=True)
class Rate:
    """Jobs a minute that enter a queue, and runs a minute that end."""

    incoming: float = 0.0
    outgoing: float = 0.0

    @property
    def grows(self) -> bool:
        return self.incoming > GROWTH * self.outgoing

    def seconds_to_empty(self, depth: int) -> float | None:
        """How long a queue with `depth` waiting jobs takes to be empty; None if it never is."""
        if depth == 0:
            return 0.0
        if self.outgoing <= self.incoming:
            return None
        return depth / (self.outgoing - self.incoming) * 60


@dataclass(frozen=True)
class Series:
    """Numbers of events in equal steps of time, the oldest first. The last step is not over yet."""

    step: int  # seconds
    end: int  # the beginning of the last step, Unix seconds
    numbers: dict[Kind, list[int]]

    def of(self, *kinds: Kind) -> list[int]:
        """The sums of these kinds by step."""
        length = len(next(iter(self.numbers.values())))
        return [sum(self.numbers[kind][step] for kind in kinds) for step in range(length)]

    def total(self, *kinds: Kind) -> int:
        return sum(self.of(*kinds))


@dataclass
class Window:
    """The counts of the last hour and day.

    A process keeps one and reads into it again and again: a minute that is over is read once.
    """

    seconds: float = 0.0  # when it was read, Unix time by Redis's clock
    minutes: dict[int, Counts] = field(default_factory=dict)
    day: dict[int, dict[Kind, int]] = field(default_factory=dict)
    _asked: list[int] = field(default_factory=list)
    _day_read: float = 0.0
    _asks_day: bool = False

    def commands(self, seconds: float) -> list[tuple[Any, ...]]:
        """The commands that bring the window up to this Unix time. `take` takes their replies."""
        this = counters.minute_of(seconds)
        wanted = range(this - HOUR_MINUTES + 1, this + 1)
        self.minutes = {minute: self.minutes[minute] for minute in wanted if minute in self.minutes}
        self._asked = [minute for minute in wanted if minute not in self.minutes]
        self._asks_day = abs(seconds - self._day_read) > DAY_SECONDS_BETWEEN_READS
        self.seconds = seconds
        day = [("HGETALL", keys.COUNTS_DAY)] if self._asks_day else []
        return [*counters.minutes_commands(self._asked), *day]

    def take(self, replies: list[Any]) -> None:
        """Take the replies to `commands`. The current minute will be read again."""
        if self._asks_day:
            self.day = counters.read_day(replies[-1])
            self._day_read = self.seconds
        for minute, reply in zip(self._asked, replies, strict=False):
            self.minutes[minute] = counters.read_counts(reply)

    def forget_current(self) -> None:
        """Let the next read include the minute that was not over at the last one."""
        self.minutes.pop(counters.minute_of(self.seconds), None)

    def rate(self, queue: str) -> Rate:
        """The rate of a queue over the last five minutes and the current one."""
        this = counters.minute_of(self.seconds)
        flows = [self._flow(minute, queue) for minute in range(this - RATE_MINUTES, this + 1)]
        length = RATE_MINUTES + self.seconds / 60 - this
        return Rate(
            sum(flow.incoming for flow in flows) / length,
            sum(flow.outgoing for flow in flows) / length,
        )

    def grows(self, queue: str) -> bool:
        """Whether the queue grows: more comes in than goes out, and in most of these minutes.

        Many jobs that are enqueued at once do not make a queue grow.
        """
        this = counters.minute_of(self.seconds)
        flows = [self._flow(minute, queue) for minute in range(this - RATE_MINUTES, this)]
        growing = [flow for flow in flows if flow.grows]
        return len(growing) > RATE_MINUTES // 2 and self.rate(queue).grows

    def _flow(self, minute: int, queue: str) -> Rate:
        counted = self.minutes.get(minute, {}).get(queue, {})
        outgoing = sum(counted.get(kind, 0) for kind in counters.ENDS)
        return Rate(counted.get(Kind.ENQUEUED, 0), outgoing)

    def queues(self) -> set[str]:
        """The queues with a count in the last hour."""
        return {queue for counts in self.minutes.values() for queue in counts}

    def hour(self, queue: str | None = None) -> Series:
        """The last hour by minute, of a queue or (None) of all."""
        this = counters.minute_of(self.seconds)
        steps = [self._total(minute, queue) for minute in range(this - HOUR_MINUTES + 1, this + 1)]
        return _series(60, this * 60, steps)

    def last_day(self) -> Series:
        """The last day by quarter of an hour, of all queues."""
        this = counters.minute_of(self.seconds)
        begin = this // DAY_STEP_MINUTES * DAY_STEP_MINUTES
        first = begin + DAY_STEP_MINUTES - counters.DAY_MINUTES
        steps: list[Counter[Kind]] = []
        for start in range(first, begin + 1, DAY_STEP_MINUTES):
            step: Counter[Kind] = Counter()
            for minute in range(start, start + DAY_STEP_MINUTES):
                for kind, number in self._total(minute, None).items():
                    step[kind] += number
            steps.append(step)
        return _series(60 * DAY_STEP_MINUTES, begin * 60, steps)

    def _total(self, minute: int, queue: str | None) -> Mapping[Kind, int]:
        counts = self.minutes.get(minute)
        if counts is None:
            return self.day.get(minute, {})
        if queue is not None:
            return counts.get(queue, {})
        total: dict[Kind, int] = {}
        for kinds in counts.values():
            for kind, number in kinds.items():
                total[kind] = total.get(kind, 0) + number
        return total


def _series(step: int, end: int, steps: Sequence[Mapping[Kind, int]]) -> Series:
    return Series(step, end, {kind: [one.get(kind, 0) for one in steps] for kind in Kind})


def read(connection: redis.Redis, window: Window | None = None) -> Window:
    """The counts of the last hour and day, in two round trips; read into `window` if it is given."""
    window = window or Window()
    window.forget_current()
    commands = window.commands(scripts.redis_time(connection))
    window.take(scripts.read_together(connection, commands))
    return window


def rates(connection: redis.Redis, queues: Iterable[str]) -> dict[str, Rate]:
    """The rates of these queues over the last five minutes."""
    window = read(connection)
    return {queue: window.rate(queue) for queue in queues}
