"""The API as clients in other languages meet it: HTTP, bodies, addresses and tokens."""

from __future__ import annotations

import json
import socket
import threading
import time
from urllib.parse import quote

import pytest
import sample_jobs
from api_client import ADMIN, TOKENS, ApiClient
from flask import Flask

import rqjobs
from rqjobs import config, failed
from rqjobs.broker import activity, keys
from rqjobs.web import init_app
from rqjobs.web.api import failures, jobs
from rqjobs.web.api.problems import PROBLEM_TYPE

OK = {"function": "sample_jobs.ok", "args": [1]}
CALL = '{"function": "sample_jobs.ok", "args": [%s]}'
TOKEN_LINE = f"Authorization: Bearer {ADMIN}\r\n"


@pytest.fixture
def api(app):
    return ApiClient(app.test_client())


def send(app, method, path, **options):
    """A request without the check that its answer is in the document."""
    headers = {"Authorization": f"Bearer {ADMIN}", **options.pop("headers", {})}
    client = app.test_client()
    return client.open(path, method=method, headers=headers, buffered=True, **options)


def post(app, body, kind="application/json", **headers):
    return send(app, "POST", "/api/jobs", data=body, content_type=kind, headers=headers)


# Methods and addresses


@pytest.mark.parametrize("method", ["OPTIONS", "PATCH", "TRACE", "PROPFIND"])
def test_another_method_is_refused_with_those_that_there_are(app, method):
    for path, allowed in {
        "/api/queues": "GET, HEAD",
        "/api/jobs": "GET, HEAD, POST",
        "/api/jobs/batch": "POST",
        "/api/jobs/x": "DELETE, GET, HEAD",
    }.items():
        reply = send(app, method, path)
        assert (reply.status_code, reply.headers["Allow"]) == (405, allowed)
        assert reply.mimetype == PROBLEM_TYPE


def test_head_is_get_without_a_body(app):
    for path in ("/api/queues", "/api/jobs/nothing", "/api/queues?odd=1"):
        get, head = send(app, "GET", path), send(app, "HEAD", path)
        assert (head.status_code, head.mimetype, head.data) == (get.status_code, get.mimetype, b"")
        assert head.headers["Content-Length"] == str(len(get.data))


@pytest.mark.parametrize(
    "path",
    [
        "/api",
        "/api/",
        "/api/queues/",
        "/api//queues/default/pause",
        "/api/queues//default/pause",
        "/api/queues/default/pause/",
        "/api/../login",
        "/api/./queues",
        "/api/queues/a%2Fb",
        "/api/jobs/%00",
        "/api/jobs/a%0A",
        f"/api/jobs/{'x' * 5000}",
    ],
)
def test_an_address_that_does_not_exist_is_a_404_and_no_action(app, redis, path):
    """Flask redirected `//` with 308, and the list of activity said that the queue was paused."""
    for method in ("GET", "POST", "DELETE"):
        reply = send(app, method, path)
        assert reply.status_code in (404, 405), reply.headers
        assert reply.mimetype == PROBLEM_TYPE
    assert not redis.exists(keys.ACTIVITY) or not redis.xlen(keys.ACTIVITY)
    assert not redis.exists("rqjobs:paused")


@pytest.mark.parametrize("name", ["ä", "my queue", "默认", "a;b", "*", "\n", "x" * 300])
def test_queues_of_other_programs_are_read_and_emptied(api, redis, name):
    """They were listed, and their addresses were unknown."""
    redis.sadd("rq:queues", f"rq:queue:{name}")
    redis.rpush(f"rq:queue:{name}", "one", "two")
    address = f"/queues/{quote(name, safe='')}"
    assert name in [one["name"] for one in api.get("/queues").json["queues"]]
    assert api.get(address).json["queued"] == 2
    assert [*api.post(f"{address}/pause").json["errors"]] == ["queue"]
    assert [*api.post(f"{address}/resume").json["errors"]] == ["queue"]
    assert api.post(f"{address}/empty").json["left"] == 0
    assert not redis.exists(f"rq:queue:{name}")
    assert api.get(f"/queues/{quote(name + 'x', safe='')}").status_code == 404


# Bodies


