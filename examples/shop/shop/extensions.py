"""The extensions. They get their app in `create_app`, so other modules import them from here."""

from __future__ import annotations

import rqjobs
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
jobs = rqjobs.Jobs(pages="/jobs")  # the admin pages are at /jobs/
