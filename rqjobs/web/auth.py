"""Authentication: one check before every path under the prefix, of our pages and the dashboard.

The check asks, in this order: where the request comes from, whether another site sent it, who
sends it (by our login, by the application's `authorize`, or by a token), and whether the role of
that user suffices.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sys
import time
from collections.abc import Callable
from functools import cached_property
from math import ceil
from typing import Any, cast

import itsdangerous
import redis
from flask import Flask, Response, abort, current_app, g, redirect, request, session, url_for
from flask.sessions import SecureCookieSessionInterface
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as WerkzeugResponse

from rqjobs import config, connection, generated_secrets
from rqjobs.broker import logins
from rqjobs.broker.logins import CLIENT_MAX_PAUSE_SECONDS, RateLimit
from rqjobs.web import access, live, recording
from rqjobs.web.access import SAFE_METHODS, STRANGER, Access, Gate, Role, requires
from rqjobs.web.rendering import http_error, message, page, pages, redis_error, redis_warnings
from rqjobs.web.request_origin import (
    client_network,
    explain_bad_address,
    explain_refusal,
    is_from_this_machine,
    is_https,
    is_same_origin,
)

PUBLIC_ENDPOINTS = ("rqjobs.login", "rqjobs.healthz")
PUBLIC_FILES = ("rqjobs.css", "login.js", "icon.svg", "icon-trouble.svg")
BLUEPRINTS = ("rqjobs", "rqjobs_api", "rq_dashboard")
# They have findings instead of the warnings of the other pages. An open page asks every three seconds.
WITHOUT_WARNINGS = ("rqjobs.home", "rqjobs.live_home")
SESSION_SECONDS = 12 * 3600
DEVICE_COOKIE = "rqjobs_device"
PORT = re.compile(r":([0-9]{1,5})$", re.ASCII)  # in the Host header
DEVICE_SECONDS = 180 * 24 * 3600  # a browser that has logged in is recognized for so long
PASSWORD_FREE_ATTEMPTS = 3  # wrong passwords of one address or one browser without a pause
TOTAL_FREE_ATTEMPTS = 30  # of all addresses together
TOTAL_MAX_PAUSE_SECONDS = 2
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}
PAGE_CONTENT_POLICY = (  # no script and no style in the page itself
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class SessionInterface(SecureCookieSessionInterface):
    """Flask's cookie session: always signed, and Secure whenever the browser speaks https."""

    def get_cookie_secure(self, app: Flask) -> bool:
        """Overridden because an app behind a proxy sees http."""
        return super().get_cookie_secure(app) or is_https()

    def get_signing_serializer(self, app: Flask) -> Any:
        """Overridden because Flask has no session for an app without a secret key."""
        ensure_secret_key(app)
        return super().get_signing_serializer(app)


def ensure_secret_key(app: Flask) -> bytes:
    """The app's secret key. An app without one gets a generated key, not one made of the password.

    A key made of the password would let anyone check guesses against a cookie.
    """
    if not app.secret_key:
        app.secret_key = generated_secrets.secret_key()
    if isinstance(app.secret_key, str):
        return app.secret_key.encode()
    return app.secret_key


def of_port(cookie: str) -> str:
    """The name of a cookie for the port of this request: browsers send cookies to all ports."""
    found = PORT.search(request.host)
    return f"{cookie}_{found[1]}" if found else cookie


class OwnSessionInterface(SessionInterface):
    """The same for an app of our own, whose cookie belongs to its prefix and port.

    Two of them on one host would overwrite each other's login otherwise.
    """

    def get_cookie_name(self, app: Flask) -> str:
        """Overridden because Flask's default is one name for all ports."""
        return of_port(super().get_cookie_name(app))

    def get_cookie_path(self, app: Flask) -> str:
        """Overridden because Flask's default is the whole host."""
        path: str | None = app.config["SESSION_COOKIE_PATH"]
        return path or request.script_root or super().get_cookie_path(app)


