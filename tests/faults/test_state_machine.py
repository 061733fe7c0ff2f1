"""The broker's scripts against a model of them, in any order (hypothesis).

The model has the place of every job and the number of its crashes. Each rule mirrors the script
that its docstring names. After each step the test reads the real keys one by one, without
`audit`, and checks the promises.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

import helpers
import pytest
import sample_jobs
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rq.exceptions import InvalidJobOperation

import rqjobs
from rqjobs.broker import keys, leases, recovery, transitions
from rqjobs.broker.keys import decode
from rqjobs.broker.recovery import DeathCause
from rqjobs.broker.scripts import SETTLE, SETTLE_SUCCESS
from rqjobs.broker.transitions import Claim
from rqjobs.jobs import Job
from rqjobs.maintenance import sweep, sweep_result

QUEUES = ("high", "default", "low")
WORKERS = ("a", "b", "c")
ENDED = ("finished", "failed", "canceled", "gone")


@dataclass
class JobModel:
    """One job.

    `place` is "queued", "scheduled", "claimed" or an end. `worker` is the worker with the claim.
    """

    queue: str
    place: str = "queued"
    worker: str = ""
    token: str = ""
    crashes: int = 0
    outcomes: int = 0
    stale: list[Claim] = field(default_factory=list)  # claims that a worker has lost
    settled: Claim | None = None


class BrokerModel:
    """The model: all jobs, and the queues and claims that Redis must have after each step."""

    def __init__(self):
        super().__init__()
        self.jobs: dict[str, JobModel] = {}
        self.queues = {name: [] for name in QUEUES}  # ids in order
        self.claims = {name: [] for name in WORKERS}
        # The claims of which each worker is aware, rightly or not.
        self.known: dict[str, list[Claim]] = {name: [] for name in WORKERS}
        self.alive: set[str] = set()

    def take(self, name, max_jobs, held, order):
        """Mirrors claim.lua: first the claims that the worker does not hold, then the queues.

        Returns the ids of the claimed jobs.
        """
        expected, surplus = [], []
        for job_id in [job_id for job_id in self.claims[name] if job_id not in held]:
            if self.jobs[job_id].place != "claimed":
                self.claims[name].remove(job_id)  # canceled since
            elif max_jobs == 0 or (expected and self.jobs[job_id].crashes):
                surplus.insert(0, job_id)
            else:
                expected.append(job_id)
                max_jobs = 0 if self.jobs[job_id].crashes else max_jobs - 1  # claimed alone
        for job_id in surplus:
            self.claims[name].remove(job_id)
            self.put_back(job_id)
        for queue in order:
            while self.queues[queue] and max_jobs > 0:
                has_crashed = self.jobs[self.queues[queue][0]].crashes
                max_jobs = 0 if has_crashed else max_jobs - 1
                if not has_crashed or not expected:
                    job_id = self.queues[queue].pop(0)
                    expected.append(job_id)
                    self.claims[name].append(job_id)
        return expected

    def put_back(self, job_id):
        """Mirrors `put_back` of the scripts: the job is the first of its queue again."""
        job = self.jobs[job_id]
        if job.token:
            job.stale.append(Claim(job_id, job.queue, job.token, {}))
        job.place, job.worker, job.token = "queued", "", ""
        self.queues[job.queue].insert(0, job_id)

    def drop_claims(self, name, ids, counted="", delayed=False, outcomes=None):
        """Remove `ids`, the last of the claims first, from the claims of a worker.

        `counted`: the job that crashed.
        """
        for job_id in ids:
            self.claims[name].remove(job_id)
            job = self.jobs[job_id]
            expected = "ended"
            if job.place == "claimed":
                died = bool(job_id == counted and job.token)
                if died:
                    job.crashes += 1
                if died and job.crashes >= recovery.MAX_CRASHES:
                    expected = "failed"
                    job.stale.append(Claim(job_id, job.queue, job.token, {}))
                    job.place, job.worker, job.token = "failed", "", ""
                    job.outcomes += 1
                elif died and delayed:
                    expected = "delayed"
                    job.stale.append(Claim(job_id, job.queue, job.token, {}))
                    job.place, job.worker, job.token = "scheduled", "", ""
                else:
                    expected = "requeued"
                    self.put_back(job_id)
            assert outcomes is None or outcomes[job_id] == expected


class BrokerMachine(BrokerModel, RuleBasedStateMachine):
    """The rules: each does one step in Redis and in the model, and compares the results."""

    redis = None  # the test sets it

    def __init__(self):
        super().__init__()
        self.redis.flushall()
        for name in WORKERS[:2]:
            self.renew_lease(name)
        for queue in QUEUES:
            self.enqueue(queue, None, 3)

    # The steps

    @rule(
        queue=st.sampled_from(QUEUES),
        delay=st.sampled_from([None, None, -5, 3600]),
        count=st.integers(1, 3),
    )
    def enqueue(self, queue, delay, count):
        """enqueue.lua"""
        made = rqjobs.queue(queue)
        if delay is None:
            for _ in range(count):
                job = made.enqueue(sample_jobs.ok)
                self.queues[queue].append(job.id)
                self.jobs[job.id] = JobModel(queue)
        else:
            job = made.create_job(sample_jobs.ok, timeout=180)
            made.schedule_job(
                job, datetime.fromtimestamp(time.time() + delay, tz=None).astimezone()
            )
            self.jobs[job.id] = JobModel(queue, "scheduled")

    @rule(name=st.sampled_from(WORKERS))
    def renew_lease(self, name):
        """renew_lease.lua"""
        leases.renew_lease(self.redis, name, {"host": "elsewhere", "pid": 1, "started": "1"})
        self.alive.add(name)

    @rule(name=st.sampled_from(WORKERS))
    def claim_two(self, name):
        """The most frequent step in practice, so it is frequent here."""
        self.claim(name, 2, False, QUEUES)

    @rule(name=st.sampled_from(WORKERS), really=st.sampled_from([False, False, True]))
    def lease_ends(self, name, really):
        if name in self.alive and really:
            self.redis.zadd(keys.LEASES, {name: time.time() - 1})
            self.alive.discard(name)

    @rule(
        name=st.sampled_from(WORKERS),
        max_jobs=st.integers(1, 3),
        lost=st.booleans(),
        order=st.permutations(QUEUES),
    )
    def claim(self, name, max_jobs, lost, order):
        """claim.lua. `lost`: the reply is lost, so the worker is not aware of its claims."""
        held = [claim.job_id for claim in self.known[name]]
        try:
            got = helpers.claim(self.redis, name, list(order), max_jobs, held)
        except leases.NoLease:
            assert name not in self.alive
            return
        assert name in self.alive
        expected = self.take(name, max_jobs, held, order)
        assert [claim.job_id for claim in got] == expected
        for claim in got:
            job = self.jobs[claim.job_id]
            job.place, job.worker, job.token = "claimed", name, claim.token
            if lost:
                job.stale.append(claim)
        if not lost:
            self.known[name] += got

    @rule(name=st.sampled_from(WORKERS), queue=st.sampled_from(QUEUES))
    def deliver(self, name, queue):
        """A worker's BLMOVE. The worker is not aware of the job."""
        if name in self.alive:
            moved = self.redis.lmove(f"rq:queue:{queue}", f"rqjobs:claims:{name}", "LEFT", "RIGHT")
            assert (moved is not None) == bool(self.queues[queue])
            if moved is not None:
                job_id = self.queues[queue].pop(0)
                assert decode(moved) == job_id
                self.claims[name].append(job_id)
                self.jobs[job_id].place, self.jobs[job_id].worker, self.jobs[job_id].token = (
                    "claimed",
                    name,
                    "",
                )

    @precondition(lambda self: any(self.known.values()))
    @rule(
        data=st.data(),
        lost=st.booleans(),
        how=st.sampled_from(["plain", "finished", "failed", "scheduled", "queued"]),
    )
    def settle(self, data, how, lost):
        """settle.lua and settle_success.lua by a worker that may have lost the claim.

        `lost`: the reply is lost.
        """
        name = data.draw(st.sampled_from([name for name in WORKERS if self.known[name]]))
        claim = data.draw(st.sampled_from(self.known[name]))
        job = self.jobs[claim.job_id]
        rightful = job.place == "claimed" and job.token == claim.token
        outcome, changed = self.settle_with(name, claim, how)
        if rightful:
            assert outcome == "settled"
            self.ended(claim, how)
            self.claims[name].remove(claim.job_id)
        elif outcome == "canceled":
            assert job.place == "canceled" and job.token == claim.token
            job.token, job.settled = "", claim
            if claim.job_id in self.claims[name]:
                self.claims[name].remove(claim.job_id)
        else:
            assert not changed, outcome
            assert outcome == ("already" if job.settled == claim else "refused")
        if not lost:
            self.known[name].remove(claim)

    @precondition(lambda self: any(job.stale for job in self.jobs.values()))
    @rule(data=st.data(), how=st.sampled_from(["plain", "finished", "failed"]))
    def settle_stale(self, data, how):
        """settle.lua and settle_success.lua with a token that was taken back.

        Nothing may change.
        """
        job_id = data.draw(
            st.sampled_from([job_id for job_id, job in self.jobs.items() if job.stale])
        )
        claim = data.draw(st.sampled_from(self.jobs[job_id].stale))
        job = self.jobs[job_id]
        if claim.token == job.token:
            return
        outcome, changed = self.settle_with(data.draw(st.sampled_from(WORKERS)), claim, how)
        assert outcome == (
            "already" if job.settled and job.settled.token == claim.token else "refused"
        )
        assert not changed

    @rule(name=st.sampled_from(WORKERS), only_some=st.booleans())
    def release(self, name, only_some):
        """release.lua: the jobs that have not begun, by their tokens; or all, at a shutdown."""
        tokens = [claim.token for claim in self.known[name]][1:]
        if only_some and not tokens:
            return
        if only_some:
            back = transitions.release_tokens(self.redis, name, tokens)
        else:
            back = transitions.release_all(self.redis, name)
        self.known[name] = self.known[name][:1] if only_some else []
        expected = [
            one
            for one in reversed(self.claims[name])
            if not only_some or self.jobs[one].token in tokens
        ]
        assert back == [one for one in expected if self.jobs[one].place == "claimed"]
        self.drop_claims(name, expected)

    @rule(name=st.sampled_from(WORKERS))
    def release_unknown(self, name):
        """release.lua by the worker's parent.

        A BLMOVE has delivered the jobs while the horse is busy.
        """
        unknown = [one for one in reversed(self.claims[name]) if not self.jobs[one].token]
        assert transitions.release_unknown(self.redis, name) == [
            one for one in unknown if self.jobs[one].place == "claimed"
        ]
        self.drop_claims(name, unknown)

    @rule(
        name=st.sampled_from(WORKERS),
        cause=st.sampled_from(
            [
                DeathCause.LEASE_EXPIRED,
                DeathCause.LEASE_EXPIRED,
                DeathCause.PROCESS_GONE,
                DeathCause.HORSE_DIED,
            ]
        ),
        data=st.data(),
    )
    def reclaim(self, name, cause, data):
        """reclaim.lua"""
        held = list(self.claims[name])
        horse_died = cause == DeathCause.HORSE_DIED
        running, delay = "?", 0.0
        if horse_died:
            running, delay = data.draw(st.sampled_from(["", *held])), 3600.0
        where = [
            keys.decode(word or b"")
            for word in self.redis.hmget(f"rqjobs:process:{name}", "pid", "started")
        ]
        names = [":".join(where), "2:1", "1:"]
        if horse_died:
            names = ["", "elsewhere:1:1", "elsewhere:2:1"]
        process = data.draw(st.sampled_from(names))
        known = self.redis.exists(f"rqjobs:process:{name}")
        outcomes = recovery.reclaim(self.redis, name, list(QUEUES), cause, running, delay, process)
        if cause == DeathCause.PROCESS_GONE and process != ":".join(where):
            assert not outcomes, "P5: the claims of another process were taken"
            return
        if horse_died and known and process == "elsewhere:2:1":
            assert not outcomes, "P5: the claims of the next worker of that name were taken"
            return
        if cause == DeathCause.LEASE_EXPIRED and name in self.alive:
            assert not outcomes, "P5: the claims of a live worker were taken"
            return
        begun = held[0] if running == "?" and held else running
        assert set(outcomes) == set(held)
        self.drop_claims(
            name, list(reversed(held)), counted=begun, delayed=bool(delay), outcomes=outcomes
        )
        if cause != DeathCause.LEASE_EXPIRED:  # a frozen worker is still aware of its claims
            self.known[name] = []
        if not horse_died:
            self.alive.discard(name)

    @precondition(lambda self: any(job.place == "failed" for job in self.jobs.values()))
    @rule(data=st.data(), front=st.booleans(), any_job=st.booleans())
    def requeue(self, data, front, any_job):
        """requeue.lua"""
        among = [job_id for job_id, job in self.jobs.items() if any_job or job.place == "failed"]
        job_id = data.draw(st.sampled_from(among))
        job = self.jobs[job_id]
        try:
            transitions.requeue(self.redis, job_id, front)
        except InvalidJobOperation:
            assert job.place != "failed"
            return
        assert job.place == "failed"
        job.place, job.crashes = "queued", 0
        self.queues[job.queue].insert(0 if front else len(self.queues[job.queue]), job_id)

    @rule(queue=st.sampled_from(QUEUES), later=st.booleans())
    def promote(self, queue, later):
        """promote_due.lua"""
        if later:  # time passes: all scheduled jobs are due
            for member in self.redis.zrange(f"rq:scheduled:{queue}", 0, -1):
                self.redis.zadd(f"rq:scheduled:{queue}", {member: time.time() - 1})
        due = [
            decode(one) for one in self.redis.zrangebyscore(f"rq:scheduled:{queue}", 0, time.time())
        ]
        back = [
            one
            for one in due
            if self.redis.zscore(f"rqjobs:crash-backoff:{queue}", one) is not None
        ]
        assert transitions.promote(self.redis, queue, 180) == len(due)
        for job_id in due:
            self.jobs[job_id].place = "queued"
        self.queues[queue] = back + self.queues[queue] + [one for one in due if one not in back]

    @precondition(lambda self: any(job.place not in ENDED for job in self.jobs.values()))
    @rule(data=st.data())
    def cancel(self, data):
        """RQ's own cancel, which runs no script of ours."""
        job_id = data.draw(
            st.sampled_from([one for one, job in self.jobs.items() if job.place not in ENDED])
        )
        job = self.jobs[job_id]
        Job.fetch(job_id, connection=self.redis).cancel()
        if job.place == "queued":
            self.queues[job.queue].remove(job_id)
        job.place = "canceled"

    @precondition(lambda self: any(self.queues.values()))
    @rule(data=st.data(), found=st.sampled_from(["stray", "intermediate"]))
    def recover(self, data, found):
        """recover.lua: a plain RQ worker popped a job and died at once; the sweep finds the job."""
        queue = data.draw(st.sampled_from([name for name in QUEUES if self.queues[name]]))
        job_id = self.queues[queue].pop(0)
        key = f"rq:queue:{queue}"
        assert decode(self.redis.lpop(key)) == job_id
        if found == "intermediate":
            self.redis.lpush(f"{key}:intermediate", job_id)
        assert recovery.recover(self.redis, job_id, queue, found) == "requeued"
        self.queues[queue].insert(0, job_id)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), found=st.sampled_from(["stray", "intermediate", "wip"]))
    def recover_what_is_not_lost(self, data, found):
        """recover.lua by a sweep whose facts are outdated: the job is in its place, and stays."""
        job_id = data.draw(st.sampled_from(list(self.jobs)))
        job = self.jobs[job_id]
        before = self.dump()
        outcome = recovery.recover(self.redis, job_id, job.queue, found, "old", job.worker)
        if job.place not in ENDED:
            assert outcome in ("moved", "placed", "alive"), outcome
        assert outcome != "requeued" and self.dump() == before

    @rule(count=st.booleans())
    def sweep(self, count):
        """begin_sweep.lua and a whole sweep.

        `count`: expired leases count, because no outage was before.
        """
        self.redis.set("rqjobs:sweep:last", time.time() - (0 if count else 3600))
        sweep.sweep(self.redis, force=True)
        for name in WORKERS:
            known = self.redis.zscore(keys.LEASES, name) is not None or self.claims[name]
            if not count and self.redis.zscore(keys.LEASES, name) is not None:
                self.alive.add(name)
            elif name not in self.alive and known:
                held = list(self.claims[name])
                self.drop_claims(name, list(reversed(held)), counted=held[0] if held else "")
        for queue in QUEUES:
            for job_id, job in self.jobs.items():
                if job.place == "scheduled" and job.queue == queue and job.crashes:
                    score = self.redis.zscore(f"rq:scheduled:{queue}", job_id)
                    assert score is not None and score > time.time()

    # Parts of the steps

    def settle_with(self, name, claim, how):
        """Send an outcome as the horse does.

        Returns the reply, and whether anything in Redis has changed.
        """
        before, place = self.dump(), f"rq:{how}:{claim.queue}"
        if how == "plain":
            args = [claim.job_id, claim.queue, claim.token, name, "then", "now"]
            args += [1, 2, 500, 9e9, 0, 180]
            outcome = decode(SETTLE_SUCCESS.run(self.redis, [keys.claims(name)], args))
            return outcome, self.dump() != before
        writes = [
            ("HSET", f"rq:job:{claim.job_id}", "status", how),
            {
                "finished": ("ZADD", place, "+inf", claim.job_id),
                "failed": ("ZADD", place, "+inf", claim.job_id),
                "scheduled": ("ZADD", place, time.time() + 3600, claim.job_id),
                "queued": ("RPUSH", f"rq:queue:{claim.queue}", claim.job_id),
            }[how],
        ]
        if how in ("finished", "failed"):
            writes.append(("XADD", f"rq:results:{claim.job_id}", "*", "type", 1))
        outcome = decode(SETTLE.run(self.redis, *transitions.settle_arguments(name, claim, writes)))
        return outcome, self.dump() != before

    def ended(self, claim, how):
        job, how = self.jobs[claim.job_id], how.replace("plain", "finished")
        job.place, job.worker, job.token, job.settled = how, "", "", claim
        job.stale.append(claim)
        if how == "queued":
            self.queues[job.queue].append(claim.job_id)
        job.outcomes += how in ("finished", "failed")

    def dump(self):
        return {
            key: self.redis.dump(key)
            for key in self.redis.scan_iter(count=1000)
            if not key.startswith((b"rqjobs:s", b"rqjobs:leases"))
        }

    # The promises

    @invariant()
    def conserved(self):
        """P1: every job that has not ended is in one place, the model's; P3 and P4: its counts."""
        redis, places = self.redis, {job_id: [] for job_id in self.jobs}
        for queue in QUEUES:
            queued = [decode(one) for one in redis.lrange(f"rq:queue:{queue}", 0, -1)]
            assert queued == self.queues[queue]
            for job_id in queued:
                places[job_id].append("queued")
            for place in ("scheduled", "deferred"):
                for member in redis.zrange(f"rq:{place}:{queue}", 0, -1):
                    places[decode(member)].append(place)
            assert not redis.exists(f"rq:queue:{queue}:intermediate")
        for name in WORKERS:
            claims = [decode(one) for one in redis.lrange(f"rqjobs:claims:{name}", 0, -1)]
            assert claims == self.claims[name]
            for job_id in claims:
                if self.jobs[job_id].place == "claimed":
                    assert self.jobs[job_id].worker == name
                    places[job_id].append("claimed")
        running = Counter(
            member for queue in QUEUES for member in redis.zrange(f"rq:wip:{queue}", 0, -1)
        )
        for job_id, job in self.jobs.items():
            assert places[job_id] == ([] if job.place in ENDED else [job.place]), job
            fields = redis.hgetall(f"rq:job:{job_id}")
            crashes = [one for one in fields.get(b"rqjobs_crashes", b"").split(b",") if one]
            assert len(crashes) == job.crashes and job.crashes <= recovery.MAX_CRASHES
            assert redis.xlen(f"rq:results:{job_id}") == job.outcomes, "P3"
            status = decode(fields[b"status"])
            if job.place in (*ENDED, "scheduled"):
                assert status == job.place
            if job.place == "claimed" and job.token:
                assert decode(fields[b"rqjobs_token"]) == job.token and status == "started"
                assert running.pop(f"{job_id}:{job.token}".encode()) == 1
            elif job.place != "canceled":
                assert not fields.get(b"rqjobs_token") or not job.token
        for member in running:
            job_id = decode(member).partition(":")[0]
            assert self.jobs[job_id].place == "canceled" and any(
                job_id in ids for ids in self.claims.values()
            ), f"{member} is among the running jobs, but in no claims"


@pytest.mark.slow
def test_the_broker_keeps_its_promises_in_any_order(redis, monkeypatch):
    monkeypatch.setattr(BrokerMachine, "redis", redis)
    monkeypatch.setattr(leases, "LEASE_SECONDS", 3600)  # none ends by itself
    monkeypatch.setattr(sweep_result.log, "disabled", True)
    BrokerMachine.TestCase.settings = settings(
        derandomize=True,
        max_examples=50,
        stateful_step_count=40,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # Phase.shrink would shorten a failing example, in minutes
        suppress_health_check=list(HealthCheck),
    )
    BrokerMachine.TestCase("runTest").runTest()
