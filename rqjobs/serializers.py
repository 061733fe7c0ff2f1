"""What a payload may be: JSON for arguments, results and meta; signed pickle for those who must.

JSON as RQ's own JSONSerializer writes it, so a stock `rq worker -S json` runs a job whose arguments are plain.
What JSON lacks becomes an object with the one key `__rqjobs__`, whose value is a list: the kind, then its parts.
Reading never imports and never calls anything but constructors of the standard library's values; enums and
dataclasses are restored only if their class was given to `allow` (the catalog does it for its own modules).
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import pickle
from collections.abc import Callable, Iterable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import rq.serializers

from rqjobs import config

TAG = "__rqjobs__"
LARGEST = 64 * 1024 * 1024  # bytes of one value
PLAIN = frozenset((str, int, float, bool, type(None)))
_classes: dict[str, type] = {}


class PayloadError(TypeError):
    """A value cannot be carried, or data found in Redis are not a payload of ours."""


def allow(classes: Iterable[type]) -> None:
    """Let these enums and dataclasses travel in payloads."""
    for cls in classes:
        _classes[class_name(cls)] = cls


def class_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


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
    if kind in PLAIN:
        return value
    if kind is list:  # what most values are, before anything that takes time to find out
        return [item if type(item) in PLAIN else _encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Enum):
        _known(kind, where)
        named = value.name if value.name in kind.__members__ else None  # a combination of flags has no member
        return {TAG: ["enum", class_name(kind), named, None if named else _encode(value.value, where)]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        _known(kind, where)
        for field in dataclasses.fields(value):
            if not hasattr(value, field.name):
                raise PayloadError(f"{where}.{field.name} is not set")
        items = {f.name: _encode(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
        return {TAG: ["dataclass", class_name(kind), items]}
    if isinstance(value, dict):
        if all(type(key) is str for key in value) and TAG not in value:
            return {key: item if type(item) in PLAIN else _encode(item, f"{where}[{key!r}]")
                    for key, item in value.items()}
        return {TAG: ["dict", [[_encode(key, f"{where}'s key {key!r}"), _encode(item, f"{where}[{key!r}]")]
                               for key, item in value.items()]]}
    if isinstance(value, list | tuple | set | frozenset):
        items_ = [_encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
        if isinstance(value, list):
            return items_
        name = next(base.__name__ for base in (tuple, frozenset, set) if isinstance(value, base))
        return {TAG: [name, items_]}
    if isinstance(value, datetime):
        zone = value.tzinfo.key if isinstance(value.tzinfo, ZoneInfo) else None
        offset = None if zone else value.utcoffset()
        if offset is None or not offset.microseconds:
            text = value.replace(tzinfo=None).isoformat() if zone else value.isoformat()
            return {TAG: ["datetime", text, zone, value.fold]}
        # Python 3.11 reads an offset of +00:00:00.000001 as none.
        return {TAG: ["datetime", value.replace(tzinfo=None).isoformat(), None, value.fold,
                      [offset.days, offset.seconds, offset.microseconds]]}
    for base, (name, write, _) in _SCALARS.items():
        if isinstance(value, base):
            return {TAG: [name, write(value)]}
    for plain in (str, int, float):  # subclasses (numpy's float64, a str subclass) travel as what they extend
        if isinstance(value, plain):
            return plain(value)
    raise PayloadError(f"{where} is a {kind.__name__}, which JSON cannot carry; pass an id, and fetch the rest "
                       f"inside the job")


def _known(kind: type, where: str) -> None:
    if _classes.get(class_name(kind)) is not kind:
        raise PayloadError(f"{where} is a {class_name(kind)}, which is not defined in a module of RQJOBS_MODULES")


_SCALARS: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    date: ("date", date.isoformat, date.fromisoformat),
    timedelta: ("timedelta", lambda v: [v.days, v.seconds, v.microseconds], lambda v: timedelta(*v)),
    UUID: ("uuid", str, UUID),
    Decimal: ("decimal", str, Decimal),
    bytes: ("bytes", lambda v: base64.b64encode(v).decode(), lambda v: base64.b64decode(v, validate=True)),
}
_READ = {name: read for name, _, read in _SCALARS.values()}


def decode(value: Any) -> Any:
    """The inverse of `encode`.

    Raises:
        PayloadError: a class is not known here, or the value was not written by `encode`.
    """
    if type(value) in PLAIN:
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
    cls = _classes.get(name)
    if cls is None or not base(cls):
        raise PayloadError(f"the payload has a {name}, which no module of RQJOBS_MODULES defines here")
    return cls


def _enum(name: str, member: str | None, value: Any) -> Any:
    cls: Any = _class(name, lambda c: issubclass(c, Enum))
    return cls[member] if member is not None else cls(decode(value))


def _dataclass(name: str, items: dict[str, Any]) -> Any:
    """Restore the fields without running `__init__` or `__post_init__`: a payload is data, never a call."""
    cls: Any = _class(name, dataclasses.is_dataclass)
    instance = cls.__new__(cls)
    for field in dataclasses.fields(cls):
        if field.name in items:
            object.__setattr__(instance, field.name, decode(items[field.name]))
        elif field.default is not dataclasses.MISSING:
            object.__setattr__(instance, field.name, field.default)
        elif field.default_factory is not dataclasses.MISSING:
            object.__setattr__(instance, field.name, field.default_factory())
        else:
            raise PayloadError(f"the payload's {name} has no field {field.name!r}; was it written by older code?")
    return instance


_COMPOUND: dict[str, Callable[..., Any]] = {
    "datetime": _datetime,
    "enum": _enum,
    "dataclass": _dataclass,
    "dict": lambda pairs: {decode(key): decode(item) for key, item in pairs},
    "tuple": lambda items: tuple(decode(item) for item in items),
    "set": lambda items: {decode(item) for item in items},
    "frozenset": lambda items: frozenset(decode(item) for item in items),
}


class JSON:
    """RQ's serializer interface over `encode` and `decode`."""

    @staticmethod
    def dumps(value: Any) -> bytes:
        """Raises PayloadError if something in `value` cannot be carried."""
        try:
            return json.dumps(encode(value), separators=(",", ":")).encode()
        except ValueError as error:  # an integer of more than 4,300 digits
            raise PayloadError(f"the value cannot be written as JSON: {error}") from None

    @staticmethod
    def loads(data: bytes) -> Any:
        """Raises PayloadError if `data` are not JSON (a pickle from a stock RQ, for example)."""
        try:
            words = str(data, "utf-8")
            value = json.loads(words)
            return decode(value) if TAG in words else value
        except (ValueError, RecursionError) as error:
            raise PayloadError(f"not a JSON payload ({error}); was it enqueued by stock RQ, which pickles? "
                               f"rqjobs never unpickles what it finds in Redis") from None


