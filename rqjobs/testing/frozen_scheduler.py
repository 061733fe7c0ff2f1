"""The fixture `frozen_scheduler`: delayed jobs and schedules by a clock that the test moves.

All times of jobs come from Redis's clock: from the command TIME, and from TIME in the scripts. The
clients of this fixture send the test's time in its place. Nothing else of Redis or rqjobs changes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import redis

from rqjobs import connection, storing
from rqjobs.broker import keys, leases, recovery, scripts, transitions
from rqjobs.broker.enqueueing import Placement
from rqjobs.broker.places import queue_names
from rqjobs.queues import Queue
from rqjobs.schedules import declared, history, ticker
from rqjobs.testing.fixtures import raise_first
from rqjobs.testing.job_log import JobLog
from rqjobs.testing.job_runner import JobRunner
from rqjobs.testing.private_redis import PrivateRedis, Use
from rqjobs.times import MAX_TIMESTAMP

MAX_MOMENTS = 20_000  # at which something is due, of one move
DECLARER = "frozen-scheduler"  # the name of the worker that declares the code's schedules
TIME_CALL = "redis.call('TIME')"
MICROSECONDS = 1_000_000


class FrozenClock:
    """The time of a test, in Unix microseconds. It stands still unless the test moves it."""

    def __init__(self) -> None:
        self.set(datetime.now(timezone.utc).timestamp())
        self.was_read = False

    def set(self, seconds: float) -> None:
        """Set the time; rounded up, so that what is due at `seconds` is due."""
        self.microseconds = math.ceil(seconds * MICROSECONDS)

    @property
    def seconds(self) -> float:
        """The Unix time."""
        return self.microseconds / MICROSECONDS

    def as_redis(self) -> str:
        """The reply of TIME, as a table in Lua."""
        seconds, rest = divmod(self.microseconds, MICROSECONDS)
        return f"{{'{seconds}','{rest}'}}"


class FrozenPacker(connection.SurrogatePacker):
    """Packs commands so that Redis takes the test's time for its own."""

    def __init__(self, clock: FrozenClock):
        self._clock = clock
        self._sources = {
            script.sha: script.source
            for script in vars(scripts).values()
            if isinstance(script, scripts.Script) and TIME_CALL in script.source
        }

    def pack(self, *args: Any) -> Any:
        """Pack a command. TIME, and a script that calls it, become a script with the test's time."""
        name = str(args[0]).upper()
        if name == "TIME":
            self._clock.was_read = True
            return super().pack("EVAL", f"return {self._clock.as_redis()}", 0)
        if name == "EVALSHA" and args[1] in self._sources:
            return self._pack_script(self._sources[args[1]], args[2:])
        if name == "EVAL" and TIME_CALL in str(args[1]):
            return self._pack_script(args[1], args[2:])
        return super().pack(*args)

    def _pack_script(self, source: str, rest: tuple[Any, ...]) -> Any:
        self._clock.was_read = True
        frozen = source.replace(TIME_CALL, f"({self._clock.as_redis()})")
        return super().pack("EVAL", frozen, *rest)


