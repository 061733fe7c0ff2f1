"""A test client of the JSON API that holds every answer to the OpenAPI document."""

from __future__ import annotations

import json
import re

from rqjobs.web.api.openapi import PROBLEM, problems_of
from rqjobs.web.api.operations import OPERATIONS, SCHEMAS
from rqjobs.web.api.problems import PROBLEM_TYPE
from rqjobs.web.api.schemas import check

READER = "reader-1234567890-abcdef"
OPERATOR = "operator-1234567890-abcdef"
ADMIN = "admin-1234567890-abcdefgh"
TOKENS = f"grafana:read:{READER},shop:operate:{OPERATOR},ops:admin:{ADMIN}"


class ApiClient:
    """Requests with a token. `prefix` is the address of the API."""

    def __init__(self, client, token=ADMIN, prefix="/api"):
        self.client = client
        self.token = token
        self.prefix = prefix

    def __call__(self, method, path, body=None, token=None, **options):
        headers = {"Authorization": f"Bearer {token or self.token}", **options.pop("headers", {})}
        if body is not None:
            options["json"] = body
        reply = self.client.open(
            f"{self.prefix}{path}", method=method, headers=headers, buffered=True, **options
        )
        conforms(reply, operation_of(method, path.partition("?")[0]))
        return reply

    def get(self, path, **options):
        return self("GET", path, **options)

    def post(self, path, body=None, **options):
        return self("POST", path, body, **options)


def operation_of(method, path):
    """The operation that a request means; None if there is none of this address and method."""
    for one in sorted(OPERATIONS, key=lambda one: "{" in one.path):
        if one.method == method and re.fullmatch(re.sub("{.*?}", "[^/]+", one.path), path):
            return one
    return None


def conforms(reply, one):
    """The answer is one that the document of the API announces."""
    assert "Set-Cookie" not in reply.headers
    assert not [name for name, _ in reply.headers if name.startswith("Access-Control")]
    if reply.status_code < 400:
        wanted = one.answers[reply.status_code]
        if wanted is None:
            assert not reply.data and "Content-Type" not in reply.headers
            return
        assert reply.mimetype == "application/json"
    else:
        wanted = PROBLEM
        assert reply.mimetype == PROBLEM_TYPE, reply.data
        assert one is None or reply.status_code in (*problems_of(one), 405), (
            reply.status_code,
            reply.data,
        )
    body = json.loads(reply.data, parse_constant=lambda name: 1 / 0)
    errors = check(body, wanted, SCHEMAS)
    assert not errors, (errors, body)
    if reply.status_code >= 400:
        assert body["status"] == reply.status_code
