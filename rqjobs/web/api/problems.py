"""Errors of the API: every refusal is `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import redis
from flask import Response
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import RequestRedirect

from rqjobs import config, connection
from rqjobs.web.rendering import cut

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 5  # after which a client may ask again while Redis does not answer
DETAIL_MAX_CHARACTERS = 1000
TITLES = {  # of each kind of problem; its `type` is urn:rqjobs:<kind>
    "api-disabled": "The API is not enabled",
    "conflict": "The job's state does not allow this",
    "duplicate": "Another job has this id or key",
    "http": "The request failed",
    "forbidden": "The role of this token does not suffice",
    "idempotency-mismatch": "The Idempotency-Key belongs to another request",
    "invalid-input": "The request has wrong values",
    "method-not-allowed": "There is no such operation here",
    "not-found": "Not found",
    "not-json": "The body is not JSON",
    "rate-limited": "Too many wrong tokens",
    "redis-unavailable": "Redis does not answer, or refuses this",
    "redis-data": "Unexpected data in Redis",
    "too-large": "The body is too large",
    "unauthorized": "A valid token is needed",
    "unsupported-media-type": "The body must be application/json",
}


class Problem(Exception):
    """A refusal. `errors` names the wrong values: a message for each place."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        errors: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.errors = errors
        self.headers = headers or {}

    def response(self) -> Response:
        body: dict[str, Any] = {
            "type": f"urn:rqjobs:{self.kind}",
            "title": TITLES.get(self.kind, self.kind),
            "status": self.status,
            "detail": cut(self.detail, DETAIL_MAX_CHARACTERS),
        }
        if self.errors is not None:
            body["errors"] = {
                cut(place, 200): cut(message, DETAIL_MAX_CHARACTERS)
                for place, message in self.errors.items()
            }
        response = Response(json.dumps(body), self.status, mimetype=PROBLEM_TYPE)
        response.headers.update(self.headers)
        return response


def invalid(errors: Mapping[str, str]) -> Problem:
    """Wrong values, each with its place: `args[0]`, `kwargs.user_id`, `limit`."""
    place, message = next(iter(errors.items()))
    detail = f"{place}: {message}" if place else message
    return Problem(422, "invalid-input", detail, errors)


def refuse(status: int, title: str, text: str) -> Response:
    """A refusal of the access check."""
    return Problem(status, "forbidden" if status == 403 else "http", text).response()


def of_redis(error: redis.RedisError) -> Problem:
    """409 for unexpected data, else 503."""
    explanation = connection.explain(error)
    if isinstance(error, redis.ResponseError) and not connection.refusal_code(error):
        return Problem(409, "redis-data", explanation)
    return unavailable(explanation)


def unavailable(explanation: str) -> Problem:
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return Problem(503, "redis-unavailable", explanation, headers=headers)


def of_http(error: HTTPException, methods: Iterable[str] = ()) -> Problem:
    """Flask's own refusals: an unknown address, a wrong method, a body that is too large.

    `methods`: those of the address, for a wrong method. An address that Flask would redirect, such as
    `//jobs`, counts as unknown: a client that follows redirects would send its token there.
    """
    if isinstance(error, NotFound | RequestRedirect):
        return Problem(404, "not-found", "There is no such address, or it has expired.")
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted(set(methods) - {"OPTIONS"}))
        text = f"Here the API takes: {allowed}."
        return Problem(405, "method-not-allowed", text, headers={"Allow": allowed})
    if error.code == 413:
        return too_large(0)
    if error.code == 403:
        return Problem(403, "forbidden", error.description or error.name)
    return Problem(error.code or 500, "http", error.description or error.name)


def too_large(limit: int) -> Problem:
    text = "The body is larger than this server takes."
    if limit:
        text = f"The body is larger than {limit:,} bytes, which follows RQJOBS_MAX_PAYLOAD_BYTES."
    return Problem(413, "too-large", text)


def of_config(error: config.ConfigError) -> Problem:
    """The process is not configured, for example without any Redis."""
    return unavailable(str(error))
