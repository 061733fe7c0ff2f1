"""The load of the scenario *policies* of `make chaos`, and the counts afterwards."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import chaos_policy_jobs as jobs
import redis
from chaos_count import Row
from chaos_environment import BACKLOG_MAX_JOBS, QUEUE_NAMES, Server
from chaos_policies import POLICIES, Ended, Evidence, Pausable, Policy
from chaos_policy_jobs import Freeze, Run, until_frozen

import rqjobs
from rqjobs.broker import keys
from rqjobs.broker.keys import decode

THREADS = 3  # that enqueue
DRAIN_TIMEOUT_SECONDS = 60.0
READ_BATCH_JOBS = 500
PAUSED_QUEUE = "low"
PAUSE_NOTICE_SECONDS = 1.0  # within which a pause must have its effect
# The types of RQ's results that end a job: successful, failed, stopped (for a discarded job).
FINAL_RESULTS = (1, 2, 3)
RETRIED = 4
# Keys that must be gone when all jobs have ended.
LEFTOVER_KEYS = (
    "rqjobs:slots*",
    "rqjobs:waiting*",
    "rqjobs:rate-due",
    "rqjobs:last-woken",
    "rqjobs:paused*",
    keys.NEW_FAILURES,
    "rq:deferred:*",
    "rq:scheduled:*",
)


@dataclass(frozen=True)
class Pause:
    """The monotonic times between which a queue or a function was certainly paused."""

    what: str
    began: float
    ended: float


class Pauses(threading.Thread):
    """Pauses and resumes a queue and a function until `stop`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.pauses: list[Pause] = []
        self.over = threading.Event()
        self.lock = threading.Lock()  # held during a call

    def run(self) -> None:
        targets = itertools.cycle([{"queue": PAUSED_QUEUE}, {"function": jobs.pausable}])
        for target in targets:
            if self.over.wait(random.uniform(0.5, 2.0)):
                return
            with self.lock:
                rqjobs.pause(**target)
            began = time.monotonic()
            self.over.wait(random.uniform(1.5, 3.0))
            with self.lock:
                ended = time.monotonic()
                rqjobs.resume(**target)
            self.pauses.append(Pause(next(iter(target)), began, ended))

    def stop(self) -> None:
        self.over.set()
        self.join()

    def check(self, policies: Iterable[Policy], evidence: Evidence) -> list[str]:
        """The runs that have begun in a pause."""
        in_queue = [call.job_id for call in evidence.calls if call.queue == PAUSED_QUEUE]
        of_function = [call.job_id for p in policies if isinstance(p, Pausable) for call in p.calls]
        faults = []
        for pause in self.pauses:
            paused_ids = in_queue if pause.what == "queue" else of_function
            for run in itertools.chain.from_iterable(evidence.runs.get(i, []) for i in paused_ids):
                if pause.began + PAUSE_NOTICE_SECONDS < run.began < pause.ended:
                    faults.append(
                        f"{run} began {run.began - pause.began:.3f} s after the pause of its "
                        f"{pause.what}"
                    )
        return faults


class PolicyLoad:
    """Threads that enqueue jobs of every policy, and one that pauses and resumes."""

    def __init__(self, server: Server):
        self.server = server
        self.policies: list[Policy] = [policy() for policy in POLICIES]
        self.pauses = Pauses()
        self.freezes: list[Freeze] = []
        self.errors: list[str] = []
        self.enough = threading.Event()
        self.numbers = itertools.count(1)
        self.locks = [threading.Lock() for _ in range(THREADS)]  # each is held during a call
        self.threads = [
            threading.Thread(target=self._run, args=[lock], daemon=True) for lock in self.locks
        ]

    def start(self) -> None:
        for thread in (*self.threads, self.pauses):
            thread.start()

    def stop(self) -> None:
        """End the threads. Nothing is paused then."""
        self.enough.set()
        for thread in self.threads:
            thread.join()
        self.pauses.stop()

    @contextmanager
    def held(self) -> Iterator[None]:
        """No thread uses Redis during the block."""
        with ExitStack() as stack:
            for lock in (*self.locks, self.pauses.lock):
                stack.enter_context(lock)
            yield

    def _run(self, lock: threading.Lock) -> None:
        while not self.enough.is_set():
            number = next(self.numbers)
            if number % 10 == 0:
                self._wait_for_workers(lock)
            policy = random.choice(self.policies)
            try:
                with lock:
                    policy.send(f"{policy.name}-{number:06d}")
            except Exception as error:
                self.errors.append(f"the load of {policy.name} stopped: {error!r}")
                return

    def _wait_for_workers(self, lock: threading.Lock) -> None:
        while not self.enough.is_set():
            with lock:
                client = self.server.client
                waiting = sum(client.llen(f"rq:queue:{name}") for name in QUEUE_NAMES)
                waiting += sum(client.zcard(f"rq:deferred:{name}") for name in QUEUE_NAMES)
            if waiting < BACKLOG_MAX_JOBS:
                return
            time.sleep(0.05)

    def job_ids(self) -> list[str]:
        """The ids of all accepted jobs, each once."""
        return list(dict.fromkeys(call.job_id for p in self.policies for call in p.calls))


def is_drained(client: redis.Redis) -> bool:
    """Whether no job waits or runs, and no failure is left to follow up."""
    lists = [*client.keys("rq:queue:*"), *client.keys("rqjobs:claims:*")]
    sets = [*client.keys("rq:scheduled:*"), *client.keys("rq:deferred:*")]
    if client.exists(keys.NEW_FAILURES):  # calls of on_failed
        return False
    return not any(map(client.llen, lists)) and not any(map(client.zcard, sets))


