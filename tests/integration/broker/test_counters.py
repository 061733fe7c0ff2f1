"""Counts of jobs by minute and queue, and their totals of the last day."""

from __future__ import annotations

from collections import Counter

import helpers
import pytest
import sample_jobs

import rqjobs
from rqjobs import every, schedules
from rqjobs.broker import counters, keys, recovery, scripts, transitions
from rqjobs.broker.counters import Kind
from rqjobs.maintenance import sweep


def read_minutes(redis, minutes):
    replies = scripts.read_together(redis, counters.minutes_commands(minutes))
    return dict(zip(minutes, map(counters.read_counts, replies), strict=True))


@pytest.fixture
def counted(redis):
    """The counts so far, as `<kind>:<queue>` -> number, whichever minute they are in."""

    def read():
        found = Counter()
        for key in redis.scan_iter("rqjobs:counts:[0-9]*"):
            for field, value in redis.hgetall(key).items():
                found[field.decode()] += int(value)
        return dict(found)

    return read


@pytest.fixture
def minute(redis):
    return counters.minute_of(scripts.redis_time(redis))


@pytest.fixture
def broker(redis):
    return helpers.Broker(redis)


def settle_plainly(redis, claim):
    moment = "2026-11-27T01:00:00.000000Z"
    arguments = [claim.job_id, claim.queue, claim.token, "a", moment, moment, 1, 2, 500, 600]
    command = scripts.SETTLE_SUCCESS
    return command.run(redis, [keys.claims("a")], [*arguments, "", 180])


def test_each_way_into_a_queue_is_counted_when_the_job_enters_it(redis, counted, broker):
    rqjobs.enqueue(sample_jobs.ok)
    assert counted() == {"enqueued:default": 1}
    parent = rqjobs.enqueue(sample_jobs.ok, job_id="parent")
    rqjobs.enqueue(sample_jobs.ok, depends_on=parent)
    delayed = rqjobs.enqueue_in(60, sample_jobs.ok)
    assert counted() == {"enqueued:default": 2}, "a delayed or deferred job is in no queue yet"
    redis.zadd(keys.scheduled("default"), {delayed.id: 1})
    transitions.promote(redis, "default", 180)
    assert counted() == {"enqueued:default": 3}
    schedules.add("hourly", every(hours=1), sample_jobs.ok)
    schedules.run_now("hourly")
    assert counted() == {"enqueued:default": 4}
    while "parent" not in broker.claim():
        pass
    settle_plainly(redis, broker.claims["a"]["parent"])
    assert counted() == {"enqueued:default": 5, "finished:default": 1}
    redis.zadd(keys.failed("default"), {delayed.id: 9e9})
    redis.hset(delayed.key, "status", "failed")
    redis.delete(keys.queue("default"))
    transitions.requeue(redis, delayed.id)
    assert counted()["enqueued:default"] == 6


def test_many_jobs_of_one_call_are_counted_together(redis, counted):
    redis.config_resetstat()
    rqjobs.enqueue_many([(sample_jobs.ok, number) for number in range(50)])
    assert counted() == {"enqueued:default": 50}
    assert redis.info("commandstats")["cmdstat_hincrby"]["calls"] == 1


def test_each_outcome_is_counted(redis, counted, broker):
    statuses = ["finished", "failed", "stopped", "canceled", "scheduled", "queued"]
    for status in statuses:
        rqjobs.enqueue(sample_jobs.ok, job_id=status)
    broker.claim(max_jobs=len(statuses))
    for status in statuses:
        assert broker.settle(status, status=status) == "settled"
    assert counted() == {
        "enqueued:default": 7,
        "finished:default": 1,
        "failed:default": 1,
        "stopped:default": 1,
        "canceled:default": 1,
        "retried:default": 2,
    }


def test_an_outcome_that_is_sent_twice_is_counted_once(redis, counted, broker):
    (job_id,) = [rqjobs.enqueue(sample_jobs.ok).id]
    broker.claim()
    claim = broker.claims["a"][job_id]
    assert settle_plainly(redis, claim) == b"settled"
    assert settle_plainly(redis, claim) == b"already"
    assert counted() == {"enqueued:default": 1, "finished:default": 1}


