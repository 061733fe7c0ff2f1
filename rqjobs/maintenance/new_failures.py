"""The steps after a failure: count it in its group, and call `on_failed`.

The script that records a failure notes it in the same step. The worker does the rest at once, or
the next sweep does. Each is done once, because one script does it and removes the note.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import redis

from rqjobs import catalog, failed, queues
from rqjobs.broker import keys, scripts, transitions
from rqjobs.broker.keys import decode
from rqjobs.maintenance.sweep_result import skip_wrong_types
from rqjobs.policies.failures import Failure

log = logging.getLogger("rqjobs")
SCAN_BATCH_NOTES = 500  # notes that one command reads
# A note is kept for this long if its on_failed is not in this process's catalog: a worker with
# other modules may have it.
UNKNOWN_FUNCTION_SECONDS = 24 * 3600
UNKNOWN_FUNCTION_LOG_SECONDS = 15  # after the failure; later sweeps do not log it again


def follow_all(connection: redis.Redis, on_progress: Callable[[], None] = lambda: None) -> None:
    """Count the failures noted so far in their groups, and call their `on_failed`."""
    if not connection.exists(keys.NEW_FAILURES):
        return
    for field, value in connection.hscan_iter(keys.NEW_FAILURES, count=SCAN_BATCH_NOTES):
        with skip_wrong_types(f"the failure {decode(field)}"):
            _follow(connection, field, value)
        on_progress()


def follow(connection: redis.Redis, field: bytes) -> None:
    """Count one failure, and call its `on_failed`. `field`: of `rqjobs:new-failures`."""
    value: Any = connection.hget(keys.NEW_FAILURES, field)
    if value is not None:
        _follow(connection, field, value)


def _follow(connection: redis.Redis, field: bytes, value: bytes) -> None:
    job_id = field.rpartition(b":")[0]
    moment, *words = decode(value).split("\n")
    group = ""
    if len(words) != 3:  # a script has recorded the failure, without these words
        failure, name = _read(connection, job_id)
        group = failure.group
        words = failure.call(name).split("\n")
    call = None
    if words[0]:
        try:
            args = (decode(job_id), *words[1:])
            call = queues.on_failed_call(words[0], args, connection)
        except catalog.NotAJob as error:
            if not _is_given_up(job_id, moment, error):
                return
        except redis.RedisError:
            raise
        except Exception as error:  # whatever the function's options raise
            log.error("on_failed of job %s is not called: %s", decode(job_id), error)
    try:
        transitions.follow_failure(connection, field, job_id, group, call)
    except redis.ResponseError as error:
        log.error("on_failed of job %s is not called yet: %s", decode(job_id), error)


def _is_given_up(job_id: bytes, moment: str, error: Exception) -> bool:
    """Whether to drop the call of a function that is not in this process's catalog."""
    try:
        age = time.time() - float(moment)
    except ValueError:  # foreign data
        return True
    is_old = age > UNKNOWN_FUNCTION_SECONDS
    if is_old or age < UNKNOWN_FUNCTION_LOG_SECONDS:
        waits = "is not called" if is_old else "waits for a worker that has it"
        log.error("on_failed of job %s %s: %s", decode(job_id), waits, error)
    return is_old


def _read(connection: redis.Redis, job_id: bytes) -> tuple[Failure, str]:
    """The failure of a job by its record, and the name of its on_failed, or ""."""
    key = keys.JOB_PREFIX.encode() + job_id
    results = keys.results("").encode() + job_id
    fields, entries = scripts.read_together(
        connection,
        [("HMGET", key, "data", "rqjobs_on_failed"), ("XREVRANGE", results, "+", "-", "COUNT", 1)],
    )
    data = name = None
    if isinstance(fields, list):
        data, name = fields
    return failed.read_failure(data, entries), decode(name or b"")
