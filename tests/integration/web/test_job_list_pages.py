"""The list of all jobs: filters in the address, and changes of many jobs."""

import html
import re

import pytest
import redis as redis_py
import sample_jobs
from browser_client import ESCAPED, HOSTILE
from redis.client import Pipeline
from rq.worker import SimpleWorker

import rqjobs
from rqjobs import bulk_actions, job_search
from rqjobs.broker import activity
from rqjobs.bulk_actions import Action

FIELDS = ("state", "queue", "function", "job_id", "text", "error", "since", "until", "schedule")


def listed(page):
    """The ids of the jobs on a page, in order."""
    return re.findall(r'name="ids" value="([^"]+)"', page)


def note(page):
    return html.unescape(re.search(r'class="note"[^>]*>(.*?)</p>', page, re.DOTALL)[1])


def fail(redis, *messages):
    for message in messages:
        rqjobs.enqueue(sample_jobs.boom, message)
    SimpleWorker([rqjobs.queue("default")], connection=redis).work(burst=True)


def test_a_filter_is_a_link(client, redis):
    assert "There are no jobs yet" in client.get("/jobs").text
    jobs = [rqjobs.enqueue(sample_jobs.add, number, 42) for number in range(60)]
    low = rqjobs.queue("low").enqueue(sample_jobs.say, HOSTILE)
    later = rqjobs.enqueue_in(60, sample_jobs.add, 1)
    page = client.get("/jobs").text
    assert listed(page)[:2] == [later.id, low.id] and "50 of 62" in page
    assert ESCAPED[:20] in page and "<script>window" not in page
    link = html.unescape(re.search(r'rel="next" href="([^"]+)"', page)[1])
    page = client.get(link).text
    assert listed(page)[-1] == jobs[0].id and "the end of 62" in page and ">newest<" in page
    page = client.get("/jobs?text=ADD(7,+42&state=queued").text
    assert listed(page) == [jobs[7].id] and "all 61 jobs were searched" in page
    assert "<option selected>low" in client.get("/jobs?queue=low").text
    assert listed(client.get("/jobs?function=say").text) == [low.id]
    assert listed(client.get(f"/jobs?job_id={later.id}").text) == [later.id]
    assert "No jobs match" in client.get("/jobs?text=nothing").text
    assert "by position" not in client.get("/jobs?text=nothing").text
    page = client.get("/jobs?text=b=42&queue=default").text
    (link,) = re.findall(r'<a href="([^"]+)">search for its value alone', page)
    assert "An argument that was passed by position has no name" in page
    assert listed(client.get(html.unescape(link)).text)[0] == jobs[-1].id
    assert low.id in client.get("/live/jobs?queue=low").text


@pytest.mark.parametrize("path", ["/jobs", "/live/jobs", "/change-jobs"])
def test_hostile_filters_are_refused(client, path):
    rqjobs.enqueue(sample_jobs.ok)
    for value in (HOSTILE * 3, "\0", "\u202e", "x" * 5000, "9" * 400, "-1s"):
        for field in (*FIELDS, "group", "after", "view", "action", "ids", "all", "page"):
            reply = client.get(path, query_string={field: value})
            assert reply.status_code in (200, 422), (field, value)
            assert "<script>window" not in reply.text
    reply = client.get("/jobs?since=yesterday")
    assert reply.status_code == 422 and "is not a time" in reply.text
    assert 'value="yesterday"' in reply.text and 'aria-describedby="e-since"' in reply.text


@pytest.mark.parametrize(
    ("query", "address"),
    [
        ("state=failed&text=&queue=", "/jobs?state=failed"),
        (
            "text=a%26b+%C3%A9&since=&_external=1&_scheme=x",
            "/jobs?text=a%26b+%C3%A9&_external=1&_scheme=x",
        ),
        ("text=&queue=", "/jobs"),
    ],
)
def test_empty_fields_of_the_form_are_not_in_the_link(client, redis, query, address):
    reply = client.get(f"/jobs?{query}")
    assert (reply.status_code, reply.location) == (302, address)


def test_chosen_jobs_are_changed_and_the_view_stays(client, redis):
    fail(redis, "one", "two", "three")
    view = "state=failed&text=boom"
    page = client.get(f"/jobs?{view}").text
    ids = listed(page)
    assert html.unescape(re.search('name="view" value="([^"]+)"', page)[1]) == view
    reply = client.post("/change-jobs", data={"action": "requeue", "ids": ids[:2], "view": view})
    assert reply.location == f"/jobs?{view}"
    page = client.get(reply.location).text
    assert note(page) == "2 jobs are back in their queues." and listed(page) == ids[2:]
    data = {"action": "requeue", "ids": ids[1:], "view": "state=failed"}
    page = client.post("/change-jobs", data=data, follow_redirects=True).text
    assert note(page).startswith("1 job is back in its queue. 1 left alone: the state")
    data = {"action": "cancel", "ids": ids[0], "view": "state=queued"}
    page = client.post("/change-jobs", data=data, follow_redirects=True).text
    assert note(page) == f"The job {ids[0]} is canceled." and len(listed(page)) == 2


def test_a_row_is_changed_and_the_view_stays(client, redis):
    job = rqjobs.enqueue(sample_jobs.say, "a <name>")
    rqjobs.enqueue(sample_jobs.ok)
    page = client.get("/jobs?state=queued&function=say").text
    view = html.unescape(re.search('name="view" value="([^"]+)"', page)[1])
    assert f'formaction="/jobs/{job.id}/cancel"' in page
    reply = client.post(f"/jobs/{job.id}/cancel", data={"back": "jobs", "view": view})
    assert reply.location == "/jobs?state=queued&function=say"
    assert "The job is canceled and will not run. (sample_jobs.say('a <name>'))" in note(
        client.get(reply.location).text
    )


