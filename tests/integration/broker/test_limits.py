"""Limits and rates, with real scripts: slots follow claims, and jobs that wait are woken in order."""

from __future__ import annotations

import random
import time

import helpers
import pytest
import sample_jobs
from helpers import QUEUES
from rq.job import JobStatus

import rqjobs
from rqjobs.broker import keys, leases, pauses, recovery, scripts, transitions
from rqjobs.broker.keys import decode
from rqjobs.maintenance import audit, sweep, waiting

TWO = "sample_jobs.two_at_a_time"


@pytest.fixture
def broker(redis):
    return helpers.Broker(redis)


def enqueue(function, *args, number=1, **options):
    return [rqjobs.enqueue(function, *args, **options).id for _ in range(number)]


def test_jobs_over_their_limit_wait_in_order_and_each_free_slot_wakes_one(broker):
    ids = enqueue(sample_jobs.two_at_a_time, number=5)
    assert broker.claim("a", 10) == ids[:2]
    assert broker.claim("b", 10) == [] and broker.waiting(TWO) == ids[2:]
    assert rqjobs.Job.fetch(ids[2], connection=broker.redis).get_status() == JobStatus.DEFERRED
    assert broker.settle(ids[0]) == "settled"
    assert broker.waiting(TWO) == ids[3:]
    assert broker.claim("b", 10) == [ids[2]]
    assert broker.claim("c", 10) == []
    broker.settle(ids[2], "b")
    broker.settle(ids[1])
    assert broker.claim("c", 10) == ids[3:]
    broker.settle(ids[3], "c")
    broker.settle(ids[4], "c")
    assert not broker.redis.keys("rqjobs:slots*") and not broker.redis.keys("rqjobs:waiting*")
    assert not audit.audit(broker.redis, 0).breaches


def test_a_job_that_comes_later_does_not_overtake_the_waiting_ones(broker):
    ids = enqueue(sample_jobs.two_at_a_time, number=4)
    broker.claim("a", 10)
    late = rqjobs.queue("low").enqueue(sample_jobs.two_at_a_time).id
    assert broker.claim("b") == [] and broker.waiting(TWO) == [*ids[2:], late]
    broker.settle(ids[0])
    (later,) = enqueue(sample_jobs.two_at_a_time)
    assert broker.claim("b", 10) == [ids[2]]
    assert broker.waiting(TWO) == [ids[3], later, late]


def test_the_order_of_the_queues_counts_among_the_waiting_jobs(broker):
    ids = enqueue(sample_jobs.two_at_a_time, number=2)
    broker.claim("a", 10)
    waiting = {}
    for name in ("low", "high", "default", "low", "high", "default"):
        job = rqjobs.queue(name).enqueue(sample_jobs.two_at_a_time)
        waiting.setdefault(name, []).append(job.id)
        assert broker.claim("b") == []
    in_order = waiting["high"] + waiting["default"] + waiting["low"]
    assert broker.waiting(TWO) == in_order
    only_low = rqjobs.queue("low").enqueue(sample_jobs.two_at_a_time).id
    assert broker.claim("c", 10, ["low"]) == [] and broker.waiting(TWO)[-1] == only_low
    broker.settle(ids[0])
    broker.settle(ids[1])
    assert broker.claim("b", 10) == in_order[:2]
    assert not audit.audit(broker.redis, 0).breaches


def test_a_woken_job_in_a_lower_queue_holds_up_no_job_of_a_higher_one(broker):
    """The lower queue may not be reached for long, and the slot would be idle."""
    ids = enqueue(sample_jobs.two_at_a_time, number=2)
    broker.claim("a", 10)
    low = [rqjobs.queue("low").enqueue(sample_jobs.two_at_a_time).id for _ in range(4)]
    assert broker.claim("b", 10) == []
    broker.settle(ids[0])  # wakes the first of them
    assert broker.waiting(TWO) == low[1:]
    high = rqjobs.queue("high").enqueue(sample_jobs.two_at_a_time).id
    assert broker.claim("b") == [high]
    assert broker.claim("c") == [] and broker.waiting(TWO) == low  # it is the first again
    for job_id, worker in ((ids[1], "a"), (high, "b")):
        broker.settle(job_id, worker)
    assert broker.claim("c", 10) == low[:2]
    assert not audit.audit(broker.redis, 0).breaches


