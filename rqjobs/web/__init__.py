"""The web pages: `create_app()` is an app of their own, `init_app()` puts them into your app.

The process that serves them never unpickles, and never imports a name from Redis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask
from flask.sessions import SecureCookieSessionInterface

from rqjobs import config, rq_patches
from rqjobs.web import alert_thread as alert_thread
from rqjobs.web import rq_dashboard
from rqjobs.web import views as views  # importing them adds them to the blueprint
from rqjobs.web.access import Access as Access
from rqjobs.web.access import Role as Role
from rqjobs.web.api import registration
from rqjobs.web.auth import Auth, OwnSessionInterface, SessionInterface
from rqjobs.web.rendering import pages


def create_app() -> Flask:
    """The admin pages as an app of their own, at `/`.

    For example `gunicorn 'rqjobs.web:create_app()'`.

    Raises:
        ConfigError: HOST serves a network, but RQJOBS_ADMIN_PASSWORD is not set.
    """
    rq_patches.install()
    settings = config.current()
    config.require_password_for_network(settings)
    app = Flask("rqjobs.web")
    # A form may take three bytes for one byte of a payload, and has other fields too.
    max_form_bytes = 4 * settings.max_payload_bytes + 64 * 1024
    app.config.update(
        # The name must differ from that of other apps on the same host.
        SESSION_COOKIE_NAME="rqjobs_session",
        MAX_CONTENT_LENGTH=max_form_bytes,
        MAX_FORM_MEMORY_SIZE=max_form_bytes,
    )
    app.session_interface = OwnSessionInterface()
    init_app(app)
    return app


def init_app(
    app: Flask, url_prefix: str = "", authorize: Callable[[Any], Any] | None = None
) -> None:
    """Put the pages and the dashboard into `app`, all behind a login.

    `authorize(request)` makes the application's own login decide. It is called once for each
    request of our pages, and returns None, "read", "operate", "admin", a `Role`, an
    `Access(role, user)`, or a response for a stranger, such as a redirect to the login. Then there
    is no login of ours, and no session. If it raises, or returns anything else, the request is
    refused and a line is logged. Routes outside our pages are not affected.

    Without `authorize` our login decides. Routes outside `url_prefix` are not affected. With an
    empty `url_prefix` the login protects every route of the app. Nothing is printed or written
    before the first request.

    The login is stored in the app's own session, under the key "rqjobs". Only settings that the app
    has left at Flask's defaults change: the session cookie becomes SameSite=Lax, and Secure over
    https. An app without a secret key gets SECRET_KEY; without that setting, the first request
    generates a key in the data folder.

    Plain RQ queues of this process still write pickle, for plain RQ workers. But nothing in this
    process unpickles by RQ's default any more, so it cannot read the arguments, meta and result of
    their jobs. To read them, pass `serializer=rq.serializers.DefaultSerializer` to RQ, or serve
    `create_app()` in a process of its own.

    Raises:
        TypeError: `authorize` is not callable.
    """
    if authorize is not None and not callable(authorize):
        raise TypeError(f"authorize={authorize!r} is not callable; give a function of the request")
    rq_patches.install(shared=True)
    prefix = ""
    if url_prefix.strip("/"):
        prefix = "/" + url_prefix.strip("/")
    app.secret_key = app.secret_key or config.current().secret_key
    if app.config["SESSION_COOKIE_SAMESITE"] is None:
        app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
    if type(app.session_interface) is SecureCookieSessionInterface:
        app.session_interface = SessionInterface()
    Auth(app, prefix, authorize)
    app.register_blueprint(pages, url_prefix=prefix or None)
    app.register_blueprint(registration.api, url_prefix=f"{prefix}/api")
    rq_dashboard.mount(app, prefix)
