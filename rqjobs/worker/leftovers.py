"""Leftovers: changes that a job makes to its process. They are undone before the next job.

Restored are the standard streams, the working directory, the umask, signal handlers, the default
timeout of new sockets, and environment variables that were changed or removed. A variable that was
added stays: a library may have set it when it was imported. RQ ends one interval timer after each
job, and the horse ignores the signals of the other two. After each job this takes a few
microseconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys

# `signal.getsignal` makes an Enum, which takes ten times as long.
from _signal import getsignal  # type: ignore[import-not-found]

# The signals whose handlers are restored. RQ sets the handler of SIGALRM for each job.
RESTORED_SIGNALS = (
    int(signal.SIGCHLD),
    int(signal.SIGPIPE),
    int(signal.SIGTERM),
    int(signal.SIGINT),
    int(signal.SIGPROF),
    int(signal.SIGVTALRM),
)
JOB_ID_VARIABLE = b"RQ_JOB_ID"


class Leftovers:
    """The state of a horse's process before its first job, to be restored after each job."""

    # Whether a job has left a change that only a new process can undo: a closed stream.
    are_final = False

    def __init__(self) -> None:
        self.streams = (sys.stdout, sys.stderr)
        self.open = [stream for stream in self.streams if stream is not None and not stream.closed]
        self.handlers = [*map(getsignal, RESTORED_SIGNALS)]
        self.folder = _folder()
        self.umask = os.umask(0o077)
        os.umask(self.umask)
        self.socket_timeout = socket.getdefaulttimeout()
        self.environ = dict(os.environb)

    def set_job_id(self, job_id: str) -> None:
        """Set RQ_JOB_ID. `os.environ` would look at both texts, which takes as long again."""
        value = job_id.encode(errors="surrogateescape")
        os.putenv(JOB_ID_VARIABLE, value)
        os.environ._data[JOB_ID_VARIABLE] = self.environ[JOB_ID_VARIABLE] = value  # type: ignore[attr-defined]

    def undo(self) -> None:
        """Restore the state. Sets `are_final` if that is not possible."""
        if [*map(getsignal, RESTORED_SIGNALS)] != self.handlers:
            self._restore_handlers()
        sys.stdout, sys.stderr = self.streams
        os.umask(self.umask)
        socket.setdefaulttimeout(self.socket_timeout)
        if self.folder and _folder() != self.folder:
            with contextlib.suppress(OSError):  # the folder was removed
                os.chdir(self.folder)
        self._restore_environment()
        self._flush_streams()

    def _restore_handlers(self) -> None:
        for number, handler in zip(RESTORED_SIGNALS, self.handlers, strict=True):
            is_of_python = handler is not None
            if is_of_python and getsignal(number) != handler:
                signal.signal(number, handler)

    def _restore_environment(self) -> None:
        variables = os.environ._data  # type: ignore[attr-defined]  # `environb` decodes each one
        if variables == self.environ:
            return
        for name, value in self.environ.items():
            if variables.get(name) != value:
                os.environb[name] = value
        self.environ = dict(os.environb)

    def _flush_streams(self) -> None:
        """Write the job's output now. Python keeps it in a buffer if it goes into a pipe."""
        for stream in self.open:
            try:
                stream.flush()
            except (
                ValueError
            ):  # it is closed or detached, perhaps since its replacement was dropped
                self.are_final = True
            except Exception:  # the disk is full
                pass


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""
