"""Job functions for the tests of the page of a job."""

from __future__ import annotations

import dataclasses
import json
import logging

import rqjobs
from rqjobs import job


@dataclasses.dataclass(frozen=True)
class Account:
    user: str
    api_token: str


def log_in(user: str, password: str, options: dict | None = None) -> dict:
    """Log in, and fail if the user is nobody."""
    logging.getLogger(__name__).warning("with %s", password)
    if user == "nobody":
        raise ValueError(f"{password!r} is wrong")
    return {"user": user, "X-Token": password}


def connect(account: Account) -> str:
    return account.user


@job
def log_in_with(user: str, password: str) -> str:
    return user


def check_user(user_id: str) -> None:
    try:
        {}["key"]
    except KeyError as error:
        json_of("{")
        raise ValueError(f"no user {user_id}\nat all") from error


def json_of(text: str):
    return json.loads(text)


@job(job_url="/users/{user_id}")
def greet(user_id: str, text: str = "hello") -> str:
    return text


@job(job_url="https://example.com/{a}?b={b}")
def both(a: str, b: int = 1, *, times: list[int] | None = None) -> None:
    return None


@job(unique="{user}:{password}", limit=1, limit_by="{password}")
def renew(user: str, password: str, pin_token: int = 0) -> None:
    """Tell the password in every way that a job has."""
    rqjobs.progress(1, 2, f"{'x' * 190} {password}")
    print(password)
    raise KeyError(password, pin_token)
