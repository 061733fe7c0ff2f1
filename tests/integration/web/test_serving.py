"""Gunicorn with our settings, nginx with common settings, and slow clients."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import socket
import threading
from pathlib import Path
from urllib.parse import urlencode

import pytest
from ports import free_port

PASSWORD = "correct horse"
LOGIN = urlencode({"user": "admin", "password": PASSWORD})
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def ask(port, method, path, body=None, **headers):
    """The status, the Location and the text of a response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(
            method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        reply = connection.getresponse()
        cookies = "; ".join(
            line.partition(";")[0] for line in reply.headers.get_all("Set-Cookie", [])
        )
        return reply.status, reply.headers.get("Location"), reply.read().decode(), cookies
    finally:
        connection.close()


@pytest.fixture
def serve(gunicorn):
    """Start gunicorn with a password, and with these options; returns its port."""

    def start(*options, **given):
        return gunicorn(*options, **{"RQJOBS_ADMIN_PASSWORD": PASSWORD, **given}).port

    return start


@pytest.fixture
def nginx(spawn, tmp_path, eventually):
    """Start nginx with a server for each `location`; returns their ports."""
    binary = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if not binary:
        (pytest.fail if os.environ.get("CI_BROWSER") == "1" else pytest.skip)(
            "no nginx on this machine"
        )

    def start(*locations):
        home = tmp_path / "nginx"
        home.mkdir()
        ports = [free_port() for _ in locations]
        servers = "\n".join(
            f"server {{ listen 127.0.0.1:{port}; {location} }}"
            for port, location in zip(ports, locations, strict=True)
        )
        places = " ".join(
            f"{name}_temp_path {home}/{name};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (home / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {home}/pid; error_log {home}/log;\n"
            f"events {{}} http {{ access_log off; {places}\n{servers}\n}}\n"
        )
        process = spawn(
            binary, "-p", str(home), "-e", str(home / "log"), "-c", str(home / "nginx.conf")
        )

        def listens():
            assert process.poll() is None, process.output() + (home / "log").read_text()
            try:
                for port in ports:
                    socket.create_connection(("127.0.0.1", port), 5).close()
            except OSError:
                return False
            return True

        eventually(listens, what="nginx")
        return ports

    return start


DOCS = (Path(__file__).parents[3] / "docs" / "deploying.md").read_text(encoding="utf-8")


@pytest.fixture
def wsgi(serve, tmp_path):
    """The port at which the wsgi.py of the docs is served."""
    (program,) = re.findall("```python\n(.*?)```", DOCS, re.S)
    (tmp_path / "wsgi.py").write_text(program)
    return serve(
        app="wsgi:app",
        PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[3]}:{Path(__file__).parents[2]}",
    )


def test_the_documented_proxy_settings_prevent_forged_addresses(wsgi, nginx):
    """Without one header, each wrong password seemed to come from another address."""
    (location,) = re.findall("^location /jobs/ {.*?^}", DOCS, re.S | re.M)
    (outside,) = nginx(location.replace("127.0.0.1:8000", f"127.0.0.1:{wsgi}"))
    tries = [
        ask(
            outside,
            "POST",
            "/jobs/login",
            "user=admin&password=wrong",
            Origin=f"http://127.0.0.1:{outside}",
            X_Forwarded_For=f"10.0.0.{number}",
            **FORM,
        )[0]
        for number in range(8)  # a pause may be over before the next try
    ]
    assert tries[0] == 401 and 429 in tries


def test_the_documented_proxy_settings_prevent_forged_prefixes(wsgi, nginx):
    """The example without a prefix passed on the client's: the form of the login led elsewhere."""
    location = re.search("^    location / {.*?^    }", DOCS, re.S | re.M)[0]
    (outside,) = nginx(location.replace("127.0.0.1:8000", f"127.0.0.1:{wsgi}"))
    for forged in ("//evil.example", "/elsewhere"):
        status, _, text, _ = ask(outside, "GET", "/login", X_Forwarded_Prefix=forged)
        assert status == 200 and 'action="/login"' in text


