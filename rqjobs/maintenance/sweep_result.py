"""The result of a sweep, and two helpers of its parts."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import redis

from rqjobs.broker import recovery, scripts

log = logging.getLogger("rqjobs")
SIGHTING_SECONDS = 3600  # seconds after which an earlier sighting no longer counts


@dataclass
class SweepResult:
    """The ids of the jobs that a sweep has requeued, and of those that have failed.

    `on_progress` is called after each job, so that the caller can renew its lease.
    """

    on_progress: Callable[[], None] = lambda: None
    requeued: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def note(
        self, outcome: recovery.Outcome, job_id: str, queue: str, found: str, owner: str = ""
    ) -> None:
        """Note and log the outcome of one job. `found`: the place where it was."""
        self.on_progress()
        if outcome is recovery.Outcome.REQUEUED:
            self.requeued.append(job_id)
            place = f"{found} by dead worker {owner}" if owner else found
            log.warning("orphan: job %s (%s) returned to the front of %s", job_id, place, queue)
        elif outcome is recovery.Outcome.FAILED:
            self.failed.append(job_id)
            log.error(
                "poison: job %s of %s failed, because its process died %d times",
                job_id,
                queue,
                recovery.MAX_CRASHES,
            )


@contextlib.contextmanager
def skip_wrong_types(what: str) -> Iterator[None]:
    """Log a key of the wrong type, and let the rest of the sweep continue."""
    try:
        yield
    except redis.ResponseError as error:
        if not scripts.is_wrong_type(error):
            raise
        log.error("%s: %s", what, error)


def seen_for(
    connection: redis.Redis, sightings: str, job_id: str, now: float, seconds: float
) -> bool:
    """Whether the hash `sightings` has had `job_id` for `seconds`. A first sighting is noted.

    A sighting of more than `SIGHTING_SECONDS` ago is replaced.
    """
    try:
        since = float(connection.hget(sightings, job_id) or 0)
    except ValueError:  # foreign data
        since = 0.0
    if not -SIGHTING_SECONDS <= now - since <= SIGHTING_SECONDS:
        connection.hset(sightings, job_id, now)
        connection.expire(sightings, SIGHTING_SECONDS)
        return False
    return now - since >= seconds
