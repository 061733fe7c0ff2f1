"""Schedules: one tick makes one job, also after a crash of any process.

Missed ticks, pauses, edits, declarations and histories.
"""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta, timezone

import pytest
import sample_jobs
from rq.job import JobStatus

import rqjobs
from rqjobs import NotAJob, PayloadError, Retry, ScheduleError, cron, every, schedules
from rqjobs.broker import scripts
from rqjobs.broker.keys import SCHEDULES
from rqjobs.maintenance import audit
from rqjobs.schedules import NoSuchSchedule, history, store, ticker
from rqjobs.schedules.describe import describe
from rqjobs.schedules.rules import MISSED_MAX_TICKS
from rqjobs.schedules.store import DueRange, RunStatus, enqueue_ticks, jitter


@pytest.fixture(autouse=True)
def full_ten_minutes(redis, eventually):
    """No tick of a rule of ten minutes, or of hours, becomes due in the middle of a test."""
    eventually(lambda: redis.time()[0] % 600 < 590)


def back(redis, name, seconds):
    """Make it as if that much time had passed since a scheduler last ran the schedule."""
    key = f"rqjobs:schedule:{name}"
    tick = int(redis.hget(key, "next")) - seconds
    redis.hset(key, "next", tick)
    redis.zadd(SCHEDULES, {name: tick})
    return tick


def last_tick(redis, step):
    now = int(scripts.redis_time(redis))
    return now - now % step


def ids(queue="default"):
    return rqjobs.queue(queue).job_ids


def test_a_tick_makes_one_job_with_the_tick_in_its_id(redis):
    made = schedules.add("hourly", every(hours=1), sample_jobs.note, "a", number=2, job_timeout=33)
    assert (made.name, made.function, made.queue, made.state, made.source) == (
        "hourly",
        "sample_jobs.note",
        "default",
        "active",
        "added",
    )
    assert (made.args, made.kwargs, made.description) == (
        ["a"],
        {"number": 2},
        "sample_jobs.note('a', number=2)",
    )
    assert (
        made.upcoming(2)[0] == made.next == made.due and made.next.minute == made.next.second == 0
    )
    ticker.run_due(redis)
    assert ids() == []
    tick = back(redis, "hourly", 3600)
    ticker.run_due(redis)
    ticker.run_due(redis)
    (job_id,) = ids()
    assert (
        job_id
        == f"hourly-r{made.revision}-{datetime.fromtimestamp(tick, timezone.utc):%Y%m%dT%H%M%S}"
    )
    job = rqjobs.Job.fetch(job_id, connection=redis)
    assert (job.args, job.kwargs, job.timeout, job.origin) == (["a"], {"number": 2}, 33, "default")
    assert job.get_status() == JobStatus.QUEUED and job.enqueued_at and job.created_at
    found = schedules.get("hourly")
    assert (found.made, found.missed, found.overlapped) == (1, 0, 0)
    assert found.last.timestamp() == tick and found.next.timestamp() == tick + 3600
    assert not audit.audit(redis).breaches


def test_a_schedule_s_job_equals_an_enqueued_one(redis):
    enqueued = rqjobs.enqueue(
        sample_jobs.urgent, 5, retry=Retry(max=2, interval=[1, 2]), meta={"a": 1}, ttl=500
    )
    schedules.add(
        "same",
        every(hours=1),
        sample_jobs.urgent,
        5,
        retry=Retry(max=2, interval=[1, 2]),
        meta={"a": 1},
        ttl=500,
    )
    job = schedules.run_now("same")
    theirs, ours = redis.hgetall(enqueued.key), redis.hgetall(job.key)
    assert ours.pop(b"rqjobs_schedule") == b"same"
    differ = {
        field for field in ours.keys() | theirs.keys() if ours.get(field) != theirs.get(field)
    }
    assert differ == {b"created_at", b"enqueued_at"}
    assert ids("high") == [enqueued.id, job.id] and 0 < redis.ttl(job.key) <= 500


@pytest.mark.parametrize(
    ("missed", "count", "lost"), [("once", 1, 5), ("all", 6, 0), ("skip", 0, 6)]
)
def test_each_missed_policy_catches_up_as_documented(redis, missed, count, lost):
    schedules.add("hourly", every(hours=1, missed=missed), sample_jobs.note)
    back(redis, "hourly", 6 * 3600)
    ticker.run_due(redis)
    found = schedules.get("hourly")
    assert len(ids()) == found.made == count and found.missed == lost
    assert found.next.timestamp() == last_tick(redis, 3600) + 3600


