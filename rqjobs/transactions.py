"""Enqueueing with a database transaction: jobs are stored when an SQLAlchemy session commits.

SQLAlchemy is not imported here: a program with a session has loaded it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import redis
from redis.exceptions import ResponseError
from rq.exceptions import InvalidJobOperation
from rq.job import JobStatus

from rqjobs import connection, hooks, outbox, storing
from rqjobs.broker import enqueueing
from rqjobs.broker.enqueueing import Placement
from rqjobs.connection import explain

log = logging.getLogger("rqjobs")
STEP_MAX_JOBS = 200  # jobs of one script, during which Redis runs nothing else
INFO_KEY = "rqjobs.transactions"  # in `Session.info`: a dict, SessionTransaction -> _Waiting
PUBLISH_AGAIN_SECONDS = 30  # after Redis did not answer
LOGGED_IDS = 20  # ids that one error message names


class JobsNotStored(Exception):
    """The database transaction is committed, but Redis did not take all of its jobs.

    `jobs` are those that are not stored. If Redis did not reply, some of them can be stored.
    """

    def __init__(self, jobs: list[Any], calls: list[str], cause: Exception):
        names = [f"job {job.id}" for job in jobs] + calls
        shown = ", ".join(names[:LOGGED_IDS])
        if len(names) > LOGGED_IDS:
            shown += f" and {len(names) - LOGGED_IDS} more"
        super().__init__(
            f"the transaction is committed, but Redis has not taken {shown}: {explain(cause)}; "
            f"enqueue this again, and do not repeat the transaction"
        )
        self.jobs = jobs


class _Jobs(NamedTuple):
    """Jobs to be stored in one step."""

    connection: redis.Redis
    placements: list[Placement]
    jobs: list[Any]


class _Rows(NamedTuple):
    """Jobs that are rows of the outbox now."""

    connection: redis.Redis
    jobs: list[Any]
    calls_hooks: bool = True

    def run(self) -> None:
        """Tell the scheduler, so that it moves the rows at once."""
        for job in self.jobs:
            _answer_status_of_row(job)
            if self.calls_hooks:
                hooks.after_enqueue.call(job)
        _publish_rows(self.connection)


class _Call(NamedTuple):
    """Another change in Redis: of a schedule, or a flow. `what` names it in an error message.

    `calls_hooks`: whether `after_enqueue` is called for its jobs when it is a row.
    """

    what: str
    run: Callable[[], Any]
    jobs: list[Any]
    encode_row: Callable[[], str] | None
    calls_hooks: bool = False


_Step = _Jobs | _Rows | _Call


class _Waiting:
    """The steps that wait for the end of a transaction or savepoint, in the order of the calls."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.is_committed = False


class Transaction:
    """Keeps jobs until a session commits. It is `storing.postponer` within `transaction()`."""

    is_over = False

    def __init__(self, given: Any):
        self._given = given
        self.session()

    def session(self) -> Any:
        """The session as it is now: that of a scope, a request or a task can change."""
        session = _session_of(self._given)
        session.info.setdefault(INFO_KEY, {})
        return session

    def store(self, connection: redis.Redis, placements: list[Placement], jobs: list[Any]) -> None:
        """Let jobs wait for the commit.

        Raises:
            ValueError: a job has `on_conflict="raise"`, or no transaction can begin.
        """
        self._add(_Jobs(connection, placements, jobs))

    def call(
        self,
        what: str,
        run: Callable[[], Any],
        jobs: list[Any] | None = None,
        encode_row: Callable[[], str] | None = None,
    ) -> None:
        """Let another change in Redis wait for the commit.

        It is made by `run`, or is the row of the outbox that `encode_row` makes.
        """
        self._add(_Call(what, run, jobs or [], encode_row))

    def store_flow(
        self,
        flow_id: str,
        make_placements: Callable[[], list[Placement]],
        run: Callable[[], Any],
        jobs: list[Any],
    ) -> None:
        """Let a flow wait for the commit. It is stored by `run`, or is one row of the outbox.

        Raises: as `store`.
        """

        def row() -> str:
            return outbox.encode_flow(flow_id, make_placements())

        self._add(_Call(f"flow {flow_id}", run, jobs, row, calls_hooks=True))

    def _add(self, step: _Step) -> None:
        check_jobs(step.jobs)
        session = self.session()
        waiting = session.info[INFO_KEY].setdefault(_transaction_of(session), _Waiting())
        if uses_outbox() and not waiting.is_committed:
            step = _as_rows(session, step)
        waiting.steps.append(step)
        for job in step.jobs:
            _answer_status(job, JobStatus.CREATED)


def _as_rows(session: Any, step: _Step) -> _Step:
    """A step whose rows the session writes; a change that cannot be a row is returned."""
    if isinstance(step, _Jobs):
        outbox.add(session, map(outbox.encode, step.placements))
        return _Rows(step.connection, step.jobs)
    if isinstance(step, _Call) and step.encode_row:
        outbox.add(session, [step.encode_row()])
        return _Rows(connection.client(), step.jobs, step.calls_hooks)
    return step


