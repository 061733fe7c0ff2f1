"""sentry-sdk, whose RQ integration is enabled by default."""

import gzip
import http.server
import json
import threading

import pytest

import rqjobs


class Collector(http.server.ThreadingHTTPServer):
    """A Sentry server; `items` has the events and transactions that it received."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.items = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        _, *lines = gzip.decompress(body).splitlines()
        for kind, item in zip(lines[::2], lines[1::2], strict=False):
            if json.loads(kind)["type"] in ("event", "transaction"):
                self.server.items.append(json.loads(item))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args):
        pass


@pytest.fixture
def collector():
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def sentry(python):
    return python("sentry-sdk>=2.30,<3")


@pytest.fixture
def environ(environ, collector):
    return {
        **environ,
        "RQJOBS_MODULES": "sample_jobs,sentry_jobs",
        "SENTRY_DSN": f"http://key@127.0.0.1:{collector.server_port}/1",
    }


@pytest.fixture
def work(sentry, run):
    return lambda: run(sentry, "-m", "rqjobs", "worker", "--burst", "default")


def test_every_way_to_enqueue_works_with_sentry_in_the_process(sentry, run, redis):
    assert run(
        sentry,
        "-c",
        """
import datetime, sentry_sdk, sample_jobs, rqjobs
sentry_sdk.init(dsn="http://key@127.0.0.1:9/1")
queue = rqjobs.queue("default")
jobs = [
    rqjobs.enqueue(sample_jobs.ok, 1),
    queue.enqueue(sample_jobs.ok, 1, at_front=True),
    queue.enqueue(sample_jobs.ok, 1, job_id="one", unique=True),
    rqjobs.Queue("default", queue.connection, is_async=False).enqueue(sample_jobs.ok, 1),
    *rqjobs.enqueue_many([(sample_jobs.ok, 1), (sample_jobs.ok, 2)]),
    *queue.enqueue_many([queue.prepare_data(sample_jobs.ok, (1,))]),
    rqjobs.enqueue_in(60, sample_jobs.ok, 1),
    queue.enqueue_at(datetime.datetime.now() + datetime.timedelta(1), sample_jobs.ok, 1),
]
jobs.append(rqjobs.enqueue(sample_jobs.ok, 1, depends_on=jobs[0]))
with queue.connection.pipeline() as pipe:
    jobs.append(queue.enqueue(sample_jobs.ok, 1, pipeline=pipe))
    pipe.execute()
print(len({job.id for job in jobs}), queue.count)
""",
    ).split() == ["11", "7"]


def test_a_trace_continues_in_the_worker_for_every_way_to_enqueue(sentry, run, work, collector):
    trace = run(
        sentry,
        "-c",
        """
import datetime, rq.utils, rqjobs, sentry_sdk, sentry_jobs
queue = rqjobs.queue("default")
with sentry_sdk.start_transaction(name="request") as request:
    parent = rqjobs.enqueue(sentry_jobs.fine, "enqueued")
    queue.enqueue(sentry_jobs.fine, "dependent", depends_on=parent)
    rqjobs.enqueue_many([(sentry_jobs.fine, "many 1"), (sentry_jobs.fine, "many 2")])
    queue.enqueue_many([queue.prepare_data(sentry_jobs.fine, ("many",))])
    queue.enqueue_at(rq.utils.now(), sentry_jobs.fine, "delayed")
    rqjobs.enqueue_in(0, sentry_jobs.fine, "delayed by 0 s")
    queue.enqueue(sentry_jobs.fine, "unique", job_id="one", unique=True)
    with queue.connection.pipeline() as pipe:
        queue.enqueue(sentry_jobs.fine, "piped", pipeline=pipe)
        pipe.execute()
print(request.trace_id)
""",
    ).strip()
    work()
    runs = [item for item in collector.items if item["transaction"] == "sentry_jobs.fine"]
    assert len(runs) == 9 and {item["contexts"]["trace"]["trace_id"] for item in runs} == {trace}
    assert {item["contexts"]["trace"]["op"] for item in runs} == {"queue.task.rq"}


def test_each_run_of_a_schedule_has_its_own_trace(sentry, run, work, collector):
    trace = run(
        sentry,
        "-c",
        """
import rqjobs, sentry_sdk, sentry_jobs
with sentry_sdk.start_transaction(name="deployment") as deployment:
    rqjobs.schedules.add("hourly", rqjobs.every(hours=1), sentry_jobs.fine, "scheduled")
for _ in range(2):
    rqjobs.schedules.run_now("hourly")
print(deployment.trace_id)
""",
    ).strip()
    work()
    runs = [item for item in collector.items if item["transaction"] == "sentry_jobs.fine"]
    assert len({trace, *(item["contexts"]["trace"]["trace_id"] for item in runs)}) == 3


def test_the_event_of_a_failed_job_has_no_data_of_earlier_jobs(sentry, run, work, collector):
    ids = run(
        sentry,
        "-c",
        """
