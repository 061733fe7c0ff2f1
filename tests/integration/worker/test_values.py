"""Odd values: a job's result, exception, log line or meta can end that job only."""

from __future__ import annotations

import asyncio
import sys
import warnings

import odd_values
import pytest
import sample_jobs
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rq import Callback
from rq.defaults import UNSERIALIZABLE_RETURN_VALUE_PAYLOAD
from rq.job import JobStatus

import rqjobs
from rqjobs import Retry, config, connection
from rqjobs.texts import format_exception

UNCARRIED = {
    "unprintable",
    "texts",
    "quits",
    "liar",
    "leaver",
    "endless",
    "nameless",
    "nameless class",
    "huge number",
    "deep",
    "object",
    "lock",
    "module",
    "function",
    "keys",
    "bytes",
    "exception",
}


@pytest.fixture(autouse=True)
def odd(settings):
    config.use(modules=("sample_jobs", "odd_values"), shutdown_timeout=60)


def burst(**options):
    rqjobs.Worker(["default"], **options).work(burst=True, logging_level="CRITICAL")


def trace(job):
    result = job.latest_result()
    return result.exc_string if result else ""


def check_return(job, kind):
    if kind == "coroutine" and job.func_name == "odd_values.give":
        assert job.return_value() == 1
    elif kind in odd_values.UNRUN:
        assert job.is_failed and "of which nothing has run" in trace(job), kind
    elif kind in ("quits", "liar", "endless"):  # the value raises a BaseException
        assert job.is_finished or trace(job), kind
    else:
        assert job.is_finished, (kind, trace(job))
        expected = {"surrogate": "\ud800 and \udcff", "plain": {"a": [1, "b"]}, "none": None}
        assert job.return_value() == expected.get(kind, UNSERIALIZABLE_RETURN_VALUE_PAYLOAD), kind


def check_failure(job, kind):
    assert job.is_failed and "could not be recorded" not in trace(job), (kind, job.get_status())
    words = {
        "surrogate": r"ValueError: \ud800 \udcff",
        "odd module": "Odd",
        "nameless": "Nameless",
        "cyclic": "second",
        "exit": "SystemExit: 3",
        "odd text": "OddText",
        "interrupt": "KeyboardInterrupt",
    }
    assert words.get(kind, "") in trace(job) and "odd_values.py" in trace(job), (
        kind,
        trace(job)[-500:],
    )


def check_meta(job, kind):
    assert job.is_failed and "could not be recorded" not in trace(job), trace(job)
    if job.kwargs["save"] and kind in UNCARRIED:
        assert "PayloadError" in trace(job) or kind in ("liar", "endless", "quits"), (
            kind,
            trace(job),
        )
    else:
        assert "ValueError: after the meta" in trace(job), (kind, trace(job))


def check_end(job, kind):
    assert job.is_finished, (kind, trace(job))


VALUE = st.sampled_from([*odd_values.VALUES])
RUNS = st.one_of(
    st.tuples(
        st.sampled_from(["give", "give_later"]),
        VALUE | st.sampled_from([*odd_values.UNRUN]),
        st.just({}),
    ),
    st.tuples(st.just("throw"), st.sampled_from([*odd_values.ERRORS]), st.just({})),
    st.tuples(st.just("put"), VALUE, st.fixed_dictionaries({"save": st.booleans()})),
    st.tuples(st.sampled_from(["log", "rename"]), VALUE, st.just({})),
)
CHECKS = {
    "give": check_return,
    "give_later": check_return,
    "throw": check_failure,
    "put": check_meta,
    "log": check_end,
    "rename": check_end,
}
ALL = [
    *[("give", kind, {}) for kind in odd_values.VALUES | odd_values.UNRUN],
    *[("throw", kind, {}) for kind in odd_values.ERRORS],
    *[("put", kind, {"save": save}) for kind in odd_values.VALUES for save in (True, False)],
    *[(role, kind, {}) for kind in odd_values.VALUES for role in ("log", "rename")],
]