def test_recovered_and_poisonous_jobs_are_counted(redis, counted, broker):
    rqjobs.enqueue(sample_jobs.ok, job_id="one")
    for _ in range(3):
        redis.hset("rq:job:one", "rqjobs_crashes", "")
        broker.claim()
        recovery.reclaim(redis, "a", ["default"], recovery.DeathCause.HORSE_DIED, "one", delay=0)
        broker.claims.clear()
    assert counted() == {"enqueued:default": 1, "recovered:default": 3}


def test_a_key_of_the_wrong_type_stops_no_job(redis, minute, broker):
    for number in range(2):
        redis.set(keys.counts(minute + number), "foreign")
    job = rqjobs.enqueue(sample_jobs.ok)
    assert broker.claim() == [job.id]
    assert settle_plainly(redis, broker.claims["a"][job.id]) == b"settled"
    assert read_minutes(redis, [minute]) == {minute: {}}


def test_the_counts_of_a_minute_are_bounded_and_expire(redis, minute):
    names = [f"customer-{number}" for number in range(600)]
    for name in names:
        rqjobs.queue(name).enqueue(sample_jobs.ok)
    found = read_minutes(redis, range(minute, minute + 3))
    assert all(len(counts) <= 513 for counts in found.values())
    total = sum(sum(kinds.values()) for counts in found.values() for kinds in counts.values())
    assert total == 600
    ttls = [redis.ttl(key) for key in redis.scan_iter("rqjobs:counts:[0-9]*")]
    assert all(7000 < ttl <= 7200 for ttl in ttls)


def test_the_sweep_adds_the_minutes_that_are_over_to_the_day(redis, minute):
    redis.hset(keys.counts(minute - 1), mapping={"finished:a": 2, "finished:b": 3, "failed:a": 1})
    redis.hset(keys.counts(minute - 100), mapping={"finished:a": 7, "x": 1, "failed:b": "many"})
    sweep.sweep(redis, force=True)
    while counters.roll_up(redis):
        pass
    day = counters.read_day(redis.hgetall(keys.COUNTS_DAY))
    assert day == {
        minute - 1: {Kind.FINISHED: 5, Kind.FAILED: 1},
        minute - 100: {Kind.FINISHED: 7},
    }


def test_to_add_a_minute_twice_changes_nothing(redis, minute):
    redis.hset(keys.counts(minute - 1), "finished:a", 2)
    for _ in range(2):
        redis.hdel(keys.COUNTS_DAY, "last")  # as after a jump of Redis's clock
        while counters.roll_up(redis):
            pass
        day = counters.read_day(redis.hgetall(keys.COUNTS_DAY))
        assert day == {minute - 1: {Kind.FINISHED: 2}}


def test_the_day_has_no_more_than_1440_minutes(redis, minute):
    old = {str(minute - number): "finished 1" for number in range(1, 2000)}
    redis.hset(keys.COUNTS_DAY, mapping={**old, str(minute + 99): "finished 1", "odd": "x"})
    counters.roll_up(redis)
    day = counters.read_day(redis.hgetall(keys.COUNTS_DAY))
    assert len(day) <= 1440 and min(day) > minute - 1441 and max(day) < minute


def test_a_day_of_the_wrong_type_is_set_aside(redis):
    redis.set(keys.COUNTS_DAY, "foreign")
    sweep.sweep(redis, force=True)
    assert redis.type(keys.COUNTS_DAY) == b"hash"


@pytest.mark.parametrize("value", [b"", b"finished", b"finished x", b"odd 5", b"finished 5 failed"])
def test_a_damaged_total_hides_no_other(value):
    day = counters.read_day({b"100": value, b"101": b"failed 3", b"last": b"101"})
    assert day[101] == {Kind.FAILED: 3} and set(day[100]) <= {Kind.FINISHED}
