"""Claims and outcomes of workers that were frozen, and the costs of a job. Real processes."""

from __future__ import annotations

import os
import signal
import socket
import time

import helpers
import psutil
import pytest
import sample_jobs
from rq.job import JobStatus

import rqjobs
import rqjobs.worker
from rqjobs import Callback, Repeat, Retry
from rqjobs.broker import keys, leases, recovery, scripts, transitions
from rqjobs.broker.scripts import load_scripts
from rqjobs.jobs import Job
from rqjobs.maintenance import audit, sweep
from rqjobs.worker.listener import QueueListener
from rqjobs.worker.prefetch import PrefetchPipe
from rqjobs.worker.shared_state import HorseState


def outcome_keys(redis):
    """The present values of all keys that an outcome writes."""
    patterns = (
        "rq:job:*",
        "rq:queue:*",
        "rq:results:*",
        "rq:scheduled:*",
        "rq:failed:*",
        "rq:finished:*",
        "rq:wip:*",
        "rq:deferred:*",
        "rqjobs:claims:*",
    )
    return {key: redis.dump(key) for pattern in patterns for key in redis.scan_iter(pattern)}


def horse_of(redis, gate):
    return int(redis.lrange(f"{gate}:reached", 0, -1)[-1])


KINDS = {
    "plain": ("ok", {}),
    "failing": ("boom", {}),
    "retry": ("boom", {"retry": Retry(max=2)}),
    "retry later": ("boom", {"retry": Retry(max=2, interval=60)}),
    "retry by value": ("again", {}),
    "repeat": ("ok", {"repeat": Repeat(times=2)}),
    "repeat later": ("ok", {"repeat": Repeat(times=2, interval=60)}),
    "callback": ("ok", {"on_success": Callback(sample_jobs.on_done)}),
    "forgotten": ("ok", {"result_ttl": 0}),
    "dependent": ("ok", {}),
}


@pytest.mark.parametrize(
    ("kind", "thaw_first"),
    [*((kind, "parent") for kind in KINDS), ("plain", "horse"), ("retry", "horse")],
)
def test_a_late_outcome_of_a_worker_that_was_declared_dead_is_refused(
    worker, redis, eventually, kind, thaw_first
):
    """The worker's lease expired while the worker was frozen, and another worker ran the job.

    No part of the late outcome may be written.
    """
    what, options = KINDS[kind]
    job = rqjobs.enqueue(sample_jobs.hang_then, "gate", what, **options)
    if kind == "dependent":
        rqjobs.queue("low").enqueue(sample_jobs.ok, depends_on=job)
    late = worker("default")
    eventually(lambda: redis.llen("gate:reached") == 1)
    horse = horse_of(redis, "gate")
    os.kill(late.pid, signal.SIGSTOP)
    os.kill(horse, signal.SIGSTOP)
    eventually(lambda: not blocked(redis), what="the end of the frozen job's last wait")
    redis.zadd(keys.LEASES, {late.name: time.time() - 1})
    redis.set("rqjobs:sweep:last", time.time())
    assert sweep.sweep(redis, force=True).requeued == [job.id]

    other = worker("default", options=["--max-jobs", "1"])
    eventually(lambda: redis.llen("gate:reached") == 2)
    eventually(lambda: blocked(redis))
    redis.rpush("gate:open", 1)
    eventually(lambda: other.poll() == 0, what=other.output)
    done = outcome_keys(redis)

    suspend_claims(redis)
    for pid in (late.pid, horse) if thaw_first == "parent" else (horse, late.pid):
        os.kill(pid, signal.SIGCONT)
    redis.rpush("gate:open", 1)
    eventually(
        lambda: "is refused" in late.output() or "was deleted while it ran" in late.output(),
        what="the refusal in the log",
    )
    assert outcome_keys(redis) == done
    assert not audit.audit(redis, settle=0.5).breaches


def blocked(redis):
    return [
        client
        for client in redis.client_list()
        if client["cmd"] == "blpop" and "b" in client["flags"]
    ]


def suspend_claims(redis):
    """Keep a thawed worker from claiming the job that the other worker put back.

    Then only its late outcome could write.
    """
    redis.set("rq:suspended", 1)


