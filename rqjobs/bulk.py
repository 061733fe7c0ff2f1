"""`rqjobs.enqueue_many`: many calls, of functions of different queues, in few round trips."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple
from uuid import uuid4

import rq
import rq.job
from rq.job import JobStatus
from rq.queue import EnqueueData

from rqjobs import catalog, connection, hooks, policies, storing, transactions
from rqjobs.broker.enqueueing import Placement
from rqjobs.call_options import check_signature
from rqjobs.instrumentation import WrappedQueue, is_wrapped
from rqjobs.job_fields import compress
from rqjobs.jobs import Job
from rqjobs.queues import (
    ENQUEUE_BATCH_MAX_JOBS,
    Queue,
    check_place,
    end_of_queue,
    queue_for,
    stored_job,
)
from rqjobs.transactions import takes_after_commit


class PreparedJob(NamedTuple):
    """A checked job, ready to be stored."""

    job: Job
    at_front: bool
    is_new: bool
    fields: dict[str, Any]  # its hash


@takes_after_commit
def enqueue_many(calls: Iterable[tuple[Any, ...] | EnqueueData]) -> list[Any]:
    """Enqueue many calls in few round trips; returns their jobs in the same order.

    Each call is a tuple `(function, argument, …)`, or the value of RQ's
    `Queue.prepare_data(function, …)`. All calls are checked before the first job is stored. They
    are stored in steps of 200.

    Raises:
        DuplicateJob: a unique job has `on_conflict="raise"`, and another job has its key. Nothing
            of its step and of the later ones is stored; the steps before are.
        TypeError: a call is neither of the two, or its arguments do not fit the function.
        ValueError: a call has `depends_on`; `queue(…).enqueue_many` takes it.
    """
    prepared: list[PreparedJob] = []
    # The first job of each function that is called without options is the model of the others.
    models: dict[Any, PreparedJob] = {}
    # A tracing library gives each job headers of its own, so no job is a model then.
    wrapped = is_wrapped(rq.Queue, "enqueue_job", "_enqueue_job")
    for call in calls:
        if not isinstance(call, tuple) or not call:
            raise TypeError(f"enqueue_many takes tuples (function, argument, …), not {call!r}")
        if isinstance(call, EnqueueData):
            prepared.append(_prepare_job(call, wrapped))
        elif call[0] in models:
            prepared.append(_copy_prepared(models[call[0]], call[1:]))
        else:
            data = Queue.prepare_data(call[0], args=call[1:])
            prepared.append(_prepare_job(data, wrapped))
            if not wrapped and _may_be_model(prepared[-1].job):
                models[call[0]] = prepared[-1]
    if transactions.current():
        transactions.check_jobs([one.job for one in prepared])
    for start in range(0, len(prepared), ENQUEUE_BATCH_MAX_JOBS):
        batch = prepared[start : start + ENQUEUE_BATCH_MAX_JOBS]
        storing.store(
            connection.client(),
            [
                Placement(job.origin, job.id, end_of_queue(at_front), job.ttl, is_new, fields)
                for job, at_front, is_new, fields in batch
            ],
            [one.job for one in batch],
        )
    return [stored_job(one.job) for one in prepared]


def _prepare_job(data: EnqueueData, wrapped: bool) -> PreparedJob:
    if data.depends_on:
        raise ValueError(
            "rqjobs.enqueue_many takes no depends_on; use rqjobs.queue(name).enqueue_many"
        )
    function = data.func.function if isinstance(data.func, policies.With) else data.func
    target = queue_for(function)
    options = data._asdict()
    at_front = options.pop("at_front")
    del options["depends_on"]
    job = target.create_job(status=JobStatus.QUEUED, **options)
    check_place(job, end_of_queue(at_front))
    target._prepare(job)
    if wrapped:
        WrappedQueue(target, lambda: None).enqueue_job(job)
    hooks.check_enqueue(job)
    return PreparedJob(job, at_front, *job.to_hash())


def _may_be_model(job: Job) -> bool:
    """Whether another call of its function differs in the arguments only.

    Keys of policies depend on the arguments, and a hook may give each job another meta.
    """
    return not job.policy_fields and not hooks.before_enqueue.functions


def _copy_prepared(model: PreparedJob, args: tuple[Any, ...]) -> PreparedJob:
    """Another call of the model's function, with other arguments, checked in the same way."""
    function = catalog.current().lookup(model.job.func_name)
    check_signature(function, args, {})
    job = Job.__new__(Job)
    vars(job).update(
        vars(model.job),
        _id=str(uuid4()),
        _args=args,
        _data=rq.job.UNEVALUATED,
        meta=dict(model.job.meta),
        webhooks=list(model.job.webhooks),
    )
    if "description" not in catalog.options(function):
        job.description = job.get_call_string()
    job.check_payload(function)
    fields = {**model.fields, "data": compress(job.data), "description": job.description}
    return PreparedJob(job, model.at_front, model.is_new, fields)
