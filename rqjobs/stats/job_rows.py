"""Jobs as rows of lists: some fields of each, read for many jobs at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import redis

from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.broker.places import queue_names
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


def recent(
    connection: redis.Redis, place: str, limit: int = 10, queues: list[str] | None = None
) -> list[Job]:
    """The newest jobs of a place (a key of `REGISTRY_KEYS`) over all queues, the newest first.

    A job that cannot be read is left out.
    """
    commands = [
        newest_command(place, limit, portion)
        for portion in scripts.in_chunks(queues or queue_names(connection))
    ]
    replies = scripts.read_together(connection, commands, scripts.NEWEST_JOBS)
    found = [row for reply in replies for row in reply]
    return read_newest(connection, {place: found}, {place: limit})[place]


def listed_jobs(connection: redis.Redis, ids: list[str]) -> list[tuple[str, Job | None]]:
    """Each of these jobs with `LISTED_FIELDS`, in one round trip; None if it cannot be read."""
    replies = scripts.read_together(
        connection, [("HMGET", keys.job(job_id), *LISTED_FIELDS) for job_id in ids]
    )
    return [
        (job_id, read_row(connection, job_id, reply))
        for job_id, reply in zip(ids, replies, strict=True)
    ]


def newest_command(place: str, limit: int, queues: list[str]) -> tuple[Any, ...]:
    """The command that reads the newest jobs of a place, of some queues."""
    fields = [len(LISTED_FIELDS), *LISTED_FIELDS]
    return scripts.NEWEST_JOBS.call([], [REGISTRY_KEYS[place], limit, *fields, *queues])


def read_newest(
    connection: redis.Redis, found: dict[str, list[Any]], limits: dict[str, int]
) -> dict[str, list[Job]]:
    """The newest of the jobs that were `found` ([moment, id, values of `LISTED_FIELDS`]) by place."""
    jobs = {}
    for place, rows in found.items():
        newest = sorted(rows, key=lambda row: row[0], reverse=True)[: limits[place]]
        listed = [read_row(connection, decode(job_id), values) for _, job_id, values in newest]
        jobs[place] = [job for job in listed if job]
    return jobs


def read_row(connection: redis.Redis, job_id: str, values: Any) -> Job | None:
    """The job of a reply with `LISTED_FIELDS`; None if it cannot be read."""
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
