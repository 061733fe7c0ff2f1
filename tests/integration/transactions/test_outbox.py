"""The outbox: a job is a row of the application's transaction until the scheduler moves it.

The processes of the application and of the scheduler are killed between every two steps. A step is
a statement, a commit, or a command of Redis, before and after it has had its effect.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import sys
import threading
import types
from pathlib import Path

import postgres
import pytest
import redis.connection
from click.testing import CliRunner
from rq.job import JobStatus
from sample_jobs import ok
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, registry
from sqlalchemy.schema import CreateTable

import rqjobs
from rqjobs import cli, config, outbox, schedules
from rqjobs.broker import enqueueing, keys, scripts
from rqjobs.broker import flows as broker_flows
from rqjobs.maintenance import doctor, sweep

METADATA = MetaData()
ORDERS = Table(
    "orders", METADATA, Column("id", Integer, primary_key=True), Column("name", String(50))
)


class Order:
    def __init__(self, name):
        self.name = name


registry().map_imperatively(Order, ORDERS)


@pytest.fixture(scope="session")
def postgres_url():
    programs = postgres.folder_of_programs()
    if not programs:
        assert "CI_BROWSER" not in os.environ, "CI installs PostgreSQL"
        pytest.skip("PostgreSQL is not installed")
    with postgres.server(programs) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """A database with the application's table and that of the outbox, which is in use."""
    found = f"sqlite:///{tmp_path}/shop.sqlite"
    if request.param == "postgresql":
        found = request.getfixturevalue("postgres_url")
    yield from prepared(found)


@pytest.fixture
def sqlite(tmp_path):
    yield from prepared(f"sqlite:///{tmp_path}/shop.sqlite")


def prepared(url):
    config.use(outbox_url=url)
    engine = create_engine(url)
    METADATA.drop_all(engine)
    METADATA.create_all(engine)
    outbox.table().drop(engine, checkfirst=True)
    assert outbox.create() and not outbox.create()
    engine.dispose()
    yield url


@pytest.fixture
def session(sqlite):
    engine = create_engine(sqlite)
    with Session(engine) as session:
        yield session
    engine.dispose()


def move(redis):
    mover = outbox.Mover(config.current().outbox_url, redis)
    try:
        return mover.move_all()
    finally:
        mover.close()


def count(url, table):
    engine = create_engine(url)
    with engine.connect() as database:
        number = database.execute(text(f"SELECT count(*) FROM {table}")).scalar()
    engine.dispose()
    return number


def run_all(redis):
    """The ids in the queue. The jobs are deleted, so a second move would store them again."""
    ids = [job_id.decode() for job_id in redis.lrange("rq:queue:default", 0, -1)]
    redis.delete("rq:queue:default", *(f"rq:job:{job_id}" for job_id in ids))
    return ids


def killed_at(number, program):
    """Run `program` in a child that is killed at this step; False if it ends before."""
    child = os.fork()
    if not child:
        try:
            program(Steps(number))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


class Steps:
    """Counts the steps of this process, and kills it at one of them."""

    def __init__(self, last):
        self.left = last
        for name in ("send_packed_command", "read_response"):
            self.watch(redis.connection.AbstractConnection, name)
            self.watch(redis.connection.Connection, name)

    def watch(self, owner, name):
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            self.step()
            result = original(*args, **kwargs)
            self.step()
            return result

        setattr(owner, name, watched)

    def watch_engine(self, engine):
        self.watch(engine.dialect, "do_commit")
        for when in ("before_cursor_execute", "after_cursor_execute"):
            event.listen(engine, when, lambda *_: self.step())
        return engine

    def step(self):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def test_an_application_killed_between_two_steps_has_a_job_for_each_commit(url, redis, eventually):
    def application(steps):
        engine = steps.watch_engine(create_engine(url))
        with Session(engine) as session, rqjobs.transaction(session):
            session.add(Order("a"))
            rqjobs.enqueue(ok, 1)
            session.commit()

    number = 1
    while killed_at(number, application):
        number += 1
        eventually(lambda: move(redis) or not count(url, outbox.TABLE_NAME))
        assert redis.llen("rq:queue:default") == count(url, "orders"), f"step {number}"
    assert number > 8 and count(url, "orders") > 1
    redis.delete("rq:queue:default")