@hypothesis_settings(deadline=None, max_examples=3)
@given(st.lists(RUNS, min_size=10, max_size=30), st.sampled_from([None, Retry(max=1)]))
@example(ALL, None)
def test_no_value_of_a_job_affects_another_job(runs, retry):
    """One horse runs all of them. Its process is the same before and after; no crash is counted."""
    client = connection.client()
    client.flushall()
    before = rqjobs.enqueue(sample_jobs.pid)
    jobs = [
        rqjobs.queue("default").enqueue(f"odd_values.{role}", kind, retry=retry, **options)
        for role, kind, options in runs
    ]
    after = rqjobs.enqueue(sample_jobs.pid)
    burst()
    for job, (role, kind, _) in zip(jobs, runs, strict=True):
        CHECKS[role](job, kind)
        assert not client.hexists(job.key, "rqjobs_crashes"), (role, kind)
    assert before.return_value() == after.return_value() is not None


def test_worker_survives_a_log_handler_that_raises(redis):
    jobs = [
        rqjobs.enqueue(odd_values.break_logs),
        rqjobs.enqueue(sample_jobs.boom),
        rqjobs.enqueue(sample_jobs.pid),
    ]
    rqjobs.Worker(["default"]).work(burst=True, logging_level="DEBUG")
    assert [job.get_status() for job in jobs] == [
        JobStatus.FINISHED,
        JobStatus.FAILED,
        JobStatus.FINISHED,
    ]
    assert "ValueError: boom" in trace(jobs[1])


def test_worker_survives_an_exception_handler_that_raises(redis):
    jobs = [
        rqjobs.enqueue(sample_jobs.pid),
        rqjobs.enqueue(sample_jobs.boom),
        rqjobs.enqueue(sample_jobs.pid),
    ]
    burst(exception_handlers=[odd_values.handle])
    assert jobs[1].is_failed and "ValueError: boom" in trace(jobs[1])
    assert jobs[0].return_value() == jobs[2].return_value() is not None


@pytest.mark.parametrize(
    "attribute",
    [
        "started_at",
        "_failure_callback_name",
        "serializer",
        "origin",
        "_id",
        "meta",
        "returned",
        "connection",
        "result_ttl",
        "webhooks",
    ],
)
def test_job_that_breaks_its_own_attributes_fails_alone(redis, attribute):
    jobs = [
        rqjobs.enqueue(sample_jobs.pid),
        rqjobs.enqueue(odd_values.lose, attribute),
        rqjobs.enqueue(sample_jobs.pid),
    ]
    burst()
    assert jobs[1].get_status() in (JobStatus.FINISHED, JobStatus.FAILED), jobs[1].get_status()
    assert not redis.hexists(jobs[1].key, "rqjobs_crashes")
    assert jobs[0].return_value() == jobs[2].return_value() is not None


def test_result_is_not_converted_to_a_string(redis):
    """RQ's worker does so for a log line, however large the result is."""

    class Loud:
        def __str__(self):
            raise AssertionError("it is")

    job = rqjobs.Job.create("sample_jobs.ok", connection=redis)
    job._func_name, job._args, job._kwargs, job._instance = "sample_jobs.ok", [Loud()], {}, None
    job.hide_result()
    assert job.perform() is None and isinstance(job.hidden_result, Loud)


def test_success_callback_gets_the_result(redis):
    rqjobs.enqueue(sample_jobs.ok, 7, on_success=rqjobs.Callback(sample_jobs.on_done))
    burst()
    assert redis.lrange("callback", 0, -1)[0].endswith(b":7")


@pytest.mark.parametrize("kind", odd_values.ERRORS)
def test_every_exception_has_a_traceback(kind):
    error = odd_values.ERRORS[kind]()
    text = "".join(format_exception(type(error), error, error.__traceback__))
    assert text.endswith("\n") and text.encode()


def test_generator_function_is_not_a_job():
    """A call runs nothing, and the job would finish."""
    for function in (odd_values.rows, odd_values.pages):
        for given_as in (function, f"odd_values.{function.__name__}"):
            with pytest.raises(
                rqjobs.NotAJob, match="a generator function, whose call runs nothing"
            ):
                rqjobs.enqueue(given_as)
        for decorate in (rqjobs.job, rqjobs.job(queue="low"), rqjobs.every(minutes=5)):
            with pytest.raises(TypeError, match="a generator function, whose call runs nothing"):
                decorate(function)


