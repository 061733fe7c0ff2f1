"""The pages: one module for each. Importing this package adds them to the blueprint."""

from rqjobs.web.views import (
    activity,
    delayed,
    failed,
    flows,
    help,
    home,
    jobs,
    metrics,
    pauses,
    queues,
    schedules,
    workers,
)

__all__ = [
    "activity",
    "delayed",
    "failed",
    "flows",
    "help",
    "home",
    "jobs",
    "metrics",
    "pauses",
    "queues",
    "schedules",
    "workers",
]
