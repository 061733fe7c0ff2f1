"""The clock's side of schedules: ticks make jobs, what the code declares is stored, and outcomes are remembered."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import redis

from rqjobs import catalog, ledger
from rqjobs.cronline import ScheduleError
from rqjobs.ledger import text
from rqjobs.rules import Rule, declared
from rqjobs.timetable import (
    SCHEDULES,
    Call,
    Schedule,
    call,
    check_name,
    jitter,
    make,
    put,
    read,
    store,
    when,
)

log = logging.getLogger("rqjobs")
MOST = 1000  # ticks that missed="all" makes up for
LATE = 10  # seconds after which missed="skip" takes a tick for missed; longer than another clock needs to take over
AT_ONCE = 25  # schedules
AGAIN = 5  # seconds after which a tick that Redis refused is tried again
KEPT_WITHDRAWN = 86_400  # seconds
COMPARE_SECONDS = 60  # between two looks at whether what is stored is what is declared, if nothing says that it is not
COMPARED_AT_ONCE = 100  # schedules
OPEN_AT_ONCE = 500  # jobs
DECLARED_MAX_PARTS = 2_000_000  # of the JSON in which a worker says what its code declares; each takes memory when read
DECLARED = f"{SCHEDULES}:declared"
ANNOUNCED = f"{SCHEDULES}:announced"
OPEN = f"{SCHEDULES}:open"


def tick(connection: redis.Redis, seconds: float = 60) -> float | None:
    """Make the jobs of ticks that are due, of up to `AT_ONCE` schedules and for about so many seconds; returns when
    (Unix seconds, by Redis's clock) it is worth while again, None if never."""
    began, now = time.monotonic(), ledger.clock(connection)
    due: Any = connection.zrangebyscore(SCHEDULES, "-inf", now, 0, AT_ONCE)
    found = read(connection, map(text, due))
    for member in due:
        name = text(member)
        if name not in found or name.encode() != member:
            log.error("the schedule %s in Redis cannot be read, and does not tick", name)
            connection.zadd(SCHEDULES, {member: "+inf"}, xx=True)
            continue
        try:
            done = _tick(connection, found[name], now)
        except (redis.ConnectionError, redis.TimeoutError):
            raise
        except Exception as error:  # of what a stranger wrote; one must not stop the others
            log.error("the schedule %s: %s: %s", name, type(error).__name__, error)
            done = False
        if not done:
            connection.zadd(SCHEDULES, {name: now + AGAIN}, xx=True)
        if time.monotonic() > began + seconds:
            return now
    later: Any = connection.zrangebyscore(SCHEDULES, f"({now}", "(+inf", 0, 1, withscores=True)
    return now if len(due) == AT_ONCE else later[0][1] if later else None


def _tick(connection: redis.Redis, schedule: Schedule, now: float) -> bool:
    assert schedule.next
    rule, name, first = schedule.rule, schedule.name, int(schedule.next.timestamp())
    jobs, last = due_ticks(rule, name, first, now)
    if (
        last is None and first + jitter(rule, name, first) > now
    ):  # its score is not that of its rule
        put(
            connection, name, schedule.revision, repr(first + jitter(rule, name, first)), "same", {}
        )
        return True
    last = first if last is None else last
    missed = rule.count(first, last) - len(jobs)
    following = rule.after(last)
    made, skipped = make(
        connection,
        name,
        schedule.revision,
        schedule.queue,
        str(first),
        following,
        0.0 if following is None else following + jitter(rule, name, following),
        rule.overlap,
        missed,
        last,
        [(tick, job_id(name, schedule.revision, tick)) for tick in jobs],
    )
    if made == -2:
        log.error(
            "the schedule %s waits: the key of its queue %s, of its runs or of their outcomes, or rq:queues, is "
            "of the wrong type",
            name,
            schedule.queue,
        )
    elif made >= 0 and (missed or skipped):
        log.warning(
            "the schedule %s: %d ticks were missed and make no job, %d were skipped because a job before has "
            "not ended",
            name,
            missed,
            skipped,
        )
    return made != -2


def job_id(name: str, revision: int, tick: int) -> str:
    """The id of the one job of this tick."""
    return f"{name}-r{revision}-{when(tick):%Y%m%dT%H%M%S}"


def due_ticks(rule: Rule, name: str, first: int, now: float) -> tuple[list[int], int | None]:
    """The ticks from `first` on that are due and make a job, and the last one that is due (None if none is)."""
    skip, most = rule.missed == "skip", 1 if rule.missed == "once" else MOST
    # a tick since then may have to wait for its jitter, or is not too late for "skip"
    recent = max(first, math.ceil(now - rule.jitter - (LATE if skip else 0)))
    jobs = rule.latest(first, recent - 1, 1 if skip else most) if recent > first else []
    last = jobs[-1] if jobs else None
    if skip:
        jobs = []
    due = 0.0
    for tick in rule.between(recent, now):
        due = max(due, tick + jitter(rule, name, tick))  # one comes after the other
        if due > now:
            break
        last = tick
        if not skip or now - due <= LATE:
            jobs.append(tick)
    return jobs[-most:], last


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
            made = call(function, rule.args, rule.kwargs)
            fields = {field: text_of(value) for field, value in made.fields.items()}
            found[name] = {
                "name": name,
                "rule": rule.dump(),
                "function": made.function,
                "queue": made.queue,
                "digest": made.digest,
                "fields": fields,
            }
    return list(found.values())


def text_of(value: Any) -> str:
    """Bytes as characters of the same numbers, so that JSON can carry them."""
    return (
        value.decode("latin-1")
        if isinstance(value, bytes)
        else str(value).encode().decode("latin-1")
    )


def statement(connection: redis.Redis) -> str:
    """What `announce` says for a worker that starts now. Raises as `declarations` does."""
    return json.dumps({"schedules": declarations(), "started": ledger.clock(connection)})


def announce(connection: redis.Redis, worker: str, words: str, again: bool = False) -> None:
    """Say what the code of a worker declares; that counts while the worker has a lease.

    `again`: it has said so, and it is said once more only if it was forgotten meanwhile.
    """
    try:
        if again and connection.hexists(DECLARED, worker):
            return
        connection.hset(DECLARED, worker, words)
    except redis.ResponseError as error:
        if not ledger.wrong_type(error):
            raise
        log.error("what the code of the worker %s declares is not announced yet: %s", worker, error)
        return
    try:
        connection.incr(ANNOUNCED)
    except redis.ResponseError:  # no number stands there: somebody else wrote it
        connection.set(ANNOUNCED, int(time.time()))
    ledger.announce_due(connection, "", "declared")


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
        counter, workers, now = ledger.together(
            self.connection, [("GET", ANNOUNCED), ("HKEYS", DECLARED), ("TIME",)]
        )
        said = set(workers) if isinstance(workers, list) else set()
        live: set[Any] = set(self.connection.zrangebyscore(ledger.WORKERS, now[0], "+inf")) & said
        seen = repr(counter), frozenset(said), frozenset(live)
        if seen == self.known and time.monotonic() - self.compared < COMPARE_SECONDS:
            return
        if said - live:
            self.connection.hdel(DECLARED, *(said - live))
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
        stored = {text(name) for name in self.connection.zrange(SCHEDULES, 0, -1)}
        names = sorted(stored | wanted.keys())
        for start in range(0, len(names), COMPARED_AT_ONCE):
            yield
            for name in differing(
                self.connection, names[start : start + COMPARED_AT_ONCE], wanted, now
            ):
                found = read(self.connection, [name]).get(name)
                if name in wanted:
                    _adopt_or_tell(self.connection, wanted[name], found)
                elif (
                    found and None not in spoken
                ):  # those that cannot be read may declare what the others do not
                    _withdraw(self.connection, found, now)
                yield

    def _words_of(self, worker: bytes) -> tuple[float, dict[str, dict[str, Any]]] | None:
        """When a worker started, and what its code declares, by name; None if that cannot be read."""
        said: Any = self.connection.hget(DECLARED, worker) or b""
        try:
            if sum(map(said.count, (b"[", b"{", b","))) > DECLARED_MAX_PARTS:
                raise ValueError("so many schedules no code declares")
            words = json.loads(said)
            return float(words["started"]), {str(one["name"]): one for one in words["schedules"]}
        except (ValueError, TypeError, LookupError, RecursionError):
            log.error(
                "what the code of the worker %s declares cannot be read; it is asked again",
                text(worker),
            )
            self.connection.hdel(DECLARED, worker)
            return None


def reconcile(connection: redis.Redis) -> None:
    """All steps of `Declarations.reconcile`, with everything compared."""
    for _ in Declarations(connection).reconcile():
        pass


def differing(
    connection: redis.Redis, names: list[str], wanted: dict[str, dict[str, Any]], now: float
) -> list[str]:
    """Those of these schedules that are not stored as they are `wanted`: found without reading them whole."""
    replies = ledger.together(
        connection,
        [
            command
            for name in names
            for command in (
                (
                    "HMGET",
                    f"rqjobs:schedule:{name}",
                    "source",
                    "state",
                    "digest",
                    "rule",
                    "changed",
                ),
                ("HSTRLEN", f"rqjobs:schedule:{name}:job", "data"),
                ("ZSCORE", SCHEDULES, name),
            )
        ],
    )
    found = []
    for name, own, data, due in zip(names, replies[::3], replies[1::3], replies[2::3], strict=True):
        if not isinstance(own, list):
            own = [None] * 5  # somebody else wrote there
        if due is None and own[0] is not None:
            connection.zadd(
                SCHEDULES, {name: 1}, nx=True
            )  # its place was lost; the tick finds out when it is due
        one = wanted.get(name)
        if one is None:
            right = own[0] != b"code" or _rests(own, now)
        else:
            told = [str(one.get("digest")).encode(), str(one.get("rule")).encode()]
            right = own[0] == b"code" and own[1] != b"withdrawn" and own[2:4] == told and data > 0
        if not right:
            found.append(name)
    return found


def _rests(own: list[Any], now: float) -> bool:
    """Whether a schedule is withdrawn, and not for so long that it is to be forgotten."""
    try:
        return own[1] == b"withdrawn" and float(own[4]) >= now - KEPT_WITHDRAWN
    except (TypeError, ValueError):
        return False


def _adopt_or_tell(connection: redis.Redis, one: dict[str, Any], found: Schedule | None) -> None:
    name = str(one["name"])
    try:
        Rule.load(one["rule"])
        if found or _make_room(connection, name):
            _adopt(connection, one, found)
    except redis.ResponseError as error:
        if not ledger.wrong_type(error):
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
    source, revision = connection.hmget(f"rqjobs:schedule:{name}", "source", "revision")
    if source is None and revision is None:
        return True
    log.error(
        "the schedule %s in Redis cannot be read; %s",
        name,
        "it is stored anew"
        if source == b"code"
        else f"remove it with: rqjobs schedules remove {name}",
    )
    return source == b"code" and put(connection, name, revision, "", "remove", {})


def _adopt(connection: redis.Redis, one: dict[str, Any], found: Schedule | None) -> None:
    name, rule = check_name(one["name"]), Rule.load(one["rule"])
    if found and found.state == "withdrawn":
        ticks = found.before == "active" and found.next
        due = (
            repr(ticks.timestamp() + jitter(found.rule, name, int(ticks.timestamp())))
            if ticks
            else "never"
        )
        put(connection, name, found.revision, due, "same", {"state": found.before})
        found = read(connection, [name]).get(name)
    if found and found.source != "code":
        log.error(
            "the schedule %s of %s is not stored: one of that name was added at run time",
            name,
            one["function"],
        )
    elif found is None or (found.digest, found.rule.dump()) != (one["digest"], rule.dump()):
        fields = {field: value.encode("latin-1") for field, value in one["fields"].items()}
        made = Call(one["function"], one["queue"], fields, one["digest"])
        if store(connection, name, rule, made, "code", found):
            log.warning(
                "the schedule %s is %s: %s", name, "changed" if found else "new", rule.sentence
            )


def _withdraw(connection: redis.Redis, schedule: Schedule, now: float) -> None:
    if schedule.state != "withdrawn":
        before = {"state": "withdrawn", "before": schedule.state, "changed": repr(now)}
        if put(connection, schedule.name, schedule.revision, "never", "same", before):
            log.warning(
                "the schedule %s rests: no running worker declares it any more", schedule.name
            )
    elif schedule.changed.timestamp() < now - KEPT_WITHDRAWN:
        put(connection, schedule.name, schedule.revision, "", "remove", {})


# What became of their jobs


def note_outcomes(connection: redis.Redis) -> None:
    """All steps of `outcomes`."""
    for _ in outcomes(connection):
        pass


def outcomes(connection: redis.Redis) -> Iterator[None]:
    """Remember how jobs of schedules ended, before Redis forgets them (`result_ttl`); in steps of some milliseconds."""
    cursor = b"0"
    while True:
        cursor, *ended = ledger.OUTCOMES.run(connection, [OPEN], [cursor, OPEN_AT_ONCE])
        for job_id, name, status, moment in ended:
            key = f"rqjobs:schedule:{text(name)}"
            words = (
                f"{text(status) or _of_the_vanished(connection, key, text(job_id))} {text(moment)}"
            )
            ledger.NOTE.run(connection, [key, f"{key}:outcomes", OPEN], [job_id, words.strip()])
            yield
        if cursor == b"0":
            return
        yield


def _of_the_vanished(connection: redis.Redis, key: str, job_id: str) -> str:
    reply = ledger.together(connection, [("HGET", key, "queue")])[0]
    queue, statuses = text(reply or b""), ("finished", "failed", "canceled")
    scores = ledger.together(
        connection, [("ZSCORE", f"rq:{status}:{queue}", job_id) for status in statuses]
    )
    return next(
        (
            status
            for status, score in zip(statuses, scores, strict=True)
            if isinstance(score, float)
        ),
        "unknown",
    )
