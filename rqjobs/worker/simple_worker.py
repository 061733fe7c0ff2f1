"""A worker for tests: it runs jobs in the process that calls it."""

from __future__ import annotations

from typing import Any

import rq

from rqjobs.jobs import Job
from rqjobs.queues import Queue
from rqjobs.worker import foreign_clients
from rqjobs.worker import options as worker_options


class SimpleWorker(rq.SimpleWorker):
    """RQ's worker that runs jobs without a child, for tests.

    `SimpleWorker(["default"]).work(burst=True)` runs the jobs as `Worker` does: from the catalog,
    and with our serializer. It claims and settles them as RQ does, and loses the job that it runs
    when it is killed.

    Overrides of RQ: _set_connection.
    """

    job_class = Job
    queue_class = Queue  # type: ignore[assignment]

    def __init__(
        self, queues: Any, name: str | None = None, connection: Any = None, **options: Any
    ):
        client = worker_options.prepare(type(self), connection, options)
        super().__init__(worker_options.queue_names(queues), name, connection=client, **options)

    def _set_connection(self, connection: Any) -> Any:
        """Set RQ's timeouts on a copy: RQ would change the client of the whole program."""
        return super()._set_connection(foreign_clients.copy_of(connection))
