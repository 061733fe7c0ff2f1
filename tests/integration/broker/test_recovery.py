"""The sweep and the audit on records that a test writes. For real crashes see test_worker.py."""

from __future__ import annotations

import os
import threading
import time

import helpers
import pytest
import rq
import sample_jobs
from redis.exceptions import ResponseError
from rq.exceptions import InvalidJobOperation
from rq.job import Dependency, JobStatus
from rq.job import Job as StockJob
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

import rqjobs
from rqjobs import processes
from rqjobs.broker import keys, leases, recovery, transitions
from rqjobs.jobs import StartedJobRegistry as OurStartedJobRegistry
from rqjobs.maintenance import audit, liveness, strays, sweep


@pytest.fixture
def claim(redis):
    """Have a worker claim a job as a horse does; `begun` or not yet. Returns the token."""

    def make(job, owner, begun=True):
        redis.lrem(f"rq:queue:{job.origin}", 0, job.id)
        redis.zadd(keys.LEASES, {owner: time.time() + 20}, nx=True)
        before = redis.zscore(keys.LEASES, owner)
        redis.zadd(keys.LEASES, {owner: time.time() + 20})
        redis.rpush(f"rqjobs:claims:{owner}", job.id)
        token = ""
        if begun:
            held = [keys.decode(other) for other in redis.lrange(f"rqjobs:claims:{owner}", 0, -2)]
            (taken,) = helpers.claim(redis, owner, [job.origin], 1, held)
            assert taken.job_id == job.id
            token = taken.token
        redis.zadd(keys.LEASES, {owner: before})
        return token

    return make


@pytest.fixture
def stock_claim(redis):
    """Make a job look claimed and begun by a plain RQ worker, as RQ writes it; returns the execution id."""

    def make(job, owner, status="started", score="+inf"):
        redis.lrem(f"rq:queue:{job.origin}", 0, job.id)
        execution = f"ex{job.id[:6]}"
        redis.zadd(f"rq:wip:{job.origin}", {f"{job.id}:{execution}": score})
        redis.hset(f"rq:execution:{job.id}:{execution}", "worker_name", owner)
        redis.zadd(f"rq:executions:{job.id}", {execution: 9e9})
        redis.hset(job.key, mapping={"status": status, "worker_name": owner})
        return execution

    return make


@pytest.fixture
def lease(redis):
    """Give a worker a lease that ends `seconds` from now, and a recent sweep, so that leases count."""

    def make(name, seconds, where=None):
        leases.renew_lease(redis, name, where or {"host": "elsewhere", "pid": 1, "started": "1"})
        redis.zadd(keys.LEASES, {name: time.time() + seconds})
        redis.set("rqjobs:sweep:last", time.time())

    return make


def order(queue="default"):
    return rqjobs.queue(queue).job_ids


def test_orphans_go_back_in_order_before_the_rest(redis, claim, lease):
    first, second, waiting = (rqjobs.enqueue(sample_jobs.ok, n) for n in range(3))
    for job in (first, second):
        claim(job, "dead")
    lease("dead", -1)
    result = sweep.sweep(redis)
    assert set(result.requeued) == {first.id, second.id}
    assert order() == [first.id, second.id, waiting.id]
    assert first.get_status() == JobStatus.QUEUED
    assert redis.zcard("rq:wip:default") == 0 and not redis.keys("rq:execution*")
    assert not redis.zcard(keys.LEASES) and not redis.exists("rqjobs:process:dead")
    assert not audit.audit(redis).breaches


def test_a_live_worker_s_job_is_never_touched(redis, claim, lease):
    job = rqjobs.enqueue(sample_jobs.ok)
    claim(job, "alive")
    lease("alive", 5)
    assert sweep.sweep(redis, force=True).requeued == []
    assert recovery.reclaim(redis, "alive", ["default"], recovery.DeathCause.LEASE_EXPIRED) == {}
    assert order() == [] and redis.zcard("rq:wip:default") == 1


def test_a_dead_process_on_this_host_is_found_before_its_lease_expires(redis, claim, lease):
    job = rqjobs.enqueue(sample_jobs.ok)
    claim(job, "crashed")
    lease("crashed", 15, {"host": processes.host_id(), "pid": 2**22 + 1, "started": "12345"})
    assert sweep.sweep(redis, force=True).requeued == [job.id]


