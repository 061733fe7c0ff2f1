"""JSON and typed texts are converted to annotations, or refused with the path of the value."""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from numbers import Number
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    TypedDict,
    TypeVar,
    Union,
)
from uuid import UUID

import pytest
from sample_jobs import Color, Size

from rqjobs import conversion
from rqjobs.conversion import ConversionError

T = TypeVar("T")
Ids = NewType("Ids", "list[int]")


class Level(enum.Enum):
    LOW = 1
    HIGH = 2

    @classmethod
    def _missing_(cls, value):
        raise AssertionError("a value that is looked up may not run code")


@dataclasses.dataclass
class Address:
    street: str
    zip: int


@dataclasses.dataclass
class Person:
    name: str
    address: Address
    tags: set[str] = dataclasses.field(default_factory=set)
    born: Optional[date] = None  # noqa: UP045
    unseen: int = dataclasses.field(default=0, init=False)


@dataclasses.dataclass
class Child(Person):
    parents: list[Person] = dataclasses.field(default_factory=list)
    age: dataclasses.InitVar[int] = 0

    def __post_init__(self, age):
        if age < 0:
            raise ValueError("nobody is that young")
        self.unseen = age


@dataclasses.dataclass
class Node:
    value: int
    rest: Node | None = None


@dataclasses.dataclass
class Pair(Generic[T]):
    one: T
    more: list[T]


@dataclasses.dataclass
class Half:
    known: int
    unknown: Nowhere = None  # noqa: F821


class Spot(NamedTuple):
    x: int
    y: int = 0


class Options(TypedDict, total=False):
    depth: int
    colors: list[Color]


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ('["RED", "blue"]', list[Color], [Color.RED, Color.BLUE]),
        ('["SMALL", 2]', set[Size], {Size.SMALL, Size.LARGE}),
        ("[2, 1]", tuple[Level, ...], (Level.HIGH, Level.LOW)),
        ('{"LOW": 3}', dict[Level, int], {Level.LOW: 3}),
        (
            '{"7": ["1.50"], "-8": [0.10, 2]}',
            dict[int, list[Decimal]],
            {7: [Decimal("1.50")], -8: [Decimal("0.10"), Decimal(2)]},
        ),
        (
            '{"2030-01-02": "2030-01-02T03:04Z"}',
            dict[date, str],
            {date(2030, 1, 2): "2030-01-02T03:04Z"},
        ),
        ('["2030-01-02T03:04"]', frozenset[datetime], frozenset({datetime(2030, 1, 2, 3, 4)})),
        (
            f'["{UUID(int=5)}", 60, "é", 1, true, "x", null]',
            tuple[UUID, timedelta, bytes, float, bool, str, None],
            (UUID(int=5), timedelta(minutes=1), "é".encode(), 1.0, True, "x", None),
        ),
        (
            '{"name": "A", "address": {"street": "B", "zip": 1}, "tags": ["t", "t"], "born": "2000-01-01"}',
            Person,
            Person("A", Address("B", 1), {"t"}, date(2000, 1, 1)),
        ),
        (
            '{"name": "A", "address": {"street": "B", "zip": 1}, "parents": [{"name": "C", "address": '
            '{"street": "D", "zip": 2}}], "age": 3}',
            Child,
            Child("A", Address("B", 1), parents=[Person("C", Address("D", 2))], age=3),
        ),
        ('{"value": 1, "rest": {"value": 2, "rest": null}}', Node, Node(1, Node(2))),
        ('{"one": 1, "more": [2]}', Pair[int], Pair(1, [2])),
        ('{"known": 1, "unknown": [2]}', Half, Half(1, [2])),
        ("[1]", Spot, Spot(1)),
        ('{"x": 1, "y": 2}', Spot, Spot(1, 2)),
        ('{"depth": 3, "colors": ["RED"]}', Options, {"depth": 3, "colors": [Color.RED]}),
        ("{}", Options, {}),
        ("[1, 2]", Ids, [1, 2]),
        ("[1, 2]", Annotated[Sequence[int], "some"], [1, 2]),
        ("[1.5]", Iterable[float], [1.5]),
        ('{"a": [null, 1]}', Mapping[str, list[int | None]], {"a": [None, 1]}),
        ('{"a": 1}', collections.OrderedDict[str, int], {"a": 1}),
        (
            '["1", 1, 1.5]',
            list[Union[int, float, str]],  # noqa: UP007
            ["1", 1, 1.5],
        ),
        (
            '[{"street": "B", "zip": 1}, {"value": 1}, 3]',
            list[Address | Node | int],
            [Address("B", 1), Node(1), 3],
        ),
        ('["a", 3, "RED"]', list[Literal["a", 3, Color.RED]], ["a", 3, Color.RED]),
        ("[1, [2.5, {}]]", Any, [1, [2.5, {}]]),
        ("[1.5]", list, [1.5]),
        ("3", Number, 3),
        ("[[1]]", "list[Nowhere]", [[1]]),
    ],
)
def test_json_is_converted_to_the_annotation_and_back(text, annotation, value):
    made = conversion.convert(conversion.parse_json(text), annotation, "x")
    assert made == value and type(made) is type(value)
    assert repr(made) == repr(value), "all the way down"
    if annotation is not Child:  # the value of an InitVar is lost
        assert conversion.convert(conversion.to_json(made), annotation, "x") == value
    if annotation is not Number:
        conversion.convert(conversion.to_json(conversion.example(annotation)), annotation, "x")


