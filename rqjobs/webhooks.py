"""Webhooks: which hosts a job may call."""

from __future__ import annotations

import urllib.request
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from rqjobs import config


class RefusedWebhook(ValueError):
    """A webhook's host is not in RQJOBS_WEBHOOK_HOSTS."""


class AllowedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a webhook's redirect only to a host that is allowed itself."""

    def redirect_request(
        self, request: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if not is_allowed(newurl):
            raise HTTPError(
                newurl,
                code,
                "redirected to a host that is not in RQJOBS_WEBHOOK_HOSTS",
                headers,
                fp,
            )
        return super().redirect_request(request, fp, code, msg, headers, newurl)


def is_allowed(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and parts.hostname in config.current().webhook_hosts