def test_skip_makes_a_job_of_each_tick_that_is_at_most_ten_seconds_late():
    rule = every(seconds=1, missed="skip")
    assert ticker.due_ticks(rule, "quick", 1000, 1060.5) == (list(range(1051, 1061)), 1060, 51)
    assert ticker.due_ticks(rule, "quick", 1058, 1060.5) == ([1058, 1059, 1060], 1060, 0)
    assert ticker.due_ticks(every(seconds=60, missed="skip"), "slow", 600, 971.0) == ([], 960, 7)
    shaken = every(seconds=60, missed="skip", jitter=59)
    due = 600 + jitter(shaken, "shaken", 600)
    assert ticker.due_ticks(shaken, "shaken", 600, due + 9.9)[0][:1] == [600]
    assert 600 not in ticker.due_ticks(shaken, "shaken", 600, due + 10.1)[0]


def test_skip_counts_ticks_that_make_no_job(redis):
    schedules.add("quick", every(seconds=5, missed="skip"), sample_jobs.note)
    back(redis, "quick", 60)
    ticker.run_due(redis)
    found = schedules.get("quick")
    assert (
        found.made in (2, 3)
        and found.made + found.missed in (12, 13)
        and found.last.timestamp() > time.time() - 10
    )


def test_a_long_run_continues_at_the_next_call(redis):
    """A scheduler that was busy for seconds lost its locks, and moved no delayed job."""
    for name in ("first", "second"):
        schedules.add(name, cron("* * * * *"), sample_jobs.note)
        back(redis, name, 7 * 86_400)
    assert ticker.run_due(redis, seconds=-1) <= scripts.redis_time(redis) and len(ids()) == 1
    ticker.run_due(redis, seconds=-1)
    assert len(ids()) == 2 and schedules.get("second").missed == MISSED_MAX_TICKS


def test_all_catches_up_on_at_most_a_thousand_ticks(redis, eventually):
    eventually(lambda: redis.time()[0] % 60 < 50, what="a minute that does not end in the test")
    schedules.add("busy", every(minutes=1, missed="all"), sample_jobs.note)
    back(redis, "busy", 60 * 1500)
    ticker.run_due(redis)
    found = schedules.get("busy")
    assert (
        found.made == len(ids()) == len(set(ids())) == ticker.CATCH_UP_MAX_TICKS
        and found.missed == 500
    )
    assert found.last.timestamp() == last_tick(redis, 60)
    assert (
        len(schedules.runs("busy", 1000))
        == store.HISTORY_RUNS
        == redis.hlen("rqjobs:schedules:unfinished")
    )


@pytest.mark.parametrize("status", ["queued", "started", "scheduled", "deferred"])
def test_no_overlap_while_an_earlier_job_has_not_ended(redis, status):
    schedules.add("alone", every(hours=1, overlap=False), sample_jobs.note)
    back(redis, "alone", 3600)
    ticker.run_due(redis)
    (first,) = ids()
    redis.hset(f"rq:job:{first}", "status", status)
    back(redis, "alone", 3600)
    ticker.run_due(redis)
    assert ids() == [first]
    redis.hset(f"rq:job:{first}", "status", "failed")
    schedules.edit("alone", timeout=50)  # another revision, whose first tick is the same
    back(redis, "alone", 3600)
    ticker.run_due(redis)
    redis.delete(f"rq:job:{ids()[1]}")  # the job has expired, or was deleted
    schedules.edit("alone", timeout=60)
    back(redis, "alone", 3600)
    ticker.run_due(redis)
    found = schedules.get("alone")
    assert (found.made, found.overlapped) == (3, 1)


def test_a_schedule_ends_after_its_times_and_at_its_end(redis):
    schedules.add("twice", every(hours=1, times=2, missed="all"), sample_jobs.note)
    assert len(schedules.get("twice").upcoming(5)) == 2
    back(redis, "twice", 5 * 3600)
    ticker.run_due(redis)
    found = schedules.get("twice")
    assert (found.state, found.made, found.next, found.upcoming()) == ("ended", 2, None, [])
    over = schedules.add("over", every(hours=1, end=datetime(2020, 1, 1)), sample_jobs.note)
    assert over.state == "ended"
    with pytest.raises(ScheduleError, match="is ended"):
        schedules.pause("twice")
    again = schedules.edit("twice", rule=every(hours=2, times=1))
    assert again.state == "active" and again.runs_left == 1


