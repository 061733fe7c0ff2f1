"""One life of an id: every state of a job with every way to enqueue, cancel or delete its id.

The run in progress ends in every possible way, too. The tests try all combinations with the
real scripts, in this process, without hypothesis.

After each combination the job is in one place, the place of the last operation. The outcome of
the earlier run is refused. An accepted job runs once. No key of the job is left afterwards.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import helpers
import pytest
import rq
import sample_jobs
from rq.exceptions import InvalidJobOperation
from rq.group import Group
from rq.serializers import JSONSerializer

import rqjobs
from rqjobs.broker import keys, leases, recovery, scripts, transitions
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import SETTLE_SUCCESS
from rqjobs.jobs import Job
from rqjobs.maintenance import audit, strays, sweep

QUEUES = ["default", "low"]
SOON = timedelta(hours=1)
STOCK = {"serializer": JSONSerializer, "default_timeout": 180}


class House:
    """A Redis with two workers, "a" and "b", and the id "x"."""

    def __init__(self, redis):
        self.redis = redis
        redis.flushdb()
        for name in "ab":
            leases.renew_lease(redis, name, {"host": "elsewhere", "pid": 1, "started": "1"})
        self.history, self.begun = [], 0
        self.run = None  # the claim of the run in progress
        self.ran = []  # the argument of each run that began
        self.parent = rqjobs.enqueue(sample_jobs.ok, job_id="parent", at_front=True)
        redis.lrem("rq:queue:default", 0, "parent")  # the parent runs until the test ends it
        redis.hset(self.parent.key, "status", "started")
        self.view = None  # the job as a web view read it, before it got into its state

    def enqueue(self, **options):
        job = rqjobs.enqueue(sample_jobs.ok, "old", job_id="x", **options)
        self.view = (
            Job.fetch("x", connection=self.redis),
            rq.job.Job.fetch("x", connection=self.redis, serializer=JSONSerializer),
        )
        return job

    def claim(self, worker="a"):
        got = helpers.claim(self.redis, worker, QUEUES, 1)
        for claim in got:
            self.ran.append(Job.from_hash(claim.job_id, claim.fields, self.redis).args[0])
        return got[0] if got else None

    def finish(self, worker, claim):
        return decode(
            SETTLE_SUCCESS.run(
                self.redis,
                [f"rqjobs:claims:{worker}"],
                [
                    claim.job_id,
                    claim.queue,
                    claim.token,
                    worker,
                    "2030-01-01T00:00:00Z",
                    "2030-01-01T00:00:00Z",
                    1,
                    time.time(),
                    500,
                    9e9,
                    0,
                    180,
                ],
            )
        )

    def places(self):
        """The places that list the id, one entry for each occurrence.

        Sets `history` to the registries of ended jobs that have the id.
        """
        with self.redis.pipeline(transaction=False) as pipe:
            for queue in QUEUES:
                pipe.execute_command("LPOS", f"rq:queue:{queue}", "x", "COUNT", 0)
                for place in ("scheduled", "deferred", "finished", "failed", "canceled"):
                    pipe.zscore(f"rq:{place}:{queue}", "x")
                pipe.zcard(f"rq:wip:{queue}")
            for worker in "ab":
                pipe.execute_command("LPOS", f"rqjobs:claims:{worker}", "x", "COUNT", 0)
            replies = pipe.execute()
        found, history = [], set()
        for number, queue in enumerate(QUEUES):
            queued, scheduled, deferred, finished, failed, canceled, self.begun = replies[
                7 * number : 7 * number + 7
            ]
            found += [f"queued {queue}"] * len(queued)
            found += ["scheduled"] * (scheduled is not None) + ["deferred"] * (deferred is not None)
            history |= {
                place
                for place, score in (
                    ("finished", finished),
                    ("failed", failed),
                    ("canceled", canceled),
                )
                if score is not None
            }
        for worker, claims in zip("ab", replies[14:], strict=True):
            found += [f"claimed {worker}"] * len(claims)
        self.history = sorted(history)
        return found

    def everything_comes_due(self):
        for queue in QUEUES:
            if self.redis.zscore(f"rq:scheduled:{queue}", "x") is not None:
                self.redis.zadd(f"rq:scheduled:{queue}", {"x": time.time() - 1})
            transitions.promote(self.redis, queue, 180)
            if self.redis.hexists(
                f"rqjobs:scheduled-without-job:{queue}", "x"
            ):  # ids without a job are kept for a minute
                self.redis.hset(f"rqjobs:scheduled-without-job:{queue}", "x", 1)
                transitions.promote(self.redis, queue, 180)

    def end_parent(self):
        self.redis.hset(self.parent.key, "status", "finished")
        recovery.enqueue_dependents(self.redis, "parent", 180)

    def drain(self):
        """Both workers run all jobs.

        Delayed jobs become due, and the parent of deferred jobs ends.
        """
        for step in (
            lambda: None,
            self.end_parent,
            self.everything_comes_due,
            self.everything_comes_due,
        ):
            step()
            for worker in "ba":
                while claim := self.claim(worker):
                    assert self.finish(worker, claim) == "settled"


# The states that a job can be in before the operation


def new(house):
    pass


def queued(house):
    house.enqueue()


def scheduled(house):
    rqjobs.enqueue_in(SOON, sample_jobs.ok, "old", job_id="x")
    house.view = (
        Job.fetch("x", connection=house.redis),
        rq.job.Job.fetch("x", connection=house.redis, serializer=JSONSerializer),
    )


def deferred(house):
    house.enqueue(depends_on="parent")


def woken(house):
    """A blocking pop has moved the job into a worker's claims.

    The worker has not claimed it yet.
    """
    house.enqueue()
    house.redis.lmove("rq:queue:default", "rqjobs:claims:a", "LEFT", "RIGHT")


def running(house):
    house.enqueue()
    house.run = house.claim()


def finished(house):
    running(house)
    assert house.finish("a", house.run) == "settled"
    house.run = None


def failed(house):
    running(house)
    writes = transitions.failure_writes(house.run, "a", "no")
    scripts.SETTLE.run(house.redis, *transitions.settle_arguments("a", house.run, writes))
    house.redis.srem(keys.ENDED_PARENTS, "x")
    house.run = None


def canceled(house):
    queued(house)
    Job.fetch("x", connection=house.redis).cancel()


def canceled_running(house):
    running(house)
    Job.fetch("x", connection=house.redis).cancel()


def deleted(house):
    queued(house)
    Job.fetch("x", connection=house.redis).delete()


def deleted_running(house):
    running(house)
    rq.job.Job.fetch("x", connection=house.redis, serializer=JSONSerializer).delete()


WAITING = (queued, scheduled, deferred, woken)
ENDED = (finished, failed, canceled, deleted)
STATES = (new, *WAITING, running, *ENDED, canceled_running, deleted_running)


# The operations: each way to enqueue the id, with the argument "new", and the job's new place


def stock(redis, name="default"):
    return rq.Queue(name, connection=redis, **STOCK)


def with_pipeline(redis):
    with redis.pipeline() as pipe:
        rqjobs.enqueue(sample_jobs.ok, "new", job_id="x", pipeline=pipe)
        assert len(pipe) == 1
        pipe.execute()


def delayed_with_pipeline(redis):
    with redis.pipeline() as pipe:
        rqjobs.enqueue_in(SOON, sample_jobs.ok, "new", job_id="x", pipeline=pipe)
        pipe.execute()


def deferred_with_pipeline(redis):
    with redis.pipeline() as pipe:
        rqjobs.enqueue(sample_jobs.ok, "new", job_id="x", depends_on="parent", pipeline=pipe)
        pipe.execute()


def data(**options):
    return rqjobs.Queue.prepare_data(sample_jobs.ok, args=("new",), job_id="x", **options)


def parent_of(redis):
    return Job.fetch("parent", connection=redis)


ENQUEUE = {
    "enqueue": ("queued default", lambda redis: rqjobs.enqueue(sample_jobs.ok, "new", job_id="x")),
    "at the front": (
        "queued default",
        lambda redis: rqjobs.enqueue(sample_jobs.ok, "new", job_id="x", at_front=True),
    ),
    "on another queue": (
        "queued low",
        lambda redis: rqjobs.queue("low").enqueue(sample_jobs.ok, "new", job_id="x"),
    ),
    "pipeline": ("queued default", with_pipeline),
    "enqueue_many": ("queued default", lambda redis: rqjobs.enqueue_many([data()])),
    "many of a queue": (
        "queued default",
        lambda redis: rqjobs.queue("default").enqueue_many([data()]),
    ),
    "group": (
        "queued default",
        lambda redis: Group.create(connection=redis).enqueue_many(
            rqjobs.queue("default"), [data()]
        ),
    ),
    "enqueue_job": (
        "queued default",
        lambda redis: rqjobs.queue("default").enqueue_job(
            rqjobs.queue("default").create_job(sample_jobs.ok, ("new",), job_id="x")
        ),
    ),
    "enqueue_in": (
        "scheduled",
        lambda redis: rqjobs.enqueue_in(SOON, sample_jobs.ok, "new", job_id="x"),
    ),
    "enqueue_at": (
        "scheduled",
        lambda redis: rqjobs.enqueue_at(
            datetime.now(timezone.utc) + SOON, sample_jobs.ok, "new", job_id="x"
        ),
    ),
    "delayed, pipeline": ("scheduled", delayed_with_pipeline),
    "depends_on": (
        "deferred",
        lambda redis: rqjobs.enqueue(sample_jobs.ok, "new", job_id="x", depends_on="parent"),
    ),
    "depends_on, pipeline": ("deferred", deferred_with_pipeline),
    "depends_on, many": (
        "deferred",
        lambda redis: rqjobs.queue("default").enqueue_many([data(depends_on="parent")]),
    ),
    "depends_on, group": (
        "deferred",
        lambda redis: Group.create(connection=redis).enqueue_many(
            rqjobs.queue("default"), [data(depends_on=parent_of(redis))]
        ),
    ),
    "depends_on and delayed": (
        "deferred",
        lambda redis: rqjobs.enqueue_in(
            SOON, sample_jobs.ok, "new", job_id="x", depends_on="parent"
        ),
    ),
}
STOCK_ENQUEUE = {
    "stock enqueue": lambda redis: stock(redis).enqueue("sample_jobs.ok", "new", job_id="x"),
    "stock on another queue": lambda redis: stock(redis, "low").enqueue(
        "sample_jobs.ok", "new", job_id="x"
    ),
    "stock at the front": lambda redis: stock(redis).enqueue(
        "sample_jobs.ok", "new", job_id="x", at_front=True
    ),
    "stock enqueue_in": lambda redis: stock(redis).enqueue_in(
        SOON, "sample_jobs.ok", "new", job_id="x"
    ),
    "stock depends_on": lambda redis: stock(redis).enqueue(
        "sample_jobs.ok", "new", job_id="x", depends_on="parent"
    ),
    "stock many": lambda redis: stock(redis).enqueue_many(
        [rq.Queue.prepare_data("sample_jobs.ok", args=("new",), job_id="x", timeout=180)]
    ),
}


# The ways in which the run in progress ends


def ends_at_once(house):
    return house.finish("a", house.run)


def ends_late(house):
    """The outcome comes after the next run has begun, if there is one."""
    house.next = house.claim("b")
    outcome = house.finish("a", house.run)
    if house.next:
        assert house.finish("b", house.next) == "settled"
    return outcome


def ends_beside_its_successor(house):
    """The worker has claimed the next run too.

    The outcome was sent, and the connection broke.
    """
    got = helpers.claim(house.redis, "a", QUEUES, 1, ["x"])
    house.ran += [Job.from_hash("x", claim.fields, house.redis).args[0] for claim in got]
    outcome = house.finish("a", house.run)
    for claim in got:
        assert house.finish("a", claim) == "settled"
    return outcome


def its_worker_is_gone(house):
    recovery.reclaim(house.redis, "a", QUEUES, recovery.DeathCause.PROCESS_GONE, process="1:1")
    leases.renew_lease(house.redis, "a", {"host": "elsewhere", "pid": 1, "started": "1"})
    return house.finish("a", house.run)


def its_worker_lets_go(house):
    transitions.release_unknown(house.redis, "a")
    transitions.release_all(house.redis, "a")
    return house.finish("a", house.run)


FATES = (ends_at_once, ends_late, ends_beside_its_successor, its_worker_is_gone, its_worker_lets_go)


def check(house, name, place=None):
    """The job runs once after one operation, and then no entry is left."""
    house.drain()
    assert house.ran.count("new") == 1, (name, house.ran)
    places = house.places()
    assert not house.begun, name
    if "stock on another queue" not in name:
        assert (places, house.history) == ([], ["finished"]), name
    elif places:  # the id's other places are unknown; audit reports them
        assert (
            audit.audit(house.redis, settle=0).breaches["x"]
            == "finished, yet in: deferred in default"
        ), name


@pytest.mark.parametrize("name", [*ENQUEUE, *STOCK_ENQUEUE])
def test_an_id_that_is_enqueued_again_has_one_job(redis, name):
    place, enqueue = ENQUEUE.get(name) or ("", STOCK_ENQUEUE[name])
    for state in STATES:
        for fate in FATES if state in (running, canceled_running, deleted_running) else (None,):
            what = f"{state.__name__}, {name}, {fate and fate.__name__}"
            house = House(redis)
            state(house)
            enqueue(redis)
            places = house.places()
            if place:
                assert place in places and house.history == [], what
            if (
                place and state is not deleted_running and state is not woken
            ):  # the worker is not aware of that claim
                assert places == [place], what
            if fate:
                assert fate(house) == "refused", what
            check(house, what)
            old = house.ran.count("old")
            assert old == (
                state in (running, finished, failed, canceled_running, deleted_running)
            ), what


def test_a_canceled_or_deleted_job_does_not_run(redis):
    for state in (*WAITING, running, finished, failed):
        for operation in ("cancel", "delete"):
            for job_class in (Job, rq.job.Job):
                house = House(redis)
                state(house)
                getattr(
                    job_class.fetch("x", connection=redis, serializer=JSONSerializer), operation
                )()
                what = f"{state.__name__}, {operation}, {job_class}"
                if house.run:
                    assert (
                        house.finish("a", house.run)
                        == {"cancel": "canceled", "delete": "gone"}[operation]
                    ), what
                before = list(house.ran)
                house.drain()
                assert house.ran == before and not house.places(), what
                assert redis.exists("rq:job:x") == (operation == "cancel"), what


def test_a_stale_save_starts_and_ends_no_job(redis):
    """A web view read a job and wrote its meta after the job had moved on."""
    for state in (*WAITING, running, finished, failed, canceled, canceled_running):
        for stock_client in (False, True):
            house = House(redis)
            state(house)
            what = f"{state.__name__}, {'stock' if stock_client else 'ours'}"
            view, before = house.view[stock_client], redis.hget("rq:job:x", "status")
            view.meta["seen"] = 1
            view.save()
            assert Job.fetch("x", connection=redis).meta == {"seen": 1}, what
            if not stock_client:
                assert redis.hget("rq:job:x", "status") == before, what
            if house.run:
                is_canceled = (
                    state is canceled_running and not stock_client
                )  # which a stock client's save() undoes
                assert house.finish("a", house.run) == ("canceled" if is_canceled else "settled"), (
                    what
                )
            ran = list(house.ran)
            redis.hset(
                "rq:job:x",
                mapping={
                    "enqueued_at": "2020-01-01T00:00:00Z",
                    "created_at": "2020-01-01T00:00:00Z",
                }
                if state in ENDED
                else {"seen": 1},
            )
            for _ in range(2):
                sweep.sweep(redis, force=True)
                for job_id, since in redis.hgetall("rqjobs:sweep:strays:seen").items():
                    redis.hset(
                        "rqjobs:sweep:strays:seen", job_id, float(since) - strays.STRAY_SECONDS
                    )
            assert "x" not in audit.audit(redis, settle=0).breaches or stock_client, what
            house.drain()
            expected = ran + ["old"] * (state in WAITING)
            assert house.ran == expected or (stock_client and state in (scheduled, deferred)), what


def test_only_the_latest_failure_can_be_requeued(redis):
    for state in STATES:
        house = House(redis)
        state(house)
        if state is failed:
            Job.fetch("x", connection=redis).requeue()
            assert house.places() == ["queued default"] and house.history == []
            continue
        if redis.exists("rq:job:x") and state not in (canceled, canceled_running, woken):
            before = house.places()
            redis.zadd(
                "rq:failed:default", {"x": 9e9}
            )  # stock RQ left this entry of an earlier run
            with pytest.raises(InvalidJobOperation):
                Job.fetch("x", connection=redis).requeue()
            assert house.places() == before, state.__name__
            assert "failed" not in house.history


def test_crashes_of_an_earlier_life_do_not_count(redis):
    """A nightly job with a fixed id failed as poison at its first crash.

    Two crashes in the nights before had been counted.
    """
    house = House(redis)
    house.enqueue()
    moment = f"{time.time():.0f}"
    redis.hset("rq:job:x", "rqjobs_crashes", f"{moment},{moment}")
    assert house.finish("a", house.claim()) == "settled"
    rqjobs.enqueue(sample_jobs.ok, "new", job_id="x")
    house.claim()
    assert recovery.reclaim(redis, "a", QUEUES, recovery.DeathCause.HORSE_DIED, "x", 0) == {
        "x": "requeued"
    }
    assert len(redis.hget("rq:job:x", "rqjobs_crashes").split(b",")) == 1


def test_requeueing_removes_an_entry_among_another_queue_s_failed_jobs(redis):
    """A stock client had enqueued the failed job again in another queue.

    The job finished, and was counted as failed for a year.
    """
    house = House(redis)
    failed(house)
    stock(redis, "low").enqueue("sample_jobs.ok", "new", job_id="x")
    assert house.finish("a", house.claim()) == "settled"
    with pytest.raises(InvalidJobOperation):
        transitions.requeue(redis, "x")
    assert house.places() == [] and house.history == ["finished"]


@pytest.mark.parametrize("others", [[], ["parent"]])
def test_no_job_waits_for_itself(redis, others):
    """The job was deferred forever, and audit did not report it."""
    house = House(redis)
    running(house)
    rqjobs.enqueue(sample_jobs.ok, "new", job_id="x", depends_on=["x", *others])
    assert house.places() == (["deferred"] if others else ["queued default"])
    assert house.finish("a", house.run) == "refused"
    house.drain()
    assert house.ran == ["old", "new"] and house.places() == [] and house.history == ["finished"]
