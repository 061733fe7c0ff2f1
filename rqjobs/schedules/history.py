"""History: the outcomes of the jobs that schedules have made."""

from __future__ import annotations

from collections.abc import Iterator

import redis

from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode

UNFINISHED_BATCH_JOBS = 500  # jobs that one step looks at


def note_outcomes(connection: redis.Redis) -> None:
    """All steps of `note_outcomes_in_steps`."""
    for _ in note_outcomes_in_steps(connection):
        pass


def note_outcomes_in_steps(connection: redis.Redis) -> Iterator[None]:
    """Note how jobs of schedules ended, in steps of some milliseconds.

    The outcome is kept with the schedule, because the job's hash expires (`result_ttl`).
    """
    cursor = b"0"
    while True:
        cursor, *ended_jobs = scripts.JOB_OUTCOMES.run(
            connection, [keys.SCHEDULES_UNFINISHED], [cursor, UNFINISHED_BATCH_JOBS]
        )
        for job_id, schedule, status, ended_at in ended_jobs:
            name = decode(schedule)
            outcome = decode(status) or _outcome_of_deleted(connection, name, decode(job_id))
            scripts.NOTE_OUTCOME.run(
                connection,
                [keys.schedule(name), keys.schedule_outcomes(name), keys.SCHEDULES_UNFINISHED],
                [job_id, f"{outcome} {decode(ended_at)}".strip()],
            )
            yield
        if cursor == b"0":
            return
        yield


def _outcome_of_deleted(connection: redis.Redis, schedule: str, job_id: str) -> str:
    """The outcome of a job whose hash is gone, by the registry that still lists the job."""
    (reply,) = scripts.read_together(connection, [("HGET", keys.schedule(schedule), "queue")])
    queue = decode(reply or b"")
    scores = scripts.read_together(
        connection,
        [("ZSCORE", keys.registry(registry, queue), job_id) for registry in keys.ENDED_REGISTRIES],
    )
    for registry, score in zip(keys.ENDED_REGISTRIES, scores, strict=True):
        if isinstance(score, float):
            return registry
    return "unknown"
