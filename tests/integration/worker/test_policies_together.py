"""Limits, rates, unique keys and retries together with groups, pipelines, schedules and bursts."""

from __future__ import annotations

import pytest
import sample_jobs
from rq import Repeat
from rq.group import Group
from rq.job import JobStatus
from rq.worker import DequeueStrategy

import rqjobs
from rqjobs import backoff
from rqjobs.broker import keys, leases, transitions
from rqjobs.maintenance import audit


def burst(*queues):
    """Run one burst worker in this process, without a scheduler."""
    rqjobs.Worker(list(queues or ("high", "default"))).work(burst=True, logging_level="WARNING")


def statuses(jobs):
    return [job.get_status() for job in jobs]


def check_nothing_is_left(redis):
    assert not redis.keys("rqjobs:slots*") and not redis.keys("rqjobs:waiting*")
    assert not audit.audit(redis, 0).breaches


def test_a_burst_ends_when_nothing_can_run_and_a_later_one_goes_on(redis):
    rated = [rqjobs.enqueue(sample_jobs.twice_an_hour) for _ in range(4)]
    limited = [rqjobs.enqueue(sample_jobs.two_at_a_time) for _ in range(5)]
    plain = rqjobs.enqueue(sample_jobs.ok)
    burst()
    assert statuses(rated) == [JobStatus.FINISHED] * 2 + [JobStatus.DEFERRED] * 2
    assert {*statuses(limited), plain.get_status()} == {JobStatus.FINISHED}
    burst()
    assert statuses(rated[2:]) == [JobStatus.DEFERRED] * 2
    redis.delete("rqjobs:rate:sample_jobs.twice_an_hour")  # two hours later
    redis.zadd(keys.RATE_DUE, {"sample_jobs.twice_an_hour": 1})
    burst()
    assert statuses(rated) == [JobStatus.FINISHED] * 4
    check_nothing_is_left(redis)


def test_a_burst_runs_the_jobs_that_have_a_token_by_its_end(redis):
    jobs = [rqjobs.enqueue(sample_jobs.ok, value, rate="10/s", limit_by="api") for value in (1, 2)]
    rqjobs.enqueue(sample_jobs.nap, 0.15)
    burst()
    assert statuses(jobs) == [JobStatus.FINISHED] * 2
    unserved = [
        rqjobs.queue("low").enqueue(sample_jobs.ok, rate="100/s", limit_by="low") for _ in range(3)
    ]
    burst("high")
    assert JobStatus.FINISHED not in statuses(unserved)
    burst("low")
    burst("low")


@pytest.mark.parametrize("strategy", ["default", "round_robin"])
def test_a_worker_says_whether_its_queues_have_an_order(redis, monkeypatch, strategy):
    facts = []
    renew = leases.renew_lease
    monkeypatch.setattr(leases, "renew_lease", lambda *args: facts.append(args[2]) or renew(*args))
    worker = rqjobs.Worker(["high", "default"])
    worker.work(burst=True, logging_level="WARNING", dequeue_strategy=DequeueStrategy(strategy))
    assert {fact["in_turns"] for fact in facts} == {int(strategy == "round_robin")}


def test_limits_hold_for_jobs_of_groups_pipelines_schedules_and_repeats(redis):
    queue = rqjobs.queue("default")
    calls = [queue.prepare_data(sample_jobs.one_for_each_user, args=(1,)) for _ in range(3)]
    jobs = Group.create(connection=redis).enqueue_many(queue, calls)
    with redis.pipeline() as pipe:
        jobs += [queue.enqueue(sample_jobs.one_for_each_user, 1, pipeline=pipe) for _ in range(2)]
        jobs += queue.enqueue_many(calls[:2], pipeline=pipe)
        first, second = (queue.enqueue(sample_jobs.unique_args, 7, pipeline=pipe) for _ in range(2))
        pipe.execute()
    jobs += rqjobs.enqueue_many([(sample_jobs.one_for_each_user, 1)] * 2)
    rqjobs.schedules.add("often", rqjobs.every(hours=1), sample_jobs.one_for_each_user, 1)
    jobs += [rqjobs.schedules.run_now("often") for _ in range(2)]
    repeated = queue.enqueue(sample_jobs.one_for_each_user, 1, repeat=Repeat(times=2, interval=0))
    jobs += [repeated, queue.enqueue(sample_jobs.one_for_each_user, 1, at_front=True)]
    burst()
    assert set(statuses(jobs)) == {JobStatus.FINISHED} and len(jobs) == 13
    assert repeated.repeats_left in (None, 2) and len(repeated.results()) == 3
    # Of the two calls of one unique key the pipeline has stored one.
    assert rqjobs.Job.exists(first.id, redis) and not rqjobs.Job.exists(second.id, redis)
    check_nothing_is_left(redis)


def test_async_jobs_keep_their_limits_through_retries_and_snoozes(redis):
    options = {"limit": 1, "limit_by": "{name}", "retry": backoff(3, base=1, cap=0)}
    jobs = [rqjobs.enqueue(sample_jobs.third_time, name, **options) for name in "aab"]
    for _ in range(8):
        burst()
        transitions.promote(redis, "default", 60)
    assert set(statuses(jobs)) == {JobStatus.FINISHED}
    assert int(redis.get("third:b")) == 3
    check_nothing_is_left(redis)


def test_the_time_of_an_on_failed_job_counts_from_its_call(redis):
    failed = rqjobs.enqueue(sample_jobs.boom, on_failed="sample_jobs:note_in_time")
    burst()
    (call,) = set(rqjobs.queue("default").finished_job_registry.get_job_ids()) - {failed.id}
    expires = rqjobs.Job.fetch(call, connection=redis).return_value()
    moment, _, seconds = expires.partition("+")
    assert float(seconds) == 60 and 0 < float(moment) - redis.time()[0] < 61