def test_workers_that_take_their_queues_in_turns_keep_the_order_of_arrival(broker):
    enqueue(sample_jobs.two_at_a_time, number=2)
    broker.claim("a", 10)
    ids = []
    for name in ("low", "high", "default"):
        ids.append(rqjobs.queue(name).enqueue(sample_jobs.two_at_a_time).id)
        leases.renew_lease(broker.redis, "b", {"host": "elsewhere", "pid": 1, "in_turns": 1})
        helpers.claim(broker.redis, "b", QUEUES, 1)
    assert broker.waiting(TWO) == ids


@pytest.mark.parametrize("way", ["enqueue", "enqueue_many", "delayed", "schedule", "requeue"])
def test_a_job_at_the_front_is_at_the_front_of_its_line_too(broker, way):
    ids = enqueue(sample_jobs.two_at_a_time, number=5)
    (last,) = enqueue(sample_jobs.two_at_a_time)
    queue = rqjobs.queue("default")
    if way == "requeue":
        broker.claim("a", 1)
        broker.settle(ids[0], status="failed")
    broker.claim("a", 10)
    broker.claim("b", 10)
    assert last in broker.waiting(TWO)
    if way == "enqueue":
        first = queue.enqueue(sample_jobs.two_at_a_time, at_front=True).id
    elif way == "enqueue_many":
        call = queue.prepare_data(sample_jobs.two_at_a_time, at_front=True)
        (first,) = [job.id for job in rqjobs.enqueue_many([call])]
    elif way == "delayed":
        first = rqjobs.enqueue_in(60, sample_jobs.two_at_a_time, at_front=True).id
        rqjobs.delayed.reschedule(first, 0)
        transitions.promote(broker.redis, "default", 60)
    elif way == "schedule":
        rule = rqjobs.every(hours=1)
        rqjobs.schedules.add("often", rule, sample_jobs.two_at_a_time, at_front=True)
        first = rqjobs.schedules.run_now("often").id
    else:
        first = ids[0]
        transitions.requeue(broker.redis, first, at_front=True)
    assert broker.claim("b", 10) == [] and broker.waiting(TWO)[0] == first
    held = list(broker.claims["a"])
    broker.settle(held[0])
    assert broker.claim("b", 10) == [first]


def test_a_waiting_job_whose_ttl_has_passed_leaves_nothing_behind(broker):
    enqueue(sample_jobs.two_at_a_time, number=2)
    broker.claim("a", 10)
    ids = enqueue(sample_jobs.two_at_a_time, number=3)
    assert broker.claim("b", 10) == []
    rqjobs.enqueue(sample_jobs.two_at_a_time, depends_on=ids[2], job_id="child")
    for gone in (ids[1], "child"):
        broker.redis.delete(keys.job(gone))  # as the expiry does
    waiting.check(broker.redis, QUEUES)
    assert broker.redis.zcard(keys.deferred("default")) == 4  # a program may still write the job
    broker.redis.zadd(keys.deferred("default"), {ids[1]: 1, "child": 1})
    waiting.check(broker.redis, QUEUES)
    assert broker.waiting(TWO) == [ids[0], ids[2]]
    assert set(broker.redis.zrange(keys.deferred("default"), 0, -1)) == {
        job_id.encode() for job_id in (ids[0], ids[2])
    }


@pytest.mark.parametrize("change", ["delete", "rename", "one", "names", "wrong type"])
def test_jobs_that_are_missing_in_their_line_are_named_and_put_back(broker, change):
    held = enqueue(sample_jobs.two_at_a_time, number=2)
    broker.claim("a", 10)
    ids = sorted(enqueue(sample_jobs.two_at_a_time, number=3))
    assert broker.claim("b", 10) == []
    line = keys.waiting(TWO)
    if change == "delete":
        broker.redis.delete(line)
    elif change == "rename":
        broker.redis.rename(line, "elsewhere")
    elif change == "one":
        broker.redis.lrem(line, 0, ids[0])
    elif change == "names":
        broker.redis.delete(line, keys.WAITING_KEYS)
    else:
        broker.redis.set(line, "foreign")
    broker.redis.zadd(keys.deferred("default"), dict.fromkeys(ids, 1))  # equally old
    named = {remark.split(" ")[1] for remark in audit.audit(broker.redis, 0).remarks}
    assert named == {ids[0]} if change == "one" else set(ids)
    waiting.check(broker.redis, QUEUES)
    assert sorted(broker.waiting(TWO)) == ids and broker.redis.smembers(keys.WAITING_KEYS)
    assert not audit.audit(broker.redis, 0).remarks
    for job_id in held:
        broker.settle(job_id)
    assert len(broker.claim("b", 10)) == 2


