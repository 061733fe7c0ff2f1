"""The metrics for Prometheus: the names and labels of rq-exporter, and ours (docs/metrics.md).

Everything is read from Redis in four round trips. So each web process gives the same numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import redis

import rqjobs
from rqjobs import alerts, job_metrics, stats
from rqjobs.broker import keys, scripts
from rqjobs.connection import is_transient

try:
    from prometheus_client import CollectorRegistry, exposition
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        SummaryMetricFamily,
    )
except ImportError:  # the extra `metrics` is not installed
    HAS_CLIENT = False
else:
    HAS_CLIENT = True

SCHEDULE_FIELDS = ("made", "missed", "overlapped")
# The labels of rq-exporter for the places of jobs. It counts stopped jobs as failed ones.
RQ_STATUSES = {
    "queued": ("queued",),
    "started": ("running",),
    "finished": ("finished",),
    "failed": ("failed", "stopped"),
    "deferred": ("deferred",),
    "scheduled": ("scheduled",),
}
RECOVERED = "recovered:"
# Events of `rqjobs:totals`, with the metrics that count them.
EVENTS = {
    "poison": ("rqjobs_jobs_poison", "Jobs that failed because their process died three times"),
    "expired": ("rqjobs_jobs_expired", "Jobs that had not begun in the time of their option"),
    "limit-waits": ("rqjobs_limit_waits", "Jobs that had to wait for a limit or a rate"),
}
INFO_GAUGES = {  # a field of Redis's INFO -> the metric
    "used_memory": ("rqjobs_redis_memory_bytes", "Memory that Redis uses"),
    "maxmemory": ("rqjobs_redis_memory_limit_bytes", "The limit of Redis's memory; 0 is no limit"),
    "connected_clients": ("rqjobs_redis_connected_clients", "Connections of clients to Redis"),
    "instantaneous_ops_per_sec": (
        "rqjobs_redis_commands_per_second",
        "Commands of the last second",
    ),
    "blocked_clients": ("rqjobs_redis_blocked_clients", "Clients that wait in a blocking command"),
}
SCRAPES = "scrapes"
SCRAPE_MICROSECONDS = "scrape-microseconds"


@dataclass
class Reading:
    """The content of one scrape. A reply that is an error leaves out its metrics."""

    snapshot: stats.Snapshot
    runs: list[job_metrics.FunctionMetrics]
    totals: dict[str, int]
    info: dict[str, Any]
    now: float  # Unix seconds by Redis's clock
    last_sweep: float | None
    has_scheduler: bool
    schedules: dict[str, list[int]]  # name -> the numbers of `SCHEDULE_FIELDS`
    lateness: dict[str, float]  # what -> seconds since the first moment that was not kept
    failure_groups: int
    alerts: list[alerts.Alert]


def render(connection: redis.Redis, accept: str) -> tuple[bytes, str]:
    """The metrics in the format that the header `Accept` asks for, and their content type.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    began = time.monotonic()
    registry = CollectorRegistry()
    registry.register(_Collector(list(families(read(connection)))))
    encode, content_type = exposition.choose_encoder(accept)
    text = encode(registry)
    _count_scrape(connection, time.monotonic() - began)
    return text, content_type


class _Collector:
    def __init__(self, found: list[Any]):
        self.found = found

    def collect(self) -> list[Any]:
        return self.found


def _count_scrape(connection: redis.Redis, seconds: float) -> None:
    """Note the duration in Redis, so that all web processes give the sum."""
    pipe = connection.pipeline(transaction=False)
    pipe.hincrby(keys.TOTALS, SCRAPES, 1)
    pipe.hincrby(keys.TOTALS, SCRAPE_MICROSECONDS, round(seconds * 1e6))
    pipe.execute(raise_on_error=False)


# Reading


