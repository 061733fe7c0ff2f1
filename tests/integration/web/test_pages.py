"""The pages: access, forms and actions; and the data of jobs is escaped."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import urllib.request
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import urlencode

import pytest
import sample_jobs
from browser_client import (
    ESCAPED,
    GATES,
    HOSTILE,
    OURS,
    PASSWORD,
    cookies,
    every_call,
    harmless,
    log_in,
    run_all,
)
from flask import Flask, session
from ports import free_port
from rq.results import Result

import rqjobs
from rqjobs import config, connection
from rqjobs.generated_secrets import generated_secret
from rqjobs.jobs import Job
from rqjobs.web import create_app, init_app
from rqjobs.web.auth import is_local_path

# Access


@pytest.mark.parametrize("credentials", ["none", "wrong", "forged", "basic"])
def test_every_page_refuses_a_client_without_a_login(app, anonymous, redis, credentials):
    job = rqjobs.enqueue(sample_jobs.say, "a secret text")
    headers = dict(OURS)
    if credentials == "wrong":
        log_in(anonymous, password="wrong horse")
    elif credentials == "forged":
        anonymous.set_cookie(
            "rqjobs_session",
            "eyJycWpvYnMiOlsieCIsOTk5OTk5OTk5OV19.aAAAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAA",
        )
    elif credentials == "basic":
        headers["Authorization"] = "Basic YWRtaW46Y29ycmVjdCBob3JzZQ=="
    seen = set()
    for endpoint, method, address in every_call(app):
        seen.add(endpoint)
        for path in {address, address.replace("/x", f"/{job.id}", 1)}:
            reply = anonymous.open(path, method=method, headers={**headers, "Accept": "text/html"})
            css = path.endswith("/rqjobs.css")
            if endpoint in GATES or css:
                continue
            assert reply.status_code == 401 or (
                reply.status_code == 303 and reply.location.startswith("/login")
            ), (endpoint, method, reply.status)
            assert "a secret text" not in reply.text and "Set-Cookie" not in reply.headers
            assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert {"rqjobs.home", "rqjobs.enqueue", "rqjobs.act", "rqjobs.static", "static"} <= seen
    assert any(endpoint.startswith("rq_dashboard.") for endpoint in seen)
    for path in ("/nowhere", "/rq/nowhere", "/jobs", "//jobs", "/rq"):
        assert anonymous.get(path, headers=headers).status_code in (303, 308, 401)
    assert redis.lrange("rq:queue:default", 0, -1) == [job.id.encode()]


def test_static_files_other_than_the_stylesheet_need_a_login(anonymous, client):
    assert anonymous.get("/assets/rqjobs.css").status_code == 200
    assert anonymous.get("/assets/rqjobs.js").status_code != 200
    assert client.get("/assets/rqjobs.js").status_code == 200


def test_login_opens_a_session(app, anonymous):
    reply = anonymous.get("/failed?queue=low", headers={"Accept": "text/html"})
    assert reply.status_code == 303
    form = anonymous.get(reply.location)
    wanted = re.search(r'name="next" value="([^"]*)"', form.text)[1]
    reply = anonymous.post(
        "/login", data={"user": "admin", "password": PASSWORD, "next": wanted}, headers=OURS
    )
    assert (reply.status_code, reply.location) == (303, "/failed?queue=low")
    (cookie,) = cookies(reply)
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Secure" not in cookie
    assert anonymous.get("/").status_code == 200
    assert anonymous.get("/rq/").status_code == 200


@pytest.mark.parametrize(
    "user, password", [("admin", "wrong"), ("Admin", PASSWORD), ("", ""), ("admin", "pässwörd\0")]
)
def test_wrong_credentials_give_no_session(anonymous, user, password):
    reply = log_in(anonymous, user, password)
    assert (
        reply.status_code == 401 and "Wrong name or password." in reply.text and not cookies(reply)
    )
    assert anonymous.get("/").status_code != 200


def test_cookies_are_secure_over_https(app):
    for options in (
        {"base_url": "https://localhost"},
        {"headers": {**OURS, "X-Forwarded-Proto": "https"}},
    ):
        reply = log_in(app.test_client(), **options)
        for cookie in reply.headers.getlist("Set-Cookie"):
            assert "Secure" in cookie and "HttpOnly" in cookie and "SameSite=Lax" in cookie


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "javascript:alert(1)",
        "",
    ],
)
def test_login_redirects_to_own_pages_only(app, anonymous, target):
    reply = anonymous.post(
        "/login", data={"user": "admin", "password": PASSWORD, "next": target}, headers=OURS
    )
    assert reply.location == "/"
    with app.test_request_context():
        assert is_local_path("/failed?page=2") and not is_local_path(target)


def test_login_clears_the_previous_session(app, anonymous):
    with anonymous.session_transaction() as before:
        before["planted"] = "by somebody else"
    log_in(anonymous)
    with anonymous.session_transaction() as after:
        assert "planted" not in after


def test_a_session_expires_after_twelve_hours(app, client):
    with client.session_transaction() as entry:
        fingerprint, since, login = entry["rqjobs"]
        entry["rqjobs"] = [fingerprint, since - 12 * 3600 + 60, login]
    assert client.get("/").status_code == 200
    with client.session_transaction() as entry:
        entry["rqjobs"] = [fingerprint, since - 12 * 3600 - 1, login]
    assert client.get("/").status_code != 200


def test_new_credentials_end_all_sessions(app, client):
    cookie = client.get_cookie("rqjobs_session").value
    for change, status in (
        ({}, 200),
        ({"admin_password": "another horse"}, 401),
        ({"admin_user": "root"}, 401),
    ):
        config.use(admin_user="admin", admin_password=PASSWORD)
        config.use(**change)
        other = create_app().test_client()
        other.set_cookie("rqjobs_session", cookie)
        assert other.get("/", headers={"Accept": "application/json"}).status_code == status


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder."""
    monkeypatch.setattr(connection, "DATA_FOLDER", tmp_path / "home" / ".rqjobs")
    (tmp_path / "home").mkdir()
    return connection.DATA_FOLDER