def test_a_job_that_waits_for_a_pause_is_put_back_into_its_line_too(broker):
    rqjobs.pause(function=sample_jobs.ok)
    ids = enqueue(sample_jobs.ok, number=2)
    leases.renew_lease(broker.redis, "a", {"host": "elsewhere", "pid": 1, "started": "1"})
    for claim in helpers.claim(broker.redis, "a", QUEUES, 10):
        command = pauses.park_command("a", claim, "sample_jobs.ok")
        scripts.read_together(broker.redis, [command], scripts.PARK_PAUSED)
    broker.redis.delete(keys.paused_jobs("sample_jobs.ok"), keys.PAUSED_JOBS)
    assert len(audit.audit(broker.redis, 0).remarks) == 2
    waiting.check(broker.redis, QUEUES)
    rqjobs.resume(function=sample_jobs.ok)
    assert sorted(broker.claim("a", 10)) == sorted(ids)


def test_a_waiting_job_in_no_place_is_a_stray_and_runs(broker):
    enqueue(sample_jobs.two_at_a_time, number=2)
    broker.claim("a", 10)
    (lost,) = enqueue(sample_jobs.two_at_a_time)
    broker.claim("b")
    broker.redis.zrem(keys.deferred("default"), lost)
    assert list(audit.audit(broker.redis, 0).breaches) == [lost]
    broker.redis.hset(keys.job(lost), mapping={"enqueued_at": "", "created_at": ""})
    broker.redis.hset(keys.STRAYS_SEEN, lost, time.time() - 60)
    sweep.sweep(broker.redis, force=True)
    assert not audit.audit(broker.redis, 0).breaches
    for job_id in list(broker.claims["a"]):
        broker.settle(job_id)
    assert broker.claim("b") == [lost]


@pytest.mark.parametrize("way", ["dies", "releases", "fails", "retries", "crashes", "is canceled"])
def test_the_slot_of_a_claim_is_free_however_the_claim_ends(broker, way):
    ids = enqueue(sample_jobs.two_at_a_time, number=4)
    broker.claim("a", 10)
    if way == "dies":
        broker.die("a")
    elif way == "releases":
        transitions.release_all(broker.redis, "a")
        broker.claims["a"] = {}
    elif way == "crashes":
        cause = recovery.DeathCause.HORSE_DIED
        recovery.reclaim(broker.redis, "a", QUEUES, cause, running=ids[0], delay=60)
        broker.claims["a"] = {}
    elif way == "is canceled":
        rqjobs.Job.fetch(ids[0], connection=broker.redis).cancel()
        assert broker.settle(ids[0]) == "canceled"
    else:
        broker.settle(ids[0], status={"fails": "failed", "retries": "scheduled"}[way])
    claimed = broker.claim("b", 10) + broker.claim("b", 10)  # one that crashed is claimed alone
    assert len(claimed) == (1 if broker.claims["a"] else 2)
    if way in ("dies", "releases"):  # they had been first
        assert claimed == ids[:2]
    assert broker.redis.hlen(keys.slots(TWO)) == 2
    assert not audit.audit(broker.redis, 0).breaches


def test_a_job_whose_horse_died_comes_before_the_waiting_ones_again(broker):
    """It had waited already: after its crash backoff it must not wait behind all of its key."""
    ids = enqueue(sample_jobs.two_at_a_time, number=5)
    broker.claim("a", 2)
    assert broker.claim("b", 10) == [] and broker.waiting(TWO) == ids[2:]
    recovery.reclaim(
        broker.redis, "a", QUEUES, recovery.DeathCause.HORSE_DIED, running=ids[0], delay=0.001
    )
    broker.claims["a"] = {}
    broker.redis.zadd(keys.crash_backoff("default"), {ids[0]: 1})
    broker.redis.zadd(keys.scheduled("default"), {ids[0]: 1})
    transitions.promote(broker.redis, "default", 60, crashed_only=True)
    assert ids[0] in broker.claim("c")


