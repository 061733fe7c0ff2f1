"""All pages: the home page, workers, health, and Redis that is full, suspended or away."""

from __future__ import annotations

import pytest
import sample_jobs
from browser_client import OURS, log_in, run_all

import rqjobs
from rqjobs import config


def test_home_shows_queues_and_jobs(client, redis):
    rqjobs.enqueue(sample_jobs.say, "hello")
    rqjobs.enqueue(sample_jobs.boom, "bang")
    run_all(redis)
    rqjobs.queue("low").enqueue(sample_jobs.say, "waits")
    page = client.get("/").text
    assert "sample_jobs.say(&#39;hello&#39;)" in page and "sample_jobs.boom(&#39;bang&#39;)" in page
    assert "1 job waiting, and no worker is running." in page and "rqjobs worker</code>" in page
    form = client.get("/enqueue").text
    assert 'value="sample_jobs.add"' in form and '<optgroup label="sample_jobs">' in form
    assert (
        "sample_jobs.say(&#39;waits&#39;)" in client.get("/live").text
        and "<html" not in client.get("/live").text
    )


def test_workers_are_listed(client, redis, worker):
    process = worker("high", "low")
    page = client.get("/workers").text
    assert process.name in page and "high, low" in page and str(process.pid) in page


@pytest.fixture
def full(redis):
    """Redis has no free memory and refuses writes."""
    redis.config_set("maxmemory", "1")
    yield redis
    redis.config_set("maxmemory", "0")


def test_a_full_redis_allows_login_and_is_reported(client, anonymous, redis, full):
    assert "Redis is full" in client.get("/").text
    redis.config_set("maxmemory", "0")
    job = rqjobs.enqueue_in(500, sample_jobs.say, "later")
    redis.config_set("maxmemory", "1")
    assert log_in(anonymous, password="wrong").status_code == 401
    assert redis.get("rqjobs:login:127.0.0.1") == b"1", "wrong passwords count all the same"
    assert log_in(anonymous).status_code == 303
    for path in (
        "/",
        "/live",
        "/failed",
        "/workers",
        "/schedules",
        "/jobs",
        "/jobs?state=scheduled",
        f"/jobs/{job.id}",
    ):
        reply = anonymous.get(path)
        assert reply.status_code == 200 and reply.text.count("Redis is full") == 1, path
    reply = anonymous.post(
        "/jobs", data={"function": "sample_jobs.ok", "queue": "low"}, headers=OURS
    )
    assert (
        reply.status_code == 503
        and "Redis refuses this" in reply.text
        and "does not answer" not in reply.text
    )
    anonymous.post("/logout", headers=OURS)
    assert anonymous.get("/").status_code == 401


def test_every_page_reports_suspended_workers(client, redis):
    assert "suspended" not in client.get("/").text
    redis.set("rq:suspended", 1)
    assert "<bdi>RQ is suspended</bdi>" in client.get("/").text
    assert 'aria-label="Resume workers"' in client.get("/live").text
    for path in ("/failed", "/workers", "/schedules", "/jobs"):
        assert (
            client.get(path).text.count(
                "RQ is suspended: no worker begins a job until <code>rq resume</code>"
            )
            == 1
        ), path


def test_healthz(anonymous):
    reply = anonymous.get("/healthz")
    assert (reply.status_code, reply.text) == (200, "ok\n")


def test_pages_without_redis_are_a_503(client, anonymous, no_redis):
    reply = anonymous.get("/healthz")
    assert reply.status_code == 503 and reply.text.count("\n") == 1 and "127.0.0.1:1" in reply.text
    for path in (
        "/",
        "/live",
        "/failed",
        "/workers",
        "/jobs/x",
        "/jobs/x/state",
        "/?function=sample_jobs.add",
    ):
        page = client.get(path)
        assert (
            page.status_code == 503
            and "Redis does not answer" in page.text
            and "127.0.0.1:1" in page.text
        ), path
        assert "Traceback" not in page.text and "s3cret" not in page.text
        assert 'aria-label="Pages"' in page.text, "the navigation stays"
    assert (
        client.post("/jobs", data={"function": "sample_jobs.ok", "queue": "low"}).status_code == 503
    )
    assert client.get("/rq/").status_code == 503


def test_without_configured_redis_the_page_names_the_setting(
    client, anonymous, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config.use(redis_url=None)
    assert "set REDIS_URL" in anonymous.get("/healthz").text
    assert "set REDIS_URL" in client.get("/").text