def test_a_missing_secret_key_is_generated_and_kept(settings, folder):
    """The key was made of the password: an attacker could check guesses against an empty cookie."""
    config.use(admin_password=PASSWORD)
    one, two = create_app(), create_app()
    client = one.test_client()
    assert not folder.exists(), "nothing is written before a request comes"
    assert log_in(client).status_code == 303
    cookie = client.get_cookie("rqjobs_session").value
    other = two.test_client()
    other.set_cookie("rqjobs_session", cookie)
    assert other.get("/").status_code == 200, "all processes of this folder have it"
    key = (folder / "secret-key").read_text()
    assert (
        one.secret_key == two.secret_key == key
        and (folder / "secret-key").stat().st_mode & 0o777 == 0o600
    )
    (folder / "secret-key").unlink()
    another = create_app()
    another.test_client().get("/login")
    assert len(another.secret_key) >= 16 and another.secret_key != key, (
        "the same password, and yet another key"
    )
    host = Flask("host")
    init_app(host, url_prefix="/jobs")
    assert log_in(host.test_client(), path="/jobs/login").status_code == 303


@pytest.mark.parametrize("spoil", ["closed", "readable", "link", "text"])
def test_an_unusable_data_folder_gives_a_temporary_secret(folder, capsys, spoil):
    folder.mkdir()
    file = folder / "secret-key"
    if spoil == "closed":
        folder.rmdir()
        folder.write_text("no folder")
    elif spoil == "readable":
        file.write_text("x" * 40)
        file.chmod(0o644)
    elif spoil == "link":
        file.symlink_to("/etc/hostname")
    else:
        file.write_bytes(b"\xff" * 40)
        file.chmod(0o600)
    found = {generated_secret("secret-key", "SECRET_KEY") for _ in range(2)}
    assert len(found) == 2 and all(len(one) >= 16 for one in found), "each process has its own"
    assert "Set SECRET_KEY" in capsys.readouterr().err


def test_processes_that_start_together_share_one_secret(spawn, tmp_path):
    code = "from rqjobs.generated_secrets import generated_secret; print(generated_secret('secret-key', 'X'))"
    processes = [spawn(sys.executable, "-c", code) for _ in range(8)]
    assert all(process.wait(60) == 0 for process in processes)
    assert len({process.output() for process in processes}) == 1


def test_logout_is_a_post(client):
    assert client.get("/logout").status_code == 405
    assert client.post("/logout").status_code == 303
    assert client.get("/").status_code != 200


def test_logout_invalidates_the_cookie(app, client, redis):
    cookie = client.get_cookie("rqjobs_session").value
    other = app.test_client()
    assert log_in(other).status_code == 303
    client.post("/logout")
    thief = app.test_client()
    thief.set_cookie("rqjobs_session", cookie)
    assert thief.get("/", headers={"Accept": "application/json"}).status_code == 401
    assert other.get("/").status_code == 200, "another login stays"
    assert redis.zcard("rqjobs:sessions") == 1 and 43_000 < redis.ttl("rqjobs:sessions") <= 43_200


def test_malformed_login_records_do_not_prevent_a_login(app, redis):
    client = app.test_client()
    log_in(client)
    for key in ("rqjobs:sessions", "rqjobs:login:127.0.0.1", "rqjobs:login"):
        redis.delete(key)
        redis.set(key, "odd")
    assert client.get("/", headers={"Accept": "application/json"}).status_code == 401
    client = app.test_client()
    assert log_in(client).status_code == 303 and client.get("/").status_code == 200


def test_wrong_passwords_cause_pauses(app, redis):
    attacker = app.test_client()
    replies = [log_in(attacker, password=f"guess {n}") for n in range(6)]
    assert [reply.status_code for reply in replies[:3]] == [401, 401, 401]
    refused = [reply for reply in replies if reply.status_code == 429]
    assert refused and 1 <= int(refused[0].headers["Retry-After"]) <= 2
    redis.set("rqjobs:login:127.0.0.1:pause", 1, ex=30)  # the pause may have ended
    reply = log_in(attacker)  # the right password, within a pause
    assert reply.status_code == 429 and 1 <= int(reply.headers["Retry-After"]) <= 30
    assert "Too many wrong passwords" in reply.text and not cookies(reply)
    elsewhere = {"environ_base": {"REMOTE_ADDR": "192.0.2.7"}}
    assert log_in(app.test_client(), **elsewhere).status_code == 303
    redis.delete("rqjobs:login:127.0.0.1:pause")  # as if the pause had ended
    assert log_in(attacker).status_code == 303
    assert not redis.exists("rqjobs:login:127.0.0.1")


def test_pauses_double_up_to_a_minute(app, redis):
    attacker = app.test_client()
    longest = 0
    for _ in range(12):
        log_in(attacker, password="guess")
        longest = max(longest, redis.ttl("rqjobs:login:127.0.0.1:pause"))
        redis.delete("rqjobs:login:127.0.0.1:pause", "rqjobs:login:pause")
    assert 55 <= longest <= 60
    assert all(0 < redis.ttl(key) <= 900 for key in redis.scan_iter("rqjobs:login*"))


@pytest.mark.parametrize("key", ["rqjobs:login:pause", "rqjobs:login:127.0.0.1:pause"])
def test_a_pause_longer_than_the_maximum_is_ignored(app, redis, key):
    redis.set(key, 1, ex=10**8)
    assert log_in(app.test_client()).status_code == 303


def test_many_addresses_share_a_second_limit(app):
    replies = [
        log_in(
            app.test_client(), password="guess", environ_base={"REMOTE_ADDR": f"192.0.2.{n}"}
        ).status_code
        for n in range(1, 40)
    ]
    assert replies[:30] == [401] * 30 and 429 in replies[30:]
    within = [
        log_in(
            app.test_client(), password="guess", environ_base={"REMOTE_ADDR": f"2001:db8::{n}"}
        ).status_code
        for n in range(1, 6)
    ]
    assert 429 in within, "one IPv6 network counts as one address"


def test_a_known_browser_has_its_own_limit(app, client):
    for _ in range(5):
        log_in(app.test_client(), password="guess")  # from the same address, as behind a proxy
    client.post("/logout")
    assert log_in(client).status_code == 303


def test_a_login_needs_redis(app, anonymous, no_redis):
    reply = log_in(anonymous)
    assert reply.status_code == 503 and not cookies(reply)


