"""The listener: more queues than connections, and descriptors of any number."""

from __future__ import annotations

import os
import resource
import sys

import pytest
import sample_jobs

import rqjobs
from rqjobs import processes
from rqjobs.worker import listener


def test_readable_takes_descriptors_above_1023():
    """`select` refuses them. A worker with a thousand queues or open files failed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2000)), hard))
    reader, writer = os.pipe()
    try:
        high = os.dup2(reader, 1500)
        assert processes.readable([high], 0) == []
        os.write(writer, b"x")
        assert processes.readable([high], 0) == [high]
        os.close(high)
    finally:
        os.close(reader)
        os.close(writer)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("descriptors", [1024, 40])
def test_worker_serves_more_queues_than_it_has_connections(spawn, redis, eventually, descriptors):
    """A worker opened a connection for each of 2,000 queues, more than its limit of open files."""
    queues = [f"customer-{number}" for number in range(listener.MAX_CONNECTIONS + 36)]
    process = spawn(
        "sh",
        "-c",
        f'ulimit -n {descriptors}; exec "$@"',
        "sh",
        sys.executable,
        "-m",
        "rq.cli",
        "worker",
        "--worker-class",
        "rqjobs.Worker",
        *queues,
    )
    waiting = eventually(lambda: [one for one in redis.client_list() if one["cmd"] == "blmove"])
    for queue in queues[:: len(queues) - 1]:
        job = rqjobs.queue(queue).enqueue(sample_jobs.ok)
        eventually(lambda job=job: job.get_status() == "finished", what=process.output())
    waiting = eventually(lambda: [one for one in redis.client_list() if one["cmd"] == "blmove"])
    assert len(waiting) <= listener.MAX_CONNECTIONS
    assert ("raise `ulimit -n`" in process.output()) == (descriptors == 40)
