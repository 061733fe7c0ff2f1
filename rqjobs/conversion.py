"""Conversion: JSON and typed text become the values that a function's annotations ask for.

The pages and the command line use it. The values are those that a payload can carry. An error
names the place: `items[3].price: 'abc' is not a number`. Where an annotation does not describe the
value, any JSON is accepted.
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
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, TypeVar
from uuid import UUID

MAX_JSON_DEPTH = 60  # containers inside one another
QUOTED_CHARACTERS = 60  # of a value in an error
QUOTED_PATH_CHARACTERS = 120
EXAMPLE_MAX_DEPTH = 3  # records inside one another
NoneType = type(None)
ANY_JSON = (Any, object, inspect.Parameter.empty)  # annotations that accept any JSON
POSITIONAL_KINDS = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)
UNIONS = (typing.Union, types.UnionType)
VARIADIC_TYPES: dict[Any, Any] = {
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
    """A value does not fit its annotation."""

    def __init__(self, path: str, problem: str):
        where = path
        if len(path) >= QUOTED_PATH_CHARACTERS:
            where = f"…{path[-QUOTED_PATH_CHARACTERS:]}"
        if where:
            problem = f"{where}: {problem}"
        super().__init__(problem)


@dataclasses.dataclass(frozen=True)
class Scalar:
    """A type that is read from text: its name in errors, its reader, and the JSON types for it."""

    what: str
    read: Callable[[str], Any]
    json: tuple[type, ...] = (str,)


@dataclasses.dataclass(frozen=True)
class RecordFields:
    """The annotation of each field of a record, and the names of the required fields."""

    annotations: dict[str, Any]
    required: set[str]


def parse_int(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,1000}", text):
        raise ValueError
    return int(text)


def parse_float(text: str) -> float:
    number = float(text)
    # JSON has no infinite number. Python would take 1_0 for 10.
    if number - number != 0 or "_" in text:
        raise ValueError
    return number


def parse_decimal(text: str) -> Decimal:
    number = Decimal(text)
    if not number.is_finite() or "_" in text:
        raise ValueError
    return number


def parse_datetime(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def parse_seconds(text: str) -> timedelta:
    return timedelta(seconds=parse_float(text))


NUMBERS = (int, float, Decimal)
TRUTH_VALUES = {"True": True, "False": False, "true": True, "false": False}
SCALARS: dict[type, Scalar] = {
    bool: Scalar("true or false", TRUTH_VALUES.__getitem__, (bool,)),
    int: Scalar("a whole number", parse_int, (int,)),
    float: Scalar("a number", parse_float, NUMBERS),
    str: Scalar("a text", str),
    bytes: Scalar("a text", str.encode),
    datetime: Scalar("a date and time", parse_datetime),
    date: Scalar("a date", date.fromisoformat),
    timedelta: Scalar("a number of seconds", parse_seconds, NUMBERS),
    Decimal: Scalar("a decimal number", parse_decimal, (str, *NUMBERS)),
    UUID: Scalar("a UUID", UUID),
}


# Annotations


def annotations_of(thing: Any) -> dict[str, Any]:
    """The resolved annotations of a function or a class, by name.

    An annotation that cannot be resolved is `Any`: it names what only type checkers import, or it
    is no expression.
    """
    try:
        return typing.get_type_hints(thing)
    except Exception:  # evaluating an annotation may raise anything
        pass
    found: dict[str, Any] = {}
    owners = [thing]
    if inspect.isclass(thing):
        owners = list(reversed(thing.__mro__))
    for owner in owners:
        names = vars(sys.modules.get(owner.__module__, types))
        for name, annotation in vars(owner).get("__annotations__", {}).items():
            single = types.SimpleNamespace(__annotations__={name: annotation})
            try:
                found |= typing.get_type_hints(single, names, {owner.__name__: owner})
            except Exception:
                found[name] = Any
    return found


def parameter_types(function: Callable[..., Any]) -> dict[str, Any]:
    """The type of each parameter. A starred parameter takes a list or a dict of its annotation."""
    annotations = annotations_of(function)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = annotations.get(name, inspect.Parameter.empty)
        container = VARIADIC_TYPES.get(parameter.kind)
        if container and typing.get_origin(annotation) not in WRAPPERS:
            # `**options: Unpack[Options]` describes the whole dict: it is left as it is.
            annotation = _container_of(container, annotation)
        found[name] = annotation
    return found


def _container_of(container: Any, annotation: Any) -> Any:
    if annotation in ANY_JSON:
        annotation = Any
    if container is dict:
        return dict[str, annotation]
    return list[annotation]


def unwrap(annotation: Any) -> Any:
    """The annotation behind wrappers, type aliases, `NewType` and type variables."""
    while True:
        if typing.get_origin(annotation) in WRAPPERS:
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, dataclasses.InitVar):
            annotation = annotation.type
        elif isinstance(annotation, TypeVar):
            constraints = annotation.__constraints__ or (Any,)
            annotation = annotation.__bound__ or typing.Union[constraints]  # noqa: UP007
        elif type(annotation).__name__ == "TypeAliasType":  # `type Ids = list[int]`
            annotation = annotation.__value__
        elif hasattr(annotation, "__supertype__"):  # typing.NewType
            annotation = annotation.__supertype__
        else:
            return annotation


def record_fields(annotation: Any) -> RecordFields | None:
    """The fields of a dataclass, a named tuple or a typed dict; None for another type."""
    cls = typing.get_origin(annotation) or annotation
    if not inspect.isclass(cls):
        return None
    annotations = annotations_of(cls)
    if typing.is_typeddict(cls):
        return RecordFields(annotations, set(cls.__required_keys__))  # type: ignore[attr-defined]
    is_named_tuple = issubclass(cls, tuple) and hasattr(cls, "_fields")
    if not dataclasses.is_dataclass(cls) and not is_named_tuple:
        return None
    annotations = _with_type_arguments(annotations, cls, typing.get_args(annotation))
    parameters = [
        parameter
        for parameter in inspect.signature(cls).parameters.values()
        if parameter.kind not in VARIADIC_TYPES
    ]
    return RecordFields(
        {parameter.name: annotations.get(parameter.name, Any) for parameter in parameters},
        {parameter.name for parameter in parameters if parameter.default is parameter.empty},
    )


def _with_type_arguments(
    annotations: dict[str, Any], cls: type, arguments: tuple[Any, ...]
) -> dict[str, Any]:
    """The annotations of a generic class with its type variables replaced, as in `Pair[int]`."""
    given = dict(zip(getattr(cls, "__parameters__", ()), arguments, strict=False))
    found = {}
    for name, annotation in annotations.items():
        variables = getattr(annotation, "__parameters__", ())
        if variables:
            found[name] = annotation[tuple(given.get(each, each) for each in variables)]
        else:
            found[name] = given.get(annotation, annotation)
    return found


# From text to values


def parse_json(text: str) -> Any:
    """The JSON in a text. Fractions are `Decimal`, so that no digit is lost before `convert`.

    Raises:
        ValueError: it is not JSON, has too many containers inside one another, has a number that
            `Decimal` cannot hold, or an object has two values of one name.
    """
    try:
        value = json.loads(
            text,
            parse_float=_parse_fraction,
            parse_constant=_refuse_constant,
            object_pairs_hook=_parse_object,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [item for container in level for item in _items(container)]
    if level:
        raise ValueError(f"it has more than {MAX_JSON_DEPTH} lists and objects in each other")
    return value


def _items(container: Any) -> Iterable[Any]:
    if isinstance(container, dict):
        return container.values()
    if isinstance(container, list):
        return container
    return ()


def _parse_fraction(text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError:
        raise ValueError(f"the number {quote(text)} is out of range") from None


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"an object has two values of the name {quote(twice)}")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


def read_text(text: str, annotation: Any, path: str) -> Any:
    """A typed text as the `annotation` asks for it: as JSON if that fits, else as the text itself.

    Raises:
        ConversionError: neither fits.
    """
    try:
        value = parse_json(text)
    except ValueError as error:
        try:
            return convert(text, annotation, path)
        except ConversionError:
            if text.lstrip()[:1] in ("{", "["):
                raise ConversionError(path, f"{quote(text)} is not JSON: {error}") from None
            raise
    try:
        return convert(value, annotation, path)
    except ConversionError:
        if isinstance(value, list | dict):
            raise
        return convert(text, annotation, path)


def read_call(
    function: Callable[..., Any],
    args: Sequence[str],
    kwargs: Mapping[str, str],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments for `function` in these typed texts, positional and by keyword.

    Raises:
        TypeError: they do not fit the signature.
        ConversionError: an argument does not fit its annotation.
    """
    inspect.signature(function).bind(*args, **kwargs)
    positional, named = _call_types(function, len(args), list(kwargs))
    values = [
        read_text(text, annotation, name)
        for text, (name, annotation) in zip(args, positional, strict=False)
    ]
    return tuple(values), {
        name: read_text(text, named.get(name, Any), name) for name, text in kwargs.items()
    }