def test_a_mover_killed_between_two_steps_moves_each_row_once(url, redis, eventually):
    engine = create_engine(url)

    def scheduler(steps):
        make = outbox.make_engine
        outbox.make_engine = lambda url: steps.watch_engine(make(url))
        move(rqjobs.client())

    number, killed = 1, True
    while killed:
        with Session(engine) as session:
            jobs = [rqjobs.enqueue(ok, n, after_commit=session) for n in range(2)]
            session.commit()
        killed = killed_at(number, scheduler)
        number += 1
        ran = run_all(redis)
        eventually(lambda: move(redis) or not count(url, outbox.TABLE_NAME))
        ran += run_all(redis)
        assert ran == [job.id for job in jobs], f"step {number}"
    assert number > 20
    engine.dispose()


def test_movers_at_the_same_time_move_each_row_once(url, redis, monkeypatch):
    engine = create_engine(url)
    with Session(engine) as session, rqjobs.transaction(session):
        jobs = [rqjobs.enqueue(ok, number) for number in range(3)]
        session.commit()
    engine.dispose()
    slow = outbox.Mover(url, redis)
    store = slow._store

    def store_late(placements, read_at):
        assert len(placements) == 3
        move(redis)
        ran.extend(run_all(redis))
        return store(placements, read_at)

    ran = []
    monkeypatch.setattr(slow, "_store", store_late)
    slow.move_all()
    slow.close()
    assert ran + run_all(redis) == [job.id for job in jobs]
    assert not count(url, outbox.TABLE_NAME)


def enqueue_flow(session):
    members = rqjobs.map(ok, range(5))
    with rqjobs.transaction(session):
        return rqjobs.chord(members, rqjobs.s(ok)).enqueue()


def check_flow(flow, redis):
    """All jobs of the flow are in their places, once. They are deleted then."""
    ids = [job_id.encode() for job_id in flow.job_ids]
    assert redis.lrange("rq:queue:default", 0, -1) == ids[:-1]
    assert redis.zrange("rq:deferred:default", 0, -1) == ids[-1:]
    assert redis.lrange(keys.flow_jobs(flow.id), 0, -1) == ids
    assert not redis.exists(keys.HELD_FLOWS, keys.flow_held(flow.id))
    redis.delete("rq:queue:default", "rq:deferred:default", *redis.keys("rq*:*job*"))


def test_a_flow_is_one_row_and_moved_once_whenever_a_mover_is_killed(
    sqlite, redis, eventually, monkeypatch
):
    """A flow was stored after the commit, and lost if its process died before."""
    monkeypatch.setattr(broker_flows, "JOBS_PER_SCRIPT", 2)
    engine = create_engine(sqlite)

    def scheduler(steps):
        make = outbox.make_engine
        outbox.make_engine = lambda url: steps.watch_engine(make(url))
        move(rqjobs.client())

    stride = 5  # each run of the test tries every fifth step
    number, killed = random.randint(1, stride), True
    while killed:
        with Session(engine) as session:
            flow = enqueue_flow(session)
            with pytest.raises(rqjobs.flows.NoSuchFlow, match="moved to Redis by the scheduler"):
                flow.status  # noqa: B018
            session.commit()
        assert count(sqlite, outbox.TABLE_NAME) == 1
        killed = killed_at(number, scheduler)
        number += stride
        eventually(lambda: move(redis) or not count(sqlite, outbox.TABLE_NAME))
        sweep.sweep(redis, force=True)  # goes on with a release
        check_flow(flow, redis)
    assert number > 30
    engine.dispose()


def test_a_flow_in_the_outbox_outlives_two_movers_and_a_drop(session, sqlite, redis, monkeypatch):
    monkeypatch.setattr(broker_flows, "JOBS_PER_SCRIPT", 2)
    enqueue = enqueueing.enqueue_jobs_of_row
    calls = []

    def interfere(*args):
        calls.append(args)
        if len(calls) == 2:  # another mover stores all of it
            move(redis)
        return enqueue(*args)

    flow = enqueue_flow(session)
    session.commit()
    monkeypatch.setattr(enqueueing, "enqueue_jobs_of_row", interfere)
    assert move(redis) == 1 and not count(sqlite, outbox.TABLE_NAME)
    check_flow(flow, redis)

    def abandon(*args):
        outcome = enqueue(*args)
        redis.zadd(keys.HELD_FLOWS, {second.id: 1})
        return outcome

    second = enqueue_flow(session)
    session.commit()
    monkeypatch.setattr(enqueueing, "enqueue_jobs_of_row", abandon)
    assert move(redis) == 0
    monkeypatch.setattr(enqueueing, "enqueue_jobs_of_row", enqueue)
    sweep.sweep(redis, force=True)
    assert not redis.exists(keys.flow_jobs(second.id))
    assert move(redis) == 1
    check_flow(second, redis)


