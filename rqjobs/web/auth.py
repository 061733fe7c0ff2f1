"""The guard: one check in front of every path under the prefix, our pages' and the dashboard's alike.

In this order: where the request comes from, whether another site sent it, whether somebody is logged in.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import sys
import time
from functools import cached_property
from typing import Any, cast
from urllib.parse import urlsplit

import itsdangerous
import redis
from flask import (
    Blueprint,
    Flask,
    Response,
    current_app,
    g,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask.sessions import SecureCookieSessionInterface
from rq.suspension import WORKERS_SUSPENDED
from werkzeug.exceptions import BadRequest, HTTPException, NotFound

from rqjobs import config, connection, stats
from rqjobs.broker import scripts
from rqjobs.web.generated_secrets import kept

SAFE = ("GET", "HEAD", "OPTIONS")
OPEN = ("rqjobs.login", "rqjobs.healthz")
LIFETIME = 12 * 3600  # seconds that a login lasts
DEVICE_LIFETIME = 180 * 24 * 3600  # seconds that a browser is remembered as one that has logged in
FREE_TRIES, FREE_TRIES_OF_ALL = (
    3,
    30,
)  # wrong passwords without a pause, of one address and of all together
LONGEST_PAUSE, LONGEST_PAUSE_OF_ALL = 60, 2  # seconds
REMEMBERED = 900  # seconds after the last wrong password for which they are counted
FULL = 0.98  # of maxmemory; at about that Redis refuses writes
PROXIES = (
    "forwarded",
    "via",
    "x-real-ip",
    "cf-connecting-ip",
    "true-client-ip",
    "x-client-ip",
)  # what proxies add
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}
CSP = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)

SESSIONS = "rqjobs:sessions"  # sorted set, login -> when it ends, in Redis's clock

pages = Blueprint(
    "rqjobs",
    __name__,
    template_folder="templates",
    static_folder="static",
    static_url_path="/assets",
)


class Session(SecureCookieSessionInterface):
    """Flask's own session, whose cookie is Secure too whenever the browser speaks https, and signed by a key always."""

    def get_cookie_secure(self, app: Flask) -> bool:
        return super().get_cookie_secure(app) or over_https()

    def get_signing_serializer(self, app: Flask) -> Any:
        key_of(app)
        return super().get_signing_serializer(app)


def key_of(app: Flask) -> bytes:
    """The app's secret key; if it has none, it gets one of chance, which gives nobody anything to guess against."""
    if not app.secret_key:
        app.secret_key = kept("secret-key", "SECRET_KEY, the same everywhere")
    return app.secret_key.encode() if isinstance(app.secret_key, str) else app.secret_key


