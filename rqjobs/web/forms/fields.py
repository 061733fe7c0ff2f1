"""The enqueue form: one field for each parameter of a job function, read back into the call's arguments."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta, timezone
from enum import Enum
from typing import Any, Literal
from uuid import uuid4

from rq import Repeat, Retry

from rqjobs import catalog, config, conversion
from rqjobs.conversion import ANYTHING, SCALARS, UNIONS, ConversionError, real, whole

LONG = {
    "text",
    "body",
    "prompt",
    "content",
    "message",
    "description",
    "html",
    "markdown",
}  # names of long texts
UNITS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
YEARS = 10 * 365 * 86400  # seconds; the furthest that a job may be put off
INTERVAL = 30 * 86400  # seconds; the longest between two retries or repeats
EMPTY = inspect.Parameter.empty
STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


@dataclasses.dataclass(frozen=True)
class Kind:
    """How values of one type are typed in: an HTML control, its reader and writer, and what the control accepts."""

    control: str
    read: Callable[[str], Any]
    what: str
    show: Callable[[Any], str] = str
    hint: str = ""
    step: str = ""
    choices: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Field:
    """One parameter as a field. `default` is what the input shows at first; `nullable`: left empty it is None."""

    name: str
    kind: Kind
    type: str
    required: bool
    nullable: bool
    default: str
    help: str
    hint: str

    @property
    def input(self) -> str:
        return f"arg.{self.name}"


def _show_json(value: Any) -> str:
    return json.dumps(conversion.plain(value), ensure_ascii=False)


def _show_loose(value: Any) -> str:
    """What is read back as `value`, where JSON and texts are both taken."""
    if not isinstance(value, str):
        return _show_json(value)
    return value if conversion.read(value, Any, "") == value else _show_json(value)


CONTROLS: dict[
    Any, tuple[str, Callable[[Any], str], str, str]
] = {  # for each scalar: control, writer, hint, step
    bool: ("checkbox", lambda value: "on" if value else "", "", ""),
    int: ("number", str, "", "1"),
    float: ("number", str, "", "any"),
    bytes: ("textarea", bytes.decode, "sent as the UTF-8 bytes of this text", ""),
    datetime: (
        "datetime-local",
        lambda value: value.isoformat(timespec="seconds"),
        "as typed, without a time zone",
        "1",
    ),
    date: ("date", date.isoformat, "", ""),
    timedelta: ("number", lambda value: f"{value.total_seconds():g}", "in seconds", "any"),
}


def _kind(annotation: Any, name: str) -> Kind:
    """How a value for the parameter `name`, annotated so, is typed in."""
    bare = conversion.bare(annotation)
    if typing.get_origin(bare) is Literal:
        values = {str(value): value for value in typing.get_args(bare)}
        return Kind(
            "select",
            values.__getitem__,
            "one of these",
            choices=tuple((key, key) for key in values),
        )
    if inspect.isclass(bare) and issubclass(bare, Enum):
        choices = tuple(
            (key, key if key.lower() == str(member.value).lower() else f"{key} ({member.value})")
            for key, member in bare.__members__.items()
        )
        return Kind(
            "select",
            bare.__members__.__getitem__,
            "one of these",
            lambda member: member.name,
            choices=choices,
        )
    if inspect.isclass(bare) and bare in SCALARS:
        control, show, hint, step = CONTROLS.get(bare, ("text", str, "", ""))
        return Kind(
            control,
            bool if bare is bool else SCALARS[bare].read,
            SCALARS[bare].what,
            show,
            hint,
            step,
        )
    if bare in ANYTHING:
        return LOOSE
    if typing.get_origin(bare) in UNIONS:
        simple = all(
            conversion.bare(one) in (*SCALARS, type(None)) for one in typing.get_args(bare)
        )
        return dataclasses.replace(
            LOOSE,
            control="text" if simple else "textarea",
            read=lambda text: conversion.read(text, bare, name),
        )
    example = json.dumps(conversion.sample(bare), ensure_ascii=False)
    return Kind(
        "textarea",
        lambda text: conversion.convert(conversion.parse(text), bare, name),
        "JSON",
        _show_json,
        f"JSON, for example {example:.300}",
    )


LOOSE = Kind(
    "text",
    lambda text: conversion.read(text, Any, ""),
    "a text",
    _show_loose,
    'read as JSON if it is JSON, else as text: 3 is a number, "3" and abc are texts',
)


def fields(function: Callable[..., Any]) -> list[Field]:
    """The fields for calling `function`, in the order of its parameters."""
    takes, written = conversion.parameters(function), conversion.hints(function)
    _, helps = documentation(function)
    return [
        _field(parameter, takes[name], written.get(name, EMPTY), helps.get(name, ""))
        for name, parameter in inspect.signature(function).parameters.items()
    ]


def _field(parameter: inspect.Parameter, annotation: Any, written: Any, help: str) -> Field:
    bare, stars = conversion.bare(annotation), STARS.get(parameter.kind, "")
    options = typing.get_args(bare) if typing.get_origin(bare) in UNIONS else ()
    nullable = type(None) in options
    if nullable and len(options) == 2:
        annotation = next(option for option in options if option is not type(None))
    kind = _kind(annotation, parameter.name)
    default, hints = parameter.default, [kind.hint]
    shown = ""
    if default is not EMPTY and default is not None:
        try:
            shown = kind.show(default)
            fits = kind.read(shown) == default
        except Exception:  # a default that its own annotation does not fit
            fits = False
        if not fits:
            shown = ""
            hints.append(f"left empty: {default!r:.100}")
    if kind.control == "checkbox" and nullable:
        shown = {True: "yes", False: "no"}.get(default, "")
        kind = Kind(
            "select",
            {"yes": True, "no": False}.__getitem__,
            "yes or no",
            choices=(("yes", "yes"), ("no", "no")),
        )
    elif kind.control == "text" and (parameter.name in LONG or "\n" in shown or len(shown) > 80):
        kind = dataclasses.replace(kind, control="textarea")
    elif kind.control == "datetime-local" and getattr(default, "tzinfo", None):
        kind = dataclasses.replace(
            kind, control="text", hint="ISO 8601, for example 2030-12-31T12:00:00+01:00"
        )
        hints = [kind.hint]
    if nullable:
        hints.append("left empty: None")
    elif shown and kind.control not in ("checkbox", "select"):
        hints.append("left empty: the default")
    required = default is EMPTY and not (nullable or stars or kind.control == "checkbox")
    name = "" if written is EMPTY else conversion.name(written)
    return Field(
        parameter.name,
        kind,
        stars + name,
        required,
        nullable,
        shown,
        help,
        " · ".join(filter(None, hints)),
    )


def documentation(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The first paragraph of the docstring, and what it says of each parameter (`Args:` or `:param x:`)."""
    doc = inspect.getdoc(function) or ""
    first = re.split(
        r"\n\s*\n|^\s*(?::param|Args:|Arguments:|Parameters:)", doc, maxsplit=1, flags=re.M
    )[0]
    found = re.findall(r"^:param (?:[^:\n]* )?\**(\w+):[ ]*(.*(?:\n[ \t]+\S.*)*)", doc, re.M)
    section = re.search(
        r"^(?:Args|Arguments|Parameters):[ ]*\n((?:[ \t]+\S.*\n?|[ \t]*\n)+)", doc, re.M
    )
    if section:
        block = inspect.cleandoc("\n" + section[1])
        found += re.findall(
            r"^([*\w, ]+?)(?: ?\([^)\n]*\))?:[ ]*(.*(?:\n[ \t]+\S.*)*)", block, re.M
        )
    helps = {
        name.strip(" *"): " ".join(text.split())
        for names, text in found
        for name in names.split(",")
    }
    return " ".join(first.split()), helps


