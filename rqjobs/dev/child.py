"""Child processes of `rqjobs dev`: started, restarted when they end, and stopped together."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import IO

from rqjobs.processes import die_with_parent
from rqjobs.worker.shutdown import DUPLICATE_SIGNAL_SECONDS

RESTART_PAUSE_SECONDS = 0.5  # doubled for each restart
RESTART_PAUSE_MAX_SECONDS = 10.0
STABLE_RUN_SECONDS = 30  # after such a run the pause is short again
STOP_NOTICE_SECONDS = 1.0  # a longer stop is explained to the user
STOP_POLL_SECONDS = 0.05
# A worker takes a signal that comes earlier for the first one.
SECOND_SIGNAL_SECONDS = DUPLICATE_SIGNAL_SECONDS + 0.1


class Child:
    """A process that is restarted when it ends, after a longer pause each time."""

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        output: IO[bytes] | None = None,
    ):
        self.name = name
        self.command = command
        self.environment = environment
        self.output = output
        self.pause = RESTART_PAUSE_SECONDS
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            start_new_session=True,  # Ctrl-C reaches only the parent, which stops all in order
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )
        self.started_at = time.monotonic()
        self.start_again_at: float | None = None
        self.restart_requested_at: float | None = None

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def request_restart(self) -> None:
        """Ask the process to end. `restart_if_ended` then starts it again."""
        if self.restart_requested_at is None:
            self.restart_requested_at = time.monotonic()
            self.signal(signal.SIGTERM)

    def restart_if_ended(self, echo: Callable[[str], None], stop_timeout: float) -> None:
        """Start an ended process again. Kill one that ignores a restart for `stop_timeout` s."""
        now = time.monotonic()
        if self.restart_requested_at is not None:
            if not self.is_running:
                self.start()
            elif now - self.restart_requested_at > stop_timeout:
                self.process.kill()
        elif not self.is_running:
            self._start_after_pause(echo, now)

    def _start_after_pause(self, echo: Callable[[str], None], now: float) -> None:
        if self.start_again_at is not None:
            if now >= self.start_again_at:
                self.start()
            return
        if now - self.started_at > STABLE_RUN_SECONDS:
            self.pause = RESTART_PAUSE_SECONDS
        else:
            self.pause = min(self.pause * 2, RESTART_PAUSE_MAX_SECONDS)
        self.start_again_at = now + self.pause
        code = self.process.returncode
        echo(f"{self.name} ended with {code}; starting it again in {self.pause:.0f} s")

    def signal(self, number: int) -> None:
        if self.is_running:
            self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def stop_children(
    children: list[Child],
    timeout: float,
    signals: Sequence[int] = (),
    echo: Callable[[str], None] = lambda line: None,
) -> None:
    """Send SIGTERM to the children, and SIGKILL after `timeout` seconds.

    Args:
        signals: the signals that this process has received. When a second one arrives, the children
            requeue their jobs and end at once.
    """
    for child in children:
        if child.restart_requested_at is None:
            child.signal(signal.SIGTERM)
    start = time.monotonic()
    is_announced = is_hurried = False
    while any(child.is_running for child in children):
        age = time.monotonic() - start
        if age > timeout:
            for child in children:
                child.kill()
        elif len(signals) > 1 and not is_hurried and age > SECOND_SIGNAL_SECONDS:
            is_hurried = True
            for child in children:
                child.signal(signal.SIGTERM if "worker" in child.command else signal.SIGINT)
        elif len(signals) < 2 and not is_announced and age > STOP_NOTICE_SECONDS:
            is_announced = True
            echo(
                f"rqjobs: waits for running jobs, {timeout:.0f} s at most; a second Ctrl-C "
                f"requeues them and ends at once"
            )
        time.sleep(STOP_POLL_SECONDS)
