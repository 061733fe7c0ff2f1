"""sentry-sdk, whose RQ integration is on by default."""

import pytest

SENTRY = "sentry-sdk>=2.30,<3"


@pytest.fixture(scope="module")
def sentry(python):
    return python(SENTRY)


def test_every_way_to_enqueue_works_with_sentry_in_the_process(sentry, run, redis):
    assert run(sentry, "-c", """
import datetime, sentry_sdk, faults, rqjobs
sentry_sdk.init(dsn="http://key@127.0.0.1:9/1")
queue = rqjobs.queue("default")
jobs = [
    rqjobs.enqueue(faults.ok, 1),
    queue.enqueue(faults.ok, 1, at_front=True),
    queue.enqueue(faults.ok, 1, job_id="one", unique=True),
    rqjobs.Queue("default", queue.connection, is_async=False).enqueue(faults.ok, 1),
    *rqjobs.enqueue_many([(faults.ok, 1), (faults.ok, 2)]),
    *queue.enqueue_many([queue.prepare_data(faults.ok, (1,))]),
    rqjobs.enqueue_in(60, faults.ok, 1),
    queue.enqueue_at(datetime.datetime.now() + datetime.timedelta(1), faults.ok, 1),
]
jobs.append(rqjobs.enqueue(faults.ok, 1, depends_on=jobs[0]))
with queue.connection.pipeline() as pipe:
    jobs.append(queue.enqueue(faults.ok, 1, pipeline=pipe))
    pipe.execute()
print(len({job.id for job in jobs}), queue.count)
""").split() == ["11", "7"]