# Origins of requests


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Referer": "https://evil.example/localhost"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://localhost@evil.example"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
    ],
)
def test_requests_of_other_sites_are_refused(app, client, redis, headers):
    del client.environ_base["HTTP_SEC_FETCH_SITE"]
    job = rqjobs.enqueue(sample_jobs.say, "keep me")
    for endpoint, method, address in every_call(app):
        if method in ("GET", "HEAD", "OPTIONS") or endpoint.startswith("rqjobs_api."):
            continue
        for path in (address, address.replace("/x", f"/{job.id}", 1)):
            reply = client.open(
                path, method=method, headers=headers, data={"function": "sample_jobs.ok"}
            )
            assert reply.status_code == 403 and "Refused" in reply.text, (
                endpoint,
                path,
                reply.status,
            )
    assert redis.lrange("rq:queue:default", 0, -1) == [job.id.encode()]
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        OURS,
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://localhost"},
        {"Referer": "http://localhost/?function=x"},
        {"Origin": "HTTP://LOCALHOST"},
    ],
)
def test_requests_of_our_pages_are_accepted(client, headers):
    del client.environ_base["HTTP_SEC_FETCH_SITE"]
    assert (
        client.post(
            "/jobs", data={"function": "sample_jobs.ok", "queue": "low"}, headers=headers
        ).status_code
        == 303
    )


def test_get_requests_change_nothing(app, client, redis):
    rqjobs.enqueue(sample_jobs.say, "one")
    bad = rqjobs.enqueue(sample_jobs.boom)
    run_all(redis)
    rqjobs.enqueue_in(100, sample_jobs.say, "two")
    before = {key: redis.dump(key) for key in redis.scan_iter("rq:*")}
    for _, method, address in every_call(app):
        if method in ("GET", "HEAD", "OPTIONS"):
            client.open(address, method=method)
            client.open(address.replace("/x", f"/{bad.id}", 1), method=method)
            client.open(address.replace("/x", "/default", 1), method=method)
    assert {key: redis.dump(key) for key in redis.scan_iter("rq:*")} == before


def test_without_a_password_only_this_machine_is_served(settings, folder, capsys):
    app = create_app()
    client = app.test_client()
    assert client.get("/healthz").status_code == 200 and client.get("/").status_code == 401
    assert capsys.readouterr().err == "" and not (folder / "admin-password").exists()
    client.get("/login")
    printed = capsys.readouterr().err
    assert (
        "RQJOBS_ADMIN_PASSWORD is not set, so only this machine is served. Log in as admin with: "
        in printed
    )
    password = re.search(r"Log in as admin with: (\S+)", printed)[1]
    assert len(password) >= 16
    client.get("/login")
    assert capsys.readouterr().err == "", "said once"
    assert log_in(client, password=password).status_code == 303
    assert client.get("/").status_code == 200
    assert client.get("/", base_url="http://127.0.0.1:8000").status_code in (
        303,
        401,
    )  # accepted, but the session belongs to another site
    for options in (
        {"environ_base": {"REMOTE_ADDR": "192.0.2.1"}},
        {"environ_base": {"REMOTE_ADDR": ""}},
        {"headers": {"Host": "evil.example"}},
        {"headers": {"Host": "localhost.evil.example"}},
        {"headers": {"Host": "["}},
        {"headers": {"X-Forwarded-For": "192.0.2.1"}},
        {"headers": {"X-Forwarded-For": "127.0.0.1"}},
        {"headers": {"Forwarded": "for=192.0.2.1"}},
        {"headers": {"X-Real-IP": "127.0.0.1"}},
        {"headers": {"X-Forwarded-Proto": "https"}},
        {"headers": {"Via": "1.1 varnish"}},
        {"headers": {"Origin": "https://shop.example"}},
        {"environ_overrides": {"SERVER_PROTOCOL": "HTTP/1.0"}},
    ):
        for path in ("/", "/login", "/rq/", "/healthz", "/assets/rqjobs.css"):
            reply = client.get(path, **options)
            assert reply.status_code == 403 and "RQJOBS_ADMIN_PASSWORD" in reply.text, (
                options,
                path,
            )
    assert log_in(create_app().test_client(), password=password).status_code == 303, (
        "the next start has the same one"
    )


def test_importing_the_app_prints_no_password(spawn, tmp_path):
    """The worker, doctor and pytest printed the password of a server that did not exist."""
    (tmp_path / "shop.py").write_text(
        "import flask, rqjobs.web\n\ndef create_app():\n    app = flask.Flask('shop')\n"
        "    rqjobs.web.init_app(app, url_prefix='/jobs')\n    return app\n"
    )
    process = spawn(
        sys.executable, "-m", "rqjobs", "doctor", env={"RQJOBS_FLASK_APP": "shop:create_app"}
    )
    process.wait(60)
    assert "Log in" not in process.output() and "Redis" in process.output()
    assert not (tmp_path / ".rqjobs").exists()


def test_flask_reloader_keeps_password_and_sessions(spawn, tmp_path, eventually):
    port = free_port()
    shop = tmp_path / "shop.py"
    shop.write_text(
        "import flask, rqjobs.web\n\napp = flask.Flask('shop')\nversion = '1'\n"
        "app.get('/version')(lambda: version)\nrqjobs.web.init_app(app, url_prefix='/jobs')\n"
    )
    process = spawn(
        sys.executable,
        "-m",
        "flask",
        "--app",
        "shop",
        "run",
        "--debug",
        "--port",
        str(port),
        env={
            "PYTHONPATH": f"{tmp_path}:{Path(rqjobs.__file__).parents[1]}:{Path(__file__).parents[2]}"
        },
    )
    jar = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())

    def get(path, data=None):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", data, {"Sec-Fetch-Site": "same-origin"}
        )
        try:
            with jar.open(request, timeout=60) as reply:
                return reply.read().decode()
        except (OSError, http.client.HTTPException):  # the reloader ends the process at any time
            return ""

    eventually(lambda: get("/version") == "1", what="the server")
    assert "Log in as" not in process.output()
    assert 'id="password"' in get("/jobs/login")
    password = re.search(r"Log in as admin with: (\S+)", process.output())[1]
    assert "Enqueue" in get(
        "/jobs/login", urlencode({"user": "admin", "password": password}).encode()
    )
    (tmp_path / "next").write_text(shop.read_text().replace("'1'", "'2'"))
    (tmp_path / "next").replace(shop)  # in one step: the reloader may look at any time
    eventually(lambda: get("/version") == "2", what="the next process")
    assert "Enqueue" in get("/jobs/"), "still logged in"
    get("/jobs/login")
    said = re.findall(r"Log in as admin with: (\S+)", process.output())
    assert set(said) == {password}


@pytest.mark.parametrize(
    "host", ["a..b", ".", "a" * 70 + ".b", "[", "a b", "\xff", "", "x:99999999"]
)
def test_a_malformed_host_header_is_a_400(app, client, host):
    """The Host `a..b` was a 500 on any path, with a traceback in the log."""
    for _, method, address in every_call(app):
        reply = client.open(address, method=method, headers={"Host": host})
        assert reply.status_code < 500, (address, reply.status)
    assert client.get("/", headers={"Host": "a..b"}).status_code == 400


