"""What the code declares: stored in Redis, and removed when no running worker declares it."""

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
    jitter,
    read,
    save,
    write,
)
from rqjobs.schedules.ticker import log

UNDECLARED_SECONDS = 86_400  # seconds
COMPARE_SECONDS = 60  # between two looks at whether what is stored is what is declared, if nothing says that it is not
COMPARE_BATCH_SCHEDULES = 100  # schedules
DECLARED_MAX_PARTS = 2_000_000  # of the JSON in which a worker says what its code declares; each takes memory when read


# What the code declares


def declarations() -> list[dict[str, Any]]:
    """Every schedule that the jobs modules declare, ready for Redis.

    Raises:
        ScheduleError: two have the same name.
        TypeError, PayloadError, PayloadTooLarge, RefusedWebhook: as for enqueue.
    """
    found: dict[str, dict[str, Any]] = {}
    for function_name, function in catalog.current():
        for number, rule in enumerate(declared(function), start=1):
            name = rule.name or function_name.replace(".", "-") + (
                f"-{number}" if number > 1 else ""
            )
            if check_name(name) in found:
                raise ScheduleError(
                    f"two schedules are called {name!r}: of {found[name]['function']} and of "
                    f"{function_name}; give one of them a name=…"
                )
            made = build_template(function, rule.args, rule.kwargs)
            fields = {field: latin1_text(value) for field, value in made.fields.items()}
            found[name] = {
                "name": name,
                "rule": rule.to_json(),
                "function": made.function,
                "queue": made.queue,
                "digest": made.digest,
                "fields": fields,
            }
    return list(found.values())


def latin1_text(value: Any) -> str:
    """Bytes as characters of the same numbers, so that JSON can carry them."""
    return (
        value.decode("latin-1")
        if isinstance(value, bytes)
        else str(value).encode().decode("latin-1")
    )


def declaration_json(connection: redis.Redis) -> str:
    """What `announce` says for a worker that starts now. Raises as `declarations` does."""
    return json.dumps({"schedules": declarations(), "started": scripts.redis_time(connection)})


def publish_declarations(
    connection: redis.Redis, worker: str, words: str, again: bool = False
) -> None:
    """Say what the code of a worker declares; that counts while the worker has a lease.

    `again`: it has said so, and it is said once more only if it was forgotten meanwhile.
    """
    try:
        if again and connection.hexists(keys.SCHEDULES_DECLARED, worker):
            return
        connection.hset(keys.SCHEDULES_DECLARED, worker, words)
    except redis.ResponseError as error:
        if not scripts.is_wrong_type(error):
            raise
        log.error("what the code of the worker %s declares is not announced yet: %s", worker, error)
        return
    try:
        connection.incr(keys.SCHEDULES_ANNOUNCED)
    except redis.ResponseError:  # no number stands there: somebody else wrote it
        connection.set(keys.SCHEDULES_ANNOUNCED, int(time.time()))
    transitions.publish_due(connection, "", "declared")


class Declarations:
    """Makes the stored schedules those that the code of running workers declares.

    If versions of the code differ, the worker that started last is right about what it declares. A schedule that none
    declares any more is withdrawn, and goes on where it was if one does again.
    """

    def __init__(self, connection: redis.Redis):
        self.connection = connection
        self.known: Any = None  # what was declared, and by whom, when all was last compared
        self.compared = 0.0  # when that was, in monotonic time

    def reconcile(self) -> Iterator[None]:
        """In steps of a few milliseconds. As long as nothing else is declared, the schedules are compared once in
        `COMPARE_SECONDS` only, for a stranger may have changed them."""
        counter, workers, now = scripts.read_together(
            self.connection,
            [("GET", keys.SCHEDULES_ANNOUNCED), ("HKEYS", keys.SCHEDULES_DECLARED), ("TIME",)],
        )
        said = set(workers) if isinstance(workers, list) else set()
        live: set[Any] = set(self.connection.zrangebyscore(keys.LEASES, now[0], "+inf")) & said
        seen = repr(counter), frozenset(said), frozenset(live)
        if seen == self.known and time.monotonic() - self.compared < COMPARE_SECONDS:
            return
        if said - live:
            self.connection.hdel(keys.SCHEDULES_DECLARED, *(said - live))
        if live:  # else there is no code that could tell
            yield from self._compare(live, now[0])
        self.known, self.compared = (seen[0], frozenset(live), frozenset(live)), time.monotonic()

    def _compare(self, workers: Iterable[bytes], now: float) -> Iterator[None]:
        spoken = []
        for worker in workers:
            spoken.append(self._words_of(worker))
            yield
        wanted: dict[str, dict[str, Any]] = {}
        for _, declared_there in sorted(
            (words for words in spoken if words), key=lambda words: words[0]
        ):
            wanted.update(declared_there)
        stored = {decode(name) for name in self.connection.zrange(keys.SCHEDULES, 0, -1)}
        names = sorted(stored | wanted.keys())
        for start in range(0, len(names), COMPARE_BATCH_SCHEDULES):
            yield
            for name in changed_schedules(
                self.connection, names[start : start + COMPARE_BATCH_SCHEDULES], wanted, now
            ):
                found = read(self.connection, [name]).get(name)
                if name in wanted:
                    _store_or_log(self.connection, wanted[name], found)
                elif (
                    found and None not in spoken
                ):  # those that cannot be read may declare what the others do not
                    _undeclare(self.connection, found, now)
                yield

    def _words_of(self, worker: bytes) -> tuple[float, dict[str, dict[str, Any]]] | None:
        """When a worker started, and what its code declares, by name; None if that cannot be read."""
        said: Any = self.connection.hget(keys.SCHEDULES_DECLARED, worker) or b""
        try:
            if sum(map(said.count, (b"[", b"{", b","))) > DECLARED_MAX_PARTS:
                raise ValueError("so many schedules no code declares")
            words = json.loads(said)
            return float(words["started"]), {str(one["name"]): one for one in words["schedules"]}
        except (ValueError, TypeError, LookupError, RecursionError):
            log.error(
                "what the code of the worker %s declares cannot be read; it is asked again",
                decode(worker),
            )
            self.connection.hdel(keys.SCHEDULES_DECLARED, worker)
            return None


