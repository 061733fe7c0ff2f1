"""Find jobs in all states by filters, page by page. Nothing is changed.

A filter is searched for inside Redis, in steps of a few milliseconds (`search_jobs.lua`). Each step
goes on behind a position, so jobs that come and go in between neither hide nor repeat others.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta, timezone
from typing import Any

import redis
from rq.utils import get_call_string

from rqjobs import config, connection, failed, hiding, stats
from rqjobs.broker import keys, places, scripts
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import SEARCH_JOBS
from rqjobs.job_cursors import Cursor, next_cursor, read_cursor
from rqjobs.job_fields import read_description
from rqjobs.job_filters import STATE_OF_STATUS as STATE_OF_STATUS
from rqjobs.job_filters import Filter as Filter
from rqjobs.job_filters import FilterError as FilterError
from rqjobs.job_filters import State as State
from rqjobs.job_filters import read_filter as read_filter
from rqjobs.jobs import Job, function_name
from rqjobs.loops import Progress, read_progress
from rqjobs.times import format_date, parse_date, utc

STEP_JOBS = 4000  # that one script looks at: it holds up Redis for some milliseconds
PAGE_MAX_ROUND_TRIPS = 5  # unless a text is searched
# A search for a text looks at more jobs, in more and shorter steps.
TEXT_STEP_JOBS = 1000
TEXT_WINDOW_JOBS = 100_000  # of one page
TEXT_SECONDS = 0.5  # for which the steps of one page may take
SORTED_MAX_JOBS = 5000  # that a page sorts by their moments, over all sources
PAGE_JOBS = 50
PAGE_MAX_JOBS = 500
MAX_SOURCES = 100  # a page cannot merge more
COUNT_CAP = 10_000
TEXT_RUN = re.compile(r"[A-Za-z0-9]+|[^\x00-\x7f]+")
# Any two digits are somewhere in one of nine random ids, so these match from their beginning.
RANDOM_ID = re.compile(r"(?=.{36}\Z)[0-9A-Fa-f]+(-[0-9A-Fa-f]+){4}")
RANDOM_ID_MIN_TEXT = 4  # characters of a text that a random id begins with
DECIDING_FIELDS = (b"data", b"description", b"rqjobs_flow")
ROW_WORDS = 17  # of a row of `search_jobs.lua` whose record can be read


# The rows


@dataclass(frozen=True)
class FoundJob:
    """A job of a list. Its texts come from the job: show them, but do not trust them.

    They are cut to some hundred characters. `state` is where the job is; None if the status in its
    record is not known. `status` is that of its record: "" if there is no record, "unreadable" if
    the key has the wrong type. `moment` is the last of its dates. `due` is of a scheduled job.
    """

    id: str
    state: State | None
    status: str
    queue: str
    description: str
    moment: datetime | None
    created_at: datetime | None
    enqueued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    due: datetime | None
    worker: str
    schedule: str
    group: str
    error: str
    ending: str
    timeout: str
    progress: Progress | None

    @property
    def function(self) -> str:
        """The function by the description; "" if that is not a call."""
        match = re.match(r"([\w.]+)\(", self.description)
        return match[1] if match else ""


@dataclass(frozen=True)
class Found:
    """One page of jobs.

    `next` is the cursor of the next page, "" if there is none. `searched` jobs of `total` were
    looked at on this page and those before it. `error` says why there is no next page although
    not all was searched.
    """

    jobs: list[FoundJob]
    next: str
    searched: int
    total: int
    error: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether all jobs were looked at."""
        return not self.next and not self.error


@dataclass(frozen=True)
class Count:
    """The number of jobs of a filter; a lower bound if it is not exact."""

    number: int
    is_exact: bool

    def describe(self) -> str:
        return f"{self.number:,}" + ("" if self.is_exact else "+")


# Sources


