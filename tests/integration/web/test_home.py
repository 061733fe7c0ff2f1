"""The home page: whether all is well, and what needs attention."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import helpers
import pytest
import redis as redis_py
import sample_jobs
from browser_client import counted_round_trips
from redis.exceptions import NoPermissionError

import rqjobs
from rqjobs.broker import activity, counters, keys, leases, scripts
from rqjobs.maintenance import attention
from rqjobs.maintenance.attention import Do
from rqjobs.maintenance.doctor import Level
from rqjobs.overview import Reader
from rqjobs.web.views import home


@pytest.fixture
def found(redis):
    """The findings now, by key, without those about Redis itself."""

    def read():
        findings = attention.findings(Reader().read(redis))
        return {one.key: one for one in findings if not one.key.startswith("redis ")}

    return read


@pytest.fixture
def served(redis):
    """A live worker of the usual queues, by its records."""
    leases.renew_lease(redis, "w", {"host": "elsewhere", "pid": 1, "started": "1"})
    redis.zadd(keys.LEASES, {"w": time.time() + 600})  # a busy machine may take long
    record = {"state": "busy", "queues": "high,default,low", "hostname": "h", "pid": 1}
    redis.hset(keys.worker("w"), mapping=record)
    redis.sadd("rq:workers", keys.worker("w"))


def count_flow(redis, incoming, outgoing):
    """Add these counts of the queue `default` to each of the last five minutes."""
    minute = counters.minute_of(scripts.redis_time(redis))
    for back in range(1, 6):
        redis.hincrby(keys.counts(minute - back), "enqueued:default", incoming)
        redis.hincrby(keys.counts(minute - back), "finished:default", outgoing)


def wait_since(redis, job, seconds):
    """Let a job have waited for these seconds."""
    moment = datetime.now(timezone.utc) - timedelta(seconds=seconds)
    redis.hset(job.key, "enqueued_at", moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


def test_all_is_well(found, served):
    assert found() == {} and attention.verdict([]) == "All is well"


def test_jobs_without_a_worker(found, redis):
    rqjobs.enqueue(sample_jobs.ok)
    (finding,) = found().values()
    assert (finding.title, finding.action.name) == ("No worker", "rqjobs worker")
    assert finding.level is Level.LOSS
    rqjobs.enqueue_in(60, sample_jobs.ok)
    assert found()["no worker"].detail == "2 jobs waiting, and no worker is running."


def test_queues_without_a_worker(found, served):
    for number in range(7):
        rqjobs.queue(f"q{number}").enqueue(sample_jobs.ok)
    keys_found = [key for key in found() if key.startswith("unserved")]
    assert len(keys_found) == attention.MAX_PER_KIND + 1
    assert found()["unserved q0"].action.name == "rqjobs worker q0"
    assert found()["unserved"].title == "No worker for 3 more queues"


def test_a_queue_that_grows(found, served, redis):
    job = rqjobs.enqueue(sample_jobs.ok)
    count_flow(redis, incoming=100, outgoing=50)
    assert found() == {}, "the first job has not waited for long"
    wait_since(redis, job, 90)
    (finding,) = found().values()
    assert finding.key == "growing default" and finding.action == attention.Action(
        Do.OPEN_QUEUE, "See the queue", "default"
    )
    numbers = re.search(r"grows by ([\d.]+) a minute", finding.title)
    growth = float(numbers[1])
    assert 40 < growth < 51
    expected = re.search(
        r"1 job waits, the first for \d+ s; at this rate ([\d,]+) in an", finding.detail
    )
    assert abs(int(expected[1].replace(",", "")) - 60 * growth) < 10
    rqjobs.pause(queue="default")
    assert set(found()) == {"paused queue default"}


def test_many_jobs_at_once_do_not_make_a_queue_grow(found, served, redis):
    wait_since(redis, rqjobs.enqueue(sample_jobs.ok), 90)
    count_flow(redis, incoming=0, outgoing=50)
    minute = counters.minute_of(scripts.redis_time(redis))
    redis.hset(keys.counts(minute - 1), "enqueued:default", 10_000)
    assert found() == {}


def test_a_queue_that_stands_still(found, served, redis):
    job = rqjobs.enqueue(sample_jobs.ok)
    wait_since(redis, job, 200)
    assert found() == {}, "the first job has not waited for five minutes"
    wait_since(redis, job, 720)
    (finding,) = found().values()
    assert (finding.key, finding.action.do) == ("still default", Do.OPEN_WORKERS)
    assert finding.title == "The queue default stands still"
    assert "1 job waits, the first for 12 min. No run of its jobs has ended" in finding.detail
    count_flow(redis, incoming=0, outgoing=1)
    assert found() == {}


def test_without_counts_of_its_own_no_queue_stands_still(found, served, redis):
    """In a minute with very many queues, the counts of most are added up under ""."""
    wait_since(redis, rqjobs.enqueue(sample_jobs.ok), 720)
    minute = counters.minute_of(scripts.redis_time(redis))
    redis.hset(keys.counts(minute - 1), "finished:", 5)
    assert found() == {}


def test_a_queue_of_plain_workers_has_no_counts(found, redis):
    redis.hset(keys.worker("plain"), mapping={"state": "busy", "queues": "default"})
    redis.sadd("rq:workers", keys.worker("plain"))
    wait_since(redis, rqjobs.enqueue(sample_jobs.ok), 720)
    assert found() == {}


def test_the_first_job_gets_older(found, served, redis):
    """100 jobs wait, one ends in a minute, and none comes in."""
    first, *_ = [rqjobs.enqueue(sample_jobs.ok) for _ in range(100)]
    redis.delete(*redis.keys(keys.counts("*")))
    count_flow(redis, incoming=0, outgoing=1)
    assert found() == {}, "it may be the beginning of a batch"
    wait_since(redis, first, 600)
    (finding,) = found().values()
    assert (finding.key, finding.action.do) == ("slow default", Do.OPEN_QUEUE)
    assert finding.title == "The first job of default gets older"
    assert re.search(r"100 jobs wait, the first for 10 min\. .* waits for \d+ min", finding.detail)
    wait_since(redis, first, 86_400)
    assert found() == {}, "the jobs behind it will not wait for so long"
    wait_since(redis, first, 600)
    count_flow(redis, incoming=0, outgoing=10)
    assert found() == {}, "it is empty in some minutes"


def test_findings_about_many_queues(found, served, redis):
    names = [f"q{number}" for number in range(7)]
    redis.hset(keys.worker("w"), "queues", ",".join(names))
    for name in names:
        wait_since(redis, rqjobs.queue(name).enqueue(sample_jobs.ok), 720)
    assert [one.title for one in found().values()][-2:] == [
        "The queue q3 stands still",
        "3 more queues whose first job gets older",
    ]


def test_alerts_that_fire_come_first(client, found, redis, served):
    rqjobs.enqueue(sample_jobs.boom)
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    now = scripts.redis_time(redis)
    for number in range(6):
        about = {"rule": "depth", "subject": f"q{number}", "message": "<b> jobs wait"}
        state = about | {"since": now - 600 - number}
        redis.hset(keys.ALERTS, f"depth:q{number}", json.dumps(state))
    redis.hset(keys.ALERTS, "soon", json.dumps({"rule": "depth", "bad": now}))
    keys_found = list(found())
    assert keys_found[:5] == [*(f"alert depth:q{number}" for number in range(4)), "alerts"]
    assert keys_found[5].startswith("failures ")
    first = found()["alert depth:q0"]
    assert (first.title, first.detail) == ("Alert depth:q0", "For 10 min: <b> jobs wait")
    for page in (client.get("/").text, client.get("/live").text):
        alert, failure = page.index("Alert depth:q0"), page.index("ValueError in sample_jobs.boom")
        assert alert < failure and "2 more alerts" in page
        assert '<a class="button" href="/alerts">See the alerts</a>' in page
        assert "&lt;b&gt; jobs wait" in page


def test_a_suspended_rq_is_resumed_by_a_button(client, redis):
    redis.set("rq:suspended", 1)
    assert 'aria-label="Resume workers"' in client.get("/live").text
    reply = client.post("/pauses/resume", data={"kind": "workers", "name": ""})
    assert (reply.status_code, reply.headers["Location"]) == (303, "/")
    assert not redis.exists("rq:suspended")
    assert "RQ is resumed: workers begin jobs." in client.get("/").text
    entry, *_ = activity.read(redis).entries
    assert (entry.action, entry.user, entry.target) == ("resume workers", "admin", "workers")
    client.post("/pauses/resume", data={"kind": "workers", "name": ""})
    assert "RQ was not suspended." in client.get("/").text
    assert client.post("/pauses/pause", data={"kind": "workers"}).status_code == 404


def test_new_failures_and_those_that_go_on(found, served, redis):
    for text in ("boom", "bang"):
        rqjobs.enqueue(sample_jobs.boom, text)
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    (finding,) = [one for key, one in found().items() if key.startswith("failures ")]
    assert finding.title.startswith("New: ValueError in sample_jobs.boom")
    assert "2 failures in the last hour" in finding.detail and finding.level is Level.LOSS
    (group,) = redis.zrange(keys.FAILURE_GROUPS, 0, -1)
    redis.hset(keys.failure_group(group.decode()), "first", time.time() - 90_000)
    (finding,) = [one for key, one in found().items() if key.startswith("failures ")]
    assert not finding.title.startswith("New") and finding.level is Level.NOTE


def test_pauses_poison_orphans_and_no_scheduler(found, served, redis):
    rqjobs.pause(queue="low")
    rqjobs.pause(function="sample_jobs.ok")
    redis.set("rq:suspended", 1)
    minute = counters.minute_of(scripts.redis_time(redis))
    redis.hset(keys.counts(minute), "poison:default", 2)
    rqjobs.enqueue_in(60, sample_jobs.ok)
    redis.hset(keys.worker("gone"), mapping={"state": "busy", "queues": "default"})
    redis.sadd("rq:workers", keys.worker("gone"))
    redis.zadd(keys.LEASES, {"gone": 5})
    redis.rpush(keys.claims("gone"), "a", "b")
    names = set(found())
    assert names >= {
        "paused queue low",
        "paused function sample_jobs.ok",
        "suspended",
        "poison",
        "no scheduler",
        "orphans",
    }
    assert found()["orphans"].title == "2 jobs of a dead worker"
    redis.set(keys.SCHEDULES_LOCK, "me")
    assert "no scheduler" not in found()


def test_an_eviction_policy_and_a_full_memory(redis):
    used = {"maxmemory_policy": "allkeys-lru", "maxmemory": 100, "used_memory": 95}
    health = [
        finding.message
        for finding in attention.server_findings({**used, "aof_enabled": 1})
        if finding.level is not Level.OK
    ]
    assert "throw jobs away" in health[0] and "95%" in health[1]
    assert attention.is_full({**used, "maxmemory_policy": "noeviction", "used_memory": 99})
    assert not attention.is_full(used)


@pytest.mark.parametrize(
    ("field", "level", "text"),
    [
        ("rdb_last_bgsave_status", Level.LOSS, "the last snapshot of Redis (RDB) failed"),
        ("aof_last_write_status", Level.LOSS, "Redis could not write its append-only file"),
        (
            "aof_last_bgrewrite_status",
            Level.NOTE,
            "the last rewrite of the append-only file failed",
        ),
    ],
)
def test_redis_could_not_save(redis, served, field, level, text):
    saved = {"aof_enabled": 1, "rdb_last_bgsave_status": "ok", "aof_last_bgrewrite_status": "ok"}
    assert all(one.level is Level.OK for one in attention.server_findings(saved))
    overview = Reader().read(redis)
    persistence = {**overview.persistence, **saved, field: "err"}
    (found,) = [
        one
        for one in attention.findings(replace(overview, persistence=persistence))
        if one.key.startswith("redis ")
    ]
    assert found.detail.startswith(text) and found.level is level
    assert found.action.do is Do.OPEN_REDIS and "free space" in found.detail
    health = list(attention.server_findings(dict.fromkeys(saved, "err")))
    assert len({f"redis {one.message[:20]}" for one in health}) == len(health)


def test_without_the_right_to_info_the_rest_is_shown(redis, monkeypatch, served):
    execute = redis_py.client.Pipeline.execute

    def refuse(self, *args, **options):
        commands = [command[0][0] for command in self.command_stack]
        replies = execute(self, *args, **options)
        refusal = NoPermissionError("no permissions to run the 'info' command")
        return [
            refusal if command == "INFO" else reply
            for command, reply in zip(commands, replies, strict=True)
        ]

    monkeypatch.setattr(redis_py.client.Pipeline, "execute", refuse)
    overview = Reader().read(redis)
    assert overview.memory == {} and attention.findings(overview) == []


def test_the_page_has_each_finding_with_its_action(client, redis, served):
    rqjobs.enqueue(sample_jobs.boom, "<b>bang</b>")
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    redis.sadd("rq:queues", "rq:queue:<i>odd</i>")
    redis.rpush("rq:queue:<i>odd</i>", "of plain RQ")
    page = client.get("/").text
    assert "<b>bang" not in page and "<i>odd" not in page
    assert re.search(r'<a class="button" href="/failed/[0-9a-f]+">See the jobs</a>', page)
    assert "<code>rqjobs worker &lt;i&gt;odd&lt;/i&gt;</code>" in page
    number = int(re.search(r"<title>\((\d+)!\)", page)[1])
    assert f"{number} things need attention" in page


def test_rates_progress_and_charts(client, redis, served):
    minute = counters.minute_of(scripts.redis_time(redis))
    counted = {"enqueued:default": 600, "finished:default": 1200, "failed:default": 6}
    redis.hset(keys.counts(minute - 1), mapping=counted)
    redis.hset(keys.COUNTS_DAY, mapping={minute - 300: "finished 77"})
    for _ in range(30):
        rqjobs.enqueue(sample_jobs.ok)
    page = client.get("/").text
    chart = "Jobs of the last hour by minute: 630 enqueued, 1,200 finished, 6 failed"
    assert chart in page and "1,277 finished" in page
    assert 'aria-label="1,206 runs in the last hour"' in page
    assert re.search(r'data-label="empty in">\d+ s</td>', page)


def test_a_job_that_runs_has_its_time(client, redis):
    broker = helpers.Broker(redis)
    rqjobs.enqueue(sample_jobs.ok, 7)
    (job_id,) = broker.claim()
    redis.hset(keys.job(job_id), "started_at", "2020-01-01T00:00:00.000000Z")
    page = client.get("/").text
    assert re.search(r'<td class="number">[\d,]+ d</td>', page)


def test_old_links_to_the_form(client, redis):
    reply = client.get("/?function=sample_jobs.add")
    assert reply.status_code == 302
    assert reply.headers["Location"] == "/enqueue?function=sample_jobs.add"


@pytest.mark.parametrize("limit", [500, 4])
def test_a_new_queue_is_in_the_next_live_update(client, redis, served, monkeypatch, limit):
    """With more queues than one script looks at, it is in the one after that."""
    monkeypatch.setattr(home, "SHARED_SECONDS", 0.0)
    monkeypatch.setattr(scripts, "QUEUES_PER_SCRIPT", limit)
    rqjobs.queue("known").enqueue(sample_jobs.ok)
    rqjobs.queue("known2").enqueue(sample_jobs.ok)
    client.get("/")
    rqjobs.queue("fresh").enqueue(sample_jobs.say, "hello")
    redis.sadd("rq:queues", "odd", b"rq:queue:\xff")
    with counted_round_trips() as trips:
        first = client.get("/live").text
    assert trips.number <= 2
    for part in ('<tr data-key="fresh">', "hello", "No worker for fresh", "3 waiting"):
        assert (part in first) is (limit == 500), part
    page = client.get("/live").text
    assert '<tr data-key="fresh">' in page and "hello" in page and "3 waiting" in page
    assert page.count('<tr data-key="known">') == 1 and '<tr data-key="odd">' in page


def test_the_live_part_takes_two_round_trips(client, redis, served, monkeypatch):
    """One for the session, and one for everything else."""
    rqjobs.enqueue(sample_jobs.ok)
    client.get("/")
    trips = []
    for owner, name in (
        (redis_py.Redis, "_execute_command"),
        (redis_py.client.Pipeline, "execute"),
    ):
        original = getattr(owner, name)

        def counting(self, *args, _original=original, **options):
            trips.append(args)
            return _original(self, *args, **options)

        monkeypatch.setattr(owner, name, counting)
    assert "sample_jobs.ok" in client.get("/live").text
    assert len(trips) <= 2, trips
