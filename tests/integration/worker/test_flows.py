"""Flows with real workers: results are passed on, failures stop or go on, nothing is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor

import flow_jobs as jobs
import psutil
import pytest
import sample_jobs
from rq.command import send_stop_job_command

import rqjobs
from rqjobs import bulk_actions, chain, chord, config, connection, flows, group, results, s
from rqjobs.broker import blockers, enqueueing, keys, transitions
from rqjobs.broker import flows as broker_flows
from rqjobs.flows import FlowStatus
from rqjobs.maintenance import audit, sweep


@pytest.fixture(autouse=True)
def modules(settings):
    config.use(modules=("flow_jobs", "sample_jobs"))


@pytest.fixture
def environ(environ):
    return {**environ, "RQJOBS_MODULES": "flow_jobs,sample_jobs"}


def work(*queues):
    rqjobs.Worker([*queues] or ["default"]).work(burst=True, logging_level="CRITICAL")


def test_results_are_passed_on(redis):
    row = chain(jobs.add.s(1, 2), s(jobs.double), jobs.add.s(more=4)).enqueue()
    members = group(jobs.add.s(number) for number in range(3)).enqueue()
    mapped = rqjobs.map(jobs.double, iter([3, 4])).enqueue()
    nested = chain(
        jobs.add.s(1),
        group(jobs.add.s(10), chain(jobs.add.s(20), s(jobs.double))),
        jobs.total.s(),
        s(jobs.double),
    ).enqueue()
    empty = chain(s(jobs.nothing), s(jobs.describe)).enqueue()
    again = chain(s(jobs.snooze_once, 5), s(jobs.double)).enqueue()
    large = chain(s(sample_jobs.long, 600_000), s(jobs.size)).enqueue()
    limited = chord([s(jobs.one_at_a_time, n) for n in range(3)], jobs.total.s()).enqueue()
    assert row.progress == (0, 0, 3) and row.status is FlowStatus.RUNNING and row.result is None
    work()
    assert row.result == 10 and row.progress == (3, 0, 3) and row.status is FlowStatus.FINISHED
    assert members.result == [0, 1, 2] and mapped.result == [6, 8]
    assert nested.result == (11 + 42) * 2
    assert empty.result == "None" and again.result == 10
    assert large.result == 600_000 and limited.result == 3
    assert flows.fetch(nested.id).result == nested.result == nested.wait(timeout=0)
    assert members.wait(timeout=0) == [0, 1, 2]
    assert [job.id for job in nested.jobs] == nested.job_ids
    assert not audit.audit(redis).breaches and not redis.exists(keys.HELD_FLOWS)
    kept = [*redis.keys("rqjobs:flow:*"), *redis.keys("rqjobs:flow-jobs:*")]
    assert all(0 < redis.ttl(key) <= 500 for key in kept) and len(kept) == 16


def test_every_job_of_a_flow_is_a_job_of_rq_with_dependencies(redis):
    flow = chord([jobs.add.s(1), jobs.add.s(2)], jobs.total.s().set(queue="low")).enqueue()
    one, two, last = flow.jobs
    assert last._dependency_ids == [one.id, two.id] and last.origin == "low"
    assert last.get_status() == "deferred" and one.get_status() == "queued"
    assert {job.id for job in last.fetch_dependencies()} == {one.id, two.id}


def test_a_result_that_cannot_be_passed_on_fails_its_job(redis, caplog):
    flow = chain(s(jobs.as_object, 1), s(jobs.describe)).enqueue()
    last = chain(jobs.add.s(1), s(jobs.as_object)).enqueue()
    work()
    assert flow.status is FlowStatus.FAILED and last.status is FlowStatus.FINISHED
    with pytest.raises(rqjobs.JobFailed, match=r"cannot be passed on: .* is a object, which JSON"):
        flow.jobs[0].wait(timeout=0)
    with caplog.at_level("WARNING", logger="rq.job"):
        last.jobs[-1].serialize_result(object())
    assert f"Job {last.job_ids[-1]}: its result is not kept: " in caplog.text
    with pytest.raises(rqjobs.NoResult, match="could not be kept: the serializer cannot carry it"):
        last.wait(timeout=0)
    with pytest.raises(flows.ResultGone, match="could not be kept"):
        assert last.result


def test_a_failed_job_stops_its_flow_until_it_is_retried(redis):
    flow = chord([s(jobs.fail_until, "go", 7), jobs.add.s(1)], jobs.total.s()).enqueue()
    work()
    failed, _, waiting = flow.job_ids
    assert flow.status is FlowStatus.FAILED and flow.progress == (1, 1, 3) and flow.result is None
    assert [*audit.blocked_jobs(redis, [waiting])] == [(waiting, failed, "failed")]
    redis.set("go", 1)
    assert flow.retry() == 1 and flow.status is FlowStatus.RUNNING
    work()
    assert flow.result == 8 and redis.get("totals") == b"1" and flow.retry() == 0


def discard(job_id, redis):
    work()


def expire(job_id, redis):
    work()


def fail(job_id, redis):
    work()


def cancel(job_id, redis):
    rqjobs.Job.fetch(job_id, redis).cancel()


def cancel_with_others(job_id, redis):
    assert bulk_actions.change(bulk_actions.Action.CANCEL, [job_id]) == 1


def stop(job_id, redis):
    redis.lrem(keys.queue("default"), 1, job_id)
    redis.hset(keys.job(job_id), "status", "stopped")


def delete(job_id, redis):
    rqjobs.Job.fetch(job_id, redis).delete()


def empty(job_id, redis):
    assert sum(transitions.empty_queue(redis, "low")) == 1


ENDINGS = {
    "failed": (
        s(jobs.fail_until, "go"),
        fail,
        "has failed: ValueError: go is not set; retry the flow",
    ),
    "discarded": (s(jobs.discard_it), discard, "is canceled; enqueue that one again"),
    "expired": (s(jobs.nothing).set(expires=0.001), expire, "is canceled; enqueue that one again"),
    "canceled": (s(jobs.nothing), cancel, "is canceled; enqueue that one again"),
    "canceled with others": (
        s(jobs.nothing),
        cancel_with_others,
        "is canceled; enqueue that one again",
    ),
    "stopped": (s(jobs.nothing), stop, "is stopped; retry the flow with: rqjobs flows retry"),
    "deleted": (s(jobs.nothing), delete, "is gone; it was deleted"),
    "deleted with its queue": (
        s(jobs.nothing).set(queue="low"),
        empty,
        "is gone; it was deleted",
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_wait_ends_at_once_if_the_flow_cannot_go_on(redis, ending):
    """It waited until its timeout."""
    call, end, message = ENDINGS[ending]
    flow = chain(call, s(jobs.describe), s(jobs.describe)).enqueue()
    last = flow.jobs[-1]
    with pytest.raises(rqjobs.WaitTimeout):
        flow.wait(timeout=0)
    end(flow.job_ids[0], redis)
    for wait in (flow.wait, last.wait, lambda timeout: rqjobs.gather([last], timeout)):
        with pytest.raises(rqjobs.NoResult) as caught:
            wait(timeout=60)
        error = caught.value
        assert error.reason == "blocked" and error.job_id == last.id
        assert f"waits for the job {flow.job_ids[0]}" in str(error) and message in str(error)
    if ending == "failed":
        assert type(error.__cause__) is ValueError
        redis.set("go", 1)
        flow.retry()
        work()
        assert flow.wait(timeout=60) == "'None'"


def test_a_wait_that_has_begun_ends_at_once_too(redis, worker, eventually):
    """The job that fails is watched, although another one is waited for."""
    members = [s(sample_jobs.hang, "gate"), jobs.add.s(1)]
    flow = chain(group(members), jobs.total.s(), s(jobs.describe)).enqueue()
    worker("default")
    eventually(lambda: redis.llen("gate:reached"))
    with ThreadPoolExecutor(1) as pool:
        results.STATE_CHECK_SECONDS, before = 600.0, results.STATE_CHECK_SECONDS
        try:
            waiting = pool.submit(flow.wait, 120)
            eventually(lambda: [c for c in redis.client_list() if c["cmd"] == "xread"])
            send_stop_job_command(redis, flow.job_ids[0])
            with pytest.raises(rqjobs.NoResult, match=f"{flow.job_ids[0]} .* is stopped"):
                waiting.result()
        finally:
            results.STATE_CHECK_SECONDS = before


def test_a_long_chain_and_a_large_chord_are_searched_in_steps(redis, monkeypatch):
    monkeypatch.setattr(blockers, "SEARCHED_JOBS_PER_SCRIPT", 7)
    row = chain(*(s(jobs.nothing) for _ in range(100))).enqueue()
    wide = chord(rqjobs.map(jobs.double, range(1500)), jobs.total.s()).enqueue()
    wide.job_ids[0], wide.job_ids[-2] = wide.job_ids[-2], wide.job_ids[0]
    for flow in (row, wide):
        rqjobs.Job.fetch(flow.job_ids[0], redis).cancel()
        with pytest.raises(rqjobs.NoResult, match=f"waits for the job {flow.job_ids[0]}"):
            flow.wait(timeout=0)


def test_a_flow_whose_last_job_is_gone_has_its_result_or_says_so(redis):
    flow = group(jobs.add.s(1), jobs.add.s(2).set(queue="low")).enqueue()
    work()
    redis.delete(keys.job(flow.job_ids[0]))  # its result is kept with the flow
    with pytest.raises(rqjobs.WaitTimeout):
        flow.wait(timeout=0)
    work("low")
    assert flow.wait(timeout=0) == [1, 2]
    flow = chain(jobs.add.s(1), jobs.add.s(2)).enqueue()
    flow.jobs[-1].delete()
    with pytest.raises(rqjobs.NoResult, match="is not in Redis"):
        flow.wait(timeout=0)


def test_with_continue_the_next_step_gets_what_failed(redis):
    members = [
        s(jobs.fail_until, "go", 7),
        jobs.add.s(1),
        s(jobs.fail_until, "go").set(retry=rqjobs.Retry(1)),
    ]
    flow = chord(members, s(jobs.describe), on_failure="continue").enqueue()
    row = chain(s(jobs.fail_until, "go"), s(jobs.describe), on_failure="continue").enqueue()
    work()
    error = "failed: ValueError: go is not set"
    assert flow.result == f"{error}, 1, {error}" and row.result == error
    assert flow.status is FlowStatus.FINISHED and flow.progress == (2, 2, 4)


@pytest.mark.parametrize("ending", ENDINGS)
def test_with_continue_a_flow_goes_on_however_a_job_ends(redis, ending):
    """It went on behind failed jobs only."""
    call, end, _ = ENDINGS[ending]
    flow = chord([call, jobs.add.s(1)], s(jobs.describe), on_failure="continue").enqueue()
    end(flow.job_ids[0], redis)
    work()
    assert not [*audit.blocked_jobs(redis, [flow.job_ids[-1]])]
    if flow.status is FlowStatus.RUNNING:  # the way in which it ended enqueues nothing at once
        assert ending.startswith(("stopped", "canceled", "deleted"))
        redis.delete(keys.STRAYS_LOCK)
        sweep.sweep(redis, force=True)
        work()
    reason = {
        "failed": "ValueError: go is not set",
        "expired": "the job was not run, because it expired",
        "deleted": "the job and its result are gone",
    }.get(ending.split()[0], f"the job was {ending.split()[0]}")
    assert flow.wait(timeout=0) == f"failed: {reason}, 1"
    assert flow.status is FlowStatus.FINISHED and not audit.audit(redis).breaches


def test_a_member_of_a_flow_that_goes_on_may_be_canceled_or_stopped(redis, worker, eventually):
    """As on its page. The next step follows with the next sweep, or at once."""
    delayed, hanging = s(jobs.nothing), s(sample_jobs.hang, "gate")
    flow = chord([delayed, hanging], s(jobs.describe), on_failure="continue").enqueue()
    transitions.cancel(flow.jobs[0], "queued")
    worker("default")
    eventually(lambda: redis.llen("gate:reached"))
    send_stop_job_command(redis, flow.job_ids[1])
    eventually(lambda: flow.status is FlowStatus.FINISHED)
    assert flow.result == "failed: the job was canceled, failed: the job was stopped"


def test_a_plain_dependent_of_a_job_that_expired_stays_deferred_as_in_rq(redis):
    """The audit names it, and the remedy that helps."""
    parent = rqjobs.enqueue(sample_jobs.ok, expires=0.001)
    child = rqjobs.enqueue(sample_jobs.ok, depends_on=parent)
    work()
    sweep.sweep(redis, force=True)
    found = audit.audit(redis)
    assert not found.breaches and child.get_status() == "deferred"
    assert found.remarks == [f"deferred: {child.id} waits for {parent.id}, which is canceled"]
    rqjobs.queue("default").enqueue(sample_jobs.ok, job_id=parent.id)
    work()
    assert child.get_status() == "finished"


def test_a_large_flow_is_canceled_in_short_steps(redis):
    """Each job took four round trips, and the search for it in its queue."""
    rqjobs.enqueue(sample_jobs.ok)
    members = [s(jobs.nothing), *(jobs.add.s(number) for number in range(3000))]
    flow = chord(members, s(jobs.describe), on_failure="continue").enqueue()
    for _ in range(20):
        rqjobs.enqueue(sample_jobs.ok)
    redis.config_resetstat()
    redis.config_set("slowlog-log-slower-than", 100_000)
    redis.slowlog_reset()
    assert flow.cancel() == 3002
    calls = redis.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert calls < 310 and not redis.slowlog_len()
    assert flow.status is FlowStatus.CANCELED and redis.llen(keys.queue("default")) == 21
    sweep.sweep(redis, force=True)
    work()
    assert flow.progress == (0, 0, 3002) and not audit.audit(redis).breaches


def test_a_result_is_kept_until_the_flow_has_ended(redis, eventually):
    first = jobs.add.s(1).set(result_ttl=1)
    flow = chain(first, s(jobs.fail_until, "go"), s(jobs.describe).set(queue="low")).enqueue()
    flow = chord([first, first], jobs.total.s().set(queue="low")).enqueue()
    work()
    eventually(lambda: not redis.exists(*map(keys.job, flow.job_ids[:2])))
    assert flow.progress == (2, 0, 3)
    work("low")
    assert flow.result == 2


def test_a_lost_result_fails_the_job_with_the_reason(redis):
    flow = chain(jobs.add.s(1), s(jobs.double).set(queue="low")).enqueue()
    work()
    redis.delete(keys.flow(flow.id), keys.results(flow.job_ids[0]))
    work("low")
    job = flow.jobs[1]
    assert job.get_status() == "failed" and "is gone" in job.latest_result().exc_string


def test_a_flow_is_canceled_as_a_whole(redis):
    flow = chain(jobs.add.s(1), s(jobs.double), group(jobs.add.s(1), jobs.add.s(2))).enqueue()
    assert flow.cancel() == 4 and flow.status is FlowStatus.CANCELED
    work()
    assert flow.progress == (0, 0, 4) and not redis.llen("rq:queue:default")
    assert flow.cancel() == 0 and redis.ttl(keys.flow(flow.id)) > 0
    with pytest.raises(flows.NoSuchFlow, match="no flow 'nope'"):
        flows.fetch("nope")


def test_simple_worker_and_plain_results_are_passed_on_too(redis):
    flow = chain(jobs.add.s(1), s(jobs.double)).enqueue()
    rqjobs.SimpleWorker(["default"]).work(burst=True, logging_level="CRITICAL")
    assert flow.jobs[1].return_value() == 2


def test_a_burst_worker_runs_the_many_jobs_behind_one(redis):
    flow = chain(jobs.add.s(1), rqjobs.map(jobs.add, range(150)), jobs.total.s()).enqueue()
    work()
    assert flow.result == sum(range(150)) + 150


def test_the_end_of_each_of_many_jobs_does_not_check_all_of_them(redis):
    """The check at the end of each member read all members, which took quadratic time."""
    count = 2000
    flow = chord(rqjobs.map(jobs.double, range(count)), jobs.total.s()).enqueue()
    redis.config_resetstat()
    work()
    stats = redis.info("commandstats")
    assert flow.result == count * (count - 1) and redis.get("totals") == b"1"
    # Of each member: itself, and the one that the callback waits for. A few checks of all.
    assert stats["cmdstat_sismember"]["calls"] <= count
    assert stats["cmdstat_hmget"]["calls"] < 14 * count  # those in a pcall count twice
    # Up to 49 of each job if a slow machine claims the jobs one by one.
    assert sum(value["calls"] for value in stats.values()) < 60 * count


def test_whatever_dies_a_chord_calls_back_once(redis, worker, eventually):
    """Members kill their process, and the test kills workers with SIGKILL."""
    chance = random.Random(14)
    members = [s(jobs.die_once, str(n), n) for n in range(4)] + [
        s(jobs.slow, n) for n in range(4, 120)
    ]
    chance.shuffle(members)
    flow = chord(members, jobs.total.s()).enqueue()
    for done in (20, 50, 80):
        one = worker("default")
        eventually(lambda done=done: flow.progress.done >= done, timeout=60)
        family = [*psutil.Process(one.pid).children(recursive=True), psutil.Process(one.pid)]
        chance.shuffle(family)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        one.wait(20)
    worker("default")
    eventually(lambda: flow.status is FlowStatus.FINISHED, timeout=60)
    assert flow.result == sum(range(120)) and redis.get("totals") == b"1"
    assert flow.progress == (121, 0, 121) and not audit.audit(redis).breaches


@pytest.mark.parametrize("dies_before", ["store 1", "store 2", "store 3", "release 1", "release 2"])
def test_a_process_that_dies_while_it_enqueues_leaves_all_or_nothing(redis, dies_before):
    """It dies before one of its steps. A flow that is not stored completely never runs."""
    child = os.fork()
    if not child:
        _die_before(dies_before)
        with contextlib.suppress(BaseException):
            chord(rqjobs.map(jobs.double, range(450)), jobs.total.s()).enqueue()
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    queued = redis.llen("rq:queue:default")
    assert queued == (200 if dies_before == "release 2" else 0)
    sweep.sweep(redis, force=True)
    if dies_before == "release 2":
        ids = redis.lrange("rq:queue:default", 0, -1)
        (key,) = redis.keys("rqjobs:flow-jobs:*")
        assert ids == redis.lrange(key, 0, 449) and not redis.exists(keys.HELD_FLOWS)
        return
    assert redis.llen("rq:queue:default") == 0
    for flow_id in redis.zrange(keys.HELD_FLOWS, 0, -1):  # a minute passes
        redis.zincrby(keys.HELD_FLOWS, -61, flow_id)
    redis.config_set("maxmemory", 1)
    try:
        broker_flows.sweep(redis, 180)  # a full Redis accepts it
    finally:
        redis.config_set("maxmemory", 0)
    left = [*redis.keys("rq:job:*"), *redis.keys("*flow*"), *redis.keys("rq:deferred:*")]
    assert not left


def _die_before(step):
    """Let this process die before its step "store <n>" or "release <n>"."""
    name, _, number = step.partition(" ")
    steps = {"store": (enqueueing, "enqueue"), "release": (broker_flows, "release_some")}
    module, attribute = steps[name]
    original = getattr(module, attribute)
    calls = []

    def counted(*args):
        calls.append(1)
        if len(calls) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(module, attribute, counted)


def test_an_enqueue_that_fails_leaves_nothing(redis):
    redis.set("rq:queue:low", "not a list")
    members = [*(s(jobs.double, n) for n in range(250)), jobs.add.s(1).set(queue="low")]
    with pytest.raises(connection.redis.ResponseError, match="wrong type"):
        chord(members, jobs.total.s()).enqueue()
    with pytest.raises(TypeError, match="the list of the results"):
        chord([jobs.add.s(1)], s(jobs.no_arguments)).enqueue()
    with pytest.raises(TypeError, match="the result"):
        chain(jobs.add.s(1), s(jobs.no_arguments)).enqueue()
    with pytest.raises(TypeError, match="missing"):
        chain(jobs.add.s()).enqueue()
    with pytest.raises(rqjobs.PayloadError, match="'more'"):
        chain(jobs.add.s(1), jobs.add.s(object())).enqueue()
    with pytest.raises(ValueError, match="has the option unique"):
        chain(jobs.only_one.s(1)).enqueue()
    with pytest.raises(ValueError, match="result_ttl=0"):
        chain(jobs.add.s(1).set(result_ttl=0)).enqueue()
    with pytest.raises(rqjobs.NotAJob):
        chain(s(len, "x")).enqueue()
    assert {*redis.keys("rq:*")} == {b"rq:queue:low", b"rq:queues"}


def test_a_flow_that_was_dropped_takes_no_more_jobs(redis, monkeypatch):
    """Its process was stopped for more than a minute between two steps."""
    original = enqueueing.enqueue

    def pause_after(*args):
        enqueued = original(*args)
        for flow_id in redis.zrange(keys.HELD_FLOWS, 0, -1):
            redis.zincrby(keys.HELD_FLOWS, -61, flow_id)
        sweep.sweep(redis, force=True)
        return enqueued

    monkeypatch.setattr(enqueueing, "enqueue", pause_after)
    with pytest.raises(connection.redis.ResponseError, match="was dropped"):
        chord(rqjobs.map(jobs.double, range(250)), jobs.total.s()).enqueue()
    with pytest.raises(flows.FlowDropped, match="was dropped"):
        chain(jobs.add.s(1)).enqueue()
    assert not redis.keys("rq:job:*") and not redis.keys("*flow*")
