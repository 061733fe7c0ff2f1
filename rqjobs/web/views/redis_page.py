"""The page of Redis: memory, persistence, clients, latency; and the findings of the doctor."""

from __future__ import annotations

import time
from collections import deque
from datetime import datetime
from typing import Any

import redis
from flask import current_app

from rqjobs import connection
from rqjobs.broker import scripts
from rqjobs.maintenance import doctor
from rqjobs.times import utc
from rqjobs.web.rendering import cut, page, pages

PINGS = 3  # the last ones, one for each view, whose fastest reply is the latency
PING_SECONDS = 10  # for which a PING counts
MAX_FINDINGS = 100
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@pages.get("/redis")
def redis_page() -> Any:
    return page("redis.html", **_facts())


@pages.get("/live/redis")
def live_redis() -> Any:
    """The numbers of that page, as they are now."""
    return page("_redis.html", **_facts())


@pages.get("/redis/doctor")
def run_doctor() -> Any:
    """The findings of `rqjobs doctor` about Redis, workers and queues.

    They take more time than the page of Redis, so a button asks for them.
    """
    findings = []
    for finding in doctor.check(connection.client()):
        findings.append({"level": finding.level.value, "message": cut(finding.message, 500)})
        if len(findings) == MAX_FINDINGS:
            break
    return page("doctor.html", findings=findings, section="rqjobs.redis_page")


def _facts() -> dict[str, Any]:
    client = connection.client()
    (reply,) = scripts.read_together(client, [("INFO",)])
    if isinstance(reply, Exception):  # the Redis user may not call it
        raise reply
    info = Info(reply)
    return {
        "address": cut(connection.mask_password(connection.url()), 300),
        "findings": [
            {"level": finding.level.value, "message": cut(finding.message, 500)}
            for finding in _findings(info)
        ],
        "memory": _memory(info),
        "groups": [
            ("Server", _server(info, _latency(client))),
            ("Persistence", _persistence(info)),
            ("Clients", _clients(info)),
            ("Memory", _memory_facts(info)),
        ],
    }


class Info:
    """A reply to INFO. A value that is missing or of another type is the default."""

    def __init__(self, values: Any):
        self.values: dict[str, Any] = values if isinstance(values, dict) else {}

    def number(self, name: str) -> float:
        value = self.values.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        return 0.0

    def text(self, name: str) -> str:
        return cut(str(self.values.get(name, "unknown")), 100)


def _findings(info: Info) -> list[doctor.Finding]:
    if "redis_version" not in info.values:
        return []
    return list(doctor.server_findings(info.values))


def _latency(client: redis.Redis) -> str:
    """The time of the fastest of the last PINGs, as this process sees it."""
    pings: deque[tuple[float, float]] = current_app.extensions.setdefault(
        "rqjobs.pings", deque(maxlen=PINGS)
    )
    start = time.perf_counter()
    client.ping()
    pings.append((start, time.perf_counter() - start))
    fastest = min(seconds for sent, seconds in pings.copy() if start - sent < PING_SECONDS)
    return f"{fastest * 1000:.2f} ms"


def _server(info: Info, latency: str) -> list[tuple[str, Any]]:
    name = "Valkey" if "valkey_version" in info.values else "Redis"
    version = info.text("valkey_version" if name == "Valkey" else "redis_version")
    return [
        ("Version", f"{name} {version}"),
        ("Up for", duration(info.number("uptime_in_seconds"))),
        ("Role", info.text("role")),
        ("Replicas", _count(info.number("connected_slaves"))),
        ("Latency from here", latency),
        ("Commands a second", _count(info.number("instantaneous_ops_per_sec"))),
    ]


def _persistence(info: Info) -> list[tuple[str, Any]]:
    append_only = "off"
    if info.number("aof_enabled"):
        append_only = f"on, last write {info.text('aof_last_write_status')}"
    facts: list[tuple[str, Any]] = [
        ("Append-only file", append_only),
        ("Last snapshot", _moment(info.number("rdb_last_save_time"))),
        ("Outcome of it", info.text("rdb_last_bgsave_status")),
        ("Changes since", _count(info.number("rdb_changes_since_last_save"))),
    ]
    if info.number("aof_enabled"):
        facts.append(("File size", size(info.number("aof_current_size"))))
        facts.append(("Last rewrite of it", info.text("aof_last_bgrewrite_status")))
    return facts


def _clients(info: Info) -> list[tuple[str, Any]]:
    limit = info.number("maxclients")
    connected = _count(info.number("connected_clients"))
    return [
        ("Connected", f"{connected} of {_count(limit)}" if limit else connected),
        ("Waiting for jobs", _count(info.number("blocked_clients"))),
        ("Refused, since its start", _count(info.number("rejected_connections"))),
    ]


def _memory_facts(info: Info) -> list[tuple[str, Any]]:
    limit = info.number("maxmemory")
    return [
        ("Used", size(info.number("used_memory"))),
        ("Limit (maxmemory)", size(limit) if limit else "none"),
        ("When it is full", info.text("maxmemory_policy")),
        ("Peak", size(info.number("used_memory_peak"))),
        ("Of the machine", size(info.number("used_memory_rss"))),
        ("Thrown away (evicted keys)", _count(info.number("evicted_keys"))),
    ]


def _memory(info: Info) -> dict[str, Any] | None:
    """The share of maxmemory that is used; None without a limit."""
    limit = info.number("maxmemory")
    if limit <= 0:
        return None
    share = min(info.number("used_memory") / limit, 1.0)
    high = doctor.FULL_MEMORY_SHARE
    return {"share": round(share, 3), "percent": round(100 * share), "high": high}


def _count(number: float) -> str:
    return f"{number:,.0f}"


def size(number: float) -> str:
    """A number of bytes for people."""
    for unit in UNITS:
        if number < 1024 or unit == UNITS[-1]:
            break
        number /= 1024
    if unit == "B" or number >= 100:
        return f"{number:.0f} {unit}"
    return f"{number:.1f} {unit}"


def duration(seconds: float) -> str:
    """A long time for people."""
    for name, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        count = int(seconds // length)
        if count:
            return f"{count:,} {name}{'s' if count != 1 else ''}"
    return f"{seconds:.0f} s"


def _moment(seconds: float) -> datetime | str:
    """The time of a snapshot; Redis writes that of its start if there was none."""
    try:
        return utc(seconds) if seconds else "none"
    except (ValueError, OverflowError, OSError):
        return "unknown"
