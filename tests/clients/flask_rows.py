"""Jobs with Flask-SQLAlchemy. The module uses the engine when it is imported."""

import os

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

app = Flask("shop")
app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{os.environ['ROWS']}"
db = SQLAlchemy(app)


class Row(db.Model):
    name: Mapped[str] = mapped_column(primary_key=True)


with app.app_context():
    db.create_all()
    _pool = db.engine.pool


def add(name: str) -> bool:
    """Add a row; returns whether the connection pool is the one from before the fork."""
    db.session.add(Row(name=name))
    db.session.commit()
    return db.engine.pool is _pool
