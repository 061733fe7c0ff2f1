"""Paused queues and functions: what waits, what goes on, and that nothing is lost."""

from __future__ import annotations

import random

import pytest
import sample_jobs
from helpers import claim
from rq.job import JobStatus
from rq.suspension import suspend

import rqjobs
from rqjobs import NotAJob, stats
from rqjobs.broker import keys, leases, pauses, scripts
from rqjobs.maintenance import audit, doctor, sweep
from rqjobs.web import create_app


def blocked_pops(redis):
    """The number of connections that wait for a job."""
    clients = redis.client_list()
    return sum(client["cmd"] == "blmove" and "b" in client["flags"] for client in clients)


def lease(redis, *workers):
    for worker in workers:
        leases.renew_lease(redis, worker, {"pid": 1}, False)


def test_a_paused_queue_is_skipped_and_its_jobs_keep_their_order(redis):
    jobs = [rqjobs.queue("low").enqueue(sample_jobs.mark, "order") for _ in range(3)]
    other = rqjobs.enqueue(sample_jobs.ok)
    assert rqjobs.pause(queue="low", by="ada") and not rqjobs.pause(queue="low")
    worker = rqjobs.Worker(["low", "default"])
    assert worker.work(burst=True, logging_level="WARNING"), "the burst ends with paused jobs left"
    assert other.is_finished and rqjobs.queue("low").job_ids == [job.id for job in jobs]
    (pause,) = rqjobs.paused()
    assert (pause.kind, pause.name, pause.by) == ("queue", "low", "ada")
    assert pause.since == pytest.approx(scripts.redis_time(redis), abs=60)
    assert rqjobs.resume(queue="low") and not rqjobs.resume(queue="low")
    worker.work(burst=True, logging_level="WARNING")
    assert redis.lrange("order", 0, -1) == [job.id.encode() for job in jobs]


def test_a_job_that_a_pop_delivers_from_a_paused_queue_returns_to_the_front(redis):
    first, second = (rqjobs.enqueue(sample_jobs.ok, number) for number in range(2))
    lease(redis, "w")
    redis.lmove("rq:queue:default", keys.claims("w"), "LEFT", "RIGHT")  # as BLMOVE does
    rqjobs.pause(queue="default")
    assert claim(redis, "w", ["default"]) == []
    assert rqjobs.queue("default").job_ids == [first.id, second.id]
    assert not redis.exists(keys.claims("w")) and first.get_status() == JobStatus.QUEUED
    assert not audit.audit(redis, settle=0).breaches


def test_a_lost_reply_to_a_claim_before_the_pause_loses_no_job(redis):
    job = rqjobs.enqueue(sample_jobs.ok)
    lease(redis, "w")
    (lost,) = claim(redis, "w", ["default"])
    rqjobs.pause(queue="default")
    assert claim(redis, "w", ["default"]) == []
    assert rqjobs.queue("default").job_ids == [job.id]
    rqjobs.resume(queue="default")
    (again,) = claim(redis, "w", ["default"])
    assert again.job_id == job.id and again.token != lost.token
    assert not audit.audit(redis, settle=0).breaches


def test_an_idle_worker_notices_a_pause_and_its_end(worker, redis, eventually):
    process = worker("default", "low")
    eventually(lambda: blocked_pops(redis) == 2)
    rqjobs.pause(queue="low")
    eventually(lambda: blocked_pops(redis) == 1, what="no wait on the paused queue")
    low = rqjobs.queue("low").enqueue(sample_jobs.ok)
    other = rqjobs.enqueue(sample_jobs.ok)
    eventually(lambda: other.is_finished)
    assert low.get_status() == JobStatus.QUEUED
    rqjobs.resume(queue="low")
    eventually(lambda: low.is_finished, timeout=5)
    assert process.poll() is None, process.output()


def test_a_worker_whose_queues_are_all_paused_goes_on_after_the_end(worker, redis, eventually):
    rqjobs.pause(queue="default")
    process = worker("default")
    job = rqjobs.enqueue(sample_jobs.ok)
    eventually(lambda: redis.hget(process.key, "state") == b"idle")
    assert job.get_status() == JobStatus.QUEUED
    rqjobs.resume(queue="default")
    eventually(lambda: job.is_finished)


def test_a_running_job_of_a_paused_queue_ends(worker, redis, eventually):
    job = rqjobs.enqueue(sample_jobs.hang, "gate")
    worker()
    eventually(lambda: redis.llen("gate:reached") == 1)
    rqjobs.pause(queue="default")
    redis.rpush("gate:open", 1)
    eventually(lambda: job.is_finished)


