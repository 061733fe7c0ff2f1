"""The form that enqueues a job: its fields, its options and its errors."""

from __future__ import annotations

import re
import uuid
from datetime import datetime, timedelta, timezone

import pytest
import sample_jobs
from browser_client import HOSTILE, harmless, run_all

import rqjobs
from rqjobs import config
from rqjobs.jobs import Job


def test_modules_that_fail_to_import_are_named(client):
    config.use(modules=("sample_jobs", "nowhere_at_all"))
    page = client.get("/enqueue").text
    assert "<code>nowhere_at_all</code> failed to import" in page


def test_enqueue(client, redis):
    form = client.get("/enqueue?function=sample_jobs.add").text
    job_id = re.search(r'name="job_id" value="([^"]+)"', form)[1]
    reply = client.post(
        "/jobs",
        data={
            "function": "sample_jobs.add",
            "arg.a": "3",
            "arg.b": "",
            "queue": "default",
            "job_id": job_id,
            "when": "now",
        },
    )
    assert (reply.status_code, reply.location) == (303, f"/jobs/{job_id}")
    job = Job.fetch(job_id, connection=redis)
    assert (job.func_name, list(job.args), job.kwargs, job.origin) == (
        "sample_jobs.add",
        [3],
        {},
        "default",
    )


def test_form_arguments_fit_nested_annotations(client, redis):
    form = client.get("/enqueue?function=sample_jobs.order").text.replace("&#34;", '"')
    assert 'JSON, for example {"customer": {"name": "a"}, "points": [{"x": 3}]}' in form
    data = {"function": "sample_jobs.order", "queue": "default", "arg.sizes": '["LARGE"]'}
    reply = client.post(
        "/jobs", data={**data, "arg.order": '{"customer": {"name": "A"}, "points": [{"x": "b"}]}'}
    )
    assert (
        reply.status_code == 422
        and "order.points[0].x: &#39;b&#39; is not a whole number" in reply.text
    )
    sent = (
        '{"customer": {"name": "A"}, "points": [{"x": 1, "tags": ["t"]}], "colors": {"a": "red"}}'
    )
    job_id = client.post("/jobs", data={**data, "arg.order": sent}).location.rpartition("/")[2]
    run_all(redis)
    order = sample_jobs.Order(
        sample_jobs.Outer.Inner("A"),
        [sample_jobs.Point(1, 0, frozenset({"t"}))],
        {"a": sample_jobs.Color.RED},
    )
    assert Job.fetch(job_id, connection=redis).return_value() == repr(
        (order, [sample_jobs.Size.LARGE])
    )


@pytest.mark.parametrize(
    "when", [{"when": "now"}, {"when": "in", "delay": "50", "unit": "seconds"}]
)
def test_a_form_sent_twice_is_one_job(client, redis, when):
    data = {
        "function": "sample_jobs.add",
        "arg.a": "3",
        "queue": "default",
        "job_id": str(uuid.uuid4()),
        **when,
    }
    replies = [client.post("/jobs", data=data) for _ in range(3)]
    assert {reply.location for reply in replies} == {f"/jobs/{data['job_id']}"}
    assert redis.llen("rq:queue:default") + redis.zcard("rq:scheduled:default") == 1


def test_options_reach_the_job(client, redis):
    data = {
        "function": "sample_jobs.urgent",
        "queue": "low",
        "when": "in",
        "delay": "1.5",
        "unit": "hours",
        "retries": "3",
        "retry_interval": "10",
        "repeats": "5",
        "repeat_interval": "60",
    }
    job = Job.fetch(client.post("/jobs", data=data).location.rpartition("/")[2], connection=redis)
    assert (job.retries_left, job.retry_intervals, job.repeats_left, job.repeat_intervals) == (
        3,
        [10],
        5,
        [60],
    )
    assert (job.origin, job.timeout, job.get_status().value) == ("low", 30, "scheduled")
    due = redis.zscore("rq:scheduled:low", job.id)
    assert due == pytest.approx(datetime.now().timestamp() + 5400, abs=60)


def test_a_form_sent_twice_at_once_is_one_job(client, redis, monkeypatch):
    monkeypatch.setattr(
        Job, "exists", lambda *_: False
    )  # both requests check before one of them writes
    data = {
        "function": "sample_jobs.add",
        "arg.a": "3",
        "queue": "default",
        "job_id": str(uuid.uuid4()),
    }
    assert [client.post("/jobs", data=data).location for _ in range(2)] == [
        f"/jobs/{data['job_id']}"
    ] * 2
    assert redis.llen("rq:queue:default") == 1


@pytest.mark.parametrize("typed, left", [("", 5), ("0", None), ("2", 2)])
def test_zero_retries_override_those_of_the_function(client, redis, monkeypatch, typed, left):
    monkeypatch.setattr(
        sample_jobs.urgent, "__rqjobs__", {"queue": "high", "retry": rqjobs.Retry(max=5)}
    )
    assert "left empty: 5" in client.get("/enqueue?function=sample_jobs.urgent").text
    reply = client.post(
        "/jobs", data={"function": "sample_jobs.urgent", "queue": "high", "retries": typed}
    )
    assert Job.fetch(reply.location.rpartition("/")[2], connection=redis).retries_left == left


