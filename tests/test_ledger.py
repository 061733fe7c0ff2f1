"""The ledger under workers that wake up late, and what a job costs. Real processes, frozen and thawed."""

from __future__ import annotations

import os
import signal
import time

import faults
import psutil
import pytest
from rq.job import JobStatus

import rqjobs
import rqjobs.worker
from rqjobs import Callback, Repeat, Retry, ledger, orphans
from rqjobs.board import Board
from rqjobs.settling import load_scripts


def outcome_keys(redis):
    """Everything that an outcome writes, as it is now."""
    patterns = ("rq:job:*", "rq:queue:*", "rq:results:*", "rq:scheduled:*", "rq:failed:*", "rq:finished:*", "rq:wip:*",
                "rq:deferred:*", "rqjobs:claims:*")
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
    "callback": ("ok", {"on_success": Callback(faults.on_done)}),
    "forgotten": ("ok", {"result_ttl": 0}),
    "dependent": ("ok", {}),
}


@pytest.mark.parametrize(("kind", "thaw_first"), [*((kind, "parent") for kind in KINDS), ("plain", "horse"),
                                                  ("retry", "horse")])
def test_the_outcome_of_a_worker_that_wakes_up_late_is_refused(worker, redis, eventually, kind, thaw_first):
    """Its lease ended while it was frozen, another did the job; nothing of its own outcome may be written."""
    what, options = KINDS[kind]
    job = rqjobs.enqueue(faults.hang_then, "gate", what, **options)
    if kind == "dependent":
        rqjobs.queue("low").enqueue(faults.ok, depends_on=job)
    late = worker("default")
    eventually(lambda: redis.llen("gate:reached") == 1)
    horse = horse_of(redis, "gate")
    os.kill(late.pid, signal.SIGSTOP)
    os.kill(horse, signal.SIGSTOP)
    eventually(lambda: not blocked(redis), what="the end of the frozen job's last wait")
    redis.zadd(ledger.WORKERS, {late.name: time.time() - 1})
    redis.set("rqjobs:swept", time.time())
    assert orphans.sweep(redis, force=True).requeued == [job.id]

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
    eventually(lambda: "is refused" in late.output() or "was deleted while it ran" in late.output(),
               what="the refusal in the log")
    assert outcome_keys(redis) == done
    assert not orphans.audit(redis, settle=0.5).breaches


def blocked(redis):
    return [client for client in redis.client_list() if client["cmd"] == "blpop" and "b" in client["flags"]]


def suspend_claims(redis):
    """Keep a thawed worker from claiming what the other put back, so that only its late outcome could write."""
    redis.set("rq:suspended", 1)


def test_only_the_parent_frozen(worker, redis, eventually):
    """The horse runs on without a lease: its outcome is refused once the job is another's, and it claims nothing."""
    job = rqjobs.enqueue(faults.hang, "gate")
    late = worker("default")
    eventually(lambda: redis.llen("gate:reached") == 1)
    os.kill(late.pid, signal.SIGSTOP)
    redis.zadd(ledger.WORKERS, {late.name: time.time() - 1})
    redis.set("rqjobs:swept", time.time())
    assert orphans.sweep(redis, force=True).requeued == [job.id]
    redis.rpush("gate:open", 1)
    eventually(lambda: "is refused" in late.output())
    assert job.get_status() == JobStatus.QUEUED and redis.llen("gate:reached") == 1
    os.kill(late.pid, signal.SIGCONT)
    eventually(lambda: redis.llen("gate:reached") == 2, what="the same worker takes it again, with a new lease")
    redis.rpush("gate:open", 1)
    eventually(lambda: job.get_status() == JobStatus.FINISHED)


def test_an_idle_horse_that_is_frozen_is_replaced(worker, redis, eventually, monkeypatch):
    process = worker("default")
    (horse,) = psutil.Process(process.pid).children()
    horse.suspend()
    job = rqjobs.enqueue(faults.ok, 1)
    eventually(lambda: job.get_status() == JobStatus.FINISHED, timeout=40)
    assert "has not been heard of" in process.output()


def test_a_horse_frozen_in_the_middle_of_a_posting_is_replaced(settings, spawn, monkeypatch):
    """What cannot be read was waited for, for ever, and the worker did not even stop when it was told to."""
    parent, horse = rqjobs.Worker(["default"]), spawn("sleep", "60")
    parent._horse_pid, parent.horse_board = horse.pid, Board()
    parent.horse_board.memory[0] |= 1
    parent._police()
    assert horse.poll() is None
    monkeypatch.setattr(rqjobs.worker, "STUCK", 0)
    parent._police()
    assert horse.wait(10) == -signal.SIGKILL


def test_a_job_that_is_canceled_while_it_runs_stays_canceled(worker, redis, eventually):
    job = rqjobs.enqueue(faults.hang, "gate")
    process = worker("default")
    eventually(lambda: redis.llen("gate:reached") == 1)
    job.refresh()
    job.cancel()
    redis.rpush("gate:open", 1)
    eventually(lambda: "was canceled while it ran" in process.output())
    assert job.get_status() == JobStatus.CANCELED
    assert not redis.exists("rq:wip:default", "rqjobs:claims:" + process.name)


def test_a_time_limit_that_a_job_ignores_ends_its_process(worker, redis, eventually):
    job = rqjobs.enqueue(faults.stubborn, 60, job_timeout=1)
    worker("default")
    eventually(lambda: job.get_status() == JobStatus.FAILED, timeout=30)
    assert "ignored its time limit of 1 s" in job.latest_result().exc_string


