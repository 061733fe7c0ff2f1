"""Declared schedules: Redis stores the schedules that the code of running workers declares."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import redis

from rqjobs import catalog
from rqjobs.broker import keys, scripts, transitions
from rqjobs.broker.keys import decode
from rqjobs.schedules.cron import ScheduleError
from rqjobs.schedules.describe import describe
from rqjobs.schedules.rules import Rule, declared
from rqjobs.schedules.store import (
    JobTemplate,
    Schedule,
    build_template,
    check_name,
    due_time,
    read,
    save,
    write,
)
from rqjobs.schedules.ticker import log

UNDECLARED_SECONDS = 86_400  # seconds after which an undeclared schedule is deleted
COMPARE_SECONDS = 60  # seconds between two comparisons if no declaration has changed
COMPARE_BATCH_SCHEDULES = 100  # schedules that one step compares
DECLARED_MAX_PARTS = (
    2_000_000  # commas and brackets in a worker's JSON; each takes memory when read
)
FOREIGN_DATA_ERRORS = (
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    RecursionError,
    redis.DataError,
)

Declaration = dict[str, Any]  # name, rule, function, queue, digest, and the fields of its jobs


# In the worker


def declarations() -> list[Declaration]:
    """Every schedule that the jobs modules declare, in the form in which Redis stores it.

    Raises:
        ScheduleError: two have the same name.
        TypeError, PayloadError, PayloadTooLarge, RefusedWebhook: as for enqueue.
    """
    found: dict[str, Declaration] = {}
    for function_name, function in catalog.current():
        for number, rule in enumerate(declared(function), start=1):
            name = check_name(rule.name or _default_name(function_name, number))
            if name in found:
                raise ScheduleError(
                    f"two schedules are called {name!r}: of {found[name]['function']} and of "
                    f"{function_name}; give one of them a name=…"
                )
            template = build_template(function, rule.args, rule.kwargs)
            found[name] = {
                "name": name,
                "rule": rule.to_json(),
                "function": template.function,
                "queue": template.queue,
                "digest": template.digest,
                "fields": {field: latin1_text(value) for field, value in template.fields.items()},
            }
    return list(found.values())


def _default_name(function_name: str, number: int) -> str:
    name = function_name.replace(".", "-")
    if number > 1:
        return f"{name}-{number}"
    return name


def latin1_text(value: Any) -> str:
    """Bytes as characters of the same numbers, because JSON carries only text."""
    if not isinstance(value, bytes):
        value = str(value).encode()
    return str(value, "latin-1")


def declaration_json(connection: redis.Redis) -> str:
    """The declarations of a worker that starts now, for `publish_declarations`.

    Raises:
        As `declarations`.
    """
    return json.dumps({"schedules": declarations(), "started": scripts.redis_time(connection)})


def publish_declarations(
    connection: redis.Redis, worker: str, declaration: str, again: bool = False
) -> None:
    """Publish the declarations of a worker's code. They count while the worker has a lease.

    `again`: publish them only if Redis has lost them.
    """
    try:
        if again and connection.hexists(keys.SCHEDULES_DECLARED, worker):
            return
        connection.hset(keys.SCHEDULES_DECLARED, worker, declaration)
    except redis.ResponseError as error:
        if not scripts.is_wrong_type(error):
            raise
        log.error("worker %s: its declared schedules are not published yet: %s", worker, error)
        return
    try:
        connection.incr(keys.SCHEDULES_ANNOUNCED)
    except redis.ResponseError:  # the key holds foreign data instead of a number
        connection.set(keys.SCHEDULES_ANNOUNCED, int(time.time()))
    transitions.publish_wakeup(connection, keys.SCHEDULES_WAKEUP_CHANNEL, "declared")


# In the scheduler


class Declarations:
    """Keeps the stored schedules equal to those that running workers declare.

    If workers run different versions of the code, the worker that started last decides. A schedule
    in no worker's code becomes undeclared, and continues where it was if a worker declares it
    again.
    """

    def __init__(self, connection: redis.Redis):
        self.connection = connection
        self._compared_with: Any = None  # the counter and the workers at the last comparison
        self._compared_at = 0.0  # in monotonic time

    def reconcile(self) -> Iterator[None]:
        """Compare and store, in steps of a few milliseconds.

        While the declarations stay the same, the schedules are compared once in `COMPARE_SECONDS`,
        because other programs may have changed them.
        """
        counter, members, redis_time = scripts.read_together(
            self.connection,
            [("GET", keys.SCHEDULES_ANNOUNCED), ("HKEYS", keys.SCHEDULES_DECLARED), ("TIME",)],
        )
        workers = set(members) if isinstance(members, list) else set()
        now = redis_time[0]
        leased: set[Any] = set(self.connection.zrangebyscore(keys.LEASES, now, "+inf"))
        live = leased & workers
        seen = (repr(counter), frozenset(workers), frozenset(live))
        is_recent = time.monotonic() - self._compared_at < COMPARE_SECONDS
        if seen == self._compared_with and is_recent:
            return
        if workers - live:
            self.connection.hdel(keys.SCHEDULES_DECLARED, *(workers - live))
        if live:  # without a live worker, no code can be asked
            yield from self._compare(live, now)
        self._compared_with = (repr(counter), frozenset(live), frozenset(live))
        self._compared_at = time.monotonic()

    def _compare(self, workers: Iterable[bytes], now: float) -> Iterator[None]:
        by_worker = []
        for worker in workers:
            by_worker.append(self._declared_by(worker))
            yield
        readable = [entry for entry in by_worker if entry]
        wanted: dict[str, Declaration] = {}
        for _, schedules in sorted(readable, key=lambda entry: entry[0]):
            wanted.update(schedules)
        # A worker whose declarations cannot be read may declare any schedule.
        all_are_known = len(readable) == len(by_worker)
        stored = {decode(name) for name in self.connection.zrange(keys.SCHEDULES, 0, -1)}
        names = sorted(stored | wanted.keys())
        for start in range(0, len(names), COMPARE_BATCH_SCHEDULES):
            yield
            batch = names[start : start + COMPARE_BATCH_SCHEDULES]
            for name in changed_schedules(self.connection, batch, wanted, now):
                found = read(self.connection, [name]).get(name)
                if name in wanted:
                    _store_or_log(self.connection, wanted[name], found)
                elif found and all_are_known:
                    _undeclare(self.connection, found, now)
                yield

    def _declared_by(self, worker: bytes) -> tuple[float, dict[str, Declaration]] | None:
        """A worker's start time and its declarations by name; None if they cannot be read."""
        text: Any = self.connection.hget(keys.SCHEDULES_DECLARED, worker) or b""
        try:
            if sum(map(text.count, (b"[", b"{", b","))) > DECLARED_MAX_PARTS:
                raise ValueError("it is larger than any code's declarations")
            entry = json.loads(text)
            by_name = {str(one["name"]): one for one in entry["schedules"]}
            return float(entry["started"]), by_name
        except (ValueError, TypeError, LookupError, RecursionError):
            log.error(
                "worker %s: its declared schedules cannot be read; it publishes them again",
                decode(worker),
            )
            self.connection.hdel(keys.SCHEDULES_DECLARED, worker)
            return None


