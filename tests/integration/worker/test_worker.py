"""Workers as real processes, some of which are killed."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time

import psutil
import pytest
import sample_jobs
from rq.command import send_kill_horse_command, send_shutdown_command, send_stop_job_command
from rq.job import JobStatus
from rq.suspension import resume, suspend

import rqjobs
from rqjobs import Callback, Repeat, Retry, config, connection, processes, stats
from rqjobs.broker import keys, leases
from rqjobs.dev import redis_server
from rqjobs.maintenance import audit as maintenance_audit
from rqjobs.maintenance import strays, sweep
from rqjobs.worker.prefetch import PrefetchPipe
from rqjobs.worker.shared_state import HorsePhase, HorseState


def ended(job):
    status = job.get_status() if rqjobs.Job.exists(job.id, job.connection) else None
    return status in (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED)


@pytest.fixture
def outcome(eventually):
    """Wait until a job has ended, and return its value, or the last line of its traceback."""

    def wait(job, timeout=20):
        eventually(lambda: ended(job), timeout, f"the end of {job.description}")
        result = job.latest_result()
        return (
            result.return_value if job.is_finished else result.exc_string.strip().splitlines()[-1]
        )

    return wait


def test_rq_worker_command_runs_jobs_of_three_queues(worker, outcome):
    jobs = [
        rqjobs.queue(name).enqueue(sample_jobs.add, n, 1)
        for n, name in enumerate(("low", "default", "high"))
    ]
    worker(options=["--with-scheduler"])
    assert [outcome(job) for job in jobs] == [1, 2, 3]


def test_rqjobs_worker_command_reads_dotenv(spawn, environ, redis, tmp_path, outcome):
    environ.pop("REDIS_URL")
    environ.pop("RQJOBS_MODULES")
    (tmp_path / ".env").write_text(
        f"REDIS_URL={config.current().redis_url}\nRQJOBS_MODULES=sample_jobs\n"
    )
    job = rqjobs.queue("low").enqueue(sample_jobs.add, 1)
    process = spawn(sys.executable, "-m", "rqjobs", "worker", "--burst")
    assert outcome(job) == 2
    assert process.wait(20) == 0, process.output()
    assert "Scheduler" in process.output()


def test_queues_are_served_in_the_given_order(redis, outcome):
    jobs = [
        rqjobs.queue(name).enqueue(sample_jobs.mark, "order") for name in ("low", "default", "high")
    ]
    rqjobs.Worker(["high", "default", "low"]).work(burst=True, logging_level="WARNING")
    assert redis.lrange("order", 0, -1) == [job.id.encode() for job in reversed(jobs)]


def test_job_of_a_killed_worker_runs_again_in_the_next_worker(
    worker, redis, eventually, kill, outcome
):
    """kill -9 in the middle of a long job, then the start of another worker on the same host.

    Its own start recovers the job: the lease of the dead worker does not expire, and the lock keeps
    all other sweeps away.
    """
    job, second = rqjobs.enqueue(sample_jobs.hang, "gate"), rqjobs.enqueue(sample_jobs.ok, 2)
    first = worker()
    horse = int(eventually(lambda: redis.lrange("gate:reached", 0, -1))[0])
    enqueued_at = redis.hget(job.key, "enqueued_at")
    kill(first.pid)
    eventually(lambda: not psutil.pid_exists(horse), what="the horse's death with its worker")

    def runs_again():
        redis.zadd(keys.LEASES, {first.name: time.time() + leases.LEASE_SECONDS}, xx=True)
        redis.set(keys.SWEEP_LOCK, "another sweep", px=leases.SWEEP_LOCK_MILLISECONDS)
        return redis.llen("gate:reached") == 2

    assert not runs_again()
    worker()
    eventually(runs_again, what="the second run")
    assert redis.hget(job.key, "enqueued_at") == enqueued_at
    assert first.key not in redis.smembers("rq:workers"), "the dead worker is forgotten"
    redis.rpush("gate:open", 1)
    assert outcome(job) == "gate" and outcome(second) == 2
    audit = maintenance_audit.audit(redis)
    assert not audit.breaches and not audit.remarks


def test_lease_names_the_processes_of_the_worker_and_its_current_horse(
    worker, redis, eventually, kill
):
    process = worker()
    for _ in range(2):
        (horse,) = eventually(psutil.Process(process.pid).children)
        where = {
            b"pid": b"%d" % process.pid,
            b"horse": b"%d" % horse.pid,
            b"horse_started": processes.start_time(horse.pid).encode(),
        }
        eventually(
            lambda where=where: (
                where.items() <= redis.hgetall(f"rqjobs:process:{process.name}").items()
            )
        )
        kill(horse.pid)
        eventually(lambda horse=horse: not psutil.pid_exists(horse.pid))


def test_live_worker_requeues_the_job_of_a_dead_one(worker, redis, eventually, kill):
    rqjobs.enqueue(sample_jobs.hang, "gate")
    first = worker()
    eventually(lambda: redis.llen("gate:reached") == 1)
    worker()
    kill(first.pid)
    eventually(lambda: redis.llen("gate:reached") == 2, timeout=2 * leases.HEARTBEAT_SECONDS)


def test_slow_job_of_a_live_worker_is_not_requeued(worker, redis, eventually, outcome):
    """The job runs for longer than a lease, while others sweep and RQ's tools read registries."""
    config.use(shutdown_timeout=2)
    job = rqjobs.enqueue(sample_jobs.hang, "gate")
    slow = worker()
    eventually(lambda: redis.llen("gate:reached") == 1)
    worker()
    lease = redis.zscore(keys.LEASES, slow.name)
    eventually(
        lambda: redis.zscore(keys.LEASES, slow.name) > lease + leases.LEASE_SECONDS + 1,
        timeout=60,
        what="the lease's renewal for longer than it lasts",
    )
    sweep.sweep(redis, force=True)
    assert rqjobs.queue("default").started_job_registry.count == 1
    assert redis.llen("gate:reached") == 1
    redis.rpush("gate:open", 1)
    assert outcome(job) == "gate"
    assert not redis.hexists(job.key, "rqjobs_crashes")


