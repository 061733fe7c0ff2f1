"""`/metrics`: who may read it, and whether its numbers are right."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
import redis as redis_py
import sample_jobs
from prometheus_client import parser
from rq import Retry

import rqjobs
from rqjobs import config, every, job_metrics, schedules
from rqjobs.broker import keys
from rqjobs.web import exposition

TOKEN = "t" * 32
BROWSER = {"Accept": "text/html,*/*;q=0.8"}
DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture
def scrape(app):
    """The samples of a scrape with the token: (name, labels in alphabetical order) -> value."""
    config.use(metrics_token=TOKEN)
    client = app.test_client()

    def read():
        response = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert response.status_code == 200, response.text
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in parser.text_string_to_metric_families(response.text)
            for sample in family.samples
        }

    return read


@pytest.mark.parametrize("header", ["Bearer", "Bearer wrong", f"Basic {TOKEN}", "Bearer é"])
def test_a_stranger_reads_no_metrics(anonymous, header):
    config.use(metrics_token=TOKEN)
    response = anonymous.get("/metrics", headers={"Authorization": header})
    assert response.status_code == 401
    assert "RQJOBS_METRICS_TOKEN" in response.text and "rq_jobs" not in response.text


def test_without_a_token_nobody_reads_the_metrics_but_who_is_logged_in(anonymous, client):
    response = anonymous.get("/metrics", headers={"Authorization": "Bearer "})
    assert response.status_code == 401 and "set RQJOBS_METRICS_TOKEN" in response.text
    assert "rq_jobs" in client.get("/metrics", headers=BROWSER).text
    assert anonymous.get("/metrics", headers=BROWSER).status_code == 303
    for accept in ("", "*/*", "application/openmetrics-text;version=1.0.0,*/*;q=0.1"):
        assert anonymous.get("/metrics", headers={"Accept": accept}).status_code == 401


def test_without_prometheus_client_the_remedy_is_given(client, monkeypatch):
    monkeypatch.setattr(exposition, "HAS_CLIENT", False)
    response = client.get("/metrics", headers=BROWSER)
    assert response.status_code == 501 and "rqjobs[metrics]" in response.text


def test_the_format_follows_the_header(client):
    config.use(metrics_token=TOKEN)
    header = {"Authorization": f"Bearer {TOKEN}"}
    openmetrics = {**header, "Accept": "application/openmetrics-text"}
    assert client.get("/metrics", headers=openmetrics).text.endswith("# EOF\n")
    assert client.get("/metrics", headers=header).headers["Content-Type"].startswith("text/plain")


def test_runs_are_counted_by_function_queue_and_outcome(scrape, worker, redis, eventually):
    began = time.monotonic()
    for _ in range(3):
        rqjobs.enqueue(sample_jobs.ok)
    rqjobs.enqueue(sample_jobs.boom)
    rqjobs.queue("low").enqueue(sample_jobs.flaky, "one", 1, retry=Retry(max=1))
    for number in range(3):
        rqjobs.enqueue(sample_jobs.one_for_each_user, 1, "" if number else "user:0")
    process = worker("default", "low")
    eventually(lambda: redis.exists("user:0:reached"))
    redis.rpush("user:0:open", 1)
    runs = ("rqjobs_job_runs_total", "sample_jobs.flaky")
    eventually(lambda: scrape().get((*runs, "finished", "low")))
    found = eventually(
        lambda: (
            (now := scrape()).get(
                ("rqjobs_job_runs_total", "sample_jobs.one_for_each_user", "finished", "default")
            )
            == 3
            and now
        )
    )
    assert found[("rqjobs_job_runs_total", "sample_jobs.ok", "finished", "default")] == 3
    assert found[("rqjobs_job_runs_total", "sample_jobs.boom", "failed", "default")] == 1
    assert found[(*runs, "retried", "low")] == found[(*runs, "finished", "low")] == 1
    for kind in ("wait", "run"):
        name = f"rqjobs_job_{kind}_seconds"
        assert found[(f"{name}_count", "sample_jobs.ok", "default")] == 3
        assert found[(f"{name}_bucket", "sample_jobs.ok", "+Inf", "default")] == 3
        longest = 3 * (time.monotonic() - began) + 0.1
        assert 0 <= found[(f"{name}_sum", "sample_jobs.ok", "default")] < longest
    process.send_signal(signal.SIGTERM)
    process.wait(20)


def test_the_counts_of_a_horse_that_was_killed_are_kept(scrape, worker, redis, kill, eventually):
    """And what its death led to is counted: two jobs come back, and the poison one fails."""
    rqjobs.enqueue(sample_jobs.ok)
    rqjobs.enqueue(sample_jobs.kill_self)
    worker("default", options=("--with-scheduler",))
    runs = ("rqjobs_job_runs_total", "sample_jobs.ok", "finished", "default")

    def counted():
        now = scrape()
        return now.get(("rqjobs_jobs_poison_total",)) and runs in now and now

    found = eventually(counted, timeout=30)
    assert found[("rqjobs_jobs_recovered_total", "horse died")] == 2
    assert found[runs] == 1


def test_queues_schedules_workers_and_redis(scrape, redis):
    rqjobs.enqueue(sample_jobs.ok)
    schedules.add("hourly", every(hours=1), sample_jobs.ok)
    redis.hset(keys.schedule("hourly"), "missed", 7)
    late = redis.time()[0] - 100
    redis.zadd(keys.scheduled("low"), {"gone": late})
    found = scrape()
    assert found[("rqjobs_queue_depth", "default")] == 1
    assert found[("rqjobs_queue_oldest_seconds", "default")] >= 0
    assert found[("rqjobs_queue_workers", "default")] == 0
    assert found[("rqjobs_schedule_missed_total", "hourly")] == 7
    assert 99 <= found[("rqjobs_scheduler_lateness_seconds", "delayed")] < 200
    assert found[("rqjobs_scheduler_lateness_seconds", "schedules")] == 0
    assert found[("rqjobs_workers_alive",)] == found[("rqjobs_scheduler_running",)] == 0
    assert found[("rqjobs_redis_memory_bytes",)] > 100_000
    assert scrape()[("rq_request_processing_seconds_count",)] == 1


def test_a_scrape_takes_few_round_trips_and_changes_no_job(scrape, redis, monkeypatch):
    rqjobs.enqueue(sample_jobs.ok)
    redis.zadd("rq:finished:default", {"old": 1})  # RQ's `count` would remove it
    trips = []
    batch, command = redis_py.client.Pipeline.execute, redis_py.Redis._execute_command
    monkeypatch.setattr(
        redis_py.client.Pipeline, "execute", lambda *a, **o: trips.append(1) or batch(*a, **o)
    )
    monkeypatch.setattr(
        redis_py.Redis, "_execute_command", lambda *a, **o: trips.append(1) or command(*a, **o)
    )
    scrape()
    assert len(trips) <= 8
    assert redis.zscore("rq:finished:default", "old") == 1


def test_foreign_data_hides_no_other_metric(scrape, redis):
    rqjobs.enqueue(sample_jobs.ok)
    name = b'x"\n\xed\xa0\x80\x00{}'
    redis.sadd("rq:queues", b"rq:queue:" + name)
    redis.hset(keys.METRICS, b"run:1 " + name + b" " + name, "7")
    redis.hset(keys.METRICS, "run:sum a b", "many")
    redis.set(keys.TOTALS, "text")
    redis.zadd(keys.SCHEDULES, {"endless": 1})
    redis.hset(keys.schedule("endless"), mapping={"made": "inf", "missed": "nan"})
    redis.hset("rq:worker:x", mapping={"state": "busy\n", "total_working_time": "nan"})
    redis.sadd("rq:workers", "rq:worker:x")
    found = scrape()
    assert found[("rqjobs_queue_depth", "default")] == 1
    assert found[("rqjobs_jobs_poison_total",)] == 0
    assert found[("rqjobs_schedule_runs_total", "endless")] == 0
    redis.delete(keys.SCHEDULES)
    redis.set(keys.SCHEDULES, "text")
    assert scrape()[("rqjobs_queue_depth", "default")] == 1


def test_the_dashboard_and_the_rules_name_metrics_that_exist(scrape, redis):
    """Names alone: a rule for a metric that is not there would never fire."""
    counts = job_metrics.JobCounts(lambda name: True)
    counts.note("sample_jobs.ok", "default", job_metrics.Outcome.FINISHED, 0.1, 0.1)
    job_metrics.CountsSender(counts).send(redis)
    redis.hset(keys.TOTALS, "recovered:lease expired", 1)
    schedules.add("hourly", every(hours=1), sample_jobs.ok)
    redis.set(keys.LAST_SWEEP, redis.time()[0])
    redis.hset("rq:worker:x", "state", "busy")
    redis.sadd("rq:workers", "rq:worker:x")
    redis.hset(keys.ALERTS, "depth:low", json.dumps({"since": 1.0, "rule": "depth"}))
    known = {name for name, *_ in scrape()}
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    rules = (DOCS / "alert-rules.yml").read_text()
    expressions = [
        *re.findall(r"^ +expr: (.*)$", rules, re.M),
        *(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())),
    ]
    assert len(expressions) > 20
    named = {name for one in expressions for name in re.findall(r"\brq(?:jobs)?_\w+", one)}
    assert named <= known, named - known
