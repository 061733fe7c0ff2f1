"""Processes, output and exit functions of jobs are as in a plain script, and end with the horse."""

from __future__ import annotations

import errno
import os
import signal
import sys

import family
import psutil
import pytest
import sample_jobs
from redis.exceptions import ConnectionError
from rq.job import JobStatus

import rqjobs
from rqjobs import config, processes
from rqjobs.connection import is_transient
from rqjobs.maintenance import audit
from rqjobs.worker import job_processes
from rqjobs.worker.horse import Limits

ENV = {"RQJOBS_MODULES": "sample_jobs,family"}


@pytest.fixture(autouse=True)
def modules(settings):
    config.use(modules=("sample_jobs", "family"))


def burst(*functions, **options):
    """Run jobs in one burst of a worker of this process, and return what they returned."""
    jobs = [
        rqjobs.queue("default").enqueue(
            *function if isinstance(function, tuple) else (function,), job_timeout=60
        )
        for function in functions
    ]
    rqjobs.Worker(["default"]).work(burst=True, logging_level="WARNING", **options)
    for job in jobs:
        job.refresh()
        assert job.is_finished, job.latest_result().exc_string
    return [job.return_value() for job in jobs]


def test_children_of_a_job_handle_signals_as_those_of_a_script(redis):
    """They inherited the horse's handlers: `terminate(); join()` never ended."""
    found = burst(family.terminated, family.interrupted, family.handlers)
    assert found == [
        -signal.SIGTERM,
        [42, -signal.SIGINT],
        ["SIG_DFL", "default_int_handler", "SIG_DFL", "default_int_handler"],
    ]


def test_multiprocessing_pool_ends_in_each_job(redis):
    assert burst(*[family.pooled] * 5) == [[1, 2]] * 5


def test_children_of_the_worker_are_hidden_from_jobs(worker, redis, eventually):
    """A job that ends `multiprocessing.active_children()` would have ended the scheduler."""
    job = rqjobs.enqueue(family.siblings)
    worker("default", options=["--with-scheduler"], env=ENV)
    eventually(lambda: job.get_status() == JobStatus.FINISHED)
    assert job.return_value() == 0


def test_executor_of_a_job_module_ends_with_the_horse(redis, tmp_path, eventually):
    config.use(max_jobs_per_child=1)
    first, second, _ = burst(
        family.executed, family.executed, (family.at_exit, str(tmp_path / "exit"))
    )
    assert not set(first) & set(second)
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in first + second))


def test_exit_functions_run_once_in_the_horse(redis, tmp_path):
    (pid,) = burst((family.at_exit, str(tmp_path / "exit")))
    assert (tmp_path / "exit").read_text() == str(pid) != str(os.getpid())


def test_exit_function_that_hangs_is_killed(redis, tmp_path, monkeypatch):
    monkeypatch.setattr(job_processes, "EXIT_SECONDS", 0.5)
    burst((family.at_exit, str(tmp_path / "exit"), 60), sample_jobs.ok)
    assert not (tmp_path / "exit").exists()


@pytest.mark.parametrize("victim", ["horse", "worker"])
def test_processes_of_a_job_end_before_the_job_runs_again(worker, redis, eventually, kill, victim):
    """After a kill of the horse or the worker, the program of the first run went on during the
    second run."""
    job = rqjobs.enqueue(family.programs)
    process = worker("default", env=ENV)
    (program,) = eventually(lambda: redis.lrange("programs", 0, -1))
    horse = psutil.Process(int(program)).ppid()
    kill(horse if victim == "horse" else process.pid)
    if victim == "worker":
        eventually(lambda: not processes.start_time(horse))
        assert processes.start_time(int(program)), "it does not end by itself"
        worker("default", env=ENV)
    eventually(lambda: job.get_status() == JobStatus.FINISHED)
    assert job.return_value() == []


def test_process_group_with_a_reused_number_is_not_killed(redis, spawn, eventually):
    """The kernel may reuse the number of a group that was empty."""
    process = spawn("sh", "-c", "sleep 60 & echo started; wait")
    eventually(lambda: "started" in process.output())
    (child,) = psutil.Process(process.pid).children()
    started, session = processes.start_time(process.pid), str(os.getsid(process.pid))
    for group, since, where in [
        (process.pid, started, session),  # the leader of the group lives
        (os.getpgrp(), "0", str(os.getsid(0))),  # the group of this process
    ]:
        processes.end_abandoned_group(group, since, where)
    process.kill()
    process.wait()
    processes.end_abandoned_group(process.pid, started, "1")  # another session
    processes.end_abandoned_group(
        process.pid, str(int(processes.start_time(child.pid)) + 1), session
    )  # a group that began after its member
    processes.end_abandoned_group(process.pid, "", session)
    assert processes.start_time(child.pid)
    processes.end_abandoned_group(process.pid, started, session)
    eventually(lambda: not processes.start_time(child.pid))