@pytest.mark.parametrize(
    "body",
    [
        "",
        " \n",
        "NaN",
        CALL % "Infinity",
        CALL % "1e99999999999999999999",
        CALL % "-1e99999999999999999999",
        CALL % "0.1e-99999999999999999999",
        CALL.replace("[%s]", '[], "ttl": 1e99999999999999999999'),
        CALL % ("9" * 5000),
        CALL % ("[" * 100_000),
        CALL % ("[" * 60 + "]" * 60),
        CALL % '{"a": 1, "a": 1}',
        CALL.replace("}", ', "function": "sample_jobs.boom"}'),
        CALL % "01",
        CALL % "1,",
        CALL % '"\n"',
        CALL % "1" + "x",
        (CALL % "1").encode("utf-16"),
        (CALL % '"\ud800"').encode(errors="surrogatepass"),
        (CALL % '"ä"').encode("latin-1"),
    ],
)
def test_what_is_not_exactly_json_is_refused(app, redis, body):
    reply = post(app, body)
    assert (reply.status_code, reply.mimetype) == (400, PROBLEM_TYPE)
    assert reply.json["detail"].startswith("The body is ")
    assert not redis.keys("rq:job:*")


def test_many_names_one_of_them_twice_are_read_quickly(app):
    names = ", ".join(f'"{number}": 0' for number in range(60_000))
    began = time.process_time()
    assert post(app, f'{{{names}, "59999": 0}}').status_code == 400
    assert time.process_time() - began < 5  # all pairs of names took minutes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9007199254740993", 9007199254740993),
        ("-18446744073709551617", -18446744073709551617),
        ("9" * 4000, int("9" * 4000)),
        ("0.1", 0.1),
        ("1e-400", 0.0),
        ('"\\ud83d\\ude00 \\u0000"', "\U0001f600 \0"),
    ],
)
def test_numbers_and_texts_come_back_as_they_were_sent(app, text, value):
    reply = post(app, b"\xef\xbb\xbf" + (CALL % text).encode())  # with a byte order mark
    assert reply.status_code == 201
    assert send(app, "GET", reply.headers["Location"]).json["args"] == [value]


def test_the_media_type_may_have_parameters_and_the_body_no_encoding(app):
    body = CALL % "1"
    for kind in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/json;x"):
        assert post(app, body, kind).status_code == 201
    for kind in ("", "text/json", "application/vnd.api+json", "application/json, text/plain"):
        assert post(app, body, kind).status_code == 415
    for encoding in ("gzip", "br", "identity, gzip"):
        assert post(app, body, **{"Content-Encoding": encoding}).status_code == 415
    assert post(app, body, **{"Content-Encoding": "identity"}).status_code == 201
    # The answers are JSON, also for a client that asks for something else.
    reply = post(app, body, Accept="text/html")
    assert (reply.status_code, reply.mimetype) == (201, "application/json")


def test_a_body_in_which_all_is_optional_may_be_missing(api, redis):
    group = plant_failures(redis, 3)
    assert api.post(f"/failures/{group}/requeue").json == {"jobs": 3, "left": 0}
    reply = api("POST", f"/failures/{group}/delete", data=b"x")
    assert reply.status_code == 415
    described = api.get("/openapi.json").json["paths"]["/failures/{group}/requeue"]["post"]
    assert described["requestBody"]["required"] is False


# Tokens


def test_the_token_is_in_one_header_of_one_form(app):
    right = ("Bearer", "bearer", "BEARER", "Bearer ")
    wrong = {
        "Authorization": [
            ADMIN,
            f"Token {ADMIN}",
            f"Basic {ADMIN}",
            f"Bearer\t{ADMIN}",
            f'Bearer "{ADMIN}"',
            f"Bearer {ADMIN}, Bearer {ADMIN}",
            f"Bearer {ADMIN} {ADMIN}",
            "Bearer é",
        ],
        "X-Api-Key": [ADMIN],
        "Proxy-Authorization": [f"Bearer {ADMIN}"],
        "Cookie": [f"token={ADMIN}"],
    }
    client = app.test_client()
    for scheme in right:
        headers = {"Authorization": f"{scheme} {ADMIN}"}
        assert client.get("/api/queues", headers=headers).status_code == 200
    for name, values in wrong.items():
        for value in values:
            reply = client.get("/api/queues", headers={name: value})
            assert (reply.status_code in (401, 429), reply.mimetype) == (True, PROBLEM_TYPE)
            assert "WWW-Authenticate" in reply.headers or "Retry-After" in reply.headers
    for name in ("access_token", "token", "api_key"):
        assert client.get(f"/api/queues?{name}={ADMIN}").status_code == 401


