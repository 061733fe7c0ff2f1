"""What a job leaves changed in its process is none of the next one's."""

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
def test_the_next_job_finds_the_process_as_the_first_one_did(redis, monkeypatch, kind):
    """Printing failed in every later job once one had closed the stream; a timer killed the next job's horse, and that
    counted as the job's; a child's exit code was 0, whatever it was."""
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


def test_after_a_detached_stream_the_horse_leaves_in_good_order(monkeypatch):
    """Asked whether it is closed, such a stream raises, and that ended the horse as if its job had crashed it."""
    stream = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", stream)
    leftovers = Leftovers()
    stream.detach()
    leftovers.undo()
    assert leftovers.are_final
