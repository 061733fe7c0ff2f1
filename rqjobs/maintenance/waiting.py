"""Jobs that wait for a limit, or for the end of a function's pause: is each in the list that names it?

Such a job is deferred for RQ, and its id is in a list of the limit's key or of the function. Without
its entry there nothing would end its wait. Only a foreign program can have removed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import redis
from rq.utils import now, utcformat

from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.broker.places import LIST_BATCH_IDS, count_places
from rqjobs.maintenance.sweep_result import log, skip_wrong_types
from rqjobs.queues import Queue

DEFERRED_PER_SCRIPT = 1000  # deferred jobs that one script looks at
SCRIPTS_PER_QUEUE = 10  # of one sweep; the next one goes on
GONE_KEPT_SECONDS = 60  # a foreign program may write a job in two steps
RESTORED_PER_SCRIPT = 200


class Line(NamedTuple):
    """The limit or the paused function that jobs wait for, and the field of a job that names it."""

    field: str
    name: str

    @property
    def list_key(self) -> str:
        """The list of the jobs that wait, in order."""
        if self.field == "rqjobs_paused":
            return keys.paused_jobs(self.name)
        return keys.waiting(self.name)

    @property
    def names_key(self) -> str:
        """The set of the names for which there are such lists."""
        if self.field == "rqjobs_paused":
            return keys.PAUSED_JOBS
        return keys.WAITING_KEYS

    def __str__(self) -> str:
        if self.field == "rqjobs_paused":
            return f"the end of the pause of {self.name}"
        return f"its limit {self.name}"


def check(
    connection: redis.Redis, names: list[str], on_progress: Callable[[], None] = lambda: None
) -> None:
    """Put back the jobs that are missing in the list of those that wait, forget deferred ids without
    a job, and let flows go on: the next part of each of these queues.
    """
    for queue, places in count_places(connection, names).items():
        if places["deferred"]:
            with skip_wrong_types(f"the deferred jobs of queue {queue}"):
                _check_queue(connection, queue, on_progress)


def _check_queue(connection: redis.Redis, queue: str, on_progress: Callable[[], None]) -> None:
    cursor: Any = connection.hget(keys.DEFERRED_CURSORS, queue) or b"0"
    gone: set[str] = set()
    lines: dict[Line, dict[str, float]] = {}
    for _ in range(SCRIPTS_PER_QUEUE):
        moment = utcformat(now())
        args = [cursor, DEFERRED_PER_SCRIPT, GONE_KEPT_SECONDS, moment, Queue.DEFAULT_TIMEOUT]
        cursor, forgotten, waiting = scripts.CHECK_DEFERRED.run(
            connection, [keys.deferred(queue)], args
        )
        gone.update(map(decode, forgotten))
        for job_id, since, field, name in waiting:
            line = Line(decode(field), decode(name))
            lines.setdefault(line, {})[decode(job_id)] = float(since)
        on_progress()
        if cursor == b"0":
            break
    connection.hset(keys.DEFERRED_CURSORS, queue, cursor)
    for line, since_when in lines.items():
        _check_line(connection, line, since_when, gone)
        on_progress()


def _check_line(
    connection: redis.Redis, line: Line, since_when: dict[str, float], gone: set[str]
) -> None:
    listed = set(_ids_in(connection, line))
    for job_id in gone & listed:
        script_keys = [line.list_key, keys.job(job_id)]
        scripts.REMOVE_DANGLING.run(connection, script_keys, [job_id])
    missing = sorted(since_when.keys() - listed, key=lambda job_id: (since_when[job_id], job_id))
    restored = 0
    for start in reversed(range(0, len(missing) or 1, RESTORED_PER_SCRIPT)):
        ids = missing[start : start + RESTORED_PER_SCRIPT]
        script_keys = [line.list_key, line.names_key]
        reply = scripts.RESTORE_WAITING.run(connection, script_keys, [*line, *ids])
        restored += len(reply)
    if restored:
        log.warning(
            "%d jobs wait for %s and were missing in %s (a foreign program has changed it); put "
            "them back",
            restored,
            line,
            line.list_key,
        )


def _ids_in(connection: redis.Redis, line: Line) -> Iterable[str]:
    start = 0
    while True:
        command = ("LRANGE", line.list_key, start, start + LIST_BATCH_IDS - 1)
        (ids,) = scripts.read_together(connection, [command])
        if not isinstance(ids, list) or not ids:  # the end, or a key of the wrong type
            return
        yield from map(decode, ids)
        start += len(ids)


def unlisted_jobs(connection: redis.Redis, ids: list[str]) -> list[tuple[str, Line]]:
    """Those of these deferred jobs that wait, and are not in the list of those that do."""
    lines: dict[Line, list[str]] = {}
    for job_id, line in zip(ids, _lines_of(connection, ids), strict=True):
        if line:
            lines.setdefault(line, []).append(job_id)
    suspects = []
    for line, waiting in lines.items():
        listed = set(_ids_in(connection, line))
        suspects += [(job_id, line) for job_id in waiting if job_id not in listed]
    # A job may have been woken in between.
    still = _lines_of(connection, [job_id for job_id, _ in suspects])
    return [suspect for suspect, line in zip(suspects, still, strict=True) if line == suspect[1]]


def _lines_of(connection: redis.Redis, ids: list[str]) -> list[Line | None]:
    """The line in which each of these jobs waits; None for a job that waits in none."""
    commands = [("HMGET", keys.job(job_id), "rqjobs_waits_for", "rqjobs_paused") for job_id in ids]
    lines: list[Line | None] = []
    for reply in scripts.read_together(connection, commands):
        line = None
        if isinstance(reply, list):  # otherwise the key has the wrong type
            key, function = reply
            if key:
                line = Line("rqjobs_waits_for", decode(key))
            elif function:
                line = Line("rqjobs_paused", decode(function))
        lines.append(line)
    return lines
