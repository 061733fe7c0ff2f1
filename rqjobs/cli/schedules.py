"""`rqjobs schedules`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from rqjobs import catalog, conversion
from rqjobs import schedules as api
from rqjobs.cli.output import each, local_time, one_line_errors, plain, say, table
from rqjobs.cli.params import Duration
from rqjobs.schedules.describe import describe, describe_missed
from rqjobs.schedules.rules import Rule, cron, every


@click.group("schedules", invoke_without_command=True)
@click.pass_context
def group(ctx: click.Context) -> None:
    """List the repeating jobs; or show, add, edit, pause, resume, run and remove them."""
    if ctx.invoked_subcommand:
        return
    found = api.all()
    if not found:
        say(
            "no schedules; declare one with @every or @cron in a jobs module, or: rqjobs schedules add --help"
        )
        return
    table(
        ["name", "state", "next", "rule", "call"],
        [
            [one.name, one.state, local_time(one.due), describe(one.rule), plain(one.description)]
            for one in found
        ],
    )


@group.command()
@click.argument("name")
@one_line_errors
def show(name: str) -> None:
    """Print one schedule: its rule, its next five times, and its last ten runs with their outcomes."""
    one = api.get(name)
    say(
        f"{one.name}  ({one.state}, {'declared in the code' if one.source == 'code' else 'added'}, revision "
        f"{one.revision})"
    )
    say(describe(one.rule))
    say(f"{plain(one.description)}  on {one.queue}")
    say(
        f"{one.made} ticks made a job, {describe_missed(one.missed)} were missed, {one.overlapped} "
        f"skipped for an overlap"
    )
    say("")
    for tick in one.upcoming(5):
        say(f"next  {tick:%Y-%m-%d %H:%M:%S %Z}")
    table(
        ["run", "enqueued", "outcome", "ended", "job"],
        [
            [
                local_time(run.tick) if run.tick else "now",
                local_time(run.enqueued),
                run.outcome,
                local_time(run.ended),
                run.job_id,
            ]
            for run in api.runs(name)
        ],
    )


def _rule_options(command: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.option(
            "--every",
            "seconds",
            type=Duration(),
            help="So long between two ticks: 90s, 5m, 1h30m, 2d.",
        ),
        click.option("--cron", "line", help="A cron line, in quotes: '0 6 * * mon-fri'."),
        click.option(
            "--tz", help="Time zone of the cron line, like Europe/Berlin.  [default: UTC]"
        ),
        click.option(
            "--missed",
            type=click.Choice(["once", "all", "skip"]),
            help="What to do with missed ticks.",
        ),
        click.option(
            "--overlap/--no-overlap",
            default=None,
            help="Run although the job before has not ended.",
        ),
        click.option("--jitter", type=Duration(), help="By how much a job may come later."),
        click.option(
            "--start", type=click.DateTime(), help="No tick before, in this machine's time."
        ),
        click.option("--end", type=click.DateTime(), help="No tick after."),
        click.option("--times", type=int, help="End after so many jobs."),
        click.option("--queue", help="Instead of the function's own."),
        click.option("--timeout", type=Duration(), help="Time limit of each job."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _rule(given: dict[str, Any], old: Rule | None = None) -> Rule | None:
    """The rule that the options say, on top of an old one."""
    terms = {
        name: given[name]
        for name in ("missed", "overlap", "jitter", "start", "end", "times")
        if given[name] is not None
    }
    seconds, line, tz = given["seconds"], given["line"], given["tz"]
    if seconds is not None and line is not None:
        raise click.UsageError("a schedule has one rule: --every or --cron")
    if old is not None:
        kept = {
            name: getattr(old, name)
            for name in ("missed", "overlap", "jitter", "start", "end", "times")
        }
        terms = kept | terms
        if seconds is None and line is None and tz is None and terms == kept:
            return None
        if seconds is None and line is None:
            line, seconds = old.line or None, old.seconds
        tz = tz or old.tz
    if line is not None:
        return cron(line, tz=tz or "UTC", **terms)
    if seconds is None:
        raise click.UsageError("say when: --every 5m, or --cron '0 6 * * mon-fri'")
    return every(seconds=seconds, **terms)


def _arguments(
    function: Callable[..., Any], words: Sequence[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the named arguments for `function` that the words mean."""
    args, kwargs = [], {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name.isidentifier():
            kwargs[name] = value
        else:
            args.append(word)
    return conversion.call(function, args, kwargs)


def _options(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("queue", "timeout") if given[name] is not None}


@group.command()
@click.argument("name")
@click.argument("function")
@click.argument("arguments", nargs=-1)
@click.option("--replace", is_flag=True, help="Change the one of this name, if there is one.")
@_rule_options
@one_line_errors
def add(name: str, function: str, arguments: Sequence[str], replace: bool, **given: Any) -> None:
    """Add the schedule NAME that calls FUNCTION ("module.name") with ARGUMENTS.

    An argument becomes what the function's annotation asks for: JSON if it reads as such and fits, else a text.
    name=value passes it by name. For example:
    rqjobs schedules add greet-ada jobs.greet Ada times=2 --cron "0 6 * * mon-fri" --tz Europe/Berlin
    """
    rule = _rule(given)
    assert rule
    args, kwargs = _arguments(catalog.current().lookup(function), arguments)
    options = {"queue": given["queue"], "job_timeout": given["timeout"], "replace": replace}
    one = api.add(name, rule, function, args=args, kwargs=kwargs, **options)
    say(f"{one.name}: {describe(one.rule)}; next at {local_time(one.due)}")


@group.command()
@click.argument("name")
@click.argument("arguments", nargs=-1)
@_rule_options
@one_line_errors
def edit(name: str, arguments: Sequence[str], **given: Any) -> None:
    """Change the schedule NAME: what is not given stays. ARGUMENTS take the place of the old ones."""
    found = api.get(name)
    rule, change = _rule(given, found.rule), _options(given)
    if arguments:
        change["args"], change["kwargs"] = _arguments(
            catalog.current().lookup(found.function), arguments
        )
    one = api.edit(name, rule=rule, **change)
    say(f"{one.name}: {describe(one.rule)}; {one.state}, next at {local_time(one.due)}")


@group.command()
@click.argument("names", nargs=-1, required=True)
def pause(names: Sequence[str]) -> None:
    """Let schedules rest."""
    each(names, api.pause, "paused")


@group.command()
@click.argument("names", nargs=-1, required=True)
def resume(names: Sequence[str]) -> None:
    """Let paused schedules go on, from now."""
    each(names, api.resume, "active")


@group.command()
@click.argument("names", nargs=-1, required=True)
def run(names: Sequence[str]) -> None:
    """Run schedules now, beside their ticks."""
    each(names, lambda name: api.run_now(name).id, "enqueued as {}")


@group.command()
@click.argument("names", nargs=-1, required=True)
def remove(names: Sequence[str]) -> None:
    """Remove schedules with their history; the jobs that they made stay."""
    each(names, api.remove, "removed")
