"""Celery: no results and a high prefetch, as its guide advises for many short tasks.

A task is acknowledged early, which is the default, except with acks_late.
"""

import os

import celery
import work

ABOUT = {
    "requires": "celery[redis] hiredis",
    "version": "celery",
    "results": "none",
    "log": "WARNING",
    "jobs": 5000,
    "systems": {
        "Celery prefork": {
            "run": "celery -A celery_jobs worker --pool prefork -c 10 -l WARNING",
            "acks": "before",
        },
        "Celery prefork, acks_late": {
            "run": "celery -A celery_jobs worker --pool prefork -c 10 -l WARNING",
            "acks": "after",
            "env": {"CELERY_LATE": "1"},
        },
        "Celery threads": {
            "run": "celery -A celery_jobs worker --pool threads -c 10 -l WARNING",
            "acks": "before",
        },
    },
}
app = celery.Celery(
    "celery_jobs",
    broker=os.environ["REDIS_URL"]
    .replace("unix://", "redis+socket://")
    .replace("?db=", "?virtual_host="),
)
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=64,
    task_acks_late="CELERY_LATE" in os.environ,
)


@app.task(name="noop")
def noop():
    work.noop()


def send(number):
    with app.producer_pool.acquire() as producer:
        for _ in range(number):
            noop.apply_async(producer=producer)


def later(seconds):
    noop.apply_async(countdown=seconds)
