"""Expiry, hard limits and cancellation, in real workers and in single claims."""

from __future__ import annotations

import random
import time
from datetime import datetime, timedelta, timezone

import pytest
import sample_jobs
from helpers import claim
from rq.exceptions import InvalidJobOperation
from rq.job import JobStatus
from rq.registry import CanceledJobRegistry

import rqjobs
from rqjobs import Repeat, Retry, delayed, schedules
from rqjobs.broker import keys, leases, recovery, scripts, transitions
from rqjobs.maintenance import audit
from rqjobs.schedules.cron import ScheduleError


def run(*queues):
    rqjobs.Worker(queues or ["default", "low"]).work(burst=True, logging_level="CRITICAL")


def lease(redis, worker="w"):
    leases.renew_lease(redis, worker, {"pid": 1}, False)


def expire_now(redis, job):
    """Let the job's time be over, as if it had waited."""
    assert redis.hget(job.key, "rqjobs_expires")
    redis.hset(job.key, "rqjobs_expires", "1000.000+60")


def expiry(redis, job):
    return float(redis.hget(job.key, "rqjobs_expires").split(b"+")[0])


# Expiry


def test_an_expired_job_ends_as_canceled_with_its_reason(redis):
    job = rqjobs.enqueue(sample_jobs.mark, "ran", expires=60, failure_ttl=100)
    fresh = rqjobs.enqueue(sample_jobs.ok, expires=timedelta(hours=1))
    assert expiry(redis, job) == pytest.approx(scripts.redis_time(redis) + 60, abs=5)
    expire_now(redis, job)
    run()
    assert fresh.is_finished and not redis.exists("ran")
    assert job.get_status() == JobStatus.CANCELED and job.refresh() is None
    assert redis.hget(job.key, "rqjobs_ending") == b"expired"
    assert "had not begun by the time" in job.latest_result().exc_string
    assert 0 < redis.ttl(job.key) <= 100 and redis.ttl(f"rq:results:{job.id}") > 0
    assert CanceledJobRegistry(queue=rqjobs.queue("default")).get_job_ids() == [job.id]
    assert not audit.audit(redis, settle=0).breaches and not redis.exists(keys.claims("w"))


def test_forgotten_expired_jobs_leave_no_entry(redis):
    for _ in range(3):
        job = rqjobs.enqueue(sample_jobs.ok, expires=60, failure_ttl=1)
        expire_now(redis, job)
        run()
        redis.delete(job.key)
        redis.zadd(keys.canceled_expiry("default"), {job.id: 1}, xx=True)
    assert redis.zcard("rq:canceled:default") == 1


def test_a_job_that_a_pop_delivers_after_its_time_expires(redis):
    job = rqjobs.enqueue(sample_jobs.ok, expires=60)
    expire_now(redis, job)
    lease(redis)
    redis.lmove("rq:queue:default", keys.claims("w"), "LEFT", "RIGHT")  # as BLMOVE does
    assert claim(redis, "w", ["default"]) == []
    assert job.get_status() == JobStatus.CANCELED and not redis.exists(keys.claims("w"))


def test_many_expired_jobs_are_ended_in_several_steps(redis):
    jobs = rqjobs.enqueue_many([(sample_jobs.expiring, number) for number in range(450)])
    last = rqjobs.enqueue(sample_jobs.ok)
    for job in jobs:
        expire_now(redis, job)
    lease(redis)
    assert claim(redis, "w", ["default"]) == [] and rqjobs.queue("default").count == 251
    run()
    assert last.is_finished and redis.zcard("rq:canceled:default") == 450


def test_only_the_first_beginning_may_expire(redis):
    """Retries, repeats, requeued jobs, and those whose worker died run however late it is."""
    retried = rqjobs.enqueue(sample_jobs.flaky, "f", 1, expires=60, retry=Retry(max=1))
    delayed_retry = rqjobs.enqueue(
        sample_jobs.flaky, "g", 1, expires=60, retry=Retry(max=1, interval=30)
    )
    repeated = rqjobs.enqueue(
        sample_jobs.mark, "repeated", expires=60, repeat=Repeat(times=1, interval=30)
    )
    snoozed = rqjobs.enqueue(sample_jobs.snooze_once, "s", expires=60)
    failed = rqjobs.enqueue(sample_jobs.flaky, "h", 1, expires=60)
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL", max_jobs=5)
    assert failed.is_failed and retried.get_status() == JobStatus.QUEUED
    failed.requeue()
    for job in (delayed_retry, repeated, snoozed):
        delayed.reschedule(job.id, 0)
        transitions.promote(redis, "default", 180)
    for job in (retried, delayed_retry, repeated, snoozed):
        expire_now(redis, job)
    run()
    assert snoozed.is_finished
    assert retried.is_finished and delayed_retry.is_finished and failed.is_finished
    assert redis.llen("repeated") == 2


