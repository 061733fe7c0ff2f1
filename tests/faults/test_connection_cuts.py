"""Faults at every command of a job: cut or silent connections, killed processes, refusals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import sample_jobs
from proxy import Fault, Proxy
from redis.exceptions import RedisError, ResponseError
from rq.job import Dependency, JobStatus

import rqjobs
from rqjobs import Callback, Repeat, Retry, config, processes
from rqjobs.broker import keys as broker_keys
from rqjobs.broker import scripts
from rqjobs.dev import redis_server
from rqjobs.maintenance import audit as maintenance_audit

SCRIPTS = {
    script.sha: name for name, script in vars(scripts).items() if isinstance(script, scripts.Script)
}
SETTLE = scripts.SETTLE.sha.encode()
QUEUES = ["default", "low"]
KINDS = {  # what `noted` does, its options, and how often it runs
    "plain": ("ok", {}, 1),
    "failing": ("boom", {}, 1),
    "failing with callback": ("boom", {"on_failure": Callback("sample_jobs.note_end")}, 1),
    "retry": ("first boom", {"retry": Retry(max=2)}, 2),
    "retry later": ("boom", {"retry": Retry(max=2, interval=60)}, 1),
    "retry by value": ("first again", {}, 2),
    "repeat": ("ok", {"repeat": Repeat(times=1)}, 2),
    "repeat later": ("ok", {"repeat": Repeat(times=1, interval=60)}, 1),
    "callback": ("ok", {"on_success": Callback("sample_jobs.note_end")}, 1),
    "forgotten": ("ok", {"result_ttl": 0}, 1),
    "dependent": ("ok", {}, 1),
}


class Stage:
    """A proxy, a process that forks workers behind it, and the case that is run."""

    def __init__(self, redis, eventually, folder: Path, timeout: float, block: float, tcp: bool):
        self.redis, self.eventually, self.folder = redis, eventually, folder
        self.sockets = tempfile.TemporaryDirectory(
            prefix="rqjobs-"
        )  # a socket's path must be short
        upstream = config.current().redis_url.removeprefix("unix://")
        self.proxy = Proxy("" if tcp else f"{self.sockets.name}/proxy", upstream, SCRIPTS)
        self.played = 0
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith("RQJOBS_")
        }
        environ |= {
            "PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(__file__).parents[1]}",
            "PYTHONUNBUFFERED": "1",
        }
        self.stable = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "proxy.py"), str(timeout), str(block)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ,
            text=True,
            start_new_session=True,
        )
        self.log = folder / "workers.log"
        self.pid = 0

    def start(self, proxied: bool = True, name: str | None = None) -> int:
        """Start a worker and return its pid once it waits for work."""
        url = self.proxy.url if proxied else config.current().redis_url
        order = {
            "queues": QUEUES,
            "url": url,
            "log": str(self.log),
            "options": {"name": name} if name else {},
        }
        print(json.dumps(order), file=self.stable.stdin, flush=True)
        self.pid = int(self.stable.stdout.readline())
        if proxied:
            self.idle()
        return self.pid

    def horse(self) -> int:
        """The pid of the horse of the worker behind the proxy, once it has one."""
        return self.eventually(
            lambda: next(
                (
                    child.pid
                    for child in psutil.Process(self.pid).children()
                    if processes.start_time(child.pid)
                ),
                0,
            ),
            what="a horse",
        )

    def lives(self) -> bool:
        return bool(processes.start_time(self.pid))

    def waits(self) -> bool:
        """Whether the worker's horse waits for work, on all of its queues."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return any(
                self.proxy.waiting(child.pid) == len(QUEUES)
                for child in psutil.Process(self.pid).children()
            )
        return False

    def idle(self) -> None:
        """Return once the worker's horse waits for work."""

        def waits():
            assert self.lives(), self.text()
            return self.waits()

        self.eventually(waits, what=lambda: f"a worker that waits for work\n{self.text()[-3000:]}")

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def enqueue(self, kind: str, what: str = ""):
        """Enqueue the jobs of a case. They do `what`, by default the action of their kind."""
        self.played += 1
        self.file = self.folder / f"case-{self.played}"
        what, options = what or KINDS[kind][0], KINDS[kind][1]
        queue = rqjobs.queue("default")
        if kind != "dependent":
            return [queue.enqueue(sample_jobs.noted, str(self.file), what, **options)]
        parent = queue.create_job(
            sample_jobs.noted, (str(self.file), what), status=JobStatus.QUEUED
        )
        child = queue.enqueue(sample_jobs.noted, f"{self.file}.child", depends_on=parent)
        queue.enqueue_job(parent)
        return [parent, child]

    def runs(self, suffix: str = "") -> int:
        path = Path(f"{self.file}{suffix}")
        return len(path.read_text().splitlines()) if path.exists() else 0

    def settled(self, kind: str, jobs) -> bool:
        """Whether these jobs have ended, or are scheduled for a time a minute away."""
        soon = time.time() + 30  # a crashed job is due sooner, "later" is after a minute
        with self.redis.pipeline() as pipe:  # between two commands a job could move on unseen
            pipe.zcount("rq:scheduled:default", soon, "+inf")
            pipe.zcount("rq:scheduled:default", 0, soon)
            pipe.exists("rq:queue:default", "rq:wip:default", "rq:deferred:default")
            for job in jobs:
                pipe.hget(job.key, "status")
            due_later, due_soon, places, *statuses = pipe.execute()
        expected_later = 1 if kind in ("retry later", "repeat later") else 0
        if (due_later, due_soon, places) != (expected_later, 0, 0):
            return False
        return {*statuses} <= {None, b"finished", b"failed", b"scheduled"}

    def ending(self, jobs) -> dict:
        """The state of these jobs in Redis, without ids and times."""
        return {number: self.state_of(job) for number, job in enumerate(jobs)}

    def state_of(self, job) -> tuple:
        """The job's counters, types of results and registries, and whether it has a token."""
        redis = self.redis
        stored = redis.hgetall(job.key)
        fields = {broker_keys.decode(name): value for name, value in stored.items()}
        counters = {
            name: fields[name]
            for name in ("status", "retries_left", "repeats_left")
            if name in fields
        }
        results = [entry[b"type"] for _, entry in redis.xrange(f"rq:results:{job.id}")]
        registries = [
            name
            for name in ("finished", "failed", "scheduled", "canceled")
            if redis.zscore(f"rq:{name}:default", job.id) is not None
        ]
        return counters, results, registries, "rqjobs_token" in fields

    def clear(self) -> None:
        """Delete the jobs, and leave the workers."""
        keys = [
            key
            for pattern in (
                "rq:job:*",
                "rq:results:*",
                "rq:finished:*",
                "rq:failed:*",
                "rq:scheduled:*",
                "rq:execution*",
                "rqjobs:sweep:strays:*",
            )
            for key in self.redis.scan_iter(pattern)
        ]
        if keys:
            self.redis.delete(*keys)

    def run_case(
        self,
        kind: str,
        fault: Fault,
        expected: dict | None = None,
        extra: int = 0,
        rescue: bool = False,
    ) -> dict:
        """Run one case, and return how it ended.

        Args:
            expected: the outcome that the case must have.
            extra: the number of further runs that are allowed.
            rescue: start another worker behind the proxy after the fault.
        """
        self.proxy.arm(fault)
        jobs = self.enqueue(kind)
        self.eventually(
            lambda: self.settled(kind, jobs) or (rescue and fault.fired.is_set()),
            what=lambda: f"{name(kind, fault)}\n{self.text()[-3000:]}",
        )
        self.eventually(
            lambda: fault.fired.is_set() or self.waits() or not self.lives(),
            what=lambda: f"{name(kind, fault)}: {fault}\n{self.text()[-3000:]}",
        )
        if rescue and (fault.fired.is_set() or not self.lives()):
            self.eventually(lambda: not self.lives(), what="the end of the killed")
            self.proxy.disarm()
            self.start()
        self.eventually(
            lambda: self.settled(kind, jobs),
            what=lambda: f"{name(kind, fault)}\n{self.text()[-3000:]}",
        )
        return self.check_case(kind, fault, jobs, expected, extra)

    def check_case(self, kind: str, fault: Fault, jobs, expected: dict | None, extra: int) -> dict:
        case = name(kind, fault)
        self.proxy.disarm()
        if self.lives():
            self.idle()
        found = self.ending(jobs)
        assert expected is None or found == expected, case
        assert 0 <= self.runs() - KINDS[kind][2] <= extra, (
            f"{case}: {self.runs()} runs\n{self.text()[-6000:]}"
        )
        if kind == "dependent":
            assert 0 <= self.runs(".child") - 1 <= extra, case
        if "callback" in kind:
            assert 0 <= self.runs(".end") - 1 <= extra, case
        assert not self.redis.keys("rqjobs:claims:*"), case
        audit = maintenance_audit.audit(self.redis, settle=0.2)
        assert not audit.breaches and not audit.remarks, f"{case}: {audit}"
        self.clear()
        return found

    def close(self) -> None:
        self.proxy.disarm()
        self.stable.stdin.close()
        self.stable.kill()
        self.stable.wait()
        self.stable.stdout.close()
        self.proxy.close()
        self.sockets.cleanup()


