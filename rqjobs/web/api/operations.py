"""The table of operations: routes, roles, checks of the requests, and OpenAPI all come from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import redis
from flask import Blueprint, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from rqjobs import config, conversion
from rqjobs.web.access import SAFE_METHODS, Role, requires
from rqjobs.web.api import problems
from rqjobs.web.api.problems import Problem
from rqjobs.web.api.schemas import Errors, Schema, check

JSON_TYPE = "application/json"
# One byte of a payload can take six in JSON; a form may take three. Other fields need some room.
BODY_BYTES_PER_PAYLOAD_BYTE = 4
BODY_EXTRA_BYTES = 64 * 1024
REQUEST_MAX_JOBS = 1000  # that one request enqueues or changes
QUERY_TRUTH_VALUES = {"true": True, "false": False}

api = Blueprint("rqjobs_api", __name__)


@dataclass(frozen=True)
class Operation:
    """One operation. `query`, `body` and `answers` are JSON Schemas, by name or status.

    An answer without a schema has no body. `problems` are statuses that only some operations have.
    """

    method: str
    path: str  # with its parameters in braces
    name: str
    role: Role
    tag: str
    summary: str
    answers: Mapping[int, Schema | None]
    description: str = ""
    query: Mapping[str, Schema] = field(default_factory=dict)
    headers: Mapping[str, Schema] = field(default_factory=dict)
    body: Schema | None = None
    body_is_required: bool = True
    problems: tuple[int, ...] = ()

    @property
    def path_names(self) -> list[str]:
        """The names of the parameters in the path."""
        return [part.partition("}")[0] for part in self.path.split("{")[1:]]


@dataclass(frozen=True)
class Given:
    """The checked values of a request. Fractions in the body are `Decimal`."""

    query: Mapping[str, Any]
    headers: Mapping[str, str]
    body: Any


OPERATIONS: list[Operation] = []
SCHEMAS: dict[str, Schema] = {}  # by name, for references
PATH_PARAMETERS: dict[str, Schema] = {}
View = Callable[..., Any]


def schema(name: str, definition: Schema) -> Schema:
    """Add a schema to those of the document; returns the reference to it."""
    SCHEMAS[name] = definition
    return {"$ref": f"#/components/schemas/{name}"}


def operation(
    method: str,
    path: str,
    *,
    tag: str,
    summary: str,
    answers: Mapping[int, Schema | None],
    role: Role | None = None,
    **parts: Any,
) -> Callable[[View], View]:
    """Make a view an operation of the API. It gets the checked values, and those of the path.

    Without `role` a reading operation needs READ and any other OPERATE. The view returns a
    `Response`, or the body of an answer with the status 200.
    """
    if role is None:
        role = Role.READ if method in SAFE_METHODS else Role.OPERATE

    def add(view: View) -> View:
        made = Operation(
            method, path, view.__name__, role, tag, summary, answers, _text_of(view), **parts
        )
        OPERATIONS.append(made)
        rule = path.replace("{", "<").replace("}", ">")
        api.add_url_rule(
            rule,
            view.__name__,
            requires(role)(_checked(made, view)),
            methods=[method],
            provide_automatic_options=False,
        )
        return view

    return add


def _text_of(view: View) -> str:
    return " ".join((view.__doc__ or "").split())


def _checked(made: Operation, view: View) -> View:
    @wraps(view)
    def call(**path_values: str) -> Response:
        for name, value in path_values.items():
            if check(value, PATH_PARAMETERS[name], SCHEMAS):
                raise Problem(404, "not-found", f"{conversion.quote(value)} is not a valid {name}.")
        given = Given(_read_query(made), _read_headers(made), _read_body(made))
        result = view(given, **path_values)
        if isinstance(result, Response):
            return result
        return answer(result)

    return call


def answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer with a JSON body, in ASCII: a lone surrogate has no other bytes."""
    response = Response(json.dumps(body, allow_nan=False), status, mimetype=JSON_TYPE)
    response.headers.update(headers or {})
    return response


def no_content() -> Response:
    """An answer without a body."""
    response = Response(status=204)
    del response.headers["Content-Type"]
    return response


# Reading a request