@pytest.mark.parametrize(
    ("text", "annotation", "message"),
    [
        ('["RED", "GREEN"]', list[Color], "x[1]: 'GREEN' is not one of RED, BLUE"),
        ("[3]", list[Level], "x[0]: 3 is not"),
        ("[true]", list[Level], "x[0]: true is not one of"),
        ('["3"]', list[int], "x[0]: '3' is not a whole number"),
        ("[3.0]", list[int], "x[0]: 3.0 is not"),
        ("[true]", list[int], "x[0]: true is not a whole number"),
        ("[1e400]", list[float], "is not a number"),
        ("[1e400]", list, "x[0]: '1E+400' is not a number"),
        ('{"a": "1"}', dict[str, int], "x.a: '1' is not a whole number"),
        ('{"a": 1}', dict[int, int], "x's key: 'a' is"),
        ("[1]", dict[str, int], "x: [1] is not an object"),
        ("{}", list[int], "x: {} is not a list"),
        ("[1]", tuple[int, int], "x: a list of 2 is wanted, and it has 1"),
        ("[[1]]", set, "unhashable"),
        ('["sNaN"]', list[Decimal], "x[0]: 'sNaN' is not a decimal number"),
        ("[[]]", list[str], "x[0]: [] is not a text"),
        ('{"name": "A", "address": {"street": "B"}}', Person, "x.address: zip is missing"),
        (
            '{"name": "A", "address": {"street": "B", "zip": "c"}}',
            Person,
            "x.address.zip: 'c' is not a whole number",
        ),
        (
            '{"name": "A", "address": {"street": "B", "zip": 1, "city": "C"}}',
            Person,
            "x.address: there is no 'city'; it takes street, zip",
        ),
        (
            '{"name": "A", "address": null}',
            Person,
            "x.address: null is not an object with street, zip",
        ),
        (
            '{"name": "A", "address": {"street": "B", "zip": 1}, "unseen": 1}',
            Person,
            "there is no 'unseen'",
        ),
        (
            '[{"name": "A", "address": {"street": "B", "zip": 1}, "age": -1}]',
            list[Child],
            "x[0]: nobody is that young",
        ),
        ('{"value": 1, "rest": {"value": "2"}}', Node, "x.rest.value: '2' is not"),
        ("{}", Node, "x: value is missing"),
        ('{"one": 1, "more": ["a"]}', Pair[int], "x.more[0]: 'a' is not"),
        ("[1, 2, 3]", Spot, "is not an object with x, y"),
        ('{"depth": "1"}', Options, "x.depth: '1' is not"),
        ('{"deep": 1}', Options, "there is no 'deep'"),
        ('["b"]', list[Literal["a", 3]], "x[0]: 'b' is not one of 'a', 3"),
        ("null", int, "null is not a whole number"),
        (
            "[{}]",
            list[Address | int],
            "x[0]: {} is none of Address, int (x[0]: street is missing; x[0]: {} is not a whole",
        ),
        ('["/tmp"]', list[Path], "x[0]: no Path can be made from JSON"),
        ("1", "Nowhere" and Path, "no Path"),
    ],
)
def test_an_error_names_the_path_of_the_value(text, annotation, message):
    with pytest.raises(ConversionError) as raised:
        conversion.convert(conversion.parse_json(text), annotation, "x")
    assert message.replace("Address,", f"{Address.__module__}.Address,") in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 61 + "]" * 61,
        "[" * 100_000,
        '{"a":' * 61 + "1" + "}" * 61,
        "NaN",
        "-Infinity",
        "x",
        "1e99999999999999999999",
        '[{"a": 1, "b": 2, "a": 1}]',
    ],
)
def test_invalid_or_too_deep_json_is_refused(text):
    with pytest.raises(ValueError):
        conversion.parse_json(text)
    assert conversion.read_text(text, str, "x") == text


def test_recursive_types_are_converted():
    text = '{"value": 1, "rest": ' * 50 + "null" + "}" * 50
    node = conversion.convert(conversion.parse_json(text), Node, "x")
    assert conversion.to_json(node) == conversion.parse_json(text)


def call(
    n: int,
    colors: list[Color] = (),
    day: date | None = None,
    *rest: int,
    price: Decimal = 0,
    **more: Level,
): ...


def test_typed_texts_become_the_arguments_of_a_call():
    assert conversion.read_call(
        call, ["1", '["RED"]', "2030-01-02", "3", "4"], {"price": "1.10", "other": "LOW"}
    ) == ((1, [Color.RED], date(2030, 1, 2), 3, 4), {"price": Decimal("1.10"), "other": Level.LOW})
    assert conversion.read_call(call, [], {"n": "1", "day": "null"}) == ((), {"n": 1, "day": None})
    with pytest.raises(ConversionError, match=r"rest\[1\]: 'b' is not a whole number"):
        conversion.read_call(call, ["1", "[]", "2030-01-02", "3", "b"], {})
    with pytest.raises(ConversionError, match="other: 'x' is not one of LOW, HIGH"):
        conversion.read_call(call, ["1"], {"other": "x"})
    with pytest.raises(ConversionError, match=r"colors\[0\]: 'GREEN' is not one of"):
        conversion.read_call(call, ["1", '["GREEN"]'], {})
    with pytest.raises(ConversionError, match=r"colors: '\[\"RED\",\]' is not JSON: .*char"):
        conversion.read_call(call, ["1", '["RED",]'], {})


def test_typed_texts_for_variadic_keywords():
    def call(text: str, **more: Any): ...

    assert conversion.read_call(call, ["true"], {"a": "[1]"}) == (("true",), {"a": [1]})
    with pytest.raises(TypeError):
        conversion.read_call(call, ["a", "b"], {})
