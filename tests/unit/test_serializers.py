"""Serializers: equal values after a round trip, and errors for unsupported and hostile data."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import pickle
import subprocess
import sys
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
import rq.serializers
import sample_jobs
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import rqjobs
from rqjobs import config, rq_patches
from rqjobs.serializers import (
    TAG_KEY,
    ConfiguredSerializer,
    JSONSerializer,
    PayloadError,
    SignedPickleSerializer,
    allow,
    decode,
    encode,
)


class Color(enum.Enum):
    RED = "red"
    CRIMSON = "red"  # an alias
    PAIR = (1, 2)


class Word(str, enum.Enum):
    YES = "yes"


class Size(enum.IntFlag):
    SMALL = 1
    LARGE = 2
    HUGE = 4


class Bits(enum.Flag):
    A = enum.auto()
    B = enum.auto()


@dataclasses.dataclass
class Point:
    x: object
    y: object = 0


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: object


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    x: object
    tags: frozenset = frozenset()


@dataclasses.dataclass
class Child(Point):
    z: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Counted:
    x: int
    double: int = dataclasses.field(init=False)

    def __post_init__(self):
        self.double = 2 * self.x


class Outer:
    @dataclasses.dataclass
    class Inner:
        x: object

    class Kind(enum.Enum):
        ONE = 1


CLASSES = [Color, Word, Size, Bits, Point, Frozen, Slots, Child, Counted, Outer.Inner, Outer.Kind]
allow(CLASSES)

ZONES = st.sampled_from(
    [
        ZoneInfo(name)
        for name in (
            "UTC",
            "Europe/Berlin",
            "America/New_York",
            "Asia/Kolkata",
            "Pacific/Apia",
            "Australia/Lord_Howe",
        )
    ]
)
OFFSETS = st.builds(
    timezone, st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59))
)
FLAGS = st.integers(0, 7).map(Size) | st.integers(0, 3).map(Bits)
# JSON reads a high surrogate followed by a low one as one character.
TEXT = st.text(st.characters(exclude_categories=()), max_size=20).filter(
    lambda text: text == text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    TEXT,
    st.binary(max_size=20),
    st.dates(),
    st.uuids(),
    st.datetimes(),
    st.datetimes(timezones=OFFSETS | st.just(timezone.utc)),
    st.datetimes(timezones=ZONES, allow_imaginary=True),
    st.timedeltas(),
    st.decimals(),
    st.sampled_from([Color.RED, Color.CRIMSON, Color.PAIR, Word.YES, Outer.Kind.ONE]),
    FLAGS,
)
HASHABLE = st.one_of(
    st.integers(),
    TEXT,
    st.binary(max_size=9),
    st.dates(),
    st.uuids(),
    FLAGS,
    st.sampled_from([*Color]),
    st.timedeltas(),
    st.tuples(st.integers(), TEXT),
    st.integers().map(Frozen),
    st.frozensets(st.integers(), max_size=3),
)


def nest(values):
    return st.one_of(
        st.lists(values, max_size=4),
        st.lists(values, max_size=4).map(tuple),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
        st.dictionaries(TEXT, values, max_size=4),
        st.dictionaries(HASHABLE, values, max_size=4),
        st.builds(lambda value: {TAG_KEY: value}, values),
        st.builds(Point, values, values),
        st.builds(Frozen, values),
        st.builds(Slots, values),
        st.builds(Child, values, values, st.lists(values, max_size=2)),
        st.builds(Counted, st.integers()),
        st.builds(Outer.Inner, values),
    )


VALUES = st.recursive(SCALARS, nest, max_leaves=12)


def same(one, two):
    """Whether two values and all their parts are equal and of the same types. NaN equals NaN."""
    if type(one) is not type(two):
        return False
    if dataclasses.is_dataclass(one):
        return all(
            same(getattr(one, f.name), getattr(two, f.name)) for f in dataclasses.fields(one)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        return (
            len(one) == len(two)
            and all(map(same, one, two))
            and all(map(same, one.values(), two.values()))
        )
    if isinstance(one, Decimal):
        return one.as_tuple() == two.as_tuple()
    if isinstance(one, float):
        return repr(one) == repr(two)
    if isinstance(one, datetime):
        return (one.replace(tzinfo=None), one.fold, one.tzinfo) == (
            two.replace(tzinfo=None),
            two.fold,
            two.tzinfo,
        )
    return one == two


@settings(deadline=None, max_examples=200)
@given(VALUES)
@example(2**14_000)
@example(
    [float("nan"), float("inf"), -0.0, Decimal("sNaN123"), Decimal("-Infinity"), Decimal("-0E+5")]
)
@example("\ud800 alone, \udc00 before it")
@example(datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1))
@example(datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=0))
@example(
    datetime(2024, 3, 31, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
)  # a local time that does not exist
@example(datetime(2024, 1, 1, fold=1))
@example({TAG_KEY: ["dict", []], 1: {TAG_KEY: TAG_KEY}, (1, (2, frozenset({3}))): {b"": None}})
@example({None: 1, True: 2, 1.5: 3, date(2024, 2, 29): 4})
@example(Size(0))
@example(datetime(2000, 1, 1, tzinfo=timezone(timedelta(microseconds=1))))
def test_every_supported_value_comes_back_equal(value):
    assert same(JSONSerializer.loads(JSONSerializer.dumps(value)), value)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
        lambda values: st.lists(values, max_size=4) | st.dictionaries(TEXT, values, max_size=4),
    )
)
def test_plain_data_are_written_as_by_rq_s_json_serializer(value):
    """So a plain `rq worker -S json` reads jobs of rqjobs, and rqjobs those of plain RQ clients."""
    assume(
        "__rqjobs__" not in repr(value)
    )  # the marker of rqjobs, which the strategies find in the code
    assert repr(rq.serializers.JSONSerializer.loads(JSONSerializer.dumps(value))) == repr(value)
    assert json.loads(JSONSerializer.dumps(value)) == json.loads(
        json.dumps(value)
    ) or "nan" in repr(value)
    assert repr(JSONSerializer.loads(rq.serializers.JSONSerializer.dumps(value))) == repr(value)


def test_a_subclass_of_a_plain_type_is_written_as_that_type():
    class Name(str):
        pass

    class Count(int):
        pass

    back = JSONSerializer.loads(
        JSONSerializer.dumps([Name("a"), Count(3), dict.fromkeys([Name("k")])])
    )
    assert back == ["a", 3, {"k": None}] and [type(back[0]), type(back[1])] == [str, int]


KINDS = [
    "date",
    "timedelta",
    "uuid",
    "decimal",
    "bytes",
    "datetime",
    "enum",
    "dataclass",
    "dict",
    "tuple",
    "set",
    "frozenset",
    "os.system",
    "__class__",
]
NAMES = [f"{cls.__module__}.{cls.__qualname__}" for cls in CLASSES] + [
    "os.system",
    "builtins.eval",
    "subprocess.Popen",
    "test_serializers.CLASSES",
    "rqjobs.config.Config",
]
HOSTILE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(KINDS + NAMES)
    | st.sampled_from(["RED", "2024-01-01", "../../etc/passwd", "Europe", "1" * 5000, "UTC"]),
    lambda values: (
        st.lists(values, max_size=4)
        | st.dictionaries(st.text(max_size=3), values, max_size=3)
        | st.builds(
            lambda kind, parts: {TAG_KEY: [kind, *parts]},
            st.sampled_from(KINDS),
            st.lists(values, max_size=4),
        )
        | st.builds(
            lambda kind, name, parts: {TAG_KEY: [kind, name, *parts]},
            st.sampled_from(["enum", "dataclass"]),
            st.sampled_from(NAMES),
            st.lists(values, max_size=3),
        )
        | st.builds(lambda value: {TAG_KEY: value}, values)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=500)
@given(HOSTILE)
@example({TAG_KEY: ["datetime", "2024-01-01T00:00:00", "tzdata/../../x", 0]})
@example({TAG_KEY: ["datetime", "2024-01-01T00:00:00", "\0", 0]})
@example({TAG_KEY: ["datetime", "2024-01-01T00:00:00", None, "x"]})
@example({TAG_KEY: ["timedelta", [1e308, 1e308]]})
@example({TAG_KEY: ["dict", [[{TAG_KEY: ["tuple", [[]]]}, 1]]]})
@example({TAG_KEY: ["dataclass", "test_serializers.Point", "xy"]})
def test_hostile_json_gives_data_or_a_payload_error(value):
    """No other error is raised, no module imported, and no function called."""
    before = set(
        sys.modules
    )  # an unknown time zone makes zoneinfo look into the package tzdata, as it does for all
    with contextlib.suppress(PayloadError):
        JSONSerializer.loads(json.dumps(value).encode())
    assert not {
        name for name in set(sys.modules) - before if not name.startswith(("tzdata", "importlib."))
    }


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60))
@example(b"")
@example(pickle.dumps({"a": 1}))
@example(b"[" * 200_000)
@example(b'{"a":' * 200_000)
@example(b'{"__rqjobs__":["tuple",[' * 50_000)
@example(b'{"__rqjobs__":["tuple",[' * 300 + b"1" + b"]]}" * 300)
def test_hostile_bytes_give_data_or_a_payload_error(data):
    try:
        JSONSerializer.loads(data)
    except PayloadError as error:
        assert len(str(error)) < 1000


@dataclasses.dataclass
class Unknown:
    x: int


@dataclasses.dataclass
class HalfMade:
    x: int = dataclasses.field(init=False)


@pytest.mark.parametrize(
    ("value", "path", "kind"),
    [
        (object(), "the value", "object"),
        ({"a": [1, {"b": lambda: 1}]}, "the value['a'][1]['b']", "function"),
        ((1, {2: {3j}}), "the value[1][2][0]", "complex"),
        ({(1, Ellipsis): 1}, "the value's key (1, Ellipsis)[1]", "ellipsis"),
        ([Point(1, sys)], "the value[0].y", "module"),
        (
            [Unknown(1)],
            "the value[0]",
            "Unknown, which is not defined in a module of RQJOBS_MODULES",
        ),
        ([int], "the value[0]", "type"),
        ([Point], "the value[0]", "type"),
    ],
)
def test_an_unsupported_value_is_named_with_its_path(value, path, kind):
    with pytest.raises(PayloadError) as caught:
        JSONSerializer.dumps(value)
    assert str(caught.value).startswith(f"{path} is a ") and kind in str(caught.value)


def test_an_unset_field_is_named():
    allow([HalfMade])
    with pytest.raises(PayloadError, match=r"the value\[0\]\.x is not set"):
        JSONSerializer.dumps([HalfMade()])


def test_a_value_that_contains_itself_is_refused():
    """Values that are nested too deeply are refused too. The error names the argument."""
    endless: list = []
    endless.append({"again": endless})
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in (endless, deep):
        with pytest.raises(
            PayloadError, match="the value contains itself, or is nested too deeply"
        ):
            JSONSerializer.dumps(value)
    with pytest.raises(
        PayloadError, match="argument 'value' contains itself, or is nested too deeply"
    ):
        rqjobs.enqueue(sample_jobs.ok, endless)
    while deep:
        deep = deep.pop()


def test_moderate_nesting_is_accepted():
    value: object = 1
    for _ in range(20):
        value = [{1: (Point(frozenset({1}), [value]), {"a": value})}[1][0]]
    assert same(JSONSerializer.loads(JSONSerializer.dumps(value)), value)


def test_a_number_too_long_for_json_is_refused():
    with pytest.raises(PayloadError, match="cannot be written as JSON"):
        JSONSerializer.dumps(10**5000)


def test_restoring_a_dataclass_runs_none_of_its_code():
    """Neither `__init__` nor `__post_init__` is called. A new field has its default."""
    name = f"{Counted.__module__}.Counted"
    assert decode({TAG_KEY: ["dataclass", name, {"x": 1, "double": 5}]}).double == 5
    name = f"{Child.__module__}.Child"
    assert decode({TAG_KEY: ["dataclass", name, {"x": 1}]}) == Child(1, 0, [])
    with pytest.raises(PayloadError, match="has no field 'x'; was it written by older code"):
        decode({TAG_KEY: ["dataclass", name, {}]})


def test_a_class_of_the_same_name_that_was_not_allowed_is_refused():
    impostor = dataclasses.make_dataclass("Point", ["x"])
    impostor.__module__ = Point.__module__
    with pytest.raises(PayloadError, match="not defined in a module of RQJOBS_MODULES"):
        encode(impostor(1))


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


SECRET = "0123456789abcdef-test-secret"


def test_signed_pickle_reads_its_own_data():
    config.use(secret_key=SECRET, serializer="signed-pickle")
    value = {"a": (1, {2j}), datetime: Unknown(3)}
    assert SignedPickleSerializer.loads(SignedPickleSerializer.dumps(value)) == value
    assert ConfiguredSerializer.loads(ConfiguredSerializer.dumps(value)) == value


def test_signed_pickle_never_unpickles_unsigned_data(tmp_path):
    """Data that are unsigned, signed with another key, or changed by one bit are refused."""
    config.use(secret_key="another key, long enough")
    foreign = SignedPickleSerializer.dumps(Canary(tmp_path / "foreign"))
    config.use(secret_key=SECRET)
    own = SignedPickleSerializer.dumps(Canary(tmp_path / "own"))
    tampered = [own[:i] + bytes([own[i] ^ 1]) + own[i + 1 :] for i in range(0, len(own) - 1, 7)]
    plain = pickle.dumps(Canary(tmp_path / "plain"))
    for data in (plain, plain + b".", b"", b".", foreign, own[:-3], own + b"x", *tampered):
        with pytest.raises(
            PayloadError, match="not signed with this SECRET_KEY, so it was not unpickled"
        ):
            SignedPickleSerializer.loads(data)
    assert not list(tmp_path.iterdir())
    SignedPickleSerializer.loads(own).close()
    assert (tmp_path / "own").exists(), "the canary sings if it is unpickled"


def test_signed_pickle_without_a_key_is_a_config_error():
    """An empty key does not count as a key."""
    config.use(secret_key=None)
    for call in (
        lambda: SignedPickleSerializer.dumps(1),
        lambda: SignedPickleSerializer.loads(b"x.y"),
    ):
        with pytest.raises(config.ConfigError, match="SECRET_KEY"):
            call()


def test_json_never_unpickles(tmp_path):
    with pytest.raises(PayloadError, match="never unpickles what it finds in Redis"):
        JSONSerializer.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert not list(tmp_path.iterdir())


def test_the_patched_default_serializer_is_configured_serializer(monkeypatch, tmp_path):
    """`Job.fetch` without a serializer, groups and rq-dashboard use RQ's default."""
    monkeypatch.setattr(rq.serializers, "PickleSerializer", rq.serializers.DefaultSerializer)
    monkeypatch.setattr(
        rq.serializers, "SERIALIZER_ALIASES", dict(rq.serializers.SERIALIZER_ALIASES)
    )
    rq_patches.replace_pickle()
    assert rq.serializers.resolve_serializer(None) is ConfiguredSerializer
    assert rq.serializers.resolve_serializer("pickle") is ConfiguredSerializer
    with pytest.raises(PayloadError):
        rq.serializers.resolve_serializer(None).loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert not list(tmp_path.iterdir())


