"""The page of alerts: those that fire, and the rules."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from flask import Response, url_for

from rqjobs import alerts, config, connection
from rqjobs.alerts import Alert
from rqjobs.web.rendering import cut, page, pages

ALERT_CHARACTERS = 500
# The pages of the subjects of rules: the endpoint, and the parameter that is the subject.
SUBJECT_PAGES = {
    "oldest": ("rqjobs.queue", "name"),
    "depth": ("rqjobs.queue", "name"),
    "no_worker": ("rqjobs.queue", "name"),
    "new_failure_group": ("rqjobs.failed_group", "group_id"),
    "schedule_missed": ("rqjobs.schedule", "name"),
}
PAGES = {
    "failed": "rqjobs.failed",
    "failed_for_good": "rqjobs.failed",
    "poison": "rqjobs.failed",
    "no_scheduler": "rqjobs.workers",
    "recovered": "rqjobs.workers",
}


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
            "link": _link(alert),
        }
        for alert in alerts.firing(connection.client())
    ]
    return {
        "alerts": found,
        "rules": [str(rule) for rule in config.current().alerts],
        "channels": alerts.channels(),
    }


def _link(alert: Alert) -> str:
    """The page that shows more about an alert, or ""."""
    if alert.rule in PAGES:
        return url_for(PAGES[alert.rule])
    is_name = alert.subject.isprintable() and 0 < len(alert.subject) <= ALERT_CHARACTERS
    if alert.rule in SUBJECT_PAGES and is_name:
        endpoint, parameter = SUBJECT_PAGES[alert.rule]
        values: dict[str, Any] = {parameter: alert.subject}
        return url_for(endpoint, **values)
    return ""


def _moment(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError):  # foreign data
        return None
