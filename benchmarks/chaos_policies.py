"""The policies in `make chaos`: how jobs of each are enqueued, and what their runs must not show."""

from __future__ import annotations

import bisect
import dataclasses
import random
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import chaos_policy_jobs as jobs
from chaos_environment import KEEP_SECONDS, QUEUE_NAMES
from chaos_policy_jobs import Run

import rqjobs
from rqjobs import queues
from rqjobs.broker import recovery

USERS = 2
UNIQUE_KEYS = 6
MEAN_JOB_SECONDS = 0.02
LIMITED_JOB_SECONDS = 0.1  # so long that jobs wait for their limits
LONG_JOB_SHARE = 0.01
LONG_JOB_SECONDS = 3.0  # more than the shutdown timeout
CLOCK_TOLERANCE_SECONDS = 0.005  # between Redis's clock and the monotonic one


@dataclass(frozen=True)
class Call:
    """One enqueue that has returned: the job, and the monotonic times around the call."""

    job_id: str
    queue: str
    key: str  # of the policy: jobs with equal keys share a limit, or are the same
    value: int
    called: float
    returned: float


@dataclass
class Ended:
    """How a job has ended in Redis: RQ's status, rqjobs' own ending, and its final results.

    `retried`: the monotonic times at which its retries and snoozes were recorded. `may_expire`: its
    first run has not begun, as far as rqjobs knows.
    """

    status: str
    ending: str
    crashes: int
    may_expire: bool
    results: list[int]
    retried: list[float]

    @property
    def outcome(self) -> str:
        return self.ending or self.status

    @property
    def is_poisoned(self) -> bool:
        return self.status == "failed" and self.crashes >= recovery.MAX_CRASHES


@dataclass
class Evidence:
    """What was seen of the jobs of one policy."""

    calls: list[Call]
    ended: dict[str, Ended]
    runs: dict[str, list[Run]]

    def calls_of_jobs(self) -> dict[str, list[Call]]:
        """The calls that have returned each job, in order."""
        found: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            found[call.job_id].append(call)
        return found

    def successors(self) -> list[tuple[Call, Call]]:
        """For each job but the first of its key: a call of the job before, and its own first call."""
        last_of_key: dict[str, Call] = {}
        found = []
        for call in self.calls:
            before = last_of_key.get(call.key)
            if before and before.job_id != call.job_id:
                found.append((before, call))
            last_of_key[call.key] = call
        return found

    def with_one_key(self, key: str) -> Evidence:
        calls = [dataclasses.replace(call, key=key) for call in self.calls]
        return Evidence(calls, self.ended, self.runs)

    def runs_of_keys(self) -> dict[str, list[Run]]:
        """The runs of all jobs of each key."""
        found: dict[str, list[Run]] = defaultdict(list)
        key_of = {call.job_id: call.key for call in self.calls}
        for job_id, key in key_of.items():
            found[key] += self.runs.get(job_id, [])
        return found


class Policy:
    """The jobs of one policy. `send` enqueues one; `check` returns what must not have happened.

    `outcomes`: how its jobs may end, besides as poison. `has_on_failed`: if one fails, as poison
    too, the job of `on_failed` runs.
    """

    outcomes: tuple[str, ...] = ("finished",)
    has_on_failed = False

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.lock = threading.Lock()

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def send(self, job_id: str) -> None:
        raise NotImplementedError

    def enqueue(
        self,
        job_id: str,
        function: Any,
        *args: Any,
        queue_name: str = "",
        key: str = "",
        value: int = 0,
        **options: Any,
    ) -> None:
        """Enqueue a job in this queue, or in a random one, and note the call."""
        queue = queues.queue(queue_name or random.choice(QUEUE_NAMES))
        called = time.monotonic()
        job = queue.enqueue(
            function,
            args=args,
            job_id=job_id,
            result_ttl=KEEP_SECONDS,
            failure_ttl=KEEP_SECONDS,
            **options,
        )
        self.calls.append(Call(job.id, queue.name, key, value, called, time.monotonic()))

    def enqueue_unique(
        self, job_id: str, function: Any, number: int, *args: Any, value: int = 0, **options: Any
    ) -> None:
        """Enqueue a job whose key is `number`. All jobs of a key are in one queue."""
        queue_name = QUEUE_NAMES[number % len(QUEUE_NAMES)]
        key = f"{self.name}:{number}"
        self.enqueue(
            job_id, function, number, *args, queue_name=queue_name, key=key, value=value, **options
        )

    def check(self, evidence: Evidence) -> list[str]:
        return []


