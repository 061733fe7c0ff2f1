"""`rqjobs failed`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click
import redis
from rq.exceptions import InvalidJobOperation, NoSuchJobError

import rqjobs
from rqjobs import connection, stats
from rqjobs.broker import keys, places, transitions
from rqjobs.cli.output import plain, say


@click.group("failed", invoke_without_command=True)
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
    """List the failed jobs, newest first; or requeue, show and delete them."""
    if ctx.invoked_subcommand:
        return
    client = connection.client()
    for job in stats.recent(client, "failed", limit):
        when = f"{job.ended_at:%Y-%m-%d %H:%M:%S}" if job.ended_at else "?"
        say(f"{job.id}  {plain(job.origin)}  {when}  {plain(job.description)}")
        say(f"    {plain((_traceback(job).strip().splitlines() or [''])[-1])}")
    queues = stats.snapshot(client).queues
    total, stopped = sum(queue.failed for queue in queues), sum(queue.stopped for queue in queues)
    say(
        f"{total} failed; requeue with: rqjobs failed requeue ID … | --all"
        if total
        else "no failed jobs"
    )
    if stopped:
        say(
            f"{stopped} stopped by somebody, which --all leaves alone; requeue one with: rqjobs failed requeue ID"
        )


def _traceback(job: Any) -> str:
    try:
        result = job.latest_result()
        return (result.exc_string if result else None) or ""
    except redis.ConnectionError:
        raise
    except Exception as error:
        return f"its result cannot be read: {type(error).__name__}: {error}"


def _failed_ids(client: redis.Redis, ids: Sequence[str], everything: bool) -> list[str]:
    if everything == bool(ids):
        raise click.UsageError("name the jobs, or say --all")
    if ids:
        return list(ids)
    return [
        job_id
        for queue in places.queue_names(client)
        for _, job_id in transitions.failed_jobs(client, queue)
    ]


def _each(ids: list[str], label: str, act: Any) -> None:
    """Do `act` to each job with a progress bar; say which could not be done, and exit 1 if there was one."""
    problems = []
    with click.progressbar(ids, label=label, file=sys.stderr) as bar:
        for job_id in bar:
            try:
                act(job_id)
            except (NoSuchJobError, InvalidJobOperation, redis.ResponseError) as error:
                problems.append(connection.explain(error))
    for problem in problems:
        say(problem, err=True)
    say(f"{len(ids) - len(problems)} of {len(ids)} done")
    sys.exit(1 if problems else 0)


@group.command("requeue")
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every failed job.")
def requeue_failed(ids: Sequence[str], everything: bool) -> None:
    """Bring failed jobs back into their queues, each in one atomic step."""
    client = connection.client()
    _each(
        _failed_ids(client, ids, everything),
        "requeueing",
        lambda job_id: transitions.requeue(client, job_id),
    )


@group.command("delete")
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every failed job.")
@click.confirmation_option(prompt="Delete them for good?")
def delete_failed(ids: Sequence[str], everything: bool) -> None:
    """Delete failed jobs for good."""
    client = connection.client()

    def delete(job_id: str) -> None:
        status, origin = client.hmget(f"rq:job:{job_id}", "status", "origin")
        if status and status not in (b"failed", b"stopped"):
            raise InvalidJobOperation(f"job {job_id} has not failed, so it was not deleted")
        if not origin or transitions.delete(client, [job_id], keys.decode(origin)) != ["deleted"]:
            raise NoSuchJobError(f"No such job: {job_id}")

    _each(_failed_ids(client, ids, everything), "deleting", delete)


@group.command("show")
@click.argument("job_id")
def show_failed(job_id: str) -> None:
    """Print what one job was, and its last traceback."""
    try:
        job = rqjobs.Job.fetch(job_id, connection=connection.client())
    except redis.ConnectionError:
        raise
    except Exception as error:  # whatever a hostile or damaged hash makes RQ raise
        raise click.ClickException(plain(str(error))) from None
    say(job.id)
    say(plain(job.description))
    say(f"queue {plain(job.origin)}, enqueued {job.enqueued_at}, ended {job.ended_at}")
    say("")
    for line in _traceback(job).splitlines() or ["no traceback is kept"]:
        say(plain(line))
