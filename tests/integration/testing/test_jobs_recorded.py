"""`jobs_recorded`: nothing runs, and assertions tell what was enqueued."""

import time
from datetime import datetime, timedelta, timezone

import pytest
from fixture_jobs import add_one, boom, calls, enqueue_note, note, once
from rq.job import JobStatus

import rqjobs

MOMENT = datetime(2040, 1, 31, 6, tzinfo=timezone.utc)


def test_every_way_to_enqueue_is_recorded(jobs_recorded, modules):
    first = rqjobs.enqueue(note, 1)
    rqjobs.enqueue_in(60, note, 2, kind="csv")
    rqjobs.enqueue_at(MOMENT, note, 3)
    rqjobs.enqueue_many([(note, 4), (note, 5)])
    modules.enqueue(note, 6)  # a queue that is older than the fixture
    assert not jobs_recorded._use.has_begun  # plain jobs need no Redis
    with rqjobs.client().pipeline() as pipe:
        rqjobs.queue("high").enqueue(note, 7, pipeline=pipe)
    rqjobs.enqueue(note, 8, job_id="mine", unique=True)
    rqjobs.enqueue(note, 9, depends_on=first)
    rqjobs.schedules.add("daily", rqjobs.every(days=1), note, 10)
    rqjobs.schedules.run_now("daily")

    assert jobs_recorded.assert_enqueued(note, 1) is first
    jobs_recorded.assert_enqueued(note, number=2, kind="csv", delay=60)
    jobs_recorded.assert_enqueued(note, 2, "csv", delay=timedelta(minutes=1), queue="default")
    jobs_recorded.assert_enqueued("fixture_jobs.note", 3, at=MOMENT)
    jobs_recorded.assert_enqueued(note, 6, "pdf", queue="low", delay=0, count=1)
    for number in (4, 5, 7, 8, 9, 10):
        jobs_recorded.assert_enqueued(note, number)
    jobs_recorded.assert_enqueued(note, count=10)
    assert len(jobs_recorded.jobs) == 10 and jobs_recorded.jobs[0] is first
    assert calls == []
    for refuted in (
        lambda: jobs_recorded.assert_enqueued(note, 2, "csv", delay=63),
        lambda: jobs_recorded.assert_enqueued(note, 1, at=MOMENT),
        lambda: jobs_recorded.assert_enqueued(note, 1, queue="low"),
        lambda: jobs_recorded.assert_enqueued(note, 1, count=2),
        lambda: jobs_recorded.assert_not_enqueued(note, 1),
        jobs_recorded.assert_not_enqueued,
    ):
        with pytest.raises(AssertionError, match="fixture_jobs"):
            refuted()
    jobs_recorded.clear()
    jobs_recorded.assert_not_enqueued()


def test_a_synchronous_queue_runs_nothing(jobs_recorded):
    queue = rqjobs.Queue("default", connection=rqjobs.client(), is_async=False)
    queue.enqueue(note, 1)
    queue.enqueue_many([queue.prepare_data(note, (2,))])
    jobs_recorded.assert_enqueued(note, count=2)
    assert calls == []


def test_the_message_lists_what_was_enqueued(jobs_recorded):
    with pytest.raises(AssertionError) as error:
        jobs_recorded.assert_enqueued(note, 1)
    assert str(error.value) == "fixture_jobs.note(1) was not enqueued. Nothing was enqueued."
    rqjobs.enqueue(note, 2, kind="csv")
    rqjobs.enqueue_in(60, boom)
    with pytest.raises(AssertionError) as error:
        jobs_recorded.assert_enqueued(note, 2, count=2)
    first, *lines = str(error.value).splitlines()
    assert first == "fixture_jobs.note(2) was not enqueued. Enqueued were:"
    assert lines[0] == "  fixture_jobs.note(2, kind='csv') in default"
    assert lines[1].startswith("  fixture_jobs.boom() in default, due in 60 s, at 20")


def test_what_needs_redis_gets_the_jobs_of_before(jobs_recorded):
    plain = rqjobs.enqueue(note, 1)
    delayed = rqjobs.enqueue_in(60, note, 2)
    assert plain.get_status() == JobStatus.QUEUED
    assert [job.job_id for job in rqjobs.delayed.jobs()] == [delayed.id]
    rqjobs.delayed.cancel(delayed.id)
    assert rqjobs.queue("default").count == 1


def test_the_time_in_which_redis_starts_is_no_part_of_a_delay(jobs_recorded, monkeypatch):
    begin = jobs_recorded._use.begin

    def begin_slowly():
        monkeypatch.setattr(jobs_recorded, "_get_time", lambda: time.time() + 5)
        begin()

    monkeypatch.setattr(jobs_recorded._use, "begin", begin_slowly)
    rqjobs.enqueue_in(60, once, 1)  # its unique key needs Redis
    assert jobs_recorded._use.has_begun
    jobs_recorded.assert_enqueued(once, 1, delay=60)


def test_unique_jobs_count_once(jobs_recorded):
    one, other = rqjobs.enqueue(once, 1), rqjobs.enqueue(once, 1)
    assert one.id == other.id
    jobs_recorded.assert_enqueued(once, 1, count=1)
    rqjobs.enqueue(note, 1, job_id="mine")
    rqjobs.enqueue(note, 2, job_id="mine")
    jobs_recorded.assert_not_enqueued(note, 1)  # the second has replaced it


def test_what_is_refused_elsewhere_is_refused(jobs_recorded):
    for error, call in (
        (rqjobs.NotAJob, lambda: rqjobs.enqueue(print, 1)),
        (rqjobs.PayloadError, lambda: rqjobs.enqueue(note, object())),
        (TypeError, lambda: rqjobs.enqueue(note)),
        (ValueError, lambda: rqjobs.queue("a b")),
        (rqjobs.NotAJob, lambda: jobs_recorded.assert_enqueued(print)),
        (TypeError, lambda: jobs_recorded.assert_enqueued(note, nmber=1)),
        (TypeError, lambda: jobs_recorded.assert_enqueued(note, 1, delay="60")),
        (TypeError, lambda: jobs_recorded.assert_enqueued(note, 1, at=60)),
        (ValueError, lambda: jobs_recorded.assert_enqueued(note, 1, count=0)),
        (TypeError, lambda: jobs_recorded.assert_not_enqueued(queue="low")),
    ):
        with pytest.raises(error):
            call()
    assert jobs_recorded.jobs == []


def test_run_runs_the_jobs_in_their_order(jobs_recorded):
    rqjobs.enqueue(note, 1, kind="csv")
    rqjobs.queue("high").enqueue(note, 2)
    outer = rqjobs.enqueue(enqueue_note, 3)
    rqjobs.enqueue_in(60, boom)
    assert jobs_recorded.run() == 4
    assert [number for number, _, _ in calls] == [1, 2, 3]
    assert outer.return_value() is None  # the job that it enqueued ran after it
    rqjobs.enqueue(boom)
    last = rqjobs.enqueue(add_one, 1)
    with pytest.raises(ValueError, match="boom"):
        jobs_recorded.run()
    assert last.return_value() == 2
