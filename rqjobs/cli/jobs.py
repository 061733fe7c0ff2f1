"""`rqjobs jobs`, `show`, `stop`, `cancel`: find jobs in all states, look at one, end some."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click
import redis
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError

from rqjobs import attempts, bulk_actions, config, connection, hiding, job_search, stats
from rqjobs.broker import transitions
from rqjobs.bulk_actions import Action
from rqjobs.cli.activity import recorded
from rqjobs.cli.output import each, echo, local_time, one_line_errors, short_line
from rqjobs.cli.params import limit_option
from rqjobs.job_filters import FILTER_NAMES, Filter, FilterError, State, read_filter
from rqjobs.job_search import FoundJob
from rqjobs.jobs import Job
from rqjobs.schedules.store import HISTORY_RUNS

RESULT_CHARACTERS = 2000
CANCELABLE = ("queued", "scheduled", "deferred", "started")
CHOICE = ("every", *FILTER_NAMES)  # the parameters that say which jobs a command changes
HELP = {
    "queue": "Only jobs of this queue.",
    "function": "Only jobs of this function; its module may be left out.",
    "text": "Only jobs with this text in the id, the description or the call.",
    "error": "Only failed jobs with this error: the class of the exception.",
    "since": "Only jobs whose last date is later: 2h, 7d, or a date in UTC.",
    "until": "Only jobs whose last date is earlier.",
    "schedule": f"Only the last {HISTORY_RUNS} jobs of this schedule.",
    "group": "Only failed jobs of the group with this id.",
}
SEARCH_OPTIONS = (
    click.option(
        "--state", type=click.Choice([state.value for state in State]), help="Only this state."
    ),
    click.option("--id", "job_id", help="Only the job with this id."),
    *(click.option(f"--{name}", help=text) for name, text in HELP.items()),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def filtered(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a filter."""
    for option in reversed(SEARCH_OPTIONS):
        command = option(command)
    return command


def _filter(ctx: click.Context) -> Filter:
    """The filter in the options of a command, and those before the command."""
    given: dict[str, str] = {}
    for context in (ctx.parent, ctx):
        if context:
            given |= {
                name: context.params[name] for name in FILTER_NAMES if context.params.get(name)
            }
    try:
        return read_filter(given)
    except FilterError as error:
        raise click.UsageError(short_line(str(error))) from None


@click.group("jobs", invoke_without_command=True)
@filtered
@limit_option
@json_option
@click.pass_context
def group(ctx: click.Context, limit: int, as_json: bool, **_filters: Any) -> None:
    """Find jobs in all states, and requeue, cancel or delete those that are found.

    Without a command the jobs are listed, the newest first. The options of a filter stand before or
    behind the command.
    """
    if ctx.invoked_subcommand:
        return
    jobs, rest = _find(_filter(ctx), limit)
    if as_json:
        click.echo(json.dumps([as_json_value(job) for job in jobs], indent=2))
        return
    for job in jobs:
        line = [job.id, job.status or "gone", short_line(job.queue), local_time(job.moment)]
        echo("  ".join([*line, short_line(job.description)]))
        if job.error:
            echo(f"    {short_line(job.error)}")
    if rest:
        echo(rest)
    elif not jobs:
        echo("no such jobs")


def _find(chosen: Filter, limit: int) -> tuple[list[FoundJob], str]:
    """Up to `limit` jobs, and a line about those that are not listed."""
    jobs: list[FoundJob] = []
    after = ""
    try:
        while True:
            found = job_search.search(chosen, after, limit - len(jobs))
            jobs += found.jobs
            after = found.next
            if len(jobs) >= limit and after:
                return jobs, f"the first {limit:,}; for more there is --limit"
            if not after:
                return jobs, found.error
    except FilterError as error:
        raise click.UsageError(short_line(str(error))) from None


def as_json_value(job: FoundJob) -> dict[str, Any]:
    """A found job as JSON: dates in ISO 8601."""
    values = dataclasses.asdict(job)
    values["state"] = job.state.value if job.state else None
    values["function"] = job.function
    values["progress"] = job.progress.describe() if job.progress else None
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in values.items()
    }


@group.command("requeue")
@filtered
@click.option("--all", "every", is_flag=True, help="All failed and stopped jobs.")
@json_option
@click.pass_context
@recorded("requeue jobs", *CHOICE)
def requeue(ctx: click.Context, every: bool, as_json: bool, **_filters: Any) -> None:
    """Requeue the failed and stopped jobs of a filter."""
    _change(ctx, Action.REQUEUE, every, as_json)


