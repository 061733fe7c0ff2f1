"""Enqueueing: accepted and refused calls. A refused call stores nothing."""

from __future__ import annotations

import functools
import logging
import tempfile
import time
import zlib
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import rq
import sample_jobs
from proxy import Fault, Proxy
from redis.exceptions import ConnectionError, WatchError
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.group import Group
from rq.job import Dependency, JobStatus

import rqjobs
from rqjobs import Callback, Repeat, Retry, config, connection
from rqjobs.broker import keys, transitions
from rqjobs.jobs import Job
from rqjobs.maintenance import audit, sweep


class NotCarried:
    pass


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ((Path.cwd,), rqjobs.NotAJob, "not a job"),
        ((print,), rqjobs.NotAJob, "not a job"),
        (("os.system", "true"), rqjobs.NotAJob, "RQJOBS_MODULES"),
        ((functools.partial(sample_jobs.add, 1), 2), rqjobs.NotAJob, "not a job"),
        ((sample_jobs._hidden,), rqjobs.NotAJob, "public names only"),
        (("__main__.thing",), rqjobs.NotAJob, "__main__"),
        (("sample_jobs.nothing",), rqjobs.NotAJob, "defines no such function"),
        ((sample_jobs.add,), TypeError, "missing a required argument: 'a'"),
        ((sample_jobs.add, 1, 2, 3), TypeError, "too many positional arguments"),
        (
            (sample_jobs.ok, {"deep": [1, NotCarried()]}),
            rqjobs.PayloadError,
            r"argument 'value'\['deep'\]\[1\] is a NotCarried",
        ),
        (
            (sample_jobs.say, "x" * 300_000),
            rqjobs.PayloadTooLarge,
            "pass an id, fetch the data inside the job",
        ),
    ],
)
def test_refused_enqueue_names_the_remedy_and_stores_nothing(redis, call, error, says):
    for attempt in (
        lambda: rqjobs.enqueue(*call),
        lambda: rqjobs.enqueue_in(5, *call),
        lambda: rqjobs.enqueue_at(datetime.now(timezone.utc), *call),
        lambda: rqjobs.enqueue_many([(sample_jobs.ok,), call]),
        lambda: rqjobs.queue("low").enqueue(*call),
        lambda: rqjobs.queue("low").enqueue_call(call[0], args=call[1:]),
    ):
        with pytest.raises(error, match=says) as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert redis.keys() == []


@pytest.mark.parametrize("option", ["on_success", "on_failure", "on_stopped"])
def test_callbacks_outside_the_catalog_are_refused(redis, option):
    with pytest.raises(rqjobs.NotAJob, match="RQJOBS_MODULES"):
        rqjobs.enqueue(sample_jobs.ok, **{option: Callback("os.system")})
    assert redis.keys() == []


def test_webhooks_go_to_allowed_hosts_only(redis):
    hook = rq.Webhook("http://hooks.example.com/x", "finished")
    with pytest.raises(rqjobs.RefusedWebhook, match="RQJOBS_WEBHOOK_HOSTS"):
        rqjobs.enqueue(sample_jobs.ok, webhooks=[hook])
    assert redis.keys() == []
    config.use(webhook_hosts=("hooks.example.com",))
    assert rqjobs.enqueue(sample_jobs.ok, webhooks=[hook]).webhooks == [hook]


def test_meta_that_is_not_json_stores_nothing(redis):
    with pytest.raises(rqjobs.PayloadError):
        rqjobs.enqueue(sample_jobs.ok, meta={"x": NotCarried()})
    assert not redis.exists("rq:queue:default")
    assert not list(redis.scan_iter("rq:job:*"))


def test_caller_s_options_override_those_of_the_decorator(redis):
    job = rqjobs.enqueue(sample_jobs.urgent, 5)
    assert (job.origin, job.timeout, job.result_ttl) == ("high", 30, 600)
    job = rqjobs.enqueue(sample_jobs.urgent, 5, job_timeout=7)
    assert job.timeout == 7
    assert rqjobs.queue("low").enqueue(sample_jobs.urgent).origin == "low"
    assert sample_jobs.urgent(3) == 3


