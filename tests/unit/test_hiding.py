"""RQJOBS_HIDE: which names it hides, in values, calls and texts."""

from __future__ import annotations

import json
from collections import namedtuple

import odd_values
import page_jobs
import pytest

from rqjobs import hiding
from rqjobs.hiding import HIDDEN

NAMES = ("password", "api-token")
Pair = namedtuple("Pair", "user password")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("password", True),
        ("Old_Password2", True),
        ("PASS_WORD", True),
        ("apiToken", True),
        ("X-API-Token", True),
        ("token", False),
        ("pass", False),
        ("", False),
        (5, False),
        (None, False),
        ("\ud800password", True),
    ],
)
def test_a_name_is_hidden_if_it_contains_one_of_the_setting(name, expected):
    assert hiding.is_hidden(NAMES, name) is expected
    assert not hiding.is_hidden((), name)


def test_values_are_hidden_by_their_keys_and_attributes_at_any_depth():
    value = {"a": [{"password": [1]}, {"ok": 1}], "user": "Ada"}
    assert hiding.hide(NAMES, value) == {"a": [{"password": "hidden"}, {"ok": 1}], "user": "Ada"}
    assert value["a"][0] == {"password": [1]}  # the value is not changed
    account = page_jobs.Account("Ada", "secret")
    assert hiding.hide(NAMES, (account,)) == (page_jobs.Account("Ada", "hidden"),)
    assert account.api_token == "secret"
    assert hiding.hide(NAMES, Pair("Ada", "secret")) == Pair("Ada", "secret")  # it has no keys
    assert json.dumps(hiding.hide(NAMES, {"password": 1})) == '{"password": "hidden"}'
    assert repr(HIDDEN) == "hidden"


def test_a_value_without_hidden_names_is_returned_as_it_is():
    value = {"a": [1, {"b": (1, {2})}]}
    assert hiding.hide(NAMES, value) is value
    assert hiding.hide((), {"password": 1}) == {"password": 1}


def test_what_cannot_be_searched_is_hidden():
    cycle: list = []
    cycle.append(cycle)
    assert hiding.hide(NAMES, [cycle, 1]) == [[HIDDEN], 1]
    assert "hidden" in repr(hiding.hide(NAMES, odd_values.deep(200)))
    holder = type("Holder", (), {})()
    holder.password = "secret"
    assert hiding.hide(NAMES, holder) is HIDDEN


@pytest.mark.parametrize("kind", sorted(odd_values.VALUES.keys() - {"leaver"}))
def test_no_value_makes_it_raise(kind):
    value = odd_values.VALUES[kind]()
    hiding.hide(NAMES, value)
    hiding.hide(NAMES, {"password": value, "a": [value]})
    hiding.secrets_of(NAMES, None, [value], {"password": value})


def test_positional_arguments_have_the_names_of_their_parameters():
    def call(user, password, *tokens, **rest): ...

    shown = hiding.hide_arguments(("password", "tokens"), call, ["a", "b", "c", "d"], {"x": 1})
    assert shown == (["a", HIDDEN, HIDDEN, HIDDEN], {"x": 1})
    assert hiding.hide_arguments(NAMES, call, ["b"], {}, passed_on=1) == ([HIDDEN], {})
    assert hiding.hide_arguments(NAMES, None, ["a", "b"], {"password": 1}) == (
        ["a", "b"],
        {"password": HIDDEN},
    )
    assert hiding.hides_any(NAMES, call, ["a", "b"], {})
    assert not hiding.hides_any(NAMES, call, ["a"], {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f(user='a', password='b, c', x=1)", "f(user='a', password=hidden, x=1)"),
        ("f({'api_token': \"it's\", 'b': 2})", "f({'api_token': hidden, 'b': 2})"),
        ("f(password='cut off...", "f(password=hidden"),
        ("f(password=['b', 'c'], x=1)", "f(password=hidden, x=1)"),
        ("f(password=5)", "f(password=hidden)"),
        ("f('secret')", "f('secret')"),
    ],
)
def test_a_text_is_masked_where_a_name_stands(text, expected):
    assert hiding.hide_text(NAMES, text) == expected
    assert hiding.hide_text((), text) == text


def test_secrets_are_masked_in_other_texts():
    def call(user, password): ...

    secrets = hiding.secrets_of(NAMES, call, ["Ada", {"a": "hunter2", "b": ["it's\n"]}], {})
    assert hiding.mask("Ada: hunter2 and 'it\\'s\\n'", secrets) == "Ada: hidden and 'it\\'s\\n'"
    assert hiding.secrets_of(NAMES, call, ["Ada", "abc"], {}) == []  # too short
    assert hiding.secrets_of((), call, ["Ada", "hunter2"], {}) == []