def test_a_new_worker_is_not_mistaken_for_the_dead_one_of_its_name(
    redis, claim, lease, monkeypatch
):
    """The new worker starts after the sweep has checked the processes.

    The sweep has not taken the claims back yet.
    """
    job = rqjobs.enqueue(sample_jobs.ok)
    claim(job, "crashed")
    lease("crashed", 15, {"host": processes.host_id(), "pid": 2**22 + 1, "started": "12345"})
    check = liveness.WorkerLiveness.check

    def check_late(owners, names):
        check(owners, names)
        redis.delete("rqjobs:process:crashed")
        lease("crashed", 15, {"host": processes.host_id(), "pid": 2**22 + 2, "started": "12346"})

    monkeypatch.setattr(liveness.WorkerLiveness, "check", check_late)
    assert sweep.sweep(redis, force=True).requeued == []
    assert redis.zscore(keys.LEASES, "crashed") and redis.zcard("rq:wip:default") == 1


def test_a_worker_whose_horse_is_alive_is_not_gone(redis, claim, lease):
    """Between the death of the parent and the death of its horse, two workers ran the job."""
    job = rqjobs.enqueue(sample_jobs.ok)
    claim(job, "headless")
    where = {"host": processes.host_id(), "pid": 2**22 + 1, "started": "12345"}
    for horse, started in ((os.getpid(), processes.start_time(os.getpid())), ("?", "")):
        lease("headless", 15, {**where, "horse": horse, "horse_started": started})
        assert sweep.sweep(redis, force=True).requeued == []
    lease("headless", 15, {**where, "horse": os.getpid(), "horse_started": "1"})
    assert sweep.sweep(redis, force=True).requeued == [job.id], "the pid is somebody else's now"


def test_a_worker_whose_machine_died_is_found_when_its_lease_expires(
    redis, claim, lease, eventually
):
    """A pid of another machine proves nothing before the lease expires.

    The next sweep after that takes the claims back.
    """
    job = rqjobs.enqueue(sample_jobs.ok)
    claim(job, "vanished")
    lease("vanished", 15, {"host": "another boot/pid:[1]", "pid": 2**22 + 1, "started": "1"})
    assert sweep.sweep(redis, force=True).requeued == [], "its lease had not ended"
    end = time.time() + 0.1
    redis.zadd(keys.LEASES, {"vanished": end})
    eventually(
        lambda: (
            leases.begin_sweep(redis, force=True) is leases.SweepPermission.SWEEP
            and float("{}.{:06}".format(*redis.time())) > end
        )
    )
    assert sweep.sweep(redis, force=True).requeued == [job.id] and order() == [job.id]
    assert leases.LEASE_SECONDS + leases.HEARTBEAT_SECONDS <= 25, (
        "the promise of the README, in seconds"
    )


def test_a_reused_pid_is_another_process(redis, claim, lease):
    job = rqjobs.enqueue(sample_jobs.ok)
    claim(job, "crashed")
    lease("crashed", 15, {"host": processes.host_id(), "pid": os.getpid(), "started": "1"})
    assert sweep.sweep(redis, force=True).requeued == [job.id]
    lease(
        "running",
        15,
        {
            "host": processes.host_id(),
            "pid": os.getpid(),
            "started": processes.start_time(os.getpid()),
        },
    )
    claim(job, "running")
    assert sweep.sweep(redis, force=True).requeued == []


def test_after_an_outage_no_lease_counts_as_expired(redis, claim, lease):
    """Redis was unreachable, or its clock jumped.

    The first sweep after a long pause only extends leases.
    """
    job = rqjobs.enqueue(sample_jobs.ok)
    claim(job, "alive")
    lease("alive", -30)
    redis.set("rqjobs:sweep:last", time.time() - 60)
    assert sweep.sweep(redis).requeued == []
    assert redis.zscore(keys.LEASES, "alive") > time.time() + 15
    redis.zadd(keys.LEASES, {"alive": time.time() + 1000})
    assert sweep.sweep(redis, force=True).requeued == []
    assert redis.zscore(keys.LEASES, "alive") < time.time() + leases.LEASE_SECONDS + 1, (
        "a lease from the future is cut"
    )