def test_behind_nginx_login_works_or_names_the_missing_header(serve, nginx, wsgi):
    port, below = wsgi, serve(SCRIPT_NAME="/admin/jobs")
    target, header = f"proxy_pass http://127.0.0.1:{port}", "proxy_set_header"
    bare, named, right, prefix, script = nginx(
        f"location / {{ {target}; }}",
        f"location / {{ {target}; {header} Host $host; }}",
        f"location / {{ {target}; {header} Host $http_host; }}",
        f"location /jobs/ {{ {target}/; {header} Host $http_host; {header} X-Forwarded-Prefix /jobs; }}",
        f"location /admin/jobs {{ proxy_pass http://127.0.0.1:{below}; {header} Host $http_host; }}",
    )
    for outside, asked in ((bare, f"127.0.0.1:{port}"), (named, "127.0.0.1")):
        status, _, text, _ = ask(
            outside, "POST", "/login", LOGIN, Origin=f"http://127.0.0.1:{outside}", **FORM
        )
        assert status == 403 and "proxy_set_header Host $http_host;" in text
        assert f"from a page of 127.0.0.1:{outside} " in text and f"called as {asked} " in text
        status, _, _, _ = ask(
            outside, "POST", "/login", LOGIN, Sec_Fetch_Site="same-origin", **FORM
        )
        assert status == 303, "over https a browser says it by itself"
    for outside, root in ((right, ""), (prefix, "/jobs"), (script, "/admin/jobs")):
        status, location, _, _ = ask(outside, "GET", f"{root}/failed?page=2", Accept="text/html")
        assert (status, location) == (303, f"{root}/login?next=/failed?page%3D2")
        status, location, _, cookies = ask(
            outside,
            "POST",
            f"{root}/login",
            LOGIN + "&next=/failed?page%3D2",
            Origin=f"http://127.0.0.1:{outside}",
            **FORM,
        )
        assert (status, location) == (303, f"{root}/failed?page=2")
        status, _, text, _ = ask(outside, "GET", f"{root}/", Cookie=cookies)
        assert (
            status == 200 and f'href="{root}/failed"' in text and f'data-live="{root}/live"' in text
        )
        status, _, text, _ = ask(outside, "GET", f"{root}/rq/", Cookie=cookies)
        assert status == 200 and f"{root}/rq/" in text


def test_without_a_password_requests_through_nginx_are_refused(serve, nginx):
    port = serve(RQJOBS_ADMIN_PASSWORD="")
    (outside,) = nginx(f"location / {{ proxy_pass http://127.0.0.1:{port}; }}")
    assert ask(port, "GET", "/login")[0] == 200
    for path in ("/login", "/", "/healthz"):
        status, _, text, _ = ask(outside, "GET", path)
        assert status == 403 and "Only this machine is served" in text


@pytest.mark.parametrize("sent", [b"", b"Origin: http://127.0.0.1\r\nContent-Length: 9999\r\n\r\n"])
def test_slow_clients_do_not_block_the_server(serve, tmp_path, eventually, sent):
    """Eight clients that sent a byte a second occupied all threads without end."""
    (tmp_path / "quick.py").write_text(
        "from rqjobs.web import gunicorn_worker as _times\nfrom rqjobs.web.gunicorn_config import *\n"
        "_times.HEAD_SECONDS = _times.REQUEST_SECONDS = 2\n"
    )
    port = serve("--threads", "2", config=str(tmp_path / "quick.py"))
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
    for one in slow:
        one.sendall(b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\n" + sent)
    served = threading.Event()

    def trickle():
        while slow and not served.wait(0.1):
            for one in list(slow):
                try:
                    one.send(b"x")
                except OSError:
                    slow.remove(one)
                    one.close()

    def served_too():
        with contextlib.suppress(
            OSError, http.client.HTTPException
        ):  # two seconds may be too short on a busy machine
            return ask(port, "GET", "/login")[0] == 200

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        eventually(served_too, timeout=60, what="the login form")
    finally:
        served.set()
        thread.join()
        for one in slow:
            one.close()
