"""Gunicorn's settings, for the Procfile and `rqjobs dev`: `gunicorn --config python:rqjobs.web.gunicorn_config …`."""

import sys
from typing import Any

# Not `config` itself: gunicorn takes every name in here for a setting of its own.
from rqjobs.config import ConfigError, current, require_password_for_network
from rqjobs.connection import NoRedis, client

try:
    _settings = current()
    require_password_for_network(_settings)
    client()
except NoRedis:
    pass  # there may be one when the first page is asked for
except ConfigError as error:
    sys.exit(f"rqjobs: {error}")
# Behind a password all interfaces are served, as a platform that sets PORT expects; without one only this machine.
bind = (
    f"{_settings.host or ('0.0.0.0' if _settings.admin_password else '127.0.0.1')}:{_settings.port}"
)
workers = 1  # one process with threads: the pages only wait for Redis
threads = 32  # a slow client has one for at most so long as gunicorn_worker.py says
worker_class = "rqjobs.web.gunicorn_worker.Worker"
graceful_timeout = 3  # seconds
loglevel = "warning"
control_socket_disable = True  # gunicorn would leave one in the home directory


def when_ready(server: Any) -> None:
    """Say where it serves: what starts it may have chosen the port (honcho: 5000). `rqjobs dev` says so itself."""
    if not _settings.one_time_password:
        print(f"rqjobs: serving at http://{bind}/", file=sys.stderr, flush=True)
