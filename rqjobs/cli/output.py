"""Output of the command line. `echo`, `short_line` and `echo_table` make data from Redis safe."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import click
import redis
from rq.exceptions import InvalidJobOperation, NoSuchJobError

from rqjobs import connection
from rqjobs.logs import replace_control_characters
from rqjobs.schedules.cron import ScheduleError

CELL_MAX_CHARACTERS = 300
# Errors that a user can correct. Their messages have the remedy.
USER_ERRORS = (ScheduleError, NoSuchJobError, InvalidJobOperation, ValueError, TypeError)


def short_line(text: str | None) -> str:
    """`text` as one printable line of at most `CELL_MAX_CHARACTERS`."""
    return one_line(text or "")[:CELL_MAX_CHARACTERS]


def one_line(text: str) -> str:
    """`text` with each unprintable character replaced by `�`, so that no terminal obeys it."""
    return "".join(char if char.isprintable() else "�" for char in text)


def echo(line: str, err: bool = False) -> None:
    """Print one line that may contain data from Redis."""
    click.echo(one_line(line), err=err)


def echo_text(text: str) -> None:
    """Print several lines. Data from Redis is inserted with `short_line`."""
    click.echo(replace_control_characters(text))


def echo_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table with aligned columns."""
    lines = [[short_line(str(cell)) for cell in row] for row in [head, *rows]]
    widths = [max(len(line[index]) for line in lines) for index in range(len(head))]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        echo("  ".join(cells).rstrip())


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Make `command` print a user's error as one line and exit with code 1."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except USER_ERRORS as error:
            raise click.ClickException(short_line(str(error))) from None

    return run


def each(
    names: Sequence[str], operation: Callable[[str], Any], done: str = "", progress: str = ""
) -> None:
    """Call `operation` with each name, print errors at the end, and exit with 1 if there are any.

    Args:
        done: printed for each name, with the operation's result in place of `{}`.
        progress: the label of a progress bar, which replaces the lines. A count is printed at the
            end.
    """
    problems = []
    with contextlib.ExitStack() as stack:
        items: Iterable[str] = names
        if progress:
            bar = click.progressbar(names, label=progress, file=sys.stderr)
            items = stack.enter_context(bar)
        for name in items:
            try:
                result = operation(name)
            except (*USER_ERRORS, redis.ResponseError) as error:
                problems.append(connection.explain(error))
            else:
                if not progress:
                    echo(f"{name}: {done.format(result)}")
    for problem in problems:
        echo(problem, err=True)
    if progress:
        echo(f"{len(names) - len(problems)} of {len(names)} done")
    sys.exit(1 if problems else 0)


def local_time(moment: datetime | None) -> str:
    """`moment` in this machine's time zone; "-" for None."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}" if moment else "-"
