"""Long loops: a cursor in the job's hash lets a loop continue in the middle, and is its progress.

A run of a job keeps its cursors and its progress in one write, at most once in so many seconds, and
once more with its outcome. Each write needs the token of the run's claim.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

import redis
from rq import get_current_job
from rq.timeouts import BaseTimeoutException

from rqjobs import hiding, serializers, texts
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import KEEP_CURSOR
from rqjobs.job_fields import check_size
from rqjobs.row_sources import END, RowSource, check_number, offset_of, source_of
from rqjobs.times import format_date, utc

CURSORS = "rqjobs_cursors"
CURSORS_FIELD = CURSORS.encode()
PROGRESS_FIELD = "rqjobs_progress"
CURSORS_MAX_BYTES = 4096
PROGRESS_MAX_BYTES = 4096
LOOP_NAME_MAX_CHARACTERS = 64
PROGRESS_NOTE_MAX_CHARACTERS = 200
EVERY_MAX_SECONDS = 3600
PROGRESS_SECONDS = 1.0  # between two writes of `progress`
STOP_CHECK_SECONDS = (
    0.001  # between two looks whether the run is to end: rows may take microseconds
)
FAILURE_WAIT_SECONDS = 5.0  # from a write that has failed to the next one
LOST_REASONS = {  # replies of `keep_cursor.lua` after which a run has no use
    "canceled": "the job was canceled",
    "lost": "the job was deleted, or runs elsewhere",
}


class JobInterrupted(BaseException):
    """Raised between two rows of `resumable`, because the worker stops or the job was canceled.

    It is not an `Exception`: `finally` runs, and `except Exception` does not catch it. The job does not
    fail. It continues at its cursor, whatever its function does with this exception.
    """


class Progress(NamedTuple):
    """How far a job is: `done` of `total` (None if that is not known), a note, and when it was so."""

    done: float
    total: float | None
    note: str
    when: datetime

    def describe(self) -> str:
        """A line such as "1,200 of 5,000 (users)", or "1,200 done"."""
        line = f"{self.done:,} done"
        if self.total is not None:
            line = f"{self.done:,} of {self.total:,}"
        if self.note:
            line += f" ({self.note})"
        return line


def resumable(
    rows: Any, total: float | None = None, *, every: float = 1.0, name: str | None = None
) -> Iterator[Any]:
    """The rows, from the cursor that an earlier run of this job has left behind.

    The cursor is kept about every `every` seconds, when the loop ends or the worker stops, and with
    the job's outcome. When the worker stops, the loop ends between two rows with `JobInterrupted`,
    and the job returns to the front of its queue: no row is skipped or repeated, and no retry
    spent. After a crash, the rows since the cursor was last kept run again.

    Outside a job of an rqjobs worker it gives the rows and keeps nothing.

    Args:
        rows: a sequence, an open file (its lines), or a function `fetch(after)` that returns a list
            of (key, row) pairs: the next rows behind the key `after` (None at first), in the order
            of a key that no two rows share. An empty list ends the loop. All runs must see the same
            rows in the same order, apart from new ones at the end.
        total: the number of rows, for the progress. A sequence has a length, and a file on disk is
            measured in bytes.
        every: seconds. 0 keeps the cursor behind each row.
        name: of the loop, if the function has several. Otherwise their order names them.

    Raises:
        TypeError: the rows have no positions, or another argument is of a wrong type.
        ValueError: an argument is out of range, or the name was used in this run before.
        RuntimeError: another loop of this job is between its rows.
    """
    source = source_of(rows)
    if total is not None:
        total = check_number("total", total)
    _check_every(every)
    _check_name(name)
    state = _state_of_current_job()
    if state is None:
        return _plain(source)
    return state.begin(source, total, every, name)


def progress(done: float, total: float | None = None, note: str = "") -> None:
    """Say how far the job is that runs here: `done` of `total`, and a note of up to 200 characters.

    A longer note is cut. It is kept at most once a second, and the last one with the job's outcome.
    From the first call on, the loops of this run leave the progress alone. It does nothing outside
    a job of an rqjobs worker, and in a thread that the job has started.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: a number is negative, too large or not finite.
    """
    done = check_number("done", done)
    if total is not None:
        total = check_number("total", total)
    if not isinstance(note, str):
        raise TypeError(f"note must be a text, not a {texts.class_name(type(note))}")
    state = _state_of_current_job()
    if state is not None:
        state.set_progress(done, total, note)


def _check_every(every: Any) -> None:
    if isinstance(every, bool) or not isinstance(every, int | float):
        raise TypeError(f"every={every!r:.50} is not a number of seconds, as in every=1.0")
    if not 0 <= every <= EVERY_MAX_SECONDS:
        raise ValueError(f"every={every!r:.50} is not possible; give 0 to {EVERY_MAX_SECONDS} s")


def _check_name(name: Any) -> None:
    if name is None:
        return
    if not isinstance(name, str):
        raise TypeError(f"name={name!r:.80} is not a text")
    if not 0 < len(name) <= LOOP_NAME_MAX_CHARACTERS or name.startswith("#"):
        raise ValueError(
            f"name={name!r:.80} is not possible; give 1 to {LOOP_NAME_MAX_CHARACTERS} characters, the "
            f"first of which is not #"
        )


def _cut(note: str) -> str:
    note = texts.escape_surrogates(note)
    if len(note) > PROGRESS_NOTE_MAX_CHARACTERS:
        return f"{note[: PROGRESS_NOTE_MAX_CHARACTERS - 1]}…"
    return note


def _plain(source: RowSource) -> Iterator[Any]:
    while (row := source.take()) is not END:
        yield row


# The state of a run


@dataclass
class Loop:
    """A loop of a job as it is stored: the kind of its rows, its cursor, the number of its finished
    rows, and whether it is over.
    """

    kind: str
    cursor: Any = None
    done: int = 0
    is_over: bool = False


class RunState:
    """The loops and the progress of one run of a job, in the process that runs it."""

    def __init__(self, job: Any):
        self.job = job
        self.pid = os.getpid()
        self.loops = _read_cursors(job)
        self.names: set[str] = set()  # of the loops of this run
        self.is_in_row = False  # a row of a loop is being worked on
        self.progress: Progress | None = None
        self.is_own_progress = False  # given by `progress`
        self.kept_at: float | None = None  # monotonic, of the last write
        self.kept: dict[str, Any] = {}
        self.stored_meta: bytes | None = (job.hash_as_read or {}).get(b"meta")
        self.lost_reason = ""
        self.interruption: JobInterrupted | None = None
        self.has_failed_to_keep = False

    @cached_property
    def secrets(self) -> list[str]:
        """The texts that RQJOBS_HIDE hides in the notes of this run."""
        found: list[str] = self.job.secrets()
        return found

    def begin(
        self, source: RowSource, total: float | None, every: float, name: str | None
    ) -> Iterator[Any]:
        """The rows of the run's next loop, behind its cursor."""
        self.check_not_nested()
        key = name
        if name is None:
            key = f"#{1 + sum(known.startswith('#') for known in self.names)}"
        if key in self.names:
            raise ValueError(f"the job has had a loop name={name!r}; give each loop its own name")
        assert key
        self.names.add(key)
        if self.kept_at is None:
            self.kept_at = time.monotonic()
        loop = self._continue(key, source)
        return RunningLoop(self, loop, source, total, every, name or "").rows()

    def check_not_nested(self) -> None:
        """Raises RuntimeError if a row of another loop is being worked on."""
        if self.is_in_row:
            raise RuntimeError(
                "a loop of resumable() runs inside another one of this job; make the inner one a "
                "plain loop, or loop over one query of both"
            )

    def _continue(self, key: str, source: RowSource) -> Loop:
        """The loop of this name, behind its cursor; at its start if that is not possible."""
        loop = self.loops.get(key)
        problem = ""
        if loop is not None and loop.kind != source.kind:
            problem = f"it was left in a {loop.kind}, and these rows are a {source.kind}"
        elif loop is not None and loop.is_over:
            return loop
        elif loop is not None and loop.cursor is not None:
            try:
                source.move_to(loop.cursor)
            except (ValueError, TypeError, OverflowError, OSError) as error:
                problem = texts.describe_error(error)
            else:
                self.job.log.info("Job %s: continues behind %d rows", self.job.id, loop.done)
                return loop
        if problem:
            self.job.log.warning("Job %s: begins its loop at the start: %s", self.job.id, problem)
        self.loops[key] = Loop(source.kind)
        return self.loops[key]

    def raise_interruption(self) -> None:
        """Raise the interruption again, if the job's function has caught it."""
        if self.interruption is not None:
            raise self.interruption

    # Progress

    def set_progress(self, done: float, total: float | None, note: str) -> None:
        """Take the progress that the job's function gives, and keep it if it is time."""
        note = _cut(hiding.mask(note, self.secrets))
        self.progress = Progress(done, total, note, utc(time.time()))
        self.is_own_progress = True
        if self.is_due(PROGRESS_SECONDS):
            self.keep()

    def report(self, found: Progress) -> None:
        """Take the progress of a loop."""
        if not self.is_own_progress:
            self.progress = found

    # Writing

    def is_due(self, seconds: float) -> bool:
        """Whether the last write was at least `seconds` ago."""
        return self.kept_at is None or time.monotonic() - self.kept_at >= seconds

    def fields(self) -> dict[str, Any]:
        """The fields of the job's hash that this run keeps.

        Raises:
            ValueError: the cursors are too large together.
        """
        found: dict[str, Any] = {}
        if self.loops:
            found[CURSORS] = _cursors_text(self.job, self.loops)
        if self.progress:
            found[PROGRESS_FIELD] = _progress_text(self.progress)
        return found

    def last_fields(self) -> dict[str, Any]:
        """The fields to store with the outcome: without cursors that are too large."""
        try:
            return self.fields()
        except ValueError:
            self.loops.clear()
            return self.fields()

    def changed_meta(self) -> dict[str, Any]:
        """The job's meta as a field, if this run has changed it and it can be stored.

        It belongs to the cursor. Otherwise it stays as another program may have stored it.
        """
        job = self.job
        if not job.meta or job.meta is job.unreadable_meta:
            return {}
        try:
            data = job.serializer.dumps(job.meta)
            check_size("meta", data)
        except BaseTimeoutException:
            raise
        except Exception:  # the end of the run logs it
            return {}
        if data == self.stored_meta:
            return {}
        return {"meta": data}

    def keep(self) -> None:
        """Write cursors, progress and meta, if they have changed. An outage of Redis is not an error.

        Raises:
            ValueError: the cursors are too large together.
        """
        self.kept_at = time.monotonic()
        fields = {**self.fields(), **self.changed_meta()}
        words = [word for name in fields for word in (name, fields[name])]
        if not words or fields == self.kept:
            return
        try:
            reply = KEEP_CURSOR.run(
                self.job.connection, [self.job.key], [self.job.claim_token, *words]
            )
        except (redis.RedisError, OSError) as error:
            self._wait_after(error)
            return
        self.kept = fields
        self.stored_meta = fields.get("meta", self.stored_meta)
        self.lost_reason = LOST_REASONS.get(decode(reply), "")

    def _wait_after(self, error: Exception) -> None:
        """The next write has to wait: each may take seconds while Redis does not answer."""
        self.kept_at = time.monotonic() + FAILURE_WAIT_SECONDS
        if not self.has_failed_to_keep:
            self.job.log.warning(
                "Job %s: its cursor and progress are not kept for now: %s", self.job.id, error
            )
        self.has_failed_to_keep = True


