"""The overview: everything that says whether all is well, as it is at one moment.

The home page, the terminal and the alerts look at it. Nothing is changed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import redis

from rqjobs import alerts, failed, stats
from rqjobs.alerts import Alert
from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.failed import Group
from rqjobs.jobs import Job
from rqjobs.rates import Window

NEWEST_GROUPS = 10  # of failed jobs, the ones that failed last
LIMITS = {"running": 12, "queued": 4, "scheduled": 4, "finished": 8, "failed": 6}


@dataclass(frozen=True)
class Overview:
    """Queues, workers, rates, jobs, failures, alerts and Redis at one moment.

    `seconds` is Redis's time. `memory` and `persistence` are the sections of Redis's INFO; empty if
    the Redis user may not read them. `claimed` has the number of claimed jobs of each worker.
    """

    seconds: float
    snapshot: stats.Snapshot
    window: Window
    jobs: dict[str, list[Job]]
    groups: list[Group]
    alerts: list[Alert]  # that have begun and are not over, the newest first
    schedules: int  # that will run again
    overdue_schedules: int
    has_scheduler: bool
    claimed: dict[str, int]
    memory: dict[str, Any] = field(default_factory=dict)
    persistence: dict[str, Any] = field(default_factory=dict)


class Reader:
    """Reads overviews. After the first one, each takes one round trip.

    It remembers the names of workers and groups, so a new one is in the overview after the next. So
    is a new queue if there are more than one script looks at. A thread that reads must have the
    reader for itself.
    """

    def __init__(self) -> None:
        self._names: stats.Names | None = None
        self._groups: list[str] = []
        self._window = Window()
        self._offset = 0.0  # Redis's clock minus this machine's

    def read(self, connection: redis.Redis, is_first: bool = False) -> Overview:
        """The state now. `is_first`: read the names first, in a round trip of its own."""
        if is_first or self._names is None:
            self._read_names(connection)
        assert self._names
        self._window.forget_current()
        parts = [
            [*stats.BASIC_COMMANDS, *self._state_commands()],
            self._window.commands(time.time() + self._offset),
            [command for group in self._groups for command in failed.group_commands(group)],
            [("LLEN", keys.claims(name)) for name in self._names.workers],
            stats.overview_commands(self._names, LIMITS),
        ]
        replies = scripts.read_together(
            connection, [command for part in parts for command in part], *stats.OVERVIEW_SCRIPTS
        )
        portions = []
        for part in parts:
            portions.append(replies[: len(part)])
            replies = replies[len(part) :]
        return self._assemble(connection, *portions)

    def _read_names(self, connection: redis.Redis) -> None:
        replies = scripts.read_together(connection, [*stats.BASIC_COMMANDS, self._groups_command()])
        self._note(replies, replies[-1])

    def _note(self, basics: list[Any], groups: Any) -> None:
        """Note what the next round trip asks for."""
        names = stats.read_names(basics)
        are_few = len(names.queues) <= scripts.QUEUES_PER_SCRIPT
        self._names = replace(names, are_open=are_few)
        self._groups = [decode(group) for group in groups] if isinstance(groups, list) else []
        self._offset = _seconds(basics) - time.time()

    def _groups_command(self) -> tuple[Any, ...]:
        return ("ZREVRANGE", keys.FAILURE_GROUPS, 0, NEWEST_GROUPS - 1)

    def _state_commands(self) -> list[tuple[Any, ...]]:
        now = f"{time.time() + self._offset - 10:.3f}"
        return [
            self._groups_command(),
            ("HGETALL", keys.ALERTS),
            ("ZCOUNT", keys.SCHEDULES, "-inf", "(+inf"),
            ("ZCOUNT", keys.SCHEDULES, "-inf", now),
            ("EXISTS", keys.SCHEDULES_LOCK),
            ("INFO", "memory"),
            ("INFO", "persistence"),
        ]

    def _assemble(
        self,
        connection: redis.Redis,
        state: list[Any],
        counts: list[Any],
        groups: list[Any],
        claims: list[Any],
        facts: list[Any],
    ) -> Overview:
        assert self._names
        names = self._names
        snapshot, jobs = stats.read_overview(connection, names, LIMITS, state, facts)
        self._window.take(counts)
        newest, firing, schedules, overdue, lock, memory, persistence = state[
            len(stats.BASIC_COMMANDS) :
        ]
        found = failed.groups_in(self._groups, groups)
        self._note(state, newest)
        return Overview(
            seconds=_seconds(state),
            snapshot=snapshot,
            window=self._window,
            jobs=jobs,
            groups=sorted(found, key=lambda group: group.last_seen, reverse=True),
            alerts=alerts.read_firing(firing),
            schedules=_number(schedules),
            overdue_schedules=_number(overdue),
            has_scheduler=bool(_number(lock)),
            claimed=dict(zip(names.workers, map(_number, claims), strict=True)),
            memory=memory if isinstance(memory, dict) else {},
            persistence=persistence if isinstance(persistence, dict) else {},
        )


def _seconds(basics: list[Any]) -> float:
    seconds, microseconds = basics[2]
    return float(seconds) + float(microseconds) / 1e6


def _number(reply: Any) -> int:
    return reply if isinstance(reply, int) else 0
