"""Gunicorn's settings, for the Procfile and `rqjobs dev`.

Use them with `gunicorn --config python:rqjobs.web.gunicorn_config "rqjobs.web:create_app()"`.
"""

import sys
from typing import Any

# The names are imported one by one: gunicorn takes every name in this module for a setting.
from rqjobs.config import Config, ConfigError, current, require_password_for_network
from rqjobs.connection import NoRedis, client

try:
    _settings = current()
    require_password_for_network(_settings)
    client()
except NoRedis:
    pass  # Redis may be there by the time of the first request
except ConfigError as error:
    sys.exit(f"rqjobs: {error}")


def _default_host(settings: Config) -> str:
    """All interfaces if a password is set, as hosting platforms expect; else this machine only."""
    if settings.admin_password:
        return "0.0.0.0"  # a password is set  # nosec B104
    return "127.0.0.1"


bind = f"{_settings.host or _default_host(_settings)}:{_settings.port}"
workers = 1  # one process with threads: the pages only wait for Redis
threads = 32  # a slow client occupies one for at most REQUEST_SECONDS of gunicorn_worker.py
worker_class = "rqjobs.web.gunicorn_worker.Worker"
graceful_timeout = 3  # seconds
limit_request_line = 8190  # bytes: the place in a long search of jobs is a part of the address
loglevel = "warning"
control_socket_disable = True  # gunicorn would leave one in the home directory


def when_ready(server: Any) -> None:
    """Print the address, because honcho may have chosen the port. `rqjobs dev` prints its own."""
    if not _settings.one_time_password:
        print(f"rqjobs: serving at http://{bind}/", file=sys.stderr, flush=True)
