"""A worker finds its Redis through a sentinel, and the master dies. All servers are real."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys

import pytest
import redis as redis_py
import sample_jobs
from rq.job import JobStatus

import rqjobs
from rqjobs import Repeat, Retry, config, connection
from rqjobs.broker import keys
from rqjobs.maintenance import audit as maintenance_audit


@pytest.fixture
def cluster(spawn, executable, tmp_path, eventually):
    """A master with a replica, and a sentinel that monitors them; `url` names the sentinel."""

    class Cluster:
        def __init__(self):
            self.servers, self.clients, self.ports = [], [], []
            self.start(self.serve)
            # Redis reads the port of its master as a number only.
            master = str(self.ports[0])
            self.start(lambda port: self.serve(port, "--replicaof", "127.0.0.1", master))
            eventually(
                lambda: "online" in str(self.clients[0].info("replication").get("slave0")),
                what="the replica",
            )
            self.start(self.watch)
            self.url = f"redis+sentinel://127.0.0.1:{self.ports[2]}/mymaster/0"
            eventually(
                lambda: self.clients[2].sentinel_slaves("mymaster"),
                what="a sentinel that knows the replica",
            )

        def start(self, begin):
            """Start a server at a free port. Another process may take the port first."""
            while True:
                with socket.create_server(("127.0.0.1", 0)) as free:
                    port = free.getsockname()[1]
                process, client = begin(port), redis_py.Redis(port=port)
                self.clients.append(client)
                eventually(
                    lambda process=process, client=client: (
                        process.poll() is not None or self.pid_of(client) == process.pid
                    ),
                    what="a server",
                )
                if process.poll() is None:
                    break
                self.clients.pop().close()
                if "in use" not in process.output():
                    assert begin == self.watch, process.output()
                    pytest.skip(f"{executable} has no sentinel mode: {process.output()[-300:]}")
            self.servers.append(process)
            self.ports.append(port)

        def serve(self, port, *options):
            return spawn(
                executable,
                "--port",
                str(port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
                str(tmp_path),
                "--repl-diskless-sync",
                "yes",
                "--repl-diskless-sync-delay",
                "0",
                *options,
            )

        def watch(self, port):
            conf = tmp_path / "sentinel.conf"
            conf.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n"
                f"sentinel monitor mymaster 127.0.0.1 {self.ports[0]} 1\n"
                f"sentinel down-after-milliseconds mymaster 2000\n"
                f"sentinel failover-timeout mymaster 3000\n"
            )
            return spawn(executable, str(conf), "--sentinel")

        def pid_of(self, client):
            with contextlib.suppress(redis_py.RedisError):
                return client.info("server")["process_id"]

    cluster = Cluster()
    yield cluster
    for client in cluster.clients:
        client.close()


@pytest.fixture
def worker(cluster, spawn, eventually):
    config.use(redis_url=cluster.url)
    process = spawn(
        sys.executable,
        "-m",
        "rq.cli",
        "worker",
        "--worker-class",
        "rqjobs.Worker",
        "--connection-class",
        "rqjobs.connection.Client",
        "--with-scheduler",
        "default",
        env={"REDIS_URL": cluster.url},
    )
    eventually(lambda: cluster.clients[0].zcard(keys.LEASES) or process.poll() is not None)
    assert process.poll() is None, process.output()
    return process


def statuses(jobs):
    """The statuses of those jobs that exist in Redis; None while Redis is unreachable."""
    with contextlib.suppress(redis_py.RedisError):
        return {
            job.id: job.get_status()
            for job in jobs
            if rqjobs.Job.exists(job.id, connection.client())
        }


def all_ended(jobs):
    found = statuses(jobs)
    return found is not None and set(found.values()) <= {JobStatus.FINISHED, JobStatus.FAILED}


def check_end(worker, replica):
    """The same worker still runs, the audit finds no problem, and SIGTERM ends the worker."""
    assert worker.poll() is None
    audit = maintenance_audit.audit(connection.client(), settle=0.2)
    assert not audit.breaches and not audit.remarks
    worker.terminate()
    assert worker.wait(30) == 0, worker.output()
    assert not replica.exists(keys.LEASES, "rq:workers") and not replica.keys("rqjobs:claims:*")


def test_a_failover_under_a_running_job(cluster, worker, eventually, tmp_path):
    """The worker goes on with the promoted replica, and jobs of every kind end.

    The replica had all jobs before the master was killed.
    """
    master, replica, _ = cluster.clients
    file = tmp_path / "runs"
    running = rqjobs.enqueue(sample_jobs.noted, str(file), "wait", retry=Retry(max=2))
    eventually(file.exists)
    jobs = [
        running,
        *(rqjobs.enqueue(sample_jobs.noted, str(tmp_path / f"plain-{n}")) for n in range(50)),
        rqjobs.enqueue(sample_jobs.ok, repeat=Repeat(times=1)),
        rqjobs.enqueue(sample_jobs.ok, depends_on=running),
        rqjobs.enqueue(sample_jobs.boom),
        rqjobs.enqueue_in(1, sample_jobs.ok),
    ]
    assert master.wait(1, 5000) == 1
    cluster.servers[0].kill()
    (tmp_path / "runs.open").write_text("ok")
    eventually(
        lambda: replica.info("replication")["role"] == "master", timeout=40, what="the promotion"
    )
    eventually(lambda: all_ended(jobs), timeout=60, what="the end of all jobs")
    assert (
        len(statuses(jobs)) == len(jobs)
        and running.is_finished
        and len(file.read_text().splitlines()) <= 2
    )
    check_end(worker, replica)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_failover_under_a_stream_of_jobs(cluster, worker, eventually, how):
    """All jobs end. A job whose outcome had not reached the replica runs again.

    A master that was only frozen comes back and acts as a master for a while. No client uses
    it.
    """
    master, replica, _ = cluster.clients
    jobs = rqjobs.enqueue_many([(sample_jobs.ok, n) for n in range(3000)])
    assert master.wait(1, 5000) == 1
    eventually(lambda: master.zcard("rq:finished:default") > 20)
    cluster.servers[0].send_signal(how)
    eventually(
        lambda: replica.info("replication")["role"] == "master", timeout=40, what="the promotion"
    )
    if how == signal.SIGSTOP:
        cluster.servers[0].send_signal(signal.SIGCONT)
        eventually(
            lambda: master.info("replication")["role"] == "slave",
            timeout=40,
            what="the old master's step down",
        )
    eventually(lambda: all_ended(jobs), timeout=90, what="the end of all jobs")
    assert replica.zcard("rq:finished:default") == len(jobs)
    check_end(worker, replica)
