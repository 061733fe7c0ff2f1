"""An expired job, the time limits of a job, and the cancel button of a running job on its page."""

from __future__ import annotations

import sample_jobs
from rq.job import JobStatus

import rqjobs


def test_the_page_of_a_job_shows_when_it_expires_and_that_it_has(client, redis):
    job = rqjobs.enqueue(sample_jobs.ok, expires=60, kill_after=5)
    page = client.get(f"/jobs/{job.id}").text
    assert "<dt>Expires</dt>" in page and "<dd>5.000 s</dd>" in page
    redis.hset(job.key, "rqjobs_expires", "1000.000+60")
    rqjobs.Worker(["default"]).work(burst=True, logging_level="WARNING")
    page = client.get(f"/jobs/{job.id}").text
    assert "This job has <b>expired</b>: it had not begun in time" in page
    assert "had not begun by the time" in page and ">canceled</span>" in page
    client.post(f"/jobs/{job.id}/delete")
    assert not redis.exists(job.key) and not redis.zcard("rq:canceled:default")


def test_a_running_job_can_be_canceled_on_its_page(client, worker, redis, eventually):
    worker("default")
    job = rqjobs.enqueue(sample_jobs.loop_until_cancelled)
    eventually(lambda: redis.get("looping"))
    page = client.get(f"/jobs/{job.id}").text
    assert f'id="cancel-{job.id}"' in page and f'id="stop-{job.id}"' in page
    assert client.post(f"/jobs/{job.id}/cancel").status_code == 303
    assert "its outcome will be dropped" in client.get(f"/jobs/{job.id}").text
    eventually(lambda: redis.get("cleaned up"), timeout=10)
    assert job.get_status() == JobStatus.CANCELED
