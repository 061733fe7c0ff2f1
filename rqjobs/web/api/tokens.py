"""Bearer tokens: the only way into the API. It takes no cookies and no sessions."""

from __future__ import annotations

import hashlib
import hmac
from math import ceil

import redis
from flask import Response, request

from rqjobs import config, connection
from rqjobs.broker import logins
from rqjobs.broker.logins import CLIENT_MAX_PAUSE_SECONDS, RateLimit
from rqjobs.config import ApiToken, ConfigError
from rqjobs.web.access import GATES, ROLE_NAMES, Access, Gate
from rqjobs.web.api.operations import api, refuse_http
from rqjobs.web.api.problems import Problem, refuse
from rqjobs.web.request_origin import client_network

TOKEN_FREE_ATTEMPTS = 5  # wrong tokens of one address without a pause
CHALLENGE = 'Bearer realm="rqjobs"'
DISABLED = (
    "Set RQJOBS_API_TOKEN to enable the API: one token, or several as name:role:token with commas "
    "between."
)


def authenticate() -> Access | Response | None:
    """The access of the request's token, or the problem that refuses the request.

    None for a route of the application's own below `/api`: it is not a part of the API.
    """
    if request.url_rule is not None and request.blueprint != api.name:
        return None
    tokens = config.current().api_tokens
    if not tokens:
        return Problem(403, "api-disabled", DISABLED).response()
    given = _given_token()
    found = _find(tokens, given)
    if found is None:
        return _refuse(given).response()
    error = request.routing_exception
    if error is not None:
        return refuse_http(error)
    return Access(ROLE_NAMES[found.role], found.name)


def _given_token() -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return ""
    return token.strip()


def _find(tokens: tuple[ApiToken, ...], given: str) -> ApiToken | None:
    """The token that is `given`. All are compared, each in constant time."""
    digest = _digest(given)
    found = None
    for one in tokens:
        if hmac.compare_digest(_digest(one.token), digest):
            found = one
    return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _refuse(given: str) -> Problem:
    """The refusal of a request without a token, or with a wrong one, which is counted.

    A valid token is never slowed down: behind a proxy all clients have one address, so a stranger
    could lock out all of them. The length of the tokens protects them against guesses.
    """
    if not given:
        text = "Send the header: Authorization: Bearer TOKEN"
        return Problem(401, "unauthorized", text, headers={"WWW-Authenticate": CHALLENGE})
    pause = _count_wrong_token()
    if pause:
        text = f"Wait {pause} s before another token is tried from this address."
        return Problem(429, "rate-limited", text, headers={"Retry-After": str(pause)})
    challenge = f'{CHALLENGE}, error="invalid_token"'
    text = "This token is not one of RQJOBS_API_TOKEN."
    return Problem(401, "unauthorized", text, headers={"WWW-Authenticate": challenge})


def _count_wrong_token() -> int:
    """The seconds to wait; 0 if none, also while Redis does not answer."""
    client = f"api:{client_network(request.remote_addr)}"
    limit = RateLimit(client, TOKEN_FREE_ATTEMPTS, CLIENT_MAX_PAUSE_SECONDS)
    try:
        return ceil(logins.count_attempt(connection.client(), [limit]))
    except (redis.RedisError, ConfigError):
        return 0


GATES["/api"] = Gate(authenticate, refuse)
