"""`frozen_scheduler`: what is due by a clock that the test moves."""

from datetime import datetime, timedelta, timezone

import pytest
from fixture_jobs import add_one, boom, calls, expiring, fail_with_backoff, hourly, note
from rq.job import JobStatus

import rqjobs
from rqjobs import cron

START = datetime(2020, 3, 28, 8, 30, tzinfo=timezone.utc)


def test_delayed_jobs_and_schedules_are_due_in_their_order(frozen_scheduler):
    frozen_scheduler.move_to(START)
    rqjobs.enqueue_in(5400, note, 1)
    rqjobs.enqueue_at(START + timedelta(hours=1), note, 2)
    rqjobs.schedules.add("berlin", cron("0 6 * * *", tz="Europe/Berlin"), note, 3)
    frozen_scheduler.assert_enqueued(note, 1, delay=5400, at=START + timedelta(minutes=90))
    frozen_scheduler.advance(minutes=29)
    assert frozen_scheduler.work() == 0
    frozen_scheduler.advance(minutes=1)
    frozen_scheduler.assert_enqueued(hourly, count=1)  # declared in the code
    frozen_scheduler.advance(timedelta(hours=1))
    assert rqjobs.queue("default").count == 4
    assert frozen_scheduler.work() == 4
    assert [call if call == "hourly" else call[0] for call in calls] == ["hourly", 2, 1, "hourly"]

    # The clocks of Berlin change in this night.
    frozen_scheduler.move_to(datetime(2020, 3, 29, 3, 59, 59, tzinfo=timezone.utc))
    frozen_scheduler.assert_not_enqueued(note, 3)
    frozen_scheduler.advance(1)
    assert frozen_scheduler.now == datetime(2020, 3, 29, 4, tzinfo=timezone.utc)
    frozen_scheduler.assert_enqueued(note, 3, count=1)
    assert len(rqjobs.schedules.runs("berlin")) == 1


def test_jobs_can_run_at_their_moments(frozen_scheduler):
    frozen_scheduler.move_to(START)
    rqjobs.schedules.add("one", rqjobs.every(minutes=10, overlap=False), add_one, 1)
    frozen_scheduler.advance(minutes=30)
    frozen_scheduler.assert_enqueued(add_one, count=1)  # the first one waits
    frozen_scheduler.advance(minutes=30, work=True)
    frozen_scheduler.assert_enqueued(add_one, count=4)
    in_time, late = rqjobs.enqueue(expiring), rqjobs.enqueue_in(5, expiring)
    assert frozen_scheduler.work() == 1
    frozen_scheduler.advance(60)
    frozen_scheduler.work()
    assert in_time.return_value() == "in time" and late.return_value() is None


def test_retries_are_due_by_the_clock(frozen_scheduler):
    job = rqjobs.enqueue(fail_with_backoff)
    with pytest.raises(ValueError, match="boom"):
        frozen_scheduler.work()
    assert job.get_status() == JobStatus.SCHEDULED
    frozen_scheduler.advance(minutes=1)
    assert job.get_status() == JobStatus.QUEUED
    with pytest.raises(ValueError, match="boom"):
        frozen_scheduler.advance(days=1, work=True)


def test_what_is_no_move_is_refused(frozen_scheduler):
    frozen_scheduler.move_to(START)
    for error, call in (
        (ValueError, lambda: frozen_scheduler.move_to(START - timedelta(seconds=1))),
        (ValueError, lambda: frozen_scheduler.advance(-1)),
        (ValueError, lambda: frozen_scheduler.advance(days=4_000_000)),
        (TypeError, lambda: frozen_scheduler.move_to("2020-03-28")),
        (TypeError, lambda: frozen_scheduler.advance()),
        (TypeError, lambda: frozen_scheduler.advance(1, hours=1)),
        (TypeError, lambda: frozen_scheduler.advance("1")),
        (TypeError, lambda: frozen_scheduler.advance(hour=1)),
    ):
        with pytest.raises(error):
            call()
    assert frozen_scheduler.now == START
    rqjobs.enqueue(boom)
    frozen_scheduler.assert_enqueued(boom, count=1)
