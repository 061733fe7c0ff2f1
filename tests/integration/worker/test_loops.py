"""Long loops: what a stop, a kill, a failure and a new life leave of a loop, and its progress."""

from __future__ import annotations

import itertools
import json
import random
import sqlite3
from datetime import datetime, timezone
from uuid import UUID

import loop_jobs
import pytest
from helpers import claim
from redis.exceptions import ConnectionError, ResponseError
from rq.job import JobStatus

import rqjobs
from rqjobs import config, loops
from rqjobs.broker import leases, scripts, transitions
from rqjobs.worker import horse, supervisor

MODULE = "loop_jobs"
TEN = list(range(10))


@pytest.fixture(autouse=True)
def jobs_module(settings, environ):
    environ["RQJOBS_MODULES"] = MODULE
    config.use(modules=(MODULE,), shutdown_timeout=60)


def work(*queues):
    rqjobs.Worker(queues or ["default"]).work(burst=True, logging_level="INFO")


def rows(redis, name="a"):
    """The finished rows of the jobs of this name."""
    found = redis.lrange(f"rows:{name}", 0, -1)
    return [int(row) if row.isdigit() else row.decode() for row in found]


def has_fields(redis, job):
    return [bool(redis.hexists(job.key, name)) for name in ("rqjobs_cursors", "rqjobs_progress")]


@pytest.fixture
def path(tmp_path):
    """Make the file of a kind of rows: the numbers 0 to 9."""

    def make(kind):
        path = tmp_path / kind
        if kind in ("text", "binary"):
            path.write_text("".join(f"{number}\n" for number in TEN))
        elif kind == "query" and not path.exists():
            with sqlite3.connect(path) as database:
                database.execute("create table rows (id integer primary key, name text)")
                entries = [(3 * number + 1, str(number)) for number in TEN]
                database.executemany("insert into rows values (?, ?)", entries)
            database.close()
        return str(path)

    return make


@pytest.mark.parametrize("kind", ["list", "range", "text", "binary", "query"])
def test_stop_ends_the_loop_between_two_rows_and_skips_and_repeats_none(redis, path, kind):
    job = rqjobs.enqueue(loop_jobs.visit, "a", kind, path(kind), [2, 7])
    other = rqjobs.enqueue(loop_jobs.note, "b", 1)
    work()
    assert rows(redis) == [0, 1, 2] and not rows(redis, "b")
    assert redis.lrange("rq:queue:default", 0, -1) == [job.id.encode(), other.id.encode()]
    assert job.get_status() == JobStatus.QUEUED and not job.results()
    assert not redis.hexists(job.key, "rqjobs_crashes")
    work()
    assert rows(redis) == [0, 1, 2, 3, 4, 5, 6, 7]
    work()
    assert rows(redis) == TEN and job.get_status() == JobStatus.FINISHED
    assert job.return_value() == "done" and rows(redis, "b") == [1]
    assert has_fields(redis, job) == [False, True]


@pytest.mark.parametrize("kind", ["list", "text", "binary", "query"])
def test_kill_repeats_the_rows_since_the_cursor_was_kept(redis, path, kind, monkeypatch):
    monkeypatch.setattr(supervisor, "CRASH_DELAY_SECONDS", 0.0)
    job = rqjobs.enqueue(loop_jobs.visit, "a", kind, path(kind), [3, 6], "kill", every=0)
    work()
    assert rows(redis) == TEN and job.get_status() == JobStatus.FINISHED
    seldom = rqjobs.enqueue(loop_jobs.visit, "b", kind, path(kind), [3], "kill", every=3600)
    work()
    assert rows(redis, "b") == [0, 1, 2, *TEN] and seldom.get_status() == JobStatus.FINISHED


def test_stops_at_random_times_skip_and_repeat_none(worker, redis, path, eventually):
    kinds = ("list", "text", "query")
    jobs = [rqjobs.enqueue(loop_jobs.slow, kind, kind, path(kind)) for kind in kinds]
    for number in range(3):
        process = worker("default")
        goal = random.randrange(10 * number, 10 * number + 9)
        eventually(lambda goal=goal: sum(len(rows(redis, kind)) for kind in kinds) > goal)
        process.terminate()
        process.wait()
    process = worker("default")
    eventually(lambda: all(job.get_status() == JobStatus.FINISHED for job in jobs))
    process.terminate()
    process.wait()
    assert [rows(redis, kind) for kind in kinds] == [TEN] * 3


