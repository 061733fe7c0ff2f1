"""The rules of alerts and of `rqjobs stats --check`, as they are written: `oldest=60s, depth=1000`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

RULE_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
RULE_MAX_SECONDS = 365 * 86_400
MAX_RULES = 50
RULE = re.compile(
    r"(?P<name>[a-z_]+)(:(?P<queue>[A-Za-z0-9_.-]{1,100}))?"
    r"(\s*=\s*(?P<limit>[0-9]+[smhd]?))?(\s+for\s+(?P<hold>[0-9]+[smhd]?))?"
)


class Unit(Enum):
    """The kind of limit that a rule takes."""

    NONE = "no limit"
    SECONDS = "a time, as in 60s, 5m or 2h"
    NUMBER = "a whole number"


@dataclass(frozen=True)
class Rule:
    """One rule. `queue`: the only queue that it is for; "" for all. `limit`: seconds, or a number.
    `hold`: the seconds for which it must be broken; None for the rule's own default.
    """

    name: str
    queue: str = ""
    limit: int = 0
    hold: int | None = None

    def __str__(self) -> str:
        """The rule as RQJOBS_ALERTS has it."""
        unit = {**ALERT_RULES, **CHECK_RULES}[self.name]
        queue = f":{self.queue}" if self.queue else ""
        limit = "" if unit is Unit.NONE else f"={self.limit}{'s' if unit is Unit.SECONDS else ''}"
        hold = "" if self.hold is None else f" for {self.hold}s"
        return f"{self.name}{queue}{limit}{hold}"


ALERT_RULES: dict[str, Unit] = {
    "oldest": Unit.SECONDS,
    "depth": Unit.NUMBER,
    "failed": Unit.NUMBER,
    "no_worker": Unit.NONE,
    "no_scheduler": Unit.NONE,
    "failed_for_good": Unit.NONE,
    "new_failure_group": Unit.NONE,
    "schedule_missed": Unit.NONE,
    "recovered": Unit.NONE,
    "poison": Unit.NONE,
}
CHECK_RULES: dict[str, Unit] = {
    "oldest": Unit.SECONDS,
    "depth": Unit.NUMBER,
    "failed": Unit.NUMBER,
    "workers": Unit.NUMBER,
}
OF_A_QUEUE = ("oldest", "depth", "failed", "workers", "no_worker")


def parse_alerts(text: str) -> tuple[Rule, ...]:
    """The rules of RQJOBS_ALERTS.

    Raises:
        ValueError: a rule cannot be read; the message ends with right ones.
    """
    return _parse(text, ALERT_RULES, "oldest=60s, depth=1000 for 2m, no_worker, failed_for_good")


def parse_checks(text: str) -> tuple[Rule, ...]:
    """The rules of `rqjobs stats --check`.

    Raises:
        ValueError: a rule cannot be read; the message ends with right ones.
    """
    return _parse(text, CHECK_RULES, "oldest=60s,failed=10,depth:high=100,workers=1")


def _parse(text: str, known: Mapping[str, Unit], example: str) -> tuple[Rule, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or len(words) > MAX_RULES:
        raise ValueError(f"is not a list of 1 to {MAX_RULES} rules; for example {example}")
    rules = tuple(_parse_rule(word, known, example) for word in words)
    places = [(rule.name, rule.queue) for rule in rules]
    for rule in rules:
        if places.count((rule.name, rule.queue)) > 1:
            raise ValueError(f"has the rule {rule.name} twice; give it once for each queue")
    return rules


def _parse_rule(word: str, known: Mapping[str, Unit], example: str) -> Rule:
    match = RULE.fullmatch(word)
    if not match or match["name"] not in known:
        raise ValueError(
            f"has no rule that can be read in {word[:60]!r}; the rules are {', '.join(known)}, for "
            f"example {example}"
        )
    name, queue, limit, hold = match["name"], match["queue"], match["limit"], match["hold"]
    unit = known[name]
    if queue and name not in OF_A_QUEUE:
        raise ValueError(f"has the rule {name} for a queue, and it has none; write {name}")
    if bool(limit) != (unit is not Unit.NONE):
        raise ValueError(f"has the rule {name}, which takes {unit.value}; for example {example}")
    if hold and known is CHECK_RULES:
        raise ValueError("has a rule with `for`, and a check looks once; leave it out")
    number = 0
    if limit:
        number = _seconds(limit) if unit is Unit.SECONDS else _number(limit, name)
    return Rule(name, queue or "", number, _seconds(hold) if hold else None)


def _number(text: str, name: str) -> int:
    if not text.isdigit() or len(text) > 12:
        raise ValueError(f"has {name}={text}; give a whole number")
    return int(text)


def _seconds(text: str) -> int:
    unit = text.lstrip("0123456789")
    digits = text.removesuffix(unit)
    if len(digits) > 9 or int(digits) * RULE_UNIT_SECONDS[unit] > RULE_MAX_SECONDS:
        raise ValueError(f"has the time {text}; give at most 365d")
    return int(digits) * RULE_UNIT_SECONDS[unit]
