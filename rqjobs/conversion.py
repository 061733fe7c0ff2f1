"""JSON, and what people type, made into the values that a function's annotations ask for, all the way down.

The form and the command line use it. What it makes is what a payload can carry; the path says where something is
wrong: `items[3].price: 'abc' is not a number`. An annotation that says nothing of the value lets any JSON through.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, TypeVar
from uuid import UUID

MAX_DEPTH = 60  # containers in containers
SHOWN_CHARACTERS = 60  # of a value in an error
ANYTHING = (Any, object, inspect.Parameter.empty)
PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
UNIONS = (typing.Union, types.UnionType)
SEVERAL: dict[Any, Any] = {
    inspect.Parameter.VAR_POSITIONAL: list,
    inspect.Parameter.VAR_KEYWORD: dict,
}
WRAPPERS = [
    getattr(typing, name)
    for name in ("Annotated", "Final", "Required", "NotRequired", "Unpack")
    if hasattr(typing, name)
]
CONTAINERS: dict[type, Callable[[Iterable[Any]], Any]] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    collections.abc.Set: set,
    collections.abc.MutableSet: set,
    collections.abc.Sequence: list,
    collections.abc.MutableSequence: list,
    collections.abc.Collection: list,
    collections.abc.Iterable: list,
}
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


class ConversionError(ValueError):
    """A value is not what its annotation asks for."""

    def __init__(self, path: str, problem: str):
        where = path if len(path) < 120 else f"…{path[-120:]}"
        super().__init__(f"{where}: {problem}" if where else problem)


@dataclasses.dataclass(frozen=True)
class Scalar:
    """How a value of one type is read from text, in words what that is, and which JSON may stand for it."""

    what: str
    read: Callable[[str], Any]
    json: tuple[type, ...] = (str,)


def whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,1000}", text):
        raise ValueError
    return int(text)


def real(text: str) -> float:
    number = float(text)
    if number - number != 0:  # infinite, or not a number: JSON has neither
        raise ValueError
    return number


def exact(text: str) -> Decimal:
    number = Decimal(text)
    if not number.is_finite():
        raise ValueError
    return number


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


NUMBERS = (int, float, Decimal)
SCALARS: dict[type, Scalar] = {
    bool: Scalar(
        "true or false",
        {"True": True, "False": False, "true": True, "false": False}.__getitem__,
        (bool,),
    ),
    int: Scalar("a whole number", whole, (int,)),
    float: Scalar("a number", real, NUMBERS),
    str: Scalar("a text", str),
    bytes: Scalar("a text", str.encode),
    datetime: Scalar("a date and time", moment),
    date: Scalar("a date", date.fromisoformat),
    timedelta: Scalar("a number of seconds", lambda text: timedelta(seconds=real(text)), NUMBERS),
    Decimal: Scalar("a decimal number", exact, (str, *NUMBERS)),
    UUID: Scalar("a UUID", UUID),
}


# What the annotations are


def hints(thing: Any) -> dict[str, Any]:
    """The annotations of a function or a class by name; one that cannot be resolved here is `Any`."""
    try:
        return typing.get_type_hints(thing)
    except Exception:  # a name that is only imported for type checkers, or no expression at all
        found: dict[str, Any] = {}
        for owner in reversed(thing.__mro__) if inspect.isclass(thing) else [thing]:
            names = vars(sys.modules.get(owner.__module__, types))
            for name, annotation in vars(owner).get("__annotations__", {}).items():
                one = types.SimpleNamespace(__annotations__={name: annotation})
                try:
                    found |= typing.get_type_hints(one, names, {owner.__name__: owner})
                except Exception:
                    found[name] = Any
        return found


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """What each parameter takes; a starred one takes a list, or a dict, of what it says."""
    known, found = hints(function), {}
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = known.get(name, inspect.Parameter.empty)
        several = SEVERAL.get(parameter.kind)
        if (
            several and typing.get_origin(annotation) not in WRAPPERS
        ):  # not **options: Unpack[Options]
            one = Any if annotation in ANYTHING else annotation
            annotation = several[str, one] if several is dict else several[one]
        found[name] = annotation
    return found


def bare(annotation: Any) -> Any:
    """The annotation without what says nothing of the value: new names for a type, wrappers, type variables."""
    while True:
        if typing.get_origin(annotation) in WRAPPERS:
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, dataclasses.InitVar):
            annotation = annotation.type
        elif isinstance(annotation, TypeVar):
            annotation = annotation.__bound__ or typing.Union[annotation.__constraints__ or (Any,)]  # noqa: UP007
        elif type(annotation).__name__ == "TypeAliasType":  # `type Ids = list[int]`
            annotation = annotation.__value__
        elif hasattr(annotation, "__supertype__"):  # typing.NewType
            annotation = annotation.__supertype__
        else:
            return annotation


def fields(annotation: Any) -> tuple[dict[str, Any], set[str]] | None:
    """Of a dataclass, a named tuple, or a typed dict: what each field takes, and which are required; else None."""
    cls = typing.get_origin(annotation) or annotation
    if not inspect.isclass(cls):
        return None
    known = hints(cls)
    if typing.is_typeddict(cls):
        return known, set(cls.__required_keys__)  # type: ignore[attr-defined]
    if not (dataclasses.is_dataclass(cls) or (issubclass(cls, tuple) and hasattr(cls, "_fields"))):
        return None
    given = dict(
        zip(getattr(cls, "__parameters__", ()), typing.get_args(annotation), strict=False)
    )  # Pair[int]
    for name, hint in known.items():
        inner = getattr(hint, "__parameters__", ())
        known[name] = (
            hint[tuple(given.get(one, one) for one in inner)] if inner else given.get(hint, hint)
        )
    made = inspect.signature(cls).parameters.values()
    return (
        {one.name: known.get(one.name, Any) for one in made if one.kind not in SEVERAL},
        {one.name for one in made if one.default is one.empty and one.kind not in SEVERAL},
    )


# From JSON to values


def parse(text: str) -> Any:
    """The JSON in a text. Fractions are `Decimal`, so that none loses digits; `convert` makes them what they are to be.

    Raises:
        ValueError: it is no JSON, or nested deeper than can be read.
    """
    try:
        value = json.loads(text, parse_float=Decimal, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for one in level
            if isinstance(one, list | dict)
            for item in (one.values() if isinstance(one, dict) else one)
        ]
    if level:
        raise ValueError(f"it has more than {MAX_DEPTH} lists and objects in each other")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


def read(text: str, annotation: Any, path: str) -> Any:
    """What a typed text means where `annotation` is asked for: JSON if it reads as such and fits, else the text itself.

    Raises:
        ConversionError: neither fits.
    """
    try:
        value = parse(text)
    except ValueError as error:
        try:
            return convert(text, annotation, path)
        except ConversionError:
            if text.lstrip()[:1] in ("{", "["):
                raise ConversionError(path, f"{short(text)} is not JSON: {error}") from None
            raise
    try:
        return convert(value, annotation, path)
    except ConversionError:
        if isinstance(value, list | dict):
            raise
        return convert(text, annotation, path)


def call(
    function: Callable[..., Any],
    args: Sequence[str],
    kwargs: Mapping[str, str],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments for `function` that these typed texts mean.

    Raises:
        TypeError: they do not fit the signature.
        ConversionError: one is not what its annotation asks for.
    """
    signature, wanted = inspect.signature(function), parameters(function)
    signature.bind(*args, **kwargs)
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    places = [(name, wanted[name]) for name, kind in kinds.items() if kind in PLACED]
    named = {name: wanted[name] for name, kind in kinds.items() if kind not in SEVERAL}
    for name, kind in kinds.items():
        if kind is inspect.Parameter.VAR_POSITIONAL:
            (each,) = typing.get_args(wanted[name])
            places += [(f"{name}[{index}]", each) for index in range(len(args) - len(places))]
        elif kind is inspect.Parameter.VAR_KEYWORD:
            record = fields(bare(wanted[name]))
            named = (
                record[0] if record else dict.fromkeys(kwargs, typing.get_args(wanted[name])[-1])
            ) | named
    return (
        tuple(
            read(text, annotation, name)
            for text, (name, annotation) in zip(args, places, strict=False)
        ),
        {name: read(text, named.get(name, Any), name) for name, text in kwargs.items()},
    )


