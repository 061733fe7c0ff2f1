"""Hostile payloads: write access to Redis lets an attacker neither run other code nor stop a worker.

Every test writes job hashes by hand, as an attacker would, and lets a real worker take them. The
canary is a file. If it exists, code ran that must not run.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import socket
import sys
import threading
import urllib.error
import urllib.request
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import sample_jobs
from ports import trickling_server
from rq.command import send_stop_job_command
from rq.exceptions import DeserializationError
from rq.job import JobStatus
from rq.webhook import Webhook

import rqjobs
from rqjobs import config, webhooks


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture
def plant(redis):
    """Write a job's hash into Redis, and its id into the queue."""

    def write(job_id, data=("sample_jobs.mark", None, ["ran"], {}), **fields):
        if not isinstance(data, bytes):
            data = json.dumps(list(data)).encode()
        redis.hset(
            f"rq:job:{job_id}",
            mapping={
                "data": zlib.compress(data),
                "status": "queued",
                "origin": "default",
                "timeout": 30,
                "created_at": "2024-01-01T00:00:00.000000Z",
                "enqueued_at": "2024-01-01T00:00:00.000000Z",
                "description": "planted",
                **fields,
            },
        )
        redis.sadd("rq:queues", "rq:queue:default")
        redis.rpush("rq:queue:default", job_id)

    return write


@pytest.fixture
def survives(redis, worker, eventually):
    """Let a worker take the planted job. It must then run a good job, and live."""

    def check(*queues, **options):
        process = worker(*queues, **options)
        good = rqjobs.enqueue(sample_jobs.mark, "good")
        eventually(
            lambda: good.get_status() == JobStatus.FINISHED, what="a good job after the bad ones"
        )
        assert process.poll() is None, process.output()
        assert redis.lrange("good", 0, -1) == [good.id.encode()]
        return process

    return check


def failure(redis, job_id):
    """The traceback of a failed job, read without code of rqjobs or RQ."""
    assert redis.hget(f"rq:job:{job_id}", "status") == b"failed", redis.hgetall(f"rq:job:{job_id}")
    assert redis.zscore("rq:failed:default", job_id) is not None
    ((_, fields),) = redis.xrange(f"rq:results:{job_id}")
    return zlib.decompress(base64.b64decode(fields[b"exc_string"])).decode()


EVIL = [
    "os.system",
    "posix.system",
    "builtins.eval",
    "subprocess.call",
    "sample_jobs.os.system",
    "sample_jobs._hidden",
    "sample_jobs.Outer.Inner",
    "this.s",
    "rqjobs.queues.enqueue",
]


def test_no_function_outside_the_catalog_runs(plant, survives, redis, canary):
    for number, name in enumerate(EVIL):
        plant(f"evil-{number}", [name, None, [f"touch {canary}"], {}])
    survives()
    for number, name in enumerate(EVIL):
        assert f"NotAJob: '{name}' is not a job" in failure(redis, f"evil-{number}")
    assert not canary.exists()


@pytest.mark.parametrize("queues", [(), ("default",)], ids=["three queues", "one queue"])
def test_job_with_a_callback_outside_the_catalog_does_not_run(
    plant, survives, redis, canary, queues
):
    """The function is in the catalog, but must not run."""
    kinds = ("success", "failure", "stopped")
    for kind in kinds:
        plant(
            f"evil-{kind}", **{f"{kind}_callback_name": "os.system", f"{kind}_callback_timeout": 60}
        )
        plant(
            f"boom-{kind}",
            ["sample_jobs.boom", None, [], {}],
            **{f"{kind}_callback_name": "builtins.eval"},
        )
    survives(*queues)
    for kind in kinds:
        assert "NotAJob: 'os.system' is not a job" in failure(redis, f"evil-{kind}")
        assert "NotAJob: 'builtins.eval' is not a job" in failure(redis, f"boom-{kind}")
    assert not redis.exists("ran") and not canary.exists()


