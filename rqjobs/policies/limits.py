"""Limits: how many jobs of one key run at a time, and how many start in a time.

A key is the function's name, or the rendered `limit_by`. Functions whose keys are equal share the
limit. The rate is a token bucket in the form of the generic cell rate algorithm (ITU-T I.371): one
time for each key, at which the bucket will be full again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from rqjobs.policies.call import Call, check_template

OPTIONS = frozenset({"limit", "limit_by", "rate", "burst"})
FIELDS = frozenset({"rqjobs_limit"})
MAX_LIMIT = 10_000
RATE_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
STORED = re.compile(
    r"(?P<limit>[0-9]{1,9}) (?P<seconds>[0-9]{1,9}\.[0-9]{1,9}) (?P<burst>[0-9]{1,9}) (?P<key>.+)",
    re.DOTALL,
)
RATE = re.compile(r"([0-9]{1,7})/([0-9]{0,4})([smhd])")


def check(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Check the options of this policy.

    Raises:
        TypeError, ValueError: one is wrong, or is useless without another.
    """
    limit, rate, burst = options.get("limit"), options.get("rate"), options.get("burst")
    if limit is not None:
        _check_count("limit", limit)
    if rate is not None:
        seconds_per_job(rate)
    if burst is not None:
        _check_count("burst", burst)
        if rate is None:
            raise TypeError("burst belongs to a rate; give one, for example rate='30/m', burst=5")
    if options.get("limit_by") is not None:
        check_template("limit_by", options["limit_by"], function)
        if limit is None and rate is None:
            raise TypeError("limit_by limits nothing alone; give limit=3 or rate='30/m' too")


def _check_count(option: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{option}={value!r} is not a whole number of jobs")
    if not 1 <= value <= MAX_LIMIT:
        raise ValueError(f"{option}={value} would never fit; give 1 to {MAX_LIMIT} jobs")


def seconds_per_job(rate: Any) -> float:
    """The seconds between two starts at a rate like "30/m", "5/s" or "100/15m".

    Raises:
        TypeError, ValueError: it is not a rate.
    """
    hint = "give a text like '30/m', '5/s' or '100/15m' (units s, m, h, d)"
    if not isinstance(rate, str):
        raise TypeError(f"rate={rate!r} is not a rate; {hint}")
    match = RATE.fullmatch(rate.replace(" ", ""))
    if not match:
        raise ValueError(f"rate={rate!r} is not a rate; {hint}")
    jobs, units = int(match[1]), int(match[2] or 1)
    if not jobs or not units:
        raise ValueError(f"rate={rate!r} would let no job run; {hint}")
    return units * RATE_UNIT_SECONDS[match[3]] / jobs


def describe(stored: Mapping[str, str]) -> str:
    """The limit of a job by its stored fields; "" if it has none."""
    match = STORED.fullmatch(stored.get("rqjobs_limit", ""))
    if not match:
        return ""
    parts = []
    if match["limit"] != "0":
        parts.append(f"{match['limit']} at a time")
    seconds = float(match["seconds"])
    if seconds:
        parts.append(f"one every {seconds:g} s, {match['burst']} at once")
    return f"{' and '.join(parts)} for {match['key']}"


def fields(call: Call, options: Mapping[str, Any]) -> dict[str, str]:
    """`rqjobs_limit`: the limit, the seconds for each job, the burst, and the key; 0 is none."""
    limit, rate = options.get("limit"), options.get("rate")
    if limit is None and rate is None:
        return {}
    key = call.name
    if options.get("limit_by") is not None:
        key = call.render("limit_by", options["limit_by"]) or call.name
    seconds = 0.0
    if rate is not None:
        seconds = seconds_per_job(rate)
    return {"rqjobs_limit": f"{limit or 0} {seconds:.6f} {options.get('burst') or 1} {key}"}
