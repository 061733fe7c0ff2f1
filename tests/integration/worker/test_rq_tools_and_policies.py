"""RQ's command line and rq-dashboard beside the policies: nothing is lost, and no slot leaks."""

from __future__ import annotations

import subprocess
import sys

import helpers
import pytest
import rq
import sample_jobs
from flask import Flask
from rq.job import JobStatus

import rqjobs
from rqjobs.broker import keys, recovery
from rqjobs.maintenance import audit
from rqjobs.web import rq_dashboard

TWO = "sample_jobs.two_at_a_time"


@pytest.fixture
def rq_command(server, environ):
    """Run a command of plain RQ; returns what it prints."""

    def run(*arguments):
        command = [sys.executable, "-m", "rq.cli", *arguments, "--url", server]
        return subprocess.check_output(command, env=environ, text=True, stderr=subprocess.STDOUT)

    return run


@pytest.fixture
def broker(redis):
    """Two jobs run, three wait for their limit."""
    broker = helpers.Broker(redis)
    broker.ids = [rqjobs.enqueue(sample_jobs.two_at_a_time, number).id for number in range(5)]
    broker.claim("a", 2)
    broker.claim("b")
    return broker


def run_all(broker):
    """Let the workers claim and settle until nothing is left; returns the ids in order."""
    done = []
    for _ in range(20):
        recovery.check_waiting(broker.redis)
        for job_id in broker.claim("b", 10) + list(broker.claims["a"]):
            worker = "a" if job_id in broker.claims["a"] else "b"
            if broker.settle(job_id, worker) == "settled":
                done.append(job_id)
    assert not broker.redis.keys("rqjobs:slots*") and not broker.redis.keys("rqjobs:waiting*")
    found = audit.audit(broker.redis, 0)
    assert not found.breaches and not found.remarks
    return done


def test_rq_info_suspend_and_resume(broker, rq_command):
    assert "default" in rq_command("info", "--raw")
    rq_command("suspend")
    with pytest.raises(rqjobs.broker.transitions.Suspended):
        broker.claim("b")
    broker.settle(broker.ids[0])  # wakes the next one, which nobody claims
    rq_command("resume")
    assert sorted(run_all(broker)) == sorted(broker.ids[1:])


def test_rq_empty_takes_a_woken_job_and_the_others_go_on(broker, rq_command):
    broker.settle(broker.ids[0])
    assert rqjobs.queue("default").job_ids == broker.ids[2:3]
    rq_command("empty", "default")
    assert sorted(run_all(broker)) == sorted([broker.ids[1], *broker.ids[3:]])
    assert not broker.redis.exists(keys.job(broker.ids[2]))


def test_rq_requeue_keeps_the_limit_and_does_not_let_a_failed_job_expire(broker, rq_command):
    late = rqjobs.enqueue(sample_jobs.ok, expires=60)
    assert broker.claim("c", 10) == [late.id]
    broker.redis.hset(late.key, "ended_at", "")
    broker.settle(late.id, "c", "failed")
    for job_id in broker.ids[:2]:
        broker.settle(job_id, "a", "failed")
    rq_command("requeue", "--queue", "default", "--all")
    assert sorted(run_all(broker)) == sorted([*broker.ids, late.id])


@pytest.mark.parametrize("tool", ["cancel", "delete", "enqueue", "requeue"])
def test_plain_rq_ends_the_wait_of_a_job(broker, tool):
    """With plain RQ's classes, which do not know what the job waits for."""
    plain = rq.job.Job.fetch(
        broker.ids[2], connection=broker.redis, serializer=rq.serializers.JSONSerializer
    )
    queue = rq.Queue("default", connection=broker.redis, serializer=rq.serializers.JSONSerializer)
    if tool in ("cancel", "delete"):
        getattr(plain, tool)()
    elif tool == "enqueue":
        queue.enqueue_job(plain)
    else:
        queue.deferred_job_registry.requeue(plain.id)
    left = {"cancel": [2], "delete": [2]}.get(tool, [])
    expected = [job_id for number, job_id in enumerate(broker.ids) if number not in left]
    assert sorted(run_all(broker)) == sorted(expected)


def test_the_dashboard_deletes_and_requeues(broker):
    application = Flask("host", static_folder=None)
    rq_dashboard.mount(application, "")
    client = application.test_client()
    redis = broker.redis
    expired = rqjobs.enqueue(sample_jobs.ok, expires=60)
    redis.hset(expired.key, "rqjobs_expires", "1")
    broker.claim("c")
    discarded = rqjobs.enqueue(sample_jobs.unique_args, 1)
    broker.claim("c")
    broker.settle(discarded.id, "c", "failed")
    assert expired.get_status() == JobStatus.CANCELED
    for path in (
        f"job/{broker.ids[2]}/delete",
        f"job/{discarded.id}/requeue",
        f"job/{expired.id}/delete",
        "queue/default/deferred/empty",
    ):
        reply = client.post(f"/rq/{path}")
        assert reply.status_code in (200, 302, 303), (path, reply.status_code)
    assert set(run_all(broker)) == {*broker.ids[:2], discarded.id}
