"""Enqueue by JSON: the calls are checked as the form checks them, and stored at most once by key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import rq
from rq import Retry
from rq.job import JobStatus

from rqjobs import catalog, connection, conversion, hooks, queues, stats, storing
from rqjobs.broker import enqueueing, keys, scripts
from rqjobs.broker.enqueueing import Enqueued, Placement
from rqjobs.broker.keys import decode
from rqjobs.instrumentation import WrappedQueue, is_wrapped
from rqjobs.jobs import Job
from rqjobs.policies import time_limits
from rqjobs.policies.unique import DuplicateJob
from rqjobs.queues import ENQUEUE_BATCH_MAX_JOBS
from rqjobs.web.access import current_access
from rqjobs.web.api.problems import Problem, invalid
from rqjobs.web.api.schemas import Errors
from rqjobs.web.forms.options import MAX_DELAY_SECONDS, queue_choices

RQ_OPTION_NAMES = {  # of a call in JSON -> of RQ
    "timeout": "timeout",
    "result_ttl": "result_ttl",
    "failure_ttl": "failure_ttl",
    "ttl": "ttl",
    "description": "description",
    "meta": "meta",
}


class WrongCall(Exception):
    """A call has wrong values; `errors` has a message for each place."""

    def __init__(self, errors: Errors):
        super().__init__(errors)
        self.errors = errors


@dataclass(frozen=True)
class Stored:
    """The job of a call. `is_new` is False if another request, or its unique key, has made it."""

    job_id: str
    status: str
    is_new: bool


@dataclass(frozen=True)
class PreparedCall:
    """A checked call: the job, and the place into which it is put."""

    job: Job
    placement: Placement


# Checking


def prepare(call: Mapping[str, Any], job_id: str | None = None) -> PreparedCall:
    """The job of a call that fits its schema. `job_id`: the id, if the call has none of its own.

    Raises:
        WrongCall: the function, an argument or an option is wrong.
    """
    function, args, kwargs = read_call(call)
    target = queues.queue(call["queue"]) if "queue" in call else queues.queue_for(function)
    options = _options(call)
    if call.get("job_id") or job_id:
        options["job_id"] = call.get("job_id") or job_id
    try:
        job = target.create_job(function, args, kwargs, status=JobStatus.QUEUED, **options)
        return PreparedCall(job, _placement(target, job, call))
    except (TypeError, ValueError) as error:  # `create_job` refuses with one of these
        raise WrongCall({"": str(error)}) from None


def read_call(call: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The function and the converted arguments of a call that fits its schema.

    Raises:
        WrongCall: the function, the queue or an argument is wrong.
    """
    function = catalog.current().functions.get(call["function"])
    if function is None:
        raise WrongCall({"function": "is not a job function; GET /api/functions lists them"})
    if "queue" in call and call["queue"] not in queue_choices():
        known = ", ".join(queue_choices())
        raise WrongCall({"queue": f"There is no such queue here. Known queues: {known:.300}"})
    try:
        converted = conversion.convert_call(function, call.get("args", ()), call.get("kwargs", {}))
    except TypeError as error:
        raise WrongCall({"args": str(error)}) from None
    if converted.errors:
        raise WrongCall(converted.errors)
    return function, converted.args, converted.kwargs


