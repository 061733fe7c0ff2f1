"""What jobs start, print and leave: as in a plain script; and it ends with the horse."""

from __future__ import annotations

import errno
import os
import signal
import sys

import family
import faults
import psutil
import pytest
from redis.exceptions import ConnectionError
from rq.job import JobStatus

import rqjobs
from rqjobs import config, processes
from rqjobs.connection import is_transient
from rqjobs.maintenance import audit
from rqjobs.worker import job_processes
from rqjobs.worker.horse import Limits

ENV = {"RQJOBS_MODULES": "faults,family"}


@pytest.fixture(autouse=True)
def modules(settings):
    config.use(modules=("faults", "family"))


def burst(*functions, **options):
    """Run jobs in one burst of a worker of this process, and return what they returned."""
    jobs = [
        rqjobs.queue("default").enqueue(
            *function if isinstance(function, tuple) else (function,), job_timeout=10
        )
        for function in functions
    ]
    rqjobs.Worker(["default"]).work(burst=True, logging_level="WARNING", **options)
    for job in jobs:
        job.refresh()
        assert job.is_finished, job.latest_result().exc_string
    return [job.return_value() for job in jobs]


def test_the_children_of_a_job_hear_signals_as_those_of_a_plain_script_do(redis):
    """They inherited the horse's handler of SIGTERM, and that it ignored SIGINT: `terminate(); join()` never ended."""
    found = burst(family.terminated, family.interrupted, family.handlers)
    assert found == [
        -signal.SIGTERM,
        [42, -signal.SIGINT],
        ["SIG_DFL", "default_int_handler", "SIG_DFL", "default_int_handler"],
    ]


def test_multiprocessing_s_pool_ends_each_time(redis):
    assert burst(*[family.pooled] * 5) == [[1, 2]] * 5


def test_the_worker_s_own_children_are_none_of_a_job_s(worker, redis, eventually):
    """A job that ended all of `multiprocessing.active_children()` would have ended the scheduler."""
    job = rqjobs.enqueue(family.siblings)
    worker("default", options=["--with-scheduler"], env=ENV)
    eventually(lambda: job.get_status() == JobStatus.FINISHED)
    assert job.return_value() == 0


def test_a_module_s_executor_ends_with_its_horse(redis, tmp_path):
    config.use(max_jobs_per_child=1)
    first, second, _ = burst(
        family.executed, family.executed, (family.at_exit, str(tmp_path / "exit"))
    )
    assert not set(first) & set(second)
    assert not [pid for pid in first + second if psutil.pid_exists(pid)]


def test_exit_functions_run_when_a_horse_ends_and_only_there(redis, tmp_path):
    (pid,) = burst((family.at_exit, str(tmp_path / "exit")))
    assert (tmp_path / "exit").read_text() == str(pid) != str(os.getpid())


def test_an_exit_function_that_hangs_is_cut_off(redis, tmp_path, monkeypatch):
    monkeypatch.setattr(job_processes, "EXIT_SECONDS", 0.5)
    burst((family.at_exit, str(tmp_path / "exit"), 60), faults.ok)
    assert not (tmp_path / "exit").exists()


@pytest.mark.parametrize("victim", ["horse", "worker"])
def test_what_a_job_started_ends_before_the_job_runs_again(worker, redis, eventually, kill, victim):
    """Its horse, or its whole worker, was killed under `subprocess.run`: the second run worked beside the first one's
    program."""
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


def test_a_group_that_is_another_s_now_is_left_alone(redis, spawn, eventually):
    """The number of a group that was empty may be given out again."""
    process = spawn("sh", "-c", "sleep 60 & echo started; wait")
    eventually(lambda: "started" in process.output())
    (child,) = psutil.Process(process.pid).children()
    started, session = processes.start_time(process.pid), str(os.getsid(process.pid))
    for group, since, where in [
        (process.pid, started, session),  # its leader lives
        (os.getpgrp(), "0", str(os.getsid(0))),  # our own
    ]:
        processes.end_abandoned_group(group, since, where)
    process.kill()
    process.wait()
    processes.end_abandoned_group(process.pid, started, "1")  # another session
    processes.end_abandoned_group(
        process.pid, str(int(processes.start_time(child.pid)) + 1), session
    )  # older than it
    processes.end_abandoned_group(process.pid, "", session)
    assert processes.start_time(child.pid)
    processes.end_abandoned_group(process.pid, started, session)
    assert not processes.start_time(child.pid)


def test_forgotten_children_leave_no_zombies_and_who_is_waited_for_is_left(redis, monkeypatch):
    monkeypatch.setattr(job_processes, "ZOMBIE_CHECK_SECONDS", 0)
    found = burst((family.keep, 7), family.forget, *[faults.ok] * 5, family.zombies, family.wait)
    assert found[-2:] == [1, 7], "the program that a module keeps, and nothing else"


def test_an_idle_worker_keeps_no_zombies(worker, redis, eventually):
    """They stayed until the next job, which may come hours later."""
    process = worker("default", env=ENV)
    job = rqjobs.enqueue(family.forget)
    eventually(lambda: job.get_status() == JobStatus.FINISHED)
    (horse,) = psutil.Process(process.pid).children()
    eventually(lambda: not horse.children(), timeout=60)


def test_a_worker_that_is_the_first_process_of_a_container_leaves_no_orphans_as_zombies(
    spawn, redis, eventually
):
    """Here the kernel gives it orphans because it is asked to (PR_SET_CHILD_SUBREAPER)."""
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


