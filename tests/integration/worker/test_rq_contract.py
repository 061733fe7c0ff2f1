"""RQ's contract: a worker of rqjobs behaves as RQ documents."""

from __future__ import annotations

import http.server
import sys
import threading

import pytest
import rq
import sample_jobs
from rq.command import send_stop_job_command
from rq.group import Group
from rq.job import Dependency, JobStatus

import rqjobs
from rqjobs import Callback, Retry, plain_jobs
from rqjobs.maintenance import audit as maintenance_audit


@pytest.fixture
def finished(eventually):
    def wait(*jobs, timeout=20):
        for job in jobs:
            eventually(
                lambda job=job: job.get_status() == JobStatus.FINISHED,
                timeout,
                f"the end of {job.description}",
            )

    return wait


@pytest.fixture
def listener():
    """A web server on loopback; yields its port and the requested paths."""
    paths = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_response(302 if self.path == "/away" else 200)
            if self.path == "/away":
                self.send_header("Location", f"http://localhost:{self.server.server_port}/stranger")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port, paths
    server.shutdown()
    server.server_close()
    thread.join()


def burst(*queues, **options):
    return rqjobs.Worker(list(queues)).work(burst=True, logging_level="CRITICAL", **options)


@pytest.mark.parametrize(
    ("strategy", "first"),
    [
        ("default", ["a", "a", "a", "b", "b", "b"]),
        ("round_robin", ["a", "b", "a", "b", "a", "b"]),
    ],
)
def test_dequeue_strategies(redis, strategy, first):
    for name in "ab":
        for _ in range(3):
            rqjobs.queue(name).enqueue(sample_jobs.mark, "order")
    burst("a", "b", dequeue_strategy=strategy)
    origins = [
        rqjobs.Job.fetch(job_id.decode(), connection=redis).origin
        for job_id in redis.lrange("order", 0, -1)
    ]
    assert origins == first


def test_random_strategy_serves_every_queue(redis):
    for name in "ab":
        for _ in range(20):
            rqjobs.queue(name).enqueue(sample_jobs.mark, "order")
    burst("a", "b", dequeue_strategy="random")
    origins = [
        rqjobs.Job.fetch(job_id.decode(), connection=redis).origin
        for job_id in redis.lrange("order", 0, -1)
    ]
    assert len(origins) == 40 and set(origins[:15]) == {"a", "b"}


def test_webhooks_are_sent_once_the_outcome_is_recorded(worker, redis, eventually, listener):
    port, paths = listener
    env = {"RQJOBS_WEBHOOK_HOSTS": "127.0.0.1"}
    rqjobs.config.use(webhook_hosts=("127.0.0.1",))
    hook = f"http://127.0.0.1:{port}"
    worker(env=env)
    both = [rq.Webhook(f"{hook}/{status}", status) for status in ("finished", "failed")]
    jobs = [
        rqjobs.enqueue(sample_jobs.ok, webhooks=both),
        rqjobs.enqueue(sample_jobs.boom, webhooks=[rq.Webhook(f"{hook}/failed", "failed")]),
        rqjobs.enqueue(
            sample_jobs.flaky,
            "f",
            1,
            retry=Retry(max=1),
            webhooks=[rq.Webhook(f"{hook}/retried", "failed")],
        ),
        rqjobs.enqueue(sample_jobs.ok, webhooks=[rq.Webhook(f"{hook}/away", "finished")]),
    ]
    eventually(lambda: all(job.get_status() in ("finished", "failed") for job in jobs))
    eventually(lambda: sorted(paths) == ["/away", "/failed", "/finished"])


def test_exception_handlers_results_ttl_and_idle_time(spawn, redis, finished):
    bad, good = rqjobs.enqueue(sample_jobs.boom, "no"), rqjobs.enqueue(sample_jobs.ok, 1)
    process = spawn(
        *(sys.executable, "-m", "rq.cli", "worker", "--worker-class", "rqjobs.Worker"),
        *("--exception-handler", "sample_jobs.handle_exception"),
        *("--results-ttl", "77", "--max-idle-time", "2", "--job-monitoring-interval", "3"),
        "default",
    )
    finished(good)
    assert redis.lrange("handled", 0, -1) == [f"{bad.id}:no".encode()]
    assert 70 < redis.ttl(good.key) <= 77
    assert process.wait(20) == 0 and "idle" in process.output()