def test_a_job_fails_at_its_third_crash_within_the_window(redis, claim, lease):
    poison, healthy = rqjobs.enqueue(sample_jobs.ok, 1), rqjobs.enqueue(sample_jobs.ok, 2)
    child = rqjobs.queue("low").enqueue(
        sample_jobs.ok, depends_on=rqjobs.queue("low").enqueue(sample_jobs.ok)
    )
    for _ in range(2):
        claim(poison, "dead")
        lease("dead", -1)
        assert sweep.sweep(redis, force=True).requeued == [poison.id]
    claim(poison, "dead")
    lease("dead", -1)
    assert sweep.sweep(redis, force=True).failed == [poison.id]
    assert poison.get_status() == JobStatus.FAILED and order() == [healthy.id]
    assert "process died 3 times within 72 hours" in poison.latest_result().exc_string
    assert redis.zscore("rq:failed:default", poison.id) > time.time() + 300 * 24 * 3600
    assert not audit.audit(redis).breaches
    poison.requeue()
    assert order() == [healthy.id, poison.id]
    assert child.get_status() == JobStatus.DEFERRED


def test_old_crashes_and_those_of_unstarted_jobs_do_not_count(redis, claim, lease):
    job = rqjobs.enqueue(sample_jobs.ok, retry=rqjobs.Retry(max=4))
    redis.hset(
        job.key, "rqjobs_crashes", f"{int(time.time()) - 73 * 3600},{int(time.time()) - 80 * 3600}"
    )
    for _ in range(5):
        claim(job, "dead", begun=False)
        lease("dead", -1)
        assert sweep.sweep(redis, force=True).requeued == [job.id]
    claim(job, "dead")
    lease("dead", -1)
    assert sweep.sweep(redis, force=True).requeued == [job.id]
    assert len(redis.hget(job.key, "rqjobs_crashes").split(b",")) == 1
    job.refresh()
    assert job.retries_left == 4, "the user's retries are his own"


def test_dependents_that_allow_failure_are_enqueued_after_a_poison_job(redis, claim, lease):
    poison = rqjobs.enqueue(sample_jobs.ok)
    child = rqjobs.enqueue(sample_jobs.ok, depends_on=Dependency(jobs=[poison], allow_failure=True))
    redis.hset(poison.key, "rqjobs_crashes", f"{int(time.time())},{int(time.time())}")
    claim(poison, "dead")
    lease("dead", -1)
    sweep.sweep(redis, force=True)
    assert order() == [child.id]