# Errors of the server


def test_an_unexpected_error_is_a_problem_too(app, redis, monkeypatch):
    def fail(*_):
        raise RuntimeError("no")

    app.testing = app.config["PROPAGATE_EXCEPTIONS"] = False
    monkeypatch.setattr(failures.failed, "groups", fail)
    reply = send(app, "GET", "/api/failures")
    assert (reply.status_code, reply.mimetype) == (500, PROBLEM_TYPE)
    assert "no" not in reply.json["detail"].split()


def test_every_operation_says_that_redis_does_not_answer(app, redis):
    api = ApiClient(app.test_client())
    config.use(redis_url="redis://127.0.0.1:1/0")
    for method, path in (
        ("GET", "/queues"),
        ("POST", "/queues/default/pause"),
        ("GET", "/jobs/x/wait"),
        ("DELETE", "/jobs/x"),
        ("PUT", "/schedules/x"),
    ):
        body = {**OK, "every": 60} if method == "PUT" else None
        reply = api(method, path, body)
        assert reply.status_code == 503, (method, path)
        assert int(reply.headers["Retry-After"]) > 0


# Parts of lists


def plant_failures(redis, number):
    for _ in range(number):
        rqjobs.enqueue(sample_jobs.boom)
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    (group,) = failed.groups()
    return group.id


def test_failures_that_are_requeued_between_two_parts_hide_no_others(api, redis, monkeypatch):
    """With a number of jobs to skip, each part after a requeue skipped as many others."""
    group = plant_failures(redis, 12)
    ids = [job_id.decode() for job_id in redis.zrange(f"rqjobs:failure-group-jobs:{group}", 0, -1)]
    redis.zadd(f"rqjobs:failure-group-jobs:{group}", dict.fromkeys(ids[3:9], 1_700_000_000))
    monkeypatch.setattr(failed, "PART_JOBS", 2)
    order = redis.zrevrange(f"rqjobs:failure-group-jobs:{group}", 0, -1)
    for action in (None, "requeue"):
        seen, after = [], ""
        while after is not None:
            part = api.get(f"/failures/{group}/jobs?limit=5{after}").json
            seen += part["jobs"]
            for job_id in part["jobs"] if action else ():
                assert api.post(f"/jobs/{job_id}/requeue").status_code == 200
            after = part["next"] and f"&after={quote(part['next'])}"
        assert seen == [job_id.decode() for job_id in order]
    for place in ("x", "1", "1:", "-1:a", "1e5:a", "%00", "nan:a"):
        reply = api.get(f"/failures/{group}/jobs?after={place}")
        assert reply.status_code == 404 or [*reply.json["errors"]] == ["after"], place


def test_jobs_that_come_and_go_between_two_parts_hide_no_others(api, redis):
    kept = [f"kept-{number}" for number in range(20)]
    for number, job_id in enumerate(kept):
        rqjobs.enqueue(sample_jobs.ok, job_id=job_id)
        rqjobs.enqueue(sample_jobs.ok, job_id=f"gone-{number}")
    seen, after, number = [], "", 0
    while after is not None:
        part = api.get(f"/jobs?limit=3{after}").json
        seen += [job["id"] for job in part["jobs"]]
        after = part["next"] and f"&after={quote(part['next'])}"
        rqjobs.enqueue(sample_jobs.ok, job_id=f"new-{number}")
        if number < 20:
            assert api.post(f"/jobs/gone-{number}/cancel").status_code == 200
            assert api("DELETE", f"/jobs/gone-{number}").status_code == 204
        number += 1
    assert [job_id for job_id in seen if job_id.startswith("kept")] == kept[::-1]
    assert len(set(seen)) == len(seen)


# Behind gunicorn


@pytest.fixture
def served(gunicorn):
    """The port of the API, which gunicorn serves."""
    web = gunicorn(RQJOBS_API_TOKEN=TOKENS)
    yield web.port
    assert "Traceback" not in web.output()


