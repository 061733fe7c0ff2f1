"""The page of help: the keyboard shortcuts, for browsers without JavaScript too."""

from __future__ import annotations

from typing import Any

from rqjobs.web.rendering import page, pages


@pages.get("/help", endpoint="help")
def show_help() -> Any:
    return page("help.html")
