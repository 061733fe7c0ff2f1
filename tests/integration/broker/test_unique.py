"""Unique and debounced jobs, with real scripts: at most one job of a key, and no key that blocks."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta, timezone

import helpers
import pytest
import rq
import sample_jobs
from rq.exceptions import DuplicateJobError, InvalidJobOperation
from rq.job import JobStatus
from rq.serializers import JSONSerializer

import rqjobs
from rqjobs import ScheduleError, delayed, every, schedules
from rqjobs.broker import keys, leases, recovery, scripts, transitions
from rqjobs.broker.keys import decode
from rqjobs.jobs import Job
from rqjobs.maintenance import audit, sweep
from rqjobs.schedules import ticker

QUEUES = ["high", "default", "low"]
NOW = "2030-01-01T00:00:00Z"


class Broker:
    """Workers without processes: they claim and settle with the scripts."""

    def __init__(self, redis):
        self.redis = redis
        self.claims = {}

    def claim(self, worker="a", max_jobs=1):
        """Claim jobs; returns their ids."""
        leases.renew_lease(self.redis, worker, {"host": "elsewhere", "pid": 1, "started": "1"})
        held = [job_id for job_id, (owner, _) in self.claims.items() if owner == worker]
        found = helpers.claim(self.redis, worker, QUEUES, max_jobs, held)
        self.claims.update({claim.job_id: (worker, claim) for claim in found})
        return [claim.job_id for claim in found]

    def settle(self, job_id, status="finished"):
        """Record an outcome by `settle.lua`; returns the reply."""
        worker, claim = self.claims.pop(job_id)
        writes = [("HSET", keys.job(job_id), "status", status)]
        if status == "scheduled":  # a retry
            writes.append(("ZADD", keys.scheduled(claim.queue), 4_000_000_000, job_id))
        elif status == "gone":  # result_ttl=0
            writes = [("DEL", keys.job(job_id))]
        else:
            writes.append(("ZADD", keys.registry(status, claim.queue), "+inf", job_id))
        arguments = transitions.settle_arguments(worker, claim, writes)
        return decode(scripts.SETTLE.run(self.redis, *arguments))

    def succeed(self, job_id):
        """Record a plain success by `settle_success.lua`."""
        worker, claim = self.claims.pop(job_id)
        args = [job_id, claim.queue, claim.token, worker, NOW, NOW, 1, 2, 500, 9e9, 0, 180]
        reply = scripts.SETTLE_POLICY_SUCCESS.run(self.redis, [keys.claims(worker)], args)
        assert decode(reply) == "settled"

    def die(self, worker):
        """Take the claims of a dead worker back."""
        self.redis.zadd(keys.LEASES, {worker: 1})
        self.claims = {i: own for i, own in self.claims.items() if own[0] != worker}
        recovery.reclaim(self.redis, worker, QUEUES, recovery.DeathCause.LEASE_EXPIRED)

    def taken(self):
        """The entries of the unique keys, as job ids."""
        return [decode(entry) for entry in self.redis.hvals(keys.UNIQUE)]

    def ids(self):
        """The ids of all jobs."""
        found = self.redis.keys("rq:job:*")
        return {decode(key).removeprefix("rq:job:") for key in found if key.count(b":") == 2}


@pytest.fixture
def broker(redis):
    broker = Broker(redis)
    yield broker
    assert not audit.audit(redis, settle=0).breaches


def charge(invoice=1, **options):
    return rqjobs.enqueue(sample_jobs.charge, invoice, **options)


def fetch(job_id):
    return Job.fetch(job_id, connection=rqjobs.client())


# on_conflict


def test_while_a_job_waits_or_runs_the_same_call_returns_it(broker):
    first = rqjobs.enqueue(sample_jobs.unique_args, 7)
    again = rqjobs.enqueue(sample_jobs.unique_args, value=7)
    assert again == first and again.get_status(refresh=False) == JobStatus.QUEUED
    assert broker.ids() == {first.id}
    assert rqjobs.enqueue(sample_jobs.unique_args, 8) != first
    assert broker.claim(max_jobs=2)[0] == first.id
    assert rqjobs.enqueue(sample_jobs.unique_args, 7, other=0) == first
    broker.succeed(first.id)
    assert rqjobs.enqueue(sample_jobs.unique_args, 7) != first


def test_jobs_of_one_template_differ_in_other_arguments(broker):
    first = rqjobs.enqueue(sample_jobs.charge, 1, amount=5)
    assert rqjobs.enqueue(sample_jobs.charge, 1, amount=6) == first
    assert rqjobs.enqueue(sample_jobs.charge, invoice=2) != first


@pytest.mark.parametrize("end", ["finished", "failed", "stopped", "canceled", "gone"])
def test_every_end_frees_the_key(broker, end):
    job = charge()
    broker.claim()
    assert charge() == job
    broker.settle(job.id, end)
    assert broker.taken() == []
    assert charge() != job


def test_a_retry_keeps_the_key(broker):
    job = charge()
    broker.claim()
    broker.settle(job.id, "scheduled")
    assert charge() == job


def test_a_dead_workers_job_keeps_the_key_and_a_poison_job_frees_it(broker):
    job = charge()
    for _ in range(recovery.MAX_CRASHES - 1):
        assert broker.claim() == [job.id]
        broker.die("a")
        assert charge() == job
    broker.claim()
    broker.die("a")
    assert fetch(job.id).get_status() == JobStatus.FAILED and broker.taken() == []
    assert charge() != job


def rq_client_cancels(job):
    rq.job.Job.fetch(job.id, connection=job.connection, serializer=JSONSerializer).cancel()


@pytest.mark.parametrize(
    "end",
    [
        rq_client_cancels,
        lambda job: job.cancel(),
        lambda job: job.delete(),
        lambda job: transitions.delete_job(job.connection, job.id),
        lambda job: job.connection.delete(job.key, keys.queue("default")),  # its ttl is over
    ],
)
def test_a_canceled_or_deleted_job_frees_its_key_without_a_release(broker, end):
    job = charge(ttl=100)
    end(job)
    other = charge()
    assert other != job and charge() == other


def test_a_job_that_is_canceled_while_it_runs_has_its_key_until_it_ends(broker):
    job = charge()
    broker.claim()
    job.cancel()
    assert charge() == job
    assert broker.settle(job.id) == "canceled"
    assert charge() != job


def test_raise_raises_and_nothing_of_the_call_is_stored(broker):
    job = charge(on_conflict="raise")
    with pytest.raises(rqjobs.DuplicateJob, match=f"not enqueued: the job {job.id} has") as caught:
        charge(on_conflict="raise")
    assert caught.value.existing_id == job.id and isinstance(caught.value, DuplicateJobError)
    calls = [(sample_jobs.ok,), *(_data(invoice, on_conflict="raise") for invoice in (2, 3, 1))]
    with pytest.raises(rqjobs.DuplicateJob):
        rqjobs.enqueue_many(calls)
    with pytest.raises(rqjobs.DuplicateJob):  # they conflict with each other
        rqjobs.enqueue_many([_data(5, on_conflict="raise"), _data(5, on_conflict="raise")])
    assert broker.ids() == {job.id} and broker.taken() == [job.id]


def _data(invoice, amount=0, **options):
    return rqjobs.Queue.prepare_data(sample_jobs.charge, args=(invoice, amount), **options)


def test_replace_gives_a_waiting_job_the_new_call_and_its_place(broker):
    first, second = charge(1), charge(2)
    kept = rqjobs.enqueue(sample_jobs.ok, depends_on=first)
    job = rqjobs.enqueue(
        sample_jobs.charge, 1, 9.5, on_conflict="replace", meta={"a": 1}, job_timeout=77
    )
    assert job == first and broker.ids() == {first.id, second.id, kept.id}
    stored = fetch(first.id)
    assert stored.args == [1, 9.5] and stored.meta == {"a": 1} and stored.timeout == 77
    assert rqjobs.queue("default").job_ids == [first.id, second.id]
    assert broker.claim() == [first.id]
    assert charge(1, on_conflict="replace") == first  # a running job is returned
    broker.succeed(first.id)
    assert fetch(kept.id).get_status() == JobStatus.QUEUED


def test_a_replaced_job_has_nothing_of_the_earlier_call(broker):
    job = rqjobs.enqueue(
        sample_jobs.charge,
        1,
        on_success=rqjobs.Callback(sample_jobs.on_done),
        retry=rqjobs.Retry(3),
        failure_ttl=5,
        ttl=100,
    )
    broker.redis.hset(job.key, "rqjobs_crashes", "1")
    new = charge(1, on_conflict="replace")
    fields = broker.redis.hgetall(new.key)
    fresh = broker.redis.hgetall(charge(2).key)
    assert new == job and set(fields) == set(fresh) | {b"rqjobs_conflict"}
    assert broker.redis.ttl(job.key) == -1


def test_replace_moves_a_job_to_the_place_that_the_call_asks_for(broker):
    job = rqjobs.enqueue_in(600, sample_jobs.charge, 1)
    assert charge(1) == job and fetch(job.id).get_status() == JobStatus.SCHEDULED
    charge(2)
    assert charge(1, on_conflict="replace", at_front=True) == job
    assert rqjobs.queue("default").job_ids[0] == job.id and delayed.count() == 0
    rqjobs.queue("low").enqueue(sample_jobs.charge, 1, on_conflict="replace")
    assert rqjobs.queue("low").job_ids == [job.id]
    assert job.id not in rqjobs.queue("default").job_ids
    again = rqjobs.enqueue_in(600, sample_jobs.charge, 1, on_conflict="replace")
    assert again == job and [found.job_id for found in delayed.jobs()] == [job.id]
    assert again.get_status(refresh=False) == JobStatus.SCHEDULED


def test_delayed_and_dependent_jobs_are_unique(broker):
    parent = rqjobs.enqueue(sample_jobs.ok)
    job = charge(1, depends_on=parent)
    assert job.get_status(refresh=False) == JobStatus.DEFERRED
    assert rqjobs.enqueue_in(600, sample_jobs.charge, 1) == job
    moment = datetime.now(timezone.utc) + timedelta(hours=1)
    assert rqjobs.enqueue_at(moment, sample_jobs.charge, 1) == job
    replaced = charge(1, on_conflict="replace", depends_on=parent)
    assert replaced == job and replaced.get_status(refresh=False) == JobStatus.DEFERRED
    delayed_job = rqjobs.enqueue_in(600, sample_jobs.charge, 2)
    assert charge(2, depends_on=parent) == delayed_job
    delayed.cancel(delayed_job.id)
    assert broker.taken() == [job.id]


def test_enqueue_many_returns_the_job_of_each_call(broker):
    existing = charge(1)
    jobs = rqjobs.enqueue_many([(sample_jobs.charge, number) for number in (2, 1, 2, 3)])
    assert jobs[1] == existing and jobs[0] == jobs[2]
    assert len({job.id for job in jobs}) == 3 and len(broker.ids()) == 3
    jobs = rqjobs.queue("default").enqueue_many(
        [_data(3, 4, on_conflict="replace"), _data(9, 1), _data(9, 2, on_conflict="replace")]
    )
    assert fetch(jobs[0].id).args == [3, 4] and jobs[1] == jobs[2]
    assert fetch(jobs[1].id).args == [9, 2]
    assert sorted(broker.taken()) == sorted(broker.ids())


def test_an_id_that_is_enqueued_again_frees_its_old_key(broker):
    job = charge(1, job_id="x")
    assert charge(2, job_id="x") == job and fetch("x").args == [2]
    assert charge(1) != job and charge(2) == job
    rqjobs.enqueue(sample_jobs.ok, job_id="x")
    assert charge(2) != job
    running = charge(3, job_id="y")
    broker.claim(max_jobs=9)
    assert charge(3, job_id="y") == running  # it runs, so its id is not enqueued again
    assert fetch("y").get_status() == JobStatus.STARTED


def test_a_deferred_job_can_be_let_run_by_its_own_id(broker):
    parent = rqjobs.enqueue_in(600, sample_jobs.ok)
    job = charge(1, depends_on=parent)
    parent.delete()
    rqjobs.queue("default").enqueue_job(fetch(job.id))
    assert broker.claim() == [job.id]


# until and keep


def test_until_started_frees_the_key_while_the_job_runs(broker):
    first = rqjobs.enqueue(sample_jobs.unique_until_started, 1)
    assert rqjobs.enqueue(sample_jobs.unique_until_started, 1) == first
    broker.claim()
    second = rqjobs.enqueue(sample_jobs.unique_until_started, 1)
    assert second != first and rqjobs.enqueue(sample_jobs.unique_until_started, 1) == second
    broker.claim()  # both run
    broker.succeed(first.id)
    broker.succeed(second.id)
    assert broker.taken() == []


def test_until_started_a_job_that_waits_again_has_its_key_again(broker):
    job = rqjobs.enqueue(sample_jobs.unique_until_started, 1)
    broker.claim()
    broker.die("a")
    assert rqjobs.enqueue(sample_jobs.unique_until_started, 1) == job


@pytest.mark.parametrize("end", ["finished", "failed", "gone"])
def test_keep_keeps_the_key_after_the_end(broker, end):
    job = rqjobs.enqueue(sample_jobs.unique_kept, 1)
    broker.claim()
    began = time.time()
    broker.settle(job.id, end)
    assert rqjobs.enqueue(sample_jobs.unique_kept, 1).id == job.id
    sweep.sweep(broker.redis, force=True)
    ((key, entry),) = broker.redis.hgetall(keys.UNIQUE).items()
    job_id, until = entry.split()
    assert decode(job_id) == job.id and began + 59 < float(until) < time.time() + 61
    broker.redis.hset(keys.UNIQUE, key, b"%s %f" % (job_id, time.time() - 1))
    assert rqjobs.enqueue(sample_jobs.unique_kept, 1).id != job.id


def test_deleting_a_job_frees_a_kept_key(broker):
    job = rqjobs.enqueue(sample_jobs.unique_kept, 1)
    broker.claim()
    broker.succeed(job.id)
    transitions.delete_job(broker.redis, job.id)
    assert broker.taken() == []


# Other ways into a queue


def test_a_failed_job_is_requeued_only_if_its_key_is_free(broker):
    job = charge()
    broker.claim()
    broker.settle(job.id, "failed")
    other = charge()
    with pytest.raises(InvalidJobOperation, match=f"the job {other.id} has its unique key"):
        job.requeue()
    assert transitions.requeue_all(broker.redis, ["default"]) == 0
    assert fetch(job.id).get_status() == JobStatus.FAILED
    broker.claim()
    broker.succeed(other.id)
    job.requeue()
    assert charge() == job and broker.claim() == [job.id]


def test_a_requeued_job_takes_its_kept_key(broker):
    job = rqjobs.enqueue(sample_jobs.unique_kept, 1)
    broker.claim()
    broker.settle(job.id, "failed")
    job.requeue()
    assert broker.taken() == [job.id]


def requeue_by_plain_rq(job_id, redis):
    job = rq.job.Job.fetch(job_id, connection=redis, serializer=JSONSerializer)
    rq.Queue("default", connection=redis, serializer=JSONSerializer).enqueue_job(job)
    redis.zrem(keys.failed("default"), job_id)


@pytest.mark.parametrize("delivered", [False, True])
@pytest.mark.parametrize("runs", [False, True])
def test_a_job_that_plain_rq_enqueues_again_does_not_run_beside_another(broker, runs, delivered):
    job = charge()
    broker.claim()
    broker.settle(job.id, "failed")
    other = charge()
    if runs:
        broker.claim("b")
    requeue_by_plain_rq(job.id, broker.redis)
    if delivered:
        broker.redis.lrem(keys.queue("default"), 0, job.id)
        broker.redis.rpush(keys.claims("a"), job.id)
    assert broker.claim("a", 9) == ([] if runs else [other.id])
    ended = fetch(job.id)
    assert ended.get_status() == JobStatus.CANCELED and job.id in rqjobs.queue(
        "default"
    ).canceled_job_registry.get_job_ids(cleanup=False)
    assert broker.redis.hget(job.key, "rqjobs_ending") == b"discarded"
    assert "another job with its unique key" in ended.latest_result().exc_string
    assert broker.taken() == [other.id]


def test_of_two_jobs_that_plain_rq_enqueues_again_one_runs(broker):
    ids = []
    for _ in range(2):
        ids.append(charge().id)
        broker.claim()
        broker.settle(ids[-1], "failed")
    for job_id in ids:
        requeue_by_plain_rq(job_id, broker.redis)
    assert broker.claim(max_jobs=9) == [ids[0]] and broker.taken() == [ids[0]]
    assert charge().id == ids[0]


def test_a_tick_of_a_schedule_whose_key_is_taken_makes_no_job(broker):
    made = schedules.add("billing", every(minutes=1), sample_jobs.charge, 1)
    running = charge(1)
    with pytest.raises(ScheduleError, match="another job has its unique key"):
        schedules.run_now("billing")
    due = made.next.timestamp() - 1000
    broker.redis.hset(keys.schedule("billing"), "next", str(int(due - due % 60)))
    broker.redis.zadd(keys.SCHEDULES, {"billing": due})
    ticker.run_due(broker.redis)
    assert schedules.get("billing").overlapped == 1 and broker.ids() == {running.id}
    running.cancel()
    job = schedules.run_now("billing")
    assert charge(1) == job


# Debounce


def index(name="a", version=0, **options):
    return rqjobs.enqueue(sample_jobs.index, name, version, **options)


def due(job):
    return rqjobs.client().zscore(keys.scheduled("default"), job.id)


def is_put_off(job, since):
    """Whether a job is due five seconds after a call that was made after `since`."""
    return since + 4.9 < due(job) < time.time() + 5.1


def test_a_debounced_job_is_put_off_by_each_call_and_runs_the_last(broker):
    began = time.time()
    job = index(version=1)
    assert job.get_status(refresh=False) == JobStatus.SCHEDULED and is_put_off(job, began)
    broker.redis.zadd(keys.scheduled("default"), {job.id: began + 1})
    assert index(version=2) == job and is_put_off(job, began)
    assert index("b") != job
    broker.redis.zadd(keys.scheduled("default"), {job.id: time.time() - 1})
    transitions.promote(broker.redis, "default", 180)
    assert index(version=3) == job  # it is due, and stays in its queue
    assert rqjobs.queue("default").job_ids == [job.id] and fetch(job.id).args == ["a", 3]
    assert broker.claim() == [job.id]
    later = index(version=4)
    assert later != job and is_put_off(later, began)


def test_a_debounced_job_is_put_off_to_its_maximum_only(broker):
    began = time.time()
    job = index()
    seconds, maximum, first = broker.redis.hget(job.key, "rqjobs_debounce").decode().split()
    assert (seconds, maximum) == ("5", "60") and began - 0.1 < float(first) < time.time() + 0.1
    broker.redis.hset(job.key, "rqjobs_debounce", f"5 60 {began - 57}")
    assert index(version=2) == job and due(job) == pytest.approx(began + 3, abs=0.1)
    broker.redis.hset(job.key, "rqjobs_debounce", f"5 60 {began - 100}")
    assert index(version=3) == job and due(job) < began


def test_a_debounced_job_that_waits_for_its_retry_is_replaced(broker):
    job = index()
    broker.redis.zadd(keys.scheduled("default"), {job.id: time.time() - 1})
    transitions.promote(broker.redis, "default", 180)
    broker.claim()
    broker.settle(job.id, "scheduled")
    began = time.time()
    broker.redis.hset(job.key, "rqjobs_debounce", f"5 60 {began - 100}")
    assert index(version=2) == job and is_put_off(job, began)


def test_enqueue_many_debounces_the_calls_of_one_key_into_one_job(broker):
    jobs = rqjobs.enqueue_many([(sample_jobs.index, "a", number) for number in range(5)])
    assert len({job.id for job in jobs}) == 1 and broker.ids() == {jobs[0].id}
    assert fetch(jobs[0].id).args == ["a", 4]


def test_a_debounced_dependent_waits_for_its_parent(broker):
    parent = rqjobs.enqueue(sample_jobs.ok)
    began = time.time()
    job = index(depends_on=parent)
    assert job.get_status(refresh=False) == JobStatus.DEFERRED
    assert index(version=2, depends_on=parent) == job
    broker.claim()
    broker.succeed(parent.id)
    assert fetch(job.id).get_status() == JobStatus.SCHEDULED and is_put_off(job, began)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: index(at_front=True), "debounce, which decides when it runs .* at_front"),
        (lambda: rqjobs.enqueue_in(9, sample_jobs.index, "a"), "cannot go with enqueue_in"),
        (
            lambda: schedules.add("s", every(minutes=1), sample_jobs.index, "a"),
            "cannot go with a schedule",
        ),
        (lambda: index(on_conflict="raise"), "leave on_conflict='raise' out"),
        (
            lambda: rqjobs.enqueue_many(
                [
                    (sample_jobs.ok,),
                    rqjobs.Queue.prepare_data(sample_jobs.index, args=("a",), at_front=True),
                ]
            ),
            "at_front",
        ),
        (
            lambda: rqjobs.queue("low").enqueue_many(
                [
                    rqjobs.Queue.prepare_data(sample_jobs.ok),
                    rqjobs.Queue.prepare_data(sample_jobs.index, args=("a",), at_front=True),
                ]
            ),
            "at_front",
        ),
        (lambda: charge(unique=True, job_id="x"), "so RQ's unique=True cannot be used"),
        (
            lambda: charge(on_conflict="raise", pipeline=rqjobs.client().pipeline()),
            "on_conflict='raise', which cannot go with pipeline=",
        ),
        (lambda: charge(until="later"), "until='later' is unknown"),
    ],
)
def test_what_cannot_go_together_is_refused_and_nothing_is_stored(broker, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
    assert broker.ids() == set() and not broker.redis.exists(keys.UNIQUE)


# Pipelines, synchronous queues, many at once


def test_in_a_pipeline_a_duplicate_is_not_stored(broker):
    job = charge()
    with broker.redis.pipeline() as pipe:
        duplicate = charge(pipeline=pipe)
        replacing = rqjobs.enqueue(sample_jobs.charge, 1, 5, on_conflict="replace", pipeline=pipe)
        pipe.execute()
    assert duplicate.id != job.id and replacing.id != job.id
    assert broker.ids() == {job.id} and fetch(job.id).args == [1, 5]


def test_a_synchronous_queue_does_not_run_a_duplicate(broker):
    queue = rqjobs.Queue("default", connection=broker.redis, is_async=False)
    job = charge()
    assert queue.enqueue(sample_jobs.charge, 1, 5) == job and broker.claim() == [job.id]
    broker.succeed(job.id)
    ran = queue.enqueue(sample_jobs.charge, 1, 5)
    assert ran.return_value() == 5 and charge() != ran


def test_many_enqueuers_at_once_make_one_job(broker):
    barrier = threading.Barrier(16)
    ids = []

    def enqueue():
        barrier.wait()
        ids.extend(charge(number).id for number in range(20))

    threads = [threading.Thread(target=enqueue) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 20 == len(broker.ids())


def test_a_sweep_drops_keys_whose_job_has_ended_or_is_gone(broker):
    kept = charge(1)
    running = rqjobs.enqueue(sample_jobs.unique_until_started, 1, at_front=True)
    broker.claim()
    for number in range(1000):
        broker.redis.hset(keys.UNIQUE, f"gone:{number}", f"gone-{number}")
    rq_client_cancels(charge(2))
    sweep.sweep(broker.redis, force=True)
    assert sorted(broker.taken()) == sorted([kept.id, running.id])


def test_a_key_of_the_wrong_type_refuses_only_unique_jobs(broker):
    broker.redis.set(keys.UNIQUE, "foreign")
    with pytest.raises(rqjobs.queues.redis.ResponseError, match="rqjobs:unique has the wrong type"):
        charge()
    rqjobs.enqueue(sample_jobs.ok)
    sweep.sweep(broker.redis, force=True)
    assert charge() == charge()


def test_a_plain_job_costs_no_command(broker):
    def commands():
        return broker.redis.info("commandstats").get("cmdstat_hget", {}).get("calls", 0)

    rqjobs.enqueue(sample_jobs.ok)
    before = commands()
    rqjobs.enqueue(sample_jobs.ok)
    assert commands() == before
