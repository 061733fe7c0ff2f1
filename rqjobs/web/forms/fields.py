"""The inputs of a call: one field for each parameter of a job function."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Callable
from datetime import date, datetime, timedelta
from enum import Enum
from typing import Any, Literal

from rqjobs import catalog, config, conversion, hiding
from rqjobs.conversion import ANY_JSON, SCALARS, UNIONS, NoneType, parse_json, read_text
from rqjobs.web.forms.options import queue_choices, time_inputs

LONG_TEXT_CHARACTERS = 80
LONG_TEXT_NAMES = {  # parameters with these names get a large input
    "text",
    "body",
    "prompt",
    "content",
    "message",
    "description",
    "html",
    "markdown",
}
MISSING = inspect.Parameter.empty
STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
NO_SUCH_FUNCTION = "There is no such job function; choose one."


@dataclasses.dataclass(frozen=True)
class Widget:
    """How values of one type are entered: an HTML control, its reader and its writer.

    `what`: how error messages describe a valid value.
    """

    control: str
    read: Callable[[str], Any]
    what: str
    show: Callable[[Any], str] = str
    hint: str = ""
    step: str = ""
    choices: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class FormField:
    """The field of one parameter.

    `default` is the text it shows at first. A `nullable` field may be empty. A field `is_hidden` by
    RQJOBS_HIDE never shows a value.
    """

    name: str
    widget: Widget
    type: str
    required: bool
    nullable: bool
    default: str
    help: str
    hint: str
    is_hidden: bool = False

    @property
    def input(self) -> str:
        """The name of the HTML input."""
        return f"arg.{self.name}"


def _to_json_text(value: Any) -> str:
    return json.dumps(conversion.to_json(value), ensure_ascii=False)


def _to_json_or_text(value: Any) -> str:
    """The text that `JSON_OR_TEXT` reads as `value`."""
    if isinstance(value, str) and read_text(value, Any, "") == value:
        return value
    return _to_json_text(value)


def _show_checkbox(value: Any) -> str:
    if value:
        return "on"
    return ""


def _show_datetime(value: datetime) -> str:
    return value.isoformat(timespec="seconds")


def _show_seconds(value: timedelta) -> str:
    return f"{value.total_seconds():g}"


JSON_OR_TEXT = Widget(
    "text",
    lambda text: read_text(text, Any, ""),
    "a text",
    _to_json_or_text,
    'read as JSON if it is JSON, else as text: 3 is a number, "3" and abc are texts',
)
YES_OR_NO = Widget(
    "select",
    {"yes": True, "no": False}.__getitem__,
    "yes or no",
    choices=(("yes", "yes"), ("no", "no")),
)


def _scalar_widget(
    annotation: Any,
    control: str = "text",
    show: Callable[[Any], str] = str,
    hint: str = "",
    step: str = "",
) -> Widget:
    scalar = SCALARS[annotation]
    return Widget(control, scalar.read, scalar.what, show, hint, step)


SCALAR_WIDGETS: dict[Any, Widget] = {
    **{scalar: _scalar_widget(scalar) for scalar in SCALARS},
    bool: Widget("checkbox", bool, SCALARS[bool].what, _show_checkbox),
    int: _scalar_widget(int, "number", step="1"),
    float: _scalar_widget(float, "number", step="any"),
    bytes: _scalar_widget(bytes, "textarea", bytes.decode, "sent as the UTF-8 bytes of this text"),
    datetime: _scalar_widget(
        datetime, "datetime-local", _show_datetime, "as typed, without a time zone", "1"
    ),
    date: _scalar_widget(date, "date", date.isoformat),
    timedelta: _scalar_widget(timedelta, "number", _show_seconds, "in seconds", "any"),
}


def form_fields(function: Callable[..., Any]) -> list[FormField]:
    """The fields for a call of `function`, in the order of its parameters."""
    types = conversion.parameter_types(function)
    annotations = conversion.annotations_of(function)
    _, helps = documentation(function)
    return [
        _form_field(parameter, types[name], annotations.get(name, MISSING), helps.get(name, ""))
        for name, parameter in inspect.signature(function).parameters.items()
    ]


def _form_field(
    parameter: inspect.Parameter, value_type: Any, annotation: Any, help: str
) -> FormField:
    """The field of a parameter that takes `value_type`; the author wrote `annotation`."""
    nullable, value_type = _without_none(value_type)
    widget, hints = _fit_to_default(_widget(value_type, parameter.name), parameter)
    default, is_default_shown = _default_text(widget, parameter.default)
    is_hidden = hiding.is_hidden(config.current().hide, parameter.name)
    if is_hidden:
        default = ""
        hints.append("its value is not shown (RQJOBS_HIDE)")
    elif not is_default_shown:
        hints.append(f"left empty: {parameter.default!r:.100}")
    if widget.control == "checkbox" and nullable:
        widget = YES_OR_NO
        default = {True: "yes", False: "no"}.get(parameter.default, "")
    elif widget.control == "text" and _is_long(parameter.name, default):
        widget = dataclasses.replace(widget, control="textarea")
    if nullable:
        hints.append("left empty: None")
    elif default and widget.control not in ("checkbox", "select"):
        hints.append("left empty: the default")
    stars = STARS.get(parameter.kind, "")
    may_be_empty = nullable or stars or widget.control == "checkbox"
    type_name = ""
    if annotation is not MISSING:
        type_name = conversion.annotation_name(annotation)
    return FormField(
        parameter.name,
        widget,
        stars + type_name,
        parameter.default is MISSING and not may_be_empty,
        nullable,
        default,
        help,
        " · ".join(filter(None, hints)),
        is_hidden,
    )


def _without_none(value_type: Any) -> tuple[bool, Any]:
    """Whether the type includes None; and the type, which for `X | None` is X."""
    bare = conversion.unwrap(value_type)
    options: tuple[Any, ...] = ()
    if typing.get_origin(bare) in UNIONS:
        options = typing.get_args(bare)
    if NoneType in options and len(options) == 2:
        return True, next(option for option in options if option is not NoneType)
    return NoneType in options, value_type


def _fit_to_default(widget: Widget, parameter: inspect.Parameter) -> tuple[Widget, list[str]]:
    """The widget and its hints. A date with a time zone is entered as text, with its offset."""
    has_zone = getattr(parameter.default, "tzinfo", None) is not None
    if widget.control == "datetime-local" and has_zone:
        hint = "ISO 8601, for example 2030-12-31T12:00:00+01:00"
        widget = dataclasses.replace(widget, control="text", hint=hint)
    return widget, [widget.hint]


def _default_text(widget: Widget, default: Any) -> tuple[str, bool]:
    """The text that the widget reads as the default, or ""; and whether it shows the default."""
    if default is MISSING or default is None:
        return "", True
    try:
        text = widget.show(default)
        if widget.read(text) == default:
            return text, True
    except Exception:  # the default does not fit its own annotation
        pass
    return "", False


def _is_long(name: str, text: str) -> bool:
    return name in LONG_TEXT_NAMES or "\n" in text or len(text) > LONG_TEXT_CHARACTERS


def _widget(value_type: Any, name: str) -> Widget:
    """The widget for values of a type. `name` is the parameter, for errors."""
    bare = conversion.unwrap(value_type)
    if typing.get_origin(bare) is Literal:
        return _literal_widget(typing.get_args(bare))
    if inspect.isclass(bare) and issubclass(bare, Enum):
        return _enum_widget(bare)
    if inspect.isclass(bare) and bare in SCALARS:
        return SCALAR_WIDGETS[bare]
    if bare in ANY_JSON:
        return JSON_OR_TEXT
    if typing.get_origin(bare) in UNIONS:
        return _union_widget(bare, name)
    example = json.dumps(conversion.example(bare), ensure_ascii=False)
    return Widget(
        "textarea",
        lambda text: conversion.convert(parse_json(text), bare, name),
        "JSON",
        _to_json_text,
        f"JSON, for example {example:.300}",
    )


def _literal_widget(options: tuple[Any, ...]) -> Widget:
    values = {str(option): option for option in options}
    choices = tuple((key, key) for key in values)
    return Widget("select", values.__getitem__, "one of these", choices=choices)


def _enum_widget(cls: type[Enum]) -> Widget:
    choices = tuple((key, _member_label(key, member)) for key, member in cls.__members__.items())
    read = cls.__members__.__getitem__
    return Widget("select", read, "one of these", lambda member: member.name, choices=choices)


def _member_label(name: str, member: Enum) -> str:
    if name.lower() == str(member.value).lower():
        return name
    return f"{name} ({member.value})"


def _union_widget(union: Any, name: str) -> Widget:
    scalars = (*SCALARS, NoneType)
    control = "textarea"
    if all(conversion.unwrap(option) in scalars for option in typing.get_args(union)):
        control = "text"
    return dataclasses.replace(
        JSON_OR_TEXT, control=control, read=lambda text: read_text(text, union, name)
    )


def documentation(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The first paragraph of the docstring, and its text for each parameter.

    Parameters are documented as `Args:` (Google) or `:param name:` (Sphinx).
    """
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


# The form of a call


def function_form(chosen: str) -> dict[str, Any]:
    """The choice of a function, and the fields of its call if it is in the catalog."""
    jobs = catalog.current()
    modules: dict[str, list[str]] = {}
    for name, _ in jobs:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    function = jobs.functions.get(chosen)
    form: dict[str, Any] = {
        "modules": modules,
        "broken": jobs.import_errors,
        "name": chosen,
        "known": function is not None,
        "summary": "",
        "fields": [],
        "queues": queue_choices(),
        **time_inputs(),
    }
    if function:
        form["summary"] = documentation(function)[0]
        form["fields"] = form_fields(function)
    return form
