"""The place of a job in its flow, and the results that it gets from the jobs before it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from base64 import b64decode
from collections.abc import Mapping
from typing import Any, NamedTuple

import redis
from rq.job import UNSERIALIZABLE_RETURN_VALUE_PAYLOAD
from rq.results import Result

from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.job_fields import read_traceback
from rqjobs.policies import failures

FLOW_FIELD = "rqjobs_flow"
PARENT_ERROR_MAX_CHARACTERS = 1000  # of a failed job before this one
PLACE = re.compile(
    r"([\w-]{1,64}) (\d{1,9}) (\d{1,9}) (\d{1,9}) (one|list) (nothing|result|results) "
    r"(stop|continue)",
    re.ASCII,
)
Raw = Any  # a result as Redis has it, a `Failed`, or None if there is no result


class FlowPlace(NamedTuple):
    """The place of a job in its flow, as the field `rqjobs_flow` of its hash has it.

    `ends` is the number of jobs after which no other comes; they are the last ones by position.
    `shape` is "list" if the flow's result is the list of their results, else "one". `takes` is
    what the job gets from the jobs before it: "nothing", "result", or "results" (a list).
    `on_failure` says what the jobs after it do if it fails: "stop" or "continue".
    """

    flow_id: str
    position: int  # from 0
    total: int
    ends: int
    shape: str
    takes: str
    on_failure: str

    def write(self) -> str:
        """The text of the field."""
        return " ".join(map(str, self))

    @classmethod
    def read(cls, text: str) -> FlowPlace | None:
        """The place of the field's text; None if it has another form."""
        match = PLACE.fullmatch(text)
        if match is None:
            return None
        return cls(match[1], int(match[2]), int(match[3]), int(match[4]), *match.groups()[4:])

    @property
    def is_end(self) -> bool:
        """Whether no other job of the flow comes after this one."""
        return self.position >= self.total - self.ends


_ENDINGS = {b"discarded": "discarded", b"expired": "not run, because it expired"}


class ResultGone(Exception):
    """A job of a flow cannot run, because a result that it takes is not in Redis."""


@dataclasses.dataclass(frozen=True)
class Failed:
    """A missing result, as a job of a flow with `on_failure="continue"` gets it.

    `error` is the last line of that job's traceback, or says how it has ended.
    """

    job_id: str
    error: str


def place_of(policy_fields: Mapping[str, str]) -> FlowPlace | None:
    """The place of a job in its flow; None if it belongs to no flow."""
    return FlowPlace.read(policy_fields.get(FLOW_FIELD, ""))


def fetch(connection: redis.Redis, job: Any) -> list[Raw]:
    """The results that a job takes, in the order of the jobs before it.

    They are kept with the flow. A result that plain RQ has recorded is read where RQ keeps it.
    """
    place = place_of(job.policy_fields)
    if place is None or place.takes == "nothing":
        return []
    parents = list(job._dependency_ids)
    command = ("HMGET", keys.flow(place.flow_id), *parents)
    (stored,) = scripts.read_together(connection, [command])
    if isinstance(stored, Exception):  # the key has the wrong type
        stored = [None] * len(parents)
    missing = [parent for parent, raw in zip(parents, stored, strict=True) if raw is None]
    others = _fetch_others(connection, missing, bool(job.allow_dependency_failures))
    return [others.get(parent, raw) for parent, raw in zip(parents, stored, strict=True)]


def _fetch_others(connection: redis.Redis, parents: list[str], may_fail: bool) -> dict[str, Raw]:
    if not parents:
        return {}
    commands: list[tuple[Any, ...]] = []
    for parent in parents:
        commands.append(("HMGET", keys.job(parent), "status", "rqjobs_ending"))
        commands.append(("XREVRANGE", keys.results(parent), "+", "-", "COUNT", 1))
    replies = scripts.read_together(connection, commands)
    triples = zip(parents, replies[::2], replies[1::2], strict=True)
    return {parent: _read(parent, states, entry, may_fail) for parent, states, entry in triples}


def _read(parent: str, states: Any, entry: Any, may_fail: bool) -> Raw:
    status = ending = None
    if isinstance(states, list):  # otherwise the key has the wrong type
        status, ending = states
    fields: dict[bytes, bytes] = {}
    if isinstance(entry, list) and entry:
        fields = entry[0][1]
    if status == b"finished" and fields.get(b"type") == b"%d" % Result.Type.SUCCESSFUL.value:
        return fields.get(b"return_value", b"")
    if not may_fail:
        return None
    if status == b"failed":
        return Failed(parent, _error_of(fields.get(b"exc_string", b"")))
    if status in (b"stopped", b"canceled"):
        return Failed(parent, f"the job was {_ENDINGS.get(ending or b'', decode(status))}")
    return Failed(parent, "the job and its result are gone")


def _error_of(stored: bytes) -> str:
    """The last lines of a stored traceback: the class of the exception, and its message."""
    trace = ""
    with contextlib.suppress(Exception):  # a foreign program has written it
        trace = read_traceback(b64decode(stored))
    return failures.of_traceback("", trace).line[:PARENT_ERROR_MAX_CHARACTERS]


def values(job: Any) -> tuple[Any, ...]:
    """The arguments that a job gets from the jobs before it: none, a result, or their list.

    Raises:
        ResultGone: a result is not in Redis.
    """
    place = place_of(job.policy_fields)
    if place is None or place.takes == "nothing":
        return ()
    raw = job.passed_on
    if raw is None:
        raw = fetch(job.connection, job)
    results = [
        read_result(job.serializer, parent, one)
        for parent, one in zip(job._dependency_ids, raw, strict=True)
    ]
    if place.takes == "results":
        return (results,)
    return (results[0],)


def read_result(serializer: Any, job_id: str, raw: Raw) -> Any:
    """The value of a result as Redis has it.

    Raises:
        ResultGone: there is none.
    """
    if raw is None:
        raise ResultGone(
            f"the result of the job {decode(job_id)}, which this one takes, is gone: that job was "
            f"deleted, has expired, or was not run by a worker of rqjobs; enqueue the flow again"
        )
    if isinstance(raw, Failed):
        return raw
    if not raw:
        return None
    value = serializer.loads(b64decode(raw))
    if isinstance(value, str) and value == UNSERIALIZABLE_RETURN_VALUE_PAYLOAD:
        raise ResultGone(
            f"the result of the job {decode(job_id)} could not be kept, because the serializer cannot "
            f"carry it; let it return a value that JSON has"
        )
    return value
