"""opentelemetry-instrumentation-rq."""

import json

import pytest

import rqjobs

# RQ's name for storing a job that depends on another job.
DEPENDENT_SPAN = "setup dependencies default"


@pytest.fixture(scope="module")
def telemetry(python):
    return python("opentelemetry-instrumentation-rq>=0.1.4,<0.2")


@pytest.fixture
def environ(environ, tmp_path):
    return {
        **environ,
        "RQJOBS_MODULES": "sample_jobs,telemetry_jobs",
        "SPANS": str(tmp_path / "spans"),
    }


@pytest.fixture
def spans(telemetry, run, tmp_path):
    """A function that runs a program and then a worker in burst mode.

    It returns the words that the program printed, and the spans of both.
    """

    def collect(program):
        printed = run(telemetry, "-c", program)
        run(telemetry, "-m", "rqjobs", "worker", "--burst", "default")
        return printed.split(), [
            json.loads(line) for line in (tmp_path / "spans").read_text().splitlines()
        ]

    return collect


def test_a_trace_continues_in_the_worker_for_every_way_to_enqueue(spans):
    ids, found = spans("""
import rq.utils, rqjobs, telemetry_jobs
queue = rqjobs.queue("default")
jobs = [
    rqjobs.enqueue(telemetry_jobs.fine, "enqueued"),
    queue.enqueue(telemetry_jobs.fine, "front", at_front=True),
    *rqjobs.enqueue_many([(telemetry_jobs.fine, "many 1"), (telemetry_jobs.fine, "many 2")]),
    *queue.enqueue_many([queue.prepare_data(telemetry_jobs.fine, ("many",))]),
    queue.enqueue_at(rq.utils.now(), telemetry_jobs.fine, "delayed"),
    rqjobs.enqueue_in(0, telemetry_jobs.fine, "delayed by 0 s"),
]
jobs.append(queue.enqueue(telemetry_jobs.fine, "dependent", depends_on=jobs[0]))
print(*(job.id for job in jobs))
""")
    for number, job_id in enumerate(ids):
        own = [span for span in found if span["job"] == job_id]
        names = [span["name"] for span in own]
        assert names[1:] == ["perform", "handle_job_success default", "consume default"], names
        if number in (5, 6):
            assert names[0] == "schedule default", names
        else:
            assert names[0] in ("publish default", DEPENDENT_SPAN), names
        assert len({span["trace"] for span in own}) == 1, own
        assert all(span["status"] == "OK" for span in own)


def test_a_failed_job_has_a_span_with_its_error(spans):
    (job_id,), found = spans(
        "import rqjobs, telemetry_jobs; print(rqjobs.enqueue(telemetry_jobs.fail, 'why').id)"
    )
    failed = [span for span in found if span["status"] == "ERROR"]
    assert [(span["name"], span["job"], span["events"]) for span in failed] == [
        ("perform", job_id, ["why"])
    ]


def test_the_context_of_a_job_ends_with_the_job(spans, redis):
    ids, _ = spans("""
import rqjobs, telemetry_jobs
print(*(rqjobs.enqueue(telemetry_jobs.leave_baggage, name).id for name in "abc"))
""")
    assert [rqjobs.Job.fetch(job_id, connection=redis).return_value() for job_id in ids] == [
        None,
        None,
        None,
    ]


def test_each_run_of_a_schedule_has_its_own_trace(spans):
    ids, found = spans("""
import rqjobs, telemetry_jobs
rqjobs.schedules.add("hourly", rqjobs.every(hours=1), telemetry_jobs.fine, "scheduled")
for _ in range(2):
    rqjobs.schedules.run_now("hourly")
print(*rqjobs.queue("default").job_ids)
""")
    traces = []
    for job_id in ids:
        own = [span for span in found if span["job"] == job_id]
        assert "perform" in [span["name"] for span in own]
        (trace,) = {span["trace"] for span in own}
        traces.append(trace)
    assert len(set(traces)) == 2


def test_a_retried_job_has_a_span_for_each_run_in_one_trace(spans):
    """The runs that failed have their error. A hook sees the same trace."""
    (job_id,), found = spans("""
import rqjobs, telemetry_jobs
print(rqjobs.enqueue(telemetry_jobs.fail_once).id)
""")
    performed = [span for span in found if span["name"] == "perform" and span["job"] == job_id]
    assert [span["status"] for span in performed] == ["ERROR", "OK"]
    hooked = [span for span in found if span["name"] == "hook"]
    assert len(hooked) == 2
    assert len({span["trace"] for span in performed + hooked}) == 1


def test_a_discarded_job_has_no_span_with_an_error(spans):
    _, found = spans("import rqjobs, telemetry_jobs; rqjobs.enqueue(telemetry_jobs.discard)")
    assert found and not [span for span in found if span["status"] == "ERROR"]
