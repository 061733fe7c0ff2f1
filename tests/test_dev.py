"""`rqjobs dev` as a process; .ci/drive.py uses it over HTTP besides."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys

import psutil
import pytest

import rqjobs
from rqjobs import config, connection, embedded


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def dev(spawn, environ, tmp_path, port, eventually):
    """Start `rqjobs dev` with a Redis of its own in an empty folder, and wait for its address."""
    environ.pop("REDIS_URL")
    environ.pop("RQJOBS_MODULES")
    (tmp_path / "mine.py").write_text("def version() -> int:\n    return 1\n")

    def start(**env):
        process = spawn(sys.executable, "-m", "rqjobs", "dev", env={"PORT": str(port), "RQJOBS_MODULES": "mine", **env})
        eventually(lambda: "Ctrl-C stops" in process.output() or process.poll() is not None, timeout=60)
        url = re.search(r"REDIS_URL='?([^'\s]+)", process.output())
        if url:
            config.use(redis_url=url[1])
        return process

    return start


def family(process):
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


def gone(pids):
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def result(name, eventually):
    """What a job of a module that only the dev's workers know returns; its hash is written by hand."""
    job = rqjobs.Job(connection=connection.client())
    job._func_name, job._instance, job._args, job._kwargs = name, None, (), {}
    rqjobs.Queue("default", connection=connection.client()).enqueue_job(job)
    eventually(lambda: job.get_status() in ("finished", "failed"), timeout=30)
    return job.return_value()


def test_ctrl_c_leaves_nothing_behind_and_queued_jobs_survive(dev, eventually):
    process = dev()
    pids = family(process)
    assert len(pids) >= 6, "redis, gunicorn with a worker, two workers, a scheduler"
    redis = connection.client()
    redis.rpush("rq:queue:elsewhere", "kept")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0, process.output()
    eventually(lambda: gone(pids))
    process = dev()
    assert connection.client().lrange("rq:queue:elsewhere", 0, -1) == [b"kept"]
    process.terminate()
    assert process.wait(30) == 0, process.output()


def test_a_changed_module_restarts_the_workers(dev, eventually, tmp_path):
    process = dev()
    assert result("mine.version", eventually) == 1
    (tmp_path / "mine.py").write_text("def version() -> int:\n    return 2  # changed\n")
    eventually(lambda: "mine.py changed; restarting" in process.output())
    eventually(lambda: process.output().count("Listening on") == 4)
    assert result("mine.version", eventually) == 2


def test_a_killed_dev_takes_everything_with_it_and_the_next_one_starts(dev, eventually):
    process = dev()
    pids = family(process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    eventually(lambda: gone(pids), timeout=30)
    assert dev().poll() is None


def test_a_killed_worker_is_started_again(dev, eventually):
    process = dev()
    eventually(lambda: process.output().count("Listening on") == 2)  # its address is told when the web app answers
    worker = next(child for child in psutil.Process(process.pid).children() if "worker" in child.cmdline())
    worker.kill()
    eventually(lambda: process.output().count("Listening on") == 3)
    assert "ended with -9; starting it again" in process.output()


def test_a_second_dev_in_the_folder_and_a_taken_port_are_refused(dev, spawn, port, tmp_path):
    first = dev()
    second = spawn(sys.executable, "-m", "rqjobs", "dev")
    assert second.wait(30) == 2
    assert second.output() == "rqjobs: rqjobs dev runs in this folder already; stop that one first\n"
    (tmp_path / "other").mkdir()
    third = spawn(sys.executable, "-m", "rqjobs", "dev", cwd=tmp_path / "other", env={"PORT": str(port)})
    assert third.wait(30) == 2 and "set PORT to a free one" in third.output()
    assert first.poll() is None


def test_other_commands_find_the_redis_that_runs_here(dev, spawn):
    dev()
    doctor = spawn(sys.executable, "-m", "rqjobs", "doctor", env={"RQJOBS_MODULES": "mine"})
    assert doctor.wait(30) == 0, doctor.output()
    assert "2 live workers" in doctor.output()


def test_a_web_app_that_cannot_start_is_said(dev, tmp_path):
    process = dev(HOST="192.0.2.1", RQJOBS_ADMIN_PASSWORD="long enough")
    assert process.wait(60) == 2
    assert "cannot serve at HOST='192.0.2.1'" in process.output()


def test_the_console_script_sees_changes_too(dev, spawn, environ, port, eventually, tmp_path):
    """It has no working directory on its path; the modules' files were not found, and nothing ever restarted."""
    script = os.path.join(os.path.dirname(sys.executable), "rqjobs")
    environ.pop("PYTHONPATH")
    process = spawn(script, "dev", env={"PORT": str(port), "RQJOBS_MODULES": "mine"})
    eventually(lambda: "Ctrl-C stops" in process.output(), timeout=60)
    (tmp_path / "mine.py").write_text("def version() -> int:\n    return 3  # changed\n")
    eventually(lambda: "mine.py changed; restarting" in process.output())
    process.terminate()
    assert process.wait(30) == 0, process.output()


def test_an_open_door_is_refused(dev):
    process = dev(HOST="0.0.0.0")
    assert process.wait(60) == 2
    assert "opens the pages to a network, so RQJOBS_ADMIN_PASSWORD must be set" in process.output()


def test_the_redis_of_a_copied_folder_is_left_alone(dev, spawn, tmp_path, eventually):
    process = dev()
    redis = connection.client()
    shutil.copytree(tmp_path / ".rqjobs", tmp_path / "copy" / ".rqjobs", ignore=shutil.ignore_patterns("*.sock"))
    with embedded.server(tmp_path / "copy" / ".rqjobs") as other:
        assert redis.ping() and other != config.current().redis_url
    assert redis.ping() and process.poll() is None


def test_an_embedded_redis_that_dies_is_said(dev, eventually):
    process = dev()
    os.kill(connection.client().info()["process_id"], signal.SIGKILL)
    assert process.wait(60) == 1
    assert "the embedded Redis has ended" in process.output()
