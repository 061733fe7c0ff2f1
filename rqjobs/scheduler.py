"""The clock: RQ's scheduler process, but it sleeps until the next job is due, and is replaced within seconds."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import redis
from rq.scheduler import RQScheduler
from rq.scripts import release_lock
from rq.utils import now

from rqjobs import connection, processes
from rqjobs.broker import keys, scripts, transitions
from rqjobs.broker.transitions import SCHEDULER_POLL_SECONDS
from rqjobs.queues import Queue
from rqjobs.schedules import declared, history, ticker

LOCK_TTL = 2.0  # seconds; with an idle worker's heartbeat, after which it is tried, less than five. RQ's has 61
LONGEST_LOCK = 86_400  # seconds that a stock scheduler's may have
SCHEDULER_HEARTBEAT_SECONDS = 1.0  # seconds between two renewals of the locks
UPKEEP = 2.0  # seconds between two looks at what the code declares, and at how the jobs of schedules ended
SCHEDULES_QUEUE = ""  # among the names of queues: the schedules, which one of all clocks ticks
SCHEDULES_LOCK = keys.SCHEDULES_LOCK
PAUSE = 0.005  # seconds between two looks: what comes due meanwhile is moved together
STEP_SECONDS = 0.01  # of ticks, and of upkeep, between two looks


class Scheduler(RQScheduler):
    """Moves due jobs into their queues and ticks the schedules, as one process beside the worker that was started
    `--with-scheduler`.

    Any number may run: RQ's own lock picks one per queue, and a lock of ours the one that ticks. Another takes over
    within five seconds when it dies, and should two ever believe that they hold a lock, no job is enqueued twice
    (`lua/promote_due.lua`, `lua/run_schedule.lua`).

    Overrides: `acquire_locks`, `release_locks` and `heartbeat` (short locks, all tried at each beat, not every ten
    minutes), `enqueue_scheduled_jobs` (the scripts), `work` (sleeps until something is due; ends with its worker;
    outlives Redis errors).
    """

    _parent = 0
    _checked_at = -SCHEDULER_HEARTBEAT_SECONDS  # when the worker last looked after the clock
    _worker = ""  # whose code declares schedules
    _declared = ""
    _held: set[str] = set()  # noqa: RUF012  # the queues that this clock serves, and `TICKS` if it ticks
    _bell: Any = None
    _may_subscribe = True

    # In the worker

    def declare(self, worker: str) -> None:
        """Tell all clocks what schedules the code of `worker` declares. Raises as `ticker.declarations` does."""
        self._worker, self._declared = worker, declared.declaration_json(self.connection)
        declared.publish_declarations(self.connection, worker, self._declared)

    def ensure_running(self) -> None:
        """See to it that this worker's clock runs if one is needed; called at each heartbeat, and when it dies."""
        alive = self._process is not None and self._process.is_alive()
        died = self._process is not None and not alive
        if time.monotonic() - self._checked_at < SCHEDULER_HEARTBEAT_SECONDS / (10 if died else 2):
            return
        self._checked_at = time.monotonic()
        declared.publish_declarations(self.connection, self._worker, self._declared, again=True)
        if not alive:
            self.acquire_locks(auto_start=True)

    def start(self) -> Any:
        self._parent = os.getpid()
        return super().start()

    # In both

    def acquire_locks(self, auto_start: bool = False) -> set[str]:
        before, names = self._acquired_locks, [SCHEDULES_QUEUE, *sorted(self._queue_names)]
        script_keys = [SCHEDULES_LOCK, *(self.get_locking_key(name) for name in names[1:])]
        args = [self.name, int(LOCK_TTL * 1000), LONGEST_LOCK * 1000]
        held = scripts.TAKE_LOCKS.run(self.connection, script_keys, args)
        self._held = {names[index - 1] for index in held}
        self._acquired_locks = self._held - {SCHEDULES_QUEUE}
        if self._acquired_locks - before:
            some = sorted(self._acquired_locks)
            more = f" and {len(some) - 20} more" if len(some) > 20 else ""
            self.log.info("Scheduler %s: now serves %s%s", self.name, ", ".join(some[:20]), more)
        if self._held and auto_start and not (self._process and self._process.is_alive()):
            self.start()
        return self._acquired_locks

    def release_locks(self) -> None:
        super().release_locks()
        release_lock(self.connection, SCHEDULES_LOCK, self.name)
        self._held = set()

    def enqueue_scheduled_jobs(self) -> None:
        for name in self._acquired_locks:
            transitions.promote(self.connection, name, Queue.DEFAULT_TIMEOUT)
        if SCHEDULES_QUEUE in self._held:
            ticker.run_due(self.connection)

    # In the clock's own process

    def heartbeat(self) -> None:
        self.last_heartbeat = now()
        self.save()
        self.acquire_locks()

    def work(self) -> None:
        processes.die_with_parent()
        self._signal_pipe = processes.SignalPipe()
        self._install_signal_handlers()
        failing = False
        while not self._stop_requested and os.getppid() == self._parent:
            try:
                if not self.pid or failing:
                    self._begin()
                self._look()
                self._sleep()
                failing = False
            except (redis.RedisError, OSError) as error:
                if not failing:
                    self.log.error("Scheduler %s: waits for Redis: %s", self.name, error)
                failing = True
                processes.wait_until(SCHEDULER_POLL_SECONDS, lambda: self._stop_requested)
        try:
            self.stop()
        except redis.RedisError as error:
            self.log.error(
                "Scheduler %s: could not release its locks, they end by themselves: %s",
                self.name,
                error,
            )

    def _begin(self) -> None:
        self.register_birth()
        if self._bell:
            with contextlib.suppress(redis.RedisError, OSError):
                self._bell.close()
        if self._may_subscribe:
            self._bell = self.connection.pubsub(ignore_subscribe_messages=True)
            self._bell.subscribe(
                keys.SCHEDULES_WAKEUP_CHANNEL, *map(keys.wakeup_channel, self._queue_names)
            )
        self._next: dict[
            str, float
        ] = {}  # queue or `TICKS` -> when to look, in this machine's monotonic time
        self._kept: dict[
            str, int
        ] = {}  # queue -> due ids that were passed over, for there was no job yet
        self._ahead = 0.0  # Redis's clock less this machine's monotonic time
        self._next_beat = self._next_upkeep = 0.0
        self._declarations = declared.Declarations(self.connection)
        self._upkeep: list[Iterator[None]] = []  # what is left of it

    def _look(self) -> None:
        """Do what is due, in steps that hold up nobody."""
        self._status = self.Status.WORKING
        self._looked = time.monotonic()
        if self._looked >= self._next_beat:
            self._next_beat = self._looked + SCHEDULER_HEARTBEAT_SECONDS
            self.heartbeat()
            self._ahead = scripts.redis_time(self.connection) - time.monotonic()
        names = [
            name for name in sorted(self._held) if self._next.get(name, 0.0) <= time.monotonic()
        ]
        for name in names:
            self._next[name] = time.monotonic() + SCHEDULER_POLL_SECONDS
        queues = [name for name in names if name != SCHEDULES_QUEUE]
        now, dues = transitions.first_due(self.connection, queues) if queues else (0.0, {})
        for name, due in dues.items():
            if due <= now:
                self._try(f"the scheduled jobs of {name}", partial(self._promote, name))
            else:
                self._expect(name, due)
        if SCHEDULES_QUEUE in names:
            self._try("the schedules", self._tick)
        self._status = self.Status.STARTED

    def _try(self, what: str, step: Callable[[], Any]) -> None:
        """Do a step; what a stranger wrote into Redis stops only that."""
        try:
            step()
        except (redis.ConnectionError, redis.TimeoutError):
            raise
        except Exception as error:
            self.log.error("Scheduler %s: %s: %s: %s", self.name, what, type(error).__name__, error)

    def _promote(self, name: str) -> None:
        kept = self._kept.get(name, 0)
        some = transitions.promote_batch(
            self.connection, name, Queue.DEFAULT_TIMEOUT, skip=kept, holder=self.name
        )
        self._kept[name] = kept + some.kept if some.full else 0
        if some.full or some.next:
            self._expect(name, some.now if some.full else some.next or 0.0)

    def _tick(self) -> None:
        due = ticker.run_due(self.connection, STEP_SECONDS)
        if due is not None:
            self._expect(SCHEDULES_QUEUE, due)
        if not self._upkeep and time.monotonic() >= self._next_upkeep:
            self._next_upkeep = time.monotonic() + UPKEEP
            self._upkeep = [
                self._declarations.reconcile(),
                history.note_outcomes_in_steps(self.connection),
            ]
        until = time.monotonic() + STEP_SECONDS
        while self._upkeep and time.monotonic() < until:
            self._try("the schedules", self._step)
        if self._upkeep:
            self._next[SCHEDULES_QUEUE] = 0.0

    def _step(self) -> None:
        """The next step of upkeep; what has failed has come to its end."""
        if next(self._upkeep[0], SCHEDULES_QUEUE) is SCHEDULES_QUEUE:
            self._upkeep.pop(0)

    def _expect(self, name: str, due: float) -> None:
        """Look at a queue when `due` (Unix seconds, by Redis's clock) has come, or as planned if that is earlier."""
        self._next[name] = min(self._next.get(name, 0.0), due - self._ahead)

    def _sleep(self) -> None:
        """Sleep until something is due, or somebody says that something will be, or a signal comes."""
        while not self._stop_requested:
            line = self._bell.connection if self._bell else None
            sockets = [self._signal_pipe.reader, *([line._sock] if line and line._sock else [])]
            times = [self._next_beat, *(self._next.get(name, 0.0) for name in self._held)]
            left = max(min(times), self._looked + PAUSE) - time.monotonic()
            if left <= 0:
                break
            ready = processes.readable(sockets, min(left, SCHEDULER_POLL_SECONDS))
            if self._signal_pipe.reader in ready:
                self._signal_pipe.drain()
            self._read_channel()

    def _read_channel(self) -> None:
        try:
            while self._bell and (message := self._bell.get_message(timeout=0)):
                self._hear(
                    keys.decode(message["channel"]).removeprefix(keys.WAKEUP_PREFIX),
                    message["data"],
                )
        except redis.exceptions.NoPermissionError:
            self._may_subscribe = False
            self._bell.close()
            self._bell = None
            connection.warn_channels_refused(
                self.log,
                f"Scheduler {self.name}",
                f"a job that is due in less than {SCHEDULER_POLL_SECONDS:.0f} s comes up to that late",
            )

    def _hear(self, name: str, data: Any) -> None:
        if name == keys.SCHEDULES_WAKEUP_CHANNEL:
            name = SCHEDULES_QUEUE
        try:
            due = float(data)
        except (TypeError, ValueError):  # anybody who reaches Redis can publish anything
            due = 0.0
        if due > 0:
            self._expect(name, due)
        else:
            self._next[name] = self._next_upkeep = 0.0
