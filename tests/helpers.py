"""Steps of a worker, for tests that have none."""

from rqjobs.broker import scripts, transitions


def claim(connection, worker, queues, room=1, held=()):
    """Claim up to `room` jobs for `worker`, as its horse does; `held` are ids that it knows of."""
    arguments = transitions.claim_arguments(worker, queues, room, held)
    return transitions.read_claims(scripts.CLAIM.run(connection, *arguments))
