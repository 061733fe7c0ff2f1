"""No malformed record in Redis makes a page answer with a 5xx, on any route."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from decimal import Decimal

import pytest
import sample_jobs
from api_client import ADMIN
from browser_client import every_call
from rq.results import Result

import rqjobs
from rqjobs import every, schedules

FAR = (
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59.999999-14:00",
    "0001-01-01T00:00:00Z",
    "yesterday",
    "\ud800",
)
SURROGATE = json.dumps(["sample_jobs.say", None, ["\ud800"], {"k\udfff": "\ud83d"}]).encode()


def plant(redis, **fields):
    """A job in each place whose record has these fields."""
    job = rqjobs.enqueue(sample_jobs.say, "hello", job_id="odd")
    redis.hset(job.key, mapping={"planted": 1, **fields})
    for registry in ("failed", "finished", "scheduled", "deferred", "canceled"):
        redis.zadd(f"rq:{registry}:default", {job.id: 1})
    redis.zadd("rq:wip:default", {f"{job.id}:token": 1})
    return job


def job_dates(redis, moment):
    plant(
        redis,
        **dict.fromkeys(
            ("created_at", "enqueued_at", "started_at", "ended_at", "last_heartbeat"),
            moment.encode(errors="surrogatepass"),
        ),
    )


def job_status(redis, status):
    plant(redis, status=status)


def job_data(redis, data):
    plant(redis, data=data, meta=data, result=data, status="finished")
    redis.xadd(
        Result.get_key("odd"),
        {"type": 1, "created_at": "9" * 30, "return_value": base64.b64encode(data)},
    )


def job_fields(redis, fields):
    plant(redis, **fields)


def key_type(redis, name):
    """A key of another type than it should have."""
    plant(redis)
    redis.delete(name)
    redis.set(name, "odd")


def key_list(redis, name):
    plant(redis)
    redis.delete(name)
    redis.rpush(name, b"\xff", "", "a/b c", "\u202e", "x" * 300)


def key_members(redis, name):
    plant(redis)
    redis.delete(name)
    for member, score in (
        (b"\xff", "-inf"),
        ("", "inf"),
        ("a/b:c", 1e300),
        ("x" * 300, -1e300),
        ("no", 253402300800),
    ):
        redis.zadd(name, {member: score})


def schedule(redis, fields):
    schedules.add("odd", every(hours=1), sample_jobs.ok, Decimal("1"))
    redis.hset("rqjobs:schedule:odd", mapping=fields)


def schedule_data(redis, value):
    schedules.add("odd", every(hours=1), sample_jobs.ok, value)


def gone(redis, pattern):
    plant(redis)
    schedules.add("odd", every(hours=1), sample_jobs.ok)
    for key in redis.scan_iter(pattern):
        redis.delete(key)


PICKLE = zlib.compress(pickle.dumps(("sample_jobs.say", None, ("x",), {})))
ODD = [
    *((job_dates, moment) for moment in FAR),
    *(
        (job_status, status)
        for status in (
            "finished",
            "failed",
            "stopped",
            "canceled",
            "started",
            "scheduled",
            "",
            "odd",
            b"\xff",
        )
    ),
    *(
        (job_data, data)
        for data in (
            PICKLE,
            SURROGATE,
            b"",
            b"\xff",
            b"[" * 5000,
            b'"' + b"9" * 5000,
            b"9" * 5000,
            b"1e400",
            zlib.compress(b"null"),
            b'{"__rqjobs__": ["decimal", "sNaN"]}',
            b'["sample_jobs.say", null, [{"__rqjobs__": ["decimal", "sNaN"]}], {}]',
        )
    ),
    *(
        (job_fields, fields)
        for fields in (
            {"origin": ""},
            {"origin": b"\xff"},
            {"origin": "a/b?c#d"},
            {"timeout": "9" * 30},
            {"timeout": "x"},
            {"result_ttl": "-7"},
            {"dependency_ids": '["", null, 3, "a/b", "\\ud800"]'},
            {"dependency_ids": "{}"},
            {"worker_name": b"\xff"},
            {"description": b"\xff"},
            {"description": "\ud800".encode(errors="surrogatepass")},
            {"exc_info": zlib.compress(b"\xff" * 99)},
            {"rqjobs_crashes": b"\xff,"},
            {"rqjobs_schedule": b"\xff/"},
            {"retries_left": "x"},
            {"retry_intervals": "[]"},
            {"repeats_left": "-1"},
            {"meta": '{"done": 1e400, "total": 2}'},
            {"meta": '{"done": NaN, "total": NaN}'},
            {"group_id": "x"},
            {"webhooks": "[[1]]"},
            {"success_callback_name": "os.x"},
            {"number_of_retries": "x"},
            {"enqueue_at_front": "x"},
            {"ttl": "x"},
            {"rqjobs_repeat": "x,y"},
        )
    ),
    *(
        (key_type, name)
        for name in (
            "rq:job:odd",
            "rq:results:odd",
            "rq:queue:default",
            "rq:failed:default",
            "rq:finished:default",
            "rq:wip:default",
            "rq:scheduled:default",
            "rq:deferred:default",
            "rq:canceled:default",
            "rq:queues",
            "rq:workers",
            "rqjobs:leases",
            "rqjobs:schedules",
            "rqjobs:crash-backoff:default",
        )
    ),
    (key_list, "rq:queue:default"),
    *(
        (key_members, name)
        for name in (
            "rq:failed:default",
            "rq:scheduled:default",
            "rq:wip:default",
            "rqjobs:schedules",
            "rqjobs:leases",
        )
    ),
    *(
        (schedule, fields)
        for fields in (
            {"next": "-62135596800"},
            {"next": "x"},
            {"next": "1e300"},
            {"rule": "{}"},
            {"rule": b"\xff"},
            {"data": SURROGATE},
            {"data": PICKLE},
            {"state": b"\xff"},
            {"created": "1e300"},
            {"made": "x"},
            {"function": b"\xff"},
            {"queue": ""},
        )
    ),
    *((schedule_data, value) for value in (Decimal("sNaN"), "\ud800", float("inf"))),
    *((gone, pattern) for pattern in ("rq:job:*", "rqjobs:schedule:*", "rq:queues")),
]


API_HEADERS = {"Authorization": f"Bearer {ADMIN}"}
API_BODIES = {
    "rqjobs_api.enqueue_job": {"function": "sample_jobs.ok", "job_id": "odd"},
    "rqjobs_api.enqueue_batch": {"jobs": [{"function": "sample_jobs.ok"}]},
    "rqjobs_api.put_schedule": {"function": "sample_jobs.ok", "every": 3600},
}
ACTIONS = ("cancel", "stop", "requeue", "again", "delete", "run", "pause", "resume", "remove")


@pytest.mark.parametrize(
    "make, what", ODD, ids=lambda value: getattr(value, "__name__", repr(value)[:40])
)
def test_malformed_records_break_no_page(app, client, redis, make, what):
    app.testing = app.config["PROPAGATE_EXCEPTIONS"] = False
    make(redis, what)
    before = {key: redis.dump(key) for key in redis.scan_iter("*")}
    form = {
        "function": "sample_jobs.ok",
        "queue": "default",
        "name": "odd",
        "kind": "every",
        "interval": "5",
        "unit": "hours",
        "missed": "once",
        "arg.value": "1",
        "when": "now",
        "revision": "1",
    }
    for endpoint, method, address in sorted(every_call(app), key=lambda call: call[1] != "GET"):
        if endpoint == "rqjobs.logout" or method in ("HEAD", "OPTIONS"):
            continue
        if method != "GET":  # each request finds the records of the test
            redis.delete(*redis.keys("rq:*"), *redis.keys("rqjobs:schedule*"), "none")
            for key, value in before.items():
                if not key.startswith((b"rqjobs:sessions", b"rqjobs:login")):
                    redis.restore(key, 0, value, replace=True)
        name = "default" if "queue" in address or "failed" in address else "odd"
        actions = ACTIONS if address.endswith("/x/x") else ("x",)
        for path in {
            address.replace("/x", f"/{name}", 1).replace("/x", f"/{action}") for action in actions
        }:
            options = {"data": form} if method == "POST" else {}
            if endpoint.startswith("rqjobs_api."):
                options = {"headers": API_HEADERS, "json": API_BODIES.get(endpoint, {})}
                path += "?timeout=0" if endpoint.endswith("wait_for_job") else ""
            reply = client.open(path, method=method, **options)
            assert reply.status_code < 500, (method, path, reply.status, reply.text[-500:])


LARGE = 2_000_000
LARGE_FIELDS = (
    *({name: "x" * LARGE} for name in ("data", "description", "origin", "status", "created_at")),
    *({name: "x" * LARGE} for name in ("worker_name", "rqjobs_failure_group", "rqjobs_schedule")),
    *({name: "x" * LARGE} for name in ("rqjobs_ending", "rqjobs_waits_for", "rqjobs_unique")),
    {"dependency_ids": json.dumps([f"parent-{number}" for number in range(100_000)])},
    {"exc_info": zlib.compress(b"x" * LARGE), "status": "failed"},
    {"rqjobs_crashes": "1," * 500_000},
)


@pytest.mark.parametrize("fields", LARGE_FIELDS, ids=lambda fields: next(iter(fields)))
def test_no_page_grows_with_a_large_record(client, redis, fields):
    """Two pages showed a field of 10 MB as it was."""
    plant(redis, **fields)
    trace = base64.b64encode(zlib.compress(b"x" * LARGE))
    redis.xadd(Result.get_key("odd"), {"type": 2, "created_at": FAR[2], "exc_string": trace})
    pages = ["/", "/jobs", "/failed/ungrouped", "/queues/default", "/jobs/odd", "/jobs/odd/state"]
    pages += ["/enqueue?function=sample_jobs.say&from=odd", "/rq/0/data/job/odd.json"]
    pages += ["/rq/0/data/jobs/default/failed/8/asc/1.json"]
    for address in pages:
        assert len(client.get(address).data) < 500_000, address
    client.post("/jobs/odd/requeue")
    assert len(client.get("/help").data) < 500_000, "the note"
    for address in ("/jobs", "/jobs/odd", "/jobs/odd/result"):
        assert len(client.get(f"/api{address}", headers=API_HEADERS).data) < 500_000, address