def test_a_deleted_running_job_gives_its_slot_back_when_its_claim_is_dropped(broker):
    ids = enqueue(sample_jobs.two_at_a_time, number=3)
    broker.claim("a", 10)
    broker.redis.delete(keys.job(ids[0]), keys.job(ids[1]))
    assert broker.claim("b") == []
    assert broker.settle(ids[0]) == "gone"
    assert broker.claim("b") == [ids[2]]
    broker.die("a")
    assert broker.redis.hgetall(keys.slots(TWO)) == {ids[2].encode(): b"b"}


def test_a_lost_reply_to_a_claim_keeps_the_slot_for_the_same_job(broker):
    ids = enqueue(sample_jobs.two_at_a_time, number=3)
    broker.claim("a", 10)
    broker.claims["a"] = {}  # the reply is lost
    assert broker.claim("a", 10) == ids[:2]
    assert broker.redis.hlen(keys.slots(TWO)) == 2 and broker.waiting(TWO) == ids[2:]


def test_a_job_that_a_blocking_pop_delivered_over_its_limit_waits(broker):
    ids = enqueue(sample_jobs.two_at_a_time, number=3)
    broker.claim("a", 2)
    leases.renew_lease(broker.redis, "b", {"host": "elsewhere", "pid": 1, "started": "1"})
    broker.redis.lmove(keys.queue("default"), keys.claims("b"), "LEFT", "RIGHT")
    assert broker.claim("b") == [] and broker.waiting(TWO) == [ids[2]]
    assert not broker.redis.exists(keys.claims("b"))


def test_an_id_that_is_enqueued_again_while_it_runs_gives_its_slot_back(broker):
    ids = enqueue(sample_jobs.two_at_a_time, number=2)
    broker.claim("a", 10)
    rqjobs.enqueue(sample_jobs.two_at_a_time, job_id=ids[0])
    assert list(broker.redis.hgetall(keys.slots(TWO))) == [ids[1].encode()]
    assert broker.claim("b") == [ids[0]]
    assert broker.settle(ids[0]) == "refused"
    assert broker.redis.hlen(keys.slots(TWO)) == 2


def test_keys_of_limit_by_have_slots_of_their_own_and_take_turns(broker):
    first = enqueue(sample_jobs.one_for_each_user, 1, number=3)
    second = enqueue(sample_jobs.one_for_each_user, 2, number=3)
    plain = enqueue(sample_jobs.ok, number=3)
    order = []
    for _ in range(9):
        for worker in "ab":
            order += broker.claim(worker)
        for worker in "ab":
            for job_id in list(broker.claims[worker]):
                broker.settle(job_id, worker)
    assert sorted(order) == sorted(first + second + plain)
    assert [job_id for job_id in order if job_id in first] == first
    assert [job_id for job_id in order if job_id in second] == second
    assert order.index(second[0]) < order.index(first[1])  # it did not wait for all of the first
    assert order.index(first[2]) < order.index(plain[0])  # which did not lose its place


def test_many_waiting_jobs_of_one_key_do_not_hold_up_the_others(broker):
    enqueue(sample_jobs.one_for_each_user, 1)
    broker.claim("a")
    rqjobs.enqueue_many([(sample_jobs.one_for_each_user, 1)] * 1000)
    (other,) = enqueue(sample_jobs.ok)
    for _ in range(10):
        if found := broker.claim("b"):
            break
    assert found == [other]
    assert len(broker.waiting("user:1")) == 1000


def test_a_claim_that_has_let_many_jobs_wait_says_that_there_are_more(broker):
    enqueue(sample_jobs.one_for_each_user, 1)
    broker.claim("a")
    rqjobs.enqueue_many([(sample_jobs.one_for_each_user, 1)] * 300)
    leases.renew_lease(broker.redis, "b", {"host": "elsewhere", "pid": 1, "started": "1"})
    replies = [
        scripts.CLAIM.run(broker.redis, *transitions.claim_arguments("b", QUEUES, 1))
        for _ in range(2)
    ]
    assert [transitions.is_cut_short(reply) for reply in replies] == [True, False]