def test_queue_has_the_whole_api_of_rq(redis):
    queue = rqjobs.queue("low")
    assert isinstance(queue, rq.Queue)
    parent = queue.enqueue(sample_jobs.add, 1)
    child = queue.enqueue(
        sample_jobs.add, 2, depends_on=parent, retry=Retry(max=2), description="two"
    )
    assert child.get_status() == JobStatus.DEFERRED
    with pytest.raises(DuplicateJobError):
        for _ in range(2):
            queue.enqueue(sample_jobs.ok, job_id="once", unique=True)
    group = Group.create(connection=redis)
    group.enqueue_many(
        queue,
        [rqjobs.Queue.prepare_data(sample_jobs.ok), rqjobs.Queue.prepare_data(sample_jobs.ok)],
    )
    assert queue.count == 4
    with pytest.raises(ValueError, match="not a name for a queue"):
        rqjobs.queue("a b")


def test_synchronous_queue_runs_the_job_in_this_process(redis):
    queue = rqjobs.Queue("low", connection=redis, is_async=False)
    assert queue.enqueue(sample_jobs.add, 1, 2).return_value() == 3


def test_enqueue_many_keeps_the_order_of_jobs_of_several_queues(redis):
    calls = [(sample_jobs.add, n) if n % 2 else (sample_jobs.urgent, n) for n in range(2500)]
    calls[7] = rqjobs.Queue.prepare_data(sample_jobs.say, args=("seven",), job_id="seven")
    jobs = rqjobs.enqueue_many(calls)
    assert [job.args[0] for job in jobs] == [*range(7), "seven", *range(8, 2500)]
    assert rqjobs.queue("high").job_ids == [job.id for job in jobs if job.origin == "high"]
    assert rqjobs.queue("default").count == 1250
    assert rqjobs.Job.fetch("seven", connection=redis).args == ["seven"]
    assert not audit.audit(redis).breaches


def test_delayed_job_is_stored_in_one_step(redis):
    """RQ writes the due time before the job. A scheduler that runs in between loses the job."""
    with redis.pipeline() as pipe:
        rqjobs.queue("default").enqueue_in(timedelta(seconds=60), sample_jobs.ok, pipeline=pipe)
        assert redis.keys("rq:scheduled:*") == []
        pipe.execute()
    assert redis.zcard("rq:scheduled:default") == 1
    before = time.time()
    job = rqjobs.enqueue_in(1.5, sample_jobs.ok)
    due = redis.zscore("rq:scheduled:default", job.id)
    assert before + 1.5 <= due < time.time() + 1.6
    assert job.get_status() == JobStatus.SCHEDULED
    with pytest.raises(TypeError, match="enqueue_in"):
        rqjobs.enqueue_at(60, sample_jobs.ok)


def test_queue_without_a_worker_is_a_warning_once(redis, caplog):
    with caplog.at_level(logging.WARNING, "rqjobs"):
        rqjobs.queue("hihg").enqueue(sample_jobs.ok)
        rqjobs.queue("hihg").enqueue(sample_jobs.ok)
    assert [record.message for record in caplog.records] == [
        "no worker serves the queue 'hihg' now; jobs wait until one is started with: rqjobs worker hihg"
    ]


def test_compact_removes_only_ids_without_a_job(redis):
    jobs = [rqjobs.enqueue(sample_jobs.ok) for _ in range(5)]
    redis.delete(jobs[1].key, jobs[3].key)
    rqjobs.queue("default").compact()
    assert rqjobs.queue("default").job_ids == [jobs[0].id, jobs[2].id, jobs[4].id]


def test_requeue_of_a_failed_job_is_one_step(redis):
    job = rqjobs.enqueue(sample_jobs.ok, meta={"kept": 1})
    redis.lrem("rq:queue:default", 1, job.id)
    with pytest.raises(InvalidJobOperation, match="not among the failed jobs"):
        job.requeue()
    redis.hset(job.key, mapping={"status": "failed", "rqjobs_crashes": "1,2"})
    redis.zadd("rq:failed:default", {job.id: 9e9})
    other = rqjobs.enqueue(sample_jobs.ok)
    job.requeue(at_front=True)
    assert rqjobs.queue("default").job_ids == [job.id, other.id]
    assert job.get_status() == JobStatus.QUEUED and job.meta == {"kept": 1}
    assert not redis.zcard("rq:failed:default") and not redis.hexists(job.key, "rqjobs_crashes")
    with pytest.raises(NoSuchJobError):
        transitions.requeue(redis, "nobody")
    redis.zadd("rq:failed:default", {"expired": 9e9})
    redis.hset("rq:job:expired", "origin", "default")
    with pytest.raises(NoSuchJobError):
        transitions.requeue(redis, "expired")
    assert not redis.zcard("rq:failed:default")