def test_jitter_moves_the_job_and_not_the_tick(redis):
    rule = every(hours=1, jitter=600)
    waits = {jitter(rule, "shaken", tick * 3600) for tick in range(100)}
    assert len(waits) > 90 and all(0 <= wait < 600 for wait in waits)
    found = schedules.add("shaken", rule, sample_jobs.note)
    wait = jitter(rule, "shaken", int(found.next.timestamp()))
    assert found.due == found.next + timedelta(seconds=wait)
    first = int(found.next.timestamp()) - 7200
    due = first + jitter(rule, "shaken", first)
    assert ticker.due_ticks(rule, "shaken", first, due - 0.001) == ([], None, 0)
    assert ticker.due_ticks(rule, "shaken", first, due) == ([first], first, 0)


def test_another_jitter_moves_the_next_job_and_drops_no_tick(redis):
    schedules.add("shaken", every(hours=1), sample_jobs.note)
    found = schedules.edit("shaken", rule=every(hours=1, jitter=600))
    tick = int(found.next.timestamp())
    assert found.due.timestamp() == pytest.approx(
        tick + jitter(found.rule, "shaken", tick), abs=0.01
    )
    first = int(scripts.redis_time(redis)) + 5
    rule = every(seconds=3500, start=datetime.fromtimestamp(first, timezone.utc), jitter=3499)
    schedules.edit("shaken", rule=rule)
    redis.hset("rqjobs:schedule:shaken", "next", first)
    redis.zadd(SCHEDULES, {"shaken": 1})  # as if its rule had changed
    ticker.run_due(redis)
    found = schedules.get("shaken")
    assert (found.made, found.missed, found.next.timestamp()) == (0, 0, first)
    assert found.due.timestamp() == pytest.approx(first + jitter(rule, "shaken", first), abs=0.01)


def test_a_changed_rule_starts_over_with_all_its_times(redis):
    schedules.add("once", every(hours=1, times=1), sample_jobs.note)
    back(redis, "once", 3600)
    ticker.run_due(redis)
    assert schedules.get("once").state == "ended"
    found = schedules.edit("once", rule=every(hours=2, times=1))
    assert (found.state, found.runs_left, len(found.upcoming())) == ("active", 1, 1)
    back(redis, "once", 7200)
    ticker.run_due(redis)
    assert len(ids()) == 2 and schedules.get("once").state == "ended"


