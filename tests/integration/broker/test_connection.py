"""Clients reconnect and never send twice, over TCP, TLS, unix sockets and through Sentinel."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
import redis as redis_py
import sample_jobs
from ports import closed_port, free_port

import rqjobs
from rqjobs import config, connection
from rqjobs.dev import redis_server


@pytest.fixture
def serve(spawn, tmp_path, eventually):
    """Start a server and wait until it answers on `url`; skip if it lacks an option."""

    def start(url, *options):
        process = spawn(redis_server.binary(), *options, "--dir", str(tmp_path), "--save", "")
        client = connection.connect(url)

        def answers():
            if process.poll() is not None:
                pytest.skip(
                    f"{redis_server.binary()} has not what this test needs: {process.output()[-300:]}"
                )
            with contextlib.suppress(redis_py.ConnectionError, redis_py.TimeoutError):
                return client.ping()

        eventually(answers)
        return client

    return start


@pytest.fixture
def tcp(serve):
    """The port of a Redis on loopback, and a client for it."""
    port = free_port()
    return port, serve(f"redis://127.0.0.1:{port}", "--port", str(port), "--bind", "127.0.0.1")


class Proxy:
    """A proxy for Redis that counts connections, refuses the first few, and loses one reply."""

    def __init__(self, port, refuse=0, lose_reply_to=None):
        self.target, self.refuse, self.lose = port, refuse, lose_reply_to
        self.connections, self.seen = 0, b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self.connections += 1
                if self.connections <= self.refuse:
                    client.close()
                    continue
                self.threads.append(threading.Thread(target=self.relay, args=(client,)))
                self.threads[-1].start()

    def relay(self, client):
        target = ("127.0.0.1", self.target)
        with (
            contextlib.suppress(OSError),
            client,
            socket.create_connection(target, 60) as server,
        ):
            client.settimeout(60)
            while request := client.recv(65536):
                self.seen += request
                server.sendall(request)
                reply = server.recv(65536)
                if self.lose and self.lose in request:
                    self.lose = None
                    return
                client.sendall(reply)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(10)


@pytest.fixture
def proxy():
    """Start a `Proxy`; returns it and a client through it."""
    with contextlib.ExitStack() as stack:

        def start(*args, **options):
            made = Proxy(*args, **options)
            stack.callback(made.close)
            client = connection.connect(f"redis://127.0.0.1:{made.port}")
            stack.callback(client.connection_pool.disconnect)
            return made, client

        yield start


def test_a_command_whose_reply_was_lost_is_not_sent_again(tcp, proxy):
    """The command has had its effect: a second RPUSH would be a second job."""
    between, client = proxy(tcp[0], lose_reply_to=b"RPUSH")
    with pytest.raises(redis_py.ConnectionError):
        client.rpush("list", "one")
    assert tcp[1].lrange("list", 0, -1) == [b"one"]
    assert between.seen.count(b"RPUSH") == 1
    assert client.rpush("list", "two") == 2, "the next command reconnects"


def test_a_transaction_whose_reply_was_lost_is_not_sent_again(tcp, proxy):
    """An enqueue is a transaction: the caller gets an error, and the job exists once."""
    _, client = proxy(tcp[0], lose_reply_to=b"RPUSH")
    queue = rqjobs.Queue("default", connection=client)
    with pytest.raises(redis_py.ConnectionError):
        queue.enqueue(sample_jobs.ok)
    assert tcp[1].llen("rq:queue:default") == 1


def test_a_failed_connect_is_retried(tcp, proxy):
    between, client = proxy(tcp[0], refuse=3)
    assert client.rpush("list", "one") == 1
    assert between.connections == 4


@pytest.mark.parametrize("scheme", ["redis", "unix"])
def test_an_idle_connection_that_the_server_closed_is_replaced(scheme, request, server):
    client = request.getfixturevalue("tcp")[1] if scheme == "redis" else connection.connect(server)
    first = client.client_id()
    assert connection.connect(url_of(client)).client_kill_filter(_id=first) == 1
    assert client.client_id() != first
    with client.pipeline() as pipe:
        assert pipe.incr("n").execute() == [1]


def url_of(client):
    kwargs = client.connection_pool.connection_kwargs
    return (
        f"unix://{kwargs['path']}"
        if "path" in kwargs
        else f"redis://{kwargs['host']}:{kwargs['port']}"
    )


def test_an_idle_connection_is_checked_before_it_is_used(tcp, proxy):
    """After HEALTH_CHECK_SECONDS a PING is sent first. If its reply is lost, no command is."""
    between, client = proxy(tcp[0], lose_reply_to=b"PING")
    client.set("a", 1)
    pooled = client.connection_pool.get_connection()
    pooled.next_health_check = time.monotonic() - 1
    client.connection_pool.release(pooled)
    assert client.rpush("list", "one") == 1
    assert between.connections == 2 and between.seen.count(b"RPUSH") == 1


def test_a_server_that_is_down_is_reported_in_a_few_seconds():
    start = time.monotonic()
    with closed_port() as port:
        refused = f"127.0.0.1:{port}. Connection refused"
        with pytest.raises(redis_py.ConnectionError, match=refused):
            connection.connect(f"redis://127.0.0.1:{port}").ping()
    assert time.monotonic() - start < 20  # the machine may be busy


@pytest.mark.parametrize("accepts", [True, False])
def test_a_connect_without_a_reply_fails_after_one_timeout(accepts, monkeypatch):
    """RQ's worker waits after a ConnectionError and quits after a TimeoutError.

    A stopped or swapping Redis accepts connections and does not answer. redis-py checks the
    connection's health before its first HELLO. That check connected again while it was
    connecting, until the stack was full.
    """
    monkeypatch.setitem(connection.CONNECTION_OPTIONS, "socket_connect_timeout", 0.2)
    monkeypatch.setitem(connection.CONNECTION_OPTIONS, "socket_timeout", 0.2)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(
            socket.create_server(("127.0.0.1", 0), backlog=5 if accepts else 0)
        )
        address = listener.getsockname()
        for _ in range(
            0 if accepts else 3
        ):  # fill the backlog, so that the kernel drops what comes next
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        start = time.monotonic()
        with pytest.raises(redis_py.ConnectionError, match="no answer from Redis while connecting"):
            connection.connect("redis://{}:{}".format(*address)).ping()
        assert time.monotonic() - start < 8  # the machine may be busy


@pytest.mark.parametrize(
    "url",
    [
        "redis://h?decode_responses=True",
        "unix:///x?decode_responses=1",
        "redis+sentinel://h/m?decode_responses=True",
    ],
)
def test_a_client_that_decodes_responses_is_refused(url):
    with pytest.raises(config.ConfigError, match="decode_responses=True, which breaks RQ"):
        connection.connect(url)
    with pytest.raises(config.ConfigError, match="decode_responses=True"):
        connection.refuse_decoding(redis_py.Redis(decode_responses=True))


@pytest.mark.parametrize(
    "url",
    [
        "http://:hunter2@h",
        "redis://:hunter2@[::1",
        "redis://:hun/hunter2@h",
        "redis://:hunter2@h:port",
        "redis://:hunter2@h?db=one",
        "redis://:hunter2@h?socket_timeout=soon",
        "redis+sentinel://:hunter2@h:port/m",
        "redis+sentinel://:hunter2@h/m/one",
        "redis://:hunter2@h?bogus=1",
        "unix://:hunter2@/x?ssl_cert_reqs=none",
        "rediss://:hunter2@h?ssl_cert_reqs=sometimes",
        "redis://:hunter2@h?protocol=9",
        "redis://:hunter2@h?encoding=none",
        "redis://:hunter2@h?retry=3",
        "redis+sentinel://:hunter2@h/m?bogus=1",
        "redis+sentinel://:hunter2@h/m?sentinel_bogus=1",
    ],
)
def test_a_wrong_url_is_reported_in_one_line_without_the_password(url):
    with pytest.raises(config.ConfigError) as caught:
        connection.connect(url)
    message = str(caught.value)
    assert message.startswith("REDIS_URL='") and " cannot be used: " in message
    assert "hunter2" not in message and "\n" not in message


def test_an_unknown_url_option_is_reported_in_one_line_by_every_process(spawn, redis):
    """Earlier the first command printed a traceback, and the web app started without an error."""
    commands = [
        ["rqjobs", "stats"],
        ["rqjobs", "worker"],
        ["rqjobs", "dev"],
        ["rq.cli", "worker", "--worker-class", "rqjobs.Worker"],
        ["gunicorn", "--config", "python:rqjobs.web.gunicorn_config", "rqjobs.web:create_app()"],
    ]
    processes = [
        spawn(
            sys.executable,
            "-m",
            *command,
            env={"REDIS_URL": "redis://:hunter2@h?bogus=1", "PORT": str(free_port())},
        )
        for command in commands
    ]
    for process in processes:
        assert process.wait(60) != 0
        assert process.output().startswith(
            "rqjobs: REDIS_URL='redis://:***@h?bogus=1' cannot be used: no URL has the "
            "option 'bogus'; there are, for example, "
        ), process.output()
        assert process.output().count("\n") == 1


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://:hunter2@h:6379/0", "redis://:***@h:6379/0"),
        ("rediss://me:hunter2@h/0?ssl_cert_reqs=none", "rediss://me:***@h/0?ssl_cert_reqs=none"),
        ("redis://me:hunter2@b:c@h/0", "redis://me:***@h/0"),
        ("redis://:hun/hunter2@h/0", "redis://:***@h/0"),
        ("redis://me@h/0", "redis://me@h/0"),
        ("unix://:hunter2@/run/redis.sock", "unix://:***@/run/redis.sock"),
        (
            "unix:///run/redis.sock?password=hunter2&db=1",
            "unix:///run/redis.sock?password=***&db=1",
        ),
        ("redis://h/0?password=hunter2", "redis://h/0?password=***"),
        ("rediss://h/0?ssl_password=hunter2&db=1", "rediss://h/0?ssl_password=***&db=1"),
        (
            "redis+sentinel://me:hunter2@a:1,b:2/m/0?sentinel_password=hunter2",
            "redis+sentinel://me:***@a:1,b:2/m/0?sentinel_password=***",
        ),
    ],
)
def test_a_masked_url_has_no_password(url, shown):
    assert connection.mask_password(url) == shown


def test_without_a_url_the_embedded_server_is_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config.use(redis_url=None)
    with pytest.raises(
        connection.NoRedis, match="no Redis: set REDIS_URL, or run `rqjobs dev` in this folder"
    ):
        connection.url()
    (tmp_path / ".rqjobs").mkdir()
    (tmp_path / ".rqjobs" / "redis.url").write_text("unix:///somewhere\n")
    assert connection.url() == "unix:///somewhere"
    config.use(redis_url="redis://h")
    assert connection.url() == "redis://h"


def test_one_client_per_process_and_url(server):
    assert connection.client() is connection.client()
    assert connection.client().connection_pool.connection_kwargs["path"] == server.removeprefix(
        "unix://"
    )


@pytest.fixture
def certificate(tmp_path):
    """A self-signed certificate for localhost, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl here to make a certificate with")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            key,
            "-out",
            cert,
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_tls_with_a_valid_no_and_a_foreign_certificate(certificate, serve):
    """Jobs are enqueued over `rediss://`; a certificate of an unknown authority is refused."""
    cert, key = certificate
    port = free_port()
    trusted = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={cert}"
    serve(
        trusted,
        "--port",
        "0",
        "--tls-port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--tls-cert-file",
        str(cert),
        "--tls-key-file",
        str(key),
        "--tls-ca-cert-file",
        str(cert),
        "--tls-auth-clients",
        "no",
    )
    config.use(redis_url=trusted)
    assert rqjobs.enqueue(sample_jobs.add, 1, 2).get_status().value == "queued"
    config.use(redis_url=f"rediss://localhost:{port}/0?ssl_cert_reqs=none")
    assert rqjobs.queue("default").count == 1
    with pytest.raises(redis_py.ConnectionError, match="certificate verify failed"):
        connection.connect(f"rediss://127.0.0.1:{port}").ping()


