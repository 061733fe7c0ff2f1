"""Unique keys in any order of the broker's scripts (hypothesis).

The model is the jobs' own hashes: the test compares what an enqueue does with the jobs that wait or
run by their hashes and claims, without reading `rqjobs:unique`.
"""

from __future__ import annotations

import time

import helpers
import pytest
import rq
import sample_jobs
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rq.exceptions import InvalidJobOperation
from rq.serializers import JSONSerializer

import rqjobs
from rqjobs.broker import keys, leases, recovery, scripts, transitions
from rqjobs.broker.keys import decode
from rqjobs.broker.recovery import DeathCause
from rqjobs.jobs import Job
from rqjobs.maintenance import audit, sweep, sweep_result

WORKERS = ("a", "b")
QUEUES = ["default"]
WAITING = ("queued", "scheduled", "deferred")
NAMES = st.sampled_from(["x", "y"])


class UniqueMachine(RuleBasedStateMachine):
    """The rules: each does one step in Redis. The invariants compare the jobs' hashes."""

    redis = None  # the test sets it

    def __init__(self):
        super().__init__()
        self.redis.flushall()
        self.claims = {}  # job id -> worker, claim
        self.ids = {}  # job id -> name
        self.bypassed = set()  # jobs that plain RQ has enqueued again

    # What the hashes say

    def status(self, job_id):
        return decode(self.redis.hget(keys.job(job_id), "status") or b"gone")

    def is_running(self, job_id):
        """Whether a worker holds the job, also a canceled one whose run has not ended."""
        return job_id in self.claims and bool(self.redis.hget(keys.job(job_id), "rqjobs_token"))

    def active(self, name):
        """The jobs of a name that wait or run, without those that plain RQ has enqueued."""
        return [
            job_id
            for job_id, of in self.ids.items()
            if of == name
            and job_id not in self.bypassed
            and (self.status(job_id) in WAITING or self.is_running(job_id))
        ]

    def failed(self):
        return [job_id for job_id in self.ids if self.status(job_id) == "failed"]

    # Steps

    @rule(
        name=NAMES,
        conflict=st.sampled_from(["return", "return", "raise", "replace"]),
        delay=st.sampled_from([None, None, 3600]),
        many=st.booleans(),
    )
    def enqueue(self, name, conflict, delay, many):
        """enqueue.lua, with one entry or three."""
        before = self.active(name)
        running = [job_id for job_id in before if self.is_running(job_id)]
        stored = len(self.redis.keys("rq:job:*"))
        call = rqjobs.Queue.prepare_data(sample_jobs.alone, args=(name,), on_conflict=conflict)
        try:
            if delay:
                job = rqjobs.enqueue_in(delay, sample_jobs.alone, name, on_conflict=conflict)
            elif many and conflict != "raise":
                job, again, other = rqjobs.enqueue_many([call, call, (sample_jobs.ok,)])
                assert job == again
                other.delete()
            else:
                job = rqjobs.enqueue(sample_jobs.alone, name, on_conflict=conflict)
        except rqjobs.DuplicateJob as error:
            assert conflict == "raise"
            assert before == [error.existing_id] or self.bypassed
            assert len(self.redis.keys("rq:job:*")) == stored
            return
        assert not (before and conflict == "raise")
        if before:
            assert before == [job.id]
        else:
            assert job.id not in self.ids or job.id in self.bypassed
        if before and conflict == "replace" and not running:
            expected = "scheduled" if delay else "queued"
            assert self.status(job.id) == expected
        self.ids[job.id] = name
        self.bypassed.discard(job.id)

    @rule(name=NAMES)
    def run_and_fail(self, name):
        """A job is enqueued, claimed, and fails: the state in which several rules matter."""
        job = rqjobs.enqueue(sample_jobs.alone, name)
        self.ids[job.id] = name
        self.bypassed.discard(job.id)
        self.claim("a", 3)
        if self.claims.get(job.id, "") and self.is_running(job.id):
            self.settle_as(job.id, "failed")

    @rule(worker=st.sampled_from(WORKERS), max_jobs=st.integers(1, 3))
    def claim(self, worker, max_jobs):
        """claim.lua"""
        leases.renew_lease(self.redis, worker, {"host": "elsewhere", "pid": 1, "started": "1"})
        held = [job_id for job_id, (owner, _) in self.claims.items() if owner == worker]
        for claim in helpers.claim(self.redis, worker, QUEUES, max_jobs, held):
            self.claims[claim.job_id] = (worker, claim)
            self.bypassed.discard(claim.job_id)
        for job_id in list(self.bypassed):
            if self.status(job_id) == "canceled":
                assert self.redis.hget(keys.job(job_id), "rqjobs_ending") == b"discarded"
                assert self.active(self.ids[job_id]), "discarded, although no other job has its key"
                self.bypassed.discard(job_id)

    @precondition(lambda self: self.claims)
    @rule(
        data=st.data(),
        how=st.sampled_from(["plain", "finished", "failed", "scheduled", "queued"]),
    )
    def settle(self, data, how):
        """settle.lua and settle_success.lua"""
        self.settle_as(data.draw(st.sampled_from(list(self.claims))), how)

    def settle_as(self, job_id, how):
        worker, claim = self.claims.pop(job_id)
        if how == "plain":
            moment = "2030-01-01T00:00:00Z"
            args = [job_id, "default", claim.token, worker, moment, moment, 1, 2, 500, 9e9, 0, 180]
            scripts.SETTLE_POLICY_SUCCESS.run(self.redis, [keys.claims(worker)], args)
            return
        place = ("ZADD", keys.registry(how, "default"), time.time() + 3600, job_id)
        if how == "queued":
            place = ("RPUSH", keys.queue("default"), job_id)
        writes = [("HSET", keys.job(job_id), "status", how), place]
        scripts.SETTLE.run(self.redis, *transitions.settle_arguments(worker, claim, writes))

    @rule(worker=st.sampled_from(WORKERS))
    def die(self, worker):
        """reclaim.lua"""
        self.redis.zadd(keys.LEASES, {worker: 1})
        recovery.reclaim(self.redis, worker, QUEUES, DeathCause.LEASE_EXPIRED, running="")
        self.claims = {one: own for one, own in self.claims.items() if own[0] != worker}

    @rule(worker=st.sampled_from(WORKERS))
    def release(self, worker):
        """release.lua"""
        transitions.release_all(self.redis, worker)
        self.claims = {one: own for one, own in self.claims.items() if own[0] != worker}

    @precondition(lambda self: self.failed())
    @rule(data=st.data(), by_plain_rq=st.booleans())
    def requeue(self, data, by_plain_rq):
        """requeue.lua, or plain RQ."""
        job_id = data.draw(st.sampled_from(self.failed()))
        if by_plain_rq:
            job = rq.job.Job.fetch(job_id, connection=self.redis, serializer=JSONSerializer)
            queue = rq.Queue("default", connection=self.redis, serializer=JSONSerializer)
            queue.enqueue_job(job)
            self.redis.zrem(keys.failed("default"), job_id)
            self.bypassed.add(job_id)
            return
        others = self.active(self.ids[job_id])
        try:
            transitions.requeue(self.redis, job_id)
        except InvalidJobOperation:
            assert others or self.bypassed
        else:
            assert not others

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), how=st.sampled_from(["cancel", "delete", "expire"]))
    def end(self, data, how):
        """RQ's own cancel, which runs no script of ours; delete.lua; and the end of a ttl."""
        job_id = data.draw(st.sampled_from([*list(self.ids)[-4:], *self.claims]))
        status = self.status(job_id)
        if how == "cancel" and status in (*WAITING, "started"):
            Job.fetch(job_id, connection=self.redis).cancel()
        elif how == "delete":
            transitions.delete_job(self.redis, job_id)
        elif how == "expire" and status in ("finished", "failed", "queued"):
            self.redis.delete(keys.job(job_id))
            for key in (keys.registry("finished", "default"), keys.failed("default")):
                self.redis.zrem(key, job_id)
        if self.status(job_id) not in WAITING:
            self.bypassed.discard(job_id)

    @rule()
    def promote(self):
        """promote_due.lua: all delayed jobs are due now."""
        for member in self.redis.zrange(keys.scheduled("default"), 0, -1):
            self.redis.zadd(keys.scheduled("default"), {member: time.time() - 1})
        transitions.promote(self.redis, "default", 180)

    @rule()
    def sweep(self):
        """drop_unique_keys.lua, with all that a sweep does."""
        self.redis.set(keys.LAST_SWEEP, time.time() - 3600)  # no lease counts as expired
        sweep.sweep(self.redis, force=True)

    # The promises

    @invariant()
    def at_most_one_job_of_a_key_waits_or_runs(self):
        for name in ("x", "y"):
            active = self.active(name)
            assert len(active) <= 1, [(job_id, self.status(job_id)) for job_id in active]
            running = [one for one in self.ids if self.ids[one] == name and self.is_running(one)]
            assert len(running) <= 1
        assert len(self.redis.hkeys(keys.UNIQUE)) <= 2

    @invariant()
    def no_job_is_lost(self):
        assert not audit.audit(self.redis, settle=0).breaches


@pytest.mark.slow
def test_unique_keys_keep_their_promises_in_any_order(redis, monkeypatch):
    monkeypatch.setattr(UniqueMachine, "redis", redis)
    monkeypatch.setattr(sweep_result.log, "disabled", True)
    UniqueMachine.TestCase.settings = settings(
        derandomize=True,
        max_examples=60,
        stateful_step_count=40,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # Phase.shrink would shorten a failing example, in minutes
        suppress_health_check=list(HealthCheck),
    )
    UniqueMachine.TestCase("runTest").runTest()