def test_stopped_callback_changed_while_the_job_runs_is_refused(survives, redis, eventually):
    job = rqjobs.enqueue(sample_jobs.hang, "gate")

    def stop():
        eventually(lambda: redis.llen("gate:reached"))
        redis.hset(
            job.key,
            mapping={"stopped_callback_name": "os.system", "failure_callback_name": "os.system"},
        )
        send_stop_job_command(redis, job.id)

    thread = threading.Thread(target=stop)
    thread.start()
    process = survives()
    thread.join()
    eventually(lambda: job.get_status() == JobStatus.STOPPED)
    assert process.poll() is None


def test_instance_is_refused(plant, survives, redis):
    """RQ would call a method of the instance."""
    instances = (
        "text",
        {"a": 1},
        ["sample_jobs.Outer"],
        1,
        True,
        {"__rqjobs__": ["dataclass", "sample_jobs.Point", {"x": 1}]},
    )
    for number, instance in enumerate(instances):
        plant(f"method-{number}", ["upper", instance, [], {}])
        plant(f"function-{number}", ["sample_jobs.mark", instance, ["ran"], {}])
    survives()
    for number in range(len(instances)):
        for job_id in (f"method-{number}", f"function-{number}"):
            assert "jobs are plain functions, not methods" in failure(redis, job_id)
    assert not redis.exists("ran")


NO_CALLS = [
    [],
    ["sample_jobs.mark"],
    ["sample_jobs.mark", None, ["ran"]],
    ["sample_jobs.mark", None, "ran", {}],
    [["os.system"], None, [], {}],
    [None, None, ["ran"], {}],
    ["sample_jobs.mark", None, ["ran"], []],
    ["sample_jobs.mark", None, [], {"name": "ran"}, 5],
    b"",
    b"{",
    b"null",
    b'"sample_jobs.mark"',
    b"\xff\xfe",
    b"[" * 100_000,
]


def test_data_that_are_not_a_call_fail_the_job(plant, survives, redis):
    for number, data in enumerate(NO_CALLS):
        plant(f"evil-{number}", data)
    survives()
    for number in range(len(NO_CALLS)):
        assert "DeserializationError" in failure(redis, f"evil-{number}")
    assert not redis.exists("ran")


def test_nothing_is_unpickled(plant, survives, redis, canary):
    """Neither the data, the meta, an old result, nor an old traceback."""
    evil = pickle.dumps(Canary(canary))
    plant("in-data", evil)
    plant("in-data-uncompressed", data=zlib.compress(evil))
    plant("in-call", pickle.dumps(("sample_jobs.mark", None, (Canary(canary),), {})))
    plant("elsewhere", meta=evil, result=evil)
    plant("in-traceback", exc_info=zlib.compress(evil))
    redis.xadd("rq:results:elsewhere", {"type": 1, "return_value": base64.b64encode(evil)})
    survives()
    for job_id in ("in-data", "in-data-uncompressed", "in-call"):
        assert "rqjobs never unpickles what it finds in Redis" in failure(redis, job_id)
    for job_id in ("elsewhere", "in-traceback"):
        assert redis.hget(f"rq:job:{job_id}", "status") == b"finished"
    # The pages and the command line do not unpickle either.
    for look in (lambda job: job.args, lambda job: job.results()):
        with pytest.raises(
            (DeserializationError, rqjobs.PayloadError), match="rqjobs never unpickles"
        ):
            for job_id in ("in-data", "elsewhere"):
                look(rqjobs.queue("default").fetch_job(job_id))
    assert rqjobs.queue("default").fetch_job("elsewhere").meta.keys() == {"unserialized"}
    assert not canary.exists()


