"""The processes that jobs start: they behave as in a plain script, end with their horse, and leave no zombies.

What a job starts is in its horse's process group. A process that begins a session of its own (`start_new_session=True`,
`setsid`) is on its own: it outlives the horse.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import multiprocessing.process
import multiprocessing.util
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from types import FrameType

from rq.timeouts import BaseDeathPenalty

from rqjobs import logs, processes

EXIT_SECONDS = 5  # that exit functions may take
OF_TIMERS = (signal.SIGPROF, signal.SIGVTALRM)
REAP_SECONDS = 1.0  # between two looks for zombies
_before = threading.local()  # what a thread that forks had before


def flush() -> None:
    """Write out what was printed; into a pipe Python would keep it for later."""
    with contextlib.suppress(
        Exception
    ):  # there is none, it is full, or a job has put something else in its place
        sys.stderr.flush()
        sys.stdout.flush()


def ignore(number: int, frame: FrameType | None) -> None:
    """A horse's handler for SIGTERM and SIGINT, for its parent decides when it ends, and for the signals of timers that
    a job has left running. SIG_IGN would survive an exec."""


def begin() -> None:
    """In a horse that has just been forked: what it starts is its own, what its parent started is not."""
    logs.limit_line_time(False)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, *OF_TIMERS):
        signal.signal(number, ignore)
    for number in (signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    os.register_at_fork(
        before=_before_fork, after_in_parent=_unblock_signals, after_in_child=_restore_signals
    )
    # As multiprocessing does in its children. The exit functions that were registered before are the parent's.
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]
    atexit._clear()
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    atexit.register(logging.shutdown)
    atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]


def _before_fork() -> None:
    """A signal that reaches the child before it has its own handlers waits until then."""
    flush()
    _before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _before.mask)


def _restore_signals() -> None:
    """In a child that a job forked: the signal handlers of a plain script in the place of the horse's."""
    for number in (signal.SIGTERM, *OF_TIMERS):
        if signal.getsignal(number) is ignore:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is ignore:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if isinstance(getattr(signal.getsignal(signal.SIGALRM), "__self__", None), BaseDeathPenalty):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _unblock_signals()


def end() -> None:
    """What Python does when a script has run to its end: wait for threads, end executors, call the exit functions."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()


class Reaper:
    """Waits for children that jobs have forked and forgotten. A zombie that is seen at two looks between jobs, and that
    no `Popen` and no `multiprocessing.Process` stands for, is one of them."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.looked = 0.0

    def reap(self) -> None:
        if time.monotonic() - self.looked < REAP_SECONDS:
            return
        self.looked = time.monotonic()
        forgotten = set(processes.zombies(os.getpid())) if has_zombie() else set()
        if forgotten:
            forgotten -= {child.pid for child in multiprocessing.process._children}  # type: ignore[attr-defined]
            forgotten -= {
                one.pid for one in gc.get_objects() if issubclass(type(one), subprocess.Popen)
            }
        for pid in forgotten & self.seen:
            wait_for(pid)
        self.seen = forgotten - self.seen


def has_zombie() -> bool:
    """Whether a child has ended and was not waited for yet."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def wait_for(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def reap_orphans(own: set[int]) -> None:
    """Wait for the orphans that the kernel gave us, as it does to the first process of a container.

    Left alone are `own`, and what is in our own process group: whoever started that waits for it.
    """
    if has_zombie():
        for pid, group in processes.zombies(os.getpid()).items():
            if pid not in own and group != os.getpgrp():
                wait_for(pid)
