"""Exceptions by which a job decides what happens next, and the facts that rules read of any one."""

from __future__ import annotations

import contextlib
import math
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from rqjobs import texts

MAX_SECONDS = 2**31 - 1  # of a delay, a time limit or a time to live, in Redis
RETRY_AFTER_MAX_SECONDS = 86_400
RETRY_AFTER_MAX_CHARACTERS = 100
MAX_BASES = 50  # base classes of an exception that the rules see


class Snooze(Exception):
    """Raise it in a job to run the job again `delay` later. It counts neither as a failure nor as a
    retry.

    Raises:
        TypeError, ValueError: `delay` is not a timedelta or a number of seconds of 0 or more.
    """

    def __init__(self, delay: timedelta | float):
        self.seconds = seconds_of("Snooze", delay)
        super().__init__(f"again in {self.seconds:g} s")


class RetryIn(Exception):
    """Raise it in a job to use one of its retries, `delay` later, whatever its rules say.

    Raises:
        TypeError, ValueError: as `Snooze`.
    """

    def __init__(self, delay: timedelta | float):
        self.seconds = seconds_of("RetryIn", delay)
        super().__init__(f"again in {self.seconds:g} s")


class Discard(Exception):
    """Raise it in a job to end the job at once, for this reason. It has not failed then."""

    def __init__(self, reason: str = ""):
        super().__init__(reason)


class NoRetryLeft(Exception):
    """A job raised `RetryIn`, and has no retry left. The message has the remedy."""


class Failure(NamedTuple):
    """The facts about an exception that the rules need.

    `names`: of its class and of the class's bases. `retry_after`: the seconds after which it asks to
    be retried, or 0.
    """

    names: tuple[str, ...]
    retry_after: float = 0.0


def seconds_of(what: str, delay: Any) -> float:
    """A delay in seconds, of a timedelta or a number.

    Raises:
        TypeError, ValueError: it is neither, or is negative or too large.
    """
    seconds = delay
    if isinstance(delay, timedelta):
        seconds = delay.total_seconds()
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{what} takes a number of seconds or a timedelta, not {delay!r:.80}")
    if not 0 <= seconds <= MAX_SECONDS:
        raise ValueError(f"{what} takes 0 to {MAX_SECONDS} seconds, not {delay!r:.80}")
    return float(seconds)


def name_of(kind: type) -> str:
    """`module.Class` of a class, without running code of its metaclass."""
    module, name = (vars(type)[name].__get__(kind) for name in ("__module__", "__qualname__"))
    return texts.escape_surrogates(f"{module}.{name}")


def names_of(error: BaseException) -> tuple[str, ...]:
    """The names of an exception's class and of the class's bases."""
    bases = vars(type)["__mro__"].__get__(type(error))
    names = []
    for base in bases[:MAX_BASES]:
        with contextlib.suppress(BaseException):  # `__module__` may be any object
            names.append(name_of(base))
    return tuple(names)


def failure_of(error: BaseException, now: float) -> Failure:
    """The facts about `error` that the rules need. `now`: Unix seconds.

    A `RetryIn` has the names of the exception that it was raised for as well.
    """
    names = names_of(error)
    if isinstance(error, RetryIn):
        cause = error.__cause__ or error.__context__
        if cause is not None:
            names += names_of(cause)
    return Failure(names, retry_after(error, now))


def retry_after(error: BaseException, now: float) -> float:
    """The seconds after which an exception asks to be retried, a day at most; 0 if it does not.

    That is its attribute `retry_after` (seconds, a timedelta or a datetime), or the header
    Retry-After (seconds or a date) of its `response`, or of itself as in `urllib`. The exception
    may be of any library, so anything that it raises or has instead is ignored.
    """
    for read in (_attribute, _response_header, _own_header):
        with contextlib.suppress(BaseException):
            seconds = _seconds_until(read(error), now)
            if seconds > 0:
                return min(seconds, RETRY_AFTER_MAX_SECONDS)
    return 0.0


def _attribute(error: Any) -> Any:
    return error.retry_after


def _response_header(error: Any) -> Any:
    return error.response.headers["Retry-After"]


def _own_header(error: Any) -> Any:
    return error.headers["Retry-After"]


def _seconds_until(value: Any, now: float) -> float:
    """Raises anything for a value that is neither a delay nor a date."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, datetime):
        return value.timestamp() - now
    if isinstance(value, bool):
        return 0.0
    if isinstance(value, int | float):
        return float(value)
    text = str(value)[:RETRY_AFTER_MAX_CHARACTERS].strip()
    with contextlib.suppress(ValueError):
        return _finite(float(text))
    moment = parsedate_to_datetime(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return moment.timestamp() - now


def _finite(seconds: float) -> float:
    if math.isfinite(seconds):
        return seconds
    return 0.0
