"""Rules in plain words."""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from typing import Any

from rqjobs.schedules import cron

UNITS = (("week", 604_800), ("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))
MISSED = {
    "once": "",
    "all": "missed times are made up for one by one",
    "skip": "missed times are skipped",
}
SHOWN_TIMES = 6


def sentence(rule: Any) -> str:
    """A `rules.Rule` as one would say it; its terms behind, where they are not the usual ones."""
    words = (
        _cron(cron.parse(rule.line), rule.tz)
        if rule.line
        else _every(rule.seconds, rule.start is not None)
    )
    terms = [
        rule.start and f"from {rule.shown(rule.start.timestamp()):%Y-%m-%d %H:%M %Z}",
        rule.end and f"until {rule.shown(rule.end.timestamp()):%Y-%m-%d %H:%M %Z}",
        rule.times and f"at most {rule.times} time{'s' * (rule.times > 1)}",
        rule.jitter and f"up to {rule.jitter:g} s later",
        not rule.overlap and "only when the job before has ended",
        MISSED[rule.missed],
    ]
    return "; ".join([words, *(term for term in terms if term)])


def _every(seconds: int, started: bool) -> str:
    unit, size = next((unit, size) for unit, size in UNITS if seconds % size == 0)
    count = seconds // size
    words = f"every {unit}" if count == 1 else f"every {count} {unit}s"
    return f"{words} at 00:00 UTC" if size >= 86_400 and not started else words


def _cron(line: cron.Line, tz: str) -> str:
    words = [_time(line)]
    if len(line.months) < 12:
        words.append("in " + _join(_runs(line.months, lambda month: calendar.month_name[month])))
    days = [f"on day {_join(_runs(line.days, str))} of the month"] if not line.any_day else []
    names = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
    if len(line.weekdays) < 7 or not (line.any_weekday or line.any_day):
        week = sorted(line.weekdays, key=lambda day: (day - 1) % 7)  # Monday first
        days.append(
            "on " + _join(_runs([(day - 1) % 7 for day in week], lambda day: names[(day + 1) % 7]))
        )
    words.insert(1, " or ".join(days))
    if len(words) == 2 and not days and words[0].startswith("at ") and not line.hourly:
        words.insert(0, "every day")
    return " ".join(word for word in words if word) + f" ({tz})"


def _time(line: cron.Line) -> str:
    if len(line.hours) * len(line.minutes) <= SHOWN_TIMES:
        return "at " + _join(
            [f"{hour:02}:{minute:02}" for hour in line.hours for minute in line.minutes]
        )
    step = _step(line.minutes, 60)
    if step:
        words = "every minute" if step == 1 else f"every {step} minutes"
    elif line.minutes == (0,):
        words = ""
    else:
        words = f"at minute {_join(_runs(line.minutes, str))}"
    if line.hourly:
        return words + " of every hour" if words.startswith("at") else words or "every hour"
    hours = _step(line.hours, 24)
    if hours and len(line.minutes) == 1:
        return f"{words} of every {hours} hours".removeprefix(" of ")
    spans = [
        f"{low:02}:00 to {high:02}:{line.minutes[-1]:02}"
        if low < high
        else f"{low:02}:{line.minutes[0]:02}"
        for low, high in _spans(line.hours)
    ]
    return (
        f"{words or 'every hour'} from {_join(spans)}"
        if len(spans) < len(line.hours)
        else (
            f"{words or 'at minute 0'} of the hours {_join([f'{hour:02}' for hour in line.hours])}"
        )
    )


def _step(values: Sequence[int], size: int) -> int:
    """The step if `values` are all the multiples of one that divides `size`; else 0, for the last gap is shorter."""
    step = values[1] if len(values) > 1 else 0
    return step if step and size % step == 0 and list(values) == list(range(0, size, step)) else 0


def _spans(values: Sequence[int]) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for value in values:
        if spans and value == spans[-1][1] + 1:
            spans[-1] = spans[-1][0], value
        else:
            spans.append((value, value))
    return spans


def _runs(values: Sequence[int], name: Any) -> list[str]:
    """Names of values; three and more in a row become "first to last"."""
    words: list[str] = []
    for low, high in _spans(values):
        words += (
            [f"{name(low)} to {name(high)}"]
            if high - low > 1
            else [name(value) for value in range(low, high + 1)]
        )
    return words


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
