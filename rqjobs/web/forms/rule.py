"""The form of a rule: what is read from it, what it shows, and a look ahead while it is filled in."""

from __future__ import annotations

import re
import zoneinfo
from datetime import timedelta
from functools import lru_cache
from typing import Any

from flask import request

from rqjobs import ScheduleError, cron, every
from rqjobs.schedules.describe import describe
from rqjobs.schedules.rules import Rule
from rqjobs.web.auth import page, pages
from rqjobs.web.forms import fields as forms

TERMS = ("missed", "overlap", "jitter", "start", "end", "times")
AHEAD = 3  # times that the look ahead shows


@pages.get("/live/rule")
def look_ahead() -> Any:
    """The rule that the form describes by now, in words, and its next times; or what is wrong."""
    reader = forms.Reader(request.args)
    rule = read(reader)
    try:
        ahead = {"rule_text": describe(rule), "times": times(rule.upcoming(AHEAD))} if rule else {}
    except (ValueError, OverflowError):  # so far away that it is no date
        ahead = {}
    return page("_rule.html", ahead=ahead, wrong=next(iter(reader.errors.values()), ""))


def times(ticks: list[Any]) -> list[Any]:
    """(tick, how the rule's own zone writes it)"""
    return [(tick, f"{tick:%a %Y-%m-%d %H:%M:%S %Z}") for tick in ticks]


def given(rule: Rule) -> dict[str, str]:
    """The inputs for a rule. Moments are in the server's time zone; the browser brings them to its own."""
    unit = next(unit for unit, size in reversed(forms.UNITS.items()) if rule.seconds % size == 0)
    shown = {
        "kind": rule.kind,
        "missed": rule.missed,
        "overlap": "on" if rule.overlap else "",
        "jitter": f"{rule.jitter:g}" if rule.jitter else "",
        "times": str(rule.times or ""),
    }
    shown |= (
        {"interval": str(rule.seconds // forms.UNITS[unit]), "unit": unit}
        if rule.kind == "every"
        else {"expression": rule.expression, "tz": rule.tz}
    )
    for name, moment in (("start", rule.start), ("end", rule.end)):
        usual = moment and 1970 <= moment.year < 9999
        shown[name] = (
            f"{moment.astimezone() if usual else moment:%Y-%m-%dT%H:%M:%S}" if moment else ""
        )
    return shown


def read(reader: forms.Reader, before: Rule | None = None) -> Rule | None:
    """The rule that a form describes; None if it is wrong, and then the reader has the errors.

    What the form cannot show of the rule `before` (fractions of a second) stays as it was.
    """
    terms: dict[str, Any] = {
        "missed": reader.text("missed"),
        "overlap": bool(reader.text("overlap")),
    }
    terms["jitter"] = reader.number("jitter", 0, 86400, " seconds", float) or 0
    terms["times"] = reader.number("times", 1, 1_000_000)
    for name in ("start", "end"):
        if reader.text(name):
            moment, old = reader.moment(name, f"{name}_offset"), getattr(before, name, None)
            if moment and not 1970 <= moment.year < 9999:
                reader.errors[name] = "Give a date and a time, such as 2030-12-31T12:00."
            terms[name] = old if moment and old and moment == old.replace(microsecond=0) else moment
    kind, where = reader.text("kind"), "interval"
    try:
        if kind == "every":
            parts: dict[str, Any] = {
                "seconds": (reader.duration("interval", "unit") or timedelta()).total_seconds()
            }
            every(**parts)
        elif kind == "cron":
            parts, where = {"expression": reader.text("expression")}, "expression"
            cron(**parts)
            parts["tz"], where = reader.text("tz") or "UTC", "tz"
            cron(**parts)
        else:
            reader.errors["kind"] = "Every so often, or by a cron expression?"
        return None if reader.errors else (every if kind == "every" else cron)(**parts, **terms)
    except (ScheduleError, OverflowError) as error:
        term = re.match(r"(\w+)=", str(error))  # so begins what is said of a term
        reader.errors.setdefault(term[1] if term and term[1] in TERMS else where, str(error))
    return None


@lru_cache
def zones() -> list[str]:
    """The time zones that this machine knows."""
    return sorted(zoneinfo.available_timezones())
