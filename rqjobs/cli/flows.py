"""`rqjobs flows`: list the flows; show, cancel and retry one."""

from __future__ import annotations

import json
from typing import Any

import click

from rqjobs import flows
from rqjobs.cli.activity import recorded
from rqjobs.cli.output import echo, echo_table, local_time, one_line_errors, short_line
from rqjobs.cli.params import limit_option
from rqjobs.flows import listing
from rqjobs.flows.flow import progress_of, status_of


@click.group("flows")
def group() -> None:
    """List the flows; show, cancel and retry one. The page of each job of a flow names the flow."""


@group.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--after", default="", help="Continue behind the part that ended with this word.")
@limit_option
@one_line_errors
def list_flows(as_json: bool, after: str, limit: int) -> None:
    """List the newest flows with their functions. Ended ones are kept as long as their result."""
    found = listing.newest(after, limit)
    if as_json:
        rows = [_as_json(one) for one in found.flows]
        click.echo(json.dumps({"flows": rows, "next": found.next}, indent=2))
        return
    table = [
        [
            one.flow_id,
            one.status.value if one.status else "large",
            one.progress.describe(),
            local_time(one.enqueued),
            short_line(" … ".join(filter(None, [one.first, one.last][: one.jobs]))),
        ]
        for one in found.flows
    ]
    if not table:
        echo("no flows")
        return
    echo_table(["flow", "status", "jobs", "enqueued", "first and last call"], table)
    if found.next:
        echo(f"more: rqjobs flows list --after {found.next}")


def _as_json(one: listing.FlowSummary) -> dict[str, Any]:
    return {
        "id": one.flow_id,
        "status": one.status.value if one.status else None,
        "enqueued": one.enqueued.isoformat(),
        "jobs": one.jobs,
        "first": one.first,
        "last": one.last,
        "progress": one.progress._asdict(),
    }


@group.command()
@click.argument("flow_id")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@limit_option
@one_line_errors
def show(flow_id: str, as_json: bool, limit: int) -> None:
    """Show the progress of a flow, and its jobs in their order."""
    found = flows.fetch(flow_id)
    states = found.states()
    progress = progress_of(states)
    names = listing.descriptions([one.job_id for one in states[:limit]])
    status = status_of(states).value
    if as_json:
        names = listing.descriptions([one.job_id for one in states])
        jobs = [
            {"id": one.job_id, "status": one.status, "call": name}
            for one, name in zip(states, names, strict=True)
        ]
        click.echo(json.dumps({"status": status, **progress._asdict(), "jobs": jobs}, indent=2))
        return
    echo(f"{status}: {progress.describe()}")
    shown = states[:limit]
    pairs = zip(shown, names, strict=True)
    rows = [
        [number, one.job_id, one.status, short_line(name)]
        for number, (one, name) in enumerate(pairs, 1)
    ]
    echo_table(["", "job", "status", "call"], rows)
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
