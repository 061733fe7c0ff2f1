"""`job_url` of `@job`: which templates are taken, and the addresses that they give."""

from __future__ import annotations

import pytest

from rqjobs import job
from rqjobs.policies import record_url


def call(user_id, kind="x", *rest):
    return None


@pytest.mark.parametrize(
    "template",
    [
        "/users/{user_id}",
        "/",
        "https://example.com/{user_id}?kind={kind}#{kind}",
        "http://[::1]:8000/{user_id}",
        "https://example.com",
    ],
)
def test_right_templates_are_taken(template):
    assert job(job_url=template)(call) is call


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        ("/users/{id}", ValueError, "no parameter 'id'"),
        ("/users/{user_id.name}", ValueError, "cannot be read"),
        ("users/{user_id}", ValueError, "is not an address"),
        ("//evil.example/{user_id}", ValueError, "is not an address"),
        ("/\\evil.example", ValueError, "is not an address"),
        ("javascript:alert({user_id})", ValueError, "is not an address"),
        ("{user_id}", ValueError, "is not an address"),
        ("https://{user_id}.example", ValueError, "is not an address"),
        ("https://example.com{user_id}", ValueError, "is not an address"),
        ("https://example.com@{user_id}", ValueError, "is not an address"),
        ('/users/"{user_id}', ValueError, "is not an address"),
        ("", ValueError, "is empty"),
        (5, TypeError, "is not a text"),
    ],
)
def test_a_wrong_template_is_refused_at_once(template, error, message):
    with pytest.raises(error, match="job_url") as caught:
        job(job_url=template)(call)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((42,), "/u/42/x"),
        (("a/b?c#d&e", "<\"' ü"), "/u/a%2Fb%3Fc%23d%26e/%3C%22%27%20%C3%BC"),
        (("..",), None),
        (("",), None),
        ((None,), None),
        (([1],), None),
        ((True,), None),
        (("x" * 501,), None),
        (("\ud800",), "/u/%3F/x"),
        ((), None),
    ],
)
def test_values_are_quoted_and_odd_ones_give_no_address(args, expected):
    assert record_url.render("/u/{user_id}/{kind}", call, args, {}) == expected
    assert record_url.render("/u/{user_id}", call, args, {"unknown": 1}) is None
