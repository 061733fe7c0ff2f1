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


# The spans of rqjobs itself


@pytest.fixture(scope="module")
def sdk(python):
    return python("opentelemetry-sdk>=1.30,<2", "opentelemetry-instrumentation-rq>=0.1.4,<0.2")


@pytest.fixture
def own_spans(sdk, run, tmp_path):
    """A function that runs a program and then a worker in burst mode; returns what was printed, and
    the spans by job.
    """

    def collect(program, **env):
        env = {"RQJOBS_MODULES": "sample_jobs,otel_jobs", **env}
        printed = run(sdk, "-c", program, env=env)
        run(sdk, "-m", "rqjobs", "worker", "--burst", "default", env=env)
        found = {}
        for line in (tmp_path / "spans").read_text().splitlines():
            span = json.loads(line)
            job_id = span["attributes"].get("messaging.message.id")
            found.setdefault(job_id, []).append(span)
        return printed.split(), found

    return collect


def test_send_and_process_are_linked_over_the_queue(own_spans, redis):
    ids, found = own_spans("""
import rq.utils, rqjobs, otel_jobs
jobs = [
    rqjobs.enqueue(otel_jobs.fine),
    *rqjobs.enqueue_many([(otel_jobs.fine, 1), (otel_jobs.fine, 2)]),
    rqjobs.enqueue_in(0, otel_jobs.fine),
    rqjobs.queue("default").enqueue_at(rq.utils.now(), otel_jobs.fine),
]
jobs.append(rqjobs.queue("default").enqueue(otel_jobs.fine, depends_on=jobs[0]))
print(*(job.id for job in jobs))
""")
    traces = set()
    for job_id in ids:
        send, process = found[job_id]
        assert (send["name"], send["kind"]) == ("send default", "SpanKind.PRODUCER")
        assert (process["name"], process["kind"]) == ("process default", "SpanKind.CONSUMER")
        assert send["context"]["trace_id"] == process["context"]["trace_id"]
        assert process["parent_id"] == send["context"]["span_id"]
        assert process["links"] == [send["context"]["span_id"].removeprefix("0x")]
        assert process["attributes"] == {
            "messaging.system": "rq",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": "default",
            "messaging.message.id": job_id,
            "code.function.name": "otel_jobs.fine",
        }
        seen = rqjobs.Job.fetch(job_id, connection=redis).return_value()
        assert process["context"]["trace_id"] == f"0x{seen}"
        traces.add(seen)
    assert len(traces) == len(ids)


def test_failures_retries_and_schedules_have_spans(own_spans):
    (failed, retried, scheduled), found = own_spans("""
import rqjobs, otel_jobs
print(rqjobs.enqueue(otel_jobs.fail).id, rqjobs.enqueue(otel_jobs.fail_once).id)
rqjobs.schedules.add("hourly", rqjobs.every(hours=1), otel_jobs.fine)
rqjobs.schedules.run_now("hourly")
print(*rqjobs.queue("default").job_ids[2:])
""")
    _, process = found[failed]
    assert process["status"]["status_code"] == "ERROR"
    assert process["events"][0]["attributes"]["exception.message"] == "why"
    assert [span["name"].split()[0] for span in found[retried]] == ["send", "process", "process"]
    assert [span["status"]["status_code"] for span in found[retried][1:]] == ["ERROR", "UNSET"]
    assert len({span["context"]["trace_id"] for span in found[retried]}) == 1
    (process,) = found[scheduled]
    assert process["parent_id"] is None and process["attributes"]["rqjobs.schedule"] == "hourly"


def test_no_job_is_traced_twice(own_spans):
    """While the instrumentation of RQ is active there are only its spans."""
    _, found = own_spans(
        "import rqjobs, otel_jobs; rqjobs.enqueue(otel_jobs.fine)", RQ_INSTRUMENTED="1"
    )
    names = {span["name"] for spans in found.values() for span in spans}
    assert "perform" in names and not names & {"send default", "process default"}


def test_foreign_headers_stop_no_job(own_spans, redis):
    (job_id, other), found = own_spans("""
import rqjobs, otel_jobs
jobs = [rqjobs.enqueue(otel_jobs.fine) for _ in range(2)]
for job, headers in zip(jobs, ({"traceparent": "00-x", "tracestate": 7}, [1])):
    job.meta["rqjobs_trace"] = headers
    job.save_meta()
print(*(job.id for job in jobs))
""")
    for one in (job_id, other):
        assert rqjobs.Job.fetch(one, connection=redis).get_status() == "finished"
        assert found[one][-1]["parent_id"] is None


def test_a_span_processor_or_propagator_that_fails_stops_no_enqueue(own_spans, redis):
    """The enqueue raised what the span processor had raised."""
    (long, first, second), _ = own_spans("""
import rqjobs, otel_jobs
from opentelemetry import propagate
from opentelemetry.sdk.trace import SpanProcessor

class Fails(SpanProcessor):
    def on_end(self, span):
        raise RuntimeError("no receiver")

def inject(headers):
    headers["baggage"] = "x" * 100_000

was, propagate.inject = propagate.inject, inject
print(rqjobs.enqueue(otel_jobs.fine).id)
propagate.inject = was
otel_jobs.provider.add_span_processor(Fails())
print(rqjobs.enqueue(otel_jobs.fine).id)
propagate.inject = None
print(rqjobs.enqueue(otel_jobs.fine).id)
""")
    jobs = [rqjobs.Job.fetch(one, connection=redis) for one in (long, first, second)]
    assert [job.get_status() for job in jobs] == ["finished"] * 3
    assert ["rqjobs_trace" in job.meta for job in jobs] == [False, True, False]
