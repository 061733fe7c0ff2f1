"""The plugin in runs of pytest of its own: the guard, and what an end of the run leaves behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from fixture_jobs import note

import rqjobs
from rqjobs import config
from rqjobs.connection import NoRedis, RealRedisRefused
from rqjobs.dev import redis_server
from rqjobs.testing.fixtures import InlineJobs, RecordedJobs
from rqjobs.testing.private_redis import PrivateRedis

ROOT = Path(__file__).parents[3]
PLAIN = """
import os, sys

def test_a_run_without_the_fixtures_imports_nothing():
    loaded = {name.partition(".")[0] for name in sys.modules}
    assert not loaded & {"rqjobs", "rq", "redis", "flask"}

def test_the_variable():
    assert os.environ.get("RQJOBS_TEST_REDIS", "") == os.environ["EXPECTED"]
"""
GUARDED = """
import os, subprocess, sys
import pytest, redis, rqjobs
import project_jobs

EARLY = rqjobs.queue("low")  # connects to nothing yet
WORKER = [sys.executable, "-m", "rq.cli", "worker", "--burst", "--worker-class", "rqjobs.Worker"]
ENQUEUE = [sys.executable, "-c", "import rqjobs; rqjobs.enqueue('project_jobs.work')"]

@pytest.mark.parametrize("enqueue", [rqjobs.enqueue, EARLY.enqueue])
def test_refused(enqueue):
    with pytest.raises(rqjobs.ConfigError) as error:
        enqueue(project_jobs.work)
    line = str(error.value)
    assert "redis://127.0.0.1:1/0" in line and "jobs_recorded" in line and "secret" not in line
    assert "real_redis" in line and "rqjobs_allow_redis" in line and len(line.splitlines()) == 1

@pytest.mark.real_redis
def test_allowed():
    with pytest.raises(redis.ConnectionError):
        rqjobs.enqueue(project_jobs.work)

def test_recorded(jobs_recorded):
    EARLY.enqueue(project_jobs.work)
    jobs_recorded.assert_enqueued(project_jobs.work, queue="low")

@pytest.mark.parametrize("command", [WORKER + ["low"], ENQUEUE])
def test_children(command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "this test would use the real Redis" in done.stderr
    if command is not ENQUEUE:
        assert len(done.stderr.splitlines()) == 1

def test_refused_after_a_fixture():
    test_refused(EARLY.enqueue)
"""
HANGING = """
import os
import pytest
import rqjobs
import project_jobs

@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the settings are those of the project all the same

def test_hanging(elsewhere, jobs_redis):
    rqjobs.enqueue(project_jobs.hang)
    jobs_redis.work(timeout=600)
"""
JOBS = """
import os, time
from pathlib import Path

def work():
    pass

def hang():
    partial = Path(__file__).with_name("partial")
    partial.write_text(f"{os.getpid()} {os.getppid()}")
    partial.rename(partial.with_name("pids"))
    time.sleep(600)
"""


@pytest.fixture
def project(tmp_path, environ):
    """Write a project's tests; returns the command that runs them, and its environment."""
    (tmp_path / "project_jobs.py").write_text(JOBS)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    url = "redis://user:secret@127.0.0.1:1/0"
    (tmp_path / ".env").write_text(f"REDIS_URL={url}\nRQJOBS_MODULES=project_jobs\n")
    environ.update(PYTHONPATH=f"{ROOT}:{tmp_path}", EXPECTED="none")
    for name in ("REDIS_URL", "RQJOBS_MODULES", "PYTHONWARNINGS"):
        environ.pop(name)

    def write(source):
        (tmp_path / "test_project.py").write_text(source)
        options = ["-p", "pytest_rqjobs", f"--basetemp={tmp_path / 'temporary'}"]
        return [sys.executable, "-m", "pytest", *options], environ

    return write


@pytest.mark.parametrize(
    ("source", "option", "passed"),
    [
        (PLAIN, "", 2),
        (PLAIN, "rqjobs_allow_redis=true", 2),
        (GUARDED, "", 7),
    ],
)
def test_the_guard(project, tmp_path, source, option, passed):
    command, environ = project(source)
    if option:
        command += ["-o", option]
        environ = {**environ, "EXPECTED": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert f"{passed} passed" in done.stdout, done.stdout


def test_a_killed_run_leaves_no_process(project, tmp_path, spawn, eventually):
    command, environ = project(HANGING)
    run = spawn(*command, env=environ, cwd=tmp_path)
    pids = tmp_path / "pids"
    eventually(lambda: pids.exists() or run.poll() is not None, timeout=60)
    assert run.poll() is None, run.output()
    family = psutil.Process(run.pid).children(recursive=True)
    assert {int(pid) for pid in pids.read_text().split()} < {process.pid for process in family}
    assert len(family) >= 3  # with Redis
    os.kill(run.pid, signal.SIGKILL)
    eventually(lambda: not any(process.is_running() for process in family))


def test_the_guard_knows_every_address(monkeypatch, settings):
    monkeypatch.setenv(config.TEST_REDIS, "none")
    for url, shown in (
        ("redis://h:7/2", "redis://h:7/2"),
        ("rediss://user:secret@h:7", "redis://h:7/0"),
        ("unix:///tmp/no.sock", "unix:///tmp/no.sock"),
        ("redis+sentinel://a:1,b:2/mymaster", "'mymaster'"),
    ):
        with pytest.raises(RealRedisRefused, match=shown) as error:
            rqjobs.connection.connect(url).ping()
        assert "secret" not in str(error.value)


def test_plain_jobs_are_recorded_without_a_server(tmp_path, monkeypatch, modules):
    def no_server(home=None):
        raise NoRedis("no redis-server here")

    monkeypatch.setattr(redis_server, "binary", no_server)
    server = PrivateRedis(tmp_path)
    with RecordedJobs().active(server) as jobs:
        job = modules.enqueue(note, 1)
        assert jobs.assert_enqueued(note, 1, queue="low") is job
        with pytest.raises(NoRedis, match="no redis-server here"):
            job.get_status()
    with pytest.raises(NoRedis, match="no redis-server here"), InlineJobs().active(server):
        pass
    assert config.TEST_REDIS not in os.environ
