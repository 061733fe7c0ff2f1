"""rq-dashboard at /rq/: the defects of upstream, each with the proof of its repair."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import sys
import zlib
from base64 import b64encode
from importlib.metadata import requires
from urllib.parse import quote

import pytest
import rq_dashboard
import sample_jobs
from flask import Flask
from rq import Retry
from rq.job import JobStatus
from rq.registry import FailedJobRegistry
from rq.results import Result

import rqjobs
import rqjobs.web
from rqjobs import config, serializers
from rqjobs.jobs import Job
from rqjobs.web import rq_dashboard as dashboard

HOSTILE = """<img src=x onerror="window.pwned=1">'"></script><script>window.pwned=1</script>`${window.pwned=1}`\\"""


class Payload:
    """A pickle that creates a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def app(redis):
    application = Flask("host", static_folder=None)
    dashboard.mount(application, "")
    return application


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def get(client):
    def get(path, status=200):
        response = client.get(f"/rq/{path}")
        assert response.status_code == status, (path, response.status_code, response.text[:500])
        return response.json if response.is_json else response.text

    return get


@pytest.fixture
def post(client):
    def post(path, status=200):
        response = client.post(f"/rq/{path}")
        assert response.status_code == status, (path, response.status_code, response.text[:500])
        return response.json

    return post


def failed(value="x", **options):
    """A failed job."""
    job = rqjobs.enqueue(sample_jobs.say, value, **options)
    queue = rqjobs.queue(job.origin)
    queue.remove(job)
    job.set_status(JobStatus.FAILED)
    FailedJobRegistry(queue=queue).add(job, 600)
    Result.create_failure(job, 600, f"Traceback of {value}")
    return job


def places(redis, job_id):
    """Every key that contains the id of the job, except its own record."""
    found = []
    for name in redis.keys("rq:*"):
        kind = redis.type(name)
        members = {
            b"list": lambda n: redis.lrange(n, 0, -1),
            b"zset": lambda n: redis.zrange(n, 0, -1),
            b"set": redis.smembers,
        }.get(kind, lambda n: [])(name)
        found += [name.decode() for member in members if member.split(b":")[0] == job_id.encode()]
        if job_id in name.decode() and name.decode() != f"rq:job:{job_id}":
            found.append(name.decode())
    return sorted(found)


def job_page(registry, queue="default", per_page=8, order="asc", page=1):
    return f"0/data/jobs/{queue}/{registry}/{per_page}/{order}/{page}.json"


# Mounting


def test_every_address_of_upstream_is_served(app):
    """All addresses of upstream's instance 0, except GET requests that change data."""
    stock = Flask("stock")
    stock.register_blueprint(rq_dashboard.blueprint, url_prefix="/rq")
    values = {
        "instance_number": 0,
        "queue_name": "q",
        "registry_name": "queued",
        "per_page": 8,
        "order": "asc",
        "page": 1,
        "job_id": "j",
        "filename": "favicon.ico",
    }
    ours = app.url_map.bind("x")
    for rule in stock.url_map.iter_rules():
        if rule.endpoint.startswith("rq_dashboard."):
            _, path = rule.build({name: values[name] for name in rule.arguments})
            for method in (
                rule.methods - {"HEAD", "OPTIONS"} - ({"GET"} if "requeue" in path else set())
            ):
                assert ours.match(path, method)[0] == rule.endpoint


def test_mounts_on_several_apps_and_under_a_prefix(redis):
    for prefix, path in (
        ("", "/rq/"),
        ("/", "/rq/"),
        ("/jobs", "/jobs/rq/"),
        ("/jobs/", "/jobs/rq/"),
    ):
        app = Flask("host")
        dashboard.mount(app, prefix)
        page = app.test_client().get(path)
        assert page.status_code == 200 and f'href="{path}0/view/workers"' in page.text


