"""`rqjobs.Jobs`, the Flask extension: settings in `app.config`, `flask jobs`, pages, and tests.

A process has one set of settings, so an app's Jobs adds to the settings of its process.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar, overload

import click
from flask import Flask, current_app, has_app_context
from flask.cli import ScriptInfo

import rqjobs
from rqjobs import catalog, config, connection, dev, storing

F = TypeVar("F", bound=Callable[..., Any])
EXTENSION = "rqjobs.jobs"  # its name in app.extensions
FIXTURES = "jobs_inline, jobs_recorded or jobs_redis"


class Jobs:
    """The jobs of a Flask app: `Jobs(app)`, or `Jobs()` and later `init_app(app)`."""

    def __init__(
        self,
        app: Flask | None = None,
        pages: str | None = None,
        authorize: Callable[[Any], Any] | None = None,
    ):
        """The jobs of `app`, or of the app that `init_app` gets later.

        `pages`: the prefix of the admin pages in the app, for example "/jobs"; None for none.
        `authorize`: who may see and use these pages; see `rqjobs.web.init_app`.
        """
        _check_pages(pages)
        self.pages = pages
        self.authorize = authorize
        self.has_app = False
        if app is not None:
            self.init_app(app)

    def init_app(
        self,
        app: Flask,
        pages: str | None = None,
        authorize: Callable[[Any], Any] | None = None,
    ) -> None:
        """Take the settings of `app.config`, and give the app `flask jobs` and the admin pages.

        The environment has precedence over `app.config`. Workers of this process run their jobs in
        the app's context. While `app.testing` is on, this process uses no Redis but that of a test.

        Raises:
            ConfigError: a setting is wrong, or another app of this process has other settings and
                neither app is being tested.
            TypeError, ValueError: `app` is not a Flask app, or has a `Jobs` already.
        """
        _check_pages(pages)
        if not isinstance(app, Flask):
            raise TypeError(f"Jobs takes a Flask app, not {app!r}; call create_app() first")
        if EXTENSION in app.extensions:
            raise ValueError(f"the app {app.name!r} has a Jobs already; call init_app once")
        if "jobs" in app.cli.commands:
            raise ValueError(f"the app {app.name!r} has a command 'jobs' already; rename that one")
        earlier = catalog.flask_app_in_use()
        is_test = app.testing or bool(earlier and earlier.testing)
        config.use_app_settings(config.read_app_config(app.config), may_replace=is_test)
        catalog.offer_flask_app(app)
        connection.check_before_use(_refuse_in_tests)
        if pages is None:
            pages = self.pages
        app.extensions[EXTENSION] = self
        authorize = authorize or self.authorize
        app.cli.add_command(Commands(app, pages, own_login=authorize is None))
        if pages is not None:
            rqjobs.web.init_app(app, pages, authorize)
        self.has_app = True

    @overload
    def job(self, function: F) -> F: ...
    @overload
    def job(self, **options: Any) -> Callable[[F], F]: ...
    def job(self, function: Any = None, **options: Any) -> Any:
        """Attach options as `rqjobs.job` does. A worker needs the app to run the function.

        Raises:
            TypeError, ValueError: see `rqjobs.job`.
        """

        def attach(target: F) -> F:
            attached = catalog.job(target, **options)
            catalog.require_flask_app(attached)
            return attached

        if function is None:
            return attach
        return attach(function)

    # Each of these raises ConfigError if there is no app yet, and what the function of rqjobs does.

    def enqueue(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """See `rqjobs.enqueue`."""
        return self._with_app(rqjobs.enqueue)(function, *args, **kwargs)

    def enqueue_in(self, delay: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """See `rqjobs.enqueue_in`."""
        return self._with_app(rqjobs.enqueue_in)(delay, function, *args, **kwargs)

    def enqueue_at(self, moment: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """See `rqjobs.enqueue_at`."""
        return self._with_app(rqjobs.enqueue_at)(moment, function, *args, **kwargs)

    def enqueue_many(self, calls: Any, **options: Any) -> Any:
        """See `rqjobs.enqueue_many`."""
        return self._with_app(rqjobs.enqueue_many)(calls, **options)

    def queue(self, name: str) -> rqjobs.Queue:
        """See `rqjobs.queue`."""
        return self._with_app(rqjobs.queue)(name)

    @property
    def schedules(self) -> Any:
        """The module `rqjobs.schedules`."""
        return self._with_app(rqjobs.schedules)

    @property
    def delayed(self) -> Any:
        """The module `rqjobs.delayed`."""
        return self._with_app(rqjobs.delayed)

    def _with_app(self, thing: Any) -> Any:
        if not self.has_app:
            raise config.ConfigError(
                "this rqjobs.Jobs has no app yet: call jobs.init_app(app) when the app is made"
            )
        return thing


def _check_pages(pages: Any) -> None:
    if pages is not None and not isinstance(pages, str):
        raise TypeError(f"pages={pages!r} is not a prefix; give one, for example pages='/jobs'")


def _refuse_in_tests() -> None:
    """Raises ConfigError if the app is being tested, and the test has not said where jobs go."""
    app = catalog.flask_app_in_use()
    if has_app_context() and EXTENSION in current_app.extensions:
        app = current_app
    if app is None or not app.testing:
        return
    if storing.is_replaced() or config.is_overridden("redis_url"):
        return
    if "pytest_rqjobs" in sys.modules and config.test_socket() is None:
        return  # pytest was told to allow the real Redis
    raise config.ConfigError(
        f"TESTING is on, so nothing reaches Redis: use a fixture of rqjobs.testing ({FIXTURES}), "
        f"or set TESTING=False"
    )


class Commands(click.Group):
    """`flask jobs`: the commands of `rqjobs`, with the settings of the app's config."""

    def __init__(self, app: Flask, pages: str | None, own_login: bool = True):
        super().__init__("jobs", help="The commands of rqjobs, with this app's settings.")
        self.app = app
        self.pages = pages
        self.own_login = own_login

    def list_commands(self, ctx: click.Context) -> list[str]:
        return _cli().main.list_commands(ctx)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return _cli().main.get_command(ctx, name)

    def invoke(self, ctx: click.Context) -> Any:
        cli = _cli()
        with cli.prepared_process():
            catalog.choose_flask_app(self.app)
            ctx.meta[cli.DEV_PROGRAM] = self._dev_program(ctx)
            return super().invoke(ctx)

    def _dev_program(self, ctx: click.Context) -> dev.Program | None:
        """The app's own processes, which find the app as this one has. None if they cannot."""
        info = ctx.find_object(ScriptInfo)
        if info is None or info.create_app is not None:
            return None
        path = info.app_import_path
        option = ["--app", path] if path else []
        pages = self.pages
        if pages is not None:
            pages = f"/{pages.strip('/')}/".replace("//", "/")
        return dev.Program(
            worker=(sys.executable, "-m", "flask", *option, "jobs", "worker"),
            web_app=f"rqjobs.flask_extension:load_app({path!r})",
            pages=pages,
            own_login=self.own_login,
        )


def load_app(path: str | None) -> Flask:
    """The app that `flask --app path` finds. gunicorn calls it."""
    return ScriptInfo(app_import_path=path, set_debug_flag=False).load_app()


def _cli() -> Any:
    """`rqjobs.cli`, which only the command line needs: it takes some MiB."""
    return importlib.import_module("rqjobs.cli")
