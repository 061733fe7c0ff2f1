"""The guard: one check in front of every path under the prefix, our pages' and the dashboard's alike.

In this order: where the request comes from, whether another site sent it, whether somebody is logged in.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from typing import Any, cast
from urllib.parse import urlsplit

import itsdangerous
import redis
from flask import Blueprint, Flask, Response, current_app, g, redirect, render_template, request, session, url_for
from flask.sessions import SecureCookieSessionInterface
from werkzeug.exceptions import HTTPException, NotFound

from rqjobs import config, connection

SAFE = ("GET", "HEAD", "OPTIONS")
OPEN = ("rqjobs.login", "rqjobs.healthz")
LIFETIME = 12 * 3600  # seconds that a login lasts
DEVICE_LIFETIME = 180 * 24 * 3600  # seconds that a browser is remembered as one that has logged in
FREE_TRIES, FREE_TRIES_OF_ALL = 3, 30  # wrong passwords without a pause, of one address and of all together
LONGEST_PAUSE, LONGEST_PAUSE_OF_ALL = 60, 2  # seconds
REMEMBERED = 900  # seconds after the last wrong password for which they are counted
HEADERS = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "same-origin"}
CSP = ("default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
       "frame-ancestors 'none'")

# Count a try before it is judged, so that a thousand tries at once are not all the first; or refuse it.
# KEYS: pairs of a counter and a pause. ARGV: how long counters live, then for each pair how many tries are free and
# the longest pause, in seconds. Returns 0, or the milliseconds that are left of a pause.
_TRY = """
for i = 1, #KEYS, 2 do
  local left = redis.call('PTTL', KEYS[i + 1])
  if left > 0 then return left end
end
for i = 1, #KEYS, 2 do
  local over = redis.call('INCR', KEYS[i]) - ARGV[i + 1]
  redis.call('EXPIRE', KEYS[i], ARGV[1])
  if over >= 0 then redis.call('SET', KEYS[i + 1], 1, 'EX', math.min(2 ^ math.min(over, 20), ARGV[i + 2])) end
end
return 0
"""

pages = Blueprint("rqjobs", __name__, template_folder="templates", static_folder="static", static_url_path="/assets")


class Session(SecureCookieSessionInterface):
    """Flask's own session, whose cookie is Secure too whenever the browser speaks https."""

    def get_cookie_secure(self, app: Flask) -> bool:
        return super().get_cookie_secure(app) or over_https()


class Guard:
    """Who may come in. Made once for an app; `guard()` finds it again."""

    def __init__(self, app: Flask, prefix: str):
        settings = config.current()
        self.app, self.prefix, self.user = app, prefix, settings.admin_user
        self.local_only = not settings.admin_password
        self.password = settings.admin_password or settings.one_time_password or secrets.token_urlsafe(12)
        key = app.secret_key.encode() if isinstance(app.secret_key, str) else cast(bytes, app.secret_key)
        credentials = f"{self.user}\0{self.password}".encode()
        self.fingerprint = hmac.new(key, credentials, hashlib.sha256).hexdigest()
        self.devices = itsdangerous.URLSafeTimedSerializer(key, salt=f"rqjobs.device.{self.fingerprint}")
        app.extensions["rqjobs"] = self
        app.before_request(self.check)
        app.after_request(self.protect)

    def covers(self) -> bool:
        """Whether this request is for what we guard; by its path, and by the rule that would answer it."""
        rule = request.url_rule.rule if request.url_rule else ""
        return any(path == self.prefix or path.startswith(self.prefix + "/") for path in (request.path, rule))

    def check(self) -> Any:
        """None to let the request in, else what is answered instead."""
        if not self.covers():
            return None
        g.rqjobs_refused = True
        if self.local_only and not from_this_machine():
            return message(403, "Only this machine is served", "Set RQJOBS_ADMIN_PASSWORD to serve a network.")
        if request.method not in SAFE and not from_our_pages():
            return message(403, "Refused", "This did not come from a page of this site (by its Sec-Fetch-Site, Origin "
                                           "and Referer headers). A script must send Origin.")
        stylesheet = request.endpoint == "rqjobs.static" and (request.view_args or {}).get("filename") == "rqjobs.css"
        if not (request.endpoint in OPEN or stylesheet or self.logged_in()):
            if request.method in SAFE[:2] and request.accept_mimetypes.best_match(
                ["text/html", "application/json"], "application/json"
            ) == "text/html":
                return redirect(url_for("rqjobs.login", next=request.full_path.rstrip("?")), 303)
            return message(401, "Log in first", "You are not logged in, or not any more.")
        error = request.routing_exception
        if isinstance(error, HTTPException) and (error.code or 0) >= 400:
            return refused(error)
        g.rqjobs_refused = False
        return None

    def protect(self, response: Response) -> Response:
        """Set the headers that keep browsers strict; the dashboard brings a content policy of its own."""
        if self.covers():
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            if request.blueprint == "rqjobs" or g.get("rqjobs_refused"):
                response.headers.setdefault("Content-Security-Policy", CSP)
                response.headers.setdefault("Cache-Control", "no-store")
        return response

    def logged_in(self) -> bool:
        entry = session.get("rqjobs")
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            return False
        return hmac.compare_digest(entry[0], self.fingerprint) and 0 <= time.time() - float(entry[1]) < LIFETIME

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
            device = str(self.devices.loads(request.cookies.get("rqjobs_device", ""), max_age=DEVICE_LIFETIME))
            return [(f"rqjobs:login:device:{device}", FREE_TRIES, LONGEST_PAUSE)]
        except itsdangerous.BadData:
            return [(f"rqjobs:login:{network(request.remote_addr)}", FREE_TRIES, LONGEST_PAUSE),
                    ("rqjobs:login", FREE_TRIES_OF_ALL, LONGEST_PAUSE_OF_ALL)]