def _options(call: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, option in RQ_OPTION_NAMES.items():
        if name in call:
            options[option] = plain_json(call[name])
    if "retries" in call:
        # False turns off the retries that the function's `@job` asks for.
        count = int(call["retries"])
        options["retry"] = Retry(count, int(call.get("retry_interval", 0))) if count else False
    return options


def plain_json(value: Any) -> Any:
    """A value of the body with floats in the place of decimal numbers."""
    return conversion.convert(value, Any, "")


def _placement(target: queues.Queue, job: Job, call: Mapping[str, Any]) -> Placement:
    due = _due(call)
    place = queues.end_of_queue(bool(call.get("at_front")))
    if due is not None:
        place = repr(due)
    queues.check_place(job, place)
    if is_wrapped(rq.Queue, "enqueue_job", "_enqueue_job"):
        WrappedQueue(target, lambda: None).enqueue_job(job)
    hooks.check_enqueue(job)
    target._prepare(job)
    if due is not None:
        job._status = JobStatus.SCHEDULED
        job.enqueued_at = None
        time_limits.check_due(job.policy_fields.get("rqjobs_expires", "+"), due)
    return target._placement(job, place)


def _due(call: Mapping[str, Any]) -> float | None:
    """When the job is due, in Unix seconds; None for now."""
    if "in" in call:
        return storing.time_now(connection.client()) + float(call["in"])
    if "at" not in call:
        return None
    due = read_moment("at", call["at"])
    if (due - datetime.now(timezone.utc)).total_seconds() > MAX_DELAY_SECONDS:
        raise WrongCall({"at": "This time is more than 10 years away."})
    return due.timestamp()


def read_moment(name: str, text: str) -> datetime:
    """A date and time with its offset from UTC.

    Raises:
        WrongCall: it is not such a date.
    """
    try:
        moment = conversion.parse_datetime(text)
        if moment.tzinfo is not None:
            return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        pass
    raise WrongCall({name: "Give a time with its offset, such as 2030-12-31T12:00:00Z."})


def prepare_all(
    calls: list[Mapping[str, Any]], places: list[str], key: str | None
) -> list[PreparedCall]:
    """All calls of a request. `key`: makes their ids follow from the request.

    Raises:
        Problem: one is wrong, or has an id that is taken.
    """
    prepared: list[PreparedCall] = []
    errors: Errors = {}
    for number, (call, place) in enumerate(zip(calls, places, strict=True)):
        job_id = None if key is None else f"once-{key[:32]}-{number}"
        try:
            prepared.append(prepare(call, job_id))
        except WrongCall as error:
            errors |= {".".join(filter(None, (place, at))): m for at, m in error.errors.items()}
    if errors:
        raise invalid(errors)
    _check_ids(calls, places, key)
    return prepared


def _check_ids(calls: list[Mapping[str, Any]], places: list[str], key: str | None) -> None:
    """Check that the ids that the request itself gives are different, and not taken by others."""
    given = {number: call["job_id"] for number, call in enumerate(calls) if "job_id" in call}
    if len(set(given.values())) < len(given):
        raise Problem(409, "duplicate", "Two jobs of this request have the same job_id.")
    if not given:
        return
    commands: list[tuple[Any, ...]] = []
    for number, job_id in given.items():
        commands.append(("EXISTS", keys.job(job_id)))
        commands.append(("ZSCORE", keys.ONCE, _mark(key or "", number)))
    replies = scripts.read_together(connection.client(), commands)
    for (number, job_id), exists, mark in zip(
        given.items(), replies[::2], replies[1::2], strict=True
    ):
        if exists and not isinstance(mark, float):  # else this request has stored it before
            place = ".".join(filter(None, (places[number], "job_id")))
            text = f"There is a job {job_id} already."
            raise Problem(409, "duplicate", text, {place: text})


def _mark(key: str, number: int) -> str:
    """The mark in Redis of one job of a request."""
    return f"{key}:{number}"


# Storing


def store(prepared: list[PreparedCall]) -> list[Stored]:
    """Store the jobs, in steps of `ENQUEUE_BATCH_MAX_JOBS`.

    Raises:
        Problem: a job has `on_conflict="raise"`, and another job has its unique key.
    """
    client = connection.client()
    for start in range(0, len(prepared), ENQUEUE_BATCH_MAX_JOBS):
        batch = prepared[start : start + ENQUEUE_BATCH_MAX_JOBS]
        try:
            storing.store(client, [one.placement for one in batch], [one.job for one in batch])
        except DuplicateJob as error:
            text = f"{error}. The {start} jobs before this step of the request are stored."
            raise Problem(409, "duplicate", text if start else str(error)) from None
    return [_stored(one) for one in prepared]


def _stored(one: PreparedCall) -> Stored:
    job = queues.stored_job(one.job)
    return Stored(job.id, job.get_status(refresh=False).value, job is one.job)


# Storing by Idempotency-Key


def key_of(given: str) -> str:
    """The key of a request in Redis: each token has its own keys."""
    return hashlib.sha256(f"{current_access().user}\0{given}".encode()).hexdigest()


def begin(key: str, body: Any) -> float:
    """Reserve a key for this body; returns the time by Redis's clock.

    Raises:
        Problem: the key belongs to a request with another body.
    """
    text = json.dumps(body, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
    owner, now = enqueueing.begin_once(connection.client(), key, digest)
    if owner != digest:
        text = (
            "A request with this Idempotency-Key and another body was sent within the last day; "
            "use a new key for another request."
        )
        raise Problem(422, "idempotency-mismatch", text)
    return now


def store_once(prepared: list[PreparedCall], key: str, began: float) -> list[Stored]:
    """Store those of the jobs that an earlier request with this key has not stored.

    Raises:
        Problem: a job has `on_conflict="raise"`, and another job has its unique key.
    """
    if storing.is_replaced():  # by a test: there is no Redis that could remember the key
        return store(prepared)
    client = connection.client()
    marks = [_mark(key, number) for number in range(len(prepared))]
    jobs = {mark: one.placement for mark, one in zip(marks, prepared, strict=True)}
    outcomes = enqueueing.enqueue_once(client, jobs, began)
    for outcome in outcomes.values():
        if isinstance(outcome, DuplicateJob):
            raise Problem(409, "duplicate", str(outcome))
        if isinstance(outcome, Exception):
            raise outcome
    found = []
    for mark, one in zip(marks, prepared, strict=True):
        outcome = outcomes[mark]
        found.append(_seen_before(mark, one) if outcome is None else _note(mark, one, outcome))
    storing.call_hooks([one.job for one, done in zip(prepared, found, strict=True) if done.is_new])
    return found


def _note(mark: str, one: PreparedCall, outcome: Any) -> Stored:
    """The job of a call that was stored now. The id of another job is kept for the next request."""
    assert isinstance(outcome, Enqueued)
    client = connection.client()
    job_id = one.job.id
    status = "deferred" if job_id in outcome.deferred else one.job.get_status(refresh=False).value
    is_new = True
    for unique in outcome.unique:
        job_id = unique.job_id
        is_new = bool(unique.status)
        status = unique.status or stats.statuses(client, [job_id])[job_id]
    if job_id != one.job.id:
        client.set(keys.once(f"{mark}:job"), job_id, ex=2 * enqueueing.ONCE_SECONDS)
        one.job._id = job_id
    return Stored(job_id, status, is_new)


def _seen_before(mark: str, one: PreparedCall) -> Stored:
    client = connection.client()
    job_id = decode(client.get(keys.once(f"{mark}:job")) or one.job.id.encode())
    return Stored(job_id, stats.statuses(client, [job_id])[job_id], False)