def test_kills_at_random_times_skip_none(worker, redis, eventually):
    job = rqjobs.enqueue(loop_jobs.slow, "a", "range", every=0.05)
    for _ in range(2):
        process = worker("default")
        eventually(lambda: len(rows(redis)) > random.randrange(8))
        process.kill()
        process.wait()
    process = worker("default")
    eventually(lambda: job.get_status() == JobStatus.FINISHED)
    process.terminate()
    process.wait()
    found = rows(redis)
    assert sorted(set(found)) == TEN
    for before, after in itertools.pairwise(found):
        assert after <= before + 1 and after >= before - 1


def test_failed_row_is_done_again_by_a_retry_and_by_a_requeue(redis):
    job = rqjobs.enqueue(loop_jobs.retried, "a", [3, 5])
    work()
    assert job.get_status() == JobStatus.FAILED and rows(redis) == [0, 1, 2, 3, 4]
    assert job.progress[:3] == (5, 10, "")
    job.requeue()
    work()
    assert rows(redis) == TEN and has_fields(redis, job) == [False, True]


def test_new_life_of_an_id_begins_at_the_start(redis):
    job = rqjobs.enqueue(loop_jobs.visit, "a", "list", "", [3], "boom")
    work()
    assert has_fields(redis, job) == [True, True]
    rqjobs.queue("default").enqueue(loop_jobs.visit, "a", "list", job_id=job.id)
    assert has_fields(redis, job) == [False, False]
    work()
    assert rows(redis) == [0, 1, 2, *TEN]


def test_plain_rq_client_begins_a_new_life_too(redis):
    job = rqjobs.enqueue(loop_jobs.visit, "a", "list", "", [3], "boom")
    work()
    redis.hset(job.key, "created_at", "2001-01-01T00:00:00.000000Z")
    redis.hset(job.key, "status", "queued")
    redis.rpush("rq:queue:default", job.id)
    work()
    assert rows(redis) == [0, 1, 2, *TEN]


def test_repeat_begins_at_the_start(redis):
    rqjobs.enqueue(loop_jobs.repeated, "a")
    work()
    assert rows(redis) == [0, 1, 0, 1]


def test_limit_and_unique_key_are_kept_and_the_slot_is_free(redis):
    job = rqjobs.enqueue(loop_jobs.limited, "a")
    work()
    assert rows(redis) == [0, 1] and not redis.keys("rqjobs:slots*")
    assert redis.hvals("rqjobs:unique") == [job.id.encode()]
    assert redis.hget(job.key, "rqjobs_woken") == b"1"
    assert redis.hget(job.key, "retries_left") == b"3"
    assert rqjobs.enqueue(loop_jobs.limited, "a").id == job.id
    work()
    assert rows(redis) == [0, 1, 2, 3] and not redis.hvals("rqjobs:unique")


@pytest.mark.parametrize("how", ["return", "raise"])
def test_function_that_catches_the_interruption_is_continued_all_the_same(redis, how):
    job = rqjobs.enqueue(loop_jobs.catches, "a", how)
    work()
    assert rows(redis) == [0, "finally"] and job.get_status() == JobStatus.QUEUED
    work()
    assert rows(redis) == [0, "finally", 1, 2, "finally"]
    assert job.return_value() == "returned"


def test_coroutine_is_interrupted(redis):
    rqjobs.enqueue(loop_jobs.coroutine, "a")
    work()
    assert rows(redis) == [0]
    work()
    assert rows(redis) == [0, 1, 2]


def test_loops_are_continued_by_order_and_by_name(redis):
    job = rqjobs.enqueue(loop_jobs.two, "a")
    for _ in range(3):
        work()
    assert rows(redis) == ["a", "b", "c", "d", "end"]
    assert job.get_status() == JobStatus.FINISHED


def test_nested_loops_are_refused_before_a_row_of_the_inner_one(redis):
    job = rqjobs.enqueue(loop_jobs.nested, "a")
    work()
    assert "plain loop" in job.latest_result().exc_string and not rows(redis)


