"""Retry rules: the options that are accepted, the decisions, and what exceptions may ask for."""

from __future__ import annotations

import email.utils
import json
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
import rq

from rqjobs import Discard, RetryIn, Snooze, attempts, backoff, job
from rqjobs.policies import Call, exceptions, retries
from rqjobs.policies.exceptions import Failure
from rqjobs.policies.retries import Action, History, Rules

NOW = 1_700_000_000.0


class Limited(Exception):
    pass


class MoreLimited(Limited):
    pass


def function(**options):
    def target():
        pass

    target.__rqjobs__ = options
    return target


def decide(error, retried=0, first=NOW, **options):
    rules = retries.rules_of_job(options, "")
    history = History(retried, first)
    return retries.decide(rules, history, exceptions.failure_of(error, NOW), NOW)


# The delay


def test_delay_grows_up_to_the_cap():
    rule = backoff(20, jitter=False)
    assert [rule.delay(number) for number in (1, 2, 3, 8, 9, 10, 5000)] == [
        2, 4, 8, 256, 300, 300, 300
    ]  # fmt: skip
    assert [backoff(5, base=1, jitter=False).delay(number) for number in (1, 5)] == [1, 1]


def test_jitter_is_between_half_and_the_whole():
    delays = {backoff(5).delay(4) for _ in range(200)}
    assert all(8 <= delay <= 16 for delay in delays) and len(delays) > 100


def test_intervals_of_rq_are_used_as_rq_does():
    rule = retries._read_rule(rq.Retry(max=3, interval=[1, 5]))
    assert [rule.delay(number) for number in (1, 2, 3)] == [1, 1, 5]
    assert retries._read_rule(rq.Retry(max=2)).delay(1) == 0


# The options