@pytest.mark.parametrize("change", ["cancel", "delete"])
def test_waiting_and_woken_jobs_can_be_canceled_and_deleted_by_rq(broker, change):
    ids = enqueue(sample_jobs.two_at_a_time, number=6)
    broker.claim("a", 10)
    broker.claim("b", 10)
    getattr(rqjobs.Job.fetch(ids[2], connection=broker.redis), change)()  # it waits
    broker.settle(ids[0])
    getattr(rqjobs.Job.fetch(ids[3], connection=broker.redis), change)()  # it was woken
    assert broker.claim("b", 10) == []
    recovery.check_waiting(broker.redis)
    assert broker.claim("b", 10) == [ids[4]]
    assert not audit.audit(broker.redis, 0).breaches


def test_the_sweep_wakes_one_job_and_no_second_one_before_it_is_claimed(broker):
    ids = enqueue(sample_jobs.two_at_a_time, number=6)
    broker.claim("a", 10)
    broker.claim("b", 10)
    broker.settle(ids[0])
    broker.settle(ids[1])
    assert broker.waiting(TWO) == ids[4:]
    recovery.check_waiting(broker.redis)
    recovery.check_waiting(broker.redis)
    assert broker.waiting(TWO) == ids[4:]


@pytest.mark.parametrize("way", ["is paused", "has no worker"])
def test_a_queue_from_which_nobody_claims_does_not_hold_up_another_one_of_its_key(broker, way):
    broker.redis.sadd(keys.listeners("default"), "rq:worker:b")
    if way == "is paused":
        broker.redis.sadd(keys.listeners("high"), "rq:worker:b")
    held = enqueue(sample_jobs.two_at_a_time, number=2)
    broker.claim("a", 10)
    high = [rqjobs.queue("high").enqueue(sample_jobs.two_at_a_time).id for _ in range(3)]
    broker.claim("b", 10)
    ids = enqueue(sample_jobs.two_at_a_time, number=3)
    broker.claim("b", 10)
    assert broker.waiting(TWO) == high + ids
    queues = ["default", "low"]
    broker.settle(held[0])  # wakes one of the other queue at once if that is known to be unserved
    if way == "is paused":
        assert broker.waiting(TWO) == high[1:] + ids
        rqjobs.pause(queue="high")
        recovery.check_waiting(broker.redis)
        queues = QUEUES
    assert broker.claim("b", 10, queues) == ids[:1]
    recovery.check_waiting(broker.redis)
    broker.settle(held[1])
    assert ids[1] in broker.claim("b", 10, queues)
    for job_id in ids[:2]:
        broker.settle(job_id, "b")
    assert broker.claim("b", 10, queues) == ids[2:]
    broker.redis.sadd(keys.listeners("high"), "rq:worker:b")
    rqjobs.resume(queue="high")
    broker.settle(ids[2], "b")
    recovery.check_waiting(broker.redis)
    done = []
    while claimed := broker.claim("b", 10):
        done += claimed
        for job_id in claimed:
            broker.settle(job_id, "b")
    assert done == high and not audit.audit(broker.redis, 0).breaches


def test_an_unserved_queue_gets_one_job_from_the_sweep_and_not_all(broker):
    enqueue(sample_jobs.two_at_a_time, number=2)
    held = broker.claim("a", 10)
    ids = [rqjobs.queue("low").enqueue(sample_jobs.two_at_a_time).id for _ in range(5)]
    broker.claim("b", 10)
    broker.settle(held[0])
    for _ in range(3):
        recovery.check_waiting(broker.redis)
    assert broker.waiting(TWO) == ids[1:]


def test_an_empty_key_is_the_function_name(broker):
    ids = enqueue(sample_jobs.one_for_each_name, "", number=2)
    assert (
        broker.claim("a", 10) == ids[:1]
        and broker.waiting("sample_jobs.one_for_each_name") == ids[1:]
    )
    broker.settle(ids[0])
    assert broker.claim("a", 10) == ids[1:]


