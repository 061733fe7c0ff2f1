"""A malformed record in Redis stops only the job, schedule or worker that it belongs to."""

from __future__ import annotations

import contextlib
import json
import logging
from datetime import timedelta

import helpers
import pytest
import redis as redis_py
import sample_jobs
from rq.job import Dependency

import rqjobs
from rqjobs import config, every, processes, schedules, stats
from rqjobs.broker import keys, leases, odd_keys, transitions
from rqjobs.maintenance import audit, doctor, sweep
from rqjobs.scheduler import Scheduler
from rqjobs.schedules import declared, history, ticker
from rqjobs.web import create_app

PLANT = {
    "string": lambda redis, key: redis.set(key, "evil"),
    "list": lambda redis, key: redis.rpush(key, "evil"),
    "hash": lambda redis, key: redis.hset(key, "evil", "evil"),
}
OURS = {
    key.replace("*", name): kind
    for kinds, name in (
        (odd_keys.SINGLE_KEYS, ""),
        (odd_keys.WORKER_KEYS, "odd"),
        (odd_keys.QUEUE_KEYS, "odd"),
    )
    for kind, keys in kinds.items()
    for key in keys
}
OTHERS = {
    **{
        f"rqjobs:schedule:odd{part}": kind
        for part, kind in (("", "hash"), (":job", "hash"), (":runs", "list"), (":outcomes", "hash"))
    },
    "rq:job:odd": "hash",
    "rq:job:odd:dependents": "set",
    "rq:job::odd:dependencies": "set",
    "rq:results:odd": "stream",
    "rq:executions:odd": "zset",
    "rq:execution:odd:odd": "hash",
    "rq:clean_registries:odd": "string",
    "rq:scheduler:odd": "hash",
    "rq:maintenance:odd": "string",
}
PAGES = (
    "/",
    "/live",
    "/failed",
    "/workers",
    "/schedules",
    "/delayed",
    "/jobs/odd",
    "/schedules/odd",
    "/metrics",
    "/rq/0/data/queues.json",
    "/rq/0/data/workers.json",
    "/rq/0/data/jobs/odd/queued/8/asc/1.json",
    "/rq/0/data/jobs/odd/failed/8/asc/1.json",
)
HOSTILE = [b"", b"\n\x1b[2J", b"\xff\xfe", b"x" * 100_000, b"a:b:c", b"%d%n"]
SCORES = [0, float("inf"), float("-inf"), 1e308, -1e308]


@pytest.fixture
def odd(redis):
    """One record for every kind of key.

    A dead worker `odd`, a job `odd` in a queue `odd`, and a due schedule `odd`.
    """
    redis.zadd(keys.LEASES, {"odd": 1})
    redis.hset("rqjobs:process:odd", "pid", 1)
    redis.hset("rq:worker:odd", mapping={"state": "busy", "queues": "odd", "current_job": "odd"})
    redis.sadd("rq:workers", "rq:worker:odd")
    job = rqjobs.queue("odd").enqueue(sample_jobs.ok, job_id="odd")
    redis.hset(job.key, mapping={"worker_name": "odd", "rqjobs_token": "t"})
    rqjobs.queue("odd").enqueue(sample_jobs.ok)
    schedules.add("odd", every(hours=1), sample_jobs.note)
    redis.zadd("rqjobs:schedules", {"odd": 1})


def check_all_parts(redis):
    """These steps must succeed with any value in any key."""
    stats.overview(redis, {"queued": 5, "running": 5, "failed": 5, "finished": 5, "scheduled": 5})
    list(doctor.examine())
    audit.audit(redis, settle=0)
    schedules.all()
    schedules.runs("odd")
    transitions.promote(redis, "high", 180)
    transitions.first_due(redis, ["odd", "high"])
    for step in (ticker.run_due, declared.reconcile, history.note_outcomes):
        with contextlib.suppress(redis_py.ResponseError):  # until the next sweep
            step(redis)
    for _ in range(2):
        sweep.sweep(redis, force=True)


def check_that_a_good_job_runs(redis):
    """A worker that starts now claims the job, although it serves the odd queue too."""
    job = rqjobs.queue("high").enqueue(sample_jobs.ok)
    leases.renew_lease(redis, "good", {"pid": 1})
    claims = helpers.claim(redis, "good", ["odd", "high"], max_jobs=50)
    assert job.id in [claim.job_id for claim in claims]
    transitions.release_all(redis, "good")
    redis.delete("rq:suspended")
    leases.end_lease(redis, "good")


