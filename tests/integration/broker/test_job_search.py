"""Finding jobs: pages, filters, cursors."""

import base64
import json
import secrets
import zlib
from datetime import datetime, timedelta, timezone

import pytest
import sample_jobs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rqjobs
from rqjobs import config, every, job_cursors, job_search, schedules
from rqjobs.broker import keys
from rqjobs.job_search import Filter, FilterError, State, read_filter, search
from rqjobs.schedules.store import HISTORY_RUNS


def pages(chosen, limit=7):
    """The ids of all pages, in order."""
    ids, after = [], ""
    while True:
        found = search(chosen, after, limit)
        assert len(found.jobs) <= limit
        ids += [job.id for job in found.jobs]
        if not found.next:
            assert found.is_complete and found.searched == found.total
            return ids
        after = found.next


def ids_of(chosen):
    return {job.id for job in search(chosen, limit=100).jobs}


def stamp(seconds):
    moment = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def put(redis, job_id, state, queue="default", seconds=0, **fields):
    """A job in a registry, without a worker."""
    status = "started" if state == "running" else state
    redis.hset(
        keys.job(job_id),
        mapping={
            "status": status,
            "origin": queue,
            "data": '["sample_jobs.add",null,[1,2],{}]',
            "description": "sample_jobs.add(1, 2)",
            "created_at": stamp(seconds),
            **fields,
        },
    )
    redis.sadd("rq:queues", keys.queue(queue))
    if state == "queued":
        redis.rpush(keys.queue(queue), job_id)
    elif state == "running":
        redis.zadd(keys.running(queue), {f"{job_id}:token": "inf"})
    elif state == "stopped":
        redis.zadd(keys.failed(queue), {job_id: seconds})
        redis.zadd(keys.stopped(queue), {job_id: seconds})
    else:
        redis.zadd(keys.registry(state, queue), {job_id: seconds})


def test_all_states_are_merged_by_their_last_dates(redis):
    for number, state in enumerate([*State, *State]):
        put(redis, f"job-{number:02}", state.value, "ab"[number % 2], number)
    assert pages(Filter()) == [f"job-{number:02}" for number in reversed(range(16))]
    assert [job.state for job in search(Filter(), limit=8).jobs] == list(reversed(State))


@pytest.mark.parametrize("state", State)
def test_each_state_is_listed_page_by_page(redis, state):
    for number in range(30):
        put(redis, f"job-{number:02}", state.value, seconds=number)
    ids = pages(Filter(state=state))
    in_order = [f"job-{number:02}" for number in range(30)]
    assert ids == (in_order if state is State.SCHEDULED else in_order[::-1])
    assert job_search.count(Filter(state=state)) == job_search.Count(30, True)
    assert job_search.count(Filter()) == job_search.Count(30, True)


def test_a_state_with_many_jobs_is_paged_by_score_and_member(redis, monkeypatch):
    monkeypatch.setattr(job_search, "SORTED_MAX_JOBS", 0)
    for number in range(40):  # scores that many share, also one that is no date
        put(redis, f"job-{number:02}", "failed", seconds=number % 3)
    redis.zadd("rq:failed:default", {"job-39": "inf", "job-38": -1})
    ids = pages(Filter(state=State.FAILED))
    assert sorted(ids) == [f"job-{number:02}" for number in range(40)]
    assert (ids[0], ids[-1]) == ("job-39", "job-38")


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_random_id_is_found_by_its_beginning_and_another_by_any_part(redis, is_packed):
    random_id, chosen_id = "a1b2c3d4-0042-4042-8042-0123456789ab", "bill-0042-of-a1b2"
    argument = "x" * 200 if is_packed else 1  # the description does not show all of it
    for job_id in (random_id, chosen_id):
        rqjobs.enqueue(sample_jobs.add, argument, 2, job_id=job_id)
        if is_packed:  # so Python decides
            data = redis.hget(f"rq:job:{job_id}", "data")
            redis.hset(f"rq:job:{job_id}", "data", zlib.compress(data))
    assert ids_of(Filter(text="0042")) == {chosen_id}
    assert ids_of(Filter(text="A1B2")) == {random_id, chosen_id}
    assert ids_of(Filter(text="a1b")) == {chosen_id}
    assert ids_of(Filter(text=random_id.upper())) == {random_id}
    assert ids_of(Filter(text=f"{random_id} ")) == set()