def test_a_forged_flow_stops_no_other_row(session, sqlite, redis):
    enqueue_flow(session)
    session.flush()
    (good,) = session.execute(text("SELECT payload FROM rqjobs_outbox")).scalars().all()
    flow = json.loads(good)
    jobs = flow["jobs"]
    other = {**jobs[1], "fields": {**jobs[1]["fields"], "rqjobs_flow": {"base64": ""}}}
    damaged = [
        {**flow, "jobs": []},
        {**flow, "jobs": None},
        {**flow, "jobs": [None]},
        {**flow, "jobs": jobs[1:]},
        {**flow, "jobs": [jobs[0], other]},
        {**flow, "jobs": [{**jobs[0], "place": "back"}]},
        {**flow, "jobs": [{**jobs[0], "parents": ["1", "elsewhere"]}]},
        {**flow, "flow": ["a"]},
        {**jobs[0]},
    ]
    session.execute(text("DELETE FROM rqjobs_outbox"))
    redis.hset("rq:job:taken", "status", "finished")
    existing = {**flow, "jobs": [{**jobs[0], "id": "taken"}]}
    session.expunge_all()
    session.add_all([outbox.OutboxRow(json.dumps(one)) for one in [*damaged, existing]])
    last = enqueue_flow(session)
    session.commit()
    assert move(redis) == 1
    assert len(outbox.status().damaged) == len(damaged) and outbox.status().waiting == 1
    assert redis.hgetall("rq:job:taken") == {b"status": b"finished"}
    check_flow(last, redis)


def test_changes_of_schedules_are_rows(session, sqlite, redis):
    """They were made after the commit, and lost if the process died before."""

    def commit(change, *args, **kwargs):
        result = change(*args, **kwargs, after_commit=session)
        session.commit()
        before = schedules.exists("report") and schedules.get("report")
        assert count(sqlite, outbox.TABLE_NAME) == 1 and move(redis) == 1
        return result, before

    retry = rqjobs.Retry(max=2, interval=[1, 2])
    schedules.add("report", rqjobs.every(hours=1), ok, 1, after_commit=session)
    session.rollback()
    preview, before = commit(
        schedules.add, "report", rqjobs.every(hours=2), ok, 2, retry=retry, meta={"a": 1}
    )
    found = schedules.get("report")
    assert not before and (found.args, found.rule) == (preview.args, preview.rule) == (
        [2],
        found.rule,
    )
    assert found.fields == preview.fields and found.digest == preview.digest
    _, before = commit(schedules.edit, "report", args=[3], rule=rqjobs.every(hours=3))
    assert before.args == [2] and schedules.get("report").args == [3]
    commit(schedules.pause, "report")
    assert schedules.get("report").state == "paused"
    commit(schedules.pause, "report")
    commit(schedules.resume, "report")
    assert schedules.get("report").state == "active" and schedules.get("report").next
    job, _ = commit(schedules.run_now, "report")
    assert job.get_status() is JobStatus.QUEUED and [run.job_id for run in schedules.runs("report")]
    commit(schedules.remove, "report")
    assert not schedules.exists("report")


def test_a_run_of_a_schedule_is_moved_once_whenever_a_mover_is_killed(sqlite, redis, eventually):
    engine = create_engine(sqlite)
    schedules.add("report", rqjobs.every(hours=1), ok, 1)

    def scheduler(steps):
        make = outbox.make_engine
        outbox.make_engine = lambda url: steps.watch_engine(make(url))
        move(rqjobs.client())

    stride = 4
    number, killed = random.randint(1, stride), True
    while killed:
        with Session(engine) as session, rqjobs.transaction(session):
            job = schedules.run_now("report")
            schedules.edit("report", args=[number])
            session.commit()
        killed = killed_at(number, scheduler)
        number += stride
        ran = run_all(redis)
        eventually(lambda: move(redis) or not count(sqlite, outbox.TABLE_NAME))
        assert ran + run_all(redis) == [job.id], f"step {number}"
        assert schedules.get("report").args == [number - stride]
    assert number > 20
    engine.dispose()


