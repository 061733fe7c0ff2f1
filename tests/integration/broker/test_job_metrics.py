"""The counts of a worker, and how they get into Redis."""

from __future__ import annotations

import pytest
import redis as redis_py

from rqjobs import job_metrics
from rqjobs.broker import keys
from rqjobs.job_metrics import BOUNDS, CountsSender, JobCounts, Outcome, read_function_metrics


@pytest.fixture
def counts():
    return JobCounts(lambda name: name != "unknown")


def metrics(redis):
    found = read_function_metrics(redis.hgetall(keys.METRICS))
    return {(one.function, one.queue): one for one in found}


def test_a_value_is_counted_in_the_bucket_whose_bound_it_does_not_exceed(redis, counts):
    for seconds in (0.0, 0.005, 0.0051, 3600.0, 1e6):
        counts.note("a.f", "q", Outcome.FINISHED, seconds, 0.0)
    CountsSender(counts).send(redis)
    one = metrics(redis)["a.f", "q"]
    cumulative = dict(one.wait.cumulative())
    assert [cumulative[bound] for bound in ("0.005", "0.01", "3600", "+Inf")] == [2, 3, 4, 5]
    assert dict(one.run.cumulative())["0.005"] == 5
    assert one.wait.seconds == pytest.approx(1_003_600.0101)
    assert one.outcomes["finished"] == 5
    assert [*cumulative] == [*BOUNDS]


def test_only_what_is_new_is_sent_and_several_workers_add_up(redis, counts):
    senders = [CountsSender(counts), CountsSender(JobCounts(lambda name: True))]
    for _ in range(3):
        for sender in senders:
            sender.counts.note("a.f", "q", Outcome.FAILED, 1.0, 1.0)
            sender.send(redis)
            sender.send(redis)
    assert metrics(redis)["a.f", "q"].outcomes["failed"] == 6


def test_counts_are_added_once_though_their_reply_was_lost(redis, counts, monkeypatch):
    sender = CountsSender(counts)
    counts.note("a.f", "q", Outcome.FINISHED, 1.0, 1.0)
    real = job_metrics.ADD_METRICS.run

    def lose_reply(*args):
        real(*args)
        raise redis_py.ConnectionError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(job_metrics.ADD_METRICS, "run", lose_reply)
        with pytest.raises(redis_py.ConnectionError):
            sender.send(redis)
    counts.note("a.f", "q", Outcome.FINISHED, 1.0, 1.0)
    sender.send(redis)
    sender.send(redis)
    assert metrics(redis)["a.f", "q"].outcomes["finished"] == 2


def test_names_are_bounded(redis, counts):
    """In the memory of one worker, and in Redis for all of them."""
    other = job_metrics.OTHER_NAME
    for name in ("unknown", "long" * 100, "nul\0"):
        counts.note(name, "q", Outcome.FINISHED, 0.0, 0.0)
    for number in range(job_metrics.MAX_SERIES + 50):
        counts.note(f"a.f{number}", "q", Outcome.FINISHED, 0.0, 0.0)
    CountsSender(counts).send(redis)
    more = JobCounts(lambda name: True)
    for number in range(5):
        more.note(f"b.f{number}", "q", Outcome.FINISHED, 0.0, 0.0)
    CountsSender(more).send(redis)
    found = metrics(redis)
    assert len(found) <= job_metrics.MAX_SERIES + 1
    assert ("b.f4", "q") not in found
    total = sum(one.outcomes["finished"] for one in found.values())
    assert total == 3 + job_metrics.MAX_SERIES + 50 + 5
    assert found[other, other].outcomes["finished"] == 3 + 50 + 5


def test_a_key_of_the_wrong_type_stops_nothing(redis, counts):
    redis.set(keys.METRICS, "text")
    counts.note("a.f", "q", Outcome.FINISHED, 0.0, 0.0)
    CountsSender(counts).send(redis)
    assert redis.get(keys.METRICS) == b"text"
