"""`rqjobs pause` and `rqjobs resume`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from rqjobs import connection, pauses
from rqjobs.broker import places
from rqjobs.cli.activity import recorded, user_name
from rqjobs.cli.output import each, echo, one_line_errors

FUNCTION_OPTION = click.option(
    "-f", "--function", "functions", multiple=True, help="A job function (module.name)."
)


@click.command("pause")
@click.argument("queues", nargs=-1)
@FUNCTION_OPTION
@recorded("pause", "queues", "functions")
@one_line_errors
def pause(queues: Sequence[str], functions: Sequence[str]) -> None:
    """Begin no job of QUEUES, or of a function, until `rqjobs resume`.

    Running jobs end. New jobs are accepted and wait. Without arguments the pauses are listed.
    """
    if not queues and not functions:
        for found in pauses.paused():
            echo(found.describe())
        return
    known = places.queue_names(connection.client())
    for name in set(queues) - set(known):
        echo(f"note: no queue {name!r} is known yet; known are {', '.join(known)}", err=True)
    targets = _targets(queues, functions)
    each(list(targets), lambda name: _pause(targets[name]), "{}")


@click.command("resume")
@click.argument("queues", nargs=-1)
@FUNCTION_OPTION
@click.option("--all", "all_of_them", is_flag=True, help="End every pause.")
@recorded("resume", "queues", "functions", "all_of_them")
@one_line_errors
def resume(queues: Sequence[str], functions: Sequence[str], all_of_them: bool) -> None:
    """Let the jobs of paused QUEUES, or of a paused function, begin again."""
    if all_of_them:
        found = pauses.paused()
        queues = [one.name for one in found if one.kind == "queue"]
        functions = [one.name for one in found if one.kind == "function"]
    elif not queues and not functions:
        raise click.UsageError("name a queue, or --function module.name, or --all")
    targets = _targets(queues, functions)
    each(list(targets), lambda name: _resume(targets[name]), "{}")


def _targets(queues: Sequence[str], functions: Sequence[str]) -> dict[str, dict[str, str]]:
    """The arguments of `pauses.pause` for each name."""
    return {name: {"queue": name} for name in queues} | {
        name: {"function": name} for name in functions
    }


def _pause(target: dict[str, str]) -> str:
    if pauses.pause(**target, by=user_name()):
        return "paused"
    return "is paused already"


def _resume(target: dict[str, str]) -> str:
    if pauses.resume(**target):
        return "resumed"
    return "is not paused"
