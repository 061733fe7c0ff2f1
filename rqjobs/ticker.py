"""The clock's side of schedules: ticks make jobs, what the code declares is stored, and outcomes are remembered."""

from __future__ import annotations

import json
import logging
import math
import time
from typing import Any

import redis

from rqjobs import catalog, ledger
from rqjobs.cronline import ScheduleError
from rqjobs.ledger import text
from rqjobs.rules import Rule, declared
from rqjobs.timetable import SCHEDULES, Call, Schedule, call, check_name, jitter, make, put, read, store, when

log = logging.getLogger("rqjobs")
MOST = 1000  # ticks that missed="all" makes up for
LATE = 10  # seconds after which missed="skip" takes a tick for missed; longer than another clock needs to take over
AT_ONCE = 100  # schedules
LONG = 0.1  # seconds; after that the clock sees to its locks and its queues before it goes on
AGAIN = 5  # seconds after which a tick that Redis refused is tried again
KEPT_WITHDRAWN = 86_400  # seconds
DECLARED = f"{SCHEDULES}:declared"
OPEN = f"{SCHEDULES}:open"
ENDED = ("finished", "failed", "stopped", "canceled")

_NOTE = """
if redis.call('EXISTS', KEYS[1]) == 1 then redis.pcall('HSET', KEYS[2], ARGV[1], ARGV[2]) end
redis.call('HDEL', KEYS[3], ARGV[1])
"""


def tick(connection: redis.Redis) -> float | None:
    """Make the jobs of ticks that are due, of up to `AT_ONCE` schedules and for about `LONG`; returns when (Unix
    seconds, by Redis's clock) it is worth while again, None if never."""
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
        except redis.ResponseError as error:  # one must not stop the others
            log.error("the schedule %s: %s", name, error)
            done = False
        if not done:
            connection.zadd(SCHEDULES, {name: now + AGAIN}, xx=True)
        if time.monotonic() > began + LONG:
            return now
    later: Any = connection.zrangebyscore(SCHEDULES, f"({now}", "(+inf", 0, 1, withscores=True)
    return now if len(due) == AT_ONCE else later[0][1] if later else None


def _tick(connection: redis.Redis, schedule: Schedule, now: float) -> bool:
    assert schedule.next
    rule, name, first = schedule.rule, schedule.name, int(schedule.next.timestamp())
    jobs, last = due_ticks(rule, name, first, now)
    if last is None and first + jitter(rule, name, first) > now:  # its score is not that of its rule
        put(connection, name, schedule.revision, repr(first + jitter(rule, name, first)), "same", {})
        return True
    last = first if last is None else last
    missed = rule.count(first, last) - len(jobs)
    following = rule.after(last)
    made, skipped = make(
        connection, name, schedule.revision, schedule.queue, str(first), following,
        0.0 if following is None else following + jitter(rule, name, following), rule.overlap, missed, last,
        [(tick, job_id(name, schedule.revision, tick)) for tick in jobs])
    if made == -2:
        log.error("the schedule %s waits: the key of its queue %s, of its runs or of their outcomes, or rq:queues, is "
                  "of the wrong type", name, schedule.queue)
    elif made >= 0 and (missed or skipped):
        log.warning("the schedule %s: %d ticks were missed and make no job, %d were skipped because a job before has "
                    "not ended", name, missed, skipped)
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
            name = rule.name or function_name.replace(".", "-") + (f"-{number}" if number > 1 else "")
            if check_name(name) in found:
                raise ScheduleError(f"two schedules are called {name!r}: of {found[name]['function']} and of "
                                    f"{function_name}; give one of them a name=…")
            made = call(function, rule.args, rule.kwargs)
            fields = {field: text_of(value) for field, value in made.fields.items()}
            found[name] = {"name": name, "rule": rule.dump(), "function": made.function, "queue": made.queue,
                           "digest": made.digest, "fields": fields}
    return list(found.values())


def text_of(value: Any) -> str:
    """Bytes as characters of the same numbers, so that JSON can carry them."""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value).encode().decode("latin-1")


def statement(connection: redis.Redis) -> str:
    """What `announce` says for a worker that starts now. Raises as `declarations` does."""
    return json.dumps({"schedules": declarations(), "started": ledger.clock(connection)})


def announce(connection: redis.Redis, worker: str, words: str, again: bool = False) -> None:
    """Say what the code of a worker declares; that counts while the worker has a lease.

    `again`: it has said so, and it is said once more only if it was forgotten meanwhile.
    """
    if again and connection.hexists(DECLARED, worker):
        return
    connection.hset(DECLARED, worker, words)
    ledger.announce_due(connection, "", "declared")