class Auth:
    """The access rules of one app. `current_auth()` gives it during a request.

    With `authorize`, that function decides instead of a login of ours.
    """

    def __init__(self, app: Flask, prefix: str, authorize: Callable[[Any], Any] | None = None):
        settings = config.current()
        self.app = app
        self.prefix = prefix
        self.authorize = authorize
        self.user = settings.admin_user
        self.local_only = not settings.admin_password and authorize is None
        self.configured_password = settings.admin_password or settings.one_time_password
        self.password_printed = False
        app.extensions["rqjobs"] = self
        app.before_request(self.check_request)
        app.after_request(self.add_headers)
        app.teardown_request(live.end_reading)

    @cached_property
    def password(self) -> str:
        if self.configured_password:
            return self.configured_password
        return generated_secrets.admin_password()

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the credentials. A session is valid for this hash only."""
        credentials = f"{self.user}\0{self.password}".encode()
        return hmac.new(ensure_secret_key(self.app), credentials, hashlib.sha256).hexdigest()

    @cached_property
    def devices(self) -> itsdangerous.URLSafeTimedSerializer:
        """Signs the cookie of a browser that has logged in."""
        return itsdangerous.URLSafeTimedSerializer(
            ensure_secret_key(self.app), salt=f"rqjobs.device.{self.fingerprint}"
        )

    def print_login(self) -> None:
        """Print a generated password and a login link on stderr, when the login page is opened.

        They are printed once, and not earlier: a program may import the app without serving it.
        """
        if self.configured_password or self.password_printed:
            return
        self.password_printed = True
        print(
            f"rqjobs: RQJOBS_ADMIN_PASSWORD is not set, so only this machine is served. "
            f"Log in as {self.user} with: {self.password}{_login_link()}",
            file=sys.stderr,
            flush=True,
        )

    # The check of a request

    def protects(self) -> bool:
        """Whether the request is for a protected path, by its path or by the route that matches.

        Without a prefix our login protects the whole app. The application's own `authorize`
        protects only our pages then, because the application has pages for strangers.
        """
        if self.authorize and not self.prefix:
            return request.blueprint in BLUEPRINTS
        paths = [request.path]
        if request.url_rule:
            paths.append(request.url_rule.rule)
        return any(path == self.prefix or path.startswith(self.prefix + "/") for path in paths)

    def check_request(self) -> Any:
        """None to let the request pass, else the response that refuses it."""
        if not self.protects():
            return None
        # Several requests share `g` while a test has an app context open.
        g.rqjobs_access, g.rqjobs_nav, g.rqjobs_warnings = STRANGER, False, []
        g.rqjobs_is_live, g.rqjobs_is_foreign, g.rqjobs_trouble = False, False, None
        g.rqjobs_refused = True
        refusal = self._refuse()
        if refusal is not None:
            return refusal
        error = request.routing_exception
        if isinstance(error, HTTPException) and (error.code or 0) >= 400:
            return http_error(error)
        if request.method not in SAFE_METHODS and not self.is_public():
            recording.begin()
        g.rqjobs_refused = False
        return None

    def _refuse(self) -> Any:
        gate = self._gate()
        text = explain_bad_address()
        if text:
            if gate is not None:
                return gate.refuse(400, "Bad request", text)
            # Without a host name and a prefix, no page with links can be made.
            return Response(f"{text}\n", 400, mimetype="text/plain")
        if gate is not None:
            answer = gate.authenticate()
            if isinstance(answer, Access):
                g.rqjobs_access = answer
                return self._check_role(gate.refuse)
            if answer is not None:
                return answer
        refusal = self._check_origin()
        if refusal is None and not self.is_public():
            refusal = self._check_user()
            if refusal is None:
                refusal = self._check_role(message)
        return refusal

    def _gate(self) -> Gate | None:
        path = request.path.removeprefix(self.prefix)
        for start, gate in access.GATES.items():
            if path == start or path.startswith(start + "/"):
                return gate
        return None

    def _check_origin(self) -> Any:
        if self.local_only and not is_from_this_machine():
            return message(
                403,
                "Only this machine is served",
                "Set RQJOBS_ADMIN_PASSWORD to serve a network, or to serve through a proxy.",
            )
        if request.method not in SAFE_METHODS and not is_same_origin():
            return message(403, "Refused", explain_refusal())
        return None

    def _check_user(self) -> Any:
        """None if the request has a user, whose access is in `g` then; else the refusal."""
        try:
            if self.authorize is not None:
                return self._ask_application()
            if self.is_logged_in():
                g.rqjobs_access = Access(Role.ADMIN, self.user)
                return None
        except redis.RedisError as error:
            if request.blueprint:  # its own handler makes the response
                raise
            return redis_error(error)
        if request.method in ("GET", "HEAD") and _prefers_html():
            return redirect(url_for("rqjobs.login", next=request.full_path.rstrip("?")), 303)
        return message(401, "Log in first", "You are not logged in, or your session has ended.")

    def _ask_application(self) -> Any:
        """Let `authorize` decide. An error in it is logged, and refuses the request."""
        assert self.authorize is not None
        try:
            answer = current_app.ensure_sync(self.authorize)(request)
            if isinstance(answer, WerkzeugResponse):
                g.rqjobs_is_foreign = True
                return answer
            found = access.read_access(answer)
        except HTTPException as error:
            g.rqjobs_is_foreign = True
            return error.get_response()
        except Exception as error:
            current_app.logger.error(
                "rqjobs: the pages are closed, because the application's authorize function "
                "failed: %s: %s",
                type(error).__name__,
                error,
                exc_info=not isinstance(error, access.InvalidAccess),
            )
            found = STRANGER
        if found.role is Role.NONE:
            return message(403, "No access", "This application does not let you see its jobs.")
        g.rqjobs_access = found
        g.rqjobs_nav = True
        if request.endpoint not in WITHOUT_WARNINGS:
            g.rqjobs_warnings = redis_warnings(_check_session(""))
        return None

    def _check_role(self, refuse: Callable[[int, str, str], Any]) -> Any:
        needed = access.required_role()
        if access.current_access().role >= needed:
            return None
        return refuse(403, "Not allowed", access.explain_refusal(needed))

    def is_public(self) -> bool:
        """Whether the request needs no login."""
        if request.endpoint == "rqjobs.static":
            return (request.view_args or {}).get("filename") in PUBLIC_FILES
        if self.authorize is not None and request.endpoint == "rqjobs.login":
            return False  # there is no login of ours
        return request.endpoint in PUBLIC_ENDPOINTS

    def add_headers(self, response: Response) -> Response:
        """Set the security headers, and record how an action ended.

        The dashboard has a content policy of its own.
        """
        if not self.protects():
            return response
        recording.finish(response)
        live.finish(response)
        if g.get("rqjobs_is_foreign"):  # the application's own, with styles and scripts of its own
            return response
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        if request.blueprint in ("rqjobs", "rqjobs_api") or g.get("rqjobs_refused"):
            response.headers.setdefault("Content-Security-Policy", PAGE_CONTENT_POLICY)
            response.headers.setdefault("Cache-Control", "no-store")
        return response

    # Sessions

    def session_id(self) -> str | None:
        """The session that the request's cookie names, if its credentials and time are valid.

        `is_logged_in` checks in Redis that this session is still open.
        """
        entry = session.get("rqjobs")
        if not isinstance(entry, list) or len(entry) != 3:
            return None
        fingerprint, since, session_id = entry
        if not isinstance(fingerprint, str) or not isinstance(session_id, str):
            return None
        if not hmac.compare_digest(fingerprint, self.fingerprint):
            return None
        if not 0 <= time.time() - float(since) < SESSION_SECONDS:
            return None
        return session_id

    def is_logged_in(self) -> bool:
        """Whether the session is open. The page's warnings about Redis are read with it."""
        session_id = self.session_id()
        g.rqjobs_nav = session_id is not None  # an error page has the navigation too
        if session_id is None:
            return False
        if request.endpoint in WITHOUT_WARNINGS:
            is_open = logins.is_open(connection.client(), session_id)
            g.rqjobs_nav = is_open
            return is_open
        check = _check_session(session_id)
        g.rqjobs_nav = check.is_open
        g.rqjobs_warnings = redis_warnings(check)
        return check.is_open

    def check_credentials(self, user: str, password: str) -> bool:
        """Whether the credentials are right. The check takes equally long if they are wrong."""
        is_user = hmac.compare_digest(user.encode(), self.user.encode())
        is_password = hmac.compare_digest(password.encode(), self.password.encode())
        return is_user and is_password

    def rate_limits(self) -> list[RateLimit]:
        """The counters of wrong passwords for this request.

        A browser that has logged in before has a counter of its own. So an attacker cannot lock it
        out, even from the same address: behind a proxy all clients have the same one.
        """
        cookie = request.cookies.get(of_port(DEVICE_COOKIE), "")
        try:
            device = self.devices.loads(cookie, max_age=DEVICE_SECONDS)
        except itsdangerous.BadData:
            client = client_network(request.remote_addr)
            return [
                RateLimit(client, PASSWORD_FREE_ATTEMPTS, CLIENT_MAX_PAUSE_SECONDS),
                RateLimit("", TOTAL_FREE_ATTEMPTS, TOTAL_MAX_PAUSE_SECONDS),
            ]
        return [RateLimit(f"device:{device}", PASSWORD_FREE_ATTEMPTS, CLIENT_MAX_PAUSE_SECONDS)]


