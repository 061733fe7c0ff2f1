"""Cron expressions: this module checks them, cronsim evaluates and explains them.

Daylight saving follows Debian's cron:
    An expression whose minute or hour begins with `*` follows elapsed time. It runs in both passes
    of a repeated hour, and does not run for a skipped hour.
    Every other expression has fixed times of the day. A skipped time runs at the change of the
    clock. A repeated time runs in the first pass.

cronsim gets local times without a zone. With a zone it steps by whole hours, and misses ticks after
a change by half an hour.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError

EXPRESSION_MAX_CHARACTERS = 1000  # all values of all fields, written one by one, need half of that
EXAMPLE = "minute, hour, day of month, month, day of week, as in '0 6 * * mon-fri'"
ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
ORDINAL_ENDINGS = {"1": "st", "2": "nd", "3": "rd"}


class ScheduleError(ValueError):
    """A schedule or its rule is wrong. The message is one line that says the remedy."""


@dataclass(frozen=True)
class Field:
    """One of the five fields. `names` are those of its values, from `low` on."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    special: str = ""  # a regular expression
    special_help: str = ""

    @property
    def allowed(self) -> str:
        """The values of the field in words."""
        named = f" or {self.names[0]} to {self.names[-1]}" if self.names else ""
        return f"{self.low} to {self.high}{named}{self.special_help}"


CRON_FIELDS = (
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of month", 1, 31, (), "LW?", ", L (the last day) or LW (the last weekday)"),
    Field("month", 1, 12, MONTHS),
    Field(
        "day of week",
        0,
        7,
        WEEKDAYS,
        "[0-7](L|#[1-5])",
        ", 5L (the last Friday) or 5#2 (the second Friday)",
    ),
)


@dataclass(frozen=True)
class CronExpression:
    """A cron expression that `parse_expression` has checked."""

    text: str  # five fields, with numbers in the place of names

    @property
    def has_fixed_times(self) -> bool:
        """Whether neither the minute nor the hour begins with `*`."""
        minute, hour, *_ = self.text.split()
        return not (minute.startswith("*") or hour.startswith("*"))

    def explain(self) -> str:
        """The expression in plain English, without the time zone: "At 06:00 on Monday"."""
        text = CronSim(self.text, datetime(2000, 1, 1)).explain()
        _, _, day_of_month, _, day_of_week = self.text.split()
        if not (day_of_month.startswith("*") or day_of_week.startswith("*")):
            text = text.replace(" and on ", " or on ")  # either day field is enough
        return re.sub(r"\b([2-5])([123])th\b", _ordinal, text)

    def ticks_after(self, moment: int, zone: ZoneInfo) -> Iterator[int]:
        """The Unix seconds later than `moment` at which the clocks of `zone` match, in order."""
        local, repeated = _local_time(moment, zone)
        last = moment
        for tick in self._in_zone(self._local_times(local - repeated, False), zone, False):
            if tick > last:
                yield tick
                last = tick

    def ticks_before(self, moment: int, zone: ZoneInfo) -> Iterator[int]:
        """The Unix seconds earlier than `moment` at which the clocks match, the latest first."""
        local, repeated = _local_time(moment, zone)
        last = moment
        for tick in self._in_zone(self._local_times(local + repeated, True), zone, True):
            if tick < last:
                yield tick
                last = tick

    def _local_times(self, start: datetime, reverse: bool) -> Iterator[datetime]:
        """The matches after `start` (before `start` in reverse), without a time zone."""
        with contextlib.suppress(OverflowError):  # the calendar ends with the year 9999
            yield from CronSim(self.text, start, reverse)

    def _in_zone(
        self, local_times: Iterator[datetime], zone: ZoneInfo, reverse: bool
    ) -> Iterator[int]:
        """The instants of local times, in order of time. `reverse` is the order of the local times.

        A repeated hour has two passes. All matches of one pass come before those of the other.
        """
        fixed = self.has_fixed_times
        other_pass: list[int] = []
        for local in local_times:
            first, second = _instants(local, zone)
            if first == second:
                yield from other_pass
                other_pass.clear()
                yield first
            elif second < first:
                if fixed:
                    yield _end_of_skipped_time(local, zone)
            elif fixed:
                yield first
            elif reverse:
                yield second
                other_pass.append(first)
            else:
                yield first
                other_pass.append(second)
        yield from other_pass


def _ordinal(number: re.Match[str]) -> str:
    """31st for the 31th that cronsim writes."""
    return number[1] + number[2] + ORDINAL_ENDINGS[number[2]]


def _local_time(moment: int, zone: ZoneInfo) -> tuple[datetime, timedelta]:
    """The local time at `moment` without its zone, and the length of a repeated hour.

    The length is zero outside a repeated hour. A search in a repeated hour starts that much
    earlier (later in reverse): only a search through the whole hour finds both passes.
    """
    local = datetime.fromtimestamp(moment, zone).replace(tzinfo=None, fold=0)
    first, second = _instants(local, zone)
    return local, timedelta(seconds=second - first)


def _instants(local: datetime, zone: ZoneInfo) -> tuple[int, int]:
    """The Unix seconds of a local time, by the UTC offset before and after a change of the clock.

    Both are equal for most times. The second is larger for a repeated time, and smaller for a
    skipped time (PEP 495).
    """
    local = local.replace(tzinfo=zone)
    return int(local.timestamp()), int(local.replace(fold=1).timestamp())