def guard() -> Guard:
    return cast(Guard, current_app.extensions["rqjobs"])


@pages.route("/login", methods=["GET", "POST"])
def login() -> Any:
    wanted = request.values.get("next", "")
    if request.method != "POST":
        return page("login.html", wanted=wanted)
    throttles = guard().throttles()
    keys = [name for key, _, _ in throttles for name in (key, f"{key}:pause")]
    limits = [number for _, free, longest in throttles for number in (free, longest)]
    wait = int(cast(int, connection.client().register_script(_TRY)(keys=keys, args=[REMEMBERED, *limits])))
    if wait:
        seconds = -(-wait // 1000)
        answer = page("login.html", 429, wanted=wanted, error=f"Too many wrong passwords. Wait {seconds} s, then try "
                                                              f"again; what you typed was not looked at.")
        answer.headers["Retry-After"] = str(seconds)
        return answer
    if not guard().are_right(request.form.get("user", ""), request.form.get("password", "")):
        return page("login.html", 401, wanted=wanted, error="Wrong name or password.")
    connection.client().delete(*keys[:2])
    if current_app.import_name == "rqjobs.web":  # in somebody else's app the rest of the session is theirs
        session.clear()
    session["rqjobs"] = [guard().fingerprint, int(time.time())]
    welcome = redirect(request.script_root + wanted if is_ours(wanted) else url_for("rqjobs.home"), 303)
    welcome.set_cookie("rqjobs_device", str(guard().devices.dumps(secrets.token_hex(8))),
                       max_age=DEVICE_LIFETIME, httponly=True, samesite="Lax", secure=over_https(),
                       path=url_for("rqjobs.login"))
    return welcome


@pages.post("/logout")
def logout() -> Any:
    session.pop("rqjobs", None)
    return redirect(url_for("rqjobs.login"), 303)


@pages.get("/healthz")
def healthz() -> Any:
    try:
        connection.client().ping()
    except (redis.RedisError, config.ConfigError) as error:
        return Response(f"{reason(error)}\n", 503, mimetype="text/plain")
    return Response("ok\n", mimetype="text/plain")


@pages.errorhandler(redis.RedisError)
def no_redis(error: redis.RedisError) -> Any:
    return message(503, "Redis does not answer", reason(error))


@pages.errorhandler(HTTPException)
def refused(error: HTTPException) -> Any:
    if isinstance(error, NotFound):
        return message(404, "Not here", "There is no such page, or the job is gone: jobs that have ended are kept for "
                                        "a while only.")
    return message(error.code or 500, error.name, error.description or "")


def page(template: str, status: int = 200, **values: Any) -> Response:
    """Our template `template`, with what every page shows."""
    note = session.pop("rqjobs_note", None) if "rqjobs_note" in session else None
    html = render_template(f"rqjobs/{template}", nav=guard().logged_in(), note=note, **values)
    return Response(html, status, mimetype="text/html")


def message(status: int, title: str, text: str) -> Response:
    """A page of a title and a sentence, for what went wrong."""
    return page("message.html", status, title=title, text=text)


def reason(error: Exception) -> str:
    """What went wrong, in one line, without the password of the Redis."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    address = config.current().redis_url or ""
    secret = urlsplit(address).password if "," not in address else None
    return line.replace(address, connection.without_password(address)).replace(secret or "\0", "***")


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
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False).network_address)


def from_this_machine() -> bool:
    """Whether the peer is this machine, by no proxy, under no name that a foreign site could have pointed here."""
    forwarded = any(name in request.headers for name in ("X-Forwarded-For", "Forwarded", "X-Forwarded-Host", "Via"))
    try:
        name = urlsplit("//" + request.headers.get("Host", "")).hostname
    except ValueError:
        return False
    return not forwarded and config.is_loopback(request.remote_addr) and name in ("localhost", "127.0.0.1", "::1")


def from_our_pages() -> bool:
    """Whether a browser says that a page of this very site sends this, or a script claims to be one."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    try:
        source = urlsplit(request.headers.get("Origin") or request.headers.get("Referer") or "").netloc
    except ValueError:
        return False
    return source != "" and source.lower() == request.host.lower()


def over_https() -> bool:
    """Whether the browser speaks https, as far as we can tell; only ever used to make a cookie stricter."""
    return request.is_secure or request.headers.get("X-Forwarded-Proto", "").lower().startswith("https")