def test_mounting_needs_no_redis_and_pages_report_its_absence(tmp_path):
    config.use(config.Config(redis_url=f"unix://{tmp_path}/none.sock", modules=("sample_jobs",)))
    app = Flask("host")
    dashboard.mount(app, "")
    client = app.test_client()
    for path in (
        "",
        "0/view/workers",
        "0/view/jobs",
        "0/view/job/x",
        "0/data/queues.json",
        "0/data/job/x.json",
        "0/data/workers.json",
        job_page("queued"),
    ):
        response = client.get(f"/rq/{path}")
        assert response.status_code == 503 and "Redis does not answer" in response.text, path
    assert client.post("/rq/job/x/requeue").status_code == 503
    with client.get("/rq/static/css/main.css") as response:
        assert response.status_code == 200


def test_a_second_dashboard_on_an_app_is_refused(app):
    with pytest.raises(config.ConfigError, match="do not register it yourself"):
        dashboard.mount(app, "/other")


def test_undeclared_dependencies_of_upstream_are_installed():
    assert any(re.match(r"six\b", requirement) for requirement in requires("rqjobs"))


def test_pages_need_a_login(redis):
    config.use(dataclasses.replace(config.current(), admin_password="correct horse"))
    client = rqjobs.web.create_app().test_client()
    job = failed()
    before = {name: redis.dump(name) for name in redis.keys("rq:*")}
    for method in ("GET", "POST"):
        for path in every_page(client.application, job.id, "default", method):
            with client.open(path, method=method) as response:
                assert response.status_code in (401, 403), (path, response.status_code)
    assert {name: redis.dump(name) for name in redis.keys("rq:*")} == before


def test_mounting_installs_our_serializer(app):
    assert rq_dashboard.web.config.serializer is serializers.ConfiguredSerializer


def test_no_password_is_shown(client, server, monkeypatch):
    monkeypatch.setattr(
        dashboard.connection, "url", lambda: "redis://me:secret@host/0?password=other"
    )
    monkeypatch.setattr(
        dashboard.connection, "client", lambda: dashboard.connection.client_for(server)
    )
    page = client.get("/rq/").text
    assert "host/0" in page and "secret" not in page and "other" not in page


# Views


def test_json_payloads_results_and_meta_are_shown(get, worker, redis, eventually):
    job = rqjobs.enqueue(
        sample_jobs.ok, {"name": "Ada", "color": sample_jobs.Color.RED}, meta={"tag": "m1"}
    )
    worker()
    eventually(lambda: job.get_status() == JobStatus.FINISHED)
    shown = get(f"0/data/job/{job.id}.json")
    assert shown["status"] == "finished" and shown["origin"] == "default"
    assert "Ada" in shown["description"] and "Color.RED" in shown["description"]
    assert shown["result"] == {"name": "Ada", "color": repr(sample_jobs.Color.RED)}
    assert json.loads(shown["metadata"]) == {"tag": "m1"}
    [row] = get(job_page("finished"))["jobs"]
    assert row["id"] == job.id and "Ada" in row["description"]


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        sample_jobs.Color.RED,
        sample_jobs.Point(1),
        b"\xff\x00",
        float("nan"),
        {(1, 2): "x"},
        10**30,
        [{"deep": {sample_jobs.Color.BLUE}}],
        "é\ud800",
    ],
)
def test_values_that_json_lacks_are_shown_as_repr(get, redis, value):
    """Upstream answers 500 for a set; a NaN would stop the page."""
    job = rqjobs.enqueue(sample_jobs.ok)
    Result.create(job, Result.Type.SUCCESSFUL, 600, return_value=value)
    job.meta["value"] = value
    job.save_meta()
    shown = get(f"0/data/job/{job.id}.json")
    assert shown["result"] is not None
    for part in re.findall(r"\w+", repr(value)):
        assert part in json.dumps(shown["result"], ensure_ascii=False) + repr(shown["result"])
        assert part in shown["metadata"] or "\\" in repr(value)


