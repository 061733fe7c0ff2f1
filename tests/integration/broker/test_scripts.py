"""No script in `lua/` fails after its first write.

That holds for any type, content and size of the keys in Redis.
"""

from __future__ import annotations

import re
from pathlib import Path

import helpers
import pytest
import sample_jobs
from redis.exceptions import RedisError, ResponseError
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Dependency
from rq.utils import now, utcformat

import rqjobs
from rqjobs import Repeat, ScheduleError, every, schedules
from rqjobs.broker import keys, leases, recovery, scripts, transitions
from rqjobs.broker import keys as broker_keys
from rqjobs.maintenance import sweep
from rqjobs.schedules import ticker

LUA = sorted((scripts.LUA_FOLDER).glob("*.lua"))


@pytest.fixture
def lease(redis):
    leases.renew_lease(redis, "me", {"pid": 1, "started": 2})


def claim_one(redis):
    (claim,) = helpers.claim(redis, "me", ["default"])
    return claim


def family(redis):
    """A job, and a job that depends on it."""
    parent = rqjobs.enqueue(sample_jobs.ok, job_id="parent", failure_ttl=50)
    rqjobs.queue("low").enqueue(
        sample_jobs.ok, depends_on=Dependency(jobs=[parent], allow_failure=True), job_id="child"
    )
    return parent


def enqueueing(redis):
    calls = [
        rqjobs.Queue.prepare_data(sample_jobs.ok, job_id="one"),
        rqjobs.Queue.prepare_data(sample_jobs.urgent, job_id="two"),
    ]
    return lambda: rqjobs.enqueue_many(calls)


def enqueueing_again(redis):
    """A delayed job that depends on another one. Its id is running now."""
    family(redis)
    claim_one(redis)
    rqjobs.enqueue_in(60, sample_jobs.ok, job_id="other")
    return lambda: rqjobs.enqueue_in(60, sample_jobs.ok, job_id="parent", depends_on="other")


def replacing(redis):
    """A unique job that is queued, one that is delayed, and a debounced one."""
    rqjobs.enqueue(sample_jobs.charge, 1, job_id="one")
    rqjobs.enqueue_in(60, sample_jobs.charge, 2, job_id="two")
    rqjobs.enqueue(sample_jobs.index, "a", job_id="three")
    prepare = rqjobs.Queue.prepare_data
    calls = [
        prepare(sample_jobs.charge, args=(number,), on_conflict="replace") for number in (1, 2, 4)
    ]
    return lambda: rqjobs.enqueue_many([*calls, (sample_jobs.index, "a"), (sample_jobs.index, "b")])


def requeueing_unique(redis):
    job = rqjobs.enqueue(sample_jobs.unique_kept, 1, job_id="parent")
    redis.delete("rq:queue:default")
    redis.hset(job.key, "status", "failed")
    redis.zadd("rq:failed:default", {"parent": 9e9})
    return lambda: transitions.requeue(redis, "parent")


def claiming_unique(redis):
    """The second job was enqueued again by plain RQ."""
    for name in ("one", "two"):
        rqjobs.enqueue(sample_jobs.charge, 1, job_id=name)
        redis.delete("rqjobs:unique")
    return lambda: helpers.claim(redis, "me", ["default"], max_jobs=5)


def settling_unique(redis):
    rqjobs.enqueue(sample_jobs.unique_kept, 1, job_id="one", on_conflict="raise")
    claim = claim_one(redis)
    writes = transitions.failure_writes(claim, "me", "a reason")
    arguments = transitions.settle_arguments("me", claim, writes, "failed")
    return lambda: scripts.SETTLE.run(redis, *arguments)


def ticking_unique(redis):
    schedules.add("hourly", every(hours=1), sample_jobs.charge, 1)
    return lambda: schedules.run_now("hourly")


def settled(redis, writes, counts_as="finished"):
    family(redis)
    claim = claim_one(redis)
    return lambda: scripts.SETTLE.run(
        redis, *transitions.settle_arguments("me", claim, writes, counts_as)
    )


def settling(redis):
    return settled(
        redis,
        [
            ("HINCRBY", "rq:worker:me", "successful_job_count", 1),
            ("HSET", "rq:job:parent", "status", "finished"),
            ("XADD", "rq:results:parent", "*", "type", 1),
            ("ZADD", "rq:finished:default", 9e9, "parent"),
            ("EXPIRE", "rq:job:parent", 500),
        ],
    )


