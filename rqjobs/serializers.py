"""What a payload may be: JSON for arguments, results and meta; signed pickle for those who must.

JSON as RQ's own JSONSerializer writes it, so a stock `rq worker -S json` runs a job whose arguments are plain.
What JSON lacks becomes an object with the one key `__rqjobs__`, whose value is a list: the kind, then its parts.
Reading never imports what a payload names and never calls anything but constructors of the standard library's values;
enums and dataclasses are restored only if their class was given to `allow` (the catalog does it for its own modules).
Its size, its depth, the number of its values and of those that collide are limited before anything is built of it.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import pickle
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntFlag
from functools import reduce
from itertools import accumulate
from operator import or_
from types import BuiltinFunctionType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from rqjobs import config, texts

TAG = "__rqjobs__"
DEPTH_MAX_LEVELS = 200  # lists and objects within each other, of the JSON
SAME_HASH_MAX_VALUES = 64  # in one dict or set: each is compared with all that came before it
COMBINED_FLAGS_MAX = 10_000  # that reading keeps in memory
JSON_TYPES = frozenset((str, int, float, bool, type(None)))
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_classes: dict[str, type] = {}
_combined_flags: dict[tuple[Any, int, int], None] = {}
load_classes: Callable[[], object] = (
    dict  # the catalog's way to find the classes that may travel, until it was loaded
)


class PayloadError(TypeError):
    """A value cannot be carried, or data found in Redis are not a payload of ours."""


class ValueTooLarge(PayloadError):
    """A value is larger, or has more parts, than is read again."""


def allow(classes: Iterable[type]) -> None:
    """Let these enums and dataclasses travel in payloads."""
    for cls in classes:
        _classes[class_name(cls)] = cls


def class_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _allowed(name: str) -> type | None:
    """The class of this name that may travel; a process that has enqueued nothing yet loads the catalog for it."""
    if name not in _classes:
        load_classes()
    return _classes.get(name)


def encode(value: Any, where: str = "the value") -> Any:
    """`value` as JSON's own types. `where` names it in errors and grows with the path: `argument 'x'[3]['y']`.

    Raises:
        PayloadError: something in it cannot be carried.
    """
    try:
        return _encode(value, where)
    except RecursionError:
        raise PayloadError(f"{where} contains itself, or is nested too deeply for JSON") from None


def _encode(value: Any, where: str) -> Any:
    kind = type(value)
    if kind in JSON_TYPES:
        return value
    if kind is list:  # what most values are, before anything that takes time to find out
        return [
            item if type(item) in JSON_TYPES else _encode(item, f"{where}[{index}]")
            for index, item in enumerate(value)
        ]
    if isinstance(value, Enum):
        return {TAG: ["enum", class_name(kind), *_member(value, where)]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {TAG: ["dataclass", class_name(kind), _fields(value, where)]}
    if isinstance(value, dict):
        if all(type(key) is str for key in value) and TAG not in value:
            return {
                key: item if type(item) in JSON_TYPES else _encode(item, f"{where}[{key!r}]")
                for key, item in value.items()
            }
        _check_hashes(value, where)
        return {
            TAG: [
                "dict",
                [
                    [_encode(key, f"{where}'s key {key!r}"), _encode(item, f"{where}[{key!r}]")]
                    for key, item in value.items()
                ],
            ]
        }
    if isinstance(value, list | tuple | set | frozenset):
        items_ = [_encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
        if isinstance(value, list):
            return items_
        if not isinstance(value, tuple):
            _check_hashes(value, where)
            items_.sort(key=repr)  # equal sets come in any order
        name = next(base.__name__ for base in (tuple, frozenset, set) if isinstance(value, base))
        return {TAG: [name, items_]}
    if isinstance(value, datetime):
        return {TAG: ["datetime", *_moment(value)]}
    for base, (name, write, _) in _SCALARS.items():
        if isinstance(value, base):
            return {TAG: [name, write(value)]}
    for plain in (
        str,
        int,
        float,
    ):  # subclasses (numpy's float64, a str subclass) travel as what they extend
        if isinstance(value, plain):
            return plain(value)
    raise PayloadError(
        f"{where} is a {texts.class_name(kind)}, which JSON cannot carry; pass an id, and fetch the rest "
        f"inside the job"
    )


def _member(value: Enum, where: str) -> tuple[str | None, Any]:
    """The name of a member; of flags that are combined, None and the value."""
    kind = type(value)
    _known(kind, where)
    if kind.__members__.get(value.name) is value:
        return value.name, None
    if not isinstance(value, Flag) or not _is_combined(kind, value.value):
        raise PayloadError(
            f"{where} is no member of {class_name(kind)}, nor made of its flags; pass its value"
        )
    return None, value.value


def _fields(value: Any, where: str) -> dict[str, Any]:
    """What is in a dataclass, by name."""
    _known(type(value), where)
    names = [field.name for field in dataclasses.fields(value)]
    for name in names:
        if not hasattr(value, name):
            raise PayloadError(f"{where}.{name} is not set")
    return {name: _encode(getattr(value, name), f"{where}.{name}") for name in names}


def _moment(value: datetime) -> list[Any]:
    """A datetime as ISO 8601, the name of its zone if it has one, its fold, and an odd offset."""
    zone = value.tzinfo.key if isinstance(value.tzinfo, ZoneInfo) else None
    offset = None if zone else value.utcoffset()
    if offset is None or not offset.microseconds:
        text = value.replace(tzinfo=None).isoformat() if zone else value.isoformat()
        return [text, zone, value.fold]
    # Python 3.11 reads an offset of +00:00:00.000001 as none.
    return [
        value.replace(tzinfo=None).isoformat(),
        None,
        value.fold,
        [offset.days, offset.seconds, offset.microseconds],
    ]


def _known(kind: type, where: str) -> None:
    if _allowed(class_name(kind)) is not kind:
        raise PayloadError(
            f"{where} is a {class_name(kind)}, which is not defined in a module of RQJOBS_MODULES"
        )


def _check_hashes(values: Collection[Any], where: str) -> None:
    """Refuse many values of one hash: a dict or a set of them takes hours, and integers are easily made so."""
    if (
        len(values) > SAME_HASH_MAX_VALUES
        and max(Counter(map(hash, values)).values()) > SAME_HASH_MAX_VALUES
    ):
        raise PayloadError(
            f"{where} has more than {SAME_HASH_MAX_VALUES} keys or members of one hash; pass a list"
        )


def _check_size(data: bytes) -> None:
    limit = config.current().max_value_bytes
    if len(data) > limit:
        raise ValueTooLarge(
            f"the value is {len(data):,} bytes, more than {limit:,} (twice the larger of "
            f"RQJOBS_MAX_PAYLOAD_BYTES and RQJOBS_MAX_RESULT_BYTES); store it elsewhere, and pass where it is"
        )


def _check_shape(data: bytes) -> None:
    """Refuse JSON that is too large, has too many values or too many levels, from its bytes alone.

    Raises:
        PayloadError: it is, before anything was built of it.
    """
    if len(data) <= DEPTH_MAX_LEVELS:  # so short, it cannot be any of it
        return
    _check_size(data)
    most = config.current().max_value_bytes // 2
    if len(data) > most:  # else there cannot be so many parts
        bare = _STRING.sub(b"", data)
        if bare.count(b"[") + bare.count(b"{") + bare.count(b",") > most:
            raise ValueTooLarge(
                f"the value has more than {most:,} parts; store it elsewhere, and pass where it is"
            )
    if data.count(b"[") + data.count(b"{") > DEPTH_MAX_LEVELS and _levels(data) > DEPTH_MAX_LEVELS:
        raise PayloadError(
            f"the value is nested too deeply for JSON, by more than {DEPTH_MAX_LEVELS} levels"
        )


def _levels(data: bytes) -> int:
    """How deep the lists and objects are within each other; 0 if that is few levels."""
    brackets = data.translate(None, _NOT_BRACKETS)
    for _ in range(8):  # most are: take the innermost pairs away until none is left
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if not brackets:
        return 0
    bare = _STRING.sub(b"", data).translate(None, _NOT_BRACKETS)
    return max(accumulate(1 if bracket in b"[{" else -1 for bracket in bare), default=0)


_SCALARS: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    date: ("date", date.isoformat, date.fromisoformat),
    timedelta: (
        "timedelta",
        lambda v: [v.days, v.seconds, v.microseconds],
        lambda v: timedelta(*v),
    ),
    UUID: ("uuid", str, UUID),
    Decimal: ("decimal", str, Decimal),
    bytes: (
        "bytes",
        lambda v: base64.b64encode(v).decode(),
        lambda v: base64.b64decode(v, validate=True),
    ),
}
_READ = {name: read for name, _, read in _SCALARS.values()}


def decode(value: Any) -> Any:
    """The inverse of `encode`.

    Raises:
        PayloadError: a class is not known here, or the value was not written by `encode`.
    """
    if type(value) in JSON_TYPES:
        return value
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if TAG not in value:
        return {key: decode(item) for key, item in value.items()}
    try:
        (kind, *parts) = value[TAG]
        if kind in _READ:
            return _READ[kind](*parts)
        return _COMPOUND[kind](*parts)
    except PayloadError:
        raise
    except Exception as error:
        raise PayloadError(f"not a payload of rqjobs: {str(value)[:80]} ({error})") from None


def _datetime(text: str, zone: str | None, fold: int, offset: list[int] | None = None) -> datetime:
    moment = datetime.fromisoformat(text)
    if offset:
        return moment.replace(tzinfo=timezone(timedelta(*offset)), fold=fold)
    return moment.replace(tzinfo=ZoneInfo(zone) if zone else moment.tzinfo, fold=fold)


def _class(name: str, base: Callable[[type], bool]) -> type:
    cls = _allowed(name)
    if cls is None or not base(cls):
        raise PayloadError(
            f"the payload has a {name}, which no module of RQJOBS_MODULES defines here"
        )
    return cls


def _enum(name: str, member: str | None, value: Any) -> Any:
    """A member by its name, or flags by their bits; the class is never called, nor its own `_missing_`."""
    cls: Any = _class(name, lambda c: issubclass(c, Enum))
    if member is not None:
        return cls.__members__[member]
    if not issubclass(cls, Flag) or not _is_combined(cls, value):
        raise PayloadError(f"the payload has a {name} that is no member, nor made of its flags")
    return cls._value2member_map_.get(value) or _combine(cls, value)


def _is_combined(cls: Any, value: Any) -> bool:
    """Whether this is a combination of the flags of `cls`, and of no other bits."""
    known = reduce(or_, (member.value for member in cls.__members__.values()), 0)
    return type(value) is int and not (value if value >= 0 else ~value) & ~known


def _combine(cls: Any, value: int) -> Any:
    """The flags of these bits, as Python makes them. It keeps each for ever; of those made here the last ones stay."""
    base: Any = IntFlag if issubclass(cls, IntFlag) else Flag
    made = base._missing_.__func__(cls, value)
    _combined_flags[cls, value, made.value] = None
    if len(_combined_flags) > COMBINED_FLAGS_MAX:
        old, *values = oldest = next(iter(_combined_flags))
        del _combined_flags[oldest]
        for number in values:
            old._value2member_map_.pop(number, None)
    return made


def _dataclass(name: str, items: dict[str, Any]) -> Any:
    """Restore the fields without running `__new__`, `__init__` or `__post_init__`: a payload is data, never a call."""
    cls: Any = _class(name, dataclasses.is_dataclass)
    new: Any = next(
        filter(_is_builtin, (vars(base).get("__new__") for base in cls.__mro__))
    )  # that of object, mostly
    instance = new(cls)
    for field in dataclasses.fields(cls):
        if field.name in items:
            object.__setattr__(instance, field.name, decode(items[field.name]))
        elif field.default is not dataclasses.MISSING:
            object.__setattr__(instance, field.name, field.default)
        elif field.default_factory is not dataclasses.MISSING:
            object.__setattr__(instance, field.name, field.default_factory())
        else:
            raise PayloadError(
                f"the payload's {name} has no field {field.name!r}; was it written by older code?"
            )
    return instance


def _is_builtin(function: Any) -> bool:
    return isinstance(function, BuiltinFunctionType)


def _dict(pairs: list[list[Any]]) -> dict[Any, Any]:
    keys = [decode(key) for key, _ in pairs]
    _check_hashes(keys, "the payload")
    return {key: decode(item) for key, (_, item) in zip(keys, pairs, strict=True)}


def _members(items: list[Any]) -> list[Any]:
    members = [decode(item) for item in items]
    _check_hashes(members, "the payload")
    return members


_COMPOUND: dict[str, Callable[..., Any]] = {
    "datetime": _datetime,
    "enum": _enum,
    "dataclass": _dataclass,
    "dict": _dict,
    "tuple": lambda items: tuple(decode(item) for item in items),
    "set": lambda items: set(_members(items)),
    "frozenset": lambda items: frozenset(_members(items)),
}


_read_json = json.JSONDecoder().decode  # `json.loads` asks ten things before it comes to this


class JSONSerializer:
    """RQ's serializer interface over `encode` and `decode`."""

    @staticmethod
    def dumps(value: Any) -> bytes:
        """Raises PayloadError if something in `value` cannot be carried, or could not be read again."""
        try:
            data = json.dumps(encode(value), separators=(",", ":")).encode()
        except ValueError as error:  # an integer of more than 4,300 digits
            raise PayloadError(f"the value cannot be written as JSON: {error}") from None
        _check_shape(data)
        return data

    @staticmethod
    def loads(data: bytes) -> Any:
        """Raises PayloadError if `data` are not JSON (a pickle from a stock RQ, for example), or more than we write."""
        _check_shape(data)
        try:
            words = str(data, "utf-8")
            value = _read_json(words)
            return decode(value) if TAG in words else value
        except (ValueError, RecursionError) as error:
            raise PayloadError(
                f"not a JSON payload ({error}); was it enqueued by stock RQ, which pickles? "
                f"rqjobs never unpickles what it finds in Redis"
            ) from None


