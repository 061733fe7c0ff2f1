"""Policies: options of `@job` beyond RQ's, each kind in one file. A call may override them.

Each file has `OPTIONS`, the names of its options; `check`, which refuses wrong ones; and `fields`,
which gives the fields of the job's hash by which the scripts of the broker apply the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rqjobs.policies import failures, limits, retries, time_limits, unique
from rqjobs.policies.call import Call

POLICIES: tuple[Any, ...] = (limits, retries, time_limits, unique, failures)
OPTIONS: frozenset[str] = frozenset().union(*(policy.OPTIONS for policy in POLICIES))
# Every field of a policy in a job's hash. `enqueue.lua` clears them for the next life of an id.
FIELDS: frozenset[str] = frozenset().union(*(policy.FIELDS for policy in POLICIES))


class With(NamedTuple):
    """A job function, or its name, with the policies of one call. RQ passes it on as it is."""

    function: Callable[..., Any] | str
    options: dict[str, Any]


def check(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Check the options of `@job`, or of a call together with those.

    Raises:
        TypeError, ValueError: an option is wrong, or cannot go together with another.
    """
    for policy in POLICIES:
        policy.check(function, options)


def fields(call: Call, options: Mapping[str, Any]) -> dict[str, str]:
    """The fields of the hash of one job.

    Raises:
        TypeError, ValueError: see `check`.
    """
    check(call.function, options)
    found: dict[str, str] = {}
    for policy in POLICIES:
        found.update(policy.fields(call, options))
    return found
