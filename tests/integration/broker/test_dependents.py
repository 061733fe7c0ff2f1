"""A job that depends on many others runs when all of them have ended, and once."""

from __future__ import annotations

import random

import helpers
import pytest
import sample_jobs

import rqjobs
from rqjobs.broker import keys, scripts, transitions


class Parents(helpers.Broker):
    """Jobs in the queue default, and a worker that has claimed all of them."""

    def __init__(self, redis, count):
        super().__init__(redis)
        self.ids = [job.id for job in rqjobs.enqueue_many([(sample_jobs.ok, 1)] * count)]
        assert len(self.claim(max_jobs=count, queues=["default"])) == count

    def end(self, job_id, outcome):
        """Record an outcome as a worker does, together with what follows for the dependents."""
        claim = self.claims["a"].pop(job_id)
        place = keys.registry(outcome, "default")
        writes = [("HSET", keys.job(job_id), "status", outcome), ("ZADD", place, "+inf", job_id)]
        arguments = transitions.settle_arguments("a", claim, writes, outcome)
        scripts.SETTLE.run(self.redis, *arguments)


@pytest.mark.parametrize("seed", range(4))
def test_a_job_waits_for_all_of_many_parents_whatever_happens_to_them(redis, seed):
    """Some fail and are requeued, some are deleted, by rqjobs and by plain RQ."""
    chance = random.Random(seed)
    parents = Parents(redis, 30)
    child = rqjobs.queue("low").enqueue(sample_jobs.ok, depends_on=parents.ids)
    order = chance.sample(parents.ids, 30)
    for job_id in order[:-1]:
        event = chance.choice(["finished"] * 6 + ["requeued", "deleted", "enqueued again"])
        if event == "requeued":
            parents.end(job_id, "failed")
            transitions.requeue(redis, job_id)
            parents.claim(queues=["default"])
        elif event == "deleted":
            redis.delete(keys.job(job_id))
            continue
        elif event == "enqueued again":
            rqjobs.enqueue(sample_jobs.ok, 2, job_id=job_id)
            parents.claim(queues=["default"])
        parents.end(job_id, "finished")
        assert child.get_status() == "deferred" and not redis.llen("rq:queue:low")
    parents.end(order[-1], "finished")
    assert redis.lrange("rq:queue:low", 0, -1) == [child.id.encode()]
    assert not redis.zcard("rq:deferred:low")


def test_a_parent_that_the_job_no_longer_has_does_not_hold_it_up(redis):
    """The hash of the job names a parent of its earlier life, or one that RQ has removed."""
    parents = Parents(redis, 40)
    child = rqjobs.queue("low").enqueue(sample_jobs.ok, depends_on=parents.ids[:20], job_id="child")
    parents.end(parents.ids[0], "finished")
    assert redis.hget(child.key, "rqjobs_blocker")
    rqjobs.queue("low").enqueue(sample_jobs.ok, depends_on=parents.ids[20:], job_id="child")
    assert not redis.hget(child.key, "rqjobs_blocker")
    parents.end(parents.ids[20], "finished")
    blocker = redis.hget(child.key, "rqjobs_blocker").decode()
    redis.srem(keys.dependencies("child"), blocker)
    for job_id in parents.ids[21:]:
        if job_id != blocker:
            parents.end(job_id, "finished")
    assert redis.lrange("rq:queue:low", 0, -1) == [b"child"]


def test_few_parents_need_no_field(redis):
    parents = Parents(redis, 3)
    child = rqjobs.queue("low").enqueue(sample_jobs.ok, depends_on=parents.ids)
    for job_id in parents.ids:
        parents.end(job_id, "finished")
    assert child.get_status() == "queued" and not redis.hexists(child.key, "rqjobs_blocker")