def test_filters(redis):
    job = rqjobs.enqueue(sample_jobs.add, 1, 42)
    named = rqjobs.queue("low").enqueue(sample_jobs.add, 7, 7, description="Bill user Ä 42")
    put(redis, "old", "failed", ended_at="2020-01-01T00:00:00.000000Z", created_at="")
    assert ids_of(Filter(text="ADD(1, 42")) == {job.id}
    assert ids_of(Filter(text="42")) == {job.id, named.id}
    assert ids_of(Filter(text=job.id[:8])) == {job.id}
    assert ids_of(Filter(function="add")) == {job.id, named.id, "old"}
    assert ids_of(Filter(function="sample_jobs.add", queue="low")) == {named.id}
    assert ids_of(Filter(function="dd")) == set()
    assert ids_of(Filter(since=timedelta(hours=1))) == {job.id, named.id}
    assert ids_of(Filter(until=datetime(2021, 1, 1, tzinfo=timezone.utc))) == {"old"}
    assert ids_of(Filter(job_id=job.id)) == {job.id}
    assert ids_of(Filter(job_id=job.id, state=State.FAILED)) == set()
    assert ids_of(Filter(job_id="nothing")) == set()
    assert job_search.count(Filter(text="42")) == job_search.Count(2, True)
    assert job_search.count(Filter(function="add"), cap=2) == job_search.Count(2, False)


def test_the_function_of_packed_data_is_found(redis):
    job = rqjobs.queue("low").enqueue(sample_jobs.ok, "x" * 5000, description="a title")
    other = rqjobs.queue("low").enqueue(sample_jobs.add, 1, "y" * 5000, description="a title")
    assert redis.hget(job.key, "data")[:1] not in (b"[", b"{")
    assert ids_of(Filter(function="ok")) == {job.id}
    assert ids_of(Filter(function="sample_jobs.add")) == {other.id}
    assert job_search.count(Filter(function="ok")) == job_search.Count(1, True)


def test_the_jobs_of_a_schedule_are_those_of_its_history(redis):
    schedules.add("often", every(hours=1), sample_jobs.add, 1, 2)
    for _ in range(HISTORY_RUNS + 1):
        schedules.run_now("often")
    ids = [run.job_id for run in schedules.runs("often", 1000)]
    assert len(ids) == HISTORY_RUNS
    assert ids_of(Filter(schedule="often", state=State.QUEUED)) == set(ids)


def test_damaged_records_are_listed_and_hide_nothing(redis):
    for number in range(5):
        put(redis, f"job-{number}", "failed", seconds=number)
    redis.delete(keys.job("job-1"))
    redis.delete(keys.job("job-2"))
    redis.set(keys.job("job-2"), "text")
    redis.hset(keys.job("job-3"), mapping={"created_at": b"\xff" * 50, "description": b"\xff\0<b>"})
    redis.set("rq:finished:default", "text")
    found = {job.id: job.status for job in search(Filter()).jobs}
    assert found == {
        "job-0": "failed",
        "job-1": "",
        "job-2": "unreadable",
        "job-3": "failed",
        "job-4": "failed",
    }
    put(redis, "gone", "canceled")
    redis.delete(keys.job("gone"))  # expired: this is ordinary
    assert "gone" not in ids_of(Filter())


def test_a_long_text_search_says_how_far_it_came(redis, monkeypatch):
    monkeypatch.setattr(job_search, "TEXT_STEP_JOBS", 100)
    monkeypatch.setattr(job_search, "TEXT_WINDOW_JOBS", 500)
    monkeypatch.setattr(job_search, "TEXT_SECONDS", 60)
    with redis.pipeline() as pipe:
        for number in range(1300):
            put(pipe, f"job-{number:04}", "queued", description=f"add({number})")
        pipe.execute()
    found = search(Filter(text="add(77)"))
    assert (found.jobs, found.searched, found.total) == ([], 500, 1300)
    assert not found.is_complete
    found = search(Filter(text="add(77)"), found.next)
    assert (found.searched, found.total) == (1000, 1300)
    found = search(Filter(text="add(77)"), found.next)
    assert [job.id for job in found.jobs] == ["job-0077"]
    assert found.is_complete and found.searched == 1300
    assert job_search.count(Filter(text="add(")) == job_search.Count(500, False)
    monkeypatch.setattr(job_search, "TEXT_SECONDS", 0)
    assert search(Filter(text="add(77)")).searched == 100


PADDING = pytest.mark.parametrize("padding", ["", "y" * 2000], ids=["as JSON", "packed"])


