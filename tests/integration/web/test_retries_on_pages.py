"""The attempts of a job on its page and on the command line."""

from __future__ import annotations

import click.testing
import pytest
import retry_jobs

import rqjobs
from rqjobs import cli, config


@pytest.fixture(autouse=True)
def jobs_module(settings):
    config.use(modules=("retry_jobs",))


def work():
    rqjobs.Worker(["default"]).work(burst=True, logging_level="WARNING")


def test_the_page_of_a_waiting_job_says_which_attempt_is_next_and_why(client, redis):
    job = rqjobs.enqueue(retry_jobs.slowly, "a")
    assert "Attempt" not in client.get(f"/jobs/{job.id}").text
    work()
    page = client.get(f"/jobs/{job.id}").text
    assert "Attempt 2 of 4, next in " in page
    assert ", after RateLimited: slow down</bdi>" in page
    assert '<span class="badge retried">retried</span>' in page
    assert "retry_jobs.RateLimited: slow down\n</pre>" in page  # the traceback


def test_the_page_and_the_command_list_the_attempts(client, redis):
    job = rqjobs.enqueue(retry_jobs.thrice, "a", 9)
    work()
    redis.xadd(f"rq:results:{job.id}", {"type": "odd"})
    redis.xadd(f"rq:results:{job.id}", {"type": 4, "exc_string": "<script>"})
    page = client.get(f"/jobs/{job.id}").text
    assert page.count('"badge retried"') == 3 and "next in" not in page
    redis.delete(f"rq:results:{job.id}")
    job.requeue()
    work()
    output = click.testing.CliRunner().invoke(cli.main, ["failed", "show", job.id]).output
    lines = output.splitlines()[3:7]
    assert [line.split()[0] for line in lines] == ["failed", "retried", "retried", "retried"]
    assert all(line.endswith(": RateLimited: slow down") for line in lines)
    redis.set(f"rq:results:{job.id}", "not a stream")
    assert client.get(f"/jobs/{job.id}").status_code == 200


def test_the_page_of_a_discarded_job_has_the_reason(client, redis):
    job = rqjobs.enqueue(retry_jobs.discard, "a")
    work()
    page = client.get(f"/jobs/{job.id}").text
    assert "This job was <b>discarded</b>" in page and "Discard: nothing to do\n</pre>" in page
