"""Redis clients: TLS, timeouts, reconnects, and which errors are transient.

These clients retry the connect with backoff, but never send a command twice. A command whose reply
is lost may have had its effect, and a second RPUSH would be a second job. (redis-py 8 re-sends by
default.)
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.connection import (
    URL_QUERY_ARGUMENT_PARSERS,
    Connection,
    HiredisRespSerializer,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry
from redis.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from rq.connections import get_connection_kwargs

from rqjobs import config
from rqjobs.texts import escape_surrogates

CONNECT_TIMEOUT_SECONDS = 3
# Well under a lease, so that a worker whose Redis hangs can still renew its lease in time.
COMMAND_TIMEOUT_SECONDS = 10
CONNECT_RETRIES = 4  # about two seconds in all: a web request must not hang longer
HEALTH_CHECK_SECONDS = 25  # an idle connection is checked before it is used again
SENTINEL_PORT = 26379
MIN_REDIS_VERSION = (6, 2)  # it has LMOVE and BLMOVE
DATA_FOLDER = Path(".rqjobs")  # of the embedded server, in its working directory


class NoRedis(ConnectionError):
    """There is no usable Redis. The message is one line with the remedy."""


class RealRedisRefused(config.ConfigError):
    """A test tried to use the Redis of its project. The message has the remedies."""


class ReconnectMixin:
    """Retries the connect, before a command is sent. It never retries a command.

    A connect that times out is not retried, because it has waited already. It raises a
    ConnectionError, after which RQ's worker waits for Redis; a TimeoutError would end the worker.
    """

    _connecting = False

    def connect(self) -> None:
        _check_test(self)
        self._connecting = True
        attempts = Retry(
            ExponentialWithJitterBackoff(cap=1, base=0.05), CONNECT_RETRIES, (ConnectionError,)
        )
        try:
            attempts.call_with_retry(
                super().connect,  # type: ignore[misc]
                lambda _: self.disconnect(),  # type: ignore[attr-defined]
            )
        except TimeoutError as error:
            raise ConnectionError(f"no answer from Redis while connecting: {error}") from error
        finally:
            self._connecting = False

    def check_health(self) -> None:
        # redis-py also calls this before its first HELLO, whose reply is the check.
        if self._connecting:
            return
        try:
            super().check_health()  # type: ignore[misc]
        except (ConnectionError, TimeoutError):
            self.disconnect()  # type: ignore[attr-defined]
            self.connect()


def _check_test(link: Any) -> None:
    """Check that a test connects only to the private Redis of its fixtures.

    Raises:
        RealRedisRefused: it connects to another one, and pytest was not told to allow that.
    """
    allowed = config.test_socket()
    if allowed is None or getattr(link, "path", None) == allowed:
        return
    pool: Any = getattr(link, "connection_pool", None)
    if hasattr(pool, "service_name"):
        address = f"the Sentinel service {pool.service_name!r}"
    elif hasattr(link, "path"):
        address = f"unix://{link.path}"
    else:
        address = f"redis://{link.host}:{link.port}/{link.db}"
    raise RealRedisRefused(
        f"this test would use the real Redis, {address}; let it use one of the fixtures "
        f"jobs_recorded, jobs_inline, jobs_redis and frozen_scheduler, or allow it with "
        f"@pytest.mark.real_redis, or for all tests with rqjobs_allow_redis = true in pytest's "
        f"settings"
    )


class TCPConnection(ReconnectMixin, Connection):
    pass


class TLSConnection(ReconnectMixin, SSLConnection):
    pass


class UnixConnection(ReconnectMixin, UnixDomainSocketConnection):
    pass


class SentinelTCPConnection(ReconnectMixin, SentinelManagedConnection):
    pass


class SentinelTLSConnection(ReconnectMixin, SentinelManagedSSLConnection):
    pass


class SurrogatePacker(HiredisRespSerializer):
    """Sends lone surrogates, which UTF-8 cannot encode, as backslash escapes."""

    def pack(self, *args: Any) -> Any:
        try:
            return super().pack(*args)
        except UnicodeEncodeError:
            return super().pack(*map(_escape, args))


def _escape(argument: Any) -> Any:
    if isinstance(argument, str):
        return escape_surrogates(argument)
    return argument


CONNECTION_OPTIONS: dict[str, Any] = {
    "command_packer": SurrogatePacker(),
    "socket_timeout": COMMAND_TIMEOUT_SECONDS,
    "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "health_check_interval": HEALTH_CHECK_SECONDS,
    "retry": Retry(NoBackoff(), 0),
}
# redis-py 8 reads its package's metadata for each connection, which takes 3 ms.
with contextlib.suppress(ImportError):
    from redis.driver_info import DriverInfo

    CONNECTION_OPTIONS["driver_info"] = DriverInfo()
# Options of a client that a URL, which is text, cannot set.
NON_TEXT_OPTIONS = (
    "event_dispatcher",
    "retry",
    "retry_on_error",
    "socket_keepalive_options",
    "socket_type",
)
URL_OPTION_EXAMPLES = (
    "there are, for example, ?db=1, ?socket_timeout=5 and, with rediss://, "
    "?ssl_ca_certs=/path/ca.pem"
)
KEEPALIVE_OPTIONS: dict[str, Any] = {"socket_keepalive": True, "socket_keepalive_options": {}}
if hasattr(socket, "TCP_KEEPIDLE"):
    KEEPALIVE_OPTIONS["socket_keepalive_options"] = {
        socket.TCP_KEEPIDLE: 30,
        socket.TCP_KEEPINTVL: 10,
        socket.TCP_KEEPCNT: 3,
    }


def connect(url: str) -> redis.Redis:
    """A client for `url` that connects when it is first used.

    Takes `redis://`, `rediss://`, `unix://`, and `redis+sentinel://host:port,host:port/service/db`.
    Options in the query have redis-py's names, for example `?ssl_ca_certs=…`, or
    `?ssl_cert_reqs=none` for a hosted server with a self-signed certificate.

    Raises:
        ConfigError: the URL cannot be read, or has an option that breaks RQ.
    """
    try:
        return _check_options(refuse_decoding(_make_client(url)))
    except (TypeError, ValueError, LookupError, AttributeError, redis.RedisError) as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        reason = str(error)
        if unknown:
            reason = f"no URL has the option {unknown[1]!r}; {URL_OPTION_EXAMPLES}"
        raise config.ConfigError(
            f"REDIS_URL={mask_password(url)!r} cannot be used: {reason}"
        ) from None


def _make_client(url: str) -> redis.Redis:
    scheme = urlsplit(url).scheme
    if scheme.endswith("+sentinel"):
        return _sentinel(url)
    connection_classes: dict[str, Any] = {
        "redis": TCPConnection,
        "rediss": TLSConnection,
        "unix": UnixConnection,
    }
    options = dict(CONNECTION_OPTIONS)
    if scheme != "unix":
        options |= KEEPALIVE_OPTIONS
    pool = redis.ConnectionPool.from_url(
        url, connection_class=connection_classes[scheme], **options
    )
    return redis.Redis(connection_pool=pool)


def _check_options(client: redis.Redis) -> redis.Redis:
    """Return `client` if its options make a connection. Raises the error of redis-py if not."""
    pool = client.connection_pool
    for name in NON_TEXT_OPTIONS:
        if isinstance(pool.connection_kwargs.get(name), str):
            raise TypeError(f"unexpected keyword argument {name!r}")
    pools = [pool]
    if isinstance(pool, SentinelConnectionPool):
        pools += [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]
    for each in pools:
        each.connection_class(**each.connection_kwargs).encoder.encode("")
    return client


def _sentinel(url: str) -> redis.Redis:
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    service, _, database = parts.path.strip("/").partition("/")
    parsers: dict[str, Any] = URL_QUERY_ARGUMENT_PARSERS
    options = {
        name: parsers.get(name.removeprefix("sentinel_"), str)(value)
        for name, value in parse_qsl(parts.query)
    }
    sentinel_options = {
        name[9:]: options.pop(name) for name in list(options) if name.startswith("sentinel_")
    }
    nodes = []
    for host in hosts.split(","):
        name, has_port, port = host.rpartition(":")
        if has_port:
            nodes.append((name.strip("[]"), int(port)))
        else:
            nodes.append((host.strip("[]"), SENTINEL_PORT))
    tls = parts.scheme.startswith("rediss")
    if tls:
        sentinel_options.setdefault("ssl", True)
    # A Sentinel that does not answer is not retried: the next one is asked.
    defaults = {"socket_timeout": CONNECT_TIMEOUT_SECONDS, "retry": Retry(NoBackoff(), 0)}
    sentinel = Sentinel(nodes, sentinel_kwargs={**defaults, **sentinel_options})
    return sentinel.master_for(
        service,
        db=int(database or 0),
        username=unquote(username) or None,
        password=unquote(password) or None,
        connection_class=SentinelTLSConnection if tls else SentinelTCPConnection,
        **{**CONNECTION_OPTIONS, **KEEPALIVE_OPTIONS, **options},
    )


def dedicated_connection(client: redis.Redis, seconds: float) -> Any:
    """A connection outside `client`'s pool, whose replies may take up to `seconds`.

    It has RESP2 and no health checks, so that it receives nothing but replies.
    """
    options = {
        **get_connection_kwargs(client),
        "protocol": 2,
        "health_check_interval": 0,
        "socket_timeout": seconds,
    }
    connection = client.connection_pool.connection_class(**options)
    connection.connect()
    return connection


def refuse_decoding(client: redis.Redis) -> redis.Redis:
    """Return `client` if it does not decode responses.

    Raises:
        ConfigError: it does, and cannot read RQ's compressed job data.
    """
    if client.connection_pool.connection_kwargs.get("decode_responses"):
        raise config.ConfigError(
            "this Redis client has decode_responses=True, which breaks RQ (job data are compressed "
            "bytes); use a client without it"
        )
    return client


def url() -> str:
    """REDIS_URL, or else the URL of the embedded server that runs in this folder.

    Raises:
        NoRedis: there is neither.
    """
    configured = config.current().redis_url
    if configured:
        return configured
    try:
        return (DATA_FOLDER / "redis.url").read_text(encoding="utf-8").strip()
    except OSError:
        raise NoRedis(
            "no Redis: set REDIS_URL, or run `rqjobs dev` in this folder to get one"
        ) from None


def client() -> redis.Redis:
    """The process's client for `url()`, or without REDIS_URL the client that `use` has set.

    Raises:
        NoRedis: there is neither.
        ConfigError: the process may not use Redis (`check_before_use`).
    """
    check_use()
    if _adopted_client is not None and not config.current().redis_url:
        return _adopted_client
    return client_for(url())


@functools.lru_cache(maxsize=8)
def client_for(address: str) -> redis.Redis:
    """The process's client for the URL `address`."""
    return connect(address)


