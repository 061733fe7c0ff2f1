"""The processes that jobs start: they run as in a plain script, end with their horse, and leave no
zombies.

A process that a job starts is in the horse's process group, and is killed with it. A process that
begins a session of its own (`start_new_session=True`, `setsid`) leaves that group, and outlives the
horse.
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

EXIT_SECONDS = 5  # the time limit of exit functions
ZOMBIE_CHECK_SECONDS = 1.0  # between two checks for zombies
TIMER_SIGNALS = (signal.SIGPROF, signal.SIGVTALRM)
_before_fork_state = threading.local()  # the signal mask of a thread that forks


def flush_output() -> None:
    """Write the buffered output. Python keeps it for later if it goes into a pipe."""
    with contextlib.suppress(Exception):  # no stream, a full disk, or an object of the job's
        sys.stderr.flush()
        sys.stdout.flush()


def ignore(number: int, frame: FrameType | None) -> None:
    """The horse's handler of SIGTERM and SIGINT, and of timers that a job has left running.

    The parent decides when the horse ends. SIG_IGN would be inherited by the programs of a job.
    """


def detach_from_parent() -> None:
    """In a child that the worker has just forked: cut the ties to the parent's children.

    A job that waits for its children, or an exit function, would else reach those of the parent.
    """
    logs.limit_line_time(False)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, *TIMER_SIGNALS):
        signal.signal(number, ignore)
    for number in (signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    os.register_at_fork(
        before=_before_fork, after_in_parent=_unblock_signals, after_in_child=_restore_signals
    )
    # As multiprocessing does in its children. The exit functions so far are the parent's.
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]
    atexit._clear()
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    atexit.register(logging.shutdown)
    atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]


def _before_fork() -> None:
    """Hold back signals that reach a job's child before the child has its own handlers."""
    flush_output()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    _before_fork_state.mask = blocked


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _before_fork_state.mask)


def _restore_signals() -> None:
    """In a child that a job has forked: replace the horse's handlers by those of a plain script."""
    for number in (signal.SIGTERM, *TIMER_SIGNALS):
        if signal.getsignal(number) is ignore:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is ignore:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if isinstance(getattr(signal.getsignal(signal.SIGALRM), "__self__", None), BaseDeathPenalty):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _unblock_signals()


def run_exit_functions() -> None:
    """End as a script does: wait for threads, shut executors down, run the exit functions."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()


class Reaper:
    """Waits for children that jobs have forked and abandoned.

    A zombie is abandoned if it is there at two checks between jobs, and if no `Popen` and no
    `multiprocessing.Process` refers to it.
    """

    def __init__(self) -> None:
        self.suspects: set[int] = set()
        self.checked_at = 0.0  # in seconds of the monotonic clock

    def reap(self) -> None:
        """Check for zombies, if the last check was ZOMBIE_CHECK_SECONDS ago."""
        if time.monotonic() - self.checked_at < ZOMBIE_CHECK_SECONDS:
            return
        self.checked_at = time.monotonic()
        abandoned = _abandoned_zombies() if has_zombie() else set()
        for pid in abandoned & self.suspects:
            wait_for(pid)
        self.suspects = abandoned - self.suspects


def _abandoned_zombies() -> set[int]:
    abandoned = set(processes.zombies(os.getpid()))
    if abandoned:
        children = multiprocessing.process._children  # type: ignore[attr-defined]
        abandoned -= {child.pid for child in children}
        objects = gc.get_objects()
        abandoned -= {one.pid for one in objects if issubclass(type(one), subprocess.Popen)}
    return abandoned


def has_zombie() -> bool:
    """Whether a child has ended, and was not waited for."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def wait_for(pid: int) -> None:
    """Remove a zombie, unless another part of the program has waited for it."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def reap_orphans(own: set[int]) -> None:
    """Wait for the orphans that the kernel gives to the first process of a container.

    Zombies in `own` are left alone, and those of this process's own group: the code that started
    them waits for them.
    """
    if has_zombie():
        for pid, group in processes.zombies(os.getpid()).items():
            if pid not in own and group != os.getpgrp():
                wait_for(pid)
