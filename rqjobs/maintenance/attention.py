"""What needs attention: findings from an overview, each with the action that mends it.

The home page, the terminal, the API and the alerts show the same findings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rqjobs import connection, rates
from rqjobs.alerts import NEW_GROUP_SECONDS
from rqjobs.broker.counters import Kind
from rqjobs.failed import Group
from rqjobs.maintenance.doctor import Level, server_findings
from rqjobs.overview import Overview
from rqjobs.policies.failures import POISON_ERROR
from rqjobs.stats import QueueStats

MEMORY_FULL_RATIO = 0.98  # of maxmemory; at about this share Redis refuses writes
MAX_PER_KIND = 4  # findings of one kind; the rest are counted together
GROWING_OLDEST_SECONDS = 60  # the first job of a queue that grows has waited for this long
STEADY_SECONDS = 60 * rates.RATE_MINUTES  # a rate is that of now if the first job waits so long
SLOW_SECONDS = 3600  # a queue that takes longer to empty is a finding
RISING = 1.05  # the wait of a new job is longer than that of the oldest by this factor, if it rises


class Do(Enum):
    """What mends a finding: a page to open, a button to press, or a command to run."""

    OPEN_FAILURES = "open failures"
    OPEN_GROUP = "open group"
    OPEN_QUEUE = "open queue"
    OPEN_WORKERS = "open workers"
    OPEN_SCHEDULES = "open schedules"
    OPEN_REDIS = "open redis"
    OPEN_ALERTS = "open alerts"
    RESUME_WORKERS = "resume workers"
    RESUME_QUEUE = "resume queue"
    RESUME_FUNCTION = "resume function"
    RUN = "run"


@dataclass(frozen=True)
class Action:
    """`name`: of the group, queue or function; or the command."""

    do: Do
    label: str
    name: str = ""

    @property
    def command(self) -> str | None:
        """The command that mends it; None if it takes a page or the name of a pause."""
        return self.name if self.do in (Do.RUN, Do.RESUME_WORKERS) else None


@dataclass(frozen=True)
class Finding:
    """`key` stays the same as long as the finding is about the same thing.

    The texts contain names from Redis: show them, but do not trust them.
    """

    key: str
    level: Level
    title: str
    detail: str
    action: Action


def findings(overview: Overview) -> list[Finding]:
    """What needs attention, the most serious first. Empty if all is well.

    The alerts come before everything else: somebody has asked for them.
    """
    found = [
        *_alerts(overview),
        *_workers(overview),
        *_redis(overview),
        *_poison(overview),
        *_failures(overview),
        *_orphans(overview),
        *_slow_queues(overview),
        *_scheduler(overview),
        *_pauses(overview),
    ]
    return sorted(found, key=lambda finding: finding.level is not Level.LOSS)


def verdict(found: list[Finding]) -> str:
    """The answer to "is all well?" in one line."""
    if not found:
        return "All is well"
    serious = sum(finding.level is Level.LOSS for finding in found)
    number = f"{len(found)} things need" if len(found) > 1 else "1 thing needs"
    if not serious:
        return f"Running; {number} a look"
    return f"{number} attention"


def count(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 job", "1,200 jobs"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {plural or noun + 's'}"


def duration(seconds: float | None) -> str:
    """A duration in one unit, for people: "45 s", "12 min", "3 h", "5 d"; "" for None."""
    if seconds is None:
        return ""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:,.0f} d"


def per_minute(number: float) -> str:
    """A number of jobs in a minute, for people."""
    return f"{number:.1f}" if 0 < number < 99.95 else f"{number:,.0f}"


def _alerts(overview: Overview) -> Iterator[Finding]:
    """The alerts that fire, the newest first."""
    action = Action(Do.OPEN_ALERTS, "See the alerts")
    for alert in overview.alerts[:MAX_PER_KIND]:
        since = duration(max(overview.seconds - alert.since, 0))
        detail = f"For {since}: {alert.message}"
        yield Finding(f"alert {alert.name}", Level.LOSS, f"Alert {alert.name}", detail, action)
    if len(overview.alerts) > MAX_PER_KIND:
        title = count(len(overview.alerts) - MAX_PER_KIND, "more alert")
        yield Finding("alerts", Level.LOSS, title, "", action)


def _workers(overview: Overview) -> Iterator[Finding]:
    """Jobs that no worker will run."""
    snapshot = overview.snapshot
    waiting = sum(queue.queued + queue.scheduled for queue in snapshot.queues)
    if not any(worker.alive for worker in snapshot.workers):
        if waiting:
            detail = f"{count(waiting, 'job')} waiting, and no worker is running."
            action = Action(Do.RUN, "Start one", "rqjobs worker")
            yield Finding("no worker", Level.LOSS, "No worker", detail, action)
        return
    names = set(snapshot.unserved)
    unserved = [queue for queue in snapshot.queues if queue.name in names]
    for queue in unserved[:MAX_PER_KIND]:
        yield Finding(
            f"unserved {queue.name}",
            Level.LOSS,
            f"No worker for {queue.name}",
            f"Jobs are waiting in {queue.name} ({queue.queued + queue.scheduled:,}), but no worker "
            f"serves this queue.",
            Action(Do.RUN, "Start one", f"rqjobs worker {queue.name}"),
        )
    if len(unserved) > MAX_PER_KIND:
        yield Finding(
            "unserved",
            Level.LOSS,
            f"No worker for {count(len(unserved) - MAX_PER_KIND, 'more queue')}",
            "Jobs are waiting in them.",
            Action(Do.OPEN_QUEUE, "See the queues"),
        )


def is_full(memory: dict[str, Any]) -> bool:
    """Whether Redis refuses writes, by a reply to INFO memory, or is about to."""
    limit = memory.get("maxmemory")
    if not limit or memory.get("maxmemory_policy") != "noeviction":
        return False
    used: float = memory.get("used_memory", 0) - memory.get("mem_not_counted_for_evict", 0)
    return bool(used >= MEMORY_FULL_RATIO * limit)


def _redis(overview: Overview) -> Iterator[Finding]:
    """What the doctor says about memory and persistence."""
    if not overview.memory and not overview.persistence:
        return  # the Redis user may not read them
    if is_full(overview.memory):
        full = connection.REFUSAL_MEANINGS["OOM"]
        action = Action(Do.OPEN_REDIS, "See Redis", "rqjobs doctor")
        yield Finding("redis full", Level.LOSS, "Redis", full, action)
    for finding in server_findings({**overview.memory, **overview.persistence}):
        if finding.level is not Level.OK:
            action = Action(Do.OPEN_REDIS, "See Redis", "rqjobs doctor")
            yield Finding(
                f"redis {finding.message[:20]}", finding.level, "Redis", finding.message, action
            )


def _poison(overview: Overview) -> Iterator[Finding]:
    number = overview.window.hour().total(Kind.POISON)
    if not number:
        return
    groups = [group.id for group in overview.groups if group.error == POISON_ERROR and group.jobs]
    action = Action(Do.OPEN_FAILURES, "See failures")
    if groups:
        action = Action(Do.OPEN_GROUP, "See the jobs", groups[0])
    title = "A job killed its process"
    detail = "Its process died three times, so it failed instead of running again."
    if number > 1:
        title = f"{count(number, 'job')} killed their processes"
        detail = "The process of each died three times, so they failed instead of running again."
    yield Finding("poison", Level.LOSS, title, detail, action)


def _failures(overview: Overview) -> Iterator[Finding]:
    """Groups of failures whose first failure was in the last hour, then those that go on."""
    recent = [
        group
        for group in overview.groups
        if group.last_hour and group.jobs and not group.is_ignored
    ]
    begin = overview.seconds - NEW_GROUP_SECONDS
    recent.sort(key=lambda group: (group.first_seen.timestamp() < begin, -group.last_hour))
    for group in recent[:MAX_PER_KIND]:
        is_new = group.first_seen.timestamp() >= begin
        failures = count(group.last_hour, "failure")
        yield Finding(
            f"failures {group.id}",
            Level.LOSS if is_new or group.has_come_back else Level.NOTE,
            f"{_news(group, is_new)}{group.error} in {group.function}",
            f"{failures} in the last hour{': ' + group.message if group.message else ''}",
            Action(Do.OPEN_GROUP, "See the jobs", group.id),
        )
    if len(recent) > MAX_PER_KIND:
        title = f"{count(len(recent) - MAX_PER_KIND, 'more group')} of failures in the last hour"
        action = Action(Do.OPEN_FAILURES, "See failures")
        yield Finding("failures", Level.NOTE, title, "", action)


def _news(group: Group, is_new: bool) -> str:
    if group.has_come_back:
        return "Came back: "
    return "New: " if is_new else ""


def _orphans(overview: Overview) -> Iterator[Finding]:
    """Claims of dead workers. A live worker takes them back within seconds."""
    dead = [worker.name for worker in overview.snapshot.workers if not worker.alive and worker.ours]
    number = sum(overview.claimed.get(name, 0) for name in dead)
    if number:
        yield Finding(
            "orphans",
            Level.NOTE,
            f"{count(number, 'job')} of a dead worker",
            "A running worker puts them back into their queues within half a minute; without one, "
            "run the command.",
            Action(Do.RUN, "Take them back", "rqjobs recover"),
        )


def is_growing(queue: QueueStats, window: rates.Window) -> bool:
    """Whether the queue grows, and its first job has waited for a while."""
    is_old = (queue.oldest or 0) >= GROWING_OLDEST_SECONDS
    return bool(queue.queued) and is_old and window.grows(queue.name)


def _slow_queues(overview: Overview) -> Iterator[Finding]:
    """Queues whose first job gets older, although a worker of ours serves them: those that stand
    still, then those that grow, the fastest first, then those that take long to empty.
    """
    snapshot = overview.snapshot
    if snapshot.suspended:
        return
    paused = {pause.name for pause in snapshot.paused if pause.kind == "queue"}
    served = {
        name
        for worker in snapshot.workers
        if worker.alive and worker.ours
        for name in worker.queues
    }
    found = []
    for queue in snapshot.queues:
        if queue.queued and queue.name in served - paused:
            finding = _standstill(queue, overview) or _growing(queue, overview)
            finding = finding or _slow(queue, overview)
            if finding:
                rate = overview.window.rate(queue.name)
                found.append((rate.outgoing > 0, rate.outgoing - rate.incoming, finding))
    found.sort(key=lambda one: one[:2])
    for *_, finding in found[:MAX_PER_KIND]:
        yield finding
    if len(found) > MAX_PER_KIND:
        title = f"{count(len(found) - MAX_PER_KIND, 'more queue')} whose first job gets older"
        yield Finding("slow", Level.NOTE, title, "", Action(Do.OPEN_QUEUE, "See the queues"))


def _standstill(queue: QueueStats, overview: Overview) -> Finding | None:
    """No run of the queue has ended since its first job waits."""
    is_counted = overview.window.rate("") == rates.Rate()  # else not each queue has its own counts
    is_old = (queue.oldest or 0) >= STEADY_SECONDS
    if not is_old or not is_counted or overview.window.rate(queue.name).outgoing:
        return None
    return Finding(
        f"still {queue.name}",
        Level.NOTE,
        f"The queue {queue.name} stands still",
        f"{_waiting(queue)}. No run of its jobs has ended in the last {rates.RATE_MINUTES} minutes, "
        f"although {count(queue.workers, 'worker')} may take them. See what the workers run.",
        Action(Do.OPEN_WORKERS, "See the workers"),
    )


def _growing(queue: QueueStats, overview: Overview) -> Finding | None:
    if not is_growing(queue, overview.window):
        return None
    rate = overview.window.rate(queue.name)
    growth = rate.incoming - rate.outgoing
    return Finding(
        f"growing {queue.name}",
        Level.NOTE,
        f"The queue {queue.name} grows by {per_minute(growth)} a minute",
        f"{per_minute(rate.incoming)} jobs a minute come in and {per_minute(rate.outgoing)} go out. "
        f"{_waiting(queue)}; at this rate {queue.queued + 60 * growth:,.0f} in an hour. Start more "
        f"workers, or see what is enqueued.",
        Action(Do.OPEN_QUEUE, "See the queue", queue.name),
    )


def _slow(queue: QueueStats, overview: Overview) -> Finding | None:
    """Jobs do leave the queue, but those behind its first one will have waited for longer."""
    oldest = queue.oldest or 0
    if oldest < STEADY_SECONDS:
        return None
    rate = overview.window.rate(queue.name)
    if not rate.outgoing:
        return None
    wait = queue.queued / rate.outgoing * 60  # of a job that is enqueued now
    if wait < max(SLOW_SECONDS, RISING * oldest):
        return None
    return Finding(
        f"slow {queue.name}",
        Level.NOTE,
        f"The first job of {queue.name} gets older",
        f"{_waiting(queue)}. {per_minute(rate.outgoing)} jobs a minute go out, so at this rate a job "
        f"that is enqueued now waits for {duration(wait)}. Start more workers.",
        Action(Do.OPEN_QUEUE, "See the queue", queue.name),
    )


def _waiting(queue: QueueStats) -> str:
    verb = "waits" if queue.queued == 1 else "wait"
    return f"{count(queue.queued, 'job')} {verb}, the first for {duration(queue.oldest or 0)}"


def _scheduler(overview: Overview) -> Iterator[Finding]:
    if overview.has_scheduler:
        if overview.overdue_schedules:
            title = f"{count(overview.overdue_schedules, 'schedule')} overdue"
            detail = "The log of the scheduler gives the reason."
            action = Action(Do.OPEN_SCHEDULES, "See the schedules")
            yield Finding("overdue", Level.NOTE, title, detail, action)
        return
    delayed = sum(queue.scheduled for queue in overview.snapshot.queues)
    waiting = [
        count(number, noun)
        for number, noun in ((overview.schedules, "schedule"), (delayed, "delayed job"))
        if number
    ]
    if waiting:
        yield Finding(
            "no scheduler",
            Level.LOSS,
            "No scheduler",
            f"{' and '.join(waiting)}, and nothing moves them.",
            Action(Do.RUN, "Start a worker", "rqjobs worker"),
        )


def _pauses(overview: Overview) -> Iterator[Finding]:
    if overview.snapshot.suspended:
        yield Finding(
            "suspended",
            Level.NOTE,
            "RQ is suspended",
            "By rq suspend: no worker begins a job.",
            Action(Do.RESUME_WORKERS, "Resume", "rq resume"),
        )
    for pause in overview.snapshot.paused[: 2 * MAX_PER_KIND]:
        do = Do.RESUME_QUEUE if pause.kind == "queue" else Do.RESUME_FUNCTION
        detail = "None of its jobs begins."
        if pause.by:
            detail = f"Paused by {pause.by}: none of its jobs begins."
        yield Finding(
            f"paused {pause.kind} {pause.name}",
            Level.NOTE,
            f"The {pause.kind} {pause.name} is paused",
            detail,
            Action(do, "Resume", pause.name),
        )
