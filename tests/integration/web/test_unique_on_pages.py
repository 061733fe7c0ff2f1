"""The unique key of a job on its page."""

from __future__ import annotations

import sample_jobs

import rqjobs
from rqjobs.broker import keys


def test_the_page_of_a_job_shows_its_key_and_why_it_is_not_requeued(client, redis):
    job = rqjobs.enqueue(sample_jobs.index, "<b>", 1)
    page = client.get(f"/jobs/{job.id}").text
    assert "sample_jobs.index:&lt;b&gt;, until started, debounced by 5 s, at most 60 s" in page
    failed = rqjobs.enqueue(sample_jobs.charge, 1)
    redis.hset(failed.key, "status", "failed")
    redis.lrem(keys.queue("default"), 0, failed.id)
    redis.zadd(keys.failed("default"), {failed.id: 9e9})
    other = rqjobs.enqueue(sample_jobs.charge, 1)
    client.post(f"/jobs/{failed.id}/requeue")
    assert f"the job {other.id} has its unique key" in client.get(f"/jobs/{failed.id}").text
