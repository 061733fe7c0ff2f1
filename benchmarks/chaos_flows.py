"""The scenario *flows, logs, outbox* of `make chaos`: the application, and what must hold at the end.

The application writes orders into a database. Each has a flow in the same transaction, which is
committed, or rolled back. `python chaos_flows.py URL` is its process, which is killed at random.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable

import chaos_flow_jobs
import redis
from chaos_count import Row
from chaos_environment import HERE, KEEP_SECONDS, QUEUE_NAMES
from rq.results import Result
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

import rqjobs
from rqjobs import flows, outbox
from rqjobs.broker import recovery
from rqjobs.broker.keys import decode

MEMBERS = 6
ROLLED_BACK_SHARE = 0.2
DRAIN_SECONDS = 60.0


def create(url: str) -> None:
    """Create the tables of the application and of the outbox."""
    engine = create_engine(url)
    with engine.begin() as database:
        database.execute(text("CREATE TABLE orders (flow TEXT PRIMARY KEY)"))
    outbox.table().create(engine)
    engine.dispose()


def write_orders(url: str) -> None:
    """Write orders until this process is killed."""
    engine = create_engine(url)
    while True:
        with Session(engine) as session, rqjobs.transaction(session):
            flow = enqueue_flow()
            session.execute(text("INSERT INTO orders VALUES (:flow)"), {"flow": flow.id})
            if random.random() < ROLLED_BACK_SHARE:
                session.rollback()
            else:
                session.commit()
        time.sleep(random.uniform(0, 0.3))


def enqueue_flow() -> flows.Flow:
    kept = {"result_ttl": KEEP_SECONDS, "failure_ttl": KEEP_SECONDS}
    members = [
        rqjobs.s(chaos_flow_jobs.member, number).set(queue=random.choice(QUEUE_NAMES), **kept)
        for number in range(MEMBERS)
    ]
    return rqjobs.chord(members, rqjobs.s(chaos_flow_jobs.callback).set(**kept)).enqueue()


def start_application(url: str, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process that writes orders."""
    command = [sys.executable, str(HERE / "chaos_flows.py"), url]
    return subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL)


def orders(url: str) -> list[str]:
    """The flows of the orders that are committed."""
    engine = create_engine(url)
    with engine.connect() as database:
        found = list(database.execute(text("SELECT flow FROM orders")).scalars())
    engine.dispose()
    return found


def wait_for_more(url: str, number: int) -> int:
    """Wait until more orders than this are committed; returns their number."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while (found := len(orders(url))) <= number and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def drain(url: str, check_workers: Callable[[], None]) -> list[str]:
    """Wait until the outbox is empty and all flows have ended; returns those that have not."""
    engine = create_engine(url)
    deadline = time.monotonic() + DRAIN_SECONDS
    unfinished = orders(url)
    while unfinished and time.monotonic() < deadline:
        check_workers()
        time.sleep(0.1)
        with engine.connect() as database:
            rows = database.execute(text("SELECT count(*) FROM rqjobs_outbox")).scalar()
        if not rows:
            unfinished = [flow_id for flow_id in unfinished if not has_ended(flow_id)]
    engine.dispose()
    return unfinished


def has_ended(flow_id: str) -> bool:
    try:
        return flows.fetch(flow_id).status is not flows.FlowStatus.RUNNING
    except flows.NoSuchFlow:
        return False


def check(row: Row, client: redis.Redis, url: str, unfinished: list[str]) -> None:
    """Fill the row of the table, after all workers have ended."""
    committed = orders(url)
    row.accepted = len(committed) * (MEMBERS + 1)
    known: set[str] = set()
    for flow_id in committed:
        try:
            flow = flows.fetch(flow_id)
        except flows.NoSuchFlow:
            row.lost += MEMBERS + 1
            row.faults.append(f"the order of the flow {flow_id} is committed, and has no jobs")
            continue
        known.update(flow.job_ids)
        if flow_id in unfinished:
            row.faults.append(f"flow {flow_id} has not ended: {flow.states()}")
        check_flow(row, flow)
    jobs = {decode(key).removeprefix("rq:job:") for key in client.scan_iter("rq:job:*")}
    strange = [name for name in jobs - known if ":" not in name]
    row.faults += [f"job {job_id} has no committed order" for job_id in strange]


def check_flow(row: Row, flow: flows.Flow) -> None:
    """Count the jobs of a flow, and add its faults."""
    for place, job in enumerate(flow.jobs):
        successes = [one for one in job.results() if one.type is Result.Type.SUCCESSFUL]
        crashes = decode(flow.connection.hget(job.key, "rqjobs_crashes") or b"")
        is_poisoned = job.is_failed and len(crashes.split(",")) >= recovery.MAX_CRASHES
        row.poisoned += is_poisoned
        row.rerun += bool(crashes)
        row.outcomes += len(successes) == 1 or is_poisoned
        row.twice += len(successes) > 1
        if len(successes) != 1 and not is_poisoned and flow.status is flows.FlowStatus.FINISHED:
            row.lost += 1
            row.faults.append(f"job {job.id} has {len(successes)} results")
        if place < MEMBERS and successes:
            check_log(row, job)
    if flow.status is flows.FlowStatus.FINISHED and flow.result != sum(range(MEMBERS)):
        row.faults.append(f"flow {flow.id} has the result {flow.result!r}")


def check_log(row: Row, job: rqjobs.Job) -> None:
    """The lines are those of this job, and those of its last run are complete."""
    lines = [line for line in job.log_lines() if line.logger == chaos_flow_jobs.__name__]
    if any(not line.text.startswith(f"{job.id} line ") for line in lines):
        row.faults.append(f"job {job.id} has lines of another job")
    last = [line.text for line in lines if line.attempt == lines[-1].attempt]
    if last != [f"{job.id} line {number}" for number in range(chaos_flow_jobs.LINES)]:
        row.faults.append(f"job {job.id} has the lines {last}")


if __name__ == "__main__":
    write_orders(sys.argv[1])