@group.command("cancel")
@filtered
@click.option("--all", "every", is_flag=True, help="All jobs that have not ended.")
@json_option
@click.pass_context
@recorded("cancel jobs", *CHOICE)
def cancel_found(ctx: click.Context, every: bool, as_json: bool, **_filters: Any) -> None:
    """Cancel the jobs of a filter that have not ended."""
    _change(ctx, Action.CANCEL, every, as_json)


@group.command("delete")
@filtered
@click.option("--all", "every", is_flag=True, help="All ended jobs.")
@click.confirmation_option(prompt="Delete them permanently?")
@json_option
@click.pass_context
@recorded("delete jobs", *CHOICE)
def delete(ctx: click.Context, every: bool, as_json: bool, **_filters: Any) -> None:
    """Delete the ended jobs of a filter permanently."""
    _change(ctx, Action.DELETE, every, as_json)


def _change(ctx: click.Context, action: Action, every: bool, as_json: bool) -> None:
    chosen = _filter(ctx)
    if (chosen == Filter()) is not every:
        raise click.UsageError("choose the jobs by options such as --state, or use --all")
    walk = bulk_actions.Walk(connection.client(), action, bulk_actions.until_now(chosen))
    changed = 0
    with click.progressbar(length=walk.count(), label=action.value, file=sys.stderr) as bar:
        for number in walk.changes():
            changed += number
            bar.update(walk.looked - bar.pos)
    if as_json:
        click.echo(json.dumps({"changed": changed}))
    else:
        echo(bulk_actions.describe(action, changed))


# One job


@click.command("show")
@click.argument("job_id")
@json_option
@one_line_errors
def show(job_id: str, as_json: bool) -> None:
    """Print a job: its state, dates, last runs, progress, and its result or traceback."""
    found = job_search.search(Filter(job_id=job_id), limit=1).jobs
    if not found:
        raise NoSuchJobError(f"No such job: {job_id}")
    values = as_json_value(found[0]) | _ending(job_id)
    if as_json:
        click.echo(json.dumps(values, indent=2, default=str))
        return
    for name, value in values.items():
        if value not in (None, "", []) and name not in ("traceback", "attempts"):
            echo(f"{name:12} {short_line(str(value))}")
    for attempt in values["attempts"]:
        echo(f"{'run':12} {short_line(attempt)}")
    for line in values["traceback"].splitlines():
        echo(short_line(line))


def _ending(job_id: str) -> dict[str, Any]:
    """The runs of a job, its result and its traceback, as far as they can be read."""
    job = stats.fetch(connection.client(), job_id)
    empty: dict[str, Any] = {"attempts": [], "result": None, "traceback": ""}
    if job is None:
        return empty
    try:
        runs = [_describe_run(run) for run in attempts.read_attempts(job)]
        result = job.latest_result()
    except redis.ConnectionError:
        raise
    except Exception as error:  # RQ may raise anything for a damaged record
        return empty | {"traceback": f"the result cannot be read: {error}"}
    if result is None:
        return empty | {"attempts": runs}
    value = hiding.hide(config.current().hide, result.return_value)
    text = None if value is None else repr(value)[:RESULT_CHARACTERS]
    return {"attempts": runs, "result": text, "traceback": result.exc_string or ""}


def _describe_run(run: attempts.Attempt) -> str:
    seconds = "" if run.seconds is None else f" after {run.seconds:.3f} s"
    return f"{run.outcome} at {local_time(run.ended)}{seconds} on {run.worker}: {run.error}"


@click.command("stop")
@click.argument("ids", nargs=-1, required=True)
@recorded("stop job", "ids")
def stop(ids: Sequence[str]) -> None:
    """Stop running jobs: their processes are killed at once."""
    each(ids, _stop, "the stop command was sent to the worker")


def fetch_job(job_id: str) -> Job:
    """The job.

    Raises:
        NoSuchJobError: there is no such job.
        Exception: its record cannot be read; RQ may raise anything.
    """
    job = stats.read_job(connection.client(), job_id)
    if isinstance(job, Exception):
        raise job
    return job


def _stop(job_id: str) -> None:
    job = fetch_job(job_id)
    status = job.get_status(refresh=False).value
    if status != "started":
        raise InvalidJobOperation(f"{job_id} does not run; it is {status}")
    send_stop_job_command(job.connection, job.id, serializer=job.serializer)


@click.command("cancel")
@click.argument("ids", nargs=-1, required=True)
@recorded("cancel job", "ids")
def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs that have not ended. The outcome of one that runs is dropped."""
    each(ids, _cancel, "canceled")


def _cancel(job_id: str) -> None:
    job = fetch_job(job_id)
    status = job.get_status(refresh=False).value
    if status not in CANCELABLE:
        raise InvalidJobOperation(f"{job_id} cannot be canceled; it is {status}")
    transitions.cancel(job, status)
