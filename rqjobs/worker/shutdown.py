"""The shutdown: what a worker does from SIGTERM, or SIGINT, to the end of its process.

1. The signal handler (`_request_shutdown`) sets flags, and starts the timer of the hard limit (step
   7). The signal also wakes the parent. RQ's shutdown command arrives here too: RQ sends SIGINT to
   the worker.
2. The parent spawns no further horse. It releases prefetched jobs: they return to the front of
   their queues (`Supervisor._release_prefetched`).
3. The parent asks the horse to stop after its current job (`_ask_horse_to_stop`), and stops the
   scheduler. An idle horse exits at once.
4. RQJOBS_SHUTDOWN_TIMEOUT seconds after the first signal, or at a second signal, the parent kills
   the horse (`_continue_shutdown`). Its job returns to its queue and runs again; this is not
   counted as a crash. RQ's worker-pool and the terminal may both send one signal, so a second one
   within a second does not count.
5. The parent waits until running callbacks of ended jobs (finisher.py) have ended, or the shutdown
   timeout has expired.
6. The parent leaves no child behind (`_stop_children`). It releases its remaining claims, removes
   its registration, and ends its lease (`register_death`). Other workers need not wait for the
   lease to expire.
7. Redis may not answer. UNREGISTER_SECONDS after the shutdown timeout the hard limit
   (`_exit_at_hard_limit`) interrupts the call that waits for Redis, and the process ends. The lease
   then expires, and the next sweep of another worker requeues the worker's jobs.
"""

from __future__ import annotations

import contextlib
import signal
import time
from typing import Any

import redis
from rq.utils import now

from rqjobs import config, logs, processes
from rqjobs.broker import leases, recovery, transitions
from rqjobs.scheduler import Scheduler
from rqjobs.worker.finisher import HorseDeath
from rqjobs.worker.shared_state import HorseSnapshot
from rqjobs.worker.supervisor import Supervisor

# A second signal within this time is a duplicate: worker-pool and the terminal both send it.
DUPLICATE_SIGNAL_SECONDS = 1.0
# Time after RQJOBS_SHUTDOWN_TIMEOUT to release the claims and to unregister.
UNREGISTER_SECONDS = 4


