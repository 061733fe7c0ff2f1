"""The Redis client: TLS, time-outs, reconnects; refuses what breaks RQ.

A client from here reconnects with backoff, but never sends a command twice by itself: a command whose reply was
lost may have had its effect, and a second RPUSH would be a second job. (redis-py 8 re-sends by default.)
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import re
import socket
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

CONNECT_TIMEOUT_SECONDS = 3  # seconds
COMMAND_TIMEOUT_SECONDS = (
    10  # seconds; well under a lease, so that a worker whose Redis hangs can still renew it in time
)
CONNECT_RETRIES = 4  # with backoff, some two seconds in all: a web request must not hang for longer
HEALTH_CHECK_SECONDS = 25  # seconds of silence after which a connection is tried before it is used
MIN_REDIS_VERSION = (6, 2)  # LMOVE and BLMOVE came with 6.2
DATA_FOLDER = Path(
    ".rqjobs"
)  # what the embedded server keeps, in the directory where it was started


class NoRedis(ConnectionError):
    """There is no usable Redis. The message says in one line how to get one."""


class ReconnectMixin:
    """Retries to connect, and only that; nothing of a command has been sent by then.

    A connect that times out is not retried, it has waited already; and it is a ConnectionError, on which RQ's worker
    waits for Redis to come back, while a TimeoutError makes it quit.
    """

    _connecting = False

    def connect(self) -> None:
        self._connecting = True
        attempts = Retry(
            ExponentialWithJitterBackoff(cap=1, base=0.05), CONNECT_RETRIES, (ConnectionError,)
        )
        try:
            attempts.call_with_retry(super().connect, lambda _: self.disconnect())  # type: ignore[misc,attr-defined]
        except TimeoutError as error:
            raise ConnectionError(f"no answer from Redis while connecting: {error}") from error
        finally:
            self._connecting = False

    def check_health(self) -> None:
        if (
            self._connecting
        ):  # redis-py asks here too, before its first HELLO, whose reply is the check
            return
        try:
            super().check_health()  # type: ignore[misc]
        except (ConnectionError, TimeoutError):
            self.disconnect()  # type: ignore[attr-defined]
            self.connect()


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
    """Sends texts with lone surrogates, for which UTF-8 has no bytes, with these as backslash escapes."""

    def pack(self, *args: Any) -> Any:
        try:
            return super().pack(*args)
        except UnicodeEncodeError:
            words: list[Any] = [
                escape_surrogates(arg) if isinstance(arg, str) else arg for arg in args
            ]
            return super().pack(*words)


CONNECTION_OPTIONS: dict[str, Any] = {
    "command_packer": SurrogatePacker(),
    "socket_timeout": COMMAND_TIMEOUT_SECONDS,
    "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "health_check_interval": HEALTH_CHECK_SECONDS,
    "retry": Retry(NoBackoff(), 0),
}
with contextlib.suppress(
    ImportError
):  # redis-py 8 reads its own package's metadata for each connection, for 3 ms
    from redis.driver_info import DriverInfo

    CONNECTION_OPTIONS["driver_info"] = DriverInfo()
NON_TEXT_OPTIONS = (
    "event_dispatcher",
    "retry",
    "retry_on_error",
    "socket_keepalive_options",
    "socket_type",
)  # never a text
URL_OPTION_EXAMPLES = "there are, for example, ?db=1, ?socket_timeout=5 and, with rediss://, ?ssl_ca_certs=/path/ca.pem"
KEEPALIVE_OPTIONS: dict[str, Any] = {"socket_keepalive": True, "socket_keepalive_options": {}}
if hasattr(socket, "TCP_KEEPIDLE"):
    KEEPALIVE_OPTIONS["socket_keepalive_options"] = {
        socket.TCP_KEEPIDLE: 30,
        socket.TCP_KEEPINTVL: 10,
        socket.TCP_KEEPCNT: 3,
    }


def connect(url: str) -> redis.Redis:
    """A client for `url` that connects when it is first used.

    Takes `redis://`, `rediss://` (certificate options as redis-py names them, for example `?ssl_ca_certs=…` or
    `?ssl_cert_reqs=none` for a hosted server with a self-signed certificate), `unix://`, and
    `redis+sentinel://host:port,host:port/service/db`.

    Raises:
        ConfigError: the URL asks for something that breaks RQ, or cannot be read.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme.endswith("+sentinel"):
            return _check_options(refuse_decoding(_sentinel(url)))
        kind = {"redis": TCPConnection, "rediss": TLSConnection, "unix": UnixConnection}[
            parts.scheme
        ]
        more = {} if kind is UnixConnection else KEEPALIVE_OPTIONS
        pool = redis.ConnectionPool.from_url(
            url, connection_class=kind, **CONNECTION_OPTIONS, **more
        )
        return _check_options(refuse_decoding(redis.Redis(connection_pool=pool)))
    except (TypeError, ValueError, LookupError, AttributeError, redis.RedisError) as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        reason = (
            f"no URL has the option {unknown[1]!r}; {URL_OPTION_EXAMPLES}" if unknown else error
        )
        raise config.ConfigError(
            f"REDIS_URL={mask_password(url)!r} cannot be used: {reason}"
        ) from None