@pytest.mark.parametrize(
    "options, message",
    [
        ({"retry": 5}, r"retry=5 is not a rule; use backoff\(5\)"),
        ({"retry": {}}, r"retry=\{\} has no rule"),
        ({"retry": {ValueError: 3}}, "retry=3 is not a rule"),
        ({"retry": {"ValueError": backoff(3)}}, "retry: 'ValueError' is not an exception class"),
        ({"retry": backoff()}, r"would retry for ever; use backoff\(5\), or add retry_for"),
        ({"retry": {ValueError: backoff()}}, "would retry for ever"),
        (
            {"retry": backoff(5), "retry_for": 60},
            r"cannot go together with a number of retries \(5\)",
        ),
        ({"retry": rq.Retry(max=2), "retry_for": 60}, "leave retry_for out"),
        ({"retry": backoff(5), "retry_on": (1,)}, "retry_on: 1 is not an exception class"),
        ({"retry": backoff(5), "retry_on": int}, "is not an exception class"),
        ({"retry": backoff(5), "retry_on": "ValueError"}, "is not a tuple of exception classes"),
        ({"retry_on": (ValueError,)}, r"not how often; add retry=backoff\(5\)"),
        ({"retry": {ValueError: backoff(1)}, "retry_on": (ValueError,)}, "leave retry_on out"),
        ({"discard_on": (ValueError("x"),)}, "give the class itself"),
        ({"retry_for": -1}, "retry_for takes 0 to"),
        ({"retry_for": "2h"}, "retry_for takes a number of seconds or a timedelta, not '2h'"),
    ],
)
def test_wrong_options_are_refused_at_import(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        job(**options)(function())


@pytest.mark.parametrize(
    "given, message",
    [
        ({"count": 0}, "is at least 1"),
        ({"count": True}, "whole number"),
        ({"count": 2.5}, "whole number"),
        ({"count": 5, "base": 0.5}, "too small; use at least 1"),
        ({"count": 5, "cap": -1}, "takes 0 to"),
        ({"count": 5, "cap": float("nan")}, "takes 0 to"),
        ({"count": 5, "cap": timedelta(1)}, "not a timedelta"),
        ({"count": 5, "base": "2"}, "takes a number of seconds"),
    ],
)
def test_wrong_backoff_is_refused(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        backoff(**given)


@pytest.mark.parametrize(
    "options",
    [
        {"retry": backoff(5)},
        {"retry": rq.Retry(max=2), "discard_on": ValueError},
        {"retry": backoff(), "retry_for": timedelta(hours=2)},
        {"retry_for": 60, "retry_on": [ValueError, Limited]},
        {"discard_on": (ValueError,)},
        {"retry": {Limited: backoff(2), Exception: rq.Retry(max=1)}},
    ],
)
def test_stored_rules_of_a_call_are_the_same_rules(options):
    target = function()
    retries.check(target, options)
    call = Call(target, "jobs.target", (), {})
    (stored,) = retries.fields(call, options).values()
    assert retries.rules_of_job({}, stored) == retries.rules_of_job(options, "")
    target.__rqjobs__ = options
    assert retries.fields(call, options) == {}


def test_call_overrides_single_options():
    own = {"retry": backoff(5), "retry_on": (Limited,)}
    call = Call(function(**own), "jobs.target", (), {})
    given = {**own, "retry": backoff(2, base=7)}
    stored = retries.fields(call, given)["rqjobs_retry"]
    assert "retry_on" not in json.loads(stored)
    rules = retries.rules_of_job({**own, "retry_on": (ValueError,)}, stored)
    assert rules.rules[0][1].base == 7 and rules.retry_on == {"builtins.ValueError"}


@pytest.mark.parametrize(
    "own, given, count, retry_for, retry_on",
    [
        ({"retry_for": 60}, {"retry": backoff(3)}, 3, None, None),
        ({"retry_for": 60}, {"retry": backoff(base=5)}, None, 60, None),
        ({"retry": backoff(3)}, {"retry_for": 60}, None, 60, None),
        ({"retry": backoff(), "retry_for": 60}, {"retry_for": 9}, None, 9, None),
        ({"retry": backoff(3), "retry_on": (Limited,)}, {"retry": {Limited: backoff(4)}}, 4, None, None),
        ({"retry": backoff(3)}, {"retry": rq.Retry(max=7)}, 7, None, None),
    ],
)  # fmt: skip
def test_option_of_a_call_replaces_the_one_that_it_excludes(own, given, count, retry_for, retry_on):
    target = function(**own)
    retries.check(target, {**own, **given})
    stored = retries.fields(Call(target, "jobs.target", (), {}), {**own, **given})["rqjobs_retry"]
    rules = retries.rules_of_job(own, stored)
    assert (rules.find(exceptions.names_of(Limited())).count, rules.retry_for) == (count, retry_for)
    assert rules.retry_on == retry_on


@pytest.mark.parametrize("own", [{"retry": backoff(3), "retry_on": Limited}, {"retry_for": 60}])
def test_call_without_retries(own):
    target = function(**own)
    retries.check(target, {**own, "retry": False})
    fields = retries.fields(Call(target, "jobs.target", (), {}), {**own, "retry": False})
    rules = retries.rules_of_job(own, fields["rqjobs_retry"])
    failure = exceptions.failure_of(Limited(), NOW)
    assert retries.decide(rules, History(), failure, NOW).action is Action.FAIL
    assert retries.for_rq(False) is None


@pytest.mark.parametrize(
    "options, text",
    [
        ({}, ""),
        ({"retry": False}, ""),
        ({"retry": rq.Retry(max=2)}, "2"),
        ({"retry": backoff(5)}, "5"),
        ({"retry": {Limited: backoff(5), OSError: backoff(2)}}, "its rules"),
        ({"retry_for": 60}, "its rules"),
    ],
)
def test_number_of_retries_for_a_form(options, text):
    assert retries.describe(options) == text


def test_rules_that_are_too_long_to_store_are_refused():
    many = tuple(type(f"Error{number}", (Exception,), {}) for number in range(2000))
    with pytest.raises(ValueError, match=r"set them in @job of jobs\.target"):
        retries.fields(Call(function(), "jobs.target", (), {}), {"discard_on": many})


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "[]",
        "nonsense",
        '{"retry":[["",{"max":0,"intervals":[],"at_front":false}]]}',
        '{"retry":[["",{"max":1,"intervals":["a"],"at_front":false}]]}',
        '{"retry":[["",{"max":1,"other":1}]]}',
        '{"retry":[[7,{"max":1}]]}',
        '{"retry":[["",{"count":1,"base":1e999,"cap":1,"jitter":1}]]}',
        '{"retry":[["",{"count":1}]]}',
        '{"retry_on":7}',
        '{"retry_on":[7]}',
        '{"retry_for":"x"}',
        '{"retry_for":' + "9" * 5000 + "}",
        "[" * 16_000,
    ],
)
def test_forged_rules_cannot_be_read(stored):
    if not stored:
        assert retries.rules_of_job({}, stored) is None
        return
    with pytest.raises(ValueError, match="rqjobs_retry cannot be read"):
        retries.rules_of_job({}, stored)


@pytest.mark.parametrize("stored", ["", "x", "1", "-1 5", "1 5 6", "9999999999 1", "1 " + "9" * 50])
def test_forged_history_is_an_empty_one(stored):
    assert History.read(stored) == History()


# The decision


def test_subclasses_count_as_their_bases():
    assert decide(MoreLimited(), retry=backoff(1), retry_on=(Limited,)).action is Action.RETRY
    assert decide(ValueError(), retry=backoff(1), retry_on=(Limited,)).action is Action.FAIL
    assert decide(MoreLimited(), discard_on=(Limited,)).action is Action.DISCARD
    assert decide(ValueError(), discard_on=(Limited,)).action is Action.FAIL


def test_discard_on_comes_before_every_rule():
    decision = decide(Limited(), retry=backoff(5), retry_on=(Limited,), discard_on=(Limited,))
    assert decision.action is Action.DISCARD


