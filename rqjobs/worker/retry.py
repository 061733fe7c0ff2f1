"""The worker's one back-off loop: an operation is repeated until Redis has answered it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import NoScriptError, WatchError

from rqjobs.broker.scripts import load_scripts
from rqjobs.connection import is_transient

FIRST_PAUSE_SECONDS = 0.05
MAX_PAUSE_SECONDS = 3

Reply = TypeVar("Reply")


def retry_until_answered(
    operation: Callable[[], Reply],
    client: redis.Redis,
    wait: Callable[[Exception, int, float], None],
) -> Reply:
    """Call `operation`, which must be idempotent, until Redis answers; returns its value.

    `wait` is called after a transient error with that error, the number of errors before it, and
    the seconds to wait. An exception that `wait` raises ends the loop. Permanent errors are raised.
    """
    backoff = ExponentialWithJitterBackoff(cap=MAX_PAUSE_SECONDS, base=FIRST_PAUSE_SECONDS)
    failures = 0
    while True:
        try:
            return operation()
        except NoScriptError:
            load_scripts(client)
        except Exception as error:
            cause = _cause(error)
            if cause is None:  # a watched key has changed
                continue
            if not isinstance(cause, Exception) or not is_transient(cause):
                raise
            wait(cause, failures, backoff.compute(failures))
            failures += 1


def _cause(error: Exception) -> BaseException | None:
    """redis-py raises WatchError for a changed key, and for a connection that broke before EXEC."""
    if isinstance(error, WatchError):
        return error.__context__
    return error
