"""Requeue, cancel or delete many jobs: given ones, those of a filter, or those of a queue.

Each job is changed by the same scripts as a single one. A job that has changed in between is left
alone, so a repetition does no harm.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Any

import redis
from rq import get_current_job
from rq.exceptions import InvalidJobOperation, NoSuchJobError

from rqjobs import config, connection, job_search, loops, queues, stats, texts
from rqjobs.broker import bulk_transitions, enqueueing, keys, scripts, transitions
from rqjobs.broker.scripts import CHANGE_DELAYED, SEARCH_JOBS
from rqjobs.connection import refusal_code
from rqjobs.job_filters import STATE_OF_STATUS, Filter, FilterError, State, read_filter
from rqjobs.job_search import Query, Source
from rqjobs.jobs import Job

DIRECT_MAX_JOBS = 1000  # more are changed by a job of their own
STEP_MAX_FOUND = 500
POSITION_MAX_CHARACTERS = 2000  # of a position as JSON: `resumable` refuses longer ones
JOB_TIMEOUT_SECONDS = 86_400


class Action(str, Enum):
    """A change of many jobs."""

    REQUEUE = "requeue"
    CANCEL = "cancel"
    DELETE = "delete"


ACTION_STATES = {  # in which an action changes a job; it leaves others alone
    Action.REQUEUE: (State.FAILED, State.STOPPED),
    Action.CANCEL: (State.QUEUED, State.SCHEDULED, State.DEFERRED, State.RUNNING),
    Action.DELETE: (State.FAILED, State.STOPPED, State.FINISHED, State.CANCELED),
}
DONE_WORDS = {
    Action.REQUEUE: "back in their queues",
    Action.CANCEL: "canceled",
    Action.DELETE: "deleted",
}


def describe(action: Action, changed: int, whose: str = "") -> str:
    """What was done: "2 jobs are deleted", "1 job of shop.send is back in its queue".

    `whose`: for example "of shop.send", or "".
    """
    words = DONE_WORDS[action]
    if changed == 1:
        words = words.replace("their queues", "its queue")
    return f"{texts.jobs(changed, f'{whose} is'.lstrip(), f'{whose} are'.lstrip())} {words}"


@dataclass(frozen=True)
class Target:
    """A job to be changed, and where it is. `depth`: in its queue, from the newest job on."""

    job_id: str
    state: State
    queue: str
    depth: int = 0


@dataclass(frozen=True)
class Outcome:
    """How many jobs were changed; or the job that changes them."""

    changed: int
    job_id: str = ""


def change(action: Action, job_ids: Sequence[str]) -> int:
    """Change these jobs, as far as their states allow it; returns how many were changed."""
    client = connection.client()
    source = Source("ids", "", None, "", ids=tuple(dict.fromkeys(job_ids)))
    walk = Walk(client, action, Filter(), [source])
    (row,) = walk.fetch(None)
    return change_targets(client, action, row[1])


def change_matching(action: Action, chosen: Filter) -> Outcome:
    """Change all jobs of a filter: up to `DIRECT_MAX_JOBS` at once, more by a job of its own.

    Jobs that come into the filter later are left alone.
    """
    chosen = until_now(chosen)
    number = job_search.count(chosen, DIRECT_MAX_JOBS)
    if not number.is_exact or number.number > DIRECT_MAX_JOBS:
        return Outcome(0, enqueue_change(action, chosen))
    return Outcome(sum(Walk(connection.client(), action, chosen).changes()))


def until_now(chosen: Filter) -> Filter:
    """The filter with the present time as its end, unless it ends before."""
    moment = datetime.now(timezone.utc)
    since, until = chosen.since, chosen.until
    if isinstance(since, timedelta):
        since = moment - since
    if isinstance(until, timedelta):
        until = moment - until
    return replace(chosen, since=since, until=min(until, moment) if until else moment)


def enqueue_change(action: Action, chosen: Filter) -> str:
    """Enqueue the job that changes all jobs of a filter; returns its id.

    It is put at the front of the first configured queue: its jobs may be the backlog.
    """
    words = ", ".join(f"{name} {text}" for name, text in chosen.params().items())
    queue = queues.queue(config.current().queues[0])
    job = queue.enqueue(
        change_jobs,
        args=(action.value, chosen.params()),
        at_front=True,
        job_timeout=JOB_TIMEOUT_SECONDS,
        description=f"{action.value} all jobs: {words}",
    )
    return str(job.id)


def change_jobs(action: str, chosen: dict[str, str]) -> str:
    """The job that changes all jobs of a filter, given by `Filter.params`.

    It continues where it was when its worker stops or dies. Once it has ended, a requeue does not
    continue a deletion: the role that may requeue jobs may not delete them.

    Raises:
        ValueError: `action` is not an action, or the filter is wrong.
        InvalidJobOperation: it is a deletion that has ended before.
    """
    wanted = Action(action)
    if not isinstance(chosen, dict) or chosen.keys() - {field.name for field in fields(Filter)}:
        raise FilterError("filter", "this is not a filter of jobs")
    walk = Walk(connection.client(), wanted, read_filter(chosen))
    job = get_current_job()
    if job and wanted is Action.DELETE and walk.client.exists(keys.results(job.id)):
        raise InvalidJobOperation(
            "this deletion has ended, and is not continued: choose the jobs again on the page Jobs"
        )
    meta = job.meta if job else {}
    total = meta.setdefault("total", walk.count())
    changed = meta.get("changed", 0)
    for targets in loops.resumable(walk.fetch):
        changed += change_targets(walk.client, wanted, targets)
        meta["changed"] = changed
        loops.progress(min(walk.looked, total), total, f"{changed:,} {DONE_WORDS[wanted]}")
    return describe(wanted, changed)


def empty_queue(client: redis.Redis, queue: str, seconds: float) -> tuple[int, int]:
    """Delete the jobs that wait in a queue now, for up to `seconds`.

    Returns the number of deleted jobs, and of those that wait in the queue after that.
    """
    end = time.monotonic() + seconds
    deleted = 0
    for number in transitions.empty_queue(client, queue):
        deleted += number
        if time.monotonic() > end:
            break
    (left,) = stats.count_jobs(client, [(queue, "queued")])
    return deleted, left


# The walk over the jobs of a filter


class Walk:
    """The jobs of a filter that an action can change, one source after another, in steps.

    A key says where a step ended: the name of the source, the position in it (None if all of it was
    looked at), and the number of jobs that were looked at.
    """

    def __init__(
        self,
        client: redis.Redis,
        action: Action,
        chosen: Filter,
        sources: Sequence[Source] | None = None,
    ):
        self.client = client
        self.action = action
        self.query = Query(chosen)
        self.looked = 0
        if sources is None:
            # Failed jobs return to their queues in the order in which they failed.
            order = "oldest" if action is Action.REQUEUE else "newest"
            sources = job_search.sources_of(client, chosen, order=order)
        useful = [one for one in sources if one.state is None or one.state in ACTION_STATES[action]]
        self.sources = sorted(useful, key=lambda source: source.name)

    def count(self) -> int:
        """The number of jobs to look at."""
        commands = [self.query.call(source, [], 1, 1, wants="count") for source in self.sources]
        replies = scripts.read_together(self.client, commands, SEARCH_JOBS)
        return sum(reply[2] for reply in replies if isinstance(reply, list))

    def changes(self) -> Iterator[int]:
        """Change all jobs, in steps; gives the number of changed jobs of each step."""
        after = None
        while rows := self.fetch(after):
            after, targets = rows[0]
            yield change_targets(self.client, self.action, targets)

    def fetch(self, after: Any) -> list[tuple[Any, list[Target]]]:
        """The step behind a key: its own key, and the jobs to change. Empty at the end."""
        name, position, self.looked = after or ["", None, 0]
        targets: list[Target] = []
        for source in self.sources:
            if source.name < name or (source.name == name and position is None):
                continue
            begin = position if source.name == name else []
            stop = self._step(source, [word.encode("latin-1") for word in begin], targets)
            return [([source.name, stop, self.looked], targets)]
        return []

    def _step(
        self, source: Source, position: list[bytes], targets: list[Target]
    ) -> list[str] | None:
        """Look at the jobs behind a position; returns the next position."""
        while True:
            command = self.query.call(source, position, STEP_MAX_FOUND)
            (reply,) = scripts.read_together(self.client, [command], SEARCH_JOBS)
            if not isinstance(reply, list):  # the key has another type by now
                return None
            position = reply[0]
            self.looked += reply[1]
            matches = job_search.read_matches(self.client, self.query, reply)
            targets += filter(None, (_target(source, match) for match in matches))
            words = [word.decode("latin-1") for word in position]
            if not words:
                return None
            if len(json.dumps(words)) < POSITION_MAX_CHARACTERS - len(source.name):
                return words


def _target(source: Source, match: job_search.Match) -> Target | None:
    job = job_search.found_job(source, match.row)
    if job.state is None:
        return None
    depth = 0
    if source.kind == "list":
        depth = int(match.position[1]) - 1
    return Target(job.id, job.state, job.queue, depth)


# Changes


def change_targets(client: redis.Redis, action: Action, targets: Iterable[Target]) -> int:
    """Change these jobs, as far as their states allow it; returns how many were changed."""
    places: dict[tuple[State, str], list[Target]] = {}
    for target in targets:
        if target.state in ACTION_STATES[action]:
            places.setdefault((target.state, target.queue), []).append(target)
    return sum(
        _change_place(client, action, state, queue, part) for (state, queue), part in places.items()
    )


def _change_place(
    client: redis.Redis, action: Action, state: State, queue: str, targets: list[Target]
) -> int:
    job_ids = [target.job_id for target in targets]
    if action is Action.REQUEUE:
        pairs = [(job_id, queue) for job_id in job_ids]
        return transitions.requeue_failed(client, pairs, stopped=state is State.STOPPED)
    if action is Action.DELETE:
        return _delete(client, state, queue, job_ids)
    if state is State.QUEUED:
        return _cancel_queued(client, queue, targets)
    if state is State.SCHEDULED:
        return _cancel_scheduled(client, queue, job_ids)
    return sum(_cancel_one(client, job_id, state) for job_id in job_ids)


def _delete(client: redis.Redis, state: State, queue: str, job_ids: list[str]) -> int:
    if state is State.FAILED:
        return transitions.delete_failed_jobs(client, [(job_id, queue) for job_id in job_ids])
    registry = "failed" if state is State.STOPPED else state.value
    return bulk_transitions.delete_ended(client, registry, state.value, queue, job_ids)


def _cancel_queued(client: redis.Redis, queue: str, targets: list[Target]) -> int:
    """Cancel queued jobs where they were found; those that have moved one by one."""
    job_ids = [target.job_id for target in targets]
    depth = min(target.depth for target in targets)
    done = bulk_transitions.cancel_queued(client, queue, depth, job_ids)
    left = [job_id for job_id in job_ids if job_id not in done]
    return len(done) + sum(_cancel_one(client, job_id, State.QUEUED) for job_id in left)


def _cancel_scheduled(client: redis.Redis, queue: str, job_ids: list[str]) -> int:
    commands = [
        CHANGE_DELAYED.call(
            [
                keys.job(job_id),
                keys.scheduled(queue),
                keys.crash_backoff(queue),
                keys.registry("canceled", queue),
                keys.wakeup_channel(queue),
            ],
            [job_id, "cancel", 0, enqueueing.SCHEDULER_POLL_SECONDS],
        )
        for job_id in job_ids
    ]
    replies = transitions.run_commands(client, commands, CHANGE_DELAYED)
    return sum(reply == b"canceled" for reply in replies)


def _cancel_one(client: redis.Redis, job_id: str, state: State) -> bool:
    """Cancel a job if it is still in this state, and is not the job that runs here."""
    own = get_current_job()
    try:
        job = Job.fetch(job_id, connection=client)
        status = job.get_status(refresh=False).value
        if STATE_OF_STATUS.get(status) is not state or (own and own.id == job_id):
            return False
        transitions.cancel(job, status)
    except (InvalidJobOperation, NoSuchJobError):
        return False
    except redis.RedisError as error:
        if isinstance(error, redis.ResponseError) and not refusal_code(error):
            return False  # a key of the wrong type
        raise
    except Exception:  # RQ may raise anything for a damaged record
        return False
    return True
