"""Types of values on the command line, and options that several commands have."""

from __future__ import annotations

import re
from typing import Any

import click

from rqjobs.times import UNIT_LETTER_SECONDS

limit_option = click.option(
    "-n",
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Maximum number of jobs.",
)


class Duration(click.ParamType):
    """A duration such as 90s, 5m or 1h30m, converted to seconds."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, int | float):
            return value
        if not is_duration(value):
            message = f"{value!r} is not a duration; write it like 90s, 5m, 1h30m or 2d"
            self.fail(message, param, ctx)
        parts = re.findall(r"([0-9]+)([wdhms])", value)
        return sum(int(number) * UNIT_LETTER_SECONDS[unit] for number, unit in parts)


def is_duration(text: str) -> bool:
    return re.fullmatch(r"([0-9]{1,15}[wdhms])+", text) is not None