def test_a_tick_makes_one_job_however_many_schedulers_run(redis):
    for number in range(20):
        schedules.add(f"s{number}", every(hours=1, missed="all"), sample_jobs.note)
        back(redis, f"s{number}", 5 * 3600)
    threads = [threading.Thread(target=lambda: ticker.run_due(redis)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids()) == len(set(ids())) == 100
    assert {found.made for found in schedules.all()} == {5}


def test_a_lost_reply_makes_no_second_job(redis):
    found = schedules.add("cut", every(hours=1), sample_jobs.note)
    tick = back(redis, "cut", 3600)
    calls = [
        enqueue_ticks(
            redis,
            found,
            [(tick, f"cut-{number}")],
            DueRange(tick, tick, tick + 3600, tick + 3600, 0),
        )
        for number in range(2)
    ]
    done, changed = (RunStatus.DONE, 1, 0), (RunStatus.CHANGED, 0, 0)
    assert calls == [done, changed] and ids() == ["cut-0"]
    back(redis, "cut", 3600)
    redis.zadd(
        SCHEDULES, {"cut": scripts.redis_time(redis) + 50}
    )  # no scheduler may be early, whatever its local time
    early = DueRange(tick, 0, tick + 3600, 0.0, 0)
    assert enqueue_ticks(redis, found, [(tick, "cut-2")], early) == changed


def test_many_due_schedules_are_run_in_several_calls(redis, eventually):
    for number in range(ticker.TICK_BATCH_SCHEDULES + 5):
        schedules.add(f"s{number}", every(hours=1), sample_jobs.note)
        back(redis, f"s{number}", 3600)
    assert ticker.run_due(redis) < scripts.redis_time(redis)  # more schedules are due
    eventually(
        lambda: ticker.run_due(redis) > scripts.redis_time(redis)
    )  # a call also ends when it has taken long
    assert len(ids()) == ticker.TICK_BATCH_SCHEDULES + 5


def test_pause_resume_and_run_now(redis):
    schedules.add("rests", every(hours=1, missed="all"), sample_jobs.note)
    schedules.pause("rests")
    schedules.pause("rests")
    found = schedules.get("rests")
    assert (found.state, found.next, found.upcoming()) == ("paused", None, [])
    job = schedules.run_now("rests")
    assert job.id.startswith("rests-now-") and ids() == [job.id]
    schedules.resume("rests")
    found = schedules.get("rests")
    assert found.state == "active" and found.next.timestamp() == last_tick(redis, 3600) + 3600
    assert (found.made, found.missed) == (0, 0)
    (run,) = schedules.runs("rests")
    assert (run.job_id, run.tick, run.outcome, run.ended) == (job.id, None, "queued", None)


def test_edit_changes_the_given_parts_and_keeps_the_others(redis):
    schedules.add(
        "edited",
        every(hours=1),
        sample_jobs.note,
        "a",
        job_timeout=33,
        retry=Retry(max=4),
        on_success=rqjobs.Callback(sample_jobs.on_done),
        description="mine",
    )
    tick = back(redis, "edited", 3600)
    changed = schedules.edit("edited", args=["b"], kwargs={"number": 1})
    assert changed.args == ["b"] and changed.next.timestamp() == tick  # missed ticks are caught up
    fields = changed.fields
    assert (fields[b"timeout"], fields[b"retries_left"], fields[b"success_callback_name"]) == (
        b"33",
        b"4",
        b"sample_jobs.on_done",
    )
    assert fields[b"description"] == b"sample_jobs.note('b', number=1)"
    ticker.run_due(redis)
    assert len(ids()) == 1 and f"-r{changed.revision}-" in ids()[0]
    back(redis, "edited", 7200)
    moved = schedules.edit("edited", rule=every(minutes=10))
    assert (
        moved.revision > changed.revision and moved.next.timestamp() == last_tick(redis, 600) + 600
    )
    assert schedules.edit("edited", timeout=44, queue="low").fields[b"timeout"] == b"44"
    assert schedules.get("edited").queue == "low" and schedules.get("edited").made == 1
    other = schedules.edit("edited", function=sample_jobs.urgent, args=[1], kwargs={})
    assert (other.queue, other.fields[b"timeout"], b"retries_left" in other.fields) == (
        "high",
        b"30",
        False,
    )
    tick = back(redis, "edited", 7200)
    assert (
        schedules.edit("edited", rule=every(minutes=10, overlap=False)).next.timestamp() == tick
    )  # the same times
    schedules.pause("edited")
    assert schedules.edit("edited", rule=every(minutes=20)).state == "paused"


def test_adding_a_schedule_again_changes_only_differences(redis):
    """A program adds its schedules at each start. Its second start was an error."""
    first = schedules.add("hourly", every(hours=1), sample_jobs.note, "a", number=2)
    back(redis, "hourly", 3600)
    ticker.run_due(redis)
    again = schedules.add("hourly", every(hours=1), sample_jobs.note, "a", number=2)
    assert (again.revision, again.made, again.next) == (first.revision, 1, first.next)
    other_job = schedules.add("hourly", every(hours=1), sample_jobs.note, "b")
    assert (other_job.args, other_job.kwargs, other_job.made) == (["b"], {}, 1)
    assert (
        other_job.next == first.next
        and other_job.revision > first.revision
        and len(schedules.runs("hourly")) == 1
    )
    schedules.pause("hourly")
    other_rule = schedules.add("hourly", cron("@daily"), sample_jobs.note, "b")
    assert (other_rule.state, other_rule.made, describe(other_rule.rule)) == (
        "paused",
        1,
        "at 00:00 every day (UTC)",
    )
    assert schedules.add("hourly", cron("@daily"), sample_jobs.note, "b").state == "paused"
    with pytest.raises(ScheduleError, match="there is a schedule 'hourly' already"):
        schedules.add("hourly", every(hours=2), sample_jobs.note, replace=False)
    redis.hset("rqjobs:schedule:hourly", "rule", "nonsense")
    with pytest.raises(ScheduleError, match="cannot be read; remove it"):
        schedules.add("hourly", every(hours=1), sample_jobs.note)


def test_equal_sets_are_equal_arguments(redis):
    """The order of a set depends on the insertions and on the hashes of the process."""
    one, other = {0, 8}, {8, 0}
    assert list(one) != list(other)
    first = schedules.add("sets", every(hours=1), sample_jobs.note, one)
    assert schedules.add("sets", every(hours=1), sample_jobs.note, other).revision == first.revision


def test_add_replaces_a_declared_schedule_only_when_it_is_undeclared(redis):
    schedules.add("hourly", every(hours=1), sample_jobs.note)
    redis.hset("rqjobs:schedule:hourly", "source", "code")
    with pytest.raises(ScheduleError, match="is declared in the code: change it there"):
        schedules.add("hourly", every(hours=2), sample_jobs.note)
    redis.hset("rqjobs:schedule:hourly", mapping={"undeclared_since": "1"})
    redis.zadd(SCHEDULES, {"hourly": "+inf"})
    found = schedules.add("hourly", every(hours=1), sample_jobs.note)
    assert (found.source, found.state) == ("added", "active") and found.due == found.next


def test_programs_that_add_a_schedule_at_once_leave_one_of_theirs(redis):
    rules = [every(hours=hours) for hours in range(1, 9)]
    errors = []

    def add(rule):
        try:
            for _ in range(5):
                schedules.add("shared", rule, sample_jobs.note, rule.seconds)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=add, args=[rule]) for rule in rules]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = schedules.get("shared")
    assert not errors and found.rule in rules and found.args == [found.rule.seconds]


