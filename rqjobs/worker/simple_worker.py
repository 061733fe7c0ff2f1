"""A worker for tests, which runs jobs in the process that calls it."""

from __future__ import annotations

from typing import Any

import rq

from rqjobs.jobs import Job
from rqjobs.queues import Queue
from rqjobs.worker import foreign_clients
from rqjobs.worker import options as worker_options


class SimpleWorker(rq.SimpleWorker):
    """RQ's worker without a process of its own for the jobs, for tests: `SimpleWorker(["default"]).work(burst=True)`.

    It runs the jobs as `Worker` does, from the catalog and with our serializer, but it takes and settles them RQ's way,
    and loses what it runs when it is killed.
    """

    job_class = Job
    queue_class = Queue  # type: ignore[assignment]

    def __init__(
        self, queues: Any, name: str | None = None, connection: Any = None, **options: Any
    ):
        client = worker_options.prepare(type(self), connection, options)
        super().__init__(worker_options.names(queues), name, connection=client, **options)

    def _set_connection(self, connection: Any) -> Any:
        return super()._set_connection(
            foreign_clients.copy_of(connection)
        )  # it changes the time-outs of what it gets
