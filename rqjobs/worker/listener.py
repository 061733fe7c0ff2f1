"""Waiting for work: blocking commands on the queues, and how all of them are ended exactly."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from typing import Any

import redis

from rqjobs import connection
from rqjobs.processes import readable

log = logging.getLogger("rqjobs")
UNBLOCK_SECONDS = (
    2  # seconds in which a wait that is to end does end, or its connection is given up
)
BLOCK_SECONDS = 5  # seconds that Redis holds a wait; well under a lease, so that nothing arrives after it was swept
MAX_CONNECTIONS = 64  # connections of one worker that wait, each on one queue; Redis takes 10,000 from all of them
QUEUE_POLL_SECONDS = 0.5  # how often the queues beyond are looked at


class QueueListener:
    """Waiting for work on several queues without polling and without losing a job.

    `BLMOVE <queue> <claims>` on a connection for each queue: Redis wakes one worker for a job, and
    the job is in its claims before anybody reads the reply. The other waits are ended with the next
    claim, which adopts what came.

    A worker of very many queues waits on the first `LINES` of them, and looks at all each
    `POLL_SECONDS`.
    """

    def __init__(self, client: redis.Redis, claims_key: str):
        self.client, self.claims_key = client, claims_key
        self.lines: list[Any] = []
        self.ids: list[int] = []  # of these connections, in Redis
        self.open: list[int] = []  # the lines whose waits may bring something yet
        self.unread: set[int] = set()  # those whose reply has not been read
        self.most = MAX_CONNECTIONS
        self.since = 0.0  # when the last wait returned

    def wait(self, queues: list[str], seconds: float, control: socket.socket) -> None:
        """Return when a job may have come, the parent has a word, or `seconds` have passed; soon
        after, at least. The waits go on until they have `ended`.
        """
        try:
            for line in [self.lines[number] for number in self.unread]:
                ready = readable([line._sock, control], UNBLOCK_SECONDS)
                if line._sock not in ready:
                    if ready:
                        return self.hear(control)
                    raise TimeoutError(
                        "a wait has ended, and is not answered: its connection is dead"
                    )
                line.read_response()
            self.unread.clear()
            self._connect(len(queues))
            if len(queues) > self.most:
                seconds = min(seconds, QUEUE_POLL_SECONDS)
            for number, (queue, line) in enumerate(zip(queues, self.lines, strict=False)):
                self.unread.add(number)
                self.open.append(number)
                line.send_command(
                    "BLMOVE", queue, self.claims_key, "LEFT", "RIGHT", round(max(seconds, 0.1), 3)
                )
            if control in readable([*self._sockets(), control], seconds + 1):
                self.hear(control)
        except (redis.RedisError, OSError, ValueError) as error:
            self.close()
            if connection.is_local_error(error):
                raise
            readable([control], 0.2)
        self.since = time.monotonic()

    def _connect(self, queues: int) -> None:
        """Have a line for each of so many queues, or as many as may be."""
        while len(self.lines) < min(queues, self.most):
            try:
                line = connection.dedicated_connection(self.client, BLOCK_SECONDS + 3)
                line.send_command("CLIENT", "ID")
                self.ids.append(line.read_response())
                self.lines.append(line)
            except (redis.RedisError, OSError) as error:
                if not self.lines:
                    raise
                self.most = len(self.lines)
                log.warning(
                    "only %d of this worker's %d queues are waited on, the others are looked at each %s s: no "
                    "further connection (%s); raise `ulimit -n` here, or Redis's maxclients",
                    self.most,
                    queues,
                    QUEUE_POLL_SECONDS,
                    error,
                )

    def _sockets(self) -> list[Any]:
        return [self.lines[number]._sock for number in self.open]

    def ends(self) -> list[tuple[Any, ...]]:
        """The commands that end the waits which have brought nothing yet."""
        if self.open:
            answered = readable(self._sockets(), 0)
            self.open = [number for number in self.open if self.lines[number]._sock not in answered]
        return [("CLIENT", "UNBLOCK", self.ids[number]) for number in self.open]

    def ended(self, replies: list[Any]) -> bool:
        """Whether all waits were over when Redis did what stood behind the commands that it
        answered so. If not, all of it is to be asked again: one has just brought a job, or its end
        has overtaken it.
        """
        self.open = [number for number, reply in zip(self.open, replies, strict=True) if reply != 1]
        if not self.open:
            return True
        if time.monotonic() - self.since > UNBLOCK_SECONDS or any(
            isinstance(reply, Exception) for reply in replies
        ):
            self.close()
        else:
            readable(self._sockets(), 0.05)
        return False

    def hear(self, control: socket.socket) -> None:
        """Read the parent's wake-ups; a parent that is gone takes us with it."""
        control.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            if control.recv(64) == b"":
                os._exit(1)

    def close(self) -> None:
        for line in self.lines:
            with contextlib.suppress(Exception):
                line.disconnect()
        self.lines.clear()
        self.ids.clear()
        self.open.clear()
        self.unread.clear()
        self.most = MAX_CONNECTIONS