def test_the_call_is_shown_after_a_custom_description(get, redis):
    job = rqjobs.enqueue(sample_jobs.say, "x" * 300)
    named = rqjobs.enqueue(sample_jobs.say, "y" * 300, description="greets")
    assert "x" * 300 in get(f"0/data/job/{job.id}.json")["description"]
    shown = get(f"0/data/job/{named.id}.json")["description"]
    assert shown.startswith("greets: sample_jobs.say(") and "y" * 300 in shown
    assert [row["description"] for row in get(job_page("queued"))["jobs"]][1] == "greets"


def test_workers_are_shown_while_a_job_runs(get, worker, redis, eventually):
    """Upstream answers 500, because it unpickles the data of the running job."""
    process = worker()
    job = rqjobs.enqueue(sample_jobs.hang, "gate")
    eventually(lambda: redis.exists("gate:reached") and redis.hget(process.key, "state") == b"busy")
    [shown] = get("0/data/workers.json")["workers"]
    assert (
        shown["name"] == process.name
        and shown["state"] == "busy"
        and shown["queues"] == ["high", "default", "low"]
    )
    assert (
        shown["current_job"]["job_id"] == job.id
        and shown["current_job"]["call_string"] == "sample_jobs.hang('gate')"
    )
    assert shown["version"] and shown["python_version"].startswith(sys.version.split()[0])
    assert get(job_page("started"))["jobs"][0]["id"] == job.id
    assert redis.zscore("rq:wip:default", redis.zrange("rq:wip:default", 0, 0)[0]) == float("inf")
    redis.rpush("gate:open", 1)
    eventually(lambda: get("0/data/workers.json")["workers"][0]["current_job"] == "idle")


def test_dependencies_are_shown(get, redis):
    """Upstream answers 500, because RQ decodes the ids itself now."""
    parent = rqjobs.enqueue(sample_jobs.ok)
    child = rqjobs.enqueue(sample_jobs.ok, depends_on=[parent])
    shown = get(f"0/data/job/{child.id}.json")
    assert (shown["depends_on"], shown["depends_on_status"]) == ([parent.id], ["active"])
    redis.delete(parent.key)
    assert get(f"0/data/job/{child.id}.json")["depends_on_status"] == ["expired"]
    assert get(job_page("deferred"))["jobs"][0]["id"] == child.id


def test_queues_are_listed_and_jobs_are_paged(get, redis):
    jobs = [rqjobs.enqueue(sample_jobs.ok, number) for number in range(20)]
    dead = [failed(str(number)) for number in range(3)]
    rqjobs.enqueue_in(60, sample_jobs.ok)
    [row] = [row for row in get("0/data/queues.json")["queues"] if row["name"] == "default"]
    assert (
        row["count"],
        row["failed_job_registry_count"],
        row["scheduled_job_registry_count"],
    ) == (20, 3, 1)
    assert row["failed_url"] == "/rq/0/view/jobs/default/failed/8/asc/1"

    def ids(*where):
        return [job["id"] for job in get(job_page(*where))["jobs"]]

    expected = [job.id for job in jobs]
    assert ids("queued", "default", 8, "asc", 1) == expected[:8]
    assert ids("queued", "default", 8, "asc", 3) == expected[16:]
    assert ids("queued", "default", 8, "dsc", 1) == expected[::-1][:8]
    assert ids("queued", "default", 8, "dsc", 3) == expected[::-1][16:]
    assert ids("queued", "default", 8, "asc", 4) == []
    assert ids("failed", "default", 2, "asc", 1) + ids("failed", "default", 2, "asc", 2) == sorted(
        (job.id for job in dead),
        key=lambda job_id: (redis.zscore("rq:failed:default", job_id), job_id),
    )
    pagination = get(job_page("queued", page=2))["pagination"]
    assert (pagination["current_page"], pagination["num_pages"]) == (2, 3)
    assert [page["number"] for page in pagination["pages_in_window"]] == [1, 2, 3]
    assert pagination["next_page"]["url"].endswith("/8/asc/3") and pagination["prev_page"][
        "url"
    ].endswith("/8/asc/1")
    empty = get(job_page("finished"))["pagination"]
    assert (
        empty["num_pages"] == 0
        and "next_page" not in empty
        and empty["last_page"]["url"].endswith("/1")
    )


