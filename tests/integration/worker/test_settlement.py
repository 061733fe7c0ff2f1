"""Outcomes: their size, how long they are kept, and that each job has one."""

from __future__ import annotations

from types import SimpleNamespace

import helpers
import pytest
import sample_jobs
from redis import exceptions as redis_errors
from rq.job import JobStatus

import rqjobs
from rqjobs import Callback, Repeat, Retry, config, job_metrics
from rqjobs.broker import keys, leases, recovery, scripts, transitions
from rqjobs.job_fields import ResultTooLarge
from rqjobs.maintenance import audit
from rqjobs.worker.ack_pipeline import SEND_BYTES, AckPipeline


def run(*queues):
    rqjobs.Worker(list(queues or ("default",))).work(burst=True, logging_level="INFO")


def reason(job):
    assert job.get_status() == JobStatus.FAILED, job.get_status()
    return job.latest_result().exc_string


def test_result_over_the_limit_fails_the_job_with_a_remedy(redis):
    """A result of 3 MB was sent forever to a Redis that takes 1 MB; the queue stood still."""
    config.use(max_result_bytes=2000)
    large = rqjobs.enqueue(
        sample_jobs.long, 1999, on_success=Callback(sample_jobs.on_done)
    )  # JSON adds two quotation marks
    fits = rqjobs.enqueue(sample_jobs.long, 1998)
    run()
    assert (
        "the job's result is 2,001 bytes, more than RQJOBS_MAX_RESULT_BYTES (2,000); store it elsewhere"
        in reason(large)
    )
    assert fits.return_value() == "x" * 1998 and not redis.exists("callback")


@pytest.mark.parametrize(
    "function, number", [(sample_jobs.long, 5000), (sample_jobs.empty_lists, 1500)]
)
def test_result_of_several_times_the_limit_fails_the_job(redis, function, number):
    """The job finished with "Unserializable return value" beyond twice the limit."""
    config.use(max_result_bytes=1000, max_payload_bytes=1000)
    job = rqjobs.enqueue(function, number)
    run()
    assert "ResultTooLarge: the job's result is too large: the value" in reason(job)
    assert "store it elsewhere" in reason(job)


@pytest.mark.parametrize("letters", [1000, 5000])
def test_arguments_over_the_limit_are_refused(redis, letters):
    config.use(max_result_bytes=1000, max_payload_bytes=1000)
    with pytest.raises(
        rqjobs.PayloadTooLarge,
        match=r"^the arguments of sample_jobs\.ok are .*RQJOBS_MAX_PAYLOAD_BYTES",
    ):
        rqjobs.enqueue(sample_jobs.ok, "x" * letters)


def test_meta_over_the_limit_is_refused_when_it_is_saved(redis):
    config.use(max_result_bytes=2000)
    job = rqjobs.enqueue(sample_jobs.large_meta, 3000, True)
    run()
    assert "the job's meta is" in reason(job)
    with pytest.raises(ResultTooLarge, match="store it elsewhere"):
        rqjobs.enqueue(sample_jobs.ok, meta={"a": "x" * 3000})


def test_long_traceback_is_cut_in_the_middle(redis):
    config.use(max_traceback_bytes=4000)
    job = rqjobs.enqueue(sample_jobs.boom, "begin" + "x" * 100_000 + "end")
    poison = rqjobs.enqueue(sample_jobs.ok)
    redis.hset(poison.key, "data", "\x00" + "y" * 100_000)
    run()
    trace = reason(job)
    assert (
        4000 < len(trace) < 4200
        and trace.startswith("Traceback")
        and trace.rstrip().endswith("xend")
    )
    assert "bytes are left out here: more than RQJOBS_MAX_TRACEBACK_BYTES" in trace


@pytest.fixture
def small_redis(redis):
    """A Redis that takes at most 1 MB at once. The settings allow more."""
    before = redis.config_get("proto-max-bulk-len")["proto-max-bulk-len"]
    redis.config_set("proto-max-bulk-len", "1mb")
    config.use(max_result_bytes=8_000_000, max_traceback_bytes=8_000_000)
    yield redis
    redis.config_set("proto-max-bulk-len", before)


@pytest.mark.parametrize("kind", ["result", "repeat", "traceback", "meta on a retry"])
def test_outcome_that_redis_refuses_for_its_size_fails_the_job(small_redis, kind):
    """Redis closes the connection, as in an outage. The outcome was sent again and again."""
    function, args, options = {
        "result": (sample_jobs.long, [3_000_000], {}),
        "repeat": (sample_jobs.long, [3_000_000], {"repeat": Repeat(times=2)}),
        "traceback": (sample_jobs.noise, [3_000_000], {}),
        "meta on a retry": (sample_jobs.large_meta, [3_000_000], {"retry": Retry(max=2)}),
    }[kind]
    job = rqjobs.enqueue(function, *args, **options)
    next_one = rqjobs.enqueue(sample_jobs.ok)
    run()
    assert next_one.is_finished
    assert "Redis closed the connection 4 times at an outcome of" in reason(job)
    assert not audit.audit(small_redis, settle=0.1).breaches


