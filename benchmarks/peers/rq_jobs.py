"""RQ, and rqjobs if BENCH_OURS is set: the same functions and the same calls."""

import contextlib
import datetime
import itertools
import os
import time

import redis
import rq
import work
from rq.exceptions import DuplicateJobError

ABOUT = {
    "requires": "",  # the environment of rqjobs has RQ
    "version": "rq",
    "results": "kept 500 s",
    "log": "WARNING (--quiet)",
    "systems": {
        "rqjobs": {
            "run": "rq worker --worker-class rqjobs.Worker --quiet high default low",
            "start": 10,
            "version": "rqjobs",
            "acks": "after",
            "env": {"BENCH_OURS": "1", "RQJOBS_MODULES": "rq_jobs"},
        },
        "rqjobs, long horses": {
            "run": "rq worker --worker-class rqjobs.Worker --quiet high default low",
            "start": 10,
            "version": "rqjobs",
            "acks": "after",
            "env": {
                "BENCH_OURS": "1",
                "RQJOBS_MODULES": "rq_jobs",
                "RQJOBS_MAX_JOBS_PER_CHILD": "100000",
            },
        },
        "rq": {
            "run": "rq worker --quiet high default low",
            "start": 10,
            "acks": "before",
            "jobs": 1000,
        },
        "rq SimpleWorker": {
            "run": "rq worker --worker-class rq.SimpleWorker --quiet high default low",
            "start": 10,
            "acks": "before",
            "jobs": 5000,
        },
        "rq worker-pool": {
            "run": "rq worker-pool --quiet -n 10 high default low",
            "acks": "before",
            "jobs": 1000,
        },
    },
}
OURS = "BENCH_OURS" in os.environ
QUEUE_CYCLE = itertools.cycle(("high", "default", "low"))
COPY_BATCH_JOBS = 10_000
CROWD_BATCH_JOBS = 1_000
CROWDED_SECONDS = 0.005
DIRECT_MAX_JOBS = 100  # larger backlogs are copies of one job
COPY_JOBS_SCRIPT = """
-- Adds copies of a job to its queue.
-- KEYS: the job, the queue. ARGV: the common start of the ids, the first and the last number.
for number = ARGV[2], ARGV[3] do
  local id = string.format('%s%012d', ARGV[1], number)
  redis.call('COPY', KEYS[1], 'rq:job:' .. id)
  redis.call('RPUSH', KEYS[2], id)
end"""


def noop():
    work.noop()


def sleep(seconds):
    begun = time.monotonic_ns()
    time.sleep(seconds)
    work.mark(begun)


def failing():
    work.noop()
    raise ValueError("a failing job of the benchmark")


def retried():
    work.noop()
    if rq.get_current_job().retries_left:
        raise ValueError("a retried job of the benchmark")


def limited(key):
    work.run_of_key(key)


def crowded():
    work.run_of_key(0, CROWDED_SECONDS)


def rated():
    work.noop()


def unique(number):
    work.noop()


if OURS:
    import rqjobs

    limited = rqjobs.job(limit=4, limit_by="{key}")(limited)
    crowded = rqjobs.job(limit=4)(crowded)
    rated = rqjobs.job(rate="200/s", burst=10)(rated)
    unique = rqjobs.job(unique="args")(unique)


def queue(name):
    if OURS:
        return rqjobs.queue(name)
    return rq.Queue(name, connection=redis.Redis.from_url(os.environ["REDIS_URL"]))


