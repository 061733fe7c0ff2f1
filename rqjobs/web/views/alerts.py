"""The page of alerts: those that fire, and the rules."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from flask import Response

from rqjobs import alerts, config, connection
from rqjobs.web.rendering import cut, page, pages

ALERT_CHARACTERS = 500


@pages.get("/alerts", endpoint="alerts")
def list_alerts() -> Response:
    return page("alerts.html", **_part())


@pages.get("/live/alerts")
def live_alerts() -> Response:
    """The alerts of that page, as they are now."""
    return page("_alerts.html", **_part())


def _part() -> dict[str, Any]:
    found = [
        {
            "name": cut(alert.name, ALERT_CHARACTERS),
            "message": cut(alert.message, ALERT_CHARACTERS),
            "since": _moment(alert.since),
        }
        for alert in alerts.firing(connection.client())
    ]
    return {
        "alerts": found,
        "rules": [str(rule) for rule in config.current().alerts],
        "channels": alerts.channels(),
    }


def _moment(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError):  # foreign data
        return None
