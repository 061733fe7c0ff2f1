"""How the runs of schedules have ended."""

from __future__ import annotations

from collections.abc import Iterator

import redis

from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode

UNFINISHED_BATCH_JOBS = 500  # jobs


# What became of their jobs


def note_outcomes(connection: redis.Redis) -> None:
    """All steps of `outcomes`."""
    for _ in note_outcomes_in_steps(connection):
        pass


def note_outcomes_in_steps(connection: redis.Redis) -> Iterator[None]:
    """Remember how jobs of schedules ended, before Redis forgets them (`result_ttl`); in steps of some milliseconds."""
    cursor = b"0"
    while True:
        cursor, *ended = scripts.JOB_OUTCOMES.run(
            connection, [keys.SCHEDULES_UNFINISHED], [cursor, UNFINISHED_BATCH_JOBS]
        )
        for job_id, name, status, moment in ended:
            key = keys.schedule(decode(name))
            words = f"{decode(status) or _outcomes_of_vanished(connection, key, decode(job_id))} {decode(moment)}"
            scripts.NOTE_OUTCOME.run(
                connection,
                [key, f"{key}:outcomes", keys.SCHEDULES_UNFINISHED],
                [job_id, words.strip()],
            )
            yield
        if cursor == b"0":
            return
        yield


def _outcomes_of_vanished(connection: redis.Redis, key: str, job_id: str) -> str:
    reply = scripts.read_together(connection, [("HGET", key, "queue")])[0]
    queue, statuses = decode(reply or b""), ("finished", "failed", "canceled")
    scores = scripts.read_together(
        connection, [("ZSCORE", keys.registry(status, queue), job_id) for status in statuses]
    )
    return next(
        (
            status
            for status, score in zip(statuses, scores, strict=True)
            if isinstance(score, float)
        ),
        "unknown",
    )
