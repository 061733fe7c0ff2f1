"""The page of one job: the exception, the values, the runs, the jobs around it, and its buttons."""

from __future__ import annotations

import re
import time

import flow_jobs
import page_jobs
import pytest
import sample_jobs
from browser_client import HOSTILE, harmless
from rq.results import Result

import rqjobs
from rqjobs import chain, chord, config, connection, s
from rqjobs.broker import flows as broker
from rqjobs.broker import keys
from rqjobs.flows import listing
from rqjobs.job_logs import encode_line
from rqjobs.web import timeline
from rqjobs.web.views import flows as flow_views


@pytest.fixture(autouse=True)
def modules(settings):
    config.use(modules=("page_jobs", "flow_jobs", "sample_jobs"))


def work():
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")


@pytest.fixture
def round_trips(monkeypatch):
    """Counts the commands and pipelines that are sent to Redis."""
    sent = []
    for name in ("send_packed_command",):
        original = getattr(connection.UnixConnection, name)

        def count(self, command, *args, _original=original, **options):
            sent.append(command)
            return _original(self, command, *args, **options)

        monkeypatch.setattr(connection.UnixConnection, name, count)
    return sent


def test_the_exception_and_the_own_frames_are_first(client):
    job = rqjobs.enqueue(page_jobs.check_user, "42")
    work()
    page = client.get(f"/jobs/{job.id}").text
    harmless(page)
    assert page.index("JSONDecodeError") < page.index("<h2>Arguments</h2>")
    assert "json_of(&#34;{&#34;)" in page and "while this was handled" in page
    assert re.search(r"\d+ frames? in [^<]*Python", page)
    own = page.index('<li class="own">')
    assert "page_jobs.py" in page[own : own + 400]


def test_values_are_shown_in_one_notation_and_can_be_copied(client):
    value = {"a": [1, None, True], "b": {"c": "x" * 90, "d": HOSTILE}}
    job = rqjobs.enqueue(sample_jobs.ok, value)
    work()
    page = client.get(f"/jobs/{job.id}").text
    harmless(page)
    assert "<bdi>&#39;a&#39;: [1, None, True]</bdi>" in page and "<details open>" in page
    assert 'data-copy="result-value"' in page and 'data-copy="argument-1"' in page
    none = rqjobs.enqueue(sample_jobs.ok)
    work()
    assert "<bdi>None</bdi>" in client.get(f"/jobs/{none.id}").text


def test_a_large_result_is_cut_and_read_in_part(client, redis):
    job = rqjobs.enqueue(sample_jobs.ok, "x")
    redis.hset(job.key, "status", "finished")
    text = '["' + "y" * 1_000_000 + '"]'
    Result(job.id, Result.Type.SUCCESSFUL, redis, return_value=text).save(60)
    page = client.get(f"/jobs/{job.id}").text
    assert "too large for this page" in page and len(page) < 60_000


def test_the_runs_show_waits_outcomes_and_their_lines(client, redis):
    job = rqjobs.enqueue(page_jobs.log_in, "nobody", "pw", retry=rqjobs.Retry(max=1))
    work()
    page = client.get(f"/jobs/{job.id}").text
    runs = re.findall(r"<h3>Attempt (\d) <span class=\"badge (\w+)\"", page)
    assert runs == [("1", "retried"), ("2", "failed")]
    first, last = page.split("<h3>Attempt ")[1:]
    assert all(part.count("with pw") == 1 for part in (first, last))
    assert "waited" in first and "ran" in first and "on " in first


def test_a_run_without_a_record_is_known_by_its_lines_or_its_crash(client, redis):
    job = rqjobs.enqueue(sample_jobs.ok)
    moment = time.time()
    redis.hset(job.key, mapping={"rqjobs_log": "1", "rqjobs_crashes": f"{moment:.3f}"})
    line = encode_line(moment - 60, 30, "WARNING", "shop", "before the crash")
    fields = {"attempt": 1, "token": "t", "write": 1, "lines": line}
    redis.xadd(keys.log(job.id), fields, id=f"{len(line)}-1")
    line2 = encode_line(moment + 5, 30, "WARNING", "shop", "after the crash")
    fields |= {"attempt": 2, "lines": line2}
    redis.xadd(keys.log(job.id), fields, id=f"{len(line) + len(line2)}-2")
    page = client.get(f"/jobs/{job.id}").text
    first, last = page.split("<h3>Attempt ")[1:]
    assert first.startswith('1 <span class="badge crashed"') and "before the crash" in first
    assert last.startswith('2 <span class="badge unknown"') and "after the crash" in last


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.0004, "0.4 ms"),
        (0.35, "350 ms"),
        (1.24, "1.2 s"),
        (60, "1 min 0 s"),
        (3599.9, "1 h 0 min"),
        (90061, "1 d 1 h"),
    ],
)
def test_lengths_of_time(seconds, text):
    assert timeline.seconds_text(seconds) == text