def test_remove_leaves_only_the_jobs_and_a_new_schedule_reuses_no_id(redis):
    rule = every(hours=1)
    schedules.add("gone", rule, sample_jobs.note)
    back(redis, "gone", 3600)
    ticker.run_due(redis)
    schedules.remove("gone")
    assert schedules.all() == [] and len(ids()) == 1
    assert sorted(redis.keys("rqjobs:schedule*")) == [
        b"rqjobs:schedules:announced",
        b"rqjobs:schedules:revision",
    ]
    schedules.add("gone", rule, sample_jobs.note)
    back(redis, "gone", 3600)
    ticker.run_due(redis)
    assert len(set(ids())) == 2
    for act in (
        schedules.get,
        schedules.remove,
        schedules.pause,
        schedules.run_now,
        schedules.edit,
    ):
        with pytest.raises(NoSuchSchedule, match="there is no schedule 'nobody'"):
            act("nobody")


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: schedules.add("bad name", every(hours=1), sample_jobs.note), ScheduleError),
        (lambda: schedules.add("x", every(hours=1), print), NotAJob),
        (lambda: schedules.add("x", every(hours=1), "os.system", "true"), NotAJob),
        (lambda: schedules.add("x", every(hours=1), sample_jobs.add), TypeError),
        (lambda: schedules.add("x", every(hours=1), sample_jobs.note, object()), PayloadError),
        (
            lambda: schedules.add("x", every(hours=1), sample_jobs.note, job_id="mine"),
            ScheduleError,
        ),
        (lambda: schedules.add("x", "every hour", sample_jobs.note), ScheduleError),
        (lambda: schedules.add("x", every(hours=1), sample_jobs.note, tiemout=5), TypeError),
        (
            lambda: schedules.add("x", every(hours=1), sample_jobs.describe, description="x"),
            TypeError,
        ),
        (
            lambda: schedules.add("taken", every(hours=1), sample_jobs.note, replace=False),
            ScheduleError,
        ),
    ],
)
def test_an_invalid_schedule_is_refused_and_not_stored(redis, make, error):
    schedules.add("taken", every(hours=1), sample_jobs.note)
    with pytest.raises(error):
        make()
    assert [found.name for found in schedules.all()] == ["taken"]


def test_runs_keep_their_outcomes_after_the_jobs_are_gone(worker, redis, eventually):
    worker()
    schedules.add("good", every(hours=1), sample_jobs.note, result_ttl=1)
    schedules.add("bad", every(hours=1), sample_jobs.boom)
    good, bad = schedules.run_now("good"), schedules.run_now("bad")
    eventually(lambda: bad.get_status() == JobStatus.FAILED)
    eventually(lambda: not redis.exists(good.key))
    history.note_outcomes(redis)
    assert redis.hlen("rqjobs:schedules:unfinished") == 0
    redis.delete(bad.key)
    (first,), (second,) = schedules.runs("good"), schedules.runs("bad")
    assert (first.outcome, second.outcome) == (
        "finished",
        "failed",
    ) and second.ended >= second.enqueued
    third = schedules.run_now("good")
    third.delete()
    history.note_outcomes(redis)
    assert schedules.runs("good")[0].outcome in ("unknown", "finished")