def test_file_is_where_it_was_after_a_break(tmp_path):
    path = tmp_path / "mail"
    path.write_text("a\nb\n\nrest\n")
    job = rqjobs.enqueue(loop_jobs.broken_off, str(path))
    work()
    assert job.return_value() == "rest\n"


def test_keys_keep_their_types():
    keys = [(1, "a"), datetime(2026, 1, 1, tzinfo=timezone.utc), UUID(int=7), 1.5, "é", 0]
    job = rqjobs.enqueue(loop_jobs.keyed, keys)
    work()
    work()
    assert job.return_value() == [1, 2, 3, 4, 5]


def test_meta_belongs_to_the_cursor(redis):
    job = rqjobs.enqueue(loop_jobs.sums, "a")
    work()
    job.refresh()
    assert job.meta == {"sum": 3}


@pytest.mark.parametrize("name, count", [("canceled", 2), ("deleted", 2), ("again", 2)])
def test_run_that_nobody_waits_for_ends(redis, name, count):
    job = rqjobs.enqueue(loop_jobs.canceled, name)
    work()
    assert rows(redis, name) == [0, 1]
    if name == "canceled":
        assert job.get_status() == JobStatus.CANCELED
    elif name == "deleted":
        assert not redis.exists(job.key)
    else:
        assert redis.lrange("rq:queue:other", 0, -1) == [job.id.encode()]
    assert not redis.lrange("rq:queue:default", 0, -1)


def test_grown_horse_is_replaced_and_the_loop_goes_on(redis, monkeypatch):
    monkeypatch.setattr(horse, "GROWN_LOOP_MIN_SECONDS", 0.01)
    monkeypatch.setattr(horse.Horse, "_has_grown", lambda self: self.client.get("runs:a") == b"1")
    job = rqjobs.enqueue(loop_jobs.grows, "a")
    work()
    assert rows(redis) == [0, 1, 2] and job.get_status() == JobStatus.FINISHED
    assert redis.get("runs:a") == b"2"


@pytest.mark.parametrize(
    "stored",
    [
        b"x",
        b"\xff" * 10,
        b"[]",
        b"{}",
        b"x" * 5000,
        b"[" * 2000,
        '{"of":"OF","loops":{"#1":["sequence",-1,0,false]}}',
        '{"of":"OF","loops":{"#1":["sequence","5",0,false]}}',
        '{"of":"OF","loops":{"#1":["file",5,0,false]}}',
        '{"of":"OF","loops":{"#1":["sequence",5]}}',
        '{"of":"OF","loops":{"#1":["sequence",5,-5,false]}}',
        '{"of":"OF","loops":7}',
        '{"of":"another life","loops":{"#1":["sequence",5,5,false]}}',
    ],
)
def test_forged_cursor_begins_at_the_start(redis, stored):
    job = rqjobs.enqueue(loop_jobs.visit, "a", "list")
    if isinstance(stored, str):
        stored = stored.replace("OF", redis.hget(job.key, "created_at").decode())
    redis.hset(job.key, mapping={"rqjobs_cursors": stored, "rqjobs_progress": stored})
    assert job.progress is None
    work()
    assert rows(redis) == TEN and has_fields(redis, job) == [False, True]


def test_cursor_behind_the_end_of_a_shorter_list_ends_the_loop(redis):
    job = rqjobs.enqueue(loop_jobs.visit, "a", "list")
    created = redis.hget(job.key, "created_at").decode()
    stored = {"of": created, "loops": {"#1": ["sequence", 2**70, 20, False]}}
    redis.hset(job.key, "rqjobs_cursors", json.dumps(stored))
    work()
    assert not rows(redis) and job.get_status() == JobStatus.FINISHED


def test_progress_is_kept_at_once_and_with_the_outcome(redis):
    job = rqjobs.enqueue(loop_jobs.says, 3, "x" * 300)
    assert job.progress is None
    work()
    assert job.return_value() == [1, 1, 1]
    assert job.progress[:3] == (3, 3, "x" * 199 + "…")
    assert abs((job.progress.when - datetime.now(timezone.utc)).total_seconds()) < 60
    for name, expected in (("loop", (3, 5, "")), ("own", (2, 100, "own"))):
        job = rqjobs.enqueue(loop_jobs.says_in_a_loop, name)
        work()
        assert job.progress[:3] == expected


