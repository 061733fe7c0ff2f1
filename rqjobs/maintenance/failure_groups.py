"""The groups of failed jobs: what plain RQ and expiry leave behind in them is removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis

from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode

CHECKED_GROUPS = 5  # at each call, chosen at random
CHECKED_JOBS = 500  # of a group, at each call
ENDED_GROUPS = 20  # checked at each call: groups whose last failure is long ago
KEPT_SECONDS = 7 * 24 * 3600  # for which a group without failed jobs is kept


def check(
    connection: redis.Redis, moment: float, on_progress: Callable[[], None] = lambda: None
) -> None:
    """Remove jobs that are no longer failed ones from some groups, and groups that are over.

    `moment`: the time now, in Unix seconds by Redis's clock.
    """
    old = ("ZRANGEBYSCORE", keys.FAILURE_GROUPS, "-inf", int(moment) - KEPT_SECONDS)
    replies: list[Any] = scripts.read_together(
        connection,
        [
            (*old, "LIMIT", 0, ENDED_GROUPS),
            ("ZRANDMEMBER", keys.FAILURE_GROUPS, CHECKED_GROUPS),
        ],
    )
    groups = {decode(group) for reply in replies if isinstance(reply, list) for group in reply}
    for group in sorted(groups):
        args = [group, CHECKED_JOBS, KEPT_SECONDS]
        scripts.CHECK_FAILURE_GROUP.run(connection, [keys.FAILURE_GROUPS], args)
        on_progress()
