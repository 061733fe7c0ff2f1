"""The state of queues, workers and jobs, for the pages and the command line. Nothing is changed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import redis
from rq.exceptions import NoSuchJobError
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import now, str_to_date

from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode, queue_names_in
from rqjobs.broker.pauses import Pause, read_pauses
from rqjobs.broker.places import PLACES, queue_names
from rqjobs.jobs import Job
from rqjobs.loops import PROGRESS_FIELD, Progress, read_progress

REGISTRY_KEYS = {  # place of a job -> the word in RQ's key
    "queued": "queue",
    "running": "wip",
    "scheduled": "scheduled",
    "deferred": "deferred",
    "failed": "failed",
    "finished": "finished",
    "canceled": "canceled",
}
QUEUE_WINDOW_JOBS = 2000  # within which a page of a queue looks for the last job of the page before
DEFERRED_SAMPLE_JOBS = 200  # deferred jobs of a queue that its page looks at
WAIT_FIELDS = ("rqjobs_waits_for", "rqjobs_paused")
MAX_QUEUE_LIMITS = 20  # for which jobs of a queue wait, on its page
PROCESS_FIELDS = ("pid", "horse", "rqjobs", "memory", "horse_memory", "per_minute", "quiet")
SUSPENDED = "RQ is suspended: no worker begins a job until `rq resume`"
LISTED_FIELDS = (  # of a job's record, for a row of a list
    "status",
    "origin",
    "description",
    "created_at",
    "enqueued_at",
    "started_at",
    "ended_at",
    "worker_name",
    "timeout",
    PROGRESS_FIELD,
)


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
class WorkerStats:
    """One worker that RQ knows. `alive` is by its lease, or for a plain RQ worker by RQ's key.

    The fields below `python_version` are those of our own workers: the version of rqjobs, the
    horse's pid (0: none), memory in bytes (0: not known), jobs done in the last minute, and the
    seconds left of the lease, below 0 if it has expired.
    """

    name: str
    state: str
    queues: tuple[str, ...]
    job_id: str | None
    host: str
    pid: int
    heartbeat: float | None  # seconds since the last one
    succeeded: int
    failed: int
    alive: bool
    ours: bool
    version: str = ""  # of RQ
    python_version: str = ""
    seconds_worked: float = 0.0  # on all jobs
    has_ended: bool = False  # it has unregistered
    rqjobs_version: str = ""
    horse_pid: int = 0
    memory: int = 0  # of the parent
    horse_memory: int = 0
    per_minute: float = 0.0
    quiet_since: float = 0.0  # Unix seconds; 0 if it takes jobs
    lease: float | None = None

    @property
    def done(self) -> int:
        return self.succeeded + self.failed

    @property
    def shown_state(self) -> str:
        """The state in one word: RQ's, or "dead", or "quiet" for a worker that takes no jobs."""
        if not self.alive:
            return "dead"
        return "quiet" if self.quiet_since else self.state


@dataclass(frozen=True)
class Snapshot:
    """Every queue and every worker at one moment."""

    queues: list[QueueStats]
    workers: list[WorkerStats]
    suspended: bool = False  # by `rq suspend`: no worker begins a job until `rq resume`
    paused: tuple[Pause, ...] = ()  # queues and functions from which no job begins

    @property
    def unserved(self) -> list[str]:
        """Queues with waiting jobs that no live worker listens to."""
        return [
            queue.name
            for queue in self.queues
            if not queue.workers and (queue.queued or queue.scheduled)
        ]


@dataclass(frozen=True)
class JobDetails:
    """The facts about a job that RQ's `Job` does not read.

    `crashes` counts the processes that died under it. `due` is when a delayed job runs, as Unix
    seconds or as whatever Redis replies. `schedule` is the schedule that made it, or "". `ending`
    says why a canceled job ended ("expired"), or "". `paused` is the paused function for which a
    deferred job waits, or "". `failure_group` is the id of a failed job's group, or "". `progress` is
    None if it has none.
    """

    crashes: int
    due: Any
    progress: Progress | None
    schedule: str
    ending: str
    paused: str
    failure_group: str


# Queues and workers


def every_name(names: list[str]) -> list[str]:
    """The queues of a snapshot: all of them."""
    return names


