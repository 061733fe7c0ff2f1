"""Delayed and repeating jobs, by real workers with a scheduler."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta, timezone

import psutil
import pytest
import sample_jobs
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import JobStatus
from rq.registry import CanceledJobRegistry
from rq.results import Result
from rq.scheduler import RQScheduler

import rqjobs
from rqjobs import Repeat, Retry, delayed, processes
from rqjobs import scheduler as scheduler_module
from rqjobs.broker import keys, leases, scripts, transitions
from rqjobs.maintenance import audit
from rqjobs.scheduler import LOCK_SECONDS, Scheduler


def due(redis, job, seconds_ago=1.0):
    redis.zadd(f"rq:scheduled:{job.origin}", {job.id: time.time() - seconds_ago})


def test_promotion_moves_due_jobs_in_their_order_and_no_others(redis):
    waiting = rqjobs.enqueue(sample_jobs.ok, 0)
    late, early, future = (rqjobs.enqueue_in(60, sample_jobs.ok, n) for n in range(3))
    due(redis, late, 1)
    due(redis, early, 2)
    assert transitions.promote(redis, "default", 180) == 2
    assert rqjobs.queue("default").job_ids == [waiting.id, early.id, late.id]
    assert early.get_status() == JobStatus.QUEUED and redis.hexists(early.key, "enqueued_at")
    assert redis.zrange("rq:scheduled:default", 0, -1) == [future.id.encode()]
    assert not audit.audit(redis).breaches


def test_at_front_and_ttl_hold_for_scheduled_jobs(redis):
    rqjobs.enqueue(sample_jobs.ok)
    front = [rqjobs.enqueue_in(60, sample_jobs.ok, n, at_front=True, ttl=500) for n in range(2)]
    for number, job in enumerate(front):
        due(redis, job, 5 - number)
    transitions.promote(redis, "default", 180)
    assert rqjobs.queue("default").job_ids[:2] == [job.id for job in front]
    assert 0 < redis.ttl(front[0].key) <= 500


def test_canceled_jobs_are_not_promoted_and_ids_without_a_job_are_kept(redis):
    """Plain RQ writes the due time first and the job later."""
    job = rqjobs.enqueue_in(60, sample_jobs.ok)
    redis.hset(job.key, "status", "canceled")
    due(redis, job)
    redis.zadd(
        "rq:scheduled:default", {"not-there-yet": time.time() - 5, "never-came": time.time() - 100}
    )
    assert transitions.promote(redis, "default", 180) == 0
    assert redis.zrange("rq:scheduled:default", 0, -1) == [b"never-came", b"not-there-yet"]
    redis.hset(
        "rqjobs:scheduled-without-job:default",
        "never-came",
        time.time() - transitions.MISSING_JOB_SECONDS - 1,
    )  # the time at which the id was first seen
    assert transitions.promote(redis, "default", 180) == 0
    assert redis.zrange("rq:scheduled:default", 0, -1) == [b"not-there-yet"]
    rqjobs.enqueue(sample_jobs.ok, job_id="not-there-yet")
    redis.delete("rq:queue:default")
    assert transitions.promote(redis, "default", 180) == 1
    assert rqjobs.queue("default").job_ids == ["not-there-yet"] and not redis.exists(
        "rqjobs:scheduled-without-job:default"
    )


def test_any_number_of_ids_without_a_job_delays_no_job(redis):
    """A thousand such ids filled every batch of the scheduler for a minute."""
    job = rqjobs.enqueue_in(60, sample_jobs.ok)
    due(redis, job)
    redis.zadd(
        "rq:scheduled:default",
        {f"missing-{n}": time.time() - 10 - n for n in range(2 * transitions.BATCH_MAX_JOBS)},
    )
    assert transitions.promote(redis, "default", 180) == 1
    assert rqjobs.queue("default").job_ids == [job.id]
    assert redis.zcard("rq:scheduled:default") == 2 * transitions.BATCH_MAX_JOBS


def test_a_delay_is_counted_in_redis_time_and_not_in_local_time(redis, monkeypatch):
    monkeypatch.setattr("rq.queue.now", lambda: datetime(2001, 1, 1, tzinfo=timezone.utc))
    before = scripts.redis_time(redis)
    job = rqjobs.enqueue_in(0.25, sample_jobs.ok)
    assert (
        before + 0.25
        <= redis.zscore("rq:scheduled:default", job.id)
        <= scripts.redis_time(redis) + 0.25
    )


@pytest.fixture
def scheduler(redis):
    """A scheduler in this process. The test calls each step of its loop."""
    scheduler = Scheduler(["default", "low"], connection=redis)
    scheduler._signal_pipe = processes.SignalPipe()
    scheduler.acquire_locks()
    yield scheduler
    scheduler._signal_pipe.close()
    scheduler._pubsub.close()
    scheduler.stop()


def test_a_scheduler_that_lost_its_lock_moves_nothing(redis, scheduler):
    """A plain RQ scheduler reads the due jobs and then moves them.

    A job that rqjobs moved in between would be in its queue twice.
    """
    scheduler._begin()
    scheduler._run_due()
    job = rqjobs.enqueue_in(0, sample_jobs.ok)
    redis.set(RQScheduler.get_locking_key("default"), "a plain RQ scheduler's")
    scheduler._queue_due.clear()
    scheduler._run_due()
    assert redis.zscore("rq:scheduled:default", job.id)
    redis.delete(RQScheduler.get_locking_key("default"))
    scheduler._heartbeat_due = 0
    scheduler._queue_due.clear()
    scheduler._run_due()
    assert rqjobs.queue("default").job_ids == [job.id]


def test_a_job_that_is_due_soon_is_announced_to_the_scheduler(redis, scheduler, eventually):
    scheduler._begin()
    scheduler._run_due()
    assert scheduler._queue_due["default"] > scheduler._ran_at
    job = rqjobs.enqueue_in(0.1, sample_jobs.ok)
    rqjobs.enqueue_in(300, sample_jobs.ok)

    def has_ended_in_time():
        scheduler._ran_at = time.monotonic()
        scheduler._wait_for_event()  # ends by the message, before the job is due
        return redis.zscore("rq:scheduled:default", job.id) <= scripts.redis_time(redis)

    eventually(has_ended_in_time)
    eventually(lambda: (scheduler._run_due(), rqjobs.queue("default").job_ids)[1] == [job.id])
    redis.publish(keys.wakeup_channel("default"), "rubbish")
    redis.publish(keys.wakeup_channel("default"), "nan")
    eventually(lambda: (scheduler._wait_for_event(), scheduler._queue_due["default"] <= 0.0)[1])


def test_a_retry_is_announced_to_the_scheduler_with_the_outcome(redis, worker, eventually):
    channel = redis.pubsub(ignore_subscribe_messages=True)
    channel.subscribe(keys.wakeup_channel("default"))
    worker()  # no scheduler: the job stays in the scheduled set
    job = rqjobs.enqueue(sample_jobs.boom, retry=Retry(max=1, interval=[0.5]))
    eventually(lambda: redis.zscore("rq:scheduled:default", job.id))
    message = eventually(lambda: channel.get_message(timeout=1))
    assert float(message["data"]) == pytest.approx(redis.zscore("rq:scheduled:default", job.id))
    channel.close()


def test_a_delayed_job_is_rescheduled_or_canceled(redis):
    first, second = (
        rqjobs.enqueue_in(60, sample_jobs.ok, 1),
        rqjobs.queue("low").enqueue_in(timedelta(minutes=2), sample_jobs.ok),
    )
    assert [found.job_id for found in delayed.jobs()] == [first.id, second.id]
    moment = delayed.reschedule(first.id, timedelta(hours=1))
    assert moment.timestamp() == pytest.approx(redis.zscore("rq:scheduled:default", first.id))
    assert [found.job_id for found in delayed.jobs()] == [second.id, first.id]
    assert [found.job_id for found in delayed.jobs(offset=1)] == [first.id]
    assert delayed.reschedule(second.id, datetime(2020, 1, 1, tzinfo=timezone.utc)).year == 2020
    assert transitions.promote(redis, "low", 180) == 1
    with pytest.raises(InvalidJobOperation, match="is not delayed"):
        delayed.cancel(second.id)
    delayed.cancel(first.id)
    assert first.get_status() == JobStatus.CANCELED and delayed.count() == 0
    assert first.id in CanceledJobRegistry("default", connection=redis).get_job_ids()
    with pytest.raises(InvalidJobOperation, match="is not delayed"):
        delayed.reschedule(first.id, 0)
    with pytest.raises(NoSuchJobError):
        delayed.cancel("nobody")
    assert not audit.audit(redis).breaches


@pytest.mark.parametrize(
    "when", [float("nan"), float("inf"), True, "soon", 6e20, timedelta.max, datetime.max]
)
def test_an_invalid_time_reschedules_no_job(redis, when):
    job = rqjobs.enqueue_in(60, sample_jobs.note)
    before = redis.zscore("rq:scheduled:default", job.id)
    with pytest.raises(ValueError, match="is not a time for a job"):
        delayed.reschedule(job.id, when)
    assert redis.zscore("rq:scheduled:default", job.id) == before


def test_many_due_jobs_with_many_schedulers_run_once_each(redis):
    jobs = rqjobs.enqueue_many([(sample_jobs.ok, n) for n in range(3000)])
    redis.delete("rq:queue:default")
    now = time.time()
    with redis.pipeline() as pipe:
        for number, job in enumerate(jobs):
            pipe.hset(job.key, "status", "scheduled")
            pipe.zadd("rq:scheduled:default", {job.id: now - 10 + number / 1000})
        pipe.execute()
    moved = []
    threads = [
        threading.Thread(target=lambda: moved.append(transitions.promote(redis, "default", 180)))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(moved) == 3000
    assert rqjobs.queue("default").job_ids == [job.id for job in jobs]


def test_delayed_jobs_run_and_none_early(worker, redis, eventually):
    worker(options=["--with-scheduler"])
    jobs = [rqjobs.enqueue_in(delay, sample_jobs.mark, "ran") for delay in (0, 1.2, 2.4)]
    dues = [redis.zscore("rq:scheduled:default", job.id) or 0 for job in jobs]
    eventually(lambda: redis.llen("ran") == 3)
    for job, moment in zip(jobs, dues, strict=True):
        job.refresh()
        assert job.started_at.timestamp() >= moment


def test_a_repeating_job_runs_to_its_last_repeat(worker, redis, eventually):
    worker(options=["--with-scheduler"])
    job = rqjobs.enqueue(sample_jobs.mark, "ran", repeat=Repeat(times=3, interval=1))
    eventually(lambda: redis.llen("ran") == 4)
    eventually(lambda: job.get_status() == JobStatus.FINISHED)
    assert not audit.audit(redis).breaches


def runs_until_scheduled(redis, job):
    """Let a worker run all queued jobs.

    Returns the seconds from the job's run to its next one, or None.
    """
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    score = redis.zscore("rq:scheduled:default", job.id)
    if score is not None:
        due(redis, job)
        assert transitions.promote(redis, "default", 180) == 1
    return score and score - job.latest_result().created_at.timestamp()


def test_the_intervals_of_a_repeat_come_in_the_order_given(redis):
    """RQ takes the intervals from the end of the list."""
    job = rqjobs.enqueue(sample_jobs.mark, "ran", repeat=Repeat(times=4, interval=[100, 200, 300]))
    waits = [runs_until_scheduled(redis, job) for _ in range(5)]
    assert [round(wait, -2) for wait in waits[:4]] == [100, 200, 300, 300] and waits[4] is None
    assert redis.llen("ran") == 5 and job.get_status() == JobStatus.FINISHED


@pytest.mark.parametrize("retry", [None, Retry(max=1, interval=[50])])
def test_a_failed_run_does_not_end_a_repeat_and_its_retries_come_first(redis, retry):
    job = rqjobs.enqueue(
        sample_jobs.boom, "again", retry=retry, repeat=Repeat(times=2, interval=[100, 200])
    )
    wanted = [50, 100, 50, 200, 50, None] if retry else [100, 200, None]
    waits = [runs_until_scheduled(redis, job) for _ in wanted]
    assert [wait and round(wait, -1) for wait in waits] == wanted
    assert job.get_status() == JobStatus.FAILED and redis.zscore("rq:failed:default", job.id)
    attempts = [result.type for result in job.results() if "ValueError: again" in result.exc_string]
    assert attempts.count(Result.Type.FAILED) == 3
    assert attempts.count(Result.Type.RETRIED) == (3 if retry else 0)
    assert not audit.audit(redis).breaches


def test_stopping_a_repeating_job_ends_its_repeats(redis, worker, eventually):
    worker()
    job = rqjobs.enqueue(sample_jobs.hang, "gate", repeat=Repeat(times=3, interval=100))
    eventually(lambda: redis.llen("gate:reached"))
    send_stop_job_command(redis, job.id)
    eventually(lambda: job.get_status() == JobStatus.STOPPED)
    assert redis.zscore("rq:scheduled:default", job.id) is None


def schedulers_of(redis, process):
    """The scheduler process of a worker."""
    children = {child.pid for child in psutil.Process(process.pid).children()}
    return [
        pid
        for key in redis.scan_iter("rq:scheduler:*")
        if (pid := int(redis.hget(key, "pid") or 0)) in children
    ]


def test_after_kill_9_another_worker_runs_the_scheduler_within_seconds(
    worker, redis, eventually, kill
):
    """RQ's own lock expires after 61 s, and RQ tries to take it every ten minutes."""
    first = worker(options=["--with-scheduler"])
    (scheduler,) = eventually(lambda: schedulers_of(redis, first))
    holder = eventually(lambda: redis.get(RQScheduler.get_locking_key("default")))
    kill(first.pid)
    eventually(
        lambda: not psutil.pid_exists(scheduler),
        timeout=5,
        what="the scheduler's death with its worker",
    )
    worker(options=["--with-scheduler"])
    rqjobs.enqueue_in(0, sample_jobs.mark, "ran")
    eventually(lambda: redis.llen("ran") == 1, timeout=LOCK_SECONDS + leases.HEARTBEAT_SECONDS + 5)
    assert redis.get(RQScheduler.get_locking_key("default")) != holder