@dataclass
class RunningLoop:
    """A loop in the run of a job."""

    state: RunState
    loop: Loop
    source: RowSource
    total: float | None
    every: float
    name: str
    finished: int = 0  # of the rows that were taken
    checked_at: float = 0.0  # monotonic
    was_kept: bool = False

    def rows(self) -> Iterator[Any]:
        """The rows. Between two of them the cursor is kept, and the run may be interrupted."""
        if self.loop.is_over:
            return
        try:
            while True:
                self._between_rows()
                row = self.source.take()
                if row is END:
                    break
                self.state.is_in_row = True
                yield row
                self.finished = self.source.taken
                self.state.is_in_row = False
                self.loop.done += 1
        except BaseException:
            self._leave()
            raise
        self._end()

    def _between_rows(self) -> None:
        """Keep the cursor if it is time.

        Raises:
            JobInterrupted: the run is to end.
        """
        state = self.state
        state.check_not_nested()
        now = time.monotonic()
        if self.every and now - self.checked_at < STOP_CHECK_SECONDS:
            return
        self.checked_at = now
        state.raise_interruption()
        reason = state.lost_reason or state.job.stop_reason()
        if reason:
            self._interrupt(reason)
        if state.is_due(self.every):
            self._move(self.source.cursor())
            self.was_kept = True
            state.keep()
            if state.lost_reason:
                self._interrupt(state.lost_reason)

    def _interrupt(self, reason: str) -> None:
        state = self.state
        self._move(self.source.cursor())
        state.interruption = JobInterrupted(reason)
        if not state.lost_reason:
            state.keep()  # the function may need some time to end, and be killed
        raise state.interruption

    def _move(self, cursor: Any) -> None:
        self.loop.cursor = cursor
        self.state.report(self._progress(cursor))

    def _leave(self) -> None:
        """Set the cursor of a loop that ends early. A row that was not finished is not done."""
        is_in_row = self.source.taken > self.finished
        with contextlib.suppress(Exception):  # a closed file has no position: the last one stays
            if is_in_row:
                self._move(self.source.cursor_before())
            else:
                self._move(self.source.cursor())
        if is_in_row:
            self.state.is_in_row = False

    def _end(self) -> None:
        self._move(self.source.cursor())
        self.loop.is_over = True
        self.loop.cursor = None
        if self.was_kept:
            self.state.keep()

    def _progress(self, cursor: Any) -> Progress:
        """The progress in rows, or in bytes of a file whose number of lines is not known."""
        now = utc(time.time())
        if self.total is not None:
            return Progress(self.loop.done, self.total, self.name, now)
        if self.source.unit:
            size = self.source.total or 0
            note = ", ".join(filter(None, (self.name, self.source.unit)))
            return Progress(min(offset_of(cursor), size), size, note, now)
        return Progress(self.loop.done, self.source.total, self.name, now)


