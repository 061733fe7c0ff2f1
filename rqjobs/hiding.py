"""Hidden values: those of the names in RQJOBS_HIDE are never shown.

A name is hidden if it contains one of them, in any case and with any `_` and `-`: `token` hides
`api_token`, `apiToken` and `X-Token`. Names are those of parameters, of keys in dictionaries, and of
the attributes of objects.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from types import FunctionType, ModuleType
from typing import Any

from rq.timeouts import BaseTimeoutException

MAX_LEVELS = 100  # of a value; parts that are nested more deeply are hidden
SECRET_MIN_CHARACTERS = 4  # a shorter one would be found in every text
SECRET_MAX_LINES = 100  # of one text that are searched for, each alone
SECRET_MIN_NUMBER = 1000
MAX_NUMBER_BITS = 1024
SEPARATORS = re.compile("[_-]+")
VALUE_PATTERN = (
    r"""'(?:[^'\\]|\\.)*(?:'|$)|"(?:[^"\\]|\\.)*(?:"|$)|\[[^\]]*\]?|\{[^}]*\}?|[^\s,)\]}]+"""
)
PLAIN_TYPES = (str, bytes, int, float, type(None))
UNSEARCHED_TYPES = (type, Enum, ModuleType, FunctionType)  # they hold no data of a job

Names = tuple[str, ...]  # of `Config.hide`


class Hidden(str):
    """The word that is shown instead of a hidden value."""

    def __repr__(self) -> str:
        return str(self)


HIDDEN = Hidden("hidden")


# By name


def is_hidden(names: Names, name: object) -> bool:
    """Whether the value of this name is hidden. Names that are not text hide nothing."""
    return bool(names) and isinstance(name, str) and _is_hidden(names, name[:200])


@lru_cache(maxsize=2048)
def _is_hidden(names: Names, name: str) -> bool:
    folded = _fold(name)
    return any(_fold(one) in folded for one in names)


def fold_names(names: Names) -> list[str]:
    """The names in small letters, without `_` and `-`."""
    return [_fold(name) for name in names]


def _fold(name: str) -> str:
    return SEPARATORS.sub("", name).casefold()


# Values


def hide(names: Names, value: Any) -> Any:
    """`value` with `HIDDEN` in the place of each part that has a hidden name.

    The value itself is not changed; it is returned as it is if nothing in it is hidden. An object
    with a hidden part is hidden as a whole if it is not a dataclass, or if its copy raises.
    """
    if not names:
        return value
    return _Hider(names).hide(value, 0)


class _Hider:
    """Hides within one value. A container that is in it twice is visited once."""

    def __init__(self, names: Names):
        self.names = names
        self.results: dict[int, Any] = {}

    def hide(self, value: Any, level: int) -> Any:
        if issubclass(type(value), PLAIN_TYPES):
            return value
        if level > MAX_LEVELS:
            return HIDDEN
        if id(value) not in self.results:
            self.results[id(value)] = HIDDEN  # of a value that contains itself
            try:
                self.results[id(value)] = self._hide_within(value, level + 1)
            except BaseTimeoutException:  # the time limit of the job that enqueues
                raise
            except BaseException:  # from code of the value's class
                self.results[id(value)] = HIDDEN
        return self.results[id(value)]

    def _hide_within(self, value: Any, level: int) -> Any:
        kind = type(value)
        if issubclass(kind, dict):
            shown = {key: self._item(key, one, level) for key, one in value.items()}
            return shown if _differs(value.values(), shown.values()) else value
        if issubclass(kind, list | tuple | set | frozenset):
            items = [self.hide(one, level) for one in value]
            if not _differs(value, items):
                return value
            return kind(*items) if hasattr(kind, "_fields") else kind(items)
        attributes = _attributes(value)
        changes = {name: self._item(name, one, level) for name, one in attributes.items()}
        if not _differs(attributes.values(), changes.values()):
            return value
        if not dataclasses.is_dataclass(type(value)):
            return HIDDEN
        shown = copy.copy(value)
        for name, one in changes.items():
            object.__setattr__(shown, name, one)
        return shown

    def _item(self, name: object, value: Any, level: int) -> Any:
        if is_hidden(self.names, name):
            return HIDDEN
        return self.hide(value, level)


