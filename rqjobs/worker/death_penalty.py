"""The time limit of a job's function, and of its callbacks and handlers."""

from __future__ import annotations

import signal
from _signal import signal as set_signal_handler  # type: ignore[import-not-found]

from rq.timeouts import UnixSignalDeathPenalty


class DeathPenalty(UnixSignalDeathPenalty):
    """RQ's time limit with a signal handler that stays: the next job would install it again.

    Python's `signal.signal` looks the handler up in an Enum, which takes longer than setting it.
    """

    def setup_death_penalty(self) -> None:
        """Start the time limit."""
        set_signal_handler(signal.SIGALRM, self.handle_death_penalty)
        signal.alarm(self._timeout)

    def cancel_death_penalty(self) -> None:
        """End the time limit."""
        signal.alarm(0)
