"""The ledger's scripts against a model of them: any order of claims, ends, deaths and recoveries (hypothesis).

The model is where every job is and how often its process died. After each step the real keys are read, one by one and
not through our own audit, and the promises are looked for in them.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

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
class Model:
    """One job: its place ("queued", "scheduled", "claimed", or how it ended), whose claim, and what it suffered."""

    queue: str
    place: str = "queued"
    owner: str = ""
    token: str = ""
    deaths: int = 0
    outcomes: int = 0
    stale: list[Claim] = field(
        default_factory=list
    )  # claims that somebody may still believe to have
    settled: Claim | None = None


class Ledger(RuleBasedStateMachine):
    redis = None  # the test sets it

    def __init__(self):
        super().__init__()
        self.redis.flushall()
        self.jobs: dict[str, Model] = {}
        self.queues = {name: [] for name in QUEUES}  # ids in order
        self.claims = {name: [] for name in WORKERS}
        self.known: dict[str, list[Claim]] = {
            name: [] for name in WORKERS
        }  # what each worker believes that it holds
        self.alive: set[str] = set()
        for name in WORKERS[:2]:
            self.beat(name)
        for queue in QUEUES:
            self.enqueue(queue, None, 3)

    # What there is to do

    @rule(
        queue=st.sampled_from(QUEUES),
        delay=st.sampled_from([None, None, -5, 3600]),
        count=st.integers(1, 3),
    )
    def enqueue(self, queue, delay, count):
        made = rqjobs.queue(queue)
        if delay is None:
            for _ in range(count):
                job = made.enqueue(sample_jobs.ok)
                self.queues[queue].append(job.id)
                self.jobs[job.id] = Model(queue)
        else:
            job = made.create_job(sample_jobs.ok, timeout=180)
            made.schedule_job(
                job, rqjobs.queues.datetime.fromtimestamp(time.time() + delay, tz=None).astimezone()
            )
            self.jobs[job.id] = Model(queue, "scheduled")

    @rule(name=st.sampled_from(WORKERS))
    def beat(self, name):
        leases.renew_lease(self.redis, name, {"host": "elsewhere", "pid": 1, "started": "1"})
        self.alive.add(name)

    @rule(name=st.sampled_from(WORKERS))
    def one_more(self, name):
        """The commonest step, so that it is."""
        self.claim(name, 2, False, QUEUES)

    @rule(name=st.sampled_from(WORKERS), really=st.sampled_from([False, False, True]))
    def lease_ends(self, name, really):
        if name in self.alive and really:
            self.redis.zadd(keys.LEASES, {name: time.time() - 1})
            self.alive.discard(name)

    @rule(
        name=st.sampled_from(WORKERS),
        room=st.integers(1, 3),
        lost=st.booleans(),
        order=st.permutations(QUEUES),
    )
    def claim(self, name, room, lost, order):
        """`lost`: the reply is, so the worker does not know of what it got."""
        held = [claim.job_id for claim in self.known[name]]
        try:
            got = helpers.claim(self.redis, name, list(order), room, held)
        except leases.NoLease:
            assert name not in self.alive
            return
        assert name in self.alive
        expected, surplus = [], []
        for job_id in [job_id for job_id in self.claims[name] if job_id not in held]:
            if self.jobs[job_id].place != "claimed":
                self.claims[name].remove(job_id)  # canceled meanwhile
            elif room == 0 or (expected and self.jobs[job_id].deaths):
                surplus.insert(0, job_id)
            else:
                expected.append(job_id)
                room = 0 if self.jobs[job_id].deaths else room - 1  # it is given out alone
        for job_id in surplus:
            self.claims[name].remove(job_id)
            self.put_back(job_id)
        for queue in order:
            while self.queues[queue] and room > 0:
                deaths = self.jobs[self.queues[queue][0]].deaths
                room = 0 if deaths else room - 1
                if not deaths or not expected:
                    job_id = self.queues[queue].pop(0)
                    expected.append(job_id)
                    self.claims[name].append(job_id)
        assert [claim.job_id for claim in got] == expected
        for claim in got:
            job = self.jobs[claim.job_id]
            job.place, job.owner, job.token = "claimed", name, claim.token
            if lost:
                job.stale.append(claim)
        if not lost:
            self.known[name] += got

    @rule(name=st.sampled_from(WORKERS), queue=st.sampled_from(QUEUES))
    def arrive(self, name, queue):
        """What a worker's BLMOVE does, which nothing tells it."""
        if name in self.alive:
            moved = self.redis.lmove(f"rq:queue:{queue}", f"rqjobs:claims:{name}", "LEFT", "RIGHT")
            assert (moved is not None) == bool(self.queues[queue])
            if moved is not None:
                job_id = self.queues[queue].pop(0)
                assert decode(moved) == job_id
                self.claims[name].append(job_id)
                self.jobs[job_id].place, self.jobs[job_id].owner, self.jobs[job_id].token = (
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
        """By whoever believes that it holds the job, rightly or not. `lost`: it does not hear of its success."""
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
        """By one whose claim was taken back: nothing may change."""
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
        """What has not begun, which the worker says by its tokens; or everything, when it leaves."""
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
        self.let_go(name, expected)

    @rule(name=st.sampled_from(WORKERS))
    def disown(self, name):
        """What the worker's parent does while its horse runs a job: what came with a wake-up goes back."""
        unknown = [one for one in reversed(self.claims[name]) if not self.jobs[one].token]
        assert transitions.release_unknown(self.redis, name) == [
            one for one in unknown if self.jobs[one].place == "claimed"
        ]
        self.let_go(name, unknown)

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
        held = list(self.claims[name])
        running = "?" if cause != DeathCause.HORSE_DIED else data.draw(st.sampled_from(["", *held]))
        delay = 3600.0 if cause == DeathCause.HORSE_DIED else 0
        where = [
            keys.decode(word or b"")
            for word in self.redis.hmget(f"rqjobs:process:{name}", "pid", "started")
        ]
        names = (
            ["", "elsewhere:1:1", "elsewhere:2:1"]
            if cause == DeathCause.HORSE_DIED
            else [":".join(where), "2:1", "1:"]
        )
        process = data.draw(st.sampled_from(names))
        known = self.redis.exists(f"rqjobs:process:{name}")
        outcomes = recovery.reclaim(self.redis, name, list(QUEUES), cause, running, delay, process)
        if cause == DeathCause.PROCESS_GONE and process != ":".join(where):
            assert not outcomes, "P5: the claims of another process were taken"
            return
        if cause == DeathCause.HORSE_DIED and known and process == "elsewhere:2:1":
            assert not outcomes, "P5: the claims of the next worker of that name were taken"
            return
        if cause == DeathCause.LEASE_EXPIRED and name in self.alive:
            assert not outcomes, "P5: the claims of a live worker were taken"
            return
        begun = held[0] if running == "?" and held else running
        assert set(outcomes) == set(held)
        self.let_go(
            name, list(reversed(held)), counted=begun, delayed=bool(delay), outcomes=outcomes
        )
        self.known[name] = (
            [] if cause != DeathCause.LEASE_EXPIRED else self.known[name]
        )  # a frozen one still believes
        if cause != DeathCause.HORSE_DIED:
            self.alive.discard(name)

    @precondition(lambda self: any(job.place == "failed" for job in self.jobs.values()))
    @rule(data=st.data(), front=st.booleans(), any_job=st.booleans())
    def requeue(self, data, front, any_job):
        among = [job_id for job_id, job in self.jobs.items() if any_job or job.place == "failed"]
        job_id = data.draw(st.sampled_from(among))
        job = self.jobs[job_id]
        try:
            transitions.requeue(self.redis, job_id, front)
        except InvalidJobOperation:
            assert job.place != "failed"
            return
        assert job.place == "failed"
        job.place, job.deaths = "queued", 0
        self.queues[job.queue].insert(0 if front else len(self.queues[job.queue]), job_id)

    @rule(queue=st.sampled_from(QUEUES), later=st.booleans())
    def promote(self, queue, later):
        if later:  # time passes: everything scheduled is due
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
    def lost_by_stock_rq(self, data, found):
        """A stock worker popped a job and died before anybody held it; the sweep finds it."""
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
        """A sweep whose look was long ago: the job is where it should be by now, and stays."""
        job_id = data.draw(st.sampled_from(list(self.jobs)))
        job = self.jobs[job_id]
        before = self.dump()
        outcome = recovery.recover(self.redis, job_id, job.queue, found, "old", job.owner)
        if job.place not in ENDED:
            assert outcome in ("moved", "placed", "alive"), outcome
        assert outcome != "requeued" and self.dump() == before

    @rule(count=st.booleans())
    def sweep(self, count):
        """All of it: leases, orphans, what crashed. It may hold no lease to have ended after a long silence."""
        self.redis.set("rqjobs:sweep:last", time.time() - (0 if count else 3600))
        sweep.sweep(self.redis, force=True)
        for name in WORKERS:
            known = self.redis.zscore(keys.LEASES, name) is not None or self.claims[name]
            if not count and self.redis.zscore(keys.LEASES, name) is not None:
                self.alive.add(name)
            elif name not in self.alive and known:
                held = list(self.claims[name])
                self.let_go(name, list(reversed(held)), counted=held[0] if held else "")
        for queue in QUEUES:
            for job_id, job in self.jobs.items():
                if job.place == "scheduled" and job.queue == queue and job.deaths:
                    score = self.redis.zscore(f"rq:scheduled:{queue}", job_id)
                    assert score is not None and score > time.time()

    # What they share

    def put_back(self, job_id):
        job = self.jobs[job_id]
        if job.token:
            job.stale.append(Claim(job_id, job.queue, job.token, {}))
        job.place, job.owner, job.token = "queued", "", ""
        self.queues[job.queue].insert(0, job_id)

    def let_go(self, name, ids, counted="", delayed=False, outcomes=None):
        """`ids`, the last of the claims first, leave the claims of a worker."""
        for job_id in ids:
            self.claims[name].remove(job_id)
            job = self.jobs[job_id]
            expected = "ended"
            if job.place == "claimed":
                died = job_id == counted and job.token
                job.deaths += bool(died)
                if died and job.deaths >= recovery.MAX_CRASHES:
                    expected = "failed"
                    job.stale.append(Claim(job_id, job.queue, job.token, {}))
                    job.place, job.owner, job.token, job.outcomes = (
                        "failed",
                        "",
                        "",
                        job.outcomes + 1,
                    )
                elif died and delayed:
                    expected = "delayed"
                    job.stale.append(Claim(job_id, job.queue, job.token, {}))
                    job.place, job.owner, job.token = "scheduled", "", ""
                else:
                    expected = "requeued"
                    self.put_back(job_id)
            assert outcomes is None or outcomes[job_id] == expected

    def settle_with(self, name, claim, how):
        """Send an outcome, as the horse does. Returns the answer, and whether anything in Redis has changed."""
        before, place = self.dump(), f"rq:{how}:{claim.queue}"
        if how == "plain":
            outcome = decode(
                SETTLE_SUCCESS.run(
                    self.redis,
                    [f"rqjobs:claims:{name}"],
                    [
                        claim.job_id,
                        claim.queue,
                        claim.token,
                        name,
                        "then",
                        "now",
                        1,
                        2,
                        500,
                        9e9,
                        0,
                        180,
                    ],
                )
            )
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
        job.place, job.owner, job.token, job.settled = how, "", "", claim
        job.stale.append(claim)
        if how == "queued":
            self.queues[job.queue].append(claim.job_id)
        job.outcomes += how in ("finished", "failed")

    def dump(self):
        return {
            key: self.redis.dump(key)
            for key in self.redis.scan_iter(count=1000)
            if not key.startswith((b"rqjobs:strays", b"rqjobs:s", b"rqjobs:leases"))
        }

    # The promises

    @invariant()
    def conserved(self):
        """P1: every job that has not ended is in exactly one place, and it is the model's; P3 and P4: its counts."""
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
                    assert self.jobs[job_id].owner == name
                    places[job_id].append("claimed")
        running = Counter(
            member for queue in QUEUES for member in redis.zrange(f"rq:wip:{queue}", 0, -1)
        )
        for job_id, job in self.jobs.items():
            assert places[job_id] == ([] if job.place in ENDED else [job.place]), job
            fields = redis.hgetall(f"rq:job:{job_id}")
            deaths = [one for one in fields.get(b"rqjobs_crashes", b"").split(b",") if one]
            assert len(deaths) == job.deaths and job.deaths <= recovery.MAX_CRASHES
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
            ), f"{member} is in the registry of what runs, in nobody's claims"


@pytest.mark.slow
def test_the_ledger_keeps_its_promises_in_any_order(redis, monkeypatch):
    monkeypatch.setattr(Ledger, "redis", redis)
    monkeypatch.setattr(sweep_result.log, "disabled", True)
    Ledger.TestCase.settings = settings(
        derandomize=True,
        max_examples=50,
        stateful_step_count=40,
        deadline=None,
        database=None,
        phases=[
            Phase.generate
        ],  # to shrink a failure takes minutes; add Phase.shrink to have a short one
        suppress_health_check=list(HealthCheck),
    )
    Ledger.TestCase("runTest").runTest()
