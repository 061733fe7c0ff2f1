"""Requests of other sites and of other machines are refused; the headers of the answers."""

from __future__ import annotations

import http.client
import re
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

import pytest
import sample_jobs
from browser_client import HOSTILE, OURS, PASSWORD, every_call, harmless, log_in, run_all
from ports import free_port
from werkzeug.middleware.proxy_fix import ProxyFix

import rqjobs
from rqjobs import config
from rqjobs.web import create_app


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

    def has_restarted():
        shop.touch()  # the reloader may not have known the file before it was replaced
        return get("/version") == "2"

    eventually(has_restarted, what="the next process")
    eventually(lambda: "Enqueue" in get("/jobs/"), what="the page, still logged in")
    eventually(lambda: get("/jobs/login"))
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


@pytest.mark.parametrize(
    "prefix", ["//evil.example", "/\\evil.example", "https://evil.example", "x"]
)
def test_a_prefix_that_is_an_address_is_refused(app, client, prefix):
    """It came with X-Forwarded-Prefix, and redirects and forms led to another site."""
    app.wsgi_app = ProxyFix(app.wsgi_app, x_prefix=1)
    headers = {"X-Forwarded-Prefix": prefix, "Accept": "text/html"}
    for path in ("/login", "/", "/nowhere", "/assets/rqjobs.css", "/rq/", "/api/jobs"):
        reply = client.get(path, headers=headers)
        assert reply.status_code == 400 and "is not a path" in reply.text, path
        assert "evil.example" not in reply.text + str(reply.headers)
    assert client.get("/login", headers={"X-Forwarded-Prefix": "/jobs/"}).status_code == 200
