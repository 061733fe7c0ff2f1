"""The page of a job in each status: its buttons and their actions; and damaged or hostile jobs."""

from __future__ import annotations

import re

import pytest
import sample_jobs
from browser_client import ESCAPED, HOSTILE, harmless, run_all
from rq.results import Result

import rqjobs
from rqjobs.jobs import Job


def state_of(client, job_id):
    reply = client.get(f"/jobs/{job_id}/state")
    assert reply.status_code == 200
    assert reply.json["html"].strip() in client.get(f"/jobs/{job_id}").text
    return reply.json


def buttons(html):
    return re.findall(r'action="/jobs/[^"]+/(\w+)"', html)


def job_in(status, redis):
    if status == "scheduled":
        return rqjobs.enqueue_in(500, sample_jobs.say, "hello")
    if status == "deferred":
        return rqjobs.enqueue(sample_jobs.say, "hello", depends_on=rqjobs.enqueue(sample_jobs.ok))
    job = rqjobs.enqueue(
        *(sample_jobs.boom, "bang")
        if status in ("failed", "stopped")
        else (sample_jobs.say, "hello")
    )
    if status == "canceled":
        job.cancel()
    elif status not in ("queued", "started"):
        run_all(redis)
    if status in ("stopped", "started"):
        redis.hset(job.key, "status", status)
    return job


@pytest.mark.parametrize(
    "status, actions",
    [
        ("queued", ["cancel"]),
        ("scheduled", ["cancel"]),
        ("deferred", ["cancel"]),
        ("started", ["cancel", "stop"]),
        ("finished", ["again", "delete"]),
        ("failed", ["requeue", "delete"]),
        ("stopped", ["requeue", "delete"]),
        ("canceled", ["again", "delete"]),
    ],
)
def test_each_status_has_its_page_and_buttons(client, redis, status, actions):
    job = job_in(status, redis)
    state = state_of(client, job.id)
    assert state["status"] == status and buttons(state["html"]) == actions
    assert state["ended"] == (status in ("finished", "failed", "stopped", "canceled"))
    page = client.get(f"/jobs/{job.id}").text
    assert job.id in page and "default" in page and ("<noscript>" in page) != state["ended"]
    if status == "finished":
        assert "<h2>Result</h2>" in page and "hello" in page and "Took" in page
    if status == "failed":
        assert "ValueError: bang" in page
    if status == "deferred":
        assert "Depends on" in page


@pytest.mark.parametrize(
    "status",
    ["queued", "scheduled", "deferred", "started", "finished", "failed", "stopped", "canceled"],
)
@pytest.mark.parametrize("action", ["cancel", "stop", "requeue", "again", "delete"])
def test_an_action_works_only_in_its_statuses(client, redis, status, action):
    job = job_in(status, redis)
    offered = action in buttons(state_of(client, job.id)["html"])
    count = len(list(redis.scan_iter("rq:job:*")))
    if action == "stop":
        redis.hset(job.key, "worker_name", "somebody")
    reply = client.post(f"/jobs/{job.id}/{action}")
    assert reply.status_code == 303
    note = re.search(r'class="note" role="status">([^<]*)', client.get(reply.location).text)[1]
    assert 'class="note"' not in client.get(reply.location).text, "told once"
    jobs = [key for key in redis.scan_iter("rq:job:*") if redis.type(key) == b"hash"]
    if not offered:
        assert note.startswith("Nothing was done")
        assert redis.hget(job.key, "status").decode() == status
    elif action == "delete":
        assert not redis.exists(job.key, f"rq:results:{job.id}") and reply.location == "/"
        assert client.get(f"/jobs/{job.id}").status_code == 404
    elif action == "again":
        assert len(jobs) == count + 1 and reply.location != f"/jobs/{job.id}"
        assert Job.fetch(reply.location.rpartition("/")[2], connection=redis).args == ["hello"]
    else:
        expected = {"cancel": "canceled", "requeue": "queued", "stop": "started"}[action]
        assert redis.hget(job.key, "status").decode() == expected


def test_a_blocked_job_names_the_parent_and_the_remedy(client, redis):
    parent = rqjobs.enqueue(sample_jobs.boom, "bang")
    job = rqjobs.enqueue(sample_jobs.say, "after", depends_on=parent)
    assert "This job waits for" not in client.get(f"/jobs/{job.id}").text
    run_all(redis)
    page = client.get(f"/jobs/{job.id}").text
    link = f'<a href="/jobs/{parent.id}">{parent.id}</a>'
    assert f"This job waits for {link}, which has failed: requeue that one" in page
    assert f'<span class="badge failed">failed</span> <a href="/jobs/{parent.id}">' in page
    assert f'<a href="/jobs/{job.id}">' in client.get(f"/jobs/{parent.id}").text
    parent.delete()
    assert f"This job waits for {link}, which is gone" in client.get(f"/jobs/{job.id}").text