def test_poison_jobs_fail_and_other_jobs_finish(worker, redis, outcome):
    poison = rqjobs.enqueue(sample_jobs.kill_self)
    crash = rqjobs.queue("high").enqueue(sample_jobs.leave, 3)
    healthy = [rqjobs.enqueue(sample_jobs.ok, n) for n in range(5)]
    worker()
    assert [outcome(job) for job in healthy] == list(range(5))
    assert "process died 3 times within 72 hours" in outcome(poison)
    assert "process died 3 times" in outcome(crash)
    assert not maintenance_audit.audit(redis).breaches


def test_a_signal_without_a_name_ends_no_worker(worker, outcome):
    """Python names two of the real-time signals; the parent died of the others."""
    number = int(signal.SIGRTMIN) + 1
    crash = rqjobs.enqueue(sample_jobs.kill_self, number)
    process = worker()
    assert "process died 3 times" in outcome(crash)
    assert outcome(rqjobs.enqueue(sample_jobs.ok, 1)) == 1
    assert process.poll() is None and f"the horse died (signal {number})" in process.output()


def test_job_fails_after_its_worker_died_three_times(worker, redis, eventually, kill, outcome):
    job = rqjobs.enqueue(sample_jobs.hang, "gate")
    for death in range(3):
        process = worker()
        eventually(lambda death=death: redis.llen("gate:reached") == death + 1)
        kill(process.pid)
    worker()
    assert "process died 3 times" in outcome(job)
    assert redis.llen("gate:reached") == 3


def test_worker_with_a_fixed_name_starts_again_after_a_crash(worker, redis, eventually, kill):
    """RQ refuses the name for up to eight minutes: `There exists an active worker named …`."""
    first = worker(options=["--name", "fixed"])
    (horse,) = psutil.Process(first.pid).children()
    kill(first.pid)
    eventually(lambda: not processes.start_time(horse.pid), what="the horse's death with it")
    assert worker(options=["--name", "fixed"]).poll() is None


def test_sigterm_waits_for_the_job(worker, redis, eventually, outcome):
    job = rqjobs.enqueue(sample_jobs.hang, "gate")
    process = worker()
    eventually(lambda: redis.llen("gate:reached") == 1)
    process.terminate()
    eventually(lambda: "warm shut down" in process.output())
    redis.rpush("gate:open", 1)
    assert process.wait(20) == 0
    assert outcome(job) == "gate"
    assert not redis.zcard(keys.LEASES), "it left in good order"


