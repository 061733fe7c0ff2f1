"""Serializers: JSON for arguments, results and meta, or signed pickle.

Plain values are the JSON that RQ's own JSONSerializer writes, so a plain `rq worker -S json` runs a
job whose arguments are plain. Other values are tagged: an object with the single key `__rqjobs__`,
whose value is a list of the tag's name and its parts. `TAGS` lists the types.

Reading imports nothing that a payload names. It calls only constructors of the standard library's
values. Enums and dataclasses are restored only if their class was given to `allow`; the catalog
does that for the classes of its modules. The size, the depth, the number of values and the number
of equal hashes are limited before anything is built.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import pickle  # only signed data are unpickled  # nosec B403
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
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from rqjobs import config, texts

TAG_KEY = "__rqjobs__"
DEPTH_MAX_LEVELS = 200  # nested lists and objects
SAME_HASH_MAX_VALUES = 64  # in one dict or set: each is compared with all before it
COMBINED_FLAGS_MAX = 10_000  # combinations of flags that reading keeps in memory
JSON_TYPES = frozenset((str, int, float, bool, type(None)))
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_classes: dict[str, type] = {}
_combined_flags: dict[tuple[Any, int, int], None] = {}
load_classes: Callable[[], object] = dict  # the catalog replaces it: loading it calls `allow`


class PayloadError(TypeError):
    """A value cannot be serialized, or data in Redis are not a payload of rqjobs."""


class ValueTooLarge(PayloadError):
    """A value is larger, or has more parts, than reading accepts."""


def allow(classes: Iterable[type]) -> None:
    """Let these enums and dataclasses be serialized."""
    for cls in classes:
        _classes[class_name(cls)] = cls


def class_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _allowed(name: str) -> type | None:
    """The allowed class of this name. A process that has enqueued nothing yet loads the catalog."""
    if name not in _classes:
        load_classes()
    return _classes.get(name)


def encode(value: Any, where: str = "the value") -> Any:
    """`value` as JSON's own types.

    `where` names the value in errors and grows with the path: `argument 'x'[3]['y']`.

    Raises:
        PayloadError: a part of it cannot be serialized.
    """
    try:
        return _encode(value, where)
    except RecursionError:
        raise PayloadError(f"{where} contains itself, or is nested too deeply for JSON") from None


def _encode(value: Any, where: str) -> Any:
    kind = type(value)
    if kind in JSON_TYPES:
        return value
    if kind is list:
        return [
            item if type(item) in JSON_TYPES else _encode(item, f"{where}[{index}]")
            for index, item in enumerate(value)
        ]
    if kind is dict and _is_object(value):
        return {
            key: item if type(item) in JSON_TYPES else _encode(item, f"{where}[{key!r}]")
            for key, item in value.items()
        }
    name = _NAME_BY_TYPE.get(kind) or _find_tag(value)
    if name:
        return {TAG_KEY: [name, *TAGS[name].write(value, where)]}
    return _encode_subclass(value, where)


def _encode_subclass(value: Any, where: str) -> Any:
    """A subclass of one of JSON's types (numpy's float64, a str subclass) as that type."""
    if isinstance(value, dict):
        return _encode(dict(value.items()), where)
    if isinstance(value, list):
        return _encode(list(value), where)
    for base in (str, int, float):
        if isinstance(value, base):
            return base(value)
    name = texts.class_name(type(value))
    raise PayloadError(
        f"{where} is a {name}, which JSON cannot carry; pass an id, and fetch the rest inside the "
        f"job"
    )


def _is_object(value: dict[Any, Any]) -> bool:
    """Whether a dict is a JSON object that is not taken for a tagged value."""
    return all(type(key) is str for key in value) and TAG_KEY not in value


def _write_enum(value: Enum, where: str) -> list[Any]:
    """The class, and the name of a member; for combined flags None and the value."""
    kind = type(value)
    name = class_name(kind)
    _check_allowed(kind, where)
    if kind.__members__.get(value.name) is value:
        return [name, value.name, None]
    if not isinstance(value, Flag) or not _is_combined(kind, value.value):
        raise PayloadError(
            f"{where} is not a member of {name}, nor combined of its flags; pass its value"
        )
    return [name, None, value.value]


def _write_dataclass(value: Any, where: str) -> list[Any]:
    """The class, and the fields by name."""
    _check_allowed(type(value), where)
    names = [field.name for field in dataclasses.fields(value)]
    for name in names:
        if not hasattr(value, name):
            raise PayloadError(f"{where}.{name} is not set")
    encoded = {name: _encode(getattr(value, name), f"{where}.{name}") for name in names}
    return [class_name(type(value)), encoded]


def _write_datetime(value: datetime, where: str) -> list[Any]:
    """A datetime as ISO 8601, the name of its zone or None, its fold, and an odd offset."""
    if isinstance(value.tzinfo, ZoneInfo) and value.tzinfo.key:
        return [value.replace(tzinfo=None).isoformat(), value.tzinfo.key, value.fold]
    offset = value.utcoffset()
    if offset is None or not offset.microseconds:
        return [value.isoformat(), None, value.fold]
    # Python 3.11 reads an offset of +00:00:00.000001 as none.
    parts = [offset.days, offset.seconds, offset.microseconds]
    return [value.replace(tzinfo=None).isoformat(), None, value.fold, parts]


def _write_dict(value: dict[Any, Any], where: str) -> list[Any]:
    _check_hashes(value, where)
    pairs = [
        [_encode(key, f"{where}'s key {key!r}"), _encode(item, f"{where}[{key!r}]")]
        for key, item in value.items()
    ]
    return [pairs]


def _write_items(value: tuple[Any, ...], where: str) -> list[Any]:
    return [[_encode(item, f"{where}[{index}]") for index, item in enumerate(value)]]


def _write_set(value: Collection[Any], where: str) -> list[Any]:
    items = [_encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    _check_hashes(value, where)
    items.sort(key=repr)  # equal sets iterate in any order
    return [items]


def _check_allowed(kind: type, where: str) -> None:
    if _allowed(class_name(kind)) is not kind:
        raise PayloadError(
            f"{where} is a {class_name(kind)}, which is not defined in a module of RQJOBS_MODULES"
        )


def _check_hashes(values: Collection[Any], where: str) -> None:
    """Refuse many values of one hash, which are easily made and of which a set takes hours."""
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
            f"RQJOBS_MAX_PAYLOAD_BYTES and RQJOBS_MAX_RESULT_BYTES); store it elsewhere, and pass "
            f"where it is"
        )


def _check_shape(data: bytes) -> None:
    """Check the size, the number of values and the depth of JSON, before anything is built from it.

    Raises:
        PayloadError: one of them is over its limit.
    """
    if len(data) <= DEPTH_MAX_LEVELS:  # too short to reach a limit
        return
    _check_size(data)
    max_parts = config.current().max_value_bytes // 2
    if len(data) > max_parts:  # a part takes at least a byte
        bare = _STRING.sub(b"", data)
        if bare.count(b"[") + bare.count(b"{") + bare.count(b",") > max_parts:
            raise ValueTooLarge(
                f"the value has more than {max_parts:,} parts; store it elsewhere, and pass where "
                f"it is"
            )
    if data.count(b"[") + data.count(b"{") > DEPTH_MAX_LEVELS and _levels(data) > DEPTH_MAX_LEVELS:
        raise PayloadError(
            f"the value is nested too deeply for JSON, by more than {DEPTH_MAX_LEVELS} levels"
        )


def _levels(data: bytes) -> int:
    """The depth of nested lists and objects; 0 if it is at most 8."""
    brackets = data.translate(None, _NOT_BRACKETS)
    for _ in range(8):  # fast path: remove the innermost pairs until none is left
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if not brackets:
        return 0
    bare = _STRING.sub(b"", data).translate(None, _NOT_BRACKETS)
    return max(accumulate(1 if bracket in b"[{" else -1 for bracket in bare), default=0)


def decode(value: Any) -> Any:
    """The inverse of `encode`.

    Raises:
        PayloadError: a class is not allowed in this process, or `encode` did not write the value.
    """
    if type(value) in JSON_TYPES:
        return value
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if TAG_KEY not in value:
        return {key: decode(item) for key, item in value.items()}
    try:
        name, *parts = value[TAG_KEY]
        return TAGS[name].read(*parts)
    except PayloadError:
        raise
    except Exception as error:
        raise PayloadError(f"not a payload of rqjobs: {str(value)[:80]} ({error})") from None


def _read_datetime(
    text: str, zone: str | None, fold: int, offset: list[int] | None = None
) -> datetime:
    moment = datetime.fromisoformat(text)
    if offset:
        return moment.replace(tzinfo=timezone(timedelta(*offset)), fold=fold)
    return moment.replace(tzinfo=ZoneInfo(zone) if zone else moment.tzinfo, fold=fold)


def _find_class(name: str, base: Callable[[type], bool]) -> type:
    cls = _allowed(name)
    if cls is None or not base(cls):
        raise PayloadError(
            f"the payload has a {name}, which no module of RQJOBS_MODULES defines here"
        )
    return cls


def _read_enum(name: str, member: str | None, value: Any) -> Any:
    """A member by its name, or flags by their bits, without calling the class or its `_missing_`."""
    cls: Any = _find_class(name, lambda c: issubclass(c, Enum))
    if member is not None:
        return cls.__members__[member]
    if not issubclass(cls, Flag) or not _is_combined(cls, value):
        raise PayloadError(
            f"the payload has a {name} that is not a member, nor combined of its flags"
        )
    return cls._value2member_map_.get(value) or _combine(cls, value)


def _is_combined(cls: Any, value: Any) -> bool:
    """Whether `value` is a combination of the flags of `cls`, without other bits."""
    if type(value) is not int:
        return False
    known_bits = reduce(or_, (member.value for member in cls.__members__.values()), 0)
    bits = value if value >= 0 else ~value
    return not bits & ~known_bits


def _combine(cls: Any, value: int) -> Any:
    """The flags of these bits, as Python makes them.

    Python keeps each combination forever. Of those made here the oldest are removed.
    """
    base: Any = IntFlag if issubclass(cls, IntFlag) else Flag
    flags = base._missing_.__func__(cls, value)
    _combined_flags[cls, value, flags.value] = None
    if len(_combined_flags) > COMBINED_FLAGS_MAX:
        oldest = next(iter(_combined_flags))
        del _combined_flags[oldest]
        oldest_class, *oldest_values = oldest
        for oldest_value in oldest_values:
            oldest_class._value2member_map_.pop(oldest_value, None)
    return flags


def _read_dataclass(name: str, items: dict[str, Any]) -> Any:
    """Restore the fields without running `__new__`, `__init__` or `__post_init__`.

    A payload is data and never calls a user's code.
    """
    cls: Any = _find_class(name, dataclasses.is_dataclass)
    constructors = (vars(base).get("__new__") for base in cls.__mro__)
    new: Any = next(filter(_is_builtin, constructors))  # mostly that of object
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


def _read_dict(pairs: list[list[Any]]) -> dict[Any, Any]:
    keys = [decode(key) for key, _ in pairs]
    _check_hashes(keys, "the payload")
    return {key: decode(item) for key, (_, item) in zip(keys, pairs, strict=True)}


def _read_members(items: list[Any]) -> list[Any]:
    members = [decode(item) for item in items]
    _check_hashes(members, "the payload")
    return members


class Tag(NamedTuple):
    """How values of a type are written as parts, and how they are read from these parts."""

    kind: type | None  # None: `_find_tag` finds them
    write: Callable[[Any, str], list[Any]]
    read: Callable[..., Any]


TAGS: dict[str, Tag] = {
    "enum": Tag(None, _write_enum, _read_enum),
    "dataclass": Tag(None, _write_dataclass, _read_dataclass),
    "dict": Tag(dict, _write_dict, _read_dict),
    "tuple": Tag(tuple, _write_items, lambda items: tuple(decode(item) for item in items)),
    "set": Tag(set, _write_set, lambda items: set(_read_members(items))),
    "frozenset": Tag(frozenset, _write_set, lambda items: frozenset(_read_members(items))),
    "datetime": Tag(datetime, _write_datetime, _read_datetime),  # before date, its base class
    "date": Tag(date, lambda day, where: [day.isoformat()], date.fromisoformat),
    "timedelta": Tag(
        timedelta,
        lambda delta, where: [[delta.days, delta.seconds, delta.microseconds]],
        lambda numbers: timedelta(*numbers),
    ),
    "uuid": Tag(UUID, lambda uuid, where: [str(uuid)], UUID),
    "decimal": Tag(Decimal, lambda number, where: [str(number)], Decimal),
    "bytes": Tag(
        bytes,
        lambda data, where: [base64.b64encode(data).decode()],
        lambda text: base64.b64decode(text, validate=True),
    ),
}
_NAME_BY_TYPE = {tag.kind: name for name, tag in TAGS.items() if tag.kind}


def _find_tag(value: Any) -> str | None:
    """The name of the tag of an enum, a dataclass, or an instance of a tagged type's subclass."""
    if isinstance(value, Enum):
        return "enum"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "dataclass"
    for kind, name in _NAME_BY_TYPE.items():
        if isinstance(value, kind) and kind is not dict:  # most subclasses of dict are objects
            return name
    return None


