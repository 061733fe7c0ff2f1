"""The pages of queues: all of them, and one with its jobs in order; pause and empty."""

from __future__ import annotations

import html
import re
from types import SimpleNamespace

import pytest
import sample_jobs
from browser_client import ESCAPED, HOSTILE, counted_round_trips, harmless

import rqjobs
from rqjobs.broker import counters, keys, scripts, transitions
from rqjobs.maintenance import audit
from rqjobs.web.views import queues as view


def shown(page):
    return re.findall(r'<li data-key="([^"]+)"', page)


def rows(page):
    return re.findall(r'<tr data-key="([^"]+)"', page)


def link(page, text):
    return html.unescape(re.search(rf'href="([^"]+)">{text}<', page)[1])


def test_thousands_of_queues_are_searched_and_paged(client, redis):
    redis.sadd("rq:queues", *(f"rq:queue:c{number:04}" for number in range(5000)))
    rqjobs.queue("c0007").enqueue(sample_jobs.ok)
    with counted_round_trips() as trips:
        page = client.get("/queues").text
    assert trips.number <= 8 and "5,003 queues" in page
    assert shown(page) == [f"c{number:04}" for number in range(50)]
    assert "no worker" in page, "a job waits in c0007"
    assert shown(client.get(link(page, "next")).text)[0] == "c0050"
    page = client.get("/queues?q=C49").text
    assert len(shown(page)) == 50 and shown(client.get(link(page, "next")).text)[-1] == "c4999"
    assert shown(client.get("/live/queues?q=c0007").text) == ["c0007"]
    assert "No queue has this" in client.get("/queues?q=nowhere").text


def test_the_queues_are_sorted_by_a_link(client, redis, monkeypatch):
    monkeypatch.setattr(view, "QUEUES_PER_PAGE", 3)
    old = rqjobs.queue("old").enqueue(sample_jobs.ok)
    redis.hset(old.key, "enqueued_at", "2020-01-01T00:00:00.000000Z")
    for name, number in (("few", 1), ("many", 3), ("some", 2)):
        for _ in range(number):
            rqjobs.queue(name).enqueue(sample_jobs.ok)
    by_name = ["default", "few", "high", "low", "many", "old", "some"]
    page = client.get("/queues").text
    assert shown(page) == by_name[:3] and 'href="/queues" aria-current="true">By name<' in page
    with counted_round_trips() as trips:
        page = client.get(link(page, "Most jobs first")).text
    assert shown(page) == ["many", "some", "few"] and trips.number <= 8
    assert 'aria-current="true">Most jobs first<' in page
    page = client.get(link(page, "next")).text
    assert shown(page) == ["old", "default", "high"]
    live = html.unescape(re.search(r'data-live="([^"]+)"', page)[1])
    assert shown(client.get(live).text) == shown(page)
    assert shown(client.get(link(page, "next")).text) == ["low"]
    assert shown(client.get(link(page, "first")).text) == ["many", "some", "few"]
    page = client.get("/queues?q=o&sort=oldest").text
    assert shown(page) == ["old", "some", "low"]
    assert 'name="sort" value="oldest"' in page, "a search keeps the order"
    for query in ("sort=%00", "sort=waiting&page=99", "page=-1", "page=x", "sort=oldest&q=nowhere"):
        assert client.get(f"/queues?{query}").status_code == 200


def test_rates_are_numbers_for_people(client, redis, monkeypatch):
    """A rate of more than a thousand was shown as 1.01e+03.

    With another clock than Redis's the page had no rates.
    """
    monkeypatch.setattr(view, "time", SimpleNamespace(time=lambda: 1.0), raising=False)
    minute = counters.minute_of(scripts.redis_time(redis))
    redis.hset(keys.counts(minute - 1), mapping={"enqueued:default": 60_000})
    redis.hset(keys.counts(minute - 2), mapping={"finished:default": 20})
    for path in ("/queues", "/queues/default"):
        page = client.get(path).text
        assert re.search(r">in a minute</dt><dd>1[01],\d{3}<", page), path
        assert re.search(r">out a minute</dt><dd>[34]\.\d<", page), path


def test_a_queue_shows_its_jobs_in_the_order_in_which_they_run(client, redis):
    jobs = rqjobs.enqueue_many([(sample_jobs.ok, number) for number in range(120)])
    ids = [job.id for job in jobs]
    with counted_round_trips() as trips:
        page = client.get("/queues/default").text
    assert trips.number <= 8 and rows(page) == ids[:50]
    assert re.search(r">waiting</dt><dd>120<", page) and "No worker serves it now" in page
    redis.ltrim("rq:queue:default", 30, -1)  # they run meanwhile
    page = client.get(link(page, "next")).text
    assert rows(page) == ids[50:100], "nothing is left out"
    first = rqjobs.queue("default").enqueue(sample_jobs.ok, at_front=True)
    assert rows(client.get(link(page, "next")).text) == ids[100:]
    assert rows(client.get(link(page, "front of the queue")).text)[0] == first.id
    for query in ("position=x", "position=-5", "position=99999999999999", "after=x&position=3"):
        assert client.get(f"/queues/default?{query}").status_code == 200
    for name in ("nothing", "x" * 3000, "%00", "a/b"):
        assert client.get(f"/queues/{name}").status_code == 404


def test_a_queue_shows_the_limits_for_which_its_jobs_wait(client, redis):
    for _ in range(3):
        rqjobs.enqueue(sample_jobs.one_for_each_name, "ada")
    rqjobs.pause(function="sample_jobs.ok")
    rqjobs.enqueue(sample_jobs.ok)
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    page = client.get("/queues/default").text
    assert "the paused function <bdi>sample_jobs.ok</bdi>" in page


