"""The values of RQJOBS_HIDE are on no page, in no list, log line and message."""

from __future__ import annotations

import secrets

import page_jobs
import pytest
from click.testing import CliRunner

import rqjobs
from rqjobs import config, flows, results
from rqjobs.cli import main
from rqjobs.jobs import Job

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def hide(settings):
    config.use(modules=("page_jobs",), hide=("password", "token"))


def pages_of(client, *addresses):
    for address in addresses:
        reply = client.get(address)
        assert reply.status_code == 200, address
        yield address, reply.text


def test_no_page_and_no_list_shows_a_hidden_value(client, redis):
    job = rqjobs.enqueue(page_jobs.log_in, "Ada", SECRET, {"Token": SECRET, "name": "shown"})
    typed = rqjobs.enqueue(page_jobs.connect, page_jobs.Account("Ada", SECRET))
    many = rqjobs.enqueue_many(
        [("page_jobs.log_in", "a", SECRET), ("page_jobs.log_in", "b", SECRET)]
    )
    rqjobs.schedules.add("s", rqjobs.every(hours=1), page_jobs.log_in, "Ada", SECRET)
    flow = flows.chain(
        flows.s(page_jobs.log_in, "Ada", SECRET), flows.s(page_jobs.log_in_with, SECRET)
    )
    flow = flow.enqueue()
    jobs = [job.id, typed.id, *(one.id for one in many), *flow.job_ids]
    paths = ["/", "/jobs", "/schedules", "/schedules/s", f"/flows/{flow.id}"]
    paths += [f"/jobs/{job_id}" for job_id in jobs]
    paths += [f"/rq/0/data/job/{job_id}.json" for job_id in jobs]
    for address, text in pages_of(client, *paths):
        assert SECRET not in text, address
    (text,) = (text for _, text in pages_of(client, f"/jobs/{job.id}"))
    assert "hidden" in text and "shown" in text
    for command in (["schedules", "show", "s"], ["schedules"]):
        assert SECRET not in CliRunner().invoke(main, command).output
    assert job.description == "page_jobs.log_in('Ada', hidden, {'Token': hidden, 'name': 'shown'})"
    assert flow.jobs[1].description == "page_jobs.log_in_with(hidden)"


def test_a_description_of_plain_rq_is_masked(client, redis):
    job = rqjobs.enqueue(page_jobs.log_in, "Ada", SECRET)
    redis.hset(job.key, "description", f"page_jobs.log_in('Ada', password='{SECRET}')")
    assert Job.fetch(job.id, redis).description == "page_jobs.log_in('Ada', password=hidden)"
    assert SECRET not in client.get("/").text


def test_a_worker_masks_its_lines_the_log_and_the_failure(client, worker, eventually, redis):
    env = {"RQJOBS_MODULES": "page_jobs", "RQJOBS_HIDE": "password,token"}
    process = worker(env=env)
    done = rqjobs.enqueue(page_jobs.log_in, "Ada", SECRET)
    failed = rqjobs.enqueue(page_jobs.log_in, "nobody", SECRET)
    eventually(lambda: failed.get_status() == "failed")
    eventually(lambda: redis.zcard("rqjobs:failure-groups"))
    assert done.return_value()["X-Token"] == SECRET  # the program gets it
    paths = [
        f"/jobs/{done.id}",
        f"/jobs/{failed.id}",
        "/failed",
        f"/rq/0/data/job/{failed.id}.json",
    ]
    for address, text in pages_of(client, *paths):
        assert SECRET not in text, address
    assert "hidden is wrong" in client.get(f"/jobs/{failed.id}").text.replace("&#39;", "")
    for command in (["failed", "show", failed.id], ["jobs", "show", done.id]):
        assert SECRET not in CliRunner().invoke(main, command).output
    job_lines = [line for line in process.output().splitlines() if "page_jobs.log_in(" in line]
    assert job_lines and not any(SECRET in line for line in job_lines)


