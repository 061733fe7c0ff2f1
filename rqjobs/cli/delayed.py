"""`rqjobs delayed`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click

from rqjobs import delayed as delayed_jobs
from rqjobs.cli.output import each, local_time, one_line_errors, plain, say
from rqjobs.cli.params import Duration


@click.group("delayed", invoke_without_command=True)
@click.option(
    "-n",
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="At most so many.",
)
@click.pass_context
def group(ctx: click.Context, limit: int) -> None:
    """List the jobs that wait for their time, the next due first; or cancel and move them."""
    if ctx.invoked_subcommand:
        return
    for one in delayed_jobs.jobs(limit=limit):
        say(f"{one.job_id}  {plain(one.queue)}  {local_time(one.due)}  {plain(one.description)}")
    say(f"{delayed_jobs.count()} delayed")


@group.command()
@click.argument("ids", nargs=-1, required=True)
def cancel(ids: Sequence[str]) -> None:
    """Cancel delayed jobs."""
    each(ids, delayed_jobs.cancel, "canceled")


@group.command()
@click.argument("job_id")
@click.argument("when")
@one_line_errors
def reschedule(job_id: str, when: str) -> None:
    """Give a delayed job another time.

    WHEN is "now", a time from now like 90s, 5m or 1h30m, or a moment like 2030-01-31T06:00 (in this machine's time,
    unless it says a zone).
    """
    if when == "now":
        moment: Any = 0
    elif re.fullmatch(r"([0-9]{1,15}[wdhms])+", when):
        moment = Duration().convert(when, None, None)
    else:
        try:
            moment = datetime.fromisoformat(when)
        except ValueError:
            raise click.UsageError(
                f"{when!r} is no time; write now, 5m, or 2030-01-31T06:00"
            ) from None
    say(f"{job_id}: {local_time(delayed_jobs.reschedule(job_id, moment))}")