@pytest.mark.parametrize(("key", "kind"), [*OURS.items(), *OTHERS.items()])
def test_a_key_of_the_wrong_type_is_skipped_renamed_and_logged(redis, odd, key, kind, caplog):
    """One SET stopped a queue or all workers.

    `SET rqjobs:claims:ev x` stopped a queue. `SET rqjobs:process:evil x` stopped every worker
    and every sweep.
    """
    caplog.set_level(logging.ERROR)
    good = rqjobs.queue("high").enqueue(sample_jobs.ok)
    for wrong in sorted({"string", "list", "hash"} - {kind}):
        redis.delete(key, f"rqjobs:odd:{key}")
        PLANT[wrong](redis, key)
        named = [odd for odd in odd_keys.all_of(redis) if odd[0] == key]
        assert named == ([(key, wrong, kind)] if key in OURS else [])
        if key.startswith(("rq:", "rqjobs:claims:")) and key != "rq:queues":
            check_that_a_live_worker_claims(redis, good)
        check_all_parts(redis)
        if key in OURS and key not in (
            "rqjobs:sweep:lock",
            "rqjobs:sweep:last",
        ):  # these are overwritten, whatever their type
            assert redis.type(f"rqjobs:odd:{key}").decode() == wrong
        check_that_a_good_job_runs(redis)
    assert (
        key not in OURS or key in caplog.text or key in ("rqjobs:sweep:lock", "rqjobs:sweep:last")
    )


def check_that_a_live_worker_claims(redis, job):
    """A live worker claims the job before any sweep, although it serves the odd queue too."""
    leases.renew_lease(redis, "alive", {"pid": 1})
    assert job.id in [
        claim.job_id for claim in helpers.claim(redis, "alive", ["odd", "high"], max_jobs=50)
    ]
    assert job.id in transitions.release_all(redis, "alive")
    redis.zrem(keys.LEASES, "alive")


@pytest.mark.parametrize(("key", "kind"), [*OURS.items(), *OTHERS.items()])
def test_odd_members_of_a_key_stop_nothing(redis, odd, key, kind):
    if kind == "list":
        redis.rpush(key, *HOSTILE)
    elif kind == "set":
        redis.sadd(key, *HOSTILE)
    elif kind == "zset":
        redis.zadd(
            key, {member + str(score).encode(): score for member in HOSTILE for score in SCORES}
        )
    elif kind == "hash":
        fields = {*redis.hkeys(key), *HOSTILE}
        redis.hset(
            key,
            mapping={
                field: HOSTILE[number % len(HOSTILE)] for number, field in enumerate(sorted(fields))
            },
        )
    elif kind == "string":
        redis.set(key, b"\xff\n")
    check_all_parts(redis)
    check_that_a_good_job_runs(redis)


def test_every_page_works_with_any_one_key_of_the_wrong_type(redis, odd):
    """`/` was a 503 and the dashboard a 500 until the key was repaired."""
    config.use(admin_password="correct horse", secret_key="k" * 32)
    client = create_app().test_client()
    client.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
    client.post("/login", data={"user": "admin", "password": "correct horse"})
    broken = []
    for key, kind in OURS.items():
        before = redis.dump(key)
        redis.delete(key)
        PLANT["hash" if kind == "string" else "string"](redis, key)
        for path in PAGES:
            with client.get(path) as reply:
                if reply.status_code not in (200, 302, 404):
                    broken.append((key, path, reply.status))
        redis.delete(key)
        if before:
            redis.restore(key, 0, before)
    assert not broken


@pytest.mark.parametrize("wrong", ["string", "hash"])
def test_a_worker_starts_and_works_with_all_keys_of_the_wrong_type(redis, odd, wrong):
    for key, kind in {**OURS, **OTHERS}.items():
        if kind != wrong:
            redis.delete(key)
            PLANT[wrong](redis, key)
    worker = rqjobs.Worker(["odd", "high"])
    worker.work(burst=True, logging_level="CRITICAL")
    job = rqjobs.queue("high").enqueue(sample_jobs.ok)
    worker.work(burst=True, logging_level="CRITICAL")
    assert job.get_status() == "finished"


