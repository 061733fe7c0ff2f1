"""Failed jobs: groups by function and error; list, requeue and delete them by these.

A stopped job is not a failed one, although RQ keeps it among them. A discarded job is a canceled
one. Nothing here takes either.
"""

from __future__ import annotations

import re
import time
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import Any, NamedTuple

import redis

from rqjobs import connection
from rqjobs.broker import keys, places, scripts, transitions
from rqjobs.broker.bulk_transitions import BATCH_JOBS
from rqjobs.broker.keys import decode
from rqjobs.job_fields import read_traceback
from rqjobs.jobs import function_name
from rqjobs.policies import failures
from rqjobs.policies.failures import Failure
from rqjobs.times import parse_date, utc

MINUTES_OF_HOUR = 60
HOURS_OF_DAY = 24
HOURS_OF_WEEK = 168
PLACE_MOMENT = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")  # of the last failure of a part
PART_JOBS = 1000  # entries that are read at a time
UNREADABLE_JOB = "The job in Redis cannot be read"
Target = tuple[str, str]  # job id, queue


@dataclass(frozen=True)
class Group:
    """The failed jobs of one function with one error.

    `last_hour`, `last_day` and `last_week` count failures, also those of jobs that were requeued or
    deleted since. `hours` are those of the last 24 hours one by one, the present one last. `jobs` is
    the number of jobs that are failed now. `ignored_since`: since when the group is ignored, also if
    it has come back since, and `ignored_by` by whom; None and "" if it is not. The texts come from
    jobs: show them, but do not trust them.
    """

    id: str
    function: str
    error: str  # the class of the exception, or a reason like "process died"
    message: str  # of the last failure
    first_seen: datetime
    last_seen: datetime
    total: int
    last_hour: int
    last_day: int
    last_week: int
    jobs: int
    hours: tuple[int, ...] = ()
    ignored_since: datetime | None = None
    ignored_by: str = ""
    has_come_back: bool = False  # a failure has arrived since it is ignored

    @property
    def is_ignored(self) -> bool:
        """Whether the group does not count as trouble: it is ignored, and has not come back."""
        return self.ignored_since is not None and not self.has_come_back


@dataclass(frozen=True)
class FailedJob:
    """A failed job. `failed_at` is None if the job was failed by plain RQ without a date."""

    job_id: str
    queue: str
    function: str
    error: str
    failed_at: datetime | None


@dataclass(frozen=True)
class Filter:
    """A choice of failed jobs; None is any.

    `function`: `module.function`, or the name alone. `error`: the class of the exception, with or
    without its module, or a reason. `since`: only jobs that failed at this time or later, a
    datetime or a timedelta before now. `group`: the id of a group, in place of function and error.
    """

    function: str | None = None
    error: str | None = None
    queue: str | None = None
    since: datetime | timedelta | None = None
    group: str | None = None

    @property
    def is_empty(self) -> bool:
        return self == Filter()

    @property
    def since_seconds(self) -> float:
        """`since` as a Unix time; 0 for None."""
        if self.since is None:
            return 0.0
        if isinstance(self.since, timedelta):
            return time.time() - self.since.total_seconds()
        return self.since.timestamp()

    def takes_time(self, failed_at: datetime | None) -> bool:
        """Whether the filter takes a job that failed at this time."""
        if self.since is None:
            return True
        return failed_at is not None and failed_at.timestamp() >= self.since_seconds

    def fits(self, function: str, error: str) -> bool:
        """Whether the filter takes the jobs of this function with this error."""
        names = (function, function.rpartition(".")[2])
        return self.function in (None, *names) and (
            self.error is None or self.error.rpartition(".")[2] == error
        )


# Groups


def groups(limit: int = 1000) -> list[Group]:
    """The groups, the one that failed last first."""
    client = connection.client()
    (ids,) = scripts.read_together(client, [("ZREVRANGE", keys.FAILURE_GROUPS, 0, limit - 1)])
    if isinstance(ids, Exception):  # the key has the wrong type
        return []
    names = [decode(group) for group in ids]
    commands = [part for name in names for part in group_commands(name)]
    return groups_in(names, scripts.read_together(client, commands))


def groups_in(names: Sequence[str], replies: list[Any]) -> list[Group]:
    """Those of the groups with these ids that there are, from the replies to their `group_commands`."""
    now = time.time()
    found = []
    for name, fields, number in zip(names, replies[::2], replies[1::2], strict=True):
        if isinstance(fields, dict) and fields:
            found.append(_group(name, fields, number if isinstance(number, int) else 0, now))
    return found