@pytest.fixture
def other_host():
    """An HTTP server that is not in RQJOBS_WEBHOOK_HOSTS, and the requests to it."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_webhook_to_a_host_that_is_not_allowed_is_refused(plant, survives, redis, other_host):
    """No webhook is sent, also not for the failure. The function does not run."""
    url, asked = other_host
    port = url.rpartition(":")[2]
    urls = [
        f"{url}/x",
        f"http://localhost@127.0.0.1:{port}/",
        f"http://127.0.0.1:{port}#@hooks.example.com/",
        f"http://127.0.0.1:{port}\\@hooks.example.com/",
        f"HTTP://127.0.0.1:{port}/",
    ]
    for number, target in enumerate(urls):
        for status in ("finished", "failed"):
            hook = json.dumps([{"url": target, "job_status": status, "method": "POST"}])
            plant(f"hook-{number}-{status}", webhooks=hook)
            plant(f"boom-{number}-{status}", ["sample_jobs.boom", None, [], {}], webhooks=hook)
            plant(f"evil-{number}-{status}", ["os.system", None, ["true"], {}], webhooks=hook)
    survives(env={"RQJOBS_WEBHOOK_HOSTS": "hooks.example.com"})
    for number in (0, 1, 2, 4):
        assert "RefusedWebhook" in failure(redis, f"hook-{number}-finished")
    assert redis.zcard("rq:failed:default") >= 3 * 2 * 4
    assert asked == []


def test_webhook_to_an_allowed_host_is_sent(survives, redis, other_host, eventually):
    url, asked = other_host
    config.use(webhook_hosts=("127.0.0.1",))
    rqjobs.enqueue(sample_jobs.ok, webhooks=[Webhook(f"{url}/done", "finished")])
    survives(env={"RQJOBS_WEBHOOK_HOSTS": "127.0.0.1"})
    eventually(lambda: asked == ["/done"])


def test_headers_of_a_webhook_are_only_for_its_site(settings, other_host):
    """A redirect to another port, or from https to http, took the Authorization with it."""
    config.use(webhook_hosts=("127.0.0.1",))
    url, _ = other_host
    sent = urllib.request.Request(f"{url}/x", headers={"Authorization": "Bearer secret"})
    handler = webhooks.AllowedRedirects()

    def follow(target):
        return handler.redirect_request(sent, None, 302, "Found", {}, target).headers

    assert follow(f"{url}/y") == {"Authorization": "Bearer secret"}
    for other in ("http://127.0.0.1/y", url.replace("http:", "https:")):
        assert follow(other) == {}
    with pytest.raises(urllib.error.HTTPError):
        follow("http://169.254.169.254/latest")


@pytest.mark.parametrize(
    "head",
    ["HTTP/1.1 200 OK\r\n", "HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"],
    ids=["head", "body"],
)
def test_a_webhook_that_is_answered_byte_by_byte_ends_at_its_time_limit(settings, head):
    """It held the worker for more than a minute, because the limit was for each read.

    A redirect's body, which is read before the next call, still did.
    """
    config.use(webhook_hosts=("127.0.0.1",))
    with trickling_server(head.encode()) as (port, server):
        with pytest.raises(TimeoutError):
            webhooks.open_within_limit(
                urllib.request.Request(f"http://127.0.0.1:{port}/"), timeout=1
            )
        server.join(60)
        assert not server.is_alive(), "its connection is closed"


def test_a_webhook_whose_connection_takes_all_of_its_time_is_not_sent(settings, monkeypatch):
    """The end came before there was a socket, so the answer had no limit any more."""
    call = webhooks.Call(webhooks.AllowedRedirects)
    connect = socket.create_connection

    def connect_until_the_end(*arguments, **options):
        sock = connect(*arguments, **options)
        call.end()
        return sock

    monkeypatch.setattr(socket, "create_connection", connect_until_the_end)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(TimeoutError):
            call.send(urllib.request.Request(url), timeout=60)
        peer, _ = listener.accept()
        with peer:
            assert peer.recv(1) == b"", "nothing was sent"


UNREADABLE = {
    "timeout": "abc",
    "created_at": "garbage",
    "enqueued_at": "yesterday",
    "status": "nonsense",
    "result_ttl": "long",
    "failure_ttl": "x",
    "ttl": "x",
    "retries_left": "many",
    "retry_intervals": "{",
    "dependency_ids": "nope",
    "repeats_left": "x",
    "allow_dependency_failures": "x",
    "origin": b"\xff\xfe",
    "description": b"\xff",
    "worker_name": b"\xff",
    "success_callback_name": b"\xff",
    "success_callback_timeout": "soon",
    "exc_info": b"\xff",
    "enqueue_at_front": "x",
    "last_heartbeat": "x",
    "group_id": b"\xff",
    "started_at": "x",
    "webhooks": b"\xff",
}


@pytest.mark.parametrize("queues", [(), ("default",)], ids=["three queues", "one queue"])
def test_job_with_an_unreadable_hash_fails_and_the_worker_goes_on(plant, survives, redis, queues):
    """One broken field each. Jobs whose broken field RQ does not need run. All of them end."""
    for field, value in UNREADABLE.items():
        plant(f"bad-{field}", **{field: value})
    survives(*queues)
    for field in UNREADABLE:
        status = redis.hget(f"rq:job:bad-{field}", "status")
        assert status in (b"failed", b"finished"), (field, status)
        if status == b"failed":
            assert redis.zscore("rq:failed:default", f"bad-{field}") is not None, field
    assert failure(redis, "bad-timeout").startswith("The job's hash in Redis cannot be read: ")
    for key in ("rq:queue:default", "rq:queue:default:intermediate", "rq:wip:default"):
        assert not redis.exists(key), key


@pytest.mark.parametrize("queues", [(), ("default",)], ids=["three queues", "one queue"])
def test_ids_without_a_hash_are_dropped(plant, survives, redis, queues):
    plant("no-data")
    redis.hdel("rq:job:no-data", "data")
    redis.rpush("rq:queue:default", "no-hash", "")
    survives(*queues)
    assert not redis.exists("rq:queue:default")


@pytest.mark.parametrize("queues", [(), ("default",)], ids=["three queues", "one queue"])
def test_ids_and_keys_of_another_type_are_dropped(plant, survives, redis, queues):
    """A list or a string in the place of a job's hash, and an id that is not UTF-8."""
    redis.rpush("rq:queue:default", "a-list", "a-text", b"\xff\xfe")
    redis.rpush("rq:job:a-list", "x")
    redis.set("rq:job:a-text", "x")
    survives(*queues)
    assert not redis.exists("rq:queue:default")


