"""The plan of a flow: its jobs before they are made, and what each gets from which others."""

from __future__ import annotations

import dataclasses
from enum import Enum

from rqjobs.signatures import Signature

FLOW_MAX_JOBS = 20_000  # a job that waits for many others is stored in one step


class Shape(str, Enum):
    """The form of a flow's result."""

    ONE = "one"
    LIST = "list"


@dataclasses.dataclass
class Node:
    """A job of a flow. `takes` and `on_failure` are as in `FlowPlace`.

    `may_fail`: whether the job runs although a job before it has failed.
    """

    signature: Signature
    parents: list[Node]
    takes: str
    may_fail: bool
    on_failure: str = "stop"


def check_size(number: int) -> None:
    """Check the number of jobs of a flow.

    Raises:
        ValueError: there are too many.
    """
    if number > FLOW_MAX_JOBS:
        raise ValueError(
            f"a flow of {number:,} jobs is too large; make at most {FLOW_MAX_JOBS:,}, and let each "
            f"do a part of the work"
        )
