"""Steps of a worker for tests without a worker process, and every way to enqueue."""

from datetime import timedelta

import sample_jobs
from rq.group import Group

import rqjobs
from rqjobs.broker import scripts, transitions


def claim(connection, worker, queues, max_jobs=1, held=()):
    """Claim up to `max_jobs` jobs for `worker`, as its horse does.

    `held`: ids that the horse already has.
    """
    arguments = transitions.claim_arguments(worker, queues, max_jobs, held)
    return transitions.read_claims(scripts.CLAIM.run(connection, *arguments))


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
