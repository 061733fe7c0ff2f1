"""All queues and workers at one moment, with the newest jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis
from rq.suspension import WORKERS_SUSPENDED

from rqjobs import config
from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode, queue_names_in
from rqjobs.broker.pauses import Pause, read_pauses
from rqjobs.broker.places import PLACES
from rqjobs.jobs import Job
from rqjobs.stats.job_rows import newest_command, read_newest
from rqjobs.stats.workers import WorkerStats, read_workers, record_commands
from rqjobs.times import seconds_since

SUSPENDED = "RQ is suspended: no worker begins a job until `rq resume`"


@dataclass(frozen=True)
class QueueStats:
    """One queue: its jobs by place, the age in seconds of the first job, and its live workers."""

    name: str
    queued: int
    running: int
    scheduled: int
    deferred: int
    failed: int
    finished: int
    canceled: int
    stopped: int
    oldest: float | None
    workers: int


@dataclass(frozen=True)
class Snapshot:
    """Every queue and every worker at one moment."""

    queues: list[QueueStats]
    workers: list[WorkerStats]
    suspended: bool = False  # by `rq suspend`: no worker begins a job until `rq resume`
    paused: tuple[Pause, ...] = ()  # queues and functions from which no job begins
    read_at: int = 0  # Unix seconds, by Redis's clock

    @property
    def unserved(self) -> list[str]:
        """Queues with waiting jobs that no live worker listens to."""
        return [
            queue.name
            for queue in self.queues
            if not queue.workers and (queue.queued or queue.scheduled)
        ]


@dataclass(frozen=True)
class Names:
    """The queues and the workers in Redis.

    `are_open`: a queue that is new when the overview is read belongs to it too.
    """

    queues: list[str]
    workers: list[str]
    are_open: bool = False

    @property
    def portions(self) -> list[list[str]]:
        """The queues for each call of a script."""
        if self.are_open:
            return [["", *config.current().queues]]
        return scripts.in_chunks(self.queues)


def every_name(names: list[str]) -> list[str]:
    """The queues of a snapshot: all of them."""
    return names


def snapshot(
    connection: redis.Redis, choose: Callable[[list[str]], list[str]] = every_name
) -> Snapshot:
    """Every worker and the queues that `choose` takes of all, as they are now. Two round trips."""
    return overview(connection, {}, choose)[0]


def overview(
    connection: redis.Redis,
    limits: dict[str, int],
    choose: Callable[[list[str]], list[str]] = every_name,
) -> tuple[Snapshot, dict[str, list[Job]]]:
    """A snapshot, and the newest jobs of each place (a key of `REGISTRY_KEYS`), the newest first.

    `limits` gives the number of jobs for each place. Two round trips, however many queues,
    workers and jobs there are.
    """
    basics = scripts.read_together(connection, BASIC_COMMANDS)
    names = read_names(basics, choose)
    replies = scripts.read_together(connection, overview_commands(names, limits), *OVERVIEW_SCRIPTS)
    return read_overview(connection, names, limits, basics, replies)


BASIC_COMMANDS: tuple[tuple[Any, ...], ...] = (
    ("SMEMBERS", keys.QUEUES),
    ("SMEMBERS", keys.WORKERS),
    ("TIME",),
    ("EXISTS", WORKERS_SUSPENDED),
    ("HGETALL", keys.PAUSED),
)
OVERVIEW_SCRIPTS = (scripts.COUNT_PLACES, scripts.NEWEST_JOBS)


def read_names(basics: list[Any], choose: Callable[[list[str]], list[str]] = every_name) -> Names:
    """The names in the replies to `BASIC_COMMANDS`; of the queues those that `choose` takes."""
    workers = []
    if isinstance(basics[1], set | list):  # else an error: the key is of the wrong type
        workers = sorted(decode(key).removeprefix(keys.WORKER_PREFIX) for key in basics[1])
    return Names(choose(queue_names_in(basics[0])), workers)


def overview_commands(names: Names, limits: dict[str, int]) -> list[tuple[Any, ...]]:
    """The commands of an overview of these queues and workers."""
    portions = names.portions
    return [
        *(command for name in names.workers for command in record_commands(name)),
        *(scripts.COUNT_PLACES.call([], portion) for portion in portions),
        *(
            newest_command(place, limit, portion)
            for place, limit in limits.items()
            for portion in portions
        ),
    ]


def read_overview(
    connection: redis.Redis,
    names: Names,
    limits: dict[str, int],
    basics: list[Any],
    replies: list[Any],
) -> tuple[Snapshot, dict[str, list[Job]]]:
    """As `overview`, from the replies to `BASIC_COMMANDS` and to `overview_commands`."""
    seconds = basics[2][0]
    number = len(names.portions)
    facts = sum(len(record_commands(name)) for name in names.workers)
    workers = read_workers(names.workers, replies[:facts], seconds)
    census = [row for reply in replies[facts : facts + number] for row in reply]
    found: dict[str, list[Any]] = {place: [] for place in limits}
    owners = [place for place in limits for _ in range(number)]
    for place, reply in zip(owners, replies[facts + number :], strict=True):
        found[place] += reply
    queue_names = queue_names_in(basics[0]) if names.are_open else names.queues
    queues = _queues(queue_names, census, workers)
    pauses = tuple(read_pauses(basics[4]))
    snapshot = Snapshot(queues, workers, bool(basics[3]), pauses, seconds)
    return snapshot, read_newest(connection, found, limits)


def _queues(names: list[str], census: list[Any], workers: list[WorkerStats]) -> list[QueueStats]:
    listening = Counter(name for worker in workers if worker.alive for name in set(worker.queues))
    found = {decode(name): (seconds_since(since), counts) for name, since, *counts in census}
    nothing = (None, [0] * len(PLACES))
    queues = []
    for name in names:
        oldest, counts = found.get(name, nothing)
        by_place = dict(zip(PLACES, counts, strict=True))
        by_place.pop("intermediate")
        queues.append(QueueStats(name=name, oldest=oldest, workers=listening[name], **by_place))
    return queues


def scheduler_is_running(connection: redis.Redis) -> bool:
    """Whether a scheduler runs the schedules at the moment."""
    (number,) = scripts.read_together(connection, [("EXISTS", keys.SCHEDULES_LOCK)])
    return bool(number)
