"""`job.wait` and `rqjobs.gather`, with real workers."""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import re
import signal
import traceback
import zipfile
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import redis as redis_py
import result_jobs
import sample_jobs
from rq.job import Job as PlainJob

import rqjobs
from rqjobs import JobFailed, NoResult, Repeat, WaitTimeout, config, connection, raised, results
from rqjobs.broker import keys
from rqjobs.dev import redis_server

MODULES = ("sample_jobs", "result_jobs")


@pytest.fixture(autouse=True)
def jobs_module(settings, environ):
    environ["RQJOBS_MODULES"] = ",".join(MODULES)
    config.use(modules=MODULES)


@pytest.fixture
def background():
    """Call functions in threads; their results are awaited in the test."""
    with ThreadPoolExecutor(64) as pool:
        yield pool.submit


def work():
    rqjobs.Worker(["high", "default"]).work(burst=True, logging_level="CRITICAL")


def blocked(redis):
    """The clients that wait for results now."""
    return [client for client in redis.client_list() if client["cmd"] == "xread"]


# Endings


def test_wait_returns_the_value_or_raises_the_exception_of_the_job(redis):
    values = [sample_jobs.Point(1, 2), None, "", b"bytes", [None], {"a": {1, 2}}]
    fine = [rqjobs.enqueue(result_jobs.ok, value) for value in values]
    failing = {name: rqjobs.enqueue(result_jobs.fail, name) for name in result_jobs.RAISED}
    work()
    assert rqjobs.gather(fine) == values == [job.wait(0) for job in fine]

    same = {
        "defined": (result_jobs.CardRefused, ("card", 42, None)),
        "imported": (zipfile.BadZipFile, ("not a zip",)),
        "builtin": (KeyError, ("key",)),
        "file": (FileNotFoundError, (2, "no such file")),
        "unplain": (ValueError, ("['a', 'list']",)),
        "long": (ValueError, ("x" * raised.RAISED_MESSAGE_MAX_CHARACTERS,)),
        "faked": (ValueError, result_jobs.RAISED["faked"]().args),
    }
    other = {
        "own constructor": ("result_jobs.Declined", "code 7"),
        "not imported by that name": ("rq.exceptions.NoSuchJobError", "gone"),
        "json": ("json.decoder.JSONDecodeError", "bad: line 1 column 2 (char 1)"),
        "exit": ("SystemExit", "3"),
        "stop": ("StopIteration", "stop"),
        "odd": ("Odd", ""),
    }
    assert same.keys() | other.keys() == failing.keys()
    for name, (kind, args) in same.items():
        with pytest.raises(kind) as caught:
            failing[name].wait(0)
        assert type(caught.value) is kind and caught.value.args == args
        shown = "".join(traceback.format_exception(caught.value))
        assert "in fail\n" in shown and f"job {failing[name].id} (result_jobs.fail) failed" in shown
    for name, (error, message) in other.items():
        with pytest.raises(JobFailed) as caught:
            failing[name].wait(0)
        failed = caught.value
        assert (failed.error, failed.function) == (error, "result_jobs.fail"), name
        assert failed.message == message or name == "odd"
        assert failed.traceback in "".join(traceback.format_exception(failed)), name
        assert str(pickle.loads(pickle.dumps(failed))) == str(failed)


def test_the_exception_is_the_same_without_a_worker_process(redis):
    queue = rqjobs.queue("default")
    jobs = [queue.enqueue(result_jobs.fail, "defined")]
    rqjobs.SimpleWorker(["default"]).work(burst=True, logging_level="CRITICAL")
    queue = rqjobs.Queue("default", connection=redis, is_async=False)
    jobs.append(queue.enqueue(result_jobs.fail, "defined"))
    assert queue.enqueue(result_jobs.ok, 1).wait(0) == 1
    for job in jobs:
        with pytest.raises(result_jobs.CardRefused):
            job.wait(0)
    try:
        raise KeyError("of the program, and not of a job")
    except KeyError:
        assert not raised.pack_current("Moved to FailedJobRegistry, due to AbandonedJobError")


