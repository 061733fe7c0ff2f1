"""The handle of a flow: its jobs, their states, its result; cancel and retry of the whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, NamedTuple

import redis
from rq.job import JobStatus

from rqjobs import connection, passed_results, results
from rqjobs.broker import flows, keys, scripts, transitions
from rqjobs.broker.keys import decode
from rqjobs.jobs import Job
from rqjobs.passed_results import FlowPlace
from rqjobs.serializers import ConfiguredSerializer

JOBS_PER_READ = 1000  # jobs that are read in one round trip
JOBS_PER_FETCH = 200
CANCELED_FLOW_SECONDS = 24 * 3600  # for which a canceled flow is kept


class NoSuchFlow(ValueError):
    """There is no such flow, or it has ended and its last result has expired."""


class FlowStatus(str, Enum):
    """The status of a flow.

    A flow with a failed job is `FAILED` if jobs wait for that one; others may still run.
    """

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELED = "canceled"


class FlowProgress(NamedTuple):
    """How many of a flow's jobs have finished and failed, and how many it has."""

    done: int
    failed: int
    total: int

    def describe(self) -> str:
        """The numbers in one line."""
        return f"{self.done:,} of {self.total:,} jobs done, {self.failed:,} failed"


@dataclass(frozen=True)
class FlowJob:
    """A job of a flow as it is now. `status` is "gone" if its record is, without a result."""

    job_id: str
    status: str
    place: FlowPlace | None


class Flow:
    """A flow in Redis. Each property reads Redis again."""

    def __init__(
        self,
        flow_id: str,
        job_ids: list[str],
        client: redis.Redis | None = None,
        postponed: Job | None = None,
    ):
        self.id = flow_id
        self.job_ids = job_ids  # by position; those without a job after them come last
        self.connection = client or connection.client()
        self.postponed = postponed  # a job of it, if it is stored when a transaction commits

    def __repr__(self) -> str:
        return f"<Flow {self.id} of {len(self.job_ids)} jobs>"

    # Reading

    @property
    def jobs(self) -> list[Job]:
        """The jobs that exist; finished ones expire with their `result_ttl`."""
        found: list[Any] = []
        for start in range(0, len(self.job_ids), JOBS_PER_FETCH):
            batch = self.job_ids[start : start + JOBS_PER_FETCH]
            found += Job.fetch_many(batch, self.connection)
        return [job for job in found if job is not None]

    def states(self) -> list[FlowJob]:
        """Each job with its status, by position.

        Raises:
            NoSuchFlow: none of them is in Redis.
        """
        finished = self._finished_ids()
        commands = [
            ("HMGET", keys.job(job_id), "status", passed_results.FLOW_FIELD)
            for job_id in self.job_ids
        ]
        replies: list[Any] = []
        for start in range(0, len(commands), JOBS_PER_READ):
            batch = commands[start : start + JOBS_PER_READ]
            replies += scripts.read_together(self.connection, batch)
        states = [
            _flow_job(job_id, reply, job_id in finished)
            for job_id, reply in zip(self.job_ids, replies, strict=True)
        ]
        if all(one.status == "gone" for one in states):
            raise self._not_stored()
        return states

    @property
    def progress(self) -> FlowProgress:
        """How many jobs have finished and failed, of how many."""
        return progress_of(self.states())

    @property
    def status(self) -> FlowStatus:
        """The status of the flow as a whole."""
        return status_of(self.states())

    @property
    def result(self) -> Any:
        """The result of the last job, or the list of them for a group. None before the end.

        Raises:
            NoSuchFlow: the result has expired.
        """
        shape = self._shape()
        ends = self.job_ids[-shape.ends :]
        (stored,) = scripts.read_together(self.connection, [("HMGET", keys.flow(self.id), *ends)])
        if isinstance(stored, Exception) or any(raw is None for raw in stored):
            return None
        values = [
            passed_results.read_result(ConfiguredSerializer, job_id, raw)
            for job_id, raw in zip(ends, stored, strict=True)
        ]
        if shape.shape == "list":
            return values
        return values[0]

    def wait(self, timeout: float | timedelta | None = None) -> Any:
        """Wait until the last jobs have ended; returns the result of the flow.

        Raises:
            NoResult: a last job can never run as things are, because a job before it has failed or
                ended without a result. The message names that job and the remedy.
            NoSuchFlow: the result has expired.
            Exception: see `Job.wait`.
        """
        shape = self._shape()
        ends = self.job_ids[-shape.ends :]
        jobs = [job for job in Job.fetch_many(ends, self.connection) if job is not None]
        found = {
            job.id: value for job, value in zip(jobs, results.gather(jobs, timeout), strict=True)
        }
        missing = [job_id for job_id in ends if job_id not in found]
        found.update(self._kept_results(missing))
        values = [found[job_id] for job_id in ends]
        if shape.shape == "list":
            return values
        return values[0]

    def _kept_results(self, job_ids: list[str]) -> dict[str, Any]:
        """The results that are kept with the flow, of last jobs that are not in Redis any more.

        Raises:
            NoResult: one of them was deleted without a result.
            NoSuchFlow: the results have expired.
        """
        if not job_ids:
            return {}
        self._shape()
        (stored,) = scripts.read_together(
            self.connection, [("HMGET", keys.flow(self.id), *job_ids)]
        )
        found = {}
        for job_id, raw in zip(job_ids, stored, strict=True):
            if raw is None:
                raise results.NoResult(job_id, "of a flow", results.Ending.GONE)
            found[job_id] = passed_results.read_result(ConfiguredSerializer, job_id, raw)
        return found

    def _shape(self) -> FlowPlace:
        (text,) = scripts.read_together(
            self.connection, [("HGET", keys.flow(self.id), keys.FLOW_SHAPE)]
        )
        place = FlowPlace.read(decode(text)) if isinstance(text, bytes) else None
        if place is None:
            raise self._not_stored()
        return place

    def _not_stored(self) -> NoSuchFlow:
        """Why there is nothing of this flow in Redis."""
        status = self.postponed.get_status(refresh=False) if self.postponed else None
        if status == JobStatus.CREATED:
            return NoSuchFlow(
                f"the flow {self.id} is not stored yet: it is stored when its transaction commits, "
                f"and then, with an outbox, moved to Redis by the scheduler of a worker"
            )
        if status == JobStatus.CANCELED:
            return NoSuchFlow(
                f"the flow {self.id} is not stored: its transaction was not committed; enqueue it "
                f"again"
            )
        return gone(self.id)

    def _finished_ids(self) -> set[str]:
        (fields,) = scripts.read_together(self.connection, [("HKEYS", keys.flow(self.id))])
        if isinstance(fields, Exception):
            return set()
        return set(map(decode, fields))

    # Changing

    def cancel(self) -> int:
        """Cancel all jobs that have not ended; returns how many. Running ones may go on for a
        while, and their outcomes are dropped.
        """
        canceled = flows.cancel(self.connection, self.id, self.job_ids)
        for key in (keys.flow(self.id), keys.flow_jobs(self.id)):
            self.connection.expire(key, CANCELED_FLOW_SECONDS)
        return canceled

    def retry(self) -> int:
        """Requeue the failed and the stopped jobs; returns how many. The jobs after them follow."""
        ids = [one.job_id for one in self.states() if one.status in ("failed", "stopped")]
        queues = scripts.read_together(
            self.connection, [("HGET", keys.job(job_id), "origin") for job_id in ids]
        )
        jobs = [
            (job_id, decode(queue))
            for job_id, queue in zip(ids, queues, strict=True)
            if isinstance(queue, bytes)
        ]
        return transitions.requeue_failed(self.connection, jobs, stopped=True)


