"""The options of policies: what `@job` and an enqueue refuse, and the fields that they give."""

from __future__ import annotations

import pytest

from rqjobs import job, policies
from rqjobs.policies import limits


def send(user, text="hello", tags=()):
    pass


def fields(options, *args, **kwargs):
    return policies.fields(policies.Call(send, "shop.send", args, kwargs), options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit=0 would never fit; give 1 to 10000 jobs"),
        ({"limit": True}, "limit=True is not a whole number of jobs"),
        ({"limit": "3"}, "limit='3' is not a whole number of jobs"),
        ({"limit_by": "{user}"}, "limit_by limits nothing alone"),
        ({"limit": 1, "limit_by": "{usr}"}, r"send has no parameter 'usr' \(it has: user, text"),
        ({"limit": 1, "limit_by": "{user"}, "limit_by='{user' cannot be read: expected '}'"),
        ({"limit": 1, "limit_by": "{user.id}"}, "write the name of a parameter in the braces"),
        ({"limit": 1, "limit_by": "{user!r}"}, "write the name of a parameter in the braces"),
        ({"limit": 1, "limit_by": "{}"}, "write the name of a parameter in the braces"),
        ({"limit": 1, "limit_by": " "}, "limit_by=' ' is empty"),
        ({"limit": 1, "limit_by": 5}, "limit_by=5 is not a text"),
        ({"rate": "fast"}, "rate='fast' is not a rate; give a text like '30/m'"),
        ({"rate": "0/m"}, "rate='0/m' would let no job run"),
        ({"rate": 30}, "rate=30 is not a rate"),
        ({"burst": 5}, "burst belongs to a rate"),
        ({"rate": "1/s", "burst": 0}, "burst=0 would never fit"),
    ],
)
def test_wrong_limits_are_refused_with_the_remedy_when_a_module_is_imported(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        job(**options)(send)


@pytest.mark.parametrize(
    ("rate", "seconds"),
    [("30/m", 2), ("5/s", 0.2), ("100/15m", 9), ("1/d", 86_400), ("3600 / h", 1), ("1/2h", 7200)],
)
def test_rates_give_the_seconds_between_two_starts(rate, seconds):
    assert limits.seconds_per_job(rate) == seconds


def test_keys_are_rendered_from_the_arguments_however_they_are_given():
    by_user = {"limit": 3, "limit_by": "user:{user}:{text}"}
    expected = {"rqjobs_limit": "3 0.000000 1 user:7:hello"}
    assert fields(by_user, 7) == fields(by_user, user=7, text="hello") == expected
    assert fields({"rate": "30/m"}, 7) == {"rqjobs_limit": "0 2.000000 1 shop.send"}
    assert fields({}, 7) == {}


def test_keys_of_other_arguments_than_texts_and_numbers_are_refused():
    with pytest.raises(TypeError, match="the argument 'user' is a list"):
        fields({"limit": 1, "limit_by": "{user}"}, [1])
    with pytest.raises(ValueError, match="gives a key of 500 letters; use at most 200"):
        fields({"limit": 1, "limit_by": "{user}"}, "x" * 500)