import rqjobs, sentry_jobs
print(*(rqjobs.enqueue(sentry_jobs.fail, name).id for name in "abc"))
""",
    ).split()
    work()
    events = [item for item in collector.items if item.get("level") == "error"]
    assert [event["extra"]["rq-job"]["job_id"] for event in events] == ids
    for name, event in zip("abc", events, strict=True):
        assert event["exception"]["values"][-1]["value"] == name
        assert (
            event["tags"] == {"module": "here", f"tag of {name}": name}
            and event["user"]["id"] == name
        )
        crumbs = [crumb.get("message", "") for crumb in event["breadcrumbs"]["values"]]
        assert [crumb for crumb in crumbs if crumb.startswith("crumb of")] == [f"crumb of {name}"]
    runs = [
        item
        for item in collector.items
        if item["transaction"] == "sentry_jobs.fail" and "spans" in item
    ]
    assert len(runs) == 3


def test_jobs_that_ask_for_another_run_or_are_discarded_are_no_errors(
    sentry, run, work, collector, redis
):
    run(
        sentry,
        "-c",
        """
import rqjobs, sentry_jobs
for name in ("discarded", "forbidden", "snoozed", "retried"):
    rqjobs.enqueue(sentry_jobs.ask, name)
""",
    )
    work()
    assert redis.zcard("rq:canceled:default") == 2 and redis.zcard("rq:finished:default") == 2
    assert len(collector.items) == 6  # the transactions of the runs
    assert not [item for item in collector.items if item.get("level") == "error"]


def test_a_job_that_is_retried_is_an_error_when_it_fails_for_good(sentry, run, work, collector):
    run(
        sentry,
        "-c",
        """
import rqjobs, sentry_jobs
for name in ("timeout", "value"):
    rqjobs.enqueue(sentry_jobs.fail_at_last, name)
""",
    )
    work()
    events = [item for item in collector.items if item.get("level") == "error"]
    values = [event["exception"]["values"][-1]["value"] for event in events]
    assert sorted(values) == ["timeout", "value"]


def test_hooks_and_sentry_write_into_the_same_meta(sentry, run, work, collector, redis):
    """The hook has the tags of the request; in the worker it sets them for the job alone."""
    job_id = run(
        sentry,
        "-c",
        """
import rqjobs, sentry_sdk, sentry_jobs
sentry_jobs.trace_tenants()
with sentry_sdk.start_transaction(name="request"):
    for job in rqjobs.enqueue_many([(sentry_jobs.fail, "a"), (sentry_jobs.fail, "b")]):
        pass
print(job.id)
""",
    ).strip()
    meta = rqjobs.Job.fetch(job_id, connection=redis).meta
    assert meta["tenant"] == "shop" and meta["_sentry_trace_headers"]["sentry-trace"]
    work()
    events = [item for item in collector.items if item.get("level") == "error"]
    assert [event["tags"]["tenant"] for event in events] == ["shop"] * 2


def test_the_exception_of_a_wait_has_the_traceback_of_the_worker(sentry, run, work, collector):
    job_id = run(
        sentry, "-c", "import rqjobs, sentry_jobs; print(rqjobs.enqueue(sentry_jobs.fail, 'x').id)"
    ).strip()
    work()
    collector.items.clear()
    run(
        sentry,
        "-c",
        f"""
import rqjobs, sentry_sdk, sentry_jobs
try:
    rqjobs.Job.fetch({job_id!r}, connection=rqjobs.client()).wait(0)
except ValueError as error:
    sentry_sdk.capture_exception(error)
sentry_sdk.flush()
""",
    )
    (event,) = collector.items
    kinds = [value["type"] for value in event["exception"]["values"]]
    assert kinds == ["WorkerTraceback", "JobFailed", "ValueError"]
    assert "sentry_jobs.py" in event["exception"]["values"][0]["value"]


def test_the_lines_of_each_job_are_kept_beside_sentry(sentry, run, work, collector, redis):
    """Both of them listen to every logger."""
    ids = run(
        sentry,
        "-c",
        "import rqjobs, sentry_jobs\n"
        "for name in 'ab': print(rqjobs.enqueue(sentry_jobs.log_lines, name).id)",
    ).split()
    work()
    for name, job in zip("ab", rqjobs.Job.fetch_many(ids, connection=redis), strict=True):
        assert [(line.level, line.text) for line in job.log_lines()] == [
            ("WARNING", f"a warning of {name}"),
            ("ERROR", f"an error of {name}"),
        ]
    events = [item["logentry"] for item in collector.items if item.get("level") == "error"]
    assert [(one["message"], one["params"]) for one in events] == [
        ("an error of %s", ["a"]),
        ("an error of %s", ["b"]),
    ]


def test_a_loop_that_a_shutdown_interrupts_is_no_error(
    sentry, spawn, run, collector, redis, eventually
):
    run(sentry, "-c", "import rqjobs, sentry_jobs; rqjobs.enqueue(sentry_jobs.count)")
    process = spawn(sentry, "-m", "rqjobs", "worker", "default")
    eventually(lambda: redis.exists("rows"))
    process.terminate()
    assert process.wait(60) == 0, process.output()
    assert rqjobs.queue("default").count == 1
    redis.set("stop", 1)
    run(sentry, "-m", "rqjobs", "worker", "--burst", "default")
    assert redis.zcard("rq:finished:default") == 1
    runs = [item for item in collector.items if item["transaction"] == "sentry_jobs.count"]
    assert len(runs) == 2 and not [item for item in runs if item.get("level") == "error"]