def test_a_waiting_job_that_is_replaced_keeps_its_place_among_the_waiting_ones(broker):
    name = "sample_jobs.replaced_one_at_a_time"
    (held,) = enqueue(sample_jobs.replaced_one_at_a_time, 0)
    broker.claim("a")
    ids = [rqjobs.enqueue(sample_jobs.replaced_one_at_a_time, value).id for value in (1, 2)]
    broker.claim("b", 10)
    again = rqjobs.enqueue(sample_jobs.replaced_one_at_a_time, 1, description="anew")
    assert again.id == ids[0] and again.get_status() == JobStatus.DEFERRED
    assert broker.claim("b", 10) == [] and broker.waiting(name) == ids
    assert rqjobs.Job.fetch(ids[0], connection=broker.redis).description == "anew"
    broker.settle(held)
    assert broker.claim("b", 10) == ids[:1]
    assert not audit.audit(broker.redis, 0).breaches


NINES = "9" * 400


@pytest.mark.parametrize("limit", [f"1 {NINES}.0 1 k", f"0 {NINES}.0 {NINES} k", "0 1.0 1 k"])
@pytest.mark.parametrize("rate", [None, "nan", "-nan", "inf", "1e300", "word"])
def test_forged_limits_and_rates_stop_no_other_job(broker, limit, rate):
    if rate:
        broker.redis.set("rqjobs:rate:k", rate)
    forged = enqueue(sample_jobs.two_at_a_time, number=3)
    for job_id in forged:
        broker.redis.hset(keys.job(job_id), "rqjobs_limit", limit)
    (other,) = enqueue(sample_jobs.add, 1, 2)
    claimed = broker.claim("a", 10)
    assert other in claimed
    assert {broker.settle(job_id) for job_id in claimed} == {"settled"}
    recovery.wake_due(broker.redis)
    recovery.check_waiting(broker.redis)
    assert not audit.audit(broker.redis, 0).breaches


def test_the_sweep_frees_the_slots_of_jobs_that_nobody_has_claimed(broker):
    ids = enqueue(sample_jobs.two_at_a_time, number=3)
    broker.claim("a", 10)
    broker.claim("b", 10)
    broker.redis.hset(keys.slots(TWO), "forged", "nobody")
    recovery.check_waiting(broker.redis)
    assert broker.redis.hgetall(keys.slots(TWO)) == {job_id.encode(): b"a" for job_id in ids[:2]}


def test_a_rate_lets_the_burst_start_and_the_next_one_when_there_is_a_token(broker):
    name = "sample_jobs.twice_an_hour"
    ids = enqueue(sample_jobs.twice_an_hour, number=5)
    assert broker.claim("a", 10) == ids[:2] and broker.claim("b", 10) == []
    for job_id in ids[:2]:
        broker.settle(job_id)
    assert broker.claim("a", 10) == []  # a free slot is no token
    now, due, _ = recovery.wake_due(broker.redis)
    assert now + 1700 < due < now + 1801 and broker.waiting(name) == ids[2:]
    pass_time(broker.redis, name, 1800)
    recovery.wake_due(broker.redis)
    assert broker.claim("a", 10) == [ids[2]] and broker.waiting(name) == ids[3:]
    pass_time(broker.redis, name, 7200)
    recovery.wake_due(broker.redis)
    assert broker.claim("a", 10) == ids[3:]
    now, due, _ = recovery.wake_due(broker.redis)
    assert due is None


def pass_time(redis, key, seconds):
    """Let the bucket of a rate be as it will be in some seconds."""
    full = float(redis.get(f"rqjobs:rate:{key}") or 0)
    redis.set(f"rqjobs:rate:{key}", full - seconds)
    for member, due in redis.zrange(keys.RATE_DUE, 0, -1, withscores=True):
        redis.zadd(keys.RATE_DUE, {member: due - seconds})


def test_a_bucket_that_is_empty_for_too_long_is_not_believed(broker):
    """The clock of Redis has jumped, or another program has written the key."""
    redis = broker.redis
    redis.set("rqjobs:rate:sample_jobs.twice_an_hour", 1e15)
    ids = enqueue(sample_jobs.twice_an_hour, number=1)
    assert broker.claim("a", 10) == []
    now, due, _ = recovery.wake_due(redis)
    assert due <= now + 1801
    redis.set("rqjobs:rate:sample_jobs.twice_an_hour", "nonsense")
    redis.zadd(keys.RATE_DUE, {"sample_jobs.twice_an_hour": 1})
    recovery.wake_due(redis)
    assert broker.claim("a", 10) == ids


