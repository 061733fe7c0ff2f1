"""The generated password, and the links that log in once."""

from __future__ import annotations

import re

import pytest
from browser_client import OURS, Client, log_in
from flask import Flask

from rqjobs import config, connection, generated_secrets
from rqjobs.broker import activity, logins
from rqjobs.web import create_app, init_app


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder."""
    monkeypatch.setattr(connection, "DATA_FOLDER", tmp_path / ".rqjobs")
    return connection.DATA_FOLDER


def client_of(app):
    app.test_client_class = Client
    return app.test_client()


def use(client, token, **data):
    return client.post("/login", data={"link": token, **data}, headers=OURS)


def test_a_link_logs_in_once(settings, folder, redis, capsys):
    app = create_app()
    client, other = client_of(app), client_of(app)
    client.get("/login")
    printed = capsys.readouterr().err
    token = re.search(r"open once, within 15 minutes: http://localhost/login#(\S+)", printed)[1]
    assert token not in repr([redis.keys("*"), redis.get("rqjobs:login-link:*")])
    reply = use(client, token, next="/failed")
    assert (reply.status_code, reply.location) == (303, "/failed")
    assert client.get("/").status_code == 200
    reply = use(other, token)
    assert reply.status_code == 401 and "used already, or it has expired" in reply.text
    assert other.get("/").status_code != 200
    wrong, login = activity.read(redis).entries
    assert (wrong.action, login.action) == ("wrong password", "log in")
    assert login.note == "by a login link"


def test_a_link_works_in_an_application_with_a_secret_key_of_its_own(settings, folder, redis):
    app = Flask("host")
    app.secret_key = "the key of the application"
    init_app(app)
    token = logins.create_link(redis, generated_secrets.secret_key())
    client = client_of(app)
    assert use(client, token).status_code == 303 and client.get("/").status_code == 200


def test_a_link_expires_and_needs_the_secret_key(settings, folder, redis):
    key = generated_secrets.secret_key()
    token = logins.create_link(redis, key)
    (stored,) = redis.keys("rqjobs:login-link:*")
    assert 0 < redis.ttl(stored) <= logins.LINK_SECONDS
    assert not logins.use_link(redis, token, "another key of 16 characters")
    assert not logins.use_link(redis, "\ud800\0", key)
    assert logins.use_link(redis, token, key) and not logins.use_link(redis, token, key)


@pytest.mark.parametrize("token", ["x", "\0", "x" * 100_000])
def test_a_wrong_link_is_a_401(settings, folder, token):
    assert use(client_of(create_app()), token).status_code == 401


def test_a_link_of_another_site_is_refused(settings, folder, redis):
    token = logins.create_link(redis, generated_secrets.secret_key())
    client = client_of(create_app())
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert client.post("/login", data={"link": token}, headers=headers).status_code == 403


def test_the_password_is_the_same_at_each_start(settings, folder):
    password = generated_secrets.admin_password()
    assert (folder / "admin-password").stat().st_mode & 0o777 == 0o600
    for _ in range(2):
        assert log_in(client_of(create_app()), password=password).status_code == 303
    config.use(one_time_password="another password")
    assert log_in(client_of(create_app()), password=password).status_code == 401
