"""A proxy between workers and Redis that causes a fault at an exact command.

It also runs as a program: `python proxy.py <time-out> <block>` reads lines of JSON and forks a
worker for each. A fork of a process that has imported all modules takes a hundredth of the time
that a new Python process takes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil


def end_of(data: bytes, at: int = 0) -> int:
    """The end of the RESP2 or RESP3 value that begins at `at`; -1 if the value is incomplete."""
    line = data.find(b"\r\n", at)
    if line < 0:
        return -1
    kind, count = data[at : at + 1], data[at + 1 : line]
    after = line + 2
    if kind in b"$=!":
        end = after + int(count) + 2 if int(count) >= 0 else after
        return end if end <= len(data) else -1
    if kind in b"*>~%|":
        for _ in range(max(int(count), 0) * (2 if kind in b"%|" else 1)):
            after = end_of(data, after)
            if after < 0:
                return -1
        return end_of(data, after) if kind == b"|" else after
    return after


def words(command: bytes) -> list[bytes]:
    """The arguments of a command, which clients send as an array of strings."""
    found, at = [], command.find(b"\r\n") + 2
    while at < len(command):
        line = command.find(b"\r\n", at)
        size = int(command[at + 1 : line])
        found.append(command[line + 2 : line + 2 + size])
        at = line + 4 + size
    return found


@dataclass
class Fault:
    """A fault at the command with this number, counted from 0 among the commands that `match`.

    Args:
        what: the kind of fault.
            "cut": close the connection on both sides; "cut all": close all connections.
            "kill": SIGKILL for the process that sent the command, or for `victim`.
            "stop": SIGSTOP for that process, and "mute".
            "deaf": replies on this connection are dropped, and it stays open; "deaf all": on all.
            "mute": requests on this connection are dropped; "mute all": on all.
            "none": count only.
        after: the command takes effect, and its reply is dropped.
        match: a function of (pid, arguments); None matches every command.
        waits: a blocking pop that was sent before the fault was set counts as command 0.
    """

    number: int
    what: str = "cut"
    after: bool = False
    match: Callable[[int, list[bytes]], bool] | None = None
    waits: bool = False
    victim: int = 0
    seen: list[str] = field(default_factory=list)
    fired: threading.Event = field(default_factory=threading.Event)
    hit: str = ""  # the name of the command


def name_of(command: list[bytes], scripts: dict[str, str]) -> str:
    first = command[0].decode().upper()
    if first in ("EVALSHA", "EVAL") and len(command) > 1:
        return f"{first} {scripts.get(command[1].decode(errors='replace'), '?')}"
    return (
        f"{first} {command[1].decode(errors='replace')}" if first in ("CLIENT", "SCRIPT") else first
    )


class Proxy:
    """Forwards from `path`, or from loopback, to the unix socket `upstream`, with one fault."""

    def __init__(self, path: str, upstream: str, scripts: dict[str, str] | None = None):
        self.upstream, self.scripts = upstream, scripts or {}
        self.lock = threading.RLock()
        self.fault: Fault | None = None
        self.lines: set[Line] = set()
        self.trips = 0  # bursts of commands that came in
        self.refusal = (
            b""  # the error reply to every command, except the first ones of a connection
        )
        if path:
            self.listener, self.url = socket.socket(socket.AF_UNIX), f"unix://{path}"
            self.listener.bind(path)
            self.listener.listen(64)
        else:
            self.listener = socket.create_server(("127.0.0.1", 0))
            self.url = "redis://{}:{}".format(*self.listener.getsockname())
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def arm(self, fault: Fault) -> Fault:
        """Replace the fault; the count of commands begins now."""
        with self.lock:
            self.fault = fault
            if fault.waits:
                for line in self.lines:
                    if (
                        line.unanswered
                        and line.unanswered[-1].startswith("BLMOVE")
                        and (fault.match is None or fault.match(line.pid, [b"BLMOVE"]))
                    ):
                        fault.seen.append("BLMOVE")
                        if fault.number == 0:
                            line.doomed, fault.hit = len(line.unanswered), "BLMOVE"
                        break
        return fault

    def disarm(self) -> None:
        """Remove the fault. Deaf and mute connections are closed, as a network does in the end.

        So are those that a fault has hit without an effect yet: the next fault would strike there.
        """
        with self.lock:
            self.fault = None
            silenced = [line for line in self.lines if line.deaf or line.mute or line.doomed]
        for line in silenced:
            line.close()

    def waiting(self, pid: int) -> int:
        """The number of queues on which a process waits for work."""
        with self.lock:
            return sum(
                line.pid == pid
                and line.unanswered[-1:] == ["BLMOVE"]
                and not (line.deaf or line.mute or line.closing)
                for line in self.lines
            )

    def cut_all(self) -> None:
        with self.lock:
            lines = list(self.lines)
        for line in lines:
            line.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)
        self.cut_all()
        with self.lock:
            threads = [line.thread for line in self.lines]
        for thread in threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                server = socket.socket(socket.AF_UNIX)
                server.connect(self.upstream)
            except OSError:
                server.close()
                client.close()
                continue
            line = Line(self, client, server)
            with self.lock:
                self.lines.add(line)
            line.thread.start()

    def _strike(self, fault: Fault, line: Line) -> None:
        """Apply the fault. The caller has the lock."""
        if fault.what in ("kill", "stop"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(
                    fault.victim or line.pid,
                    signal.SIGKILL if fault.what == "kill" else signal.SIGSTOP,
                )
            if fault.what == "kill":
                line.close()
            line.mute = True
        elif fault.what == "cut":
            line.close()
        elif fault.what == "cut all":
            for one in list(self.lines):
                one.close()
        elif fault.what != "none":
            how, _, everywhere = fault.what.partition(" ")
            for one in list(self.lines) if everywhere else [line]:
                setattr(one, how, True)
        fault.fired.set()


def sender_of(client: socket.socket) -> int:
    """The pid of the process at the other end, a child of this one; 0 if it is not found.

    If it has just forked, the pid of its parent.
    """
    if client.family == socket.AF_UNIX:
        credentials = client.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
        )
        return struct.unpack("3i", credentials)[0]
    found = []
    try:
        address = client.getpeername()
    except OSError:  # it has closed the connection again
        return 0
    for process in psutil.Process().children(recursive=True):  # to ask all would take too long
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(one.laddr == address for one in process.net_connections("tcp4")):
                found.append(process.pid)
    return min(found, default=0)


class Line:
    """One connection through the proxy, on a thread of its own."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket):
        self.proxy, self.client, self.server = proxy, client, server
        self.pid = sender_of(client)
        self.unanswered: list[str] = []  # names of the commands that were passed on
        self.doomed = 0  # the number of the command whose reply is not passed on
        self.deaf = self.mute = self.closing = False
        self.wake, self.waker = os.pipe()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def close(self) -> None:
        """Close both sides, from any thread. Both sides are closed before this returns."""
        with self.proxy.lock:
            if not self.closing:
                self.closing = True
                for end in (self.client, self.server):
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                os.write(self.waker, b"x")

    def _run(self) -> None:
        requests = replies = b""
        try:
            while not self.closing:
                ready, _, _ = select.select([self.client, self.server, self.wake], [], [])
                if self.client in ready:
                    data = self.client.recv(1 << 20)
                    if not data:
                        break
                    with self.proxy.lock:
                        self.proxy.trips += 1
                        requests = self._requests(requests + data)
                if self.server in ready and not self.closing:
                    data = self.server.recv(1 << 20)
                    if not data:
                        break
                    with self.proxy.lock:
                        replies = self._replies(replies + data)
        except OSError:
            pass
        finally:
            self.close()
            with self.proxy.lock:
                self.proxy.lines.discard(self)
            for end in (self.client, self.server):
                end.close()
            os.close(self.wake)
            os.close(self.waker)

    def _requests(self, data: bytes) -> bytes:
        at = 0
        while not self.closing and (end := end_of(data, at) if at < len(data) else -1) > 0:
            command, at = data[at:end], end
            spoken = words(command)
            name = name_of(spoken, self.proxy.scripts)
            strikes = self._due(spoken, name)
            if strikes and not strikes.after:
                self.proxy._strike(strikes, self)
            # Later commands on the connection of a doomed command are dropped.
            if self.closing or self.doomed or self.mute:
                continue
            if self.proxy.refusal and spoken[0].upper() not in (
                b"HELLO",
                b"AUTH",
                b"CLIENT",
                b"SELECT",
            ):
                self.client.sendall(b"-" + self.proxy.refusal + b"\r\n")
                continue
            self.unanswered.append(name)
            if strikes and strikes.after:
                self.doomed = len(self.unanswered)
            self.server.sendall(command)
        return data[at:]

    def _due(self, spoken: list[bytes], name: str) -> Fault | None:
        fault = self.proxy.fault
        if (
            fault is None
            or fault.hit
            or self.doomed
            or (fault.match and not fault.match(self.pid, spoken))
        ):
            return None
        fault.seen.append(name)
        if len(fault.seen) - 1 != fault.number:
            return None
        fault.hit = name
        return fault

    def _replies(self, data: bytes) -> bytes:
        at = 0
        while not self.closing and (end := end_of(data, at) if at < len(data) else -1) > 0:
            reply, at = data[at:end], end
            pushed = reply[:1] == b">" and not (
                self.unanswered and "SUBSCRIBE" in self.unanswered[0]
            )
            if not pushed and self.unanswered:
                self.unanswered.pop(0)
                if self.doomed:
                    self.doomed -= 1
                    if not self.doomed and self.proxy.fault:
                        self.proxy._strike(self.proxy.fault, self)
            if not self.deaf and not self.closing:
                self.client.sendall(reply)
        return data[at:]