def snapshot(
    connection: redis.Redis, choose: Callable[[list[str]], list[str]] = every_name
) -> Snapshot:
    """Every worker and the queues that `choose` takes of all, as they are now. Two round trips."""
    return overview(connection, {}, choose)[0]


@dataclass(frozen=True)
class Names:
    """The queues and the workers in Redis."""

    queues: list[str]
    workers: list[str]


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
    portions = scripts.in_chunks(names.queues)
    return [
        *(command for name in names.workers for command in _worker_commands(name)),
        *(scripts.COUNT_PLACES.call([], portion) for portion in portions),
        *(
            _newest_command(place, limit, portion)
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
    number = len(scripts.in_chunks(names.queues))
    facts = sum(len(_worker_commands(name)) for name in names.workers)
    workers = _workers(names.workers, replies[:facts], seconds)
    census = [row for reply in replies[facts : facts + number] for row in reply]
    found: dict[str, list[Any]] = {place: [] for place in limits}
    owners = [place for place in limits for _ in range(number)]
    for place, reply in zip(owners, replies[facts + number :], strict=True):
        found[place] += reply
    queues = _queues(names.queues, census, workers)
    snapshot = Snapshot(queues, workers, bool(basics[3]), tuple(read_pauses(basics[4])))
    return snapshot, _read(connection, found, limits)


def _worker_commands(name: str) -> list[tuple[Any, ...]]:
    return [
        ("HGETALL", keys.worker(name)),
        ("ZSCORE", keys.LEASES, name),
        ("HMGET", keys.process(name), *PROCESS_FIELDS),
    ]


def _queues(names: list[str], census: list[Any], workers: list[WorkerStats]) -> list[QueueStats]:
    listening = Counter(name for worker in workers if worker.alive for name in set(worker.queues))
    found = {decode(name): (_age(since), counts) for name, since, *counts in census}
    nothing = (None, [0] * len(PLACES))
    queues = []
    for name in names:
        oldest, counts = found.get(name, nothing)
        by_place = dict(zip(PLACES, counts, strict=True))
        by_place.pop("intermediate")
        queues.append(QueueStats(name=name, oldest=oldest, workers=listening[name], **by_place))
    return queues


def _age(moment: Any) -> float | None:
    if not moment:
        return None
    try:
        return max(0.0, (now() - str_to_date(moment)).total_seconds())
    except ValueError:
        return None


def _workers(names: list[str], replies: list[Any], seconds: float) -> list[WorkerStats]:
    """The workers whose record can be read. `replies` are those to `_worker_commands`."""
    found = []
    for name, record, lease, process in zip(
        names, replies[::3], replies[1::3], replies[2::3], strict=True
    ):
        if not isinstance(record, dict) or isinstance(lease, Exception):
            continue  # a key of the wrong type
        fields = {decode(field): decode(value) for field, value in record.items()}
        if "state" in fields and fields["state"] != "?":
            found.append(_worker(name, fields, lease, seconds, _process_facts(process)))
    return found


def worker(connection: redis.Redis, name: str) -> WorkerStats | None:
    """One worker by its record; None if RQ has none of this name that can be read."""
    (seconds, _), *replies = scripts.read_together(connection, [("TIME",), *_worker_commands(name)])
    found = _workers([name], replies, seconds)
    return found[0] if found else None


def claimed_jobs(connection: redis.Redis, worker: str) -> int:
    """The number of jobs that a worker has claimed and not settled."""
    (number,) = scripts.read_together(connection, [("LLEN", keys.claims(worker))])
    return number if isinstance(number, int) else 0


def _process_facts(reply: Any) -> dict[str, Any]:
    """The facts that a worker of ours writes with its heartbeat; none for another one."""
    if not isinstance(reply, list) or not any(reply):
        return {}
    _pid, horse, version, memory, horse_memory, per_minute, quiet = (
        decode(value or b"") for value in reply
    )
    return {
        "horse_pid": _number(horse),
        "rqjobs_version": version,
        "memory": _number(memory),
        "horse_memory": _number(horse_memory),
        "per_minute": _decimal(per_minute),
        "quiet_since": _decimal(quiet),
    }


def _worker(
    name: str, fields: dict[str, str], lease: float | None, seconds: float, facts: dict[str, Any]
) -> WorkerStats:
    is_alive = "death" not in fields
    if lease is not None:
        is_alive = lease > seconds
    return WorkerStats(
        name=name,
        state=fields["state"],
        job_id=fields.get("current_job"),
        queues=tuple(filter(None, fields.get("queues", "").split(","))),
        host=fields.get("hostname", "?"),
        pid=_number(fields.get("pid")),
        heartbeat=_age(fields.get("last_heartbeat")),
        succeeded=_number(fields.get("successful_job_count")),
        failed=_number(fields.get("failed_job_count")),
        alive=is_alive,
        ours=lease is not None,
        version=fields.get("version", ""),
        python_version=fields.get("python_version", ""),
        seconds_worked=_seconds(fields.get("total_working_time")),
        has_ended="death" in fields,
        lease=None if lease is None else lease - seconds,
        **facts,
    )


def _decimal(value: str) -> float:
    """A number as our workers write it; 0 for other text."""
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?(e\+[0-9]{2})?", value, re.ASCII):
        return float(value)
    return 0.0


def _number(value: str | None) -> int:
    if value and re.fullmatch("[0-9]{1,18}", value):
        return int(value)
    return 0


def _seconds(value: str | None) -> float:
    if value and re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,20})?(e-?[0-9]{1,2})?", value):
        return float(value)
    return 0.0


