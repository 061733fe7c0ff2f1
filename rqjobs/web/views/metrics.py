"""`/metrics`, for Prometheus, which has a token; a person who is logged in may read it too."""

from __future__ import annotations

import hmac
from typing import Any

import redis
from flask import Response, request

from rqjobs import config, connection
from rqjobs.web import exposition
from rqjobs.web.access import GATES, Access, Gate, Role
from rqjobs.web.rendering import pages

PLAIN = "text/plain; charset=utf-8"
READER = Access(Role.READ, "metrics")


@pages.get("/metrics")
def metrics() -> Any:
    """All metrics. 501 without prometheus-client, 503 if Redis does not answer."""
    if not exposition.HAS_CLIENT:
        return _answer(501, "metrics need prometheus-client: pip install 'rqjobs[metrics]'")
    try:
        text, content_type = exposition.render(
            connection.client(), request.headers.get("Accept", "")
        )
    except (redis.RedisError, config.ConfigError) as error:
        return _answer(503, connection.explain(error))
    return Response(text, content_type=content_type)


def _authenticate() -> Access | Response | None:
    """The token allows reading. Without a token the login decides."""
    header = request.headers.get("Authorization", "")
    if not header:
        return None
    token = config.current().metrics_token
    scheme, _, given = header.partition(" ")
    given_bytes = given.strip().encode(errors="replace")
    is_bearer = scheme.lower() == "bearer"
    if token and is_bearer and hmac.compare_digest(given_bytes, token.encode()):
        return READER
    remedy = "send the header Authorization: Bearer with RQJOBS_METRICS_TOKEN"
    if not token:
        remedy = "set RQJOBS_METRICS_TOKEN, and send it in the header Authorization: Bearer"
    response = _answer(401, f"no access to the metrics; {remedy}")
    response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _refuse(status: int, title: str, text: str) -> Response:
    return _answer(status, f"{title}: {text}")


def _answer(status: int, text: str) -> Response:
    return Response(f"{text}\n", status, content_type=PLAIN)


GATES["/metrics"] = Gate(_authenticate, _refuse)