def test_stop_job_kill_horse_and_shutdown_commands(worker, redis, eventually, outcome):
    process = worker()
    job = rqjobs.enqueue(sample_jobs.hang, "stop")
    eventually(lambda: redis.llen("stop:reached") == 1)
    send_stop_job_command(redis, job.id, serializer=job.serializer)
    eventually(lambda: job.get_status() == JobStatus.STOPPED)
    assert "stopped by user" in outcome(job)

    job = rqjobs.enqueue(sample_jobs.hang, "kill")
    eventually(lambda: redis.llen("kill:reached") == 1)
    send_kill_horse_command(redis, process.name)
    eventually(lambda: redis.llen("kill:reached") == 2, what="the second run after kill-horse")
    redis.rpush("kill:open", 1)
    assert outcome(job) == "kill"

    send_shutdown_command(redis, process.name)
    assert process.wait(20) == 0


def test_suspend_and_resume(worker, redis, eventually, outcome):
    process = worker()
    suspend(redis)
    job = rqjobs.enqueue(sample_jobs.ok, 1)
    eventually(lambda: redis.hget(process.key, "state") == b"suspended", timeout=30)
    resume(redis)
    assert outcome(job) == 1


def test_callbacks_retries_repeats_and_other_features_of_rq(worker, redis, eventually, outcome):
    worker(options=["--with-scheduler"])
    good = rqjobs.enqueue(sample_jobs.ok, 5, on_success=Callback(sample_jobs.on_done))
    bad = rqjobs.enqueue(sample_jobs.boom, "no", on_failure=Callback("sample_jobs.on_failed"))
    flaky = rqjobs.enqueue(sample_jobs.flaky, "f", 2, retry=Retry(max=3))
    slow_flaky = rqjobs.enqueue(sample_jobs.flaky, "s", 1, retry=Retry(max=1, interval=1))
    again = rqjobs.enqueue(sample_jobs.again, "a")
    repeated = rqjobs.enqueue(sample_jobs.mark, "repeated", repeat=Repeat(times=2, interval=1))
    coroutine = rqjobs.enqueue(sample_jobs.later, 7)
    parent = rqjobs.enqueue(sample_jobs.ok, 1)
    child = rqjobs.queue("low").enqueue(sample_jobs.ok, 2, depends_on=[parent, good])
    noted = rqjobs.enqueue(sample_jobs.progress, 4)
    forgotten = rqjobs.enqueue(sample_jobs.mark, "forgotten", result_ttl=0)
    assert (outcome(good), outcome(flaky), outcome(coroutine), outcome(child)) == (5, "f", 7, 2)
    assert outcome(bad) == "ValueError: no"
    assert outcome(slow_flaky) == "s" and outcome(again) == "a"
    assert outcome(noted) == 4 and noted.get_meta() == {"done": 4}
    eventually(lambda: redis.llen("repeated") == 3)
    eventually(lambda: redis.llen("forgotten") == 1 and not redis.exists(forgotten.key))
    assert set(redis.lrange("callback", 0, -1)) == {
        f"done:{good.id}:5".encode(),
        f"failed:{bad.id}:no".encode(),
    }
    eventually(lambda: redis.zscore("rq:finished:default", repeated.id))
    assert not maintenance_audit.audit(redis).breaches


def test_job_with_dependents_runs_once(worker, redis, outcome):
    """The job ran a thousand times, until its horse was replaced.

    The script for a plain success refuses a job with dependents. The claim that was sent with it
    took over the job, which was still among the worker's claims.
    """
    parent = rqjobs.enqueue(sample_jobs.mark, "parent")
    child = rqjobs.enqueue(sample_jobs.mark, "child", depends_on=parent)
    rqjobs.Worker(["default"]).work(burst=True, logging_level="WARNING")
    assert (outcome(parent), outcome(child)) == ("parent", "child"), (
        "and a burst runs what its own jobs release"
    )
    assert (redis.llen("parent"), redis.llen("child")) == (1, 1)


def test_job_timeout(worker, outcome):
    job = rqjobs.enqueue(sample_jobs.hang, "gate", job_timeout=1)
    worker()
    assert "exceeded maximum timeout value (1 seconds)" in outcome(job)


def test_jobs_run_in_the_context_of_the_configured_app(worker, tmp_path, environ, outcome):
    (tmp_path / "shop.py").write_text(
        "import flask\ndef create_app():\n    return flask.Flask('the_shop')\n"
    )
    job = rqjobs.enqueue(sample_jobs.in_app)
    worker(
        env={
            "RQJOBS_FLASK_APP": "shop:create_app",
            "PYTHONPATH": f"{environ['PYTHONPATH']}:{tmp_path}",
        }
    )
    assert outcome(job) == "the_shop"