def test_declarations_are_published_once_the_key_is_free(redis, caplog):
    """A client wrote the key between a worker's first sweep and its announcement.

    The worker ended with a traceback.
    """
    redis.set("rqjobs:schedules:declared", "evil")
    declared.publish_declarations(redis, "w1", "{}")
    assert "not published yet" in caplog.text
    sweep.sweep(redis, force=True)
    declared.publish_declarations(redis, "w1", "{}", again=True)
    assert redis.hgetall("rqjobs:schedules:declared") == {b"w1": b"{}"}


def test_a_worker_survives_that_its_own_keys_are_overwritten(worker, redis, eventually):
    """The worker's lease expired, and its sweeps were never completed."""
    process = worker("high", options=["--with-scheduler"])
    for key in (
        "rqjobs:leases",
        f"rqjobs:process:{process.name}",
        f"rqjobs:claims:{process.name}",
        process.key,
        "rq:workers",
        "rq:queues",
        "rqjobs:schedules:declared",
        "rq:scheduler-lock:high",
    ):
        redis.set(key, "evil")
    eventually(
        lambda: (
            redis.type("rqjobs:leases") == b"zset" and redis.zscore("rqjobs:leases", process.name)
        ),
        what="its lease",
    )
    eventually(lambda: redis.type("rq:queues") != b"string")
    jobs = [
        rqjobs.queue("high").enqueue(sample_jobs.ok),
        rqjobs.queue("high").enqueue_in(timedelta(0), sample_jobs.ok),
    ]
    eventually(lambda: all(job.get_status() == "finished" for job in jobs), what=process.output())
    eventually(lambda: redis.hget(process.key, "state") == b"idle")


@pytest.mark.parametrize("seconds", [None, 10**8])
@pytest.mark.parametrize(
    "key",
    [
        "rqjobs:sweep:lock",
        "rqjobs:sweep:strays:lock",
        "rqjobs:schedules:lock",
        "rq:scheduler-lock:default",
    ],
)
def test_a_lock_without_an_end_or_for_years_is_ignored(redis, key, seconds):
    """The locks of rqjobs are short.

    `SET rqjobs:sweep:lock 1` stopped every sweep forever, and with `EX 100000000` for three
    years.
    """
    redis.set(key, "somebody's", ex=seconds)
    assert sweep.sweep(redis)
    scheduler = Scheduler(["default"], connection=redis)
    scheduler.acquire_locks()
    assert scheduler._serves_schedules and scheduler._acquired_locks == {"default"}
    scheduler.release_locks()
    assert redis.ttl(key) != -1 and redis.ttl(key) <= 60