def read(connection: redis.Redis) -> Reading:
    """Everything that the metrics need, in four round trips."""
    snapshot = stats.snapshot(connection)
    names = [queue.name for queue in snapshot.queues]
    runs, totals, info, moment, sweep, scheduler, groups, firing, due, *first = _replies(
        connection,
        [
            ("HGETALL", keys.METRICS),
            ("HGETALL", keys.TOTALS),
            ("INFO",),
            ("TIME",),
            ("GET", keys.LAST_SWEEP),
            ("EXISTS", keys.SCHEDULES_LOCK),
            ("ZCARD", keys.FAILURE_GROUPS),
            ("HGETALL", keys.ALERTS),
            ("ZRANGE", keys.SCHEDULES, 0, alerts.MAX_SCHEDULES - 1, "WITHSCORES"),
            *(("ZRANGE", keys.scheduled(name), 0, 0, "WITHSCORES") for name in names),
        ],
    )
    now = moment[0] + moment[1] / 1e6 if isinstance(moment, tuple) else time.time()
    found = scripts.read_scores(due)
    schedules = _replies(
        connection, [("HMGET", keys.schedule(name), *SCHEDULE_FIELDS) for name, _ in found]
    )
    delayed = [pair for reply in first for pair in scripts.read_scores(reply)]
    return Reading(
        snapshot=snapshot,
        runs=job_metrics.read_function_metrics(runs),
        totals=job_metrics.numbers(totals),
        info=info if isinstance(info, dict) else {},
        now=now,
        last_sweep=_number(sweep),
        has_scheduler=scheduler == 1,
        schedules={
            name: [int(_number(value) or 0) for value in reply]
            for (name, _), reply in zip(found, schedules, strict=True)
            if isinstance(reply, list)
        },
        lateness={"delayed": _late(delayed, now), "schedules": _late(found, now)},
        failure_groups=groups if isinstance(groups, int) else 0,
        alerts=alerts.read_firing(firing),
    )


