"""The commands of `rqjobs`: output and exit codes."""

from __future__ import annotations

import json
import sys
import zlib

import pytest
import sample_jobs
from rq.suspension import suspend

import rqjobs
from rqjobs import config, connection
from rqjobs.maintenance import audit
from rqjobs.maintenance import doctor as doctor_module
from rqjobs.maintenance.doctor import examine


@pytest.fixture
def run(spawn):
    """Run `rqjobs …` in a process; returns (exit code, output)."""

    def go(*arguments, env=None):
        process = spawn(sys.executable, "-m", "rqjobs", *arguments, env=env)
        return process.wait(60), process.output()

    return go


@pytest.fixture
def broken(redis):
    """Three failed jobs, as RQ leaves them."""
    jobs = [rqjobs.enqueue(sample_jobs.boom, f"no {n}") for n in range(3)]
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    return jobs


def test_help_lists_and_explains_every_command(run):
    code, output = run()
    assert code == 2 and "rqjobs dev" in output  # no command was given
    for command in (
        "dev",
        "worker",
        "recover",
        "audit",
        "failed",
        "schedules",
        "delayed",
        "pause",
        "resume",
        "stats",
        "doctor",
        "demo",
    ):
        assert command in output
        code, text = run(command, "--help")
        assert code == 0 and len(text.splitlines()) > 4


def test_a_wrong_setting_prints_one_line_and_exits_with_2(run):
    assert run("stats", env={"RQJOBS_MAX_PAYLOAD_BYTES": "lots"}) == (
        2,
        "rqjobs: RQJOBS_MAX_PAYLOAD_BYTES='lots' is not a number of bytes; "
        "give a whole number from 1024 to 536870912\n",
    )
    assert run("stats", env={"RQJOBS_QEUEUS": "a"}) == (
        2,
        "rqjobs: RQJOBS_QEUEUS is not a setting of rqjobs; did you mean RQJOBS_QUEUES?\n",
    )


def test_a_missing_redis_prints_one_line_and_exits_with_1(run):
    assert run("audit", env={"REDIS_URL": ""}) == (
        1,
        "rqjobs: no Redis: set REDIS_URL, or run `rqjobs dev` in this folder to get one\n",
    )
    code, output = run("stats", env={"REDIS_URL": "redis://user:secret@127.0.0.1:1/0"})
    assert code == 1 and output.count("\n") == 1 and "secret" not in output


def test_audit_finds_a_lost_job_and_recover_requeues_it(run, redis):
    job = rqjobs.enqueue(sample_jobs.ok)
    code, output = run("audit")
    assert code == 0 and output.endswith("clean\n")
    redis.lmove("rq:queue:default", "rq:queue:default:intermediate", "LEFT", "RIGHT")
    code, output = run("recover")
    assert code == 0 and f"requeued  {job.id}" in output and "1 requeued, 0 failed" in output
    redis.rpush("rq:queue:default", job.id)
    code, output = run("audit")
    assert code == 1 and f"WRONG: {job.id}: in more than one place: queued, queued" in output
    code, output = run("audit", "--json")
    assert code == 1 and json.loads(output)["breaches"] == {
        job.id: "in more than one place: queued, queued"
    }


def test_failed_lists_shows_requeues_and_deletes(run, broken, redis):
    code, output = run("failed")
    assert code == 0 and "ValueError: no 1" in output and "3 failed" in output
    redis.hset(broken[0].key, "rqjobs_progress", json.dumps([3, 10, "rows", 1.0]))
    code, output = run("failed", "show", broken[0].id)
    assert code == 0 and "Traceback" in output and "ValueError: no 0" in output
    assert "progress: 3 of 10" in output
    code, output = run("failed", "requeue", broken[0].id, "nobody")
    assert code == 1 and "1 of 2 done" in output and "No such job: nobody" in output
    assert rqjobs.queue("default").job_ids == [broken[0].id]
    code, output = run("failed", "delete", "--yes", broken[1].id)
    assert code == 0 and not redis.exists(broken[1].key)
    code, output = run("failed", "delete", "--yes", broken[0].id)
    assert code == 1 and "has not failed" in output
    code, output = run("failed", "requeue", "--all")
    assert code == 0 and "1 of 1 done" in output
    assert run("failed", "requeue")[0] == 2
    assert run("failed", "show", "nobody")[0] == 1
    assert not audit.audit(redis).breaches


def test_stats_count_queued_jobs(run, redis):
    rqjobs.enqueue(sample_jobs.ok)
    code, output = run("stats")
    assert code == 0 and "default" in output
    queues = json.loads(run("stats", "--json")[1])["queues"]
    assert next(queue for queue in queues if queue["name"] == "default")["queued"] == 1


def test_stats_and_doctor_report_suspended_workers(run, redis):
    suspend(redis)
    assert run("stats")[1].startswith("RQ is suspended: no worker begins a job until `rq resume`\n")
    assert json.loads(run("stats", "--json")[1])["suspended"] is True
    assert "note  RQ is suspended: no worker begins a job until `rq resume`" in run("doctor")[1]


