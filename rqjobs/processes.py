"""Facts about processes: who we are, who is provably gone, and dying with one's parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
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


def trim() -> None:
    """Give memory that is free back to the kernel (glibc; elsewhere nothing happens)."""
    with contextlib.suppress(AttributeError):
        _libc.malloc_trim(0)  # type: ignore[union-attr]


def host() -> str:
    """What two processes share exactly if they see each other's pids: the boot and the pid namespace.

    Empty where it cannot be read; then nothing is provable and leases alone decide.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def started(pid: int) -> str:
    """When process `pid` started, in the kernel's ticks since boot; "" if there is none or it is a zombie.

    A pid is used again sooner or later, a pid with its start time is not. Field 22 of /proc/<pid>/stat (proc(5)),
    counted after the command's name, which may itself contain spaces and parentheses, and ends after 15 bytes, perhaps
    in the middle of a character.
    """
    with contextlib.suppress(OSError, IndexError):
        rest = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
        return "" if rest[0] in "ZX" else rest[19]
    return ""


def pause(seconds: float, until: Callable[[], bool], step: float = 0.2) -> None:
    """Wait for `seconds`, or until `until()` is true (a flag that a signal handler sets), looked at each `step`."""
    end = time.monotonic() + seconds
    while not until() and (left := end - time.monotonic()) > 0:
        time.sleep(min(step, left))


def gone(pid: int, start: str) -> bool:
    """Whether the process that had `pid` and started at `start` is provably not there any more.

    What the kernel hides from us (hidepid) is there: it answers a signal with a refusal.
    """
    now = started(pid)
    if now:
        return now != start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return state(pid) in ("Z", "X")


def state(pid: int) -> str:
    """The kernel's letter for what process `pid` does (T: stopped, Z: zombie; proc(5)); "" if there is none."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()[0]
    return ""


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
