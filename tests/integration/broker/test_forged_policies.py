"""Keys and fields of the policies that a foreign program has written stop no other job."""

from __future__ import annotations

import random

import helpers
import pytest
import sample_jobs

import rqjobs
from rqjobs.broker import keys
from rqjobs.maintenance import sweep

NUMBERS = ("", "-1", "0", "nan", "-nan", "inf", "1e308", "9" * 400, "0x10", "1 2 3", "\xff", "a\nb")
FIELDS = (
    "limit", "woken", "waits_for", "expires", "kill_after", "paused", "retry", "retries", "unique",
    "until", "keep", "conflict", "debounce", "ending", "on_failed", "failure_group", "token",
    "crashes", "due",
)  # fmt: skip
OTHERS = ("status", "origin", "timeout", "ttl", "failure_ttl", "ended_at", "worker_name")
KEYS = (
    "slots:user:1", "slots-of:a", "waiting:user:1", "waiting-keys", "last-woken", "rate:api",
    "rate-due", "unique", "paused", "paused-jobs", "paused-jobs:sample_jobs.ok", "new-failures",
    "failure-groups", "failure-group:x", "failure-group-jobs:x", "canceled-expiry:default",
    "sweep:deferred", "sweep:unique", "ended-parents",
)  # fmt: skip


def value_for(field, dice):
    key = dice.choice(("user:1", "api", "", "nobody", "\x00", "x" * 5000))
    text = {
        "limit": f"{dice.choice(NUMBERS)} {dice.choice(NUMBERS)}.0 {dice.choice(NUMBERS)} {key}",
        "waits_for": key,
        "debounce": f"{dice.choice(NUMBERS)} {dice.choice(NUMBERS)} {dice.choice(NUMBERS)}",
        "expires": f"{dice.choice(NUMBERS)}+{dice.choice(NUMBERS)}",
        "status": dice.choice(("queued", "deferred", "started", "canceled", "x")),
        "origin": dice.choice(("default", "low", "no such queue", "")),
    }.get(field, dice.choice(NUMBERS))
    return dice.choice((text, text, dice.choice(NUMBERS)))


def forge(redis, ids, dice):
    """Change a field of a job, or a key of the policies, as a foreign program might."""
    if dice.random() < 0.6:
        field = dice.choice(FIELDS + OTHERS)
        name = field if field in OTHERS else f"rqjobs_{field}"
        redis.hset(keys.job(dice.choice(ids)), name, value_for(field, dice))
        return
    key = f"rqjobs:{dice.choice(KEYS)}"
    word = dice.choice((*ids, *NUMBERS))
    kind = dice.choice(("string", "list", "hash", "set", "zset", "gone"))
    if redis.type(key) != kind.encode() and dice.random() < 0.7:
        redis.delete(key)
    if redis.type(key) not in (b"none", kind.encode()):
        return
    write = {
        "string": lambda: redis.set(key, word),
        "list": lambda: redis.rpush(key, word, word),
        "hash": lambda: redis.hset(key, dice.choice((*ids, "user:1")), word),
        "set": lambda: redis.sadd(key, word),
        "zset": lambda: redis.zadd(key, {word: dice.choice((-1, 0, 1e15, float("inf")))}),
        "gone": lambda: redis.delete(key),
    }
    write[kind]()


@pytest.mark.parametrize("seed", range(4))
def test_plain_jobs_end_whatever_is_forged(redis, seed):
    dice = random.Random(seed)
    broker = helpers.Broker(redis)
    calls = [
        lambda: rqjobs.enqueue(sample_jobs.one_for_each_user, 1),
        lambda: rqjobs.enqueue(sample_jobs.ok, rate="50/s", limit_by="api"),
        lambda: rqjobs.enqueue(sample_jobs.unique_args, dice.randrange(3), keep=1),
        lambda: rqjobs.enqueue(sample_jobs.index, dice.choice("ab"), 1),
        lambda: rqjobs.enqueue(sample_jobs.ok, expires=60, on_failed="sample_jobs:note_failure"),
    ]
    ids = []
    plain = []
    for _ in range(40):
        ids.append(dice.choice(calls)().id)
        plain.append(rqjobs.enqueue(sample_jobs.ok).id)
        for _ in range(3):
            forge(redis, ids, dice)
        sweep.sweep(redis, force=True)  # sets keys of the wrong type aside
        for worker in "ab":
            for job_id in broker.claim(worker, 3):
                broker.settle(job_id, worker, dice.choice(("finished", "failed")))
    for _ in range(30):
        sweep.sweep(redis, force=True)
        for worker in "ab":
            for job_id in broker.claim(worker, 10):
                broker.settle(job_id, worker)
    ended = {redis.hget(keys.job(job_id), "status") for job_id in plain}
    assert ended <= {b"finished", b"failed"}
