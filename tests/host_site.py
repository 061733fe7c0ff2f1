"""An application with a login of its own. A key in Redis is its answer to a request of our pages."""

from typing import Any

from flask import Flask, Response, redirect

from rqjobs import connection
from rqjobs.web import init_app

ANSWER = "host:answer"
ANSWERS = {
    b"redirect": lambda: redirect("/host-login", 302),
    b"page": lambda: Response("<h1>The login of the application</h1>", mimetype="text/html"),
    b"none": lambda: None,
}


def authorize(request: Any) -> Any:
    """Everybody is an admin, unless the key has one of the `ANSWERS`."""
    answer = connection.client().get(ANSWER)
    return ANSWERS[answer]() if answer else "admin"


def create_app() -> Flask:
    app = Flask("host")
    app.add_url_rule("/host-login", view_func=lambda: "<h1>The login of the application</h1>")
    init_app(app, authorize=authorize)
    return app