class Plain(Policy):
    """Jobs without policies."""

    def send(self, job_id: str) -> None:
        self.enqueue(job_id, jobs.plain, job_seconds())


class Limited(Policy):
    """At most `LIMIT` jobs of a user run at a time."""

    def send(self, job_id: str) -> None:
        user = random.randrange(USERS)
        seconds = job_seconds(LIMITED_JOB_SECONDS)
        self.enqueue(job_id, jobs.limited, user, seconds, key=f"user:{user}")

    def check(self, evidence: Evidence) -> list[str]:
        return over_limit(evidence, jobs.LIMIT)


class Rated(Policy):
    """In no window start more jobs than the rate and the burst allow."""

    def send(self, job_id: str) -> None:
        self.enqueue(job_id, jobs.rated, job_seconds(), key="rated")

    def check(self, evidence: Evidence) -> list[str]:
        return over_rate(evidence)


class LimitedAndRated(Policy):
    """A limit and a rate for the same key."""

    def send(self, job_id: str) -> None:
        user = random.randrange(USERS)
        seconds = job_seconds(LIMITED_JOB_SECONDS)
        self.enqueue(job_id, jobs.limited_and_rated, user, seconds, key=f"both:{user}")

    def check(self, evidence: Evidence) -> list[str]:
        return over_limit(evidence, jobs.LIMIT) + over_rate(evidence)


class Pausable(Policy):
    """Jobs of the function that is paused several times."""

    def send(self, job_id: str) -> None:
        self.enqueue(job_id, jobs.pausable, job_seconds())


class Expiring(Policy):
    """A job either runs, or has expired before its first run."""

    has_on_failed = True
    outcomes = ("finished", "expired")

    def send(self, job_id: str) -> None:
        self.enqueue(job_id, jobs.expiring, job_seconds())

    def check(self, evidence: Evidence) -> list[str]:
        faults = []
        for call in evidence.calls:
            runs = evidence.runs.get(call.job_id, [])
            ended = evidence.ended[call.job_id]
            due = call.returned + jobs.EXPIRES_SECONDS
            if ended.outcome == "expired" and runs:
                faults.append(f"{call.job_id} has expired after a run: {runs[0]}")
            elif ended.may_expire and runs and runs[0].claimed > due + CLOCK_TOLERANCE_SECONDS:
                faults.append(f"{call.job_id} was claimed after it had expired: {runs[0]}")
        return faults


class Flaky(Policy):
    """A job fails, and is retried after a backoff, a counted number of times."""

    has_on_failed = True

    def send(self, job_id: str) -> None:
        self.enqueue(job_id, jobs.flaky, job_seconds())

    def check(self, evidence: Evidence) -> list[str]:
        faults = []
        for call in evidence.calls:
            counts = [int(run.note) for run in evidence.runs.get(call.job_id, [])]
            if evidence.ended[call.job_id].is_poisoned:
                continue
            if sorted(counts) != counts or set(counts) != set(range(jobs.FAILURES + 1)):
                faults.append(f"{call.job_id} ran with these numbers of retries before: {counts}")
        return faults + too_early(evidence, jobs.FLAKY_DELAY_SECONDS / 2)  # with jitter


class Failing(Policy):
    """A job fails for good after its retry."""

    has_on_failed = True
    outcomes = ("failed",)

    def send(self, job_id: str) -> None:
        self.enqueue(job_id, jobs.failing, job_seconds())

    def check(self, evidence: Evidence) -> list[str]:
        return [
            f"{call.job_id} failed without its retry"
            for call in evidence.calls
            if not evidence.ended[call.job_id].is_poisoned
            and len(evidence.runs.get(call.job_id, [])) < 2
        ]