def test_no_constructor_of_a_module_is_called(redis, tmp_path):
    """Whoever can write into Redis chooses the class and its arguments."""
    touched = tmp_path / "touched"
    for name, args in [
        ("result_jobs.Declined", [7, f"touch {touched}"]),
        ("subprocess.Popen", [f"touch {touched}"]),
        ("builtins.eval", ["1"]),
        ("builtins.SystemExit", [1]),
    ]:
        stored = raised.unpack(json.dumps([name, "message", args]).encode())
        assert raised.rebuild(stored) is None
    assert not touched.exists()
    for stored in (b"[", b"{}", b"[1, 2]", b"[" * 9000, b'["a"]', b"\xff", b"9" * 9000):
        assert raised.unpack(stored) is None
    assert raised.unpack(b'["builtins.ValueError", "m", [[1]]]').args == ("m",)


def test_every_other_ending_has_its_exception(redis):
    ended = {
        "expired": rqjobs.enqueue(sample_jobs.ok, expires=0.001),
        "discarded": rqjobs.enqueue(result_jobs.discard),
        "canceled": rqjobs.enqueue(sample_jobs.ok),
        "gone": rqjobs.queue("default").enqueue(sample_jobs.ok, result_ttl=0),
        "not kept": rqjobs.enqueue(sample_jobs.ok),
        "unreadable": rqjobs.enqueue(sample_jobs.ok),
        "stopped": rqjobs.enqueue(sample_jobs.ok),
        "unserializable": rqjobs.enqueue(result_jobs.as_object),
    }
    crashed = rqjobs.enqueue(sample_jobs.ok)
    too_often = rqjobs.enqueue(result_jobs.ask_too_often)
    ended["canceled"].cancel()
    work()
    redis.delete(keys.results(ended["not kept"].id), keys.results(crashed.id))
    redis.xadd(keys.results(ended["unreadable"].id), {"type": 1, "return_value": "%"})
    redis.hset(ended["stopped"].key, "status", "stopped")
    redis.hset(crashed.key, "status", "failed")
    for reason, job in ended.items():
        with pytest.raises(NoResult, match=job.id) as caught:
            job.wait(0)
        assert caught.value.reason == reason, caught.value
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert "no longer needed" in str(rqjobs.gather([ended["discarded"]], 0, True)[0])
    with pytest.raises(JobFailed, match="one Retry too many"):
        too_often.wait(0)
    with pytest.raises(JobFailed) as caught:
        crashed.wait(0)
    assert caught.value.traceback == ""


def test_a_job_with_retries_or_repeats_has_ended_after_its_last_run(redis, background):
    """Each retry writes an entry as well, which wakes the wait."""
    flaky = rqjobs.enqueue(result_jobs.flaky, "flaky", 3)
    failing = rqjobs.enqueue(result_jobs.fail_at_last)
    repeated = rqjobs.queue("default").enqueue(
        result_jobs.repeat_by_number, "runs", repeat=Repeat(times=2, interval=0)
    )
    again = rqjobs.enqueue(sample_jobs.again, "again")
    waits = [background(job.wait, 60) for job in (flaky, repeated, again, failing)]
    work()
    assert [wait.result() for wait in waits[:3]] == ["flaky", 3, "again"]
    with pytest.raises(result_jobs.CardRefused, match="at last"):
        waits[3].result()


def test_an_id_that_is_enqueued_again_is_waited_for_again(redis):
    queue = rqjobs.queue("default")
    queue.enqueue(result_jobs.ok, 1, job_id="one")
    failed = rqjobs.enqueue(sample_jobs.flaky, "name", 1)
    work()
    with pytest.raises(RuntimeError, match="failure of name"):
        failed.wait(0)
    again = queue.enqueue(result_jobs.ok, 2, job_id="one")
    failed.requeue()
    for job in (again, failed):
        with pytest.raises(WaitTimeout):
            job.wait(0)
    work()
    assert rqjobs.gather([again, failed], 0) == [2, "name"]


# Waiting


