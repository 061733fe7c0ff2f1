"""Database connections of Django, SQLAlchemy and Flask-SQLAlchemy.

No connection is shared between horses, and none stays broken.
"""

import pytest

import rqjobs

ALCHEMY = ("sqlalchemy[asyncio]>=2,<3", "aiosqlite")


@pytest.fixture
def environ(environ, tmp_path):
    return {**environ, "ROWS": str(tmp_path / "rows.sqlite")}


def outcomes(python, run, redis, module, calls, **env):
    """Run jobs of `module` in one horse; returns their values, or the last lines of their errors.

    Each of the `calls` is a function's name and its arguments.
    """
    env = {"RQJOBS_MODULES": module, **env}
    code = (
        f"import rqjobs, {module} as jobs\n"
        f"for name, *args in {calls!r}: print(rqjobs.enqueue(getattr(jobs, name), *args).id)"
    )
    ids = run(python, "-c", code, env=env).split()
    run(python, "-m", "rqjobs", "worker", "--burst", "default", env=env)
    jobs = rqjobs.Job.fetch_many(ids, connection=redis)
    return [
        job.return_value() if job.is_finished else job.latest_result().exc_string.splitlines()[-1]
        for job in jobs
    ]


def test_django_has_its_own_connections_in_each_horse_and_a_broken_one_fails_one_job(
    python, run, redis
):
    found = outcomes(
        python("django>=5.2,<6"),
        run,
        redis,
        "django_rows",
        [("add", "a"), ("lose",), ("add", "b"), ("count",), ("pools",)],
    )
    assert found[0] is False and "closed database" in found[1] and found[2:] == [False, 2, 0]


def test_a_django_transaction_that_a_job_left_open_does_not_affect_the_next_job(python, run, redis):
    """Django keeps a connection that is in a transaction. All later jobs of the horse failed."""
    found = outcomes(
        python("django>=5.2,<6"), run, redis, "django_rows", [("leave",), ("add", "a"), ("count",)]
    )
    assert found == [None, False, 1]


def test_sqlalchemy_has_its_own_connections_in_each_horse_and_a_broken_session_fails_one_job(
    python, run, redis
):
    found = outcomes(
        python(*ALCHEMY),
        run,
        redis,
        "sqlalchemy_rows",
        [("shared",), ("add", "a"), ("add", "a"), ("add", "b", False), ("add", "c"), ("names",)],
    )
    assert found[:2] == [False, None] and "rolled back" not in found[2]
    assert found[3:] == [None, None, ["a", "c"]], (
        "the next job does not commit the rows of a job before it"
    )


@pytest.mark.parametrize("kind", ["plain", "later", "raw"])
def test_a_broken_session_or_connection_of_a_module_fails_one_job(python, run, redis, kind):
    """This includes a session that is not a `scoped_session`, and one that a job made."""
    found = outcomes(
        python(*ALCHEMY),
        run,
        redis,
        "sqlalchemy_rows",
        [("insert", kind, number) for number in range(4)],
    )
    assert found[0] is None and "invalid transaction" in found[1] and found[2:] == [None, None]


def test_an_async_engine_has_no_connections_of_an_earlier_jobs_loop(python, run, redis):
    """A connection of asyncpg works only in its own event loop. All jobs but the first failed."""
    found = outcomes(python(*ALCHEMY), run, redis, "sqlalchemy_rows", [("pooled",), ("pooled",)])
    assert found == [0, 0]


def test_flask_sqlalchemy_has_its_own_connections_in_each_horse(python, run, redis):
    found = outcomes(
        python("flask-sqlalchemy>=3.1,<4"),
        run,
        redis,
        "flask_rows",
        [("add", "a"), ("add", "b")],
        RQJOBS_FLASK_APP="flask_rows:app",
    )
    assert found == [False, False]


def test_each_job_of_a_flask_app_has_a_session_and_each_horse_a_connection_of_its_own(
    python, run, redis, environ
):
    """A job leaves a transaction open. Flask-SQLAlchemy ends it with the context of that job."""
    flask = python("flask-sqlalchemy>=3.1,<4")
    environ.pop("RQJOBS_MODULES")
    code = """
import flask_factory as shop
app = shop.create_app()
calls = [(shop.add, "a"), (shop.add, "b", False), (shop.add, "c"), (shop.names,)]
print(*[job.id for job in shop.jobs.enqueue_many(calls)])
"""
    ids = run(flask, "-c", code).split()
    run(flask, "-m", "flask", "--app", "flask_factory", "jobs", "worker", "--burst")
    jobs = rqjobs.Job.fetch_many(ids, connection=redis)
    assert [job.return_value() for job in jobs] == [False, False, False, ["a", "c"]]
