"""The outbox: a job waits as a row of the database until the scheduler moves it to Redis.

A row is written in the transaction of the application, so it exists if and only if that is
committed. A move writes the job and a mark of the row in one step in Redis, and then deletes the
row. So a mover that dies in between moves no row twice. A mark is kept for a minute after the row
is deleted. A mover that has read a row longer ago than that, by Redis's clock, is refused.

SQLAlchemy is imported when the outbox is used.
"""

from __future__ import annotations

import base64
import binascii
import functools
import importlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

import redis
from rq import Queue

from rqjobs import config, connection, passed_results
from rqjobs.broker import enqueueing, flows, scripts
from rqjobs.broker.enqueueing import Placement, Row, RowOutcome
from rqjobs.call_options import JOB_ID_MAX_CHARACTERS
from rqjobs.policies.exceptions import MAX_SECONDS

log = logging.getLogger("rqjobs")
TABLE_NAME = "rqjobs_outbox"
BATCH_ROWS = 100  # rows that one database transaction moves
POLL_SECONDS = 2.0  # for rows whose message to the mover was lost
HANGING_SECONDS = 60.0  # seconds without progress after which a mover is replaced
HANGING_MAX_SECONDS = 3600.0  # the most between two replacements
FIELDS_MAX = 500  # of a job's hash
ROW_ERROR_MAX_CHARACTERS = 500
# In the messages of SQLite, PostgreSQL and MySQL.
MISSING_TABLE = ("no such table", "does not exist", "doesn't exist")
CREATE_TABLE = "create the table with: rqjobs outbox create"

_id_lock = threading.Lock()
_last_id_time = 0


class OutboxRow:
    """A row. SQLAlchemy maps this class to the table when it is first used."""

    def __init__(self, payload: str):
        self.id = _new_id()
        self.created_at = datetime.now(timezone.utc).replace(tzinfo=None)
        self.payload = payload


def _new_id() -> str:
    """An unused id. Those of one process are in the order of the calls."""
    global _last_id_time
    with _id_lock:
        _last_id_time = max(_last_id_time + 1, time.time_ns())
        return f"{_last_id_time:016x}{os.urandom(8).hex()}"


def is_used() -> bool:
    """Whether RQJOBS_OUTBOX_URL is set. Tests do not use it: it may name the project's database,
    whose rows they would move to their private Redis.
    """
    return config.current().outbox_url is not None and config.test_socket() is None


# The table


def _alchemy() -> Any:
    try:
        return importlib.import_module("sqlalchemy")
    except ImportError as error:
        raise config.ConfigError(
            f"RQJOBS_OUTBOX_URL needs SQLAlchemy 2 ({error}); install it with: pip install sqlalchemy"
        ) from None


@functools.cache
def table() -> Any:
    """The table, mapped to `OutboxRow`."""
    sql = _alchemy()
    mysql = importlib.import_module("sqlalchemy.dialects.mysql")
    orm = importlib.import_module("sqlalchemy.orm")
    text = sql.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
    made = sql.Table(
        TABLE_NAME,
        sql.MetaData(),
        sql.Column("id", sql.String(32), primary_key=True),
        sql.Column("created_at", sql.DateTime(), nullable=False),
        sql.Column("payload", text, nullable=False),
        sql.Column("error", sql.Text()),  # why the row cannot be moved
    )
    orm.registry().map_imperatively(OutboxRow, made)
    sql.event.listen(sql.engine.Engine, "handle_error", _name_remedy)
    return made


def _name_remedy(context: Any) -> None:
    """Name the remedy in the error of a commit whose database has no outbox."""
    error, message = context.sqlalchemy_exception, str(context.original_exception)
    if error is None or TABLE_NAME not in message:
        return
    if any(words in message for words in MISSING_TABLE):
        first, *others = str(error.args[0]).splitlines()
        error.args = ("\n".join([f"{first}; {CREATE_TABLE}", *others]),)


