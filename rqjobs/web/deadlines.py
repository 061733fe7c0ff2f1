"""The time that a request may take. The server limits it, and a view that waits extends it.

The limits keep the work of one request within the time-out of any web server.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

EMPTY_SECONDS = 10.0  # for deleting the jobs of a queue
GROUP_MAX_JOBS = 10_000  # of a group of failures: requeued or deleted

_request = threading.local()


def limit_request(extend_deadline: Callable[[float], None]) -> None:
    """Note how the deadline of the request of this thread is extended, by a number of seconds."""
    _request.extend_deadline = extend_deadline


def extend(seconds: float) -> None:
    """Allow the current request more time. Without a limit of ours it does nothing."""
    extend_deadline = getattr(_request, "extend_deadline", None)
    if extend_deadline is not None:
        extend_deadline(seconds)