def test_a_forged_change_of_a_schedule_stops_no_other_row(session, redis):
    schedules.add("report", rqjobs.every(hours=1), ok, 1, after_commit=session)
    session.flush()
    (good,) = session.execute(text("SELECT payload FROM rqjobs_outbox")).scalars().all()
    change = json.loads(good)
    call = change["call"]
    damaged = [
        {**change, "schedule": "a b"},
        {**change, "schedule": ["a"]},
        {**change, "change": "else"},
        {**change, "change": ["add"]},
        {**change, "change": "pause", "schedule": "missing"},
        {**change, "change": "run", "schedule": "missing"},
        {**change, "rule": "{"},
        {**change, "rule": 5},
        {**change, "call": None},
        {**change, "call": {**call, "fields": {}}},
        {**change, "call": {**call, "fields": [["data", "x"]]}},
        {**change, "call": {**call, "fields": {**call["fields"], "\ud800": "x"}}},
        {**change, "call": {**call, "queue": "\ud800"}},
        {**change, "call": {**call, "queue": 5}},
        {"schedule": "report"},
    ]
    session.execute(text("DELETE FROM rqjobs_outbox"))
    session.expunge_all()
    session.add_all([outbox.OutboxRow(json.dumps(one)) for one in damaged])
    schedules.add("other", rqjobs.every(hours=1), ok, 1, after_commit=session)
    session.commit()
    assert move(redis) == 1 and schedules.names() == ["other"]
    assert len(outbox.status().damaged) == len(damaged)


def test_a_row_belongs_to_a_transaction_in_two_phases(postgres_url, redis):
    """It is there when the prepared transaction is committed, and not before."""
    for url in prepared(postgres_url):
        engine = create_engine(url)
        for end in (Session.commit, Session.rollback):
            with Session(engine, twophase=True) as session, rqjobs.transaction(session):
                job = rqjobs.enqueue(ok, end.__name__)
                flow = enqueue_flow(session)
                session.add(Order(end.__name__))
                session.prepare()
                assert not move(redis)
                end(session)
            is_committed = end is Session.commit
            assert move(redis) == 2 * is_committed and count(url, "orders") == 1
            assert redis.exists(job.key) == redis.exists(keys.flow(flow.id)) == is_committed
        engine.dispose()


def test_a_mover_that_has_read_its_rows_long_ago_stores_nothing(session, redis):
    placement = enqueueing.Placement("default", "a", "back", None, False, {"data": b"x"})
    long_ago = scripts.redis_time(redis) - enqueueing.ROW_MOVE_SECONDS - 1
    outcomes = enqueueing.enqueue_rows(redis, {"row": placement}, long_ago)
    assert outcomes == {"row": outbox.RowOutcome.READ_TOO_LONG_AGO}
    assert not redis.exists("rq:job:a")
    assert enqueueing.enqueue_rows(redis, {"row": placement}, long_ago + 60) == {
        "row": outbox.RowOutcome.MOVED
    }
    enqueueing.forget_rows(redis, ["row", "unknown"])
    kept = redis.zscore("rqjobs:outbox", "row") - scripts.redis_time(redis)
    assert enqueueing.ROW_MOVE_SECONDS - 10 < kept <= enqueueing.ROW_MOVE_SECONDS
    redis.zadd("rqjobs:outbox", {"row": 1})
    enqueueing.forget_rows(redis, [])
    assert not redis.exists("rqjobs:outbox")


