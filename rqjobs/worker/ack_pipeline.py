"""Outcomes on their way to Redis: each leaves as soon as it is known, and is kept until its reply
has been read.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import hiredis
import redis
from redis.exceptions import ConnectionError, InvalidResponse, NoScriptError, ResponseError

from rqjobs import connection
from rqjobs.broker.transitions import Claim


class Ack(NamedTuple):
    """A plain success: the command that records it, and RQ's own way, for when Redis cannot do
    that.
    """

    claim: Claim
    command: tuple[Any, ...]
    longhand: Callable[[], None]
    took: float = 0.0  # seconds


class AckPipeline:
    """One connection on which outcomes are sent without waiting, and their replies read with that
    to the next claim.

    A command on a connection that broke may have had its effect. It is sent again, and
    `settle_success.lua` answers that it was done already.
    """

    def __init__(self, client: redis.Redis):
        self.client = client
        self.outcomes: list[Ack] = []  # those whose replies have not been read
        self._sent = 0  # of them, on this connection
        self._line: Any = None
        self._reader: Any = None
        self._used = 0.0  # when something was read from it

    def send(self, outcome: Ack) -> None:
        """Never raises; what cannot be sent now goes with the next `exchange`."""
        self.outcomes.append(outcome)
        with contextlib.suppress(redis.RedisError, OSError):
            self._send([])

    @property
    def behind(self) -> bool:
        """Whether one could not be sent."""
        return self._sent < len(self.outcomes)

    def exchange(self, *commands: tuple[Any, ...]) -> tuple[list[tuple[Ack, Any]], list[Any]]:
        """Ask `commands` behind all outcomes; returns these with their replies, and those to the
        commands.

        An error that Redis answered is returned. Every other is raised, and nothing is known then:
        all outcomes are still here.
        """
        self._send([*commands])
        try:
            replies = self._read(len(self.outcomes) + len(commands))
        except BaseException:
            self.close()
            raise
        done, self.outcomes, self._sent = self.outcomes, [], 0
        return list(zip(done, replies, strict=False)), replies[len(done) :]

    def _send(self, more: list[tuple[Any, ...]]) -> None:
        if (
            time.monotonic() - self._used > connection.HEALTH_CHECK_SECONDS
        ):  # somebody between us and Redis may have dropped it
            self.close()
        try:
            if self._line is None:
                self._line, self._used = (
                    connection.dedicated_connection(
                        self.client, connection.COMMAND_TIMEOUT_SECONDS
                    ),
                    time.monotonic(),
                )
                self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=_error)
            commands = [outcome.command for outcome in self.outcomes[self._sent :]] + more
            self._line.send_packed_command(
                [hiredis.pack_command(words) for words in commands], check_health=False
            )
            self._sent = len(self.outcomes)
        except BaseException:  # half a command may be on it
            self.close()
            raise

    def _read(self, number: int) -> list[Any]:
        """The next replies, straight from the socket: through redis-py each takes ten times as
        long.
        """
        replies: list[Any] = []
        while len(replies) < number:
            if (reply := self._reader.gets()) is not False:  # which no command answers
                replies.append(reply)
            elif data := self._line._sock.recv(65536):
                self._reader.feed(data)
            else:
                raise ConnectionError("Redis closed the connection")
        self._used = time.monotonic()
        return replies

    def close(self) -> None:
        line, self._line, self._sent = self._line, None, 0
        if line is not None:
            with contextlib.suppress(Exception):
                line.disconnect()


def _error(words: str) -> ResponseError:
    return NoScriptError(words) if words.startswith("NOSCRIPT") else ResponseError(words)
