"""Unique and debounced jobs with real workers that are killed at random instants."""

from __future__ import annotations

import random

import helpers
import pytest
import sample_jobs
from rq.command import send_stop_job_command
from rq.job import JobStatus

import rqjobs
from rqjobs.broker import keys
from rqjobs.broker.keys import decode
from rqjobs.maintenance import audit

NAMES = [f"name-{number}" for number in range(6)]


def test_a_unique_job_keeps_its_key_while_a_worker_runs_it(redis, worker, eventually):
    running = rqjobs.enqueue(sample_jobs.charge, 1, gate="gate")
    worker()
    eventually(lambda: redis.llen("gate:reached"))
    assert rqjobs.enqueue(sample_jobs.charge, 1) == running
    assert rqjobs.enqueue(sample_jobs.charge, 1, on_conflict="replace") == running
    redis.rpush("gate:open", 1)
    eventually(lambda: running.get_status() == JobStatus.FINISHED)
    assert not redis.exists(keys.UNIQUE)
    assert rqjobs.enqueue(sample_jobs.charge, 1) != running


@pytest.mark.parametrize("ending", ["returns", "fails", "is stopped"])
def test_each_outcome_of_a_worker_keeps_the_key_for_its_time(redis, worker, eventually, ending):
    function, status = {
        "returns": (sample_jobs.ok, JobStatus.FINISHED),
        "fails": (sample_jobs.boom, JobStatus.FAILED),
        "is stopped": (sample_jobs.hang, JobStatus.STOPPED),
    }[ending]
    arguments = ["gate"] if ending == "is stopped" else []
    options = {"unique": "args", "keep": 500}
    job = rqjobs.enqueue(function, *arguments, **options)
    worker()
    if arguments:
        eventually(lambda: redis.llen("gate:reached"))
        send_stop_job_command(redis, job.id)
    eventually(lambda: job.get_status() == status)
    assert rqjobs.enqueue(function, *arguments, **options) == job
    (entry,) = redis.hvals(keys.UNIQUE)
    assert decode(entry).startswith(f"{job.id} ")


@pytest.mark.slow
def test_kill_9_makes_no_second_job_of_a_key_and_loses_no_call(redis, worker, kill, eventually):
    """Workers are killed while jobs are enqueued.

    No two jobs of one key run at once, each debounced key runs its last version, and no key stays
    taken.
    """
    dice = random.Random(13)
    workers = [worker(options=("--with-scheduler",)) for _ in range(3)]
    last = {}
    for version in range(600):
        name = dice.choice(NAMES)
        rqjobs.enqueue(sample_jobs.alone, name, version)
        debounced = f"debounced-{dice.choice(NAMES)}"
        rqjobs.enqueue(
            sample_jobs.index, debounced, version, debounce=0.2, debounce_max=dice.choice([0.5, 2])
        )
        last[debounced] = version
        if version % 60 == 59:
            victim = dice.choice(workers)
            kill(victim.pid)
            workers.remove(victim)
            workers.append(worker(options=("--with-scheduler",)))

    eventually(lambda: helpers.nothing_moves(redis, *helpers.QUEUES), timeout=60)
    assert redis.lrange("beside", 0, -1) == []
    for name, version in last.items():
        assert redis.lindex(f"indexed:{name}", -1) == b"%d" % version
    assert not redis.exists(keys.UNIQUE)
    for name in NAMES:
        ran = [int(version) for version in redis.lrange(f"ran:{name}", 0, -1)]
        assert ran and len(ran) <= 600
        job = rqjobs.enqueue(sample_jobs.alone, name, 1000)
        eventually(lambda job=job: job.get_status() == JobStatus.FINISHED)
    assert not audit.audit(redis).breaches