def test_stock_worker_runs_plain_jobs(worker, redis, eventually):
    """`rq worker -S json`, without rqjobs: plain arguments are JSON as RQ writes it."""
    job = rqjobs.enqueue(sample_jobs.add, 2, b=3)
    process = worker(worker_class="rq.worker.Worker", options=["-S", "json"])
    eventually(lambda: job.get_status() == JobStatus.FINISHED)
    assert job.return_value() == 5
    assert process.poll() is None


CALL = '["sample_jobs.mark",null,[%s],{}]'
PRIME = 2**61 - 1  # the modulus of a number's hash
BOMBS = {
    "lists": CALL % ",".join(["[]"] * 10_000_000),
    "deep": CALL % ("[" * 50_000 + "]" * 50_000),
    "colliding": CALL
    % (
        '{"__rqjobs__":["set",[' + ",".join(str(PRIME * number) for number in range(40_000)) + "]]}"
    ),
}
LOOKS = """
import resource, sys
from rqjobs import connection, web
from rqjobs.web.rq_dashboard import job_json
from rqjobs.web.job_page import describe
from rqjobs.cli import main
app = web.create_app()
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
with app.test_request_context():
    for job_id in sys.argv[1:]:
        print(job_id, repr(describe(job_id))[:3000], repr(job_json(job_id))[:3000])
main(["failed"])
"""


def test_compression_bomb_is_not_decompressed(plant, survives, redis, spawn, server):
    """Neither by the horse, a page, the dashboard nor the command line."""
    for name, data in BOMBS.items():
        plant(name, data.encode())
    process = survives()
    process.terminate()
    process.wait()
    for name in BOMBS:
        assert re.search("more than [0-9,]+ (bytes|parts|levels|keys)", failure(redis, name)), (
            failure(redis, name)
        )
    packer = zlib.compressobj()
    much = b"".join([*(packer.compress(b"x" * 1_000_000) for _ in range(600)), packer.flush()])
    plant("old", exc_info=much, meta=BOMBS["lists"][:5_000_000])
    plant("new", webhooks=b"[" + b"[]," * 3_000_000 + b"0]")
    for job_id in ("old", "new"):
        redis.xadd(f"rq:results:{job_id}", {"type": 2, "exc_string": base64.b64encode(much)})
        redis.zadd("rq:failed:default", {job_id: 2**40})
    reader = spawn(sys.executable, "-c", LOOKS, *BOMBS, "old", "new", env={"REDIS_URL": server})
    assert reader.wait(120) == 0, reader.output()[-3000:]
    assert "the rest of this traceback is not read" in reader.output()
