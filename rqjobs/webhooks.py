"""Webhooks: the hosts that a job may call, and calls with a time limit."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import urllib.request
from collections.abc import Callable
from functools import partial
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


class Call:
    """An HTTP call that another thread may end, whatever it waits for.

    A time limit of a socket is for one read: an answer may come byte by byte for ever.
    """

    def __init__(self, redirects: type[urllib.request.HTTPRedirectHandler]):
        handlers = [_HTTPHandler(), _HTTPSHandler()]
        for handler in handlers:
            handler.call = self
        self._opener = urllib.request.build_opener(redirects, *handlers)
        self._connection: http.client.HTTPConnection | None = None
        self._sock: socket.socket | None = None
        self.has_ended = False

    def connect(self, connection: http.client.HTTPConnection, connect: Callable[[], None]) -> None:
        """Open a connection, and keep its socket: it forgets it before a redirect's body is read.

        Raises:
            OSError: it failed, or the call was ended.
        """
        self._connection, self._sock = connection, None
        connect()
        self._sock = connection.sock
        if self.has_ended:  # there was no socket, or TLS has put another one in its place
            raise TimeoutError("the time limit is over")

    def send(self, request: urllib.request.Request, timeout: float) -> Any:
        """The answer, of which only the head was read. `timeout`: seconds for each read.

        Raises:
            OSError, http.client.HTTPException: it failed, or was ended.
        """
        opener = self._opener
        try:
            answer = opener.open(request, timeout=timeout)
            if not self.has_ended:
                return answer
            answer.close()  # it ended in the middle of the head
        except (OSError, http.client.HTTPException):
            if not self.has_ended:
                raise
        raise TimeoutError("the answer did not arrive within the time limit")

    def end(self) -> None:
        """Shut the connection down, so that the thread that waits for it goes on."""
        self.has_ended = True
        sock = self._sock
        if sock is None and self._connection:
            sock = self._connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # TLS may still be reading


def open_within_limit(request: urllib.request.Request, timeout: float) -> Any:
    """For RQ, in the place of `urlopen`: `timeout` is the limit of the whole call.

    Raises:
        OSError, http.client.HTTPException: it failed, or took longer.
    """
    call = Call(AllowedRedirects)
    timer = threading.Timer(timeout, call.end)
    timer.daemon = True
    timer.start()
    try:
        return call.send(request, timeout)
    finally:
        timer.cancel()


class _Interruptible(urllib.request.AbstractHTTPHandler):
    """Opens its connections through a `Call`."""

    call: Call

    def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
        """Overridden for that."""

        def connect(*arguments: Any, **settings: Any) -> Any:
            if self.call.has_ended:
                raise TimeoutError("the time limit is over")
            connection = http_class(*arguments, **settings)
            connection.connect = partial(self.call.connect, connection, connection.connect)
            return connection

        return super().do_open(connect, req, **options)


class _HTTPHandler(_Interruptible, urllib.request.HTTPHandler):
    pass


class _HTTPSHandler(_Interruptible, urllib.request.HTTPSHandler):
    pass


def _site(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port


def is_allowed(url: str) -> bool:
    """Whether a webhook may call this URL: over http or https, a host of RQJOBS_WEBHOOK_HOSTS."""
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and parts.hostname in config.current().webhook_hosts