def test_reading_changes_nothing(app, get, redis):
    """Upstream's lists and worker pages remove missing entries; RQ's clean-up fails jobs."""
    failed()
    rqjobs.enqueue(sample_jobs.ok)
    redis.rpush("rq:queue:default", "gone")
    redis.zadd("rq:wip:default", {"orphan:execution": 1})
    redis.sadd("rq:workers", "rq:worker:gone")
    before = {name: redis.dump(name) for name in redis.keys("*")}
    for path in every_page(app, "gone", "default"):
        app.test_client().get(path).close()
    assert {name: redis.dump(name) for name in redis.keys("*")} == before


def every_page(app, job_id, queue, method="GET"):
    values = {"job_id": job_id, "queue_name": queue, "per_page": 8, "order": "asc", "page": 1}
    for rule in app.url_map.iter_rules():
        ours = rule.endpoint.startswith("rq_dashboard.") and "filename" not in rule.arguments
        if ours and method in rule.methods:
            for registry in (
                dashboard.UPSTREAM_PLACES if "registry_name" in rule.arguments else [None]
            ):
                yield rule.build(
                    {name: {**values, "registry_name": registry}[name] for name in rule.arguments}
                )[1]


@pytest.mark.parametrize(
    "path",
    [
        "0/view/job/gone",
        "0/data/job/gone.json",
        "1/view/queues",
        "1/data/queues.json",
        "7/",
        "99999999999/view/jobs",
        "0/data/jobs/default/queued/8/asc/0.json",
        "0/data/jobs/default/queued/0/asc/1.json",
        "0/data/jobs/default/queued/-1/asc/1.json",
        "0/data/jobs/default/queued/x/asc/1.json",
        "0/data/jobs/default/queued/8/asc/x.json",
        "0/data/jobs/default/nonsense/8/asc/1.json",
        "0/data/jobs/default/queued/8/sideways/1.json",
        f"0/data/jobs/default/queued/8/asc/{10**30}.json",
        f"0/data/jobs/default/queued/{10**6}/asc/1.json",
        "0/view/jobs/default/nonsense/8/asc/1",
        "0/view/jobs/default/queued/0/asc/1",
        "0/view/jobs/default/queued/8/asc/0",
        "nonsense",
    ],
)
def test_missing_jobs_and_registries_are_a_404(get, path):
    get(path, 404)


@pytest.mark.parametrize(
    "name", ["my queue", "a/b", "é☃", "a:b", "100%", "a?b#c", "..", "+", HOSTILE.replace("/", "|")]
)
def test_queues_with_odd_names_are_shown(app, get, post, redis, name):
    redis.sadd("rq:queues", f"rq:queue:{name}")
    redis.rpush(f"rq:queue:{name}", "gone")
    [row] = [row for row in get("0/data/queues.json")["queues"] if row["name"] == name]
    assert row["count"] == 1
    with app.test_request_context("/rq/"):
        url = dashboard.url_for(
            "rq_dashboard.list_jobs",
            queue_name=name,
            registry_name="queued",
            per_page=8,
            order="asc",
            page=1,
        )
        compact = dashboard.url_for("rq_dashboard.compact_queue", queue_name=name)
    get(row["queued_url"].removeprefix("/rq/"))
    assert get(url.removeprefix("/rq/"))["name"] == name
    post(compact.removeprefix("/rq/"))
    assert not redis.exists(f"rq:queue:{name}")


