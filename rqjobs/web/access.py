"""Access: the role that a request has, and the role that a view needs.

`auth.py` compares the two in one place, before any view runs. A view without a mark needs READ
for a reading request and OPERATE for any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

from flask import Response, current_app, g, request
from werkzeug.exceptions import Forbidden

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
MAX_USER_CHARACTERS = 100
Function = TypeVar("Function", bound=Callable[..., Any])


class Role(IntEnum):
    """The rights of a request. Each role has those of the lower roles too."""

    NONE = 0
    READ = 1  # see everything
    OPERATE = 2  # enqueue, requeue, cancel, stop, pause, resume
    ADMIN = 3  # change what cannot be undone, or concerns the installation


ROLE_NAMES = {role.name.lower(): role for role in Role}


@dataclass(frozen=True)
class Access:
    """The role of a request, and the name of its user for the list of activity ("" if unknown)."""

    role: Role
    user: str = ""


STRANGER = Access(Role.NONE)


class InvalidAccess(Exception):
    """An application's `authorize` has returned a value that is not an access."""


@dataclass(frozen=True)
class Gate:
    """The check of the paths that programs call with a token instead of a login.

    Args:
        authenticate: gives the access of the current request; a response that refuses it; or None
            if the request has no token, so that the login decides.
        refuse: makes a refusal of a status, a title and a text.
    """

    authenticate: Callable[[], Access | Response | None]
    refuse: Callable[[int, str, str], Response]


GATES: dict[str, Gate] = {}  # by the path below the prefix of the pages, for example "/api"


def requires(role: Role, **roles: Role) -> Callable[[Function], Function]:
    """Mark a view: its requests need `role`. Write it below the decorator of the route.

    `roles` are exceptions, by the value of `action` in the address: for example `delete=Role.ADMIN`.
    """

    def mark(view: Function) -> Function:
        view.rqjobs_roles = (role, roles)  # type: ignore[attr-defined]
        return view

    return mark


def required_role() -> Role:
    """The role that the current request needs. An address without a view needs READ."""
    view = current_app.view_functions.get(request.endpoint or "")
    if view is None or request.method == "OPTIONS":
        return Role.READ
    marked = getattr(view, "rqjobs_roles", None)
    if marked is not None:
        role, roles = marked
        needed: Role = roles.get((request.view_args or {}).get("action"), role)
        return needed
    if request.method in SAFE_METHODS:
        return Role.READ
    return Role.OPERATE


def require(role: Role) -> None:
    """Refuse the current request unless it has `role`: for an action that a form names.

    Raises:
        Forbidden: it has less.
    """
    if current_access().role < role:
        raise Forbidden(explain_refusal(role))


def explain_refusal(needed: Role) -> str:
    return (
        f"This needs the role {needed.name.lower()}. "
        f"You have the role {current_access().role.name.lower()}."
    )


def current_access() -> Access:
    """The access of the current request."""
    access: Access = g.get("rqjobs_access", STRANGER)
    return access


def can(name: str) -> bool:
    """Whether the current request has the role of this name. Templates use it."""
    return current_access().role >= ROLE_NAMES[name]


def read_access(answer: Any) -> Access:
    """The access that an application's `authorize` has returned.

    Raises:
        InvalidAccess: it is not a role, the name of a role, or an `Access`.
    """
    if answer is None or answer is False:
        return STRANGER
    if isinstance(answer, Role):
        return Access(answer)
    if isinstance(answer, str) and answer in ROLE_NAMES:
        return Access(ROLE_NAMES[answer])
    is_access = isinstance(answer, Access) and isinstance(answer.role, Role)
    if is_access and isinstance(answer.user, str):
        return Access(answer.role, _clean(answer.user))
    raise InvalidAccess(
        f"authorize returned {_shown(answer)}; return None, 'read', 'operate', 'admin', "
        f"a rqjobs.web.Role, a rqjobs.web.Access(role, user), or a response"
    )


def _clean(user: str) -> str:
    """`user` as one line of bounded length."""
    return "".join(letter for letter in user if letter.isprintable())[:MAX_USER_CHARACTERS]


def _shown(answer: object) -> str:
    """`answer` for a log: a text as it is, else its type, because a value may be a secret."""
    if isinstance(answer, str | bool | int):
        return repr(answer)[:100]
    return f"a value of the type {type(answer).__name__}"
