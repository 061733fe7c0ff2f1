"""Delayed and repeating jobs, by real workers with a scheduler."""

from __future__ import annotations

import threading
import time

import faults
import psutil
import pytest
from rq.job import JobStatus
from rq.scheduler import RQScheduler

import rqjobs
from rqjobs import Repeat, ledger, orphans
from rqjobs.scheduler import LOCK_TTL, Scheduler


def due(redis, job, seconds_ago=1.0):
    redis.zadd(f"rq:scheduled:{job.origin}", {job.id: time.time() - seconds_ago})


def test_promotion_moves_what_is_due_in_due_order_and_nothing_else(redis):
    waiting = rqjobs.enqueue(faults.ok, 0)
    late, early, future = (rqjobs.enqueue_in(60, faults.ok, n) for n in range(3))
    due(redis, late, 1)
    due(redis, early, 2)
    assert ledger.promote(redis, "default", 180) == 2
    assert rqjobs.queue("default").job_ids == [waiting.id, early.id, late.id]
    assert early.get_status() == JobStatus.QUEUED and redis.hexists(early.key, "enqueued_at")
    assert redis.zrange("rq:scheduled:default", 0, -1) == [future.id.encode()]
    assert not orphans.audit(redis).breaches


def test_at_front_and_ttl_hold_for_scheduled_jobs(redis):
    rqjobs.enqueue(faults.ok)
    front = [rqjobs.enqueue_in(60, faults.ok, n, at_front=True, ttl=500) for n in range(2)]
    for number, job in enumerate(front):
        due(redis, job, 5 - number)
    ledger.promote(redis, "default", 180)
    assert rqjobs.queue("default").job_ids[:2] == [job.id for job in front]
    assert 0 < redis.ttl(front[0].key) <= 500


def test_a_canceled_job_is_not_promoted_and_a_missing_one_has_a_grace(redis):
    """Stock RQ writes the due time first and the job later."""
    job = rqjobs.enqueue_in(60, faults.ok)
    redis.hset(job.key, "status", "canceled")
    due(redis, job)
    redis.zadd("rq:scheduled:default", {"not-there-yet": time.time() - 5, "never-came": time.time() - 100})
    assert ledger.promote(redis, "default", 180) == 0
    assert redis.zrange("rq:scheduled:default", 0, -1) == [b"not-there-yet"]


def test_many_at_once_by_many_schedulers_come_once_each(redis):
    jobs = rqjobs.enqueue_many([(faults.ok, n) for n in range(3000)])
    redis.delete("rq:queue:default")
    now = time.time()
    with redis.pipeline() as pipe:
        for number, job in enumerate(jobs):
            pipe.hset(job.key, "status", "scheduled")
            pipe.zadd("rq:scheduled:default", {job.id: now - 10 + number / 1000})
        pipe.execute()
    moved = []
    threads = [threading.Thread(target=lambda: moved.append(ledger.promote(redis, "default", 180))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(moved) == 3000
    assert rqjobs.queue("default").job_ids == [job.id for job in jobs]


def test_delayed_jobs_run_and_none_early(worker, redis, eventually):
    worker(options=["--with-scheduler"])
    jobs = [rqjobs.enqueue_in(delay, faults.mark, "ran") for delay in (0, 1.2, 2.4)]
    dues = [redis.zscore("rq:scheduled:default", job.id) or 0 for job in jobs]
    eventually(lambda: redis.llen("ran") == 3)
    for job, moment in zip(jobs, dues, strict=True):
        job.refresh()
        assert job.started_at.timestamp() >= moment


def test_repeat(worker, redis, eventually):
    worker(options=["--with-scheduler"])
    job = rqjobs.enqueue(faults.mark, "ran", repeat=Repeat(times=3, interval=1))
    eventually(lambda: redis.llen("ran") == 4)
    eventually(lambda: job.get_status() == JobStatus.FINISHED)
    assert not orphans.audit(redis).breaches


def schedulers_of(redis, process):
    """The scheduler process of a worker."""
    children = {child.pid for child in psutil.Process(process.pid).children()}
    return [pid for key in redis.scan_iter("rq:scheduler:*") if (pid := int(redis.hget(key, "pid") or 0)) in children]


def test_after_kill_9_the_next_worker_takes_the_scheduler_over_within_seconds(worker, redis, eventually, kill):
    """RQ alone: its lock lives 61 s and is tried again every ten minutes."""
    first = worker(options=["--with-scheduler"])
    (scheduler,) = eventually(lambda: schedulers_of(redis, first))
    holder = eventually(lambda: redis.get(RQScheduler.get_locking_key("default")))
    kill(first.pid)
    eventually(lambda: not psutil.pid_exists(scheduler), timeout=5, what="the scheduler's death with its worker")
    worker(options=["--with-scheduler"])
    rqjobs.enqueue_in(0, faults.mark, "ran")
    eventually(lambda: redis.llen("ran") == 1, timeout=LOCK_TTL + ledger.BEAT + 5)
    assert redis.get(RQScheduler.get_locking_key("default")) != holder


def test_a_killed_scheduler_is_started_again_by_its_worker(worker, redis, eventually, kill):
    process = worker(options=["--with-scheduler"])
    (scheduler,) = eventually(lambda: schedulers_of(redis, process))
    kill(scheduler)
    rqjobs.enqueue_in(0, faults.mark, "ran")
    eventually(lambda: redis.llen("ran") == 1, timeout=3 * ledger.BEAT)


def test_a_worker_without_the_lock_takes_it_when_the_other_goes(worker, redis, eventually):
    first, second = (worker(options=["--with-scheduler"]) for _ in range(2))
    first.terminate()
    assert first.wait(20) == 0
    rqjobs.enqueue_in(0, faults.mark, "ran")
    eventually(lambda: redis.llen("ran") == 1, timeout=3 * ledger.BEAT)
    assert second.poll() is None


def test_one_holder_a_queue_and_a_stock_scheduler_respects_it(redis):
    ours = Scheduler(["default", "low"], connection=redis)
    assert ours.acquire_locks() == {"default", "low"}
    stock = RQScheduler(["default"], connection=redis)
    assert stock.acquire_locks() == set()
    assert 0 < redis.ttl(RQScheduler.get_locking_key("default")) <= LOCK_TTL
    ours.release_locks()
    assert stock.acquire_locks() == {"default"}
    assert ours.acquire_locks() == {"low"}


@pytest.mark.parametrize("delay", [0, 2])
def test_burst_promotes_what_is_due_and_leaves_the_lock(worker, redis, delay):
    job = rqjobs.enqueue_in(60 * delay, faults.ok)
    rqjobs.Worker(["default"]).work(burst=True, with_scheduler=True, logging_level="WARNING")
    assert job.get_status() == (JobStatus.SCHEDULED if delay else JobStatus.FINISHED)
    assert not redis.exists(RQScheduler.get_locking_key("default"))
