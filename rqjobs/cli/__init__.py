"""The command line.

Exit codes: 0 success; 1 an error, or a problem was found; 2 wrong usage or settings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click
import redis
import rq.cli.workers

import rqjobs
from rqjobs import alert_rules, catalog, checks, config, connection, dev, rq_patches, stats, texts
from rqjobs.broker import places, recovery
from rqjobs.cli import (
    alerts,
    delayed,
    demo,
    failed,
    flows,
    jobs,
    logs,
    outbox,
    pauses,
    schedules,
    top,
    workers,
)
from rqjobs.cli.activity import recorded
from rqjobs.cli.output import echo, echo_table, echo_text, one_line
from rqjobs.logs import tolerate_any_encoding
from rqjobs.maintenance import audit as maintenance_audit
from rqjobs.maintenance import doctor, sweep

EXCEEDED_CODE = 2  # of `stats --check`
RUNNING_MAX_JOBS = 50  # whose progress `rqjobs stats` shows
DEV_PROGRAM = "rqjobs.dev"  # in the meta of a command's context: what `dev` runs
# Commands that use no settings of RQJOBS_FLASK_APP's config, or that load the app themselves.
WITHOUT_APP = ("dev", "demo", "worker", "doctor")


class Group(click.Group):
    """A command group that prints errors of settings and of Redis as one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        tolerate_any_encoding()
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with prepared_process(_settings_error_code(ctx)):
            return super().invoke(ctx)


def _settings_error_code(ctx: click.Context) -> int:
    """2, but 1 for `stats --check`, whose 2 says that a limit is exceeded."""
    words = [*ctx._protected_args, *ctx.args]
    is_check = words[:1] == ["stats"] and any(word.startswith("--check") for word in words)
    return 1 if is_check else 2


@contextlib.contextmanager
def prepared_process(settings_error_code: int = 2) -> Iterator[None]:
    """Prepare this process for a command; print an error of settings or of Redis, and exit."""
    try:
        config.current()
        rq_patches.install()
        yield
    except config.ConfigError as error:
        echo(f"rqjobs: {error}", err=True)
        sys.exit(settings_error_code)
    except redis.RedisError as error:
        echo(f"rqjobs: {connection.explain(error)}", err=True)
        sys.exit(1)
    except PermissionError as error:
        echo(f"rqjobs: {error}", err=True)
        sys.exit(1)


