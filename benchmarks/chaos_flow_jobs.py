"""The job functions of the scenario *flows, logs, outbox* of `make chaos`."""

from __future__ import annotations

import logging
import random
import time

from rq import get_current_job

LINES = 3  # that each member logs
log = logging.getLogger(__name__)


def member(number: int) -> int:
    """Log lines that name this job, for a few hundredths of a second."""
    for line in range(LINES):
        log.warning("%s line %d", get_current_job().id, line)
        time.sleep(random.uniform(0, 0.02))
    return number


def callback(numbers: list[int]) -> int:
    """The sum of what the members return, each of which returns its place."""
    assert numbers == [*range(len(numbers))], numbers
    return sum(numbers)
