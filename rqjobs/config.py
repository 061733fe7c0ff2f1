"""Settings: one frozen object, read from the environment, `.env` and the config of a Flask app.

No other module reads a setting from the environment. An unknown name or a wrong value stops the
program with one line: the setting, its value, and the remedy.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dotenv import load_dotenv

from rqjobs.alert_rules import Rule, parse_alerts

API_ROLES = ("read", "operate", "admin")
API_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{20,500}=*")  # what an Authorization header can carry
API_TOKEN_MIN_DIFFERENT_CHARACTERS = 8
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
# Set by the pytest plugin, for the tests and the processes that they start. It is not a setting.
TEST_REDIS = "RQJOBS_TEST_REDIS"


class ConfigError(Exception):
    """A setting is wrong. The message is one line: the setting, its value, and the remedy."""


@dataclass(frozen=True)
class ApiToken:
    """A bearer token of the JSON API. `name` stands for it in lists and logs."""

    name: str
    role: str  # one of API_ROLES
    token: str = field(repr=False)


@dataclass(frozen=True)
class Config:
    """Every setting of rqjobs. `from_env` reads them; `current()` returns those in force."""

    redis_url: str | None = field(default=None, repr=False)
    queues: tuple[str, ...] = ("high", "default", "low")
    modules: tuple[str, ...] = ("rqjobs.demo",)
    flask_app: str | None = None
    serializer: str = "json"
    secret_key: str | None = field(default=None, repr=False)
    admin_user: str = "admin"
    admin_password: str | None = field(default=None, repr=False)
    # The password used when RQJOBS_ADMIN_PASSWORD is unset; the web app generates one if it is None.
    one_time_password: str | None = field(default=None, repr=False)
    api_tokens: tuple[ApiToken, ...] = field(default=(), repr=False)
    metrics_token: str | None = field(default=None, repr=False)
    alerts: tuple[Rule, ...] = ()
    alert_webhook: str | None = field(default=None, repr=False)
    alert_format: str = "json"
    alert_job: str | None = None
    webhook_hosts: tuple[str, ...] = ()
    shutdown_timeout: int = 20  # seconds
    max_jobs_per_child: int = 0  # 0 is no limit
    # Bytes by which a child may grow; 0 is no limit, None the default of the worker.
    max_memory_per_child: int | None = None
    max_payload_bytes: int = 256 * 1024
    max_result_bytes: int = 1024 * 1024
    max_traceback_bytes: int = 64 * 1024
    max_failed_jobs: int = 100_000  # of each queue; 0 is no limit
    max_failed_age_seconds: int = 0  # 0 is no limit
    job_log_level: str = "INFO"  # of the records that are kept with a job; "off" for none
    job_log_prints: str = "off"
    hide: tuple[str, ...] = ()  # names whose values are not shown: hiding.py
    outbox_url: str | None = field(default=None, repr=False)
    environment: str = ""  # its name on the pages
    app_url: str = ""  # where the pages link back to
    # None: this machine only; with a password and without `rqjobs dev` all interfaces.
    host: str | None = None
    port: int = 8000

    @cached_property
    def max_value_bytes(self) -> int:
        """The largest value that is read from Redis, in bytes.

        It is twice the largest that this process writes: other processes may have other limits.
        """
        return 2 * max(self.max_payload_bytes, self.max_result_bytes)

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str], app_settings: Mapping[str, str] | None = None
    ) -> Config:
        """Read the settings from `environ`. An empty value counts as unset.

        `app_settings`: the settings of a Flask app (`read_app_config`), for those that are unset.

        Raises:
            ConfigError: an unknown `RQJOBS_` name, or a value that cannot be right.
        """
        _check_names(environ)
        values: dict[str, Any] = {}
        for name, (attribute, parse) in SETTINGS.items():
            source = name
            text = environ.get(name, "").strip()
            if not text and app_settings:
                source = f"app.config[{name!r}]"
                text = app_settings.get(name, "").strip()
            if text:
                try:
                    values[attribute] = parse(text)
                except ValueError as error:
                    shown = "…" if _is_secret(attribute) else repr(text)
                    raise ConfigError(f"{source}={shown} {error}") from None
        config = cls(**values)
        if config.serializer == "signed-pickle" and not config.secret_key:
            raise ConfigError(
                "RQJOBS_SERIALIZER='signed-pickle' needs SECRET_KEY in the environment, the same "
                "everywhere"
            )
        return config


def read_app_config(app_config: Mapping[Any, Any]) -> dict[str, str]:
    """The settings in a Flask app's config, as the environment would have them.

    SECRET_KEY, HOST and PORT are not read: there they are Flask's. None counts as unset.

    Raises:
        ConfigError: an unknown `RQJOBS_` name, one that says nothing about this app, or a value
            that is neither text, a whole number, nor a list of names.
    """
    names = [name for name in app_config if isinstance(name, str)]
    _check_names(names, "app.config: ")
    if app_config.get("RQJOBS_FLASK_APP"):
        raise ConfigError(
            "app.config: RQJOBS_FLASK_APP tells a worker how to find this app; set it in the "
            "environment"
        )
    return {
        name: _as_text(name, app_config[name])
        for name in names
        if name in SETTINGS and name not in NOT_OF_AN_APP and app_config[name] is not None
    }


def _as_text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if type(value) is int:
        return str(value)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    raise ConfigError(
        f"app.config[{name!r}] is of the type {type(value).__name__}; give text, a whole number, "
        f"or a list of names"
    )


def _check_names(names: Iterable[str], where: str = "") -> None:
    """Check that each name with the prefix `RQJOBS_` is a setting.

    Raises:
        ConfigError: a name is not.
    """
    for name in names:
        if not name.startswith("RQJOBS_") or name in SETTINGS or name == TEST_REDIS:
            continue
        if name in RENAMED:
            raise ConfigError(f"{where}{name} is called {RENAMED[name]} now; set that instead")
        raise ConfigError(f"{where}{name} is not a setting of rqjobs; {_suggestion(name)}")


def _suggestion(name: str) -> str:
    import difflib  # here, so that workers save its memory

    # Without the prefix, which makes all names similar.
    names = {setting.removeprefix("RQJOBS_"): setting for setting in SETTINGS}
    close = difflib.get_close_matches(name.removeprefix("RQJOBS_"), names, n=1)
    if close:
        return f"did you mean {names[close[0]]}?"
    return "known: " + ", ".join(sorted(SETTINGS))


def _is_secret(attribute: str) -> bool:
    return any(part.name == attribute and not part.repr for part in fields(Config))


def _integer(low: int, high: int, unit: str, zero: bool = False) -> Callable[[str], int]:
    """A parser for `low` to `high`, and with `zero` also for 0, which is no limit."""
    zero_hint = ", or 0 for no limit" if zero else ""

    def parse(text: str) -> int:
        if zero and text == "0":
            return 0
        if not re.fullmatch(r"[0-9]{1,13}", text) or not low <= int(text) <= high:
            raise ValueError(f"is not {unit}; give a whole number from {low} to {high}{zero_hint}")
        return int(text)

    return parse


def _names(pattern: str, example: str) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        is_valid = all(re.fullmatch(pattern, name) for name in names)
        if not names or not is_valid or len(set(names)) < len(names):
            raise ValueError(
                f"is not a list of different names with commas between; for example {example}"
            )
        return names

    return parse


def _redis_url(text: str) -> str:
    expected = (
        "is not a Redis URL; for example redis://localhost:6379/0, rediss://…, unix:///path/to.sock"
    )
    try:
        parts = urlsplit(text)
        is_sentinel = parts.scheme.endswith("+sentinel")
        if not is_sentinel:
            _ = parts.port  # raises if it is wrong
    except ValueError:
        raise ValueError(expected) from None
    location = parts.path if parts.scheme == "unix" else parts.netloc
    if parts.scheme not in REDIS_SCHEMES or not location:
        raise ValueError(expected)
    path = parts.path.strip("/")
    if is_sentinel:
        if not path:
            raise ValueError(
                "names no service; for example redis+sentinel://host1:26379,host2:26379/mymaster/0"
            )
    elif parts.scheme != "unix" and path and not path.isdigit():
        raise ValueError(expected + " (the number of a database follows the host)")
    return text


def _database_url(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*(\+[a-z0-9_]+)?://\S*", text):
        raise ValueError(
            "is not a database URL of SQLAlchemy; for example postgresql+psycopg://user@host/name"
        )
    return text


def _label(text: str) -> str:
    if len(text) > 30 or not text.isprintable():
        raise ValueError("is not a name of at most 30 characters; for example production")
    return text


def _app_url(text: str) -> str:
    is_path = re.fullmatch(r"/(?!/)[^\s\\]*", text)
    if not is_path and not re.fullmatch(r"https?://[^\s\\/?#@]+([/?#][^\s\\]*)?", text):
        raise ValueError(
            "is not the address of your application; for example https://shop.example.com/ or /"
        )
    return text


def _webhook(text: str) -> str:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises if it is wrong
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or not text.isprintable():
        raise ValueError("is not an address; for example https://hooks.example.com/rqjobs")
    return text


def _function(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", text):
        raise ValueError("is not a job function; for example shop.jobs.send_alert")
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


def _log_level(text: str) -> str:
    if text.lower() == "off":
        return "off"
    if text.upper() not in LOG_LEVELS:
        raise ValueError("is not one of " + ", ".join((*LOG_LEVELS, "off")))
    return text.upper()


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


def _api_tokens(text: str) -> tuple[ApiToken, ...]:
    """One token, which may operate, or several as `name:role:token` with commas between."""
    if ":" not in text and "," not in text:
        return (ApiToken("api", "operate", _api_token(text)),)
    found = []
    for entry in text.split(","):
        name, _, rest = entry.strip().partition(":")
        role, _, token = rest.partition(":")
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", name) or role not in API_ROLES:
            raise ValueError(
                "is neither one token nor a list of name:role:token with commas between; a role is "
                "read, operate or admin"
            )
        found.append(ApiToken(name, role, _api_token(token)))
    for attribute in ("name", "token"):
        if len({getattr(one, attribute) for one in found}) < len(found):
            raise ValueError(f"has the same {attribute} twice; give each user a {attribute}")
    return tuple(found)


def _api_token(text: str) -> str:
    is_simple = len(set(text)) < API_TOKEN_MIN_DIFFERENT_CHARACTERS
    if is_simple or not API_TOKEN.fullmatch(text):
        raise ValueError(
            "has a token that is too short, too simple or has other characters than letters, "
            "digits and . _ ~ + / - =; make one with: python -c 'import secrets; "
            "print(secrets.token_urlsafe(32))'"
        )
    return text


_MODULES = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
SETTINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "REDIS_URL": ("redis_url", _redis_url),
    "RQJOBS_QUEUES": ("queues", _names(r"[A-Za-z0-9_.-]+", "high,default,low")),
    "RQJOBS_MODULES": ("modules", _names(_MODULES, "jobs,shop.emails")),
    "RQJOBS_FLASK_APP": ("flask_app", _flask_app),
    "RQJOBS_SERIALIZER": ("serializer", _one_of("json", "signed-pickle")),
    "SECRET_KEY": ("secret_key", _secret),
    "RQJOBS_ADMIN_USER": ("admin_user", str),
    "RQJOBS_ADMIN_PASSWORD": ("admin_password", _password),
    "RQJOBS_ONE_TIME_PASSWORD": ("one_time_password", _password),
    "RQJOBS_API_TOKEN": ("api_tokens", _api_tokens),
    "RQJOBS_METRICS_TOKEN": ("metrics_token", _secret),
    "RQJOBS_ALERTS": ("alerts", parse_alerts),
    "RQJOBS_ALERT_WEBHOOK": ("alert_webhook", _webhook),
    "RQJOBS_ALERT_FORMAT": ("alert_format", _one_of("json", "slack")),
    "RQJOBS_ALERT_JOB": ("alert_job", _function),
    "RQJOBS_WEBHOOK_HOSTS": (
        "webhook_hosts",
        _names(r"[a-z0-9.-]+", "hooks.example.com,example.org, in lower case"),
    ),
    "RQJOBS_SHUTDOWN_TIMEOUT": ("shutdown_timeout", _integer(0, 86_400, "a number of seconds")),
    "RQJOBS_MAX_JOBS_PER_CHILD": (
        "max_jobs_per_child",
        _integer(1, 10**9, "a number of jobs", zero=True),
    ),
    "RQJOBS_MAX_MEMORY_PER_CHILD": (
        "max_memory_per_child",
        _integer(2**24, 2**40, "a number of bytes", zero=True),
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
    "RQJOBS_MAX_FAILED_JOBS": (
        "max_failed_jobs",
        _integer(1, 10**9, "a number of jobs", zero=True),
    ),
    "RQJOBS_MAX_FAILED_AGE_SECONDS": (
        "max_failed_age_seconds",
        _integer(60, 2**31 - 1, "a number of seconds", zero=True),
    ),
    "RQJOBS_JOB_LOG_LEVEL": ("job_log_level", _log_level),
    "RQJOBS_JOB_LOG_PRINTS": ("job_log_prints", _one_of("off", "on")),
    "RQJOBS_HIDE": ("hide", _names(r"[\w-]*[^\W_][\w-]*", "password,token")),
    "RQJOBS_OUTBOX_URL": ("outbox_url", _database_url),
    "RQJOBS_ENVIRONMENT": ("environment", _label),
    "RQJOBS_APP_URL": ("app_url", _app_url),
    "HOST": ("host", _host),
    "PORT": ("port", _integer(1, 65_535, "a port")),
}

NOT_OF_AN_APP = ("SECRET_KEY", "HOST", "PORT", "RQJOBS_FLASK_APP")
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
    """Check that HOST does not expose the admin pages without a password.

    Raises:
        ConfigError: it does.
    """
    if config.host is not None and not config.admin_password and not is_loopback(config.host):
        raise ConfigError(
            f"HOST={config.host} exposes the admin pages. Set RQJOBS_ADMIN_PASSWORD (8 characters "
            f"or more), or HOST=127.0.0.1."
        )


def test_socket() -> str | None:
    """The path of the only socket to which a test may connect; None outside of pytest.

    It is "none" in a test that may use no Redis.
    """
    return os.environ.get(TEST_REDIS)


_current: Config | None = None
_from_file: dict[str, str] = {}  # the variables that `.env` has added to the environment
_app_settings: dict[str, str] | None = None  # of the Flask app of this process
_overrides: dict[str, Any] = {}  # what `use` and `overridden` have set, by attribute


def current() -> Config:
    """The settings in force, read once from the environment and `.env` in the working directory.

    The environment takes precedence over `.env`, and this over a Flask app's config.
    """
    global _current
    if _current is None:
        _read_file()
        _current = replace(Config.from_env(os.environ, _app_settings), **_overrides)
    return _current


class Source(Enum):
    """Where a setting comes from."""

    PROGRAM = "the program"
    ENVIRONMENT = "environment"
    FILE = ".env"
    APP = "app.config"
    DEFAULT = "default"


@dataclass(frozen=True)
class Setting:
    """A setting in force: its name, its value, and its source."""

    name: str
    value: Any = field(repr=False)
    source: Source
    is_secret: bool


def sources() -> list[Setting]:
    """Every setting in force, with its source."""
    found = current()
    return [
        Setting(name, getattr(found, attribute), _source(name, attribute), _is_secret(attribute))
        for name, (attribute, _) in SETTINGS.items()
    ]


def _source(name: str, attribute: str) -> Source:
    if attribute in _overrides:
        return Source.PROGRAM
    if os.environ.get(name, "").strip():
        return Source.FILE if name in _from_file else Source.ENVIRONMENT
    if _app_settings and _app_settings.get(name, "").strip():
        return Source.APP
    return Source.DEFAULT


def use_app_settings(settings: dict[str, str], may_replace: bool = False) -> None:
    """Use the settings of a Flask app (`read_app_config`) that the environment does not have.

    Raises:
        ConfigError: one is wrong, or another app of this process has others and `may_replace` is
            False. Then the settings in force stay the same.
    """
    global _current, _app_settings
    current()
    if _app_settings is not None and not may_replace:
        different = [
            name
            for name in sorted(settings.keys() | _app_settings.keys())
            if settings.get(name) != _app_settings.get(name) and not os.environ.get(name)
        ]
        if different:
            raise ConfigError(
                f"two Flask apps of this process have different values of {', '.join(different)} "
                f"in app.config, and a process has one set of settings: give both the same values, "
                f"or set them in the environment"
            )
    _current = replace(Config.from_env(os.environ, settings), **_overrides)
    _app_settings = settings


def reload() -> tuple[Config, list[str]]:
    """Read `.env` again; returns the settings, now in force, and the names of changed variables.

    Changes made with `use` are dropped.

    Raises:
        ConfigError: a setting is wrong. The old settings stay in force.
    """
    global _current
    before = dict(os.environ)
    before_from_file = dict(_from_file)
    try:
        _read_file()
        _current = Config.from_env(os.environ, _app_settings)
    except ConfigError:
        os.environ.clear()
        os.environ.update(before)
        _from_file.clear()
        _from_file.update(before_from_file)
        raise
    _overrides.clear()
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
            f".env cannot be read: {error}; write UTF-8 text with a NAME=value on each line"
        ) from None
    _from_file.clear()
    _from_file.update({name: value for name, value in os.environ.items() if name not in before})


def use(config: Config | None = None, **changes: Any) -> Config:
    """Make `config` (default: the current one), with `changes` applied, the settings in force.

    These changes take precedence over all other sources.
    """
    global _current
    _current = replace(config or current(), **changes)
    if config is not None:
        _overrides.update({each.name: getattr(config, each.name) for each in fields(config)})
    _overrides.update(changes)
    return _current


@contextlib.contextmanager
def overridden(**changes: Any) -> Iterator[Config]:
    """Let `changes` take precedence over all other sources, until the end of the `with`.

    A Flask app that is made in between keeps its other settings afterwards.
    """
    global _current, _overrides
    before = _overrides
    _overrides = {**before, **changes}
    try:
        _current = replace(current(), **changes)
        yield _current
    finally:
        _overrides = before
        _current = None
        with contextlib.suppress(ConfigError):  # raised when the settings are read
            _current = replace(Config.from_env(os.environ, _app_settings), **before)


def is_overridden(attribute: str) -> bool:
    """Whether `use` or `overridden` has set this setting."""
    return attribute in _overrides


def environment(**settings: str | int) -> dict[str, str]:
    """The environment of a child process: this process's, with some settings changed."""
    current()
    return {**os.environ, **{name: str(value) for name, value in settings.items()}}
