"""Cron lines: five fields, read and explained when they are wrong, and when they are met on the clock on the wall.

Nothing here knows of time zones; `rules.py` brings the wall's time to Redis's.
"""

from __future__ import annotations

import calendar
import functools
import re
import zoneinfo
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from rqjobs.times import EPOCH, MAX_TIMESTAMP

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
EXAMPLE = "minute, hour, day of month, month, day of week, as in '0 6 * * mon-fri'"
LEAP_GAP = 9  # years; a 29 February may be eight years after the last one


class ScheduleError(ValueError):
    """A schedule or its rule cannot be. The message is one line that says what would be right."""


@dataclass(frozen=True)
class Field:
    """One of the five: its name, its bounds, and the names that its values have, the first for `low`."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        named = f" or {self.names[0]} to {self.names[-1]}" if self.names else ""
        return f"{self.low} to {self.high}{named}"


FIELDS = (
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of month", 1, 31),
    Field("month", 1, 12, MONTHS),
    Field("day of week", 0, 7, DAYS),
)


@dataclass(frozen=True)
class Line:
    """The values that each field allows, sorted; days of the week are 0 (Sunday) to 6."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    any_day: bool  # the day of month is `*`
    any_weekday: bool

    @property
    def hourly(self) -> bool:
        """Whether no hour of the day is left out."""
        return len(self.hours) == 24

    def on(self, day: datetime) -> bool:
        """Whether the line is met on this day. If both kinds of day are restricted, one of them is enough."""
        by_day, by_weekday = day.day in self.days, (day.weekday() + 1) % 7 in self.weekdays
        if self.any_day or self.any_weekday:
            return by_day and by_weekday
        return by_day or by_weekday

    def after(self, wall: datetime) -> datetime | None:
        """The first minute later than `wall` that meets the line; None when the calendar ends before."""
        try:
            first = (wall + timedelta(minutes=1)).replace(second=0, microsecond=0)
            day = first.replace(hour=0, minute=0)
            while day.year <= first.year + LEAP_GAP:
                if day.month not in self.months:
                    day = (day.replace(day=28) + timedelta(days=4)).replace(day=1)
                    continue
                if self.on(day) and (found := self._time(max(first, day))):
                    return found
                day += timedelta(days=1)
        except OverflowError:
            pass
        return None

    def _time(self, first: datetime) -> datetime | None:
        """The first time of the line on that day that is not before `first`."""
        for hour in self.hours[bisect_left(self.hours, first.hour) :]:
            at = bisect_left(self.minutes, first.minute) if hour == first.hour else 0
            if at < len(self.minutes):
                return first.replace(hour=hour, minute=self.minutes[at])
        return None


@functools.lru_cache(maxsize=1024)
def parse(text: str) -> Line:
    """Read a cron line.

    Raises:
        ScheduleError: it is none, with the field, the position (the first character is 1) and what would be right.
    """
    line = text.strip()
    if line.startswith("@"):
        if line.lower() not in ALIASES:
            raise ScheduleError(
                f"cron line {text!r}: there is no {line!r}; there are {', '.join(ALIASES)}"
            )
        line = text = ALIASES[line.lower()]
    parts = list(re.finditer(r"\S+", text))
    if len(parts) != 5:
        hint = "; for seconds there is every(seconds=…)" if len(parts) == 6 else ""
        raise ScheduleError(
            f"cron line {text!r} has {len(parts)} fields, and must have five: {EXAMPLE}{hint}"
        )
    values = [
        _values(field, part.group(), text, part.start())
        for field, part in zip(FIELDS, parts, strict=True)
    ]
    weekdays = tuple(sorted({day % 7 for day in values[4]}))
    stars = [part.group() in ("*", "*/1") for part in parts]
    found = Line(values[0], values[1], values[2], values[3], weekdays, stars[2], stars[4])
    longest = max(calendar.monthrange(2024, month)[1] for month in found.months)
    if found.any_weekday and found.days[0] > longest:
        raise ScheduleError(
            f"cron line {text!r} never comes: none of its months has a day {found.days[0]}; "
            f"use a day from 1 to {longest}"
        )
    return found


def _values(field: Field, text: str, line: str, at: int) -> tuple[int, ...]:
    found: set[int] = set()
    for part in text.split(","):
        found |= _part(field, part, line, at)
        at += len(part) + 1
    return tuple(sorted(found))