def test_a_refusal_names_the_header_that_a_proxy_must_set(anonymous):
    reply = log_in(
        anonymous, headers={"Origin": "http://shop.example:8080", "Host": "127.0.0.1:8000"}
    )
    assert reply.status_code == 403 and "proxy_set_header Host $http_host;" in reply.text
    assert (
        "from a page of shop.example:8080" in reply.text
        and "called as 127.0.0.1:8000" in reply.text
    )
    reply = log_in(anonymous, headers={"Origin": "http://" + HOSTILE, "Host": "127.0.0.1:8000"})
    assert reply.status_code == 403
    harmless(reply.text)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_serving_a_network_requires_a_password(settings, host):
    config.use(host=host)
    with pytest.raises(config.ConfigError, match=r"HOST=.* exposes.* Set RQJOBS_ADMIN_PASSWORD"):
        create_app()
    config.use(admin_password=PASSWORD)
    assert create_app()


def test_pages_have_security_headers(client):
    for path in ("/", "/failed", "/workers", "/nowhere", "/login"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Frame-Options"] == "DENY" and headers["Cache-Control"] == "no-store"
        assert (
            headers["X-Content-Type-Options"] == "nosniff"
            and headers["Referrer-Policy"] == "same-origin"
        )
    assert "nonce" in client.get("/rq/").headers["Content-Security-Policy"]


def test_inside_another_app(settings):
    config.use(admin_password=PASSWORD, secret_key="k" * 32)
    host = Flask("host")
    host.secret_key = "the host's own"

    @host.route("/", methods=["GET", "POST"])
    def front():
        session["cart"] = 3
        return "<script>theirs()</script>"

    @host.get("/jobsite")
    def jobsite():
        return "theirs"

    init_app(host, url_prefix="/jobs")
    client = host.test_client()
    assert host.secret_key == "the host's own"
    reply = client.post("/")
    assert reply.status_code == 200 and "Content-Security-Policy" not in reply.headers
    assert client.get("/jobsite").text == "theirs" and client.get("/nowhere").status_code == 404
    for path in ("/jobs/", "/jobs/failed", "/jobs/rq/", "/jobs/nowhere", "/jobs"):
        assert client.get(path).status_code in (303, 401), path
    assert client.get("/jobs/healthz").status_code == 200
    assert log_in(client, path="/jobs/login").location == "/jobs/"
    assert client.get("/jobs/").status_code == 200 and client.get("/jobs/rq/").status_code == 200
    assert client.get("/jobs").location in ("/jobs/", "http://localhost/jobs/")
    assert "There is no such page" in client.get("/jobs/nowhere").text
    reply = client.post(
        "/jobs/jobs", data={"function": "sample_jobs.ok", "queue": "low"}, headers=OURS
    )
    assert (
        reply.location.startswith("/jobs/jobs/") and client.get(reply.location).status_code == 200
    )
    client.post("/jobs/logout", headers=OURS)
    with client.session_transaction() as left:
        assert dict(left) == {"cart": 3}


def test_inside_another_app_stock_queues_still_write_pickle(environ, worker):
    """Plain RQ queues once wrote JSON, and every job failed in a plain RQ worker."""
    process = worker("low")
    host = """if True:
        import sample_jobs, redis, rq, rqjobs.web
        from flask import Flask
        connection = redis.Redis.from_url({url!r})
        before = rq.Queue("stock", connection=connection)
        rqjobs.web.init_app(Flask("host"), url_prefix="/jobs")
        assert [worker.name for worker in rqjobs.Worker.all(connection)] == [{name!r}]  # no worker of this process
        for queue in (before, rq.Queue("stock", connection=connection)):
            queue.enqueue(sample_jobs.add, 2, b=3, meta={{"team": "a"}})
        ours = rqjobs.enqueue(sample_jobs.ok, meta={{"team": "a"}})
        stock = rq.job.Job.fetch(ours.id, connection=connection)
        stock.meta["seen"] = True
        stock.save_meta()
        print(rqjobs.Job.fetch(ours.id, connection=connection).meta)
    """.format(url=environ["REDIS_URL"], name=process.name)
    stock = """if True:
        import redis, rq
        connection = redis.Redis.from_url({url!r})
        jobs = rq.Queue("stock", connection=connection).jobs
        rq.SimpleWorker(["stock"], connection=connection).work(burst=True, logging_level="CRITICAL")
        print([(job.get_status().value, job.return_value(), job.meta) for job in jobs])
    """.format(url=environ["REDIS_URL"])
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60
        )
        for program in (host, stock)
    ]
    assert outputs[0].stdout == "{'team': 'a', 'seen': True}\n", outputs[0].stderr
    assert outputs[1].stdout == f"{[('finished', 5, {'team': 'a'})] * 2}\n", outputs[1].stderr


# The form


def test_home_shows_queues_and_jobs(client, redis):
    rqjobs.enqueue(sample_jobs.say, "hello")
    rqjobs.enqueue(sample_jobs.boom, "bang")
    run_all(redis)
    rqjobs.queue("low").enqueue(sample_jobs.say, "waits")
    page = client.get("/").text
    assert "sample_jobs.say(&#39;hello&#39;)" in page and "sample_jobs.boom(&#39;bang&#39;)" in page
    assert "1 job waiting, and no worker is running." in page and "rqjobs worker</code>" in page
    form = client.get("/enqueue").text
    assert 'value="sample_jobs.add"' in form and '<optgroup label="sample_jobs">' in form
    assert (
        "sample_jobs.say(&#39;waits&#39;)" in client.get("/live").text
        and "<html" not in client.get("/live").text
    )


def test_modules_that_fail_to_import_are_named(client):
    config.use(modules=("sample_jobs", "nowhere_at_all"))
    page = client.get("/enqueue").text
    assert "<code>nowhere_at_all</code> failed to import" in page


def test_enqueue(client, redis):
    form = client.get("/enqueue?function=sample_jobs.add").text
    job_id = re.search(r'name="job_id" value="([^"]+)"', form)[1]
    reply = client.post(
        "/jobs",
        data={
            "function": "sample_jobs.add",
            "arg.a": "3",
            "arg.b": "",
            "queue": "default",
            "job_id": job_id,
            "when": "now",
        },
    )
    assert (reply.status_code, reply.location) == (303, f"/jobs/{job_id}")
    job = Job.fetch(job_id, connection=redis)
    assert (job.func_name, list(job.args), job.kwargs, job.origin) == (
        "sample_jobs.add",
        [3],
        {},
        "default",
    )


