"""Enqueues by Idempotency-Key: the connection is cut before and after each command of a request."""

from __future__ import annotations

import tempfile

import pytest
import sample_jobs
from api_client import ApiClient
from proxy import Fault, Proxy

import rqjobs
from rqjobs import config

KEY = {"Idempotency-Key": "order-42"}
MAX_COMMANDS = 100
INDEX = {"function": "sample_jobs.index", "args": ["a", 2]}
UNIQUE = {"function": "sample_jobs.unique_args", "args": [1]}


def charge(**options):
    rqjobs.enqueue(sample_jobs.charge, 1, 9.5, **options)


CASES = {  # the call, what is enqueued before, and the number of jobs at the end
    "plain": ({"function": "sample_jobs.ok"}, lambda: None, 1),
    "with an id": ({"function": "sample_jobs.ok", "job_id": "mine"}, lambda: None, 1),
    "delayed": ({"function": "sample_jobs.ok", "in": 60}, lambda: None, 1),
    "unique": (UNIQUE, lambda: None, 1),
    "its key is taken": (UNIQUE, lambda: rqjobs.enqueue(sample_jobs.unique_args, 1), 1),
    "it replaces another": (
        {"function": "sample_jobs.charge", "args": [1], "on_conflict": "replace"},
        charge,
        1,
    ),
    "debounced": (INDEX, lambda: None, 1),
    "it replaces a debounced one": (INDEX, lambda: rqjobs.enqueue(sample_jobs.index, "a", 1), 1),
    "behind another": (
        {"function": "sample_jobs.ok", "depends_on": ["parent"]},
        lambda: charge(job_id="parent"),
        2,
    ),
}


@pytest.fixture
def proxy(redis):
    with tempfile.TemporaryDirectory(prefix="rqjobs-") as folder:
        proxy = Proxy(f"{folder}/proxy", config.current().redis_url.removeprefix("unix://"))
        yield proxy
        proxy.close()


@pytest.fixture
def api(app, proxy):
    config.use(redis_url=proxy.url)
    yield ApiClient(app.test_client())
    rqjobs.connection.client().close()


def post_with_cuts(api, proxy, redis, path, body, prepare, after):
    """Send a request again after each possible cut; yields the first and the second reply."""
    for number in range(MAX_COMMANDS):
        redis.flushdb()
        direct = config.current()
        config.use(redis_url=f"unix://{proxy.upstream}")
        prepare()
        config.use(direct)
        fault = proxy.arm(Fault(number, "cut all", after))
        first = api.post(path, body, headers=KEY)
        proxy.disarm()
        # Only the connect is tried again within a request.
        assert first.status_code in ((503, 201, 200) if fault.hit else (201, 200)), fault.seen
        yield first, api.post(path, body, headers=KEY)
        if not fault.hit:
            break
    assert {"EVALSHA ?", "EXEC"} <= set(fault.seen), fault.seen


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_request_sent_again_gives_the_job_that_exists(api, proxy, redis, case, after):
    """The id of another job was noted in a step of its own. After a cut before that step the
    second request gave an id of which there was no job.
    """
    call, prepare, number_of_jobs = CASES[case]
    statuses = []
    for first, again in post_with_cuts(api, proxy, redis, "/jobs", call, prepare, after):
        assert again.status_code in (200, 201), again.json
        assert first.status_code == 503 or again.json["id"] == first.json["id"]
        jobs = [key.decode() for key in redis.keys("rq:job:*") if b"dependen" not in key]
        assert f"rq:job:{again.json['id']}" in jobs, jobs
        assert len(jobs) == number_of_jobs
        assert api.get(f"/jobs/{again.json['id']}").json["status"] == again.json["status"]
        third = api.post("/jobs", call, headers=KEY)
        assert third.json == {**again.json, "created": False}
        statuses.append(first.status_code)
    assert statuses.count(503) > 4 and statuses[-1] < 300, statuses


@pytest.mark.parametrize("after", [False, True])
def test_a_batch_sent_again_gives_the_jobs_that_exist(api, proxy, redis, after):
    body = {
        "jobs": [
            {"function": "sample_jobs.ok", "job_id": "first"},
            UNIQUE,
            {"function": "sample_jobs.ok", "depends_on": ["first"], "in": 60},
        ]
    }
    own = []

    def prepare():
        own[:] = [rqjobs.enqueue(sample_jobs.unique_args, 1).id]

    for _, again in post_with_cuts(api, proxy, redis, "/jobs/batch", body, prepare, after):
        first, unique, last = again.json["jobs"]
        assert (first["id"], unique["id"], unique["created"]) == ("first", *own, False)
        assert last["status"] == "deferred"
        assert redis.lrange("rq:queue:default", 0, -1) in (
            [own[0].encode(), b"first"],
            [b"first", own[0].encode()],
        )
        assert redis.zrange("rq:deferred:default", 0, -1) == [last["id"].encode()]
