"""Dramatiq: its Redis broker with the default middleware, without results.

Limits are its rate limiters, as in its documentation: a job over its limit raises an exception and
is retried. The default delay of a retry, 15 s and more, is lowered to between 0.1 and 1 s.
"""

import os

import dramatiq
import work
from dramatiq.brokers.redis import RedisBroker
from dramatiq.rate_limits import ConcurrentRateLimiter, WindowRateLimiter
from dramatiq.rate_limits.backends import RedisBackend

ABOUT = {
    "requires": "dramatiq[redis] hiredis",
    "version": "dramatiq",
    "acks": "after",
    "results": "none",
    "log": "INFO (the default, no line per job)",
    "systems": {
        "Dramatiq 2x5": {"run": "dramatiq dramatiq_jobs --processes 2 --threads 5"},
        "Dramatiq 10x1": {"run": "dramatiq dramatiq_jobs --processes 10 --threads 1"},
    },
}
dramatiq.set_broker(RedisBroker(url=os.environ["REDIS_URL"]))


@dramatiq.actor
def noop():
    work.noop()


RETRY = {"max_retries": 10**6, "min_backoff": 100, "max_backoff": 1000}
backend = RedisBackend(url=os.environ["REDIS_URL"])
LIMITS = [ConcurrentRateLimiter(backend, f"key-{key}", limit=4) for key in range(work.KEYS)]
CROWDED = ConcurrentRateLimiter(backend, "crowded", limit=4)
RATE = WindowRateLimiter(backend, "rate", limit=200, window=1)


@dramatiq.actor(**RETRY)
def limited(key):
    with LIMITS[key].acquire():
        work.run_of_key(key)


@dramatiq.actor(**RETRY)
def crowded():
    with CROWDED.acquire():
        work.run_of_key(0, 0.005)


@dramatiq.actor(**RETRY)
def rated():
    with RATE.acquire():
        work.noop()


def send(number, kind="noop"):
    for index in range(number):
        if kind == "limited":
            limited.send(index % work.KEYS)
        else:
            {"noop": noop, "crowded": crowded, "rated": rated}[kind].send()
