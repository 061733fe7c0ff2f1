"""Gunicorn's threaded worker with time-outs for its clients: gunicorn itself lets one that sends or reads a byte a
second keep a thread for as long as it likes, and as many of these as there are threads are the end of all service."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

HEAD_SECONDS = 5  # in which the head of a request must have come
REQUEST_SECONDS = (
    30  # in which then its body must have come, and the answer have been made and taken
)


class Worker(ThreadWorker):
    """Overrides: `handle` and `handle_request` (note until when), `notify` (once a second: end what took longer)."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.ends: dict[Any, float] = {}  # connection that has a thread -> until when

    def handle(self, conn: Any) -> Any:
        self.ends[conn] = time.monotonic() + HEAD_SECONDS
        try:
            return super().handle(conn)
        finally:
            self.ends.pop(conn, None)

    def handle_request(self, req: Any, conn: Any) -> Any:
        self.ends[conn] = time.monotonic() + REQUEST_SECONDS
        return super().handle_request(req, conn)

    def notify(self) -> None:
        super().notify()
        for conn, end in list(self.ends.items()):
            if time.monotonic() > end:
                with contextlib.suppress(OSError):  # it is gone by itself
                    conn.sock.shutdown(
                        socket.SHUT_RDWR
                    )  # its thread, which waits for it, sees the end of it