class Guard:
    """Who may come in. Made once for an app; `guard()` finds it again."""

    def __init__(self, app: Flask, prefix: str):
        settings = config.current()
        self.app, self.prefix, self.user = app, prefix, settings.admin_user
        self.local_only = not settings.admin_password
        self.given = settings.admin_password or settings.one_time_password
        self.said = False
        app.extensions["rqjobs"] = self
        app.before_request(self.check)
        app.after_request(self.protect)

    @cached_property
    def password(self) -> str:
        return self.given or kept("admin-password", "RQJOBS_ADMIN_PASSWORD")

    @cached_property
    def fingerprint(self) -> str:
        """What a login is for: other credentials or another key, and it is none."""
        credentials = f"{self.user}\0{self.password}".encode()
        return hmac.new(key_of(self.app), credentials, hashlib.sha256).hexdigest()

    @cached_property
    def devices(self) -> itsdangerous.URLSafeTimedSerializer:
        return itsdangerous.URLSafeTimedSerializer(
            key_of(self.app), salt=f"rqjobs.device.{self.fingerprint}"
        )

    def say_password(self) -> None:
        """Tell whoever started this server the password that nobody set; once, and only when somebody asks to log in:
        what imports the app without serving it has no business with it."""
        if not (self.given or self.said):
            self.said = True
            print(
                f"rqjobs: no RQJOBS_ADMIN_PASSWORD is set, so only this machine is served. "
                f"Log in as {self.user} with: {self.password}",
                file=sys.stderr,
                flush=True,
            )

    def covers(self) -> bool:
        """Whether this request is for what we guard; by its path, and by the rule that would answer it."""
        rule = request.url_rule.rule if request.url_rule else ""
        return any(
            path == self.prefix or path.startswith(self.prefix + "/")
            for path in (request.path, rule)
        )

    def check(self) -> Any:
        """None to let the request in, else what is answered instead."""
        if not self.covers():
            return None
        g.rqjobs_refused = True
        error = request.routing_exception
        if isinstance(
            error, BadRequest
        ):  # by a Host that is no name of a host; no address can be made for a link
            return Response("The Host header is no host name.\n", 400, mimetype="text/plain")
        if self.local_only and not from_this_machine():
            return message(
                403,
                "Only this machine is served",
                "Set RQJOBS_ADMIN_PASSWORD to serve a network, or through a proxy.",
            )
        if request.method not in SAFE and not from_our_pages():
            return message(403, "Refused", why_refused())
        try:
            may_enter = self.is_open() or self.logged_in()
        except redis.RedisError as trouble:
            if request.blueprint:  # its own handler answers
                raise
            return no_redis(trouble)
        if not may_enter:
            if (
                request.method in SAFE[:2]
                and request.accept_mimetypes.best_match(
                    ["text/html", "application/json"], "application/json"
                )
                == "text/html"
            ):
                return redirect(url_for("rqjobs.login", next=request.full_path.rstrip("?")), 303)
            return message(401, "Log in first", "You are not logged in, or not any more.")
        if isinstance(error, HTTPException) and (error.code or 0) >= 400:
            return refused(error)
        g.rqjobs_refused = False
        return None

    def is_open(self) -> bool:
        """Whether a stranger may see this."""
        return request.endpoint in OPEN or (
            request.endpoint == "rqjobs.static"
            and (request.view_args or {}).get("filename") == "rqjobs.css"
        )

    def protect(self, response: Response) -> Response:
        """Set the headers that keep browsers strict; the dashboard brings a content policy of its own."""
        if self.covers():
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            if request.blueprint == "rqjobs" or g.get("rqjobs_refused"):
                response.headers.setdefault("Content-Security-Policy", CSP)
                response.headers.setdefault("Cache-Control", "no-store")
        return response

    def login_id(self) -> str | None:
        """The login that the request's cookie is for; whether that has ended, only Redis knows."""
        entry = session.get("rqjobs")
        if not (
            isinstance(entry, list)
            and len(entry) == 3
            and all(isinstance(part, str) for part in entry[::2])
        ):
            return None
        right = (
            hmac.compare_digest(entry[0], self.fingerprint)
            and 0 <= time.time() - float(entry[1]) < LIFETIME
        )
        return entry[2] if right else None

    def logged_in(self) -> bool:
        """Whether somebody is. In the same round trip it is asked how Redis is, for the banner of the page."""
        login = self.login_id()
        g.rqjobs_nav = login is not None
        if login is None:
            return False
        with connection.client().pipeline(transaction=False) as pipe:
            pipe.zscore(SESSIONS, login)
            pipe.exists(WORKERS_SUSPENDED)
            pipe.info("memory")
            ends, suspended, memory = pipe.execute(raise_on_error=False)
        if isinstance(ends, Exception) and connection.refusal_code(ends):
            raise ends
        g.rqjobs_nav = isinstance(ends, float)  # what else may stand there is no login
        g.rqjobs_warnings = warnings(suspended, memory)
        return bool(g.rqjobs_nav)

    def are_right(self, user: str, password: str) -> bool:
        """Whether these are the credentials; takes as long for wrong ones."""
        user_right = hmac.compare_digest(user.encode(), self.user.encode())
        return hmac.compare_digest(password.encode(), self.password.encode()) & user_right

    def throttles(self) -> list[tuple[str, int, int]]:
        """Whose wrong passwords count against this request: (key, free tries, longest pause).

        A browser that has logged in before is counted by itself, so that nobody else can keep the admin out, even
        from the same address (everybody has the same one behind a proxy).
        """
        try:
            device = str(
                self.devices.loads(
                    request.cookies.get("rqjobs_device", ""), max_age=DEVICE_LIFETIME
                )
            )
            return [(f"rqjobs:login:device:{device}", FREE_TRIES, LONGEST_PAUSE)]
        except itsdangerous.BadData:
            return [
                (f"rqjobs:login:{network(request.remote_addr)}", FREE_TRIES, LONGEST_PAUSE),
                ("rqjobs:login", FREE_TRIES_OF_ALL, LONGEST_PAUSE_OF_ALL),
            ]


