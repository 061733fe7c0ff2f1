"""The web pages: `create_app()` for an app of our own, `init_app()` to put the pages into yours.

The process that serves them never unpickles and never imports anything that it found in Redis.
"""

from __future__ import annotations

from flask import Flask
from flask.sessions import SecureCookieSessionInterface

from rqjobs import config, rq_patches
from rqjobs.web import rq_dashboard as dashboard
from rqjobs.web import views as views  # its pages
from rqjobs.web.auth import Guard, Session, pages


def create_app() -> Flask:
    """The admin pages as an app of their own, at `/`; for example `gunicorn 'rqjobs.web:create_app()'`.

    Raises:
        ConfigError: HOST opens the pages to a network, but there is no RQJOBS_ADMIN_PASSWORD.
    """
    rq_patches.install()
    settings = config.current()
    config.require_password_for_network(settings)
    app = Flask("rqjobs.web")
    largest = (
        4 * settings.max_payload_bytes + 64 * 1024
    )  # a form may take three bytes for one, and has more fields
    app.config.update(
        SESSION_COOKIE_NAME="rqjobs_session",  # browsers do not tell ports apart: not every app's "session"
        MAX_CONTENT_LENGTH=largest,
        MAX_FORM_MEMORY_SIZE=largest,
    )
    init_app(app)
    return app


def init_app(app: Flask, url_prefix: str = "") -> None:
    """Put the pages and the dashboard into `app`, all behind our guard; what is not under `url_prefix` is untouched.

    The login lives in the app's own session, under the one key "rqjobs". Only what the app left at Flask's defaults is
    changed, for its session cookie: SameSite becomes Lax, and over https the cookie is Secure. An app without a
    secret key gets SECRET_KEY, or when the first request comes one that is kept in the data folder. With an empty
    `url_prefix` the guard covers every route of the app. Nothing is printed or written before a request comes.

    Stock queues of this process go on writing pickle, for stock workers. But nothing here unpickles by RQ's default
    any longer, so a stock job's arguments, meta and result cannot be read here. To read them, pass
    `serializer=rq.serializers.DefaultSerializer` to RQ, or serve `create_app()` in a process of its own.
    """
    rq_patches.install(shared=True)
    prefix = "/" + url_prefix.strip("/") if url_prefix.strip("/") else ""
    app.secret_key = app.secret_key or config.current().secret_key
    if app.config["SESSION_COOKIE_SAMESITE"] is None:
        app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
    if type(app.session_interface) is SecureCookieSessionInterface:
        app.session_interface = Session()
    Guard(app, prefix)
    app.register_blueprint(pages, url_prefix=prefix or None)
    dashboard.mount(app, prefix)
