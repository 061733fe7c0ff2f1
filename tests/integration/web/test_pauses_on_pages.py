"""The buttons that pause and resume, and the banner on every page."""

from __future__ import annotations

import pytest

import rqjobs

PAUSED = "The queue <code>low</code> is paused since"


def test_the_home_page_pauses_and_resumes_a_queue(client, redis):
    page = client.get("/").text
    assert 'aria-label="Pause queue low"' in page and PAUSED not in page
    reply = client.post("/pauses/pause", data={"kind": "queue", "name": "low"})
    assert (reply.status_code, reply.headers["Location"]) == (303, "/")
    (pause,) = rqjobs.paused()
    assert (pause.name, pause.by) == ("low", "admin")
    page = client.get("/").text
    assert "The queue low is paused." in page and 'aria-label="Resume queue low"' in page
    assert "<bdi>The queue low is paused</bdi>" in client.get("/live").text
    for path in ("/failed", "/workers", "/schedules", "/jobs"):
        page = client.get(path).text
        assert page.count(PAUSED) == 1 and "<code>rqjobs resume low</code>" in page, path
    client.post("/pauses/resume", data={"kind": "queue", "name": "low"})
    assert rqjobs.paused() == [] and "The queue low is resumed." in client.get("/").text


def test_the_home_page_resumes_a_paused_function(client, redis):
    rqjobs.pause(function="sample_jobs.ok")
    assert 'aria-label="Resume function sample_jobs.ok"' in client.get("/live").text
    client.post("/pauses/resume", data={"kind": "function", "name": "sample_jobs.ok"})
    assert rqjobs.paused() == []


def test_the_form_of_a_function_pauses_it(client, redis):
    page = client.get("/enqueue?function=sample_jobs.ok").text
    assert 'aria-label="Pause this function sample_jobs.ok"' in page
    client.post("/pauses/pause", data={"kind": "function", "name": "sample_jobs.ok"})
    assert [pause.name for pause in rqjobs.paused()] == ["sample_jobs.ok"]
    page = client.get("/enqueue?function=sample_jobs.ok").text
    assert 'aria-label="Resume this function sample_jobs.ok"' in page


def test_wrong_requests_change_nothing(client, anonymous, redis):
    low = {"kind": "queue", "name": "low"}
    assert anonymous.post("/pauses/pause", data=low).status_code in (401, 403)
    other_site = {"Sec-Fetch-Site": "cross-site"}
    assert client.post("/pauses/pause", data=low, headers=other_site).status_code == 403
    assert client.get("/pauses/pause").status_code == 405
    assert client.post("/pauses/stop", data=low).status_code == 404
    assert client.post("/pauses/pause", data={"kind": "worker", "name": "w"}).status_code == 404
    client.post("/pauses/pause", data={"kind": "queue", "name": "<b>"})
    assert "Nothing was done: &#39;&lt;b&gt;&#39; is not a name for a queue" in client.get("/").text
    assert rqjobs.paused() == []


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_a_button_that_is_pressed_twice_says_so(client, redis, action):
    rqjobs.pause(queue="low")
    client.post(f"/pauses/{action}", data={"kind": "queue", "name": "low"})
    client.post(f"/pauses/{action}", data={"kind": "queue", "name": "low"})
    assert f"The queue low was {action}d already." in client.get("/").text
