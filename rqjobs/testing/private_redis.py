"""The private Redis of a test: on a socket in a temporary folder, and started when it is needed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis

from rqjobs import config, connection
from rqjobs.dev import redis_server

KEEPER_JOIN_SECONDS = 30


class PrivateRedis:
    """A Redis server for the tests of one process. It starts when a test first needs it.

    `home` is an empty folder. A shorter one is taken if a socket there would have too long a path.
    """

    def __init__(self, home: Path):
        self._own_home: Path | None = None
        if len(bytes(home.absolute())) > redis_server.SOCKET_FOLDER_MAX_BYTES:
            home = self._own_home = Path(tempfile.mkdtemp(prefix="rqjobs-"))
        self.home = home.absolute()
        self.socket = str(self.home / "redis.sock")
        self.url = f"unix://{quote(self.socket)}"
        self._lock = threading.RLock()
        self._exit = contextlib.ExitStack()
        self._is_running = False
        self._clients: list[redis.Redis] = []  # those that use this Redis now

    def start(self) -> None:
        """Start the server, if it does not run.

        Raises:
            NoRedis: this machine has no server, or the server does not start.
        """
        with self._lock:
            if self._is_running:
                return
            if threading.current_thread() is threading.main_thread():
                self._exit.enter_context(self._server())
            else:
                self._start_in_thread()
            self._is_running = True

    def stop(self) -> None:
        """Stop the server and wait until it has ended."""
        with self._lock:
            self._exit.close()
            self._is_running = False
        if self._own_home:
            shutil.rmtree(self._own_home, ignore_errors=True)

    def client(self) -> redis.Redis:
        """A client of its own for the running server."""
        return connection.connect(self.url)

    @contextlib.contextmanager
    def _server(self) -> Iterator[None]:
        with warnings.catch_warnings():
            # Python 3.12 warns of a fork in a process with threads. The child only starts Redis.
            warnings.simplefilter("ignore", DeprecationWarning)
            options = ("--appendonly", "no", "--databases", "64")
            server = redis_server.server(self.home, *options)
            server.__enter__()
        try:
            yield
        finally:
            server.__exit__(None, None, None)

    def _start_in_thread(self) -> None:
        """Start the server in a thread that lives as long as the server.

        The kernel ends the server with the thread that has started it.
        """
        started = threading.Event()
        ended = threading.Event()
        errors: list[BaseException] = []

        def keep() -> None:
            try:
                with self._server():
                    started.set()
                    ended.wait()
            except BaseException as error:
                errors.append(error)
                started.set()

        keeper = threading.Thread(target=keep, name="rqjobs-private-redis", daemon=True)
        keeper.start()
        started.wait()
        if errors:
            raise errors[0]
        self._exit.callback(keeper.join, KEEPER_JOIN_SECONDS)
        self._exit.callback(ended.set)

    @contextlib.contextmanager
    def in_use(self, use: Use, at_once: bool = False) -> Iterator[None]:
        """Let every client of rqjobs use this Redis within the block.

        `at_once`: start it now, and not with the first command.

        Raises:
            NoRedis: it cannot be started.
        """
        config.current()  # reads .env, which sets variables
        outer_clients = self._clients
        clients = self._clients = outer_clients or self._find_clients()
        pools = [client.connection_pool for client in clients]
        variables = {"REDIS_URL": self.url, config.TEST_REDIS: self.socket}
        for client in clients:
            client.connection_pool = use.pool
        try:
            with config.overridden(redis_url=self.url), variables_set(variables):
                if at_once:
                    use.begin()
                yield
        finally:
            self._clients = outer_clients
            for client, pool in zip(clients, pools, strict=True):
                client.connection_pool = pool
            use.pool.disconnect()

    def _find_clients(self) -> list[redis.Redis]:
        """The clients of rqjobs that objects of the program may have already, and ours."""
        clients = [connection.client_for(self.url)]
        with contextlib.suppress(connection.NoRedis, config.ConfigError):
            clients.append(connection.client_for(connection.url()))
        return clients


class Use:
    """The use of the private Redis by one fixture. It begins with the first connection.

    Args:
        begin: called once, before the first command.
        packer: packs the commands, in the place of `connection.SurrogatePacker`.
    """

    def __init__(
        self, server: PrivateRedis, begin: Callable[[], None] | None = None, packer: Any = None
    ):
        self.server = server
        self.has_begun = False
        self._begin = begin
        self._lock = threading.RLock()
        options = dict(connection.CONNECTION_OPTIONS)
        if packer is not None:
            options["command_packer"] = packer
        self.pool = redis.ConnectionPool(
            connection_class=PrivateConnection, path=server.socket, use=self, **options
        )

    def begin(self) -> None:
        """Start the server, and empty its databases, before the first connection is made."""
        with self._lock:
            if self.has_begun:
                return
            self.server.start()
            self.has_begun = True
            with self.server.client() as client:
                client.flushall()
            if self._begin:
                self._begin()


class PrivateConnection(connection.UnixConnection):
    """A connection to the private Redis, which starts it."""

    def __init__(self, *args: Any, use: Use, **options: Any):
        self._use = use
        super().__init__(*args, **options)

    def connect(self) -> None:
        self._use.begin()
        super().connect()


@contextlib.contextmanager
def variables_set(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables within the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def read_settings(folder: Path) -> None:
    """Read the settings, and `.env` in `folder`, unless this process has read them already.

    The test that needs them first may have changed the working directory.

    Raises:
        ConfigError: a setting is wrong.
    """
    before = Path.cwd()
    os.chdir(folder)
    try:
        config.current()
    finally:
        os.chdir(before)
