"""Commands that change something are kept in the list of activity, like actions on the pages."""

from __future__ import annotations

import functools
import getpass
import socket
from collections.abc import Callable
from typing import Any

import click

from rqjobs import connection
from rqjobs.broker import activity
from rqjobs.broker.activity import Entry, Outcome


def recorded(action: str, *targets: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Keep each run of a command as `action`. Write it below the command's parameters.

    `targets`: the parameters that name the objects of the command. Their values are kept; those of
    other parameters are not. A run without any of them is not kept, because it does nothing.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*args: Any, **kwargs: Any) -> None:
            target = " ".join(text for name in targets for text in _describe(name, kwargs))
            if targets and not target:
                return command(*args, **kwargs)
            entry = activity.begin(connection.client(), _entry(action, target))
            return _run(entry, functools.partial(command, *args, **kwargs))

        return run

    return decorate


def _run(entry: Entry, command: Callable[[], None]) -> None:
    """Run a command and store how it ended."""
    outcome = Outcome.FAILED
    try:
        command()
        outcome = Outcome.DONE
    except SystemExit as error:
        if not error.code:
            outcome = Outcome.DONE
        raise
    except (click.UsageError, click.Abort):
        activity.drop(connection.client(), entry)
        entry = Entry("")
        raise
    finally:
        if entry.id:
            activity.finish(connection.client(), entry, outcome=outcome)


def _entry(action: str, target: str) -> Entry:
    return Entry(action, target, user=user_name(), via="cli", address=socket.gethostname())


def _describe(name: str, given: dict[str, Any]) -> list[str]:
    """The value of a parameter as texts; a flag is its own name.

    An option may stand before the command too, as the filters of `rqjobs failed` may.
    """
    context = click.get_current_context()
    value = given.get(name)
    if value in (None, False, ()) and context.parent:
        value = context.parent.params.get(name)
    if value in (None, False, ()):
        return []
    if value is True:
        return [one.opts[0] for one in context.command.params if one.name == name]
    if isinstance(value, list | tuple):
        return [str(each) for each in value]
    return [str(value)]


def user_name() -> str:
    """The user of this process; "" if the user has no name on this machine."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