def scheduler_is_running(connection: redis.Redis) -> bool:
    """Whether a scheduler runs the schedules at the moment."""
    return bool(connection.exists(keys.SCHEDULES_LOCK))


# Lists of jobs


def recent(
    connection: redis.Redis, place: str, limit: int = 10, queues: list[str] | None = None
) -> list[Job]:
    """The newest jobs of a place (a key of `REGISTRY_KEYS`) over all queues, the newest first.

    A job that cannot be read is left out.
    """
    commands = [
        _newest_command(place, limit, portion)
        for portion in scripts.in_chunks(queues or queue_names(connection))
    ]
    replies = scripts.read_together(connection, commands, scripts.NEWEST_JOBS)
    found = [row for reply in replies for row in reply]
    return _read(connection, {place: found}, {place: limit})[place]


def _newest_command(place: str, limit: int, queues: list[str]) -> tuple[Any, ...]:
    fields = [len(LISTED_FIELDS), *LISTED_FIELDS]
    return scripts.NEWEST_JOBS.call([], [REGISTRY_KEYS[place], limit, *fields, *queues])


def _read(
    connection: redis.Redis, found: dict[str, list[Any]], limits: dict[str, int]
) -> dict[str, list[Job]]:
    """The newest of the jobs that were `found` ([moment, id, values of `LISTED_FIELDS`]) by place."""
    jobs = {}
    for place, rows in found.items():
        newest = sorted(rows, key=lambda row: row[0], reverse=True)[: limits[place]]
        listed = [_job(connection, decode(job_id), values) for _, job_id, values in newest]
        jobs[place] = [job for job in listed if job]
    return jobs


def _job(connection: redis.Redis, job_id: str, values: Any) -> Job | None:
    if not isinstance(values, list) or not any(values):
        return None
    pairs = zip(LISTED_FIELDS, values, strict=True)
    fields = {name.encode(): value for name, value in pairs if value}
    try:
        job = Job(job_id, connection=connection)
        job.restore({**fields, b"data": b""})
        return job
    except Exception:  # RQ may raise anything for a damaged record
        return None


def listed_jobs(connection: redis.Redis, ids: list[str]) -> list[tuple[str, Job | None]]:
    """Each of these jobs with `LISTED_FIELDS`, in one round trip; None if it cannot be read."""
    replies = scripts.read_together(
        connection, [("HMGET", keys.job(job_id), *LISTED_FIELDS) for job_id in ids]
    )
    return [
        (job_id, _job(connection, job_id, reply))
        for job_id, reply in zip(ids, replies, strict=True)
    ]


def listed_progress(job: Job) -> Progress | None:
    """The progress of a job that `recent` or `overview` has read; None if it has none."""
    return read_progress((job.hash_as_read or {}).get(PROGRESS_FIELD.encode()))


def count_jobs(connection: redis.Redis, places: Iterable[tuple[str, str]]) -> list[int]:
    """The number of jobs in each (queue, place); 0 where the key is of the wrong type."""
    commands = []
    for queue, place in places:
        command = "LLEN" if place == "queued" else "ZCARD"
        commands.append((command, keys.registry(REGISTRY_KEYS[place], queue)))
    replies = scripts.read_together(connection, commands)
    return [reply if isinstance(reply, int) else 0 for reply in replies]