def test_form_arguments_fit_nested_annotations(client, redis):
    form = client.get("/enqueue?function=sample_jobs.order").text.replace("&#34;", '"')
    assert 'JSON, for example {"customer": {"name": "a"}, "points": [{"x": 3}]}' in form
    data = {"function": "sample_jobs.order", "queue": "default", "arg.sizes": '["LARGE"]'}
    reply = client.post(
        "/jobs", data={**data, "arg.order": '{"customer": {"name": "A"}, "points": [{"x": "b"}]}'}
    )
    assert (
        reply.status_code == 422
        and "order.points[0].x: &#39;b&#39; is not a whole number" in reply.text
    )
    sent = (
        '{"customer": {"name": "A"}, "points": [{"x": 1, "tags": ["t"]}], "colors": {"a": "red"}}'
    )
    job_id = client.post("/jobs", data={**data, "arg.order": sent}).location.rpartition("/")[2]
    run_all(redis)
    order = sample_jobs.Order(
        sample_jobs.Outer.Inner("A"),
        [sample_jobs.Point(1, 0, frozenset({"t"}))],
        {"a": sample_jobs.Color.RED},
    )
    assert Job.fetch(job_id, connection=redis).return_value() == repr(
        (order, [sample_jobs.Size.LARGE])
    )


@pytest.mark.parametrize(
    "when", [{"when": "now"}, {"when": "in", "delay": "50", "unit": "seconds"}]
)
def test_a_form_sent_twice_is_one_job(client, redis, when):
    data = {
        "function": "sample_jobs.add",
        "arg.a": "3",
        "queue": "default",
        "job_id": str(uuid.uuid4()),
        **when,
    }
    replies = [client.post("/jobs", data=data) for _ in range(3)]
    assert {reply.location for reply in replies} == {f"/jobs/{data['job_id']}"}
    assert redis.llen("rq:queue:default") + redis.zcard("rq:scheduled:default") == 1


def test_options_reach_the_job(client, redis):
    data = {
        "function": "sample_jobs.urgent",
        "queue": "low",
        "when": "in",
        "delay": "1.5",
        "unit": "hours",
        "retries": "3",
        "retry_interval": "10",
        "repeats": "5",
        "repeat_interval": "60",
    }
    job = Job.fetch(client.post("/jobs", data=data).location.rpartition("/")[2], connection=redis)
    assert (job.retries_left, job.retry_intervals, job.repeats_left, job.repeat_intervals) == (
        3,
        [10],
        5,
        [60],
    )
    assert (job.origin, job.timeout, job.get_status().value) == ("low", 30, "scheduled")
    due = redis.zscore("rq:scheduled:low", job.id)
    assert due == pytest.approx(datetime.now().timestamp() + 5400, abs=60)


def test_a_form_sent_twice_at_once_is_one_job(client, redis, monkeypatch):
    monkeypatch.setattr(
        Job, "exists", lambda *_: False
    )  # both requests check before one of them writes
    data = {
        "function": "sample_jobs.add",
        "arg.a": "3",
        "queue": "default",
        "job_id": str(uuid.uuid4()),
    }
    assert [client.post("/jobs", data=data).location for _ in range(2)] == [
        f"/jobs/{data['job_id']}"
    ] * 2
    assert redis.llen("rq:queue:default") == 1


@pytest.mark.parametrize("typed, left", [("", 5), ("0", None), ("2", 2)])
def test_zero_retries_override_those_of_the_function(client, redis, monkeypatch, typed, left):
    monkeypatch.setattr(
        sample_jobs.urgent, "__rqjobs__", {"queue": "high", "retry": rqjobs.Retry(max=5)}
    )
    assert "left empty: 5" in client.get("/enqueue?function=sample_jobs.urgent").text
    reply = client.post(
        "/jobs", data={"function": "sample_jobs.urgent", "queue": "high", "retries": typed}
    )
    assert Job.fetch(reply.location.rpartition("/")[2], connection=redis).retries_left == left


def test_a_time_is_read_in_the_time_zone_of_the_browser(client, redis):
    local = datetime.now(timezone.utc).replace(tzinfo=None, microsecond=0) + timedelta(hours=7)
    data = {
        "function": "sample_jobs.ok",
        "queue": "low",
        "when": "at",
        "at": local.isoformat(),
        "offset": "330",
    }
    job_id = client.post("/jobs", data=data).location.rpartition("/")[2]
    expected = local.replace(tzinfo=timezone(timedelta(minutes=330))).timestamp()
    assert redis.zscore("rq:scheduled:low", job_id) == expected
    data["offset"] = ""
    job_id = client.post("/jobs", data=data).location.rpartition("/")[2]
    assert redis.zscore("rq:scheduled:low", job_id) == local.timestamp(), (
        "without JavaScript: the server's zone"
    )


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"arg.a": "three"}, "is not a whole number"),
        ({"arg.a": ""}, "a is required"),
        ({"queue": "nowhere"}, "There is no such queue here."),
        ({"queue": ""}, "There is no such queue here."),
        ({"when": "in", "delay": "-1", "unit": "days"}, "from 0 to 3,650 days"),
        ({"when": "in", "delay": "nan", "unit": "days"}, "from 0 to 3,650 days"),
        ({"when": "in", "delay": "", "unit": "days"}, "Give the delay."),
        ({"when": "at", "at": "tomorrow"}, "Give a date and a time"),
        ({"when": "at", "at": "2001-01-01T00:00"}, "This time is in the past."),
        ({"when": "at", "at": "9999-12-31T23:59", "offset": "-840"}, "10 years"),
        ({"when": "at", "at": "0001-01-01T00:00", "offset": "840"}, "past"),
        ({"when": "never"}, "Choose when to run the job."),
        ({"retries": "101"}, "from 0 to 100."),
        ({"retries": "1", "retry_interval": "99999999"}, "from 0 to 2,592,000 seconds"),
        ({"repeats": "10001"}, "from 0 to 10,000."),
        ({"repeats": "1e3"}, "from 0 to 10,000."),
        ({"function": "os.system"}, "There is no such job function"),
        ({"function": "sample_jobs._hidden"}, "There is no such job function"),
    ],
)
def test_errors_are_shown_and_inputs_are_kept(client, redis, wrong, message):
    data = {
        "function": "sample_jobs.add",
        "arg.a": "3",
        "arg.b": "17",
        "queue": "low",
        "when": "now",
        "job_id": str(uuid.uuid4()),
        **wrong,
    }
    reply = client.post("/jobs", data=data)
    assert reply.status_code == 422 and message in reply.text
    if data["function"] == "sample_jobs.add":
        assert (
            'value="17"' in reply.text
            and data["job_id"] in reply.text
            and 'class="error"' in reply.text
        )
        kept = [value for name, value in wrong.items() if name not in ("queue", "when", "offset")]
        assert all(value in reply.text for value in kept)
    assert not list(redis.scan_iter("rq:job:*"))


