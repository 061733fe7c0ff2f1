"""The pages: one module for each. Importing this package adds them to the blueprint."""

from rqjobs.web.views import delayed, failed, home, jobs, pauses, schedules, workers

__all__ = ["delayed", "failed", "home", "jobs", "pauses", "schedules", "workers"]
