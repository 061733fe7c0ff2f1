"""The OpenAPI 3.1 document, made from the table of operations."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from flask import url_for

from rqjobs import __version__
from rqjobs.web.access import Role
from rqjobs.web.api.job_values import TEXT, an_object
from rqjobs.web.api.operations import (
    JSON_TYPE,
    OPERATIONS,
    PATH_PARAMETERS,
    SCHEMAS,
    Given,
    Operation,
    operation,
    schema,
)
from rqjobs.web.api.problems import PROBLEM_TYPE

PROBLEM = schema(
    "Problem",
    {
        **an_object(
            type={"type": "string", "format": "uri"},
            title=TEXT,
            status={"type": "integer"},
            detail=TEXT,
            errors={
                "type": "object",
                "additionalProperties": TEXT,
                "description": "a message for each wrong value, by its place",
            },
        ),
        "required": ["type", "title", "status", "detail"],
    },
)
PROBLEMS = {
    400: "The body is not JSON.",
    401: "The token is missing or wrong.",
    403: "The API is not enabled, or the role of the token does not suffice.",
    404: "There is nothing of this name.",
    409: "The state in Redis does not allow this.",
    413: "The body is too large.",
    415: "The body must be application/json, without a Content-Encoding.",
    422: "Values are wrong; `errors` names them.",
    429: "Too many wrong tokens came from this address.",
    503: "Redis does not answer, or refuses this; try again after Retry-After seconds.",
}
ALWAYS = (401, 403, 409, 422, 429, 503)  # 409: unexpected data in Redis; 422: unknown parameters
OF_A_BODY = (400, 413, 415)


@operation(
    "GET",
    "/openapi.json",
    tag="api",
    summary="This document",
    answers={200: {"type": "object"}},
)
def get_openapi(given: Given) -> dict[str, Any]:
    """It needs a token, like the rest of the API."""
    return document(url_for("rqjobs_api.get_openapi").removesuffix("/openapi.json"))


def document(address: str) -> dict[str, Any]:
    """The document of an API at this address."""
    paths: dict[str, Any] = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "rqjobs",
            "version": __version__,
            "description": "Enqueue jobs, wait for them, and look after queues and schedules.",
        },
        "servers": [{"url": address}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": SCHEMAS,
            "responses": {_problem_name(status): _problem(status) for status in PROBLEMS},
        },
    }


def _operation(one: Operation) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": one.name,
        "tags": [one.tag],
        "summary": one.summary,
        "description": f"{one.description} Needs the role {Role(one.role).name.lower()}.".strip(),
        "parameters": _parameters(one),
        "responses": _responses(one),
    }
    if one.body is not None:
        made["requestBody"] = {
            "required": one.body_is_required,
            "content": {JSON_TYPE: {"schema": one.body}},
        }
    return made


def _parameters(one: Operation) -> list[dict[str, Any]]:
    groups = [
        ("path", {name: PATH_PARAMETERS[name] for name in one.path_names}),
        ("query", one.query),
        ("header", one.headers),
    ]
    return [
        {"name": name, "in": place, "required": place == "path", "schema": wanted}
        for place, wanted_by_name in groups
        for name, wanted in wanted_by_name.items()
    ]


def _responses(one: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for status, wanted in one.answers.items():
        found[str(status)] = {"description": HTTPStatus(status).phrase}
        if wanted is not None:
            found[str(status)]["content"] = {JSON_TYPE: {"schema": wanted}}
    for status in problems_of(one):
        found[str(status)] = {"$ref": f"#/components/responses/{_problem_name(status)}"}
    return found


def problems_of(one: Operation) -> list[int]:
    """The statuses with which an operation can be refused."""
    statuses = {*ALWAYS, *one.problems}
    if one.body is not None:
        statuses.update(OF_A_BODY)
    if one.path_names:
        statuses.add(404)
    return sorted(statuses)


def _problem_name(status: int) -> str:
    return f"Problem{status}"


def _problem(status: int) -> dict[str, Any]:
    return {
        "description": PROBLEMS[status],
        "content": {PROBLEM_TYPE: {"schema": PROBLEM}},
    }