def uses_outbox() -> bool:
    """Whether the jobs of transactions become rows of the outbox. Those of tests do not."""
    return outbox.is_used() and not storing.is_replaced()


def needs_redis() -> bool:
    """Whether an enqueue in this context needs Redis: rows of the outbox are written without it."""
    return storing.current_postponer() is None or not uses_outbox()


def current() -> Transaction | None:
    """The transaction for whose commit the enqueues of this context wait."""
    postponer: Any = storing.current_postponer()
    return postponer


@contextlib.contextmanager
def transaction(session: Any = None) -> Iterator[None]:
    """Let everything that is enqueued in the `with` wait until `session` commits.

    The jobs are checked at once, and are stored in their order when the outermost transaction of
    the session has been committed, in the `with` or after it. If that is rolled back, or the
    savepoint in which they were enqueued, they are not stored. Changes of `rqjobs.schedules` wait
    in the same way. Other threads are not affected. A task that was created in the `with` is not
    affected after the end of the `with`.

    Args:
        session: a `Session`, `scoped_session` or `AsyncSession` of SQLAlchemy. None or True is
            `db.session` of the current Flask app. False: jobs do not wait.

    Raises:
        TypeError: it is not a session of SQLAlchemy 2.
        RuntimeError: there is no Flask app with Flask-SQLAlchemy here.

    The commit raises `JobsNotStored` if Redis does not take the jobs.
    """
    postponer = None if session is False else Transaction(session)
    token = storing.postponer.set(postponer)
    try:
        yield
    finally:
        storing.postponer.reset(token)
        if postponer is not None:
            postponer.is_over = True


