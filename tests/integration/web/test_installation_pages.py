"""The pages of Redis and of the settings, and rq-dashboard among our pages."""

from __future__ import annotations

import time

import pytest
from browser_client import OURS, PASSWORD, harmless
from flask import Flask

import rqjobs
from rqjobs import config
from rqjobs.alert_rules import parse_alerts
from rqjobs.web import init_app
from rqjobs.web.views.redis_page import PING_SECONDS, Info, duration, size


def test_the_page_of_redis(client, redis):
    page = client.get("/redis").text
    for text in ("Version", "Append-only file", "Latency from here", "noeviction", "Connected"):
        assert text in page, text
    assert "of the memory limit is used" not in page, "there is no limit"
    redis.config_set("maxmemory", "1gb")
    try:
        part = client.get("/redis").text
        assert "of the memory limit is used" in part and "<meter" in part and "1.0 GiB" in part
        redis.config_set("maxmemory-policy", "allkeys-lru")
        assert "Redis would throw jobs away" in client.get("/redis").text
    finally:
        redis.config_set("maxmemory", 0)
        redis.config_set("maxmemory-policy", "noeviction")


def test_the_latency_is_that_of_the_fastest_of_the_last_views(client, app, redis):
    assert "Connected" in client.get("/live/redis").text
    pings = app.extensions["rqjobs.pings"]
    later = time.perf_counter() + 3600
    pings.extend([(later, 9.0), (later, 9.0), (later, 0.0)])
    assert all("0.00 ms" in client.get(path).text for path in ("/redis", "/live/redis"))
    assert "0.00 ms" not in client.get("/live/redis").text
    pings.append((time.perf_counter() - PING_SECONDS, 0.0))  # Redis may have become slow since
    assert "0.00 ms" not in client.get("/live/redis").text


def test_the_page_of_redis_takes_few_round_trips(client, redis):
    client.get("/redis")
    before = redis.info("stats")["total_reads_processed"]
    client.get("/redis")
    assert redis.info("stats")["total_reads_processed"] - before <= 8


def test_the_doctor_on_a_page(client, redis):
    redis.set("rq:suspended", 1)
    page = client.get("/redis/doctor").text
    assert "0 live workers; start one with: rqjobs worker" in page and "the clocks agree" in page
    assert page.count("suspended") >= 2


@pytest.mark.parametrize(
    "values", [None, [], {}, {"used_memory": "x", "maxmemory": True, "redis_version": None}]
)
def test_an_odd_reply_to_info_is_zero_or_unknown(values):
    info = Info(values)
    assert info.number("used_memory") == 0 and info.number("maxmemory") == 0
    assert info.text("role") == "unknown"


def test_sizes_and_durations_for_people():
    assert [size(n) for n in (0, 1023, 1024, 150 * 1024, 3 << 30, 1 << 60)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "150 KiB",
        "3.0 GiB",
        "1048576 TiB",
    ]
    assert [duration(n) for n in (0, 59.4, 60, 7_200, 90_000)] == [
        "0 s",
        "59 s",
        "1 minute",
        "2 hours",
        "1 day",
    ]


def test_the_page_of_settings_hides_secrets(client, redis):
    config.use(outbox_url="sqlite:///secret.sqlite", one_time_password="another secret")
    page = client.get("/settings").text
    for secret in (PASSWORD, "k" * 32, "secret.sqlite", "another secret"):
        assert secret not in page
    for name in config.SETTINGS:
        assert f"<code>{name}</code>" in page
    assert page.count("set, hidden") >= 4 and rqjobs.__version__ in page
    assert "the program" in page


def test_the_rules_of_alerts_are_shown_as_they_are_written(client, redis):
    rules = "oldest=60s, depth:high=1000 for 120s, failed=10, no_worker:low, failed_for_good"
    config.use(alerts=parse_alerts(rules))
    assert f"<bdi>{rules}</bdi>" in client.get("/settings").text
    assert "<code>depth:high=1000 for 120s</code>" in client.get("/alerts").text


def test_the_source_of_each_setting(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("RQJOBS_MAX_RESULT_BYTES=2048\nPORT=9000\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PORT", "9001")
    monkeypatch.delenv("RQJOBS_MAX_RESULT_BYTES", raising=False)
    config.reload()
    try:
        found = {one.name: one for one in config.sources()}
        assert found["PORT"].source is config.Source.ENVIRONMENT and found["PORT"].value == 9001
        assert found["RQJOBS_MAX_RESULT_BYTES"].source is config.Source.FILE
        assert found["RQJOBS_MAX_PAYLOAD_BYTES"].source is config.Source.DEFAULT
        config.use(port=9002)
        assert {one.name: one.source for one in config.sources()}["PORT"] is config.Source.PROGRAM
        config.use(secret_key="hide me in repr")
        assert "hide me" not in repr(config.sources())
    finally:
        monkeypatch.chdir("/")
        monkeypatch.undo()
        config.reload()


def test_the_settings_are_for_admins(settings, redis):
    app = Flask("host")
    init_app(app, "/ops", authorize=lambda request: request.headers.get("X-Role"))
    client = app.test_client()
    for role, status in (("read", 403), ("operate", 403), ("admin", 200)):
        reply = client.get("/ops/settings", headers={"X-Role": role})
        assert reply.status_code == status
        with client.get("/ops/", headers={"X-Role": role}) as home:
            assert ("/ops/settings" in home.text) == (role == "admin")


def test_rq_dashboard_has_dark_colours_a_way_back_and_no_forbidden_button(settings, redis):
    app = Flask("host")
    init_app(app, "/ops", authorize=lambda request: request.headers.get("X-Role"))
    client = app.test_client()
    for path in ("", "0/view/jobs", "0/view/workers"):
        for role in ("operate", "admin"):
            page = client.get(f"/ops/rq/{path}", headers={"X-Role": role}).text
            assert '"/ops/assets/dashboard.css"' in page and "Back to rqjobs</a>" in page
            assert ('<body class="only-reads">' in page) == (role == "operate")
    reply = client.post("/ops/rq/requeue/low", headers={**OURS, "X-Role": "operate"})
    assert reply.status_code == 403
    with client.get("/ops/assets/dashboard.css", headers={"X-Role": "read"}) as sheet:
        assert "prefers-color-scheme: dark" in sheet.text


def test_hostile_texts_on_these_pages(client, redis):
    redis.set("rq:suspended", "<script>window.__pwned=1</script>")
    config.use(webhook_hosts=("<script>window.__pwned=1</script>",))
    for path in ("/redis", "/redis/doctor", "/settings"):
        harmless(client.get(path).text)
