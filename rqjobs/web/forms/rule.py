"""The inputs of a rule: read from a form, and filled in to be edited."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from rqjobs import ScheduleError, cron, every
from rqjobs.schedules.rules import Rule
from rqjobs.web.forms.options import DATE_ERROR, DURATION_UNITS, FormReader

OPTION_INPUTS = ("missed", "overlap", "jitter", "start", "end", "times")
MISSED_LABELS = {
    "once": "run once for all of them",
    "all": "run once for each",
    "skip": "skip them",
}
MAX_JITTER_SECONDS = 86_400
MAX_TIMES = 1_000_000
MIN_YEAR, MAX_YEAR = 1970, 9998  # that an input of a date can hold in every time zone
DEFAULT_CLOCK = "06:00"


@dataclass(frozen=True)
class Days:
    """A choice of days in the form, and the day fields of its cron expression."""

    label: str
    fields: str


DAYS = {
    "daily": Days("every day", "* * *"),
    "weekdays": Days("Monday to Friday", "* * mon-fri"),
    "weekends": Days("Saturday and Sunday", "* * sat,sun"),
    "mon": Days("every Monday", "* * mon"),
    "tue": Days("every Tuesday", "* * tue"),
    "wed": Days("every Wednesday", "* * wed"),
    "thu": Days("every Thursday", "* * thu"),
    "fri": Days("every Friday", "* * fri"),
    "sat": Days("every Saturday", "* * sat"),
    "sun": Days("every Sunday", "* * sun"),
    "first": Days("the first of each month", "1 * *"),
}
NEW_RULE = {
    "kind": "at",
    "interval": "5",
    "unit": "minutes",
    "missed": "once",
    "overlap": "on",
    "days": "daily",
    "clock": DEFAULT_CLOCK,
}


def fill_in_rule(rule: Rule) -> dict[str, str]:
    """The inputs of a rule. Dates are in the server's time zone; the browser converts them."""
    form = {
        "kind": rule.kind,
        "missed": rule.missed,
        "overlap": "on" if rule.overlap else "",
        "jitter": f"{rule.jitter:g}" if rule.jitter else "",
        "times": str(rule.times or ""),
        "start": _date_text(rule.start),
        "end": _date_text(rule.end),
    }
    if rule.kind == "cron":
        return form | {"expression": rule.expression, "tz": rule.tz} | _fill_in_days(rule)
    unit = next(unit for unit, size in reversed(DURATION_UNITS.items()) if rule.seconds % size == 0)
    return form | {"interval": str(rule.seconds // DURATION_UNITS[unit]), "unit": unit}


def _days_expression(days: str, clock: str) -> str:
    """The cron expression of a choice of days and a time "HH:MM"."""
    hour, minute = clock.split(":")
    return f"{int(minute)} {int(hour)} {DAYS[days].fields}"


def _fill_in_days(rule: Rule) -> dict[str, str]:
    """The inputs of a cron rule that is a choice of days at a time; none for another one."""
    found = re.fullmatch(r"(\d{1,2}) (\d{1,2}) (.+)", rule.expression)
    for name, days in DAYS.items():
        if found and found[3] == days.fields:
            clock = f"{int(found[2]):02}:{int(found[1]):02}"
            if _days_expression(name, clock) == rule.expression:
                return {"kind": "at", "days": name, "clock": clock}
    return {}


def _is_usual(moment: datetime) -> bool:
    return MIN_YEAR <= moment.year <= MAX_YEAR


def _date_text(moment: datetime | None) -> str:
    if moment is None:
        return ""
    if _is_usual(moment):
        moment = moment.astimezone()
    return f"{moment:%Y-%m-%dT%H:%M:%S}"


def read_rule(form: FormReader, before: Rule | None = None) -> Rule | None:
    """The rule in a form; None if an input is wrong, and then `form.errors` has the reason.

    A date of the rule `before` keeps its fraction of a second, because the form cannot show it.
    """
    options: dict[str, Any] = {
        "missed": form.text("missed"),
        "overlap": bool(form.text("overlap")),
        "jitter": form.number("jitter", 0, MAX_JITTER_SECONDS, "seconds") or 0,
        "times": form.whole_number("times", 1, MAX_TIMES),
    }
    for name in ("start", "end"):
        if form.text(name):
            options[name] = _read_date(form, name, getattr(before, name, None))
    kind = form.text("kind")
    if kind == "every":
        return _read_every(form, options)
    if kind == "cron":
        return _read_cron(form, options)
    if kind == "at":
        return _read_days(form, options)
    form.errors["kind"] = "Choose an interval, days, or a cron expression."
    return None


def _read_date(form: FormReader, name: str, before: datetime | None) -> datetime | None:
    moment = form.moment(name, f"{name}_offset")
    if moment is None:
        return None
    if not _is_usual(moment):
        form.errors[name] = DATE_ERROR
    if before and moment == before.replace(microsecond=0):
        return before
    return moment


def _read_every(form: FormReader, options: dict[str, Any]) -> Rule | None:
    duration = form.duration("interval", "unit") or timedelta()
    return _make_rule(form, "interval", every, options, seconds=duration.total_seconds())


def _read_days(form: FormReader, options: dict[str, Any]) -> Rule | None:
    clock, days = form.text("clock"), form.text("days")
    if not re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d", clock, re.ASCII):
        form.errors["clock"] = "Write a time of day, such as 06:00."
    if days not in DAYS:
        form.errors["days"] = "Choose the days."
    if "clock" in form.errors or "days" in form.errors:
        return None
    expression = _days_expression(days, clock)
    return _make_rule(form, "tz", cron, options, expression=expression, tz=form.text("tz") or "UTC")


def _read_cron(form: FormReader, options: dict[str, Any]) -> Rule | None:
    expression = form.text("expression")
    # The expression is checked alone first, so that a second error is about the time zone.
    _make_rule(form, "expression", cron, {}, expression=expression)
    if "expression" in form.errors:
        return None
    return _make_rule(form, "tz", cron, options, expression=expression, tz=form.text("tz") or "UTC")


def _make_rule(
    form: FormReader,
    name: str,
    make: Callable[..., Rule],
    options: dict[str, Any],
    **times: Any,
) -> Rule | None:
    """The rule, or None if any input is wrong. An error that names no option is about `name`."""
    try:
        make(**times)
        if form.errors:
            return None
        return make(**times, **options)
    except (ScheduleError, OverflowError) as error:
        # An error about an option begins with its name: "jitter=…".
        option = re.match(r"(\w+)=", str(error))
        if option and option[1] in OPTION_INPUTS:
            name = option[1]
        form.errors.setdefault(name, str(error))
        return None


@lru_cache
def time_zones() -> list[str]:
    """The names of the time zones that are installed on this machine."""
    return sorted(zoneinfo.available_timezones())