def test_poison_dependents_are_enqueued_when_the_sweeping_worker_dies(redis, claim, lease):
    """The sweep fails the job and enqueues its dependents in two steps.

    A crash between the steps left the dependents deferred forever.
    """
    poison, strict = rqjobs.enqueue(sample_jobs.ok), rqjobs.enqueue(sample_jobs.ok)
    after = Dependency(jobs=[poison], allow_failure=True)
    child = rqjobs.enqueue(sample_jobs.ok, depends_on=after, job_timeout=7)
    first = rqjobs.queue("low").enqueue(
        sample_jobs.ok,
        depends_on=Dependency(jobs=[poison], allow_failure=True, enqueue_at_front=True),
    )
    both = rqjobs.enqueue(
        sample_jobs.ok, depends_on=Dependency(jobs=[poison, strict], allow_failure=True)
    )
    never = rqjobs.enqueue(sample_jobs.ok, depends_on=poison)
    redis.rpush("rq:queue:low", "other")
    redis.hset(poison.key, "rqjobs_crashes", f"{int(time.time())},{int(time.time())}")
    claim(poison, "dead")
    lease("dead", -1)
    assert recovery.reclaim(redis, "dead", ["default"], recovery.DeathCause.LEASE_EXPIRED) == {
        poison.id: "failed"
    }
    assert child.get_status() == JobStatus.DEFERRED and redis.smembers(keys.ENDED_PARENTS) == {
        poison.id.encode()
    }
    redis.hset("rq:job:gone", "status", "failed")
    redis.set("rq:job:odd:dependents", "no set")
    redis.sadd(keys.ENDED_PARENTS, "gone", "odd")
    threads = [threading.Thread(target=sweep.sweep, args=(redis, True)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order() == [strict.id, child.id] and order("low") == [first.id, "other"]
    assert child.get_status() == JobStatus.QUEUED and redis.hget(child.key, "timeout") == b"7"
    assert both.get_status() == never.get_status() == JobStatus.DEFERRED
    assert not redis.exists(keys.ENDED_PARENTS)
    redis.lrem("rq:queue:low", 0, "other")
    assert not audit.audit(redis, settle=0).breaches


def test_dependents_are_enqueued_once(redis, claim, lease):
    """RQ's way would have enqueued a dependent that another parent had released in between."""
    poison, slow = rqjobs.enqueue(sample_jobs.ok), rqjobs.enqueue(sample_jobs.ok)
    child = rqjobs.enqueue(
        sample_jobs.ok, depends_on=Dependency(jobs=[poison, slow], allow_failure=True)
    )
    redis.hset(poison.key, "status", "failed")
    redis.hset(slow.key, "status", "finished")
    redis.delete("rq:queue:default")
    assert recovery.enqueue_dependents(redis, poison.id, 180) == [child.id]
    redis.sadd(f"rq:job:{poison.id}:dependents", child.id)
    assert recovery.enqueue_dependents(redis, poison.id, 180) == [] and order() == [child.id]
    leases.renew_lease(redis, "one", {"host": ""})
    helpers.claim(redis, "one", ["default"])
    assert recovery.enqueue_dependents(redis, poison.id, 180) == [] and order() == []
    redis.hset(poison.key, "status", "queued")
    redis.hset(child.key, "status", "deferred")
    assert recovery.enqueue_dependents(redis, poison.id, 180) == [], (
        "it was requeued, and wakes them when it ends"
    )


def test_ten_sweeps_at_once_put_each_orphan_back_once(redis, claim, lease):
    jobs = [rqjobs.enqueue(sample_jobs.ok, n) for n in range(100)]
    for job in jobs:
        claim(job, "dead")
    lease("dead", -1)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(sweep.sweep(redis, force=True)))
        for _ in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(job_id for result in results for job_id in result.requeued) == sorted(
        job.id for job in jobs
    )
    assert sorted(order()) == sorted(job.id for job in jobs)


def test_a_second_sweep_within_a_heartbeat_is_skipped_unless_forced(redis):
    assert sweep.sweep(redis) is not None
    assert sweep.sweep(redis) is None
    assert sweep.sweep(redis, force=True) is not None


@pytest.mark.parametrize("status", ["finished", "failed", "canceled", "stopped"])
def test_an_orphan_that_has_ended_is_only_removed_from_the_registry(redis, claim, lease, status):
    job = rqjobs.enqueue(sample_jobs.ok)
    claim(job, "dead")
    redis.hset(job.key, "status", status)
    lease("dead", -1)
    assert sweep.sweep(redis, force=True).requeued == []
    assert order() == [] and redis.zcard("rq:wip:default") == 0 and job.get_status() == status


def test_a_requeued_orphan_of_a_stock_worker_is_not_doubled(redis, stock_claim):
    """RQ's retry with an interval writes the scheduled set first.

    A crash in between leaves the job in both places.
    """
    job, second = rqjobs.enqueue_in(60, sample_jobs.ok), rqjobs.enqueue(sample_jobs.ok)
    stock_claim(job, "dead", status="scheduled")
    stock_claim(second, "dead", status="queued")
    redis.rpush("rq:queue:default", second.id)
    assert sweep.sweep(redis, force=True).requeued == []
    assert (
        order() == [second.id]
        and redis.zcard("rq:scheduled:default") == 1
        and not redis.zcard("rq:wip:default")
    )


def test_rq_s_own_clean_up_does_not_fail_our_orphans(redis, claim):
    job = rqjobs.enqueue(sample_jobs.ok)
    claim(job, "dead")
    assert (
        StartedJobRegistry(
            "default", connection=redis, job_class=StockJob, serializer=job.serializer
        ).count
        == 1
    )
    assert job.get_status() == JobStatus.STARTED
    assert isinstance(job.started_job_registry, OurStartedJobRegistry)


def test_orphans_of_stock_workers_go_back_when_rq_s_key_has_expired(redis, stock_claim):
    jobs = [rqjobs.enqueue(sample_jobs.ok, n) for n in range(3)]
    for job in jobs[1::-1]:
        stock_claim(job, "stock", score=1)
    redis.hset("rq:worker:stock", "state", "busy")
    assert sweep.sweep(redis, force=True).requeued == []
    redis.delete("rq:worker:stock")
    assert len(sweep.sweep(redis, force=True).requeued) == 2
    assert order() == [job.id for job in jobs]
    for _ in range(2):
        stock_claim(jobs[0], "stock")
        sweep.sweep(redis, force=True)
    assert jobs[0].get_status() == JobStatus.FAILED
    assert not audit.audit(redis, settle=0).breaches


def test_a_job_delivered_to_a_retired_worker_is_found(redis):
    job = rqjobs.enqueue(sample_jobs.ok)
    leases.end_lease(redis, "nobody")
    redis.lmove("rq:queue:default", "rqjobs:claims:nobody", "LEFT", "RIGHT")
    assert sweep.sweep(redis, force=True).requeued == [job.id]
    assert order() == [job.id]


def test_intermediate_ids_return_at_once_without_a_live_listener(redis):
    job = rqjobs.enqueue(sample_jobs.ok)
    redis.lmove("rq:queue:default", "rq:queue:default:intermediate", "LEFT", "RIGHT")
    assert sweep.sweep(redis, force=True).requeued == [job.id]
    assert order() == [job.id] and not redis.exists("rq:queue:default:intermediate")


def test_intermediate_ids_wait_a_minute_with_a_live_listener(redis):
    job = rqjobs.enqueue(sample_jobs.ok)
    redis.sadd("rq:workers:default", "rq:worker:stock")
    redis.hset("rq:worker:stock", "state", "idle")
    redis.lmove("rq:queue:default", "rq:queue:default:intermediate", "LEFT", "RIGHT")
    assert sweep.sweep(redis, force=True).requeued == []
    redis.hset("rqjobs:sweep:intermediate:default", job.id, time.time() - 61)
    assert sweep.sweep(redis, force=True).requeued == [job.id]


def test_an_id_that_left_the_intermediate_list_is_new_when_it_comes_back(redis):
    job = rqjobs.enqueue(sample_jobs.ok)
    redis.sadd("rq:workers:default", "rq:worker:stock")
    redis.hset("rq:worker:stock", "state", "idle")
    redis.hset("rqjobs:sweep:intermediate:default", job.id, time.time() - 61)
    sweep.sweep(redis, force=True)
    redis.lmove("rq:queue:default", "rq:queue:default:intermediate", "LEFT", "RIGHT")
    assert sweep.sweep(redis, force=True).requeued == []


def stray(redis, job, idle):
    redis.lrem(f"rq:queue:{job.origin}", 0, job.id)
    redis.zrem(f"rq:scheduled:{job.origin}", job.id)
    then = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(time.time() - idle))
    redis.hset(job.key, mapping={"enqueued_at": then, "created_at": then})


