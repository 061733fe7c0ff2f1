"""Filters of jobs: a choice by state, queue, function, text and so on, and its texts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Any

from rqjobs import call_options
from rqjobs.times import UNIT_LETTER_SECONDS

FILTER_MAX_CHARACTERS = 200
DURATION = re.compile(r"([0-9]{1,6})([wdhms])", re.ASCII)


class FilterError(ValueError):
    """A filter, or a cursor, is wrong. `field` is the name of the field of `Filter`, or "after"."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class State(str, Enum):
    """Where a job is. RQ keeps stopped jobs among the failed ones; here they are apart."""

    QUEUED = "queued"
    RUNNING = "running"
    SCHEDULED = "scheduled"
    DEFERRED = "deferred"
    FAILED = "failed"
    FINISHED = "finished"
    CANCELED = "canceled"
    STOPPED = "stopped"


STATE_OF_STATUS = {"started": State.RUNNING, **{state.value: state for state in State}}


# Filters


@dataclass(frozen=True)
class Filter:
    """A choice of jobs; None is any.

    `function`: `module.function`, or the name alone. `text`: in the id, the description, or the call
    with its arguments as it is shown; a random id counts from its beginning, of four characters or
    more. Upper and lower case of the letters a to z count as the same.
    `error`: in the class of the exception, or the reason, of a failed job. `since`, `until`: of the
    last date of the job, a datetime or a timedelta before now. `schedule`: the schedule that made
    it. `group`: the id of a group of failed jobs.
    """

    state: State | None = None
    queue: str | None = None
    function: str | None = None
    job_id: str | None = None
    text: str | None = None
    error: str | None = None
    since: datetime | timedelta | None = None
    until: datetime | timedelta | None = None
    schedule: str | None = None
    group: str | None = None

    @property
    def looks_inside(self) -> bool:
        """Whether each job must be read to tell whether the filter takes it."""
        return replace(self, state=None, queue=None) != Filter()

    @property
    def states(self) -> list[State]:
        """The states in which its jobs can be."""
        if self.error or self.group:
            return [State.FAILED] if self.state in (None, State.FAILED) else []
        return [self.state] if self.state else list(State)

    def params(self) -> dict[str, str]:
        """The filter as texts, for an address or for a job's arguments; `read_filter` reads them."""
        texts = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, State):
                texts[field.name] = value.value
            elif isinstance(value, timedelta):
                texts[field.name] = _duration_text(value)
            elif isinstance(value, datetime):
                texts[field.name] = value.astimezone(timezone.utc).isoformat()
            elif value is not None:
                texts[field.name] = value
        return texts


FILTER_NAMES = tuple(field.name for field in fields(Filter))


def read_filter(params: Mapping[str, Any]) -> Filter:
    """The filter in texts from outside: a form, an address, JSON. Empty ones are left out.

    Names that are not fields of `Filter` are ignored.

    Raises:
        FilterError: a text is not a value of its field.
    """
    given: dict[str, Any] = {}
    for field in fields(Filter):
        text = params.get(field.name)
        if text is None or text == "":
            continue
        if not isinstance(text, str):
            raise FilterError(field.name, f"{field.name} must be a text")
        text = text.strip()
        if text:
            given[field.name] = _read_field(field.name, text)
    return Filter(**given)


def _read_field(name: str, text: str) -> Any:
    if name == "state":
        try:
            return State(text)
        except ValueError:
            known = ", ".join(state.value for state in State)
            raise FilterError(name, f"{text!r:.80} is not a state; these are: {known}") from None
    if name in ("since", "until"):
        return _read_time(name, text)
    limit = call_options.JOB_ID_MAX_CHARACTERS if name == "job_id" else FILTER_MAX_CHARACTERS
    if len(text) > limit:
        raise FilterError(name, f"{name} is longer than {limit} characters")
    if not text.isprintable() or any("\ud800" <= character <= "\udfff" for character in text):
        raise FilterError(name, f"{name} has a character that cannot be printed")
    return text


def _read_time(name: str, text: str) -> datetime | timedelta:
    if duration := DURATION.fullmatch(text):
        return timedelta(seconds=int(duration[1]) * UNIT_LETTER_SECONDS[duration[2]])
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise FilterError(
            name, f"{text!r:.80} is not a time; write 2h, 7d, or 2030-01-31T06:00 (UTC)"
        ) from None


def _duration_text(duration: timedelta) -> str:
    return f"{math.ceil(duration.total_seconds())}s"
