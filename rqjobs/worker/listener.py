"""The listener: blocking pops on the queues of a worker, and how all of them are ended exactly."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from enum import Enum, auto
from typing import Any

import redis

from rqjobs import connection
from rqjobs.processes import readable

log = logging.getLogger("rqjobs")
# A blocking pop that is to end does so in this time, or its connection is given up.
UNBLOCK_SECONDS = 2
# A pop ends well within a lease, so a job cannot arrive after its worker's claims were swept.
BLOCK_SECONDS = 5
# A worker has at most this many connections, one a queue; Redis takes 10,000 from all clients.
MAX_CONNECTIONS = 64
# Queues beyond are polled.
QUEUE_POLL_SECONDS = 0.5
MIN_BLOCK_SECONDS = 0.1  # Redis takes 0 for "for ever"


class PopState(Enum):
    """The state of a blocking pop."""

    IDLE = auto()  # no command is on its way
    BLOCKING = auto()  # Redis may still deliver a job
    UNBLOCKED = auto()  # Redis has ended the command, and its reply is to be read


class BlockingPop:
    """A connection that waits for the jobs of one queue: `BLMOVE <queue> <claims>`.

    The listener ends it with CLIENT UNBLOCK, on another connection. That command can reach Redis
    before its BLMOVE does, or after the BLMOVE has delivered a job. Redis then returns 0, and not
    1. In the first case the BLMOVE begins to block, in the second a job is in the claims. So after
    a 0 the pop counts as BLOCKING until its reply has arrived or a later CLIENT UNBLOCK returns 1.
    """

    def __init__(self, client: redis.Redis):
        self.state = PopState.IDLE
        self._connection = connection.dedicated_connection(client, BLOCK_SECONDS + 3)
        self._connection.send_command("CLIENT", "ID")
        self.client_id: int = self._connection.read_response()

    @property
    def socket(self) -> Any:
        """The socket to wait on for the reply."""
        return self._connection._sock

    def start(self, queue_key: str, claims_key: str, seconds: float) -> None:
        """Send the command; Redis moves the queue's next job into the claims within `seconds`."""
        self.state = PopState.BLOCKING
        timeout = round(max(seconds, MIN_BLOCK_SECONDS), 3)
        self._connection.send_command("BLMOVE", queue_key, claims_key, "LEFT", "RIGHT", timeout)

    def read_reply(self) -> None:
        """Read the reply, and drop it: the next claim finds the job in the claims."""
        self._connection.read_response()
        self.state = PopState.IDLE

    def close(self) -> None:
        """Close the connection. Redis ends the command when it notices."""
        with contextlib.suppress(Exception):
            self._connection.disconnect()


class QueueListener:
    """Waits for jobs on several queues without polling, and loses none of them.

    Each queue has a `BlockingPop`. Redis wakes one worker for a job, and the job is in the claims
    of that worker before the reply is read. The next claim ends the other pops, and adopts the jobs
    that any of them delivered.

    A worker with more than `MAX_CONNECTIONS` queues waits on the first ones, and looks at all of
    them every `QUEUE_POLL_SECONDS`.
    """

    def __init__(self, client: redis.Redis, claims_key: str):
        self.client = client
        self.claims_key = claims_key
        self.pops: list[BlockingPop] = []
        self.max_pops = MAX_CONNECTIONS
        self._waited_at = 0.0

    def blocking(self) -> list[BlockingPop]:
        """The pops that may still deliver a job."""
        return [pop for pop in self.pops if pop.state is PopState.BLOCKING]

    def wait(self, queue_keys: list[str], seconds: float, control: socket.socket) -> None:
        """Block until a job arrives, the parent signals, or `seconds` have passed.

        The pops stay open until `all_unblocked`. May return early. Raises errors of this machine,
        such as too many open files; a Redis that does not answer is left to the next claim.
        """
        try:
            if not self._read_replies(control):
                return
            self._connect(len(queue_keys))
            if len(queue_keys) > self.max_pops:
                seconds = min(seconds, QUEUE_POLL_SECONDS)
            for queue_key, pop in zip(queue_keys, self.pops, strict=False):
                pop.start(queue_key, self.claims_key, seconds)
            if control in readable([*self._blocking_sockets(), control], seconds + 1):
                self.drain_control(control)
        except (redis.RedisError, OSError, ValueError) as error:
            self.close()
            if connection.is_local_error(error):
                raise
            readable([control], 0.2)
        self._waited_at = time.monotonic()

    def _read_replies(self, control: socket.socket) -> bool:
        """Read the replies of the pops of the last wait. False if the parent signals instead.

        Raises:
            TimeoutError: a pop was ended, and its connection has no reply.
        """
        for pop in self.pops:
            if pop.state is PopState.IDLE:
                continue
            ready = readable([pop.socket, control], UNBLOCK_SECONDS)
            if pop.socket in ready:
                pop.read_reply()
            elif ready:
                self.drain_control(control)
                return False
            else:
                raise TimeoutError("Redis ended a blocking pop, but its connection is silent")
        return True

    def _connect(self, number: int) -> None:
        """Open a pop for each of this number of queues, or as many as possible."""
        while len(self.pops) < min(number, self.max_pops):
            try:
                self.pops.append(BlockingPop(self.client))
            except (redis.RedisError, OSError) as error:
                if not self.pops:
                    raise
                self.max_pops = len(self.pops)
                log.warning(
                    "only %d of this worker's %d queues are waited on, the others are looked at "
                    "each %s s: no further connection (%s); raise `ulimit -n` here, or Redis's "
                    "maxclients",
                    self.max_pops,
                    number,
                    QUEUE_POLL_SECONDS,
                    error,
                )

    def _blocking_sockets(self) -> list[Any]:
        return [pop.socket for pop in self.blocking()]

    def unblock_commands(self) -> list[tuple[Any, ...]]:
        """The commands that end the pops which have no reply yet."""
        blocking = self.blocking()
        if not blocking:
            return []
        answered = readable([pop.socket for pop in blocking], 0)
        for pop in blocking:
            if pop.socket in answered:
                pop.state = PopState.UNBLOCKED
        return [("CLIENT", "UNBLOCK", pop.client_id) for pop in self.blocking()]

    def all_unblocked(self, replies: list[Any]) -> bool:
        """Whether every pop had ended before Redis ran the command behind `unblock_commands`.

        `replies` are those to the `unblock_commands`. If not, the caller must ask for new ones and
        repeat its command: a job may have arrived behind it. A pop that does not end within
        `UNBLOCK_SECONDS` is closed.
        """
        for pop, reply in zip(self.blocking(), replies, strict=True):
            if reply == 1:
                pop.state = PopState.UNBLOCKED
        if not self.blocking():
            return True
        is_late = time.monotonic() - self._waited_at > UNBLOCK_SECONDS
        if is_late or any(isinstance(reply, Exception) for reply in replies):
            self.close()
        else:
            readable(self._blocking_sockets(), 0.05)
        return False

    def drain_control(self, control: socket.socket) -> None:
        """Read the parent's signals; end this process if the parent is gone."""
        control.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            if control.recv(64) == b"":
                os._exit(1)

    def close(self) -> None:
        """Close all pops. The next `wait` connects again."""
        for pop in self.pops:
            pop.close()
        self.pops.clear()
        self.max_pops = MAX_CONNECTIONS
