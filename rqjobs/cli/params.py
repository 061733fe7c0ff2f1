"""Kinds of values on the command line."""

from __future__ import annotations

import re
from typing import Any

import click

UNITS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}


class Duration(click.ParamType):
    """A length of time, in seconds."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, int | float):
            return value
        if not re.fullmatch(r"([0-9]{1,15}[wdhms])+", value):
            self.fail(
                f"{value!r} is no length of time; write it like 90s, 5m, 1h30m or 2d", param, ctx
            )
        return sum(
            int(number) * UNITS[unit] for number, unit in re.findall(r"([0-9]+)([wdhms])", value)
        )
