"""The log of a job on its page."""

from __future__ import annotations

import re
import time

import helpers
import sample_jobs

import rqjobs
from rqjobs.broker import leases, transitions
from rqjobs.job_logs import Batch, encode_line
from rqjobs.web import timeline


def log(redis, job, attempt, number, *lines, dropped=0):
    """Claim a job, and keep lines of this run."""
    leases.renew_lease(redis, "one", {"host": ""})
    (claim,) = helpers.claim(redis, "one", ["default"])
    now = time.time()
    text = b"".join(encode_line(now, 30, "WARNING", "shop.<b>", line) for line in lines)
    helpers.keep_log(redis, job.id, claim.token, attempt, Batch(number, dropped, text))


def test_the_page_shows_each_attempt_and_what_is_missing(client, redis):
    job = rqjobs.enqueue(sample_jobs.ok)
    assert "Log of attempt" not in client.get(f"/jobs/{job.id}").text
    log(redis, job, 1, 1, "<script>alert(1)</script>", "two\nlines")
    page = client.get(f"/jobs/{job.id}").text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "shop.&lt;b&gt;" in page
    assert '<b class="level-warning">WARNING</b>' in page and "<bdi>two\nlines</bdi>" in page
    assert re.search(r'datetime="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00" data-clock', page)
    transitions.release_all(redis, "one")
    log(redis, job, 2, 1, "again", dropped=1234)
    state = client.get(f"/jobs/{job.id}/state").json
    headings = re.findall(r"<h3>(Attempt \d)|(1,234 lines are left out)", state["html"])
    assert headings == [("Attempt 1", ""), ("Attempt 2", ""), ("", "1,234 lines are left out")]
    redis.delete(f"rqjobs:log:{job.id}")
    redis.set(f"rqjobs:log:{job.id}", "not a stream")
    assert client.get(f"/jobs/{job.id}").status_code == 200


def test_the_page_of_a_running_job_has_the_last_lines(client, redis, monkeypatch):
    monkeypatch.setattr(timeline, "LIVE_LOG_LINES", 2)
    job = rqjobs.enqueue(sample_jobs.ok)
    log(redis, job, 1, 1, *"abcde")
    page = client.get(f"/jobs/{job.id}").text
    assert "3 lines are left out here" in page and re.findall("<bdi>([a-e])</bdi>", page) == [
        "d",
        "e",
    ]


def test_a_log_of_a_job_whose_dates_are_at_the_end_of_time(client, redis):
    """The start of a run is compared with its lines, and 50 ms before the first date is none."""
    job = rqjobs.enqueue(sample_jobs.ok)
    log(redis, job, 1, 1, "hello")
    for moment in ("0001-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z"):
        redis.hset(job.key, mapping={"started_at": moment, "created_at": moment})
        assert "<bdi>hello</bdi>" in client.get(f"/jobs/{job.id}").text
