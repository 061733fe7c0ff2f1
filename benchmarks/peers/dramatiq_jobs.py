"""Dramatiq: its Redis broker with the default middleware, without results."""

import os

import dramatiq
import work
from dramatiq.brokers.redis import RedisBroker

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


def send(number):
    for _ in range(number):
        noop.send()