def test_a_refusal_of_the_queue_is_shown_on_the_form(client, redis):
    config.use(max_payload_bytes=1024)
    data = {"function": "sample_jobs.say", "arg.text": "x" * 1020, "queue": "low"}
    reply = client.post("/jobs", data=data)
    assert (
        reply.status_code == 422
        and "RQJOBS_MAX_PAYLOAD_BYTES" in reply.text
        and "x" * 1020 in reply.text
    )
    reply = client.post("/jobs", data={**data, "arg.text": "x" * 2000})
    assert reply.status_code == 422 and "longer than RQJOBS_MAX_PAYLOAD_BYTES" in reply.text
    assert not list(redis.scan_iter("rq:job:*"))


def test_an_oversized_form_is_a_413(client):
    reply = client.post("/jobs", data={"function": "sample_jobs.say", "arg.text": "x" * 3_000_000})
    assert reply.status_code == 413 and "<h1>" in reply.text


def test_hostile_input_is_escaped(client):
    reply = client.post(
        "/jobs",
        data={
            "function": "sample_jobs.say",
            "arg.text": HOSTILE,
            "queue": HOSTILE,
            "at": HOSTILE,
            "delay": HOSTILE,
            "retries": HOSTILE,
            "job_id": HOSTILE,
            "when": HOSTILE,
        },
    )
    assert reply.status_code == 422
    harmless(reply.text)
    harmless(client.get("/", query_string={"function": HOSTILE}).text)
    harmless(client.get("/failed", query_string={"queue": HOSTILE}).text)
    harmless(client.get("/login", query_string={"next": HOSTILE}).text)


# A job's page


def state_of(client, job_id):
    reply = client.get(f"/jobs/{job_id}/state")
    assert reply.status_code == 200
    assert reply.json["html"].strip() in client.get(f"/jobs/{job_id}").text
    return reply.json


def buttons(html):
    return re.findall(r'action="/jobs/[^"]+/(\w+)"', html)


def job_in(status, redis):
    if status == "scheduled":
        return rqjobs.enqueue_in(500, sample_jobs.say, "hello")
    if status == "deferred":
        return rqjobs.enqueue(sample_jobs.say, "hello", depends_on=rqjobs.enqueue(sample_jobs.ok))
    job = rqjobs.enqueue(
        *(sample_jobs.boom, "bang")
        if status in ("failed", "stopped")
        else (sample_jobs.say, "hello")
    )
    if status == "canceled":
        job.cancel()
    elif status not in ("queued", "started"):
        run_all(redis)
    if status in ("stopped", "started"):
        redis.hset(job.key, "status", status)
    return job


@pytest.mark.parametrize(
    "status, actions",
    [
        ("queued", ["cancel"]),
        ("scheduled", ["cancel"]),
        ("deferred", ["cancel"]),
        ("started", ["cancel", "stop"]),
        ("finished", ["again", "delete"]),
        ("failed", ["requeue", "delete"]),
        ("stopped", ["requeue", "delete"]),
        ("canceled", ["again", "delete"]),
    ],
)
def test_each_status_has_its_page_and_buttons(client, redis, status, actions):
    job = job_in(status, redis)
    state = state_of(client, job.id)
    assert state["status"] == status and buttons(state["html"]) == actions
    assert state["ended"] == (status in ("finished", "failed", "stopped", "canceled"))
    page = client.get(f"/jobs/{job.id}").text
    assert job.id in page and "default" in page and ("<noscript>" in page) != state["ended"]
    if status == "finished":
        assert "<h2>Result</h2>" in page and "hello" in page and "Took" in page
    if status == "failed":
        assert "ValueError: bang" in page
    if status == "deferred":
        assert "Depends on" in page


@pytest.mark.parametrize(
    "status",
    ["queued", "scheduled", "deferred", "started", "finished", "failed", "stopped", "canceled"],
)
@pytest.mark.parametrize("action", ["cancel", "stop", "requeue", "again", "delete"])
def test_an_action_works_only_in_its_statuses(client, redis, status, action):
    job = job_in(status, redis)
    offered = action in buttons(state_of(client, job.id)["html"])
    count = len(list(redis.scan_iter("rq:job:*")))
    if action == "stop":
        redis.hset(job.key, "worker_name", "somebody")
    reply = client.post(f"/jobs/{job.id}/{action}")
    assert reply.status_code == 303
    note = re.search(r'class="note" role="status">([^<]*)', client.get(reply.location).text)[1]
    assert 'class="note"' not in client.get(reply.location).text, "told once"
    jobs = [key for key in redis.scan_iter("rq:job:*") if redis.type(key) == b"hash"]
    if not offered:
        assert note.startswith("Nothing was done")
        assert redis.hget(job.key, "status").decode() == status
    elif action == "delete":
        assert not redis.exists(job.key, f"rq:results:{job.id}") and reply.location == "/"
        assert client.get(f"/jobs/{job.id}").status_code == 404
    elif action == "again":
        assert len(jobs) == count + 1 and reply.location != f"/jobs/{job.id}"
        assert Job.fetch(reply.location.rpartition("/")[2], connection=redis).args == ["hello"]
    else:
        expected = {"cancel": "canceled", "requeue": "queued", "stop": "started"}[action]
        assert redis.hget(job.key, "status").decode() == expected


def test_a_blocked_job_names_the_parent_and_the_remedy(client, redis):
    parent = rqjobs.enqueue(sample_jobs.boom, "bang")
    job = rqjobs.enqueue(sample_jobs.say, "after", depends_on=parent)
    assert "This job waits for" not in client.get(f"/jobs/{job.id}").text
    run_all(redis)
    page = client.get(f"/jobs/{job.id}").text
    link = f'<a href="/jobs/{parent.id}">{parent.id}</a>'
    assert f"This job waits for {link}, which has failed: requeue that one" in page
    assert f'<span class="badge failed">failed</span> <a href="/jobs/{parent.id}">' in page
    assert f'<a href="/jobs/{job.id}">' in client.get(f"/jobs/{parent.id}").text
    parent.delete()
    assert f"This job waits for {link}, which is gone" in client.get(f"/jobs/{job.id}").text