def test_all_that_match_are_deleted_after_a_confirmation(client, redis):
    fail(redis, "one", "two", "other")
    for _ in range(3):
        form = {"action": "delete", "all": "1", "view": "state=failed&text=o"}
        reply = client.post("/change-jobs", data=form)
        assert reply.status_code == 422
        page = reply.text
        assert "Delete 3 jobs?" in page and "gone for good" in page
        assert client.get("/change-jobs", query_string=form).text == page
    sent = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))
    assert redis.zcard("rq:failed:default") == 3
    reply = client.post("/change-jobs", data={k: html.unescape(v) for k, v in sent.items()})
    assert note(client.get(reply.location).text) == "3 jobs are deleted."
    assert redis.zcard("rq:failed:default") == 0
    entries = [entry for entry in activity.read(redis).entries if entry.action != "log in"]
    assert [(one.action, one.note) for one in entries] == [("change jobs", "3 jobs are deleted.")]


def test_a_page_of_jobs_with_long_ids_is_deleted(client, redis):
    """Their confirmation had an address of 10 KiB, which gunicorn refuses."""
    ids = [f"{number:02}{'x' * 253}" for number in range(50)]
    for job_id in ids:
        rqjobs.enqueue(sample_jobs.boom, "x", job_id=job_id)
    SimpleWorker([rqjobs.queue("default")], connection=redis).work(burst=True)
    page = client.post("/change-jobs", data={"action": "delete", "ids": ids}).text
    assert "Delete 50 jobs?" in page and re.findall('name="ids" value="([^"]*)"', page) == ids
    data = {"action": "delete", "ids": ids, "confirmed": "1"}
    page = client.post("/change-jobs", data=data, follow_redirects=True).text
    assert note(page) == "50 jobs are deleted."
    assert redis.zcard("rq:failed:default") == 0


def test_too_many_jobs_are_changed_by_a_job_of_their_own(client, redis, monkeypatch):
    monkeypatch.setattr(rqjobs.bulk_actions, "DIRECT_MAX_JOBS", 5)
    for number in range(6):
        rqjobs.enqueue(sample_jobs.add, number)
    data = {"action": "cancel", "all": "1", "view": "state=queued", "confirmed": "1"}
    page = client.post("/change-jobs", data=data, follow_redirects=True).text
    job_id = redis.lindex("rq:queue:high", 0).decode()
    assert job_id in note(page) and f'href="/jobs/{job_id}"' in page
    SimpleWorker([rqjobs.queue("high")], connection=redis).work(burst=True)
    assert redis.llen("rq:queue:default") == 0 and redis.zcard("rq:canceled:default") == 6
    assert "6 jobs are canceled" in client.get(f"/jobs/{job_id}").text


def test_a_job_that_changes_many_is_not_run_again(client, redis):
    """A user with the role operate could repeat the deletion of an admin."""
    job_id = bulk_actions.enqueue_change(Action.DELETE, job_search.Filter())
    SimpleWorker([rqjobs.queue("high")], connection=redis).work(burst=True)
    assert f"/jobs/{job_id}/again" not in client.get(f"/jobs/{job_id}").text
    client.post(f"/jobs/{job_id}/again")
    assert "choose them again" in note(client.get("/jobs").text)
    assert redis.llen("rq:queue:high") == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"action": "explode", "all": "1"},
        {"action": "requeue"},
        {"action": "requeue", "ids": ["<b>"]},
        {"action": "requeue", "ids": [f"id-{number}" for number in range(501)]},
        {"action": "requeue", "all": "1", "view": "state=<b>"},
    ],
)
def test_wrong_changes_are_refused(client, redis, wrong):
    assert client.post("/change-jobs", data=wrong).status_code == 422
    assert client.get("/change-jobs", query_string=wrong).status_code == 422


def test_damaged_jobs_are_listed(client, redis):
    rqjobs.enqueue(sample_jobs.ok)
    redis.rpush("rq:queue:default", "gone", HOSTILE, b"\xff\0", "x" * 2000)
    redis.zadd("rq:failed:default", {"text": 5})
    redis.set("rq:job:text", "no hash")
    redis.hset(
        "rq:job:odd", mapping=dict.fromkeys(("status", "created_at", "description"), b"\xff")
    )
    redis.hset("rq:job:odd", "rqjobs_progress", b"\xff")
    redis.zadd("rq:wip:default", {"odd:token": "inf"})
    redis.sadd("rq:queues", b"rq:queue:\xff", f"rq:queue:{HOSTILE}")
    page = client.get("/jobs").text
    assert {"gone", "text", "odd"} <= set(listed(page)) and "unreadable" in page
    assert "<script>window" not in page


def test_a_page_takes_few_round_trips(client, redis, monkeypatch):
    for number in range(320):  # more than five steps look at
        rqjobs.enqueue(sample_jobs.add, number)
    monkeypatch.setattr(job_search, "STEP_JOBS", 1)
    asked = []

    def counting(function):
        return lambda *args, **options: asked.append(args) or function(*args, **options)

    client.get("/jobs?function=nothing")
    for owner, name in ((redis_py.Redis, "_execute_command"), (Pipeline, "execute")):
        monkeypatch.setattr(owner, name, counting(getattr(owner, name)))
    assert "search on" in client.get("/jobs?function=nothing").text
    assert len(asked) <= 8, asked