def test_repeat_and_retry_are_stored(redis):
    job = rqjobs.enqueue(
        sample_jobs.ok, repeat=Repeat(times=3, interval=[1, 2]), retry=Retry(max=2, interval=5)
    )
    stored = rqjobs.Job.fetch(job.id, connection=redis)
    assert (
        stored.repeats_left,
        stored.repeat_intervals,
        stored.retries_left,
        stored.retry_intervals,
    ) == (3, [1, 2], 2, [5])


def test_dependent_enqueue_whose_reply_is_lost_is_not_repeated(redis, settings):
    """redis-py raises WatchError for a broken connection as well as for a changed key.

    RQ then enqueued the job again. If the parent had ended in between, the job ran twice.
    """
    parent = rqjobs.enqueue(sample_jobs.ok)
    with tempfile.TemporaryDirectory() as folder:
        proxy = Proxy(
            f"{folder}/proxy", settings.redis_url.removeprefix("unix://").partition("?")[0]
        )
        try:
            queue = rqjobs.queues.Queue("default", connection=connection.connect(proxy.url))
            proxy.arm(Fault(0, "cut", True, lambda pid, words: words[0] == b"EVALSHA"))
            with pytest.raises(ConnectionError):
                queue.enqueue(sample_jobs.ok, depends_on=parent, job_id="child")
        finally:
            proxy.close()
    assert redis.zrange("rq:deferred:default", 0, -1) == [b"child"]
    assert not audit.audit(redis, settle=0).breaches


def test_reused_id_does_not_expire_with_the_earlier_job(redis):
    """The new job inherited the expiry of the finished one, and its hash vanished."""
    for enqueue in (
        lambda: rqjobs.enqueue(sample_jobs.ok, 2, job_id="again"),
        lambda: rqjobs.enqueue_in(60, sample_jobs.ok, 2, job_id="again"),
        lambda: rqjobs.enqueue(
            sample_jobs.ok, 2, job_id="again", depends_on=rqjobs.enqueue(sample_jobs.ok)
        ),
    ):
        redis.flushall()
        rqjobs.enqueue(sample_jobs.ok, 1, job_id="again", result_ttl=100)
        rqjobs.Worker(["default"]).work(burst=True, logging_level="WARNING")
        assert redis.ttl("rq:job:again") > 0
        enqueue()
        assert redis.ttl("rq:job:again") == -1


@pytest.mark.parametrize(
    "options",
    [
        {"ttl": 10**17},
        {"result_ttl": 10**17},
        {"failure_ttl": 10**17},
        {"job_timeout": 10**400},
        {"job_id": "x" * 256},
    ],
)
def test_numbers_and_ids_beyond_redis_limits_are_refused(redis, options):
    """Redis refused the ttl after the hash was written. The time limit was beyond a float.

    The id had no room in the horse's shared memory, so the parent did not count its crashes.
    """
    with pytest.raises(ValueError, match="use at most"):
        rqjobs.enqueue(sample_jobs.ok, **options)
    assert not redis.keys("*")


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"timeout": "-1"},
        {"timeout": ""},
        {"ttl": "60", "result_ttl": "0", "failure_ttl": "-1"},
        {
            "data": zlib.compress(
                b'["sample_jobs.add", null, [1, {"__rqjobs__": ["tuple", [2]]}], {}]'
            )
        },
        {"description": "Grüße", "started_at": "", "worker_name": "", "ended_at": ""},
        {"started_at": "2026-11-21T12:00:00.000001Z", "worker_name": "w", "rqjobs_token": "t"},
        {"created_at": "2026-11-21T12:00:00Z"},
        {"meta": b'{"a": 1}', "dependency_ids": '["one"]', "retries_left": "2"},
        {"repeats_left": "2", "repeat_intervals": "[1]"},
        {"success_callback_name": "sample_jobs.ok"},
        {"unknown": "x"},
    ],
)
def test_fast_path_reads_a_job_as_rq_does(redis, change):
    """A plain job's hash is read by `plain_jobs`, any other by RQ's `restore`."""
    rqjobs.enqueue(sample_jobs.add, 1, b=2, job_id="one")
    redis.hset("rq:job:one", mapping={"status": "queued", **change})
    fields = redis.hgetall("rq:job:one")
    expected, found = Job("one", connection=redis), Job.from_hash("one", fields, redis)
    expected.restore(fields)
    assert (found.func_name, found.args, found.kwargs) == (
        expected.func_name,
        expected.args,
        expected.kwargs,
    )
    assert vars(found) == vars(expected)