def convert(value: Any, annotation: Any, path: str) -> Any:
    """What the JSON `value` is as the `annotation` asks for it; `path` names it in errors.

    Raises:
        ConversionError: it is something else.
    """
    annotation = bare(annotation)
    origin = typing.get_origin(annotation) or annotation
    inner = typing.get_args(annotation)
    if origin in UNIONS:
        return _one_of(value, inner, path)
    if origin is Literal:
        return _literal(value, inner, path)
    if annotation is None or annotation is type(None):
        return _check(value, value is None, "null", path)
    if annotation in ANYTHING or not inspect.isclass(origin):
        return _as_it_is(value, path)
    if issubclass(origin, Enum):
        return _member(value, origin, path)
    record = fields(annotation)
    if record:
        return _record(value, origin, *record, path)
    if origin in CONTAINERS:
        return _several(value, origin, inner, path)
    if issubclass(origin, dict) or origin in MAPPINGS:
        key, item = inner if len(inner) == 2 else (Any, Any)
        return _mapping(value, key, item, path)
    return _scalar(value, origin, path)


def _check(value: Any, right: bool, what: str, path: str) -> Any:
    if not right:
        raise ConversionError(path, f"{short(value)} is not {what}")
    return value


def _scalar(value: Any, cls: type, path: str) -> Any:
    kind = SCALARS.get(cls) or next(
        (SCALARS[base] for base in SCALARS if issubclass(cls, base)), None
    )
    if kind is None:
        try:
            if isinstance(value, cls):  # numbers.Number, for example
                return _as_it_is(value, path)
        except TypeError:  # a protocol
            pass
        raise ConversionError(
            path,
            f"no {cls.__name__} can be made from JSON; let the function take what JSON has, "
            f"or an enum or a dataclass of a jobs module",
        )
    _check(value, type(value) in kind.json, kind.what, path)
    return from_text(value if isinstance(value, str) else str(value), kind, path)


