"""Thousands of queues, schedules and jobs. The number of commands does not grow with idle ones."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
import redis as redis_py
import sample_jobs

import rqjobs
from rqjobs import config, every, schedules, stats
from rqjobs.broker import leases, places, scripts
from rqjobs.maintenance import audit, sweep
from rqjobs.scheduler import Scheduler
from rqjobs.schedules import declared, history, store
from rqjobs.web import create_app

NAMES = 2000


@pytest.fixture
def many(redis):
    """Thousands of registered queues, and three jobs."""
    redis.sadd("rq:queues", *(f"rq:queue:customer-{number}" for number in range(NAMES)))
    return [
        rqjobs.queue(name).enqueue(sample_jobs.ok)
        for name in ("customer-5", "customer-1999", "low")
    ]


@pytest.fixture
def round_trips(monkeypatch):
    """Count the round trips of this process within the block. A pipeline is one round trip."""
    asked = []

    @contextlib.contextmanager
    def counting():
        asked.clear()
        with monkeypatch.context() as patch:
            command, batch = redis_py.Redis._execute_command, redis_py.client.Pipeline.execute
            patch.setattr(
                redis_py.Redis,
                "_execute_command",
                lambda self, *args, **options: (
                    asked.append(args),
                    command(self, *args, **options),
                )[1],
            )
            patch.setattr(
                redis_py.client.Pipeline,
                "execute",
                lambda self, *args, **options: (
                    asked.append(self.command_stack),
                    batch(self, *args, **options),
                )[1],
            )
            yield asked

    return counting


def test_a_sweep_looks_only_at_queues_in_which_something_may_be_wrong(redis, many, round_trips):
    """A sweep read each queue five times.

    With 25,000 queues it took longer than a lease.
    """
    sweep.sweep(redis, force=True)
    with round_trips() as asked:
        assert sweep.sweep(redis, force=True).requeued == []
    assert len(asked) < 30, asked
    redis.lmove("rq:queue:customer-5", "rq:queue:customer-5:intermediate", "LEFT", "RIGHT")
    with round_trips() as asked:
        assert sweep.sweep(redis, force=True).requeued == [many[0].id]
    assert len(asked) < 41, asked


def test_a_sweep_of_many_queues_reports_its_progress(redis, many, monkeypatch):
    monkeypatch.setattr(sweep, "SCAN_BATCH_KEYS", 100)
    signs = []
    sweep.sweep(redis, force=True, on_progress=lambda: signs.append(1))
    assert len(signs) >= NAMES / 100 / 2


def test_a_snapshot_and_the_newest_jobs_take_two_round_trips(redis, many, round_trips):
    newest = {"queued": 4, "running": 8, "finished": 8, "failed": 5}
    stats.overview(redis, newest)
    with round_trips() as asked:
        now, jobs = stats.overview(redis, newest)
    assert len(asked) <= 2, asked
    assert len(now.queues) == NAMES + 3 and {
        queue.name for queue in now.queues if queue.queued
    } == {"customer-5", "customer-1999", "low"}
    assert [job.id for job in jobs["queued"]] == [job.id for job in reversed(many)]


def test_the_home_page_takes_at_most_eight_round_trips(redis, many, round_trips):
    """The page took sixty to eighty-eight round trips.

    That was 90 ms at a latency of a millisecond.
    """
    rqjobs.Worker(["customer-5"]).work(burst=True, logging_level="CRITICAL")
    config.use(admin_password="correct horse", secret_key="k" * 32)
    client = create_app().test_client()
    client.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
    assert (
        client.post("/login", data={"user": "admin", "password": "correct horse"}).status_code
        == 303
    )
    client.get("/")
    with round_trips() as asked:
        page = client.get("/")
    assert page.status_code == 200 and "customer-1999" in page.text
    assert len(asked) <= 8, asked


def test_audit_reads_a_thousand_jobs_per_command(redis, many, round_trips):
    rqjobs.enqueue_many([(sample_jobs.ok, number) for number in range(3000)])
    audit.audit(redis, settle=0)
    with round_trips() as asked:
        found = audit.audit(redis, settle=0)
    assert not found.breaches and found.places["default"]["queued"] == 3000
    assert len(asked) < 40, asked


def test_the_maintenance_of_many_queues_asks_only_where_jobs_have_ended(redis, many, round_trips):
    """The maintenance kept the parent from its other tasks for seconds."""
    rqjobs.Worker(["customer-5"]).work(burst=True, logging_level="CRITICAL")
    for queue in ("customer-5", "customer-7"):
        redis.sadd(f"rq:workers:{queue}", "rq:worker:gone", "rq:worker:alive")
    redis.hset("rq:worker:alive", "state", "idle")
    redis.zadd("rq:finished:customer-5", {"long-over": 1})
    worker = rqjobs.Worker([f"customer-{number}" for number in range(NAMES)])
    worker._beaten = time.monotonic()
    places.count_places(redis, ["default"])
    with round_trips() as asked:
        worker.clean_registries()
    assert len(asked) < 41, asked
    assert redis.smembers("rq:workers:customer-7") == {b"rq:worker:alive"}
    assert redis.zrange("rq:finished:customer-5", 0, -1) == [many[0].id.encode()]


@pytest.fixture
def scheduler(redis):
    """A scheduler in this process. The test calls each step of its loop."""
    scheduler = Scheduler(
        ["default", *(f"customer-{number}" for number in range(NAMES))], connection=redis
    )
    scheduler.acquire_locks()
    scheduler._begin()
    yield scheduler
    scheduler._pubsub.close()
    scheduler.stop()


def turn(scheduler):
    """Run the scheduler's loop until it would sleep."""
    scheduler._run_due()
    while scheduler._schedules_due <= 0:
        scheduler._run_due()