def test_stop_ends_a_running_job(client, redis, worker, eventually):
    worker("default")
    job = rqjobs.enqueue(sample_jobs.hang, "gate")
    eventually(lambda: redis.exists("gate:reached"), what="the job")
    state = state_of(client, job.id)
    assert state["status"] == "started" and "Running since" in state["html"]
    client.post(f"/jobs/{job.id}/stop")
    eventually(
        lambda: client.get(f"/jobs/{job.id}/state").json["status"] == "stopped", what="the stop"
    )


def test_progress_crashes_and_counts_are_shown(client, redis):
    job = rqjobs.enqueue(
        sample_jobs.say, "hello", retry=rqjobs.Retry(max=4), meta={"done": 3, "total": 12}
    )
    redis.hset(job.key, "rqjobs_crashes", "1700000000,1700000001")
    html = state_of(client, job.id)["html"]
    assert (
        '<progress value="3" max="12"' in html
        and "died 2 times" in html
        and "<dt>Retries left</dt><dd>4" in html
    )
    for done, total in (("3", 12), (True, 2), (5, 0), (9, 1)):
        job.meta = {"done": done, "total": total}
        job.save_meta()
        assert "<progress" not in state_of(client, job.id)["html"]


def test_missing_jobs_and_pages_are_a_404(client):
    for path in (
        "/jobs/gone",
        "/jobs/gone/state",
        "/jobs/%00",
        "/jobs/a%20b",
        "/jobs/" + "x" * 300,
        "/nowhere",
    ):
        reply = client.get(path)
        assert reply.status_code == 404 and "Not found" in reply.text
    assert client.post("/jobs/gone/delete").status_code == 404
    assert client.post("/jobs/gone/explode").status_code == 404


@pytest.mark.parametrize(
    "field, value",
    [
        ("created_at", "yesterday"),
        ("status", "<b>odd</b>"),
        ("origin", b"\xff\xfe"),
        ("timeout", "soon"),
    ],
)
def test_an_unreadable_job_is_shown_and_can_be_deleted(client, redis, field, value):
    job = job_in("failed", redis)
    redis.hset(job.key, field, value)
    page = client.get(f"/jobs/{job.id}")
    assert (
        page.status_code == 200
        and "cannot be read" in page.text
        and buttons(page.text) == ["delete"]
    )
    harmless(page.text)
    assert job.id in client.get("/jobs?state=failed").text
    assert client.get("/").status_code == 200
    assert "Nothing was done" in client.get(client.post(f"/jobs/{job.id}/requeue").location).text
    client.post(f"/jobs/{job.id}/delete")
    assert not redis.exists(job.key) and not redis.zcard("rq:failed:default")


@pytest.mark.parametrize(
    "field, value",
    [
        ("description", b"\xff\xfe"),
        ("dependency_ids", "5"),
        ("dependency_ids", '["", null, 3]'),
        ("dependency_ids", '{"a": 1}'),
        ("meta", "[" * 5000),
        ("meta", "[1, 2]"),
        ("meta", "null"),
        ("exc_info", b"\xff"),
        ("data", "[1]"),
        ("webhooks", "{"),
        ("origin", ""),
        ("rqjobs_crashes", ","),
        ("created_at", "9999-12-31T23:59:59.999999Z"),
        ("started_at", "0001-01-01T00:00:00.0Z"),
    ],
)
def test_malformed_fields_break_no_page(client, redis, field, value):
    job = job_in("failed", redis)
    redis.hset(job.key, field, value)
    redis.zadd("rq:scheduled:default", {job.id: "-inf"})
    for path in (
        "/",
        "/failed",
        f"/jobs/{job.id}",
        f"/jobs/{job.id}/state",
        f"/rq/0/view/job/{job.id}",
    ):
        assert client.get(path).status_code == 200, path


@pytest.mark.parametrize(
    "payload", [{"type": 99}, {}, {"type": 2, "exc_string": "x"}, {"type": 1, "return_value": "x"}]
)
def test_malformed_results_break_no_page(client, redis, payload):
    job = job_in("finished", redis)
    redis.xadd(Result.get_key(job.id), payload or {"x": "y"})
    assert "cannot be read" in client.get(f"/jobs/{job.id}").text


def test_a_job_key_of_another_type_is_unreadable(client, redis):
    redis.set("rq:job:text", "no hash")
    assert "cannot be read" in client.get("/jobs/text").text


def test_pickles_are_shown_as_unreadable(client, redis):
    import pickle
    import zlib

    class Bomb:
        def __reduce__(self):
            return exec, ("import rqjobs; rqjobs.exploded = True",)

    job = job_in("finished", redis)
    bomb = pickle.dumps(Bomb())
    redis.hset(job.key, mapping={"data": zlib.compress(bomb), "meta": bomb, "result": bomb})
    redis.delete(Result.get_key(job.id))
    redis.xadd(
        Result.get_key(job.id), {"type": 1, "return_value": __import__("base64").b64encode(bomb)}
    )
    for path in (
        "/",
        f"/jobs/{job.id}",
        f"/jobs/{job.id}/state",
        "/rq/",
        f"/rq/0/view/job/{job.id}",
        f"/rq/0/data/job/{job.id}.json",
    ):
        assert client.get(path).status_code == 200, path
    assert "cannot be read" in client.get(f"/jobs/{job.id}").text
    assert not hasattr(rqjobs, "exploded")


def test_all_data_of_a_job_is_escaped(client, redis):
    def hostile(function, *args):
        return rqjobs.enqueue(function, *args, description=HOSTILE, meta={HOSTILE: [HOSTILE]})

    jobs = [
        hostile(sample_jobs.say, HOSTILE),
        hostile(sample_jobs.boom, HOSTILE),
        hostile(sample_jobs.ok, {HOSTILE: HOSTILE}),
    ]
    run_all(redis)
    waiting = hostile(sample_jobs.say, HOSTILE)
    odd = hostile(sample_jobs.say, HOSTILE)
    odd.func_name = HOSTILE
    odd.args, odd.kwargs = [HOSTILE], {HOSTILE: HOSTILE}
    odd.save()
    redis.hset(
        odd.key,
        mapping={"worker_name": HOSTILE, "dependency_ids": '["<img src=x>"]', "origin": HOSTILE},
    )
    redis.sadd("rq:queues", f"rq:queue:{HOSTILE}")
    redis.rpush(f"rq:queue:{HOSTILE}", odd.id)
    redis.sadd("rq:workers", f"rq:worker:{HOSTILE}")
    redis.hset(
        f"rq:worker:{HOSTILE}",
        mapping={
            "state": HOSTILE,
            "queues": HOSTILE,
            "current_job": HOSTILE,
            "hostname": HOSTILE,
            "pid": HOSTILE,
        },
    )
    for path in (
        "/",
        "/live",
        "/jobs?state=failed",
        "/workers",
        *(f"/jobs/{job.id}" for job in [*jobs, waiting, odd]),
    ):
        reply = client.get(path)
        assert reply.status_code == 200 and ESCAPED in reply.text, path
        harmless(reply.text)
    for job in [*jobs, waiting, odd]:
        harmless(state_of(client, job.id)["html"])


