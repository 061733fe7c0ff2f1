"""`resumable` and `progress` outside a job, and what they refuse."""

from __future__ import annotations

import gzip
import io
import math
import sqlite3

import pytest

import rqjobs
from rqjobs import loops
from rqjobs.loops import Progress, read_progress
from rqjobs.times import utc


def numbers(after):
    start = 0 if after is None else after + 1
    return [(number, str(number)) for number in range(start, min(start + 2, 5))]


def test_outside_a_job_it_gives_the_rows(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("header\na\nb\n")
    assert list(rqjobs.resumable([1, 2])) == [1, 2]
    assert list(rqjobs.resumable(range(3), total=10, every=0, name="x")) == [0, 1, 2]
    assert list(rqjobs.resumable(numbers)) == ["0", "1", "2", "3", "4"]
    with path.open() as file:
        assert file.readline() == "header\n"
        assert list(rqjobs.resumable(file)) == ["a\n", "b\n"]
    assert list(rqjobs.resumable(io.BytesIO(b"a\nb"))) == [b"a\n", b"b"]
    with gzip.open(tmp_path / "rows.gz", "wb") as file:
        file.write(b"a\nb\n")
    with gzip.open(tmp_path / "rows.gz", "rt") as file:
        assert list(rqjobs.resumable(file)) == ["a\n", "b\n"]
    rows = sqlite3.connect(":memory:").execute("select 1, 2 union select 2, 3").fetchall()
    assert list(rqjobs.resumable(lambda after: [] if after else rows)) == [2, 3]
    rqjobs.progress(1, 2, "x" * 1000)


@pytest.mark.parametrize(
    "rows, words",
    [
        (iter([1]), "list_iterator; pass a list"),
        ((number for number in [1]), "generator; pass a list"),
        ({1: 2}, "dict; pass"),
        ({1}, "set; pass"),
        ("path.csv", "str; pass"),
        (None, "NoneType; pass"),
        (lambda after: None, "not None"),
        (lambda after: [1], "pairs, empty at the end, not 1"),
        (lambda after: {1: 2}, "not {1: 2}"),
        (lambda after: [(None, 1)], "is None"),
        (lambda after: [(object(), 1)], "JSON cannot carry"),
    ],
)
def test_rows_without_positions_are_refused(rows, words):
    with pytest.raises(TypeError, match=words):
        list(rqjobs.resumable(rows))


@pytest.mark.parametrize(
    "keys, words",
    [
        ([1, 1], "the key 1 again"),
        (["x" * 3000], "more than 2,048"),
        ([math.nan], "not JSON compliant"),
    ],
)
def test_keys_that_would_skip_rows_are_refused(keys, words):
    with pytest.raises(ValueError, match=words):
        list(rqjobs.resumable(lambda after: [(key, key) for key in keys]))


def test_fetch_that_ignores_its_argument_is_refused():
    with pytest.raises(ValueError, match="behind `after`"):
        list(rqjobs.resumable(lambda after: [(1, "a")]))


def test_file_whose_position_is_not_known_is_refused(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("header\na\n")
    with path.open() as file:
        next(file)
        with pytest.raises(ValueError, match="readline"):
            rqjobs.resumable(file)


@pytest.mark.parametrize(
    "options, kind",
    [
        ({"total": -1}, ValueError),
        ({"total": "1"}, TypeError),
        ({"total": math.inf}, ValueError),
        ({"every": -1}, ValueError),
        ({"every": math.nan}, ValueError),
        ({"every": True}, TypeError),
        ({"name": ""}, ValueError),
        ({"name": "#1"}, ValueError),
        ({"name": "x" * 65}, ValueError),
        ({"name": 1}, TypeError),
    ],
)
def test_bad_options_are_refused_at_once(options, kind):
    with pytest.raises(kind):
        rqjobs.resumable([1], **options)


@pytest.mark.parametrize(
    "arguments, kind",
    [
        ((-1,), ValueError),
        ((math.nan,), ValueError),
        ((10**400,), ValueError),
        ((True,), TypeError),
        (("1",), TypeError),
        ((1, math.inf), ValueError),
        ((1, 2, None), TypeError),
    ],
)
def test_bad_progress_is_refused_at_once(arguments, kind):
    with pytest.raises(kind):
        rqjobs.progress(*arguments)


@pytest.mark.parametrize(
    "stored",
    [
        None,
        b"",
        b"x",
        b"[1]",
        b"[" * 5000,
        b"[" * 1000,
        b'[-1, 2, "", 0]',
        b'[NaN, 2, "", 0]',
        b'[1, Infinity, "", 0]',
        b"[1, 2, 3, 0]",
        b'[1, 2, "", 1e300]',
        b'[1, 2, "", null]',
        b'[1, 2, "", 0]' + b" " * 5000,
        b"\xff",
        3,
    ],
)
def test_forged_progress_is_none(stored):
    assert read_progress(stored) is None


def test_progress_in_a_line():
    assert Progress(1200, 5000, "users", utc(0)).describe() == "1,200 of 5,000 (users)"
    assert Progress(3, None, "", utc(0)).describe() == "3 done"
    assert loops._cut("x" * 300) == "x" * 199 + "…"
    stored = loops._progress_text(Progress(1, 2.5, "\udcff", utc(1.5)))
    assert read_progress(stored.encode()) == Progress(1, 2.5, "\\udcff", utc(1.5))
