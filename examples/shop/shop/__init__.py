"""A small shop: orders in a database, and jobs that take the money and send the receipts."""

from __future__ import annotations

from typing import Any

from flask import Flask

from shop import pages
from shop.extensions import db, jobs


def create_app(**settings: Any) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(
        SQLALCHEMY_DATABASE_URI="sqlite:///shop.sqlite",  # in the folder instance/
        RQJOBS_MODULES="shop.tasks",
    )
    app.config.from_prefixed_env()  # FLASK_SQLALCHEMY_DATABASE_URI and others
    app.config.update(settings)
    app.logger.setLevel("INFO")
    db.init_app(app)
    jobs.init_app(app)
    app.register_blueprint(pages.blueprint)
    app.cli.command("init-db")(db.create_all)
    return app