def reconcile(connection: redis.Redis) -> None:
    """All steps of a first `Declarations.reconcile`, which compares every schedule."""
    for _ in Declarations(connection).reconcile():
        pass


def changed_schedules(
    connection: redis.Redis, names: list[str], wanted: dict[str, Declaration], now: float
) -> list[str]:
    """The names of schedules that are not stored as `wanted`, found without reading them whole."""
    commands: list[tuple[str, ...]] = []
    for name in names:
        fields = ("source", "undeclared_since", "digest", "rule")
        commands.append(("HMGET", keys.schedule(name), *fields))
        commands.append(("HSTRLEN", keys.schedule_job(name), "data"))
        commands.append(("ZSCORE", keys.SCHEDULES, name))
    replies = scripts.read_together(connection, commands)
    changed = []
    for name, own, data, due in zip(names, replies[::3], replies[1::3], replies[2::3], strict=True):
        if not isinstance(own, list):
            own = [None] * 4  # the key has the wrong type
        if due is None and own[0] is not None:
            # The schedule's score was lost. Its next run finds out when it is due.
            connection.zadd(keys.SCHEDULES, {name: 1}, nx=True)
        if name in wanted:
            is_right = _is_stored_as(wanted[name], own) and isinstance(data, int) and data > 0
        else:
            is_right = own[0] != b"code" or _is_kept_undeclared(own[1], now)
        if not is_right:
            changed.append(name)
    return changed