@dataclass(frozen=True)
class Source:
    """A key with jobs, in an order: one state of one queue, a group of failures, or some ids."""

    kind: str  # "list", "zset" or "ids"
    key: str
    state: State | None
    queue: str
    order: str = "newest"
    status: str = ""
    ids: tuple[str, ...] = ()
    group: str = ""
    any_queue: bool = False

    @property
    def name(self) -> str:
        return self.group or f"{self.state.value if self.state else ''}:{self.queue}"


@dataclass
class Match:
    """A found job, with the position behind it and the number of jobs looked at by then."""

    position: list[bytes]
    looked: int
    is_maybe: bool
    row: list[Any]

    @property
    def moment(self) -> bytes:
        moment: bytes = self.row[1] if len(self.row) > 1 else b""
        return moment


class SourceSearch:
    """A source that is being searched: its matches so far, and where the next step goes on."""

    def __init__(self, source: Source, position: list[bytes] | None):
        self.source = source
        self.begin = position or []
        self.position = self.begin
        self.is_over = False
        self.looked = 0
        self.total = 0
        self.found = 0
        self.matches: list[Match] = []
        self.taken = 0

    def add(self, reply: Any) -> None:
        if not isinstance(reply, list):  # the key has changed its type
            self.is_over = True
            return
        stop, looked, self.total, found, rows = reply
        for position, ordinal, maybe, *row in rows:
            self.matches.append(Match(position, self.looked + ordinal, bool(maybe), row))
        self.looked += looked
        self.found += found
        self.position = stop
        self.is_over = not stop

    @property
    def number(self) -> int:
        """The jobs that a count has found. Its matches are those that were decided here."""
        return self.found + len(self.matches)

    def mark(self) -> list[bytes] | None:
        """The position behind the jobs of this page; None if there are no more."""
        if self.taken < len(self.matches):
            return self.matches[self.taken - 1].position if self.taken else self.begin
        return None if self.is_over else self.position

    def searched(self) -> int:
        """The jobs that were looked at for this page."""
        if self.taken < len(self.matches):
            return self.matches[self.taken - 1].looked if self.taken else 0
        return self.looked


def sources_of(
    client: redis.Redis,
    chosen: Filter,
    counts: Mapping[str, Mapping[str, int]] | None = None,
    order: str = "newest",
) -> list[Source]:
    """The sources in which the jobs of a filter are.

    Args:
        counts: the jobs of each queue by state, if they are known.
        order: "newest" or "oldest" first. Of scheduled jobs alone the next due ones come first.
    """
    if chosen.job_id:
        return [Source("ids", "", None, "", ids=(chosen.job_id,), any_queue=True)]
    if chosen.schedule:
        key = keys.schedule_runs(chosen.schedule)
        return [Source("ids", key, None, "", any_queue=True)]
    if chosen.group:
        return [_source_of_group(chosen.group, order)]
    if counts is None:
        counts = _count_places(client, chosen)
    if chosen.state is State.SCHEDULED:
        order = "oldest"
    return [
        _source_of(state, name, order)
        for name, of_queue in counts.items()
        for state in chosen.states
        if of_queue.get(state.value) and chosen.queue in (None, name)
    ]


def _source_of_group(group: str, order: str) -> Source:
    key = keys.failure_group_jobs(group)
    return Source("zset", key, State.FAILED, "", order, "failed", group=group, any_queue=True)


def _source_of(state: State, queue: str, order: str) -> Source:
    if state is State.QUEUED:
        return Source("list", keys.queue(queue), state, queue, order)
    if state is State.STOPPED:
        return Source("zset", keys.stopped(queue), state, queue, order, "stopped")
    status = "not stopped" if state is State.FAILED else ""
    registry = keys.registry(stats.REGISTRY_KEYS[state.value], queue)
    return Source("zset", registry, state, queue, order, status)


