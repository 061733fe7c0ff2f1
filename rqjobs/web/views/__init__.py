"""The pages: one module for each. Importing this package adds them to the blueprint."""

from rqjobs.web.views import delayed, home, schedules

__all__ = ["delayed", "home", "schedules"]