def test_pauses_and_kills_lose_no_job(worker, redis, eventually, kill):
    """Workers are killed while two queues are paused and resumed again and again."""
    names = ("default", "low")
    jobs = [
        rqjobs.queue(names[number % 2]).enqueue(sample_jobs.nap, 0.005) for number in range(300)
    ]
    processes = [worker(*names) for _ in range(2)]
    for turn in range(6):
        rqjobs.pause(queue=names[turn % 2])
        kill(processes.pop(0).pid)
        processes.append(worker(*names))
        jobs += rqjobs.enqueue_many([(sample_jobs.nap, 0.001)] * 5)
        if random.random() < 0.5:
            rqjobs.resume(queue=names[turn % 2])
    rqjobs.pause(queue="low")
    for name in names:
        rqjobs.resume(queue=name)
    eventually(lambda: all(job.is_finished for job in jobs), timeout=60)
    assert not audit.audit(redis, settle=0.5).breaches


def test_the_doctor_and_stats_name_pauses_and_how_to_end_them(redis):
    rqjobs.pause(queue="low", by="ada")
    rqjobs.pause(function=sample_jobs.ok)
    suspend(redis)
    messages = [finding.message for finding in doctor.examine()]
    assert stats.SUSPENDED in messages
    (queue,) = [message for message in messages if "rqjobs resume low" in message]
    assert "by ada" in queue
    assert any("rqjobs resume --function sample_jobs.ok" in message for message in messages)
    assert [pause.name for pause in stats.snapshot(redis).paused] == ["low", "sample_jobs.ok"]


def test_bad_input_is_refused_and_nothing_is_stored(redis):
    with pytest.raises(NotAJob, match="defines no such function"):
        rqjobs.pause(function="sample_jobs.nothing")
    with pytest.raises(ValueError, match="not a name for a queue"):
        rqjobs.pause(queue="a queue")
    for wrong in ({}, {"queue": "low", "function": sample_jobs.ok}):
        with pytest.raises(TypeError, match="one of the two"):
            rqjobs.pause(**wrong)
        with pytest.raises(TypeError, match="one of the two"):
            rqjobs.resume(**wrong)
    assert not redis.exists(keys.PAUSED) and rqjobs.paused() == []


def test_foreign_data_in_the_pauses_stops_nothing(redis):
    redis.hset(keys.PAUSED, mapping={b"\xff": b"\xff", "queue:low": "soon", "nonsense": "1"})
    (pause,) = rqjobs.paused()
    assert pause.describe().startswith("The queue `low` is paused: ")
    job = rqjobs.enqueue(sample_jobs.ok)
    rqjobs.Worker(["default", "low"]).work(burst=True, logging_level="WARNING")
    assert job.is_finished
    redis.delete(keys.PAUSED)
    redis.set(keys.PAUSED, "foreign")
    assert rqjobs.paused() == []
    job = rqjobs.enqueue(sample_jobs.ok)
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    assert job.is_finished


# Functions


def run(*queues, **options):
    options = {"logging_level": "WARNING", **options}
    rqjobs.Worker(queues or ["high", "default", "low"]).work(burst=True, **options)


def test_jobs_of_a_paused_function_wait_and_return_to_the_front_in_order(redis):
    marks = [rqjobs.queue("low").enqueue(sample_jobs.mark, "order") for _ in range(5)]
    other = rqjobs.queue("low").enqueue(sample_jobs.ok)
    rqjobs.pause(function=sample_jobs.mark)
    run()
    assert other.is_finished and not redis.exists("order")
    assert {job.get_status() for job in marks} == {JobStatus.DEFERRED}
    assert set(rqjobs.queue("low").deferred_job_registry.get_job_ids()) == {job.id for job in marks}
    found = audit.audit(redis, settle=0)
    assert not found.breaches and not found.remarks
    later = rqjobs.queue("low").enqueue(sample_jobs.mark, "order")
    assert rqjobs.resume(function=sample_jobs.mark)
    assert rqjobs.queue("low").job_ids == [job.id for job in (*marks, later)]
    assert not redis.exists(keys.PAUSED_JOBS, keys.paused_jobs("sample_jobs.mark"))
    run()
    assert redis.lrange("order", 0, -1) == [job.id.encode() for job in (*marks, later)]
    assert not redis.hexists(marks[0].key, "rqjobs_paused")


def test_a_waiting_job_can_be_canceled_deleted_and_enqueued_again(redis):
    rqjobs.pause(function="sample_jobs.mark")
    canceled, deleted, again, left = (rqjobs.enqueue(sample_jobs.mark, "ran") for _ in range(4))
    run()
    canceled.cancel()
    deleted.delete()
    rqjobs.queue("high").enqueue(sample_jobs.ok, job_id=again.id)
    run()
    assert rqjobs.Job.fetch(again.id, connection=redis).is_finished
    rqjobs.resume(function="sample_jobs.mark")
    run()
    assert redis.lrange("ran", 0, -1) == [left.id.encode()]
    assert not audit.audit(redis, settle=0).breaches


