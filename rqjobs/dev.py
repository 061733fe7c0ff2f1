"""`rqjobs dev`: Redis if none is set, the web app and the workers, in one terminal."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from rqjobs import catalog, config, connection, embedded
from rqjobs.processes import die_with_parent, pause

TICK = 0.5  # seconds between two looks at the children and the job modules
LEAVING = 5  # seconds beyond the grace in which a worker gives back what it has
RESTART_PAUSE = (0.5, 10.0)  # seconds before a child that died is started again: the first time, and at most
WORKER = [sys.executable, "-m", "rqjobs", "worker"]
WEB = [sys.executable, "-m", "gunicorn", "--config", "python:rqjobs.web.serve", "rqjobs.web:create_app()"]


class Child:
    """A process that is started again when it ends, later each time."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], output: IO[bytes] | None = None):
        self.name, self.command, self.environment, self.output = name, command, environment, output
        self.pause, self.again = RESTART_PAUSE[0], 0.0
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.output,
            start_new_session=True,  # Ctrl-C reaches only us, and we stop them in order
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )
        self.since = time.monotonic()

    def tend(self, say: Callable[[str], None]) -> None:
        if self.process.poll() is None:
            return
        now = time.monotonic()
        if not self.again:
            self.pause = RESTART_PAUSE[0] if now - self.since > 30 else min(self.pause * 2, RESTART_PAUSE[1])
            self.again = now + self.pause
            say(f"{self.name} ended with {self.process.returncode}; starting it again in {self.pause:.0f} s")
        elif now >= self.again:
            self.again = 0.0
            self.start()

    def signal(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)


def stop(children: list[Child], grace: float) -> None:
    """End the children: SIGTERM, then after `grace` seconds SIGKILL. A job that is cut off runs again next time."""
    for child in children:
        child.signal(signal.SIGTERM)
    deadline = time.monotonic() + grace
    for child in children:
        try:
            child.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()


def run(workers: int, say: Callable[[str], None]) -> None:
    """Run everything until SIGINT or SIGTERM, then leave nothing running.

    Raises:
        ConfigError: another `rqjobs dev` runs in this folder, or the port is taken.
        NoRedis: there is no Redis, and none to start.
    """
    host = config.current().host or "127.0.0.1"
    settings = config.use(host=host)
    config.refuse_open_door(settings)
    catalog.import_from_here()
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda got, frame: stopped.append(got))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_own_terminal())
        stack.enter_context(_only_one())
        _free_port(settings)
        url = settings.redis_url or stack.enter_context(embedded.server())
        connection.connect(url).ping()
        password = secrets.token_urlsafe(9)
        environment = config.environment(
            REDIS_URL=url, RQJOBS_ONE_TIME_PASSWORD=password, SECRET_KEY=settings.secret_key or secrets.token_hex(32),
            HOST=host, PORT=settings.port,
        )
        children = [Child("web", WEB, environment)]
        children += [Child(f"worker {number + 1}", WORKER, environment) for number in range(workers)]
        stack.callback(lambda: stop(children, settings.grace + LEAVING))
        _wait_for_web(children[0], settings, stopped)
        if not stopped:
            shown = f"the password {password}" if not settings.admin_password else "RQJOBS_ADMIN_PASSWORD"
            say(f"\n  Open  http://{settings.host}:{settings.port}/\n  log in as {settings.admin_user} with {shown}")
            if not settings.redis_url:
                say(f"  Other terminals:  export REDIS_URL={shlex.quote(url)}")
            say("  Ctrl-C stops everything.\n")
        _tend(children, stopped, settings, say, None if settings.redis_url else url)
        say("\nrqjobs: stopping (a second Ctrl-C does not make it faster; running jobs have "
            f"{settings.grace} s)")


def with_worker(module: str, act: Callable[[], int]) -> int:
    """Run `act` beside a Redis and a quiet worker of its own for the jobs of `module`, and return what it returns.

    Nothing else is touched: the data are in a temporary folder, and gone afterwards.
    """
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rqjobs-")))
        url = stack.enter_context(embedded.server(home))
        config.use(redis_url=url, modules=(module,))
        environment = config.environment(REDIS_URL=url, RQJOBS_MODULES=module)
        log = stack.enter_context((home / "worker.log").open("wb"))
        worker = Child("worker", [*WORKER, "--quiet"], environment, output=log)
        stack.callback(stop, [worker], LEAVING)
        pause(30, lambda: bool(connection.client().exists("rq:workers")) or worker.process.poll() is not None)
        code = act()
        if code:
            sys.stderr.write((home / "worker.log").read_text(encoding="utf-8", errors="replace"))
        return code


def _tend(
    children: list[Child], stopped: list[int], settings: config.Config, say: Callable[[str], None],
    embedded_url: str | None,
) -> None:
    seen = _modified(settings.modules)
    while not stopped:
        pause(TICK, lambda: bool(stopped))
        if embedded_url and not embedded.answers(embedded_url) and not stopped:
            raise connection.NoRedis("the embedded Redis has ended, .rqjobs/redis.log says why; nothing it kept is "
                                     "lost: start rqjobs dev again")
        for child in children:
            child.tend(say)
        now = _modified(settings.modules)
        if now != seen:
            changed = [path for path in now.keys() | seen.keys() if now.get(path) != seen.get(path)]
            say(f"rqjobs: {Path(changed[0]).name} changed; restarting")
            seen = now
            children[0].signal(signal.SIGHUP)  # gunicorn loads the app anew
            stop(children[1:], settings.grace + LEAVING)
            for child in children[1:]:
                child.start()


def _modified(modules: tuple[str, ...]) -> dict[str, int]:
    """When each file of the packages of `modules` was last changed. Imports nothing of them."""
    times = {}
    for top in {module.partition(".")[0] for module in modules}:
        importlib.invalidate_caches()
        sys.path_importer_cache.pop("", None)
        spec = importlib.util.find_spec(top) if top not in sys.modules else sys.modules[top].__spec__
        if spec and spec.origin:
            home = Path(spec.origin)
            for path in home.parent.rglob("*.py") if spec.submodule_search_locations else [home]:
                with contextlib.suppress(OSError):
                    times[str(path)] = path.stat().st_mtime_ns
    return times


@contextlib.contextmanager
def _own_terminal() -> Iterator[None]:
    """Have Ctrl-C reach this process only, not the `make` that started it, which would call it an error."""
    if os.getpgrp() == os.getpid() or not sys.stdin.isatty() or os.tcgetpgrp(0) != os.getpgrp():
        yield
        return
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # a background group may not take the terminal otherwise
    before = os.getpgrp()
    os.setpgrp()
    os.tcsetpgrp(0, os.getpgrp())
    try:
        yield
    finally:
        os.tcsetpgrp(0, before)


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    connection.HOME.mkdir(mode=0o700, exist_ok=True)
    with (connection.HOME / "lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise config.ConfigError("rqjobs dev runs in this folder already; stop that one first") from None
        yield


def _free_port(settings: config.Config) -> None:
    try:
        with socket.create_server((settings.host, settings.port)):
            pass
    except OSError as error:
        raise config.ConfigError(f"cannot serve at HOST={settings.host!r} PORT={settings.port}: "
                                 f"{error.strerror or error}; set PORT to a free one") from None


def _wait_for_web(web: Child, settings: config.Config, stopped: list[int]) -> None:
    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((settings.host, settings.port), 1):
            return True
        return False

    pause(60, lambda: bool(stopped) or web.process.poll() is not None or answers(), step=0.1)
    if not stopped and not answers():
        raise config.ConfigError("the web app did not start; what it said is above")