def test_pause_and_resume_commands(run, redis):
    assert run("pause", "low", "-f", "sample_jobs.ok") == (
        0,
        "low: paused\nsample_jobs.ok: paused\n",
    )
    code, output = run("pause")
    assert code == 0 and output.startswith("The queue `low` is paused since ")
    assert "until `rqjobs resume --function sample_jobs.ok`" in output
    assert run("stats")[1].startswith(output)
    assert [pause["name"] for pause in json.loads(run("stats", "--json")[1])["paused"]] == [
        "low",
        "sample_jobs.ok",
    ]
    assert run("pause", "low") == (0, "low: is paused already\n")
    assert run("resume", "low", "high") == (0, "low: resumed\nhigh: is not paused\n")
    assert run("resume", "--all") == (0, "sample_jobs.ok: resumed\n")
    assert run("pause") == (0, "") and rqjobs.paused() == []


def test_wrong_pauses_are_errors_of_one_line(run, redis):
    assert run("resume")[0] == 2
    code, output = run("pause", "-f", "sample_jobs.nothing")
    assert code == 1 and "defines no such function" in output
    assert "no queue 'lwo' is known yet; known are default, high, low" in run("pause", "lwo")[1]


def test_doctor_exits_with_0_for_a_healthy_system(run, worker):
    worker()
    code, output = run("doctor")
    assert code == 0, output
    assert "LOSS" not in output and "note" not in output
    assert "1 live worker" in output and "noeviction" in output and "sample_jobs has" in output


@pytest.mark.parametrize(
    ("setting", "value", "normal", "says"),
    [
        ("maxmemory-policy", "allkeys-lru", "noeviction", "throw jobs away"),
        ("appendonly", "no", "yes", "append-only file is off"),
    ],
)
def test_doctor_exits_with_1_for_a_redis_setting_that_loses_jobs(
    run, redis, setting, value, normal, says
):
    redis.config_set(setting, value)
    try:
        code, output = run("doctor")
    finally:
        redis.config_set(setting, normal)
    assert code == 1 and says in output


@pytest.fixture
def doctor(redis):
    """The doctor's findings in this process, as lines."""
    return lambda: [f"{finding.level} {finding.message}" for finding in examine()]


def test_doctor_reports_a_full_and_a_nearly_full_redis(doctor, redis, monkeypatch):
    """Earlier the doctor reported no problem for a Redis that refused every write."""
    try:
        redis.config_set("maxmemory", 2**40)  # the memory in use may change at any moment
        assert not any(line.startswith("note Redis uses ") for line in doctor())
        monkeypatch.setattr(doctor_module, "FULL_MEMORY_SHARE", 1e-9)
        assert any(line.startswith("note Redis uses ") for line in doctor())
        redis.config_set("maxmemory", 1)
        assert any(
            line.startswith("LOSS no job can be enqueued, and no outcome recorded: Redis is full")
            for line in doctor()
        )
    finally:
        redis.config_set("maxmemory", 0)


def test_doctor_names_a_missing_right_of_the_redis_user(doctor, redis, server):
    """Earlier the doctor reported no answer from Redis if the right to INFO was missing."""
    redis.execute_command(
        "ACL", "SETUSER", "small", "on", ">pw", "resetchannels", "+@all", "-info", "-lmove", "~rq*"
    )
    try:
        config.use(redis_url=server.replace("unix://", "unix://small:pw@"))
        lines = doctor()
    finally:
        connection.client().connection_pool.disconnect()  # Redis closes those of a deleted user, at some later moment
        redis.execute_command("ACL", "DELUSER", "small")
    assert any(
        line.startswith(
            "note version, memory and persistence cannot be checked: the Redis user lacks a "
        )
        and "'info'" in line
        for line in lines
    )
    assert any(
        line.startswith("LOSS no job can be enqueued") and "'lmove'" in line for line in lines
    )
    assert any(
        line.startswith("note delayed jobs may begin a second late") and "channel" in line
        for line in lines
    )
    assert any("live workers" in line for line in lines) and not any(
        "does not answer" in line for line in lines
    )
    (line,) = [line for line in doctor() if line.startswith("LOSS")]
    assert line.startswith(
        "LOSS the user or password in REDIS_URL is missing or wrong; Redis replied: invalid username"
    )


def test_doctor_counts_a_missing_right_to_the_time_as_a_loss(doctor, redis, server):
    """Every enqueue failed, and the doctor had notes only."""
    redis.execute_command("ACL", "SETUSER", "small", "on", ">pw", "~*", "&*", "+@all", "-time")
    try:
        config.use(redis_url=server.replace("unix://", "unix://small:pw@"))
        lines = doctor()
    finally:
        connection.client().connection_pool.disconnect()
        redis.execute_command("ACL", "DELUSER", "small")
    assert any(
        line.startswith("LOSS no job can be enqueued") and "'time'" in line for line in lines
    )


