"""The clock on a wall somewhere, and Redis's: when a cron line is met although the wall's clock jumps.

It jumps twice a year in many zones. A cron line that leaves out hours means appointments: each is kept once a day. What
falls into the hour that is skipped runs at the instant of the change, all of it together once; in the hour that comes
twice it runs the first time only. A line for every hour (`*/5 * * * *`, `30 * * * *`) follows the time that passes: it
runs in both of the doubled hours, and there is nothing to run in an hour that does not exist.
"""

from __future__ import annotations

import functools
import zoneinfo
from collections.abc import Iterator
from datetime import datetime, timedelta

from rqjobs import cronline
from rqjobs.cronline import ScheduleError

EPOCH = datetime(1970, 1, 1)
FAR = 253_402_214_400  # Unix seconds, at the end of the year 9999: no tick comes after


@functools.lru_cache(maxsize=256)
def zone(name: str) -> zoneinfo.ZoneInfo:
    """The time zone called `name`.

    Raises:
        ScheduleError: there is none.
    """
    try:
        return zoneinfo.ZoneInfo(name)
    except (OSError, ValueError, TypeError, zoneinfo.ZoneInfoNotFoundError):
        import difflib

        known = zoneinfo.available_timezones()
        close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "use a name like 'Europe/Berlin'"
        if not known:
            hint = "this machine has no time zone database; pip install tzdata"
        raise ScheduleError(f"there is no time zone {name!r}; {hint}") from None


@functools.lru_cache(maxsize=1024)
def _changes(tz: str, year: int) -> tuple[tuple[int, int, int], ...]:
    """When a zone's offset from UTC changes in a year (UTC): (Unix second, offset before, offset after), in seconds."""
    begin, end = (int((datetime(y, 1, 1) - EPOCH).total_seconds()) for y in (year, year + 1))
    found, low = [], begin
    while low < end:
        high = min(low + 6 * 3600, end)
        before, after = _offset(tz, low), _offset(tz, high)
        if before != after:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _offset(tz, middle) == before else (low, middle)
            found.append((high, before, after))
            low = high
        else:
            low = high
    return tuple(found)


def _offset(tz: str, moment: int) -> int:
    return int(datetime.fromtimestamp(moment, zone(tz)).utcoffset().total_seconds())  # type: ignore[union-attr]


def _changes_between(tz: str, low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """The changes later than `low`, up to `high`."""
    if tz != "UTC":
        for year in range(
            (EPOCH + timedelta(seconds=low)).year, (EPOCH + timedelta(seconds=high)).year + 1
        ):
            yield from (change for change in _changes(tz, year) if low < change[0] <= high)


def cron_after(line: cronline.Line, tz: str, moment: int) -> int | None:
    """The first tick of `line` later than `moment`: stretch by stretch of constant offset from UTC."""
    if moment >= FAR:
        return None
    offset = 0 if tz == "UTC" else _offset(tz, moment)
    wall = moment + offset  # the line's times later than this on the wall are looked for
    if not line.hourly:
        for change, before, after in _changes_between(tz, moment - 86400, moment):
            if after < before:  # what came a first time does not come again
                wall = max(wall, change + before - 1)
    while True:
        found = line.after(EPOCH + timedelta(seconds=wall))
        if found is None:
            return None
        then = int((found - EPOCH).total_seconds())
        change, before, after = next(_changes_between(tz, moment, then - offset), (FAR, 0, 0))
        if change == FAR:
            return then - offset
        if not line.hourly and then < change + after:
            return change  # the wall's clock skips it
        moment, offset = change, after
        wall = change + (before if before > after and not line.hourly else after) - 1