def look_again(redis):
    """Make it as if half a minute had passed since strays were first seen."""
    for job_id, since in redis.hgetall("rqjobs:sweep:strays:seen").items():
        redis.hset("rqjobs:sweep:strays:seen", job_id, float(since) - strays.STRAY_SECONDS)


@pytest.mark.parametrize("status", ["queued", "started", "scheduled"])
def test_a_stray_is_requeued_when_it_is_seen_twice(redis, status):
    job = rqjobs.enqueue(sample_jobs.ok, job_timeout=10)
    stray(redis, job, idle=60)
    redis.hset(job.key, "status", status)
    assert audit.audit(redis, settle=0).breaches == {
        job.id: f"{status}, but in no place (a stray; the sweep puts it back)"
    }
    assert sweep.sweep(redis, force=True).requeued == []
    look_again(redis)
    assert sweep.sweep(redis, force=True).requeued == [job.id]
    assert order() == [job.id] and job.get_status() == JobStatus.QUEUED
    assert not audit.audit(redis, settle=0).breaches


@pytest.mark.parametrize("place", ["finished", "failed", "canceled"])
def test_an_ended_job_whose_status_was_overwritten_is_not_a_stray(redis, place):
    """A web view wrote the meta of a job with a plain RQ client.

    The finished job ran again 65 s later.
    """
    job = rqjobs.enqueue(sample_jobs.ok, job_timeout=1)
    stray(redis, job, idle=3600)
    redis.zadd(f"rq:{place}:default", {job.id: 9e9})
    redis.xadd(f"rq:results:{job.id}", {"type": 1, "execution_ended_at": time.time() - 3000})
    assert not audit.audit(redis, settle=0).breaches
    for _ in range(2):
        assert sweep.sweep(redis, force=True).requeued == []
        look_again(redis)
    assert order() == [] and job.get_status() == place, "its status is put right"


