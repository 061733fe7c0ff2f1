"""The page of workers."""

from __future__ import annotations

from typing import Any

from rqjobs import connection, stats
from rqjobs.web.rendering import page, pages


@pages.get("/workers")
def workers() -> Any:
    return page("workers.html", workers=stats.snapshot(connection.client()).workers)
