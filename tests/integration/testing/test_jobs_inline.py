"""`jobs_inline`: a job runs in this process, as in a worker, while it is enqueued."""

import asyncio
from decimal import Decimal

import pytest
from fixture_jobs import (
    add_one,
    app_of_test,
    boom,
    calls,
    enqueue_boom,
    enqueue_itself,
    enqueue_note,
    fail_until,
    fail_with_backoff,
    has_app,
    interrupt,
    name_of_app,
    note,
    once,
    process_id,
    snooze,
    types_of,
)
from rq.job import Dependency, JobStatus

import rqjobs
from rqjobs import catalog, config
from rqjobs.testing import job_runner


def test_a_job_runs_at_once_as_in_a_worker(jobs_inline, modules):
    job = rqjobs.enqueue(note, 1)
    assert job.return_value() == {"number": 1} and job.get_status() == JobStatus.FINISHED
    assert calls == [(1, "pdf", job.id)]
    assert rqjobs.enqueue(enqueue_note, 2).return_value() == {"number": 2}  # within a job too
    assert modules.enqueue(add_one, 1).return_value() == 2
    values = ("text", 1, Decimal("1.5"), (1, 2), {"a"})
    assert rqjobs.enqueue(types_of, *values).return_value() == [
        type(value).__name__ for value in values
    ]
    many = rqjobs.enqueue_many([(add_one, 1), (add_one, 2)])
    assert [one.return_value() for one in many] == [2, 3]
    assert rqjobs.enqueue(once, 1).return_value() == rqjobs.enqueue(once, 1).return_value()

    async def within_an_event_loop():
        return rqjobs.enqueue(add_one, 3).return_value()

    assert asyncio.run(within_an_event_loop()) == 4
    jobs_inline.assert_enqueued(add_one, 3, count=1)


def test_exceptions_reach_the_test_or_are_recorded(jobs_inline):
    for call in (boom, enqueue_boom):
        with pytest.raises(ValueError, match="boom"):
            rqjobs.enqueue(call)
    with pytest.raises(KeyboardInterrupt):
        rqjobs.enqueue(interrupt)
    with pytest.raises(rqjobs.PayloadError):
        rqjobs.enqueue(note, object())
    with pytest.raises(rqjobs.NotAJob):
        rqjobs.enqueue(print)
    jobs_inline.errors.clear()
    jobs_inline.raises = False
    job = rqjobs.enqueue(boom)
    assert job.get_status() == JobStatus.FAILED
    assert "ValueError: boom" in job.latest_result().exc_string
    assert [type(error) for error in jobs_inline.errors] == [ValueError]
    with pytest.raises(KeyboardInterrupt):
        rqjobs.enqueue(interrupt)


def test_a_job_that_enqueues_itself_for_ever_ends(jobs_inline, monkeypatch):
    monkeypatch.setattr(job_runner, "MAX_JOB_RUNS", 30)
    with pytest.raises(RuntimeError, match="for ever"):
        rqjobs.enqueue(enqueue_itself)


def test_retries_and_delays(jobs_inline, tmp_path):
    at_once = rqjobs.enqueue(fail_until, str(tmp_path / "a"), 3, retry=rqjobs.Retry(max=2))
    assert at_once.return_value() == "done"
    with pytest.raises(OSError, match="not yet"):
        rqjobs.enqueue(fail_until, str(tmp_path / "b"), 3, retry=rqjobs.Retry(max=1))
    with pytest.raises(ValueError, match="boom"):  # its retry is delayed
        rqjobs.enqueue(fail_with_backoff)
    snoozed = rqjobs.enqueue(snooze)  # is no error
    later = rqjobs.enqueue_in(60, boom)
    statuses = [snoozed.get_status(), later.get_status()]
    assert statuses == [JobStatus.SCHEDULED] * 2
    assert rqjobs.delayed.count() == 3
    jobs_inline.assert_enqueued(boom, delay=60)


def test_dependencies_run_in_their_order(jobs_inline):
    first = rqjobs.enqueue(add_one, 1)
    second = rqjobs.enqueue(add_one, 2, depends_on=first)
    assert second.return_value() == 3
    jobs_inline.raises = False
    failed = rqjobs.enqueue(boom)
    waits = rqjobs.enqueue(add_one, 1, depends_on=failed)
    assert waits.get_status() == JobStatus.DEFERRED
    goes_on = rqjobs.enqueue(add_one, 1, depends_on=Dependency(failed, allow_failure=True))
    assert goes_on.return_value() == 2
    queue = rqjobs.queue("default")
    late = queue.prepare_data(add_one, (5,), job_id="late", depends_on="early")
    early = queue.prepare_data(add_one, (4,), job_id="early")
    jobs = queue.enqueue_many([late, early])
    assert [job.return_value() for job in jobs] == [5, 6]


def test_the_context_of_the_app_is_that_of_the_test(jobs_inline, monkeypatch):
    with app_of_test.app_context():
        assert rqjobs.enqueue(has_app).return_value() is False  # no app is configured
    monkeypatch.setattr(catalog, "_app", None)
    config.use(flask_app="fixture_jobs:app")
    assert rqjobs.enqueue(name_of_app).return_value() == "configured"
    with app_of_test.app_context():
        assert rqjobs.enqueue(name_of_app).return_value() == "of the test"


def test_the_last_fixture_counts(jobs_inline, request):
    assert rqjobs.enqueue(add_one, 1).return_value() == 2
    recorded = request.getfixturevalue("jobs_recorded")
    job = rqjobs.enqueue(add_one, 1)
    assert job.return_value() is None and recorded.jobs == [job]
    worked = request.getfixturevalue("jobs_redis")
    job = rqjobs.enqueue(process_id)
    assert job.get_status() == JobStatus.QUEUED
    assert worked.jobs == [job]
