"""The page of alerts: those that fire, and the rules."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from flask import Response

from rqjobs import alerts, config, connection
from rqjobs.alert_rules import Rule
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
        "rules": [_describe(rule) for rule in config.current().alerts],
        "channels": alerts.channels(),
    }


def _moment(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError):  # foreign data
        return None


def _describe(rule: Rule) -> str:
    """A rule as RQJOBS_ALERTS has it."""
    queue = f":{rule.queue}" if rule.queue else ""
    limit = ""
    if rule.name == "oldest":
        limit = f"={rule.limit}s"
    elif rule.name in ("depth", "failed"):
        limit = f"={rule.limit}"
    hold = "" if rule.hold is None else f" for {rule.hold}s"
    return f"{rule.name}{queue}{limit}{hold}"