@pytest.mark.parametrize("moment", [-62135596800, -1, 253402300799, 10**15])
def test_a_schedule_whose_next_tick_is_out_of_range_stops_no_other(redis, moment):
    for name in ("odd", "fine"):
        schedules.add(name, every(hours=1), sample_jobs.note)
        redis.hset(f"rqjobs:schedule:{name}", "next", int(redis.time()[0]) // 3600 * 3600 - 3600)
        redis.zadd("rqjobs:schedules", {name: 1})
    redis.hset("rqjobs:schedule:odd", "next", moment)
    ticker.run_due(redis)
    assert schedules.get("fine").made == 1 and [found.name for found in schedules.all()] == ["fine"]
    assert ticker.run_due(redis) > redis.time()[0]


@pytest.mark.parametrize("source", ["code", "added"])
def test_a_schedule_whose_revision_is_not_text_can_be_removed(redis, source):
    """`remove` read the revision again forever. A declared schedule was never stored again."""
    schedules.add("odd", every(hours=1), sample_jobs.ok)
    redis.hset("rqjobs:schedule:odd", mapping={"revision": b"\xff", "source": source})
    if source == "added":
        schedules.remove("odd")
    else:
        assert declared._remove_unreadable(redis, "odd")
    assert not redis.exists("rqjobs:schedule:odd")


def test_a_rule_and_a_declaration_of_millions_of_parts_are_not_read(redis, monkeypatch, caplog):
    """14 MB of brackets took 340 MB of memory in the web app and in the scheduler."""
    brackets = b"[" + b"[]," * 2_000_000 + b"[]]"
    schedules.add("odd", every(hours=1), sample_jobs.ok)
    redis.hset("rqjobs:schedule:odd", "rule", b'{"seconds": ' + brackets + b"}")
    redis.zadd(keys.LEASES, {"odd": redis.time()[0] + 15})
    redis.hset(keys.SCHEDULES_DECLARED, "odd", b'{"started": 1, "schedules": ' + brackets + b"}")
    read, lengths = json.loads, []
    monkeypatch.setattr(
        json,
        "loads",
        lambda words, **options: (lengths.append(len(words)), read(words, **options))[1],
    )
    assert schedules.all() == []
    declared.reconcile(redis)
    assert max(lengths, default=0) < len(brackets)
    assert "worker odd: its declared schedules cannot be read" in caplog.text


@pytest.mark.parametrize("due", [" 99999999999", "1e400"])
def test_a_forged_due_time_of_a_dependent_does_not_touch_its_parent(redis, due):
    """Lua read the number and Redis refused it, in the middle of the parent's outcome. The parent
    was in no place then, and ran again and again.
    """
    done = rqjobs.enqueue(sample_jobs.ok)
    failed = rqjobs.enqueue(sample_jobs.boom)
    for parent in (done, failed):
        child = rqjobs.enqueue(sample_jobs.ok, depends_on=Dependency(parent, allow_failure=True))
        redis.hset(child.key, "rqjobs_due", due)
    other = rqjobs.enqueue(sample_jobs.ok)
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    assert [job.get_status().value for job in (done, failed, other)] == [
        "finished",
        "failed",
        "finished",
    ]
    assert done.latest_result() and failed.latest_result()


@pytest.mark.parametrize("key", ["rqjobs:flow-held:odd", "rq:job:odd:dependents"])
def test_a_held_flow_with_an_odd_key_stops_no_sweep(redis, key, caplog):
    """No worker could start, and no sweep went beyond it."""
    caplog.set_level(logging.ERROR)
    job = rqjobs.enqueue(sample_jobs.ok)
    child = rqjobs.enqueue(sample_jobs.ok, depends_on=job)
    redis.delete(f"rq:job::{child.id}:dependencies")
    redis.rpush("rqjobs:flow-held:odd", child.id)
    redis.zadd(keys.HELD_FLOWS, {"odd": "inf"})
    redis.delete(key)
    redis.set(key, "evil")
    sweep.sweep(redis, force=True)
    assert (child.get_status() == "deferred") == (key == "rqjobs:flow-held:odd")
    assert ("the flow odd cannot be released" in caplog.text) == (key == "rqjobs:flow-held:odd")
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    assert job.get_status() == "finished"


@pytest.mark.parametrize("pid", ["9" * 10, "9" * 5000, "²"])
def test_a_process_with_a_forged_pid_stops_no_sweep(redis, pid):
    """The error of `os.kill` ended every sweep, and each worker that started."""
    host = processes.host_id()
    for name, fields in (("odd", {"pid": pid}), ("odder", {"pid": 1, "horse": pid})):
        redis.zadd(keys.LEASES, {name: 1})
        redis.hset(keys.process(name), mapping={"host": host, "started": pid, **fields})
    job = rqjobs.enqueue(sample_jobs.ok)
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    assert job.get_status() == "finished"


@pytest.mark.parametrize("ttl", ["²", "--5", "9" * 12, "9" * 5000])
def test_a_forged_failure_ttl_kills_no_horse(redis, ttl):
    """The job was run three times, as one that kills its process, and then failed."""
    job = rqjobs.enqueue(sample_jobs.ok)
    redis.hset(job.key, "failure_ttl", ttl)
    redis.hset(job.key, "data", b"\xff")
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    assert job.key and redis.hget(job.key, "status") == b"failed"
    assert not redis.hexists(job.key, "rqjobs_crashes")


@pytest.mark.parametrize("number", ["²", "9" * 5000])
def test_forged_numbers_of_a_worker_break_no_page(redis, number):
    redis.sadd("rq:workers", "rq:worker:odd")
    counts = dict.fromkeys(("pid", "successful_job_count", "failed_job_count"), number)
    redis.hset("rq:worker:odd", mapping={"state": "busy", "queues": "odd", **counts})
    config.use(admin_password="correct horse", secret_key="k" * 32)
    client = create_app().test_client()
    client.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
    client.post("/login", data={"user": "admin", "password": "correct horse"})
    assert [client.get(page).status_code for page in ("/", "/workers", "/live")] == [200] * 3
