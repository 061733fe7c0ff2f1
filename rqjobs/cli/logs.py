"""`rqjobs logs`: the log of a job."""

from __future__ import annotations

from collections.abc import Iterable

import click
from rq.exceptions import NoSuchJobError

from rqjobs import connection, job_logs
from rqjobs.broker import keys
from rqjobs.cli.output import echo, one_line, one_line_errors
from rqjobs.job_logs import LogLine

LEVEL_COLORS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


@click.command("logs")
@click.argument("job_id")
@click.option(
    "-f", "--follow", is_flag=True, help="Print further lines as they come, until the job ends."
)
@click.option("--level", default="DEBUG", help="The lowest level to print, such as WARNING.")
@one_line_errors
def show(job_id: str, follow: bool, level: str) -> None:
    """Print the last lines that a job has logged.

    RQJOBS_JOB_LOG_LEVEL decides which lines are kept: by default those of level INFO and higher.
    """
    least = job_logs.level_number(level)
    client = connection.client()
    if not client.exists(keys.job(job_id)):
        raise NoSuchJobError(f"No such job: {job_id}")
    read = job_logs.follow if follow else job_logs.read
    lines = (line for line in read(client, job_id) if line.levelno >= least)
    if not _print(lines):
        echo("no lines of this job are kept", err=True)


def _print(lines: Iterable[LogLine]) -> bool:
    """Print lines with a heading for each further attempt. Returns whether there were any."""
    attempt = None
    for line in lines:
        if line.dropped:
            echo(f"[{line.dropped:,} lines are left out here]")
        if line.attempt not in (attempt, 1):
            echo(f"attempt {line.attempt}:")
        attempt = line.attempt
        moment = f"{line.time.astimezone():%Y-%m-%d %H:%M:%S.%f}"[:-3]
        level = click.style(one_line(line.level).ljust(8), fg=LEVEL_COLORS.get(line.level))
        text = line.text.replace("\n", "\n    ")  # so that no part looks like a line of its own
        click.echo(f"{moment}  {level}  {one_line(line.logger)}  {text}")
    return attempt is not None
