"""Redis clients of another make than ours: which Redis they are for, and a client of ours for the same."""

from __future__ import annotations

import socket
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

OWN_CONNECTIONS: dict[Any, Any] = {  # for each class of redis-py's, ours
    Connection: connection.TCPConnection,
    SSLConnection: connection.TLSConnection,
    UnixDomainSocketConnection: connection.UnixConnection,
    SentinelManagedConnection: connection.SentinelTCPConnection,
    SentinelManagedSSLConnection: connection.SentinelTLSConnection,
}


def adopt(given: redis.Redis) -> redis.Redis:
    """A client of ours for the Redis that `given`, a client of another make, is connected to.

    Raises:
        ConfigError: `given` decodes responses, or connects in a way that is not redis-py's own.
    """
    connection.refuse_decoding(given)
    pool = given.connection_pool
    if issubclass(pool.connection_class, connection.ReconnectMixin):
        return given
    kind = OWN_CONNECTIONS.get(pool.connection_class)
    if kind is None:
        raise config.ConfigError(
            f"this Redis client connects by {pool.connection_class.__qualname__}, which rqjobs "
            f"does not know; give it a redis.Redis, or set REDIS_URL"
        )
    keepalive = {} if kind is connection.UnixConnection else connection.KEEPALIVE_OPTIONS
    return copy_of(given, connection_class=kind, **connection.CONNECTION_OPTIONS, **keepalive)


def copy_of(client: redis.Redis, **changes: Any) -> redis.Redis:
    """A client like this one with a pool of its own, some of whose options are others."""
    pool = client.connection_pool
    options = {
        "connection_class": pool.connection_class,
        **get_connection_kwargs(client),
        **changes,
    }
    options.pop("connection_pool", None)  # a Sentinel pool's reference to itself
    if isinstance(pool, SentinelConnectionPool):
        return redis.Redis(
            connection_pool=SentinelConnectionPool(
                pool.service_name, pool.sentinel_manager, **options
            )
        )
    return redis.Redis(connection_pool=redis.ConnectionPool(**options))


def is_same_server(one: redis.Redis, other: redis.Redis) -> bool:
    """Whether both clients are for the same database of the same server, by any of its names."""
    (host, *rest), (other_host, *other_rest) = _target(one), _target(other)
    return rest == other_rest and (
        host == other_host or bool(_addresses(host) & _addresses(other_host))
    )


def is_default(client: redis.Redis) -> bool:
    """Whether this is the Redis that RQ's command line takes when it is told nothing."""
    return _target(client) == ("localhost", 6379, "", 0)


def described(client: redis.Redis) -> str:
    """The server and database of `client`, for people."""
    host, port, path, database = _target(client)
    return f"{path or f'{host}:{port}'}, database {database}"


def _target(client: redis.Redis) -> tuple[str, int, str, int]:
    """Host and port, or the path of a socket (or the name of a Sentinel service); and the number of the database."""
    pool, kwargs = client.connection_pool, client.connection_pool.connection_kwargs
    database = int(kwargs.get("db") or 0)
    path = getattr(pool, "service_name", None) or kwargs.get("path")
    if path:
        return "", 0, str(path), database
    return str(kwargs.get("host") or "localhost"), int(kwargs.get("port") or 6379), "", database


def _addresses(host: str) -> set[str]:
    """The addresses behind a name; those of this machine itself count as one."""
    try:
        found = {
            str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        }
    except (OSError, UnicodeError):
        return {host}
    return {"loopback" if config.is_loopback(address) else address for address in found}