@dataclasses.dataclass(frozen=True)
class ConvertedCall:
    """The arguments of a call, and their errors: a message for each place."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    errors: dict[str, str]


def convert_call(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> ConvertedCall:
    """The JSON values of a call as the annotations of `function` ask for them.

    The places in the errors are `args[0]` and `kwargs.name`.

    Raises:
        TypeError: they do not fit the signature.
    """
    inspect.signature(function).bind(*args, **kwargs)
    positional, named = _call_types(function, len(args), list(kwargs))
    found: dict[str, Any] = {}
    errors: dict[str, str] = {}
    places = [
        (f"args[{index}]", value, annotation)
        for index, (value, (_, annotation)) in enumerate(zip(args, positional, strict=False))
    ]
    places += [(f"kwargs.{name}", value, named.get(name, Any)) for name, value in kwargs.items()]
    for place, value, annotation in places:
        try:
            found[place] = convert(value, annotation, "")
        except ConversionError as error:
            errors[place] = str(error).removeprefix(".")
        except (ArithmeticError, RecursionError) as error:  # a number beyond what its type can hold
            errors[place] = str(error) or "is too large"
    values = list(found.values())
    number = len(args) if not errors else 0
    return ConvertedCall(
        tuple(values[:number]), dict(zip(kwargs, values[number:], strict=False)), errors
    )


def _call_types(
    function: Callable[..., Any], count: int, names: list[str]
) -> tuple[list[tuple[str, Any]], dict[str, Any]]:
    """The name and annotation of each of `count` positional arguments, and those by keyword."""
    kinds = {
        name: parameter.kind for name, parameter in inspect.signature(function).parameters.items()
    }
    annotations = parameter_types(function)
    return (
        _positional_types(kinds, annotations, count),
        _keyword_types(kinds, annotations, names),
    )


def _positional_types(
    kinds: dict[str, Any], annotations: dict[str, Any], count: int
) -> list[tuple[str, Any]]:
    """The name and the annotation of each of `count` positional arguments."""
    found = [(name, annotations[name]) for name, kind in kinds.items() if kind in POSITIONAL_KINDS]
    for name, kind in kinds.items():
        if kind is inspect.Parameter.VAR_POSITIONAL:
            (item,) = typing.get_args(annotations[name])
            found += [(f"{name}[{index}]", item) for index in range(count - len(found))]
    return found


def _keyword_types(
    kinds: dict[str, Any], annotations: dict[str, Any], names: list[str]
) -> dict[str, Any]:
    """The annotation of each keyword argument of these `names`, and of each other parameter."""
    found = {name: annotations[name] for name, kind in kinds.items() if kind not in VARIADIC_TYPES}
    for name, kind in kinds.items():
        if kind is inspect.Parameter.VAR_KEYWORD:
            record = record_fields(unwrap(annotations[name]))
            if record:
                found = record.annotations | found
            else:
                found = dict.fromkeys(names, typing.get_args(annotations[name])[-1]) | found
    return found


# From JSON to values


def convert(value: Any, annotation: Any, path: str) -> Any:
    """The JSON `value` as the `annotation` asks for it. `path` names its place in errors.

    Raises:
        ConversionError: it does not fit.
    """
    annotation = unwrap(annotation)
    origin = typing.get_origin(annotation) or annotation
    inner = typing.get_args(annotation)
    if origin in UNIONS:
        return _convert_union(value, inner, path)
    if origin is Literal:
        return _convert_literal(value, inner, path)
    if annotation is None or annotation is NoneType:
        return _check(value, value is None, "null", path)
    if annotation in ANY_JSON or not inspect.isclass(origin):
        return _convert_any(value, path)
    if issubclass(origin, Enum):
        return _convert_enum(value, origin, path)
    record = record_fields(annotation)
    if record:
        return _convert_record(value, origin, record, path)
    if origin in CONTAINERS:
        return _convert_items(value, origin, inner, path)
    if issubclass(origin, dict) or origin in MAPPINGS:
        if len(inner) != 2:
            inner = (Any, Any)
        return _convert_mapping(value, inner[0], inner[1], path)
    return _convert_scalar(value, origin, path)


def _check(value: Any, is_right: bool, what: str, path: str) -> Any:
    if not is_right:
        raise ConversionError(path, f"{quote(value)} is not {what}")
    return value


def _convert_scalar(value: Any, cls: type, path: str) -> Any:
    scalar = SCALARS.get(cls)
    if scalar is None:
        bases = [base for base in SCALARS if issubclass(cls, base)]
        if not bases:
            return _convert_other(value, cls, path)
        scalar = SCALARS[bases[0]]
    _check(value, type(value) in scalar.json, scalar.what, path)
    return _read_scalar(str(value), scalar, path)


def _convert_other(value: Any, cls: type, path: str) -> Any:
    """A JSON value for a class such as `numbers.Number`, which JSON's own types are members of."""
    try:
        if isinstance(value, cls):
            return _convert_any(value, path)
    except TypeError:  # a protocol that does not support isinstance
        pass
    raise ConversionError(
        path,
        f"no {cls.__name__} can be made from JSON; let the function take what JSON has, "
        f"or an enum or a dataclass of a jobs module",
    )


