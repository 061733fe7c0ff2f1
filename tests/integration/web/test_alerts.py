"""Alerts: once when they begin and once when they are over, whatever the receiver does."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import threading
import time

import pytest
import sample_jobs
from ports import closed_port, trickling_server

import rqjobs
from rqjobs import alerts, config, connection, every, schedules, stats
from rqjobs.alert_rules import parse_alerts
from rqjobs.broker import keys
from rqjobs.web import alert_thread, exposition


class Receiver:
    """An HTTP server on a port of its own. `answers` are the statuses of the next calls."""

    def __init__(self):
        self.calls = []
        self.answers = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.calls.append((body, self.headers["Idempotency-Key"]))
                status = receiver.answers.pop(0) if receiver.answers else 200
                if status == "hang":
                    receiver.released.wait(60)
                if not isinstance(status, int):
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *args):
                pass

        self.released = threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self.server.server_port}/secret-path"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def states(self):
        return [(body["alert"], body["state"]) for body, _ in self.calls]


@pytest.fixture
def receiver(settings):
    with contextlib.closing(Receiver()) as receiver:
        config.use(alert_webhook=receiver.url)
        yield receiver


@pytest.fixture
def rules(monkeypatch):
    """Put rules into force. An alert is over at once. Only the test itself observes."""
    monkeypatch.setattr(alerts, "CLEAR_SECONDS", 0)
    monkeypatch.setattr(alert_thread, "_started_in", os.getpid())

    def use(text, **settings):
        config.use(alerts=parse_alerts(text), **settings)

    return use


def retry_now(redis):
    redis.delete(keys.ALERT_TRIES)


def test_an_alert_is_told_once_when_it_begins_and_once_when_it_is_over(redis, rules, receiver):
    rules("depth=1, depth:low=0, oldest=1h", environment="test")
    for _ in range(2):
        rqjobs.enqueue(sample_jobs.ok)
    for _ in range(3):  # however often it is observed, and by whom
        alerts.update(redis)
        alerts.send_due(redis)
    assert receiver.states == [("depth:default", "begin")]
    assert [alert.message for alert in alerts.firing(redis)] == ["2 jobs wait in default (limit 1)"]
    redis.delete(keys.queue("default"))
    for _ in range(3):
        alerts.update(redis)
        alerts.send_due(redis)
    assert receiver.states == [("depth:default", "begin"), ("depth:default", "over")]
    assert alerts.firing(redis) == []
    (begin, begin_id), (over, over_id) = receiver.calls
    assert begin["environment"] == "test" and begin["began"] == over["began"]
    assert (begin["id"], over["id"]) == (begin_id, over_id)
    assert begin_id.removesuffix("begin") == over_id.removesuffix("over")
    assert redis.hgetall(keys.ALERTS) == {}


def test_a_receiver_that_fails_is_called_again_later_and_in_order(
    redis, rules, receiver, caplog, monkeypatch
):
    monkeypatch.setattr(alerts, "FIRST_RETRY_SECONDS", 60)
    rules("depth:default=0, depth:low=0")
    rqjobs.enqueue(sample_jobs.ok)
    alerts.update(redis)
    rqjobs.queue("low").enqueue(sample_jobs.ok)
    alerts.update(redis)
    receiver.answers = [500, 302, "close"]
    for tries in range(1, 4):
        assert alerts.send_due(redis) == 0
        assert alerts.send_due(redis) == 0  # not yet
        assert len(receiver.calls) == tries
        state = json.loads(redis.hget(keys.ALERT_TRIES, "webhook"))
        assert state["tries"] == tries
        redis.hset(keys.ALERT_TRIES, "webhook", json.dumps({**state, "due": 0}))
    assert alerts.send_due(redis) == 2
    assert receiver.states == [("depth:default", "begin")] * 4 + [("depth:low", "begin")]
    assert len({key for _, key in receiver.calls}) == 2
    assert "it answered 500" in caplog.text and "secret-path" not in caplog.text


def test_a_receiver_that_hangs_holds_up_nothing_for_long(
    redis, rules, receiver, monkeypatch, eventually
):
    rules("depth:default=0")
    rqjobs.enqueue(sample_jobs.ok)
    alerts.update(redis)
    monkeypatch.setattr(alerts, "SEND_SECONDS", 0.3)
    monkeypatch.setattr(alerts, "SOCKET_SECONDS", 60.0)
    receiver.answers = ["hang"]
    began = time.monotonic()
    assert alerts.send_due(redis) == 0
    assert time.monotonic() - began < 30
    eventually(lambda: not receiver.answers, what="the call that hangs")
    receiver.released.set()
    retry_now(redis)
    monkeypatch.setattr(alerts, "SEND_SECONDS", 10.0)
    assert alerts.send_due(redis) == 1


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n"])
def test_an_answer_byte_by_byte_leaves_no_thread(redis, rules, monkeypatch, eventually, head):
    """Each try left a thread and a connection behind, for as long as bytes came."""
    monkeypatch.setattr(alerts, "SEND_SECONDS", 0.3)
    with trickling_server(head) as (port, _):
        rules("depth:default=0", alert_webhook=f"http://127.0.0.1:{port}/")
        rqjobs.enqueue(sample_jobs.ok)
        alerts.update(redis)
        assert alerts.send_due(redis) == 0
        eventually(
            lambda: not [one for one in threading.enumerate() if one.name == "rqjobs-alert"],
            what="the end of the call's thread",
        )


def test_nobody_at_the_address_is_given_up_at_last(redis, rules, monkeypatch, caplog):
    monkeypatch.setattr(alerts, "MAX_TRIES", 2)
    monkeypatch.setattr(alerts, "FIRST_RETRY_SECONDS", 0)
    with closed_port() as port:
        rules("depth:default=0", alert_webhook=f"http://127.0.0.1:{port}/secret-path")
        rqjobs.enqueue(sample_jobs.ok)
        alerts.update(redis)
        assert [alerts.send_due(redis) for _ in range(3)] == [0, 1, 0]
    assert "given up" in caplog.text and "secret-path" not in caplog.text
    assert redis.llen(keys.alert_events("webhook")) == 0


def test_a_process_that_dies_between_the_call_and_its_note_repeats_it(redis, rules, receiver):
    rules("depth:default=0")
    rqjobs.enqueue(sample_jobs.ok)
    alerts.update(redis)
    (text,) = redis.lrange(keys.alert_events("webhook"), 0, -1)
    alerts.deliver("webhook", json.loads(text))  # and here it dies
    alerts.send_due(redis)
    (_, first), (_, second) = receiver.calls
    assert first == second


def test_it_must_be_bad_for_as_long_as_the_rule_says_and_well_for_as_long(redis, rules, receiver):
    """A value that goes up and down makes no second alert."""
    rules("depth:default=0 for 1h, depth:low=0")
    for name in ("default", "low"):
        rqjobs.queue(name).enqueue(sample_jobs.ok)
    alerts.update(redis)
    assert [alert.name for alert in alerts.firing(redis)] == ["depth:low"]
    alerts.CLEAR_SECONDS = 3600  # the fixture restores it
    for depth in (0, 1, 0, 1):
        redis.delete(keys.queue("low"))
        if depth:
            redis.rpush(keys.queue("low"), "x")
        assert alerts.update(redis) == 0
    state = json.loads(redis.hget(keys.ALERTS, "depth:default"))
    redis.hset(keys.ALERTS, "depth:default", json.dumps({**state, "bad": state["bad"] - 3601}))
    assert alerts.update(redis) == 1


def test_counts_that_grow(redis, rules, receiver, monkeypatch):
    rules("recovered, poison, schedule_missed")
    schedules.add("hourly", every(hours=1), sample_jobs.ok)
    redis.hset(keys.TOTALS, mapping={"recovered:process gone": 5, "poison": 1})
    redis.hset(keys.schedule("hourly"), "missed", 3)
    assert alerts.update(redis) == 0  # what was before is not news
    redis.hincrby(keys.TOTALS, "recovered:lease expired", 2)
    redis.hincrby(keys.schedule("hourly"), "missed", 1)
    assert alerts.update(redis) == 2
    assert {alert.name for alert in alerts.firing(redis)} == {"recovered", "schedule_missed:hourly"}
    redis.hincrby(keys.TOTALS, "recovered:lease expired", 2)
    assert alerts.update(redis) == 0  # the same alert
    monkeypatch.setattr(alerts, "RECENT_SECONDS", 0)
    assert alerts.update(redis) == 2
    assert alerts.firing(redis) == []


def test_a_rule_that_is_removed_ends_its_alert(redis, rules, receiver):
    rules("depth:default=0, poison")
    rqjobs.enqueue(sample_jobs.ok)
    alerts.update(redis)
    rules("failed=10")
    alerts.update(redis)
    alerts.send_due(redis)
    assert receiver.states[-1] == ("depth:default", "over")
    assert redis.hlen(keys.ALERTS) == 0


def test_failures_begin_alerts_and_a_job_is_told(redis, rules, worker, eventually):
    """By a real scheduler: no test has to ask."""
    rqjobs.enqueue(sample_jobs.boom, "<!channel>")
    process = worker(
        "default",
        options=("--with-scheduler",),
        env={
            "RQJOBS_ALERTS": "failed_for_good, new_failure_group, no_worker:low for 0s",
            "RQJOBS_ALERT_JOB": "sample_jobs.ok",
        },
    )
    ids = eventually(
        lambda: (found := redis.zrange("rq:finished:default", 0, -1)) and len(found) == 3 and found
    )
    events = [rqjobs.Job.fetch(one.decode(), connection=redis).return_value() for one in ids]
    assert {event["rule"] for event in events} == {
        "failed_for_good",
        "new_failure_group",
        "no_worker",
    }
    (message,) = (event["message"] for event in events if event["rule"] == "failed_for_good")
    assert "sample_jobs.boom: ValueError: <!channel>" in message, process.output()
    assert len({event["id"] for event in events}) == 3


def test_without_a_scheduler_a_web_process_notices(
    redis, rules, receiver, client, eventually, monkeypatch
):
    parked = threading.Event()

    def park(client):
        """The thread, which has no end, does nothing in later tests."""
        parked.set()
        threading.Event().wait()

    def without_redis():
        raise connection.NoRedis("no Redis yet")

    rules("no_scheduler for 0s")
    monkeypatch.setattr(alert_thread, "_started_in", 0)
    monkeypatch.setattr(alerts, "OBSERVE_SECONDS", 0.02)
    with monkeypatch.context() as patch:  # the first request comes before there is a Redis
        patch.setattr(connection, "client", without_redis)
        assert client.get("/healthz").text == "no Redis yet\n"
    client.get("/healthz")
    try:
        eventually(lambda: receiver.calls)
        assert receiver.states == [("no_scheduler", "begin")]
    finally:
        monkeypatch.setattr(stats, "scheduler_is_running", park)
        assert parked.wait(60)


def test_slack_gets_one_text_without_markup(redis, rules, receiver):
    rules("depth:default=0", alert_format="slack", environment="live")
    event = {**alerts.test_event(), "message": "<!channel> & co"}
    alerts.deliver("webhook", event)
    ((body, _),) = receiver.calls
    assert body == {"text": ":rotating_light: [live] &lt;!channel&gt; &amp; co"}


def test_foreign_data_stops_no_alert(redis, rules, receiver):
    rules("depth:default=0, failed_for_good, new_failure_group, schedule_missed")
    rqjobs.enqueue(sample_jobs.ok)
    redis.hset(keys.ALERTS, "depth:default", "[1")
    redis.hset(keys.ALERTS, "x\n", json.dumps({"since": "soon"}))
    redis.hset(keys.ALERTS, "far", '{"id": "far", "since": 1e999, "more": 1e999}')
    redis.hset(keys.ALERT_TRIES, "webhook", '{"tries": []}')
    redis.rpush(keys.alert_events("webhook"), b"\xff")
    redis.set(keys.SCHEDULES, "text")
    now = redis.time()[0]
    redis.zadd(keys.FAILURE_GROUPS, {"a": now, "b": now})
    redis.set(keys.failure_group("a"), "text")
    redis.hset(keys.failure_group("b"), mapping={"first": now, "message": b"\xff\x00" * 999})
    alerts.update(redis)
    alerts.send_due(redis)
    assert ("depth:default", "begin") in [
        (body.get("alert"), body.get("state")) for body, _ in receiver.calls
    ]


def test_the_page_shows_what_fires_and_the_rules(redis, rules, client):
    assert "There are no rules yet" in client.get("/alerts").text
    rules("oldest:high=10s for 1h, depth:default=0, poison")
    assert "All is well" in client.get("/alerts").text
    rqjobs.enqueue(sample_jobs.ok)
    alerts.update(redis)
    for rule, subject in (
        ("schedule_missed", "<i>"),
        ("depth", "\ud800"),
        ("failed_for_good", ""),
    ):
        about = {"since": 1, "rule": rule, "subject": subject, "message": rule}
        redis.hset(keys.ALERTS, f"{rule}:test", json.dumps(about))
    page = client.get("/alerts").text
    assert '<a href="/queues/default"><bdi>1 job waits in default' in page
    assert '<a href="/schedules/%3Ci%3E"><bdi>schedule_missed</bdi></a>' in page
    assert '<a href="/failed"><bdi>failed_for_good</bdi></a>' in page
    assert '<td class="what"><bdi>depth</bdi></td>' in page, "its subject can be no name"
    redis.hset(keys.ALERTS, "far", f'{{"since": 1{"0" * 400}, "message": "far away"}}')
    assert "far away" in client.get("/alerts").text
    hostile = {"since": 1e300, "id": "x", "rule": "<b>", "message": "<script>\u202e\ud800" * 999}
    redis.hset(keys.ALERTS, "<i>", json.dumps(hostile))
    text = client.get("/alerts").text
    assert (
        "1 job waits in default" in text
        and "&lt;script&gt;" in text
        and "<script>\u202e" not in text
    )
    assert "<code>oldest:high=10s for 3600s</code>" in text and "Nobody is told" in text
    assert "1 job waits in default" in client.get("/live/alerts").text


def test_the_older_protocol_of_redis_has_the_same_answers(redis, rules, server):
    """Its replies with scores are flat."""
    redis.zadd(keys.FAILURE_GROUPS, {"a": redis.time()[0]})
    redis.zadd(keys.scheduled("low"), {"x": redis.time()[0] - 50})
    older = connection.connect(f"{server}{'&' if '?' in server else '?'}protocol=2")
    with contextlib.closing(older):
        (found,) = alerts.observe(older, parse_alerts("failed_for_good"))
        assert found.rule.name == "failed_for_good"
        assert exposition.read(older).lateness["delayed"] >= 50
