"""What a job logs is kept with it: real workers, crashes, retries, threads, and a full Redis."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import helpers
import log_jobs
import pytest
import redis as redis_py
import sample_jobs
from redis.exceptions import ResponseError

import rqjobs
from rqjobs import config, job_logs, queues
from rqjobs.broker import leases, scripts, transitions
from rqjobs.job_logs import LOG_MAX_BYTES, Batch, encode_line
from rqjobs.maintenance import sweep


@pytest.fixture(autouse=True)
def modules(settings, environ):
    """The jobs of these tests are those of log_jobs.py."""
    environ["RQJOBS_MODULES"] = "log_jobs,sample_jobs"
    config.use(modules=("log_jobs", "sample_jobs"))


@pytest.fixture
def burst(spawn):
    """Run a worker until its queues are empty; returns its output."""

    def run(**env):
        process = spawn(sys.executable, "-m", "rqjobs", "worker", "--burst", "default", env=env)
        assert process.wait(60) == 0, process.output()
        return process.output()

    return run


def texts(job, level=0):
    return [line.text for line in job.log_lines(level)]


def sizes(redis, job):
    return sum(len(fields[b"lines"]) for _, fields in redis.xrange(f"rqjobs:log:{job.id}"))


def test_the_lines_of_each_job_are_kept_with_it_alone(redis, burst):
    quiet, spoken, levels, hostile, threaded, threads, silent, forked, configured = [
        rqjobs.enqueue(*call)
        for call in (
            (log_jobs.quiet,),
            (log_jobs.speak, "one", "two"),
            (log_jobs.levels,),
            (log_jobs.hostile,),
            (log_jobs.leave_a_thread,),
            (log_jobs.use_threads,),
            (log_jobs.print_lines,),
            (log_jobs.fork,),
            (log_jobs.configure,),
        )
    ]
    output = burst()
    # Nothing is sent for a job that logs nothing.
    assert not redis.exists(f"rqjobs:log:{quiet.id}") and not redis.hexists(quiet.key, "rqjobs_log")
    assert texts(spoken) == ["said one", "said two"]
    line = spoken.log_lines()[0]
    assert (line.level, line.levelno, line.logger, line.attempt) == ("INFO", 20, "log_jobs", 1)
    spoken.refresh()
    assert abs((line.time - spoken.ended_at).total_seconds()) < 10
    # The log lives as long as the job.
    seconds = redis.ttl(spoken.key)
    assert 0 < seconds <= 500 and abs(redis.ttl(f"rqjobs:log:{spoken.id}") - seconds) <= 1
    assert [line.level for line in levels.log_lines()] == ["INFO", "WARNING", "ERROR"]
    assert texts(levels, "warning")[0] == "a warning line"
    error = texts(levels, "ERROR")[0]
    assert error.startswith("an error line\nTraceback") and error.endswith("ValueError: the cause")
    assert "a warning line" in output, "Python's last resort still prints it"
    assert "an info line" not in output
    red, two, wrong, unprintable, long, done = texts(hostile)
    assert red == "red and � and �" and two == "two\nlines" and done == "done"
    assert wrong == "%d items (its arguments cannot be formatted: TypeError)"
    assert unprintable == "a Unprintable (its arguments cannot be formatted: OSError)"
    assert len(long) < 8300 and "991,816 characters are left out" in long
    assert texts(threaded)[0] == "first"
    assert texts(threads) == ["in a thread", "second"]
    assert texts(silent) == ["a logged line"]
    assert texts(forked) == ["before", "after 0"]
    assert texts(configured) == ["after dictConfig", "after basicConfig"]
    assert "basic: after basicConfig" in output and "basic: after dictConfig" not in output


def test_prints_are_kept_if_asked_for_and_nothing_if_it_is_off(redis, burst):
    job = rqjobs.enqueue(log_jobs.print_lines)
    assert "no end" in burst(RQJOBS_JOB_LOG_PRINTS="on")
    assert texts(job) == ["a printed line", "100 %", "a logged line", "no end"]
    assert [line.level for line in job.log_lines()] == ["PRINT", "PRINT", "INFO", "PRINT"]
    job = rqjobs.enqueue(log_jobs.speak, "one")
    burst(RQJOBS_JOB_LOG_LEVEL="off", RQJOBS_JOB_LOG_PRINTS="on")
    assert texts(job) == [] and not redis.hexists(job.key, "rqjobs_log")


def test_a_flood_is_bounded_and_costs_ten_writes_a_second(redis, burst):
    job = rqjobs.enqueue(log_jobs.flood, 100_000)
    redis.config_resetstat()
    burst()
    lines = job.log_lines()
    assert lines[-1].text == "line 99999 of the flood"
    assert lines[0].dropped == lines[0].number == 100_000 - len(lines)
    assert not any(line.dropped for line in lines[1:])
    assert LOG_MAX_BYTES - 4096 < sizes(redis, job) <= LOG_MAX_BYTES
    job.refresh()
    trims = redis.info("commandstats")["cmdstat_xtrim"]["calls"]  # one for each write
    took = (job.ended_at - job.started_at).total_seconds()
    assert trims <= took / 0.1 + 2  # the last two come after the function's end


def test_lines_survive_a_redis_that_has_lost_its_scripts(redis, burst):
    """Another worker loads them one after the other, and an outcome may come between two."""
    jobs = [
        rqjobs.enqueue(log_jobs.speak_after_a_restart_of_redis, loaded, fails)
        for loaded in range(len(scripts.WORKER_SCRIPTS) + 1)
        for fails in (False, True)
    ]
    burst()
    assert [texts(job) for job in jobs] == [["said before the outcome"]] * len(jobs)


def test_a_time_limit_in_the_middle_of_a_line_leaves_nothing_locked(redis, burst):
    jobs = [rqjobs.enqueue(log_jobs.log_forever, job_timeout=1) for _ in range(3)]
    last = rqjobs.enqueue(log_jobs.speak, "one")
    burst()
    assert [job.get_status() for job in jobs] == ["failed"] * 3
    # LogRecord ignores any exception in one place: then the job is killed at the hard limit.
    ends = re.compile("JobTimeoutException|ignored its time limit")
    errors = [job.latest_result().exc_string for job in jobs]
    assert all(ends.search(error) for error in errors), errors
    assert all(texts(job)[-1] == "goes on" for job in jobs) and texts(last) == ["said one"]


def test_the_last_line_before_a_crash_is_kept_and_attempts_are_told_apart(redis, burst):
    crashing = rqjobs.enqueue(log_jobs.crash_once, "rq:crashes")
    failing = rqjobs.enqueue(
        log_jobs.fail_until, "rq:runs", 3, retry=rqjobs.Retry(max=2), failure_ttl=777
    )
    lost = rqjobs.enqueue(log_jobs.fail_until, "rq:failures", 9, failure_ttl=777)
    process = burst()
    assert "the horse died (SIGKILL)" in process
    for _ in range(20):  # a crashed job waits for a second, and the burst has ended
        if crashing.get_status() == "finished":
            break
        redis.blpop("rq:nothing", timeout=0.2)
        burst()
    attempts = [(line.attempt, line.text) for line in crashing.log_lines()]
    assert attempts == [(1, "run 1"), (2, "run 2")]
    attempts = [(line.attempt, line.text) for line in failing.log_lines()]
    assert attempts == [(1, "run 1"), (2, "run 2"), (3, "run 3")]
    assert texts(lost) == ["run 1"] and 700 < redis.ttl(f"rqjobs:log:{lost.id}") <= 777
    lost.requeue()
    burst()
    attempts = [(line.attempt, line.text) for line in lost.log_lines()]
    assert attempts == [(1, "run 1"), (2, "run 2")]


def test_lines_are_live_and_a_killed_worker_loses_none_that_was_sent(
    redis, worker, spawn, environ, eventually
):
    job = rqjobs.enqueue(log_jobs.hold, "rq:gate")
    first = worker("default")
    follower = spawn(sys.executable, "-m", "rqjobs", "logs", job.id, "-f")
    eventually(lambda: texts(job) == ["waits"], what="the line of the running job")
    eventually(lambda: "waits" in follower.output())
    # When the whole worker is killed, the line stays, and the next run is another attempt.
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    worker("default")
    eventually(lambda: redis.llen("rq:gate:reached") == 2)
    redis.rpush("rq:gate:open", 1)
    assert follower.wait(60) == 0, follower.output()
    assert [(line.attempt, line.text) for line in job.log_lines()] == [
        (1, "waits"),
        (2, "waits"),
        (2, "goes on"),
    ]
    told = [line.split("  ")[-1] for line in follower.output().splitlines()]
    assert told == ["waits", "attempt 2:", "waits", "goes on"]
    assert rqjobs.enqueue(log_jobs.speak, job_id=job.id) and texts(job) == []


def test_a_job_goes_on_while_redis_is_full(redis, worker, eventually, tmp_path):
    job = rqjobs.enqueue(log_jobs.wait_for_file, str(tmp_path))
    worker("default")
    eventually(lambda: texts(job) == ["waits"])
    try:
        redis.config_set("maxmemory", 1)
        (tmp_path / "open").touch()
        eventually((tmp_path / "over").exists, what="the end of the job")
        assert texts(job) == ["waits"]
    finally:
        redis.config_set("maxmemory", 0)
    eventually(lambda: job.get_status() == "finished")
    assert texts(job) == ["waits", *["goes on"] * 3]


@pytest.mark.parametrize("way", log_jobs.WAYS)
def test_the_last_line_waits_for_redis_as_the_job_does(redis, worker, eventually, way):
    job = rqjobs.enqueue(log_jobs.end_in_a_full_redis, way)
    process = worker("default")
    eventually(lambda: "waits for Redis" in process.output(), what="the refused outcome")
    assert texts(job) == []
    redis.config_set("maxmemory", 0)
    eventually(lambda: texts(job) == ["the last line of run 1"])


# The script, without a worker


@pytest.fixture
def claimed(redis):
    """A claimed job, and a function that keeps lines of its run."""
    rqjobs.enqueue(sample_jobs.ok)
    leases.renew_lease(redis, "one", {"host": ""})
    (claim,) = helpers.claim(redis, "one", ["default"])
    return claim


def batch(number, *lines, dropped=0):
    return Batch(number, dropped, b"".join(encode_line(0, 20, "INFO", "a", line) for line in lines))


def keep(redis, claim, batch, attempt=1):
    helpers.keep_log(redis, claim.job_id, claim.token, attempt, batch)
    return [line.text for line in job_logs.read(redis, claim.job_id)]


def test_a_write_that_is_sent_twice_is_made_once(redis, claimed):
    assert keep(redis, claimed, batch(1, "a", "b")) == ["a", "b"]
    assert keep(redis, claimed, batch(1, "a", "b")) == ["a", "b"]
    assert keep(redis, claimed, batch(2, "c", dropped=5)) == ["a", "b", "c"]
    assert job_logs.read(redis, claimed.job_id)[-1].dropped == 5


def test_a_superseded_run_writes_nothing(redis, claimed):
    keep(redis, claimed, batch(1, "mine"))
    assert keep(redis, claimed._replace(token="another"), batch(1, "late")) == ["mine"]
    queues.queue("default").enqueue(sample_jobs.ok, job_id=claimed.job_id)
    assert keep(redis, claimed, batch(2, "late")) == [], "a new life begins with an empty log"


@pytest.mark.parametrize("way", ["script", "job", "plain RQ"])
def test_the_log_of_a_deleted_job_is_deleted(redis, claimed, way):
    keep(redis, claimed, batch(1, "a line"))
    transitions.release_all(redis, "one")
    if way == "script":
        transitions.delete(redis, [claimed.job_id], "default")
    elif way == "job":
        rqjobs.Job.fetch(claimed.job_id, connection=redis).delete()
    else:
        redis.delete(f"rq:job:{claimed.job_id}")
        sweep.sweep(redis, force=True)
    assert not redis.exists(f"rqjobs:log:{claimed.job_id}")


def test_the_log_of_a_job_that_exists_is_not_swept(redis, claimed):
    keep(redis, claimed, batch(1, "a line"))
    sweep.sweep(redis, force=True)
    assert redis.exists(f"rqjobs:log:{claimed.job_id}")


def test_a_full_redis_and_foreign_data_change_nothing(redis, claimed):
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(ResponseError, match="maxmemory"):
            keep(redis, claimed, batch(1, "a"))
    finally:
        redis.config_set("maxmemory", 0)
    assert not redis.hexists(f"rq:job:{claimed.job_id}", "rqjobs_log")
    keep(redis, claimed, batch(1, "a"))
    log = f"rqjobs:log:{claimed.job_id}"
    redis.xadd(log, {"attempt": "x", "lines": "{"}, id="9000-50")
    redis.xadd(log, {"attempt": 1, "lines": b"[]\n[1e999,20,1,2,3]\n\xff\n"}, id="9001-50")
    redis.xadd(
        log, {"attempt": 1, "lines": b'[1,20,"\\u001b[1m","x\\n","\\ud800"]\n'}, id="9002-51"
    )
    brackets = b"[" + b"[]," * 30_000 + b"[]]"  # they would take many times their size in memory
    redis.xadd(log, {"attempt": 1, "lines": b'[1,20,"a","b",' + brackets + b"]\n"}, id="9003-52")
    assert keep(redis, claimed, batch(2, "b")) == ["a", "�", "b"]
    redis.delete(log)
    redis.set(log, "odd")
    assert keep(redis, claimed, batch(3, "c")) == []


def test_a_follower_outlasts_an_outage(redis, claimed, monkeypatch):
    """It ended with an error when Redis was restarted, or hung for some seconds."""
    keep(redis, claimed, batch(1, "a"))
    follower = job_logs.follow(redis, claimed.job_id)
    assert next(follower).text == "a"
    xread = redis.xread

    def fail_once(*args, **options):
        monkeypatch.setattr(redis, "xread", xread)
        raise redis_py.ConnectionError("gone")

    monkeypatch.setattr(redis, "xread", fail_once)
    keep(redis, claimed, batch(2, "b"))
    redis.hset(f"rq:job:{claimed.job_id}", "status", "finished")
    assert [line.text for line in follower] == ["b"]
    unreachable = redis_py.Redis(unix_socket_path="/nowhere")
    with pytest.raises(redis_py.ConnectionError):
        next(job_logs.follow(unreachable, claimed.job_id))
    unreachable.close()


def test_a_reader_reads_a_bounded_number_of_bytes(redis, claimed):
    """A foreign program has written entries of any size. The number of entries alone was bounded."""
    keep(redis, claimed, batch(1, "a"))
    log = f"rqjobs:log:{claimed.job_id}"
    chunk = b'[1,20,"a","b","' + b"x" * 50_000 + b'"]\n'
    redis.xadd(log, {"attempt": 1, "lines": b"y" * 3_000_000}, id="9000-50")
    for number in range(40):
        redis.xadd(log, {"attempt": 1, "lines": chunk}, id=f"{9001 + number}-{51 + number}")
    redis.hset(f"rq:job:{claimed.job_id}", "status", "finished")
    reads = [lambda: job_logs.read(redis, claimed.job_id)]
    reads.append(lambda: list(job_logs.follow(redis, claimed.job_id)))
    sent = []
    lines = []
    for read in reads:
        before = redis.info("stats")["total_net_output_bytes"]
        lines.append(len(read()))
        sent.append(redis.info("stats")["total_net_output_bytes"] - before)
    assert lines == [6, 41]
    assert sent[0] < 400_000 and sent[1] < 2_500_000


def test_the_command_line_says_what_is_missing(environ):
    def run(*words):
        command = [sys.executable, "-m", "rqjobs", "logs", *words]
        return subprocess.run(command, env=environ, capture_output=True, text=True)

    job = rqjobs.enqueue(sample_jobs.ok)
    assert run("none").stderr == "Error: No such job: none\n"
    assert "'LOUD' is not a level" in run(job.id, "--level", "LOUD").stderr
    assert run(job.id).stderr == "no lines of this job are kept\n"