def read(
    function: Callable[..., Any],
    form: Mapping[str, str],
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, str]]:
    """The arguments that `form` has for `function`: positional, by keyword, and the errors by name of input."""
    values: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for field in fields(function):
        text = form.get(field.input, "").replace("\r\n", "\n")  # browsers send line ends as CR LF
        text = text if field.kind.read is str else text.strip()
        if field.kind.control == "checkbox":
            values[field.name] = bool(text)
        elif field.nullable and text in ("", "null" if field.kind.what == "JSON" else ""):
            values[field.name] = None
        elif not text and field.required:
            errors[field.input] = f"{field.name} is required"
        elif len(text) > config.current().max_payload_bytes:
            errors[field.input] = (
                f"longer than RQJOBS_MAX_PAYLOAD_BYTES allows ({config.current().max_payload_bytes:,} bytes)"
            )
        elif text:
            try:
                values[field.name] = field.kind.read(text)
            except ConversionError as error:  # which names the part of it
                errors[field.input] = str(error)[:350]
            except (ValueError, KeyError, ArithmeticError) as error:
                why = f": {error}" if field.kind.what == "JSON" else ""
                errors[field.input] = f"{conversion.short(text)} is not {field.kind.what}{why:.200}"
    if errors:
        return (), {}, errors
    signature = inspect.signature(function)
    bound = inspect.BoundArguments(signature, values)
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    if any(
        kind is inspect.Parameter.POSITIONAL_ONLY
        or (kind is inspect.Parameter.VAR_POSITIONAL and values.get(name))
        for name, kind in kinds.items()
    ):
        bound.apply_defaults()  # what comes later can only be passed by position if nothing before is left out
    return bound.args, bound.kwargs, {}