@pytest.mark.parametrize(
    "damage",
    [
        {"created_at": "yesterday"},
        {"status": "odd"},
        {"timeout": "x"},
        {"description": b"\xff"},
        {"dependency_ids": "{"},
        {"data": b"\xff"},
        {"data": zlib.compress(pickle.dumps(("os.getcwd", None, (), {})))},
        {"meta": b"\x80\x04"},
        {"data": zlib.compress(b"[1]")},
        {"dependency_ids": "[1, null]"},
        {"result_ttl": "many"},
    ],
)
def test_a_damaged_job_is_shown_as_far_as_possible(get, post, redis, damage):
    job, sound = failed(), rqjobs.enqueue(sample_jobs.ok)
    redis.hset(job.key, mapping=damage)
    redis.sadd("rq:workers", "rq:worker:w")
    redis.hset("rq:worker:w", mapping={"state": "busy", "current_job": job.id, "queues": "default"})
    assert get(f"0/data/job/{job.id}.json")["id"] == job.id
    get(f"0/view/job/{job.id}")
    assert [row["id"] for row in get(job_page("failed"))["jobs"]] == [job.id]
    assert get("0/data/workers.json")["workers"][0]["current_job"]["job_id"] == job.id
    assert [row["id"] for row in get(job_page("queued"))["jobs"]] == [sound.id]
    post(f"job/{job.id}/delete")
    assert places(redis, job.id) == []


def test_ids_without_a_job_are_left_out(get, redis):
    redis.rpush("rq:queue:default", "gone", b"\xff")
    assert get(job_page("queued"))["jobs"] == []


# Safety


def test_nothing_is_ever_unpickled(app, redis, tmp_path):
    """RQ and upstream unpickle data, meta and result wherever they fetch a job."""
    canary = tmp_path / "canary"
    evil = pickle.dumps(Payload(canary))
    result = {"type": 1, "worker_name": "", "return_value": b64encode(evil).decode()}
    seen = 0
    for method in ("GET", "POST"):
        for path in list(every_page(app, "evil", "default", method)):
            redis.flushall()
            redis.hset(
                "rq:job:evil",
                mapping={
                    "data": zlib.compress(evil),
                    "meta": evil,
                    "result": evil,
                    "origin": "default",
                    "status": "failed",
                    "created_at": "2024-01-01T00:00:00Z",
                    "description": "evil",
                    "exc_info": zlib.compress(b"t"),
                    "success_callback_name": "os.getcwd",
                    "failure_callback_name": "os.getcwd",
                },
            )
            redis.xadd("rq:results:evil", result)
            redis.rpush("rq:queue:default", "evil")
            for registry in ("failed", "finished", "scheduled", "deferred", "canceled"):
                redis.zadd(f"rq:{registry}:default", {"evil": 1})
            redis.zadd("rq:wip:default", {"evil:execution": 1})
            redis.sadd("rq:queues", "rq:queue:default")
            redis.sadd("rq:workers", "rq:worker:w")
            redis.hset(
                "rq:worker:w", mapping={"state": "busy", "current_job": "evil", "queues": "default"}
            )
            with app.test_client().open(path, method=method) as response:
                status = response.status_code
            assert status == 200 or (method == "POST" and status == 409), (method, path, status)
            seen += 1
    assert seen > 30 and not canary.exists()
    pickle.loads(evil)
    assert canary.exists(), "the payload itself works"


def test_every_value_is_escaped_in_the_browser(app, get, redis):
    """Stored XSS upstream: `<%= d.description %>`, and three more."""
    job = rqjobs.enqueue(sample_jobs.ok)
    for path in ("", "0/view/jobs", f"0/view/job/{job.id}", "0/view/workers"):
        page = get(path)
        assert "<%=" not in page and ".text(d." not in page
        assert page.count("<%-") > 2 and "ajaxError" in page


@pytest.mark.parametrize(
    "name", ["');window.pwned=1;('", "x</script><script>window.pwned=1</script>", "\\", HOSTILE]
)
def test_a_queue_name_in_the_address_is_escaped(get, name):
    """Reflected XSS upstream: the name is put between quotes in a script, unescaped."""
    page = get(f"0/view/jobs/{quote(name, safe='')}/queued/8/asc/1")
    assert page.count("<script") == get("0/view/jobs").count("<script")
    [literal] = re.findall(r'\$\(this\)\.val\((".+")\);', page)
    assert json.loads(literal) == name


