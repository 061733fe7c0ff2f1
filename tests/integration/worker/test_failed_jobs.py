"""Failed jobs: their groups, limits, and `on_failed`."""

from __future__ import annotations

import time
from datetime import timedelta

import helpers
import pytest
import rq
import sample_jobs
from rq.job import JobStatus
from rq.registry import FailedJobRegistry

import rqjobs
from rqjobs import NotAJob, Repeat, Retry, config, failed
from rqjobs.broker import keys, leases, recovery, scripts, transitions
from rqjobs.maintenance import audit, sweep


def run(*queues):
    rqjobs.Worker(list(queues or ("default",))).work(burst=True, logging_level="ERROR")


def claim(redis, **enqueued):
    leases.renew_lease(redis, "me", {"pid": 1, "started": 2})
    (found,) = helpers.claim(redis, "me", ["default"])
    return found


def poison(redis, job):
    """Let the process of a claimed job have died for the third time."""
    redis.hset(job.key, "rqjobs_crashes", ",".join([str(redis.time()[0])] * 2))
    cause = recovery.DeathCause.PROCESS_GONE
    assert recovery.reclaim(redis, "me", ["default"], cause, process="1:2") == {job.id: "failed"}


def only_group():
    (found,) = failed.groups()
    return found


def noted(redis):
    return [line.decode() for line in redis.lrange("noted", 0, -1)]


# Groups


def test_failures_are_grouped_by_function_and_exception(redis):
    begin = redis.time()[0]
    for _ in range(3):
        rqjobs.enqueue(sample_jobs.boom, "first")
    rqjobs.enqueue(sample_jobs.boom, "last")
    rqjobs.enqueue(sample_jobs.mark_and_boom, "marks")
    rqjobs.enqueue(sample_jobs.ok)
    run()
    found = {group.function: group for group in failed.groups()}
    assert set(found) == {"sample_jobs.boom", "sample_jobs.mark_and_boom"}
    group = found["sample_jobs.boom"]
    assert (group.error, group.message) == ("ValueError", "last")
    assert group.total == group.last_hour == group.last_day == group.last_week == group.jobs == 4
    assert begin - 1 <= group.first_seen.timestamp() <= group.last_seen.timestamp()


def test_counts_are_of_the_last_hour_day_and_week(redis, eventually):
    rqjobs.enqueue(sample_jobs.boom)
    run()
    key = keys.failure_group(only_group().id)
    eventually(lambda: redis.time()[0] % 60 < 55, what="a minute that does not end in the test")
    now = redis.time()[0]
    minute, hour = now // 60, now // 3600
    redis.delete(key)
    redis.hset(
        key,
        mapping={
            f"m{minute % 60}": f"{minute}:1",
            f"m{(minute - 59) % 60}": f"{minute - 59}:10",
            f"m{(minute - 58) % 60}": f"{minute - 118}:100",  # two hours ago
            f"h{hour % 168}": f"{hour}:1",
            f"h{(hour - 23) % 168}": f"{hour - 23}:10",
            f"h{(hour - 167) % 168}": f"{hour - 167}:100",
            f"h{(hour - 100) % 168}": f"{hour - 268}:1000",  # last week
            "total": "junk",
            "first": "junk",
            "h1x": "5:5",
        },
    )
    group = only_group()
    assert (group.last_hour, group.last_day, group.last_week, group.total) == (11, 11, 111, 0)


def test_a_group_is_bounded(redis):
    for period in range(1000):
        redis.hset("rqjobs:failure-group:x", f"m{period % 60}", "1:1")
    rqjobs.enqueue(sample_jobs.boom)
    run()
    assert redis.hlen(keys.failure_group(only_group().id)) <= 60 + 168 + 7


def test_more_groups_than_the_limit_share_one(redis):
    """A program that writes jobs with random function names would fill the memory."""
    now = redis.time()[0]
    redis.zadd("rqjobs:failure-groups", {f"g{number}": now for number in range(1000)})
    jobs = [rqjobs.enqueue(sample_jobs.boom), rqjobs.enqueue(sample_jobs.mark_and_boom, "a")]
    run()
    group = failed.groups()[0]
    assert (group.id, group.function, group.jobs) == ("other", "other functions", 2)
    assert redis.zcard("rqjobs:failure-groups") == 1001
    assert {job.job_id for job in failed.find(failed.Filter(group="other"))} == {
        job.id for job in jobs
    }


