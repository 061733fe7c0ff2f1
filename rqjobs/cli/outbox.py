"""`rqjobs outbox`: the table of the outbox."""

from __future__ import annotations

import sys

import click

from rqjobs import outbox, texts
from rqjobs.cli.output import echo
from rqjobs.config import ConfigError


@click.group("outbox")
def group() -> None:
    """The outbox: jobs of database transactions, as rows until they are moved to Redis.

    RQJOBS_OUTBOX_URL is the URL of the database.
    """


@group.command()
def create() -> None:
    """Create the table rqjobs_outbox, unless it exists."""
    try:
        is_new = outbox.create()
    except ConfigError:
        raise
    except Exception as error:  # of any driver
        raise click.ClickException(outbox.explain(error)) from None
    echo(f"the table {outbox.TABLE_NAME} {'is created' if is_new else 'exists already'}")


@group.command()
def status() -> None:
    """Count the rows that wait, and list those that cannot be moved.

    Exits with 1 if there are such rows.
    """
    try:
        found = outbox.status()
    except ConfigError:
        raise
    except Exception as error:  # of any driver
        raise click.ClickException(outbox.explain(error)) from None
    line = texts.jobs(found.waiting, "waits", "wait")
    if found.waiting:
        line += f", the oldest for {found.oldest_seconds:.0f} s"
    echo(line)
    for row in found.damaged:
        echo(f"WRONG: row {row.row_id}: {row.error}")
    sys.exit(1 if found.damaged else 0)
