"""`rqjobs dev`: Redis (if no URL is set), the web app and the workers, in one terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rqjobs import catalog, config, connection, generated_secrets, stats
from rqjobs.broker import logins
from rqjobs.dev import redis_server
from rqjobs.dev.child import Child, stop_children
from rqjobs.dev.source_files import ENV_FILE, WATCHED_MAX_FILES, modification_times
from rqjobs.processes import wait_until

CHECK_SECONDS = 0.5  # between two checks of the children and of the source files
CHECK_MAX_SHARE = 0.1  # of the time that checks of many files may take
FILE_SETTLE_SECONDS = 0.2  # an editor may write a file in several steps
STOP_MARGIN_SECONDS = 5  # a worker releases its jobs after RQJOBS_SHUTDOWN_TIMEOUT
WORKER_START_SECONDS = 30
WEB_START_SECONDS = 60
LOCAL_HOST = "127.0.0.1"
PACKAGE_FOLDER = Path(__file__).parents[1]
LOGIN_SETTINGS = ("host", "port", "admin_user", "admin_password")


@dataclass(frozen=True)
class Program:
    """The commands that `rqjobs dev` or `flask jobs dev` runs."""

    worker: tuple[str, ...]
    web_app: str  # as gunicorn names an app
    pages: str | None  # the path of the admin pages; None if the web app has none
    own_login: bool = True  # False: the login of the app decides who may see them

    def web_command(self) -> list[str]:
        config_name = "python:rqjobs.web.gunicorn_config"
        return [sys.executable, "-m", "gunicorn", "--config", config_name, self.web_app]


RQJOBS = Program((sys.executable, "-m", "rqjobs", "worker"), "rqjobs.web:create_app()", "/")


class Dev:
    """The children of `rqjobs dev`, and the settings with which they were started."""

    def __init__(
        self,
        program: Program,
        settings: config.Config,
        url: str,
        signals: list[int],
        echo: Callable[[str], None],
    ):
        self.program = program
        self.settings = settings
        self.url = url
        self.signals = signals  # signal handlers append to it
        self.echo = echo
        self.password = settings.one_time_password or generated_secrets.admin_password()
        self.secret_key = generated_secrets.secret_key()
        self.children: list[Child] = []
        self.times: dict[str, int] = {}  # of the files that the children have read

    @property
    def stop_timeout(self) -> float:
        return self.settings.shutdown_timeout + STOP_MARGIN_SECONDS

    def environment(self) -> dict[str, str]:
        return config.environment(
            REDIS_URL=self.url,
            RQJOBS_ONE_TIME_PASSWORD=self.password,
            HOST=self.settings.host or LOCAL_HOST,
            SECRET_KEY=self.secret_key,
            PORT=self.settings.port,
        )

    def start(self, workers: int) -> None:
        environment = self.environment()
        self.times = modification_times(self.settings)
        self.children.append(Child("web", self.program.web_command(), environment))
        for number in range(1, workers + 1):
            self.children.append(Child(f"worker {number}", [*self.program.worker], environment))

    def stop(self) -> None:
        stop_children(self.children, self.stop_timeout, self.signals, self.echo)

    def print_login(self) -> None:
        settings = self.settings
        address = f"http://{settings.host}:{settings.port}"
        pages = self.program.pages
        if pages is None:
            self.echo(f"\n  Open  {address}/\n  The app has no admin pages.")
            return
        if pages != "/":
            self.echo(f"\n  Open  {address}/")
        if not self.program.own_login:
            self.echo(f"\n  Open  {address}{pages}\n  The login of the app decides who may see it.")
            return
        password = f"the password {self.password}"
        if settings.admin_password:
            password = "RQJOBS_ADMIN_PASSWORD"  # its name  # nosec B105
        token = logins.create_link(connection.connect(self.url), self.secret_key)
        self.echo(
            f"\n  Open  {address}{pages}\n  log in as {settings.admin_user} with {password}\n"
            f"  or open once, within {logins.LINK_SECONDS // 60} minutes: "
            f"{address}{pages}login#{token}"
        )

    def supervise(self, embedded_url: str | None) -> None:
        """Keep the children running until a signal arrives. Restart them when their files change.

        Raises:
            NoRedis: the embedded server has ended.
        """
        if len(self.times) >= WATCHED_MAX_FILES:
            self.echo(
                f"rqjobs: more than {WATCHED_MAX_FILES} Python files are here; some are not watched"
            )
        while not self.signals:
            start = time.monotonic()
            if embedded_url and not redis_server.answers(embedded_url):
                raise connection.NoRedis(
                    "the embedded Redis has ended, see .rqjobs/redis.log; no job is lost: start "
                    "rqjobs dev again"
                )
            for child in self.children:
                child.restart_if_ended(self.echo, self.stop_timeout)
            self.times = self._restart_if_changed(self.times)
            duration = time.monotonic() - start
            self._pause(max(CHECK_SECONDS, duration / CHECK_MAX_SHARE))

    def _pause(self, seconds: float) -> None:
        wait_until(seconds, lambda: bool(self.signals))

    def _restart_if_changed(self, old_times: dict[str, int]) -> dict[str, int]:
        """Restart the children of files that are not as in `old_times`; returns the new times.

        A file that is still being written is left for the next check.
        """
        times = modification_times(self.settings)
        if times == old_times:
            return old_times
        self._pause(FILE_SETTLE_SECONDS)
        if times != modification_times(self.settings):
            return old_times
        paths = times.keys() | old_times.keys()
        self._restart({path for path in paths if times.get(path) != old_times.get(path)})
        # A file that has changed during the restart keeps its old time, and so is found again. The
        # settings of a changed .env may name further files.
        now = modification_times(self.settings)
        return {path: times.get(path, changed) for path, changed in now.items()}

    def _restart(self, paths: set[str]) -> None:
        """Restart the children that use these files."""
        sources = sorted(Path(path).name for path in paths if path != ENV_FILE)
        names = self._reload_settings() if ENV_FILE in paths else []
        if not names and not sources:
            return
        web, *workers = self.children
        if names:
            self.echo(f"rqjobs: .env changed ({', '.join(names)}); restarting")
            for child in self.children:
                child.environment = self.environment()
            web.request_restart()
        else:
            self.echo(f"rqjobs: {sources[0]} changed; restarting")
            if any(Path(path).is_relative_to(PACKAGE_FOLDER) for path in paths):
                web.request_restart()  # its first process has imported rqjobs, and keeps it
            else:
                web.signal(signal.SIGHUP)  # gunicorn reloads the app
        for worker in workers:
            worker.request_restart()

    def _reload_settings(self) -> list[str]:
        """Read `.env` again; returns the names of the changed settings.

        Wrong settings are printed, and the old ones stay in force.
        """
        before = self.settings
        try:
            settings, names = config.reload()
            settings = config.use(host=settings.host or LOCAL_HOST)
            config.require_password_for_network(settings)
            if (settings.host, settings.port) != (before.host, before.port):
                _check_port(settings)
        except config.ConfigError as error:
            config.use(before)
            self.echo(
                f"rqjobs: .env: {error}; the old settings stay in force until it is saved again"
            )
            return []
        self.settings = settings
        if settings.redis_url != before.redis_url:
            self.echo("rqjobs: REDIS_URL changed; stop rqjobs dev and start it again")
        if any(getattr(settings, name) != getattr(before, name) for name in LOGIN_SETTINGS):
            self.print_login()
        return [name for name in names if name != "REDIS_URL"]


def run(workers: int, echo: Callable[[str], None], program: Program = RQJOBS) -> None:
    """Run everything until SIGINT or SIGTERM, then stop it.

    Raises:
        ConfigError: another `rqjobs dev` runs in this folder, or the port is in use.
        NoRedis: no Redis is set, and no server can be started.
    """
    settings = config.use(host=config.current().host or LOCAL_HOST)
    config.require_password_for_network(settings)
    catalog.add_cwd_to_sys_path()
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, frame: signals.append(received))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_foreground_process_group())
        stack.enter_context(_folder_lock())
        _check_port(settings)
        url = settings.redis_url or stack.enter_context(redis_server.server())
        connection.connect(url).ping()
        dev = Dev(program, settings, url, signals, echo)
        stack.callback(dev.stop)
        dev.start(workers)
        _wait_for_web(dev.children[0], settings, signals)
        if not signals:
            dev.print_login()
            if not settings.redis_url:
                echo(f"  Other terminals:  export REDIS_URL={shlex.quote(url)}")
            echo("  Ctrl-C stops everything.\n")
        dev.supervise(None if settings.redis_url else url)
        echo("\nrqjobs: stopping")


def with_worker(module: str, function: Callable[[], int]) -> int:
    """Run `function` with a temporary Redis and a worker for the jobs of `module`.

    Returns the exit code that `function` returns. All data are in a temporary folder.
    """
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rqjobs-")))
        url = stack.enter_context(redis_server.server(home))
        config.use(redis_url=url, modules=(module,))
        environment = config.environment(REDIS_URL=url, RQJOBS_MODULES=module)
        log = stack.enter_context((home / "worker.log").open("wb"))
        worker = Child("worker", [*RQJOBS.worker, "--quiet"], environment, output=log)
        stack.callback(stop_children, [worker], STOP_MARGIN_SECONDS)

        def has_started() -> bool:
            return bool(stats.snapshot(connection.client()).workers) or not worker.is_running

        wait_until(WORKER_START_SECONDS, has_started)
        code = function()
        if code:
            sys.stderr.write((home / "worker.log").read_text(encoding="utf-8", errors="replace"))
        return code


@contextlib.contextmanager
def _foreground_process_group() -> Iterator[None]:
    """Become a process group of its own in the foreground of the terminal.

    Ctrl-C then reaches only this process, and not the `make` that started it and would report an
    error.
    """
    if os.getpgrp() == os.getpid() or not sys.stdin.isatty() or os.tcgetpgrp(0) != os.getpgrp():
        yield
        return
    # Otherwise a background group may not take the terminal.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    old_group = os.getpgrp()
    os.setpgrp()
    os.tcsetpgrp(0, os.getpgrp())
    try:
        yield
    finally:
        os.tcsetpgrp(0, old_group)


@contextlib.contextmanager
def _folder_lock() -> Iterator[None]:
    """Raises ConfigError if another `rqjobs dev` runs in this folder."""
    connection.DATA_FOLDER.mkdir(mode=0o700, exist_ok=True)
    with (connection.DATA_FOLDER / "lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise config.ConfigError(
                "rqjobs dev runs in this folder already; stop that one first"
            ) from None
        yield


def _check_port(settings: config.Config) -> None:
    try:
        with socket.create_server((settings.host, settings.port)):
            pass
    except OSError as error:
        raise config.ConfigError(
            f"cannot serve at HOST={settings.host!r} PORT={settings.port}: "
            f"{error.strerror or error}; set PORT to a free one"
        ) from None


def _wait_for_web(web: Child, settings: config.Config, signals: list[int]) -> None:
    """Raises ConfigError if the web app does not accept connections in time."""

    def accepts_connections() -> bool:
        address = (settings.host, settings.port)
        with contextlib.suppress(OSError), socket.create_connection(address, 1):
            return True
        return False

    def is_over() -> bool:
        return bool(signals) or not web.is_running or accepts_connections()

    wait_until(WEB_START_SECONDS, is_over, step=0.1)
    if not signals and not accepts_connections():
        raise config.ConfigError("the web app did not start; see its output above")
