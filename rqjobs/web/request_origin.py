"""Where a request comes from: this machine or a proxy, a page of this site or of another one."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from flask import request
from werkzeug.exceptions import BadRequest

from rqjobs import config

PROXY_HEADERS = (
    "forwarded",
    "via",
    "x-real-ip",
    "cf-connecting-ip",
    "true-client-ip",
    "x-client-ip",
)
PREFIX = re.compile(r"(/(?!/)[^\\\x00-\x20\x7f]*)?")  # "//host" is an address of another site
LOOPBACK_NAMES = {"localhost", "127.0.0.1", "::1"}


def client_network(address: str | None) -> str:
    """The client for rate limits: an IPv4 address, or the /64 that an IPv6 household shares."""
    try:
        ip = ipaddress.ip_address(address or "")
    except ValueError:
        return "local"
    if ip.version == 4:
        return str(ip)
    return str(ipaddress.ip_network((ip, 64), strict=False).network_address)


def is_from_this_machine() -> bool:
    """Whether the client is a program on this machine that has asked for a local name.

    A foreign site can point its own name at this machine, so Host and Origin must be local.
    A proxy on this machine is refused if it can be recognized: by the headers that it adds, by the
    Origin that it passes on, or by HTTP/1.0, which nginx uses by default and browsers never do.
    Against a proxy that hides all of these, the password remains.
    """
    return (
        not _has_proxy_header()
        and request.environ.get("SERVER_PROTOCOL") != "HTTP/1.0"
        and config.is_loopback(request.remote_addr)
        and _has_local_names()
    )


def _has_proxy_header() -> bool:
    names = [name.lower() for name, _ in request.headers]
    return any(name.startswith("x-forwarded") or name in PROXY_HEADERS for name in names)


def _has_local_names() -> bool:
    origin = request.headers.get("Origin", "null")
    try:
        names = {urlsplit("//" + request.headers.get("Host", "")).hostname}
        if origin != "null":
            names.add(urlsplit(origin).hostname)
    except ValueError:
        return False
    return names <= LOOPBACK_NAMES


def is_same_origin() -> bool:
    """Whether a page of this site sends the request; a script proves that with an Origin header."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    host = source_host()
    return host != "" and host.lower() == request.host.lower()


def source_host() -> str:
    """The host of the page that sends the request, by Origin or Referer; "" if neither is there."""
    source = request.headers.get("Origin") or request.headers.get("Referer") or ""
    try:
        return urlsplit(source).netloc
    except ValueError:
        return ""


def explain_refusal() -> str:
    """The reason why `is_same_origin` is false, and the remedy if that is a mistake."""
    if "Sec-Fetch-Site" in request.headers or not source_host():
        return (
            "This request did not come from a page of this site (by its Sec-Fetch-Site, Origin and "
            "Referer headers). A script must send Origin."
        )
    return (
        f"The browser sent this from a page of {source_host()[:100]} (Origin or Referer header), "
        f"but the app was called as {request.host[:100]} (Host header). A proxy in between must "
        "pass on the Host header of the browser; in nginx: proxy_set_header Host $http_host;"
    )


def explain_bad_address() -> str:
    """The reason why no links to this app can be made from its request; "" if they can."""
    if isinstance(request.routing_exception, BadRequest):
        return "The Host header is not a host name."
    if not PREFIX.fullmatch(request.script_root):
        return (
            "The prefix of this app (SCRIPT_NAME or X-Forwarded-Prefix) is not a path. A proxy must "
            'set that header itself; in nginx: proxy_set_header X-Forwarded-Prefix "";'
        )
    return ""


def is_https() -> bool:
    """Whether the browser speaks https. A proxy's header is enough: it makes cookies stricter."""
    forwarded = request.headers.get("X-Forwarded-Proto", "").lower()
    return request.is_secure or forwarded.startswith("https")
