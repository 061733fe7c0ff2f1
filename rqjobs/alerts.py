"""Alerts without Prometheus: the rules of RQJOBS_ALERTS, and the calls when one begins or is over.

One process at a time observes: the scheduler that runs the schedules, or a web process while there
is none. A script decides in Redis which alerts begin and which are over, and stores the events in
the same step. So a process that dies neither loses an event nor makes it twice. A thread of that
process sends them, in order, with a time limit, and tries a failed call again. An event may arrive
twice, with the same id.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import redis

from rqjobs import config, connection, queues, stats, texts, webhooks
from rqjobs.alert_rules import Rule
from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode

log = logging.getLogger("rqjobs")
OBSERVE_SECONDS = 5.0
ALERTS_LOCK_SECONDS = 30.0
CLEAR_SECONDS = 60  # for which all must be well before an alert is over
RECENT_SECONDS = 300  # for which the alert of a failure, or of another event, lasts
NEW_GROUP_SECONDS = 3600  # a group of failures whose first one is older is not new
DEFAULT_HOLD_SECONDS = {"no_worker": 60, "no_scheduler": 60}
MAX_SINCE_SECONDS = 2**53
MAX_ALERTS = 1000
MAX_EVENTS = 1000  # that wait to be sent; older ones are dropped
MAX_ALERT_GROUPS = 50
MAX_SCHEDULES = 500  # that one observation reads
SEND_SECONDS = 10.0  # for one call
SOCKET_SECONDS = 5.0
MAX_TRIES = 20
FIRST_RETRY_SECONDS = 1.0  # doubled with each failure
LONGEST_RETRY_SECONDS = 300.0
WEBHOOK, JOB = "webhook", "job"  # the channels


@dataclass(frozen=True)
class Alert:
    """An alert that has begun and is not over. `since`: Unix seconds. `subject`: its queue or so."""

    name: str
    rule: str
    subject: str
    message: str
    since: float


@dataclass(frozen=True)
class Observation:
    """An observation for one alert. `count`: a number that only grows; None for a bad state."""

    rule: Rule
    subject: str
    message: str
    count: int | None = None

    def words(self) -> list[Any]:
        """The words for the script."""
        name = f"{self.rule.name}:{self.subject}" if self.subject else self.rule.name
        hold = self.rule.hold
        if hold is None:
            hold = DEFAULT_HOLD_SECONDS.get(self.rule.name, 0)
        about = {"rule": self.rule.name, "subject": self.subject, "message": self.message}
        kind, value = ("level", 1) if self.count is None else ("count", self.count)
        return [name, kind, value, hold, json.dumps(about)]


def firing(connection: redis.Redis) -> list[Alert]:
    """The alerts that have begun and are not over, the newest first. One round trip."""
    (reply,) = scripts.read_together(connection, [("HGETALL", keys.ALERTS)])
    return read_firing(reply)


def read_firing(reply: Any) -> list[Alert]:
    """The alerts in a reply to `HGETALL rqjobs:alerts`; none if the reply is an error."""
    if not isinstance(reply, dict):
        return []
    found = []
    for name, text in reply.items():
        state = _read(text)
        since = state.get("since")
        if isinstance(since, int | float) and since > 0:
            rule, subject, message = (
                str(state.get(field, "")) for field in ("rule", "subject", "message")
            )
            seconds = float(min(since, MAX_SINCE_SECONDS))  # foreign data may be no date
            found.append(Alert(decode(name), rule, subject, message, seconds))
    return sorted(found, key=lambda alert: (-alert.since, alert.name))


def _read(text: Any) -> dict[str, Any]:
    try:
        state = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


# Observing


def update(connection: redis.Redis) -> int:
    """Observe, and let the script decide; returns the number of alerts that began or are over."""
    words = [
        word for found in observe(connection, config.current().alerts) for word in found.words()
    ]
    events = [keys.alert_events(channel) for channel in channels()]
    arguments = [CLEAR_SECONDS, RECENT_SECONDS, MAX_ALERTS, MAX_EVENTS, *words]
    script_keys = [keys.ALERTS, keys.TOTALS, *events]
    return int(scripts.UPDATE_ALERTS.run(connection, script_keys, arguments))


def channels() -> list[str]:
    """The channels that the settings name."""
    settings = config.current()
    ways = {WEBHOOK: settings.alert_webhook, JOB: settings.alert_job}
    return [way for way, target in ways.items() if target]


def observe(connection: redis.Redis, rules: tuple[Rule, ...]) -> list[Observation]:
    """The bad states of now, and all counts; in at most four round trips."""
    if not rules:
        return []
    snapshot = stats.snapshot(connection)
    names = {rule.name for rule in rules}
    found: list[Observation] = []
    events = _Events(connection, names)
    for rule in rules:
        if rule.name in OF_QUEUES:
            own = {other.queue for other in rules if other.name == rule.name and other.queue}
            chosen = [
                queue
                for queue in snapshot.queues
                if (queue.name == rule.queue if rule.queue else queue.name not in own)
            ]
            found += OF_QUEUES[rule.name](rule, chosen)
        else:
            found += events.observe(rule)
    return found


def _oldest(rule: Rule, chosen: list[stats.QueueStats]) -> Iterator[Observation]:
    for queue in chosen:
        if queue.oldest is not None and queue.oldest > rule.limit:
            text = f"the first job of {queue.name} waits for {queue.oldest:.0f} s (limit {rule.limit} s)"
            yield Observation(rule, queue.name, text)


def _depth(rule: Rule, chosen: list[stats.QueueStats]) -> Iterator[Observation]:
    for queue in chosen:
        if queue.queued > rule.limit:
            waiting = texts.jobs(queue.queued, "waits", "wait")
            text = f"{waiting} in {queue.name} (limit {rule.limit:,})"
            yield Observation(rule, queue.name, text)


def _failed(rule: Rule, chosen: list[stats.QueueStats]) -> Iterator[Observation]:
    number = sum(queue.failed for queue in chosen)
    if number > rule.limit:
        where = f" in {rule.queue}" if rule.queue else ""
        failed = texts.jobs(number, "has failed", "have failed")
        yield Observation(rule, rule.queue, f"{failed}{where} (limit {rule.limit:,})")


def _no_worker(rule: Rule, chosen: list[stats.QueueStats]) -> Iterator[Observation]:
    for queue in chosen:
        if not queue.workers and (queue.queued or queue.scheduled or queue.name == rule.queue):
            yield Observation(rule, queue.name, f"no live worker listens to {queue.name}")


OF_QUEUES: dict[str, Callable[[Rule, list[stats.QueueStats]], Iterator[Observation]]] = {
    "oldest": _oldest,
    "depth": _depth,
    "failed": _failed,
    "no_worker": _no_worker,
}


class _Events:
    """The facts for the rules `names` that are not about queues, read in two round trips."""

    def __init__(self, connection: redis.Redis, names: set[str]):
        totals, (seconds, _), scheduler, groups, schedules = scripts.read_together(
            connection,
            [
                ("HGETALL", keys.TOTALS),
                ("TIME",),
                ("EXISTS", keys.SCHEDULES_LOCK),
                ("ZREVRANGE", keys.FAILURE_GROUPS, 0, MAX_ALERT_GROUPS - 1, "WITHSCORES"),
                ("ZRANGE", keys.SCHEDULES, 0, MAX_SCHEDULES - 1),
            ],
        )
        self.now = float(seconds)
        self.has_scheduler = bool(scheduler)
        self.totals = totals if isinstance(totals, dict) else {}
        self.groups = [
            group for group, last in scripts.read_scores(groups) if self.now - last < RECENT_SECONDS
        ]
        self.schedules = list(map(decode, schedules)) if isinstance(schedules, list) else []
        if "schedule_missed" not in names:
            self.schedules = []
        replies = scripts.read_together(
            connection,
            [
                *(
                    ("HMGET", keys.failure_group(group), "function", "error", "message", "first")
                    for group in self.groups
                ),
                *(("HGET", keys.schedule(name), "missed") for name in self.schedules),
            ],
        )
        self.failures = replies[: len(self.groups)]
        self.missed = replies[len(self.groups) :]

    def observe(self, rule: Rule) -> Iterator[Observation]:
        """The observations for a rule that is not about queues."""
        if rule.name == "no_scheduler" and not self.has_scheduler:
            yield Observation(rule, "", "no scheduler runs: delayed jobs and schedules wait")
        elif rule.name == "failed_for_good" and self.groups:
            yield Observation(rule, "", f"a job failed for good: {self._describe(0)}")
        elif rule.name == "new_failure_group":
            yield from self._new_groups(rule)
        elif rule.name == "schedule_missed":
            for name, missed in zip(self.schedules, self.missed, strict=True):
                text = f"the schedule {name} has missed a run"
                yield Observation(rule, name, text, _count(missed))
        elif rule.name == "recovered":
            causes = (b"recovered:lease expired", b"recovered:process gone", b"recovered:wip")
            number = sum(_count(self.totals.get(cause)) for cause in causes)
            yield Observation(rule, "", "jobs were taken back from a dead worker", number)
        elif rule.name == "poison":
            text = "a job has killed its process three times, and has failed"
            yield Observation(rule, "", text, _count(self.totals.get(b"poison")))

    def _new_groups(self, rule: Rule) -> Iterator[Observation]:
        for index, group in enumerate(self.groups):
            first = _moment(self.failures[index])
            if first is not None and self.now - first < NEW_GROUP_SECONDS:
                yield Observation(rule, group, f"jobs fail in a new way: {self._describe(index)}")

    def _describe(self, index: int) -> str:
        reply = self.failures[index]
        if not isinstance(reply, list):
            return "?"
        function, error, message = (decode(value or b"?") for value in reply[:3])
        return f"{function}: {error}: {message}"[:300]


def _count(reply: Any) -> int:
    if isinstance(reply, bytes) and reply.isdigit() and len(reply) < 16:
        return int(reply)
    return 0


def _moment(reply: Any) -> float | None:
    try:
        return float(reply[3])
    except (TypeError, ValueError, IndexError):
        return None


# Sending


@dataclass(frozen=True)
class Pending:
    """The first event that a channel has not sent, with its tries so far."""

    channel: str
    text: bytes
    event: dict[str, Any]
    tries: int


def send_due(connection: redis.Redis) -> int:
    """Send the events that are due, each channel in order; returns the number that arrived."""
    sent = 0
    end = time.monotonic() + SEND_SECONDS  # then the lock is renewed
    for channel in channels():
        while time.monotonic() < end and (pending := _next(connection, channel)):
            if not _send(connection, pending):
                break
            sent += 1
    return sent


def _next(connection: redis.Redis, channel: str) -> Pending | None:
    """The first event of a channel, if its next try is due."""
    command = ("LINDEX", keys.alert_events(channel), 0)
    text, tries, (seconds, microseconds) = scripts.read_together(
        connection, [command, ("HGET", keys.ALERT_TRIES, channel), ("TIME",)]
    )
    if not isinstance(text, bytes):
        return None
    event = _read(text)
    state = _read(tries)
    if state.get("id") != event.get("id"):
        return Pending(channel, text, event, 0)
    number, due = state.get("tries"), state.get("due")
    if not isinstance(number, int) or not isinstance(due, int | float):
        return Pending(channel, text, event, 0)
    return Pending(channel, text, event, number) if due <= seconds + microseconds / 1e6 else None


def _send(connection: redis.Redis, pending: Pending) -> bool:
    """Try to send an event; returns whether it has left its list.

    The try is noted before the call. So a call that kills this process is not repeated at once.
    """
    tries = pending.tries + 1
    pause = min(FIRST_RETRY_SECONDS * 2**pending.tries, LONGEST_RETRY_SECONDS)
    due = scripts.redis_time(connection) + pause
    state = {"id": pending.event.get("id"), "tries": tries, "due": due}
    connection.hset(keys.ALERT_TRIES, pending.channel, json.dumps(state))
    try:
        deliver(pending.channel, pending.event)
    except Exception as error:  # an HTTP client, or the options of a function, may raise anything
        reason = texts.describe_error(error)
        if tries < MAX_TRIES:
            log.warning(
                "alerts: the %s failed (%s); next try in %g s", pending.channel, reason, pause
            )
            return False
        log.error("alerts: the %s failed %d times (%s); given up", pending.channel, tries, reason)
    connection.lrem(keys.alert_events(pending.channel), 1, pending.text)  # type: ignore[arg-type]
    connection.hdel(keys.ALERT_TRIES, pending.channel)
    return True


def deliver(channel: str, event: dict[str, Any]) -> None:
    """Call the webhook, or enqueue the job, with one event.

    Raises:
        Exception: it failed. The message does not contain the address, which may be a secret.
    """
    settings = config.current()
    event = {**event, "environment": settings.environment or ""}
    if channel == JOB and settings.alert_job:
        queue = queues.queue_for(settings.alert_job)
        queue.enqueue(settings.alert_job, event, job_id=f"alert-{event.get('id')}")
    elif channel == WEBHOOK and settings.alert_webhook:
        _post_within_limit(settings.alert_webhook, body_of(event), str(event.get("id")))


def body_of(event: dict[str, Any]) -> dict[str, Any]:
    """The body of a call of the webhook, in the format of RQJOBS_ALERT_FORMAT."""
    if config.current().alert_format != "slack":
        return event
    place = f"[{event['environment']}] " if event.get("environment") else ""
    mark = ":white_check_mark: over:" if event.get("state") == "over" else ":rotating_light:"
    text = str(event.get("message"))
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, entity)
    return {"text": f"{mark} {place}{text}"}


class WebhookFailed(Exception):
    """The receiver did not answer with success. The message does not contain its address."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The setting names the receiver; an answer cannot name another."""

    def redirect_request(self, *args: Any) -> None:
        """Overridden: do not follow; urllib raises the answer as an error."""


