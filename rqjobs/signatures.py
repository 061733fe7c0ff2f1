"""Signatures: a call of a job function that a flow enqueues later."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from rqjobs import policies

# Options of `@job` and of `enqueue` that cannot go with a job of a flow, each with the reason.
REFUSED_OPTIONS = {
    "unique": "a unique job may not be stored, and the jobs after it would never run",
    "debounce": "a debounced job may not be stored, and the jobs after it would never run",
    "repeat": "the jobs after it get the result of one run",
    "depends_on": "the flow decides which jobs it waits for",
    "job_id": "the jobs of a flow have new ids",
    "group_id": "the jobs of a flow belong to the flow",
    "pipeline": "a flow is stored in steps of its own",
}
WITH_UNIQUE = frozenset({"keep", "until", "on_conflict", "debounce_max"})
STEP_OPTIONS = policies.OPTIONS - REFUSED_OPTIONS.keys() - WITH_UNIQUE | {
    "queue",
    "timeout",
    "job_timeout",
    "result_ttl",
    "failure_ttl",
    "ttl",
    "description",
    "meta",
    "on_success",
    "on_failure",
    "on_stopped",
    "webhooks",
    "at_front",
}


@dataclasses.dataclass(frozen=True)
class Signature:
    """A call of a job function, with the options of its job. `chain` and `group` take it."""

    function: Callable[..., Any] | str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def set(self, **options: Any) -> Signature:
        """The same call with options of `enqueue`, such as `queue="low"` or `retry=backoff(3)`.

        Raises:
            TypeError: an option is unknown.
            ValueError: an option cannot go with a job of a flow.
        """
        for name in options:
            if name in REFUSED_OPTIONS:
                raise ValueError(
                    f"{name} cannot go with a job of a flow: {REFUSED_OPTIONS[name]}; leave it out"
                )
        unknown = options.keys() - STEP_OPTIONS
        if unknown:
            raise TypeError(
                f"set() has no option {', '.join(sorted(unknown))}; it takes: "
                f"{', '.join(sorted(STEP_OPTIONS))}"
            )
        return dataclasses.replace(self, options={**self.options, **options})


def s(function: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> Signature:
    """A signature: the call `function(*args, **kwargs)` for a flow. Nothing is enqueued yet.

    Behind another job of the flow the function gets that job's result before `args`. A function
    with `@job` has the same as its attribute: `function.s(*args, **kwargs)`.
    """
    return Signature(function, args, kwargs)