def _read_query(made: Operation) -> dict[str, Any]:
    """The query parameters, each as its schema says.

    Raises:
        Problem: one is unknown, given twice, or wrong.
    """
    errors: Errors = {}
    found: dict[str, Any] = {}
    for name, texts in request.args.lists():
        if name not in made.query:
            known = ", ".join(made.query) or "none"
            errors[name] = f"is not a parameter of this operation; known: {known}"
        elif len(texts) > 1:
            errors[name] = "is given more than once"
        else:
            found[name] = _read_text(texts[0], made.query[name])
            errors |= check(found[name], made.query[name], SCHEMAS, name)
    if errors:
        raise problems.invalid(errors)
    defaults = {name: one["default"] for name, one in made.query.items() if "default" in one}
    return defaults | found


def _read_text(text: str, wanted: Schema) -> Any:
    """A text as the number or truth value that the schema asks for; else as it is."""
    kind = wanted.get("type")
    try:
        if kind == "integer":
            return conversion.parse_int(text)
        if kind == "number":
            return conversion.parse_float(text)
    except ValueError:
        return text
    if kind == "boolean":
        return QUERY_TRUTH_VALUES.get(text, text)
    return text


def _read_headers(made: Operation) -> dict[str, str]:
    errors: Errors = {}
    found: dict[str, str] = {}
    for name, wanted in made.headers.items():
        text = request.headers.get(name)
        if text is not None:
            found[name] = text
            errors |= check(text, wanted, SCHEMAS, name)
    if errors:
        raise problems.invalid(errors)
    return found


def body_max_bytes() -> int:
    """The largest body that is read."""
    payload = config.current().max_payload_bytes
    return BODY_BYTES_PER_PAYLOAD_BYTE * payload + BODY_EXTRA_BYTES


def _read_body(made: Operation) -> Any:
    """The checked JSON body; None if the operation takes none.

    Raises:
        Problem: it is too large, has another media type, is not JSON, or does not fit the schema.
    """
    if made.body is None:
        return None
    if not made.body_is_required and not _has_body():
        return {}
    if request.mimetype != JSON_TYPE:
        text = "Send the header: Content-Type: application/json"
        raise Problem(415, "unsupported-media-type", text)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        text = "Send the body as it is, without the header Content-Encoding."
        raise Problem(415, "unsupported-media-type", text)
    data = _read_bytes(body_max_bytes())
    if not data.strip():
        raise Problem(400, "not-json", "The body is empty; send a JSON object.")
    try:
        body = conversion.parse_json(data.decode("utf-8-sig"))
    except ValueError as error:  # also of bytes that are not UTF-8
        raise Problem(400, "not-json", f"The body is not JSON: {error}") from None
    errors = check(body, made.body, SCHEMAS)
    if errors:
        raise problems.invalid(errors)
    return body


def _has_body() -> bool:
    return bool(request.content_length) or "Transfer-Encoding" in request.headers


def _read_bytes(limit: int) -> bytes:
    """The body.

    Raises:
        Problem: it is too large, or has not arrived completely.
    """
    length = request.content_length or 0  # 0 of a body in chunks
    if length > limit:
        raise problems.too_large(limit)
    cut_off = Problem(400, "not-json", "The body has not arrived completely.")
    data = bytearray()
    while len(data) <= limit:
        try:
            part = request.stream.read(limit + 1 - len(data))
        except HTTPException:
            raise
        except Exception:  # each server has errors of its own for a broken chunk
            raise cut_off from None
        if not part and len(data) < length:  # not every server notices that
            raise cut_off
        if not part:
            return bytes(data)
        data += part
    raise problems.too_large(limit)


# Errors


@api.errorhandler(Problem)
def refuse_problem(error: Problem) -> Response:
    return error.response()


@api.errorhandler(redis.RedisError)
def refuse_for_redis(error: redis.RedisError) -> Response:
    return problems.of_redis(error).response()


@api.errorhandler(config.ConfigError)
def refuse_for_config(error: config.ConfigError) -> Response:
    return problems.of_config(error).response()


@api.errorhandler(HTTPException)
def refuse_http(error: HTTPException) -> Response:
    """Also called for an address, or a method of it, that the API does not have."""
    methods: list[str] = []
    if isinstance(error, MethodNotAllowed):
        # `/jobs/batch` also has the form of a job's address, which has other methods.
        path = request.path
        methods = [one.method for one in OPERATIONS if path.endswith(f"/api{one.path}")]
        methods = methods or [*(error.valid_methods or ())]
        methods += ["HEAD"] if "GET" in methods else []
    return problems.of_http(error, methods).response()
