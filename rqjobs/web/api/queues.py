"""The operations on queues, workers, and the state of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Response

from rqjobs import bulk_actions, config, connection, pauses, rates, stats, worker_commands
from rqjobs.queues import check_queue_name
from rqjobs.rates import Rate
from rqjobs.stats import QueueStats, Snapshot, WorkerStats
from rqjobs.web import recording
from rqjobs.web.access import Role, current_access
from rqjobs.web.api import job_values
from rqjobs.web.api.job_values import COUNT, NUMBER_OR_NULL, TEXT, an_object
from rqjobs.web.api.operations import PATH_PARAMETERS, Given, answer, operation, schema
from rqjobs.web.api.problems import Problem, invalid
from rqjobs.web.deadlines import EMPTY_SECONDS

JOB_COUNTS = (
    "queued",
    "running",
    "scheduled",
    "deferred",
    "failed",
    "finished",
    "canceled",
    "stopped",
)
QUEUE = schema(
    "Queue",
    an_object(
        name=TEXT,
        **dict.fromkeys(JOB_COUNTS, COUNT),
        oldest_seconds=NUMBER_OR_NULL,
        in_per_minute={"type": "number"},
        out_per_minute={"type": "number"},
        workers=COUNT,
        paused={"type": "boolean"},
    ),
)
WORKER = schema(
    "Worker",
    an_object(
        name=TEXT,
        state=TEXT,
        queues={"type": "array", "items": TEXT},
        job_id={"type": ["string", "null"]},
        host=TEXT,
        pid={"type": "integer"},
        heartbeat_seconds=NUMBER_OR_NULL,
        succeeded=COUNT,
        failed=COUNT,
        alive={"type": "boolean"},
        quiet={"type": "boolean", "description": "whether it takes no more jobs"},
        memory_bytes={**COUNT, "description": "of its two processes"},
        version=TEXT,
        python_version=TEXT,
    ),
)
PAUSE_STATE = schema(
    "PauseState",
    an_object(
        name=TEXT,
        paused={"type": "boolean"},
        changed={"type": "boolean", "description": "false if it was so already"},
    ),
)
PATH_PARAMETERS["queue"] = {  # also those of other programs
    "type": "string",
    "minLength": 1,
    "maxLength": 300,
}
PATH_PARAMETERS["worker"] = {"type": "string", "minLength": 1, "maxLength": 300}


@operation(
    "GET",
    "/queues",
    tag="queues",
    summary="The queues and their numbers of jobs",
    answers={200: an_object(queues={"type": "array", "items": QUEUE})},
)
def list_queues(given: Given) -> dict[str, Any]:
    """The queues that Redis knows, and the configured ones. The rates are of the last five minutes."""
    return {"queues": _queues(stats.snapshot(connection.client()))}


@operation(
    "GET",
    "/queues/{queue}",
    tag="queues",
    summary="A queue",
    answers={200: QUEUE},
)
def get_queue(given: Given, queue: str) -> dict[str, Any]:
    now = stats.snapshot(connection.client(), lambda names: [one for one in names if one == queue])
    for one in _queues(now):
        if one["name"] == queue:
            return one
    raise Problem(404, "not-found", f"There is no queue {queue}.")


def _queues(now: Snapshot) -> list[dict[str, Any]]:
    paused = {pause.name for pause in now.paused if pause.kind == "queue"}
    found = {one.name: one for one in now.queues}
    empty = [_empty(name) for name in config.current().queues if name not in found]
    pace = rates.rates(connection.client(), [*found, *(one.name for one in empty)])
    return [_queue(one, one.name in paused, pace[one.name]) for one in [*now.queues, *empty]]


def _empty(name: str) -> QueueStats:
    return QueueStats(name=name, **dict.fromkeys(JOB_COUNTS, 0), oldest=None, workers=0)


def _queue(one: QueueStats, is_paused: bool, pace: Rate) -> dict[str, Any]:
    return {
        "name": one.name,
        **{name: getattr(one, name) for name in JOB_COUNTS},
        "oldest_seconds": one.oldest,
        "in_per_minute": pace.incoming,
        "out_per_minute": pace.outgoing,
        "workers": one.workers,
        "paused": is_paused,
    }


@operation(
    "POST",
    "/queues/{queue}/pause",
    tag="queues",
    summary="Begin no more jobs of a queue",
    answers={200: PAUSE_STATE},
)
def pause_queue(given: Given, queue: str) -> dict[str, Any]:
    """Running jobs end, and new ones are accepted."""
    _check_name(queue)
    changed = pauses.pause(queue=queue, by=current_access().user)
    return {"name": queue, "paused": True, "changed": changed}


@operation(
    "POST",
    "/queues/{queue}/resume",
    tag="queues",
    summary="Begin jobs of a paused queue again",
    answers={200: PAUSE_STATE},
)
def resume_queue(given: Given, queue: str) -> dict[str, Any]:
    _check_name(queue)
    changed = pauses.resume(queue=queue)
    return {"name": queue, "paused": False, "changed": changed}


def _check_name(queue: str) -> None:
    """Check a name. Queues of other programs may have others: those can be read and emptied.

    Raises:
        Problem: rqjobs has no queues of such names.
    """
    try:
        check_queue_name(queue)
    except ValueError as error:
        raise invalid({"queue": str(error)}) from None


@operation(
    "POST",
    "/queues/{queue}/empty",
    tag="queues",
    summary="Delete the jobs that wait in a queue",
    role=Role.ADMIN,
    answers={200: schema("QueueEmptied", an_object(jobs=COUNT, left=COUNT))},
)
def empty_queue(given: Given, queue: str) -> dict[str, Any]:
    """They cannot be brought back. Of a very long queue one request deletes a part."""
    deleted, left = bulk_actions.empty_queue(connection.client(), queue, EMPTY_SECONDS)
    recording.add_note(f"{deleted:,} jobs")
    return {"jobs": deleted, "left": left}


# Workers


@operation(
    "GET",
    "/workers",
    tag="workers",
    summary="The workers",
    answers={200: an_object(workers={"type": "array", "items": WORKER})},
)
def list_workers(given: Given) -> dict[str, Any]:
    """Those whose lease has expired have `alive` false, until they are removed."""
    return {"workers": [_worker(one) for one in stats.snapshot(connection.client()).workers]}


@operation(
    "GET",
    "/workers/{worker}",
    tag="workers",
    summary="A worker",
    answers={200: WORKER},
)
def get_worker(given: Given, worker: str) -> dict[str, Any]:
    return _worker(_find_worker(worker))


def _find_worker(name: str) -> WorkerStats:
    found = stats.worker(connection.client(), name)
    if found is None:
        raise Problem(404, "not-found", "There is no worker of this name.")
    return found


@operation(
    "POST",
    "/workers/{worker}/quiet",
    tag="workers",
    summary="Let a worker finish its jobs and take no more",
    answers={202: WORKER},
    problems=(409,),
)
def quiet_worker(given: Given, worker: str) -> Response:
    return _command(worker, worker_commands.quiet)


@operation(
    "POST",
    "/workers/{worker}/resume",
    tag="workers",
    summary="Let a quiet worker take jobs again",
    answers={202: WORKER},
    problems=(409,),
)
def resume_worker(given: Given, worker: str) -> Response:
    return _command(worker, worker_commands.resume)


@operation(
    "POST",
    "/workers/{worker}/stop",
    tag="workers",
    summary="Let a worker end",
    role=Role.ADMIN,
    answers={202: WORKER},
    problems=(409,),
)
def stop_worker(given: Given, worker: str) -> Response:
    """Its job may end within RQJOBS_SHUTDOWN_TIMEOUT, and returns to its queue after that."""
    return _command(worker, worker_commands.stop)


def _command(name: str, send: Callable[[str], bool]) -> Response:
    found = _find_worker(name)
    if not send(name):
        raise Problem(409, "conflict", "The worker does not listen, so nothing was done.")
    return answer(_worker(found), 202)


def _worker(one: WorkerStats) -> dict[str, Any]:
    return {
        "name": one.name,
        "state": job_values.name(one.state),
        "queues": [job_values.name(queue) for queue in one.queues],
        "job_id": None if one.job_id is None else job_values.name(one.job_id),
        "host": job_values.name(one.host),
        "pid": one.pid,
        "heartbeat_seconds": one.heartbeat,
        "succeeded": one.succeeded,
        "failed": one.failed,
        "alive": one.alive,
        "quiet": bool(one.quiet_since),
        "memory_bytes": one.memory + one.horse_memory,
        "version": job_values.name(one.version),
        "python_version": job_values.name(one.python_version),
    }


# The whole


@operation(
    "GET",
    "/stats",
    tag="stats",
    summary="The state of the whole",
    answers={
        200: schema(
            "Stats",
            an_object(
                **dict.fromkeys(JOB_COUNTS, COUNT),
                oldest_seconds=NUMBER_OR_NULL,
                workers=COUNT,
                suspended={"type": "boolean"},
                scheduler_is_running={"type": "boolean"},
                paused_queues={"type": "array", "items": TEXT},
                paused_functions={"type": "array", "items": TEXT},
                unserved_queues={
                    "type": "array",
                    "items": TEXT,
                    "description": "queues with jobs that no worker listens to",
                },
            ),
        )
    },
)
def get_stats(given: Given) -> dict[str, Any]:
    """The sums over all queues, the age of the oldest queued job, and what keeps jobs from running."""
    client = connection.client()
    now = stats.snapshot(client)
    ages = [queue.oldest for queue in now.queues if queue.oldest is not None]
    return {
        **{name: sum(getattr(queue, name) for queue in now.queues) for name in JOB_COUNTS},
        "oldest_seconds": max(ages, default=None),
        "workers": sum(worker.alive for worker in now.workers),
        "suspended": now.suspended,
        "scheduler_is_running": stats.scheduler_is_running(client),
        "paused_queues": [pause.name for pause in now.paused if pause.kind == "queue"],
        "paused_functions": [pause.name for pause in now.paused if pause.kind == "function"],
        "unserved_queues": now.unserved,
    }
