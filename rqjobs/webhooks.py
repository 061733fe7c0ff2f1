"""Webhooks: the hosts that a job may call."""

from __future__ import annotations

import urllib.request
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from rqjobs import config


class RefusedWebhook(ValueError):
    """The host of a webhook is not in RQJOBS_WEBHOOK_HOSTS."""


class AllowedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a webhook's redirect only to an allowed host.

    The headers of the webhook, which may hold a secret, are only for the site of its URL.
    """

    def redirect_request(
        self, request: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        """The request that follows the redirect.

        Raises:
            HTTPError: the host is not allowed.
        """
        if not is_allowed(newurl):
            message = "redirected to a host that is not in RQJOBS_WEBHOOK_HOSTS"
            raise HTTPError(newurl, code, message, headers, fp)
        following = super().redirect_request(request, fp, code, msg, headers, newurl)
        if following is not None and _site(newurl) != _site(request.full_url):
            following.headers.clear()
        return following


def _site(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port


def is_allowed(url: str) -> bool:
    """Whether a webhook may call this URL: over http or https, a host of RQJOBS_WEBHOOK_HOSTS."""
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and parts.hostname in config.current().webhook_hosts
