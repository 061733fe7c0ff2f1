"""Failed jobs: how a failure is grouped, and the option `on_failed`.

A failure's group is its function and the class of the exception. `settle.lua` counts it in the step
that records it; the sweep counts the failures that Lua alone has recorded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rqjobs import texts
from rqjobs.policies.call import Call

OPTIONS = frozenset({"on_failed"})
FIELDS = frozenset({"rqjobs_on_failed"})
NAME_MAX_CHARACTERS = 200
MESSAGE_MAX_CHARACTERS = 300
UNKNOWN_FUNCTION = "?"  # of a job that cannot be read
OTHER_ERROR = "other"
POISON_ERROR = "process died"
# The beginning of a message that is stored in place of a traceback, and the error of its group.
REASONS = (
    ("The process died", POISON_ERROR),
    ("The job ignored its time limit", "time limit ignored"),
    ("The job in Redis cannot be read", "unreadable job"),
    ("The job's hash in Redis cannot be read", "unreadable job"),
    ("The job cannot return to its queue", "unusable queue"),
    ("The outcome could not be recorded", "outcome not recorded"),
)
_FRAME = '  File "'  # the beginning of a line of a traceback
_ERROR = re.compile(r"([^\W\d][\w.]*)(?::\s*(.*))?", re.DOTALL)
_BY_REGISTRY = re.compile(r"Moved to \w+, due to (\w+)")  # RQ's message for an abandoned job
_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class Failure(NamedTuple):
    """One failure of a job. `error` is the class of the exception, or a reason of our own."""

    function: str
    error: str
    message: str

    @property
    def group_id(self) -> str:
        return group_id(self.function, self.error)

    @property
    def line(self) -> str:
        """The error and its message, in one line."""
        return f"{self.error}: {self.message}" if self.message else self.error

    @property
    def group(self) -> str:
        """The words by which the scripts count the failure."""
        return "\n".join((self.group_id, *self))

    def call(self, name: str | None) -> str:
        """The words of the job function to call for this failure; "" if `name` is not one."""
        if not name:
            return ""
        return "\n".join((name, self.function, self.line))


def group_id(function: str, error: str) -> str:
    """The id of the group of a function and an error."""
    words = f"{function}\n{error}".encode()
    return hashlib.sha1(words, usedforsecurity=False).hexdigest()[:16]


def of_exception(function: str, error: BaseException) -> Failure:
    """The failure of a job whose function has raised `error`. The exception's code may raise."""
    try:
        message = str(error)
    except BaseException:
        message = ""
    return _failure(function, texts.class_name(type(error)), message)


def of_traceback(function: str, trace: str) -> Failure:
    """The failure of a job by the traceback, or the message, that is stored with it."""
    start = trace.rfind(_FRAME)
    if start < 0:
        return _of_message(function, trace)
    lines = trace[start:].splitlines()
    for number, line in enumerate(lines):
        found = not line.startswith(" ") and _ERROR.fullmatch(line)
        if found:
            message = "\n".join([found[2] or "", *lines[number + 1 :]])
            return _failure(function, found[1].rpartition(".")[2], message)
    return _failure(function, OTHER_ERROR, lines[-1])


def _of_message(function: str, message: str) -> Failure:
    for beginning, reason in REASONS:
        if message.startswith(beginning):
            return _failure(function, reason, message)
    abandoned = _BY_REGISTRY.match(message)
    if abandoned:
        return _failure(function, abandoned[1], message)
    bare = _ERROR.fullmatch(message.strip().partition("\n")[0])
    if bare and bare[2] is not None:  # an exception without a traceback
        return _failure(function, bare[1].rpartition(".")[2], bare[2])
    return _failure(function, OTHER_ERROR, message)


def _failure(function: str, error: str, message: str) -> Failure:
    return Failure(
        _one_line(function, NAME_MAX_CHARACTERS) or UNKNOWN_FUNCTION,
        _one_line(error, NAME_MAX_CHARACTERS) or OTHER_ERROR,
        _one_line(message, MESSAGE_MAX_CHARACTERS),
    )


def _one_line(text: str, max_characters: int) -> str:
    words = " ".join(text[: 4 * max_characters].split())
    return texts.escape_surrogates(words)[:max_characters]


# The option


def check(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Check the form of `on_failed`. Whether there is such a job function is known at enqueue.

    Raises:
        TypeError: it is not a text.
        ValueError: it is not "module:function".
    """
    target = options.get("on_failed")
    if target is None or target == "":  # "" switches the option of `@job` off for one call
        return
    if not isinstance(target, str):
        raise TypeError(
            f"on_failed={target!r} is not a text; write the name of a job function, for example "
            f'"{function.__module__}:report_failure"'
        )
    if not _TARGET.fullmatch(target):
        raise ValueError(
            f'on_failed={target!r} is not "module:function"; for example '
            f'"{function.__module__}:report_failure"'
        )


def fields(call: Call, options: Mapping[str, Any]) -> dict[str, str]:
    """The name of the job function to call if the job fails for good."""
    target = options.get("on_failed")
    if not target:
        return {}
    return {"rqjobs_on_failed": target.replace(":", ".")}
