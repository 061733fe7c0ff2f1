"""The exception of a failed job as data, and as an exception again in the process that waits.

The worker stores the name of its class, its message, and its arguments if they are plain values.
The waiting process looks the class up among Python's own exceptions and those that the modules of
RQJOBS_MODULES define or import. Nothing is imported, and no constructor of a module is called: a
class that has one of its own becomes a `JobFailed`.
"""

from __future__ import annotations

import builtins
import functools
import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from rq.timeouts import JobTimeoutException

from rqjobs import catalog, hiding, texts
from rqjobs.policies import exceptions
from rqjobs.policies.failures import Failure
from rqjobs.serializers import JSON_TYPES

RAISED_MESSAGE_MAX_CHARACTERS = 4_096
RAISED_MAX_CHARACTERS = 16_384
_IS_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: the class was not made by the interpreter's own code
_CONSTRUCTORS = ("__new__", "__init__")
_read_args = vars(BaseException)["args"].__get__


class JobFailed(Exception):
    """A job has failed.

    Attributes:
        job_id, function: the job and the name of its function.
        error: the class of the exception, or a reason such as "process died".
        message: the whole message of the exception. The text of this one has its first line.
        traceback: the traceback of the worker, as text. It is "" if none is kept.
    """

    def __init__(self, job_id: str, function: str, error: str, message: str, traceback: str):
        super().__init__(job_id, function, error, message, traceback)
        self.job_id = job_id
        self.function = function
        self.error = error
        self.message = message
        self.traceback = traceback
        if traceback:
            self.__cause__ = WorkerTraceback(traceback)

    def __str__(self) -> str:
        first_line = self.message.strip().partition("\n")[0]
        line = Failure(self.function, self.error, first_line).line
        return f"job {self.job_id} ({self.function}) failed: {line}"


RETRY_TOO_MANY = "returned one Retry too many"


def one_retry_too_many(job: Any) -> JobFailed:
    """The failure of a job that has returned an `rq.Retry` more often than its maximum."""
    return JobFailed(job.id, str(job.func_name), RETRY_TOO_MANY, "", "")


class WorkerTraceback(Exception):
    """The cause of a `JobFailed`, so that its traceback shows that of the worker."""

    def __init__(self, traceback: str):
        super().__init__(traceback)
        self.traceback = traceback

    def __str__(self) -> str:
        return f"\n{self.traceback}"


class Raised(NamedTuple):
    """An exception as data. `name`: `module.Class`. `args`: its arguments, or its message alone."""

    name: str
    message: str
    args: tuple[Any, ...]


def pack(error: BaseException, secrets: Sequence[str] = ()) -> str:
    """An exception as it is stored; "" if its own code raises.

    Arguments that are not plain values (text, numbers, None) are left out, and so are long ones.
    `secrets` are masked.
    """
    try:
        name = exceptions.name_of(type(error))
        message = hiding.mask(texts.escape_surrogates(str(error)), secrets)
        message = message[:RAISED_MESSAGE_MAX_CHARACTERS]
        args = [_mask(arg, secrets) for arg in _read_args(error)]
        if args != [message] and all(type(arg) in JSON_TYPES for arg in args):
            stored = json.dumps([name, message, args])
            if len(stored) <= RAISED_MAX_CHARACTERS:
                return stored
        stored = json.dumps([name, message])
    except BaseException:  # of any class of the user's
        return ""
    return stored if len(stored) <= 2 * RAISED_MAX_CHARACTERS else ""


def _mask(arg: Any, secrets: Sequence[str]) -> Any:
    if type(arg) is str:
        return hiding.mask(arg, secrets)
    if type(arg) is int and secrets and str(arg) in secrets:
        return str(hiding.HIDDEN)
    return arg


def pack_current(trace: str, secrets: Sequence[str] = ()) -> str:
    """The exception that is being handled, as it is stored; "" if `trace` is not its traceback."""
    error = sys.exc_info()[1]
    if error is None or texts.class_name(type(error)) not in trace:
        return ""
    return pack(error, secrets)


def unpack(stored: bytes) -> Raised | None:
    """The exception of a stored text; None if it is not one of `pack`."""
    if not stored or len(stored) > 2 * RAISED_MAX_CHARACTERS:
        return None
    try:
        name, message, *rest = json.loads(stored)
    except (ValueError, TypeError, RecursionError):
        return None
    if not isinstance(name, str) or not isinstance(message, str):
        return None
    args: tuple[Any, ...] = (message,)
    if rest and isinstance(rest[0], list) and all(type(arg) in JSON_TYPES for arg in rest[0]):
        args = tuple(rest[0])
    return Raised(name, message, args)


def rebuild(raised: Raised) -> Exception | None:
    """The exception; None if its class is not known, or has a constructor of its own."""
    kind = _known_classes(catalog.current().modules).get(raised.name)
    if kind is None:
        return None
    try:
        error = kind(*raised.args)
    except Exception:  # the arguments do not fit, as those of a UnicodeDecodeError
        return None
    return error


@functools.lru_cache(maxsize=8)
def _known_classes(modules: tuple[str, ...]) -> dict[str, type[Exception]]:
    """The classes that `rebuild` may call, by name."""
    found = [*vars(builtins).values(), JobTimeoutException]
    for name in modules:
        if name in sys.modules:
            found += vars(sys.modules[name]).values()
    return {exceptions.name_of(value): value for value in found if _may_be_called(value)}


def _may_be_called(value: Any) -> bool:
    """Whether a value is a class of exceptions whose call runs code of the interpreter only.

    Those that are not an `Exception` would end the waiting program, or the loop that it is in.
    """
    if type(value) is not type or not issubclass(value, Exception):
        return False
    if issubclass(value, StopIteration | StopAsyncIteration):
        return False
    return not any(
        vars(base).keys() & set(_CONSTRUCTORS)
        for base in value.__mro__
        if base.__flags__ & _IS_HEAP_TYPE
    )
