"""Live parts of pages: answered with 304 if nothing has changed, and rendered once for all viewers.

A live part is a fragment that `static/live.js` asks for every three seconds. A view makes it with
`page("_name.html", …)`, which adds the ETag. A view that reads much wraps this call in `cached`. Any
other one reads ahead (`broker/read_ahead.py`), in one round trip with the check of the login.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import redis
from flask import Response, current_app, g, request

from rqjobs.broker import read_ahead
from rqjobs.broker.read_ahead import Command, ReadAhead
from rqjobs.web.access import current_access

TROUBLE_HEADER = "X-Rqjobs-Trouble"  # the number in the title of the page, with each live part
LIVE_SECONDS = 1.0  # for which viewers share a live part
MAX_RENDERINGS = 500  # that are kept for the viewers of one app
MAX_READINGS = 100  # addresses whose reading is kept, for one app
READINGS_MAX_WORDS = 50_000  # of the commands of all addresses


@dataclass
class Rendering:
    """A response that viewers share, or the place for one that is being made."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    expires: float = 0.0
    response: Response | None = None


class Renderings:
    """The shared responses of an app."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.found: dict[Any, Rendering] = {}

    def place(self, key: Any) -> Rendering:
        """The place of a key. Places that have expired make room."""
        with self.lock:
            if key not in self.found and len(self.found) >= MAX_RENDERINGS:
                now = time.monotonic()
                self.found = {one: each for one, each in self.found.items() if each.expires > now}
            if len(self.found) >= MAX_RENDERINGS:
                return self.found.get(key) or Rendering()
            return self.found.setdefault(key, Rendering())


def cached(key: str, seconds: float, make: Callable[[], Response]) -> Response:
    """The response of `make`, which is called at most once in `seconds` for a key and a role.

    Further viewers wait for that call. Only a successful response is kept. `key` names all
    that the response depends on, except the role of the viewer and the address of the app.
    """
    end_reading()  # what is read for all viewers is not repeated for each
    renderings = current_app.extensions.setdefault("rqjobs.renderings", Renderings())
    place = renderings.place((key, current_access().role, request.script_root))
    with place.lock:
        if place.response is None or time.monotonic() >= place.expires:
            response = make()
            if response.status_code != 200:
                return response
            _set_tag(response)
            place.response = response
            place.expires = time.monotonic() + seconds
        kept = place.response
    mark_live()
    return Response(kept.get_data(), headers=list(kept.headers))


def mark_live() -> None:
    """Answer the current request with 304 if the viewer has the response already."""
    g.rqjobs_is_live = True


def finish(response: Response) -> None:
    """Note what a live response has read, and make it 304 if the viewer has it already.

    `auth.py` calls it at the end.
    """
    reading = read_ahead.current.get()
    end_reading()  # what the application reads after this is as it is then
    if not g.get("rqjobs_is_live") or response.status_code != 200:
        return
    if reading is not None:
        _readings().keep(request.full_path, reading.asked)
    if "ETag" not in response.headers:
        _set_tag(response)
    tag, _ = response.get_etag()
    if request.if_none_match.contains_weak(tag or ""):  # a proxy that compresses makes it weak
        response.status_code = 304
        response.set_data(b"")


def _set_tag(response: Response) -> None:
    content = response.get_data() + response.headers.get(TROUBLE_HEADER, "").encode()
    response.set_etag(hashlib.sha256(content).hexdigest()[:32])


# What a live part reads


class Readings:
    """The commands with which the live parts of an app have read last, by address.

    Those of the address that was not asked for longest are forgotten first.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        # By address: the words of the commands and the address, and the commands.
        self.found: dict[str, tuple[int, list[Command]]] = {}

    def last(self, address: str) -> list[Command]:
        """The commands of an address; none if they are not known."""
        with self.lock:
            return self.found.get(address, (0, []))[1]

    def keep(self, address: str, commands: list[Command]) -> None:
        """Keep the commands of an address, within the limits of all."""
        words = len(address) + sum(map(len, commands))
        with self.lock:
            self.found.pop(address, None)
            self.found[address] = words, commands
            while len(self.found) > MAX_READINGS or self._words() > READINGS_MAX_WORDS:
                del self.found[next(iter(self.found))]

    def _words(self) -> int:
        return sum(words for words, _ in self.found.values())


def _readings() -> Readings:
    readings: Readings = current_app.extensions.setdefault("rqjobs.readings", Readings())
    return readings


def begin_reading(client: redis.Redis) -> None:
    """Begin to read ahead, if the current request is for a live part.

    `auth.py` calls it just before the check of the login. So the application's `authorize`, which
    may write and then read again, is not answered from what was read before.
    """
    if (request.endpoint or "").startswith("rqjobs.live_"):
        read_ahead.current.set(ReadAhead(client, _readings().last(request.full_path)))


def end_reading(error: BaseException | None = None) -> None:
    """End to read ahead. `auth.py` calls it after each request, whatever its outcome."""
    reading = read_ahead.current.get()
    if reading is not None:
        reading.end()
        read_ahead.current.set(None)


# Trouble


def set_trouble(number: int) -> None:
    """Show in the title and in the icon that `number` things need attention."""
    g.rqjobs_trouble = number


def trouble() -> int:
    """The number that was set; by default that of the warnings on every page."""
    number: int | None = g.get("rqjobs_trouble")
    if number is None:
        return len(g.get("rqjobs_warnings", []))
    return number
