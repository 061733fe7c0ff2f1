"""A check of JSON values against the part of JSON Schema 2020-12 that the API's schemas use."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from rqjobs import conversion

Schema = Mapping[str, Any]
Errors = dict[str, str]  # place -> what is wrong there
MAX_ERRORS = 20
REFERENCE = "#/components/schemas/"
TYPE_NAMES = {
    "object": "an object",
    "array": "a list",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}
MAX_EXPONENT = 20  # of a whole number that is written as a fraction, such as 1e3


def check(value: Any, schema: Schema, components: Mapping[str, Schema], place: str = "") -> Errors:
    """The errors of `value`, by place; none if it fits.

    Fractions may be `Decimal`. `components`: the schemas to which references lead.
    """
    errors: Errors = {}
    _check(value, schema, components, place, errors)
    return errors


def _check(
    value: Any, schema: Schema, components: Mapping[str, Schema], place: str, errors: Errors
) -> None:
    if len(errors) >= MAX_ERRORS:
        return
    schema = _resolve(schema, components)
    message = _type_error(value, schema) or _value_error(value, schema)
    if message:
        errors[place] = message
        return
    if isinstance(value, dict):
        _check_object(value, schema, components, place, errors)
    elif isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            _check(item, schema["items"], components, f"{place}[{index}]", errors)
    for option in schema.get("allOf", ()):
        _check(value, option, components, place, errors)
    if "anyOf" in schema:
        errors.update(_check_any(value, schema["anyOf"], components, place))


def _resolve(schema: Schema, components: Mapping[str, Schema]) -> Schema:
    while "$ref" in schema:
        schema = components[schema["$ref"].removeprefix(REFERENCE)]
    return schema


def _check_any(
    value: Any, options: Sequence[Schema], components: Mapping[str, Schema], place: str
) -> Errors:
    """The errors of a value that fits no option: by the one option for its type, if there is one."""
    found = [check(value, one, components, place) for one in options]
    if not all(found):
        return {}
    of_type = [
        errors
        for errors, one in zip(found, options, strict=True)
        if not _type_error(value, _resolve(one, components))
    ]
    if len(of_type) == 1:
        return of_type[0]
    return {place: "fits none of the forms that are possible here"}


def _check_object(
    value: dict[str, Any],
    schema: Schema,
    components: Mapping[str, Schema],
    place: str,
    errors: Errors,
) -> None:
    properties = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            errors[_inside(place, name)] = "is required"
    for name, item in value.items():
        if name in properties:
            _check(item, properties[name], components, _inside(place, name), errors)
        elif others is False:
            errors[_inside(place, name)] = f"is not known; known are {_listed(properties)}"
        elif isinstance(others, Mapping):
            _check(item, others, components, _inside(place, name), errors)
    for name, needed in schema.get("dependentRequired", {}).items():
        for other in needed:
            if name in value and other not in value:
                errors[_inside(place, name)] = f"goes with {other}, which is missing"
    exclusive = schema.get("not", {}).get("required", ())
    if exclusive and all(name in value for name in exclusive):
        errors[_inside(place, exclusive[-1])] = f"cannot go together with {exclusive[0]}"


def _inside(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names)


def _type_error(value: Any, schema: Schema) -> str:
    kinds = schema.get("type", ())
    if isinstance(kinds, str):
        kinds = (kinds,)
    if not kinds or any(_is_of_type(value, kind) for kind in kinds):
        return ""
    return f"{conversion.quote(value)} is not {' or '.join(TYPE_NAMES[kind] for kind in kinds)}"


def _is_of_type(value: Any, kind: str) -> bool:
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "null":
        return value is None
    if isinstance(value, bool):
        return False
    if kind == "integer":
        return isinstance(value, int) or _is_whole(value)
    if kind == "number":
        return isinstance(value, int | float | Decimal)
    return isinstance(value, {"object": dict, "array": list, "string": str}[kind])


def _is_whole(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer()
    if not isinstance(value, Decimal) or not -MAX_EXPONENT < value.adjusted() < MAX_EXPONENT:
        return False
    return value == value.to_integral_value()


def _value_error(value: Any, schema: Schema) -> str:
    if "enum" in schema and value not in schema["enum"]:
        choices = ", ".join(str(choice) for choice in schema["enum"])
        return f"{conversion.quote(value)} is not one of {choices:.300}"
    for kinds, find in KEYWORD_CHECKS:
        if isinstance(value, kinds) and not isinstance(value, bool):
            message = find(value, schema)
            if message:
                return message
    return ""


def _number_error(value: Any, schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    is_low = low is not None and value < low
    is_high = high is not None and value > high
    if not is_low and not is_high:
        return ""
    if low is not None and high is not None:
        return f"must be from {low:,} to {high:,}"
    return f"must be at least {low:,}" if is_low else f"must be at most {high:,}"


def _text_error(value: str, schema: Schema) -> str:
    message = _length_error(len(value), "characters", schema, "minLength", "maxLength")
    if not message and "pattern" in schema and not _matches(schema["pattern"], value):
        message = f"{conversion.quote(value)} has another form than {schema['pattern']}"
    return message


def _matches(pattern: str, value: str) -> bool:
    """Whether a text has a form. `$` is its end, and not before a line break there as in Python."""
    if pattern.endswith("$"):
        pattern = rf"{pattern[:-1]}\Z"
    return re.search(pattern, value) is not None


def _list_error(value: list[Any], schema: Schema) -> str:
    return _length_error(len(value), "entries", schema, "minItems", "maxItems")


def _object_error(value: dict[str, Any], schema: Schema) -> str:
    return _length_error(len(value), "entries", schema, "minProperties", "maxProperties")


def _length_error(number: int, what: str, schema: Schema, low_name: str, high_name: str) -> str:
    low, high = schema.get(low_name, 0), schema.get(high_name)
    if number < low:
        return f"must have at least {low:,} {what}"
    if high is not None and number > high:
        return f"must have at most {high:,} {what}"
    return ""


KEYWORD_CHECKS: tuple[tuple[Any, Callable[[Any, Schema], str]], ...] = (
    ((int, float, Decimal), _number_error),
    (str, _text_error),
    (list, _list_error),
    (dict, _object_error),
)