def group(group_id: str) -> Group | None:
    """The group of this id; None if there is none."""
    fields, number = scripts.read_together(connection.client(), group_commands(group_id))
    if not isinstance(fields, dict) or not fields:
        return None
    return _group(group_id, fields, number if isinstance(number, int) else 0, time.time())


def group_commands(group_id: str) -> list[tuple[Any, ...]]:
    """The commands that read a group. `groups_in` takes the replies."""
    return [
        ("HGETALL", keys.failure_group(group_id)),
        ("ZCARD", keys.failure_group_jobs(group_id)),
    ]


def _group(group_id: str, stored: dict[bytes, bytes], number: int, now: float) -> Group:
    fields = {decode(name): decode(value) for name, value in stored.items()}
    hour = int(now // 3600)
    ignored = read_ignored(fields.get("ignored"), fields.get("total"))
    return Group(
        id=group_id,
        function=fields.get("function", ""),
        error=fields.get("error", ""),
        message=fields.get("message", ""),
        first_seen=_moment(fields.get("first")),
        last_seen=_moment(fields.get("last")),
        total=_number(fields.get("total")),
        last_hour=_count(fields, "m", int(now // 60) - MINUTES_OF_HOUR),
        last_day=_count(fields, "h", hour - HOURS_OF_DAY),
        last_week=_count(fields, "h", hour - HOURS_OF_WEEK),
        jobs=number,
        hours=tuple(_of_hour(fields, one) for one in range(hour - HOURS_OF_DAY + 1, hour + 1)),
        ignored_since=ignored.since,
        ignored_by=ignored.by,
        has_come_back=ignored.has_come_back,
    )


@dataclass(frozen=True)
class Ignored:
    """When and by whom a group was ignored, and whether it has failed again since."""

    since: datetime | None = None
    by: str = ""
    has_come_back: bool = False


def read_ignored(stored: str | None, total: str | None) -> Ignored:
    """Read the field `ignored` of a group, written by ignore_group.lua, with its field `total`."""
    if not stored:
        return Ignored()
    failures, _, rest = stored.partition(" ")
    since, _, by = rest.partition(" ")
    return Ignored(_moment(since), by, _number(total) > _number(failures))


def _of_hour(fields: dict[str, str], hour: int) -> int:
    """The failures of one hour since 1970."""
    period, _, count = fields.get(f"h{hour % HOURS_OF_WEEK}", "").partition(":")
    return _number(count) if _number(period) == hour else 0


def _count(fields: dict[str, str], prefix: str, after: int) -> int:
    """The failures of all periods after this one, by the counters with this prefix."""
    total = 0
    for name, value in fields.items():
        if name[:1] == prefix and name[1:].isdigit():
            period, _, count = value.partition(":")
            if _number(period) > after:
                total += _number(count)
    return total


def _number(text: str | None) -> int:
    if text and text.isascii() and text.isdigit():
        return int(text[:18])
    return 0


def _moment(text: str | None) -> datetime:
    try:
        return utc(float(text or 0))
    except (ValueError, OverflowError, OSError):  # foreign data
        return utc(0)


# Jobs


def jobs(
    function: str | None = None,
    error: str | None = None,
    queue: str | None = None,
    since: datetime | timedelta | None = None,
    limit: int = 1000,
) -> list[FailedJob]:
    """Failed jobs by the filters of `Filter`, the oldest of each group first."""
    return list(islice(find(Filter(function, error, queue, since)), limit))


def find(chosen: Filter) -> Iterator[FailedJob]:
    """The failed jobs of a filter, read in small steps."""
    client = connection.client()
    for found in groups():
        if chosen.group in (None, found.id) and chosen.fits(found.function, found.error):
            yield from _jobs_of_group(client, found, chosen)
    if chosen.group is None:
        yield from _ungrouped(client, chosen)


class GroupPart(NamedTuple):
    """A part of the jobs of a group, the last failure first.

    `next`: the place for `after` that continues it, "" at the end. Jobs that leave the group in
    between are not missed, and do not hide others.
    """

    job_ids: list[str]
    next: str


def part_of_group(group_id: str, after: str, limit: int) -> GroupPart:
    """The next jobs of a group behind a place.

    Raises:
        ValueError: `after` is not a place.
    """
    key = keys.failure_group_jobs(group_id)
    moment, _, last = after.partition(":")
    if after and not (PLACE_MOMENT.fullmatch(moment) and last):
        raise ValueError("this place does not belong to this list; begin at its first part")
    client = connection.client()
    start = 0
    if after:
        (start,) = scripts.read_together(client, [("ZCOUNT", key, f"({moment}", "+inf")])
    found: list[tuple[str, float]] = []
    while isinstance(start, int) and len(found) <= limit:
        command = ("ZREVRANGE", key, start, start + PART_JOBS - 1, "WITHSCORES")
        entries = scripts.read_scores(scripts.read_together(client, [command])[0])
        found += [one for one in entries if not after or _is_behind(one, float(moment), last)]
        start += PART_JOBS
        if len(entries) < PART_JOBS:
            break
    part = found[:limit]
    if len(found) <= limit:
        return GroupPart([job_id for job_id, _ in part], "")
    job_id, failed_at = part[-1]
    return GroupPart([job_id for job_id, _ in part], f"{failed_at!r}:{job_id}")


def _is_behind(entry: tuple[str, float], moment: float, last: str) -> bool:
    """Whether an entry comes after a place, from the highest score on as ZREVRANGE gives them."""
    job_id, failed_at = entry
    if failed_at != moment:
        return failed_at < moment
    return job_id.encode() < last.encode()  # Redis compares bytes


def _jobs_of_group(client: redis.Redis, found: Group, chosen: Filter) -> Iterator[FailedJob]:
    """The jobs of a group that are failed now, in the order in which they failed."""
    key = keys.failure_group_jobs(found.id)
    entries = sorted(_scan(client, key), key=lambda entry: entry[1])
    first = chosen.since_seconds
    entries = [entry for entry in entries if entry[1] >= first]
    for start in range(0, len(entries), BATCH_JOBS):
        batch = entries[start : start + BATCH_JOBS]
        commands = [
            ("HMGET", keys.job(decode(job_id)), "status", "origin", "rqjobs_failure_group")
            for job_id, _ in batch
        ]
        for (job_id, moment), reply in zip(
            batch, scripts.read_together(client, commands), strict=True
        ):
            if isinstance(reply, Exception) or reply[0] != b"failed":
                continue  # plain RQ has deleted or requeued it; the sweep removes the entry
            queue = decode(reply[1] or b"")
            if decode(reply[2] or b"") == found.id and chosen.queue in (None, queue):
                failed_at = _moment(str(moment))
                yield FailedJob(decode(job_id), queue, found.function, found.error, failed_at)


def _scan(client: redis.Redis, key: str) -> list[tuple[bytes, float]]:
    """The members of a sorted set with their scores, read in steps; none if it has another type."""
    try:
        return list(set(client.zscan_iter(key, count=2 * BATCH_JOBS)))
    except redis.ResponseError as error:
        if not scripts.is_wrong_type(error):
            raise
        return []


def _ungrouped(client: redis.Redis, chosen: Filter) -> Iterator[FailedJob]:
    """The failed jobs without a group: plain RQ has recorded the failure."""
    queues = places.queue_names(client) if chosen.queue is None else [chosen.queue]
    for queue in queues:
        cursor: Any = b"0"
        while True:
            args = [queue, cursor, BATCH_JOBS]
            cursor, *ids = scripts.UNGROUPED_FAILURES.run(client, [], args)
            yield from _described(client, queue, [decode(job_id) for job_id in ids], chosen)
            if cursor in (b"0", "0"):
                break


def describe(client: redis.Redis, ids: dict[str, list[str]]) -> list[FailedJob]:
    """Failed jobs by their records and tracebacks, in one round trip. `ids`: by queue."""
    commands = [command for some in ids.values() for command in _described_by(some)]
    replies = scripts.read_together(client, commands)
    found = []
    for queue, some in ids.items():
        mine, replies = replies[: 2 * len(some)], replies[2 * len(some) :]
        found += list(_as_described(queue, some, mine, Filter()))
    return found


def _described(
    client: redis.Redis, queue: str, ids: Sequence[str], chosen: Filter
) -> Iterator[FailedJob]:
    replies = scripts.read_together(client, _described_by(ids))
    yield from _as_described(queue, ids, replies, chosen)


def _described_by(ids: Sequence[str]) -> list[tuple[Any, ...]]:
    commands: list[tuple[Any, ...]] = []
    for job_id in ids:
        commands.append(("HMGET", keys.job(job_id), "data", "ended_at"))
        commands.append(("XREVRANGE", keys.results(job_id), "+", "-", "COUNT", 1))
    return commands


def _as_described(
    queue: str, ids: Sequence[str], replies: list[Any], chosen: Filter
) -> Iterator[FailedJob]:
    for job_id, fields, entries in zip(ids, replies[::2], replies[1::2], strict=True):
        data = ended_at = None
        if isinstance(fields, list):
            data, ended_at = fields
        failed_at = _date(ended_at)
        if not chosen.takes_time(failed_at):
            continue
        failure = read_failure(data, entries)
        if chosen.fits(failure.function, failure.error):
            yield FailedJob(job_id, queue, failure.function, failure.error, failed_at)


def read_failure(data: bytes | None, results: Any) -> Failure:
    """The failure of a job by its stored data, and the reply with its newest result."""
    return failures.of_traceback(function_name(data), _traceback(results))


def _traceback(results: Any) -> str:
    try:
        fields = results[0][1]
        if isinstance(fields, list):
            fields = dict(zip(fields[::2], fields[1::2], strict=True))
        return read_traceback(b64decode(fields[b"exc_string"]))
    except (LookupError, TypeError, ValueError, AttributeError):  # none, or a foreign one
        return UNREADABLE_JOB


def _date(stored: Any) -> datetime | None:
    try:
        return parse_date(stored).astimezone(timezone.utc)
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None


# Changes


def requeue(
    function: str | None = None,
    error: str | None = None,
    queue: str | None = None,
    since: datetime | timedelta | None = None,
    every: bool = False,
) -> int:
    """Requeue failed jobs by the filters of `Filter`, each in one step; returns how many.

    Raises:
        ValueError: no filter is given, and not `every=True`.
    """
    targets = select(_checked(Filter(function, error, queue, since), every))
    return sum(requeue_steps(targets))


def delete(
    function: str | None = None,
    error: str | None = None,
    queue: str | None = None,
    since: datetime | timedelta | None = None,
    every: bool = False,
) -> int:
    """Delete failed jobs by the filters of `Filter` permanently; returns how many.

    Raises:
        ValueError: no filter is given, and not `every=True`.
    """
    targets = select(_checked(Filter(function, error, queue, since), every))
    return sum(delete_steps(targets))


def _checked(chosen: Filter, every: bool) -> Filter:
    if chosen.is_empty and not every:
        raise ValueError(
            "name a function, an error, a queue or a time; for all failed jobs pass every=True"
        )
    return chosen


def select(chosen: Filter, limit: int | None = None) -> list[Target]:
    """(job id, queue) of the failed jobs of a filter, up to `limit`."""
    client = connection.client()
    if Filter(queue=chosen.queue) == chosen:
        queues = places.queue_names(client) if chosen.queue is None else [chosen.queue]
        targets: Iterable[Target] = (
            (job_id, name) for name in queues for job_id in ids_of_queue(client, name)
        )
    else:
        targets = ((job.job_id, job.queue) for job in find(chosen))
    return list(islice(targets, limit))


def ids_of_queue(client: redis.Redis, queue: str) -> list[str]:
    """Every failed job of a queue, read in steps; those first that expire first. No stopped ones."""
    entries = _scan(client, keys.failed(queue))
    stopped = {job_id for _, job_id in transitions.failed_jobs(client, queue, which="stopped")}
    found = sorted((score, decode(member)) for member, score in entries)
    return [job_id for _, job_id in found if job_id not in stopped]


def requeue_steps(targets: Sequence[Target]) -> Iterator[int]:
    """Requeue these jobs; gives the number of requeued jobs of each step of `BATCH_JOBS`."""
    return _steps(targets, transitions.requeue_failed)


def delete_steps(targets: Sequence[Target]) -> Iterator[int]:
    """Delete these jobs; gives the number of deleted jobs of each step of `BATCH_JOBS`."""
    return _steps(targets, transitions.delete_failed_jobs)


def _steps(
    targets: Sequence[Target], change: Callable[[redis.Redis, Sequence[Target]], int]
) -> Iterator[int]:
    client = connection.client()
    for start in range(0, len(targets), BATCH_JOBS):
        yield change(client, targets[start : start + BATCH_JOBS])