def test_a_job_whose_worker_died_runs_again_but_one_that_had_not_begun_expires(redis):
    running, waiting = (rqjobs.enqueue(sample_jobs.ok, n, expires=60) for n in range(2))
    lease(redis)
    assert len(claim(redis, "w", ["default"], 2)) == 2
    recovery.reclaim(redis, "w", ["default"], recovery.DeathCause.HORSE_DIED, "")
    assert rqjobs.queue("default").job_ids == [running.id, waiting.id]
    assert not redis.hexists(running.key, "rqjobs_expires")
    expire_now(redis, waiting)
    run()
    assert running.is_finished and waiting.get_status() == JobStatus.CANCELED


def test_a_released_job_has_not_begun(redis):
    job = rqjobs.enqueue(sample_jobs.ok, expires=60)
    lease(redis)
    claim(redis, "w", ["default"])
    assert transitions.release_all(redis, "w") == [job.id]
    expire_now(redis, job)
    run()
    assert job.get_status() == JobStatus.CANCELED


def test_a_delayed_job_expires_after_its_due_time(redis):
    job = rqjobs.enqueue_in(1000, sample_jobs.ok, expires=60)
    now = scripts.redis_time(redis)
    assert expiry(redis, job) == pytest.approx(now + 1060, abs=5)
    delayed.reschedule(job.id, 5000)
    assert expiry(redis, job) == pytest.approx(now + 5060, abs=5)
    moment = datetime.now(timezone.utc) + timedelta(seconds=500)
    with pytest.raises(ValueError, match="expires before it is due"):
        rqjobs.enqueue_in(1000, sample_jobs.ok, expires=moment)
    assert delayed.count() == 1
    assert rqjobs.enqueue_in(100, sample_jobs.ok, expires=moment)


@pytest.mark.parametrize("way", ["unique", "pipeline", "many", "object"])
def test_every_way_to_enqueue_counts_from_now(redis, way):
    queue = rqjobs.queue("default")
    if way == "unique":
        job = queue.enqueue(sample_jobs.ok, job_id="one", unique=True, expires=60)
    elif way == "pipeline":
        with redis.pipeline() as pipe:
            job = queue.enqueue(sample_jobs.ok, pipeline=pipe, expires=60)
            pipe.execute()
    elif way == "many":
        data = rqjobs.Queue.prepare_data(sample_jobs.ok, expires=60)
        (job,) = queue.enqueue_many([data])
    else:
        job = queue.enqueue(sample_jobs.ok, expires=60)
        expire_now(redis, job)
        job = queue.enqueue_job(rqjobs.Job.fetch(job.id, connection=redis))
    assert expiry(redis, job) == pytest.approx(scripts.redis_time(redis) + 60, abs=5)
    run()
    assert job.is_finished


def test_an_expired_job_that_is_enqueued_again_has_a_new_time(redis):
    job = rqjobs.enqueue(sample_jobs.ok, expires=60)
    expire_now(redis, job)
    run()
    assert job.get_status() == JobStatus.CANCELED
    rqjobs.queue("default").enqueue_job(rqjobs.Job.fetch(job.id, connection=redis))
    assert not redis.hexists(job.key, "rqjobs_ending")
    run()
    assert job.is_finished and not redis.zcard("rq:canceled:default")