def test_all_options_of_a_job_go_through_the_outbox(session, redis):
    with rqjobs.transaction(session):
        parent = rqjobs.enqueue(ok, 1, meta={"who": "Ada"}, job_timeout=5)
        child = rqjobs.enqueue(ok, 2, depends_on=parent)
        front = rqjobs.enqueue(ok, "\ud800 \0 ü", at_front=True, ttl=600)
        delayed = rqjobs.enqueue_in(60, ok, 3)
        first = rqjobs.enqueue(ok, 4, unique="args", limit=1)
        rqjobs.enqueue(ok, 4, unique="args")
        put_off = rqjobs.enqueue(ok, 5, unique="args", debounce=60)
        many = rqjobs.enqueue_many([(ok, 6), (ok, 7)])
    assert parent.get_status() is JobStatus.CREATED
    session.commit()
    assert parent.get_status() is JobStatus.CREATED and not redis.keys("rq:job:*")
    assert move(redis) == 9
    ids = [job_id.decode() for job_id in redis.lrange("rq:queue:default", 0, -1)]
    assert ids == [job.id for job in (front, parent, first, *many)]
    assert parent.get_status() is JobStatus.QUEUED and child.get_status() is JobStatus.DEFERRED
    assert redis.zrange("rq:scheduled:default", 0, -1) == [
        job.id.encode() for job in (delayed, put_off)
    ]
    found = rqjobs.Job.fetch(parent.id, connection=redis)
    assert (found.args, found.meta, found.timeout) == ([1], {"who": "Ada"}, 5)
    assert 0 < redis.ttl(f"rq:job:{front.id}") <= 600
    assert rqjobs.Job.fetch(front.id, connection=redis).args == list(front.args)
    assert not move(redis) and redis.llen("rq:queue:default") == 5


def test_a_row_is_part_of_its_savepoint_and_of_the_flush(session, redis):
    event.listen(
        session, "before_commit", lambda session: rqjobs.enqueue(ok, 1, after_commit=session)
    )
    event.listen(
        session, "after_flush", lambda session, _: rqjobs.enqueue(ok, 2, after_commit=session)
    )
    with session.begin(), rqjobs.transaction(session):
        savepoint = session.begin_nested()
        rqjobs.enqueue(ok, "rolled back")
        session.flush()
        savepoint.rollback()
        session.add(Order("a"))
    move(redis)
    found = rqjobs.Job.fetch_many(
        [job_id.decode() for job_id in redis.lrange("rq:queue:default", 0, -1)], connection=redis
    )
    assert {job.args[0] for job in found} == {1, 2}


def test_an_async_session_writes_rows(sqlite, redis):
    async def use():
        engine = create_async_engine(sqlite.replace("sqlite:", "sqlite+aiosqlite:"))
        async with AsyncSession(engine) as session:
            rqjobs.enqueue(ok, 1, after_commit=session)
            await session.commit()
            rqjobs.enqueue(ok, 2, after_commit=session)
        await engine.dispose()

    asyncio.run(use())
    assert move(redis) == 1


def test_rows_are_written_while_redis_is_down(session, redis):
    rqjobs.queues._unserved_checked_at.clear()
    working = config.current().redis_url
    config.use(redis_url="redis://127.0.0.1:1")
    with rqjobs.transaction(session):
        rqjobs.enqueue(ok, 1)
        rqjobs.enqueue_in(60, ok, 2)
    session.commit()
    config.use(redis_url=working)
    assert move(redis) == 2


def test_a_row_that_cannot_be_moved_stops_no_other(session, redis, monkeypatch, caplog):
    monkeypatch.setattr(outbox, "BATCH_ROWS", 2)
    job = rqjobs.enqueue(ok, 1, after_commit=session)
    refused = rqjobs.queue("low").enqueue(ok, 2, after_commit=session)
    session.flush()
    good = session.execute(text("SELECT payload FROM rqjobs_outbox")).scalars().first()
    damaged = ["", "null", "[]", "{", json.dumps({**json.loads(good), "place": "nowhere"})]
    fields = json.loads(good)["fields"]
    for change in (
        {"parents": "abc"},
        {"ttl": "1"},
        {"ttl": 2**31},
        {"fields": {}},
        {"fields": {**fields, "origin": "\ud800"}},
        {"fields": {**fields, "\ud800": ""}},
        {"id": ""},
        {"queue": 5},
        {"queue": "\ud800"},
        {"parents": ["", "\ud800"]},
    ):
        damaged.append(json.dumps({**json.loads(good), **change}))
    for number, payload in enumerate(damaged):
        session.execute(
            text("INSERT INTO rqjobs_outbox VALUES (:id, '2026-01-01 00:00:00', :payload, NULL)"),
            {"id": f"{number:032x}", "payload": payload},
        )
    session.commit()
    redis.set("rq:queue:low", "of another type")
    mover = outbox.Mover(config.current().outbox_url, redis)
    assert mover.move_all() == 1
    mover.close()
    assert redis.lrange("rq:queue:default", 0, -1) == [job.id.encode()]
    assert "rq:queue:low has the wrong type" in "".join(mover.refused.values())
    found = outbox.status()
    assert found.waiting == 1 and len(found.damaged) == len(damaged)
    assert f"the row {0:032x} cannot be moved: the payload is not that of a job" in caplog.text
    findings = "\n".join(finding.message for finding in doctor.examine())
    assert f"the row {1:032x} of rqjobs_outbox cannot be moved" in findings
    shown = CliRunner().invoke(cli.main, ["outbox", "status"])
    assert shown.exit_code == 1
    assert re.match(r"1 job waits, the oldest for \d+ s\n", shown.output)
    redis.delete("rq:queue:low")
    assert move(redis) == 1 and redis.lrange("rq:queue:low", 0, -1) == [refused.id.encode()]


