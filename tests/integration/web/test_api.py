"""The JSON API: tokens and roles, enqueueing, and what is answered about jobs."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

import pytest
from api_client import ADMIN, OPERATOR, READER, TOKENS, ApiClient
from browser_client import Client, run_all
from flask import Flask

import rqjobs
from rqjobs import config, stats
from rqjobs.broker import activity
from rqjobs.web import init_app
from rqjobs.web.access import Role
from rqjobs.web.api import enqueueing, jobs
from rqjobs.web.api.operations import OPERATIONS, body_max_bytes

OK = {"function": "sample_jobs.ok", "args": [1]}
TOKEN_OF = {Role.READ: READER, Role.OPERATE: OPERATOR, Role.ADMIN: ADMIN}


@pytest.fixture
def api(app):
    return ApiClient(app.test_client())


def address_of(one):
    return one.path.replace("{", "").replace("}", "")


# Tokens and roles


def test_without_the_setting_the_api_is_closed_and_says_so(app):
    config.use(api_tokens=())
    api = ApiClient(app.test_client())
    for path in ("/jobs/x", "/openapi.json", "/nothing"):
        reply = api.get(path)
        assert reply.status_code == 403
        assert "RQJOBS_API_TOKEN" in reply.json["detail"]


def test_a_request_without_a_right_token_is_refused(api, client):
    for header in ("", ADMIN, f"Basic {ADMIN}", "Bearer", "Bearer  "):
        reply = api.get("/queues", headers={"Authorization": header})
        assert reply.status_code == 401
        assert reply.headers["WWW-Authenticate"].startswith("Bearer")
    # A browser that is logged in has no token.
    assert client.get("/api/queues").status_code == 401
    assert ADMIN not in api.get("/queues", token="x" + ADMIN).text


def test_wrong_tokens_are_slowed_down_and_right_ones_are_not(api):
    replies = [api.get("/queues", token=f"wrong-{number}") for number in range(8)]
    assert [reply.status_code for reply in replies[:5]] == [401] * 5
    refused = [reply for reply in replies if reply.status_code == 429]
    assert refused and int(refused[0].headers["Retry-After"]) >= 1
    assert api.get("/queues").status_code == 200


@pytest.mark.parametrize("one", OPERATIONS, ids=lambda one: one.name)
def test_every_operation_needs_its_role(api, one):
    for role, token in TOKEN_OF.items():
        reply = api(one.method, address_of(one), token=token, json={})
        assert (reply.status_code == 403) == (role < one.role), (role, reply.json)
        if role < one.role:
            assert f"role {one.role.name.lower()}" in reply.json["detail"]
    reply = api(one.method, address_of(one), token="wrong", json={})
    assert reply.status_code in (401, 429)


def test_one_plain_token_may_operate(app):
    config.use(api_tokens=config.SETTINGS["RQJOBS_API_TOKEN"][1](OPERATOR))
    api = ApiClient(app.test_client(), OPERATOR)
    assert api.post("/jobs", OK).status_code == 201
    assert api("DELETE", "/schedules/x").status_code == 403


def test_it_works_under_a_prefix_and_beside_the_login_of_the_application(settings, redis):
    config.use(api_tokens=config.SETTINGS["RQJOBS_API_TOKEN"][1](TOKENS))
    app = Flask("shop")
    app.test_client_class = Client
    init_app(app, "/admin/jobs", authorize=lambda request: None)
    api = ApiClient(app.test_client(), prefix="/admin/jobs/api")
    reply = api.post("/jobs", OK)
    assert reply.headers["Location"] == f"/admin/jobs/api/jobs/{reply.json['id']}"
    assert api.get("/openapi.json").json["servers"] == [{"url": "/admin/jobs/api"}]
    assert api.get("/nothing").status_code == 404
    assert app.test_client().get("/admin/jobs/api/queues").status_code == 401
    assert app.test_client().get("/api/queues").status_code == 404


def test_routes_of_the_application_below_the_same_address_are_its_own(settings, redis):
    config.use(api_tokens=config.SETTINGS["RQJOBS_API_TOKEN"][1](TOKENS))
    app = Flask("shop")
    app.test_client_class = Client
    app.add_url_rule("/api/prices", view_func=lambda: "open")
    init_app(app, authorize=lambda request: None)
    assert app.test_client().get("/api/prices").text == "open"
    assert ApiClient(app.test_client()).get("/queues").status_code == 200


def test_other_sites_get_no_permission_to_read(api):
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert api("OPTIONS", "/jobs", headers=headers).status_code == 405
    assert api("PUT", "/jobs/batch").headers["Allow"] == "POST"
    assert api("PUT", "/jobs/x").headers["Allow"] == "DELETE, GET, HEAD"


# Enqueue


def test_a_job_is_enqueued_and_its_result_is_read(api, redis):
    reply = api.post("/jobs", {"function": "sample_jobs.add", "args": [2], "kwargs": {"b": 3}})
    job_id = reply.json["id"]
    assert (reply.status_code, reply.json["status"]) == (201, "queued")
    assert api.get(f"/jobs/{job_id}/result").status_code == 202
    run_all(redis)
    outcome = api.get(f"/jobs/{job_id}/result").json
    assert (outcome["status"], outcome["has_result"], outcome["result"]) == ("finished", True, 5)
    job = api.get(f"/jobs/{job_id}").json
    assert (job["args"], job["kwargs"], job["outcome"]) == ([2], {"b": 3}, outcome)
    assert job["attempts"][0]["outcome"] == "finished"


def test_the_options_of_a_call_are_the_jobs(api, redis):
    call = {
        **OK,
        "queue": "low",
        "in": 3600.5,
        "job_id": "mine",
        "timeout": 7,
        "result_ttl": -1,
        "failure_ttl": 60,
        "ttl": 90_000,
        "retries": 3,
        "retry_interval": 5,
        "description": "the first",
        "meta": {"user": 1.5},
    }
    assert api.post("/jobs", call).json == {"id": "mine", "status": "scheduled", "created": True}
    job = rqjobs.Job.fetch("mine", connection=redis)
    assert (job.origin, job.timeout, job.result_ttl, job.failure_ttl) == ("low", 7, -1, 60)
    assert (job.ttl, job.retries_left, job.retry_intervals) == (90_000, 3, [5])
    assert (job.description, job.meta) == ("the first", {"user": 1.5})
    assert redis.zscore("rq:scheduled:low", "mine") % 1
    assert api.get("/jobs/mine").json["due_at"]
    assert api.post("/jobs", call).status_code == 409
    first = api.post("/jobs", {**OK, "at_front": True}).json["id"]
    assert api.post("/jobs", OK).json["id"] != first
    assert redis.lindex("rq:queue:default", 0) == first.encode()


def test_values_are_converted_as_the_annotations_say(api, redis):
    order = {
        "customer": {"name": "Ada"},
        "points": [{"x": 1, "tags": ["a"]}],
        "colors": {"a": "RED"},
    }
    (parameter, _) = api.get("/functions/sample_jobs.order").json["parameters"]
    assert parameter["schema"]["required"] == ["customer", "points"]
    reply = api.post("/jobs", {"function": "sample_jobs.order", "args": [order]})
    assert reply.status_code == 201, reply.json
    run_all(redis)
    assert "Color.RED" in api.get(f"/jobs/{reply.json['id']}/result").json["result"]
    wrong = {**order, "colors": {"a": "NOPE"}}
    reply = api.post("/jobs", {"function": "sample_jobs.order", "args": [wrong]})
    assert "colors" in reply.json["errors"]["args[0]"]


@pytest.mark.parametrize(
    ("call", "place"),
    [
        ({"function": "os.system", "args": ["true"]}, "function"),
        ({"function": "sample_jobs.add"}, "args"),
        ({"function": "sample_jobs.add", "args": ["a"]}, "args[0]"),
        ({"function": "sample_jobs.add", "args": [1], "kwargs": {"b": 1.5}}, "kwargs.b"),
        ({"function": "sample_jobs.add", "args": [1, 2, 3]}, "args"),
        ({**OK, "queue": "nowhere"}, "queue"),
        ({**OK, "queue": "a b"}, "queue"),
        ({**OK, "in": -1}, "in"),
        ({**OK, "in": 1, "at": "2030-01-01T00:00:00Z"}, "at"),
        ({**OK, "at": "2030-01-01T00:00:00"}, "at"),
        ({**OK, "at": "9999-01-01T00:00:00Z"}, "at"),
        ({**OK, "job_id": "a:b"}, "job_id"),
        ({**OK, "timeout": 0}, "timeout"),
        ({**OK, "timeout": 1e300}, "timeout"),
        ({**OK, "retries": True}, "retries"),
        ({**OK, "depends_on": ["x"]}, "depends_on"),
        ({"args": []}, "function"),
        ({**OK, "args": ["x" * 300_000]}, ""),
        ([], ""),
    ],
)
def test_a_wrong_call_is_refused_with_its_place(api, redis, call, place):
    reply = api.post("/jobs", call)
    assert (reply.status_code, [*reply.json["errors"]]) == (422, [place])
    assert not redis.keys("rq:job:*")


def test_bodies_that_are_no_json_are_refused(api):
    def post(data, kind="application/json"):
        return api("POST", "/jobs", data=data, content_type=kind).status_code

    assert post(b"{}", "text/plain") == 415
    assert post(b"function=sample_jobs.ok", "application/x-www-form-urlencoded") == 415
    for data in (b"", b"{", b"\xff", b'{"a": NaN}', b"[" * 100_000, b'"\\ud800"'[:4]):
        assert post(data) == 400, data[:20]
    assert post(b" " * (body_max_bytes() + 1)) == 413
    assert post(b'{"function": "sample_jobs.ok", "args": ["\\ud800 \\u0000"]}') == 201
    assert post(b'{"function": "sample_jobs.ok", "args": [1e999999999]}') == 422
    assert post(b'{"function": "sample_jobs.add", "args": [1e9999]}') == 422


def test_a_batch_is_stored_in_order_or_not_at_all(api, redis):
    calls = [{"function": "sample_jobs.ok", "args": [number]} for number in range(1000)]
    reply = api.post("/jobs/batch", {"jobs": [*calls[:3], {**OK, "args": [1, 2]}]})
    assert [*reply.json["errors"]] == ["jobs[3].args"]
    assert not redis.llen("rq:queue:default")
    assert api.post("/jobs/batch", {"jobs": [*calls, OK]}).status_code == 422
    twice = [{**OK, "job_id": "one"}] * 2
    assert api.post("/jobs/batch", {"jobs": twice}).status_code == 409
    ids = [one["id"] for one in api.post("/jobs/batch", {"jobs": calls}).json["jobs"]]
    assert redis.lrange("rq:queue:default", 0, -1) == [job_id.encode() for job_id in ids]


# Idempotency


def test_the_same_key_and_body_make_one_job(api, redis):
    key = {"Idempotency-Key": "order-42"}
    with ThreadPoolExecutor(8) as pool:
        replies = [*pool.map(lambda _: api.post("/jobs", OK, headers=key), range(16))]
    assert len({reply.json["id"] for reply in replies}) == 1
    assert sorted(reply.status_code for reply in replies) == [200] * 15 + [201]
    assert redis.llen("rq:queue:default") == 1
    # In another order it is the same body; another body is refused, and another token's key is its own.
    same = {"args": [1], "function": "sample_jobs.ok"}
    assert api.post("/jobs", same, headers=key).json["created"] is False
    assert api.post("/jobs", {**OK, "args": [2]}, headers=key).status_code == 422
    assert api.post("/jobs", OK, headers=key, token=OPERATOR).status_code == 201
    # It counts after the end of the job too, when the job is not kept any more.
    run_all(redis)
    redis.delete(f"rq:job:{replies[0].json['id']}")
    assert api.post("/jobs", OK, headers=key).json["status"] == "gone"
    assert not redis.llen("rq:queue:default")


def test_a_request_that_died_before_it_stored_its_job_can_be_sent_again(api, redis, monkeypatch):
    key = {"Idempotency-Key": "order-43"}
    body = {"jobs": [OK, {**OK, "in": 60}, {"function": "sample_jobs.unique_args", "args": [1]}]}

    def die(*_):
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(enqueueing, "_store_once", die)
        api.post("/jobs/batch", body, headers=key)
    first, again = (api.post("/jobs/batch", body, headers=key).json["jobs"] for _ in range(2))
    assert [one["created"] for one in first] == [True, True, True]
    assert [one["id"] for one in again] == [one["id"] for one in first]
    assert not any(one["created"] for one in again)
    assert (redis.llen("rq:queue:default"), redis.zcard("rq:scheduled:default")) == (2, 1)


def test_a_unique_job_that_exists_is_the_one_that_the_key_names(api, redis):
    call = {"function": "sample_jobs.unique_args", "args": [1]}
    own = api.post("/jobs", call).json["id"]
    for _ in range(2):
        reply = api.post("/jobs", call, headers={"Idempotency-Key": "a"})
        assert (reply.status_code, reply.json["id"]) == (200, own)


def test_a_key_does_not_take_the_id_of_another_job(api):
    call = {**OK, "job_id": "mine"}
    for expected in (201, 200):
        reply = api.post("/jobs", call, headers={"Idempotency-Key": "a"})
        assert reply.status_code == expected
    reply = api.post("/jobs", call, headers={"Idempotency-Key": "b"})
    assert (reply.status_code, [*reply.json["errors"]]) == (409, ["job_id"])


def test_a_key_is_printable_ascii(api):
    for key in ("", "a b", "ä", "k" * 256):
        assert api.post("/jobs", OK, headers={"Idempotency-Key": key}).status_code == 422


# Jobs


def test_results_that_json_cannot_carry_are_said_to_be_so(api, redis):
    moment = datetime(2030, 1, 1, tzinfo=timezone.utc)
    for value in (moment, {1: 2}, [float("inf")], {"a": [{1, 2}]}):
        job = rqjobs.enqueue("sample_jobs.ok", value)
        described = api.get(f"/jobs/{job.id}").json
        assert (described["args"], described["kwargs"]) == (None, None)
        assert described["arguments_text"]
        run_all(redis)
        outcome = api.get(f"/jobs/{job.id}/result").json
        assert (outcome["has_result"], outcome["result"]) == (False, None)
        assert outcome["reason"].startswith("JSON cannot carry it: result")
        assert outcome["result_text"]
    job = rqjobs.enqueue("sample_jobs.ok", (1, "\ud800\0", None, True))
    run_all(redis)
    assert api.get(f"/jobs/{job.id}/result").json["result"] == [1, "\ud800\0", None, True]


def test_hidden_names_are_hidden(api, redis):
    config.use(hide=("token",))
    job = rqjobs.enqueue("sample_jobs.ok", {"token": "s3cret", "user": 1})
    run_all(redis)
    assert api.get(f"/jobs/{job.id}").json["args"] == [{"token": "hidden", "user": 1}]
    assert "s3cret" not in api.get(f"/jobs/{job.id}", token=READER).text
    result = api.get(f"/jobs/{job.id}/result", token=OPERATOR).json["result"]
    assert result == {"token": "s3cret", "user": 1}


def test_a_failed_job_has_its_error(api, redis):
    job = rqjobs.enqueue("sample_jobs.boom", "no luck")
    run_all(redis)
    error = api.get(f"/jobs/{job.id}/result").json["error"]
    assert (error["type"], error["message"]) == ("ValueError", "no luck")
    assert "boom" in error["traceback"]
    assert api.post(f"/jobs/{job.id}/requeue", token=OPERATOR).json["status"] == "queued"
    assert api.post(f"/jobs/{job.id}/requeue").status_code == 409


def test_jobs_are_canceled_deleted_and_gone(api, redis):
    waiting, delayed = rqjobs.enqueue("sample_jobs.ok"), rqjobs.enqueue_in(60, "sample_jobs.ok")
    for job in (waiting, delayed):
        assert api("DELETE", f"/jobs/{job.id}").status_code == 409
        assert api.post(f"/jobs/{job.id}/stop").status_code == 409
        assert api.post(f"/jobs/{job.id}/cancel").json["status"] == "canceled"
        outcome = api.get(f"/jobs/{job.id}/wait").json
        assert (outcome["ended"], outcome["status"]) == (True, "canceled")
        assert api("DELETE", f"/jobs/{job.id}").status_code == 204
        assert api.get(f"/jobs/{job.id}").status_code == 404
        assert api.get(f"/jobs/{job.id}/result").status_code == 404


def test_a_wait_ends_with_the_job_or_in_time(api, redis, eventually, monkeypatch):
    job = rqjobs.enqueue("sample_jobs.ok", 7)
    assert api.get(f"/jobs/{job.id}/wait?timeout=0").status_code == 202
    assert api.get(f"/jobs/{job.id}/wait?timeout=61").status_code == 422
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(api.get, f"/jobs/{job.id}/wait?timeout=60")
        eventually(lambda: any(one["cmd"] == "xread" for one in redis.client_list()))
        run_all(redis)
        assert reply.result().json["result"] == 7
    # When all waits of the process are taken, the answer comes at once.
    late = rqjobs.enqueue("sample_jobs.ok")
    monkeypatch.setattr(jobs, "_waits", threading.BoundedSemaphore(1))
    jobs._waits.acquire()
    reply = api.get(f"/jobs/{late.id}/wait?timeout=60")
    assert (reply.status_code, reply.headers["Retry-After"]) == (202, "1")
    assert api.get(f"/jobs/{job.id}/wait?timeout=60").status_code == 200


def test_jobs_are_found_part_by_part_and_changed_together(api, redis):
    for number in range(5):
        rqjobs.enqueue("sample_jobs.ok", number, job_id=f"job-{number}")
    rqjobs.queue("low").enqueue("sample_jobs.say", "hello")
    found, after = [], ""
    while after is not None:
        part = api.get(f"/jobs?function=ok&limit=2{after}").json
        found += [job["id"] for job in part["jobs"]]
        after = part["next"] and f"&after={part['next']}"
    assert found == [f"job-{number}" for number in reversed(range(5))]
    assert part["is_complete"] and part["jobs"][0]["status"] == "queued"
    assert [one["queue"] for one in api.get("/jobs?text=hello").json["jobs"]] == ["low"]
    for query in ("state=odd", "since=soon", "after=odd", "job_id=a:b", "text=%00"):
        assert api.get(f"/jobs?{query}").status_code == 422, query
    cancel = {"action": "cancel", "jobs": ["job-0", "job-1", "nothing"]}
    assert api.post("/jobs/actions", cancel).json == {"jobs": 2, "job_id": None}
    cancel = {"action": "cancel", "filter": {"function": "ok", "state": "queued"}}
    assert api.post("/jobs/actions", cancel).json["jobs"] == 3
    entry = activity.read(redis).entries[0]
    assert (entry.action, entry.note) == ("change jobs", "cancel: 3 jobs")
    delete = {"action": "delete", "filter": {"state": "canceled"}}
    assert api.post("/jobs/actions", delete, token=OPERATOR).status_code == 403
    assert api.post("/jobs/actions", delete).json["jobs"] == 5
    for wrong in ({}, {"filter": {}}, {"filter": {"state": "x"}}, {"jobs": [], "filter": {}}):
        assert api.post("/jobs/actions", {"action": "delete", **wrong}).status_code == 422
    wrong = {"action": "cancel", "filter": {"since": "soon"}}
    assert [*api.post("/jobs/actions", wrong).json["errors"]] == ["filter.since"]


# Queues, failures, schedules


def test_queues_are_counted_and_paused(api, redis):
    rqjobs.enqueue("sample_jobs.ok")
    queue = api.get("/queues/default").json
    assert (queue["queued"], queue["workers"], queue["paused"]) == (1, 0, False)
    assert queue["in_per_minute"] > 0 and queue["out_per_minute"] == 0
    assert api.post("/queues/default/pause").json["changed"] is True
    assert api.post("/queues/default/pause").json["changed"] is False
    assert api.get("/queues/default").json["paused"] is True
    now = api.get("/stats").json
    assert (now["queued"], now["paused_queues"]) == (1, ["default"])
    assert now["unserved_queues"] == ["default"]
    assert "by grafana" not in str(stats.snapshot(redis).paused[0].describe())
    assert "by ops" in stats.snapshot(redis).paused[0].describe()
    assert api.post("/queues/default/resume", token=OPERATOR).json["changed"] is True
    entries = activity.read(redis).entries
    assert [(one.action, one.user, one.via) for one in entries[:2]] == [
        ("resume queue", "shop", "api"),
        ("pause queue", "ops", "api"),
    ]
    assert api.get("/queues/nothing").status_code == 404


def test_the_log_the_worker_and_the_failures_of_jobs(api, redis, worker, eventually):
    process = worker("default")
    logged = rqjobs.enqueue("sample_jobs.warn_in_steps", "hello")
    for _ in range(3):
        rqjobs.enqueue("sample_jobs.boom", "no")
    assert api.get(f"/jobs/{logged.id}/wait?timeout=60").status_code == 200
    lines = api.get(f"/jobs/{logged.id}/log").json["lines"]
    assert "hello" in lines[0]["text"]
    assert not api.get(f"/jobs/{logged.id}/log?level=ERROR").json["lines"]
    assert api.get(f"/jobs/{logged.id}/log?level=nope").status_code == 422
    (found,) = api.get("/workers").json["workers"]
    assert (found["name"], found["alive"]) == (process.name, True)
    assert api.get(f"/workers/{process.name}").json["queues"] == ["default"]
    assert api.get("/workers/nobody").status_code == 404
    groups = eventually(
        lambda: [one for one in api.get("/failures").json["groups"] if one["jobs"] == 3]
    )
    group = groups[0]["id"]
    assert (groups[0]["function"], groups[0]["error"]) == ("sample_jobs.boom", "ValueError")
    assert len(api.get(f"/failures/{group}/jobs?limit=2").json["jobs"]) == 2
    assert api.post(f"/failures/{group}/ignore").json["ignored"] is True
    assert api.post(f"/failures/{group}/watch").json["ignored"] is False
    api.post("/queues/default/pause")
    assert api.post(f"/failures/{group}/requeue", {"limit": 1}).json == {"jobs": 1, "left": 2}
    assert api.post(f"/failures/{group}/delete", {}).json == {"jobs": 2, "left": 0}
    assert api.post("/failures/nothing/requeue", {}).status_code == 404
    # A wait of the worker that began before the pause may have the job for a moment.
    emptied = {"jobs": 1, "left": 0}
    eventually(lambda: api.post("/queues/default/empty").json == emptied, what="the job")
    assert api.post(f"/workers/{process.name}/quiet", token=OPERATOR).status_code == 202
    eventually(lambda: api.get(f"/workers/{process.name}").json["quiet"])
    for action in ("resume", "stop"):
        assert api.post(f"/workers/{process.name}/{action}").status_code == 202
    assert process.wait(20) == 0
    assert api.post("/workers/nobody/stop").status_code == 404


def test_schedules_are_added_changed_run_and_removed(api, redis):
    body = {**OK, "cron": "0 6 * * *", "tz": "Europe/Berlin", "jitter": 1.5, "times": 3}
    assert api("PUT", "/schedules/nightly", body).status_code == 201
    assert api("PUT", "/schedules/nightly", {**OK, "every": 60}).status_code == 200
    assert api("PUT", "/schedules/other", body).json["rule"]
    names = [one["name"] for one in api.get("/schedules?limit=1").json["schedules"]]
    assert (names, api.get("/schedules?after=nightly").json["next"]) == (["nightly"], None)
    job_id = api.post("/schedules/nightly/run").json["job_id"]
    found = api.get("/schedules/nightly").json
    assert (found["every"], found["runs"][0]["job_id"]) == (60, job_id)
    assert api.post("/schedules/nightly/pause").json["state"] == "paused"
    assert api.post("/schedules/nightly/resume").json["state"] == "active"
    assert api("DELETE", "/schedules/nightly").status_code == 204
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/run"), ("POST", "/pause")):
        assert api(method, f"/schedules/nightly{path}").status_code == 404


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({}, ""),
        ({"cron": "61 * * * *"}, ""),
        ({"every": 0}, "every"),
        ({"every": 60, "cron": "0 6 * * *"}, "every"),
        ({"every": 60, "tz": "UTC"}, "tz"),
        ({"cron": "0 6 * * *", "tz": "Mars/Base"}, ""),
        ({"every": 60, "start": "today"}, "start"),
        ({"every": 60, "queue": "nowhere"}, "queue"),
        ({"every": 60, "args": [1, 2]}, "args"),
    ],
)
def test_a_wrong_schedule_is_refused(api, change, place):
    reply = api("PUT", "/schedules/wrong", {**OK, **change})
    assert (reply.status_code, [*reply.json["errors"]]) == (422, [place])


def test_a_schedule_of_the_code_is_changed_there(api, redis):
    api("PUT", "/schedules/declared", {**OK, "every": 60})
    redis.hset("rqjobs:schedule:declared", "source", "code")
    assert api("PUT", "/schedules/declared", {**OK, "every": 61}).status_code == 409
    assert api("DELETE", "/schedules/declared").status_code == 409


# The document


def test_the_document_has_every_operation_and_its_references_lead_somewhere(api):
    document = api.get("/openapi.json").json
    listed = {(method.upper(), path) for path, one in document["paths"].items() for method in one}
    assert listed == {(one.method, one.path) for one in OPERATIONS}
    references = set()

    def walk(value):
        if isinstance(value, dict):
            references.update([value["$ref"]] if "$ref" in value else [])
            for one in value.values():
                walk(one)
        elif isinstance(value, list):
            for one in value:
                walk(one)

    walk(document)
    for reference in references:
        target = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
    assert "#/components/schemas/Job" in references
    assert not any(token in json.dumps(document) for token in (ADMIN, OPERATOR, READER))


def test_unknown_and_repeated_parameters_are_refused(api):
    assert [*api.get("/failures?limti=5").json["errors"]] == ["limti"]
    assert api.get("/failures?limit=1&limit=2").status_code == 422
    assert api.get("/queues?x=1").status_code == 422


def test_while_redis_does_not_answer_the_api_says_so(api, redis):
    config.use(redis_url="redis://127.0.0.1:1/0")
    rqjobs.connection.use(None)
    reply = api.post("/jobs", OK)
    assert reply.status_code == 503
    assert int(reply.headers["Retry-After"]) > 0
    assert api.get("/queues", token="wrong").status_code == 401