def from_text(text: str, kind: Scalar, path: str) -> Any:
    try:
        return kind.read(text)
    except (ValueError, KeyError, ArithmeticError):
        raise ConversionError(path, f"{short(text)} is not {kind.what}") from None


def _as_it_is(value: Any, path: str) -> Any:
    """JSON as Python has it."""
    if isinstance(value, Decimal):
        return from_text(str(value), SCALARS[float], path)
    if isinstance(value, list):
        return [_as_it_is(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict):
        return {key: _as_it_is(item, f"{path}.{key}") for key, item in value.items()}
    return value


def _one_of(value: Any, options: tuple[Any, ...], path: str) -> Any:
    if value is None and type(None) in options:
        return None
    problems = []
    rest = [option for option in options if option is not type(None)]
    native = float if isinstance(value, Decimal) else type(value)
    for option in sorted(
        rest, key=lambda option: bare(option) is not native
    ):  # what it is already comes first
        try:
            return convert(value, option, path)
        except ConversionError as error:
            problems.append(str(error))
    if len(problems) == 1:
        raise ConversionError("", problems[0])
    names = ", ".join(name(option) for option in rest)
    raise ConversionError(path, f"{short(value)} is none of {names} ({'; '.join(problems):.300})")


def _literal(value: Any, values: tuple[Any, ...], path: str) -> Any:
    for one in values:
        if type(one) is type(value) and one == value:
            return one
        if isinstance(one, Enum) and (
            value == one.name or (type(one.value) is type(value) and one.value == value)
        ):
            return one
    raise ConversionError(path, f"{short(value)} is not one of {', '.join(map(repr, values)):.200}")


def _member(value: Any, cls: type[Enum], path: str) -> Any:
    """The member of that name or value."""
    if isinstance(value, str) and value in cls.__members__:
        return cls.__members__[value]
    for member in cls.__members__.values():
        if type(member.value) is type(value) and member.value == value:
            return member
    raise ConversionError(path, f"{short(value)} is not one of {', '.join(cls.__members__):.200}")


def _record(
    value: Any,
    cls: Any,
    wanted: dict[str, Any],
    required: set[str],
    path: str,
) -> Any:
    if isinstance(value, list) and issubclass(cls, tuple):
        value = dict(zip(wanted, value, strict=False)) if len(value) <= len(wanted) else value
    _check(value, isinstance(value, dict), f"an object with {', '.join(wanted):.200}", path)
    for key in value:
        if key not in wanted:
            raise ConversionError(
                path, f"there is no {short(key)}; it takes {', '.join(wanted):.200}"
            )
    for key in wanted:
        if key in required and key not in value:
            raise ConversionError(path, f"{key} is missing")
    items = {key: convert(item, wanted[key], f"{path}.{key}") for key, item in value.items()}
    if typing.is_typeddict(cls):
        return items
    try:
        return cls(**items)
    except Exception as error:  # its __post_init__ may raise what it likes
        raise ConversionError(path, (str(error) or type(error).__name__)[:300]) from None


def _several(value: Any, cls: type, inner: tuple[Any, ...], path: str) -> Any:
    _check(value, isinstance(value, list), "a list", path)
    each = [inner[0] if inner else Any] * len(value)
    if cls is tuple and inner and inner[-1] is not ...:
        each = list(inner)
        if len(value) != len(each):
            raise ConversionError(path, f"a list of {len(each)} is wanted, and it has {len(value)}")
    items = [
        convert(item, one, f"{path}[{index}]")
        for index, (item, one) in enumerate(zip(value, each, strict=True))
    ]
    try:
        return CONTAINERS[cls](items)
    except TypeError as error:  # a set of lists
        raise ConversionError(path, str(error)) from None


def _mapping(value: Any, key: Any, item: Any, path: str) -> Any:
    _check(value, isinstance(value, dict), "an object", path)
    return {
        _key(one, key, path): convert(each, item, f"{path}.{one}") for one, each in value.items()
    }


def _key(text: str, annotation: Any, path: str) -> Any:
    """A key, which is a text in JSON, whatever it stands for."""
    kind = (
        SCALARS.get(bare(annotation))
        if isinstance(bare(annotation), collections.abc.Hashable)
        else None
    )
    return (
        from_text(text, kind, f"{path}'s key") if kind else read(text, annotation, f"{path}'s key")
    )


# From values to JSON, and to words


def plain(value: Any) -> Any:
    """The JSON that `convert` makes into `value`."""
    if isinstance(value, Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else str(plain(key)): plain(item)
            for key, item in value.items()
        }
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value))
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return value.decode()
    return str(value) if isinstance(value, Decimal | UUID) else value