def kept(redis, job):
    """The seconds for which the job's hash, result and failed entry are kept; -1 is unlimited."""
    score = redis.zscore("rq:failed:default", job.id)
    return (
        redis.ttl(job.key),
        redis.ttl(f"rq:results:{job.id}"),
        -1 if score in (-1, float("inf")) else (score - redis.time()[0]),
    )


@pytest.mark.parametrize(
    ("failure_ttl", "seconds"), [(500, 500), (None, 365 * 24 * 3600), (-1, -1)]
)
@pytest.mark.parametrize("kind", ["boom", "poison", "unrecordable"])
def test_hash_result_and_entry_of_a_failed_job_expire_together(redis, kind, failure_ttl, seconds):
    """The hash of a poison job with failure_ttl=5 never expired; its result was gone after 5 s."""
    leases.renew_lease(redis, "me", {"pid": 1, "started": 2})
    job = rqjobs.enqueue(sample_jobs.boom, failure_ttl=failure_ttl)
    if kind == "boom":
        run()
    else:
        (claim,) = helpers.claim(redis, "me", ["default"])
        if kind == "poison":
            redis.hset(job.key, "rqjobs_crashes", ",".join([str(redis.time()[0])] * 2))
            assert recovery.reclaim(
                redis, "me", ["default"], recovery.DeathCause.PROCESS_GONE, process="1:2"
            ) == {job.id: "failed"}
        else:
            writes = transitions.failure_writes(claim, "me", "a reason")
            scripts.SETTLE.run(redis, *transitions.settle_arguments("me", claim, writes, "failed"))
    assert job.get_status() == JobStatus.FAILED
    for left in kept(redis, job):
        assert left == seconds or seconds - 100 < left <= seconds + 1


def test_save_meta_of_a_deleted_job_stores_nothing(redis):
    job = rqjobs.enqueue(sample_jobs.ok)
    job.meta["a"] = 1
    job.save_meta()
    assert rqjobs.Job.fetch(job.id, connection=redis).meta == {"a": 1}
    redis.delete(job.key)
    job.save_meta()
    assert not redis.exists(job.key)


class Forgetful(rqjobs.Worker):
    def perform_job(self, job, queue):
        return True if job.meta.get("forget") else super().perform_job(job, queue)


def test_perform_job_without_an_outcome_fails_the_job(redis):
    """Its claim was adopted again, 8,000 times in 4 s."""
    forgotten, done = (
        rqjobs.enqueue(sample_jobs.mark, "ran", meta={"forget": 1}),
        rqjobs.enqueue(sample_jobs.mark, "ran"),
    )
    Forgetful(["default"]).work(burst=True, logging_level="INFO")
    assert done.is_finished and redis.lrange("ran", 0, -1) == [done.id.encode()]
    assert (
        "Forgetful.perform_job returned without recording an outcome; let it call super()"
        in reason(forgotten)
    )
    assert not redis.keys("rqjobs:claims:*") and not redis.exists("rq:wip:default")


def test_acks_with_large_logs_are_sent_in_parts(redis):
    """A slow link had one time limit for all of them, so it would never have taken them."""
    acks, sizes = AckPipeline(redis), []
    acks._connect()
    connected = acks._connection
    acks._connection = SimpleNamespace(
        _sock=SimpleNamespace(
            sendall=lambda data: sizes.append(len(data)) or connected._sock.sendall(data),
            recv=lambda size: connected._sock.recv(size),
        )
    )
    large = b"x" * 300_000
    try:
        _, replies = acks.flush(("ECHO", large), ("ECHO", large), ("PING",))
    finally:
        connected.disconnect()
    assert replies[:2] == [large, large]
    assert max(sizes) == SEND_BYTES and sum(sizes) > 600_000


def test_a_success_whose_reply_was_lost_is_counted_once(redis, monkeypatch):
    """The metrics counted it, and RQ's worker key did not."""
    read, lost = AckPipeline._read, []

    def lose_first_reply(acks, number):
        replies = read(acks, number)
        if acks.pending and not lost:
            lost.append(True)
            raise redis_errors.ConnectionError("cut")
        return replies

    monkeypatch.setattr(AckPipeline, "_read", lose_first_reply)
    rqjobs.enqueue(sample_jobs.ok, 1)
    worker = rqjobs.Worker(["default"])
    worker.work(burst=True)
    assert redis.hget(worker.key, "successful_job_count") == b"1"
    (metrics,) = job_metrics.read_function_metrics(redis.hgetall(keys.METRICS))
    assert metrics.outcomes == {"finished": 1}
