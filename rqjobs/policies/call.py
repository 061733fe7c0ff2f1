"""One call of a job function, and the templates over its arguments."""

from __future__ import annotations

import hashlib
import inspect
import string
from collections.abc import Callable
from functools import cached_property
from typing import Any

from rqjobs import config, hiding

KEY_MAX_CHARACTERS = 200
DIGEST_BYTES = 16


class Call:
    """A job function with the arguments of one job."""

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ):
        self.function = function
        self.name = name  # `module.function`
        self.args = args
        self.kwargs = kwargs

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The value of each parameter, defaults included."""
        bound = inspect.signature(self.function).bind(*self.args, **self.kwargs)
        bound.apply_defaults()
        return bound.arguments

    def render(self, option: str, template: str) -> str:
        """`template` with each `{parameter}` replaced by the argument, or by a hash of a hidden one.

        Raises:
            TypeError: an argument is not a text or a number, of which a key could be made.
            ValueError: the key is too long.
        """
        parts = []
        for text, parameter in _parts(template):
            parts.append(text)
            if parameter:
                value = self.arguments[parameter]
                if not isinstance(value, str | int | float):
                    raise TypeError(
                        f"{option}={template!r} of {self.name}: the argument {parameter!r} is a "
                        f"{type(value).__name__}; use parameters that are texts or numbers"
                    )
                is_hidden = hiding.is_hidden(config.current().hide, parameter)
                parts.append(_digest(value) if is_hidden else str(value))
        key = "".join(parts)
        if len(key) > KEY_MAX_CHARACTERS:
            raise ValueError(
                f"{option}={template!r} of {self.name} gives a key of {len(key)} letters; use at "
                f"most {KEY_MAX_CHARACTERS}"
            )
        return key


def _digest(value: str | int | float) -> str:
    """A hash of an argument: a key is shown on pages and in errors."""
    data = str(value).encode(errors="backslashreplace")
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def check_template(option: str, template: Any, function: Callable[..., Any]) -> None:
    """Check a template like "user:{user_id}" over the parameters of `function`.

    Raises:
        TypeError: it is not a text.
        ValueError: it is empty, cannot be read, or names no parameter of the function.
    """
    if not isinstance(template, str):
        raise TypeError(f"{option}={template!r} is not a text; for example {option}='user:{{id}}'")
    parameters = inspect.signature(function).parameters
    try:
        named = [parameter for _, parameter in _parts(template) if parameter]
    except ValueError as error:
        raise ValueError(f"{option}={template!r} cannot be read: {error}") from None
    if not template.strip():
        raise ValueError(f"{option}={template!r} is empty")
    for parameter in named:
        if parameter not in parameters:
            known = ", ".join(parameters) or "none"
            raise ValueError(
                f"{option}={template!r}: {function.__name__} has no parameter {parameter!r} "
                f"(it has: {known})"
            )


def _parts(template: str) -> list[tuple[str, str]]:
    """The texts of a template, each with the parameter that follows it, or "".

    Raises:
        ValueError: a brace is not closed, or a field is not the plain name of a parameter.
    """
    parts = []
    for text, parameter, form, conversion in string.Formatter().parse(template):
        if parameter is not None and (not parameter.isidentifier() or form or conversion):
            raise ValueError(f"write the name of a parameter in the braces, not {parameter!r}")
        parts.append((text, parameter or ""))
    return parts