def test_only_abandoned_children_are_reaped(redis, monkeypatch):
    monkeypatch.setattr(job_processes, "ZOMBIE_CHECK_SECONDS", 0)
    found = burst(
        (family.keep, 7), family.forget, *[sample_jobs.ok] * 5, family.zombies, family.wait
    )
    assert found[-2:] == [1, 7], "the program that a module keeps, and nothing else"


def test_idle_horse_reaps_zombies(worker, redis, eventually):
    """They stayed until the next job, perhaps for hours."""
    process = worker("default", env=ENV)
    job = rqjobs.enqueue(family.forget)
    eventually(lambda: job.get_status() == JobStatus.FINISHED)
    (horse,) = psutil.Process(process.pid).children()
    eventually(lambda: not horse.children(), timeout=60)


def test_worker_as_first_process_of_a_container_reaps_orphans(spawn, redis, eventually):
    """Outside a container, PR_SET_CHILD_SUBREAPER has the kernel give orphans to the worker."""
    code = (
        "import ctypes, runpy; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0); "
        "runpy.run_module('rq.cli', run_name='__main__')"
    )
    process = spawn(
        sys.executable,
        "-c",
        code,
        "worker",
        "--worker-class",
        "rqjobs.Worker",
        "--with-scheduler",
        "default",
        env=ENV,
    )
    jobs = [rqjobs.enqueue(family.orphan) for _ in range(3)]
    eventually(lambda: all(job.get_status() == JobStatus.FINISHED for job in jobs))
    parent = psutil.Process(process.pid)
    eventually(
        lambda: len(parent.children()) == 2, timeout=60, what="only the horse and the scheduler"
    )
    assert rqjobs.enqueue(family.forget) and process.poll() is None


def test_worker_without_free_descriptors_waits_before_it_forks(redis, monkeypatch, eventually):
    def refuse(*args):
        monkeypatch.undo()
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("rqjobs.worker.supervisor.socket.socketpair", refuse)
    worker = rqjobs.Worker(["default"])
    before = set(os.listdir("/proc/self/fd"))
    worker._spawn_horse(Limits())
    assert worker.horse_pid == 0 and not set(os.listdir("/proc/self/fd")) - before


@pytest.mark.parametrize(
    "command", [["rqjobs", "worker"], ["rq.cli", "worker", "--worker-class", "rqjobs.Worker"]]
)
def test_output_of_a_job_appears_once_and_at_its_end(
    spawn, redis, eventually, tmp_path, environ, command
):
    """Output into a pipe or a file was lost, and a module's `basicConfig` did nothing or doubled
    the lines."""
    (tmp_path / "loud.py").write_text(
        "import logging\nlogging.basicConfig(level=logging.INFO, format='user %(message)s')\nprint('imported')\n"
        "from family import *\nlogging.getLogger('loud').info('set up')\n"
    )
    env = {
        "RQJOBS_MODULES": "loud,family",
        "PYTHONUNBUFFERED": "",
        "PYTHONPATH": f"{environ['PYTHONPATH']}:{tmp_path}",
    }
    process = spawn(sys.executable, "-m", *command, "default", env=env)
    jobs = [rqjobs.enqueue(family.talk, word) for word in ("one", "two")]
    eventually(lambda: all(job.get_status() == JobStatus.FINISHED for job in jobs))
    eventually(lambda: process.output().count("result is kept") == 2)
    lines = process.output().splitlines()
    assert process.poll() is None
    for word in (
        "printed one",
        "child one",
        "user logged one",
        "printed two",
        "imported",
        "user set up",
    ):
        assert lines.count(word) == 1, process.output()
    assert sum(line.endswith("Listening on default...") for line in lines) == 1
    assert sum("Job OK" in line and line.startswith("user ") for line in lines) == 2


def test_horse_is_replaced_only_when_it_has_grown(redis, monkeypatch):
    """Only the growth since the fork counts, not the memory of the parent."""
    monkeypatch.setattr("rqjobs.worker.horse.MEMORY_CHECK_SECONDS", 0)
    ballast = bytearray(os.urandom(1)) * (64 * 2**20)
    config.use(max_memory_per_child=32 * 2**20)
    assert len(set(burst(*[(family.leak, 1)] * 30))) == 1
    assert len(set(burst(*[(family.leak, 24 * 2**20)] * 4))) == 2
    config.use(max_memory_per_child=0)
    assert len(set(burst(*[(family.leak, 24 * 2**20)] * 4))) == 1
    assert len(ballast) == 64 * 2**20


