"""The scheduler: moves due jobs into their queues, and runs the schedules.

It is RQ's scheduler process, with three differences. It sleeps until the next job is due instead of
a second at a time. Its locks are short, so another scheduler takes over within five seconds. Its
moves are atomic scripts, so two schedulers with the same lock enqueue no job twice.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import redis
from rq.scheduler import RQScheduler
from rq.scripts import release_lock
from rq.utils import now

from rqjobs import alerts, config, connection, outbox, processes
from rqjobs.broker import keys, recovery, scripts, transitions
from rqjobs.broker.enqueueing import SCHEDULER_POLL_SECONDS
from rqjobs.queues import Queue
from rqjobs.schedules import declared, history, ticker

# An idle worker tries the locks at each heartbeat. With this, a takeover needs less than five
# seconds.
LOCK_SECONDS = 2.0
FOREIGN_LOCK_MAX_SECONDS = 86_400  # the longest lock that a plain RQ scheduler may have
SCHEDULER_HEARTBEAT_SECONDS = 1.0  # seconds between two renewals of the locks
UPKEEP_SECONDS = 2.0  # seconds between two comparisons of declared schedules, and notes of outcomes
MIN_PAUSE_SECONDS = 0.005  # jobs that become due within this time are moved together
STEP_SECONDS = 0.01  # time for schedules, and for upkeep, before delayed jobs are checked again
OUTBOX_SECONDS = 30.0  # seconds that a worker in burst mode gives to the outbox
LOGGED_QUEUES = 20  # queues that one log line names


class Scheduler(RQScheduler):
    """The process of a worker that was started `--with-scheduler`. Any number may run.

    RQ's lock of a queue chooses the scheduler that moves its delayed jobs. Another lock chooses the
    one that runs the schedules. The methods that override RQ's give their reasons.
    """

    _parent_pid = 0
    _checked_at = -SCHEDULER_HEARTBEAT_SECONDS  # time of the last `ensure_running`
    _worker = ""  # the worker whose code declares schedules
    _declaration = ""
    _serves_schedules = False
    _pubsub: Any = None
    _may_subscribe = True
    _outbox: outbox.BackgroundMover | None = None
    _alerts: alerts.BackgroundAlerts | None = None

    # In the worker

    def declare(self, worker: str) -> None:
        """Publish the schedules that the code of `worker` declares.

        Raises:
            As `declared.declarations`.
        """
        self._worker = worker
        self._declaration = declared.declaration_json(self.connection)
        declared.publish_declarations(self.connection, worker, self._declaration)

    def ensure_running(self) -> None:
        """Start the scheduler's process if it is needed and does not run.

        The worker calls this at each heartbeat, and when the process has died.
        """
        is_alive = self._process is not None and self._process.is_alive()
        interval = SCHEDULER_HEARTBEAT_SECONDS / 2
        if self._process is not None and not is_alive:
            interval = SCHEDULER_HEARTBEAT_SECONDS / 10
        if time.monotonic() - self._checked_at < interval:
            return
        self._checked_at = time.monotonic()
        declared.publish_declarations(self.connection, self._worker, self._declaration, again=True)
        if not is_alive:
            self.acquire_locks(auto_start=True)

    def start(self) -> Any:
        """Override: note the parent, because the process ends with its worker."""
        self._parent_pid = os.getpid()
        return super().start()

    # In both processes

    def acquire_locks(self, auto_start: bool = False) -> set[str]:
        """Override: take and renew all locks in one round trip.

        RQ tries again only every ten minutes, and its locks last a minute.
        """
        before = self._acquired_locks
        queues = sorted(self._queue_names)
        lock_keys = [keys.SCHEDULES_LOCK, *map(keys.scheduler_lock, queues)]
        args = [self.name, int(LOCK_SECONDS * 1000), FOREIGN_LOCK_MAX_SECONDS * 1000]
        positions = scripts.TAKE_LOCKS.run(self.connection, lock_keys, args)
        self._serves_schedules = 1 in positions
        self._acquired_locks = {queues[position - 2] for position in positions if position > 1}
        if self._acquired_locks - before:
            self._log_queues()
        serves_any = self._serves_schedules or self._acquired_locks
        if serves_any and auto_start and not (self._process and self._process.is_alive()):
            self.start()
        return self._acquired_locks

    def _log_queues(self) -> None:
        queues = sorted(self._acquired_locks)
        names = ", ".join(queues[:LOGGED_QUEUES])
        if len(queues) > LOGGED_QUEUES:
            names += f" and {len(queues) - LOGGED_QUEUES} more"
        self.log.info("Scheduler %s: now serves %s", self.name, names)

    def release_locks(self) -> None:
        """Override: release the lock of the schedules too."""
        super().release_locks()
        release_lock(self.connection, keys.SCHEDULES_LOCK, self.name)
        self._serves_schedules = False

    def enqueue_scheduled_jobs(self) -> None:
        """Override: move due jobs, and run due schedules, once; for a worker in burst mode."""
        for queue in self._acquired_locks:
            transitions.promote(self.connection, queue, Queue.DEFAULT_TIMEOUT)
        if self._serves_schedules:
            recovery.wake_due(self.connection)
            ticker.run_due(self.connection)
            if outbox.is_used():
                self._move_outbox_once()

    def _move_outbox_once(self) -> None:
        """Move the rows of the outbox in a child, which is killed if the database hangs."""
        child = multiprocessing.get_context("fork").Process(target=_move_outbox, daemon=True)
        child.start()
        child.join(OUTBOX_SECONDS)
        if child.is_alive():
            self.log.error("outbox: the database has not answered for %.0f s", OUTBOX_SECONDS)
            child.kill()
            child.join()

    # In the scheduler's process

    def heartbeat(self) -> None:
        """Override: renew the locks by `acquire_locks`, which also takes those that are free."""
        self.last_heartbeat = now()
        self.save()
        self.acquire_locks()
        if self._outbox:
            self._outbox.check(self._serves_schedules)

    def work(self) -> None:
        """Override: sleep until something is due, end with the worker, and survive Redis errors."""
        processes.die_with_parent()
        self._signal_pipe = processes.SignalPipe()
        self._install_signal_handlers()
        is_failing = False
        while not self._stop_requested and os.getppid() == self._parent_pid:
            try:
                if not self.pid or is_failing:
                    self._begin()
                self._run_due()
                self._wait_for_event()
                is_failing = False
            except (redis.RedisError, OSError) as error:
                if not is_failing:
                    self.log.error("Scheduler %s: waiting for Redis: %s", self.name, error)
                is_failing = True
                processes.wait_until(SCHEDULER_POLL_SECONDS, lambda: self._stop_requested)
        try:
            self.stop()
        except redis.RedisError as error:
            self.log.error(
                "Scheduler %s: could not release its locks (%s); they will expire", self.name, error
            )

    def _begin(self) -> None:
        """Register, subscribe, and reset the state. Its times are of the monotonic clock."""
        self.register_birth()
        url = config.current().outbox_url
        if url and outbox.is_used() and self._outbox is None:
            self._outbox = outbox.BackgroundMover(url, self.connection)
        if config.current().alerts and self._alerts is None:
            self._alerts = alerts.BackgroundAlerts(self.connection, lambda: self._serves_schedules)
        self._subscribe()
        self._queue_due: dict[str, float] = {}  # when to check a queue
        self._schedules_due = 0.0  # when to check the schedules
        self._rates_due = 0.0  # when to wake jobs that wait for a rate
        self._heartbeat_due = 0.0
        self._upkeep_due = 0.0
        self._kept: dict[str, int] = {}  # queue -> number of due ids without a job
        self._time_offset = 0.0  # Redis's time less the monotonic time
        self._declarations = declared.Declarations(self.connection)
        self._upkeep: list[Iterator[None]] = []  # the unfinished parts of the upkeep

    def _subscribe(self) -> None:
        if self._pubsub:
            with contextlib.suppress(redis.RedisError, OSError):
                self._pubsub.close()
        if self._may_subscribe:
            self._pubsub = self.connection.pubsub(ignore_subscribe_messages=True)
            channels = map(keys.wakeup_channel, self._queue_names)
            self._pubsub.subscribe(
                keys.SCHEDULES_WAKEUP_CHANNEL, keys.RATE_WAKEUP_CHANNEL, *channels
            )
            if self._outbox:
                self._pubsub.subscribe(keys.OUTBOX_WAKEUP_CHANNEL)

    def _run_due(self) -> None:
        """Do what is due, in steps so short that nothing else is late."""
        self._status = self.Status.WORKING
        self._ran_at = time.monotonic()
        if self._ran_at >= self._heartbeat_due:
            self._heartbeat_due = self._ran_at + SCHEDULER_HEARTBEAT_SECONDS
            self.heartbeat()
            self._time_offset = scripts.redis_time(self.connection) - time.monotonic()
        runs_schedules = self._serves_schedules and self._schedules_due <= time.monotonic()
        if runs_schedules:
            self._schedules_due = time.monotonic() + SCHEDULER_POLL_SECONDS
        self._promote_due()
        if self._serves_schedules and self._rates_due <= time.monotonic():
            self._try("the jobs that wait for a rate", self._wake_due)
        if runs_schedules:
            self._try("the schedules", self._run_schedules)
        self._status = self.Status.STARTED

    def _promote_due(self) -> None:
        moment = time.monotonic()
        queues = [
            queue
            for queue in sorted(self._acquired_locks)
            if self._queue_due.get(queue, 0.0) <= moment
        ]
        if not queues:
            return
        for queue in queues:
            self._queue_due[queue] = moment + SCHEDULER_POLL_SECONDS
        redis_now, due_times = transitions.first_due(self.connection, queues)
        for queue, due in due_times.items():
            if due <= redis_now:
                self._try(f"the scheduled jobs of {queue}", partial(self._promote, queue))
            else:
                self._check_queue_at(queue, due)

    def _try(self, what: str, step: Callable[[], Any]) -> None:
        """Do a step. An error (of foreign data in Redis) is logged, and stops only this step."""
        try:
            step()
        except (redis.ConnectionError, redis.TimeoutError):
            raise
        except Exception as error:
            self.log.error("Scheduler %s: %s: %s: %s", self.name, what, type(error).__name__, error)

    def _promote(self, queue: str) -> None:
        kept = self._kept.get(queue, 0)
        step = transitions.promote_batch(
            self.connection, queue, Queue.DEFAULT_TIMEOUT, skip=kept, holder=self.name
        )
        if step.full:
            self._kept[queue] = kept + step.kept
            self._check_queue_at(queue, step.now)
            return
        self._kept[queue] = 0
        if step.next:
            self._check_queue_at(queue, step.next)

    def _wake_due(self) -> None:
        self._rates_due = time.monotonic() + SCHEDULER_POLL_SECONDS
        due = recovery.wake_due(self.connection).next_due
        if due is not None:
            self._check_rates_at(due)

    def _check_rates_at(self, due: float) -> None:
        self._rates_due = min(self._rates_due, due - self._time_offset)

    def _run_schedules(self) -> None:
        """Run due schedules, and then a part of the upkeep."""
        due = ticker.run_due(self.connection, STEP_SECONDS)
        if due is not None:
            self._check_schedules_at(due)
        if not self._upkeep and time.monotonic() >= self._upkeep_due:
            self._upkeep_due = time.monotonic() + UPKEEP_SECONDS
            self._upkeep = [
                self._declarations.reconcile(),
                history.note_outcomes_in_steps(self.connection),
            ]
        end = time.monotonic() + STEP_SECONDS
        while self._upkeep and time.monotonic() < end:
            self._try("the schedules", self._run_upkeep_step)
        if self._upkeep:
            self._schedules_due = 0.0

    def _run_upkeep_step(self) -> None:
        """Run the next step. A part that has failed ends at its next step."""
        try:
            next(self._upkeep[0])
        except StopIteration:
            self._upkeep.pop(0)

    def _check_queue_at(self, queue: str, due: float) -> None:
        """Check a queue at `due` (Unix seconds by Redis's clock), or as planned if that is earlier."""
        planned = self._queue_due.get(queue, 0.0)
        self._queue_due[queue] = min(planned, due - self._time_offset)

    def _check_schedules_at(self, due: float) -> None:
        self._schedules_due = min(self._schedules_due, due - self._time_offset)

    def _wait_for_event(self) -> None:
        """Sleep until something is due, a signal arrives, or a message announces a due time."""
        while not self._stop_requested:
            seconds = self._next_event() - time.monotonic()
            if seconds <= 0:
                break
            files = [self._signal_pipe.reader]
            channel = self._pubsub.connection if self._pubsub else None
            if channel and channel._sock:
                files.append(channel._sock)
            ready = processes.readable(files, min(seconds, SCHEDULER_POLL_SECONDS))
            if self._signal_pipe.reader in ready:
                self._signal_pipe.drain()
            self._read_messages()

    def _next_event(self) -> float:
        due_times = [self._heartbeat_due]
        due_times += [self._queue_due.get(queue, 0.0) for queue in self._acquired_locks]
        if self._serves_schedules:
            due_times += [self._schedules_due, self._rates_due]
        return max(min(due_times), self._ran_at + MIN_PAUSE_SECONDS)

    def _read_messages(self) -> None:
        try:
            while self._pubsub and (message := self._pubsub.get_message(timeout=0)):
                self._handle_message(keys.decode(message["channel"]), message["data"])
        except redis.exceptions.NoPermissionError:
            self._may_subscribe = False
            self._pubsub.close()
            self._pubsub = None
            connection.warn_channels_refused(
                self.log,
                f"Scheduler {self.name}",
                f"a job that is due in less than {SCHEDULER_POLL_SECONDS:.0f} s comes up to that "
                f"late",
            )

    def _handle_message(self, channel: str, data: Any) -> None:
        try:
            due = float(data)
        except (TypeError, ValueError):  # "declared", or foreign data
            due = 0.0
        is_time = due > 0
        if channel == keys.OUTBOX_WAKEUP_CHANNEL:
            if self._outbox:
                self._outbox.wake()
            return
        if channel == keys.RATE_WAKEUP_CHANNEL:
            self._check_rates_at(due)
            return
        if channel == keys.SCHEDULES_WAKEUP_CHANNEL:
            if is_time:
                self._check_schedules_at(due)
            else:
                self._schedules_due = 0.0
                self._upkeep_due = 0.0
            return
        queue = channel.removeprefix(keys.WAKEUP_PREFIX)
        if is_time:
            self._check_queue_at(queue, due)
        else:
            self._queue_due[queue] = 0.0


def _move_outbox() -> None:
    """In a child of its own: move the rows of the outbox, once."""
    url = config.current().outbox_url
    if url:
        client = connection.connect(connection.url())
        problem = outbox.move_or_explain(outbox.Mover(url, client))
        if problem:
            outbox.log.error("outbox: jobs wait in the database: %s", problem)