def talk(port, head, *parts, end=False):
    """Send a request in these bytes; returns the status, the head and the body of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        line.sendall(head.encode("latin-1"))
        for part in parts:
            line.sendall(part)
        if end:
            line.shutdown(socket.SHUT_WR)
        reply = b""
        while data := line.recv(65536):
            reply += data
    head, _, body = reply.partition(b"\r\n\r\n")
    return int(head.split()[1] if head else 0), head.decode("latin-1").lower(), body


def request(method, path, *lines):
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + "".join(
        f"{line}\r\n" for line in (TOKEN_LINE.strip(), *lines, "")
    )


def test_a_body_in_chunks_is_read_and_a_broken_one_refused(served, redis):
    head = request(
        "POST", "/api/jobs", "Content-Type: application/json", "Transfer-Encoding: chunked"
    )
    body = json.dumps(OK).encode()
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:])]
    assert talk(served, head, *chunks, b"0\r\n\r\n")[0] == 201
    for broken in (
        [b"zz\r\n"],
        [chunks[0], b"-1\r\n"],
        [b"5\r\n%s" % body, b"0\r\n\r\n"],
        [b"0\r\n\r\n"],
    ):
        status, answer, _ = talk(served, head, *broken)
        assert (status, PROBLEM_TYPE in answer) == (400, True), broken
    status, _, _ = talk(served, head, *chunks, end=True)
    assert status in (0, 400)
    assert redis.llen("rq:queue:default") == 1


def test_a_body_that_is_too_large_or_too_short_is_refused(served, redis):
    kind = "Content-Type: application/json"
    status, answer, _ = talk(served, request("POST", "/api/jobs", kind, "Content-Length: 99999999"))
    assert (status, PROBLEM_TYPE in answer) == (413, True)
    head = request("POST", "/api/jobs", kind, "Transfer-Encoding: chunked")
    chunk = b"%x\r\n%s\r\n" % (1 << 20, b" " * (1 << 20))
    with socket.create_connection(("127.0.0.1", served), timeout=60) as line:
        line.sendall(head.encode())
        for _ in range(3):
            line.sendall(chunk)
        assert line.recv(12) == b"HTTP/1.1 413"
    body = json.dumps(OK).encode()
    head = request("POST", "/api/jobs", kind, f"Content-Length: {len(body) + 1}")
    status, _, _ = talk(served, head, body, end=True)
    assert status in (0, 400)
    status, answer, _ = talk(served, request("POST", "/api/jobs", kind))
    assert (status, PROBLEM_TYPE in answer) == (400, True)  # neither a length nor chunks: no body
    assert not redis.exists("rq:queue:default")


def test_a_wrong_host_is_a_problem(served):
    for host in ("a b", "[::1", "a/b", "ä"):
        head = request("GET", "/api/queues").replace("localhost", host)
        status, answer, _ = talk(served, head)
        assert status in (200, 400) and "json" in answer, (host, status, answer)


def test_waiting_requests_leave_threads_for_others(served, redis, eventually):
    """A wait occupies a thread. Further waits are answered at once, with Retry-After."""
    job = rqjobs.enqueue(sample_jobs.ok, 7)
    replies = []

    def wait():
        replies.append(talk(served, request("GET", f"/api/jobs/{job.id}/wait?timeout=60")))

    threads = [threading.Thread(target=wait) for _ in range(100)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(replies) == 100 - jobs.MAX_WAITS, what="the waits that are too many")
    assert all(status == 202 and "\r\nretry-after: 1" in head for status, head, _ in replies)
    began = time.monotonic()
    assert talk(served, request("GET", "/api/queues"))[0] == 200
    assert time.monotonic() - began < 5
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    for thread in threads:
        thread.join()
    late = replies[100 - jobs.MAX_WAITS :]
    assert [(status, json.loads(body)["result"]) for status, _, body in late] == [(200, 7)] * len(
        late
    )


def test_an_application_of_its_own_has_problems_below_its_prefix(settings, redis):
    config.use(api_tokens=config.SETTINGS["RQJOBS_API_TOKEN"][1](TOKENS))
    app = Flask("shop")
    init_app(app, "/admin/jobs", authorize=lambda request: None)
    for path, status in {
        "/admin/jobs/api//queues": 404,
        "/admin/jobs/api/nothing": 404,
        "/admin/jobs/api/queues": 200,
    }.items():
        reply = send(app, "GET", path)
        assert (reply.status_code, "json" in reply.mimetype) == (status, True), (path, reply.data)
    assert not activity.read(redis).entries
