"""Rules: when a repeating job is due. `every(…)` counts seconds, `cron(…)` reads the clock on a wall.

A tick is a whole Unix second. Ticks do not depend on who asks or when: everybody who knows the rule finds the same
ones.
"""

from __future__ import annotations

import inspect
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import Any, TypeVar

from rqjobs import catalog
from rqjobs.schedules import cron as schedules_cron
from rqjobs.schedules.cron import ScheduleError, _changes_between, cron_after, time_zone
from rqjobs.schedules.describe import sentence
from rqjobs.times import MAX_TIMESTAMP

F = TypeVar("F", bound=Callable[..., Any])
LONGEST = 2**40  # seconds between two ticks
MISSED = ("once", "all", "skip")
STORED_MAX_CHARACTERS = 100_000  # of a rule as JSON
STORED = ("seconds", "line", "tz", "missed", "overlap", "jitter", "start", "end", "times")


@dataclass(frozen=True)
class Rule:
    """When something is to be done, again and again. `every` and `cron` make one, and say what its parts mean."""

    seconds: int = 0
    line: str = ""
    tz: str = "UTC"
    missed: str = "once"
    overlap: bool = True
    jitter: float = 0
    start: datetime | None = None
    end: datetime | None = None
    times: int | None = None
    name: str | None = field(default=None, compare=False)  # these three are for the decorator
    args: tuple[Any, ...] = field(default=(), compare=False)
    kwargs: dict[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def kind(self) -> str:
        return "cron" if self.line else "every"

    @property
    def timing(self) -> tuple[Any, ...]:
        """What the ticks follow from."""
        return self.seconds, self.line, self.tz, self.start, self.end, self.times

    def __call__(self, function: F) -> F:
        """Declare that `function` is to be called by this rule, with the rule's `args` and `kwargs`.

        It stays the same plain function. Workers with the scheduler store what their jobs modules declare.

        Raises:
            TypeError: it is no plain function, or the arguments do not fit it.
        """
        if not inspect.isfunction(function):
            raise TypeError(
                f"a rule goes onto a plain function, as in @every(minutes=5), not onto {function!r}"
            )
        catalog.refuse_generator(function)
        try:
            inspect.signature(function).bind(*self.args, **(self.kwargs or {}))
        except TypeError as error:
            raise TypeError(
                f"{function.__qualname__}{inspect.signature(function)}: {error}; give the rule args=[…] "
                f"and kwargs={{…}}"
            ) from None
        declared = function.__dict__.setdefault("__rqjobs_rules__", [])
        declared.insert(0, self)  # decorators are applied from below
        return function

    def add(self, name: str, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Store a schedule that calls `function(*args, **kwargs)` by this rule, or change the one of that name to it;
        `schedules.add` says more.

        Takes RQ's keyword options too (`job_timeout`, `retry`, …), as `rqjobs.enqueue` does.
        """
        from rqjobs import schedules  # it stands below this file, and has the storing

        return schedules.add_call(name, self, function, args, kwargs)

    # Ticks

    def after(self, moment: float) -> int | None:
        """The first tick later than `moment` (Unix seconds); None if there is none."""
        if self.start is not None:
            moment = max(moment, self.start.timestamp() - 1e-6)
        tick = (
            cron_after(schedules_cron.parse(self.line), self.tz, int(moment // 1))
            if self.line
            else self._step(moment)
        )
        if tick is None or tick > (self.end.timestamp() if self.end else MAX_TIMESTAMP):
            return None
        return tick

    def _step(self, moment: float) -> int:
        anchor = math.ceil(self.start.timestamp()) if self.start else 0
        return anchor + (int((moment - anchor) // self.seconds) + 1) * self.seconds

    def between(self, first: int, last: float) -> Iterator[int]:
        """The ticks from `first` to `last`, both included if they are ticks."""
        tick = self.after(first - 1)
        while tick is not None and tick <= last:
            yield tick
            tick = self.after(tick)

    def latest(self, first: int, last: float, most: int) -> list[int]:
        """The latest ticks from `first` to `last`, at most so many, in order; found without walking through all."""
        span = 60.0
        while True:
            found = list(islice(self.between(max(first, int(last - span)), last), 4 * most + 1000))
            if len(found) >= most or last - span <= first:
                return found[-most:]
            span *= 2

    def count(self, first: int, last: int) -> int:
        """How many ticks there are from one tick to another, both included; found without walking through all."""
        if not self.line:
            return (last - first) // self.seconds + 1
        line, found = schedules_cron.parse(self.line), 0
        times = [3600 * hour + 60 * minute for hour in line.hours for minute in line.minutes]
        while first <= last:
            wall = self.shown(first)
            begin = wall.hour * 3600 + wall.minute * 60 + wall.second
            stop = min(last, first + 86_399 - begin)
            if any(_changes_between(self.tz, first - 86_400, stop + 86_400)):
                found += sum(1 for _ in self.between(first, stop))
            elif line.on(wall):
                found += bisect_right(times, begin + stop - first) - bisect_left(times, begin)
            first = stop + 1
        return found

    def upcoming(self, count: int = 5, after: datetime | None = None) -> list[datetime]:
        """The next ticks after `after` (None: now), in the rule's zone."""
        moment = (after or datetime.now(timezone.utc)).timestamp()
        ticks = islice(
            self.between(int(moment) + 1, MAX_TIMESTAMP),
            count if self.times is None else min(count, self.times),
        )
        return [self.shown(tick) for tick in ticks]

    def shown(self, tick: float) -> datetime:
        return datetime.fromtimestamp(tick, time_zone(self.tz))

    # For people, and for Redis

    @property
    def sentence(self) -> str:
        """The rule as one would say it."""
        return sentence(self)

    def dump(self) -> str:
        """The rule as JSON, the same for equal rules."""
        defaults = Rule(seconds=1)
        parts = {
            name: getattr(self, name)
            for name in STORED
            if getattr(self, name) != getattr(defaults, name)
        }
        return json.dumps(
            {
                name: value.isoformat() if isinstance(value, datetime) else value
                for name, value in parts.items()
            }
            | ({} if self.line else {"seconds": self.seconds})
        )

    @classmethod
    def load(cls, text: str | bytes) -> Rule:
        """What `dump` wrote.

        Raises:
            ScheduleError: somebody else wrote that.
        """
        try:
            if len(text) > STORED_MAX_CHARACTERS:  # read, JSON may take thirty times as much memory
                raise ValueError(f"it is longer than {STORED_MAX_CHARACTERS:,} characters")
            parts = json.loads(text)
            for name in ("start", "end"):
                if name in parts:
                    parts[name] = datetime.fromisoformat(parts[name])
            parts.setdefault("seconds", 0)
            if not parts.keys() <= set(STORED):
                raise ValueError(f"unknown parts {sorted(parts.keys() - set(STORED))}")
            return cls(**parts)
        except (TypeError, ValueError, AttributeError) as error:
            raise ScheduleError(f"a rule in Redis cannot be read: {error}") from None


def every(
    *bare: Any,
    seconds: float = 0,
    minutes: float = 0,
    hours: float = 0,
    days: float = 0,
    weeks: float = 0,
    **terms: Any,
) -> Rule:
    """A rule whose ticks are so far apart, in real time: multiples of that since 1970 in UTC, or since `start`.

    So every(hours=1) is due at each full hour, and every(days=1) at midnight UTC. As `@every(minutes=5)` it declares
    that the function is called so; `every(minutes=5).add("name", function, …)` stores that at run time.

    Args:
        missed: what to do with ticks that nobody was there for: "once" makes one job for all of them, "all" one for
            each (the last 1,000), "skip" none for those that are more than ten seconds late.
        overlap: False skips a tick while a job of this schedule has not ended.
        jitter: seconds by which a job may come later than its tick, different for each tick.
        start, end: datetimes; no tick before, none after. Without a time zone they are in this machine's.
        times: so many ticks that made a job, and the schedule has ended.
        name: of the declared schedule; for the decorator only. Else it is made from the function's.
        args, kwargs: what the declared function is called with; for the decorator only.

    Raises:
        ScheduleError: no such rule can be.
    """
    _known("every", terms)
    given = {"seconds": seconds, "minutes": minutes, "hours": hours, "days": days, "weeks": weeks}
    if bare:
        raise ScheduleError(
            f"every(…) takes its times with their units, and not {bare[0]!r}; for example "
            f"every(minutes=5)"
        )
    said = ", ".join(f"{unit}={number!r}" for unit, number in given.items() if number != 0)
    try:
        total = timedelta(**given).total_seconds()
    except (
        TypeError,
        ValueError,
        OverflowError,
    ):  # no numbers; not a number; more than there is time
        total = 0
    if not 1 <= total < LONGEST or total != int(total):
        raise ScheduleError(
            f"every(…) takes a whole number of seconds, at least one and less than 2**40, and not "
            f"{said or 0}; for example every(minutes=5)"
        )
    return _with_terms(terms, seconds=int(total))


def cron(line: str, *, tz: str = "UTC", **terms: Any) -> Rule:
    """A rule in cron's five fields (or @daily and the like), on the wall clocks of `tz`.

    Args:
        line: minute, hour, day of month, month, day of week, with lists, ranges, steps and names; if both kinds of day
            are restricted, either is enough.
        tz: a name of the IANA database, like "Europe/Berlin". `walls.py` says what happens when its clocks change.
        terms: as for `every`.

    Raises:
        ScheduleError: no such rule can be; for the line it says where and what would be right.
    """
    _known("cron", terms)
    if not isinstance(line, str) or not line.strip():
        raise ScheduleError(
            f"cron(…) takes a line of five fields: {schedules_cron.EXAMPLE}; not {line!r}"
        )
    return _with_terms(terms, line=" ".join(line.split()), tz=tz)


def declared(function: Callable[..., Any]) -> list[Rule]:
    """The rules that decorators put onto `function`, from top to bottom."""
    return list(getattr(function, "__rqjobs_rules__", []))


def _known(what: str, terms: dict[str, Any]) -> None:
    known = {one.name for one in fields(Rule)} - {"seconds", "line", "tz"}
    times = "seconds, minutes, hours, days, weeks" if what == "every" else "a line and tz"
    for name in terms.keys() - known:
        raise ScheduleError(
            f"{what}(…) has no {name!r}; it takes {times}, and {', '.join(sorted(known))}"
        )


def _with_terms(terms: dict[str, Any], **parts: Any) -> Rule:
    terms = dict(terms)
    if "args" in terms:
        terms["args"] = tuple(terms["args"] or ())
    for name in ("start", "end"):
        if isinstance(terms.get(name), datetime):
            try:
                terms[name] = terms[name].astimezone(timezone.utc)
            except (OverflowError, ValueError):
                raise ScheduleError(
                    f"{name}={terms[name]!r} is wrong; use a time of this age"
                ) from None
    return Rule(**parts, **terms)


def _check(rule: Rule) -> None:
    def must(right: bool, what: str, value: Any, hint: str) -> None:
        if not right:
            raise ScheduleError(f"{what}={value!r} is wrong; {hint}")

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 < value < LONGEST

    if rule.line:
        schedules_cron.parse(rule.line)
    else:
        must(whole(rule.seconds), "seconds", rule.seconds, "use a whole number, at least 1")
    time_zone(rule.tz)
    longest = 86400 if rule.line else rule.seconds
    number = isinstance(rule.jitter, int | float) and not isinstance(rule.jitter, bool)
    must(rule.missed in MISSED, "missed", rule.missed, f"use one of {', '.join(map(repr, MISSED))}")
    must(isinstance(rule.overlap, bool), "overlap", rule.overlap, "use True or False")
    must(
        number and 0 <= rule.jitter < longest,
        "jitter",
        rule.jitter,
        f"use seconds, from 0 to less than {longest}",
    )
    must(
        rule.times is None or whole(rule.times),
        "times",
        rule.times,
        "use a whole number, at least 1, or None",
    )
    for what, value in (("start", rule.start), ("end", rule.end)):
        must(value is None or isinstance(value, datetime), what, value, "use a datetime, or None")
    if rule.start and rule.end:
        must(
            rule.end >= rule.start,
            "end",
            str(rule.end),
            f"it must not be before start, {rule.start}",
        )
