"""Fixtures of the admin pages: the app, and clients with and without a login."""

from __future__ import annotations

import pytest
from api_client import TOKENS
from browser_client import PASSWORD, Client, log_in

from rqjobs import config, connection
from rqjobs.web import create_app


@pytest.fixture
def app(settings):
    tokens = config.SETTINGS["RQJOBS_API_TOKEN"][1](TOKENS)
    config.use(admin_password=PASSWORD, secret_key="k" * 32, api_tokens=tokens)
    app = create_app()
    app.testing = True
    app.test_client_class = Client
    return app


@pytest.fixture
def anonymous(app):
    return app.test_client()


@pytest.fixture
def client(app):
    """A client that is logged in."""
    client = app.test_client()
    assert log_in(client).status_code == 303
    client.environ_base["HTTP_SEC_FETCH_SITE"] = "same-origin"
    return client


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder."""
    monkeypatch.setattr(connection, "DATA_FOLDER", tmp_path / "home" / ".rqjobs")
    (tmp_path / "home").mkdir()
    return connection.DATA_FOLDER


@pytest.fixture
def no_redis(app):
    """Redis does not answer."""
    config.use(redis_url="redis://user:s3cret-password@127.0.0.1:1/0")