def test_the_shared_serializer_writes_pickle_and_never_reads_it(monkeypatch, tmp_path):
    monkeypatch.setattr(rq.serializers, "PickleSerializer", rq.serializers.DefaultSerializer)
    monkeypatch.setattr(
        rq.serializers, "SERIALIZER_ALIASES", dict(rq.serializers.SERIALIZER_ALIASES)
    )
    rq_patches.replace_pickle(shared=True)
    default = rq.serializers.resolve_serializer(None)
    assert default is rq.serializers.resolve_serializer("pickle")
    assert pickle.loads(default.dumps({"a": 1})) == {"a": 1}
    assert (
        default.dumps(default.loads(b'{"a":1}')) == b'{"a":1}'
    )  # a meta written by rqjobs, read and written back
    with pytest.raises(PayloadError):
        default.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert not list(tmp_path.iterdir())
    rq_patches.replace_pickle()  # as a worker or `create_app` does
    rq_patches.replace_pickle(shared=True)
    assert rq.serializers.resolve_serializer(None) is ConfiguredSerializer


class Strict(enum.Enum):
    ONE = 1

    @classmethod
    def _missing_(cls, value):
        RAN.append(value)
        return cls.ONE


class StrictFlag(enum.IntFlag):
    A = 1
    B = 2

    @classmethod
    def _missing_(cls, value):
        RAN.append(value)
        return super()._missing_(value)


