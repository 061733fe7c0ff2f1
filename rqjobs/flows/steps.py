"""Steps: `chain`, `group`, `chord` and `map` put signatures together to a flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

from rqjobs.flows.flow import Flow
from rqjobs.flows.plan import Node, Shape, check_size
from rqjobs.flows.storing import store
from rqjobs.signatures import Signature, s

ON_FAILURE = ("stop", "continue")


@dataclasses.dataclass(frozen=True)
class Chain:
    """Steps of which each gets the result of the one before it."""

    steps: tuple[Step, ...]
    on_failure: str = "stop"

    def enqueue(self) -> Flow:
        """Enqueue the flow: all of its jobs, or none if this raises."""
        return enqueue(self)


@dataclasses.dataclass(frozen=True)
class Group:
    """Steps that run at the same time. The step after it gets the list of their results."""

    steps: tuple[Step, ...]

    def enqueue(self) -> Flow:
        """Enqueue the flow: all of its jobs, or none if this raises."""
        return enqueue(self)


Step = Signature | Chain | Group


def chain(*steps: Step, on_failure: str = "stop") -> Chain:
    """Run the steps one after the other: each gets the result of the one before as its first
    argument. Behind a group that is the list of the results, in the order of the group.

    `on_failure`: "stop" lets a step wait if one before it fails, until that is requeued. With
    "continue" it runs, and gets a `Failed` in place of the result.

    Raises:
        TypeError: a step is not a signature, a chain or a group.
        ValueError: there are no steps, or a group follows a group.
    """
    _check_on_failure(on_failure)
    _check_steps("chain", steps)
    return Chain(steps, on_failure)


def group(*steps: Any) -> Group:
    """Run the steps at the same time. They may be given as one iterable.

    Raises:
        TypeError: a step is not a signature or a chain.
        ValueError: there are no steps, or one of them has several results.
    """
    if len(steps) == 1 and not isinstance(steps[0], Signature | Chain | Group):
        if callable(steps[0]) or isinstance(steps[0], str) or not isinstance(steps[0], Iterable):
            _check_steps("group", steps)
        steps = tuple(steps[0])
    _check_steps("group", steps)
    for step in steps:
        if _has_list(step):
            raise ValueError(
                "a member of a group has one result, and this one is a group or ends with one; "
                "let the chain end with a function that takes the list"
            )
    check_size(len(steps))
    return Group(steps)


def chord(members: Group | Iterable[Step], callback: Step, *, on_failure: str = "stop") -> Chain:
    """Run a group, then `callback` with the list of the results. It is a chain of the two.

    Raises:
        TypeError, ValueError: as `chain` and `group`.
    """
    if not isinstance(members, Group):
        members = group(members)
    return chain(members, callback, on_failure=on_failure)


def map_jobs(function: Callable[..., Any] | str, values: Iterable[Any]) -> Group:
    """A group that calls `function` with each of the values.

    Raises:
        ValueError: there are no values.
    """
    return group(s(function, value) for value in values)


def enqueue(step: Step) -> Flow:
    """Enqueue a flow: all of its jobs, or none if this raises.

    Raises:
        NotAJob, PayloadError, PayloadTooLarge, RefusedWebhook: see `Queue.create_job`.
        TypeError: the arguments of a job, with those that it gets from others, do not fit.
        ValueError: an option of a job cannot go with a flow.
    """
    plan: list[Node] = []
    ends = _plan(step, [], "nothing", "stop", plan)
    shape = Shape.LIST if _has_list(step) else Shape.ONE
    check_size(len(plan))
    return store(_with_ends_last(plan, ends), len(ends), shape)


def _plan(
    step: Step, parents: list[Node], takes: str, on_failure: str, plan: list[Node]
) -> list[Node]:
    """Add the jobs of a step to the plan, parents first; returns those that come last."""
    if isinstance(step, Signature):
        node = Node(step, parents, takes, on_failure == "continue")
        for parent in parents:
            parent.on_failure = on_failure
        plan.append(node)
        return [node]
    if isinstance(step, Group):
        ends = []
        for member in step.steps:
            ends += _plan(member, parents, takes, on_failure, plan)
        return ends
    for one in step.steps:
        parents = _plan(one, parents, takes, on_failure, plan)
        takes = "results" if _has_list(one) else "result"
        on_failure = step.on_failure
    return parents


def _with_ends_last(plan: list[Node], ends: list[Node]) -> list[Node]:
    is_end = {id(node) for node in ends}
    return [node for node in plan if id(node) not in is_end] + ends


def _has_list(step: Step) -> bool:
    """Whether the result of a step is a list of the results of its members."""
    if isinstance(step, Chain):
        return _has_list(step.steps[-1])
    return isinstance(step, Group)


def _begins_with_group(step: Step) -> bool:
    if isinstance(step, Chain):
        return _begins_with_group(step.steps[0])
    return isinstance(step, Group)


def _check_steps(name: str, steps: tuple[Any, ...]) -> None:
    if not steps:
        raise ValueError(f"{name}() has no steps; give it calls such as f.s(1)")
    for step in steps:
        if not isinstance(step, Signature | Chain | Group):
            hint = ""
            if callable(step):
                hint = f"; for a job function write rqjobs.s({getattr(step, '__name__', 'f')}, …)"
            raise TypeError(
                f"{name}() takes calls such as f.s(1) or rqjobs.s(f, 1), chains and groups, not "
                f"{step!r:.80}{hint}"
            )
    if name != "chain":
        return
    for before, after in pairwise(steps):
        if _has_list(before) and _begins_with_group(after):
            raise ValueError(
                "a group cannot follow a group; put a function between them that takes the list "
                "of the results"
            )


def _check_on_failure(value: str) -> None:
    if value not in ON_FAILURE:
        raise ValueError(f"on_failure={value!r} is unknown; use 'stop' or 'continue'")
