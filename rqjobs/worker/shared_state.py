"""Memory that a horse shares with its parent, who reads it even when the horse is dead."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import tempfile
import time
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, NamedTuple

from rq.utils import utcformat

from rqjobs.policies.retries import Action, Decision

# The time limit of exception handlers, and of webhooks beyond their own time limits.
HANDLER_SECONDS = 60
NO_KILL_AFTER = -1.0  # of a job without the option `kill_after`: RQJOBS_SHUTDOWN_TIMEOUT counts


class HorsePhase(IntEnum):
    """The step of its work that a horse is in."""

    STARTING = 0
    IDLE = 1  # it claims, or waits for a job
    RUNNING = 2  # a job runs, or its callbacks and handlers do
    SETTLING = 3  # it waits for Redis to record an outcome
    SUSPENDED = 4  # `rq suspend` is in force
    LEAVING = 5  # it has settled its jobs and ends
    AFTER = 6  # the outcome is recorded; webhooks are sent
    QUIET = 7  # the parent has asked it to take no jobs


class ExitReason(str, Enum):
    """Why a horse has ended, with all of its jobs settled. The text goes to the log."""

    STOPPED = "stopped"  # the parent asked for it
    DRAINED = "queues empty"  # in a burst
    IDLE = "idle"  # for max_idle_time
    MAX_JOBS = "max jobs"
    REPLACED = "replaced"  # after RQJOBS_MAX_JOBS_PER_CHILD jobs, or damage that a job has left
    GROWN = "grown"  # by more than it may


class HorseState:
    """The horse's progress, which the horse writes, and the requests to stop and to be quiet, which
    the parent writes.

    A counter that is odd during a write lets a reader notice a torn read.
    """

    COUNTER = struct.Struct("=I")
    FORMAT = struct.Struct("=B d d d d Q Q d 1024s 64s")  # the fields of `HorseSnapshot`

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 4096)  # anonymous and shared with the child
        self.done = self.succeeded = 0
        self.worked = self.away = 0.0
        self.write(HorsePhase.STARTING)

    def write(  # an empty token is none  # nosec B107
        self,
        phase: HorsePhase,
        job_id: str = "",
        token: str = "",
        deadline: float = 0.0,
        kill_after: float = NO_KILL_AFTER,
    ) -> None:
        """Publish a phase, its job, the monotonic time at which it is to end (0: none), and the
        seconds after that at which the horse is to be killed.
        """
        self.last = phase, job_id, token, deadline, kill_after
        counter = self.COUNTER.unpack_from(self.memory)[0]
        self.COUNTER.pack_into(self.memory, 0, (counter + 1) & 0xFFFFFFFF)
        self.FORMAT.pack_into(
            self.memory,
            8,
            phase,
            time.monotonic(),
            deadline,
            kill_after,
            self.away,
            self.done,
            self.succeeded,
            self.worked,
            job_id.encode(),
            token.encode(),
        )
        self.COUNTER.pack_into(self.memory, 0, (counter + 2) & 0xFFFFFFFF)

    @property
    def token(self) -> bytes:
        """The token of the job that runs, perhaps half written: a cheap test for a change."""
        return self.memory[8 + self.FORMAT.size - 64 : 8 + self.FORMAT.size]

    def touch(self) -> None:
        """Write the last phase again with the present time: the horse lives."""
        self.write(*self.last)

    def read(self) -> HorseSnapshot | None:
        """The state that the horse wrote last; None if the horse is writing at this moment."""
        before = self.COUNTER.unpack_from(self.memory)[0]
        fields = list(self.FORMAT.unpack_from(self.memory, 8))
        if before % 2 or self.COUNTER.unpack_from(self.memory)[0] != before:
            return None
        fields[0] = HorsePhase(fields[0])
        fields[-2:] = [text.rstrip(b"\0").decode() for text in fields[-2:]]
        return HorseSnapshot(*fields)

    @property
    def stop(self) -> bool:
        """Whether the parent has asked the horse to stop after its job."""
        return self.memory[4095] == 1

    @property
    def quiet(self) -> bool:
        """Whether the horse is to take no jobs for now."""
        return self.memory[4094] == 1

    def set_quiet(self, is_quiet: bool) -> None:
        """Ask the horse to take no jobs after its batch, or to take jobs again."""
        self.memory[4094] = int(is_quiet)

    def ask_to_stop(self) -> None:
        """Ask the horse to stop after its job."""
        self.memory[4095] = 1


@dataclass(frozen=True)
class HorseSnapshot:
    """One reading of a `HorseState`. Times are monotonic.

    `since`: the time of the write. `deadline`: the time at which the phase is to end; 0 if it has
    no limit. `kill_after`: the seconds after it, or after a cancel, at which the horse is to be
    killed; `NO_KILL_AFTER` for RQJOBS_SHUTDOWN_TIMEOUT. `away`: since when the horse has tried to
    reach Redis; 0 if Redis answers. `done`: jobs that the horse ran. `succeeded` and `worked`
    (seconds): plain successes, whose statistics the parent writes. `job_id`: the job; in the phase
    LEAVING the reason.
    """

    phase: HorsePhase
    since: float
    deadline: float
    kill_after: float
    away: float
    done: int
    succeeded: int
    worked: float
    job_id: str
    token: str

    @property
    def running(self) -> bool:
        """Whether the horse has a job whose outcome is not recorded."""
        return self.phase in (HorsePhase.RUNNING, HorsePhase.SETTLING)


class FunctionEnd(NamedTuple):
    """How a job's function ended: its times as RQ writes them, its traceback or serialized result,
    and what its retry rules say of a failure.
    """

    failed: bool
    started: str
    ended: str
    data: bytes | None  # None: the function returned None
    decision: Decision | None = None


class FunctionOutcome:
    """The end of the running job's function, in memory that outlives the horse.

    The horse writes it before a callback or a handler begins, which may hang until the horse is
    killed.
    """

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            number = os.memfd_create("rqjobs")
        else:
            number, path = tempfile.mkstemp()
            os.unlink(path)
        self.file = os.fdopen(number, "w+b", buffering=0)

    def close(self) -> None:
        """Give the memory back."""
        self.file.close()

    def write(self, token: str, failed: bool, job: Any, data: bytes | None) -> None:
        """Keep the end of the function under its claim's token.

        `data`: the traceback, or the serialized result; None if there is none. Without memory
        nothing is kept; a job whose callback then hangs fails as one that ignored its time limit.
        """
        size = -1 if data is None else len(data)
        times = [utcformat(job.started_at), utcformat(job.ended_at)]
        head = json.dumps([token, failed, *times, size, job.decision]).encode()
        with contextlib.suppress(OSError, ValueError):
            self.file.truncate(0)
            self.file.seek(0)
            self.file.write(head + b"\n" + (data or b""))

    def read(self, token: str) -> FunctionEnd | None:
        """The end of this claim's function; None if the function has not ended, or was not kept
        whole.
        """
        self.file.seek(0)
        head, _, data = self.file.read().partition(b"\n")
        try:
            written, failed, started, ended, size, words = json.loads(head)
        except ValueError:
            return None
        if written != token or len(data) != max(size, 0):
            return None
        decision = words and Decision(Action(words[0]), *words[1:])
        return FunctionEnd(failed, started, ended, None if size < 0 else data, decision)
