"""RQ's scheduler with a short lock and an atomic promotion."""

from __future__ import annotations

import os
from typing import Any

import redis
from rq.scheduler import RQScheduler
from rq.scripts import acquire_or_refresh_lock
from rq.utils import now

from rqjobs import ledger, processes
from rqjobs.queues import Queue

LOCK_TTL = 5  # seconds; RQ's 61 leave the queues without a scheduler for that long after a kill -9


class Scheduler(RQScheduler):
    """Moves due jobs into their queues, as one process beside the worker that was started `--with-scheduler`.

    Any number may run: RQ's own lock picks one per queue, another takes over within `LOCK_TTL` seconds when it dies,
    and should two ever believe that they hold it, no job is enqueued twice (`lua/promote.lua`).

    Overrides: `acquire_locks` and `heartbeat` (the short lock, and locks of other queues are tried at each beat, not
    every ten minutes), `enqueue_scheduled_jobs` (the script), `work` (ends with its worker; outlives Redis errors).
    """

    def acquire_locks(self, auto_start: bool = False) -> set[str]:
        before = self._acquired_locks
        self._acquired_locks = {
            name for name in self._queue_names
            if acquire_or_refresh_lock(self.connection, self.get_locking_key(name), self.name, LOCK_TTL)
            in ("acquired", "refreshed")
        }
        if self._acquired_locks - before:
            self.log.info("Scheduler %s: now serves %s", self.name, ", ".join(sorted(self._acquired_locks)))
        if self._acquired_locks and auto_start and not (self._process and self._process.is_alive()):
            self.start()
        return self._acquired_locks

    def heartbeat(self) -> None:
        self.last_heartbeat = now()
        self.save()
        self.acquire_locks()

    def enqueue_scheduled_jobs(self) -> None:
        self._status = self.Status.WORKING
        for name in self._acquired_locks:
            try:
                ledger.promote(self.connection, name, Queue.DEFAULT_TIMEOUT)
            except redis.ResponseError as error:  # one queue must not stop the others
                self.log.error("Scheduler %s: the scheduled jobs of %s: %s", self.name, name, error)
        self._status = self.Status.STARTED

    def start(self) -> Any:
        self._parent = os.getpid()
        return super().start()

    def work(self) -> None:
        processes.die_with_parent()
        self._install_signal_handlers()
        failing = False
        while not self._stop_requested and os.getppid() == self._parent:
            try:
                if not self.pid or failing:
                    self.register_birth()
                self.heartbeat()
                self.enqueue_scheduled_jobs()
                failing = False
            except redis.RedisError as error:
                if not failing:
                    self.log.error("Scheduler %s: waits for Redis: %s", self.name, error)
                failing = True
            processes.pause(self.interval, lambda: self._stop_requested)
        try:
            self.stop()
        except redis.RedisError as error:
            self.log.error("Scheduler %s: could not release its locks, they end by themselves: %s", self.name, error)