@pytest.fixture
def stage(redis, eventually, tmp_path):
    def wait(condition, timeout=15.0, what="the condition"):
        try:
            return eventually(condition, timeout, "")
        except AssertionError as error:
            raise AssertionError(what() if callable(what) else f"{what}: {error}") from None

    built = []

    def build(timeout=10.0, block=5.0, redis=redis, tcp=False):
        built.append(Stage(redis, wait, tmp_path, timeout, block, tcp))
        return built[-1]

    yield build
    for one in built:
        family = psutil.Process(one.stable.pid).children(recursive=True)
        one.close()
        eventually(lambda family=family: not any(processes.start_time(one.pid) for one in family))


def name(kind: str, fault: Fault) -> str:
    return (
        f"{kind}: {fault.what} {'after' if fault.after else 'before'} {fault.number}: {fault.hit}"
    )


def of(pid):
    return lambda sender, words: sender == pid


def not_of(pid):
    return lambda sender, words: sender != pid


MOVES = ("EVALSHA", "EXEC", "BLMOVE")  # the commands that move a job


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tcp"), [*((kind, False) for kind in KINDS), ("plain", True), ("retry", True)]
)
def test_connection_cut_at_every_command_of_a_job(stage, kind, tcp):
    """Before the command has reached Redis, and between its effect and its reply.

    The outcome is recorded once, and is the same as without a cut. No job runs twice.
    """
    stage = stage(tcp=tcp)
    parent = stage.start()
    expected = stage.run_case(kind, Fault(10**6, "none"))
    cuts = []
    for after in (False, True):
        for number in range(200):
            fault = Fault(
                number, "cut all" if number % 2 else "cut", after, not_of(parent), waits=after
            )
            stage.run_case(kind, fault, expected)
            if not fault.hit:
                break
            cuts.append(fault.hit)
    assert {"EVALSHA CLAIM", "BLMOVE", "CLIENT UNBLOCK"} <= set(cuts)
    assert {"EVALSHA SETTLE_SUCCESS", "EVALSHA SETTLE"} & set(cuts)
    assert stage.pid == parent and stage.lives()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "retry"])
