"""The inputs that are not arguments of the function: queue, time, retries and repeats."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

from rq import Repeat, Retry

from rqjobs import catalog, config
from rqjobs.conversion import parse_datetime, parse_float, parse_int
from rqjobs.times import UNIT_SECONDS

DURATION_UNITS = {f"{unit}s": UNIT_SECONDS[unit] for unit in ("second", "minute", "hour", "day")}
MAX_DELAY_SECONDS = 10 * 365 * 86400
MAX_INTERVAL_SECONDS = 30 * 86400  # between two retries or repeats
MAX_RETRIES = 100
MAX_REPEATS = 10_000
MAX_OFFSET_MINUTES = 14 * 60  # of a time zone
PAST_TOLERANCE_SECONDS = 60  # the browser's minute may have passed when the form arrives
DATE_ERROR = "Give a date and a time, such as 2030-12-31T12:00."


def queue_choices() -> list[str]:
    """The queues of a form: the configured ones, and those that functions name in `@job`."""
    configured = config.current().queues
    named = {str(catalog.options(function).get("queue") or "") for _, function in catalog.current()}
    return [*configured, *sorted(named - {""} - set(configured))]


def time_inputs() -> dict[str, Any]:
    """The values for the inputs of a time: the units, and the time zone of the server."""
    return {"units": DURATION_UNITS, "zone": datetime.now().astimezone().tzname()}


class FormReader:
    """Reads inputs. `errors` collects a message for each wrong input, by its name."""

    def __init__(self, form: Mapping[str, str]):
        self.form = form
        self.errors: dict[str, str] = {}

    def text(self, name: str) -> str:
        return self.form.get(name, "").strip()

    def whole_number(self, name: str, low: int, high: int) -> int | None:
        """The whole number in an input; None if the input is empty or wrong."""
        return self._number(name, low, high, parse_int, "whole number", "")

    def number(self, name: str, low: int, high: int, unit: str) -> float | None:
        """The number in an input; None if the input is empty or wrong."""
        return self._number(name, low, high, parse_float, "number", unit)

    def _number(
        self, name: str, low: int, high: int, parse: Callable[[str], Any], what: str, unit: str
    ) -> Any:
        text = self.text(name)
        if not text:
            return None
        try:
            value = parse(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            limits = " ".join(filter(None, [f"from {low:,} to {high:,}", unit]))
            self.errors[name] = f"Give a {what} {limits}."
            return None
        return value

    def seconds(self, name: str, high: int) -> int | None:
        """The whole number of seconds in an input; None if the input is empty or wrong."""
        return self._number(name, 0, high, parse_int, "whole number", "seconds")

    def duration(self, name: str, unit_name: str) -> timedelta | None:
        """A number of a unit of time; None if the input is empty or wrong."""
        unit = self.form.get(unit_name, "seconds")
        if unit not in DURATION_UNITS:
            unit = "seconds"
        number = self.number(name, 0, MAX_DELAY_SECONDS // DURATION_UNITS[unit], unit)
        if number is None:
            return None
        return timedelta(seconds=number * DURATION_UNITS[unit])

    def moment(self, name: str, offset_name: str) -> datetime | None:
        """A date and time; None if the input is wrong.

        Its time zone is the browser's, by the offset in minutes that the browser sends; without an
        offset it is the server's.
        """
        offset = self.whole_number(offset_name, -MAX_OFFSET_MINUTES, MAX_OFFSET_MINUTES)
        try:
            moment = parse_datetime(self.text(name))
            if moment.tzinfo is not None:
                return moment
            if offset is None:
                return moment.astimezone()
            return moment.replace(tzinfo=timezone(timedelta(minutes=offset)))
        except (ValueError, OverflowError):
            self.errors[name] = DATE_ERROR
            return None

    def due(self) -> timedelta | datetime | None:
        """The time in `when`, `delay`, `unit` and `at`; None for now, or if it is wrong."""
        when = self.form.get("when", "now")
        if when == "in":
            delay = self.duration("delay", "unit")
            if delay is None:
                self.errors.setdefault("delay", "Give the delay.")
            return delay
        if when == "at":
            return self._due_at()
        if when != "now":
            self.errors["when"] = "Choose when to run the job."
        return None

    def _due_at(self) -> datetime | None:
        due = self.moment("at", "offset")
        if due is None:
            return None
        ahead = (due - datetime.now(timezone.utc)).total_seconds()
        if ahead < -PAST_TOLERANCE_SECONDS:
            self.errors["at"] = "This time is in the past."
        elif ahead > MAX_DELAY_SECONDS:
            self.errors["at"] = "This time is more than 10 years away."
        return due

    def queue(self) -> str:
        if self.form.get("queue") not in queue_choices():
            self.errors["queue"] = "There is no such queue here."
        return self.form.get("queue", "")


@dataclass(frozen=True)
class EnqueueOptions:
    """The options of one enqueue. `due` is None for now; `job_options` are retry and repeat."""

    queue: str
    job_id: str
    due: datetime | None
    job_options: dict[str, Any]


def read_options(form: FormReader) -> EnqueueOptions:
    """The options in the enqueue form; wrong inputs are in `form.errors`."""
    job_options: dict[str, Any] = {}
    retries = form.whole_number("retries", 0, MAX_RETRIES)
    if retries is not None:
        # False turns off the retries that the function's `@job` asks for.
        job_options["retry"] = False
        if retries:
            interval = form.seconds("retry_interval", MAX_INTERVAL_SECONDS)
            job_options["retry"] = Retry(retries, interval or 0)
    repeats = form.whole_number("repeats", 0, MAX_REPEATS)
    if repeats is not None:
        job_options["repeat"] = False
        if repeats:
            interval = form.seconds("repeat_interval", MAX_INTERVAL_SECONDS)
            job_options["repeat"] = Repeat(repeats, interval or 0)
    due = form.due()
    if isinstance(due, timedelta):
        due = datetime.now(timezone.utc) + due
    job_id = form.form.get("job_id", "")
    if not re.fullmatch(r"[0-9a-f-]{36}", job_id):
        job_id = str(uuid4())
    return EnqueueOptions(form.queue(), job_id, due, job_options)