def test_a_queue_is_paused_and_resumed_on_its_page(client, redis):
    rqjobs.enqueue(sample_jobs.ok)
    form = {"kind": "queue", "name": "default", "back": "queue"}
    assert client.post("/pauses/pause", data=form).location == "/queues/default"
    assert ">paused</span>" in client.get("/queues/default").text
    assert ">paused</span>" in client.get("/queues").text
    assert client.post("/pauses/resume", data=form | {"back": "queues"}).location == "/queues"


def test_a_queue_is_emptied_in_steps_with_all_that_belongs_to_its_jobs(client, redis):
    for number in range(450):
        rqjobs.enqueue(sample_jobs.ok, number)
    unique = rqjobs.enqueue(sample_jobs.unique_args, 1)
    parent = rqjobs.enqueue(sample_jobs.ok)
    child = rqjobs.enqueue(sample_jobs.ok, depends_on=parent)
    rqjobs.enqueue_in(60, sample_jobs.ok)
    other = rqjobs.queue("low").enqueue(sample_jobs.ok)
    redis.rpush("rq:queue:default", "gone", other.id)
    assert client.post("/queues/default/empty").status_code == 422
    assert "tick the box" in client.post("/queues/default/empty", data={"sure": "no"}).text
    assert redis.llen("rq:queue:default") == 454
    steps = transitions.empty_queue(redis, "default")
    assert next(steps) == 200
    late = rqjobs.enqueue(sample_jobs.ok, "late")
    reply = client.post("/queues/low/empty", data={"sure": "yes"})
    assert "1 waiting job of low is deleted" in client.get(reply.location).text
    assert list(steps) == [200, 52]
    assert redis.lrange("rq:queue:default", 0, -1) == [late.id.encode()]
    assert redis.keys("rq:job:*") and not redis.exists(unique.key, parent.key)
    assert rqjobs.enqueue(sample_jobs.unique_args, 1).id != unique.id, "its key is free"
    assert child.get_status() == "deferred" and redis.zcard("rq:scheduled:default") == 1
    assert client.post("/queues/nothing/empty", data={"sure": "yes"}).status_code == 404


def test_a_job_that_runs_or_waits_elsewhere_loses_only_its_entry(redis):
    delayed = rqjobs.enqueue_in(60, sample_jobs.ok)
    ended = rqjobs.enqueue(sample_jobs.ok)
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    redis.rpush("rq:queue:default", delayed.id, ended.id)
    redis.hset("rq:job:odd", "status", "queued")
    redis.rpush("rq:queue:default", "odd")
    assert sum(transitions.empty_queue(redis, "default")) == 1
    assert delayed.get_status() == "scheduled" and ended.get_status() == "finished"
    assert not redis.exists("rq:queue:default", "rq:job:odd")
    assert not audit.audit(redis, settle=0).breaches
    redis.set("rq:queue:default", "text")
    assert list(transitions.empty_queue(redis, "default")) == []


def test_the_next_job_of_a_limit_is_woken_when_the_woken_one_is_deleted(redis):
    jobs = [rqjobs.enqueue(sample_jobs.one_for_each_name, "ada") for _ in range(2)]
    key = redis.hget(jobs[0].key, "rqjobs_limit").decode().split(" ", 3)[3]
    redis.hset(jobs[0].key, "rqjobs_woken", 1)
    second = jobs[1]
    redis.lrem("rq:queue:default", 0, second.id)
    redis.hset(second.key, mapping={"status": "deferred", "rqjobs_waits_for": key})
    redis.zadd("rq:deferred:default", {second.id: 1})
    redis.rpush(f"rqjobs:waiting:{key}", second.id)
    redis.sadd("rqjobs:waiting-keys", key)
    assert sum(transitions.empty_queue(redis, "default")) == 1
    assert redis.lrange("rq:queue:default", 0, -1) == [second.id.encode()]
    assert second.get_status() == "queued"


def test_the_click_ends_within_the_time_of_a_web_server(client, redis, monkeypatch):
    monkeypatch.setattr(view, "EMPTY_SECONDS", 0.0)
    rqjobs.enqueue_many([(sample_jobs.ok, number) for number in range(250)])
    reply = client.post("/queues/default/empty", data={"sure": "yes"})
    page = client.get(reply.location).text
    assert "200 waiting jobs of default are deleted. 50 jobs are left." in page


def test_hostile_queues_are_shown(client, redis):
    redis.sadd("rq:queues", "rq:queue:" + HOSTILE, b"rq:queue:\xff\x00", "rq:queue:../x?y#z")
    redis.rpush("rq:queue:" + HOSTILE, HOSTILE, b"\xff", "x" * 100_000)
    redis.set("rq:queue:text", "text")
    redis.sadd("rq:queues", "rq:queue:text")
    page = client.get("/queues").text
    harmless(page)
    assert ESCAPED in page
    for found in re.findall(r'href="(/queues/[^"]+)"', page):
        reply = client.get(html.unescape(found))
        assert reply.status_code in (200, 404)
        harmless(reply.text)
    assert client.get("/queues/text").status_code == 200


def test_strangers_and_other_sites_empty_nothing(client, anonymous, redis):
    rqjobs.enqueue(sample_jobs.ok)
    sure = {"sure": "yes"}
    assert anonymous.post("/queues/default/empty", data=sure).status_code in (303, 401, 403)
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    assert client.post("/queues/default/empty", data=sure, headers=headers).status_code == 403
    assert redis.llen("rq:queue:default") == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.5, ""), (5, "5 s"), (61, "1 min 1 s"), (3600, "1 h"), (90_000, "1 d 1 h")],
)
def test_a_span_has_two_units(seconds, text):
    assert view.span(seconds) == text