def test_job_module_that_does_not_import_is_an_error_in_one_line(spawn):
    process = spawn(
        sys.executable, "-m", "rqjobs", "worker", env={"RQJOBS_MODULES": "sample_jobs,nowhere"}
    )
    assert process.wait(20) == 2
    assert process.output() == (
        "rqjobs: RQJOBS_MODULES: nowhere failed to import: ModuleNotFoundError: No module named 'nowhere'\n"
    )


def test_another_redis_than_redis_url_is_refused(spawn, tmp_path):
    process = spawn(
        sys.executable,
        "-m",
        "rq.cli",
        "worker",
        "--worker-class",
        "rqjobs.Worker",
        "--url",
        config.current().redis_url + "?db=1",
        env={"REDIS_URL": config.current().redis_url},
    )
    assert process.wait(20) == 1
    assert "set REDIS_URL, and leave out --url" in process.output()


def test_burst_max_jobs_and_rq_info(spawn, redis, outcome):
    jobs = [rqjobs.enqueue(sample_jobs.ok, n) for n in range(3)]
    command = [
        sys.executable,
        "-m",
        "rq.cli",
        "worker",
        "--worker-class",
        "rqjobs.Worker",
        "default",
    ]
    assert spawn(*command, "--max-jobs", "1").wait(30) == 0
    assert outcome(jobs[0]) == 0 and redis.llen("rq:queue:default") == 2
    assert spawn(*command, "--burst").wait(30) == 0
    assert [outcome(job) for job in jobs] == [0, 1, 2]
    info = spawn(sys.executable, "-m", "rq.cli", "info", "--raw")
    assert info.wait(30) == 0 and "queue default 0" in info.output()


def test_worker_pool(spawn, redis, eventually, outcome):
    pool = spawn(
        sys.executable,
        "-m",
        "rq.cli",
        "worker-pool",
        "-w",
        "rqjobs.Worker",
        "-n",
        "2",
        "default",
        "low",
    )
    eventually(lambda: redis.scard("rq:workers") == 2, what="two workers")
    jobs = [rqjobs.queue(name).enqueue(sample_jobs.ok, name) for name in ("default", "low")]
    assert [outcome(job) for job in jobs] == ["default", "low"]
    pool.send_signal(signal.SIGTERM)
    assert pool.wait(30) == 0, pool.output()
    assert not redis.zcard(keys.LEASES)


def test_jobs_of_a_killed_stock_worker_are_requeued(
    spawn, worker, redis, eventually, kill, outcome
):
    """RQ itself fails or loses the jobs of a plain `rq worker` that was killed."""
    job = rqjobs.enqueue(sample_jobs.hang, "gate")
    stock = worker(
        "default",
        "low",
        worker_class="rq.worker.Worker",
        options=["--serializer", "rqjobs.serializers.ConfiguredSerializer"],
    )
    horse = int(eventually(lambda: redis.lrange("gate:reached", 0, -1))[0])
    kill(stock.pid)
    kill(horse)  # the horse outlives its worker
    ours = worker()
    assert redis.llen("gate:reached") == 1, "RQ's key still says that the plain RQ worker lives"
    redis.delete(stock.key)  # what its expiry does, up to eight minutes later
    eventually(lambda: redis.llen("gate:reached") == 2, timeout=2 * leases.HEARTBEAT_SECONDS)
    redis.rpush("gate:open", 1)
    assert outcome(job) == "gate" and ours.poll() is None


def test_random_kills_of_workers_lose_no_job(worker, redis, eventually, kill):
    """Every job ends, and none is in two places."""
    jobs = rqjobs.enqueue_many(
        [(sample_jobs.progress, 3) if n % 3 else (sample_jobs.urgent, n) for n in range(300)]
    )

    def done():
        return redis.zcard("rq:finished:default") + redis.zcard("rq:finished:high")

    for _ in range(6):
        process = worker()
        goal = min(done() + 3, len(jobs))
        eventually(lambda goal=goal: done() >= goal)
        kill(process.pid)
    worker()

    def nothing_moves():
        return not any(
            redis.exists(f"rq:queue:{name}", f"rq:wip:{name}") for name in ("default", "high")
        )

    eventually(nothing_moves, timeout=60)
    # A stray, popped by a killed worker: make it old, and sweep twice.
    for job in jobs:
        if not ended(job):
            redis.hset(
                job.key,
                mapping=dict.fromkeys(("created_at", "enqueued_at"), "2026-01-01T00:00:00.000000Z"),
            )
    sweep.sweep(redis, force=True)
    for job_id, since in redis.hgetall("rqjobs:sweep:strays:seen").items():
        redis.hset("rqjobs:sweep:strays:seen", job_id, float(since) - strays.STRAY_SECONDS)
    sweep.sweep(redis, force=True)
    eventually(lambda: all(ended(job) for job in jobs), timeout=60)
    assert all(job.is_finished for job in jobs)
    assert not maintenance_audit.audit(redis).breaches


