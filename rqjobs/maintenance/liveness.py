"""Which workers are alive, dead or gone."""

from __future__ import annotations

import redis

from rqjobs import processes
from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode


class WorkerLiveness:
    """Judges workers for the length of one sweep."""

    def __init__(self, connection: redis.Redis, leases_count: bool):
        self.connection, self.leases_count = connection, leases_count
        self.host = processes.host()
        seconds, micro = connection.time()
        self.now = seconds + micro / 1e6
        self._verdicts: dict[str, str] = {}
        self.horses: dict[
            str, list[bytes | None]
        ] = {}  # where the processes of those that were judged live, or lived
        self.processes: dict[str, str] = {}  # that were judged, as `ledger.reclaim` takes them

    def verdict(self, name: str) -> str:
        """ "alive"; "gone" (provably: its process is not there); or "dead" (its lease or RQ's key has expired)."""
        if name not in self._verdicts:
            self.judge([name])
        return self._verdicts[name]

    def judge(self, names: list[str]) -> None:
        """Find the verdicts on all of them, in one round trip."""
        where = "host", "pid", "started", "horse", "horse_started", "session"
        facts = scripts.read_together(
            self.connection,
            [
                command
                for name in names
                for command in (
                    ("HMGET", keys.process(name), *where),
                    ("ZSCORE", keys.LEASES, name),
                    ("EXISTS", keys.worker(name)),
                )
            ],
        )
        facts = [[None] * len(where) if isinstance(fact, Exception) else fact for fact in facts]
        for index, name in enumerate(names):
            self._verdicts[name] = self._judge(*facts[3 * index : 3 * index + 3])
            self.horses[name] = facts[3 * index]
            self.processes[name] = ":".join(decode(word or b"") for word in facts[3 * index][1:3])

    def end_horse(self, name: str) -> None:
        """End what the jobs of a dead worker of this host had started, before they run again."""
        host, _, _, horse, started, session = self.horses[name]
        if host and self.host == decode(host) and horse and _is_gone(horse, started):
            processes.end_abandoned_group(
                int(horse), decode(started or b""), decode(session or b"")
            )

    def _judge(self, where: list[bytes | None], lease: float | None, known: int) -> str:
        host, pid, started, horse, horse_started, _ = where
        ours = host and self.host == decode(host)
        if ours and _is_gone(pid, started) and (not horse or _is_gone(horse, horse_started)):
            return "gone"
        if lease is not None:
            return "dead" if lease < self.now and self.leases_count else "alive"
        return (
            "alive" if known else "dead"
        )  # a stock worker, judged by the key that its heartbeat keeps


def _is_gone(pid: bytes | None, started: bytes | None) -> bool:
    """Whether a process of this host is provably not there; one whose pid is not known may be."""
    return decode(pid or b"").isdigit() and processes.gone(int(pid or 0), decode(started or b""))
