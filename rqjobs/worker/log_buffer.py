"""The lines of the running job that are not sent yet, in memory that outlives the horse.

The horse writes them. If it dies, its parent reads the rest and sends it, so that the last line
before a crash is kept.
"""

from __future__ import annotations

import mmap
import struct

from rqjobs.job_logs import LOG_MAX_BYTES, Batch

HALF_BYTES = 2 * LOG_MAX_BYTES  # without its older lines it still has a whole log
BUFFER_HEADER = struct.Struct(
    "=64s Q Q B"
)  # the run's token and attempt, the last write, the open half
HALF = struct.Struct("=Q Q")  # the bytes of a half, and the lines that found no room before them
HALVES_AT = 128  # the offset of the two halves


class LogBuffer:
    """Two halves: lines are added to the open one while the other one is being sent."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, HALVES_AT + 2 * (HALF.size + HALF_BYTES))
        self._sizes: list[tuple[int, int]] = [(0, 0), (0, 0)]
        self.begin("", 1)

    # The horse

    def begin(self, token: str, attempt: int) -> None:
        """Forget all lines; the next ones are those of the run with this token."""
        for half in (0, 1):
            self._write_half(half, 0, 0)
        self._token = token.encode()
        self._attempt = attempt
        self._write_head(0, 0)

    def add(self, line: bytes) -> None:
        """Add a line to the open half. If there is no room, older lines in it are dropped."""
        half = self._open
        while self._sizes[half][0] + len(line) > HALF_BYTES:
            self._drop_older_lines(half)
        size, dropped = self._sizes[half]
        start = self._start(half) + size
        self.memory[start : start + len(line)] = line
        self._write_half(half, size + len(line), dropped)

    def _drop_older_lines(self, half: int) -> None:
        size, dropped = self._sizes[half]
        start = self._start(half)
        cut = self.memory.find(b"\n", start + size // 2, start + size) + 1
        older, left = self.memory[start:cut], self.memory[cut : start + size]
        self._write_half(half, 0, dropped)
        self.memory[start : start + len(left)] = left
        self._write_half(half, len(left), dropped + older.count(b"\n"))

    def take(self) -> Batch | None:
        """Close the open half, and return its lines; None if it has none.

        The other half must be empty.
        """
        batch = self.rest()
        if batch:
            self._write_head(batch.number, 1 - self._open)
        return batch

    def rest(self) -> Batch | None:
        """The lines of the open half; None if it has none."""
        batch = self._batch(self._open, self._number + 1)
        return batch if batch.text else None

    def sent(self) -> None:
        """Empty the closed half: its lines have arrived, or are given up."""
        self._write_half(1 - self._open, 0, 0)

    # The parent

    def left_by(self, token: str) -> tuple[int, list[Batch]]:
        """The attempt of the run with this token, and its batches that have perhaps not arrived."""
        stored, attempt, number, opened = BUFFER_HEADER.unpack_from(self.memory)
        if not token or stored.rstrip(b"\0") != token.encode():
            return 1, []
        for half in (0, 1):
            self._sizes[half] = HALF.unpack_from(self.memory, self._start(half) - HALF.size)
        batches = [self._batch(1 - opened, number), self._batch(opened, number + 1)]
        return attempt, [batch for batch in batches if batch.text]

    # Both

    def _batch(self, half: int, number: int) -> Batch:
        """The lines of a half, at most those that a log keeps."""
        size, dropped = self._sizes[half]
        start = self._start(half)
        end = start + size
        if size > LOG_MAX_BYTES:
            first = self.memory.find(b"\n", end - LOG_MAX_BYTES - 1, end) + 1
            dropped += self.memory[start:first].count(b"\n")
            start = first
        return Batch(number, dropped, self.memory[start:end])

    def _start(self, half: int) -> int:
        return HALVES_AT + half * (HALF.size + HALF_BYTES) + HALF.size

    def _write_head(self, number: int, opened: int) -> None:
        self._number = number
        self._open = opened
        BUFFER_HEADER.pack_into(self.memory, 0, self._token, self._attempt, number, opened)

    def _write_half(self, half: int, size: int, dropped: int) -> None:
        self._sizes[half] = (size, dropped)
        HALF.pack_into(self.memory, self._start(half) - HALF.size, size, dropped)
