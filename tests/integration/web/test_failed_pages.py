"""The pages of failed jobs: their groups, and the jobs of one group."""

from __future__ import annotations

import html
import re
import time

import pytest
import rq
import sample_jobs
from browser_client import counted_round_trips
from rq.serializers import JSONSerializer

import rqjobs
from rqjobs import failed, failure_inbox
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


def make_group(redis, number, jobs=0):
    """A group as the scripts write it, the newer the larger its number."""
    fields = {"function": f"shop.f{number}", "error": "ValueError", "message": f"no {number}"}
    moments = {"first": number, "last": number, "total": 1}
    redis.hset(f"rqjobs:failure-group:g{number:04}", mapping=fields | moments)
    redis.zadd("rqjobs:failure-groups", {f"g{number:04}": number})


def shown_groups(page):
    return re.findall(r'<li data-key="(\w+)"', page)


def test_a_group_shows_its_counts_and_its_last_message(client, group):
    for path in ("/failed", "/live/failed"):
        page = client.get(path).text
        assert f'href="/failed/{group.id}"' in page
        assert "<bdi>ValueError</bdi>" in page and "in <bdi>sample_jobs.boom</bdi>" in page
        assert page.count("<dd>30</dd>") == 4  # failed now, 1 h, 24 h, 7 d
        assert HOSTILE not in page and "&lt;script&gt;" in page
    assert sum(group.hours) == 30 and group.hours[-1] + group.hours[-2] == 30


def test_groups_are_searched_and_paged_without_leaving_any_out(client, redis):
    for number in range(60):
        make_group(redis, number)
    seen, path = [], "/failed"
    while path:
        page = client.get(path).text
        seen += shown_groups(page)
        make_group(redis, 100 + len(seen))  # arrives while one reads
        make_group(redis, int(seen[-1][1:]) + 1)  # the one before fails again: it is at the top
        found = re.search(r'href="(/failed\?after=[^"]+)">older', page)
        path = html.unescape(found[1]) if found else ""
    assert seen == [f"g{number:04}" for number in range(59, -1, -1)]
    assert shown_groups(client.get("/failed?q=F5").text)[-1] == "g0005"
    assert shown_groups(client.get("/failed?q=no+17").text) == ["g0017"]
    redis.hset("rqjobs:failure-group:g0017", "message", "Ärger im LAGER")
    for text in ("Ärger", "im lager", "ÄRGER IM"):
        assert [group.id for group in failure_inbox.page(text).groups] == ["g0017"], text
    for text in ("ärger", "\ud800", "[", "%"):
        assert failure_inbox.page(text).groups == [], text
    assert "No open group contains" in client.get("/failed?q=nothing").text
    for after in ("x", "1:", ":", "9" * 400 + ":a", "nan:a", "1e5:a", "\0:\0"):
        assert client.get("/failed", query_string={"after": after}).status_code == 200


def test_an_ignored_group_is_folded_away_until_it_fails_again(client, redis, group):
    reply = client.post(f"/failed/{group.id}/ignore")
    assert (reply.status_code, reply.location) == (303, "/failed")
    assert group.id not in shown_groups(client.get("/failed").text)
    page = client.get("/failed?show=ignored").text
    assert shown_groups(page) == [group.id] and "by <bdi>admin</bdi>" in page
    assert failed.group(group.id).is_ignored
    rqjobs.enqueue(sample_jobs.boom, "again")
    run()
    found = failed.group(group.id)
    assert not found.is_ignored and found.has_come_back and found.ignored_by == "admin"
    page = client.get("/failed").text
    assert shown_groups(page) == [group.id] and ">came back</span>" in page
    client.post(f"/failed/{group.id}/ignore")
    assert failed.group(group.id).is_ignored
    client.post(f"/failed/{group.id}/watch")
    found = failed.group(group.id)
    assert (found.is_ignored, found.has_come_back, found.ignored_since) == (False, False, None)
    for action in ("ignore", "watch"):
        assert client.post(f"/failed/nothing/{action}").status_code == 404
    assert not redis.exists("rqjobs:failure-group:nothing")


def test_one_job_of_a_group_is_tried(client, redis, group):
    newest = redis.zrevrange(f"rqjobs:failure-group-jobs:{group.id}", 0, 0)[0].decode()
    reply = client.post(f"/failed/{group.id}/try")
    assert (reply.status_code, reply.location) == (303, f"/jobs/{newest}")
    assert redis.lrange("rq:queue:default", 0, -1) == [newest.encode()]
    assert failed.group(group.id).jobs == 29
    assert client.post("/failed/nothing/try").status_code == 404
    client.post(f"/failed/{group.id}/requeue")
    reply = client.post(f"/failed/{group.id}/try")
    assert "no job of this group can be requeued" in client.get(reply.location).text


def test_one_job_of_a_group_runs_again_with_another_argument(client, redis, group):
    page = client.get(f"/failed/{group.id}").text
    link = html.unescape(re.search(r'id="edit-one" href="([^"]+)"', page)[1])
    (newest,) = failure_inbox.jobs_of(group.id, "", 1).ids
    assert link == f"/enqueue?function=sample_jobs.boom&from={newest}"
    assert html.escape(f"{HOSTILE} 29") in client.get(link).text
    later = client.get(html.unescape(re.search(r'href="([^"]+)">older', page)[1])).text
    assert "edit-one" not in later, "the newest is on the first page"
    redis.hset(f"rqjobs:failure-group:{group.id}", "function", "gone.function")
    assert "edit-one" not in client.get(f"/failed/{group.id}").text


