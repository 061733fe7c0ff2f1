"""Hooks: each is called where docs/hooks.md says, and its exceptions harm no job."""

from __future__ import annotations

import asyncio
import os

import hook_jobs
import pytest
import sample_jobs
from helpers import every_way
from rq.timeouts import JobTimeoutException

import rqjobs
from rqjobs import catalog, config, hooks
from rqjobs.serializers import PayloadError

MODULES = ("sample_jobs", "hook_jobs")


@pytest.fixture(autouse=True)
def jobs_module(settings, environ):
    environ["RQJOBS_MODULES"] = ",".join(MODULES)
    config.use(modules=MODULES, shutdown_timeout=60)


@pytest.fixture
def registered():
    with hook_jobs.registered():
        yield


@pytest.fixture
def register():
    """Register a function for the time of the test."""
    added = []

    def now(hook, function):
        added.append((hook, hook(function)))

    yield now
    for hook, function in added:
        hook.remove(function)


def work():
    rqjobs.Worker(["default"]).work(burst=True, logging_level="ERROR")


def events(redis, *jobs):
    """The calls of the hooks for these jobs, as words without the id."""
    ids = {job.id.encode() for job in jobs}
    lines = [line.split() for line in redis.lrange(hook_jobs.EVENTS, 0, -1)]
    return [
        " ".join(map(bytes.decode, (name, *error)))
        for name, job_id, *error in lines
        if job_id in ids and name != b"after_enqueue"
    ]


def test_enqueue_hooks_see_each_job_once_and_before_it_is_stored(redis, registered):
    jobs = every_way(redis)
    jobs["sync"] = rqjobs.Queue("default", connection=redis, is_async=False).enqueue(sample_jobs.ok)
    for way, job in jobs.items():
        stored = rqjobs.Job.fetch(job.id, connection=redis)
        assert stored.meta == {"stamp": job.id}, way
    told = [
        line.split()[1].decode()
        for line in redis.lrange(hook_jobs.EVENTS, 0, -1)
        if line.startswith(b"after_enqueue ")
    ]
    del jobs["pipeline"], jobs["group"]  # only their owner knows when they are executed
    assert sorted(told) == sorted(job.id for job in jobs.values())


def test_a_job_that_is_not_stored_is_not_reported(redis, registered):
    first, second = (rqjobs.enqueue(sample_jobs.ok, unique="args") for _ in range(2))
    assert first.id == second.id
    assert redis.llen(hook_jobs.EVENTS) == 1
    rqjobs.schedules.add("hourly", rqjobs.every(hours=1), sample_jobs.ok)
    rqjobs.schedules.run_now("hourly")
    assert redis.llen(hook_jobs.EVENTS) == 1  # a script in Redis makes its jobs


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda job: {}["no tenant"], KeyError),
        (lambda job: job.meta.update(wrong=object()), PayloadError),
        (lambda job: job.meta.update(wrong="x" * 2**20), ValueError),
    ],
)
def test_before_enqueue_refuses_a_job_and_nothing_is_stored(redis, register, wrong, error):
    def refuse_the_last(job):
        if "last" in job.args:
            wrong(job)

    register(hooks.before_enqueue, refuse_the_last)
    queue = rqjobs.queue("default")
    many = [(sample_jobs.ok, number) for number in range(300)] + [(sample_jobs.ok, "last")]
    for enqueue in (
        lambda: rqjobs.enqueue(sample_jobs.ok, "last"),
        lambda: rqjobs.enqueue_in(60, sample_jobs.ok, "last"),
        lambda: queue.enqueue(sample_jobs.ok, "last", job_id="one", unique=True),
        lambda: rqjobs.enqueue_many(many),
        lambda: queue.enqueue_many([queue.prepare_data(f, (arg,)) for f, arg in many]),
    ):
        with pytest.raises(error):
            enqueue()
        assert not redis.dbsize()


