"""The progress of a running job on its page, on the home page, and in `rqjobs stats`."""

from __future__ import annotations

import json

import pytest
import sample_jobs
from click.testing import CliRunner

import rqjobs
from rqjobs import cli
from rqjobs.broker import keys


@pytest.fixture
def running(redis):
    """A job that a worker has begun, by its record."""
    job = rqjobs.enqueue(sample_jobs.ok)
    redis.lpop("rq:queue:default")
    redis.hset(job.key, "status", "started")
    redis.zadd(keys.running("default"), {f"{job.id}:token": "+inf"})
    return job


def test_progress_is_a_bar_on_the_pages_and_a_line_of_stats(client, redis, running):
    stored = [1200, 5000, "<b>users", 1_700_000_000]
    redis.hset(running.key, "rqjobs_progress", json.dumps(stored))
    for path in (f"/jobs/{running.id}", "/live"):
        html = client.get(path).text
        assert '<progress value="1200" max="5000"' in html
        assert "1,200 of 5,000 (&lt;b&gt;users)" in html
    output = CliRunner().invoke(cli.main, ["stats"]).output
    assert "1,200 of 5,000 (<b>users)" in output


@pytest.mark.parametrize("stored", ['[1, null, "", 0]', "[1", '[NaN, 1, "", 0]'])
def test_no_bar_without_a_total_or_for_a_forged_progress(client, redis, running, stored):
    redis.hset(running.key, "rqjobs_progress", stored)
    for path in (f"/jobs/{running.id}", "/live"):
        response = client.get(path)
        assert response.status_code == 200 and "<progress" not in response.text