def test_a_repeating_job_that_was_lost_after_its_first_run_is_a_stray(redis):
    job = rqjobs.enqueue(sample_jobs.ok, job_timeout=1, repeat=rqjobs.Repeat(times=2))
    stray(redis, job, idle=3600)
    redis.zadd("rq:finished:default", {job.id: 9e9})
    redis.xadd(f"rq:results:{job.id}", {"type": 1, "execution_ended_at": time.time() - 3700})
    assert audit.audit(redis, settle=0).breaches
    sweep.sweep(redis, force=True)
    look_again(redis)
    assert sweep.sweep(redis, force=True).requeued == [job.id]


@pytest.mark.parametrize("place", ["queued", "intermediate", "scheduled", "deferred"])
def test_audit_names_an_id_in_a_place_and_in_claims(redis, place):
    """Audit named such an id only if RQ's registry of started jobs had it too."""
    job = rqjobs.enqueue(sample_jobs.ok)
    redis.delete("rq:queue:default")
    leases.renew_lease(redis, "w", {"host": "elsewhere", "pid": 1, "started": "1"})
    redis.rpush("rqjobs:claims:w", job.id)
    assert not audit.audit(redis, settle=0).breaches
    if place in ("queued", "intermediate"):
        redis.rpush(
            "rq:queue:default" + (":intermediate" if place == "intermediate" else ""), job.id
        )
    else:
        redis.zadd(f"rq:{place}:default", {job.id: 9e9})
    assert audit.audit(redis, settle=0).breaches == {
        job.id: f"in more than one place: {place}, claimed"
    }


def test_audit_names_an_id_on_two_queues(redis):
    for pushed, place in (
        ("queue:low", "queued in low"),
        ("scheduled:low", "scheduled in low"),
        ("deferred:low", "deferred in low"),
    ):
        redis.flushdb()
        job = rqjobs.enqueue(sample_jobs.ok)
        rqjobs.queue("low").enqueue(sample_jobs.ok)
        if pushed == "queue:low":
            redis.rpush("rq:queue:low", job.id)
        else:
            redis.zadd(f"rq:{pushed}", {job.id: 9e9})
        assert audit.audit(redis, settle=0).breaches == {
            job.id: f"in more than one place: queued, {place}"
        }


@pytest.mark.parametrize(
    ("state", "may_fail", "named"),
    [
        ("failed", False, "failed"),
        ("failed", True, "over"),
        ("stopped", True, "stopped"),
        ("canceled", False, "canceled"),
        ("gone", False, "gone"),
        ("queued", False, ""),
    ],
)
def test_audit_names_deferred_jobs_that_cannot_run(redis, state, may_fail, named):
    parent, other = (
        rqjobs.enqueue(sample_jobs.ok, job_id="parent"),
        rqjobs.enqueue(sample_jobs.ok, job_id="other"),
    )
    rqjobs.enqueue(
        sample_jobs.ok, depends_on=Dependency(jobs=[parent], allow_failure=may_fail), job_id="child"
    )
    both = rqjobs.enqueue(sample_jobs.ok, depends_on=[parent, other], job_id="both")
    if state == "gone":
        parent.delete()
    elif state != "queued":
        redis.hset(parent.key, "status", state)
    found = list(audit.blocked_jobs(redis, ["child"]))
    assert found == ([("child", "parent", named)] if named else []) and (
        not named or audit.REMEDIES[named]
    )
    if state == "gone":  # the deleted parent counts as finished when the other has ended
        assert list(audit.blocked_jobs(redis, ["both"])) == []
        redis.hset(other.key, "status", "finished")
        redis.sadd(keys.ENDED_PARENTS, other.id)
        sweep.enqueue_waiting_dependents(redis)
        assert both.get_status() == JobStatus.QUEUED


def test_audit_names_a_job_that_stock_rq_deferred_behind_an_ended_one(redis):
    """RQ looks only at the parent's status.

    With `allow_failure` RQ defers the job forever, and audit did not report it.
    """
    parent = rqjobs.enqueue(sample_jobs.ok, job_id="parent")
    redis.lrem("rq:queue:default", 0, "parent")
    redis.hset(parent.key, "status", "failed")
    rq.Queue("default", connection=redis, serializer=JSONSerializer).enqueue(
        "sample_jobs.ok", job_id="child", depends_on=Dependency(jobs=[parent], allow_failure=True)
    )
    assert redis.zscore("rq:deferred:default", "child")
    assert audit.audit(redis, settle=0).remarks == [
        "deferred: child waits for parent, which is over"
    ]
    redis.sadd(keys.ENDED_PARENTS, "parent:failed")  # the sweep is about to enqueue the dependents
    assert not audit.audit(redis, settle=0).remarks
    assert "queue.enqueue_job(job)" in audit.REMEDIES["over"]
    queue = rqjobs.queue("default")
    queue.enqueue_job(queue.fetch_job("child"))
    assert redis.lrange("rq:queue:default", 0, -1) == [b"child"] and not redis.zcard(
        "rq:deferred:default"
    )


