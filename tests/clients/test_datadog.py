"""The RQ integration of ddtrace."""

import json

import pytest


@pytest.fixture(scope="module")
def datadog(python):
    return python("ddtrace>=3.0,<5")


@pytest.fixture
def environ(environ, tmp_path):
    return {
        **environ,
        "RQJOBS_MODULES": "sample_jobs,datadog_jobs",
        "SPANS": str(tmp_path / "spans"),
        "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
        "DD_REMOTE_CONFIGURATION_ENABLED": "false",
        "DD_RQ_DISTRIBUTED_TRACING_ENABLED": "true",
    }


def test_a_trace_continues_in_the_worker_for_every_way_to_enqueue(datadog, run, tmp_path):
    *ids, failed = run(
        datadog,
        "-c",
        """
import rq.utils, rqjobs, datadog_jobs
queue = rqjobs.queue("default")
jobs = [
    rqjobs.enqueue(datadog_jobs.fine, "enqueued"),
    *rqjobs.enqueue_many([(datadog_jobs.fine, "many 1"), (datadog_jobs.fine, "many 2")]),
    *queue.enqueue_many([queue.prepare_data(datadog_jobs.fine, ("many",))]),
    queue.enqueue_at(rq.utils.now(), datadog_jobs.fine, "delayed"),
    rqjobs.enqueue(datadog_jobs.fail, "why"),
]
print(*(job.id for job in jobs))
""",
    ).split()
    run(datadog, "-m", "rqjobs", "worker", "--burst", "default")
    spans = [json.loads(line) for line in (tmp_path / "spans").read_text().splitlines()]
    for job_id in (*ids, failed):
        own = [span for span in spans if span["job"] == job_id]
        names = sorted(span["name"] for span in own)
        assert names == ["rq.job.perform", "rq.queue.enqueue_job", "rq.worker.perform_job"]
        assert len({span["trace"] for span in own}) == 1, own
    errors = [
        (span["name"], span["job"]) for span in spans if span["error"] and span["message"] == "why"
    ]
    assert ("rq.job.perform", failed) in errors and {job_id for _, job_id in errors} == {failed}