def test_a_time_is_read_in_the_time_zone_of_the_browser(client, redis):
    local = datetime.now(timezone.utc).replace(tzinfo=None, microsecond=0) + timedelta(hours=7)
    data = {
        "function": "sample_jobs.ok",
        "queue": "low",
        "when": "at",
        "at": local.isoformat(),
        "offset": "330",
    }
    job_id = client.post("/jobs", data=data).location.rpartition("/")[2]
    expected = local.replace(tzinfo=timezone(timedelta(minutes=330))).timestamp()
    assert redis.zscore("rq:scheduled:low", job_id) == expected
    data["offset"] = ""
    job_id = client.post("/jobs", data=data).location.rpartition("/")[2]
    assert redis.zscore("rq:scheduled:low", job_id) == local.timestamp(), (
        "without JavaScript: the server's zone"
    )


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"arg.a": "three"}, "is not a whole number"),
        ({"arg.a": ""}, "a is required"),
        ({"queue": "nowhere"}, "There is no such queue here."),
        ({"queue": ""}, "There is no such queue here."),
        ({"when": "in", "delay": "-1", "unit": "days"}, "from 0 to 3,650 days"),
        ({"when": "in", "delay": "nan", "unit": "days"}, "from 0 to 3,650 days"),
        ({"when": "in", "delay": "", "unit": "days"}, "Give the delay."),
        ({"when": "at", "at": "tomorrow"}, "Give a date and a time"),
        ({"when": "at", "at": "2001-01-01T00:00"}, "This time is in the past."),
        ({"when": "at", "at": "9999-12-31T23:59", "offset": "-840"}, "10 years"),
        ({"when": "at", "at": "0001-01-01T00:00", "offset": "840"}, "past"),
        ({"when": "never"}, "Choose when to run the job."),
        ({"retries": "101"}, "from 0 to 100."),
        ({"retries": "1", "retry_interval": "99999999"}, "from 0 to 2,592,000 seconds"),
        ({"repeats": "10001"}, "from 0 to 10,000."),
        ({"repeats": "1e3"}, "from 0 to 10,000."),
        ({"function": "os.system"}, "There is no such job function"),
        ({"function": "sample_jobs._hidden"}, "There is no such job function"),
    ],
)
def test_errors_are_shown_and_inputs_are_kept(client, redis, wrong, message):
    data = {
        "function": "sample_jobs.add",
        "arg.a": "3",
        "arg.b": "17",
        "queue": "low",
        "when": "now",
        "job_id": str(uuid.uuid4()),
        **wrong,
    }
    reply = client.post("/jobs", data=data)
    assert reply.status_code == 422 and message in reply.text
    if data["function"] == "sample_jobs.add":
        assert (
            'value="17"' in reply.text
            and data["job_id"] in reply.text
            and 'class="error"' in reply.text
        )
        kept = [value for name, value in wrong.items() if name not in ("queue", "when", "offset")]
        assert all(value in reply.text for value in kept)
    assert not list(redis.scan_iter("rq:job:*"))


def test_a_refusal_of_the_queue_is_shown_on_the_form(client, redis):
    config.use(max_payload_bytes=1024)
    data = {"function": "sample_jobs.say", "arg.text": "x" * 1020, "queue": "low"}
    reply = client.post("/jobs", data=data)
    assert (
        reply.status_code == 422
        and "RQJOBS_MAX_PAYLOAD_BYTES" in reply.text
        and "x" * 1020 in reply.text
    )
    reply = client.post("/jobs", data={**data, "arg.text": "x" * 2000})
    assert reply.status_code == 422 and "longer than RQJOBS_MAX_PAYLOAD_BYTES" in reply.text
    assert not list(redis.scan_iter("rq:job:*"))


def test_an_oversized_form_is_a_413(client):
    reply = client.post("/jobs", data={"function": "sample_jobs.say", "arg.text": "x" * 3_000_000})
    assert reply.status_code == 413 and "<h1>" in reply.text


def test_hostile_input_is_escaped(client):
    reply = client.post(
        "/jobs",
        data={
            "function": "sample_jobs.say",
            "arg.text": HOSTILE,
            "queue": HOSTILE,
            "at": HOSTILE,
            "delay": HOSTILE,
            "retries": HOSTILE,
            "job_id": HOSTILE,
            "when": HOSTILE,
        },
    )
    assert reply.status_code == 422
    harmless(reply.text)
    harmless(client.get("/", query_string={"function": HOSTILE}).text)
    harmless(client.get("/failed", query_string={"queue": HOSTILE}).text)
    harmless(client.get("/login", query_string={"next": HOSTILE}).text)