def failing(redis):
    family(redis)
    claim = claim_one(redis)
    return lambda: scripts.SETTLE.run(
        redis,
        *transitions.settle_arguments(
            "me", claim, transitions.failure_writes(claim, "me", "a reason"), "failed"
        ),
    )


def finishing(redis):
    family(redis)
    claim = claim_one(redis)
    arguments = [
        claim.job_id,
        claim.queue,
        claim.token,
        "me",
        "2026-01-01T00:00:00.000000Z",
        "2026-01-01T00:00:00.000000Z",
        1,
        2,
        500,
        9e9,
        0,
        180,
        "MQ==",
    ]
    return lambda: scripts.SETTLE_SUCCESS.run(redis, ["rqjobs:claims:me"], arguments)


def claiming(redis):
    family(redis)
    rqjobs.enqueue(sample_jobs.ok, job_id="other")
    redis.rpush("rq:queue:default", "odd id")
    return lambda: helpers.claim(redis, "me", ["high", "default"], max_jobs=5)


def adopting(redis):
    family(redis)
    claim_one(redis)
    redis.rpush("rqjobs:claims:me", "odd id")
    return lambda: helpers.claim(redis, "me", ["default"])


def releasing(redis):
    family(redis)
    claim_one(redis)
    return lambda: transitions.release_all(redis, "me")


def interrupting(redis):
    rqjobs.enqueue(sample_jobs.two_at_a_time, job_id="one")
    claim = claim_one(redis)
    return lambda: transitions.interrupt(redis, "me", claim, {"rqjobs_cursors": "x"})


def keeping(redis):
    rqjobs.enqueue(sample_jobs.ok, job_id="one")
    arguments = [claim_one(redis).token, "rqjobs_cursors", "x"]
    return lambda: scripts.KEEP_CURSOR.run(redis, ["rq:job:one"], arguments)


def reclaiming(redis, delay=0.0, deaths=0):
    family(redis)
    claim_one(redis)
    if deaths:
        redis.hset("rq:job:parent", "rqjobs_crashes", ",".join([str(redis.time()[0])] * deaths))
    cause = recovery.DeathCause.HORSE_DIED if delay else recovery.DeathCause.PROCESS_GONE
    return lambda: recovery.reclaim(redis, "me", ["default"], cause, delay=delay, process="1:2")


def recovering(redis):
    family(redis)
    redis.lmove("rq:queue:default", "rq:queue:default:intermediate", "LEFT", "RIGHT")
    return lambda: recovery.recover(redis, "parent", "default", "intermediate")


def recovering_from_wip(redis):
    family(redis)
    redis.delete("rq:queue:default")
    redis.zadd("rq:wip:default", {"parent:x": 9e9})
    return lambda: recovery.recover(redis, "parent", "default", "wip", "x", "gone")


def enqueueing_dependents(redis):
    family(redis)
    redis.hset("rq:job:parent", "status", "failed")
    redis.sadd(broker_keys.ENDED_PARENTS, "parent")
    return lambda: recovery.enqueue_dependents(redis, "parent", 180)


def requeueing(redis):
    parent = family(redis)
    redis.delete("rq:queue:default")
    redis.hset(parent.key, "status", "failed")
    redis.zadd("rq:failed:default", {"parent": 9e9})
    return lambda: transitions.requeue(redis, "parent")


def promoting(redis):
    for name in ("one", "two"):
        rqjobs.enqueue_in(60, sample_jobs.ok, job_id=name)
    redis.zadd("rq:scheduled:default", {"one": 1, "two": 2, "missing": 3})
    return lambda: transitions.promote_batch(redis, "default", 180)


def canceling(redis):
    rqjobs.enqueue_in(60, sample_jobs.ok, job_id="one")
    return lambda: rqjobs.delayed.cancel("one")


def deleting(redis):
    parent = family(redis)
    redis.delete("rq:queue:default")
    redis.hset(parent.key, "status", "failed")
    redis.zadd("rq:failed:default", {"parent": 9e9})
    return lambda: transitions.delete(redis, ["parent"], "default")


def sweeping(redis):
    return lambda: leases.begin_sweep(redis)


def ticking(redis):
    schedules.add("hourly", every(hours=1), sample_jobs.ok)
    tick = int(redis.hget("rqjobs:schedule:hourly", "next")) - 3600
    redis.hset("rqjobs:schedule:hourly", "next", tick)
    redis.zadd(keys.SCHEDULES, {"hourly": tick})
    return lambda: ticker.run_due(redis)


def running_now(redis):
    schedules.add("hourly", every(hours=1), sample_jobs.ok)
    return lambda: schedules.run_now("hourly")