def _end_of_skipped_time(local: datetime, zone: ZoneInfo) -> int:
    """The first whole minute (Unix seconds) after the change of the clock that skips `local`."""
    first, second = _instants(local, zone)
    while second < first:
        local += timedelta(minutes=1)
        first, second = _instants(local, zone)
    return first


@functools.lru_cache(maxsize=1024)
def parse_expression(text: str) -> CronExpression:
    """Check a cron expression: five fields, or a name like @daily.

    Raises:
        ScheduleError: the expression is wrong or never matches. The message names the field.
    """
    if len(text) > EXPRESSION_MAX_CHARACTERS:
        raise ScheduleError(
            f"cron expression {text[:20]!r}… has {len(text):,} characters; use at most "
            f"{EXPRESSION_MAX_CHARACTERS:,}"
        )
    expression = _expand_alias(text.strip(), text)
    values = expression.split()
    if len(values) != len(CRON_FIELDS):
        hint = "; for seconds there is every(seconds=…)" if len(values) == 6 else ""
        raise ScheduleError(
            f"cron expression {text!r} has {len(values)} fields, and must have five: {EXAMPLE}"
            f"{hint}"
        )
    checked = " ".join(
        ",".join(_check_item(field, item, text) for item in value.split(","))
        for field, value in zip(CRON_FIELDS, values, strict=True)
    )
    try:
        matches = next(CronSim(checked, datetime(2000, 1, 1)), None) is not None
    except CronSimError:
        matches = False
    if not matches:
        raise ScheduleError(
            f"cron expression {text!r} never matches: no date has day of month {values[2]!r}, "
            f"month {values[3]!r} and day of week {values[4]!r}; use a day that one of the months "
            f"has"
        )
    return CronExpression(checked)


def _expand_alias(expression: str, text: str) -> str:
    if not expression.startswith("@"):
        return expression
    if expression.lower() not in ALIASES:
        raise ScheduleError(
            f"cron expression {text!r}: there is no {expression!r}; there are {', '.join(ALIASES)}"
        )
    return ALIASES[expression.lower()]


def _check_item(field: Field, item: str, text: str) -> str:
    """Check one member of a field's list: `*`, a value, a range, or a special value.

    A `*` or a range can have a `/step`. Returns the member with numbers in the place of names.
    """
    special = _translate_special(field, item)
    if special:
        return special
    if field.special and re.search("[L#]", item.upper()):
        raise _error(field, item, text, f"use {field.allowed}; L, LW and # have no range or step")
    values, slash, step = item.partition("/")
    if slash:
        _check_step(field, step, text)
    if values == "*":
        return item
    first, dash, last = values.partition("-")
    if not first:
        raise _error(field, item, text, f"use {field.allowed}")
    low = _read_value(field, first, text)
    if not dash and slash:
        hint = f"a step needs a range before it: {first}-{field.high}/{step}"
        raise _error(field, item, text, hint)
    if not dash:
        return str(low)
    high = _read_value(field, last, text)
    if last.lower() == "sun" and low > 0:
        high = 7
    if low > high:
        hint = f"the range runs backwards: {first}-{field.high},{field.low}-{last}"
        raise _error(field, values, text, hint)
    if low == high:  # cronsim would count the step on to the end of the field
        return str(low)
    return f"{low}-{high}{slash}{step}"


def _translate_special(field: Field, item: str) -> str:
    """A special value (L, LW, 5L, fri#2) with numbers for names; empty if `item` is not one."""
    if not field.special:
        return ""
    special = item.upper()
    for number, name in enumerate(field.names, start=field.low):
        special = re.sub(rf"^{name.upper()}(?=L|#)", str(number), special)
    return special if re.fullmatch(field.special, special) else ""


def _check_step(field: Field, step: str, text: str) -> None:
    if not re.fullmatch(r"[0-9]{1,4}", step) or not 1 <= int(step) <= field.high:
        hint = f"use a whole step from 1 to {field.high} after the '/'"
        raise _error(field, step, text, hint)


def _read_value(field: Field, value: str, text: str) -> int:
    if value.lower() in field.names:
        return field.names.index(value.lower()) + field.low
    if re.fullmatch(r"[0-9]{1,4}", value) and field.low <= int(value) <= field.high:
        return int(value)
    hint = f"use {field.allowed}"
    close = difflib.get_close_matches(value.lower()[:3], field.names, n=1)
    if close:
        hint = f"did you mean {close[0]}? Use {field.allowed}"
    raise _error(field, value, text, hint)


def _error(field: Field, value: str, text: str, hint: str) -> ScheduleError:
    number = CRON_FIELDS.index(field) + 1
    return ScheduleError(
        f"cron expression {text!r}, field {number} ({field.name}): {value!r} is wrong; {hint}"
    )


@functools.lru_cache(maxsize=256)
def time_zone(name: str) -> ZoneInfo:
    """The time zone with the IANA name `name`, like "Europe/Berlin".

    Raises:
        ScheduleError: there is no such zone; the message suggests a name.
    """
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, TypeError, ZoneInfoNotFoundError):
        pass
    known = available_timezones()
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if not known:
        hint = "this machine has no time zone database; pip install tzdata"
    elif close:
        hint = f"did you mean {close[0]!r}?"
    else:
        hint = "use a name like 'Europe/Berlin'"
    raise ScheduleError(f"there is no time zone {name!r}; {hint}")
