"""One job: its record, its details, its status, and the queue in which it has failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis
from rq.exceptions import NoSuchJobError

from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.broker.places import queue_names
from rqjobs.jobs import Job
from rqjobs.loops import PROGRESS_FIELD, Progress, read_progress


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
    except NoSuchJobError:  # RQ's own text has the key instead of the id
        raise NoSuchJobError(f"No such job: {job_id}") from None
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