def _check_session(session_id: str) -> logins.SessionCheck:
    client = connection.client()
    live.begin_reading(client)
    return logins.check_session(client, session_id)


def _prefers_html() -> bool:
    """Whether a browser asks. Programs such as Prometheus and curl accept any type, without its name."""
    kinds = ["text/html", "application/json"]
    if "text/html" not in request.accept_mimetypes.values():
        return False
    return request.accept_mimetypes.best_match(kinds, "application/json") == "text/html"


def current_auth() -> Auth:
    return cast(Auth, current_app.extensions["rqjobs"])


def is_local_path(path: str) -> bool:
    """Whether a browser that is redirected to `path` stays under our prefix."""
    is_plain = path.isprintable() and "\\" not in path and not path.startswith("//")
    return is_plain and path.startswith(current_auth().prefix + "/")


@pages.route("/login", methods=["GET", "POST"])
def login() -> Any:
    auth = _own_login()
    target = request.values.get("next", "")
    auth.print_login()
    if request.method != "POST":
        return page("login.html", wanted=target)
    if request.form.get("link"):
        return _use_link(auth, target)
    limits = auth.rate_limits()
    pause = ceil(logins.count_attempt(connection.client(), limits))
    if pause:
        response = page(
            "login.html",
            429,
            wanted=target,
            error=f"Too many wrong passwords. Wait {pause} s and try again. "
            "This password was not checked.",
        )
        response.headers["Retry-After"] = str(pause)
        return response
    if not auth.check_credentials(request.form.get("user", ""), request.form.get("password", "")):
        recording.count_refused_login()
        return page("login.html", 401, wanted=target, error="Wrong name or password.")
    return _log_in(auth, target, limits)


