"""Facts about operating-system processes: identity, end, memory, process groups."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
MAXRSS_UNIT_BYTES = 1  # of getrusage's ru_maxrss
KILL_GROUP_SECONDS = 2.0
_libc: Any = None
if sys.platform == "linux":
    MAXRSS_UNIT_BYTES = 1024
    _libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send the signal `number` to this process when its parent dies (Linux only).

    The parent may have died between the fork and this call. The caller must compare `os.getppid()`
    with the parent's pid.
    """
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def trim_memory() -> None:
    """Return free memory to the kernel (glibc only)."""
    with contextlib.suppress(AttributeError):
        _libc.malloc_trim(0)


def host_id() -> str:
    """The boot and the pid namespace of this process, which processes with the same pids share.

    Returns "" if the kernel does not show it. Leases alone then decide which workers are alive.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_time(pid: int) -> str:
    """When process `pid` started, in kernel ticks since boot; "" if it has ended or is a zombie.

    A pid is reused sooner or later; a pid with its start time is unique. It is field 22 of
    /proc/<pid>/stat (proc(5)). The fields are counted after the command's name, which may contain
    spaces and parentheses, and is cut after 15 bytes, perhaps within a character.
    """
    fields = _stat(pid)
    if not fields or fields[0] in "ZX":
        return ""
    return fields[19]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat, starting with the state; none if there is no such process."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
        return fields if len(fields) > 19 else []
    return []


def _all() -> Iterator[tuple[int, list[str]]]:
    """Every process in /proc, with its `_stat`; none where there is no /proc."""
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit() and (fields := _stat(int(name))):
                yield int(name), fields


def zombies(parent: int) -> dict[int, int]:
    """The children of `parent` that have ended and are not reaped, each with its process group."""
    return {
        pid: int(fields[2])
        for pid, fields in _all()
        if fields[0] == "Z" and int(fields[1]) == parent
    }


def end_group(group: int, seconds: float = KILL_GROUP_SECONDS) -> None:
    """Kill a process group, and wait up to `seconds` until its processes have ended.

    The group's leader must be a zombie of the caller: it keeps the group's id from reuse.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
        _wait_for_group(group, seconds)


def end_abandoned_group(
    group: int, started: str, session: str, seconds: float = KILL_GROUP_SECONDS
) -> None:
    """Kill the rest of a group whose leader is gone. The leader started at `started` in `session`.

    The kernel does not reuse a pid while a group has that id. A group that was empty for a moment
    may be a new one. The new group then has a leader, or another session, or processes that are
    older than the old leader.
    """
    members = _members(group)
    if not started.isdigit() or not members or group in members:
        return
    if group in (os.getpid(), os.getpgrp()):
        return
    is_same_group = all(
        fields[3] == session and int(fields[19]) >= int(started) for fields in members.values()
    )
    if is_same_group:
        end_group(group, seconds)


def _members(group: int) -> dict[int, list[str]]:
    return {
        pid: fields for pid, fields in _all() if fields[2] == str(group) and fields[0] not in "ZX"
    }


def _wait_for_group(group: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while _members(group) and time.monotonic() < deadline:
        time.sleep(0.005)


def memory_bytes() -> int:
    """The memory of this process; its maximum where the kernel does not show the current size."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT_BYTES


def memory_of(pid: int) -> int:
    """The memory of another process in bytes; 0 if the kernel does not show it."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * resource.getpagesize()


def wait_until(seconds: float, condition: Callable[[], bool], step: float = 0.2) -> None:
    """Wait until `condition()` is true, at most `seconds`. It is checked every `step` seconds."""
    end = time.monotonic() + seconds
    while not condition() and (left := end - time.monotonic()) > 0:
        time.sleep(min(step, left))


def is_gone(pid: int, start: str) -> bool:
    """Whether the process with `pid` and the start time `start` has provably ended.

    A process that the kernel hides (hidepid) has not: a signal to it is refused. Without a start
    time a process that exists has not ended either.
    """
    now = start_time(pid)
    if now:
        return bool(start) and now != start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return state(pid) in ("Z", "X")


def state(pid: int) -> str:
    """The kernel's letter for the state of `pid` (T: stopped, Z: zombie; proc(5)), or ""."""
    fields = _stat(pid)
    if not fields:
        return ""
    return fields[0]


def readable(files: Iterable[Any], seconds: float) -> list[Any]:
    """Wait up to `seconds`; returns the sockets and descriptors of `files` that can be read.

    `select.select` does the same, but fails for descriptors above 1,023.
    """
    poll = select.poll()
    file_by_number = {}
    for file in files:
        number = file if isinstance(file, int) else file.fileno()
        file_by_number[number] = file
        poll.register(number, select.POLLIN)
    return [file_by_number[number] for number, _ in poll.poll(max(0.0, seconds) * 1000)]


class SignalPipe:
    """Lets a signal end a wait for sockets: `reader` is readable once a signal has arrived.

    That holds for signals that have a handler in Python. A process can have one such pipe at a time.
    """

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def drain(self) -> None:
        """Make `reader` unreadable until the next signal. Call it only when `reader` is readable."""
        self.reader.recv(4096)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self.reader.close()
        self._writer.close()