def test_a_job_whose_parents_have_ended_is_not_called_blocked(redis, client_of_pages):
    parent = rqjobs.enqueue(sample_jobs.ok)
    child = rqjobs.enqueue(sample_jobs.mark, "ran", depends_on=parent)
    rqjobs.pause(function="sample_jobs.mark")
    run()
    assert child.get_status() == JobStatus.DEFERRED
    assert not audit.audit(redis, settle=0).remarks
    assert "<code>rqjobs resume --function sample_jobs.mark</code>" in client_of_pages(child)


@pytest.fixture
def client_of_pages():
    """The page of a job, for an admin."""

    def page(job):
        rqjobs.config.use(admin_password="correct horse", secret_key="k" * 32)
        client = create_app().test_client()
        client.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
        client.post("/login", data={"user": "admin", "password": "correct horse"})
        return client.get(f"/jobs/{job.id}").text

    return page


def test_a_sweep_goes_on_with_a_resume_that_died(redis):
    jobs = rqjobs.enqueue_many([(sample_jobs.mark, "order") for _ in range(3)])
    rqjobs.pause(function="sample_jobs.mark")
    run()
    redis.hdel(keys.PAUSED, keys.paused_function("sample_jobs.mark"))  # and no further
    sweep.sweep(redis, force=True)
    assert rqjobs.queue("default").job_ids == [job.id for job in jobs]
    assert not audit.audit(redis, settle=0).breaches


def test_a_resume_moves_many_jobs_in_steps_and_in_order(redis, monkeypatch):
    jobs = rqjobs.enqueue_many([(sample_jobs.mark, "order") for _ in range(25)])
    rqjobs.pause(function="sample_jobs.mark")
    run()
    monkeypatch.setattr(pauses, "BATCH_MAX_JOBS", 10)
    rqjobs.resume(function="sample_jobs.mark")
    assert rqjobs.queue("default").job_ids == [job.id for job in jobs]


def test_a_job_that_is_claimed_before_the_resume_runs_or_returns(redis):
    """The horse parks it after the resume: then there is no pause any more, and the job runs."""
    job = rqjobs.enqueue(sample_jobs.mark, "ran")
    lease(redis, "w")
    (claimed,) = claim(redis, "w", ["default"])
    command = pauses.park_command("w", claimed, "sample_jobs.mark")
    redis.script_load(scripts.PARK_PAUSED.source)
    assert redis.execute_command(*command) == b"not paused"
    assert job.get_status() == JobStatus.STARTED
    rqjobs.pause(function="sample_jobs.mark")
    assert redis.execute_command(*command) == b"parked"
    assert redis.execute_command(*command) == b"refused", "asked again, it changes nothing"
    assert redis.llen(keys.paused_jobs("sample_jobs.mark")) == 1
    assert not audit.audit(redis, settle=0).breaches


def test_kills_while_functions_are_paused_and_resumed_lose_no_job(worker, redis, eventually, kill):
    jobs = rqjobs.enqueue_many(
        [
            (function, *arguments)
            for _ in range(100)
            for function, *arguments in ((sample_jobs.nap, 0.003), (sample_jobs.mark, "ran"))
        ]
    )
    processes = [worker() for _ in range(2)]
    for _ in range(5):
        rqjobs.pause(function="sample_jobs.nap")
        kill(processes.pop(0).pid)
        processes.append(worker())
        if random.random() < 0.7:
            rqjobs.resume(function="sample_jobs.nap")
    rqjobs.resume(function="sample_jobs.nap")
    eventually(lambda: all(job.is_finished for job in jobs), timeout=60)
    assert set(redis.lrange("ran", 0, -1)) == {
        job.id.encode() for job in jobs if job.func_name == "sample_jobs.mark"
    }
    assert not audit.audit(redis, settle=0.5).breaches


def test_a_job_with_a_limit_frees_its_slot_when_it_waits_for_its_function(redis):
    first, second = (rqjobs.enqueue(sample_jobs.strange, limit=1) for _ in range(2))
    rqjobs.pause(function="sample_jobs.strange")
    run()
    assert {first.get_status(), second.get_status()} == {JobStatus.DEFERRED}
    rqjobs.resume(function="sample_jobs.strange")
    run()
    assert first.is_finished and second.is_finished
    assert not redis.keys("rqjobs:slots*")
