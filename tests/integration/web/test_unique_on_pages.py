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


def send(client, function, **fields):
    form = {"function": f"sample_jobs.{function}", "queue": "default", **fields}
    return client.post("/jobs", data=form, follow_redirects=True)


def test_the_form_leads_to_the_job_that_has_the_key(client, redis):
    job = rqjobs.enqueue(sample_jobs.charge, 1)
    page = send(client, "charge", **{"arg.invoice": "1", "arg.amount": "5"})
    assert page.request.path == f"/jobs/{job.id}" and "the same unique key" in page.text
    assert send(client, "charge", **{"arg.invoice": "2"}).request.path != f"/jobs/{job.id}"
    assert redis.llen(keys.queue("default")) == 2
    send(client, "index", **{"arg.name": "a", "arg.version": "1"})
    send(client, "index", **{"arg.name": "a", "arg.version": "2"})
    assert redis.zcard(keys.scheduled("default")) == 1


def test_the_form_says_that_a_debounced_job_has_no_due_time(client, redis):
    page = send(client, "index", when="in", delay="5", unit="s", **{"arg.name": "a"})
    assert page.status_code == 422 and "debounce, which decides when it runs" in page.text
    assert not redis.exists(keys.scheduled("default"))
