"""Workers whose Redis user has only the rights that docs/deploying.md lists, or fewer."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest
import redis as redis_py
import sample_jobs
from redis.exceptions import NoPermissionError

import rqjobs
from rqjobs import config, connection, delayed, stats
from rqjobs.broker import transitions
from rqjobs.dev import redis_server
from rqjobs.maintenance import audit

DOCS = (Path(__file__).parents[3] / "docs" / "deploying.md").read_text(encoding="utf-8")
SMALLEST = re.search(r"^ACL SETUSER rqjobs on >secret (.*)$", DOCS, re.M)[1].split()
KEYS_ONLY = ["~rq:*", "~rqjobs:*", "resetchannels", "+@all"]


@pytest.fixture(scope="module")
def guarded(executable, tmp_path_factory):
    with redis_server.server(
        tmp_path_factory.mktemp("acl"), "--appendfsync", "no", executable=executable
    ) as url:
        yield url


@pytest.fixture
def user(guarded, settings):
    """Make a Redis user with these rights for this process and the test's workers.

    Returns a client of that user.
    """
    made = redis_py.Redis.from_url(guarded)

    def have(rights):
        made.flushall()
        made.execute_command("ACL", "SETUSER", "app", "reset", "on", ">secret", *rights)
        config.use(settings, redis_url=guarded.replace("unix://", "unix://app:secret@"))
        return connection.client()

    yield have
    made.flushall()
    made.close()


@pytest.fixture
def start(spawn):
    """Start a worker as this user. A delayed job shows that its scheduler works."""

    def run(*options):
        return spawn(
            sys.executable,
            "-m",
            "rq.cli",
            "worker",
            "--worker-class",
            "rqjobs.Worker",
            "--with-scheduler",
            *options,
            "default",
            env={"REDIS_URL": config.current().redis_url},
        )

    return run


def test_the_rights_that_the_readme_names_are_enough(user, start, eventually):
    client = user(SMALLEST)
    with pytest.raises(NoPermissionError):
        client.set("another application's", 1)
    process = start()
    first = rqjobs.enqueue(sample_jobs.ok, 1)
    jobs = [
        first,
        *rqjobs.enqueue_many([(sample_jobs.ok, 2)]),
        rqjobs.enqueue(sample_jobs.ok, depends_on=first),
        rqjobs.enqueue_in(0.3, sample_jobs.ok, 3),
        rqjobs.enqueue(sample_jobs.flaky, "rq:flaky", 1, retry=rqjobs.Retry(max=2, interval=1)),
    ]
    failed = rqjobs.enqueue(sample_jobs.boom)
    logging_job = rqjobs.enqueue(sample_jobs.warn_in_steps, "a line")
    rqjobs.schedules.add("often", rqjobs.every(seconds=1), sample_jobs.ok)
    assert [line.text for line in logging_job.follow_log()] == ["a line", "a line"]
    eventually(lambda: all(job.is_finished for job in jobs), what="all jobs")
    eventually(lambda: failed.is_failed)
    eventually(lambda: rqjobs.schedules.get("often").made)
    later = rqjobs.enqueue_in(3600, sample_jobs.ok)
    delayed.reschedule(later.id, 7200)
    delayed.cancel(later.id)
    transitions.requeue(client, failed.id)
    rqjobs.schedules.remove("often")
    eventually(lambda: failed.is_failed)
    assert stats.snapshot(client).queues and not audit.audit(client, settle=0.2).breaches
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert "may not use channels" not in process.output() and "NOPERM" not in process.output()


def test_without_channel_rights_jobs_run_and_each_process_logs_it_once(user, start, eventually):
    user(KEYS_ONLY)
    process = start()
    jobs = [
        rqjobs.enqueue(sample_jobs.ok, 1),
        rqjobs.enqueue_in(0.3, sample_jobs.ok, 2),
        rqjobs.enqueue_in(1.2, sample_jobs.ok, 3),
        rqjobs.enqueue(sample_jobs.flaky, "rq:flaky", 1, retry=rqjobs.Retry(max=2, interval=1)),
    ]
    eventually(lambda: all(job.is_finished for job in jobs), what="all jobs")
    rqjobs.schedules.add("often", rqjobs.every(seconds=1), sample_jobs.ok)
    eventually(lambda: rqjobs.schedules.get("often").made)
    delayed.reschedule(rqjobs.enqueue_in(3600, sample_jobs.ok, 4).id, 0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    warnings = [line for line in process.output().splitlines() if "may not use channels" in line]
    assert len(warnings) == 2 and all(
        "ACL SETUSER <user> &rq:* &rqjobs:*" in line for line in warnings
    )
    assert "could not be recorded" not in process.output()


def test_a_worker_without_a_right_that_it_needs_ends_with_one_line(user, start):
    user([right for right in SMALLEST if right != "+time"])
    process = start()
    assert process.wait(30) != 0
    said = [line for line in process.output().splitlines() if line.startswith("rqjobs:")]
    assert (
        len(said) == 1
        and "the Redis user lacks a right" in said[0]
        and "Traceback" not in process.output()
    )


def test_the_smallest_rights_suffice_to_wait(user):
    user(SMALLEST)
    with pytest.raises(rqjobs.WaitTimeout, match="no worker serves that queue"):
        rqjobs.enqueue(sample_jobs.ok).wait(0.01)
