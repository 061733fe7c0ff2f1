"""The job functions, with a JSON Schema of the arguments of each."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal
from uuid import UUID

from rqjobs import catalog, conversion, queues
from rqjobs.conversion import ANY_JSON, CONTAINERS, MAPPINGS, UNIONS, NoneType
from rqjobs.web.api.job_values import TEXT, an_object
from rqjobs.web.api.operations import PATH_PARAMETERS, Given, operation, schema
from rqjobs.web.api.problems import Problem
from rqjobs.web.forms.fields import documentation

MAX_RECORD_LEVELS = 5  # of records inside one another
SCALAR_SCHEMAS: dict[type, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bytes: {"type": "string", "description": "stands for its UTF-8 bytes"},
    datetime: {"type": "string", "format": "date-time"},
    date: {"type": "string", "format": "date"},
    timedelta: {"type": "number", "description": "seconds"},
    Decimal: {"type": ["string", "number"]},
    UUID: {"type": "string", "format": "uuid"},
    NoneType: {"type": "null"},
}
PARAMETER = schema(
    "FunctionParameter",
    an_object(
        name=TEXT,
        kind={
            "type": "string",
            "enum": ["argument", "positional", "keyword", "*args", "**kwargs"],
        },
        required={"type": "boolean"},
        description=TEXT,
        schema={"type": "object", "description": "a JSON Schema of the value"},
    ),
)
FUNCTION = schema(
    "Function",
    an_object(
        name=TEXT,
        description=TEXT,
        queue=TEXT,
        parameters={"type": "array", "items": PARAMETER},
    ),
)
PARAMETER_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "argument",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
    inspect.Parameter.VAR_POSITIONAL: "*args",
    inspect.Parameter.VAR_KEYWORD: "**kwargs",
}
PATH_PARAMETERS["function"] = {"type": "string", "pattern": r"^[\w.]{1,300}$"}


@operation(
    "GET",
    "/functions",
    tag="functions",
    summary="The job functions",
    answers={200: an_object(functions={"type": "array", "items": FUNCTION})},
)
def list_functions(given: Given) -> dict[str, Any]:
    """Each with its parameters: a JSON Schema for the value of each."""
    return {"functions": [_function(name, one) for name, one in catalog.current()]}


@operation(
    "GET",
    "/functions/{function}",
    tag="functions",
    summary="A job function",
    answers={200: FUNCTION},
)
def get_function(given: Given, function: str) -> dict[str, Any]:
    found = catalog.current().functions.get(function)
    if found is None:
        raise Problem(404, "not-found", "There is no such job function.")
    return _function(function, found)


def _function(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    text, helps = documentation(function)
    types = conversion.parameter_types(function)
    parameters = inspect.signature(function).parameters
    return {
        "name": name,
        "description": text,
        "queue": queues.queue_for(function).name,
        "parameters": [
            _parameter(one, types[one.name], helps.get(one.name, "")) for one in parameters.values()
        ],
    }


def _parameter(one: inspect.Parameter, annotation: Any, text: str) -> dict[str, Any]:
    is_required = one.default is one.empty and one.kind not in conversion.VARIADIC_TYPES
    return {
        "name": one.name,
        "kind": PARAMETER_KINDS[one.kind],
        "required": is_required,
        "description": text,
        "schema": schema_of(annotation),
    }


def schema_of(annotation: Any, level: int = 0) -> dict[str, Any]:
    """A JSON Schema of the values that `conversion.convert` takes for an annotation.

    {} stands for any JSON, also for types that a schema cannot describe.
    """
    annotation = conversion.unwrap(annotation)
    origin = typing.get_origin(annotation) or annotation
    inner = [one for one in typing.get_args(annotation) if one is not ...]
    if origin is Literal:
        return {"enum": [conversion.to_json(one) for one in inner]}
    if origin in UNIONS:
        return {"anyOf": [schema_of(one, level + 1) for one in inner]}
    if annotation is None:
        return {"type": "null"}
    if annotation in ANY_JSON or not inspect.isclass(origin) or level > MAX_RECORD_LEVELS:
        return {}
    if issubclass(origin, Enum):
        return {"enum": list(origin.__members__)}
    record = conversion.record_fields(annotation)
    if record:
        return _schema_of_record(record, level)
    if origin in CONTAINERS:
        return _schema_of_items(origin, annotation, inner, level)
    if issubclass(origin, dict) or origin in MAPPINGS:
        values = schema_of(inner[1], level + 1) if len(inner) == 2 else {}
        return {"type": "object", "additionalProperties": values}
    return SCALAR_SCHEMAS.get(origin, {})


def _schema_of_record(record: conversion.RecordFields, level: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: schema_of(one, level + 1) for name, one in record.annotations.items()},
        "required": [name for name in record.annotations if name in record.required],
        "additionalProperties": False,
    }


def _schema_of_items(origin: Any, annotation: Any, inner: list[Any], level: int) -> dict[str, Any]:
    is_fixed = origin is tuple and inner and typing.get_args(annotation)[-1] is not ...
    if is_fixed:
        number = len(inner)
        items = [schema_of(one, level + 1) for one in inner]
        return {"type": "array", "prefixItems": items, "minItems": number, "maxItems": number}
    return {"type": "array", "items": schema_of(inner[0], level + 1) if inner else {}}