@dataclasses.dataclass
class Eager:
    x: int = 0

    def __new__(cls, *args):
        RAN.append(args)
        return super().__new__(cls)


@dataclasses.dataclass
class Failure(Exception):
    x: int = 0


Wide = enum.Flag("Wide", [f"F{number}" for number in range(30)], module=__name__)
RAN: list = []
allow([Strict, StrictFlag, Eager, Failure, Wide])


def tagged(*parts):
    return json.dumps({TAG_KEY: list(parts)}).encode()


def test_reading_runs_no_code_of_a_class():
    """Neither an Enum's `_missing_` nor a dataclass's `__new__` is called."""
    RAN.clear()
    module = __name__
    for data in (
        tagged("enum", f"{module}.Strict", None, 7),
        tagged("enum", f"{module}.Strict", None, 1),
        tagged("enum", f"{module}.Strict", "TWO", None),
        tagged("enum", f"{module}.StrictFlag", None, 8),
        tagged("enum", f"{module}.StrictFlag", None, -9),
        tagged("enum", f"{module}.StrictFlag", None, True),
        tagged("enum", f"{module}.StrictFlag", None, "A"),
        tagged("enum", f"{module}.StrictFlag", None, 2**70),
    ):
        with pytest.raises(PayloadError):
            JSONSerializer.loads(data)
    both = JSONSerializer.loads(tagged("enum", f"{module}.StrictFlag", None, 3))
    assert both == 3 and type(both) is StrictFlag
    assert JSONSerializer.loads(tagged("dataclass", f"{module}.Eager", {"x": 2})).x == 2
    assert RAN == []
    assert JSONSerializer.loads(JSONSerializer.dumps(Failure(3))).x == 3