class Discarded(Policy):
    """A job ends at once, told apart from a failed one."""

    has_on_failed = True
    outcomes = ("discarded",)

    def send(self, job_id: str) -> None:
        self.enqueue(job_id, jobs.discarded, job_seconds(), random.random() < 0.5)


class Snoozing(Policy):
    """A snoozed job comes back, not too early, and no retry is counted."""

    def send(self, job_id: str) -> None:
        until = time.monotonic() + random.uniform(0.0, 1.5)
        self.enqueue(job_id, jobs.snoozing, job_seconds(), until)

    def check(self, evidence: Evidence) -> list[str]:
        return too_early(evidence, jobs.SNOOZE_SECONDS)


class UniqueByArgs(Policy):
    """Never two runs of a key at once, retries included. Half of the calls ask for an error."""

    def send(self, job_id: str) -> None:
        number = random.randrange(UNIQUE_KEYS)
        on_conflict = random.choice(("return", "raise"))
        try:
            self.enqueue_unique(job_id, jobs.unique_by_args, number, on_conflict=on_conflict)
        except rqjobs.DuplicateJob as error:
            if not error.existing_id.startswith(self.name):
                raise

    def check(self, evidence: Evidence) -> list[str]:
        return over_limit(evidence, 1)


class Kept(Policy):
    """The key stays taken for a time after the end of a job."""

    def send(self, job_id: str) -> None:
        with self.lock:
            self.enqueue_unique(job_id, jobs.kept, random.randrange(UNIQUE_KEYS))

    def check(self, evidence: Evidence) -> list[str]:
        faults = over_limit(evidence, 1)
        for before, after in evidence.successors():
            ended = max((run.last for run in evidence.runs.get(before.job_id, [])), default=0.0)
            seconds = after.returned - ended
            if seconds < jobs.KEEP_SECONDS - CLOCK_TOLERANCE_SECONDS:
                faults.append(f"{after.job_id} was accepted {seconds:.3f} s after {before.job_id}")
        return faults


class UniqueUntilStarted(Policy):
    """After each call, the returned job begins."""

    def send(self, job_id: str) -> None:
        self.enqueue_unique(job_id, jobs.unique_until_started, random.randrange(UNIQUE_KEYS))

    def check(self, evidence: Evidence) -> list[str]:
        faults = []
        for call in evidence.calls:
            starts = [run.began for run in evidence.runs.get(call.job_id, [])]
            if not evidence.ended[call.job_id].is_poisoned and max(starts, default=0) < call.called:
                faults.append(f"{call.job_id} did not begin after the call at {call.called:.3f}")
        return faults


class Replaced(Policy):
    """A waiting job runs with the arguments of the last call."""

    def send(self, job_id: str) -> None:
        with self.lock:
            value = len(self.calls) + 1
            number = random.randrange(UNIQUE_KEYS)
            self.enqueue_unique(job_id, jobs.replaced, number, value, value=value)

    def check(self, evidence: Evidence) -> list[str]:
        faults = over_limit(evidence, 1)
        for job_id, calls in evidence.calls_of_jobs().items():
            runs = evidence.runs.get(job_id, [])
            if len(runs) != 1:  # a call during the first run of two replaces nothing
                continue
            before = [call.value for call in calls if call.returned < runs[0].claimed]
            if int(runs[0].note) < max(before, default=0):
                faults.append(f"{runs[0]} had {runs[0].note} and not {max(before)}")
        return faults


class Debounced(Policy):
    """The calls of a key within the debounce end in one run, with the last arguments."""

    def send(self, job_id: str) -> None:
        with self.lock:
            value = len(self.calls) + 1
            number = random.randrange(UNIQUE_KEYS)
            self.enqueue_unique(job_id, jobs.debounced, number, value, value=value)

    def check(self, evidence: Evidence) -> list[str]:
        faults = []
        due = {job_id: earliest(calls) for job_id, calls in evidence.calls_of_jobs().items()}
        for job_id, calls in evidence.calls_of_jobs().items():
            runs = evidence.runs.get(job_id, [])
            if not runs or evidence.ended[job_id].is_poisoned:
                continue
            if int(runs[-1].note) != calls[-1].value:
                faults.append(f"{runs[-1]} had {runs[-1].note} and not {calls[-1].value}")
            if runs[0].began < due[job_id]:
                faults.append(f"{runs[0]} began {due[job_id] - runs[0].began:.3f} s too early")
        for before, after in evidence.successors():
            if after.returned < due[before.job_id]:
                faults.append(f"{after.job_id} is a second job of the debounce of {before.job_id}")
        return faults


