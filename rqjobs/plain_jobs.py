"""The fast path for plain jobs, whose hash has only the ten fields of `PLAIN_FIELDS`.

Most jobs are plain. RQ's constructor, `restore` and `to_dict` visit some forty attributes, which
takes as long as the rest of a short job's run. RQ's methods handle every other job.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import redis
import rq.job
from rq.job import UNEVALUATED, JobStatus

from rqjobs.job_fields import compress, decompress, read_description
from rqjobs.serializers import ConfiguredSerializer
from rqjobs.times import format_date, parse_date


class PlainField(NamedTuple):
    """A field of a plain job's hash: its attribute in `rq.job.Job`, its reader and its writer."""

    name: str
    attribute: str
    read: Callable[[bytes], Any]
    write: Callable[[Any], Any]


def _as_it_is(value: Any) -> Any:
    return value


STATUSES = {status.value.encode(): status for status in JobStatus}

PLAIN_FIELDS = (
    PlainField("data", "_data", decompress, compress),
    PlainField("created_at", "created_at", parse_date, format_date),
    PlainField("enqueued_at", "enqueued_at", parse_date, format_date),
    PlainField("origin", "origin", bytes.decode, _as_it_is),
    PlainField("description", "description", read_description, _as_it_is),
    PlainField("timeout", "timeout", int, _as_it_is),
    PlainField("result_ttl", "result_ttl", int, _as_it_is),
    PlainField("failure_ttl", "failure_ttl", int, _as_it_is),
    PlainField("ttl", "ttl", int, _as_it_is),
    PlainField("status", "_status", STATUSES.__getitem__, _as_it_is),
)

# The other attributes that RQ writes into a hash, with their values in a plain job.
UNUSED_ATTRIBUTES: dict[str, Any] = {
    "_dependency_ids": [],
    "_exc_info": None,
    "_failure_callback_name": None,
    "_failure_callback_timeout": None,
    "_result": None,
    "_stopped_callback_name": None,
    "_stopped_callback_timeout": None,
    "_success_callback_name": None,
    "_success_callback_timeout": None,
    "allow_dependency_failures": None,
    "ended_at": None,
    "enqueue_at_front": None,
    "enqueue_at_front_on_retry": False,
    "group_id": None,
    "last_heartbeat": None,
    "meta": {},
    "number_of_retries": None,
    "repeat_intervals": None,
    "repeats_left": None,
    "retries_left": None,
    "retry_intervals": None,
    "started_at": None,
    "webhooks": [],
    "worker_name": None,
}

# The attributes that no hash has: RQ derives them, or keeps them in memory only.
UNSTORED_ATTRIBUTES = {
    "_args": UNEVALUATED,
    "_cached_result": None,
    "_failure_callback": UNEVALUATED,
    "_func_name": UNEVALUATED,
    "_instance": UNEVALUATED,
    "_kwargs": UNEVALUATED,
    "_stopped_callback": UNEVALUATED,
    "_success_callback": UNEVALUATED,
    "log": rq.job.logger,
    "redis_server_version": None,
    "serializer": ConfiguredSerializer,
}

_NEW_JOB = {
    **UNUSED_ATTRIBUTES,
    **UNSTORED_ATTRIBUTES,
    **{field.attribute: None for field in PLAIN_FIELDS},
    "_data": UNEVALUATED,
    "_status": JobStatus.CREATED,
    "origin": "",
}
_READERS = {field.name.encode(): (field.attribute, field.read) for field in PLAIN_FIELDS}
_WRITERS = [(field.name, field.attribute, field.write) for field in PLAIN_FIELDS]
_unused = attrgetter(*UNUSED_ATTRIBUTES)
_UNUSED_VALUES = tuple(UNUSED_ATTRIBUTES.values())


def is_plain(job: rq.job.Job) -> bool:
    """Whether `to_hash` writes all of the job. A job without a date or with a ttl of 0 is RQ's."""
    return bool(_unused(job) == _UNUSED_VALUES and job.created_at and job.ttl != 0)


def to_hash(job: rq.job.Job) -> dict[str, Any]:
    """The hash of a plain job, without empty fields, which RQ reads as missing ones."""
    state = vars(job)
    state["_data"] = job.data  # the property serializes the arguments if nothing has yet
    fields = {}
    for name, attribute, write in _WRITERS:
        value = state[attribute]
        if value or value == 0:
            fields[name] = write(value)
    return fields


def restore(
    job: rq.job.Job, job_id: str, fields: dict[bytes, bytes], connection: redis.Redis
) -> bool:
    """Fill a job object, made without its constructor, with the hash of a plain job.

    Returns False if the hash has another field; then the object is a new job without data, and
    RQ's `restore` has to fill it.
    """
    state = vars(job)
    state.update(
        _NEW_JOB, _id=job_id, connection=connection, webhooks=[], meta={}, _dependency_ids=[]
    )
    if not fields.get(b"created_at"):
        return False
    try:
        for name, value in fields.items():
            if value:
                attribute, read = _READERS[name]
                state[attribute] = read(value)
    except KeyError:
        return False
    return True