def test_a_due_time_that_only_python_reads_is_one(session, redis):
    job = rqjobs.enqueue_in(60, ok, 1, after_commit=session)
    session.flush()
    payload = json.loads(session.execute(text("SELECT payload FROM rqjobs_outbox")).scalar())
    payload["place"] = " 9_999_999_999 "
    changed = {"payload": json.dumps(payload)}
    session.execute(text("UPDATE rqjobs_outbox SET payload = :payload"), changed)
    session.commit()
    assert move(redis) == 1 and redis.zscore("rq:scheduled:default", job.id) == 9_999_999_999


def test_a_full_redis_leaves_the_rows(session, redis):
    rqjobs.enqueue(ok, 1, after_commit=session)
    session.commit()
    redis.config_set("maxmemory", 1)
    try:
        assert move(redis) == 0
        assert not redis.exists("rqjobs:outbox")
    finally:
        redis.config_set("maxmemory", 0)
    assert move(redis) == 1 and redis.llen("rq:queue:default") == 1


def test_a_test_of_a_project_uses_no_outbox(session, sqlite, redis, monkeypatch):
    rqjobs.enqueue(ok, 1, after_commit=session)
    session.commit()
    monkeypatch.setenv(config.TEST_REDIS, redis.connection_pool.connection_kwargs["path"])
    rqjobs.Worker(["default"]).work(burst=True, with_scheduler=True, logging_level="CRITICAL")
    assert outbox.status().waiting == 1 and not redis.exists("rq:queue:default")


def test_errors_name_the_remedy(redis, tmp_path, caplog):
    shown = CliRunner().invoke(cli.main, ["outbox", "create"])
    assert shown.exit_code == 2 and "RQJOBS_OUTBOX_URL is not set" in shown.output
    for wrong, message in [
        ("oracle+nodriver://x/y", "cannot be used"),
        ("sqlite+aiosqlite:///a", "names the async driver aiosqlite"),
    ]:
        config.use(outbox_url=wrong)
        shown = CliRunner().invoke(cli.main, ["outbox", "status"])
        assert shown.exit_code == 2 and message in shown.output
    config.use(outbox_url=f"sqlite:///{tmp_path}/new.sqlite")
    shown = CliRunner().invoke(cli.main, ["outbox", "status"])
    assert shown.exit_code == 1 and "create the table with: rqjobs outbox create" in shown.output
    assert "rqjobs outbox create" in "".join(finding.message for finding in doctor.examine())
    shown = CliRunner().invoke(cli.main, ["outbox", "create"])
    assert shown.output == "the table rqjobs_outbox is created\n"
    shown = CliRunner().invoke(cli.main, ["outbox", "status"])
    assert (shown.exit_code, shown.output) == (0, "0 jobs wait\n")
    with pytest.raises(config.ConfigError, match="RQJOBS_OUTBOX_URL=… is not a database URL"):
        config.Config.from_env({"RQJOBS_OUTBOX_URL": "password"})


def test_a_commit_without_the_table_names_the_remedy(session, redis):
    outbox.table().drop(session.get_bind())
    rqjobs.enqueue(ok, 1, after_commit=session)
    with pytest.raises(
        OperationalError, match="rqjobs_outbox; create the table with: rqjobs outbox"
    ):
        session.commit()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "sqlite:///shop.sqlite",
            "is the file /.*, and the session writes to /.*; set it to sqlite",
        ),
        ("postgresql://localhost/shop", "of postgresql, and the session writes to one of sqlite"),
    ],
)
def test_a_session_of_another_database_is_refused(session, redis, url, message):
    config.use(outbox_url=url)
    with pytest.raises(config.ConfigError, match=message):
        rqjobs.enqueue(ok, 1, after_commit=session)
    assert not session.new


