"""Jobs with SQLAlchemy. The module has an engine and sessions, and uses them when imported."""

import os

from sqlalchemy import create_engine, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.pool import AsyncAdaptedQueuePool

engine = create_engine(f"sqlite:///{os.environ['ROWS']}")
session = scoped_session(sessionmaker(engine))
plain = Session(engine)
later = None
engines = {}


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"
    name: Mapped[str] = mapped_column(primary_key=True)


Base.metadata.create_all(engine)
# In a transaction that is not ended.
_held = session.connection().connection.dbapi_connection
raw = engine.connect()
_unended = [holder.connection.dbapi_connection for holder in (plain.connection(), raw)]
with engine.connect() as _connection:
    _connection.execute(text("SELECT 1"))
    _opened = _connection.connection.dbapi_connection


def shared() -> bool:
    """Whether a connection was opened before the fork."""
    with engine.connect() as connection:
        used = [
            holder.connection.dbapi_connection
            for holder in (connection, session.connection(), plain.connection(), raw)
        ]
    inherited = (_opened, _held, *_unended)
    return any(connection is old for connection in used for old in inherited)


def insert(kind: str, number: int):
    """Add a row, and roll it back; in job 1 the server has closed the connection.

    The kind is "plain" for a session of the module, "later" for a session that a job has made, or
    "raw" for a connection of the module.
    """
    global later
    later = later or scoped_session(sessionmaker(engine))
    used = {"plain": plain, "later": later, "raw": raw}[kind]
    if kind == "raw":
        raw.execute(text("SELECT 1"))
    else:
        used.add(Row(name=f"{kind} {number}"))
        used.flush()
    if number == 1:  # the server has closed the connection
        connection = raw if kind == "raw" else used.connection()
        connection.invalidate()
        used.execute(text("SELECT 1"))
    used.rollback()


def add(name: str, commit: bool = True):
    session.add(Row(name=name))
    if commit:
        session.commit()


def names() -> list[str]:
    return sorted(session.scalars(select(Row.name)))


async def pooled() -> int:
    """Use an async engine; returns how many connections its pool had before."""
    before = engines.setdefault(
        "async", create_async_engine("sqlite+aiosqlite:///", poolclass=AsyncAdaptedQueuePool)
    )
    count = before.pool.checkedin()
    async with before.connect() as connection:
        await connection.execute(text("SELECT 1"))
    return count
