"""The pages of failed jobs: their groups, and the jobs of one group."""

from __future__ import annotations

import pytest
import sample_jobs

import rqjobs
from rqjobs import failed
from rqjobs.web.views import failed as view

HOSTILE = "<script>alert(1)</script>"


def run(*queues):
    rqjobs.Worker(list(queues or ("default",))).work(burst=True, logging_level="CRITICAL")


@pytest.fixture
def group(redis):
    for number in range(30):
        rqjobs.enqueue(sample_jobs.boom, f"{HOSTILE} {number}")
    run()
    (found,) = failed.groups()
    return found


def test_the_groups_come_first_with_their_counts(client, group):
    page = client.get("/failed").text
    link = f'href="/failed/{group.id}"'
    assert page.index(link) < page.index('href="/jobs/')
    assert "<bdi>sample_jobs.boom</bdi> · <bdi>ValueError</bdi>" in page
    assert page.count('<td class="number">30</td>') == 4  # jobs, 1 h, 24 h, 7 d
    assert HOSTILE not in page and "&lt;script&gt;" in page
    for path in ("/failed?page=2", "/failed?queue=default"):
        assert link not in client.get(path).text


def test_the_page_of_a_group_lists_its_jobs_in_parts(client, group):
    pages = [client.get(f"/failed/{group.id}?page={number}").text for number in (1, 2)]
    assert [page.count('/requeue"><button') + page.count('id="requeue-') for page in pages] == [
        25,
        5,
    ]
    assert "Requeue these" in pages[0] and "Delete these" in pages[0] and "1 of 2" in pages[0]
    assert HOSTILE not in pages[0]
    for number in ("0", "x", "9999999"):
        assert client.get(f"/failed/{group.id}?page={number}").status_code == 200
    for name in ("nothing", "x" * 1000, "..%2f", "%00"):
        assert client.get(f"/failed/{name}").status_code == 404


@pytest.mark.parametrize("action", ["requeue", "delete"])
def test_a_group_is_requeued_or_deleted_in_steps(client, redis, group, action, monkeypatch):
    monkeypatch.setattr(view, "GROUP_MAX_JOBS", 20)
    other = rqjobs.enqueue(sample_jobs.mark_and_boom, "marks")
    run()
    assert f"{action.title()} the oldest 20" in client.get(f"/failed/{group.id}").text
    reply = client.post(f"/failed/{group.id}/{action}")
    assert (reply.status_code, reply.location) == (303, f"/failed/{group.id}")
    page = client.get(reply.location).text
    assert "20 jobs are" in page and "10 are left." in page
    reply = client.post(f"/failed/{group.id}/{action}")
    assert reply.location == "/failed"
    assert redis.zrange("rq:failed:default", 0, -1) == [other.id.encode()]
    assert redis.llen("rq:queue:default") == (30 if action == "requeue" else 0)
    assert "No job of this group is failed now." in client.get(f"/failed/{group.id}").text


def test_strangers_and_other_sites_change_nothing(client, anonymous, redis, group):
    for action in ("requeue", "delete"):
        path = f"/failed/{group.id}/{action}"
        assert anonymous.post(path).status_code in (303, 401, 403)
        headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
        assert client.post(path, headers=headers).status_code == 403
        assert client.get(path).status_code == 405
    assert anonymous.get(f"/failed/{group.id}").status_code in (303, 401)
    assert redis.zcard("rq:failed:default") == 30


def test_a_job_shows_its_group_and_its_on_failed(client, redis):
    job = rqjobs.enqueue(sample_jobs.boom_and_note)
    page = client.get(f"/jobs/{job.id}").text
    assert "Called if it fails" in page and "sample_jobs.note_failure" in page
    run()
    (group,) = failed.groups()
    assert f'href="/failed/{group.id}"' in client.get(f"/jobs/{job.id}").text


def test_odd_groups_are_shown(client, redis):
    redis.zadd("rqjobs:failure-groups", {"a": 1, "b": 2, b"\xff": 3, "c": 4})
    redis.hset("rqjobs:failure-group:a", mapping={"function": HOSTILE, "last": "x", "m1": "y"})
    redis.set("rqjobs:failure-group:b", "text")
    redis.set("rqjobs:failure-group-jobs:a", "text")
    page = client.get("/failed")
    assert page.status_code == 200 and HOSTILE not in page.text
    assert client.get("/failed/a").status_code == 200
    assert client.get("/failed/b").status_code == 404
    assert client.post("/failed/a/requeue").status_code == 303
