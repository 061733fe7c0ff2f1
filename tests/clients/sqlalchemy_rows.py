"""Jobs on SQLAlchemy, with an engine and a session of the module, used when it is imported, as modules do."""

import os

from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session, sessionmaker

engine = create_engine(f"sqlite:///{os.environ['ROWS']}")
session = scoped_session(sessionmaker(engine))


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"
    name: Mapped[str] = mapped_column(primary_key=True)


Base.metadata.create_all(engine)
_held = session.connection().connection.dbapi_connection  # in a transaction that nobody ended
with engine.connect() as _connection:
    _connection.execute(text("SELECT 1"))
    _opened = _connection.connection.dbapi_connection


def shared() -> bool:
    """Whether a connection is one that was opened before the fork."""
    with engine.connect() as connection:
        used = [connection.connection.dbapi_connection, session.connection().connection.dbapi_connection]
    return any(one is opened for one in used for opened in (_opened, _held))


def add(name: str, commit: bool = True):
    session.add(Row(name=name))
    if commit:
        session.commit()


def names() -> list[str]:
    return sorted(session.scalars(select(Row.name)))
