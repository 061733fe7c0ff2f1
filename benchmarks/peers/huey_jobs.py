"""Huey: its blocking Redis queue. By default the result None is not stored.

Its limit is a lock, so one job of a key at a time. A job that finds the lock taken fails, and is
retried at once. Huey has no rates.
"""

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


@huey.task(retries=10**6)
def limited(key):
    with huey.lock_task(f"key-{key}"):
        work.run_of_key(key)


@huey.task(retries=10**6)
def crowded():
    with huey.lock_task("crowded"):
        work.run_of_key(0, 0.005)


def send(number, kind="noop"):
    for index in range(number):
        if kind == "limited":
            limited(index % work.KEYS)
        else:
            {"noop": noop, "crowded": crowded}[kind]()


def later(seconds):
    noop.schedule(delay=seconds)