def test_sentinel_names_the_master(serve, spawn, tmp_path, eventually):
    port, sentinel_port = free_port(), free_port()
    master = serve(
        f"redis://:pw@127.0.0.1:{port}",
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--requirepass",
        "pw",
    )
    conf = tmp_path / "sentinel.conf"
    conf.write_text(
        f"port {sentinel_port}\nbind 127.0.0.1\ndir {tmp_path}\n"
        f"sentinel monitor mymaster 127.0.0.1 {port} 1\nsentinel auth-pass mymaster pw\n"
    )
    watcher = spawn(redis_server.binary(), str(conf), "--sentinel")
    # The second sentinel is down, as one of three may be.
    url = f"redis+sentinel://:pw@127.0.0.1:{free_port()},127.0.0.1:{sentinel_port}/mymaster/3?socket_timeout=5"
    client = connection.connect(url)

    def resolved():
        assert watcher.poll() is None, watcher.output()
        with contextlib.suppress(redis_py.ConnectionError, redis_py.TimeoutError):
            return client.ping()

    eventually(resolved)
    config.use(redis_url=url)
    job = rqjobs.enqueue(sample_jobs.ok)
    with redis_py.Redis(port=port, password="pw", db=3) as direct:
        assert direct.lrange("rq:queue:default", 0, -1) == [job.id.encode()]
    assert master.dbsize() == 0
    start = time.monotonic()
    with pytest.raises(redis_py.ConnectionError, match="No master found for 'other'"):
        connection.connect(url.replace("mymaster", "other")).ping()
    assert time.monotonic() - start < 20  # the machine may be busy