def _check_options(client: redis.Redis) -> redis.Redis:
    """Return `client` if its options make a connection, which is then not used; else what redis-py raises on them."""
    pool = client.connection_pool
    for name in NON_TEXT_OPTIONS:
        if isinstance(pool.connection_kwargs.get(name), str):
            raise TypeError(f"unexpected keyword argument {name!r}")
    asked = pool.sentinel_manager.sentinels if isinstance(pool, SentinelConnectionPool) else []
    for each in [pool, *(sentinel.connection_pool for sentinel in asked)]:
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
        name, _, port = host.rpartition(":") if ":" in host else (host, "", "26379")
        nodes.append((name.strip("[]"), int(port)))
    tls = parts.scheme.startswith("rediss")
    if tls:
        sentinel_options.setdefault("ssl", True)
    asking = {
        "socket_timeout": CONNECT_TIMEOUT_SECONDS,
        "retry": Retry(NoBackoff(), 0),
    }  # one is down? The next one knows
    sentinel = Sentinel(nodes, sentinel_kwargs={**asking, **sentinel_options})
    return sentinel.master_for(
        service,
        db=int(database or 0),
        username=unquote(username) or None,
        password=unquote(password) or None,
        connection_class=SentinelTLSConnection if tls else SentinelTCPConnection,
        **{**CONNECTION_OPTIONS, **KEEPALIVE_OPTIONS, **options},
    )


def dedicated_connection(client: redis.Redis, seconds: float) -> Any:
    """A connection of its own beside `client`'s pool, whose replies may take up to `seconds`.

    RESP2 and no health checks: nothing but replies may come in on it.
    """
    options = {
        **get_connection_kwargs(client),
        "protocol": 2,
        "health_check_interval": 0,
        "socket_timeout": seconds,
    }
    made = client.connection_pool.connection_class(**options)
    made.connect()
    return made


def refuse_decoding(client: redis.Redis) -> redis.Redis:
    """Return `client`, or refuse it.

    Raises:
        ConfigError: the client decodes responses; RQ keeps compressed bytes in Redis and would break on them.
    """
    if client.connection_pool.connection_kwargs.get("decode_responses"):
        raise config.ConfigError(
            "this Redis client has decode_responses=True, which breaks RQ (job data are compressed bytes); "
            "use a client without it"
        )
    return client


def url() -> str:
    """The URL of the Redis in force: REDIS_URL, else that of the embedded server that runs here.

    Raises:
        NoRedis: neither is there.
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
    """The process's client for `url()`, made once; without a REDIS_URL the one that `use` was given."""
    if _adopted_client is not None and not config.current().redis_url:
        return _adopted_client
    return _client(url())


@functools.lru_cache(maxsize=8)
def _client(address: str) -> redis.Redis:
    return connect(address)


# What the kernel says of this process, and not of Redis. A job can do that to its horse; another one is free of it.
LOCAL_ERRNOS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBADF, errno.ENOTSOCK))


def is_local_error(error: Exception) -> bool:
    """Whether this process is at fault: it has no descriptor or no memory left, or a job closed one of ours."""
    number = getattr(error, "errno", None)
    if number is None and (
        found := re.match(r"Error (\d+) ", str(error))
    ):  # so redis-py passes an OSError on
        number = int(found[1])
    return number in LOCAL_ERRNOS


