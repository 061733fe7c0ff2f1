"""Texts that leave for Redis, logs and pages, of whatever exceptions a job raises and whatever it puts into them."""

from __future__ import annotations

import contextlib
import traceback
from typing import Any


def escape_surrogates(text: str) -> str:
    """`text` with its lone surrogates as `\\\\udcff`: UTF-8 has no bytes for them, and every encoder refuses them."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def format_exception(kind: Any, error: Any = None, trace: Any = None) -> list[str]:
    """The traceback, as `traceback.format_exception` makes it. Never raises, whatever the exception's own code does."""
    try:
        return [escape_surrogates("".join(traceback.format_exception(kind, error, trace)))]
    except BaseException as failure:
        frames = ""
        with contextlib.suppress(BaseException):
            frames = escape_surrogates("".join(traceback.format_tb(trace)))
        raised = class_name(type(failure))
        return [f"{frames}{class_name(kind)}: writing its traceback raises {raised}\n"]


def describe_error(error: BaseException) -> str:
    """The exception in a line, as far as its own code allows."""
    try:
        return escape_surrogates(f"{class_name(type(error))}: {error}")
    except BaseException:
        return class_name(type(error))


def class_name(kind: type) -> str:
    """The name of a class, whatever its metaclass says."""
    return escape_surrogates(str(vars(type)["__name__"].__get__(kind)))