def test_the_job_leads_to_its_record_its_schedule_and_its_queue(client, redis):
    job = rqjobs.enqueue(page_jobs.greet, "a/b <x>")
    page = client.get(f"/jobs/{job.id}").text
    assert 'href="/users/a%2Fb%20%3Cx%3E"' in page and "Open /users/a%2Fb" in page
    assert "number 1 in line" in page and "No worker listens to the queue" in page
    other = rqjobs.enqueue(page_jobs.both, "x", times=[1])
    assert 'href="https://example.com/x?b=1"' in client.get(f"/jobs/{other.id}").text
    rqjobs.schedules.add("nightly", rqjobs.every(hours=1), sample_jobs.ok)
    made = rqjobs.schedules.run_now("nightly")
    assert 'href="/schedules/nightly"' in client.get(f"/jobs/{made.id}").text
    rqjobs.schedules.remove("nightly")
    assert "(it is gone)" in client.get(f"/jobs/{made.id}").text
    for address, host in (("https://shop.test/admin/", "https://shop.test"), ("/admin/", "")):
        config.use(app_url=address)
        page = client.get(f"/jobs/{job.id}").text
        assert f'href="{host}/users/a%2Fb%20%3Cx%3E"' in page, (
            "the path of another host was not found"
        )
        page = client.get(f"/jobs/{other.id}").text
        assert 'href="https://example.com/x?b=1"' in page
    config.use(hide=("user_id",))
    assert "Open /users" not in client.get(f"/jobs/{job.id}").text


def test_edit_and_run_again_opens_the_form_with_the_arguments(client):
    job = rqjobs.queue("low").enqueue(page_jobs.greet, "42", text="<b>two\nlines")
    page = client.get(f"/jobs/{job.id}").text
    (link,) = re.findall(r'href="(/enqueue\?[^"]*)"', page)
    form = client.get(link.replace("&amp;", "&")).text
    harmless(form)
    assert 'value="42"' in form and "&lt;b&gt;two\nlines" in form
    assert re.search(r"<option selected>low", form)
    config.use(hide=("text",))
    form = client.get(link.replace("&amp;", "&")).text
    assert "two\nlines" not in form and "type text again" in form
    assert client.get("/enqueue?function=page_jobs.greet&from=nope").status_code == 404
    assert client.get("/enqueue?function=nope&from=nope").status_code == 200


def test_a_job_whose_arguments_do_not_fit_leaves_the_form_as_it_is(client, redis):
    job = rqjobs.enqueue(page_jobs.greet, "42")
    other = "page_jobs.both"
    form = client.get(f"/enqueue?function={other}&from={job.id}").text
    assert "Type them again" in form or 'value="42"' in form
    redis.hset(job.key, "data", b"damaged")
    assert client.get(f"/enqueue?function={other}&from={job.id}").status_code == 200


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"status": "failed"}, "has failed: requeue that one"),
        ({"status": "stopped"}, "was stopped: requeue that one"),
        ({"status": "canceled"}, "was canceled: enqueue that one again"),
        ({"status": "canceled", "rqjobs_ending": "expired"}, "has expired: enqueue that one again"),
        ({"status": "canceled", "rqjobs_ending": "discarded"}, "was discarded: enqueue that one"),
        (None, "is gone: it was deleted or has expired"),
        ({"status": "finished"}, "has ended: plain RQ enqueued this job"),
    ],
)
def test_a_job_behind_one_that_does_not_finish_says_what_to_do(client, redis, fields, words):
    parent = rqjobs.enqueue(sample_jobs.ok)
    child = rqjobs.queue("default").enqueue(sample_jobs.ok, depends_on=parent)
    if fields is None:
        redis.delete(parent.key)
    else:
        redis.hset(parent.key, mapping=fields)
    page = client.get(f"/jobs/{child.id}").text
    assert f'<a href="/jobs/{parent.id}">{parent.id}</a>, which {words}' in page
    if fields and fields["status"] != "finished":
        assert "A job waits for this one" in client.get(f"/jobs/{parent.id}").text