def refused(action, *args):
    with pytest.raises(redis_py.RedisError) as caught:
        action(*args)
    return connection.refusal_code(caught.value), connection.explain(caught.value)


def test_a_refusal_of_redis_is_explained_with_the_remedy(tcp):
    """The refusal may come from a command or from a script.

    Old servers wrap the errors of scripts in another text.
    """
    port, client = tcp
    write = "return redis.call('SET', KEYS[1], 1)"
    client.config_set("maxmemory", 1)
    for action in ((client.set, "key", "value"), (client.eval, write, 1, "key")):
        code, line = refused(*action)
        assert code == "OOM" and line.startswith("Redis is full") and "give it more memory" in line
    client.config_set("maxmemory", 0)
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    code, line = refused(client.set, "key", "value")
    assert code == "READONLY" and "is a replica" in line
    client.execute_command("REPLICAOF", "NO", "ONE")
    client.execute_command("ACL", "SETUSER", "small", "on", ">pw", "+@all", "-set", "-info", "~rq*")
    small = connection.connect(f"redis://small:pw@127.0.0.1:{port}")
    for action in ((small.info,), (small.get, "other"), (small.eval, write, 1, "rq:key")):
        code, line = refused(*action)
        assert code == "NOPERM" and "ACL SETUSER" in line
    assert "'info'" in refused(small.info)[1]
    code, line = refused(connection.connect(f"redis://small:wrong@127.0.0.1:{port}").ping)
    assert code == "NOAUTH" and "password in REDIS_URL" in line and "wrong@" not in line
    assert (
        connection.refusal_code(
            redis_py.ResponseError("MISCONF Redis is configured to save RDB snapshots")
        )
        == "MISCONF"
    )
    for error in (
        redis_py.ResponseError("WRONGTYPE an OOM-like word"),
        redis_py.TimeoutError("NOPERM is not said"),
    ):
        assert connection.refusal_code(error) == "" and connection.explain(error) == str(error)