def test_the_jobs_of_a_group_are_paged_while_some_leave(client, redis, group):
    ids = [one.decode() for one in redis.zrevrange(f"rqjobs:failure-group-jobs:{group.id}", 0, -1)]
    key = f"rqjobs:failure-group-jobs:{group.id}"
    redis.zadd(key, dict.fromkeys(ids, 5))  # all failed in the same moment
    ids.sort(reverse=True)
    page = client.get(f"/failed/{group.id}").text
    assert [one for one in ids if f'href="/jobs/{one}"' in page] == ids[:25]
    assert "Requeue these" in page and "Delete these" in page and HOSTILE not in page
    client.post(f"/jobs/{ids[3]}/requeue")
    client.post(f"/jobs/{ids[24]}/requeue")
    older = html.unescape(re.search(r'href="([^"]+)">older', page)[1])
    page = client.get(older).text
    assert [one for one in ids if f'href="/jobs/{one}"' in page] == ids[25:] and ">newest" in page
    for after in ("0", "x", "9999999", "1:\0", "-5:a"):
        path = f"/failed/{group.id}"
        assert client.get(path, query_string={"after": after}).status_code == 200
    for name in ("nothing", "x" * 1000, "..%2f", "%00"):
        assert client.get(f"/failed/{name}").status_code == 404


def test_failed_jobs_without_a_group_are_found_in_steps(client, redis, monkeypatch):
    monkeypatch.setattr(failure_inbox, "UNGROUPED_SCAN_JOBS", 10)
    plain = rq.Queue("low", connection=redis, serializer=JSONSerializer)
    ids = []
    for number in range(140):
        job = plain.create_job("sample_jobs.boom", (number,), job_id=f"plain-{number}")
        job.set_status("failed")
        job.save()
        redis.zadd("rq:failed:low", {job.id: time.time() + number})
        ids.append(job.id)
    rqjobs.enqueue(sample_jobs.boom, "ours")
    run()
    page = client.get("/failed").text
    assert "140 failed jobs are in no group" in page
    seen, path = set(), "/failed/ungrouped"
    while path:
        page = client.get(path).text
        seen |= set(re.findall(r'href="/jobs/([\w-]+)"', page))
        found = re.search(r'href="([^"]+)">look further', page)
        path = html.unescape(found[1]) if found else ""
    assert seen == set(ids)
    for after in ("x", "0:a:b", f"{'9' * 30}::low", "5::\0", "5:a"):
        query = {"after": after}
        assert client.get("/failed/ungrouped", query_string=query).status_code == 200
    client.post("/failed/ungrouped/requeue")
    assert redis.llen("rq:queue:low") == 140 and redis.zcard("rq:failed:default") == 1
    client.post("/failed/ungrouped/delete", data={"sure": "yes"})
    assert redis.llen("rq:queue:low") == 140


def test_a_thousand_groups_are_read_in_few_round_trips(client, redis):
    for number in range(1001):
        make_group(redis, number)
    with counted_round_trips() as trips:
        page = client.get("/failed").text
    assert trips.number <= 8 and len(shown_groups(page)) == 25
    assert "1,001" in page


def test_nothing_is_deleted_without_a_tick(client, redis, group):
    reply = client.post(f"/failed/{group.id}/delete")
    assert reply.status_code == 422 and "tick the box" in reply.text
    assert '<details class="confirm" open>' in reply.text
    assert redis.zcard("rq:failed:default") == 30


@pytest.mark.parametrize("action", ["requeue", "delete"])
def test_a_group_is_requeued_or_deleted_in_steps(client, redis, group, action):
    other = rqjobs.enqueue(sample_jobs.mark_and_boom, "marks")
    run()
    reply = client.post(f"/failed/{group.id}/{action}", data={"sure": "yes"})
    assert (reply.status_code, reply.location) == (303, "/failed")
    done = {"requeue": "back in their queues", "delete": "deleted"}[action]
    note = f"30 jobs of {group.function} are {done}."
    assert note in client.get(reply.location).text
    assert redis.zrange("rq:failed:default", 0, -1) == [other.id.encode()]
    assert redis.llen("rq:queue:default") == (30 if action == "requeue" else 0)
    assert "No job of this group is failed now." in client.get(f"/failed/{group.id}").text


@pytest.mark.parametrize("action", ["requeue", "delete"])
def test_a_large_group_is_changed_by_a_job(client, redis, group, action, monkeypatch):
    monkeypatch.setattr(view, "GROUP_MAX_JOBS", 20)
    other = rqjobs.enqueue(sample_jobs.mark_and_boom, "marks")
    run()
    reply = client.post(f"/failed/{group.id}/{action}", data={"sure": "yes"})
    assert "for all 30 jobs" in client.get(reply.location).text
    rqjobs.Worker(["high"]).work(burst=True, logging_level="CRITICAL")
    assert redis.zrange("rq:failed:default", 0, -1) == [other.id.encode()]
    assert redis.llen("rq:queue:default") == (30 if action == "requeue" else 0)


def test_strangers_and_other_sites_change_nothing(client, anonymous, redis, group):
    for action in ("requeue", "delete", "try", "ignore", "watch"):
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