def test_connection_cut_when_redis_has_no_scripts_loaded(stage, kind):
    """As after a failover.

    If the connection broke while the scripts were loaded again, the outcome was lost: a finished
    job ran again, or failed because its outcome "could not be recorded".
    """
    stage = stage()
    parent = stage.start()
    expected = stage.run_case(kind, Fault(10**6, "none"))
    horse, loads = stage.horse(), 0
    for number in range(200):
        jobs = stage.enqueue(kind, "wait")
        stage.eventually(lambda: stage.runs() == 1)
        stage.redis.script_flush()
        fault = stage.proxy.arm(Fault(number, "cut", bool(number % 2), not_of(parent)))
        Path(f"{stage.file}.open").write_text(KINDS[kind][0])
        stage.eventually(lambda jobs=jobs: stage.settled(kind, jobs), what=stage.text)
        stage.check_case(kind, fault, jobs, expected, 0)
        loads += fault.hit == "SCRIPT LOAD"
        if not fault.hit:
            break
    assert stage.horse() == horse
    assert loads and stage.pid == parent and stage.lives()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tcp"), [("plain", False), ("retry", False), ("forgotten", False), ("plain", True)]
)
@pytest.mark.parametrize("what", ["deaf", "mute"])
def test_silent_connection_at_every_command_of_a_job(stage, kind, what, tcp):
    """Nothing is closed, and either the replies or the requests do not arrive any more."""
    stage = stage(timeout=0.3, block=0.5, tcp=tcp)
    parent = stage.start()
    expected = stage.run_case(kind, Fault(10**6, "none"))
    hits = []
    for number in range(200):
        fault = Fault(number, f"{what} all" if number % 2 else what, False, not_of(parent))
        stage.run_case(kind, fault, expected)
        if not fault.hit:
            break
        hits.append(fault.hit)
    # How many commands there are depends on how often the horse waited in between.
    assert "EVALSHA CLAIM" in hits and len(hits) > 2
    assert stage.pid == parent and stage.lives()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_horse_killed_at_every_command_of_a_job(stage, kind):
    """Before each command, and after the effect of those that move a job.

    After the effect of any other command Redis is in the same state as before the next one.
    """
    stage = stage()
    parent = stage.start()
    expected = stage.run_case(kind, Fault(10**6, "none"))
    names = ["BLMOVE"]
    for number in range(200):
        fault = Fault(number, "kill", False, not_of(parent))
        stage.run_case(kind, fault, expected, extra=1)
        if not fault.hit:
            break
        names.append(fault.hit)
    for number, command in enumerate(names):
        if command.startswith(MOVES):
            stage.run_case(
                kind, Fault(number, "kill", True, not_of(parent), waits=True), expected, extra=1
            )
    assert stage.pid == parent and stage.lives()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "retry", "repeat", "dependent"])
