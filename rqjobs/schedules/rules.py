"""Rules: the times at which a repeating job is due.

`every(…)` counts seconds, `cron(…)` follows the local time of a zone. A tick is a whole Unix
second. The ticks follow from the rule alone, so all processes compute the same ticks.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta, timezone
from itertools import islice, takewhile
from typing import Any, TypeVar

from rqjobs import catalog
from rqjobs.schedules.cron import EXAMPLE, ScheduleError, parse_expression, time_zone
from rqjobs.times import MAX_TIMESTAMP

F = TypeVar("F", bound=Callable[..., Any])
TICK_DISTANCE_MAX_SECONDS = 2**40
CRON_JITTER_MAX_SECONDS = 86_400
RULE_JSON_MAX_CHARACTERS = 100_000
RULE_JSON_FIELDS = (
    "seconds",
    "expression",
    "tz",
    "missed",
    "overlap",
    "jitter",
    "start",
    "end",
    "times",
)
MISSED_POLICIES = ("once", "all", "skip")
MISSED_MAX_TICKS = 1000  # that a schedule counts when it catches up; more are shown as "1,000+"


@dataclass(frozen=True)
class Rule:
    """When a schedule is due. `every` and `cron` make rules, and document the fields."""

    seconds: int = 0
    expression: str = ""
    tz: str = "UTC"
    missed: str = "once"
    overlap: bool = True
    jitter: float = 0
    start: datetime | None = None
    end: datetime | None = None
    times: int | None = None
    name: str | None = field(default=None, compare=False)  # for the decorator
    args: tuple[Any, ...] = field(default=(), compare=False)
    kwargs: dict[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def kind(self) -> str:
        return "cron" if self.expression else "every"

    @property
    def ticks_key(self) -> tuple[Any, ...]:
        """Everything that the ticks follow from: rules with equal keys have equal ticks."""
        return self.seconds, self.expression, self.tz, self.start, self.end, self.times

    def __call__(self, function: F) -> F:
        """Declare that this rule calls `function`, with the rule's `args` and `kwargs`.

        Returns the same plain function. Workers with the scheduler store the schedules that their
        jobs modules declare.

        Raises:
            TypeError: `function` is not a plain function, or the arguments do not fit it.
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
                f"{function.__qualname__}{inspect.signature(function)}: {error}; give the rule "
                f"args=[…] and kwargs={{…}}"
            ) from None
        declared = function.__dict__.setdefault("__rqjobs_rules__", [])
        declared.insert(0, self)  # Python applies the lowest decorator first
        return function

    def after(self, moment: float) -> int | None:
        """The first tick later than `moment` (Unix seconds); None if there is none."""
        return next(self.ticks(math.floor(moment) + 1), None)

    def ticks(self, first: float, last: float = MAX_TIMESTAMP) -> Iterator[int]:
        """The ticks from `first` to `last` (Unix seconds, both included), in order."""
        first, last = self._bounds(first, last)
        if first > last:
            return iter(())
        if not self.expression:
            return iter(self._multiples(first, last))
        ticks = parse_expression(self.expression).ticks_after(first - 1, time_zone(self.tz))
        return takewhile(lambda tick: tick <= last, ticks)

    def last_ticks(self, first: float, last: float, count: int) -> list[int]:
        """The last `count` ticks, or fewer, from `first` to `last` (both included), in order.

        A cron rule walks at most `count` ticks, backwards from `last`. An `every` rule walks none.
        """
        first, last = self._bounds(first, last)
        if first > last:
            return []
        if not self.expression:
            return list(self._multiples(first, last)[-count:])
        ticks = parse_expression(self.expression).ticks_before(last + 1, time_zone(self.tz))
        return list(islice(takewhile(lambda tick: tick >= first, ticks), count))[::-1]

    def _bounds(self, first: float, last: float) -> tuple[int, int]:
        """The whole seconds from `first` to `last` that are within start and end."""
        low, high = math.ceil(first), math.floor(min(last, MAX_TIMESTAMP))
        if self.start is not None:
            low = max(low, math.ceil(self.start.timestamp()))
        if self.end is not None:
            high = min(high, math.floor(self.end.timestamp()))
        return low, high

    def _multiples(self, first: int, last: int) -> range:
        """The ticks of an `every` rule."""
        anchor = math.ceil(self.start.timestamp()) if self.start else 0
        return range(first + (anchor - first) % self.seconds, last + 1, self.seconds)

    def upcoming(self, count: int = 5, after: datetime | None = None) -> list[datetime]:
        """The next ticks after `after` (None: now), in the rule's zone.

        At most `count`, and at most `times`.
        """
        moment = (after or datetime.now(timezone.utc)).timestamp()
        if self.times is not None:
            count = min(count, self.times)
        ticks = islice(self.ticks(math.floor(moment) + 1), count)
        return [self.localize(tick) for tick in ticks]

    def localize(self, tick: float) -> datetime:
        """A tick as a datetime in the rule's zone."""
        return datetime.fromtimestamp(tick, time_zone(self.tz))

    def to_json(self) -> str:
        """The rule as JSON; equal rules have equal JSON."""
        defaults = Rule(seconds=1)
        parts = {}
        for name in RULE_JSON_FIELDS:
            value = getattr(self, name)
            if value != getattr(defaults, name) or (name == "seconds" and not self.expression):
                parts[name] = value.isoformat() if isinstance(value, datetime) else value
        return json.dumps(parts)

    @classmethod
    def from_json(cls, text: str | bytes) -> Rule:
        """The rule that `to_json` wrote.

        Raises:
            ScheduleError: the text is not such a rule.
        """
        try:
            if len(text) > RULE_JSON_MAX_CHARACTERS:  # parsed, JSON may take 30 times the memory
                raise ValueError(f"it is longer than {RULE_JSON_MAX_CHARACTERS:,} characters")
            parts = json.loads(text)
            for name in ("start", "end"):
                if name in parts:
                    parts[name] = datetime.fromisoformat(parts[name])
            parts.setdefault("seconds", 0)
            unknown = parts.keys() - set(RULE_JSON_FIELDS)
            if unknown:
                raise ValueError(f"unknown parts {sorted(unknown)}")
            return cls(**parts)
        except (TypeError, ValueError, AttributeError) as error:
            raise ScheduleError(f"a rule in Redis cannot be read: {error}") from None