def serve_workers() -> None:
    """The program: fork a worker for each line of JSON.

    A line is {"queues": […], "options": {…}, "env": {…}, "log": path}.
    """
    from rqjobs import catalog, config, connection, processes
    from rqjobs.broker import leases
    from rqjobs.worker import listener, supervisor, worker

    timeout, block = map(float, sys.argv[1:])
    leases.SWEEP_LOCK_MILLISECONDS = 500
    worker.HEARTBEAT_SECONDS = 0.25
    worker.MAX_SLEEP_SECONDS = 0.1
    supervisor.CRASH_DELAY_SECONDS = 0.05
    supervisor.UNRESPONSIVE_SETTLING_SECONDS = 10 * timeout + 3
    supervisor.MIN_RESPAWN_DELAY_SECONDS = 0.01
    supervisor.MAX_RESPAWN_DELAY_SECONDS = 0.1
    connection.CONNECTION_OPTIONS["socket_timeout"] = timeout
    listener.BLOCK_SECONDS = block
    config.use(config.Config(modules=("sample_jobs",), shutdown_timeout=2))
    catalog.must_load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        processes.die_with_parent()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            config.use(redis_url=order["url"])
            worker.Worker(order["queues"], **order.get("options", {})).work(logging_level="INFO")
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)


if __name__ == "__main__":
    serve_workers()
