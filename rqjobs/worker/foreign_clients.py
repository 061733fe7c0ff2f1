"""Redis clients that rqjobs did not make: their Redis, and a client of ours for the same Redis."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from typing import Any

import redis
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.sentinel import (
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from rq.connections import get_connection_kwargs

from rqjobs import config, connection

# redis-py's connection class -> ours.
OWN_CONNECTIONS: dict[Any, Any] = {
    Connection: connection.TCPConnection,
    SSLConnection: connection.TLSConnection,
    UnixDomainSocketConnection: connection.UnixConnection,
    SentinelManagedConnection: connection.SentinelTCPConnection,
    SentinelManagedSSLConnection: connection.SentinelTLSConnection,
}


def adopt(given: redis.Redis) -> redis.Redis:
    """A client of ours for the Redis that `given` is for; `given` itself if it is one of ours.

    Raises:
        ConfigError: `given` decodes responses, or has a connection class that is not redis-py's.
    """
    connection.refuse_decoding(given)
    pool = given.connection_pool
    if issubclass(pool.connection_class, connection.ReconnectMixin):
        return given
    kind = OWN_CONNECTIONS.get(pool.connection_class)
    if kind is None:
        raise config.ConfigError(
            f"rqjobs does not support this Redis client's connection class, "
            f"{pool.connection_class.__qualname__}; pass a redis.Redis, or set REDIS_URL"
        )
    keepalive = {} if kind is connection.UnixConnection else connection.KEEPALIVE_OPTIONS
    return copy_of(given, connection_class=kind, **connection.CONNECTION_OPTIONS, **keepalive)


def copy_of(client: redis.Redis, **changes: Any) -> redis.Redis:
    """A client like `client`, with a new pool, and with `changes` to the pool's options."""
    pool = client.connection_pool
    options = {
        "connection_class": pool.connection_class,
        **get_connection_kwargs(client),
        **changes,
    }
    options.pop("connection_pool", None)  # a Sentinel pool refers to itself there
    if isinstance(pool, SentinelConnectionPool):
        return redis.Redis(
            connection_pool=SentinelConnectionPool(
                pool.service_name, pool.sentinel_manager, **options
            )
        )
    return redis.Redis(connection_pool=redis.ConnectionPool(**options))


def is_same_server(one: redis.Redis, other: redis.Redis) -> bool:
    """Whether both clients are for the same database of the same server, by any of its names."""
    first = _address(one)
    second = _address(other)
    if replace(first, host="") != replace(second, host=""):
        return False
    if first.host == second.host:
        return True
    return bool(_resolve(first.host) & _resolve(second.host))


def is_default(client: redis.Redis) -> bool:
    """Whether the client is for the Redis that RQ's command line uses without any option."""
    return _address(client) == Address("localhost", 6379)


def describe(client: redis.Redis) -> str:
    """The server and database of `client`, for people."""
    address = _address(client)
    server = address.path or f"{address.host}:{address.port}"
    return f"{server}, database {address.database}"


@dataclass(frozen=True)
class Address:
    """The database that a client is for."""

    host: str = ""
    port: int = 0
    path: str = ""  # of a socket, or the name of a Sentinel service; host and port are empty then
    database: int = 0


def _address(client: redis.Redis) -> Address:
    pool = client.connection_pool
    options = pool.connection_kwargs
    database = int(options.get("db") or 0)
    path = getattr(pool, "service_name", None) or options.get("path")
    if path:
        return Address(path=str(path), database=database)
    host = str(options.get("host") or "localhost")
    return Address(host, int(options.get("port") or 6379), database=database)


def _resolve(host: str) -> set[str]:
    """The addresses of a host name. All addresses of this machine's loopback are "loopback"."""
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return {host}
    addresses = {str(entry[4][0]) for entry in entries}
    return {"loopback" if config.is_loopback(address) else address for address in addresses}