SAMPLES: dict[Any, Any] = {
    bool: True,
    int: 3,
    float: 1.5,
    bytes: "a",
    datetime: "2030-12-31T12:00:00",
    date: "2030-12-31",
    timedelta: 60,
    Decimal: "9.90",
    UUID: str(UUID(int=0)),
    dict: {"a": 2},
    type(None): None,
}


def sample(annotation: Any, depth: int = 0) -> Any:
    """Some JSON that fits, for people to see what is wanted."""
    annotation = bare(annotation)
    origin = typing.get_origin(annotation) or annotation
    inner = [one for one in typing.get_args(annotation) if one is not ...]
    if origin is Literal:
        return plain(inner[0])
    if origin in UNIONS:
        return sample(next(one for one in inner if one is not type(None)), depth)
    if not inspect.isclass(origin) or depth > 3:
        return None if annotation is None else "a"
    if issubclass(origin, Enum):
        return next(iter(origin.__members__), None)
    record = fields(annotation)
    if record:
        return {key: sample(one, depth + 1) for key, one in record[0].items() if key in record[1]}
    if origin in CONTAINERS:
        return [sample(one, depth + 1) for one in inner] or ["a", 2]
    if inner and len(inner) == 2:
        return {str(sample(inner[0], depth + 1)): sample(inner[1], depth + 1)}
    return SAMPLES.get(origin, "a")


def short(value: Any) -> str:
    """A value as an error shows it."""
    if isinstance(value, str):
        words = repr(
            value if len(value) < SHOWN_CHARACTERS else value[: SHOWN_CHARACTERS - 3] + "…"
        )
    else:
        words = json.dumps(value, ensure_ascii=False, default=float)
    return words if len(words) < 2 * SHOWN_CHARACTERS else words[:SHOWN_CHARACTERS] + "…"


def name(annotation: Any) -> str:
    """An annotation as its author wrote it."""
    return inspect.formatannotation(annotation).replace("typing.", "")
