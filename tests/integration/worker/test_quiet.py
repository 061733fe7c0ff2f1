"""A quiet worker finishes its jobs, and takes no more until it is resumed."""

from __future__ import annotations

import signal

import sample_jobs
from click.testing import CliRunner

import rqjobs
from rqjobs import stats, worker_commands
from rqjobs.cli import main


def shown(redis, name):
    (found,) = (one for one in stats.snapshot(redis).workers if one.name == name)
    return found


def test_a_quiet_worker_ends_its_job_and_takes_no_more(redis, worker, eventually):
    process = worker("default")
    running = rqjobs.enqueue(sample_jobs.hang, "gate")
    eventually(lambda: running.get_status() == "started", what="the job")
    assert worker_commands.quiet(process.name)

    def at_work_and_quiet():  # the parent writes the job, the horse that it is quiet
        found = shown(redis, process.name)
        return (
            found.shown_state == "quiet" and found.job_id == running.id and found.memory and found
        )

    found = eventually(at_work_and_quiet, what="the state")
    assert found.alive
    assert found.memory > 1e6 and found.horse_memory > 1e6 and found.horse_pid
    assert found.rqjobs_version == rqjobs.__version__ and 0 < found.lease <= 21
    redis.lpush("gate:open", 1)
    eventually(lambda: running.get_status() == "finished", what="the end of the job")
    state = redis.hget
    eventually(lambda: state(process.key, "state") == b"suspended", what="the quiet horse")

    others = [rqjobs.enqueue(sample_jobs.ok) for _ in range(20)]
    rqjobs.Worker(["default"], name="other").work(burst=True, logging_level="CRITICAL")
    assert {redis.hget(job.key, "worker_name") for job in others} == {b"other"}
    left = rqjobs.enqueue(sample_jobs.ok)
    assert worker_commands.resume(process.name)
    eventually(lambda: left.get_status() == "finished", what="the resumed worker")
    eventually(lambda: shown(redis, process.name).quiet_since == 0, what="the end of the state")
    assert redis.hget(left.key, "worker_name").decode() == process.name

    eventually(lambda: state(process.key, "state") == b"idle", what="the end of the state, for RQ")
    worker_commands.quiet(process.name)
    eventually(lambda: state(process.key, "state") == b"suspended", what="the quiet horse")
    waiting = rqjobs.enqueue(sample_jobs.ok)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert waiting.get_status() == "queued" and redis.llen("rq:queue:default") == 1
    eventually(lambda: not worker_commands.quiet(process.name), what="that nobody listens")


def test_a_new_horse_of_a_quiet_worker_is_quiet_too(redis, worker, eventually, kill):
    process = worker("default")
    horse = eventually(lambda: shown(redis, process.name).horse_pid, what="the horse")
    worker_commands.quiet(process.name)
    eventually(lambda: shown(redis, process.name).shown_state == "quiet", what="the state")
    kill(horse)
    new = lambda: shown(redis, process.name).horse_pid not in (0, horse)  # noqa: E731
    eventually(new, what="another horse")
    job = rqjobs.enqueue(sample_jobs.ok)
    rqjobs.Worker(["default"], name="other").work(burst=True, logging_level="CRITICAL")
    assert redis.hget(job.key, "worker_name") == b"other"
    redis.publish(f"rq:pubsub:{process.name}", "[]")
    listed = CliRunner().invoke(main, ["workers"]).output
    assert f"{process.name}  quiet" in listed
    done = CliRunner().invoke(main, ["workers", "resume", "nobody", process.name])
    assert done.exit_code == 1 and f"{process.name}: takes jobs again" in done.output
    assert "nobody: no worker of this name listens" in done.output
    assert CliRunner().invoke(main, ["workers", "stop"]).exit_code == 2
    assert CliRunner().invoke(main, ["workers", "quiet", "--all"]).exit_code == 0
    redis.publish(f"rq:pubsub:{process.name}", '{"command": "shutdown"}')
    assert process.wait(20) == 0