class Query:
    """A filter with the arguments of its scripts."""

    def __init__(self, chosen: Filter):
        self.chosen = chosen
        self.step_jobs = TEXT_STEP_JOBS if chosen.text else STEP_JOBS
        # JSON has the letters and digits of a text as they are.
        runs = TEXT_RUN.findall(chosen.text or "")
        self.words = " ".join(json.dumps(run)[1:-1].lower() for run in runs if run != "None")
        self.hidden_names = " ".join(hiding.fold_names(config.current().hide))
        self.groups = "any"
        if chosen.group:
            self.groups = f"{chosen.group} "
        elif chosen.error:
            wanted = chosen.error.lower()
            self.groups = "".join(
                f"{group.id} "
                for group in failed.groups()
                if wanted.rpartition(".")[2] in group.error.lower()
            )

    def call(
        self,
        source: Source,
        position: Sequence[bytes],
        max_found: int,
        max_looked: int = 0,
        max_sorted: int = 0,
        wants: str = "rows",
    ) -> tuple[Any, ...]:
        """The command for one step in a source."""
        chosen = self.chosen
        status = source.status
        if source.kind == "ids" and chosen.state:
            status = "started" if chosen.state is State.RUNNING else chosen.state.value
        words = [
            source.kind,
            source.key,
            source.order,
            max_looked or self.step_jobs,
            max_found,
            max_sorted,
            wants,
            status,
            (chosen.text or "").encode(),
            chosen.function or "",
            _moment_text(chosen.since),
            _moment_text(chosen.until),
            chosen.schedule or "",
            self.groups,
            (chosen.queue or "") if source.any_queue else "",
            self.words,
            self.hidden_names,
            len(source.ids),
            *source.ids,
            *position,
        ]
        return SEARCH_JOBS.call([], words)


def _moment_text(when: datetime | timedelta | None) -> str:
    if when is None:
        return ""
    if isinstance(when, timedelta):
        when = datetime.now(timezone.utc) - when
    return format_date(when.astimezone(timezone.utc))


# Search


def search(
    chosen: Filter,
    after: str = "",
    limit: int = PAGE_JOBS,
    counts: Mapping[str, Mapping[str, int]] | None = None,
) -> Found:
    """The next page of the jobs of a filter, the newest first.

    Several states or queues are merged by the last dates of the jobs. One call looks at some 20,000
    jobs at most, for a text at `TEXT_WINDOW_JOBS`.

    Args:
        after: the cursor of the page before.
        limit: jobs of one page, up to `PAGE_MAX_JOBS`.
        counts: the jobs of each queue by state (`places.count_places`), if they are known.

    Raises:
        FilterError: `after` is not a cursor of this filter, or the filter takes too many queues.
    """
    client = connection.client()
    limit = max(1, min(limit, PAGE_MAX_JOBS))
    cursor = read_cursor(chosen, after)
    sources = [one for one in sources_of(client, chosen, counts) if not cursor.is_over(one.name)]
    if len(sources) > MAX_SOURCES:
        raise FilterError(
            "queue", "These are too many queues to list them together: choose a queue or a state"
        )
    parts = [
        SourceSearch(source, cursor.position(source.name, source.kind == "list"))
        for source in sources
    ]
    _search_steps(client, Query(chosen), parts, limit)
    jobs = _merge(parts, limit)
    marks = {part.source.name: part.mark() for part in parts}
    searched = cursor.searched + sum(part.searched() for part in parts)
    over = cursor.over + sum(part.total for part in parts if part.mark() is None)
    total = cursor.over + sum(part.total for part in parts)
    following, error = next_cursor(chosen, Cursor({**cursor.marks, **marks}, searched, over))
    return Found(jobs, following, min(searched, total), total, error)