class ShutdownMixin(Supervisor):
    """The part of the worker's parent that ends it.

    Overrides of RQ, besides those of `Supervisor`: _install_signal_handlers, register_death.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._is_registered = False
        # Not RQ's attribute `scheduler`: RQ's methods would start and stop it.
        self._scheduler: Scheduler | None = None
        self._reset_shutdown()

    def _reset_shutdown(self) -> None:
        self._first_signal_at = 0.0  # in seconds of the monotonic clock, like the next one
        self._last_signal_at = 0.0
        self._has_killed_horse = False
        self._is_past_hard_limit = False
        self._stop_requested = False  # RQ's flag
        self._shutdown_requested_date = None

    # Step 1: signals

    def _install_signal_handlers(self) -> None:
        """Install handlers that only set flags.

        RQ's own would raise exceptions in the middle of a step.
        """
        self._signal_pipe = processes.SignalPipe()
        logs.limit_line_time(True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._request_shutdown)
        signal.signal(signal.SIGALRM, self._exit_at_hard_limit)
        # Only a signal with a handler wakes the parent.
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def _remove_signal_handlers(self) -> None:
        logs.limit_line_time(False)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        self._signal_pipe.close()

    def _request_shutdown(self, number: int, frame: Any) -> None:
        """The handler of SIGTERM and SIGINT."""
        self._last_signal_at = time.monotonic()
        if not self._stop_requested:
            self._first_signal_at = self._last_signal_at
            self._stop_requested = True
        self._shutdown_requested_date = now()
        seconds_left = 0.0
        if not self._shutdown_timed_out():
            timeout = config.current().shutdown_timeout
            seconds_left = self._first_signal_at + timeout - time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, max(seconds_left, 0.0) + UNREGISTER_SECONDS)

    def _shutdown_timed_out(self) -> bool:
        """Whether the shutdown timeout has expired, or a second signal has arrived."""
        if not self._stop_requested:
            return False
        seconds = time.monotonic() - self._first_signal_at
        return seconds > config.current().shutdown_timeout or self._is_second_signal()

    def _is_second_signal(self) -> bool:
        return self._last_signal_at - self._first_signal_at > DUPLICATE_SIGNAL_SECONDS

    # Steps 3 and 4: the horse and the scheduler

    def _continue_shutdown(self, snapshot: HorseSnapshot) -> None:
        """Ask the horse to stop; kill it when the shutdown timeout has expired.

        Called while the horse lives.
        """
        assert self.horse_state
        if not self.horse_state.stop:
            self.handle_warm_shutdown_request()  # RQ's log line
            self._ask_horse_to_stop()
            self._stop_scheduler()
        if self._shutdown_timed_out():
            if not self._has_killed_horse:
                self._has_killed_horse = True
                cause = "second signal" if self._is_second_signal() else "shutdown timeout"
                self.log.warning("Worker %s: %s, requeueing the current job", self.name, cause)
            self._kill_horse(HorseDeath.ENDED)

    def _ask_horse_to_stop(self) -> None:
        assert self.horse_state and self.control
        self.horse_state.ask_to_stop()
        self._wake_horse()

    def _stop_scheduler(self) -> None:
        """End the scheduler's process, if there is one.

        The signal is repeated: a scheduler that is about to begin misses it.
        """
        process = self._scheduler and self._scheduler._process
        while process and process.is_alive():
            if self._is_past_hard_limit:
                process.kill()
            else:
                process.terminate()
            process.join(1)

    # Step 6: the end

    def _finish_shutdown(self) -> None:
        """Leave no child behind, and no claim, registration or lease in Redis."""
        self._stop_children()
        if not self._is_registered or self._is_past_hard_limit:
            return
        self._stop_scheduler()
        with contextlib.suppress(redis.RedisError, OSError):
            self._counts_sender.send(self.client)
        try:
            self.teardown()
        except redis.RedisError as error:
            self.log.error(
                "Worker %s: could not unregister (%s); its lease will expire", self.name, error
            )

    def _stop_children(self) -> None:
        """Kill the horse and the finishers that still run, and requeue their jobs."""
        for finisher in self._finishers:
            finisher.kill()
        if self.function_outcome:
            self.function_outcome.close()
            self.function_outcome = None
        if self.horse_pid:
            self._kill_horse(HorseDeath.ENDED)
            self._wait_for_horse_and_group()
            self._horse_pid = 0
            if not self._is_past_hard_limit:
                names = self.queue_names()
                with contextlib.suppress(redis.RedisError):
                    recovery.reclaim(
                        self.client,
                        self.name,
                        names,
                        recovery.DeathCause.HORSE_DIED,
                        "",
                        process=self.process,
                    )
        if not self._is_past_hard_limit:
            with contextlib.suppress(redis.RedisError, OSError, SystemExit):
                self._check_finishers()

    def register_death(self) -> None:
        """Release the claims, unregister and end the lease.

        Nothing is done if the name is another process's by now.
        """
        try:
            self._renew_lease()
        except leases.NameTaken:
            return
        transitions.release_all(self.client, self.name)
        super().register_death()
        leases.end_lease(self.client, self.name)

    # Step 7: Redis does not answer

    def _exit_at_hard_limit(self, number: int, frame: Any) -> None:
        """The handler of SIGALRM.

        It interrupts the command in progress, once. Each of the many commands that unregister the
        worker could wait for ten seconds.
        """
        if not self._is_past_hard_limit:
            self._is_past_hard_limit = True
            raise SystemExit(
                "rqjobs: Redis does not answer; the worker's jobs are requeued when its lease "
                "expires"
            )