_read_json = json.JSONDecoder().decode  # faster than `json.loads`, which first checks its options


class JSONSerializer:
    """RQ's serializer interface over `encode` and `decode`."""

    @staticmethod
    def dumps(value: Any) -> bytes:
        """Raises PayloadError if a part of `value` cannot be serialized, or exceeds a limit."""
        try:
            data = json.dumps(encode(value), separators=(",", ":")).encode()
        except ValueError as error:  # an integer of more than 4,300 digits
            raise PayloadError(f"the value cannot be written as JSON: {error}") from None
        _check_shape(data)
        return data

    @staticmethod
    def loads(data: bytes) -> Any:
        """Raises PayloadError if `data` are not JSON (for example plain RQ's pickle) or too large."""
        _check_shape(data)
        try:
            text = str(data, "utf-8")
            value = _read_json(text)
            return decode(value) if TAG_KEY in text else value
        except (ValueError, RecursionError) as error:
            raise PayloadError(
                f"not a JSON payload ({error}); was it enqueued by plain RQ, which pickles? "
                f"rqjobs never unpickles what it finds in Redis"
            ) from None


class SignedPickleSerializer:
    """Pickle with an HMAC-SHA256 signature by SECRET_KEY, which is checked before unpickling.

    A client with the key can make the worker run any code. Write access to Redis is not enough.
    """

    @staticmethod
    def _signer() -> Any:
        import itsdangerous  # here, so that workers without it save the memory

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
        """Raises PayloadError if the signature is missing or wrong."""
        from itsdangerous import BadSignature

        try:
            pickled = cls._signer().unsign(bytes(data))
        except BadSignature:
            raise PayloadError(
                "the payload is not signed with this SECRET_KEY, so it was not unpickled"
            ) from None
        return pickle.loads(pickled)  # its signature is checked  # nosec B301


class ConfiguredSerializer:
    """The serializer that RQJOBS_SERIALIZER names, looked up at each call."""

    @staticmethod
    def _serializer() -> Any:
        if config.current().serializer == "signed-pickle":
            return SignedPickleSerializer
        return JSONSerializer

    @classmethod
    def dumps(cls, value: Any) -> bytes:
        data: bytes = cls._serializer().dumps(value)
        _check_size(data)
        return data

    @classmethod
    def loads(cls, data: bytes) -> Any:
        return cls._serializer().loads(data)


class SharedSerializer:
    """RQ's default serializer in a process that has plain RQ queues too.

    It reads with `ConfiguredSerializer` and writes pickle, which plain RQ workers read. A dict that it
    has read (a job's meta) is written by `ConfiguredSerializer` again.
    """

    @staticmethod
    def dumps(value: Any) -> bytes:
        if isinstance(value, _SharedDict):
            return ConfiguredSerializer.dumps(value)
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def loads(data: bytes) -> Any:
        value = ConfiguredSerializer.loads(data)
        if isinstance(value, dict):
            return _SharedDict(value)
        return value


class _SharedDict(dict[Any, Any]):
    """A dict that was read by `SharedSerializer`."""
