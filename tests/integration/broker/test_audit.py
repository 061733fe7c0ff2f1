"""The audit finds each damage, and nothing else."""

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rqjobs
from rqjobs.broker import keys, leases, scripts
from rqjobs.maintenance import audit

QUEUES = ("default", "low")
UNENDED = ("queued", "started", "scheduled", "deferred")
STATUSES = (*UNENDED, "finished", "failed", "canceled", "stopped", "odd")
PLACES = ("queued", "running", "scheduled", "deferred", "intermediate")  # in the order of reasons


@st.composite
def damages(draw):
    """A job in any number of places, ended or not. An id can be in a list of a queue twice."""
    places = draw(st.lists(st.sampled_from([(q, p) for q in QUEUES for p in PLACES]), max_size=3))
    return {
        "status": draw(st.sampled_from([*STATUSES, None])),
        "has_data": draw(st.sampled_from([True, True, True, False])),
        "places": [place for place in places if places.count(place) == 1 or place[1] == "queued"],
        "claims": draw(st.integers(0, 2)),
        "ended_in": draw(st.sampled_from([None, None, "finished", "canceled"])),
    }


def put(redis, job_id, damage):
    fields = {"origin": "default", "data": "x" if damage["has_data"] else ""}
    if damage["status"]:
        fields["status"] = damage["status"]
    redis.hset(keys.job(job_id), mapping=fields)
    for queue, place in damage["places"]:
        if place == "queued":
            redis.rpush(keys.queue(queue), job_id)
        elif place == "intermediate":
            redis.rpush(keys.intermediate(queue), job_id)
        elif place == "running":
            redis.zadd(keys.running(queue), {f"{job_id}:token": "inf"})
        else:
            redis.zadd(keys.registry(place, queue), {job_id: 4e9})
    for _ in range(damage["claims"]):
        redis.rpush(keys.claims("me"), job_id)
    if damage["ended_in"]:
        redis.zadd(keys.registry(damage["ended_in"], "default"), {job_id: 4e9})


def reason(damage):
    """What the audit has to say about a job; "" if nothing."""
    places = Counter(damage["places"])
    runs = sum(place == "running" for _, place in places)
    found = []
    for queue in QUEUES:
        for place in PLACES:
            if place == "intermediate" and (queue, "running") in places:
                continue  # plain RQ leaves the id there until the horse has started
            name = place if queue == "default" else f"{place} in {queue}"
            found += [name] * places[queue, place]
    found += ["claimed"] * (damage["claims"] - runs)
    status = damage["status"]
    if not damage["has_data"] and len(found) < 2:
        return ""  # what a deleted job left behind
    if status in UNENDED:
        if len(found) > 1:
            return f"in more than one place: {', '.join(found)}"
        if found or damage["ended_in"]:
            return ""
        return f"{status}, but in no place (a stray; the sweep puts it back)"
    is_dropped = status == "canceled" and {*found} <= {"running", "claimed"}
    if status is None or not found or is_dropped:
        return ""
    return f"{status}, yet in: {', '.join(found)}"


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(damages(), max_size=12))
def test_each_damage_is_named(redis, drawn):
    redis.flushall()
    leases.renew_lease(redis, "me", {})
    redis.sadd(keys.QUEUES, *map(keys.queue, QUEUES))
    for number, damage in enumerate(drawn):
        put(redis, f"job-{number}", damage)
    expected = {f"job-{number}": reason(damage) for number, damage in enumerate(drawn)}
    found = audit.audit(redis, settle=0).breaches
    assert found == {job_id: text for job_id, text in expected.items() if text}


def test_what_is_left_of_a_deleted_job_is_no_damage(redis):
    """Plain RQ leaves the id of a running job in the intermediate queue until the horse starts."""
    left = {"status": "finished", "has_data": False, "claims": 0, "ended_in": None}
    put(redis, "left", left | {"places": [("low", "running"), ("low", "intermediate")]})
    redis.sadd(keys.QUEUES, *map(keys.queue, QUEUES))
    assert audit.audit(redis, settle=0).breaches == {}
    put(redis, "left", left | {"places": [("default", "queued")]})
    assert audit.audit(redis, settle=0).breaches == {
        "left": "finished, yet in: queued, running in low"
    }


def test_the_jobs_are_scanned_once_and_only_suspects_are_looked_at_again(redis, monkeypatch):
    """A second scan of a million jobs took as long as the first one."""
    monkeypatch.setattr(audit, "RECHECKED_TOGETHER_JOBS", 2)
    for number in range(5):
        put(
            redis,
            f"stray-{number}",
            {"status": "queued", "has_data": True, "places": [], "claims": 0, "ended_in": None},
        )
    for number in range(50):
        rqjobs.queue("default").enqueue("sample_jobs.ok", job_id=f"job-{number}")
    scans = []
    run = scripts.SCAN_STATUSES.run
    monkeypatch.setattr(scripts.SCAN_STATUSES, "run", lambda *args: scans.append(1) or run(*args))
    assert audit.audit(redis, settle=0).breaches.keys() == {f"stray-{n}" for n in range(5)}
    assert len(scans) == 1