def guard() -> Guard:
    return cast(Guard, current_app.extensions["rqjobs"])


@pages.route("/login", methods=["GET", "POST"])
def login() -> Any:
    wanted = request.values.get("next", "")
    guard().say_password()
    if request.method != "POST":
        return page("login.html", wanted=wanted)
    throttles = guard().throttles()
    keys = [name for key, _, _ in throttles for name in (key, f"{key}:pause")]
    limits = [number for _, free, longest in throttles for number in (free, longest)]
    wait = int(scripts.TRY_LOGIN.run(connection.client(), keys, [REMEMBERED, *limits]))
    if wait:
        seconds = -(-wait // 1000)
        answer = page(
            "login.html",
            429,
            wanted=wanted,
            error=f"Too many wrong passwords. Wait {seconds} s, then try "
            f"again; what you typed was not looked at.",
        )
        answer.headers["Retry-After"] = str(seconds)
        return answer
    if not guard().are_right(request.form.get("user", ""), request.form.get("password", "")):
        return page("login.html", 401, wanted=wanted, error="Wrong name or password.")
    login = secrets.token_hex(16)
    scripts.LOG_IN.run(connection.client(), [SESSIONS, *keys[:2]], [login, LIFETIME])
    if (
        current_app.import_name == "rqjobs.web"
    ):  # in somebody else's app the rest of the session is theirs
        session.clear()
    session["rqjobs"] = [guard().fingerprint, int(time.time()), login]
    welcome = redirect(
        request.script_root + wanted if is_ours(wanted) else url_for("rqjobs.home"), 303
    )
    welcome.set_cookie(
        "rqjobs_device",
        str(guard().devices.dumps(secrets.token_hex(8))),
        max_age=DEVICE_LIFETIME,
        httponly=True,
        samesite="Lax",
        secure=over_https(),
        path=url_for("rqjobs.login"),
    )
    return welcome


@pages.post("/logout")
def logout() -> Any:
    connection.client().zrem(
        SESSIONS, guard().login_id() or ""
    )  # the cookie opens nothing any more, whoever has it
    session.pop("rqjobs", None)
    return redirect(url_for("rqjobs.login"), 303)


@pages.get("/healthz")
def healthz() -> Any:
    try:
        connection.client().ping()
    except (redis.RedisError, config.ConfigError) as error:
        return Response(f"{connection.explain(error)}\n", 503, mimetype="text/plain")
    return Response("ok\n", mimetype="text/plain")


@pages.errorhandler(redis.RedisError)
def no_redis(error: redis.RedisError) -> Any:
    if isinstance(error, redis.ResponseError) and not connection.refusal_code(error):
        return message(409, "Something else stands there", connection.explain(error))
    return message(
        503,
        "Redis refuses this" if connection.refusal_code(error) else "Redis does not answer",
        connection.explain(error),
    )


@pages.errorhandler(HTTPException)
def refused(error: HTTPException) -> Any:
    if isinstance(error, NotFound):
        return message(
            404,
            "Not here",
            "There is no such page, or the job is gone: jobs that have ended are kept for "
            "a while only.",
        )
    return message(error.code or 500, error.name, error.description or "")


def page(template: str, status: int = 200, **values: Any) -> Response:
    """Our template `template`, with what every page shows."""
    note = session.pop("rqjobs_note", None) if "rqjobs_note" in session else None
    html = render_template(
        f"rqjobs/{template}",
        nav=g.get("rqjobs_nav", False),
        note=note,
        warnings=g.get("rqjobs_warnings", []),
        **values,
    )
    return Response(
        html.encode(errors="backslashreplace"), status, mimetype="text/html"
    )  # half an emoji, for example


def message(status: int, title: str, text: str) -> Response:
    """A page of a title and a sentence, for what went wrong."""
    return page("message.html", status, title=title, text=text)


def warnings(suspended: Any, memory: Any) -> list[str]:
    """What every page says about the Redis: `memory` is what it says of that, or why it does not."""
    found = [stats.SUSPENDED] if isinstance(suspended, int) and suspended else []
    if (
        isinstance(memory, dict)
        and memory.get("maxmemory")
        and memory.get("maxmemory_policy") == "noeviction"
    ):
        used = memory.get("used_memory", 0) - memory.get("mem_not_counted_for_evict", 0)
        if used >= FULL * memory["maxmemory"]:
            found.append(connection.REFUSAL_MEANINGS["OOM"])
    return found


LISTS = {
    "failed": "rqjobs.failed",
    "delayed": "rqjobs.delayed_jobs",
    "schedules": "rqjobs.schedules",
}


def back(endpoint: str, **values: Any) -> Any:
    """After an action: to the list in which its button was, with the queue and the page that it showed; from elsewhere
    to `endpoint`."""
    wanted = request.form.get("back", "")
    if wanted in LISTS:
        endpoint = LISTS[wanted]
        values = {name: request.form.get(name) or None for name in ("queue", "page")}
    return redirect(url_for(endpoint, **values), 303)


def is_ours(path: str) -> bool:
    """Whether a browser that is sent to `path` stays under our prefix."""
    plain = path.isprintable() and "\\" not in path and not path.startswith("//")
    return plain and path.startswith(guard().prefix + "/")


def network(address: str | None) -> str:
    """What counts as one address: of IPv6, the /64 that one household or server has."""
    try:
        ip = ipaddress.ip_address(address or "")
    except ValueError:
        return "local"
    return (
        str(ip)
        if ip.version == 4
        else str(ipaddress.ip_network((ip, 64), strict=False).network_address)
    )


def from_this_machine() -> bool:
    """Whether the peer is this machine, under no name that a foreign site could have pointed here, and by no proxy.

    A proxy betrays itself by what it adds, by the Origin that it passes on, or by HTTP/1.0, which browsers do not speak
    and nginx does by default. One that hides all of it looks like a program on this machine: the password remains.
    """
    headers = request.headers
    forwarded = any(
        name.lower().startswith("x-forwarded") or name.lower() in PROXIES for name, _ in headers
    )
    origin = headers.get("Origin", "null")
    try:
        names = {urlsplit("//" + headers.get("Host", "")).hostname}
        names |= set() if origin == "null" else {urlsplit(origin).hostname}
    except ValueError:
        return False
    return (
        not forwarded
        and request.environ.get("SERVER_PROTOCOL") != "HTTP/1.0"
        and config.is_loopback(request.remote_addr)
        and names <= {"localhost", "127.0.0.1", "::1"}
    )


def source() -> str:
    """The host of the page that sends this, by Origin or Referer; "" if they do not say."""
    try:
        return urlsplit(
            request.headers.get("Origin") or request.headers.get("Referer") or ""
        ).netloc
    except ValueError:
        return ""


def from_our_pages() -> bool:
    """Whether a browser says that a page of this very site sends this, or a script claims to be one."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    return source() != "" and source().lower() == request.host.lower()


def why_refused() -> str:
    """What `from_our_pages` found, and what to do if it was wrong."""
    if "Sec-Fetch-Site" in request.headers or not source():
        return (
            "This did not come from a page of this site (by its Sec-Fetch-Site, Origin and Referer headers). A "
            "script must send Origin."
        )
    return (
        f"The browser says that this comes from a page of {source()[:100]} (by Origin or Referer), but this app "
        f"was asked as {request.host[:100]} (by Host). A proxy between them must pass on the Host that the browser "
        f"sent; nginx does it with: proxy_set_header Host $http_host;"
    )


def over_https() -> bool:
    """Whether the browser speaks https, as far as we can tell; only ever used to make a cookie stricter."""
    return request.is_secure or request.headers.get("X-Forwarded-Proto", "").lower().startswith(
        "https"
    )
