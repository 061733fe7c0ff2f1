"""Workers and queues made with RQ's own options, clients and classes."""

from __future__ import annotations

import functools
import sys
from datetime import timedelta

import pytest
import redis as redis_py
import rq
import rq.job
import sample_jobs
from rq import Repeat, Retry

import rqjobs
from rqjobs import catalog, config, connection
from rqjobs.maintenance import audit
from rqjobs.worker import foreign_clients

RQ_WORKER = [sys.executable, "-m", "rq.cli", "worker", "--worker-class", "rqjobs.Worker", "--burst"]


@pytest.fixture
def outcome(eventually):
    def wait(job):
        eventually(lambda: job.get_status() in ("finished", "failed"))
        return job.return_value() if job.is_finished else job.latest_result().exc_string

    return wait


@pytest.fixture
def given_in(tmp_path, server):
    """The options and the environment that name the test's Redis to RQ, without REDIS_URL."""
    (tmp_path / "rq_settings.py").write_text(f"REDIS_URL = {server!r}\nQUEUES = ['default']\n")
    options = {
        "--url": ["--url", server],
        "RQ_REDIS_URL": [],
        "--config": ["--config", "rq_settings"],
    }

    def choose(way):
        return options[way], {"REDIS_URL": "", **({way: server} if way == "RQ_REDIS_URL" else {})}

    return choose


@pytest.mark.parametrize("way", ["--url", "RQ_REDIS_URL", "--config"])
def test_redis_from_an_option_of_rq_is_used_without_redis_url(spawn, redis, given_in, way, outcome):
    job = rqjobs.enqueue(sample_jobs.pass_on, 7)
    options, environment = given_in(way)
    worker = spawn(*RQ_WORKER, *options, "default", env=environment)
    assert worker.wait(30) == 0, worker.output()
    passed = rqjobs.Job.fetch(outcome(job), connection=redis)
    assert outcome(passed) == 7, "a job enqueues with the client that its worker was given"


def test_redis_client_of_a_program_is_used_without_redis_url(spawn, server, outcome):
    job = rqjobs.enqueue(sample_jobs.pass_on, 7)
    program = (
        f"import redis, rqjobs; client = redis.Redis.from_url({server!r}); "
        f"rqjobs.Worker(['default'], connection=client).work(burst=True)"
    )
    worker = spawn(sys.executable, "-c", program, env={"REDIS_URL": ""})
    assert worker.wait(30) == 0, worker.output()
    assert outcome(job)


def test_explicit_url_must_match_redis_url_even_if_it_is_the_default(spawn, server):
    worker = spawn(
        *RQ_WORKER, "--url", "redis://localhost:6379", "default", env={"REDIS_URL": server}
    )
    assert worker.wait(30) == 1
    assert (
        "this worker was given the Redis at localhost:6379, database 0, but REDIS_URL names"
        in worker.output()
    )


def test_server_is_the_same_by_any_of_its_names():
    def client(**options):
        return redis_py.Redis(**options)

    assert foreign_clients.is_same_server(client(host="localhost"), client(host="127.0.0.1"))
    assert foreign_clients.is_same_server(client(host="127.0.0.1", db=2), client(host="::1", db=2))
    assert not foreign_clients.is_same_server(
        client(host="localhost"), client(host="localhost", port=6380)
    )
    assert not foreign_clients.is_same_server(
        client(host="localhost"), client(host="localhost", db=1)
    )
    assert not foreign_clients.is_same_server(
        client(unix_socket_path="/a.sock"), client(unix_socket_path="/b.sock")
    )
    assert not foreign_clients.is_same_server(
        client(host="no-such-host.invalid"), client(host="localhost")
    )


def test_a_client_passed_in_keeps_its_options_and_gets_our_timeouts(server):
    given = redis_py.Redis.from_url(server, socket_timeout=300, client_name="mine")
    adopted = foreign_clients.adopt(given)
    options = adopted.connection_pool.connection_kwargs
    assert (
        options["socket_timeout"] == connection.COMMAND_TIMEOUT_SECONDS
        and options["client_name"] == "mine"
    )
    assert (
        issubclass(adopted.connection_pool.connection_class, connection.ReconnectMixin)
        and adopted.ping()
    )
    assert foreign_clients.adopt(adopted) is adopted
    with pytest.raises(config.ConfigError, match="decode_responses"):
        foreign_clients.adopt(redis_py.Redis.from_url(server, decode_responses=True))