def test_a_wait_blocks_and_outlasts_killed_workers(redis, worker, kill, background, eventually):
    job = rqjobs.enqueue(result_jobs.hang, "gate")
    waits = [background(job.wait, 120) for _ in range(8)]
    waits.append(background(rqjobs.gather, [job], 120))
    first = worker("default")
    eventually(lambda: redis.llen("gate:reached"))
    eventually(lambda: len(blocked(redis)) == 9)
    reads = redis.info("commandstats")["cmdstat_xread"]["calls"]
    kill(first.pid)
    worker("default")
    eventually(lambda: redis.llen("gate:reached") == 2)
    redis.rpush("gate:open", 1)
    assert [wait.result() for wait in waits] == ["gate"] * 8 + [["gate"]]
    eventually(lambda: not blocked(redis), what="no connection is left")
    calls = redis.info("commandstats")["cmdstat_xread"]["calls"] - reads
    assert calls < 9 * 60 / results.STATE_CHECK_SECONDS  # as many as in a minute


def test_endings_without_an_entry_are_noticed(redis, background, eventually):
    """Plain RQ's cancel and delete write nothing into the results."""
    canceled, deleted = (rqjobs.enqueue(sample_jobs.ok) for _ in range(2))
    waits = [background(job.wait, 120) for job in (canceled, deleted)]
    eventually(lambda: len(blocked(redis)) == 2)
    for job in (canceled, deleted):
        plain = PlainJob(job.id, connection=redis, serializer=job.serializer)
        plain.origin = "default"
        plain.cancel() if job is canceled else plain.delete()
    for wait, reason in zip(waits, ("canceled", "gone"), strict=True):
        with pytest.raises(NoResult) as caught:
            wait.result()
        assert caught.value.reason == reason


def test_the_timeout_says_where_the_job_is(redis, settings):
    """A wait is longer than the time limit of the client's commands."""
    separator = "&" if "?" in settings.redis_url else "?"
    config.use(redis_url=f"{settings.redis_url}{separator}socket_timeout=2")
    queue = rqjobs.queue("default")
    parent = rqjobs.enqueue(sample_jobs.ok)
    cases = {
        "queued in 'default'; no worker serves that queue; start one with: rqjobs worker": parent,
        "it is delayed, and due in ": rqjobs.enqueue_in(60, sample_jobs.ok),
        "deferred behind the jobs": queue.enqueue(sample_jobs.ok, depends_on=parent),
    }
    for place, job in cases.items():
        with pytest.raises(TimeoutError, match=re.escape(place)):
            job.wait(2.5 if job is parent else 0)
    rqjobs.pause(queue="default")
    with pytest.raises(WaitTimeout, match=f"3 jobs have .* {parent.id} .* which is paused"):
        rqjobs.gather(cases.values(), 0)
    assert {type(each) for each in rqjobs.gather(cases.values(), 0, True)} == {WaitTimeout}
    redis.sadd(keys.listeners("default"), "rq:worker:one")
    rqjobs.resume(queue="default")
    with pytest.raises(WaitTimeout, match="with 1 job; 1 worker serves it"):
        parent.wait(0)


def test_a_key_of_the_wrong_type_harms_no_other_job(redis):
    jobs = rqjobs.enqueue_many([(result_jobs.ok, number) for number in range(4)])
    redis.set(keys.results(jobs[2].id), "text")
    redis.delete(jobs[3].key)
    redis.set(jobs[3].key, "text")
    with pytest.raises(WaitTimeout):
        jobs[2].wait(0.01)
    work()
    *values, odd, gone = rqjobs.gather(jobs, 60, return_exceptions=True)
    assert values == [0, 1] and gone.reason == "gone"
    assert isinstance(odd, JobFailed) and odd.traceback == ""  # its outcome cannot be recorded


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
def test_a_wrong_timeout_is_an_error(redis, timeout):
    with pytest.raises((TypeError, ValueError), match="timeout"):
        rqjobs.enqueue(sample_jobs.ok).wait(timeout)


def test_a_wait_goes_on_after_a_restart_of_redis(executable, tmp_path, background, eventually):
    home = tmp_path / "redis"
    durable = ("--appendfsync", "always")
    with redis_server.server(home, *durable, executable=executable) as url:
        config.use(redis_url=url)
        redis = connection.client()
        job = rqjobs.enqueue(result_jobs.ok, 7)
        wait = background(job.wait, 120)
        eventually(lambda: blocked(redis))
        psutil.Process(redis.info("server")["process_id"]).send_signal(signal.SIGKILL)
    with pytest.raises(WaitTimeout, match="Redis does not answer"):
        job.wait(0)
    with redis_server.server(home, *durable, executable=executable):
        work()
        assert wait.result() == 7
        redis.close()


