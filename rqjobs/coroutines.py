"""Coroutines of async job functions: each runs in an event loop of its own."""

from __future__ import annotations

import asyncio
from typing import Any

from rqjobs import inherited_resources


def run_coroutine(coroutine: Any) -> Any:
    """Run a coroutine in an event loop of its own, and close the loop as `asyncio.Runner` does.

    Tasks that still run are canceled, and their `finally` runs within this job. (`asyncio.run`
    would leave the thread without a loop for the next job.)
    """
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        try:
            _cancel_tasks(loop)
            inherited_resources.close_async_engines(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()


def _cancel_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))
    for task in tasks:
        if not task.cancelled() and task.exception():
            loop.call_exception_handler(
                {
                    "message": "a task of the job failed while it ended",
                    "exception": task.exception(),
                    "task": task,
                }
            )
