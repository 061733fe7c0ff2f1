"""`rqjobs failed`: list, requeue, show and delete failed jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
import redis

import rqjobs
from rqjobs import attempts, connection, stats
from rqjobs.broker import transitions
from rqjobs.cli.output import each, echo, short_line


@click.group("failed", invoke_without_command=True)
@click.option(
    "-n",
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Maximum number of jobs.",
)
@click.pass_context
def group(ctx: click.Context, limit: int) -> None:
    """List, requeue, show and delete failed jobs.

    Without a command the failed jobs are listed, newest first.
    """
    if ctx.invoked_subcommand:
        return
    client = connection.client()
    for job in stats.recent(client, "failed", limit):
        ended = f"{job.ended_at:%Y-%m-%d %H:%M:%S}" if job.ended_at else "?"
        echo(f"{job.id}  {short_line(job.origin)}  {ended}  {short_line(job.description)}")
        last_line = (_traceback(job).strip().splitlines() or [""])[-1]
        echo(f"    {short_line(last_line)}")
    queues = stats.snapshot(client).queues
    failed = sum(queue.failed for queue in queues)
    stopped = sum(queue.stopped for queue in queues)
    if failed:
        echo(f"{failed} failed; requeue with: rqjobs failed requeue ID … | --all")
    else:
        echo("no failed jobs")
    if stopped:
        echo(
            f"{stopped} stopped with `stop-job`; --all does not include them, requeue each with: "
            f"rqjobs failed requeue ID"
        )


def _traceback(job: Any) -> str:
    """The traceback of the job's last run, or the reason why it cannot be read."""
    try:
        result = job.latest_result()
    except redis.ConnectionError:
        raise
    except Exception as error:  # anything: the entry may be damaged or forged
        return f"its result cannot be read: {type(error).__name__}: {error}"
    if result is None:
        return ""
    return result.exc_string or ""


def _attempts(job: Any) -> list[attempts.Attempt]:
    """The job's last runs; none if its results are of the wrong type."""
    try:
        return attempts.read_attempts(job)
    except redis.ResponseError:
        return []


def _job_ids(client: redis.Redis, ids: Sequence[str], every: bool) -> list[str]:
    """The jobs that a command names: its arguments, or every failed job."""
    if every == bool(ids):
        raise click.UsageError("name the jobs, or use --all")
    if every:
        return stats.failed_job_ids(client)
    return list(ids)


@group.command("requeue")
@click.argument("ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every failed job.")
def requeue(ids: Sequence[str], every: bool) -> None:
    """Requeue failed jobs. Each job moves in one atomic step."""
    client = connection.client()
    each(
        _job_ids(client, ids, every),
        lambda job_id: transitions.requeue(client, job_id),
        progress="requeueing",
    )


@group.command("delete")
@click.argument("ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every failed job.")
@click.confirmation_option(prompt="Delete them permanently?")
def delete(ids: Sequence[str], every: bool) -> None:
    """Delete failed jobs permanently."""
    client = connection.client()
    each(
        _job_ids(client, ids, every),
        lambda job_id: transitions.delete_failed(client, job_id),
        progress="deleting",
    )


@group.command("show")
@click.argument("job_id")
def show(job_id: str) -> None:
    """Print a job, its last runs and its last traceback."""
    try:
        job = rqjobs.Job.fetch(job_id, connection=connection.client())
    except redis.ConnectionError:
        raise
    except Exception as error:  # RQ raises anything for a damaged or forged hash
        raise click.ClickException(short_line(str(error))) from None
    echo(job.id)
    echo(short_line(job.description))
    echo(f"queue {short_line(job.origin)}, enqueued {job.enqueued_at}, ended {job.ended_at}")
    for attempt in _attempts(job):
        seconds = "" if attempt.seconds is None else f" after {attempt.seconds:.3f} s"
        echo(
            f"{attempt.outcome} at {attempt.ended:%Y-%m-%d %H:%M:%S}{seconds} on "
            f"{short_line(attempt.worker)}: {short_line(attempt.error)}"
        )
    echo("")
    for line in _traceback(job).splitlines() or ["no traceback is stored"]:
        echo(short_line(line))