def every(
    *positional: Any,
    seconds: float = 0,
    minutes: float = 0,
    hours: float = 0,
    days: float = 0,
    weeks: float = 0,
    **options: Any,
) -> Rule:
    """A rule that is due at a fixed distance in real time.

    Its ticks are the multiples of the distance since 1970 in UTC, or since `start`. So
    every(hours=1) is due at each full hour, and every(days=1) at midnight UTC. The decorator
    `@every(minutes=5)` declares a schedule for a function. `schedules.add` stores one at run time.

    Args:
        missed: the policy for ticks that were due while no scheduler ran. "once" makes one job for
            all of them, "all" one job for each of the last 1,000, "skip" none for those more than
            10 seconds late.
        overlap: False skips a tick while a job of this schedule has not ended.
        jitter: delay each job by 0 to `jitter` seconds; the delay follows from the schedule's name
            and the tick.
        start, end: datetimes; no tick before `start`, none after `end`. A datetime without a time
            zone is in this machine's.
        times: end the schedule after this many runs.
        name: the name of the declared schedule (decorator only). The default is made from the
            function's name.
        args, kwargs: the arguments for the declared function (decorator only).

    Raises:
        ScheduleError: the rule is wrong.
    """
    _check_option_names("every", options)
    units = {"seconds": seconds, "minutes": minutes, "hours": hours, "days": days, "weeks": weeks}
    if positional:
        raise ScheduleError(
            f"every(…) takes its times with their units, and not {positional[0]!r}; for example "
            f"every(minutes=5)"
        )
    try:
        total = timedelta(**units).total_seconds()
    except (TypeError, ValueError, OverflowError):  # no number, NaN, or too long
        total = 0
    if not 1 <= total < TICK_DISTANCE_MAX_SECONDS or total != int(total):
        given = ", ".join(f"{unit}={number!r}" for unit, number in units.items() if number != 0)
        raise ScheduleError(
            f"every(…) takes a whole number of seconds, at least one and less than 2**40, and not "
            f"{given or 0}; for example every(minutes=5)"
        )
    return _make_rule(options, seconds=int(total))