# Errors of this process and not of Redis. A job can cause them in its horse; a new horse has none.
LOCAL_ERRNOS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBADF, errno.ENOTSOCK))


def is_local_error(error: Exception) -> bool:
    """Whether this process lacks descriptors or memory, or has closed a descriptor."""
    number = getattr(error, "errno", None)
    if number is None:
        match = re.match(r"Error (\d+) ", str(error))  # redis-py's text for an OSError
        if match:
            number = int(match[1])
    return number in LOCAL_ERRNOS


def mask_password(address: str) -> str:
    """`address` with its password, also one in the query, as `***`."""
    address = re.sub(r"(?<=://)([^/@:]*):[^?]*@", r"\1:***@", address)
    return re.sub(r"(?<=password=)[^&]*", "***", address)


# The code at the start of an error of Redis, its meaning and the remedy.
REFUSAL_MEANINGS = {
    "OOM": "Redis is full (its maxmemory is reached) and refuses writes: give it more memory, or "
    "delete data",
    "NOPERM": "the Redis user lacks a right (grant it with ACL SETUSER)",
    "READONLY": "this Redis is a replica, which takes no writes: set REDIS_URL to the master, or "
    "to the Sentinels (redis+sentinel://…)",
    "MISCONF": "Redis refuses writes because it cannot save to its disk: see its log, and free "
    "space there",
    "LOADING": "Redis is loading its data: try again later",
    "NOAUTH": "the user or password in REDIS_URL is missing or wrong",
    "NOREPLICAS": "Redis refuses writes because too few replicas are connected "
    "(min-replicas-to-write): start them, or lower that number",
    "MASTERDOWN": "this Redis is a replica that has lost its master: set REDIS_URL to the master",
    "BUSY": "a long script of another client blocks Redis: end it with SCRIPT KILL",
}
_REFUSAL_CLASSES: dict[str, type[Exception]] = {
    "OOM": OutOfMemoryError,
    "NOPERM": NoPermissionError,
    "READONLY": ReadOnlyError,
    "LOADING": BusyLoadingError,
    "NOAUTH": AuthenticationError,
    "MASTERDOWN": MasterDownError,
}
# For errors that are not of one of these classes.
_REFUSAL_PATTERN = re.compile(rf"(?:^|[\s:-])({'|'.join(REFUSAL_MEANINGS)})\s")
_NOPERM_IN_SCRIPT = "user executing the script can't"  # the text of NOPERM in a script