@pytest.mark.parametrize(
    "change",
    [
        {"timeout": "1m"},
        {"status": "unheard"},
        {"ttl": "x"},
        {"created_at": "then"},
        {"origin": b"\xff"},
    ],
)
def test_unreadable_plain_field_is_an_error(redis, change):
    rqjobs.enqueue(sample_jobs.ok, job_id="one")
    redis.hset("rq:job:one", mapping=change)
    with pytest.raises(ValueError):
        Job.from_hash("one", redis.hgetall("rq:job:one"), redis)


@pytest.mark.parametrize("more", [{}, {"meta": "{}"}])
def test_data_compressed_twice_are_decompressed_once(redis, more):
    """RQ decompressed the decompressed data again, without a limit: 7 kB became 4 GB."""
    bomb = zlib.compress(zlib.compress(b"x"))
    fields = {b"data": bomb, b"created_at": b"2026-11-21T12:00:00Z"}
    job = Job.from_hash(
        "one", {**fields, **{name.encode(): value.encode() for name, value in more.items()}}, redis
    )
    assert job.data == zlib.compress(b"x")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"description": "Grüße"},
        {"ttl": 60, "result_ttl": 0, "failure_ttl": -1, "job_timeout": -1},
        {"meta": {"a": 1}},
        {"retry": Retry(2, [1])},
        {"repeat": Repeat(2, 1)},
        {"at_front": True},
        {"on_success": Callback("sample_jobs.ok", 5)},
        {"on_failure": Callback("sample_jobs.ok")},
        {"on_stopped": Callback("sample_jobs.ok")},
        {"depends_on": "another"},
    ],
)
def test_fast_path_writes_a_new_job_as_rq_does(redis, options):
    """`plain_jobs` writes a plain job, RQ's `to_dict` any other. Empty fields are left out."""

    def non_empty(fields):
        return {name: value for name, value in fields.items() if value != ""}

    queue = rqjobs.queue("default")
    rqjobs.enqueue(sample_jobs.ok, job_id="another")
    for name in [
        None,
        *vars(Job("one", connection=redis)),
    ]:  # and with each attribute of RQ's job
        job = queue.enqueue(sample_jobs.ok, "x" * 600, **options)
        if name and name not in (
            "_id",
            "connection",
            "serializer",
            "log",
            "_data",
            "data",
            "created_at",
            "webhooks",
        ):
            setattr(job, name, {"_dependency_ids": ["other"], "meta": {"b": 2}}.get(name, 1))
            if name.endswith("ed_at") or name == "last_heartbeat":
                setattr(job, name, job.created_at + timedelta(microseconds=7))
        job.is_new = True
        expected = non_empty(job.to_dict())
        assert job.to_hash() == (True, expected)
        assert job.to_hash() == (False, job.to_dict())


def test_job_with_changed_attributes_is_written_as_rq_does(redis):
    class Tenant(Job):
        def to_dict(self, *args, **options):
            return {**super().to_dict(*args, **options), "tenant": "acme"}

    rqjobs.Queue("default", connection=redis, job_class=Tenant).enqueue(sample_jobs.ok, 1)
    queue = rqjobs.queue("default")
    for name, value in {"created_at": None, "ttl": 0}.items():
        job = queue.create_job(sample_jobs.ok)
        setattr(job, name, value)
        queue.enqueue_job(job)
    found = [redis.hgetall(f"rq:job:{job_id}") for job_id in queue.job_ids]
    assert [fields.get(b"tenant") for fields in found] == [b"acme", None, None]
    assert all(fields[b"created_at"] and b"ttl" not in fields for fields in found)


