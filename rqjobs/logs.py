"""Log lines and printed lines that are safe for a terminal.

A client with write access to Redis chooses the names and descriptions of jobs, queues and workers.
Some characters control a terminal: they change its title, hide lines, or type.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from rq.timeouts import BaseTimeoutException

from rqjobs.texts import class_name

_COLORS = r"\x1b\[(?:3[0-7]|39;49;00)m"  # RQ's, around names
# Control characters but tab and newline, invisible characters and those that change the direction
# of text, and lone surrogates.
_CONTROL_CHARACTERS = re.compile(
    rf"({_COLORS})|[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    r"\ud800-\udfff\ufeff]"
)

LINE_MAX_SECONDS = 1  # for a log line in a process that keeps a lease
FALLBACK_SECONDS = 60  # log lines are printed to stderr so long after a handler was slower


@dataclass
class _Limit:
    in_force: bool = False
    fallback_until: float = 0.0  # in monotonic time


_limit = _Limit()


def replace_control_characters(text: str) -> str:
    """`text` with `�` for each control character. Tab, newline and RQ's colors are kept."""
    return _CONTROL_CHARACTERS.sub(lambda match: match[1] or "�", text)


class ControlCharacterFilter(logging.Filter):
    """Cleans the arguments of a log line.

    Further lines of an argument are indented, so that none looks like a log line.
    """

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
        except Exception:  # a job's exception class may have any code
            value = type(value).__name__
    if isinstance(value, str):
        return replace_control_characters(value).replace("\n", "\n    ")
    return value


_filter = ControlCharacterFilter()


def protect(logger: logging.Logger) -> None:
    """Clean the lines of `logger`, and keep an error in a log line from the caller.

    A job or a module may have added a handler, a filter or a record factory that raises.
    """
    logger.addFilter(_filter)

    def log(*args: Any, **options: Any) -> None:
        try:
            if _limit.in_force and threading.current_thread() is threading.main_thread():
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
    """A log handler of the user has not returned in time; its host may not answer."""


def limit_line_time(in_force: bool) -> None:
    """Limit each log line of this process to `LINE_MAX_SECONDS`, because it keeps a lease."""
    _limit.in_force = in_force


def _log_within_limit(
    logger: logging.Logger, level: int, message: Any, args: Any, **options: Any
) -> None:
    if time.monotonic() < _limit.fallback_until:
        print(message % args if args else message, file=sys.stderr, flush=True)
        return
    old_handler = signal.signal(signal.SIGALRM, _raise_timeout)
    start = time.monotonic()
    left, _ = signal.setitimer(signal.ITIMER_REAL, LINE_MAX_SECONDS)
    try:
        try:
            logging.Logger._log(logger, level, message, args, **options)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _HandlerTimeout:
        _limit.fallback_until = time.monotonic() + FALLBACK_SECONDS
        print(
            f"rqjobs: a log handler took longer than {LINE_MAX_SECONDS} s in the process that "
            f"keeps the worker's lease; its lines come here for {FALLBACK_SECONDS} s",
            file=sys.stderr,
            flush=True,
        )
    finally:
        signal.signal(signal.SIGALRM, old_handler)
        if left:
            left -= time.monotonic() - start
            signal.setitimer(signal.ITIMER_REAL, max(left, 0.001))


def _raise_timeout(signum: int, frame: Any) -> None:
    raise _HandlerTimeout


def tolerate_any_encoding() -> None:
    """Print a character that the terminal's encoding lacks as an escape, and not raise an error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # user code has replaced the stream
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
