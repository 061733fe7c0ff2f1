"""Jobs that are enqueued with a transaction of SQLAlchemy: stored by its commit, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from datetime import datetime, timedelta, timezone

import flask
import flask_sqlalchemy
import pytest
import redis.exceptions
from rq.job import JobStatus
from sample_jobs import ok
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, event
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, create_async_engine
from sqlalchemy.orm import Session, registry, scoped_session, sessionmaker

import rqjobs
from rqjobs import storing

METADATA = MetaData()
ROWS = Table("rows", METADATA, Column("id", Integer, primary_key=True), Column("name", String))


class Row:
    def __init__(self, name):
        self.name = name


registry().map_imperatively(Row, ROWS)


@pytest.fixture
def engine():
    engine = create_engine("sqlite://")
    METADATA.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine):
    with Session(engine) as session:
        yield session


def queued(redis, queue="default"):
    """The first arguments of the jobs in a queue, in order."""
    ids = redis.lrange(f"rq:queue:{queue}", 0, -1)
    return [rqjobs.Job.fetch(job_id.decode(), connection=redis).args[0] for job_id in ids]


@contextlib.contextmanager
def steps():
    """The number of jobs in each step in which jobs reach Redis."""
    sizes = []

    def store(connection, placements, jobs):
        sizes.append(len(jobs))
        storing.store_in_redis(connection, placements, jobs)

    with storing.replaced_by(store):
        yield sizes


def test_jobs_are_stored_by_the_commit_in_the_order_of_the_calls(session, redis):
    first = rqjobs.enqueue(ok, 1, after_commit=session)
    with rqjobs.transaction(session):
        second = rqjobs.enqueue(ok, 2)
        delayed = rqjobs.enqueue_in(60, ok, "later")
        rqjobs.queue("default").enqueue(ok, 3)
        many = rqjobs.enqueue_many([(ok, 4), (ok, 5)])
        child = rqjobs.enqueue(ok, 6, depends_on=second)
        at_once = rqjobs.enqueue(ok, 0, after_commit=False)
    session.add(Row("a"))
    assert queued(redis) == [0] and at_once.get_status() is JobStatus.QUEUED
    waiting = (first, second, delayed, *many, child)
    assert {job.get_status() for job in waiting} == {JobStatus.CREATED}
    with steps() as sizes:
        session.commit()
    assert sizes == [7]
    assert queued(redis) == [0, 1, 2, 3, 4, 5]
    assert first.get_status() is JobStatus.QUEUED and child.get_status() is JobStatus.DEFERRED
    assert redis.zrange("rq:scheduled:default", 0, -1) == [delayed.id.encode()]

    rqjobs.enqueue_at(datetime.now(timezone.utc), ok, 7, after_commit=session)
    session.rollback()
    rqjobs.queue("low").enqueue_in(timedelta(0), ok, 8, after_commit=session)
    session.commit()
    session.commit()
    assert redis.zcard("rq:scheduled:default") == 1 and redis.zcard("rq:scheduled:low") == 1


def end_by_rollback(session):
    session.rollback()


def end_by_close(session):
    session.close()


def end_by_a_failed_flush(session):
    session.add(Row({}))  # no driver takes it
    with pytest.raises(Exception, match="type 'dict' is not supported"):
        session.commit()
    session.rollback()


def end_by_error_in_begin(session):
    session.rollback()
    with pytest.raises(ZeroDivisionError), session.begin(), rqjobs.transaction(session):
        rqjobs.enqueue(ok, 2)
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "end", [end_by_rollback, end_by_close, end_by_a_failed_flush, end_by_error_in_begin]
)
def test_jobs_of_a_transaction_that_is_not_committed_are_never_stored(end, session, redis):
    with rqjobs.transaction(session):
        job = rqjobs.enqueue(ok, 1)
        rqjobs.schedules.add("often", rqjobs.every(minutes=5), ok)
    end(session)
    assert job.get_status() is JobStatus.CANCELED
    session.commit()
    assert not redis.keys("rq:job:*") and not rqjobs.schedules.names()


@pytest.mark.parametrize("begin", [Session.begin, lambda session: contextlib.nullcontext()])
def test_a_savepoint_that_is_rolled_back_takes_its_jobs_only(begin, session, redis):
    with begin(session), rqjobs.transaction(session):
        rqjobs.enqueue(ok, "before")
        with session.begin_nested():
            rqjobs.enqueue(ok, "released")
            inner = session.begin_nested()
            rqjobs.enqueue(ok, "rolled back inside")
            inner.rollback()
            rqjobs.enqueue(ok, "released, too")
        assert not queued(redis), "the end of a savepoint is no commit"
        outer = session.begin_nested()
        rqjobs.enqueue(ok, "rolled back")
        with session.begin_nested():
            rqjobs.enqueue(ok, "released into what is rolled back")
        outer.rollback()
        session.begin_nested()
        rqjobs.enqueue(ok, "in a savepoint that the commit releases")
    session.commit()
    assert queued(redis) == [
        "before",
        "released",
        "released, too",
        "in a savepoint that the commit releases",
    ]


def test_jobs_of_listeners_are_stored_by_the_same_commit(session, redis):
    """A listener can run within the flush, or after the commit."""
    event.listen(
        session, "after_flush", lambda session, _: rqjobs.enqueue(ok, 1, after_commit=session)
    )
    event.listen(
        session, "after_commit", lambda session: rqjobs.enqueue(ok, 2, after_commit=session)
    )
    session.add(Row("a"))
    session.commit()
    assert queued(redis) == [1, 2]


def test_two_phases(redis, tmp_path):
    """SQLite has none; the events of the session are the same."""
    engine = create_engine(f"sqlite:///{tmp_path}/rows.sqlite")
    engine.dialect.do_begin_twophase = engine.dialect.do_prepare_twophase = lambda *_: None
    engine.dialect.do_commit_twophase = lambda connection, *_, **__: connection.connection.commit()
    METADATA.create_all(engine)
    with Session(engine, twophase=True) as session:
        session.add(Row("a"))
        rqjobs.enqueue(ok, 1, after_commit=session)
        session.prepare()
        assert not queued(redis)
        session.commit()
    engine.dispose()
    assert queued(redis) == [1]


def test_a_scoped_session_is_that_of_the_scope_at_each_call(engine, redis):
    session = scoped_session(sessionmaker(engine))
    with rqjobs.transaction(session):
        rqjobs.enqueue(ok, 1)
        session.remove()
        rqjobs.enqueue(ok, 2)
        other = threading.Thread(target=lambda: rqjobs.enqueue(ok, "not in the block"))
        other.start()
        other.join()
        session.commit()
    session.remove()
    assert queued(redis) == ["not in the block", 2]


def test_async_sessions(redis, tmp_path):
    async def use():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/rows.sqlite")
        async with engine.begin() as database:
            await database.run_sync(METADATA.create_all)
        async with AsyncSession(engine) as session:
            async with session.begin():
                session.add(Row("a"))
                rqjobs.enqueue(ok, 1, after_commit=session)
                assert not queued(redis)
            with rqjobs.transaction(session):
                rqjobs.enqueue(ok, 2)
                await session.rollback()
        scope = async_scoped_session(lambda: AsyncSession(engine), asyncio.current_task)
        rqjobs.enqueue(ok, 3, after_commit=scope)
        await scope.commit()
        await scope.remove()
        await engine.dispose()

    asyncio.run(use())
    assert queued(redis) == [1, 3]


def test_a_task_that_outlasts_the_block_enqueues_at_once(session, redis):
    """It has a copy of the context. Its job waited for a commit that never came, and was dropped."""

    async def use():
        may_go_on = asyncio.Event()

        async def later():
            await may_go_on.wait()
            rqjobs.enqueue(ok, 2)

        with session.begin(), rqjobs.transaction(session):
            rqjobs.enqueue(ok, 1)
            task = asyncio.create_task(later())
        may_go_on.set()
        await task

    asyncio.run(use())
    session.close()
    assert queued(redis) == [1, 2]


def test_flask_sqlalchemy_is_found_by_itself(redis):
    with pytest.raises(RuntimeError, match="no Flask app is active"), rqjobs.transaction():
        pass
    app = flask.Flask("shop")
    with app.app_context(), pytest.raises(RuntimeError, match="'shop' has no Flask-SQLAlchemy"):
        rqjobs.enqueue(ok, 0, after_commit=True)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    database = flask_sqlalchemy.SQLAlchemy(app)
    with app.app_context():
        rqjobs.enqueue(ok, 1, after_commit=True)
        database.session.rollback()
        with rqjobs.transaction():
            rqjobs.enqueue(ok, 2)
        assert not queued(redis)
        database.session.commit()
    with app.app_context(), rqjobs.transaction():
        rqjobs.enqueue(ok, 3)  # the end of the app context closes the session
    assert queued(redis) == [2]


@pytest.mark.parametrize("given", [object(), "session", sessionmaker, Row])
def test_what_is_no_session_is_refused_at_once(given, redis):
    with pytest.raises(TypeError, match="take a session of SQLAlchemy, not an object"):
        rqjobs.enqueue(ok, 1, after_commit=given)
    assert not redis.keys("rq:job:*")


def test_what_cannot_wait_is_refused_at_the_call(session, redis):
    with rqjobs.transaction(session):
        with pytest.raises(rqjobs.NotAJob):
            rqjobs.enqueue(print, 1)
        with pytest.raises(rqjobs.PayloadError):
            rqjobs.enqueue_many([(ok, 1), (ok, object())])
        with pytest.raises(ValueError, match="on_conflict='raise'"):
            rqjobs.enqueue_many(
                [(ok, 1), rqjobs.Queue.prepare_data(ok, unique="args", on_conflict="raise")]
            )
        with pytest.raises(ValueError, match="unique=True cannot go"):
            rqjobs.queue("default").enqueue_call(ok, job_id="a", unique=True)
        with redis.pipeline() as pipe, pytest.raises(ValueError, match="pipeline= cannot go"):
            rqjobs.enqueue(ok, 1, pipeline=pipe)
        with pytest.raises(rqjobs.ScheduleError):
            rqjobs.schedules.remove("unknown")
    session.commit()
    assert not redis.keys("rq:job:*")
    without = Session(autobegin=False)
    with pytest.raises(ValueError, match="call its begin"):
        rqjobs.enqueue(ok, 1, after_commit=without)


def test_a_job_of_a_queue_without_workers_runs_after_the_commit(session, redis):
    """It runs outside the transaction, and can use the session."""
    queue = rqjobs.Queue("default", connection=redis, is_async=False)
    job = queue.enqueue(ok, 5, after_commit=session)
    assert job.get_status() is JobStatus.CREATED
    session.commit()
    assert job.return_value() == 5


def test_unique_jobs(session, redis):
    with rqjobs.transaction(session):
        first = rqjobs.enqueue(ok, 1, unique="args")
        same = rqjobs.enqueue(ok, 1, unique="args")
        put_off = rqjobs.enqueue(ok, 2, unique="args", debounce=60)
    session.commit()
    assert queued(redis) == [1] and same.existing == first
    assert put_off.get_status() is JobStatus.SCHEDULED


def test_changes_of_schedules_wait_for_the_commit(session, redis):
    rqjobs.schedules.add("old", rqjobs.every(hours=1), ok, 1)
    with rqjobs.transaction(session):
        added = rqjobs.schedules.add("new", rqjobs.every(minutes=5), ok, 2)
        edited = rqjobs.schedules.edit("old", rule=rqjobs.every(hours=2))
        rqjobs.schedules.pause("old")
        job = rqjobs.schedules.run_now("old")
    assert (added.name, added.args, edited.rule) == ("new", [2], rqjobs.every(hours=2))
    assert added.next and rqjobs.schedules.names() == ["old"]
    assert rqjobs.schedules.get("old").rule == rqjobs.every(hours=1)
    session.commit()
    assert rqjobs.schedules.names() == ["new", "old"]
    found = rqjobs.schedules.get("old")
    assert (found.state, found.rule, found.args) == ("paused", rqjobs.every(hours=2), [1])
    assert redis.lrange("rq:queue:default", 0, -1) == [job.id.encode()]
    rqjobs.schedules.remove("new", after_commit=session)
    assert rqjobs.schedules.exists("new")
    session.commit()
    assert rqjobs.schedules.names() == ["old"]


def test_the_commit_says_which_jobs_redis_has_not_taken(session, redis, caplog):
    """The transaction is committed, and the session can be used again."""
    redis.set("rq:queue:low", "of another type")
    with rqjobs.transaction(session):
        refused = rqjobs.queue("low").enqueue(ok, 1)
        rqjobs.enqueue(ok, 2)
    session.add(Row("a"))
    with pytest.raises(rqjobs.JobsNotStored, match=f"taken job {refused.id}") as raised:
        session.commit()
    assert raised.value.jobs == [refused] and refused.id in caplog.text
    assert queued(redis) == [2]
    assert session.query(Row).count() == 1

    rqjobs.enqueue(ok, 3, after_commit=session)
    session.add(Row("b"))
    with pytest.raises(rqjobs.JobsNotStored), storing.replaced_by(_unreachable):
        session.commit()
    assert session.query(Row).count() == 2


def _unreachable(*_):
    raise redis.exceptions.ConnectionError("no route")


def test_a_session_that_enqueues_nothing_pays_nothing(session, redis):
    session.add(Row("a"))
    session.commit()
    assert not session.info


def test_a_flow_waits_for_the_commit_as_a_whole(session, redis):
    def enqueue(count):
        with rqjobs.transaction(session):
            session.add(Row("flow"))
            return rqjobs.chord(rqjobs.map(ok, range(count)), rqjobs.s(ok)).enqueue()

    dropped = enqueue(3)
    session.rollback()
    flow = enqueue(210)
    for look in (lambda: flow.status, lambda: flow.progress, lambda: flow.wait(timeout=9)):
        with pytest.raises(rqjobs.flows.NoSuchFlow, match="stored when its transaction commits"):
            look()
    assert not redis.keys("*flow*") and not redis.keys("rq:job:*")
    session.commit()
    assert queued(redis) == [*range(210)] and redis.zcard("rq:deferred:default") == 1
    assert flow.progress.total == 211 and not redis.exists("rqjobs:held-flows")
    with pytest.raises(rqjobs.flows.NoSuchFlow, match="its transaction was not committed"):
        dropped.status  # noqa: B018
