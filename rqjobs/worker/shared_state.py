"""The board: what the horse is doing, in memory that its parent reads even when the horse is dead."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from rq.utils import utcformat

HANDLER_SECONDS = 60  # that exception handlers may take, and webhooks beside their own time limits


class HorseState:
    """What the horse is doing, in memory that its parent reads; what the parent wants, which the horse reads.

    The horse's part is written between two steps of a counter that is odd meanwhile, so a reader knows a torn read.
    """

    FORMAT = struct.Struct("=B d d d Q Q d 1024s 64s")
    STARTING, IDLE, RUNNING, SETTLING, SUSPENDED, LEAVING, AFTER = range(
        7
    )  # AFTER: the outcome is recorded; webhooks

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 4096)  # anonymous and shared with the child
        self.done = self.succeeded = 0
        self.worked = self.away = 0.0
        self.post(self.STARTING)

    def post(self, phase: int, job_id: str = "", token: str = "", deadline: float = 0.0) -> None:
        self.last = phase, job_id, token, deadline
        counter = struct.unpack_from("=I", self.memory)[0]
        struct.pack_into("=I", self.memory, 0, (counter + 1) & 0xFFFFFFFF)
        words = job_id.encode(), token.encode()
        self.FORMAT.pack_into(
            self.memory,
            8,
            phase,
            time.monotonic(),
            deadline,
            self.away,
            self.done,
            self.succeeded,
            self.worked,
            *words,
        )
        struct.pack_into("=I", self.memory, 0, (counter + 2) & 0xFFFFFFFF)

    @property
    def token(self) -> bytes:
        """That of the job that runs, or what is half written of it: to see cheaply whether it is still the same."""
        return self.memory[8 + self.FORMAT.size - 64 : 8 + self.FORMAT.size]

    def touch(self) -> None:
        """Say that the horse lives, and is still at what it posted last."""
        self.post(*self.last)

    def read(self) -> HorseSnapshot | None:
        """What the horse last posted; None if it is writing at this moment."""
        before = struct.unpack_from("=I", self.memory)[0]
        fields = list(self.FORMAT.unpack_from(self.memory, 8))
        if before % 2 or struct.unpack_from("=I", self.memory)[0] != before:
            return None
        fields[-2:] = [text.rstrip(b"\0").decode() for text in fields[-2:]]
        return HorseSnapshot(*fields)

    @property
    def stop(self) -> bool:
        return self.memory[4095] == 1

    def ask_to_stop(self) -> None:
        self.memory[4095] = 1


@dataclass(frozen=True)
class HorseSnapshot:
    """One reading of the board.

    Times are monotonic, a `deadline` of 0 is none. `away`: since when the horse tries to reach Redis, or 0. `done`
    counts the horse's jobs; `succeeded` and `worked` (seconds) the plain successes, whose statistics the parent writes.
    """

    phase: int
    since: float
    deadline: float
    away: float
    done: int
    succeeded: int
    worked: float
    job_id: str
    token: str

    @property
    def running(self) -> bool:
        return self.phase in (HorseState.RUNNING, HorseState.SETTLING)


class FunctionOutcome:
    """How the function of the job that runs has ended, in memory that outlives the horse.

    Written before a callback or a handler begins, which may hang until it is killed.
    """

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            number = os.memfd_create("rqjobs")
        else:
            number, path = tempfile.mkstemp()
            os.unlink(path)
        self.file = os.fdopen(number, "w+b", buffering=0)

    def close(self) -> None:
        self.file.close()

    def write(self, token: str, failed: bool, job: Any, data: bytes | None) -> None:
        """`data`: the traceback, or the result as it is stored, None if there is none."""
        started, ended = utcformat(job.started_at), utcformat(job.ended_at)
        head = json.dumps(
            [token, failed, started, ended, -1 if data is None else len(data)]
        ).encode()
        with contextlib.suppress(
            OSError, ValueError
        ):  # no memory; should the callback hang, the job fails as late
            self.file.truncate(0)
            self.file.seek(0)
            self.file.write(head + b"\n" + (data or b""))

    def read(self, token: str) -> tuple[bool, str, str, bytes | None] | None:
        """Whether it failed, when it started and ended, and its data; None if this claim's function has not ended."""
        self.file.seek(0)
        head, _, data = self.file.read().partition(b"\n")
        try:
            written, failed, started, ended, size = json.loads(head)
        except ValueError:
            return None
        if written != token or len(data) != max(size, 0):
            return None
        return failed, started, ended, None if size < 0 else data
