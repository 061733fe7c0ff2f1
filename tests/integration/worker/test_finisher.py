"""Callbacks and handlers after a job's end run in a child with a time limit, not in the parent."""

from __future__ import annotations

import itertools
import socket

import psutil
import pytest
import sample_jobs
from click.testing import CliRunner
from rq.command import send_command, send_stop_job_command
from rq.job import JobStatus
from rq.webhook import Webhook

import rqjobs
from rqjobs import Callback, cli, stats
from rqjobs.broker import keys, leases, transitions
from rqjobs.maintenance import audit

QUICK = {"SAMPLE_JOBS_BEAT": "0.5", "RQJOBS_SHUTDOWN_TIMEOUT": "1"}


@pytest.fixture
def dead_host():
    """A host that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


def longest_silence(redis, process, eventually):
    """The longest time between renewals of the lease while a callback hangs, in seconds."""
    leases = []

    def renewed():
        lease = redis.zscore(keys.LEASES, process.name)
        if lease not in leases:
            leases.append(lease)
        assert not redis.exists("over"), f"it did not hang long enough: {leases}"
        return len(leases) > 6

    eventually(renewed, what="the lease")
    silence = max(later - sooner for sooner, later in itertools.pairwise(leases))
    print(f"longest silence: {silence:.2f} s")
    return silence


def stopped(redis, eventually, dead_host):
    job = rqjobs.enqueue(
        sample_jobs.hang, "gate", on_stopped=Callback(sample_jobs.hang_in_callback, timeout=1)
    )
    eventually(lambda: redis.llen("gate:reached") == 1)
    send_stop_job_command(redis, job.id, serializer=job.serializer)
    eventually(lambda: redis.exists("hanging"), what="the callback")
    return job, JobStatus.STOPPED


def late(redis, eventually, dead_host):
    job = rqjobs.enqueue(
        sample_jobs.stubborn,
        60,
        job_timeout=1,
        webhooks=[Webhook(dead_host, "failed", timeout=60) for _ in range(4)],
    )
    eventually(lambda: job.get_status() == JobStatus.FAILED)
    return job, JobStatus.FAILED


def killed(redis, eventually, dead_host):
    job = rqjobs.enqueue(sample_jobs.kill_self)
    eventually(lambda: redis.exists("hanging"), what="the handler")
    return job, None


@pytest.mark.parametrize("end", [stopped, late, killed])
def test_lease_is_renewed_while_a_callback_or_handler_hangs(
    worker, redis, eventually, dead_host, end
):
    """The parent ran the callbacks once: its lease expired, and a stopped job ran elsewhere."""
    rqjobs.config.use(webhook_hosts=("127.0.0.1",))
    process = worker(
        "default",
        worker_class="sample_jobs.WithHandler",
        env={**QUICK, "RQJOBS_WEBHOOK_HOSTS": "127.0.0.1"},
    )
    job, status = end(redis, eventually, dead_host)
    assert (
        longest_silence(redis, process, eventually) < leases.LEASE_SECONDS / 2
    )  # under 2 s unless the machine is busy
    following = rqjobs.enqueue(sample_jobs.ok)
    eventually(lambda: following.is_finished, what="the next job")
    assert status is None or job.get_status() == status
    assert process.poll() is None and not redis.exists("over")


def test_lease_is_renewed_while_a_log_handler_hangs(worker, redis, eventually, tmp_path, environ):
    """A job module may send log lines to a host, the worker's own lines too."""
    (tmp_path / "slow_log.py").write_text(
        "import logging, os, time\n"
        "parent = os.getpid()\n"
        "class Slow(logging.Handler):\n"
        "    def emit(self, record):\n"
        "        if os.getpid() == parent and record.levelno >= logging.WARNING:\n"
        f"            open({str(tmp_path / 'reached')!r}, 'w').close()\n"
        "            time.sleep(60)\n"
        "logging.getLogger().addHandler(Slow())\n"
    )
    process = worker(
        "default",
        env={
            **QUICK,
            "RQJOBS_MODULES": "sample_jobs,slow_log",
            "PYTHONPATH": f"{environ['PYTHONPATH']}:{tmp_path}",
        },
    )
    job = rqjobs.enqueue(sample_jobs.kill_self)
    eventually((tmp_path / "reached").exists)
    assert longest_silence(redis, process, eventually) < leases.LEASE_SECONDS / 2
    eventually(lambda: job.is_failed, what="the third death")
    assert "a log handler took longer than 1 s" in process.output()
    assert f"job {job.id}, which it ran, is" in process.output(), "further lines are not lost"


def test_stopped_callback_that_ignores_its_timeout_is_killed(worker, redis, eventually):
    process = worker("default", env=QUICK)
    stopped(redis, eventually, None)
    eventually(lambda: "ignored its time limit" in process.output())
    eventually(
        lambda: len(psutil.Process(process.pid).children()) == 1,
        what="the end of the callback's process",
    )
    assert not redis.exists("over")


@pytest.mark.parametrize("kind", ["on_success", "on_failure", "handler"])
def test_outcome_is_recorded_when_a_callback_hangs(worker, redis, eventually, kind):
    """The job failed with "ignored its time limit of 180 s", although the limit that was ignored
    was the callback's of 2 s."""
    options = ["--exception-handler", "sample_jobs.hang_in_handler"] if kind == "handler" else []
    process = worker("default", options=options, env={**QUICK, "SAMPLE_JOBS_HANDLER_SECONDS": "1"})
    hanging = {} if kind == "handler" else {kind: Callback(sample_jobs.hang_in_callback, timeout=1)}
    if kind == "on_success":
        job = rqjobs.enqueue(sample_jobs.ok, [1, "two"], **hanging)
        eventually(lambda: job.is_finished, what=process.output)
        assert job.return_value() == [1, "two"]
    else:
        job = rqjobs.enqueue(sample_jobs.boom, "the real reason", **hanging)
        eventually(lambda: job.is_failed, what=process.output)
        assert job.latest_result().exc_string.endswith("ValueError: the real reason\n")
    assert "a callback or handler ignored its time limit" in process.output()
    assert not audit.audit(redis, settle=0.1).breaches and not redis.exists("over")


