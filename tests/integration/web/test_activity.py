"""The list of activity: who did what when, on the pages and by the command line."""

from __future__ import annotations

import re

import pytest
import sample_jobs
from browser_client import ESCAPED, HOSTILE, OURS, harmless, log_in
from click.testing import CliRunner
from flask import Flask

import rqjobs
from rqjobs import cli, connection
from rqjobs.broker import activity, keys
from rqjobs.broker.activity import Entry, Outcome
from rqjobs.web import Access, Role, init_app


def entries(**chosen):
    return activity.read(connection.client(), **chosen).entries


def told(entry):
    return (entry.user, entry.via, entry.action, entry.target, entry.note, entry.outcome)


def test_an_action_is_kept_with_its_note_and_its_user(client, redis):
    job = rqjobs.enqueue(sample_jobs.say, "hello")
    client.post(f"/jobs/{job.id}/cancel")
    (entry, login) = entries()
    note = f"The job is canceled and will not run. ({job.description})"
    assert told(entry) == ("admin", "page", "cancel job", job.id, note, Outcome.DONE)
    assert (login.action, login.user, login.address) == ("log in", "admin", "127.0.0.1")
    assert entry.address == "127.0.0.1"
    client.post("/pauses/pause", data={"kind": "queue", "name": "low"})
    client.post(f"/rq/job/{job.id}/delete")
    client.post("/logout")
    assert [one.action for one in entries()[:3]] == ["log out", "delete job", "pause queue"]
    assert entries()[1].via == "dashboard" and entries()[2].target == "queue low"
    assert redis.xlen(keys.ACTIVITY) == 5, "the entry of the beginning is replaced"


def test_a_group_of_failed_jobs_is_linked(client, redis, worker, eventually):
    """The link led to the page of a job with the id of the group: not found."""
    worker("default")
    rqjobs.enqueue(sample_jobs.boom, "oops")
    (group,) = eventually(rqjobs.failed.groups, what="the failure")
    client.post(f"/failed/{group.id}/requeue")
    client.post("/failed/ungrouped/requeue")
    links = re.findall(
        r'<b>requeue failed jobs</b> <a href="([^"]+)"', client.get("/activity").text
    )
    assert links == ["/failed/ungrouped", f"/failed/{group.id}"]
    assert all(client.get(link).status_code == 200 for link in links)


def test_arguments_and_passwords_are_not_kept(client, app, redis):
    data = {"function": "sample_jobs.say", "queue": "low", "arg.text": "a secret text"}
    assert client.post("/jobs", data=data).status_code in (303, 422)
    log_in(app.test_client(), user="a secret name", password="a secret password")
    stored = repr([redis.xrange(key) for key in redis.scan_iter("rqjobs:activity*")])
    assert "secret" not in stored and "wrong password" in [one.action for one in entries()]


def test_a_refused_action_leaves_no_entry(client, redis):
    before = redis.xlen(keys.ACTIVITY)
    assert client.post("/jobs", data={"function": "no.such"}).status_code == 422
    assert client.post("/jobs/x/unknown").status_code == 404
    assert client.post("/nowhere").status_code == 404
    assert client.post("/pauses//pause", data={"kind": "queue", "name": "low"}).status_code == 308
    evil = {"Sec-Fetch-Site": "cross-site"}
    assert client.post("/pauses/pause", headers=evil).status_code == 403
    assert redis.xlen(keys.ACTIVITY) == before


def test_an_action_of_a_process_that_died_has_an_unknown_outcome(client, redis):
    activity.begin(redis, Entry("delete job", "42", user="ada", via="page"))
    assert entries()[0].outcome is Outcome.UNKNOWN
    page = client.get("/activity").text
    assert "outcome unknown" in page and "delete job" in page


def test_a_failed_action_says_so(app, client, redis, monkeypatch):
    def fail(*_):
        raise RuntimeError("no")

    app.testing = False
    monkeypatch.setitem(app.view_functions, "rqjobs.change_pause", fail)
    assert client.post("/pauses/pause").status_code == 500
    assert entries()[0].outcome is Outcome.FAILED


def test_wrong_passwords_are_counted_and_push_nothing_out(app, client, redis):
    kept = redis.xlen(keys.ACTIVITY)
    for number in range(3):
        log_in(app.test_client(), password="x", environ_base={"REMOTE_ADDR": f"192.0.2.{number}"})
    refused = [one for one in entries() if one.action == activity.WRONG_PASSWORD]
    assert sum(one.count for one in refused) == 3 and len(refused) <= 2  # a minute may end
    assert redis.xlen(keys.ACTIVITY) == kept
    assert "wrong password" in client.get("/activity").text


def test_the_lists_are_bounded(redis):
    with redis.pipeline() as pipe:
        for _ in range(activity.MAX_REFUSED_ENTRIES + 500):
            pipe.xadd(keys.REFUSED_LOGINS, {"count": 1})
        for _ in range(activity.MAX_ENTRIES + 500):
            pipe.xadd(keys.ACTIVITY, {"action": "x"})
        pipe.execute()
    activity.record(redis, Entry("y"))
    activity.count_refused_login(redis, "192.0.2.1")
    assert redis.xlen(keys.ACTIVITY) < activity.MAX_ENTRIES + 200
    assert redis.xlen(keys.REFUSED_LOGINS) < activity.MAX_REFUSED_ENTRIES + 200
    found = activity.read(redis, action="nothing")
    assert found.searched == activity.SEARCH_MAX_ENTRIES and found.next and not found.entries


