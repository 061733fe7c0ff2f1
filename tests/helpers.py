"""Steps of a worker for tests without a worker process, and every way to enqueue."""

from datetime import timedelta

import sample_jobs
from rq.group import Group

import rqjobs
from rqjobs import job_logs
from rqjobs.broker import keys, leases, recovery, scripts, transitions
from rqjobs.broker.keys import decode

QUEUES = ["high", "default", "low"]


def claim(connection, worker, queues, max_jobs=1, held=()):
    """Claim up to `max_jobs` jobs for `worker`, as its horse does.

    `held`: ids that the horse already has.
    """
    arguments = transitions.claim_arguments(worker, queues, max_jobs, held)
    return transitions.read_claims(scripts.CLAIM.run(connection, *arguments))


def keep_log(connection, job_id, token, attempt, batch):
    """Add a batch of lines to the log of a job, as its run with this token does."""
    connection.script_load(scripts.KEEP_LOG.source)
    connection.execute_command(*job_logs.keep_command(job_id, token, attempt, batch))


def nothing_moves(redis, *queues):
    """Whether no job of these queues waits, is delayed, runs, or is on its way to a worker."""
    places = [f"rq:{place}:{queue}" for place in ("queue", "scheduled", "wip") for queue in queues]
    with redis.pipeline() as pipe:  # between two commands a job could move on unseen
        pipe.exists(*places)
        pipe.keys("rqjobs:claims:*")
        return pipe.execute() == [0, []]


def every_way(redis):
    """One job for each way to enqueue, none of which has run."""
    queue = rqjobs.queue("default")
    parent = queue.enqueue(sample_jobs.ok)
    with redis.pipeline() as pipe:
        piped = queue.enqueue(sample_jobs.ok, pipeline=pipe)
        pipe.execute()
    group = Group.create(connection=redis)
    return {
        "enqueue": parent,
        "front": queue.enqueue(sample_jobs.ok, at_front=True),
        "pipeline": piped,
        "unique": queue.enqueue(sample_jobs.ok, job_id="one", unique=True),
        "dependent": queue.enqueue(sample_jobs.ok, depends_on=parent),
        "in": rqjobs.enqueue_in(60, sample_jobs.ok),
        "at": queue.enqueue_at(parent.created_at + timedelta(1), sample_jobs.ok),
        "many": queue.enqueue_many([queue.prepare_data(sample_jobs.ok)])[0],
        "many, dependent": queue.enqueue_many(
            [queue.prepare_data(sample_jobs.ok, depends_on=parent)]
        )[0],
        "group": group.enqueue_many(queue, [queue.prepare_data(sample_jobs.ok)])[0],
        "ours, 1": (ours := rqjobs.enqueue_many([(sample_jobs.ok,), (sample_jobs.ok, 2)]))[0],
        "ours, 2": ours[1],
    }


class Broker:
    """Workers without processes: they claim and settle with the scripts."""

    def __init__(self, redis):
        self.redis = redis
        self.claims: dict[str, dict[str, transitions.Claim]] = {}

    def claim(self, worker="a", max_jobs=1, queues=QUEUES):
        """Claim jobs; returns their ids."""
        leases.renew_lease(self.redis, worker, {"host": "elsewhere", "pid": 1, "started": "1"})
        held = self.claims.setdefault(worker, {})
        found = claim(self.redis, worker, queues, max_jobs, list(held))
        held.update({claim.job_id: claim for claim in found})
        return [claim.job_id for claim in found]

    def settle(self, job_id, worker="a", status="finished"):
        """Record an outcome; returns the reply."""
        claim = self.claims[worker].pop(job_id)
        writes = [("HSET", keys.job(job_id), "status", status)]
        if status == "scheduled":  # a retry
            writes.append(("ZADD", keys.scheduled(claim.queue), 4_000_000_000, job_id))
        elif status == "queued":
            writes.append(("RPUSH", keys.queue(claim.queue), job_id))
        else:
            writes.append(("ZADD", keys.registry(status, claim.queue), "+inf", job_id))
        counts_as = "failed" if status == "failed" else ""
        arguments = transitions.settle_arguments(worker, claim, writes, counts_as)
        return decode(scripts.SETTLE.run(self.redis, *arguments))

    def die(self, worker):
        """Take the claims of a dead worker back."""
        self.redis.zadd(keys.LEASES, {worker: 1})
        self.claims[worker] = {}
        recovery.reclaim(self.redis, worker, QUEUES, recovery.DeathCause.LEASE_EXPIRED)

    def waiting(self, key):
        return [decode(job_id) for job_id in self.redis.lrange(keys.waiting(key), 0, -1)]
