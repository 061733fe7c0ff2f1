"""Forms from signatures: each kind of parameter is shown, read and refused with a reason."""

from __future__ import annotations

import dataclasses
import inspect
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal, NewType, Optional
from uuid import UUID

import pytest
from sample_jobs import Color, Point, Size, add

from rqjobs.web.forms.arguments import read_arguments
from rqjobs.web.forms.fields import documentation, form_fields

UserId = NewType("UserId", int)


@dataclasses.dataclass
class Strict:
    n: int

    def __post_init__(self):
        if self.n < 0:
            raise ValueError("n is negative")


def plain(a: int, b: float, c: str, d: bool, e: bool = True): ...
def loose(a, b=3, c="3", d="abc", e=None): ...
def times(
    a: datetime,
    b: date,
    c: timedelta,
    d: datetime = datetime(2030, 1, 2, 3, 4, tzinfo=timezone.utc),
): ...
def choices(
    a: Color, b: Literal["x", "y", 3], c: Size, d: Color = Color.BLUE, e: Color | None = None
): ...
def numbers(a: Decimal, b: UUID, c: UserId, d: bytes = b"raw"): ...
def optional(a: int | None, b: Optional[str] = "x", c: bool | None = None, d: int | str = 4): ...  # noqa: UP045
def lists(
    a: list, b: dict[str, int], c: tuple[int, ...], d: set[int], e: Any, f: object = None
): ...
def point(p: Point, q: Strict | None = None): ...
def stars(a: int, b: int = 2, *rest: int, key: str = "k", **more: Any): ...
def positional(a: int, b: int = 2, /, c: int = 3): ...
def keywords(*, a: int, b: int = 5): ...
def options(queue: str, job_id: str, args: list, kwargs: dict, when: str, timeout: int = 1): ...
def sentinel(a: int = object(), b: list = {1j}): ...  # type: ignore[assignment]  # noqa: B006
def broken(a: "Nowhere", b: "1 +" = 2): ...  # type: ignore[name-defined]  # noqa: F821, F722, UP037
def texts(prompt: str, short: str = "s", lines: str = "one\ntwo"): ...


def google(a, b=1, *rest, c=2):
    """Do it well.

    And more of it.

    Args:
        a (int): the first,
            on two lines: yes.
        b: the second
        *rest: what is left
        c: the last one

    Returns:
        d: nothing
    """


def sphinx(a, b=1):
    """Do it.

    :param a: the first,
        on two lines
    :param int b: the second
    :returns: nothing
    """


def read(function, **given):
    args, kwargs, errors = read_arguments(
        function, {f"arg.{name}": value for name, value in given.items()}
    )
    assert not errors, errors
    return args, kwargs


def fields(function):
    return {field.name: field for field in form_fields(function)}


