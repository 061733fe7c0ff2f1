"""A Flask app with a factory, `rqjobs.Jobs` and Flask-SQLAlchemy. Making it opens a connection."""

import os

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

import rqjobs

db = SQLAlchemy()
jobs = rqjobs.Jobs()
pools = []  # of the engines, from before the fork


class Row(db.Model):
    name: Mapped[str] = mapped_column(primary_key=True)


def create_app() -> Flask:
    app = Flask("shop")
    app.config.update(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{os.environ['ROWS']}", RQJOBS_MODULES="flask_factory"
    )
    db.init_app(app)
    jobs.init_app(app)
    with app.app_context():
        db.create_all()
        pools.append(db.engine.pool)
    return app


@jobs.job
def add(name: str, commit: bool = True) -> bool:
    """Add a row; returns whether the connection pool is one from before the fork."""
    db.session.add(Row(name=name))
    db.session.flush()
    if commit:
        db.session.commit()
    return db.engine.pool in pools


@jobs.job
def names() -> list[str]:
    return list(db.session.scalars(db.select(Row.name).order_by(Row.name)))
