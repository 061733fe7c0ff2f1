"""What the jobs' modules made before the fork, and horses must not share: executors and database connections. And what
a job leaves of its database connections.

Looked for are the standard library's executors, Django, and SQLAlchemy (with it Flask-SQLAlchemy), where they are
loaded. Nothing is closed: closing says goodbye to the server, in the name of whoever has the connection too.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
from typing import Any

log = logging.getLogger("rqjobs")
KINDS = {  # of objects to look for, by the module in which they are
    "concurrent.futures.process": "ProcessPoolExecutor",
    "sqlalchemy.engine": "Engine",
    "sqlalchemy.engine.base": "Connection",
    "sqlalchemy.orm": "scoped_session",
}
_kept: list[Any] = []  # what was in use before the fork; to be collected would close it


class InheritedResources:
    """Found once, in the parent, before the first fork; a look at every object would copy all memory in a horse."""

    def __init__(self) -> None:
        modules = {name: sys.modules[name] for name in KINDS if name in sys.modules}
        kinds = tuple(getattr(module, KINDS[name]) for name, module in modules.items())
        self.found = (
            [one for one in gc.get_objects() if issubclass(type(one), kinds)] if kinds else []
        )
        self.connections, self.sessions = (
            self.of("sqlalchemy.engine.base"),
            self.of("sqlalchemy.orm"),
        )

    def of(self, module: str) -> list[Any]:
        kind = getattr(sys.modules.get(module), KINDS[module], ())
        return [one for one in self.found if isinstance(one, kind)]

    def renew(self) -> None:
        """In a new horse: have everything made anew when it is used."""
        for executor in self.of("concurrent.futures.process"):
            with _logged("an executor"):
                _renew_executor(executor)
        for engine in self.of("sqlalchemy.engine"):
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
            connections = _django()
            for connection in connections.all(initialized_only=True) if connections else ():
                pools = getattr(
                    connection, "_connection_pools", {}
                )  # of PostgreSQL, since Django 5.1
                _kept.append(pools.copy())
                pools.clear()
                if not _in_memory(connection):
                    _kept.append(connection)
                    del connections[connection.alias]

    def reset(self) -> None:
        """Between two jobs: what one left broken, or unfinished, is not the next one's."""
        if "django.db" not in sys.modules and "sqlalchemy" not in sys.modules:
            return
        if _django():
            with _logged("Django's connections"):
                sys.modules["django.db"].close_old_connections()
                for connection in _django().all(initialized_only=True):
                    if connection.in_atomic_block and not _in_memory(
                        connection
                    ):  # left by a job; nothing ends it
                        del _django()[connection.alias]
                        connection.close()
        for session in self.sessions:
            with _logged("an SQLAlchemy session"):
                if _in_transaction(session):
                    session.rollback()
        for one in self.connections + _all_sessions():
            with _logged("an SQLAlchemy connection or session"):
                if _is_broken(one):
                    one.get_transaction().rollback()


def _all_sessions() -> list[Any]:
    """Every SQLAlchemy session of this process, whoever made it and when; `close_all_sessions` closes the same."""
    module = sys.modules.get("sqlalchemy.orm.session")
    return list(module._sessions.values()) if module else []


def close_async_engines(loop: Any) -> None:
    """For the end of an event loop, and of each job that has one: the connections in the pools of SQLAlchemy's async
    engines are of this loop, and would break in the next one."""
    base: Any = sys.modules.get("sqlalchemy.ext.asyncio.base")
    for proxy in list(base.ReversibleProxy._proxy_objects.values()) if base else ():
        one = proxy()
        if isinstance(one, sys.modules["sqlalchemy.ext.asyncio"].AsyncEngine):
            with _logged("an SQLAlchemy engine"):
                loop.run_until_complete(one.dispose())


def _is_broken(one: Any) -> bool:
    """Whether a connection or a session refuses everything until its transaction is rolled back."""
    transaction = one.get_transaction()
    if transaction is None:
        return False
    inner = getattr(transaction, "_connections", None)  # of a session
    if inner is None:
        return bool(one.invalidated)
    return not one.is_active or any(entry[0].invalidated for entry in inner.values())


def _renew_connection(connection: Any) -> None:
    """Let it take another from its engine's pool, as it does when it was cut."""
    if connection._dbapi_connection is not None:
        _kept.append(connection._dbapi_connection)
        connection._dbapi_connection = connection._transaction = connection._nested_transaction = (
            None
        )


def _renew_session(session: Any) -> None:
    """Take from it the transaction that it is in, and what it has not sent yet."""
    transaction = session.get_transaction()
    if transaction is not None:
        _kept.append(transaction)
        session._transaction = session._nested_transaction = None
        for row in list(session.new):
            session.expunge(row)
        session.expire_all()


def _in_transaction(session: Any) -> bool:
    """Whether a `scoped_session` has one here that is in a transaction. Flask-SQLAlchemy's has one in an app context
    only, at whose end Flask removes it."""
    try:
        return session.registry.has() and session().in_transaction()
    except RuntimeError:
        return False


def _django() -> Any:
    module = sys.modules.get("django.db")
    return module.connections if module and sys.modules["django.conf"].settings.configured else None


def _in_memory(connection: Any) -> bool:
    """Whether this connection of Django's is all that there is of its database."""
    return bool(connection.vendor == "sqlite" and connection.is_in_memory_db())


def _renew_executor(executor: Any) -> None:
    """Give it pipes and locks of its own; what the executor of the horse before left in them would be taken for its."""
    if executor._executor_manager_thread is None and not executor._shutdown_thread:
        options = (
            {"max_tasks_per_child": executor._max_tasks_per_child}
            if sys.version_info >= (3, 11)
            else {}
        )
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
        log.warning("%s cannot be tidied up", what, exc_info=True)
