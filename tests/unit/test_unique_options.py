"""The options of unique jobs: what is refused, and the keys that calls get."""

from __future__ import annotations

import datetime

import pytest

from rqjobs import PayloadError, job, policies
from rqjobs.policies import unique

MARKER = object()


def send(user, text="hello", marker=MARKER, **more):
    pass


def fields(options, *args, **kwargs):
    return policies.fields(policies.Call(send, "shop.send", args, kwargs), options)


def key(*args, **kwargs):
    return fields({"unique": "args"}, *args, **kwargs)["rqjobs_unique"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unique": True}, r"unique=True is RQ's option of one enqueue \(by job_id\)"),
        ({"unique": 5}, "unique=5 is not a text"),
        ({"unique": ""}, "unique='' is empty"),
        ({"unique": "arg"}, "unique='arg' names no parameter, so all calls would be equal"),
        ({"unique": "{usr}"}, r"send has no parameter 'usr' \(it has: user, text"),
        ({"unique": "args", "until": "end"}, "until='end' is unknown; use 'ended' or 'started'"),
        ({"unique": "args", "until": []}, r"until=\[\] is unknown"),
        (
            {"unique": "args", "on_conflict": "skip"},
            "on_conflict='skip' is unknown; use 'return' or 'raise' or 'replace'",
        ),
        ({"unique": "args", "keep": 0}, "keep=0 must be more than 0 seconds"),
        ({"unique": "args", "keep": "60"}, "keep='60' is not a number of seconds"),
        ({"unique": "args", "keep": True}, "keep=True is not a number of seconds"),
        ({"unique": "args", "keep": float("nan")}, "keep=nan must be more than 0 seconds"),
        ({"unique": "args", "keep": 1e12}, "at most a year"),
        ({"until": "started"}, "until='started' needs unique='args', or a template"),
        ({"keep": 60}, "keep=60 needs unique='args'"),
        ({"on_conflict": "raise"}, "on_conflict='raise' needs unique='args'"),
        (
            {"unique": "args", "until": "started", "keep": 5},
            "keep=5 counts from the end of a job, and until='started' frees the key before",
        ),
        ({"debounce": -1}, "debounce=-1 must be more than 0 seconds"),
        ({"debounce_max": 5}, "debounce_max=5 limits nothing without debounce=seconds"),
        ({"debounce": 5, "debounce_max": 4}, "debounce_max=4 is less than debounce=5"),
        (
            {"debounce": 5, "on_conflict": "replace"},
            "debounce replaces a waiting job, so leave on_conflict='replace' out",
        ),
        ({"debounce": 5, "keep": 9}, "debounce ends when the job starts .* leave keep=9 out"),
        ({"debounce": 5, "until": "ended"}, "leave until='ended' out"),
    ],
)
def test_wrong_options_are_refused_with_the_remedy_when_a_module_is_imported(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        job(**options)(send)


def test_equal_calls_have_one_key_however_their_arguments_are_given():
    assert key(1) == key(user=1) == key(1, "hello") == key(text="hello", user=1)
    assert key(1, a=1, b=2) == key(1, b=2, a=1)
    assert key({"a": 1, "b": {2, 3}}) == key({"b": {3, 2}, "a": 1})
    keys = {key(1), key(2), key("1"), key(None), key([1]), key((1,)), key(1, a=1), key(1, "x")}
    assert len(keys) == 8
    assert key(datetime.date(2030, 1, 2)).startswith("shop.send#")


def test_a_template_gives_the_key_of_the_function():
    options = {"unique": "user:{user}", "keep": 90, "on_conflict": "raise"}
    assert fields(options, 7, "x") == {
        "rqjobs_unique": "shop.send:user:7",
        "rqjobs_keep": "90",
        "rqjobs_conflict": "raise",
    }
    assert fields({"unique": "args", "on_conflict": "return"}, 7) == {"rqjobs_unique": key(7)}


def test_arguments_of_which_no_key_can_be_made_are_refused():
    with pytest.raises(PayloadError, match=r"argument .user. is"):
        key(object())
    with pytest.raises(TypeError, match="the argument 'user' is a list"):
        fields({"unique": "{user}"}, [1])


def test_debounce_implies_unique_arguments_and_until_started():
    found = fields({"debounce": 5, "debounce_max": 60}, 7)
    assert found == {
        "rqjobs_unique": key(7),
        "rqjobs_until": "started",
        "rqjobs_debounce": "5 60",
    }
    assert fields({"debounce": 0.5}, 7)["rqjobs_debounce"] == "0.5 -"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"unique": "u:{user}"}, "shop.send:u:7, until ended"),
        (
            {"unique": "u:{user}", "keep": 9},
            "shop.send:u:7, until ended, kept for 9 s after the end",
        ),
        (
            {"unique": "u:{user}", "debounce": 5, "debounce_max": 60},
            "shop.send:u:7, until started, debounced by 5 s, at most 60 s",
        ),
        ({}, ""),
    ],
)
def test_the_policy_in_one_line(options, text):
    assert unique.describe(fields(options, 7)) == text
