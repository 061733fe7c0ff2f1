"""A Django project in one file, whose module opens a connection when it is imported, and jobs that use the database."""

import os
import sqlite3

import django
from django.conf import settings
from django.db import connection, connections, models, transaction
from django.db.backends.sqlite3.base import DatabaseWrapper

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ["ROWS"],
            "CONN_MAX_AGE": None,
        }
    }
)
django.setup()


class Row(models.Model):
    name = models.CharField(max_length=20)

    class Meta:
        app_label = "rows"


def _is_usable(wrapper) -> bool:
    """As with PostgreSQL and MySQL; SQLite's connections are taken for usable whatever they are."""
    try:
        wrapper.connection.execute("SELECT 1")
    except sqlite3.Error:
        return False
    return True


DatabaseWrapper.is_usable = _is_usable
with connection.cursor() as _cursor:
    _cursor.execute(
        "CREATE TABLE IF NOT EXISTS rows_row (id integer PRIMARY KEY, name varchar(20))"
    )
_opened = connection.connection
DatabaseWrapper._connection_pools = {
    "default": object()
}  # as PostgreSQL's have, with the option "pool"


def pools() -> int:
    """How many pools of connections, which threads of the parent keep up, are there after the fork."""
    return len(DatabaseWrapper._connection_pools)


def add(name: str) -> bool:
    """Add a row; returns whether the connection is the one that was opened at import."""
    Row.objects.create(name=name)
    return connection.connection is _opened


def count() -> int:
    return Row.objects.count()


def lose():
    """The server has closed the connection, and the job fails at that."""
    connections["default"].ensure_connection()
    connection.connection.close()
    Row.objects.count()


def leave():
    """End in the middle of a transaction, as when the time limit comes while one ends."""
    transaction.atomic().__enter__()
    Row.objects.create(name="left")
