"""Retry rules: whether a job that failed runs again, and when.

A job's rules are the options of its function at the time of the failure, so that a change of the
code holds at once. The options of its own enqueue are stored in `rqjobs_retry` as JSON, where
exceptions are names; nothing is imported for them. `rqjobs_retries` holds the number of the counted
retries and the time of the first failure. An `rq.Retry` without any of the other options is RQ's.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as fields_of
from datetime import timedelta
from enum import Enum
from typing import Any, NamedTuple

import rq

from rqjobs.policies.call import Call
from rqjobs.policies.exceptions import Failure, name_of, seconds_of

OPTIONS = frozenset({"retry", "retry_on", "discard_on", "retry_for"})
# Written by a run; the next life of an id begins without them.
RUN_FIELDS = frozenset({"rqjobs_retries", "rqjobs_ending"})
FIELDS = RUN_FIELDS | {"rqjobs_retry"}
RULES_MAX_CHARACTERS = 16_384
HISTORY = re.compile(r"([0-9]{1,9}) ([0-9]{1,12}(?:\.[0-9]{1,6})?)")
RETRY_EXAMPLE = "retry=backoff(5)"


@dataclass(frozen=True)
class Backoff:
    """A rule of growing delays. See `backoff`."""

    count: int | None = None
    base: float = 2
    cap: float = 300
    jitter: bool = True

    at_front = False

    def delay(self, number: int) -> float:
        """The seconds before this retry; the first is 1."""
        try:
            seconds = min(float(self.cap), float(self.base) ** number)
        except OverflowError:
            seconds = float(self.cap)
        if self.jitter:
            return random.uniform(seconds / 2, seconds)  # it spreads retries  # nosec B311
        return seconds


@dataclass(frozen=True)
class Intervals:
    """The rule of an `rq.Retry`."""

    max: int
    intervals: tuple[float, ...] = ()
    at_front: bool = False

    @property
    def count(self) -> int:
        """The largest number of retries."""
        return self.max

    def delay(self, number: int) -> float:
        """As RQ: of too few intervals the first is repeated."""
        if not self.intervals:
            return 0.0
        left = self.max - number + 1
        return self.intervals[max(len(self.intervals) - left, 0)]


Rule = Backoff | Intervals
FOREVER: tuple[tuple[str, Rule], ...] = (("", Backoff()),)  # of `retry_for` alone


def backoff(
    count: int | None = None, base: float = 2, cap: float = 300, jitter: bool = True
) -> Backoff:
    """A rule for `retry=`: up to `count` retries, each after a longer delay.

    The delay of the n-th retry is the smaller of `cap` and `base` to the power of n, in seconds: 2,
    4, 8, … 256, 300, 300. With `jitter` it is a random time between half of that and the whole, so
    that jobs that failed together do not all come back together. Without `count` the retries end
    by `retry_for`.

    Raises:
        TypeError, ValueError: `count` is not a whole number from 1, `base` is less than 1, or `cap`
            is negative.
    """
    if count is not None:
        _check_count("backoff(count)", count)
    for name, value, least in (("base", base, 1), ("cap", cap, 0)):
        if isinstance(value, timedelta):
            raise TypeError(f"backoff({name}=…) is a number of seconds, not a timedelta")
        if seconds_of(f"backoff({name}=…)", value) < least:
            raise ValueError(f"backoff({name}={value!r}) is too small; use at least {least}")
    return Backoff(count, base, cap, bool(jitter))


def _check_count(what: str, count: Any) -> None:
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(
            f"{what} is a whole number of retries, not {count!r:.80}; for example {RETRY_EXAMPLE}"
        )
    if not 1 <= count < 10**9:
        raise ValueError(f"{what} is at least 1, not {count}; without retries leave retry= out")


@dataclass(frozen=True)
class Rules:
    """The retry rules of one job. Exceptions are names, as `exceptions.name_of` gives them.

    `rules`: pairs of an exception, "" for any, and its rule. `retry_on`: None for any exception.
    """

    rules: tuple[tuple[str, Rule], ...] = ()
    retry_on: frozenset[str] | None = None
    discard_on: frozenset[str] = frozenset()
    retry_for: float | None = None  # seconds after the first failure

    def find(self, names: Iterable[str]) -> Rule | None:
        """The first rule for an exception with these names."""
        found = {"", *names}
        return next((rule for name, rule in self.rules if name in found), None)


class Action(str, Enum):
    """The next step of a job whose function has raised."""

    RETRY = "retry"
    SNOOZE = "snooze"
    DISCARD = "discard"
    INTERRUPT = "interrupt"  # it continues at its cursor, and has used no retry
    FAIL = "fail"


class Decision(NamedTuple):
    """The next step of a job whose function has raised, and the values that are stored with it.

    `history` is the new value of `rqjobs_retries`, "" if it stays. `retries_left` is RQ's, None
    where there is no number. `reason` is kept with the attempt, like a traceback.
    """

    action: Action
    delay: float = 0.0
    at_front: bool = False
    history: str = ""
    retries_left: int | None = None
    reason: str = ""


class Decided(rq.Retry):
    """A decision as the value that a job returns: RQ's worker then treats the run as no failure."""

    def __init__(self, decision: Decision, error: BaseException | None = None):
        super().__init__(max=1)
        self.decision = decision
        self.error = error


