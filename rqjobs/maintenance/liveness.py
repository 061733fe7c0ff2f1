"""Which workers are alive. The facts are read once, for the length of one sweep."""

from __future__ import annotations

import re
from enum import Enum

import redis

from rqjobs import processes
from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.broker.recovery import DeathCause

LIVENESS_FIELDS = ("host", "pid", "started", "horse", "horse_started", "session")
PID = re.compile(rb"[0-9]{1,9}")  # the kernel has no larger ones


class Liveness(Enum):
    """Whether a worker is alive."""

    ALIVE = "alive"
    GONE = "gone"  # its parent and its horse have provably ended on this host
    EXPIRED = "expired"  # its lease has ended; for a plain RQ worker, RQ's own key


def death_cause(state: Liveness) -> DeathCause:
    """The cause with which `recovery.reclaim` takes the claims of a worker in this state."""
    if state is Liveness.GONE:
        return DeathCause.PROCESS_GONE
    return DeathCause.LEASE_EXPIRED


class WorkerLiveness:
    """The state of each worker at the time of one sweep.

    `leases_count`: whether an ended lease proves that a worker is dead. `processes` has
    "<pid>:<start time>" of each worker that was checked, as `recovery.reclaim` takes it.
    """

    def __init__(self, connection: redis.Redis, leases_count: bool):
        self.connection, self.leases_count = connection, leases_count
        self.host = processes.host_id()
        self.now = scripts.redis_time(connection)
        self.processes: dict[str, str] = {}
        self._states: dict[str, Liveness] = {}
        self._process_fields: dict[str, list[bytes | None]] = {}

    def state(self, name: str) -> Liveness:
        if name not in self._states:
            self.check([name])
        return self._states[name]

    def check(self, names: list[str]) -> None:
        """Find the states of these workers in one round trip."""
        commands: list[tuple[str, ...]] = []
        for name in names:
            commands.append(("HMGET", keys.process(name), *LIVENESS_FIELDS))
            commands.append(("ZSCORE", keys.LEASES, name))
            commands.append(("EXISTS", keys.worker(name)))
        replies = scripts.read_together(self.connection, commands)
        for index, name in enumerate(names):
            fields, lease, is_known_to_rq = replies[3 * index : 3 * index + 3]
            if isinstance(fields, Exception):  # the key is of the wrong type
                fields = [None] * len(LIVENESS_FIELDS)
            self._process_fields[name] = fields
            self.processes[name] = ":".join(decode(field or b"") for field in fields[1:3])
            if isinstance(lease, Exception):
                lease = None
            self._states[name] = self._state_of(fields, lease, is_known_to_rq)

    def end_horse(self, name: str) -> None:
        """End the processes that the jobs of a dead worker of this host had started.

        They must end before the jobs run again.
        """
        host, _, _, horse, started, session = self._process_fields[name]
        if host and self.host == decode(host) and horse and _is_gone(horse, started):
            processes.end_abandoned_group(
                int(horse), decode(started or b""), decode(session or b"")
            )

    def _state_of(
        self, fields: list[bytes | None], lease: float | None, is_known_to_rq: int
    ) -> Liveness:
        host, pid, started, horse, horse_started, _ = fields
        is_here = bool(host) and self.host == decode(host)
        if is_here and _is_gone(pid, started) and (not horse or _is_gone(horse, horse_started)):
            return Liveness.GONE
        if lease is not None:
            if lease < self.now and self.leases_count:
                return Liveness.EXPIRED
            return Liveness.ALIVE
        # A plain RQ worker has no lease. Its heartbeat renews RQ's own key.
        if is_known_to_rq:
            return Liveness.ALIVE
        return Liveness.EXPIRED


def _is_gone(pid: bytes | None, started: bytes | None) -> bool:
    """Whether a process of this host has provably ended. An odd pid proves nothing."""
    if not PID.fullmatch(pid or b""):
        return False
    return processes.is_gone(int(pid or 0), decode(started or b""))
