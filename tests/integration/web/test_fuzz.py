"""No text in a path, a filter, a form field or a body makes any route answer with a 5xx.

The routes and the names of the fields are found in the app, the templates and the sources, so a new
page is fuzzed without a change here. The examples are the same in each run.
"""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from api_client import ADMIN, conforms, operation_of
from browser_client import every_call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rqjobs
from rqjobs import every, schedules, web
from rqjobs.web.api import jobs
from rqjobs.web.api.operations import SCHEMAS
from rqjobs.web.api.schemas import REFERENCE

WEB = Path(web.__file__).parent
EXAMPLES = {"plant_plain": 3, "plant_odd": 2}  # requests of each route and method
SKIPPED = ("rqjobs.logout", "rqjobs.login", "static", "rqjobs.static", "rq_dashboard.static")
TEXTS = (
    "",
    " ",
    "0",
    "-1",
    "1.5",
    "1e309",
    "NaN",
    "9" * 400,
    "٣",
    "x" * 5000,
    "\0",
    "\u202e",
    "é\n\r\t",
    "<script>alert(1)</script>",
    "..",
    "a:b",
    "*",
    "[",
    "(" * 50,
    "{",
    "[[[[",
    '{"a": [1e400]}',
    "null",
    "true",
    "2030-12-31T12:00",
    "0000-00-00",
    "9999-12-31T23:59:59-14:00",
    "0001-01-01T00:00:00+14:00",
    "default",
    "failed",
    "queued",
    "sample_jobs.ok",
    "sample_jobs.order",
    "odd",
    "plain",
    "Europe/Berlin",
    "now",
    "at",
    "in",
    "cron",
    "every",
    "requeue",
    "delete",
    "pause",
)
NAME_IN_TEMPLATE = re.compile(r"""\bname=["']([\w.-]+)["']""")
NAME_IN_SOURCE = re.compile(
    r"""(?:args|form|values|FormReader\([^)]*\))(?:\.\w+)?[\[(]["']([\w.-]+)["']"""
)
texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=12))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)


def field_names():
    """The names of inputs and filters in all templates and sources of the pages."""
    found = {"arg.value", "arg.order"}
    for path in WEB.rglob("*"):
        if path.suffix in (".html", ".py"):
            text = path.read_text(encoding="utf-8")
            found.update(NAME_IN_TEMPLATE.findall(text), NAME_IN_SOURCE.findall(text))
    return sorted(found)


FIELDS = field_names()
forms = st.dictionaries(st.sampled_from(FIELDS), texts, max_size=12)


def json_of(schema):
    """JSON that fits a schema of the API, or nearly."""
    while "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].removeprefix(REFERENCE)]
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        parts = {name: json_of(one) for name, one in schema["properties"].items()}
        required = {name: parts.pop(name) for name in schema.get("required", ())}
        return st.one_of(st.fixed_dictionaries(required, optional=parts), values)
    if kind == "array":
        return st.one_of(st.lists(json_of(schema.get("items", {})), max_size=2), values)
    if "enum" in schema:
        return st.one_of(st.sampled_from(schema["enum"]), values)
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", -5), schema.get("maximum", 5)
        return st.one_of(st.sampled_from([low, high, low - 1, high + 1, 1, 1.5]), values)
    return st.one_of(texts, st.sampled_from(["sample_jobs.ok", "plain", "default"]), values)


def plant_plain(redis):
    rqjobs.enqueue("sample_jobs.ok", job_id="plain")
    redis.zadd("rq:failed:default", {"plain": 1})
    schedules.add("plain", every(hours=1), "sample_jobs.ok")


def plant_odd(redis):
    """Damaged records, keys of the wrong type, and texts that want to be markup."""
    for job_id, fields in {
        "odd": {"created_at": "yesterday", "status": "<b>", "data": b"\xff", "meta": b"\x80"},
        "odder": {"description": "\u202e<script>\0", "origin": "../..", "timeout": "soon"},
    }.items():
        rqjobs.enqueue("sample_jobs.ok", job_id=job_id)
        redis.hset(f"rq:job:{job_id}", mapping=fields)
        for registry in ("failed", "finished", "scheduled", "deferred", "canceled"):
            redis.zadd(f"rq:{registry}:default", {job_id: 1})
    for key in ("rqjobs:paused", "rqjobs:failure-groups", "rq:workers", "rqjobs:log:odd"):
        redis.delete(key)
        redis.set(key, "odd")
    redis.sadd("rq:queues", b"rq:queue:\xff", "rq:queue:<i>", "odd")
    schedules.add("odd", every(hours=1), "sample_jobs.ok")
    redis.hset("rqjobs:schedule:odd", mapping={"rule": "[" * 2000, "made": "many"})


@pytest.mark.parametrize("plant", [plant_plain, plant_odd])
def test_no_input_breaks_a_route(app, client, redis, monkeypatch, plant):
    app.testing = app.config["PROPAGATE_EXCEPTIONS"] = False
    monkeypatch.setattr(jobs, "_waits", threading.Semaphore(0))  # no request waits
    sessions = redis.dump("rqjobs:sessions")
    for endpoint, method, address in every_call(app):
        if endpoint in SKIPPED or method in ("HEAD", "OPTIONS"):
            continue
        redis.flushdb()
        redis.restore("rqjobs:sessions", 0, sessions)
        plant(redis)
        send = send_to_api if endpoint.startswith("rqjobs_api.") else send_to_page
        fuzz(client, method, address, send, EXAMPLES[plant.__name__])


def fuzz(client, method, address, send, number):
    """Send the examples to one route."""
    body = forms
    if send is send_to_api:
        one = operation_of(method, address.removeprefix("/api"))
        body = json_of(one.body) if one.body else st.none()
        names = [*one.query, "nothing"]
    else:
        names = FIELDS
    places = st.lists(texts, min_size=address.count("/x"), max_size=address.count("/x"))

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(places, st.dictionaries(st.sampled_from(names), texts, max_size=4), body)
    def check(parts, query, content):
        path = address
        for part in parts:
            path = path.replace("/x", "/" + quote(part or "plain", safe=""), 1)
        reply = send(client, method, f"{path}?{urlencode(query)}", content)
        assert reply.status_code < 500, (method, path, query, content, reply.data[-800:])

    check()


def send_to_page(client, method, address, form):
    data = form if method == "POST" else None
    return client.open(address, method=method, data=data)


def send_to_api(client, method, address, body):
    headers = {"Authorization": f"Bearer {ADMIN}"}
    options = {}
    if body is not None:
        options = {"data": json.dumps(body), "content_type": "application/json"}
    reply = client.open(address, method=method, headers=headers, **options)
    path = address.partition("?")[0].removeprefix("/api")
    if reply.status_code < 500:
        conforms(reply, operation_of(method, path))
    return reply