def test_stop_ends_a_running_job(client, redis, worker, eventually):
    worker("default")
    job = rqjobs.enqueue(sample_jobs.hang, "gate")
    eventually(lambda: redis.exists("gate:reached"), what="the job")
    state = state_of(client, job.id)
    assert state["status"] == "started" and "Running since" in state["html"]
    client.post(f"/jobs/{job.id}/stop")
    eventually(
        lambda: client.get(f"/jobs/{job.id}/state").json["status"] == "stopped", what="the stop"
    )
    html = state_of(client, job.id)["html"]
    assert 'Attempt 1 <span class="badge stopped">stopped</span>' in html
    assert "Reason</bdi>" in html and "Whole traceback" not in html, "there is no traceback"


def test_progress_crashes_and_counts_are_shown(client, redis):
    job = rqjobs.enqueue(
        sample_jobs.say, "hello", retry=rqjobs.Retry(max=4), meta={"done": 3, "total": 12}
    )
    redis.hset(job.key, "rqjobs_crashes", "1700000000,1700000001")
    html = state_of(client, job.id)["html"]
    assert (
        '<progress value="3" max="12"' in html
        and "died 2 times" in html
        and "<dt>Retries left</dt><dd>4" in html
    )
    for done, total in (("3", 12), (True, 2), (5, 0), (9, 1)):
        job.meta = {"done": done, "total": total}
        job.save_meta()
        assert "<progress" not in state_of(client, job.id)["html"]


def test_missing_jobs_and_pages_are_a_404(client):
    for path in (
        "/jobs/gone",
        "/jobs/gone/state",
        "/jobs/%00",
        "/jobs/a%20b",
        "/jobs/" + "x" * 300,
        "/nowhere",
    ):
        reply = client.get(path)
        assert reply.status_code == 404 and "Not found" in reply.text
    assert client.post("/jobs/gone/delete").status_code == 404
    assert client.post("/jobs/gone/explode").status_code == 404


@pytest.mark.parametrize(
    "field, value",
    [
        ("created_at", "yesterday"),
        ("status", "<b>odd</b>"),
        ("origin", b"\xff\xfe"),
        ("timeout", "soon"),
    ],
)
def test_an_unreadable_job_is_shown_and_can_be_deleted(client, redis, field, value):
    job = job_in("failed", redis)
    redis.hset(job.key, field, value)
    page = client.get(f"/jobs/{job.id}")
    assert (
        page.status_code == 200
        and "cannot be read" in page.text
        and buttons(page.text) == ["delete"]
    )
    harmless(page.text)
    assert job.id in client.get("/jobs?state=failed").text
    assert client.get("/").status_code == 200
    assert "Nothing was done" in client.get(client.post(f"/jobs/{job.id}/requeue").location).text
    client.post(f"/jobs/{job.id}/delete")
    assert not redis.exists(job.key) and not redis.zcard("rq:failed:default")


@pytest.mark.parametrize(
    "field, value",
    [
        ("description", b"\xff\xfe"),
        ("dependency_ids", "5"),
        ("dependency_ids", '["", null, 3]'),
        ("dependency_ids", '{"a": 1}'),
        ("meta", "[" * 5000),
        ("meta", "[1, 2]"),
        ("meta", "null"),
        ("exc_info", b"\xff"),
        ("data", "[1]"),
        ("webhooks", "{"),
        ("origin", ""),
        ("rqjobs_crashes", ","),
        ("created_at", "9999-12-31T23:59:59.999999Z"),
        ("started_at", "0001-01-01T00:00:00.0Z"),
    ],
)
def test_malformed_fields_break_no_page(client, redis, field, value):
    job = job_in("failed", redis)
    redis.hset(job.key, field, value)
    redis.zadd("rq:scheduled:default", {job.id: "-inf"})
    for path in (
        "/",
        "/failed",
        f"/jobs/{job.id}",
        f"/jobs/{job.id}/state",
        f"/rq/0/view/job/{job.id}",
    ):
        assert client.get(path).status_code == 200, path


@pytest.mark.parametrize(
    "payload", [{"type": 99}, {}, {"type": 2, "exc_string": "x"}, {"type": 1, "return_value": "x"}]
)
def test_malformed_results_break_no_page(client, redis, payload):
    job = job_in("finished", redis)
    redis.xadd(Result.get_key(job.id), payload or {"x": "y"})
    assert "cannot be read" in client.get(f"/jobs/{job.id}").text


def test_a_job_key_of_another_type_is_unreadable(client, redis):
    redis.set("rq:job:text", "no hash")
    assert "cannot be read" in client.get("/jobs/text").text