def earliest(calls: list[Call]) -> float:
    """The earliest time at which a debounced job may begin after these calls."""
    first = calls[0].called
    due = first + jobs.DEBOUNCE_SECONDS
    for call in calls[1:]:
        if call.returned < due:  # otherwise the job may have been due already
            due = min(call.called + jobs.DEBOUNCE_SECONDS, first + jobs.DEBOUNCE_MAX_SECONDS)
    return due - CLOCK_TOLERANCE_SECONDS


class Combined(Policy):
    """Unique jobs with a limit, a rate and retries."""

    def send(self, job_id: str) -> None:
        self.enqueue_unique(job_id, jobs.combined, random.randrange(UNIQUE_KEYS))

    def check(self, evidence: Evidence) -> list[str]:
        together = evidence.with_one_key("combined")
        return over_limit(evidence, 1) + over_limit(together, 1) + over_rate(together)


def job_seconds(mean: float = MEAN_JOB_SECONDS) -> float:
    if random.random() < LONG_JOB_SHARE:
        return LONG_JOB_SECONDS
    return random.expovariate(1 / mean)


def too_early(evidence: Evidence, delay_seconds: float) -> list[str]:
    """The runs that began sooner than this after a run whose retry or snooze was recorded.

    The delay counts from the end of that run.
    """
    faults = []
    for call in evidence.calls:
        runs = evidence.runs.get(call.job_id, [])
        for recorded in evidence.ended[call.job_id].retried:
            ends = [run.last for run in runs if run.last < recorded + CLOCK_TOLERANCE_SECONDS]
            for run in runs:
                seconds = run.began - max(ends, default=0.0)
                if run.began > recorded and seconds < delay_seconds - CLOCK_TOLERANCE_SECONDS:
                    faults.append(f"{run} began {seconds:.3f} s after the run before it")
    return faults


def over_limit(evidence: Evidence, limit: int) -> list[str]:
    """The first moments of each key at which more runs than its limit went on."""
    faults = []
    for key, runs in evidence.runs_of_keys().items():
        going_on: list[Run] = []
        for run in sorted(runs, key=lambda run: run.began):
            going_on = [other for other in going_on if other.last > run.began]
            going_on.append(run)
            if len(going_on) > limit:
                names = ", ".join(map(str, going_on))
                faults.append(f"{key}: {len(going_on)} at once at {run.began:.3f}: {names}")
    return faults


def over_rate(evidence: Evidence) -> list[str]:
    """Windows in which more jobs of a key began than its rate and its burst allow.

    A job takes its token between the times `claimed` and `began`. So the jobs with both times in a
    window have surely taken their tokens in it.
    """
    faults = []
    for key, runs in evidence.runs_of_keys().items():
        starts: list[float] = []
        for run in sorted(runs, key=lambda run: run.claimed, reverse=True):
            bisect.insort(starts, run.began)
            first = bisect.bisect_left(starts, run.began)
            for number, end in enumerate(starts[first:], first + 1):
                seconds = end - run.claimed + CLOCK_TOLERANCE_SECONDS
                if number > jobs.BURST + jobs.RATE_PER_SECOND * seconds:
                    faults.append(f"{key}: {number} starts within {seconds:.3f} s from {run}")
                    break
    return faults


POLICIES: tuple[type[Policy], ...] = (
    Plain,
    Limited,
    Rated,
    LimitedAndRated,
    Pausable,
    Expiring,
    Flaky,
    Failing,
    Discarded,
    Snoozing,
    UniqueByArgs,
    Kept,
    UniqueUntilStarted,
    Replaced,
    Debounced,
    Combined,
)