def test_a_killed_scheduler_is_started_again_by_its_worker(worker, redis, eventually, kill):
    process = worker(options=["--with-scheduler"])
    (scheduler,) = eventually(lambda: schedulers_of(redis, process))
    kill(scheduler)
    rqjobs.enqueue_in(0, sample_jobs.mark, "ran")
    eventually(lambda: redis.llen("ran") == 1, timeout=3 * leases.HEARTBEAT_SECONDS)


def test_a_worker_without_the_lock_takes_it_when_the_other_goes(worker, redis, eventually):
    first, second = (worker(options=["--with-scheduler"]) for _ in range(2))
    first.terminate()
    assert first.wait(20) == 0
    rqjobs.enqueue_in(0, sample_jobs.mark, "ran")
    eventually(lambda: redis.llen("ran") == 1, timeout=3 * leases.HEARTBEAT_SECONDS)
    assert second.poll() is None


def test_each_queue_has_one_scheduler_and_a_stock_scheduler_respects_it(redis, monkeypatch):
    monkeypatch.setattr(scheduler_module, "LOCK_SECONDS", 60)
    ours = Scheduler(["default", "low"], connection=redis)
    assert ours.acquire_locks() == {"default", "low"}
    stock = RQScheduler(["default"], connection=redis)
    assert stock.acquire_locks() == set()
    assert 0 < redis.ttl(RQScheduler.get_locking_key("default")) <= 60
    ours.release_locks()
    assert stock.acquire_locks() == {"default"}
    assert ours.acquire_locks() == {"low"}


@pytest.mark.parametrize("delay", [0, 2])
def test_burst_promotes_due_jobs_and_releases_the_lock(worker, redis, delay):
    job = rqjobs.enqueue_in(60 * delay, sample_jobs.ok)
    rqjobs.Worker(["default"]).work(burst=True, with_scheduler=True, logging_level="WARNING")
    assert job.get_status() == (JobStatus.SCHEDULED if delay else JobStatus.FINISHED)
    assert not redis.exists(RQScheduler.get_locking_key("default"))
