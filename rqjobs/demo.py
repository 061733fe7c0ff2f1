"""Example jobs. A jobs module has plain functions, with `@job` where one needs options."""

from __future__ import annotations

import logging
import random
import re
import time
from datetime import date, datetime, timedelta
from enum import Enum

from rqjobs import Retry, job, resumable

log = logging.getLogger(__name__)


def greet(name: str = "World") -> str:
    """Return a greeting.

    Args:
        name: the person to greet
    """
    return f"Hello, {name}!"


@job(queue="high")
def statistics(text: str) -> dict[str, int]:
    """Count the parts of a text.

    Args:
        text: the text
    """
    return {
        "words": len(re.findall(r"\w+", text)),
        "sentences": len(re.findall(r"[.!?…。！？]+", text)),
        "characters": len(text),
    }


@job(retry=Retry(max=5, interval=[1, 2, 4, 8, 16]))
def unreliable(failure_rate: float = 0.5) -> str:
    """Fail at random, as a remote service does. It is retried after 1, 2, 4, 8 and 16 seconds.

    Args:
        failure_rate: the probability of a failure, from 0 (never) to 1 (always)
    """
    log.info("asking the service, which fails %.0f %% of the time", 100 * failure_rate)
    if random.random() < failure_rate:  # no secret follows from it  # nosec B311
        raise ConnectionError("the service did not answer (this demo fails on purpose)")
    return "the service answered"


@job(queue="low", timeout=3600)
def slow(steps: int = 10, seconds: float = 1.0) -> int:
    """Work in steps. A worker that stops leaves the next step to another one.

    Args:
        steps: the number of steps
        seconds: the duration of a step
    """
    for _ in resumable(range(steps)):
        time.sleep(max(seconds, 0))
    return steps


class Room(Enum):
    SINGLE = "one bed"
    DOUBLE = "two beds"


def book_room(
    guest: str,
    arrival: date,
    nights: int = 1,
    room: Room = Room.DOUBLE,
    price: float = 89.5,
    breakfast: bool = True,
    wake_up_call: datetime | None = None,
    late_checkout: timedelta = timedelta(0),
    extras: list[str] | None = None,
    message: str = "",
) -> dict[str, object]:
    """Book a hotel room. The form has a field of each kind.

    Args:
        guest: the name of the guest
        arrival: the first day
        nights: the number of nights
        room: the kind of room
        price: the price of a night
        breakfast: whether breakfast is included
        wake_up_call: the time of a wake-up call
        late_checkout: the time after 11:00 at which the guest leaves
        extras: further services
        message: a message to the hotel
    """
    services = list(extras or ())
    if breakfast:
        services.append("breakfast")
    checkout = datetime(arrival.year, arrival.month, arrival.day, 11) + late_checkout
    return {
        "guest": guest,
        "room": room.value,
        "checkout": f"{checkout + timedelta(days=nights):%Y-%m-%d %H:%M}",
        "total": round(price * nights, 2),
        "services": services,
    }