def test_a_horse_with_a_frozen_parent_writes_no_outcome_and_claims_nothing(
    worker, redis, eventually
):
    """The horse runs on without a lease.

    Its outcome is refused once another worker has the job, and it claims no job.
    """
    job = rqjobs.enqueue(sample_jobs.hang, "gate")
    late = worker("default")
    eventually(lambda: redis.llen("gate:reached") == 1)
    os.kill(late.pid, signal.SIGSTOP)
    redis.zadd(keys.LEASES, {late.name: time.time() - 1})
    redis.set("rqjobs:sweep:last", time.time())
    assert sweep.sweep(redis, force=True).requeued == [job.id]
    redis.rpush("gate:open", 1)
    eventually(lambda: "is refused" in late.output())
    assert job.get_status() == JobStatus.QUEUED and redis.llen("gate:reached") == 1
    os.kill(late.pid, signal.SIGCONT)
    eventually(
        lambda: redis.llen("gate:reached") == 2,
        what="the same worker takes it again, with a new lease",
    )
    redis.rpush("gate:open", 1)
    eventually(lambda: job.get_status() == JobStatus.FINISHED)


def test_an_idle_horse_that_is_frozen_is_replaced(worker, redis, eventually, monkeypatch):
    process = worker("default")
    (horse,) = psutil.Process(process.pid).children()
    horse.suspend()
    job = rqjobs.enqueue(sample_jobs.ok, 1)
    eventually(lambda: job.get_status() == JobStatus.FINISHED, timeout=40)
    assert "has been unresponsive for" in process.output()


def test_a_horse_frozen_while_it_writes_its_state_is_replaced(settings, spawn, monkeypatch):
    """The parent waited forever for a readable state, and did not stop at SIGTERM."""
    parent, horse = rqjobs.Worker(["default"]), spawn("sleep", "60")
    parent._horse_pid, parent.horse_state = horse.pid, HorseState()
    parent.horse_state.memory[0] |= 1
    parent._enforce_limits()
    assert horse.poll() is None
    monkeypatch.setattr("rqjobs.worker.supervisor.UNRESPONSIVE_SECONDS", 0)
    parent._enforce_limits()
    assert horse.wait(10) == -signal.SIGKILL


def test_a_job_that_is_canceled_while_it_runs_stays_canceled(worker, redis, eventually):
    job = rqjobs.enqueue(sample_jobs.hang, "gate")
    process = worker("default")
    eventually(lambda: redis.llen("gate:reached") == 1)
    job.refresh()
    job.cancel()
    redis.rpush("gate:open", 1)
    eventually(lambda: "was canceled while it ran" in process.output())
    assert job.get_status() == JobStatus.CANCELED
    assert not redis.exists("rq:wip:default", "rqjobs:claims:" + process.name)


def test_a_time_limit_that_a_job_ignores_ends_its_process(worker, redis, eventually):
    job = rqjobs.enqueue(sample_jobs.stubborn, 60, job_timeout=1)
    worker("default")
    eventually(lambda: job.get_status() == JobStatus.FAILED, timeout=30)
    assert "ignored its time limit of 1 s" in job.latest_result().exc_string


def test_a_deploy_requeues_the_running_job_without_a_retry(worker, redis, eventually):
    job = rqjobs.enqueue(sample_jobs.hang, "gate", retry=Retry(max=1))
    waiting = rqjobs.enqueue(sample_jobs.ok)
    process = worker("default", env={"RQJOBS_SHUTDOWN_TIMEOUT": "1"})
    eventually(lambda: redis.llen("gate:reached") == 1)
    process.terminate()
    assert process.wait(20) == 0, process.output()
    assert rqjobs.queue("default").job_ids == [job.id, waiting.id]
    job.refresh()
    assert job.retries_left == 1 and not redis.hexists(job.key, "rqjobs_crashes")
    assert not redis.keys("rqjobs:claims:*") and not redis.zcard(keys.LEASES)


