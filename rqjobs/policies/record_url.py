"""`job_url`: the address of the record of the application that a job is about."""

from __future__ import annotations

import datetime
import inspect
import re
import string
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from rqjobs.policies.call import check_template

VALUE_TYPES = (str, int, float, uuid.UUID, datetime.date)
VALUE_MAX_CHARACTERS = 500
# A path of this site, or an address whose host is part of the template.
BEGINNING = re.compile(r"/(?![/\\])|https?://[A-Za-z0-9.:\[\]-]+(?:[/?#]|$)")
FORBIDDEN = re.compile(r"[\s\\\x00-\x1f<>\"'`]")


def check(template: Any, function: Callable[..., Any]) -> None:
    """Check the option `job_url` of `@job`.

    Raises:
        TypeError: it is not a text.
        ValueError: it is not an address, or names no parameter of the function.
    """
    check_template("job_url", template, function)
    if not BEGINNING.match(template) or FORBIDDEN.search(template):
        raise ValueError(
            f"job_url={template!r} is not an address: begin it with a / or with https:// and a host "
            f"without braces, for example job_url='/users/{{user_id}}'"
        )


def render(
    template: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str | None:
    """The address for a call; None if an argument is missing, or is not a text, number or date."""
    try:
        bound = inspect.signature(function).bind_partial(*args, **kwargs)
    except TypeError:  # a job for an older version of the function
        return None
    bound.apply_defaults()
    parts = []
    for text, name, _, _ in string.Formatter().parse(template):
        parts.append(text)
        if name is not None:
            value = bound.arguments.get(name)
            if isinstance(value, bool) or not isinstance(value, VALUE_TYPES):
                return None
            shown = str(value)
            if not shown.strip(".") or len(shown) > VALUE_MAX_CHARACTERS:  # "..": another path
                return None
            parts.append(quote(shown, safe="", errors="replace"))
    return "".join(parts)
