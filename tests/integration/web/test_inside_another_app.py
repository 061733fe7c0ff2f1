"""The pages inside another Flask app."""

from __future__ import annotations

import subprocess
import sys

from browser_client import OURS, PASSWORD, log_in
from flask import Flask, session

from rqjobs import config
from rqjobs.web import init_app


def test_inside_another_app(settings):
    config.use(admin_password=PASSWORD, secret_key="k" * 32)
    host = Flask("host")
    host.secret_key = "the host's own"

    @host.route("/", methods=["GET", "POST"])
    def front():
        session["cart"] = 3
        return "<script>theirs()</script>"

    @host.get("/jobsite")
    def jobsite():
        return "theirs"

    init_app(host, url_prefix="/jobs")
    client = host.test_client()
    assert host.secret_key == "the host's own"
    reply = client.post("/")
    assert reply.status_code == 200 and "Content-Security-Policy" not in reply.headers
    assert client.get("/jobsite").text == "theirs" and client.get("/nowhere").status_code == 404
    for path in ("/jobs/", "/jobs/failed", "/jobs/rq/", "/jobs/nowhere", "/jobs"):
        assert client.get(path).status_code in (303, 401), path
    assert client.get("/jobs/healthz").status_code == 200
    assert log_in(client, path="/jobs/login").location == "/jobs/"
    assert client.get("/jobs/").status_code == 200 and client.get("/jobs/rq/").status_code == 200
    assert client.get("/jobs").location in ("/jobs/", "http://localhost/jobs/")
    assert "There is no such page" in client.get("/jobs/nowhere").text
    reply = client.post(
        "/jobs/jobs", data={"function": "sample_jobs.ok", "queue": "low"}, headers=OURS
    )
    assert (
        reply.location.startswith("/jobs/jobs/") and client.get(reply.location).status_code == 200
    )
    client.post("/jobs/logout", headers=OURS)
    with client.session_transaction() as left:
        assert dict(left) == {"cart": 3}


def test_inside_another_app_stock_queues_still_write_pickle(environ, worker):
    """Plain RQ queues once wrote JSON, and every job failed in a plain RQ worker."""
    process = worker("low")
    host = """if True:
        import sample_jobs, redis, rq, rqjobs.web
        from flask import Flask
        connection = redis.Redis.from_url({url!r})
        before = rq.Queue("stock", connection=connection)
        rqjobs.web.init_app(Flask("host"), url_prefix="/jobs")
        assert [worker.name for worker in rqjobs.Worker.all(connection)] == [{name!r}]  # no worker of this process
        for queue in (before, rq.Queue("stock", connection=connection)):
            queue.enqueue(sample_jobs.add, 2, b=3, meta={{"team": "a"}})
        ours = rqjobs.enqueue(sample_jobs.ok, meta={{"team": "a"}})
        stock = rq.job.Job.fetch(ours.id, connection=connection)
        stock.meta["seen"] = True
        stock.save_meta()
        print(rqjobs.Job.fetch(ours.id, connection=connection).meta)
    """.format(url=environ["REDIS_URL"], name=process.name)
    stock = """if True:
        import redis, rq
        connection = redis.Redis.from_url({url!r})
        jobs = rq.Queue("stock", connection=connection).jobs
        rq.SimpleWorker(["stock"], connection=connection).work(burst=True, logging_level="CRITICAL")
        print([(job.get_status().value, job.return_value(), job.meta) for job in jobs])
    """.format(url=environ["REDIS_URL"])
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60
        )
        for program in (host, stock)
    ]
    assert outputs[0].stdout == "{'team': 'a', 'seen': True}\n", outputs[0].stderr
    assert outputs[1].stdout == f"{[('finished', 5, {'team': 'a'})] * 2}\n", outputs[1].stderr