def fetch(flow_id: str) -> Flow:
    """The flow of this id.

    Raises:
        NoSuchFlow: there is none, or it has ended and its last result has expired.
    """
    client = connection.client()
    (ids,) = scripts.read_together(client, [("LRANGE", keys.flow_jobs(flow_id), 0, -1)])
    if isinstance(ids, Exception) or not ids:
        raise gone(flow_id)
    return Flow(flow_id, list(map(decode, ids)), client)


def gone(flow_id: str) -> NoSuchFlow:
    """The error for a flow that is not in Redis."""
    return NoSuchFlow(
        f"there is no flow {flow_id!r}: it was not stored, or its last result has expired; a larger "
        f"result_ttl of its last job keeps it for longer"
    )


def progress_of(states: Iterable[FlowJob]) -> FlowProgress:
    """The number of finished and of failed jobs, and of all of them."""
    statuses = [one.status for one in states]
    failed = sum(status in ("failed", "stopped") for status in statuses)
    return FlowProgress(statuses.count("finished"), failed, len(statuses))


def status_of(states: list[FlowJob]) -> FlowStatus:
    """The status of a flow by those of its jobs."""
    places = [one.place for one in states if one.place]
    ends = places[0].ends if places else len(states)
    if all(one.status == "finished" for one in states[-ends:]):
        return FlowStatus.FINISHED
    goes_on = any(place.on_failure == "continue" for place in places)
    stopping = {one.status for one in states if _stops(one, goes_on)}
    if "canceled" in stopping:
        return FlowStatus.CANCELED
    if stopping & {"failed", "stopped", "gone"}:
        return FlowStatus.FAILED
    return FlowStatus.RUNNING


def _stops(job: FlowJob, goes_on: bool) -> bool:
    """Whether the jobs behind this one wait for it if it has no result. The place of a job that is
    gone is not known: it counts as one of a part that goes on, if the flow has such a part.
    """
    if job.place is None:
        return not goes_on
    return job.place.on_failure == "stop"


def _flow_job(job_id: str, reply: Any, is_finished: bool) -> FlowJob:
    status = place = None
    if not isinstance(reply, Exception):
        status, place = reply
    shown = "finished" if is_finished else decode(status or b"gone")
    return FlowJob(job_id, shown, FlowPlace.read(decode(place)) if place else None)