def test_pages_allow_only_their_own_script(client):
    policies = [client.get("/rq/").headers["Content-Security-Policy"] for _ in range(2)]
    nonces = [re.search(r"'nonce-([^']{20,})'", policy)[1] for policy in policies]
    assert nonces[0] != nonces[1] and "script-src 'self' 'nonce-" in policies[0]
    page = client.get("/rq/")
    nonce = re.search(r"'nonce-([^']+)'", page.headers["Content-Security-Policy"])[1]
    assert re.findall(r"<script(?! src| name)[^>]*>", page.text) == [f'<script nonce="{nonce}">']
    assert not re.search(r"\son\w+=", page.text)
    assert page.headers["Cache-Control"] == "no-store"


def test_templates_of_the_host_are_not_used(redis, tmp_path):
    """Flask searches templates in the blueprints that were registered first."""
    app = Flask("host", template_folder=str(tmp_path))
    (tmp_path / "rq_dashboard").mkdir()
    (tmp_path / "rq_dashboard" / "job.html").write_text("{{ id|safe }} of the host")
    app.register_blueprint(rq_dashboard.blueprint, url_prefix="/stock", name="stock")
    dashboard.mount(app, "")
    job = rqjobs.enqueue(sample_jobs.ok)
    page = app.test_client().get(f"/rq/0/view/job/{job.id}").text
    assert "of the host" not in page and "<%- d.description %>" in page


def test_polling_opens_no_connection(get, redis):
    """Upstream opens one for each request that has an instance number."""
    rqjobs.enqueue(sample_jobs.ok)
    polls = ("0/data/queues.json", "0/data/workers.json", job_page("queued"), "0/view/jobs")
    for path in polls:
        get(path)
    before = redis.info()["total_connections_received"]
    for _ in range(20):
        for path in polls:
            get(path)
    assert redis.info()["total_connections_received"] == before


# Actions


def test_requeue_keeps_meta_and_retries(post, redis, worker, eventually):
    """Upstream rewrites the job with a pickled `meta`, in three steps."""
    job = failed("x", meta={"user": "Ada"}, retry=Retry(max=2, interval=[5, 10]))
    before = redis.hgetall(job.key)
    assert post(f"job/{job.id}/requeue") == {"status": "OK"}
    after = redis.hgetall(job.key)
    for field in (
        b"meta",
        b"data",
        b"retry_intervals",
        b"retries_left",
        b"created_at",
        b"description",
    ):
        assert after[field] == before[field]
    assert places(redis, job.id) == ["rq:queue:default", f"rq:results:{job.id}"]
    worker()
    eventually(lambda: job.get_status() == JobStatus.FINISHED)
    assert Job.fetch(job.id, redis).meta == {"user": "Ada"}


def test_only_failed_jobs_are_requeued(post, redis):
    job = rqjobs.enqueue(sample_jobs.ok)
    refusal = post(f"job/{job.id}/requeue", 409)
    assert refusal["status"] == "ERROR" and "not among the failed jobs" in refusal["message"]
    assert redis.lrange("rq:queue:default", 0, -1) == [job.id.encode()]
    assert post("job/gone/requeue", 404)["status"] == "ERROR"


def test_requeue_all(post, redis):
    jobs = [failed(str(number)) for number in range(5)]
    redis.zadd("rq:failed:default", {"gone": 1})
    redis.delete(jobs[2].key)
    assert post("requeue/default") == {"status": "OK", "count": 4}
    assert set(redis.lrange("rq:queue:default", 0, -1)) == {
        job.id.encode() for job in jobs if job is not jobs[2]
    }
    assert post("requeue/none") == {"status": "OK", "count": 0}


