"""The page of a flow, and what a job's page says of its flow."""

from __future__ import annotations

import json
import re
import sys

import flow_jobs as jobs
import pytest
from browser_client import counted_round_trips

import rqjobs
from rqjobs import chain, chord, config, group, s


@pytest.fixture(autouse=True)
def modules(settings):
    config.use(modules=("flow_jobs", "sample_jobs"))


def work():
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")


def test_the_page_of_a_flow_shows_cancels_and_retries_it(client, redis):
    flow = chord([s(jobs.fail_until, "go", 7), jobs.add.s(1)], jobs.total.s()).enqueue()
    work()
    page = client.get(f"/flows/{flow.id}").text
    assert "1 of 3 jobs done, 1 failed" in page and page.count('<span class="badge') == 4
    redis.set("go", 1)
    reply = client.post(f"/flows/{flow.id}/retry")
    assert (reply.status_code, reply.headers["Location"]) == (303, f"/flows/{flow.id}")
    assert "1 job of the flow is back in its queue" in client.get(f"/flows/{flow.id}").text
    work()
    redis.delete(f"rq:job:{flow.job_ids[0]}")  # as after its result_ttl
    page = client.get(f"/flows/{flow.id}").text
    assert "3 of 3 jobs done" in page and flow.job_ids[0] in page and "Cancel" not in page
    other = chain(jobs.add.s(1), s(jobs.double)).enqueue()
    client.post(f"/flows/{other.id}/cancel")
    assert other.status.value == "canceled"


def test_the_page_of_a_job_names_its_flow_and_the_jobs_around_it(client, redis):
    flow = chain(s(jobs.fail_until, "go", "next"), s(jobs.fail_until, "<x>")).enqueue()
    first, last = flow.job_ids
    work()
    page = client.get(f"/jobs/{last}").text
    link = f'<a href="/flows/{flow.id}">'
    assert f"{link}job 2 of 2</a>" in page and f"{link}the flow</a>" in page
    assert f'waits for <a href="/jobs/{first}">{first}</a>, which has failed: requeue' in page
    assert "the result of the job before it" in page and "&lt;x&gt;" in page
    page = client.get(f"/jobs/{first}").text
    assert f"{link}job 1 of 2</a>" in page and f'<a href="/jobs/{last}">' in page
    redis.set("go", 1)
    flow.retry()
    work()
    redis.set("next", 1)
    reply = client.post(f"/jobs/{last}/requeue")
    work()
    client.post(f"/jobs/{last}/again")
    assert reply.status_code == 303
    assert "enqueue its flow again" in client.get(f"/jobs/{last}").text


def test_the_page_of_a_flow_draws_branches_within_each_other(client, redis):
    branches = group([chain(jobs.add.s(1), s(jobs.double)), chain(jobs.add.s(2), s(jobs.double))])
    flow = chain(branches, s(jobs.total)).enqueue()
    page = client.get(f"/flows/{flow.id}").text
    assert "2 branches at the same time" in page and page.count('<ol class="flow-tree">') == 3
    places = [page.index(f'data-key="{job_id}"') for job_id in flow.job_ids]
    assert places == sorted(places)


def test_the_flow_on_the_page_of_a_job_is_live(client, redis):
    flow = chain(jobs.add.s(1), s(jobs.double)).enqueue()
    page = client.get(f"/jobs/{flow.job_ids[1]}").text
    (address,) = re.findall(r'data-live="(/live/flows/[^"]+)"', page)
    work()
    with counted_round_trips() as trips:
        card = client.get(address).text
    assert trips.number <= 2 and "2 of 2 jobs done" in card
    own = re.search(r'<li data-key="([^"]+)" class="own" aria-current', card)[1]
    assert own == flow.job_ids[1]
    assert "/live/flows/" not in client.get(f"/jobs/{flow.job_ids[1]}").text, "nothing changes now"
    for odd in (f"{flow.id}/99999", f"{flow.id}/{10**30}", "gone/0", f"{flow.id}/x"):
        assert client.get(f"/live/flows/{odd}").status_code == 404, odd


@pytest.mark.parametrize(
    "place",
    [
        b"",
        b"\xff",
        b"x",
        b"../a 0 1 1 one nothing stop",
        b"a 0 1 1 one all stop",
        b"a " + b"9" * 5000,
    ],
)
def test_an_odd_place_in_a_flow_harms_nothing(client, redis, place):
    flow = chain(jobs.add.s(1), s(jobs.double)).enqueue()
    for job_id in flow.job_ids:
        redis.hset(f"rq:job:{job_id}", "rqjobs_flow", place)
    assert client.get(f"/jobs/{flow.job_ids[1]}").status_code == 200
    assert client.get(f"/flows/{flow.id}").status_code == 200
    work()
    assert redis.llen("rq:queue:default") == 0


def test_unknown_flows_and_strangers(client, anonymous, redis):
    assert client.get("/flows/nope").status_code == 404
    assert client.get("/flows/a%20b").status_code == 404
    assert client.post("/flows/nope/cancel").status_code == 404
    flow = chain(jobs.add.s(1)).enqueue()
    assert client.post(f"/flows/{flow.id}/stop").status_code == 404
    assert anonymous.get(f"/flows/{flow.id}").status_code in (303, 401)
    assert anonymous.post(f"/flows/{flow.id}/cancel").status_code in (401, 403)
    assert flow.status.value == "running"


def test_the_commands_of_a_flow(spawn, redis):
    def run(*words):
        process = spawn(sys.executable, "-m", "rqjobs", "flows", *words)
        return process.wait(60), process.output()

    flow = chain(jobs.add.s(1), s(jobs.double)).enqueue()
    code, output = run("show", flow.id)
    assert code == 0 and "running: 0 of 2 jobs done, 0 failed" in output
    assert f"1  {flow.job_ids[0]}  queued" in output
    assert run("cancel", flow.id) == (0, "2 canceled\n")
    code, output = run("show", flow.id, "--json")
    assert json.loads(output)["status"] == "canceled"
    code, output = run("retry", "nope")
    assert code == 1 and "there is no flow 'nope'" in output


def test_the_command_lists_flows_with_their_calls(spawn, redis):
    flow = chain(jobs.add.s(1), s(jobs.double)).enqueue()
    chain(jobs.add.s(2)).enqueue()
    list_all = spawn(sys.executable, "-m", "rqjobs", "flows", "list", "--json", "--limit", "1")
    show = spawn(sys.executable, "-m", "rqjobs", "flows", "show", flow.id)
    assert list_all.wait(60) == show.wait(60) == 0
    found = json.loads(list_all.output())
    after = spawn(sys.executable, "-m", "rqjobs", "flows", "list", "--after", found["next"])
    assert after.wait(60) == 0
    assert found["flows"][0]["first"] == "flow_jobs.add(2)"
    assert f"{flow.id}  running" in after.output() and "flow_jobs.double()" in after.output()
    assert "flow_jobs.add(1)" in show.output()
