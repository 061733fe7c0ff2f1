"""What the command line prints. Everything that may come from Redis goes through `say` or `table`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import click
from rq.exceptions import InvalidJobOperation, NoSuchJobError

from rqjobs.logs import harmless
from rqjobs.schedules.cron import ScheduleError

CELL_MAX_CHARACTERS = 300


def plain(text: str | None) -> str:
    """One short line of what a job carries, with nothing in it that a terminal would obey."""
    return one_line(text or "")[:CELL_MAX_CHARACTERS]


def one_line(text: str) -> str:
    return "".join(char if char.isprintable() else "�" for char in text)


def say(line: str, err: bool = False) -> None:
    """Print one line, whatever is in it."""
    click.echo(one_line(line), err=err)


def paragraph(text: str) -> None:
    """Print lines of our own words; what came from outside is put into them with `plain`."""
    click.echo(harmless(text))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    lines = [[plain(str(cell)) for cell in row] for row in [head, *rows]]
    widths = [max(len(line[index]) for line in lines) for index in range(len(head))]
    for line in lines:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


USER_ERRORS = (ScheduleError, NoSuchJobError, InvalidJobOperation, ValueError, TypeError)


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Make the errors that teach one line and exit code 1."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except USER_ERRORS as error:
            raise click.ClickException(plain(str(error))) from None

    return run


def each(names: Sequence[str], act: Callable[[str], Any], done: str) -> None:
    """Do `act` to each; exits 1 if one could not be done."""
    wrong = False
    for name in names:
        try:
            found = act(name)
            say(f"{name}: {done.format(found)}")
        except USER_ERRORS as error:
            say(plain(str(error)), err=True)
            wrong = True
    sys.exit(wrong)


def local_time(moment: datetime | None) -> str:
    """In this machine's time."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}" if moment else "-"