def _replies(connection: redis.Redis, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The replies in one round trip. A key of the wrong type, or a command that this user of Redis
    may not use, gives its error.
    """
    commands = list(commands)
    if not commands:
        return []
    with connection.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        replies = pipe.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, Exception) and is_transient(reply):
            raise reply
    return replies


def _late(due: list[tuple[str, float]], now: float) -> float:
    return max([0.0, *(now - moment for _, moment in due if moment > 0)])


def _number(reply: Any) -> float | None:
    """A reply as a finite number; None if it is not one."""
    try:
        number = float(reply)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


# Metrics


def families(reading: Reading) -> Iterator[Any]:
    """All metrics."""
    yield from _rq_families(reading)
    yield from _job_families(reading)
    yield from _queue_families(reading)
    yield from _schedule_families(reading)
    yield from _process_families(reading)
    yield from _redis_families(reading)


def _gauge(name: str, text: str, value: float) -> Any:
    return GaugeMetricFamily(name, text, value=value)


def _rq_families(reading: Reading) -> Iterator[Any]:
    """The metrics of rq-exporter."""
    workers = GaugeMetricFamily("rq_workers", "RQ workers", labels=["name", "state", "queues"])
    labels = ["name", "queues"]
    succeeded = CounterMetricFamily("rq_workers_success", "RQ workers success count", labels=labels)
    failed = CounterMetricFamily("rq_workers_failed", "RQ workers fail count", labels=labels)
    worked = CounterMetricFamily(
        "rq_workers_working_time", "RQ workers spent seconds", labels=labels
    )
    for worker in reading.snapshot.workers:
        queues = ",".join(worker.queues)
        workers.add_metric([worker.name, worker.state, queues], 1)
        succeeded.add_metric([worker.name, queues], worker.succeeded)
        failed.add_metric([worker.name, queues], worker.failed)
        worked.add_metric([worker.name, queues], worker.seconds_worked)
    jobs = GaugeMetricFamily("rq_jobs", "RQ jobs by state", labels=["queue", "status"])
    for queue in reading.snapshot.queues:
        for status, places in RQ_STATUSES.items():
            jobs.add_metric([queue.name, status], sum(getattr(queue, place) for place in places))
    yield from (workers, succeeded, failed, worked, jobs)
    yield SummaryMetricFamily(
        "rq_request_processing_seconds",
        "Time spent collecting RQ data",
        count_value=reading.totals.get(SCRAPES, 0),
        sum_value=reading.totals.get(SCRAPE_MICROSECONDS, 0) / 1e6,
    )


def _job_families(reading: Reading) -> Iterator[Any]:
    """Waits, runs and outcomes of jobs, recoveries, and rare events."""
    labels = ["function", "queue"]
    wait = HistogramMetricFamily(
        "rqjobs_job_wait_seconds", "Time from the enqueue to the start of a run", labels=labels
    )
    run = HistogramMetricFamily("rqjobs_job_run_seconds", "Duration of a run", labels=labels)
    ended = CounterMetricFamily(
        "rqjobs_job_runs", "Runs that have ended, by their outcome", labels=[*labels, "outcome"]
    )
    for one in reading.runs:
        of_one = [one.function, one.queue]
        wait.add_metric(of_one, one.wait.cumulative(), one.wait.seconds)
        run.add_metric(of_one, one.run.cumulative(), one.run.seconds)
        for outcome, number in sorted(one.outcomes.items()):
            ended.add_metric([*of_one, outcome], number)
    recovered = CounterMetricFamily(
        "rqjobs_jobs_recovered", "Jobs taken back from dead processes", labels=["cause"]
    )
    for name, number in sorted(reading.totals.items()):
        if name.startswith(RECOVERED):
            recovered.add_metric([name.removeprefix(RECOVERED)], number)
    yield from (wait, run, ended, recovered)
    for event, (name, text) in EVENTS.items():
        yield CounterMetricFamily(name, text, value=reading.totals.get(event, 0))
    yield _gauge(
        "rqjobs_failure_groups", "Groups of failed jobs of the last week", reading.failure_groups
    )


def _queue_families(reading: Reading) -> Iterator[Any]:
    depth = GaugeMetricFamily("rqjobs_queue_depth", "Jobs that wait in a queue", labels=["queue"])
    oldest = GaugeMetricFamily(
        "rqjobs_queue_oldest_seconds", "Age of the first job of a queue", labels=["queue"]
    )
    served = GaugeMetricFamily(
        "rqjobs_queue_workers", "Live workers that listen to a queue", labels=["queue"]
    )
    paused = GaugeMetricFamily(
        "rqjobs_queue_paused", "1 if no job of a queue begins until it is resumed", labels=["queue"]
    )
    pauses = {pause.name for pause in reading.snapshot.paused if pause.kind == "queue"}
    for queue in reading.snapshot.queues:
        depth.add_metric([queue.name], queue.queued)
        oldest.add_metric([queue.name], queue.oldest or 0.0)
        served.add_metric([queue.name], queue.workers)
        paused.add_metric([queue.name], int(queue.name in pauses))
    yield from (depth, oldest, served, paused)


def _schedule_families(reading: Reading) -> Iterator[Any]:
    texts = {
        "made": ("rqjobs_schedule_runs", "Jobs that a schedule has made"),
        "missed": ("rqjobs_schedule_missed", "Runs of a schedule that made no job"),
        "overlapped": (
            "rqjobs_schedule_overlapped",
            "Runs of a schedule skipped because the last job had not ended",
        ),
    }
    for index, field in enumerate(SCHEDULE_FIELDS):
        name, text = texts[field]
        family = CounterMetricFamily(name, text, labels=["schedule"])
        for schedule, numbers in reading.schedules.items():
            family.add_metric([schedule], numbers[index])
        yield family
    lateness = GaugeMetricFamily(
        "rqjobs_scheduler_lateness_seconds",
        "How late the first due job or schedule is that has not been enqueued",
        labels=["kind"],
    )
    for kind, seconds in reading.lateness.items():
        lateness.add_metric([kind], seconds)
    yield lateness


def _process_families(reading: Reading) -> Iterator[Any]:
    alive = sum(worker.alive for worker in reading.snapshot.workers)
    yield _gauge("rqjobs_workers_alive", "Workers whose lease has not expired", alive)
    yield _gauge("rqjobs_scheduler_running", "1 if schedules are run", int(reading.has_scheduler))
    yield _gauge("rqjobs_suspended", "1 while RQ is suspended", int(reading.snapshot.suspended))
    if reading.last_sweep is not None:
        age = max(0.0, reading.now - reading.last_sweep)
        yield _gauge("rqjobs_last_sweep_seconds", "Age of the last search for lost jobs", age)
    info = GaugeMetricFamily("rqjobs_version_info", "The version of rqjobs", labels=["version"])
    info.add_metric([rqjobs.__version__], 1)
    yield info
    firing = GaugeMetricFamily(
        "rqjobs_alert_firing", "1 for each alert of RQJOBS_ALERTS that fires", labels=["alert"]
    )
    for alert in reading.alerts:
        firing.add_metric([alert.name], 1)
    yield firing


def _redis_families(reading: Reading) -> Iterator[Any]:
    for field, (name, text) in INFO_GAUGES.items():
        value = _number(reading.info.get(field))
        if value is not None:
            yield _gauge(name, text, value)
    evicted = _number(reading.info.get("evicted_keys"))
    if evicted is not None:
        yield CounterMetricFamily(
            "rqjobs_redis_evicted_keys", "Keys that Redis has evicted: lost jobs", value=evicted
        )