def takes_after_commit(enqueue: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function that enqueues take `after_commit=session`, which is a `transaction` of its own."""

    @functools.wraps(enqueue)
    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("after_commit") is None:
            kwargs.pop("after_commit", None)
            return enqueue(*args, **kwargs)
        with transaction(kwargs.pop("after_commit")):
            return enqueue(*args, **kwargs)

    return call


def check_jobs(jobs: list[Any]) -> None:
    """Raises ValueError if a job cannot wait for a commit, because it has on_conflict="raise"."""
    for job in jobs:
        if getattr(job, "policy_fields", {}).get("rqjobs_conflict") == "raise":
            raise ValueError(
                f"{job.func_name} has on_conflict='raise', which cannot go with after_commit: only "
                f"the commit shows a conflict; enqueue it after the commit, or use 'return'"
            )


def refuse(option: str) -> None:
    """Refuse an option that writes into Redis at once.

    Raises:
        ValueError: the enqueue waits for a commit.
    """
    if storing.current_postponer() is not None:
        raise ValueError(
            f"{option} cannot go with after_commit: it stores the job before the commit; leave it "
            f"out, or use after_commit=False"
        )


# The session


def _session_of(given: Any) -> Any:
    """The `Session` for what a user gave.

    Raises:
        TypeError, RuntimeError: see `transaction`.
    """
    if given is None or given is True:
        given = _flask_session()
    alchemy, orm = sys.modules.get("sqlalchemy"), sys.modules.get("sqlalchemy.orm")
    if alchemy is None or orm is None:
        raise _wrong_session(given)
    asynchronous: Any = sys.modules.get("sqlalchemy.ext.asyncio")
    session = given
    scopes: tuple[Any, ...] = (orm.scoped_session,)
    if asynchronous:
        scopes += (asynchronous.async_scoped_session,)
    if isinstance(session, scopes):
        session = session()
    if asynchronous and isinstance(session, asynchronous.AsyncSession):
        session = session.sync_session
    if not isinstance(session, orm.Session):
        raise _wrong_session(given)
    if alchemy.__version__.startswith("1."):
        raise TypeError(f"after_commit needs SQLAlchemy 2, not {alchemy.__version__}; update it")
    _listen()
    return session


def _wrong_session(given: Any) -> TypeError:
    return TypeError(
        f"after_commit and transaction take a session of SQLAlchemy, not an object of the type "
        f"{type(given).__module__}.{type(given).__qualname__}; give a Session, a scoped_session "
        f"(as db.session) or an AsyncSession. An argument after_commit of a job function goes apart: "
        f"args=(…), kwargs={{…}}"
    )


def _flask_session() -> Any:
    flask: Any = sys.modules.get("flask")
    if flask is None or not flask.has_app_context():
        raise RuntimeError("no Flask app is active here; give a session: after_commit=session")
    database = flask.current_app.extensions.get("sqlalchemy")
    session = getattr(getattr(database, "db", database), "session", None)
    if session is None:
        raise RuntimeError(
            f"the Flask app {flask.current_app.name!r} has no Flask-SQLAlchemy; give a session: "
            f"after_commit=session"
        )
    return session


def _transaction_of(session: Any) -> Any:
    """The innermost savepoint of a session, or its transaction, which begins if there is none."""
    transaction = session.get_nested_transaction() or session.get_transaction()
    if transaction is None:
        if not session.autobegin:
            raise ValueError("the session has no transaction; call its begin() before the enqueue")
        transaction = session.begin()
    return transaction


@functools.cache
def _listen() -> None:
    """Follow the transactions of all sessions of this process. It costs a look-up for each."""
    event: Any = sys.modules["sqlalchemy"].event
    session: Any = sys.modules["sqlalchemy.orm"].Session
    event.listen(session, "after_commit", _after_commit)
    event.listen(session, "after_transaction_end", _after_end)


def _after_commit(session: Any) -> None:
    """A transaction or a savepoint is committed, and not yet closed."""
    all_waiting = session.info.get(INFO_KEY)
    if all_waiting is None:
        return
    savepoint = session.get_nested_transaction()
    if savepoint is None:
        all_waiting.setdefault(session.get_transaction(), _Waiting()).is_committed = True
    elif savepoint in all_waiting:
        outer = savepoint.parent
        while outer.parent is not None and not outer.nested:
            outer = outer.parent
        released = all_waiting.pop(savepoint)
        all_waiting.setdefault(outer, _Waiting()).steps += released.steps


def _after_end(session: Any, transaction: Any) -> None:
    """A transaction or a savepoint has ended. The session can be used again, also by the jobs."""
    waiting = (session.info.get(INFO_KEY) or {}).pop(transaction, None)
    if waiting is None:
        return
    if not waiting.is_committed:
        for step in waiting.steps:
            for job in step.jobs:
                _answer_status(job, JobStatus.CANCELED)
    elif waiting.steps:
        token = storing.postponer.set(None)
        try:
            _run(waiting.steps)
        finally:
            storing.postponer.reset(token)


# After the commit


def _run(steps: list[_Step]) -> None:
    """Make all changes in Redis. One that fails does not stop the others.

    Raises:
        JobsNotStored: some have failed.
    """
    jobs: list[Any] = []
    calls: list[str] = []
    cause: Exception | None = None
    for step in _combined(steps):
        for failed, error in _try(step):
            cause = cause or error
            jobs += failed.jobs
            for job in failed.jobs:
                log.error("job %s is not stored after its commit: %s", job.id, explain(error))
            if isinstance(failed, _Call) and not failed.jobs:
                calls.append(failed.what)
    if cause is not None:
        raise JobsNotStored(jobs, calls, cause) from cause


def _combined(steps: list[_Step]) -> Iterator[_Step]:
    """The steps, with the jobs of neighbours in one."""
    group: _Jobs | None = None
    for step in steps:
        if (
            group is not None
            and isinstance(step, _Jobs)
            and step.connection is group.connection
            and len(group.jobs) + len(step.jobs) <= STEP_MAX_JOBS
        ):
            group.placements.extend(step.placements)
            group.jobs.extend(step.jobs)
            continue
        if group is not None:
            yield group
            group = None
        if isinstance(step, _Jobs):
            group = _Jobs(step.connection, [*step.placements], [*step.jobs])
        else:
            yield step
    if group is not None:
        yield group


def _try(step: _Step) -> Iterator[tuple[_Step, Exception]]:
    """Make a change; the parts of it that have failed."""
    for job in step.jobs:
        vars(job).pop("get_status", None)
    try:
        if isinstance(step, _Jobs):
            storing.store(*step)
        else:
            step.run()
    except ResponseError as error:  # Redis has refused it as a whole
        if isinstance(step, _Jobs) and len(step.jobs) > 1:
            for placement, job in zip(step.placements, step.jobs, strict=True):
                yield from _try(_Jobs(step.connection, [placement], [job]))
        else:
            yield step, error
    except Exception as error:
        yield step, error


def _publish_rows(connection: redis.Redis) -> None:
    """Without the message the rows are moved a little later. It is left out while Redis is down."""
    global _publish_again_at
    if time.monotonic() < _publish_again_at:
        return
    try:
        enqueueing.publish_rows(connection)
    except redis.RedisError as error:
        _publish_again_at = time.monotonic() + PUBLISH_AGAIN_SECONDS
        log.warning("jobs wait in the outbox, because Redis does not answer: %s", explain(error))


_publish_again_at = 0.0  # monotonic


def _answer_status_of_row(job: Any) -> None:
    """Let `get_status` return "created" until the job of a row is in Redis."""

    def get_status(refresh: bool = True) -> JobStatus:
        try:
            status: JobStatus = type(job).get_status(job, refresh=True)
        except InvalidJobOperation:
            return JobStatus.CREATED
        vars(job).pop("get_status", None)
        return status

    job.get_status = get_status


def _answer_status(job: Any, status: JobStatus) -> None:
    """Let `get_status` of a job that is not in Redis return `status`."""
    job.get_status = lambda refresh=True: status
