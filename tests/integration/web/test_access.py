"""Roles: every route with every method and every role, and an application's own login."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sample_jobs
from browser_client import OURS, PASSWORD, Client, every_call
from flask import Flask, abort, redirect, request

import rqjobs
from rqjobs import config, schedules
from rqjobs.web import Access, Role, access, init_app

# The routes that need another role than READ for reading requests and OPERATE for others.
EXCEPTIONS = {
    ("rqjobs.enqueue_form", "GET"): Role.OPERATE,
    ("rqjobs.enqueue_form", "HEAD"): Role.OPERATE,
    ("rqjobs.logout", "POST"): Role.READ,
    ("rqjobs.settings_page", "GET"): Role.ADMIN,
    ("rqjobs.settings_page", "HEAD"): Role.ADMIN,
    ("rqjobs.add_schedule", "POST"): Role.ADMIN,
    ("rqjobs.edit_schedule", "POST"): Role.ADMIN,
    ("rqjobs.delete_group", "POST"): Role.ADMIN,
    ("rqjobs.empty_queue", "POST"): Role.ADMIN,
}
ACTIONS = {  # the values of <action> in an address that need ADMIN, and one that does not
    "rqjobs.act": ("delete", "cancel"),
    "rqjobs.act_on_schedule": ("remove", "run"),
    "rqjobs.act_on_worker": ("stop", "quiet"),
}
GATES = ("rqjobs.healthz",)
NAMES = {Role.READ: "read", Role.OPERATE: "operate", Role.ADMIN: "admin"}


def host(authorize, prefix="/ops", **settings):
    app = Flask("host")
    app.testing = True
    app.test_client_class = Client
    app.config.update(settings)
    init_app(app, url_prefix=prefix, authorize=authorize)
    return app


def by_header(request):
    """The login of an application, for tests: the role is in a header."""
    return request.headers.get("X-Role")


def calls(app):
    """Each request that the app answers, with the role that it needs."""
    for endpoint, method, address in every_call(app):
        needed = Role.READ if method in access.SAFE_METHODS else Role.OPERATE
        if endpoint.startswith("rq_dashboard.") and method == "POST":
            needed = Role.ADMIN
        needed = EXCEPTIONS.get((endpoint, method), needed)
        if endpoint not in ACTIONS or method != "POST":
            yield endpoint, method, address, needed
            continue
        for action, role in zip(ACTIONS[endpoint], (Role.ADMIN, Role.OPERATE), strict=True):
            yield endpoint, method, address.removesuffix("/x") + f"/{action}", role


def test_every_route_with_every_method_and_role(settings, redis):
    app = host(by_header)
    client = app.test_client()
    walked = set()
    for endpoint, method, address, needed in calls(app):
        if not address.startswith("/ops") or endpoint in GATES or address.endswith(".css"):
            continue
        if endpoint.startswith("rqjobs_api."):  # its tokens have roles: test_api.py
            continue
        walked.add(endpoint)
        for role in Role:
            headers = {**OURS, "X-Role": role.name.lower()}
            reply = client.open(address, method=method, headers=headers)
            is_refused = reply.status_code == 403 and ">Refused<" not in reply.text
            assert is_refused == (role < needed), (endpoint, method, address, role, reply.status)
            if role == Role.NONE and method != "HEAD":
                assert "No access" in reply.text and "<nav" not in reply.text
    assert {"rqjobs.home", "rqjobs.act", "rqjobs.static", "rq_dashboard.delete_job_view"} <= walked


def test_a_role_sees_only_the_buttons_that_it_may_use(settings, redis):
    client = host(by_header).test_client()
    job = rqjobs.enqueue(sample_jobs.say, "hello")
    ended = rqjobs.enqueue(sample_jobs.ok)
    ended.cancel()
    schedules.add("nightly", rqjobs.every(minutes=5), sample_jobs.ok)
    seen = {
        role: "".join(
            client.get(f"/ops{path}", headers={"X-Role": name}).text
            for path in ("/", f"/jobs/{job.id}", f"/jobs/{ended.id}", "/schedules/nightly")
        )
        for role, name in NAMES.items()
    }
    assert 'method="post"' not in seen[Role.READ]
    assert "Cancel" in seen[Role.OPERATE] and "Enqueue" in seen[Role.OPERATE]
    for text in ("/delete", "/remove", "edit-title"):
        assert seen[Role.OPERATE].partition(text)[1:] == ("", ""), text
        assert text in seen[Role.ADMIN], text


@pytest.mark.parametrize("prefix", ["", "/ops"])
def test_the_application_decides_without_a_login_of_ours(settings, redis, prefix):
    app = host(by_header, prefix)
    app.add_url_rule("/shop", view_func=lambda: "open")
    client = app.test_client()
    assert client.get("/shop").text == "open", "the application's pages are not affected"
    reply = client.get(f"{prefix}/", headers={"Accept": "text/html"})
    assert reply.status_code == 403 and "/login" not in reply.text
    reply = client.get(f"{prefix}/", headers={"X-Role": "admin"})
    assert reply.status_code == 200 and "Log out" not in reply.text
    assert "Set-Cookie" not in reply.headers
    for method, path in (("GET", "login"), ("POST", "login"), ("POST", "logout")):
        headers = {**OURS, "X-Role": "admin"}
        assert client.open(f"{prefix}/{path}", method=method, headers=headers).status_code == 404
    outside = {"REMOTE_ADDR": "192.0.2.1"}
    reply = client.get(f"{prefix}/", headers={"X-Role": "read"}, environ_base=outside)
    assert reply.status_code == 200, "a network is served without RQJOBS_ADMIN_PASSWORD"


@pytest.mark.parametrize(
    "answer, status",
    [
        (None, 403),
        (False, 403),
        ("none", 403),
        (Role.NONE, 403),
        ("read", 200),
        (Role.READ, 200),
        (Access(Role.READ, "ada"), 200),
    ],
)
def test_the_answers_of_authorize(settings, redis, caplog, answer, status):
    client = host(lambda request: answer).test_client()
    assert client.get("/ops/").status_code == status and not caplog.records


@pytest.mark.parametrize(
    "answer",
    [True, 1, 3, "root", "Admin", "", ["admin"], b"admin", Access("admin"), Access(Role.ADMIN, 7)],
    ids=repr,
)
def test_a_wrong_answer_closes_the_door(settings, redis, caplog, answer):
    client = host(lambda request: answer).test_client()
    for _ in range(2):
        assert client.get("/ops/").status_code == 403
    assert len(caplog.records) == 2 and "authorize returned" in caplog.text
    assert "return None, 'read'" in caplog.text


def test_an_error_in_authorize_closes_the_door(settings, redis, caplog):
    client = host(lambda request: 1 / 0).test_client()
    reply = client.get("/ops/")
    assert reply.status_code == 403 and "ZeroDivisionError" not in reply.text
    assert "the pages are closed" in caplog.text and "ZeroDivisionError" in caplog.text


def test_a_stranger_gets_the_response_of_the_application(settings, redis):
    client = host(lambda request: redirect("/sign-in")).test_client()
    reply = client.get("/ops/failed")
    assert (reply.status_code, reply.location) == (302, "/sign-in")
    assert "Content-Security-Policy" not in reply.headers, "that is the application's page"

    def refuse(request):
        abort(401)

    assert host(refuse).test_client().get("/ops/").status_code == 401


def test_authorize_is_asked_once_for_a_request(settings, redis):
    asked = []
    client = host(lambda request: asked.append(request.path) or "read").test_client()
    client.get("/ops/")
    client.get("/ops/nowhere")
    client.get("/ops/healthz")
    assert asked == ["/ops/", "/ops/nowhere"]


def test_requests_of_other_sites_are_refused_whatever_authorize_says(settings, redis):
    client = host(lambda request: "admin").test_client()
    reply = client.post("/ops/jobs", headers={"Origin": "https://evil.example"})
    assert reply.status_code == 403 and "Refused" in reply.text


def test_the_user_of_the_application_is_noted(settings, redis):
    client = host(lambda request: Access(Role.OPERATE, "ada\n" + "x" * 500)).test_client()
    client.post("/ops/pauses/pause", data={"kind": "queue", "name": "low"}, headers=OURS)
    (pause,) = rqjobs.paused()
    assert pause.by == "ada" + "x" * 97


def test_jobs_takes_authorize(settings, redis, monkeypatch):
    for at_start, later in (({"authorize": by_header}, {}), ({}, {"authorize": by_header})):
        app = Flask("shop")
        jobs = rqjobs.Jobs(pages="/ops", **at_start)
        jobs.init_app(app, **later)
        assert not app.cli.commands["jobs"].own_login, "flask jobs dev prints no password"
        client = app.test_client()
        client.get("/ops/healthz").close()
        with client.get("/ops/", headers={"X-Role": "read"}) as reply:
            assert reply.status_code == 200
    with pytest.raises(TypeError, match="authorize='admin' is not callable"):
        host("admin")


def test_a_gate_lets_a_program_in_by_its_token(settings, redis, monkeypatch):
    config.use(admin_password=PASSWORD)

    def authenticate():
        if "Authorization" not in request.headers:
            return None
        return Access(Role.READ, "ci")

    def refuse(status, title, text):
        return f"gate: {title}", status

    monkeypatch.setitem(access.GATES, "/jobs", access.Gate(authenticate, refuse))
    client = host(None).test_client()
    token = {"Authorization": "Bearer x"}
    assert client.get("/ops/jobs/nowhere", headers=token).status_code == 404
    assert client.post("/ops/jobs", headers=token).text == "gate: Not allowed"
    assert client.get("/ops/jobs/nowhere").status_code == 401, "without a token the login decides"
    assert client.get("/ops/failed", headers=token).status_code == 401


def test_the_program_on_the_page_about_access(settings, redis):
    page = (Path(__file__).parents[3] / "docs" / "access.md").read_text(encoding="utf-8")
    (program,) = re.findall("```python\n(.*?)```", page, re.S)
    names = {"__name__": "shop"}
    exec(compile(program, "access.md", "exec"), names)
    client = names["app"].test_client()
    assert client.get("/jobs/").location == "/login"
    for user, settings_status in (("ada@example.com", 422), ("bob@example.com", 403)):
        with client.session_transaction() as entry:
            entry["user"] = user
        with client.get("/jobs/") as reply:
            assert reply.status_code == 200
        assert client.post("/jobs/schedules", headers=OURS).status_code == settings_status
