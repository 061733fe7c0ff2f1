"""`rqjobs failed`: list, requeue, show and delete failed jobs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import click
import redis

from rqjobs import attempts, connection, failed, stats
from rqjobs.broker import bulk_transitions, transitions
from rqjobs.cli.activity import recorded
from rqjobs.cli.jobs import fetch_job
from rqjobs.cli.output import each, echo, echo_table, local_time, short_line
from rqjobs.cli.params import Duration, is_duration, limit_option
from rqjobs.failed import Filter, Target


class Since(click.ParamType):
    """A duration before now, or a date and time; without a time zone it is in this machine's."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime | timedelta:
        if isinstance(value, datetime | timedelta):
            return value
        try:
            if is_duration(value):
                return timedelta(seconds=Duration().convert(value, param, ctx))
            return datetime.fromisoformat(value).astimezone()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a time; write it like 2h, 7d, or 2030-01-31T06:00")


GROUP_HEAD = (
    "FUNCTION",
    "ERROR",
    "1 H",
    "24 H",
    "7 D",
    "JOBS",
    "FIRST",
    "LAST",
    "MESSAGE",
)
MESSAGE_COLUMN_CHARACTERS = 80
FILTERS = (
    click.option("--function", help="Only jobs of this function; its module may be left out."),
    click.option("--error", help="Only jobs with this error: the class of the exception."),
    click.option("--queue", help="Only jobs of this queue."),
    click.option(
        "--since", type=Since(), help="Only jobs that failed since then: 2h, 7d or a date."
    ),
)


