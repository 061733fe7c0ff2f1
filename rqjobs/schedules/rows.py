"""Changes of schedules as rows of the outbox: how they are written, and made once.

A row has the values that the change stores, not the arguments of its call. It changes the schedule
as it is when the row is moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import redis

from rqjobs import outbox
from rqjobs.broker.enqueueing import Row, RowOutcome
from rqjobs.schedules.cron import ScheduleError
from rqjobs.schedules.rules import Rule
from rqjobs.schedules.store import (
    JobTemplate,
    RunStatus,
    Schedule,
    check_name,
    enqueue_ticks,
    first_tick,
    read,
    save_row,
    write_row,
)


class Change(str, Enum):
    """The change of a schedule that a row makes."""

    ADD = "add"
    EDIT = "edit"
    PAUSE = "pause"
    RESUME = "resume"
    REMOVE = "remove"
    RUN = "run"


def encode(name: str, change: Change, **words: Any) -> str:
    """A change without a call. `words`: `job_id` for `RUN`."""
    return outbox.encode_change(name, {"change": change.value, **words})


def encode_call(
    name: str, change: Change, rule: Rule, template: JobTemplate, replace: bool = True
) -> str:
    """An added or edited schedule, with its rule and the call of its jobs."""
    call = {
        "function": template.function,
        "queue": template.queue,
        "digest": template.digest,
        "fields": outbox.encode_fields(template.fields),
    }
    return encode(name, change, rule=rule.to_json(), call=call, replace=replace)


def apply(client: redis.Redis, row: Row, name: Any, words: Mapping[str, Any]) -> RowOutcome:
    """Make the change of a row, once.

    Raises:
        ScheduleError: it can never be made.
        ValueError: the words are not those of `encode`.
        redis.RedisError: Redis does not answer, or refuses it.
    """
    try:
        change = Change(words.get("change"))
        check_name(name)
        reply = ""
        while not reply:  # the schedule has changed in between
            found = read(client, [name]).get(name)
            if change in (Change.ADD, Change.EDIT):
                reply = _store(client, row, name, found, change, words)
            elif found is None:
                raise ScheduleError(f"there is no schedule {name!r}")
            elif change is Change.RUN:
                return _run(client, row, found, words)
            else:
                reply = _change(client, row, found, change)
    except (TypeError, KeyError, AttributeError):
        raise ValueError("the payload is not that of a schedule") from None
    if reply in (RowOutcome.ALREADY_MOVED.value, RowOutcome.READ_TOO_LONG_AGO.value):
        return RowOutcome(reply)
    return RowOutcome.MOVED


def _store(
    client: redis.Redis,
    row: Row,
    name: str,
    found: Schedule | None,
    change: Change,
    words: Mapping[str, Any],
) -> str:
    rule, template = Rule.from_json(words["rule"]), _template(words["call"])
    if change is Change.ADD and found and words["replace"] is not True:
        raise ScheduleError(f"there is a schedule {name!r} already")
    if change is Change.EDIT and not found:
        raise ScheduleError(f"there is no schedule {name!r}")
    if found and found.source == "code" and found.state != "undeclared":
        raise ScheduleError(f"the schedule {name!r} is declared in the code; change it there")
    source = found.source if found and change is Change.EDIT else "added"
    return save_row(client, name, rule, template, source, found, row)


def _template(call: Mapping[str, Any]) -> JobTemplate:
    fields = outbox.decode_fields(call["fields"])
    texts = (call["function"], call["queue"], call["digest"])
    if not all(isinstance(text, str) and text for text in texts) or not fields.get("data"):
        raise ValueError("the payload has no call of a schedule")
    "".join(texts).encode()  # without lone surrogates
    return JobTemplate(texts[0], texts[1], fields, texts[2])


def _change(client: redis.Redis, row: Row, found: Schedule, change: Change) -> str:
    name = found.name
    if change is Change.REMOVE:
        if found.source == "code" and found.state != "undeclared":
            raise ScheduleError(f"the schedule {name!r} is declared in the code; remove it there")
        return write_row(client, name, found.revision, "", "remove", {}, None, row)
    state = "paused" if change is Change.PAUSE else "active"
    if found.state == state:
        row.mark(client)
        return state
    if found.state not in ("active", "paused"):
        raise ScheduleError(f"the schedule {name!r} is {found.state}")
    due, fields = "never", {"next": ""}
    if change is Change.RESUME:
        due, fields = first_tick(client, name, found.rule)
    fields = {"state": state} | fields
    return write_row(client, name, found.revision, due, "same", fields, None, row)


def _run(client: redis.Redis, row: Row, found: Schedule, words: Mapping[str, Any]) -> RowOutcome:
    """Enqueue one job of a schedule now."""
    job_id = words["job_id"]
    if not isinstance(job_id, str) or not job_id.startswith(f"{found.name}-now-"):
        raise ValueError("the payload has no id for the job of a schedule")
    check_name(job_id)
    result = enqueue_ticks(client, found, [("", job_id)], row=row)
    if result.status in (RunStatus.ALREADY_MOVED, RunStatus.READ_TOO_LONG_AGO):
        return RowOutcome(result.status.value)
    if result.made:
        return RowOutcome.MOVED
    if result.skipped:
        raise ScheduleError(f"another job has the unique key of the schedule {found.name!r}")
    raise redis.ResponseError(
        f"the schedule {found.name!r} makes no job now: {result.status.value}"
    )


outbox.apply_change = apply
