"""Texts that leave for Redis, logs and pages, of whatever exceptions a job raises and whatever it puts into them."""

from __future__ import annotations

import contextlib
import traceback
from typing import Any


def encodable(text: str) -> str:
    """`text` with its lone surrogates as `\\\\udcff`: UTF-8 has no bytes for them, and every encoder refuses them."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def format_exception(kind: Any, error: Any = None, trace: Any = None) -> list[str]:
    """The traceback, as `traceback.format_exception` makes it. Never raises, whatever the exception's own code does."""
    try:
        return [encodable("".join(traceback.format_exception(kind, error, trace)))]
    except BaseException as failure:
        frames = ""
        with contextlib.suppress(BaseException):
            frames = encodable("".join(traceback.format_tb(trace)))
        return [
            f"{frames}{name_of(kind)}: its traceback cannot be written, for that raises {name_of(type(failure))}\n"
        ]


def describe(error: BaseException) -> str:
    """The exception in a line, as far as its own code allows."""
    try:
        return encodable(f"{name_of(type(error))}: {error}")
    except BaseException:
        return name_of(type(error))


def name_of(kind: type) -> str:
    """The name of a class, whatever its metaclass says."""
    return encodable(str(vars(type)["__name__"].__get__(kind)))