@pytest.mark.parametrize(
    "path",
    [
        "requeue/default",
        "job/x/requeue",
        "job/x/delete",
        "queue/default/compact",
        "queue/default/queued/empty",
    ],
)
def test_a_get_changes_nothing(client, redis, path):
    """Upstream requeues all on GET: an image tag on any page would do it."""
    failed()
    before = {name: redis.dump(name) for name in redis.keys("*")}
    for method in ("GET", "HEAD", "PUT"):
        assert client.open(f"/rq/{path}", method=method).status_code == 405
    assert {name: redis.dump(name) for name in redis.keys("*")} == before


def test_delete_removes_every_key(post, redis):
    job = failed()
    assert post(f"job/{job.id}/delete") == {"status": "OK"}
    assert not redis.exists(job.key) and places(redis, job.id) == []
    assert post(f"job/{job.id}/delete", 404)["status"] == "ERROR"


def test_delete_removes_a_job_from_every_place(post, redis):
    """RQ's delete looks at the status only: the id of a repeating job stays in the scheduled set."""
    job = rqjobs.enqueue_in(60, sample_jobs.ok)
    job.set_status(JobStatus.FINISHED)
    redis.zadd("rq:finished:default", {job.id: 1})
    post(f"job/{job.id}/delete")
    assert places(redis, job.id) == [] and not redis.exists(job.key)


def test_a_running_job_is_not_deleted(get, post, worker, redis, eventually):
    """RQ deletes a running job. Its worker then writes a record without data."""
    worker()
    job = rqjobs.enqueue(sample_jobs.hang, "gate")
    eventually(lambda: redis.exists("gate:reached"))
    assert "running" in post(f"job/{job.id}/delete", 409)["message"]
    assert "Stop them" in post("queue/default/started/empty", 409)["message"]
    for registry in ("queued", "failed", "finished", "deferred", "scheduled", "canceled"):
        assert post(f"queue/default/{registry}/empty") == {"status": "OK", "count": 0}
    page = get("0/view/jobs/default/started/8/asc/1")
    assert 'id="empty-btn"' not in page and 'delete-job-btn" class' not in page
    redis.rpush("gate:open", 1)
    eventually(lambda: job.get_status() == JobStatus.FINISHED)


def test_a_popped_job_is_not_deleted(post, redis):
    job = rqjobs.enqueue(sample_jobs.ok)
    redis.lmove("rq:queue:default", "rq:queue:default:intermediate", "LEFT", "RIGHT")
    post(f"job/{job.id}/delete", 409)
    assert redis.exists(job.key)


def test_empty_a_queue_or_registry(post, redis):
    jobs = [rqjobs.enqueue(sample_jobs.ok, number) for number in range(5)]
    other = rqjobs.queue("low").enqueue(sample_jobs.ok)
    redis.rpush("rq:queue:default", other.id, "gone")  # these are not jobs of this queue
    later, dead = rqjobs.enqueue_in(60, sample_jobs.ok), failed()
    assert post("queue/default/queued/empty") == {"status": "OK", "count": 5}
    assert not redis.exists("rq:queue:default", *(job.key for job in jobs))
    assert redis.exists(other.key, later.key, dead.key) == 3
    assert post("queue/default/scheduled/empty")["count"] == 1
    assert post("queue/default/failed/empty")["count"] == 1
    assert redis.exists(other.key, later.key, dead.key) == 1
    post("queue/default/nonsense/empty", 404)


def test_compact_keeps_the_order(post, redis):
    """Upstream pops and pushes ids one by one: a crash loses one, and the order changes."""
    jobs = [rqjobs.enqueue(sample_jobs.ok, number) for number in range(6)]
    redis.delete(jobs[1].key, jobs[4].key)
    assert post("queue/default/compact") == {"status": "OK"}
    assert redis.lrange("rq:queue:default", 0, -1) == [jobs[i].id.encode() for i in (0, 2, 3, 5)]
    assert not redis.exists("rq:queue:_compact")