def _use_link(auth: Auth, target: str) -> Any:
    """Log in by the token of a login link. The token is in no address, so no log has it."""
    token = request.form["link"]
    if not logins.use_link(connection.client(), token, generated_secrets.secret_key()):
        recording.count_refused_login()
        text = "This link was used already, or it has expired. Log in with the password."
        return page("login.html", 401, wanted=target, error=text)
    return _log_in(auth, target, auth.rate_limits(), "by a login link")


def _log_in(auth: Auth, target: str, limits: list[RateLimit], note: str = "") -> Any:
    """Open a session and redirect to the page that was asked for."""
    session_id = secrets.token_hex(16)
    logins.open_session(connection.client(), session_id, SESSION_SECONDS, limits)
    if current_app.import_name == "rqjobs.web":  # in another app, other entries are that app's
        session.clear()
    recording.record_login(auth.user, note)
    session["rqjobs"] = [auth.fingerprint, int(time.time()), session_id]
    return _welcome(auth, target)


def _login_link() -> str:
    """A line with a new login link; nothing without Redis.

    A browser does not send the part behind the `#`.
    """
    try:
        token = logins.create_link(connection.client(), generated_secrets.secret_key())
    except (redis.RedisError, config.ConfigError):
        return ""
    address = f"{url_for('rqjobs.login', _external=True)}#{token}"
    return f"\nrqjobs: or open once, within {logins.LINK_SECONDS // 60} minutes: {address}"


def _own_login() -> Auth:
    """The access rules. Aborts with 404 if the application's login decides."""
    auth = current_auth()
    if auth.authorize is not None:
        abort(404)
    return auth


def _welcome(auth: Auth, target: str) -> Any:
    """A redirect to the page that was asked for, with the cookie that recognizes this browser."""
    address = url_for("rqjobs.home")
    if is_local_path(target):
        address = request.script_root + target
    response = redirect(address, 303)
    response.set_cookie(
        of_port(DEVICE_COOKIE),
        str(auth.devices.dumps(secrets.token_hex(8))),
        max_age=DEVICE_SECONDS,
        httponly=True,
        samesite="Lax",
        secure=is_https(),
        path=url_for("rqjobs.login"),
    )
    return response


@pages.post("/logout")
@requires(Role.READ)
def logout() -> Any:
    """End the session in Redis too, so that a copy of the cookie is worthless."""
    logins.close_session(connection.client(), _own_login().session_id() or "")
    session.pop("rqjobs", None)
    return redirect(url_for("rqjobs.login"), 303)


@pages.get("/healthz")
def healthz() -> Any:
    """200 if Redis answers, else 503 with the reason. No login is needed."""
    try:
        connection.client().ping()
    except (redis.RedisError, config.ConfigError) as error:
        return Response(f"{connection.explain(error)}\n", 503, mimetype="text/plain")
    return Response("ok\n", mimetype="text/plain")