def add(session: Any, payloads: Iterable[str]) -> None:
    """Add rows to a session, which writes them when it flushes. `payloads` are those of `encode`
    and `encode_flow`.

    Raises:
        ConfigError: the session is one of another database than RQJOBS_OUTBOX_URL.
    """
    columns = table().insert()
    mapper = importlib.import_module("sqlalchemy").inspect(OutboxRow)
    _check_database(session.get_bind(mapper).engine.url, _url())
    rows = [OutboxRow(payload) for payload in payloads]
    if not session._flushing:
        session.add_all(rows)
        return
    # A listener within the flush has enqueued the jobs. The flush would miss new objects.
    session.connection(bind_arguments={"mapper": mapper}).execute(
        columns,
        [{"id": row.id, "created_at": row.created_at, "payload": row.payload} for row in rows],
    )


@functools.lru_cache
def _check_database(written: Any, outbox_url: str) -> None:
    """Check that the rows of a session are in the database that the scheduler reads.

    Only files of SQLite can be compared. Flask-SQLAlchemy takes a relative path from the folder
    instance/, and SQLAlchemy from the current folder.

    Raises:
        ConfigError: they are not.
    """
    read = _alchemy().engine.make_url(outbox_url)
    if (written.get_backend_name() == "sqlite") != (read.get_backend_name() == "sqlite"):
        raise config.ConfigError(
            f"RQJOBS_OUTBOX_URL is a database of {read.get_backend_name()}, and the session writes "
            f"to one of {written.get_backend_name()}; set it to the URL of the session's database"
        )
    if not (_is_file(written) and _is_file(read)):
        return
    path = os.path.realpath(written.database)
    if path != os.path.realpath(read.database):
        raise config.ConfigError(
            f"RQJOBS_OUTBOX_URL is the file {os.path.realpath(read.database)}, and the session writes "
            f"to {path}; set it to sqlite:///{path}"
        )


def _is_file(url: Any) -> bool:
    """Whether a URL is that of a file of SQLite, by its path."""
    name = url.database or ":memory:"
    return url.get_backend_name() == "sqlite" and not name.startswith((":memory:", "file:"))


# The payload


class FlowOfRow(NamedTuple):
    """A flow that is one row, so that all of its jobs are stored or none."""

    flow_id: str
    placements: list[Placement]


class ChangeOfRow(NamedTuple):
    """A change of a schedule, as `schedules.rows` writes it."""

    schedule: Any
    words: Mapping[str, Any]


def encode(placement: Placement) -> str:
    """A job and its place as JSON. Bytes are base64."""
    return json.dumps(_encode_job(placement))


def encode_flow(flow_id: str, placements: Iterable[Placement]) -> str:
    """A flow as JSON."""
    return json.dumps({"flow": flow_id, "jobs": list(map(_encode_job, placements))})


def encode_change(schedule: str, words: Mapping[str, Any]) -> str:
    """A change of a schedule as JSON."""
    return json.dumps({**words, "schedule": schedule})


def encode_fields(fields: Mapping[Any, Any]) -> dict[str, Any]:
    """The fields of a job's hash as JSON has them."""
    return {
        name.decode() if isinstance(name, bytes) else name: _encode_value(value)
        for name, value in fields.items()
    }


def decode_fields(fields: Any) -> dict[str, Any]:
    """The fields that `encode_fields` has encoded.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the fields have another form.
    """
    "".join(fields).encode()  # without lone surrogates, which Redis's client refuses
    if len(fields) > FIELDS_MAX:
        raise ValueError("the job has too many fields")
    return {name: _decode_value(value) for name, value in fields.items()}


def _encode_job(placement: Placement) -> dict[str, Any]:
    return {
        "queue": placement.queue,
        "id": placement.job_id,
        "place": placement.place,
        "ttl": placement.ttl,
        "parents": list(placement.parents),
        "fields": encode_fields(placement.fields),
    }


def _encode_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, str):
        return str.__str__(value)  # the text of an enum's member, as it reaches Redis
    return repr(value)


def decode(payload: Any) -> Placement | FlowOfRow | ChangeOfRow:
    """The job, the flow or the change of a payload.

    A job does not count as new, so that the place of an older job of its id is looked up.

    Raises:
        ValueError: the payload is not one that `encode` or `encode_flow` makes.
    """
    try:
        found = json.loads(payload)
        flow_id, schedule = found.get("flow"), found.get("schedule")
        jobs = list(found["jobs"]) if flow_id is not None else []
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("the payload is not that of a job") from None
    if schedule is not None:
        return ChangeOfRow(schedule, found)
    if flow_id is None:
        return _decode_job(found)
    return _decode_flow(flow_id, jobs)


