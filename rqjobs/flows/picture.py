"""A flow as it is drawn: its steps from the first to the last, large ones as numbers by state."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
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
MAX_DRAWN_STEPS = 40
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
    """The jobs of a flow that may run at the same time: all behind the same number of others.

    `counts`: the number of its jobs by state. `members`: those that are drawn.
    """

    positions: list[range] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The number of its jobs."""
        return sum(map(len, self.positions))


@dataclass(frozen=True)
class FlowPicture:
    """A flow at one moment. `left_out`: steps in the middle that are not drawn."""

    flow_id: str
    status: FlowStatus
    progress: FlowProgress
    counts: dict[str, int]
    steps: list[Step]
    left_out: int
    left_out_after: int  # the number of drawn steps before them

    @property
    def is_over(self) -> bool:
        """Whether nothing changes any more. The failed jobs of a flow may be tried again."""
        return self.status in (FlowStatus.FINISHED, FlowStatus.CANCELED)


@dataclass(frozen=True)
class Entry:
    """A job whose parents are known. The jobs behind it, up to the next entry, have the same."""

    position: int
    job_id: str
    parents: list[str]


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
    steps = _steps([entry for reply in replies for entry in _entries(reply[1])], len(letters))
    known = {member.position: member for reply in replies for member in _members(reply[2], letters)}
    shown, left_out, after = _choose_steps(steps, position)
    for step in shown:
        step.counts = counts_of("".join(letters[part.start : part.stop] for part in step.positions))
        step.members = _choose_members(step, known, position)
    return FlowPicture(
        flow_id,
        status_of(letters, place.ends if place else len(letters)),
        progress_of(letters),
        counts_of(letters),
        shown,
        left_out,
        after,
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


def _entries(found: Any) -> list[Entry]:
    entries = []
    for position, job_id, parents in found:
        try:
            ids = json.loads(parents or b"[]")
        except (ValueError, RecursionError):
            ids = []
        if not isinstance(ids, list):
            ids = []
        entries.append(Entry(position, decode(job_id), [str(one) for one in ids[:1000]]))
    return entries


def _steps(entries: list[Entry], total: int) -> list[Step]:
    """The jobs by the length of the longest way to them. Jobs of unknown parents come last."""
    levels: dict[str, int] = {}
    by_level: dict[int, Step] = {}
    ends = [entry.position for entry in entries[1:]] + [total]
    for entry, end in zip(entries, ends, strict=True):
        level = 0
        if entry.parents:
            known = [levels[parent] for parent in entry.parents if parent in levels]
            level = max(known, default=max(levels.values(), default=0)) + 1
        levels[entry.job_id] = level
        by_level.setdefault(level, Step()).positions.append(range(entry.position, end))
    return [by_level[level] for level in sorted(by_level)]


def _choose_steps(steps: list[Step], position: int | None) -> tuple[list[Step], int, int]:
    """The steps that are drawn, the number of those left out, and how many are before these."""
    if len(steps) <= MAX_DRAWN_STEPS:
        return steps, 0, 0
    begin = MAX_DRAWN_STEPS // 2
    own = next((n for n, step in enumerate(steps) if _has(step, position)), 0)
    if own >= begin:
        first = max(0, min(own - begin // 2, len(steps) - MAX_DRAWN_STEPS))
        return steps[first : first + MAX_DRAWN_STEPS], len(steps) - MAX_DRAWN_STEPS, 0
    left_out = len(steps) - MAX_DRAWN_STEPS
    return steps[:begin] + steps[begin + left_out :], left_out, begin


def _has(step: Step, position: int | None) -> bool:
    return position is not None and any(position in part for part in step.positions)


def _members(found: Any, letters: str) -> Iterator[Member]:
    for position, job_id, description in found:
        status = STATUS_LETTERS.get(letters[position], "unknown")
        yield Member(position, decode(job_id), status, read_description(description))


def _choose_members(step: Step, known: dict[int, Member], position: int | None) -> list[Member]:
    """The jobs of a step that are drawn: of a large one the notable ones and the first ones."""
    members = [known[one] for part in step.positions for one in _known_in(part, known)]
    members.sort(key=lambda one: (one.position != position, NOTABILITY.get(one.status, 9)))
    return sorted(members[:MAX_MEMBERS], key=lambda one: one.position)


def _known_in(part: range, known: dict[int, Member]) -> Iterable[int]:
    if len(part) < len(known):
        return (one for one in part if one in known)
    return (one for one in known if one in part)