def mask_password(address: str) -> str:
    """`address` as it may be shown to people: a password in it, also in a query, becomes `***`."""
    address = re.sub(r"(?<=://)([^/@:]*):[^?]*@", r"\1:***@", address)
    return re.sub(r"(?<=password=)[^&]*", "***", address)


REFUSAL_MEANINGS = {  # what Redis says first when it refuses -> what that means, and what to do
    "OOM": "Redis is full (its maxmemory is reached) and refuses writes: give it more memory, or delete what is not "
    "needed",
    "NOPERM": "the Redis user lacks a right (grant it with ACL SETUSER)",
    "READONLY": "this Redis is a replica, which takes no writes: have REDIS_URL name the master, or the Sentinels "
    "(redis+sentinel://…)",
    "MISCONF": "Redis refuses writes because it cannot save to its disk: see its log, and free space there",
    "LOADING": "Redis is still loading its data: try again when that is done",
    "NOAUTH": "the user or password in REDIS_URL is missing or wrong",
    "NOREPLICAS": "Redis refuses writes because too few of its replicas are there (min-replicas-to-write)",
    "MASTERDOWN": "this Redis is a replica that has lost its master: have REDIS_URL name the master",
    "BUSY": "a script that somebody else started keeps Redis busy: end it with SCRIPT KILL",
}
_REFUSAL_CLASSES: dict[str, type[Exception]] = {
    "OOM": OutOfMemoryError,
    "NOPERM": NoPermissionError,
    "READONLY": ReadOnlyError,
    "LOADING": BusyLoadingError,
    "NOAUTH": AuthenticationError,
    "MASTERDOWN": MasterDownError,
}
_REFUSAL_PATTERN = re.compile(
    rf"(?:^|[\s:-])({'|'.join(REFUSAL_MEANINGS)})\s"
)  # where redis-py has no class for what it says
_NOPERM_IN_SCRIPT = "user executing the script can't"  # how NOPERM reads there


def warn_channels_refused(log: logging.Logger, who: str, lost: str) -> None:
    """Say that a Redis user has no right to our channels, and what does not work without it."""
    log.warning(
        "%s: the Redis user may not use channels, so %s; grant it: ACL SETUSER <user> &rq:* &rqjobs:*",
        who,
        lost,
    )


def refusal_code(error: Exception) -> str:
    """Why Redis refused, as a key of `REFUSAL_MEANINGS`; "" if it is none of these, or did not answer at all."""
    for code, kind in _REFUSAL_CLASSES.items():
        if isinstance(error, kind):
            return code
    if _NOPERM_IN_SCRIPT in str(error):
        return "NOPERM"
    found = isinstance(error, redis.ResponseError) and _REFUSAL_PATTERN.search(str(error))
    return found[1] if found else ""


def explain(error: Exception) -> str:
    """What went wrong with Redis and what to do, in one line for people, with no password in it."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    meaning = REFUSAL_MEANINGS.get(refusal_code(error))
    if meaning:
        line = f"{meaning}; it said: {line}"
    address = config.current().redis_url or ""
    password = urlsplit(address).password if "," not in address else None
    return line.replace(address or "\0", mask_password(address)).replace(password or "\0", "***")


def use(given: redis.Redis) -> None:
    """Make `given` this process's client, when no setting names a Redis: `rq worker --url …` was told one."""
    global _adopted_client
    _adopted_client = given


_adopted_client: redis.Redis | None = None


class Client:
    """What `rq … --connection-class rqjobs.connection.Client` calls, so that RQ's commands take our URLs too."""

    from_url = staticmethod(connect)


# Redis's words for "not now", at the start of an error, inside what 6.2 says of an error in a script, or after what
# redis-py says of an error in a pipeline.
TRANSIENT_ERRORS = re.compile(
    r"(?:^|-|caused error: )(?:BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY|TRYAGAIN)\b"
)


def is_transient(error: Exception) -> bool:
    """Whether it is worth asking again: Redis is away or refuses for now. Anything else is our mistake or a job's."""
    if isinstance(error, ResponseError) and TRANSIENT_ERRORS.search(str(error)):
        return True
    return not is_local_error(error) and isinstance(
        error,
        ConnectionError | TimeoutError | NoScriptError | OutOfMemoryError | ReadOnlyError | OSError,
    )
