"""arq: two processes with five jobs at a time each, because a process uses only one core.

Results are kept as by default.
"""

import asyncio
import datetime
import functools
import os
from urllib.parse import parse_qs, urlsplit

import work
from arq import create_pool
from arq.connections import RedisSettings

ABOUT = {
    "requires": "arq",
    "version": "arq",
    "acks": "after",
    "results": "kept 1 h",
    "log": "WARNING",
    "jobs": 5000,
    "systems": {
        "arq 2x5": {"run": "arq arq_jobs.Settings --custom-log-dict arq_jobs.LOG", "start": 2}
    },
}
LOG = {"version": 1, "loggers": {"arq": {"level": "WARNING"}}}
_url = urlsplit(os.environ["REDIS_URL"])
_redis = RedisSettings(unix_socket_path=_url.path, database=int(parse_qs(_url.query)["db"][0]))


async def noop(context):
    work.noop()


class Settings:
    functions = (noop,)
    redis_settings = _redis
    max_jobs = 5


@functools.cache
def event_loop_and_pool():
    loop = asyncio.new_event_loop()
    return loop, loop.run_until_complete(create_pool(_redis))


def send(number):
    loop, pool = event_loop_and_pool()

    async def enqueue_all():
        for _ in range(number):
            await pool.enqueue_job("noop")

    loop.run_until_complete(enqueue_all())


def later(seconds):
    loop, pool = event_loop_and_pool()
    loop.run_until_complete(pool.enqueue_job("noop", _defer_by=datetime.timedelta(seconds=seconds)))