def job_ids(
    connection: redis.Redis,
    queue: str,
    place: str,
    start: int = 0,
    stop: int = -1,
    backwards: bool = False,
) -> list[str]:
    """The ids from `start` to `stop` (inclusive) in the order of the place, or backwards.

    Empty if the key is of the wrong type.
    """
    key = keys.registry(REGISTRY_KEYS[place], queue)
    command: tuple[Any, ...] = ("ZRANGE", key, start, stop)
    if place != "queued" and backwards:
        command = (*command, "REV")
    elif place == "queued":
        command = ("LRANGE", key, start, stop)
        if backwards:
            command = ("LRANGE", key, -1 - stop, -1 - start)
    (members,) = scripts.read_together(connection, [command])
    if isinstance(members, Exception):
        return []
    if place == "queued" and backwards:
        members = members[::-1]
    return [decode(member).partition(":")[0] for member in members]  # running: "<id>:<token>"


# One job


def fetch(connection: redis.Redis, job_id: str) -> Job | None:
    """The job, or None if there is none, or none that can be read."""
    try:
        return Job.fetch(job_id, connection=connection)  # type: ignore[return-value]
    except Exception:  # RQ may raise anything for a damaged record
        return None


def read_job(connection: redis.Redis, job_id: str) -> Job | Exception:
    """The job, or the error if its record cannot be read.

    Raises:
        NoSuchJobError: there is no such job.
        redis.ConnectionError, redis.TimeoutError: Redis does not answer.
    """
    try:
        return Job.fetch(job_id, connection=connection)  # type: ignore[return-value]
    except NoSuchJobError:
        raise
    except redis.ResponseError as error:  # a key of the wrong type
        return error
    except redis.RedisError:
        raise
    except Exception as error:  # RQ may raise anything for a damaged record or an odd id
        if not job_exists(connection, job_id):
            raise NoSuchJobError(f"No such job: {job_id}") from None
        return error


def job_exists(connection: redis.Redis, job_id: str) -> bool:
    """Whether there is a record of the job, readable or not. RQ's own check refuses odd ids."""
    return bool(connection.exists(keys.job(job_id)))


def job_details(job: Job) -> JobDetails:
    """The details of a job, in one round trip."""
    with job.connection.pipeline(transaction=False) as pipe:
        pipe.hget(job.key, "rqjobs_crashes")
        pipe.hget(job.key, "rqjobs_schedule")
        pipe.hget(job.key, "rqjobs_ending")
        pipe.hget(job.key, "rqjobs_paused")
        pipe.hget(job.key, "rqjobs_failure_group")
        pipe.hget(job.key, PROGRESS_FIELD)
        pipe.zscore(keys.scheduled(job.origin), job.id)
        crashes, schedule, ending, paused, group, progress, due = pipe.execute(raise_on_error=False)
    count = 0
    if crashes:
        count = len(decode(crashes).split(","))
    texts = [decode(field or b"") for field in (schedule, ending, paused, group)]
    return JobDetails(count, due, read_progress(progress), *texts)


def statuses(connection: redis.Redis, job_ids: list[str]) -> dict[str, str]:
    """The status of each of these jobs; "gone" if its record is."""
    commands = [("HGET", keys.job(job_id), "status") for job_id in job_ids]
    replies = scripts.read_together(connection, commands)
    return {
        job_id: decode(reply) if isinstance(reply, bytes) and reply else "gone"
        for job_id, reply in zip(job_ids, replies, strict=True)
    }


@dataclass(frozen=True)
class QueuedJobs:
    """Jobs of a queue in the order in which they run, from the position `first` (0: the next)."""

    first: int
    jobs: list[tuple[str, Job | None]]
    has_more: bool


@dataclass(frozen=True)
class QueueLimit:
    """A limit, or a paused function, for which jobs of a queue wait; `seen` of those looked at."""

    key: str
    is_pause: bool
    seen: int
    running: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class QueueContents:
    """A page of a queue's jobs, and what its deferred jobs wait for."""

    queued: QueuedJobs
    limits: list[QueueLimit]


