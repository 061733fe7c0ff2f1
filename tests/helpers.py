"""Steps of a worker for tests without a worker process."""

from rqjobs.broker import scripts, transitions


def claim(connection, worker, queues, max_jobs=1, held=()):
    """Claim up to `max_jobs` jobs for `worker`, as its horse does.

    `held`: ids that the horse already has.
    """
    arguments = transitions.claim_arguments(worker, queues, max_jobs, held)
    return transitions.read_claims(scripts.CLAIM.run(connection, *arguments))