@pytest.mark.parametrize(
    "function, given, expected",
    [
        (add, {"a": "1"}, ((1,), {})),
        (
            plain,
            {"a": " -7 ", "b": "1e3", "c": " as is ", "d": "on", "e": "on"},
            ((-7, 1000.0, " as is ", True, True), {}),
        ),
        (plain, {"a": "+7", "b": "2", "c": "3"}, ((7, 2.0, "3", False, False), {})),
        (loose, {"a": "3"}, ((3,), {})),
        (
            loose,
            {"a": '"3"', "b": "true", "c": "[1", "d": "null", "e": '{"x": 1}'},
            (("3", True, "[1", None, {"x": 1}), {}),
        ),
        (loose, {"a": "NaN"}, (("NaN",), {})),
        (loose, {"a": "[" * 100_000}, (("[" * 100_000,), {})),
        (
            times,
            {"a": "2030-01-02T03:04", "b": "2030-01-02", "c": "1.5"},
            ((datetime(2030, 1, 2, 3, 4), date(2030, 1, 2), timedelta(seconds=1.5)), {}),
        ),
        (
            choices,
            {"a": "RED", "b": "3", "c": "LARGE", "e": ""},
            ((Color.RED, 3, Size.LARGE), {"e": None}),
        ),
        (
            numbers,
            {"a": "1.10", "b": "0" * 32, "c": "5", "d": "é"},
            ((Decimal("1.10"), UUID(int=0), 5, "é".encode()), {}),
        ),
        (optional, {"a": "", "b": "", "c": "", "d": "x"}, ((None, None, None, "x"), {})),
        (optional, {"a": "1", "b": "y", "c": "no", "d": "7"}, ((1, "y", False, 7), {})),
        (
            lists,
            {"a": "[1]", "b": '{"a": 1}', "c": "[1, 2]", "d": "[1, 1]", "e": "text"},
            (([1], {"a": 1}, (1, 2), {1}, "text"), {}),
        ),
        (point, {"p": '{"x": 1, "y": 2}', "q": '{"n": 3}'}, ((Point(1, 2), Strict(3)), {})),
        (point, {"p": '{"x": 1, "y": 2}', "q": " null "}, ((Point(1, 2), None), {})),
        (stars, {"a": "1"}, ((1,), {})),
        (
            stars,
            {"a": "1", "b": "", "rest": "[8, 9]", "more": '{"z": 0}'},
            ((1, 2, 8, 9), {"key": "k", "z": 0}),
        ),
        (positional, {"a": "1", "b": "", "c": "4"}, ((1, 2, 4), {})),
        (keywords, {"a": "1"}, ((), {"a": 1})),
        (
            options,
            {"queue": "q", "job_id": "j", "args": "[]", "kwargs": "{}", "when": "w"},
            (("q", "j", [], {}, "w"), {}),
        ),
        (sentinel, {"a": "", "b": ""}, ((), {})),
        (broken, {"a": "anything"}, (("anything",), {})),
        (texts, {"prompt": "a\r\nb"}, (("a\nb",), {})),
    ],
)
def test_values_are_converted_to_the_annotations(function, given, expected):
    args, kwargs = read(function, **given)
    assert (args, kwargs) == expected
    assert [type(value) for value in args] == [type(value) for value in expected[0]]


@pytest.mark.parametrize(
    "function, given, message",
    [
        (plain, {"a": "1.5"}, "'1.5' is not a whole number"),
        (plain, {"a": "9" * 5000}, "is not a whole number"),
        (plain, {"a": "1_000"}, "'1_000' is not a whole number"),
        (plain, {"a": "x" * 1000}, "x…' is not a whole number"),
        (plain, {"b": "inf"}, "'inf' is not a number"),
        (plain, {"b": "1_000"}, "'1_000' is not a number"),
        (plain, {"c": ""}, "c is required"),
        (times, {"a": "noon"}, "'noon' is not a date and time"),
        (times, {"b": "2030-02-30"}, "is not a date"),
        (times, {"c": "1e300"}, "is not a number of seconds"),
        (choices, {"a": "GREEN"}, "'GREEN' is not one of these"),
        (choices, {"a": "__class__"}, "is not one of these"),
        (numbers, {"a": "1,5"}, "is not a decimal number"),
        (numbers, {"a": "sNaN"}, "is not a decimal number"),
        (numbers, {"b": "1"}, "is not a UUID"),
        (optional, {"c": "maybe"}, "is not yes or no"),
        (lists, {"a": "{}"}, "a: {} is not a list"),
        (lists, {"b": '{"a": 1'}, "is not JSON: Expecting"),
        (lists, {"d": "[[]]"}, "d[0]: [] is not a whole number"),
        (point, {"p": '{"z": 1}'}, "p: there is no 'z'; it takes x, y, tags"),
        (point, {"q": '{"n": -1}'}, "q: n is negative"),
        (point, {"p": '{"y": 1}'}, "p: x is missing"),
        (point, {"p": '{"x": "abc"}'}, "p.x: 'abc' is not a whole number"),
        (stars, {"rest": "3"}, "rest: 3 is not a list"),
        (stars, {"rest": "[1, null]"}, "rest[1]: null is not a whole number"),
        (stars, {"more": "[]"}, "more: [] is not an object"),
        (lists, {"a": "[NaN]"}, "JSON has no NaN"),
        (lists, {"a": "[" * 100_000}, "is not JSON: it is nested too deeply"),
        (lists, {"b": '{"a": "1"}'}, "b.a: '1' is not a whole number"),
    ],
)
def test_a_wrong_value_is_an_error_of_its_field(function, given, message):
    (name,) = given
    _, _, errors = read_arguments(function, {f"arg.{name}": value for name, value in given.items()})
    assert message in errors[f"arg.{name}"] and len(errors[f"arg.{name}"]) < 400


