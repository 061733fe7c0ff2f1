"""Gunicorn's threaded worker with time-outs for slow clients.

Gunicorn has no time-out for a client that sends or reads one byte a second. Such a client keeps a
thread for as long as it likes, and as many such clients as there are threads block the server.
"""

from __future__ import annotations

import contextlib
import socket
import time
from functools import partial
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from rqjobs.web import deadlines

HEAD_SECONDS = 5  # in which the head of a request must arrive
REQUEST_SECONDS = (
    30  # in which the body must then arrive, and the response be made and sent; a wait adds to it
)


class Worker(ThreadWorker):
    """A threaded worker that closes connections past their deadline."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.deadlines: dict[Any, float] = {}  # of each connection that occupies a thread

    def handle(self, conn: Any) -> Any:
        """Overridden to set the deadline of the head."""
        self.deadlines[conn] = time.monotonic() + HEAD_SECONDS
        try:
            return super().handle(conn)
        finally:
            self.deadlines.pop(conn, None)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Overridden to set the deadline of the request."""
        self.deadlines[conn] = time.monotonic() + REQUEST_SECONDS
        deadlines.limit_request(partial(self._extend_deadline, conn))
        return super().handle_request(req, conn)

    def _extend_deadline(self, conn: Any, seconds: float) -> None:
        self.deadlines[conn] += seconds

    def notify(self) -> None:
        """Overridden to shut down connections past their deadline; gunicorn calls it once a second.

        The thread that waits for such a connection then reads its end and becomes free.
        """
        super().notify()
        now = time.monotonic()
        for conn, deadline in list(self.deadlines.items()):
            if now > deadline:
                with contextlib.suppress(OSError):  # the client has closed it
                    conn.sock.shutdown(socket.SHUT_RDWR)