def test_a_second_signal_ends_the_worker_at_once_and_a_duplicate_does_not(
    worker, redis, eventually
):
    job = rqjobs.enqueue(sample_jobs.hang, "gate")
    process = worker("default", env={"RQJOBS_SHUTDOWN_TIMEOUT": "60"})
    eventually(lambda: redis.llen("gate:reached") == 1)
    process.terminate()
    process.terminate()
    eventually(lambda: "warm shut down requested" in process.output())
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 1.5 or process.poll() is not None)
    assert process.poll() is None
    process.terminate()
    assert process.wait(20) == 0
    assert rqjobs.queue("default").job_ids == [job.id]


def test_the_horse_is_replaced_after_its_maximum_of_jobs(worker, redis, eventually):
    jobs = [rqjobs.enqueue(sample_jobs.pid) for _ in range(3)]
    worker("default", env={"RQJOBS_MAX_JOBS_PER_CHILD": "1"})
    eventually(lambda: all(job.get_status() == JobStatus.FINISHED for job in jobs))
    assert len({job.return_value() for job in jobs}) == 3


def test_one_horse_runs_many_jobs(worker, redis, eventually):
    jobs = [rqjobs.enqueue(sample_jobs.pid) for _ in range(20)]
    worker("default")
    eventually(lambda: all(job.get_status() == JobStatus.FINISHED for job in jobs))
    assert len({job.return_value() for job in jobs}) == 1


def test_an_arriving_job_unblocks_one_worker(worker, redis, eventually):
    """The blocking pops of the other workers go on."""
    for _ in range(3):
        worker("high", "default", env={"SAMPLE_JOBS_BLOCK": "60"})  # no pop ends by itself
    eventually(
        lambda: (
            sum(
                client["cmd"] == "blmove" and "b" in client["flags"]
                for client in redis.client_list()
            )
            == 6
        )
    )
    before = redis.info("commandstats")["cmdstat_blmove"]["calls"]
    job = rqjobs.enqueue(sample_jobs.ok, 1)
    eventually(lambda: job.get_status() == JobStatus.FINISHED)
    assert redis.info("commandstats")["cmdstat_blmove"]["calls"] - before <= 4, (
        "two waits of the one that was woken"
    )


def test_jobs_arriving_on_several_queues_at_once_all_run(worker, redis, eventually):
    worker("high", "default", "low")
    for _ in range(20):
        jobs = [rqjobs.queue(name).enqueue(sample_jobs.ok) for name in ("low", "default", "high")]
        eventually(
            lambda jobs=jobs: all(job.get_status() == JobStatus.FINISHED for job in jobs), timeout=5
        )


