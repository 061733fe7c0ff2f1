"""Enqueue by JSON: the calls are checked as the form checks them, and stored at most once by key."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import rq
from rq.job import JobStatus

from rqjobs import catalog, config, connection, conversion, hiding, hooks, queues, stats, storing
from rqjobs.broker import enqueueing, keys, scripts
from rqjobs.broker.enqueueing import Enqueued, MissingParent, OnceState, Placement, RefusedJob
from rqjobs.instrumentation import is_wrapped
from rqjobs.jobs import Job
from rqjobs.policies import time_limits
from rqjobs.policies.unique import DuplicateJob
from rqjobs.queues import ENQUEUE_BATCH_MAX_JOBS
from rqjobs.web.access import current_access
from rqjobs.web.api.job_options import WrongCall, read_moment, read_options
from rqjobs.web.api.problems import Problem, invalid
from rqjobs.web.api.schemas import Errors
from rqjobs.web.forms.options import MAX_DELAY_SECONDS, queue_choices

HIDDEN_VALUE = "the hidden value does not fit the annotation of its parameter"


@dataclass(frozen=True)
class Call:
    """A call of a request, which fits its schema. `place`: where it is in the body.

    `job_id`: the id of its job, if it has none of its own and the request has an Idempotency-Key.
    """

    body: Mapping[str, Any]
    place: str = ""
    job_id: str | None = None

    def at(self, place: str) -> str:
        """A place in the call as a place in the body."""
        return ".".join(filter(None, (self.place, place)))


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


def prepare(call: Call) -> PreparedCall:
    """The job of a call.

    Raises:
        WrongCall: the function, an argument or an option is wrong.
    """
    body = call.body
    function, args, kwargs = read_call(body)
    target = queues.queue(body["queue"]) if "queue" in body else queues.queue_for(function)
    try:
        options = read_options(body)
        options["job_id"] = body.get("job_id") or call.job_id
        job = target.create_job(function, args, kwargs, status=JobStatus.QUEUED, **options)
        return PreparedCall(job, _placement(target, job, body))
    except (TypeError, ValueError) as error:  # options that cannot be, or cannot go together
        raise WrongCall({_place_of(str(error), body): str(error)}) from None


def _place_of(message: str, body: Mapping[str, Any]) -> str:
    """The option of the call with which an error begins; "" if there is none."""
    word = re.match(r"[a-z_]*", message)
    return word[0] if word and word[0] in body else ""


def read_call(body: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The function and the converted arguments of a call that fits its schema.

    Raises:
        WrongCall: the function, the queue or an argument is wrong.
    """
    function = catalog.current().functions.get(body["function"])
    if function is None:
        raise WrongCall({"function": "is not a job function; GET /api/functions lists them"})
    if "queue" in body and body["queue"] not in queue_choices():
        known = ", ".join(queue_choices())
        raise WrongCall({"queue": f"There is no such queue here. Known queues: {known:.300}"})
    args, kwargs = body.get("args", ()), body.get("kwargs", {})
    try:
        converted = conversion.convert_call(function, args, kwargs)
    except TypeError as error:
        raise WrongCall({"args": str(error)}) from None
    if converted.errors:
        raise WrongCall(_hide_values(function, args, kwargs, converted.errors))
    return function, converted.args, converted.kwargs


def _hide_values(function: Any, args: Any, kwargs: Mapping[str, Any], errors: Errors) -> Errors:
    """The errors of arguments, without the values that RQJOBS_HIDE hides."""
    shown_args, shown_kwargs = hiding.hide_arguments(config.current().hide, function, args, kwargs)
    values = {f"args[{number}]": value for number, value in enumerate(args)}
    values |= {f"kwargs.{name}": value for name, value in kwargs.items()}
    shown = {f"args[{number}]": value for number, value in enumerate(shown_args)}
    shown |= {f"kwargs.{name}": value for name, value in shown_kwargs.items()}
    return {
        place: message if shown[place] is values[place] else HIDDEN_VALUE
        for place, message in errors.items()
    }


def _placement(target: queues.Queue, job: Job, body: Mapping[str, Any]) -> Placement:
    due = _due(body)
    at_front = bool(body.get("at_front"))
    place = queues.end_of_queue(at_front)
    if due is not None:
        place = repr(due)
        job.enqueue_at_front = at_front or None
    queues.check_place(job, place)
    if is_wrapped(rq.Queue, "enqueue_job", "_enqueue_job"):
        target._show_to_wrappers(job)
    hooks.check_enqueue(job)
    target._prepare(job)
    if due is not None:
        job._status = JobStatus.SCHEDULED
        job.enqueued_at = None
        time_limits.check_due(job.policy_fields.get("rqjobs_expires", "+"), due)
    placement = target._placement(job, place, job._dependency_ids)
    return placement._replace(must_be_new="job_id" in body)