def drain(client: redis.Redis, check_workers: Callable[[], None]) -> None:
    """Wait until all jobs have ended, or no run has changed for `DRAIN_TIMEOUT_SECONDS`."""
    deadline = time.monotonic() + DRAIN_TIMEOUT_SECONDS
    ended_before = -1
    while time.monotonic() < deadline:
        if is_drained(client):
            time.sleep(0.2)  # an outcome may be followed by another job
            if is_drained(client):
                return
        check_workers()
        ended = sum(client.zcard(key) for key in client.keys("rq:finished:*"))
        if ended != ended_before:
            ended_before = ended
            deadline = time.monotonic() + DRAIN_TIMEOUT_SECONDS
        time.sleep(0.1)


FIELDS = ("status", "rqjobs_ending", "rqjobs_crashes", "rqjobs_expires")


def clock_difference() -> float:
    """The monotonic time minus the Unix time: of some pairs of readings, the pair least apart."""
    pairs = [(time.monotonic(), time.time(), time.monotonic()) for _ in range(20)]
    before, unix, after = min(pairs, key=lambda pair: pair[2] - pair[0])
    return (before + after) / 2 - unix


def _read_ended(fields: list[str], entries: list[Any], difference: float) -> Ended:
    status, ending, crashes, expires = fields
    results, retried = [], []
    for entry_id, entry in entries:
        kind = int(entry[b"type"])
        if kind in FINAL_RESULTS:
            results.append(kind)
        elif kind == RETRIED:
            retried.append(int(entry_id.split(b"-")[0]) / 1000 + difference)
    number = len(crashes.split(",")) if crashes else 0
    return Ended(status, ending, number, bool(expires), results, retried)


def read_ended(client: redis.Redis, job_ids: list[str]) -> dict[str, Ended]:
    """How these jobs have ended; a job that is not in Redis has an empty status."""
    found = {}
    difference = clock_difference()
    for start in range(0, len(job_ids), READ_BATCH_JOBS):
        batch = job_ids[start : start + READ_BATCH_JOBS]
        with client.pipeline(transaction=False) as pipe:
            for job_id in batch:
                pipe.hmget(f"rq:job:{job_id}", *FIELDS)
                pipe.xrange(f"rq:results:{job_id}")
            replies = pipe.execute()
        for job_id, fields, entries in zip(batch, replies[::2], replies[1::2], strict=True):
            texts = [decode(value or b"") for value in fields]
            found[job_id] = _read_ended(texts, entries, difference)
    return found


def check(row: Row, load: PolicyLoad, runs: list[Run]) -> None:
    """Fill the row of the table, after all workers have ended."""
    runs_of: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        runs_of[run.job_id].append(until_frozen(run, load.freezes))
    job_ids = load.job_ids()
    ended = read_ended(load.server.client, job_ids)
    row.accepted = len(job_ids)
    row.faults += load.errors
    for policy in load.policies:
        evidence = Evidence(policy.calls, ended, runs_of)
        for job_id in dict.fromkeys(call.job_id for call in policy.calls):
            check_end(row, job_id, policy, evidence)
        row.faults += [f"{policy.name}: {fault}" for fault in policy.check(evidence)]
    calls = [call for policy in load.policies for call in policy.calls]
    row.faults += load.pauses.check(load.policies, Evidence(calls, ended, runs_of))
    row.faults += check_reports(load.server.client, load.policies, ended, runs)
    for pattern in LEFTOVER_KEYS:
        row.faults += [
            f"left in Redis: {decode(key)}" for key in load.server.client.scan_iter(pattern, 1000)
        ]


def check_end(row: Row, job_id: str, policy: Policy, evidence: Evidence) -> None:
    """Check that a job has ended as its policy says, that its outcome is recorded once, and that
    the outcome fits its runs.
    """
    ended = evidence.ended[job_id]
    states = [run.state for run in evidence.runs.get(job_id, [])]
    if states.count("running"):
        row.rerun += 1
    if len(ended.results) > 1:
        row.twice += 1
    fits = {
        "finished": "returned" in states,
        "failed": "raised" in states,
        "discarded": "raised" in states,
        "expired": not states,
    }
    is_right = ended.outcome in policy.outcomes and fits[ended.outcome]
    if ended.is_poisoned:
        row.poisoned += 1
        is_right = True
    if is_right and len(ended.results) == 1:
        row.outcomes += 1
        return
    if not ended.results:
        row.lost += 1
    row.faults.append(
        f"{job_id} should be {' or '.join(policy.outcomes)}: {ended}, its runs: {states}"
    )


def check_reports(
    client: redis.Redis, policies: list[Policy], ended: dict[str, Ended], runs: list[Run]
) -> list[str]:
    """Each job with `on_failed` that has failed for good has one job that reports it, and no other
    job has one.
    """
    reports: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        if run.note.startswith(jobs.REPORT):
            reports[run.note.removeprefix(jobs.REPORT)].add(run.job_id)
    report_ids = sorted(set().union(*reports.values()))
    faults = [
        f"{report_id}, a job of on_failed, has ended as {report}"
        for report_id, report in read_ended(client, report_ids).items()
        if not report.is_poisoned and (report.outcome != "finished" or len(report.results) != 1)
    ]
    for policy in policies:
        for job_id in dict.fromkeys(call.job_id for call in policy.calls):
            found = sorted(reports.pop(job_id, ()))
            calls = policy.has_on_failed and ended[job_id].outcome == "failed"
            if len(found) != int(calls):
                faults.append(f"on_failed of {job_id} ({ended[job_id]}) was called by {found}")
    faults += [f"on_failed was called for {job_id}" for job_id in reports]
    return faults