class History(NamedTuple):
    """The counted retries of a job, and the time of its first failure in Unix seconds."""

    retries: int = 0
    first_failure: float | None = None

    @classmethod
    def read(cls, stored: str) -> History:
        """The history in `rqjobs_retries`; an empty one if that cannot be read."""
        match = HISTORY.fullmatch(stored)
        if not match:
            return cls()
        return cls(int(match[1]), float(match[2]))


def decide(rules: Rules, history: History, failure: Failure, now: float) -> Decision:
    """Whether a job that failed at `now` (Unix seconds) is retried, is discarded, or fails."""
    if not rules.discard_on.isdisjoint(failure.names):
        return Decision(Action.DISCARD)
    if rules.retry_on is not None and rules.retry_on.isdisjoint(failure.names):
        return Decision(Action.FAIL, retries_left=0)
    decision = _next_retry(rules, history, failure.names, now)
    if decision.action is Action.RETRY:
        return decision._replace(delay=max(decision.delay, failure.retry_after))
    return decision


def decide_retry_in(
    rules: Rules, history: History, names: Iterable[str], seconds: float, now: float
) -> Decision:
    """The retry that a job has asked for with `RetryIn`; it fails if it has none left."""
    decision = _next_retry(rules, history, names, now)
    if decision.action is Action.RETRY:
        return decision._replace(delay=seconds)
    return decision


def _next_retry(rules: Rules, history: History, names: Iterable[str], now: float) -> Decision:
    rule = rules.find(names)
    first = history.first_failure or now
    is_late = rules.retry_for is not None and now - first > rules.retry_for
    if rule is None or is_late:
        return Decision(Action.FAIL, retries_left=0)
    number = history.retries + 1
    if rule.count is not None and number > rule.count:
        return Decision(Action.FAIL, retries_left=0)
    left = None
    if rule.count is not None:
        left = rule.count - number
    return Decision(Action.RETRY, rule.delay(number), rule.at_front, f"{number} {first:.3f}", left)


def why_no_retry(rules: Rules | None, history: History) -> str:
    """Why a job that raised `RetryIn` fails, and the remedy."""
    remedy = "or raise Snooze(seconds), which is not counted"
    if rules is None or not rules.rules:
        return (
            f"the job raised RetryIn and has no retries; add {RETRY_EXAMPLE} to its @job, {remedy}"
        )
    if rules.retry_for is not None:
        return (
            f"the job raised RetryIn, and its first failure is more than retry_for="
            f"{rules.retry_for:g} s ago; raise retry_for, {remedy}"
        )
    return (
        f"the job raised RetryIn, and no rule of its retry= has a retry left after "
        f"{history.retries}; raise the count, {remedy}"
    )


# Options