def _decode_flow(flow_id: Any, jobs: list[Any]) -> FlowOfRow:
    placements: list[Placement] = []
    ids: set[str] = set()
    for position, found in enumerate(jobs):
        placement = _decode_job(found, is_held=True)
        place = passed_results.FlowPlace.read(str(placement.fields.get("rqjobs_flow", "")))
        if place is None or (place.flow_id, place.position) != (flow_id, position):
            raise ValueError("a job is not the next one of its flow")
        if not ids.issuperset(placement.parents[1:]) or placement.job_id in ids:
            raise ValueError("a job of the flow depends on others than those before it")
        ids.add(placement.job_id)
        placements.append(placement._replace(new=True))
    if not placements:
        raise ValueError("the flow has no jobs")
    return FlowOfRow(flow_id, placements)


def _decode_job(found: Any, is_held: bool = False) -> Placement:
    try:
        queue, job_id, place = found["queue"], found["id"], found["place"]
        ttl, parents, fields = found["ttl"], found["parents"], found["fields"]
        texts = (queue, job_id, place, *parents, *fields)
        "".join(texts).encode()
        values = decode_fields(fields)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("the payload is not that of a job") from None
    if not isinstance(parents, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("the payload is not that of a job")
    if not queue or not 0 < len(job_id) <= JOB_ID_MAX_CHARACTERS:
        raise ValueError("the payload has no queue, or no id for a job")
    if is_held != (place == "held"):
        raise ValueError("a job of a flow has another place")
    if place not in ("back", "front", "held"):
        place = _moment(place)
    if ttl is not None and (type(ttl) is not int or abs(ttl) > MAX_SECONDS):
        raise ValueError("the ttl is not a whole number, or out of range")
    if not values.get("data"):
        raise ValueError("the job has no data")
    return Placement(queue, job_id, place, ttl, False, values, tuple(parents))


def _decode_value(value: Any) -> Any:
    if isinstance(value, str):
        value.encode()
        return value
    try:
        return base64.b64decode(value["base64"], validate=True)
    except binascii.Error:
        raise ValueError("not base64") from None


def _moment(place: str) -> str:
    """A due time in the form that Redis reads: Python reads more."""
    try:
        moment = float(place)
    except ValueError:
        moment = math.nan
    if not math.isfinite(moment):
        raise ValueError(f"{place[:40]!r} is not a place for a job")
    return repr(moment)


# Moving rows


class Mover:
    """Moves the rows of one database to Redis. Any number may run at once."""

    def __init__(self, url: str, redis_client: redis.Redis):
        self.url = url
        self.redis = redis_client
        self.is_abandoned = False
        self.progress_at = time.monotonic()
        self.refused: dict[str, str] = {}  # row -> why Redis refused its job
        self.damaged: dict[str, str] = {}  # row -> why it can never be moved
        self._engine: Any = None

    def move_all(self) -> int:
        """Move the rows that there are, in order; returns how many were moved.

        A row that cannot be read gets its `error`, and is not tried again. One whose job Redis
        refuses stays for the next call. Neither stops the others.

        Raises:
            Exception: the database or Redis does not answer.
        """
        self._engine = self._engine or make_engine(self.url)
        self.refused = {}
        moved, last = 0, ""
        while True:
            rows, done = self._move_batch(last)
            self.progress_at = time.monotonic()
            moved += done
            if len(rows) < BATCH_ROWS:
                return moved
            last = rows[-1].id

    def close(self) -> None:
        """Close the connections to the database."""
        if self._engine is not None:
            self._engine.dispose()

    def _move_batch(self, after: str) -> tuple[list[Any], int]:
        columns, sql = table().c, _alchemy()
        read_at = scripts.redis_time(self.redis)
        query = (
            sql.select(columns.id, columns.payload)
            .where(columns.error.is_(None), columns.id > after)
            .order_by(columns.id)
            .limit(BATCH_ROWS)
        )
        if self._engine.dialect.name == "postgresql":  # elsewhere two movers may read the same rows
            query = query.with_for_update(skip_locked=True)
        with self._engine.begin() as database:
            rows = list(database.execute(query))
            if self.is_abandoned or not rows:
                return [], 0
            self.progress_at = time.monotonic()
            self.damaged = {}
            moved = self._store(self._readable(rows), read_at)
            for row_id, reason in self.damaged.items():
                log.error("outbox: the row %s cannot be moved: %s", row_id, reason)
                error = reason[:ROW_ERROR_MAX_CHARACTERS]
                database.execute(table().update().where(columns.id == row_id).values(error=error))
            if moved:
                database.execute(table().delete().where(columns.id.in_(moved)))
        enqueueing.forget_rows(self.redis, moved)
        return rows, len(moved)

    def _readable(self, rows: list[Any]) -> dict[str, Placement | FlowOfRow | ChangeOfRow]:
        found = {}
        for row in rows:
            try:
                found[row.id] = decode(row.payload)
            except ValueError as error:
                self.damaged[row.id] = str(error)
        return found

    def _store(
        self, rows: dict[str, Placement | FlowOfRow | ChangeOfRow], read_at: float
    ) -> list[str]:
        """Store the jobs of rows in their order; returns the rows whose jobs are stored."""
        moved: list[str] = []
        jobs: dict[str, Placement] = {}
        for row_id, found in rows.items():
            if isinstance(found, Placement):
                jobs[row_id] = found
                continue
            moved += self._read_outcomes(enqueueing.enqueue_rows(self.redis, jobs, read_at))
            jobs = {}
            self.progress_at = time.monotonic()
            try:
                outcome = self._move_other(row_id, found, read_at)
            except ValueError as error:
                self.damaged[row_id] = str(error)
            else:
                moved += self._read_outcomes({row_id: outcome})
        return moved + self._read_outcomes(enqueueing.enqueue_rows(self.redis, jobs, read_at))

    def _move_other(
        self, row_id: str, found: FlowOfRow | ChangeOfRow, read_at: float
    ) -> RowOutcome | Exception:
        """Store a flow, or change a schedule.

        Raises:
            ValueError: it can never be done.
        """
        try:
            if isinstance(found, ChangeOfRow):
                return apply_change(self.redis, Row(row_id, read_at), *found)
            return flows.move_row(
                self.redis, row_id, *found, read_at, default_timeout=Queue.DEFAULT_TIMEOUT
            )
        except (flows.FlowDropped, redis.ResponseError) as error:
            return error

    def _read_outcomes(self, outcomes: dict[str, RowOutcome | Exception]) -> list[str]:
        """Keep why rows were refused; returns those that are moved."""
        moved = []
        for row_id, outcome in outcomes.items():
            if outcome in (RowOutcome.MOVED, RowOutcome.ALREADY_MOVED):
                moved.append(row_id)
            elif outcome is RowOutcome.REFUSED:
                self.refused[row_id] = f"another job has the unique key of the row {row_id}"
            elif isinstance(outcome, Exception):
                self.refused[row_id] = connection.explain(outcome)
        return moved


def _no_schedules(*_: Any) -> RowOutcome:
    raise RuntimeError("a change of a schedule is moved by a process that knows no schedules")


# Makes the change of a `ChangeOfRow`; set by `schedules.rows`.
apply_change: Callable[[redis.Redis, Row, Any, Mapping[str, Any]], RowOutcome] = _no_schedules


def make_engine(url: str) -> Any:
    """An engine for RQJOBS_OUTBOX_URL.

    Raises:
        ConfigError: SQLAlchemy or the database's driver is missing, or the URL is wrong.
    """
    sql = _alchemy()
    if url.startswith("postgres://"):  # of some hosting providers
        url = f"postgresql://{url.removeprefix('postgres://')}"
    try:
        engine = sql.create_engine(url, pool_pre_ping=True)
    except (ImportError, sql.exc.ArgumentError) as error:
        raise config.ConfigError(
            f"RQJOBS_OUTBOX_URL cannot be used: {error}; it is a URL of SQLAlchemy, and needs the "
            f"driver that it names"
        ) from None
    if engine.dialect.is_async:
        raise config.ConfigError(
            f"RQJOBS_OUTBOX_URL names the async driver {engine.dialect.driver}; name one that is "
            f"not, for example postgresql+psycopg://…"
        )
    return engine


class BackgroundMover:
    """A thread of the scheduler that moves rows. A database that hangs holds up this thread only."""

    def __init__(self, url: str, redis_client: redis.Redis):
        self._url = url
        self._redis = redis_client
        self._wakeup = threading.Event()
        self._mover: Mover | None = None
        self._is_moving = False
        self._is_active = False
        self._hanging_seconds = HANGING_SECONDS
        self._logged = ""

    def check(self, is_active: bool) -> None:
        """Start the thread, and replace it if it hangs. `is_active`: whether it is to move rows."""
        self._is_active = is_active
        mover = self._mover
        if mover is None:
            if is_active:
                self._start()
            return
        if self._is_moving and time.monotonic() - mover.progress_at > self._hanging_seconds:
            log.error(
                "outbox: no answer for %.0f s; connecting again to the database",
                self._hanging_seconds,
            )
            mover.is_abandoned = True
            self._hanging_seconds = min(2 * self._hanging_seconds, HANGING_MAX_SECONDS)
            self._start()

    def wake(self) -> None:
        """There is a new row."""
        self._wakeup.set()

    def _start(self) -> None:
        self._mover = Mover(self._url, self._redis)
        self._is_moving = False
        self._wakeup.set()
        name = "rqjobs-outbox"
        threading.Thread(target=self._run, args=(self._mover,), name=name, daemon=True).start()

    def _run(self, mover: Mover) -> None:
        while not mover.is_abandoned:
            self._wakeup.wait(POLL_SECONDS)
            self._wakeup.clear()
            if not self._is_active:
                continue
            mover.progress_at = time.monotonic()
            self._is_moving = True
            problem = move_or_explain(mover)
            if mover.is_abandoned:
                break
            self._is_moving = False
            if problem and problem != self._logged:
                log.error("outbox: jobs wait in the database: %s", problem)
            if not problem:
                self._hanging_seconds = HANGING_SECONDS
            self._logged = problem
        mover.close()


def move_or_explain(mover: Mover) -> str:
    """Move all rows; returns the reasons why some rows cannot be moved."""
    try:
        mover.move_all()
    except Exception as error:  # of any driver
        return explain(error)
    return next(iter(mover.refused.values()), "")


def explain(error: Exception) -> str:
    """An error of the database or of Redis in one line, with the remedy if it is known."""
    if isinstance(error, redis.RedisError):
        return connection.explain(error)
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0]


