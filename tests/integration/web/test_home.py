"""The home page: whether all is well, and what needs attention."""

from __future__ import annotations

import re
import time

import helpers
import pytest
import redis as redis_py
import sample_jobs
from redis.exceptions import NoPermissionError

import rqjobs
from rqjobs.broker import counters, keys, leases, scripts
from rqjobs.maintenance import attention
from rqjobs.maintenance.attention import Do
from rqjobs.maintenance.doctor import Level
from rqjobs.overview import Reader


@pytest.fixture
def found(redis):
    """The findings now, by key, without those about Redis itself."""
    reader = Reader()

    def read():
        findings = attention.findings(reader.read(redis, is_first=True))
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


def test_all_is_well(found, served):
    assert found() == {} and attention.verdict([]) == "All is well"


def test_jobs_without_a_worker(found, redis):
    rqjobs.enqueue(sample_jobs.ok)
    (finding,) = found().values()
    assert (finding.title, finding.action.name) == ("No worker", "rqjobs worker")
    assert finding.level is Level.LOSS


def test_queues_without_a_worker(found, served):
    for number in range(7):
        rqjobs.queue(f"q{number}").enqueue(sample_jobs.ok)
    keys_found = [key for key in found() if key.startswith("unserved")]
    assert len(keys_found) == attention.MAX_PER_KIND + 1
    assert found()["unserved q0"].action.name == "rqjobs worker q0"
    assert found()["unserved"].title == "No worker for 3 more queues"


def test_a_queue_that_grows(found, served, redis):
    job = rqjobs.enqueue(sample_jobs.ok)
    minute = counters.minute_of(scripts.redis_time(redis))
    redis.hset(keys.counts(minute - 2), mapping={"enqueued:default": 100, "finished:default": 50})
    assert found() == {}, "the first job has not waited for long"
    redis.hset(job.key, "enqueued_at", "2020-01-01T00:00:00.000000Z")
    finding = found()["growing default"]
    assert finding.action.do is Do.OPEN_QUEUE and finding.action.name == "default"


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
