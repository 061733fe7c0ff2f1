"""Time: until when a job may begin, and how long after its timeout its process is killed.

`rqjobs_expires` in a job's hash is "<Unix time>", or "<Unix time>+<seconds>" if it was given in
seconds. Before a script has counted the seconds from the enqueue, it is "+<seconds>".
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from rqjobs.policies.call import Call
from rqjobs.policies.exceptions import MAX_SECONDS

OPTIONS = frozenset({"expires", "kill_after"})
FIELDS = frozenset({"rqjobs_expires", "rqjobs_kill_after"})


def check(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Check `expires` and `kill_after`.

    Raises:
        TypeError: one of them is not a time.
        ValueError: it is negative, too large, or (`expires`) zero.
    """
    expires = options.get("expires")
    if expires is not None and not isinstance(expires, datetime):
        seconds = _seconds("expires", expires, "seconds, a timedelta or a datetime")
        if seconds == 0:
            raise ValueError("expires=0 would let no job begin; give the seconds that it may wait")
    if options.get("kill_after") is not None:
        _seconds("kill_after", options["kill_after"], "seconds or a timedelta")


def fields(call: Call, options: Mapping[str, Any]) -> dict[str, str]:
    """The fields of one job.

    Raises:
        ValueError: `expires` is a time in the past.
    """
    found = {}
    expires = options.get("expires")
    if isinstance(expires, datetime):
        if expires.timestamp() <= time.time():
            raise ValueError(
                f"expires={expires} of {call.name} is in the past, so the job would not run; give a "
                f"later time, or the seconds that it may wait"
            )
        found["rqjobs_expires"] = f"{expires.timestamp():.3f}"
    elif expires is not None:
        found["rqjobs_expires"] = f"+{_seconds('expires', expires):.3f}"
    if options.get("kill_after") is not None:
        found["rqjobs_kill_after"] = f"{_seconds('kill_after', options['kill_after']):.3f}"
    return found


def expiry(stored: str) -> float | None:
    """The Unix time in a `rqjobs_expires`; None if there is none, or none yet."""
    moment, _, _ = stored.partition("+")
    try:
        return float(moment)
    except ValueError:
        return None


def is_relative(stored: str) -> bool:
    """Whether `rqjobs_expires` was given in seconds from the enqueue."""
    return "+" in stored


def count_from(stored: str, moment: float) -> str:
    """`rqjobs_expires`, with its seconds counted from this Unix time."""
    _, plus, seconds = stored.partition("+")
    if not plus:
        return stored
    return f"{moment + float(seconds):.3f}+{seconds}"


def check_due(stored: str, due: float) -> None:
    """Check that a delayed job with this `rqjobs_expires` can run.

    Raises:
        ValueError: it expires before it is due.
    """
    moment = expiry(stored)
    if not is_relative(stored) and moment is not None and moment <= due:
        raise ValueError(
            "the job expires before it is due, so it would not run; give a later `expires`, or the "
            "seconds that it may wait after its due time"
        )


def _seconds(option: str, value: Any, kinds: str = "") -> float:
    """A duration in seconds.

    Raises:
        TypeError: it is neither a number nor a timedelta.
        ValueError: it is negative or too large.
    """
    seconds = value
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{option}={value!r} is not a time; give {kinds}, as in {option}=60")
    if not math.isfinite(seconds) or not 0 <= seconds <= MAX_SECONDS:
        raise ValueError(f"{option}={value!r} is not possible; give 0 to {MAX_SECONDS} seconds")
    return float(seconds)