def test_default_growth_limit_doubles_for_jobs_that_need_memory(redis, monkeypatch):
    monkeypatch.setattr("rqjobs.worker.horse.MEMORY_CHECK_SECONDS", 0)
    monkeypatch.setattr("rqjobs.worker.supervisor.GROWTH_BYTES", 8 * 2**20)
    pids = burst(
        *[(family.leak, 20 * 2**20)] + [(family.leak, 1)] * 3, *[(family.leak, 20 * 2**20)] * 2
    )
    assert len(set(pids)) == 3, "after 8, 16 and 32 MiB"
    assert not audit.audit(redis).breaches


def test_job_of_a_horse_without_free_descriptors_runs_again(redis, tmp_path, monkeypatch):
    """The error was taken for an unreachable Redis and retried forever; no job ran."""
    monkeypatch.setattr("rqjobs.worker.supervisor.CRASH_DELAY_SECONDS", 0)
    assert burst((family.exhaust, str(tmp_path / "first")), sample_jobs.ok) == ["done", None]
    assert not audit.audit(redis).breaches


def test_job_that_takes_all_descriptors_each_time_is_poison(redis, monkeypatch):
    monkeypatch.setattr("rqjobs.worker.supervisor.CRASH_DELAY_SECONDS", 0)
    job = rqjobs.queue("default").enqueue(family.exhaust, "")
    (after,) = burst(sample_jobs.ok)
    assert "process died 3 times" in job.latest_result().exc_string and after is None


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBADF])
def test_errors_of_the_own_process_are_not_transient(number):
    assert not is_transient(OSError(number, os.strerror(number)))
    assert not is_transient(
        ConnectionError(f"Error {number} connecting to redis:6379. {os.strerror(number)}.")
    )
    for away in (
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ENOENT,
        errno.EPIPE,
        errno.EHOSTUNREACH,
    ):
        assert is_transient(OSError(away, "")) and is_transient(
            ConnectionError(f"Error {away} connecting to redis:6379.")
        )


def test_horse_that_alone_cannot_reach_redis_is_replaced(redis, monkeypatch):
    """Here a job has broken the sockets of its process."""
    monkeypatch.setattr("rqjobs.worker.supervisor.UNRESPONSIVE_SECONDS", 1.5)
    monkeypatch.setattr("rqjobs.worker.supervisor.CRASH_DELAY_SECONDS", 0)
    broken, after = (
        rqjobs.queue("default").enqueue(family.break_sockets),
        rqjobs.queue("default").enqueue(sample_jobs.ok),
    )
    rqjobs.Worker(["default"]).work(burst=True, logging_level="WARNING")
    assert (
        broken.get_status() == "failed"
        and "process died 3 times" in broken.latest_result().exc_string
    )
    assert after.is_finished


def test_job_whose_hash_kills_the_reading_process_is_poison(redis, monkeypatch):
    """The crash was not counted, because the job had not begun. It was repeated forever."""
    monkeypatch.setattr("rqjobs.worker.supervisor.CRASH_DELAY_SECONDS", 0)
    from_hash = rqjobs.Job.from_hash.__func__

    def read(cls, job_id, fields, connection):
        if job_id == "big":
            os.kill(os.getpid(), signal.SIGKILL)
        return from_hash(cls, job_id, fields, connection)

    monkeypatch.setattr(rqjobs.Job, "from_hash", classmethod(read))
    job = rqjobs.queue("default").enqueue(sample_jobs.ok, job_id="big")
    (after,) = burst((sample_jobs.ok, 1))
    assert "process died 3 times" in job.latest_result().exc_string and after == 1


def test_job_that_closes_all_descriptors_does_not_affect_others(redis, monkeypatch):
    monkeypatch.setattr("rqjobs.worker.supervisor.CRASH_DELAY_SECONDS", 0)
    jobs = [
        rqjobs.queue("default").enqueue(function)
        for function in (family.close_all, sample_jobs.ok, sample_jobs.boom)
    ]
    rqjobs.Worker(["default"]).work(burst=True, logging_level="WARNING")
    assert [job.get_status() for job in jobs] == ["finished", "finished", "failed"]
    assert jobs[2].latest_result().exc_string.endswith("ValueError: boom\n")
    assert not audit.audit(redis).breaches
