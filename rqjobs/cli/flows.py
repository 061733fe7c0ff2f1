"""`rqjobs flows`: show, cancel and retry a flow."""

from __future__ import annotations

import json

import click

from rqjobs import flows
from rqjobs.cli.activity import recorded
from rqjobs.cli.output import echo, echo_table, one_line_errors
from rqjobs.cli.params import limit_option
from rqjobs.flows.flow import progress_of, status_of


@click.group("flows")
def group() -> None:
    """Show, cancel and retry a flow. The page of each of its jobs names the flow."""


@group.command()
@click.argument("flow_id")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@limit_option
@one_line_errors
def show(flow_id: str, as_json: bool, limit: int) -> None:
    """Show the progress of a flow, and its jobs in their order."""
    states = flows.fetch(flow_id).states()
    progress = progress_of(states)
    status = status_of(states).value
    if as_json:
        jobs = [{"id": one.job_id, "status": one.status} for one in states]
        click.echo(json.dumps({"status": status, **progress._asdict(), "jobs": jobs}, indent=2))
        return
    echo(f"{status}: {progress.describe()}")
    shown = states[:limit]
    rows = [[number, one.job_id, one.status] for number, one in enumerate(shown, 1)]
    echo_table(["", "job", "status"], rows)
    if len(shown) < len(states):
        echo(f"{len(states) - len(shown)} more")


@group.command()
@click.argument("flow_id")
@recorded("cancel flow", "flow_id")
@one_line_errors
def cancel(flow_id: str) -> None:
    """Cancel all jobs of a flow that have not ended."""
    echo(f"{flows.fetch(flow_id).cancel()} canceled")


@group.command()
@click.argument("flow_id")
@recorded("retry flow", "flow_id")
@one_line_errors
def retry(flow_id: str) -> None:
    """Requeue the failed and the stopped jobs of a flow. The jobs behind them follow."""
    echo(f"{flows.fetch(flow_id).retry()} requeued")
