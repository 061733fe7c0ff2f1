"""rqjobs: RQ with the holes closed."""

import importlib
from typing import TYPE_CHECKING, Any

from rq import Callback, Repeat, Retry, get_current_job
from rq.queue import EnqueueData

from rqjobs import delayed, failed, flows, hooks, schedules
from rqjobs.bulk import enqueue_many
from rqjobs.cancellation import cancelled
from rqjobs.catalog import NotAJob, job
from rqjobs.config import Config, ConfigError
from rqjobs.connection import NoRedis, client
from rqjobs.flows import chain, chord, group, s
from rqjobs.flows import map as map
from rqjobs.job_fields import PayloadTooLarge
from rqjobs.job_logs import LogLine
from rqjobs.jobs import Job
from rqjobs.loops import JobInterrupted, Progress, progress, resumable
from rqjobs.pauses import pause, paused, resume
from rqjobs.policies.exceptions import Discard, RetryIn, Snooze
from rqjobs.policies.retries import backoff
from rqjobs.policies.unique import DuplicateJob
from rqjobs.queues import Queue, enqueue, enqueue_at, enqueue_in, queue
from rqjobs.raised import JobFailed
from rqjobs.results import NoResult, WaitTimeout, gather, gather_async
from rqjobs.schedules.cron import ScheduleError
from rqjobs.schedules.rules import cron, every
from rqjobs.serializers import PayloadError
from rqjobs.transactions import JobsNotStored, transaction
from rqjobs.version import VERSION
from rqjobs.webhooks import RefusedWebhook
from rqjobs.worker import Worker
from rqjobs.worker.simple_worker import SimpleWorker

if TYPE_CHECKING:
    from rqjobs import web
    from rqjobs.flask_extension import Jobs

__version__ = VERSION
__all__ = [
    "Callback",
    "Config",
    "ConfigError",
    "Discard",
    "DuplicateJob",
    "EnqueueData",
    "Job",
    "JobFailed",
    "JobInterrupted",
    "Jobs",
    "JobsNotStored",
    "LogLine",
    "NoRedis",
    "NoResult",
    "NotAJob",
    "PayloadError",
    "PayloadTooLarge",
    "Progress",
    "Queue",
    "RefusedWebhook",
    "Repeat",
    "Retry",
    "RetryIn",
    "ScheduleError",
    "SimpleWorker",
    "Snooze",
    "WaitTimeout",
    "Worker",
    "backoff",
    "cancelled",
    "chain",
    "chord",
    "client",
    "cron",
    "delayed",
    "enqueue",
    "enqueue_at",
    "enqueue_in",
    "enqueue_many",
    "every",
    "failed",
    "flows",
    "gather",
    "gather_async",
    "get_current_job",
    "group",
    "hooks",
    "job",
    "pause",
    "paused",
    "progress",
    "queue",
    "resumable",
    "resume",
    "s",
    "schedules",
    "transaction",
    "web",
]


def __getattr__(name: str) -> Any:
    """Import `web` and `Jobs` when they are first used: a worker saves the 8 MiB of Flask."""
    if name == "web":
        return importlib.import_module("rqjobs.web")
    if name == "Jobs":
        return importlib.import_module("rqjobs.flask_extension").Jobs
    raise AttributeError(f"module 'rqjobs' has no attribute {name!r}")
