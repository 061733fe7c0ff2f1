"""`rqjobs alerts`: the alerts that fire, and a test of their channels."""

from __future__ import annotations

import dataclasses
import json
import sys
import time

import click

from rqjobs import alerts, config, connection, texts
from rqjobs.cli.output import echo, echo_table


@click.group("alerts")
def group() -> None:
    """The alerts of RQJOBS_ALERTS."""


@group.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(as_json: bool) -> None:
    """Show the alerts that fire now. Exits with 1 if there are any."""
    found = alerts.firing(connection.client())
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(alert) for alert in found], indent=2))
    elif not found:
        echo("no alert fires")
    else:
        now = time.time()
        rows = [[alert.name, f"{now - alert.since:.0f} s", alert.message] for alert in found]
        echo_table(["alert", "since", "message"], rows)
    sys.exit(1 if found else 0)


@group.command("test")
def send_test() -> None:
    """Call RQJOBS_ALERT_WEBHOOK, and enqueue RQJOBS_ALERT_JOB, with a test event."""
    channels = alerts.channels()
    if not channels:
        raise config.ConfigError(
            "no receiver of alerts is set: set RQJOBS_ALERT_WEBHOOK to an address, or "
            "RQJOBS_ALERT_JOB to a job function"
        )
    code = 0
    for channel in channels:
        try:
            alerts.deliver(channel, alerts.test_event())
            echo(f"{channel}: sent")
        except (
            Exception
        ) as error:  # an HTTP client, or the options of a function, may raise anything
            echo(f"{channel}: {texts.describe_error(error)}", err=True)
            code = 1
    if not config.current().alerts:
        echo("note: RQJOBS_ALERTS is not set, so no alert will fire", err=True)
    sys.exit(code)
