"""rq-exporter, which runs without rqjobs and reads the queues and workers of rqjobs."""

import re

import pytest

import rqjobs
from rqjobs import config
from rqjobs.web import create_app

SAMPLE = re.compile(r"^(rq_\w+(?:{.*})?) (\S+)$", re.M)


@pytest.fixture(scope="module")
def exporter(python):
    return python("rq-exporter>=3.1,<4", alone=True)


def test_its_metrics_count_jobs_and_workers(exporter, run, worker, redis, eventually):
    process = worker("high", "default")
    jobs = [
        rqjobs.enqueue("sample_jobs.ok", 1),
        rqjobs.enqueue("sample_jobs.boom"),
        rqjobs.enqueue("sample_jobs.hang", "gate"),
    ]
    rqjobs.queue("low").enqueue("sample_jobs.ok", depends_on=jobs[2])
    rqjobs.queue("low").enqueue("sample_jobs.ok")
    rqjobs.queue("low").enqueue_at(jobs[0].created_at.replace(year=2999), "sample_jobs.ok")
    eventually(lambda: redis.exists("gate:reached"))
    fields = "failed_job_count", "successful_job_count", "state", "current_job"
    expected = [b"1", b"1", b"busy", jobs[2].id.encode()]
    eventually(lambda: redis.hmget(process.key, fields) == expected)
    text = run(
        exporter,
        "-c",
        """
import os, redis, rq_exporter.collector
from prometheus_client import CollectorRegistry, generate_latest
registry = CollectorRegistry()
registry.register(rq_exporter.collector.RQCollector(redis.Redis.from_url(os.environ["REDIS_URL"])))
print(generate_latest(registry).decode())
""",
    )
    metrics = dict(re.findall(r"^(rq_\w+{.*}) ([\d.e+-]+)$", text, re.M))
    for queue, status in (
        ("default", "finished"),
        ("default", "failed"),
        ("default", "started"),
        ("low", "queued"),
        ("low", "deferred"),
        ("low", "scheduled"),
    ):
        assert metrics[f'rq_jobs{{queue="{queue}",status="{status}"}}'] == "1.0", text
    labels = f'name="{process.name}",queues="high,default"'
    assert (
        metrics[f"rq_workers_success_total{{{labels}}}"]
        == metrics[f"rq_workers_failed_total{{{labels}}}"]
        == "1.0"
    )
    assert f'rq_workers{{name="{process.name}",queues="high,default",state="busy"}} 1.0' in text
    theirs, ours = samples(text), samples(own_metrics())
    differing = {name: (value, ours.get(name)) for name, value in theirs.items()}
    assert all(value == own for value, own in differing.values()), differing
    assert {value for name, value in ours.items() if name not in theirs} <= {0.0}  # empty queues
    redis.rpush("gate:open", 1)
    eventually(lambda: jobs[2].get_status() == "finished")


def samples(text):
    """The samples of the metrics of rq-exporter, without those of the scrape itself."""
    return {
        ",".join(sorted(re.findall(r'^\w+|\w+="[^"]*"', name))): float(value)
        for name, value in SAMPLE.findall(text)
        if not name.startswith("rq_request_processing")
    }


def own_metrics():
    config.use(metrics_token="t" * 16, admin_password="correct horse")
    header = {"Authorization": f"Bearer {'t' * 16}"}
    response = create_app().test_client().get("/metrics", headers=header)
    assert "rq_request_processing_seconds_count" in response.text
    return response.text
