"""Waiting for work: one blocking command for each queue, and how all of them are ended exactly."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from typing import Any

import redis

from rqjobs import connection

ANSWER = 2  # seconds in which a wait that is to end does end, or its connection is given up
BLOCK = 5  # seconds that Redis holds a wait; well under a lease, so that nothing arrives after it was swept


class Waits:
    """Waiting for work on several queues without polling and without losing a job.

    `BLMOVE <queue> <claims>` on a connection for each queue: Redis wakes one worker for a job, and the job is in its
    claims before anybody reads the reply. The other waits are ended with the next claim, which adopts what came.
    """

    def __init__(self, client: redis.Redis, claims_key: str):
        self.client, self.claims_key = client, claims_key
        self.lines: dict[str, Any] = {}
        self.ids: dict[str, int] = {}
        self.open: list[str] = []  # the queues whose waits may bring something yet
        self.unread: set[str] = set()  # those whose reply has not been read
        self.since = 0.0  # when the last wait returned

    def wait(self, queues: list[str], seconds: float, control: socket.socket) -> None:
        """Return when a job may have come, the parent has a word, or `seconds` have passed; soon after, at least. The
        waits go on until they have `ended`."""
        try:
            for line in [self.lines[queue] for queue in self.unread]:
                ready, _, _ = select.select([line._sock, control], [], [], ANSWER)
                if line._sock not in ready:
                    if ready:
                        return self.hear(control)
                    raise TimeoutError("a wait has ended, and is not answered: its connection is dead")
                line.read_response()
            self.unread.clear()
            for queue in queues:
                line, block = self._line(queue), round(max(seconds, 0.1), 3)
                self.unread.add(queue)
                self.open.append(queue)
                line.send_command("BLMOVE", queue, self.claims_key, "LEFT", "RIGHT", block)
            ready, _, _ = select.select([*self._sockets(), control], [], [], seconds + 1)
            if control in ready:
                self.hear(control)
        except (redis.RedisError, OSError, ValueError):
            self.close()
            select.select([control], [], [], 0.2)
        self.since = time.monotonic()

    def _sockets(self) -> list[Any]:
        return [self.lines[queue]._sock for queue in self.open]

    def ends(self) -> list[tuple[Any, ...]]:
        """The commands that end the waits which have brought nothing yet."""
        if self.open:
            answered = select.select(self._sockets(), [], [], 0)[0]
            self.open = [queue for queue in self.open if self.lines[queue]._sock not in answered]
        return [("CLIENT", "UNBLOCK", self.ids[queue]) for queue in self.open]

    def ended(self, replies: list[Any]) -> bool:
        """Whether all waits were over when Redis did what stood behind the commands that it answered so. If not, all of
        it is to be asked again: one has just brought a job, or its end has overtaken it."""
        self.open = [queue for queue, reply in zip(self.open, replies, strict=True) if reply != 1]
        if not self.open:
            return True
        if time.monotonic() - self.since > ANSWER or any(isinstance(reply, Exception) for reply in replies):
            self.close()
        else:
            select.select(self._sockets(), [], [], 0.05)
        return False

    def hear(self, control: socket.socket) -> None:
        """Read the parent's wake-ups; a parent that is gone takes us with it."""
        control.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            if control.recv(64) == b"":
                os._exit(1)

    def _line(self, queue: str) -> Any:
        line = self.lines.get(queue)
        if line is None:
            line = connection.line(self.client, BLOCK + 3)
            line.send_command("CLIENT", "ID")
            self.ids[queue] = line.read_response()
            self.lines[queue] = line
        return line

    def close(self) -> None:
        for line in self.lines.values():
            with contextlib.suppress(Exception):
                line.disconnect()
        self.lines.clear()
        self.open.clear()
        self.unread.clear()