def test_plain_job_has_no_fields_of_loops(redis):
    job = rqjobs.enqueue(loop_jobs.note, "a", 1)
    work()
    assert has_fields(redis, job) == [False, False]


def test_bad_values_in_a_job_fail_it_with_nothing_stored(redis):
    jobs = [rqjobs.enqueue(loop_jobs.refused, what) for what in ("cursor", "large", "done")]
    work()
    assert all(job.get_status() == JobStatus.FAILED for job in jobs)
    assert jobs[2].progress is None
    for job in jobs[:2]:
        assert b"null,0,false" in redis.hget(job.key, "rqjobs_cursors")


def test_outage_of_redis_does_not_disturb_the_loop(redis, monkeypatch):
    class Unreachable:
        def run(self, *args):
            raise ConnectionError("away")

    monkeypatch.setattr(loops, "KEEP_CURSOR", Unreachable())
    job = rqjobs.enqueue(loop_jobs.visit, "a", "list", "", [4], every=0)
    work()
    work()
    assert rows(redis) == TEN and job.progress[:2] == (10, 10)


def lose_the_reply(run):
    reply = run()
    if reply == b"settled":
        raise ConnectionError("the reply is lost")
    return reply


def die_afterwards(run):
    run()
    loop_jobs.kill()


def die_before(run):
    loop_jobs.kill()


@pytest.mark.parametrize("fault", [lose_the_reply, die_afterwards, die_before])
def test_fault_around_the_interruption_loses_and_doubles_nothing(redis, monkeypatch, fault):
    interrupt = transitions.interrupt

    def faulty(*args):
        return fault(lambda: interrupt(*args))

    monkeypatch.setattr(supervisor, "CRASH_DELAY_SECONDS", 0.0)
    monkeypatch.setattr(transitions, "interrupt", faulty)
    job = rqjobs.enqueue(loop_jobs.visit, "a", "list", "", [4])
    work()
    assert redis.lrange("rq:queue:default", 0, -1) == [job.id.encode()]
    assert not redis.keys("rqjobs:claims:*")
    work()
    assert rows(redis) == TEN


def test_full_redis_refuses_both_scripts_before_their_first_write(redis):
    job = rqjobs.enqueue(loop_jobs.note, "a", 1)
    leases.renew_lease(redis, "w", {}, True)
    (taken,) = claim(redis, "w", ["default"])
    before = {key: redis.dump(key) for key in redis.scan_iter()}
    scripts.load_scripts(redis)
    redis.script_load(scripts.KEEP_CURSOR.source)
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(ResponseError, match=r"OOM|maxmemory"):
            transitions.interrupt(redis, "w", taken, {"rqjobs_progress": "x"})
        with pytest.raises(ResponseError, match=r"OOM|maxmemory"):
            scripts.KEEP_CURSOR.run(redis, [job.key], [taken.token, "rqjobs_progress", "x"])
    finally:
        redis.config_set("maxmemory", 0)
    assert before == {key: redis.dump(key) for key in redis.scan_iter()}


def test_interrupt_is_refused_without_the_token(redis):
    job = rqjobs.enqueue(loop_jobs.note, "a", 1)
    leases.renew_lease(redis, "w", {}, True)
    (taken,) = claim(redis, "w", ["default"])
    stale = taken._replace(token="0" * 32)
    fields = {"rqjobs_progress": "x"}
    assert transitions.interrupt(redis, "w", stale, fields) == b"refused"
    assert not redis.hexists(job.key, "rqjobs_progress")
    redis.set("rq:queue:default", "odd")
    with pytest.raises(Exception, match="is not a list"):
        transitions.interrupt(redis, "w", taken, fields)
    redis.delete("rq:queue:default")
    assert transitions.interrupt(redis, "w", taken, fields) == b"settled"
    assert transitions.interrupt(redis, "w", taken, fields) == b"already"
    assert redis.lrange("rq:queue:default", 0, -1) == [job.id.encode()]