def test_a_job_that_only_looks_like_a_stray_is_left_alone(redis):
    """Jobs that a plain RQ client is writing or running, ended jobs, deferred jobs, and other keys."""
    fresh = rqjobs.enqueue(sample_jobs.ok, job_timeout=600)
    stray(redis, fresh, idle=300)
    endless = rqjobs.enqueue(sample_jobs.ok, job_timeout=-1)
    stray(redis, endless, idle=3600)
    for status in ("finished", "failed", "canceled", "stopped", "created", "deferred"):
        job = rqjobs.enqueue(sample_jobs.ok, job_id=status, job_timeout=1)
        stray(redis, job, idle=3600)
        redis.hset(job.key, "status", status)
    redis.sadd("rq:job:parent:dependents", "x")
    redis.set("rq:job:strange", "a string where a hash should be")
    redis.hset("rq:job:half", "last_heartbeat", "x")
    for _ in range(3):
        assert sweep.sweep(redis, force=True).requeued == []
        look_again(redis)
    assert order() == []


def test_a_stray_that_has_returned_is_not_doubled(redis):
    job = rqjobs.enqueue(sample_jobs.ok, job_timeout=1)
    stray(redis, job, idle=60)
    sweep.sweep(redis, force=True)
    redis.rpush("rq:queue:default", job.id)
    look_again(redis)
    assert recovery.recover(redis, job.id, "default", "stray") == "moved"
    assert order() == [job.id]


def test_the_search_for_strays_continues_where_it_ended(redis, monkeypatch):
    monkeypatch.setattr(strays, "STRAY_SCAN_KEYS", 1000)
    monkeypatch.setattr(strays, "SCAN_BATCH_KEYS", 10)
    jobs = rqjobs.enqueue_many([(sample_jobs.ok, n) for n in range(500)])
    for job in jobs[::50]:
        stray(redis, job, idle=3600)
    found = set()
    for _ in range(12):
        found |= set(sweep.sweep(redis, force=True).requeued)
        look_again(redis)
    assert found == {job.id for job in jobs[::50]}


def test_a_stray_is_seen_again_in_the_next_part_of_the_search(redis, monkeypatch):
    """Among millions of keys the search came back after its first sighting had ended."""
    monkeypatch.setattr(strays, "STRAY_SCAN_KEYS", 10)
    monkeypatch.setattr(strays, "SCAN_BATCH_KEYS", 10)
    jobs = rqjobs.enqueue_many([(sample_jobs.ok, n) for n in range(500)])
    lost, back, gone = jobs[:3]
    for job in (lost, back, gone):
        stray(redis, job, idle=3600)
    while redis.hlen(keys.STRAYS_SEEN) < 3:
        assert sweep.sweep(redis, force=True).requeued == []
    redis.rpush("rq:queue:default", back.id)
    redis.delete(gone.key)
    look_again(redis)
    assert sweep.sweep(redis, force=True).requeued == [lost.id]
    assert not redis.exists(keys.STRAYS_SEEN), "the others are no strays any more"


def test_audit_names_a_job_in_two_places_and_one_that_is_listed_twice(redis, claim):
    twice, both, fine = (rqjobs.enqueue(sample_jobs.ok, n) for n in range(3))
    redis.rpush("rq:queue:default", twice.id)
    redis.zadd("rq:scheduled:default", {both.id: 9e9})
    found = audit.audit(redis, settle=0)
    assert found.breaches == {
        twice.id: "in more than one place: queued, queued",
        both.id: "in more than one place: queued, scheduled",
    }
    assert found.places["default"]["queued"] == 4 and fine.id not in found.breaches


