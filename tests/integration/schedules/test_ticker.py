"""The scheduler with declared schedules, deploys, takeovers and kills."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil
import pytest
import sample_jobs
from click.testing import CliRunner
from rq.scheduler import RQScheduler

import rqjobs
from rqjobs import ScheduleError, cli, config, every, schedules
from rqjobs.broker import keys, leases, scripts
from rqjobs.broker.keys import SCHEDULES
from rqjobs.maintenance import audit
from rqjobs.schedules import declared, store, ticker

SCHEDULER = """
import os, rqjobs
from rqjobs.scheduler import Scheduler
scheduler = Scheduler(["default", "low"], connection=rqjobs.client(), logging_level="WARNING")
scheduler._parent_pid = os.getppid()
scheduler.work()
"""


@pytest.fixture
def sample_schedules(settings):
    """The jobs module `sample_schedules`, which declares schedules, with `sample_jobs`."""
    config.use(dataclasses.replace(settings, modules=("sample_schedules", "sample_jobs")))


@pytest.fixture
def version(redis, eventually):
    """A worker with a lease, whose code declares these schedules: {name: rule}."""
    eventually(lambda: redis.time()[0] % 3600 < 3590, what="an hour that does not end in the test")

    def start(worker, rules, **call):
        leases.renew_lease(redis, worker, {"pid": 1})
        began = scripts.redis_time(redis)
        made = store.build_template(
            call.get("function", sample_jobs.note), call.get("args", ()), {}
        )
        fields = {field: declared.latin1_text(value) for field, value in made.fields.items()}
        words = json.dumps(
            {
                "started": began,
                "schedules": [
                    {
                        "name": name,
                        "rule": rule.to_json(),
                        "function": made.function,
                        "queue": made.queue,
                        "digest": made.digest,
                        "fields": fields,
                    }
                    for name, rule in rules.items()
                ],
            }
        )
        declared.publish_declarations(redis, worker, words)
        declared.reconcile(redis)
        return words

    return start


def states():
    return {found.name: found.state for found in schedules.all()}


def test_declarations_of_a_module_have_names_and_options(sample_schedules):
    found = {one["name"]: one for one in declared.declarations()}
    assert set(found) == {
        "sample_schedules-pulse",
        "low-pulse",
        "sample_schedules-report",
        "sample_schedules-report-2",
    }
    assert found["low-pulse"]["queue"] == "low" and found["low-pulse"]["fields"]["timeout"] == "20"
    early = found["sample_schedules-report"]
    assert "0 6 * * mon-fri" in early["rule"] and "'early'" in early["fields"]["description"]


def test_two_declarations_of_one_name_are_refused(settings, sample_schedules, monkeypatch):
    import sample_schedules as module

    monkeypatch.setattr(
        module.plain, "__rqjobs_rules__", [every(hours=1, name="low-pulse")], raising=False
    )
    with pytest.raises(
        ScheduleError,
        match=r"sample_schedules\.other and of sample_schedules\.plain; give one of them a name",
    ):
        declared.declarations()


def test_declared_schedules_follow_the_code(redis, version):
    version("w1", {"a": every(hours=1), "b": every(hours=2)})
    first = schedules.get("a")
    assert (first.source, first.state, first.function) == ("code", "active", "sample_jobs.note")
    for change in (schedules.remove, schedules.edit):
        with pytest.raises(ScheduleError, match="declared in the code"):
            change("a")
    version("w2", {"a": every(hours=1), "b": every(hours=2)})
    assert schedules.get("a").revision == first.revision  # no change
    version("w3", {"a": every(hours=1), "b": every(hours=3)}, args=["other"])
    assert schedules.get("a").revision > first.revision and schedules.get("a").args == ["other"]
    assert schedules.get("a").next == first.next and schedules.get("b").rule.seconds == 3 * 3600


def test_in_a_rolling_deploy_the_last_started_version_decides(redis, version):
    old = version("old", {"kept": every(hours=1), "dropped": every(hours=1)})
    version("new", {"kept": every(hours=2), "added": every(hours=1)})
    revision = schedules.get("kept").revision
    for _ in range(3):  # a reconciliation by any worker changes nothing
        leases.end_lease(redis, "old")  # the worker is declared dead
        declared.reconcile(redis)
        leases.renew_lease(redis, "old", {"pid": 1})  # and registers again
        declared.publish_declarations(redis, "old", old, again=True)
        declared.reconcile(redis)
    assert states() == {"kept": "active", "dropped": "active", "added": "active"}
    assert schedules.get("kept").rule.seconds == 7200 and schedules.get("kept").revision == revision
    leases.end_lease(redis, "old")
    declared.reconcile(redis)
    assert states() == {"kept": "active", "dropped": "undeclared", "added": "active"}


def test_an_undeclared_schedule_stops_and_continues_where_it_was(redis, version):
    version("shop", {"daily": every(hours=1, missed="all")})
    leases.end_lease(redis, "shop")
    declared.reconcile(redis)
    assert states() == {"daily": "active"}  # no worker declares schedules now
    redis.hset(
        "rqjobs:schedule:daily",
        "next",
        tick := int(redis.hget("rqjobs:schedule:daily", "next")) - 3 * 3600,
    )
    version("mail", {"letters": every(hours=1)})
    assert states() == {"daily": "undeclared", "letters": "active"}
    assert redis.zscore(SCHEDULES, "daily") == float("inf")
    ticker.run_due(redis)
    assert rqjobs.queue("default").job_ids == []
    version("shop", {"daily": every(hours=1, missed="all")})
    assert states() == {"daily": "active", "letters": "active"}
    ticker.run_due(redis)
    assert (
        len(rqjobs.queue("default").job_ids) == 3
        and schedules.get("daily").last.timestamp() == tick + 2 * 3600
    )


def test_pauses_survive_a_deploy_and_undeclared_schedules_last_a_day(redis, version):
    version("w1", {"a": every(hours=1)})
    schedules.pause("a")
    version("w2", {"a": every(hours=2)}, args=["changed"])
    assert states() == {"a": "paused"}
    for worker in ("w1", "w2"):
        leases.end_lease(redis, worker)
    version("w3", {})
    assert states() == {"a": "undeclared"}
    with pytest.raises(ScheduleError, match="is undeclared"):
        schedules.resume("a")
    version("w4", {"a": every(hours=2)}, args=["changed"])
    assert states() == {"a": "paused"}
    leases.end_lease(redis, "w4")
    declared.reconcile(redis)
    redis.hset(
        "rqjobs:schedule:a", "undeclared_since", time.time() - declared.UNDECLARED_SECONDS - 5
    )
    declared.reconcile(redis)
    assert states() == {} and not redis.keys("rqjobs:schedule:*")


def test_a_declaration_does_not_replace_an_added_schedule(redis, version):
    schedules.add("mine", every(hours=1), sample_jobs.note, "by hand")
    version("w1", {"mine": every(hours=2)})
    assert (schedules.get("mine").source, schedules.get("mine").args) == ("added", ["by hand"])


def test_a_worker_runs_its_declared_schedules_and_another_takes_over(
    redis, worker, kill, eventually
):
    env = {"RQJOBS_MODULES": "sample_schedules"}
    first = worker(options=["--with-scheduler"], env=env)
    eventually(lambda: redis.llen("pulse") >= 2 and redis.llen("other") >= 1)
    worker(options=["--with-scheduler"], env=env)
    kill(first.pid)
    seen = redis.llen("pulse")
    eventually(lambda: redis.llen("pulse") >= seen + 3)
    for name, key in (("sample_schedules-pulse", "pulse"), ("low-pulse", "other")):
        prefix = f"{name}-r{schedules.get(name).revision}-"
        assert all(job_id.startswith(prefix) for job_id in marks(redis, key))

    def each_tick_has_run():  # missed="all"; that of the killed worker runs after later ones
        found = {datetime.strptime(one[-15:], "%Y%m%dT%H%M%S") for one in marks(redis, "other")}
        return (max(found) - min(found)) / timedelta(seconds=2) == len(found) - 1

    eventually(each_tick_has_run)
    eventually(lambda: not audit.audit(redis).breaches)


def marks(redis, key):
    return [job_id.decode() for job_id in redis.lrange(key, 0, -1)]


def test_a_worker_with_an_impossible_declaration_does_not_start(spawn, redis, tmp_path):
    (tmp_path / "broken.py").write_text(
        "from rqjobs import cron\n@cron('0 25 * * *')\ndef job():\n    pass\n"
    )
    process = spawn(sys.executable, "-m", "rqjobs", "worker", env={"RQJOBS_MODULES": "broken"})
    assert process.wait(30) == 2 and "field 2 (hour): '25' is wrong" in process.output()
    (tmp_path / "broken.py").write_text(
        "from rqjobs import every\n@every(hours=1, args=[object()])\ndef job(x):\n    pass\n"
    )
    process = spawn(sys.executable, "-m", "rqjobs", "worker", env={"RQJOBS_MODULES": "broken"})
    assert (
        process.wait(30) == 1
        and "argument 'x'" in process.output()
        and "Traceback" not in process.output()
    )
    assert not redis.keys("rqjobs:process:*")


def holder(redis, key):
    name = redis.get(key)
    return name and redis.hget(f"rq:scheduler:{name.decode()}", "pid") and name


@pytest.mark.slow
def test_a_hundred_scheduler_takeovers_neither_lose_nor_double_a_job(
    spawn, redis, kill, eventually
):
    locks = [
        RQScheduler.get_locking_key("default"),
        RQScheduler.get_locking_key("low"),
        keys.SCHEDULES_LOCK,
    ]
    schedulers = [spawn(sys.executable, "-c", SCHEDULER) for _ in range(10)]
    eventually(lambda: all(holder(redis, key) for key in locks), timeout=30)
    jobs = rqjobs.enqueue_many([(sample_jobs.ok, number) for number in range(6000)])
    redis.delete("rq:queue:default")
    begin = int(scripts.redis_time(redis))
    schedules.add("pulse", every(seconds=1, missed="all"), sample_jobs.note)
    with redis.pipeline() as pipe:
        for number, job in enumerate(jobs):
            pipe.hset(job.key, "status", "scheduled")
            pipe.zadd("rq:scheduled:default", {job.id: begin + number / 200})  # for half a minute
        pipe.execute()
    for round_ in range(100):
        if round_ % 25 == 24:  # the scheduler crashes
            name = eventually(lambda: holder(redis, locks[2]))
            pid = int(redis.hget(f"rq:scheduler:{name.decode()}", "pid"))
            kill(pid)
            schedulers.append(spawn(sys.executable, "-c", SCHEDULER))
            eventually(lambda name=name: (holder(redis, locks[2]) or name) != name)
        else:  # it goes on without the locks that another takes
            before = {key: redis.get(key) for key in locks}
            redis.delete(*locks)
            eventually(lambda before=before: all(redis.get(key) for key in before))
    eventually(lambda: not redis.zcard("rq:scheduled:default"), timeout=60)
    schedules.pause("pulse")
    ids = rqjobs.queue("default").job_ids
    counts = Counter(ids)
    assert set(counts.values()) == {1}
    assert {job.id for job in jobs} <= set(ids)
    found = schedules.get("pulse")
    ticks = sorted(
        datetime.strptime(job_id[-15:], "%Y%m%dT%H%M%S").replace(tzinfo=timezone.utc).timestamp()
        for job_id in ids
        if job_id.startswith("pulse-")
    )
    assert ticks == [ticks[0] + number for number in range(len(ticks))]
    assert len(ticks) == found.made and found.missed == 0
    for process in schedulers:
        if psutil.pid_exists(process.pid):
            process.terminate()
            process.wait(20)


def test_an_unreadable_declaration_does_not_stop_the_others(redis, version):
    """A newer version of rqjobs may write parts that this version cannot read."""
    words = json.loads(
        version("w1", {"a": every(hours=1), "b": every(hours=1), "c": every(hours=1)})
    )
    words["schedules"][0]["rule"] = '{"seconds": 5, "moon": "full"}'
    del words["schedules"][1]["fields"]
    words["schedules"][2]["digest"] = "another"
    declared.publish_declarations(redis, "w1", json.dumps(words))
    revision = schedules.get("c").revision
    declared.reconcile(redis)
    assert states() == dict.fromkeys("abc", "active") and schedules.get("c").revision > revision


@pytest.mark.parametrize(
    "words",
    [
        "{",
        "[]",
        "5",
        '{"started": "x", "schedules": []}',
        "[" * 5000,
        '{"started": 1, "schedules": [[]]}',
        b"\xff",
    ],
)
def test_invalid_declarations_are_logged_once_and_remove_no_schedule(redis, version, words, caplog):
    said = version("w1", {"a": every(hours=1)})
    leases.renew_lease(redis, "w2", {"pid": 1})
    redis.hset("rqjobs:schedules:declared", mapping={"w1": words, "w2": said.replace('"a"', '"b"')})
    declared.reconcile(redis)
    assert states() == {"a": "active", "b": "active"}
    declared.publish_declarations(redis, "w1", said, again=True)
    declared.reconcile(redis)
    assert states() == {"a": "active", "b": "active"} and caplog.text.count("cannot be read") == 1


def test_the_example_in_the_docs_declares_what_it_says(settings, tmp_path, monkeypatch, redis):
    page = (Path(__file__).parents[3] / "docs" / "schedules.md").read_text()
    block = page.split("```python\n# tasks.py\n", 1)[1].split("```", 1)[0]
    (tmp_path / "tasks.py").write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tasks", raising=False)
    config.use(dataclasses.replace(settings, modules=("tasks",)))
    found = {one["name"]: one for one in declared.declarations()}
    assert set(found) == {"tasks-refresh", "tasks-report", "monthly"}
    assert found["monthly"]["queue"] == "low" and "overlap" in found["tasks-report"]["rule"]
    later = page.split("## Adding schedules at run time", 1)[1]
    exec(later.split("```python\n", 1)[1].split("```", 1)[0], {})
    command = shlex.split(later.split("```sh\nrqjobs ", 1)[1].split("```", 1)[0])
    assert CliRunner().invoke(cli.main, command).exit_code == 0
    assert {one.name: (one.function, one.state) for one in schedules.all()} == {
        "digest-41": ("tasks.send_digest", "active"),
        "digest-42": ("tasks.send_digest", "paused"),
        "digest-43": ("tasks.send_digest", "active"),
    }
    monkeypatch.delitem(sys.modules, "tasks")
