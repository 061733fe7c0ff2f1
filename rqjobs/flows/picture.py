"""A flow as it is drawn: a tree of steps with branches, large steps as numbers by state."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from rqjobs import connection
from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import FLOW_STATES
from rqjobs.flows.flow import FlowProgress, FlowStatus, gone
from rqjobs.flows.plan import FLOW_MAX_JOBS
from rqjobs.job_fields import read_description
from rqjobs.passed_results import FlowPlace

STATES_PER_SCRIPT = 5000  # whose states one call reads; a longer one would hold up other clients
FIRST_MAX_ENTRIES = 400  # jobs of the first call whose parents are read
LATER_MAX_ENTRIES = 50  # of each further one
MAX_MEMBERS = 12  # of a step that are drawn; a larger step has the first ones
MAX_BRANCHES = 12  # of a fork that are drawn
MAX_FORK_LEVELS = 4  # of forks within forks
END_ROWS = 10  # of many rows: drawn at both ends, and on both sides of the position
STATUS_LETTERS = {
    "f": "finished",
    "x": "failed",
    "y": "failed",
    "s": "stopped",
    "c": "canceled",
    "q": "queued",
    "d": "deferred",
    "t": "scheduled",
    "r": "started",
    "g": "gone",
    "o": "unknown",
}
NOTABILITY = {"failed": 0, "stopped": 1, "started": 2, "canceled": 3}  # these are drawn first


@dataclass(frozen=True)
class Member:
    """A job that is drawn. `position`: its place in the flow, from 0."""

    position: int
    job_id: str
    status: str
    description: str


@dataclass
class Step:
    """Jobs of a flow that wait for the same others. `jobs`: their places in the flow.

    `counts`: the number of them by state. `members`: those that are drawn. `is_parallel` is False if
    some may wait for each other, because records are gone, or not all of so many jobs were read.
    """

    jobs: range
    is_parallel: bool = True
    counts: dict[str, int] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)


@dataclass
class Fork:
    """Branches that wait for the same step. `left_out`: the number of those that are not drawn."""

    branches: list[list[Row]]
    left_out: int = 0


@dataclass
class Gap:
    """Rows that are not drawn."""

    rows: int


Row = Step | Fork | Gap


@dataclass(frozen=True)
class FlowPicture:
    """A flow at one moment, as a tree: each row waits for the one before it."""

    flow_id: str
    status: FlowStatus
    progress: FlowProgress
    counts: dict[str, int]
    rows: list[Row]

    @property
    def is_over(self) -> bool:
        """Whether nothing changes any more. The failed jobs of a flow may be tried again."""
        return self.status in (FlowStatus.FINISHED, FlowStatus.CANCELED)


@dataclass
class Node:
    """Jobs with the same parents, and the jobs behind them.

    `before`: the node for which they wait, or the last one that all of their parents have waited
    for. `branches` wait for this node alone; `joined` wait for several of its branches.
    """

    jobs: range
    before: Node | None = None
    depth: int = 0
    is_parallel: bool = True  # as of a `Step`
    branches: list[Node] = field(default_factory=list)
    joined: list[Node] = field(default_factory=list)


def read(flow_id: str, position: int | None = None) -> FlowPicture:
    """A flow as it is now, in one round trip. `position`: a job that is drawn in any case.

    Raises:
        NoSuchFlow: there is no such flow.
    """
    own = -1 if position is None else position
    commands: list[tuple[Any, ...]] = [("HGET", keys.flow(flow_id), keys.FLOW_SHAPE)]
    for start in range(0, FLOW_MAX_JOBS, STATES_PER_SCRIPT):
        script_keys = [keys.flow(flow_id), keys.flow_jobs(flow_id)]
        max_entries = FIRST_MAX_ENTRIES if start == 0 else LATER_MAX_ENTRIES
        args = [start, STATES_PER_SCRIPT, max_entries, MAX_MEMBERS, own]
        commands.append(FLOW_STATES.call(script_keys, args))
    shape, *replies = scripts.read_together(connection.client(), commands, FLOW_STATES)
    place = FlowPlace.read(decode(shape)) if isinstance(shape, bytes) else None
    letters = "".join(decode(reply[0]) for reply in replies)
    if not letters.strip("g"):
        raise gone(flow_id)
    known = {member.position: member for reply in replies for member in _members(reply[2], letters)}
    root = _tree([entry for reply in replies for entry in reply[1]], len(letters))
    rows = _choose(_rows(root), letters, position)
    for step in _steps(rows):
        step.counts = counts_of(letters[step.jobs.start : step.jobs.stop])
        step.members = _choose_members(step.jobs, known, position)
    return FlowPicture(
        flow_id,
        status_of(letters, place.ends if place else len(letters)),
        progress_of(letters),
        counts_of(letters),
        rows,
    )


def counts_of(letters: str) -> dict[str, int]:
    """The number of jobs by state."""
    counts: Counter[str] = Counter()
    for letter, number in Counter(letters).items():
        counts[STATUS_LETTERS.get(letter, "unknown")] += number
    return {
        state: counts[state] for state in dict.fromkeys(STATUS_LETTERS.values()) if counts[state]
    }


def progress_of(letters: str) -> FlowProgress:
    """The number of finished and of failed jobs, and of all of them."""
    failed = sum(map(letters.count, "xys"))
    return FlowProgress(letters.count("f"), failed, len(letters))


def status_of(letters: str, ends: int) -> FlowStatus:
    """The status of a flow, as `flow.status_of` has it."""
    if not letters[-ends:].strip("f"):
        return FlowStatus.FINISHED
    if "c" in letters:
        return FlowStatus.CANCELED
    if any(letter in letters for letter in "sgx"):
        return FlowStatus.FAILED
    return FlowStatus.RUNNING


def _tree(entries: list[Any], total: int) -> Node:
    """The nodes of a flow behind an empty one. `entries`: as `flow_states.lua` returns them.

    Jobs whose parents are not known come last; those whose records are gone, with those before them.
    """
    root = Node(range(0))
    nodes: dict[str, Node] = {}  # by their first and their last job
    last, last_parents = root, None
    ends = [position for position, *_ in entries[1:]] + [total]
    for (position, first_id, stored, last_id, mark), end in zip(entries, ends, strict=True):
        parents = _parents(stored)
        if mark == b"rest":
            last, last_parents = Node(range(position, end), root, 1), None
            root.joined.append(last)
        elif last_parents is not None and (stored is None or parents == last_parents):
            last.jobs = range(last.jobs.start, end)  # gone, or the entry of another call
        else:
            last, last_parents = _add(root, nodes, parents, range(position, end)), parents
        last.is_parallel = last.is_parallel and not mark
        nodes.setdefault(decode(first_id), last)
        nodes.setdefault(decode(last_id), last)
    return root


def _parents(stored: Any) -> list[str]:
    try:
        ids = json.loads(stored or b"[]")
    except (ValueError, RecursionError):
        return []
    return [str(one) for one in ids] if isinstance(ids, list) else []


def _add(root: Node, nodes: dict[str, Node], parents: list[str], jobs: range) -> Node:
    known = list({id(nodes[one]): nodes[one] for one in parents if one in nodes}.values())
    before = reduce(_last_common, known) if known else root
    node = Node(jobs, before, before.depth + 1)
    waits_for_one = len(known) == 1 or not parents
    (before.branches if waits_for_one else before.joined).append(node)
    return node


def _last_common(one: Node, other: Node) -> Node:
    """The last node that is before both, or one of them."""
    while one is not other:
        deeper = one if one.depth >= other.depth else other
        assert deeper.before
        one, other = (other if deeper is one else one), deeper.before
    return one


def _rows(node: Node, level: int = 0) -> list[Row]:
    """A node and all behind it. Forks within too many forks are drawn one after the other."""
    rows: list[Row] = []
    todo = [node]
    while todo:
        node = todo.pop()
        if node.jobs:
            rows.append(Step(node.jobs, node.is_parallel))
        todo += reversed(node.joined)
        if len(node.branches) < 2 or level == MAX_FORK_LEVELS:
            todo += reversed(node.branches)
        else:
            rows.append(Fork([_rows(branch, level + 1) for branch in node.branches]))
    return rows


def _choose(rows: list[Row], letters: str, position: int | None) -> list[Row]:
    """The rows that are drawn: of many those at the beginning and the end, or around the position."""
    for row in rows:
        if isinstance(row, Fork):
            first = sorted(row.branches, key=lambda one: _order(one, letters, position))
            drawn = {id(one) for one in first[:MAX_BRANCHES]}
            row.left_out = len(row.branches) - len(drawn)
            row.branches = [
                _choose(one, letters, position) for one in row.branches if id(one) in drawn
            ]
    if len(rows) <= 4 * END_ROWS:
        return rows
    own = next((number for number, row in enumerate(rows) if _has([row], position)), 0)
    kept = {*range(END_ROWS), *range(own - END_ROWS, own + END_ROWS), *range(len(rows))[-END_ROWS:]}
    chosen: list[Row] = []
    for number, row in enumerate(rows):
        if number in kept:
            chosen.append(row)
        elif isinstance(chosen[-1], Gap):
            chosen[-1].rows += 1
        else:
            chosen.append(Gap(1))
    return chosen


def _steps(rows: list[Row]) -> Iterator[Step]:
    for row in rows:
        if isinstance(row, Step):
            yield row
        elif isinstance(row, Fork):
            for branch in row.branches:
                yield from _steps(branch)


def _has(rows: list[Row], position: int | None) -> bool:
    return any(position in step.jobs for step in _steps(rows))


def _order(branch: list[Row], letters: str, position: int | None) -> int:
    """The order in which branches are chosen: that of the position, then those that have failed."""
    if _has(branch, position):
        return 0
    states = "".join(letters[step.jobs.start : step.jobs.stop] for step in _steps(branch))
    return next((n for n, found in enumerate(("xys", "r"), 1) if {*found} & {*states}), 3)


def _members(found: Any, letters: str) -> Iterator[Member]:
    for position, job_id, description in found:
        status = STATUS_LETTERS.get(letters[position], "unknown")
        yield Member(position, decode(job_id), status, read_description(description))


def _choose_members(jobs: range, known: dict[int, Member], position: int | None) -> list[Member]:
    """The jobs of a step that are drawn: of a large one the notable ones and the first ones."""
    members = [known[one] for one in _known_in(jobs, known)]
    members.sort(key=lambda one: (one.position != position, NOTABILITY.get(one.status, 9)))
    return sorted(members[:MAX_MEMBERS], key=lambda one: one.position)


def _known_in(jobs: range, known: dict[int, Member]) -> Iterable[int]:
    if len(jobs) < len(known):
        return (one for one in jobs if one in known)
    return (one for one in known if one in jobs)
