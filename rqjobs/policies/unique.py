"""Unique: of the jobs with one key, at most one waits or runs; debounce: the last call counts.

The hash `rqjobs:unique` names the job of each key. A key is free if that job has ended or is gone,
so no key has to be released. The scripts decide this when they enqueue, requeue or claim a job.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from rq.exceptions import DuplicateJobError

from rqjobs.policies.call import DIGEST_BYTES, Call, check_template
from rqjobs.serializers import PayloadError, encode
from rqjobs.texts import escape_surrogates

CHOICES = {"until": ("ended", "started"), "on_conflict": ("return", "raise", "replace")}
SECONDS = ("keep", "debounce", "debounce_max")
OPTIONS = frozenset({"unique", *CHOICES, *SECONDS})
FIELDS = frozenset(
    {"rqjobs_unique", "rqjobs_until", "rqjobs_keep", "rqjobs_conflict", "rqjobs_debounce"}
)
UNIQUE_MAX_SECONDS = 366 * 24 * 3600


class DuplicateJob(DuplicateJobError):
    """A job with `on_conflict="raise"` was not enqueued: `existing_id` has its unique key."""

    def __init__(self, key: str, existing_id: str):
        super().__init__(
            f"not enqueued: the job {existing_id} has the unique key {key!r}; wait for its end, or "
            f"use on_conflict='return' or 'replace'"
        )
        self.key = key
        self.existing_id = existing_id


def check(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """See `policies.check`."""
    given = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    if "unique" in given:
        _check_unique(given["unique"], function)
    for name, choices in CHOICES.items():
        if name in given and given[name] not in choices:
            known = " or ".join(repr(choice) for choice in choices)
            raise ValueError(f"{name}={given[name]!r} is unknown; use {known}")
    for name in SECONDS:
        if name in given:
            _check_seconds(name, given[name])
    if "debounce" in given:
        _check_debounce(given)
    elif "debounce_max" in given:
        raise ValueError(
            f"debounce_max={given['debounce_max']} limits nothing without debounce=seconds"
        )
    for name in ("until", "keep", "on_conflict"):
        if name in given and "unique" not in given and "debounce" not in given:
            raise ValueError(
                f"{name}={given[name]!r} needs unique='args', or a template such as "
                f"unique='charge:{{invoice_id}}'"
            )
    if "keep" in given and given.get("until") == "started":
        raise ValueError(
            f"keep={given['keep']} counts from the end of a job, and until='started' frees the key "
            f"before; use one of the two"
        )


def _check_unique(unique: Any, function: Callable[..., Any]) -> None:
    if isinstance(unique, bool):
        raise TypeError(
            f"unique={unique} is RQ's option of one enqueue (by job_id); @job takes unique='args', "
            f"or a template such as unique='charge:{{invoice_id}}'"
        )
    if unique == "args":
        return
    check_template("unique", unique, function)
    if "{" not in unique:
        raise ValueError(
            f"unique={unique!r} names no parameter, so all calls would be equal; use "
            f"unique='args', or a template such as unique='charge:{{invoice_id}}'"
        )


def _check_seconds(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} is not a number of seconds; for example {name}=60")
    if not 0 < value <= UNIQUE_MAX_SECONDS or math.isnan(value):
        raise ValueError(f"{name}={value} must be more than 0 seconds, and at most a year")


def _check_debounce(given: dict[str, Any]) -> None:
    if "on_conflict" in given:
        raise ValueError(
            f"debounce replaces a waiting job, so leave on_conflict={given['on_conflict']!r} out"
        )
    if "keep" in given or given.get("until") == "ended":
        name = "keep" if "keep" in given else "until"
        raise ValueError(
            f"debounce ends when the job starts (until='started'), so leave "
            f"{name}={given[name]!r} out"
        )
    if given.get("debounce_max", math.inf) < given["debounce"]:
        raise ValueError(
            f"debounce_max={given['debounce_max']} is less than debounce={given['debounce']}; it "
            f"is the longest time from the first call to the run"
        )


def fields(call: Call, options: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a unique job; none of another one."""
    debounce = options.get("debounce")
    unique = options.get("unique") or ("args" if debounce else None)
    if not unique:
        return {}
    found = {"rqjobs_unique": _key(call, unique)}
    if debounce or options.get("until") == "started":
        found["rqjobs_until"] = "started"
    if options.get("keep"):
        found["rqjobs_keep"] = str(options["keep"])
    if options.get("on_conflict", "return") not in (None, "return"):
        found["rqjobs_conflict"] = options["on_conflict"]
    if debounce:  # the scripts add the time of the first call
        found["rqjobs_debounce"] = f"{debounce} {options.get('debounce_max') or '-'}"
    return found


def _key(call: Call, unique: str) -> str:
    if unique == "args":
        return f"{call.name}#{_digest(call)}"
    return escape_surrogates(f"{call.name}:{call.render('unique', unique)}")


def _digest(call: Call) -> str:
    """A hash of the arguments, the same for equal calls.

    Raises:
        PayloadError: an argument is not a value of JSON.
    """
    parameters = inspect.signature(call.function).parameters
    values = {}
    for name, value in call.arguments.items():
        try:
            values[name] = encode(value, f"argument {name!r}")
        except PayloadError as error:
            if value is parameters[name].default:  # it is stored in the code only
                continue
            raise PayloadError(f"unique='args' of {call.name}: {error}") from None
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def describe(policy_fields: Mapping[str, str]) -> str:
    """The policy of a job in one line; "" if the job is not unique."""
    key = policy_fields.get("rqjobs_unique")
    if not key:
        return ""
    parts = [key, f"until {'started' if 'rqjobs_until' in policy_fields else 'ended'}"]
    if keep := policy_fields.get("rqjobs_keep"):
        parts.append(f"kept for {keep} s after the end")
    seconds, _, rest = policy_fields.get("rqjobs_debounce", "").partition(" ")
    if seconds:
        parts.append(f"debounced by {seconds} s")
        maximum = rest.partition(" ")[0]
        if maximum not in ("", "-"):
            parts.append(f"at most {maximum} s")
    return ", ".join(parts)
