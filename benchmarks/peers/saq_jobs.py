"""saq: two processes with five jobs at a time each. Results are kept as by default."""

import asyncio
import functools
import os

import work
from redis.asyncio import Redis
from saq.queue.redis import RedisQueue

ABOUT = {
    # saq 0.26 imports typing_extensions without requiring it.
    "requires": "saq[redis,hiredis] typing_extensions",
    "version": "saq",
    "acks": "after",
    "results": "kept 10 min",
    "log": "WARNING (--quiet)",
    "systems": {"saq 2x5": {"run": "saq saq_jobs.settings --workers 2 --quiet"}},
}
queue = RedisQueue(Redis.from_url(os.environ["REDIS_URL"]))


async def noop(context):
    work.noop()


settings = {"queue": queue, "functions": [noop], "concurrency": 5}
loop = functools.cache(asyncio.new_event_loop)


def send(number):
    async def enqueue_all():
        for _ in range(number):
            await queue.enqueue("noop")

    loop().run_until_complete(enqueue_all())
