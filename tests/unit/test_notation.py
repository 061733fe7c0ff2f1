"""Values in Python's notation, within bounds."""

from __future__ import annotations

import odd_values
import pytest
import sample_jobs

from rqjobs import config
from rqjobs.web import notation


@pytest.fixture(autouse=True)
def modules(settings):
    config.use(hide=("password",))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1.5,
        "text",
        "two\nlines",
        "\"\"\" and ''' \\\n end'",
        "\u202e\x00\n\ud800",
        b"bytes",
        [],
        (),
        set(),
        {},
        (1,),
        [(1,), {2}, {"a": [None]}],
        {"a" * 60: "b" * 60, 1: {"c": ["d" * 50, "e" * 50]}},
    ],
)
def test_a_value_is_shown_as_python_reads_it(value):
    assert eval(notation.text(value)) == value


def test_dataclasses_and_hidden_values():
    assert notation.text(sample_jobs.Point(1, 2)) == "Point(x=1, y=2, tags=frozenset())"
    assert notation.text({"password": 1, "a": 2}) == "{'password': hidden, 'a': 2}"
    shown = notation.show({"a": {"b": "x" * 80, "password": "y" * 80}})
    assert "y" not in notation.text({"a": {"b": "x" * 80, "password": "y" * 80}})
    assert shown.parts[0].is_open and shown.size == 1


@pytest.mark.parametrize("kind", sorted(odd_values.VALUES.keys() - {"leaver"}))
def test_any_value_is_shown(kind):
    assert notation.text(odd_values.VALUES[kind]())


def test_large_values_are_cut():
    def parts(part):
        return 1 + sum(map(parts, part.parts))

    rows = [{"a": number, "b": ["x" * 100] * 3} for number in range(100_000)]
    shown = notation.show(rows)
    assert parts(shown) <= 2 * notation.MAX_PARTS and shown.size == 100_000
    assert shown.parts[-1].is_note and "more" in shown.parts[-1].start
    assert len(notation.text("x" * 1_000_000)) < notation.TEXT_MAX_CHARACTERS + 100
    assert "more characters" in notation.text(["x" * 1_000_000])
