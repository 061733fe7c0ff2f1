"""Facts about processes: who we are, who is provably gone, and dying with one's parent."""

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
MAXRSS_UNIT = 1024 if sys.platform == "linux" else 1  # bytes; of getrusage's ru_maxrss
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send `number` to this process when its parent dies (Linux; elsewhere nothing happens).

    The signal is set after the fork, so a parent that died in between is noticed by the caller, who compares
    `os.getppid()` with what it was.
    """
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def trim_memory() -> None:
    """Give memory that is free back to the kernel (glibc; elsewhere nothing happens)."""
    with contextlib.suppress(AttributeError):
        _libc.malloc_trim(0)  # type: ignore[union-attr]


def host_id() -> str:
    """What two processes share exactly if they see each other's pids: the boot and the pid namespace.

    Empty where it cannot be read; then nothing is provable and leases alone decide.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_time(pid: int) -> str:
    """When process `pid` started, in the kernel's ticks since boot; "" if there is none or it is a zombie.

    A pid is used again sooner or later, a pid with its start time is not. Field 22 of /proc/<pid>/stat (proc(5)),
    counted after the command's name, which may itself contain spaces and parentheses, and ends after 15 bytes, perhaps
    in the middle of a character.
    """
    fields = _stat(pid)
    return "" if not fields or fields[0] in "ZX" else fields[19]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the third one, the state, on; none if there is no such process."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
        return fields if len(fields) > 19 else []
    return []


def _all() -> Iterator[tuple[int, list[str]]]:
    """Every process that /proc shows, with its `_stat`; none where there is no /proc."""
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit() and (fields := _stat(int(name))):
                yield int(name), fields


def zombies(parent: int) -> dict[int, int]:
    """The children of `parent` that have ended and were not waited for yet, each with its process group."""
    return {
        pid: int(fields[2])
        for pid, fields in _all()
        if fields[0] == "Z" and int(fields[1]) == parent
    }


def end_group(group: int, seconds: float = 2.0) -> None:
    """Kill every process of a group whose leader is a zombie of the caller's, and wait until they have ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
        _wait_for_group(group, seconds)


def end_abandoned_group(group: int, started: str, session: str, seconds: float = 2.0) -> None:
    """Kill what is left of a group whose leader, which had started at `started` in `session`, is provably gone.

    A pid is not given out again while a group is called so. When the group was empty for a moment it may be another's
    now: that has a leader, or it is of another session, or its processes are older than the leader was.
    """
    left = _members(group)
    ours = started.isdigit() and all(
        fields[3] == session and int(fields[19]) >= int(started) for fields in left.values()
    )
    if left and ours and group not in left and group not in (os.getpid(), os.getpgrp()):
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
    """Bytes of memory that this process has now; where the kernel does not say so, the most that it ever had."""
    try:
        return (
            int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            * resource.getpagesize()
        )
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT


def wait_until(seconds: float, until: Callable[[], bool], step: float = 0.2) -> None:
    """Wait for `seconds`, or until `until()` is true (a flag that a signal handler sets), looked at each `step`."""
    end = time.monotonic() + seconds
    while not until() and (left := end - time.monotonic()) > 0:
        time.sleep(min(step, left))


def is_gone(pid: int, start: str) -> bool:
    """Whether the process that had `pid` and started at `start` is provably not there any more.

    What the kernel hides from us (hidepid) is there: it answers a signal with a refusal. So is a process of which
    nobody could read when it started.
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
    """The kernel's letter for what process `pid` does (T: stopped, Z: zombie; proc(5)); "" if there is none."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def readable(files: Iterable[Any], seconds: float) -> list[Any]:
    """Those of `files` (sockets, descriptors) that can be read, as soon as one can or `seconds` have passed.

    `select.select` does the same, but fails for descriptors above 1,023.
    """
    poll, known = select.poll(), {}
    for file in files:
        number = file if isinstance(file, int) else file.fileno()
        known[number] = file
        poll.register(number, select.POLLIN)
    return [known[number] for number, _ in poll.poll(max(0.0, seconds) * 1000)]


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