def test_doctor_reports_delayed_jobs_without_a_scheduler(doctor, redis):
    rqjobs.enqueue_in(3600, sample_jobs.ok)
    assert any(
        "no scheduler serves the queue 'default', whose 1 delayed jobs" in line for line in doctor()
    )
    redis.set("rq:scheduler-lock:default", "another scheduler")
    assert not any("delayed jobs" in line for line in doctor())
    redis.zadd("rq:scheduled:default", {"late": 1})
    assert any("1 delayed jobs of the queue 'default' are overdue" in line for line in doctor())


def test_doctor_reports_broken_modules_and_queues_without_a_worker(run, worker):
    worker("default")
    rqjobs.queue("low").enqueue(sample_jobs.ok)
    code, output = run("doctor", env={"RQJOBS_MODULES": "sample_jobs,nowhere"})
    assert code == 1 and "nowhere does not import" in output
    assert "no worker listens to the queue 'low' (1 job waits)" in output


def test_doctor_reports_stock_workers(run, worker):
    worker("default", worker_class="rq.worker.Worker")
    code, output = run("doctor")
    assert code == 1 and "plain rq worker" in output


def test_forged_jobs_do_not_break_the_list_of_failed_jobs(run, broken, redis):
    redis.hset(broken[2].key, "description", "x\n\x1b]0;pwned\x07rqjobs: 0 failed")
    redis.delete(f"rq:results:{broken[1].id}")
    redis.xadd(f"rq:results:{broken[1].id}", {"type": 2, "exc_string": "!!!!"})
    redis.set("rq:job:text", "x")
    redis.zadd("rq:failed:default", {"text": 9e9})
    code, output = run("failed")
    assert code == 0 and "ValueError: no 0" in output and "result cannot be read" in output
    assert "\x1b" not in output and "\nrqjobs: 0 failed" not in output
    code, output = run("failed", "requeue", "text", broken[0].id)
    assert code == 1 and "1 of 2 done" in output
    code, output = run("failed", "show", "text")
    assert code == 1 and "Traceback" not in output


def test_a_decompression_bomb_is_refused(redis, broken):
    redis.hset(
        broken[0].key, "data", zlib.compress(b"[" + b" " * (config.current().max_value_bytes + 1))
    )
    with pytest.raises(rqjobs.PayloadTooLarge):
        rqjobs.Job.fetch(broken[0].id, connection=redis)


@pytest.mark.parametrize("app", ["nowhere:app", "sample_jobs:ok", "sample_jobs:boom"])
def test_a_flask_app_that_fails_to_load_prints_one_line(run, app):
    for command in (("worker",), ("worker", "--burst")):
        code, output = run(*command, env={"RQJOBS_FLASK_APP": app})
        assert (
            code == 2
            and output.count("\n") == 1
            and f"RQJOBS_FLASK_APP='{app}' gives no Flask app" in output
        )


def test_failed_jobs_by_filters(run, broken, redis):
    rqjobs.queue("low").enqueue(sample_jobs.mark_and_boom, "marks")
    rqjobs.Worker(["low"]).work(burst=True, logging_level="CRITICAL")
    code, output = run("failed", "groups")
    assert code == 0 and "sample_jobs.boom" in output and "sample_jobs.mark_and_boom" in output
    assert output.splitlines()[0].split() == (
        ["FUNCTION", "ERROR", "1", "H", "24", "H", "7", "D", "JOBS", "FIRST", "LAST", "MESSAGE"]
    )
    code, output = run("failed", "--function", "boom", "--since", "2h")
    assert code == 0 and output.count("ValueError") == 3
    assert run("failed", "--error", "KeyError")[1] == "no such failed jobs\n"
    code, output = run("failed", "--queue", "low", "show")
    assert code == 0 and output.count("Traceback") == 1
    code, output = run("failed", "show", "--function", "boom", "-n", "2")
    assert code == 0 and output.count("Traceback") == 2
    code, output = run("failed", "--function", "boom", "requeue", "--since", "2030-01-01")
    assert code == 0 and "0 of 0 done" in output
    code, output = run("failed", "--function", "boom", "requeue", "--error", "ValueError")
    assert code == 0 and "3 of 3 done" in output and "requeueing" in output
    assert set(rqjobs.queue("default").job_ids) == {job.id for job in broken}
    code, output = run("failed", "delete", "--queue", "low", "--yes")
    assert code == 0 and "1 of 1 done" in output and not redis.zcard("rq:failed:low")


@pytest.mark.parametrize(
    "words",
    [
        ("requeue",),
        ("requeue", "--since", "yesterday"),
        ("requeue", "id", "--function", "f"),
        ("requeue", "id", "--all"),
        ("show",),
        ("show", "id", "--function", "f"),
        ("--function", "f", "delete", "--yes", "id"),
    ],
)
def test_filters_that_are_wrong_are_refused(run, words):
    code, output = run("failed", *words)
    assert code == 2 and "Error: " in output and "Traceback" not in output
