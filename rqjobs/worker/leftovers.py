"""What a job changes in its process, and leaves so: the next job begins as the first one did.

Put back are the standard streams, the working directory, the umask, signal handlers, the time-out of new sockets, and
environment variables that were changed or removed. A variable that was added stays: it may be what a library has set
when it was imported. Of the interval timers, RQ ends one with the job's time limit, whether it has one or not; the
horse ignores the signals of the others. After each job this takes a few microseconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from _signal import getsignal  # type: ignore[import-not-found]  # that of `signal` makes enums, in ten times the time

# Not SIGALRM: each job's time limit puts its own handler there, and ends its timer.
SIGNALS = [
    *map(
        int,
        (
            signal.SIGCHLD,
            signal.SIGPIPE,
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGPROF,
            signal.SIGVTALRM,
        ),
    )
]
OF_HORSE = os.fsencode("RQ_JOB_ID")  # which the horse sets for each job


class Leftovers:
    """Made in a horse before its first job."""

    are_final = False  # there is something that only a new process has again: a stream was closed

    def __init__(self) -> None:
        self.streams = sys.stdout, sys.stderr
        self.open = [stream for stream in self.streams if stream is not None and not stream.closed]
        self.handlers = [*map(getsignal, SIGNALS)]
        self.folder = _folder()
        self.umask = os.umask(0o077)
        os.umask(self.umask)
        self.socket_timeout = socket.getdefaulttimeout()
        self.environ = dict(os.environb)

    def undo(self) -> None:
        if [*map(getsignal, SIGNALS)] != self.handlers:
            self._undo_handlers()
        sys.stdout, sys.stderr = self.streams
        os.umask(self.umask)
        socket.setdefaulttimeout(self.socket_timeout)
        if self.folder and _folder() != self.folder:
            with contextlib.suppress(OSError):  # it is gone
                os.chdir(self.folder)
        variables = os.environ._data  # type: ignore[attr-defined]  # `environb` decodes each of them
        self.environ[OF_HORSE] = variables.get(OF_HORSE, b"")
        if variables != self.environ:
            os.environb.update(
                {
                    name: value
                    for name, value in self.environ.items()
                    if variables.get(name) != value
                }
            )
            self.environ = dict(os.environb)
        for stream in self.open:
            try:
                stream.flush()  # into a pipe Python would keep for later what was printed
            except ValueError:  # closed or detached, also when something was dropped that the job had put in its place
                self.are_final = True
            except Exception:  # it is full
                pass

    def _undo_handlers(self) -> None:
        for number, handler in zip(SIGNALS, self.handlers, strict=True):
            if (
                handler is not None and getsignal(number) != handler
            ):  # None: one that is not Python's
                signal.signal(number, handler)


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""