@pytest.mark.parametrize(("at_once", "trips", "commands"), [(1, 1, 24), (16, 1, 19)])
def test_a_plain_job_takes_one_round_trip_and_the_documented_commands(
    redis, monkeypatch, at_once, trips, commands
):
    """The budget is one round trip and the documented commands, so that a slow path is noticed."""
    monkeypatch.setattr("rqjobs.worker.horse.CLAIM_BATCH_MAX_JOBS", at_once)
    monkeypatch.setattr(
        "rqjobs.worker.horse.BATCH_SECONDS", 60
    )  # the limit of a claim is then the number of jobs
    for module in (
        "horse",
        "supervisor",
    ):  # a busy machine makes jobs slow, which are claimed twice
        monkeypatch.setattr(f"rqjobs.worker.{module}.MAX_PREFETCH_WAIT_SECONDS", 60)
    count = 160
    rqjobs.enqueue_many([(sample_jobs.ok, n) for n in range(count)])
    load_scripts(redis)
    redis.config_resetstat()
    rqjobs.Worker(["default"]).work(burst=True, logging_level="WARNING")
    stats = {
        name.removeprefix("cmdstat_"): value["calls"]
        for name, value in redis.info("commandstats").items()
    }
    assert redis.zcard("rq:finished:default") == count
    assert stats.pop("evalsha") // count == trips + (at_once == 1), (
        "a claim for so many jobs, an outcome for each"
    )
    stats.pop("hstrlen", 0)  # the search for strays when a worker starts
    for name in ("hget", "hmget", "lrange"):
        stats[name] //= 2  # Redis counts a command in a pcall twice
    assert sum(calls // (count // at_once) / at_once for calls in stats.values()) <= commands, stats


def test_a_crashed_job_returns_without_a_scheduler_despite_many_due_jobs(
    redis, eventually, monkeypatch
):
    """The job was behind a thousand due jobs in the scheduled set, without a scheduler.

    No worker ever took it. Later it went to the end of its queue, behind all newer jobs.
    """
    monkeypatch.setattr(transitions, "BATCH_MAX_JOBS", 3)
    for _ in range(3):
        rqjobs.enqueue_in(0, sample_jobs.ok)
    job, younger = rqjobs.enqueue(sample_jobs.ok), rqjobs.enqueue(sample_jobs.ok)
    leases.renew_lease(redis, "one", {"host": ""})
    (claim,) = helpers.claim(redis, "one", ["default"])
    assert recovery.reclaim(
        redis, "one", ["default"], recovery.DeathCause.HORSE_DIED, claim.job_id, delay=0.01
    ) == {job.id: "delayed"}
    eventually(lambda: transitions.promote(redis, "default", 180, crashed_only=True) == 1)
    assert rqjobs.queue("default").job_ids == [job.id, younger.id] and not redis.exists(
        "rqjobs:crash-backoff:default"
    )
    assert redis.hget(job.key, "enqueued_at") == claim.fields[b"enqueued_at"]
    assert redis.zcard("rq:scheduled:default") == 3, "these are a scheduler's business"


def test_a_name_belongs_to_one_worker(redis):
    """Of two workers that start with one name, the second is refused in the same step.

    A worker that repeats its registration after a lost reply is not refused.
    """
    here, there = {"host": "a", "pid": 1, "started": "5"}, {"host": "a", "pid": 2, "started": "6"}
    assert leases.renew_lease(redis, "one", here, first=True)
    assert not leases.renew_lease(redis, "one", here, first=True)
    with pytest.raises(leases.NameTaken, match="'one' runs already"):
        leases.renew_lease(redis, "one", there, first=True)
    assert redis.hget("rqjobs:process:one", "pid") == b"1"


def test_a_process_whose_name_is_taken_changes_nothing(redis):
    """A worker was frozen until its lease had expired, and goes on.

    Another worker with the same `--name` has started in between.
    """
    here, there = {"host": "a", "pid": 1, "started": "5"}, {"host": "a", "pid": 2, "started": "6"}
    ours, theirs = map(leases.process_id, (here, there))
    first, second = rqjobs.enqueue(sample_jobs.ok), rqjobs.enqueue(sample_jobs.ok)
    leases.renew_lease(redis, "one", here, first=True)
    helpers.claim(redis, "one", ["default"])
    redis.zadd(keys.LEASES, {"one": 1})
    assert recovery.reclaim(redis, "one", ["default"], recovery.DeathCause.LEASE_EXPIRED) == {
        first.id: "requeued"
    }
    leases.renew_lease(redis, "one", there, first=True)
    (claim,) = helpers.claim(redis, "one", ["default"])
    lease = redis.zscore(keys.LEASES, "one")

    with pytest.raises(leases.NameTaken):
        leases.renew_lease(redis, "one", here)
    with pytest.raises(leases.NoLease):
        transitions.read_claims(
            scripts.CLAIM.run(
                redis, *transitions.claim_arguments("one", ["default"], 1, process=ours)
            )
        )
    assert redis.execute_command(*leases.horse_registration("one", ours, 9, "9")) == 0
    assert transitions.release_all(redis, "one", process=ours) == []
    assert (
        recovery.reclaim(redis, "one", ["default"], recovery.DeathCause.HORSE_DIED, process=ours)
        == {}
    )
    assert redis.lrange("rqjobs:claims:one", 0, -1) == [claim.job_id.encode()]
    assert redis.zscore(keys.LEASES, "one") == lease

    assert not leases.renew_lease(redis, "one", there)
    assert transitions.release_all(redis, "one", process=theirs) == [first.id]
    assert rqjobs.queue("default").job_ids == [first.id, second.id]


def test_a_worker_whose_name_is_taken_ends(worker, redis, eventually):
    """Both workers used one lease, and every job ran twice at once."""
    job = rqjobs.enqueue(sample_jobs.hang, "gate")
    frozen = worker("default", options=["--name", "fixed", "--with-scheduler"])
    eventually(lambda: redis.llen("gate:reached") == 1)
    for process in [psutil.Process(frozen.pid), *psutil.Process(frozen.pid).children()]:
        process.suspend()
    redis.zadd(keys.LEASES, {"fixed": 1})
    second = worker("default", options=["--name", "fixed"])
    eventually(lambda: redis.llen("gate:reached") == 2)
    for process in [psutil.Process(frozen.pid), *psutil.Process(frozen.pid).children()]:
        process.resume()
    assert frozen.wait(20) == 1 and "another worker has started as 'fixed'" in frozen.output()
    redis.rpush("gate:open", 1)
    eventually(lambda: job.get_status() == JobStatus.FINISHED)
    later = rqjobs.enqueue(sample_jobs.ok)
    eventually(lambda: later.get_status() == JobStatus.FINISHED)
    assert redis.llen("gate:reached") == 2 and second.poll() is None
    assert redis.hget("rqjobs:process:fixed", "pid") == b"%d" % second.pid and redis.exists(
        "rq:worker:fixed"
    )
    assert not audit.audit(redis).breaches


@pytest.fixture
def batch(worker, redis, eventually):
    """A worker with a hanging job and five more jobs of the same claim.

    The worker's parent is frozen, so it is not aware of them yet. Returns the worker, the
    hanging job and the five.
    """
    process = worker("default", env={"SAMPLE_JOBS_SPAN": "60"})
    short = rqjobs.enqueue_many([(sample_jobs.ok,)] * 40)  # the worker then claims many
    eventually(lambda: all(job.get_status() == JobStatus.FINISHED for job in short))
    psutil.Process(process.pid).suspend()
    hanging, *others = rqjobs.enqueue_many(
        [(sample_jobs.hang, "batch"), *[(sample_jobs.ok, n) for n in range(5)]]
    )
    eventually(lambda: redis.llen("batch:reached") == 1)
    assert redis.lrange(f"rqjobs:claims:{process.name}", 0, -1) == [
        job.id.encode() for job in [hanging, *others]
    ]
    yield process, hanging, others
    redis.rpush("batch:open", 1, 1)


def test_no_job_waits_behind_a_slow_one_that_was_claimed_with_it(batch, redis, eventually):
    process, hanging, others = batch
    psutil.Process(process.pid).resume()
    eventually(
        lambda: redis.lrange("rq:queue:default", 0, -1) == [job.id.encode() for job in others]
    )
    assert redis.lrange(f"rqjobs:claims:{process.name}", 0, -1) == [hanging.id.encode()]
    assert not audit.audit(redis, settle=0).breaches
    redis.rpush("batch:open", 1)
    eventually(lambda: all(job.get_status() == JobStatus.FINISHED for job in [hanging, *others]))
    assert {len(job.results()) for job in [hanging, *others]} == {1}


def test_no_job_waits_behind_many_that_were_claimed_with_it(worker, redis, eventually):
    """The parent did not release jobs behind short ones. Thirty jobs of 39 ms took a second."""
    process = worker("default", env={"SAMPLE_JOBS_SPAN": "60"})
    psutil.Process(process.pid).suspend()
    jobs = rqjobs.enqueue_many([*[(sample_jobs.ok,)] * 40, *[(sample_jobs.nap, 0.03)] * 10])[
        40:
    ]  # the worker then claims many
    eventually(lambda: all(job.get_status() == JobStatus.FINISHED for job in jobs))
    psutil.Process(process.pid).resume()
    tokens = [redis.xrange(f"rq:results:{job.id}")[0][1][b"execution_id"] for job in jobs]
    assert len({token[:-2] for token in tokens}) > 2, "they were claimed at once"
    assert not audit.audit(redis, settle=0).breaches


def test_a_job_in_another_queue_than_its_hash_says_leaves_nothing(worker, redis, eventually):
    (job,) = rqjobs.enqueue_many([(sample_jobs.ok,)])
    redis.hset(job.key, "origin", "low")
    worker("default")
    eventually(lambda: job.get_status() == JobStatus.FINISHED)
    eventually(lambda: redis.zcard("rq:finished:default") == 1)
    assert not redis.exists("rq:wip:default", "rq:wip:low", "rq:finished:low")
    assert not audit.audit(redis, settle=0).breaches


def test_a_horse_that_dies_with_several_claims_has_died_under_one(batch, redis, eventually, kill):
    process, hanging, others = batch
    (horse,) = psutil.Process(process.pid).children()
    kill(horse.pid)
    redis.rpush("batch:open", 1, 1)
    psutil.Process(process.pid).resume()
    eventually(lambda: all(job.get_status() == JobStatus.FINISHED for job in [hanging, *others]))
    assert [redis.hexists(job.key, "rqjobs_crashes") for job in [hanging, *others]] == [True] + [
        False
    ] * 5
    assert {len(job.results()) for job in [hanging, *others]} == {1}


def test_prefetched_jobs_are_released_at_sigterm(batch, redis, eventually):
    process, hanging, others = batch
    process.send_signal(signal.SIGTERM)
    psutil.Process(process.pid).resume()
    eventually(
        lambda: redis.lrange("rq:queue:default", 0, -1) == [job.id.encode() for job in others]
    )
    # The jobs are released behind a slow one too, before the parent asks its horse to stop.
    eventually(lambda: "warm shut down requested" in process.output(), what="the request")
    redis.rpush("batch:open", 1)
    assert process.wait(20) == 0 and hanging.get_status() == JobStatus.FINISHED
    assert redis.llen("rq:queue:default") == 5 and not audit.audit(redis, settle=0).breaches


def test_each_prefetched_job_is_taken_once():
    """Two processes read from one end of the pipe. Each token goes to one of them, whole."""
    prefetch, count, taken = PrefetchPipe(), 20_000, []
    ready, answer, end = os.pipe(), os.pipe(), "f" * transitions.TOKEN_CHARACTERS
    child = os.fork()
    if child == 0:
        os.read(ready[0], 1)
        own = []
        while end not in own[-1:]:
            if one := prefetch.get():
                own.append(one)
        os.write(answer[1], b"%d" % sum(int(one) for one in own[:-1]))
        os._exit(0)
    os.write(ready[1], b"x")
    for number in range(0, count, 10):
        prefetch.put(f"{one:0{transitions.TOKEN_CHARACTERS}}" for one in range(number, number + 10))
        while len(taken) <= number // 3 and (one := prefetch.get()):
            taken.append(int(one))
    prefetch.put([end])
    os.waitpid(child, 0)
    theirs = int(os.read(answer[0], 20))
    assert theirs and taken and sum(taken) + theirs == sum(range(count))
    prefetch.close()
    for end in (*ready, *answer):
        os.close(end)


def test_an_id_that_was_pushed_twice_is_run_once(redis):
    """A client of RQ enqueued the job again when a reply was lost.

    Two runs were recorded, or the first claim stayed in RQ's registry forever.
    """
    jobs = rqjobs.enqueue_many([(sample_jobs.ok,)] * 3)
    redis.rpush("rq:queue:default", *[job.id for job in jobs])
    for name in ("one", "two"):
        leases.renew_lease(redis, name, {"host": ""})
    first = helpers.claim(redis, "one", ["default"], 2)
    assert [claim.job_id for claim in first] == [job.id for job in jobs[:2]]
    assert [claim.job_id for claim in helpers.claim(redis, "two", ["default"], 5)] == [jobs[2].id]
    redis.rpush("rqjobs:claims:two", jobs[0].id)  # a blocking pop delivered it
    assert helpers.claim(redis, "two", ["default"], 5, [jobs[2].id]) == []
    assert redis.zcard("rq:wip:default") == 3 and not audit.audit(redis, settle=0).breaches


def test_a_job_that_is_enqueued_again_while_it_runs_runs_again(worker, redis, eventually):
    """The outcome of the first run settled the second run, which was dropped as ended."""
    first = rqjobs.enqueue(sample_jobs.hang, "first", job_id="same")
    process = worker("default")
    eventually(lambda: redis.llen("first:reached") == 1)
    second = rqjobs.enqueue(sample_jobs.ok, "second", job_id="same")
    assert not audit.audit(redis, settle=0).breaches
    redis.rpush("first:open", 1)
    eventually(lambda: second.get_status() == JobStatus.FINISHED)
    assert [result.return_value for result in first.results()] == ["second"]
    assert "is refused" in process.output() and not redis.exists(
        "rq:wip:default", f"rqjobs:claims:{process.name}"
    )


@pytest.mark.parametrize("way", ["in", "now"])
def test_a_job_that_schedules_its_own_next_run_continues(worker, redis, eventually, way):
    """The next run was lost.

    The end of the current run was taken for the end of the next one.
    """
    process = worker("default", options=["--with-scheduler"])
    job = rqjobs.enqueue(sample_jobs.plan_next_run, 3, way, job_id="same")
    eventually(
        lambda: job.get_status() == JobStatus.FINISHED and job.return_value(refresh=True) == 0
    )
    assert [result.return_value for result in job.results()] == [0]
    eventually(lambda: not redis.exists("rq:wip:default", f"rqjobs:claims:{process.name}"))
    assert not audit.audit(redis, settle=0).breaches


def test_an_outcome_does_not_wait_behind_the_next_job_of_its_batch(worker, redis, eventually):
    """A job that enqueues a dependent is settled by RQ's way.

    That outcome waited until the whole batch had ended.
    """
    worker("default", env={"SAMPLE_JOBS_SPAN": "60"})
    jobs = rqjobs.enqueue_many(
        [*[(sample_jobs.ok,)] * 40, (sample_jobs.follow, "child"), (sample_jobs.hang, "batch")]
    )
    eventually(lambda: redis.llen("batch:reached") == 1)
    assert jobs[40].get_status() == JobStatus.FINISHED
    worker("default")
    child = Job.fetch("child", connection=redis)
    eventually(lambda: child.get_status() == JobStatus.FINISHED)
    redis.rpush("batch:open", 1)
    eventually(lambda: jobs[41].get_status() == JobStatus.FINISHED)


def test_a_job_that_returns_to_its_queue_can_expire_there(redis):
    job = rqjobs.enqueue(sample_jobs.ok, ttl=100)
    leases.renew_lease(redis, "one", {"host": ""})
    helpers.claim(redis, "one", ["default"])
    assert redis.ttl(job.key) == -1
    transitions.release_all(redis, "one")
    assert 0 < redis.ttl(job.key) <= 100


@pytest.mark.parametrize("job_id", [b"bin\xff\xfe", b"nul\0", b"x" * 256, "ä".encode()])
def test_an_invalid_id_fails(redis, job_id):
    """Invalid characters of the id were replaced, so the outcome was that of another job.

    The job ran two thousand times a second.
    """
    redis.hset(b"rq:job:" + job_id, mapping={"data": "[]", "origin": "default", "status": "queued"})
    redis.rpush("rq:queue:default", job_id)
    leases.renew_lease(redis, "one", {"host": ""})
    assert helpers.claim(redis, "one", ["default"]) == []
    assert redis.zrange("rq:failed:default", 0, -1) == [job_id] and not redis.exists(
        "rqjobs:claims:one"
    )


def test_a_job_without_an_origin_belongs_to_the_queue_that_lists_it(worker, redis, eventually):
    job = rqjobs.enqueue(sample_jobs.ok)
    redis.hdel(job.key, "origin")
    worker("default")
    eventually(lambda: redis.zcard("rq:finished:default") == 1)
    assert not redis.exists("rq:wip:default", "rq:finished:")


@pytest.mark.parametrize("ending", ["return", "exit", "raise"])
def test_a_job_that_forks_leaves_one_horse(worker, redis, eventually, ending):
    """The child went on as a second horse on the same connection.

    Later the child recorded its own end there.
    """
    process = worker("default", env={"SAMPLE_JOBS_SPAN": "60"})
    (horse,) = psutil.Process(process.pid).children()
    jobs = rqjobs.enqueue_many(
        [*[(sample_jobs.ok,)] * 20, (sample_jobs.split, ending), *[(sample_jobs.ok,)] * 20]
    )
    eventually(lambda: all(job.get_status() == JobStatus.FINISHED for job in jobs))
    assert jobs[20].return_value() == "parent"
    assert psutil.Process(process.pid).children() == [horse]
    assert {len(job.results()) for job in jobs} == {1}


@pytest.fixture
def listener(redis):
    """The blocking pops of a worker w, and the signal from its parent that ends them."""
    end_signal, control = socket.socketpair()
    with end_signal, control:
        listener = QueueListener(redis, "rqjobs:claims:w")
        listener.wait_now = lambda *of: (
            end_signal.send(b"!"),
            listener.wait([f"rq:queue:{name}" for name in of], 5, control),
        )
        yield listener
        listener.close()


def unblock_and_read(listener, redis):
    """End the blocking pops.

    Returns whether all of them had ended, and the claims that the next command read.
    """
    with redis.pipeline(transaction=False) as pipe:
        for command in listener.unblock_commands():
            pipe.execute_command(*command)
        pipe.lrange("rqjobs:claims:w", 0, -1)
        *replies, found = pipe.execute(raise_on_error=False)
    return listener.all_unblocked(replies), found


def test_all_blocking_pops_have_ended_before_the_next_command_runs(listener, redis, eventually):
    for _ in range(3):  # the next wait reads the replies
        listener.wait_now("high", "low")
        eventually(lambda: redis.info("clients")["blocked_clients"] == 2)
        assert unblock_and_read(listener, redis) == (True, [])
        assert redis.info("clients")["blocked_clients"] == 0
    listener.wait_now("high", "low")
    redis.rpush("rq:queue:low", "job")
    found = unblock_and_read(listener, redis)
    assert found in (
        (True, [b"job"]),
        (False, [b"job"]),
    )  # False if the reply was still on its way
    assert found[0] or eventually(
        lambda: unblock_and_read(listener, redis) == (True, [b"job"]), what="the reply"
    )


def test_an_unblock_that_overtakes_its_pop_is_repeated(listener, redis, eventually, monkeypatch):
    """Otherwise a late pop would move a job into the claims, and the worker would not notice."""
    listener.wait_now("high", "low")
    assert eventually(lambda: unblock_and_read(listener, redis)[0])
    low = listener.pops[1]._connection
    late, send = [], low.send_command
    monkeypatch.setattr(low, "send_command", lambda *words: late.append(words))
    redis.rpush("rq:queue:high", "first")
    listener.wait_now("high", "low")
    eventually(
        lambda: not redis.exists("rq:queue:high")
    )  # until then Redis has not run the first pop
    assert unblock_and_read(listener, redis) == (False, [b"first"])
    send(*late[0])
    redis.rpush("rq:queue:low", "second")
    eventually(lambda: not redis.exists("rq:queue:low"))
    eventually(lambda: unblock_and_read(listener, redis) == (True, [b"first", b"second"]))


def test_a_pop_that_cannot_be_unblocked_is_abandoned(listener, redis, eventually, monkeypatch):
    """Its connection may be dead without an error on this side."""
    listener.wait_now("high")
    pop = listener.pops[0]
    listener.pops[0].client_id = 2**40
    monkeypatch.setattr("rqjobs.worker.listener.UNBLOCK_SECONDS", 0.2)
    eventually(lambda: not unblock_and_read(listener, redis)[0] and not listener.pops)
    assert pop.socket is None and unblock_and_read(listener, redis) == (True, [])
    monkeypatch.undo()
    listener.wait_now("high")
    listener.pops[0].client_id = "forbidden"
    assert unblock_and_read(listener, redis) == (False, []) and not listener.pops


def test_a_queue_that_is_named_twice_has_one_blocking_pop(redis):
    """Two pops on one connection delivered a job of which the horse was not aware."""
    assert rqjobs.Worker(["low", "default", rqjobs.queue("low")]).queue_names() == [
        "low",
        "default",
    ]