def test_bits_that_are_not_flags_are_refused():
    with pytest.raises(
        PayloadError, match=r"is not a member of test_serializers\.Size, nor combined of its flags"
    ):
        JSONSerializer.dumps([Size(64)])
    assert JSONSerializer.loads(JSONSerializer.dumps(Bits.A | Bits.B)) is Bits.A | Bits.B
    assert JSONSerializer.loads(JSONSerializer.dumps(~Bits.A)) == ~Bits.A


def test_reading_flags_uses_limited_memory():
    """Python keeps each combination of flags forever.

    The oldest of those in payloads are removed.
    """
    for number in range(1, 40_000):
        assert decode({TAG_KEY: ["enum", f"{__name__}.Wide", None, number]}).value == number
    assert len(Wide._value2member_map_) < 11_000


LIMIT = config.Config().max_value_bytes
PRIME = 2**61 - 1  # the modulus of a number's hash


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" + b" " * LIMIT + b"]", "bytes, more than 2,097,152"),
        (b"[" + b"[]," * (LIMIT // 4 + 1) + b"0]", "more than 1,048,576 parts"),
        (b"[" * 201 + b"]" * 201, "more than 200 levels"),
        (b'{"a":' * 201 + b"1" + b"}" * 201, "more than 200 levels"),
        (b'["]]]]",' + b"[" * 201 + b"]" * 202, "more than 200 levels"),
        (tagged("set", [PRIME * number for number in range(65)]), "members of one hash"),
        (
            tagged("frozenset", [{TAG_KEY: ["tuple", [PRIME * number]]} for number in range(65)]),
            "members of one hash",
        ),
        (
            tagged(
                "dict", [[{TAG_KEY: ["decimal", str(PRIME * number)]}, 0] for number in range(65)]
            ),
            "members of one hash",
        ),
        (
            tagged("set", [{TAG_KEY: ["uuid", f"{PRIME * number:032x}"]} for number in range(65)]),
            "members of one hash",
        ),
    ],
)
def test_data_over_a_limit_are_refused(data, reason):
    with pytest.raises(PayloadError, match=reason):
        JSONSerializer.loads(data)


