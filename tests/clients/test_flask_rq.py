"""Flask-RQ, whose queues are replaced by queues of rqjobs."""

import pytest

import rqjobs


@pytest.fixture(scope="module")
def flask(python):
    return python("flask-rq>=1.0,<2")


@pytest.fixture
def environ(environ):
    return {**environ, "RQJOBS_MODULES": "flask_jobs", "RQJOBS_FLASK_APP": "flask_jobs:app"}


def test_its_job_functions_can_be_enqueued_by_flask_rq_and_by_rqjobs(flask, run, redis):
    ids = run(
        flask,
        "-c",
        """
import flask_jobs, rqjobs
with flask_jobs.app.app_context():
    print(flask_jobs.greet.enqueue("Ann").id, flask_jobs.slow.enqueue("Bob").id)
    print(rqjobs.enqueue(flask_jobs.greet, "Cy").id, flask_jobs.greet.enqueue_in(0, "Dee").id)
""",
    ).split()
    run(flask, "-m", "rqjobs", "worker", "--burst", "default", "low")
    jobs = rqjobs.Job.fetch_many(ids, connection=redis)
    assert [job.return_value() for job in jobs] == [
        "Ann in shop",
        "Bob",
        "Cy in shop",
        "Dee in shop",
    ]
    assert [job.origin for job in jobs] == ["default", "low", "default", "default"]