def test_snapshot_of_queues_and_workers(worker, redis, eventually):
    process = worker("default")
    rqjobs.enqueue(sample_jobs.hang, "gate")
    eventually(lambda: redis.llen("gate:reached") == 1)
    rqjobs.enqueue(sample_jobs.ok)
    rqjobs.queue("low").enqueue(sample_jobs.ok)
    found = stats.snapshot(redis)
    by_name = {queue.name: queue for queue in found.queues}
    assert (by_name["default"].queued, by_name["default"].running, by_name["default"].workers) == (
        1,
        1,
        1,
    )
    assert by_name["default"].oldest is not None and found.unserved == ["low"]
    (one,) = found.workers
    assert (one.name, one.pid, one.alive, one.ours) == (process.name, process.pid, True, True)
    eventually(lambda: stats.snapshot(redis).workers[0].state == "busy")


def test_rq_lists_the_worker(worker, redis):
    process = worker()
    (found,) = rqjobs.Worker.all(connection=redis)
    assert found.name == process.name and found.queue_names() == ["high", "default", "low"]


@pytest.mark.parametrize("busy", [True, False])
def test_sigterm_ends_the_worker_while_redis_hangs(executable, tmp_path, spawn, eventually, busy):
    """Each command waits for ten seconds, and to unregister takes many commands."""
    with redis_server.server(tmp_path / "redis", executable=executable) as url:
        redis = connection.connect(url)
        config.use(redis_url=url)
        rqjobs.enqueue(sample_jobs.hang, "gate") if busy else None
        env = {"REDIS_URL": url, "RQJOBS_SHUTDOWN_TIMEOUT": "1"}
        process = spawn(sys.executable, "-m", "rqjobs", "worker", "default", env=env)
        eventually(lambda: redis.llen("gate:reached") if busy else redis.scard("rq:workers"))
        family = psutil.Process(process.pid).children()
        server = psutil.Process(redis.info("server")["process_id"])
        server.suspend()
        try:
            process.terminate()
            asked = time.monotonic()
            assert process.wait(60) == 1, process.output()
            assert time.monotonic() - asked < 30, (
                "the shutdown timeout, and five seconds; the rest is for a busy machine"
            )
            eventually(lambda: not any(processes.start_time(child.pid) for child in family))
        finally:
            server.resume()
        redis.close()


def test_respawn_delay_grows_with_crashes_after_a_replaced_horse(redis):
    """The delay after a replaced horse is 0. Twice that was 0 too, so crashing horses were forked
    without any delay."""
    worker = rqjobs.Worker(["default"])
    worker._renew_lease()
    pauses = []
    for _ in range(3):
        worker._respawn_delay = 0.0 if not pauses else worker._respawn_delay
        worker.horse_state = HorseState()
        worker.prefetch = PrefetchPipe()
        worker.control, theirs = socket.socketpair()
        worker._watch.spawned_at = time.monotonic() + 60  # it lives for less than a second
        worker._horse_pid = os.spawnlp(os.P_NOWAIT, "false", "false")
        os.waitid(os.P_PID, worker._horse_pid, os.WEXITED | os.WNOWAIT)
        worker._reap_horse()
        theirs.close()
        pauses.append(worker._respawn_delay)
    assert pauses == [0.1, 0.2, 0.4]


def test_a_job_whose_state_is_being_written_can_be_stopped(redis):
    """A stop-job command that arrived at that moment had no effect."""
    worker = rqjobs.Worker(["default"])
    worker.horse_state = state = HorseState()
    state.write(HorsePhase.RUNNING, "the-job", "token")
    state.memory[0] |= 1  # as in the middle of a write
    assert worker.get_current_job_id() is None
    written = threading.Timer(0.02, lambda: state.memory.__setitem__(0, state.memory[0] & 0xFE))
    written.start()
    assert worker.get_current_job_id() == "the-job"
    written.join()
