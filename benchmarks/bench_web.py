"""The pages with large numbers of jobs: milliseconds, round trips and bytes read for every page.

usage: bench_web.py [--share 0.01]    (the share of a million jobs; default 1)

It fills a Redis of its own: a million queued jobs, 200,000 failed ones in groups, 100,000 finished
ones, 100 workers, schedules, counts and a flow. A slow page is not a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from flask import Flask
from redis.connection import AbstractConnection
from werkzeug.routing import Rule

import rqjobs
from rqjobs import config, connection, every
from rqjobs.broker import counters, keys, leases, scripts
from rqjobs.broker.counters import Kind
from rqjobs.dev import redis_server
from rqjobs.maintenance import audit as maintenance_audit
from rqjobs.web import create_app

MODULE = Path(__file__).stem
PASSWORD = "a password of this run"
TOKEN = "a-token-of-this-run-" + "t" * 20
SETTINGS: dict[str, Any] = {
    "modules": (MODULE,),
    "admin_password": PASSWORD,
    "secret_key": "k" * 32,
    "api_tokens": (config.ApiToken("bench", "operate", TOKEN),),
}
GROUPS = 50  # of failed jobs
SCHEDULES = 100
REPEATS = 5  # of each request; the median counts
COPIES_PER_CALL = 5_000
VIEWERS = 100
POLL_SECONDS = 3  # between two live updates of an open page
VIEWER_SECONDS = 10  # for which open pages are simulated
LIMIT_TRIPS = 8
LIMIT_LIVE_TRIPS = 2  # of an update of an open page
LIMIT_BYTES = 1_000_000
LIMIT_MILLISECONDS = 100
COPY_JOBS = """
-- Copies a job: KEYS 1 job, 2 its results, 3 its place, 4 the prefix of the copies' hashes.
-- ARGV 1 first number, 2 last number, 3 prefix of the ids, 4 "list" or "zset", 5 number of groups.
for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local id = ARGV[3] .. number
  redis.call('COPY', KEYS[1], 'rq:job:' .. id)
  redis.call('COPY', KEYS[2], 'rq:results:' .. id)
  if ARGV[4] == 'list' then redis.call('RPUSH', KEYS[3], id)
  else redis.call('ZADD', KEYS[3], 2000000000 + number, id) end
  if ARGV[5] ~= '0' then
    local group = 'group' .. number % tonumber(ARGV[5])
    redis.call('HSET', 'rq:job:' .. id, 'rqjobs_failure_group', group)
    redis.call('ZADD', 'rqjobs:failure-group-jobs:' .. group, 1700000000 + number, id)
  end