def _state_of_current_job() -> RunState | None:
    """The state of the run of the job of this thread.

    None outside a job of an rqjobs worker, and in a process that the job has forked.
    """
    job: Any = get_current_job()
    if not getattr(job, "claim_token", ""):
        return None
    if job.run_state is None:
        job.run_state = RunState(job)
    state: RunState = job.run_state
    if state.pid != os.getpid():
        return None
    return state


def has_state(job: Any) -> bool:
    """Whether the end of this run has cursors or progress to write, or cursors to remove."""
    return job.run_state is not None or CURSORS_FIELD in (job.hash_as_read or ())


# The stored form


def _life_of(job: Any) -> str:
    """A text that changes when the id is enqueued again, also by plain RQ, which keeps the cursor."""
    if job.created_at is None:
        return ""
    return format_date(job.created_at)


def _cursors_text(job: Any, loops: Mapping[str, Loop]) -> bytes:
    stored = {
        name: [loop.kind, loop.cursor, loop.done, loop.is_over] for name, loop in loops.items()
    }
    data = serializers.JSONSerializer.dumps({"of": _life_of(job), "loops": stored})
    if len(data) > CURSORS_MAX_BYTES:
        raise ValueError(
            f"the cursors of this job's {len(loops)} loops are {len(data):,} bytes, more than "
            f"{CURSORS_MAX_BYTES:,}; let it have fewer loops, or shorter keys and names"
        )
    return data