def test_the_forms_never_show_a_hidden_value(client):
    rqjobs.schedules.add("s", rqjobs.every(hours=1), page_jobs.log_in, "Ada", SECRET)
    text = client.get("/schedules/s").text
    assert SECRET not in text and "keep" in text
    form = client.get("/enqueue?function=page_jobs.log_in").text
    assert 'type="password"' in form
    reply = client.post(
        "/jobs", data={"function": "page_jobs.log_in", "arg.user": "", "arg.password": SECRET}
    )
    assert reply.status_code == 422 and SECRET not in reply.text


def test_the_api_hides_arguments_and_meta(client):
    token = secrets.token_urlsafe(32)
    config.use(api_tokens=config.SETTINGS["RQJOBS_API_TOKEN"][1](token))
    queue = rqjobs.queue("default")
    job = queue.enqueue(page_jobs.log_in, "Ada", SECRET, meta={"token": SECRET})
    reply = client.get(f"/api/jobs/{job.id}", headers={"Authorization": f"Bearer {token}"})
    assert reply.status_code == 200 and SECRET not in reply.text
    assert reply.json["args"] == ["Ada", "hidden"] and reply.json["meta"] == {"token": "hidden"}


def test_no_way_to_tell_a_secret_shows_it(client, worker, eventually, redis):
    """The exception as data, a note of progress, a key of a policy, and lines showed them."""
    tokens = {role: secrets.token_urlsafe(32) for role in ("read", "operate")}
    given = ",".join(f"{role}:{role}:{token}" for role, token in tokens.items())
    config.use(api_tokens=config.SETTINGS["RQJOBS_API_TOKEN"][1](given))
    names = {"RQJOBS_MODULES": "page_jobs", "RQJOBS_HIDE": "password,token"}
    worker(env={**names, "RQJOBS_JOB_LOG_PRINTS": "on"})
    password = f"{SECRET}-first\n{SECRET}-second"
    job = rqjobs.enqueue(page_jobs.renew, "Ada", password, 987654)
    eventually(lambda: redis.hget(job.key, "status") == b"failed")
    with pytest.raises(KeyError) as caught:
        results.wait(job, timeout=10)
    assert caught.value.args == ("hidden", "hidden")
    texts = [text for _, text in pages_of(client, f"/jobs/{job.id}", "/jobs", "/queues/default")]
    for token in tokens.values():
        for path in ("", "/result", "/log"):
            headers = {"Authorization": f"Bearer {token}"}
            texts.append(client.get(f"/api/jobs/{job.id}{path}", headers=headers).text)
    for command in (["show", job.id], ["logs", job.id], ["jobs", "--json"]):
        texts.append(CliRunner().invoke(main, command).output)
    for key in redis.scan_iter("*"):
        kept = {"string": redis.get, "hash": redis.hgetall, "stream": redis.xrange}
        found = kept.get(redis.type(key).decode(), lambda key: key)(key)
        if isinstance(found, dict):
            found.pop(b"data", None)
        texts.append(f"{key}{found}")
    for text in texts:
        assert SECRET not in text and "987654" not in text, text
    assert all("hidden" in text for text in texts[3:9]), texts[3:9]


def test_keys_of_hidden_values_differ():
    for password in ("one", "two", "one"):
        rqjobs.enqueue(page_jobs.renew, "Ada", password)
    assert rqjobs.queue("default").count + len(rqjobs.queue("default").deferred_job_registry) == 2


def test_an_error_about_a_hidden_value_does_not_show_it(client):
    token = secrets.token_urlsafe(32)
    config.use(api_tokens=config.SETTINGS["RQJOBS_API_TOKEN"][1](token))
    data = {"function": "page_jobs.renew", "arg.user": "a", "arg.password": "b"}
    page = client.post("/jobs", data={**data, "arg.pin_token": SECRET}).text
    assert SECRET not in page and "The value is not a whole number" in page
    for call in (
        {"args": ["a", "b", SECRET]},
        {"args": ["a", "b"], "kwargs": {"pin_token": SECRET}},
    ):
        reply = client.post(
            "/api/jobs",
            json={"function": "page_jobs.renew", **call},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert reply.status_code == 422 and SECRET not in reply.text
        assert "the hidden value does not fit" in reply.json["detail"]
    reply = client.post(
        "/api/jobs",
        json={"function": "page_jobs.renew", "args": [1, "b"]},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert "1 is not a text" in reply.json["detail"]
