"""The options of an enqueue by the API: they are those of Python's, and say the same."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
import sample_jobs
from api_client import ApiClient
from browser_client import run_all
from rq.job import Dependency
from rq.webhook import Webhook

import rqjobs
from rqjobs import Callback, Repeat, Retry, backoff, call_options, config
from rqjobs.queues import ENQUEUE_BATCH_MAX_JOBS
from rqjobs.web.api.job_options import JOB_CALL
from rqjobs.web.api.operations import SCHEMAS
from rqjobs.web.api.schemas import REFERENCE

OK = {"function": "sample_jobs.ok", "args": [1]}
CHARGE = {"function": "sample_jobs.charge", "args": [1, 9.5]}
PROPERTIES = SCHEMAS[JOB_CALL["$ref"].removeprefix(REFERENCE)]["properties"]
# Names of Python's that JSON has otherwise, or not at all.
OTHER_NAMES = {"job_timeout": "timeout", "repeat": "repeats", "pipeline": "function"}
IN_THE_YEAR_2040 = "2040-01-31T06:00:00Z"
# The options in JSON, and the same ones in Python.
SAME = [
    ({"timeout": 7.0, "result_ttl": -1}, {"job_timeout": 7, "result_ttl": -1}),
    ({"timeout": -1}, {"job_timeout": -1}),
    ({"failure_ttl": 60, "ttl": 90}, {"failure_ttl": 60, "ttl": 90}),
    ({"description": "a", "meta": {"b": 1.5}}, {"description": "a", "meta": {"b": 1.5}}),
    ({"retries": 3}, {"retry": Retry(3)}),
    ({"retries": 3, "retry_interval": 5}, {"retry": Retry(3, 5)}),
    ({"retries": 3, "retry_interval": [5, 60]}, {"retry": Retry(3, [5, 60])}),
    ({"retries": 0}, {"retry": False}),
    ({"retry": {"count": 5, "base": 3}}, {"retry": backoff(5, base=3)}),
    (
        {"retry": {"count": 5, "interval": [1, 2], "at_front": True}},
        {"retry": Retry(5, [1, 2], True)},
    ),
    (
        {"retry": {"jitter": False, "cap": 9.5}, "retry_for": 60},
        {"retry": backoff(jitter=False, cap=9.5), "retry_for": 60},
    ),
    (
        {"retry": [{"exception": "KeyError", "count": 1}, {"exception": "OSError", "count": 2}]},
        {"retry": {KeyError: backoff(1), OSError: backoff(2)}},
    ),
    (
        {"retries": 2, "retry_on": ["builtins.OSError", "rqjobs.raised.JobFailed"]},
        {"retry": Retry(2), "retry_on": (OSError, rqjobs.JobFailed)},
    ),
    ({"discard_on": ["rqjobs.JobFailed"]}, {"discard_on": (rqjobs.JobFailed,)}),
    ({"repeats": 2, "repeat_interval": [60]}, {"repeat": Repeat(2, [60])}),
    ({"limit": 3.0, "limit_by": "i:{invoice}"}, {"limit": 3, "limit_by": "i:{invoice}"}),
    ({"rate": "30/m", "burst": 5}, {"rate": "30/m", "burst": 5}),
    ({"unique": "args", "keep": 2.5}, {"unique": "args", "keep": 2.5}),
    ({"unique": "{invoice}", "until": "started"}, {"unique": "{invoice}", "until": "started"}),
    ({"on_conflict": "raise"}, {"on_conflict": "raise"}),
    ({"expires": 60, "kill_after": 1}, {"expires": 60, "kill_after": 1}),
    (
        {"expires": IN_THE_YEAR_2040},
        {"expires": datetime(2040, 1, 31, 6, tzinfo=timezone.utc)},
    ),
    ({"on_failed": "sample_jobs:charge"}, {"on_failed": "sample_jobs:charge"}),
    ({"on_failed": ""}, {"on_failed": ""}),
    (
        {"on_success": "sample_jobs.on_done", "on_failure": {"function": "sample_jobs.on_failed"}},
        {
            "on_success": Callback("sample_jobs.on_done"),
            "on_failure": Callback("sample_jobs.on_failed"),
        },
    ),
    (
        {"on_stopped": {"function": "sample_jobs.on_stopped", "timeout": 5}},
        {"on_stopped": Callback("sample_jobs.on_stopped", 5)},
    ),
    (
        {"webhooks": [{"url": "https://hooks.example/a", "job_status": "failed"}]},
        {"webhooks": [Webhook("https://hooks.example/a", "failed")]},
    ),
    (
        {"depends_on": ["parent", "other", "parent"], "allow_failure": True, "at_front": True},
        {"depends_on": Dependency(["parent", "other"], True, True)},
    ),
]
UNSTABLE_FIELDS = {b"created_at", b"enqueued_at", b"rqjobs_debounce", b"rqjobs_expires"}


def in_days(days):
    return (datetime.now(timezone.utc) + timedelta(days)).isoformat()


@pytest.fixture
def api(app):
    return ApiClient(app.test_client())


def stored(redis, job_id):
    """The fields of a job that do not depend on the time or the id."""
    fields = redis.hgetall(f"rq:job:{job_id}")
    return {name: value for name, value in fields.items() if name not in UNSTABLE_FIELDS}


def test_everything_that_python_says_can_be_said_in_json():
    names = call_options.CALL_OPTIONS | {"timeout", "in", "at", "queue"}
    assert {OTHER_NAMES.get(name, name) for name in names} <= PROPERTIES.keys()


@pytest.mark.parametrize(("options", "same"), SAME, ids=lambda one: "")
def test_an_option_in_json_is_that_of_python(api, redis, options, same):
    config.use(webhook_hosts=("hooks.example",))
    for name in ("parent", "other"):
        rqjobs.enqueue(sample_jobs.ok, job_id=name)
    expected = rqjobs.enqueue(sample_jobs.charge, 1, 9.5, **same)
    before = stored(redis, expected.id)
    expiry = redis.hget(expected.key, "rqjobs_expires")
    expected.delete()
    reply = api.post("/jobs", {**CHARGE, **options})
    assert reply.status_code == 201, reply.json
    assert stored(redis, reply.json["id"]) == before
    found = redis.hget(f"rq:job:{reply.json['id']}", "rqjobs_expires")
    assert (found or b"").partition(b"+")[2] == (expiry or b"").partition(b"+")[2]
    assert reply.json["status"] == ("deferred" if "depends_on" in options else "queued")


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"depends_on": []}, "depends_on"),
        ({"depends_on": ["a:b"]}, "depends_on[0]"),
        ({"depends_on": ["nothing"]}, "depends_on"),
        ({"depends_on": ["self"], "job_id": "self"}, "depends_on"),
        ({"allow_failure": True}, "allow_failure"),
        ({"retry_interval": 5}, "retry_interval"),
        ({"retries": 1, "retry": {"count": 1}}, "retry"),
        ({"retries": 1, "retry_interval": [-1]}, "retry_interval[0]"),
        ({"retry": {}}, ""),
        ({"retry": {"count": 0}}, "retry.count"),
        ({"retry": {"count": 1, "interval": 1, "base": 2}}, "retry.base"),
        ({"retry": {"interval": 1}}, "retry.count"),
        ({"retry": [{"exception": "no.Such", "count": 1}]}, "retry[0].exception"),
        ({"retry": [{"exception": "OSError", "count": 1}] * 2}, "retry[1].exception"),
        ({"retry_on": ["OSError"]}, "retry_on"),
        ({"retry_on": ["len"], "retries": 1}, "retry_on[0]"),
        ({"retry_on": ["os.path"], "retries": 1}, "retry_on[0]"),
        ({"discard_on": ["shop.NotLoaded"]}, "discard_on[0]"),
        ({"retry_for": -1}, "retry_for"),
        ({"repeats": 1, "repeat_interval": 0.5}, "repeat_interval"),
        ({"limit": 0}, "limit"),
        ({"limit_by": "{nothing}", "limit": 1}, "limit_by"),
        ({"burst": 2}, "burst"),
        ({"rate": "often"}, "rate"),
        ({"unique": True}, "unique"),
        ({"unique": "always"}, "unique"),
        ({"until": "never"}, "until"),
        ({"keep": 0}, "keep"),
        ({"debounce": 5, "at_front": True}, ""),
        ({"debounce_max": 5}, "debounce_max"),
        ({"expires": 0}, "expires"),
        ({"expires": "soon"}, "expires"),
        ({"expires": "2001-01-01T00:00:00Z"}, "expires"),
        ({"expires": [1]}, "expires"),
        pytest.param({"expires": in_days(1), "at": in_days(2)}, "", id="it expires too soon"),
        ({"on_failed": "os:system"}, "on_failed"),
        ({"on_failed": "rqjobs.bulk_actions:change_jobs"}, "on_failed"),
        ({"on_success": "os.system"}, "on_success"),
        ({"on_success": "rqjobs.bulk_actions.change_jobs"}, "on_success"),
        ({"on_stopped": {}}, "on_stopped.function"),
        ({"webhooks": [{"url": "https://evil.example", "job_status": "failed"}]}, ""),
        ({"webhooks": [{"url": "file:///etc/passwd", "job_status": "failed"}]}, "webhooks[0].url"),
        ({"webhooks": [{"url": "https://x"}]}, "webhooks[0].job_status"),
        ({"job_id": "a\n"}, "job_id"),
        ({"timeout": -2}, "timeout"),
        ({"job_url": "/users/1"}, "job_url"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_with_its_place(api, redis, options, place):
    config.use(webhook_hosts=("hooks.example",))
    reply = api.post("/jobs", {"function": "sample_jobs.add", "args": [1], **options})
    assert (reply.status_code, [*reply.json["errors"]]) == (422, [place]), reply.json
    assert not redis.keys("rq:job:*")


def test_a_job_waits_for_the_jobs_it_depends_on(api, redis):
    parent = api.post("/jobs", {"function": "sample_jobs.boom"}).json["id"]
    call = {**OK, "depends_on": [parent]}
    child, delayed, hopeful = (
        api.post("/jobs", {**call, **more}).json
        for more in ({}, {"in": 3600, "at_front": True}, {"allow_failure": True})
    )
    assert {one["status"] for one in (child, delayed, hopeful)} == {"deferred"}
    assert api.get(f"/jobs/{child['id']}").json["depends_on"] == [parent]
    run_all(redis)
    states = [api.get(f"/jobs/{one['id']}").json["status"] for one in (child, delayed, hopeful)]
    assert states == ["deferred", "deferred", "finished"]
    redis.delete(f"rq:job:{parent}")
    reply = api.post("/jobs", call)
    assert reply.status_code == 422
    assert "leave it out if it has finished" in reply.json["errors"]["depends_on"]


def test_a_delayed_job_at_the_front_comes_first_when_it_is_due(api, redis):
    reply = api.post("/jobs", {**OK, "in": 60, "at_front": True})
    same = rqjobs.enqueue_in(timedelta(seconds=60), sample_jobs.ok, 1, at_front=True)
    assert stored(redis, reply.json["id"]) == stored(redis, same.id)


def test_jobs_of_a_batch_depend_on_those_before_them(api, redis):
    many = [{**OK, "job_id": f"job-{number}"} for number in range(ENQUEUE_BATCH_MAX_JOBS + 1)]
    last = {**OK, "job_id": "last", "depends_on": ["job-0", f"job-{ENQUEUE_BATCH_MAX_JOBS}"]}
    reply = api.post("/jobs/batch", {"jobs": [last, *many]})
    assert (reply.status_code, [*reply.json["errors"]]) == (422, ["jobs[0].depends_on"])
    assert not redis.keys("rq:job:*")
    assert api.post("/jobs/batch", {"jobs": [*many, last]}).json["jobs"][-1]["status"] == "deferred"
    run_all(redis)
    assert api.get("/jobs/last").json["status"] == "finished"
    unique = {"function": "sample_jobs.unique_args", "job_id": "unique"}
    reply = api.post("/jobs/batch", {"jobs": [unique, {**OK, "depends_on": ["unique"]}]})
    assert "a request of its own" in reply.json["errors"]["jobs[1].depends_on"]


def test_a_job_whose_parent_is_refused_is_refused_too(api, redis, monkeypatch):
    """In Redis a job that is gone counts as ended: the job would run at once."""
    monkeypatch.setattr("rqjobs.web.api.enqueueing._check_ids", lambda *_: None)
    rqjobs.enqueue(sample_jobs.ok, job_id="taken")
    calls = {"jobs": [{**OK, "job_id": "taken"}, {**OK, "depends_on": ["taken"]}]}
    for headers in ({}, {"Idempotency-Key": "a"}):
        reply = api.post("/jobs/batch", calls, headers=headers)
        assert (reply.status_code, reply.json["type"]) == (409, "urn:rqjobs:duplicate")
        if not headers:
            assert len(redis.keys("rq:job:*")) == 1
    monkeypatch.setattr("rqjobs.web.api.enqueueing._existing", set)
    redis.flushdb()
    for headers in ({}, {"Idempotency-Key": "a"}):
        reply = api.post("/jobs", {**OK, "depends_on": ["gone"]}, headers=headers)
        assert (reply.status_code, reply.json["type"]) == (409, "urn:rqjobs:conflict")
        assert not redis.keys("rq:job:*")


def test_of_requests_at_once_with_one_id_one_is_stored(api, redis, monkeypatch):
    """The check was a step before the script: the second job replaced the first one."""
    monkeypatch.setattr("rqjobs.web.api.enqueueing._check_ids", lambda *_: None)
    replies = [api.post("/jobs", {**OK, "args": [n], "job_id": "mine"}) for n in range(3)]
    assert [reply.status_code for reply in replies] == [201, 409, 409]
    assert api.get("/jobs/mine").json["args"] == [0]
    assert redis.lrange("rq:queue:default", 0, -1) == [b"mine"]


def test_a_request_sent_again_is_not_checked_again(api, redis):
    """What was right may be wrong by then: the time is past, the parent is gone."""
    rqjobs.enqueue(sample_jobs.ok, job_id="parent")
    body = {**OK, "depends_on": ["parent"], "expires": in_days(1), "job_id": "mine"}
    first = api.post("/jobs", body, headers={"Idempotency-Key": "a"})
    assert first.json == {"id": "mine", "status": "deferred", "created": True}
    redis.delete("rq:job:parent")
    again = api.post("/jobs", body, headers={"Idempotency-Key": "a"})
    assert (again.status_code, again.json) == (200, {**first.json, "created": False})


def test_a_number_and_a_text_of_the_same_digits_are_two_requests(api):
    key = {"Idempotency-Key": "a"}
    assert api.post("/jobs", {**OK, "args": [1.5]}, headers=key).status_code == 201
    assert api.post("/jobs", {**OK, "args": ["1.5"]}, headers=key).status_code == 422


@pytest.mark.parametrize("text", ["\ud800", "\0", "\u202e\n", "é" * 190])
def test_odd_texts_are_stored_or_refused(api, text):
    texts = {
        "description": text,
        "meta": {text: text},
        "unique": f"{{text}}{text}",
        "limit_by": f"{{text}}{text}",
        "limit": 1,
        "discard_on": [text],
    }
    for name in texts:
        call = {"function": "sample_jobs.say", "args": [text], name: texts[name], "limit": 1}
        reply = api.post("/jobs", call)
        assert reply.status_code in (201, 422), (name, reply.json)
        if reply.status_code == 201:
            assert api.get(f"/jobs/{reply.json['id']}").status_code == 200
