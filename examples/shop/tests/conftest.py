from __future__ import annotations

import pytest

from shop import create_app
from shop.extensions import db


@pytest.fixture
def app(tmp_path, monkeypatch):
    # In the environment, so that the worker of `jobs_redis` has them too.
    monkeypatch.setenv("FLASK_SQLALCHEMY_DATABASE_URI", f"sqlite:///{tmp_path}/test.sqlite")
    monkeypatch.setenv("RQJOBS_FLASK_APP", "shop:create_app")
    app = create_app(TESTING=True)
    with app.app_context():
        db.create_all()
    return app


@pytest.fixture
def client(app):
    return app.test_client()