def test_a_sentinel_client_passed_in_keeps_its_service():
    sentinel = redis_py.sentinel.Sentinel([("localhost", 1)])
    pool = foreign_clients.adopt(sentinel.master_for("mymaster", db=3)).connection_pool
    assert pool.service_name == "mymaster" and pool.connection_kwargs["db"] == 3
    assert pool.connection_class is connection.SentinelTCPConnection


class OwnJob(rqjobs.Job):
    pass


class OwnQueue(rqjobs.Queue):
    pass


def test_subclasses_of_our_classes_are_used_and_others_are_refused(redis, settings):
    worker = rqjobs.Worker(["default"], job_class=OwnJob, queue_class=f"{__name__}.OwnQueue")
    assert worker.job_class is OwnJob and type(worker.queues[0]) is OwnQueue
    assert (
        rqjobs.Worker(["default"], job_class=rq.job.Job, queue_class=rq.Queue).job_class
        is rqjobs.Job
    )
    for wrong in (
        {"job_class": type("Stock", (rq.job.Job,), {})},
        {"queue_class": type("Stock", (rq.Queue,), {})},
    ):
        with pytest.raises(SystemExit, match="is not derived from rqjobs"):
            rqjobs.Worker(["default"], **wrong)
    with pytest.raises(SystemExit, match="is not derived from rqjobs"):
        type("Mine", (rqjobs.Worker,), {"job_class": rq.job.Job})(["default"])
    assert (
        rqjobs.Worker(["default"], serializer="json").serializer
        is rqjobs.serializers.ConfiguredSerializer
    )
    with pytest.raises(SystemExit, match="RQJOBS_SERIALIZER='json'"):
        rqjobs.Worker(["default"], serializer="pickle")


def test_job_class_of_the_command_line_is_used(spawn, tmp_path, outcome, environ):
    (tmp_path / "mine.py").write_text(
        "import rqjobs\n"
        "class Loud(rqjobs.Job):\n"
        "    def __init__(self, *args, **options):\n"
        "        super().__init__(*args, **options)\n"
        "        self.loudness = '!'\n"
        "    def perform(self):\n"
        "        return super().perform() + self.loudness\n"
        "class Mine(rqjobs.Worker):\n"
        "    job_class = Loud\n"
    )
    path = {"PYTHONPATH": f"{environ['PYTHONPATH']}:{tmp_path}"}
    for options in (["--job-class", "mine.Loud"], ["--worker-class", "mine.Mine"]):
        job = rqjobs.enqueue(sample_jobs.ok, "hey")
        assert spawn(*RQ_WORKER, *options, "default", env=path).wait(30) == 0
        assert outcome(job) == "hey!"


def test_work_can_be_called_several_times(spawn, redis):
    for _ in range(12):
        rqjobs.enqueue(sample_jobs.ok)
    program = (
        "import rqjobs; worker = rqjobs.Worker(['default'])\n"
        "for _ in range(4):\n"
        "    print(worker.work(burst=True, max_jobs=4), len(worker.queues[0]), flush=True)\n"
    )
    process = spawn(sys.executable, "-c", program)
    assert process.wait(60) == 0, process.output()
    said = [line for line in process.output().splitlines() if line.startswith(("True", "False"))]
    assert said == ["True 8", "True 4", "True 0", "False 0"]
    assert not redis.zcard("rqjobs:leases") and not redis.scard("rq:workers")


def test_current_job_is_visible_to_other_processes(worker, redis, eventually):
    worker("default")
    job = rqjobs.enqueue(sample_jobs.hang, "gate")
    eventually(lambda: redis.exists("gate:reached"))
    seen = rqjobs.Worker.all(connection=redis)[0]
    assert eventually(seen.get_current_job_id) == job.id
    assert seen.get_current_job().id == job.id
    redis.rpush("gate:open", 1)
    eventually(lambda: job.is_finished)


def test_every_result_names_its_execution(spawn):
    again = rqjobs.enqueue(sample_jobs.again, "once more")
    repeated = rqjobs.queue("default").enqueue(sample_jobs.boom, repeat=Repeat(times=1))
    assert spawn(*RQ_WORKER, "default").wait(60) == 0
    for job in (again, repeated):
        executions = [result.execution_id for result in job.results()]
        assert len(executions) == 2 and all(executions) and len(set(executions)) == 2


