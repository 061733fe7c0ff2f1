"""A Redis whose memory is full refuses each move of a policy as a whole, and it goes on later."""

from __future__ import annotations

import contextlib

import helpers
import pytest
import sample_jobs
from helpers import QUEUES
from redis.exceptions import ResponseError
from rq.job import JobStatus

import rqjobs
from rqjobs.broker import keys, pauses, recovery, scripts, transitions
from rqjobs.maintenance import audit, waiting

TWO = "sample_jobs.two_at_a_time"


@contextlib.contextmanager
def full(redis):
    redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        redis.config_set("maxmemory", 0)


def contents(redis):
    """The value of every key."""
    read = {
        b"hash": redis.hgetall,
        b"list": lambda key: redis.lrange(key, 0, -1),
        b"zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
        b"set": redis.smembers,
        b"string": redis.get,
        b"stream": redis.xrange,
    }
    return {key: read[redis.type(key)](key) for key in redis.keys("*")}


def park(broker):
    """A claim lets a job wait for its limit."""
    rqjobs.enqueue(sample_jobs.two_at_a_time)
    return lambda: helpers.claim(broker.redis, "a", QUEUES, 10) or broker.waiting(TWO)


def wake(broker):
    """The outcome of a job wakes the next one."""
    rqjobs.enqueue(sample_jobs.two_at_a_time)
    broker.claim("a", 10)
    claim = next(iter(broker.claims["a"].values()))
    writes = [("HSET", keys.job(claim.job_id), "status", "finished")]
    arguments = transitions.settle_arguments("a", claim, writes)
    return lambda: scripts.SETTLE.run(broker.redis, *arguments) == b"settled"


def release(broker):
    """A worker's jobs go back, and their slots are free."""
    return lambda: transitions.release_all(broker.redis, "a")


def wake_by_the_sweep(broker):
    rqjobs.enqueue(sample_jobs.two_at_a_time)
    broker.claim("a", 10)
    broker.redis.delete(keys.slots(TWO))
    return lambda: recovery.check_waiting(broker.redis) or rqjobs.queue("default").job_ids


def restore(broker):
    """The sweep puts a job back into the line of its limit."""
    rqjobs.enqueue(sample_jobs.two_at_a_time)
    broker.claim("a", 10)
    broker.redis.delete(keys.waiting(TWO))
    broker.redis.hset(keys.DEFERRED_CURSORS, "default", 0)
    return lambda: waiting.check(broker.redis, QUEUES) or broker.waiting(TWO)


def expire(broker):
    """A claim ends a job that is too late."""
    job = rqjobs.enqueue(sample_jobs.ok, expires=60)
    broker.redis.hset(job.key, "rqjobs_expires", "1")
    return lambda: (
        helpers.claim(broker.redis, "a", QUEUES, 10)
        or job.get_status(refresh=True) == JobStatus.CANCELED
    )


def debounce(broker):
    """A call replaces the waiting job, and puts it off."""
    first = rqjobs.enqueue(sample_jobs.index, "page", 1)
    return lambda: rqjobs.enqueue(sample_jobs.index, "page", 2).id == first.id


def replace(broker):
    first = rqjobs.enqueue(sample_jobs.replaced_one_at_a_time, 1)
    return lambda: rqjobs.enqueue(sample_jobs.replaced_one_at_a_time, 1).id == first.id


def pause(broker):
    return lambda: rqjobs.pause(queue="low")


def park_paused(broker):
    """A horse lets a claimed job wait for the end of a pause."""
    rqjobs.enqueue(sample_jobs.ok)
    (claim,) = helpers.claim(broker.redis, "a", QUEUES, 1)
    rqjobs.pause(function=sample_jobs.ok)
    command = pauses.park_command("a", claim, "sample_jobs.ok")
    reply = [b"parked"]
    return lambda: scripts.read_together(broker.redis, [command], scripts.PARK_PAUSED) == reply


def unpark_paused(broker):
    park_paused(broker)()
    broker.redis.delete(keys.PAUSED)
    return lambda: pauses.unpark_all(broker.redis) or rqjobs.queue("default").job_ids


MOVES = (
    park, wake, release, wake_by_the_sweep, restore, expire, debounce, replace, pause, park_paused,
    unpark_paused,
)  # fmt: skip


@pytest.mark.parametrize("prepare", MOVES, ids=lambda move: move.__name__)
def test_a_full_redis_refuses_each_move_as_a_whole(redis, prepare):
    broker = helpers.Broker(redis)
    for _ in range(2):
        rqjobs.enqueue(sample_jobs.two_at_a_time)
    broker.claim("a", 10)
    broker.claim("b", 10)
    move = prepare(broker)
    before = contents(redis)
    with full(redis), pytest.raises(ResponseError, match=r"OOM|maxmemory"):
        move()
    assert contents(redis) == before
    assert move()
    assert not audit.audit(redis, 0).breaches


def test_a_token_wakes_a_job_even_if_memory_is_full(redis):
    """Its first write frees memory, so Redis accepts the whole move."""
    broker = helpers.Broker(redis)
    ids = [rqjobs.enqueue(sample_jobs.twice_an_hour).id for _ in range(3)]
    broker.claim("a", 10)
    redis.delete("rqjobs:rate:sample_jobs.twice_an_hour")
    redis.zadd(keys.RATE_DUE, {"sample_jobs.twice_an_hour": 1})
    with full(redis):
        assert recovery.wake_due(redis).jobs == 1
    assert rqjobs.queue("default").job_ids == ids[2:]
    assert not audit.audit(redis, 0).breaches


def test_a_resume_is_ended_by_the_sweep_if_memory_was_full(redis):
    broker = helpers.Broker(redis)
    broker.claim("a")
    park_paused(broker)()
    with full(redis), pytest.raises(ResponseError, match=r"OOM|maxmemory"):
        rqjobs.resume(function=sample_jobs.ok)
    assert rqjobs.paused() == [] and not rqjobs.queue("default").job_ids
    pauses.unpark_all(redis)
    assert len(broker.claim("a")) == 1