def _due(body: Mapping[str, Any]) -> float | None:
    """When the job is due, in Unix seconds; None for now."""
    if "in" in body:
        return storing.time_now(connection.client()) + float(body["in"])
    if "at" not in body:
        return None
    due = read_moment("at", body["at"])
    if (due - datetime.now(timezone.utc)).total_seconds() > MAX_DELAY_SECONDS:
        raise WrongCall({"at": "This time is more than 10 years away."})
    return due.timestamp()


def prepare_all(calls: list[Call], earlier: Set[str]) -> list[PreparedCall]:
    """The jobs of all these calls. `earlier`: the ids of jobs of the request that are stored.

    Raises:
        Problem: one is wrong, has an id that is taken, or depends on a job that does not exist.
    """
    prepared: list[PreparedCall] = []
    errors: Errors = {}
    for call in calls:
        try:
            prepared.append(prepare(call))
        except WrongCall as error:
            errors |= {call.at(place): message for place, message in error.errors.items()}
    if errors:
        raise invalid(errors)
    if not storing.is_replaced():  # by a test: there may be no Redis
        _check_ids(calls, prepared)
        return _with_parents(calls, prepared, earlier)
    return prepared


def _check_ids(calls: list[Call], prepared: list[PreparedCall]) -> None:
    """Check that the ids that the request itself gives are different, and not taken.

    The script that stores a job checks this again. It does not know the places in the body.
    """
    given = [call for call in calls if "job_id" in call.body]
    ids = [call.body["job_id"] for call in given]
    if len(set(ids)) < len(ids):
        raise Problem(409, "duplicate", "Two jobs of this request have the same job_id.")
    taken = _existing(ids)
    for call in given:
        if call.body["job_id"] in taken:
            text = f"There is a job {call.body['job_id']} already."
            raise Problem(409, "duplicate", text, {call.at("job_id"): text})


def _existing(job_ids: list[str]) -> set[str]:
    """Those of these ids that a job has."""
    if not job_ids:
        return set()
    commands = [("EXISTS", keys.job(job_id)) for job_id in job_ids]
    replies = scripts.read_together(connection.client(), commands)
    return {job_id for job_id, exists in zip(job_ids, replies, strict=True) if exists}


def _with_parents(
    calls: list[Call], prepared: list[PreparedCall], earlier: Set[str]
) -> list[PreparedCall]:
    """The calls, so that those with `depends_on` are stored only if these jobs exist.

    Jobs of the same request count if they come before. One with a unique key does not: it may be
    stored under the id of another job.
    """
    outside = {parent for one in prepared for parent in one.job._dependency_ids}
    existing = _existing(sorted(outside - earlier))
    before: dict[str, PreparedCall] = {}
    errors: Errors = {}
    found = []
    for call, one in zip(calls, prepared, strict=True):
        for parent in one.job._dependency_ids:
            text = _parent_error(parent, existing, earlier, before)
            if text:
                errors.setdefault(call.at("depends_on"), text)
        # A stored job of this request may have ended since, and be gone.
        if earlier.isdisjoint(one.job._dependency_ids):
            one = PreparedCall(one.job, enqueueing.demand_parents(one.placement))
        found.append(one)
        before[one.job.id] = one
    if errors:
        raise invalid(errors)
    return found


def _parent_error(
    parent: str,
    existing: set[str],
    earlier: Set[str],
    before: Mapping[str, PreparedCall],
) -> str:
    if parent in before and "rqjobs_unique" in before[parent].job.policy_fields:
        return (
            f"The job {parent} of this request is unique, so its id may be that of another job. "
            f"Enqueue it by a request of its own, and use the id of the answer."
        )
    if parent in existing or parent in earlier or parent in before:
        return ""
    return str(MissingParent(0, parent))


# Storing


def enqueue(calls: list[Call]) -> list[Stored]:
    """Check the calls, and store their jobs in steps of `ENQUEUE_BATCH_MAX_JOBS`.

    Raises:
        Problem: a call is wrong, or Redis refuses its job: it has `on_conflict="raise"` and another
            job has its key, its id is taken, or it depends on a job that does not exist.
    """
    prepared = prepare_all(calls, set())
    client = connection.client()
    for start in range(0, len(prepared), ENQUEUE_BATCH_MAX_JOBS):
        batch = prepared[start : start + ENQUEUE_BATCH_MAX_JOBS]
        try:
            storing.store(client, [one.placement for one in batch], [one.job for one in batch])
        except (DuplicateJob, RefusedJob) as error:
            before = f" The {start} jobs before this step of the request are stored."
            raise _refusal(error, before if start else "") from None
    return [_stored(one) for one in prepared]


def _refusal(error: Exception, more: str = "") -> Problem:
    kind = "conflict" if isinstance(error, MissingParent) else "duplicate"
    return Problem(409, kind, f"{str(error).removesuffix('.')}.{more}")


def _stored(one: PreparedCall) -> Stored:
    job = queues.stored_job(one.job)
    return Stored(job.id, job.get_status(refresh=False).value, job is one.job)