def check(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Check the options of `@job`, or of a call together with those.

    Raises:
        TypeError, ValueError: an option is wrong, or cannot go together with another.
    """
    options = _effective(function, options)
    _check_rules(_rules_of(options), options)


def _effective(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, without those of the function that one of the call replaces.

    A number of retries replaces `retry_for` and the other way round, and a rule for each exception
    replaces `retry_on`.
    """
    kept = {name: options.get(name) for name in OPTIONS}
    given = _given(function, options).keys()
    if "retry" in given and "retry_on" not in given and isinstance(kept["retry"], Mapping):
        kept["retry_on"] = None
    if kept["retry_for"] is not None and _has_count(_read_retry(kept["retry"])):
        if "retry_for" not in given:
            kept["retry_for"] = None
        elif "retry" not in given:
            kept["retry"] = None
    return kept


def _given(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the call has set, or `@job` if it has not made the function a job yet."""
    own = getattr(function, "__rqjobs__", {})
    return {
        name: options[name]
        for name in sorted(OPTIONS)
        if options.get(name) is not None and options[name] is not own.get(name)
    }


def _has_count(rules: tuple[tuple[str, Rule], ...]) -> bool:
    return any(rule.count is not None for _, rule in rules)


def _rules_of(options: Mapping[str, Any]) -> Rules:
    """The rules of these options, which may be RQ's as well. `retry=False` is no retry at all.

    Raises:
        TypeError, ValueError: an option is wrong.
    """
    discard_on = options.get("discard_on")
    if discard_on is None:
        discard_on = ()
    discarded = frozenset(_class_names("discard_on", discard_on))
    if options.get("retry") is False:
        return Rules(discard_on=discarded)
    retry_on = options.get("retry_on")
    if retry_on is not None:
        retry_on = frozenset(_class_names("retry_on", retry_on))
    retry_for = options.get("retry_for")
    if retry_for is not None:
        retry_for = seconds_of("retry_for", retry_for)
    rules = _read_retry(options.get("retry"))
    if not rules and retry_for is not None:
        rules = FOREVER
    return Rules(rules, retry_on, discarded, retry_for)


def _read_retry(retry: Any) -> tuple[tuple[str, Rule], ...]:
    if retry is None or retry is False:
        return ()
    if not isinstance(retry, Mapping):
        return (("", _read_rule(retry)),)
    if not retry:
        raise ValueError(f"retry={{}} has no rule; for example {RETRY_EXAMPLE}")
    return tuple(
        (_class_names("retry", (kind,))[0], _read_rule(rule)) for kind, rule in retry.items()
    )


def _read_rule(rule: Any) -> Rule:
    if isinstance(rule, Backoff):
        return rule
    if isinstance(rule, rq.Retry):
        return Intervals(rule.max, tuple(map(float, rule.intervals)), bool(rule.enqueue_at_front))
    raise TypeError(
        f"retry={rule!r:.80} is not a rule; use backoff(5), an rq.Retry, or a dict with one for each "
        f"exception"
    )


def _class_names(option: str, classes: Any) -> list[str]:
    if isinstance(classes, type):
        classes = (classes,)
    if not isinstance(classes, tuple | list | set | frozenset):
        raise TypeError(f"{option}={classes!r:.80} is not a tuple of exception classes")
    for kind in classes:
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            raise TypeError(
                f"{option}: {kind!r:.80} is not an exception class; give the class itself, for "
                f"example {option}=(TimeoutError,)"
            )
    return [name_of(kind) for kind in classes]


def _check_rules(rules: Rules, options: Mapping[str, Any]) -> None:
    if rules.retry_on is not None and isinstance(options.get("retry"), Mapping):
        raise ValueError(
            "retry_on cannot go together with a retry={…} that has a rule for each exception; leave "
            "retry_on out"
        )
    if rules.retry_on is not None and not rules.rules:
        raise ValueError(f"retry_on says when to retry, but not how often; add {RETRY_EXAMPLE}")
    for _, rule in rules.rules:
        if rule.count is None and rules.retry_for is None:
            raise ValueError(
                "backoff() without a count would retry for ever; use backoff(5), or add "
                "retry_for=timedelta(hours=2)"
            )
        if rule.count is not None and rules.retry_for is not None:
            raise ValueError(
                f"retry_for cannot go together with a number of retries ({rule.count}); leave "
                f"retry_for out, or use backoff() without a count"
            )


def _is_for_rq(options: Mapping[str, Any]) -> bool:
    """Whether RQ's own retries are all that these options ask for."""
    others = (options.get(name) for name in ("retry_on", "discard_on", "retry_for"))
    if any(value is not None for value in others):
        return False
    retry = options.get("retry")
    return retry is None or retry is False or isinstance(retry, rq.Retry)


def describe(options: Mapping[str, Any]) -> str:
    """The number of retries of a function with these options; "" for none."""
    rules = _rules_of(options).rules
    if not rules:
        return ""
    counts = {rule.count for _, rule in rules}
    if len(counts) == 1 and None not in counts:
        return str(counts.pop())
    return "its rules"


def for_rq(retry: Any) -> rq.Retry | None:
    """The option as RQ takes it: its fields tell RQ's tools how many retries are left."""
    if isinstance(retry, Backoff) and retry.count is not None:
        return rq.Retry(max=retry.count)
    if isinstance(retry, rq.Retry):
        return retry
    return None


def fields(call: Call, options: Mapping[str, Any]) -> dict[str, str]:
    """The fields of one job: what its enqueue has set instead of its function's options.

    Raises:
        ValueError: they are too many to be stored.
    """
    given = _given(call.function, options)
    own = getattr(call.function, "__rqjobs__", {})
    if not given or (_is_for_rq(given) and _is_for_rq(own)):
        return {}
    stored = json.dumps(_to_json(given), separators=(",", ":"))
    if len(stored) > RULES_MAX_CHARACTERS:
        raise ValueError(
            f"the retry rules of this call take {len(stored):,} letters, more than "
            f"{RULES_MAX_CHARACTERS:,}; set them in @job of {call.name}"
        )
    return {"rqjobs_retry": stored}


def _to_json(given: Mapping[str, Any]) -> dict[str, Any]:
    rules = _rules_of(given)
    stored: dict[str, Any] = {}
    if "retry" in given:
        stored["retry"] = [[name, asdict(rule)] for name, rule in rules.rules]
    if rules.retry_on is not None:
        stored["retry_on"] = sorted(rules.retry_on)
    if "discard_on" in given:
        stored["discard_on"] = sorted(rules.discard_on)
    if rules.retry_for is not None:
        stored["retry_for"] = rules.retry_for
    return stored


# The rules of a stored job


def rules_of_job(options: Mapping[str, Any], stored: str) -> Rules | None:
    """The rules of a job of a function with these options; None if its retries are RQ's.

    `stored`: the job's `rqjobs_retry`, or "".

    Raises:
        ValueError: `stored` was not written by `fields`.
    """
    if not stored and _is_for_rq(options):
        return None
    if not stored:
        return _rules_of(options)
    given = _parse(stored)
    own = _rules_of(options)
    retry_on = given.get("retry_on", own.retry_on)
    retry_for = given.get("retry_for", own.retry_for)
    rules = given.get("retry", own.rules)
    if "retry" in given:
        if "retry_on" not in given and any(name for name, _ in rules):
            retry_on = None
        if "retry_for" not in given and _has_count(rules):
            retry_for = None
    elif "retry_for" in given and (not rules or _has_count(rules)):
        rules = FOREVER
    return Rules(rules, retry_on, given.get("discard_on", own.discard_on), retry_for)


def _parse(stored: str) -> dict[str, Any]:
    """The options in `rqjobs_retry`, each checked.

    Raises:
        ValueError: they cannot be read.
    """
    try:
        if len(stored) > RULES_MAX_CHARACTERS:
            raise ValueError(f"it has {len(stored):,} letters")
        found = json.loads(stored)
        if not isinstance(found, dict) or found.keys() - OPTIONS:
            raise ValueError("it has other options")
        return {name: _PARSERS[name](value) for name, value in found.items()}
    except Exception as error:  # anything: the field may be damaged or forged
        raise ValueError(f"the job's field rqjobs_retry cannot be read: {error}") from None


def _parse_rules(value: Any) -> tuple[tuple[str, Rule], ...]:
    return tuple((_text(name), _parse_rule(rule)) for name, rule in value)


def _parse_rule(value: Any) -> Rule:
    if "max" in value:
        rule = Intervals(**value)
        _check_count("max", rule.max)
        seconds = tuple(seconds_of("intervals", interval) for interval in rule.intervals)
        return Intervals(rule.max, seconds, bool(rule.at_front))
    given = {field.name: value[field.name] for field in fields_of(Backoff)}
    return backoff(**given)


def _parse_names(value: Any) -> frozenset[str]:
    if not isinstance(value, list):
        raise TypeError("exceptions are a list")
    return frozenset(map(_text, value))


def _parse_retry_for(value: Any) -> float:
    return seconds_of("retry_for", value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("an exception is a text")
    return value


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "retry": _parse_rules,
    "retry_on": _parse_names,
    "discard_on": _parse_names,
    "retry_for": _parse_retry_for,
}