@PADDING
def test_a_text_is_found_in_arguments_that_the_description_does_not_show(redis, padding):
    low = rqjobs.queue("low")
    titled = low.enqueue(sample_jobs.hang_then, [4711, "Größe"], padding, description="a title")
    cut = low.enqueue(sample_jobs.hang_then, f"{'x' * 100} order 4712 {padding}", what="Ada")
    assert "4711" not in titled.description and "4712" not in cut.description
    assert (redis.hget(titled.key, "data")[:1] == b"[") is not bool(padding)
    for text, jobs in {
        "4711": {titled.id},
        "order 4712 ": {cut.id},
        "THEN([4711, '": {titled.id},
        "what='ada'": {cut.id},
        "'Größe'": {titled.id},
        "GrÖße": set(),
        "4713": set(),
        "order, 4712": set(),
        "471": {titled.id, cut.id},
    }.items():
        assert ids_of(Filter(text=text)) == jobs, text
        assert job_search.count(Filter(text=text)) == job_search.Count(len(jobs), True)
    assert ids_of(Filter(text="4711", function="hang_then")) == {titled.id}
    assert ids_of(Filter(text="4711", function="add")) == set()
    assert ids_of(Filter(text="4711", state=State.FAILED)) == set()


@PADDING
def test_a_hidden_value_cannot_be_found(redis, padding):
    """A search confirmed a guess, if the description was from plain RQ or from an older setting."""
    put(redis, "plain", "queued", description="sample_jobs.say(api_Token='c0ffee', page=77)")
    put(redis, "other", "queued", description="PÄSSWORD='c0ffee', page 77")
    low = rqjobs.queue("low")
    low.enqueue(sample_jobs.hang_then, [77, padding], "c0ffee", description="a title")
    low.enqueue(
        sample_jobs.say, [padding, {"my-token": "c0ffee", "page": 77}], description="a title"
    )
    low.enqueue(sample_jobs.say, ["x" * 100, {"token": f"c0ffee{padding}", "page": 77}])
    assert len(ids_of(Filter(text="c0ffee"))) == 5
    config.use(hide=("token", "pässword", "what"))
    for right, wrong in [("c0ffee", "c0ffe0"), ("token='c0ffee'", "token='c0ffe0'")]:
        assert search(Filter(text=right)) == search(Filter(text=wrong))
        assert job_search.count(Filter(text=right)) == job_search.Count(0, True)
    assert len(ids_of(Filter(text="77"))) == 5


def test_pushes_pops_and_removals_around_a_position_of_a_queue(redis):
    for number in range(300):
        put(redis, f"job-{number:03}", "queued", enqueued_at=stamp(number))
    chosen = Filter(state=State.QUEUED)
    first = search(chosen, limit=50)
    for number in range(300, 340):
        put(redis, f"job-{number:03}", "queued", enqueued_at=stamp(number))
    redis.lpop("rq:queue:default", 20)
    for job in first.jobs:  # all of the page are canceled, and two jobs behind it
        redis.lrem("rq:queue:default", 0, job.id)
    redis.lrem("rq:queue:default", 0, "job-249")
    second = search(chosen, first.next, limit=50)
    assert [job.id for job in second.jobs] == [f"job-{n:03}" for n in range(248, 198, -1)]
    redis.ltrim("rq:queue:default", -1, -1)  # all that was not listed is gone
    put(redis, "later", "queued", enqueued_at=stamp(999))
    assert search(chosen, second.next).jobs == []


def test_a_position_is_found_by_time_when_all_around_it_has_gone(redis):
    with redis.pipeline() as pipe:
        for number in range(9000):
            put(pipe, f"job-{number:04}", "queued", enqueued_at=stamp(number))
        pipe.execute()
    chosen = Filter(state=State.QUEUED)
    first = search(chosen, limit=50)
    for number in range(8940, 8960):
        redis.lrem("rq:queue:default", 0, f"job-{number:04}")
    with redis.pipeline() as pipe:
        for number in range(9000, 15000):
            put(pipe, f"job-{number:05}", "queued", enqueued_at=stamp(number))
        pipe.execute()
    redis.lpop("rq:queue:default", 2500)
    assert search(chosen, first.next, limit=1).jobs[0].id == "job-8939"


HOSTILE = {
    "state": "<b>",
    "queue": "x" * 201,
    "function": "a\0b",
    "job_id": "x" * 300,
    "text": "\ud800",
    "error": "a\nb",
    "since": "yesterday",
    "until": "9999-99-99",
    "schedule": "\u202e",
    "group": "x" * 201,
}


@pytest.mark.parametrize("field", HOSTILE)
def test_a_wrong_filter_is_refused_by_its_field(field):
    with pytest.raises(FilterError) as caught:
        read_filter({field: HOSTILE[field]})
    assert caught.value.field == field
    with pytest.raises(FilterError):
        read_filter({field: ["a list"]})


