"""The body of an enqueue: its schema, and its options as `Queue.create_job` takes them.

It has everything that JSON can say of the options of `rqjobs.enqueue`, under the same names. The
exceptions: `retries` and `repeats` with their intervals stand for RQ's `Retry` and `Repeat`, and
`allow_failure` for that of RQ's `Dependency`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from types import ModuleType
from typing import Any

from rq import Callback, Repeat, Retry
from rq.job import Dependency
from rq.webhook import Webhook

from rqjobs import catalog, conversion
from rqjobs.job_fields import DESCRIPTION_MAX_CHARACTERS
from rqjobs.policies import limits, retries, unique
from rqjobs.policies.exceptions import MAX_SECONDS
from rqjobs.policies.retries import backoff
from rqjobs.queues import QUEUE_NAME_PATTERN
from rqjobs.web.api.job_values import JOB_ID
from rqjobs.web.api.operations import schema
from rqjobs.web.api.schemas import Errors, Schema
from rqjobs.web.forms.options import (
    MAX_DELAY_SECONDS,
    MAX_INTERVAL_SECONDS,
    MAX_REPEATS,
    MAX_RETRIES,
)

PARENTS_MAX_JOBS = 1000  # that one call depends on
MAX_LIST_ENTRIES = 100
MAX_WEBHOOKS = 20
FUNCTION_MAX_CHARACTERS = 300
QUEUE_NAME = {"type": "string", "pattern": f"^{QUEUE_NAME_PATTERN.pattern}$"}
FUNCTION_NAME = {"type": "string", "minLength": 1, "maxLength": FUNCTION_MAX_CHARACTERS}
EXCEPTION_NAME = FUNCTION_NAME
SECONDS_SCHEMA = {"type": "number", "minimum": 0, "maximum": MAX_SECONDS}
SECONDS_OR_FOREVER = {"type": "integer", "minimum": -1, "maximum": MAX_SECONDS}
INTERVAL = {"type": "integer", "minimum": 0, "maximum": MAX_INTERVAL_SECONDS}
JOB_NUMBER = {"type": "integer", "minimum": 1, "maximum": limits.MAX_LIMIT}
TEMPLATE = {"type": "string", "minLength": 1, "maxLength": 1000}
EXCEPTIONS = {
    "type": "array",
    "items": EXCEPTION_NAME,
    "maxItems": MAX_LIST_ENTRIES,
    "description": "names of exceptions, such as TimeoutError or shop.CardRefused",
}


def _interval(kind: str) -> Schema:
    return {
        "anyOf": [
            INTERVAL,
            {"type": "array", "items": INTERVAL, "minItems": 1, "maxItems": MAX_LIST_ENTRIES},
        ],
        "description": f"the seconds before each {kind}",
    }


GROWING_DELAYS: dict[str, Schema] = {
    "base": {"type": "number", "minimum": 1, "maximum": MAX_SECONDS},
    "cap": SECONDS_SCHEMA,
    "jitter": {"type": "boolean"},
}
RETRY_RULE_PROPERTIES: dict[str, Schema] = {
    "count": {"type": "integer", "minimum": 1, "maximum": 10**9 - 1},
    **GROWING_DELAYS,
    "interval": _interval("retry"),
    "at_front": {"type": "boolean"},
}
RETRY_RULE = schema(
    "RetryRule",
    {
        "type": "object",
        "properties": RETRY_RULE_PROPERTIES,
        "additionalProperties": False,
        "description": (
            "interval gives fixed delays; else the n-th delay is base to the power of n, at most cap, "
            "in seconds"
        ),
    },
)
EXCEPTION_RULE = schema(
    "ExceptionRule",
    {
        "type": "object",
        "properties": {"exception": EXCEPTION_NAME, **RETRY_RULE_PROPERTIES},
        "required": ["exception"],
        "additionalProperties": False,
    },
)
CALLBACK = schema(
    "Callback",
    {
        "anyOf": [
            FUNCTION_NAME,
            {
                "type": "object",
                "properties": {
                    "function": FUNCTION_NAME,
                    "timeout": {"type": "integer", "minimum": 1, "maximum": MAX_SECONDS},
                },
                "required": ["function"],
                "additionalProperties": False,
            },
        ],
        "description": "a job function, which gets the job, a connection, and more as in RQ",
    },
)
WEBHOOK = schema(
    "Webhook",
    {
        "type": "object",
        "properties": {
            "url": {"type": "string", "format": "uri", "maxLength": 2000},
            "job_status": {"type": "string", "enum": ["finished", "failed"]},
            "method": {"type": "string", "enum": ["GET", "POST"]},
            "headers": {
                "type": "object",
                "additionalProperties": {"type": "string"},
                "maxProperties": MAX_LIST_ENTRIES,
            },
            "timeout": {"type": "integer", "minimum": 1, "maximum": MAX_SECONDS},
        },
        "required": ["url", "job_status"],
        "additionalProperties": False,
    },
)
# Options that are passed on as they are.
PLAIN_OPTIONS: dict[str, Schema] = {
    "timeout": {**SECONDS_OR_FOREVER, "description": "seconds; -1 for none"},
    "result_ttl": SECONDS_OR_FOREVER,
    "failure_ttl": SECONDS_OR_FOREVER,
    "ttl": {"type": "integer", "minimum": 1, "maximum": MAX_SECONDS},
    "description": {"type": "string", "maxLength": DESCRIPTION_MAX_CHARACTERS},
    "meta": {"type": "object"},
    "limit": JOB_NUMBER,
    "limit_by": {**TEMPLATE, "description": "such as user:{user_id}"},
    "rate": {"type": "string", "maxLength": 30, "description": "such as 30/m"},
    "burst": JOB_NUMBER,
    "unique": {**TEMPLATE, "description": '"args", or a text such as charge:{invoice_id}'},
    **{name: {"type": "string", "enum": list(choices)} for name, choices in unique.CHOICES.items()},
    **{name: {**SECONDS_SCHEMA, "maximum": unique.UNIQUE_MAX_SECONDS} for name in unique.SECONDS},
    "retry_for": {**SECONDS_SCHEMA, "description": "the seconds after the first failure"},
    "kill_after": SECONDS_SCHEMA,
    "on_failed": {
        "type": "string",
        "maxLength": FUNCTION_MAX_CHARACTERS,
        "description": "module:function; nothing for none",
    },
}
CALLBACKS = ("on_success", "on_failure", "on_stopped")
EXCEPTION_OPTIONS = ("retry_on", "discard_on")
CALL: dict[str, Schema] = {  # of a job or of a schedule
    "function": FUNCTION_NAME,
    "args": {"type": "array"},
    "kwargs": {"type": "object"},
    "queue": QUEUE_NAME,
}
JOB_CALL = schema(
    "JobCall",
    {
        "type": "object",
        "properties": {
            **CALL,
            "in": {
                "type": "number",
                "minimum": 0,
                "maximum": MAX_DELAY_SECONDS,
                "description": "run the job after this many seconds",
            },
            "at": {"type": "string", "format": "date-time", "description": "run the job then"},
            "at_front": {"type": "boolean"},
            "job_id": JOB_ID,
            "depends_on": {
                "type": "array",
                "items": JOB_ID,
                "minItems": 1,
                "maxItems": PARENTS_MAX_JOBS,
                "description": (
                    "run the job when these have finished; they exist, or are before it in this "
                    "request"
                ),
            },
            "allow_failure": {
                "type": "boolean",
                "description": "run it also when one of these jobs has failed",
            },
            "retries": {"type": "integer", "minimum": 0, "maximum": MAX_RETRIES},
            "retry_interval": _interval("retry"),
            "retry": {
                "anyOf": [
                    RETRY_RULE,
                    {
                        "type": "array",
                        "items": EXCEPTION_RULE,
                        "minItems": 1,
                        "maxItems": MAX_LIST_ENTRIES,
                    },
                ],
                "description": "one rule, or one for each exception",
            },
            **dict.fromkeys(EXCEPTION_OPTIONS, EXCEPTIONS),
            "repeats": {"type": "integer", "minimum": 0, "maximum": MAX_REPEATS},
            "repeat_interval": _interval("repeat"),
            "expires": {
                "anyOf": [SECONDS_SCHEMA, {"type": "string", "format": "date-time"}],
                "description": "the job must begin within these seconds, or before this time",
            },
            **dict.fromkeys(CALLBACKS, CALLBACK),
            "webhooks": {"type": "array", "items": WEBHOOK, "maxItems": MAX_WEBHOOKS},
            **PLAIN_OPTIONS,
        },
        "required": ["function"],
        "additionalProperties": False,
        "dependentRequired": {
            "allow_failure": ["depends_on"],
            "retry_interval": ["retries"],
            "repeat_interval": ["repeats"],
        },
        "allOf": [
            {"not": {"required": ["in", "at"]}},
            {"not": {"required": ["retries", "retry"]}},
        ],
    },
)


class WrongCall(Exception):
    """A call has wrong values; `errors` has a message for each place."""

    def __init__(self, errors: Errors):
        super().__init__(errors)
        self.errors = errors


def read_options(call: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a call that fits its schema, for `Queue.create_job`.

    Raises:
        WrongCall: one of them is wrong. Further ones are found by `create_job`.
    """
    options = {name: _plain(call[name], one) for name, one in PLAIN_OPTIONS.items() if name in call}
    if options.get("timeout") == 0:
        raise WrongCall({"timeout": "0 lets the job no time; give the seconds, or -1 for no limit"})
    options |= _read_retry(call)
    if "repeats" in call:  # False turns off the repeats that the function's `@job` asks for
        times = int(call["repeats"])
        options["repeat"] = (
            Repeat(times, _read_interval(call, "repeat_interval")) if times else False
        )
    if "expires" in call:
        options["expires"] = _read_expiry(call["expires"])
    for name in CALLBACKS:
        if name in call:
            options[name] = _read_callback(name, call[name])
    if "webhooks" in call:
        options["webhooks"] = [
            _read_webhook(number, one) for number, one in enumerate(call["webhooks"])
        ]
    if "depends_on" in call:
        options["depends_on"] = Dependency(
            list(dict.fromkeys(call["depends_on"])),
            allow_failure=bool(call.get("allow_failure")),
            enqueue_at_front=bool(call.get("at_front")),
        )
    return options


