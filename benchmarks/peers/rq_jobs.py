"""RQ, and rqjobs (with BENCH_OURS set): the same functions, the same calls."""

import datetime
import itertools
import os
import time

import redis
import rq
import work

ABOUT = {
    "requires": "",  # what rqjobs itself has installed
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
QUEUES = itertools.cycle(("high", "default", "low"))
MULTIPLY = """
-- KEYS: a job, its queue; ARGV: the id's first part, from, to. Puts copies of the job into the queue.
for number = ARGV[2], ARGV[3] do
  local id = string.format('%s%012d', ARGV[1], number)
  redis.call('COPY', KEYS[1], 'rq:job:' .. id)
  redis.call('RPUSH', KEYS[2], id)
end"""


def noop():
    work.noop()


def nap(seconds):
    begun = time.monotonic_ns()
    time.sleep(seconds)
    work.mark(begun)


def failing():
    work.noop()
    raise ValueError("as it was told")


def retried():
    work.noop()
    if rq.get_current_job().retries_left:
        raise ValueError("as it was told")


def queue(name):
    if OURS:
        import rqjobs

        return rqjobs.queue(name)
    return rq.Queue(name, connection=redis.Redis.from_url(os.environ["REDIS_URL"]))


def send(number, kind="noop"):
    """`number` jobs: noop, failing, retried, dependent (on a job that is sent with it), or so many seconds' nap."""
    if number == 1:
        return queue(next(QUEUES)).enqueue(noop)
    target = queue("default")
    if kind in ("failing", "retried"):
        for _ in range(number):
            target.enqueue(
                failing if kind == "failing" else retried,
                retry=rq.Retry(1) if kind == "retried" else None,
            )
    elif kind == "dependent":
        for _ in range(number):
            target.enqueue(noop, depends_on=target.enqueue(noop))
    elif (
        number <= 100
    ):  # perhaps to workers that wait for them: the first would have ended before it is copied
        for _ in range(number):
            target.enqueue(noop) if kind == "noop" else target.enqueue(nap, float(kind))
    else:
        job = target.enqueue(noop) if kind == "noop" else target.enqueue(nap, float(kind))
        for start in range(1, number, 10_000):
            bounds = (start, min(start + 9_999, number - 1))
            target.connection.eval(MULTIPLY, 2, job.key, target.key, job.id[:-12], *bounds)
    return None


def later(seconds):
    queue("default").enqueue_in(datetime.timedelta(seconds=seconds), noop)


def crowd(number):
    """`number` jobs that are due at the same second; returns that, as a Unix time."""
    target, due = queue("default"), int(time.time()) + 10 + number // 5000
    for start in range(0, number, 1000):
        with target.connection.pipeline() as pipe:
            for _ in range(min(1000, number - start)):
                target.enqueue_at(
                    datetime.datetime.fromtimestamp(due, datetime.timezone.utc), noop, pipeline=pipe
                )
            pipe.execute()
    return due


def costs(number):
    """Microseconds for each enqueue, and for each job of `enqueue_many`; writes to the socket for one enqueue."""
    target, trips = queue("default"), []
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
    connection = target.connection.connection_pool.get_connection()
    target.connection.connection_pool.release(connection)
    kind, plain = type(connection), type(connection).send_packed_command
    kind.send_packed_command = lambda self, *args, **named: (
        trips.append(1),
        plain(self, *args, **named),
    )[1]
    target.enqueue(noop)
    return {"one": times, "many": many, "trips": len(trips)}