class FrozenScheduler(JobLog):
    """The fixture `frozen_scheduler`.

    The clock begins at the first `move_to`, or else, if the test enqueues before, at the present
    time.
    """

    def __init__(self) -> None:
        self._clock = FrozenClock()
        super().__init__(lambda: self._clock.seconds, lambda: True)
        self._has_begun = False
        self._runner = JobRunner(connection.client)

    @contextlib.contextmanager
    def active(self, server: PrivateRedis) -> Iterator[FrozenScheduler]:
        """Let the jobs of the block go to the private Redis, by the test's clock."""
        use = Use(server, packer=FrozenPacker(self._clock))
        with server.in_use(use, at_once=True), storing.replaced_by(self._store):
            yield self

    def _store(self, client: redis.Redis, placements: list[Placement], jobs: list[Any]) -> None:
        storing.store_in_redis(connection.client(), placements, jobs)
        self.record(placements, jobs)

    @property
    def now(self) -> datetime:
        """The time of the test's clock, in UTC."""
        return datetime.fromtimestamp(self._clock.seconds, timezone.utc)

    def move_to(self, moment: datetime, work: bool = False) -> None:
        """Move the clock to `moment`, and enqueue all that is due until then, in order.

        The first `move_to` of a test only sets the clock, unless jobs or schedules exist already.

        Args:
            moment: without a time zone it is in this machine's time zone.
            work: run the waiting jobs in this process at each moment at which something is due.

        Raises:
            TypeError: `moment` is not a datetime.
            ValueError: the clock is later already, or too much is due until then.
            Exception: what a job has raised. The clock stands at that moment.
        """
        if not isinstance(moment, datetime):
            raise TypeError(
                f"move_to takes a datetime, not {moment!r}; for a duration there is advance"
            )
        target = moment.timestamp()
        if not self._has_begun and not self._clock.was_read:
            self._clock.set(target)
        if target < self._clock.seconds - 1 / MICROSECONDS:
            raise ValueError(
                f"the clock stands at {self.now:%Y-%m-%d %H:%M:%S} UTC, and moves forward only; for "
                f"an earlier time call move_to before anything is enqueued"
            )
        self._move(target, work)

    def advance(
        self, duration: timedelta | float | None = None, /, work: bool = False, **parts: float
    ) -> None:
        """Move the clock by a duration, and enqueue all that is due until then, in order.

        Args:
            duration: a timedelta, or a number of seconds.
            work: as for `move_to`.
            parts: instead of `duration`, the arguments of a timedelta: `advance(hours=3)`.

        Raises:
            TypeError, ValueError: the duration is not one, or is negative; or too much is due.
            Exception: what a job has raised. The clock stands at that moment.
        """
        if (duration is None) == (not parts):
            raise TypeError("advance takes a duration: advance(hours=3), or a timedelta or seconds")
        if parts:
            duration = timedelta(**parts)
        elif not isinstance(duration, timedelta):
            if isinstance(duration, bool) or not isinstance(duration, int | float):
                raise TypeError(f"{duration!r} is neither seconds nor a timedelta")
            duration = timedelta(seconds=duration)
        assert isinstance(duration, timedelta)
        if duration < timedelta(0):
            raise ValueError(f"the clock moves forward only, not by {duration}")
        self._move(self._clock.seconds + duration.total_seconds(), work)

    def work(self) -> int:
        """Run the waiting jobs in this process, until none waits; returns the number of runs.

        Raises:
            Exception: what a job has raised, after all have run.
        """
        runs = self._runner.run_all()
        raise_first(self._runner)
        return runs

    def _move(self, target: float, work: bool) -> None:
        if target > MAX_TIMESTAMP:
            raise ValueError("the clock ends before the year 9999")
        if not self._has_begun:
            self._begin()
        for _ in range(MAX_MOMENTS):
            self._enqueue_due()
            if work:
                self.work()
            due = self._next_due()
            if due is None or due > target:
                break
            self._clock.set(due)
        else:
            raise ValueError(
                f"something is due at more than {MAX_MOMENTS:,} moments until then; the clock "
                f"stands at {self.now:%Y-%m-%d %H:%M:%S} UTC; move it in smaller steps"
            )
        self._clock.set(max(target, self._clock.seconds))

    def _begin(self) -> None:
        """Store the schedules that the code declares, as the first worker does at its start."""
        self._has_begun = True
        client = connection.client()
        leases.renew_lease(client, DECLARER, {})
        declaration = declared.declaration_json(client)
        declared.publish_declarations(client, DECLARER, declaration)
        for _ in declared.Declarations(client).reconcile():
            pass

    def _enqueue_due(self) -> None:
        """Do what the scheduler does, once, for all that is due now."""
        client = connection.client()
        for queue in queue_names(client):
            transitions.promote(client, queue, Queue.DEFAULT_TIMEOUT)
        recovery.wake_due(client)
        while (due := ticker.run_due(client)) is not None and due <= self._clock.seconds:
            pass
        history.note_outcomes(client)

    def _next_due(self) -> float | None:
        """The next time after now at which something is due, in Unix seconds."""
        client = connection.client()
        sets = [keys.SCHEDULES, keys.RATE_DUE, *map(keys.scheduled, queue_names(client))]
        after = f"({self._clock.seconds!r}"
        commands = [
            ("ZRANGEBYSCORE", key, after, "(+inf", "WITHSCORES", "LIMIT", 0, 1) for key in sets
        ]
        found = [reply for reply in scripts.read_together(client, commands) if reply]
        due_times = [_score(reply) for reply in found if not isinstance(reply, Exception)]
        return min(due_times, default=None)


def _score(reply: Any) -> float:
    """The score of a reply with one member: a pair in RESP3, a flat list in RESP2."""
    if isinstance(reply[0], list | tuple):
        return float(reply[0][1])
    return float(reply[1])