def cron(expression: str, *, tz: str = "UTC", **options: Any) -> Rule:
    """A rule by a cron expression (five fields, or @daily and the like), in the local time of `tz`.

    Args:
        expression: minute, hour, day of month, month, day of week, with lists, ranges, steps and
            names; also L and LW (the last day and the last weekday of the month), 5L (the last
            Friday) and 5#2 (the second Friday). Two day fields without a leading `*` match if
            either does.
        tz: an IANA name, like "Europe/Berlin". Daylight saving follows Debian's cron.
        options: as for `every`.

    Raises:
        ScheduleError: the rule is wrong. For the expression, the message names the field.
    """
    _check_option_names("cron", options)
    if not isinstance(expression, str) or not expression.strip():
        raise ScheduleError(
            f"cron(…) takes an expression of five fields: {EXAMPLE}; not {expression!r}"
        )
    return _make_rule(options, expression=" ".join(expression.split()), tz=tz)


def declared(function: Callable[..., Any]) -> list[Rule]:
    """The rules that decorators put onto `function`, from top to bottom."""
    return list(getattr(function, "__rqjobs_rules__", []))


def _check_option_names(maker: str, options: dict[str, Any]) -> None:
    known = {part.name for part in fields(Rule)} - {"seconds", "expression", "tz"}
    times = "an expression and tz"
    if maker == "every":
        times = "seconds, minutes, hours, days, weeks"
    for name in options.keys() - known:
        raise ScheduleError(
            f"{maker}(…) has no {name!r}; it takes {times}, and {', '.join(sorted(known))}"
        )


def _make_rule(options: dict[str, Any], **parts: Any) -> Rule:
    options = dict(options)
    if "args" in options:
        options["args"] = tuple(options["args"] or ())
    for name in ("start", "end"):
        if isinstance(options.get(name), datetime):
            try:
                options[name] = options[name].astimezone(timezone.utc)
            except (OverflowError, ValueError):
                raise ScheduleError(
                    f"{name}={options[name]!r} is wrong; use a time of this age"
                ) from None
    return Rule(**parts, **options)


def _check(rule: Rule) -> None:
    def must(right: bool, name: str, hint: str) -> None:
        if not right:
            raise ScheduleError(f"{name}={getattr(rule, name)!r} is wrong; {hint}")

    jitter_limit = rule.seconds
    if rule.expression:
        jitter_limit = CRON_JITTER_MAX_SECONDS
        parse_expression(rule.expression)
    else:
        must(_is_count(rule.seconds), "seconds", "use a whole number, at least 1")
    time_zone(rule.tz)
    policies = ", ".join(map(repr, MISSED_POLICIES))
    must(rule.missed in MISSED_POLICIES, "missed", f"use one of {policies}")
    must(isinstance(rule.overlap, bool), "overlap", "use True or False")
    is_number = isinstance(rule.jitter, int | float) and not isinstance(rule.jitter, bool)
    hint = f"use seconds, from 0 to less than {jitter_limit}"
    must(is_number and 0 <= rule.jitter < jitter_limit, "jitter", hint)
    hint = "use a whole number, at least 1, or None"
    must(rule.times is None or _is_count(rule.times), "times", hint)
    for name in ("start", "end"):
        moment = getattr(rule, name)
        must(moment is None or isinstance(moment, datetime), name, "use a datetime, or None")
    if rule.start and rule.end and rule.end < rule.start:
        raise ScheduleError(
            f"end={str(rule.end)!r} is wrong; it must not be before start, {rule.start}"
        )


def _is_count(value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and 0 < value < TICK_DISTANCE_MAX_SECONDS
