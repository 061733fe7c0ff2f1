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


class Workers:
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


def new(workers):
    pass


def queued(workers):
    workers.enqueue()


def scheduled(workers):
    rqjobs.enqueue_in(SOON, sample_jobs.ok, "old", job_id="x")
    workers.view = (
        Job.fetch("x", connection=workers.redis),
        rq.job.Job.fetch("x", connection=workers.redis, serializer=JSONSerializer),
    )


def deferred(workers):
    workers.enqueue(depends_on="parent")


def delivered(workers):
    """A blocking pop has moved the job into a worker's claims.

    The worker has not claimed it yet.
    """
    workers.enqueue()
    workers.redis.lmove("rq:queue:default", "rqjobs:claims:a", "LEFT", "RIGHT")


def running(workers):
    workers.enqueue()
    workers.run = workers.claim()


def finished(workers):
    running(workers)
    assert workers.finish("a", workers.run) == "settled"
    workers.run = None


def failed(workers):
    running(workers)
    writes = transitions.failure_writes(workers.run, "a", "no")
    scripts.SETTLE.run(workers.redis, *transitions.settle_arguments("a", workers.run, writes))
    workers.redis.srem(keys.ENDED_PARENTS, "x")
    workers.run = None


def canceled(workers):
    queued(workers)
    Job.fetch("x", connection=workers.redis).cancel()


def canceled_running(workers):
    running(workers)
    Job.fetch("x", connection=workers.redis).cancel()


def deleted(workers):
    queued(workers)
    Job.fetch("x", connection=workers.redis).delete()


def deleted_running(workers):
    running(workers)
    rq.job.Job.fetch("x", connection=workers.redis, serializer=JSONSerializer).delete()


WAITING = (queued, scheduled, deferred, delivered)
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


def ends_at_once(workers):
    return workers.finish("a", workers.run)


def ends_late(workers):
    """The outcome comes after the next run has begun, if there is one."""
    workers.next = workers.claim("b")
    outcome = workers.finish("a", workers.run)
    if workers.next:
        assert workers.finish("b", workers.next) == "settled"
    return outcome


def ends_after_its_successor_began(workers):
    """The worker has claimed the next run too.

    The outcome was sent, and the connection broke.
    """
    got = helpers.claim(workers.redis, "a", QUEUES, 1, ["x"])
    workers.ran += [Job.from_hash("x", claim.fields, workers.redis).args[0] for claim in got]
    outcome = workers.finish("a", workers.run)
    for claim in got:
        assert workers.finish("a", claim) == "settled"
    return outcome


def its_worker_is_gone(workers):
    recovery.reclaim(workers.redis, "a", QUEUES, recovery.DeathCause.PROCESS_GONE, process="1:1")
    leases.renew_lease(workers.redis, "a", {"host": "elsewhere", "pid": 1, "started": "1"})
    return workers.finish("a", workers.run)


def its_worker_releases_its_claims(workers):
    transitions.release_unknown(workers.redis, "a")
    transitions.release_all(workers.redis, "a")
    return workers.finish("a", workers.run)


FATES = (
    ends_at_once,
    ends_late,
    ends_after_its_successor_began,
    its_worker_is_gone,
    its_worker_releases_its_claims,
)


def check(workers, name, place=None):
    """The job runs once after one operation, and then no entry is left."""
    workers.drain()
    assert workers.ran.count("new") == 1, (name, workers.ran)
    places = workers.places()
    assert not workers.begun, name
    if "stock on another queue" not in name:
        assert (places, workers.history) == ([], ["finished"]), name
    elif places:  # the id's other places are unknown; audit reports them
        assert (
            audit.audit(workers.redis, settle=0).breaches["x"]
            == "finished, yet in: deferred in default"
        ), name


@pytest.mark.parametrize("name", [*ENQUEUE, *STOCK_ENQUEUE])
def test_an_id_that_is_enqueued_again_has_one_job(redis, name):
    place, enqueue = ENQUEUE.get(name) or ("", STOCK_ENQUEUE[name])
    for state in STATES:
        for fate in FATES if state in (running, canceled_running, deleted_running) else (None,):
            case = f"{state.__name__}, {name}, {fate and fate.__name__}"
            workers = Workers(redis)
            state(workers)
            enqueue(redis)
            places = workers.places()
            if place:
                assert place in places and workers.history == [], case
            if (
                place and state is not deleted_running and state is not delivered
            ):  # the worker is not aware of that claim
                assert places == [place], case
            if fate:
                assert fate(workers) == "refused", case
            check(workers, case)
            old = workers.ran.count("old")
            assert old == (
                state in (running, finished, failed, canceled_running, deleted_running)
            ), case