end"""


def succeed(number: int) -> int:
    """A job of the benchmark."""
    return number


def fail(number: int) -> None:
    """A job of the benchmark that fails."""
    raise ValueError(f"no {number} today")


@dataclass(frozen=True)
class Sizes:
    """The numbers of jobs and workers in Redis."""

    queued: int = 1_000_000
    failed: int = 200_000
    finished: int = 100_000
    workers: int = 100

    def times(self, share: float) -> Sizes:
        jobs = (self.queued, self.failed, self.finished)
        return Sizes(*(max(int(number * share), 60) for number in jobs), self.workers)


@dataclass(frozen=True)
class Cost:
    """The cost of one request. `milliseconds` is the median of some."""

    path: str
    status: int
    milliseconds: float
    round_trips: int
    bytes_read: int


@dataclass(frozen=True)
class Names:
    """The things in Redis that pages are about."""

    failed_job: str
    flow: str


# Filling Redis


def fill(client: redis.Redis, sizes: Sizes) -> Names:
    """Fill Redis. The jobs are copies of three that ran."""
    jobs = importlib.import_module(MODULE)  # under its own name, if this is the main program
    queued = rqjobs.enqueue(jobs.succeed, 42)
    client.delete(keys.queue("default"))
    flow = rqjobs.chain(rqjobs.s(jobs.succeed, 1), rqjobs.s(jobs.succeed)).enqueue()
    finished = rqjobs.queue("high").enqueue(jobs.succeed, 1)
    failed = rqjobs.queue("high").enqueue(jobs.fail, 1)
    rqjobs.Worker(["high"]).work(burst=True, logging_level="CRITICAL")
    copy_jobs(client, queued.id, keys.queue("default"), "queued", sizes.queued)
    copy_jobs(client, finished.id, "rq:finished:default", "finished", sizes.finished)
    copy_groups(client)
    copy_jobs(client, failed.id, keys.failed("default"), "failed", sizes.failed, GROUPS)
    add_workers(client, sizes.workers)
    for number in range(SCHEDULES):
        rqjobs.schedules.add(f"schedule-{number}", every(hours=1), jobs.succeed, number)
    add_counts(client)
    return Names("failed1", flow.id)


def copy_jobs(
    client: redis.Redis, job_id: str, place: str, prefix: str, number: int, groups: int = 0
) -> None:
    """Make `number` copies of a job in a place."""
    kind = "list" if place.startswith("rq:queue:") else "zset"
    client.hset(keys.job(job_id), "origin", "default")
    for first in range(0, number, COPIES_PER_CALL):
        last = min(first + COPIES_PER_CALL, number) - 1
        names = (keys.job(job_id), keys.results(job_id), place)
        client.eval(COPY_JOBS, len(names), *names, first, last, prefix, kind, groups)


def copy_groups(client: redis.Redis) -> None:
    (group,) = client.zrange(keys.FAILURE_GROUPS, 0, 0)
    now = scripts.redis_time(client)
    for number in range(GROUPS):
        client.copy(keys.failure_group(group.decode()), keys.failure_group(f"group{number}"))
        client.hset(keys.failure_group(f"group{number}"), "function", f"shop.task_{number}")
        client.zadd(keys.FAILURE_GROUPS, {f"group{number}": now - 60 * number})


def add_workers(client: redis.Redis, number: int) -> None:
    """Workers by their records, each with a running job."""
    with client.pipeline(transaction=False) as pipe:
        for each in range(number):
            name, job_id = f"worker-{each:03}", f"queued{each}"
            leases.renew_lease(client, name, {"host": "h", "pid": each + 1, "started": "1"})
            fields = {
                "state": "busy",
                "queues": "high,default,low",
                "hostname": "host",
                "pid": each + 1,
                "current_job": job_id,
                "birth": "2026-01-01T00:00:00.000000Z",
                "last_heartbeat": "2026-01-01T00:00:00.000000Z",
            }
            pipe.hset(keys.worker(name), mapping=fields)
            pipe.sadd(keys.WORKERS, keys.worker(name))
            for queue in ("high", "default", "low"):
                pipe.sadd(keys.listeners(queue), keys.worker(name))
            pipe.zadd(keys.LEASES, {name: 4_000_000_000})
            pipe.zadd(keys.running("default"), {f"{job_id}:token": "+inf"})
            pipe.rpush(keys.claims(name), job_id)
        pipe.execute()


def add_counts(client: redis.Redis) -> None:
    """An hour of counts of three queues, and a day of totals."""
    minute = counters.minute_of(scripts.redis_time(client))
    with client.pipeline(transaction=False) as pipe:
        for back in range(counters.MINUTES_KEPT):
            counted = {
                f"{kind.value}:{queue}": 1000 + back
                for kind in Kind
                for queue in ("high", "default", "low")
            }
            pipe.hset(keys.counts(minute - back), mapping=counted)
        words = " ".join(f"{kind.value} 1234" for kind in Kind)
        days = {str(minute - back): words for back in range(1, counters.DAY_MINUTES)}
        pipe.hset(keys.COUNTS_DAY, mapping=days)
        pipe.execute()


# The pages


def paths(app: Flask, names: Names) -> list[str]:
    """The address of every page that reads something, by the app's own list of routes.

    Raises:
        KeyError: there is a route with an argument that is not known here.
    """
    found = []
    for rule in app.url_map.iter_rules():
        if "GET" in (rule.methods or ()) and is_ours(rule):
            values = {argument: value_of(rule, argument, names) for argument in rule.arguments}
            with app.test_request_context():
                found.append(app.url_map.bind("localhost").build(rule.endpoint, values))
    return sorted({*found, *searches(app)})


def is_ours(rule: Rule) -> bool:
    """Whether a route is a page, a live part or a reading call of the API, and not a file."""
    room, _, name = rule.endpoint.partition(".")
    return room in ("rqjobs", "rqjobs_api") and name not in ("static", "login", "healthz")


def value_of(rule: Rule, argument: str, names: Names) -> str:
    of_names = {"queue": "default", "worker": "worker-001", "schedule": "schedule-1"}
    if argument == "name":
        for word, value in of_names.items():
            if word in rule.endpoint:
                return value
    known = {
        "job_id": names.failed_job,
        "group_id": "group1",
        "group": "group1",
        "flow_id": names.flow,
        "function": f"{MODULE}.succeed",
        "action": "delete",
        "queue": "default",
        "worker": "worker-001",
        "schedule": "schedule-1",
        "path": "nothing",
        "position": "0",
    }
    return known[argument]


def searches(app: Flask) -> list[str]:
    """Addresses of the list of jobs with filters, if there is that list."""
    if "rqjobs.jobs" not in app.view_functions:
        return []
    return [
        f"/jobs?{query}"
        for query in ("state=queued", "state=failed", "state=finished", f"function={MODULE}.fail")
    ]


@contextlib.contextmanager
def counted_sends() -> Iterator[list[int]]:
    """A list that gets an entry for every batch of commands that is sent: a round trip."""
    sends: list[int] = []
    original = AbstractConnection.send_packed_command

    def count(self: Any, command: Any, check_health: bool = True) -> Any:
        sends.append(1)
        return original(self, command, check_health)

    AbstractConnection.send_packed_command = count  # type: ignore[method-assign]
    try:
        yield sends
    finally:
        AbstractConnection.send_packed_command = original  # type: ignore[method-assign]


def bytes_sent(client: redis.Redis) -> int:
    return int(client.info("stats")["total_net_output_bytes"])


def measure(browser: Any, client: redis.Redis, path: str, repeats: int = REPEATS) -> Cost:
    """The cost of a page. It is opened once before, as the first one reads more.

    An update of an open page is not that which another viewer has just had made.
    """
    browser.get(path)
    browser.application.extensions.pop("rqjobs.renderings", None)
    before = bytes_sent(client)
    overhead = bytes_sent(client) - before
    with counted_sends() as sends:
        before = bytes_sent(client)
        sends.clear()
        status = browser.get(path).status_code
        round_trips = len(sends)
        bytes_read = bytes_sent(client) - before - overhead
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        browser.get(path)
        seconds.append(time.perf_counter() - start)
    return Cost(path, status, 1000 * statistics.median(seconds), round_trips, bytes_read)


def logged_in() -> tuple[Flask, Any]:
    app = create_app()
    browser = app.test_client()
    browser.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
    browser.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {TOKEN}"
    reply = browser.post("/login", data={"user": "admin", "password": PASSWORD})
    assert reply.status_code == 303, reply.text
    return app, browser


def viewers_share(browser: Any) -> float:
    """The share of a core that open home pages take, with the client that asks for them.

    Each viewer has what it got with its own last request.
    """
    tags = [browser.get("/live").headers["ETag"]] * VIEWERS
    requests = int(VIEWERS / POLL_SECONDS * VIEWER_SECONDS)
    begin, cpu = time.monotonic(), time.process_time()
    for number in range(requests):
        viewer = number % VIEWERS
        reply = browser.get("/live", headers={"If-None-Match": tags[viewer]})
        tags[viewer] = reply.headers["ETag"]
        time.sleep(max(begin + (number + 1) * POLL_SECONDS / VIEWERS - time.monotonic(), 0))
    return (time.process_time() - cpu) / (time.monotonic() - begin)


@contextlib.contextmanager
def redis_of_its_own() -> Iterator[redis.Redis]:
    """Start a Redis, and make it that of the settings."""
    options = ("--appendonly", "no", "--save", "")
    with (
        tempfile.TemporaryDirectory(prefix="rqjobs-bench-") as folder,
        redis_server.server(Path(folder), *options) as url,
    ):
        config.use(redis_url=url, **SETTINGS)
        yield connection.client()


def report(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def limit_trips(path: str) -> int:
    return LIMIT_LIVE_TRIPS if path.startswith("/live") else LIMIT_TRIPS


def report_cost(cost: Cost) -> None:
    over = [
        word
        for word, is_over in (
            ("ms", cost.milliseconds > LIMIT_MILLISECONDS),
            ("trips", cost.round_trips > limit_trips(cost.path)),
            ("bytes", cost.bytes_read > LIMIT_BYTES),
        )
        if is_over
    ]
    mark = f"  over: {', '.join(over)}" if over else ""
    report(
        f"{cost.path[:44]:44} {cost.status:6} {cost.milliseconds:8.1f} {cost.round_trips:6} "
        f"{cost.bytes_read:11,}{mark}"
    )


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--share", type=float, default=1.0, help="of a million jobs")
    sizes = Sizes().times(options.parse_args().share)
    with redis_of_its_own() as client:
        filled: list[Names] = []
        seconds = timed(lambda: filled.append(fill(client, sizes)))
        report(f"{sizes}: filled in {seconds:.0f} s")
        app, browser = logged_in()
        report(f"{'page':44} {'status':>6} {'ms':>8} {'trips':>6} {'bytes read':>11}")
        for path in paths(app, filled[0]):
            report_cost(measure(browser, client, path))
        share = viewers_share(browser)
        report(f"{VIEWERS} open home pages: {100 * share:.1f} % of a core (target: under 10 %)")
        audit = timed(lambda: maintenance_audit.audit(client))
        report(f"rqjobs audit: {audit:.1f} s (target: under 20 s)")


if __name__ == "__main__":
    main()