def test_worker_killed_at_every_command_of_a_job(stage, kind):
    """The parent is killed when its horse sends the command. Another worker runs the job."""
    stage = stage()
    parent = stage.start()
    expected = stage.run_case(kind, Fault(10**6, "none"))
    for after in (False, True):
        for number in range(200):
            parent = stage.pid
            fault = Fault(number, "kill", after, not_of(parent), waits=after, victim=parent)
            stage.run_case(kind, fault, expected, extra=1, rescue=True)
            if not fault.fired.is_set():
                break
    assert not stage.redis.keys("rqjobs:claims:*")
    stage.eventually(lambda: stage.redis.zcard(broker_keys.LEASES) == 1, what="the last sweep")


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_parent_killed_at_every_command_of_its_own(stage, after):
    """While a job runs: through a whole round of heartbeat, sweep and published state."""
    stage = stage()
    stage.start()
    expected = stage.run_case("plain", Fault(10**6, "none"))
    spy = stage.proxy.arm(Fault(10**6, "none", match=of(stage.pid)))
    stage.eventually(lambda: spy.seen.count("EVALSHA BEGIN_SWEEP") > 2)
    sweeps = [at for at, name in enumerate(spy.seen) if name == "EVALSHA BEGIN_SWEEP"]
    for number in range(max(later - sooner for sooner, later in pairwise(sweeps)) + 5):
        (job,) = stage.enqueue("plain", "wait")
        stage.eventually(lambda: stage.runs() == 1)
        fault = stage.proxy.arm(Fault(number, "kill", after, of(stage.pid)))
        stage.eventually(fault.fired.is_set, what="the kill")
        stage.eventually(lambda: not stage.lives())
        Path(f"{stage.file}.open").write_text("ok")
        stage.start()
        stage.eventually(lambda job=job: stage.settled("plain", [job]), what=stage.text)
        stage.check_case("plain", fault, [job], expected, 1)


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_before_the_dependents_of_a_failed_job_are_enqueued(stage, redis, after):
    stage = stage()
    stage.start()
    stage.file = stage.folder / "child"
    poison = rqjobs.queue("default").create_job(sample_jobs.kill_self, status=JobStatus.QUEUED)
    poison.save()
    redis.hset(poison.key, "rqjobs_crashes", f"{int(time.time())},{int(time.time())}")
    child = rqjobs.queue("default").enqueue(
        sample_jobs.noted, str(stage.file), depends_on=Dependency(jobs=[poison], allow_failure=True)
    )
    waking = (b"EVALSHA", redis.script_load(scripts.ENQUEUE_DEPENDENTS.source).encode())
    fault = stage.proxy.arm(Fault(0, "kill", after, lambda pid, words: tuple(words[:2]) == waking))
    rqjobs.queue("default").enqueue_job(poison)
    stage.eventually(fault.fired.is_set, what=stage.text)
    stage.eventually(lambda: not stage.lives())
    assert child.get_status() == (JobStatus.QUEUED if after else JobStatus.DEFERRED)
    stage.start()
    stage.eventually(lambda: child.is_finished)
    assert stage.runs() == 1 and poison.is_failed and not redis.exists(broker_keys.ENDED_PARENTS)