def warn_channels_refused(log: logging.Logger, who: str, lost: str) -> None:
    """Log that the Redis user has no right to the channels, and the consequence."""
    log.warning(
        "%s: the Redis user may not use channels, so %s; grant it: "
        "ACL SETUSER <user> &rq:* &rqjobs:*",
        who,
        lost,
    )


def refusal_code(error: Exception) -> str:
    """The key of `REFUSAL_MEANINGS` for an error; "" for other errors and for no answer."""
    for code, kind in _REFUSAL_CLASSES.items():
        if isinstance(error, kind):
            return code
    if _NOPERM_IN_SCRIPT in str(error):
        return "NOPERM"
    if isinstance(error, redis.ResponseError):
        match = _REFUSAL_PATTERN.search(str(error))
        if match:
            return match[1]
    return ""


def explain(error: Exception) -> str:
    """The error and its remedy in one line, without the password of REDIS_URL."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    meaning = REFUSAL_MEANINGS.get(refusal_code(error))
    if meaning:
        line = f"{meaning}; Redis replied: {line}"
    address = config.current().redis_url
    if address:
        line = line.replace(address, mask_password(address))
        password = None
        if "," not in address:  # a list of Sentinels, which urllib cannot read
            password = urlsplit(address).password
        if password:
            line = line.replace(password, "***")
    return line


def use(client: redis.Redis) -> None:
    """Make `client` this process's client while REDIS_URL is unset, as for `rq worker --url`."""
    global _adopted_client
    _adopted_client = client


_adopted_client: redis.Redis | None = None


def check_before_use(check: Callable[[], None]) -> None:
    """Call `check` before each use of Redis; it raises to refuse the use."""
    global _check_before_use
    _check_before_use = check


def check_use() -> None:
    """Raises ConfigError if this process may not use Redis now."""
    if _check_before_use is not None:
        _check_before_use()


_check_before_use: Callable[[], None] | None = None


class Client:
    """For `rq … --connection-class rqjobs.connection.Client`, so that RQ takes these URLs."""

    from_url = staticmethod(connect)


# Redis's codes for transient refusals: at the start of an error, within the error of a script in
# Redis 6.2, or after redis-py's text for an error in a pipeline.
TRANSIENT_ERRORS = re.compile(
    r"(?:^|-|caused error: )"
    r"(?:BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY|TRYAGAIN)\b"
)


def is_transient(error: Exception) -> bool:
    """Whether a retry can succeed: Redis does not answer, or refuses for now."""
    if isinstance(error, ResponseError) and TRANSIENT_ERRORS.search(str(error)):
        return True
    return not is_local_error(error) and isinstance(
        error,
        ConnectionError | TimeoutError | NoScriptError | OutOfMemoryError | ReadOnlyError | OSError,
    )
