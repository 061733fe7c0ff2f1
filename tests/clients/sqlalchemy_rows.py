"""Jobs on SQLAlchemy, with an engine and a session of the module, used when it is imported, as modules do."""

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
_held = session.connection().connection.dbapi_connection  # in a transaction that nobody ended
raw = engine.connect()
_unended = [one.connection.dbapi_connection for one in (plain.connection(), raw)]
with engine.connect() as _connection:
    _connection.execute(text("SELECT 1"))
    _opened = _connection.connection.dbapi_connection


def shared() -> bool:
    """Whether a connection is one that was opened before the fork."""
    with engine.connect() as connection:
        used = [
            one.connection.dbapi_connection
            for one in (connection, session.connection(), plain.connection(), raw)
        ]
    return any(one is opened for one in used for opened in (_opened, _held, *_unended))


def insert(kind: str, number: int):
    """Add a row by a session of the module, one that a job has made, or a connection; its key may be there already."""
    global later
    later = later or scoped_session(sessionmaker(engine))
    used = {"plain": plain, "later": later, "raw": raw}[kind]
    if kind == "raw":
        raw.execute(text("SELECT 1"))
    else:
        used.add(Row(name=f"{kind} {number}"))
        used.flush()
    if number == 1:  # the server has gone
        (raw if kind == "raw" else used.connection()).invalidate()
        used.execute(text("SELECT 1"))
    used.rollback()


def add(name: str, commit: bool = True):
    session.add(Row(name=name))
    if commit:
        session.commit()


def names() -> list[str]:
    return sorted(session.scalars(select(Row.name)))


async def pooled() -> int:
    """Use an engine of a loop; returns how many connections its pool had before."""
    before = engines.setdefault(
        "async", create_async_engine("sqlite+aiosqlite:///", poolclass=AsyncAdaptedQueuePool)
    )
    count = before.pool.checkedin()
    async with before.connect() as connection:
        await connection.execute(text("SELECT 1"))
    return count
