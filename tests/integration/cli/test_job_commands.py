"""`rqjobs jobs`, `show`, `stop` and `cancel`."""

import json

import pytest
import sample_jobs
from click.testing import CliRunner
from rq.worker import SimpleWorker

import rqjobs
from rqjobs import cli


@pytest.fixture
def run(redis):
    """Run a command in this process; returns (exit code, output)."""

    def go(*words, **options):
        result = CliRunner().invoke(cli.main, words, **options)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.output

    return go


def fail(redis, *messages):
    jobs = [rqjobs.enqueue(sample_jobs.boom, message) for message in messages]
    SimpleWorker([rqjobs.queue("default")], connection=redis).work(burst=True)
    return jobs


def test_jobs_are_listed_by_filters(run, redis):
    assert run("jobs") == (0, "no such jobs\n")
    failed = fail(redis, "one \x1b[31m")[0]
    jobs = [rqjobs.enqueue(sample_jobs.add, number, 42) for number in range(30)]
    code, output = run("jobs")
    assert code == 0 and "the first 20; for more there is --limit" in output
    assert output.splitlines()[0].startswith(jobs[-1].id) and "\x1b" not in output
    code, output = run("jobs", "--text", "add(7,", "--since", "1h")
    assert output.startswith(f"{jobs[7].id}  queued  default  ") and output.count("\n") == 1
    code, output = run("jobs", "--state", "failed", "--json")
    (found,) = json.loads(output)
    assert (found["id"], found["state"], found["function"]) == (
        failed.id,
        "failed",
        "sample_jobs.boom",
    )
    assert found["ended_at"].endswith("+00:00")
    assert len(json.loads(run("jobs", "--json", "-n", "100")[1])) == 31
    for wrong in (("--state", "odd"), ("--since", "soon"), ("--text", "x" * 300)):
        assert run("jobs", *wrong)[0] == 2


def test_found_jobs_are_changed(run, redis):
    fail(redis, "one", "two", "three")
    assert run("jobs", "requeue")[0] == 2
    assert run("jobs", "requeue", "--all", "--state", "failed")[0] == 2
    code, output = run("jobs", "--state", "failed", "requeue", "--text", "one")
    assert code == 0 and "1 job is back in its queue" in output
    assert "1 job is canceled" in run("jobs", "cancel", "--function", "boom")[1]
    assert run("jobs", "delete", "--all", input="n\n")[0] == 1
    assert redis.zcard("rq:failed:default") == 2
    assert "3 jobs are deleted" in run("jobs", "delete", "--all", "--yes")[1]
    assert redis.keys("rq:job:*") == []


def test_one_job_is_shown(run, redis):
    job = fail(redis, "reason")[0]
    code, output = run("show", job.id)
    assert code == 0 and "sample_jobs.boom('reason')" in output
    assert "ValueError: reason" in output and "failed" in output
    shown = json.loads(run("show", job.id, "--json")[1])
    assert shown["status"] == "failed" and "reason" in shown["traceback"]
    assert len(shown["attempts"]) == 1
    code, output = run("show", "nothing")
    assert code == 1 and "No such job: nothing" in output
    redis.hset(job.key, mapping={"created_at": b"\xff", "data": b"\xff"})
    redis.delete(f"rq:results:{job.id}")
    redis.set(f"rq:results:{job.id}", "text")
    assert run("show", job.id)[0] == 0


def test_jobs_are_canceled_and_stopped_by_id(run, redis, worker, eventually, tmp_path):
    job = rqjobs.enqueue(sample_jobs.ok)
    later = rqjobs.enqueue_in(60, sample_jobs.ok)
    assert run("cancel", job.id, later.id)[0] == 0
    assert job.get_status() == later.get_status() == "canceled"
    code, output = run("cancel", job.id, "nothing")
    assert code == 1 and "cannot be canceled; it is canceled" in output
    for command in (["cancel"], ["stop"], ["show"], ["logs"], ["failed", "show"]):
        code, output = run(*command, "nothing")
        assert code == 1 and "No such job: nothing" in output, command
    assert "does not run; it is canceled" in run("stop", job.id)[1]
    worker("default")
    hanging = rqjobs.enqueue(sample_jobs.hang, str(tmp_path / "gate"))
    eventually(lambda: hanging.get_status() == "started", what="the start")
    assert run("stop", hanging.id)[0] == 0
    eventually(lambda: hanging.get_status() == "stopped", what="the stop")
    assert "stopped" in run("show", hanging.id)[1].split("\n", 3)[-1]
    assert "failed" not in run("show", hanging.id)[1]