@pytest.mark.parametrize(
    "value",
    [
        "[" * 100_000,
        '"' * 100_000,
        "\\" * 200_000,
        ["[", "]"] * 400,
        [[] for _ in range(1000)],
        "," * 1_048_576,
        [[[number]] for number in range(500)] + ["]]"],
        {PRIME * number for number in range(64)},
        {(x, y) for x in range(-50, 50) for y in range(-50, 50)},
    ],
)
def test_data_under_every_limit_are_accepted(value):
    assert JSONSerializer.loads(JSONSerializer.dumps(value)) == value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (
            {PRIME * number for number in range(65)},
            "the value has more than 64 keys or members of one hash",
        ),
        (
            {(1, PRIME * number): number for number in range(65)},
            "the value has more than 64 keys or members of one hash",
        ),
        ("x" * LIMIT, "bytes, more than 2,097,152"),
        ([[]] * 600_000, "more than 1,048,576 parts"),
        (json.loads("[" * 201 + "]" * 201), "more than 200 levels"),
    ],
)
def test_a_value_over_a_limit_of_reading_is_not_written(value, reason):
    with pytest.raises(PayloadError, match=reason):
        ConfiguredSerializer.dumps(value)


def test_a_new_process_loads_the_catalog_to_read_classes(tmp_path):
    """The catalog is loaded when a payload has an unknown class, and not before."""
    allow([sample_jobs.Point, sample_jobs.Color])
    code = (
        "import sys; from rqjobs.serializers import JSONSerializer; import rqjobs; "
        "assert 'sample_jobs' not in sys.modules; "
        f"print(JSONSerializer.loads({JSONSerializer.dumps([sample_jobs.Point(1), sample_jobs.Color.RED])!r}))"
    )
    environ = {
        **os.environ,
        "RQJOBS_MODULES": "sample_jobs",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "[Point(x=1, y=0, tags=frozenset()), <Color.RED: 'red'>]\n", done.stderr