def test_run_hooks_see_runs_and_errors(redis, registered):
    ok, failing = rqjobs.enqueue(hook_jobs.ok), rqjobs.enqueue(hook_jobs.fail)
    asked = {name: rqjobs.enqueue(hook_jobs.ask, name) for name in ("return", "retry", "snooze")}
    discarded = rqjobs.enqueue(hook_jobs.ask, "discard")
    refused = rqjobs.enqueue(sample_jobs.ok)
    redis.hset(refused.key, "data", '["os.getpid", null, [], {}]')
    work()
    run, end = ["before_run NoneType", "enter NoneType"], ["leave NoneType", "after_run NoneType"]
    bad = [*run, "leave ValueError", "after_run ValueError"]
    assert events(redis, ok) == run + end
    assert events(redis, failing) == [*bad, "on_retry ValueError", *bad, "on_failure ValueError"]
    with pytest.raises(ValueError, match="why"):
        failing.wait(0)
    assert events(redis, asked["return"]) == [*run, *end, "on_retry NoneType", *run, *end]
    assert events(redis, asked["retry"]) == [*run, *end, "on_retry RetryIn", *run, *end]
    assert events(redis, asked["snooze"]) == (run + end) * 2
    assert events(redis, discarded) == run + end
    assert events(redis, refused) == ["on_failure NotAJob"]
    assert {name: job.wait(0) for name, job in asked.items()} == {name: name for name in asked}
    pids = {int(pid) for pid in redis.smembers("pids")}
    assert len(pids) == 2 and os.getpid() in pids  # after_enqueue here, the others in the horse


def test_an_exception_of_a_run_hook_is_ignored(redis, register, caplog):
    def boom(job, error=None):
        kind = (SystemExit, asyncio.CancelledError, GeneratorExit)[len(caplog.records) % 3]
        raise kind(f"broken {len(caplog.records)}")

    def yields_twice(job):
        yield
        yield

    def does_not_yield(job):
        if job is None:
            yield

    for hook in (hooks.after_enqueue, hooks.before_run, hooks.after_run):
        register(hook, boom)
    for hook in (hooks.on_retry, hooks.on_failure):
        register(hook, boom)
    for function in (yields_twice, does_not_yield):
        register(hooks.around_run, function)
    fine, failing = rqjobs.enqueue(hook_jobs.ok), rqjobs.enqueue(hook_jobs.fail)
    assert "the hook after_enqueue (" in caplog.text
    work()
    assert fine.wait(0) == "ok"
    with pytest.raises(ValueError, match="why"):
        failing.wait(0)


def test_hooks_of_a_run_share_its_time_limit(redis, register):
    register(hooks.before_run, lambda job: sample_jobs.hang("gate"))
    job = rqjobs.enqueue(hook_jobs.ok, job_timeout=1)
    work()
    with pytest.raises(JobTimeoutException):
        job.wait(0)


def test_on_failure_is_called_for_a_job_whose_horse_was_killed(redis, worker, eventually):
    """In the finisher, with a `JobFailed`: the horse has left no exception."""
    process = worker("default", env={"HOOK_JOBS": "1", "RQJOBS_SHUTDOWN_TIMEOUT": "1"})
    job = rqjobs.enqueue(hook_jobs.ignore_limit, job_timeout=1)
    with pytest.raises(rqjobs.JobFailed, match="ignored its time limit"):
        job.wait(60)
    after = rqjobs.enqueue(hook_jobs.ok)
    assert after.wait(60) == "ok"
    # The next horse begins when the outcome is recorded, and the finisher then calls the hook.
    eventually(lambda: events(redis, job)[-1:] == ["on_failure JobFailed"], what=process.output)
    assert str(process.pid).encode() not in redis.smembers("pids")


def test_a_hook_is_no_job_function(register):
    def public(job):
        pass

    assert hooks.before_run(public) is public and hooks.before_run(public) is public
    assert hooks.before_run.functions == (public,) and hooks.has_run_hooks
    hooks.before_run.remove(public)
    assert not hooks.before_run.functions and not hooks.has_run_hooks
    public.__module__, public.__qualname__ = "hook_jobs", "public"
    assert not catalog._is_job_function(public, "hook_jobs", "public")


async def is_async(job):
    pass


@pytest.mark.parametrize(
    ("hook", "wrong", "message"),
    [
        (hooks.before_run, "name", "takes a function, def name(job), not 'name'"),
        (hooks.before_run, is_async, "is async; make it a plain def name(job)"),
        (hooks.before_run, lambda: None, "cannot be called as def name(job)"),
        (hooks.after_run, lambda job: None, "cannot be called as def name(job, error)"),
        (hooks.after_run, hook_jobs._around_run, "must not have a yield"),
        (hooks.around_run, hook_jobs._before_run, "must have one yield"),
    ],
)
def test_a_wrong_hook_is_an_error_at_once(hook, wrong, message):
    with pytest.raises(TypeError) as caught:
        hook(wrong)
    assert message in str(caught.value) and wrong not in hook.functions