def _is_stored_as(declaration: Declaration, own: list[Any]) -> bool:
    source, undeclared_since, digest, rule = own
    if source != b"code" or undeclared_since:
        return False
    wanted = [str(declaration.get(field)).encode() for field in ("digest", "rule")]
    return [digest, rule] == wanted


def _is_kept_undeclared(undeclared_since: bytes | None, now: float) -> bool:
    """Whether a schedule is marked as undeclared, and not yet to be deleted."""
    try:
        return float(undeclared_since or 0) >= now - UNDECLARED_SECONDS
    except ValueError:
        return False


def _store_or_log(
    connection: redis.Redis, declaration: Declaration, found: Schedule | None
) -> None:
    name = str(declaration["name"])
    try:
        Rule.from_json(declaration["rule"])
        if found or _remove_unreadable(connection, name):
            _store_declared(connection, declaration, found)
    except redis.ResponseError as error:
        if not scripts.is_wrong_type(error):
            raise
        log.error("declared schedule %s is not stored: %s", name, error)
    except FOREIGN_DATA_ERRORS as error:  # of another version of rqjobs, or of another program
        log.error("declared schedule %s is not stored: %s", name, error)


def _remove_unreadable(connection: redis.Redis, name: str) -> bool:
    """Remove an unreadable schedule if its source is the code. Returns whether the name is free."""
    source, revision = connection.hmget(keys.schedule(name), "source", "revision")
    if source is None and revision is None:
        return True
    if source != b"code":
        log.error(
            "schedule %s in Redis cannot be read; remove it with: rqjobs schedules remove %s",
            name,
            name,
        )
        return False
    log.error("schedule %s in Redis cannot be read; it is replaced by its declaration", name)
    return write(connection, name, revision, "", "remove", {})


def _store_declared(
    connection: redis.Redis, declaration: Declaration, found: Schedule | None
) -> None:
    name = check_name(declaration["name"])
    rule = Rule.from_json(declaration["rule"])
    if found and found.undeclared_since:
        _redeclare(connection, found)
        found = read(connection, [name]).get(name)
    if found and found.source != "code":
        log.error(
            "schedule %s of %s is not stored: a schedule of that name was added at run time; "
            "remove it, or give the declaration another name=…",
            name,
            declaration["function"],
        )
        return
    stored = found and (found.digest, found.rule.to_json())
    if stored == (declaration["digest"], rule.to_json()):
        return
    fields = {field: value.encode("latin-1") for field, value in declaration["fields"].items()}
    template = JobTemplate(
        declaration["function"], declaration["queue"], fields, declaration["digest"]
    )
    if save(connection, name, rule, template, "code", found):
        change = "changed" if found else "new"
        log.warning("schedule %s is %s: %s", name, change, describe(rule))


def _redeclare(connection: redis.Redis, schedule: Schedule) -> None:
    """Let a schedule continue where it was when it became undeclared."""
    due = "never"
    if schedule.stored_state == "active" and schedule.next:
        due = due_time(schedule.rule, schedule.name, int(schedule.next.timestamp()))
    write(connection, schedule.name, schedule.revision, due, "same", {"undeclared_since": ""})


def _undeclare(connection: redis.Redis, schedule: Schedule, now: float) -> None:
    name, revision = schedule.name, schedule.revision
    if schedule.undeclared_since is None:
        fields = {"undeclared_since": repr(now)}
        if write(connection, name, revision, "never", "same", fields):
            log.warning("schedule %s is stopped: no running worker declares it any more", name)
    elif schedule.undeclared_since.timestamp() < now - UNDECLARED_SECONDS:
        write(connection, name, revision, "", "remove", {})