# For the command line


class Damaged(NamedTuple):
    """A row that cannot be moved."""

    row_id: str
    error: str


class Status(NamedTuple):
    """The rows that wait, the age of the oldest in seconds, and those that cannot be moved."""

    waiting: int
    oldest_seconds: float
    damaged: list[Damaged]


def create() -> bool:
    """Create the table; False if it exists.

    Raises:
        ConfigError: RQJOBS_OUTBOX_URL is not set, or wrong.
        sqlalchemy.exc.SQLAlchemyError: of the database.
    """
    engine = make_engine(_url())
    try:
        exists = _alchemy().inspect(engine).has_table(TABLE_NAME)
        table().create(engine, checkfirst=True)
    finally:
        engine.dispose()
    return not exists


def status() -> Status:
    """The rows of the outbox. Raises as `create`."""
    sql, columns = _alchemy(), table().c
    engine = make_engine(_url())
    try:
        with engine.connect() as database:
            waiting, oldest = database.execute(
                sql.select(sql.func.count(), sql.func.min(columns.created_at)).where(
                    columns.error.is_(None)
                )
            ).one()
            damaged = database.execute(
                sql.select(columns.id, columns.error).where(columns.error.is_not(None)).limit(100)
            )
            rows = [Damaged(str(row_id), str(error)) for row_id, error in damaged]
    finally:
        engine.dispose()
    age = 0.0
    if oldest is not None:
        age = (datetime.now(timezone.utc).replace(tzinfo=None) - oldest).total_seconds()
    return Status(waiting, max(age, 0.0), rows)


def _url() -> str:
    url = config.current().outbox_url
    if url is None:
        raise config.ConfigError(
            "RQJOBS_OUTBOX_URL is not set; set it to the database's URL, for example "
            "postgresql+psycopg://user:password@host/name"
        )
    return url
