"""The jobs that a test has enqueued, and assertions about them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import redis
from rq.exceptions import NoSuchJobError

from rqjobs import catalog, connection
from rqjobs.broker import enqueueing, keys
from rqjobs.broker.keys import decode
from rqjobs.jobs import Job, signature

SHOWN_MAX_JOBS = 20  # that the message of a failed assertion lists
TIME_TOLERANCE_SECONDS = 1.0  # between a due time and the one that a test expects
JOB_ID_PATTERN = re.compile(r"[\w-]+")  # RQ's other keys of a job have colons


@dataclass(frozen=True)
class Entry:
    """One job. `due` and `enqueued` are Unix seconds; `due` is None if the job is not delayed."""

    job: Job
    queue: str
    due: float | None
    enqueued: float

    def __str__(self) -> str:
        text = f"{_call_text(self.job)} in {self.queue}"
        if self.due is None:
            return text
        moment = datetime.fromtimestamp(self.due, timezone.utc)
        return f"{text}, due in {self.due - self.enqueued:.0f} s, at {moment:%Y-%m-%d %H:%M:%S} UTC"


@dataclass(frozen=True)
class Expected:
    """A job that a test expects. Fields that are None are not compared."""

    name: str
    arguments: dict[str, Any] | None
    call: str
    queue: str | None
    delay: float | None  # seconds
    due: float | None  # Unix seconds

    def matches(self, entry: Entry) -> bool:
        """Whether the job is the expected one."""
        if entry.job.func_name != self.name:
            return False
        if self.queue is not None and entry.queue != self.queue:
            return False
        if self.delay is not None and not self._has_delay(entry):
            return False
        if self.due is not None and not _is_near(entry.due, self.due):
            return False
        return self.arguments is None or self._has_arguments(entry.job)

    def _has_delay(self, entry: Entry) -> bool:
        if entry.due is None:
            return self.delay == 0
        return _is_near(entry.due - entry.enqueued, self.delay)

    def _has_arguments(self, job: Job) -> bool:
        function = catalog.current().lookup(self.name)
        try:
            return bind(function, tuple(job.args), job.kwargs) == self.arguments
        except TypeError:  # in a flow, the result of another job is an argument too
            return False

    def __str__(self) -> str:
        text = self.call
        if self.queue is not None:
            text += f" in {self.queue}"
        if self.delay is not None:
            text += f" with a delay of {self.delay:g} s"
        if self.due is not None:
            moment = datetime.fromtimestamp(self.due, timezone.utc)
            text += f" at {moment:%Y-%m-%d %H:%M:%S} UTC"
        return text


class JobLog:
    """The jobs that a test has enqueued, in their order.

    `clock` gives the Unix time at which a job is enqueued. `reads_redis` says whether the test's
    Redis may have jobs that were not enqueued through this process: of schedules, for example.
    """

    def __init__(self, clock: Callable[[], float], reads_redis: Callable[[], bool]):
        self._get_time = clock
        self._reads_redis = reads_redis
        self._entries: dict[str, Entry] = {}
        self._forgotten: set[str] = set()

    def record(
        self,
        placements: Iterable[enqueueing.Placement],
        jobs: Iterable[Job],
        enqueued: float | None = None,
    ) -> None:
        """Keep jobs that were enqueued. One that is not stored, because of its key, is left out.

        `enqueued`: Unix seconds; None is now.
        """
        if enqueued is None:
            enqueued = self._get_time()
        for placement, job in zip(placements, jobs, strict=True):
            if job.existing is not None:
                continue
            due = None
            if placement.place[:1].isdigit():
                due = float(placement.place)
            self._entries.pop(job.id, None)  # an id has one life
            self._forgotten.discard(job.id)
            self._entries[job.id] = Entry(job, placement.queue, due, enqueued)

    @property
    def jobs(self) -> list[Job]:
        """The jobs that were enqueued, in their order; delayed ones too."""
        return [entry.job for entry in self._all()]

    def clear(self) -> None:
        """Forget the jobs so far. They stay where they are."""
        self._forgotten.update(entry.job.id for entry in self._all())
        self._entries.clear()

    def assert_enqueued(
        self,
        function: Any,
        /,
        *args: Any,
        queue: str | None = None,
        count: int | None = None,
        delay: timedelta | float | None = None,
        at: datetime | None = None,
        **kwargs: Any,
    ) -> Job:
        """Assert that a call was enqueued; returns its job, the first of several.

        Without arguments any call of `function` counts. `args=(…), kwargs={…}` gives the arguments
        apart, also if there are none.

        Args:
            function: a job function, or its "module.name".
            queue: the name of its queue.
            count: the exact number of such jobs; None is one or more.
            delay: of `enqueue_in`, in seconds or as a timedelta, to the second; 0 for none.
            at: of `enqueue_at`, to the second.

        Raises:
            AssertionError: there is no such job, or another number of them. The message lists the
                jobs that were enqueued.
            NotAJob, TypeError, ValueError: the assertion itself is wrong.
        """
        __tracebackhide__ = True
        if count is not None and (
            isinstance(count, bool) or not isinstance(count, int) or count < 1
        ):
            raise ValueError(
                f"count={count!r} is not a number of jobs from 1; for none there is assert_not_enqueued"
            )
        expected = expect(function, args, kwargs, queue, delay, at)
        entries = self._all()
        found = [entry for entry in entries if expected.matches(entry)]
        if not found or count not in (None, len(found)):
            times = "not enqueued"
            if found:
                times = f"enqueued {_times(len(found))}, not {_times(count or 1)}"
            raise AssertionError(f"{expected} was {times}. {_listing(entries)}")
        return found[0].job

    def assert_not_enqueued(
        self,
        function: Any = None,
        /,
        *args: Any,
        queue: str | None = None,
        delay: timedelta | float | None = None,
        at: datetime | None = None,
        **kwargs: Any,
    ) -> None:
        """Assert that no such call was enqueued; without a function, no job at all.

        Raises:
            AssertionError: there is such a job. The message lists the jobs that were enqueued.
            NotAJob, TypeError, ValueError: the assertion itself is wrong.
        """
        __tracebackhide__ = True
        entries = self._all()
        if function is None:
            if args or kwargs or (queue, delay, at) != (None, None, None):
                raise TypeError("assert_not_enqueued takes the function first")
            if entries:
                raise AssertionError(f"a job was enqueued. {_listing(entries)}")
            return
        expected = expect(function, args, kwargs, queue, delay, at)
        found = [entry for entry in entries if expected.matches(entry)]
        if found:
            raise AssertionError(
                f"{expected} was enqueued {_times(len(found))}. {_listing(entries)}"
            )

    def _all(self) -> list[Entry]:
        entries = list(self._entries.values())
        if self._reads_redis():
            entries += self._find_others(connection.client())
        return entries

    def _find_others(self, client: redis.Redis) -> list[Entry]:
        """The jobs in Redis that were not recorded: of schedules, callbacks and RQ's own code."""
        ids = {
            job_id
            for key in client.scan_iter(match=f"{keys.JOB_PREFIX}*", _type="hash", count=1000)
            if JOB_ID_PATTERN.fullmatch(job_id := decode(key).removeprefix(keys.JOB_PREFIX))
        }
        found = []
        for job_id in ids - self._entries.keys() - self._forgotten:
            try:
                job: Any = Job.fetch(job_id, connection=client)
            except NoSuchJobError:  # it has expired since
                continue
            due: Any = client.zscore(keys.scheduled(job.origin), job_id)
            enqueued = job.created_at.timestamp()
            found.append(Entry(job, job.origin, due, enqueued))
        return sorted(found, key=lambda entry: entry.enqueued)