@contextlib.contextmanager
def read_only(redis):
    """Redis is a replica, as an old master after a failover."""
    redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    yield
    redis.execute_command("REPLICAOF", "NO", "ONE")


@contextlib.contextmanager
def changed(redis, name, value):
    (before,) = redis.config_get(name).values()
    redis.config_set(name, value)
    yield
    redis.config_set(name, before)


@contextlib.contextmanager
def busy(redis):
    """A script that does not end."""
    redis.config_set("lua-time-limit", 10)
    other = rqjobs.connection.connect(config.current().redis_url)

    def loop():
        with contextlib.suppress(RedisError):
            other.eval("while true do end", 0)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        while True:
            try:
                redis.ping()
            except ResponseError:
                break
        yield
    finally:
        redis.script_kill()
        thread.join()
        other.close()


@contextlib.contextmanager
def unsaved(redis):
    """MISCONF: Redis cannot write a snapshot, as on a full disk."""
    target = Path(redis.config_get("dir")["dir"]) / redis.config_get("dbfilename")["dbfilename"]
    target.mkdir()
    with changed(redis, "save", "3600 1"):
        redis.bgsave()
        while redis.info("persistence")["rdb_last_bgsave_status"] == "ok":
            pass
        yield
    target.rmdir()


REFUSALS = {
    "READONLY": read_only,
    "OOM": lambda redis: changed(redis, "maxmemory", 1),
    "NOREPLICAS": lambda redis: changed(redis, "min-replicas-to-write", 1),
    "BUSY": busy,
    "MISCONF": unsaved,
    "LOADING": None,  # the proxy sends this error
}