def scheduling(redis):
    return lambda: schedules.add("hourly", every(hours=1), sample_jobs.ok)


def changing(redis):
    schedules.add("hourly", every(hours=1), sample_jobs.ok)
    return lambda: schedules.edit("hourly", rule=every(hours=2))


def removing(redis):
    schedules.add("hourly", every(hours=1), sample_jobs.ok)
    return lambda: schedules.remove("hourly")


MOVES = {
    "promote": promoting,
    "enqueue": enqueueing,
    "enqueue again": enqueueing_again,
    "replace": replacing,
    "requeue a unique job": requeueing_unique,
    "claim unique jobs": claiming_unique,
    "settle a unique job": settling_unique,
    "run a unique schedule now": ticking_unique,
    "settle": settling,
    "settle a failure of our own": failing,
    "finish": finishing,
    "claim": claiming,
    "adopt": adopting,
    "release": releasing,
    "interrupt": interrupting,
    "keep a cursor": keeping,
    "reclaim": reclaiming,
    "delay": lambda redis: reclaiming(redis, 1.0),
    "fail": lambda redis: reclaiming(redis, deaths=2),
    "recover": recovering,
    "recover from wip": recovering_from_wip,
    "enqueue_dependents": enqueueing_dependents,
    "requeue": requeueing,
    "cancel": canceling,
    "delete": deleting,
    "sweep": sweeping,
    "schedule": scheduling,
    "change a schedule": changing,
    "remove a schedule": removing,
    "tick": ticking,
    "run now": running_now,
}


def everything(redis):
    return {key: redis.dump(key) for key in redis.scan_iter()}


@pytest.mark.parametrize("move", MOVES)
def test_a_script_does_all_or_nothing_with_a_key_of_the_wrong_type(redis, lease, move):
    """The test tries every key that the move reads or writes. Lua does not roll back."""

    def prepare():
        redis.flushall()
        leases.renew_lease(redis, "me", {"pid": 1, "started": 2})
        return MOVES[move](redis)

    run = prepare()
    keys = set(redis.scan_iter())
    run()
    keys |= set(redis.scan_iter()) | {b"rqjobs:result"}
    half_done = []
    for key in sorted(keys):
        run = prepare()
        wrong = "rpush" if redis.type(key) == b"string" else "set"
        redis.delete(key)
        getattr(redis, wrong)(key, "odd")
        before = everything(redis)
        try:
            run()
        except NoSuchJobError:
            pass
        except (RedisError, InvalidJobOperation, ScheduleError, leases.NoLease):
            if everything(redis) != before:
                half_done.append(key.decode())
    assert not half_done


CHILDREN = """
for i = 1, tonumber(ARGV[2]) do
  local id = 'child-' .. i
  redis.call('HSET', 'rq:job:' .. id, 'status', 'deferred', 'origin', 'low', 'data', ARGV[3], 'created_at', ARGV[4],
    'allow_dependency_failures', '1')
  redis.call('SADD', 'rq:job:' .. ARGV[1] .. ':dependents', id)
  redis.call('SADD', 'rq:job::' .. id .. ':dependencies', ARGV[1])
  redis.call('ZADD', 'rq:deferred:low', i, id)
end
redis.call('SADD', 'rq:job::child-1:dependencies', ARGV[5])
"""


def with_children(redis, number, function=sample_jobs.mark, **options):
    """A job with this number of dependents. The first one depends on another job, too."""
    parent = rqjobs.queue("high").enqueue(function, "ran", **options)
    other = rqjobs.enqueue_in(9999, sample_jobs.ok)
    model = rqjobs.Queue("low", connection=redis).create_job(sample_jobs.ok)
    redis.eval(CHILDREN, 0, parent.id, number, model.data, utcformat(now()), other.id)
    return parent


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("plain", 50_000),
        ("repeat", 8500),
        ("result_ttl=0", 8500),
        ("result_ttl=1", 8500),
        ("failed", 8500),
    ],
)
def test_any_number_of_jobs_may_depend_on_one(redis, kind, number):
    """With 8,500 dependents an SREM had too many arguments for Lua.

    Half of the outcome was written, and the parent ran forever.
    """
    options = {
        "repeat": {"repeat": Repeat(times=1, interval=3600)},
        "result_ttl=0": {"result_ttl": 0},
        "result_ttl=1": {"result_ttl": 1, "repeat": None},
    }.get(kind, {})
    parent = with_children(
        redis,
        number,
        sample_jobs.mark_and_boom if kind == "failed" else sample_jobs.mark,
        **options,
    )
    rqjobs.Worker(["high"]).work(burst=True, max_jobs=1, logging_level="CRITICAL")
    assert redis.lrange("ran", 0, -1) == [parent.id.encode()]
    assert redis.llen("rq:queue:low") == number - 1 and redis.zrange("rq:deferred:low", 0, -1) == [
        b"child-1"
    ]
    assert (
        not redis.exists(broker_keys.ENDED_PARENTS)
        and not redis.keys("rqjobs:claims:*")
        and not redis.exists("rq:wip:high")
    )
    dependents = f"{parent.key}:dependents"
    with redis.pipeline() as pipe:
        has_dependents, has_job = pipe.exists(dependents).exists(parent.key).execute()
    expires = kind == "result_ttl=1" and redis.ttl(dependents) != -1
    assert has_dependents == has_job or expires


