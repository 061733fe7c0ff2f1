"""The prefetch pipe: which process owns a job that was claimed but has not begun."""

from __future__ import annotations

import os
from collections.abc import Iterable

from rqjobs.broker import transitions


class PrefetchPipe:
    """Claimed jobs that have not begun, by their tokens: each belongs to whoever reads it, the
    horse or its parent, never to both.

    A pipe whose reading end both hold. The kernel lets one of them read at a time, and whole tokens
    go in and out.
    """

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def put(self, tokens: Iterable[str]) -> None:
        os.write(self.writer, "".join(tokens).encode())

    def get(self) -> str:
        """The token of the next one, which is the caller's now; "" if there is none."""
        try:
            return os.read(self.reader, transitions.TOKEN_CHARACTERS).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)