def test_invalid_data_stops_no_other_schedule(redis):
    schedules.add("fine", every(hours=1), sample_jobs.note)
    schedules.add("broken", every(hours=1), sample_jobs.note)
    schedules.add("jobless", every(hours=1), sample_jobs.note)
    schedules.add("wrong", every(hours=1), sample_jobs.note, queue="low")
    for name in ("fine", "broken", "jobless", "wrong"):
        back(redis, name, 3600)
    redis.hset("rqjobs:schedule:broken", "rule", "{}")
    redis.delete("rqjobs:schedule:jobless:job")
    redis.set("rq:queue:low", "no list")
    redis.zadd(SCHEDULES, {"nothing": 1})
    redis.set("rqjobs:schedule:nothing", "no hash")
    ticker.run_due(redis)
    assert len(ids()) == 1
    assert ticker.run_due(redis) > scripts.redis_time(redis)  # no hurry
    redis.delete("rq:queue:low")
    redis.zadd(SCHEDULES, {"wrong": 1})
    ticker.run_due(redis)
    assert len(ids("low")) == 1 and {found.name for found in schedules.all()} == {"fine", "wrong"}
    with pytest.raises(ScheduleError, match="cannot be read"):
        schedules.get("broken")
    schedules.remove("broken")


@pytest.mark.parametrize(
    ("key", "made"),
    [
        ("rqjobs:schedule:odd:runs", 0),
        ("rqjobs:schedule:odd:outcomes", 0),
        ("rq:queue:low", 0),
        ("rqjobs:schedules:unfinished", 1),
    ],
)
def test_a_key_of_the_wrong_type_repeats_no_tick_and_stops_no_other(redis, key, made):
    schedules.add("odd", every(hours=1), sample_jobs.note, queue="low")
    schedules.add("fine", every(hours=1), sample_jobs.note)
    for name in ("odd", "fine"):
        back(redis, name, 3600)
    redis.set(key, "somebody else's")
    ticker.run_due(redis)
    history.note_outcomes(redis)
    assert (
        schedules.get("odd").made == made == len(redis.keys("rq:job:odd-*"))
        and schedules.get("fine").made == 1
    )
    if not made:
        with pytest.raises(ScheduleError, match="of the wrong type"):
            schedules.run_now("odd")
    redis.hset("rqjobs:schedule:fine", "made", " 1")
    redis.zadd(SCHEDULES, {"odd": 1, "fine": 1})
    back(redis, "fine", 3600)
    ticker.run_due(redis)
    schedules.runs("odd")
    schedules.remove("odd")
    assert (
        redis.exists("rqjobs:schedule:odd") == 0
        and schedules.get("fine").next.timestamp() > time.time()
    )


def test_names_that_are_not_text_stop_no_schedule_and_are_logged_once(redis, caplog):
    schedules.add("fine", every(hours=1), sample_jobs.note)
    back(redis, "fine", 3600)
    redis.zadd(SCHEDULES, {b"\xff%d" % number: 1 for number in range(ticker.TICK_BATCH_SCHEDULES)})
    ticker.run_due(redis)
    ticker.run_due(redis)
    assert len(ids()) == 1 and ticker.run_due(redis) > scripts.redis_time(redis)
    assert caplog.text.count("cannot be read") == ticker.TICK_BATCH_SCHEDULES


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("next", b"9" * 400),
        ("created", b"1e300"),
        ("changed", b"inf"),
        ("rule", b"[" * 5000),
        ("revision", b""),
        ("revision", b" 5"),
        ("made", b"x"),
    ],
)
def test_a_schedule_that_cannot_be_read_stops_no_other_and_can_be_removed(redis, field, value):
    """A number without end stopped the scheduler.

    With an empty revision, a pause never returned.
    """
    for name in ("hostile", "good"):
        schedules.add(name, every(hours=1), sample_jobs.note)
        back(redis, name, 3600)
    redis.hset("rqjobs:schedule:hostile", field, value)
    ticker.run_due(redis)
    assert schedules.get("good").made == 1 and [found.name for found in schedules.all()] == ["good"]
    for change in (schedules.pause, schedules.run_now, schedules.get):
        with pytest.raises(schedules.ScheduleError):
            change("hostile")
    schedules.remove("hostile")
    assert not redis.exists("rqjobs:schedule:hostile")


@pytest.mark.parametrize(("date", "hours"), [((1, 1, 1), 14), ((9999, 12, 31, 23), -12)])
def test_a_time_at_the_end_of_the_calendar_is_refused(date, hours):
    with pytest.raises(ScheduleError, match="use a time of this age"):
        every(hours=1, start=datetime(*date, tzinfo=timezone(timedelta(hours=hours))))