def expect(
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    queue: str | None = None,
    delay: timedelta | float | None = None,
    at: datetime | None = None,
) -> Expected:
    """The expectation of an assertion.

    Raises:
        NotAJob, TypeError, ValueError: it cannot be one.
    """
    target = catalog.current().check(function)
    name = catalog.name_of(target)
    given = bool(args or kwargs)
    if kwargs.keys() & {"args", "kwargs"} and not args and kwargs.keys() <= {"args", "kwargs"}:
        args, kwargs = tuple(kwargs.get("args") or ()), dict(kwargs.get("kwargs") or {})
    arguments = None
    call = f"{name}(…)"
    if given:
        arguments = bind(target, args, kwargs)
        shown = [*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())]
        call = f"{name}({', '.join(shown)})"
    if queue is not None and not isinstance(queue, str):
        raise TypeError(f"queue={queue!r} is not the name of a queue")
    return Expected(name, arguments, call, queue, _seconds(delay), _timestamp(at))


def bind(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their parameters' names, defaults included.

    Raises:
        TypeError: they do not fit the function.
    """
    try:
        bound = signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{catalog.name_of(function)}{signature(function)}: {error}") from None
    bound.apply_defaults()
    return bound.arguments


def _seconds(delay: timedelta | float | None) -> float | None:
    if delay is None:
        return None
    if isinstance(delay, timedelta):
        return delay.total_seconds()
    if isinstance(delay, bool) or not isinstance(delay, int | float):
        raise TypeError(f"delay={delay!r} is neither seconds nor a timedelta")
    return float(delay)


def _timestamp(at: datetime | None) -> float | None:
    if at is None:
        return None
    if not isinstance(at, datetime):
        raise TypeError(f"at={at!r} is not a datetime; for a delay there is delay=")
    return at.timestamp()


def _is_near(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return False
    return abs(one - other) <= TIME_TOLERANCE_SECONDS


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _call_text(job: Job) -> str:
    try:
        shown = [*map(repr, job.args), *(f"{key}={value!r}" for key, value in job.kwargs.items())]
        return f"{job.func_name}({', '.join(shown)})"
    except Exception:  # its data cannot be read
        return f"the job {job.id}"


def _listing(entries: list[Entry]) -> str:
    if not entries:
        return "Nothing was enqueued."
    lines = [f"\n  {entry}" for entry in entries[:SHOWN_MAX_JOBS]]
    if len(entries) > SHOWN_MAX_JOBS:
        lines.append(f"\n  and {len(entries) - SHOWN_MAX_JOBS} more")
    return f"Enqueued were:{''.join(lines)}"
