"""The enqueue form filled with a job, to edit it and run it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rqjobs import catalog, config, hiding, passed_results
from rqjobs.jobs import Job
from rqjobs.web.forms import arguments, fields
from rqjobs.web.forms.options import queue_choices


@dataclass(frozen=True)
class FilledIn:
    """The texts of the inputs, and a note about values that have to be typed again."""

    given: dict[str, str] = field(default_factory=dict)
    note: str = ""


def fill_in(job: Job, function: Callable[..., Any]) -> FilledIn:
    """The inputs of `function` and of the options, as this job has them.

    Hidden values are left empty. If no inputs can show the arguments, all of them are defaults.
    """
    options = _options(job, function)
    place = passed_results.place_of(job.policy_fields)
    note = ""
    try:
        args, kwargs = list(job.args), dict(job.kwargs)
        if place and place.takes != "nothing":
            args = [*(passed_results.values(job) or ()), *args]
            note = "The first argument came from the jobs before it."
        given = arguments.fill_in(function, args, kwargs)
    except Exception:  # the payload cannot be read, or what it took from other jobs is gone
        given = None
    if given is None:
        given = arguments.default_inputs(function)
        note = "The arguments of that job do not fit this form. Type them again."
    elif hidden := _hidden_inputs(function, args, kwargs):
        given |= dict.fromkeys(hidden, "")
        names = ", ".join(name.removeprefix("arg.") for name in hidden)
        note = f"{note} Hidden values are not filled in: type {names} again.".strip()
    return FilledIn(given | options, note)


def _hidden_inputs(function: Callable[..., Any], args: list[Any], kwargs: Any) -> list[str]:
    """The inputs whose value is hidden, or has a hidden part."""
    names = config.current().hide
    bound = arguments.bind(function, args, kwargs)
    return [
        one.input
        for one in fields.form_fields(function)
        if one.is_hidden or hiding.hide(names, bound[one.name]) is not bound[one.name]
    ]


def _options(job: Job, function: Callable[..., Any]) -> dict[str, str]:
    """The inputs of the queue, and of retries and repeats that were asked for at its enqueue."""
    given = {}
    if job.origin in queue_choices():
        given["queue"] = job.origin
    own = catalog.options(function)
    retries = (job.retries_left or 0) + (job.number_of_retries or 0)
    if retries and "retry" not in own:
        given["retries"] = str(retries)
        given["retry_interval"] = str((job.retry_intervals or [0])[0])
    if job.repeat_state and job.repeat_state.times and "repeat" not in own:
        given["repeats"] = str(job.repeat_state.times)
        given["repeat_interval"] = str((job.repeat_intervals or [0])[0])
    return given