class SignedPickleSerializer:
    """Pickle behind an HMAC-SHA256 made with SECRET_KEY: nothing is unpickled before its signature was checked.

    Who has the key can still make the worker run anything; who can only write to Redis cannot.
    """

    @staticmethod
    def _signer() -> Any:
        import itsdangerous  # here, or each worker would hold it in memory

        key = config.current().secret_key
        if not key:
            raise config.ConfigError(
                "signed pickle needs SECRET_KEY to be set, the same everywhere"
            )
        return itsdangerous.Signer(
            key, salt=b"rqjobs.payload", digest_method=hashlib.sha256, key_derivation="hmac"
        )

    @classmethod
    def dumps(cls, value: Any) -> bytes:
        return cls._signer().sign(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))

    @classmethod
    def loads(cls, data: bytes) -> Any:
        """Raises PayloadError if the signature is missing or is not ours."""
        from itsdangerous import BadSignature

        try:
            pickled = cls._signer().unsign(bytes(data))
        except BadSignature:
            raise PayloadError(
                "the payload is not signed with this SECRET_KEY, so it was not unpickled"
            ) from None
        return pickle.loads(pickled)


class ConfiguredSerializer:
    """The serializer that the settings name, looked up at each call. This is what RQ gets from us everywhere."""

    @staticmethod
    def _serializer() -> Any:
        return (
            SignedPickleSerializer
            if config.current().serializer == "signed-pickle"
            else JSONSerializer
        )

    @classmethod
    def dumps(cls, value: Any) -> bytes:
        data: bytes = cls._serializer().dumps(value)
        _check_size(data)
        return data

    @classmethod
    def loads(cls, data: bytes) -> Any:
        return cls._serializer().loads(data)


class SharedSerializer:
    """RQ's default serializer in a process that is not ours alone: it reads what ours reads, and writes what stock
    workers read. What it has read as JSON (a job's meta) it writes as JSON."""

    @staticmethod
    def dumps(value: Any) -> bytes:
        return (
            ConfiguredSerializer.dumps(value)
            if isinstance(value, _SharedDict)
            else pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        )

    @staticmethod
    def loads(data: bytes) -> Any:
        value = ConfiguredSerializer.loads(data)
        return _SharedDict(value) if isinstance(value, dict) else value


class _SharedDict(dict[Any, Any]):
    """A dict that was read by `SharedSerializer`."""