def _read_cursors(job: Any) -> dict[str, Loop]:
    """The loops that earlier runs have left. A record that cannot be read is logged, and ignored."""
    stored = (job.hash_as_read or {}).get(CURSORS_FIELD)
    if not stored:
        return {}
    try:
        if len(stored) > CURSORS_MAX_BYTES:
            raise ValueError(f"it is {len(stored):,} bytes")
        found = serializers.JSONSerializer.loads(stored)
        if found["of"] != _life_of(job):
            return {}
        return {str(name): _read_loop(*entry) for name, entry in found["loops"].items()}
    except BaseTimeoutException:
        raise
    except Exception as error:  # anything: it may be damaged or forged
        job.log.warning(
            "Job %s: begins its loops at the start: its cursor cannot be read: %s",
            job.id,
            texts.describe_error(error),
        )
        return {}


def _read_loop(kind: Any, cursor: Any, done: Any, is_over: Any) -> Loop:
    return Loop(str(kind), cursor, int(check_number("done", done)), is_over is True)


def _progress_text(found: Progress) -> str:
    return json.dumps([found.done, found.total, found.note, found.when.timestamp()])


def read_progress(stored: Any) -> Progress | None:
    """The progress in a job's hash; None if there is none that can be read."""
    if not isinstance(stored, bytes) or not 0 < len(stored) <= PROGRESS_MAX_BYTES:
        return None
    try:
        done, total, note, when = json.loads(stored)
        if total is not None:
            total = check_number("total", total)
        if not isinstance(note, str) or not math.isfinite(when):
            return None
        return Progress(check_number("done", done), total, _cut(note), utc(when))
    except (ValueError, TypeError, OverflowError, OSError, RecursionError):
        return None


def ended_fields(job: Any) -> Iterable[str]:
    """The fields that a run removes when it has ended well: the next repeat starts at the beginning."""
    if job.repeats_left:
        return (CURSORS, PROGRESS_FIELD)
    return (CURSORS,)