def _post_within_limit(url: str, body: dict[str, Any], event_id: str) -> None:
    """POST in a thread of its own, which is ended: an answer may come byte by byte for ever.

    Raises:
        WebhookFailed: it failed, or took longer than SEND_SECONDS.
    """
    errors: list[str] = [f"no answer within {SEND_SECONDS:g} s"]

    call = webhooks.Call(_NoRedirect)

    def post() -> None:
        try:
            call.send(_request(url, body, event_id), SOCKET_SECONDS).close()
            errors.clear()
        except urllib.error.HTTPError as error:
            error.close()
            errors[0] = f"it answered {error.code}"
        except Exception as error:
            errors[0] = type(getattr(error, "reason", error)).__name__

    thread = threading.Thread(target=post, name="rqjobs-alert", daemon=True)
    thread.start()
    thread.join(SEND_SECONDS)
    failures = list(errors)
    if failures:
        call.end()
        raise WebhookFailed(failures[0])


def _request(url: str, body: dict[str, Any], event_id: str) -> urllib.request.Request:
    return urllib.request.Request(
        url,
        json.dumps(body).encode(),
        {
            "Content-Type": "application/json",
            "User-Agent": "rqjobs",
            "Idempotency-Key": event_id,
        },
    )


def test_event() -> dict[str, Any]:
    """An event for `rqjobs alerts test`."""
    now = time.time()
    return {
        "id": f"test-{now:.0f}",
        "state": "begin",
        "alert": "test",
        "rule": "test",
        "subject": "",
        "message": "a test of rqjobs alerts",
        "began": now,
        "at": now,
    }


