"""Polite cancellation: a running job asks whether it was canceled."""

from __future__ import annotations

import time
from typing import Any

import redis
from rq import get_current_job
from rq.job import JobStatus

CANCEL_CHECK_SECONDS = 1.0  # between two questions to Redis


def cancelled() -> bool:
    """Whether the job that runs here was canceled or deleted since it began, so that it may end early.

    Its outcome is dropped then. Redis is asked at most once a second, and if it does not answer, the
    last answer counts. False outside a job, and in a thread that the job has started.
    """
    job: Any = get_current_job()
    if job is None:
        return False
    checked_at, is_canceled = vars(job).get("cancel_check", (0.0, False))
    now = time.monotonic()
    if is_canceled or now - checked_at < CANCEL_CHECK_SECONDS:
        return bool(is_canceled)
    try:
        status = job.connection.hget(job.key, "status")
        is_canceled = status in (None, JobStatus.CANCELED.value.encode())
    except (redis.RedisError, OSError):
        pass
    job.cancel_check = (time.monotonic(), is_canceled)
    return bool(is_canceled)
