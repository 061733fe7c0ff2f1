"""What a sweep did."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import redis

from rqjobs.broker import recovery, scripts

log = logging.getLogger("rqjobs")


@dataclass
class SweepResult:
    """What a sweep did: the job ids put back, and those sent to the dead letters."""

    on_progress: Callable[[], None] = lambda: None
    requeued: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def note(
        self, outcome: recovery.Outcome, job_id: str, queue: str, found: str, owner: str = ""
    ) -> None:
        self.on_progress()
        if outcome is recovery.Outcome.REQUEUED:
            self.requeued.append(job_id)
            log.warning(
                "orphan: job %s of %s (%s%s) is back at the front of its queue",
                job_id,
                queue,
                found,
                f", of the dead worker {owner}" if owner else "",
            )
        elif outcome is recovery.Outcome.FAILED:
            self.failed.append(job_id)
            log.error(
                "poison: job %s of %s killed its process %d times and is among the failed jobs now",
                job_id,
                queue,
                recovery.MAX_CRASHES,
            )


@contextlib.contextmanager
def skip_wrong_types(what: str) -> Iterator[None]:
    """A key of the wrong type must not stop the rest."""
    try:
        yield
    except redis.ResponseError as error:
        if not scripts.is_wrong_type(error):
            raise
        log.error("%s: %s", what, error)


def seen_for(
    connection: redis.Redis, seen: str, job_id: str, moment: float, seconds: float
) -> bool:
    """Whether the hash `seen` has known `job_id` for `seconds`; now it does. More than an hour was another time."""
    try:
        since = float(connection.hget(seen, job_id) or 0)
    except ValueError:  # somebody else wrote that
        since = 0.0
    if not -3600 <= moment - since <= 3600:
        connection.hset(seen, job_id, moment)
        connection.expire(seen, 3600)
        return False
    return moment - since >= seconds
