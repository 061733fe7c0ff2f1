"""Rules in plain English."""

from __future__ import annotations

from datetime import datetime

from rqjobs.schedules.cron import parse_expression
from rqjobs.schedules.rules import MISSED_MAX_TICKS, Rule
from rqjobs.times import UNIT_SECONDS

MISSED_TEXTS = {
    "once": "",
    "all": "each missed run is made up for",
    "skip": "missed runs are skipped",
}


def describe(rule: Rule) -> str:
    """The rule in one line: its times, then each option that differs from the default."""
    texts = [_describe_cron(rule) if rule.expression else _describe_every(rule)]
    if rule.start:
        texts.append(f"from {_describe_moment(rule, rule.start)}")
    if rule.end:
        texts.append(f"until {_describe_moment(rule, rule.end)}")
    if rule.times == 1:
        texts.append("at most 1 time")
    elif rule.times:
        texts.append(f"at most {rule.times} times")
    if rule.jitter:
        texts.append(f"up to {rule.jitter:g} s later")
    if not rule.overlap:
        texts.append("only when the job before has ended")
    if MISSED_TEXTS[rule.missed]:
        texts.append(MISSED_TEXTS[rule.missed])
    return "; ".join(texts)


def describe_missed(ticks: int) -> str:
    """A number of missed ticks: "1,000+" from `MISSED_MAX_TICKS` on, where counting stops."""
    if ticks >= MISSED_MAX_TICKS:
        return f"{MISSED_MAX_TICKS:,}+"
    return str(ticks)


def _describe_cron(rule: Rule) -> str:
    text = parse_expression(rule.expression).explain()
    return f"{text[0].lower()}{text[1:]} ({rule.tz})"


def _describe_every(rule: Rule) -> str:
    units = UNIT_SECONDS.items()  # the longest first
    unit, size = next((unit, size) for unit, size in units if rule.seconds % size == 0)
    count = rule.seconds // size
    text = f"every {unit}" if count == 1 else f"every {count} {unit}s"
    if size >= 86_400 and rule.start is None:
        text += " at 00:00 UTC"
    return text


def _describe_moment(rule: Rule, moment: datetime) -> str:
    return f"{rule.localize(moment.timestamp()):%Y-%m-%d %H:%M %Z}"