def test_retried_stopped_and_canceled_jobs_are_not_counted(redis):
    retried = rqjobs.enqueue(sample_jobs.flaky, "counter", 1, retry=Retry(max=2))
    repeated = rqjobs.enqueue(sample_jobs.flaky, "repeats", 1, repeat=Repeat(times=1))
    run()
    assert retried.is_finished and repeated.get_status() == JobStatus.FINISHED
    rqjobs.enqueue(sample_jobs.ok)
    writes = transitions.failure_writes(found := claim(redis), "me", "stopped", "stopped")
    scripts.SETTLE.run(redis, *transitions.settle_arguments("me", found, writes))
    assert failed.groups() == [] and failed.jobs() == [] and failed.requeue(every=True) == 0


def test_a_job_leaves_its_group_in_the_step_that_moves_it(redis):
    moves = {
        "requeue": lambda job: transitions.requeue(redis, job.id),
        "enqueue again": lambda job: rqjobs.queue("default").enqueue_job(job),
        "new life": lambda job: rqjobs.enqueue(sample_jobs.ok, job_id=job.id),
        "delete": lambda job: transitions.delete_failed(redis, job.id),
        "delete many": lambda job: failed.delete(function="boom"),
        "requeue many": lambda job: failed.requeue(error="ValueError"),
        "delay": lambda job: rqjobs.queue("default").enqueue_in(
            timedelta(hours=1), sample_jobs.ok, job_id=job.id
        ),
    }
    for name, move in moves.items():
        job = rqjobs.enqueue(sample_jobs.boom)
        run()
        assert only_group().jobs == 1, name
        move(job)
        assert only_group().jobs == 0 and not redis.keys("rqjobs:failure-group-jobs:*"), name
        assert not redis.hexists(job.key, "rqjobs_failure_group"), name
        transitions.delete_job(redis, job.id)
    assert only_group().total == only_group().last_hour == len(moves)
    assert not audit.audit(redis, settle=0.1).breaches


def test_what_plain_rq_and_expiry_leave_in_a_group_is_skipped_and_removed(redis):
    jobs = [rqjobs.enqueue(sample_jobs.boom) for _ in range(4)]
    run()
    redis.delete(jobs[0].key)
    FailedJobRegistry("default", connection=redis).remove(jobs[1], delete_job=True)
    FailedJobRegistry("default", connection=redis).requeue(jobs[2].id)
    assert [job.job_id for job in failed.jobs(function="boom")] == [jobs[3].id]
    assert only_group().jobs == 4
    sweep.sweep(redis, force=True)
    assert only_group().jobs == 1
    run()  # jobs[2] again
    assert only_group().jobs == 2 and only_group().total == 5


def test_a_job_requeued_by_plain_rq_leaves_its_group_when_it_is_claimed(redis):
    job = rqjobs.enqueue(sample_jobs.flaky, "counter", 1)
    run()
    FailedJobRegistry("default", connection=redis).requeue(job.id)
    run()
    assert job.is_finished and only_group().jobs == 0


def test_an_empty_group_is_dropped_after_a_week(redis):
    job = rqjobs.enqueue(sample_jobs.boom)
    run()
    group = only_group()
    redis.zadd("rqjobs:failure-groups", {group.id: time.time() - 8 * 24 * 3600})
    sweep.sweep(redis, force=True)
    assert only_group().jobs == 1
    transitions.delete_failed(redis, job.id)
    sweep.sweep(redis, force=True)
    assert failed.groups() == [] and not redis.keys("rqjobs:failure*")


def test_a_failure_that_a_script_records_is_counted_by_the_sweep(redis):
    job = rqjobs.enqueue(sample_jobs.ok)
    claim(redis)
    poison(redis, job)
    assert redis.hlen("rqjobs:new-failures") == 1 and failed.groups() == []
    sweep.sweep(redis, force=True)
    group = only_group()
    assert (group.function, group.error, group.jobs) == ("sample_jobs.ok", "process died", 1)
    assert group.message.startswith("The process died 3 times within 72 hours")
    assert not redis.exists("rqjobs:new-failures")


