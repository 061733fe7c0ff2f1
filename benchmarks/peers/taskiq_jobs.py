"""taskiq with taskiq-redis: a list without acknowledgements, and a stream with them.

The stream also runs with the result backend of the documentation's examples.
"""

import asyncio
import functools
import os

import work
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

ABOUT = {
    "requires": "taskiq-redis hiredis",
    "version": "taskiq",
    "results": "none",
    "log": "WARNING",
    "systems": {
        "taskiq list 2x5": {
            "run": "taskiq worker taskiq_jobs:broker --workers 2 --max-async-tasks 5 "
            "--log-level WARNING",
            "acks": "before",
        },
        "taskiq stream 2x5": {
            "run": "taskiq worker taskiq_jobs:broker --workers 2 --max-async-tasks 5 "
            "--log-level WARNING",
            "acks": "after",
            "env": {"TASKIQ_STREAM": "1"},
        },
        "taskiq stream 2x5, results": {
            "run": "taskiq worker taskiq_jobs:broker --workers 2 --max-async-tasks 5 "
            "--log-level WARNING",
            "acks": "after",
            "results": "kept 500 s",
            "env": {"TASKIQ_STREAM": "1", "TASKIQ_RESULTS": "1"},
        },
    },
}
if "TASKIQ_STREAM" in os.environ:
    broker = RedisStreamBroker(os.environ["REDIS_URL"])
else:
    broker = ListQueueBroker(os.environ["REDIS_URL"])
if "TASKIQ_RESULTS" in os.environ:
    broker = broker.with_result_backend(
        RedisAsyncResultBackend(os.environ["REDIS_URL"], result_ex_time=500)
    )


@broker.task
async def noop():
    work.noop()


@functools.cache
def started_loop():
    loop = asyncio.new_event_loop()
    loop.run_until_complete(broker.startup())
    return loop


def send(number):
    async def enqueue_all():
        for _ in range(number):
            await noop.kiq()

    started_loop().run_until_complete(enqueue_all())
