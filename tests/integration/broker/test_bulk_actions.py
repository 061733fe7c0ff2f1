"""Changing many jobs: the right ones, each once, and also after a kill."""

import os
import signal

import pytest
import sample_jobs
from test_job_search import put, stamp

import rqjobs
from rqjobs import bulk_actions, catalog, job_search
from rqjobs.broker import keys, transitions
from rqjobs.bulk_actions import Action, Outcome, change, change_matching
from rqjobs.job_search import Filter, FilterError, State
from rqjobs.maintenance.audit import audit


def states(redis):
    """The number of jobs in each state."""
    counts = job_search._count_places(redis, Filter())
    return {state.value: n for state, n in job_search.sum_states(counts).items() if n}


def test_requeue_by_a_filter_keeps_the_order_and_takes_stopped_jobs(redis):
    for number in range(12):
        put(redis, f"job-{number:02}", "failed", seconds=number, ended_at=stamp(number))
    put(redis, "other", "failed", description="sample_jobs.ok()")
    put(redis, "stopped", "stopped", seconds=50)
    assert change_matching(Action.REQUEUE, Filter(function="add")) == Outcome(13)
    order = [job_id.decode() for job_id in redis.lrange("rq:queue:default", 0, -1)]
    assert order == [*(f"job-{number:02}" for number in range(12)), "stopped"]
    assert states(redis) == {"queued": 13, "failed": 1}


def test_cancel_by_a_filter_in_every_state(redis):
    for number in range(60):
        rqjobs.queue("low").enqueue(sample_jobs.add, number)
    rqjobs.enqueue_in(60, sample_jobs.add, 1)
    parent = rqjobs.enqueue(sample_jobs.ok)
    rqjobs.enqueue(sample_jobs.add, 2, depends_on=parent)
    put(redis, "running", "running")
    put(redis, "done", "finished")
    assert change_matching(Action.CANCEL, Filter(function="add")) == Outcome(63)
    # A job that runs stays there until its worker drops its outcome.
    assert states(redis) == {"queued": 1, "running": 1, "finished": 1, "canceled": 63}
    assert redis.hget(keys.job("running"), "status") == b"canceled"
    assert redis.lrange("rq:queue:low", 0, -1) == []


def test_cancel_leaves_the_other_jobs_of_a_queue_in_their_order(redis):
    for number in range(3000):
        put(redis, f"job-{number:04}", "queued", description=f"add({number % 3})")
    assert change_matching(Action.CANCEL, Filter(text="add(1)")) == Outcome(1000)
    left = [int(job_id[4:]) for job_id in redis.lrange("rq:queue:default", 0, -1)]
    assert left == [number for number in range(3000) if number % 3 != 1]
    assert set(redis.zrange("rq:canceled:default", 0, -1)) == {
        b"job-%04d" % number for number in range(1, 3000, 3)
    }


def test_cancel_frees_unique_keys(redis):
    job = rqjobs.enqueue(sample_jobs.unique_args, 5)
    assert change(Action.CANCEL, [job.id]) == 1
    assert rqjobs.enqueue(sample_jobs.unique_args, 5).id != job.id


@pytest.mark.parametrize("state", [State.FINISHED, State.FAILED, State.STOPPED, State.CANCELED])
def test_delete_takes_all_that_belongs_to_a_job(redis, state):
    for number in range(3):
        put(redis, f"job-{number}", state.value, seconds=number)
        redis.xadd(keys.results(f"job-{number}"), {"type": 1})
    assert change(Action.DELETE, ["job-0", "job-1", "nothing"]) == 2
    assert change_matching(Action.DELETE, Filter(state=state)) == Outcome(1)
    assert redis.keys("rq:job*") == redis.keys("rq:results*") == []
    assert states(redis) == {}


