"""The command line. Exit codes: 0 all is well; 1 something was found, or failed; 2 wrong usage or settings."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import click
import redis
import rq.cli.workers

import rqjobs
from rqjobs import catalog, config, connection, dev, stats
from rqjobs.broker import places, recovery
from rqjobs.cli import delayed, demo, failed, schedules
from rqjobs.cli.output import one_line, paragraph, say, table
from rqjobs.jobs import install
from rqjobs.logs import tolerate_any_encoding
from rqjobs.maintenance import audit as maintenance_audit
from rqjobs.maintenance import doctor, sweep


class Group(click.Group):
    """Turns the errors that teach into one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        tolerate_any_encoding()
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            config.current()
            install()
            return super().invoke(ctx)
        except config.ConfigError as error:
            say(f"rqjobs: {error}", err=True)
            sys.exit(2)
        except redis.RedisError as error:
            say(f"rqjobs: {connection.explain(error)}", err=True)
            sys.exit(1)
        except PermissionError as error:
            say(f"rqjobs: {error}", err=True)
            sys.exit(1)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(rqjobs.__version__)
def main() -> None:
    """Background jobs with RQ, none of them lost.

    Start with `rqjobs dev`: it runs everything in this terminal. Settings come from the environment and from .env in
    the working directory; without a REDIS_URL the Redis that `rqjobs dev` runs in this folder is used.
    """


@main.command("dev")
@click.option(
    "-w",
    "--workers",
    default=2,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Worker processes.",
)
def run_dev(workers: int) -> None:
    """Run everything here: Redis (unless REDIS_URL is set), the web app, and workers with the scheduler.

    Prints the address and how to log in. Workers and web restart when a job module changes. Ctrl-C stops everything.
    """
    dev.run(workers, paragraph)


def _worker_options() -> list[click.Parameter]:
    """Those of `rq worker`, less what we fill in."""
    filled = {
        "url",
        "config",
        "worker_class",
        "job_class",
        "queue_class",
        "connection_class",
        "path",
        "serializer",
        "with_scheduler",
    }
    ours = click.Option(
        ["--no-scheduler"], is_flag=True, help="Leave delayed and repeating jobs to other workers."
    )
    return [ours, *(option for option in rq.cli.workers.worker.params if option.name not in filled)]


@main.command("worker", params=_worker_options())
@click.pass_context
def run_worker(
    ctx: click.Context, queues: Sequence[str], no_scheduler: bool, **options: Any
) -> None:
    """Run one worker, with the scheduler, on QUEUES (default: RQJOBS_QUEUES, in this order).

    The same as `rq worker --worker-class rqjobs.Worker --with-scheduler`, with RQ's own options, but it reads .env.
    At its start it puts back the jobs of workers that died.
    """
    catalog.must_load()
    catalog.flask_app()
    connection.client()  # here its errors are one line
    ctx.invoke(
        rq.cli.workers.worker,
        queues=queues or config.current().queues,
        url=connection.url(),
        connection_class="rqjobs.connection.Client",
        worker_class="rqjobs.Worker",
        with_scheduler=not no_scheduler,
        **options,
    )


@main.command()
def recover() -> None:
    """Put the jobs of dead workers back at the front of their queues, now.

    Live workers do the same every few seconds. A job in no place at all (a stray) is put back only when it was seen
    twice, half a minute apart.
    """
    result = sweep.sweep(connection.client(), force=True)
    assert result is not None
    for job_id in result.requeued:
        say(f"requeued  {job_id}")
    for job_id in result.buried:
        say(f"failed    {job_id}  (its process died {recovery.MAX_CRASHES} times)")
    say(f"{len(result.requeued)} requeued, {len(result.buried)} failed")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def audit(as_json: bool) -> None:
    """Count the jobs in every place, and name each one that is lost or in two places. Exits 1 if there is one."""
    found = maintenance_audit.audit(connection.client())
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        table(
            ["queue", *places.PLACES],
            [[queue, *counts.values()] for queue, counts in found.places.items()],
        )
        for remark in found.remarks:
            say(f"note: {remark}")
        for job_id, reason in found.breaches.items():
            say(f"WRONG: {job_id}: {reason}")
        say(
            "clean"
            if not found.breaches
            else f"{len(found.breaches)} jobs are not where they should be"
        )
    sys.exit(1 if found.breaches else 0)


@main.command("stats")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def show_stats(as_json: bool) -> None:
    """Show every queue and every worker as they are now."""
    found = stats.snapshot(connection.client())
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
        return
    if found.suspended:
        say(stats.SUSPENDED)
    names = [field.name for field in dataclasses.fields(stats.QueueStats)]
    rows = [
        [
            ("" if value is None else f"{value:.0f} s" if isinstance(value, float) else value)
            for value in dataclasses.astuple(queue)
        ]
        for queue in found.queues
    ]
    table(names, rows)
    click.echo()
    table(
        ["worker", "state", "queues", "job", "ok", "failed"],
        [
            [
                w.name[:12],
                w.state if w.alive else "dead",
                ",".join(w.queues),
                w.job_id or "",
                w.succeeded,
                w.failed,
            ]
            for w in found.workers
        ],
    )


@main.command("doctor")
def run_doctor() -> None:
    """Check everything that could lose a job or keep one waiting. Exits 1 if a job would be lost."""
    worst = 0
    for finding in doctor.examine():
        color = {"ok": "green", "note": "yellow", "LOSS": "red"}[finding.level]
        click.echo(f"{click.style(finding.level.ljust(4), fg=color)}  {one_line(finding.message)}")
        worst = max(worst, finding.level == "LOSS")
    sys.exit(worst)


for command in (failed.group, schedules.group, delayed.group, demo.command):
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="rqjobs")
