"""Alerts in a web process, which notices that there is no worker."""

from __future__ import annotations

import os
import threading

import redis

from rqjobs import alerts, config, connection, stats
from rqjobs.web.rendering import pages

_started_in = 0  # the process whose thread runs: a fork has no thread
_lock = threading.Lock()


@pages.before_request
def start() -> None:
    """With the first request of our pages, start the thread that observes if no scheduler does."""
    global _started_in
    if _started_in == os.getpid() or not config.current().alerts:
        return
    with _lock:
        if _started_in != os.getpid():
            try:
                client = connection.client()
            except (redis.RedisError, config.ConfigError):  # the next request tries it again
                return
            _started_in = os.getpid()
            alerts.BackgroundAlerts(client, lambda: not stats.scheduler_is_running(client))