def _differs(before: Iterable[Any], after: Iterable[Any]) -> bool:
    return any(old is not new for old, new in zip(before, after, strict=True))


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object, read without code of its class. Classes and modules have none."""
    kind = type(value)
    if issubclass(kind, UNSEARCHED_TYPES):
        return {}
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        return {name: object.__getattribute__(value, name) for name in names}
    try:
        return dict(object.__getattribute__(value, "__dict__"))
    except AttributeError:
        return {}


# Calls


def hide_arguments(
    names: Names,
    function: Callable[..., Any] | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    passed_on: int = 0,
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call as they are shown.

    The names of positional arguments are those of the parameters of `function`; without it only
    names within their values count. `passed_on`: the number of parameters before them that get
    results of other jobs.
    """
    if not names:
        return list(args), dict(kwargs)
    parameters = _parameter_names(function, len(args) + passed_on)[passed_on:]
    shown = []
    for number, value in enumerate(args):
        name = parameters[number] if number < len(parameters) else ""
        shown.append(HIDDEN if is_hidden(names, name) else hide(names, value))
    return shown, {
        name: HIDDEN if is_hidden(names, name) else hide(names, value)
        for name, value in kwargs.items()
    }


def hides_any(
    names: Names, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> bool:
    """Whether an argument of this call is hidden, or a part of one."""
    shown_args, shown_kwargs = hide_arguments(names, function, args, kwargs)
    return _differs(args, shown_args) or _differs(kwargs.values(), shown_kwargs.values())


def _parameter_names(function: Callable[..., Any] | None, count: int) -> list[str]:
    """The parameters that take `count` positional arguments. That of `*args` takes all the rest."""
    if function is None:
        return []
    found: list[str] = []
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return found + [parameter.name] * max(0, count - len(found))
        found.append(parameter.name)
    return found


# Texts


def hide_text(names: Names, text: str) -> str:
    """`text` with `hidden` for the values after a hidden name: `name=…`, `'name': …`.

    This is for texts of programs that do not know the setting. A positional argument has no name in
    them, and is not found.
    """
    if not names:
        return text
    return _pattern(names).sub(r"\1hidden", text)


@lru_cache(maxsize=8)
def _pattern(names: Names) -> re.Pattern[str]:
    words = "|".join("[_-]{0,2}".join(map(re.escape, name)) for name in fold_names(names))
    return re.compile(
        rf"""((?:{words})[\w-]{{0,100}}(?:=|['"]:\s?))(?:{VALUE_PATTERN})""",
        re.IGNORECASE | re.DOTALL,
    )


def secrets_of(
    names: Names,
    function: Callable[..., Any] | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    passed_on: int = 0,
) -> list[str]:
    """The hidden texts among the arguments of a call, for `mask`; the longest first."""
    if not names:
        return []
    parameters = _parameter_names(function, len(args) + passed_on)[passed_on:]
    named = [*zip(parameters, args, strict=False), *kwargs.items()]
    rest = [("", value) for value in args[len(parameters) :]]
    found: set[str] = set()
    for name, value in (*named, *rest):
        found.update(_secrets(names, value, is_hidden(names, name), 0))
    return sorted(found, key=len, reverse=True)


def _secrets(names: Names, value: Any, is_secret: bool, level: int) -> Iterator[str]:
    """The texts and numbers of a value that are hidden, or all of them if it `is_secret`."""
    if level > MAX_LEVELS:
        return
    kind = type(value)
    if kind is str and is_secret and len(value) >= SECRET_MIN_CHARACTERS:
        yield value
        yield repr(value)[1:-1]  # as an exception shows it
        # The output of a job is kept line by line.
        lines = value.splitlines()[:SECRET_MAX_LINES]
        yield from (line for line in lines if len(line) >= SECRET_MIN_CHARACTERS)
    elif kind is int and is_secret and value.bit_length() < MAX_NUMBER_BITS:
        yield from [str(value)] if abs(value) >= SECRET_MIN_NUMBER else []
    elif not issubclass(kind, PLAIN_TYPES):
        for name, one in _parts(value):
            yield from _secrets(names, one, is_secret or is_hidden(names, name), level + 1)


def _parts(value: Any) -> list[tuple[object, Any]]:
    """The parts of a value with their names, read without code of its class."""
    kind = type(value)
    if issubclass(kind, dict):
        return list(dict.items(value))
    for container in (list, tuple):
        if issubclass(kind, container):
            return [("", one) for one in container.__iter__(value)]
    return list(_attributes(value).items())


def mask(text: str, secrets: Iterable[str]) -> str:
    """`text` with `hidden` in the place of each of `secrets`."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text