def test_params_are_read_back():
    chosen = read_filter(
        {
            "state": "failed",
            "queue": " low ",
            "text": "",
            "since": "2h",
            "until": "2030-01-31T06:00",
        }
    )
    assert chosen.queue == "low" and chosen.until.isoformat() == "2030-01-31T06:00:00+00:00"
    assert read_filter(chosen.params()) == chosen
    assert read_filter({"nonsense": "x"}) == Filter()


def packed(value):
    text = zlib.compress(json.dumps(value).encode())
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def test_a_wrong_cursor_is_refused(redis):
    for number in range(20):
        put(redis, f"job-{number:02}", "queued")
        put(redis, f"done-{number:02}", "finished", seconds=number)
    good = search(Filter(), limit=5).next
    digest = job_cursors.digest_of(Filter())
    cursors = ["x", "é", "A" * 9999, good[:-5], good + "AAAA", packed([1, 2, 3])]
    for marks in (
        {"queued:default": ["sorted", "", "x"]},
        {"finished:default": ["listed", "1", "1", "", "", "", "", ""]},
        {"finished:default": ["ranked", "nan", "x"]},
        {"finished:default": ["ranked", "1) or 1", "x"]},
        {"queued:default": ["listed", "-1", "1", "", "", "", "", ""]},
        {"queued:default": ["listed", "x" * 2000, "1", "", "", "", "", ""]},
        {"queued:default": []},
        {"queued:default": "text"},
        {"queued:default": [[]]},
        [],
    ):
        cursors.append(packed([digest, 0, 0, marks]))
    cursors.append(packed([digest, "0", 0, {}]))
    cursors.append(packed([digest, 10**400, 0, {}]))
    for cursor in cursors:
        with pytest.raises(FilterError):
            search(Filter(), cursor, limit=5)
    with pytest.raises(FilterError):
        search(Filter(state=State.QUEUED), good)
    odd = {"queued:default": ["listed", "999999", "5", "\xff", "a", "b", "c", "d"]}
    assert search(Filter(), packed([digest, 0, 0, odd])).jobs  # a position that is nowhere


def test_too_many_queues_are_not_merged(redis):
    for number in range(101):
        put(redis, f"job-{number}", "queued", f"queue-{number}")
    with pytest.raises(FilterError, match="choose a queue"):
        search(Filter())
    assert ids_of(Filter(queue="queue-7")) == {"job-7"}


def test_the_next_link_of_many_queues_is_left_out_with_the_reason(redis):
    for number in range(60):
        for copy in range(3):
            put(redis, f"{copy}-{secrets.token_hex(100)}", "queued", f"queue-{number}", copy)
    found = search(Filter(), limit=60)
    assert not found.next and not found.is_complete and "choose a state" in found.error


STATES = [state.value for state in State]


def move(redis, job_id, state, queue="default"):
    """Take a job out of its place."""
    if state == "queued":
        redis.lrem(keys.queue(queue), 0, job_id)
    elif state == "running":
        redis.zrem(keys.running(queue), f"{job_id}:token")
    else:
        for key in (keys.registry("failed" if state == "stopped" else state, queue), "x"):
            redis.zrem(key, job_id)
        redis.zrem(keys.stopped(queue), job_id)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_jobs_that_stay_are_listed_once_while_others_come_and_go(redis, data):
    redis.flushall()
    draw = data.draw
    chosen = Filter(
        state=draw(st.sampled_from([None, *State])), text=draw(st.sampled_from([None, "add"]))
    )
    numbers = st.integers(0, 5)
    places, seen, after = {}, [], ""

    def add(count):
        for _ in range(count):
            job_id = f"job-{len(places)}"
            places[job_id] = draw(st.sampled_from(STATES))
            # Only the order of a queue tells its times.
            moment = len(places) if places[job_id] == "queued" else draw(numbers)
            put(redis, job_id, places[job_id], seconds=draw(numbers), enqueued_at=stamp(moment))

    add(draw(st.integers(0, 25)))
    staying = set(places)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_search, "SORTED_MAX_JOBS", draw(st.sampled_from([0, 5000])))
        while True:
            found = search(chosen, after, draw(st.integers(1, 4)))
            seen += [job.id for job in found.jobs]
            after = found.next
            if not after:
                break
            add(draw(numbers))
            for job_id in draw(st.lists(st.sampled_from(sorted(places)), max_size=3, unique=True)):
                move(redis, job_id, places[job_id])
                staying.discard(job_id)
    expected = {one for one in staying if chosen.state in (None, State(places[one]))}
    assert expected <= set(seen) and len(set(seen)) == len(seen)