def _load_flask_app() -> None:
    """Load the app, whose config may have settings. Without it, commands still help an operator."""
    try:
        catalog.flask_app()
    except config.ConfigError as error:
        echo(f"rqjobs: {error}; the settings of its config are missing here", err=True)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(rqjobs.__version__)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Background jobs on RQ that survive crashes.

    Start with `rqjobs dev`: it runs everything in this terminal. Settings are read from the
    environment and from .env in the working directory. Without REDIS_URL, commands use the Redis of
    the `rqjobs dev` that runs in this folder.
    """
    if ctx.invoked_subcommand not in WITHOUT_APP:
        _load_flask_app()


@main.command("dev")
@click.option(
    "-w",
    "--workers",
    default=2,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Number of worker processes.",
)
def run_dev(workers: int) -> None:
    """Run Redis, the web app and workers with the scheduler.

    An embedded Redis is started unless REDIS_URL is set. The address and the login are printed.
    Workers and web app restart when a Python file or .env changes. Ctrl-C stops everything.
    """
    program = click.get_current_context().meta.get(DEV_PROGRAM, dev.RQJOBS)
    if program is None:
        raise config.ConfigError(
            "the processes of flask jobs dev cannot find this app; start it by its name, as in "
            "flask --app shop jobs dev"
        )
    dev.run(workers, echo_text, program)


def _worker_options() -> list[click.Parameter]:
    """The options of `rq worker`, without those that `rqjobs worker` sets."""
    preset = {
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
    no_scheduler = click.Option(
        ["--no-scheduler"], is_flag=True, help="Do not run delayed jobs and schedules."
    )
    rq_options = [option for option in rq.cli.workers.worker.params if option.name not in preset]
    return [no_scheduler, *rq_options]


@main.command("worker", params=_worker_options())
@click.pass_context
def run_worker(
    ctx: click.Context, queues: Sequence[str], no_scheduler: bool, **options: Any
) -> None:
    """Run one worker with the scheduler on QUEUES. The default is RQJOBS_QUEUES, in this order.

    Same as `rq worker --worker-class rqjobs.Worker --with-scheduler`, with RQ's options, but it
    reads .env. At its start the worker requeues the jobs of dead workers.
    """
    catalog.must_load()
    connection.client()  # raises ConfigError here, which is printed as one line
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
@recorded("recover jobs of dead workers")
def recover() -> None:
    """Requeue the jobs of dead workers now.

    They return to the front of their queues. Live workers do this every few seconds. A stray (a job
    that is in no place) is requeued only if it is found twice, half a minute apart.
    """
    result = sweep.sweep(connection.client(), force=True)
    assert result is not None
    for job_id in result.requeued:
        echo(f"requeued  {job_id}")
    for job_id in result.failed:
        echo(f"failed    {job_id}  (its process died {recovery.MAX_CRASHES} times)")
    echo(f"{len(result.requeued)} requeued, {len(result.failed)} failed")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit(as_json: bool) -> None:
    """Count the jobs in every place, and list lost ones.

    A job that is in two places is listed too. Exits with 1 if there are such jobs.
    """
    result = maintenance_audit.audit(connection.client())
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(result), indent=2))
    else:
        rows = [[queue, *counts.values()] for queue, counts in result.places.items()]
        echo_table(["queue", *places.PLACES], rows)
        for remark in result.remarks:
            echo(f"note: {remark}")
        for job_id, reason in result.breaches.items():
            echo(f"WRONG: {job_id}: {reason}")
        if result.breaches:
            echo(f"{texts.jobs(len(result.breaches), 'is', 'are')} not in the right place")
        else:
            echo("clean")
    sys.exit(1 if result.breaches else 0)


@main.command("stats")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--check", metavar="LIMITS", help="For example oldest=60s,failed=10,workers=1.")
def show_stats(as_json: bool, check: str | None) -> None:
    """Show the current state of every queue and every worker.

    With --check nothing but the limits that are exceeded is printed, each in one line. The command
    exits with 2 then, with 0 if all is well, and with 1 after an error. Limits are oldest (of the
    first job of each queue), depth (of each queue), failed (jobs of all queues) and workers (at
    least so many); depth:high=100 is for the queue high alone.
    """
    if check is not None:
        _check_limits(check, as_json)
        return
    snapshot = stats.snapshot(connection.client())
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(snapshot), indent=2))
        return
    if snapshot.suspended:
        echo(stats.SUSPENDED)
    for pause in snapshot.paused:
        echo(pause.describe())
    echo_table(
        [field.name for field in dataclasses.fields(stats.QueueStats)],
        [[_cell(value) for value in dataclasses.astuple(queue)] for queue in snapshot.queues],
    )
    click.echo()
    if waiting := stats.waiting_keys(connection.client()):
        rows = [[one.key, one.running, one.waiting] for one in waiting]
        echo_table(["limit", "running", "waiting"], rows)
        click.echo()
    _echo_progress()
    rows = [
        [
            worker.name[:12],
            worker.shown_state,
            ",".join(worker.queues),
            worker.job_id or "",
            worker.succeeded,
            worker.failed,
        ]
        for worker in snapshot.workers
    ]
    echo_table(["worker", "state", "queues", "job", "ok", "failed"], rows)


def _check_limits(check: str, as_json: bool) -> None:
    try:
        rules = alert_rules.parse_checks(check)
    except ValueError as error:
        raise click.ClickException(f"--check {error}") from None
    found = checks.exceeded(rules, stats.snapshot(connection.client()))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        for line in found:
            echo(line)
    sys.exit(EXCEEDED_CODE if found else 0)


def _echo_progress() -> None:
    """The running jobs that say how far they are."""
    running = stats.recent(connection.client(), "running", RUNNING_MAX_JOBS)
    found = [(job, progress) for job in running if (progress := stats.listed_progress(job))]
    if found:
        rows = [[job.id, job.description, progress.describe()] for job, progress in found]
        echo_table(["running job", "description", "progress"], rows)
        click.echo()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f} s"
    return value


@main.command("doctor")
def run_doctor() -> None:
    """Check for conditions that lose or delay jobs. Exits with 1 if jobs would be lost."""
    colors = {
        doctor.Level.OK: "green",
        doctor.Level.NOTE: "yellow",
        doctor.Level.LOSS: "red",
    }
    code = 0
    for finding in doctor.examine():
        level = click.style(finding.level.value.ljust(4), fg=colors[finding.level])
        click.echo(f"{level}  {one_line(finding.message)}")
        if finding.level is doctor.Level.LOSS:
            code = 1
    sys.exit(code)


COMMANDS: tuple[click.Command, ...] = (
    jobs.group,
    jobs.show,
    jobs.stop,
    jobs.cancel,
    failed.group,
    schedules.group,
    delayed.group,
    logs.show,
    flows.group,
    pauses.pause,
    pauses.resume,
    outbox.group,
    alerts.group,
    demo.command,
    top.top,
    workers.group,
)
for command in COMMANDS:
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="rqjobs")
