"""Job functions for the tests: some succeed, some fail, some wait for a signal of the test."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import enum
import functools
import logging
import os
import signal
import time

import psutil
from rq import Retry, get_current_job

from rqjobs import Snooze, cancelled, job, queues
from rqjobs.worker import horse, listener, settlement, worker

if "SAMPLE_JOBS_SPAN" in os.environ:  # for how long the jobs of one claim may take
    horse.BATCH_SECONDS = float(os.environ["SAMPLE_JOBS_SPAN"])


if "SAMPLE_JOBS_BEAT" in os.environ:  # seconds between two heartbeats
    worker.HEARTBEAT_SECONDS = float(os.environ["SAMPLE_JOBS_BEAT"])
if "SAMPLE_JOBS_BLOCK" in os.environ:  # seconds for which a blocking pop waits
    listener.BLOCK_SECONDS = horse.BLOCK_SECONDS = int(os.environ["SAMPLE_JOBS_BLOCK"])
if "SAMPLE_JOBS_HANDLER_SECONDS" in os.environ:
    settlement.HANDLER_SECONDS = float(os.environ["SAMPLE_JOBS_HANDLER_SECONDS"])


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntFlag):
    SMALL = 1
    LARGE = 2


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int = 0
    tags: frozenset = frozenset()


class Outer:
    @dataclasses.dataclass
    class Inner:
        name: str


def ok(value=None):
    """Return what it is given."""
    return value


def add(a: int, b: int = 1) -> int:
    """Add two whole numbers."""
    return a + b


def boom(message: str = "boom"):
    raise ValueError(message)


def say(text: str) -> str:
    """Say it back."""
    return text


def warn_in_steps(text: str):
    """Log twice: the first line is sent while the job runs, the second one with its outcome."""
    logging.getLogger(__name__).warning(text)
    time.sleep(0.3)
    logging.getLogger(__name__).warning(text)


def mark(name: str):
    """Append this job's id to the list `name` in Redis. A test counts the runs by it."""
    current = get_current_job()
    current.connection.rpush(name, current.id)
    return name


def hang(gate: str, seconds: float = 600.0):
    """Mark `gate` as reached and wait until a test opens it, for at most `seconds`."""
    connection = get_current_job().connection
    connection.rpush(f"{gate}:reached", os.getpid())
    end = time.monotonic() + seconds
    while not connection.blpop([f"{gate}:open"], timeout=1) and time.monotonic() < end:
        pass
    return gate


def kill_self(number: int = signal.SIGKILL):
    os.kill(os.getpid(), number)


def leave(code: int = 7):
    os._exit(code)


def flaky(name: str, failures: int):
    """Fail `failures` times, then succeed."""
    if get_current_job().connection.incr(name) <= failures:
        raise RuntimeError(f"failure of {name}")
    return name


def long(letters: int) -> str:
    return "x" * letters


def empty_lists(number: int) -> list:
    return [[]] * number


def noise(letters: int):
    """Fail with a message that cannot be compressed."""
    raise ValueError(os.urandom(letters).hex())


def large_meta(letters: int, save: bool = False):
    """Fail with a large meta, saved or not."""
    current = get_current_job()
    current.meta["large"] = "x" * letters
    if save:
        current.save_meta()
    raise ValueError("large meta")


def mark_and_boom(name: str):
    mark(name)
    raise ValueError(name)


def again(name: str):
    """Ask for one more run by return value."""
    return Retry(max=3) if get_current_job().connection.incr(name) < 2 else name


@job(limit=2)
def two_at_a_time(value=None):
    return value


@job(limit=1, limit_by="{name}")
def one_for_each_name(name: str):
    return name


@job(limit=1, unique="args", on_conflict="replace")
def replaced_one_at_a_time(value: int):
    return value


@job(limit=1, limit_by="user:{user}")
def one_for_each_user(user: int, gate: str = ""):
    return hang(gate) if gate else user


