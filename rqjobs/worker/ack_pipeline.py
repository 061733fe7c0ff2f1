"""The acks of plain successes: each is sent at once, and kept until its reply has been read."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import hiredis
import redis
from redis.exceptions import ConnectionError, InvalidResponse, NoScriptError, ResponseError

from rqjobs import connection
from rqjobs.broker.transitions import Claim

READ_BYTES = 65536
SEND_BYTES = 65536  # of one call, whose time limit is for all of them


class Ack(NamedTuple):
    """A plain success: its job's claim, and the command that records it.

    `fallback` records it with RQ's own code, for when Redis refuses the command. `log` are commands
    before it, which keep the last lines of the job; their replies do not matter. `function`,
    `waited` (seconds) and `seconds` are for the metrics.
    """

    claim: Claim
    command: tuple[Any, ...]
    fallback: Callable[[], None]
    seconds: float = 0.0  # that the job took
    log: tuple[tuple[Any, ...], ...] = ()
    function: str = ""
    waited: float = 0.0  # seconds in its queue


class AckPipeline:
    """One connection on which acks are sent without a wait for their replies.

    The replies are read with the reply to the next claim. A command on a connection that broke may
    have had its effect. It is sent again, and `settle_success.lua` answers that it was done.
    """

    def __init__(self, client: redis.Redis):
        self.client = client
        self.pending: list[Ack] = []  # the acks whose replies have not been read
        self._sent = 0  # of the pending acks, on this connection
        self._connection: Any = None
        self._reader: Any = None
        self._read_at = 0.0

    def send(self, ack: Ack) -> None:
        """Send an ack, or keep it for the next `flush` if Redis cannot be reached. Never raises."""
        self.pending.append(ack)
        try:  # noqa: SIM105 - `suppress` takes half a microsecond
            self._send([])
        except (redis.RedisError, OSError):
            pass

    @property
    def has_unsent(self) -> bool:
        """Whether an ack could not be sent."""
        return self._sent < len(self.pending)

    def flush(self, *commands: tuple[Any, ...]) -> tuple[list[tuple[Ack, Any]], list[Any]]:
        """Send what is unsent and then `commands`; returns the acks with replies, and the replies.

        Errors that Redis answers stand among the replies. Every other error is raised, and then all
        acks are still pending.
        """
        self._send([*commands])
        numbers = [len(ack.log) + 1 for ack in self.pending]
        try:
            replies = self._read(sum(numbers) + len(commands))
        except BaseException:
            self.close()
            raise
        acks = self.pending
        self.pending = []
        self._sent = 0
        ends = [*accumulate(numbers)]
        of_acks = [(ack, replies[end - 1]) for ack, end in zip(acks, ends, strict=True)]
        return of_acks, replies[sum(numbers) :]

    def _send(self, commands: list[tuple[Any, ...]]) -> None:
        if time.monotonic() - self._read_at > connection.HEALTH_CHECK_SECONDS:
            self.close()  # a proxy may have dropped the silent connection
        try:
            if self._connection is None:
                self._connect()
            unsent: list[tuple[Any, ...]] = []
            for ack in self.pending[self._sent :]:
                unsent += ack.log
                unsent.append(ack.command)
            packed = [hiredis.pack_command(words) for words in unsent + commands]
            # As in `_read`, straight to the socket. redis-py sends each command by itself.
            data = b"".join(packed)
            for start in range(0, len(data), SEND_BYTES):
                self._connection._sock.sendall(data[start : start + SEND_BYTES])
            self._sent = len(self.pending)
        except BaseException:  # half a command may be sent
            self.close()
            raise

    def _connect(self) -> None:
        self._connection = connection.dedicated_connection(
            self.client, connection.COMMAND_TIMEOUT_SECONDS
        )
        self._read_at = time.monotonic()
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=_error)

    def _read(self, number: int) -> list[Any]:
        """The next replies, straight from the socket; redis-py takes ten times as long for each."""
        replies: list[Any] = []
        while len(replies) < number:
            if (reply := self._reader.gets()) is not False:  # no command has this reply
                replies.append(reply)
            elif data := self._connection._sock.recv(READ_BYTES):
                self._reader.feed(data)
            else:
                raise ConnectionError("Redis closed the connection")
        self._read_at = time.monotonic()
        return replies

    def close(self) -> None:
        """Drop the connection. All pending acks are unsent then."""
        self._sent = 0
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.disconnect()
        self._connection = None


def _error(message: str) -> ResponseError:
    if message.startswith("NOSCRIPT"):
        return NoScriptError(message)
    return ResponseError(message)
