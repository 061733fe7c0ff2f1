"""The arguments of a call: read from a form, and filled in to be edited."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rqjobs import config, conversion
from rqjobs.conversion import ConversionError
from rqjobs.web.forms.fields import FormField, form_fields

MAX_ERROR_CHARACTERS = 350


class InputError(ValueError):
    """The text of an input is not a right value. The message is for the form."""


def read_arguments(
    function: Callable[..., Any], form: Mapping[str, str]
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, str]]:
    """The arguments for `function` in `form`: positional, by keyword, and the errors by input."""
    values: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for field in form_fields(function):
        try:
            if _is_filled_in(field, form):
                values[field.name] = _read(field, form)
        except InputError as error:
            errors[field.input] = str(error)
            if field.is_hidden and _text(field, form):
                errors[field.input] = f"The value is not {field.widget.what}."
    if errors:
        return (), {}, errors
    bound = inspect.BoundArguments(inspect.signature(function), values)
    if _has_positional_only(bound):
        # An argument can be passed by position only if all before it are passed too.
        bound.apply_defaults()
    return bound.args, bound.kwargs, {}


def _text(field: FormField, form: Mapping[str, str]) -> str:
    text = form.get(field.input, "").replace("\r\n", "\n")  # browsers send line ends as CR LF
    if field.widget.read is str:
        return text
    return text.strip()


def _is_filled_in(field: FormField, form: Mapping[str, str]) -> bool:
    """Whether the field gives a value. An empty field that may be empty leaves the default.

    Raises:
        InputError: a required field is empty.
    """
    if field.widget.control == "checkbox" or field.nullable or _text(field, form):
        return True
    if field.required:
        raise InputError(f"{field.name} is required")
    return False


def _read(field: FormField, form: Mapping[str, str]) -> Any:
    text = _text(field, form)
    widget = field.widget
    if widget.control == "checkbox":
        return bool(text)
    if field.nullable and (not text or (widget.what == "JSON" and text == "null")):
        return None
    limit = config.current().max_payload_bytes
    if len(text) > limit:
        raise InputError(f"longer than RQJOBS_MAX_PAYLOAD_BYTES allows ({limit:,} bytes)")
    try:
        return widget.read(text)
    except ConversionError as error:  # it names the place inside the value
        raise InputError(str(error)[:MAX_ERROR_CHARACTERS]) from None
    except (ValueError, KeyError, ArithmeticError) as error:
        reason = ""
        if widget.what == "JSON":
            reason = f": {error}"
        raise InputError(f"{conversion.quote(text)} is not {widget.what}{reason:.200}") from None


def _has_positional_only(bound: inspect.BoundArguments) -> bool:
    """Whether the call has arguments that can only be passed by position."""
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            return True
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL and bound.arguments.get(name):
            return True
    return False


def default_inputs(function: Callable[..., Any] | None) -> dict[str, str]:
    """The inputs of the function's defaults; none without a function."""
    if function is None:
        return {}
    return {field.input: field.default for field in form_fields(function)}


def fill_in(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, str] | None:
    """The inputs that `read_arguments` reads as these arguments, or None if no inputs do."""
    try:
        bound = bind(function, args, kwargs)
        form = {
            field.input: _input_text(field, bound[field.name]) for field in form_fields(function)
        }
        read_args, read_kwargs, errors = read_arguments(function, form)
        again = bind(function, read_args, read_kwargs)
        is_same = all(
            again[name] == value and type(again[name]) is type(value)
            for name, value in bound.items()
        )
    except Exception:  # a value of another type than its annotation may raise anything
        return None
    if errors or not is_same:
        return None
    return form


def bind(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The value of each parameter, defaults included. Raises TypeError if they do not fit."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _input_text(field: FormField, value: Any) -> str:
    if value is None or (not value and field.type.startswith("*")):
        return ""
    if field.widget.choices:
        choices = [key for key, _ in field.widget.choices]
        return next(key for key in choices if field.widget.read(key) == value)
    return field.widget.show(value)
