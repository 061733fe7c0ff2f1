"""The prefetch pipe: which process owns a claimed job that has not begun."""

from __future__ import annotations

import os
from collections.abc import Iterable

from rqjobs.broker import transitions


class PrefetchPipe:
    """The tokens of claimed jobs that have not begun. A process owns the job whose token it reads.

    The horse and its parent both hold the reading end. The kernel lets one of them read at a time,
    and tokens of one length are read and written whole. So a job never has two owners.
    """

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def put(self, tokens: Iterable[str]) -> None:
        """Add jobs that any of the two processes may take."""
        os.write(self.writer, "".join(tokens).encode())

    def get(self) -> str:
        """The token of the next job, which the caller owns now; "" if there is none."""
        try:
            return os.read(self.reader, transitions.TOKEN_CHARACTERS).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        """Close both ends in this process."""
        os.close(self.reader)
        os.close(self.writer)
