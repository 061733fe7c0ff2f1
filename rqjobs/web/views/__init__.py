"""The pages: one module for each. Importing this package adds them to the blueprint."""

from rqjobs.web.views import delayed, failed, flows, home, jobs, pauses, schedules, workers

__all__ = ["delayed", "failed", "flows", "home", "jobs", "pauses", "schedules", "workers"]
