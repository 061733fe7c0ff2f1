"""Texts of a job's values and exceptions for Redis, logs and pages, whose code may raise."""

from __future__ import annotations

import contextlib
import traceback
from typing import Any


def escape_surrogates(text: str) -> str:
    """`text` with lone surrogates as `\\udcff`, because UTF-8 cannot encode them."""
    if text.isascii():
        return text
    return text.encode(errors="backslashreplace").decode()


def format_exception(kind: Any, error: Any = None, trace: Any = None) -> list[str]:
    """The traceback as of `traceback.format_exception`. It never raises."""
    try:
        return [escape_surrogates("".join(traceback.format_exception(kind, error, trace)))]
    except BaseException as failure:
        frames = ""
        with contextlib.suppress(BaseException):
            frames = escape_surrogates("".join(traceback.format_tb(trace)))
        raised = class_name(type(failure))
        return [f"{frames}{class_name(kind)}: writing its traceback raises {raised}\n"]


def describe_error(error: BaseException) -> str:
    """The exception in one line; its class alone if its own code raises."""
    try:
        return escape_surrogates(f"{class_name(type(error))}: {error}")
    except BaseException:
        return class_name(type(error))


def class_name(kind: type) -> str:
    """The name of a class, without running code of its metaclass."""
    return escape_surrogates(str(vars(type)["__name__"].__get__(kind)))


def jobs(number: int, one: str = "", many: str = "") -> str:
    """A number of jobs with its verb: "1 job is", "2,000 jobs are"."""
    return (f"1 job {one}" if number == 1 else f"{number:,} jobs {many}").rstrip()