def test_hanging_webhook_affects_neither_the_job_nor_later_jobs(
    worker, redis, eventually, dead_host
):
    rqjobs.config.use(webhook_hosts=("127.0.0.1",))
    process = worker(
        "default",
        env={**QUICK, "RQJOBS_WEBHOOK_HOSTS": "127.0.0.1", "SAMPLE_JOBS_HANDLER_SECONDS": "1"},
    )
    job = rqjobs.enqueue(
        sample_jobs.mark, "ran", webhooks=[Webhook(dead_host, "finished", timeout=1)]
    )
    failing = rqjobs.enqueue(sample_jobs.boom, webhooks=[Webhook(dead_host, "failed", timeout=1)])
    following = rqjobs.enqueue(sample_jobs.ok)
    eventually(lambda: following.is_finished, what=process.output)
    assert job.is_finished and failing.is_failed and redis.llen("ran") == 1


def test_success_callback_that_raises_fails_the_job_as_in_rq(redis):
    job = rqjobs.enqueue(sample_jobs.ok, on_success=Callback(sample_jobs.boom_in_callback))
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    assert job.is_failed and "ValueError: in the callback" in job.latest_result().exc_string


def test_unreadable_job_can_be_stopped(worker, redis, eventually):
    worker("default", env=QUICK)
    job = rqjobs.enqueue(sample_jobs.hang, "gate")
    eventually(lambda: redis.llen("gate:reached") == 1)
    redis.hset(job.key, "webhooks", "this is no JSON")
    send_stop_job_command(redis, job.id, serializer=job.serializer)
    eventually(lambda: redis.hget(job.key, "status") == b"stopped")
    assert job.latest_result().exc_string == "Job stopped by user, work-horse terminated."
    assert not redis.keys("rqjobs:claims:*") and not redis.exists("rq:wip:default")


def test_stop_of_a_job_with_an_overwritten_hash_does_not_end_the_worker(worker, redis, eventually):
    process = worker("default", env=QUICK)
    job = rqjobs.enqueue(sample_jobs.hang, "gate")
    eventually(lambda: redis.llen("gate:reached") == 1)
    redis.set(job.key, "no hash")
    send_command(redis, process.name, "stop-job", job_id=job.id)
    following = rqjobs.enqueue(sample_jobs.ok)
    eventually(lambda: following.is_finished, what=process.output)
    assert process.poll() is None
    eventually(
        lambda: not redis.keys("rqjobs:claims:*") and not redis.exists("rq:wip:default"),
        what=process.output,
    )


def test_worker_waits_for_the_handler_before_it_ends(redis, monkeypatch):
    monkeypatch.setattr("rqjobs.worker.supervisor.CRASH_DELAY_SECONDS", 60)  # one run
    job = rqjobs.enqueue(sample_jobs.kill_self)
    rqjobs.Worker(["default"], work_horse_killed_handler=sample_jobs.note_killed).work(
        burst=True, logging_level="CRITICAL"
    )
    assert redis.lrange("killed", 0, -1) == [job.id.encode()]


@pytest.fixture
def stopped_and_failed(worker, redis, eventually):
    """A failed job and a stopped one, which is newer."""
    worker("default", env=QUICK)
    failing, job = (
        rqjobs.enqueue(sample_jobs.boom, job_id="failed"),
        rqjobs.enqueue(sample_jobs.hang, "gate", job_id="stopped"),
    )
    eventually(lambda: redis.llen("gate:reached") == 1 and failing.is_failed)
    send_stop_job_command(redis, job.id, serializer=job.serializer)
    eventually(lambda: job.get_status() == JobStatus.STOPPED)
    return job, failing


def counts(redis):
    (queue,) = (queue for queue in stats.snapshot(redis).queues if queue.name == "default")
    return queue.failed, queue.stopped


def test_stopped_job_does_not_count_as_failed(stopped_and_failed, redis):
    """It was counted as failed, and *Requeue all* ran it again."""
    job, failing = stopped_and_failed
    assert [int(redis.hget(key, "failed_job_count")) for key in redis.smembers("rq:workers")] == [1]
    assert counts(redis) == (1, 1)
    assert [one.id for one in stats.recent(redis, "failed", 1)] == [failing.id]
    assert [job_id for _, job_id in transitions.failed_jobs(redis, "default", 1, "newest")] == [
        failing.id
    ]
    run = CliRunner().invoke(cli.main, ["failed", "requeue", "--all"])
    assert (
        run.exit_code == 0 and "1 of 1 done" in run.output and job.get_status() == JobStatus.STOPPED
    )
    assert job.id in job.failed_job_registry, "as in RQ, whose tools look there"
    assert job.requeue().get_status() in (JobStatus.QUEUED, JobStatus.STARTED)
    assert counts(redis)[1] == 0 and not redis.exists("rqjobs:stopped:default")


def test_stopped_job_that_rq_requeued_or_deleted_is_not_counted(stopped_and_failed, redis):
    job, _ = stopped_and_failed
    redis.zrem("rq:failed:default", job.id)
    assert counts(redis)[1] == 0 and redis.exists("rqjobs:stopped:default")
    redis.zadd("rq:failed:default", {job.id: 9e9})
    redis.hset(job.key, "status", "failed")
    assert counts(redis)[1] == 0, "it has failed since"