def send(number, kind="noop"):
    """Enqueue `number` jobs.

    The kind is noop, failing, retried, dependent (each job with a job that depends on it), limited,
    crowded, rated, or the number of seconds that a job sleeps.
    """
    if number == 1:
        queue(next(QUEUE_CYCLE)).enqueue(noop)
        return
    target = queue("default")
    if kind == "limited":
        rqjobs.enqueue_many((limited, index % work.KEYS) for index in range(number))
    elif kind in ("crowded", "rated"):
        rqjobs.enqueue_many([(crowded if kind == "crowded" else rated,)] * number)
    elif kind == "failing":
        for _ in range(number):
            target.enqueue(failing)
    elif kind == "retried":
        for _ in range(number):
            target.enqueue(retried, retry=rq.Retry(1))
    elif kind == "dependent":
        for _ in range(number):
            target.enqueue(noop, depends_on=target.enqueue(noop))
    else:
        send_equal_jobs(target, number, kind)


def send_equal_jobs(target, number, kind):
    """Enqueue noop jobs or sleeping jobs.

    A large backlog is one job and its copies. The jobs of a small number are enqueued one by one,
    because they may be the warm-up: a waiting worker could finish the first before it is copied.
    """
    call = (noop,) if kind == "noop" else (sleep, float(kind))
    if number <= DIRECT_MAX_JOBS:
        for _ in range(number):
            target.enqueue(*call)
        return
    job = target.enqueue(*call)
    for first in range(1, number, COPY_BATCH_JOBS):
        last = min(first + COPY_BATCH_JOBS - 1, number - 1)
        target.connection.eval(COPY_JOBS_SCRIPT, 2, job.key, target.key, job.id[:-12], first, last)


def later(seconds):
    queue("default").enqueue_in(datetime.timedelta(seconds=seconds), noop)


def crowd(number):
    """Enqueue `number` jobs that are due at the same second; returns it, as a Unix time."""
    target = queue("default")
    due = int(time.time()) + 10 + number // 5000
    moment = datetime.datetime.fromtimestamp(due, datetime.timezone.utc)
    for start in range(0, number, CROWD_BATCH_JOBS):
        with target.connection.pipeline() as pipe:
            for _ in range(min(CROWD_BATCH_JOBS, number - start)):
                target.enqueue_at(moment, noop, pipeline=pipe)
            pipe.execute()
    return due


def costs(number):
    """The cost of enqueueing.

    Returns a dict: `one`, the microseconds of each enqueue; `many`, the microseconds of
    `enqueue_many` per job; `trips`, the round trips of one enqueue.
    """
    target = queue("default")
    target.enqueue(noop)
    times = []
    for _ in range(number):
        begun = time.perf_counter()
        target.enqueue(noop)
        times.append((time.perf_counter() - begun) * 1e6)
    begun = time.perf_counter()
    if OURS:
        rqjobs.enqueue_many([(noop,)] * number)
    else:
        target.enqueue_many([rq.Queue.prepare_data(noop) for _ in range(number)])
    many = (time.perf_counter() - begun) * 1e6 / number
    return {"one": times, "many": many, "trips": round_trips(target)}


def duplicates(number):
    """Enqueue `number` plain jobs, and as many unique ones, each key twice.

    Returns the microseconds of each enqueue.
    """
    target = queue("default")
    target.enqueue(noop)
    times = {"plain": [], "unique": []}
    for index in range(number):
        begun = time.perf_counter()
        target.enqueue(noop)
        between = time.perf_counter()
        enqueue_unique(target, index // 2)
        times["plain"].append((between - begun) * 1e6)
        times["unique"].append((time.perf_counter() - between) * 1e6)
    return times


def enqueue_unique(target, number):
    """A unique key of rqjobs, or RQ's own unique job id."""
    if OURS:
        target.enqueue(unique, number)
        return
    with contextlib.suppress(DuplicateJobError):
        target.enqueue(unique, number, job_id=f"unique-{number}", unique=True)


def round_trips(target):
    """The number of writes to the socket for one enqueue."""
    pool = target.connection.connection_pool
    connection = pool.get_connection()
    pool.release(connection)
    connection_class = type(connection)
    original = connection_class.send_packed_command
    writes = []

    def counted(self, *args, **options):
        writes.append(1)
        return original(self, *args, **options)

    connection_class.send_packed_command = counted
    target.enqueue(noop)
    return len(writes)