def test_current_job_is_set_only_while_it_runs(redis):
    queue = rqjobs.Queue("default", connection=redis, is_async=False)
    job = queue.enqueue(sample_jobs.whoami)
    assert job.return_value() == job.id and rq.get_current_job() is None
    assert queue.enqueue(sample_jobs.boom).is_failed and rq.get_current_job() is None


def end(redis, job, status):
    redis.hset(job.key, "status", status)
    redis.lrem("rq:queue:default", 0, job.id)


@pytest.mark.parametrize("with_pipeline", [False, True])
def test_dependent_that_allows_a_past_failure_is_queued_at_once(redis, with_pipeline):
    """The job was deferred forever, because dependents are enqueued only when the parent ends."""
    parent = rqjobs.enqueue(sample_jobs.ok)
    end(redis, parent, "failed")
    after = Dependency(jobs=[parent], allow_failure=True)
    with redis.pipeline() as pipe:
        job = rqjobs.enqueue(
            sample_jobs.ok, depends_on=after, **({"pipeline": pipe} if with_pipeline else {})
        )
        pipe.execute()
    never = rqjobs.enqueue(sample_jobs.ok, depends_on=parent)
    assert rqjobs.queue("default").job_ids == [job.id] and job.get_status() == JobStatus.QUEUED
    assert never.get_status(refresh=False) == never.get_status() == JobStatus.DEFERRED


@pytest.mark.parametrize("first", ["the other job", "the time"])
def test_delayed_dependent_waits_for_its_time_and_its_parent(redis, first):
    """The delayed job ran without waiting for its parent."""
    parent = rqjobs.enqueue(sample_jobs.ok)
    job = rqjobs.enqueue_in(
        600 if first == "the other job" else -1, sample_jobs.ok, depends_on=parent
    )
    assert job.get_status() == JobStatus.DEFERRED and not redis.exists("rq:scheduled:default")
    end(redis, parent, "finished")
    redis.sadd(keys.ENDED_PARENTS, parent.id)
    sweep.enqueue_waiting_dependents(redis)
    if first == "the other job":
        assert job.get_status() == JobStatus.SCHEDULED and not rqjobs.queue("default").count
        redis.zadd("rq:scheduled:default", {job.id: 1})
        assert transitions.promote(redis, "default", 180) == 1
    assert rqjobs.queue("default").job_ids == [job.id] and job.get_status() == JobStatus.QUEUED
    assert not audit.audit(redis, settle=0).breaches


def test_delayed_dependent_of_an_ended_parent_waits_for_its_time_only(redis):
    parent = rqjobs.enqueue(sample_jobs.ok)
    end(redis, parent, "finished")
    job = rqjobs.enqueue_in(600, sample_jobs.ok, depends_on=parent)
    assert job.get_status() == JobStatus.SCHEDULED and redis.zscore("rq:scheduled:default", job.id)


def test_reused_id_has_no_options_of_the_earlier_job(redis):
    """The later job had the retries and the parents of the earlier one."""
    parent = rqjobs.enqueue(sample_jobs.ok)
    rqjobs.enqueue(
        sample_jobs.ok,
        1,
        job_id="again",
        depends_on=parent,
        retry=Retry(max=3, interval=5),
        meta={"first": 1},
        repeat=Repeat(times=2),
        result_ttl=5,
        ttl=50,
        at_front=True,
    )
    rqjobs.enqueue(sample_jobs.ok, 2, job_id="again")
    fields = rqjobs.Job.fetch("again", connection=redis)
    assert (
        fields.retries_left,
        fields.repeats_left,
        fields.meta,
        fields.result_ttl,
        fields.ttl,
    ) == (None, None, {}, None, None)
    assert fields._dependency_ids == fields.dependency_ids == [] and redis.ttl("rq:job:again") == -1
    assert not redis.exists(parent.dependents_key)