def test_count_is_used_up():
    assert decide(Limited(), 1, retry=backoff(2)).retries_left == 0
    assert decide(Limited(), 2, retry=backoff(2)).action is Action.FAIL
    decision = decide(Limited(), 0, first=None, retry=backoff(2))
    assert decision.history == f"1 {NOW:.3f}" and decision.retries_left == 1


def test_retry_for_counts_from_the_first_failure():
    assert decide(Limited(), 99, NOW - 60, retry_for=60).action is Action.RETRY
    assert decide(Limited(), 99, NOW - 61, retry_for=60).action is Action.FAIL
    assert decide(Limited(), 99, NOW - 60, retry_for=60).retries_left is None


def test_larger_delay_counts():
    options = {"retry": backoff(5, base=60, jitter=False)}
    slow, quick = Limited(), Limited()
    slow.retry_after, quick.retry_after = 100, 5
    assert (decide(slow, **options).delay, decide(quick, **options).delay) == (100, 60)


def test_retry_in_finds_the_rule_of_its_cause():
    rules = retries.rules_of_job({"retry": {Limited: backoff(1)}}, "")
    try:
        try:
            raise MoreLimited
        except Limited:
            raise RetryIn(7)  # noqa: B904
    except RetryIn as error:
        names = exceptions.failure_of(error, NOW).names
    decision = retries.decide_retry_in(rules, History(), names, 7, NOW)
    assert (decision.action, decision.delay) == (Action.RETRY, 7)
    names = exceptions.failure_of(RetryIn(7), NOW).names
    assert retries.decide_retry_in(rules, History(), names, 7, NOW).action is Action.FAIL


@pytest.mark.parametrize(
    "rules, message",
    [
        (None, r"has no retries; add retry=backoff\(5\) to its @job, or raise Snooze"),
        (Rules((("", backoff(3)),)), "no rule of its retry= has a retry left after 3; raise the"),
        (Rules((("", backoff()),), retry_for=60), "more than retry_for=60 s ago"),
    ],
)
def test_job_without_a_retry_left_is_told_the_remedy(rules, message):
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(retries.why_no_retry(rules, History(3, NOW)))


@pytest.mark.parametrize("kind", [Snooze, RetryIn])
@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), 2**31, "5", None, True])
def test_wrong_delays_are_refused(kind, delay):
    with pytest.raises((TypeError, ValueError), match=f"{kind.__name__} takes"):
        kind(delay)


def test_delays_are_seconds_or_a_timedelta():
    assert Snooze(timedelta(minutes=1)).seconds == 60 and RetryIn(0.5).seconds == 0.5
    assert str(Discard("why")) == "why"


# What an exception asks for


class Hostile(Exception):
    @property
    def retry_after(self):
        raise SystemExit

    def __getattr__(self, name):
        raise KeyboardInterrupt


class HostileMeta(type):
    @property
    def __module__(cls):
        raise SystemExit

    def __getattribute__(cls, name):
        raise SystemExit


@pytest.mark.parametrize(
    "value, seconds",
    [
        (30, 30),
        (2.5, 2.5),
        ("30", 30),
        (b"30", 0),
        (timedelta(minutes=1), 60),
        (datetime.fromtimestamp(NOW + 50, timezone.utc), 50),
        (datetime.fromtimestamp(NOW - 50, timezone.utc), 0),
        (email.utils.formatdate(NOW + 70, usegmt=True), 70),
        (10**400, 0),
        (10**9, 86_400),
        (-5, 0),
        (float("nan"), 0),
        (float("inf"), 86_400),
        ("inf", 0),
        ("nonsense", 0),
        ("9" * 10_000, 86_400),
        (True, 0),
        (None, 0),
        ([], 0),
    ],
)
def test_retry_after_of_any_kind(value, seconds):
    error = Limited()
    error.retry_after = value
    assert exceptions.retry_after(error, NOW) == seconds
    error = Limited()
    error.response = SimpleNamespace(headers={"Retry-After": value})
    assert exceptions.retry_after(error, NOW) == seconds


def test_hostile_exceptions_ask_for_nothing():
    assert exceptions.retry_after(Hostile(), NOW) == 0
    assert exceptions.retry_after(Limited(), NOW) == 0
    kind = HostileMeta("Odd", (Exception,), {})
    names = exceptions.names_of(kind())
    assert names[-3:] == ("builtins.Exception", "builtins.BaseException", "builtins.object")
    failure = exceptions.failure_of(kind(), NOW)
    assert isinstance(failure, Failure) and failure.retry_after == 0


# The line on the job's page


@pytest.mark.parametrize(
    "traceback, line",
    [
        ("Traceback …\n  File\nmy.jobs.RateLimited: slow down\n", "RateLimited: slow down"),
        ("my.jobs.RateLimited", "RateLimited"),
        ("ValueError: see a.b: c", "ValueError: see a.b: c"),
        ("", ""),
    ],
)
def test_last_line_has_no_module(traceback, line):
    assert attempts.last_line(traceback) == line