@job(rate="2/h", burst=2)
def twice_an_hour(value=None):
    return value


@job(rate="20/s", limit_by="api")
def call_api(name: str):
    return mark(name)


@job(unique="args")
def unique_args(value=None, other=0):
    return value


@job(unique="charge:{invoice}")
def charge(invoice: int, amount: float = 0.0, gate: str = ""):
    return hang(gate) if gate else amount


@job(unique="args", until="started")
def unique_until_started(value=None):
    return value


@job(unique="args", keep=60)
def unique_kept(value=None):
    return value


@job(unique="{name}")
def alone(name: str, version: int = 0):
    """Note if another live process runs a job of this name, and append the version to a list."""
    connection = get_current_job().connection
    other = int(connection.getset(f"alone:{name}", os.getpid()) or 0)
    if other and other != os.getpid() and _is_running(other):
        connection.rpush("beside", f"{name} {other} {os.getpid()}")
    time.sleep(0.01)
    connection.rpush(f"ran:{name}", version)
    connection.delete(f"alone:{name}")


def _is_running(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@job(debounce=5, debounce_max=60, unique="{name}")
def index(name: str, version: int = 0):
    """Append the version to a list in Redis."""
    get_current_job().connection.rpush(f"indexed:{name}", version)


async def later(value):
    return value


async def third_time(name: str):
    """Ask for a later run, fail, and succeed, in turns."""
    number = get_current_job().connection.incr(f"third:{name}")
    if number % 3 == 1:
        raise Snooze(0.001)
    if number % 3 == 2:
        raise TimeoutError(name)
    return number


@job(queue="high", timeout=30, result_ttl=600)
def urgent(value: int = 0):
    return value


def progress(steps: int = 3):
    current = get_current_job()
    for step in range(steps):
        current.meta["done"] = step + 1
        current.save_meta()
        time.sleep(0.01)
    return steps


def on_done(job, connection, result):
    connection.rpush("callback", f"done:{job.id}:{result}")


def on_failed(job, connection, kind, value, trace):
    connection.rpush("callback", f"failed:{job.id}:{value}")


def in_app():
    from flask import current_app

    return current_app.name


def _hidden():
    return "never"


def hang_then(gate: str, what: str):
    """Hang until the gate opens, then do `what`: "ok", "boom" or "again"."""
    hang(gate)
    return {"ok": ok, "boom": boom, "again": lambda: Retry(max=3)}[what]()


def stubborn(seconds: float):
    """Work on after the time limit."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(0.05)
        except BaseException:
            continue


def pid() -> int:
    return os.getpid()


def on_stopped(job, connection):
    connection.rpush("callback", f"stopped:{job.id}")


def hang_in_callback(job, connection, *outcome):
    """Work for a minute, also after the time limit."""
    connection.rpush("hanging", job.id)
    stubborn(60)
    connection.rpush("over", job.id)


def hang_in_handler(job, *how):
    hang_in_callback(job, job.connection)


class WithHandler(worker.Worker):
    def __init__(self, *args, **options):
        super().__init__(*args, work_horse_killed_handler=hang_in_handler, **options)


def boom_in_callback(job, connection, result):
    raise ValueError("in the callback")


def note_killed(job, *how):
    job.connection.rpush("killed", job.id)


def handle_exception(job, kind, value, trace):
    """An RQ exception handler (`--exception-handler sample_jobs.handle_exception`)."""
    job.connection.rpush("handled", f"{job.id}:{value}")


def whoami() -> str:
    return get_current_job().id


def plan_next_run(times: int, way: str) -> int:
    """Enqueue the job's own next run, under its own id."""
    job_id = get_current_job().id
    if times and way == "in":
        queues.enqueue_in(0.01, plan_next_run, times - 1, way, job_id=job_id)
    elif times:
        queues.enqueue(plan_next_run, times - 1, way, job_id=job_id)
    return times


def strange():
    return object()


def noted(path: str, what: str = "ok"):
    """Add a line to the file `path` for each run, and do `what`. The job needs no Redis.

    "first boom" and "first again" apply to the first try, by the job's counters. "wait" waits
    until the file `path.open` has text, and then does what the text names.
    """
    with open(path, "a") as file:
        file.write("run\n")
    current = get_current_job()
    if what == "wait":
        while not os.path.exists(f"{path}.open") or not os.path.getsize(f"{path}.open"):
            time.sleep(0.01)
        with open(f"{path}.open") as file:
            what = file.read()
    if what == "boom" or (what == "first boom" and current.retries_left == 2):
        raise ValueError(what)
    return Retry(max=3) if what == "first again" and not current.number_of_retries else "done"


def note_end(job, connection, *outcome):
    """A callback that adds a line to the file `<first argument of the job>.end`."""
    with open(f"{job.args[0]}.end", "a") as file:
        file.write("end\n")


def note(what: str = "", number: int = 0):
    """Append this job's id to the list `notes` in Redis."""
    current = get_current_job()
    current.connection.rpush("notes", current.id)
    return f"{what}{number}"


def follow(child: str):
    """Enqueue a job that depends on this one."""
    job = get_current_job()
    queues.Queue(job.origin, connection=job.connection).enqueue(ok, depends_on=job, job_id=child)


def nap(seconds: float):
    time.sleep(seconds)


_before: contextvars.ContextVar[str | None] = contextvars.ContextVar("before", default=None)


def before(name: str):
    """Return what an earlier job of this process left in a context variable. Leave `name` in it."""
    found = _before.get()
    _before.set(name)
    return [found, os.getpid()]


def split(ending="return"):
    """Fork, and end in both processes, the child first."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return "parent"
    if ending == "exit":
        raise SystemExit(3)
    if ending == "raise":
        raise ValueError("in the child")
    return "child"


@dataclasses.dataclass
class Order:
    customer: Outer.Inner
    points: list[Point]
    colors: dict[str, Color] = dataclasses.field(default_factory=dict)


def order(order: Order, sizes: list[Size] = (Size.SMALL,)) -> str:  # type: ignore[assignment]
    """Return what arrived, so that a test can compare all nested values with the annotations."""
    return repr((order, sizes))


def pass_on(value):
    """Enqueue another job with the process's own client, as an application does."""
    return queues.enqueue(ok, value).id


def describe(description, delay=0, *, function=""):
    """The parameters have the names of options and parameters of enqueue."""
    return [description, delay, function]


@functools.lru_cache
def cached(value):
    return value


@job(expires=60)
def expiring(value=None):
    return value


def loop_until_cancelled():
    """Work on until the job is canceled, and then clean up."""
    connection = get_current_job().connection
    connection.set("looping", os.getpid())
    end = time.monotonic() + 100
    while not cancelled() and time.monotonic() < end:
        time.sleep(0.05)
    connection.set("cleaned up", str(cancelled()))


def snooze_once(name: str):
    """Ask for another run after half a minute, and succeed in it."""
    if get_current_job().connection.incr(name) == 1:
        raise Snooze(30)
    return name


def note_failure(job_id: str, function: str, error: str):
    """The target of `on_failed`: append what it is given to the list `noted` in Redis."""
    get_current_job().connection.rpush("noted", f"{job_id} {function} {error}")


@job(on_failed="sample_jobs:note_failure")
def boom_and_note(message: str = "boom"):
    raise ValueError(message)


@job(expires=60)
def note_in_time(job_id: str, function: str, error: str):
    """A target of `on_failed` that expires: returns its own `rqjobs_expires`."""
    current = get_current_job()
    return current.connection.hget(current.key, "rqjobs_expires").decode()


@job(on_failed="sample_jobs:failing_note")
def boom_and_fail_to_note():
    raise ValueError("boom")


@job(on_failed="sample_jobs:failing_note")
def failing_note(job_id: str, function: str, error: str):
    raise KeyError("note")