def test_an_action_leaves_jobs_in_other_states_alone(redis):
    for state in State:
        put(redis, state.value, state.value)
    before = states(redis)
    assert change(Action.REQUEUE, ["queued", "finished", "canceled", "running"]) == 0
    assert change(Action.CANCEL, ["failed", "finished", "canceled", "stopped"]) == 0
    assert change(Action.DELETE, ["queued", "running", "scheduled", "deferred"]) == 0
    assert states(redis) == before


def test_failed_jobs_without_a_record_are_deleted_too(redis):
    put(redis, "gone", "failed")
    redis.delete(keys.job("gone"))
    put(redis, "odd", "failed")
    redis.delete(keys.job("odd"))
    redis.set(keys.job("odd"), "text")
    assert change_matching(Action.DELETE, Filter(state=State.FAILED)).changed
    assert states(redis) == {} and redis.keys("rq:job:*") == []


def test_jobs_that_come_later_are_left_alone(redis):
    put(redis, "old", "failed", ended_at=stamp(0))
    chosen = bulk_actions.until_now(Filter(state=State.FAILED))
    put(redis, "new", "failed", ended_at="2999-01-01T00:00:00.000000Z")
    assert list(bulk_actions.Walk(redis, Action.DELETE, chosen).changes()) == [1]
    assert states(redis) == {"failed": 1}


def test_arguments_that_are_no_filter_are_refused(redis):
    for arguments in (("explode", {}), ("delete", {"stat": "failed"}), ("delete", [])):
        with pytest.raises(ValueError):
            bulk_actions.change_jobs(*arguments)
    with pytest.raises(FilterError):
        bulk_actions.change_jobs("delete", {"state": "all"})


def test_the_job_is_allowed_but_no_form_offers_it():
    name = "rqjobs.bulk_actions.change_jobs"
    assert catalog.current().lookup(name) is bulk_actions.change_jobs
    assert name not in catalog.current().functions
    with pytest.raises(catalog.NotAJob):
        catalog.current().lookup("rqjobs.bulk_actions.change")


def test_a_deletion_that_has_ended_is_not_continued(redis, worker, eventually):
    """A user with the role operate could requeue a deletion that an admin had stopped."""
    put(redis, "kept", "failed", ended_at=stamp(1))
    job_id = bulk_actions.enqueue_change(Action.DELETE, Filter(job_id="kept"))
    data = redis.hget(keys.job(job_id), "data")
    redis.hset(keys.job(job_id), "data", data.replace(b"kept", b"a\\nb"))  # it fails first
    worker("high")
    job = rqjobs.Job.fetch(job_id, connection=redis)
    eventually(lambda: job.get_status() == "failed", what="the first failure")
    redis.hset(keys.job(job_id), "data", data)
    transitions.requeue(redis, job_id)
    eventually(lambda: redis.xlen(keys.results(job_id)) == 2, what="the second run")
    assert "choose the jobs again" in job.latest_result().exc_string
    assert redis.exists(keys.job("kept"))


def test_many_jobs_are_changed_by_a_job_that_survives_a_kill(
    redis, worker, eventually, monkeypatch
):
    with redis.pipeline() as pipe:
        for number in range(5000):
            put(pipe, f"job-{number:04}", "failed", seconds=number, ended_at=stamp(number))
        pipe.execute()
    outcome = change_matching(Action.REQUEUE, Filter(state=State.FAILED))
    assert outcome.changed == 0 and redis.lindex("rq:queue:high", 0).decode() == outcome.job_id
    process = worker("high")
    eventually(lambda: redis.llen("rq:queue:default") > 500, what="the first jobs")
    os.killpg(process.pid, signal.SIGKILL)
    worker("high")
    job = rqjobs.Job.fetch(outcome.job_id, connection=redis)
    eventually(lambda: job.get_status().value == "finished", what="the end of the bulk job")
    assert states(redis) == {"queued": 5000, "finished": 1}
    order = redis.lrange("rq:queue:default", 0, -1)
    assert len(set(order)) == 5000 and audit(redis).breaches == {}
    progress = rqjobs.Job.fetch(outcome.job_id, connection=redis).progress
    assert progress.done == progress.total > 0
