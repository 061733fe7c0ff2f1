"""The worker: the parent process, which keeps the lease, sweeps, and supervises a horse.

The parent is one thread with one loop (`Worker._run`). supervisor.py spawns, watches and reaps the
horse, the child that claims, runs and settles the jobs (horse.py). shutdown.py has the shutdown
(SIGTERM).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections import deque
from typing import Any

import redis
import rq
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.defaults import DEFAULT_LOGGING_DATE_FORMAT, DEFAULT_LOGGING_FORMAT
from rq.logutils import ColorizingStreamHandler
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from rq.utils import now, utcformat
from rq.worker import DequeueStrategy

from rqjobs import config, processes, rq_patches
from rqjobs import connection as connections
from rqjobs.broker import leases, odd_keys, scripts
from rqjobs.broker import places as broker_places
from rqjobs.broker.keys import decode
from rqjobs.broker.leases import HEARTBEAT_SECONDS
from rqjobs.maintenance import sweep
from rqjobs.scheduler import Scheduler
from rqjobs.version import VERSION
from rqjobs.worker import job_processes
from rqjobs.worker import options as worker_options
from rqjobs.worker.horse import MAX_PREFETCH_WAIT_SECONDS, Limits
from rqjobs.worker.recording import RecordingClient
from rqjobs.worker.shared_state import ExitReason, HorsePhase
from rqjobs.worker.shutdown import ShutdownMixin
from rqjobs.worker.supervisor import PHASES_WITH_DEADLINE

MAX_SLEEP_SECONDS = 1.0  # of the parent, while a job runs
SCHEDULER_CHECK_SECONDS = leases.HEARTBEAT_SECONDS / 2  # between two checks that the scheduler runs
RATE_SECONDS = 60  # over which a worker counts the jobs that it has done
RECONNECT_SECONDS = 0.5  # between two attempts of the parent to reach Redis


class Worker(ShutdownMixin):
    """Runs jobs as RQ's worker does, and loses none.

    Start it with `rq worker --worker-class rqjobs.Worker --with-scheduler high default low`. The
    configured Redis, serializer, job class and queue class replace the stock ones that `rq` passes.
    Another Redis that is named explicitly, and subclasses of `rqjobs.Job` and `rqjobs.Queue`, are
    used. All else is refused.

    Overrides of RQ, besides those of `ShutdownMixin`: work, bootstrap, register_birth, subscribe,
    unsubscribe, clean_registries, _set_connection. The reason is given at each.
    """

    def __init__(
        self, queues: Any, name: str | None = None, connection: Any = None, **options: Any
    ):
        client = worker_options.prepare(type(self), connection, options)
        # RQ would ask Redis for the worker's address here. `bootstrap` does: it can wait for Redis.
        works = options.pop("prepare_for_work", True)
        super().__init__(
            worker_options.queue_names(queues),
            name,
            connection=RecordingClient(client),
            prepare_for_work=False,
            **options,
        )
        if works:
            self.hostname = socket.gethostname()
            self.pid = os.getpid()
        self._lease_renewed_at = 0.0
        self._location: dict[str, Any] = {}  # of this process, stored with its lease
        self._may_subscribe = True
        self._done_at: deque[tuple[float, int]] = deque()  # monotonic time -> jobs done until then

    def _set_connection(self, connection: Any) -> Any:
        """Keep the connection's timeouts.

        RQ sets one of seven minutes for its blocking pop, and a hung Redis would go unnoticed for
        as long.
        """
        return connection

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
        """Work until a signal stops the worker, or until `burst`, `max_jobs` or `max_idle_time`
        (seconds) end it.

        Unlike RQ's, it supervises one long-lived horse instead of forking for each job, and
        outlives any Redis error.

        Returns:
            Whether any job was run.

        Raises:
            SystemExit: the worker cannot start, or another worker has taken over its name, or Redis
                does not answer during the shutdown. The message says so.
        """
        self._dequeue_strategy = dequeue_strategy
        self._reset()
        limits = Limits(burst, max_jobs, max_idle_time)
        self._install_signal_handlers()
        try:
            self.bootstrap(logging_level, date_format, log_format)
            if with_scheduler:
                self._begin_scheduler(burst, logging_level, date_format, log_format)
            reason = self._run(limits)
            self.log.info("Worker %s: quitting (%s)", self.name, reason.value)
        except leases.NameTaken:
            self._is_registered = False  # the registration under the name is the other worker's
            raise SystemExit(
                f"rqjobs: another worker has started as {self.name!r} while this one was out of "
                f"reach, so this one ends; give each worker its own --name"
            ) from None
        finally:
            try:
                self._finish_shutdown()
            finally:
                self._stop_scheduler()
                self._remove_signal_handlers()
        return self._jobs_done > 0

    def _reset(self) -> None:
        """Begin as a new worker: a program, a test for example, may call `work` several times."""
        self._reset_shutdown()
        self._is_registered = False
        self._jobs_done = 0
        self._done_reason = None
        self._quiet_since = 0.0
        self._done_at.clear()

    def _run(self, limits: Limits) -> ExitReason:
        """Supervise one horse after the other. Returns the reason to end."""
        while True:
            if self._horse_is_due():
                self._spawn_horse(limits)
            self._wait_for_event()
            self._run_periodic_tasks()
            self._enforce_limits()
            self._done_reason = self._reap_horse() or self._done_reason
            self._check_finishers()
            if reason := self._exit_reason():
                return reason

    def _exit_reason(self) -> ExitReason | None:
        """The reason to end the worker now, if there is one.

        A worker that is done waits for its finishers, up to the shutdown timeout.
        """
        if self._finishers and not self._shutdown_timed_out():
            return None
        if self._stop_requested and not self.horse_pid:
            return self._done_reason or ExitReason.STOPPED
        return self._done_reason

    # Waiting

    def _wait_for_event(self) -> None:
        """Sleep until a signal, a command, a child's exit, claimed jobs that wait, or the next
        periodic task.
        """
        if time.monotonic() - self._watch.batch_seen_at < MAX_SLEEP_SECONDS:
            self._watch_batch()
            return
        files = self._sockets()
        if self.prefetch and self.horse_pid:
            files.append(self.prefetch.reader)
        ready = self._select(files, self._sleep_seconds())
        if self.prefetch and self.prefetch.reader in ready:
            self._watch.batch_seen_at = time.monotonic()

    def _watch_batch(self) -> None:
        """Check every MAX_PREFETCH_WAIT_SECONDS that the horse goes from job to job in its batch.

        Returns when it does not, at any event, and after MAX_SLEEP_SECONDS.
        """
        assert self.horse_state
        deadline = time.monotonic() + MAX_SLEEP_SECONDS
        sockets = self._sockets()
        token = self.horse_state.token
        while True:
            last_token = token
            ready = self._select(sockets, MAX_PREFETCH_WAIT_SECONDS)
            token = self.horse_state.token
            if ready or self._stop_requested or token == last_token:
                return
            if time.monotonic() >= deadline:
                return

    def _sleep_seconds(self) -> float:
        """The time until the next periodic task."""
        if not self.horse_pid or self._stop_requested:
            return MAX_PREFETCH_WAIT_SECONDS
        snapshot = self._read_horse()
        if snapshot is None or snapshot.phase != HorsePhase.IDLE:
            return MAX_SLEEP_SECONDS
        to_heartbeat = self._lease_renewed_at + HEARTBEAT_SECONDS - time.monotonic()
        interval = SCHEDULER_CHECK_SECONDS if self._scheduler else HEARTBEAT_SECONDS
        return max(0.1, min(to_heartbeat, interval))

    def _sockets(self) -> list[Any]:
        """The sockets that wake the parent: of signals, and of RQ's commands."""
        sockets: list[Any] = [self._signal_pipe.reader]
        commands = self.pubsub.connection if self.pubsub else None
        if commands is not None and commands._sock:
            sockets.append(commands._sock)
        return sockets

    def _select(self, files: list[Any], seconds: float) -> list[Any]:
        ready = processes.readable(files, seconds)
        if self._signal_pipe.reader in ready:
            self._signal_pipe.drain()
        return ready

    # Periodic tasks

    def _run_periodic_tasks(self) -> None:
        """Do what is due: release jobs, renew the lease, sweep, read commands, publish the state.

        Neither a Redis error nor data that another program wrote into Redis ends the worker.

        Raises:
            NameTaken: another worker has started under this one's name.
        """
        try:
            self._release_prefetched()
            if time.monotonic() - self._lease_renewed_at >= HEARTBEAT_SECONDS:
                self._run_heartbeat_tasks()
            if self._scheduler and not self._stop_requested:
                self._scheduler.ensure_running()
            if time.monotonic() - self._published_at >= MAX_SLEEP_SECONDS:
                self._publish_state()
            self._read_commands()
        except (redis.RedisError, OSError) as error:
            self._handle_disconnect(error)
        except leases.NameTaken:
            raise
        except Exception:
            self.log.error(
                "Worker %s: a periodic task failed, and is tried again", self.name, exc_info=True
            )

    def _run_heartbeat_tasks(self) -> None:
        """Renew the lease, look after the running job and unknown claims, sweep, and clean up."""
        try:
            self._renew_lease()
            with self.client.pipeline() as pipe:
                self.heartbeat(pipeline=pipe)
                pipe.execute()
        except redis.ResponseError as error:
            if not scripts.is_wrong_type(error):
                raise
            self._repair_registration()
        self._release_unknown_claims()
        self._check_canceled()
        self._reap_orphans()
        sweep.sweep(self.client, on_progress=self._renew_lease_if_due)
        if self.should_run_maintenance_tasks:
            self.run_maintenance_tasks()

    def _reap_orphans(self) -> None:
        """Wait for the zombies that the kernel gives to the first process of a container."""
        own = {self.horse_pid, *(finisher.pid for finisher in self._finishers)}
        scheduler = self._scheduler and self._scheduler._process
        if scheduler and scheduler.pid:
            own.add(scheduler.pid)
        job_processes.reap_orphans(own)

    def clean_registries(self) -> None:
        """Clean up as RQ does, but leave started jobs and intermediate queues to our sweep.

        RQ's clean-up fails jobs there that the sweep requeues.
        """
        names = self.queue_names()
        counts = broker_places.count_places(self.client, names)
        sweep.remove_dead_listeners(self.client, names)
        for queue in self.queues:
            places = counts.get(queue.name, {})
            kept = places.get("finished") or places.get("failed") or places.get("stopped")
            if kept and queue.acquire_maintenance_lock():
                for registry in (FinishedJobRegistry, FailedJobRegistry):
                    registry(queue=queue, job_class=self.job_class).cleanup()
                queue.release_maintenance_lock()
                self._renew_lease_if_due()
        self.last_cleaned_at = now()  # type: ignore[assignment]

    def _handle_disconnect(self, error: Exception) -> None:
        self._disconnected_at = time.monotonic()
        self.log.error("Worker %s: waits for Redis: %s", self.name, error)
        self.unsubscribe()
        self.client.connection_pool.disconnect()
        self._publish_again()
        time.sleep(min(MAX_SLEEP_SECONDS, RECONNECT_SECONDS))

    # Limits

    def _enforce_limits(self) -> None:
        """Go on with the shutdown; kill a horse that ignores its job's time limit, or is
        unresponsive.
        """
        snapshot = self._check_readable()
        if snapshot is None:
            return
        if self._stop_requested:
            self._continue_shutdown(snapshot)
        elif snapshot.phase in PHASES_WITH_DEADLINE:
            self._check_timeout(snapshot)
        else:
            self._check_responsive(snapshot)

    # Registration and lease

    def bootstrap(self, *args: Any, **kwargs: Any) -> None:
        """Sweep, because a dead worker may have had our name, and register. Waits for a Redis that
        is not there yet.

        Raises:
            SystemExit: Redis refuses our commands, and the message names the rights that are needed;
                or a test has started the worker for the real Redis.
        """

        def attempt() -> str:
            sweep.sweep(self.client, force=True)
            self._set_ip_address(self.connection)
            _log_each_line_once()
            super(Worker, self).bootstrap(*args, **kwargs)
            self.get_redis_server_version()
            return "done"

        try:
            self.retry_until_answered(attempt)
        except config.ConfigError as error:
            raise SystemExit(f"rqjobs: {error}") from None
        except redis.ResponseError as error:
            if connections.refusal_code(error) != "NOPERM":
                raise
            raise SystemExit(f"rqjobs: {connections.explain(error)}") from None

    def register_birth(self) -> None:
        """Take the lease, and register with RQ.

        The lease comes first: if the worker dies in between, its lease leads the sweep to it.

        Raises:
            SystemExit: another worker has this name.
        """
        try:
            names = self.queue_names()
            odd_keys.set_aside(self.client, odd_keys.QUEUE_KEYS, names)
            self._renew_lease()
            super().register_birth()
        except leases.NameTaken as error:
            raise SystemExit(f"rqjobs: {error}") from None
        except ValueError:  # RQ: a worker of this name is registered
            if not self._is_own_registration():
                leases.end_lease(self.client, self.name)
                raise SystemExit(
                    f"rqjobs: a worker called {self.name!r} runs already; choose another --name"
                ) from None

    def _is_own_registration(self) -> bool:
        """Whether RQ's worker key is from our own first attempt, whose reply was lost."""
        if self.birth_date is None:
            return False
        birth = self.connection.hget(self.key, "birth")
        return decode(birth) == utcformat(self.birth_date)

    def _renew_lease(self) -> None:
        """Renew the lease. If it had expired, the registration was removed, so register again.

        Raises:
            NameTaken: another worker has started under this one's name.
        """
        is_first = not self._is_registered
        if is_first:
            self._locate()
        start_time = self._horse_start_time if self.horse_pid else ""
        horse = {"horse": self.horse_pid or "", "horse_started": start_time}
        where = {**self._location, **horse, **self._facts()}
        is_new = leases.renew_lease(self.client, self.name, where, is_first)
        self._is_registered = True
        self._lease_renewed_at = time.monotonic()
        if is_new and not is_first:
            self.log.warning("Worker %s: lease had expired; registered again", self.name)
            self._register_again()

    def _facts(self) -> dict[str, Any]:
        """Facts about this worker for the pages: memory in bytes, jobs done in the last minute."""
        return {
            "rqjobs": VERSION,
            "quiet": f"{self._quiet_since:.3f}" if self._quiet_since else "",
            "memory": processes.memory_bytes(),
            "horse_memory": processes.memory_of(self.horse_pid) if self.horse_pid else 0,
            "per_minute": f"{self._jobs_per_minute():.4g}",
        }

    def _jobs_per_minute(self) -> float:
        snapshot = self._read_horse() if self.horse_pid else None
        now_at, done = time.monotonic(), self._jobs_done + (snapshot.done if snapshot else 0)
        if snapshot is None and self.horse_pid and self._done_at:
            done = self._done_at[-1][1]  # the horse is writing at this moment
        self._done_at.append((now_at, done))
        while now_at - self._done_at[0][0] > RATE_SECONDS:
            self._done_at.popleft()
        first_at, first = self._done_at[0]
        return 60 * (done - first) / max(now_at - first_at, HEARTBEAT_SECONDS)

    def _renew_lease_if_due(self) -> None:
        """Renew the lease in the middle of a long task."""
        if time.monotonic() - self._lease_renewed_at >= HEARTBEAT_SECONDS:
            self._renew_lease()

    def _locate(self) -> None:
        """Note which process this is.

        Once only: a process without free descriptors could not read it.
        """
        pid = os.getpid()
        self._location = {
            "host": processes.host_id(),
            "pid": pid,
            "started": processes.start_time(pid),
            "session": os.getsid(0),
            # Of which no queue comes before another (claim.lua).
            "in_turns": int(self._dequeue_strategy != DequeueStrategy.DEFAULT),
        }
        self.process = leases.process_id(self._location)

    def _register_again(self) -> None:
        with self.client.pipeline() as pipe:
            pipe.hset(self.key, mapping=self.serialize())
            rq.worker_registration.register(self, pipe)
            pipe.execute()
        self._publish_again()

    def _repair_registration(self) -> None:
        """Another program has written a value of another type to the key of our lease or of our
        registration.
        """
        odd_keys.set_aside(self.client, odd_keys.SINGLE_KEYS)
        odd_keys.set_aside(self.client, odd_keys.WORKER_KEYS, [self.name])
        self._renew_lease()
        self._register_again()

    def wait_before_retry(self, error: Exception, failures: int, seconds: float) -> None:
        """Wait until Redis may answer again; end the worker instead where it has nothing to lose,
        or has no time left.

        Raises:
            AuthenticationError: the first connection has the wrong password.
            SystemExit: the worker was stopped before it was registered, or the shutdown timeout has
                expired.
        """
        if not self._is_registered:
            if isinstance(error, redis.AuthenticationError):
                raise error
            if self._stop_requested:
                self.log.info("Worker %s: quitting (stopped) before Redis answered", self.name)
                raise SystemExit(0)
        if not self._is_horse and self._shutdown_timed_out():
            raise SystemExit(
                f"Redis is unreachable ({error}); the worker's jobs are requeued when its lease "
                f"expires"
            )
        super().wait_before_retry(error, failures, seconds)

    # Commands

    def subscribe(self) -> None:
        """Subscribe to RQ's commands, which the loop reads.

        RQ reads them in a thread, and we fork.
        """
        channel = PUBSUB_CHANNEL_TEMPLATE % self.name
        self.pubsub = self.client.pubsub()
        self.pubsub.subscribe(**{channel: self._run_command})

    def unsubscribe(self) -> None:
        """Close the subscription, whatever state it is in. RQ's method ends its thread."""
        if self.pubsub:
            with contextlib.suppress(redis.RedisError, OSError):
                self.pubsub.close()
        self.pubsub = None

    def _read_commands(self) -> None:
        """Run RQ's commands (stop-job, kill-horse, shutdown) that have arrived."""
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
            connections.warn_channels_refused(
                self.log,
                f"Worker {self.name}",
                "RQ's commands (stop-job, shutdown) have no effect",
            )

    def _run_command(self, message: Any) -> None:
        try:
            command = json.loads(message["data"])["command"]
            if command in ("quiet", "resume"):
                self._set_quiet(command == "quiet")
            else:
                self.handle_payload(message)
        except Exception as error:  # any client of Redis can publish anything
            self.log.warning(
                "Worker %s: ignored a command that cannot be read: %s", self.name, error
            )

    def _set_quiet(self, is_quiet: bool) -> None:
        """Take no more jobs, or take jobs again. The next heartbeat, which says so, is due now."""
        if is_quiet == bool(self._quiet_since):
            return
        self._quiet_since = time.time() if is_quiet else 0.0
        self.log.info("Worker %s: %s", self.name, "is quiet now" if is_quiet else "resumes")
        if self.horse_state and self.horse_pid:
            self.horse_state.set_quiet(is_quiet)
            self._wake_horse()
        self._lease_renewed_at = 0.0

    # The scheduler

    def _begin_scheduler(
        self, burst: bool, logging_level: str | None, date_format: str, log_format: str
    ) -> None:
        """Start the scheduler's process; in a burst, move the due jobs once instead.

        Raises:
            SystemExit: a schedule that the code declares cannot be enqueued.
        """
        scheduler = Scheduler(
            self.queues,
            connection=self.client,
            logging_level=logging_level or self.log.level,
            date_format=date_format,
            log_format=log_format,
            serializer=self.serializer,
        )

        def start() -> str:
            scheduler.declare(self.name)
            scheduler.acquire_locks(auto_start=True)
            return "done"

        def run_once() -> str:
            scheduler.acquire_locks()
            try:
                scheduler.enqueue_scheduled_jobs()
            finally:
                scheduler.release_locks()
            return "done"

        if not burst:
            self._scheduler = scheduler
        try:
            self.retry_until_answered(run_once if burst else start)
        except (TypeError, ValueError) as error:
            raise SystemExit(f"rqjobs: {error}") from None


def _log_each_line_once() -> None:
    """Remove RQ's log handlers if the job modules have set up the root logger.

    RQ's command line adds its handlers before the job modules are imported.
    """
    if not logging.root.handlers:
        return
    for name in ("rq.worker", "rq.job"):
        logger = logging.getLogger(name)
        logger.handlers = [
            handler
            for handler in logger.handlers
            if not isinstance(handler, ColorizingStreamHandler)
        ]


rq_patches.wait_for_redis_at_start()