def queue_contents(
    connection: redis.Redis, queue: str, position: int, after: str, limit: int
) -> QueueContents:
    """A page of a queue, behind the job `after`, which was at `position` - 1 a moment ago.

    Jobs leave a queue at its front, so `after` is looked for in front of that, within
    `QUEUE_WINDOW_JOBS`. The limits are those for which the first `DEFERRED_SAMPLE_JOBS` deferred
    jobs wait, the most first; those that wait for other jobs are left out. Three round trips.
    """
    window_start = max(0, position - QUEUE_WINDOW_JOBS) if after else position
    members, deferred = scripts.read_together(
        connection,
        [
            ("LRANGE", keys.queue(queue), window_start, position + limit),
            ("ZRANGE", keys.deferred(queue), 0, DEFERRED_SAMPLE_JOBS - 1),
        ],
    )
    ids = _ids(members)
    first = position - window_start
    if after in ids:
        first = len(ids) - ids[::-1].index(after)
    shown, waiting = ids[first : first + limit], _ids(deferred)
    replies = scripts.read_together(
        connection,
        [
            *(("HMGET", keys.job(job_id), *LISTED_FIELDS) for job_id in shown),
            *(("HMGET", keys.job(job_id), *WAIT_FIELDS) for job_id in waiting),
        ],
    )
    jobs = [
        (job_id, _job(connection, job_id, reply))
        for job_id, reply in zip(shown, replies, strict=False)
    ]
    queued = QueuedJobs(window_start + first, jobs, len(ids) > first + limit)
    return QueueContents(queued, _limits(connection, replies[len(shown) :]))


def _ids(members: Any) -> list[str]:
    """The ids in a reply; none if the key has the wrong type."""
    return [decode(member) for member in members] if isinstance(members, list) else []


def _limits(connection: redis.Redis, replies: list[Any]) -> list[QueueLimit]:
    """The limits in replies with `WAIT_FIELDS`, with the jobs that run and wait for each."""
    seen: Counter[tuple[str, bool]] = Counter()
    for reply in replies:
        if isinstance(reply, list) and any(reply):
            seen[decode(reply[0] or reply[1]), not reply[0]] += 1
    found = [QueueLimit(*pair, number) for pair, number in seen.most_common(MAX_QUEUE_LIMITS)]
    commands: list[tuple[Any, ...]] = []
    for one in found:
        waiting = keys.paused_jobs(one.key) if one.is_pause else keys.waiting(one.key)
        commands += [("HLEN", keys.slots(one.key)), ("LLEN", waiting)]
    replies = scripts.read_together(connection, commands) if commands else []
    counts = [reply if isinstance(reply, int) else 0 for reply in replies]
    return [
        replace(one, running=running, waiting=waiting)
        for one, running, waiting in zip(found, counts[::2], counts[1::2], strict=True)
    ]


@dataclass(frozen=True)
class WaitingKey:
    """A limit for which jobs wait: its key, and how many jobs of it run and wait."""

    key: str
    running: int
    waiting: int


def waiting_keys(connection: redis.Redis, limit: int = 50) -> list[WaitingKey]:
    """The keys for which jobs wait, those with the most waiting jobs first."""
    (members,) = scripts.read_together(connection, [("SRANDMEMBER", keys.WAITING_KEYS, 1000)])
    if not isinstance(members, list):
        return []
    commands: list[tuple[Any, ...]] = []
    for member in members:
        commands += [("HLEN", keys.slots(decode(member))), ("LLEN", keys.waiting(decode(member)))]
    replies = scripts.read_together(connection, commands)
    counts = [reply if isinstance(reply, int) else 0 for reply in replies]
    found = [
        WaitingKey(decode(member), running, waiting)
        for member, running, waiting in zip(members, counts[::2], counts[1::2], strict=True)
        if waiting
    ]
    return sorted(found, key=lambda one: (-one.waiting, one.key))[:limit]


def failed_queue_of(connection: redis.Redis, job_id: str) -> str | None:
    """The queue that has this id among its failed jobs, or None."""
    names = queue_names(connection)
    replies = scripts.read_together(
        connection, [("ZSCORE", keys.failed(name), job_id) for name in names]
    )
    for name, score in zip(names, replies, strict=True):
        if isinstance(score, float):
            return name
    return None