HOSTILE = {
    "no data": {},
    "binary": {"data": b"\x78\x9c\xff\xfe"},
    "pickle": {"data": b"\x80\x04\x95."},
    "number": {"data": b"5"},
    "wrong name": {"data": b'[{"a": 1}, null, [], {}]'},
    "lines": {"data": b'["a\\nb\\u0000", null, [], {}]'},
    "surrogate": {"data": b'["\\ud800", null, [], {}]'},
    "long": {"data": b'["' + b"x" * 100_000 + b'", null, [], {}]'},
    "on_failed": {"data": b"5", "rqjobs_on_failed": b"os.system"},
}


@pytest.mark.parametrize("fields", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_record_stops_no_sweep(redis, fields):
    good = rqjobs.enqueue(sample_jobs.ok)
    claim(redis)
    poison(redis, good)
    redis.hset("rq:job:bad", mapping={"status": "failed", "origin": "default", **fields})
    redis.zadd("rq:failed:default", {"bad": 9e9})
    redis.hset("rqjobs:new-failures", mapping={"bad:1": "1.5", b"\xff:2": b"\xff", "": ""})
    redis.set("rq:job:text", "x")
    redis.hset("rqjobs:new-failures", "text:3", "2.5")
    sweep.sweep(redis, force=True)
    assert {group.error for group in failed.groups()} >= {"process died", "unreadable job"}
    assert not redis.exists("rqjobs:new-failures")
    assert all(len(group.function) <= 200 for group in failed.groups())


def test_keys_of_the_wrong_type_stop_no_settlement_and_no_reader(redis):
    group = failed.failures.group_id("sample_jobs.boom", "ValueError")
    bad = [
        keys.failure_group(group),
        keys.failure_group_jobs(group),
        keys.FAILURE_GROUPS,
        keys.NEW_FAILURES,
    ]
    for key in bad:
        redis.set(key, "x")
    jobs = [rqjobs.enqueue(sample_jobs.boom_and_note), rqjobs.enqueue(sample_jobs.boom)]
    run()
    assert all(job.get_status() == JobStatus.FAILED for job in jobs)
    assert [group.function for group in failed.groups()] == ["sample_jobs.boom_and_note"]
    assert len(failed.jobs(function="boom")) == 1
    assert failed.requeue(function="boom") == 1
    sweep.sweep(redis, force=True)
    run()
    assert len(noted(redis)) == 1


def test_full_memory_records_nothing_and_counts_once(redis):
    job = rqjobs.enqueue(sample_jobs.boom_and_note)
    found = claim(redis)
    failure = failed.failures.of_traceback("sample_jobs.boom_and_note", "ValueError: boom")
    arguments = transitions.settle_arguments(
        "me",
        found,
        transitions.failure_writes(found, "me", "ValueError: boom"),
        "failed",
        180,
        failure.group,
        failure.call("sample_jobs.note_failure"),
    )
    redis.script_load(scripts.SETTLE.source)
    try:
        redis.config_set("maxmemory", 1)
        with pytest.raises(rqjobs.failed.redis.ResponseError, match="maxmemory"):
            scripts.SETTLE.run(redis, *arguments)
    finally:
        redis.config_set("maxmemory", 0)
    assert not redis.keys("rqjobs:failure*") and not redis.exists("rqjobs:new-failures")
    assert scripts.SETTLE.run(redis, *arguments) == b"settled"
    assert scripts.SETTLE.run(redis, *arguments) == b"already"
    assert only_group().total == 1 and redis.hlen("rqjobs:new-failures") == 1
    try:
        redis.config_set("maxmemory", 1)
        sweep.new_failures.follow_all(redis)
    except rqjobs.failed.redis.ResponseError:
        pass
    finally:
        redis.config_set("maxmemory", 0)
    sweep.sweep(redis, force=True)
    sweep.sweep(redis, force=True)
    redis.delete("rqjobs:leases")
    run()
    assert len(noted(redis)) == 1 and noted(redis)[0].startswith(job.id)


# Finding, requeueing and deleting


def test_filters(redis):
    first = rqjobs.enqueue(sample_jobs.boom)
    second = rqjobs.queue("low").enqueue(sample_jobs.mark_and_boom, "a")
    third = rqjobs.enqueue(sample_jobs.note_failure, "a", "b", "c", job_timeout=5)
    redis.hset(third.key, "data", b'["sample_jobs.missing", null, [], {}]')
    run("default", "low")

    def ids(**chosen):
        return {job.job_id for job in failed.jobs(**chosen)}

    assert ids() == {first.id, second.id, third.id}
    assert ids(function="boom") == ids(function="sample_jobs.boom") == {first.id}
    assert ids(error="ValueError") == ids(error="builtins.ValueError") == {first.id, second.id}
    assert ids(error="NotAJob") == ids(function="missing") == {third.id}
    assert ids(queue="low") == ids(queue="low", error="ValueError") == {second.id}
    assert ids(function="nothing") == ids(queue="none") == set()
    assert len(failed.jobs(limit=2)) == 2
    redis.zadd(keys.failure_group_jobs(only(first.id)), {first.id: time.time() - 7200})
    assert ids(since=timedelta(hours=1)) == {second.id, third.id}
    assert ids(since=timedelta(hours=3), function="boom") == {first.id}
    with pytest.raises(ValueError, match="pass every=True"):
        failed.requeue()
    assert failed.requeue(since=timedelta(hours=1), error="ValueError") == 1
    assert redis.lrange("rq:queue:low", 0, -1) == [second.id.encode()]
    assert failed.delete(every=True) == 2 and not redis.exists(first.key, third.key)
    assert redis.keys("rq:results:*") == [f"rq:results:{second.id}".encode()]


def only(job_id):
    return rqjobs.client().hget(keys.job(job_id), "rqjobs_failure_group").decode()


def test_failures_of_plain_rq_are_found_by_their_traceback(redis):
    queue = rq.Queue("default", connection=redis, serializer="json")
    jobs = [queue.enqueue(sample_jobs.boom, str(number)) for number in range(3)]
    rq.SimpleWorker([queue], connection=redis, serializer="json").work(burst=True)
    assert failed.groups() == []
    found = failed.jobs(function="boom", error="ValueError", since=timedelta(hours=1))
    assert {job.job_id for job in found} == {job.id for job in jobs}
    assert failed.requeue(error="ValueError") == 3


def test_bulk_commands_leave_stopped_discarded_and_requeued_jobs_alone(redis):
    stopped, discarded, requeued, good = (rqjobs.enqueue(sample_jobs.boom) for _ in range(4))
    run()
    targets = failed.select(failed.Filter(function="boom"))
    assert len(targets) == 4
    redis.hset(stopped.key, "status", "stopped")
    redis.zadd("rqjobs:stopped:default", {stopped.id: 9e9})
    redis.hset(discarded.key, mapping={"status": "canceled", "rqjobs_ending": "discarded"})
    redis.zrem("rq:failed:default", discarded.id)
    redis.zadd("rq:canceled:default", {discarded.id: 9e9})
    transitions.requeue(redis, requeued.id)
    assert sum(failed.delete_steps(targets)) == 1 and not redis.exists(good.key)
    assert sum(failed.requeue_steps(targets)) == 0
    assert redis.lrange("rq:queue:default", 0, -1) == [requeued.id.encode()]
    assert redis.exists(stopped.key, discarded.key, requeued.key) == 3


def test_requeueing_jobs_that_fail_again_ends(redis):
    for _ in range(5):
        rqjobs.enqueue(sample_jobs.boom)
    run()
    for job in failed.find(failed.Filter(function="boom")):
        transitions.requeue(redis, job.job_id)
        run()
    assert only_group().jobs == 5 and only_group().total == 10


# Limits


def test_the_failed_jobs_of_a_queue_are_bounded(redis):
    config.use(max_failed_jobs=3)
    jobs = [rqjobs.enqueue(sample_jobs.boom, failure_ttl=1000 + n) for n in range(6)]
    other = rqjobs.queue("low").enqueue(sample_jobs.boom)
    run("default", "low")
    sweep.sweep(redis, force=True)
    assert [bool(redis.exists(job.key)) for job in jobs] == [False] * 3 + [True] * 3
    assert redis.zcard("rq:failed:default") == 3 and redis.exists(other.key)
    assert len(redis.keys("rq:results:*")) == 4 and only_group().jobs == 4
    assert only_group().total == 7
    before = redis.info("commandstats")
    sweep.sweep(redis, force=True)
    assert redis.zcard("rq:failed:default") == 3
    after = redis.info("commandstats")
    for command in ("cmdstat_del", "cmdstat_zrem"):
        assert before.get(command, {}).get("calls") == after.get(command, {}).get("calls")


def test_a_trim_keeps_jobs_that_plain_rq_has_enqueued_again(redis):
    config.use(max_failed_jobs=1)
    jobs = [rqjobs.enqueue(sample_jobs.boom, failure_ttl=1000 + n) for n in range(3)]
    run()
    redis.hset(jobs[0].key, "status", "queued")  # plain RQ's requeue, before its last step
    redis.rpush("rq:queue:default", jobs[0].id)
    sweep.sweep(redis, force=True)
    assert [bool(redis.exists(job.key)) for job in jobs] == [True, False, True]
    assert redis.zrange("rq:failed:default", 0, -1) == [jobs[2].id.encode()]
    run()
    assert jobs[0].get_status() == JobStatus.FAILED


def test_many_failed_jobs_are_trimmed_in_steps(redis, monkeypatch):
    monkeypatch.setattr(transitions, "FAILED_BATCH_JOBS", 10)
    monkeypatch.setattr(sweep, "TRIM_STEPS", 3)
    config.use(max_failed_jobs=5)
    for number in range(60):
        redis.hset(f"rq:job:{number}", mapping={"status": "failed", "origin": "default"})
        redis.zadd("rq:failed:default", {str(number): 1e9 + number})
    sweep.sweep(redis, force=True)
    assert redis.zcard("rq:failed:default") == 30 and not redis.exists("rq:job:29")
    sweep.sweep(redis, force=True)
    assert redis.zcard("rq:failed:default") == 5


@pytest.mark.parametrize("failure_ttl", [None, -1, 5000])
def test_the_age_of_failed_jobs_is_bounded(redis, failure_ttl):
    job = rqjobs.enqueue(sample_jobs.boom, failure_ttl=failure_ttl)
    short = rqjobs.enqueue(sample_jobs.boom, failure_ttl=50)
    run()
    config.use(max_failed_age_seconds=100)
    sweep.sweep(redis, force=True)
    assert 90 < redis.ttl(job.key) <= 100 and 90 < redis.ttl(f"rq:results:{job.id}") <= 100
    assert 90 < redis.zscore("rq:failed:default", job.id) - redis.time()[0] <= 101
    assert redis.ttl(short.key) <= 50
    left = redis.ttl(job.key)
    redis.expire(job.key, 10)
    sweep.sweep(redis, force=True)
    assert redis.ttl(job.key) <= 10 < left  # touched once only


# on_failed


def test_on_failed_is_called_with_the_job_its_function_and_the_error(redis):
    job = rqjobs.enqueue(sample_jobs.boom_and_note, "no\nluck")
    other = rqjobs.enqueue(sample_jobs.boom, on_failed="sample_jobs:note_failure")
    off = rqjobs.enqueue(sample_jobs.boom_and_note, on_failed="")
    run()
    assert sorted(noted(redis)) == sorted(
        [
            f"{job.id} sample_jobs.boom_and_note ValueError: no luck",
            f"{other.id} sample_jobs.boom ValueError: boom",
        ]
    )
    assert off.get_status() == JobStatus.FAILED and not redis.exists("rqjobs:new-failures")


def test_on_failed_is_called_only_when_a_job_fails_for_good(redis):
    options = {"on_failed": "sample_jobs:note_failure"}
    rqjobs.enqueue(sample_jobs.flaky, "one", 1, retry=Retry(max=1), **options)
    bad = rqjobs.enqueue(sample_jobs.flaky, "two", 5, retry=Retry(max=2), **options)
    rqjobs.enqueue(sample_jobs.ok, **options)
    run()
    assert len(noted(redis)) == 1 and noted(redis)[0].startswith(bad.id)
    transitions.requeue(redis, bad.id)
    run()
    assert len(noted(redis)) == 2  # it has failed for good a second time


def test_on_failed_of_a_job_that_a_script_fails_is_called_once_by_the_sweep(redis):
    job = rqjobs.enqueue(sample_jobs.ok, on_failed="sample_jobs:note_failure")
    claim(redis)
    poison(redis, job)
    sweep.sweep(redis, force=True)
    sweep.sweep(redis, force=True)
    run()
    (line,) = noted(redis)
    assert line.startswith(f"{job.id} sample_jobs.ok process died: The process died 3 times")


def test_a_failing_on_failed_has_none_of_its_own(redis):
    rqjobs.enqueue(sample_jobs.boom_and_fail_to_note)
    run()
    assert {(group.function, group.total) for group in failed.groups()} == {
        ("sample_jobs.boom_and_fail_to_note", 1),
        ("sample_jobs.failing_note", 1),
    }
    assert not redis.exists("rqjobs:new-failures")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sample_jobs:nothing", "on_failed: 'sample_jobs.nothing' is not a job"),
        ("os:system", "on_failed: 'os.system' is not a job: its module is not in RQJOBS_MODULES"),
    ],
)
def test_on_failed_that_is_not_a_job_is_refused_at_enqueue(redis, name, reason):
    with pytest.raises(NotAJob, match=reason):
        rqjobs.enqueue(sample_jobs.ok, on_failed=name)
    with pytest.raises(NotAJob, match=reason):
        rqjobs.enqueue_many([rqjobs.Queue.prepare_data(sample_jobs.ok, on_failed=name)])
    assert not redis.keys("rq:job:*")


