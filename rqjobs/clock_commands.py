"""`rqjobs schedules` and `rqjobs delayed`: what the clock does, seen and changed from the command line."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click
from rq.exceptions import InvalidJobOperation, NoSuchJobError

from rqjobs import catalog, conversion
from rqjobs import delayed as delayed_jobs
from rqjobs import schedules as api
from rqjobs.schedules.cron import ScheduleError
from rqjobs.schedules.rules import Rule, cron, every
from rqjobs.terminal import plain, say, table

UNITS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
TEACHING = (ScheduleError, NoSuchJobError, InvalidJobOperation, ValueError, TypeError)


class Span(click.ParamType):
    """A length of time, in seconds."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, int | float):
            return value
        if not re.fullmatch(r"([0-9]{1,15}[wdhms])+", value):
            self.fail(
                f"{value!r} is no length of time; write it like 90s, 5m, 1h30m or 2d", param, ctx
            )
        return sum(
            int(number) * UNITS[unit] for number, unit in re.findall(r"([0-9]+)([wdhms])", value)
        )


def _taught(command: Callable[..., None]) -> Callable[..., None]:
    """Make the errors that teach one line and exit code 1."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except TEACHING as error:
            raise click.ClickException(plain(str(error))) from None

    return run


def _each(names: Sequence[str], act: Callable[[str], Any], done: str) -> None:
    """Do `act` to each; exits 1 if one could not be done."""
    wrong = False
    for name in names:
        try:
            found = act(name)
            say(f"{name}: {done.format(found)}")
        except TEACHING as error:
            say(plain(str(error)), err=True)
            wrong = True
    sys.exit(wrong)


@click.group(invoke_without_command=True)
@click.pass_context
def schedules(ctx: click.Context) -> None:
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
            [one.name, one.state, _moment(one.due), one.sentence, plain(one.description)]
            for one in found
        ],
    )


@schedules.command()
@click.argument("name")
@_taught
def show(name: str) -> None:
    """Print one schedule: its rule, its next five times, and its last ten runs with their outcomes."""
    one = api.get(name)
    say(
        f"{one.name}  ({one.state}, {'declared in the code' if one.source == 'code' else 'added'}, revision "
        f"{one.revision})"
    )
    say(one.sentence)
    say(f"{plain(one.description)}  on {one.queue}")
    say(
        f"{one.made} ticks made a job, {one.missed} were missed, {one.overlapped} skipped for an overlap"
    )
    say("")
    for tick in one.upcoming(5):
        say(f"next  {tick:%Y-%m-%d %H:%M:%S %Z}")
    table(
        ["run", "enqueued", "outcome", "ended", "job"],
        [
            [
                _moment(run.tick) if run.tick else "now",
                _moment(run.enqueued),
                run.outcome,
                _moment(run.ended),
                run.job_id,
            ]
            for run in api.runs(name)
        ],
    )


def _rule_options(command: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.option(
            "--every", "seconds", type=Span(), help="So long between two ticks: 90s, 5m, 1h30m, 2d."
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
        click.option("--jitter", type=Span(), help="By how much a job may come later."),
        click.option(
            "--start", type=click.DateTime(), help="No tick before, in this machine's time."
        ),
        click.option("--end", type=click.DateTime(), help="No tick after."),
        click.option("--times", type=int, help="End after so many jobs."),
        click.option("--queue", help="Instead of the function's own."),
        click.option("--timeout", type=Span(), help="Time limit of each job."),
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


@schedules.command()
@click.argument("name")
@click.argument("function")
@click.argument("arguments", nargs=-1)
@click.option("--replace", is_flag=True, help="Change the one of this name, if there is one.")
@_rule_options
@_taught
def add(name: str, function: str, arguments: Sequence[str], replace: bool, **given: Any) -> None:
    """Add the schedule NAME that calls FUNCTION ("module.name") with ARGUMENTS.

    An argument becomes what the function's annotation asks for: JSON if it reads as such and fits, else a text.
    name=value passes it by name. For example:
    rqjobs schedules add greet-ada jobs.greet Ada times=2 --cron "0 6 * * mon-fri" --tz Europe/Berlin
    """
    rule = _rule(given)
    assert rule
    args, kwargs = _arguments(catalog.current().lookup(function), arguments)
    one = api.add(name, rule, function, args, kwargs, replace=replace, **_options(given))
    say(f"{one.name}: {one.sentence}; next at {_moment(one.due)}")


@schedules.command()
@click.argument("name")
@click.argument("arguments", nargs=-1)
@_rule_options
@_taught
def edit(name: str, arguments: Sequence[str], **given: Any) -> None:
    """Change the schedule NAME: what is not given stays. ARGUMENTS take the place of the old ones."""
    found = api.get(name)
    rule, change = _rule(given, found.rule), _options(given)
    if arguments:
        change["args"], change["kwargs"] = _arguments(
            catalog.current().lookup(found.function), arguments
        )
    one = api.edit(name, rule=rule, **change)
    say(f"{one.name}: {one.sentence}; {one.state}, next at {_moment(one.due)}")


@schedules.command()
@click.argument("names", nargs=-1, required=True)
def pause(names: Sequence[str]) -> None:
    """Let schedules rest."""
    _each(names, api.pause, "paused")


@schedules.command()
@click.argument("names", nargs=-1, required=True)
def resume(names: Sequence[str]) -> None:
    """Let paused schedules go on, from now."""
    _each(names, api.resume, "active")


@schedules.command()
@click.argument("names", nargs=-1, required=True)
def run(names: Sequence[str]) -> None:
    """Run schedules now, beside their ticks."""
    _each(names, lambda name: api.run_now(name).id, "enqueued as {}")


@schedules.command()
@click.argument("names", nargs=-1, required=True)
def remove(names: Sequence[str]) -> None:
    """Remove schedules with their history; the jobs that they made stay."""
    _each(names, api.remove, "removed")


@click.group(invoke_without_command=True)
@click.option(
    "-n",
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="At most so many.",
)
@click.pass_context
def delayed(ctx: click.Context, limit: int) -> None:
    """List the jobs that wait for their time, the next due first; or cancel and move them."""
    if ctx.invoked_subcommand:
        return
    for one in delayed_jobs.jobs(limit=limit):
        say(f"{one.job_id}  {plain(one.queue)}  {_moment(one.due)}  {plain(one.description)}")
    say(f"{delayed_jobs.count()} delayed")


@delayed.command()
@click.argument("ids", nargs=-1, required=True)
def cancel(ids: Sequence[str]) -> None:
    """Cancel delayed jobs."""
    _each(ids, delayed_jobs.cancel, "canceled")


@delayed.command()
@click.argument("job_id")
@click.argument("when")
@_taught
def move(job_id: str, when: str) -> None:
    """Give a delayed job another time.

    WHEN is "now", a time from now like 90s, 5m or 1h30m, or a moment like 2030-01-31T06:00 (in this machine's time,
    unless it says a zone).
    """
    if when == "now":
        moment: Any = 0
    elif re.fullmatch(r"([0-9]{1,15}[wdhms])+", when):
        moment = Span().convert(when, None, None)
    else:
        try:
            moment = datetime.fromisoformat(when)
        except ValueError:
            raise click.UsageError(
                f"{when!r} is no time; write now, 5m, or 2030-01-31T06:00"
            ) from None
    say(f"{job_id}: {_moment(delayed_jobs.reschedule(job_id, moment))}")


def _moment(moment: datetime | None) -> str:
    """In this machine's time."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}" if moment else "-"