def reconcile(connection: redis.Redis) -> None:
    """All steps of `Declarations.reconcile`, with everything compared."""
    for _ in Declarations(connection).reconcile():
        pass


def changed_schedules(
    connection: redis.Redis, names: list[str], wanted: dict[str, dict[str, Any]], now: float
) -> list[str]:
    """Those of these schedules that are not stored as they are `wanted`: found without reading them whole."""
    replies = scripts.read_together(
        connection,
        [
            command
            for name in names
            for command in (
                (
                    "HMGET",
                    keys.schedule(name),
                    "source",
                    "state",
                    "digest",
                    "rule",
                    "changed",
                ),
                ("HSTRLEN", keys.schedule_job(name), "data"),
                ("ZSCORE", keys.SCHEDULES, name),
            )
        ],
    )
    found = []
    for name, own, data, due in zip(names, replies[::3], replies[1::3], replies[2::3], strict=True):
        if not isinstance(own, list):
            own = [None] * 5  # somebody else wrote there
        if due is None and own[0] is not None:
            connection.zadd(
                keys.SCHEDULES, {name: 1}, nx=True
            )  # its place was lost; the tick finds out when it is due
        one = wanted.get(name)
        if one is None:
            right = own[0] != b"code" or _is_undeclared(own, now)
        else:
            told = [str(one.get("digest")).encode(), str(one.get("rule")).encode()]
            right = own[0] == b"code" and own[1] != b"withdrawn" and own[2:4] == told and data > 0
        if not right:
            found.append(name)
    return found


def _is_undeclared(own: list[Any], now: float) -> bool:
    """Whether a schedule is withdrawn, and not for so long that it is to be forgotten."""
    try:
        return own[1] == b"withdrawn" and float(own[4]) >= now - UNDECLARED_SECONDS
    except (TypeError, ValueError):
        return False


def _store_or_log(connection: redis.Redis, one: dict[str, Any], found: Schedule | None) -> None:
    name = str(one["name"])
    try:
        Rule.from_json(one["rule"])
        if found or _make_room(connection, name):
            _store_declared(connection, one, found)
    except redis.ResponseError as error:
        if not scripts.is_wrong_type(error):
            raise
        log.error("the declared schedule %s is not stored: %s", name, error)
    except (
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        RecursionError,
        redis.DataError,
    ) as error:
        # of another version of ours, or of a stranger
        log.error("the declared schedule %s is not stored: %s", name, error)


def _make_room(connection: redis.Redis, name: str) -> bool:
    """Remove a schedule of the code that cannot be read, for the code says what it is; whether there is none now."""
    source, revision = connection.hmget(keys.schedule(name), "source", "revision")
    if source is None and revision is None:
        return True
    log.error(
        "the schedule %s in Redis cannot be read; %s",
        name,
        "it is stored anew"
        if source == b"code"
        else f"remove it with: rqjobs schedules remove {name}",
    )
    return source == b"code" and write(connection, name, revision, "", "remove", {})


def _store_declared(connection: redis.Redis, one: dict[str, Any], found: Schedule | None) -> None:
    name, rule = check_name(one["name"]), Rule.from_json(one["rule"])
    if found and found.state == "withdrawn":
        ticks = found.before == "active" and found.next
        due = (
            repr(ticks.timestamp() + jitter(found.rule, name, int(ticks.timestamp())))
            if ticks
            else "never"
        )
        write(connection, name, found.revision, due, "same", {"state": found.before})
        found = read(connection, [name]).get(name)
    if found and found.source != "code":
        log.error(
            "the schedule %s of %s is not stored: one of that name was added at run time",
            name,
            one["function"],
        )
    elif found is None or (found.digest, found.rule.to_json()) != (one["digest"], rule.to_json()):
        fields = {field: value.encode("latin-1") for field, value in one["fields"].items()}
        made = JobTemplate(one["function"], one["queue"], fields, one["digest"])
        if save(connection, name, rule, made, "code", found):
            log.warning(
                "the schedule %s is %s: %s", name, "changed" if found else "new", describe(rule)
            )


def _undeclare(connection: redis.Redis, schedule: Schedule, now: float) -> None:
    if schedule.state != "withdrawn":
        before = {"state": "withdrawn", "before": schedule.state, "changed": repr(now)}
        if write(connection, schedule.name, schedule.revision, "never", "same", before):
            log.warning(
                "the schedule %s rests: no running worker declares it any more", schedule.name
            )
    elif schedule.changed.timestamp() < now - UNDECLARED_SECONDS:
        write(connection, schedule.name, schedule.revision, "", "remove", {})
