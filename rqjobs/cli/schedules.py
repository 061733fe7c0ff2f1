"""`rqjobs schedules`: list, show and change schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from rqjobs import catalog, conversion, schedules
from rqjobs.cli.activity import recorded
from rqjobs.cli.output import (
    each,
    echo,
    echo_table,
    local_time,
    one_line_errors,
    short_line,
)
from rqjobs.cli.params import Duration
from rqjobs.schedules.describe import describe, describe_missed
from rqjobs.schedules.rules import Rule, cron, every

RULE_OPTIONS = ("missed", "overlap", "jitter", "start", "end", "times")
TEMPLATE_OPTIONS = ("queue", "timeout")


@click.group("schedules", invoke_without_command=True)
@click.pass_context
def group(ctx: click.Context) -> None:
    """List, show, add, edit, pause, resume, run and remove schedules."""
    if ctx.invoked_subcommand:
        return
    found = schedules.all()
    if not found:
        echo(
            "no schedules; declare one with @every or @cron in a jobs module, or: "
            "rqjobs schedules add --help"
        )
        return
    rows = [
        [
            schedule.name,
            schedule.state,
            local_time(schedule.due),
            describe(schedule.rule),
            short_line(schedule.description),
        ]
        for schedule in found
    ]
    echo_table(["name", "state", "next", "rule", "call"], rows)


@group.command()
@click.argument("name")
@one_line_errors
def show(name: str) -> None:
    """Print a schedule, its next five times and its last ten runs."""
    schedule = schedules.get(name)
    source = "declared in the code" if schedule.source == "code" else "added"
    echo(f"{schedule.name}  ({schedule.state}, {source}, revision {schedule.revision})")
    echo(describe(schedule.rule))
    echo(f"{short_line(schedule.description)}  on {schedule.queue}")
    echo(
        f"{schedule.made} runs enqueued, {describe_missed(schedule.missed)} missed, "
        f"{schedule.overlapped} skipped because the previous run had not ended"
    )
    echo("")
    for tick in schedule.upcoming(5):
        echo(f"next  {tick:%Y-%m-%d %H:%M:%S %Z}")
    rows = [
        [
            local_time(run.tick) if run.tick else "now",
            local_time(run.enqueued),
            run.outcome,
            local_time(run.ended),
            run.job_id,
        ]
        for run in schedules.runs(name)
    ]
    echo_table(["run", "enqueued", "outcome", "ended", "job"], rows)


def _schedule_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a rule and of its jobs to `command`."""
    options = [
        click.option(
            "--every", "seconds", type=Duration(), help="Time between runs: 90s, 5m, 1h30m, 2d."
        ),
        click.option("--cron", "expression", help="Cron expression, in quotes: '0 6 * * mon-fri'."),
        click.option(
            "--tz", help="Time zone of the cron expression, like Europe/Berlin.  [default: UTC]"
        ),
        click.option(
            "--missed",
            type=click.Choice(["once", "all", "skip"]),
            help="How to catch up on missed runs.",
        ),
        click.option(
            "--overlap/--no-overlap",
            default=None,
            help="Whether to run while the previous run has not ended.",
        ),
        click.option("--jitter", type=Duration(), help="Maximum random delay of a run."),
        click.option(
            "--start", type=click.DateTime(), help="First possible run, in this machine's time."
        ),
        click.option("--end", type=click.DateTime(), help="Last possible run."),
        click.option("--times", type=int, help="Stop after this many runs."),
        click.option("--queue", help="Queue of the jobs.  [default: the function's]"),
        click.option("--timeout", type=Duration(), help="Time limit of each job."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _given(options: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The options that the user has given."""
    return {name: options[name] for name in names if options[name] is not None}


def _new_rule(options: dict[str, Any]) -> Rule:
    return _make_rule(
        options["seconds"], options["expression"], options["tz"], _given(options, RULE_OPTIONS)
    )


def _changed_rule(options: dict[str, Any], old: Rule) -> Rule | None:
    """`old` with the given options changed; None if nothing changes."""
    seconds, expression = options["seconds"], options["expression"]
    old_options = {name: getattr(old, name) for name in RULE_OPTIONS}
    new_options = old_options | _given(options, RULE_OPTIONS)
    if seconds is None and expression is None:
        if options["tz"] is None and new_options == old_options:
            return None
        if old.expression:
            expression = old.expression
        else:
            seconds = old.seconds
    return _make_rule(seconds, expression, options["tz"] or old.tz, new_options)


def _make_rule(
    seconds: float | None, expression: str | None, tz: str | None, options: dict[str, Any]
) -> Rule:
    if seconds is not None and expression is not None:
        raise click.UsageError("a schedule has one rule: --every or --cron")
    if expression is not None:
        return cron(expression, tz=tz or "UTC", **options)
    if seconds is None:
        raise click.UsageError("give a rule: --every 5m, or --cron '0 6 * * mon-fri'")
    return every(seconds=seconds, **options)


def _convert_arguments(
    function: Callable[..., Any], texts: Sequence[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and named arguments for `function`, converted to its annotations."""
    args = []
    kwargs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if equals and name.isidentifier():
            kwargs[name] = value
        else:
            args.append(text)
    return conversion.read_call(function, args, kwargs)


@group.command()
@click.argument("name")
@click.argument("function")
@click.argument("arguments", nargs=-1)
@click.option("--replace", is_flag=True, help="Replace a schedule of this name.")
@_schedule_options
@recorded("add schedule", "name")
@one_line_errors
def add(name: str, function: str, arguments: Sequence[str], replace: bool, **options: Any) -> None:
    """Add the schedule NAME.

    It calls FUNCTION ("module.name") with ARGUMENTS. Arguments are converted to the function's
    annotations: JSON where it fits, else text. name=value passes an argument by name.

    \b
    rqjobs schedules add greet-ada jobs.greet Ada times=2 --cron "0 6 * * mon-fri"
    """
    rule = _new_rule(options)
    args, kwargs = _convert_arguments(catalog.current().lookup(function), arguments)
    schedule = schedules.add(
        name,
        rule,
        function,
        args=args,
        kwargs=kwargs,
        queue=options["queue"],
        job_timeout=options["timeout"],
        replace=replace,
    )
    echo(f"{schedule.name}: {describe(schedule.rule)}; next at {local_time(schedule.due)}")


@group.command()
@click.argument("name")
@click.argument("arguments", nargs=-1)
@_schedule_options
@recorded("edit schedule", "name")
@one_line_errors
def edit(name: str, arguments: Sequence[str], **options: Any) -> None:
    """Change the schedule NAME.

    Options that are not given keep their values. ARGUMENTS replace the old arguments.
    """
    old = schedules.get(name)
    changes = _given(options, TEMPLATE_OPTIONS)
    rule = _changed_rule(options, old.rule)
    if arguments:
        function = catalog.current().lookup(old.function)
        changes["args"], changes["kwargs"] = _convert_arguments(function, arguments)
    new = schedules.edit(name, rule=rule, **changes)
    echo(f"{new.name}: {describe(new.rule)}; {new.state}, next at {local_time(new.due)}")


@group.command()
@click.argument("names", nargs=-1, required=True)
@recorded("pause schedule", "names")
def pause(names: Sequence[str]) -> None:
    """Pause schedules."""
    each(names, schedules.pause, "paused")


@group.command()
@click.argument("names", nargs=-1, required=True)
@recorded("resume schedule", "names")
def resume(names: Sequence[str]) -> None:
    """Resume paused schedules. Runs in the pause are not made up."""
    each(names, schedules.resume, "active")


@group.command()
@click.argument("names", nargs=-1, required=True)
@recorded("run schedule", "names")
def run(names: Sequence[str]) -> None:
    """Run schedules now, in addition to their rules."""
    each(names, lambda name: schedules.run_now(name).id, "enqueued as {}")


@group.command()
@click.argument("names", nargs=-1, required=True)
@recorded("remove schedule", "names")
def remove(names: Sequence[str]) -> None:
    """Remove schedules and their history. Jobs that are enqueued stay."""
    each(names, schedules.remove, "removed")
