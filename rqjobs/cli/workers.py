"""`rqjobs workers`: list the workers, quiet, resume and stop them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence

import click

from rqjobs import connection, stats, worker_commands
from rqjobs.cli.activity import recorded
from rqjobs.cli.output import each, echo_table, one_line_errors
from rqjobs.stats import WorkerStats

WORKER_NAMES = click.argument("names", nargs=-1)
ALL = click.option("--all", "all_of_them", is_flag=True, help="Every live worker.")
WORKER_HEAD = ("worker", "state", "host", "pid", "queues", "job", "done", "failed", "rqjobs")


@click.group("workers", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def group(ctx: click.Context, as_json: bool) -> None:
    """List the workers; quiet, resume and stop them.

    A quiet worker finishes its jobs and takes no more.
    """
    if ctx.invoked_subcommand:
        return
    found = _all()
    if as_json:
        rows = [dataclasses.asdict(one) | {"state": one.shown_state} for one in found]
        click.echo(json.dumps(rows, indent=2))
        return
    echo_table(WORKER_HEAD, [_row(worker) for worker in found])


def _all() -> list[WorkerStats]:
    return stats.snapshot(connection.client(), lambda names: []).workers


def _row(worker: WorkerStats) -> Sequence[object]:
    return (
        worker.name,
        worker.shown_state,
        worker.host,
        worker.pid,
        ",".join(worker.queues),
        worker.job_id or "",
        worker.succeeded,
        worker.failed,
        worker.rqjobs_version,
    )


@group.command("quiet")
@WORKER_NAMES
@ALL
@recorded("quiet worker", "names", "all_of_them")
@one_line_errors
def quiet(names: Sequence[str], all_of_them: bool) -> None:
    """Let workers finish their jobs and take no more, until they are resumed or end."""
    _send(names, all_of_them, worker_commands.quiet, "is quiet now")


@group.command("resume")
@WORKER_NAMES
@ALL
@recorded("resume worker", "names", "all_of_them")
@one_line_errors
def resume(names: Sequence[str], all_of_them: bool) -> None:
    """Let quiet workers take jobs again."""
    _send(names, all_of_them, worker_commands.resume, "takes jobs again")


@group.command("stop")
@WORKER_NAMES
@ALL
@recorded("stop worker", "names", "all_of_them")
@one_line_errors
def stop(names: Sequence[str], all_of_them: bool) -> None:
    """End workers after their current job, or at their shutdown timeout."""
    _send(names, all_of_them, worker_commands.stop, "ends")


def _send(
    names: Sequence[str], all_of_them: bool, command: Callable[[str], bool], done: str
) -> None:
    if all_of_them:
        names = [worker.name for worker in _all() if worker.alive]
    elif not names:
        raise click.UsageError("name a worker, or --all; rqjobs workers lists them")

    def send(name: str) -> None:
        if not command(name):
            raise ValueError(f"{name}: no worker of this name listens; rqjobs workers lists them")

    each(names, send, done)