def test_paging_and_filters_lose_nothing(client, redis):
    for number in range(120):
        entry = Entry(f"cancel job {number}", user="ada" if number % 2 else "bob")
        activity.record(redis, entry)
        if number % 40 == 0:
            activity.count_refused_login(redis, "192.0.2.1")
    seen, before = [], ""
    while True:
        part = activity.read(redis, before, 7)
        seen += part.entries
        before = part.next
        if not before:
            break
    own = [one.action for one in seen if one.action.startswith("cancel")]
    assert own == [f"cancel job {number}" for number in reversed(range(120))]
    assert [one.id for one in seen] == [one.id for one in activity.read(redis, limit=500).entries]
    assert len(entries(user="ada", limit=500)) == 60
    assert [one.action for one in entries(action="JOB 11", limit=500)][-1] == "cancel job 11"
    page = client.get("/activity?user=ada").text
    assert "cancel job 119" in page and "cancel job 118" not in page
    older = page.partition("before=")[2].partition('"')[0]
    assert "cancel job 19" in client.get(f"/activity?user=ada&before={older}").text


def test_entries_of_one_millisecond_in_both_streams_are_on_one_page(redis):
    """No place in the list separates them. The second one was left out."""
    for number in (6, 7):
        redis.xadd(keys.ACTIVITY, {"action": "cancel job"}, id=f"{number}-0")
        redis.xadd(keys.REFUSED_LOGINS, {"count": "1"}, id=f"{number}-0")
    first = activity.read(redis, limit=1)
    assert [one.id for one in first.entries] == ["7-0", "7-0"]
    assert [one.id for one in activity.read(redis, first.next, 1).entries] == ["6-0", "6-0"]


@pytest.mark.parametrize("before", ["x", "1", "-", "1-", "0-\u0661", "9" * 40 + "-0", "1-0 +"])
def test_a_wrong_place_in_the_list_is_a_404(client, before):
    assert client.get("/activity", query_string={"before": before}).status_code == 404


def test_hostile_and_damaged_entries_are_shown_as_text(client, redis):
    activity.record(redis, Entry(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, note=HOSTILE))
    activity.record(redis, Entry("cancel job", "\ud800\0 ../login"))
    redis.xadd(keys.ACTIVITY, {b"\xff": b"\xff", "outcome": "odd", "began": "9" * 30, "count": "x"})
    redis.xadd(keys.REFUSED_LOGINS, {"count": "9" * 15})
    page = client.get("/activity").text
    harmless(page)
    assert ESCAPED[:40] in page
    for key in (keys.ACTIVITY, keys.REFUSED_LOGINS):
        redis.delete(key)
        redis.set(key, "odd")
    assert client.get("/activity").status_code == 200
    client.post("/pauses/pause", data={"kind": "queue", "name": "low"})
    activity.count_refused_login(redis, "192.0.2.1")
    assert len(entries()) == 2


def test_a_full_redis_keeps_the_actions_that_free_its_memory(client, redis):
    job = rqjobs.enqueue(sample_jobs.say, "hello")
    before = redis.config_get("maxmemory")["maxmemory"]
    redis.config_set("maxmemory", "1mb")
    try:
        assert client.post(f"/jobs/{job.id}/cancel").status_code in (303, 503)
    finally:
        redis.config_set("maxmemory", before)
    assert "cancel job" in [one.action for one in entries()]


def test_the_user_of_the_application_is_kept(settings, redis):
    app = Flask("host")
    init_app(app, "/ops", authorize=lambda request: Access(Role.OPERATE, "ada"))
    app.test_client().post("/ops/pauses/pause", data={"kind": "queue", "name": "low"}, headers=OURS)
    assert told(entries()[0])[:4] == ("ada", "page", "pause queue", "queue low")


def test_commands_that_act_are_kept(settings, redis):
    def run(*words):
        return CliRunner().invoke(cli.main, words).exit_code

    job = rqjobs.enqueue_in(60, sample_jobs.ok)
    assert run("pause", "low") == 0
    assert run("pause") == 0, "this only lists"
    assert run("delayed", "cancel", job.id) == 0
    assert run("delayed", "cancel", "nowhere") == 1
    assert run("delayed", "reschedule", job.id, "odd") == 2
    assert run("failed", "--queue", "low", "requeue") == 0
    assert run("failed", "requeue", "--all") == 0
    found = entries()
    assert [(one.action, one.target, one.outcome) for one in found] == [
        ("requeue failed jobs", "--all", Outcome.DONE),
        ("requeue failed jobs", "low", Outcome.DONE),
        ("cancel job", "nowhere", Outcome.FAILED),
        ("cancel job", job.id, Outcome.DONE),
        ("pause", "low", Outcome.DONE),
    ]
    assert {one.via for one in found} == {"cli"} and all(one.address for one in found)