def test_the_path_of_a_file_may_be_relative(sqlite, redis, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    engine = create_engine("sqlite:///shop.sqlite")
    with Session(engine) as session:
        rqjobs.enqueue(ok, 1, after_commit=session)
        session.commit()
    engine.dispose()
    assert move(redis) == 1


def test_the_migration_of_the_docs_makes_the_same_table(monkeypatch):
    page = Path(__file__).parents[3] / "docs" / "transactions.md"
    (migration,) = re.findall(r"```python\n(import sqlalchemy as sa.*?)```", page.read_text(), re.S)
    made = []
    operations = types.SimpleNamespace(
        create_table=lambda *parts: made.append(Table(parts[0], MetaData(), *parts[1:])),
        drop_table=lambda name: made.append(name),
    )
    monkeypatch.setitem(sys.modules, "alembic", types.SimpleNamespace(op=operations))
    names = {}
    exec(migration, names)
    names["upgrade"]()
    names["downgrade"]()
    statements = [str(CreateTable(table)) for table in (made[0], outbox.table())]
    assert statements[0] == statements[1] and made[1] == outbox.TABLE_NAME


def test_a_mover_that_hangs_is_replaced(session, redis, monkeypatch, eventually):
    job = rqjobs.enqueue(ok, 1, after_commit=session)
    session.commit()
    goes_on = threading.Event()
    make, calls = outbox.make_engine, []

    def make_engine(url):
        calls.append(url)
        if len(calls) == 1:
            goes_on.wait()
        return make(url)

    monkeypatch.setattr(outbox, "make_engine", make_engine)
    mover = outbox.BackgroundMover(config.current().outbox_url, redis)
    mover.check(is_active=True)
    hanging = mover._mover
    eventually(lambda: calls)
    mover.check(is_active=True)
    assert len(calls) == 1
    monkeypatch.setattr(mover, "_hanging_seconds", -1)
    mover.check(is_active=True)
    eventually(lambda: redis.llen("rq:queue:default"))
    goes_on.set()
    mover._mover.is_abandoned = True
    eventually(lambda: threading.active_count() == 1 or not _movers())
    assert hanging.is_abandoned and run_all(redis) == [job.id]


def _movers():
    return [thread for thread in threading.enumerate() if thread.name == "rqjobs-outbox"]


def test_a_worker_moves_rows_at_once_and_a_hanging_database_holds_up_nothing_else(
    session, sqlite, redis, worker, eventually
):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = f"postgresql+pg8000://u@127.0.0.1:{silent.getsockname()[1]}/d"
        options = ("--with-scheduler",)
        first = worker(options=options, env={"RQJOBS_OUTBOX_URL": hanging})
        config.use(outbox_url=None)
        delayed = rqjobs.enqueue_in(0.1, ok, 1)
        eventually(lambda: delayed.get_status() is JobStatus.FINISHED)
        first.terminate()
        assert first.wait(30) == 0, first.output()
    config.use(outbox_url=sqlite)
    outbox.table().drop(session.get_bind())
    second = worker(options=options, env={"RQJOBS_OUTBOX_URL": sqlite})
    remedy = "create the table with: rqjobs outbox create"
    eventually(lambda: remedy in second.output(), what="a line of the log")
    outbox.create()
    job = rqjobs.enqueue(ok, 1, after_commit=session)
    session.commit()
    eventually(lambda: job.get_status() is JobStatus.FINISHED)
    eventually(lambda: not count(sqlite, outbox.TABLE_NAME))


def test_a_worker_in_burst_mode_moves_the_rows_first(session, sqlite, redis, spawn):
    job = rqjobs.enqueue(ok, 1, after_commit=session)
    session.commit()
    burst = spawn(
        sys.executable,
        *("-m", "rqjobs", "worker", "--burst"),
        env={"RQJOBS_OUTBOX_URL": sqlite},
    )
    assert burst.wait(30) == 0, burst.output()
    assert job.get_status() is JobStatus.FINISHED, burst.output()