def _read_scalar(text: str, scalar: Scalar, path: str) -> Any:
    try:
        return scalar.read(text)
    except (ValueError, KeyError, ArithmeticError):
        raise ConversionError(path, f"{quote(text)} is not {scalar.what}") from None


def _convert_any(value: Any, path: str) -> Any:
    """JSON as Python has it: a fraction becomes a float."""
    if isinstance(value, Decimal):
        return _read_scalar(str(value), SCALARS[float], path)
    if isinstance(value, list):
        return [_convert_any(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict):
        return {key: _convert_any(item, f"{path}.{key}") for key, item in value.items()}
    return value


def _convert_union(value: Any, options: tuple[Any, ...], path: str) -> Any:
    """The first option that fits; the option of the value's own type is tried first."""
    if value is None and NoneType in options:
        return None
    native: Any = type(value)
    if isinstance(value, Decimal):
        native = float
    others = [option for option in options if option is not NoneType]
    problems = []
    for option in sorted(others, key=lambda option: unwrap(option) is not native):
        try:
            return convert(value, option, path)
        except ConversionError as error:
            problems.append(str(error))
    if len(problems) == 1:
        raise ConversionError("", problems[0])
    names = ", ".join(annotation_name(option) for option in others)
    raise ConversionError(path, f"{quote(value)} is none of {names} ({'; '.join(problems):.300})")


def _is_same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and value == other


def _convert_literal(value: Any, options: tuple[Any, ...], path: str) -> Any:
    for option in options:
        if _is_same(value, option):
            return option
        if isinstance(option, Enum) and (value == option.name or _is_same(value, option.value)):
            return option
    names = ", ".join(map(repr, options))
    raise ConversionError(path, f"{quote(value)} is not one of {names:.200}")


def _convert_enum(value: Any, cls: type[Enum], path: str) -> Any:
    """The member with that name, else the member with that value."""
    if isinstance(value, str) and value in cls.__members__:
        return cls.__members__[value]
    for member in cls.__members__.values():
        if _is_same(value, member.value):
            return member
    raise ConversionError(path, f"{quote(value)} is not one of {', '.join(cls.__members__):.200}")


def _convert_record(value: Any, cls: Any, record: RecordFields, path: str) -> Any:
    names = ", ".join(record.annotations)
    is_short = isinstance(value, list) and len(value) <= len(record.annotations)
    if is_short and issubclass(cls, tuple):
        value = dict(zip(record.annotations, value, strict=False))
    _check(value, isinstance(value, dict), f"an object with {names:.200}", path)
    for key in value:
        if key not in record.annotations:
            raise ConversionError(path, f"there is no {quote(key)}; it takes {names:.200}")
    for key in record.annotations:
        if key in record.required and key not in value:
            raise ConversionError(path, f"{key} is missing")
    items = {
        key: convert(item, record.annotations[key], f"{path}.{key}") for key, item in value.items()
    }
    if typing.is_typeddict(cls):
        return items
    try:
        return cls(**items)
    except Exception as error:  # the class may check its values and raise anything
        raise ConversionError(path, (str(error) or type(error).__name__)[:300]) from None


def _convert_items(value: Any, cls: type, inner: tuple[Any, ...], path: str) -> Any:
    _check(value, isinstance(value, list), "a list", path)
    item_types = [inner[0] if inner else Any] * len(value)
    if cls is tuple and inner and inner[-1] is not ...:
        item_types = list(inner)
        if len(value) != len(item_types):
            raise ConversionError(
                path, f"a list of {len(item_types)} is wanted, and it has {len(value)}"
            )
    items = [
        convert(item, item_type, f"{path}[{index}]")
        for index, (item, item_type) in enumerate(zip(value, item_types, strict=True))
    ]
    try:
        return CONTAINERS[cls](items)
    except TypeError as error:  # a set of lists
        raise ConversionError(path, str(error)) from None


def _convert_mapping(value: Any, key_type: Any, item_type: Any, path: str) -> Any:
    _check(value, isinstance(value, dict), "an object", path)
    return {
        _convert_key(key, key_type, path): convert(item, item_type, f"{path}.{key}")
        for key, item in value.items()
    }


def _convert_key(text: str, annotation: Any, path: str) -> Any:
    """A key, which is always a text in JSON, as the annotation asks for it."""
    key_type = unwrap(annotation)
    if isinstance(key_type, collections.abc.Hashable) and key_type in SCALARS:
        return _read_scalar(text, SCALARS[key_type], f"{path}'s key")
    return read_text(text, annotation, f"{path}'s key")


# From values to JSON and to text


def to_json(value: Any) -> Any:
    """The JSON that `convert` turns into `value`."""
    if isinstance(value, Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return {name: to_json(getattr(value, name)) for name in fields}
    if isinstance(value, dict):
        return {_key_to_json(key): to_json(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(to_json, value))
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Decimal | UUID):
        return str(value)
    return value


def _key_to_json(key: Any) -> str:
    if isinstance(key, str):
        return key
    return str(to_json(key))


EXAMPLES: dict[Any, Any] = {
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
    NoneType: None,
}


def example(annotation: Any, depth: int = 0) -> Any:
    """Some JSON that fits the annotation, as a hint for people."""
    annotation = unwrap(annotation)
    origin = typing.get_origin(annotation) or annotation
    inner = [each for each in typing.get_args(annotation) if each is not ...]
    if origin is Literal:
        return to_json(inner[0])
    if origin in UNIONS:
        return example(next(each for each in inner if each is not NoneType), depth)
    if annotation is None:
        return None
    if not inspect.isclass(origin) or depth > EXAMPLE_MAX_DEPTH:
        return "a"
    if issubclass(origin, Enum):
        return next(iter(origin.__members__), None)
    record = record_fields(annotation)
    if record:
        required = [name for name in record.annotations if name in record.required]
        return {name: example(record.annotations[name], depth + 1) for name in required}
    if origin in CONTAINERS:
        return [example(each, depth + 1) for each in inner] or ["a", 2]
    if len(inner) == 2:
        return {str(example(inner[0], depth + 1)): example(inner[1], depth + 1)}
    return EXAMPLES.get(origin, "a")


def quote(value: Any) -> str:
    """A value in an error message, cut if it is long."""
    if isinstance(value, str):
        if len(value) >= QUOTED_CHARACTERS:
            value = value[: QUOTED_CHARACTERS - 3] + "…"
        text = repr(value)
    else:
        text = json.dumps(value, ensure_ascii=False, default=float)
    if len(text) >= 2 * QUOTED_CHARACTERS:
        return text[:QUOTED_CHARACTERS] + "…"
    return text


def annotation_name(annotation: Any) -> str:
    """An annotation as its author wrote it."""
    return inspect.formatannotation(annotation).replace("typing.", "")