def test_the_jobs_of_a_schedule_expire_after_each_run(redis):
    schedules.add("s", rqjobs.every(hours=1), sample_jobs.ok, expires=60)
    job = schedules.run_now("s")
    assert expiry(redis, job) == pytest.approx(scripts.redis_time(redis) + 60, abs=5)
    late = datetime.now(timezone.utc) + timedelta(days=1)
    with pytest.raises(ScheduleError, match="no job would run after it"):
        schedules.add("t", rqjobs.every(hours=1), sample_jobs.ok, expires=late)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"expires": 0}, "expires=0 would let no job begin"),
        ({"expires": -1}, "expires=-1 is not possible; give 0 to"),
        ({"expires": "soon"}, "expires='soon' is not a time; give seconds, a timedelta or a date"),
        ({"expires": True}, "expires=True is not a time"),
        ({"expires": float("nan")}, "expires=nan is not possible"),
        ({"expires": datetime(2020, 1, 1)}, "is in the past"),
        ({"kill_after": -1}, "kill_after=-1 is not possible"),
        ({"kill_after": "5"}, "kill_after='5' is not a time; give seconds or a timedelta"),
        ({"kill_after": timedelta(days=99999)}, "is not possible"),
    ],
)
def test_bad_times_are_refused_and_nothing_is_stored(redis, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        rqjobs.enqueue(sample_jobs.ok, **options)
    assert not redis.keys("rq:*")
    if not isinstance(options.get("expires"), datetime):  # that time may have been in the future
        with pytest.raises((TypeError, ValueError), match=message):
            rqjobs.job(**options)(sample_jobs.ok)
        assert not hasattr(sample_jobs.ok, "__rqjobs__")


def test_kills_lose_no_job_that_may_expire(worker, redis, eventually, kill):
    """Each job has run or has expired, and none is in two places."""
    jobs = [
        rqjobs.enqueue(sample_jobs.nap, 0.01, expires=random.choice((0.2, 0.6, 60)))
        for _ in range(150)
    ]
    processes = [worker("default") for _ in range(2)]
    for _ in range(4):
        kill(processes.pop(0).pid)
        processes.append(worker("default"))
    eventually(lambda: {job.get_status() for job in jobs} <= {"finished", "canceled"}, timeout=60)
    assert not audit.audit(redis, settle=0.5).breaches
    for job in jobs:
        ran = redis.hget(job.key, "status") == b"finished"
        assert ran or redis.hget(job.key, "rqjobs_ending") == b"expired"
        assert redis.zscore("rq:canceled:default", job.id) is None or not ran


# The hard limit


def test_kill_after_sets_the_hard_limit_of_a_job(worker, redis, eventually):
    """Without the option the job would be killed two seconds (the setting) after its timeout."""
    worker(env={"RQJOBS_SHUTDOWN_TIMEOUT": "300"})
    began = time.monotonic()
    job = rqjobs.enqueue(sample_jobs.stubborn, 250, job_timeout=1, kill_after=1)
    after = rqjobs.enqueue(sample_jobs.ok)
    eventually(lambda: job.is_failed and after.is_finished, timeout=25)
    assert time.monotonic() - began >= 2
    assert "ignored its time limit of 1 s" in job.latest_result().exc_string


# Cancellation


def test_a_running_job_notices_that_it_was_canceled(worker, redis, eventually):
    process = worker(env={"RQJOBS_SHUTDOWN_TIMEOUT": "300"})
    job = rqjobs.enqueue(sample_jobs.loop_until_cancelled, retry=Retry(max=3))
    eventually(lambda: redis.get("looping"))
    job.cancel()
    with pytest.raises(InvalidJobOperation):
        job.cancel()
    eventually(lambda: redis.get("cleaned up") == b"True", timeout=10)
    after = rqjobs.enqueue(sample_jobs.pid)
    eventually(lambda: after.is_finished)
    assert after.return_value() == int(redis.get("looping")), "the process was not killed"
    assert (
        job.get_status() == JobStatus.CANCELED and "was canceled while it ran" in process.output()
    )
    assert not redis.hexists(job.key, "rqjobs_crashes")
    assert not audit.audit(redis, settle=0.5).breaches


def test_a_canceled_job_that_goes_on_is_killed_after_the_grace(worker, redis, eventually):
    env = {
        "RQJOBS_SHUTDOWN_TIMEOUT": "300",
        "SAMPLE_JOBS_BEAT": "0.2",
        "SAMPLE_JOBS_SPAN": "5",
    }
    process = worker("default", env=env)
    job = rqjobs.enqueue(sample_jobs.hang, "gate", 250, kill_after=2, retry=Retry(max=3))
    eventually(lambda: redis.llen("gate:reached") == 1)
    job.cancel()
    after = rqjobs.enqueue(sample_jobs.ok)
    eventually(lambda: after.is_finished, timeout=25)
    assert f"job {job.id} was canceled, and went on for 2 s" in process.output()
    assert job.get_status() == JobStatus.CANCELED and redis.llen("gate:reached") == 1
    assert not redis.hexists(job.key, "rqjobs_crashes") and not redis.zcard("rq:failed:default")
    assert not audit.audit(redis, settle=0.5).breaches


def test_a_canceled_job_that_is_enqueued_again_runs_once_more(worker, redis, eventually):
    worker(env={"SAMPLE_JOBS_BEAT": "0.2"})
    job = rqjobs.enqueue(sample_jobs.hang, "gate", 250, kill_after=0.5)
    eventually(lambda: redis.llen("gate:reached") == 1)
    job.cancel()
    rqjobs.queue("default").enqueue_job(rqjobs.Job.fetch(job.id, connection=redis))
    eventually(lambda: redis.rpush("gate:open", 1) and job.is_finished, timeout=30)
    assert not audit.audit(redis, settle=0.5).breaches


def test_cancelled_outside_a_job_is_false_and_asks_nothing(redis):
    calls = redis.info("commandstats").get("cmdstat_hget", {"calls": 0})["calls"]
    assert rqjobs.cancelled() is False
    assert redis.info("commandstats").get("cmdstat_hget", {"calls": 0})["calls"] == calls


def test_cancelled_asks_once_a_second_and_survives_a_silent_redis(redis, monkeypatch):
    job = rqjobs.enqueue(sample_jobs.ok)
    asked = []
    answers = [ConnectionError("away"), b"started", rqjobs.connection.redis.TimeoutError(), None]

    def answer(*args):
        asked.append(args)
        reply = answers[len(asked) - 1]
        if isinstance(reply, Exception):
            raise reply
        return reply

    clock = [1000.0]
    monkeypatch.setattr("rqjobs.cancellation.get_current_job", lambda: job)
    monkeypatch.setattr("rqjobs.cancellation.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(job.connection, "hget", answer)
    found = []
    for _ in range(10):
        found.append(rqjobs.cancelled())
        clock[0] += 0.5
    assert found == [False] * 6 + [True] * 4 and len(asked) == 4
