"""Text from outside as a terminal may get it: printed lines, and what our log and RQ's say.

Whoever can write to Redis chooses the names and descriptions of jobs, queues and workers. A terminal obeys some
characters: they retitle it, hide lines, or type.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

from rq.timeouts import BaseTimeoutException

from rqjobs.texts import class_name

_COLORS = r"\x1b\[(?:3[0-7]|39;49;00)m"  # which RQ puts around names
# Control characters but tab and newline, those that change the direction of text or cannot be seen, halves of a pair.
_CONTROL_CHARACTERS = re.compile(
    rf"({_COLORS})|[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
)

LINE_MAX_SECONDS = 1  # that a log line may take in a process that keeps a lease
FALLBACK_SECONDS = 60  # for which handlers that took longer get no lines


@dataclass
class _Limit:
    in_force: bool = False
    fallback_until: float = 0.0  # in monotonic time


_limit = _Limit()


def replace_control_characters(text: str) -> str:
    """`text` with each character that a terminal would obey, but tab, newline and RQ's colors, shown as `�`."""
    return _CONTROL_CHARACTERS.sub(lambda found: found[1] or "�", text)


class ControlCharacterFilter(logging.Filter):
    """Cleans what is put into a log line. Further lines of it are indented, so that none looks like a line of ours."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_clean(value) for value in record.args)
        if record.exc_info and not record.exc_text:
            record.exc_text = replace_control_characters(
                logging.Formatter().formatException(record.exc_info)
            )
        return True


def _clean(value: Any) -> Any:
    if isinstance(value, BaseException):
        try:
            value = str(value)
        except Exception:  # the job's own exception
            value = type(value).__name__
    return (
        replace_control_characters(value).replace("\n", "\n    ")
        if isinstance(value, str)
        else value
    )


_filter = ControlCharacterFilter()


def protect(logger: logging.Logger) -> None:
    """Clean what is logged here, and let the process go on whatever becomes of a log line.

    A job or a module may have put a handler, a filter or a record factory there that raises.
    """
    logger.addFilter(_filter)

    def log(*args: Any, **options: Any) -> None:
        try:
            if _limit.in_force:
                _log_within_limit(logger, *args, **options)
            else:
                type(logger)._log(logger, *args, **options)
        except BaseTimeoutException:  # a job's time limit
            raise
        except BaseException as error:
            with contextlib.suppress(BaseException):
                print(
                    f"rqjobs: a log line of {logger.name} is lost: {class_name(type(error))}",
                    file=sys.stderr,
                )

    logger._log = log  # type: ignore[method-assign]


class _HandlerTimeout(BaseException):
    """A handler of somebody's has no answer, perhaps from a host that is not there."""


def limit_line_time(in_force: bool) -> None:
    """Whether a log line of this process may take `LINE_MAX_SECONDS` at most, because the process keeps a lease."""
    _limit.in_force = in_force


def _log_within_limit(
    logger: logging.Logger, level: int, message: Any, args: Any, **options: Any
) -> None:
    if time.monotonic() < _limit.fallback_until:
        print(message % args if args else message, file=sys.stderr, flush=True)
        return
    before, began = signal.signal(signal.SIGALRM, _raise_timeout), time.monotonic()
    left, _ = signal.setitimer(signal.ITIMER_REAL, LINE_MAX_SECONDS)
    try:
        try:
            logging.Logger._log(logger, level, message, args, **options)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _HandlerTimeout:
        _limit.fallback_until = time.monotonic() + FALLBACK_SECONDS
        print(
            f"rqjobs: a log handler took longer than {LINE_MAX_SECONDS} s in the process that keeps "
            f"the worker's lease; its lines come here for {FALLBACK_SECONDS} s",
            file=sys.stderr,
            flush=True,
        )
    finally:
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 0.001))


def _raise_timeout(signum: int, frame: Any) -> None:
    raise _HandlerTimeout


def tolerate_any_encoding() -> None:
    """Have a character that the terminal's encoding does not know printed as an escape, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # somebody put another object there
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
