"""Live parts of pages, the frame of every page, and its content policy."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
import redis as redis_py
import sample_jobs
from browser_client import OURS, PASSWORD, counted_round_trips, log_in
from flask import Flask

import rqjobs
from rqjobs import config, connection, every, queues, schedules, stats
from rqjobs.broker import keys, leases, read_ahead
from rqjobs.web import Access, Role, create_app, init_app, live
from rqjobs.web.rendering import page, pages
from rqjobs.web.views import home

WEB = Path(rqjobs.__file__).parent / "web"


@pytest.fixture
def fresh(monkeypatch):
    """The live part of the home page is not shared."""
    monkeypatch.setattr(home, "SHARED_SECONDS", 0.0)


def test_a_live_part_is_answered_with_304_if_nothing_has_changed(client, redis, fresh, eventually):
    def asked_twice():
        first = client.get("/live")
        assert first.status_code == 200 and first.headers["X-Rqjobs-Trouble"] == "0"
        again = {"If-None-Match": first.headers["ETag"]}
        same = client.get("/live", headers=again)  # 200 if a minute of the chart has ended
        return same.status_code == 304 and (again, same)

    again, same = eventually(asked_twice, what="the same answer")
    assert same.text == "" and same.headers["ETag"] in again.values()
    rqjobs.enqueue(sample_jobs.say, "hello")
    changed = client.get("/live", headers=again)
    assert changed.status_code == 200 and "hello" in changed.text
    assert "ETag" not in client.get("/").headers


def test_an_open_home_page_asks_redis_for_its_session_only(client, redis, monkeypatch):
    monkeypatch.setattr(home, "SHARED_SECONDS", 30)
    tag = client.get("/live").headers["ETag"]
    sent = []
    execute = redis_py.client.Pipeline.execute

    def record(self, *args, **options):
        sent.extend(command[0][0] for command in self.command_stack)
        return execute(self, *args, **options)

    monkeypatch.setattr(redis_py.client.Pipeline, "execute", record)
    with counted_round_trips() as trips:
        assert client.get("/live", headers={"If-None-Match": tag}).status_code == 304
    assert (sent, trips.number) == (["ZSCORE"], 1)


def test_a_session_that_has_ended_gets_no_304(client, app, redis, monkeypatch):
    monkeypatch.setattr(home, "SHARED_SECONDS", 30)
    tag = {"If-None-Match": client.get("/live").headers["ETag"]}
    copy = app.test_client()
    copy.set_cookie("rqjobs_session", client.get_cookie("rqjobs_session").value)
    assert copy.get("/live", headers=tag).status_code == 304
    assert client.post("/logout").status_code == 303
    for headers in ({}, tag):
        assert copy.get("/live", headers=headers).status_code == 401
    log_in(client)
    assert client.get("/live", headers=tag).status_code == 304
    redis.delete(keys.SESSIONS)
    redis.set(keys.SESSIONS, "of another program")
    assert client.get("/live", headers=tag).status_code == 401


def test_trouble_is_in_the_title_and_the_icon(client, redis, fresh):
    calm = client.get("/").text
    assert "<title>Home" in calm and 'href="/assets/icon.svg"' in calm
    before = client.get("/live").headers["ETag"]
    redis.set("rq:suspended", 1)
    page = client.get("/").text
    assert "<title>(1!) Home" in page and 'href="/assets/icon-trouble.svg"' in page
    reply = client.get("/live", headers={"If-None-Match": before})
    assert reply.headers["X-Rqjobs-Trouble"] == "1"
    assert client.get("/assets/icon-trouble.svg").mimetype == "image/svg+xml"


def test_a_live_part_does_not_take_the_note_of_the_next_page(client):
    client.post("/pauses/pause", data={"kind": "queue", "name": "low"})
    client.get("/live")
    assert "The queue low is paused." in client.get("/").text


@pytest.fixture
def shared(settings, redis):
    """An app with a live part that counts how often it is made, and a client for each role."""
    made = []

    def make():
        made.append(1)
        return page("_help.html", viewer=Access(Role.READ))

    app = Flask("host")
    app.testing = True
    init_app(app, "/ops", authorize=lambda request: request.headers.get("X-Role"))
    app.add_url_rule("/ops/shared", view_func=lambda: live.cached("help", 30, make))
    return app, made


def test_viewers_of_a_role_share_one_rendering(shared):
    app, made = shared

    def ask(role, **headers):
        return app.test_client().get("/ops/shared", headers={"X-Role": role, **headers})

    first = ask("read")
    threads = [threading.Thread(target=ask, args=["read"]) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 1
    assert ask("read").get_data() == first.get_data() and ask("read").mimetype == "text/html"
    assert ask("read", **{"If-None-Match": first.headers["ETag"]}).status_code == 304
    same = {"If-None-Match": first.headers["ETag"]}
    assert ask("", **same).status_code == 403, "the role has ended"
    admin = ask("admin", **same)
    assert len(made) == 2 and "buttons that need a higher one" not in admin.text


def test_a_rendering_expires_and_an_error_is_not_kept(app, redis):
    made = []

    def make():
        made.append(1)
        return page("_help.html", 200 if len(made) > 1 else 503, viewer=Access(Role.READ))

    with app.test_request_context():
        assert live.cached("one", 30, make).status_code == 503
        assert live.cached("one", 0, make).status_code == 200
        assert live.cached("one", 0, make).status_code == 200
        assert len(made) == 3
        for number in range(live.MAX_RENDERINGS + 10):
            live.cached(f"key {number}", 30, make)
        assert len(app.extensions["rqjobs.renderings"].found) <= live.MAX_RENDERINGS


def test_no_template_has_an_inline_script_or_style():
    for path in sorted(WEB.rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\sstyle=|<style|\son[a-z]+=|javascript:", text), path.name
        assert not re.search(r"<script(?![^>]*\ssrc=)", text), path.name


def test_every_section_of_the_style_sheet_begins_outside_of_the_one_before():
    """A lost brace put the sections behind it into the rules for phones."""
    for path in (WEB / "static").glob("*.css"):
        depth = 0
        for line in path.read_text(encoding="utf-8").splitlines():
            assert depth == 0 or not line.startswith("/*"), (path.name, line)
            depth += line.count("{") - line.count("}")
        assert depth == 0, path.name


def test_every_page_has_one_heading(client):
    for path in ("/", "/failed", "/delayed", "/schedules", "/workers", "/activity", "/help"):
        assert client.get(path).text.count("<h1") == 1, path


def test_the_badge_and_the_way_back(settings, redis):
    config.use(
        admin_password=PASSWORD,
        secret_key="k" * 32,
        environment="production <b>",
        app_url="https://shop.example.com/?a=1&b",
    )
    client = create_app().test_client()
    assert log_in(client, headers=OURS).status_code == 303
    text = client.get("/failed").text
    assert "production &lt;b&gt;</span>" in text
    assert '<a href="https://shop.example.com/?a=1&amp;b" class="back">' in text


@pytest.mark.parametrize(
    "url, is_right",
    [
        ("https://shop.example.com/", True),
        ("http://localhost:5000", True),
        ("/", True),
        ("/shop?a=1", True),
        ("//evil.example", False),
        ("/\\evil.example", False),
        ("javascript:alert(1)", False),
        ("https://", False),
        ("https://user@evil.example", False),
        ("shop", False),
        ("https://a b", False),
    ],
)
def test_the_way_back_is_checked(url, is_right):
    environ = {"RQJOBS_APP_URL": url}
    if is_right:
        assert config.Config.from_env(environ).app_url == url
        return
    with pytest.raises(config.ConfigError, match="is not the address of your application"):
        config.Config.from_env(environ)


def test_the_name_of_the_environment_is_checked():
    with pytest.raises(config.ConfigError, match=r"RQJOBS_ENVIRONMENT=.*at most 30 characters"):
        config.Config.from_env({"RQJOBS_ENVIRONMENT": "x" * 31})


def test_the_navigation_shows_only_pages_that_exist(client):
    names = set(re.findall(r'<a href="([^"]+)"', client.get("/").text.partition("</nav>")[0]))
    assert "/activity" in names and pages.name == "rqjobs"
    for address in names - {"#main"}:
        assert client.get(address).status_code == 200, address


# Reading ahead


def add_worker(redis, name, **fields):
    redis.sadd(keys.WORKERS, keys.worker(name))
    redis.hset(keys.worker(name), mapping={"state": "idle", "queues": "default"} | fields)
    leases.renew_lease(redis, name, {"host": ""})


def add_group(redis, name):
    fields = {"function": "shop.send", "error": name, "first": 1, "last": 1, "total": 1}
    redis.hset(keys.failure_group(name), mapping=fields)
    redis.zadd(keys.FAILURE_GROUPS, {name: 1})


CHANGES = {  # of the address of a live part: what happens, and the word that it shows then
    "/live/failed": (lambda redis: add_group(redis, "Unforeseen"), "Unforeseen"),
    "/live/queues": (
        lambda redis: queues.queue("unforeseen").enqueue(sample_jobs.ok),
        "unforeseen",
    ),
    "/live/queues/default": (
        lambda redis: rqjobs.enqueue(sample_jobs.say, "unforeseen"),
        "unforeseen",
    ),
    "/live/schedules": (
        lambda redis: schedules.add("unforeseen", every(hours=1), sample_jobs.ok),
        "unforeseen",
    ),
    "/live/schedules/nightly": (lambda redis: schedules.pause("nightly"), "paused"),
    "/live/workers": (lambda redis: add_worker(redis, "unforeseen"), "unforeseen"),
    "/live/workers/one": (lambda redis: add_worker(redis, "one", state="busy"), "busy"),
}


@pytest.fixture
def warm(client, redis):
    """A client that has opened the live parts of `CHANGES` before."""
    rqjobs.enqueue(sample_jobs.ok)
    schedules.add("nightly", every(hours=1), sample_jobs.ok)
    add_worker(redis, "one")
    add_group(redis, "Known")
    for path in CHANGES:
        assert client.get(path).status_code == 200
    return client


@pytest.mark.parametrize("path", CHANGES)
def test_an_update_asks_once_and_shows_every_change(warm, redis, eventually, path):
    change, word = CHANGES[path]

    def asked_once(shows):
        with counted_round_trips() as trips:
            assert (word in warm.get(path).text) is shows
        return trips.number == 1  # not if a minute of the rates has ended

    eventually(lambda: asked_once(False), what="one round trip")
    change(redis)
    assert word in warm.get(path).text
    eventually(lambda: asked_once(True), what="one round trip")
    redis.flushdb()
    redis.script_flush()
    log_in(warm)
    gone = warm.get(path)
    assert gone.status_code in (200, 404) and word not in gone.text


def test_what_is_read_ahead_is_for_one_request_with_a_login(warm, app, redis, monkeypatch):
    copy = app.test_client()
    copy.set_cookie("rqjobs_session", warm.get_cookie("rqjobs_session").value)
    assert warm.post("/logout").status_code == 303
    refused = copy.get("/live/workers")
    assert refused.status_code == 401 and "one" not in re.findall(r"\w+", refused.text)
    assert read_ahead.current.get() is None
    log_in(warm)

    def fail(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(stats, "listed_jobs", fail)
    with pytest.raises(ZeroDivisionError):
        warm.get("/live/workers")
    assert read_ahead.current.get() is None
    monkeypatch.undo()
    add_worker(redis, "unforeseen")
    assert "unforeseen" in warm.get("/live/workers").text


def queued(client):
    return sum(queue.queued for queue in stats.snapshot(client).queues)


def test_the_application_reads_what_is_true_when_it_reads(settings, redis):
    """Before the login check, within a template, and after the response."""
    app, told, read = Flask("host"), [], {}
    app.secret_key = "k" * 32
    other = redis_py.Redis.from_url(settings.redis_url, db=1)
    other.sadd(keys.QUEUES, "default")

    def authorize(request):
        before = queued(connection.client())
        rqjobs.enqueue(sample_jobs.ok)
        told.append(queued(connection.client()) - before)
        return Access(Role.READ, "ada")

    @app.context_processor
    def depth_elsewhere():
        read["elsewhere"] = queued(other)
        read["ahead"] = read_ahead.current.get()
        return {}

    @app.after_request
    def depth_now(response):
        read["after"] = read_ahead.current.get()
        return response

    init_app(app, "/ops", authorize=authorize)
    with app.test_client() as browser:
        for _ in range(3):
            assert browser.get("/ops/live/workers").status_code == 200
            assert (told.pop(), read["elsewhere"]) == (1, 0)
            assert read_ahead.current.get() is None
            ended = read["ahead"]
            number = len(ended.asked)
            token = read_ahead.current.set(ended)  # as a thread has it that began in the request
            depth = queued(connection.client())
            rqjobs.enqueue(sample_jobs.ok)
            assert queued(connection.client()) == depth + 1 and len(ended.asked) == number
            read_ahead.current.reset(token)


def test_nothing_is_read_for_a_viewer_without_a_role(settings, redis, monkeypatch):
    app, answers, sent = Flask("host"), [Role.READ, Role.READ, Role.NONE], []
    app.secret_key = "k" * 32
    execute = redis_py.client.Pipeline.execute

    def record(self, *args, **options):
        sent.extend(command[0] for command in self.command_stack)
        return execute(self, *args, **options)

    def authorize(request):
        assert queued(connection.client()) == 0
        return answers.pop(0)

    monkeypatch.setattr(redis_py.client.Pipeline, "execute", record)
    init_app(app, authorize=authorize)
    for status in (200, 200, 403):
        sent.clear()
        assert app.test_client().get("/live/workers").status_code == status
    seen = [*sent]
    sent.clear()
    assert queued(connection.client()) == 0
    assert seen == sent


def test_the_addresses_that_are_kept_are_bounded(warm, monkeypatch):
    readings = warm.application.extensions["rqjobs.readings"]
    assert len(readings.found) == len(CHANGES)
    monkeypatch.setattr(live, "MAX_READINGS", 3)
    for number in range(5):
        warm.get(f"/live/workers?q={number}")
    kept = [f"/live/workers?q={number}" for number in (2, 3, 4)]
    assert [*readings.found] == kept
    words, _ = readings.found[kept[0]]
    monkeypatch.setattr(live, "READINGS_MAX_WORDS", 2 * words)
    warm.get(kept[0])
    assert [*readings.found] == [kept[2], kept[0]]
    monkeypatch.setattr(live, "READINGS_MAX_WORDS", words - 1)
    assert warm.get(kept[0]).status_code == 200 and not readings.found