def _plain(value: Any, wanted: Schema) -> Any:
    if wanted["type"] == "integer":  # also 60.0
        return int(value)
    return plain_json(value)


def plain_json(value: Any) -> Any:
    """A value of the body with floats in the place of decimal numbers."""
    return conversion.convert(value, Any, "")


def _read_interval(call: Mapping[str, Any], name: str) -> int | list[int]:
    value = call.get(name, 0)
    if isinstance(value, list):
        return [int(one) for one in value]
    return int(value)


def _read_retry(call: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "retries" in call:  # False turns off the retries that the function's `@job` asks for
        count = int(call["retries"])
        found["retry"] = Retry(count, _read_interval(call, "retry_interval")) if count else False
    elif isinstance(call.get("retry"), list):
        found["retry"] = _read_rules(call["retry"])
    elif "retry" in call:
        found["retry"] = _read_rule("retry", call["retry"])
    for name in EXCEPTION_OPTIONS:
        if name in call:
            found[name] = tuple(
                _read_exception(f"{name}[{number}]", one) for number, one in enumerate(call[name])
            )
    return found


def _read_rules(rules: list[Mapping[str, Any]]) -> dict[type[BaseException], Any]:
    found: dict[type[BaseException], Any] = {}
    for number, rule in enumerate(rules):
        kind = _read_exception(f"retry[{number}].exception", rule["exception"])
        if kind in found:
            raise WrongCall({f"retry[{number}].exception": "has a rule before"})
        found[kind] = _read_rule(f"retry[{number}]", rule)
    return found


def _read_rule(place: str, rule: Mapping[str, Any]) -> retries.Backoff | Retry:
    if "interval" not in rule and "at_front" not in rule:
        names = [name for name in ("count", *GROWING_DELAYS) if name in rule]
        return backoff(**{name: _plain(rule[name], RETRY_RULE_PROPERTIES[name]) for name in names})
    for name in GROWING_DELAYS:
        if name in rule:
            raise WrongCall({f"{place}.{name}": "cannot go together with interval and at_front"})
    if "count" not in rule:
        raise WrongCall({f"{place}.count": "is required with interval and at_front"})
    interval = _read_interval(rule, "interval")
    return Retry(int(rule["count"]), interval, bool(rule.get("at_front")))


def _read_exception(place: str, name: str) -> type[BaseException]:
    """The exception class of this name, of Python or of a module that is loaded: none is imported.

    Raises:
        WrongCall: there is none.
    """
    parts = name.split(".")
    if len(parts) == 1:
        parts = ["builtins", *parts]
    for length in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:length]))
        for part in parts[length:]:
            found = vars(found).get(part) if isinstance(found, ModuleType | type) else None
        if isinstance(found, type) and issubclass(found, BaseException):
            return found
    text = (
        f"{conversion.quote(name)} is not an exception of Python or of a module that is loaded here"
    )
    raise WrongCall({place: f"{text}; write module.Class, and let a jobs module import the module"})


def _read_expiry(value: Any) -> Any:
    if isinstance(value, str):
        return read_moment("expires", value)
    return plain_json(value)


def read_moment(name: str, text: str) -> datetime:
    """A date and time with its offset from UTC.

    Raises:
        WrongCall: it is not such a date.
    """
    try:
        moment = conversion.parse_datetime(text)
        if moment.tzinfo is not None:
            return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        pass
    raise WrongCall({name: "Give a time with its offset, such as 2030-12-31T12:00:00Z."})


def _read_callback(place: str, value: Any) -> Callback:
    given = value if isinstance(value, Mapping) else {"function": value}
    if given["function"] not in catalog.current().functions:
        raise WrongCall({place: "is not a job function; GET /api/functions lists them"})
    timeout = int(given["timeout"]) if "timeout" in given else None
    return Callback(given["function"], timeout)


def _read_webhook(number: int, given: Mapping[str, Any]) -> Webhook:
    options = {name: given[name] for name in ("method", "headers") if name in given}
    if "timeout" in given:
        options["timeout"] = int(given["timeout"])
    try:
        return Webhook(given["url"], given["job_status"], **options)
    except ValueError as error:
        raise WrongCall({f"webhooks[{number}].url": str(error)}) from None
