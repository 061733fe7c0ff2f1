"""`rqjobs delayed`: list, cancel and reschedule delayed jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import click

from rqjobs import delayed
from rqjobs.cli.activity import recorded
from rqjobs.cli.output import each, echo, local_time, one_line_errors, short_line
from rqjobs.cli.params import Duration, is_duration, limit_option


@click.group("delayed", invoke_without_command=True)
@limit_option
@click.pass_context
def group(ctx: click.Context, limit: int) -> None:
    """List, cancel and reschedule delayed jobs.

    Without a command the delayed jobs are listed, the next due first.
    """
    if ctx.invoked_subcommand:
        return
    for job in delayed.jobs(limit=limit):
        due = local_time(job.due)
        echo(f"{job.job_id}  {short_line(job.queue)}  {due}  {short_line(job.description)}")
    echo(f"{delayed.count()} delayed")


@group.command()
@click.argument("ids", nargs=-1, required=True)
@recorded("cancel job", "ids")
def cancel(ids: Sequence[str]) -> None:
    """Cancel delayed jobs."""
    each(ids, delayed.cancel, "canceled")


@group.command()
@click.argument("job_id")
@click.argument("when")
@recorded("reschedule job", "job_id")
@one_line_errors
def reschedule(job_id: str, when: str) -> None:
    """Change the time of a delayed job.

    WHEN is "now", a time from now like 90s, 5m or 1h30m, or a date and time like 2030-01-31T06:00.
    A date and time without a time zone is in this machine's time zone.
    """
    echo(f"{job_id}: {local_time(delayed.reschedule(job_id, _parse_when(when)))}")


def _parse_when(when: str) -> datetime | timedelta | float:
    if when == "now":
        return 0
    if is_duration(when):
        return Duration().convert(when, None, None)
    try:
        return datetime.fromisoformat(when)
    except ValueError:
        message = f"{when!r} is not a time; write now, 5m, or 2030-01-31T06:00"
        raise click.UsageError(message) from None