class Reader:
    """Reads the inputs that are not a function's arguments; what is wrong is in `errors`, by name of input."""

    def __init__(self, form: Mapping[str, str]):
        self.form, self.errors = form, dict[str, str]()

    def text(self, name: str) -> str:
        return self.form.get(name, "").strip()

    def number(
        self, name: str, low: float, high: float, unit: str = "", read: Callable[[str], Any] = whole
    ) -> Any:
        """The number in an input; None if that is empty or wrong."""
        text = self.text(name)
        try:
            value = read(text) if text else None
        except ValueError:
            value = high + 1
        if value is not None and not low <= value <= high:
            self.errors[name] = (
                f"Give a {'whole ' if read is whole else ''}number from {low:,} to {high:,}{unit}."
            )
            return None
        return value

    def duration(self, name: str, unit_name: str) -> timedelta | None:
        """So many of a unit; None if that is empty or wrong."""
        unit = self.form.get(unit_name, "seconds")
        number = self.number(
            name, 0, YEARS // UNITS.get(unit, 1), f" {unit}" if unit in UNITS else "", real
        )
        return None if number is None else timedelta(seconds=number * UNITS.get(unit, 1))

    def moment(self, name: str, offset_name: str) -> datetime | None:
        """A date and time, in the zone of the browser if it said its offset, else in ours; None if that is wrong."""
        offset = self.number(offset_name, -14 * 60, 14 * 60)
        try:
            moment = conversion.moment(self.text(name))
            if moment.tzinfo is None:
                zone = None if offset is None else timezone(timedelta(minutes=offset))
                moment = moment.replace(tzinfo=zone) if zone else moment.astimezone()
            return moment
        except (ValueError, OverflowError):
            self.errors[name] = "Give a date and a time, such as 2030-12-31T12:00."
            return None

    def due(self) -> timedelta | datetime | None:
        """When something is to be done, as the inputs `when`, `delay`, `unit` and `at` say; None: now, or wrong."""
        when = self.form.get("when", "now")
        if when == "in":
            delay = self.duration("delay", "unit")
            if delay is None:
                self.errors.setdefault("delay", "Say in how long.")
            return delay
        if when == "at":
            due = self.moment("at", "offset")
            ahead = (due - datetime.now(timezone.utc)).total_seconds() if due else 0
            if not -60 <= ahead <= YEARS:
                self.errors["at"] = (
                    "That is past." if ahead < 0 else "That is more than 10 years away."
                )
            return due
        if when != "now":
            self.errors["when"] = "Now, in, or at?"
        return None

    def queue(self) -> str:
        if self.form.get("queue") not in queue_choices():
            self.errors["queue"] = "There is no such queue here."
        return self.form.get("queue", "")


def read_options(form: Mapping[str, str]) -> tuple[dict[str, Any], datetime | None, dict[str, str]]:
    """The options of the enqueue, when the job is due (None: now), and the errors by name of input."""
    reader = Reader(form)
    number = reader.number
    options: dict[str, Any] = {}
    retries = number("retries", 0, 100)
    if retries is not None:  # 0 turns off what the function has of its own
        options["retry"] = retries > 0 and Retry(
            retries, number("retry_interval", 0, INTERVAL, " seconds") or 0
        )
    repeats = number("repeats", 0, 10_000)
    if repeats is not None:
        options["repeat"] = repeats > 0 and Repeat(
            repeats, number("repeat_interval", 0, INTERVAL, " seconds") or 0
        )
    due = reader.due()
    if isinstance(due, timedelta):
        due = datetime.now(timezone.utc) + due
    reader.queue()
    job_id = form.get("job_id", "")
    options["job_id"] = job_id if re.fullmatch(r"[0-9a-f-]{36}", job_id) else str(uuid4())
    return options, due, reader.errors


def shown(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, str] | None:
    """The inputs that `read` makes these arguments of, to fill in the form; None if no inputs do."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        form = {
            field.input: _shown(field, bound.arguments[field.name]) for field in fields(function)
        }
        args, kwargs, errors = read(function, form)
        again = inspect.signature(function).bind(*args, **kwargs)
        again.apply_defaults()
        same = all(
            again.arguments[name] == value and type(again.arguments[name]) is type(value)
            for name, value in bound.arguments.items()
        )
    except (
        Exception
    ):  # a value of a type that its field does not expect; a Decimal("sNaN") refuses to be compared
        return None
    return form if same and not errors else None


def _shown(field: Field, value: Any) -> str:
    if value is None or (not value and field.type.startswith("*")):
        return ""
    if field.kind.choices:
        return next(key for key, _ in field.kind.choices if field.kind.read(key) == value)
    return field.kind.show(value)


def queue_choices() -> list[str]:
    """The queues that a job may go to: the configured ones, and those that functions name for themselves."""
    named = {str(catalog.options(known).get("queue") or "") for _, known in catalog.current()} - {
        ""
    }
    return [*config.current().queues, *sorted(named - set(config.current().queues))]
