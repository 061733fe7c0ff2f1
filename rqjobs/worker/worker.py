"""The worker: the parent that RQ knows by name. It keeps the lease, sweeps, hears commands, and has a horse at work.

One thread, one select loop. `supervisor.py` watches over the horse, which (horse.py) claims, runs and settles.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from typing import Any

import redis
import rq
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.defaults import DEFAULT_LOGGING_DATE_FORMAT, DEFAULT_LOGGING_FORMAT
from rq.logutils import ColorizingStreamHandler
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from rq.utils import now, utcformat
from rq.worker import DequeueStrategy

from rqjobs import config, logs, processes, rq_patches
from rqjobs import connection as connections
from rqjobs.broker import leases, odd_keys, scripts, transitions
from rqjobs.broker import places as broker_places
from rqjobs.broker.keys import decode
from rqjobs.broker.leases import HEARTBEAT_SECONDS
from rqjobs.maintenance import sweep
from rqjobs.scheduler import Scheduler
from rqjobs.worker import job_processes
from rqjobs.worker import options as worker_options
from rqjobs.worker.horse import MAX_PREFETCH_WAIT_SECONDS, Limits
from rqjobs.worker.recording import RecordingClient
from rqjobs.worker.shared_state import HorsePhase
from rqjobs.worker.supervisor import MAX_FINISHERS, UNREGISTER_SECONDS, Supervisor

MAX_SLEEP_SECONDS = 1.0  # of the parent, while a job runs
SCHEDULER_CHECK_SECONDS = leases.HEARTBEAT_SECONDS / 2  # seconds between two looks after the clock


class Worker(Supervisor):
    """Runs jobs as RQ's worker does, and loses none.

    Start it with `rq worker --worker-class rqjobs.Worker --with-scheduler high default low`. The configured Redis,
    serializer, job class and queue class take the place of the stock ones that `rq` passes; another Redis that it
    was told, and subclasses of `rqjobs.Job` and `rqjobs.Queue`, are used; anything else is refused.

    Overrides, beside those of `Settling` and `Supervisor`:
        work: supervises one long-lived horse instead of forking for each job.
        bootstrap, register_birth, register_death: sweep first (one of the dead may have had our name), keep a lease,
            and wait for a Redis that is not there yet; _set_ip_address asks it then, and not before.
        subscribe, unsubscribe: RQ's commands are read in the same loop, not in a thread.
        request_stop: a signal handler that only sets a flag.
        clean_registries: without RQ's clean-up of started jobs and intermediate queues, which fails what our sweep
            puts back.
        _start_scheduler, run_maintenance_tasks, stop_scheduler: our scheduler, minded at each heartbeat.
        _set_connection: keeps our time-outs.
        handle_payload, teardown, wait_before_retry: what a stranger publishes, or Redis being away,
            ends no worker, and a worker that was told to go goes.
    """

    def __init__(
        self, queues: Any, name: str | None = None, connection: Any = None, **options: Any
    ):
        client = worker_options.prepare(type(self), connection, options)
        super().__init__(
            worker_options.names(queues), name, connection=RecordingClient(client), **options
        )
        self._beaten = 0.0
        self._may_subscribe = True
        self._handing_over = 0.0  # when claimed jobs were last seen to wait

    # Birth and death

    def bootstrap(self, *args: Any, **kwargs: Any) -> None:
        def attempt() -> str:
            sweep.sweep(self.client, force=True)
            super(Worker, self)._set_ip_address(self.connection)
            _log_each_line_once()
            super(Worker, self).bootstrap(*args, **kwargs)
            self.get_redis_server_version()
            return "done"

        try:
            self.retry_until_answered(attempt)
        except redis.ResponseError as error:
            if connections.refusal_code(error) != "NOPERM":
                raise
            raise SystemExit(f"rqjobs: {connections.explain(error)}") from None

    def _set_ip_address(self, connection: Any) -> None:
        self.ip_address = "unknown"

    def register_birth(self) -> None:
        try:
            odd_keys.set_aside(
                self.client, odd_keys.OF_QUEUES, [queue.name for queue in self.queues]
            )
            self._beat()  # before RQ knows of us: who dies in between is found by its lease, and forgotten
            super().register_birth()
        except leases.NameTaken as error:
            raise SystemExit(f"rqjobs: {error}") from None
        except ValueError:
            if self.birth_date is None or decode(
                self.connection.hget(self.key, "birth")
            ) != utcformat(self.birth_date):
                leases.end_lease(self.client, self.name)  # it is a stock worker
                raise SystemExit(
                    f"rqjobs: a worker called {self.name!r} runs already; choose another --name"
                ) from None
            # It is ourselves: the reply to our first try was lost.

    def register_death(self) -> None:
        try:
            self._beat()  # should the name be another process's by now, it stays so
        except leases.NameTaken:
            return
        transitions.release_all(self.client, self.name)
        super().register_death()
        leases.end_lease(self.client, self.name)

    def subscribe(self) -> None:
        self.pubsub = self.client.pubsub()
        self.pubsub.subscribe(**{PUBSUB_CHANNEL_TEMPLATE % self.name: self.handle_payload})

    def unsubscribe(self) -> None:
        if self.pubsub:
            with contextlib.suppress(redis.RedisError, OSError):
                self.pubsub.close()
        self.pubsub = None

    def teardown(self) -> None:
        try:
            super().teardown()
        except redis.RedisError as error:
            self.log.error(
                "Worker %s: could not say goodbye (%s); its lease ends by itself", self.name, error
            )

    def _set_connection(self, connection: Any) -> Any:
        return connection  # RQ's time-out of seven minutes is for its blocking pop; with ours a hung Redis is noticed

    def handle_payload(self, message: Any) -> None:
        try:
            super().handle_payload(message)
        except Exception as error:  # anybody who reaches Redis can publish anything
            self.log.warning(
                "Worker %s: a command that cannot be read is ignored: %s", self.name, error
            )

    def wait_before_retry(self, error: Exception, failures: int, seconds: float) -> None:
        if not self._beaten:  # not born yet, so nothing can be lost
            if isinstance(error, redis.AuthenticationError):
                raise error
            if self._signals:
                self.log.info("Worker %s: quitting (stopped) before Redis was there", self.name)
                raise SystemExit(0)
        if not self._is_horse and self._time_to_go():
            raise SystemExit(
                f"Redis is away ({error}); what the worker had is taken back when its lease ends"
            )
        super().wait_before_retry(error, failures, seconds)

    # The loop

    def work(
        self,
        burst: bool = False,
        logging_level: str | None = None,
        date_format: str = DEFAULT_LOGGING_DATE_FORMAT,
        log_format: str = DEFAULT_LOGGING_FORMAT,
        max_jobs: int | None = None,
        max_idle_time: int | None = None,
        with_scheduler: bool = False,
        dequeue_strategy: Any = DequeueStrategy.DEFAULT,
    ) -> bool:
        """Work until told to stop, or until `burst`, `max_jobs` or `max_idle_time` (seconds) say so.

        Returns whether any job was run. Never ends because Redis is away.
        """
        self._dequeue_strategy = dequeue_strategy
        self._forget_last_work()
        limits = Limits(burst, max_jobs, max_idle_time)
        self._install_signal_handlers()
        try:
            self.bootstrap(logging_level, date_format, log_format)
            if with_scheduler:
                self._start_scheduler(burst, logging_level, date_format, log_format)
            while not (why := self._step(limits)):
                pass
            self.log.info("Worker %s: quitting (%s)", self.name, why)
        except leases.NameTaken:
            self._beaten = 0.0  # what is in Redis under the name is that one's
            raise SystemExit(
                f"rqjobs: another worker has started as {self.name!r} while this one was not heard of, so "
                f"this one ends; give each its own --name"
            ) from None
        finally:
            try:
                self._dismiss()
                if self._beaten and not self._overdue:  # it was born
                    self.teardown()
            finally:
                self.stop_scheduler()
                self._remove_signal_handlers()
        return self._done_before > 0

    def _forget_last_work(self) -> None:
        """A program, a test for example, may call `work` several times."""
        self._signals.clear()
        self._overdue = False
        self._done_before, self._beaten, self._ending = 0, 0.0, ""
        self._stop_requested, self._shutdown_requested_date = False, None

    def _step(self, limits: Limits) -> str:
        """One round: see to the horse, sleep until something happens, see to Redis. Returns why to end, or ""."""
        if self._may_hire() and time.monotonic() >= self._hired + self._rehire_pause:
            self._hire(limits)
        self._sleep()
        try:
            self._give_back()
            self._keep_up()
            self._hear_commands()
        except (redis.RedisError, OSError) as error:
            self._lost_redis(error)
        except leases.NameTaken:
            raise
        except Exception:  # of what a stranger wrote into Redis; the lease was renewed before
            self.log.error(
                "Worker %s: its upkeep failed and is tried again", self.name, exc_info=True
            )
        self._police()
        self._ending = self._reap(limits) or self._ending
        self._look_after_finishers()
        if self._finishers and not self._time_to_go():
            return ""
        return self._ending or ("stopped" if self._signals and not self.horse_pid else "")

    def _may_hire(self) -> bool:
        busy = len(self._finishers) >= MAX_FINISHERS or not all(
            finisher.settled for finisher in self._finishers
        )
        return not (self.horse_pid or self._signals or self._ending or busy)

    def _sleep(self) -> None:
        sockets: list[Any] = [self._wakeup[0]]
        line = self.pubsub.connection if self.pubsub else None
        if line is not None and line._sock:
            sockets.append(line._sock)
        brisk = (
            time.monotonic() - self._handing_over < MAX_SLEEP_SECONDS
        )  # the horse claims several at once
        if self.prefetch and self.horse_pid and not brisk:
            sockets.append(self.prefetch.reader)
        post = self._posting()
        busy = brisk or not self.horse_pid or self._signals
        idle = max(
            0.1,
            min(
                self._beaten + HEARTBEAT_SECONDS - time.monotonic(),
                SCHEDULER_CHECK_SECONDS if self.scheduler else HEARTBEAT_SECONDS,
            ),
        )
        seconds = (
            MAX_PREFETCH_WAIT_SECONDS
            if busy
            else idle
            if post and post.phase == HorsePhase.IDLE
            else MAX_SLEEP_SECONDS
        )
        began, running = time.monotonic(), self.horse_state and self.horse_state.token
        while True:
            ready = processes.readable(sockets, seconds)
            before, running = running, self.horse_state and self.horse_state.token
            if (
                ready
                or not brisk
                or self._signals
                or running == before
                or time.monotonic() - began >= MAX_SLEEP_SECONDS
            ):
                break  # else the horse goes from job to job, and there is no more to see to
        if self._wakeup[0] in ready:
            self._wakeup[0].recv(4096)
        if not brisk and self.prefetch and self.prefetch.reader in ready:
            self._handing_over = time.monotonic()

    def _keep_up(self) -> None:
        if time.monotonic() - self._beaten >= HEARTBEAT_SECONDS:
            try:
                self._beat()
                with self.client.pipeline() as pipe:
                    self.heartbeat(pipeline=pipe)
                    pipe.execute()
            except redis.ResponseError as error:
                if not scripts.is_wrong_type(error):
                    raise
                self._write_anew()
            self._disown()
            self._reap_orphans()
            sweep.sweep(self.client, on_progress=self._pulse)
            if self.should_run_maintenance_tasks:
                self.run_maintenance_tasks()
        if self.scheduler and not self._signals:
            self.scheduler.ensure_running()  # type: ignore[attr-defined]
        if time.monotonic() - self._told_at >= MAX_SLEEP_SECONDS:
            self._tell_state()

    def _beat(self) -> None:
        """Renew the lease; register again if we were believed dead, and everything of us was forgotten."""
        first = self._beaten == 0.0
        if first:  # only then: with no descriptor left none of it could be read any more
            self.where = {
                "host": processes.host_id(),
                "pid": os.getpid(),
                "started": processes.start_time(os.getpid()),
                "session": os.getsid(0),
            }
            self.process = leases.process_id(self.where)
        where = {
            **self.where,
            "horse": self.horse_pid or "",
            "horse_started": self._horse_started if self.horse_pid else "",
        }
        new = leases.renew_lease(self.client, self.name, where, first)
        self._beaten = time.monotonic()
        if new and not first:
            self.log.warning("Worker %s: was believed dead, and is back", self.name)
            self._register_again()

    def _register_again(self) -> None:
        with self.client.pipeline() as pipe:
            pipe.hset(self.key, mapping=self.serialize())
            rq.worker_registration.register(self, pipe)
            pipe.execute()
        self._told = (None, None, *self._told[2:])

    def _write_anew(self) -> None:
        """Somebody else wrote where our lease or RQ's facts about us stand."""
        odd_keys.set_aside(self.client, odd_keys.SINGLE)
        odd_keys.set_aside(self.client, odd_keys.OF_WORKERS, [self.name])
        self._beat()
        self._register_again()

    def _reap_orphans(self) -> None:
        scheduler = self.scheduler and self.scheduler._process
        finishers = {finisher.pid for finisher in self._finishers}
        job_processes.reap_orphans({self.horse_pid, (scheduler and scheduler.pid) or 0, *finishers})

    def _pulse(self) -> None:
        if time.monotonic() - self._beaten >= HEARTBEAT_SECONDS:
            self._beat()

    def _hear_commands(self) -> None:
        if not self._may_subscribe:
            return
        if self.pubsub is None:
            self.subscribe()
        assert self.pubsub
        try:
            while self.pubsub.get_message(timeout=0):
                pass
        except redis.exceptions.NoPermissionError:
            self._may_subscribe = False
            self.unsubscribe()
            lost = "RQ's commands (stop-job, shutdown) are not heard"
            connections.warn_channels_refused(self.log, f"Worker {self.name}", lost)

    def _lost_redis(self, error: Exception) -> None:
        self._lost_at = time.monotonic()
        self.log.error("Worker %s: waits for Redis: %s", self.name, error)
        self.unsubscribe()
        self.client.connection_pool.disconnect()
        self._told = (None, None, *self._told[2:])
        time.sleep(min(MAX_SLEEP_SECONDS, 0.5))

    # Signals, maintenance, scheduler

    def _install_signal_handlers(self) -> None:
        self._wakeup = socket.socketpair()
        for end in self._wakeup:
            end.setblocking(False)
        logs.limit_line_time(True)
        signal.set_wakeup_fd(self._wakeup[1].fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.request_stop)
        signal.signal(signal.SIGALRM, self._give_up)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # to be woken by it

    def _remove_signal_handlers(self) -> None:
        logs.limit_line_time(False)
        signal.set_wakeup_fd(-1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM):
            signal.signal(
                number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            )
        for end in self._wakeup:
            end.close()

    def request_stop(self, signum: int, frame: Any) -> None:
        self._signals.append((time.monotonic(), signum))
        timeout = 0 if self._time_to_go() else config.current().shutdown_timeout
        left = self._signals[0][0] + timeout + UNREGISTER_SECONDS - time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, left if timeout else UNREGISTER_SECONDS)
        self._shutdown_requested_date = now()
        self._stop_requested = True

    def _give_up(self, signum: int, frame: Any) -> None:
        """Raised out of whatever waits for Redis: each command may wait for ten seconds, and a goodbye has many."""
        if not self._overdue:
            self._overdue = True
            raise SystemExit(
                "rqjobs: Redis does not answer; what the worker had is taken back when its lease ends"
            )

    def clean_registries(self) -> None:
        names = [queue.name for queue in self.queues]
        counts = broker_places.count_places(self.client, names)
        sweep.remove_dead_listeners(self.client, names)
        for queue in self.queues:
            places = counts.get(queue.name, {})
            kept = places.get("finished") or places.get("failed") or places.get("stopped")
            if kept and queue.acquire_maintenance_lock():
                for registry in (FinishedJobRegistry, FailedJobRegistry):
                    registry(queue=queue, job_class=self.job_class).cleanup()
                queue.release_maintenance_lock()
                self._pulse()
        self.last_cleaned_at = now()  # type: ignore[assignment]

    def run_maintenance_tasks(self) -> None:
        scheduler, self.scheduler = self.scheduler, None  # it is looked after elsewhere
        try:
            super().run_maintenance_tasks()
        finally:
            self.scheduler = scheduler

    def _start_scheduler(
        self,
        burst: bool = False,
        logging_level: str | None = "INFO",
        date_format: str = DEFAULT_LOGGING_DATE_FORMAT,
        log_format: str = DEFAULT_LOGGING_FORMAT,
    ) -> None:
        self.scheduler = Scheduler(
            self.queues,
            connection=self.client,
            logging_level=logging_level or self.log.level,
            date_format=date_format,
            log_format=log_format,
            serializer=self.serializer,
        )

        def attempt() -> str:
            assert isinstance(self.scheduler, Scheduler)
            if not burst:
                self.scheduler.declare(self.name)
            self.scheduler.acquire_locks(auto_start=not burst)
            if burst:
                try:
                    self.scheduler.enqueue_scheduled_jobs()
                finally:
                    self.scheduler.release_locks()
            return "done"

        try:
            self.retry_until_answered(attempt)
        except (TypeError, ValueError) as error:  # what the code declares cannot be enqueued
            raise SystemExit(f"rqjobs: {error}") from None
        if burst:
            self.scheduler = None

    def stop_scheduler(self) -> None:
        process = self.scheduler and self.scheduler._process
        while (
            process and process.is_alive()
        ):  # it does not hear a signal that comes while it begins
            process.kill() if self._overdue else process.terminate()
            process.join(1)


def _log_each_line_once() -> None:
    """Where the user's modules have set up the root logger that is enough. RQ's command line looks before they do."""
    for name in ("rq.worker", "rq.job") if logging.root.handlers else ():
        logger = logging.getLogger(name)
        logger.handlers = [
            one for one in logger.handlers if not isinstance(one, ColorizingStreamHandler)
        ]


rq_patches.wait_for_redis_at_start()
