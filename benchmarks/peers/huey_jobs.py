"""Huey: its blocking Redis queue. By default the result None is not stored."""

import os

import work
from huey import RedisHuey

ABOUT = {
    "requires": "huey redis hiredis",
    "version": "huey",
    "acks": "before",
    "results": "none",
    "log": "ERROR (--quiet)",
    "systems": {
        "Huey processes": {
            "run": "huey_consumer huey_jobs.huey --worker-type process --workers 10 --quiet"
        },
        "Huey threads": {
            "run": "huey_consumer huey_jobs.huey --worker-type thread --workers 10 --quiet"
        },
    },
}
huey = RedisHuey("bench", url=os.environ["REDIS_URL"])


@huey.task()
def noop():
    work.noop()


def send(number):
    for _ in range(number):
        noop()


def later(seconds):
    noop.schedule(delay=seconds)
