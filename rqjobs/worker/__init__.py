"""The worker: a parent that keeps the lease, and a child, the horse, that runs the jobs."""

from rqjobs.worker.worker import Worker

__all__ = ["Worker"]
