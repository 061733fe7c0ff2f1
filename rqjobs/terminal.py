"""What the command line prints. Everything that may come from Redis goes through `say` or `table`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import click

from rqjobs.logs import harmless

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