@pytest.mark.parametrize(
    "function",
    [
        plain,
        loose,
        times,
        choices,
        numbers,
        optional,
        lists,
        point,
        stars,
        positional,
        keywords,
        options,
        sentinel,
        broken,
        texts,
        google,
        sphinx,
        add,
    ],
)
def test_default_inputs_are_read_as_the_defaults(function):
    shown = {field.input: field.default for field in form_fields(function)}
    wanted = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty
    }
    filled = {
        field.input: {
            "number": "1",
            "date": "2030-01-01",
            "datetime-local": "2030-01-01T00:00",
            "text": "1",
            "textarea": "[]",
            "select": field.widget.choices[0][0] if field.widget.choices else "",
            "checkbox": "",
        }[field.widget.control]
        for field in form_fields(function)
        if field.required
    }
    if function in (numbers, lists, point, options):
        filled |= {
            "arg.b": "{}" if function is lists else "0" * 32,
            "arg.p": '{"x": 1}',
            "arg.kwargs": "{}",
        }
    args, kwargs, errors = read_arguments(function, {**shown, **filled})
    assert not errors, errors
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    assert {name: bound.arguments[name] for name in wanted} == wanted


def test_each_annotation_has_its_form_control():
    assert [field.widget.control for field in form_fields(times)] == [
        "datetime-local",
        "date",
        "number",
        "text",
    ]
    assert [field.widget.control for field in form_fields(plain)] == [
        "number",
        "number",
        "text",
        "checkbox",
        "checkbox",
    ]
    assert [field.widget.step for field in form_fields(plain)][:2] == ["1", "any"]
    assert {name: field.widget.control for name, field in fields(texts).items()} == {
        "prompt": "textarea",
        "short": "text",
        "lines": "textarea",
    }
    assert [name for name, _ in fields(choices)["b"].widget.choices] == ["x", "y", "3"]
    assert dict(fields(choices)["c"].widget.choices) == {"SMALL": "SMALL (1)", "LARGE": "LARGE (2)"}
    assert fields(choices)["d"].default == "BLUE"


def test_required_nullable_and_hints():
    assert [field.required for field in form_fields(plain)] == [True, True, True, False, False]
    assert [field.required for field in form_fields(optional)] == [False] * 4
    assert [field.required for field in form_fields(stars)] == [True, False, False, False, False]
    assert [field.nullable for field in form_fields(optional)] == [True, True, True, False]
    assert "left empty: None" in fields(optional)["a"].hint
    assert "left empty: the default" in fields(stars)["b"].hint
    assert "left empty: <object object" in fields(sentinel)["a"].hint
    assert "JSON if it is JSON, else as text" in fields(loose)["a"].hint
    assert fields(stars)["rest"].type == "*int" and fields(stars)["more"].type == "**Any"
    assert fields(optional)["a"].type == "int | None"


def test_help_comes_from_the_docstring():
    assert documentation(google) == (
        "Do it well.",
        {
            "a": "the first, on two lines: yes.",
            "b": "the second",
            "rest": "what is left",
            "c": "the last one",
        },
    )
    assert documentation(sphinx) == (
        "Do it.",
        {"a": "the first, on two lines", "b": "the second"},
    )
    assert documentation(plain) == ("", {})
    assert fields(google)["a"].help == "the first, on two lines: yes."
