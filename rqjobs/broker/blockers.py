"""Blockers: the ended jobs behind which other jobs stay deferred, and the remedy for each.

Nothing enqueues such a job, as in RQ: only its owner can decide whether it may run without a
canceled or deleted parent.
"""

from __future__ import annotations

from typing import NamedTuple

import redis

from rqjobs.broker import scripts
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import FIND_BLOCKER

SEARCHED_JOBS_PER_SCRIPT = (
    1000  # that one script looks at; a longer one would hold up other clients
)
MAX_SCRIPTS = 50  # for one job; jobs further behind are not looked at
JOBS_PER_ROUND_TRIP = 100
# The remedy for a job that is deferred behind a parent in this state.
REMEDIES = {
    "failed": "requeue that one, or cancel this job",
    "stopped": "requeue that one, or cancel this job",
    "canceled": "enqueue that one again under its id, or cancel this job",
    "over": "plain RQ enqueued this job when that one had ended; let it run: queue.enqueue_job(job)",
    "gone": "it was deleted or has expired; cancel this job, or let it run without: "
    "queue.enqueue_job(job)",
}


class Blocker(NamedTuple):
    """A job that has ended, and its state: "failed", "stopped", "canceled" or "gone"."""

    job_id: str
    state: str


class Found(NamedTuple):
    """`blocked`: deferred job -> its blocker. `running`: some of the jobs that wait or run now,
    behind which the others are deferred.
    """

    blocked: dict[str, Blocker]
    running: set[str]


def find(connection: redis.Redis, job_ids: list[str]) -> Found:
    """The blockers of deferred jobs. A job may be deferred behind another deferred one.

    A job that waits for its limit, or for a paused function, has none.
    """
    found = Found({}, set())
    for start in range(0, len(job_ids), JOBS_PER_ROUND_TRIP):
        pending = {job_id: [job_id] for job_id in job_ids[start : start + JOBS_PER_ROUND_TRIP]}
        for _ in range(MAX_SCRIPTS):
            if not pending:
                break
            commands = [
                FIND_BLOCKER.call([], [SEARCHED_JOBS_PER_SCRIPT, *ids]) for ids in pending.values()
            ]
            replies = scripts.read_together(connection, commands, FIND_BLOCKER)
            pending = _read(found, dict(zip(pending, replies, strict=True)))
    return found


def _read(found: Found, replies: dict[str, list[bytes]]) -> dict[str, list[str]]:
    """Take the results of scripts; returns the jobs for which there is more to look at."""
    more = {}
    for job_id, reply in replies.items():
        outcome, *words = map(decode, reply)
        if outcome == "more":
            more[job_id] = words
        elif outcome == "blocked":
            found.blocked[job_id] = Blocker(words[0], words[1])
        else:
            found.running.update(words)
    return more