def _search_steps(
    client: redis.Redis, query: Query, parts: Sequence[SourceSearch], limit: int
) -> None:
    """Search until the page is full, all is searched, or the steps of a page are done."""
    max_sorted = max(limit, SORTED_MAX_JOBS // max(1, len(parts)))
    if query.chosen.state is State.SCHEDULED:
        max_sorted = 0
    for _ in _turns(query, parts):
        missing = [part for part in parts if not part.is_over and len(part.matches) < limit]
        share = max(limit + 10, query.step_jobs // max(1, len(missing)))
        commands = [
            query.call(part.source, part.position, limit - len(part.matches), share, max_sorted)
            for part in missing
        ]
        _step(client, query, missing, commands)
        if not missing or (
            query.chosen.looks_inside and sum(len(part.matches) for part in parts) >= limit
        ):
            return


def _turns(query: Query, parts: Sequence[SourceSearch]) -> Iterator[None]:
    """One turn for each step of a page."""
    if not query.chosen.text:
        yield from [None] * PAGE_MAX_ROUND_TRIPS
        return
    end = time.monotonic() + TEXT_SECONDS
    looked = 0
    while looked < TEXT_WINDOW_JOBS and (not looked or time.monotonic() < end):
        yield
        looked = sum(part.looked for part in parts)


def _step(
    client: redis.Redis,
    query: Query,
    parts: Sequence[SourceSearch],
    commands: Sequence[tuple[Any, ...]],
) -> None:
    """Take the next step in each of these sources, by its command."""
    replies = scripts.read_together(client, commands, SEARCH_JOBS)
    for part, reply in zip(parts, replies, strict=True):
        part.add(reply)
    _decide(client, query, parts)


def read_matches(client: redis.Redis, query: Query, reply: list[Any]) -> list[Match]:
    """The matches in a reply of `search_jobs.lua`."""
    part = SourceSearch(Source("ids", "", None, ""), None)
    part.add(reply)
    _decide(client, query, [part])
    return part.matches


def _decide(client: redis.Redis, query: Query, parts: Sequence[SourceSearch]) -> None:
    """Keep those of the undecided matches that the filter takes, by their data or results."""
    undecided = [match for part in parts for match in part.matches if match.is_maybe]
    if not undecided:
        return
    commands: list[tuple[Any, ...]] = []
    for match in undecided:
        job_id = decode(match.row[0])
        commands.append(("HMGET", keys.job(job_id), *(name.decode() for name in DECIDING_FIELDS)))
        commands.append(("XREVRANGE", keys.results(job_id), "+", "-", "COUNT", 1))
    replies = scripts.read_together(client, commands)
    taken = {
        id(match)
        for match, values, results in zip(undecided, replies[::2], replies[1::2], strict=True)
        if isinstance(values, list) and _fits(query.chosen, decode(match.row[0]), values, results)
    }
    for part in parts:
        part.matches = [match for match in part.matches if not match.is_maybe or id(match) in taken]
        for match in part.matches:
            match.is_maybe = False


def _fits(chosen: Filter, job_id: str, values: list[Any], results: Any) -> bool:
    """Whether the filter takes a job, by the values of its `DECIDING_FIELDS` and its results."""
    record = {name: value for name, value in zip(DECIDING_FIELDS, values, strict=True) if value}
    data = record.get(b"data")
    if chosen.text and not _has_text(chosen.text, job_id, record):
        return False
    if chosen.function:
        name = function_name(data)
        if chosen.function not in (name, name.rpartition(".")[2]):
            return False
    if chosen.error:
        wanted = chosen.error.lower().rpartition(".")[2]
        return wanted in failed.read_failure(data, results).error.lower()
    return True


def _has_text(text: str, job_id: str, record: dict[bytes, bytes]) -> bool:
    """Whether a text is in the id, the description or the call of a job, as they are shown."""
    shown = [read_description(record.get(b"description", b""))]
    with contextlib.suppress(Exception):  # the data cannot be read, or code of a value raises
        job = Job.from_hash(job_id, record, connection.client())
        shown.append(get_call_string(job.func_name, *job.shown_arguments()) or "")
    if not RANDOM_ID.fullmatch(job_id):
        shown.append(job_id)
    elif len(text) >= RANDOM_ID_MIN_TEXT and job_id.lower().startswith(text.lower()):
        return True
    wanted = text.encode().lower()  # upper and lower case of a to z count as the same
    return any(wanted in one.encode(errors="replace").lower() for one in shown)


def _merge(parts: list[SourceSearch], limit: int) -> list[FoundJob]:
    """The matches of all parts, the newest first; each part keeps its own order."""
    jobs: list[FoundJob] = []
    while len(jobs) < limit:
        heads = [part for part in parts if part.taken < len(part.matches)]
        if not heads:
            break
        part = max(heads, key=lambda one: one.matches[one.taken].moment)
        jobs.append(found_job(part.source, part.matches[part.taken].row))
        part.taken += 1
    return jobs


def count(chosen: Filter, cap: int = COUNT_CAP) -> Count:
    """The number of jobs of a filter.

    It is exact, whatever `cap` is, if the filter is only a state and a queue. Otherwise as many
    jobs are looked at as for a page, and up to `cap` of them counted.
    """
    client = connection.client()
    counts = _count_places(client, chosen)
    if not chosen.looks_inside:
        by_state = sum_states(counts)
        return Count(sum(by_state[state] for state in chosen.states), True)
    query = Query(chosen)
    parts = [SourceSearch(source, None) for source in sources_of(client, chosen, counts)]
    for _ in _turns(query, parts):
        missing = [part for part in parts if not part.is_over and part.number <= cap]
        if not missing:
            break
        share = max(100, query.step_jobs // len(missing))
        commands = [
            query.call(part.source, part.position, cap + 1, share, 0, "count") for part in missing
        ]
        _step(client, query, missing, commands)
    number = sum(part.number for part in parts)
    is_exact = all(part.is_over for part in parts) and number <= cap
    return Count(min(number, cap), is_exact)


def sum_states(counts: Mapping[str, Mapping[str, int]]) -> dict[State, int]:
    """The number of jobs in each state, over the queues of `places.count_places`."""
    return {
        state: sum(of_queue.get(state.value, 0) for of_queue in counts.values()) for state in State
    }


def _count_places(client: redis.Redis, chosen: Filter) -> dict[str, dict[str, int]]:
    names = [chosen.queue] if chosen.queue else places.queue_names(client)
    return places.count_places(client, names)


# Rows


def _description(stored: Any) -> str:
    return read_description(stored) if isinstance(stored, bytes) else decode(stored)


def found_job(source: Source, row: list[Any]) -> FoundJob:
    """A row of `search_jobs.lua`: the id, the moment, the score, then the texts of its fields."""
    job_id = decode(row[0])
    if len(row) < ROW_WORDS:
        return _no_record(source, job_id, decode(row[-1]))
    description, progress, status, origin = row[3:7]
    return FoundJob(
        id=job_id,
        state=source.state or STATE_OF_STATUS.get(decode(status)),
        status=decode(status),
        queue=source.queue or decode(origin),
        description=_description(description),
        moment=_date(row[1]),
        ended_at=_date(row[7]),
        started_at=_date(row[8]),
        enqueued_at=_date(row[9]),
        created_at=_date(row[10]),
        due=_due(row[2]) if source.state is State.SCHEDULED else None,
        worker=decode(row[11]),
        schedule=decode(row[12]),
        group=decode(row[13]),
        ending=decode(row[14]),
        timeout=decode(row[15]),
        error=decode(row[16]),
        progress=read_progress(progress) if progress else None,
    )


def _no_record(source: Source, job_id: str, status: str) -> FoundJob:
    blank = {field.name: "" for field in fields(FoundJob)}
    dates = dict.fromkeys(
        ("moment", "created_at", "enqueued_at", "started_at", "ended_at", "due", "progress")
    )
    known = {"id": job_id, "state": source.state, "status": status, "queue": source.queue}
    return FoundJob(**{**blank, **dates, **known})  # type: ignore[arg-type]


def _date(stored: bytes) -> datetime | None:
    if not stored:
        return None
    try:
        return parse_date(stored).astimezone(timezone.utc)
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None


def _due(score: bytes) -> datetime | None:
    try:
        return utc(float(score))
    except (ValueError, OverflowError, OSError):  # not a date that Python knows
        return None