def test_jobs_of_one_id_are_equal_in_any_class(redis):
    ours = rqjobs.enqueue(sample_jobs.ok)
    stock = rq.job.Job(ours.id, redis)
    assert ours == stock and stock == ours and len({ours, stock}) == 1
    assert ours != rqjobs.enqueue(sample_jobs.ok) and ours != ours.id


class Wrapped:
    """A callable object, as Flask-RQ's decorator makes it of a function."""

    def __init__(self, function):
        self.function = function
        functools.update_wrapper(self, function)

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)


def test_function_behind_a_decorator_is_a_job(spawn, outcome):
    job = rqjobs.enqueue(sample_jobs.cached, 5)
    assert job.func_name == "sample_jobs.cached" and job.description == "sample_jobs.cached(5)"
    assert rqjobs.enqueue(sample_jobs.cached.__wrapped__, 6).func_name == "sample_jobs.cached"
    assert spawn(*RQ_WORKER, "default").wait(30) == 0
    assert outcome(job) == 5
    wrapped = Wrapped(sample_jobs.add)
    assert catalog._is_function(wrapped) and rqjobs.job(queue="low")(wrapped) is wrapped
    for no_job in (
        functools.partial(sample_jobs.ok),
        Wrapped,
        Wrapped(Wrapped),
        functools.lru_cache(max),
    ):
        assert not catalog._is_function(no_job)
        with pytest.raises(rqjobs.NotAJob):
            rqjobs.enqueue(no_job)
    with pytest.raises(rqjobs.NotAJob):
        rqjobs.enqueue(functools.wraps(sample_jobs.ok)(lambda value=None: value))


def test_queue_accepts_the_parameters_of_rq(redis):
    queue = rqjobs.Queue("default", redis, 100)
    assert queue.enqueue(sample_jobs.ok, at_front=None).timeout == 100
    assert (
        type(rqjobs.Queue("default", redis, job_class=rq.job.Job).enqueue(sample_jobs.ok))
        is rqjobs.Job
    )
    assert (
        queue.enqueue_in(time_delta=timedelta(hours=1), func=sample_jobs.ok).get_status()
        == "scheduled"
    )


def test_ambiguous_option_is_refused_with_the_remedy(redis):
    for enqueue in (
        rqjobs.enqueue,
        rqjobs.queue("default").enqueue,
        functools.partial(rqjobs.enqueue_in, 60),
    ):
        with pytest.raises(TypeError, match=r"parameter 'description'.*args=.*kwargs="):
            enqueue(sample_jobs.describe, description="mine")
    assert not redis.keys("rq:job:*")
    job = rqjobs.enqueue(
        sample_jobs.describe, kwargs={"description": "mine"}, description="what people see"
    )
    assert job.kwargs == {"description": "mine"} and job.description == "what people see"
    job = rqjobs.enqueue_in(60, sample_jobs.describe, "mine", delay=2, function="f")
    assert job.kwargs == {"delay": 2, "function": "f"}, "no parameter of enqueue_in takes its place"
    with pytest.raises(TypeError, match="not both"):
        rqjobs.enqueue(sample_jobs.describe, 1, kwargs={})


def test_simple_worker_runs_jobs_in_the_calling_process(redis, settings):
    jobs = [
        rqjobs.enqueue(sample_jobs.ok, {1, 2}),
        rqjobs.enqueue(sample_jobs.boom),
        rqjobs.queue("default").enqueue(sample_jobs.flaky, "tries", 1, retry=Retry(max=2)),
    ]
    child = rqjobs.enqueue(sample_jobs.ok, "after", depends_on=jobs[0])
    options = dict(redis.connection_pool.connection_kwargs)
    assert rqjobs.SimpleWorker(["default"]).work(burst=True)
    assert [job.get_status() for job in (*jobs, child)] == [
        "finished",
        "failed",
        "finished",
        "finished",
    ]
    assert jobs[0].return_value() == {1, 2} and child.return_value() == "after"
    assert redis.connection_pool.connection_kwargs == options, (
        "RQ's timeout must not reach the client of the whole program"
    )
    assert not audit.audit(redis, settle=0).breaches
