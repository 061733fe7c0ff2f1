"""`jobs_redis`: a private Redis, and a real worker that ends with its queues."""

import os
import signal
import threading
from pathlib import Path

import psutil
import pytest
from fixture_jobs import boom, hang, note, process_id

import rqjobs


def test_a_worker_runs_the_jobs(jobs_redis, server):
    assert rqjobs.client() is jobs_redis.client and jobs_redis.url != server
    here, there = rqjobs.enqueue(process_id), rqjobs.queue("emails").enqueue(process_id)
    failed, later = rqjobs.enqueue(boom), rqjobs.enqueue_in(60, note, 1)
    assert "quitting (queues empty)" in jobs_redis.work()
    assert os.getpid() not in (here.return_value(), there.return_value(), None)
    assert [failed.get_status(), later.get_status()] == ["failed", "scheduled"]
    jobs_redis.assert_enqueued(process_id, queue="emails", count=1)
    assert jobs_redis.client.zcard("rqjobs:leases") == 0  # the worker has gone


def test_a_worker_ends_with_its_test(jobs_redis, tmp_path, eventually):
    path = tmp_path / "pids"
    rqjobs.enqueue(hang, str(path))

    def interrupt():
        eventually(path.exists, timeout=60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        jobs_redis.work(timeout=600)
    thread.join()
    pids = [*map(int, path.read_text().split())]
    assert len(pids) == 2
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids))

    with pytest.raises(RuntimeError, match="had not ended"):
        jobs_redis.work(timeout=0.01)
    for queue, timeout in (("low", 0), ("low", "1"), ("a b", 1)):
        with pytest.raises(ValueError, match="is not a n"):
            jobs_redis.work(queue, timeout=timeout)


def test_a_thread_can_start_the_server(private_server):
    """The kernel would end the server with the thread that had started it."""
    other = type(private_server)(Path(private_server.home, "other"))
    other.home.mkdir()
    thread = threading.Thread(target=other.start)
    thread.start()
    thread.join()
    try:
        assert other.client().ping()
    finally:
        other.stop()