def test_a_canceled_or_deleted_job_does_not_run(redis):
    for state in (*WAITING, running, finished, failed):
        for operation in ("cancel", "delete"):
            for job_class in (Job, rq.job.Job):
                workers = Workers(redis)
                state(workers)
                getattr(
                    job_class.fetch("x", connection=redis, serializer=JSONSerializer), operation
                )()
                case = f"{state.__name__}, {operation}, {job_class}"
                if workers.run:
                    assert (
                        workers.finish("a", workers.run)
                        == {"cancel": "canceled", "delete": "gone"}[operation]
                    ), case
                before = list(workers.ran)
                workers.drain()
                assert workers.ran == before and not workers.places(), case
                assert redis.exists("rq:job:x") == (operation == "cancel"), case


def test_a_stale_save_starts_and_ends_no_job(redis):
    """A web view read a job and wrote its meta after the job had moved on."""
    for state in (*WAITING, running, finished, failed, canceled, canceled_running):
        for stock_client in (False, True):
            workers = Workers(redis)
            state(workers)
            case = f"{state.__name__}, {'stock' if stock_client else 'ours'}"
            view, before = workers.view[stock_client], redis.hget("rq:job:x", "status")
            view.meta["seen"] = 1
            view.save()
            assert Job.fetch("x", connection=redis).meta == {"seen": 1}, case
            if not stock_client:
                assert redis.hget("rq:job:x", "status") == before, case
            if workers.run:
                is_canceled = (
                    state is canceled_running and not stock_client
                )  # which a plain RQ client's save() undoes
                assert workers.finish("a", workers.run) == (
                    "canceled" if is_canceled else "settled"
                ), case
            ran = list(workers.ran)
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
            assert "x" not in audit.audit(redis, settle=0).breaches or stock_client, case
            workers.drain()
            expected = ran + ["old"] * (state in WAITING)
            assert workers.ran == expected or (stock_client and state in (scheduled, deferred)), (
                case
            )


def test_only_the_latest_failure_can_be_requeued(redis):
    for state in STATES:
        workers = Workers(redis)
        state(workers)
        if state is failed:
            Job.fetch("x", connection=redis).requeue()
            assert workers.places() == ["queued default"] and workers.history == []
            continue
        if redis.exists("rq:job:x") and state not in (canceled, canceled_running, delivered):
            before = workers.places()
            redis.zadd(
                "rq:failed:default", {"x": 9e9}
            )  # plain RQ left this entry of an earlier run
            with pytest.raises(InvalidJobOperation):
                Job.fetch("x", connection=redis).requeue()
            assert workers.places() == before, state.__name__
            assert "failed" not in workers.history


def test_crashes_of_an_earlier_life_do_not_count(redis):
    """A nightly job with a fixed id failed as poison at its first crash.

    Two crashes in the nights before had been counted.
    """
    workers = Workers(redis)
    workers.enqueue()
    moment = f"{time.time():.0f}"
    redis.hset("rq:job:x", "rqjobs_crashes", f"{moment},{moment}")
    assert workers.finish("a", workers.claim()) == "settled"
    rqjobs.enqueue(sample_jobs.ok, "new", job_id="x")
    workers.claim()
    assert recovery.reclaim(redis, "a", QUEUES, recovery.DeathCause.HORSE_DIED, "x", 0) == {
        "x": "requeued"
    }
    assert len(redis.hget("rq:job:x", "rqjobs_crashes").split(b",")) == 1


def test_requeueing_removes_an_entry_among_another_queue_s_failed_jobs(redis):
    """A plain RQ client had enqueued the failed job again in another queue.

    The job finished, and was counted as failed for a year.
    """
    workers = Workers(redis)
    failed(workers)
    stock(redis, "low").enqueue("sample_jobs.ok", "new", job_id="x")
    assert workers.finish("a", workers.claim()) == "settled"
    with pytest.raises(InvalidJobOperation):
        transitions.requeue(redis, "x")
    assert workers.places() == [] and workers.history == ["finished"]


@pytest.mark.parametrize("others", [[], ["parent"]])
def test_no_job_waits_for_itself(redis, others):
    """The job was deferred forever, and audit did not report it."""
    workers = Workers(redis)
    running(workers)
    rqjobs.enqueue(sample_jobs.ok, "new", job_id="x", depends_on=["x", *others])
    assert workers.places() == (["deferred"] if others else ["queued default"])
    assert workers.finish("a", workers.run) == "refused"
    workers.drain()
    assert (
        workers.ran == ["old", "new"] and workers.places() == [] and workers.history == ["finished"]
    )
