"""Reading ahead: an open page asks at once for all that it asked for the last time.

A page reads in steps, because a step asks for what the one before has found: names first, then what
belongs to them. Its next update asks for nearly the same. So the commands of the last update are
sent together with the first commands of the next one, and most steps need no round trip any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import redis

Command = tuple[Any, ...]


class ReadAhead:
    """The reading of one update through `connection`.

    `expected`: commands that are sent with those of the first call of `replies`. A later call is
    answered from their replies if all of its commands are among them. A reply is used once.
    """

    def __init__(self, connection: redis.Redis, expected: Sequence[Command] = ()):
        self.connection: redis.Redis | None = connection
        self.asked: list[Command] = []  # by all calls but the first
        self._expected = expected
        self._found: dict[Command, list[Any]] | None = None

    def replies(
        self, commands: list[Command], send: Callable[[list[Command]], list[Any]]
    ) -> list[Any]:
        """The replies to `commands`. `send` makes a round trip."""
        if self._found is None:
            replies = send([*commands, *self._expected])
            self._found = {}
            for command, reply in zip(self._expected, replies[len(commands) :], strict=True):
                self._found.setdefault(command, []).append(reply)
            return replies[: len(commands)]
        self.asked += commands
        for command, number in Counter(commands).items():
            if number > len(self._found.get(command, ())):
                return send(commands)
        return [self._found[command].pop() for command in commands]

    def end(self) -> None:
        """Answer nothing any more. A thread that the update has started may still find it here."""
        self.connection, self._found = None, {}


current: ContextVar[ReadAhead | None] = ContextVar("read_ahead", default=None)