@pytest.mark.parametrize("option", ["on_success", "on_failure", "on_stopped"])
def test_async_callback_is_refused(redis, option):
    """A call runs nothing, and the job finished."""
    for function, words in (
        (odd_values.told, "asyncio.run"),
        (odd_values.rows, "a plain function"),
    ):
        for callback in (Callback(function), Callback(f"odd_values.{function.__name__}")):
            with pytest.raises(rqjobs.NotAJob, match=f"whose call runs nothing; make .*{words}"):
                rqjobs.enqueue(sample_jobs.ok, **{option: callback})
    assert not redis.keys("rq:job:*")


def test_async_job_leaves_no_descriptor_and_no_event_loop(redis):
    counts = [rqjobs.enqueue(odd_values.count_descriptors) for _ in range(20)]
    loop = rqjobs.enqueue(odd_values.has_loop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        # A test of this process that called `asyncio.run` has left it without a loop.
        asyncio.set_event_loop_policy(None)
        burst()
    assert counts[0].return_value() == counts[-1].return_value() > 0
    assert loop.return_value() or sys.version_info >= (3, 14)


def test_coroutine_past_its_time_limit_ends_within_its_job(redis, tmp_path):
    """Its tasks end too: each `finally` runs before the next job, as with `asyncio.run`."""
    path = tmp_path / "notes"
    job = rqjobs.enqueue(odd_values.tidy, str(path), job_timeout=1)
    after = rqjobs.enqueue(sample_jobs.later, 1)
    burst()
    assert (
        job.is_failed
        and "exceeded maximum timeout value (1 seconds)" in trace(job)
        and after.is_finished
    )
    assert sorted(path.read_text().splitlines()) == [
        f"aside in {job.id}",
        f"main with 1 in {job.id}",
    ]


@pytest.mark.parametrize(
    ("description", "stored"),
    [
        ("half \ud83d", r"half \ud83d"),
        ("a\0b\x1b[31m", "a\0b\x1b[31m"),
        ("x" * 5_000_000, "x" * 9_999 + "…"),
    ],
)
def test_every_description_is_stored_within_bounds(redis, description, stored):
    job = rqjobs.enqueue(sample_jobs.ok, description=description)
    (many,) = rqjobs.enqueue_many(
        [rqjobs.queue("default").prepare_data(sample_jobs.ok, description=description)]
    )
    burst()
    for one in (job, many):
        assert rqjobs.Job.fetch(one.id, connection=redis).description == stored
        assert one.is_finished


def test_description_that_is_not_a_string_is_refused():
    with pytest.raises(TypeError, match="a job's description is a text, not a dict"):
        rqjobs.enqueue(sample_jobs.ok, description={"a": 1})


def test_lone_surrogates_are_stored_as_escapes(redis):
    redis.set("key \ud800", "value \udcff ü")
    with redis.pipeline() as pipe:
        pipe.get("key \\ud800")
        pipe.get("key \ud800")
        assert pipe.execute() == [rb"value \udcff " + "ü".encode()] * 2


def test_event_loop_of_a_coroutine_is_closed():
    from rqjobs.coroutines import run_coroutine

    async def work():
        return asyncio.get_running_loop()

    assert run_coroutine(work()).is_closed()


def test_unreadable_meta_is_shown_in_part_and_stays_stored(redis):
    job = rqjobs.enqueue(sample_jobs.boom, retry=Retry(max=1))
    redis.hset(job.key, "meta", b"\x80" * 5_000_000)
    found = rqjobs.Job.fetch(job.id, connection=redis)
    assert found.meta == {"unserialized": b"\x80" * 1000}
    found.description = "changed"
    found.save()
    burst()
    assert job.is_failed and rqjobs.Job.fetch(job.id, connection=redis).description == "changed"
    assert redis.hget(job.key, "meta") == b"\x80" * 5_000_000
