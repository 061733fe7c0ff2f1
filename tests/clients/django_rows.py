"""A Django project in one file, with jobs that use its database.

The module opens a database connection when it is imported.
"""

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
    """The check of PostgreSQL and MySQL; for SQLite, Django considers every connection usable."""
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
# PostgreSQL's connections have pools, with the option "pool".
DatabaseWrapper._connection_pools = {"default": object()}


def pools() -> int:
    """The number of connection pools after the fork; the threads of a pool stay in the parent."""
    return len(DatabaseWrapper._connection_pools)


def add(name: str) -> bool:
    """Add a row; returns whether the connection was opened at import."""
    Row.objects.create(name=name)
    return connection.connection is _opened


def count() -> int:
    return Row.objects.count()


def lose():
    """Fail, because the connection is closed."""
    connections["default"].ensure_connection()
    connection.connection.close()
    Row.objects.count()


def leave():
    """End in the middle of a transaction, as a job does whose timeout interrupts a commit."""
    transaction.atomic().__enter__()
    Row.objects.create(name="left")
