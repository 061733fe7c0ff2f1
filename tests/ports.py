"""Ports of loopback for servers that a test starts, and one such server."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading

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


@contextlib.contextmanager
def trickling_server(head):
    """A server that answers one connection with `head`, and then byte by byte until it is closed.

    Yields its port and its thread.
    """
    ended = threading.Event()

    def trickle(listener):
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            peer.sendall(head)
            while not ended.wait(0.05):
                peer.sendall(b"X")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle, args=[listener])
        thread.start()
        try:
            yield listener.getsockname()[1], thread
        finally:
            ended.set()
            thread.join()
