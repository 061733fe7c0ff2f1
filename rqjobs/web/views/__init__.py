"""The pages: one module for each. Importing this package adds them to the blueprint."""

from rqjobs.web.views import (
    activity,
    delayed,
    enqueue,
    failed,
    flows,
    help,
    home,
    job_list,
    jobs,
    metrics,
    pauses,
    queues,
    redis_page,
    schedules,
    settings_page,
    workers,
)

__all__ = [
    "activity",
    "delayed",
    "enqueue",
    "failed",
    "flows",
    "help",
    "home",
    "job_list",
    "jobs",
    "metrics",
    "pauses",
    "queues",
    "redis_page",
    "schedules",
    "settings_page",
    "workers",
]