def test_stopped_callback_is_called(worker, redis, eventually):
    process = worker()
    job = rqjobs.enqueue(sample_jobs.hang, "gate", on_stopped=Callback(sample_jobs.on_stopped))
    other = rqjobs.enqueue(sample_jobs.ok)
    eventually(lambda: redis.llen("gate:reached") == 1)
    job.refresh()
    send_stop_job_command(redis, job.id, serializer=job.serializer)
    eventually(lambda: job.get_status() == JobStatus.STOPPED)
    eventually(
        lambda: redis.lrange("callback", 0, -1) == [f"stopped:{job.id}".encode()],
        what="the callback",
    )
    eventually(lambda: other.get_status() == JobStatus.FINISHED)
    assert process.poll() is None


def test_stop_command_for_another_job_does_nothing(worker, redis, eventually, finished):
    process = worker()
    job, waiting = rqjobs.enqueue(sample_jobs.hang, "gate"), rqjobs.enqueue(sample_jobs.ok)
    eventually(lambda: redis.llen("gate:reached") == 1)
    rq.command.send_command(redis, process.name, "stop-job", job_id=waiting.id)
    redis.publish(f"rq:pubsub:{process.name}", "this is no command")
    eventually(lambda: "ignored" in process.output())
    eventually(lambda: "cannot be read" in process.output())
    redis.rpush("gate:open", 1)
    finished(job, waiting)
    assert redis.llen("gate:reached") == 1


def test_groups_ttls_and_the_current_job(worker, redis, eventually, finished):
    worker()
    group = Group.create(connection=redis)
    members = group.enqueue_many(
        rqjobs.queue("default"), [rqjobs.Queue.prepare_data(sample_jobs.whoami) for _ in range(3)]
    )
    kept = rqjobs.enqueue(sample_jobs.ok, result_ttl=-1)
    failing = rqjobs.enqueue(sample_jobs.boom, failure_ttl=123)
    waiting = rqjobs.enqueue(sample_jobs.ok, ttl=500)
    finished(*members, kept, waiting)
    assert [job.return_value() for job in members] == [job.id for job in members]
    assert redis.ttl(kept.key) == -1 and redis.zscore("rq:finished:default", kept.id) == float(
        "inf"
    )
    assert 490 < redis.ttl(waiting.key) <= 500  # now that of its result
    eventually(lambda: failing.get_status() == JobStatus.FAILED)
    assert 110 < redis.zscore("rq:failed:default", failing.id) - redis.time()[0] <= 124
    assert 110 < redis.ttl(f"rq:results:{failing.id}") <= 123


def test_dependents_of_failed_canceled_and_finished_jobs(worker, redis, eventually, finished):
    failing = rqjobs.enqueue(sample_jobs.boom)
    never = rqjobs.enqueue(sample_jobs.ok, depends_on=failing)
    after = rqjobs.enqueue(
        sample_jobs.ok, depends_on=Dependency(jobs=[failing], allow_failure=True)
    )
    first = rqjobs.enqueue(sample_jobs.ok)
    fan = [
        rqjobs.queue(name).enqueue(sample_jobs.ok, depends_on=first)
        for name in ("high", "low", "default")
    ]
    join = rqjobs.enqueue(sample_jobs.ok, depends_on=fan)
    worker()
    finished(after, *fan, join)
    assert never.get_status() == JobStatus.DEFERRED
    audit = maintenance_audit.audit(redis)
    assert not audit.breaches and audit.remarks == [
        f"deferred: {never.id} waits for {failing.id}, which is failed"
    ]


def test_worker_statistics(worker, redis, eventually, finished):
    process = worker()
    finished(*[rqjobs.enqueue(sample_jobs.ok) for _ in range(5)])
    rqjobs.enqueue(sample_jobs.boom)
    eventually(
        lambda: redis.hmget(process.key, "successful_job_count", "failed_job_count") == [b"5", b"1"]
    )
    assert float(redis.hget(process.key, "total_working_time")) > 0
    eventually(
        lambda: (
            redis.hget(process.key, "state") == b"idle"
            and not redis.hexists(process.key, "current_job")
        )
    )


def test_unserializable_result_is_stored_as_such(worker, finished):
    worker()
    job = rqjobs.enqueue(sample_jobs.strange)
    finished(job)
    assert job.return_value() == rq.defaults.UNSERIALIZABLE_RETURN_VALUE_PAYLOAD


def test_the_attributes_of_an_rq_job_are_those_that_the_fast_path_knows():
    """Jobs of the fast path would lack an attribute that a new version of RQ adds."""
    stock = vars(rq.job.Job("stock", connection=object()))
    fast = rqjobs.Job.__new__(rqjobs.Job)
    assert not plain_jobs.restore(fast, "stock", {}, stock["connection"])
    differ = {"created_at", "serializer"}
    assert {**vars(fast), **dict.fromkeys(differ)} == {**stock, **dict.fromkeys(differ)}