def test_a_worker_that_forks_without_descriptors_waits_for_some(redis, monkeypatch, eventually):
    def refuse(*args):
        monkeypatch.undo()
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("rqjobs.worker.supervisor.socket.socketpair", refuse)
    worker = rqjobs.Worker(["default"])
    before = len(os.listdir("/proc/self/fd"))
    worker._spawn_horse(Limits())
    assert worker.horse_pid == 0 and len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "command", [["rqjobs", "worker"], ["rq.cli", "worker", "--worker-class", "rqjobs.Worker"]]
)
def test_what_a_job_prints_and_logs_is_there_when_it_has_ended_and_each_line_once(
    spawn, redis, eventually, tmp_path, environ, command
):
    """Into a pipe or a file nothing that was printed appeared, and a module's `basicConfig` did nothing or doubled."""
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


def test_a_horse_runs_as_many_jobs_as_there_are_and_is_replaced_when_it_has_grown(
    redis, monkeypatch
):
    """State that leaks is what the limit on memory is for; what was there before the horse does not count."""
    monkeypatch.setattr("rqjobs.worker.horse.MEMORY_CHECK_SECONDS", 0)
    ballast = bytearray(os.urandom(1)) * (64 * 2**20)
    config.use(max_memory_per_child=32 * 2**20)
    assert len(set(burst(*[(family.leak, 1)] * 30))) == 1
    assert len(set(burst(*[(family.leak, 24 * 2**20)] * 4))) == 2
    config.use(max_memory_per_child=0)
    assert len(set(burst(*[(family.leak, 24 * 2**20)] * 4))) == 1
    assert len(ballast) == 64 * 2**20


def test_without_a_setting_a_horse_that_must_be_large_is_not_replaced_for_ever(redis, monkeypatch):
    monkeypatch.setattr("rqjobs.worker.horse.MEMORY_CHECK_SECONDS", 0)
    monkeypatch.setattr("rqjobs.worker.supervisor.GROWTH_BYTES", 8 * 2**20)
    pids = burst(
        *[(family.leak, 20 * 2**20)] + [(family.leak, 1)] * 3, *[(family.leak, 20 * 2**20)] * 2
    )
    assert len(set(pids)) == 3, "after 8, 16 and 32 MiB"
    assert not audit.audit(redis).breaches


def test_a_horse_that_has_no_descriptor_left_ends_and_its_job_runs_again(
    redis, tmp_path, monkeypatch
):
    """That counted as Redis being away: it was tried again for ever, and the queue stood still."""
    monkeypatch.setattr("rqjobs.worker.supervisor.CRASH_DELAY_SECONDS", 0)
    assert burst((family.exhaust, str(tmp_path / "first")), faults.ok) == ["done", None]
    assert not audit.audit(redis).breaches


def test_a_job_that_takes_all_descriptors_each_time_is_poison(redis, monkeypatch):
    monkeypatch.setattr("rqjobs.worker.supervisor.CRASH_DELAY_SECONDS", 0)
    job = rqjobs.queue("default").enqueue(family.exhaust, "")
    (after,) = burst(faults.ok)
    assert "process died 3 times" in job.latest_result().exc_string and after is None


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBADF])
def test_an_error_of_our_own_process_is_not_redis_being_away(number):
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


def test_a_horse_that_alone_does_not_reach_redis_is_replaced(redis, monkeypatch):
    """Whatever the reason: here a job has broken the sockets of its process."""
    monkeypatch.setattr("rqjobs.worker.supervisor.UNRESPONSIVE_SECONDS", 1.5)
    monkeypatch.setattr("rqjobs.worker.supervisor.CRASH_DELAY_SECONDS", 0)
    broken, after = (
        rqjobs.queue("default").enqueue(family.break_sockets),
        rqjobs.queue("default").enqueue(faults.ok),
    )
    rqjobs.Worker(["default"]).work(burst=True, logging_level="WARNING")
    assert (
        broken.get_status() == "failed"
        and "process died 3 times" in broken.latest_result().exc_string
    )
    assert after.is_finished


def test_a_job_whose_hash_kills_who_reads_it_is_poison(redis, monkeypatch):
    """The death was not counted, because the job had not begun: it went on for ever."""
    monkeypatch.setattr("rqjobs.worker.supervisor.CRASH_DELAY_SECONDS", 0)
    from_hash = rqjobs.Job.from_hash.__func__

    def read(cls, job_id, fields, connection):
        if job_id == "big":
            os.kill(os.getpid(), signal.SIGKILL)
        return from_hash(cls, job_id, fields, connection)

    monkeypatch.setattr(rqjobs.Job, "from_hash", classmethod(read))
    job = rqjobs.queue("default").enqueue(faults.ok, job_id="big")
    (after,) = burst((faults.ok, 1))
    assert "process died 3 times" in job.latest_result().exc_string and after == 1


def test_a_job_that_closes_all_descriptors_harms_no_other(redis, monkeypatch):
    monkeypatch.setattr("rqjobs.worker.supervisor.CRASH_DELAY_SECONDS", 0)
    jobs = [
        rqjobs.queue("default").enqueue(function)
        for function in (family.close_all, faults.ok, faults.boom)
    ]
    rqjobs.Worker(["default"]).work(burst=True, logging_level="WARNING")
    assert [job.get_status() for job in jobs] == ["finished", "finished", "failed"]
    assert jobs[2].latest_result().exc_string.endswith("ValueError: boom\n")
    assert not audit.audit(redis).breaches
