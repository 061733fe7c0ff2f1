"""Policies of the jobs of a schedule: as in @job, and given to `schedules.add`."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest
import sample_jobs

import rqjobs
from rqjobs import Discard, Retry, ScheduleError, backoff, every, schedules
from rqjobs.broker import keys
from rqjobs.broker.keys import decode

HOURLY = every(hours=1)


def fields_of_a_run(redis, name):
    stored = redis.hgetall(keys.job(schedules.run_now(name).id))
    return {decode(field): decode(value) for field, value in stored.items() if field != b"data"}


def test_a_schedule_takes_the_policies_that_enqueue_takes(redis):
    schedules.add(
        "all",
        HOURLY,
        sample_jobs.note,
        "a",
        number=2,
        retry=backoff(5, base=3),
        retry_on=(TimeoutError,),
        discard_on=Discard,
        limit=3,
        limit_by="user:{number}",
        rate="30/m",
        burst=4,
        unique="args",
        keep=60,
        expires=timedelta(minutes=5),
        kill_after=7,
        on_failed="sample_jobs:note_failure",
    )
    fields = fields_of_a_run(redis, "all")
    assert fields["rqjobs_limit"] == "3 2.000000 4 user:2"
    assert fields["rqjobs_unique"].startswith("sample_jobs.note#") and fields["rqjobs_keep"] == "60"
    assert fields["rqjobs_expires"].endswith("+300.000")
    assert float(fields["rqjobs_kill_after"]) == 7
    assert fields["rqjobs_on_failed"] == "sample_jobs.note_failure"
    rules = json.loads(fields["rqjobs_retry"])
    assert rules["retry"][0][1]["base"] == 3 and rules["retry_on"] == ["builtins.TimeoutError"]
    assert fields["retries_left"] == "5"
    with pytest.raises(ScheduleError, match="another job has its unique key"):
        schedules.run_now("all")
    schedules.add("two", HOURLY, sample_jobs.note, "a", retry_for=60)
    assert json.loads(fields_of_a_run(redis, "two")["rqjobs_retry"]) == {"retry_for": 60.0}


def test_a_schedule_with_the_same_policies_stays_as_it_is(redis):
    def add(limit):
        return schedules.add("same", HOURLY, sample_jobs.note, "a", limit=limit).revision

    assert add(3) == add(3) != add(4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_conflict": "raise", "unique": "args"}, "leave on_conflict out"),
        ({"debounce": 5}, "debounce counts from a call"),
        ({"debounce_max": 5}, "debounce_max counts from a call"),
        ({"unique": True}, "it makes many jobs, each with its own id"),
        ({"expires": datetime(2999, 1, 1, tzinfo=timezone.utc)}, "not a date"),
        ({"limit": 0}, "would never fit"),
        ({"burst": 2}, "burst belongs to a rate"),
        ({"retry_on": (TimeoutError,)}, "says when to retry, but not how often"),
        ({"retry": backoff(2), "retry_for": 60}, "retry_for cannot go together"),
        ({"limit": 1, "limit_by": "{nobody}"}, "has no parameter 'nobody'"),
        ({"unique": "args", "keep": -1}, "must be more than 0"),
        ({"on_failed": "sample_jobs:missing"}, "on_failed"),
    ],
)
def test_what_no_schedule_can_have_is_refused_and_nothing_is_stored(redis, options, message):
    with pytest.raises((TypeError, ValueError, rqjobs.NotAJob), match=message):
        schedules.add("bad", HOURLY, sample_jobs.note, "a", **options)
    assert schedules.names() == []


def test_an_edit_keeps_the_policies_that_it_does_not_name(redis):
    schedules.add(
        "kept", HOURLY, sample_jobs.note, "a", limit=3, expires=60, retry=backoff(2), keep=9,
        unique="args",
    )  # fmt: skip
    before = fields_of_a_run(redis, "kept")
    redis.delete(keys.UNIQUE)
    schedules.edit("kept", rate="1/s")  # the options of one policy go together
    fields = fields_of_a_run(redis, "kept")
    assert fields["rqjobs_limit"] == "0 1.000000 1 sample_jobs.note"
    for field in ("rqjobs_retry", "retries_left", "rqjobs_unique", "rqjobs_keep"):
        assert fields[field] == before[field]
    with pytest.raises(ScheduleError, match="has unique of its own"):
        schedules.edit("kept", args=["b"])
    schedules.edit("kept", args=["b"], unique="args")
    fields = fields_of_a_run(redis, "kept")
    assert fields["rqjobs_unique"] != before["rqjobs_unique"] and "rqjobs_keep" not in fields
    assert fields["rqjobs_limit"] == "0 1.000000 1 sample_jobs.note"


def test_an_edit_of_the_arguments_makes_the_keys_of_the_function_anew(redis):
    schedules.add("user", HOURLY, sample_jobs.one_for_each_user, 1)
    schedules.edit("user", args=[2])
    assert fields_of_a_run(redis, "user")["rqjobs_limit"].endswith(" user:2")
    schedules.edit("user", limit=1, limit_by="own:{user}")
    with pytest.raises(ScheduleError, match="has limit_by of its own"):
        schedules.edit("user", args=[3])
    assert fields_of_a_run(redis, "user")["rqjobs_limit"].endswith(" own:2")


def test_rqs_retry_still_is_a_schedules_retry(redis):
    schedules.add("retry", HOURLY, sample_jobs.note, "a", retry=Retry(max=3))
    fields = fields_of_a_run(redis, "retry")
    assert fields["retries_left"] == "3" and "rqjobs_retry" not in fields
