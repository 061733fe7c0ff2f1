"""Storing a flow: all of its jobs, or none."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any
from uuid import uuid4

import redis
import rq
from rq.defaults import DEFAULT_RESULT_TTL
from rq.job import Dependency, JobStatus

from rqjobs import catalog, connection, hooks, queues, storing, transactions
from rqjobs.broker import flows
from rqjobs.broker.enqueueing import Placement
from rqjobs.flows.flow import Flow
from rqjobs.flows.plan import Node, Shape
from rqjobs.instrumentation import is_wrapped
from rqjobs.jobs import Job
from rqjobs.passed_results import FLOW_FIELD, FlowPlace
from rqjobs.queues import ENQUEUE_BATCH_MAX_JOBS, Queue
from rqjobs.serializers import PayloadError
from rqjobs.signatures import REFUSED_OPTIONS


class ResultOfAnotherJob:
    """Stands for the argument that a job gets from the jobs before it, until it runs."""

    def __repr__(self) -> str:
        return "…"


PASSED_ON = (ResultOfAnotherJob(),)


def store(plan: list[Node], ends: int, shape: Shape) -> Flow:
    """Store the jobs of a flow, which are planned parents first, and let it run.

    All jobs are checked before the first is stored. Then they are stored in steps of 200, and none
    runs before all of them are.
    """
    flow_id = str(uuid4())
    jobs: list[Job] = []
    ids: dict[int, str] = {}  # id() of a planned job -> id of its job
    for position, node in enumerate(plan):
        job = _create_job(node, [ids[id(parent)] for parent in node.parents])
        place = FlowPlace(
            flow_id, position, len(plan), ends, shape.value, node.takes, node.on_failure
        )
        job.policy_fields = {**job.policy_fields, FLOW_FIELD: place.write()}
        ids[id(node)] = job.id
        jobs.append(job)
    for job in jobs:
        hooks.check_enqueue(job)
    if is_wrapped(rq.Queue, "enqueue_job", "_enqueue_job"):
        for job in jobs:
            _queue_of(job)._show_to_wrappers(job)
    transaction = transactions.current()
    postponed = None
    if storing.is_replaced():  # the replacement stores each job in its place
        _store_jobs(jobs, "back", storing.store)
    elif transaction is not None:
        transaction.store_flow(
            flow_id,
            partial(_placements, jobs, "held"),
            partial(_store_in_redis, flow_id, jobs),
            list(jobs),
        )
        postponed = jobs[0]
    else:
        _store_in_redis(flow_id, jobs)
    return Flow(flow_id, [job.id for job in jobs], postponed=postponed)


def _create_job(node: Node, parents: list[str]) -> Job:
    signature = node.signature
    options = dict(signature.options)
    function = catalog.current().check(signature.function)
    _refuse_options(function)
    name = options.pop("queue", None)
    target = queues.queue(name) if name else queues.queue_for(function)
    if "job_timeout" in options:
        options["timeout"] = options.pop("job_timeout")
    at_front = options.pop("at_front", False)
    if parents:
        options["depends_on"] = Dependency(parents, allow_failure=node.may_fail)
    passed_on = PASSED_ON if node.takes != "nothing" else ()
    try:
        job = target.create_job(
            function, signature.args, signature.kwargs, passed_on=passed_on, **options
        )
    except TypeError as error:
        if not passed_on or isinstance(error, PayloadError):
            raise
        what = "the list of the results" if node.takes == "results" else "the result"
        raise TypeError(
            f"{error} (in this flow its first argument is {what} of what comes before it)"
        ) from None
    if at_front:
        job.enqueue_at_front = True
    if job.result_ttl is None:
        job.result_ttl = DEFAULT_RESULT_TTL
    if job.result_ttl == 0:
        raise ValueError(
            f"{job.func_name} has result_ttl=0, which deletes its result, and a flow passes it on; "
            f"use at least 1"
        )
    return job


def _refuse_options(function: Any) -> None:
    """Raises ValueError if `@job` has an option that cannot go with a job of a flow."""
    given = catalog.options(function)
    for name, reason in REFUSED_OPTIONS.items():
        if given.get(name):
            raise ValueError(
                f"{catalog.name_of(function)} has the option {name}, which cannot go with a flow: "
                f"{reason}; give the flow another job function that does the same"
            )


def _queue_of(job: Job) -> Queue:
    return Queue(job.origin, connection=job.connection)


def _store_in_redis(flow_id: str, jobs: list[Job]) -> None:
    client = connection.client()
    try:
        _store_jobs(jobs, "held", storing.store_in_redis)
        _, left = flows.release_some(client, flow_id, Queue.DEFAULT_TIMEOUT)
    except BaseException:
        with contextlib.suppress(redis.RedisError, OSError):  # the sweep does it too
            flows.drop(client, flow_id)
        raise
    if left:
        with contextlib.suppress(redis.RedisError, OSError):  # the flow is accepted
            flows.release(client, flow_id, Queue.DEFAULT_TIMEOUT)


def _store_jobs(jobs: list[Job], place: str, store_step: storing.Store) -> None:
    client = connection.client()
    for start in range(0, len(jobs), ENQUEUE_BATCH_MAX_JOBS):
        batch = jobs[start : start + ENQUEUE_BATCH_MAX_JOBS]
        store_step(client, _placements(batch, place), batch)


def _placements(jobs: list[Job], place: str) -> list[Placement]:
    placements = []
    for job in jobs:
        target = _queue_of(job)
        target._prepare(job)
        job._status = JobStatus.DEFERRED
        placements.append(target._placement(job, place, job._dependency_ids))
    return placements