def test_pipeline_works_when_redis_has_no_scripts_loaded(redis):
    """An error within a transaction cannot be retried, so a pipeline contains the full script."""
    redis.script_flush()
    with redis.pipeline() as pipe:
        pipe.set("before", 1)
        job = rqjobs.enqueue(sample_jobs.ok, pipeline=pipe)
        later = rqjobs.enqueue_in(60, sample_jobs.ok, pipeline=pipe)
        assert not redis.exists(job.key)
        pipe.execute()
    with redis.pipeline() as pipe:
        pipe.watch("before")
        rqjobs.enqueue(sample_jobs.ok, pipeline=pipe)
        redis.set("before", 2)
        with pytest.raises(WatchError):
            pipe.execute()
    assert rqjobs.queue("default").job_ids == [job.id] and redis.zscore(
        "rq:scheduled:default", later.id
    )


def test_save_writes_only_the_changed_fields(redis):
    made = rqjobs.enqueue(sample_jobs.ok, job_id="one", meta={"a": 1})
    read = Job.fetch("one", connection=redis)
    redis.hset(
        "rq:job:one",
        mapping={"status": "finished", "ended_at": "2030-01-01T00:00:00Z", "worker_name": "w"},
    )
    made.meta["b"], read.description = 2, "new"
    for job in made, read:
        with redis.pipeline() as pipe:
            job.save(pipeline=pipe)
            pipe.execute()
    found = Job.fetch("one", connection=redis)
    assert (found.get_status(), found.worker_name, found.meta, found.description) == (
        JobStatus.FINISHED,
        "w",
        {"a": 1, "b": 2},
        "new",
    )
    read.description = "old"
    read.save()
    read.description = "new"
    read.save()
    assert redis.hget("rq:job:one", "description") == b"new"


def test_save_of_a_deleted_job_stores_nothing(redis):
    """The save left a hash with a few fields."""
    job = rqjobs.enqueue(sample_jobs.ok)
    job.delete()
    job.meta["late"] = 1
    job.save()
    job.save_meta()
    assert not redis.exists(job.key)


def test_enqueue_many_keeps_the_order_and_defers_dependents(redis):
    queue = rqjobs.queue("low")
    parent = queue.prepare_data(sample_jobs.ok, job_id="parent")
    jobs = queue.enqueue_many(
        [
            queue.prepare_data(sample_jobs.ok, depends_on="parent", job_id="child"),
            parent,
            *(queue.prepare_data(sample_jobs.ok, (n,)) for n in range(450)),
        ]
    )
    assert [job.id for job in jobs[:1] + jobs[-1:]] == ["parent", "child"]
    assert (
        queue.job_ids == [job.id for job in jobs[:-1]]
        and jobs[-1].get_status(refresh=False) == JobStatus.DEFERRED
    )
    assert redis.zrange("rq:deferred:low", 0, -1) == [
        b"child"
    ] and b"rq:queue:low" in redis.smembers("rq:queues")


def test_job_with_a_parent_counts_as_deferred_until_its_pipeline_runs(redis):
    """RQ reads the parents before the pipeline runs; here the script looks at them within it."""
    parent = rqjobs.enqueue(sample_jobs.ok)
    with redis.pipeline() as pipe:
        job = rqjobs.queue("default").enqueue(sample_jobs.ok, depends_on=parent, pipeline=pipe)
        free = rqjobs.queue("default").enqueue(sample_jobs.ok, pipeline=pipe)
        assert job.get_status(refresh=False) == JobStatus.DEFERRED
        assert free.get_status(refresh=False) == JobStatus.QUEUED
        pipe.execute()
    assert job.get_status() == JobStatus.DEFERRED and free.get_status() == JobStatus.QUEUED
    parent.set_status(JobStatus.FINISHED)
    with redis.pipeline() as pipe:
        job = rqjobs.queue("default").enqueue(sample_jobs.ok, depends_on=parent, pipeline=pipe)
        assert job.get_status(refresh=False) == JobStatus.QUEUED
        pipe.execute()
    assert job.get_status() == JobStatus.QUEUED


def test_a_job_object_of_rq_itself_can_be_enqueued(redis):
    job = rq.job.Job.create(
        "sample_jobs.ok", connection=redis, serializer=rqjobs.serializers.ConfiguredSerializer
    )
    child = rq.job.Job.create(
        "sample_jobs.ok",
        connection=redis,
        serializer=rqjobs.serializers.ConfiguredSerializer,
        depends_on=job,
    )
    for each in (job, child):
        rqjobs.queue("default").enqueue_job(each)
    assert child.get_status() == JobStatus.DEFERRED
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    assert job.is_finished and child.is_finished