def test_a_job_waits_for_another(redis, worker, eventually):
    """In `high`, which another worker serves; the jobs of one worker would wait for ever."""
    outer = rqjobs.enqueue(result_jobs.wait_for, "ok", "inner")
    failing = rqjobs.enqueue(result_jobs.wait_for, "fail", "defined")
    itself = rqjobs.enqueue(result_jobs.wait_for_myself)
    worker("high")
    worker("default")
    assert outer.wait(60) == "inner"
    with pytest.raises(result_jobs.CardRefused) as caught:
        failing.wait(60)
    shown = "".join(traceback.format_exception(caught.value))
    assert "in wait_for\n" in shown and "in fail\n" in shown
    with pytest.raises(RuntimeError, match="waits for itself"):
        itself.wait(60)


# Many


def test_gather_takes_any_number_of_jobs(redis, background, eventually):
    jobs = rqjobs.enqueue_many([(result_jobs.ok, number) for number in range(450)])
    late = rqjobs.enqueue(result_jobs.fail, "defined")
    gathered = background(rqjobs.gather, [*jobs, late, jobs[0]], 120, True)
    eventually(lambda: blocked(redis))
    work()
    *values, error, first = gathered.result()
    assert values == list(range(450)) and first == 0
    assert isinstance(error, result_jobs.CardRefused)
    eventually(lambda: not blocked(redis), what="no connection is left")
    with pytest.raises(result_jobs.CardRefused):
        rqjobs.gather([rqjobs.enqueue_in(60, sample_jobs.ok), late])
    assert rqjobs.gather([]) == []


def test_asyncio_waits_without_blocking_its_loop(redis, worker):
    async def use():
        worker_started = asyncio.to_thread(worker, "default")
        jobs = [rqjobs.enqueue(result_jobs.ok, number) for number in range(20)]
        _, first, found = await asyncio.gather(
            worker_started, jobs[0].wait_async(60), rqjobs.gather_async(jobs, 60)
        )
        with pytest.raises(result_jobs.CardRefused):
            await rqjobs.enqueue(result_jobs.fail, "defined").wait_async(60)
        never = rqjobs.queue("nobody").enqueue(result_jobs.ok, 1)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(never.wait_async(), 0.1)
        return first, found

    # The end of the loop waits for its threads, also for that of the canceled wait without a limit.
    assert asyncio.run(use()) == (0, [*range(20)])


def test_the_text_of_a_failure_has_the_first_line_of_its_message(redis):
    error = JobFailed("id", "module.function", "ValueError", "first\nsecond", "")
    assert str(error) == "job id (module.function) failed: ValueError: first"
    assert error.message == "first\nsecond"


def test_gather_refuses_what_it_cannot_wait_for(redis, tmp_path):
    job = rqjobs.enqueue(sample_jobs.ok)
    for wrong in ("id", None, PlainJob("id", connection=redis)):
        with pytest.raises(TypeError, match="only jobs of rqjobs"):
            rqjobs.gather([job, wrong])
    with pytest.raises(TypeError, match=r"for one job there is job\.wait\(\)"):
        rqjobs.gather(job)
    other = rqjobs.Job("id", connection=redis_py.Redis(unix_socket_path=str(tmp_path / "no")))
    with pytest.raises(ValueError, match="different Redis"):
        rqjobs.gather([job, other])


def test_a_waiting_job_pays_nothing_and_a_failed_one_a_field(redis):
    """The exception stands in the entry that RQ writes in any case. RQ reads it without it."""
    job = rqjobs.enqueue(result_jobs.fail, "defined")
    work()
    ((_, entry),) = redis.xrange(keys.results(job.id))
    assert json.loads(entry[b"rqjobs_error"]) == [
        "result_jobs.CardRefused",
        "('card', 42, None)",
        ["card", 42, None],
    ]
    (plain,) = PlainJob.fetch(job.id, connection=redis, serializer=job.serializer).results()
    assert "CardRefused" in plain.exc_string
    assert base64.b64decode(entry[b"exc_string"])