@pytest.fixture
def own_redis(executable):
    """A Redis of this test that keeps every write; `start` and `kill` it."""
    runs = contextlib.ExitStack()
    with tempfile.TemporaryDirectory(prefix="rqjobs-") as folder, runs:

        class Own:
            # Options with which Redis takes two seconds to load 5,000 keys; 6.2 has none.
            slowly = () if redis_server.version(executable) < (7,) else ("--key-load-delay", "400")

            def start(self, *options):
                self.url = runs.enter_context(
                    redis_server.server(
                        Path(folder), "--appendfsync", "always", *options, executable=executable
                    )
                )
                config.use(redis_url=self.url)
                self.redis = rqjobs.connection.client()
                return self

            def kill(self, number=signal.SIGKILL):
                self.pid = (
                    self.pid
                    if number == signal.SIGCONT
                    else self.redis.info("server")["process_id"]
                )
                os.kill(self.pid, number)

        yield Own().start()


@pytest.mark.parametrize("kind", ["plain", "retry", "callback"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_outcome_is_recorded_once_redis_accepts_writes_again(stage, own_redis, kind, refusal):
    """redis-py prefixed BUSY with text of its own. It was not recognized, and the job failed."""
    stage = stage(redis=own_redis.redis)
    stage.start()
    horse = stage.horse()
    jobs = stage.enqueue(kind, "wait")
    stage.eventually(lambda: stage.runs() == 1)
    with REFUSALS[refusal](own_redis.redis) if REFUSALS[refusal] else loading(stage.proxy):
        Path(f"{stage.file}.open").write_text(KINDS[kind][0])
        stage.eventually(lambda: "keeps what it has" in stage.text(), what=stage.text)
    stage.eventually(lambda: stage.settled(kind, jobs), what=stage.text)
    assert jobs[0].get_status() == JobStatus.FINISHED, stage.text()
    assert (stage.runs(), stage.horse()) == (KINDS[kind][2], horse)
    assert not own_redis.redis.hexists(jobs[0].key, "rqjobs_crashes")
    stage.run_case("plain", Fault(10**6, "none"))


COMMANDS = {
    "rq worker": ("rq.cli", "worker", "--worker-class", "rqjobs.Worker", "--with-scheduler"),
    "rqjobs worker": ("rqjobs", "worker"),
    "rq worker-pool": ("rq.cli", "worker-pool", "--worker-class", "rqjobs.Worker"),
}


@contextlib.contextmanager
def killed(own):
    own.kill()
    yield own.url
    own.start()


@contextlib.contextmanager
def silent(own):
    own.kill(signal.SIGSTOP)
    yield own.url
    own.kill(signal.SIGCONT)


@contextlib.contextmanager
def replica(own):
    with read_only(own.redis):
        yield own.url


@contextlib.contextmanager
def loading(proxy):
    proxy.refusal = b"LOADING Redis is loading the dataset in memory"
    yield proxy.url
    proxy.refusal = b""


@contextlib.contextmanager
def behind_a_loading_one(own):
    proxy = Proxy("", own.url.removeprefix("unix://"))
    try:
        with loading(proxy):
            yield proxy.url
        yield
    finally:
        proxy.close()


@pytest.mark.parametrize(
    ("away", "command"),
    [
        *((killed, command) for command in COMMANDS),
        (silent, "rq worker"),
        (replica, "rq worker"),
        (behind_a_loading_one, "rq worker"),
    ],
)
def test_worker_started_before_redis_waits_for_it(own_redis, spawn, eventually, away, command):
    """RQ's command line asks Redis before it makes a worker, and exits without an answer."""
    job = rqjobs.queue("default").enqueue(sample_jobs.ok, 1)
    scene = away(own_redis)
    url = next(scene.gen)
    worker = spawn(sys.executable, "-m", *COMMANDS[command], "default", env={"REDIS_URL": url})
    eventually(
        lambda: "waits for Redis" in worker.output() or worker.poll() is not None, timeout=30
    )
    assert worker.poll() is None, worker.output()
    next(scene.gen, None)
    eventually(lambda: job.is_finished, timeout=30, what="the job")
    worker.terminate()
    assert worker.wait(30) == 0, worker.output()
    scene.gen.close()
    assert not own_redis.redis.exists("rqjobs:leases", "rq:workers") and own_redis.redis.ping()


def test_worker_that_waits_for_its_first_reply_stops_on_sigterm(own_redis, spawn, eventually):
    own_redis.kill()
    worker = spawn(sys.executable, "-m", *COMMANDS["rq worker"], env={"REDIS_URL": own_redis.url})
    eventually(lambda: "waits for Redis" in worker.output())
    worker.terminate()
    assert worker.wait(20) == 0, worker.output()
    own_redis.start()


def test_worker_with_a_wrong_password_exits_at_once(own_redis, spawn):
    own_redis.redis.config_set("requirepass", "secret")
    worker = spawn(sys.executable, "-m", *COMMANDS["rq worker"], env={"REDIS_URL": own_redis.url})
    assert worker.wait(20) == 1 and "authenticate" in worker.output()
    with rqjobs.connection.connect(f"{own_redis.url}?password=secret") as client:
        client.config_set("requirepass", "")


def test_registration_whose_reply_was_lost_is_not_a_name_conflict(stage, redis):
    """The second try found a worker of the same name, and took it for another one."""
    stage = stage()
    fault = stage.proxy.arm(Fault(0, "cut", True, lambda pid, words: words[0] == b"EXEC"))
    stage.start(name="fixed")
    assert fault.hit == "EXEC" and stage.lives(), stage.text()
    assert redis.sismember("rq:workers", "rq:worker:fixed")


@pytest.mark.slow
def test_horse_that_waits_for_redis_is_kept_and_a_frozen_one_replaced(stage, redis):
    """A horse may settle for hours if it reports its tries. A silent one was never replaced."""
    stage = stage(timeout=0.3, block=0.5)
    stage.start()
    horse, limit = stage.horse(), 10 * 0.3 + 3
    (job,) = stage.enqueue("retry", "wait")
    stage.eventually(lambda: stage.runs() == 1)
    with read_only(redis):
        Path(f"{stage.file}.open").write_text(KINDS["retry"][0])
        stage.eventually(lambda: "keeps what it has" in stage.text())
        since = time.monotonic()
        stage.eventually(lambda: time.monotonic() > since + limit + 1)
    stage.eventually(lambda: stage.settled("retry", [job]))
    assert stage.horse() == horse and stage.runs() == 2 and job.is_finished

    fault = stage.proxy.arm(
        Fault(0, "stop", False, lambda pid, words: words[:2] == [b"EVALSHA", SETTLE])
    )
    (job,) = stage.enqueue("failing")
    stage.eventually(fault.fired.is_set)
    stage.eventually(lambda: psutil.Process(horse).status() == psutil.STATUS_STOPPED)
    stage.eventually(lambda: stage.settled("failing", [job]), timeout=30, what=stage.text)
    assert stage.horse() != horse and "has been unresponsive for" in stage.text()
    assert job.is_failed and stage.runs() == 2 and not redis.hexists(job.key, "rqjobs_crashes")


@pytest.mark.parametrize("kind", ["plain", "retry"])
def test_redis_killed_and_restarted_while_a_job_runs(stage, own_redis, kind):
    """Worker and horse stay, also while Redis loads its file, which takes two seconds here.

    They record the outcome afterwards.
    """
    stage = stage(redis=own_redis.redis)
    stage.start(proxied=False)
    horse = stage.horse()
    with own_redis.redis.pipeline(transaction=False) as pipe:
        for number in range(5000):
            pipe.set(f"ballast:{number}", 1)
        pipe.execute()
    jobs = stage.enqueue(kind, "wait")
    stage.eventually(lambda: stage.runs() == 1)
    own_redis.kill()
    Path(f"{stage.file}.open").write_text(KINDS[kind][0])
    stage.eventually(lambda: "keeps what it has" in stage.text(), what=stage.text)
    own_redis.start(*own_redis.slowly)
    stage.eventually(lambda: stage.settled(kind, jobs), what=stage.text)
    assert jobs[0].get_status() == JobStatus.FINISHED, stage.text()
    assert (stage.runs(), stage.horse()) == (KINDS[kind][2], horse)
    assert not maintenance_audit.audit(own_redis.redis, settle=0.2).breaches


def test_job_that_arrives_while_another_runs_is_released(stage, redis):
    """The connection of a blocking pop broke on the worker's side only.

    The pop moved a job into the claims of a worker that was running another one, and the job stayed
    there until the other one had ended.
    """
    stage = stage()
    stage.start()
    (running,) = stage.enqueue("plain", "wait")
    stage.eventually(lambda: stage.runs() == 1)
    (worker,) = map(broker_keys.decode, redis.zrange(broker_keys.LEASES, 0, -1))
    stray = rqjobs.queue("default").enqueue(sample_jobs.ok)
    assert (
        redis.lmove("rq:queue:default", f"rqjobs:claims:{worker}", "LEFT", "RIGHT")
        == stray.id.encode()
    )
    stage.eventually(lambda: rqjobs.queue("default").job_ids == [stray.id])
    assert redis.lrange(f"rqjobs:claims:{worker}", 0, -1) == [running.id.encode()]
    Path(f"{stage.file}.open").write_text("ok")
    stage.eventually(lambda: running.is_finished and stray.is_finished)


def test_jobs_that_arrive_on_two_queues_at_once_both_run(worker, redis, eventually, tmp_path):
    """Two blocking pops of a worker delivered a job each.

    The worker ran the first, and the second stayed in its claims, although another worker was free.
    """
    worker("high", "low")
    eventually(
        lambda: (
            sum(
                client["cmd"] == "blmove" and "b" in client["flags"]
                for client in redis.client_list()
            )
            == 2
        )
    )
    file = tmp_path / "runs"
    jobs = [
        rqjobs.queue(name).create_job(
            sample_jobs.noted, (str(file), "wait"), status=JobStatus.QUEUED
        )
        for name in ("high", "low")
    ]
    with redis.pipeline() as pipe:
        for job, name in zip(jobs, ("high", "low"), strict=True):
            rqjobs.queue(name).enqueue_job(job, pipeline=pipe)
        pipe.execute()
    eventually(lambda: sum(job.is_started for job in jobs) == 1 and file.exists())
    eventually(lambda: redis.llen("rq:queue:high") + redis.llen("rq:queue:low") == 1)
    Path(f"{file}.open").write_text("ok")
    eventually(lambda: all(job.is_finished for job in jobs))
    assert len(file.read_text().splitlines()) == 2


def test_job_whose_outcome_cannot_be_written_fails(redis):
    """A key of the wrong type stopped the script between two writes.

    The second try got "already". The job was in no registry of ended jobs, and in the registry of
    started jobs forever.
    """
    job = rqjobs.enqueue(sample_jobs.ok)
    redis.set(f"rq:results:{job.id}", "no stream")
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    assert job.is_failed and redis.zscore("rq:failed:default", job.id) is not None
    assert not redis.exists("rq:wip:default") and not redis.keys("rqjobs:claims:*")
    assert not maintenance_audit.audit(redis, settle=0.1).breaches


@pytest.mark.parametrize("what", ["deaf", "mute"])
def test_blocking_pop_on_a_dead_connection_is_closed(stage, what):
    """CLIENT UNBLOCK was sent twenty times a second, on another connection, without end."""
    stage = stage(timeout=0.3, block=0.5)
    parent = stage.start()
    horse = stage.horse()
    expected = stage.run_case("plain", Fault(10**6, "none"))
    fault = stage.proxy.arm(
        Fault(0, what, False, lambda pid, words: pid != parent and words[0] == b"BLMOVE")
    )
    stage.eventually(fault.fired.is_set)
    stage.proxy.arm(Fault(10**6, "none"))
    stage.run_case("plain", Fault(10**6, "none"), expected)
    assert stage.horse() == horse
