"""The options of one call of `enqueue`: RQ's, the policies, and the arguments of the function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import rq.job
from rq.queue import EnqueueArgs

from rqjobs import catalog, policies
from rqjobs.jobs import Job, signature
from rqjobs.policies.exceptions import MAX_SECONDS

JOB_ID_MAX_CHARACTERS = 255  # the horse's shared memory has room for them
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
RQ_OPTIONS = frozenset(
    {*EnqueueArgs._fields, "job_timeout"} - {"func", "timeout", "args", "kwargs"}
)
CALL_OPTIONS = RQ_OPTIONS | policies.OPTIONS
POLICY_NAMES = policies.OPTIONS - RQ_OPTIONS  # RQ has no options of these names


def split_options(
    function: Any,
    args: tuple[Any, ...],
    given: dict[str, Any],
    option_names: frozenset[str] = CALL_OPTIONS,
) -> dict[str, Any]:
    """The options of `enqueue`, and the function's arguments apart as `args` and `kwargs`.

    Raises:
        TypeError: a name is both a parameter of the function and an option.
    """
    separate = given.keys() & {"args", "kwargs"}
    if not separate:
        names = given.keys() & option_names
    elif len(separate) == 1:  # the name may be that of a parameter
        names = separate
    else:
        names = set()
    if names & POLICY_NAMES:  # the function's own parameter of such a name is meant
        names -= POLICY_NAMES & signature(catalog.current().check(function)).parameters.keys()
    if names:
        _check_parameter_names(function, names)
    if separate:
        if args:
            raise TypeError(
                "give the function's arguments either one by one or as args=(…), kwargs={…}, not "
                "both"
            )
        return given
    options = {name: given[name] for name in names}
    kwargs = {name: given[name] for name in given.keys() - names}
    return {**options, "args": args, "kwargs": kwargs}


def _check_parameter_names(function: Any, names: set[str]) -> None:
    target = catalog.current().check(function)
    parameters = {
        name
        for name, parameter in signature(target).parameters.items()
        if parameter.kind not in VARIADIC
    }
    for name in sorted(names & parameters):
        raise TypeError(
            f"{catalog.name_of(target)} has a parameter {name!r}, and so has enqueue itself; give "
            f"the function's arguments apart: enqueue({target.__name__}, args=(…), kwargs={{…}})"
        )


def split_policies(function: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The function together with the policies among its options, and the options of RQ.

    RQ's methods pass the function on to `create_job`, and know no policies.
    """
    own = {
        name: value
        for name, value in options.items()
        if name in policies.OPTIONS and not _is_for_rq(name, value)
    }
    if not own:
        return function, options
    if isinstance(function, policies.With):
        own = {**function.options, **own}
        function = function.function
    rest = {name: value for name, value in options.items() if name not in own}
    return policies.With(function, own), rest


def _is_for_rq(name: str, value: Any) -> bool:
    """Whether an option that RQ has too has a value of RQ's."""
    return name in RQ_OPTIONS and (isinstance(value, bool) or type(value) is rq.job.Retry)


def take_policies(call: policies.Call, options: dict[str, Any]) -> dict[str, str]:
    """Take the policies from the options of a job; returns their fields of its hash."""
    own = {name: options.pop(name) for name in policies.OPTIONS & options.keys()}
    if all(value is None for value in own.values()):  # RQ passes retry=None
        return {}
    if "retry" in own:
        options["retry"] = policies.retries.for_rq(own["retry"])
    return policies.fields(call, own)


def check_signature(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    try:
        signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{catalog.name_of(function)}{signature(function)}: {error}") from None


def check_on_failed(name: str | None) -> None:
    """Check that `on_failed` names a job function that takes its three arguments.

    Raises:
        NotAJob: it is not in the catalog.
        TypeError: it does not take the arguments.
    """
    if name is None:
        return
    try:
        function = catalog.current().lookup(name)
    except catalog.NotAJob as error:
        raise catalog.NotAJob(f"on_failed: {error}") from None
    try:
        signature(function).bind("job_id", "function", "error")
    except TypeError:
        raise TypeError(
            f"on_failed: {name}{signature(function)} is called with three arguments: the id of the "
            f"failed job, the name of its function, and the error; let it take them"
        ) from None


def check_numbers(job: Job) -> None:
    if len(job.id) > JOB_ID_MAX_CHARACTERS:
        raise ValueError(
            f"the job_id is {len(job.id):,} letters long; use at most {JOB_ID_MAX_CHARACTERS}"
        )
    for name in ("timeout", "ttl", "result_ttl", "failure_ttl"):
        value = getattr(job, name)
        if value is not None and not -(MAX_SECONDS + 1) < value < MAX_SECONDS + 1:
            raise ValueError(
                f"{name}={str(value)[:40]} is more seconds than Redis takes; use at most "
                f"{MAX_SECONDS}"
            )
