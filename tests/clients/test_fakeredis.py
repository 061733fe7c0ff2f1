"""fakeredis with Lua, for tests without a Redis.

Clients and `SimpleWorker` work with it; `Worker` does not.
"""

import pytest


@pytest.fixture(scope="module")
def fake(python):
    return python("fakeredis[lua]>=2.30,<3")


@pytest.fixture
def environ(environ):
    return {**environ, "REDIS_URL": ""}


def test_jobs_run_without_a_server(fake, run):
    assert run(
        fake,
        "-c",
        """
import fakeredis, sample_jobs, rqjobs
rqjobs.connection.use(fakeredis.FakeRedis())
queue = rqjobs.queue("default")
done, failed = rqjobs.enqueue(sample_jobs.add, 1), rqjobs.enqueue(sample_jobs.flaky, "once", 1)
child, later = rqjobs.enqueue(sample_jobs.ok, 3, depends_on=done), rqjobs.enqueue_in(60, sample_jobs.ok)
many = rqjobs.enqueue_many([(sample_jobs.ok, 4), (sample_jobs.ok, 5)])
many += queue.enqueue_many([queue.prepare_data(sample_jobs.ok, (6,))])
once = queue.enqueue(sample_jobs.ok, 7, job_id="one", unique=True)
rqjobs.SimpleWorker(["default"]).work(burst=True, logging_level="CRITICAL")
assert failed.get_status() == "failed"
failed.requeue()
rqjobs.SimpleWorker(["default"]).work(burst=True, logging_level="CRITICAL")
print(*(job.return_value() for job in (done, failed, child, *many, once)))
print(*(delayed.job_id == later.id for delayed in rqjobs.delayed.jobs()))
rqjobs.delayed.cancel(later.id)
rqjobs.schedules.add("hourly", rqjobs.every(hours=1), sample_jobs.ok, 8)
run = rqjobs.schedules.run_now("hourly")
rqjobs.SimpleWorker(["default"]).work(burst=True, logging_level="CRITICAL")
print(run.return_value(), later.get_status().value)
""",
    ).splitlines() == ["2 once 3 4 5 6 7", "True", "8 canceled"]


def test_a_worker_is_refused_because_its_processes_would_not_share_the_data(fake, run):
    assert "FakeRedisConnection" in run(
        fake,
        "-c",
        """
import fakeredis, rqjobs
rqjobs.connection.use(fakeredis.FakeRedis())
try:
    rqjobs.Worker(["default"])
except SystemExit as error:
    print(error)
""",
    )
