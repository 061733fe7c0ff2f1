"""`rqjobs stats --check` and `rqjobs alerts`, for cron and CI."""

from __future__ import annotations

import json

import pytest
import sample_jobs
from click.testing import CliRunner

import rqjobs
from rqjobs import config
from rqjobs.broker import keys
from rqjobs.cli import main


@pytest.fixture
def run(settings):
    def call(*arguments, **env):
        result = CliRunner().invoke(main, arguments, env=env)
        return result.exit_code, result.stdout.splitlines(), result.stderr

    return call


def test_limits_that_are_exceeded(redis, run):
    assert run("stats", "--check", "oldest=60s,failed=0,depth=0") == (0, [], "")
    rqjobs.enqueue(sample_jobs.ok)
    redis.zadd("rq:failed:low", {"x": 9e9, "y": 9e9})
    redis.hset(
        f"rq:job:{rqjobs.queue('default').job_ids[0]}", "enqueued_at", "2020-01-01T00:00:00Z"
    )
    code, lines, _ = run(
        "stats", "--check", "oldest=1h, failed=1, depth:low=0, depth:default=0, workers=1"
    )
    assert code == 2
    assert [line.partition(" for ")[0] for line in lines] == [
        "oldest: default has a job that waits",
        "failed: all queues: 2 failed jobs, over 1",
        "depth: default has 1 waiting jobs, over 0",
        "workers: 0 live workers, under 1",
    ]
    code, lines, _ = run("stats", "--json", "--check", "failed:low=1")
    assert (code, json.loads("".join(lines))) == (2, ["failed: low: 2 failed jobs, over 1"])


@pytest.mark.parametrize(
    "check",
    ["", "oldest", "depth=many", "eldest=1", "depth=1,depth=2", "no_worker", "depth=1 for 2m"],
)
def test_a_check_that_cannot_be_read_is_an_error_and_no_alarm(run, check):
    code, lines, error = run("stats", "--check", check)
    assert (code, lines) == (1, []) and error.startswith("Error: --check ")
    assert len(error.splitlines()) == 1


def test_a_wrong_setting_is_no_alarm(run, monkeypatch):
    def fail():
        raise config.ConfigError("RQJOBS_X is not a setting")

    monkeypatch.setattr(config, "current", fail)
    assert run("stats", "--check", "failed=1")[0] == 1
    assert run("stats")[0] == 2


def test_the_alerts_that_fire(redis, run):
    assert run("alerts", "list") == (0, ["no alert fires"], "")
    state = {"since": 1.0, "rule": "depth", "subject": "low", "message": "\x1b[2J many"}
    redis.hset(keys.ALERTS, "depth:low", json.dumps(state))
    code, lines, _ = run("alerts", "list")
    assert code == 1 and "�[2J many" in lines[1]
    code, lines, _ = run("alerts", "list", "--json")
    assert json.loads("\n".join(lines))[0]["subject"] == "low"


def test_a_test_event(redis, run):
    code, _, error = run("alerts", "test")
    assert code == 2 and "RQJOBS_ALERT_WEBHOOK" in error
    config.use(alert_job="sample_jobs.ok", alert_webhook="http://127.0.0.1:1/secret")
    code, lines, error = run("alerts", "test")
    assert (code, lines) == (1, ["job: sent"]) and "secret" not in error
    assert len(rqjobs.queue("default").job_ids) == 1
