"""`rqjobs dev`: Redis if none is set, the web app and the workers, in one terminal."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO

from rqjobs import catalog, config, connection
from rqjobs.dev import redis_server
from rqjobs.processes import die_with_parent, wait_until
from rqjobs.worker.shutdown import DUPLICATE_SIGNAL_SECONDS

TICK = 0.5  # seconds between two looks at the children and the job modules
LEAVING = 5  # seconds beyond RQJOBS_SHUTDOWN_TIMEOUT in which a worker gives back what it has
SAVING_SECONDS = 0.2  # between two looks at a file that changes: it may be written in several steps
STOP_SILENT_SECONDS = 1.0  # after which it is said what is waited for
WATCHED_MAX_FILES, WATCHED_MAX_FOLDERS = 5_000, 2_000
NOT_SOURCES = ("__pycache__", "node_modules", "site-packages")
ENV_FILE = ".env"
HOST = "127.0.0.1"
LOGIN = ("host", "port", "admin_user", "admin_password")  # the settings that change how one logs in
RESTART_PAUSE = (
    0.5,
    10.0,
)  # seconds before a child that died is started again: the first time, and at most
WORKER = [sys.executable, "-m", "rqjobs", "worker"]
WEB = [
    sys.executable,
    "-m",
    "gunicorn",
    "--config",
    "python:rqjobs.web.gunicorn_config",
    "rqjobs.web:create_app()",
]


class Child:
    """A process that is started again when it ends, later each time."""

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        output: IO[bytes] | None = None,
    ):
        self.name, self.command, self.environment, self.output = name, command, environment, output
        self.pause, self.again = RESTART_PAUSE[0], 0.0
        self.asked = 0.0  # when it was asked to end, to be started again
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            start_new_session=True,  # Ctrl-C reaches only us, and we stop them in order
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )
        self.since, self.again, self.asked = time.monotonic(), 0.0, 0.0

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def restart(self) -> None:
        """Ask it to end; `tend` starts it again then."""
        if not self.asked:
            self.asked = time.monotonic()
            self.signal(signal.SIGTERM)

    def tend(self, say: Callable[[str], None], stop_seconds: float) -> None:
        now = time.monotonic()
        if self.asked:
            if not self.runs:
                self.start()
            elif now - self.asked > stop_seconds:
                self.process.kill()
        elif self.runs:
            return
        elif not self.again:
            self.pause = (
                RESTART_PAUSE[0] if now - self.since > 30 else min(self.pause * 2, RESTART_PAUSE[1])
            )
            self.again = now + self.pause
            say(
                f"{self.name} ended with {self.process.returncode}; starting it again in {self.pause:.0f} s"
            )
        elif now >= self.again:
            self.start()

    def signal(self, number: int) -> None:
        if self.runs:
            self.process.send_signal(number)


def stop(
    children: list[Child],
    seconds: float,
    stopped: Sequence[int] = (),
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """End the children: SIGTERM, then after `seconds` SIGKILL. A job that is cut off runs again next time.

    When a second signal comes into `stopped` they are told to put back their jobs and end at once.
    """
    for child in children:
        if not child.asked:
            child.signal(signal.SIGTERM)
    began, waits, hurried = time.monotonic(), False, False
    while any(child.runs for child in children):
        age = time.monotonic() - began
        if age > seconds:
            for child in children:
                child.process.kill()
                child.process.wait()
        elif (
            len(stopped) > 1 and not hurried and age > DUPLICATE_SIGNAL_SECONDS + TICK / 5
        ):  # earlier, a worker takes it for the first
            hurried = True
            for child in children:
                child.signal(signal.SIGTERM if "worker" in child.command else signal.SIGINT)
        elif len(stopped) < 2 and not waits and age > STOP_SILENT_SECONDS:
            waits = True
            say(
                f"rqjobs: waits for running jobs, {seconds:.0f} s at most; a second Ctrl-C puts them back and ends at "
                f"once"
            )
        time.sleep(0.05)


class Dev:
    """What `rqjobs dev` has going: the Redis, the web app, the workers; and what they were started with."""

    def __init__(self, settings: config.Config, url: str, say: Callable[[str], None]):
        self.settings, self.url, self.say = settings, url, say
        self.password, self.secret_key = secrets.token_urlsafe(9), secrets.token_hex(32)
        self.children: list[Child] = []
        self.stopped: list[int] = []

    def environment(self) -> dict[str, str]:
        return config.environment(
            REDIS_URL=self.url,
            RQJOBS_ONE_TIME_PASSWORD=self.password,
            HOST=self.settings.host or HOST,
            SECRET_KEY=self.settings.secret_key or self.secret_key,
            PORT=self.settings.port,
        )

    def start(self, workers: int) -> None:
        environment = self.environment()
        self.children.append(Child("web", WEB, environment))
        self.children += [
            Child(f"worker {number + 1}", WORKER, environment) for number in range(workers)
        ]

    def greet(self) -> None:
        settings = self.settings
        login = (
            "RQJOBS_ADMIN_PASSWORD" if settings.admin_password else f"the password {self.password}"
        )
        self.say(
            f"\n  Open  http://{settings.host}:{settings.port}/\n  log in as {settings.admin_user} with {login}"
        )

    def tend(self, embedded_url: str | None) -> None:
        """Keep the children going, anew when a file of theirs changes, until a signal comes."""
        seen = _watched(self.settings)
        if len(seen) >= WATCHED_MAX_FILES:
            self.say(
                f"rqjobs: there are more than {WATCHED_MAX_FILES} Python files here; a change in some goes unseen"
            )
        while not self.stopped:
            began = time.monotonic()
            if embedded_url and not redis_server.answers(embedded_url):
                raise connection.NoRedis(
                    "the embedded Redis has ended, .rqjobs/redis.log says why; nothing it kept is "
                    "lost: start rqjobs dev again"
                )
            for child in self.children:
                child.tend(self.say, self.settings.shutdown_timeout + LEAVING)
            now = _watched(self.settings)
            if now != seen:
                wait_until(SAVING_SECONDS, lambda: bool(self.stopped))
            if now != seen and now == _watched(self.settings):  # else it is still being written
                self.changed(
                    {name for name in now.keys() | seen.keys() if now.get(name) != seen.get(name)}
                )
                seen = {
                    path: now.get(path, changed)
                    for path, changed in _watched(self.settings).items()
                }
            wait_until(max(TICK, 10 * (time.monotonic() - began)), lambda: bool(self.stopped))

    def changed(self, paths: set[str]) -> None:
        """Restart what these files are of."""
        code = sorted(Path(path).name for path in paths if path != ENV_FILE)
        names = self._reload() if ENV_FILE in paths else []
        if names:
            self.say(f"rqjobs: .env changed ({', '.join(names)}); restarting")
        elif code:
            self.say(f"rqjobs: {code[0]} changed; restarting")
        web, *workers = self.children
        if names:
            for child in self.children:
                child.environment = self.environment()
            web.restart()
        elif code:
            web.signal(signal.SIGHUP)  # gunicorn loads the app anew
        for child in workers if names or code else ():
            child.restart()

    def _reload(self) -> list[str]:
        """Read `.env` anew; returns the names of the settings that are others now. What cannot be is said, and changes
        nothing."""
        before = self.settings
        try:
            settings, names = config.reload()
            settings = config.use(host=settings.host or HOST)
            config.require_password_for_network(settings)
            if (settings.host, settings.port) != (before.host, before.port):
                _free_port(settings)
        except config.ConfigError as error:
            config.use(before)
            self.say(
                f"rqjobs: .env: {error}; the settings before stay in force until it is saved again"
            )
            return []
        self.settings = settings
        if settings.redis_url != before.redis_url:
            self.say("rqjobs: REDIS_URL changed; for that, end rqjobs dev and start it again")
        if any(getattr(settings, name) != getattr(before, name) for name in LOGIN):
            self.greet()
        return [name for name in names if name != "REDIS_URL"]


def run(workers: int, say: Callable[[str], None]) -> None:
    """Run everything until SIGINT or SIGTERM, then leave nothing running.

    Raises:
        ConfigError: another `rqjobs dev` runs in this folder, or the port is taken.
        NoRedis: there is no Redis, and none to start.
    """
    settings = config.use(host=config.current().host or HOST)
    config.require_password_for_network(settings)
    catalog.add_cwd_to_sys_path()
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda got, frame: stopped.append(got))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_own_terminal())
        stack.enter_context(_only_one())
        _free_port(settings)
        url = settings.redis_url or stack.enter_context(redis_server.server())
        connection.connect(url).ping()
        dev = Dev(settings, url, say)
        dev.stopped = stopped
        stack.callback(
            lambda: stop(dev.children, dev.settings.shutdown_timeout + LEAVING, stopped, say)
        )
        dev.start(workers)
        _wait_for_web(dev.children[0], settings, stopped)
        if not stopped:
            dev.greet()
            if not settings.redis_url:
                say(f"  Other terminals:  export REDIS_URL={shlex.quote(url)}")
            say("  Ctrl-C stops everything.\n")
        dev.tend(None if settings.redis_url else url)
        say("\nrqjobs: stopping")


def with_worker(module: str, act: Callable[[], int]) -> int:
    """Run `act` beside a Redis and a quiet worker of its own for the jobs of `module`, and return what it returns.

    Nothing else is touched: the data are in a temporary folder, and gone afterwards.
    """
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rqjobs-")))
        url = stack.enter_context(redis_server.server(home))
        config.use(redis_url=url, modules=(module,))
        environment = config.environment(REDIS_URL=url, RQJOBS_MODULES=module)
        log = stack.enter_context((home / "worker.log").open("wb"))
        worker = Child("worker", [*WORKER, "--quiet"], environment, output=log)
        stack.callback(stop, [worker], LEAVING)
        wait_until(
            30,
            lambda: (
                bool(connection.client().exists("rq:workers")) or worker.process.poll() is not None
            ),
        )
        code = act()
        if code:
            sys.stderr.write((home / "worker.log").read_text(encoding="utf-8", errors="replace"))
        return code


def _watched(settings: config.Config) -> dict[str, int]:
    """When `.env`, and each file that the children may have imported, was last changed. Imports nothing of them.

    These are all Python files below the working directory, and those of the packages of the jobs modules and the app.
    """
    importlib.invalidate_caches()
    sys.path_importer_cache.pop("", None)
    names = [*settings.modules, *([settings.flask_app] if settings.flask_app else [])]
    folders = [Path.cwd()]
    files = [Path(ENV_FILE)]
    for top in {re.split("[.:]", name)[0] for name in names}:
        spec = (
            importlib.util.find_spec(top) if top not in sys.modules else sys.modules[top].__spec__
        )
        if spec and spec.origin and not Path(spec.origin).is_relative_to(Path.cwd()):
            (folders if spec.submodule_search_locations else files).append(
                Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
            )
    times = {}
    for path in islice(chain(files, *map(_sources, folders)), WATCHED_MAX_FILES):
        with contextlib.suppress(OSError):
            times[str(path)] = path.stat().st_mtime_ns
    return times


def _sources(folder: Path) -> Iterator[Path]:
    """The Python files below `folder`, but not those of virtual environments, caches, and hidden folders."""
    for home, folders, names in islice(os.walk(folder), WATCHED_MAX_FOLDERS):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name not in NOT_SOURCES
            and not os.path.exists(os.path.join(home, name, "pyvenv.cfg"))
        ]
        yield from (Path(home, name) for name in names if name.endswith(".py"))


@contextlib.contextmanager
def _own_terminal() -> Iterator[None]:
    """Have Ctrl-C reach this process only, not the `make` that started it, which would call it an error."""
    if os.getpgrp() == os.getpid() or not sys.stdin.isatty() or os.tcgetpgrp(0) != os.getpgrp():
        yield
        return
    signal.signal(
        signal.SIGTTOU, signal.SIG_IGN
    )  # a background group may not take the terminal otherwise
    before = os.getpgrp()
    os.setpgrp()
    os.tcsetpgrp(0, os.getpgrp())
    try:
        yield
    finally:
        os.tcsetpgrp(0, before)


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    connection.DATA_FOLDER.mkdir(mode=0o700, exist_ok=True)
    with (connection.DATA_FOLDER / "lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise config.ConfigError(
                "rqjobs dev runs in this folder already; stop that one first"
            ) from None
        yield


def _free_port(settings: config.Config) -> None:
    try:
        with socket.create_server((settings.host, settings.port)):
            pass
    except OSError as error:
        raise config.ConfigError(
            f"cannot serve at HOST={settings.host!r} PORT={settings.port}: "
            f"{error.strerror or error}; set PORT to a free one"
        ) from None


def _wait_for_web(web: Child, settings: config.Config, stopped: list[int]) -> None:
    def answers() -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((settings.host, settings.port), 1),
        ):
            return True
        return False

    wait_until(60, lambda: bool(stopped) or web.process.poll() is not None or answers(), step=0.1)
    if not stopped and not answers():
        raise config.ConfigError("the web app did not start; what it said is above")