class SignedPickle:
    """Pickle behind an HMAC-SHA256 made with SECRET_KEY: nothing is unpickled before its signature was checked.

    Who has the key can still make the worker run anything; who can only write to Redis cannot.
    """

    @staticmethod
    def _signer() -> Any:
        import itsdangerous  # here, or each worker would hold it in memory

        key = config.current().secret_key
        if not key:
            raise config.ConfigError("signed pickle needs SECRET_KEY to be set, the same everywhere")
        return itsdangerous.Signer(key, salt=b"rqjobs.payload", digest_method=hashlib.sha256, key_derivation="hmac")

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
            raise PayloadError("the payload is not signed with this SECRET_KEY, so it was not unpickled") from None
        return pickle.loads(pickled)


class Configured:
    """The serializer that the settings name, looked up at each call. This is what RQ gets from us everywhere."""

    @staticmethod
    def _serializer() -> Any:
        return SignedPickle if config.current().serializer == "signed-pickle" else JSON

    @classmethod
    def dumps(cls, value: Any) -> bytes:
        data: bytes = cls._serializer().dumps(value)
        if len(data) > LARGEST:  # Redis ends the connection of who sends it too much, again and again
            raise PayloadError(f"the value is {len(data):,} bytes, more than {LARGEST:,}; store it, pass where it is")
        return data

    @classmethod
    def loads(cls, data: bytes) -> Any:
        return cls._serializer().loads(data)


class Shared:
    """RQ's default serializer in a process that is not ours alone: it reads what ours reads, and writes what stock
    workers read. What it has read as JSON (a job's meta) it writes as JSON."""

    @staticmethod
    def dumps(value: Any) -> bytes:
        return Configured.dumps(value) if isinstance(value, _Read) else pickle.dumps(value, pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def loads(data: bytes) -> Any:
        value = Configured.loads(data)
        return _Read(value) if isinstance(value, dict) else value


class _Read(dict[Any, Any]):
    """A dict that was read by `Shared`."""


def install(shared: bool = False) -> None:
    """Make this process unable to unpickle by RQ's default; if it is `shared` with stock queues, they still pickle.

    RQ unpickles `meta` and results whenever nobody passed a serializer (`Job.fetch`, groups, stop-job, the
    dashboard), and all of it asks `resolve_serializer(None)`, which answers with this module attribute.
    """
    if shared and rq.serializers.PickleSerializer is Configured:
        return
    default: Any = Shared if shared else Configured
    rq.serializers.PickleSerializer = default
    rq.serializers.SERIALIZER_ALIASES["pickle"] = default