def test_audit_lists_orphans_and_jobs_deferred_behind_a_failed_job(redis, claim, lease):
    parent = rqjobs.enqueue(sample_jobs.ok)
    child = rqjobs.enqueue(sample_jobs.ok, depends_on=parent)
    redis.lrem("rq:queue:default", 0, parent.id)
    redis.hset(parent.key, "status", "failed")
    redis.zadd("rq:failed:default", {parent.id: 9e9})
    held = rqjobs.enqueue(sample_jobs.ok)
    claim(held, "dead")
    lease("dead", -1)
    found = audit.audit(redis, settle=0)
    assert not found.breaches
    assert found.remarks == [
        f"orphan: {held.id} of the dead worker dead (rqjobs recover puts it back)",
        f"deferred: {child.id} waits for {parent.id}, which is failed",
    ]


def test_requeue_of_a_job_that_did_not_fail_is_refused(redis):
    with pytest.raises(InvalidJobOperation):
        rqjobs.enqueue(sample_jobs.ok).requeue()


def test_a_redis_whose_memory_is_full_refuses_a_move_as_a_whole(redis, claim, lease):
    """A full Redis still accepts LREM and ZREM.

    A move that began with one of them would have lost the job.
    """
    orphan, failed, due = (
        rqjobs.enqueue(sample_jobs.ok),
        rqjobs.enqueue(sample_jobs.ok),
        rqjobs.enqueue_in(60, sample_jobs.ok),
    )
    claim(orphan, "dead")
    lease("dead", -1)
    redis.lrem("rq:queue:default", 0, failed.id)
    redis.hset(failed.key, "status", "failed")
    redis.zadd("rq:failed:default", {failed.id: 9e9})
    redis.zadd("rq:scheduled:default", {due.id: 1})
    redis.config_set("maxmemory", 1)
    try:
        for move in (
            lambda: sweep.sweep(redis, force=True),
            failed.requeue,
            lambda: transitions.promote(redis, "default", 180),
        ):
            with pytest.raises(ResponseError, match=r"OOM|maxmemory"):
                move()
    finally:
        redis.config_set("maxmemory", 0)
    assert (
        redis.zcard("rq:wip:default")
        == redis.zcard("rq:failed:default")
        == redis.zcard("rq:scheduled:default")
        == 1
    )
    assert sweep.sweep(redis, force=True).requeued == [orphan.id]
    failed.requeue()
    assert transitions.promote(redis, "default", 180) == 1
    assert not audit.audit(redis).breaches


def test_hostile_hashes_delay_neither_the_queue_nor_the_scheduler(redis, lease):
    """A time to live that was not a number stopped a queue forever.

    A due job with such a value was enqueued again and again.
    """
    good = [rqjobs.enqueue_in(60, sample_jobs.ok, n) for n in range(3)]
    for ttl, job in zip(("1e300", "nan", "-5"), good, strict=True):
        redis.hset(job.key, "ttl", ttl)
    redis.set("rq:job:text", "no hash")
    for number, member in enumerate([good[0].id, "text", good[1].id, good[2].id]):
        redis.zadd("rq:scheduled:default", {member: 1 + number})
    assert transitions.promote(redis, "default", 180) == 3
    assert order() == [job.id for job in good] and not redis.exists("rq:scheduled:default")
    redis.delete("rq:queue:default")
    lease("one", 20)
    for number, ttl in enumerate(("nan", "1.5", "1e300", "inf", "x")):
        redis.hset(
            f"rq:job:bad-{number}",
            mapping={"origin": "default", "status": "queued", "failure_ttl": ttl},
        )
        redis.rpush("rq:queue:default", f"bad-{number}")
    redis.rpush("rq:queue:default", good[0].id)
    (claim,) = helpers.claim(redis, "one", ["default"])
    assert claim.job_id == good[0].id
    assert redis.zcard("rq:failed:default") == 6


def test_audit_names_an_ended_job_that_is_in_a_place(redis):
    job = rqjobs.enqueue_in(60, sample_jobs.ok)
    redis.hset(job.key, "status", "finished")
    assert audit.audit(redis, settle=0).breaches == {job.id: "finished, yet in: scheduled"}


def test_a_process_is_gone_only_if_that_is_proven(monkeypatch):
    """The kernel may hide a process (hidepid), which then refuses a signal.

    A process that does not exist cannot refuse it.
    """
    me = os.getpid()
    assert not processes.is_gone(me, processes.start_time(me))
    assert processes.is_gone(me, "1"), "the pid is somebody else's now"
    assert processes.is_gone(2**22 + 1, "1")
    monkeypatch.setattr(processes, "start_time", lambda pid: "")
    assert not processes.is_gone(me, "1")

    def refuse(pid, signal):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not processes.is_gone(2**22 + 1, "1")
