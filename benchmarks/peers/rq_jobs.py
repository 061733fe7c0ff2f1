"""RQ, and rqjobs if BENCH_OURS is set: the same functions and the same calls."""

import datetime
import itertools
import os
import time

import redis
import rq
import work

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


def queue(name):
    if OURS:
        import rqjobs

        return rqjobs.queue(name)
    return rq.Queue(name, connection=redis.Redis.from_url(os.environ["REDIS_URL"]))


def send(number, kind="noop"):
    """Enqueue `number` jobs.

    The kind is noop, failing, retried, dependent (each job with a job that depends on it), or the
    number of seconds that a job sleeps.
    """
    if number == 1:
        queue(next(QUEUE_CYCLE)).enqueue(noop)
        return
    target = queue("default")
    if kind == "failing":
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
        import rqjobs

        rqjobs.enqueue_many([(noop,)] * number)
    else:
        target.enqueue_many([rq.Queue.prepare_data(noop) for _ in range(number)])
    many = (time.perf_counter() - begun) * 1e6 / number
    return {"one": times, "many": many, "trips": round_trips(target)}


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
