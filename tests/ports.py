"""Ports of loopback, for servers that a test starts."""

from __future__ import annotations

import contextlib
import secrets
import socket

# Below those that the kernel chooses itself: such a port may be another process's a moment after a
# test has closed it. And beyond 10080, which browsers refuse.
FIRST, LAST = 12_000, 32_000


def free_port():
    """A port on which nothing listens."""
    while True:
        port = FIRST + secrets.randbelow(LAST - FIRST)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def closed_port():
    """A port that refuses connections within the block: it is taken, and nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]