def test_pickles_are_shown_as_unreadable(client, redis):
    import pickle
    import zlib

    class Bomb:
        def __reduce__(self):
            return exec, ("import rqjobs; rqjobs.exploded = True",)

    job = job_in("finished", redis)
    bomb = pickle.dumps(Bomb())
    redis.hset(job.key, mapping={"data": zlib.compress(bomb), "meta": bomb, "result": bomb})
    redis.delete(Result.get_key(job.id))
    redis.xadd(
        Result.get_key(job.id), {"type": 1, "return_value": __import__("base64").b64encode(bomb)}
    )
    for path in (
        "/",
        f"/jobs/{job.id}",
        f"/jobs/{job.id}/state",
        "/rq/",
        f"/rq/0/view/job/{job.id}",
        f"/rq/0/data/job/{job.id}.json",
    ):
        assert client.get(path).status_code == 200, path
    assert "cannot be read" in client.get(f"/jobs/{job.id}").text
    assert not hasattr(rqjobs, "exploded")


def test_all_data_of_a_job_is_escaped(client, redis):
    def hostile(function, *args):
        return rqjobs.enqueue(function, *args, description=HOSTILE, meta={HOSTILE: [HOSTILE]})

    jobs = [
        hostile(sample_jobs.say, HOSTILE),
        hostile(sample_jobs.boom, HOSTILE),
        hostile(sample_jobs.ok, {HOSTILE: HOSTILE}),
    ]
    run_all(redis)
    waiting = hostile(sample_jobs.say, HOSTILE)
    odd = hostile(sample_jobs.say, HOSTILE)
    odd.func_name = HOSTILE
    odd.args, odd.kwargs = [HOSTILE], {HOSTILE: HOSTILE}
    odd.save()
    redis.hset(
        odd.key,
        mapping={"worker_name": HOSTILE, "dependency_ids": '["<img src=x>"]', "origin": HOSTILE},
    )
    redis.sadd("rq:queues", f"rq:queue:{HOSTILE}")
    redis.rpush(f"rq:queue:{HOSTILE}", odd.id)
    redis.sadd("rq:workers", f"rq:worker:{HOSTILE}")
    redis.hset(
        f"rq:worker:{HOSTILE}",
        mapping={
            "state": HOSTILE,
            "queues": HOSTILE,
            "current_job": HOSTILE,
            "hostname": HOSTILE,
            "pid": HOSTILE,
        },
    )
    for path in (
        "/",
        "/live",
        "/jobs?state=failed",
        "/workers",
        *(f"/jobs/{job.id}" for job in [*jobs, waiting, odd]),
    ):
        reply = client.get(path)
        assert reply.status_code == 200 and ESCAPED in reply.text, path
        harmless(reply.text)
    for job in [*jobs, waiting, odd]:
        harmless(state_of(client, job.id)["html"])


def test_big_results_are_cut(client, redis):
    job = rqjobs.enqueue(sample_jobs.say, "x" * 200_000)
    run_all(redis)
    page = client.get(f"/jobs/{job.id}").text
    assert "180,000 more characters" in page and len(page) < 100_000


@pytest.mark.parametrize("field", ["origin", "worker_name", "created_at", "status"])
def test_long_fields_are_cut(client, redis, field):
    job = rqjobs.enqueue(sample_jobs.say, "x")
    redis.hset(job.key, field, "x" * 1_000_000)
    redis.zadd("rq:failed:default", {job.id: 1})
    for path in (
        "/",
        f"/jobs/{job.id}",
        f"/jobs/{job.id}/state",
        "/failed",
        f"/rq/0/data/job/{job.id}.json",
        "/rq/0/data/jobs/default/failed/8/asc/1.json",
    ):
        reply = client.get(path)
        assert reply.status_code == 200 and len(reply.data) < 100_000, path


def test_an_action_returns_to_the_list_of_its_button(client, redis):
    delayed = rqjobs.enqueue_in(500, sample_jobs.ok)
    assert client.post(
        f"/jobs/{delayed.id}/cancel", data={"back": "jobs", "view": "state=scheduled&next=//evil"}
    ).location == ("/jobs?state=scheduled")
    assert (
        client.post(f"/jobs/{delayed.id}/cancel", data={"back": "//evil.example"}).location
        == f"/jobs/{delayed.id}"
    )


@pytest.mark.parametrize("length", [201, 255])
def test_long_ids_have_a_page(client, redis, length):
    job = rqjobs.enqueue(sample_jobs.ok, job_id="i" * length)
    assert client.get(f"/jobs/{job.id}").status_code == 200
    assert client.post(f"/jobs/{job.id}/cancel").location == f"/jobs/{job.id}"
    assert client.get("/jobs/" + "i" * 256).status_code == 404


def test_requeue_is_one_atomic_step(client, redis):
    """RQ requeues in three steps: a crash between them lost the job."""
    job = job_in("failed", redis)
    redis.hset(job.key, "rqjobs_crashes", "1")
    client.post(f"/jobs/{job.id}/requeue")
    assert (
        not redis.hexists(job.key, "rqjobs_crashes")
        and redis.zscore("rq:failed:default", job.id) is None
    )