def test_big_results_are_cut(client, redis):
    job = rqjobs.enqueue(sample_jobs.say, "x" * 200_000)
    run_all(redis)
    page = client.get(f"/jobs/{job.id}").text
    assert "180,000 more characters" in page and len(page) < 100_000


@pytest.mark.parametrize("field", ["origin", "worker_name", "created_at", "status"])
def test_long_fields_are_cut(client, redis, field):
    job = rqjobs.enqueue(sample_jobs.say, "x")
    redis.hset(job.key, field, "x" * 1_000_000)
    redis.zadd("rq:failed:default", {job.id: 1})
    for path in (
        "/",
        f"/jobs/{job.id}",
        f"/jobs/{job.id}/state",
        "/failed",
        f"/rq/0/data/job/{job.id}.json",
        "/rq/0/data/jobs/default/failed/8/asc/1.json",
    ):
        reply = client.get(path)
        assert reply.status_code == 200 and len(reply.data) < 100_000, path


# Failed jobs, workers, health


def test_an_action_returns_to_the_list_of_its_button(client, redis):
    delayed = rqjobs.enqueue_in(500, sample_jobs.ok)
    assert client.post(
        f"/jobs/{delayed.id}/cancel", data={"back": "jobs", "view": "state=scheduled&next=//evil"}
    ).location == ("/jobs?state=scheduled")
    assert (
        client.post(f"/jobs/{delayed.id}/cancel", data={"back": "//evil.example"}).location
        == f"/jobs/{delayed.id}"
    )


@pytest.mark.parametrize("length", [201, 255])
def test_long_ids_have_a_page(client, redis, length):
    job = rqjobs.enqueue(sample_jobs.ok, job_id="i" * length)
    assert client.get(f"/jobs/{job.id}").status_code == 200
    assert client.post(f"/jobs/{job.id}/cancel").location == f"/jobs/{job.id}"
    assert client.get("/jobs/" + "i" * 256).status_code == 404


def test_workers_are_listed(client, redis, worker):
    process = worker("high", "low")
    page = client.get("/workers").text
    assert process.name in page and "high, low" in page and str(process.pid) in page


@pytest.fixture
def no_redis(app):
    """Redis does not answer."""
    config.use(redis_url="redis://user:s3cret-password@127.0.0.1:1/0")


@pytest.fixture
def full(redis):
    """Redis has no free memory and refuses writes."""
    redis.config_set("maxmemory", "1")
    yield redis
    redis.config_set("maxmemory", "0")


def test_a_full_redis_allows_login_and_is_reported(client, anonymous, redis, full):
    assert "Redis is full" in client.get("/").text
    redis.config_set("maxmemory", "0")
    job = rqjobs.enqueue_in(500, sample_jobs.say, "later")
    redis.config_set("maxmemory", "1")
    assert log_in(anonymous, password="wrong").status_code == 401
    assert redis.get("rqjobs:login:127.0.0.1") == b"1", "wrong passwords count all the same"
    assert log_in(anonymous).status_code == 303
    for path in (
        "/",
        "/live",
        "/failed",
        "/workers",
        "/schedules",
        "/jobs",
        "/jobs?state=scheduled",
        f"/jobs/{job.id}",
    ):
        reply = anonymous.get(path)
        assert reply.status_code == 200 and reply.text.count("Redis is full") == 1, path
    reply = anonymous.post(
        "/jobs", data={"function": "sample_jobs.ok", "queue": "low"}, headers=OURS
    )
    assert (
        reply.status_code == 503
        and "Redis refuses this" in reply.text
        and "does not answer" not in reply.text
    )
    anonymous.post("/logout", headers=OURS)
    assert anonymous.get("/").status_code == 401


def test_every_page_reports_suspended_workers(client, redis):
    assert "suspended" not in client.get("/").text
    redis.set("rq:suspended", 1)
    assert "<bdi>RQ is suspended</bdi>" in client.get("/").text
    assert 'aria-label="Resume workers"' in client.get("/live").text
    for path in ("/failed", "/workers", "/schedules", "/jobs"):
        assert (
            client.get(path).text.count(
                "RQ is suspended: no worker begins a job until <code>rq resume</code>"
            )
            == 1
        ), path


def test_healthz(anonymous):
    reply = anonymous.get("/healthz")
    assert (reply.status_code, reply.text) == (200, "ok\n")


def test_pages_without_redis_are_a_503(client, anonymous, no_redis):
    reply = anonymous.get("/healthz")
    assert reply.status_code == 503 and reply.text.count("\n") == 1 and "127.0.0.1:1" in reply.text
    for path in (
        "/",
        "/live",
        "/failed",
        "/workers",
        "/jobs/x",
        "/jobs/x/state",
        "/?function=sample_jobs.add",
    ):
        page = client.get(path)
        assert (
            page.status_code == 503
            and "Redis does not answer" in page.text
            and "127.0.0.1:1" in page.text
        ), path
        assert "Traceback" not in page.text and "s3cret" not in page.text
        assert 'aria-label="Pages"' in page.text, "the navigation stays"
    assert (
        client.post("/jobs", data={"function": "sample_jobs.ok", "queue": "low"}).status_code == 503
    )
    assert client.get("/rq/").status_code == 503


def test_without_configured_redis_the_page_names_the_setting(
    client, anonymous, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config.use(redis_url=None)
    assert "set REDIS_URL" in anonymous.get("/healthz").text
    assert "set REDIS_URL" in client.get("/").text


def test_requeue_is_one_atomic_step(client, redis):
    """RQ requeues in three steps: a crash between them lost the job."""
    job = job_in("failed", redis)
    redis.hset(job.key, "rqjobs_crashes", "1")
    client.post(f"/jobs/{job.id}/requeue")
    assert (
        not redis.hexists(job.key, "rqjobs_crashes")
        and redis.zscore("rq:failed:default", job.id) is None
    )
