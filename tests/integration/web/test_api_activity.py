"""Activity has every action by a token of the API, except enqueues, which programs do all day."""

from __future__ import annotations

import pytest
import sample_jobs
from api_client import ADMIN, OPERATOR, READER, ApiClient
from helpers import Broker

import rqjobs
from rqjobs import every, failed, schedules
from rqjobs.broker import activity, keys
from rqjobs.broker.activity import Outcome
from rqjobs.web.access import SAFE_METHODS
from rqjobs.web.api.operations import OPERATIONS

OK = {"function": "sample_jobs.ok"}
NOT_LISTED = {"enqueue_job", "enqueue_batch"}
ACTIONS = {  # an operation -> the body of its request, and the action in the list
    "act_on_jobs": ({"action": "cancel", "jobs": ["waiting"]}, "change jobs"),
    "cancel_job": (None, "cancel job"),
    "delete_failures": ({}, "delete failed jobs"),
    "delete_job": (None, "delete job"),
    "delete_schedule": (None, "delete schedule"),
    "empty_queue": (None, "empty queue"),
    "ignore_failure": (None, "ignore failed jobs"),
    "pause_queue": (None, "pause queue"),
    "pause_schedule": (None, "pause schedule"),
    "put_schedule": ({**OK, "every": 60}, "edit schedule"),
    "quiet_worker": (None, "quiet worker"),
    "requeue_failures": ({"limit": 1}, "requeue failed jobs"),
    "requeue_job": (None, "requeue job"),
    "resume_queue": (None, "resume queue"),
    "resume_schedule": (None, "resume schedule"),
    "resume_worker": (None, "resume worker"),
    "run_schedule": (None, "run schedule"),
    "stop_job": (None, "stop job"),
    "stop_worker": (None, "stop worker"),
    "watch_failure": (None, "watch failed jobs"),
}
CHANGING = {one.name: one for one in OPERATIONS if one.method not in SAFE_METHODS}


@pytest.fixture
def api(app):
    return ApiClient(app.test_client())


@pytest.fixture(scope="module")
def sent_commands():
    """The worker of these tests has no process, so nobody hears its commands."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("quiet", "resume", "stop"):
            patch.setattr(f"rqjobs.worker_commands.{name}", lambda worker: True)
        yield


def plant(redis):
    """A thing for each parameter in an address; returns their names."""
    broken = rqjobs.enqueue(sample_jobs.boom, job_id="broken")
    rqjobs.enqueue(sample_jobs.boom, job_id="broken-too")
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")
    rqjobs.enqueue(sample_jobs.ok, job_id="running")
    Broker(redis).claim("a")
    rqjobs.enqueue(sample_jobs.ok, job_id="waiting")
    schedules.add("hourly", every(hours=1), sample_jobs.ok)
    redis.hset("rq:worker:a", mapping={"state": "idle", "queues": "default"})
    redis.sadd("rq:workers", "rq:worker:a")
    (group,) = failed.groups()
    assert broken.get_status().value == "failed"
    return {"queue": "default", "schedule": "hourly", "worker": "a", "group": group.id}


def test_the_table_has_every_operation_that_changes_something():
    assert ACTIONS.keys() | NOT_LISTED == CHANGING.keys()


@pytest.mark.usefixtures("sent_commands")
@pytest.mark.parametrize("name", ACTIONS)
def test_an_action_of_a_token_is_listed_with_its_name(api, redis, name):
    body, action = ACTIONS[name]
    names = plant(redis)
    names["job_id"] = {"cancel_job": "waiting", "stop_job": "running"}.get(name, "broken")
    redis.delete(keys.ACTIVITY)
    one = CHANGING[name]
    token = ADMIN if one.role.name == "ADMIN" else OPERATOR
    reply = api(one.method, one.path.format(**names), body, token=token)
    assert reply.status_code < 300, reply.json
    (entry,) = activity.read(redis).entries
    target = "".join(names[part] for part in one.path_names)
    user = {ADMIN: "ops", OPERATOR: "shop"}[token]
    assert (entry.action, entry.target, entry.user, entry.via, entry.address, entry.outcome) == (
        action,
        target,
        user,
        "api",
        "127.0.0.1",
        Outcome.DONE,
    )


@pytest.mark.parametrize("name", sorted(CHANGING))
def test_a_refused_action_and_an_enqueue_are_not_listed(api, redis, name):
    one = CHANGING[name]
    path = one.path.format(**dict.fromkeys(one.path_names, "nothing"))
    wrong = [
        api(one.method, path, {"odd": 1}, token=READER),
        api(one.method, f"{path}?odd=1", {}),
        api(one.method, path, data=b"{", content_type="application/json"),
    ]
    assert [reply.status_code for reply in wrong[:2]] == [403, 422]
    if name in NOT_LISTED:
        assert api.post(path, {"jobs": [OK]} if "batch" in path else OK).status_code == 201
    elif wrong[2].status_code < 300:  # a queue need not exist to be paused
        assert name in ("pause_queue", "resume_queue", "empty_queue")
        redis.delete(keys.ACTIVITY)
    assert not redis.exists(keys.ACTIVITY) or not redis.xlen(keys.ACTIVITY)
