"""Wrappers of RQ's methods, as sentry-sdk, OpenTelemetry and ddtrace make them, see every job.

`tests/clients` tries the packages themselves.
"""

from __future__ import annotations

import functools
import itertools

import pytest
import rq
import rq.job
import sample_jobs
from helpers import every_way
from redis.exceptions import ResponseError

import rqjobs
from rqjobs import instrumentation


def work():
    assert rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")


@pytest.fixture
def wrap(monkeypatch):
    """Wrap methods of an RQ class, with keyword-only options, as sentry-sdk does.

    Each call writes a number into the job's `meta`, and its name and end into the returned list.
    """

    def make(owner, *names):
        calls, numbers = [], itertools.count(1)

        def wrapped(name):
            original = getattr(owner, name)

            @functools.wraps(original)
            def wrapper(self, job, *args, **options):
                assert not args or name != "enqueue_job"
                job.meta[name] = next(numbers)
                try:
                    value = original(self, job, *args, **options)
                except Exception as error:
                    calls.append((name, job.id, repr(error)))
                    raise
                calls.append((name, job.id, "returned"))
                return value

            monkeypatch.setattr(owner, name, wrapper)

        for name in names:
            wrapped(name)
        return calls

    return make


def test_every_way_to_enqueue_suits_a_keyword_only_wrapper(wrap, redis):
    wrap(rq.Queue, "enqueue_job")
    jobs = every_way(redis)
    rqjobs.Queue("default", connection=redis, is_async=False).enqueue(sample_jobs.ok)
    assert len({job.id for job in jobs.values()}) == len(jobs)


def test_wrapper_of_enqueue_job_sees_each_job_once_before_it_is_stored(wrap, redis):
    calls = wrap(rq.Queue, "enqueue_job")
    jobs = every_way(redis)
    headers = {
        way: rqjobs.Job.fetch(job.id, connection=redis).meta.get("enqueue_job")
        for way, job in jobs.items()
    }
    assert None not in headers.values() and len(set(headers.values())) == len(jobs), headers
    assert sorted(job_id for _, job_id, _ in calls) == sorted(job.id for job in jobs.values())


def test_wrapper_of_inner_steps_sees_each_job_once_before_it_is_stored(wrap, redis):
    calls = wrap(rq.Queue, "_enqueue_job", "schedule_job")
    jobs = every_way(redis)
    del jobs["dependent"], jobs["many, dependent"]  # the jobs are not enqueued yet
    stored = {way: rqjobs.Job.fetch(job.id, connection=redis).meta for way, job in jobs.items()}
    assert {way: list(meta) for way, meta in stored.items()} == {
        way: ["schedule_job" if way in ("in", "at") else "_enqueue_job"] for way in jobs
    }
    assert sorted(job_id for _, job_id, _ in calls) == sorted(job.id for job in jobs.values())


@pytest.mark.parametrize(
    ("method", "enqueue"),
    [
        ("enqueue_job", lambda: rqjobs.enqueue(sample_jobs.ok)),
        ("_enqueue_job", lambda: rqjobs.enqueue(sample_jobs.ok)),
        (
            "schedule_job",
            lambda: rqjobs.queue("default").enqueue_at(rq.utils.now(), sample_jobs.ok),
        ),
    ],
)
def test_job_is_stored_within_the_wrapper(method, enqueue, wrap, redis):
    calls = wrap(rq.Queue, method)
    redis.set("rq:queue:default", "not a list")
    with pytest.raises(ResponseError):
        enqueue()
    assert [name for name, _, outcome in calls if outcome != "returned"] == [method]


def test_headers_of_a_job_do_not_change_the_declared_meta(wrap, redis, monkeypatch):
    wrap(rq.Queue, "enqueue_job")
    declared = {"team": "a"}
    monkeypatch.setattr(sample_jobs.ok, "__rqjobs__", {"meta": declared}, raising=False)
    assert rqjobs.enqueue(sample_jobs.ok).meta == {"team": "a", "enqueue_job": 1}
    assert declared == {"team": "a"}


def test_wrapper_of_perform_sees_the_job_s_exception(monkeypatch, redis):
    original = rq.job.Job.perform

    def perform(self):
        try:
            value = original(self)
        except Exception as error:
            self.connection.rpush("spans", f"{self.id} {error!r}")
            raise
        self.connection.rpush("spans", f"{self.id} {value!r}")
        return value

    monkeypatch.setattr(rq.job.Job, "perform", perform)
    rqjobs.queue("default").enqueue(sample_jobs.ok, 1, job_id="a")
    rqjobs.queue("default").enqueue(sample_jobs.boom, job_id="b")
    work()
    assert redis.lrange("spans", 0, -1) == [b"a 1", b"b ValueError('boom')"]
    assert [rqjobs.Job.fetch(id, connection=redis).get_status() for id in "ab"] == [
        "finished",
        "failed",
    ]


def test_wrapped_perform_sends_no_command_before_the_job_runs(monkeypatch, redis):
    original = rq.job.Job.perform
    monkeypatch.setattr(rq.job.Job, "perform", lambda self: original(self))
    rqjobs.queue("default").enqueue(sample_jobs.ok, job_id="a", ttl=1000)
    redis.config_resetstat()
    work()
    assert redis.info("commandstats")["cmdstat_persist"]["calls"] == 1  # by the claim
    assert rqjobs.Job.fetch("a", connection=redis).get_status() == "finished"


@pytest.mark.parametrize("method", ["handle_job_success", "handle_job_failure"])
def test_wrappers_of_outcome_handlers_are_called(method, monkeypatch, redis):
    original = getattr(rq.Worker, method)

    def handle(self, job, queue, *args, **options):
        redis.rpush("spans", job.id)
        return original(self, job, queue, *args, **options)

    monkeypatch.setattr(rq.Worker, method, handle)
    rqjobs.queue("default").enqueue(sample_jobs.ok, 1, job_id="handle_job_success")
    rqjobs.queue("default").enqueue(sample_jobs.boom, job_id="handle_job_failure")
    work()
    assert redis.lrange("spans", 0, -1) == [method.encode()]
    assert rqjobs.Job.fetch("handle_job_success", connection=redis).return_value() == 1


def test_context_variables_end_with_their_job(redis):
    jobs = [rqjobs.enqueue(sample_jobs.before, name) for name in "abc"]
    work()
    found, pids = zip(*(job.return_value() for job in jobs), strict=True)
    assert found == (None, None, None) and len(set(pids)) == 1


def test_rq_s_own_methods_do_not_count_as_wrapped(wrap):
    assert not instrumentation.is_wrapped(rq.Queue, "enqueue_job", "_enqueue_job", "schedule_job")
    assert not instrumentation.is_wrapped(rq.job.Job, "perform")
    assert not instrumentation.is_wrapped(rq.Worker, "handle_job_success")
    wrap(rq.Queue, "schedule_job")
    assert instrumentation.is_wrapped(rq.Queue, "enqueue_job", "schedule_job")
