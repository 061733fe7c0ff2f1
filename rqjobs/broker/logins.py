"""Logins to the pages: open sessions, and the counters that slow down wrong passwords.

Sessions are kept in Redis, so a logout ends a session in every process. A counter allows some
attempts without a pause. Each further attempt doubles the pause before the next one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Any

import redis
from rq.suspension import WORKERS_SUSPENDED

from rqjobs.broker import keys
from rqjobs.broker.scripts import LOG_IN, TRY_LOGIN, read_together, replies_together
from rqjobs.connection import refusal_code

LINK_SECONDS = 900  # a login link is valid for so long, and once

CLIENT_MAX_PAUSE_SECONDS = 60  # of one address or one browser
ATTEMPT_COUNTER_SECONDS = (
    900  # a counter of wrong passwords expires this long after the last attempt
)


@dataclass(frozen=True)
class RateLimit:
    """A counter of wrong passwords, its attempts without a pause, and its longest pause."""

    name: str
    free_attempts: int
    max_pause_seconds: int

    @property
    def key(self) -> str:
        return keys.login_attempts(self.name)

    @property
    def pause_key(self) -> str:
        return keys.login_pause(self.name)


@dataclass(frozen=True)
class SessionCheck:
    """Whether a session is open, and three facts about Redis that were read with it.

    `suspended`, `paused` and `memory` are the replies of Redis. Each may be an error, because a
    Redis user may lack the right to that command.
    """

    is_open: bool
    suspended: Any
    paused: Any
    memory: Any


def count_attempt(connection: redis.Redis, limits: list[RateLimit]) -> float:
    """Count a login before its password is checked; returns the seconds to wait, 0 if allowed.

    A refused attempt is not counted. Of many attempts at once, only the free ones are allowed.
    """
    names = [key for limit in limits for key in (limit.key, limit.pause_key)]
    numbers = [
        number for limit in limits for number in (limit.free_attempts, limit.max_pause_seconds)
    ]
    return int(TRY_LOGIN.run(connection, names, [ATTEMPT_COUNTER_SECONDS, *numbers])) / 1000


def open_session(
    connection: redis.Redis, session_id: str, seconds: int, limits: list[RateLimit]
) -> None:
    """Store a session for `seconds`, and reset the first of the `limits`."""
    names = [keys.SESSIONS, limits[0].key, limits[0].pause_key]
    LOG_IN.run(connection, names, [session_id, seconds])


def close_session(connection: redis.Redis, session_id: str) -> None:
    """End a session. Its cookie is refused from now on, in every process."""
    connection.zrem(keys.SESSIONS, session_id)


def create_link(connection: redis.Redis, secret_key: str) -> str:
    """Store a login link; returns the token in it.

    Only a hash of the token is stored, made with the secret key. So a program with access to Redis,
    but without that key, cannot make a link.
    """
    token = secrets.token_urlsafe(24)
    connection.set(_link_key(token, secret_key), 1, ex=LINK_SECONDS)
    return token


def use_link(connection: redis.Redis, token: str, secret_key: str) -> bool:
    """Whether a login link is valid. It is not valid again."""
    return bool(connection.delete(_link_key(token, secret_key)))


def _link_key(token: str, secret_key: str) -> str:
    digest = hmac.new(secret_key.encode(), token.encode(errors="replace"), hashlib.sha256)
    return keys.login_link(digest.hexdigest())


def is_open(connection: redis.Redis, session_id: str) -> bool:
    """Whether a session is open.

    Raises:
        redis.RedisError: as `check_session`.
    """
    (expiry,) = read_together(connection, [("ZSCORE", keys.SESSIONS, session_id)])
    return isinstance(expiry, float)


def check_session(connection: redis.Redis, session_id: str) -> SessionCheck:
    """Whether a session is open, in one round trip with the state of Redis.

    Raises:
        redis.RedisError: Redis does not answer, or refuses the question about the session.
    """
    commands = [
        ("ZSCORE", keys.SESSIONS, session_id),
        ("EXISTS", WORKERS_SUSPENDED),
        ("HGETALL", keys.PAUSED),
        ("INFO", "memory"),
    ]
    expiry, suspended, paused, memory = replies_together(connection, commands)
    if isinstance(expiry, Exception) and refusal_code(expiry):
        raise expiry
    # A key of the wrong type gives an error instead of a number: then no session is open.
    return SessionCheck(isinstance(expiry, float), suspended, paused, memory)