def declare(redis, names):
    leases.renew_lease(redis, "w1", {"pid": 1})
    made = store.build_template(sample_jobs.note)
    words = {
        "started": scripts.redis_time(redis),
        "schedules": [
            {
                "name": name,
                "rule": every(days=400).to_json(),
                "function": made.function,
                "queue": made.queue,
                "digest": made.digest,
                "fields": {
                    field: declared.latin1_text(value) for field, value in made.fields.items()
                },
            }
            for name in names
        ],
    }
    declared.publish_declarations(redis, "w1", json.dumps(words))


def test_an_idle_scheduler_reads_no_schedule_and_all_queues_in_one_command(
    redis, scheduler, round_trips
):
    """The scheduler read all schedules every two seconds, and each queue every second.

    Delayed jobs were 8.7 s late.
    """
    schedules.add("added", every(days=400), sample_jobs.note)
    declare(redis, [f"s{number}" for number in range(300)])
    turn(scheduler)
    assert redis.zcard("rqjobs:schedules") == 301
    scheduler._queue_due.clear()
    scheduler._schedules_due = 0.0
    scheduler._upkeep_due = 0.0
    with round_trips() as asked:
        turn(scheduler)
    assert len(asked) < 15, asked
    assert not [one for one in asked if "rqjobs:schedule:" in str(one)]


def test_changes_of_declarations_are_seen_at_once_and_other_changes_later(
    redis, scheduler, monkeypatch
):
    schedules.add("mine", every(days=400), sample_jobs.note)
    declare(redis, ["mine", "theirs"])
    ticker_look(scheduler)
    assert (schedules.get("mine").source, schedules.get("theirs").source) == ("added", "code")
    schedules.remove("mine")
    ticker_look(scheduler)
    assert schedules.get("mine").source == "code"
    redis.delete("rqjobs:schedule:theirs:job")
    redis.zrem("rqjobs:schedules", "mine")
    ticker_look(scheduler)
    assert [found.name for found in schedules.all()] == []
    monkeypatch.setattr(declared, "COMPARE_SECONDS", 0)
    ticker_look(scheduler)
    ticker_look(scheduler)
    assert {(found.name, found.due == found.next) for found in schedules.all()} == {
        ("mine", True),
        ("theirs", True),
    }


def ticker_look(scheduler):
    scheduler._upkeep_due = scheduler._schedules_due = 0.0
    turn(scheduler)
    scheduler._schedules_due = 0.0
    scheduler._upkeep_due = time.monotonic() + 60
    scheduler._run_due()


def test_a_delayed_job_does_not_wait_for_thousands_of_schedules(redis, scheduler):
    declare(redis, [f"s{number}" for number in range(1000)])
    scheduler._run_due()
    job = rqjobs.enqueue_in(0, sample_jobs.ok)
    scheduler._queue_due["default"] = 0.0
    scheduler._run_due()
    assert redis.zcard("rqjobs:schedules") < 1000, "the schedules are stored in one go"
    assert rqjobs.queue("default").job_ids == [job.id]
    turn(scheduler)
    assert redis.zcard("rqjobs:schedules") == 1000


def test_outcomes_are_noted_of_what_has_ended_only(redis, round_trips):
    schedules.add("many", every(days=400), sample_jobs.note)
    ids = [schedules.run_now("many").id for _ in range(20)]
    redis.hset("rqjobs:schedules:unfinished", mapping=dict.fromkeys(ids, "many"))
    redis.hset(
        f"rq:job:{ids[3]}", mapping={"status": "finished", "ended_at": "2026-01-01T00:00:00Z"}
    )
    with round_trips() as asked:
        history.note_outcomes(redis)
    assert len(asked) < 6, asked
    assert redis.hgetall("rqjobs:schedule:many:outcomes") == {
        ids[3].encode(): b"finished 2026-01-01T00:00:00Z"
    }
    assert redis.hlen("rqjobs:schedules:unfinished") == 19