def test_on_failed_that_does_not_take_three_arguments_is_refused(redis):
    with pytest.raises(TypeError, match="is called with three arguments"):
        rqjobs.enqueue(sample_jobs.ok, on_failed="sample_jobs:add")
    assert not redis.keys("rq:job:*")


def test_on_failed_waits_for_a_worker_that_has_the_function(redis):
    rqjobs.enqueue(sample_jobs.boom_and_note)
    found = claim(redis)
    failure = failed.failures.of_traceback("sample_jobs.boom_and_note", "ValueError: boom")
    writes = transitions.failure_writes(found, "me", "ValueError: boom")
    call = failure.call("elsewhere.note")
    scripts.SETTLE.run(
        redis,
        *transitions.settle_arguments("me", found, writes, "failed", 180, failure.group, call),
    )
    sweep.sweep(redis, force=True)
    ((field, value),) = redis.hgetall("rqjobs:new-failures").items()
    day_ago = repr(time.time() - 90_000).encode()
    redis.hset("rqjobs:new-failures", field, day_ago + value[value.index(b"\n") :])
    sweep.sweep(redis, force=True)
    assert not redis.exists("rqjobs:new-failures") and only_group().total == 1


# Real processes


def test_kills_count_each_failure_once_and_lose_no_on_failed(redis, worker, kill, eventually):
    """Workers are killed while failures are recorded, and while their calls are enqueued."""
    number = 300
    jobs = {rqjobs.enqueue(sample_jobs.boom_and_note).id for _ in range(number)}
    done = 0
    while done < number - 20:
        process = worker("default")
        goal = min(done + 40, number - 20)
        eventually(lambda goal=goal: redis.zcard("rq:failed:default") >= goal, timeout=60)
        kill(process.pid)
        done = redis.zcard("rq:failed:default")
    worker("default")

    def all_ended():  # in this order: the last failure is followed by a job that is enqueued
        all_failed = redis.zcard("rq:failed:default") == number
        no_open_call = not redis.exists("rqjobs:new-failures")
        return all_failed and no_open_call and helpers.nothing_moves(redis, "default")

    eventually(all_ended, timeout=120)
    assert sum(group.total for group in failed.groups()) == number
    assert sum(group.last_hour for group in failed.groups()) == number
    assert sum(group.jobs for group in failed.groups()) == number
    assert {line.split()[0] for line in noted(redis)} == jobs
    calls = redis.zrange("rq:finished:default", 0, -1)
    assert len(calls) == number, "one job of on_failed for each failed job"
    assert not audit.audit(redis, settle=0.1).breaches