def reconcile(connection: redis.Redis) -> None:
    """Make the stored schedules those that the code of running workers declares.

    If versions of the code differ, the worker that started last is right about what it declares. A schedule that none
    declares any more is withdrawn, and goes on where it was if one does again.
    """
    now = ledger.clock(connection)
    said = {text(worker): words for worker, words in connection.hgetall(DECLARED).items()}
    live = {text(worker) for worker in connection.zrangebyscore(ledger.WORKERS, now, "+inf")}
    gone = said.keys() - live
    if gone:
        connection.hdel(DECLARED, *gone)
    if not said.keys() & live:
        return  # there is no code that could tell
    wanted: dict[str, dict[str, Any]] = {}
    spoken: list[tuple[float, dict[str, Any]]] = []
    for worker in said.keys() & live:
        try:
            words = json.loads(said[worker])
            spoken.append((float(words["started"]), {str(one["name"]): one for one in words["schedules"]}))
        except (ValueError, TypeError, LookupError, RecursionError):
            log.error("what the code of the worker %s declares cannot be read; it is asked again", worker)
            connection.hdel(DECLARED, worker)
    for _, declared_there in sorted(spoken, key=lambda words: words[0]):
        wanted.update(declared_there)
    names = {text(name) for name in connection.zrange(SCHEDULES, 0, -1)}
    found = read(connection, names)
    for name, one in wanted.items():
        if name in names and name not in found:
            log.error("the schedule %s in Redis cannot be read; remove it with: rqjobs schedules remove %s", name, name)
        else:
            try:
                _adopt(connection, one, found.get(name))
            except (ValueError, LookupError, AttributeError, TypeError, RecursionError, redis.DataError) as error:
                # of another version of ours, or of a stranger
                log.error("the declared schedule %s is not stored: %s", name, error)
    if len(spoken) < len(said.keys() & live):
        return  # those that cannot be read may declare what the others do not
    for name, schedule in found.items():
        if schedule.source == "code" and name not in wanted:
            _withdraw(connection, schedule, now)


def _adopt(connection: redis.Redis, one: dict[str, Any], found: Schedule | None) -> None:
    name, rule = check_name(one["name"]), Rule.load(one["rule"])
    if found and found.state == "withdrawn":
        ticks = found.before == "active" and found.next
        due = repr(ticks.timestamp() + jitter(found.rule, name, int(ticks.timestamp()))) if ticks else "never"
        put(connection, name, found.revision, due, "same", {"state": found.before})
        found = read(connection, [name]).get(name)
    if found and found.source != "code":
        log.error("the schedule %s of %s is not stored: one of that name was added at run time", name, one["function"])
    elif found is None or (found.digest, found.rule.dump()) != (one["digest"], rule.dump()):
        fields = {field: value.encode("latin-1") for field, value in one["fields"].items()}
        made = Call(one["function"], one["queue"], fields, one["digest"])
        if store(connection, name, rule, made, "code", found):
            log.warning("the schedule %s is %s: %s", name, "changed" if found else "new", rule.sentence)


def _withdraw(connection: redis.Redis, schedule: Schedule, now: float) -> None:
    if schedule.state != "withdrawn":
        before = {"state": "withdrawn", "before": schedule.state, "changed": repr(now)}
        if put(connection, schedule.name, schedule.revision, "never", "same", before):
            log.warning("the schedule %s rests: no running worker declares it any more", schedule.name)
    elif schedule.changed.timestamp() < now - KEPT_WITHDRAWN:
        put(connection, schedule.name, schedule.revision, "", "remove", {})


# What became of their jobs


def note_outcomes(connection: redis.Redis) -> None:
    """Remember how jobs of schedules ended, before Redis forgets them (`result_ttl`)."""
    if connection.type(OPEN) != b"hash":  # there are none, or somebody else wrote there: `tick.lua` passes over it
        return
    waiting = [(text(job_id), text(name)) for job_id, name in connection.hgetall(OPEN).items()]
    with connection.pipeline(transaction=False) as pipe:
        for job_id, _ in waiting:
            pipe.hmget(f"rq:job:{job_id}", "status", "ended_at")
        replies = pipe.execute(raise_on_error=False)
    remember = connection.register_script(_NOTE)
    for (job_id, name), reply in zip(waiting, replies, strict=True):
        status, ended = (text(word or b"") for word in reply) if isinstance(reply, list) else ("", "")
        if status in ("", *ENDED):
            key = f"rqjobs:schedule:{name}"
            words = f"{status or _of_the_vanished(connection, key, job_id)} {ended}"
            remember(keys=[key, f"{key}:outcomes", OPEN], args=[job_id, words.strip()])


def _of_the_vanished(connection: redis.Redis, key: str, job_id: str) -> str:
    queue = text(connection.hget(key, "queue") or b"")
    return next((status for status in ("finished", "failed", "canceled")
                 if connection.zscore(f"rq:{status}:{queue}", job_id) is not None), "unknown")