# Running


class BackgroundAlerts:
    """A thread that observes and sends while it has the lock. A call that hangs stops only this thread.

    `may_run`: whether this process is to try for the lock now.
    """

    def __init__(self, redis_client: redis.Redis, may_run: Callable[[], bool] = lambda: True):
        self._redis = redis_client
        self._may_run = may_run
        self._name = f"{os.getpid()}-{os.urandom(6).hex()}"
        self._logged = ""
        self._thread = threading.Thread(target=self._run, name="rqjobs-alerts", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            try:
                if config.current().alerts and self._may_run() and self._has_lock():
                    update(self._redis)
                    send_due(self._redis)
                self._logged = ""
            except Exception as error:
                reason = (
                    connection.explain(error) if _is_redis(error) else texts.describe_error(error)
                )
                if reason != self._logged:
                    log.error("alerts: %s", reason)
                self._logged = reason
            pause.wait(OBSERVE_SECONDS)

    def _has_lock(self) -> bool:
        milliseconds = int(ALERTS_LOCK_SECONDS * 1000)
        arguments = [self._name, milliseconds, milliseconds]
        return bool(scripts.TAKE_LOCKS.run(self._redis, [keys.ALERTS_LOCK], arguments))


def _is_redis(error: Exception) -> bool:
    return isinstance(error, redis.RedisError)
