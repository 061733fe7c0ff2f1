"""Pause and resume queues and job functions.

No worker begins a job of a paused queue or function. Running jobs end, and schedules, enqueues and
due jobs go on adding to the queue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rqjobs import catalog, connection
from rqjobs.broker import pauses
from rqjobs.broker.pauses import Pause
from rqjobs.queues import check_queue_name


def pause(
    *, queue: str | None = None, function: Callable[..., Any] | str | None = None, by: str = ""
) -> bool:
    """Begin no job of this queue, or of this function, until `resume`.

    Workers notice it with their next claim. A job that is claimed already runs.

    Args:
        by: who pauses it, to be shown.

    Returns:
        False if it is paused already.

    Raises:
        NotAJob: the function is not in the catalog.
        TypeError: neither or both of queue and function are given.
        ValueError: no queue can have this name.
    """
    kind, name = _target(queue, function)
    if kind == "function":
        name = catalog.name_of(catalog.current().check(function))  # type: ignore[arg-type]
    return pauses.pause(connection.client(), kind, name, by)


def resume(*, queue: str | None = None, function: Callable[..., Any] | str | None = None) -> bool:
    """Let the jobs of a paused queue or function begin again, within a second.

    Returns:
        False if it is not paused.

    Raises:
        TypeError: neither or both of queue and function are given.
        ValueError: no queue can have this name.
    """
    return pauses.resume(connection.client(), *_target(queue, function))


def paused() -> list[Pause]:
    """The paused queues, then the paused functions, each by name."""
    return pauses.paused(connection.client())


def _target(queue: str | None, function: Any) -> tuple[str, str]:
    if (queue is None) == (function is None):
        raise TypeError("give one of the two: queue='low', or function=send_report")
    if queue is not None:
        return "queue", check_queue_name(queue)
    return "function", catalog.name_of(function)
