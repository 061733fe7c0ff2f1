"""Changes that a job makes to its process are undone before the next job."""

from __future__ import annotations

import io
import sys

import family
import pytest
from rq.job import JobStatus

import rqjobs
from rqjobs import config
from rqjobs.worker.leftovers import Leftovers


@pytest.mark.parametrize("kind", family.LEFTOVERS)
def test_process_is_restored_for_the_next_job(redis, monkeypatch, kind):
    """A closed stream made every later job fail that prints. A timer killed the horse under the
    next job, whose crash was counted. The exit code of each child was 0."""
    config.use(modules=("family",))
    monkeypatch.setenv("RQ_TEST_OF_LEFTOVERS", "as it was")
    before, job, after, last = [
        rqjobs.enqueue(*call, job_timeout=-1)
        for call in ((family.look,), (family.leave, kind), (family.look,), (family.look,))
    ]
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    assert job.get_status() == after.get_status() == JobStatus.FINISHED, (
        after.latest_result().exc_string
    )
    assert (
        before.return_value()
        and before.return_value() == after.return_value() == last.return_value()
    )
    assert not redis.hget(after.key, "rqjobs_crashes")


def test_a_detached_stream_cannot_be_restored(monkeypatch):
    """A detached stream raises when it is asked whether it is closed: the horse died of that."""
    stream = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", stream)
    leftovers = Leftovers()
    stream.detach()
    leftovers.undo()
    assert leftovers.are_final