@pytest.mark.parametrize("kind", ["slots", "waiting", "deferred", "rate-due", "waiting-keys"])
def test_keys_of_the_wrong_type_are_renamed_and_stop_nothing(broker, kind):
    key = {
        "slots": keys.slots(TWO),
        "waiting": keys.waiting(TWO),
        "deferred": keys.deferred("default"),
        "rate-due": keys.RATE_DUE,
        "waiting-keys": keys.WAITING_KEYS,
    }[kind]
    broker.redis.set(key, "foreign")
    ids = enqueue(sample_jobs.two_at_a_time, number=3)
    done = []
    for _ in range(6):
        for job_id in broker.claim("a", 10):
            assert broker.settle(job_id) == "settled"
            done.append(job_id)
        recovery.check_waiting(broker.redis)
    assert sorted(done) == sorted(ids)


@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_of_moves_keeps_the_limits_and_loses_no_job(broker, seed):
    """The number of claimed jobs of a key never exceeds its limit, and slots equal claims."""
    choose = random.Random(seed)
    functions = [(sample_jobs.two_at_a_time,), (sample_jobs.ok,)]
    functions += [(sample_jobs.one_for_each_user, user) for user in (1, 2)]
    limit_of = {TWO: 2, "user:1": 1, "user:2": 1}
    enqueued: list[str] = []

    def running(key):
        ids = [job_id for held in broker.claims.values() for job_id in held]
        fields = [broker.redis.hget(keys.job(job_id), "rqjobs_limit") or b"" for job_id in ids]
        return sum(field.decode().endswith(f" {key}") for field in fields)

    def any_claim():
        return [(worker, job_id) for worker, held in broker.claims.items() for job_id in held]

    for _ in range(150):
        move = choose.choice(["enqueue"] * 3 + ["claim"] * 4 + ["settle"] * 3 + ["other"])
        if move == "enqueue":
            function, *args = choose.choice(functions)
            queue = rqjobs.queue(choose.choice(QUEUES))
            at_front = choose.random() < 0.2
            enqueued.append(queue.enqueue(function, *args, at_front=at_front).id)
        elif move == "claim":
            broker.claim(choose.choice("abc"), choose.choice([1, 1, 3]))
        elif move == "settle" and any_claim():
            worker, job_id = choose.choice(any_claim())
            assert broker.settle(job_id, worker, choose.choice(["finished", "failed", "queued"]))
        elif move == "other":
            other = choose.choice(["die", "release", "sweep", "cancel", "again"])
            if other == "die":
                broker.die(choose.choice("abc"))
            elif other == "release":
                worker = choose.choice("abc")
                transitions.release_all(broker.redis, worker)
                broker.claims[worker] = {}
            elif other == "sweep":
                recovery.check_waiting(broker.redis)
            elif enqueued:
                job = rqjobs.Job.fetch(choose.choice(enqueued), connection=broker.redis)
                held = [job_id for _, job_id in any_claim()]
                if other == "cancel" and job.get_status() in ("queued", "deferred"):
                    job.cancel()
                elif other == "again" and job.id not in held:
                    rqjobs.enqueue(sample_jobs.two_at_a_time, job_id=job.id)
        for key, limit in limit_of.items():
            assert running(key) <= limit
            assert broker.redis.hlen(keys.slots(key)) == running(key)
    assert not audit.audit(broker.redis, 0).breaches
    for _ in range(300):
        for worker in "abc":
            for job_id in broker.claim(worker, 3):
                broker.settle(job_id, worker)
            for job_id in list(broker.claims[worker]):
                broker.settle(job_id, worker)
        recovery.check_waiting(broker.redis)
    ended = {"finished", "failed", "canceled"}
    statuses = {decode(broker.redis.hget(keys.job(job_id), "status")) for job_id in enqueued}
    assert statuses <= ended and not broker.redis.keys("rqjobs:slots*")


def test_a_long_line_of_canceled_jobs_is_dropped_in_steps(broker):
    ids = enqueue(sample_jobs.two_at_a_time, number=3)
    broker.claim("a", 10)
    broker.claim("b", 10)
    gone = [f"gone-{number}" for number in range(7000)]
    broker.redis.lpush(keys.waiting(TWO), *gone)
    broker.settle(ids[0])
    assert broker.redis.llen(keys.waiting(TWO)) == 2001
    recovery.check_waiting(broker.redis)
    assert broker.claim("b", 10) == [ids[2]]
