"""What the command line prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import click


def plain(words: str | None) -> str:
    """One line of what a job carries, with nothing in it that a terminal would obey."""
    return "".join(char if char.isprintable() else "�" for char in (words or ""))[:300]


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    lines = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(line[index]) for line in lines) for index in range(len(head))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
