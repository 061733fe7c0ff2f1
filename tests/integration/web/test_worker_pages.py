"""The pages of workers: all of them, and one; quiet, resume and stop."""

from __future__ import annotations

import re
import time

import sample_jobs
from browser_client import ESCAPED, HOSTILE, counted_round_trips, harmless

import rqjobs
from rqjobs import stats
from rqjobs.broker import leases


def make_worker(redis, name, **fields):
    """A live worker of ours as its record and its heartbeat show it."""
    redis.sadd("rq:workers", f"rq:worker:{name}")
    record = {
        "state": "idle",
        "queues": "default,low",
        "hostname": "host-1",
        "pid": 41,
        "version": "2.12.0",
        "python_version": "3.11.2 (main)",
        "last_heartbeat": "2020-01-01T00:00:00.000000Z",
        "successful_job_count": 7,
    }
    redis.hset(f"rq:worker:{name}", mapping=record | fields)
    facts = {"rqjobs": "9.9.9", "memory": 50_000_000, "horse_memory": 70_000_000}
    leases.renew_lease(redis, name, {"pid": 41, "horse": 42, "per_minute": "12.5", **facts})


def test_a_hundred_workers_are_shown_with_their_jobs(client, redis):
    job = rqjobs.enqueue(sample_jobs.say, "hello")
    redis.hset(job.key, mapping={"status": "started", "started_at": "2020-01-01T00:00:00.000000Z"})
    for number in range(101):
        make_worker(redis, f"w{number:03}", state="busy", current_job=job.id)
    with counted_round_trips() as trips:
        page = client.get("/workers").text
    assert trips.number <= 8 and page.count('<li data-key="w') == 100 and ">next</a>" in page
    assert "say(" in html_text(page) and re.search(r"for [\d,]+ d", page) and "120 MB" in page
    assert "12.5" in page and "other version" in page and "rqjobs 9.9.9" in page
    assert page.count('<li data-key="w') == 100
    page = client.get("/live/workers?q=W007").text
    assert re.findall(r'<li data-key="(\w+)"', page) == ["w007"]
    assert "No worker has" in client.get("/workers?q=nowhere").text


def html_text(page):
    return re.sub(r"<[^>]+>", "", page)


def lease_of(page, before, after):
    """The seconds of a lease between these words."""
    return int(re.search(rf"{before}(\d+) s {after}", page)[1])


def test_a_worker_shows_its_facts(client, redis):
    began = time.monotonic()
    make_worker(redis, "one")
    for path in ("/workers/one", "/live/workers/one"):
        page = html_text(client.get(path).text)
        assert "41, its horse 42" in page and "50 MB, its horse 70 MB" in page
        assert 19 - (time.monotonic() - began) <= lease_of(page, "Lease", "left") <= 20
        assert "12.5 a minute" in page
        assert "other versions than this page" in page
    assert client.get("/workers/nothing").status_code == 404


def test_a_dead_worker_says_what_happens_to_its_jobs(client, redis):
    make_worker(redis, "one")
    began = time.time()
    redis.zadd("rqjobs:leases", {"one": began - 30})
    redis.rpush("rqjobs:claims:one", "a", "b")
    page = client.get("/workers/one").text
    assert ">dead</span>" in page and "Its 2 claimed jobs return" in page
    assert 29 <= lease_of(page, "expired ", "ago") <= 31 + time.time() - began
    assert "Stop this worker" not in page
    redis.sadd("rq:workers", "rq:worker:plain")
    redis.hset("rq:worker:plain", mapping={"state": "idle", "death": "x", "queues": ""})
    assert "This worker has ended" in client.get("/workers/plain").text
    redis.hdel("rq:worker:plain", "death")
    assert "plain RQ</span>" in client.get("/workers").text


def test_a_real_worker_is_quieted_resumed_and_stopped(client, redis, worker, eventually):
    process = worker("default")
    path = f"/workers/{process.name}"

    def state():
        return stats.worker(redis, process.name).shown_state

    reply = client.post(f"{path}/quiet")
    assert (reply.status_code, reply.location) == (303, path)
    assert "takes no more" in client.get(path).text
    eventually(lambda: state() == "quiet", what="the state")
    page = client.get(path).text
    assert ">quiet</span>" in page and f'action="{path}/resume"' in page
    assert "other versions" not in page
    client.post(f"{path}/resume")
    eventually(lambda: state() != "quiet", what="the end of it")
    reply = client.post(f"{path}/stop")
    assert reply.status_code == 422 and "tick the box" in reply.text
    assert client.post(f"{path}/stop", data={"sure": "yes"}).status_code == 303
    assert process.wait(20) == 0
    page = client.get(path)
    assert page.status_code == 404 or "This worker has ended" in page.text
    assert client.post("/workers/nothing/quiet").status_code == 404
    make_worker(redis, "deaf")
    reply = client.post("/workers/deaf/quiet")
    assert "does not listen" in client.get(reply.location).text
    assert client.post("/workers/deaf/explode").status_code == 404


def test_hostile_workers_are_shown(client, redis):
    for name in (HOSTILE, "a/b?c#d", "x" * 5000):
        make_worker(redis, name, state=HOSTILE, queues=HOSTILE, hostname=HOSTILE, version=HOSTILE)
        redis.hset(f"rq:worker:{name}", mapping={"current_job": HOSTILE, "pid": HOSTILE})
        redis.hset(f"rqjobs:process:{name}", mapping={"memory": HOSTILE, "quiet": "1e9"})
    redis.sadd("rq:workers", b"rq:worker:\xff", "rq:worker:text")
    redis.set("rq:worker:text", "text")
    page = client.get("/workers").text
    harmless(page)
    assert ESCAPED in page
    for found in re.findall(r'href="(/workers/[^"]+)"', page):
        reply = client.get(found.replace("&amp;", "&").replace("&#39;", "'"))
        assert reply.status_code in (200, 404)
        harmless(reply.text)


def test_strangers_and_other_sites_command_no_worker(client, anonymous, redis):
    make_worker(redis, "one")
    for action in ("quiet", "resume", "stop"):
        path, sure = f"/workers/one/{action}", {"sure": "yes"}
        assert anonymous.post(path, data=sure).status_code in (303, 401, 403)
        headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
        assert client.post(path, data=sure, headers=headers).status_code == 403