def _part(field: Field, part: str, line: str, at: int) -> set[int]:
    """The values of one member of a list: `*`, a value or a range, with `/step` or without."""
    span, slash, step = part.partition("/")
    where = at + len(span) + 1
    low, high, every = field.low, field.high - (field.name == "day of week"), 1
    if slash:
        if not re.fullmatch(r"[0-9]{1,4}", step) or not 1 <= int(step) <= high:
            raise _wrong(
                line, field, where, step, f"use a whole step from 1 to {high} after the '/'"
            )
        every = int(step)
    if span != "*":
        first, dash, last = span.partition("-")
        low = _value(field, first, line, at)
        high = _value(field, last, line, at + len(first) + 1) if dash else low
        if dash and field.names is DAYS and last.lower() == "sun":
            high = 7
        if slash and not dash:
            raise _wrong(
                line,
                field,
                at,
                part,
                f"a step needs a range before it: {first}-{field.high}/{step}",
            )
        if low > high:
            raise _wrong(
                line,
                field,
                at,
                span,
                f"the range runs backwards: {first}-{field.high},{field.low}-{last}",
            )
    return set(range(low, high + 1, every))


def _value(field: Field, word: str, line: str, at: int) -> int:
    if word.lower() in field.names:
        return field.names.index(word.lower()) + field.low
    if re.fullmatch(r"[0-9]{1,4}", word) and field.low <= int(word) <= field.high:
        return int(word)
    import difflib

    hint = f"use {field.allowed}"
    if re.search(r"[#?LW]", word) and not word.isdigit():
        hint += " ('L', 'W', '#' and '?' are not known here)"
    elif close := difflib.get_close_matches(word.lower()[:3], field.names, n=1):
        hint = f"did you mean {close[0]}? {hint[0].upper()}{hint[1:]}"
    raise _wrong(line, field, at, word, hint)


def _wrong(line: str, field: Field, at: int, word: str, hint: str) -> ScheduleError:
    number = FIELDS.index(field) + 1
    return ScheduleError(
        f"cron line {line!r}, character {at + 1} (field {number}, {field.name}): {word!r} is wrong; "
        f"{hint}"
    )


@functools.lru_cache(maxsize=256)
def time_zone(name: str) -> zoneinfo.ZoneInfo:
    """The time zone called `name`.

    Raises:
        ScheduleError: there is none.
    """
    try:
        return zoneinfo.ZoneInfo(name)
    except (OSError, ValueError, TypeError, zoneinfo.ZoneInfoNotFoundError):
        import difflib

        known = zoneinfo.available_timezones()
        close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "use a name like 'Europe/Berlin'"
        if not known:
            hint = "this machine has no time zone database; pip install tzdata"
        raise ScheduleError(f"there is no time zone {name!r}; {hint}") from None


@functools.lru_cache(maxsize=1024)
def _changes(tz: str, year: int) -> tuple[tuple[int, int, int], ...]:
    """When a zone's offset from UTC changes in a year (UTC): (Unix second, offset before, offset after), in seconds."""
    begin, end = (int((datetime(y, 1, 1) - EPOCH).total_seconds()) for y in (year, year + 1))
    found, low = [], begin
    while low < end:
        high = min(low + 6 * 3600, end)
        before, after = _offset(tz, low), _offset(tz, high)
        if before != after:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _offset(tz, middle) == before else (low, middle)
            found.append((high, before, after))
            low = high
        else:
            low = high
    return tuple(found)


def _offset(tz: str, moment: int) -> int:
    return int(datetime.fromtimestamp(moment, time_zone(tz)).utcoffset().total_seconds())  # type: ignore[union-attr]


def _changes_between(tz: str, low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """The changes later than `low`, up to `high`."""
    if tz != "UTC":
        for year in range(
            (EPOCH + timedelta(seconds=low)).year, (EPOCH + timedelta(seconds=high)).year + 1
        ):
            yield from (change for change in _changes(tz, year) if low < change[0] <= high)


def cron_after(line: Line, tz: str, moment: int) -> int | None:
    """The first tick of `line` later than `moment`: stretch by stretch of constant offset from UTC."""
    if moment >= MAX_TIMESTAMP:
        return None
    offset = 0 if tz == "UTC" else _offset(tz, moment)
    wall = moment + offset  # the line's times later than this on the wall are looked for
    if not line.hourly:
        for change, before, after in _changes_between(tz, moment - 86400, moment):
            if after < before:  # what came a first time does not come again
                wall = max(wall, change + before - 1)
    while True:
        found = line.after(EPOCH + timedelta(seconds=wall))
        if found is None:
            return None
        then = int((found - EPOCH).total_seconds())
        change, before, after = next(
            _changes_between(tz, moment, then - offset), (MAX_TIMESTAMP, 0, 0)
        )
        if change == MAX_TIMESTAMP:
            return then - offset
        if not line.hourly and then < change + after:
            return change  # the wall's clock skips it
        moment, offset = change, after
        wall = change + (before if before > after and not line.hourly else after) - 1