def test_a_deploy_puts_the_running_job_back_without_spending_anything(worker, redis, eventually):
    job = rqjobs.enqueue(faults.hang, "gate", retry=Retry(max=1))
    waiting = rqjobs.enqueue(faults.ok)
    process = worker("default", env={"RQJOBS_GRACE": "1"})
    eventually(lambda: redis.llen("gate:reached") == 1)
    process.terminate()
    assert process.wait(20) == 0, process.output()
    assert rqjobs.queue("default").job_ids == [job.id, waiting.id]
    job.refresh()
    assert job.retries_left == 1 and not redis.hexists(job.key, "rqjobs_deaths")
    assert not redis.keys("rqjobs:claims:*") and not redis.zcard(ledger.WORKERS)


def test_a_second_signal_does_it_at_once_and_a_doubled_one_does_not(worker, redis, eventually):
    job = rqjobs.enqueue(faults.hang, "gate")
    process = worker("default", env={"RQJOBS_GRACE": "60"})
    eventually(lambda: redis.llen("gate:reached") == 1)
    process.terminate()
    process.terminate()
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 1.5 or process.poll() is not None)
    assert process.poll() is None
    process.terminate()
    assert process.wait(20) == 0
    assert rqjobs.queue("default").job_ids == [job.id]


@pytest.mark.parametrize("setting", [{"RQJOBS_MAX_JOBS_PER_HORSE": "1"}, {"RQJOBS_MAX_MEMORY_PER_HORSE": str(2**24)}])
def test_the_horse_is_replaced_when_it_has_done_or_grown_enough(worker, redis, eventually, setting):
    jobs = [rqjobs.enqueue(faults.pid) for _ in range(3)]
    worker("default", env=setting)
    eventually(lambda: all(job.get_status() == JobStatus.FINISHED for job in jobs))
    assert len({job.return_value() for job in jobs}) == 3


def test_one_horse_runs_many_jobs(worker, redis, eventually):
    jobs = [rqjobs.enqueue(faults.pid) for _ in range(20)]
    worker("default")
    eventually(lambda: all(job.get_status() == JobStatus.FINISHED for job in jobs))
    assert len({job.return_value() for job in jobs}) == 1


def test_an_arriving_job_wakes_one_worker(worker, redis, eventually):
    """Not all of them: the others' waits go on."""
    for _ in range(3):
        worker("high", "default")
    eventually(lambda: sum(client["cmd"] == "blmove" and "b" in client["flags"] for client in redis.client_list()) == 6)
    before = redis.info("commandstats")["cmdstat_blmove"]["calls"]
    job = rqjobs.enqueue(faults.ok, 1)
    eventually(lambda: job.get_status() == JobStatus.FINISHED)
    assert redis.info("commandstats")["cmdstat_blmove"]["calls"] - before <= 4, "two waits of the one that was woken"


def test_jobs_arriving_on_several_queues_at_once_all_run(worker, redis, eventually):
    worker("high", "default", "low")
    for _ in range(20):
        jobs = [rqjobs.queue(name).enqueue(faults.ok) for name in ("low", "default", "high")]
        eventually(lambda jobs=jobs: all(job.get_status() == JobStatus.FINISHED for job in jobs), timeout=5)


def test_what_a_plain_job_costs(redis):
    """The budget: one round trip, and the documented commands; a slow path cannot creep in unseen."""
    count = 100
    rqjobs.enqueue_many([(faults.ok, n) for n in range(count)])
    load_scripts(redis)
    redis.config_resetstat()
    rqjobs.Worker(["default"]).work(burst=True, logging_level="WARNING")
    stats = {name.removeprefix("cmdstat_"): value["calls"] for name, value in redis.info("commandstats").items()}
    per_job = {name: calls // count for name, calls in stats.items() if calls >= count}
    assert redis.zcard("rq:finished:default") == count
    assert per_job.pop("evalsha") == 2, "one pipeline of a settle and a claim"
    per_job["hmget"] = 1  # Redis counts one that is called through pcall twice
    assert sum(per_job.values()) <= 20, per_job


def test_a_crashed_job_comes_back_without_a_scheduler_however_many_jobs_are_due(redis, eventually, monkeypatch):
    """It stood behind a thousand scheduled jobs that were due and that no scheduler fetched, and was never seen; and
    then it came to the end of its queue, behind all that had been enqueued after it."""
    monkeypatch.setattr(ledger, "AT_ONCE", 3)
    for _ in range(3):
        rqjobs.enqueue_in(0, faults.ok)
    job, younger = rqjobs.enqueue(faults.ok), rqjobs.enqueue(faults.ok)
    ledger.beat(redis, "one", {"host": ""})
    (claim,) = ledger.claim(redis, "one", ["default"])
    assert ledger.reclaim(redis, "one", ["default"], "horse", claim.job_id, delay=0.01) == {job.id: "delayed"}
    eventually(lambda: ledger.promote(redis, "default", 180, crashed_only=True) == 1)
    assert rqjobs.queue("default").job_ids == [job.id, younger.id] and not redis.exists("rqjobs:crashed:default")
    assert redis.hget(job.key, "enqueued_at") == claim.fields[b"enqueued_at"]
    assert redis.zcard("rq:scheduled:default") == 3, "these are a scheduler's business"