# Storing by Idempotency-Key


def enqueue_once(calls: list[Call], key: str, body: Any) -> list[Stored]:
    """Check the calls, and store those jobs that no request with this key has stored.

    Calls whose jobs are stored are not checked again: what was right may be wrong now.

    Raises:
        Problem: the key belongs to a request with another body; or as `enqueue`.
    """
    if storing.is_replaced():  # by a test: there is no Redis that could remember the key
        return enqueue(calls)
    key = _own_key(key)
    marks = [_mark(key, number) for number in range(len(calls))]
    calls = [
        Call(call.body, call.place, f"once-{key[:32]}-{number}")
        for number, call in enumerate(calls)
    ]
    request = OnceRequest(key, _digest(body), dict(zip(marks, calls, strict=True)))
    while True:
        known = request.read()
        try:
            stored = request.store_unknown(known)
            return request.answer(stored, known)
        except Problem:
            # Another request with the key has stored these jobs by now, or this one is wrong.
            if request.read().job_ids.keys() == known.job_ids.keys():
                raise


@dataclass(frozen=True)
class OnceRequest:
    """A request with an Idempotency-Key. `calls`: by the mark of each in Redis."""

    key: str
    digest: str
    calls: dict[str, Call]

    def read(self) -> OnceState:
        return enqueueing.read_once(connection.client(), self.key, [*self.calls])

    def store_unknown(self, known: OnceState) -> dict[str, Stored]:
        """Store the jobs of which Redis knows nothing; returns those that no one else has stored.

        Raises:
            Problem: see `enqueue_once`.
        """
        if known.owner:
            self._check_owner(known.owner)
        earlier = {_id_of(self.calls[mark]) for mark in known.job_ids}
        marks = [mark for mark in self.calls if mark not in known.job_ids]
        if not marks:
            return {}
        prepared = prepare_all([self.calls[mark] for mark in marks], earlier)
        owner, began = enqueueing.begin_once(connection.client(), self.key, self.digest)
        self._check_owner(owner)
        return _store_once(dict(zip(marks, prepared, strict=True)), began)

    def _check_owner(self, owner: str) -> None:
        if owner != self.digest:
            text = (
                "A request with this Idempotency-Key and another body was sent within the last "
                "day; use a new key for another request."
            )
            raise Problem(422, "idempotency-mismatch", text)

    def answer(self, stored: dict[str, Stored], known: OnceState) -> list[Stored]:
        """All jobs of the request. `stored`: those that are stored now."""
        if len(stored) + len(known.job_ids) < len(self.calls):
            known = self.read()
        ids = {
            mark: known.job_ids.get(mark) or _id_of(call)
            for mark, call in self.calls.items()
            if mark not in stored
        }
        statuses = stats.statuses(connection.client(), sorted(set(ids.values()))) if ids else {}
        seen = {mark: Stored(job_id, statuses[job_id], False) for mark, job_id in ids.items()}
        return [(stored | seen)[mark] for mark in self.calls]


def _own_key(given: str) -> str:
    """The key of a request in Redis: each token has its own keys."""
    return hashlib.sha256(f"{current_access().user}\0{given}".encode()).hexdigest()


def _digest(body: Any) -> str:
    """A hash of the body. A decimal number differs from a text with the same digits."""
    text = json.dumps(body, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()


def _mark(key: str, number: int) -> str:
    """The mark in Redis of one job of a request."""
    return f"{key}:{number}"


def _id_of(call: Call) -> str:
    """The id that the request gives to a job. It may be stored under another one."""
    return str(call.body.get("job_id") or call.job_id)


def _store_once(prepared: dict[str, PreparedCall], began: float) -> dict[str, Stored]:
    """Store the jobs, by their marks; returns those that no other request has stored."""
    client = connection.client()
    placements = {mark: one.placement for mark, one in prepared.items()}
    outcomes = enqueueing.enqueue_once(client, placements, began)
    stored = {
        mark: _note(prepared[mark], outcome)
        for mark, outcome in outcomes.items()
        if isinstance(outcome, Enqueued)
    }
    storing.call_hooks([prepared[mark].job for mark, one in stored.items() if one.is_new])
    for outcome in outcomes.values():
        if isinstance(outcome, DuplicateJob | RefusedJob):
            raise _refusal(outcome)
        if isinstance(outcome, Exception):
            raise outcome
    return stored


def _note(one: PreparedCall, outcome: Enqueued) -> Stored:
    """The job of a call that was stored now. If that is another job, `one.job` gets its id."""
    job_id = one.job.id
    status = "deferred" if job_id in outcome.deferred else one.job.get_status(refresh=False).value
    is_new = True
    for unique in outcome.unique:
        job_id = unique.job_id
        is_new = bool(unique.status)
        status = unique.status or stats.statuses(connection.client(), [job_id])[job_id]
    one.job._id = job_id
    return Stored(job_id, status, is_new)