def test_the_page_of_a_job_takes_few_round_trips(client, redis, round_trips):
    members = [flow_jobs.add.s(number) for number in range(10)]
    flow = chord(members, flow_jobs.total.s()).enqueue()
    for job_id in (flow.job_ids[0], flow.job_ids[-1]):
        client.get(f"/jobs/{job_id}")  # loads the scripts
        round_trips.clear()
        page = client.get(f"/jobs/{job_id}").text
        assert "10 jobs at the same time" in page and 'aria-current="true"' in page
        assert len(round_trips) <= 8, len(round_trips)
        round_trips.clear()
        assert client.get(f"/jobs/{job_id}/state").status_code == 200
        assert len(round_trips) <= 2


def test_ten_thousand_parents_and_children_are_summarized(client, redis, round_trips):
    flow = chord([flow_jobs.add.s(1)] * 10_000, flow_jobs.total.s()).enqueue()
    with redis.pipeline() as pipe:
        for job_id in flow.job_ids[:-1]:
            pipe.sadd(keys.dependents(flow.job_ids[0]), job_id)
        pipe.hset(keys.job(flow.job_ids[5000]), "status", "failed")
        pipe.execute()
    for job_id in (flow.job_ids[0], flow.job_ids[-1]):
        client.get(f"/jobs/{job_id}")
        round_trips.clear()
        began = time.process_time()
        page = client.get(f"/jobs/{job_id}").text
        print("page of", job_id, time.process_time() - began, len(page))
        assert len(round_trips) <= 8 and len(page) < 200_000
        assert "9,999 queued" in page and "1 failed" in page
    assert (
        f'<a href="/jobs/{flow.job_ids[5000]}">{flow.job_ids[5000]}</a>, which has failed' in page
    )
    page = client.get(f"/flows/{flow.id}").text
    assert "10,000 jobs at the same time" in page and "and 9,988 more" in page


def test_hostile_texts_harm_no_part_of_the_page(client, redis):
    job = rqjobs.enqueue(sample_jobs.boom, HOSTILE, description=HOSTILE)
    child = rqjobs.queue("default").enqueue(sample_jobs.ok, HOSTILE, depends_on=job)
    work()
    redis.hset(
        job.key, mapping={"rqjobs_schedule": HOSTILE, "worker_name": HOSTILE, "rqjobs_log": "1"}
    )
    redis.hset(child.key, "description", HOSTILE)
    line = encode_line(time.time(), 30, HOSTILE, HOSTILE, HOSTILE)
    redis.xadd(keys.log(job.id), {"attempt": 1, "token": HOSTILE, "write": 1, "lines": line})
    for address in (f"/jobs/{job.id}", f"/jobs/{child.id}"):
        harmless(client.get(address).text)


def test_flows_are_listed_newest_first_and_in_parts(client, redis, monkeypatch):
    monkeypatch.setattr(flow_views, "FLOWS_PER_PAGE", 2)
    assert "There are no flows" in client.get("/flows").text
    flows = [chain(flow_jobs.add.s(number), s(flow_jobs.double)).enqueue() for number in range(5)]
    redis.delete(keys.flow(flows[3].id))  # as after its end
    found, address = [], "/flows"
    for _ in range(5):
        page = client.get(address).text
        harmless(page)
        found += re.findall(r'<tr data-key="([\w-]+)"', page)
        older = re.search(r'href="(/flows\?after=[^"]+)">older', page)
        if older is None:
            break
        address = older[1].replace("%3A", ":")
    assert found == [flows[number].id for number in (4, 2, 1, 0)]
    assert "flow_jobs.add(4)" in client.get("/flows").text
    for odd in ("x", "1:../a", "nan:x", "9" * 400, "1" * 12 + ":x", "%00"):
        assert client.get(f"/flows?after={odd}").status_code == 200


def test_a_flow_that_is_gone_leaves_the_list(redis):
    flows = [chain(flow_jobs.add.s(1)).enqueue() for _ in range(4)]
    redis.delete(keys.flow(flows[0].id))
    broker.forget_some(redis)
    assert redis.zcard(keys.FLOWS) == 3 and redis.zscore(keys.FLOWS, flows[0].id) is None
    redis.delete(keys.FLOWS)
    redis.set(keys.FLOWS, "odd")
    broker.forget_some(redis)
    assert listing.newest() == listing.FlowsFound([], "")
    chain(flow_jobs.add.s(1)).enqueue()  # the list is no part of the flow