def test_enqueueing_many_dependents_resumes_after_a_crash(redis, lease):
    parent = with_children(redis, 1200, result_ttl=0)
    (claim,) = helpers.claim(redis, "me", ["high"])
    arguments = transitions.settle_arguments("me", claim, [("DEL", parent.key)], "finished")
    assert scripts.SETTLE.run(redis, *arguments) == b"dependents left" and not redis.exists(
        "rq:queue:low"
    )
    scripts.ENQUEUE_DEPENDENTS.run(
        redis,
        [broker_keys.ENDED_PARENTS],
        [f"{parent.id}:finished", utcformat(now()), 180, "0", 100],
    )
    assert 0 < redis.llen("rq:queue:low") < 1199
    sweep.sweep(redis, force=True)
    assert len(set(redis.lrange("rq:queue:low", 0, -1))) == redis.llen("rq:queue:low") == 1199
    assert not redis.exists(broker_keys.ENDED_PARENTS, f"{parent.key}:dependents")


def test_an_outcome_with_an_impossible_write_writes_nothing(redis, lease):
    rqjobs.enqueue(sample_jobs.ok)
    claim = claim_one(redis)
    for write in (
        ("SREM", "some set", *range(9000)),
        ("SADD", "rq:queue:x", 1),
        ("EXPIRE", "some set", 2**40),
        ("HINCRBY", f"rq:job:{claim.job_id}", "status", 1),
        ("EVAL", "return 1", 0),
    ):
        redis.rpush("rq:queue:x", 1)
        before = everything(redis)
        with pytest.raises(ResponseError):
            scripts.SETTLE.run(
                redis, *transitions.settle_arguments("me", claim, [("SET", "a", 1), write])
            )
        assert everything(redis) == before, write


def test_a_wrong_write_of_statistics_is_left_out(redis, lease):
    rqjobs.enqueue(sample_jobs.ok)
    claim = claim_one(redis)
    redis.set("rq:worker:me", "odd")
    writes = [("HINCRBY", "rq:worker:me", "failed_job_count", 1), ("SET", "done", 1)]
    assert (
        scripts.SETTLE.run(redis, *transitions.settle_arguments("me", claim, writes)) == b"settled"
    )
    assert redis.get("done") == b"1" and redis.get("rq:worker:me") == b"odd"


def test_nothing_is_unpacked_without_a_bound():
    """`unpack` accepts some 7,900 values. With more it raises an error outside every pcall.

    Before a script is added here, its bound must be checked.
    """
    bounded = {
        "claim": 2,
        "enqueue": 3,
        "settle_success": 2,
        "scan_jobs": 1,
        "promote_due": 2,
        "renew_lease": 1,
        "save_fields": 1,
        "store_schedule": 2,
        "settle": 1,
        "run_schedule": 1,
        "count_places": 1,
        "follow_failure": 1,
        "interrupt": 1,  # three fields of a job
        "keep_cursor": 1,  # the same
        "keep_log": 2,  # the eight words of an entry
        "find_groups": 1,  # a page of groups
        "newest_jobs": 1,  # the names of a row's fields
        "record_activity": 1,  # the words of an entry
        "search_jobs": 5,  # the names and values of a row's fields
    }
    assert {
        path.stem: count for path in LUA if (count := path.read_text().count("unpack("))
    } == bounded


def test_no_script_is_a_python_string():
    script = re.compile(r"redis\.p?call\((?!'TIME'\)\")")  # the frozen clock replaces that call
    modules = Path(rqjobs.__file__).parent.rglob("*.py")
    assert not [path.name for path in modules if script.search(path.read_text())]
