"""Settings: one frozen object, read from the environment and `.env` in this one place.

Nobody else in rqjobs looks at `os.environ`. A name or a value that cannot be right stops the program with one
line that says which setting it was, what it was, and what would be right.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dotenv import load_dotenv

REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")


class ConfigError(Exception):
    """A setting is wrong. The message is one line: the setting, its value, and what would be right."""


@dataclass(frozen=True)
class Config:
    """Every setting of rqjobs. `from_env` reads it; `current()` gives the one in force."""

    redis_url: str | None = field(default=None, repr=False)
    queues: tuple[str, ...] = ("high", "default", "low")
    modules: tuple[str, ...] = ("rqjobs.demo",)
    flask_app: str | None = None
    serializer: str = "json"
    secret_key: str | None = field(default=None, repr=False)
    admin_user: str = "admin"
    admin_password: str | None = field(default=None, repr=False)
    one_time_password: str | None = field(
        default=None, repr=False
    )  # instead of one that the web app makes up
    webhook_hosts: tuple[str, ...] = ()
    shutdown_timeout: int = 20  # seconds
    max_jobs_per_child: int = 0  # 0 is no limit
    max_memory_per_child: int | None = (
        None  # bytes that it may grow by; 0 is no limit, None is what supervisor.py says
    )
    max_payload_bytes: int = 256 * 1024
    max_result_bytes: int = 1024 * 1024
    max_traceback_bytes: int = 64 * 1024
    host: str | None = None  # this machine only; with a password and without `dev` all interfaces
    port: int = 8000

    @cached_property
    def max_value_bytes(self) -> int:
        """Bytes of one value in Redis: up to twice what this process would write is read, for others may write too."""
        return 2 * max(self.max_payload_bytes, self.max_result_bytes)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Config:
        """Read the settings from `environ`. An empty value counts as unset.

        Raises:
            ConfigError: an unknown `RQJOBS_` name, or a value that cannot be right.
        """
        for name in environ:
            if name.startswith("RQJOBS_") and name not in SETTINGS:
                if name in RENAMED:
                    raise ConfigError(f"{name} is called {RENAMED[name]} now; set that instead")
                import difflib  # here, or each worker would hold it in memory; so in the other files

                known = {setting.removeprefix("RQJOBS_"): setting for setting in SETTINGS}
                close = difflib.get_close_matches(name.removeprefix("RQJOBS_"), known, n=1)
                hint = (
                    f"did you mean {known[close[0]]}?"
                    if close
                    else "known: " + ", ".join(sorted(SETTINGS))
                )
                raise ConfigError(f"{name} is not a setting of rqjobs; {hint}")
        values: dict[str, Any] = {}
        for name, (attribute, parse) in SETTINGS.items():
            text = environ.get(name, "").strip()
            if text:
                try:
                    values[attribute] = parse(text)
                except ValueError as error:
                    secret = next(f for f in fields(cls) if f.name == attribute).repr is False
                    raise ConfigError(f"{name}={'…' if secret else repr(text)} {error}") from None
        config = cls(**values)
        if config.serializer == "signed-pickle" and not config.secret_key:
            raise ConfigError(
                "RQJOBS_SERIALIZER='signed-pickle' needs SECRET_KEY to be set, the same everywhere"
            )
        return config


def _integer(low: int, high: int, unit: str, none: bool = False) -> Callable[[str], int]:
    more = ", or 0 for no limit" if none else ""

    def parse(text: str) -> int:
        if none and text == "0":
            return 0
        if not re.fullmatch(r"[0-9]{1,13}", text) or not low <= int(text) <= high:
            raise ValueError(f"is not {unit}; give a whole number from {low} to {high}{more}")
        return int(text)

    return parse


def _words(pattern: str, example: str) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        words = tuple(word.strip() for word in text.split(",") if word.strip())
        bad = [word for word in words if not re.fullmatch(pattern, word)]
        if bad or not words or len(set(words)) < len(words):
            raise ValueError(
                f"is not a list of different names with commas between; for example {example}"
            )
        return words

    return parse


def _redis_url(text: str) -> str:
    expected = (
        "is not a Redis URL; for example redis://localhost:6379/0, rediss://…, unix:///path/to.sock"
    )
    try:
        parts = urlsplit(text)
        if parts.scheme not in REDIS_SCHEMES or not (
            parts.path if parts.scheme == "unix" else parts.netloc
        ):
            raise ValueError(expected)
        if not parts.scheme.endswith("+sentinel"):
            _ = parts.port  # raises on a port that is no number
            database = parts.path.strip("/")
            if parts.scheme != "unix" and database and not database.isdigit():
                raise ValueError(expected + " (what follows the host is the number of a database)")
        elif not parts.path.strip("/"):
            raise ValueError(
                "names no service; for example redis+sentinel://host1:26379,host2:26379/mymaster/0"
            )
    except ValueError as error:
        raise (
            error if str(error).startswith(("is not", "names")) else ValueError(expected)
        ) from None
    return text


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]+", text):
        raise ValueError(
            "is not a host; for example 127.0.0.1, or 0.0.0.0 for every address of this machine"
        )
    return text


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError("is not one of " + ", ".join(choices))
        return text

    return parse


def _flask_app(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*(\(\))?", text):
        raise ValueError("does not name a Flask app; for example shop:app or shop:create_app")
    return text


def _secret(text: str) -> str:
    if len(text) < 16:
        raise ValueError(
            "is too short to be a secret; make one with: python -c 'import secrets; "
            "print(secrets.token_hex(32))'"
        )
    return text


def _password(text: str) -> str:
    if len(text) < 8:
        raise ValueError("is shorter than 8 characters")
    return text


_MODULES = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
SETTINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "REDIS_URL": ("redis_url", _redis_url),
    "RQJOBS_QUEUES": ("queues", _words(r"[A-Za-z0-9_.-]+", "high,default,low")),
    "RQJOBS_MODULES": ("modules", _words(_MODULES, "jobs,shop.emails")),
    "RQJOBS_FLASK_APP": ("flask_app", _flask_app),
    "RQJOBS_SERIALIZER": ("serializer", _one_of("json", "signed-pickle")),
    "SECRET_KEY": ("secret_key", _secret),
    "RQJOBS_ADMIN_USER": ("admin_user", str),
    "RQJOBS_ADMIN_PASSWORD": ("admin_password", _password),
    "RQJOBS_ONE_TIME_PASSWORD": ("one_time_password", _password),
    "RQJOBS_WEBHOOK_HOSTS": (
        "webhook_hosts",
        _words(r"[a-z0-9.-]+", "hooks.example.com,example.org, in lower case"),
    ),
    "RQJOBS_SHUTDOWN_TIMEOUT": ("shutdown_timeout", _integer(0, 86_400, "a number of seconds")),
    "RQJOBS_MAX_JOBS_PER_CHILD": (
        "max_jobs_per_child",
        _integer(1, 10**9, "a number of jobs", none=True),
    ),
    "RQJOBS_MAX_MEMORY_PER_CHILD": (
        "max_memory_per_child",
        _integer(2**24, 2**40, "a number of bytes", none=True),
    ),
    "RQJOBS_MAX_PAYLOAD_BYTES": (
        "max_payload_bytes",
        _integer(1_024, 512 * 1024 * 1024, "a number of bytes"),
    ),
    "RQJOBS_MAX_RESULT_BYTES": (
        "max_result_bytes",
        _integer(1_024, 256 * 1024 * 1024, "a number of bytes"),
    ),
    "RQJOBS_MAX_TRACEBACK_BYTES": (
        "max_traceback_bytes",
        _integer(1_024, 16 * 1024 * 1024, "a number of bytes"),
    ),
    "HOST": ("host", _host),
    "PORT": ("port", _integer(1, 65_535, "a port")),
}

RENAMED = {
    "RQJOBS_APP": "RQJOBS_FLASK_APP",
    "RQJOBS_GRACE": "RQJOBS_SHUTDOWN_TIMEOUT",
    "RQJOBS_MAX_JOBS_PER_HORSE": "RQJOBS_MAX_JOBS_PER_CHILD",
    "RQJOBS_MAX_MEMORY_PER_HORSE": "RQJOBS_MAX_MEMORY_PER_CHILD",
    "RQJOBS_MAX_PAYLOAD": "RQJOBS_MAX_PAYLOAD_BYTES",
    "RQJOBS_MAX_RESULT": "RQJOBS_MAX_RESULT_BYTES",
    "RQJOBS_MAX_TRACEBACK": "RQJOBS_MAX_TRACEBACK_BYTES",
}


def is_loopback(host: str | None) -> bool:
    """Whether `host`, a name or an address, can only be this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address((host or "").strip("[]")).is_loopback
    except ValueError:
        return False