def filtered(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a filter, which may stand before the command too."""
    for option in reversed(FILTERS):
        command = option(command)
    return command


def _filter(ctx: click.Context) -> Filter:
    """The filter of a command's options, and of those before the command."""
    chosen = {}
    for context in (ctx.parent, ctx):
        for name in ("function", "error", "queue", "since"):
            if context and context.params.get(name) is not None:
                chosen[name] = context.params[name]
    return Filter(**chosen)


@click.group("failed", invoke_without_command=True)
@filtered
@limit_option
@click.pass_context
def group(ctx: click.Context, limit: int, **_filters: Any) -> None:
    """List, requeue, show and delete failed jobs.

    Without a command the failed jobs are listed, newest first. The options of a filter stand before
    or behind the command.
    """
    if ctx.invoked_subcommand:
        return
    if _filter(ctx).is_empty:
        _list_newest(limit)
    else:
        _list_found(_filter(ctx), limit)


def _list_newest(limit: int) -> None:
    client = connection.client()
    for job in stats.recent(client, "failed", limit):
        ended = f"{job.ended_at:%Y-%m-%d %H:%M:%S}" if job.ended_at else "?"
        echo(f"{job.id}  {short_line(job.origin)}  {ended}  {short_line(job.description)}")
        last_line = (_traceback(job).strip().splitlines() or [""])[-1]
        echo(f"    {short_line(last_line)}")
    queues = stats.snapshot(client).queues
    number = sum(queue.failed for queue in queues)
    stopped = sum(queue.stopped for queue in queues)
    if number:
        echo(f"{number} failed; requeue with: rqjobs failed requeue ID … | --all")
    else:
        echo("no failed jobs")
    if stopped:
        echo(
            f"{stopped} stopped with `stop-job`; --all does not include them, requeue each with: "
            f"rqjobs failed requeue ID"
        )


def _list_found(chosen: Filter, limit: int) -> None:
    found = list(islice(failed.find(chosen), limit + 1))
    for job in found[:limit]:
        echo(
            f"{job.job_id}  {short_line(job.queue)}  {local_time(job.failed_at)}  "
            f"{short_line(job.function)}  {short_line(job.error)}"
        )
    if len(found) > limit:
        echo(f"the first {limit}; for more there is --limit")
    elif not found:
        echo("no such failed jobs")


@group.command("groups")
def groups() -> None:
    """List the groups of failed jobs, the one that failed last first.

    The counts are failures, also those of jobs that were requeued or deleted since. JOBS are the
    jobs that are failed now.
    """
    found = failed.groups()
    rows = [
        (
            one.function,
            one.error,
            one.last_hour,
            one.last_day,
            one.last_week,
            one.jobs,
            local_time(one.first_seen),
            local_time(one.last_seen),
            one.message[:MESSAGE_COLUMN_CHARACTERS],
        )
        for one in found
    ]
    if rows:
        echo_table(GROUP_HEAD, rows)
    else:
        echo("no groups of failed jobs")


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


def _change(
    ctx: click.Context,
    ids: Sequence[str],
    every: bool,
    steps: Callable[[Sequence[Target]], Iterator[int]],
    label: str,
) -> None:
    """Change the jobs of a filter, or with `--all` every failed job, with a progress bar."""
    chosen = _filter(ctx)
    if (ids and (every or not chosen.is_empty)) or not (ids or every or not chosen.is_empty):
        raise click.UsageError(
            "name the jobs, or choose them with --function, --error, --queue and --since, or use "
            "--all"
        )
    targets = failed.select(chosen)
    done = 0
    with click.progressbar(length=len(targets), label=label, file=sys.stderr) as bar:
        for number in steps(targets):
            done += number
            bar.update(min(bulk_transitions.BATCH_JOBS, len(targets)))
    echo(f"{done} of {len(targets)} done")
    sys.exit(0 if done == len(targets) else 1)


@group.command("requeue")
@click.argument("ids", nargs=-1)
@filtered
@click.option("--all", "every", is_flag=True, help="Every failed job.")
@click.pass_context
@recorded("requeue failed jobs", "ids", "every", "function", "error", "queue", "since")
def requeue(ctx: click.Context, ids: Sequence[str], every: bool, **_filters: Any) -> None:
    """Requeue failed jobs. Each job moves in one atomic step."""
    client = connection.client()
    if ids and not every and _filter(ctx).is_empty:
        each(ids, lambda job_id: transitions.requeue(client, job_id), progress="requeueing")
    _change(ctx, ids, every, failed.requeue_steps, "requeueing")


@group.command("delete")
@click.argument("ids", nargs=-1)
@filtered
@click.option("--all", "every", is_flag=True, help="Every failed job.")
@click.confirmation_option(prompt="Delete them permanently?")
@click.pass_context
@recorded("delete failed jobs", "ids", "every", "function", "error", "queue", "since")
def delete(ctx: click.Context, ids: Sequence[str], every: bool, **_filters: Any) -> None:
    """Delete failed jobs permanently."""
    client = connection.client()
    if ids and not every and _filter(ctx).is_empty:
        each(ids, lambda job_id: transitions.delete_failed(client, job_id), progress="deleting")
    _change(ctx, ids, every, failed.delete_steps, "deleting")


@group.command("show")
@click.argument("job_id", required=False)
@filtered
@limit_option
@click.pass_context
def show(ctx: click.Context, job_id: str | None, limit: int, **_filters: Any) -> None:
    """Print a job, or those of a filter, with the last runs and the last traceback."""
    chosen = _filter(ctx)
    if bool(job_id) != chosen.is_empty:
        raise click.UsageError(
            "name a job, or choose some with --function, --error, --queue and --since"
        )
    if job_id:
        _show(job_id)
        return
    for number, job in enumerate(islice(failed.find(chosen), limit)):
        if number:
            echo("")
        try:
            _show(job.job_id)
        except click.ClickException as error:
            echo(f"{short_line(job.job_id)}: {error.message}")


def _show(job_id: str) -> None:
    try:
        job: Any = fetch_job(job_id)
    except redis.ConnectionError:
        raise
    except Exception as error:  # RQ raises anything for a damaged or forged hash
        raise click.ClickException(short_line(str(error))) from None
    echo(job.id)
    echo(short_line(job.description))
    echo(f"queue {short_line(job.origin)}, enqueued {job.enqueued_at}, ended {job.ended_at}")
    with contextlib.suppress(redis.ResponseError):  # the key holds foreign data
        if progress := job.progress:
            echo(f"progress: {short_line(progress.describe())}")
    for attempt in _attempts(job):
        seconds = "" if attempt.seconds is None else f" after {attempt.seconds:.3f} s"
        echo(
            f"{attempt.outcome} at {attempt.ended:%Y-%m-%d %H:%M:%S}{seconds} on "
            f"{short_line(attempt.worker)}: {short_line(attempt.error)}"
        )
    echo("")
    for line in _traceback(job).splitlines() or ["no traceback is stored"]:
        echo(short_line(line))
