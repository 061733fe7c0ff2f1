"""Executors and database connections that horses inherit at the fork and must not share.

They are those of the standard library, Django and SQLAlchemy (and so of Flask-SQLAlchemy), if these
are loaded. A horse drops inherited connections without closing them: closing would end the session
on the server, which other processes share. Between jobs a horse resets its own connections.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
from typing import Any

log = logging.getLogger("rqjobs")
CLASS_BY_MODULE = {  # of the objects to find
    "concurrent.futures.process": "ProcessPoolExecutor",
    "sqlalchemy.engine": "Engine",
    "sqlalchemy.engine.base": "Connection",
    "sqlalchemy.orm": "scoped_session",
}
_kept: list[Any] = []  # inherited objects, because the garbage collector would close them


class InheritedResources:
    """The objects that the modules of jobs have made before the fork.

    The parent finds them once. A search through all objects in a horse would copy its whole memory.
    """

    def __init__(self) -> None:
        modules = {name: sys.modules[name] for name in CLASS_BY_MODULE if name in sys.modules}
        classes = tuple(getattr(module, CLASS_BY_MODULE[name]) for name, module in modules.items())
        self.objects: list[Any] = []
        if classes:
            self.objects = [item for item in gc.get_objects() if issubclass(type(item), classes)]
        self.connections = self.objects_of("sqlalchemy.engine.base")
        self.sessions = self.objects_of("sqlalchemy.orm")

    def objects_of(self, module: str) -> list[Any]:
        """The objects of the class in `module`."""
        kind = getattr(sys.modules.get(module), CLASS_BY_MODULE[module], ())
        return [item for item in self.objects if isinstance(item, kind)]

    def renew(self) -> None:
        """In a new horse: drop inherited connections, so that their next use makes new ones."""
        for executor in self.objects_of("concurrent.futures.process"):
            with _logged("an executor"):
                _renew_executor(executor)
        for engine in self.objects_of("sqlalchemy.engine"):
            with _logged("an SQLAlchemy engine"):
                _kept.append(engine.pool)
                engine.dispose(close=False)
        for connection in self.connections:
            with _logged("an SQLAlchemy connection"):
                _renew_connection(connection)
        for session in _all_sessions():
            with _logged("an SQLAlchemy session"):
                _renew_session(session)
        with _logged("Django's connections"):
            _renew_django()

    def reset(self) -> None:
        """Between two jobs: end transactions that a job has left broken or unfinished."""
        if "django.db" not in sys.modules and "sqlalchemy" not in sys.modules:
            return
        with _logged("Django's connections"):
            _reset_django()
        for session in self.sessions:
            with _logged("an SQLAlchemy session"):
                if _in_transaction(session):
                    session.rollback()
        for item in self.connections + _all_sessions():
            with _logged("an SQLAlchemy connection or session"):
                if _is_broken(item):
                    item.get_transaction().rollback()


def _all_sessions() -> list[Any]:
    """Every SQLAlchemy session of this process, as `close_all_sessions` closes them."""
    module = sys.modules.get("sqlalchemy.orm.session")
    if module is None:
        return []
    return list(module._sessions.values())


def close_async_engines(loop: Any) -> None:
    """Close the connections in the pools of SQLAlchemy's async engines, before `loop` ends.

    They belong to this loop and would break in the loop of the next job.
    """
    base: Any = sys.modules.get("sqlalchemy.ext.asyncio.base")
    if base is None:
        return
    for reference in list(base.ReversibleProxy._proxy_objects.values()):
        engine = reference()
        if isinstance(engine, sys.modules["sqlalchemy.ext.asyncio"].AsyncEngine):
            with _logged("an SQLAlchemy engine"):
                loop.run_until_complete(engine.dispose())


def _is_broken(item: Any) -> bool:
    """Whether a connection or a session refuses all commands until a rollback."""
    transaction = item.get_transaction()
    if transaction is None:
        return False
    connections = getattr(transaction, "_connections", None)  # of a session
    if connections is None:
        return bool(item.invalidated)
    return not item.is_active or any(entry[0].invalidated for entry in connections.values())


def _renew_connection(connection: Any) -> None:
    """Make a connection take another one from its engine's pool, as after a disconnect."""
    if connection._dbapi_connection is not None:
        _kept.append(connection._dbapi_connection)
        connection._dbapi_connection = None
        connection._transaction = None
        connection._nested_transaction = None


def _renew_session(session: Any) -> None:
    """Drop a session's transaction and its unsent changes."""
    transaction = session.get_transaction()
    if transaction is not None:
        _kept.append(transaction)
        session._transaction = None
        session._nested_transaction = None
        for row in list(session.new):
            session.expunge(row)
        session.expire_all()


def _in_transaction(session: Any) -> bool:
    """Whether a `scoped_session` has a session here, and this is in a transaction.

    Flask-SQLAlchemy's has a session only in an app context, and Flask removes it at the end of
    that.
    """
    try:
        return session.registry.has() and session().in_transaction()
    except RuntimeError:
        return False


def _django() -> Any:
    """Django's connections; None if Django is not loaded or not configured."""
    module = sys.modules.get("django.db")
    if module is None or not sys.modules["django.conf"].settings.configured:
        return None
    return module.connections


def _renew_django() -> None:
    connections = _django()
    if not connections:
        return
    for connection in connections.all(initialized_only=True):
        pools = getattr(connection, "_connection_pools", {})  # of PostgreSQL, since Django 5.1
        _kept.append(pools.copy())
        pools.clear()
        if not _in_memory(connection):
            _kept.append(connection)
            del connections[connection.alias]


def _reset_django() -> None:
    connections = _django()
    if not connections:
        return
    sys.modules["django.db"].close_old_connections()
    for connection in connections.all(initialized_only=True):
        # A job has left its transaction open, and no code ends it.
        if connection.in_atomic_block and not _in_memory(connection):
            del connections[connection.alias]
            connection.close()


def _in_memory(connection: Any) -> bool:
    """Whether a connection of Django holds its database, which would be lost with it."""
    return bool(connection.vendor == "sqlite" and connection.is_in_memory_db())


def _renew_executor(executor: Any) -> None:
    """Give an executor new pipes and locks, without the data of another horse."""
    if executor._executor_manager_thread is not None or executor._shutdown_thread:
        return
    options: dict[str, Any] = {}
    if sys.version_info >= (3, 11):
        options["max_tasks_per_child"] = executor._max_tasks_per_child
    executor.__init__(
        executor._max_workers,
        executor._mp_context,
        executor._initializer,
        executor._initargs,
        **options,
    )


@contextlib.contextmanager
def _logged(what: str) -> Any:
    try:
        yield
    except Exception:
        log.warning("%s cannot be reset", what, exc_info=True)
