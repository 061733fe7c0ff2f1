"""The page of settings: each with its value and its source. Secrets are hidden."""

from __future__ import annotations

import os
import platform
import socket
from typing import Any

import rq

import rqjobs
from rqjobs import catalog, config, connection
from rqjobs.web.access import Role, requires
from rqjobs.web.rendering import cut, page, pages

HIDDEN_SETTING = "set, hidden"


@pages.get("/settings")
@requires(Role.ADMIN)
def settings_page() -> Any:
    """The settings of this process. Other processes may have others."""
    return page("settings.html", settings=[_view(one) for one in config.sources()], facts=_facts())


def _view(setting: config.Setting) -> dict[str, str]:
    return {
        "name": setting.name,
        "value": cut(_text(setting), 500),
        "source": setting.source.value,
    }


def _text(setting: config.Setting) -> str:
    value = setting.value
    if value in (None, "", ()):
        return ""
    if setting.name == "REDIS_URL":
        return connection.mask_password(str(value))
    if setting.is_secret:
        return HIDDEN_SETTING
    if isinstance(value, tuple):
        return ", ".join(str(each) for each in value)
    return str(value)


def _facts() -> list[tuple[str, str]]:
    """Further facts that differ between processes."""
    return [
        ("rqjobs", rqjobs.__version__),
        ("RQ", rq.VERSION),
        ("Python", platform.python_version()),
        ("Process", f"{os.getpid()} on {socket.gethostname()}"),
        ("Folder", cut(os.getcwd(), 300)),
        ("Job functions", f"{len(list(catalog.current())):,}"),
    ]