def require_password_for_network(config: Config) -> None:
    """Raises ConfigError if HOST opens the pages to a network without a password."""
    if config.host is not None and not config.admin_password and not is_loopback(config.host):
        raise ConfigError(
            f"HOST={config.host!r} opens the pages to a network, so RQJOBS_ADMIN_PASSWORD must be set, "
            f"to 8 characters or more; or serve this machine only, with HOST=127.0.0.1"
        )


_current: Config | None = None
_from_file: dict[str, str] = {}  # what `.env` has put into the environment


def current() -> Config:
    """The settings in force: read once, from the environment and from `.env` in the working directory.

    What `.env` says never replaces what the environment says already.
    """
    global _current
    if _current is None:
        _read_file()
        _current = Config.from_env(os.environ)
    return _current


def reload() -> tuple[Config, list[str]]:
    """Read `.env` anew, for `rqjobs dev`; returns the settings, now in force, and the names that have other values.

    Raises:
        ConfigError: they cannot be; those before stay in force.
    """
    global _current
    before, from_file = dict(os.environ), dict(_from_file)
    try:
        _read_file()
        _current = Config.from_env(os.environ)
    except ConfigError:
        for kept, values in ((os.environ, before), (_from_file, from_file)):
            kept.clear()
            kept.update(values)
        raise
    return _current, sorted(
        name
        for name in before.keys() | os.environ.keys()
        if before.get(name) != os.environ.get(name)
    )


def _read_file() -> None:
    for name, value in _from_file.items():
        if os.environ.get(name) == value:
            del os.environ[name]
    before = set(os.environ)
    try:
        load_dotenv(Path.cwd() / ".env", override=False)
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f".env cannot be read: {error}; write a text in UTF-8, a NAME=value on each line"
        ) from None
    _from_file.clear()
    _from_file.update({name: value for name, value in os.environ.items() if name not in before})


def use(config: Config | None = None, **changes: Any) -> Config:
    """Put `config`, or the current one with some fields changed, in force for this process (tests, `dev`)."""
    global _current
    _current = replace(config or current(), **changes)
    return _current


def environment(**settings: str | int) -> dict[str, str]:
    """The environment for a process of ours: this one's, with some settings put in their place."""
    current()
    return {**os.environ, **{name: str(value) for name, value in settings.items()}}
