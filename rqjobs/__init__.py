"""rqjobs: RQ with the holes closed."""

from rq import Callback, Repeat, Retry, get_current_job
from rq.queue import EnqueueData

from rqjobs import delayed, schedules
from rqjobs.catalog import NotAJob, job
from rqjobs.config import Config, ConfigError
from rqjobs.connection import NoRedis, client
from rqjobs.cronline import ScheduleError
from rqjobs.jobs import Job, PayloadTooLarge, RefusedWebhook
from rqjobs.queues import Queue, enqueue, enqueue_at, enqueue_in, enqueue_many, queue
from rqjobs.rules import cron, every
from rqjobs.serializers import PayloadError
from rqjobs.simple_worker import SimpleWorker
from rqjobs.worker import Worker

__version__ = "0.1.0"
__all__ = [
    "Callback", "Config", "ConfigError", "EnqueueData", "Job", "NoRedis", "NotAJob", "PayloadError", "PayloadTooLarge",
    "Queue", "RefusedWebhook", "Repeat", "Retry", "ScheduleError", "SimpleWorker", "Worker", "client", "cron",
    "delayed", "enqueue", "enqueue_at", "enqueue_in", "enqueue_many", "every", "get_current_job", "job", "queue",
    "schedules",
]
