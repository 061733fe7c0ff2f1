"""A test client that behaves as a browser on the admin pages, and helpers of the page tests."""

from __future__ import annotations

import contextlib
import re
from html.parser import HTMLParser

import pytest
import redis as redis_py
from flask.testing import FlaskClient
from rq.worker import SimpleWorker

import rqjobs
from rqjobs.jobs import Job

PASSWORD = "correct horse"


OURS = {"Sec-Fetch-Site": "same-origin"}


HOSTILE = (
    "<script>window.__pwned=1</script></textarea><img src=x onerror=window.__pwned=1>\"'{{7*7}} "
    "javascript:alert(1)"
)


ESCAPED = "&lt;script&gt;window.__pwned=1&lt;/script&gt;"


GATES = ("rqjobs.login", "rqjobs.healthz")


class Client(FlaskClient):
    """A client that reads every response to its end, so that no file stays open."""

    def open(self, *args, **options):
        return super().open(*args, **{"buffered": True, **options})


class RoundTrips:
    """The number of round trips to Redis. A pipeline is one."""

    number = 0


@contextlib.contextmanager
def counted_round_trips():
    """Count the round trips of this process within the block."""
    trips = RoundTrips()

    def counting(method):
        def call(self, *args, **options):
            trips.number += 1
            return method(self, *args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (redis_py.Redis, "_execute_command"),
            (redis_py.client.Pipeline, "execute"),
        ):
            patch.setattr(owner, name, counting(getattr(owner, name)))
        yield trips


def log_in(client, user="admin", password=PASSWORD, path="/login", **options):
    options.setdefault("headers", OURS)
    return client.post(path, data={"user": user, "password": password}, **options)


def cookies(reply):
    return [
        line
        for line in reply.headers.getlist("Set-Cookie")
        if line.startswith(("rqjobs_session", "session="))
    ]


def every_call(app):
    """The endpoint, method and address of every request that the app answers."""
    with app.test_request_context():
        for rule in app.url_map.iter_rules():
            values = {
                name: {"int": 1, "IntegerConverter": 1}.get(
                    type(rule._converters[name]).__name__, "x"
                )
                for name in rule.arguments
            }
            if "registry_name" in values:
                values["registry_name"] = "failed"
            if "order" in values:
                values["order"] = "asc"
            address = app.url_map.bind("localhost").build(rule.endpoint, values)
            for method in sorted(rule.methods):
                yield rule.endpoint, method, address


def run_all(redis, *names):
    queues = [rqjobs.queue(name) for name in names or ("high", "default", "low")]
    SimpleWorker(
        queues, connection=redis, serializer=rqjobs.serializers.ConfiguredSerializer, job_class=Job
    ).work(burst=True)


def harmless(page):
    """A browser finds no tag, no handler and no link in the page that is not ours."""

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            assert tag not in ("img", "iframe", "style", "base", "object"), tag
            if tag == "svg":
                assert dict(attributes)["class"] in ("chart", "sparkline")
            for name, value in attributes:
                assert not name.startswith("on") and name != "style", (tag, name)
                if name in ("href", "src", "action"):
                    assert value in ("data:,", "?", "") or value.startswith(("/", "#main")), (
                        tag,
                        name,
                        value,
                    )
                    assert not value.startswith("//")
            if tag == "script":
                assert re.fullmatch(r"/assets/[a-z]+\.js", dict(attributes)["src"])

    Reader().feed(page)
    assert "<script>window" not in page and "49 javascript" not in page
