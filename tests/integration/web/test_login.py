"""The login: passwords, sessions, pauses after wrong passwords, and the generated secrets."""

from __future__ import annotations

import re
import sys

import pytest
import sample_jobs
from browser_client import GATES, OURS, PASSWORD, cookies, every_call, log_in
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

import rqjobs
from rqjobs import config
from rqjobs.generated_secrets import generated_secret
from rqjobs.web import create_app, init_app
from rqjobs.web.auth import is_local_path


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


def test_two_installations_below_prefixes_of_one_host_keep_their_logins(settings, redis):
    """The cookie was for the whole host, so a login to the one ended that to the other."""
    config.use(admin_password=PASSWORD)
    ours, theirs = create_app(), create_app()
    ours.secret_key, theirs.secret_key = "a" * 32, "b" * 32
    client = Client(DispatcherMiddleware(Flask("host"), {"/ops/jobs": ours, "/dev/jobs": theirs}))
    prefixes = ("/ops/jobs", "/dev/jobs")
    for prefix in prefixes:
        reply = log_in(client, path=f"{prefix}/login")
        (cookie,) = cookies(reply)
        assert f"Path={prefix};" in cookie
    assert [client.get(f"{prefix}/").status_code for prefix in prefixes] == [200, 200]
    client.post("/ops/jobs/logout", headers=OURS)
    assert [client.get(f"{prefix}/").status_code for prefix in prefixes] == [401, 200]


def test_two_installations_on_two_ports_of_one_host_keep_their_logins(settings, redis):
    """Browsers send the cookies of a host to all of its ports."""
    config.use(admin_password=PASSWORD)
    jar = {}
    clients = {}
    for port, key in ((5000, "a"), (5001, "b")):
        app = create_app()
        app.secret_key = key * 32
        clients[port] = app.test_client()
        for name, value in jar.items():
            clients[port].set_cookie(name, value)
        reply = log_in(clients[port], base_url=f"http://localhost:{port}")
        lines = reply.headers.getlist("Set-Cookie")
        jar |= dict(line.partition(";")[0].split("=", 1) for line in lines)
    assert len(jar) == 4
    for port, client in clients.items():
        for name, value in jar.items():
            client.set_cookie(name, value)
        assert client.get("/", base_url=f"http://localhost:{port}").status_code == 200
    assert clients[5000].get("/", base_url="http://localhost:5001").status_code == 401


def test_the_cookie_of_another_application_keeps_its_path(settings):
    config.use(admin_password=PASSWORD)
    host = Flask("host")
    host.secret_key = "k" * 32
    init_app(host, url_prefix="/jobs")
    (cookie,) = cookies(log_in(host.test_client(), path="/jobs/login"))
    assert "Path=/" in cookie.split("; ")


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
